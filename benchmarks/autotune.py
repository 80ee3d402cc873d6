"""Which arrangement of each stage is the fastest here, as training would choose it."""

from typing import Any

import jax

from benchmarks import measure, problem, train_step
from dpa_jax.devices.platform import Platform
from dpa_jax.ops import compute
from dpa_jax.stages import Stage, select
from dpa_jax.training import autotune

COLUMNS = {
    "stage": "s",
    "arrangement": "s",
    "ms_per_step": ",.3f ms/step",
    "times_slower": ".2f x the fastest",
    "failed": "s",
}


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; see `measure.main`."""
    return measure.main("autotune", run, argv)


def run(argv: list[str]) -> None:
    """Times what the arguments ask for, prints and writes it."""
    parser = measure.arguments("autotune", __doc__)
    train_step.add_stages(parser)
    args = parser.parse_args(argv)
    given = problem.make(args.config, args.images, "random:0", args.batch)
    precision = compute.resolve(args.precision, jax.default_backend())
    rows: list[dict[str, Any]] = []
    for stage in select(given.plan, args.stages):
        found = timed(given, stage, precision)
        measure.show(found, COLUMNS)
        rows += found
        # after every stage, so that a run that is cut off leaves what it has
        measure.write("autotune", args, argv, rows, note=problem.NOTE)


def timed(given: problem.Problem, stage: Stage, precision: str) -> list[dict[str, Any]]:
    """Returns a row for each arrangement of a stage, the usual one first."""
    setup = given.setup(precision)
    images, frozen = setup.resident_images(), setup.resident_frozen()
    choice = autotune.choose(setup, stage, images, frozen, Platform.here())
    least = min(one["seconds"] for one in choice.timings if "seconds" in one)
    rows = []
    for one in choice.timings:
        seconds, failed = one.pop("seconds", None), one.pop("failed", "")
        rows.append(
            {
                "stage": stage.name,
                "precision": precision,
                "arrangement": ", ".join(f"{k}={v}" for k, v in one.items())
                or "the usual one",
                "ms_per_step": seconds and 1e3 * seconds,
                "times_slower": seconds and seconds / least,
                "is_fastest": seconds == least,
                "failed": failed,
            }
        )
    return rows


if __name__ == "__main__":
    raise SystemExit(main())

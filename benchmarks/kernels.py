"""Which kernels a step's time goes to, by the profiler's trace of a chunk of steps."""

import collections
import pathlib
import re
import tempfile
from typing import Any

import jax

from benchmarks import measure, problem, train_step
from dpa_jax import errors
from dpa_jax.ops import compute
from dpa_jax.stages import Stage, select

COLUMNS = {
    "stage": "s",
    "kernel": "s",
    "count": ",.1f a step",
    "us_per_step": ",.1f us/step",
    "share": ".1%",
}
# of each kind of device the lines of a trace that hold its kernels
_LINES = {"gpu": "Stream", "tpu": "XLA Ops", "cpu": "tf_XLA"}
# what else stands in those of a CPU: what runs kernels, and when they end
_FRAMES = re.compile(r"ThunkExecutor|end: |(while|call)\b")


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; see `measure.main`."""
    return measure.main("kernels", run, argv)


def run(argv: list[str]) -> None:
    """Profiles what the arguments ask for, prints and writes it."""
    parser = measure.arguments("kernels", __doc__)
    train_step.add_stages(parser)
    args = parser.parse_args(argv)
    given = problem.make(args.config, args.images, "random:0", args.batch)
    precision = compute.resolve(args.precision, jax.default_backend())
    rows: list[dict[str, Any]] = []
    for stage in select(given.plan, args.stages):
        found = profiled(given, stage, precision)
        measure.show(found[:30], COLUMNS)
        rows += found
    measure.write("kernels", args, argv, rows, note=problem.NOTE)


def profiled(
    given: problem.Problem, stage: Stage, precision: str
) -> list[dict[str, Any]]:
    """Returns a row for each kind of kernel of a stage, the longest first."""
    made = train_step.ours(given, stage, precision)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            made.run(made.unit)
        (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
        trace = jax.profiler.ProfileData.from_file(str(path))
    spent, counts = by_kernel(trace, jax.default_backend())
    total = sum(spent.values())
    return [
        {
            "stage": stage.name,
            "precision": precision,
            "kernel": name,
            "count": counts[name] / made.unit,
            "us_per_step": nanoseconds / 1e3 / made.unit,
            "share": nanoseconds / total,
        }
        for name, nanoseconds in spent.most_common()
    ]


def by_kernel(trace: Any, backend: str) -> tuple[collections.Counter, ...]:
    """Adds up a trace's kernels by name, less the numbers that end it.

    Args:
      trace: a `jax.profiler.ProfileData`.
      backend: `cpu`, `gpu` or `tpu`.

    Returns:
      Nanoseconds, and how many, by name.

    Raises:
      DpaError: it holds none.
    """
    spent, counts = collections.Counter(), collections.Counter()
    for plane in trace.planes:
        if not plane.name.startswith("/host:CPU" if backend == "cpu" else "/device:"):
            continue
        for line in plane.lines:
            if not line.name.startswith(_LINES[backend]):
                continue
            for event in line.events:
                if _FRAMES.match(event.name):
                    continue
                name = re.sub(r"[._\d]+$", "", event.name)
                spent[name] += event.duration_ns
                counts[name] += 1
    if not spent:
        raise errors.DpaError(f"the profiler's trace holds no kernels of the {backend}")
    return spent, counts


if __name__ == "__main__":
    raise SystemExit(main())

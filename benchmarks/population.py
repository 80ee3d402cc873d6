"""What training several runs at once gains over one after the other.

`dpa-jax train --config.population.seeds=N` trains N runs on the same batches, so that
the features of the real images are computed once for all. Images per second count each
member's: what N runs one after the other would need to reach.
"""

import statistics
from typing import Any

import jax

from benchmarks import measure, problem, train_step
from dpa_jax import errors
from dpa_jax.devices import parallel
from dpa_jax.ops import compute
from dpa_jax.stages import Stage, select

COLUMNS = {
    "stage": "s",
    "members": "d members",
    "batch": "d",
    "ms_per_step": ",.3f ms/step",
    "member_images_per_second": ",.0f images/s x members",
    "gain": ".2f x one",
    "compile_s": ".1f compile s",
    "cached_targets": "d cached",
}


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; see `measure.main`."""
    return measure.main("population", run, argv)


def run(argv: list[str]) -> None:
    """Measures what the arguments ask for, prints and writes it."""
    parser = measure.arguments("population", __doc__)
    train_step.add_stages(parser)
    add = parser.add_argument
    add("--members", default="1,2,4,8", help="runs at once to compare")
    add("--cache-targets", default="auto", choices=("auto", "always", "never"))
    add("--repeats", type=int, default=5, help="turns of each number of members")
    add("--seconds", type=float, default=0.5, help="that one turn takes, about")
    args = parser.parse_args(argv)
    load = measure.load_before()
    try:
        counts = sorted({1, *(int(count) for count in args.members.split(","))})
    except ValueError:
        raise errors.UsageError(f"--members is {args.members}; write 1,2,4") from None
    if counts[0] < 1:
        raise errors.UsageError(f"--members is {args.members}; one is the least")
    given = problem.make(args.config, args.images, "random:0", args.batch)
    given = given.changed({"perceptual.cache_targets": args.cache_targets})
    parallel.check_batch(given.config.batch_size, jax.device_count())
    precision = compute.resolve(args.precision, jax.default_backend())
    print(problem.NOTE)
    rows: list[dict[str, Any]] = []
    for stage in select(given.plan, args.stages):
        found = measure_stage(
            given, stage, precision, counts, args.repeats, args.seconds
        )
        measure.show(found, COLUMNS)
        rows += found
        measure.write(
            "population", args, argv, rows, load_before=load, note=problem.NOTE
        )


def measure_stage(
    given: problem.Problem,
    stage: Stage,
    precision: str,
    counts: list[int],
    repeats: int,
    seconds: float,
) -> list[dict[str, Any]]:
    """Measures one stage with each number of members; returns a row for each."""
    batch = given.config.batch_size
    contestants = {
        count: train_step.ours(given, stage, precision, count) for count in counts
    }
    turns = {
        count: measure.sized(made.run, made.unit, seconds)
        for count, made in contestants.items()
    }
    spent = measure.take_turns(turns, repeats)
    rows: list[dict[str, Any]] = []
    for count, made in contestants.items():
        # targets are computed once for a stage, whatever the number of members
        each = statistics.median(spent[count]) + made.target_fill_s / stage.steps
        rows.append(
            {
                "stage": stage.name,
                "members": count,
                "batch": batch,
                "precision": precision,
                "ms_per_step": 1e3 * each,
                "member_images_per_second": count * batch / each,
                "turns_ms_per_step": [1e3 * s for s in spent[count]],
                "compile_s": made.compile_s,
                "cached_targets": made.cached_targets,
                "target_fill_s": made.target_fill_s,
            }
        )
    alone = rows[0]["member_images_per_second"]
    return [{**row, "gain": row["member_images_per_second"] / alone} for row in rows]


if __name__ == "__main__":
    raise SystemExit(main())

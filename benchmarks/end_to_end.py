"""Wall time of a whole training run: data, compiling, training, checkpoints apart.

Runs the loop of `dpa-jax train` on made-up images, with all it writes, into a folder
that is deleted afterwards. On GPU and TPU the next stage is compiled while one trains,
so that compiling takes longer than training waits for it; both are shown. Speed and
memory are noted all along, so that a long run shows whether it keeps both: the last
third of each stage is compared with its first. With `--through=programs` nothing is
read or written: the same programs take the same number of steps, stage after stage,
each from its initial weights.
"""

import math
import pathlib
import tempfile
import time
from typing import Any

from benchmarks import measure, problem, train_step
from dpa_jax import errors
from dpa_jax.devices.platform import Platform
from dpa_jax.ops import compute

COLUMNS = {
    "stage": "s",
    "steps": ",d steps",
    "train_s": ",.2f train s",
    "ms_per_step": ",.3f ms/step",
    "images_per_second": ",.0f images/s",
    "targets_s": ",.2f targets s",
    "wait_s": ",.2f wait s",
    "compile_s": ",.2f compile s",
    "checkpoint_s": ",.2f checkpoint s",
    "samples_s": ",.2f samples s",
    "slowdown": ".3f slowdown",
    "process_rise_megabytes": "+,.0f process MB",
    "device_rise_megabytes": "+,.0f device MB",
}


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; see `measure.main`."""
    return measure.main("end_to_end", run, argv)


def run(argv: list[str]) -> None:
    """Measures what the arguments ask for, prints and writes it."""
    parser = measure.arguments("end_to_end", __doc__)
    add = parser.add_argument
    add("--config", default="configs/nih.py:subset,pg", metavar="FILE[:ARGS]")
    add("--batch", type=int, help="images per step; as configured if left out")
    add("--steps-scale", type=float, default=1.0, help="times every stage's steps")
    add("--window", type=float, metavar="S", help="between looks at memory; 60 s")
    add("--precision", default="auto", choices=train_step.PRECISIONS)
    add("--residency", default="auto", choices=("auto", "device", "stream"))
    add("--through", default="train", choices=("train", "programs"))
    add("--images", type=int, default=4096, help="training images")
    add("--weights", default="random:0", help="of VGG19, or a file")
    args = parser.parse_args(argv)
    load = measure.load_before()
    if args.through == "programs":
        if args.residency == "stream":
            raise errors.UsageError("--through=programs keeps images on the device")
        if args.window is not None:
            raise errors.UsageError("--through=programs does not look at memory")
    elif args.window is None:
        args.window = 60.0
    for name, value in (("steps-scale", args.steps_scale), ("window", args.window)):
        if value is not None and not 0 < value < math.inf:
            raise errors.UsageError(f"--{name} is {value}, not a number above 0")
    given = problem.make(
        args.config, args.images, args.weights, args.batch, args.steps_scale
    )
    given = given.changed(
        {"precision": args.precision, "data.residency": args.residency}
    )
    print(problem.NOTE)
    found = (
        through_train(given, args.window)
        if args.through == "train"
        else through_programs(given)
    )
    rows = found.pop("rows")
    measure.show(rows, COLUMNS)
    print(", ".join(f"{name} {value:,.2f}" for name, value in found.items()))
    measure.write(
        "end_to_end",
        args,
        argv,
        rows,
        totals=found,
        load_before=load,
        note=problem.NOTE,
    )


def through_train(given: problem.Problem, window: float) -> dict[str, Any]:
    """Trains as `dpa-jax train` does; see `timed_run.whole_run`."""
    try:
        from benchmarks import timed_run
    except ImportError as error:
        raise errors.DpaError(
            f"a whole run needs all that dpa_jax depends on, and {error.name} is "
            "missing: pip install dpa_jax, or give --through=programs"
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        return timed_run.whole_run(given, pathlib.Path(folder), window)


def through_programs(given: problem.Problem) -> dict[str, Any]:
    """Runs every stage's program for as many steps as a run would.

    Returns:
      As `through_train`, without what only files take.
    """
    precision = compute.resolve(given.config.precision, Platform.here().backend)
    batch = given.config.batch_size
    rows: list[dict[str, Any]] = []
    begun = time.perf_counter()
    for stage in given.plan:
        made = train_step.ours(given, stage, precision)
        started = time.perf_counter()
        made.run(stage.steps)
        spent = time.perf_counter() - started
        rows.append(
            {
                "stage": stage.name,
                "implementation": "dpa_jax",
                "precision": precision,
                "batch": batch,
                "steps": stage.steps,
                "ms_per_step": 1e3 * spent / stage.steps,
                "images_per_second": batch * stage.steps / spent,
                "train_s": spent,
                "targets_s": made.target_fill_s,
                "compile_s": made.compile_s,
            }
        )
    return {
        "total_s": time.perf_counter() - begun,
        **{
            part: sum(row[part] for row in rows)
            for part in ("train_s", "targets_s", "compile_s")
        },
        "steps": given.plan[-1].end,
        "rows": rows,
    }


if __name__ == "__main__":
    raise SystemExit(main())

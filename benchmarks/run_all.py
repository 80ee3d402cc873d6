"""The whole suite in one command: `python -m benchmarks.run_all --out DIR`.

Needs jax, flax, optax, numpy, ml_collections and torch. Every part writes its JSON into
DIR when it is done; a part that fails is named at the end, and the others still run.
"""

import argparse
import importlib.util
import pathlib
import time
import traceback

from benchmarks import end_to_end, measure, score, train_step
from dpa_jax import errors

NIH, CAMELYON16 = "configs/nih.py:subset,pg", "configs/camelyon16.py:pg"
# what training writes with, beyond the six packages
WRITERS = ("PIL", "safetensors", "tensorboardX")
PARTS = ("nih", "score", "end_to_end", "end_to_end_wo_pg", "camelyon16")


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; see `measure.main`."""
    return measure.main("run_all", run, argv)


def run(argv: list[str]) -> None:
    """Runs the parts that the arguments ask for.

    Raises:
      DpaError: a part did; the others ran.
    """
    parser = argparse.ArgumentParser(
        "python -m benchmarks.run_all", description=__doc__
    )
    add = parser.add_argument
    add("--out", required=True, metavar="DIR", help="where the results go")
    add("--parts", default="all", help=f"some of {','.join(PARTS)}")
    add("--batch", type=int, default=128, help="images per step")
    add("--baselines", default="published,tuned", help="none leaves PyTorch out")
    add("--stages", default="all", help="of both configs; all, or names")
    add("--repeats", type=int, default=5, help="turns of each implementation")
    add("--seconds", type=float, default=0.5, help="that one turn takes, about")
    add("--images", type=int, default=4096, help="training images")
    add("--steps-scale", type=float, default=1.0, help="times a whole run's steps")
    args = parser.parse_args(argv)
    folder = pathlib.Path(args.out)
    chosen = measure.one_of("--parts", args.parts, PARTS)

    shared = [f"--images={args.images}"]
    turns = [*shared, f"--repeats={args.repeats}", f"--seconds={args.seconds}"]
    turns += [f"--baselines={args.baselines}"]
    steps = [*turns, f"--batch={args.batch}", f"--stages={args.stages}"]
    whole = [*shared, f"--steps-scale={args.steps_scale}", f"--batch={args.batch}"]
    missing = [name for name in WRITERS if importlib.util.find_spec(name) is None]
    if missing and any("end_to_end" in part for part in chosen):
        print(
            f"{', '.join(missing)} not installed: whole runs go through their programs "
            "alone, without files"
        )
        whole.append("--through=programs")
    parts = {
        "nih": (train_step.main, [f"--config={NIH}", *steps]),
        "score": (score.main, [f"--config={NIH}", *turns, f"--batch={args.batch}"]),
        "end_to_end": (end_to_end.main, [f"--config={NIH}", *whole]),
        "end_to_end_wo_pg": (
            end_to_end.main,
            [f"--config={NIH.replace('pg', 'wo_pg')}", *whole],
        ),
        "camelyon16": (train_step.main, [f"--config={CAMELYON16}", *steps]),
    }
    failed = []
    for part in chosen:
        program, options = parts[part]
        print(f"\n{part}: {program.__module__} {' '.join(options)}", flush=True)
        begun = time.perf_counter()
        try:
            if program([*options, f"--out={folder / part}.json"]):
                failed.append(part)
        except Exception:  # such as no memory left: the other parts still say much
            traceback.print_exc()
            failed.append(part)
        print(f"{part}: {time.perf_counter() - begun:.0f} s", flush=True)
    if failed:
        raise errors.DpaError(f"{', '.join(failed)} failed; see above")


if __name__ == "__main__":
    raise SystemExit(main())

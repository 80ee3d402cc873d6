"""Images scored per second, beside PyTorch's scoring functions.

From uint8 images in host memory to scores in host memory, in batches, after the last
stage of a configuration. Implementations take turns; unless their scores agree, nothing
is reported.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure, problem
from benchmarks.train_step import TOLERANCE
from dpa_jax import errors
from dpa_jax.devices.platform import Platform
from dpa_jax.images import center_crop
from dpa_jax.scoring.scorer import Scorer

COLUMNS = {
    "implementation": "s",
    "precision": "s",
    "batch": "d",
    "images_per_second": ",.0f images/s",
    "ms_per_batch": ",.3f ms/batch",
    "compile_s": ".1f compile s",
}
# on GPU and TPU; CPUs have float32 alone
PRECISIONS = "float32,tensorfloat32,bfloat16"


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; see `measure.main`."""
    return measure.main("score", run, argv)


def run(argv: list[str]) -> None:
    """Measures what the arguments ask for, prints and writes it."""
    parser = measure.arguments("score", __doc__)
    add = parser.add_argument
    add("--config", default="configs/nih.py:subset,pg", metavar="FILE[:ARGS]")
    add("--batch", default="32,128", help="images at a time; several with commas")
    add("--baselines", default="published,tuned", help="none leaves PyTorch out")
    add("--precision", default="auto", help=f"some of {PRECISIONS}; auto: all on GPU")
    add("--repeats", type=int, default=5, help="turns of each implementation")
    add("--seconds", type=float, default=0.5, help="that one turn takes, about")
    add("--images", type=int, default=1024, help="that are scored; whole batches")
    add("--weights", default="random:0", help="of VGG19, or a file")
    args = parser.parse_args(argv)
    load = measure.load_before()

    names = measure.one_of("--baselines", args.baselines, ("published", "tuned"))
    if names:
        measure.share_gpu()
    wanted = args.precision
    if wanted == "auto":
        wanted = "float32" if jax.default_backend() == "cpu" else PRECISIONS
    precisions = measure.one_of("--precision", wanted, PRECISIONS.split(","))
    try:
        sizes = [int(size) for size in args.batch.split(",")]
    except ValueError:
        raise errors.UsageError(f"--batch is {args.batch}; write 32,128") from None
    print(problem.NOTE)
    rows: list[dict[str, Any]] = []
    for size in sizes:
        given = problem.make(args.config, args.images, args.weights, size)
        found = measure_batch(given, precisions, names, args.repeats, args.seconds)
        measure.show(found, COLUMNS)
        rows += found
        measure.write("score", args, argv, rows, load_before=load, note=problem.NOTE)


def measure_batch(
    given: problem.Problem,
    precisions: list[str],
    names: list[str],
    repeats: int,
    seconds: float,
) -> list[dict[str, Any]]:
    """Measures all implementations at one batch size; returns a row for each.

    Raises:
      DpaError: their scores do not agree.
    """
    batch = given.config.batch_size
    images = given.images[: len(given.images) // batch * batch]
    # ours crops the centre on the device; PyTorch's know nothing of it
    size = given.config.data.resolution
    centre = np.array(center_crop(jnp.asarray(images), size))
    made: dict[tuple[str, str], Callable[[int], Any]] = {}
    compile_s: dict[tuple[str, str], float] = {}
    scores: dict[tuple[str, str], np.ndarray] = {}

    def enter(name: str, precision: str, scorer, images: np.ndarray) -> None:
        def take(count: int) -> None:
            """Scores so many batches."""
            for first in range(0, count * batch, len(images)):
                scorer(images[: count * batch - first])

        begun = time.perf_counter()
        first = scorer(images[:batch])
        take(3)
        spent = time.perf_counter() - begun
        begun = time.perf_counter()
        take(1)
        compile_s[name, precision] = max(0, spent - 4 * (time.perf_counter() - begun))
        scores[name, precision], made[name, precision] = first, take

    for precision in precisions:
        enter("dpa_jax", precision, ours(given, precision), images)
    if names:
        from benchmarks import baselines

        for name in names:
            # several of ours may have the same counterpart
            theirs = {baselines.precision(name, p): p for p in precisions}
            for precision, wanted in theirs.items():
                scorer = baselines.scorer(name, given, wanted)
                enter(name, precision, scorer, centre)
    check_scores(scores)
    turns = {key: measure.sized(take, 1, seconds) for key, take in made.items()}
    each = measure.take_turns(turns, repeats)
    if names:
        from benchmarks import baselines

        turns.clear()
        made.clear()
        baselines.forget()
    return [
        {
            "implementation": name,
            "precision": precision,
            "batch": batch,
            "ms_per_batch": 1e3 * statistics.median(found),
            "images_per_second": batch / statistics.median(found),
            "turns_ms_per_batch": [1e3 * s for s in found],
            "compile_s": compile_s[name, precision],
            "first_score": float(scores[name, precision][0]),
        }
        for (name, precision), found in each.items()
    ]


def ours(given: problem.Problem, precision: str) -> Scorer:
    """Makes what `dpa_jax.load` returns for a run at the end of its last stage."""
    stage = given.plan[-1]
    return Scorer(
        given.config,
        stage,
        stage.end,
        given.parameters,
        given.weights,
        given.statistics,
        batch_size=given.config.batch_size,
        precision=precision,
        platform=Platform.here(),
    )


def check_scores(scores: dict[tuple[str, str], np.ndarray]) -> None:
    """Refuses implementations that do not give the same scores.

    Raises:
      DpaError: a score is further from ours than its precision explains.
    """
    (reference, ours), *others = scores.items()
    for (name, precision), theirs in others:
        allowed = max(TOLERANCE[reference[1]], TOLERANCE[precision])
        apart = float(np.abs(theirs - ours).max() / np.abs(ours).mean())
        if not apart <= allowed:
            raise errors.DpaError(
                f"the scores of {name} ({precision}) are {apart:.1e} from those of "
                f"{reference[0]} ({reference[1]}), {allowed:.0e} allowed. They do not "
                "compute the same, so nothing is reported"
            )


if __name__ == "__main__":
    raise SystemExit(main())

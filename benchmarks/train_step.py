"""Speed of a training step at every stage of growth, beside PyTorch's.

Ours is the program that `dpa-jax train` runs: many steps a dispatch, images on the
device, features of the images cached where it would cache them (their computation is
part of the time). The baselines get each batch ready, in floating point and on the
device, for nothing. All start from the same weights and take turns; unless the losses
of their first step agree, nothing is reported.
"""

import argparse
import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure, problem
from dpa_jax import errors, images, step
from dpa_jax.devices import parallel
from dpa_jax.devices.platform import Platform
from dpa_jax.ops import compute
from dpa_jax.ops.compute import Compute
from dpa_jax.stages import Stage, select
from dpa_jax.training import feeding, programs
from dpa_jax.training.arrangement import Arrangement

# how far the first losses may lie apart, relatively, by the coarser precision
TOLERANCE = {"float32": 1e-4, "tensorfloat32": 2e-3, "bfloat16": 2e-2}
PRECISIONS = ("auto", *TOLERANCE)
COLUMNS = {
    "stage": "s",
    "implementation": "s",
    "precision": "s",
    "ms_per_step": ",.3f ms/step",
    "images_per_second": ",.0f images/s",
    "times_slower": ".2f x ours",
    "tflops_per_second": ",.2f TFLOP/s",
    "share_of_matmul_peak": ".1% of peak",
    "compile_s": ".1f compile s",
    "peak_megabytes": ",.0f peak MB",
    "target_fill_s": ".2f targets s",
    "first_loss": ".5f first loss",
}


@dataclasses.dataclass
class Contestant:
    """One implementation of one stage, warmed up.

    Attributes:
      name: `dpa_jax`, with what is not usual about it, `published`, `tuned` or
        `reference`.
      precision: what it computes in.
      run: takes so many steps, waits, and returns the first and the last loss.
      unit: what the number of steps must be a multiple of.
      first_loss: of its very first step.
      compile_s: seconds that building it and its first steps took beyond later steps.
      peak_bytes: memory it takes at most, with its images and weights: on GPU and TPU
        of the device; on CPU how far the process's memory rose, compiling included.
        None where that is not known.
      cached_targets: whether the features of the images were computed beforehand.
      target_fill_s: seconds that took, without compiling.
    """

    name: str
    precision: str
    run: Callable[[int], tuple[float, float]]
    unit: int
    first_loss: float
    compile_s: float
    peak_bytes: int | None
    cached_targets: bool = False
    target_fill_s: float = 0.0


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; see `measure.main`."""
    return measure.main("train_step", run, argv)


def run(argv: list[str]) -> None:
    """Measures what the arguments ask for, prints and writes it."""
    parser = measure.arguments("train_step", __doc__)
    add_stages(parser)
    add = parser.add_argument
    add("--baselines", default="published,tuned", help="none leaves PyTorch out")
    add(
        "--arranged",
        metavar="FIELD=VALUE",
        action="append",
        default=[],
        type=arranged,
        help="ours once more, otherwise than usual, such as blocks=False; repeatable",
    )
    add("--reference-checkout", metavar="DIR", help="a clone of the published code")
    add("--repeats", type=int, default=5, help="turns of each implementation")
    add("--seconds", type=float, default=0.5, help="that one turn takes, about")
    add("--weights", default="random:0", help="of VGG19, or a file")
    args = parser.parse_args(argv)
    load = measure.load_before()
    if args.repeats < 1 or args.seconds <= 0:
        raise errors.UsageError("--repeats and --seconds must be above 0")

    names = measure.one_of("--baselines", args.baselines, ("published", "tuned"))
    if args.reference_checkout:
        names.append("reference")
    if names:
        measure.share_gpu()
    given = problem.make(args.config, args.images, args.weights, args.batch)
    chosen = select(given.plan, args.stages)
    parallel.check_batch(given.config.batch_size, jax.device_count())
    precision = compute.resolve(args.precision, jax.default_backend())
    peaks = measure.matmul_peak(precision, bool(names))
    print(problem.NOTE)
    print(
        f"{jax.devices()[0].device_kind}, batch {given.config.batch_size}, {precision},"
        f" matrix products {max(peaks.values()):,.2f} TFLOP/s"
    )
    rows: list[dict[str, Any]] = []
    for stage in chosen:
        found = measure_stage(given, stage, precision, names, args, max(peaks.values()))
        measure.show(found, COLUMNS)
        rows += found
        # after every stage, so that a run that is cut off leaves what it has
        measure.write(
            "train_step",
            args,
            argv,
            rows,
            matmul_peak=peaks,
            load_before=load,
            note=problem.NOTE,
        )


def add_stages(parser: argparse.ArgumentParser) -> None:
    """Adds what names stages of a configuration, and how they are computed."""
    add = parser.add_argument
    add("--config", default="configs/nih.py:subset,pg", metavar="FILE[:ARGS]")
    add("--batch", type=int, help="images per step; as configured if left out")
    add("--stages", default="all", help="all, or names such as 64_stabilization,...")
    add("--precision", default="auto", choices=PRECISIONS)
    add("--images", type=int, default=4096, help="training images, on the device")


def arranged(text: str) -> dict[str, Any]:
    """Returns a change of the usual arrangement, given as FIELD=VALUE.

    Raises:
      UsageError: there is no such field, or it takes no such value.
    """
    usual = vars(Arrangement())
    name, _, value = text.partition("=")
    known = {"True": True, "False": False}
    given = known.get(value, int(value) if value.isdigit() else value)
    if type(given) is not type(usual.get(name)):
        listed = ", ".join(f"{field}={value}" for field, value in usual.items())
        raise errors.UsageError(f"--arranged={text}: change one of {listed}")
    return {name: given}


def measure_stage(
    given: problem.Problem,
    stage: Stage,
    precision: str,
    names: list[str],
    args: argparse.Namespace,
    peak: float,
) -> list[dict[str, Any]]:
    """Measures all implementations of one stage; returns a row for each.

    Raises:
      DpaError: the losses of their first step do not agree.
    """
    spec = step.StepSpec.from_config(
        given.config, stage, Compute(precision, jax.default_backend())
    )
    # before anything is timed, lest it be lost
    operations = {
        cached: measure.backbone_operations(
            spec, given.weights, given.config.batch_size, cached
        )
        for cached in (False, True)
    }
    builders = [
        functools.partial(ours, given, stage, precision, **changes)
        for changes in ({}, *args.arranged)
    ]
    for name in names:
        builders.append(functools.partial(theirs, name, given, spec, args))
    contestants = [built(builder) for builder in builders]
    check_losses(stage.name, contestants)

    turns = {c.name: measure.sized(c.run, c.unit, args.seconds) for c in contestants}
    seconds = measure.take_turns(turns, args.repeats)
    found = [
        row(
            given,
            spec,
            contestant,
            seconds[contestant.name],
            operations[contestant.cached_targets],
            peak,
        )
        for contestant in contestants
    ]
    for each in found:
        each["times_slower"] = each["ms_per_step"] / found[0]["ms_per_step"]
    if names:
        from benchmarks import baselines

        turns.clear()
        contestants.clear()
        baselines.forget()
    return found


def built(build: Callable[[], Contestant]) -> Contestant:
    """Builds a contestant; on CPU the process's memory tells what it takes."""
    if jax.default_backend() != "cpu":
        return build()
    contestant, contestant.peak_bytes = measure.with_resident_peak(build)
    return contestant


def row(
    given: problem.Problem,
    spec: step.StepSpec,
    contestant: Contestant,
    seconds: list[float],
    operations: float,
    peak: float,
) -> dict[str, Any]:
    """Returns a row of the result from an implementation's turns.

    Args:
      given: see `problem.make`.
      spec: of the stage.
      contestant: the implementation.
      seconds: of a step, of each turn.
      operations: of the backbone in a step.
      peak: TFLOP/s of a matrix product.
    """
    batch = given.config.batch_size
    # what is computed once is paid by every step of the stage
    fill = contestant.target_fill_s / spec.stage.steps
    each = statistics.median(seconds) + fill
    rate = operations / each / 1e12
    return {
        "stage": spec.stage.name,
        "implementation": contestant.name,
        "precision": contestant.precision,
        "batch": batch,
        "ms_per_step": 1e3 * each,
        "images_per_second": batch / each,
        "turns_ms_per_step": [1e3 * s for s in seconds],
        "compile_s": contestant.compile_s,
        "peak_bytes": contestant.peak_bytes,
        "peak_megabytes": contestant.peak_bytes and contestant.peak_bytes / 1e6,
        "tflops_per_second": rate,
        "share_of_matmul_peak": rate / peak,
        "cached_targets": contestant.cached_targets,
        "target_fill_s": contestant.target_fill_s,
        "target_fill_ms_per_step": 1e3 * fill,
        "stage_steps": spec.stage.steps,
        "first_loss": contestant.first_loss,
    }


def check_losses(stage: str, contestants: list[Contestant]) -> None:
    """Refuses implementations that do not compute the same.

    Raises:
      DpaError: a first loss is further from ours than its precision explains.
    """
    ours, *others = contestants
    for other in others:
        allowed = max(TOLERANCE[ours.precision], TOLERANCE[other.precision])
        apart = abs(other.first_loss - ours.first_loss) / abs(ours.first_loss)
        if not apart <= allowed:
            raise errors.DpaError(
                f"{stage}: the first loss of {other.name} ({other.precision}) is "
                f"{other.first_loss:.6g}, that of dpa_jax ({ours.precision}) "
                f"{ours.first_loss:.6g}: {apart:.1e} apart, {allowed:.0e} allowed. "
                "They do not compute the same, so nothing is reported"
            )


# --- ours


def batches(given: problem.Problem, steps: int) -> np.ndarray:
    """Returns which images each step takes, int32 `[steps, batch]`."""
    count, size = len(given.images), given.config.batch_size
    return feeding.batch_indices(given.config.seed, count, size, 0, steps)


def first_step(stage: Stage) -> int:
    """Returns the step of a stage that is measured: of a transition one halfway.

    Both paths count there.
    """
    return stage.steps // 2 if stage.transition else 0


def ours(
    given: problem.Problem,
    stage: Stage,
    precision: str,
    members: int = 1,
    **changes: Any,
) -> Contestant:
    """Builds a stage as `train` does, and takes the first chunk.

    Args:
      given: see `problem.make`.
      stage: to build.
      precision: to compute in.
      members: runs at once.
      **changes: of the usual `Arrangement`, which are part of the contestant's name.
    """
    setup, platform = given.setup(precision, members), Platform.here()
    arrangement = Arrangement(**changes)
    setup.arrange(stage, arrangement)
    data: dict[str, Any] = {"images": setup.resident_images()}
    frozen = setup.resident_frozen()
    begun = time.perf_counter()
    program = setup.compiled(stage)
    built = time.perf_counter() - begun
    cached, fill = setup.caches_targets(stage), 0.0
    if cached:
        with measure.CompileTime() as compiling:
            begun = time.perf_counter()
            data["targets"] = jax.block_until_ready(
                programs.compute_targets(program.spec, platform, frozen, data["images"])
            )
            fill = time.perf_counter() - begun - compiling.seconds
    train_state = setup.begin(stage).replace(step=jnp.int32(first_step(stage)))
    train_state = parallel.replicate(train_state, platform)
    rows = parallel.split(batches(given, program.steps), platform, axis=-1)
    rows = parallel.shard(rows, platform)

    def take(count: int) -> tuple[float, float]:
        nonlocal train_state
        found = []
        for done in range(0, count, program.steps):
            steps = min(program.steps, count - done)
            valid = parallel.replicate(np.int32(steps), platform)
            train_state, scalars = program.run(train_state, frozen, data, rows, valid)
            if platform.chunks_in_flight == 1:
                jax.block_until_ready(scalars)
            found.append(scalars["loss"][:steps])
        jax.block_until_ready(train_state)
        ends = found[0][0], found[-1][-1]  # one for each member
        return measure.finite(*(float(np.mean(loss)) for loss in ends))

    loss, beyond = start(take, program.steps)
    peak = None
    if platform.backend != "cpu" and len(platform.devices) == 1:
        # memory_stats has the highest of all stages so far; the program knows its own
        peak = program.planned_bytes
    return Contestant(
        name=" ".join(["dpa_jax", *arrangement.changes()]),
        precision=precision,
        run=take,
        unit=program.steps,
        first_loss=loss,
        compile_s=built + beyond,
        peak_bytes=peak,
        cached_targets=cached,
        target_fill_s=fill,
    )


def start(take: Callable[[int], tuple[float, float]], unit: int) -> tuple[float, float]:
    """Warms up; returns the first loss and what the start took beyond later steps."""
    begun = time.perf_counter()
    loss, _ = take(unit)
    once = time.perf_counter()
    take(unit)
    return loss, max(0.0, (once - begun) - (time.perf_counter() - once))


# --- theirs


def theirs(
    name: str,
    given: problem.Problem,
    spec: step.StepSpec,
    args: argparse.Namespace,
) -> Contestant:
    """Builds a baseline for a stage and takes its first steps."""
    from benchmarks import baselines

    first = first_step(spec.stage)
    alpha = float(spec.stage.alpha(first))
    ready = [
        baselines.to_device(seen(given, spec, first + i, indices))
        for i, indices in enumerate(batches(given, 4))
    ]

    def build():
        begun = time.perf_counter()
        made = baselines.train_step(
            name, given, spec.stage, spec.compute.precision, args.reference_checkout
        )
        take = baselines.contestant(made, ready, alpha)
        loss, _ = take(1)
        take(2)  # torch.compile records CUDA graphs at its second and third call
        spent = time.perf_counter() - begun
        begun = time.perf_counter()
        take(1)
        return take, loss, max(0.0, spent - 3 * (time.perf_counter() - begun))

    (take, loss, beyond), peak = baselines.with_peak(build)
    return Contestant(
        name=name,
        precision=baselines.precision(name, spec.compute.precision),
        run=take,
        unit=1,
        first_loss=loss,
        compile_s=beyond,
        peak_bytes=peak,
    )


def seen(
    given: problem.Problem, spec: step.StepSpec, number: int, indices: np.ndarray
) -> np.ndarray:
    """Returns the images of a step after the augmentation that ours makes of them."""
    stored = given.images[indices]
    if not spec.augments(stored.shape[1]):
        return stored
    fixed = jax.random.fold_in(jax.random.key(given.config.seed), 1)

    @jax.jit
    def augmented(stored):
        key = jax.random.fold_in(fixed, spec.stage.start + number)
        return images.augment(
            jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(stored))),
            stored,
            size=spec.architecture.resolution,
            horizontal_flip=spec.horizontal_flip,
            vertical_flip=spec.vertical_flip,
        )

    return np.array(augmented(stored))


if __name__ == "__main__":
    raise SystemExit(main())

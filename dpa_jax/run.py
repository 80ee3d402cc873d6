"""A run in progress: the stages one after the other, chunk after chunk of steps."""

import concurrent.futures
import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dpa_jax import (
    checkpoint,
    engine,
    errors,
    frozen,
    metrics,
    models,
    parallel,
    samples,
    stages,
    state,
    step,
)
from dpa_jax.data import feeding

LIMIT = 1e6  # a loss above it has diverged (method, section 3)


@dataclasses.dataclass
class _Pending:
    """A chunk whose scalars may still be on their way."""

    stage: stages.Stage
    first: int  # step of the whole run
    scalars: Any


class Run:
    """One training run in progress.

    Args:
      config: validated.
      folder: the workdir.
      plan: the stages.
      images: uint8 `[N, S, S, C]`.
      weights: of VGG19, up to the deepest layer in use.
      statistics: of the layers in use.
      visible: whether to show progress.
    """

    def __init__(self, config, folder, plan, images, weights, statistics, visible):
        self.config, self.folder, self.plan = config, folder, plan
        self.images, self.visible = images, visible
        self.precision = engine.precision(config.precision)
        self.architecture = models.Architecture.from_config(config)
        dtype = step.compute_dtype(self.precision)
        self.frozen = parallel.replicate(
            step.Frozen(
                vgg=frozen.cast(weights, dtype),
                statistics=frozen.cast(statistics, jnp.float32),
                key=jax.random.fold_in(jax.random.key(config.seed), 1),
            )
        )
        self.main = parallel.is_main_process()
        self.streamed = _streams(config, images)
        self.resident = None if self.streamed else parallel.replicate(images)
        self.window: list[float] = []
        self.watch = metrics.Stopwatch()

    def spec(self, stage: stages.Stage) -> step.StepSpec:
        """Returns what a step of the stage computes."""
        return step.StepSpec.from_config(self.config, stage, self.precision)

    def go(self, checkpoints: checkpoint.Checkpoints, done: int) -> None:
        """Trains from step `done` to the end."""
        parameters, optimizer = self.restore(checkpoints, done)
        total = self.plan[-1].end
        self.writer = metrics.Writer(self.folder, done) if self.main else None
        background = concurrent.futures.ThreadPoolExecutor(1)
        try:
            with metrics.TrainingBar(total, done, self.visible) as self.bar:
                coming = None
                for number, stage in enumerate(self.plan):
                    if stage.end <= done:
                        continue
                    begun = time.perf_counter()
                    train_state = state.begin(
                        parameters,
                        self.architecture,
                        stage,
                        self.config.optimizer.learning_rate,
                    )
                    if optimizer is not None:
                        train_state = train_state.replace(
                            step=jnp.int32(done - stage.start), optimizer=optimizer
                        )
                        optimizer = None
                    train_state = parallel.replicate(train_state)
                    targets = self.targets(stage)
                    self.bar.describe(f"compiling {stage.name}")
                    if coming is None:
                        program = self.compile(stage, parameters)
                    else:
                        program = coming.result()
                    coming = None
                    if number + 1 < len(self.plan) and _compiles_ahead():
                        coming = background.submit(
                            self.compile, self.plan[number + 1], parameters
                        )
                    self.say(stage, program, targets, time.perf_counter() - begun)
                    parameters = self.stage(
                        checkpoints, program, train_state, targets, parameters, done
                    )
                    done = stage.end
            self.samples(parameters, self.plan[-1], total)
        finally:
            background.shutdown(wait=False, cancel_futures=True)
            if self.writer is not None:
                self.writer.close()

    def restore(self, checkpoints, done):
        """Returns all parameters and, within a stage, its Adam's state."""
        if not done:
            key = jax.random.fold_in(jax.random.key(self.config.seed), 0)
            parameters = state.initialize(key, self.architecture, self.plan)
            return jax.device_get(parameters), None
        saved = checkpoints.restore(done)
        if any(stage.start == done for stage in self.plan):
            return saved["parameters"], None
        moments = saved["optimizer"]
        template = state.optimizer(1.0).init({"": moments["mu"]})
        leaves = [moments["count"], moments["mu"], moments["nu"]]
        optimizer = jax.tree.unflatten(jax.tree.structure(template), leaves)
        return saved["parameters"], optimizer

    def compile(self, stage, parameters) -> engine.Program:
        """Compiles a stage from shapes alone, so that it can happen ahead of time."""
        spec = self.spec(stage)
        abstract = jax.eval_shape(
            lambda p: state.begin(p, self.architecture, stage, spec.learning_rate),
            parameters,
        )
        images = jax.ShapeDtypeStruct(self.block_shape(stage), np.uint8)
        shapes = {"images": images}
        if self.caches(stage):
            shapes["targets"] = engine.target_shapes(spec, self.images)
        return engine.compile_stage(
            spec, abstract, self.frozen, shapes, self.config.batch_size
        )

    def block_shape(self, stage) -> tuple[int, ...]:
        """Returns the shape of the images that a program takes."""
        if not self.streamed:
            return self.images.shape
        steps = engine.steps_per_chunk(self.spec(stage), self.config.batch_size)
        return (steps * self.config.batch_size, *self.images.shape[1:])

    def caches(self, stage) -> bool:
        """Says whether a stage keeps its targets."""
        return not self.streamed and engine.caches_targets(
            self.spec(stage),
            self.images,
            self.config.batch_size,
            stage.steps,
            self.config.perceptual.cache_targets,
        )

    def targets(self, stage):
        """Computes a stage's targets, if it keeps them."""
        if not self.caches(stage):
            return None
        self.bar.describe(f"targets of {stage.name}")
        images: Any = self.resident
        if jax.device_count() > 1:
            images = jnp.asarray(self.images)
        return parallel.replicate(
            engine.compute_targets(self.spec(stage), self.frozen, images)
        )

    def say(self, stage, program, targets, seconds) -> None:
        """Tells how a stage is run."""
        cached = "" if targets is None else ", targets cached"
        fed = "streamed" if self.streamed else "resident"
        self.bar.say(
            f"{stage.name}: {stage.steps:,} steps, {program.steps:,} a chunk, "
            f"{self.precision}, images {fed}{cached}; ready in {seconds:.1f} s"
        )
        self.bar.describe(stage.name.replace("_", " px "))
        self.watch.start()

    def stage(self, checkpoints, program, train_state, targets, parameters, done):
        """Trains one stage from step `done` of the run; returns all parameters."""
        stage, config = program.spec.stage, self.config
        first, pending = max(done, stage.start), None
        chunks = []
        while first < stage.end:
            steps = min(program.steps, stage.end - first)
            chunks.append((first, steps))
            first += steps
        for (first, steps), (block, indices) in zip(
            chunks, self.feed(program, chunks, targets), strict=True
        ):
            train_state, scalars = program.run(
                train_state, self.frozen, block, program.place(indices)
            )
            # the devices are busy with this chunk while the host looks at the last
            self.record(pending)
            pending = _Pending(stage, first, (scalars, steps))
            end = first + steps
            if end == stage.end or _crosses(first, end, config.checkpoint_every):
                self.record(pending)
                pending = None
                trained = jax.device_get(train_state)
                _check_finite(trained.parameters, end, stage)
                parameters = state.merge(parameters, trained.parameters)
                adam = trained.optimizer[0]
                checkpoints.save(
                    end,
                    {
                        "parameters": parameters,
                        "optimizer": {
                            "count": adam.count,
                            "mu": adam.mu,
                            "nu": adam.nu,
                        },
                    },
                )
            if end < stage.end and _crosses(first, end, config.sample_every):
                self.record(pending)
                pending = None
                trained = jax.device_get(train_state.parameters)
                self.samples(state.merge(parameters, trained), stage, end)
        return parameters

    def feed(self, program, chunks, targets):
        """Yields what each chunk of steps reads: images on the devices, and indices."""
        config, count = self.config, len(self.images)
        if not self.streamed:
            block = {"images": self.resident}
            if targets is not None:
                block["targets"] = targets
            for first, steps in chunks:
                yield (
                    block,
                    feeding.local_indices(
                        config.seed, count, config.batch_size, first, steps
                    ),
                )
            return
        for images in feeding.stream(
            self.images, config.seed, config.batch_size, chunks
        ):
            steps, part = images.shape[:2]
            flat = images.reshape(steps * part, *images.shape[2:])
            short = (program.steps - steps) * part
            flat = np.concatenate([flat, flat[:1].repeat(short, axis=0)])
            rows = np.arange(steps * part, dtype=np.int32).reshape(steps, part)
            yield {"images": parallel.replicate(flat)}, rows

    def record(self, pending: _Pending | None) -> None:
        """Waits for a chunk's losses, checks them and writes what is due."""
        if pending is None:
            return
        scalars, steps = pending.scalars
        losses = np.asarray(jax.device_get(scalars["loss"]), np.float64)[:steps]
        bad = np.flatnonzero(~(losses <= LIMIT))
        if bad.size:
            raise _diverged(
                f"the loss of step {pending.first + int(bad[0]) + 1} "
                f"({pending.stage.name}) is {losses[bad[0]]:g}"
            )
        rate = self.watch.add(steps * self.config.batch_size)
        for offset, loss in enumerate(losses):
            self.window.append(float(loss))
            number = pending.first + offset + 1
            if number % self.config.log_every == 0 or number == pending.stage.end:
                alpha = float(pending.stage.alpha(number - 1 - pending.stage.start))
                if self.writer is not None:
                    self.writer.write(
                        number,
                        {
                            "stage": pending.stage.name,
                            "alpha": alpha,
                            "loss": float(np.mean(self.window)),
                            "images_per_second": rate,
                        },
                    )
                self.window.clear()
        last = pending.first + steps
        self.bar.update(
            pending.stage,
            last,
            float(pending.stage.alpha(last - 1 - pending.stage.start)),
            float(losses[-1]),
            rate,
        )

    def samples(self, parameters, stage, number: int) -> None:
        """Draws a grid of training images and their reconstructions."""
        if self.main:
            alpha = float(stage.alpha(number - 1 - stage.start))
            samples.write(
                self.folder / "samples" / f"{number:08d}_{stage.name}.png",
                self.spec(stage),
                parameters,
                self.images[:8],
                alpha,
            )


def _check_finite(parameters, number: int, stage: stages.Stage) -> None:
    """Refuses parameters that the loss of the step before could not tell of yet."""
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(parameters)):
        raise _diverged(f"parameters are not finite after step {number} ({stage.name})")


def _diverged(what: str) -> errors.DpaError:
    return errors.DpaError(
        f"{what}: training diverged. The last checkpoint before it is kept; a lower "
        "--config.optimizer.learning_rate in a new workdir may help"
    )


def _crosses(first: int, end: int, every: int) -> bool:
    """Says whether a multiple of `every` lies in (first, end]."""
    return end // every > first // every


def _compiles_ahead() -> bool:
    # on a CPU the compiler would take the cores that train
    return jax.default_backend() != "cpu"


def _streams(config: ml_collections.ConfigDict, images: np.ndarray) -> bool:
    """Decides whether images stay on the host and are streamed."""
    wanted = config.data.residency
    if wanted != "auto":
        return wanted == "stream"
    return images.nbytes > engine.IMAGE_SHARE * engine.memory_limit()

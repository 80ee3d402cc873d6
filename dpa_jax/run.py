"""A run in progress: the stages one after the other, chunk after chunk of steps."""

import concurrent.futures
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dpa_jax import config as config_lib
from dpa_jax import (
    engine,
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
from dpa_jax.member import Member, adam
from dpa_jax.score import Scorer

AfterStage = Callable[[int, stages.Stage, Scorer], bool]


@dataclasses.dataclass
class _Pending:
    """A chunk whose scalars may still be on their way."""

    stage: stages.Stage
    first: int  # step of the whole run
    steps: int
    scalars: Any


class Run:
    """Training in progress, of one run or of several on the same batches.

    Args:
      members: at least one.
      plan: the stages.
      images: uint8 `[N, S, S, C]`.
      weights: of VGG19, up to the deepest layer in use.
      statistics: of the layers in use.
      held_out: uint8 `[M, S, S, C]`, those that early stopping looks at, if any.
      after_stage: see `training.train_together`.
      visible: whether to show progress.
    """

    def __init__(
        self,
        members: Sequence[Member],
        plan: Sequence[stages.Stage],
        images: np.ndarray,
        weights: Any,
        statistics: Any,
        *,
        held_out: np.ndarray | None = None,
        after_stage: AfterStage | None = None,
        visible: bool = True,
    ):
        self.members, self.plan, self.images = members, plan, images
        self.weights, self.statistics = weights, statistics
        self.held_out, self.after_stage, self.visible = held_out, after_stage, visible
        self.config = config = members[0].config
        self.seed = config_lib.data_seed(config)
        self.precision = engine.precision(config.precision)
        self.architecture = models.Architecture.from_config(config)
        self.critic = bool(config.loss.adversarial)
        rates = [member.config.optimizer.learning_rate for member in members]
        self.frozen = parallel.replicate(
            step.Frozen(
                vgg=frozen.place_weights(weights, step.compute_dtype(self.precision)),
                statistics=frozen.cast(statistics, jnp.float32),
                key=jax.random.fold_in(jax.random.key(self.seed), 1),
                learning_rate=jnp.float32(rates if len(members) > 1 else rates[0]),
            )
        )
        self.streamed = _streams(config, images)
        self.resident = None if self.streamed else parallel.replicate(images)
        self.watch = metrics.Stopwatch()
        self.judge: Scorer | None = None

    def spec(self, stage: stages.Stage) -> step.StepSpec:
        """Returns what a step of the stage computes."""
        return step.StepSpec.from_config(
            self.config, stage, self.precision, len(self.members)
        )

    @property
    def active(self) -> list[Member]:
        """Returns the members that still train."""
        return [member for member in self.members if member.active]

    def go(self, done: int) -> None:
        """Trains from step `done` to the end."""
        moments = self.restore(done)
        background = concurrent.futures.ThreadPoolExecutor(1)
        try:
            with metrics.TrainingBar(self.plan[-1].end, done, self.visible) as self.bar:
                coming = None
                for number, stage in enumerate(self.plan):
                    if stage.end <= done or not self.active:
                        continue
                    begun = time.perf_counter()
                    train_state = self.begin(stage, done, moments)
                    moments = None
                    targets = self.targets(stage)
                    self.bar.describe(f"compiling {stage.name}")
                    program = self.compile(stage) if coming is None else coming.result()
                    coming = None
                    if number + 1 < len(self.plan) and _compiles_ahead():
                        coming = background.submit(self.compile, self.plan[number + 1])
                    self.say(stage, program, targets, time.perf_counter() - begun)
                    self.stage(program, train_state, targets, done)
                    done = stage.end
                    if stage is not self.plan[-1]:
                        self.ask(stage)
            for member in self.active:
                self.finish(member, self.plan[-1].end)
        finally:
            background.shutdown(wait=False, cancel_futures=True)
            for member in self.members:
                member.close()

    # --- what a run goes on from ---

    def restore(self, done: int) -> Any:
        """Gives each member its parameters and metrics; returns Adam within a stage."""
        moments = []
        for member in self.members:
            if done:
                moments.append(member.checkpoints.restore(done))
                parameters = moments[-1]["parameters"]
            else:
                key = jax.random.fold_in(jax.random.key(member.config.seed), 0)
                parameters = jax.device_get(
                    state.initialize(key, self.architecture, self.plan, self.critic)
                )
            member.resume(done, self.plan[-1], parameters)
            if member.stops:
                self.finish(member, done)
        if not done or any(stage.start == done for stage in self.plan):
            return None
        return moments

    def begin(self, stage: stages.Stage, done: int, moments: Any) -> state.TrainState:
        """Returns the state that a stage begins with, or goes on from, on the devices.

        Args:
          stage: to begin.
          done: step of the whole run.
          moments: the members' checkpoints if they were taken within this stage.
        """
        begun = self.stacked([member.parameters for member in self.members], stage)
        if moments is not None:
            found = [adam(saved["optimizer"]) for saved in moments]
            begun = begun.replace(
                step=jnp.int32(done - stage.start), optimizer=_stack(found)
            )
            if self.critic:
                found = [adam(saved["critic_optimizer"]) for saved in moments]
                begun = begun.replace(critic_optimizer=_stack(found))
        return parallel.replicate(begun)

    def stacked(self, parameters: Sequence[Any], stage: stages.Stage):
        """Returns a stage's first state: of several members with a leading axis."""
        each = [
            state.begin(one, self.architecture, stage, self.critic)
            for one in parameters
        ]
        together = _stack([one.replace(step=None) for one in each])
        return together.replace(step=each[0].step)

    def compile(self, stage: stages.Stage) -> engine.Program:
        """Compiles a stage from shapes alone, so that it can happen ahead of time."""
        spec = self.spec(stage)
        abstract = jax.eval_shape(
            lambda parameters: self.stacked(parameters, stage),
            [member.parameters for member in self.members],
        )
        images = jax.ShapeDtypeStruct(self.block_shape(stage), np.uint8)
        shapes = {"images": images}
        if self.caches(stage):
            shapes["targets"] = engine.target_shapes(spec, self.images)
        return engine.compile_stage(
            spec,
            abstract,
            self.frozen,
            shapes,
            self.config.batch_size,
            self.chunk(stage),
        )

    # --- how a stage is fed ---

    def span(self, stage: stages.Stage) -> int:
        """Returns after how many steps of a stage the held-out loss is looked at."""
        every = self.config.early_stopping.every
        return every if every and stage == self.plan[-1] else stage.steps

    def chunk(self, stage: stages.Stage) -> int:
        """Returns how many steps a stage takes at once."""
        return engine.steps_per_chunk(
            self.spec(stage), self.config.batch_size, self.span(stage)
        )

    def block_shape(self, stage: stages.Stage) -> tuple[int, ...]:
        """Returns the shape of the images that a program takes."""
        if not self.streamed:
            return self.images.shape
        batches = self.chunk(stage) * self.spec(stage).batches
        return (batches * self.config.batch_size, *self.images.shape[1:])

    def caches(self, stage: stages.Stage) -> bool:
        """Says whether a stage keeps its targets."""
        return not self.streamed and engine.caches_targets(
            self.spec(stage),
            self.images,
            self.config.batch_size,
            stage.steps,
            self.config.perceptual.cache_targets,
        )

    def targets(self, stage: stages.Stage):
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

    def feed(self, program: engine.Program, chunks, targets):
        """Yields what each chunk of steps reads: images on the devices, and indices."""
        size, batches = self.config.batch_size, program.spec.batches
        if not self.streamed:
            block = {"images": self.resident}
            if targets is not None:
                block["targets"] = targets
            count = len(self.images)
            for first, steps in chunks:
                rows = feeding.local_indices(
                    self.seed, count, size, first, steps, batches
                )
                yield block, rows
            return
        blocks = feeding.stream(self.images, self.seed, size, chunks, batches)
        for (_, steps), images in zip(chunks, blocks, strict=True):
            rows = np.arange(len(images), dtype=np.int32)
            rows = rows.reshape(steps, *([batches] if batches > 1 else []), -1)
            short = len(images) // steps * (program.steps - steps)
            filled = np.concatenate([images, images[:1].repeat(short, axis=0)])
            yield {"images": parallel.replicate(filled)}, rows

    # --- training ---

    def say(self, stage, program, targets, seconds) -> None:
        """Tells how a stage is run."""
        cached = "" if targets is None else ", targets cached"
        fed = "streamed" if self.streamed else "resident"
        several = len(self.members) > 1
        cached += f", {len(self.members)} runs at once" if several else ""
        self.bar.say(
            f"{stage.name}: {stage.steps:,} steps, {program.steps:,} a chunk, "
            f"{self.precision}, images {fed}{cached}; ready in {seconds:.1f} s"
        )
        self.bar.describe(stage.name.replace("_", " px "))
        self.watch.start()

    def stage(self, program: engine.Program, train_state, targets, done: int) -> None:
        """Trains one stage from step `done` of the run."""
        stage, config = program.spec.stage, self.config
        span = self.span(stage)
        looking = config.early_stopping.every and stage == self.plan[-1]
        first, pending = max(done, stage.start), None
        chunks = []
        while first < stage.end:
            left = span - (first - stage.start) % span
            steps = min(program.steps, left, stage.end - first)
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
            if not self.active:
                return
            pending = _Pending(stage, first, steps, scalars)
            end = first + steps
            look = looking and ((end - stage.start) % span == 0 or end == stage.end)
            if (
                look
                or end == stage.end
                or _crosses(first, end, config.checkpoint_every)
            ):
                self.record(pending)
                pending = None
                self.save(train_state, stage, end, look)
                if not self.active:
                    return
            if end < stage.end and _crosses(first, end, config.sample_every):
                self.record(pending)
                pending = None
                for member, one in self.each(train_state):
                    self.samples(member, state.trained(one), stage, end)

    def each(self, train_state):
        """Yields each member that still trains and its part of a state, on the host."""
        found = jax.device_get(train_state).replace(step=None)
        for number, member in enumerate(self.members):
            if member.active:
                yield (
                    member,
                    found
                    if len(self.members) == 1
                    else jax.tree.map(lambda leaf, i=number: leaf[i], found),
                )

    def save(self, train_state, stage: stages.Stage, end: int, look: bool) -> None:
        """Saves every member's checkpoint, after a look at its held-out loss if due."""
        for member, one in self.each(train_state):
            if not member.take(stage, end, one):
                continue
            if look:
                # noted before the checkpoint: one that exists has all looks behind it
                member.look(stage, end, self.held_out_loss(member, stage, end))
            member.save(end, one)
            if member.stops:
                self.finish(member, end)

    def held_out_loss(self, member: Member, stage: stages.Stage, end: int) -> float:
        """Computes a member's mean loss on the held-out images."""
        assert self.held_out is not None  # validated: it goes with a fold
        if self.judge is None:
            self.judge = self.scorer(member, stage)
        scores = self.judge.with_parameters(member.parameters, end)(self.held_out)
        return float(np.mean(scores, dtype=np.float64))

    def ask(self, stage: stages.Stage) -> None:
        """Lets the caller give up members after a stage."""
        if self.after_stage is None:
            return
        for number, member in enumerate(self.members):
            if member.active:
                scorer = self.scorer(member, stage)
                member.active = self.after_stage(number, stage, scorer)

    def scorer(self, member: Member, stage: stages.Stage) -> Scorer:
        """Returns a member, as it stands at the end of a stage, as a scorer."""
        return Scorer(
            member.config,
            stage,
            stage.end,
            member.parameters,
            self.weights,
            self.statistics,
            batch_size=64,
            precision=self.precision,
        )

    def finish(self, member: Member, end: int) -> None:
        """Notes that a member is done, and draws what it makes of some images."""
        self.samples(member, member.parameters, self.plan[-1], end)
        member.finish(self.plan[-1])

    def record(self, pending: _Pending | None) -> None:
        """Waits for a chunk's losses, checks them and writes what is due."""
        if pending is None:
            return
        stage, first, steps = pending.stage, pending.first, pending.steps
        found = {
            # [steps, members]
            name: np.asarray(values, np.float64)[:steps].reshape(steps, -1)
            for name, values in jax.device_get(pending.scalars).items()
        }
        rate = self.watch.add(steps * self.config.batch_size)
        for number, member in enumerate(self.members):
            if member.active:
                mine = {name: values[:, number] for name, values in found.items()}
                member.log(stage, first, mine, rate)
        going = [member.active for member in self.members]
        if not any(going):
            return
        last = first + steps
        self.bar.update(
            stage,
            last,
            float(stage.alpha(last - 1 - stage.start)),
            float(found["loss"][-1, going].mean()),
            rate,
        )

    def samples(self, member: Member, parameters, stage, number: int) -> None:
        """Draws a grid of training images and a member's reconstructions."""
        if parallel.is_main_process():
            alpha = float(stage.alpha(number - 1 - stage.start))
            samples.write(
                member.folder / "samples" / f"{number:08d}_{stage.name}.png",
                self.spec(stage),
                parameters,
                self.images[:8],
                alpha,
            )


def _stack(trees: Sequence[Any]) -> Any:
    """Joins members' trees along a leading axis; a single one stays as it is."""
    if len(trees) == 1:
        return trees[0]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


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

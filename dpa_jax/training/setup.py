"""What each stage of some runs is: its program, its first state, its data."""

import concurrent.futures
import dataclasses
import functools
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dpa_jax import models, state, step
from dpa_jax.backbones import base
from dpa_jax.backbones.frozen import cast, place_weights
from dpa_jax.config import data_seed
from dpa_jax.devices import parallel
from dpa_jax.devices.platform import Platform
from dpa_jax.images import tile_shape, tiles
from dpa_jax.ops.compute import Compute, arranged_for
from dpa_jax.scoring.scorer import Scorer
from dpa_jax.stages import Stage
from dpa_jax.training import chunks, feeding, programs
from dpa_jax.training.arrangement import Arrangement, alternatives
from dpa_jax.training.chunks import Chunk, Interval
from dpa_jax.training.compiled import Programs
from dpa_jax.training.run import Run

# The share of a device's memory that the images may take.
IMAGE_SHARE = 0.4


@dataclasses.dataclass(frozen=True)
class Problem:
    """What runs that are trained at once have in common.

    To compile programs alone, shapes stand in the place of arrays.

    Attributes:
      plan: the stages.
      images: uint8 `[M, S, S, C]`, on the host; may be a memory map.
      rows: int `[N]`, which of the images are trained on.
      held_out: int `[H]`, which of them early stopping evaluates.
      weights: of the backbone, up to the deepest layer in use.
      statistics: of the layers in use.
      precision: that is computed in.
    """

    plan: Sequence[Stage]
    images: Any
    rows: np.ndarray
    held_out: np.ndarray
    weights: Any
    statistics: Any
    precision: str


class Setup:
    """Derives from runs, problem and platform what the stages need.

    Args:
      runs: those trained.
      problem: what they have in common.
      platform: the machine.
      compiled: programs of runs before, in the end those of these runs; None keeps
        none.

    Attributes:
      batch_size: of all devices together.
      is_streamed: whether images stay on the host and are sent chunk by chunk.
      saves: when checkpoints are due.
      grids: when pictures of reconstructions are due.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        problem: Problem,
        platform: Platform,
        compiled: Programs | None = None,
    ):
        self._runs, self._problem, self._platform = runs, problem, platform
        self._programs, self._is_shared = compiled or Programs(), compiled is not None
        self._config = config = runs[0].config
        self.batch_size = config.batch_size
        self.compute = Compute(
            problem.precision,
            arranged_for(platform.backend, problem.precision, platform.has_kernels),
        )
        self.architecture = models.Architecture.from_config(config)
        self._arrangements: dict[Stage, Arrangement] = {}
        self._shapes_of_targets: dict[step.StepSpec, Any] = {}
        self._has_critic = bool(config.loss.adversarial)
        seed = data_seed(config)
        size = len(problem.rows) * self._bytes_of_image
        self.is_streamed = config.data.residency == "stream" or (
            config.data.residency == "auto" and size > IMAGE_SHARE * platform.memory
        )
        batches = self.spec(problem.plan[0]).batches
        self._order = feeding.Order(seed, len(problem.rows), config.batch_size, batches)
        self.saves = Interval(config.checkpoint_every)
        self.grids = Interval(config.sample_every)
        self._background = concurrent.futures.ThreadPoolExecutor(1)
        self._coming: dict[Stage, concurrent.futures.Future] = {}

    def close(self) -> None:
        """Gives up what is being compiled ahead, and programs of other runs."""
        self._background.shutdown(wait=self._is_shared, cancel_futures=True)
        self._programs.forget_unused()

    @property
    def _bytes_of_image(self) -> int:
        return int(np.prod(self._problem.images.shape[1:]))

    def _frozen(self, weights: Any, statistics: Any) -> step.Frozen:
        seed = data_seed(self._config)
        rates = [run.config.optimizer.learning_rate for run in self._runs]
        return step.Frozen(
            backbone=place_weights(
                base.named(self._config.perceptual.backbone), weights, self.compute
            ),
            statistics=cast(statistics, self.compute.wide),
            key=jax.random.fold_in(jax.random.key(seed), 1),
            learning_rate=jnp.asarray(rates, jnp.float32),
        )

    @functools.cached_property
    def _frozen_shapes(self) -> step.Frozen:
        problem = self._problem
        return jax.eval_shape(self._frozen, problem.weights, problem.statistics)

    def resident_frozen(self) -> step.Frozen:
        """Puts what steps read on every device, once."""
        made = self._frozen(self._problem.weights, self._problem.statistics)
        return parallel.replicate(made, self._platform)

    def spec(self, stage: Stage) -> step.StepSpec:
        """Returns what a step of the stage computes."""
        arrangement = self.arrangement(stage)
        how = dataclasses.replace(
            self.compute,
            fill=arrangement.fill,
            blocks=arrangement.blocks,
            backend=arrangement.backend or self.compute.backend,
        )
        spec = step.StepSpec.from_config(self._config, stage, how, len(self._runs))
        return dataclasses.replace(spec, mapped_by=arrangement.mapped_by)

    def arrangement(self, stage: Stage) -> Arrangement:
        """Returns how the stage is arranged: as usual, unless `arrange` was called."""
        return self._arrangements.get(stage, Arrangement())

    def arrange(self, stage: Stage, arrangement: Arrangement) -> None:
        """Sets how the stage is arranged from now on."""
        self._arrangements[stage] = arrangement

    def settle(self, stage: Stage, arrangement: Arrangement) -> None:
        """Sets how the stage stays arranged; forgets programs of how it was before."""
        self.arrange(stage, arrangement)
        self._programs.forget(lambda k: k[0] == stage and k[1] != arrangement)

    def alternatives(self, stage: Stage) -> Mapping[str, tuple[Any, ...]]:
        """Returns what the stage's arrangement may be besides the usual one."""
        return alternatives(
            self.spec(stage),
            self._platform,
            share=self._config.batch_size // len(self._platform.devices),
            chooses_parts=not self._config.batch_parts,
            chooses_targets=self._config.perceptual.cache_targets == "auto"
            and self._may_cache_targets(stage),
        )

    # --- programs ---

    def evaluations(self, stage: Stage) -> Interval:
        """Returns when the held-out loss is due: in the last stage alone."""
        is_last = stage == self._problem.plan[-1]
        every = self._config.early_stopping.every if is_last else 0
        return Interval(every, stage.start)

    def _intervals(self, stage: Stage) -> list[Interval]:
        return [self.saves, self.grids, self.evaluations(stage)]

    def chunk_steps(self, stage: Stage) -> int:
        """Returns how many steps a chunk of the stage has at most."""
        chosen = self._config.steps_per_chunk or programs.default_steps(
            stage.resolution
        )
        if self.is_streamed:
            most = feeding.streamed_steps(
                self._bytes_of_image, self._order, self._platform
            )
            chosen = min(chosen, most)
        return chunks.longest(stage, self._intervals(stage), chosen)

    def compiled(self, stage: Stage) -> programs.Program:
        """Returns the compiled stage, and begins to compile the next if that helps."""
        coming = self._coming.pop(stage, None)
        found = coming.result() if coming else self.compile(stage)
        if not self._is_shared:
            self._programs.forget(lambda key: key[0] == stage)
        following = [s for s in self._problem.plan if s.start == stage.end]
        if following and self._platform.compiles_ahead:
            (after,) = following
            self._coming[after] = self._background.submit(self.compile, after)
        return found

    def compile(self, stage: Stage) -> programs.Program:
        """Compiles the stage as it is arranged, unless that was done before."""
        arrangement, platform = self.arrangement(stage), self._platform
        if not arrangement.options:
            platform = dataclasses.replace(platform, options={})
        spec, shapes = self.spec(stage), self.shapes(stage)
        numbers = self._config.batch_size, self.chunk_steps(stage)
        parts = self._config.batch_parts or arrangement.batch_parts
        leaves, tree = jax.tree.flatten(shapes)
        return self._programs.get(
            (stage, arrangement, spec, *numbers, parts, tree, *leaves),
            lambda: programs.compile_stage(
                spec,
                platform,
                *shapes,
                *numbers,
                batch_parts=parts,
                is_streamed=self.is_streamed,
            ),
        )

    def shapes(self, stage: Stage) -> tuple[Any, Any, Any]:
        """Returns shapes of the stage's state, of what steps read, and of its data.

        Nothing is computed, and nothing that it is derived from need be an array.
        """
        shape = (len(self._problem.rows),)
        if self.is_streamed:
            images = self.chunk_steps(stage) * self.spec(stage).batches
            images *= self._config.batch_size // len(self._platform.devices)
            shape = (len(self._platform.local_devices), images)
        shape += tile_shape(self._bytes_of_image)
        data: dict[str, Any] = {"images": jax.ShapeDtypeStruct(shape, np.uint8)}
        if self.caches_targets(stage):
            data["targets"] = self._target_shapes(stage)
        begin = functools.partial(self._begin, stage)
        members = [run.parameters for run in self._runs]
        return jax.eval_shape(begin, members), self._frozen_shapes, data

    def begin(self, stage: Stage) -> state.TrainState:
        """Returns the state that the stage begins with."""
        return self._begin(stage, [run.parameters for run in self._runs])

    def _begin(self, stage: Stage, members: Sequence[Any]) -> state.TrainState:
        return state.begin(
            members,
            self.architecture,
            stage,
            self._has_critic,
            self.compute.wide,
            self.spec(stage).optimizer,
        )

    def first_parameters(self, run: Run) -> state.Parameters:
        """Draws all blocks that a run begins with."""
        key = jax.random.fold_in(jax.random.key(run.config.seed), 0)
        return jax.device_get(
            state.initialize(
                key, self.architecture, self._problem.plan, self._has_critic
            )
        )

    # --- data ---

    def caches_targets(self, stage: Stage) -> bool:
        """Returns whether the stage keeps the features of its images."""
        chosen = self.arrangement(stage).caches_targets
        return chosen and self._may_cache_targets(stage)

    def _may_cache_targets(self, stage: Stage) -> bool:
        count, spec = len(self._problem.rows), self.spec(stage)
        return not self.is_streamed and programs.caches_targets(
            spec,
            self._target_shapes(stage),
            stored_size=self._problem.images.shape[1],
            draws_per_image=stage.steps * self._config.batch_size / count,
            memory=self._platform.memory,
            wanted=self._config.perceptual.cache_targets,
        )

    def _target_shapes(self, stage: Stage) -> Any:
        # kept, since the backbone is traced for them
        spec, count = self.spec(stage), len(self._problem.rows)
        if spec not in self._shapes_of_targets:
            found = programs.target_shapes(spec, self._frozen_shapes, count)
            self._shapes_of_targets[spec] = found
        return self._shapes_of_targets[spec]

    def targets(self, program: programs.Program, frozen: step.Frozen, images) -> Any:
        """Computes the features of the images that a stage's program is given."""
        compiled = self._programs if self._is_shared else None
        return programs.compute_targets(
            program.spec, self._platform, frozen, images, compiled=compiled
        )

    def resident_images(self) -> Any:
        """Puts the training images on every device, once; None if they are streamed."""
        if self.is_streamed:
            return None
        images = self._problem.images[self._problem.rows]
        return parallel.replicate(tiles(images), self._platform)

    def feed(
        self, stage: Stage, done: int, data: dict[str, Any], steps: int
    ) -> Generator[tuple[Chunk, dict[str, Any], Any], None, None]:
        """Yields what is left of a stage: chunk after chunk with its data and indices.

        Args:
          stage: to train.
          done: steps of the whole run that were taken.
          data: that stays on the devices.
          steps: that the program takes.
        """
        left = chunks.divide(stage, self._intervals(stage), steps, done)
        if self.is_streamed:
            blocks = feeding.stream(
                self._problem.images,
                self._problem.rows,
                self._order,
                [(chunk.first, chunk.steps) for chunk in left],
                steps,
                self._platform,
            )
            for chunk, block in zip(left, blocks, strict=True):
                yield (
                    chunk,
                    {"images": parallel.shard(block.images, self._platform)},
                    parallel.shard(block.indices, self._platform),
                )
            return
        for chunk in left:
            rows = self._order.indices(chunk.first, chunk.steps, self._platform)
            rows = feeding.padded(rows, steps)
            yield chunk, data, parallel.shard(rows, self._platform)

    # --- runs as they stand ---

    def scorer(self, run: Run, stage: Stage) -> Scorer:
        """Returns a run, as it stands at the end of a stage, as a scorer."""
        return Scorer(
            run.config,
            stage,
            stage.end,
            run.parameters,
            self._problem.weights,
            self._problem.statistics,
            batch_size=64,
            precision=self._problem.precision,
            platform=self._platform,
        )

    def held_out_loss(self, scorer: Scorer) -> float:
        """Computes a run's mean loss on the held-out images."""
        rows, block = self._problem.held_out, 16 * scorer.batch_size
        scores = [
            scorer(self._problem.images[rows[first : first + block]])
            for first in range(0, len(rows), block)
        ]
        return float(np.mean(np.concatenate(scores), dtype=np.float64))

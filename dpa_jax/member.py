"""One run among those that are trained at once: what it has saved, seen and written."""

import collections
import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np

from dpa_jax import checkpoint, metrics, parallel, state, stopping
from dpa_jax.stages import Stage

LIMIT = 1e6  # a loss above it has diverged (method, section 3)


@dataclasses.dataclass
class Member:
    """A run in its workdir; most often it is trained alone.

    Attributes:
      config: validated.
      folder: the workdir.
      checkpoints: in it.
      parameters: all blocks as they were last saved, on the host.
      writer: of its metrics, in the process that writes.
      looks: at the held-out loss.
      active: whether it still trains.
      failure: why it was given up, if it failed.
    """

    config: ml_collections.ConfigDict
    folder: pathlib.Path
    checkpoints: checkpoint.Checkpoints
    parameters: Any = None
    writer: metrics.Writer | None = None
    looks: list[stopping.Look] = dataclasses.field(default_factory=list)
    active: bool = True
    failure: str | None = None

    def __post_init__(self):
        # scalars that are not written yet, by name
        self._window: dict[str, list[float]] = collections.defaultdict(list)

    def resume(self, done: int, last: Stage, parameters: Any) -> None:
        """Takes up what was written until step `done` of the run.

        Args:
          done: from which it goes on.
          last: the run's last stage.
          parameters: all blocks as they were then.
        """
        self.parameters = parameters
        if parallel.is_main_process():
            self.writer = metrics.Writer(self.folder, done)
        if self.config.early_stopping.every:
            self.looks = stopping.read_looks(self.folder, last.start, done)

    def log(
        self, stage: Stage, first: int, scalars: Mapping[str, np.ndarray], rate: float
    ) -> None:
        """Checks a chunk's losses and writes the means of its scalars where due.

        Args:
          stage: the chunk's.
          first: step of the whole run that the chunk begins with.
          scalars: float64 `[steps]` by name, `loss` among them.
          rate: images per second.
        """
        losses = scalars["loss"]
        bad = np.flatnonzero(~(losses <= LIMIT))
        if bad.size:
            step, loss = first + int(bad[0]) + 1, losses[bad[0]]
            self.give_up(f"the loss of step {step} ({stage.name}) is {loss:g}")
            return
        for offset in range(len(losses)):
            for name, values in scalars.items():
                self._window[name].append(float(values[offset]))
            number = first + offset + 1
            if number % self.config.log_every and number != stage.end:
                continue
            self._write(
                number,
                {
                    "stage": stage.name,
                    "alpha": float(stage.alpha(number - 1 - stage.start)),
                    **{k: float(np.mean(v)) for k, v in self._window.items()},
                    "images_per_second": rate,
                },
            )
            self._window.clear()

    def look(self, stage: Stage, end: int, loss: float) -> None:
        """Notes the loss of the held-out images after step `end` of the run."""
        self.looks.append(stopping.Look(end - stage.start, loss))
        self._write(end, {"stage": stage.name, "held_out_loss": loss})

    def _write(self, step: int, values: Mapping[str, float | str]) -> None:
        if self.writer is not None:
            self.writer.write(step, values)

    def take(self, stage: Stage, end: int, one: state.TrainState) -> bool:
        """Takes over what was trained; says whether it is finite, or else gives up.

        A loss tells of parameters that are not only at the step after.
        """
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(one)):
            self.give_up(f"parameters are not finite after step {end} ({stage.name})")
            return False
        self.parameters = state.merge(self.parameters, state.trained(one))
        return True

    def save(self, end: int, one: state.TrainState) -> None:
        """Writes the checkpoint of step `end` of the run.

        Args:
          end: the step.
          one: the stage's state, on the host, its parameters taken over already.
        """
        tree = {"parameters": self.parameters, "optimizer": _moments(one.optimizer)}
        if one.critic is not None:
            tree["critic_optimizer"] = _moments(one.critic_optimizer)
        self.checkpoints.save(end, tree)

    @property
    def stops(self) -> bool:
        """Whether early stopping has had enough."""
        options = self.config.early_stopping
        return stopping.ended(self.looks, options.patience, options.min_delta)

    def finish(self, last: Stage) -> None:
        """Notes that it is done, its last stage being `last`."""
        self.active = False
        if self.looks and parallel.is_main_process():
            self.checkpoints.wait()  # for the one that the result names
            stopping.write(self.folder, self.config, self.looks, last.start)

    def give_up(self, what: str) -> None:
        """Notes that it has failed."""
        self.active = False
        self.failure = (
            f"{what}: training diverged. The last checkpoint before it is kept; a "
            "lower --config.optimizer.learning_rate in a new workdir may help"
        )

    def close(self) -> None:
        """Closes its metrics."""
        if self.writer is not None:
            self.writer.close()


def _moments(optimizer: Any) -> dict[str, Any]:
    """Returns Adam's state as a checkpoint holds it."""
    adam = optimizer[0]
    return {"count": adam.count, "mu": adam.mu, "nu": adam.nu}


def adam(moments: Any) -> Any:
    """Returns Adam's state from a checkpoint's part."""
    template = state.optimizer(0.0).init({"": moments["mu"]})
    leaves = [moments["count"], moments["mu"], moments["nu"]]
    return jax.tree.unflatten(jax.tree.structure(template), leaves)

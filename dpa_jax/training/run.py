"""One run among those that are trained at once, and what it keeps in its workdir."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import ml_collections
import numpy as np

from dpa_jax import errors, state
from dpa_jax.stages import Stage
from dpa_jax.storage import checkpoints, json_files, metrics, workdir
from dpa_jax.training import early_stopping, events

LIMIT = 1e6  # a loss above it has diverged (method, section 3)
FAILURE = "failure.json"


@dataclasses.dataclass
class Run:
    """A run; most often it is trained alone.

    In the process that owns the workdir it is opened, and writes there; in the others
    it follows what that process decides.

    Attributes:
      config: validated.
      folder: the workdir.
      parameters: all blocks as they were last taken over, on the host.
      mean_loss: of the last row of metrics; None before the first of this session.
      evaluations: of the held-out images.
      is_active: whether it still trains.
      failure: why it was given up, if it failed.
      callbacks: called with each `Event`.
    """

    config: ml_collections.ConfigDict
    folder: pathlib.Path
    parameters: Any = None
    mean_loss: float | None = None
    evaluations: list[early_stopping.Evaluation] = dataclasses.field(
        default_factory=list
    )
    is_active: bool = True
    failure: str | None = None
    callbacks: Sequence[events.Callback] = ()

    def __post_init__(self):
        self._checkpoints: checkpoints.Checkpoints | None = None
        self._writer: metrics.Writer | None = None
        # of the scalars since the last row of metrics, by name
        self._sums: dict[str, float] = {}
        self._summed = 0

    # --- where it goes on ---

    def open(self, plan: Sequence[Stage]) -> None:
        """Opens its checkpoints for writing."""
        self._checkpoints = checkpoints.Checkpoints(
            self.folder, keep=[stage.end for stage in plan]
        )

    def resume(self, found: checkpoints.Checkpoint | None, last: Stage) -> str:
        """Takes up what was kept, and forgets what was written beyond it.

        Args:
          found: the checkpoint to go on from; None to begin anew.
          last: its last stage.

        Returns:
          Which rows of metrics are lost; empty if none.
        """
        assert self._checkpoints is not None
        step, notes = (found.step, found.notes) if found else (0, {})
        every = self.config.early_stopping.every
        self.evaluations = [
            early_stopping.Evaluation(*pair)
            for pair in notes.get("evaluations", ())
            # one at the end of a shorter schedule has no place in this one
            if pair[0] % every == 0 or pair[0] == last.steps
        ]
        window = notes.get("window", {"count": 0, "sums": {}})
        self._summed, self._sums = window["count"], dict(window["sums"])
        self._checkpoints.forget(step)
        self._keep_best(last)
        if not self.is_stopped():
            (self.folder / early_stopping.FILE).unlink(missing_ok=True)
        self._writer = metrics.Writer(self.folder, step)
        written = step - self._summed if "window" in notes else 0
        if self._writer.last >= written:
            return ""
        return (
            f"{self.folder}/{metrics.FILE} is gone or cut off: its rows after step "
            f"{self._writer.last:,} up to {written:,} are lost; the run goes on"
        )

    # --- what it keeps ---

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
            self.fail(step, f"the loss of step {step} ({stage.name}) is {loss:g}")
            return
        for offset in range(len(losses)):
            for name, values in scalars.items():
                self._sums[name] = self._sums.get(name, 0.0) + float(values[offset])
            self._summed += 1
            number = first + offset + 1
            if number % self.config.log_every and number != stage.end:
                continue
            means = {name: sum / self._summed for name, sum in self._sums.items()}
            self.mean_loss = means["loss"]
            alpha = float(stage.alpha(number - 1 - stage.start))
            row = {"alpha": alpha, **means, "images_per_second": rate}
            self._write(stage, number, row)
            self._sums, self._summed = {}, 0

    def evaluate(self, stage: Stage, end: int, loss: float) -> None:
        """Keeps the loss of the held-out images after step `end` of the run."""
        self.evaluations.append(early_stopping.Evaluation(end - stage.start, loss))
        self._keep_best(stage)
        self._write(stage, end, {"held_out_loss": loss})

    def take_over(self, stage: Stage, end: int, one: state.TrainState) -> None:
        """Takes over what was trained, if it is finite; or else gives the run up.

        A loss tells of parameters that are not only at the step after.

        Args:
          stage: trained.
          end: step of the whole run.
          one: this run's part of the state, on the host.
        """
        if all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(one)):
            self.parameters = state.merge(self.parameters, state.trained(one))
        else:
            what = f"parameters are not finite after step {end} ({stage.name})"
            self.fail(end, what)

    def save(self, stage: Stage, end: int, one: state.TrainState) -> None:
        """Writes the checkpoint of step `end`, whose state was taken over."""
        assert self._checkpoints is not None
        arrays = {
            "parameters": self.parameters,
            "optimizer": state.optimizer_arrays(one.optimizer),
        }
        if one.critic_optimizer is not None:
            arrays["critic_optimizer"] = state.optimizer_arrays(one.critic_optimizer)
        notes = {
            "window": {"count": self._summed, "sums": self._sums},
            "evaluations": [[e.step, e.loss] for e in self.evaluations],
        }
        self._checkpoints.save(end, arrays, notes)
        self.notify("checkpoint", stage, end)

    # --- how it ends ---

    def is_stopped(self) -> bool:
        """Returns whether early stopping ends it."""
        options = self.config.early_stopping
        return early_stopping.is_over(
            self.evaluations, options.patience, options.min_delta
        )

    def finish(self, last: Stage) -> None:
        """Ends a run that is done, its last stage being `last`."""
        self.is_active = False
        if self.evaluations and self._checkpoints is not None:
            self._checkpoints.wait()  # for the one that the result names
            early_stopping.write(self.folder, self.config, self.evaluations, last.start)

    def fail(self, step: int, what: str) -> None:
        """Gives the run up, for good: it would fail again."""
        self.is_active = False
        self.failure = (
            f"{what}: training diverged. The last checkpoint before it is kept; a "
            "lower --config.optimizer.learning_rate in a new workdir may help"
        )
        if self._checkpoints is not None:
            workdir.write_json(
                self.folder / FAILURE, {"step": step, "reason": self.failure}
            )

    def close(self) -> None:
        """Waits until everything is written."""
        try:
            if self._writer is not None:
                self._writer.close()
        finally:
            if self._checkpoints is not None:
                self._checkpoints.close()

    def _keep_best(self, last: Stage) -> None:
        """Keeps the checkpoint of the best evaluation, however many come after it."""
        if self.evaluations and self._checkpoints is not None:
            found = early_stopping.best(
                self.evaluations, self.config.early_stopping.min_delta
            )
            self._checkpoints.keep_best(last.start + found.step)

    def _write(self, stage: Stage, step: int, values: Mapping[str, float]) -> None:
        if self._writer is not None:
            self._writer.write(step, {"stage": stage.name, **values})
        self.notify("metrics", stage, step, values)

    def notify(
        self,
        kind: Literal["metrics", "checkpoint", "stage"],
        stage: Stage,
        step: int,
        values: Mapping[str, float] | None = None,
    ) -> None:
        """Calls the callbacks."""
        event = events.Event(kind, self.folder, step, stage.name, values or {})
        for callback in self.callbacks:
            callback(event)


def past_failure(folder: pathlib.Path) -> str | None:
    """Returns why a run was given up, if it was."""
    path = folder / FAILURE
    if not path.exists():
        return None
    return json_files.read(path, {"reason": str}, workdir.REWRITTEN)["reason"]


def newest_common(
    runs: Sequence[Run],
) -> tuple[list[checkpoints.Checkpoint], list[str]]:
    """Reads the newest checkpoints that all of some runs have at the same step.

    A damaged one is set aside, and the one before it tried.

    Returns:
      One for each run, or none if they have none in common; and what was set aside.

    Raises:
      DpaError: there were some, and every one is damaged.
    """
    asides: list[str] = []
    while True:
        common = set.intersection(*(set(checkpoints.steps(r.folder)) for r in runs))
        if not common:
            if asides:
                raise errors.DpaError(
                    f"{asides[-1]}; no checkpoint is left to go on from. To begin "
                    "anew, delete the workdir or give another"
                )
            return [], asides
        found = []
        for run in runs:
            try:
                found.append(checkpoints.restore(run.folder, max(common)))
            except checkpoints.DamagedError as error:
                path = checkpoints.set_aside(run.folder, max(common))
                asides.append(f"{error}; set aside as {path}")
                break
        else:
            return found, asides

"""Checkpoints of a run: the only file that imports Orbax."""

import os
import pathlib
from collections.abc import Collection
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from dpa_jax import errors

FOLDER = "checkpoints"


class Checkpoints:
    """The checkpoints in a workdir, by the step of the whole run they were taken at.

    They hold plain arrays, so that they are read on any number and kind of devices.
    Each is written beside its place and renamed, so that one that exists is complete.

    Args:
      workdir: that of the run.
      keep: steps whose checkpoint stays, such as the ends of stages; of the others
        the last two do.
      read_only: for scoring: nothing is created or cleaned up.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        keep: Collection[int] = (),
        read_only: bool = False,
    ):
        self._folder = pathlib.Path(workdir).resolve() / FOLDER
        policies = [
            checkpoint_managers.LatestN(2),
            checkpoint_managers.CustomSteps(list(keep)),
        ]
        options = ocp.CheckpointManagerOptions(
            create=not read_only,
            read_only=read_only,
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
        )
        with self._writing():
            self._manager = ocp.CheckpointManager(self._folder, options=options)

    def latest(self) -> int | None:
        """Returns the step of the last complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, tree: Any) -> None:
        """Writes a tree of arrays in the background; the arrays are copied first."""
        arrays = jax.tree.map(np.asarray, jax.device_get(tree))
        with self._writing():
            self._manager.save(step, args=ocp.args.StandardSave(arrays))

    def restore(self, step: int) -> Any:
        """Reads a checkpoint back as a tree of NumPy arrays.

        Raises:
          DpaError: it cannot be read.
        """
        try:
            metadata = self._manager.item_metadata(step)
            template = jax.tree.map(
                lambda leaf: np.zeros(leaf.shape, leaf.dtype), metadata
            )
            return self._manager.restore(step, args=ocp.args.StandardRestore(template))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise errors.DpaError(
                f"{self._folder / str(step)}: the checkpoint cannot be read: {error}; "
                "delete that folder to go on from the one before it"
            ) from error

    def close(self) -> None:
        """Waits until everything is written."""
        with self._writing():
            self._manager.wait_until_finished()
            self._manager.close()

    def __enter__(self) -> "Checkpoints":
        """Returns itself."""
        return self

    def __exit__(self, *_) -> None:
        """Closes."""
        self.close()

    def _writing(self) -> "_Writing":
        return _Writing(self._folder)


class _Writing:
    """Names the folder when Orbax or the disk refuses to write."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error, _) -> None:
        if isinstance(error, (OSError, ValueError)):
            raise errors.DpaError(
                f"{self._folder}: cannot be written: {error}; "
                "earlier checkpoints are untouched, and the same command resumes"
            ) from error

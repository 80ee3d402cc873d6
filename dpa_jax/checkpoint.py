"""Checkpoints of a run: the only file that imports Orbax."""

import contextlib
import os
import pathlib
import shutil
import sys
from collections.abc import Collection, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from dpa_jax import errors

FOLDER = "checkpoints"
_ITEM = "default"  # Orbax's name for what a checkpoint holds if it is one thing
_SPARE = 1 << 20  # bytes that a checkpoint takes beyond its arrays, at most
_RESUMES = "earlier checkpoints are untouched, and the same command resumes"
_WRITING = "cannot be written: {}; " + _RESUMES
_READING = (
    "the checkpoint cannot be read: {}; delete that folder to go on from the one "
    "before it"
)


class Checkpoints:
    """The checkpoints in a workdir, by the step of the whole run they were taken at.

    They hold plain arrays, so that they are read on any number and kind of devices.
    Each is written beside its place and renamed, so that one that exists is complete.

    Args:
      workdir: that of the run.
      keep: steps whose checkpoint stays, such as the ends of stages.
      last: of the others, how many of the last stay.
    """

    def __init__(
        self, workdir: str | os.PathLike, keep: Collection[int] = (), last: int = 2
    ):
        self._workdir = pathlib.Path(workdir).resolve()
        self._folder = self._workdir / FOLDER
        policies = [
            checkpoint_managers.LatestN(last),
            checkpoint_managers.CustomSteps(list(keep)),
        ]
        options = ocp.CheckpointManagerOptions(
            cleanup_tmp_directories=True,  # what a killed run left half written
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
        )
        with _named(self._folder, _WRITING):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(self._folder, options=options)

    def latest(self) -> int | None:
        """Returns the step of the last complete checkpoint, or None."""
        return latest(self._workdir)

    def save(self, step: int, tree: Any) -> None:
        """Writes a tree of arrays in the background; the arrays are copied first.

        Raises:
          DpaError: there is not enough room, or this or the last one was not written.
        """
        arrays = jax.tree.map(np.asarray, jax.device_get(tree))
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(arrays)) + _SPARE
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            # asked beforehand, since Orbax tells of a full disk in hundreds of lines
            raise errors.DpaError(
                f"{self._folder}: no room for a checkpoint: {free / 2**20:.2f} MiB are "
                f"left on that disk and it takes {needed / 2**20:.2f}; {_RESUMES}"
            )
        with _named(self._folder, _WRITING):
            self._manager.save(step, args=ocp.args.StandardSave(arrays))

    def restore(self, step: int) -> Any:
        """Reads a checkpoint back; see `restore`."""
        return restore(self._workdir, step)

    def forget(self, after: int) -> None:
        """Deletes the checkpoints beyond a step that a run goes on from."""
        with _named(self._folder, _WRITING):
            for step in self._manager.all_steps():
                if step > after:
                    self._manager.delete(step)

    def wait(self) -> None:
        """Waits until everything is written."""
        with _named(self._folder, _WRITING):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits until everything is written."""
        with _named(self._folder, _WRITING):
            self._manager.wait_until_finished()
            self._manager.close()

    def __enter__(self) -> "Checkpoints":
        """Returns itself."""
        return self

    def __exit__(self, *_) -> None:
        """Closes."""
        self.close()


def latest(workdir: str | os.PathLike) -> int | None:
    """Returns the step of the last complete checkpoint in a workdir, or None."""
    folder = pathlib.Path(workdir) / FOLDER
    if not folder.is_dir():
        return None
    return max(
        (int(p.name) for p in folder.iterdir() if p.name.isdigit()), default=None
    )


def restore(workdir: str | os.PathLike, step: int) -> Any:
    """Reads a checkpoint as a tree of NumPy arrays; writes nothing.

    Raises:
      DpaError: it cannot be read.
    """
    folder = pathlib.Path(workdir).resolve() / FOLDER / str(step)
    item: Any = folder / _ITEM  # declared to be Orbax's own kind of path; any will do
    handler = ocp.StandardCheckpointHandler()
    try:
        with _named(folder, _READING):
            metadata = handler.metadata(item)
            template = jax.tree.map(
                lambda leaf: np.zeros(leaf.shape, leaf.dtype), metadata
            )
            return handler.restore(item, args=ocp.args.StandardRestore(template))
    finally:
        handler.close()


@contextlib.contextmanager
def _named(path: pathlib.Path, message: str) -> Iterator[None]:
    """Makes one error of those that Orbax and the disk raise in the body."""
    hook = sys.unraisablehook

    def without_echoes(raised):
        # Of many arrays the first that fails closes the event loop, and each of the
        # others is told so by a traceback of its own.
        if str(raised.exc_value) != "Event loop is closed":
            hook(raised)

    sys.unraisablehook = without_echoes
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).partition(" [tensorstore_spec=")[0]
        # the hook stays, since echoes may still come
        raise errors.DpaError(f"{path}: {message.format(reason)}") from error
    sys.unraisablehook = hook

"""Checkpoints of a run: the only file that imports Orbax."""

import contextlib
import copy
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from dpa_jax import errors
from dpa_jax.storage import json_files

FOLDER = "checkpoints"
_ARRAYS, _NOTES = "default", "meta"  # the parts of a checkpoint
_DIGESTS = "sha256"  # of each array, and of the other notes, among the notes
_DAMAGED = ".damaged"  # what the name of one that was set aside ends in
_SPARE = 1 << 20  # bytes that a checkpoint takes beyond its arrays, at most
_RESUMES = "earlier checkpoints are untouched, and the same command resumes"
_WRITING = "cannot be written: {}; " + _RESUMES


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What was saved at a step of a run.

    Attributes:
      step: of the whole run.
      arrays: nested dictionaries of NumPy arrays.
      notes: what else was kept, as JSON holds it; empty before version 0.2.
    """

    step: int
    arrays: Any
    notes: Mapping[str, Any]


class Checkpoints:
    """The checkpoints in a workdir, by the step of the whole run they were taken at.

    They hold plain arrays, so that they are read on any number and kind of devices,
    and a SHA-256 of each. Each is written beside its place and renamed, so that one
    that exists is complete. Opened by one process of a run alone.

    Args:
      workdir: that of the run.
      keep: steps whose checkpoint stays, such as the ends of stages; of others the last
        two do, and the best.
    """

    def __init__(self, workdir: str | os.PathLike, keep: Collection[int] = ()):
        self._workdir = pathlib.Path(workdir).resolve()
        self._folder = self._workdir / FOLDER
        self._keep = frozenset(keep)
        self._best: tuple[int, ...] = ()
        options = ocp.CheckpointManagerOptions(
            cleanup_tmp_directories=True,  # what a killed run left half written
            preservation_policy=self,
            create=False,
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=0,
                active_processes={0} if jax.process_count() > 1 else None,
                barrier_sync_key_prefix="dpa_jax",
            ),
        )
        with _named(self._folder, _WRITING):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(self._folder, options=options)

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        """Returns which checkpoints stay; Orbax calls it."""
        del context
        last = sorted(found.step for found in checkpoints)[-2:]
        kept = {*self._keep, *self._best, *last}
        return [found.step in kept for found in checkpoints]

    def keep_best(self, step: int) -> None:
        """Makes the checkpoint of a step stay, written or still to be written.

        The one that was best before stays too, until the next: a run that is killed
        before this one is written goes on with that.
        """
        if step not in self._best:
            self._best = (*self._best[-1:], step)

    def save(self, step: int, arrays: Any, notes: Mapping[str, Any]) -> None:
        """Writes a checkpoint in the background; arrays and notes are copied first.

        Args:
          step: of the whole run.
          arrays: nested dictionaries of them.
          notes: what else to keep; what JSON can hold.

        Raises:
          DpaError: there is not enough room, or this or the last one was not written.
        """
        arrays = jax.tree.map(np.asarray, jax.device_get(arrays))
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(arrays)) + _SPARE
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            # asked beforehand, since Orbax tells of a full disk in hundreds of lines
            raise errors.DpaError(
                f"{self._folder}: no room for a checkpoint: {free / 2**20:.2f} MiB are "
                f"left on that disk and it takes {needed / 2**20:.2f}; {_RESUMES}"
            )
        kept = copy.deepcopy(dict(notes))
        kept[_DIGESTS] = _digests(arrays, kept)
        parts = {
            _ARRAYS: ocp.args.StandardSave(arrays),
            _NOTES: ocp.args.JsonSave(kept),
        }
        with _named(self._folder, _WRITING):
            self._manager.save(step, args=ocp.args.Composite(**parts))

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


def steps(workdir: str | os.PathLike) -> list[int]:
    """Returns the steps of the complete checkpoints in a workdir, in order."""
    folder = pathlib.Path(workdir) / FOLDER
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdecimal())


def latest(workdir: str | os.PathLike) -> int | None:
    """Returns the step of the last complete checkpoint in a workdir, or None."""
    return max(steps(workdir), default=None)


def restore(workdir: str | os.PathLike, step: int) -> Checkpoint:
    """Reads a checkpoint and checks its arrays against their digests; writes nothing.

    Raises:
      DamagedError: it cannot be read, or is not what was written.
    """
    folder = pathlib.Path(workdir).resolve() / FOLDER / str(step)
    item: Any = folder / _ARRAYS  # declared to be Orbax's own kind of path; any will do
    # not the handler that saves: it asks TensorStore for a JSON of each array, which
    # TensorStore (0.1) never frees, 4 KiB each time
    handler = ocp.PyTreeCheckpointHandler()
    try:
        with _named(folder, "the checkpoint cannot be read: {}", DamagedError):
            arrays = handler.restore(item, args=ocp.args.PyTreeRestore())
            notes = _read_notes(folder)
    finally:
        handler.close()
    expected = notes.pop(_DIGESTS, None)
    if expected is None:
        return Checkpoint(step, arrays, notes)
    found = _digests(arrays, notes)
    if set(expected) == set(found) - {_NOTES}:
        del found[_NOTES]  # an earlier version took none of the notes
    if expected != found:
        names = [name for name in found if found[name] != expected.get(name)]
        raise DamagedError(
            f"{folder}: the checkpoint is damaged: {', '.join(names) or _NOTES} "
            "not as written"
        )
    return Checkpoint(step, arrays, notes)


class DamagedError(errors.DpaError):
    """A checkpoint that cannot be read, or holds other numbers than were written."""


def set_aside(workdir: str | os.PathLike, step: int) -> pathlib.Path:
    """Renames a damaged checkpoint, so that it is none any more; returns its path."""
    folder = pathlib.Path(workdir) / FOLDER
    path = folder / f"{step}{_DAMAGED}"
    number = 1
    while path.exists():
        number += 1
        path = folder / f"{step}{_DAMAGED}_{number}"
    os.rename(folder / str(step), path)
    return path


def _read_notes(folder: pathlib.Path) -> dict[str, Any]:
    path = folder / _NOTES / "metadata"
    if not path.exists():
        if (folder / _NOTES).exists():
            raise ValueError(f"{_NOTES}/metadata is missing")
        return {}  # of an earlier version
    return json_files.parse(path.read_text(encoding="utf-8"), {_DIGESTS: dict})


def _digests(arrays: Any, notes: Mapping[str, Any]) -> dict[str, str]:
    """Returns the SHA-256 of each array's name, type, shape and bytes, by its path.

    That of the notes is among them.
    """
    found = {_NOTES: hashlib.sha256(json.dumps(notes).encode()).hexdigest()}
    for path, leaf in jax.tree_util.tree_leaves_with_path(arrays):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        array = np.asarray(leaf)
        digest = hashlib.sha256(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
        found[name] = digest.hexdigest()
    return found


@contextlib.contextmanager
def _named(
    path: pathlib.Path, message: str, kind: type[errors.DpaError] = errors.DpaError
) -> Iterator[None]:
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
    except (
        *(OSError, ValueError, KeyError, TypeError, AttributeError),
        RecursionError,  # of JSON that is nested without end
    ) as error:
        reason = str(error).partition(" [tensorstore_spec=")[0]
        # the hook stays, since echoes may still come
        raise kind(f"{path}: {message.format(reason)}") from error
    sys.unraisablehook = hook

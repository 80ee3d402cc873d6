"""Reading and writing the file formats of weights safely."""

import contextlib
import errno
import hashlib
import os
import pathlib
import pickle
import shutil
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from dpa_jax import errors


def fingerprint(tree: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    """Returns a SHA-256 of names, shapes and float32 values, in a fixed order."""
    digest = hashlib.sha256()
    for layer in sorted(tree):
        for name in sorted(tree[layer]):
            array = np.ascontiguousarray(tree[layer][name], "<f4")
            digest.update(f"{layer}/{name}{array.shape}".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()


def file_sha256(path: str | os.PathLike) -> str:
    """Returns the SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_torch(path: str | os.PathLike) -> Any:
    """Loads a PyTorch file to the CPU without running what it may contain.

    Raises:
      DpaError: PyTorch is absent, or the file is unreadable or holds more than
        tensors and plain values.
    """
    try:
        import torch
    except ImportError:
        raise errors.DpaError(
            f"reading {path} needs PyTorch: pip install 'dpa_jax[torch]'"
        ) from None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        # PyTorch's own words advise to load it all the same
        raise errors.DpaError(
            f"{path} is damaged, or is not a PyTorch file of tensors and plain values "
            "alone, so it is not loaded"
        ) from None
    except Exception as error:  # whatever PyTorch raises on damaged bytes
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise errors.DpaError(f"cannot read {path}: {reason}") from None


def from_torch(tensor: Any, name: str, path: str | os.PathLike) -> np.ndarray:
    """Returns the float32 array of a tensor that `load_torch` found.

    Args:
      tensor: of any floating or whole type.
      name: of the tensor, for errors.
      path: of its file, for errors.

    Raises:
      DpaError: it is no dense tensor with values, but on the meta device or sparse.
    """
    try:
        return np.asarray(tensor.detach().cpu().float().numpy())
    except (RuntimeError, TypeError, AttributeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise errors.DpaError(f"{path}: {name} is no array: {reason}") from None


def read_npz(
    path: pathlib.Path, wanted: Callable[[str], bool]
) -> dict[str, np.ndarray]:
    """Reads those arrays of an .npz archive whose names are wanted.

    Raises:
      DpaError: the file is unreadable, or holds Python objects.
    """
    with reading(path):
        if not zipfile.is_zipfile(path):
            raise ValueError("it is not an .npz archive")
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files if wanted(name)}


def checked(
    tensors: Mapping[str, Any], name: str, shape: tuple[int, ...], prefix: str
) -> np.ndarray:
    """Returns an array as finite float32 of the shape that it must have.

    Args:
      tensors: arrays by name.
      name: of the array.
      shape: expected.
      prefix: of the message of an error.

    Raises:
      DpaError: the array is missing, of the wrong shape or type, or not finite.
    """
    if name not in tensors:
        has = ", ".join(list(tensors)[:3]) or "nothing of the kind"
        raise errors.DpaError(f"{prefix}{name} is missing (it has {has} ...)")
    array = np.asarray(tensors[name])
    if array.shape != shape:
        raise errors.DpaError(
            f"{prefix}{name} has shape {list(array.shape)}, expected {list(shape)}"
        )
    if array.dtype.kind in "iubOSU":
        raise errors.DpaError(f"{prefix}{name} is {array.dtype}, expected float32")
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise errors.DpaError(f"{prefix}{name} has values that are not finite")
    return array


@contextlib.contextmanager
def reading(path: pathlib.Path) -> Iterator[None]:
    """Turns what a damaged file raises in the body into one error that names it."""
    import safetensors

    try:
        yield
    except (
        OSError,
        EOFError,
        ValueError,
        KeyError,
        struct.error,
        zlib.error,
        zipfile.BadZipFile,
        safetensors.SafetensorError,
    ) as error:
        raise errors.DpaError(f"cannot read {path}: {error}") from None


def is_stream(path: str | os.PathLike) -> bool:
    """Returns whether a path is a device, a pipe, or this process's own output.

    That is written to, and never replaced: `/dev/stdout` is such a path, wherever it
    leads to.
    """
    try:
        found = os.stat(path)
    except OSError:
        return False  # it is new, or replacing it fails and says why
    kind = stat.S_IFMT(found.st_mode)
    return kind not in (stat.S_IFREG, stat.S_IFDIR) or _output(path) is not None


def check_free(path: str | os.PathLike, overwrite: bool) -> None:
    """Raises a DpaError if a file is there, is no stream, and may not be replaced."""
    if os.path.exists(path) and not (overwrite or is_stream(path)):
        raise errors.DpaError(
            f"{path} is already there; give another --out, or --overwrite"
        )


def _output(path: str | os.PathLike) -> int | None:
    """Returns which descriptor of this process's output a path leads to."""
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):  # it is closed
            if os.path.samestat(os.stat(path), os.fstat(descriptor)):
                return descriptor
    return None


def _write_stream(path: pathlib.Path, content: pathlib.Path) -> None:
    descriptor = _output(path)
    # opened anew, a file would be written from its beginning on
    target = path if descriptor is None else os.dup(descriptor)
    with content.open("rb") as file, open(target, "ab") as stream:
        shutil.copyfileobj(file, stream)


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives the body a temporary file that takes the place of `path` if it succeeds.

    A link is followed. What is a stream gets the content of the file instead.

    Raises:
      DpaError: the folder or the file cannot be written.
    """
    try:
        if is_stream(path):
            with tempfile.TemporaryDirectory(prefix="dpa_jax_") as folder:
                temporary = pathlib.Path(folder, path.name)
                yield temporary
                _write_stream(path, temporary)
            return
        target = pathlib.Path(os.path.realpath(path)) if path.is_symlink() else path
        if target.is_symlink():
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        # its own text names the temporary file
        reason = error.strerror or error
        raise errors.DpaError(f"cannot write {path}: {reason}") from None

"""Reading and writing the file formats of weights safely."""

import contextlib
import hashlib
import os
import pathlib
import pickle
import struct
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
    except (OSError, EOFError, RuntimeError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise errors.DpaError(f"cannot read {path}: {reason}") from None


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


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives the body a temporary file that takes the place of `path` if it succeeds.

    Raises:
      DpaError: the folder or the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        # its own text names the temporary file
        reason = error.strerror or error
        raise errors.DpaError(f"cannot write {path}: {reason}") from None

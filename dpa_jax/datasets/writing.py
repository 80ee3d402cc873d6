"""TFDS data sets written without TensorFlow, whole or not at all."""

import contextlib
import io
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core import writer
from tensorflow_datasets.proto import tf_example_pb2

from dpa_jax import errors
from dpa_jax.data import checksums
from dpa_jax.storage import lock


@contextlib.contextmanager
def locked(data_dir: str | os.PathLike, name: str, config: str = "") -> Iterator[None]:
    """Keeps other processes from preparing a data set while the body runs.

    Args:
      data_dir: the folder of TFDS data sets.
      name: of the data set.
      config: of its configuration.

    Raises:
      UsageError: another process prepares it.
      DpaError: the folder cannot be written.
    """
    folder = pathlib.Path(data_dir) / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise errors.DpaError(f"{folder} cannot be made: {error.strerror}") from error
    conflict = f"{folder / config} is being prepared"
    with lock.hold(
        folder / f".{config or name}.lock", conflict, "give another --data_dir"
    ):
        yield


def write(builder: tfds.core.DatasetBuilder) -> None:
    """Writes a data set, and removes what a run that was killed left of it.

    Args:
      builder: of the data set, which is not there yet and is locked.
    """
    folder = builder.data_path.parent
    for rest in folder.glob("incomplete.*"):
        rest.rmtree()
    folder.mkdir(parents=True, exist_ok=True)
    # Here, and called like what TFDS leaves, so that a later run removes it.
    with tempfile.TemporaryDirectory(prefix="incomplete.", dir=folder) as downloads:
        # TFDS prints that it downloads, and it does not.
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(
                download_dir=downloads,
                download_config=tfds.download.DownloadConfig(try_download_gcs=False),
            )
    checksums.write(builder.data_path)


class OrderedWriter(writer.ExampleWriter):
    """Writes the features of an example in a fixed order.

    Protocol buffers leave the order of a map open and choose it anew in each process,
    so that preparing twice would give different files.
    """

    def write(self, path, examples):
        """Writes (key, serialized example) pairs to one shard."""
        ordered = (
            (
                key,
                tf_example_pb2.Example.FromString(  # pyrefly: ignore[missing-attribute]
                    example
                ).SerializeToString(deterministic=True),
            )
            for key, example in examples
        )
        return super().write(path, ordered)


class DatasetInfo(tfds.core.DatasetInfo):
    """What is known of a data set that TFDS does not keep in its own bucket."""

    def initialize_from_bucket(self) -> None:
        """Does nothing, where TFDS leaves an empty folder among temporary ones."""


class Builder:
    """What a builder needs besides TFDS's own class, which comes after it."""

    def __init__(self, **kwargs: Any):
        # The default of TFDS needs TensorFlow.
        super().__init__(**{"file_format": "array_record", **kwargs})

    def _example_writer(self: Any) -> OrderedWriter:
        return OrderedWriter(self.info.file_format)

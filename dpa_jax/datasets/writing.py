"""TFDS data sets written without TensorFlow, whole or not at all."""

import contextlib
import io
import os
import tempfile

import tensorflow_datasets as tfds
from tensorflow_datasets.core import writer
from tensorflow_datasets.proto import tf_example_pb2

from dpa_jax.data import checksums


def write(
    builder: tfds.core.DatasetBuilder, source: str | os.PathLike | None = None
) -> None:
    """Writes a data set, and removes what a run that was killed left of it.

    Args:
      builder: of the data set, which is not there yet.
      source: the folder of files as distributed, if the builder reads it itself.
    """
    for rest in builder.data_path.parent.glob("incomplete.*"):
        rest.rmtree()
    with tempfile.TemporaryDirectory() as downloads:
        # TFDS prints that it downloads, and it does not.
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(
                download_dir=downloads,
                download_config=tfds.download.DownloadConfig(
                    manual_dir=source, try_download_gcs=False
                ),
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

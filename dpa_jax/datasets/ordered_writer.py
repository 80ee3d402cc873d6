"""TFDS records whose bytes depend on the examples alone."""

from tensorflow_datasets.core import writer
from tensorflow_datasets.proto import tf_example_pb2


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

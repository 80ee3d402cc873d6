"""CIFAR10 and SVHN as TFDS defines them, prepared without TensorFlow.

The builders are those of TFDS, and what they write `tfds.builder("cifar10")` reads;
only what TFDS does through TensorFlow, to unpack archives and to encode PNG, is done
otherwise.
"""

import contextlib
import os
import sys
import tarfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.download import download_manager as tfds_downloads

from dpa_jax.data import checksums
from dpa_jax.datasets import writing
from dpa_jax.errors import DpaError

_FOLDER = "cifar-10-batches-bin"  # in CIFAR10's archive
_CIFAR10: Any = tfds.builder_cls("cifar10")
_SVHN: Any = tfds.builder_cls("svhn_cropped")

Examples = Iterator[tuple[int, dict[str, Any]]]


def prepare(
    name: str, data_dir: str | os.PathLike, source: str | os.PathLike | None = None
) -> str:
    """Downloads and prepares a data set; does nothing if it is there.

    Args:
      name: `cifar10` or `svhn_cropped`.
      data_dir: the folder of TFDS data sets to write to; downloads are kept in its
        `downloads`.
      source: a folder of files that were downloaded already, named as in their
        addresses. Each is used in place of a download.

    Returns:
      A line that says what was made, and where.

    Raises:
      DpaError: a file cannot be downloaded, or is not the one that is known.
    """
    if source is not None and not os.path.isdir(source):
        raise DpaError(f"there is no folder {source}")
    kind = {"cifar10": Cifar10, "svhn_cropped": Svhn}[name]
    data_dir = os.path.expanduser(data_dir)
    builder = kind(data_dir=data_dir, file_format="array_record")
    there = builder.data_path.exists()
    options = tfds.download.DownloadConfig(
        manual_dir=source,
        try_download_gcs=False,  # it holds what TensorFlow alone can read
        force_checksums_validation=True,
    )
    held = contextlib.nullcontext() if there else writing.locked(data_dir, name)
    try:
        # TFDS tells of its progress on stdout, which is for results
        with held, contextlib.redirect_stdout(sys.stderr):
            builder.download_and_prepare(download_config=options)
            if not there:
                checksums.write(builder.data_path)
    except tfds_downloads.NonMatchingChecksumError as error:
        raise DpaError(
            f"{name}: {str(error).partition(chr(10))[0]} delete it and try again"
        ) from error
    except (OSError, tfds.download.DownloadError) as error:
        raise DpaError(
            f"{name} cannot be prepared: {error}. Without network, name by --source a "
            f"folder with the files of {', '.join(kind.addresses().values())}"
        ) from error
    counts = ", ".join(
        f"{split} {info.num_examples:,}" for split, info in builder.info.splits.items()
    )
    return f"{name}: {counts} images in {builder.data_path}" + (
        ", there already" * there
    )


# TFDS shall go on to know the data sets by its own classes: hence skip_registration
class Cifar10(_CIFAR10, skip_registration=True):
    """CIFAR10: 50,000 and 10,000 images of ten classes (Krizhevsky, 2009)."""

    name = "cifar10"
    url_infos = _CIFAR10.url_infos

    @classmethod
    def addresses(cls) -> Mapping[str, str]:
        """Returns where the files are that are needed."""
        return {"all": next(iter(cls.url_infos))}

    def _split_generators(self, dl_manager) -> Mapping[str, Examples]:
        archive = dl_manager.download(self.addresses())["all"]
        with tarfile.open(archive) as tar:
            names = _member(tar, "batches.meta.txt").decode().split()
        self.info.features["label"].names = names
        batches = [f"data_batch_{i}.bin" for i in range(1, 6)]
        return {
            "train": self._generate_examples("train", archive, batches),
            "test": self._generate_examples("test", archive, ["test_batch.bin"]),
        }

    def _generate_examples(self, split: str, archive, files: list[str]) -> Examples:
        index = 0
        with tarfile.open(archive) as tar:
            for file in files:
                # a label and the red, green and blue planes
                rows = np.frombuffer(_member(tar, file), np.uint8).reshape(-1, 3073)
                for row in rows:
                    image = row[1:].reshape(3, 32, 32).transpose(1, 2, 0)
                    yield index, _example(f"{split}_{index:05d}", image, row[0])
                    index += 1


class Svhn(_SVHN, skip_registration=True):
    """SVHN: 73,257 and 26,032 cropped digits (Netzer et al., 2011).

    Without the split `extra` of 531,131 more, which no published run uses.
    """

    name = "svhn_cropped"
    url_infos = _SVHN.url_infos

    @classmethod
    def addresses(cls) -> Mapping[str, str]:
        """Returns where the files are that are needed."""
        return {
            split: next(url for url in cls.url_infos if f"/{split}_32x32" in url)
            for split in ("train", "test")
        }

    def _split_generators(self, dl_manager) -> Mapping[str, Examples]:
        return {
            split: self._generate_examples(split, path)
            for split, path in dl_manager.download(self.addresses()).items()
        }

    def _generate_examples(self, split: str, path) -> Examples:
        import scipy.io

        found = scipy.io.loadmat(path)
        images, labels = np.moveaxis(found["X"], -1, 0), found["y"].ravel()
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            # the digit 0 is stored as 10
            yield index, _example(f"{split}_{index:06d}", image, label % 10)


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(f"{_FOLDER}/{name}")
    assert file is not None  # the checksum is that of an archive that has it
    return file.read()


def _example(identity: str, image: np.ndarray, label) -> dict[str, Any]:
    picture = Image.fromarray(np.ascontiguousarray(image))
    return {"id": identity, "image": picture, "label": int(label)}

"""A manifest as a TFDS data set, prepared without TensorFlow."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from dpa_jax.data import decode, manifest, masks, volumes
from dpa_jax.datasets import writing
from dpa_jax.errors import DpaError, UsageError

_OURS = ("image", "image_id", "has_mask")  # features that no column may be called
LABELS = ["normal", "abnormal"]


def prepare(
    location: str, name: str, data_dir: str | os.PathLike, channels: int, size: int = 0
) -> list[str]:
    """Prepares what a manifest lists, so that `tfds:NAME:SPLIT` loads it.

    The values of the column split become splits, of which train is the only one without
    such a column. Images are stored upright and in 8 bits, masks beside them; all other
    columns become features.

    Args:
      location: of the manifest.
      name: of the data set: small letters, digits and _, and none that TFDS knows.
      data_dir: the folder of TFDS data sets to write to.
      channels: 1 to store grey images, 3 for RGB.
      size: side in pixels of the centre squares that are stored; 0 to store images
        whole and as large as they are.

    Returns:
      Lines with the counts of each split, and where the data set is.

    Raises:
      UsageError: the name or a column or split cannot be used.
      DpaError: the manifest or an image cannot be read, or the data set exists.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UsageError(f"--name={name}: use small letters, digits and _")
    if name in tfds.list_builders(with_community_datasets=False):
        raise UsageError(
            f"--name={name}: TFDS has a data set of this name; use another"
        )
    found = manifest.read(location)
    if volume := next(filter(volumes.is_volume, found.paths), None):
        raise UsageError(
            f"{location} lists the volume {volume}; use such a manifest as it is"
        )
    for column in found.columns:
        if column in _OURS or "/" in column:
            raise UsageError(f"{location}: a column may not be called {column}")
    splits = list(found.columns.get("split", ["train"] * len(found.paths)))
    for split in splits:
        if not re.fullmatch(r"[A-Za-z]\w*", split) or split == "all":
            raise UsageError(
                f"{location}: a split cannot be called {split!r}; use letters, digits "
                "and _, and not all"
            )
    preprocessing = decode.Preprocessing(channels, size) if size else None
    data_dir = os.path.expanduser(data_dir)
    with writing.locked(data_dir, name):
        builder = _FromManifest(
            name, location, found, splits, channels, preprocessing, data_dir
        )
        if builder.data_path.exists():
            raise DpaError(
                f"{builder.data_path} is there already; delete it or use another --name"
            )
        writing.write(builder)
    labels = None if found.labels is None else [LABELS[label] for label in found.labels]
    return [
        *manifest.describe(splits, labels, found.groups),
        f"in {builder.data_path}: load it as tfds:{name}:SPLIT with "
        f"data.data_dir={data_dir}",
    ]


class _FromManifest(
    writing.Builder, tfds.core.GeneratorBasedBuilder, skip_registration=True
):
    """Builds the data set; its name is an argument, so that TFDS does not know it.

    `tfds.builder(name, data_dir=...)` reads what it writes, as it reads all data sets
    whose code is not at hand.
    """

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = None

    def __init__(
        self, name, location, found, splits, channels, preprocessing, data_dir
    ):
        self.name = name
        self._location, self._found, self._splits = location, found, splits
        self._channels, self._preprocessing = channels, preprocessing
        super().__init__(data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        found, side = self._found, None
        metadata = None
        if self._preprocessing:
            side = self._preprocessing.size
            stored = dataclasses.asdict(self._preprocessing)
            metadata = tfds.core.MetadataDict(preprocessing=stored)
        features: dict[str, Any] = {
            "image_id": tfds.features.Text(),
            "image": tfds.features.Image(shape=(side, side, self._channels)),
        }
        if found.labels is not None:
            features["label"] = tfds.features.ClassLabel(names=LABELS)
        if found.groups is not None:
            features["group"] = tfds.features.Text()
        for column, values in found.columns.items():
            if column == "mask":
                features["mask"] = tfds.features.Image(shape=(side, side, 1))
                features["has_mask"] = tfds.features.Scalar(dtype=np.bool_)
            elif column != "split":
                features[column] = _feature(values)
        return writing.DatasetInfo(
            builder=self,
            description=f"Made of the manifest {pathlib.Path(self._location).name}.",
            features=tfds.features.FeaturesDict(features),
            metadata=metadata,
            disable_shuffling=True,  # in the order of the manifest; readers shuffle
        )

    def _split_generators(self, dl_manager) -> Mapping[str, Any]:
        return {
            split: self._generate_examples(split)
            for split in dict.fromkeys(self._splits)
        }

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        found = self._found
        folder = os.path.dirname(self._location) or "."
        for i, path in enumerate(found.paths):
            if self._splits[i] != split:
                continue
            image = decode.to_channels(decode.read_image(path, path), self._channels)
            shape = image.height, image.width
            if self._preprocessing:
                pixels = decode.prepare(image, self._preprocessing, path)
                if self._channels == 1:
                    pixels = pixels[..., 0]
                image = Image.fromarray(pixels)
            example = {"image_id": os.path.relpath(path, folder), "image": image}
            if found.labels is not None:
                example["label"] = int(found.labels[i])
            if found.groups is not None:
                example["group"] = found.groups[i]
            for column, values in found.columns.items():
                if column == "mask":
                    mask = self._mask(values[i], shape)
                    example["mask"] = Image.fromarray(255 * mask.astype(np.uint8))
                    example["has_mask"] = bool(values[i])
                elif column != "split":
                    example[column] = values[i]
            yield i, example

    def _mask(self, file: str, shape: tuple[int, int]) -> np.ndarray:
        mask = masks.read(file) if file else np.zeros(shape, bool)
        if mask.shape != shape:
            raise DpaError(
                f"{file} is a mask of {mask.shape[1]}x{mask.shape[0]} pixels, but its "
                f"image has {shape[1]}x{shape[0]}"
            )
        if self._preprocessing:
            mask = masks.prepare(mask, self._preprocessing, file)
        return mask


def _feature(values: Any) -> Any:
    """Returns the feature that holds a column of a manifest."""
    if isinstance(values, np.ndarray):
        return tfds.features.Scalar(dtype=values.dtype.type)
    if isinstance(values[0], tuple):
        names = sorted({name for value in values for name in value})
        return tfds.features.Sequence(tfds.features.ClassLabel(names=names or ["none"]))
    return tfds.features.Text()

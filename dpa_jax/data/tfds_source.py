"""Images from a data set that TFDS has prepared, read without TensorFlow."""

import contextlib
import dataclasses
import numbers
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image

from dpa_jax.data import checksums, disk_cache
from dpa_jax.data.decode import Preprocessing, prepare
from dpa_jax.data.image_set import ImageSet
from dpa_jax.errors import DpaError, UsageError

_BLOCK = 64  # examples read at once, 192 MiB of colour images of 1,024 px
# The first feature of these names that a data set has tells images, and what they
# share, apart.
_IDS = ("image_id", "name", "file_name", "id")
_GROUPS = ("group", "patient_id", "slide")
_NORMAL = {"normal", "healthy", "negative"}  # names of classes that say so


def load_tfds(
    name: str,
    split: str,
    preprocessing: Preprocessing,
    data_dir: str | os.PathLike | None = None,
    progress: Callable[[int, int], None] | None = None,
    *,
    memory: int | None = None,
    log: Callable[[str], None] | None = None,
) -> ImageSet:
    """Loads a split of a prepared data set.

    Args:
      name: of the data set, with its configuration: `nih_chest_xray14/pa_64`.
      split: such as `train`, or a part of one in the notation of TFDS.
      preprocessing: what to bring the images to. Images stored in that form are taken
        as they are.
      data_dir: the folder of TFDS data sets; None or empty for its own default.
      progress: called with the numbers of images done and in all as they come in.
      memory: see `sources.load`.
      log: see there.

    Returns:
      The images in the order in which they are stored. Paths are their ids, groups
      the patients or slides. The column `class` holds the names of the classes, unless
      there is a feature of that name; labels are there if there are two, of which one
      is called normal, healthy or negative.
      The other columns hold all other features of one value each, and lists of classes
      as tuples of names.

    Raises:
      UsageError: there is no such data set or split, or it is stored in a form that
        the one asked for cannot be made of.
      DpaError: the data set is not prepared, damaged, or its images are not uint8.
    """
    with _reading(name):
        return _load(name, split, preprocessing, data_dir, progress, memory, log)


def _load(
    name: str,
    split: str,
    preprocessing: Preprocessing,
    data_dir: str | os.PathLike | None,
    progress: Callable[[int, int], None] | None,
    memory: int | None,
    log: Callable[[str], None] | None,
) -> ImageSet:
    import tensorflow_datasets as tfds

    builder = _find(name, data_dir)
    source = _open(builder, name, split)
    features = dict(getattr(builder.info.features, "items", dict)())
    if "image" not in features or features["image"].np_dtype != np.uint8:
        raise DpaError(f"the TFDS data set {name} has no feature image of uint8")
    rest = _rest(preprocessing, builder.info.metadata, name)
    readers = _readers(features)

    def decode(images: Any) -> disk_cache.Notes:
        values: dict[str, list[Any]] = {key: [] for key in readers}
        for start in range(0, len(source), _BLOCK):
            stop = min(start + _BLOCK, len(source))
            block = source.__getitems__(list(range(start, stop)))
            for i, example in enumerate(block, start):
                image = example["image"]
                images[i] = _fit(image, rest, f"{name}, image {i} of {split}")
                for key, read in readers.items():
                    values[key].append(read(example[key]))
            if progress is not None:
                progress(stop, len(source))
        return values

    def identity() -> list[Any]:
        stored = sorted(builder.data_path.iterdir())
        stats = [(str(path), path.stat()) for path in stored]
        files = [(path, stat.length, stat.mtime) for path, stat in stats]
        return [split, dataclasses.astuple(rest), files]

    shape = (len(source), rest.size, rest.size, rest.channels)
    images, values = disk_cache.fill(shape, decode, memory, identity, log)
    columns = {key: _column(column) for key, column in values.items()}
    labels = None
    if isinstance(features.get("label"), tfds.features.ClassLabel):
        classes = columns.pop("label")
        columns.setdefault("class", classes)
        normal = [n for n in features["label"].names if n.lower() in _NORMAL]
        if features["label"].num_classes == 2 and len(normal) == 1:
            labels = np.array([n != normal[0] for n in classes], np.int8)
    ids = next((columns.pop(key) for key in _IDS if key in columns), None)
    if ids is None:
        ids = [f"{name}:{split}:{i}" for i in range(len(images))]
    groups = next((columns[key] for key in _GROUPS if key in columns), None)
    return ImageSet(
        images,
        paths=[str(identity) for identity in ids],
        labels=labels,
        groups=None if groups is None else [str(group) for group in groups],
        columns=columns,
    )


def load_masks(
    location: str, preprocessing: Preprocessing, data_dir: str | os.PathLike | None
) -> tuple[np.ndarray, np.ndarray] | None:
    """Loads the feature `mask` of a data set, and which images have one.

    Args:
      location: `tfds:NAME[/CONFIG]:SPLIT`.
      preprocessing: see `load_tfds`.
      data_dir: see there.

    Returns:
      bool `[N, S, S]`, every value but 0 being abnormal, and bool `[N]`, the feature
      `has_mask`; None without these features.
    """
    name, _, split = location.removeprefix("tfds:").partition(":")
    with _reading(name):
        return _load_masks(name, split, preprocessing, data_dir)


@contextlib.contextmanager
def _reading(name: str) -> Iterator[None]:
    """Names the data set in whatever TFDS raises on damaged files.

    Raises:
      DpaError: the body raised anything.
    """
    try:
        yield
    except DpaError:
        raise
    except Exception as error:  # of protocol buffers, records, codecs
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DpaError(
            f"the data set {name} cannot be read: {reason}; if it is damaged, delete "
            f"its folder and {_how(name)}"
        ) from error


def _load_masks(
    name: str,
    split: str,
    preprocessing: Preprocessing,
    data_dir: str | os.PathLike | None,
) -> tuple[np.ndarray, np.ndarray] | None:
    from dpa_jax.data import masks

    builder = _find(name, data_dir)
    features = dict(getattr(builder.info.features, "items", dict)())
    if not {"mask", "has_mask"} <= features.keys():
        return None
    rest = _rest(preprocessing, builder.info.metadata, name)
    found, known = [], []
    for i, example in enumerate(_open(builder, name, split)):
        mask = example["mask"].any(axis=-1)
        found.append(masks.prepare(mask, rest, f"{name}, mask {i} of {split}"))
        known.append(bool(example["has_mask"]))
    return np.stack(found), np.array(known)


def _find(name: str, data_dir: str | os.PathLike | None):
    """Returns the TFDS builder of a data set that is prepared."""
    import tensorflow_datasets as tfds

    import dpa_jax.datasets  # noqa: F401  makes our data sets known to TFDS

    folder = os.path.expanduser(data_dir) if data_dir else None
    try:
        builder = tfds.builder(name, data_dir=folder)
    except (tfds.core.DatasetNotFoundError, ValueError, AssertionError) as error:
        # without the arguments that the reason begins with, and its advice after it
        reason = str(error).strip().splitlines()[0].rpartition('}": ')[2]
        reason = reason.partition(" Here are")[0]
        family = re.split("[/:]", name)[0]
        if family in tfds.list_builders(with_community_datasets=False):
            known = tfds.builder_cls(family).builder_configs
            reason += f" It may be {', '.join(known)}." if known else ""
        raise UsageError(f"TFDS knows no data set {name}: {reason}") from None
    if not builder.data_path.exists():
        raise DpaError(
            f"{name} is not prepared in {builder.data_dir_root}: {_how(name)}, or name "
            "the folder it is in by data.data_dir"
        )
    checksums.check(builder.data_path)
    return builder


def _how(name: str) -> str:
    """Describes how a data set is prepared."""
    if name.startswith("camelyon16"):
        return "run dpa-jax prepare camelyon16 --source SLIDES --data_dir DIR"
    if name.startswith("nih_chest_xray14"):
        from dpa_jax.datasets import nih_protocols

        config = next(
            (f for f in nih_protocols.CONFIGS if name.endswith(f"/{f.name}")),
            nih_protocols.CONFIGS[0],
        )
        lists = " --lists LISTS" * (config.protocol == "custom")
        return (
            "run dpa-jax prepare nih --source FILES --data_dir DIR "
            f"--protocol {config.protocol}{lists}"
        )
    for verb, ours in (("cifar10", "cifar10"), ("svhn", "svhn_cropped")):
        if re.split("[/:]", name)[0] == ours:
            return f"run dpa-jax prepare {verb} --data_dir DIR"
    return (
        "run dpa-jax prepare manifest FILE.csv --name NAME --data_dir DIR, or prepare "
        "it by TFDS with file_format='array_record'"
    )


def _open(builder, name: str, split: str) -> Any:
    try:
        return builder.as_data_source(split)
    except NotImplementedError:
        raise DpaError(
            f"{name} in {builder.data_dir_root} is stored as "
            f"{builder.info.file_format.value}, which needs TensorFlow: {_how(name)}"
        ) from None
    except (ValueError, KeyError):
        splits = ", ".join(builder.info.splits) or "none: it is empty"
        raise UsageError(f"{name} has no split {split!r}; it has {splits}") from None


def _rest(
    asked: Preprocessing, metadata: Mapping[str, Any] | None, name: str
) -> Preprocessing:
    """Returns what is left to do to images that were preprocessed when stored."""
    if not metadata or "preprocessing" not in metadata:
        return asked
    stored = Preprocessing(**metadata["preprocessing"])

    def geometry(p: Preprocessing) -> tuple:
        return p.resize, p.crop, p.equalize

    only_size = Preprocessing(asked.channels, asked.size)
    if geometry(asked) == geometry(only_size):
        return asked
    if geometry(asked) == geometry(stored) and asked.size == stored.size:
        return only_size
    if stored == Preprocessing(stored.channels, asked.resize, asked.resize):
        return asked  # stored whole, as the first step leaves it
    raise UsageError(
        f"{name} holds images of {_words(stored)}, of which {_words(asked)} cannot be "
        "made: set data.resize, data.crop, data.equalize and data.size so, or use "
        "another configuration of the data set"
    )


def _words(p: Preprocessing) -> str:
    return f"(resize {p.resize}, crop {p.crop}, equalize {p.equalize}, size {p.size})"


def _fit(image: np.ndarray, rest: Preprocessing, name: str) -> np.ndarray:
    plain = Preprocessing(rest.channels, rest.size, crop=rest.crop)
    cut = rest.crop in (0, rest.size)
    if rest == plain and cut and image.shape == (rest.size, rest.size, rest.channels):
        return image
    grey = image.shape[-1] == 1
    return prepare(Image.fromarray(image[:, :, 0] if grey else image), rest, name)


def _readers(features) -> dict[str, Callable[[Any], Any]]:
    """Returns, by feature, how to turn its value into one for a column."""
    import tensorflow_datasets as tfds

    def decode(value: bytes) -> str:
        return value.decode()

    def named(feature) -> Callable[[Any], str]:
        return lambda value: feature.int2str(int(value))

    def names(feature) -> Callable[[Any], tuple[str, ...]]:
        return lambda value: tuple(feature.int2str(int(v)) for v in value)

    readers: dict[str, Callable[[Any], Any]] = {}
    for key, feature in features.items():
        if isinstance(feature, tfds.features.ClassLabel):
            readers[key] = named(feature)
        elif isinstance(feature, tfds.features.Text):
            readers[key] = decode
        elif isinstance(feature, tfds.features.Sequence) and isinstance(
            feature.feature, tfds.features.ClassLabel
        ):
            readers[key] = names(feature.feature)
        elif feature.shape == () and np.dtype(feature.np_dtype).kind in "iuf":
            readers[key] = lambda value: np.asarray(value).item()
    return readers


def _column(values: list[Any]) -> list[Any] | np.ndarray:
    """Returns a feature's values, which may come from JSON, where tuples are lists."""
    if isinstance(values[0], numbers.Number):
        return np.array(values)
    return [tuple(v) if isinstance(v, list) else v for v in values]

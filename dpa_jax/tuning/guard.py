"""What the anomalies of a study must not be in: its training and its test images."""

import dataclasses
import os

import ml_collections
import numpy as np

from dpa_jax import data, errors
from dpa_jax.data import labels as label_names
from dpa_jax.data.image_set import ImageSet
from dpa_jax.tuning import anomalies
from dpa_jax.tuning.anomalies import Pool, Record


def test_set(
    config: ml_collections.ConfigDict, *, visible: bool = True
) -> ImageSet | None:
    """Loads the labelled test images that a configuration names, None if it has none.

    Raises:
      UsageError: only one of `data.test_normal` and `data.test_abnormal` is named.
      DpaError: they cannot be loaded or have no labels.
    """
    both = (config.data.test_normal, config.data.test_abnormal)
    if config.data.test:
        images = anomalies.read_images(
            config.data.test, config, "reading test images", visible
        )
        if config.data.normal:
            normal = label_names.matches(images, config.data.normal)
            return dataclasses.replace(images, labels=(~normal).astype(np.int8))
        if images.labels is None:
            raise errors.DpaError(
                f"data.test: {config.data.test} has no labels, so it is no test set"
            )
        return images
    if not any(both):
        return None
    if not all(both):
        raise errors.UsageError(
            "data.test_normal and data.test_abnormal go together; one of them is empty"
        )
    pair = [
        anomalies.read_images(place, config, "reading test images", visible)
        for place in both
    ]
    return data.joined(pair, labels=(0, 1))


def guard(pool: Pool, training: ImageSet, test: ImageSet | None) -> list[str]:
    """Refuses anomalies that the runs are trained or tested on.

    Args:
      pool: all of it is checked, drawn or not.
      training: the normal training images of all folds.
      test: the test set, None if none is named.

    Returns:
      Sentences on what was checked and what could not be, for the report.

    Raises:
      DpaError: naming an anomaly that is among the training images or in the test set,
        by its name or its pixels, or whose patient or slide is in the test set.
    """
    count, ours = len(pool.images), pool.record()
    _refuse_shared(ours, training, "the normal training images")
    told = [
        f"None of the {count:,} anomalies is among the {len(training):,} normal "
        "training images, by name or by pixels."
    ]
    if test is None:
        return [
            *told,
            "The config names no test set (data.test), so that it could not be checked "
            "whether the anomalies are in it.",
        ]
    _refuse_shared(ours, test, "the test set")
    if ours.groups is None or test.groups is None:
        whose = "of the anomalies" if ours.groups is None else "of the test set"
        return [
            *told,
            f"None of them is in the test set of {len(test):,} images, by name or by "
            f"pixels. The patients or slides {whose} are not known, so that it could "
            "not be checked whether both have images of the same one.",
        ]
    there = set(test.groups)
    shared = [i for i, name in enumerate(ours.groups) if name in there]
    if shared:
        first = shared[0]
        raise errors.DpaError(
            f"{len(shared)} of {count} anomalies are of a patient or slide that is "
            f"also in the test set, such as {ours.paths[first]} of "
            f"{ours.groups[first]}; leave them out of anomalies.source"
        )
    return [
        *told,
        f"None of them is in the test set of {len(test):,} images, by name or by "
        "pixels, and neither is another image of their patients or slides.",
    ]


def _refuse_shared(ours: Record, others: ImageSet, where: str) -> None:
    """Refuses anomalies that are among other images, by name or by pixels."""
    names = {os.path.realpath(path): path for path in others.paths}
    pixels = dict(zip(anomalies.hashes(others), others.paths, strict=True))
    found = []
    for path, digest in zip(ours.paths, ours.sha256, strict=True):
        if os.path.realpath(path) in names:
            found.append(f"{path} (by its name)")
        elif digest in pixels:
            found.append(f"{path} (its pixels are those of {pixels[digest]})")
    if found:
        raise errors.DpaError(
            f"{len(found)} of {len(ours.paths)} anomalies are also in {where}, such as "
            f"{found[0]}; leave them out of anomalies.source"
        )

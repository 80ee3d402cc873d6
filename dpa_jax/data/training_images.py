"""The images that a run trains on."""

import ml_collections
import numpy as np

from dpa_jax import console, data, errors
from dpa_jax.data import folds, labels
from dpa_jax.devices import processes
from dpa_jax.devices.platform import Platform

# the share of the host's memory that decoded images may take
_HOST_SHARE = 0.5


def training_images(
    config: ml_collections.ConfigDict,
    *,
    platform: Platform | None = None,
    visible: bool = True,
) -> data.ImageSet:
    """Loads the normal training images, those of all folds.

    Those that would take more than half of the host's memory are kept in a file of the
    cache and mapped.

    Args:
      config: validated.
      platform: see `train`.
      visible: whether to show progress on stderr.

    Raises:
      DpaError: they cannot be used, or none is normal.
    """
    if not config.data.train:
        raise errors.UsageError(
            "data.train is empty: say where the normal training images are, "
            "such as --config.data.train=DIR"
        )
    platform = platform or Platform.here(processes.join())
    # the same in all processes, which decode a part each or all of them everything
    memory = platform.group.decide(lambda: int(_HOST_SHARE * platform.host_memory))
    with console.counting("reading images", "images", visible) as show:
        images = data.load(
            config.data.train,
            data.Preprocessing.from_config(config),
            skip_corrupt=config.data.skip_corrupt,
            workers=config.data.workers,
            progress=show,
            data_dir=config.data.data_dir or None,
            group=platform.group,
            memory=memory,
            log=console.print_line if visible else None,
        )
    images = labels.labelled(images, config.data.normal, config.data.train)
    return normal(images, visible)


def divided(
    images: data.ImageSet, config: ml_collections.ConfigDict
) -> tuple[data.ImageSet, np.ndarray]:
    """Returns the images to train on, and the rows of those held out."""
    if not config.data.folds:
        return images, np.zeros(0, np.int64)
    held = folds.held_out(images, config.data.folds, config.data.fold)
    return images.select(~held), images.select(held).rows


def normal(
    images: data.ImageSet, visible: bool, what: str = "training image"
) -> data.ImageSet:
    """Leaves out what a source marks as abnormal: the method learns normal images."""
    if images.labels is None or not images.labels.any():
        return images
    normal = images.select(images.labels == 0)
    if visible:
        console.print_line(
            f"{len(images) - len(normal)} of {len(images)} {what}s are marked "
            "abnormal and left out"
        )
    if not len(normal):
        raise errors.DpaError(f"every {what} is marked abnormal")
    return normal

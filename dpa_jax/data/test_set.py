"""The labelled images that a configuration names to test on."""

from collections.abc import Sequence

import ml_collections

from dpa_jax import console, data, errors
from dpa_jax.data import labels
from dpa_jax.data.image_set import ImageSet


def load(config: ml_collections.ConfigDict, *, visible: bool = True) -> ImageSet | None:
    """Loads the labelled test images that a configuration names, None if it has none.

    Raises:
      UsageError: only one of `data.test_normal` and `data.test_abnormal` is named.
      DpaError: they cannot be loaded or have no labels.
    """

    def read_test(location: str) -> ImageSet:
        return read(location, config, "reading test images", visible)

    both = (config.data.test_normal, config.data.test_abnormal)
    if config.data.test:
        images = read_test(config.data.test)
        images = labels.labelled(images, config.data.normal, config.data.test)
        if images.labels is None:
            raise errors.DpaError(
                f"data.test: {config.data.test} has no labels, so it is no test set"
            )
        return images
    if any(both) and not all(both):
        raise errors.UsageError(
            "data.test_normal and data.test_abnormal go together; one of them is empty"
        )
    if not all(both):
        return None
    return data.joined([read_test(location) for location in both], labels=(0, 1))


def read(
    location: str | Sequence[str],
    config: ml_collections.ConfigDict,
    description: str = "reading images",
    visible: bool = True,
    skip_corrupt: bool | None = None,
) -> ImageSet:
    """Loads images as a run scores them.

    Args:
      location: see `data.load`.
      config: of the run.
      description: shown meanwhile.
      visible: whether it is shown.
      skip_corrupt: instead of what the configuration says.
    """
    with console.counting(description, "images", visible) as show:
        return data.load(
            location,
            data.Preprocessing.from_config(config, scoring=True),
            skip_corrupt=config.data.skip_corrupt
            if skip_corrupt is None
            else skip_corrupt,
            workers=config.data.workers,
            progress=show,
            data_dir=config.data.data_dir or None,
        )

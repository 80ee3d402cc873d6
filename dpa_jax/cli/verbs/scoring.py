"""What evaluate, score and score-slide have in common."""

import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from dpa_jax import data
from dpa_jax.config import has_random_weights


def load_run(folder: str | pathlib.Path, options) -> Any:
    """Loads a run as the options that every verb here has say."""
    from dpa_jax.scoring import loading

    return loading.load(
        folder,
        batch_size=options.batch,
        precision=options.precision,
        trust=options.trust,
        strict=getattr(options, "strict", False),  # score-slide has none
    )


def load_images(
    locations: str | Sequence[str], options, config, visible: bool = True
) -> data.ImageSet:
    """Loads images to score, and shows which were left out."""
    from dpa_jax.data import test_set

    images = test_set.read(
        locations, config, visible=visible, skip_corrupt=options.skip_corrupt
    )
    for skipped in images.skipped:
        print(f"left out {skipped.path}: {skipped.reason}", file=sys.stderr)
    return images


def warn_unlike(scorer, images: data.ImageSet) -> None:
    """Says how images are unlike those of training, or refuses them."""
    from dpa_jax.scoring import unlike

    for text in unlike.check(
        scorer.inputs, images, scorer.preprocessing, scorer.strict
    ):
        warn(f"unlike the training images: {text}")


def warn_random(config) -> None:
    """Says, wherever scores are shown, that they come from random features."""
    if has_random_weights(config):
        warn(
            f"the weights of {config.perceptual.backbone} are random "
            f"({config.perceptual.weights}): scores show that everything works, not "
            "how well the method does"
        )


def warn(text: str) -> None:
    """Shows a warning on stderr."""
    print(f"warning: {text}", file=sys.stderr)

"""What a run was trained on and as, so that a slide is scored in the same way."""

import hashlib
import json
import os
import pathlib
import re

import jax
import ml_collections
import numpy as np

from dpa_jax.backbones import frozen
from dpa_jax.config import is_perceptual
from dpa_jax.errors import DpaError
from dpa_jax.slides import stain
from dpa_jax.storage import checkpoints
from dpa_jax.weights import formats

_PATCHES = re.compile(r"tfds:(camelyon16(?:/x(\d+))?):")


def keep_stains(folder: pathlib.Path, config: ml_collections.ConfigDict) -> None:
    """Copies what the training patches' stains were normalised to into the workdir.

    Does nothing for a run on anything but a TFDS data set of `camelyon16`, nor for one
    whose patches were left in their own colours.
    """
    match = _PATCHES.match(config.data.train)
    if not match:
        return
    import tensorflow_datasets as tfds

    import dpa_jax.datasets  # noqa: F401  makes camelyon16 known to TFDS

    data_dir = os.path.expanduser(config.data.data_dir) or None
    builder = tfds.builder(match[1], data_dir=data_dir)
    target = stain.find(pathlib.Path(builder.data_dir))
    if target is not None:
        stain.save(target, folder / stain.FILE)


def magnification(config: ml_collections.ConfigDict) -> int:
    """Returns the magnification of a run's patches; 10, the paper's, if unknown."""
    match = _PATCHES.match(config.data.train)
    return int(match[2]) if match and match[2] else 10


def tile(folder: pathlib.Path, config: ml_collections.ConfigDict) -> int:
    """Returns the side in pixels of the tiles that a run scores.

    Raises:
      DpaError: the run takes no colour images.
    """
    if config.data.channels != 3:
        raise DpaError(
            f"{folder} was trained on grey images (data.channels 1); "
            "tiles of slides are in colour"
        )
    return config.data.resolution


def model(folder: pathlib.Path, config: ml_collections.ConfigDict, trained: int) -> str:
    """Names a run by all that its scores depend on, wherever its workdir lies.

    Args:
      folder: the workdir.
      config: of the run.
      trained: the step of the checkpoint that scores.

    Returns:
      The step, where the VGG19 weights are from, and a digest of these, networks, loss
      and feature statistics.
    """
    parts = {name: config[name].to_dict() for name in ("model", "perceptual", "loss")}
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    parameters = checkpoints.restore(folder, trained).arrays["parameters"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(parameters):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf, "<f4").tobytes())
    for name in (frozen.STATISTICS, frozen.FINGERPRINT):  # absent with plain L1
        if (folder / name).exists():
            digest.update(formats.file_sha256(folder / name).encode())
    vgg19 = config.perceptual.weights if is_perceptual(config) else "none"
    return f"step {trained}, VGG19 {vgg19}, sha256 {digest.hexdigest()[:16]}"

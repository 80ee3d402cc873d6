"""What a run's loss stands on: VGG19's weights and the features' statistics."""

import pathlib
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dpa_jax import config as config_lib
from dpa_jax import console, errors, json_files, statistics, vgg, workdir
from dpa_jax.data.image_set import ImageSet
from dpa_jax.ops.compute import Compute
from dpa_jax.stages import Stage
from dpa_jax.weights import files, formats, statistics_files

STATISTICS = "statistics.npz"
FINGERPRINT = "weights.json"


def layers_in_use(
    config: ml_collections.ConfigDict, plan: Iterable[Stage]
) -> dict[str, int]:
    """Returns the VGG19 layers of a run, each with the highest resolution it is at."""
    if not config_lib.uses_vgg(config):
        return {}
    layers = config_lib.perceptual_layers(config.perceptual.layers)
    return {
        name: stage.resolution
        for stage in sorted(plan, key=lambda stage: stage.resolution)
        for name, _ in layers[stage.resolution]
    }


def load_weights(
    config: ml_collections.ConfigDict, layers: Iterable[str]
) -> dict[str, dict[str, np.ndarray]]:
    """Loads VGG19 up to the deepest of `layers`, float32; empty if there is none."""
    layers = tuple(layers)
    if not layers:
        return {}
    weights = files.load_vgg19(config.perceptual.weights)
    last = vgg.deepest(layers)
    order = tuple(vgg.LAYERS)
    needed = order[: order.index(last) + 1]
    return {name: weights[name] for name in vgg.CONVOLUTIONS if name in needed}


def load_or_compute_statistics(
    config: ml_collections.ConfigDict,
    layers: dict[str, int],
    weights: files.Weights,
    images: ImageSet,
    folder: pathlib.Path,
    backend: str,
    visible: bool,
) -> dict[str, dict[str, np.ndarray]]:
    """Returns the statistics of the layers in use, and keeps them in the workdir.

    `perceptual.statistics=train` computes each layer's over the training images, at the
    highest resolution at which the run uses it.
    """
    path = folder / STATISTICS
    if path.exists():
        found = statistics_files.load(str(path))
        return statistics_files.select(found, layers, str(path))
    wanted = config.perceptual.statistics
    if not layers:
        return {}
    if wanted == "train":
        with console.counting("feature statistics", "images", visible) as show:
            found = statistics.feature_statistics(
                jax.device_put(weights),
                images,
                layers,
                backend=backend,
                progress=show,
            )
    else:
        found = statistics_files.load(wanted)
    source = "the training images" if wanted == "train" else wanted
    chosen = statistics_files.select(found, layers, source)
    statistics_files.save(path, chosen, {"source": source})
    return chosen


def share_statistics(folder: pathlib.Path, others: Iterable[pathlib.Path]) -> None:
    """Gives workdirs of the same images and weights the statistics of the first."""
    source = folder / STATISTICS
    for path in (other / STATISTICS for other in others):
        if source.exists() and not path.exists():
            with formats.replacing(path) as temporary:
                temporary.write_bytes(source.read_bytes())


def check_fingerprint(
    folder: pathlib.Path, config: ml_collections.ConfigDict, weights
) -> None:
    """Notes which VGG19 weights a run uses, or checks that they are the same.

    Raises:
      DpaError: the run was trained with others.
    """
    if not weights:
        return
    path = folder / FINGERPRINT
    found = formats.fingerprint(weights)
    if not path.exists():
        values = {"source": config.perceptual.weights, "sha256": found}
        workdir.write_json(path, values)
        return
    fields = {"source": str, "sha256": str}
    before = json_files.read(path, fields, workdir.REWRITTEN)
    if before["sha256"] != found:
        raise errors.DpaError(
            f"{config.perceptual.weights} holds other VGG19 weights than those that "
            f"{folder} was trained with ({before['source']}), by the checksum in "
            f"{path}; scores would mean nothing"
        )


def place_weights(weights, compute: Compute) -> vgg.Weights:
    """Returns VGG19's weights on the default device, arranged for its convolutions."""
    return vgg.prepare(cast(weights, compute.dtype), compute.backend)


def cast(tree, dtype):
    """Returns the tree on the default device, floats in `dtype`."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)

"""What a run's loss stands on: the backbone's weights, the features' statistics."""

import pathlib
from collections.abc import Collection, Iterable, Mapping

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dpa_jax import console, errors
from dpa_jax.backbones import base, statistics
from dpa_jax.config import is_perceptual, perceptual_layers
from dpa_jax.data.image_set import ImageSet
from dpa_jax.ops.compute import Compute
from dpa_jax.stages import Stage
from dpa_jax.storage import json_files, workdir
from dpa_jax.weights import files, formats, statistics_files

STATISTICS = "statistics.npz"
FINGERPRINT = "weights.json"


def layers_in_use(
    config: ml_collections.ConfigDict, plan: Iterable[Stage]
) -> dict[str, int]:
    """Returns the backbone's layers of a run, each with its highest resolution."""
    if not is_perceptual(config):
        return {}
    layers = perceptual_layers(config.perceptual.layers)
    return {
        name: stage.resolution
        for stage in sorted(plan, key=lambda stage: stage.resolution)
        for name, _ in layers[stage.resolution]
    }


def load_weights(
    config: ml_collections.ConfigDict, layers: Collection[str]
) -> base.Weights:
    """Loads what the layers in use need of the backbone; nothing if there is none.

    Raises:
      UsageError: a stage's images are too small for one of its layers.
      DpaError: the weights are not to be had.
    """
    if not layers:
        return {}
    backbone = base.named(config.perceptual.backbone)
    weights = {
        part: {name: np.asarray(array) for name, array in arrays.items()}
        for part, arrays in backbone.load(
            config.perceptual.weights, tuple(layers)
        ).items()
    }
    used = perceptual_layers(config.perceptual.layers)
    for resolution, terms in used.items():
        if config.stages.initial_resolution <= resolution <= config.data.resolution:
            names = [name for name, _ in terms]
            backbone.feature_shapes(weights, names, resolution)
    return weights


def check_present(
    config: ml_collections.ConfigDict, layers: Collection[str], folder: pathlib.Path
) -> None:
    """Checks that there are files of what a run needs, before anything takes time.

    Raises:
      DpaError: its weights, its statistics or both are not there; all are named.
    """
    given, known = config.perceptual, (folder / STATISTICS).exists()
    if not layers or given.statistics == "train" or known:
        return
    if given.weights == given.statistics == "imagenet":  # of vgg19, see validation
        weights, statistics = files.cached("vgg19"), files.cached_statistics()
        files.from_cache({"weights": weights, "statistics": statistics})
    statistics_files.find(given.statistics)


def load_or_compute_statistics(
    config: ml_collections.ConfigDict,
    layers: dict[str, int],
    weights: base.Weights,
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
        return select_statistics(config, layers, weights, found, str(path))
    wanted = config.perceptual.statistics
    if not layers:
        return {}
    if wanted == "train":
        with console.counting("feature statistics", "images", visible) as show:
            found = statistics.feature_statistics(
                base.named(config.perceptual.backbone),
                jax.device_put(weights),
                images,
                layers,
                backend=backend,
                progress=show,
            )
    else:
        found = statistics_files.load(wanted)
    source = "the training images" if wanted == "train" else wanted
    chosen = select_statistics(config, layers, weights, found, source)
    statistics_files.save(path, chosen, {"source": source})
    return chosen


def select_statistics(
    config: ml_collections.ConfigDict,
    layers: Mapping[str, int],
    weights: base.Weights,
    statistics: statistics_files.Statistics,
    source: str,
) -> statistics_files.Statistics:
    """Returns the statistics of the layers in use.

    Raises:
      DpaError: they lack a layer or are of another network; `source` is named.
    """
    chosen = statistics_files.select(statistics, layers, source)
    if not layers:
        return chosen
    backbone = base.named(config.perceptual.backbone)
    shapes = backbone.feature_shapes(weights, layers, config.data.resolution)
    for layer, (*_, channels) in shapes.items():
        if len(chosen[layer]["mean"]) != channels:
            raise errors.DpaError(
                f"{source} has statistics of {len(chosen[layer]['mean'])} channels of "
                f"{layer}, which has {channels} in {backbone.name}"
            )
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
    """Notes which weights a run's backbone has, or checks that they are the same.

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
            f"{config.perceptual.weights} holds other weights than those that "
            f"{folder} was trained with ({before['source']}), by the checksum in "
            f"{path}; scores would mean nothing"
        )


def place_weights(
    backbone: base.Backbone, weights: base.Weights, compute: Compute
) -> base.Weights:
    """Returns a backbone's weights on the default device, prepared for its backend."""
    return backbone.prepare(cast(weights, compute.dtype), compute.backend)


def cast(tree, dtype):
    """Returns the tree on the default device, floats in `dtype`."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)

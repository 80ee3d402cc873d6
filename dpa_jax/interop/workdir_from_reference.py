"""A published checkpoint as a workdir that `score` and `evaluate` use."""

import os
import pathlib

import jax

from dpa_jax import errors, models, stages, state, validation
from dpa_jax.backbones import frozen
from dpa_jax.config import default_config, updated
from dpa_jax.interop import reference_checkpoint
from dpa_jax.storage import checkpoints, workdir
from dpa_jax.weights import statistics_files


def import_checkpoint(
    path: str | os.PathLike,
    folder: str | os.PathLike,
    weights: str = "imagenet",
    statistics: str = "imagenet",
) -> list[str]:
    """Makes a workdir from a checkpoint of the published code.

    Args:
      path: `anomaly_detection.tar`, of the last stabilization.
      folder: the workdir; new or empty.
      weights: VGG19's: `imagenet`, a file or `random:SEED`.
      statistics: of the features: `imagenet` or a file.

    Returns:
      What of its configuration has no counterpart here, a line each.

    Raises:
      DpaError: the checkpoint, the weights or the statistics cannot be used, something
        cannot be mapped (it is named), or the workdir is taken.
    """
    overrides, notes, parameters, info = reference_checkpoint.read_checkpoint(path)
    config = updated(default_config(), overrides, str(path))
    config.perceptual.weights = weights
    config.perceptual.statistics = statistics
    config = validation.validate(config)
    plan = stages.schedule(config)
    last = plan[-1]
    found = f"{info['resolution']}_{info['stage']}"
    if found != last.name:
        raise errors.DpaError(
            f"{path} was saved in {found}; only a checkpoint of the last stage "
            f"({last.name}) gives the anomaly scores of its configuration"
        )
    architecture = models.Architecture.from_config(config)
    expected = jax.eval_shape(
        lambda: state.initialize(jax.random.key(0), architecture, [last])
    )
    reference_checkpoint.check_shapes(parameters, expected)

    layers = frozen.layers_in_use(config, plan)
    loaded = frozen.load_weights(config, layers)
    chosen = frozen.select_statistics(
        config,
        layers,
        loaded,
        statistics_files.load(statistics) if layers else {},
        statistics,
    )
    folder = pathlib.Path(folder)
    if checkpoints.latest(folder) is not None:
        raise errors.DpaError(f"{folder} holds a trained run already")
    workdir.make(folder)
    workdir.claim(folder, config)
    frozen.check_fingerprint(folder, config, loaded)
    if layers:
        statistics_files.save(
            folder / frozen.STATISTICS, chosen, {"source": statistics}
        )
    workdir.write_json(folder / "environment.json", workdir.environment(config.seed))
    with checkpoints.Checkpoints(folder) as kept:
        kept.save(last.end, {"parameters": parameters}, {})
    return notes

"""A trained run, loaded from its workdir as a function of images."""

import os
import pathlib

from dpa_jax import errors, stages
from dpa_jax.backbones import frozen
from dpa_jax.data import inputs
from dpa_jax.devices.platform import Platform
from dpa_jax.scoring import calibration
from dpa_jax.scoring.scorer import Scorer
from dpa_jax.storage import checkpoints
from dpa_jax.storage.workdir import MEMBERS, check_extensions, read_config
from dpa_jax.training import early_stopping
from dpa_jax.weights import statistics_files


def load(
    workdir: str | os.PathLike,
    *,
    batch_size: int = 64,
    precision: str = "float32",
    trust: bool = False,
    strict: bool = False,
    platform: Platform | None = None,
) -> Scorer:
    """Loads a trained run, or the last checkpoint of one that is still training.

    Of a run that early stopping ended this is the best step, not the last.

    Args:
      workdir: as `train` leaves it.
      batch_size: images at a time.
      precision: `float32`, `tensorfloat32` or `bfloat16`; whatever it was trained in.
      trust: whether to import the functions outside of this package that the run
        names (`module:function`): they are programs, of whoever made the workdir.
      strict: whether images unlike those of training are an error, not a warning.
      platform: the machine; None takes the one at hand.

    Raises:
      DpaError: there is no trained run, a file of it is damaged, its backbone's weights
        are not to be had or are others than it was trained with, or it names functions
        that are not trusted or not there.
    """
    folder = pathlib.Path(workdir)
    config = read_config(folder)
    if config.population.seeds > 1:
        raise errors.DpaError(
            f"{folder} holds {config.population.seeds} runs; give one of them, such as "
            f"{folder / MEMBERS / '0'}"
        )
    check_extensions(folder, config, trust)
    stopped = early_stopping.result(folder)
    trained = stopped.trained if stopped else checkpoints.latest(folder)
    if trained is None:
        raise errors.DpaError(f"{folder} has no checkpoint yet; train it first")
    parameters = checkpoints.restore(folder, trained).arrays["parameters"]
    plan = stages.schedule(config)
    stage = next((s for s in plan if s.start < trained <= s.end), None)
    if stage is None:
        raise errors.DpaError(
            f"{folder} has a checkpoint of step {trained:,}, but its config.json ends "
            f"at {plan[-1].end:,}: restore the config that it was trained with"
        )
    layers = frozen.layers_in_use(config, plan)
    weights = frozen.load_weights(config, layers)
    frozen.check_fingerprint(folder, config, weights)
    statistics = {}
    if layers:
        path = str(folder / frozen.STATISTICS)
        found = statistics_files.load(path)
        statistics = frozen.select_statistics(config, layers, weights, found, path)
    return Scorer(
        config,
        stage,
        trained,
        parameters,
        weights,
        statistics,
        batch_size=batch_size,
        precision=precision,
        platform=platform or Platform.here(),
        calibration=calibration.find(folder),
        workdir=folder,
        inputs=inputs.find(folder),
        strict=strict,
    )

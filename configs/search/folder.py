r"""A small search for one's own images.

    dpa-jax tune --config=configs/folder.py --search=configs/search/folder.py \
        --workdir=study --config.data.train=train/normal \
        --anomalies-from=validation/abnormal

The anomalies must not be those that the final model is tested on: say what these are
(--config.data.test_normal=..., --config.data.test_abnormal=...) and it is checked.

8 trials x 3 folds are 24 runs; with `--config=configs/folder.py:32`, 8 trials x 2
folds, each of 3,600 steps at most. On two CPU cores, with 1,100 images and runs of 500
steps, batch 32, it took 17 minutes: `--config.stages.transition_steps=50
--config.stages.stabilization_steps=50 --config.stages.final_steps=300
--search.early_stopping.every=50`.
"""

# of the last stage, by its resolution: the usual layer of half of it, and its own
LAYERS = {8: ("r11", "r12"), 16: ("r12", "r22"), 32: ("r22", "r32"), 64: ("r32", "r42")}


def get_options(config):
    """Returns how the search is run, and the values of a grid."""
    small = config.data.resolution <= 32
    return {
        "trials": 8,
        "folds": 2 if small else 3,
        "early_stopping": {"every": 200 if small else 500},
        "grid": {
            "width": (8, 16, 32),
            "layer": _layers(config),
            "learning_rate": (2e-4, 9e-4, 4e-3),
        },
    }


def suggest(trial, config):
    """Sets learning rate, width and the feature layer of the last stage."""
    config.optimizer.learning_rate = trial.suggest_float(
        "learning_rate", 2e-4, 4e-3, log=True
    )
    width = trial.suggest_categorical("width", (8, 16, 32))
    config.model.latent_channels = width
    config.model.encoder_channels = config.model.decoder_channels = (width,)
    layer = trial.suggest_categorical("layer", _layers(config))
    *before, _ = config.perceptual.layers.split()
    layers = [*before, f"{config.data.resolution}:{layer}"]
    config.perceptual.layers = " ".join(layers)


def _layers(config):
    return LAYERS.get(config.data.resolution, ("r42", "r52"))

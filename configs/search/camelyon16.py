r"""The hyper-parameters of Camelyon16, chosen with patches of a few tumour slides.

    dpa-jax tune --config=configs/camelyon16.py:wo_pg \
        --search=configs/search/camelyon16.py --workdir=study \
        --config.data.data_dir=DATA --config.stages.final_steps=80000 \
        --search.anomalies.where='slide=tumor_090|tumor_094|tumor_101|tumor_110'

The paper chooses with 4 tumour slides; name four of the training slides, or draw from
all of them, which is more variety than the paper allowed itself. Folds are split by
slide. The ranges are ours, around what was published; final_steps is the most that a
fold may take: early stopping ends it, and best.json has the folds' mean. With pg, which
grows from 16 pixels, the latent is 8x8.

Cost: 20 trials x 3 folds are 60 runs, each about as long as the run itself: one of
wo_pg is 4.4 M images at 64 pixels.
"""


def get_options(config):
    """Returns how the search is run, and the values of a grid."""
    return {
        "anomalies": {
            "source": "tfds:camelyon16/x10:validation",
            "count": 200,
            "kind": "slide",
        },
        "grid": {
            "channels": (4, 16, 64),
            "side": _sides(config),
            "layer": ("r32", "r42"),
            "learning_rate": (1e-4, 3e-4, 1e-3, 4e-3),
        },
    }


def suggest(trial, config):
    """Sets learning rate, latent and the feature layer of the last stage."""
    config.optimizer.learning_rate = trial.suggest_float(
        "learning_rate", 1e-4, 4e-3, log=True
    )
    channels = trial.suggest_categorical("channels", (4, 16, 64))
    side = trial.suggest_categorical("side", _sides(config))
    blocks = {8: 4, 16: 3}[side]  # from 64 pixels down to the latent
    config.model.latent_resolution = side
    config.model.latent_channels = channels
    config.model.encoder_channels = (channels,) * blocks
    config.model.decoder_channels = (channels,) * blocks
    *before, _ = config.perceptual.layers.split()
    layer = trial.suggest_categorical("layer", ("r32", "r42"))
    config.perceptual.layers = " ".join([*before, f"64:{layer}"])


def _sides(config):
    growing = len(config.perceptual.layers.split()) > 1
    return (8,) if growing else (8, 16)

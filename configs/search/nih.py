r"""The hyper-parameters of NIH ChestX-ray14, chosen with 20 images of Infiltration.

    dpa-jax tune --config=configs/nih.py:subset,wo_pg --search=configs/search/nih.py \
        --workdir=study --config.data.data_dir=DATA \
        --config.stages.final_steps=60000

The paper chooses latent size, channels, learning rate, batch, feature layer and
preprocessing by 3 folds and one kind of anomaly; these are the same but for the
preprocessing, which is fixed when the images are prepared. The ranges are ours, around
what was published. final_steps is the most that a fold may take: early stopping ends
it, and best.json has the folds' mean.

The anomalies come from the validation part of what the config trains on, and the layers
of earlier stages are those of the config, whatever its protocol and experiment.

Cost: 30 trials x 3 folds are 90 runs, each about as long as the run itself: one of
wo_pg is some 2 M images at 64 pixels; `--search.sampler=grid` has 72 trials.
"""


def get_options(config):
    """Returns how the search is run, and the values of a grid."""
    return {
        "trials": 30,
        "anomalies": {
            "source": config.data.train.rpartition(":")[0] + ":validation",
            # the subset's lists call some images with a finding normal
            "where": "findings=Infiltration & class=abnormal",
            "kind": "findings",
        },
        "grid": {
            "batch_size": (64, 128),
            "width": (16, 32, 64),
            "layer": ("r32", "r42", "r32+r42"),
            "learning_rate": (1e-4, 3e-4, 1e-3, 4e-3),
        },
    }


def suggest(trial, config):
    """Sets learning rate, width, batch and the feature layer of the last stage."""
    config.optimizer.learning_rate = trial.suggest_float(
        "learning_rate", 1e-4, 4e-3, log=True
    )
    config.batch_size = trial.suggest_categorical("batch_size", (64, 128))
    width = trial.suggest_categorical("width", (16, 32, 64))
    config.model.latent_channels = width
    config.model.encoder_channels = config.model.decoder_channels = (width,) * 5
    *before, _ = config.perceptual.layers.split()
    layer = trial.suggest_categorical("layer", ("r32", "r42", "r32+r42"))
    config.perceptual.layers = " ".join([*before, f"64:{layer}"])

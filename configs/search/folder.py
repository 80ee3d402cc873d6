r"""A small search for one's own images, at 64 or 32 pixels.

    dpa-jax tune --config=configs/folder.py --search=configs/search/folder.py \
        --workdir=study --config.data.train=train/normal \
        --anomalies-from=validation/abnormal

The anomalies must not be those that the final model is tested on: say what these are
(--config.data.test_normal=..., --config.data.test_abnormal=...) and it is checked.

8 trials x 3 folds are 24 runs. For `configs/folder.py:32` give
`configs/search/folder.py:32`: 8 trials x 2 folds, each of 3,600 steps at most. On two
CPU cores, with 1,100 images and runs of 500 steps, batch 32, it took 17 minutes:
`--config.stages.transition_steps=50 --config.stages.stabilization_steps=50
--config.stages.final_steps=300 --search.early_stopping.every=50`.
"""

from dpa_jax import errors
from dpa_jax.tuning.search import default_search


def get_config(resolution: str = "64"):
    """Returns the search.

    Args:
      resolution: `64` or `32`, that of `configs/folder.py`.
    """
    search = default_search()
    search.trials = 8
    if resolution == "64":
        blocks, layers = 5, "8:r12 16:r22 32:r32 64:{}"
        search.early_stopping.every = 500
    elif resolution == "32":
        blocks, layers = 4, "8:r12 16:r22 32:{}"
        search.folds = 2
        search.early_stopping.every = 200
    else:
        raise errors.UsageError(
            f"configs/search/folder.py takes 64 or 32, not {resolution!r}"
        )
    search.space = {
        "learning_rate": {
            "field": "optimizer.learning_rate",
            "low": 2e-4,
            "high": 4e-3,
            "log": True,
            "points": 3,
        },
        "width": {
            "choices": {
                f"w{width}": {
                    "model": {
                        "latent_channels": width,
                        "encoder_channels": (width,) * blocks,
                        "decoder_channels": (width,) * blocks,
                    }
                }
                for width in (8, 16, 32)
            }
        },
        "layer": {
            "choices": {
                layer: {"perceptual": {"layers": layers.format(layer)}}
                for layer in (("r32", "r42") if blocks == 5 else ("r22", "r32"))
            }
        },
    }
    return search

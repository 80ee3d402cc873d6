r"""The hyper-parameters of Camelyon16, chosen with patches of a few tumour slides.

    dpa-jax tune --config=configs/camelyon16.py:wo_pg \
        --search=configs/search/camelyon16.py --workdir=study \
        --config.data.data_dir=DATA --config.stages.final_steps=80000 \
        --search.anomalies.where='slide=tumor_090|tumor_094|tumor_101|tumor_110'

The paper chooses with 4 tumour slides; name four of the training slides, or draw from
all of them, which is more variety than the paper allowed itself. Folds are split by
slide. The ranges are ours, around what was published; final_steps is the most that a
fold may take: early stopping ends it, and best.json has the folds' mean.

The argument is wo_pg (default) or pg, as in configs/camelyon16.py.

Cost: 20 trials x 3 folds are 60 runs, each about as long as the run itself: one of
wo_pg is 4.4 M images at 64 pixels.
"""

from dpa_jax import errors
from dpa_jax.tuning.search import default_search


def get_config(experiment: str = "wo_pg"):
    """Returns the search.

    Args:
      experiment: `wo_pg` or `pg`.
    """
    if experiment not in ("wo_pg", "pg"):
        raise errors.UsageError(
            f"configs/search/camelyon16.py takes wo_pg or pg, not {experiment!r}"
        )
    search = default_search()
    search.anomalies.source = "tfds:camelyon16/x10:validation"
    search.anomalies.count = 200
    search.anomalies.kind = "slide"
    before = "16:r32 32:r32 " if experiment == "pg" else ""
    search.space = {
        "learning_rate": {
            "field": "optimizer.learning_rate",
            "low": 1e-4,
            "high": 4e-3,
            "log": True,
            "points": 4,
        },
        "latent": {
            "choices": {
                f"{side}x{side}x{channels}": _latent(side, channels)
                for side in (8, 16)
                for channels in (4, 16, 64)
                # 16 pixels is where growing begins: the latent must be below
                if experiment == "wo_pg" or side < 16
            }
        },
        "layer": {
            "choices": {
                layer: {"perceptual": {"layers": f"{before}64:{layer}"}}
                for layer in ("r32", "r42")
            }
        },
    }
    return search


def _latent(side: int, channels: int):
    """Returns the networks from 64 pixels down to a latent of this side."""
    blocks = {8: 4, 16: 3}[side]
    return {
        "model": {
            "latent_resolution": side,
            "latent_channels": channels,
            "encoder_channels": (channels,) * blocks,
            "decoder_channels": (channels,) * blocks,
        }
    }

r"""The hyper-parameters of NIH ChestX-ray14, chosen with 20 images of Infiltration.

    dpa-jax tune --config=configs/nih.py:subset,wo_pg --search=configs/search/nih.py \
        --workdir=study --config.data.data_dir=DATA \
        --config.stages.final_steps=60000

The paper chooses latent size, channels, learning rate, batch, feature layer and
preprocessing by 3 folds and one kind of anomaly; these are the same but for the
preprocessing, which is fixed when the images are prepared. The ranges are ours, around
what was published. final_steps is the most that a fold may take: early stopping ends
it, and best.json has the folds' mean.

The argument is PROTOCOL,EXPERIMENT as in configs/nih.py: the protocol says where the
anomalies come from, pg or wo_pg how many stages there are layers for.

Cost: 30 trials x 3 folds are 90 runs, each about as long as the run itself: one of
wo_pg is some 2 M images at 64 pixels. `--search.population=4` trains four trials that
differ in the learning rate alone together; `--search.sampler=grid` has 72 trials.
"""

from dpa_jax import errors
from dpa_jax.tuning.search import default_search

PROTOCOLS = ("subset", "pa", "ap")
EXPERIMENTS = ("wo_pg", "pg")


def get_config(argument: str = "subset,wo_pg"):
    """Returns the search.

    Args:
      argument: `PROTOCOL,EXPERIMENT`.
    """
    protocol, _, experiment = argument.partition(",")
    if protocol not in PROTOCOLS or experiment not in EXPERIMENTS:
        raise errors.UsageError(
            f"configs/search/nih.py:{argument}: write PROTOCOL,EXPERIMENT with one of "
            f"{', '.join(PROTOCOLS)} and one of {', '.join(EXPERIMENTS)}"
        )
    search = default_search()
    search.trials = 30
    name = f"{protocol}_64" + "_equalized" * (protocol == "ap")
    search.anomalies.source = f"tfds:nih_chest_xray14/{name}:validation"
    search.anomalies.where = "findings=Infiltration"
    search.anomalies.kind = "findings"
    before = "8:r12 16:r22 32:r32 " if experiment == "pg" else ""
    search.space = {
        "learning_rate": {
            "field": "optimizer.learning_rate",
            "low": 1e-4,
            "high": 4e-3,
            "log": True,
            "points": 4,
        },
        "width": {"choices": {f"w{n}": _width(n) for n in (16, 32, 64)}},
        "layer": {
            "choices": {
                layer: {"perceptual": {"layers": f"{before}64:{layer}"}}
                for layer in ("r32", "r42", "r32+r42")
            }
        },
        "batch_size": {"field": "batch_size", "values": (64, 128)},
    }
    return search


def _width(channels: int):
    return {
        "model": {
            "latent_channels": channels,
            "encoder_channels": (channels,) * 5,
            "decoder_channels": (channels,) * 5,
        }
    }

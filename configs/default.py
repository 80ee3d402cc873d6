"""The NIH subset run with progressive growing, field by field, without its data.

    dpa-jax train --config=configs/default.py --workdir=run --config.data.train=DIR

Other configs start from it. `dpa_jax/config.py` describes every field.
"""

from dpa_jax.config import default_config


def get_config():
    """Returns the default configuration."""
    return default_config()

"""Deep perceptual autoencoders in JAX and Flax.

`train(config, workdir)` trains a run, `load(workdir)` gives a trained one as a function
of images, `score` and `evaluate` apply one in a single call, `calibrate` gives its
scores p-values, and `export` writes it as a file for other programs. All are imported
when first used, so that `import dpa_jax` is quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpa_jax.config import default_config
    from dpa_jax.exporting.export import export
    from dpa_jax.scoring.loading import load
    from dpa_jax.scoring.runs import calibrate, evaluate, score
    from dpa_jax.training import train

__version__ = "0.1.0"
__all__ = [
    "calibrate",
    "default_config",
    "evaluate",
    "export",
    "load",
    "score",
    "train",
]

_HOMES = {
    "calibrate": "scoring.runs",
    "default_config": "config",
    "evaluate": "scoring.runs",
    "export": "exporting.export",
    "load": "scoring.loading",
    "score": "scoring.runs",
    "train": "training",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dpa_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"dpa_jax.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

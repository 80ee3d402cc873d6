"""Choosing hyper-parameters with a few known anomalies (method, section 6)."""

from dpa_jax import errors

try:
    import optuna as optuna
except ImportError:
    raise errors.DpaError("tune needs Optuna: pip install 'dpa_jax[tune]'") from None

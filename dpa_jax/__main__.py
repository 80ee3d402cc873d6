"""`python -m dpa_jax` is the `dpa-jax` program."""

from dpa_jax import cli

cli.entry()

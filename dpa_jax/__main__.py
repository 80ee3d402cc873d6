"""`python -m dpa_jax` is the `dpa-jax` program."""

from dpa_jax.cli import main

main.entry()

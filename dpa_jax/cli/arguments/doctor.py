"""The arguments of doctor."""

from dpa_jax.cli.arguments import options


def add_verbs(add: options.Add) -> None:
    """Adds doctor."""
    add(
        "doctor",
        "show versions, devices, the cache and what is installed",
        "  dpa-jax doctor",
    )

"""The arguments of import-reference."""

from dpa_jax.cli.arguments import options


def add_verbs(add: options.Add) -> None:
    """Adds import-reference."""
    reference = add(
        "import-reference",
        "turn a checkpoint of the published PyTorch code into a workdir",
        "  dpa-jax import-reference anomaly_detection.tar --workdir=run",
        doc="score and evaluate then use it. Needs the torch extra.",
    )
    reference.add_argument("checkpoint", metavar="CHECKPOINT.tar")
    options.workdir(reference)
    reference.add_argument(
        "--weights", default="imagenet", metavar="imagenet|FILE|random:SEED"
    )
    reference.add_argument("--stats", default="imagenet", metavar="imagenet|FILE")

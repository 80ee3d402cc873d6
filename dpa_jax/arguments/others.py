"""The arguments of import-reference and doctor."""

from dpa_jax.arguments import shared


def add_verbs(add: shared.Add) -> None:
    """Adds import-reference and doctor."""
    reference = add(
        "import-reference",
        "turn a checkpoint of the published PyTorch code into a workdir",
        "  dpa-jax import-reference anomaly_detection.tar --workdir=run",
        doc="score and evaluate then use it. Needs the torch extra.",
    )
    reference.add_argument("checkpoint", metavar="CHECKPOINT.tar")
    shared.workdir(reference)
    reference.add_argument(
        "--weights", default="imagenet", metavar="imagenet|FILE|random:SEED"
    )
    reference.add_argument("--stats", default="imagenet", metavar="imagenet|FILE")
    add(
        "doctor",
        "show versions, devices, the cache and what is installed",
        "  dpa-jax doctor",
    )

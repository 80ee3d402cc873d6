"""What import-reference does."""

import argparse
import sys


def import_reference(options: argparse.Namespace) -> None:
    """Turns a checkpoint of the published code into a workdir."""
    from dpa_jax.interop import workdir_from_reference

    for note in workdir_from_reference.import_checkpoint(
        options.checkpoint, options.workdir, options.weights, options.stats
    ):
        print(f"note: {note}", file=sys.stderr)
    print(
        f"{options.workdir} is ready: dpa-jax score --workdir={options.workdir} IMAGES"
    )

"""What report does."""

import argparse
import pathlib

from dpa_jax import errors


def report(options: argparse.Namespace) -> None:
    """Writes the report of a run as one page."""
    from dpa_jax.reporting import collect, page

    evaluation = collect.choose(options.workdir, options.evaluation)
    folder = evaluation or pathlib.Path(options.workdir)
    out = pathlib.Path(options.out or folder / page.FILE)
    if options.out and out.is_file() and not options.overwrite:
        raise errors.DpaError(
            f"{out} is already there; give another --out, or --overwrite"
        )
    page.write(options.workdir, evaluation, out)
    print(f"open {out} in a browser")

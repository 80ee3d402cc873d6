"""What report does."""

import argparse
import pathlib
import sys

from dpa_jax.weights import formats


def report(options: argparse.Namespace) -> None:
    """Writes the report of a run as one page."""
    from dpa_jax.reporting import evaluation_files, page

    evaluation = evaluation_files.choose(options.workdir, options.evaluation)
    folder = evaluation or pathlib.Path(options.workdir)
    out = pathlib.Path(options.out or folder / page.FILE)
    is_stream = formats.is_stream(out)
    if options.out:
        formats.check_free(out, options.overwrite)
    page.write(options.workdir, evaluation, out)
    to = sys.stderr if is_stream else sys.stdout
    print(f"report in {out}: open it in a browser", file=to)

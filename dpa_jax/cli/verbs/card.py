"""What card does."""

import argparse
import pathlib
import sys

from dpa_jax.weights import formats


def card(options: argparse.Namespace) -> None:
    """Writes the model card of a run."""
    from dpa_jax.reporting import card, evaluation_files

    out = pathlib.Path(options.out or pathlib.Path(options.workdir) / card.FILE)
    is_stream = formats.is_stream(out)
    formats.check_free(out, options.overwrite)
    texts = card.read_texts(options.about) if options.about else {}
    given = {name: getattr(options, name) for name in (*card.TEXTS, *card.OPTIONAL)}
    texts |= {name: text for name, text in given.items() if text is not None}
    evaluation = evaluation_files.choose(options.workdir, options.evaluation)
    card.write(options.workdir, evaluation, texts, out)
    print(f"model card in {out}", file=sys.stderr if is_stream else sys.stdout)

"""What card does."""

import argparse
import pathlib

from dpa_jax import errors


def card(options: argparse.Namespace) -> None:
    """Writes the model card of a run."""
    from dpa_jax.reporting import card, collect

    out = pathlib.Path(options.out or pathlib.Path(options.workdir) / card.FILE)
    if out.is_file() and not options.overwrite:
        raise errors.DpaError(
            f"{out} is already there; give another --out, or --overwrite"
        )
    texts = card.read_texts(options.about) if options.about else {}
    given = {name: getattr(options, name) for name in (*card.TEXTS, *card.OPTIONAL)}
    texts |= {name: text for name, text in given.items() if text is not None}
    evaluation = collect.choose(options.workdir, options.evaluation)
    card.write(options.workdir, evaluation, texts, out)
    print(f"model card in {out}")

"""Parses the command line. What each verb takes is in `arguments`."""

import argparse
from collections.abc import Sequence
from typing import Any

import dpa_jax
from dpa_jax.cli.arguments import (
    calibrate,
    card,
    compiling,
    doctor,
    export,
    interop,
    preparing,
    report,
    scoring,
    training,
    weights,
)

_FIELDS = {  # of configurations, which argparse does not know
    "train": ("--config.",),
    "compile": ("--config.",),
    "tune": ("--config.", "--search."),
}


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the whole command line."""
    whole = argparse.ArgumentParser(
        prog="dpa-jax",
        description="Deep perceptual autoencoders: find what is abnormal in medical "
        "images after training on normal ones only.",
        epilog="Start with: dpa-jax demo",
        allow_abbrev=False,
    )
    whole.add_argument(
        "--debug", action="store_true", help="show the traceback of an error"
    )
    whole.add_argument(
        "--version", action="version", version=f"dpa_jax {dpa_jax.__version__}"
    )
    verbs = whole.add_subparsers(dest="verb", metavar="VERB", required=True)

    def add(
        name: str, summary: str, example: str, under: Any = verbs, doc: str = ""
    ) -> argparse.ArgumentParser:
        made = under.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}. {doc.strip()}",
            epilog=f"example:\n{example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        made.add_argument(
            "--debug",
            action="store_true",
            default=argparse.SUPPRESS,
            help="show the traceback of an error",
        )
        return made

    families = (
        *(training, compiling, scoring, calibrate, report, card, export),
        *(preparing, weights, interop, doctor),
    )
    for family in families:
        family.add_verbs(add)
    return whole


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Returns the options of a command line.

    Raises:
      SystemExit: after --help, --version and, with code 2, wrong usage.
    """
    whole = parser()
    options, left = whole.parse_known_args(arguments)
    fields = _FIELDS.get(options.verb, ())
    strange = [a for a in left if not a.startswith(fields)]
    if strange:
        whole.error(
            f"unrecognized arguments: {' '.join(strange)} "
            "(config fields are written --config.NAME=VALUE)"
        )
    options.overrides = [a for a in left if a.startswith("--config.")]
    options.search_overrides = [a for a in left if a.startswith("--search.")]
    return options

"""The command line: parses and calls.

The arguments of the verbs are in `arguments`, what the verbs do is in `verbs`. Only
what parsing needs is imported here, so that --help answers at once.
"""

import argparse
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any

import dpa_jax
from dpa_jax import errors
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dpa-jax",
        description="Deep perceptual autoencoders: find what is abnormal in medical "
        "images after training on normal ones only.",
        epilog="Start with: dpa-jax demo",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--debug", action="store_true", help="show the traceback of an error"
    )
    parser.add_argument(
        "--version", action="version", version=f"dpa_jax {dpa_jax.__version__}"
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

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
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
      arguments: without the program's name; None takes the process's own.

    Returns:
      0 on success, 1 when the work failed, 2 for wrong usage.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    options, left = parser.parse_known_args(arguments)
    taken = {
        "train": ("--config.",),
        "compile": ("--config.",),
        "tune": ("--config.", "--search."),
    }
    fields = taken.get(options.verb, ())
    strange = [a for a in left if not a.startswith(fields)]
    if strange:
        parser.error(
            f"unrecognized arguments: {' '.join(strange)} "
            "(config fields are written --config.NAME=VALUE)"
        )
    options.overrides = [a for a in left if a.startswith("--config.")]
    options.search_overrides = [a for a in left if a.startswith("--search.")]
    try:
        from dpa_jax.cli import verbs

        verbs.run(options)
    except errors.DpaError as error:
        if options.debug:
            raise
        print(f"dpa-jax: {error}", file=sys.stderr)
        return 2 if isinstance(error, errors.UsageError) else 1
    except OSError as error:
        if options.debug:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"dpa-jax: {where}{error.strerror or error}", file=sys.stderr)
        return 1
    except errors.Interrupted as stopped:
        print(f"dpa-jax: {stopped}", file=sys.stderr)
        return 128 + stopped.signal
    except KeyboardInterrupt:
        resumes = options.verb in (
            *("demo", "train", "tune", "prepare", "score-slide", "weights"),
        )
        hint = "; the same command goes on from what was saved" if resumes else ""
        print(f"dpa-jax: stopped{hint}", file=sys.stderr)
        return 130
    return 0


def insist_on_interrupts() -> None:
    """Raises a KeyboardInterrupt again that Python has dropped, so that Ctrl-C works.

    Python drops those that meet a destructor or a callback of its garbage collector, of
    which JAX has one: of some ten while training starts, one.
    """
    usual, main_thread = sys.unraisablehook, threading.get_ident()

    def hook(unraisable) -> None:
        if unraisable.exc_type is KeyboardInterrupt:
            again = (main_thread, signal.SIGINT)
            threading.Timer(0.05, signal.pthread_kill, again).start()
        else:
            usual(unraisable)

    sys.unraisablehook = hook


def entry() -> None:
    """Is the `dpa-jax` program."""
    insist_on_interrupts()
    code = main()
    if code in (1, 2):
        from dpa_jax.devices import processes

        processes.leave(code)
    sys.exit(code)

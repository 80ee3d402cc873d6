"""Arguments that several verbs take, and the numbers that arguments hold."""

import argparse
from collections.abc import Callable

# adds a verb: its name, summary, example, then what it is under and more words on it
Add = Callable[..., argparse.ArgumentParser]


def positive(text: str) -> int:
    """Reads a whole number of at least 1."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a whole number of at least 1"
        )
    return int(text)


def count(text: str) -> int:
    """Reads a whole number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a whole number of at least 0"
        )
    return int(text)


def share(text: str) -> float:
    """Reads a number between 0 and 1."""
    try:
        if 0 < float(text) < 1:
            return float(text)
    except ValueError:
        pass  # the same message
    raise argparse.ArgumentTypeError(f"{text!r} is not a number between 0 and 1")


def counts(text: str) -> list[int]:
    """Reads whole numbers of at least 0 that commas part."""
    return [count(part) for part in text.split(",")]


def workdir(parser: argparse.ArgumentParser) -> None:
    """Adds --workdir, of a run."""
    parser.add_argument("--workdir", required=True, metavar="DIR", help="of the run")


def evaluation(parser: argparse.ArgumentParser) -> None:
    """Adds --evaluation, of a run."""
    parser.add_argument(
        "--evaluation",
        metavar="NAME",
        help="of the run's evaluations, or a folder that holds one (default: the "
        "newest)",
    )


def mpp(parser: argparse.ArgumentParser) -> None:
    """Adds --mpp, of slides."""
    parser.add_argument(
        "--mpp",
        type=float,
        help="micrometres per level-0 pixel, instead of what slides say",
    )

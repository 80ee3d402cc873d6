"""Attacks on runs and prepared data sets at random, each of which must be survived.

A small run that stands halfway is copied and attacked: killed with SIGKILL, stopped and
continued, on a disk that fills up or turns read-only, under a clock that jumps, or with
a bit flipped or the end cut off in one of its files; likewise the files of a prepared
data set. Then the same command follows. It is survived if the run ends in the bits of
the one that was left alone, or stops with a message that names the file and, once that
is put right, goes on to the same bits; and if no other file has suffered. Attacks,
moments and places follow from the seed, but for when signals meet a process.
"""

import collections
import pathlib
import random
import tempfile
import time
from typing import Any

from benchmarks import measure
from benchmarks.chaos_attacks import ATTACKS
from benchmarks.chaos_target import Lost, Target
from dpa_jax import errors

OUTCOMES = ("same_bits", "refused", "lost")
COLUMNS = {
    "attack": "s",
    "tried": "d",
    "same_bits": "d same bits",
    "refused": "d refused, then same bits",
    "lost": "d",
    "seconds": ".1f s each",
}


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; see `measure.main`."""
    return measure.main("chaos", run, argv)


def run(argv: list[str]) -> None:
    """Attacks as long or as often as the arguments say, prints and writes the table.

    Raises:
      DpaError: something was lost; each case is named with its seed.
    """
    parser = measure.arguments("chaos", __doc__)
    add = parser.add_argument
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--minutes", type=float, help="begin attacks for so long")
    length.add_argument("--attacks", type=int, help="make so many")
    add(
        "--only",
        default="all",
        help=f"all, or some of {','.join(ATTACKS)}",
    )
    add("--seed", type=int, default=0, help="of attacks, moments and places")
    args = parser.parse_args(argv)
    names = measure.one_of("--only", args.only, list(ATTACKS))
    print(f"seed {args.seed}")
    counts = {name: collections.Counter[str]() for name in names}
    seconds = dict.fromkeys(names, 0.0)
    losses: list[str] = []
    begun, number = time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="dpa_jax_chaos_") as folder:
        target = Target(pathlib.Path(folder))
        while (
            number < args.attacks
            if args.attacks is not None
            else time.monotonic() - begun < 60 * args.minutes
        ):
            name = names[number % len(names)]
            # each attack can be made again alone, whatever came before it
            chance = random.Random(f"{args.seed} {number}")
            start = time.monotonic()
            outcome, what = attempt(name, target, chance)
            counts[name][outcome] += 1
            seconds[name] += time.monotonic() - start
            if outcome == "lost":
                losses.append(f"attack {number} of seed {args.seed}, {name}: {what}")
                print(losses[-1], flush=True)
            number += 1
    rows = [_row(name, counts[name], seconds[name]) for name in names if counts[name]]
    measure.show(rows, COLUMNS)
    measure.write("chaos", args, argv, rows, losses=losses)
    if losses:
        raise errors.DpaError(f"{len(losses)} of {number} attacks were not survived")


def _row(
    name: str, counted: collections.Counter[str], seconds: float
) -> dict[str, Any]:
    tried = counted.total()
    outcomes = {outcome: counted[outcome] for outcome in OUTCOMES}
    return {"attack": name, "tried": tried, **outcomes, "seconds": seconds / tried}


def attempt(name: str, target: Target, chance: random.Random) -> tuple[str, str]:
    """Makes one attack; returns its outcome and, if it was lost, what happened."""
    with tempfile.TemporaryDirectory(dir=target.folder) as folder:
        try:
            return ATTACKS[name](target, pathlib.Path(folder), chance), ""
        except Lost as lost:
            return "lost", str(lost)


if __name__ == "__main__":
    raise SystemExit(main())

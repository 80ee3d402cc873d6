"""The published experiments, run and put beside the published numbers.

    python -m benchmarks.experiments --dataset=nih --protocol=subset \
        --experiments=pg,wo_pg --seeds=3 --data_dir=DATA --out=DIR

Trains and evaluates each run in a workdir of its own below DIR, one seed after the
other, and after each brings `table.md`, `table.csv` and `results.json` in DIR up to
date: they hold all runs that DIR has, of this call and of others. The same command goes
on where it was interrupted. Whatever differs from the published settings, such as
`--config.stages.final_steps=100`, and VGG19 weights that are random are named beside
the result.
"""

import argparse
import datetime
import pathlib
import time
from collections.abc import Sequence

import ml_collections

from benchmarks import experiment_table, measure
from benchmarks.experiment_table import EXPERIMENTS, PROTOCOLS, Experiment
from dpa_jax import console, errors, stages, validation
from dpa_jax.config import with_flags


def main(argv: list[str] | None = None) -> int:
    """Runs the program; see `measure.main`."""
    return measure.main("experiments", run, argv)


def run(argv: list[str]) -> None:
    """Carries out what the arguments ask for, and fills the table.

    Raises:
      UsageError: the arguments ask for what there is not.
      DpaError: a run failed; the others were carried out.
    """
    parser = argparse.ArgumentParser(
        "python -m benchmarks.experiments",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--dataset", required=True, choices=sorted(EXPERIMENTS))
    add("--protocol", choices=PROTOCOLS, help="of NIH (default: subset)")
    add("--experiments", default="all", help="all, or some: pg,wo_pg or class0,class3")
    add("--seeds", type=int, choices=(1, 2, 3), default=3, help="how many of the three")
    add("--data_dir", default="", metavar="DIR", help="of TFDS")
    add("--out", required=True, metavar="DIR", help="for workdirs and the table")
    args, rest = parser.parse_known_args(argv)
    overrides = [flag for flag in rest if flag.startswith("--config.")]
    if rest != overrides:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if args.protocol and args.dataset != "nih":
        raise errors.UsageError(f"--protocol is of nih; {args.dataset} has none")

    protocol = (args.protocol or "subset") if args.dataset == "nih" else ""
    known = EXPERIMENTS[args.dataset]
    out = pathlib.Path(args.out)
    planned = [
        (Experiment(args.dataset, protocol, name), seed)
        for name in measure.one_of("--experiments", args.experiments, known)
        for seed in range(args.seeds)
    ]
    configs = [
        _configured(one.config(seed), args.data_dir, overrides) for one, seed in planned
    ]
    failed: dict[pathlib.Path, str] = {}
    rows = experiment_table.table(out, failed)
    spent, work = 0.0, 0  # of runs that were not finished before
    for number, ((one, seed), config) in enumerate(zip(planned, configs, strict=True)):
        folder = one.workdir(out, seed)
        finished = experiment_table.evaluation(folder).exists()
        begun = time.perf_counter()
        try:
            told = f"ROC AUC {carry_out(config, folder):.4f}"
        except errors.DpaError as error:
            failed[folder] = str(error)
            told = f"failed: {error}"
        if not finished:
            spent, work = spent + time.perf_counter() - begun, work + _work(config)
        left = sum(map(_work, configs[number + 1 :]))
        more = ""
        if work and left:
            seconds = round(spent / work * left)
            more = f"; about {datetime.timedelta(seconds=seconds)} left"
        console.print_line(
            f"{number + 1} of {len(planned)} runs: {one.group} {one.name}, seed "
            f"{config.seed}: {told}{more}"
        )
        rows = experiment_table.table(out, failed)
        experiment_table.write(out, rows, argv, args)
    measure.show(rows, experiment_table.COLUMNS)
    print(f"see table.md, table.csv and results.json in {out}")
    if failed:
        raise errors.DpaError(
            f"{len(failed)} of {len(planned)} runs failed, as told above; the same "
            "command tries them again"
        )


def carry_out(config: ml_collections.ConfigDict, folder: pathlib.Path) -> float:
    """Trains and evaluates a run, as far as it is not done; returns its ROC AUC."""
    from dpa_jax import training
    from dpa_jax.cli import main
    from dpa_jax.devices import compilation_cache

    compilation_cache.enable(training=True)
    training.train(config, folder)
    if not experiment_table.evaluation(folder).exists():
        # with --debug errors come through
        name = f"--name={experiment_table.EVALUATION}"
        if main.main(["--debug", "evaluate", f"--workdir={folder}", name]):
            raise KeyboardInterrupt
    return experiment_table.read(experiment_table.evaluation(folder))["roc_auc"]


def _configured(
    config: ml_collections.ConfigDict, data_dir: str, overrides: Sequence[str]
) -> ml_collections.ConfigDict:
    config.data.data_dir = data_dir
    config = validation.validate(with_flags(config, overrides))
    if config.population.seeds > 1:
        raise errors.UsageError("population.seeds: the seeds are the published ones")
    return config


def _work(config: ml_collections.ConfigDict) -> int:
    """Counts the pixels that a run sees, which its time goes by, roughly."""
    steps = sum(s.steps * s.resolution**2 for s in stages.schedule(config))
    return steps * config.batch_size


if __name__ == "__main__":
    raise SystemExit(main())

"""What demo, train and tune do."""

import argparse
import dataclasses
import pathlib
import statistics
import sys

from dpa_jax import errors, validation
from dpa_jax.config import updated, with_flags
from dpa_jax.storage import config_files


def demo(options: argparse.Namespace) -> None:
    """Trains and evaluates on phantom images."""
    from dpa_jax.cli import demo

    demo.demo(options.workdir)


def train(options: argparse.Namespace) -> None:
    """Trains a run, or goes on with it."""
    from dpa_jax.devices import compilation_cache, processes
    from dpa_jax.devices.platform import Platform
    from dpa_jax.training import train

    def load():
        found = config_files.load(options.config)
        return validation.validate(with_flags(found, options.overrides))

    given = (options.coordinator, options.processes, options.process)
    if options.distributed or any(value is not None for value in given):
        # joined first, so that an error in one process from here on ends all
        with processes.initialize(*given) as group:
            config = load()
            compilation_cache.enable(training=True)
            train(config, options.workdir, platform=Platform.here(group))
        return
    config = load()
    compilation_cache.enable(training=True)
    train(config, options.workdir)


def tune(options: argparse.Namespace) -> None:
    """Works on a study, or draws the learning curve of a finished one."""
    from dpa_jax.cli.verbs import workers
    from dpa_jax.devices import compilation_cache

    devices = workers.available()
    if options.devices is not None:
        devices = options.devices.split(",")
        workers.use(devices)
    folder = pathlib.Path(options.workdir)
    if options.learning_curve is not None:
        _check_alone(options)
        from dpa_jax.tuning import learning_curve

        compilation_cache.enable()
        found = learning_curve.learning_curve(
            folder,
            options.learning_curve,
            options.draws or 10,
            storage=options.storage,
        )
        for count in dict.fromkeys(count for count, *_ in found):
            aucs = [auc for other, _, _, auc in found if other == count]
            mean, sd = statistics.mean(aucs), statistics.pstdev(aucs)
            print(f"{count} anomalies: test ROC AUC {mean:.4f}, deviation {sd:.4f}")
        print(f"see {folder}/learning_curve.csv and .png")
        return
    if options.draws is not None:
        raise errors.UsageError("--draws is of --learning-curve, which is missing")
    config, search = _study(options, folder)
    from dpa_jax.tuning import study

    own, *others = workers.share(devices, options.workers)
    if others and own:
        workers.use(own)
    with workers.running(sys.argv[1:], others):
        compilation_cache.enable(training=True)
        _, lines = study.tune(config, search, folder, storage=options.storage)
    print("\n".join(lines))


def _check_alone(options) -> None:
    """Refuses what a learning curve takes from its study and not from options."""
    names = ("config", "search", "trials", "folds", "anomalies", "anomalies_from")
    given = [f"--{name}".replace("_", "-") for name in names if getattr(options, name)]
    given += [*options.overrides, *options.search_overrides]
    if given or options.workers > 1:
        raise errors.UsageError(
            f"--learning-curve is of a study as it stands, so without "
            f"{(*given, '--workers')[0]}; dpa-jax tune without --learning-curve can "
            "still name its test images"
        )


def _study(options, folder: pathlib.Path):
    """Returns the config and the search of a study: from the options, else its own."""
    from dpa_jax.tuning import study
    from dpa_jax.tuning.search import load as load_search

    if not (options.config and options.search) and not (folder / "search.py").exists():
        missing = "config" if not options.config else "search"
        raise errors.UsageError(f"--{missing} is missing: {folder} holds no study yet")
    location = options.config or str(folder / "config.json")
    config = with_flags(config_files.load(location), options.overrides)
    if options.search:
        search = load_search(options.search, config)
    else:
        search = study.load(folder)[1]
    changed = with_flags(search.options, options.search_overrides, prefix="search")
    for name, value in (
        ("trials", options.trials),
        ("folds", options.folds),
        ("anomalies.count", options.anomalies),
        ("anomalies.source", options.anomalies_from),
    ):
        if value is not None:
            changed = updated(changed, {name: value}, "the search")
    if options.trials and changed.sampler == "grid":
        raise errors.UsageError("--trials: a grid tries all its combinations; leave it")
    return config, dataclasses.replace(search, options=changed)

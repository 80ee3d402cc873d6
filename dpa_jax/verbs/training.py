"""What demo, train and tune do."""

import argparse
import pathlib

from dpa_jax import config as config_lib
from dpa_jax import config_files, errors, validation


def demo(options: argparse.Namespace) -> None:
    """Trains and evaluates on phantom images."""
    from dpa_jax import demo

    demo.demo(options.workdir)


def train(options: argparse.Namespace) -> None:
    """Trains a run, or goes on with it."""
    from dpa_jax import cache, processes
    from dpa_jax.platform import Platform
    from dpa_jax.training import train

    def load():
        found = config_files.load(options.config)
        found = config_lib.with_flags(found, options.overrides)
        validation.validate(found)
        return found

    given = (options.coordinator, options.processes, options.process)
    if options.distributed or any(value is not None for value in given):
        # joined first, so that an error in one process from here on ends all
        with processes.initialize(*given) as group:
            config = load()
            cache.enable(training=True)
            train(config, options.workdir, platform=Platform.here(group))
        return
    config = load()
    cache.enable(training=True)
    train(config, options.workdir)


def tune(options: argparse.Namespace) -> None:
    """Works on a study, or draws the learning curve of a finished one."""
    from dpa_jax import cache
    from dpa_jax.tuning import learning_curve, study

    folder = pathlib.Path(options.workdir)
    if options.learning_curve is not None:
        _alone(options)
        study.check_finished(folder)
        cache.enable()
        found = learning_curve.learning_curve(
            folder, options.learning_curve, options.draws or 10
        )
        print("\n".join(found.lines))
        return
    if options.draws is not None:
        raise errors.UsageError("--draws is of --learning-curve, which is missing")
    config, search = _study(options, folder)
    cache.enable(training=True)
    found = study.tune(config, search, folder, storage=options.storage)
    print("\n".join(found.lines))


def _alone(options) -> None:
    """Refuses what a learning curve takes from its study and not from options."""
    names = ("config", "search", "storage", "trials", "folds", "anomalies")
    given = [f"--{name}" for name in names if getattr(options, name)]
    given += ["--anomalies-from"] * bool(options.anomalies_from)
    given += [*options.overrides, *options.search_overrides]
    if given:
        raise errors.UsageError(
            f"--learning-curve is of a study as it stands, so without {given[0]}; "
            "dpa-jax tune without --learning-curve can still name its test images"
        )


def _study(options, folder: pathlib.Path):
    """Returns the config and the search of a study: from the options, else its own."""
    from dpa_jax.tuning import search as search_lib

    given = []
    for name in ("config", "search"):
        kept = folder / f"{name}.json"
        if not getattr(options, name) and not (folder / "search.json").exists():
            raise errors.UsageError(f"--{name} is missing: {folder} holds no study yet")
        given.append(getattr(options, name) or str(kept))
    config = config_lib.with_flags(config_files.load(given[0]), options.overrides)
    search = config_lib.with_flags(
        search_lib.load(given[1]), options.search_overrides, "search"
    )
    for name, value in (
        ("trials", options.trials),
        ("folds", options.folds),
        ("anomalies.count", options.anomalies),
        ("anomalies.source", options.anomalies_from),
    ):
        if value is not None:
            search = config_lib.updated(search, {name: value}, "the search")
    if options.trials and search.sampler == "grid":
        raise errors.UsageError("--trials: a grid tries all its combinations; leave it")
    return config, search

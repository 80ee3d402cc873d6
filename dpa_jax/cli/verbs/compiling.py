"""What compile does."""

import argparse
import pathlib

from dpa_jax import errors, stages, validation
from dpa_jax.config import with_flags
from dpa_jax.storage import config_files, workdir


def compile_run(options: argparse.Namespace) -> None:
    """Compiles a run's stages for a machine, and shows what the compiler plans."""
    from dpa_jax.compiling import ahead, report, targets

    targets.prepare(options.target)
    config = with_flags(config_files.load(options.config), options.overrides)
    if options.batch is not None:
        config.batch_size = options.batch
    config = validation.validate(config)
    chosen = stages.select(stages.schedule(config), options.stages)
    platform, accelerator = targets.describe(options.target)
    print(report.title(options.target, config, platform, options.images))
    print(report.header(chosen), flush=True)
    found = []
    for one in ahead.compile_stages(
        config, platform, accelerator, chosen, options.images
    ):
        print(report.line(one, chosen), flush=True)
        found.append(one)
    print("\n".join(report.notes(found)))
    if options.json is not None:
        written = report.as_json(options, config, platform, accelerator, found)
        path = pathlib.Path(options.json)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            workdir.write_json(path, written)
        except OSError as error:
            raise errors.DpaError(f"cannot write {path}: {error.strerror}") from error
    if not all(one.fits for one in found):
        raise errors.DpaError(
            f"not every stage fits into the memory of {options.target}"
        )

"""What calibrate does."""

import argparse


def calibrate(options: argparse.Namespace) -> None:
    """Calibrates a run, or each run of a population."""
    from dpa_jax.data import labels, test_set
    from dpa_jax.devices import compilation_cache
    from dpa_jax.scoring import calibration, runs
    from dpa_jax.storage import workdir

    compilation_cache.enable()
    folders = workdir.members(options.workdir)
    for folder in folders if not options.overwrite else ():
        calibration.check_absent(folder)
    config = workdir.read_config(folders[0])
    images = test_set.read(options.normal, config, skip_corrupt=options.skip_corrupt)
    images = labels.labelled(images, config.data.normal, options.normal)
    for folder in folders:
        found = runs.calibrate(
            folder,
            images,
            alpha=options.alpha,
            group=options.group,
            by=options.by,
            location=options.normal,
            overwrite=options.overwrite,
            batch_size=options.batch,
            precision=options.precision,
            trust=options.trust,
        )
        print(f"{folder}: calibrated on {found.images:,} normal images")
        print("\n".join(found.describe()))
    print("see calibration.json there; scores of the run now come with p-values")

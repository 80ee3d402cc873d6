"""The arguments of calibrate."""

from dpa_jax.cli.arguments import options, scoring


def add_verbs(add: options.Add) -> None:
    """Adds calibrate."""
    calibrate = add(
        "calibrate",
        "give a run's scores p-values, from held-out normal images",
        "  dpa-jax calibrate --workdir=run --normal=held_out/normal\n"
        "  dpa-jax calibrate --workdir=run --normal=normal.csv --alpha=0.02 --by=view",
        doc="Writes calibration.json.\n"
        "Of new normal images a share of alpha at most is then called abnormal, on "
        "average\nover calibrations; images of a patient or slide count as one where "
        "that is known.\ndocs/calibration.md says what is not promised",
    )
    options.workdir(calibrate)
    calibrate.add_argument(
        "--normal",
        required=True,
        metavar="LOCATION",
        help="normal images that were not trained on: a folder, FILE.csv or "
        "FILE.csv:SPLIT, .npz or tfds:NAME:SPLIT",
    )
    calibrate.add_argument(
        "--alpha",
        type=options.share,
        default=0.05,
        help="false positive rate to promise (default: %(default)s)",
    )
    calibrate.add_argument(
        "--group",
        metavar="COLUMN",
        help="what images share, one p-value for each (default: group, where it is "
        "known)",
    )
    calibrate.add_argument(
        "--by",
        metavar="COLUMN",
        help="calibrate each value of a column apart, such as view or site",
    )
    scoring.add_shared(calibrate)

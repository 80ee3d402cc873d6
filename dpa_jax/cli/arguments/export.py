"""The arguments of export."""

from dpa_jax.cli.arguments import options


def add_verbs(add: options.Add) -> None:
    """Adds export."""
    export = add(
        "export",
        "write a run as one file for other programs: StableHLO or ONNX",
        "  dpa-jax export --workdir=run --format=onnx --out=run.onnx\n"
        "  dpa-jax export --workdir=run --format=stablehlo --out=run.stablehlo "
        "--side=1024 --verify=test/normal",
        doc="The file holds all weights and takes any number of images, uint8 "
        "[batch, side, side, channels],\nto their scores and maps. It is compared with "
        "the run first, and not written if a score differs\nby more than 1e-4 of it. A "
        "calibration is copied to FILE.calibration.json. ONNX needs the onnx extra.",
    )
    options.workdir(export)
    export.add_argument("--format", required=True, choices=("stablehlo", "onnx"))
    export.add_argument("--out", required=True, metavar="FILE")
    export.add_argument(
        "--side",
        type=options.positive,
        metavar="PIXELS",
        help="of square images that the file prepares as in training (default: none, "
        "the images are prepared already)",
    )
    export.add_argument(
        "--verify",
        metavar="LOCATION",
        help="at least 32 images to compare on, as train takes them: a folder, "
        "FILE.csv, .npz or tfds:NAME:SPLIT (default: 32 made-up ones)",
    )
    export.add_argument(
        "--trust",
        action="store_true",
        help="import the functions outside of dpa_jax that the run names",
    )
    export.add_argument(
        "--overwrite", action="store_true", help="replace a file that is there"
    )

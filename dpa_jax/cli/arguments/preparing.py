"""The arguments of the verbs under prepare."""

from dpa_jax.cli.arguments import options


def add_verbs(add: options.Add) -> None:
    """Adds prepare with a verb for each data set."""
    prepare = add(
        "prepare",
        "prepare a public data set for training",
        "  dpa-jax prepare nih --source=NIH --data_dir=data --protocol=pa",
    )
    which = prepare.add_subparsers(dest="dataset", metavar="DATASET", required=True)
    nih = add(
        "nih",
        "prepare NIH ChestX-ray14 from the files as distributed",
        "  dpa-jax prepare nih --source=NIH --data_dir=data --protocol=pa",
        which,
        "Images may lie in folders or still in their archives. Resumes if interrupted.",
    )
    camelyon16 = add(
        "camelyon16",
        "cut Camelyon16's slides into patches",
        "  dpa-jax prepare camelyon16 --source=CAMELYON16 --data_dir=data\n"
        "  dpa-jax prepare camelyon16 --source=gs://BUCKET/slides --data_dir=data \\\n"
        "    --runner=dataflow --parts=gs://BUCKET/parts -- --project=P --region=R",
        which,
        "Slides may lie in the challenge's folders, GigaDB's or others, on a disk or "
        "at a\nURL. Resumes if interrupted.",
    )
    for name, title in (("cifar10", "CIFAR10"), ("svhn", "SVHN")):
        small = add(
            name,
            f"download {title} and prepare it",
            f"  dpa-jax prepare {name} --data_dir=data",
            which,
            "Files that are there are not\ndownloaded again. The download itself was "
            "never run by its authors, who had no\nnetwork.",
        )
        small.add_argument(
            "--data_dir", required=True, metavar="DIR", help="of TFDS: the result"
        )
        small.add_argument(
            "--source",
            metavar="DIR",
            help="files downloaded already, under their names",
        )
    _add_layout(add, which)
    _add_manifest(add, which)
    for one in (nih, camelyon16):
        one.add_argument(
            "--source", required=True, metavar="DIR", help="the files as distributed"
        )
        one.add_argument(
            "--data_dir", required=True, metavar="DIR", help="of TFDS: the result"
        )
        one.add_argument(
            "--jobs", type=int, default=0, help="at once (default: one a core)"
        )
        one.add_argument(
            "--allow-missing",
            action="store_true",
            help="go on without files that are missing or cannot be used",
        )
    nih.add_argument(
        "--lists",
        metavar="DIR",
        help="split the subset by these lists, not by the published ones; custom needs "
        "them",
    )
    nih.add_argument(
        "--allow-resized",
        action="store_true",
        help="go on with images that are not 1024 x 1024, as of a mirror at 224 x 224",
    )
    nih.add_argument(
        "--protocol",
        choices=("subset", "pa", "ap", "all", "native", "custom"),
        default="all",
        help="default: %(default)s",
    )
    camelyon16.add_argument(
        "--lists",
        default="published",
        metavar="DIR",
        help="cut the patches of these lists, not of the published ones; none: choose "
        "by the paper's rule",
    )
    camelyon16.add_argument(
        "--magnification",
        type=int,
        choices=(10, 20, 40),
        default=10,
        help="of the patches (default: %(default)s)",
    )
    camelyon16.add_argument(
        "--stain-target",
        metavar="TARGET",
        help="what stains are normalised to: SLIDE:x,y,width,height in level-0 pixels, "
        "a saved stain_target.npz, or none (default: the published crop of normal_056)",
    )
    camelyon16.add_argument(
        "--runner",
        default="multiprocess",
        help="multiprocess, or Apache Beam's direct, spark, flink or dataflow "
        "(default: %(default)s)",
    )
    camelyon16.add_argument(
        "--parts",
        metavar="DIR",
        help="for the patches of finished slides until the data set is complete: a "
        "path or URL that every Beam worker reaches (default: in --data_dir)",
    )
    options.mpp(camelyon16)
    camelyon16.add_argument(
        "--seed",
        type=int,
        default=0,
        help="with --lists=none, of the draw of 50 patches where a slide has more "
        "(default: %(default)s)",
    )
    camelyon16.add_argument(
        "beam", nargs="*", metavar="-- BEAM_OPTION", help="flags of Apache Beam"
    )


def _add_layout(add: options.Add, which) -> None:
    layout = add(
        "layout",
        "write the manifest of a public data set that lies in its folders",
        "  dpa-jax prepare layout bmad --source=BraTS2021_slice --out=brain.csv",
        which,
        "Train on FILE.csv:train and\nevaluate on FILE.csv:test, or prepare the file "
        "as a TFDS data set.",
    )
    layout.add_argument(
        "layout",
        metavar="LAYOUT",
        help="medianomaly, medianomaly-isic, medianomaly-brats, bmad, mvtec, oct2017 "
        "or chest-xray",
    )
    layout.add_argument(
        "--source", required=True, metavar="DIR", help="of the data set"
    )
    layout.add_argument("--out", required=True, metavar="FILE.csv", help="the manifest")
    layout.add_argument(
        "--overwrite", action="store_true", help="replace the file if it is there"
    )


def _add_manifest(add: options.Add, which) -> None:
    manifest = add(
        "manifest",
        "prepare the images of a manifest as a TFDS data set",
        "  dpa-jax prepare manifest brain.csv --name=brain --channels=1 "
        "--data_dir=data",
        which,
        "Columns are path, and if wanted label,\ngroup, split, mask and any others. "
        "The result is tfds:NAME:SPLIT.",
    )
    manifest.add_argument("manifest", metavar="FILE.csv")
    manifest.add_argument("--name", required=True, help="of the data set")
    manifest.add_argument(
        "--data_dir", required=True, metavar="DIR", help="of TFDS: the result"
    )
    manifest.add_argument(
        "--channels",
        type=int,
        choices=(1, 3),
        required=True,
        help="to store: 1 grey, 3 RGB",
    )
    manifest.add_argument(
        "--size",
        type=options.positive,
        default=0,
        help="side in pixels of the centre squares that are stored (default: images "
        "whole and as large as they are)",
    )

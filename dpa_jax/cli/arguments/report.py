"""The arguments of report."""

from dpa_jax.cli.arguments import options


def add_verbs(add: options.Add) -> None:
    """Adds report."""
    report = add(
        "report",
        "write what is known of a run as one page for the browser",
        "  dpa-jax report --workdir=run\n"
        "  dpa-jax report --workdir=run --evaluation=nih --out=nih.html",
        doc="It needs\nneither the network nor another file, and is made from the "
        "files of the workdir\nalone; evaluate makes it too.",
    )
    options.workdir(report)
    options.evaluation(report)
    report.add_argument(
        "--out", metavar="FILE", help="default: report.html beside the evaluation"
    )
    report.add_argument(
        "--overwrite", action="store_true", help="replace a file given as --out"
    )

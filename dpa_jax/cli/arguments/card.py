"""The arguments of card."""

from dpa_jax.cli.arguments import options


def add_verbs(add: options.Add) -> None:
    """Adds card."""
    card = add(
        "card",
        "write a run's model card, in Hugging Face's format",
        "  dpa-jax card --workdir=run --about=about.yaml\n"
        "  dpa-jax card --workdir=run --license=apache-2.0 \\\n"
        "    --intended-use='Research.' --out-of-scope='Diagnosis.' \\\n"
        "    --data='Chest X-rays of one hospital, 2019.'",
        doc="The run\nmust be calibrated and evaluated. What no file of the workdir "
        "says is given by\nthese arguments or a file. A card with an empty section is "
        "not written.",
    )
    options.workdir(card)
    options.evaluation(card)
    card.add_argument(
        "--about",
        metavar="FILE.yaml",
        help="what these arguments say, by the same names with _ for -",
    )
    texts = {
        "intended-use": "what the run is for",
        "out-of-scope": "what it is not for",
        "data": "where the images are from, and how they were chosen",
    }
    for name, what in texts.items():
        card.add_argument(f"--{name}", metavar="TEXT", help=f"{what} (Markdown)")
    card.add_argument("--license", metavar="ID", help="such as apache-2.0, or other")
    card.add_argument("--license-name", metavar="ID", help="of a licence that is other")
    card.add_argument("--license-link", metavar="URL", help="likewise")
    card.add_argument("--out", metavar="FILE", help="default: WORKDIR/README.md")
    card.add_argument(
        "--overwrite", action="store_true", help="replace a card of before"
    )

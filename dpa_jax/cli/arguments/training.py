"""The arguments of demo, train and tune."""

from dpa_jax.cli.arguments import options

_CONFIG_HELP = """
A config is FILE.py[:ARGUMENT], FILE.json or the published code's FILE.yaml; each field
can be set: --config.batch_size=64 --config.stages.final_steps=1000
"""


def add_verbs(add: options.Add) -> None:
    """Adds demo, train and tune."""
    _add_demo(add)
    _add_train(add)
    _add_tune(add)


def _add_demo(add: options.Add) -> None:
    demo = add(
        "demo",
        "train and evaluate on phantom images made on the spot",
        "  dpa-jax demo --workdir=demo",
    )
    demo.add_argument(
        "--workdir",
        default="dpa_jax_demo",
        metavar="DIR",
        help="where images and the run go (default: %(default)s)",
    )


def _add_train(add: options.Add) -> None:
    train = add(
        "train",
        "train a run, or go on with one that was interrupted",
        "  dpa-jax train --config=configs/folder.py --workdir=run "
        "--config.data.train=normal/\n\n"
        "  several processes: the same command in each, with --distributed on Slurm or "
        "a\n  TPU slice, or with --coordinator, --processes and --process",
        doc=_CONFIG_HELP,
    )
    train.add_argument("--config", required=True, metavar="FILE[:ARGUMENT]")
    options.workdir(train)
    train.add_argument(
        "--distributed",
        action="store_true",
        help="join the processes that the cluster started (Slurm, Open MPI, TPU slice)",
    )
    train.add_argument("--coordinator", metavar="HOST:PORT", help="process 0's address")
    train.add_argument("--processes", type=int, help="how many there are")
    train.add_argument("--process", type=int, help="which this is, from 0")


def _add_tune(add: options.Add) -> None:
    tune = add(
        "tune",
        "choose hyper-parameters by cross-validation with a few known anomalies",
        "  dpa-jax tune --config=configs/folder.py --search=configs/search/folder.py "
        "\\\n    --workdir=study --config.data.train=normal/ "
        "--anomalies-from=anomalies/\n\n"
        "  with --workers=4 in four processes, each with GPUs of its own; the same\n"
        "  command elsewhere, with --storage and a folder that all machines see, joins",
        doc="Goes\non where it was interrupted; the workdir alone is then enough."
        f"{_CONFIG_HELP}A search is FILE.py[:ARGUMENT]; its fields are set so too: "
        "--search.folds=2",
    )
    tune.add_argument(
        "--config",
        metavar="FILE[:ARGUMENT]",
        help="what trials start from (default: the study's)",
    )
    tune.add_argument(
        "--search", metavar="FILE[:ARGUMENT]", help="what to try (default: the study's)"
    )
    tune.add_argument("--workdir", required=True, metavar="DIR", help="of the study")
    tune.add_argument(
        "--storage",
        default="",
        metavar="URL",
        help="database that workers share, such as postgresql+psycopg://HOST/NAME, "
        "where the study is called as the workdir (default: study.db in the workdir)",
    )
    tune.add_argument(
        "--workers",
        type=options.positive,
        default=1,
        metavar="N",
        help="processes, among which the GPUs are shared out (default: 1)",
    )
    tune.add_argument(
        "--devices", metavar="N,N,...", help="the GPUs to use (default: all)"
    )
    tune.add_argument(
        "--trials",
        type=options.positive,
        help="how many; more than before go on from there",
    )
    tune.add_argument(
        "--folds", type=options.positive, help="parts of the normal images"
    )
    tune.add_argument(
        "--anomalies", type=options.count, metavar="N", help="how many to rank by"
    )
    tune.add_argument(
        "--anomalies-from",
        metavar="LOCATION",
        help="a folder, manifest, .npz or tfds:NAME:SPLIT of them",
    )
    tune.add_argument(
        "--learning-curve",
        type=options.counts,
        metavar="N,N,...",
        help="of a finished study: choose again with so many anomalies, and look at "
        "the test set",
    )
    tune.add_argument(
        "--draws",
        type=options.positive,
        help="of each number of the learning curve (default: 10)",
    )

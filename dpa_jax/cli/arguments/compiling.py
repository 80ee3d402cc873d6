"""The arguments of compile."""

from dpa_jax.cli.arguments import options


def add_verbs(add: options.Add) -> None:
    """Adds compile."""
    compiling = add(
        "compile",
        "compile a run for a machine that need not be at hand",
        "  dpa-jax compile --config=configs/nih.py:subset,pg --target=v5e:2x4\n\n"
        "  targets: h100:8, h200:1 (extra cuda12 or cuda13), v4:2x2x1, v5e:2x4, "
        "v5p:2x2x1,\n  v6e:2x4 (extra aot), here",
        doc="""
Every stage as train would, from shapes alone: images and weights need not exist.
Prints the memory, kernels, bytes and collectives that the compiler plans on one device,
and the least time that the device could take: a bound, not a prediction. Config fields
are set as for train
""",
    )
    compiling.add_argument("--config", required=True, metavar="FILE[:ARGUMENT]")
    compiling.add_argument("--target", required=True, metavar="MACHINE|here")
    compiling.add_argument(
        "--batch",
        type=options.positive,
        metavar="N",
        help="images per step of all devices together (default: the config's)",
    )
    compiling.add_argument(
        "--images",
        type=options.positive,
        default=10_000,
        metavar="N",
        help="that the run trains on, on which depends what is kept on the device "
        "(default: %(default)s)",
    )
    compiling.add_argument(
        "--stages",
        default="all",
        metavar="NAME,...",
        help="such as 64_stabilization (default: all)",
    )
    compiling.add_argument("--json", metavar="FILE", help="write all that was found")

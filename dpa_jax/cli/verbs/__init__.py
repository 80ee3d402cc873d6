"""What each verb of the command line does, from its parsed options."""

import argparse

from dpa_jax.cli.verbs import (
    calibrate,
    card,
    compiling,
    doctor,
    evaluate,
    export,
    interop,
    preparing,
    report,
    score,
    score_slide,
    training,
    weights,
)


def run(options: argparse.Namespace) -> None:
    """Does what was asked for."""
    name = options.verb
    for level in ("dataset", "action"):
        name = f"{name} {getattr(options, level)}" if hasattr(options, level) else name
    {
        "demo": training.demo,
        "train": training.train,
        "tune": training.tune,
        "compile": compiling.compile_run,
        "evaluate": evaluate.evaluate,
        "calibrate": calibrate.calibrate,
        "score": score.score,
        "score-slide": score_slide.score_slide,
        "report": report.report,
        "card": card.card,
        "prepare nih": preparing.nih,
        "prepare camelyon16": preparing.camelyon16,
        "prepare cifar10": preparing.cifar10_svhn,
        "prepare svhn": preparing.cifar10_svhn,
        "prepare layout": preparing.layout,
        "prepare manifest": preparing.manifest,
        "weights fetch": weights.fetch,
        "weights import": weights.import_files,
        "weights stats": weights.stats,
        "weights verify": weights.verify,
        "export": export.export,
        "import-reference": interop.import_reference,
        "doctor": doctor.doctor,
    }[name](options)

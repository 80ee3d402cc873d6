"""The demo: phantom images, a short run, an evaluation, and where to look."""

import os
import pathlib

from dpa_jax import console, data
from dpa_jax.data import phantoms
from dpa_jax.devices import compilation_cache
from dpa_jax.reporting import page
from dpa_jax.scoring import decisions, evaluation, loading
from dpa_jax.storage import config_files, evaluations
from dpa_jax.training import train


def demo(folder: str | os.PathLike) -> dict:
    """Makes phantoms, trains on the normal ones and evaluates on held-out ones.

    Args:
      folder: gets `images/` and `run/`; what is finished there is not done again.

    Returns:
      The figures that are also in `run/evaluations/test/metrics.json`.
    """
    compilation_cache.enable(training=True)
    folder = pathlib.Path(folder)
    console.print_line(
        "Drawing phantom chest radiographs: 600 normal to train on, 200 to test, "
        "100 normal to calibrate decisions with."
    )
    images = phantoms.make_phantoms(folder / "images")
    config = config_files.load("configs/demo.py")
    config.data.train = str(images / "train" / "normal")
    config.data.test_normal = str(images / "test" / "normal")
    config.data.test_abnormal = str(images / "test" / "abnormal")
    run = train(config, folder / "run")

    scorer = loading.load(run)
    preprocessing = data.Preprocessing.from_config(config)
    test = data.joined(
        [
            data.load(location, preprocessing)
            for location in (config.data.test_normal, config.data.test_abnormal)
        ],
        labels=(0, 1),
    )
    scores = scorer(test.images)
    decided = decisions.decide(scorer.calibration, test, scores)
    result = evaluation.report(scorer, test, scores, decided)
    out = evaluations.folder(run, "test")
    evaluation.write(out, test, scores, result, decided)
    page.write_with_cases(run, out, scorer, test, scores)
    low, high = result["roc_auc_interval"]
    print(
        f"ROC AUC {result['roc_auc']:.3f} (95% {low:.3f} to {high:.3f}) on "
        f"{result['normal']} normal and {result['abnormal']} abnormal phantoms.\n"
        "VGG19's weights here are random (random:0), not ImageNet's, and phantoms are "
        "not patients:\nthis shows that everything works, not how well the method does."
        f"\nOpen {out}/report.html in a browser; {out}/roc.png and {run}/samples/ are "
        "pictures.\n"
        f"Next: dpa-jax score --workdir={run} "
        f"{images}/test/abnormal --out={folder}/scores.csv --maps={folder}/maps"
    )
    return result

"""Makes the files of a run and of its evaluation, without training one."""

import json

import numpy as np
import run_factory

from dpa_jax.data import ImageSet
from dpa_jax.reporting import cases
from dpa_jax.scoring import evaluation
from dpa_jax.storage import workdir


def write_run(folder, calibrated=True):
    """Writes what a workdir holds beside its checkpoints; returns the folder."""
    run_factory.write_config(workdir_of(folder) / "config.json", config())
    workdir.write_json(
        folder / "data.json", {"images": 600, "skipped": 0, "sha256": "da7a" * 16}
    )
    workdir.write_json(
        folder / "weights.json", {"source": "random:0", "sha256": "3e19" * 16}
    )
    packages = {"dpa_jax": "0.1.0", "jax": "0.10.2"}
    workdir.write_json(
        folder / "environment.json",
        {"python": "3.11.7", "packages": packages, "device_kind": "cpu", "seed": 0},
    )
    steps = range(50, 1301, 50)
    rows = [
        {"step": s, "stage": f"{8 << s // 450}_stabilization", "loss": 0.1 + 20 / s}
        for s in steps
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    if calibrated:
        stratum = {"scores": [0.1, 0.2], "threshold": 0.25}
        workdir.write_json(
            folder / "calibration.json",
            {
                "alpha": 0.05,
                "images": 120,
                "units": 100,
                "group": "patient",
                "by": None,
                "strata": {"all": stratum},
                "trained": 1300,
            },
        )
    return folder


def workdir_of(folder):
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def config():
    made = run_factory.tiny_config()
    made.data.train = "films/normal"
    return made


def write_evaluation(
    folder, count=40, size=16, channels=1, calibrated=True, names=None, pictures=None
):
    """Writes an evaluation of made-up scores; returns what is expected of it."""
    rng = np.random.default_rng(0)
    labels = (np.arange(count) % 2).astype(np.int8)
    scores = (rng.normal(0.2, 0.05, count) + 0.1 * labels).astype(np.float32)
    names = names or [f"films/{i:05d}.png" for i in range(count)]
    image = pictures if pictures is not None else run_factory.images(count, size)[..., None]
    image = np.repeat(image, channels, axis=-1) if image.shape[-1] == 1 else image
    images = ImageSet(image, names, labels=labels)
    found = {
        **evaluation.evaluate(scores, labels),
        "shortcuts": {"mean_intensity": 0.61},
        "warnings": [],
        "skipped": 0,
        "trained_steps": 1300,
        "stage": "16_stabilization",
        "vgg_weights": "random:0",
        "random_weights": True,
    }
    abnormal = scores > 0.25
    if calibrated:
        rates = [float(abnormal[labels == label].mean()) for label in (0, 1)]
        found["calibration"] = {
            "alpha": 0.05,
            "false_positive_rate": rates[0],
            "false_positive_rate_interval": [rates[0] / 2, rates[0] * 1.5],
            "true_positive_rate": rates[1],
        }
    evaluation.write(folder, images, scores, found)
    if calibrated:
        lines = (folder / "scores.csv").read_text().splitlines()
        p_values = np.round(1 - scores, 4)
        cells = zip(p_values, abnormal.astype(int), strict=True)
        added = ["p_value,abnormal", *(f"{p},{a}" for p, a in cells)]
        pairs = zip(lines, added, strict=True)
        (folder / "scores.csv").write_text("".join(f"{a},{b}\n" for a, b in pairs))
    row = cases.select(scores)
    maps = np.abs(np.float32(image[row]).mean(-1) - 128) / 400
    made = image[row] // 2 + 64
    share = np.tile(np.float32([0.75, 0.25]), (len(row), 1))
    layers = np.array(["r11", "r12"])
    cases.write(
        folder / cases.FILE,
        cases.Cases(
            row, scores[row], image[row], made, maps.astype(np.float16), layers, share
        ),
    )
    return labels, scores, abnormal

"""Makes the files of a run and of its evaluation, without training one."""

import json

import numpy as np
import run_factory

from dpa_jax.reporting import cases
from dpa_jax.scoring import evaluation
from dpa_jax.storage import workdir


def write_run(folder, calibrated=True):
    """Writes what a workdir holds beside its checkpoints; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config = run_factory.tiny_config()
    config.data.train = "films/normal"
    run_factory.write_config(folder / "config.json", config)
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
                "alpha": 0.1,
                "images": 120,
                "units": 100,
                "group": "patient",
                "by": None,
                "strata": {"all": stratum},
                "trained": 1300,
                "data": {"location": "films/held_out", "sha256": "ca11" * 16},
                "map_range": [0.05, 0.3],
            },
        )
    return folder


def write_evaluation(folder, count=40, calibrated=True, names=None, image=None):
    """Writes what an evaluation leaves, of made-up scores; half is abnormal."""
    rng = np.random.default_rng(0)
    labels = (np.arange(count) % 2).astype(np.int8)
    scores = (rng.normal(0.2, 0.05, count) + 0.1 * labels).astype(np.float32)
    names = names or [f"films/{i:05d}.png" for i in range(count)]
    image = run_factory.images(count)[..., None] if image is None else image
    abnormal = scores > 0.25
    found = {
        **evaluation.evaluate(scores, labels, resamples=20),
        "shortcuts": {"mean_intensity": 0.61},
        "warnings": [],
        "skipped": 0,
        "trained_steps": 1300,
        "stage": "16_stabilization",
        "vgg_weights": "random:0",
        "random_weights": True,
    }
    columns = {
        "path": names,
        "label": [("normal", "abnormal")[label] for label in labels],
        "group": [""] * count,
        "score": scores,
    }
    if calibrated:
        rates = [float(abnormal[labels == label].mean()) for label in (0, 1)]
        found["calibration"] = {
            "alpha": 0.1,
            "units": "images",
            "false_positive_rate": rates[0],
            "false_positive_rate_interval": [rates[0] / 2, rates[0] * 1.5],
            "true_positive_rate": rates[1],
        }
        columns |= {"p_value": 1 - scores, "abnormal": abnormal.astype(int)}
    folder.mkdir(parents=True, exist_ok=True)
    rows = list(zip(*columns.values(), strict=True))
    workdir.write_csv(folder / "scores.csv", list(columns), rows)
    workdir.write_json(folder / "metrics.json", found)
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
    return labels, scores, abnormal, names

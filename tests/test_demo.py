import json
import os
import re
from unittest import mock

import numpy as np
import pytest
import run_factory
from PIL import Image

from dpa_jax.cli import demo
from dpa_jax.storage import checkpoints, config_files


def test_demo_makes_images_trains_evaluates_and_says_where_to_look(
    tmp_path, monkeypatch
):
    def tiny(location):
        assert location == "configs/demo.py"
        return run_factory.quick_config()

    monkeypatch.setattr(demo.config_files, "load", tiny)
    code, out, err = run_factory.call("demo", "--workdir", tmp_path / "demo")
    assert code == 0, err
    images, run = tmp_path / "demo" / "images", tmp_path / "demo" / "run"
    assert len(os.listdir(images / "train" / "normal")) == 600
    for label in ("normal", "abnormal"):
        assert len(os.listdir(images / "test" / label)) == 100
    assert checkpoints.latest(run) == 6
    assert {path.name for path in (run / "evaluations" / "test").iterdir()} == {
        "cases.npz",
        "metrics.json",
        "report.html",
        "scores.csv",
        "roc.png",
        "histogram.png",
    }
    found = json.loads((run / "evaluations" / "test" / "metrics.json").read_text())
    assert f"ROC AUC {found['roc_auc']:.3f}" in out
    assert "VGG19's weights here are random (random:0)" in out
    assert f"Open {run}/evaluations/test/report.html" in out
    assert f"{run}/samples/" in out
    # the command that it proposes next works
    (command,) = re.findall(r"^Next: dpa-jax (.*)$", out, re.MULTILINE)
    code, _, err = run_factory.call(*command.split())
    assert code == 0, err
    assert (tmp_path / "demo" / "scores.csv").exists()
    assert len(list((tmp_path / "demo" / "maps").glob("*.png"))) == 100

    before = checkpoints.latest(run), run_factory.files(run / "checkpoints")
    code, again, err = run_factory.call("demo", "--workdir", tmp_path / "demo")
    assert (code, again) == (0, out)
    assert "nothing left to train" in err
    assert (checkpoints.latest(run), run_factory.files(run / "checkpoints")) == before

    # a calibration in between is heeded, in the figures and in the scores
    normal = images / "calibration" / "normal"
    code, _, err = run_factory.call("calibrate", "--workdir", run, "--normal", normal)
    assert code == 0, err
    code, _, err = run_factory.call("demo", "--workdir", tmp_path / "demo")
    assert code == 0, err
    place = run / "evaluations" / "test"
    assert "calibration" in json.loads((place / "metrics.json").read_text())
    header = (place / "scores.csv").read_text().splitlines()[0]
    assert header == "path,label,group,score,p_value,abnormal"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The demo, smaller and with a fifth of its steps, up to 16 pixels."""
    folder = tmp_path_factory.mktemp("demo")
    config = config_files.load("configs/demo.py")
    config.data.resolution = 16
    config.model.encoder_channels = config.model.decoder_channels = (16, 16, 16)
    config.perceptual.layers = "8:r11 16:r11"
    for name in ("transition_steps", "stabilization_steps", "final_steps"):
        config.stages[name] //= 5
    with mock.patch.object(demo.config_files, "load", lambda location: config):
        code, out, err = run_factory.call("demo", "--workdir", folder)
    assert code == 0, err
    return folder, out


def test_the_demo_tells_abnormal_phantoms_from_normal_ones(finished):
    folder, out = finished
    found = json.loads(
        (folder / "run" / "evaluations" / "test" / "metrics.json").read_text()
    )
    assert found["roc_auc"] >= 0.75
    assert found["normal"] == found["abnormal"] == 100
    assert found["random_weights"] is True
    assert f"ROC AUC {found['roc_auc']:.3f}" in out


def test_what_the_demo_saw_and_reconstructed_look_alike(finished):
    folder, _ = finished
    config = config_files.load(str(folder / "run" / "config.json"))
    assert config.data.resolution == 16
    grids = sorted((folder / "run" / "samples").iterdir())
    grid = np.asarray(Image.open(grids[-1]), float)
    seen, made = np.split(grid, 2)
    # to be told from any one image: correlated with its own input above all others
    own = np.split(seen, 8, axis=1)
    found = np.split(made, 8, axis=1)
    table = np.corrcoef([image.ravel() for image in own + found])[:8, 8:]
    assert (table.diagonal() > 0.9).all()

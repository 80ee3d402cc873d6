"""Functions from a file outside of the package, by the command line and by Python."""

import csv
import json
import re
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import run_factory

import dpa_jax
from dpa_jax import errors, losses, optim, validation
from dpa_jax.scoring import scores
from dpa_jax.storage import checkpoints

MODULE = '''
import jax.numpy as jnp
import optax

from dpa_jax.backbones.base import Backbone


def halves():
    """A backbone of one layer: twice the image, and half of it."""
    return Backbone(
        name="halves",
        layers=("both",),
        load=lambda location, layers: {"a": {"scale": [2.0, 0.5]}},
        apply=lambda weights, x, layers, backend: {"both": x * weights["a"]["scale"]},
        preprocess=lambda images: images,
    )


def darkest(comparison):
    return -comparison.reconstruction.min((1, 2, 3))


def where(comparison):
    return comparison.image[..., 0]


def badly_shaped(comparison):
    return comparison.image


def descent(learning_rate):
    return optax.chain(optax.trace(0.5), optax.scale_by_learning_rate(learning_rate))
'''


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run by the command line whose backbone, loss and optimizer are `theirs`."""
    folder = tmp_path_factory.mktemp("extended")
    (folder / "theirs.py").write_text(MODULE)
    np.savez(folder / "train.npz", images=run_factory.images(size=8))
    config = run_factory.quick_config()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_factory.write_config(folder / "config.json", config)
        code, _, err = run_factory.call(
            "train",
            "--config=config.json",
            "--workdir=run",
            "--config.data.train=train.npz",
            "--config.perceptual.backbone=theirs:halves",
            "--config.perceptual.layers=8:both",
            "--config.perceptual.statistics=train",
            "--config.loss.relative_perceptual=1",
            "--config.loss.extra=theirs:darkest",
            "--config.loss.extra_weight=0.25",
            "--config.optimizer.name=theirs:descent",
        )
        assert code == 0, err
    return folder


@pytest.fixture
def inside(trained, monkeypatch):
    monkeypatch.chdir(trained)
    return trained


def test_the_workdir_records_what_it_needs(trained):
    found = json.loads((trained / "run" / "extensions.json").read_text())
    assert {field: about["name"] for field, about in found.items()} == {
        "perceptual.backbone": "theirs:halves",
        "loss.extra": "theirs:darkest",
        "optimizer.name": "theirs:descent",
    }


def test_the_whole_state_of_an_optimizer_is_in_the_checkpoint(trained):
    step = checkpoints.latest(trained / "run")
    found = checkpoints.restore(trained / "run", step).arrays["optimizer"]
    assert found and all(name.startswith("0.trace.") for name in found)


def test_scores_are_columns_and_maps_are_files(inside, tmp_path):
    images = run_factory.write_folder(tmp_path / "images", count=3)
    code, _, err = run_factory.call(
        *("score", images, "--workdir=run", "--trust", "--out", tmp_path / "s.csv"),
        *("--score=layers", "--score=l1", "--score=theirs:darkest", "--explain"),
        *("--score=theirs:where", "--maps", tmp_path / "maps"),
    )
    assert code == 0, err
    with open(tmp_path / "s.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        *("path", "score", "layers.both", "l1", "theirs:darkest"),
        *("share.both", "share.extra", "share.l1", "map"),
    ]
    for row in rows:  # the run's loss: its terms with their weights
        total = sum(
            weight * float(row[name])
            for name, weight in (
                ("layers.both", 1),
                ("l1", 1),
                ("theirs:darkest", 0.25),
            )
        )
        np.testing.assert_allclose(float(row["score"]), total, rtol=1e-5)
        shares = [float(row[f"share.{name}"]) for name in ("both", "l1", "extra")]
        assert sum(shares) == pytest.approx(1)
        assert shares[1] * total == pytest.approx(float(row["l1"]))
    assert len(list((tmp_path / "maps" / "theirs.where").glob("*.npy"))) == 3


def test_a_run_with_functions_of_others_asks_for_trust(inside):
    code, _, err = run_factory.call("score", "x.png", "--workdir=run", "--out=t.csv")
    assert code == 1
    assert re.search(r"run uses theirs:halves \(perceptual.backbone\).*--trust", err)


def test_a_run_whose_functions_are_gone_names_them(trained, tmp_path, monkeypatch):
    workdir = shutil.copytree(trained / "run", tmp_path / "run")
    config = json.loads((workdir / "config.json").read_text())
    config["loss"]["extra"] = "gone_for_good:loss"
    (workdir / "config.json").write_text(json.dumps(config))
    monkeypatch.chdir(trained)
    with pytest.raises(errors.UsageError, match="loss.extra is gone_for_good:loss"):
        dpa_jax.load(workdir, trust=True)


def test_a_changed_function_is_told(inside, tmp_path, capfd):
    workdir = shutil.copytree(inside / "run", tmp_path / "run")
    found = json.loads((workdir / "extensions.json").read_text())
    found["loss.extra"]["sha256"] = "0" * 64
    (workdir / "extensions.json").write_text(json.dumps(found))
    dpa_jax.load(workdir, trust=True)
    _, err = capfd.readouterr()
    assert re.findall(r"warning: (\S+) \((\S+)\) has changed since", err) == [
        ("theirs:darkest", "loss.extra")
    ]


def test_a_score_of_a_wrong_shape_is_refused(inside):
    images = run_factory.images(2, 8)
    with pytest.raises(errors.UsageError, match=r"returns \[2, 8, 8, 1\] for 2 images"):
        dpa_jax.score("run", images, ["theirs:badly_shaped"], trust=True, batch_size=2)


def test_an_unknown_score_is_refused(inside):
    code, _, err = run_factory.call(
        *("score", "x.png", "--workdir=run", "--score=sharpness", "--out=t.csv")
    )
    assert code == 2 and "--score=sharpness: a score is loss, layers, l1" in err


def test_built_in_scores_by_hand(rng):
    x, y = rng.uniform(-1, 1, (2, 3, 4, 4, 1)).astype(np.float32)
    z = rng.standard_normal((3, 1, 1, 5)).astype(np.float32)
    made = losses.Comparison(x, y, jnp.asarray(z), {}, {})
    found = {
        **scores.compute("l1", losses.Loss(), {}, made),
        **scores.compute("latent_norm", losses.Loss(), {}, made),
    }
    np.testing.assert_allclose(found["l1"], abs(x - y).mean((1, 2, 3)), rtol=1e-6)
    expected = np.linalg.norm(z.reshape(3, 5), axis=1)
    np.testing.assert_allclose(found["latent_norm"], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer.name": "adamm"}, "did you mean adam"),
        ({"optimizer.schedule": "cosin"}, "did you mean cosine"),
        ({"optimizer.weight_decay": 0.1}, "adamw, lion, adafactor take one, adam does"),
        ({"optimizer.warmup_steps": 4000}, "the shortest stage has 3500 steps"),
        ({"optimizer.gradient_clip": -1.0}, "gradient_clip is -1"),
        ({"loss.extra": "darkest"}, "loss.extra is 'darkest'; write module:function"),
        ({"perceptual.backbone": "resnet50"}, "statistics=imagenet are those of vgg19"),
        ({"perceptual.backbone": "alexnet"}, "it may be vgg19, resnet50"),
    ],
)
def test_what_cannot_work_is_refused_by_name(changes, message):
    from dpa_jax.config import default_config, updated

    config = updated(default_config(), changes, "test")
    with pytest.raises(errors.UsageError, match=message):
        validation.validate(config)


def test_every_name_of_an_optimizer_is_accepted():
    config = dpa_jax.default_config()
    for name in optim.NAMES:
        config.optimizer.name = name
        validation.validate(config)

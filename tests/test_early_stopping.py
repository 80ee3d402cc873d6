import json

import numpy as np
import pytest
import run_factory

import dpa_jax
from dpa_jax import checkpoint, folds, score, stopping, training
from dpa_jax.stopping import Look


def looks(*losses):
    return [Look(10 * (i + 1), loss) for i, loss in enumerate(losses)]


def test_only_more_than_min_delta_is_an_improvement():
    # 0.95 is 0.05 below 1.0, and 0.89 is 0.06 below 0.95 but 0.11 below 1.0
    found = stopping.best(looks(1.0, 0.95, 0.89, 0.85), min_delta=0.1)
    assert found == Look(30, 0.89)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ((), False),
        ((1.0,), False),
        ((1.0, 1.1, 1.1), False),  # two looks without improvement are borne
        ((1.0, 1.1, 1.1, 1.1), True),
        ((1.0, 1.1, 1.1, 0.9, 1.0, 1.0), False),
        ((1.0, 1.1, 1.1, 0.9, 1.0, 1.0, 1.0), True),
    ],
)
def test_it_ends_when_patience_is_exceeded(losses, expected):
    assert stopping.ended(looks(*losses), patience=2, min_delta=0.0) is expected


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A run of 8 pixels that learns until its rate no longer lets it improve."""
    config = run_factory.quick_config()
    folder = tmp_path_factory.mktemp("data")
    config.data.train = run_factory.write_npz(folder / "train.npz")
    config.data.folds, config.data.fold = 3, 1
    config.early_stopping.every = 10
    config.early_stopping.patience = 2
    config.early_stopping.min_delta = 0.02
    config.stages.final_steps = 5_000
    config.optimizer.learning_rate = 3e-3
    return config


@pytest.fixture(scope="module")
def stopped(config, tmp_path_factory):
    return dpa_jax.train(config, tmp_path_factory.mktemp("run"), visible=False)


def rows(folder):
    return [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_stops_and_keeps_its_best_step(config, stopped):
    found = stopping.result(stopped)
    seen = [(r["step"], r["held_out_loss"]) for r in rows(stopped) if "alpha" not in r]
    assert [step for step, _ in seen] == list(range(10, 10 * len(seen) + 1, 10))
    # by hand: the last of the losses that was more than 0.02 below all before
    best = seen[0]
    for step, loss in seen[1:]:
        best = (step, loss) if loss < best[1] - 0.02 else best
    assert (found.steps, found.loss) == best
    assert found.stopped and found.trained == found.steps
    assert seen[-1][0] == found.steps + 30  # three looks more, patience being two
    assert checkpoint.latest(stopped) == seen[-1][0] < 5_000


def test_scores_come_from_the_best_step(config, stopped):
    found = stopping.result(stopped)
    scorer = score.load(stopped)
    assert scorer.trained == found.steps
    images = training.training_images(config, visible=False)
    held = images.images[folds.held_out(images, 3, 1)]
    np.testing.assert_allclose(scorer(held).mean(), found.loss, rtol=1e-6)


def test_the_fold_is_not_trained_on(stopped):
    assert json.loads((stopped / "data.json").read_text())["images"] == 16


def test_a_stopped_run_is_finished(config, stopped):
    before = run_factory.files(stopped)
    dpa_jax.train(config, stopped, visible=False)
    assert run_factory.files(stopped) == before


def test_an_interrupted_run_stops_at_the_same_step(
    config, stopped, tmp_path, monkeypatch
):
    class Stop(Exception):
        pass

    save = checkpoint.Checkpoints.save

    def stopping_at(self, step, tree):
        save(self, step, tree)
        if step == checkpoint.latest(stopped) - 10:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Checkpoints, "save", stopping_at)
        with pytest.raises(Stop):
            dpa_jax.train(config, tmp_path, visible=False)
    assert stopping.result(tmp_path) is None
    dpa_jax.train(config, tmp_path, visible=False)
    assert stopping.result(tmp_path) == stopping.result(stopped)
    assert checkpoint.latest(tmp_path) == checkpoint.latest(stopped)


def test_the_last_step_is_looked_at_too(config, tmp_path):
    config = config.copy_and_resolve_references()
    config.stages.final_steps = 15
    folder = dpa_jax.train(config, tmp_path, visible=False)
    seen = json.loads((folder / "early_stopping.json").read_text())
    assert [step for step, _ in seen["looks"]] == [10, 15]
    assert not seen["stopped"]

import json

import numpy as np
import pytest
import run_factory

import dpa_jax
from dpa_jax import training
from dpa_jax.data import folds
from dpa_jax.scoring import loading
from dpa_jax.storage import checkpoints
from dpa_jax.training import early_stopping
from dpa_jax.training.early_stopping import Evaluation


def evaluations(*losses):
    return [Evaluation(10 * (i + 1), loss) for i, loss in enumerate(losses)]


def test_only_more_than_min_delta_is_an_improvement():
    # 0.95 is 0.05 below 1.0, and 0.89 is 0.06 below 0.95 but 0.11 below 1.0
    found = early_stopping.best(evaluations(1.0, 0.95, 0.89, 0.85), min_delta=0.1)
    assert found == Evaluation(30, 0.89)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ((), False),
        ((1.0,), False),
        ((1.0, 1.1, 1.1), False),  # two without improvement are within patience
        ((1.0, 1.1, 1.1, 1.1), True),
        ((1.0, 1.1, 1.1, 0.9, 1.0, 1.0), False),
        ((1.0, 1.1, 1.1, 0.9, 1.0, 1.0, 1.0), True),
    ],
)
def test_it_ends_when_patience_is_exceeded(losses, expected):
    found = early_stopping.is_over(evaluations(*losses), patience=2, min_delta=0.0)
    assert found is expected


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
    found = early_stopping.result(stopped)
    seen = [(r["step"], r["held_out_loss"]) for r in rows(stopped) if "alpha" not in r]
    assert [step for step, _ in seen] == list(range(10, 10 * len(seen) + 1, 10))
    # by hand: the last of the losses that was more than 0.02 below all before
    best = seen[0]
    for step, loss in seen[1:]:
        best = (step, loss) if loss < best[1] - 0.02 else best
    assert (found.steps, found.loss) == best
    assert found.stopped and found.trained == found.steps
    assert seen[-1][0] == found.steps + 30  # three more, patience being two
    assert checkpoints.latest(stopped) == seen[-1][0] < 5_000


def test_scores_come_from_the_best_step(config, stopped):
    found = early_stopping.result(stopped)
    scorer = loading.load(stopped)
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


def test_an_interrupted_run_stops_at_the_same_step(config, stopped, tmp_path):
    run_factory.train_until(config, tmp_path, checkpoints.latest(stopped) - 10)
    assert early_stopping.result(tmp_path) is None
    dpa_jax.train(config, tmp_path, visible=False)
    assert early_stopping.result(tmp_path) == early_stopping.result(stopped)
    run_factory.assert_same_run(tmp_path, stopped)


@pytest.mark.parametrize("length", [1, 4, 100])
def test_it_stops_at_the_same_step_whatever_a_chunk_is(
    config, stopped, tmp_path, length
):
    config = config.copy_and_resolve_references()
    config.steps_per_chunk = length
    folder = dpa_jax.train(config, tmp_path, visible=False)
    run_factory.assert_same_run(folder, stopped)


def test_the_best_step_stays_however_often_checkpoints_are_written(
    config, stopped, tmp_path
):
    config = config.copy_and_resolve_references()
    config.checkpoint_every = 2
    folder = dpa_jax.train(config, tmp_path, visible=False)
    found = early_stopping.result(folder)
    assert found == early_stopping.result(stopped)
    assert loading.load(folder).trained == found.trained
    assert found.trained in checkpoints.steps(folder)


def test_a_run_that_did_not_stop_goes_on_if_it_is_given_more_steps(config, tmp_path):
    config = config.copy_and_resolve_references()
    config.early_stopping.min_delta = 0.0
    config.early_stopping.patience = 100
    whole = config.copy_and_resolve_references()
    whole.stages.final_steps = 30
    expected = dpa_jax.train(whole, tmp_path / "whole", visible=False)
    config.stages.final_steps = 15
    folder = dpa_jax.train(config, tmp_path / "run", visible=False)
    assert early_stopping.result(folder).stopped is False
    config.stages.final_steps = 30
    dpa_jax.train(config, folder, visible=False)
    assert early_stopping.result(folder) == early_stopping.result(expected)


def test_the_last_step_is_evaluated_too(config, tmp_path):
    config = config.copy_and_resolve_references()
    config.stages.final_steps = 15
    folder = dpa_jax.train(config, tmp_path, visible=False)
    seen = json.loads((folder / "early_stopping.json").read_text())
    assert [step for step, _ in seen["evaluations"]] == [10, 15]
    assert not seen["stopped"]

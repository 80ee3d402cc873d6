"""Runs from Python alone: images as arrays, callbacks, scores and evaluation."""

import json

import numpy as np
import pytest
import run_factory

import dpa_jax
from dpa_jax import data, errors


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on an array, and the events its callback was told of."""
    folder, events = tmp_path_factory.mktemp("in_memory") / "run", []
    config = run_factory.quick_config()
    config.log_every, config.checkpoint_every = 3, 4
    dpa_jax.train(
        config,
        folder,
        images=run_factory.images(),
        callbacks=[events.append],
        visible=False,
    )
    return folder, events


def test_an_array_trains_as_the_same_images_in_a_file_do(trained, tmp_path):
    config = run_factory.quick_config()
    config.log_every, config.checkpoint_every = 3, 4
    config.data.train = run_factory.write_npz(tmp_path / "train.npz")
    dpa_jax.train(config, tmp_path / "run", visible=False)
    run_factory.assert_same_run(trained[0], tmp_path / "run")


def test_callbacks_are_told_what_happened_in_order(trained):
    folder, events = trained
    assert {event.workdir for event in events} == {folder}
    assert [(event.kind, event.step) for event in events] == [
        ("metrics", 3),
        ("checkpoint", 4),
        ("metrics", 6),
        ("checkpoint", 6),
        ("stage", 6),
    ]
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    told = [event for event in events if event.kind == "metrics"]
    for row, event in zip(rows, told, strict=True):
        assert row == {"step": event.step, "stage": event.stage, **event.values}


def test_an_exception_of_a_callback_ends_the_run(tmp_path):
    def refuse(event):
        raise RuntimeError("no more of this")

    with pytest.raises(RuntimeError, match="no more of this"):
        dpa_jax.train(
            run_factory.quick_config(),
            tmp_path,
            images=run_factory.images(),
            callbacks=[refuse],
            visible=False,
        )


def test_what_is_no_array_of_images_is_refused(tmp_path):
    with pytest.raises(errors.DpaError, match=r"images must be \[N, H, W\]"):
        dpa_jax.train(
            run_factory.quick_config(),
            tmp_path,
            images=np.zeros((3, 8, 8, 2)),
            visible=False,
        )


def test_images_of_any_size_are_scored_as_the_run_prepares_them(trained):
    images = run_factory.images(3, 24)
    found = dpa_jax.score(trained[0], images)["loss"]
    scorer = dpa_jax.load(trained[0])
    preprocessing = data.Preprocessing.from_config(scorer.config, scoring=True)
    prepared = data.as_image_set(images, preprocessing).images
    assert prepared.shape == (3, 8, 8, 1)
    np.testing.assert_array_equal(found, scorer(prepared))


def test_labelled_arrays_are_evaluated(trained):
    images, labels = run_factory.images(6, seed=1), [0, 1, 0, 1, 1, 0]
    result = dpa_jax.evaluate(trained[0], images, labels)
    scores = dpa_jax.score(trained[0], images)["loss"]
    pairs = [
        float(scores[i] > scores[j])
        for i in range(6)
        for j in range(6)
        if labels[i] > labels[j]
    ]
    assert result["roc_auc"] == pytest.approx(np.mean(pairs))


def test_evaluation_needs_labels(trained):
    with pytest.raises(errors.DpaError, match="no labels: give labels="):
        dpa_jax.evaluate(trained[0], run_factory.images(3))


def test_public_names_are_listed():
    assert {"train", "load", "score", "evaluate", "default_config"} <= set(dir(dpa_jax))

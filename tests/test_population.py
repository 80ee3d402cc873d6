"""Several runs at once: each as it would be alone."""

import dataclasses
import json
import shutil
from unittest import mock

import jax
import numpy as np
import pytest
import run_factory
import sklearn.metrics
import tiny_factory as tiny

import dpa_jax
from dpa_jax import errors, step, training
from dpa_jax.backbones import statistics
from dpa_jax.config import updated
from dpa_jax.ops.compute import Compute
from dpa_jax.scoring import loading
from dpa_jax.storage import checkpoints, config_files
from dpa_jax.training import early_stopping

TOLERANCE = 1e-5


def assert_alike(ours, theirs):
    step = checkpoints.latest(theirs)
    assert checkpoints.latest(ours) == step
    a, b = (run_factory.arrays(w, step)["parameters"] for w in (ours, theirs))
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=TOLERANCE)


def losses(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Grows, with VGG19, random crops and flips; Adam's steps small (see TINY)."""
    folder = tmp_path_factory.mktemp("data")
    config = run_factory.tiny_config()
    config.data.train = run_factory.write_npz(
        folder / "train.npz", images=run_factory.images(size=20)
    )
    config.data.size = 20
    config.perceptual.layers = "8:r11 16:r11"
    config.data.random_crop = config.data.horizontal_flip = True
    config.optimizer.learning_rate = 1e-4
    config.seed = 5
    config.log_every = 1
    return config


@pytest.fixture(scope="module")
def population(config, tmp_path_factory):
    config = config.copy_and_resolve_references()
    config.population.seeds = 3
    return dpa_jax.train(config, tmp_path_factory.mktemp("three"), visible=False)


def test_members_are_ordinary_workdirs(population):
    names = {path.name for path in (population / "members" / "2").iterdir()}
    assert names >= {"config.json", "checkpoints", "metrics.jsonl", "statistics.npz"}
    config = config_files.load(str(population / "members" / "2" / "config.json"))
    assert (config.seed, config.data.seed, config.population.seeds) == (7, 5, 1)
    scorer = loading.load(population / "members" / "2")
    assert np.isfinite(scorer(run_factory.images(2, size=20))).all()


def test_a_member_is_what_it_is_alone(config, population, tmp_path):
    alone = config.copy_and_resolve_references()
    alone.seed, alone.data.seed = 7, 5
    folder = dpa_jax.train(alone, tmp_path, visible=False)
    assert_alike(population / "members" / "2", folder)
    np.testing.assert_allclose(
        losses(population / "members" / "2"), losses(folder), rtol=TOLERANCE
    )


def test_the_first_member_is_the_run_without_a_population(config, population, tmp_path):
    folder = dpa_jax.train(config, tmp_path, visible=False)
    assert_alike(population / "members" / "0", folder)


def test_members_differ(population):
    found = [losses(population / "members" / str(i))[0] for i in range(3)]
    assert len({round(loss, 4) for loss in found}) == 3


def test_a_population_is_no_run_to_score_with(population):
    with pytest.raises(errors.DpaError, match="holds 3 runs; give one of them"):
        loading.load(population)


def test_a_finished_population_trains_nothing(config, population):
    config = config.copy_and_resolve_references()
    config.population.seeds = 3
    before = run_factory.files(population)
    dpa_jax.train(config, population, visible=False)
    assert run_factory.files(population) == before


@pytest.fixture
def quick(tmp_path):
    config = run_factory.quick_config()
    config.data.train = run_factory.write_npz(tmp_path / "train.npz")
    return config


def with_rates(config, *rates):
    return [
        updated(config, {"optimizer.learning_rate": rate}, "test") for rate in rates
    ]


def test_statistics_are_computed_once_for_all(config, tmp_path, monkeypatch):
    computed = []
    real = statistics.feature_statistics

    def count(*arguments, **more):
        computed.append(1)
        return real(*arguments, **more)

    monkeypatch.setattr(statistics, "feature_statistics", count)
    folders = [tmp_path / "a", tmp_path / "b"]
    training.train_together(
        with_rates(config, 1e-4, 2e-4),
        folders,
        after_stage=lambda *_: False,
        visible=False,
    )
    assert len(computed) == 1
    ours, theirs = (folder / "statistics.npz" for folder in folders)
    assert ours.read_bytes() == theirs.read_bytes()


def test_rates_are_the_members_own(quick, tmp_path):
    configs = with_rates(quick, 1e-3, 1e-2)
    folders = [tmp_path / "low", tmp_path / "high"]
    assert training.train_together(configs, folders, visible=False) == [None, None]
    for one, folder in zip(configs, folders, strict=True):
        alone = dpa_jax.train(one, tmp_path / f"{folder.name}_alone", visible=False)
        assert_alike(folder, alone)


def killed_after(step, configs, folders):
    """Trains, and ends as if killed when the first run's checkpoint is written."""
    save = checkpoints.Checkpoints.save

    def once(self, number, *rest):
        save(self, number, *rest)
        if number == step:
            raise run_factory.Killed

    with (
        mock.patch.object(checkpoints.Checkpoints, "save", once),
        pytest.raises(run_factory.Killed),
    ):
        training.train_together(configs, folders, visible=False)


def test_interrupted_between_two_checkpoints_all_go_on_from_the_earlier(
    quick, tmp_path
):
    quick.checkpoint_every = 2
    configs = with_rates(quick, 1e-3, 2e-3)
    folders = [tmp_path / "a", tmp_path / "b"]
    killed_after(4, configs, folders)
    # the first has step 4, the second only step 2
    assert [checkpoints.latest(folder) for folder in folders] == [4, 2]
    training.train_together(configs, folders, visible=False)
    whole = [tmp_path / "c", tmp_path / "d"]
    training.train_together(configs, whole, visible=False)
    for folder, other in zip(folders, whole, strict=True):
        run_factory.assert_same_run(folder, other)


def test_one_that_diverged_costs_the_others_nothing_on_resumption(quick, tmp_path):
    quick.checkpoint_every, quick.stages.final_steps = 5, 40
    configs = with_rates(quick, 1e-3, 1e6)
    folders = [tmp_path / "good", tmp_path / "bad"]
    killed_after(30, configs, folders)  # long after the second was given up
    failure = json.loads((tmp_path / "bad" / "failure.json").read_text())
    assert failure["step"] < 10 and "training diverged" in failure["reason"]
    found = []

    class Watched(checkpoints.Checkpoints):
        def forget(self, after):
            found.append(after)
            super().forget(after)

    with mock.patch.object(checkpoints, "Checkpoints", Watched):
        failures = training.train_together(configs, folders, visible=False)
    assert failures == [None, failure["reason"]]
    assert found == [30]  # nothing of the good one was given up
    alone = dpa_jax.train(configs[0], tmp_path / "alone", visible=False)
    assert_alike(tmp_path / "good", alone)


def test_one_that_diverges_leaves_the_others_alone(quick, tmp_path):
    folders = [tmp_path / "good", tmp_path / "bad"]
    configs = with_rates(quick, 1e-3, 1e6)
    failures = training.train_together(configs, folders, visible=False)
    assert failures[0] is None and "training diverged" in failures[1]
    assert checkpoints.latest(tmp_path / "good") == 6
    assert checkpoints.latest(tmp_path / "bad") is None
    alone = dpa_jax.train(configs[0], tmp_path / "alone", visible=False)
    assert_alike(tmp_path / "good", alone)


def test_early_stopping_ends_each_by_itself(quick, tmp_path):
    quick.data.folds = 3
    quick.early_stopping.every, quick.early_stopping.patience = 10, 1
    quick.early_stopping.min_delta = 0.001
    quick.stages.final_steps = 400
    configs = with_rates(quick, 1e-9, 3e-3)  # the first cannot improve
    folders = [tmp_path / "still", tmp_path / "learning"]
    training.train_together(configs, folders, visible=False)
    still, learning = map(early_stopping.result, folders)
    assert (still.steps, still.stopped) == (10, True)
    assert checkpoints.latest(tmp_path / "still") == 30
    assert learning.steps > 30


def test_after_a_stage_a_member_may_be_given_up(config, tmp_path):
    asked = []

    def after(number, stage, scorer):
        asked.append((number, stage.name, scorer.stage.resolution))
        return number == 0 or stage.transition is False

    folders = [tmp_path / "a", tmp_path / "b"]
    plain = {"loss.relative_perceptual": 0.0, "loss.l1": 1.0}
    configs = with_rates(updated(config, plain, "test"), 1e-4, 2e-4)
    training.train_together(configs, folders, after_stage=after, visible=False)
    assert asked == [
        (0, "8_stabilization", 8),
        (1, "8_stabilization", 8),
        (0, "16_transition", 16),
        (1, "16_transition", 16),
    ]
    assert [checkpoints.latest(folder) for folder in folders] == [12, 8]


def test_what_one_program_cannot_train_is_refused(quick, tmp_path):
    other = updated(quick, {"batch_size": 4}, "test")
    with pytest.raises(errors.UsageError, match="differ in batch_size: 8 and 4"):
        training.train_together([quick, other], [tmp_path / "a", tmp_path / "b"])
    other = updated(quick, {"seed": 1}, "test")
    with pytest.raises(errors.UsageError, match="the same data.seed"):
        training.train_together([quick, other], [tmp_path / "a", tmp_path / "b"])


def test_an_accelerators_program_computes_the_same():
    """By vmap, with an accelerator's arrangement of convolutions, run here."""
    spec = tiny.spec(tiny.GROWING, members=2)
    begun, frozen = tiny.begin(tiny.GROWING, members=2), tiny.frozen(rates=[1e-4, 3e-4])
    data, index = {"images": tiny.in_tiles()}, np.arange(4)
    (here, losses_here), (there, losses_there) = (
        jax.jit(step.gathering_step(dataclasses.replace(spec, compute=compute)))(
            begun, frozen, data, index
        )
        for compute in (Compute(), Compute(backend="gpu"))
    )
    np.testing.assert_allclose(losses_here["loss"], losses_there["loss"], rtol=1e-5)
    for a, b in zip(
        jax.tree.leaves(here.parameters), jax.tree.leaves(there.parameters), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE)


def test_evaluate_reports_mean_deviation_and_interval(population, tmp_path):
    labels = np.array([0] * 6 + [1] * 6)
    images = run_factory.images(12, size=20, seed=4)
    test = run_factory.write_npz(tmp_path / "t.npz", images=images, labels=labels)
    folder = shutil.copytree(population, tmp_path / "population")
    taken = folder / "members" / "2" / "evaluations" / "t"
    taken.mkdir(parents=True)
    code, text, err = run_factory.call("evaluate", "--workdir", folder, "--test", test)
    assert code == 0, err
    assert not any(taken.iterdir())  # a name that one member has is no member's
    out = folder / "evaluations" / "t-2"
    found = json.loads((out / "metrics.json").read_text())
    each = []
    for i in range(3):
        scores = loading.load(population / "members" / str(i))(images)
        each.append(sklearn.metrics.roc_auc_score(labels, scores))
        alone = folder / "members" / str(i) / "evaluations" / "t-2" / "metrics.json"
        alone = json.loads(alone.read_text())
        assert alone["roc_auc"] == pytest.approx(each[-1])
    assert found["roc_auc"] == pytest.approx(each)
    assert found["roc_auc_mean"] == pytest.approx(np.mean(each))
    assert found["roc_auc_sd"] == pytest.approx(np.std(each, ddof=1))
    low, high = found["roc_auc_interval"]
    assert 0 <= low < found["roc_auc_mean"] < high <= 1
    assert f"3 runs: mean ROC AUC {np.mean(each):.4f}" in text

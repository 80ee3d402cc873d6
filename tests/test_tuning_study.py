import csv

import numpy as np
import pytest
import run_factory
import study_factory
import tiny_factory as tiny
from study_factory import optuna

import dpa_jax
from dpa_jax import data, errors, stages, training
from dpa_jax.data import folds
from dpa_jax.storage import config_files
from dpa_jax.training import early_stopping, programs
from dpa_jax.training.compiled import Programs
from dpa_jax.tuning import queue, selection, study, trials
from dpa_jax.tuning.search import load


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Six steps at 8 pixels on 24 patients of two images each."""
    made = run_factory.quick_config()
    made.data.train = run_factory.write_npz(
        tmp_path_factory.mktemp("data") / "normal.npz",
        images=run_factory.images(48),
        groups=np.array([f"patient{i // 2}" for i in range(48)]),
    )
    made.model.latent_channels = 2
    return made


@pytest.fixture(scope="module")
def search(config, tmp_path_factory):
    """A grid of two learning rates, ranked by six of nine anomalies."""
    folder = tmp_path_factory.mktemp("anomalies")
    pictures = run_factory.images(9, seed=1) // 2 + np.uint8(90)
    pictures[::2, ::2] = 255  # every second is striped, the others merely pale
    groups = np.array(["patient5", "a", "patient3", *"bcdefg"])
    source = run_factory.write_npz(folder / "a.npz", images=pictures, groups=groups)
    found = study_factory.search(folder, config)
    found.grid.update({"width": (2,)})
    found.options.anomalies.update({"source": source, "count": 6})
    assert anomalies_drawn(found, config).tolist() == [2, 3, 4, 5, 6, 8]
    return found


def anomalies_drawn(found, config):
    return trials.loader(found.options, False)(config)[2].drawn


@pytest.fixture(scope="module")
def finished(config, search, tmp_path_factory):
    """A study's folder with all its trials; not to be changed."""
    folder = tmp_path_factory.mktemp("finished") / "study"
    study.tune(config, search, folder, visible=False)
    return folder


@pytest.fixture
def untrained(monkeypatch):
    """Puts made-up scores in the place of training; returns what notes the folds."""

    def made(during=lambda number, fold, after_stage: ""):
        done = []

        def train_fold(config, path, images, after_stage, compiled, visible):
            number, fold = int(path.parent.parent.name), int(path.parent.name[5:])
            done.append((number, fold))
            failure = during(number, fold, after_stage)
            if failure == "":
                scores = np.random.default_rng((number, fold)).normal(size=24)
                made = study_factory.fold(scores[:9], normal=scores, steps=4)
                selection.write_fold(path, made)
            return failure or ""

        monkeypatch.setattr(trials, "train_fold", train_fold)
        return done

    return made


def table(folder):
    with open(folder / "ranking.csv", newline="") as file:
        return list(csv.DictReader(file))


def optuna_trials(folder):
    name, database = queue.connect(folder)
    found = optuna.load_study(study_name=name, storage=database).get_trials()
    return [(trial.user_attrs["index"], trial.state.name) for trial in found]


# --- with real runs ---


def test_folds_are_trained_without_the_patients_of_drawn_anomalies(
    finished, config, search
):
    normal = training.training_images(config, visible=False)
    kept = normal.select(np.array(normal.groups) != "patient3")
    for number, rate in enumerate((0.001, 0.02)):
        seen = []
        for fold in range(2):
            path = selection.scores(finished, number, fold)
            made = config_files.load(str(path.parent / "config.json"))
            assert (made.data.folds, made.data.fold, made.data.seed) == (2, fold, 0)
            assert made.optimizer.learning_rate == rate
            found, scorer = selection.read_fold(path), dpa_jax.load(path.parent)
            held = kept.select(folds.held_out(kept, 2, fold))
            np.testing.assert_array_equal(found.normal, scorer(held.images))
            np.testing.assert_array_equal(found.groups, held.groups)
            pool = data.load(
                search.options.anomalies.source, data.Preprocessing.from_config(config)
            )
            np.testing.assert_array_equal(found.anomalies, scorer(pool.images))
            stopped = early_stopping.result(path.parent)
            assert (found.steps, found.loss) == (stopped.steps, stopped.loss)
            seen += [*found.groups]
        assert sorted(seen) == sorted(kept.groups)
    page = (finished / "report.md").read_text()
    assert "2 of 9 anomalies share a patient or slide with the 48 normal" in page
    assert "The 2 normal images of those drawn are neither trained on" in page


def test_a_fold_compiles_nothing_that_the_one_before_did(config, search, tmp_path):
    normal = training.training_images(config, visible=False)  # two folds of 24
    compiled, counts = Programs(), []
    for fold in range(2):
        one, path = (
            search.fold_config(config, fold),
            tmp_path / str(fold) / "scores.npz",
        )
        images = (normal, normal, None)
        with tiny.compilations() as found:
            assert trials.train_fold(one, path, images, None, compiled, False) == ""
        counts.append(len(found))
    assert counts[0] > 0 and counts[1] == 0


# --- without ---


def test_finished_study_is_not_trained_again(finished, config, search, untrained):
    done = untrained()
    before = run_factory.files(finished / "trials")
    ranking, lines = study.tune(config, search, finished, visible=False)
    assert not done and run_factory.files(finished / "trials") == before
    assert str(ranking.trials[0].number) == table(finished)[0]["trial"]
    assert any(line.startswith("rank=1, trial=") for line in lines)
    # and its folder alone is enough
    again, found = study.load(finished)
    study.tune(again, found, finished, visible=False)
    assert not done


@pytest.mark.parametrize(
    "change, message",
    [
        ({"batch_size": 4}, "config.batch_size was 8, is 4"),
        ({"folds": 3}, "search.folds was 2, is 3"),
        ({"source": "# changed"}, "search.py was '.*', is"),
    ],
)
def test_another_study_is_refused_with_the_fields(
    finished, config, search, untrained, tmp_path, change, message
):
    untrained()
    changed = config.copy_and_resolve_references()
    changed.batch_size = change.get("batch_size", 8)
    (tmp_path / "search.py").write_text(study_factory.SEARCH + change.get("source", ""))
    values = {**search.values(), "folds": change.get("folds", 2)}
    found = load(tmp_path / "search.py", config, values)
    before = run_factory.files(finished / "trials")
    kept = (finished / "config.json").read_bytes()
    with pytest.raises(errors.UsageError, match=message):
        study.tune(changed, found, finished, visible=False)
    assert run_factory.files(finished / "trials") == before
    assert (finished / "config.json").read_bytes() == kept


def test_folder_of_a_run_is_refused(config, search, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(errors.DpaError, match="holds a run"):
        study.tune(config, search, tmp_path, visible=False)


def test_interrupted_worker_ends_and_leaves_its_trial(
    config, search, tmp_path, untrained
):
    def interrupt(number, fold, after_stage):
        if (number, fold) == (0, 1):
            raise KeyboardInterrupt
        return ""

    done = untrained(interrupt)
    with pytest.raises(KeyboardInterrupt):
        study.tune(config, search, tmp_path / "s", visible=False)
    done = untrained()
    study.tune(config, search, tmp_path / "s", visible=False)
    assert done == [(0, 1), (1, 0), (1, 1)]  # the other fold was kept
    assert sorted(optuna_trials(tmp_path / "s")) == [
        *((0, "COMPLETE"), (0, "FAIL"), (1, "COMPLETE"))
    ]


def test_failed_trial_has_its_reason_and_the_study_goes_on(
    config, search, tmp_path, untrained
):
    untrained(lambda number, *_: "" if number else "the loss diverged")
    ranking, lines = study.tune(config, search, tmp_path / "s", visible=False)
    assert [trial.number for trial in ranking.trials] == [1]
    assert "Trial 0 failed: fold 0: the loss diverged." in lines
    untrained(lambda *_: "diverged")
    with pytest.raises(errors.DpaError, match="no best trial.*Trial 1 failed: fold 0"):
        study.tune(config, search, tmp_path / "other", visible=False)


def test_trial_below_the_median_is_given_up_in_its_first_fold(
    config, search, tmp_path, untrained, monkeypatch
):
    monkeypatch.setattr(queue, "STARTUP", 1)

    def growing(number, fold, after_stage):
        if fold:
            assert after_stage is None
            return ""
        return "" if after_stage(0, [0.8, 0.7][number]) else None

    done = untrained(growing)
    study.tune(config, search, tmp_path / "s", visible=False)
    assert done == [(0, 0), (0, 1), (1, 0)]
    assert optuna_trials(tmp_path / "s") == [(0, "COMPLETE"), (1, "PRUNED")]


# --- a fold ---


NORMAL = data.ImageSet(
    run_factory.images(12, 8)[..., None],
    [f"normal{i}" for i in range(12)],
    groups=[f"patient{i // 3}" for i in range(12)],
)


def brightness(images, progress=None):
    """Scores images by their mean."""
    return images.mean(axis=(1, 2, 3), dtype=np.float64).astype(np.float32)


def train_fold(tmp_path, monkeypatch, train_together, after_stage=None):
    config = run_factory.quick_config()
    config.data.folds, config.data.fold = 2, 0
    monkeypatch.setattr(trials.training, "train_together", train_together)
    monkeypatch.setattr(trials.loading, "load", lambda folder: brightness)
    path = tmp_path / "fold_0" / "scores.npz"
    images = (NORMAL, NORMAL, study_factory.pool(5, [1, 3]))
    return path, trials.train_fold(config, path, images, after_stage, Programs(), False)


def test_run_that_fails_or_finds_too_little_memory_is_not_scored(tmp_path, monkeypatch):
    def narrow(*_, **__):
        raise programs.OutOfMemoryError("too little memory")

    path, failure = train_fold(tmp_path, monkeypatch, narrow)
    assert failure == "too little memory" and not path.exists()
    path, failure = train_fold(tmp_path, monkeypatch, lambda *_, **__: ["diverged"])
    assert failure == "diverged" and not path.exists()
    path, failure = train_fold(tmp_path, monkeypatch, lambda *_, **__: [None])
    found = selection.read_fold(path)  # without early stopping
    assert failure == "" and found.steps == 6
    assert found.loss == pytest.approx(found.normal.mean())


@pytest.mark.parametrize("goes_on", [True, False])
def test_stage_is_reported_with_the_auc_of_the_drawn_anomalies(
    tmp_path, monkeypatch, goes_on
):
    reported = []

    def growing(configs, folders, *, images, after_stage, compiled, visible):
        stage = stages.schedule(configs[0])[0]
        assert after_stage(0, stage, brightness) is goes_on
        return [None]

    def after_stage(step, value):
        reported.append((step, value))
        return goes_on

    path, failure = train_fold(tmp_path, monkeypatch, growing, after_stage)
    assert failure == "" and path.exists() is goes_on
    held = brightness(NORMAL.images[folds.held_out(NORMAL, 2, 0)])
    drawn = brightness(study_factory.pool(5, [1, 3]).images.images[[1, 3]])
    pairs = drawn[:, None] - held[None]
    expected = (pairs > 0).mean() + (pairs == 0).mean() / 2
    assert reported == [(0, pytest.approx(expected))]

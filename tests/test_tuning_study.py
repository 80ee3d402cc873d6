import csv
import json
import signal
import time

import jax
import numpy as np
import pytest
import run_factory
import study_factory

import dpa_jax
from dpa_jax import config_files, data, errors, folds, roc, stages, stopping, training

optuna = pytest.importorskip("optuna", reason="the extra tune is not installed")

from dpa_jax.tuning import queue, selection, study, trials  # noqa: E402
from dpa_jax.tuning import search as search_lib  # noqa: E402


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


def scored(config, path, images, after_stage, visible):
    """Writes made-up scores in the place of training."""
    if visible:
        time.sleep(0.5)  # for whoever kills it meanwhile
    rng = np.random.default_rng(
        (int(path.parent.parent.name), int(path.parent.name[5:]))
    )
    scores = rng.normal(size=24).astype(np.float32)
    groups = np.array([""] * 24)
    fold = selection.Fold(scores, groups, scores[:9] + 1, 4, rng.random())
    selection.write_fold(path, fold)
    return ""


@pytest.fixture
def untrained(monkeypatch):
    """Puts made-up scores in the place of training; returns what notes the folds."""

    def made(during=lambda number, fold, after_stage: ""):
        done = []

        def train_fold(config, path, images, after_stage, visible):
            number, fold = int(path.parent.parent.name), int(path.parent.name[5:])
            done.append((number, fold))
            failure = during(number, fold, after_stage)
            if failure == "":
                scored(config, path, images, after_stage, visible)
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
            stopped = stopping.result(path.parent)
            assert (found.steps, found.loss) == (stopped.steps, stopped.loss)
            seen += [*found.groups]
        assert sorted(seen) == sorted(kept.groups)
    page = (finished / "report.md").read_text()
    assert "2 of 9 anomalies share a patient or slide with the 48 normal" in page
    assert "The 2 normal images of those drawn are neither trained on" in page


def test_ranking_is_by_the_auc_of_the_drawn_anomalies(finished, config, search):
    drawn = anomalies_drawn(search, config)
    for row in table(finished):
        aucs = []
        for fold in range(2):
            found = selection.read_fold(
                selection.scores(finished, int(row["trial"]), fold)
            )
            scores = np.concatenate([found.normal, found.anomalies[drawn]])
            labels = np.repeat([0, 1], [len(found.normal), 6])
            aucs.append(roc.auc(scores, labels))
        assert float(row["ROC AUC"]) == pytest.approx(np.mean(aucs), abs=1e-6)
        assert [float(x) for x in row["folds"].split()] == pytest.approx(aucs, abs=1e-6)
    best, other = table(finished)
    assert float(best["ROC AUC"]) >= float(other["ROC AUC"])


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
    "name, value, message",
    [
        ("config.batch_size", 4, "config.batch_size was 8, is 4"),
        ("folds", 3, "search.folds was 2, is 3"),
        ("anomalies.count", 5, "search.anomalies.count was 6, is 5"),
        ("source", "", "search.py was '.*', is"),
    ],
)
def test_another_study_is_refused_with_the_fields(
    finished, config, search, untrained, tmp_path, name, value, message
):
    untrained()
    changed, found = config.copy_and_resolve_references(), search
    if name == "config.batch_size":
        changed.batch_size = value
    else:
        source = study_factory.SEARCH + ("# changed\n" if name == "source" else "")
        (tmp_path / "search.py").write_text(source)
        values = search.values()
        if name == "folds":
            values["folds"] = value
        if name == "anomalies.count":
            values["anomalies"]["count"] = value
        found = search_lib.load(tmp_path / "search.py", config, values)
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


KILLED = """
import json, sys, time
import numpy as np
import test_tuning_study
from dpa_jax import config_files
from dpa_jax.tuning import queue, search, study, trials

queue.INTERVAL = 1
trials.train_fold = test_tuning_study.scored
config, path, options, folder = sys.argv[1:]
found = search.load(path, config_files.load(config), json.loads(options))
study.tune(config_files.load(config), found, folder)
"""


def test_killed_study_goes_on_where_it_was_and_comes_to_the_same(
    config, search, tmp_path, untrained, monkeypatch
):
    monkeypatch.setattr(queue, "GRACE", 2)
    untrained()
    study.tune(config, search, tmp_path / "whole", visible=False)
    kept = run_factory.write_config(tmp_path / "config.json", config)
    options, folder = json.dumps(search.values()), tmp_path / "killed"
    process = run_factory.start_code(
        KILLED, kept, str(search.path), options, str(folder)
    )
    first = selection.scores(folder, 0, 0)
    try:
        deadline = time.monotonic() + 240
        while not first.exists() and time.monotonic() < deadline:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    written = first.stat().st_mtime_ns
    done = untrained()
    study.tune(config, search, folder, visible=False)
    assert first.stat().st_mtime_ns == written
    assert sorted(done) == [(0, 1), (1, 0), (1, 1)]
    assert sorted(optuna_trials(folder)) == [
        *((0, "COMPLETE"), (0, "FAIL"), (1, "COMPLETE"))
    ]
    for name in ("ranking.csv", "best.json"):
        assert (folder / name).read_text() == (tmp_path / "whole" / name).read_text()


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


def test_study_of_failures_alone_is_an_error_with_the_reasons(
    config, search, tmp_path, untrained
):
    untrained(lambda *_: "diverged")
    with pytest.raises(
        errors.DpaError, match="no best trial.*Trial 1 failed: fold 0: d"
    ):
        study.tune(config, search, tmp_path / "s", visible=False)


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


def test_trial_that_another_worker_has_taken_over_is_left_to_it(
    config, search, tmp_path, untrained, monkeypatch
):
    monkeypatch.setattr(
        queue.Queue, "owns", lambda self, trial: trial.user_attrs["index"] > 0
    )
    done = untrained()

    def stop(seconds):
        raise TimeoutError

    # the other worker, which there is not, would go on with trial 0
    monkeypatch.setattr(study.time, "sleep", stop)
    with pytest.raises(TimeoutError):
        study.tune(config, search, tmp_path / "s", visible=False)
    assert done == [(0, 0), (1, 0), (1, 1)]


# --- a fold ---


class Normal:
    """Twelve normal images of four patients, and five anomalies of which two count."""

    images = data.ImageSet(
        run_factory.images(12, 8)[..., None],
        [f"normal{i}" for i in range(12)],
        groups=[f"patient{i // 3}" for i in range(12)],
    )
    pool = study_factory.pool(5, [1, 3])


def brightness(images, progress=None):
    """Scores images by their mean."""
    return images.mean(axis=(1, 2, 3), dtype=np.float64).astype(np.float32)


def train_fold(tmp_path, monkeypatch, train_together, after_stage=None):
    config = run_factory.quick_config()
    config.data.folds, config.data.fold = 2, 0
    monkeypatch.setattr(trials.training, "train_together", train_together)
    monkeypatch.setattr(trials.score, "load", lambda folder: brightness)
    path = tmp_path / "fold_0" / "scores.npz"
    images = (Normal.images, Normal.images, Normal.pool)
    return path, trials.train_fold(config, path, images, after_stage, False)


def test_fold_without_early_stopping_has_the_mean_score_as_its_loss(
    tmp_path, monkeypatch
):
    path, failure = train_fold(tmp_path, monkeypatch, lambda *_, **__: [None])
    found = selection.read_fold(path)
    assert failure == "" and found.steps == 6
    assert found.loss == pytest.approx(found.normal.mean())
    np.testing.assert_array_equal(
        found.anomalies, brightness(Normal.pool.images.images)
    )


def test_run_that_fails_or_finds_too_little_memory_is_not_scored(tmp_path, monkeypatch):
    def narrow(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out\nof memory")

    path, failure = train_fold(tmp_path, monkeypatch, narrow)
    assert failure == "RESOURCE_EXHAUSTED: out" and not path.exists()
    path, failure = train_fold(tmp_path, monkeypatch, lambda *_, **__: ["diverged"])
    assert failure == "diverged" and not path.exists()


@pytest.mark.parametrize("goes_on", [True, False])
def test_stage_is_reported_with_the_auc_of_the_drawn_anomalies(
    tmp_path, monkeypatch, goes_on
):
    reported = []

    def growing(configs, folders, *, images, after_stage, visible):
        stage = stages.schedule(configs[0])[0]
        assert after_stage(0, stage, brightness) is goes_on
        return [None]

    def after_stage(step, value):
        reported.append((step, value))
        return goes_on

    path, failure = train_fold(tmp_path, monkeypatch, growing, after_stage)
    assert failure == "" and path.exists() is goes_on
    held = brightness(Normal.images.images[folds.held_out(Normal.images, 2, 0)])
    drawn = brightness(Normal.pool.images.images[[1, 3]])
    pairs = drawn[:, None] - held[None]
    expected = (pairs > 0).mean() + (pairs == 0).mean() / 2
    assert reported == [(0, pytest.approx(expected))]


def test_images_are_read_again_only_for_another_preprocessing(monkeypatch):
    read = []

    def training_images(config, visible):
        read.append(config.data.equalize)
        return Normal.images

    monkeypatch.setattr(trials.training, "training_images", training_images)
    load = trials.loader(search_lib.default_options(), False)
    plain, other = run_factory.quick_config(), run_factory.quick_config()
    other.data.equalize = True
    for config in (plain, plain, other, plain):
        load(config)
    assert read == [False, True, False]

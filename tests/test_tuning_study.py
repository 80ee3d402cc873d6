import csv
import json
import signal
import sqlite3
import time

import numpy as np
import pytest
import run_factory

import dpa_jax
from dpa_jax import config as config_lib
from dpa_jax import config_files, data, errors, folds, roc, stages, stopping, training
from dpa_jax.tuning import results, storage, study, trials, worker
from dpa_jax.tuning import search as search_lib

optuna = pytest.importorskip("optuna", reason="the extra tune is not installed")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Six steps at 8 pixels on 24 patients of two images each."""
    folder = tmp_path_factory.mktemp("data")
    made = run_factory.quick_config()
    made.data.train = run_factory.write_npz(
        folder / "normal.npz",
        images=run_factory.images(48),
        groups=np.array([f"patient{i // 2}" for i in range(48)]),
    )
    made.model.latent_channels = 2
    return made


@pytest.fixture(scope="module")
def search(config, tmp_path_factory):
    """A grid of two learning rates and two folds, ranked by six of nine anomalies."""
    path = tmp_path_factory.mktemp("anomalies") / "anomalies.npz"
    pictures = run_factory.images(9, seed=1) // 2 + np.uint8(90)
    pictures[::2, ::2] = 255  # every second is striped, the others merely pale
    made = search_lib.default_search()
    made.sampler, made.folds = "grid", 2
    made.early_stopping.every = 2
    made.anomalies.source = run_factory.write_npz(path, images=pictures)
    made.anomalies.count = 6
    rate = {"field": "optimizer.learning_rate", "low": 1e-3, "high": 2e-2, "points": 2}
    made.space = {"rate": rate}
    return made


@pytest.fixture(scope="module")
def finished(config, search, tmp_path_factory):
    """A study's folder with all its trials; not to be changed."""
    folder = tmp_path_factory.mktemp("finished") / "study"
    study.tune(config, search, folder, visible=False)
    return folder


@pytest.fixture
def soon(monkeypatch):
    """Declares workers dead after three seconds, in this process."""
    monkeypatch.setattr(storage, "INTERVAL", 1)
    monkeypatch.setattr(storage, "GRACE", 3)
    monkeypatch.setattr(worker, "_POLL", 0.1)


@pytest.fixture
def untrained(monkeypatch):
    """Puts made-up scores in the place of training; returns what notes the folds."""

    def made(during=lambda work, fold, judge: None, before=lambda *_: None):
        done = []

        def train_fold(works, fold, images, judge):
            before(works, fold, images, judge)
            for work in works:
                done.append((work.number, fold))
                during(work, fold, judge)
                folder = work.fold_folder(fold)
                config_files.save(work.configs[fold], folder / "config.json")
                rng = np.random.default_rng((work.number, fold))
                scores = rng.normal(size=24)
                anomalies = rng.normal(1, size=9)
                made = results.Fold(scores, None, [""] * 24, anomalies, 4, rng.random())
                results.write_fold(work.scores(fold), made)

        monkeypatch.setattr(trials, "train_fold", train_fold)
        return done

    return made


def table(folder):
    with open(folder / "trials.csv", newline="") as file:
        return list(csv.DictReader(file))


def told(folder, number):
    return json.loads((folder / "trials" / f"{number:04d}" / "trial.json").read_text())


def optuna_trials(folder):
    """Returns the state of each of Optuna's trials and which of the plan it is."""
    with sqlite3.connect(folder / "study.db") as connection:
        rows = connection.execute(
            "SELECT state, value_json FROM trials JOIN trial_user_attributes USING "
            "(trial_id) WHERE key = 'planned' ORDER BY number"
        ).fetchall()
    connection.close()
    return [(int(number), state) for state, number in rows]


def test_every_combination_is_trained_on_every_fold(finished, config):
    rows = table(finished)
    assert [float(row["rate"]) for row in rows] == [1e-3, 2e-2]
    assert {row["state"] for row in rows} == {"complete"}
    for number in range(2):
        for fold in range(2):
            run = finished / "trials" / f"{number:04d}" / f"fold_{fold}"
            made = config_files.load(str(run / "config.json"))
            assert (made.data.folds, made.data.fold, made.data.seed) == (2, fold, 0)
            assert dpa_jax.load(run).trained == stopping.result(run).trained


def test_scores_of_a_fold_are_those_of_its_held_out_and_anomalous_images(
    finished, config, search
):
    fold = finished / "trials" / "0001" / "fold_1"
    found = results.read_fold(fold / "scores.npz")
    normal = training.training_images(config, visible=False)
    held = folds.held_out(normal, 2, 1)
    assert set(found.groups).isdisjoint(np.array(normal.groups)[~held])
    assert found.paths == tuple(np.array(normal.paths)[held])
    scorer = dpa_jax.load(fold)
    np.testing.assert_array_equal(found.normal, scorer(normal.images[held]))
    pool = data.load(
        search.anomalies.source, data.Preprocessing.from_config(config)
    ).images
    np.testing.assert_array_equal(found.anomalies, scorer(pool))
    stopped = stopping.result(fold)
    assert (found.steps, found.loss) == (stopped.steps, stopped.loss)
    drawn = np.load(finished / "anomalies.npz")["drawn"]
    assert len(drawn) == 6
    scores = np.concatenate([found.normal, found.anomalies[drawn]])
    labels = np.repeat([0, 1], [len(found.normal), 6])
    auc = float(table(finished)[1]["auc_1"])
    assert auc == pytest.approx(roc.auc(scores, labels), abs=1e-6)


def test_best_config_is_the_best_trial_s_with_the_folds_mean_steps(
    finished, config, tmp_path
):
    rows = table(finished)
    best = max(rows, key=lambda row: float(row["auc"]))
    made = config_files.load(str(finished / "best.json"))
    expected = config_lib.updated(
        config,
        {
            "optimizer.learning_rate": float(best["rate"]),
            "stages.final_steps": round(
                (int(best["steps_0"]) + int(best["steps_1"])) / 2
            ),
        },
        "",
    )
    assert config_files.to_json(made) == config_files.to_json(expected)
    run = dpa_jax.train(made, tmp_path / "refit", visible=False)
    assert dpa_jax.load(run).trained == made.stages.final_steps


def test_finished_study_is_not_trained_again(finished, config, search):
    before = run_factory.files(finished / "trials")
    report = study.tune(config, search, finished, visible=False)
    assert run_factory.files(finished / "trials") == before
    assert report.best.number == int(
        max(table(finished), key=lambda row: float(row["auc"]))["number"]
    )


@pytest.mark.parametrize(
    "change, message",
    [
        ({"config": {"batch_size": 4}}, "config.json: batch_size was 8, is 4"),
        ({"search": {"folds": 3}}, "search.json: folds was 2, is 3"),
        ({"search": {"anomalies.count": 5}}, "anomalies.count was 6, is 5"),
    ],
)
def test_another_study_is_refused_with_the_fields(
    finished, config, search, change, message
):
    before = run_factory.files(finished)
    changed_config = config_lib.updated(config, change.get("config", {}), "")
    changed = config_lib.updated(search, change.get("search", {}), "")
    with pytest.raises(errors.UsageError, match=message):
        study.tune(changed_config, changed, finished, visible=False)
    assert run_factory.files(finished) == before


def test_another_space_is_refused(finished, config, search):
    changed = search.copy_and_resolve_references()
    changed.space = {
        "rate": {**search.space.rate.to_dict(), "high": 3e-2},
        "batch": {"field": "batch_size", "values": (4, 8)},
    }
    message = "space.rate.high was 0.02, is 0.03.*space.batch.field was None"
    with pytest.raises(errors.UsageError, match=message):
        study.tune(config, changed, finished, visible=False)


def test_folder_of_a_run_is_refused(config, search, tmp_path):
    run_factory.write_config(tmp_path / "config.json", config)
    with pytest.raises(errors.DpaError, match="holds a run or parts of a study"):
        study.tune(config, search, tmp_path, visible=False)


def test_first_attempt_that_was_refused_can_be_corrected(
    config, search, tmp_path, untrained
):
    untrained()
    wrong = config_lib.updated(search, {"anomalies.count": 99}, "")
    with pytest.raises(errors.UsageError, match="anomalies.count is 99"):
        study.tune(config, wrong, tmp_path / "study", visible=False)
    study.tune(config, search, tmp_path / "study", visible=False)
    assert search_lib.load(str(tmp_path / "study" / "search.json")).anomalies.count == 6


def test_study_is_finished_when_every_trial_has_ended(
    finished, config, search, tmp_path, untrained
):
    study.check_finished(finished)
    with pytest.raises(errors.DpaError, match="there is no study in"):
        study.check_finished(tmp_path)

    def interrupt(work, fold, judge):
        if work.number:
            raise KeyboardInterrupt

    untrained(interrupt)
    with pytest.raises(KeyboardInterrupt):
        study.tune(config, search, tmp_path / "study", visible=False)
    with pytest.raises(errors.DpaError, match="1 of 2 trials of .* are left: dpa-jax"):
        study.check_finished(tmp_path / "study")


def test_trials_trained_together_come_to_the_same_as_alone(
    finished, config, search, tmp_path, monkeypatch
):
    calls = []
    train_together = training.train_together

    def counted(configs, *arguments, **options):
        calls.append(len(configs))
        return train_together(configs, *arguments, **options)

    monkeypatch.setattr(training, "train_together", counted)
    search = config_lib.updated(search, {"population": 2}, "")
    study.tune(config, search, tmp_path / "study", visible=False)
    assert calls == [2, 2]
    for alone, together in zip(table(finished), table(tmp_path / "study"), strict=True):
        for name in ("rate", "steps_0", "steps_1"):
            assert alone[name] == together[name]
        for name in ("auc", "auc_0", "auc_1", "held_out_loss"):
            assert float(alone[name]) == pytest.approx(float(together[name]), abs=1e-4)


def test_killed_study_goes_on_without_a_trial_lost_or_trained_twice(
    finished, config, search, tmp_path, soon
):
    folder = tmp_path / "study"
    process = start(folder, tmp_path, config, search)
    first = folder / "trials" / "0000" / "fold_0" / "scores.npz"
    try:
        wait_for(first.exists, process)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not (folder / "trials" / "0000" / "trial.json").exists()
    written = first.stat().st_mtime_ns
    study.tune(config, search, folder, visible=False)
    assert first.stat().st_mtime_ns == written
    assert told(folder, 0)["retries"] == 1 and told(folder, 1)["retries"] == 0
    failed, complete = "FAIL", "COMPLETE"
    assert optuna_trials(folder) == [(0, failed), (1, complete), (0, complete)]
    for row, expected in zip(table(folder), table(finished), strict=True):
        for name in set(row) - {"seconds", "retries"}:
            assert row[name] == expected[name], name


def test_two_workers_share_a_study(config, search, tmp_path):
    folder = tmp_path / "study"
    processes = [start(folder, tmp_path, config, search) for _ in range(2)]
    done = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], done
    assert optuna_trials(folder) == [(i, "COMPLETE") for i in range(2)]
    assert [row["state"] for row in table(folder)] == ["complete"] * 2
    # one trial each
    assert [err.count(", fold 2 of 2: ROC AUC") for _, err in done] == [1, 1]


def test_interrupted_worker_hands_its_trial_back(config, search, tmp_path, untrained):
    def interrupt(work, fold, judge):
        raise KeyboardInterrupt

    untrained(interrupt)
    with pytest.raises(KeyboardInterrupt):
        study.tune(config, search, tmp_path / "study", visible=False)
    found = optuna_trials(tmp_path / "study")
    assert sorted(found) == [(0, "FAIL"), (0, "WAITING"), (1, "WAITING")]


def test_diverged_trial_fails_with_its_reason_and_the_study_goes_on(
    config, search, tmp_path
):
    search = search.copy_and_resolve_references()
    search.space.rate.high = 1e7
    report = study.tune(config, search, tmp_path / "study", visible=False)
    assert report.best.number == 0
    assert told(tmp_path / "study", 1)["state"] == "failed"
    assert "fold 0: the loss of step" in told(tmp_path / "study", 1)["reason"]
    assert [row["state"] for row in table(tmp_path / "study")] == ["complete", "failed"]


def test_study_of_failures_alone_is_an_error_with_the_reasons(
    config, search, tmp_path, untrained
):
    def diverge(work, fold, judge):
        work.end("failed", "diverged")

    untrained(diverge)
    message = "no trial of .* could be completed: trial 0 diverged; trial 1 diverged"
    with pytest.raises(errors.DpaError, match=message):
        study.tune(config, search, tmp_path / "study", visible=False)


def test_trial_below_the_median_is_given_up_in_its_first_fold(
    config, search, tmp_path, untrained, monkeypatch
):
    monkeypatch.setattr(storage, "STARTUP", 1)
    stage = stages.Stage(8, False, 4)

    def growing(work, fold, judge):
        if not fold:
            judge(work, stage, 0, [0.8, 0.7][work.number])

    done = untrained(growing)
    study.tune(config, search, tmp_path / "study", visible=False)
    states = [row["state"] for row in table(tmp_path / "study")]
    assert states == ["complete", "pruned"]
    reason = told(tmp_path / "study", 1)["reason"]
    assert reason == "below the median after 8_stabilization: 0.7000"
    assert done == [(0, 0), (0, 1), (1, 0)]


def test_more_trials_go_on_from_those_there_are(config, search, tmp_path, untrained):
    done = untrained()
    search = config_lib.updated(search, {"sampler": "random", "trials": 1}, "")
    study.tune(config, search, tmp_path / "study", visible=False)
    assert done == [(0, 0), (0, 1)]
    more = config_lib.updated(search, {"trials": 2}, "")
    study.tune(config, more, tmp_path / "study", visible=False)
    assert done == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert len(table(tmp_path / "study")) == 2
    # fewer than were asked for before are still all of them
    study.tune(config, search, tmp_path / "study", visible=False)
    assert len(done) == 4
    assert search_lib.load(str(tmp_path / "study" / "search.json")).trials == 2


def test_trials_of_other_shapes_are_not_trained_together(
    config, search, tmp_path, untrained
):
    groups, running = [], []

    def noted(works, fold, images, judge):
        groups.append([work.values for work in works])
        states = [state for _, state in optuna_trials(tmp_path / "study")]
        running.append(states.count("RUNNING"))

    untrained(before=noted)
    search = config_lib.updated(search, {"population": 4}, "")
    search.space = {
        "batch": {"field": "batch_size", "values": (4, 8)},
        "rate": search.space.rate.to_dict(),
    }
    study.tune(config, search, tmp_path / "study", visible=False)
    assert [[v["batch"] for v in group] for group in groups[::2]] == [[4, 4], [8, 8]]
    # those that are not trained yet are left to other workers
    assert set(running) == {2}


def test_trial_that_another_worker_has_taken_over_is_left_to_it(
    config, search, tmp_path, untrained
):
    def lose(work, fold, judge):
        if not work.number:
            work.trial.study.tell(work.trial, state=optuna.trial.TrialState.PRUNED)

    done = untrained(lose)
    study.tune(config, search, tmp_path / "study", visible=False)
    assert done == [(0, 0), (1, 0), (1, 1)]
    assert not (tmp_path / "study" / "trials" / "0000" / "trial.json").exists()


def test_anomaly_among_the_training_images_stops_the_study(config, search, tmp_path):
    normal = np.load(config.data.train)["images"]
    pictures = np.concatenate([np.load(search.anomalies.source)["images"], normal[:1]])
    source = run_factory.write_npz(tmp_path / "a.npz", images=pictures)
    search = config_lib.updated(search, {"anomalies.source": source}, "")
    with pytest.raises(errors.DpaError, match="1 of 10 anomalies are"):
        study.tune(config, search, tmp_path / "study", visible=False)
    assert not (tmp_path / "study" / "trials").exists()


def test_without_anomalies_the_lowest_held_out_loss_is_best(
    config, search, tmp_path, untrained
):
    untrained()
    search = config_lib.updated(search, {"anomalies.source": ""}, "")
    report = study.tune(config, search, tmp_path / "study", visible=False)
    rows = table(tmp_path / "study")
    losses = [float(row["held_out_loss"]) for row in rows]
    assert report.best.number == int(np.argmin(losses))
    assert [row["auc"] for row in rows] == ["", ""]


def start(folder, tmp_path, config, search):
    """Starts a worker as a process of its own."""
    (tmp_path / "search.json").write_text(config_files.to_json(search))
    return run_factory.start(
        "tune",
        f"--config={run_factory.write_config(tmp_path / 'config.json', config)}",
        f"--search={tmp_path / 'search.json'}",
        f"--workdir={folder}",
    )


def wait_for(condition, process):
    deadline = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)

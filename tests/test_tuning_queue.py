import json
import subprocess
import sys
import time

import pytest

from dpa_jax import errors
from dpa_jax.tuning import queue, storage

optuna = pytest.importorskip("optuna", reason="the extra tune is not installed")

PLAN = [{"x": i} for i in range(4)]


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'study.db'}"


@pytest.fixture
def join(url):
    """Makes workers of one study."""
    storage.require_optuna()

    def made(plan=PLAN, retries=1):
        return queue.Queue(storage.connect(url, "s", True, "none"), plan, retries, 0)

    return made


def take(worker, count=1):
    return worker.take(
        count, lambda t: {"x": t.suggest_int("x", 0, 100)}, lambda one, other: True
    )


def states(worker):
    return [place.state for place in worker.look()]


def die(worker, seconds=100):
    """Leaves a worker's trials as a process that is killed leaves them."""
    with worker._storage._backend.engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE trial_heartbeats SET heartbeat = datetime('now', ?)",
            (f"-{seconds} seconds",),
        )


def test_every_trial_of_the_plan_is_taken_once_by_two_workers(join):
    one, other = join(), join()
    found = []
    while any(not place.ended for place in one.look()):
        for worker in (one, other):
            for trial, number, values in take(worker):
                found.append((number, values))
                worker.end(trial, 0.5)
    assert sorted(found, key=lambda x: x[0]) == [(i, {"x": i}) for i in range(4)]
    assert states(other) == ["complete"] * 4
    assert len(one.study.trials) == 4


def test_three_processes_share_a_plan_without_a_trial_lost_or_taken_twice(url):
    code = f"""
import time
from dpa_jax.tuning import queue, storage
storage.require_optuna()
time.sleep(max(0, {time.time() + 3} - time.time()))  # all begin at once
study = storage.connect({url!r}, "s", True, "none")
worker = queue.Queue(study, [{{"x": i}} for i in range(16)], 1, 0)
while any(not place.ended for place in worker.look()):
    for trial, number, _ in worker.take(
        1, lambda t: {{"x": t.suggest_int("x", 0, 100)}}, lambda a, b: True
    ):
        print(number)
        worker.end(trial, 0.5)
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=queue.__file__.rpartition("/dpa_jax/")[0],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    done = [process.communicate() for process in processes]
    assert [p.returncode for p in processes] == [0] * 3, done
    taken = [int(n) for out, _ in done for n in out.split()]
    assert sorted(taken) == list(range(16))


def test_trial_of_a_dead_worker_is_taken_over_with_its_values(join):
    dead, other = join([{}] * 2), join([{}] * 2)
    dead.look()
    ((_, _, values),) = take(dead)
    assert states(other) == ["running", "waiting"]
    die(dead)
    assert states(other) == ["waiting", "waiting"]
    assert [place.deaths for place in other.look()] == [1, 0]
    found = {number: values for _, number, values in take(other, 2)}
    assert found[0] == values
    assert states(other) == ["running", "running"]


def test_dead_worker_that_comes_back_does_not_end_the_trial(join):
    dead, other = join(), join()
    dead.look()
    ((trial, _, _),) = take(dead)
    die(dead)
    other.look()
    assert not dead.owns(trial)
    dead.end(trial, 1.0)
    assert states(other) == ["waiting"] * 4
    with dead.beating():
        assert dead.hand_back() == 0


def test_worker_that_died_before_its_first_heartbeat_is_noticed(join, monkeypatch):
    dead, other = join(), join()
    dead.look()

    def killed(identity):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(dead._storage, "record_heartbeat", killed)
        with pytest.raises(KeyboardInterrupt):
            take(dead)
    assert states(other)[0] == "running"
    die(other)
    assert states(other)[0] == "waiting"


def test_trial_over_which_too_many_workers_die_has_failed(join):
    for _ in range(2):
        worker = join(retries=1)
        worker.look()
        take(worker, 4)
        die(worker)
    worker = join(retries=1)
    places = worker.look()
    assert [place.state for place in places] == ["failed"] * 4
    assert places[0].reason == "its worker died, 2 times in all"
    assert not take(worker)


def test_trial_that_is_handed_back_waits_again_and_nobody_died(join):
    worker = join(retries=0)
    worker.look()
    take(worker, 2)
    assert worker.hand_back() == 2
    places = worker.look()
    assert [place.state for place in places] == ["waiting"] * 4
    assert not any(place.deaths for place in places)


def test_failed_trial_keeps_its_reason_and_is_not_tried_again(join):
    worker = join()
    worker.look()
    ((trial, number, _),) = take(worker)
    worker.end(trial, reason="diverged")
    place = worker.look()[number]
    assert (place.state, place.reason, place.ended) == ("failed", "diverged", True)


def test_longer_plan_goes_on_behind_the_shorter(join):
    worker = join(PLAN[:2])
    worker.look()
    for trial, _, _ in take(worker, 2):
        worker.end(trial, 0.5)
    longer = join(PLAN)
    assert states(longer) == ["complete"] * 2 + ["waiting"] * 2
    assert [number for _, number, _ in take(longer, 9)] == [2, 3]


def test_of_a_trial_entered_twice_the_first_counts(join):
    one, other = join(PLAN[:1]), join(PLAN[:1])
    # both look before either has entered it
    (place,) = queue.places(other._trials(), 1, 1)
    one.look()
    other._enter(0, place)
    assert len(one.study.trials) == 2
    ((trial, _, _),) = take(one)
    assert not take(other)
    one.end(trial, 0.5)
    (place,) = other.look()
    assert place.state == "complete" and place.deaths == 0


def test_only_trials_alike_are_taken_together(join):
    worker = join()
    worker.look()
    taken = worker.take(
        4,
        lambda t: {"x": t.suggest_int("x", 0, 100)},
        lambda one, other: one["x"] % 2 == other["x"] % 2,
    )
    assert [number for _, number, _ in taken] == [0, 2]


def test_tpe_chooses_the_same_whichever_worker_asks(url, tmp_path):
    storage.require_optuna()

    def chosen(url, workers):
        made = [
            queue.Queue(storage.connect(url, "s", True, "none"), [{}] * 3, 0, 5)
            for _ in range(workers)
        ]
        made[0].look()
        return [
            values["x"]
            for i in range(3)
            for _, _, values in made[i % workers].take(
                1, lambda t: {"x": t.suggest_float("x", 0, 1)}, lambda a, b: True
            )
        ]

    alone = chosen(url, 1)
    assert alone == chosen(f"sqlite:///{tmp_path / 'other.db'}", 2)
    assert len(set(alone)) == 3


def test_value_reported_twice_for_a_stage_stays_the_first(join):
    worker = join()
    worker.look()
    ((trial, _, _),) = take(worker)
    assert not worker.reported(trial, 0.5, 0)
    assert not worker.reported(trial, 0.7, 0)
    (found,) = [t for t in worker.study.trials if t.number == trial.number]
    assert found.intermediate_values == {0: 0.5}


def test_median_prunes_what_is_below_it(url, monkeypatch):
    monkeypatch.setattr(storage, "STARTUP", 2)
    storage.require_optuna()
    worker = queue.Queue(storage.connect(url, "s", True, "median"), PLAN, 0, 0)
    worker.look()
    for value in (0.6, 0.8):
        ((trial, _, _),) = take(worker)
        assert not worker.reported(trial, value, 0)
        worker.end(trial, value)
    ((low, _, _), (high, _, _)) = take(worker, 2)
    assert worker.reported(low, 0.69, 0)
    assert not worker.reported(high, 0.71, 0)
    worker.end(low)
    assert states(worker) == ["complete", "complete", "pruned", "running"]


def test_folder_of_another_study_than_the_database_s_is_refused(join, tmp_path):
    worker = join()
    folder = tmp_path / "study"
    storage.check_same(worker.study, "this", folder)
    (folder / "trials" / "0000").mkdir(parents=True)
    (folder / "trials" / "0000" / "trial.json").write_text(json.dumps({}))
    with pytest.raises(errors.DpaError, match="--storage that the study began with"):
        storage.check_same(worker.study, "this", folder)
    worker.look()
    ((trial, _, _),) = take(worker)
    worker.end(trial, 1.0)
    storage.check_same(worker.study, "this", folder)
    with pytest.raises(errors.DpaError, match="trial 0 of the study s has ended"):
        storage.check_same(worker.study, "this", tmp_path / "other")


def test_database_s_study_of_the_same_name_about_something_else_is_refused(
    join, tmp_path
):
    worker = join()
    storage.check_same(worker.study, "this", tmp_path)
    with pytest.raises(errors.DpaError, match="has another study by the name of s"):
        storage.check_same(worker.study, "that", tmp_path)


def test_database_s_study_that_is_not_ours_is_refused(join, tmp_path):
    worker = join()
    worker.study.add_trial(optuna.trial.create_trial(value=1.0))
    with pytest.raises(errors.DpaError, match="has another study by the name of s"):
        storage.check_same(worker.study, "this", tmp_path)


@pytest.mark.parametrize(
    "url, message",
    [
        ("nonsense", "database nonsense:... cannot be used"),
        ("oracle+nothing://u:secret@h/d", r"u:\*\*\*@h"),
        ("sqlite:////no/such/folder/study.db", "unable to open database file"),
    ],
)
def test_database_that_cannot_be_used_is_named(url, message, monkeypatch):
    monkeypatch.setattr(storage, "_TRIES", 1)
    storage.require_optuna()
    with pytest.raises(errors.DpaError, match=message) as found:
        storage.connect(url, "s", True, "none")
    assert "secret" not in str(found.value)


def test_missing_driver_of_a_database_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    storage.require_optuna()
    told = r"\*\*\*@h/d needs .*psycopg.*pip install 'psycopg\[binary\]'"
    with pytest.raises(errors.DpaError, match=told):
        storage.connect("postgresql+psycopg://u:secret@h/d", "s", True, "none")


def test_missing_optuna_is_told_with_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(errors.DpaError, match=r"pip install 'dpa_jax\[tune\]'"):
        storage.require_optuna()

import contextlib
import importlib.util
import os
import shutil
import sqlite3
import subprocess
import sys
import threading

import pytest
import study_factory
from study_factory import optuna

from dpa_jax import errors
from dpa_jax.tuning import queue, study


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """A database without a study: to make one takes half a second."""
    folder = tmp_path_factory.mktemp("tables")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    queue.connect(folder)
    return folder / "study.db"


@pytest.fixture
def join(tmp_path, tables):
    """Makes workers of one study; its plan has four trials."""
    shutil.copy(tables, tmp_path)

    def made(identity=None, **options):
        found = study_factory.search(tmp_path, **options)
        return queue.Queue(tmp_path, "", found, identity or {}, True)

    return made


def states(worker):
    found = sorted(queue.latest(worker.study).items())
    return [queue.state(trial)[0] for _, trial in found]


def die(folder):
    """Makes the last heartbeat of all trials an old one."""
    with contextlib.closing(sqlite3.connect(folder / "study.db")) as connection:
        connection.execute(
            "UPDATE trial_heartbeats SET heartbeat = datetime('now', '-99 seconds')"
        )
        connection.commit()


def test_every_trial_of_the_plan_is_taken_once_in_its_order(join):
    workers, found = [join(), join()], []
    for i in range(4):
        trial = workers[i % 2].take()
        width = trial.suggest_categorical("width", (2, 4))
        rate = trial.suggest_float("rate", 1e-3, 2e-2)
        found.append((trial.user_attrs["index"], width, rate))
        workers[i % 2].end(trial, 0.5)
    assert found == [(0, 2, 0.001), (1, 2, 0.02), (2, 4, 0.001), (3, 4, 0.02)]
    assert join().take() is None and states(workers[0]) == ["complete"] * 4


def test_longer_plan_goes_on_behind_the_shorter(join):
    worker = join(sampler="random", trials=1)
    worker.end(worker.take(), 0.5)
    longer = join(sampler="random", trials=3)
    assert [longer.take().user_attrs["index"] for _ in range(2)] == [1, 2]
    # and one that asks for fewer works on all
    assert queue.left(join(sampler="random", trials=1).study) == 2
    assert longer.take() is None


def test_sampler_chooses_the_same_whichever_worker_takes_the_trial(
    join, tmp_path, tables
):
    options = {"sampler": "tpe", "trials": 3}
    one, other = join(**options), join(**options)
    mixed = [w.take().suggest_float("x", 0, 1) for w in (one, other, one)]
    shutil.copy(tables, tmp_path)
    again = join(**options)
    assert [again.take().suggest_float("x", 0, 1) for _ in range(3)] == mixed
    assert len(set(mixed)) == 3


def test_trial_of_a_dead_worker_is_taken_again_with_what_it_had(join, tmp_path):
    dead, other = join(sampler="tpe", trials=1), join(sampler="tpe", trials=1)
    trial = dead.take()
    chosen = trial.suggest_float("x", 0, 1)
    assert dead.goes_on(trial, 0, 0.25)
    assert other.take() is None
    die(tmp_path)
    again = other.take()
    assert again.suggest_float("x", 0, 1) == chosen
    (found,) = queue.latest(other.study).values()
    assert found.intermediate_values == {0: 0.25}
    # which it reports again, as it is trained again
    assert other.goes_on(again, 0, 0.75)
    assert queue.latest(other.study)[0].intermediate_values == {0: 0.25}


def test_dead_worker_that_comes_back_does_not_end_the_trial(join, tmp_path):
    dead, other = join(), join()
    trial = dead.take()
    die(tmp_path)
    again = other.take()
    assert not dead.owns(trial) and not dead.goes_on(trial, 0, 0.1)
    dead.end(trial, 1.0)
    assert states(other)[0] == "running"
    other.end(again, 0.5)
    assert queue.latest(other.study)[0].value == 0.5


def test_one_worker_takes_a_trial_at_a_time(join, monkeypatch):
    # Optuna alone lets workers of SQLite take one trial: three took 13 of 150 twice
    one, other, taken = join(), join(), []
    inside, may_leave = threading.Event(), threading.Event()
    fail_stale_trials = optuna.storages.fail_stale_trials

    def slow(study):
        fail_stale_trials(study)
        inside.set()
        assert may_leave.wait(60)

    monkeypatch.setattr(optuna.storages, "fail_stale_trials", slow)
    workers = [
        threading.Thread(target=lambda w=w: taken.append(w.take().user_attrs["index"]))
        for w in (one, other)
    ]
    workers[0].start()
    assert inside.wait(60)
    inside.clear()
    workers[1].start()
    assert not inside.wait(0.3) and not taken
    may_leave.set()
    for worker in workers:
        worker.join()
    assert sorted(taken) == [0, 1]


def killed(*_, **__):
    raise SystemExit("killed")


def test_worker_killed_before_its_first_heartbeat_loses_no_trial(join, monkeypatch):
    worker = join()
    with monkeypatch.context() as patch:
        patch.setattr(optuna.storages.RDBStorage, "record_heartbeat", killed)
        with pytest.raises(SystemExit):
            worker.take()
    # Optuna alone would let it run for ever: it has no heartbeat that could be old
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        optuna.storages.fail_stale_trials(worker.study)
    assert states(worker)[0] == "running"
    other = join()
    taken = [other.take().user_attrs["index"] for _ in range(4)]
    assert sorted(taken) == [0, 1, 2, 3]


def test_worker_killed_before_it_enters_a_trial_again_loses_none(
    join, tmp_path, monkeypatch
):
    dead, finder = join(), join()
    dead.take()
    die(tmp_path)
    retry = optuna.storages.RetryHeartbeatStaleTrialCallback
    with monkeypatch.context() as patch:
        patch.setattr(retry, "__call__", killed)
        with pytest.raises(SystemExit):
            finder.take()
    # Optuna alone would leave it: it has failed, and nothing waits in its place
    assert states(finder) == ["failed"]
    other = join()
    assert sorted(other.take().user_attrs["index"] for _ in range(4)) == [0, 1, 2, 3]
    assert other.take() is None


def test_trial_that_too_many_workers_die_of_has_failed(join, tmp_path):
    for _ in range(2):
        assert join(retries=1).take().user_attrs["index"] == 0
        die(tmp_path)
    worker = join(retries=1)
    assert worker.take().user_attrs["index"] == 1
    failed = queue.latest(worker.study)[0]
    assert queue.state(failed) == ("failed", "too many workers died of it")


def test_interrupted_worker_leaves_its_trial_and_that_is_no_death(join):
    for _ in range(3):
        worker = join(retries=0)
        with pytest.raises(KeyboardInterrupt), worker.beating():
            assert worker.take().suggest_categorical("width", (2, 4)) == 2
            raise KeyboardInterrupt
        assert states(worker) == ["waiting"] and queue.left(worker.study) == 4


def test_median_prunes_what_is_below_it(join, monkeypatch):
    monkeypatch.setattr(queue, "STARTUP", 2)
    worker = join()
    for value in (0.6, 0.8):
        trial = worker.take()
        assert worker.goes_on(trial, 0, value)
        worker.end(trial, value)
    low, high = worker.take(), worker.take()
    assert not worker.goes_on(low, 0, 0.69)
    assert worker.goes_on(high, 0, 0.71)
    worker.end(low)
    assert states(worker) == ["complete", "complete", "pruned", "running"]
    assert queue.left(worker.study) == 1


def test_study_about_something_else_is_refused_with_the_fields(join):
    join({"config.batch_size": 8, "search.folds": 2})
    with pytest.raises(errors.UsageError, match="config.batch_size was 8, is 4. Give"):
        join({"config.batch_size": 4, "search.folds": 2})


@pytest.mark.parametrize(
    "url, message",
    [
        ("nonsense", "cannot be used: Could not parse"),
        ("sqlite:////no/such/folder/study.db", "unable to open database file"),
        ("oracle+nothing://u:secret@h/d", "sqlalchemy.dialects:oracle.nothing"),
    ],
)
def test_database_that_cannot_be_used_is_an_error_without_the_password(
    tmp_path, url, message
):
    with pytest.raises(errors.DpaError, match=message) as found, queue.reaching():
        queue.connect(tmp_path, url)
    assert "secret" not in str(found.value)


# --- several processes ---

WORKER = """
import pathlib, sys, time
from dpa_jax.config import default_config
from dpa_jax.tuning import queue, search

queue.INTERVAL, queue.GRACE = 1, 2
folder = pathlib.Path(sys.argv[1])
found = search.load(folder / "search.py", default_config())
found.options.update({"sampler": "random", "trials": 8})
with queue.reaching():
    worker = queue.Queue(folder, sys.argv[2], found, {}, True)
    with worker.beating():
        while (trial := worker.take()) is not None or queue.left(worker.study):
            print(trial and trial.user_attrs["index"], flush=True)
            # the first lasts longer than a worker may be silent
            time.sleep(0.2 if trial is None else 4 if trial.number < 3 else 0.1)
            if trial is not None:
                worker.end(trial, trial.suggest_float("x", 0, 1))
"""


def share_a_study(folder, url):
    """Runs three workers, kills one at its first trial; returns the complete trials."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(study.__file__)))
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(root)}
    (folder / "search.py").write_text(study_factory.SEARCH)
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(folder), url],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    assert workers[0].stdout.readline().strip().isdigit()
    workers[0].kill()
    for worker in workers:
        worker.communicate(timeout=120)
    assert [worker.returncode for worker in workers] == [-9, 0, 0]
    name, storage = queue.connect(folder, url)
    found = optuna.load_study(study_name=name, storage=storage).get_trials()
    assert sum(trial.state.name == "FAIL" for trial in found) == 1
    return [t.user_attrs["index"] for t in found if t.state.name == "COMPLETE"]


def test_processes_share_a_study_and_a_kill_loses_no_trial(tmp_path):
    assert sorted(share_a_study(tmp_path, "")) == list(range(8))


@pytest.fixture
def postgresql(tmp_path):
    """Starts a PostgreSQL server; returns the URL of a database."""
    if shutil.which("initdb") is None or shutil.which("pg_ctl") is None:
        pytest.skip("PostgreSQL's initdb and pg_ctl are not in the path")
    if importlib.util.find_spec("psycopg") is None:
        pytest.skip("psycopg is not installed")
    data = tmp_path / "postgresql"
    data.mkdir()
    user = {}
    if os.geteuid() == 0:  # as which PostgreSQL does not run
        user = {"user": "nobody"}
        shutil.chown(data, "nobody")
        for folder in (tmp_path, *tmp_path.parents[:3]):
            folder.chmod(0o755)

    def run(*command):
        subprocess.run(command, check=True, capture_output=True, cwd=data, **user)

    run("initdb", "-D", str(data), "-A", "trust", "-U", "tuner", "--no-sync")
    options = f"-k {data} -c listen_addresses= -c fsync=off"
    run(
        "pg_ctl", "-D", str(data), "-w", "-l", str(data / "log"), "-o", options, "start"
    )
    yield f"postgresql+psycopg://tuner@/postgres?host={data}"
    run("pg_ctl", "-D", str(data), "-m", "immediate", "stop")


def test_processes_share_a_study_in_postgresql(tmp_path, postgresql):
    assert sorted(share_a_study(tmp_path, postgresql)) == list(range(8))

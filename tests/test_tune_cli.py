import os

import pytest
import run_factory
import study_factory

from dpa_jax import errors
from dpa_jax.cli.verbs import workers
from dpa_jax.tuning import learning_curve, study


@pytest.fixture
def files(tmp_path):
    """Writes what a study needs; returns the flags that name it."""
    config = run_factory.quick_config()
    config.data.train = run_factory.write_npz(tmp_path / "normal.npz")
    run_factory.write_folder(tmp_path / "anomalies" / "pale", count=5, seed=1)
    return {
        "config": run_factory.write_config(tmp_path / "config.json", config),
        "search": str(study_factory.search(tmp_path, config).path),
        "anomalies-from": str(tmp_path / "anomalies"),
        "anomalies": "3",
        "workdir": str(tmp_path / "study"),
    }


@pytest.fixture
def called(monkeypatch):
    """Notes what study.tune is called with, in the place of tuning."""
    calls = []

    def tune(config, search, folder, *, storage):
        calls.append((config, search, str(folder), storage))
        return None, ["the line"]

    monkeypatch.setattr(study, "tune", tune)
    return calls


def tune(flags, *more):
    given = (f"--{name}={value}" for name, value in flags.items())
    return run_factory.call("tune", *given, *more)


def test_flags_change_config_and_options(files, called):
    code, out, err = tune(
        {**files, "folds": 4, "storage": "sqlite://"},
        "--config.batch_size=4",
        "--search.early_stopping.patience=1",
    )
    assert (code, out) == (0, "the line\n"), err
    ((config, search, folder, url),) = called
    options = search.options
    assert (config.batch_size, options.folds, options.early_stopping.patience) == (
        *(4, 4, 1),
    )
    assert options.anomalies.source == files["anomalies-from"]
    assert (options.anomalies.count, len(search.plan())) == (3, 4)
    assert (folder, url) == (files["workdir"], "sqlite://")


@pytest.mark.parametrize(
    "more, message",
    [
        (["--search.folts=2"], "there is no config key folts; did you mean folds"),
        (["--search.folds=two"], "folds takes int"),
        (["--config.batch_sise=2"], "did you mean batch_size"),
        (["--trials=9"], "a grid tries all its combinations"),
        (["--folds=1"], "search.folds is 1, not >= 2"),
        (["--anomalies=six"], "not a whole number of at least 0"),
        (["--anomalies=9"], "anomalies.count is 9"),
        (["--learning-curve=5,x"], "'x' is not a whole number"),
        (["--verbose"], "unrecognized arguments: --verbose"),
        (["--devices=0", "--workers=2"], "--workers=2 share out 1 GPUs"),
    ],
)
def test_wrong_usage_is_refused_before_anything_is_written(
    files, more, message, tmp_path, monkeypatch
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    code, _, err = tune(files, *more)
    assert code == 2 and message in err
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--learning-curve=5", "--trials=9"], "as it stands, so without --trials"),
        (["--learning-curve=5", "--config.data.test=x"], "without --config.data.test"),
        (["--learning-curve=5", "--workers=2"], "without --workers"),
        (["--draws=3"], "--draws is of --learning-curve"),
    ],
)
def test_options_that_would_not_be_used_are_refused(tmp_path, flags, message):
    code, _, err = run_factory.call("tune", f"--workdir={tmp_path}", *flags)
    assert code == 2 and message in err


@pytest.mark.parametrize("name", ["config", "search"])
def test_new_study_needs_both_files(files, name):
    del files[name]
    code, _, err = tune(files)
    assert code == 2
    assert f"--{name} is missing" in err and "holds no study yet" in err


def test_learning_curve_is_drawn_from_the_study_s_folder(monkeypatch, tmp_path):
    def drawn(folder, counts, draws, *, storage):
        assert (folder, counts, draws, storage) == (tmp_path, [0, 5], 3, "url")
        return [(0, 0, 2, 0.5), (5, 0, 1, 0.75), (5, 1, 2, 0.25)]

    monkeypatch.setattr(learning_curve, "learning_curve", drawn)
    flags = ("--learning-curve=0,5", "--draws=3", "--storage=url")
    code, out, err = run_factory.call("tune", f"--workdir={tmp_path}", *flags)
    assert code == 0, err
    assert "5 anomalies: test ROC AUC 0.5000, deviation 0.2500" in out


# --- several workers and their devices ---


def test_devices_are_those_named_or_else_those_that_are_visible(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,3")
    assert workers.available() == ["1", "3"]
    workers.use(["3"])
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"


def test_devices_are_shared_out_and_none_twice():
    assert workers.share(list("01234"), 2) == [["0", "2", "4"], ["1", "3"]]
    assert workers.share([], 3) == [[], [], []]
    with pytest.raises(errors.UsageError, match="--workers=3 share out 2 GPUs"):
        workers.share(["0", "1"], 3)


@pytest.fixture
def started(monkeypatch):
    """Notes the workers and their signals, in the place of starting them."""
    noted = []

    class Process:
        returncode = 0

        def __init__(self, command, **options):
            noted.append(command[3:])

        def wait(self):
            return 0

        def poll(self):
            return None

        send_signal = noted.append

    monkeypatch.setattr(workers.subprocess, "Popen", Process)
    return noted


def test_each_worker_is_started_with_its_devices(files, called, started, monkeypatch):
    argv = ["dpa-jax", "tune", "--workers=3", "--devices=0,1,2", "--x=y"]
    monkeypatch.setattr(workers.sys, "argv", argv)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    code, out, err = tune(files, "--workers=3", "--devices=0,1,2")
    assert (code, out) == (0, "the line\n"), err
    end = ["--workers=1", "--devices=1"], ["--workers=1", "--devices=2"]
    assert started[:2] == [[*argv[1:], *each] for each in end]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"


def test_workers_are_interrupted_with_the_one_that_started_them(started):
    with pytest.raises(KeyboardInterrupt), workers.running(["tune"], [[], []]):
        raise KeyboardInterrupt
    # which, unlike SIGINT, a shell's background jobs do not ignore
    assert started[2:] == [workers.signal.SIGTERM] * 2


def test_a_signal_between_two_starts_leaves_no_worker_behind(started, monkeypatch):
    start = workers.subprocess.Popen

    def interrupted(*arguments, **options):
        if started:
            raise KeyboardInterrupt
        return start(*arguments, **options)

    monkeypatch.setattr(workers.subprocess, "Popen", interrupted)
    with pytest.raises(KeyboardInterrupt), workers.running(["tune"], [[], []]):
        pass
    assert started[1:] == [workers.signal.SIGTERM]

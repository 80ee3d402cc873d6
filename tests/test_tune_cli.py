import numpy as np
import pytest
import run_factory

from dpa_jax import config_files
from dpa_jax.tuning import search as search_lib
from dpa_jax.verbs import others

SEARCH = """
from dpa_jax.tuning.search import default_search

def get_config(points: str = "2"):
    search = default_search()
    search.sampler = "grid"
    search.folds = 2
    search.early_stopping.every = 3
    search.space = {
        "rate": {
            "field": "optimizer.learning_rate",
            "low": 1e-3,
            "high": 1e-2,
            "points": int(points),
        }
    }
    return search
"""


@pytest.fixture
def files(tmp_path):
    """Writes what a study needs; returns the flags that name it."""
    config = run_factory.quick_config()
    config.data.train = run_factory.write_npz(tmp_path / "normal.npz")
    run_factory.write_folder(tmp_path / "anomalies" / "pale", count=5, seed=1)
    (tmp_path / "search.py").write_text(SEARCH)
    return {
        "config": run_factory.write_config(tmp_path / "config.json", config),
        "search": str(tmp_path / "search.py"),
        "anomalies-from": str(tmp_path / "anomalies"),
        "anomalies": "3",
        "workdir": str(tmp_path / "study"),
    }


def tune(flags, *more):
    return run_factory.call(
        "tune", *(f"--{name}={value}" for name, value in flags.items()), *more
    )


def parsed(monkeypatch, flags, *more):
    """Returns the config and search that a call comes to."""
    found = []

    def stop(config, search, folder, *, storage):
        found.append((config, search, str(folder), storage))
        raise KeyboardInterrupt

    from dpa_jax.tuning import study

    monkeypatch.setattr(study, "tune", stop)
    code, out, err = tune(flags, *more)
    assert found, err
    return code, err, found[0]


def test_study_ends_with_a_ranking_and_the_command_to_refit(files):
    code, out, err = tune(files)
    assert code == 0, err
    folder = files["workdir"]
    assert "1. trial " in out and "ROC AUC" in out
    assert "3 anomalies of 1 kind" in out
    assert f"dpa-jax train --config={folder}/best.json" in out
    assert "trial 1 (of 2), fold 2 of 2: ROC AUC" in err
    # and again without saying what it is about
    code, again, err = run_factory.call("tune", f"--workdir={folder}")
    assert (code, again) == (0, out), err


def test_flags_change_config_and_search(files, monkeypatch):
    _, _, (config, search, folder, url) = parsed(
        monkeypatch,
        {**files, "search": files["search"] + ":3", "folds": 4, "storage": "sqlite://"},
        "--config.batch_size=4",
        "--search.early_stopping.patience=1",
    )
    assert (config.batch_size, search.folds, search.early_stopping.patience) == (
        4,
        4,
        1,
    )
    assert (search.anomalies.count, search.space.rate.points) == (3, 3)
    assert search.anomalies.source == files["anomalies-from"]
    assert (folder, url) == (files["workdir"], "sqlite://")


def test_interrupted_study_says_how_to_go_on(files, monkeypatch):
    code, err, _ = parsed(monkeypatch, files)
    assert code == 130
    assert "stopped; the same command goes on from what was saved" in err


@pytest.mark.parametrize(
    "more, message",
    [
        (["--search.folts=2"], "there is no config key folts; did you mean folds"),
        (["--search.folds=two"], "folds takes int"),
        (["--config.batch_sise=2"], "did you mean batch_size"),
        (["--trials=9"], "a grid tries all its combinations"),
        (["--folds=1"], "search.folds is 1; it must be at least 2"),
        (["--anomalies=six"], "not a whole number of at least 0"),
        (["--learning-curve=5,x"], "'x' is not a whole number"),
        (["--verbose"], "unrecognized arguments: --verbose"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_written(files, more, message, tmp_path):
    code, _, err = tune(files, *more)
    assert code == 2
    assert message in err
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--learning-curve=5", "--trials=9"], "as it stands, so without --trials"),
        (["--learning-curve=5", "--config.data.test=x"], "without --config.data.test"),
        (["--draws=3"], "--draws is of --learning-curve"),
    ],
)
def test_options_that_would_not_be_used_are_refused(tmp_path, flags, message):
    code, _, err = run_factory.call("tune", f"--workdir={tmp_path}", *flags)
    assert code == 2
    assert message in err


@pytest.mark.parametrize("name", ["config", "search"])
def test_new_study_needs_both_files(files, name):
    del files[name]
    code, _, err = tune(files)
    assert code == 2
    assert f"--{name} is missing" in err and "holds no study yet" in err


def test_fields_of_a_search_are_for_tune_alone():
    code, _, err = run_factory.call(
        "train", "--config=configs/default.py", "--workdir=x", "--search.folds=2"
    )
    assert code == 2
    assert "unrecognized arguments: --search.folds=2" in err


def test_learning_curve_is_drawn_from_the_study_s_folder(monkeypatch, tmp_path):
    from dpa_jax.tuning import learning_curve, study

    calls = []
    monkeypatch.setattr(study, "check_finished", lambda folder: None)

    def drawn(folder, counts, draws):
        calls.append((folder, counts, draws))
        return learning_curve.Curve((), (), None, ("the line",))

    monkeypatch.setattr(learning_curve, "learning_curve", drawn)
    code, out, err = run_factory.call(
        "tune", f"--workdir={tmp_path}", "--learning-curve=0,5,10", "--draws=3"
    )
    assert (code, out) == (0, "the line\n"), err
    assert calls == [(tmp_path, [0, 5, 10], 3)]


def test_doctor_names_the_extra(capsys, monkeypatch):
    monkeypatch.setattr(others.importlib.util, "find_spec", lambda name: None)
    code, out, _ = run_factory.call("doctor")
    assert code == 0
    assert "pip install 'dpa_jax[tune]'" in out


def test_search_of_a_study_is_kept_as_it_was_asked_for(files, monkeypatch):
    _, _, (_, search, _, _) = parsed(monkeypatch, files)
    again = search_lib.from_json(config_files.to_json(search), "x")
    assert again.to_dict() == search.to_dict()
    assert np.isclose(again.space.rate.high, 1e-2)

import pathlib
import warnings

import pytest
import run_factory
import study_factory

from dpa_jax import errors, validation
from dpa_jax.storage import config_files
from dpa_jax.tuning.search import load

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
SEARCHES = [
    ("folder", "folder.py"),
    ("folder", "folder.py:32"),
    *(("nih", f"nih.py:{p},{e}") for p in ("subset", "pa") for e in ("pg", "wo_pg")),
    ("camelyon16", "camelyon16.py:pg"),
    ("camelyon16", "camelyon16.py:wo_pg"),
]


@pytest.fixture
def config():
    return run_factory.quick_config()


def write(folder, body, options="{}"):
    """Writes a search whose suggest() has this body; returns its path."""
    source = f"def get_options(config): return {options}\n"
    path = folder / "own.py"
    path.write_text(source + f"def suggest(trial, config):\n    {body}\n")
    return path


def test_grid_has_every_combination_once_and_the_last_changes_fastest(tmp_path):
    assert study_factory.search(tmp_path).plan() == [
        {"width": width, "rate": rate} for width in (2, 4) for rate in (0.001, 0.02)
    ]
    random = study_factory.search(tmp_path, sampler="random", trials=3)
    assert random.plan() == [{}] * 3


def test_fold_s_config_has_the_options_of_the_search(tmp_path, config):
    found = study_factory.search(tmp_path, seed=7, early_stopping__patience=9)
    made = found.fold_config(config, 1)
    assert (made.data.folds, made.data.fold, made.data.seed) == (2, 1, 7)
    assert (made.early_stopping.every, made.early_stopping.patience) == (2, 9)


def test_options_of_a_file_and_of_a_study_are_completed_and_the_same(tmp_path, config):
    found = study_factory.search(tmp_path, anomalies__count=5)
    assert (found.options.folds, found.options.early_stopping.patience) == (2, 3)
    again = load(found.path, config, found.values())
    assert again.values() == found.values() and again.plan() == found.plan()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"sampler": "annealing"}, "'annealing', not tpe or random or grid"),
        ({"folds": 1}, "search.folds is 1, not >= 2"),
        ({"anomalies__count": -1}, "search.anomalies.count is -1, not >= 0"),
    ],
)
def test_option_that_cannot_work_is_refused(tmp_path, config, changes, message):
    with pytest.raises(errors.UsageError, match=message):
        study_factory.search(tmp_path, **changes).check(config)


@pytest.mark.parametrize(
    "body, message",
    [
        ("config.batch_sise = 4", "no config key batch_sise; did you mean batch_size"),
        ("config.batch_size = 'x'", "own.py fails with TypeError"),
        ("config.data.train = 'x'", r"suggest\(\) sets data.train"),
        (
            "config.data.folds = 2",
            "data.folds, data.seed and early_stopping are options",
        ),
        (
            "config.batch_size = trial.suggest_int('b', -9, -1)",
            r"with \{'b': -\d\}: batch_size is -\d; it must be at least 1",
        ),
        ("1 / 0", "own.py fails with ZeroDivisionError"),
    ],
)
def test_suggestion_that_cannot_work_is_refused_before_training(
    tmp_path, config, body, message
):
    with pytest.raises(errors.UsageError, match=message):
        load(write(tmp_path, body), config).check(config)


@pytest.mark.parametrize(
    "grid, message",
    [
        ({}, "no values for a grid"),
        ({"other": (1,)}, "fails with ValueError.*'rate' is not found"),
        ({"rate": (0.5,)}, "fails with UserWarning.*out of"),
        ({"rate": (1e-3,), "other": (1,)}, "takes rate, but the grid has .* other"),
    ],
)
def test_grid_that_does_not_fit_the_suggestions_is_refused(
    tmp_path, config, grid, message
):
    body = "config.optimizer.learning_rate = trial.suggest_float('rate', 1e-4, 1e-2)"
    found = load(write(tmp_path, body, {"sampler": "grid", "grid": grid}), config)
    with pytest.raises(errors.UsageError, match=message), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna alone takes what is out of range
        found.check(config)


@pytest.mark.parametrize(
    "field, comparable",
    [("loss.l1", False), ("data.resize", False), ("seed", True), ("batch_size", True)],
)
def test_without_anomalies_what_the_loss_measures_may_not_be_searched(
    tmp_path, config, field, comparable
):
    section, _, name = field.rpartition(".")
    target = f"config.{section}" if section else "config"
    body = f"{target}['{name}'] = trial.suggest_int('x', 8, 99)"
    if field == "loss.l1":
        body = f"{target}['{name}'] = trial.suggest_float('x', 0.5, 1)"
    path = write(tmp_path, body)
    load(path, config, {"anomalies": {"source": "x"}}).check(config)
    found = load(path, config)
    if comparable:
        found.check(config)
    else:
        with pytest.raises(errors.UsageError, match=f"compared where {field} differs"):
            found.check(config)


@pytest.mark.parametrize(
    "source, message",
    [
        ("def suggest(trial", "own.py fails with SyntaxError"),
        ("x = 1", r"defines no suggest\(trial, config\)"),
        (
            "def get_options(config): return {'trails': 3}\ndef suggest(t, c): pass",
            "no config key trails; did you mean trials",
        ),
    ],
)
def test_file_that_cannot_be_read_is_refused(tmp_path, config, source, message):
    (tmp_path / "own.py").write_text(source)
    with pytest.raises(errors.UsageError, match=message):
        load(tmp_path / "own.py", config)


@pytest.mark.parametrize("resolution, layers", [(8, "8:r11"), (16, "8:r12 16:r12")])
def test_the_search_for_own_images_fits_other_resolutions(resolution, layers):
    config = config_files.load(str(CONFIGS / "folder.py"))
    config.data.resolution = resolution
    config = validation.validate(config)
    found = load(CONFIGS / "search" / "folder.py", config)
    values = {"learning_rate": 1e-3, "width": 8, "layer": found.grid["layer"][0]}
    assert found.config(config, values).perceptual.layers == layers


@pytest.mark.parametrize("name, location", SEARCHES)
def test_searches_of_the_package_lead_to_configs_that_work(name, location):
    config = validation.validate(config_files.load(str(CONFIGS / location)))
    found = load(CONFIGS / "search" / f"{name}.py", config)
    found.options.anomalies.source = "somewhere"
    found.check(config)
    found.options.sampler = "grid"
    for values in found.plan():
        validation.validate(found.fold_config(found.config(config, values), 0))

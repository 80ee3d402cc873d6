import json
import os

import ml_collections
import pytest

from dpa_jax import errors
from dpa_jax.config import default_config, updated
from dpa_jax.storage import config_files


@pytest.fixture
def config():
    return default_config()


def test_json_gives_the_same_config_back(config):
    config.data.channels = 3
    config.model.encoder_channels = (1, 2, 3, 4, 5)
    text = config_files.to_json(config)
    assert (
        config_files.from_values(json.loads(text), "x.json").to_dict()
        == config.to_dict()
    )


def test_saving_is_atomic_and_readable(config, tmp_path):
    config_files.save(config, tmp_path / "config.json")
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert (
        config_files.load(str(tmp_path / "config.json")).to_dict() == config.to_dict()
    )


def write(path, text):
    path.write_text(text)
    return str(path)


def test_python_config_with_and_without_argument(tmp_path):
    path = write(
        tmp_path / "mine.py",
        "from dpa_jax import config as c\n"
        "def get_config(size='8'):\n"
        "    config = c.default_config()\n"
        "    config.batch_size = int(size)\n"
        "    return config\n",
    )
    assert config_files.load(path).batch_size == 8
    assert config_files.load(f"{path}:32").batch_size == 32


@pytest.mark.parametrize(
    "text, message",
    [
        ("x = 1", "defines no get_config"),
        ("def get_config(:", "fails with SyntaxError"),
        ("import nowhere_at_all", "fails with ModuleNotFoundError.*nowhere_at_all"),
        ("def get_config(): return {}", "returns dict, not a ConfigDict"),
        ("def get_config(): return 1 / 0", "ZeroDivisionError.*--debug shows where"),
    ],
)
def test_python_config_that_does_not_work_is_named(tmp_path, text, message):
    path = write(tmp_path / "mine.py", text)
    with pytest.raises(errors.UsageError, match=message) as caught:
        config_files.load(path)
    assert path in str(caught.value)


def test_argument_for_a_config_that_takes_none_is_refused():
    with pytest.raises(errors.UsageError, match="takes no argument, so not '3'"):
        config_files.load("configs/default.py:3")


@pytest.mark.parametrize(
    "content, message",
    [
        (b"{", "damaged, not JSON"),
        (b"\xff\xfe", "damaged, not text"),
        (b"[1]", "damaged, not an object of names and values"),
        (b'{"batch_sise": 3}', "no config key batch_sise; did you mean batch_size"),
        (b'{"batch_size": "3"}', "batch_size is int, not str"),
        (b'{"model": 3}', "no config key model"),
    ],
)
def test_json_that_is_no_config_is_named(tmp_path, content, message):
    path = tmp_path / "mine.json"
    path.write_bytes(content)
    with pytest.raises(errors.DpaError, match=message) as caught:
        config_files.load(str(path))
    assert str(path) in str(caught.value)


def test_missing_config_lists_those_that_come_along():
    with pytest.raises(errors.UsageError, match=r"no config none.py.*configs/demo.py"):
        config_files.load("none.py")


def test_other_kinds_of_files_are_refused(tmp_path):
    path = write(tmp_path / "mine.toml", "")
    with pytest.raises(errors.UsageError, match="is a .py, .json or .yaml file"):
        config_files.load(path)


def test_shipped_configs_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config_files.load("configs/demo.py").data.resolution == 32


def test_a_file_in_the_working_folder_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    mine = default_config()
    mine.seed = 77
    write(tmp_path / "configs" / "demo.json", config_files.to_json(mine))
    assert config_files.load("configs/demo.json").seed == 77


def test_to_json_does_not_depend_on_the_order_of_fields(config):
    values = json.loads(config_files.to_json(config))
    turned = ml_collections.ConfigDict(dict(reversed(values.items())))
    assert config_files.to_json(turned) == config_files.to_json(config)


def test_paths_are_made_absolute_and_what_is_no_path_stays(config):
    given = {
        "data.train": "train",
        "data.test": "tfds:lungs:test",
        "data.test_normal": "list.csv:test",
        "data.test_abnormal": "gs://bucket/abnormal",
        "perceptual.weights": "vgg.npz",
        "perceptual.statistics": "train",
    }
    found = config_files.with_absolute_paths(updated(config, given, ""))
    assert found.data.train == os.path.abspath("train")
    assert found.data.test_normal == os.path.abspath("list.csv") + ":test"
    assert found.perceptual.weights == os.path.abspath("vgg.npz")
    assert found.data.test == "tfds:lungs:test" and found.data.data_dir == ""
    assert found.data.test_abnormal == "gs://bucket/abnormal"
    assert found.perceptual.statistics == "train"
    named = updated(config, {"perceptual.weights": "random:0"}, "")
    assert config_files.with_absolute_paths(named).perceptual.weights == "random:0"

import json

import ml_collections
import pytest

from dpa_jax import config as config_lib
from dpa_jax import errors


@pytest.fixture
def config():
    return config_lib.default_config()


def test_default_is_the_published_nih_subset_run(config):
    config_lib.validate(config)
    # method, sections 2 and 3
    assert config.data.resolution == 64 and config.stages.initial_resolution == 8
    assert config.stages.transition_steps == config.stages.stabilization_steps == 20_000
    assert config.stages.final_steps == 3_500
    assert config.batch_size == 128 and config.optimizer.learning_rate == 1e-3
    assert config.model.kind == "residual18"


def test_json_gives_the_same_config_back(config):
    config.data.channels = 3
    config.model.encoder_channels = (1, 2, 3, 4, 5)
    text = config_lib.to_json(config)
    assert config_lib.from_json(text, "x.json").to_dict() == config.to_dict()


def test_saving_is_atomic_and_readable(config, tmp_path):
    config_lib.save(config, tmp_path / "config.json")
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert config_lib.load(str(tmp_path / "config.json")).to_dict() == config.to_dict()


# --- files ---


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
    assert config_lib.load(path).batch_size == 8
    assert config_lib.load(f"{path}:32").batch_size == 32


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
        config_lib.load(path)
    assert path in str(caught.value)


def test_argument_for_a_config_that_takes_none_is_refused():
    with pytest.raises(errors.UsageError, match="takes no argument, so not '3'"):
        config_lib.load("configs/default.py:3")


@pytest.mark.parametrize(
    "content, message",
    [
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[1]", "does not hold a configuration"),
        (b'{"batch_sise": 3}', "no config key batch_sise; did you mean batch_size"),
        (b'{"batch_size": "3"}', "batch_size is int, not str"),
        (b'{"model": 3}', "no config key model"),
    ],
)
def test_json_that_is_no_config_is_named(tmp_path, content, message):
    path = tmp_path / "mine.json"
    path.write_bytes(content)
    with pytest.raises(errors.UsageError, match=message) as caught:
        config_lib.load(str(path))
    assert str(path) in str(caught.value)


def test_missing_config_lists_those_that_come_along():
    with pytest.raises(errors.UsageError, match=r"no config none.py.*configs/demo.py"):
        config_lib.load("none.py")


def test_other_kinds_of_files_are_refused(tmp_path):
    path = write(tmp_path / "mine.toml", "")
    with pytest.raises(errors.UsageError, match="is a .py, .json or .yaml file"):
        config_lib.load(path)


def test_shipped_configs_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config_lib.load("configs/demo.py").data.resolution == 32


def test_a_file_in_the_working_folder_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    mine = config_lib.default_config()
    mine.seed = 77
    write(tmp_path / "configs" / "demo.json", config_lib.to_json(mine))
    assert config_lib.load("configs/demo.json").seed == 77


# --- flags ---


@pytest.mark.parametrize(
    "flag, name, value",
    [
        ("--config.batch_size=4", "batch_size", 4),
        ("--config.data.train=a=b", "data.train", "a=b"),
        ("--config.data.equalize=true", "data.equalize", True),
        ("--config.optimizer.learning_rate=1", "optimizer.learning_rate", 1.0),
        ("--config.model.encoder_channels=8,4", "model.encoder_channels", (8, 4)),
        ("--config.model.encoder_channels=(8,4)", "model.encoder_channels", (8, 4)),
    ],
)
def test_flags_set_fields(config, flag, name, value):
    found = config_lib.flat(config_lib.with_flags(config, [flag]))
    assert found[name] == value and type(found[name]) is type(value)
    assert config_lib.flat(config)[name] != value  # a copy


def test_flags_do_not_depend_on_the_arguments_of_the_process(config, monkeypatch):
    # config_flags would look there for what is overridden
    argv = ["dpa-jax", "train", "--config=x.py", "--config.seed=3"]
    monkeypatch.setattr("sys.argv", argv)
    found = config_lib.with_flags(config, ["--config.batch_size=4"])
    assert (found.batch_size, found.seed) == (4, 0)


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--config.batch_sise=4", "no config key batch_sise; did you mean batch_size"),
        ("--config.learning_rate=1", "did you mean optimizer.learning_rate"),
        ("--config.data.chanels=3", "did you mean data.channels"),
        ("--config.batch_size", "lacks a value: --config.batch_size=VALUE"),
        ("--config.batch_size=many", "batch_size takes int, such as 128"),
        ("--config.data.equalize=maybe", "data.equalize takes bool, such as False"),
        ("--config.model.encoder_channels=a,b", "takes whole numbers|takes tuple"),
        ("--config.model=3", "no config key model"),
    ],
)
def test_wrong_flags_are_named_with_what_is_right(config, flag, message):
    with pytest.raises(errors.UsageError, match=message):
        config_lib.validate(config_lib.with_flags(config, [flag]))


# --- validation ---


def changed(config, **values):
    """Sets fields, `__` for the dot in their names."""
    for name, value in values.items():
        section, _, leaf = name.rpartition("__")
        with (config[section] if section else config).unlocked() as target:
            target[leaf] = value
    return config


@pytest.mark.parametrize(
    "values, message",
    [
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"seed": -1}, "seed is -1"),
        ({"log_every": 0}, "log_every is 0"),
        ({"checkpoint_every": 0}, "checkpoint_every is 0"),
        ({"data__channels": 2}, "data.channels is 2; it may be 1 or 3"),
        ({"data__resolution": 48}, "data.resolution is 48; it must be a power of two"),
        ({"stages__initial_resolution": 12}, "initial_resolution is 12.*power of two"),
        ({"stages__initial_resolution": 128}, "is 128, above data.resolution 64"),
        ({"stages__initial_resolution": 4}, "is 4; with .*latent_resolution 1.* 8"),
        ({"stages__transition_steps": 0}, "transition_steps is 0; growing needs"),
        ({"stages__final_steps": 0}, "final_steps is 0"),
        ({"model__latent_resolution": 3}, "latent_resolution is 3.*power of two"),
        ({"model__kind": "residual"}, "'residual'.*did you mean residual9|residual18"),
        ({"model__encoder_channels": (8, 8)}, "encoder_channels has 2 entries.* 5"),
        ({"model__decoder_channels": (8, 8, 8, 8, 0)}, "each at least 1"),
        ({"model__encoder_channels": (8, 8, 8, 8, 1.5)}, "takes whole numbers"),
        ({"precision": "float16"}, "'float16'.*did you mean bfloat16|float32"),
        ({"optimizer__learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"optimizer__learning_rate": float("nan")}, "nan; it must be finite"),
        ({"loss__l1": -1.0}, "loss.l1 is -1.0; weights are not negative"),
        ({"loss__relative_perceptual": 0.0}, "that scores images is 0"),
        ({"data__size": 100}, "data.size is 100.*random_crop"),
        ({"data__size": 32, "data__random_crop": True}, "32 is below data.resolution"),
        ({"perceptual__layers": "8:r12"}, "names no layer for 16 pixels"),
        ({"perceptual__layers": "64"}, "cannot read '64'"),
        ({"perceptual__layers": "8:r12 8:r12"}, "cannot read '8:r12'"),
        ({"perceptual__layers": "8:r12 16:r99 32:r32 64:r42"}, "no VGG19 layer 'r99'"),
        ({"perceptual__layers": "8:r12*0 16:r22 32:r32 64:r42"}, "r12 has weight 0"),
        # r51 has passed four poolings: of 8 pixels nothing is left
        (
            {"perceptual__layers": "8:r51 16:r22 32:r32 64:r42"},
            "no pixel left .*needs 16",
        ),
        (
            {"data__chanels": 3},
            "no config key data.chanels; did you mean data.channels",
        ),
        ({"batch_size": "8"}, "batch_size is '8'; it takes int"),
        ({"loss__relative_perceptual": 0.0, "loss__adversarial": 1.0}, "scores images"),
        ({"adversarial__discriminator_steps": 0}, "steps is 0; it must be at least 1"),
        ({"data__folds": 1}, "data.fold is 0 of data.folds 1"),
        ({"data__folds": 3, "data__fold": 3}, "data.fold is 3 of data.folds 3"),
        ({"early_stopping__every": 10}, "needs held-out images: set data.folds"),
        ({"population__seeds": 0}, "population.seeds is 0"),
        ({"data__seed": -2}, "data.seed is -2"),
    ],
)
def test_what_cannot_work_is_refused_by_name(config, values, message):
    config = ml_collections.ConfigDict(config.to_dict(), type_safe=False)
    with pytest.raises(errors.UsageError, match=message):
        config_lib.validate(changed(config, **values))


def test_a_field_that_is_missing_is_named(config):
    values = config.to_dict()
    del values["data"]["crop"]
    with pytest.raises(errors.UsageError, match="lacks data.crop"):
        config_lib.validate(ml_collections.ConfigDict(values))


@pytest.mark.parametrize(
    "values",
    [
        {"stages__initial_resolution": 64, "stages__transition_steps": 0},
        {"model__latent_resolution": 4, "model__latent_channels": 16},
        {"loss__relative_perceptual": 0.0, "loss__l1": 1.0, "perceptual__layers": ""},
        {"perceptual__layers": "8:r12 16:r22 32:r32 64:r32*1+r42*0.5"},
        {"data__size": 192, "data__random_crop": True},
    ],
)
def test_what_can_work_is_accepted(config, values):
    config_lib.validate(changed(config, **values))


def test_layers_are_read_with_their_weights():
    found = config_lib.perceptual_layers("8:r12 64:r32*1+r42*0.5")
    assert found == {8: (("r12", 1.0),), 64: (("r32", 1.0), ("r42", 0.5))}


def test_to_json_does_not_depend_on_the_order_of_fields(config):
    values = json.loads(config_lib.to_json(config))
    turned = ml_collections.ConfigDict(dict(reversed(values.items())))
    assert config_lib.to_json(turned) == config_lib.to_json(config)

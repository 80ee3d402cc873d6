import pathlib

import pytest

from dpa_jax import config as config_lib
from dpa_jax import errors, stages

FOLDER = pathlib.Path(config_lib.__file__).parents[1] / "configs"


@pytest.mark.parametrize(
    "location, resolutions, steps",
    [
        # 3 stabilizations and 3 transitions of 20,000 steps, 3,500 at last
        ("configs/default.py", [8, 16, 32, 64], 123_500),
        ("configs/demo.py", [8, 16, 32], 1_300),
        ("configs/folder.py", [8, 16, 32, 64], 30_500),
        ("configs/folder.py:64", [8, 16, 32, 64], 30_500),
        ("configs/folder.py:32", [8, 16, 32], 3_600),
    ],
)
def test_config_loads_and_is_valid(location, resolutions, steps):
    config = config_lib.load(location)
    config_lib.validate(config)
    plan = stages.schedule(config)
    assert sorted({stage.resolution for stage in plan}) == resolutions
    assert plan[-1].end == steps
    assert config_lib.from_json(config_lib.to_json(config), "").to_dict() == (
        config.to_dict()
    )


def test_demo_says_that_its_weights_are_random():
    config = config_lib.load("configs/demo.py")
    assert config.perceptual.weights == "random:0"
    assert "andom" in (FOLDER / "demo.py").read_text().split('"""')[1]


def test_folder_refuses_other_resolutions():
    with pytest.raises(errors.UsageError, match="takes 64 or 32, not '16'"):
        config_lib.load("configs/folder.py:16")


@pytest.mark.parametrize(
    "path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem
)
def test_docstring_holds_the_command(path):
    assert "    dpa-jax " in path.read_text().split('"""')[1]

"""What a slide is scored with: the stains, scale and weights of the run."""

import jax
import numpy as np
import pytest
from tiny_factory import ARCHITECTURE, GROWING, GROWN

from dpa_jax import state
from dpa_jax.errors import DpaError
from dpa_jax.slides import provenance, stain
from dpa_jax.storage.checkpoints import Checkpoints

PROFILE = stain.StainProfile(np.eye(2, 3), np.ones(2), "normal_056:1,2,3,4")


@pytest.fixture
def run(tmp_path, tiny_config):
    """A workdir with the checkpoint of one step."""
    parameters = state.initialize(jax.random.key(0), ARCHITECTURE, [GROWING, GROWN])
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"parameters": parameters}, {})
        changed = jax.tree.map(lambda leaf: leaf + 1e-3, parameters)
        checkpoints.save(2, {"parameters": changed}, {})
    (tmp_path / "statistics.npz").write_bytes(b"statistics")
    return tmp_path


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("tfds:camelyon16/x20:train", 20),
        ("tfds:camelyon16/x40:train[:50%]", 40),
        ("tfds:camelyon16:train", 10),  # TFDS takes the first configuration
        ("patches/x20", 10),
    ],
)
def test_magnification_is_that_of_the_patches(tiny_config, location, expected):
    tiny_config.data.train = location
    assert provenance.magnification(tiny_config) == expected


def test_grey_runs_score_no_slides(tiny_config, tmp_path):
    with pytest.raises(DpaError, match=r"trained on grey images \(data.channels 1\)"):
        provenance.tile(tmp_path, tiny_config)
    tiny_config.data.channels = 3
    assert provenance.tile(tmp_path, tiny_config) == 16


def test_runs_on_other_images_keep_no_stains(tiny_config, tmp_path):
    tiny_config.data.train = str(tmp_path)
    provenance.keep_stains(tmp_path, tiny_config)
    assert not any(tmp_path.iterdir())
    assert stain.find(tmp_path) is None


def test_stains_put_there_by_hand_are_used(tmp_path):
    stain.save(PROFILE, tmp_path / "stain_target.npz")
    assert stain.find(tmp_path).source == PROFILE.source


def test_model_is_its_weights_and_loss_alone(run, tiny_config, tmp_path):
    name = provenance.model(run, tiny_config, 1)
    assert name.startswith("step 1, VGG19 random:0, sha256 ")
    tiny_config.log_every, tiny_config.data.workers = 7, 3
    moved = run.rename(tmp_path.with_name("elsewhere"))
    assert provenance.model(moved, tiny_config, 1) == name

    def digest(step):
        return provenance.model(moved, tiny_config, step).rpartition(" ")[2]

    names = {digest(1), digest(2)}
    tiny_config.loss.l1 = 0.1
    names.add(digest(1))
    (moved / "statistics.npz").write_bytes(b"others")
    names.add(digest(1))
    assert len(names) == 4

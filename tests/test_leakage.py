import numpy as np
import pytest
import run_factory
from PIL import Image

import dpa_jax
from dpa_jax import errors
from dpa_jax.data import ImageSet, leakage
from dpa_jax.storage import workdir

# what conftest's `trained` was trained on, and what it was not
TRAINED = run_factory.images()[..., None]
FRESH = run_factory.images(6, seed=1)[..., None]


def image_set(images, labels=None):
    names = [f"{i}.png" for i in range(len(images))]
    return ImageSet(images, names, labels=labels)


def test_a_run_keeps_a_hash_of_each_training_image(trained):
    with np.load(trained / leakage.FILE) as kept:
        assert kept["hashes"].dtype == np.uint64 and kept["size"] == 16
        assert len(np.unique(kept["hashes"])) == 24


def test_images_that_were_trained_on_are_named(trained):
    leakage.check(trained, image_set(FRESH), "test images")
    mixed = np.concatenate([FRESH[:2], TRAINED[7:8], FRESH[2:], TRAINED[:1]])
    with pytest.raises(
        errors.DpaError, match=r"trained on 2 of the 8 test images: 2\.png, 7\.png;"
    ):
        leakage.check(trained, image_set(mixed), "test images")


def test_of_many_the_first_are_named(trained):
    with pytest.raises(errors.DpaError, match=r"24 of .*: 0\.png, 1\.png, .* and 19 m"):
        leakage.check(trained, image_set(TRAINED), "test images")


def test_of_images_trained_on_as_random_crops_the_centre_counts(tmp_path):
    larger = run_factory.images(3, 12)[..., None]
    workdir.record_images(tmp_path, image_set(larger), 8)
    centre = larger[1:2, 2:10, 2:10]
    for images in (larger[1:2], centre):
        with pytest.raises(errors.DpaError, match="trained on 1 of the 1 images"):
            leakage.check(tmp_path, image_set(images), "images")
    leakage.check(tmp_path, image_set(centre[:, ::-1]), "images")


def test_a_selection_records_its_own_images_alone(tmp_path):
    some = image_set(TRAINED).select(np.array([3, 1]))
    workdir.record_images(tmp_path, some)
    with pytest.raises(errors.DpaError, match=r"2 of the 24 images: 1\.png, 3\.png;"):
        leakage.check(tmp_path, image_set(TRAINED), "images")


def test_going_on_with_a_run_of_an_older_version_adds_the_hashes(tmp_path):
    workdir.record_images(tmp_path, image_set(TRAINED))
    (tmp_path / leakage.FILE).unlink()
    workdir.record_images(tmp_path, image_set(TRAINED))
    with pytest.raises(errors.DpaError, match="trained on"):
        leakage.check(tmp_path, image_set(TRAINED), "images")


def test_a_run_without_hashes_says_that_leakage_is_not_checked(tmp_path, capsys):
    leakage.check(tmp_path, image_set(TRAINED), "test images")
    assert f"{tmp_path} has no training_images.npz" in capsys.readouterr().err


@pytest.mark.parametrize("arrays", [{}, {"hashes": np.ones(2), "size": 8}])
def test_hashes_of_another_kind_are_named(tmp_path, arrays):
    np.savez(tmp_path / leakage.FILE, **arrays)
    with pytest.raises(errors.DpaError, match=r"training_images\.npz.*damaged"):
        leakage.check(tmp_path, image_set(TRAINED), "images")


def test_an_image_of_both_labels_is_named():
    both = np.concatenate([FRESH, FRESH[4:5]])
    with pytest.raises(
        errors.DpaError, match=r"1 of 2 abnormal .*: 6\.png, which is 4\.png"
    ):
        leakage.check_labels(image_set(both, np.array([0] * 5 + [1] * 2, np.int8)))
    leakage.check_labels(image_set(both, np.array([0] * 4 + [1] * 3, np.int8)))


def test_evaluate_refuses_images_that_were_trained_on(trained, tmp_path):
    paths = [tmp_path / label / "0.png" for label in ("normal", "abnormal")]
    for path, image in zip(paths, (TRAINED[3], FRESH[0]), strict=True):
        path.parent.mkdir()
        Image.fromarray(image[..., 0]).save(path)
    code, _, err = run_factory.call(
        *("evaluate", "--workdir", trained, "--out", tmp_path / "out"),
        *("--normal", tmp_path / "normal", "--abnormal", tmp_path / "abnormal"),
    )
    assert code == 1 and f"1 of the 2 test images: {paths[0]}" in err
    assert not (tmp_path / "out").exists() and "scoring" not in err


def test_evaluate_in_python_refuses_them_too(trained):
    images = np.concatenate([FRESH[:2], TRAINED[:1]])
    with pytest.raises(errors.DpaError, match="trained on 1 of the 3 test images"):
        dpa_jax.evaluate(trained, images, [0, 1, 0])
    with pytest.raises(errors.DpaError, match="1 of 1 abnormal"):
        dpa_jax.evaluate(trained, FRESH[[0, 1, 1]], [0, 0, 1])


def test_another_configuration_that_takes_a_workdir_over_drops_them(tmp_path):
    workdir.claim(tmp_path, run_factory.quick_config())
    workdir.record_images(tmp_path, image_set(TRAINED))
    workdir.claim(tmp_path, run_factory.tiny_config())
    assert not (tmp_path / leakage.FILE).exists()

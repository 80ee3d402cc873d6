import numpy as np
import pytest

from dpa_jax import errors
from dpa_jax.data import ImageSet, folds


def image_set(count, groups=None, pixels=None):
    if pixels is None:
        pixels = np.arange(count, dtype=np.uint8)
    images = np.broadcast_to(pixels[:, None, None, None], (count, 2, 2, 1))
    paths = [f"{i}.png" for i in range(count)]
    return ImageSet(images.astype(np.uint8), paths, groups=groups)


def test_a_group_is_never_torn_apart_and_each_image_is_held_out_once():
    groups = [f"patient {i % 17}" for i in range(100)]
    held = [folds.held_out(image_set(100, groups), 3, k) for k in range(3)]
    np.testing.assert_array_equal(np.sum(held, axis=0), 1)
    for one in held:
        names = np.array(groups)
        assert not set(names[one]) & set(names[~one])


def test_folds_hold_nearly_as_many_images():
    sizes = np.bincount(folds.assign([f"p{i}" for i in range(302)], 3))
    assert sorted(sizes) == [100, 101, 101]


def test_folds_depend_on_names_alone():
    groups = np.array([f"patient {i % 17}" for i in range(100)])
    order = np.random.default_rng(0).permutation(100)
    np.testing.assert_array_equal(
        folds.assign(groups, 4)[order], folds.assign(groups[order], 4)
    )


def test_without_groups_equal_pictures_stay_together():
    pixels = np.arange(10, dtype=np.uint8) // 2  # each picture twice
    held = folds.held_out(image_set(10, pixels=pixels), 2, 0)
    assert 0 < held.sum() < 10
    np.testing.assert_array_equal(held[::2], held[1::2])


def test_fewer_groups_than_folds_are_refused():
    with pytest.raises(errors.DpaError, match="3 folds need at least 3.*there are 2"):
        folds.assign(["a", "b", "b"], 3)


def test_a_group_on_both_sides_is_refused_by_name():
    with pytest.raises(errors.DpaError, match="1 groups .* such as slide 7"):
        folds.check(["slide 7", "slide 8", "slide 7"], np.array([True, False, False]))


def test_few_images_are_left_out_to_make_folds_equal():
    groups = [f"patient {i}" for i in range(302)]
    kept = folds.even(groups, 3)
    assert kept.sum() == 300
    left = np.array(groups)[kept]
    assert np.bincount(folds.assign(left, 3)).tolist() == [100, 100, 100]
    # and the others are dealt out as before
    np.testing.assert_array_equal(folds.assign(left, 3), folds.assign(groups, 3)[kept])


def test_folds_that_cannot_be_made_equal_by_so_few_stay_as_they_are():
    assert folds.even([f"patient {i}" for i in range(50)], 3).all()


def test_images_of_a_group_are_found_where_groups_are_known():
    found = folds.of_groups(image_set(3, ["a", "b", "a"]), ["a", "c"])
    assert found.tolist() == [True, False, True]
    assert not folds.of_groups(image_set(3), ["a"]).any()

"""Images on the device: against NumPy, PyTorch and the laws of chance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from dpa_jax import images


def test_normalize_maps_bytes_to_minus_one_to_one():
    found = images.normalize(jnp.array([0, 51, 255], jnp.uint8))
    np.testing.assert_allclose(found, [-1, -0.6, 1], rtol=0, atol=1e-7)
    assert found.dtype == jnp.float32


def test_normalize_takes_floats_as_they_are():
    found = images.normalize(jnp.array([-1.0, 0.25], jnp.bfloat16))
    np.testing.assert_array_equal(found, [-1, 0.25])
    assert found.dtype == jnp.float32


def test_center_crop_leaves_equal_margins():
    x = np.arange(6 * 8).reshape(1, 6, 8, 1)
    np.testing.assert_array_equal(images.center_crop(x, 4), x[:, 1:5, 2:6])


@pytest.mark.parametrize(
    ("side", "channels", "shape"),
    [(192, 3, (864, 128)), (64, 1, (32, 128)), (20, 1, (25, 16)), (7, 3, (147, 1))],
)
def test_images_in_tiles_keep_their_bytes_in_order(rng, side, channels, shape):
    x = rng.integers(0, 256, (2, 3, side, side, channels), np.uint8)
    found = images.tiles(x)
    assert found.shape == (2, 3, *shape) and found.tobytes() == x.tobytes()
    np.testing.assert_array_equal(images.from_tiles(found, channels), x)


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_downsample_is_pytorchs_bilinear(rng, factor):
    torch = pytest.importorskip("torch", reason="torch, an extra, is not installed")
    x = rng.uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.tensor(x.transpose(0, 3, 1, 2)),
        size=16 // factor,
        mode="bilinear",
        align_corners=False,
        antialias=False,
    )
    np.testing.assert_allclose(
        images.downsample(jnp.asarray(x), 16 // factor),
        expected.permute(0, 2, 3, 1),
        rtol=0,
        atol=1e-6,
    )


def test_downsample_takes_the_centre_of_each_block():
    x = np.zeros((1, 8, 8, 1), np.float32)
    x[0, 1:3, 1:3, 0] = [[1, 2], [3, 6]]  # the centre of the first 4x4 block
    x[0, 0, 4, 0] = 100  # a corner of the second: not seen
    expected = [[3, 0], [0, 0]]
    np.testing.assert_array_equal(images.downsample(x, 2)[0, :, :, 0], expected)


def test_average_pool_and_upsample(rng):
    x = rng.random((2, 4, 6, 3)).astype(np.float32)
    pooled = (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4
    np.testing.assert_allclose(images.average_pool2(x), pooled, rtol=1e-6)
    repeated = x.repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_array_equal(images.upsample2(jnp.asarray(x)), repeated)


def test_mix_fades_from_half_the_resolution(rng):
    x = rng.random((2, 16, 16, 1)).astype(np.float32)
    fine = x.reshape(2, 8, 2, 8, 2, 1).mean((2, 4))
    coarse = x.reshape(2, 4, 4, 4, 4, 1)[:, :, 1:3, :, 1:3].mean((2, 4))
    coarse = coarse.repeat(2, axis=1).repeat(2, axis=2)
    for alpha in (0.0, 0.3, 1.0):
        np.testing.assert_allclose(
            images.mix(jnp.asarray(x), 8, alpha),
            (1 - alpha) * coarse + alpha * fine,
            rtol=0,
            atol=1e-6,
        )


# --- augmentation


def positions(count, side=6):
    """Images whose pixels say where they were."""
    each = np.arange(side * side, dtype=np.uint8).reshape(side, side, 1)
    return np.broadcast_to(each, (count, side, side, 1))


def augmented(keys, x, **options):
    options = {"horizontal_flip": False, "vertical_flip": False} | options
    return np.asarray(images.augment(keys, x, **options))


def test_crops_are_squares_of_the_image_from_every_corner_alike():
    count = 4500
    keys = jax.random.split(jax.random.key(0), count)
    found = augmented(keys, positions(count), size=4)
    tops, lefts = np.divmod(found[:, 0, 0, 0], 6)
    for image, top, left in zip(found[:50], tops, lefts, strict=False):
        whole = positions(1)[0]
        np.testing.assert_array_equal(image, whole[top : top + 4, left : left + 4])
    corners = np.zeros((3, 3), int)
    np.add.at(corners, (tops, lefts), 1)  # fails beyond the third row or column
    assert scipy.stats.chisquare(corners.ravel()).pvalue > 0.01


def test_flips_are_of_their_axis_and_as_likely_as_not():
    count = 2000
    keys = jax.random.split(jax.random.key(1), count)
    x = positions(count, 4)
    both = augmented(keys, x, size=4, horizontal_flip=True, vertical_flip=True)
    whole = x[0]
    variants = [whole, whole[:, ::-1], whole[::-1], whole[::-1, ::-1]]
    counts = [(both == variant).all((1, 2, 3)).sum() for variant in variants]
    assert sum(counts) == count
    assert scipy.stats.chisquare(counts).pvalue > 0.01
    across = augmented(keys, x, size=4, horizontal_flip=True)
    assert set(across[:, 0, 0, 0]) == {0, 3}
    down = augmented(keys, x, size=4, vertical_flip=True)
    assert set(down[:, 0, 0, 0]) == {0, 12}


def test_an_images_draws_depend_on_its_own_key_alone():
    keys = jax.random.split(jax.random.key(2), 8)
    options = {"size": 4, "horizontal_flip": True, "vertical_flip": True}
    together = augmented(keys, positions(8), **options)
    backwards = augmented(keys[::-1], positions(8), **options)[::-1]
    alone = [augmented(keys[i : i + 1], positions(1), **options)[0] for i in range(8)]
    np.testing.assert_array_equal(together, backwards)
    np.testing.assert_array_equal(together, alone)


def test_without_crop_and_flip_images_stay():
    keys = jax.random.split(jax.random.key(3), 4)
    x = positions(4)
    np.testing.assert_array_equal(augmented(keys, x, size=6), x)

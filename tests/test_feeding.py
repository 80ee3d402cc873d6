"""Which images a step sees, and that streaming brings the same ones."""

import dataclasses

import numpy as np
import pytest

from dpa_jax import errors
from dpa_jax.devices.platform import Platform
from dpa_jax.devices.processes import ProcessGroup
from dpa_jax.training import feeding

HERE = Platform.here()


def epoch(number, seed=0, count=10, batch=3):
    """The rows of an epoch of three batches, the tenth image dropped."""
    return feeding.batch_indices(seed, count, batch, 3 * number, 3)


def test_an_epoch_draws_no_image_twice_and_drops_the_rest():
    for number in range(5):
        drawn = epoch(number).ravel()
        assert drawn.shape == (9,) and drawn.dtype == np.int32
        assert len(set(drawn)) == 9 and set(drawn) <= set(range(10))


def test_every_image_has_its_turn():
    assert set(np.concatenate([epoch(n).ravel() for n in range(8)])) == set(range(10))


def test_the_order_is_a_function_of_seed_and_epoch():
    np.testing.assert_array_equal(epoch(1), epoch(1))
    assert (epoch(1) != epoch(2)).any()
    assert (epoch(1) != epoch(1, seed=1)).any()
    feeding.epoch_order.cache_clear()
    order = np.random.default_rng([7, 2]).permutation(10)[:9]
    np.testing.assert_array_equal(epoch(2, seed=7).ravel(), order)


def test_a_chunk_that_begins_in_an_epoch_goes_on_with_it():
    whole = np.concatenate([epoch(0), epoch(1), epoch(2)])
    np.testing.assert_array_equal(feeding.batch_indices(0, 10, 3, 2, 5), whole[2:7])


def test_a_batch_of_all_images_is_allowed():
    assert set(feeding.batch_indices(0, 10, 10, 4, 1)[0]) == set(range(10))


def test_a_batch_beyond_the_images_is_refused():
    with pytest.raises(errors.UsageError, match="batch_size is 11.* only 10 .*=10 "):
        feeding.batch_indices(0, 10, 11, 0, 1)


def machine(process, processes, devices):
    """A machine of so many processes with so many devices each."""
    local = ("a device",) * devices
    return dataclasses.replace(
        HERE,
        devices=local * processes,
        local_devices=local,
        group=ProcessGroup(process, processes),
    )


def test_processes_and_devices_share_a_batch_in_order():
    whole = feeding.batch_indices(0, 40, 12, 0, 4)
    order = feeding.Order(0, 40, 12)
    parts = [order.indices(0, 4, machine(p, 3, 2)) for p in range(3)]
    assert parts[0].shape == (2, 4, 2)  # devices, steps, images
    np.testing.assert_array_equal(
        np.concatenate([device for part in parts for device in part], axis=1), whole
    )


def test_steps_that_are_not_taken_see_the_first_image():
    found = feeding.padded(np.ones((2, 3, 4), np.int32), 5)
    assert found.shape == (2, 5, 4) and not found[:, 3:].any() and found[:, :3].all()


IMAGES = np.arange(30 * 4, dtype=np.uint8).reshape(30, 2, 2, 1)
ROWS = np.arange(2, 22)  # those of IMAGES that are trained on


@pytest.mark.parametrize("batches", [1, 2])
@pytest.mark.parametrize("devices", [1, 3])
def test_streamed_images_are_the_resident_ones(devices, batches):
    order, place = feeding.Order(3, 20, 6, batches), machine(0, 1, devices)
    chunks = [(0, 4), (4, 4), (8, 1)]
    blocks = list(feeding.stream(IMAGES, ROWS, order, chunks, 4, place))
    for (first, steps), block in zip(chunks, blocks, strict=True):
        resident = order.indices(first, steps, place)
        for device, indices in enumerate(block.indices):
            found = block.images[device][indices[:steps]]
            expected = IMAGES[ROWS[resident[device]]]
            np.testing.assert_array_equal(found, expected.reshape(found.shape))


def test_a_device_gets_its_own_images_alone():
    order, place = feeding.Order(3, 20, 6), machine(0, 1, 3)
    (block,) = feeding.stream(IMAGES, ROWS, order, [(0, 4)], 4, place)
    assert block.images.shape == (
        3,
        4 * 2,
        1,
        4,
    )  # 2 of a batch of 6 in each of 4 steps


def test_a_block_is_measured_in_bytes():
    # 128 images of 512 pixels: 32 MiB a step, of which 8 make a block
    order = feeding.Order(0, 60_000, 128)
    assert feeding.streamed_steps(512 * 512, order, HERE) == 8
    # with three batches a step 2, and of two processes each sends its half
    order = feeding.Order(0, 60_000, 128, batches=3)
    assert feeding.streamed_steps(512 * 512, order, HERE) == 2
    assert feeding.streamed_steps(512 * 512, order, machine(0, 2, 1)) == 5
    # never less than a step
    assert feeding.streamed_steps(1 << 30, order, HERE) == 1

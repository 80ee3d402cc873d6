"""Which images a step sees, and that streaming brings the same ones."""

import jax
import numpy as np
import pytest

from dpa_jax import errors
from dpa_jax.data import feeding


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


def test_processes_share_a_batch(monkeypatch):
    whole = feeding.batch_indices(0, 20, 6, 0, 4)
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    parts = []
    for process in range(3):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        parts.append(feeding.local_indices(0, 20, 6, 0, 4))
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


def test_streamed_images_are_the_resident_ones():
    images = np.arange(20 * 4, dtype=np.uint8).reshape(20, 2, 2, 1)
    chunks = [(0, 4), (4, 4), (8, 1)]
    blocks = list(feeding.stream(images, 3, 6, chunks))
    for (first, steps), block in zip(chunks, blocks, strict=True):
        expected = images[feeding.batch_indices(3, 20, 6, first, steps).ravel()]
        np.testing.assert_array_equal(block, expected)

"""Work that threads do ahead of the caller."""

import threading

import pytest

from dpa_jax.prefetch import prefetch


def test_results_come_in_order_from_threads_that_work_at_once():
    both = threading.Barrier(2, timeout=10)

    def meet(item):
        both.wait()
        return item

    assert list(prefetch(meet, range(8), threads=2, ahead=4)) == list(range(8))


def test_items_are_taken_no_further_ahead_than_asked_for():
    taken = []

    def items():
        for item in range(100):
            taken.append(item)
            yield item

    results = prefetch(lambda item: item, items(), threads=2, ahead=3)
    assert next(results) == 0 and taken == [0, 1, 2]
    assert next(results) == 1 and taken == [0, 1, 2, 3]
    results.close()


def test_what_the_function_raises_comes_in_its_turn():
    results = prefetch(lambda item: 1 // item, [1, 0, 1], threads=1, ahead=3)
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)

"""How steps are grouped: every chunk ends where something is due."""

import pytest

from dpa_jax.stages import Stage
from dpa_jax.training import chunks
from dpa_jax.training.chunks import Chunk, Interval

STAGE = Stage(8, False, 20, start=7)  # steps 7 to 27 of the run


def test_without_intervals_only_the_stage_ends_a_chunk():
    assert chunks.divide(STAGE, [], 8, 0) == [Chunk(7, 8), Chunk(15, 8), Chunk(23, 4)]


def test_intervals_end_chunks_at_their_multiples():
    found = chunks.divide(STAGE, [Interval(10), Interval(6, origin=7)], 100, 0)
    # 10 and 20 of the run; 13, 19 and 25, counted from the stage's start
    assert [chunk.end for chunk in found] == [10, 13, 19, 20, 25, 27]
    assert found[0].first == 7


@pytest.mark.parametrize("done", [7, 9, 10, 26, 27])
def test_what_is_left_begins_where_a_run_goes_on(done):
    found = chunks.divide(STAGE, [Interval(10)], 4, done)
    taken = [step for c in found for step in range(c.first, c.end)]
    assert taken == list(range(done, 27))


def test_early_stopping_every_ten_with_chunks_of_four_evaluates_after_whole_tens():
    stage = Stage(8, False, 40, start=3)
    found = chunks.divide(stage, [Interval(10, origin=3)], 4, 0)
    assert [c.steps for c in found] == [4, 4, 2] * 4
    assert [c.end - 3 for c in found if Interval(10, 3).is_due(c.end)] == [
        10,
        20,
        30,
        40,
    ]


def test_a_program_is_no_longer_than_its_longest_chunk():
    assert chunks.longest(STAGE, [], 100) == 20
    assert chunks.longest(STAGE, [], 6) == 6
    assert chunks.longest(STAGE, [Interval(10)], 100) == 10  # 10 to 20
    assert chunks.longest(STAGE, [Interval(1)], 100) == 1


def test_never_is_never_due():
    assert not any(Interval(0).is_due(step) for step in range(20))
    assert not Interval(0).within(STAGE)

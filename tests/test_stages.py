"""The schedule against one worked out by hand from the method's rules."""

import pytest

from dpa_jax import stages
from dpa_jax.config import default_config


@pytest.fixture
def config():
    return default_config()


def test_the_published_schedule(config):
    found = [(s.name, s.steps, s.start) for s in stages.schedule(config)]
    assert found == [
        ("8_stabilization", 20_000, 0),
        ("16_transition", 20_000, 20_000),
        ("16_stabilization", 20_000, 40_000),
        ("32_transition", 20_000, 60_000),
        ("32_stabilization", 20_000, 80_000),
        ("64_transition", 20_000, 100_000),
        ("64_stabilization", 3_500, 120_000),
    ]
    assert stages.schedule(config)[-1].end == 123_500


def test_transitions_and_stabilizations_have_their_own_lengths(config):
    config.data.resolution = 16
    config.stages.transition_steps = 5
    config.stages.stabilization_steps = 7
    config.stages.final_steps = 3
    plan = stages.schedule(config)
    assert [(s.resolution, s.transition, s.start, s.end) for s in plan] == [
        (8, False, 0, 7),
        (16, True, 7, 12),
        (16, False, 12, 15),
    ]


def test_without_growing_there_is_one_stage(config):
    config.stages.initial_resolution = 64
    assert stages.schedule(config) == (stages.Stage(64, False, 3_500, 0),)


def test_alpha_is_advanced_before_the_step():
    growing = stages.Stage(16, True, 4)
    assert [growing.alpha(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert stages.Stage(16, False, 4).alpha(0) == 1.0


def test_equal_stages_are_one_key():
    a, b = stages.Stage(8, False, 4), stages.Stage(8, False, 4)
    assert {a: 1}[b] == 1
    assert {a, stages.Stage(8, True, 4)} != {a}

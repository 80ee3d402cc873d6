import pytest

from dpa_jax.stages import Stage
from dpa_jax.training.forecast import Forecast

PLAN = (
    Stage(8, False, 100),
    Stage(16, True, 100, 100),
    Stage(16, False, 200, 200),
)


@pytest.mark.parametrize("backend, doubling", [("cpu", 4.9), ("gpu", 2.2)])
def test_later_stages_are_foreseen_to_be_slower(backend, doubling):
    forecast = Forecast(PLAN, backend)
    forecast.start(3.0)
    # 60 steps of a tenth of a second, then 100 and 200 of more, each after 3 s
    expected = 6.0 + 10 * doubling * 1.4 + 20 * doubling + 2 * 3.0
    assert forecast.remaining(PLAN[0], 40, 0.1) == pytest.approx(expected)


def test_what_was_measured_last_corrects_the_estimate():
    forecast = Forecast(PLAN, "cpu")
    forecast.start(3.0)
    forecast.start(5.0)
    # a transition is 1.4 times as slow as the stabilization after it
    expected = 100 * 0.28 + 200 * 0.2 + 4.0
    assert forecast.remaining(PLAN[1], 100, 0.28) == pytest.approx(expected)
    assert forecast.remaining(PLAN[2], 400, 0.2) == 0.0

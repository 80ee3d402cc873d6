import numpy as np
import pytest
import scipy.stats

from dpa_jax.scoring import conformal
from dpa_jax.scoring.units import Units

DRAWS = 500


def within_binomial_error(rate, expected):
    return abs(rate - expected) <= 3 * np.sqrt(expected * (1 - expected) / DRAWS)


def test_p_values_count_the_calibration_scores_as_high():
    found = conformal.p_values(np.array([1.0, 2, 2, 3]), np.array([0, 2, 2.5, 3, 4]))
    np.testing.assert_array_equal(found, np.array([5, 4, 2, 2, 1]) / 5)


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.1, 0.3, 1 / 3])
def test_alpha_needs_so_many_scores_and_one_fewer_is_not_enough(alpha):
    count = conformal.fewest(alpha)
    assert 1 / (count + 1) <= alpha < 1 / count


@pytest.mark.parametrize("count", [19, 20, 39, 57, 99])
@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.35])
def test_above_the_threshold_and_nowhere_else_p_values_are_at_most_alpha(count, alpha):
    known = np.sort(np.random.default_rng(count).integers(0, 30, count)).astype(float)
    scores = np.arange(-1, 31, 0.5)
    found = conformal.p_values(known, scores) <= alpha
    np.testing.assert_array_equal(found, scores > conformal.threshold(known, alpha))


def test_false_positives_are_as_many_as_promised():
    rng = np.random.default_rng(0)
    found = [
        conformal.p_values(np.sort(scores[:-1]), scores[-1:])[0] <= 0.05
        for scores in rng.gumbel(size=(DRAWS, 60))
    ]
    assert within_binomial_error(np.mean(found), 0.05)  # 3 of 60 ranks


def grouped(rng, groups=40, most=8):
    """Scores of images that share a part of their score with those of their group."""
    index = np.repeat(np.arange(groups), rng.integers(1, most + 1, groups))
    return rng.normal(size=groups)[index] + rng.normal(size=len(index)), index


def test_by_group_false_positives_are_as_many_and_by_image_they_are_not():
    rng = np.random.default_rng(1)
    by_group, by_image = [], []
    for _ in range(DRAWS):
        scores, index = grouped(rng)
        is_new = index == index[-1]
        known = np.sort(Units.of(scores[~is_new], index[~is_new], None).scores)
        new = Units.of(scores[is_new], index[is_new], None).scores
        by_group.append(conformal.p_values(known, new)[0] <= 0.05)
        each = conformal.p_values(np.sort(scores[~is_new]), scores[is_new])
        by_image.append((each <= 0.05).any())
    assert within_binomial_error(np.mean(by_group), 0.05)  # 2 of 40 ranks
    assert np.mean(by_image) > 0.1


def test_images_of_few_groups_promise_more_by_themselves_than_they_keep():
    """Ten patients with twenty alike images each are not two hundred images."""
    rng = np.random.default_rng(2)
    means = rng.normal(size=(DRAWS, 11))
    scores = means[..., None] + 0.1 * rng.normal(size=(DRAWS, 11, 20))
    found = [
        conformal.p_values(np.sort(known[:-1].ravel()), known[-1])[:1] <= 0.01
        for known in scores
    ]
    assert np.mean(found) > 0.05
    assert conformal.fewest(0.01) > 10  # so that by group it is refused


def test_rates_of_a_threshold_range_as_an_order_statistic_does():
    # above the highest of 19: a share 1 - u, with u the highest of 19 uniform numbers
    low, high = conformal.rate_range(19, 0.05)
    assert low == pytest.approx(1 - 0.95 ** (1 / 19))
    assert high == pytest.approx(1 - 0.05 ** (1 / 19))


def test_benjamini_and_hochberg_by_hand():
    found = np.array([0.5, 0.02, 0.005, 0.041, 0.03])
    # ascending against 0.01, 0.02, 0.03, 0.04 and 0.05 at a rate of 0.05
    expected = [False, True, True, False, True]
    # 0.03 is third: at most 0.03; 0.041 is fourth: above 0.04
    assert conformal.benjamini_hochberg(found, 0.05).tolist() == expected
    assert not conformal.benjamini_hochberg(found, 0.01).any()


def test_benjamini_and_hochberg_as_scipy_has_it():
    rng = np.random.default_rng(3)
    for rate in (0.05, 0.2, 0.5):
        found = np.round(rng.beta(0.5, 2, 300), 2)  # with equal ones
        expected = scipy.stats.false_discovery_control(found) <= rate
        np.testing.assert_array_equal(
            conformal.benjamini_hochberg(found, rate), expected
        )


def test_false_discoveries_are_as_few_as_asked_for():
    rng, shares = np.random.default_rng(4), []
    for _ in range(DRAWS):
        known = np.sort(rng.normal(size=199))
        scores = rng.normal(size=40) + 4 * (np.arange(40) < 10)
        found = conformal.benjamini_hochberg(conformal.p_values(known, scores), 0.2)
        shares.append(found[10:].sum() / max(found.sum(), 1))
    # 0.2 times the share of normal ones, 0.15, at most
    assert np.mean(shares) <= 0.15 + 3 * np.std(shares) / np.sqrt(DRAWS)


# --- whether they still hold ---


def sequences(rng, batch):
    """P-values of batches of 60 against 40 scores, of whole numbers with ties."""
    return np.array(
        [
            conformal.sequential(
                np.sort(np.floor(3 * rng.normal(size=40))), batch(), rng
            )
            for _ in range(200)
        ]
    )


def test_sequential_p_values_are_uniform_and_independent():
    rng = np.random.default_rng(5)
    found = sequences(rng, lambda: np.floor(3 * rng.normal(size=60)))
    assert scipy.stats.kstest(found.ravel(), "uniform").pvalue > 0.01
    assert abs(np.corrcoef(found[:, :-1].ravel(), found[:, 1:].ravel())[0, 1]) < 0.03
    # those of a batch would be alike, were they compared with the calibration alone
    assert found.mean(axis=1).std() == pytest.approx(1 / np.sqrt(12 * 60), rel=0.15)


def test_bets_against_alike_batches_are_seldom_won():
    rng = np.random.default_rng(6)
    capital = conformal.log_martingale(rng.random((2000, 100))).max(axis=1)
    for limit in (10, 20, 100):
        share = (capital >= np.log(limit)).mean()
        assert share <= 1 / limit + 3 * np.sqrt(1 / limit / 2000)


def test_bets_are_fair():
    """Over all that may come, the capital stays the same on average."""
    nodes = (np.arange(500) + 0.5) / 500
    # dense at both ends, where bets may be high without bound
    curve = scipy.stats.beta(8, 8)
    before = np.tile([0.01, 0.03], (500, 1))
    found = np.column_stack([before, curve.cdf(nodes)])
    capital = np.exp(conformal.log_martingale(found))
    mean = (capital[:, 2] * curve.pdf(nodes)).mean()
    assert mean == pytest.approx(capital[0, 1], rel=1e-3)


@pytest.mark.parametrize(
    "batch",
    [
        lambda rng: 3 * rng.normal(size=60) + 5,
        lambda rng: 3 * rng.normal(size=60) - 5,
        lambda rng: 0.5 * rng.normal(size=60),
        lambda rng: 3 * rng.normal(size=60) + 9 * (np.arange(60) > 30),
    ],
    ids=["higher", "lower", "narrower", "from the middle on"],
)
def test_bets_against_other_batches_are_won(batch):
    rng = np.random.default_rng(7)
    found = sequences(rng, lambda: batch(rng))
    won = conformal.log_martingale(found).max(axis=1) >= np.log(100)
    assert won.mean() > 0.9


def test_bets_recover_for_a_change_that_comes_late():
    rng = np.random.default_rng(8)
    found = np.concatenate([rng.random((50, 300)), 0.1 * rng.random((50, 20))], axis=1)
    won = conformal.log_martingale(found).max(axis=1) >= np.log(100)
    assert won.mean() > 0.9

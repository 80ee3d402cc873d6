import itertools

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from dpa_jax.scoring import roc


@pytest.fixture
def made(rng):
    """Scores with ties, labels, and groups of several images."""
    labels = rng.integers(0, 2, 120)
    scores = rng.integers(0, 9, 120) + 2 * labels
    return scores, labels, rng.integers(0, 30, 120).astype(str)


def test_a_tie_counts_half():
    # of the pairs (abnormal, normal) two are won, one is lost and one is a tie
    assert roc.auc(np.array([1, 3, 3, 2]), np.array([0, 0, 1, 1])) == 2.5 / 4


def test_is_the_area_under_the_curve(made):
    scores, labels, _ = made
    expected = sklearn.metrics.roc_auc_score(labels, scores)
    assert roc.auc(scores, labels) == pytest.approx(expected, abs=1e-12)


def test_of_one_group_nothing_is_known(made):
    scores, labels, _ = made
    assert roc.interval(scores, labels, ["a"] * 120) == [0, 1]


@pytest.mark.parametrize("units", [20, 7])
def test_perfect_separation_leaves_doubt(rng, units):
    labels = np.repeat([0, 1], [60, 20])
    groups = np.r_[np.arange(60), 100 + np.arange(20) % units].astype(str)
    low, high = roc.interval(rng.random(80) + labels, labels, groups)
    # the AUC with which so many independent pairs are all won one time in forty
    assert low**units == pytest.approx(0.025) and high == 1
    low, high = roc.interval(rng.random(80) - labels, labels, groups)
    assert low == 0 and (1 - high) ** units == pytest.approx(0.025)


def test_of_one_abnormal_image_hardly_anything_is_known(rng):
    labels = np.array([0] * 12 + [1])
    # above all normal images, or but one: a bootstrap's lower end is 1, or above 0.6
    found = roc.interval(np.r_[rng.random(12), 2], labels)
    assert found == pytest.approx([0.025, 1])
    low, high = roc.interval(np.r_[3, rng.random(11), 2], labels)
    assert low < 0.025 and high > 0.975


@pytest.mark.parametrize("abnormal", [2, 5, 9])
def test_intervals_of_few_images_hold_the_truth(rng, abnormal):
    labels = np.repeat([0, 1], [40, abnormal])
    # anomalies that vary more than normal images do; the AUC is Phi(1 / sqrt(1 + 9))
    scores = np.where(labels, 1 + 3 * rng.normal(size=(300, 40 + abnormal)), 0)
    scores += np.where(labels, 0, rng.normal(size=scores.shape))
    truth = scipy.stats.norm.cdf(1 / np.sqrt(10))
    ends = np.array([roc.interval(one, labels) for one in scores])
    assert np.mean((ends[:, 0] <= truth) & (truth <= ends[:, 1])) >= 0.95


def test_of_enough_images_the_bootstrap_is_taken(rng):
    labels = np.repeat([0, 1], [60, roc.FEWEST])
    scores = rng.normal(size=60 + roc.FEWEST) + labels
    low, high = roc.interval(scores, labels)
    won = roc.auc(scores, labels) * roc.FEWEST
    assert low > scipy.stats.beta.ppf(0.025, won, roc.FEWEST - won + 1)


def test_of_two_groups_hardly_anything_is_known():
    labels = np.array([0, 0, 1, 1])  # the only pair of groups has the AUC 3/4
    low, high = roc.interval(np.array([1, 3, 2, 4]), labels, list("aabb"))
    # Beta(1, 1 + x) below and Beta(1 + x, 1) above, if x of one pair were won
    assert 0 < low < 0.025 and 0.975 < high < 1


@pytest.mark.parametrize("grouped", [True, False])
def test_interval_resamples_whole_groups(made, grouped):
    scores, labels, groups = made
    names = sorted(set(groups)) if grouped else range(120)
    members = [np.flatnonzero(groups == n) if grouped else [n] for n in names]
    rng, found = np.random.default_rng(3), []
    for _ in range(160):
        drawn = rng.integers(0, len(members), len(members))
        taken = np.concatenate([members[i] for i in drawn])
        found.append(sklearn.metrics.roc_auc_score(labels[taken], scores[taken]))
    assert roc.interval(
        scores, labels, groups if grouped else None, resamples=160, seed=3
    ) == pytest.approx(np.percentile(found, [2.5, 97.5]), abs=1e-12)


def test_resamples_without_one_of_the_labels_are_drawn_again():
    labels = np.array([0, 1])  # half of the resamples hold one image twice
    # and the one pair is won: see Clopper and Pearson
    assert roc.interval(np.array([0.0, 1.0]), labels) == pytest.approx([0.025, 1])


def test_groups_are_compared_by_the_highest_of_every_draw(rng):
    groups = np.array(list("aaaaabbbccccdddd"))
    labels = np.isin(groups, ["a", "d"]).astype(int)
    scores = rng.integers(0, 6, len(groups))  # with ties
    highest = {
        name: [max(d) for d in itertools.combinations(scores[groups == name], 3)]
        for name in "abcd"
    }
    chances = [
        np.mean([(x > y) + (x == y) / 2 for x in highest[one] for y in highest[other]])
        for one in "ad"
        for other in "bc"
    ]
    found, drawn = roc.group_auc(scores, labels, groups)
    assert found == pytest.approx(np.mean(chances), abs=1e-12) and drawn == 3


# --- of several models and the same anomalies ---


def test_wins_of_each_abnormal_image():
    # against 1, 3, 3: 0 beats none, 3 one and two halves, 4 all
    assert roc.wins(np.array([3, 1, 3]), np.array([0, 3, 4])).tolist() == [0, 2, 3]


def test_wins_give_the_area_under_the_curve(made):
    scores, labels, _ = made
    normal, abnormal = scores[labels == 0], scores[labels == 1]
    assert roc.wins(normal, abnormal).mean() / len(normal) == pytest.approx(
        sklearn.metrics.roc_auc_score(labels, scores), abs=1e-12
    )


def folds_of(rng, count=3, normal=30, abnormal=8):
    """Scores with ties of so many models: normal ones of their own, anomalies."""
    return (
        [rng.integers(0, 9, normal + k).astype(np.float32) for k in range(count)],
        [rng.integers(3, 12, abnormal).astype(np.float32) for _ in range(count)],
    )


@pytest.mark.parametrize("grouped", [True, False])
def test_resamples_of_a_mean_have_anomalies_in_common(rng, grouped):
    normals, abnormals = folds_of(rng)
    groups = [rng.integers(0, 12, len(n)).astype(str).tolist() for n in normals]
    kin = rng.integers(0, 5, 8).astype(str).tolist()

    def members(names, count):
        if not grouped:
            return [[i] for i in range(count)]
        return [np.flatnonzero(np.array(names) == n) for n in sorted(set(names))]

    streams = [np.random.default_rng((7, k)) for k in range(4)]

    def taken(units, stream):
        drawn = stream.integers(0, len(units), len(units))
        return np.concatenate([units[i] for i in drawn])

    found = []
    for _ in range(90):
        shared = taken(members(kin, 8), streams[0])
        aucs = []
        for k, (normal, abnormal) in enumerate(zip(normals, abnormals, strict=True)):
            own = taken(members(groups[k], len(normal)), streams[k + 1])
            scores = np.concatenate([normal[own], abnormal[shared]])
            labels = np.repeat([0, 1], [len(own), len(shared)])
            aucs.append(sklearn.metrics.roc_auc_score(labels, scores))
        found.append(np.mean(aucs))
    resampled = roc.mean_resamples(
        normals,
        abnormals,
        groups if grouped else [None] * 3,
        kin if grouped else None,
        resamples=90,
        seed=7,
    )
    assert resampled == pytest.approx(np.array(found), abs=1e-6)


def test_chance_in_the_anomalies_does_not_average_out_over_the_folds(rng):
    # many normal images and few anomalies, which all folds score alike
    normals = [rng.normal(size=2000).astype(np.float32) for _ in range(4)]
    one = rng.normal(0.5, 1, 6).astype(np.float32)

    def sd(count):
        return roc.mean_resamples(
            normals[:count], [one] * count, [None] * count, resamples=400
        ).std()

    assert sd(4) == pytest.approx(sd(1), rel=0.1)


def test_resamples_of_one_model_spread_as_in_theory(rng):
    normal, abnormal = rng.normal(size=300), rng.normal(1, 1, 100)
    found = roc.mean_resamples([normal], [abnormal], [None], resamples=2000)
    # DeLong, DeLong and Clarke-Pearson, 1988
    won = abnormal[:, None] > normal
    variance = won.mean(1).var(ddof=1) / 100 + won.mean(0).var(ddof=1) / 300
    assert found.std() == pytest.approx(np.sqrt(variance), rel=0.1)
    assert found.mean() == pytest.approx(won.mean(), abs=0.005)


def test_interval_of_several_runs_is_that_of_their_mean_auc():
    rng = np.random.default_rng(1)
    labels = np.arange(40) % 2
    scores = rng.normal(size=(3, 40)) + labels
    # the same resamples, drawn again by hand
    again, found = np.random.default_rng(0), []
    while len(found) < 200:
        drawn = again.integers(0, 40, 40)
        if 0 < labels[drawn].sum() < 40:
            aucs = [
                sklearn.metrics.roc_auc_score(labels[drawn], run[drawn])
                for run in scores
            ]
            found.append(np.mean(aucs))
    expected = np.percentile(found, [2.5, 97.5])
    ours = roc.interval(scores, labels, resamples=200)
    np.testing.assert_allclose(ours, expected)


# --- the band of the curve ---


def test_the_band_holds_the_curve_and_narrows_with_more_images(rng):
    rates = np.linspace(0, 1, 21)
    widths = []
    for count in (60, 960):
        labels = np.arange(count) % 2
        scores = rng.normal(size=count) + 1.5 * labels
        false, true, _ = sklearn.metrics.roc_curve(labels, scores)
        low, high = roc.band(scores, labels, rates)
        curve = np.interp(rates, false, true)
        assert (low <= curve + 0.05).all() and (curve <= high + 0.05).all()
        assert (np.diff(low) >= 0).all() and (np.diff(high) >= 0).all()
        widths.append((high - low).mean())
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.5)  # root of 16


def test_the_band_is_wider_where_images_of_a_group_are_alike(rng):
    labels = np.repeat(np.arange(20) % 2, 10)
    scores = np.repeat(rng.normal(size=20), 10) + labels
    groups = np.repeat(np.arange(20), 10).astype(str)
    rates = np.linspace(0.1, 0.9, 9)
    by_image, by_group = (
        np.diff(roc.band(scores, labels, rates, g), axis=0).mean()
        for g in (None, groups)
    )
    assert by_group > 2 * by_image


def test_the_band_of_equal_scores_is_the_diagonal():
    rates = np.linspace(0, 1, 5)
    low, high = roc.band(np.zeros(8), np.arange(8) % 2, rates)
    np.testing.assert_allclose(low, rates)
    np.testing.assert_allclose(high, rates)

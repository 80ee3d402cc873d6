import numpy as np
import pytest
import sklearn.metrics

from dpa_jax import roc


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


def test_one_group_of_all_images_leaves_no_doubt(made):
    scores, labels, _ = made
    value = roc.auc(scores, labels)
    assert roc.interval(scores, labels, ["a"] * 120) == [value, value]


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
    assert roc.interval(np.array([0.0, 1.0]), labels) == [1.0, 1.0]

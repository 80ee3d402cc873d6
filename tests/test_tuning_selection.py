import dataclasses

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import study_factory

from dpa_jax import errors
from dpa_jax.tuning import selection

NONE = np.zeros(0, np.int64)


def test_auc_is_the_area_under_the_curve_with_ties(rng):
    fold = dataclasses.replace(
        study_factory.fold(normal=rng.integers(0, 20, 50)),
        anomalies=rng.integers(5, 25, 9).astype(np.float32),
    )
    drawn = np.array([1, 4, 7])
    expected = sklearn.metrics.roc_auc_score(
        np.repeat([0, 1], [50, 3]), [*fold.normal, *fold.anomalies[drawn]]
    )
    assert selection.fold_values([fold], drawn) == pytest.approx([expected])


# --- ranking ---


def test_best_first_and_of_equals_the_first_tried():
    trials = [
        study_factory.trial(0, study_factory.fold([0.5]), study_factory.fold([0.7])),
        study_factory.trial(1, study_factory.fold([0.9]), study_factory.fold([0.8])),
        study_factory.trial(2, study_factory.fold([0.7]), study_factory.fold([0.5])),
        selection.Trial(3, "pruned", "", {}),
    ]
    found = selection.rank(trials, np.array([0]), resamples=20)
    assert [trial.number for trial in found.trials] == [1, 0, 2]
    assert found.values == pytest.approx([0.85, 0.6, 0.6])
    assert found.folds == pytest.approx(np.array([[0.9, 0.8], [0.5, 0.7], [0.7, 0.5]]))


def test_without_anomalies_the_lowest_held_out_loss_is_best():
    trials = [
        study_factory.trial(
            i, *(study_factory.fold(loss=loss + d) for d in (-0.1, 0.1))
        )
        for i, loss in enumerate((0.5, 0.3, 0.4))
    ]
    found = selection.rank(trials, NONE)
    assert [trial.number for trial in found.trials] == [1, 2, 0]
    assert found.values == pytest.approx([0.3, 0.4, 0.5]) and found.intervals is None


@pytest.mark.parametrize("drawn", [NONE, np.array([0])])
def test_no_complete_trial_is_no_ranking(drawn):
    found = selection.rank([selection.Trial(0, "failed", "diverged", {})], drawn)
    assert found.trials == () and len(found.values) == 0


# --- intervals ---


def noisy_folds(rng, groups=None):
    return [
        dataclasses.replace(
            study_factory.fold(normal=rng.normal(size=40), groups=groups),
            anomalies=rng.normal(0.8, 1, 12).astype(np.float32),
        )
        for _ in range(2)
    ]


def test_interval_is_that_of_a_plain_bootstrap(rng):
    folds, own, found = noisy_folds(rng), np.random.default_rng(99), []
    for _ in range(3000):
        a = own.integers(0, 12, 12)
        aucs = []
        for fold in folds:
            n = fold.normal[own.integers(0, 40, 40)]
            aucs.append((fold.anomalies[a][:, None] > n).mean())
        found.append(np.mean(aucs))
    ranking = selection.rank(
        [study_factory.trial(0, *folds)], np.arange(12), resamples=3000
    )
    expected = np.percentile(found, [2.5, 97.5])
    assert ranking.intervals[0] == pytest.approx(expected, abs=0.012)
    assert ranking.bias == pytest.approx(np.mean(found) - ranking.values[0], abs=0.003)


def test_bias_is_that_of_choosing_among_equal_trials(rng):
    truth, true, found = scipy.stats.norm.cdf(0.5 / np.sqrt(2)), [], []
    for _ in range(6):
        trials = [
            study_factory.trial(
                number,
                *[
                    dataclasses.replace(
                        study_factory.fold(normal=rng.normal(size=60)),
                        anomalies=abnormal,
                    )
                    for _ in range(3)
                ],
            )
            for number, abnormal in enumerate(rng.normal(0.5, 1, (20, 20)))
        ]
        ranking = selection.rank(trials, np.arange(20), resamples=100)
        found.append(ranking.bias)
        true.append(ranking.values[0] - truth)
    assert 0.5 * np.mean(true) < np.mean(found) < 1.1 * np.mean(true)


# --- files ---


@pytest.mark.parametrize("groups", [None, list("aabbccddee")])
def test_fold_is_read_as_it_was_written(tmp_path, groups):
    fold = study_factory.fold([0.3, 0.4], groups=groups, steps=2_000, loss=0.25)
    selection.write_fold(tmp_path / "scores.npz", fold)
    found = selection.read_fold(tmp_path / "scores.npz")
    for name in ("normal", "groups", "anomalies"):
        np.testing.assert_array_equal(getattr(found, name), getattr(fold, name))
    assert (found.steps, found.loss) == (2_000, 0.25)


def test_scores_that_are_not_finite_or_missing_are_refused(tmp_path):
    selection.write_fold(tmp_path / "s.npz", study_factory.fold([0.3, np.nan]))
    with pytest.raises(errors.DpaError, match=r"s\.npz.*not finite"):
        selection.read_fold(tmp_path / "s.npz")
    with pytest.raises(errors.DpaError, match=r"other\.npz"):
        selection.read_fold(tmp_path / "other.npz")

import dataclasses

import numpy as np
import pytest
import run_factory
import scipy.stats
import sklearn.metrics
import study_factory

from dpa_jax import errors
from dpa_jax.tuning import results, selection

ALL = np.arange(3)
NONE = np.zeros(0, np.int64)


def test_auc_of_drawn_anomalies_by_hand():
    fold = study_factory.fold([0.2, 0.6, 1.0])
    assert selection.fold_aucs([fold], ALL) == pytest.approx([0.6])
    assert selection.fold_aucs([fold, fold], np.array([0, 1])) == pytest.approx(
        [0.4, 0.4]
    )


def test_auc_counts_ties_half():
    fold = dataclasses.replace(
        study_factory.fold([0.0]), anomalies=np.array([4.0], np.float32)
    )
    assert selection.fold_aucs([fold], np.array([0])) == pytest.approx([0.45])


def test_auc_is_the_area_under_the_curve(rng):
    fold = dataclasses.replace(
        study_factory.fold([0.0], normal=rng.integers(0, 20, 50)),
        anomalies=rng.integers(5, 25, 9).astype(np.float32),
    )
    drawn = np.array([1, 4, 7])
    expected = sklearn.metrics.roc_auc_score(
        np.repeat([0, 1], [50, 3]), [*fold.normal, *fold.anomalies[drawn]]
    )
    assert selection.fold_aucs([fold], drawn) == pytest.approx([expected])


# --- the interval of a trial ---


def noisy_folds(rng, groups=None):
    return [
        dataclasses.replace(
            study_factory.fold([0.0], normal=rng.normal(size=40)),
            groups=groups,
            anomalies=rng.normal(0.8, 1, 12).astype(np.float32),
        )
        for _ in range(2)
    ]


def test_value_is_the_mean_over_the_folds():
    folds = [study_factory.fold([0.4]), study_factory.fold([0.7])]
    value = selection.trial_value(folds, np.array([0]), resamples=50)
    assert value.auc == pytest.approx(0.55)
    assert value.folds == pytest.approx((0.4, 0.7))
    assert value.low <= value.auc <= value.high


def test_interval_is_that_of_a_plain_bootstrap(rng):
    folds, drawn = noisy_folds(rng), np.arange(12)
    own, found = np.random.default_rng(99), []
    for _ in range(3000):
        a = own.integers(0, 12, 12)
        aucs = []
        for fold in folds:
            n = fold.normal[own.integers(0, 40, 40)]
            aucs.append((fold.anomalies[a][:, None] > n).mean())
        found.append(np.mean(aucs))
    value = selection.trial_value(folds, drawn, resamples=3000)
    expected = np.percentile(found, [2.5, 97.5])
    assert [value.low, value.high] == pytest.approx(expected, abs=0.012)


def test_only_the_drawn_anomalies_count(rng):
    folds = noisy_folds(rng)
    spoilt = [
        dataclasses.replace(f, anomalies=np.r_[f.anomalies[:6], -9 * np.ones(6, "f")])
        for f in folds
    ]
    first = selection.trial_value(folds, np.arange(6), resamples=60)
    assert selection.trial_value(spoilt, np.arange(6), resamples=60) == first


def test_interval_depends_on_the_seed_alone(rng):
    folds = noisy_folds(rng)
    one, same, other = (
        selection.trial_value(folds, np.arange(12), resamples=60, seed=seed)
        for seed in (0, 0, 1)
    )
    assert one == same and one != other


def test_groups_of_normal_images_and_of_anomalies_are_resampled_whole(rng):
    alone = noisy_folds(rng)
    few = tuple(str(i // 20) for i in range(40))
    of_patients = [dataclasses.replace(f, groups=few) for f in alone]
    one_group = ["slide"] * 12
    drawn = np.arange(12)
    wide = selection.trial_value(of_patients, drawn, one_group, resamples=200)
    # two groups of normal images and one of anomalies: few results are possible
    means = {
        np.mean(
            [(f.anomalies[:, None] > n).mean() for f, n in zip(alone, ns, strict=True)]
        )
        for ns in (
            (a, b) for a in halves(alone[0].normal) for b in halves(alone[1].normal)
        )
    }
    assert any(wide.low == pytest.approx(m, abs=1e-6) for m in means)
    assert any(wide.high == pytest.approx(m, abs=1e-6) for m in means)


def halves(normal):
    return normal[:20], normal, normal[20:]


# --- ranking ---


def test_best_first_and_of_equals_the_first_tried():
    trials = [
        study_factory.trial(0, study_factory.fold([0.5]), study_factory.fold([0.7])),
        study_factory.trial(1, study_factory.fold([0.9]), study_factory.fold([0.8])),
        study_factory.trial(2, study_factory.fold([0.7]), study_factory.fold([0.5])),
    ]
    order = selection.ranked(trials, np.array([0]))
    assert [t.number for t in order] == [1, 0, 2]


def test_what_is_not_complete_is_not_ranked():
    whole = study_factory.trial(1, study_factory.fold([0.5]))
    pruned = dataclasses.replace(whole, number=0, state="pruned", folds=())
    assert selection.ranked([pruned, whole], np.array([0])) == [whole]


def write_losses(folder, losses, configs):
    for number, (loss, config) in enumerate(zip(losses, configs, strict=True)):
        folds = [study_factory.fold([], loss=loss + d) for d in (-0.1, 0.1)]
        study_factory.write_trial(folder, number, folds, {}, config=config)
    return results.read_trials(folder)


def test_without_anomalies_the_lowest_held_out_loss_is_best(tmp_path):
    configs = [run_factory.quick_config() for _ in range(3)]
    configs[1].optimizer.learning_rate = 1e-4
    configs[2].model.latent_channels = 8
    trials = write_losses(tmp_path, [0.5, 0.3, 0.4], configs)
    assert [t.number for t in selection.ranked(trials, NONE)] == [1, 2, 0]


@pytest.mark.parametrize(
    "change, field",
    [
        (lambda c: c.perceptual.update(layers="8:r11 16:r22"), "perceptual.layers"),
        (lambda c: c.loss.update(l1=0.1), "loss.l1"),
        (lambda c: c.data.update(equalize=True), "data.equalize"),
        (lambda c: c.perceptual.update(weights="random:1"), "perceptual.weights"),
    ],
)
def test_losses_that_measure_different_things_are_not_ranked(tmp_path, change, field):
    configs = [run_factory.tiny_config() for _ in range(3)]
    change(configs[2])
    trials = write_losses(tmp_path, [0.5, 0.3, 0.4], configs)
    with pytest.raises(errors.UsageError, match=rf"{field} \(.* in trial 0, .*trial 2"):
        selection.ranked(trials, NONE)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.perceptual.update(layers="8:r12 16:r12"),  # of a stage passed
        lambda c: c.loss.update(smooth_transition=False),
        lambda c: c.loss.update(adversarial=0.1),  # never part of the score
        lambda c: c.perceptual.update(normalize=False),  # of another term
    ],
)
def test_what_does_not_change_the_measure_can_be_ranked(change):
    one, other = run_factory.tiny_config(), run_factory.tiny_config()
    change(other)
    selection.check_comparable({"one": one, "other": other})


def test_layers_do_not_matter_where_the_loss_has_no_features():
    one, other = run_factory.quick_config(), run_factory.quick_config()
    other.perceptual.layers = "8:r12"
    other.perceptual.weights = "random:1"
    assert selection.incomparable({"one": one, "other": other}) == []


# --- optimism ---


def table(rows):
    return [
        study_factory.trial(t, *(study_factory.fold([auc]) for auc in row))
        for t, row in enumerate(rows)
    ]


def test_optimism_of_a_nested_choice_by_hand():
    trials = table([[0.9, 0.5, 0.5], [0.6, 0.6, 0.6]])
    found = selection.optimism(trials, np.array([0]))
    # the first is best: 0.6333 to 0.6
    assert found.spread == pytest.approx(0.4, abs=1e-6)
    assert found.sd == pytest.approx(np.std([0.9, 0.5, 0.5], ddof=1), abs=1e-6)
    # without fold 0 the second is chosen, 0.6 and then 0.6; without 1 or 2 the first,
    # 0.7 and then 0.5
    assert found.nested == pytest.approx((0 + 0.2 + 0.2) / 3, abs=1e-6)


def test_a_trial_that_wins_whatever_is_left_out_is_not_flattered():
    trials = table([[0.9, 0.7, 0.8], [0.6, 0.6, 0.6]])
    assert selection.optimism(trials, np.array([0])).nested == pytest.approx(0)


def test_the_best_of_trials_that_differ_by_chance_is_flattered(rng):
    trials = table(0.5 + 0.1 * rng.normal(size=(30, 3)))
    found = selection.optimism(trials, np.array([0]))
    # chosen by two folds of 30 trials: about 2.04 standard deviations of their mean
    assert found.nested == pytest.approx(2.04 * 0.1 / np.sqrt(2), abs=0.06)


def simulated(rng, trials=20):
    """Trials of which none is better, though they look it: 20 anomalies, 3 folds."""
    made = []
    for number in range(trials):
        abnormal = rng.normal(0.5, 1, 20)
        folds = [
            dataclasses.replace(
                study_factory.fold([0.0]),
                normal=rng.normal(size=60),
                anomalies=abnormal,
            )
            for _ in range(3)
        ]
        made.append(study_factory.trial(number, *folds))
    return made


def test_what_suits_the_anomalies_by_chance_shows_in_resamples(rng):
    drawn, truth = np.arange(20), scipy.stats.norm.cdf(0.5 / np.sqrt(2))
    true, found = [], []
    for _ in range(8):
        trials = simulated(rng)
        found.append(selection.optimism(trials, drawn, resamples=200))
        true.append(
            max(selection.fold_aucs(t.folds, drawn).mean() for t in trials) - truth
        )
    resampled = np.mean([o.resampled for o in found])
    nested = np.mean([o.nested for o in found])
    assert 0.5 * np.mean(true) < resampled < 1.1 * np.mean(true)
    assert nested < 0.4 * np.mean(true)  # blind to it
    assert 0.1 < np.mean([o.first for o in found]) < 0.8


def test_a_trial_that_is_always_best_is_first_in_every_resample():
    trials = table([[0.5], [1.0], [0.4]])
    found = selection.optimism(trials, np.array([0]), resamples=50)
    assert found.first == 1 and found.resampled == pytest.approx(0, abs=1e-9)


def test_resamples_respect_the_anomalies_groups(rng):
    trials = simulated(rng, 5)
    drawn, slides = np.arange(20), [f"slide {i // 10}" for i in range(20)]
    alone = selection.optimism(trials, drawn, resamples=200).resampled
    together = selection.optimism(trials, drawn, slides, resamples=200).resampled
    assert alone != together


def test_nothing_nested_in_one_fold_or_one_trial():
    one_fold = selection.optimism(table([[0.9], [0.8]]), np.array([0]))
    assert one_fold.sd is None and one_fold.nested is None
    one_trial = selection.optimism(table([[0.9, 0.8]]), np.array([0]))
    assert one_trial.sd is not None and one_trial.nested is None
    assert one_trial.resampled is None and one_trial.first == 1


# --- files ---


@pytest.mark.parametrize("groups", [None, tuple("aabbccddee")])
def test_a_fold_is_read_as_it_was_written(tmp_path, groups):
    fold = study_factory.fold([0.3, 0.4], groups=groups, steps=2_000, loss=0.25)
    results.write_fold(tmp_path / "scores.npz", fold)
    found = results.read_fold(tmp_path / "scores.npz")
    assert found.normal.tolist() == fold.normal.tolist()
    assert found.anomalies.tolist() == fold.anomalies.tolist()
    assert (found.groups, found.paths) == (groups, fold.paths)
    assert (found.steps, found.loss) == (2_000, 0.25)


def test_trials_are_read_by_number(tmp_path):
    fold = study_factory.fold([0.3])
    study_factory.write_trial(tmp_path, 11, [fold] * 12, {"rate": 0.1})
    study_factory.write_trial(
        tmp_path, 2, [], {"rate": 0.2}, state="failed", reason="it diverged"
    )
    (tmp_path / "trials" / "0003").mkdir()  # at work
    failed, complete = results.read_trials(tmp_path)
    assert (failed.number, failed.state, failed.reason) == (2, "failed", "it diverged")
    assert complete.parameters == {"rate": 0.1} and len(complete.folds) == 12


def test_a_complete_trial_without_scores_is_told(tmp_path):
    folder = study_factory.write_trial(tmp_path, 0, [study_factory.fold([0.3])] * 2, {})
    (folder / "fold_1" / "scores.npz").unlink()
    with pytest.raises(errors.DpaError, match=r"fold_1.scores\.npz"):
        results.read_trials(tmp_path)


@pytest.mark.parametrize("content", ["{", '{"number": 1}'])
def test_a_damaged_trial_is_told(tmp_path, content):
    folder = study_factory.write_trial(tmp_path, 0, [], {}, state="failed")
    (folder / "trial.json").write_text(content)
    with pytest.raises(errors.DpaError, match=r"trial\.json"):
        results.read_trials(tmp_path)


def test_scores_that_are_not_finite_are_refused(tmp_path):
    results.write_fold(tmp_path / "scores.npz", study_factory.fold([0.3, np.nan]))
    with pytest.raises(errors.DpaError, match="not finite"):
        results.read_fold(tmp_path / "scores.npz")

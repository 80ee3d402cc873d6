import csv
import itertools
import pathlib

import numpy as np
import pytest
import run_factory
import study_factory
from PIL import Image

import dpa_jax
from dpa_jax import errors, roc
from dpa_jax.tuning import learning_curve, tested

# by trial, the AUC of each of four anomalies alone, in both of its folds
POOL = [[0.9, 0.1, 0.5, 0.5], [0.2, 0.8, 0.6, 0.8], [0.1, 0.1, 0.1, 0.1]]
LOSSES = (0.3, 0.2, 0.1)
# of each trial and fold on a test set of two normal and two abnormal images
TEST_AUCS = {0: (1.0, 0.5), 1: (0.75, 0.75), 2: (0.0, 0.25)}
SCORES = {
    0.0: (2, 3, 0, 1),
    0.25: (1, 3, 0, 2),
    0.5: (1, 2, 0, 3),
    0.75: (0, 2, 1, 3),
    1.0: (0, 1, 2, 3),
}


def write_study(folder, *, tested_on=True, configs=None):
    config = run_factory.quick_config()
    if tested_on:
        config.data.test = run_factory.write_npz(
            folder / "test.npz",
            images=run_factory.images(4, 8, 9),
            labels=np.array([0, 0, 1, 1]),
        )
    kept = study_factory.pool(4, [0, 1])
    study_factory.write_study(folder / "study", kept=kept, config=config)
    for number, (aucs, loss) in enumerate(zip(POOL, LOSSES, strict=True)):
        fold = study_factory.fold(aucs, loss=loss)
        study_factory.write_trial(
            folder / "study",
            number,
            [fold, fold],
            {"rate": number},
            config=configs[number] if configs else config,
        )
    study_factory.write_trial(folder / "study", 3, [], {}, state="failed")
    return folder / "study"


class Scoring:
    """Scores as the table says, and remembers what it was asked for."""

    def __init__(self):
        self.asked = []

    def __call__(self, folder: pathlib.Path, images, show):
        number, fold = int(folder.parent.name), int(folder.name.removeprefix("fold_"))
        self.asked.append((number, fold))
        show(len(images), len(images))
        return np.array(SCORES[TEST_AUCS[number][fold]], np.float32)


def draw_curve(study, counts, draws=3, scoring=None, **more):
    return learning_curve.learning_curve(
        study, counts, draws, scoring=scoring or Scoring(), visible=False, **more
    )


@pytest.fixture
def study(tmp_path):
    return write_study(tmp_path)


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_table_of_scores_is_right():
    for auc, scores in SCORES.items():
        assert roc.auc(np.array(scores), np.array([0, 0, 1, 1])) == auc


def test_all_anomalies_choose_as_the_means_say(study):
    found = draw_curve(study, [4], draws=1)
    # 0.5, 0.6 and 0.1; on the test set (0.75 + 0.75) / 2
    (choice,) = found.choices
    assert (choice.count, choice.draw, choice.trial) == (4, 0, 1)
    assert choice.selection_auc == pytest.approx(0.6)
    assert choice.test_auc == pytest.approx(0.75)
    assert found.summary == ((4, pytest.approx(0.75), None),)


def test_no_anomalies_choose_by_the_held_out_loss_once(study):
    found = draw_curve(study, [0])
    (choice,) = found.choices
    assert (choice.trial, choice.selection_auc) == (2, None)
    assert choice.test_auc == pytest.approx(0.125)


def test_one_anomaly_chooses_what_suits_it(study):
    found = draw_curve(study, [1], draws=40)
    tests = {0: 0.75, 1: 0.75}
    assert {c.trial for c in found.choices} == {0, 1}
    # only the first anomaly is for trial 0
    share = np.mean([c.trial == 0 for c in found.choices])
    assert 0.1 < share < 0.45
    for choice in found.choices:
        assert choice.selection_auc in [pytest.approx(v) for v in (0.9, 0.8, 0.6)]
        assert choice.test_auc == tests[choice.trial]


def test_every_choice_is_the_best_of_some_draw(study):
    found = draw_curve(study, [2], draws=30)
    possible = set()
    for pair in itertools.combinations(range(4), 2):
        means = [np.mean([row[i] for i in pair]) for row in POOL]
        possible.add((int(np.argmax(means)), round(max(means), 6)))
    chosen = {(c.trial, round(c.selection_auc, 6)) for c in found.choices}
    assert chosen == possible


def test_mean_and_deviation_over_the_draws(study, monkeypatch):
    monkeypatch.setitem(TEST_AUCS, 0, (0.25, 0.25))
    found = draw_curve(study, [1], draws=20)
    aucs = [0.25 if c.trial == 0 else 0.75 for c in found.choices]
    count, mean, sd = found.summary[0]
    assert (count, mean) == (1, pytest.approx(np.mean(aucs)))
    assert sd == pytest.approx(np.std(aucs, ddof=1)) and sd > 0


def test_counts_are_sorted_and_done_once(study):
    found = draw_curve(study, [4, 1, 4], draws=2)
    assert [c.count for c in found.choices] == [1, 1, 4, 4]


def test_the_seed_decides(study):
    def trials(seed):
        return [c.trial for c in draw_curve(study, [1], 20, seed=seed).choices]

    assert trials(0) == trials(0) != trials(1)


# --- scoring ---


def test_only_what_is_chosen_is_scored_and_only_once(study):
    scoring = Scoring()
    draw_curve(study, [4], scoring=scoring)
    assert scoring.asked == [(1, 0), (1, 1)]
    draw_curve(study, [4, 0], scoring=scoring)
    assert scoring.asked[2:] == [(2, 0), (2, 1)]


def test_each_trial_scores_images_preprocessed_as_its_own(tmp_path):
    configs = [run_factory.quick_config() for _ in range(3)]
    configs[1].data.crop = 4
    seen = {}

    class Keeping(Scoring):
        def __call__(self, folder, images, show):
            seen[folder.parent.name] = images
            return super().__call__(folder, images, show)

    study = write_study(tmp_path, configs=configs)
    draw_curve(study, [1], 40, scoring=Keeping())
    plain = run_factory.images(4, 8, 9)[..., None]
    assert (seen["0000"] == plain).all()
    assert seen["0001"].shape == plain.shape and (seen["0001"] != plain).any()


def test_scoring_that_was_interrupted_goes_on(study):
    scoring = Scoring()

    def stops(folder, images, show):
        if folder.name == "fold_1":
            raise KeyboardInterrupt
        return scoring(folder, images, show)

    with pytest.raises(KeyboardInterrupt):
        draw_curve(study, [4], scoring=stops)
    assert draw_curve(study, [4], scoring=scoring).choices[0].test_auc == 0.75
    assert scoring.asked == [(1, 0), (1, 1)]


def test_the_oracle_is_known_if_all_were_scored(study):
    assert draw_curve(study, [4]).oracle is None
    found = draw_curve(study, [0, 1, 4], draws=20)
    assert found.oracle == pytest.approx(0.75)
    assert "the best trial on the test set: 0.7500" in found.lines


def test_another_test_set_is_refused(study, tmp_path):
    draw_curve(study, [0, 4])
    run_factory.write_npz(
        tmp_path / "test.npz",
        images=run_factory.images(4, 8, 9),
        labels=np.array([0, 1, 0, 1]),
    )
    # though only trial 1 is needed now, the oracle would be of two sets
    with pytest.raises(
        errors.DpaError, match=r"test_scores\.npz is of another test set"
    ):
        draw_curve(study, [4])


def test_scores_that_are_not_finite_are_refused_and_not_kept(study):
    with pytest.raises(errors.DpaError, match=r"fold_0 gives scores .* not finite"):
        draw_curve(study, [4], scoring=lambda *_: np.full(4, np.nan))
    assert not list(study.rglob(tested.SCORES))


# --- refusals ---


def test_more_anomalies_than_there_are_is_refused(study):
    with pytest.raises(errors.UsageError, match="with 5 anomalies .* has 4"):
        draw_curve(study, [1, 5])


@pytest.mark.parametrize("counts, draws", [([], 1), ([-1], 1), ([1], 0)])
def test_impossible_numbers_are_refused(study, counts, draws):
    with pytest.raises(errors.UsageError, match="at least 1 draw"):
        draw_curve(study, counts, draws)


def test_a_study_without_a_test_set_is_refused(tmp_path):
    with pytest.raises(errors.DpaError, match=r"no test set \(data\.test\)"):
        draw_curve(write_study(tmp_path, tested_on=False), [1])


def test_a_test_set_of_one_label_is_refused(study, tmp_path):
    run_factory.write_npz(tmp_path / "test.npz", labels=np.zeros(24, int))
    with pytest.raises(errors.DpaError, match="all of its 24 have one label"):
        draw_curve(study, [1])


def test_a_study_without_a_complete_trial_is_refused(tmp_path):
    study_factory.write_study(tmp_path)
    with pytest.raises(errors.DpaError, match="no complete trial"):
        draw_curve(tmp_path, [0])


def test_no_anomalies_cannot_choose_among_other_losses(tmp_path):
    configs = [run_factory.quick_config() for _ in range(3)]
    configs[1].loss.l2 = 1.0
    scoring = Scoring()
    with pytest.raises(errors.UsageError, match=r"not comparable .*loss\.l2"):
        draw_curve(write_study(tmp_path, configs=configs), [0, 1], scoring=scoring)
    assert scoring.asked == []


# --- files ---


def test_tables(study):
    found = draw_curve(study, [0, 4], draws=2)
    table = rows(study / "learning_curve.csv")
    assert [(r["count"], r["draw"], r["trial"]) for r in table] == [
        ("0", "0", "2"),
        ("4", "0", "1"),
        ("4", "1", "1"),
    ]
    assert [r["selection_auc"] for r in table] == ["", "0.600000", "0.600000"]
    assert [r["test_auc"] for r in table] == ["0.125000", "0.750000", "0.750000"]
    none, four = rows(study / "learning_curve_summary.csv")
    assert (none["draws"], none["test_auc_mean"], none["test_auc_sd"]) == (
        *("1", "0.125000", ""),
    )
    assert (four["draws"], four["test_auc_sd"]) == ("2", "0.000000")
    assert four["trials_chosen"] == "1"
    assert "0 anomalies: 0.1250" in found.lines
    assert "4 anomalies: 0.7500, standard deviation 0.0000 of 2 draws" in found.lines
    assert any("more than half of the 4 anomalies" in line for line in found.lines)


def test_picture(study):
    draw_curve(study, [0, 1, 4], draws=5)
    with Image.open(study / "learning_curve.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 20


# --- with real runs ---


def test_runs_score_the_test_set_themselves(trained, tmp_path):
    config = dpa_jax.load(trained).config
    config.data.test = run_factory.write_npz(
        tmp_path / "test.npz", labels=np.arange(24) % 2
    )
    kept = study_factory.pool(4, [0])
    study_factory.write_study(tmp_path / "study", kept=kept, config=config)
    folder = study_factory.write_trial(
        tmp_path / "study", 0, [study_factory.fold(POOL[0])], {}, config=config
    )
    for path in pathlib.Path(trained).iterdir():
        if not (folder / "fold_0" / path.name).exists():
            (folder / "fold_0" / path.name).symlink_to(path)
    found = learning_curve.learning_curve(
        tmp_path / "study", [2], draws=1, visible=False
    )
    images = run_factory.images()[..., None]
    labels = np.arange(24) % 2
    expected = roc.auc(dpa_jax.load(trained)(images), labels)
    assert found.choices[0].test_auc == pytest.approx(expected, abs=1e-9)
    assert found.oracle == found.choices[0].test_auc

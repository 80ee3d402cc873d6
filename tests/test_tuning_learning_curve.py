import csv
import itertools

import numpy as np
import pytest
import run_factory
import study_factory
from PIL import Image

from dpa_jax import errors
from dpa_jax.storage import config_files, workdir
from dpa_jax.tuning import learning_curve, trials

# by trial, the AUC of each of four anomalies alone, in both of its folds
POOL = [[0.9, 0.1, 0.5, 0.5], [0.2, 0.8, 0.6, 0.8], [0.1, 0.1, 0.1, 0.1]]
LOSSES = (0.3, 0.2, 0.1)
# of each trial and fold on a test set of two normal and two abnormal images
TEST_AUCS = {0: (1.0, 0.5), 1: (0.75, 0.75), 2: (0.0, 0.25)}
SCORES = {
    **{0.0: (2, 3, 0, 1), 0.25: (1, 3, 0, 2), 0.5: (1, 2, 0, 3)},
    **{0.75: (0, 2, 1, 3), 1.0: (0, 1, 2, 3)},
}


def write_study(folder, *, groups="wxyz", outcomes=None, **data):
    """A study with four anomalies of patients a to d; the normal ones are `groups`."""
    config = run_factory.quick_config()
    arrays = {"images": run_factory.images(4), "groups": np.array(list(groups))}
    config.data.train = run_factory.write_npz(folder / "normal.npz", **arrays)
    config.data.test = run_factory.write_npz(
        folder / "test.npz",
        images=run_factory.images(4, seed=9),
        labels=np.array([0, 0, 1, 1]),
    )
    config.data.update(data)
    pool = {"images": run_factory.images(4, seed=5), "groups": np.array(list("abcd"))}
    source = run_factory.write_npz(folder / "pool.npz", **pool)
    study = folder / "study"
    found = study_factory.search(study, sampler="random", trials=4)
    found.options.anomalies.update({"source": source, "count": 1})
    config_files.save(config, study / "config.json")
    workdir.write_json(study / "search.json", found.values())
    ends = outcomes or [
        [study_factory.fold(aucs, loss=loss)] * 2
        for aucs, loss in zip(POOL, LOSSES, strict=True)
    ]
    known = {"checked": [], "drawn": [0]}
    study_factory.finished(study, found, known, [*ends, "diverged"])
    return study


@pytest.fixture(autouse=True)
def tested(monkeypatch):
    """Scores as the table says; returns which runs were asked."""
    asked = []

    def score_run(folder, images, show):
        number, fold = int(folder.parent.name), int(folder.name.removeprefix("fold_"))
        asked.append((number, fold))
        show(len(images), len(images))
        return np.array(SCORES[TEST_AUCS[number][fold]], np.float32)

    monkeypatch.setattr(trials, "score_run", score_run)
    return asked


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("curve"))


def curve(study, counts, draws=3):
    return learning_curve.learning_curve(study, counts, draws, visible=False)


def test_all_anomalies_choose_as_the_means_say(study, tested):
    # 0.5, 0.6 and 0.1; on the test set (0.75 + 0.75) / 2
    assert curve(study, [4], 2) == [(4, 0, 1, 0.75), (4, 1, 1, 0.75)]
    assert tested == [(1, 0), (1, 1)]  # what is chosen, and once


def test_no_anomalies_choose_by_the_held_out_loss_once(study):
    assert curve(study, [0]) == [(0, 0, 2, 0.125)]


def test_every_choice_is_the_best_of_some_draw(study):
    possible = set()
    for pair in itertools.combinations(range(4), 2):
        possible.add(int(np.argmax([np.mean([row[i] for i in pair]) for row in POOL])))
    found = curve(study, [2], 30)
    assert {trial for _, _, trial, _ in found} == possible == {0, 1}


def test_anomalies_of_patients_that_were_trained_on_are_not_drawn(tmp_path):
    # of the four patients a to d, b has normal images; the study draws another
    study = write_study(tmp_path, groups="bbww")
    with pytest.raises(errors.UsageError, match="4 anomalies cannot be drawn.* has 3"):
        curve(study, [4])
    # without b: 0.633, 0.533 and 0.1
    assert [trial for _, _, trial, _ in curve(study, [3])] == [0, 0, 0]


def test_table_and_figure_are_written(study):
    curve(study, [0, 4, 4], 2)
    with open(study / "learning_curve.csv", newline="") as file:
        rows = [tuple(row.values()) for row in csv.DictReader(file)]
    assert rows == [
        *(("0", "0", "2", "0.125"), ("4", "0", "1", "0.75"), ("4", "1", "1", "0.75"))
    ]
    with Image.open(study / "learning_curve.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 20


def test_missing_test_set_is_refused(tmp_path):
    with pytest.raises(errors.DpaError, match="needs a test set of normal and abnorm"):
        curve(write_study(tmp_path, test=""), [1])


def test_study_that_is_not_finished_or_not_there_is_refused(study, tmp_path):
    with pytest.raises(errors.DpaError, match="there is no study in"):
        curve(tmp_path, [1])
    values = study.parent / "more"
    values.mkdir()
    found = study_factory.search(values, sampler="random", trials=2)
    config_files.save(run_factory.quick_config(), values / "config.json")
    workdir.write_json(values / "search.json", found.values())
    known = {"checked": [], "drawn": []}
    study_factory.finished(values, found, known, ["diverged"])
    with pytest.raises(errors.DpaError, match="1 trials left and 0 complete"):
        curve(values, [0])

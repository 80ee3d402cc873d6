import collections
import csv
import gc
import os
import sys

import pytest
import run_factory
import study_factory
from PIL import Image

from dpa_jax.storage import config_files
from dpa_jax.tuning import report

# by trial, the AUC in each of two folds of the two drawn anomalies and of another
AUCS = [
    ([0.6, 0.4, 0.9], [0.6, 0.6, 0.9]),
    ([0.9, 0.7, 0.1], [0.7, 0.5, 0.1]),
    ([0.6, 0.6, 0.9], [0.6, 0.4, 0.9]),
]
KNOWN = {"checked": ["Nothing leaked."], "drawn": [0, 1], "of": 3}
KNOWN |= {"kinds": ["mass", "mass"], "groups": None, "paths": ["a", "b"]}


def outcomes():
    return [
        [
            study_factory.fold(aucs, groups=list("aabbccddee"), steps=steps, loss=loss)
            for aucs, steps, loss in zip(folds, (4, 7), (0.25, 0.5), strict=True)
        ]
        for folds in AUCS
    ]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studies") / "st"
    found = study_factory.search(folder)
    known = study_factory.finished(folder, found, KNOWN, [*outcomes(), "it diverged"])
    before = "matplotlib.pyplot" in sys.modules and sys.modules["matplotlib.pyplot"]
    assert not before or not before.get_fignums()
    config = run_factory.quick_config()
    config.data.train = "images/normal"
    return folder, report.write(known, folder, config, found)


def test_ranking_csv_has_the_complete_trials_the_best_first(written):
    folder, (ranking, _) = written
    with open(folder / "ranking.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    # (0.8 + 0.6) / 2; the others are equal
    assert [(row["rank"], row["trial"]) for row in rows] == [
        *(("1", "1"), ("2", "0"), ("3", "2"))
    ]
    assert (rows[0]["width"], rows[0]["rate"]) == ("2", "0.02")
    assert rows[0]["ROC AUC"] == "0.700000"
    assert rows[0]["folds"] == "0.800000 0.600000" and rows[0]["steps"] == "4 7"
    low, high = ranking.intervals[0]
    assert rows[0]["95%"] == f"{low:.6f} to {high:.6f}" and low < 0.7 < high


def test_best_json_is_the_best_trial_s_with_the_folds_mean_steps(written):
    best = config_files.load(str(written[0] / "best.json"))
    expected = run_factory.quick_config()
    expected.optimizer.learning_rate, expected.model.latent_channels = 0.02, 2
    expected.stages.final_steps = 6  # the mean of 4 and 7 is 5.5
    expected.data.train = os.path.abspath("images/normal")  # whatever folder it is in
    assert config_files.to_json(best) == config_files.to_json(expected)


@pytest.mark.parametrize(
    "text",
    [
        "Trials: 3 complete, 1 failed.",
        "Trial 3 failed: it diverged.",
        "Ranked by 2 of 3 anomalies: mass 2.",
        "Nothing leaked.",
        "2 folds of 20 normal images of 5 patients or slides.",
        "The highest AUC of 3 trials is optimistic",
    ],
)
def test_page_and_lines_have_what_the_ranking_stands_on(written, text):
    folder, (_, lines) = written
    assert text in (folder / "report.md").read_text()
    assert any(text in line for line in lines)


def test_page_has_the_table_the_refit_command_and_the_figures(written):
    folder, (_, lines) = written
    page = (folder / "report.md").read_text()
    refit = f"dpa-jax train --config={folder}/best.json --workdir={folder}/refit"
    assert refit in page and any(line.endswith(refit) for line in lines)
    assert "| 1 | 1 | 0.02 | 2 |" in page or "| 1 | 1 | 2 | 0.02 |" in page
    for name in ("ranking.png", "parameters.png", "importance.png"):
        assert f"]({name})" in page
        with Image.open(folder / name) as picture:
            assert len(picture.convert("RGB").getcolors(1 << 20)) > 20


def test_figures_leave_pyplot_as_it_was(written, tmp_path):
    import matplotlib.pyplot as plt

    assert plt.get_fignums() == [] and plt.rcParams["axes.grid"] is False
    with report.figure(tmp_path / "x.png") as axes:
        axes.plot([0, 1])
    assert plt.get_fignums() == [] and (tmp_path / "x.png").stat().st_size


def test_what_shares_were_computed_with_is_let_go(written):
    gc.collect()
    kinds = collections.Counter(map(type, gc.get_objects()))
    kept = [n for kind, n in kinds.items() if "optuna.importance" in repr(kind)]
    # one evaluator is a local of the first frame that imports Optuna's figures, which
    # an error keeps that Optuna keeps; fANOVA left 64 trees
    assert sum(kept) <= 1


def test_without_anomalies_trials_are_ranked_by_loss(tmp_path):
    found = study_factory.search(tmp_path)
    ends = [[study_factory.fold(loss=loss)] * 2 for loss in (0.5, 0.25, 0.25)]
    known = {"checked": [], "drawn": []}
    study = study_factory.finished(tmp_path, found, known, ends)
    config = run_factory.quick_config()
    ranking, lines = report.write(study, tmp_path, config, found)
    assert [trial.number for trial in ranking.trials] == [1, 2, 0]
    assert "held-out loss=0.250000" in lines[0]
    assert any("No anomalies were used" in line for line in lines)


def test_losses_that_cannot_be_compared_are_not_ranked(tmp_path):
    source = (
        study_factory.SEARCH + "    config.loss.l1 = float(trial.params['width'])\n"
    )
    found = study_factory.search(tmp_path, source=source)
    known = {"checked": [], "drawn": []}
    ends = [[study_factory.fold()] * 2] * 4
    study = study_factory.finished(tmp_path, found, known, ends)
    config = run_factory.quick_config()
    ranking, lines = report.write(study, tmp_path, config, found)
    assert not ranking.trials and not (tmp_path / "best.json").exists()
    assert any("Not ranked" in line and "loss.l1" in line for line in lines)

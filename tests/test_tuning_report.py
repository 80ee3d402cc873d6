import csv
import dataclasses

import numpy as np
import pytest
import run_factory
import study_factory
from PIL import Image

from dpa_jax import errors
from dpa_jax.tuning import importance, report

optuna = pytest.importorskip("optuna", reason="studies need the extra tune")

SPACE = {
    "rate": {"field": "optimizer.learning_rate", "low": 1e-4, "high": 1e-1, "log": True}
}
# by trial: the AUC in each of two folds of the two drawn anomalies and of another
AUCS = [
    ([0.6, 0.4, 0.9], [0.6, 0.6, 0.9]),
    ([0.9, 0.7, 0.1], [0.7, 0.5, 0.1]),
    ([0.6, 0.6, 0.9], [0.6, 0.4, 0.9]),
]
GROUPS = tuple("aabbccddee")


def write_study(folder, **more):
    """Three complete trials, one pruned and one failed."""
    kept = study_factory.pool(3, [0, 1], kinds=["mass", "mass", "cyst"])
    study_factory.write_study(
        folder, space=SPACE, kept=kept, statements=["Nothing leaked."], **more
    )
    for number, folds in enumerate(AUCS):
        study_factory.write_trial(
            folder,
            number,
            [
                study_factory.fold(aucs, groups=GROUPS, steps=steps, loss=loss)
                for aucs, steps, loss in zip(folds, (4, 6), (0.25, 0.5), strict=True)
            ],
            {"rate": 10.0 ** -(number + 1), "width": f"w{number}"},
            config=more.get("config"),
        )
    given = {"rate": 0.05, "width": "w0"}
    study_factory.write_trial(
        folder, 3, [], given, state="pruned", reason="below the median"
    )
    study_factory.write_trial(folder, 4, [], {}, state="failed", reason="it, diverged")
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = write_study(tmp_path_factory.mktemp("studies") / "st")
    return folder, report.write(folder)


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_best_trial(written):
    _, found = written
    # (0.8 + 0.6) / 2; the others are equal
    assert [t.number for t in found.ranking] == [1, 0, 2]
    assert found.best.number == 1 and found.values[0].auc == pytest.approx(0.7)
    assert [fold.steps for fold in found.best.folds] == [4, 6]


def test_trials_csv_has_every_trial(written):
    folder, found = written
    table = rows(folder / "trials.csv")
    assert [row["state"] for row in table] == ["complete"] * 3 + ["pruned", "failed"]
    second = table[1]
    value = found.values[0]
    assert (second["number"], second["rate"], second["width"]) == ("1", "0.01", "w1")
    assert float(second["auc_0"]) == pytest.approx(0.8)
    assert float(second["auc_1"]) == pytest.approx(0.6)
    assert float(second["auc"]) == pytest.approx(0.7)
    assert float(second["auc_low"]) == pytest.approx(value.low, abs=1e-6)
    assert float(second["auc_high"]) == pytest.approx(value.high, abs=1e-6)
    assert (second["steps_0"], second["steps_1"]) == ("4", "6")
    assert second["held_out_loss"] == "0.375" and second["seconds"] == "12.5"
    assert table[3]["auc"] == "" and table[3]["reason"] == "below the median"
    assert table[4]["rate"] == "" and table[4]["reason"] == "it, diverged"


def test_ranking_csv_is_in_order(written):
    folder, _ = written
    table = rows(folder / "ranking.csv")
    assert [(row["rank"], row["number"]) for row in table] == [
        ("1", "1"),
        ("2", "0"),
        ("3", "2"),
    ]


def test_importance_is_a_share(written):
    folder, _ = written
    table = rows(folder / "importance.csv")
    assert {row["parameter"] for row in table} == {"rate", "width"}
    assert sum(float(row["importance"]) for row in table) == pytest.approx(1, abs=1e-5)


def test_pictures(written):
    folder, _ = written
    for name in ("ranking.png", "importance.png"):
        with Image.open(folder / name) as picture:
            assert len(picture.convert("RGB").getcolors(1 << 20)) > 20


@pytest.mark.parametrize(
    "said",
    [
        "3 trials complete, 1 pruned, 1 failed.",
        "Ranked by 2 anomalies of 1 kind (mass 2), drawn from 3.",
        "Nothing leaked.",
        "2 folds of 20 normal images split by their 5 groups (patients or slides).",
        "The best trial's ROC AUC is 0.7000, 95% ",
        "the best trial's folds differ by 0.2000 (standard deviation 0.1414).",
        "The highest AUC of 3 trials is biased upwards: chosen by resampled",
        # by fold 1 trials 0 and 1 are equal, and the first has 0.5 in fold 0: 0.1 less;
        # by fold 0 trial 1 is best, with 0.2 less in fold 1
        "chosen by all folds but one, it comes to 0.1500 less on the one left out",
    ],
)
def test_the_report_says_what_it_stands_on(written, said):
    folder, found = written
    assert said in (folder / "report.md").read_text()
    assert any(said in line for line in found.lines)


def test_the_refit_command_is_told(written):
    folder, found = written
    command = (
        f"dpa-jax train --config={folder / 'best.json'} --workdir={folder / 'refit'}"
    )
    assert command in (folder / "report.md").read_text()
    assert found.lines[-1].endswith(command)


def test_the_head_of_the_ranking_is_told(written):
    _, found = written
    assert found.lines[0].startswith("1. trial 1: ROC AUC 0.7000 (95% ")
    assert found.lines[0].endswith("; rate=0.01, width=w1")


def test_writing_again_changes_nothing(written):
    folder, found = written
    names = ("trials.csv", "ranking.csv", "importance.csv", "report.md")
    before = [(folder / name).read_bytes() for name in names]
    assert report.write(folder).lines == found.lines
    assert [(folder / name).read_bytes() for name in names] == before
    assert not [p for p in folder.rglob("*") if p.name.endswith(".tmp")]


def test_unknown_groups_and_kinds_and_random_weights_are_named(tmp_path):
    config = run_factory.tiny_config()
    kept = study_factory.pool(2, [1])
    study_factory.write_study(tmp_path, kept=kept, config=config)
    folds = [study_factory.fold([0.6, 0.4])]
    study_factory.write_trial(tmp_path, 0, folds, {}, config=config)
    found = report.write(tmp_path)
    text = "\n".join(found.lines)
    assert "Ranked by 1 anomaly of unknown kinds, drawn from 2." in text
    assert "10 normal images split image by image" in text
    assert "weights are random (random:0)" in text
    assert "Optimism" not in text and "biased" not in text
    assert "not computed, it needs two complete trials, there are 1." in text
    assert not (tmp_path / "importance.csv").exists()


def write_without_anomalies(folder, configs):
    study_factory.write_study(folder)
    for number, (loss, config) in enumerate(zip((0.5, 0.25), configs, strict=True)):
        folds = [study_factory.fold([], loss=loss)] * 2
        study_factory.write_trial(folder, number, folds, {"w": number}, config=config)
    return report.write(folder)


def test_without_anomalies_the_loss_ranks(tmp_path):
    found = write_without_anomalies(tmp_path, [run_factory.quick_config()] * 2)
    assert [t.number for t in found.ranking] == [1, 0]
    assert found.lines[0] == "1. trial 1: held-out loss 0.25; w=1"
    text = (tmp_path / "report.md").read_text()
    assert "can only rank by reconstruction loss" in text
    assert "about 2 points" in text and "Optimism" not in text
    assert rows(tmp_path / "trials.csv")[0]["auc"] == ""
    assert (tmp_path / "ranking.png").exists()


def test_without_anomalies_other_losses_are_not_ranked(tmp_path):
    other = run_factory.quick_config()
    other.loss.l2 = 1.0
    found = write_without_anomalies(tmp_path, [run_factory.quick_config(), other])
    assert found.ranking == () and found.best is None
    assert "not ranked, as their losses measure different things: loss.l2" in "".join(
        found.lines
    )
    assert len(rows(tmp_path / "trials.csv")) == 2
    assert rows(tmp_path / "ranking.csv") == []


def test_anomalies_of_which_none_is_drawn_do_not_rank(tmp_path):
    kept = study_factory.pool(3, [])
    study_factory.write_study(tmp_path, kept=kept, statements=["Nothing leaked."])
    folds = [study_factory.fold([0.1, 0.2, 0.3])]
    study_factory.write_trial(tmp_path, 0, folds, {})
    text = "\n".join(report.write(tmp_path).lines)
    assert "No anomalies were used" in text and "Nothing leaked." in text


def test_a_study_without_a_complete_trial_has_a_report(tmp_path):
    study_factory.write_study(tmp_path)
    study_factory.write_trial(tmp_path, 0, [], {"w": 1}, state="failed", reason="no")
    found = report.write(tmp_path)
    assert found.best is None and "refit" not in found.lines[-1]
    assert "0 trials complete, 0 pruned, 1 failed." in found.lines
    assert not (tmp_path / "ranking.png").exists()


def test_a_study_without_its_search_is_told(tmp_path):
    study_factory.write_study(tmp_path)
    (tmp_path / "search.json").unlink()
    with pytest.raises(errors.DpaError, match=r"search\.json"):
        report.write(tmp_path)


# --- importance ---


def made(rng, matters):
    """Trials of two parameters, and goals that are a function of one of them."""
    trials = [
        study_factory.trial(
            i, rate=float(10 ** rng.uniform(-4, -1)), width=("small", "large")[i % 2]
        )
        for i in range(24)
    ]
    if matters == "width":
        return trials, [float(t.parameters["width"] == "large") for t in trials]
    return trials, [float(np.log10(t.parameters["rate"])) for t in trials]


@pytest.mark.parametrize("matters", ["rate", "width"])
def test_the_parameter_that_decides_is_the_important_one(rng, matters):
    shares, reason = importance.importance(*made(rng, matters), SPACE)
    assert reason == "" and next(iter(shares)) == matters and shares[matters] > 0.8


@pytest.fixture
def talkative():
    """Lets Optuna tell of every study that it makes."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.INFO)
    yield
    optuna.logging.set_verbosity(before)


def test_importance_is_silent_and_leaves_optuna_as_it_was(rng, talkative, capfd):
    importance.importance(*made(rng, "rate"), SPACE)
    assert capfd.readouterr().err == ""
    assert optuna.logging.get_verbosity() == optuna.logging.INFO


def test_parameters_that_do_not_vary_have_no_importance(rng):
    trials, goals = made(rng, "rate")
    same = [dataclasses.replace(t, parameters={"rate": 0.1}) for t in trials]
    assert importance.importance(same, goals, SPACE) == (
        {},
        "no parameter differs between the trials",
    )


def test_equal_results_give_no_importance(rng):
    trials, goals = made(rng, "rate")
    for equal in (0.5, 0.583333333333):  # and but for rounding
        same = [equal + 1e-16 * i for i in range(len(goals))]
        assert importance.importance(trials, same, SPACE)[0] == {}

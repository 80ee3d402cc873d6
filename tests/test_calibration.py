import csv
import dataclasses
import json
import shutil

import calibration_factory
import numpy as np
import pytest
import run_factory
import scipy.stats
from PIL import Image

import dpa_jax
from dpa_jax import errors
from dpa_jax.data import ImageSet
from dpa_jax.scoring import calibration, decisions

NORMAL = run_factory.images(39, seed=3)[..., None]  # the run was trained on others
TEST = run_factory.images(30, seed=4)[..., None]


def image_set(images=TEST, labels=None, groups=None, **columns):
    names = [f"{i}.png" for i in range(len(images))]
    return ImageSet(images, names, labels=labels, groups=groups, columns=columns)


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory):
    """A run that the command line has calibrated, with alpha 0.1."""
    folder = tmp_path_factory.mktemp("calibrated")
    run = shutil.copytree(trained, folder / "run")
    run_factory.write_folder(folder / "normal", 39, seed=3)
    command = ("calibrate", "--workdir", run, "--normal", folder / "normal")
    code, out, err = run_factory.call(*command, "--alpha=0.1")
    assert code == 0, err
    assert f"{run}: calibrated on 39 normal images" in out
    return run


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run, tmp_path / "run")


@pytest.fixture(scope="module")
def scorer(run):
    return dpa_jax.load(run)


def by_hand(scores, scorer):
    """P-values of images, each compared with those of the calibration."""
    known = scorer(NORMAL)
    return np.array([(1 + (known >= score).sum()) / 40 for score in scores])


# --- calibrate ---


def test_calibration_holds_the_scores_and_what_they_are_of(run, scorer):
    found = json.loads((run / "calibration.json").read_text())
    scores = np.sort(scorer(NORMAL))
    np.testing.assert_allclose(found["strata"]["all"]["scores"], scores, rtol=1e-6)
    # 4 of 40 ranks are at most 0.1: three scores lie above the threshold
    assert found["strata"]["all"]["threshold"] == pytest.approx(scores[-4])
    assert (found["images"], found["units"], found["trained"]) == (39, 39, 12)
    assert (found["alpha"], found["group"], found["by"]) == (0.1, None, None)
    assert found["data"]["location"].endswith("normal")
    maps = scorer.maps(NORMAL)
    expected = [np.median(maps), np.percentile(maps, 99.5)]
    np.testing.assert_allclose(found["map_range"], expected, rtol=1e-5)
    assert len(set(found["hashes"])) == 39


def test_scorer_has_the_calibration_as_it_was_written(run, scorer):
    text = (run / "calibration.json").read_text()
    calibration.write(run, scorer.calibration)
    assert (run / "calibration.json").read_text() == text


def test_each_run_of_a_population_is_calibrated(trained, tmp_path):
    shutil.copy(trained / "config.json", tmp_path / "config.json")
    config = json.loads((tmp_path / "config.json").read_text())
    config["population"] = {"seeds": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    members = [shutil.copytree(trained, tmp_path / "members" / n) for n in "01"]
    images = run_factory.write_npz(tmp_path / "n.npz", images=NORMAL)
    command = ("calibrate", "--workdir", tmp_path, "--normal", images)
    code, _, err = run_factory.call(*command)
    assert code == 0, err
    assert all(calibration.find(member).units == 39 for member in members)
    (members[0] / "calibration.json").unlink()
    code, _, err = run_factory.call(*command)
    assert code == 1 and f"{members[1]} is calibrated already" in err
    assert calibration.find(members[0]) is None


def test_run_is_not_calibrated_twice_unasked(copy):
    with pytest.raises(errors.DpaError, match="calibrated already; --overwrite"):
        dpa_jax.calibrate(copy, NORMAL)
    found = dpa_jax.calibrate(
        copy, NORMAL[:19], alpha=0.06, overwrite=True, visible=False
    )
    assert (found.units, dpa_jax.load(copy).calibration.units) == (19, 19)


@pytest.mark.parametrize(
    "images, options, message",
    [
        (TEST, {"alpha": 0.02}, "alpha 0.02 needs at least 49 distinct .*30 are"),
        (image_set(groups=list("ab") * 15), {}, r"19 groups \(group\); 2 are enough"),
        (image_set(site=["x"] * 12 + ["y"] * 18), {"by": "site"}, "^site=x: .*19 .*12"),
        (image_set(site=["x"] * 30), {"group": "patient"}, "no column patient.*site"),
        (run_factory.images(), {}, "trained on 24 of the 24 calibration images"),
        (
            image_set(labels=np.ones(30, np.int8)),
            {},
            "every calibration image is marked",
        ),
        (np.repeat(TEST[:1], 30, 0), {}, "19 distinct normal images; 1 are enough"),
        (TEST, {"alpha": 5}, "alpha must lie between 0 and 1, not 5"),
    ],
)
def test_what_no_calibration_can_be_made_of_is_refused(
    trained, images, options, message
):
    with pytest.raises(errors.DpaError, match=message):
        dpa_jax.calibrate(trained, images, visible=False, **options)
    assert not (trained / "calibration.json").exists()


def test_images_that_are_labelled_abnormal_are_left_out(copy):
    labels = np.array([0] * 25 + [1] * 5, np.int8)
    options = {"overwrite": True, "visible": False}
    assert dpa_jax.calibrate(copy, image_set(labels=labels), **options).images == 25


# --- what it says of scores ---


def test_of_a_group_the_highest_score_counts():
    found = calibration_factory.made(group="patient")
    scores, groups = [3.0, 18.5, 0.5, 7.0], ["a", "b", "a", "c"]
    expected = [18 / 20, 2 / 20, 18 / 20, 14 / 20]
    assert found.p_values(np.array(scores), groups).tolist() == expected
    alone = [18 / 20, 2 / 20, 1, 14 / 20]
    assert found.p_values(np.array(scores)).tolist() == alone


def test_images_that_are_units_have_no_groups():
    found = calibration_factory.made().p_values(np.array([3.0, 18.5]), ["a", "a"])
    assert found.tolist() == [18 / 20, 2 / 20]


def test_strata_are_compared_with_their_own():
    strata = {"PA": np.arange(9.0), "AP": 10 + np.arange(19.0)}
    found = calibration_factory.made(by="view", group="patient", **strata)
    # a patient in both strata has a p-value in each
    values = found.p_values(
        np.array([8.5, 8.5, 8.5]), ["a", "a", "b"], ["PA", "AP", "PA"]
    )
    assert values.tolist() == [1 / 10, 1, 1 / 10]
    with pytest.raises(errors.DpaError, match="view=LL: .* only PA, AP; calibrate"):
        found.p_values(np.zeros(2), None, ["PA", "LL"])
    with pytest.raises(errors.DpaError, match="calibrated by view, which these images"):
        found.check(image_set())
    with pytest.raises(errors.DpaError, match="without strata"):
        calibration_factory.made().p_values(np.zeros(1), None, ["PA"])


def test_scores_that_are_not_finite_have_no_p_value():
    with pytest.raises(errors.DpaError, match="1 scores are not finite.* is 1"):
        calibration_factory.made().p_values(np.array([1, np.nan]))


def rates(labels, scores, **options):
    images = image_set(TEST[: len(scores)], groups=options.pop("groups", None))
    found = calibration_factory.made(**options)
    return decisions.decide(found, images, np.array(scores)).rates(np.array(labels))


def test_rates_are_of_units_with_intervals():
    groups = list("aabcdde")
    found = rates(
        [0, 0, 0, 0, 0, 1, 1], [1.0, 20, 1, 1, 1, 20, 1], groups=groups, group="group"
    )
    # a is called abnormal, b and c are not; of d one image is abnormal, and it is
    assert found["false_positive_rate"] == pytest.approx(1 / 3)
    assert found["true_positive_rate"] == 0.5
    assert (found["normal_units"], found["abnormal_units"]) == (3, 2)
    low, high = found["false_positive_rate_interval"]
    assert low == pytest.approx(scipy.stats.beta.ppf(0.025, 1, 3))
    assert high == pytest.approx(scipy.stats.beta.ppf(0.975, 2, 2))
    assert "units by group" in decisions.describe(found)


def test_a_label_without_units_has_no_rate():
    found = rates([0, 0], [1.0, 20])
    assert found["true_positive_rate"] is None
    assert found["true_positive_rate_interval"] is None
    assert "of 2 normal images" in decisions.describe(found)


def test_images_of_the_calibration_are_left_out_of_rates(scorer):
    images = image_set(np.concatenate([NORMAL[:5], TEST[:3]]))
    decided = decisions.decide(scorer.calibration, images, scorer(images.images))
    found = decided.rates(np.zeros(8, int))
    assert (found["normal_units"], found["calibrated_on"]) == (3, 5)
    called = by_hand(scorer(TEST[:3]), scorer) <= 0.1
    assert found["false_positive_rate"] == called.mean()
    assert "5 of these were calibrated on" in " ".join(decisions.warnings_of(found))
    assert "5 of these were calibrated on" in " ".join(decided.warnings())


def test_groups_that_are_not_known_are_named():
    found = calibration_factory.made(group="patient")
    decided = decisions.decide(found, image_set(), np.full(30, 12.0))
    (warning,) = decided.warnings()
    assert "calibrated by patient, which is unknown here" in warning
    assert decided.rates(np.zeros(30, int))["units"] == "images"


def test_a_batch_that_is_like_the_calibration_is_no_cause_for_a_warning():
    scores = np.random.default_rng(0).permutation(np.linspace(1, 19, 30))
    assert not decisions.decide(
        calibration_factory.made(), image_set(), scores
    ).warnings()


def test_a_batch_that_has_shifted_is_warned_of_with_the_size_of_the_shift():
    found = calibration_factory.made()
    scores = np.linspace(15, 30, 30)
    decided = decisions.decide(found, image_set(), scores)
    shift = decided.shift(np.ones(30, bool))
    assert shift["is_shifted"] and shift["log10_capital"] > 2
    assert shift["at_most_alpha"] == (scores > 18).mean()
    # the median of 1 to 19 is 10, their variance (19^2 - 1) / 12
    assert shift["median_difference"] == pytest.approx(12.5 / np.sqrt(30))
    (warning,) = decided.warnings()
    assert "2.3 standard deviations" in warning and "above its median" in warning


def test_shift_is_found_within_strata(tmp_path):
    """Views that differ are no shift where each is compared with its own."""
    strata = {"PA": np.arange(1.0, 20), "AP": np.arange(101.0, 120)}
    found = calibration_factory.made(by="view", **strata)
    rng = np.random.default_rng(1)
    views = rng.permutation(["PA"] * 15 + ["AP"] * 15)
    scores = rng.uniform(1, 19, 30) + 100 * (views == "AP")
    images = image_set(view=views.tolist())
    assert not decisions.decide(found, images, scores).warnings()


# --- which calibration ---


def test_run_that_was_trained_further_is_to_be_calibrated_again(copy):
    shutil.rmtree(copy / "checkpoints" / "12")
    with pytest.raises(errors.DpaError, match="at step 12 and is now at 8: calibrate"):
        dpa_jax.load(copy).calibration  # noqa: B018  a property that raises


def test_another_precision_is_to_be_calibrated_by_itself(run):
    with pytest.raises(errors.DpaError, match="in float32, not bfloat16"):
        dpa_jax.evaluate(run, TEST, [0, 1] * 15, precision="bfloat16")


@pytest.mark.parametrize(
    "damage",
    [
        {"alpha": 0},
        {"strata": {"all": {"scores": [2.0, 1.0] * 10}}},
        {"strata": {"all": {"scores": [1.0]}}},
        {"strata": {"all": {}}},
        {"strata": {"all": {"scores": [[1.0]] * 20}}},
        {"map_range": [1, 2, 3]},
        {"hashes": [-1]},
        {"hashes": ["x"]},
    ],
)
def test_damaged_calibration_is_named(copy, damage):
    path = copy / "calibration.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    with pytest.raises(errors.DpaError, match=r"calibration\.json: damaged.*delete it"):
        calibration.find(copy)


def test_another_configuration_that_takes_a_workdir_over_drops_it(tmp_path):
    from dpa_jax.storage import workdir

    workdir.claim(tmp_path, run_factory.quick_config())
    calibration.write(tmp_path, calibration_factory.made())
    workdir.claim(tmp_path, run_factory.tiny_config())
    assert calibration.find(tmp_path) is None


# --- in score and evaluate ---


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def scored(run, tmp_path_factory):
    """What `score` writes and says, with maps and another score."""
    folder = tmp_path_factory.mktemp("scored")
    images = run_factory.write_folder(folder / "new", 30, seed=4)
    command = ("score", images, "--workdir", run, "--out", folder / "s.csv")
    code, out, err = run_factory.call(*command, "--score=l1", "--maps", folder / "maps")
    assert code == 0, err
    return folder, out


def test_score_adds_p_values_beside_the_raw_scores(scored, scorer):
    folder, out = scored
    rows = read(folder / "s.csv")
    assert list(rows[0]) == ["path", "score", "p_value", "abnormal", "l1", "map"]
    scores = np.array([row["score"] for row in rows], np.float32)
    np.testing.assert_allclose(scores, scorer(TEST), rtol=1e-5)
    found = np.array([float(row["p_value"]) for row in rows])
    np.testing.assert_allclose(found, by_hand(scores, scorer))
    assert [row["abnormal"] for row in rows] == [str(int(p <= 0.1)) for p in found]
    assert f"{(found <= 0.1).sum()} of 30 images are abnormal by a p-value" in out


def test_score_marks_a_batch_by_its_false_discovery_rate(run, tmp_path):
    bright = np.clip(2 * TEST[:12, ..., 0].astype(int), 0, 255).astype(np.uint8)
    (tmp_path / "new").mkdir()
    for i, image in enumerate([*bright, *TEST[12:14, ..., 0]]):
        Image.fromarray(image).save(tmp_path / "new" / f"{i:02d}.png")
    command = ("score", tmp_path / "new", "--workdir", run, "--out")
    code, out, err = run_factory.call(*command, tmp_path / "s.csv", "--fdr=0.2")
    assert code == 0, err
    rows = read(tmp_path / "s.csv")
    values = np.array([float(row["p_value"]) for row in rows])
    expected = scipy.stats.false_discovery_control(values) <= 0.2
    assert [row["abnormal"] == "1" for row in rows] == expected.tolist()
    assert "by a false discovery rate of 0.2" in out
    assert "warning: these images are not like those of the calibration" in err


def test_false_discovery_rate_needs_a_calibration(trained, tmp_path):
    folder = run_factory.write_folder(tmp_path / "new", 2, seed=4)
    code, _, err = run_factory.call(
        *("score", folder, "--workdir", trained, "--out", tmp_path / "s.csv"),
        "--fdr=0.2",
    )
    assert code == 2 and "run dpa-jax calibrate first" in err


def test_batch_in_which_nothing_can_be_found_says_what_it_takes():
    found = calibration_factory.made()
    decided = decisions.decide(found, image_set(), np.full(30, 25.0), 0.05)
    assert decided.abnormal.all()
    decided = decisions.decide(found, image_set(), np.linspace(1, 19.5, 30), 0.05)
    # p-values are 1/20 at least: 30 of them, to be at most 0.05
    assert decided.describe().endswith("(of 0.05, the least possible, it takes 30)")


def test_evaluate_compares_what_is_promised_with_what_it_finds(run, scorer, tmp_path):
    rows = ["path,label,group"]
    run_factory.write_folder(tmp_path, 30, seed=4)
    rows += [f"{i:02d}.png,{int(i > 19)},g{i}" for i in range(30)]
    (tmp_path / "test.csv").write_text("\n".join(rows))
    out = tmp_path / "out"
    command = ("evaluate", "--workdir", run, "--test", tmp_path / "test.csv")
    code, text, err = run_factory.call(*command, "--out", out)
    assert code == 0, err
    found = json.loads((out / "metrics.json").read_text())["calibration"]
    called = by_hand(scorer(TEST), scorer) <= 0.1
    assert found["alpha"] == 0.1
    assert found["false_positive_rate"] == called[:20].mean()
    assert found["true_positive_rate"] == called[20:].mean()
    assert "calibrated for a false positive rate of 0.1; called abnormal are" in text
    lines = read(out / "scores.csv")
    assert list(lines[0])[2:] == ["group", "score", "p_value", "abnormal"]
    assert [line["abnormal"] == "1" for line in lines] == called.tolist()
    # and from Python
    again = dpa_jax.evaluate(run, TEST, (np.arange(30) > 19).astype(int))
    assert again["calibration"]["false_positive_rate"] == called[:20].mean()


def test_scores_in_python_have_them_too(run, scorer):
    found = dpa_jax.score(run, TEST[..., 0])
    np.testing.assert_array_equal(found["p_value"], by_hand(found["loss"], scorer))
    np.testing.assert_array_equal(found["abnormal"], found["p_value"] <= 0.1)
    assert set(dpa_jax.score(run, TEST, ["l1"])) == {"l1"}


def test_normal_images_that_have_shifted_are_warned_of(run, scorer):
    moved = dataclasses.replace(
        scorer.calibration, strata={"all": np.linspace(0, 1e-3, 39)}
    )
    decided = decisions.decide(moved, image_set(), scorer(TEST))
    (warning,) = decisions.warnings_of(decided.rates(np.zeros(30, int)))
    assert warning.startswith("the normal images are not like those of the calibration")


def test_maps_have_the_range_of_the_calibration(scored, scorer):
    folder, _ = scored
    picture = np.asarray(Image.open(folder / "maps" / "00.png")).astype(int)
    values = np.load(folder / "maps" / "00.npy")
    low, top = scorer.calibration.map_range
    # 16 pixels drawn as 256: in the middle of each, unless the map bends, is its value
    share = np.clip((values - low) / (top - low), 0, 1)
    red = picture[8:256:16, 264::16]
    grey = picture[8:256:16, 8:256:16]
    expected = (1 - 0.7 * share[..., None]) * grey + 0.7 * share[..., None] * [
        255,
        40,
        0,
    ]
    assert np.abs(red - expected).mean() < 6

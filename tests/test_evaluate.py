import json

import numpy as np
import pytest
import run_factory
import scipy.stats
from PIL import Image

import dpa_jax
from dpa_jax import errors
from dpa_jax.data import ImageSet
from dpa_jax.scoring import evaluation

# One normal image scores above one abnormal and ties with another: of the 3 x 3 pairs
# 7 are in order, one is a tie and one is not.
SCORES = np.array([0.1, 0.2, 0.5, 0.3, 0.5, 0.9])
LABELS = np.array([0, 0, 0, 1, 1, 1])


def test_roc_auc_counts_ordered_pairs_and_half_of_ties():
    assert evaluation.evaluate(SCORES, LABELS)["roc_auc"] == pytest.approx(7.5 / 9)


def test_average_precision_of_the_same():
    # thresholds 0.9, 0.5, 0.3: recall 1/3, 2/3, 1; precision 1, 2/3, 3/4
    expected = 1 / 3 * 1 + 1 / 3 * 2 / 3 + 1 / 3 * 3 / 4
    found = evaluation.evaluate(SCORES, LABELS)
    assert found["average_precision"] == pytest.approx(expected)
    assert found["average_precision_by_chance"] == 0.5


@pytest.mark.parametrize("sign, auc", [(1, 1.0), (-1, 0.0), (0, 0.5)])
def test_extremes(sign, auc):
    found = evaluation.evaluate(sign * np.arange(8.0), np.arange(8) >= 4)
    assert found["roc_auc"] == auc
    assert found["normal"] == found["abnormal"] == 4
    # resamples do not differ: the interval is that of four independent pairs
    expected = scipy.stats.binomtest(int(4 * auc), 4).proportion_ci()
    assert found["roc_auc_interval"] == pytest.approx(list(expected))


def correlated(groups=20, each=25):
    """Images of a group score nearly alike."""
    rng = np.random.default_rng(3)
    labels = np.repeat(np.arange(groups) % 2, each)
    common = rng.normal(0, 1, groups) + np.arange(groups) % 2
    scores = np.repeat(common, each) + 0.01 * rng.normal(size=groups * each)
    return scores, labels, [f"patient {i}" for i in np.repeat(np.arange(groups), each)]


def width(result):
    low, high = result["roc_auc_interval"]
    assert low <= result["roc_auc"] <= high
    return high - low


def test_interval_by_groups_is_wider_where_images_are_not_independent():
    scores, labels, groups = correlated()
    by_image = width(evaluation.evaluate(scores, labels))
    by_group = width(evaluation.evaluate(scores, labels, groups))
    assert by_group > 3 * by_image


def test_interval_is_that_of_theory_for_independent_images():
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 2
    scores = rng.normal(size=400) + labels
    result = evaluation.evaluate(scores, labels)
    a = result["roc_auc"]
    # Hanley and McNeil, 1982
    q1, q2, n = a / (2 - a), 2 * a * a / (1 + a), 200
    variance = a * (1 - a) + (n - 1) * (q1 - a * a) + (n - 1) * (q2 - a * a)
    assert width(result) == pytest.approx(2 * 1.96 * np.sqrt(variance) / n, rel=0.1)


def test_interval_is_deterministic_and_a_function_of_the_seed():
    scores, labels, groups = correlated()
    first, again, other = (
        evaluation.evaluate(scores, labels, groups, seed=seed) for seed in (0, 0, 1)
    )
    assert first == again
    assert first["roc_auc_interval"] != other["roc_auc_interval"]


def test_few_images_are_told_with_their_interval():
    found = evaluation.evaluate(np.arange(13.0), np.arange(13) == 12)
    assert found["independent_pairs"] == 1
    first, second = evaluation.describe(found)
    assert "ROC AUC 1.0000 (95% 0.0250 to 1.0000)" in first
    assert "1 independent pair of a normal and an abnormal image" in second
    many = evaluation.evaluate(np.arange(20.0), np.arange(20) >= 10)
    assert len(evaluation.describe(many)) == 1


def test_groups_are_scored_by_their_highest_image():
    scores = np.array([0.1, 0.9, 0.2, 0.3, 0.8, 0.0])
    labels = np.array([0, 0, 0, 0, 1, 1])
    found = evaluation.evaluate(scores, labels, ["a", "a", "b", "b", "c", "c"])
    # the groups' highest: 0.9 and 0.3 normal, 0.8 abnormal
    assert found["groups"] == 3 and found["group_roc_auc"] == 0.5
    assert found["group_images"] == 2


def test_the_size_of_groups_says_nothing_without_a_signal():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 30 * [34] + 30 * [50])
    labels = (groups < 30).astype(int)
    found = [
        evaluation.evaluate(
            rng.gumbel(size=len(labels)), labels, groups.astype(str), resamples=2
        )["group_roc_auc"]
        for _ in range(60)
    ]
    # one AUC of 30 against 30 has a standard deviation of 0.075 at most
    assert np.mean(found) == pytest.approx(0.5, abs=3 * 0.075 / np.sqrt(60))


def test_groups_of_both_labels_have_no_group_auc():
    found = evaluation.evaluate(SCORES, LABELS, ["a", "b", "c", "a", "d", "e"])
    assert found["groups"] == 5 and "group_roc_auc" not in found


@pytest.mark.parametrize("labels, counts", [([0, 0], "2 and 0"), ([1, 1], "0 and 2")])
def test_one_label_alone_is_refused(labels, counts):
    with pytest.raises(errors.DpaError, match=f"there are {counts}"):
        evaluation.evaluate(np.array([0.1, 0.2]), np.array(labels))


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(errors.DpaError, match="1 scores are not finite.* is 2"):
        evaluation.evaluate(np.array([0, 1, np.nan]), np.array([0, 1, 1]))


# --- of a run ---


@pytest.fixture(scope="module")
def scorer(trained):
    return dpa_jax.load(trained)


def image_set(**more):
    images = run_factory.images(8)[..., None]
    labels = np.array([0, 1] * 4, np.int8)
    return ImageSet(images, [f"{i}.png" for i in range(8)], labels=labels, **more)


def test_report_says_what_the_scores_stand_on(scorer):
    found = evaluation.report(scorer, image_set(), np.arange(8.0))
    assert found["trained_steps"] == 12 and found["stage"] == "16_stabilization"
    assert found["vgg_weights"] == "random:0" and found["random_weights"] is True
    assert "by_view" not in found


def test_report_has_the_audit(scorer):
    images = image_set(columns={"view": ["PA", "AP"] * 4})
    found = evaluation.report(scorer, images, np.arange(8.0))
    assert set(found["by_view"]) == {"PA", "AP"}
    assert "mean_intensity" in found["shortcuts"] and "warnings" in found


def test_images_without_labels_are_refused(scorer):
    images = ImageSet(run_factory.images(2)[..., None], ["a", "b"])
    with pytest.raises(errors.DpaError, match="no labels"):
        evaluation.report(scorer, images, np.zeros(2))


def test_files_of_an_evaluation(scorer, tmp_path):
    images = image_set(groups=list("aabbccdd"))
    scores = scorer(images.images)
    evaluation.write(tmp_path / "out", images, scores, {"roc_auc": 0.5})
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == {
        "roc_auc": 0.5
    }
    lines = (tmp_path / "out" / "scores.csv").read_text().splitlines()
    assert lines[0] == "path,label,group,score"
    assert lines[1].startswith("0.png,normal,a,")
    assert lines[2].startswith("1.png,abnormal,a,")
    assert [np.float32(line.split(",")[3]) for line in lines[1:]] == list(scores)
    for name in ("roc.png", "histogram.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            assert picture.size == (576, 504)
            assert len(picture.convert("RGB").getcolors(1 << 20)) > 20


def test_plots_of_equal_scores(tmp_path):
    evaluation.write_plots(tmp_path, np.full(4, 0.5), np.array([0, 0, 1, 1]))
    assert (tmp_path / "histogram.png").exists()

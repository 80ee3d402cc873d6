import dataclasses

import numpy as np
import pytest
import sklearn.metrics

from dpa_jax import errors
from dpa_jax.data.image_set import ImageSet
from dpa_jax.scoring import audit


@pytest.fixture
def images(rng):
    """Four normal and four abnormal images, of which two are of one patient."""
    pixels = rng.integers(0, 256, (8, 4, 4, 1), dtype=np.uint8)
    return ImageSet(
        pixels,
        paths=[f"{i}.png" for i in range(8)],
        labels=np.array([0, 0, 0, 0, 1, 1, 1, 1], np.int8),
        groups=["1", "2", "3", "4", "5", "5", "6", "7"],
        columns={
            "view": ["PA", "PA", "PA", "AP", "AP", "AP", "PA", "AP"],
            "follow_up": np.array([7, 8, 9, 6, 1, 0, 2, 3]),
            "sex": ["M", "F"] * 4,
            # the lists call the first image normal, whatever the table says
            "findings": [
                ("Mass", "Hernia"),
                (),
                (),
                (),
                ("Mass", "Edema"),
                ("Edema",),
                (),
                (),
            ],
        },
    )


SCORES = np.array([1, 2, 3, 4, 2.5, 9, 2, 9])


def test_within_a_view_images_are_compared_with_their_like(images):
    within = audit.audit(images, SCORES)["by_view"]
    assert (within["PA"]["normal"], within["PA"]["abnormal"]) == (3, 1)
    assert within["PA"]["roc_auc"] == 0.5  # above 1, level with 2, below 3
    assert within["AP"]["roc_auc"] == pytest.approx(2 / 3)


def test_a_view_of_one_label_has_no_roc_auc(images):
    images.columns["view"][:] = ["PA"] * 4 + ["AP"] * 4
    result = audit.audit(images, SCORES)
    assert result["by_view"]["PA"] == {"normal": 4, "abnormal": 0}
    assert "within PA: 4 normal, 0 abnormal" in audit.describe(result)


def test_a_finding_is_compared_with_all_normal_images(images):
    found = audit.audit(images, SCORES)["by_finding"]
    assert list(found) == ["Edema", "Mass"]
    assert (found["Mass"]["normal"], found["Mass"]["abnormal"]) == (4, 1)
    assert found["Mass"]["roc_auc"] == 0.5
    assert found["Edema"]["roc_auc"] == 0.75


def test_intervals_resample_patients(images):
    one_patient = dataclasses.replace(images, groups=["1"] * 8)
    within = audit.audit(one_patient, SCORES)["by_view"]["AP"]
    assert within["roc_auc_interval"] == [0, 1]
    low, high = audit.audit(images, SCORES)["by_view"]["AP"]["roc_auc_interval"]
    assert low < high


def test_a_shortcut_is_taken_with_its_better_sign(images):
    found = audit.shortcuts(images)
    assert found["follow_up"] == 1  # the lower, the more abnormal
    assert found["sex"] == 0.5
    # three of four abnormal and one of four normal images are AP
    assert found["view"] == 0.75


def test_images_of_which_a_number_is_not_known_are_left_out(images):
    ages = np.array([40, np.nan, 50, 60, 45, np.nan, 70, 80])
    more = dataclasses.replace(images, columns={**images.columns, "age": ages})
    # of the 3 x 3 pairs known, 45 beats 40 alone and the other two beat all
    assert audit.shortcuts(more)["age"] == pytest.approx(7 / 9)
    unknown = np.full(8, np.nan)
    none = dataclasses.replace(images, columns={**images.columns, "age": unknown})
    assert "age" not in audit.shortcuts(none)


def test_names_are_ordered_by_the_share_of_abnormal_images(images):
    images.columns["view"][:] = ["b", "b", "a", "c", "a", "a", "c", "b"]
    share = {"a": 2 / 3, "b": 1 / 3, "c": 1 / 2}
    scores = [share[view] for view in images.columns["view"]]
    expected = sklearn.metrics.roc_auc_score(images.labels, scores)
    assert audit.shortcuts(images)["view"] == pytest.approx(expected)


def test_the_mean_of_the_pixels_is_always_a_shortcut(images):
    means = np.array([3, 5, 1, 2, 4, 7, 6, 8], np.uint8)
    images.images[:] = means[:, None, None, None]
    plain = dataclasses.replace(images, columns=None, groups=None)
    result = audit.audit(plain, SCORES)
    assert result["shortcuts"] == {"mean_intensity": 15 / 16}
    assert "by_view" not in result and "by_finding" not in result


def test_the_shape_of_the_original_is_a_shortcut_where_no_side_is(images):
    images.columns["original_width"] = np.array([10, 20, 30, 40] * 2)
    images.columns["original_height"] = np.array([10, 20, 30, 40, 11, 21, 31, 41])
    found = audit.shortcuts(images)
    assert found["original_width"] == 0.5
    assert found["original_aspect"] == 1


def test_warns_of_a_shortcut_that_does_better_than_the_scores(images):
    images.images[:] = 0
    scores = np.array([1.0, 2, 3, 4, 2.5, 3.5, 5, 6])  # of 16 pairs 13 are won
    (warning,) = audit.audit(images, scores)["warnings"]
    assert warning.endswith("it: follow_up 1.000") and "0.812" in warning


def test_the_margin_of_the_warning_is_a_twentieth():
    labels = np.repeat([0, 1], 100).astype(np.int8)
    scores = np.arange(200.0)
    for lost, warned in ((4, True), (6, False)):
        # of all pairs as many per cent are lost as normal images go to the top
        values = scores.copy()
        values[:lost] += 1000
        images = ImageSet(
            base=np.zeros((200, 1, 1, 1), np.uint8),
            paths=["x"] * 200,
            labels=labels,
            columns={"age": values},
        )
        result = audit.audit(images, scores)
        assert result["shortcuts"]["age"] == pytest.approx(1 - lost / 100)
        assert bool(result["warnings"]) is warned


def test_refuses_images_without_labels(images):
    with pytest.raises(errors.DpaError, match="no labels"):
        audit.audit(dataclasses.replace(images, labels=None), SCORES)


def test_names_the_best_and_the_worst_of_the_common_findings():
    def figures(auc, abnormal):
        return {
            "roc_auc": auc,
            "roc_auc_interval": [auc - 0.1, auc + 0.1],
            "normal": 50,
            "abnormal": abnormal,
        }

    lines = audit.describe(
        {
            "by_finding": {
                "Edema": figures(0.8, 20),
                "Hernia": figures(1.0, 2),
                "Mass": figures(0.6, 10),
                "Nodule": figures(0.7, 30),
            },
            "shortcuts": {"age": 0.5},
        }
    )
    assert lines == [
        "lowest by finding: Mass ROC AUC 0.6000 (95% 0.5000 to 0.7000), "
        "50 normal, 10 abnormal",
        "highest by finding: Edema ROC AUC 0.8000 (95% 0.7000 to 0.9000), "
        "50 normal, 20 abnormal",
        "ROC AUC without the model: age 0.500",
    ]


def test_the_published_subset_is_confounded_by_view(shared, nih_entries):
    from dpa_jax.datasets import nih_protocols

    folder, entries = shared / "data" / "nih_chest_xray14", nih_entries
    test = nih_protocols.by_lists(entries, folder / "reference_splits")["test"]
    table = np.loadtxt(
        folder / "published_rerun_scores_subset.csv", delimiter=",", skiprows=1
    )
    labels = np.array([label for _, label in test], np.int8)
    np.testing.assert_array_equal(labels, table[:, 0])
    of = [entries[name] for name, _ in test]
    images = ImageSet(
        base=np.zeros((len(of), 1, 1, 1), np.uint8),
        paths=[entry.image_id for entry in of],
        labels=labels,
        groups=[str(entry.patient_id) for entry in of],
        columns={
            "view": [entry.view for entry in of],
            "findings": [entry.findings for entry in of],
            "sex": [entry.sex for entry in of],
            "follow_up": np.array([entry.follow_up for entry in of]),
            "age": np.array([entry.age for entry in of]),
        },
    )
    from dpa_jax.scoring.evaluation import evaluate

    scores = table[:, 1]
    result = audit.audit(images, scores)
    overall = evaluate(scores, labels, images.groups)
    assert round(overall["roc_auc"], 3) == 0.925
    assert round(result["by_view"]["PA"]["roc_auc"], 3) == 0.911
    assert round(result["by_view"]["AP"]["roc_auc"], 3) == 0.868
    assert round(result["shortcuts"]["view"], 3) == 0.721
    assert round(result["shortcuts"]["follow_up"], 4) == 0.8825
    assert len(result["by_finding"]) == 14
    assert result["by_finding"]["Effusion"]["normal"] == 677
    (warning,) = result["warnings"]
    assert "follow_up" in warning and "view" not in warning

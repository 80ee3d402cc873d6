import argparse

import numpy as np
import pytest
import run_factory

from dpa_jax import errors
from dpa_jax.cli.verbs import evaluate
from dpa_jax.data import ImageSet, labels

IMAGES = ImageSet(
    np.zeros((4, 2, 2, 1), np.uint8),
    list("abcd"),
    groups=["p1", "p1", "p2", "p3"],
    columns={
        "class": ["cat", "dog", "cat", "HER2+"],
        "age": np.array([57.0, 57.5, 3.0, 4.0]),
        "visit": np.array([0, 1, 2, 0]),
        "findings": [(), ("Mass",), ("Nodule", "Mass"), ("Mass", "Edema")],
    },
)


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("class=cat", [1, 0, 1, 0]),
        ("class=cat|dog", [1, 1, 1, 0]),
        (" class = cat | dog ", [1, 1, 1, 0]),
        ("class=HER2+", [0, 0, 0, 1]),
        ("age=57", [1, 0, 0, 0]),
        ("age=57.5", [0, 1, 0, 0]),
        ("visit=0", [1, 0, 0, 1]),
        ("findings=Mass", [0, 1, 0, 0]),
        ("findings=Mass+Nodule", [0, 0, 1, 0]),
        ("findings=Nodule+Mass|Mass", [0, 1, 1, 0]),
        ("findings=", [1, 0, 0, 0]),
        ("findings=No Finding|Mass", [1, 1, 0, 0]),
        ("group=p1|p3", [1, 1, 0, 1]),
        ("group=p1|p3 & visit=0", [1, 0, 0, 1]),
        ("group=p1|p3 & visit=0 & class=cat", [1, 0, 0, 0]),
    ],
)
def test_matches(condition, expected):
    found = labels.matches(IMAGES, condition)
    assert found.dtype == bool and found.astype(int).tolist() == expected


@pytest.mark.parametrize("condition", ["cat", "=cat", ""])
def test_what_is_no_condition_is_refused(condition):
    with pytest.raises(errors.UsageError, match="is not COLUMN=VALUE"):
        labels.matches(IMAGES, condition)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("klass=cat", "no column klass; there are class, age, visit, findings, group"),
        ("class=cta", "no image has class=cta; there is cat"),
        ("class=cat|horse", "class=horse; there are HER2[+], cat, dog"),
        ("findings=Hernia", "findings=Hernia; there are "),
    ],
)
def test_what_matches_nothing_is_refused(condition, message):
    with pytest.raises(errors.DpaError, match=message):
        labels.matches(IMAGES, condition)


def test_images_without_columns():
    images = ImageSet(np.zeros((1, 2, 2, 1), np.uint8), ["a"])
    with pytest.raises(errors.DpaError, match="no column class; there are none"):
        labels.matches(images, "class=cat")


@pytest.mark.parametrize(
    ("values", "dtype"),
    [(["1", "-2"], np.int64), (["1", "2.5"], np.float64), (["0", "12"], np.int64)],
)
def test_numbers_become_an_array(values, dtype):
    found = labels.column("age", values)
    assert found.dtype == dtype and found.tolist() == [float(v) for v in values]


def test_numbers_with_gaps_stay_numbers():
    found = labels.column("age", ["40", "", "7"])
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, [40, np.nan, 7])
    assert labels.column("age", ["", ""]) == ["", ""]


@pytest.mark.parametrize("value", ["007", "1e5", "nan", "1.", "9" * 30, "x"])
def test_what_only_looks_like_a_number_stays_text(value):
    assert labels.column("id", ["1", value]) == ["1", value]


@pytest.mark.parametrize("given", ["option", "config"])
def test_labels_to_evaluate_by_follow_from_what_is_normal(tmp_path, given):
    path = run_factory.write_npz(
        tmp_path / "test.npz",
        images=run_factory.images(4),
        view=["PA", "AP", "LL", "PA"],
        labels=[1, 1, 1, 1],
    )
    config = run_factory.tiny_config()
    config.data.normal = "view=PA"
    if given == "config":
        config.data.test = path
    options = argparse.Namespace(
        normal=None,
        abnormal=None,
        test=path if given == "option" else None,
        skip_corrupt=False,
    )
    found = evaluate._labelled(options, config).labels
    assert found.dtype == np.int8 and found.tolist() == [0, 1, 1, 0]

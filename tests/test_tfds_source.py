"""Prepared TFDS data sets as a source of images."""

import json
import shutil

import nih_factory
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from dpa_jax.data import ImageSet, Preprocessing, labels, load
from dpa_jax.data.tfds_source import load_tfds
from dpa_jax.datasets import nih_prepare, nih_protocols
from dpa_jax.errors import DpaError, UsageError

PUBLISHED = nih_protocols.PUBLISHED


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A folder of TFDS data sets: the miniature NIH in three forms, and a plain one."""
    source, folder = (tmp_path_factory.mktemp(name) for name in ("source", "data"))
    nih_factory.write_tables(source)
    nih_factory.write_images(source)
    for protocol in ("ap", "native"):
        nih_prepare.prepare(source, folder, protocol)
    Plain(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


class Plain(tfds.core.ShardBasedBuilder):
    """Three RGB images of three classes, as integers and without further ado."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(shape=(8, 10, 3), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(num_classes=3),
                }
            ),
        )

    def _shard_iterators_per_split(self, dl_manager):
        image = np.arange(240, dtype=np.uint8).reshape(8, 10, 3)
        rows = [(i, {"image": image + i, "label": i}) for i in range(3)]
        return {"train": [lambda: iter(rows)]}


def test_reads_a_split_with_all_that_is_known(data_dir):
    images = load_tfds("nih_chest_xray14/ap_64", "test", PUBLISHED, data_dir)
    assert images.images.shape == (6, 64, 64, 1)
    assert list(images.paths) == [
        *("00000006_001.png", "00000006_003.png", "00000007_001.png"),
        *("00000007_003.png", "00000008_001.png", "00000008_003.png"),
    ]
    assert images.labels.dtype == np.int8
    assert images.labels.tolist() == [0, 0, 1, 1, 1, 1]
    assert images.groups == ["6", "6", "7", "7", "8", "8"]
    for name, image in zip(images.paths, images.images, strict=True):
        np.testing.assert_array_equal(image, nih_factory.published(name))
    columns = {name: list(values) for name, values in images.columns.items()}
    assert columns == {
        "class": [*["normal"] * 2, *["abnormal"] * 4],
        "age": [61, 61, 34, 34, 12, 12],
        "findings": [(), (), *[("Pneumonia",)] * 2, *[("Mass",)] * 2],
        "follow_up": [1, 3] * 3,
        "original_height": [2049, 2051] * 3,
        "original_width": [2500] * 6,
        "patient_id": [6, 6, 7, 7, 8, 8],
        "sex": ["M", "M", "F", "F", "M", "M"],
        "view": ["AP"] * 6,
    }
    assert isinstance(images.columns["age"], np.ndarray)


def test_a_location_in_a_config_leads_here(data_dir):
    location = "tfds:nih_chest_xray14/ap_64_equalized:train"
    equalized = nih_protocols.EQUALIZED
    images = load(location, equalized, data_dir=str(data_dir))
    expected = [nih_factory.published(name, equalize=True) for name in images.paths]
    np.testing.assert_array_equal(images.images, expected)
    assert images.labels.tolist() == [0, 0, 0]


def test_a_data_set_among_other_sources(data_dir, tmp_path):
    Image.fromarray(np.full((64, 64), 7, np.uint8)).save(tmp_path / "x.png")
    location = "tfds:nih_chest_xray14/ap_64:test"
    places = [tmp_path / "x.png", location, tmp_path]
    found = load(places, Preprocessing(1, 64), data_dir=str(data_dir))
    alone = load(location, Preprocessing(1, 64), data_dir=str(data_dir))
    np.testing.assert_array_equal(found.images[1:-1], alone.images)
    assert found.images[0].mean() == found.images[-1].mean() == 7
    assert found.originals is None  # a data set holds prepared images


def test_part_of_a_split_in_the_notation_of_tfds(data_dir):
    images = load_tfds("nih_chest_xray14/ap_64", "test[1:3]", PUBLISHED, data_dir)
    assert list(images.paths) == ["00000006_003.png", "00000007_001.png"]


@pytest.mark.parametrize("equalize", [False, True])
def test_native_images_give_the_published_ones(data_dir, equalize):
    asked = Preprocessing(1, 64, resize=300, crop=224, equalize=equalize)
    images = load_tfds("nih_chest_xray14/native", "train", asked, data_dir)
    expected = [nih_factory.published(name, equalize) for name in images.paths]
    np.testing.assert_array_equal(images.images, expected)


def test_native_images_at_another_size(data_dir):
    asked = Preprocessing(3, 128, resize=300, crop=224)
    images = load_tfds("nih_chest_xray14/native", "test", asked, data_dir)
    assert images.images.shape == (12, 128, 128, 3)


def test_what_is_stored_is_taken_if_nothing_is_asked_for(data_dir):
    images = load_tfds(
        "nih_chest_xray14/ap_64_equalized", "train", Preprocessing(1, 64), data_dir
    )
    expected = [nih_factory.published(name, equalize=True) for name in images.paths]
    np.testing.assert_array_equal(images.images, expected)


def test_grey_images_as_colour(data_dir):
    asked = Preprocessing(3, 64, resize=300, crop=224)
    images = load_tfds("nih_chest_xray14/ap_64", "train", asked, data_dir)
    grey = nih_factory.published(images.paths[0])
    np.testing.assert_array_equal(images.images[0], np.repeat(grey, 3, axis=-1))


@pytest.mark.parametrize(
    "asked",
    [
        Preprocessing(1, 64, resize=300, crop=224, equalize=True),
        Preprocessing(1, 128, resize=300, crop=224),
        Preprocessing(1, 64, resize=256, crop=224),
    ],
)
def test_what_cannot_be_made_of_the_stored_form_is_refused(data_dir, asked):
    with pytest.raises(UsageError, match="nih_chest_xray14/ap_64 holds images of"):
        load_tfds("nih_chest_xray14/ap_64", "train", asked, data_dir)


def test_a_data_set_of_others(data_dir):
    images = load_tfds("plain", "train", Preprocessing(3, 8), data_dir)
    expected = np.arange(240, dtype=np.uint8).reshape(8, 10, 3)[:, 1:9]
    np.testing.assert_array_equal(images.images[0], expected)
    assert list(images.paths) == ["plain:train:0", "plain:train:1", "plain:train:2"]
    assert images.labels is None and images.groups is None
    assert images.columns["class"] == ["0", "1", "2"]


class Animals(tfds.core.GeneratorBasedBuilder):
    """Images as CIFAR10 has them: PNG, and classes named by the files."""

    NAMES = ("bird", "cat", "deer")
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Image(shape=(4, 4, 3)),
                    "label": tfds.features.ClassLabel(num_classes=len(self.NAMES)),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        self.info.features["label"].names = self.NAMES
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(6):
            image = Image.new("RGB", (4, 4), (40 * i, 0, 255))
            yield i, {"id": f"train_{i}", "image": image, "label": i % len(self.NAMES)}


def test_classes_have_their_names_and_colour_becomes_grey_as_in_pillow(tmp_path):
    Animals(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    images = load("tfds:animals:train", Preprocessing(1, 4), data_dir=str(tmp_path))
    names = ["bird", "cat", "deer"]
    assert images.labels is None
    for path, name, image in zip(
        images.paths, images.columns["class"], images.images, strict=True
    ):
        number = int(path.removeprefix("train_"))
        assert name == names[number % 3]
        # Pillow's weights of red, green and blue
        assert image[0, 0, 0] == (40 * number * 19595 + 255 * 7471 + 0x8000) >> 16
    cats = labels.matches(images, "class=cat")
    assert sorted(np.array(images.paths)[cats]) == ["train_1", "train_4"]


class Blood(Animals):
    """Two classes, of which the first is not the normal one."""

    NAMES = ("parasitized", "uninfected")


class Scans(Blood):
    """Two classes, of which the second is called normal."""

    NAMES = ("Stroke", "Normal")


def by_path(images):
    return dict(zip(images.paths, images.columns["class"], strict=True))


def test_of_two_classes_the_first_is_not_taken_for_normal(tmp_path):
    Blood(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    images = load("tfds:blood:train", Preprocessing(1, 4), data_dir=str(tmp_path))
    assert images.labels is None
    assert by_path(images)["train_2"] == "parasitized"
    with pytest.raises(UsageError, match="classes parasitized, uninfected; say which"):
        labels.labelled(images, "", "tfds:blood:train")
    found = labels.labelled(images, "class=uninfected", "tfds:blood:train")
    assert [path[-1] in "024" for path in found.paths] == found.labels.tolist()


def test_a_class_called_normal_is_normal_wherever_it_stands(tmp_path):
    Scans(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    images = load("tfds:scans:train", Preprocessing(1, 4), data_dir=str(tmp_path))
    assert [path[-1] in "024" for path in images.paths] == images.labels.tolist()
    assert by_path(images)["train_1"] == "Normal"
    assert labels.labelled(images, "", "tfds:scans:train") is images


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("nih_chest_xray14/pa_64", "prepare nih .* --protocol pa,"),
        ("nih_chest_xray14/subset_64", "prepare nih .* --protocol subset,"),
        (
            "nih_chest_xray14/custom_64",
            "prepare nih .* --protocol custom --lists LISTS",
        ),
        ("camelyon16/x10", "prepare camelyon16 --source SLIDES"),
        ("cifar10", "prepare cifar10 --data_dir DIR"),
        ("svhn_cropped", "prepare svhn --data_dir DIR"),
    ],
)
def test_says_how_to_prepare_what_is_not(data_dir, name, command):
    with pytest.raises(DpaError, match=f"{name} is not prepared in .*{command}"):
        load_tfds(name, "train", PUBLISHED, data_dir)


def test_files_that_need_tensorflow_are_refused(data_dir, tmp_path):
    shutil.copytree(data_dir / "plain", tmp_path / "plain")
    info = tmp_path / "plain" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(DpaError, match="plain in .* as tfrecord, which needs TensorF"):
        load_tfds("plain", "train", Preprocessing(3, 8), tmp_path)


@pytest.mark.parametrize("name", ["nih_chest_xray14/pb_64", "nih_chest_xray15"])
def test_an_unknown_data_set_is_refused(data_dir, name):
    with pytest.raises(UsageError, match=f"no data set {name}"):
        load_tfds(name, "train", PUBLISHED, data_dir)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nih_chest_xray14/pa_46", r"pa_46 not found .* It may be subset_64, pa_64, "),
        ("nih_chest_xray14/pa_64:9.9.9", "at version 9.9.9, only: 2.0.0"),
        ("nih_chest_xray15", "nih_chest_xray15: Dataset nih_chest_xray15 not found.$"),
    ],
)
def test_what_is_unknown_of_a_data_set_is_told(data_dir, name, told):
    with pytest.raises(UsageError, match=told) as caught:
        load_tfds(name, "train", PUBLISHED, data_dir)
    assert "builder_kwargs" not in str(caught.value)


def test_an_empty_data_set_is_refused(data_dir, tmp_path):
    shutil.copytree(data_dir / "plain", tmp_path / "plain")
    path = tmp_path / "plain" / "1.0.0" / "dataset_info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"splits": []}))
    with pytest.raises(UsageError, match="has no split 'train'; it has none"):
        load_tfds("plain", "train", Preprocessing(3, 8), tmp_path)


def test_an_unknown_split_is_refused(data_dir):
    with pytest.raises(UsageError, match="no split 'val'; it has train, valid"):
        load_tfds("nih_chest_xray14/ap_64", "val", PUBLISHED, data_dir)


def test_columns_follow_a_selection():
    images = ImageSet(
        base=np.zeros((3, 2, 2, 1), np.uint8),
        paths=["a", "b", "c"],
        columns={"view": ["PA", "AP", "PA"], "age": np.array([1, 2, 3])},
    )
    chosen = images.select(np.array([True, False, True])).columns
    assert chosen["view"] == ["PA", "PA"] and chosen["age"].tolist() == [1, 3]


def test_columns_have_a_value_for_each_image():
    with pytest.raises(ValueError, match="3 images but 2 values of view"):
        ImageSet(np.zeros((3, 2, 2, 1), np.uint8), list("abc"), columns={"view": "ab"})

"""CIFAR10 and SVHN from miniature files in the layout in which they are distributed."""

import hashlib
import io
import sys
import tarfile

import numpy as np
import pytest
import run_factory
import scipy.io
import tensorflow_datasets as tfds

from dpa_jax.data import Preprocessing, load
from dpa_jax.datasets import cifar10_svhn
from dpa_jax.errors import DpaError

NAMES = "airplane automobile bird cat deer dog frog horse ship truck".split()
RNG = np.random.default_rng(0)
CIFAR10 = RNG.integers(0, 256, (12, 32, 32, 3), np.uint8)  # ten to train on, two tests
SVHN = RNG.integers(0, 256, (15, 32, 32, 3), np.uint8)  # twelve and three


def cifar10_archive():
    """Two images in each batch, of the classes 0, 1, ... 9, 0, 1."""
    stream = io.BytesIO()
    files = {"batches.meta.txt": "\n".join([*NAMES, "", ""]).encode()}
    for i in range(6):
        name = f"data_batch_{i + 1}.bin" if i < 5 else "test_batch.bin"
        files[name] = b"".join(
            bytes([j % 10]) + CIFAR10[j].transpose(2, 0, 1).tobytes()
            for j in (2 * i, 2 * i + 1)
        )
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return {"cifar-10-binary.tar.gz": stream.getvalue()}


def svhn_files():
    """The digits 1, 2, ... 9, 0, 1, 2 to train on, 3, 4, 5 to test."""
    files = {}
    for split, part in (("train", slice(0, 12)), ("test", slice(12, 15))):
        stream = io.BytesIO()
        digits = np.arange(15)[part] % 10 + 1  # 10 stands for 0
        scipy.io.savemat(
            stream, {"X": np.moveaxis(SVHN[part], 0, -1), "y": digits[:, None]}
        )
        files[f"{split}_32x32.mat"] = stream.getvalue()
    return files


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A folder of the miniature files, whose checksums are taken for the known ones."""
    folder = tmp_path / "source"
    folder.mkdir()
    for kind, files in (
        (cifar10_svhn.Cifar10, cifar10_archive()),
        (cifar10_svhn.Svhn, svhn_files()),
    ):
        known = dict(kind.url_infos)
        for name, content in files.items():
            (folder / name).write_bytes(content)
            (url,) = [url for url in known if url.endswith(f"/{name}")]
            known[url] = type(known[url])(
                size=tfds.core.utils.Size(len(content)),
                checksum=hashlib.sha256(content).hexdigest(),
                filename=name,
            )
        monkeypatch.setattr(kind, "url_infos", known)
    return folder


def check(images, pictures, classes):
    """Each image has its own pixels and class, whatever the order."""
    assert len(images) == len(pictures)
    for path, image, name in zip(
        images.paths, images.images, images.columns["class"], strict=True
    ):
        index = int(path.rpartition("_")[2])
        np.testing.assert_array_equal(image, pictures[index])
        assert name == classes[index]


def test_cifar10(source, tmp_path):
    told = cifar10_svhn.prepare("cifar10", tmp_path / "data", source)
    assert told.startswith("cifar10: train 10, test 2 images in ")
    for split, part in (("train", slice(0, 10)), ("test", slice(10, 12))):
        images = load(
            f"tfds:cifar10:{split}", Preprocessing(3, 32), data_dir=tmp_path / "data"
        )
        check(images, CIFAR10[part], [*NAMES, *NAMES[:2]][part])


def test_svhn(source, tmp_path):
    told = cifar10_svhn.prepare("svhn_cropped", tmp_path / "data", source)
    assert told.startswith("svhn_cropped: train 12, test 3 images in ")
    digits = "123456789012345"
    for split, part in (("train", slice(0, 12)), ("test", slice(12, 15))):
        images = load(
            f"tfds:svhn_cropped:{split}",
            Preprocessing(3, 32),
            data_dir=tmp_path / "data",
        )
        check(images, SVHN[part], digits[part])


def test_tfds_reads_it_by_its_own_class_and_needs_no_tensorflow(source, tmp_path):
    cifar10_svhn.prepare("cifar10", tmp_path, source)
    builder = tfds.builder("cifar10", data_dir=tmp_path)
    assert not isinstance(builder, cifar10_svhn.Cifar10)
    assert builder.info.features["label"].names == NAMES
    assert "tensorflow" not in sys.modules


def test_what_is_there_is_left_alone(source, tmp_path):
    cifar10_svhn.prepare("cifar10", tmp_path / "data", source)
    before = run_factory.files(tmp_path / "data")
    told = cifar10_svhn.prepare("cifar10", tmp_path / "data")
    assert told.endswith(", there already")
    assert run_factory.files(tmp_path / "data") == before


def test_another_file_than_the_known_one_is_refused(source, tmp_path):
    path = source / "train_32x32.mat"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DpaError, match=f"svhn_cropped: .*{path}.* wrong checksum"):
        cifar10_svhn.prepare("svhn_cropped", tmp_path / "data", source)


def test_a_source_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DpaError, match="no folder .*gone"):
        cifar10_svhn.prepare("cifar10", tmp_path, tmp_path / "gone")


@pytest.mark.parametrize("name", ["cifar10", "svhn"])
def test_the_verb_names_what_to_download_where_there_is_no_network(
    name, tmp_path, monkeypatch
):
    import requests

    def refuse(*_, **__):
        raise requests.ConnectionError("no route to host")

    monkeypatch.setattr(requests.Session, "get", refuse)
    code, _, err = run_factory.call("prepare", name, f"--data_dir={tmp_path}")
    assert code == 1
    assert "cannot be prepared: no route to host. Without network, name by" in err
    assert ".tar.gz" in err if name == "cifar10" else "test_32x32.mat" in err
    assert "extra" not in err


def test_the_verb_prepares(source, tmp_path):
    code, out, _ = run_factory.call(
        "prepare", "svhn", f"--data_dir={tmp_path / 'data'}", f"--source={source}"
    )
    assert (code, out.split(" images")[0]) == (0, "svhn_cropped: train 12, test 3")

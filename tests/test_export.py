import importlib.util
import json
import pathlib
import re
import shutil
import subprocess
import sys

import calibration_factory
import jax
import numpy as np
import pytest
import run_factory
from PIL import Image

import dpa_jax
from dpa_jax import data, errors, extensions
from dpa_jax.data.decode import Preprocessing
from dpa_jax.exporting import stablehlo
from dpa_jax.exporting import verify as verification
from dpa_jax.scoring import calibration

IMAGES = run_factory.images(5, seed=3)[..., None]
needs_onnx = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("onnx", "onnxruntime"))),
    reason="needs the extra onnx",
)


@pytest.fixture(scope="module")
def scorer(trained):
    return dpa_jax.load(trained)


@pytest.fixture(scope="module")
def onnx_file(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "run.onnx"
    return dpa_jax.export(trained, path, format="onnx").path


@pytest.fixture
def workdir(trained, tmp_path):
    """A copy that may be changed."""
    return shutil.copytree(trained, tmp_path / "copy")


def assert_same(found, scorer, images):
    expected = scorer.scores(images, ("loss", "map"))
    np.testing.assert_allclose(found["score"], expected["loss"], rtol=1e-4)
    np.testing.assert_allclose(found["map"], expected["map"], rtol=1e-3, atol=1e-4)


def test_stablehlo_prepares_images_and_scores_as_the_run_does(
    trained, scorer, tmp_path
):
    path, folder = tmp_path / "run.stablehlo", tmp_path / "images"
    run_factory.write_folder(folder, 32, size=40)
    code, out, err = run_factory.call(
        "export",
        f"--workdir={trained}",
        "--format=stablehlo",
        f"--out={path}",
        "--side=40",
        f"--verify={folder}",
    )
    assert code == 0, err
    assert f"{path}: StableHLO" in out
    assert "takes images uint8 [batch, 40, 40, 1]" in out
    assert f"32 images of {folder}, in batches of 1, 31: scores differ by" in out
    assert "the backbone's weights are random (random:0)" in err
    raw = data.load(folder, Preprocessing(1, 40)).images
    prepared = data.load(folder, Preprocessing(1, 16)).images
    # a number of images that is compiled already
    assert_same(stablehlo.read(path)(raw[:31]), scorer, prepared[:31])


@needs_onnx
def test_onnx_scores_as_the_run_does(onnx_file, scorer):
    from dpa_jax.exporting import onnx

    found = onnx.read(onnx_file)
    for batch in (1, 5):
        assert_same(found(IMAGES[:batch]), scorer, IMAGES[:batch])


@needs_onnx
def test_the_file_holds_the_weights_in_use_alone(trained, onnx_file, scorer):
    from dpa_jax.backbones import vgg19

    # of 8 to 16 pixels the run uses r11 and r12, and scores by the second
    convolutions = {name: vgg19.shapes()[name] for name in ("c11", "c12")}
    networks = scorer._arguments[0]
    numbers = sum(
        int(np.prod(shape))
        for arrays in convolutions.values()
        for shape in arrays.values()
    ) + sum(leaf.size for leaf in jax.tree.leaves(networks))
    assert 4 * numbers < onnx_file.stat().st_size < 4 * numbers + 60_000


@needs_onnx
def test_the_runner_of_the_docs_needs_no_jax(onnx_file, scorer, tmp_path):
    docs = pathlib.Path(__file__).parents[1] / "docs" / "export.md"
    (code,) = re.findall(
        r"<!-- runner -->\n```python\n(.*?)```", docs.read_text(), re.DOTALL
    )
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 20
    (tmp_path / "runner.py").write_text(
        code + "loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "assert not loaded & {'jax', 'jaxlib', 'flax', 'onnx', 'dpa_jax'}, loaded\n"
    )
    pixels = run_factory.images(2, size=40)
    Image.fromarray(pixels[0][:, :30]).save(tmp_path / "tall.png")
    Image.fromarray(np.stack([pixels[1]] * 3, -1)).save(tmp_path / "colour.png")
    paths = [str(tmp_path / name) for name in ("tall.png", "colour.png")]
    done = subprocess.run(
        [sys.executable, "-I", str(tmp_path / "runner.py"), str(onnx_file), *paths],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split(" ", 1) for line in done.stdout.splitlines()]
    assert [path for _, path in rows] == paths
    prepared = data.load(paths, Preprocessing(1, 16)).images
    expected = scorer.scores(prepared, ("loss", "map"))["loss"]
    np.testing.assert_allclose([float(score) for score, _ in rows], expected, rtol=1e-4)


@needs_onnx
def test_the_calibration_lies_beside_the_file_and_never_in_it(
    workdir, onnx_file, tmp_path
):
    calibration.write(workdir, calibration_factory.made())
    content = (workdir / "calibration.json").read_bytes()
    path, beside = tmp_path / "run.onnx", tmp_path / "run.onnx.calibration.json"
    found = dpa_jax.export(workdir, path, format="onnx")
    assert found.calibration == beside and beside.read_bytes() == content
    assert path.read_bytes() == onnx_file.read_bytes()
    # that of a file that is replaced is not left to another
    (workdir / "calibration.json").unlink()
    found = dpa_jax.export(workdir, path, format="onnx", overwrite=True)
    assert found.calibration is None and not beside.exists()


@needs_onnx
def test_a_file_that_scores_otherwise_is_not_written(trained, tmp_path, monkeypatch):
    from dpa_jax.exporting import onnx

    read = onnx.read

    def read_wrongly(path):
        function = read(path)
        return lambda images: {k: v * 1.001 for k, v in function(images).items()}

    monkeypatch.setattr(onnx, "read", read_wrongly)
    (tmp_path / "run.onnx").write_text("what was there")
    with pytest.raises(errors.DpaError, match="exported score differs"):
        dpa_jax.export(trained, tmp_path / "run.onnx", format="onnx", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run.onnx"]
    assert (tmp_path / "run.onnx").read_text() == "what was there"


@pytest.mark.parametrize("name", ["run.onnx", "run.onnx.calibration.json"])
def test_what_is_there_is_not_overwritten(trained, tmp_path, name):
    (tmp_path / name).write_text("mine")
    arguments = ("--format=stablehlo", f"--out={tmp_path / 'run.onnx'}")
    code, _, err = run_factory.call("export", f"--workdir={trained}", *arguments)
    assert code == 1 and f"{tmp_path / name} is already there" in err
    assert (tmp_path / name).read_text() == "mine"


def test_what_cannot_be_verified_is_refused(trained, tmp_path):
    folder = run_factory.write_folder(tmp_path / "few", 31)
    with pytest.raises(errors.DpaError, match="few has 31 images .* at least 32"):
        dpa_jax.export(trained, tmp_path / "x", format="stablehlo", verify=folder)
    with pytest.raises(errors.UsageError, match="/dev/null is no file that could be"):
        dpa_jax.export(trained, "/dev/null", format="stablehlo")
    with pytest.raises(errors.UsageError, match="stablehlo or onnx, not torch"):
        dpa_jax.export(trained, tmp_path / "x", format="torch")
    assert not (tmp_path / "x").exists()


def test_the_missing_extra_is_named(trained, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "dpa_jax.exporting.onnx", raising=False)
    with pytest.raises(errors.DpaError, match=r"pip install 'dpa_jax\[onnx\]'"):
        dpa_jax.export(trained, tmp_path / "run.onnx", format="onnx")


def test_a_function_that_cannot_be_traced_is_named(
    trained, workdir, tmp_path, monkeypatch
):
    (tmp_path / "untraceable.py").write_text(
        "import numpy as np\n"
        "def edges(comparison):\n"
        "    return np.zeros(len(comparison.image))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = dpa_jax.load(trained).config
    config.loss.extra = "untraceable:edges"
    run_factory.write_config(workdir / "config.json", config)
    (workdir / "extensions.json").write_text(
        json.dumps(extensions.describe(config), indent=2)
    )
    path = tmp_path / "run"
    with pytest.raises(errors.DpaError, match=r"untraceable:edges \(loss.extra\): "):
        dpa_jax.export(workdir, path, format="stablehlo", trust=True)
    with pytest.raises(errors.DpaError, match="--trust"):
        dpa_jax.export(workdir, path, format="stablehlo")
    assert not path.exists()


@needs_onnx
def test_images_that_must_be_prepared_before_are_mentioned(trained, workdir, tmp_path):
    config = dpa_jax.load(trained).config
    config.data.resize, config.data.equalize = 30, True
    run_factory.write_config(workdir / "config.json", config)
    found = dpa_jax.export(workdir, tmp_path / "run.onnx", format="onnx")
    assert found.preparation == {"data.resize": 30, "data.equalize": True}
    assert found.source == "made-up images"
    assert found.agreement.images == verification.LEAST_IMAGES

import io
import os
import pathlib
import pickle
import stat
import subprocess
import sys
import threading

import numpy as np
import pytest
import safetensors.numpy

from dpa_jax import errors
from dpa_jax.backbones import vgg19
from dpa_jax.weights import files, formats, statistics_files

# torchvision's numbers of VGG19's convolutions, and their channels
NUMBERS = [0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34]
LAYERS = "11 12 21 22 31 32 33 34 41 42 43 44 51 52 53 54".split()
WIDTHS = [64] * 2 + [128] * 2 + [256] * 4 + [512] * 8


@pytest.fixture(scope="module")
def weights():
    return vgg19.load("random:0")


@pytest.fixture(scope="module")
def torchvision(weights):
    state = {}
    for number, name in zip(NUMBERS, LAYERS, strict=True):
        layer = weights[f"c{name}"]
        kernel = np.ascontiguousarray(layer["kernel"].transpose(3, 2, 0, 1))
        state[f"features.{number}.weight"] = kernel
        state[f"features.{number}.bias"] = layer["bias"]
    return state


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for layer, arrays in expected.items():
        assert found[layer].keys() == arrays.keys()
        for name, array in arrays.items():
            assert found[layer][name].dtype == np.float32
            np.testing.assert_array_equal(found[layer][name], array)


def test_random_weights_are_those_of_vgg19_at_he_scale(weights):
    assert list(weights) == [f"c{name}" for name in LAYERS]
    channels = 3
    for width, layer in zip(WIDTHS, weights.values(), strict=True):
        assert layer["kernel"].shape == (3, 3, channels, width)
        assert layer["bias"].shape == (width,)
        scale = np.sqrt(2 / (9 * channels))
        assert layer["kernel"].std() == pytest.approx(scale, rel=0.05)
        assert np.abs(layer["bias"]).max() < 0.06
        channels = width


def test_random_weights_follow_from_the_seed(weights):
    first = weights["c11"]["kernel"]
    np.testing.assert_array_equal(vgg19.load("random:0")["c11"]["kernel"], first)
    assert (vgg19.load("random:1")["c11"]["kernel"] != first).all()


@pytest.mark.parametrize("spec", ["random:", "random:x", "random:-1"])
def test_random_weights_need_a_seed(spec):
    with pytest.raises(errors.UsageError, match="random:0"):
        vgg19.load(spec)


def test_compact_file_round_trip(weights, tmp_path):
    path = tmp_path / "new" / "w.safetensors"
    files.save(path, weights, {"source": "a test"})
    assert_same(vgg19.load(str(path)), weights)
    metadata = files.read_metadata(path)
    assert metadata["source"] == "a test"
    assert metadata["fingerprint"] == formats.fingerprint(weights)
    assert [p.name for p in path.parent.iterdir()] == ["w.safetensors"]


@pytest.mark.parametrize(
    "rest", [["classifier.0.weight"], ["pre_logits.fc1.weight", "head.fc.bias"]]
)
def test_torchvision_and_timm_safetensors(weights, torchvision, tmp_path, rest):
    path = tmp_path / "w.safetensors"
    extra = {name: np.zeros((2, 3), np.float32) for name in rest}
    safetensors.numpy.save_file({**torchvision, **extra}, path)
    assert_same(vgg19.load(str(path)), weights)
    assert files.read_metadata(path) == {}


def test_torchvision_npz(weights, torchvision, tmp_path):
    np.savez(tmp_path / "w.npz", **torchvision)
    assert_same(vgg19.load(str(tmp_path / "w.npz")), weights)


def test_torchvision_pth(weights, torchvision, tmp_path):
    torch = pytest.importorskip("torch")
    state = {name: torch.from_numpy(array) for name, array in torchvision.items()}
    torch.save(state, tmp_path / "w.pth")
    assert_same(vgg19.load(str(tmp_path / "w.pth")), weights)


def first_convolution(**changes):
    state = {
        "features.0.weight": np.ones((64, 3, 3, 3), np.float32),
        "features.0.bias": np.zeros(64, np.float32),
    }
    return {**state, **changes}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (first_convolution(), "features.2.weight is missing"),
        (
            first_convolution(**{"features.0.weight": np.ones((3, 3, 3, 64))}),
            r"features.0.weight has shape \[3, 3, 3, 64\], expected \[64, 3, 3, 3\]",
        ),
        (
            first_convolution(**{"features.0.bias": np.full(64, np.nan)}),
            "features.0.bias has values that are not finite",
        ),
        (
            first_convolution(**{"features.0.bias": np.zeros(64, np.uint8)}),
            "features.0.bias is uint8, expected float32",
        ),
        ({"c11/kernel": np.ones((3, 3, 3, 64))}, "c11/bias is missing"),
        ({"layer1.0.conv1.weight": np.ones(3)}, "features.0.weight is missing"),
    ],
)
def test_what_is_not_vgg19_is_refused_by_tensor(tmp_path, state, message):
    np.savez(tmp_path / "w.npz", **state)
    with pytest.raises(errors.DpaError, match=f"w.npz is not vgg19: {message}"):
        vgg19.load(str(tmp_path / "w.npz"))


@pytest.mark.parametrize("name", ["w.safetensors", "w.npz"])
@pytest.mark.parametrize("content", [b"", b"some text", b"\x80\x04K\x01."])
def test_damaged_files_are_named(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(errors.DpaError, match=f"cannot read .*{name}"):
        vgg19.load(str(path))


@pytest.mark.parametrize("name", ["w.safetensors", "w.npz"])
def test_truncated_files_are_named(tmp_path, name):
    content = io.BytesIO()
    np.savez(content, **first_convolution())
    whole = {
        "w.npz": content.getvalue(),
        "w.safetensors": safetensors.numpy.save(first_convolution()),
    }[name]
    (tmp_path / name).write_bytes(whole[:-100])
    with pytest.raises(errors.DpaError, match=f"cannot read .*{name}"):
        vgg19.load(str(tmp_path / name))


def test_objects_in_an_npz_are_not_unpickled(tmp_path):
    np.savez(tmp_path / "w.npz", **{"features.0.weight": np.array([{}], object)})
    with pytest.raises(errors.DpaError, match="allow_pickle=False"):
        vgg19.load(str(tmp_path / "w.npz"))


class Intruder:
    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path("intruded"),)


def test_a_pth_that_would_run_code_is_refused(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    torch.save({"features.0.weight": Intruder()}, "zip.pth")
    pathlib.Path("pickle.pth").write_bytes(pickle.dumps(Intruder(), 2))
    for name in ("zip.pth", "pickle.pth"):
        with pytest.raises(errors.DpaError, match=name) as caught:
            vgg19.load(name)
        assert "weights_only" not in str(caught.value)  # as which it would run
    assert not pathlib.Path("intruded").exists()


def test_a_pth_without_torch_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "w.pth").write_bytes(b"")
    with pytest.raises(errors.DpaError, match=r"pip install 'dpa_jax\[torch\]'"):
        vgg19.load(str(tmp_path / "w.pth"))


def test_an_absent_file_and_a_strange_suffix_are_named(tmp_path):
    with pytest.raises(errors.DpaError, match="no file .*absent.npz"):
        vgg19.load(str(tmp_path / "absent.npz"))
    (tmp_path / "w.bin").write_bytes(b"")
    with pytest.raises(errors.DpaError, match="w.bin: weights are a .safetensors"):
        vgg19.load(str(tmp_path / "w.bin"))


def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("DPA_JAX_CACHE", str(tmp_path))
    assert files.cache_dir() == tmp_path
    monkeypatch.delenv("DPA_JAX_CACHE")
    assert files.cache_dir().name == "dpa_jax"


@pytest.mark.parametrize("load", [vgg19.load, statistics_files.load])
def test_an_empty_cache_says_how_to_fill_it(tmp_path, monkeypatch, load):
    monkeypatch.setenv("DPA_JAX_CACHE", str(tmp_path))
    with pytest.raises(errors.DpaError, match="`dpa-jax weights fetch`.*import"):
        load("imagenet")


def test_a_failed_write_leaves_the_earlier_file(weights, tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"earlier")

    def full(temporary, *_):
        raise OSError(28, "No space left on device", str(temporary))

    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    with pytest.raises(
        errors.DpaError, match="cannot write .*/w.safetensors: No space.*device$"
    ):
        files.save(path, weights, {})
    assert path.read_bytes() == b"earlier"
    assert len(list(tmp_path.iterdir())) == 1


def test_an_impossible_folder_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(errors.DpaError, match="cannot write"):
        statistics_files.save(tmp_path / "file" / "s.npz", statistics(), {})


def statistics(**changes):
    rng = np.random.default_rng(0)
    layers = {"r12": 64, "c42": 512, "p3": 256}
    return {
        layer: {
            "mean": rng.normal(size=width).astype(np.float32),
            "std": rng.uniform(0.5, 2, width).astype(np.float32),
        }
        for layer, width in layers.items()
    } | changes


def save_plain(path, tree):
    np.savez(
        path, **{f"{a}/{b}": v for a, pair in tree.items() for b, v in pair.items()}
    )


def test_statistics_round_trip(tmp_path):
    path = tmp_path / "s.npz"
    statistics_files.save(path, statistics(), {"source": "a test"})
    assert_same(statistics_files.load(str(path)), statistics())
    assert files.read_metadata(path)["source"] == "a test"


def test_statistics_called_var_are_read_as_deviations(tmp_path):
    named = {
        layer: {"mean": pair["mean"], "var": pair["std"]}
        for layer, pair in statistics().items()
    }
    save_plain(tmp_path / "s.npz", named)
    assert_same(statistics_files.load(str(tmp_path / "s.npz")), statistics())


PAIR = {"mean": np.zeros(64), "std": np.ones(64)}


@pytest.mark.parametrize(
    ("layer", "pair", "message"),
    [
        ("r21", {**PAIR, "std": np.ones(9)}, r"r21/std has shape \[9\], expected \[64"),
        ("r11", {"mean": PAIR["mean"]}, "r11/std is missing"),
        ("r11", {**PAIR, "std": -PAIR["std"]}, "r11/std has negative values"),
        (
            "r11",
            {**PAIR, "mean": np.full(64, np.inf)},
            "r11/mean has values that are not finite",
        ),
    ],
)
def test_bad_statistics_are_refused_by_name(tmp_path, layer, pair, message):
    save_plain(tmp_path / "s.npz", {layer: pair})
    with pytest.raises(errors.DpaError, match=f"s.npz.*{message}"):
        statistics_files.load(str(tmp_path / "s.npz"))


def test_an_archive_without_statistics_is_refused(tmp_path):
    np.savez(tmp_path / "s.npz", images=np.zeros(3))
    with pytest.raises(errors.DpaError, match="holds no statistics"):
        statistics_files.load(str(tmp_path / "s.npz"))


def test_statistics_in_use_must_be_there_and_have_spread(tmp_path):
    still = {"mean": np.zeros(64, np.float32), "std": np.ones(64, np.float32)}
    still["std"][[5, 9]] = 0
    save_plain(tmp_path / "s.npz", statistics(r11=still))
    loaded = statistics_files.load(str(tmp_path / "s.npz"))
    assert list(statistics_files.select(loaded, ["r12"], "s.npz")) == ["r12"]
    with pytest.raises(errors.DpaError, match="s.npz: 2 of 64 channels of r11.* is 5"):
        statistics_files.select(loaded, ["r12", "r11"], "s.npz")
    with pytest.raises(errors.DpaError, match="s.npz has no statistics of r42"):
        statistics_files.select(loaded, ["r42"], "s.npz")


def test_the_published_statistics_are_read_without_torch(shared, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    path = shared / "fixtures" / "vgg19_ILSVRC2012_object_detection_mean_var.pt"
    found = statistics_files.load(str(path))
    assert len(found) == 37
    with np.load(shared / "fixtures" / "vgg19_feature_stats.npz") as archive:
        expected = {
            layer: {name: archive[f"{layer}/{name}"] for name in ("mean", "std")}
            for layer in found
        }
        assert len(archive.files) == 2 * 37
    assert_same(found, expected)


def test_statistics_of_the_published_kind_by_torch(tmp_path):
    torch = pytest.importorskip("torch")
    state = {
        layer: tuple(torch.from_numpy(v).reshape(1, -1, 1, 1) for v in pair.values())
        for layer, pair in statistics().items()
    }
    torch.save(state, tmp_path / "s.pt")
    assert_same(statistics_files.load(str(tmp_path / "s.pt")), statistics())
    torch.save([1], tmp_path / "other.pt")
    with pytest.raises(errors.DpaError, match="other.pt does not hold"):
        statistics_files.load(str(tmp_path / "other.pt"))


def test_a_pth_with_a_tensor_without_values_is_named(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "w.pth"
    torch.save({"features.0.weight": torch.empty(2, device="meta")}, path)
    with pytest.raises(errors.DpaError, match="w.pth: features.0.weight is no array"):
        vgg19.load(str(path))


# --- writing ---


def write(path, text):
    with formats.replacing(path) as temporary:
        temporary.write_text(text)


def test_a_device_is_written_to_and_never_replaced(tmp_path):
    with pytest.raises(errors.DpaError, match="cannot write /dev/full: No space left"):
        write(pathlib.Path("/dev/full"), "scores")
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)
    write(pathlib.Path("/dev/null"), "scores")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_pipe_is_written_to_and_never_replaced(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    found = []
    reader = threading.Thread(target=lambda: found.append(path.read_text()))
    reader.start()
    write(path, "scores")
    reader.join(10)
    assert found == ["scores"] and stat.S_ISFIFO(path.stat().st_mode)


def test_a_link_is_followed_and_stays(tmp_path):
    (tmp_path / "there").write_text("before")
    (tmp_path / "link").symlink_to("there")
    write(tmp_path / "link", "after")
    assert (tmp_path / "there").read_text() == "after"
    assert (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "there"]


def test_a_link_to_itself_is_named(tmp_path):
    (tmp_path / "link").symlink_to("link")
    with pytest.raises(
        errors.DpaError, match="link: Too many levels of symbolic links"
    ):
        write(tmp_path / "link", "after")


WRITING = """
import pathlib
from dpa_jax.weights import formats
with formats.replacing(pathlib.Path("/dev/stdout")) as temporary:
    temporary.write_text("scores, ")
print("more")
"""


def test_stdout_that_is_a_file_is_written_to_and_never_replaced(tmp_path):
    root = pathlib.Path(__file__).resolve().parents[1]
    with open(tmp_path / "a.csv", "w") as file:
        before = os.fstat(file.fileno()).st_ino
        subprocess.run(
            [sys.executable, "-c", WRITING], stdout=file, cwd=root, check=True
        )
    assert (tmp_path / "a.csv").stat().st_ino == before
    assert (tmp_path / "a.csv").read_text() == "scores, more\n"

import runpy

import numpy as np
import pytest
import run_factory
import yaml
from test_interop import GROWING, published_state

import dpa_jax
from dpa_jax.backbones import vgg19
from dpa_jax.config import default_config, updated
from dpa_jax.interop import reference_config
from dpa_jax.stages import Stage
from dpa_jax.storage import checkpoints, config_files
from dpa_jax.weights import statistics_files

torch = pytest.importorskip("torch", reason="torch, an extra, is not installed")
from torch.nn import functional as F  # noqa: E402

WEIGHTS = "random:3"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A checkpoint of the published layout, its tensors, and statistics."""
    folder = tmp_path_factory.mktemp("published")
    overrides, _ = reference_config.from_reference(yaml.safe_load(GROWING))
    config = updated(default_config(), overrides, "")
    state = published_state(config, Stage(32, False, 50))
    encoder, decoder = (
        {name: torch.from_numpy(0.3 * value) for name, value in part.items()}
        for part in state
    )
    content = {
        "niter": 50,
        "config": yaml.safe_load(GROWING),
        "stage": "stab",
        "resolution": 32,
        "progress": 1.0,
        "enc": encoder,
        "dec": decoder,
    }
    torch.save(content, folder / "anomaly_detection.tar")
    rng = np.random.default_rng(0)
    layers = {"r12": 64, "r22": 128, "r31": 256, "r32": 256}
    statistics = {
        layer: {
            "mean": rng.random(size, np.float32),
            "std": rng.uniform(0.5, 1.5, size).astype(np.float32),
        }
        for layer, size in layers.items()
    }
    statistics_files.save(folder / "stats.npz", statistics, {"source": "made up"})
    return folder, encoder, decoder, statistics


def convolve(state, name, x, padding=None):
    weight = state[f"model.{name}.model.0.weight"]
    bias = state[f"model.{name}.model.0.bias"]
    return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2
                    if padding is None else padding)  # fmt: skip


def lrelu(x):
    return F.leaky_relu(x, 0.2)


def residual(state, name, x, resample=None, first=1, skip="skipcon"):
    """The method's PreAct, PreActDown and PreActUp (section 2), by published names."""
    resample = resample or (lambda x: x)
    h = convolve(state, f"{name}.model.{first}", resample(lrelu(x)))
    h = convolve(state, f"{name}.model.{first + 1}", lrelu(h))
    x = resample(x)
    if f"model.{name}.{skip}.model.0.weight" in state:
        x = convolve(state, f"{name}.{skip}", x)
    return x + h


def reconstruct(encoder, decoder, x):
    h = convolve(encoder, "preprocess_res_32.0", x)
    for i in (1, 2):
        h = residual(encoder, f"preprocess_res_32.{i}", h)
    for r in (32, 16, 8):
        h = residual(
            encoder, f"res_{r}.0", h, lambda x: F.avg_pool2d(x, 2), 2, "skipcon.1"
        )
        h = residual(encoder, f"res_{r}.1", h)
    z = convolve(encoder, "res_4.1", lrelu(h), 0)
    h = convolve(decoder, "res_4.1", lrelu(z), 3)
    for r in (8, 16, 32):
        h = residual(
            decoder,
            f"res_{r}.0",
            h,
            lambda x: F.interpolate(x, scale_factor=2, mode="nearest"),
            2,
            "skipcon.1",
        )
        h = residual(decoder, f"res_{r}.1", h)
    return convolve(decoder, "postprocess_res_32.1", lrelu(h))


def features(weights, x):
    """VGG19 to r32."""
    mean, std = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    x = (x * 0.5 + 0.5).repeat(1, 3, 1, 1)
    x = (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    for name in ("c11", "c12", "p", "c21", "c22", "p", "c31", "c32"):
        if name == "p":
            x = F.max_pool2d(x, 2)
            continue
        kernel = torch.from_numpy(weights[name]["kernel"].transpose(3, 2, 0, 1).copy())
        x = F.relu(
            F.conv2d(x, kernel, torch.from_numpy(weights[name]["bias"]), padding=1)
        )
    return x


def expected_scores(encoder, decoder, statistics, images):
    weights = vgg19.load(WEIGHTS)
    x = torch.from_numpy(images / 127.5 - 1).float()[:, None]
    mean, std = (
        torch.from_numpy(statistics["r32"][key])[:, None, None]
        for key in ("mean", "std")
    )
    with torch.no_grad():
        g, h = (
            (features(weights, v) - mean) / std
            for v in (x, reconstruct(encoder, decoder, x))
        )
    return ((g - h).abs().mean((1, 2, 3)) / g.abs().mean((1, 2, 3))).numpy()


def bring(folder, workdir, *more):
    return run_factory.call(
        *("import-reference", folder / "anomaly_detection.tar", "--workdir", workdir),
        *(f"--weights={WEIGHTS}", f"--stats={folder / 'stats.npz'}", *more),
    )


@pytest.fixture(scope="module")
def imported(made, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("imported") / "run"
    code, out, err = bring(made[0], workdir)
    assert code == 0, err
    assert f"{workdir} is ready" in out
    assert "note: set data.train instead" in err
    return workdir


def test_imported_run_scores_as_its_networks_do_in_pytorch(made, imported):
    _, encoder, decoder, statistics = made
    images = run_factory.images(4, 32)
    expected = expected_scores(encoder, decoder, statistics, images)
    found = dpa_jax.load(imported, batch_size=4)(images)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_workdir_has_the_config_and_the_steps_of_the_checkpoint(imported):
    config = config_files.load(str(imported / "config.json"))
    assert config.perceptual.weights == WEIGHTS and config.seed == 11
    # 2 stabilizations of 300, 2 transitions of 200 and 50 at last
    assert checkpoints.latest(imported) == 1050
    assert (imported / "environment.json").exists()
    assert (imported / "weights.json").exists()


def test_imported_run_scores_files_and_is_evaluated(imported, tmp_path):
    normal = run_factory.write_folder(tmp_path / "normal", 3, 240, seed=1)
    abnormal = run_factory.write_folder(tmp_path / "abnormal", 3, 240, seed=2)
    code, _, err = run_factory.call(
        *("score", normal, "--workdir", imported, "--batch=4"),
        *("--out", tmp_path / "scores.csv"),
    )
    assert code == 0, err
    code, out, err = run_factory.call(
        *("evaluate", "--workdir", imported, "--batch=4"),
        *("--out", tmp_path / "evaluation"),
        *("--normal", normal, "--abnormal", abnormal),
    )
    assert code == 0, err
    assert "warning: the weights of vgg19 are random (random:" in err


def test_a_second_import_leaves_the_first_alone(made, imported):
    before = run_factory.files(imported)
    code, _, err = bring(made[0], imported)
    assert code == 1 and "holds a trained run already" in err
    assert run_factory.files(imported) == before


def test_missing_statistics_are_named(made, tmp_path):
    statistics = {"r12": made[3]["r12"]}
    statistics_files.save(tmp_path / "few.npz", statistics, {"source": "made up"})
    code, _, err = bring(made[0], tmp_path / "run", f"--stats={tmp_path}/few.npz")
    assert code == 1 and "few.npz has no statistics of r22" in err
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_an_earlier_stage_is_refused(made, tmp_path):
    folder, encoder, decoder, _ = made
    content = torch.load(folder / "anomaly_detection.tar", weights_only=True)
    content["resolution"] = 16
    torch.save(content, tmp_path / "anomaly_detection.tar")
    (tmp_path / "stats.npz").write_bytes((folder / "stats.npz").read_bytes())
    code, _, err = bring(tmp_path, tmp_path / "run")
    assert code == 1
    assert "was saved in 16_stabilization; only a checkpoint of the last stage" in err
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_mapped_is_refused_by_name(made, tmp_path):
    folder = made[0]
    content = torch.load(folder / "anomaly_detection.tar", weights_only=True)
    content["config"]["enc"]["kwargs"]["norm"] = "batch"
    torch.save(content, tmp_path / "anomaly_detection.tar")
    (tmp_path / "stats.npz").write_bytes((folder / "stats.npz").read_bytes())
    code, _, err = bring(tmp_path, tmp_path / "run")
    assert code == 2 and "enc.kwargs.norm is 'batch'" in err


def test_files_that_are_no_checkpoint_are_refused(made, tmp_path):
    (tmp_path / "anomaly_detection.tar").write_bytes(b"nothing of that kind")
    (tmp_path / "stats.npz").write_bytes((made[0] / "stats.npz").read_bytes())
    code, _, err = bring(tmp_path, tmp_path / "run")
    assert code == 1 and "anomaly_detection.tar" in err and "Traceback" not in err


def test_the_published_checkpoint_gives_the_published_scores(shared, tmp_path):
    fixtures = shared / "fixtures"
    state = runpy.run_path(str(fixtures / "make_vgg19.py"))["state_dict"]()
    np.savez(tmp_path / "vgg19.npz", **state)
    code, _, err = run_factory.call(
        *("import-reference", fixtures / "anomaly_detection.tar"),
        *("--workdir", tmp_path / "run", f"--weights={tmp_path / 'vgg19.npz'}"),
        f"--stats={fixtures / 'vgg19_feature_stats.npz'}",
    )
    assert code == 0, err
    with np.load(fixtures / "anomaly_detection_scores.npz") as archive:
        images, scores = archive["images"], archive["scores"]
    assert images.shape[1] == 1  # [N, C, H, W], in [-1, 1]
    images = np.rint((np.moveaxis(images, 1, -1) + 1) * 127.5).astype(np.uint8)
    found = dpa_jax.load(tmp_path / "run", batch_size=8)(images)
    np.testing.assert_allclose(found, scores, rtol=1e-5)

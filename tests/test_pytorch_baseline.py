"""The PyTorch version: against the published numbers, and its steps among themselves.

`DPA_JAX_REFERENCE_CHECKOUT` names a clone of the published code for the test that calls
it.
"""

import os

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch, an extra, is not installed")

from benchmarks.pytorch import losses, networks, steps  # noqa: E402
from dpa_jax import errors  # noqa: E402

LAYERS = {8: {"r12": 1.0}, 16: {"r22": 1.0}, 32: {"r32": 1.0}, 64: {"r42": 1.0}}
STAGES = ["8_stabilization"] + [
    f"{r}_{kind}" for r in (16, 32, 64) for kind in ("transition", "stabilization")
]


# --- networks and weights of this file's own making


def convolution(rng, size, inputs, outputs):
    scale = np.float32(1 / np.sqrt(size * size * inputs))
    return {
        "kernel": scale * rng.standard_normal((size, size, inputs, outputs), "f"),
        "bias": np.float32(0.1) * rng.standard_normal(outputs, "f"),
    }


def preact(rng, inputs, outputs):
    parameters = {
        "conv_0": convolution(rng, 3, inputs, outputs),
        "conv_1": convolution(rng, 3, outputs, outputs),
    }
    if inputs != outputs:
        parameters["skip"] = convolution(rng, 1, inputs, outputs)
    return parameters


def make_parameters(rng, widths, latent_resolution, latent_channels, deep, channels=1):
    """Parameters of every resolution; `widths` from the lowest up, both networks'."""
    base = 4 if latent_resolution == 1 else latent_resolution
    encoder, decoder = {}, {}
    for level, width in enumerate(widths):
        resolution = base * 2**level
        entry = {"conv": convolution(rng, 3, channels, width)}
        for i in range(1 + deep):
            entry[f"preact_{i}"] = preact(rng, width, width)
        encoder[f"from_image_{resolution}"] = entry
        leave = {"conv": convolution(rng, 3, width, channels)}
        decoder[f"to_image_{resolution}"] = leave
        if level:
            low = widths[level - 1]
            down = {"down": preact(rng, width, low)}
            up = {"up": preact(rng, low, width)}
            if deep:
                down["preact"] = preact(rng, low, low)
                up["preact"] = preact(rng, width, width)
            encoder[f"block_{resolution}"] = down
            decoder[f"block_{resolution}"] = up
    if latent_resolution == 1:
        encoder["latent"] = {"conv": convolution(rng, 4, widths[0], latent_channels)}
        decoder["latent"] = {"conv": convolution(rng, 4, latent_channels, widths[0])}
    else:
        encoder["latent"] = preact(rng, widths[0], latent_channels)
        decoder["latent"] = preact(rng, latent_channels, widths[0])
    return {"encoder": encoder, "decoder": decoder}


def make_vgg(rng):
    shapes = {"c11": (3, 64), "c12": (64, 64), "c21": (64, 128), "c22": (128, 128)}
    return {name: convolution(rng, 3, *shape) for name, shape in shapes.items()}


@pytest.fixture
def made(rng):
    """Parameters up to 16 px, VGG19 up to block 2, statistics, images `[6,1,32,32]`."""
    statistics = {
        name: {"mean": rng.random(width, "f"), "std": 0.5 + rng.random(width, "f")}
        for name, width in (("r12", 64), ("r22", 128))
    }
    images = torch.tensor(rng.uniform(-1, 1, (6, 1, 32, 32)).astype("f"))
    parameters = make_parameters(rng, (5, 4, 3), 1, 6, deep=True)
    return parameters, make_vgg(rng), statistics, images


def stage(name, **kwargs):
    resolution, kind = name.split("_")
    return steps.StageSpec(int(resolution), kind == "transition", LAYERS, **kwargs)


def flatten(tree, prefix=""):
    flat = {}
    for name, value in tree.items():
        path = f"{prefix}/{name}"
        flat |= flatten(value, path) if isinstance(value, dict) else {path: value}
    return flat


# --- networks


@pytest.mark.parametrize("deep", [True, False], ids=["residual18", "residual9"])
@pytest.mark.parametrize(("latent_resolution", "widths"), [(1, (5, 4, 3)), (8, (5, 4))])
def test_parameters_survive_the_way_through_the_modules(
    rng, latent_resolution, widths, deep
):
    parameters = make_parameters(rng, widths, latent_resolution, 5, deep)
    exported = networks.export(networks.Autoencoder(parameters, 16, True))
    expected = flatten(parameters)
    for name in list(expected):  # a transition to 16 px knows 8 and 16 alone
        if "image_4" in name:
            del expected[name]
    exported = flatten(exported)
    assert exported.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(exported[name], value, err_msg=name)


def test_nih_subset_network_has_the_published_parameter_count(rng):
    parameters = make_parameters(rng, (16,) * 5, 1, 16, deep=True)
    model = networks.Autoencoder(parameters, 64, False)
    assert sum(p.numel() for p in model.parameters()) == 92_049


@pytest.mark.parametrize("latent_resolution", [1, 8])
def test_images_pass_through_the_latent_at_their_own_size(rng, latent_resolution):
    parameters = make_parameters(rng, (5, 4, 3)[:2], latent_resolution, 5, True, 3)
    resolution = 8 if latent_resolution == 1 else 16
    model = networks.Autoencoder(parameters, resolution, False)
    x = torch.zeros(2, 3, resolution, resolution)
    assert model["encoder"](x).shape == (2, 5, latent_resolution, latent_resolution)
    assert model(x).shape == x.shape


def test_a_transition_begins_with_the_old_network_and_ends_with_the_new(made):
    parameters, _, _, images = made
    growing = networks.Autoencoder(parameters, 16, True)
    grown = networks.Autoencoder(parameters, 16, False)
    old = networks.Autoencoder(parameters, 8, False)
    x = losses.downsample(images, 16)
    torch.testing.assert_close(growing(x, 1.0), grown(x))
    before = old(networks.halve(x)).repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(growing(x, 0.0), before)


def test_residual_block_is_the_written_one(rng):
    parameters = preact(rng, 2, 3)
    x = rng.standard_normal((1, 2, 4, 4), "f")
    y = networks.PreAct(parameters, networks.halve)(torch.tensor(x))

    def lrelu(a):
        return np.where(a > 0, a, 0.2 * a)

    def pool(a):
        return a.reshape(1, a.shape[1], 2, 2, 2, 2).mean((3, 5))

    def conv(p, a):  # correlation with zero padding, by its definition
        size = p["kernel"].shape[0]
        a = np.pad(a, [(0, 0), (0, 0)] + [(size // 2,) * 2] * 2)
        out = np.zeros((1, p["kernel"].shape[3], 2, 2))
        for i in range(size):
            for j in range(size):
                window = a[:, :, i : i + 2, j : j + 2]
                out += np.einsum("bihw,io->bohw", window, p["kernel"][i, j])
        return out + p["bias"][:, None, None]

    expected = conv(parameters["conv_0"], pool(lrelu(x)))
    expected = conv(parameters["conv_1"], lrelu(expected))
    expected += conv(parameters["skip"], pool(x))
    np.testing.assert_allclose(y.detach().numpy(), expected, rtol=1e-4, atol=1e-6)


# --- images and losses


def test_mix_is_of_centre_means_and_repeated_pixels(rng):
    images = rng.random((2, 1, 32, 32), "f")
    fine = images.reshape(2, 1, 8, 4, 8, 4)[:, :, :, 1:3, :, 1:3].mean((3, 5))
    coarse = images.reshape(2, 1, 4, 8, 4, 8)[:, :, :, 3:5, :, 3:5].mean((3, 5))
    coarse = coarse.repeat(2, 2).repeat(2, 3)
    mixed = losses.mix(torch.tensor(images), 8, 0.3)
    np.testing.assert_allclose(mixed, 0.7 * coarse + 0.3 * fine, rtol=1e-5)


def test_relative_loss_follows_its_equation(rng, made):
    _, vgg, statistics, _ = made
    x, y = torch.tensor(rng.uniform(-1, 1, (2, 3, 1, 8, 8)).astype("f"))
    layers = {"r12": 1.0, "r22": 0.5}
    extractor = losses.VGG19(vgg, "r22")
    loss = losses.Perceptual(extractor, statistics, layers, image_weight=2.0)

    def compared(images):
        inputs = np.repeat((images.numpy() + 1) / 2, 3, axis=1)
        inputs -= np.array([0.485, 0.456, 0.406]).reshape(3, 1, 1)
        inputs /= np.array([0.229, 0.224, 0.225]).reshape(3, 1, 1)
        found = extractor(torch.tensor(inputs), tuple(layers))
        values = [(2.0, inputs)]
        for name, weight in layers.items():
            mean, std = (statistics[name][s].reshape(-1, 1, 1) for s in ("mean", "std"))
            values.append((weight, (found[name].numpy() - mean) / std))
        return values

    expected = np.zeros(3)
    for (weight, a), (_, b) in zip(compared(x), compared(y), strict=True):
        axes = (1, 2, 3)
        expected += weight * np.abs(a - b).mean(axes) / np.abs(a).mean(axes)
    np.testing.assert_allclose(loss(x, y), expected / 3.5, rtol=1e-5)


def test_plain_perceptual_is_the_mean_square_of_features(rng, made):
    _, vgg, _, _ = made
    x, y = torch.tensor(rng.uniform(-1, 1, (2, 3, 1, 8, 8)).astype("f"))
    extractor = losses.VGG19(vgg, "p1")
    loss = losses.Perceptual(extractor, None, {"p1": 1.0}, relative=False)
    a, b = (extractor(extractor.preprocess(v), ("p1",))["p1"].numpy() for v in (x, y))
    np.testing.assert_allclose(loss(x, y), ((a - b) ** 2).mean((1, 2, 3)), rtol=1e-5)


def test_asking_for_a_convolution_shields_it_from_its_relu(rng, made):
    _, vgg, _, _ = made
    extractor = losses.VGG19(vgg, "r11")
    x = torch.tensor(rng.standard_normal((1, 3, 8, 8), "f"))
    found = extractor(x, ("c11", "r11"))
    assert (found["c11"] < 0).any()
    torch.testing.assert_close(found["r11"], found["c11"].clamp(min=0))


# --- steps


@pytest.mark.parametrize("name", ["8_stabilization", "16_transition"])
def test_tuned_takes_the_published_steps(made, name):
    parameters, vgg, statistics, images = made
    kwargs = {"learning_rate": 1e-3, "device": "cpu"}
    published = steps.published(stage(name), parameters, vgg, statistics, **kwargs)
    tuned = steps.tuned(
        stage(name),
        parameters,
        vgg,
        statistics,
        **kwargs,
        precision="float32",
        compiled=False,
    )
    for i, tolerance in enumerate((1e-5, 1e-4, 1e-3)):
        alpha = (i + 1) / 4
        loss = published(images, alpha)
        assert isinstance(loss, float)
        np.testing.assert_allclose(tuned(images, alpha), loss, rtol=tolerance)


def test_half_precision_changes_the_loss_little(made):
    parameters, vgg, statistics, images = made
    arguments = (stage("16_transition"), parameters, vgg, statistics, 1e-3, "cpu")
    half = steps.tuned(*arguments, precision="bfloat16", compiled=False)(images, 0.5)
    full = steps.published(*arguments)(images, 0.5)
    assert half.dtype == torch.float32
    assert 1e-7 < abs(float(half) / full - 1) < 0.02


@pytest.mark.parametrize("smooth", [True, False])
def test_the_smooth_loss_is_of_both_resolutions(made, smooth):
    parameters, vgg, statistics, images = made
    spec = stage("16_transition", smooth=smooth)
    objective = steps.Objective(spec, parameters, vgg, statistics)
    x = losses.mix(images, 16, 0.25)
    y = objective.autoencoder(x, 0.25)
    full, half = (
        losses.Perceptual(losses.VGG19(vgg, layer), statistics, {layer: 1.0})
        for layer in ("r22", "r12")
    )
    expected = full(x, y)
    if smooth:
        expected *= 0.25
        expected += 0.75 * half(*(losses.downsample(v, 8) for v in (x, y)))
    actual = objective(images, 0.25, targets_without_grad=False)
    torch.testing.assert_close(actual, expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # its own imports
def test_a_moving_alpha_is_not_compiled_anew(rng, made, monkeypatch):
    # traced and differentiated as it will be, without the minute of code generation
    compile_fully = torch.compile
    monkeypatch.setattr(
        torch,
        "compile",
        lambda f, mode, **how: compile_fully(f, backend="aot_eager", **how),
    )
    monkeypatch.setattr(steps, "_require_cpp_compiler", lambda: None)
    _, vgg, statistics, images = made
    parameters = make_parameters(rng, (2, 2), 1, 2, deep=False)
    layers = {4: {"r11": 1.0}, 8: {"r11": 1.0}}
    statistics = {"r11": statistics["r12"]}
    small = steps.StageSpec(8, True, layers)
    arguments = (small, parameters, vgg, statistics, 1e-3, "cpu")
    published = steps.published(*arguments)
    tuned = steps.tuned(*arguments, precision="float32", compiled=True)
    np.testing.assert_allclose(tuned(images, 0.25), published(images, 0.25), rtol=1e-5)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for alpha in (0.5, 0.75, 1.0):
            np.testing.assert_allclose(
                tuned(images, alpha), published(images, alpha), rtol=1e-3
            )


def test_compiling_without_a_compiler_says_so(made, monkeypatch):
    parameters, vgg, statistics, _ = made
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(errors.DpaError, match="there is no no-such-compiler"):
        steps.tuned(
            stage("8_stabilization"),
            *(parameters, vgg, statistics, 1e-3, "cpu"),
            precision="float32",
            compiled=True,
        )


def test_scores_are_the_losses_of_the_grown_network(made):
    parameters, vgg, statistics, images = made
    arguments = (stage("16_stabilization"), parameters, vgg, statistics)
    objective = steps.Objective(*arguments)
    expected = objective(images, 1.0, targets_without_grad=False).detach()
    published = steps.published_scorer(*arguments, "cpu")(images)
    tuned = steps.tuned_scorer(*arguments, "cpu", "float32", compiled=False)(images)
    assert published.shape == (6,) and not published.requires_grad
    torch.testing.assert_close(published, expected)
    torch.testing.assert_close(tuned, expected)


def test_cudnn_settings_are_left_as_they_were(made):
    parameters, vgg, statistics, images = made
    arguments = (stage("8_stabilization"), parameters, vgg, statistics, "cpu")
    steps.tuned_scorer(*arguments, "float32", compiled=False)(images)
    assert not torch.backends.cudnn.benchmark


# --- the published numbers


@pytest.fixture(scope="session")
def published_stages(shared):
    with np.load(shared / "fixtures" / "stages_nih_subset_pg.npz") as arrays:
        return dict(arrays)


def part(arrays, name, kind):
    """The parameters or gradients of a stage, as dpa_jax names them."""
    from dpa_jax.interop import reference_checkpoint

    states = {"enc": {}, "dec": {}}
    for key, value in arrays.items():
        if key.startswith(f"{name}/{kind}/"):
            network, _, rest = key.split("/", 2)[2].partition(".")
            states[network][rest] = value
    return reference_checkpoint.convert_parameters(states["enc"], states["dec"])


def assert_near(actual, expected, what):
    """Compares with the largest magnitude of `expected` as the scale."""
    error = np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max()
    assert error < 1e-5, f"{what}: {error:.1e}"


@pytest.mark.parametrize("name", STAGES)
def test_stage_is_the_published_one(
    published_stages, fixture_vgg, fixture_statistics, name
):
    arrays = {
        key.removeprefix(f"{name}/"): value
        for key, value in published_stages.items()
        if key.startswith(f"{name}/")
    }
    parameters, alpha = part(published_stages, name, "param"), float(arrays["alpha"])
    images = torch.tensor(published_stages["images"])
    arguments = (stage(name), parameters, fixture_vgg, fixture_statistics)
    objective = steps.Objective(*arguments)

    resolution = arguments[0].resolution
    if arguments[0].transition:
        mixed = losses.mix(images, resolution, alpha)
    else:
        mixed = losses.downsample(images, resolution)
    latent = objective.autoencoder["encoder"](mixed, alpha)
    reconstruction = objective.autoencoder["decoder"](latent, alpha)
    loss = objective(images, alpha, targets_without_grad=False)
    loss.mean().backward()

    assert_near(mixed, arrays["mixed"], "mixed")
    assert_near(latent.detach(), arrays["latent"], "latent")
    assert_near(reconstruction.detach(), arrays["reconstruction"], "reconstruction")
    np.testing.assert_allclose(loss.detach(), arrays["loss_per_image"], rtol=1e-5)
    gradients = flatten(networks.export(objective.autoencoder, lambda p: p.grad))
    expected = flatten(part(published_stages, name, "grad"))
    assert gradients.keys() == expected.keys()
    for path, value in expected.items():
        assert_near(gradients[path], value, path)

    step = steps.published(*arguments, learning_rate=1e-3, device="cpu")
    # at 64 pixels, where five take seconds, the first two
    taken = [step(images, alpha) for _ in range(5 if resolution < 64 else 2)]
    # Adam's first steps follow the sign of every gradient, however small, so rounding
    # grows: in float64 the same five losses differ from the published by up to 5e-5 in
    # the second and 3e-3 in the last.
    for actual, value, tolerance in zip(
        taken, arrays["adam_losses"], (1e-5, 1e-4, 5e-3, 5e-3, 5e-3), strict=False
    ):
        np.testing.assert_allclose(actual, value, rtol=tolerance)


def test_vgg_features_are_the_published_ones(shared, fixture_vgg):
    with np.load(shared / "fixtures" / "vgg19_features.npz") as arrays:
        extractor = losses.VGG19(fixture_vgg, "r54")
        inputs = extractor.preprocess(torch.tensor(arrays["images"]))
        assert_near(inputs, arrays["preprocessed"], "preprocessed")
        names = [n for n in losses.layers_up_to("r54") if n[0] == "r"]
        for name, value in extractor(inputs, tuple(names)).items():
            channel = arrays[f"{name}_channel_mean"]
            assert_near(value.mean((0, 2, 3)), channel, name)
            assert_near(value.mean(1), arrays[f"{name}_spatial_mean"], name)
            if name == "r42":
                assert_near(value, arrays["r42"], name)


# --- the published code


def test_a_folder_without_the_published_code_is_refused(made, tmp_path):
    from benchmarks.pytorch import reference_checkout

    parameters, vgg, statistics, _ = made
    with pytest.raises(errors.DpaError, match="holds no anomaly_detection"):
        reference_checkout.train_step(
            str(tmp_path),
            stage("8_stabilization"),
            *(parameters, vgg, statistics, 1e-3, "cpu"),
            full_resolution=32,
        )


@pytest.mark.skipif(
    "DPA_JAX_REFERENCE_CHECKOUT" not in os.environ,
    reason="DPA_JAX_REFERENCE_CHECKOUT names no clone of the published code",
)
@pytest.mark.filterwarnings("ignore:`nn.functional.upsample` is deprecated")  # theirs
@pytest.mark.parametrize("deep", [True, False], ids=["residual18", "residual9"])
@pytest.mark.parametrize(
    ("name", "latent_resolution"),
    [("8_stabilization", 1), ("16_transition", 1), ("16_transition", 8)],
)
def test_the_published_code_takes_the_same_steps(
    rng, made, name, latent_resolution, deep
):
    from benchmarks.pytorch import reference_checkout

    _, vgg, statistics, images = made
    widths = (5, 4, 3) if latent_resolution == 1 else (5, 4)
    parameters = make_parameters(rng, widths, latent_resolution, 5, deep)
    spec = stage(name, image_weight=0.25)
    arguments = (spec, parameters, vgg, statistics, 1e-3, "cpu")
    theirs = reference_checkout.train_step(
        os.environ["DPA_JAX_REFERENCE_CHECKOUT"], *arguments, full_resolution=32
    )
    ours = steps.published(*arguments)
    for tolerance in (1e-6, 1e-5):
        np.testing.assert_allclose(
            ours(images, 0.25), theirs(images, 0.25), rtol=tolerance
        )

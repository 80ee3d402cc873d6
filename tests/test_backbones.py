"""Backbones: ResNet-50 by PyTorch's own modules, the seam by one of the test's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpa_jax import errors
from dpa_jax.backbones import base, resnet50
from dpa_jax.ops import frozen_convolution

torch = pytest.importorskip("torch", reason="torch is not installed")
nn = torch.nn


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a skip connection."""

    def __init__(self, channels, width, stride, changes):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = None
        if changes:
            conv = nn.Conv2d(channels, 4 * width, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(4 * width))

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet50(nn.Module):
    """The modules under the names that torchvision gives them."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = 64
        for group, depth in enumerate((3, 4, 6, 3), start=1):
            width, blocks = 64 * 2 ** (group - 1), []
            for i in range(depth):
                stride = 2 if group > 1 and i == 0 else 1
                blocks.append(Bottleneck(channels, width, stride, i == 0))
                channels = 4 * width
            setattr(self, f"layer{group}", nn.Sequential(*blocks))

    def forward(self, x):
        found = {"relu": torch.relu(self.bn1(self.conv1(x)))}
        x = found["maxpool"] = self.maxpool(found["relu"])
        for group in range(1, 5):
            for i, block in enumerate(getattr(self, f"layer{group}")):
                x = found[f"layer{group}.{i}"] = block(x)
        return found


@pytest.fixture(scope="module")
def network():
    """One whose normalisation is far from doing nothing."""
    torch.manual_seed(0)
    made = ResNet50().eval()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.3, 0.6)
            nn.init.normal_(module.bias, 0, 0.1)
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return made


def radimagenet_names(state):
    """The same tensors as RadImageNet's file names them."""
    children = [
        "conv1",
        "bn1",
        "relu",
        "maxpool",
        "layer1",
        "layer2",
        "layer3",
        "layer4",
    ]
    return {
        f"backbone.{children.index(name.partition('.')[0])}.{name.partition('.')[2]}": t
        for name, t in state.items()
    }


@pytest.fixture(scope="module", params=["torchvision", "radimagenet", "safetensors"])
def weights(request, network, tmp_path_factory):
    """Read from a file as people have them."""
    folder, state = tmp_path_factory.mktemp("weights"), network.state_dict()
    state["fc.weight"] = torch.full((3, 2048), torch.nan)  # not to be looked at
    if request.param == "safetensors":
        import safetensors.torch

        safetensors.torch.save_file(state, folder / "w.safetensors")
        return resnet50.load(str(folder / "w.safetensors"))
    del state["fc.weight"]
    if request.param == "radimagenet":
        state = radimagenet_names(state)
    torch.save(state, folder / "w.pt")
    return resnet50.load(str(folder / "w.pt"))


apply = jax.jit(resnet50.apply, static_argnums=(2, 3))  # compiled once for all weights


def test_resnet50_is_pytorchs(network, weights, rng):
    x = rng.standard_normal((2, 32, 48, 3)).astype(np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(x.transpose(0, 3, 1, 2)))
    found = apply(
        frozen_convolution.prepare(jax.device_put(weights), "cpu"),
        x,
        resnet50.LAYERS,
        "cpu",
    )
    assert list(expected) == list(resnet50.LAYERS)
    for layer, value in expected.items():
        value = value.numpy().transpose(0, 2, 3, 1)
        error = np.linalg.norm(found[layer] - value) / np.linalg.norm(value)
        assert error < 1e-5, layer


def test_only_what_the_layers_need_is_loaded():
    loaded = resnet50.load("random:0", ["layer1.1"])
    assert set(loaded) == {
        "conv1",
        *(f"layer1.{i}.conv{j}" for i in (0, 1) for j in (1, 2, 3)),
        "layer1.0.downsample",
    }
    found = resnet50.apply(loaded, jnp.zeros((1, 16, 16, 3)), ["layer1.1"])
    assert found["layer1.1"].shape == (1, 4, 4, 256)


def test_a_tensor_that_is_missing_is_named(tmp_path, network):
    state = network.state_dict()
    del state["layer2.0.downsample.1.running_var"]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(
        errors.DpaError, match=r"is not resnet50: layer2.0.downsample.1.running_var is"
    ):
        resnet50.load(str(tmp_path / "w.pth"))


def test_shapes_follow_from_the_weights():
    vgg19 = base.named("vgg19")
    weights = vgg19.load("random:0", ["r42"])
    found = vgg19.feature_shapes(weights, ["r12", "p1", "r42"], 64)
    assert found == {"r12": (64, 64, 64), "p1": (32, 32, 64), "r42": (8, 8, 512)}


def test_an_image_that_is_too_small_is_refused():
    vgg19 = base.named("vgg19")
    weights = vgg19.load("random:0")
    with pytest.raises(errors.UsageError, match="r51 of vgg19 has no pixel left"):
        vgg19.feature_shapes(weights, ["r12", "r51"], 8)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vgg20", r"'vgg20'; it may be .*did you mean vgg19"),
        ("nowhere_at_all:make", "no module nowhere_at_all"),
        ("json:nothing", "has no function .nothing."),
        ("builtins:dict", "returns dict and not a"),
    ],
)
def test_what_is_no_backbone_is_refused_by_name(name, message):
    with pytest.raises(errors.UsageError, match=f"perceptual.backbone is .*{message}"):
        base.named(name)

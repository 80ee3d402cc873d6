"""Losses and the image pyramid in PyTorch (section 2 and 3 of the paper).

Every loss is one float32 value per image.
"""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.pytorch.networks import Parameters, convolution, double, fade

CONVOLUTIONS_PER_BLOCK = (2, 2, 4, 4, 4)  # VGG19, configuration E


def downsample(images: Tensor, resolution: int) -> Tensor:
    """Shrinks `[B, C, H, H]` bilinearly, without antialiasing or aligned corners."""
    if images.shape[-1] == resolution:
        return images
    return F.interpolate(images, size=resolution, mode="bilinear", align_corners=False)


def mix(images: Tensor, resolution: int, alpha: float | Tensor) -> Tensor:
    """Returns what a transition sees: half the resolution fading into `resolution`."""
    coarse = downsample(images, resolution // 2)
    return fade(double(coarse), downsample(images, resolution), alpha)


def l1(x: Tensor, y: Tensor) -> Tensor:
    """Returns the mean absolute difference of each image, `[B]`."""
    return (x - y).abs().mean((1, 2, 3))


def l2(x: Tensor, y: Tensor) -> Tensor:
    """Returns the mean squared difference of each image, `[B]`."""
    return (x - y).square().mean((1, 2, 3))


class VGG19(nn.ModuleDict):
    """VGG19's convolutions as far as they are needed, frozen.

    Layers: `cBI` is convolution I of block B, `rBI` its ReLU, `pB` the block's pooling.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, weights: Mapping[str, Parameters], deepest: str):
        """Takes `{"c11": {"kernel": [3, 3, I, O], "bias": [O]}, ...}`."""
        super().__init__()
        for layer in layers_up_to(deepest):
            if layer[0] == "c":
                self[layer] = convolution(weights[layer])
        self.requires_grad_(False)
        mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
        std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def preprocess(self, images: Tensor) -> Tensor:
        """Turns images `[B, 1 or 3, H, W]` in [-1, 1] into VGG19's input."""
        images = images.expand(-1, 3, -1, -1)
        return (images * 0.5 + 0.5 - self.mean) / self.std

    def forward(self, x: Tensor, layers: tuple[str, ...]) -> dict[str, Tensor]:
        """Returns the named activations of preprocessed images."""
        found = {}
        deepest = max(layers, key=layers_up_to("p5").index)
        for layer in layers_up_to(deepest):
            if layer[0] == "c":
                x = self[layer](x)
            elif layer[0] == "r":
                # in place unless someone asked for what it would overwrite
                x = F.relu(x, inplace=f"c{layer[1:]}" not in layers)
            else:
                x = F.max_pool2d(x, 2)
            if layer in layers:
                found[layer] = x
        return found


def layers_up_to(deepest: str) -> list[str]:
    """Lists VGG19's layers in the order of computation, `deepest` being the last."""
    names = []
    for block, depth in enumerate(CONVOLUTIONS_PER_BLOCK, start=1):
        for i in range(1, depth + 1):
            names += [f"c{block}{i}", f"r{block}{i}"]
        names.append(f"p{block}")
    return names[: names.index(deepest) + 1]


class Perceptual(nn.Module):
    """The perceptual loss of one resolution (equations 1 to 3 of the paper)."""

    def __init__(
        self,
        vgg: VGG19,
        statistics: Mapping[str, Mapping[str, np.ndarray]] | None,
        layers: Mapping[str, float],
        image_weight: float = 0.0,
        relative: bool = True,
    ):
        """Fixes what is compared and how.

        Args:
          vgg: reaches the deepest of `layers`.
          statistics: `{layer: {"mean": [C], "std": [C]}}`, by which features are
            normalised; None leaves them as they are.
          layers: the weight of each.
          image_weight: of the same term on VGG19's input.
          relative: L1 over the mean size of the real image's features; else L2.
        """
        super().__init__()
        self.vgg, self.weights, self.relative = vgg, dict(layers), relative
        self.image_weight = image_weight
        self.normalized = statistics is not None
        if statistics is not None:
            for layer in layers:
                for name in ("mean", "std"):
                    array = torch.tensor(np.asarray(statistics[layer][name]))
                    self.register_buffer(f"{layer}_{name}", array.view(-1, 1, 1))

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Returns what is compared: normalised features, and the input if weighted."""
        inputs = self.vgg.preprocess(images)
        compared = self.vgg(inputs, tuple(self.weights)) if self.weights else {}
        # float32, for under autocast convolutions return half precision
        compared = {layer: x.float() for layer, x in compared.items()}
        if self.normalized:
            for layer, x in compared.items():
                mean = self.get_buffer(f"{layer}_mean")
                compared[layer] = (x - mean) / self.get_buffer(f"{layer}_std")
        return compared | ({"image": inputs} if self.image_weight else {})

    def compare(self, real: dict[str, Tensor], fake: dict[str, Tensor]) -> Tensor:
        """Returns the loss `[B]` of reconstructions from the features of both."""
        weights = self.weights | (
            {"image": self.image_weight} if self.image_weight else {}
        )
        total = torch.zeros((), device=self.vgg.mean.device)
        for name, weight in weights.items():
            if self.relative:
                size = real[name].abs().mean((1, 2, 3))
                term = l1(real[name], fake[name]) / size
            else:
                term = l2(real[name], fake[name])
            total = total + weight * term
        return total / sum(weights.values())

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns the loss `[B]` of reconstructions `y` of real images `x`."""
        return self.compare(self.features(x), self.features(y))

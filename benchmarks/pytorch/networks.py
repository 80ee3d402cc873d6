"""Encoder and decoder of every growth stage in PyTorch (section 3 of the paper).

Modules are built from, and written back to, dpa_jax's parameters: nested dicts of NumPy
arrays with kernels `[height, width, in, out]`. Children bear the names of the dicts,
so that the mapping is the path of a parameter and one transposition.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Parameters = Mapping[str, Any]


def leaky_relu(x: Tensor) -> Tensor:
    """Applies LeakyReLU with the method's slope of 0.2."""
    return F.leaky_relu(x, 0.2)


def halve(x: Tensor) -> Tensor:
    """Halves height and width by the mean of 2x2 blocks."""
    return F.avg_pool2d(x, 2)


def double(x: Tensor) -> Tensor:
    """Doubles height and width, each pixel repeated."""
    if torch.compiler.is_compiling():
        # the compiler's gradient of interpolate scatters; that of expand is a sum
        b, c, h, w = x.shape
        x = x[:, :, :, None, :, None].expand(b, c, h, 2, w, 2)
        return x.reshape(b, c, 2 * h, 2 * w)
    return F.interpolate(x, scale_factor=2, mode="nearest")


def fade(old: Tensor, new: Tensor, alpha: float | Tensor) -> Tensor:
    """Mixes the old path of a transition with the new, whose share is `alpha`."""
    return (1 - alpha) * old + alpha * new


def convolution(parameters: Parameters, padding: int | None = None) -> nn.Conv2d:
    """Makes a convolution that holds a copy of the given kernel and bias.

    Args:
      parameters: `{"kernel": [k, k, I, O], "bias": [O]}`.
      padding: zeros on each side; None keeps the size.
    """
    kernel = torch.tensor(np.asarray(parameters["kernel"])).permute(3, 2, 0, 1)
    outputs, inputs, size, _ = kernel.shape
    conv = nn.utils.skip_init(
        nn.Conv2d,
        inputs,
        outputs,
        size,
        padding=size // 2 if padding is None else padding,
    )
    with torch.no_grad():
        conv.weight.copy_(kernel)
        conv.bias.copy_(torch.tensor(np.asarray(parameters["bias"])))
    return conv


class PreAct(nn.ModuleDict):
    """A pre-activation residual block that may resample after its first activation."""

    def __init__(
        self,
        parameters: Parameters,
        resample: Callable[[Tensor], Tensor] = lambda x: x,
    ):
        """Takes `conv_0`, `conv_1` and, where channels change, `skip`."""
        super().__init__({name: convolution(p) for name, p in parameters.items()})
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, i, H, W]` to `[B, o, H', W']`."""
        y = self["conv_0"](self.resample(leaky_relu(x)))
        y = self["conv_1"](leaky_relu(y))
        x = self.resample(x)
        return y + (self["skip"](x) if "skip" in self else x)


class Chain(nn.ModuleDict):
    """Named modules, applied one after the other."""

    def forward(self, x: Tensor) -> Tensor:
        """Applies every module to the result of the one before."""
        for module in self.values():
            x = module(x)
        return x


def from_image(parameters: Parameters) -> Chain:
    """Makes the encoder's entry: a convolution and one or two PreActs."""
    chain = Chain({"conv": convolution(parameters["conv"])})
    for name in sorted(parameters.keys() - {"conv"}):
        chain[name] = PreAct(parameters[name])
    return chain


def block(parameters: Parameters, name: str, resample) -> Chain:
    """Makes a resampling PreAct called `name` and, in residual18, a plain one."""
    chain = Chain({name: PreAct(parameters[name], resample)})
    if "preact" in parameters:
        chain["preact"] = PreAct(parameters["preact"])
    return chain


class ActivatedConv(nn.ModuleDict):
    """LeakyReLU and a convolution."""

    def __init__(self, parameters: Parameters, padding: int | None = None):
        """Takes `conv`; see `convolution`."""
        super().__init__({"conv": convolution(parameters["conv"], padding)})

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, i, H, W]` to `[B, o, H', W']`."""
        return self["conv"](leaky_relu(x))


def latent(parameters: Parameters, padding: int) -> nn.Module:
    """Makes the way to or from the latent: a 4x4 convolution, or else a PreAct."""
    if "conv" in parameters:
        return ActivatedConv(parameters, padding)
    return PreAct(parameters)


def block_resolutions(parameters: Parameters, highest: int) -> list[int]:
    """Lists the resolutions of the blocks up to `highest`, highest first."""
    named = (name.split("_") for name in parameters if name.startswith("block_"))
    return sorted((int(r) for _, r in named if int(r) <= highest), reverse=True)


class Encoder(nn.ModuleDict):
    """The encoder at one stage of growth."""

    def __init__(self, parameters: Parameters, resolution: int, transition: bool):
        """Takes from the blocks of all resolutions those that the stage computes."""
        super().__init__()
        self.resolution, self.transition = resolution, transition
        self.blocks = block_resolutions(parameters, resolution)
        for r in (resolution, resolution // 2)[: 1 + transition]:
            self[f"from_image_{r}"] = from_image(parameters[f"from_image_{r}"])
        for r in self.blocks:
            self[f"block_{r}"] = block(parameters[f"block_{r}"], "down", halve)
        self["latent"] = latent(parameters["latent"], padding=0)

    def forward(self, x: Tensor, alpha: float | Tensor = 1.0) -> Tensor:
        """Maps images `[B, C, R, R]` to latents `[B, c, r, r]`."""
        y = self[f"from_image_{self.resolution}"](x)
        for r in self.blocks:
            y = self[f"block_{r}"](y)
            if self.transition and r == self.resolution:
                old = self[f"from_image_{r // 2}"](halve(x))
                y = fade(old, y, alpha)
        return self["latent"](y)


class Decoder(nn.ModuleDict):
    """The decoder at one stage of growth."""

    def __init__(self, parameters: Parameters, resolution: int, transition: bool):
        """Takes from the blocks of all resolutions those that the stage computes."""
        super().__init__()
        self.resolution, self.transition = resolution, transition
        self.blocks = block_resolutions(parameters, resolution)[::-1]
        self["latent"] = latent(parameters["latent"], padding=3)
        for r in self.blocks:
            self[f"block_{r}"] = block(parameters[f"block_{r}"], "up", double)
        for r in (resolution, resolution // 2)[: 1 + transition]:
            self[f"to_image_{r}"] = ActivatedConv(parameters[f"to_image_{r}"])

    def forward(self, z: Tensor, alpha: float | Tensor = 1.0) -> Tensor:
        """Maps latents `[B, c, r, r]` to images `[B, C, R, R]`."""
        old = y = self["latent"](z)
        for r in self.blocks:
            old, y = y, self[f"block_{r}"](y)
        y = self[f"to_image_{self.resolution}"](y)
        if self.transition:
            old = double(self[f"to_image_{self.resolution // 2}"](old))
            y = fade(old, y, alpha)
        return y


class Autoencoder(nn.ModuleDict):
    """Encoder and decoder at one stage of growth."""

    def __init__(self, parameters: Parameters, resolution: int, transition: bool):
        """Takes `{"encoder": {...}, "decoder": {...}}`."""
        super().__init__(
            {
                "encoder": Encoder(parameters["encoder"], resolution, transition),
                "decoder": Decoder(parameters["decoder"], resolution, transition),
            }
        )

    def forward(self, x: Tensor, alpha: float | Tensor = 1.0) -> Tensor:
        """Reconstructs images `[B, C, R, R]` in [-1, 1]."""
        return self["decoder"](self["encoder"](x, alpha), alpha)


def export(
    module: nn.Module, value: Callable[[nn.Parameter], Tensor] = lambda p: p.detach()
) -> dict[str, Any]:
    """Writes parameters as dpa_jax names them.

    Args:
      module: any of this file.
      value: what to write of each parameter; `lambda p: p.grad` writes gradients.

    Returns:
      A nested dict of NumPy arrays, kernels `[height, width, in, out]`.
    """
    nested: dict[str, Any] = {}
    for path, parameter in module.named_parameters():
        *names, last = path.split(".")
        inner = nested
        for name in names:
            inner = inner.setdefault(name, {})
        array = value(parameter).cpu().numpy()
        if last == "weight":
            inner["kernel"] = np.ascontiguousarray(array.transpose(2, 3, 1, 0))
        else:
            inner["bias"] = array.copy()
    return nested

"""Two PyTorch train steps to compare with: as published, and tuned.

Both train the same stage from the same parameters with the relative perceptual loss and
a fresh Adam, and take full-resolution images that they shrink and mix themselves. Each
comes with its scoring function.
"""

import contextlib
import dataclasses
import os
import shutil
import sys
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from benchmarks.pytorch import losses, networks
from benchmarks.pytorch.networks import Parameters
from dpa_jax import errors

# (full-resolution images [B, C, H, H] in [-1, 1] on the device, alpha) -> mean loss
Step = Callable[[Tensor, float], float | Tensor]
# full-resolution images -> one score per image [B], on the host
Scorer = Callable[[Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class StageSpec:
    """What one stage of growth computes.

    Attributes:
      resolution: in pixels, of the images that the stage sees.
      transition: whether new blocks are faded in.
      layers: for each resolution, VGG19's layers and their weights.
      image_weight: of the same term on VGG19's input.
      smooth: whether a transition mixes in the loss at half the resolution.
    """

    resolution: int
    transition: bool
    layers: Mapping[int, Mapping[str, float]]
    image_weight: float = 0.0
    smooth: bool = True


class Objective(nn.Module):
    """Autoencoder and loss of one stage: full-resolution images to losses `[B]`."""

    def __init__(
        self,
        stage: StageSpec,
        parameters: Parameters,
        vgg: Mapping[str, Parameters],
        statistics: Mapping[str, Parameters],
    ):
        """Builds both networks; see `published` for the arguments."""
        super().__init__()
        self.resolution, self.transition = stage.resolution, stage.transition
        self.autoencoder = networks.Autoencoder(
            parameters, stage.resolution, stage.transition
        )
        smooth = stage.transition and stage.smooth
        resolutions = (stage.resolution, stage.resolution // 2)[: 1 + smooth]
        order = losses.layers_up_to("p5").index
        extractor = losses.VGG19(
            vgg, max((name for r in resolutions for name in stage.layers[r]), key=order)
        )
        # the loss of the stage's resolution and, if wanted, of half of it
        self.perceptual = nn.ModuleList(
            losses.Perceptual(
                extractor, statistics, stage.layers[r], stage.image_weight
            )
            for r in resolutions
        )

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Returns the images at the resolution of every loss."""
        return [images, networks.halve(images)][: len(self.perceptual)]

    def targets(self, images: Tensor) -> list[dict[str, Tensor]]:
        """Returns the features of real images at the resolution of every loss."""
        pairs = zip(self.perceptual, self.pyramid(images), strict=True)
        return [perceptual.features(x) for perceptual, x in pairs]

    def forward(
        self, images: Tensor, alpha: float | Tensor, *, targets_without_grad: bool
    ) -> Tensor:
        """Returns the loss `[B]` of full-resolution images."""
        if self.transition:
            images = losses.mix(images, self.resolution, alpha)
        else:
            images = losses.downsample(images, self.resolution)
        fakes = self.pyramid(self.autoencoder(images, alpha).float())
        with torch.no_grad() if targets_without_grad else contextlib.nullcontext():
            targets = self.targets(images)
        full, *half = (
            perceptual.compare(target, perceptual.features(fake))
            for perceptual, target, fake in zip(
                self.perceptual, targets, fakes, strict=True
            )
        )
        return networks.fade(half[0], full, alpha) if half else full


def published(
    stage: StageSpec,
    parameters: Parameters,
    vgg: Mapping[str, Parameters],
    statistics: Mapping[str, Parameters],
    learning_rate: float,
    device: str,
) -> Step:
    """Makes a train step as published.

    Eager, NCHW, float32 with PyTorch's own settings (on NVIDIA GPUs convolutions may
    use TF32), VGG19 frozen but run on both images without a no_grad block, the loss
    read back every step.

    Args:
      stage: what to compute.
      parameters: `{"encoder": {...}, "decoder": {...}}`, NumPy, of at least the
        stage's blocks; copied.
      vgg: `{"c11": {"kernel": [3, 3, 3, 64], "bias": [64]}, ...}`, NumPy.
      statistics: `{"r42": {"mean": [C], "std": [C]}, ...}`, NumPy.
      learning_rate: of Adam.
      device: `cpu` or `cuda`.

    Returns:
      A function of images and alpha that takes one step and returns the loss before it.
    """
    objective = Objective(stage, parameters, vgg, statistics).to(device)
    optimizer = torch.optim.Adam(objective.autoencoder.parameters(), learning_rate)

    def step(images: Tensor, alpha: float) -> float:
        optimizer.zero_grad()
        loss = objective(images, alpha, targets_without_grad=False).mean()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def published_scorer(
    stage: StageSpec,
    parameters: Parameters,
    vgg: Mapping[str, Parameters],
    statistics: Mapping[str, Parameters],
    device: str,
) -> Scorer:
    """Makes the scoring function that goes with `published`."""
    objective = Objective(stage, parameters, vgg, statistics).to(device)

    @torch.no_grad()
    def score(images: Tensor) -> Tensor:
        return objective(images, 1.0, targets_without_grad=False).cpu()

    return score


def _tuned_objective(
    stage, parameters, vgg, statistics, device, precision, compiled
) -> tuple[Objective, Callable]:
    """Builds what both tuned functions run: the modules, and their forward."""
    if compiled and device == "cpu":
        _require_cpp_compiler()
    objective = Objective(stage, parameters, vgg, statistics)
    objective = objective.to(device, memory_format=torch.channels_last)
    half = precision == "bfloat16"
    if half:
        for perceptual in objective.perceptual:
            for convolution in perceptual.vgg.values():
                convolution.to(torch.bfloat16)  # frozen: cast once, not every step

    def forward(images, alpha):
        with torch.autocast(device, torch.bfloat16, enabled=half):
            return objective(images, alpha, targets_without_grad=True)

    return objective, forward


def tuned(
    stage: StageSpec,
    parameters: Parameters,
    vgg: Mapping[str, Parameters],
    statistics: Mapping[str, Parameters],
    learning_rate: float,
    device: str,
    precision: str,
    compiled: bool,
) -> Step:
    """Makes a train step tuned as far as PyTorch goes without changing the method.

    channels_last, autocast, the target's features under no_grad, cuDNN's fastest
    algorithms, fused Adam, nothing read back. Compiled, forward and loss are one graph
    and their backward another, replayed as CUDA graphs on CUDA; the first calls
    compile.

    Args:
      stage: see `published`, as all up to `device`.
      parameters: copied.
      vgg: copied.
      statistics: copied.
      learning_rate: of Adam.
      device: `cpu` or `cuda`.
      precision: `bfloat16`, or `float32` with PyTorch's own settings.
      compiled: whether through torch.compile. On CUDA always; on CPU its code around
        the convolutions is slower than the eager kernels (measured, PyTorch 2.13).

    Returns:
      As `published`, the loss being a tensor on the device.

    Raises:
      DpaError: to be compiled on a CPU without a C++ compiler.
    """
    objective, forward = _tuned_objective(
        stage, parameters, vgg, statistics, device, precision, compiled
    )
    optimizer = torch.optim.Adam(
        objective.autoencoder.parameters(), learning_rate, fused=True
    )

    def mean_loss(images: Tensor, alpha: Tensor) -> Tensor:
        return forward(images, alpha).mean()

    if compiled:
        mean_loss = torch.compile(
            mean_loss, mode="reduce-overhead", fullgraph=True, dynamic=False
        )
    # a tensor, since every new number would be compiled anew
    alpha_on_device = torch.ones((), device=device)

    def step(images: Tensor, alpha: float) -> Tensor:
        with _cudnn_benchmark():
            if compiled:
                torch.compiler.cudagraph_mark_step_begin()
            alpha_on_device.fill_(alpha)
            images = images.contiguous(memory_format=torch.channels_last)
            loss = mean_loss(images, alpha_on_device)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss.detach().clone()  # the next replay overwrites it

    return step


def tuned_scorer(
    stage: StageSpec,
    parameters: Parameters,
    vgg: Mapping[str, Parameters],
    statistics: Mapping[str, Parameters],
    device: str,
    precision: str,
    compiled: bool,
) -> Scorer:
    """Makes the scoring function that goes with `tuned`.

    On CPU compiling pays here: weights are constants, packed once for oneDNN.
    """
    objective, forward = _tuned_objective(
        stage, parameters, vgg, statistics, device, precision, compiled
    )
    objective.eval().requires_grad_(False)

    def scores(images: Tensor) -> Tensor:
        return forward(images, 1.0)

    if compiled:
        how = (
            {"options": {"freezing": True}}
            if device == "cpu"
            else {"mode": "reduce-overhead"}
        )
        scores = torch.compile(scores, fullgraph=True, dynamic=False, **how)

    @torch.no_grad()
    def score(images: Tensor) -> Tensor:
        with _cudnn_benchmark():
            return scores(images.contiguous(memory_format=torch.channels_last)).cpu()

    return score


@contextlib.contextmanager
def _cudnn_benchmark():
    """Lets cuDNN choose its fastest algorithms, here alone."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _require_cpp_compiler():
    name = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(name) is None:
        raise errors.DpaError(
            f"torch.compile on a CPU needs a C++ compiler and there is no {name}: "
            "install one, name it in CXX, or leave the tuned baseline out"
        )

"""In which ways a stage's program may be arranged, all right but for rounding."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from dpa_jax.devices.platform import Platform
from dpa_jax.ops import convolution, fused_block
from dpa_jax.step import StepSpec


@dataclasses.dataclass(frozen=True)
class Arrangement:
    """One of them; by default what the rules of each kind of device choose.

    Attributes:
      backend: whose arrangement of convolutions, see `Compute`; empty for what is
        usual on the device.
      fill: see `Compute`.
      blocks: see `Compute`.
      mapped_by: see `StepSpec`.
      batch_parts: see `programs.compile_stage`; config.batch_parts comes before it.
      caches_targets: whether features of the images are kept where they may be.
      options: whether XLA's options of the platform are used.
    """

    backend: str = ""
    fill: int = 0
    blocks: bool = True
    mapped_by: str = ""
    batch_parts: int = 0
    caches_targets: bool = True
    options: bool = True

    def changes(self) -> list[str]:
        """Returns what is not as usual, as `field=value`."""
        usual = Arrangement()
        return [
            f"{name}={value}"
            for name, value in vars(self).items()
            if value != getattr(usual, name)
        ]


def alternatives(
    spec: StepSpec,
    platform: Platform,
    *,
    share: int,
    chooses_parts: bool,
    chooses_targets: bool,
) -> Mapping[str, tuple[Any, ...]]:
    """Returns what fields of an `Arrangement` may be besides their defaults.

    Nothing on a CPU: there each choice was measured, and grouped convolutions and
    convolutions in a loop are slower by far.

    Args:
      spec: of a step.
      platform: to compile for.
      share: images of a batch on one device.
      chooses_parts: whether the parts of a batch are free.
      chooses_targets: whether the targets are cached, and may as well not be.
    """
    if platform.backend == "cpu":
        return {}
    found: dict[str, tuple[Any, ...]] = {
        "blocks": (False,) if spec.compute.runs_blocks and _fits_block(spec) else (),
        "backend": ("gpu",) if spec.compute.backend == "cuda" else (),
        "fill": convolution.fills(spec.compute.backend)[1:],
        "mapped_by": ("scan",) if spec.members > 1 else (),
        "batch_parts": (2,) if chooses_parts and share % 2 == 0 else (),
        "caches_targets": (False,) if chooses_targets else (),
        "options": (False,) if platform.options else (),
    }
    return {name: values for name, values in found.items() if values}


def _fits_block(spec: StepSpec) -> bool:
    """Returns whether there is a kernel for a residual block of the networks."""
    networks, side = spec.architecture, spec.stage.resolution
    while side >= networks.base:
        for width in networks.encoder_width(side), networks.decoder_width(side):
            if fused_block.fits((1, side, side, width), width):
                return True
        side //= 2
    return False

"""Encoder and decoder of every growth stage (section 3 of the paper; method 2).

A stage's module holds only the blocks that the stage computes. They are named by the
resolution they work at, so that linen gives a block the same initial value whichever
stage creates it, and growing is a union of parameters by name.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax import linen as nn

from dpa_jax import extensions, images
from dpa_jax.config import lowest_resolution
from dpa_jax.ops import fused_block
from dpa_jax.ops.activations import SLOPE, leaky_relu
from dpa_jax.ops.compute import Compute
from dpa_jax.ops.convolution import Conv
from dpa_jax.stages import Stage

KINDS = ("residual18", "residual9")


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The static description of both networks; hashable.

    Attributes:
      kind: one of `KINDS`, or `module:function`; see `networks`.
      resolution: the highest, in pixels.
      image_channels: 1 or 3.
      latent_resolution: side of the latent, 1 or a power of two.
      latent_channels: channels of the latent.
      encoder_channels: at each resolution from `resolution` down to the lowest.
      decoder_channels: at each resolution from the lowest up to `resolution`.
    """

    kind: str
    resolution: int
    image_channels: int
    latent_resolution: int
    latent_channels: int
    encoder_channels: tuple[int, ...]
    decoder_channels: tuple[int, ...]

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict) -> "Architecture":
        """Takes what it needs from a validated configuration."""
        return cls(
            kind=config.model.kind,
            resolution=config.data.resolution,
            image_channels=config.data.channels,
            latent_resolution=config.model.latent_resolution,
            latent_channels=config.model.latent_channels,
            encoder_channels=tuple(config.model.encoder_channels),
            decoder_channels=tuple(config.model.decoder_channels),
        )

    @property
    def base(self) -> int:
        """The lowest resolution of a block."""
        return lowest_resolution(self.latent_resolution)

    @property
    def deep(self) -> bool:
        """Whether blocks have their second, not resampling, half."""
        return self.kind == "residual18"

    def encoder_width(self, resolution: int) -> int:
        """Returns the encoder's channels at `resolution`."""
        return self.encoder_channels[int(math.log2(self.resolution // resolution))]

    def decoder_width(self, resolution: int) -> int:
        """Returns the decoder's channels at `resolution`."""
        return self.decoder_channels[int(math.log2(resolution // self.base))]


class PreAct(nn.Module):
    """A pre-activation residual block (He et al., 2016) without normalisation.

    Attributes:
      features: channels out.
      resample: applied after the first activation and on the skip connection; None for
        none.
      compute: how.
    """

    features: int
    resample: Callable[[jax.Array], jax.Array] | None = None
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, H, W, c]` to `[B, H', W', features]`."""
        conv = functools.partial(Conv, self.features, compute=self.compute)
        x, resample = x.astype(self.compute.dtype), self.resample
        is_plain = resample is None
        first = conv(3, is_activated=is_plain, name="conv_0")
        second = conv(3, is_activated=True, name="conv_1")
        y, x = (x, x) if resample is None else (resample(leaky_relu(x)), resample(x))
        if self.compute.runs_blocks and fused_block.fits(y.shape, self.features):
            weights = [
                tuple(a.astype(y.dtype) for a in one.parameters(self.features))
                for one in (first, second)
            ]
            return fused_block.block(y, *weights, None if is_plain else x, SLOPE)
        if is_plain:
            y, x = first(y, passes=True)
        else:
            y = first(y)
        if x.shape[-1] != self.features:
            x = conv(1, name="skip")(x)
        return second(y, x)


class FromImage(nn.Module):
    """The encoder's entry at a resolution: image to features."""

    features: int
    depth: int
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps images `[B, R, R, C]` to `[B, R, R, features]`."""
        x = Conv(self.features, 3, compute=self.compute, name="conv")(x)
        for i in range(self.depth):
            x = PreAct(self.features, compute=self.compute, name=f"preact_{i}")(x)
        return x


class ActConv(nn.Module):
    """An activation and a convolution: what meets the latent and ends the decoder."""

    features: int
    size: int
    padding: str | tuple[tuple[int, int], ...] = "SAME"
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, H, W, c]` to `[B, H', W', features]`, linear at the end."""
        conv = Conv(
            self.features,
            self.size,
            self.padding,
            self.compute,
            is_activated=True,
            name="conv",
        )
        return conv(x)


class Block(nn.Module):
    """A resampling residual block and, in residual18, a plain one."""

    features: int
    resample: Callable[[jax.Array], jax.Array]
    resample_name: str
    deep: bool
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, H, W, c]` to `[B, H', W', features]`."""
        resample = self.resample
        if resample is images.upsample2 and self.compute.backend == "cuda":
            # as well before the activation, which is the kernel's then
            x, resample = images.upsample2(x), None
        x = PreAct(self.features, resample, self.compute, name=self.resample_name)(x)
        if self.deep:
            x = PreAct(self.features, compute=self.compute, name="preact")(x)
        return x


class Encoder(nn.Module):
    """The encoder of one stage.

    Attributes:
      architecture: the static shape.
      stage: the stage of growth.
      compute: how.
    """

    architecture: Architecture
    stage: Stage
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: jax.Array, alpha=1.0) -> jax.Array:
        """Encodes images.

        Args:
          x: float `[B, R, R, C]` in [-1, 1], R the stage's resolution.
          alpha: share of the new blocks in a transition, from 0 to 1.

        Returns:
          The latent `[B, r, r, c]`, r the latent resolution.
        """
        a, top = self.architecture, self.stage.resolution

        def from_image(resolution, x):
            return FromImage(
                a.encoder_width(resolution),
                2 if a.deep else 1,
                self.compute,
                name=f"from_image_{resolution}",
            )(x)

        def block(resolution, x):
            return Block(
                a.encoder_width(resolution // 2),
                images.average_pool2,
                "down",
                a.deep,
                self.compute,
                name=f"block_{resolution}",
            )(x)

        x = x.astype(self.compute.dtype)
        resolution = top
        if self.stage.transition:
            old = from_image(top // 2, images.average_pool2(x))
            new = block(top, from_image(top, x))
            x = _fade(old, new, alpha)
            resolution //= 2
        else:
            x = from_image(top, x)
        while resolution > a.base:
            x = block(resolution, x)
            resolution //= 2
        if a.latent_resolution == 1:
            return ActConv(a.latent_channels, 4, "VALID", self.compute, name="latent")(
                x
            )
        return PreAct(a.latent_channels, compute=self.compute, name="latent")(x)


class Decoder(nn.Module):
    """The decoder of one stage; see `Encoder`."""

    architecture: Architecture
    stage: Stage
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, z: jax.Array, alpha=1.0) -> jax.Array:
        """Decodes latents `[B, r, r, c]` into float32 images `[B, R, R, C]`."""
        a, top = self.architecture, self.stage.resolution

        def to_image(resolution, x):
            return ActConv(
                a.image_channels, 3, compute=self.compute, name=f"to_image_{resolution}"
            )(x)

        def block(resolution, x):
            return Block(
                a.decoder_width(resolution),
                images.upsample2,
                "up",
                a.deep,
                self.compute,
                name=f"block_{resolution}",
            )(x)

        width = a.decoder_width(a.base)
        x = z.astype(self.compute.dtype)
        if a.latent_resolution == 1:
            # a convolution of a 1x1 latent padded by 3 gives 4x4
            x = ActConv(width, 4, ((3, 3), (3, 3)), self.compute, name="latent")(x)
        else:
            x = PreAct(width, compute=self.compute, name="latent")(x)
        resolution = 2 * a.base
        while resolution < top or (resolution == top and not self.stage.transition):
            x = block(resolution, x)
            resolution *= 2
        if self.stage.transition:
            old = images.upsample2(to_image(top // 2, x))
            new = to_image(top, block(top, x))
            x = _fade(old, new, alpha)
        else:
            x = to_image(top, x)
        return x.astype(self.compute.wide)


def _fade(old: jax.Array, new: jax.Array, alpha) -> jax.Array:
    alpha = jnp.asarray(alpha, old.dtype)
    return (1 - alpha) * old + alpha * new


def networks(
    architecture: Architecture, stage: Stage, compute: Compute
) -> tuple[nn.Module, nn.Module]:
    """Returns the encoder and the decoder of a stage.

    Those of `module:function` are what that returns for the same arguments: modules
    that are called as `Encoder` and `Decoder` are, `(x, alpha)` to the latent
    `[B, r, r, c]` and `(z, alpha)` to the image. Their parameters lie in submodules
    that are named by resolution: a stage takes over those of the stage before that have
    the same name.
    """
    if extensions.is_extension(architecture.kind):
        make = extensions.load(architecture.kind, "model.kind")
        return make(architecture, stage, compute)
    return Encoder(architecture, stage, compute), Decoder(architecture, stage, compute)


def reconstruct(
    parameters,
    x: jax.Array,
    alpha,
    *,
    architecture: Architecture,
    stage: Stage,
    compute: Compute,
    per_image: Any = None,
) -> tuple[jax.Array, jax.Array]:
    """Runs the autoencoder of a stage.

    Args:
      parameters: `{"encoder": {...}, "decoder": {...}}` with at least the stage's
        blocks.
      x: float `[B, R, R, C]` in [-1, 1].
      alpha: see `Encoder`.
      architecture: static.
      stage: static.
      compute: how.
      per_image: biases of both networks for each image; see `Conv`.

    Returns:
      The latents `[B, r, r, c]` and the reconstructions, float32 `[B, R, R, C]`.
    """
    encoder, decoder = networks(architecture, stage, compute)

    def variables(network):
        rows = {} if per_image is None else {"per_image": per_image[network]}
        return {"params": parameters[network], **rows}

    z: Any = encoder.apply(variables("encoder"), x, alpha)
    y: Any = decoder.apply(variables("decoder"), z, alpha)
    return z, y

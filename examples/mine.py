"""Functions of somebody who extends dpa_jax; configurations name them `mine:NAME`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from dpa_jax.backbones.base import Backbone
from dpa_jax.ops.convolution import Conv


def edges(comparison):
    """A loss, or a score: how far the slopes of an image are from those wanted."""

    def slopes(x):
        return jnp.diff(x, axis=1)[:, :, :-1], jnp.diff(x, axis=2)[:, :-1]

    rows, columns = slopes(comparison.image - comparison.reconstruction)
    return (jnp.abs(rows) + jnp.abs(columns)).mean((1, 2, 3))


def brightness(comparison):
    """A map: where a reconstruction is darker or brighter than its image."""
    return jnp.abs(comparison.image - comparison.reconstruction).max(axis=3)


def gratings():
    """A backbone: the energy of sixteen gratings, fine ones and coarse ones."""
    y, x = np.mgrid[-3:4, -3:4] / 3

    def load(location, layers):
        seed = int(location.removeprefix("random:"))
        angles = np.random.default_rng(seed).uniform(0, np.pi, 16)
        phase = 4 * (x[..., None] * np.cos(angles) + y[..., None] * np.sin(angles))
        window = np.exp(-2 * (x**2 + y**2))[..., None]
        kernels = np.stack([window * np.cos(phase), window * np.sin(phase)])
        return {"bank": {"kernels": kernels[:, :, :, None].astype(np.float32)}}

    def apply(weights, inputs, layers, backend):
        kernels, found = weights["bank"]["kernels"], {}
        for name, size in (("fine", 1), ("coarse", 2)):
            if name in layers:
                small = nn.avg_pool(inputs, (size, size), (size, size))
                parts = [
                    jax.lax.conv_general_dilated(
                        small.astype(k.dtype),
                        k,
                        (1, 1),
                        "SAME",
                        dimension_numbers=("NHWC", "HWIO", "NHWC"),
                    )
                    for k in kernels
                ]
                found[name] = jnp.sqrt(sum(p**2 for p in parts) + 1e-6)
        return found

    return Backbone(
        name="gratings",
        layers=("fine", "coarse"),
        load=load,
        apply=apply,
        preprocess=lambda images: images.mean(-1, keepdims=True),
    )


class PlainEncoder(nn.Module):
    """Convolutions and halvings down to 4 pixels; named by the resolution they see."""

    features: int
    compute: object

    @nn.compact
    def __call__(self, x, alpha=1.0):
        """Maps images to latents; nothing here fades in by `alpha`."""
        side = x.shape[1]
        x = Conv(16, 1, compute=self.compute, name=f"from_image_{side}")(x)
        while side > 4:
            x = nn.silu(Conv(16, 3, compute=self.compute, name=f"level_{side}")(x))
            x, side = nn.avg_pool(x, (2, 2), (2, 2)), side // 2
        return Conv(self.features, 1, compute=self.compute, name="latent")(x)


class PlainDecoder(nn.Module):
    """The same upwards."""

    features: int
    resolution: int
    compute: object

    @nn.compact
    def __call__(self, z, alpha=1.0):
        """Maps latents to images, in float32 whatever is computed in."""
        x = Conv(16, 1, compute=self.compute, name="latent")(z)
        while (side := 2 * x.shape[1]) <= self.resolution:
            x = jax.image.resize(x, (len(x), side, side, 16), "bilinear")
            x = nn.silu(Conv(16, 3, compute=self.compute, name=f"level_{side}")(x))
        name = f"to_image_{self.resolution}"
        x = Conv(self.features, 3, compute=self.compute, name=name)(x)
        return x.astype(self.compute.wide)


def plain(architecture, stage, compute):
    """A network: the encoder and the decoder of a stage."""
    return (
        PlainEncoder(architecture.latent_channels, compute),
        PlainDecoder(architecture.image_channels, stage.resolution, compute),
    )


def amsgrad(learning_rate):
    """An optimizer, for a rate or a schedule of it."""
    return optax.amsgrad(learning_rate)

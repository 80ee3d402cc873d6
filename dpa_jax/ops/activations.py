"""ReLU and LeakyReLU whose gradients need only their results.

JAX's own keep the argument for the gradient, so that a convolution's result has two
readers and XLA cannot fold the activation into the convolution's kernel. The sign of
the result tells the same: at 0 both have the slope of the negative side, as in PyTorch.
"""

import functools

import jax
import jax.numpy as jnp

SLOPE = 0.2  # of the published networks' LeakyReLU


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def leaky_relu(x: jax.Array, slope: float = SLOPE) -> jax.Array:
    """Returns `x` where positive and `slope * x` elsewhere, slope from 0 to 1."""
    return jnp.maximum(x, slope * x)


@leaky_relu.defjvp
def _leaky_relu_jvp(slope, primals, tangents):
    y = leaky_relu(*primals, slope)
    (tangent,) = tangents
    return y, jnp.where(y > 0, tangent, slope * tangent)


@jax.custom_jvp
def relu(x: jax.Array) -> jax.Array:
    """Returns `x` where positive and 0 elsewhere."""
    return jnp.maximum(x, 0)


@relu.defjvp
def _relu_jvp(primals, tangents):
    y = relu(*primals)
    (tangent,) = tangents
    # y > 0 would do, but XLA turns it into x > 0: a second reader of x again
    return y, jnp.where(y != 0, tangent, 0)

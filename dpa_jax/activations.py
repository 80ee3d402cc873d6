"""ReLU and LeakyReLU whose gradients need only their results.

JAX's own keep the argument for the gradient, so that a convolution's result has two
readers and XLA cannot fold the activation into the convolution's kernel. The sign of
the result tells the same: at 0 both have the slope of the negative side, as in PyTorch.
"""

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def leaky_relu(x: jax.Array, slope: float = 0.2) -> jax.Array:
    """Returns `x` where positive and `slope * x` elsewhere, slope from 0 to 1."""
    return jnp.maximum(x, slope * x)


def _forward(x, slope):
    y = leaky_relu(x, slope)
    return y, y


def _backward(slope, y, gradient):
    return (jnp.where(y > 0, gradient, slope * gradient),)


leaky_relu.defvjp(_forward, _backward)


@jax.custom_vjp
def relu(x: jax.Array) -> jax.Array:
    """Returns `x` where positive and 0 elsewhere."""
    return jnp.maximum(x, 0)


def _relu_forward(x):
    y = relu(x)
    return y, y


def _relu_backward(y, gradient):
    return (jnp.where(y > 0, gradient, 0),)


relu.defvjp(_relu_forward, _relu_backward)

"""Triton kernels of our own for NVIDIA GPUs, written with Pallas.

JAX has deprecated Pallas's Triton in 0.11 and has it still in 0.12. Where it is gone
nothing here is used, and cuDNN convolves: see `kernel_check`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

try:
    from jax.experimental import pallas
    from jax.experimental.pallas import triton
except ImportError:
    triton: Any = None

is_available = triton is not None


def choose(kernel: Callable[..., Any], others: Callable[..., Any], *arrays: Any) -> Any:
    """Calls a kernel where the program runs on an NVIDIA GPU, and `others` elsewhere.

    Which it is turns out when the program is lowered, for a device that need not be at
    hand. Both must return the same but for rounding.
    """
    return jax.lax.platform_dependent(*arrays, cuda=kernel, default=others)


def launch(
    body: Callable[..., None],
    arrays: Sequence[jax.Array],
    results: Sequence[tuple[int, Any]],
    programs: int,
    *,
    name: str,
    warps: int = 4,
    stages: int = 2,
    interpret: bool = False,
) -> list[jax.Array]:
    """Runs a kernel.

    Args:
      body: of one program; given a flat reference to each array and to each result.
      arrays: that it reads.
      results: size and dtype of each array that it writes.
      programs: how many run, each with its own `program()`.
      name: of the kernel, for profiles.
      warps: of 32 threads in a program.
      stages: of loads that are under way in a loop at once.
      interpret: whether to run it by JAX, on any device, to test it.

    Returns:
      The results, flat.
    """
    return pallas.pallas_call(
        body,
        [jax.ShapeDtypeStruct((size,), dtype) for size, dtype in results],
        grid=(programs,),
        compiler_params=triton.CompilerParams(num_warps=warps, num_stages=stages),
        interpret=interpret,
        name=name,
    )(*(array.ravel() for array in arrays))


def reaches(*shape: int) -> bool:
    """Returns whether places in an array of that shape are numbers of 32 bits."""
    return math.prod(shape) < 2**31


def program() -> jax.Array:
    """Returns the number of the running program."""
    return pallas.program_id(0)


def wait(interpret: bool) -> None:
    """Lets a program's threads go on when all have stored what they had to.

    Args:
      interpret: see `launch`; JAX, which has no threads, needs not wait.
    """
    if not interpret:
        triton.debug_barrier()


def load(ref: Any, place: jax.Array, exists: jax.Array | None = None) -> jax.Array:
    """Loads numbers from their places; 0 where `exists` is false."""
    other = None if exists is None else jnp.zeros((), ref.dtype)
    return triton.load(ref.at[place], mask=exists, other=other)


def store(
    ref: Any, place: jax.Array, values: jax.Array, exists: jax.Array | None = None
) -> None:
    """Stores numbers at their places, but where `exists` is false."""
    triton.store(ref.at[place], values.astype(ref.dtype), mask=exists)


def numbers(count: int, axis: int | None = None) -> jax.Array:
    """Returns 0 to `count - 1`, a power of two: `[count]`, or along an axis of two."""
    shape = (count,) if axis is None else (count, 1) if axis == 0 else (1, count)
    return jax.lax.broadcasted_iota(jnp.int32, shape, axis or 0)


def split(number: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Returns quotient and remainder of what is not negative.

    By plain division: from Python's Triton cannot tell what lies side by side, and
    would load 2 bytes at a time instead of 16.
    """
    divisor = jnp.int32(size)
    return jax.lax.div(number, divisor), jax.lax.rem(number, divisor)


def dot(a: jax.Array, b: jax.Array, axis: int = 1) -> jax.Array:
    """Multiplies matrices, summing over an axis of the first; float32."""
    exact = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    dimensions = (((axis,), (0,)), ((), ()))
    return jax.lax.dot_general(
        a, b, dimensions, precision=exact, preferred_element_type=jnp.float32
    )


def power_of_two(least: int) -> int:
    """Returns the smallest power of two that is not below `least`."""
    return 1 << (least - 1).bit_length()


def ceil_div(count: int, size: int) -> int:
    """Returns how many of a size make up a count, the last perhaps in part."""
    return -(-count // size)

"""How numbers are computed: the precision, and the kind of device."""

import dataclasses

import jax
import jax.numpy as jnp

PRECISIONS = ("auto", "bfloat16", "tensorfloat32", "float32", "float64")


@dataclasses.dataclass(frozen=True)
class Compute:
    """Numeric format and arrangement of everything a program computes; hashable.

    Attributes:
      precision: `bfloat16`, `tensorfloat32`, `float32` or, for comparisons without
        rounding, `float64`, which needs `jax_enable_x64`.
      backend: `cpu`, `gpu`, `tpu` or `cuda`: whose arrangement of convolutions is used;
        see `arranged_for`. Each runs everywhere and gives the same result but for
        rounding; those of `cpu` and `cuda` have gradients of their own and take no
        forward-mode derivatives, and those of `cuda` no second ones.
      fill: channels that the autoencoder's convolutions fill, as far as they can, by
        taking pixels of a row together; 0 for what is usual on the backend.
      blocks: whether a residual block is one kernel where `cuda` has one for it, in
        bfloat16, or its convolutions are one each.
    """

    precision: str = "float32"
    backend: str = "cpu"
    fill: int = 0
    blocks: bool = True

    @property
    def dtype(self) -> jnp.dtype:
        """Activations and frozen weights."""
        narrow = self.precision == "bfloat16"
        return jnp.dtype(jnp.bfloat16) if narrow else self.wide

    @property
    def wide(self) -> jnp.dtype:
        """Parameters, images and losses: float32 at least."""
        return jnp.dtype(jnp.float64 if self.precision == "float64" else jnp.float32)

    @property
    def runs_blocks(self) -> bool:
        """Whether residual blocks are one kernel: of twice the bytes none has room."""
        return self.blocks and (self.backend, self.precision) == ("cuda", "bfloat16")

    def matmul_precision(self):
        """Returns the context in which matrix products keep what `precision` promises.

        NVIDIA GPUs and TPUs would otherwise multiply float32 with fewer bits.
        """
        return jax.default_matmul_precision(
            {"bfloat16": "default", "tensorfloat32": "tensorfloat32"}.get(
                self.precision, "highest"
            )
        )


def arranged_for(backend: str, precision: str, has_kernels: bool) -> str:
    """Returns the arrangement that is usual on a kind of device.

    Args:
      backend: of the device, `cpu`, `gpu` or `tpu`.
      precision: see `Compute`.
      has_kernels: whether our kernels may be used on it; see `Platform`.

    Returns:
      With such kernels and in bfloat16 `cuda`, otherwise the backend.
    """
    return "cuda" if has_kernels and precision == "bfloat16" else backend


def resolve(precision: str, backend: str) -> str:
    """Resolves `auto`: bfloat16 on GPU and TPU, float32 on CPU."""
    if precision != "auto":
        return precision
    return "float32" if backend == "cpu" else "bfloat16"

"""A residual block of few channels, both convolutions of it, in one Triton kernel.

Forwards it reads its images and writes its result; backwards it computes what lay
between the convolutions once more, and reads and writes each activation once. Done
one by one, as `fused_convolution` does them, the two move two and a half times as much.

What a program has found between the convolutions it keeps in a few tiles of memory of
its own, small enough to stay in the caches, since Triton cannot look up neighbours in a
tile that it holds. It goes through its images from top to bottom, the first convolution
a row ahead of the second.
"""

import functools

import jax
import jax.numpy as jnp

from dpa_jax.ops import fused_convolution, triton, wide_pixels
from dpa_jax.ops.fused_convolution import activated

_KEPT = 2  # tiles between the convolutions
# Tiles as `fused_convolution` has them, and as many programs as an H100 holds at once
# by the registers and shared memory that they have as compiled; not timed yet
_FORWARD = {"tile": 128, "warps": 8, "stages": 2, "programs": 264}
_GRADIENTS = {"tile": 64, "warps": 8, "stages": 2, "programs": 132}


def fits(shape: tuple[int, ...], features: int) -> bool:
    """Returns whether a kernel takes `[B, H, W, c]` to `[B, H, W, features]`.

    In bfloat16: with numbers twice as large its tiles have no room in shared memory.
    """
    *_, height, width, channels = shape
    if not fused_convolution.FEWEST <= channels == features:
        return False
    if not fused_convolution.fits(shape, features):
        return False
    row = width // wide_pixels.count(channels)
    return all(_holds(how["tile"], height, row) for how in (_FORWARD, _GRADIENTS))


def _holds(tile: int, height: int, row: int) -> bool:
    """Returns whether a tile has whole images, or two rows: the second to be ahead."""
    return tile % (height * row) == 0 or tile % (2 * row) == 0


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def block(
    x: jax.Array,
    first: tuple[jax.Array, jax.Array],
    second: tuple[jax.Array, jax.Array],
    skip: jax.Array | None = None,
    slope: float = 1.0,
) -> jax.Array:
    """Computes a pre-activation residual block.

    Without `skip` it is `x + second(activation(first(activation(x))))`; with it `skip +
    second(activation(first(x)))`. Has a gradient in reverse mode, of the first order.

    Args:
      x: `[B, H, W, c]`, for which it `fits`.
      first: kernel `[3, 3, c, c]` and bias `[c]`, in the dtype of `x`.
      second: likewise.
      skip: `[B, H, W, c]`, likewise, or None.
      slope: of the activation, LeakyReLU, from 0 to 1.

    Returns:
      `[B, H, W, c]`.
    """
    run = functools.partial(forward_kernel, slope=slope)
    others = functools.partial(plain, slope=slope)
    return triton.choose(run, others, x, first, second, skip)


def _forward(x, first, second, skip, slope):
    return block(x, first, second, skip, slope), (x, first, second, skip)


def _backward(slope, saved, g):
    x, first, second, skip = saved
    is_plain = skip is None
    run = functools.partial(gradients_kernel, slope=slope, skips=is_plain)
    others = functools.partial(_plain_gradients, slope=slope, skips=is_plain)
    found = triton.choose(run, others, x, first, second, g)
    return *found, None if is_plain else g


block.defvjp(_forward, _backward)


def plain(x, first, second, skip=None, *, slope):
    """Computes what `block` does by JAX's own convolutions."""
    own_slope = slope if skip is None else 1.0
    h = fused_convolution.plain(x, *first, slope=own_slope)
    kernel, bias = second
    skip = x if skip is None else skip
    return fused_convolution.plain(h, kernel, bias, skip, slope)


def _plain_gradients(x, first, second, g, *, slope, skips):
    skip = None if skips else jnp.zeros_like(x)
    run = functools.partial(plain, skip=skip, slope=slope)
    return jax.vjp(run, x, first, second)[1](g)


# --- kernels


def forward_kernel(
    x: jax.Array,
    first: tuple[jax.Array, jax.Array],
    second: tuple[jax.Array, jax.Array],
    skip: jax.Array | None,
    *,
    slope: float,
    interpret: bool = False,
) -> jax.Array:
    """Computes `block` by the kernel; see there, and `triton.launch`."""
    own_slope = slope if skip is None else 1.0
    c = x.shape[-1]
    way = _Way(x.shape, **_FORWARD)

    def body(x_ref, *refs):
        program = triton.program()
        kernels, biases, skip_ref, (y_ref, kept_ref) = (
            refs[:2],
            refs[2:4],
            refs[4] if skip is not None else x_ref,
            refs[-2:],
        )
        bands = [wide_pixels.load_bands(kernel, c, c) for kernel in kernels]
        added = [wide_pixels.load_bias(bias, c, c) for bias in biases]

        def ahead(m, exists, _):
            windows = way.windows(x_ref, m, exists, own_slope)
            found = wide_pixels.convolved(windows, bands[0], added[0])
            way.keep(kept_ref, program, m, found)
            return 0

        def behind(m, exists, _):
            windows = list(way.kept(kept_ref, program, m, exists, slope))  # together
            total = wide_pixels.convolved(windows, bands[1], added[1])
            place, exists = wide_pixels.places(m, exists, way.pixels * c)
            total += triton.load(skip_ref, place, exists).astype(jnp.float32)
            triton.store(y_ref, place, total, exists)
            return 0

        way.go(program, ahead, behind, (0, 0), interpret)

    arrays = [x, *_transposed(first, second)] + ([] if skip is None else [skip])
    results = [(x.size, x.dtype), (way.kept_size, x.dtype)]
    y, _ = way.launch(body, arrays, results, "block", interpret)
    return y.reshape(x.shape)


def _transposed(first, second):
    return [k.transpose(3, 0, 1, 2) for k, _ in (first, second)] + [first[1], second[1]]


def gradients_kernel(
    x: jax.Array,
    first: tuple[jax.Array, jax.Array],
    second: tuple[jax.Array, jax.Array],
    g: jax.Array,
    *,
    slope: float,
    skips: bool,
    interpret: bool = False,
):
    """Computes all gradients of `block` but that of `skip`, which is `g`.

    Args:
      x: see `block`, as all up to `second`.
      first: see there.
      second: see there.
      g: gradient of the result, `[B, H, W, c]`.
      slope: see `block`.
      skips: whether `x` is the skip connection and is activated.
      interpret: see `triton.launch`.

    Returns:
      Gradients of `x`, of `first` and of `second`.
    """
    c = x.shape[-1]
    own_slope = slope if skips else 1.0
    way = _Way(x.shape, **_GRADIENTS)
    pixels, size = way.pixels, wide_pixels.sums_size(c, c)

    def body(x_ref, g_ref, first_ref, second_ref, bias_ref, *results):
        by_x_ref, sums_ref, kept_ref = results
        program = triton.program()
        bands = wide_pixels.load_bands(first_ref, c, c)
        turned = [
            wide_pixels.load_turned_bands(k, c, c) for k in (first_ref, second_ref)
        ]
        added = wide_pixels.load_bias(bias_ref, c, c)

        def ahead(m, exists, sums):
            seen = way.windows(x_ref, m, exists, own_slope)
            h = wide_pixels.convolved(seen, bands, added).astype(x.dtype)
            total, sums = wide_pixels.gradients(
                way.windows(g_ref, m, exists),
                turned[1],
                activated(h, slope),
                sums,
                way.is_own(program, m) if way.lead else None,
            )
            way.keep(kept_ref, program, m, jnp.where(h > 0, total, slope * total))
            return sums

        def behind(m, exists, sums):
            place, is_there = wide_pixels.places(m, exists, pixels * c)
            own = triton.load(x_ref, place, is_there)
            total, sums = wide_pixels.gradients(
                way.kept(kept_ref, program, m, exists),
                turned[0],
                activated(own, own_slope),
                sums,
            )
            if skips:
                total = jnp.where(own > 0, total, slope * total)
                total += triton.load(g_ref, place, is_there).astype(jnp.float32)
            triton.store(by_x_ref, place, total, is_there)
            return sums

        sums = wide_pixels.no_sums(c, c), wide_pixels.no_sums(c, c)
        sums = way.go(program, ahead, behind, sums, interpret)
        for number, found in enumerate(sums):
            place = (2 * program + 1 - number) * size
            wide_pixels.store_sums(sums_ref, place, found, c, c, interpret)

    kernels = _transposed(first, second)
    sums = 2 * way.programs * size, jnp.float32
    results = [(x.size, x.dtype), sums, (way.kept_size, x.dtype)]
    by_x, sums, _ = way.launch(
        body, [x, g, *kernels[:3]], results, "block_gradients", interpret
    )
    by_both = wide_pixels.added_up(sums.reshape(way.programs, 2, size), c, c, x.dtype)
    return by_x.reshape(x.shape), *by_both


class _Way:
    """How a program goes through its images, wide pixel by wide pixel.

    Attributes:
      pixels: of a wide one.
      tile: wide pixels of a turn.
      turns: of a program.
      programs: how many there are.
      lead: by how many wide pixels the first convolution is ahead; 0 where tiles hold
        whole images.
      kept_size: numbers that all programs keep between the convolutions.
    """

    def __init__(self, shape, *, tile: int, programs: int, **how: int):
        _, self._height, width, c = self._shape = shape
        self.pixels = wide_pixels.count(c)
        self._row = width // self.pixels
        self._count = shape[0] * self._height * self._row
        self.tile, self.turns, self.programs, self._how = wide_pixels.shared_out(
            self._count, tile, programs, **how
        )
        is_whole = self.tile % (self._height * self._row) == 0
        self.lead = 0 if is_whole else self.tile - self._row
        self.kept_size = self.programs * _KEPT * self.tile * self.pixels * c

    def launch(self, body, arrays, results, name, interpret):
        return triton.launch(
            body,
            arrays,
            results,
            self.programs,
            name=name,
            interpret=interpret,
            **self._how,
        )

    def go(self, program, ahead, behind, carried, interpret):
        """Goes through the images of a program.

        Args:
          program: its number.
          ahead: of the first convolution; from the wide pixels of a turn, which of them
            there are, and what the turn before returned, to the same.
          behind: likewise, of the second; of pixels whose neighbours were ahead.
          carried: by both into their first turn.
          interpret: see `triton.launch`.

        Returns:
          What both returned last.
        """

        def numbered(start):
            m = start + triton.numbers(self.tile)
            return m, (m >= 0) & (m < self._count)

        def turn(number, carried):
            start = (program * self.turns + number) * self.tile
            before = ahead(*numbered(start + self.lead), carried[0])
            triton.wait(interpret)  # until all of it is kept
            # Within a condition, since Triton loads what a loop multiplies a turn too
            # early otherwise: it does not know that the same loop stores it. A JAX
            # for which that is not enough is found out by `kernel_check`
            after = jax.lax.cond(
                (number >= 0) & (start < self._count),
                lambda: behind(*numbered(start), carried[1]),
                lambda: carried[1],
            )
            triton.wait(interpret)  # until all of it is read
            return before, after

        return jax.lax.fori_loop(-1 if self.lead else 0, self.turns, turn, carried)

    def is_own(self, program, m):
        """Returns which wide pixels this program has, and no other."""
        size = self.tile * self.turns
        return (m >= program * size) & (m < (program + 1) * size)

    def windows(self, ref, m, exists, slope=1.0, where=lambda m: m):
        """Loads what wide pixels see, row by row, and activates it."""
        found = wide_pixels.load_windows(
            ref, m, self._shape, exists, self.pixels, where
        )
        return (activated(seen, slope) for seen in found)

    def _at(self, program, m):
        size = _KEPT * self.tile
        return program * size + (m & (size - 1))

    def keep(self, ref, program, m, values):
        """Stores what the second convolution is to see."""
        width = values.shape[1]
        place = (self._at(program, m) * width)[:, None] + triton.numbers(width, 1)
        triton.store(ref, place, values)

    def kept(self, ref, program, m, exists, slope=1.0):
        """Loads what wide pixels see of what was kept, likewise."""
        where = functools.partial(self._at, program)
        return self.windows(ref, m, exists, slope, where)

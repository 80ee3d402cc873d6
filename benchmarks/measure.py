"""What all benchmarks share: turns, the machine and its limits, tables, JSON."""

import argparse
import contextlib
import ctypes
import functools
import gc
import importlib.metadata
import math
import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from dpa_jax import errors, step
from dpa_jax.backbones import base
from dpa_jax.compiling import counting
from dpa_jax.ops.compute import Compute
from dpa_jax.storage import workdir

T = TypeVar("T")
K = TypeVar("K")
# what can be measured: so many steps of one implementation, waited for
Run = Callable[[int], Any]


def main(name: str, run: Callable[[list[str]], None], argv: list[str] | None) -> int:
    """Runs a benchmark as a program.

    Args:
      name: of the benchmark, to name errors by.
      run: given the arguments.
      argv: them; None takes those of the command line.

    Returns:
      The exit status: 0, 1 where it refuses to report, 2 for wrong arguments.
    """
    try:
        run(sys.argv[1:] if argv is None else argv)
    except errors.UsageError as error:
        print(f"benchmarks.{name}: {error}", file=sys.stderr)
        return 2
    except errors.DpaError as error:
        print(f"benchmarks.{name}: {error}", file=sys.stderr)
        return 1
    return 0


def arguments(name: str, doc: str | None) -> argparse.ArgumentParser:
    """Returns a parser with what every benchmark takes: `--out`."""
    parser = argparse.ArgumentParser(f"python -m benchmarks.{name}", description=doc)
    parser.add_argument("--out", metavar="FILE.json", help="where to write the result")
    return parser


def one_of(flag: str, wanted: str, known: Sequence[str]) -> list[str]:
    """Reads a list of names, separated by commas: `all`, `none` or some of `known`.

    Raises:
      UsageError: a name is not known.
    """
    if wanted in ("all", "none"):
        return [] if wanted == "none" else list(known)
    names = wanted.split(",")
    for name in names:
        if name not in known:
            raise errors.UsageError(
                f"{flag}: there is no {name!r}; it takes all, none or some of "
                f"{','.join(known)}"
            )
    return names


def share_gpu() -> None:
    """Leaves PyTorch half of a GPU's memory; call it before JAX is first used."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.45")


# --- turns


def sized(run: Run, unit: int, seconds: float) -> Callable[[], int]:
    """Chooses how many steps of a warmed-up function make about `seconds`.

    Args:
      run: takes a number of steps.
      unit: what that number must be a multiple of.
      seconds: of one turn; a turn is at least one unit.

    Returns:
      A turn: runs the steps and returns their number.
    """
    count = unit
    while True:
        begun = time.perf_counter()
        run(count)
        spent = time.perf_counter() - begun
        # short ones are dominated by what waiting costs: try again with more
        if spent > seconds / 4:
            break
        count *= 4
    count = unit * max(1, round(count * seconds / spent / unit))

    def turn() -> int:
        run(count)
        return count

    return turn


def take_turns(
    turns: Mapping[K, Callable[[], int]], repeats: int
) -> dict[K, list[float]]:
    """Times several implementations, one after the other, again and again.

    Args:
      turns: by name; each returns the number of steps it took and waits for them.
      repeats: how often each has its turn; the order is reversed every time.

    Returns:
      For each the seconds per step of its turns.
    """
    found: dict[K, list[float]] = {name: [] for name in turns}
    for number in range(repeats):
        names = list(turns) if number % 2 == 0 else list(turns)[::-1]
        for name in names:
            gc.collect()
            if jax.default_backend() == "cpu":
                time.sleep(0.2)  # for the threads of the one before to go to sleep
            begun = time.perf_counter()
            steps = turns[name]()
            found[name].append((time.perf_counter() - begun) / steps)
    return found


def finite(first: float, last: float) -> tuple[float, float]:
    """Returns two losses, which must be finite: time spent on NaN says nothing.

    Raises:
      DpaError: one is not.
    """
    for loss in (first, last):
        if not math.isfinite(loss):
            raise errors.DpaError(f"the loss is {loss} while measuring")
    return first, last


class CompileTime:
    """Seconds that JAX spent tracing and compiling within a `with` block."""

    def __enter__(self) -> "CompileTime":
        """Begins to listen."""
        self._spans: list[tuple[float, float]] = []
        jax.monitoring.register_event_time_span_listener(self._heard)
        return self

    def __exit__(self, *_) -> None:
        """Stops listening."""
        jax.monitoring.unregister_event_time_span_listener(self._heard)

    def _heard(self, event: str, start_time: float, end_time: float, **_) -> None:
        if event.startswith("/jax/core/compile/"):
            self._spans.append((start_time, end_time))

    @property
    def seconds(self) -> float:
        """Time in any span: one function is traced while another is."""
        total, reached = 0.0, 0.0
        for start, end in sorted(self._spans):
            total += max(0.0, end - max(start, reached))
            reached = max(reached, end)
        return total


# --- the machine and its limits


def machine() -> dict[str, Any]:
    """Describes processor, accelerators and versions."""
    found = workdir.environment(0)
    for name in ("ml-collections", "torch"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found["packages"][name] = importlib.metadata.version(name)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return {
        "cpu": _cpu_model(),
        "cores": usable or os.cpu_count(),
        "device": found["device_kind"],
        "devices": jax.device_count(),
        "backend": jax.default_backend(),
        "platform": found["platform"],
        "python": found["python"],
        "git_commit": found["git_commit"],
        "versions": found["packages"],
    }


def _cpu_model() -> str:
    path = pathlib.Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def load_before() -> float | None:
    """Returns how many processes wanted a core in the last minute; warns if many did.

    Call it before anything is computed. None where the system does not tell.
    """
    if not hasattr(os, "getloadavg"):
        return None
    load = os.getloadavg()[0]
    if load > 0.5:
        print(
            f"The machine is busy (load {load:.1f}): timings will be off, and those of "
            "implementations whose threads wait for one another most of all."
        )
    return load


def matmul_peak(precision: str, with_torch: bool) -> dict[str, float]:
    """Measures the rate of the machine's fastest known matrix product.

    Args:
      precision: as of a run.
      with_torch: whether to measure PyTorch's as well.

    Returns:
      TFLOP/s by library: a square of 8,192, or 2,048 on CPU, of normal numbers.
    """
    size = 2048 if jax.default_backend() == "cpu" else 8192
    compute = Compute(precision, jax.default_backend())
    shape = (size, size)
    a, b = (jax.random.normal(jax.random.key(i), shape, compute.dtype) for i in (0, 1))
    with compute.matmul_precision():
        multiply = jax.jit(jnp.matmul).lower(a, b).compile()

    def with_jax(count: int) -> None:
        product = multiply(a, b)
        for _ in range(count - 1):
            product = multiply(a, b)
        product.block_until_ready()

    runs: dict[str, Run] = {"jax": with_jax}
    if with_torch:
        from benchmarks import baselines

        runs["torch"] = baselines.matrix_product(size, precision)
    for run in runs.values():
        run(2)
    each = take_turns({name: sized(run, 1, 0.2) for name, run in runs.items()}, 5)
    work = 2 * size**3 / 1e12
    return {name: work / statistics.median(seconds) for name, seconds in each.items()}


def backbone_operations(
    spec: step.StepSpec, weights: base.Weights, batch_size: int, cached: bool
) -> float:
    """Counts the floating-point operations of the backbone in one step.

    The real images forward, unless their features are cached, the reconstructions
    forward, and the gradient with respect to these; at half the resolution as well in a
    transition with the smooth loss. The real ones' are shared by the members of a
    population. The autoencoder's own are a few percent more.
    """
    total = 0.0
    shapes = jax.eval_shape(lambda: weights)
    for loss, resolution in (
        (spec.loss.full, spec.stage.resolution),
        (spec.loss.half, spec.stage.resolution // 2),
    ):
        if loss is not None and loss.layers:
            x = jax.ShapeDtypeStruct((1, resolution, resolution, 3), jnp.float32)
            layers = tuple(name for name, _ in loss.layers)
            apply = functools.partial(_features, loss.backbone, layers)
            total += counting.operations(apply, shapes, x)
    passes = 2 * spec.members + (0 if cached else 1)
    return total * passes * batch_size


def _features(backbone, layers, weights, x):
    return backbone.apply(weights, x, layers, "")


# --- memory


def with_resident_peak(work: Callable[[], T]) -> tuple[T, int | None]:
    """Returns what `work` returns, and how far the process's memory rose meanwhile.

    What was there before does not count, so that of several implementations in one
    process each has its own. None where the system does not tell: only Linux does.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)  # what glibc keeps would be taken again unseen
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
        before = resident("VmRSS")
    except OSError:
        return work(), None
    result = work()
    return result, max(0, resident("VmHWM") - before)


def process_bytes() -> int | None:
    """Returns the memory that the process holds; None where the system does not tell.

    Only Linux does.
    """
    try:
        return resident("VmRSS")
    except OSError:
        return None


def device_bytes() -> int:
    """Returns the memory in use on a device; on CPU that of all live arrays."""
    found = jax.local_devices()[0].memory_stats()
    if found is not None:
        return found["bytes_in_use"]
    return sum(array.nbytes for array in jax.live_arrays())


def resident(field: str) -> int:
    """Returns a size that Linux keeps of this process, such as `VmRSS`, in bytes.

    Raises:
      OSError: the system does not tell.
    """
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


# --- results


def write(
    name: str,
    args: argparse.Namespace,
    argv: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    **more: Any,
) -> None:
    """Writes a result as JSON, atomically; without `--out` it writes nothing.

    Args:
      name: of the benchmark.
      args: its settings, all of which are recorded.
      argv: as given, for the command.
      rows: of the table.
      more: whatever else was measured.
    """
    if not args.out:
        return
    path = pathlib.Path(args.out)
    settings = {key: value for key, value in vars(args).items() if key != "out"}
    result = {
        "benchmark": name,
        "command": " ".join([f"python -m benchmarks.{name}", *map(_portable, argv)]),
        "machine": machine(),
        "settings": {key: _portable(value) for key, value in settings.items()},
        **more,
        "rows": list(rows),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        workdir.write_json(path, result)
    except OSError as error:
        raise errors.DpaError(f"cannot write {path}: {error.strerror}") from error


def _portable(value: Any) -> Any:
    """Leaves out where a file lies on this machine."""
    if not isinstance(value, str):
        return value
    flag, equals, location = value.rpartition("=")
    if os.path.isabs(location):
        location = pathlib.Path(location).name
    return f"{flag}{equals}{location}"


def show(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
    """Prints a table.

    Args:
      rows: what to print; a value that is None or absent is left blank.
      columns: of each field its format, such as `.2f`; a name after a space heads the
        column in the place of the field's.
    """
    heads = [form.partition(" ")[2] or field for field, form in columns.items()]
    cells = [
        [_cell(row.get(field), form) for field, form in columns.items()] for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    for line in ([heads] if rows else []) + cells:
        texts = zip(line, widths, columns.values(), strict=True)
        print("  ".join(_aligned(*text) for text in texts).rstrip())
    sys.stdout.flush()


def _cell(value: Any, form: str) -> str:
    return "" if value is None else format(value, form.partition(" ")[0])


def _aligned(text: str, width: int, form: str) -> str:
    return text.ljust(width) if form.startswith("s") else text.rjust(width)

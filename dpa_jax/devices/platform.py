"""The machine that a program is made for, as a value.

Made in one place and passed in, so that the program of any machine can be compiled and
tested on any other. Nothing else here asks JAX which backend it runs on.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dpa_jax import errors
from dpa_jax.devices import processes
from dpa_jax.ops import kernel_check

# Kinds of work that XLA captures in CUDA graphs, so that the hundreds of kernels of a
# step are launched as a few: its usual ones, and convolutions (benchmarks/results).
_GRAPHS = "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,CONVOLUTION"
# XLA's options that are faster here; experimental ones, which may be renamed.
OPTIONS: dict[str, dict[str, Any]] = {
    "gpu": {"xla_gpu_enable_command_buffer": _GRAPHS},
    "cpu": {
        # convolutions by Eigen rather than YNNPACK: 0.81 against 0.90 s a step at 64
        # pixels (two cores, batch 32, JAX 0.10.2)
        "xla_cpu_experimental_ynn_fusion_type": "",
        # fused kernels by LLVM directly rather than by MLIR: compiled in half the time,
        # run in the same
        "xla_cpu_use_fusion_emitters": False,
    },
}


@dataclasses.dataclass(frozen=True)
class Platform:
    """Devices, processes and memory of a machine, or of one that is not at hand.

    Attributes:
      backend: `cpu`, `gpu` or `tpu`.
      devices: of all processes, those of process 0 first.
      local_devices: of this process.
      memory: bytes of a device; on CPU of the machine or its container.
      host_memory: bytes of this process's machine or its container.
      options: XLA's, by name, that this compiler takes.
      refused_options: those that would be faster and that it does not know.
      has_kernels: whether our Triton kernels may be used on the devices.
      compiles_ahead: whether the next stage is compiled while one trains; on a CPU the
        compiler would take the cores that train.
      chunks_in_flight: how many chunks of steps the devices may be given at once.
        Virtual CPU devices share the threads of a few cores: those that wait for
        another device in one chunk leave it none for the next.
      group: the processes of the run.
    """

    backend: str
    devices: tuple[Any, ...]
    local_devices: tuple[Any, ...]
    memory: int
    host_memory: int
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    refused_options: tuple[str, ...] = ()
    has_kernels: bool = False
    compiles_ahead: bool = False
    chunks_in_flight: int = 2
    group: processes.ProcessGroup = dataclasses.field(
        default_factory=processes.ProcessGroup
    )

    @classmethod
    def here(cls, group: processes.ProcessGroup | None = None) -> "Platform":
        """Returns the machine that this process runs on.

        Args:
          group: the processes of the run, if there are several.
        """
        backend = jax.default_backend()
        group = group or processes.ProcessGroup()
        devices = jax.devices() if group.count > 1 else jax.local_devices()
        local = tuple(jax.local_devices())
        options, refused = usable_options(backend, _keeps_programs())
        host = host_memory()
        return cls(
            backend=backend,
            devices=tuple(sorted(devices, key=lambda d: (d.process_index, d.id))),
            local_devices=local,
            memory=host if backend == "cpu" else _device_memory(local[0]),
            host_memory=host,
            options=options,
            refused_options=refused,
            has_kernels=backend == "gpu" and _has_kernels(local[0], group),
            compiles_ahead=backend != "cpu",
            chunks_in_flight=1 if backend == "cpu" and len(devices) > 1 else 2,
            group=group,
        )

    @property
    def is_main(self) -> bool:
        """Whether this process owns the workdir and takes the decisions."""
        return self.group.is_main


def _has_kernels(device: Any, group: processes.ProcessGroup) -> bool:
    """Returns whether our kernels may be used, in all processes the same.

    Raises:
      DpaError: they may by process 0's device, and not by this one's.
    """
    own = kernel_check.run_on(device)
    are_used = group.decide(lambda: own)
    if are_used and not own:
        raise errors.DpaError(
            f"our kernels are right on a device of process 0 and not on {device}: let "
            "all processes have devices of one kind, or leave this one's machine out"
        )
    return are_used


@functools.cache
def usable_options(
    backend: str, keeps_programs: bool
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Returns the compiler options that this version of XLA takes, and the others.

    Each is tried on a program that does nothing.

    Args:
      backend: whose options.
      keeps_programs: whether compiled programs are kept on disk, as the user may have
        asked of JAX: then GPUs go without graphs, see `compilation_cache`.
    """
    if backend == "gpu" and keeps_programs:
        return {}, ()
    return try_options(OPTIONS.get(backend, {}))


def try_options(
    options: Mapping[str, Any],
    argument: jax.ShapeDtypeStruct | None = None,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Returns those of some compiler options that XLA takes, and the others' names.

    Args:
      options: by name.
      argument: of the program they are tried on, which may lie on devices that are not
        at hand; None takes the default device.
    """
    taken, refused = {}, []
    if argument is None:
        argument = jax.ShapeDtypeStruct((), jnp.float32)
    nothing = jax.jit(lambda x: x).lower(argument)
    for name, value in options.items():
        try:
            nothing.compile({name: value})
            taken[name] = value
        except (jax.errors.JaxRuntimeError, ValueError):
            refused.append(name)
    return taken, tuple(refused)


def _keeps_programs() -> bool:
    return bool(jax.config.values["jax_compilation_cache_dir"])


def _device_memory(device: Any) -> int:
    return (device.memory_stats() or {}).get("bytes_limit", 8 << 30)


def host_memory(
    limits: pathlib.Path = pathlib.Path("/sys/fs/cgroup"),
    own: pathlib.Path = pathlib.Path("/proc/self/cgroup"),
) -> int:
    """Returns the bytes of memory of this machine, or of the container or job it is.

    Args:
      limits: where Linux keeps those of control groups, version 1 or 2.
      own: where it tells which groups this process is in.
    """
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for line in own.read_text().splitlines() if own.is_file() else ():
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            root, name = limits, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = limits / "memory", "memory.limit_in_bytes"
        else:
            continue
        inner = root / group.lstrip("/")
        for folder in (inner, *inner.parents):
            path = folder / name
            if path.is_file() and (text := path.read_text().strip()).isdecimal():
                found.append(int(text))
            if folder == root:
                break
    return min(found)

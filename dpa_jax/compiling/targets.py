"""Accelerators that need not be at hand: what is known of them, and as a `Platform`."""

import dataclasses
import importlib.util
import os
import re
from typing import Any

import jax
import jax.numpy as jnp

from dpa_jax import errors
from dpa_jax.compiling.counting import Cost
from dpa_jax.devices import parallel
from dpa_jax.devices.platform import OPTIONS, Platform, host_memory, try_options
from dpa_jax.devices.processes import ProcessGroup
from dpa_jax.ops import kernel_check

# the share of a GPU's memory that JAX takes, unless it is told otherwise
_GPU_SHARE = 0.75


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """What a kind of device can do at most, by its maker.

    Attributes:
      kind: as JAX names it.
      backend: `gpu` or `tpu`.
      memory: in bytes.
      bandwidth: of it, in bytes per second.
      rate: of matrix products in bfloat16, in operations per second.
      launch: seconds between one kernel and the next.
    """

    kind: str
    backend: str
    memory: float
    bandwidth: float
    rate: float
    launch: float = 0.0

    def least_seconds(self, cost: Cost, operations: float) -> dict[str, float]:
        """Returns what a program takes at least, and why: a bound, not a prediction.

        Args:
          cost: of the program on one device.
          operations: of floating point on one device.

        Returns:
          Seconds that `bytes`, `arithmetic` and `launches` take each, and `bound`:
          nothing is moved or computed between kernels, so that these seconds are added
          to the larger of the others.
        """
        found = {
            "bytes": cost.bytes / self.bandwidth,
            "arithmetic": operations / self.rate,
            "launches": cost.kernels * self.launch,
        }
        most = max(found["bytes"], found["arithmetic"])
        return {**found, "bound": most + found["launches"]}


# TPUs: cloud.google.com/tpu/docs, a page for each version. GPUs: NVIDIA's data sheets,
# SXM, dense; memory of the H100 as XLA sees it. Between kernels of a CUDA graph: 3.4 us
# for each kernel of 2.9 us in NVIDIA's "Getting Started with CUDA Graphs".
ACCELERATORS = {
    "h100": Accelerator(
        "NVIDIA H100 80GB HBM3", "gpu", 84_929_347_584, 3.352e12, 989e12, 0.5e-6
    ),
    "h200": Accelerator("NVIDIA H200", "gpu", 141e9, 4.8e12, 989e12, 0.5e-6),
    "v4": Accelerator("TPU v4", "tpu", 32e9, 1.2e12, 275e12),
    "v5e": Accelerator("TPU v5 lite", "tpu", 16e9, 819e9, 197e12),
    "v5p": Accelerator("TPU v5", "tpu", 95e9, 2.765e12, 459e12),
    "v6e": Accelerator("TPU v6 lite", "tpu", 32e9, 1.638e12, 918e12),
}
HERE = "here"
# how targets say how many devices: of GPUs their number, of TPUs their arrangement
_COUNTS = {"gpu": r"[1-9]\d*", "tpu": r"[1-9]\d*(x[1-9]\d*){1,2}"}

# What XLA knows of a Hopper GPU; the H100 and the H200 differ in their memory alone.
_HOPPER = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth:.0f}
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: {memory:.0f}
  cuda_compute_capability {{ major: 9 }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
runtime_version {{ major: 12 minor: 8 patch: 0 }}
device_description_str: "{kind}"
"""


def prepare(target: str) -> None:
    """Lets JAX compile for a target: to be called before anything is computed.

    Nothing is set for `here`. For the others JAX computes on the CPU, which is there,
    looks for no TPU or driver, and keeps no programs on disk.
    """
    if target == HERE:
        return
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    # any, or libtpu complains that it cannot tell on which TPU it runs
    os.environ["TPU_ACCELERATOR_TYPE"] = "v5litepod-8"
    os.environ["TPU_WORKER_HOSTNAMES"] = "localhost"
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # no TPU is taken from another
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)


def describe(target: str) -> tuple[Platform, Accelerator | None]:
    """Returns a machine by name, and what is known of its devices.

    Args:
      target: `here`, or a kind of `ACCELERATORS` with how many: of GPUs their number in
        one machine, `h100:8`, of TPUs their arrangement, `v5e:2x4`.

    Returns:
      Of the machine at hand the second is None unless its devices are of a known kind.

    Raises:
      UsageError: there is no such target.
      DpaError: what compiles for it is not installed.
    """
    if target == HERE:
        here = Platform.here()
        kind = here.devices[0].device_kind
        known = (a for a in ACCELERATORS.values() if a.kind == kind)
        return dataclasses.replace(here, compiles_ahead=False), next(known, None)
    name, _, count = target.partition(":")
    accelerator = ACCELERATORS.get(name)
    pattern = _COUNTS[accelerator.backend] if accelerator else ""
    if accelerator is None or not re.fullmatch(pattern, count):
        gpus, tpus = (
            ", ".join(n for n, a in ACCELERATORS.items() if a.backend == backend)
            for backend in ("gpu", "tpu")
        )
        raise errors.UsageError(
            f"--target={target}: write {HERE}, or a GPU ({gpus}) and how many, such as "
            f"h100:8, or a TPU ({tpus}) and how its chips lie, such as v5e:2x4"
        )
    if accelerator.backend == "gpu":
        devices = _gpus(accelerator, count)
        memory = _GPU_SHARE * accelerator.memory
    else:
        devices, memory = _tpus(target), accelerator.memory
    return _platform(accelerator.backend, devices, int(memory)), accelerator


def _platform(backend: str, devices: list[Any], memory: int) -> Platform:
    devices = sorted(devices, key=lambda d: (d.process_index, d.id))
    processes = sorted({device.process_index for device in devices})
    described = Platform(
        backend=backend,
        devices=tuple(devices),
        local_devices=tuple(d for d in devices if d.process_index == processes[0]),
        memory=memory,
        host_memory=host_memory(),
        has_kernels=kernel_check.compiles_for(devices[0]),
        group=ProcessGroup(count=len(processes)),
    )
    nothing = parallel.abstract(jax.ShapeDtypeStruct((), jnp.float32), described)
    options, refused = try_options(OPTIONS.get(backend, {}), nothing)
    return dataclasses.replace(described, options=options, refused_options=refused)


def _gpus(accelerator: Accelerator, count: str) -> list[Any]:
    plugins = "jax_cuda12_plugin", "jax_cuda13_plugin"
    if not any(map(importlib.util.find_spec, plugins)):
        raise errors.DpaError(
            "JAX's compiler for NVIDIA GPUs is missing: pip install 'dpa_jax[cuda12]', "
            "or cuda13; a GPU is not needed"
        )
    # machines, processes in each, GPUs of each
    layout, config = f"1x1x{count}", _HOPPER.format(**vars(accelerator))
    return _topology("", "cuda", topology=layout, target_config=config)


def _tpus(target: str) -> list[Any]:
    if importlib.util.find_spec("libtpu") is None:
        raise errors.DpaError(
            "the compiler for TPUs, libtpu, is missing: pip install 'dpa_jax[aot]'; a "
            "TPU is not needed"
        )
    # the two cores of a chip are one device, as they are on the machines themselves
    options = {"chip_config_name": "megacore"} if target.startswith("v4:") else {}
    return _topology(target, "tpu", **options)


def _topology(name: str, platform: str, **options: str) -> list[Any]:
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(name, platform, **options).devices
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise errors.UsageError(f"there is no such machine: {reason}") from error

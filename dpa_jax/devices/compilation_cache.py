"""JAX's persistent cache of compiled programs, under the platform's cache folder."""

import os
import pathlib

from dpa_jax.weights import files


def folder() -> pathlib.Path:
    """Returns where compiled programs are kept: JAX_COMPILATION_CACHE_DIR, or ours."""
    own = files.cache_dir() / "compilations"
    return pathlib.Path(os.environ.get("JAX_COMPILATION_CACHE_DIR") or own)


def reason_against(backend: str) -> str:
    """Returns why programs of training are not kept on disk; empty where they are.

    XLA runs collectives and custom calls once before it captures them in a CUDA graph
    (openxla/xla#43729), but convolutions, for all that is known, it does not: loaded
    from disk they are captured at their first run. benchmarks.kept_programs tries it.
    """
    if backend != "gpu":
        return ""
    return (
        "not of training on a GPU: loaded from disk, its convolutions in CUDA graphs "
        "failed in cuDNN (status 5003, JAX 0.11.2), and without graphs it is slower"
    )


def size() -> tuple[int, int]:
    """Returns how many files the folder holds, and their bytes."""
    found = [path.stat().st_size for path in folder().glob("*") if path.is_file()]
    return len(found), sum(found)


def enable(training: bool = False) -> None:
    """Makes later runs of the same program start without compiling again.

    Called by the command line alone: a library does not set what its user may have set.

    Args:
      training: whether training programs are what is compiled; see `reason_against`.
    """
    import jax

    from dpa_jax.devices.platform import Platform

    if training and reason_against(Platform.here().backend):
        return
    jax.config.update("jax_compilation_cache_dir", str(folder()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)

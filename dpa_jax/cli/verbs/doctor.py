"""What doctor does."""

import argparse
import importlib.util
import os
import platform

import numpy as np

from dpa_jax import errors
from dpa_jax.storage import workdir


def doctor(options: argparse.Namespace) -> None:
    """Shows versions, devices, the cache and what is installed."""
    import jax

    from dpa_jax.devices import compilation_cache
    from dpa_jax.devices.platform import Platform
    from dpa_jax.ops import compute
    from dpa_jax.weights import files

    def tell(name: str, value: object) -> None:
        print(f"{name:17s} {value}")

    about, here = workdir.environment(seed=0), Platform.here()
    tell("python", f"{about['python']} on {platform.platform()}")
    for name, version in about["packages"].items():
        tell(name, version)
    tell("devices", f"{', '.join(about['devices'])} ({about['device_kind']})")
    tell("memory", f"{here.memory / 2**30:.1f} GiB a device")
    tell("host memory", f"{here.host_memory / 2**30:.1f} GiB")
    tell("precision", f"{compute.resolve('auto', here.backend)} unless configured")
    kernels = "in bfloat16 our Triton kernels, compared here with XLA's and right"
    tell("convolutions", kernels if here.has_kernels else "XLA's")
    tell("XLA options", ", ".join(here.options) or "none beyond its own")
    for name in here.refused_options:
        tell("slower", f"this XLA does not know {name}; programs run without it")
    tell("cores", os.cpu_count())
    tell("cache", files.cache_dir())
    count, size = compilation_cache.size()
    kept = f"{count} files, {size / 1e6:,.0f} MB, which may be deleted"
    tell("compilations", f"{compilation_cache.folder()} ({kept})")
    if reason := compilation_cache.reason_against(here.backend):
        tell("", reason)
    for name, path in (
        ("VGG19 weights", files.cached("vgg19")),
        ("ResNet-50 weights", files.cached("resnet50")),
        ("statistics", files.cached_statistics()),
    ):
        if path.exists():
            source = files.read_metadata(path).get("source", "of unknown origin")
            tell(name, f"{path} ({source})")
        else:
            tell(name, "not in the cache: dpa-jax weights fetch, see its --help")
    for extra, module in {
        "aot": "libtpu",
        "torch": "torch",
        "dicom": "pydicom",
        "nifti": "nibabel",
        "wsi": "openslide",
        "beam": "apache_beam",
        "tune": "optuna",
    }.items():
        found = importlib.util.find_spec(module) is not None
        tell(
            f"extra {extra}",
            "installed" if found else f"pip install 'dpa_jax[{extra}]'",
        )
    ones = np.ones((8, 8), np.float32)
    total = float(jax.jit(lambda x: (x @ x).sum())(ones))
    if total != 512:
        raise errors.DpaError(f"the device computes wrongly: {total} instead of 512")
    tell("a test program", "ran and was right")

"""What import-reference and doctor do."""

import argparse
import importlib.util
import os
import platform
import sys

import numpy as np

from dpa_jax import errors, workdir


def import_reference(options: argparse.Namespace) -> None:
    """Turns a checkpoint of the published code into a workdir."""
    from dpa_jax.interop import workdir_from_reference

    for note in workdir_from_reference.import_checkpoint(
        options.checkpoint, options.workdir, options.weights, options.stats
    ):
        print(f"note: {note}", file=sys.stderr)
    print(
        f"{options.workdir} is ready: dpa-jax score --workdir={options.workdir} IMAGES"
    )


def doctor(options: argparse.Namespace) -> None:
    """Shows versions, devices, the cache and what is installed."""
    import jax

    from dpa_jax import cache
    from dpa_jax.ops import compute
    from dpa_jax.platform import Platform
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
    tell("XLA options", ", ".join(here.options) or "none beyond its own")
    for name in here.refused_options:
        tell("slower", f"this XLA does not know {name}; programs run without it")
    tell("cores", os.cpu_count())
    tell("cache", files.cache_dir())
    tell("compilations", cache.folder())
    for name, path in (
        ("VGG19 weights", files.cached_vgg19()),
        ("statistics", files.cached_statistics()),
    ):
        if path.exists():
            source = files.read_metadata(path).get("source", "of unknown origin")
            tell(name, f"{path} ({source})")
        else:
            tell(name, "not in the cache: dpa-jax weights fetch")
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

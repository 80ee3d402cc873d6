"""Verifying the cache of ImageNet weights and statistics."""

import pathlib
from collections.abc import Callable

import numpy as np

from dpa_jax import errors
from dpa_jax.backbones import base, vgg19
from dpa_jax.devices.platform import Platform
from dpa_jax.storage import json_files
from dpa_jax.weights import files, formats, statistics_files


def verify(report: Callable[[str], None] = print) -> None:
    """Recomputes what was recorded of the cached files when they were stored.

    Their fingerprints; and the mean of each of VGG19's sixteen ReLU layers on a fixed
    image, which NumPy computed then and `vgg19.apply` computes now on this machine's
    device. That tells damage and wrong arithmetic, not whether the weights are
    ImageNet's: the download's checksum does.

    Raises:
      DpaError: a file is absent or damaged, or an activation differs.
    """
    import jax

    backend = Platform.here().backend
    weights = vgg19.load("imagenet")
    recorded = _verify_fingerprint(files.cached("vgg19"), weights, report)
    with jax.default_matmul_precision("highest"):
        features = vgg19.apply(
            jax.device_put(weights),
            jax.device_put(_probe()),
            [name for name in vgg19.LAYERS if name[0] == "r"],
            backend,
        )
    kept = recorded.get("activations", "")
    with formats.reading(files.cached("vgg19")):
        activations = json_files.parse(kept, dict.fromkeys(features, float))
    for layer in features:
        expected = activations[layer]
        found = float(np.mean(features[layer]))
        if not np.isclose(found, expected, rtol=1e-3, atol=1e-6):
            raise errors.DpaError(
                f"{layer} of the fixed image has mean {found:.6g} on "
                f"{backend}, but {expected:.6g} by NumPy when they were "
                "stored: this device or this version of JAX computes wrongly"
            )
    report(f"activations of 16 layers on {backend}: as NumPy's when stored")
    _verify_fingerprint(
        files.cached_statistics(), statistics_files.load("imagenet"), report
    )


def _verify_fingerprint(
    path: pathlib.Path, values: files.Weights, report: Callable[[str], None]
) -> dict[str, str]:
    recorded = files.read_metadata(path)
    found = formats.fingerprint(values)
    if recorded.get("fingerprint") != found:
        raise errors.DpaError(
            f"{path} is damaged: its fingerprint is {found}, recorded was "
            f"{recorded.get('fingerprint')}; delete it and run `dpa-jax weights fetch`"
        )
    report(f"{path}: intact, from {recorded.get('source')}")
    return recorded


def activation_means(weights: base.Weights) -> dict[str, float]:
    """Computes the mean of each ReLU layer on the fixed image, by NumPy alone."""
    x, means = _probe()[0], {}
    for name in vgg19.LAYERS:
        if name[0] == "c":
            kernel, bias = weights[name]["kernel"], weights[name]["bias"]
            windows = np.lib.stride_tricks.sliding_window_view(
                np.pad(x, ((1, 1), (1, 1), (0, 0))), (3, 3), (0, 1)
            )  # [H, W, I, 3, 3]
            x = np.tensordot(windows, kernel, ((3, 4, 2), (0, 1, 2))) + bias
        elif name[0] == "r":
            x = np.maximum(x, 0)
            means[name] = float(x.mean(dtype=np.float64))
        else:
            h, w, c = x.shape
            x = x.reshape(h // 2, 2, w // 2, 2, c).max((1, 3))
    return means


def _probe() -> np.ndarray:
    # [1, 32, 32, 3]: smooth colours and fine texture, deep enough for r54
    y, x = np.mgrid[0:32, 0:32].astype(np.float32) / 32
    image = np.stack([np.sin(6 * x + y), np.cos(5 * y), np.sin(97 * x * y)], -1)
    return image[None]

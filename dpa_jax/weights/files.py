"""VGG19's weights: from files and to files, and where the cache keeps them."""

import os
import pathlib
from collections.abc import Mapping

import numpy as np

from dpa_jax import errors, json_files, vgg
from dpa_jax.weights import formats

# {"c11": {"kernel": float32 [3, 3, I, O], "bias": float32 [O]}, ...}
Weights = dict[str, dict[str, np.ndarray]]

# torchvision numbers convolutions, ReLUs and poolings through, as `LAYERS` lists them
_TORCHVISION = {
    name: f"features.{index}"
    for index, name in enumerate(vgg.LAYERS)
    if name in vgg.CONVOLUTIONS
}
_FORMAT = "dpa_jax"


def cache_dir() -> pathlib.Path:
    """Returns the folder of fetched weights: DPA_JAX_CACHE, or the user's cache."""
    if given := os.environ.get("DPA_JAX_CACHE"):
        return pathlib.Path(given)
    import platformdirs  # here, since random weights do without

    return pathlib.Path(platformdirs.user_cache_dir("dpa_jax", appauthor=False))


def cached_vgg19() -> pathlib.Path:
    """Returns where the cache keeps the weights that `imagenet` stands for."""
    return cache_dir() / "vgg19_imagenet.safetensors"


def cached_statistics() -> pathlib.Path:
    """Returns where the cache keeps the statistics that `imagenet` stands for."""
    return cache_dir() / "vgg19_imagenet_statistics.npz"


def load_vgg19(spec: str) -> Weights:
    """Loads VGG19's convolutions.

    Args:
      spec: `imagenet` (the cache), `random:SEED`, or a file: .safetensors or .npz with
        torchvision's names (`features.0.weight`, other layers are ignored) or with
        ours (`c11/kernel`), or .pth or .pt with torchvision's.

    Returns:
      `{"c11": {"kernel": float32 [3, 3, 3, 64], "bias": float32 [64]}, ...}` for all
      sixteen convolutions.

    Raises:
      DpaError: the file is absent or unreadable, or a tensor is missing, of the wrong
        shape or not finite; the message names it.
      UsageError: `random:` is not followed by a number.
    """
    if spec.startswith("random:"):
        return _random_vgg19(spec)
    if spec == "imagenet":
        path = from_cache(cached_vgg19(), "ImageNet weights", "weights import FILE")
    else:
        path = existing(spec, "weights are imagenet, random:SEED or a file")
    return _checked_vgg19(_read_tensors(path), path)


def save_vgg19(
    path: str | os.PathLike, weights: Weights, metadata: Mapping[str, str]
) -> None:
    """Writes the convolutions as a compact .safetensors file, atomically.

    Args:
      path: the file; an existing one is replaced.
      weights: as `load_vgg19` returns.
      metadata: where the weights come from; stored beside them with a fingerprint.
    """
    import safetensors.numpy

    tensors = {
        f"{layer}/{name}": np.ascontiguousarray(array, np.float32)
        for layer, arrays in weights.items()
        for name, array in arrays.items()
    }
    metadata = described(weights, metadata)
    with formats.replacing(pathlib.Path(path)) as temporary:
        # its save_file would leave the file unreadable to others who share the cache
        temporary.write_bytes(safetensors.numpy.save(tensors, metadata))


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """Returns what our own file says of its origin; empty for any other file.

    Raises:
      DpaError: the file is unreadable.
    """
    path = pathlib.Path(path)
    metadata: dict[str, str] = {}
    if path.suffix == ".safetensors":
        import safetensors

        with formats.reading(path):
            with safetensors.safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
    elif path.suffix == ".npz":
        stored = formats.read_npz(path, lambda name: name == "metadata")
        with formats.reading(path):
            metadata = json_files.parse(str(stored.get("metadata", "{}")), {})
    return metadata if metadata.get("format") == _FORMAT else {}


def described(
    tree: Mapping[str, Mapping[str, np.ndarray]], metadata: Mapping[str, str]
) -> dict[str, str]:
    """Returns what `read_metadata` shall find in a file of ours that holds these."""
    return {
        "format": _FORMAT,
        "fingerprint": formats.fingerprint(tree),
        **metadata,
    }


def _random_vgg19(spec: str) -> Weights:
    # He-normal by fan-in, so that activations keep their scale through the layers. Not
    # the values of any other generator, whatever the seed.
    seed = spec.partition(":")[2]
    if not seed.isdecimal():
        raise errors.UsageError(f"weights {spec!r}: write random:SEED, as in random:0")
    rng = np.random.default_rng(int(seed))
    weights, fan = {}, 3
    for layer in vgg.CONVOLUTIONS:
        width = vgg.LAYERS[layer]
        kernel = rng.standard_normal((3, 3, fan, width), np.float32)
        bias = rng.standard_normal(width, np.float32)
        weights[layer] = {
            "kernel": np.sqrt(2 / (9 * fan), dtype=np.float32) * kernel,
            "bias": np.float32(0.01) * bias,
        }
        fan = width
    return weights


def _checked_vgg19(tensors: Mapping[str, np.ndarray], path: pathlib.Path) -> Weights:
    ours = any(name in tensors for name in ("c11/kernel", "c11/bias"))
    weights, fan = {}, 3
    for layer in vgg.CONVOLUTIONS:
        width = vgg.LAYERS[layer]
        if ours:
            names, shape = (f"{layer}/kernel", f"{layer}/bias"), (3, 3, fan, width)
        else:
            stem = _TORCHVISION[layer]
            names, shape = (f"{stem}.weight", f"{stem}.bias"), (width, fan, 3, 3)
        kernel = formats.checked(tensors, names[0], shape, f"{path} is not VGG19: ")
        bias = formats.checked(tensors, names[1], (width,), f"{path} is not VGG19: ")
        if not ours:
            kernel = kernel.transpose(2, 3, 1, 0)  # [O, I, 3, 3] -> [3, 3, I, O]
        weights[layer] = {"kernel": np.ascontiguousarray(kernel), "bias": bias}
        fan = width
    return weights


def _read_tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    # the classifier is seven eighths of the file: leave it on the disk
    def wanted(name: str) -> bool:
        return name.startswith("features.") or name.partition("/")[0] in vgg.LAYERS

    if path.suffix == ".safetensors":
        import safetensors

        with formats.reading(path):
            with safetensors.safe_open(path, framework="numpy") as file:
                return {n: file.get_tensor(n) for n in file.keys() if wanted(n)}
    if path.suffix == ".npz":
        return formats.read_npz(path, wanted)
    if path.suffix in (".pth", ".pt"):
        state = formats.load_torch(path)
        if not isinstance(state, Mapping):
            raise errors.DpaError(f"{path} holds no dictionary of tensors")
        return {
            name: formats.from_torch(value, name, path)
            for name, value in state.items()
            if isinstance(name, str) and wanted(name) and hasattr(value, "detach")
        }
    raise errors.DpaError(f"{path}: weights are a .safetensors, .npz or .pth file")


def from_cache(path: pathlib.Path, what: str, command: str) -> pathlib.Path:
    """Returns a file of the cache.

    Raises:
      DpaError: it is not there; the message says how to get it.
    """
    if not path.is_file():
        raise errors.DpaError(
            f"the {what} are not in the cache ({path}); get them with "
            f"`dpa-jax weights fetch`, or without network from a file with "
            f"`dpa-jax {command}`"
        )
    return path


def existing(spec: str, kinds: str) -> pathlib.Path:
    """Returns the file that a user named.

    Raises:
      DpaError: there is none; the message says what kinds of names there are.
    """
    path = pathlib.Path(spec).expanduser()
    if not path.is_file():
        raise errors.DpaError(f"there is no file {spec}; {kinds}")
    return path

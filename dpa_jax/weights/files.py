"""Weights of backbones: from files and to files, and where the cache keeps them."""

import os
import pathlib
from collections.abc import Callable, Mapping

import numpy as np

from dpa_jax import errors
from dpa_jax.storage import json_files
from dpa_jax.weights import formats

# float32 arrays of each layer, {"c11": {"kernel": [3, 3, I, O], "bias": [O]}, ...}
Weights = dict[str, dict[str, np.ndarray]]
# the shape of each
Shapes = dict[str, dict[str, tuple[int, ...]]]

_FORMAT = "dpa_jax"


def cache_dir() -> pathlib.Path:
    """Returns the folder of fetched weights: DPA_JAX_CACHE, or the user's cache."""
    if given := os.environ.get("DPA_JAX_CACHE"):
        return pathlib.Path(given)
    import platformdirs  # here, since random weights do without

    return pathlib.Path(platformdirs.user_cache_dir("dpa_jax", appauthor=False))


def cached(backbone: str) -> pathlib.Path:
    """Returns where the cache keeps the weights that `imagenet` stands for."""
    return cache_dir() / f"{backbone}_imagenet.safetensors"


def cached_statistics() -> pathlib.Path:
    """Returns where the cache keeps the statistics that `imagenet` stands for."""
    return cache_dir() / "vgg19_imagenet_statistics.npz"


def load(
    backbone: str,
    location: str,
    shapes: Shapes,
    convert: Callable[[Mapping[str, np.ndarray], Shapes, str], Weights],
    unused: str,
) -> Weights:
    """Loads a backbone's weights.

    Args:
      backbone: its name, for the cache and for errors.
      location: `imagenet` (the cache), `random:SEED`, or a file: .safetensors or .npz
        with names of ours (`LAYER/kernel`) or published ones, or .pth or .pt with
        published ones.
      shapes: of the arrays that are needed, in the order of the network.
      convert: takes tensors by their published names, the shapes, and the start of the
        message of an error; returns the weights.
      unused: what the published names begin with of what is not read, such as that of
        a classifier.

    Returns:
      Arrays of `shapes`, float32 and finite.

    Raises:
      DpaError: the file is absent or unreadable, or a tensor is missing, of the wrong
        shape or not finite; the message names it.
      UsageError: `random:` is not followed by a number.
    """
    if location.startswith("random:"):
        return _random(location, shapes)
    if location == "imagenet":
        path = from_cache({"weights": cached(backbone)}, backbone)["weights"]
    else:
        path = existing(location, "weights are imagenet, random:SEED or a file")
    tensors = _read_tensors(path, unused)
    prefix = f"{path} is not {backbone}: "
    if not any("/" in name for name in tensors):
        return convert(tensors, shapes, prefix)
    return {
        layer: {
            name: formats.checked(tensors, f"{layer}/{name}", shape, prefix)
            for name, shape in arrays.items()
        }
        for layer, arrays in shapes.items()
    }


def kernel_from_torch(kernel: np.ndarray) -> np.ndarray:
    """Returns a kernel `[O, I, k, k]` as `[k, k, I, O]`."""
    return np.ascontiguousarray(kernel.transpose(2, 3, 1, 0))


def save(
    path: str | os.PathLike,
    weights: Mapping[str, Mapping[str, np.ndarray]],
    metadata: Mapping[str, str],
) -> None:
    """Writes weights as a .safetensors file, atomically.

    Args:
      path: the file; an existing one is replaced.
      weights: as `load` returns.
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


def _random(location: str, shapes: Shapes) -> Weights:
    # He-normal by fan-in, so that activations keep their scale through the layers. Not
    # the values of any other generator, whatever the seed.
    seed = location.partition(":")[2]
    if not seed.isdecimal():
        raise errors.UsageError(
            f"weights {location!r}: write random:SEED, as in random:0"
        )
    rng = np.random.default_rng(int(seed))
    weights: Weights = {}
    for layer, arrays in shapes.items():
        fan = int(np.prod(arrays["kernel"][:-1]))
        kernel = rng.standard_normal(arrays["kernel"], np.float32)
        bias = rng.standard_normal(arrays["bias"], np.float32)
        weights[layer] = {
            "kernel": np.sqrt(2 / fan, dtype=np.float32) * kernel,
            "bias": np.float32(0.01) * bias,
        }
    return weights


def _read_tensors(path: pathlib.Path, unused: str) -> dict[str, np.ndarray]:
    """Reads the tensors of a file whose names do not begin with `unused`.

    A classifier is seven eighths of VGG19's file: it is left on the disk.
    """

    def is_used(name: str) -> bool:
        return not name.startswith(unused)

    if path.suffix == ".safetensors":
        import safetensors

        with formats.reading(path):
            with safetensors.safe_open(path, framework="numpy") as file:
                return {n: file.get_tensor(n) for n in file.keys() if is_used(n)}
    if path.suffix == ".npz":
        return formats.read_npz(path, is_used)
    if path.suffix in (".pth", ".pt"):
        state = formats.load_torch(path)
        if not isinstance(state, Mapping):
            raise errors.DpaError(f"{path} holds no dictionary of tensors")
        return {
            name: formats.from_torch(value, name, path)
            for name, value in state.items()
            if isinstance(name, str) and is_used(name) and hasattr(value, "detach")
        }
    raise errors.DpaError(f"{path}: weights are a .safetensors, .npz or .pth file")


def _option(backbone: str) -> str:
    return "" if backbone == "vgg19" else f" --backbone={backbone}"


def from_cache(
    wanted: Mapping[str, pathlib.Path], backbone: str = "vgg19"
) -> Mapping[str, pathlib.Path]:
    """Returns files of the cache: `weights`, `statistics` or both.

    Raises:
      DpaError: some are not there; the message names each and says how to get it.
    """
    absent = {what: path for what, path in wanted.items() if not path.is_file()}
    if absent:
        arguments = {"weights": " FILE", "statistics": " --stats FILE"}
        files = "".join(text for what, text in arguments.items() if what in absent)
        raise errors.DpaError(
            f"the ImageNet {' and '.join(absent)} are not in the cache "
            f"({', '.join(map(str, absent.values()))}); get them with "
            f"`dpa-jax weights fetch{_option(backbone)}`, or without network from "
            f"what you have with `dpa-jax weights import{files}{_option(backbone)}`"
        )
    return wanted


def existing(spec: str, kinds: str) -> pathlib.Path:
    """Returns the file that a user named.

    Raises:
      DpaError: there is none; the message says what kinds of names there are.
    """
    path = pathlib.Path(spec).expanduser()
    if not path.is_file():
        raise errors.DpaError(f"there is no file {spec}; {kinds}")
    return path

"""The published code's checkpoints: their parameters under our names and layouts."""

import math
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from dpa_jax import errors
from dpa_jax.interop import reference_config
from dpa_jax.weights import formats

Parameters = dict[str, Any]  # nested by name, float32 arrays at the leaves

_STAGES = {"stab": "stabilization", "trns": "transition"}
# a convolution's published place -> ours
_CONV = {"": ""}
_PREACT = {"model.1": "conv_0", "model.2": "conv_1", "skipcon": "skip"}
_RESAMPLE = {"model.2": "conv_0", "model.3": "conv_1", "skipcon.1": "skip"}
# a block's published name -> ours, and what stands at each of its indices
_BLOCKS = {
    "preprocess_res": (
        "from_image_{}",
        {
            "0": ("conv", _CONV),
            "1": ("preact_0", _PREACT),
            "2": ("preact_1", _PREACT),
        },
    ),
    "res": ("block_{}", {"0": ("{}", _RESAMPLE), "1": ("preact", _PREACT)}),
    "latent": ("latent", {"0": ("", _PREACT), "1": ("conv", _CONV)}),
    "postprocess_res": ("to_image_{}", {"1": ("conv", _CONV)}),
}


def read_checkpoint(
    path: str | os.PathLike,
) -> tuple[dict[str, Any], list[str], Parameters, dict[str, Any]]:
    """Reads a published checkpoint; needs the torch extra.

    Args:
      path: `anomaly_detection.tar`, as the published code writes it. It is loaded
        with `weights_only`, so nothing in it is run.

    Returns:
      config overrides: see `reference_config.from_reference`.
      notes: on what of it has no counterpart.
      parameters: see `convert_parameters`.
      info: `step` (of the stage), `stage` (`stabilization` or `transition`),
        `resolution`, `alpha` (1 outside of a transition), `parameters` (their number).

    Raises:
      DpaError: the file is unreadable or no such checkpoint, its config has no
        counterpart, or a tensor has an unknown name or is not finite.
    """
    path = pathlib.Path(path)
    state = formats.load_torch(path)
    wanted = ("config", "stage", "resolution", "progress", "niter", "enc", "dec")
    missing = [
        name for name in wanted if not isinstance(state, Mapping) or name not in state
    ]
    if missing:
        raise errors.DpaError(
            f"{path} is not a published checkpoint: it lacks {', '.join(missing)}; "
            "import-reference takes anomaly_detection.tar"
        )
    for name in ("resolution", "progress", "niter"):
        value = state[name]
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise errors.DpaError(f"{path}: {name} is {value!r}, not a number")
    if not isinstance(state["stage"], str) or state["stage"] not in _STAGES:
        raise errors.DpaError(f"{path}: unknown stage {state['stage']!r}")
    overrides, notes = reference_config.from_reference(state["config"], str(path))
    unused = [str(name) for name in state if name not in wanted]
    if unused:
        notes.append(f"not needed for scoring: {', '.join(unused)}")
    encoder, decoder = _arrays(state["enc"], path), _arrays(state["dec"], path)
    try:
        parameters = convert_parameters(encoder, decoder)
    except errors.DpaError as error:
        raise errors.DpaError(f"{path}: {error}") from None
    transition = state["stage"] == "trns"
    info = {
        "step": int(state["niter"]),
        "stage": _STAGES[state["stage"]],
        "resolution": int(state["resolution"]),
        "alpha": float(state["progress"]) if transition else 1.0,
        "parameters": sum(array.size for _, array in _leaves(parameters)),
    }
    return overrides, notes, parameters, info


def convert_parameters(
    encoder_state: Mapping[str, np.ndarray], decoder_state: Mapping[str, np.ndarray]
) -> Parameters:
    """Renames and transposes the parameters, or gradients, of one stage.

    Args:
      encoder_state: arrays by published name, convolutions `[O, I, H, W]`; of a
        stabilization or a transition.
      decoder_state: likewise.

    Returns:
      `{"encoder": {"from_image_64": {"conv": {"kernel": [H, W, I, O], "bias": [O]},
      "preact_0": ...}, "block_64": {"down": ..., "preact": ...}, "latent": ...},
      "decoder": {"latent": ..., "block_8": {"up": ..., ...}, "to_image_64": ...}}`.

    Raises:
      DpaError: a name is unknown, a kernel or bias has no partner, or a value is not
        finite; the message names it.
    """
    return {
        "encoder": _convert(encoder_state, "enc", "down"),
        "decoder": _convert(decoder_state, "dec", "up"),
    }


def check_shapes(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Compares two trees of arrays by name and shape.

    Args:
      found: what was converted.
      expected: what the model needs; anything with a `shape` at its leaves.

    Raises:
      DpaError: a parameter is missing, left over or of another shape; it is named.
    """
    have = {name: tuple(leaf.shape) for name, leaf in _leaves(found)}
    need = {name: tuple(leaf.shape) for name, leaf in _leaves(expected)}
    for names, what in (
        (need.keys() - have.keys(), "is missing"),
        (have.keys() - need.keys(), "has no place in this architecture"),
    ):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise errors.DpaError(f"parameter {min(names)} {what}{more}")
    for name, shape in need.items():
        if have[name] != shape:
            raise errors.DpaError(
                f"parameter {name} has shape {list(have[name])}, expected {list(shape)}"
            )


def _convert(state: Mapping[str, np.ndarray], part: str, resample: str) -> Parameters:
    # In a transition the old and the new layers stand in `concat.layer1` and `.layer2`;
    # the resolutions in their names tell them apart already.
    short = {
        name: re.sub(r"^model\.(concat\.layer[12]\.)?", "", name)
        for name in state
        if name != "model.fadein._alpha"
    }
    lowest = min(
        (int(m[1]) for s in short.values() if (m := re.match(r"res_(\d+)\.", s))),
        default=0,
    )
    tree: Parameters = {}
    for name, shortened in short.items():
        place, _, kind = shortened.rpartition(".model.0.")
        path = _path(place, lowest, resample)
        if not path or kind not in ("weight", "bias"):
            raise errors.DpaError(f"unknown tensor {part}.{name}")
        array = np.asarray(state[name], np.float32)
        if not np.isfinite(array).all():
            raise errors.DpaError(f"{part}.{name} has values that are not finite")
        if array.ndim != (4 if kind == "weight" else 1):
            raise errors.DpaError(f"{part}.{name} has shape {list(array.shape)}")
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        if kind == "weight":
            node["kernel"] = np.ascontiguousarray(array.transpose(2, 3, 1, 0))
        else:
            node["bias"] = array
    names = {name for name, _ in _leaves(tree)}
    for name in names:
        stem, _, leaf = name.rpartition("/")
        if f"{stem}/{'bias' if leaf == 'kernel' else 'kernel'}" not in names:
            raise errors.DpaError(f"{part}: {name} is there without its partner")
    return tree


def _path(place: str, lowest: int, resample: str) -> list[str]:
    """Returns where a convolution belongs in our tree; empty if it is unknown."""
    match = re.fullmatch(r"([a-z_]*res)_(\d+)\.(\d)\.?(.*)", place)
    if not match:
        return []
    role, resolution, index, inside = match.groups()
    if role == "res" and int(resolution) == lowest:
        role = "latent"
    block, parts = _BLOCKS.get(role, ("", {}))
    part, convolutions = parts.get(index, ("", {}))
    if inside not in convolutions:
        return []
    path = (block.format(resolution), part.format(resample), convolutions[inside])
    return [name for name in path if name]


def _arrays(state: Any, path: pathlib.Path) -> dict[str, np.ndarray]:
    if not isinstance(state, Mapping) or not all(
        hasattr(value, "detach") for value in state.values()
    ):
        raise errors.DpaError(f"{path}: enc and dec must hold tensors by name")
    return {
        name: formats.from_torch(value, name, path) for name, value in state.items()
    }


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value

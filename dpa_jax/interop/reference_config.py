"""The published code's train_eval.yaml in terms of our configuration.

A file is flattened to dotted names. What has a counterpart is taken out and mapped;
of what is left, locations and bookkeeping are reported and all else is refused, both
by name: a run must not differ from what its file says without anybody noticing.
"""

import fnmatch
import itertools
import logging
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import ml_collections
import yaml

from dpa_jax import errors, models
from dpa_jax.config import default_config, lowest_resolution, updated
from dpa_jax.interop import reference_keys as keys
from dpa_jax.interop import reference_losses

Values = dict[str, Any]

# names without a counterpart that do not change the method -> why
_REPORTED = {
    "*_dataset.dataset_type": "set data.train instead",
    "*_dataset.dataset_kwargs.*": "set data.train instead",
    "test_datasets.*.dataset_type": "set data.test_normal and data.test_abnormal",
    "test_datasets.*.dataset_kwargs.*": "set data.test_normal and data.test_abnormal",
    "val_dataset.transform_kwargs*": "validation images serve early stopping alone",
    "*_root": "outputs go to the workdir",
    "test_model_path": "outputs go to the workdir",
    "test_batch_size": "does not change scores",
    "verbose": "logging has its own fields here",
    "log_iter": "logging has its own fields here",
    "image_sample_iter": "logging has its own fields here",
    "val_iter": "stopping early is for `dpa-jax tune`",
    "early_stop*": "stopping early is for `dpa-jax tune`",
    "test_image_rec_loss.*": "not read by the published code",
    "batch_size": "not read by the published code",
}
# options that are mapped by being what we always do: any other value is refused
_FIXED = {
    "enc.kwargs.use_wscale": False,
    "enc.kwargs.use_mbstddev": False,
    "enc.kwargs.norm": "none",
    "enc.kwargs.pad_type": "zero",
    "enc.kwargs.pool": "avg",
    "dec.kwargs.normalize_latents": False,
    "dec.kwargs.use_wscale": False,
    "dec.kwargs.norm": "none",
    "dec.kwargs.pad_type": "zero",
    "dec.kwargs.upsample_mode": "nearest",
    "train_dataset.transform_kwargs.to_tensor": True,
    "train_dataset.transform_kwargs.normalize": True,
    "test_datasets.normal.transform_kwargs.to_tensor": True,
    "test_datasets.normal.transform_kwargs.normalize": True,
    "test_datasets.anomaly.transform_kwargs.to_tensor": True,
    "test_datasets.anomaly.transform_kwargs.normalize": True,
    "adam_kwargs.betas": [0.9, 0.999],
    "adam_kwargs.eps": 1e-8,
    "adam_kwargs.weight_decay": 0,
    "adam_kwargs.amsgrad": False,
    "finetune_from": None,
}
_NIH_SIZE = 300  # pixels; the size at which the published NIH images are stored
_CAMELYON16_SIZE = 192  # that of the published x10 patches
_MOST = 1_000  # options; a published file has about a hundred


def load(path: str | os.PathLike) -> ml_collections.ConfigDict:
    """Reads a published YAML file; what is left to set goes to the log as a warning.

    Raises:
      UsageError: the file is no YAML mapping, or has a key without a counterpart.
    """
    path = pathlib.Path(path)
    try:
        mapping = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise errors.UsageError(f"cannot read {path}: {reason}") from None
    except RecursionError:
        raise errors.UsageError(f"cannot read {path}: nested too deeply") from None
    overrides, notes = from_reference(mapping, str(path))
    logging.getLogger("dpa_jax").warning(
        "%s: these keys have no counterpart:\n  %s", path, "\n  ".join(notes)
    )
    return updated(default_config(), overrides, str(path))


def from_reference(
    mapping: Mapping[str, Any], source: str = "the published config"
) -> tuple[Values, list[str]]:
    """Maps a published configuration to ours.

    Args:
      mapping: as `yaml.safe_load` reads it, or the `config` of a checkpoint.
      source: named in errors.

    Returns:
      Our values by dotted name, for `config.updated`; and notes, one for each reason
      why some keys have no counterpart, with those keys and their values.

    Raises:
      UsageError: a key is missing, has a value that cannot be, or would change the run
        in a way that has no counterpart; the message names it.
    """
    if not isinstance(mapping, Mapping):
        raise errors.UsageError(f"{source} is not a mapping of options to values")
    try:
        # an alias in YAML may repeat without end what it stands for
        left = dict(itertools.islice(keys.flat(mapping), _MOST + 1))
        keys.require(len(left) <= _MOST, f"more than {_MOST:,} options")
        overrides, notes = _mapped(left)
        keys.expect(left, _FIXED)
        reported: dict[str, list[str]] = {}
        for name, value in left.items():
            reason = next(
                (r for p, r in _REPORTED.items() if fnmatch.fnmatchcase(name, p)), None
            )
            keys.require(reason is not None, f"{name} ({value!r}) has no counterpart")
            reported.setdefault(str(reason), []).append(f"{name}={value!r}")
    except RecursionError:
        raise errors.UsageError(f"{source}: nested too deeply") from None
    except errors.UsageError as error:
        raise errors.UsageError(f"{source}: {error}") from None
    notes += [f"{why}: {', '.join(names)}" for why, names in reported.items()]
    return overrides, notes


def _mapped(left: Values) -> tuple[Values, list[str]]:
    """Takes out of `left` all that has a counterpart."""
    resolution = keys.take(left, "max_image_res", int)
    resolutions = [keys.take(left, "initial_image_res", int)]
    while 0 < resolutions[-1] < resolution:
        resolutions.append(2 * resolutions[-1])
    keys.require(
        resolutions[-1] == resolution,
        f"max_image_res {resolution} is not a doubling of initial_image_res "
        f"{resolutions[0]}",
    )
    sizes = {keys.take(left, f"batch_sizes.{r}", int) for r in resolutions}
    keys.require(
        len(sizes) == 1,
        f"batch_sizes {sorted(sizes)} differ between resolutions, which has no "
        "counterpart",
    )
    for name in [n for n in left if re.fullmatch(r"batch_sizes\.\d+", n)]:
        del left[name]  # of resolutions that are not trained at
    data, notes = _data(left, resolution)
    model = _model(left, resolution)
    return {
        **data,
        **model,
        **_stages(left, resolutions),
        **reference_losses.losses(left, resolutions, model["model.encoder_channels"]),
        "optimizer.learning_rate": keys.take(left, "adam_kwargs.lr", float),
        "batch_size": sizes.pop(),
        "seed": keys.take(left, "random_seed", int),
    }, notes


def _data(left: Values, resolution: int) -> tuple[Values, list[str]]:
    prefix, notes = "train_dataset.transform_kwargs.", []
    channels = keys.take(left, "image_dim", int)
    crop = keys.take(left, f"{prefix}crop_size", int, 0)
    resize = keys.take(left, f"{prefix}resize", int, 0)
    equalize = keys.take(left, f"{prefix}equalize_hist", bool, False)
    grey = keys.take(left, f"{prefix}to_grayscale", bool, False)
    random_crop = keys.take(left, f"{prefix}random_crop", bool, False)
    flip = keys.take(left, f"{prefix}random_flip", bool, False)
    keys.require(
        (resize or crop or resolution) == resolution,
        f"{prefix}: images come out at {resize or crop} pixels, not max_image_res "
        f"{resolution}",
    )
    keys.require(
        not (grey and channels == 3), f"{prefix}to_grayscale contradicts image_dim 3"
    )
    for which in ("normal", "anomaly"):
        test = f"test_datasets.{which}.transform_kwargs."
        for name, value in (
            ("crop_size", crop),
            ("resize", resize),
            ("equalize_hist", equalize),
            ("to_grayscale", grey),
            ("random_crop", False),
            ("random_flip", False),
        ):
            found = left.pop(test + name, value)
            keys.require(
                found == value,
                f"{test}{name} is {found!r} where training images have {value!r}; "
                "dpa_jax prepares all images alike",
            )
    kind = left.get("train_dataset.dataset_type")
    values = {
        "data.channels": channels,
        "data.resolution": resolution,
        "data.resize": 0,
        "data.crop": crop,
        "data.equalize": equalize,
        "data.size": 0,
        "data.random_crop": random_crop,
        "data.horizontal_flip": flip,
        "data.vertical_flip": flip,
    }
    if random_crop:
        keys.require(
            kind == "camelyon16" and not equalize,
            f"{prefix}random_crop has no counterpart but for camelyon16 without "
            "equalize_hist",
        )
        # cut, never resized, as there; scoring cuts the centre alone
        values["data.crop"] = values["data.size"] = _CAMELYON16_SIZE
        notes.append(
            f"data.crop and data.size are {_CAMELYON16_SIZE}: the published x10 "
            "patches' side"
        )
    if kind == "nih":
        root = str(left.get("train_dataset.dataset_kwargs.image_root", ""))
        size = re.search(r"_(\d+)/*$", root)
        values["data.resize"] = int(size[1]) if size else _NIH_SIZE
        notes.append(
            f"data.resize={values['data.resize']}: the size of the stored images, "
            + (f"from image_root={root!r}" if size else "as published")
        )
    return values, notes


def _model(left: Values, resolution: int) -> Values:
    kinds = {keys.take(left, f"{part}.type", str) for part in ("enc", "dec")}
    keys.require(
        len(kinds) == 1, "enc.type and dec.type differ, which has no counterpart"
    )
    kind = kinds.pop()
    keys.require(kind in models.KINDS, f"enc.type {kind!r} has no counterpart")
    latent = keys.take(left, "latent_res", int)
    encoder, decoder = (
        keys.take(left, f"{part}.kwargs.inner_dims", list) for part in ("enc", "dec")
    )
    needed, lowest = 1, lowest_resolution(latent)
    while 0 < lowest < resolution:
        needed, lowest = needed + 1, 2 * lowest
    for part, channels in (("enc", encoder), ("dec", decoder)):
        keys.require(
            len(channels) >= needed and all(type(c) is int for c in channels),
            f"{part}.kwargs.inner_dims is {channels}; needed are {needed} numbers",
        )
    return {
        "model.kind": kind,
        "model.latent_resolution": latent,
        "model.latent_channels": keys.take(left, "latent_dim", int),
        # a longer list counts from the lowest resolution, in either network
        "model.encoder_channels": tuple(encoder[-needed:]),
        "model.decoder_channels": tuple(decoder[:needed]),
    }


def _stages(left: Values, resolutions: list[int]) -> Values:
    stabilization = keys.take(left, "stab_iter", int)
    transition = keys.take(left, "trns_iter", int)
    final = keys.take(left, f"iters_per_res.{resolutions[-1]}.stab", int, stabilization)
    for resolution in resolutions:
        for name, usual in (("trns", transition), ("stab", stabilization)):
            found = left.pop(f"iters_per_res.{resolution}.{name}", usual)
            keys.require(
                found == usual,
                f"iters_per_res.{resolution}.{name} {found} differs from "
                f"{name}_iter {usual}, which has no counterpart",
            )
    checked = keys.take(dict(left), "val_iter", int, final)
    patience = keys.take(dict(left), "early_stopping_patience", int, 1)
    keys.require(
        checked * patience >= final,
        f"val_iter {checked} with early_stopping_patience {patience} may stop the last "
        "stage early; only `dpa-jax tune` does: raise val_iter",
    )
    values = {"stages.initial_resolution": resolutions[0], "stages.final_steps": final}
    if len(resolutions) > 1:
        values["stages.transition_steps"] = transition
        values["stages.stabilization_steps"] = stabilization
    return values

"""The configuration of a run: defaults, files, validation, JSON."""

import difflib
import importlib.util
import inspect
import json
import math
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_collections

from dpa_jax import errors
from dpa_jax.weights import formats

KINDS = ("residual18", "residual9")
PRECISIONS = ("auto", "bfloat16", "tensorfloat32", "float32")


def default_config() -> ml_collections.ConfigDict:
    """Returns the NIH subset run with progressive growing, without its data.

    Every field is described beside its default. Locations of images are a folder, an
    image, a CSV manifest, an .npz or `tfds:NAME/CONFIG:SPLIT`.
    """
    return ml_collections.ConfigDict(
        {
            "data": {
                "train": "",  # where the normal training images are
                "test": "",  # labelled images, or
                "test_normal": "",  # normal and
                "test_abnormal": "",  # abnormal ones apart: the default of evaluate
                "data_dir": "",  # of TFDS; empty for its own default
                # COLUMN=VALUE of the images that are normal, the others being
                # abnormal, such as class=cat; empty: as they are labelled
                "normal": "",
                "folds": 0,  # parts that the normal images fall into, by group; 0: none
                "fold": 0,  # the part that is held out of training, from 0
                "seed": -1,  # of order and augmentation; -1: the run's own
                "channels": 1,  # 1 grey, 3 RGB
                "resolution": 64,  # of the last stage, in pixels: a power of two
                "resize": 0,  # first resize the whole image to this; 0: do not
                "crop": 0,  # then crop this centre; 0: the largest square
                "equalize": False,  # then equalise the histogram
                "size": 0,  # then resize to this and store; 0: the resolution
                "random_crop": False,  # of `resolution` from `size`, anew each epoch
                "horizontal_flip": False,  # with probability 1/2
                "vertical_flip": False,
                "skip_corrupt": False,  # leave unreadable images out and list them
                "workers": 0,  # decoding threads; 0: one for each core
                "residency": "auto",  # images on the device, or stream: auto chooses
            },
            "model": {
                "kind": "residual18",
                "latent_resolution": 1,
                "latent_channels": 16,
                "encoder_channels": (16, 16, 16, 16, 16),  # high to low resolution
                "decoder_channels": (16, 16, 16, 16, 16),  # low to high resolution
            },
            "stages": {
                "initial_resolution": 8,  # equal to data.resolution: no growing
                "transition_steps": 20_000,
                "stabilization_steps": 20_000,
                "final_steps": 3_500,  # of the last stabilization
            },
            "perceptual": {
                "weights": "imagenet",  # or a file, or random:SEED
                "statistics": "imagenet",  # or a file, or train: of the training images
                # resolution:layer, several layers as r32*1+r42*0.5
                "layers": "8:r12 16:r22 32:r32 64:r42",
                "image_weight": 0.0,
                "normalize": True,  # loss.perceptual alone: by the statistics
                "cache_targets": "auto",  # features of the training images kept
            },
            "loss": {  # the weight of each term
                "relative_perceptual": 1.0,
                "perceptual": 0.0,
                "l1": 0.0,
                "l2": 0.0,
                "adversarial": 0.0,  # WGAN-GP; never part of the score
                "smooth_transition": True,  # mix in the loss at half the resolution
            },
            "adversarial": {"discriminator_steps": 2},  # before each of the autoencoder
            "optimizer": {"learning_rate": 1e-3},
            "early_stopping": {  # in the last stage, on the loss of the held-out fold
                "every": 0,  # steps between looks at it; 0: never
                "patience": 3,  # looks without improvement that are borne
                "min_delta": 1e-3,  # that counts as an improvement
            },
            "population": {"seeds": 1},  # runs of this seed, the next, ... at once
            "batch_size": 128,
            "precision": "auto",  # bfloat16 on GPU and TPU, float32 on CPU
            "seed": 0,
            "log_every": 100,  # steps
            "checkpoint_every": 5_000,  # steps; also at the end of each stage
            "sample_every": 5_000,  # steps between grids of reconstructions
        }
    )


def load(location: str) -> ml_collections.ConfigDict:
    """Reads a configuration from `FILE.py[:ARGUMENT]`, `FILE.json` or `FILE.yaml`.

    A relative file that is not in the working folder is looked for among the
    configs that come with the package. YAML is the published code's own format.

    Raises:
      UsageError: there is no such file, it defines no `get_config`, or it holds keys
        that do not exist here.
    """
    name, _, argument = location.partition(":")
    path = _find(name)
    if path.suffix == ".py":
        return _from_python(path, argument)
    if argument:
        raise errors.UsageError(f"only a .py config takes an argument: {location}")
    if path.suffix == ".json":
        try:
            return from_json(path.read_text(encoding="utf-8"), str(path))
        except UnicodeDecodeError as error:
            raise errors.UsageError(f"{path} is not JSON: {error}") from None
    if path.suffix in (".yaml", ".yml"):
        from dpa_jax.interop import reference_config

        return reference_config.load(path)
    raise errors.UsageError(f"a config is a .py, .json or .yaml file, not {name}")


def _from_python(path: pathlib.Path, argument: str) -> ml_collections.ConfigDict:
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise errors.UsageError(f"{path} defines no get_config()")
        if argument and not inspect.signature(module.get_config).parameters:
            raise errors.UsageError(f"{path} takes no argument, so not {argument!r}")
        config = module.get_config(argument) if argument else module.get_config()
    except errors.DpaError:
        raise
    except Exception as error:  # whatever may be wrong with somebody's program
        raise errors.UsageError(
            f"{path} fails with {type(error).__name__}: {error}; --debug shows where"
        ) from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise errors.UsageError(
            f"{path}: get_config() returns {type(config).__name__}, not a ConfigDict"
        )
    return config


def _find(name: str) -> pathlib.Path:
    path = pathlib.Path(name)
    package = pathlib.Path(__file__).resolve().parent
    for candidate in (path, package.parent / path, package / path):
        if candidate.is_file() and not (path.is_absolute() and candidate != path):
            return candidate
    shipped = next(
        (d for d in (package / "configs", package.parent / "configs") if d.is_dir()),
        None,
    )
    known = sorted(f"configs/{p.name}" for p in shipped.glob("*.py")) if shipped else []
    raise errors.UsageError(f"no config {name}; with dpa_jax come {', '.join(known)}")


def from_json(text: str, source: str) -> ml_collections.ConfigDict:
    """Returns the configuration that `to_json` wrote; `source` names it in errors."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise errors.UsageError(f"{source} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise errors.UsageError(f"{source} does not hold a configuration")
    return updated(default_config(), dict(_flat(values)), source)


def to_json(config: ml_collections.ConfigDict) -> str:
    """Returns the configuration as indented JSON, in a fixed order."""
    return json.dumps(config.to_dict(), indent=2) + "\n"


def updated(
    config: ml_collections.ConfigDict, overrides: Mapping[str, Any], source: str
) -> ml_collections.ConfigDict:
    """Returns a copy with some fields replaced.

    Args:
      config: what to start from.
      overrides: values by dotted name, such as `{"data.channels": 3}`.
      source: named in errors.

    Raises:
      UsageError: a name does not exist (the nearest that does is suggested), or a
        value is of the wrong type.
    """
    known = dict(_flat(config.to_dict()))
    result = config.copy_and_resolve_references()
    for name, value in overrides.items():
        if name not in known:
            raise errors.UsageError(f"{source}: {unknown_key(name, known)}")
        section, _, leaf = name.rpartition(".")
        target = result
        for part in section.split(".") if section else ():
            target = target[part]
        if isinstance(known[name], tuple) and isinstance(value, list):
            value = tuple(value)
        try:
            target[leaf] = value
        except TypeError:
            raise errors.UsageError(
                f"{source}: {name} is {type(known[name]).__name__}, "
                f"not {type(value).__name__} ({value!r})"
            ) from None
    return result


def with_flags(
    config: ml_collections.ConfigDict, flags: Sequence[str], prefix: str = "config"
) -> ml_collections.ConfigDict:
    """Returns the configuration with some fields set from the command line.

    Args:
      config: what to start from.
      flags: such as `--config.data.channels=3`; values are read as ml_collections'
        config_flags reads them.
      prefix: what stands before a field's name.

    Raises:
      UsageError: a flag names no field, or its value cannot be read.
    """
    from absl import flags as absl_flags
    from ml_collections import config_flags

    known = flat(config)
    for flag in flags:
        name = flag.removeprefix(f"--{prefix}.").partition("=")[0]
        if name not in known:
            raise errors.UsageError(f"{flag}: {unknown_key(name, known)}")
        if "=" not in flag:
            raise errors.UsageError(f"{flag} lacks a value: {flag}=VALUE")
    values = absl_flags.FlagValues()
    result = config.copy_and_resolve_references()
    argv = ["dpa-jax", *flags]  # or it would look for them in sys.argv
    try:
        config_flags.DEFINE_config_dict(
            prefix, result, flag_values=values, sys_argv=argv
        )
        values(argv)
    except (absl_flags.Error, ValueError, TypeError) as error:
        culprit = next((f for f in flags if f in str(error)), " ".join(flags))
        name = culprit.removeprefix(f"--{prefix}.").partition("=")[0]
        default = known.get(name)
        raise errors.UsageError(
            f"{culprit}: {name} takes {type(default).__name__}, such as {default!r}"
        ) from error
    return result


def unknown_key(name: str, known: Mapping[str, Any]) -> str:
    """Says that a config key does not exist and which one may have been meant."""
    near = difflib.get_close_matches(name, known, 1, 0.5)
    leaf = name.rpartition(".")[2]
    near = [k for k in known if k.rpartition(".")[2] == leaf][:1] or near
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"there is no config key {name}{hint}"


def flat(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns the configuration's values by dotted name."""
    return dict(_flat(config.to_dict()))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def perceptual_layers(text: str) -> dict[int, tuple[tuple[str, float], ...]]:
    """Reads `perceptual.layers`.

    Args:
      text: `RESOLUTION:LAYER[*WEIGHT][+LAYER...]`, several separated by spaces.

    Returns:
      For each resolution its layers with their weights.

    Raises:
      UsageError: an entry cannot be read.
    """
    layers: dict[int, tuple[tuple[str, float], ...]] = {}
    for entry in text.split():
        resolution, colon, terms = entry.partition(":")
        try:
            pairs = tuple(
                (name, float(weight) if star else 1.0)
                for name, star, weight in (t.partition("*") for t in terms.split("+"))
            )
            if not colon or int(resolution) in layers:
                raise ValueError
            layers[int(resolution)] = pairs
        except ValueError:
            raise errors.UsageError(
                f"perceptual.layers: cannot read {entry!r}; "
                "write it as 64:r42 or 64:r32*1+r42*0.5, each resolution once"
            ) from None
    return layers


def stored_size(config: ml_collections.ConfigDict) -> int:
    """Returns the side in pixels at which images are kept in memory."""
    return config.data.size or config.data.resolution


def data_seed(config: ml_collections.ConfigDict) -> int:
    """Returns the seed of the order of images and of their augmentation."""
    return config.seed if config.data.seed < 0 else config.data.seed


def validate(config: ml_collections.ConfigDict) -> None:
    """Checks all that can be checked without images or weights.

    Raises:
      UsageError: naming the field, its value and what is possible.
    """

    def check(condition: bool, message: str):
        if not condition:
            raise errors.UsageError(message)

    _check_fields(flat(config), flat(default_config()))
    data, model, stages = config.data, config.model, config.stages
    for name, least in (
        ("data.resize", 0),
        ("data.crop", 0),
        ("data.size", 0),
        ("data.workers", 0),
        ("data.folds", 0),
        ("data.fold", 0),
        ("data.seed", -1),
        ("adversarial.discriminator_steps", 1),
        ("early_stopping.every", 0),
        ("early_stopping.patience", 0),
        ("early_stopping.min_delta", 0),
        ("population.seeds", 1),
        ("model.latent_channels", 1),
        ("stages.final_steps", 1),
        ("batch_size", 1),
        ("seed", 0),
        ("log_every", 1),
        ("checkpoint_every", 1),
        ("sample_every", 1),
    ):
        value = flat(config)[name]
        check(value >= least, f"{name} is {value}; it must be at least {least}")
    check(
        data.channels in (1, 3), f"data.channels is {data.channels}; it may be 1 or 3"
    )
    choices = {
        "model.kind": KINDS,
        "precision": PRECISIONS,
        "data.residency": ("auto", "device", "stream"),
        "perceptual.cache_targets": ("auto", "always", "never"),
    }
    for name, options in choices.items():
        value = flat(config)[name]
        near = difflib.get_close_matches(str(value), options, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        check(
            value in options,
            f"{name} is {value!r}; it may be {', '.join(options)}{hint}",
        )
    final, first, latent = (
        data.resolution,
        stages.initial_resolution,
        model.latent_resolution,
    )
    for name, value in (
        ("data.resolution", final),
        ("stages.initial_resolution", first),
        ("model.latent_resolution", latent),
    ):
        check(
            value >= 1 and value & (value - 1) == 0,
            f"{name} is {value}; it must be a power of two",
        )
    base = lowest_resolution(latent)
    check(
        first <= final,
        f"stages.initial_resolution is {first}, above data.resolution {final}",
    )
    check(
        first > base,
        f"stages.initial_resolution is {first}; with model.latent_resolution "
        f"{latent} it must be at least {2 * base}",
    )
    if first < final:
        for name in ("transition_steps", "stabilization_steps"):
            check(
                stages[name] >= 1,
                f"stages.{name} is {stages[name]}; growing needs at least 1",
            )
    size = stored_size(config)
    check(
        data.random_crop or size == final,
        f"data.size is {size} but data.resolution {final}: "
        "that needs data.random_crop (evaluation then takes the centre)",
    )
    check(size >= final, f"data.size {size} is below data.resolution {final}")
    needed = int(math.log2(final // base)) + 1
    for name in ("encoder_channels", "decoder_channels"):
        count = len(model[name])
        check(
            count == needed and all(c >= 1 for c in model[name]),
            f"model.{name} has {count} entries; from {final} down to {base} pixels "
            f"it needs {needed}, each at least 1",
        )
    if latent > 1:
        for name, channels in (
            ("decoder_channels[0]", model.decoder_channels[0]),
            # the encoder's last block may change the channels; the decoder's may not
        ):
            check(
                channels == model.latent_channels,
                f"model.{name} is {channels}; with a spatial latent it must equal "
                f"model.latent_channels ({model.latent_channels})",
            )
    check(
        0 < config.optimizer.learning_rate,
        f"optimizer.learning_rate is {config.optimizer.learning_rate}",
    )
    weights = {
        name: value
        for name, value in config.loss.items()
        if name != "smooth_transition"
    }
    for name, weight in weights.items():
        check(weight >= 0, f"loss.{name} is {weight}; weights are not negative")
    check(
        any(weight for name, weight in weights.items() if name != "adversarial"),
        "every weight under loss that scores images is 0: nothing to train",
    )
    check(
        data.folds != 1 and data.fold < max(1, data.folds),
        f"data.fold is {data.fold} of data.folds {data.folds}; there are none with 0, "
        "and else at least 2, counted from 0",
    )
    check(
        data.folds or not config.early_stopping.every,
        "early_stopping.every needs held-out images: set data.folds, such as to 3",
    )
    check(config.perceptual.image_weight >= 0, "perceptual.image_weight is negative")
    _validate_layers(config, check)


def _check_fields(values: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for name in values:
        if name not in known:
            raise errors.UsageError(unknown_key(name, known))
    for name, default in known.items():
        if name not in values:
            raise errors.UsageError(f"the config lacks {name}")
        value = values[name]
        if type(value) is not type(default):
            raise errors.UsageError(
                f"{name} is {value!r}; it takes {type(default).__name__}, "
                f"such as {default!r}"
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise errors.UsageError(f"{name} is {value}; it must be finite")
        if isinstance(value, tuple) and not all(type(v) is int for v in value):
            raise errors.UsageError(f"{name} is {value!r}; it takes whole numbers")


def lowest_resolution(latent_resolution: int) -> int:
    """Returns the resolution at which the blocks end: 4 before a 1x1 latent."""
    return 4 if latent_resolution == 1 else latent_resolution


def uses_vgg(config: ml_collections.ConfigDict) -> bool:
    """Says whether the loss looks at VGG19 features at all."""
    return bool(config.loss.relative_perceptual or config.loss.perceptual)


def _validate_layers(config, check) -> None:
    from dpa_jax import vgg

    if not uses_vgg(config):
        return
    layers = perceptual_layers(config.perceptual.layers)
    resolution = config.stages.initial_resolution
    while resolution <= config.data.resolution:
        check(
            resolution in layers,
            f"perceptual.layers names no layer for {resolution} pixels: "
            f"{config.perceptual.layers!r}",
        )
        for layer, weight in layers[resolution]:
            near = difflib.get_close_matches(layer, vgg.LAYERS, 1)
            check(
                layer in vgg.LAYERS,
                f"perceptual.layers: there is no VGG19 layer {layer!r}"
                + (f"; did you mean {near[0]}?" if near else ""),
            )
            check(weight > 0, f"perceptual.layers: {layer} has weight {weight}")
            check(
                resolution >= vgg.stride(layer),
                f"perceptual.layers: {layer} has no pixel left of a {resolution} "
                f"pixel image; it needs {vgg.stride(layer)}",
            )
        resolution *= 2


def save(config: ml_collections.ConfigDict, path: str | os.PathLike) -> None:
    """Writes the configuration as JSON, atomically."""
    with formats.replacing(pathlib.Path(path)) as temporary:
        temporary.write_text(to_json(config), encoding="utf-8")

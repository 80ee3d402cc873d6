"""The configuration of a run: its defaults, changes to it, and what it implies."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_collections

from dpa_jax import errors

AUTO = "auto"


def default_config() -> ml_collections.ConfigDict:
    """Returns the NIH subset run with progressive growing, without its data.

    Every field is described beside its default. Locations of images are a folder, an
    image, a NIfTI volume, a CSV manifest `FILE.csv` or `FILE.csv:SPLIT`, an .npz or
    `tfds:NAME/CONFIG:SPLIT`.
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
                "plane": "axial",  # of the slices of NIfTI volumes; coronal, sagittal
                "size": 0,  # then resize to this and store; 0: the resolution
                "random_crop": False,  # of `resolution` from `size`, anew each epoch
                "horizontal_flip": False,  # with probability 1/2
                "vertical_flip": False,
                "skip_corrupt": False,  # leave unreadable images out and list them
                "workers": 0,  # decoding threads; 0: one for each core
                "residency": "auto",  # images on the device, or stream: auto chooses
            },
            "model": {
                "kind": "residual18",  # or residual9, or module:function
                "latent_resolution": 1,
                "latent_channels": 16,
                # at each resolution; one number is for all of them
                "encoder_channels": (16,),  # high to low resolution
                "decoder_channels": (16,),  # low to high resolution
            },
            "stages": {
                "initial_resolution": 8,  # equal to data.resolution: no growing
                "transition_steps": 20_000,
                "stabilization_steps": 20_000,
                "final_steps": 3_500,  # of the last stabilization
            },
            "perceptual": {
                "backbone": "vgg19",  # or resnet50, or module:function
                "weights": "imagenet",  # or a file, or random:SEED
                "statistics": "imagenet",  # or a file, or train: of the training images
                # resolution:layer for each stage's, several as 64:r32*1+r42*0.5;
                # auto: of vgg19, 8:r12 16:r22 32:r32 64:r42 128:r52
                "layers": "auto",
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
                "extra": "",  # a term of your own, module:function
                "extra_weight": 1.0,
                "smooth_transition": True,  # mix in the loss at half the resolution
            },
            "adversarial": {"discriminator_steps": 2},  # before each of the autoencoder
            "optimizer": {  # begun anew at each stage
                "name": "adam",  # adamw, sgd, lion, adafactor or module:function
                "learning_rate": 1e-3,
                "schedule": "constant",  # cosine or linear: to 0 at a stage's end
                "warmup_steps": 0,  # of each stage, up to the rate
                "gradient_clip": 0.0,  # the largest norm of a gradient; 0: any
                "weight_decay": 0.0,  # of adamw, lion and adafactor
            },
            "early_stopping": {  # in the last stage, on the loss of the held-out fold
                "every": 0,  # steps between evaluations; 0: never
                "patience": 3,  # evaluations in a row that need not improve
                "min_delta": 1e-3,  # that counts as an improvement
            },
            "population": {"seeds": 1},  # runs of this seed, the next, ... at once
            "batch_size": 128,
            # parts of a batch taken one after the other, in less memory; 0: chosen
            "batch_parts": 0,
            "precision": "auto",  # bfloat16 on GPU and TPU, float32 on CPU
            # the fastest arrangement of a stage on a GPU or TPU, timed once and kept in
            # this folder; auto: in the cache's; off: the usual arrangement
            "autotune": "auto",
            "seed": 0,
            # steps dispatched at once, without effect on results; 0: by resolution
            "steps_per_chunk": 0,
            "log_every": 100,  # steps
            "checkpoint_every": 5_000,  # steps; also at the end of each stage
            "sample_every": 5_000,  # steps between grids of reconstructions
        }
    )


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
    known = dict(flattened(config.to_dict()))
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
    """Returns a message that a config key does not exist, and the nearest that does."""
    near = difflib.get_close_matches(name, known, 1, 0.5)
    leaf = name.rpartition(".")[2]
    near = [k for k in known if k.rpartition(".")[2] == leaf][:1] or near
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"there is no config key {name}{hint}"


def flat(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns the configuration's values by dotted name."""
    return dict(flattened(config.to_dict()))


def flattened(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the values of nested dictionaries, by dotted name."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{key}.")
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


def lowest_resolution(latent_resolution: int) -> int:
    """Returns the resolution at which the blocks end: 4 before a 1x1 latent."""
    return 4 if latent_resolution == 1 else latent_resolution


def resolutions(config: ml_collections.ConfigDict) -> tuple[int, ...]:
    """Returns the resolutions of the stages, from the initial one doubled."""
    first, last = config.stages.initial_resolution, config.data.resolution
    return tuple(first << i for i in range((last // first).bit_length()))


def completed(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Returns a copy in which values that follow from the resolution are filled in.

    These are `model.encoder_channels` and `model.decoder_channels` of one entry, and
    `perceptual.layers` that are `auto` for vgg19: of each resolution the last layer of
    those with features of 8 pixels a side, or the deepest if all have more.

    Args:
      config: whose resolutions are powers of two in ascending order.
    """
    result = config.copy_and_resolve_references()
    base = lowest_resolution(result.model.latent_resolution)
    count = (result.data.resolution // base).bit_length()
    for name in ("encoder_channels", "decoder_channels"):
        if len(result.model[name]) == 1:
            result.model[name] *= count
    if result.perceptual.layers == AUTO and result.perceptual.backbone == "vgg19":
        result.perceptual.layers = " ".join(
            f"{resolution}:r{min(5, max(1, (resolution // 8).bit_length()))}2"
            for resolution in resolutions(result)
        )
    return result


def is_perceptual(config: ml_collections.ConfigDict) -> bool:
    """Returns whether the loss compares features of the backbone at all."""
    loss = config.loss
    own = loss.extra and config.perceptual.layers
    return bool(loss.relative_perceptual or loss.perceptual or own)


def has_random_weights(config: ml_collections.ConfigDict) -> bool:
    """Returns whether the backbone's weights are drawn at random, not trained."""
    return is_perceptual(config) and config.perceptual.weights.startswith("random:")

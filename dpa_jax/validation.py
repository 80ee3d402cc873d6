"""What a configuration must satisfy before a run starts."""

import difflib
import math
from collections.abc import Mapping
from typing import Any

import ml_collections

from dpa_jax import errors, extensions, models, optim
from dpa_jax.config import (
    AUTO,
    completed,
    default_config,
    flat,
    is_perceptual,
    lowest_resolution,
    perceptual_layers,
    resolutions,
    stored_size,
    unknown_key,
)
from dpa_jax.ops import compute
from dpa_jax.stages import schedule


def validate(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Checks all that can be checked without images or weights.

    Returns:
      The configuration as a run keeps it: see `config.completed`.

    Raises:
      UsageError: naming the field, its value and what is possible.
    """

    def check(condition: bool, message: str):
        if not condition:
            raise errors.UsageError(message)

    _check_fields(flat(config), flat(default_config()))
    check(bool(config.autotune), "autotune is empty; it may be auto, off or a folder")
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
        ("batch_parts", 0),
        ("steps_per_chunk", 0),
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
        "model.kind": models.KINDS,
        "optimizer.name": optim.NAMES,
        "optimizer.schedule": optim.SCHEDULES,
        "precision": compute.PRECISIONS,
        "data.residency": ("auto", "device", "stream"),
        "perceptual.cache_targets": ("auto", "always", "never"),
    }
    for name, options in choices.items():
        value = flat(config)[name]
        if name in extensions.FIELDS and extensions.is_extension(value):
            extensions.load(value, name)
            continue
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
    config = completed(config)
    model = config.model
    needed = int(math.log2(final // base)) + 1
    for name in ("encoder_channels", "decoder_channels"):
        count = len(model[name])
        check(
            count == needed and all(c >= 1 for c in model[name]),
            f"model.{name} has {count} entries; from {final} down to {base} pixels "
            f"it needs {needed}, or one for all, each at least 1",
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
        name: config.loss[name]
        for name in (
            *("relative_perceptual", "perceptual", "l1", "l2", "adversarial"),
            "extra_weight",
        )
    }
    if not config.loss.extra:
        weights.pop("extra_weight")
    elif not extensions.is_extension(config.loss.extra):
        check(False, f"loss.extra is {config.loss.extra!r}; write module:function")
    else:
        extensions.load(config.loss.extra, "loss.extra")
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
    _validate_optimizer(config, check)
    check(config.perceptual.image_weight >= 0, "perceptual.image_weight is negative")
    _validate_layers(config, check)
    return config


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


def _validate_optimizer(config, check) -> None:
    given, shortest = (
        config.optimizer,
        min(s.steps for s in schedule(config)),
    )
    for name in ("warmup_steps", "gradient_clip", "weight_decay"):
        check(given[name] >= 0, f"optimizer.{name} is {given[name]}; it is negative")
    check(
        given.warmup_steps < shortest,
        f"optimizer.warmup_steps is {given.warmup_steps}; the shortest stage has "
        f"{shortest} steps, and each begins anew",
    )
    check(
        not given.weight_decay or given.name in optim.DECAYS,
        f"optimizer.weight_decay is {given.weight_decay}; of the optimizers "
        f"{', '.join(optim.DECAYS)} take one, {given.name} does not",
    )


def _validate_layers(config, check) -> None:
    from dpa_jax.backbones import base

    backbone = base.named(config.perceptual.backbone)
    if not is_perceptual(config):
        return
    check(
        config.perceptual.statistics != "imagenet" or backbone.name == "vgg19",
        "perceptual.statistics=imagenet are those of vgg19; with perceptual.backbone="
        f"{backbone.name} set it to train, or to a file",
    )
    stages, example = resolutions(config), f"{config.data.resolution}:LAYER"
    check(
        config.perceptual.layers != AUTO,
        f"perceptual.layers is auto, which {backbone.name} has none for; name a layer "
        f"for each resolution, such as {example}",
    )
    layers = perceptual_layers(config.perceptual.layers)
    unused = [entry for entry in layers if entry not in stages]
    given = config.perceptual.layers.split()
    check(
        not unused,
        "perceptual.layers: no stage uses "
        f"{' '.join(e for e in given if int(e.partition(':')[0]) in unused)}; the "
        f"stages have {', '.join(map(str, stages))} pixels",
    )
    for resolution in stages:
        check(
            resolution in layers,
            f"perceptual.layers names no layer for {resolution} pixels: "
            f"{config.perceptual.layers!r}",
        )
        for layer, weight in layers[resolution]:
            backbone.check_layers([layer], "perceptual.layers")
            check(weight > 0, f"perceptual.layers: {layer} has weight {weight}")

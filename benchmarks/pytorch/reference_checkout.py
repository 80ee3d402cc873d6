"""The published code's own train step, from a clone on the user's disk.

Only its public classes are called; none of its code is here. It stands beside
`steps.published` to show that the latter is no straw man.
"""

import contextlib
import importlib
import importlib.util
import pathlib
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.pytorch import losses, networks
from benchmarks.pytorch.networks import Parameters
from benchmarks.pytorch.steps import StageSpec, Step
from dpa_jax import errors
from dpa_jax.interop import reference_checkpoint


def train_step(
    checkout: str,
    stage: StageSpec,
    parameters: Parameters,
    vgg: Mapping[str, Parameters],
    statistics: Mapping[str, Parameters],
    learning_rate: float,
    device: str,
    full_resolution: int,
) -> Step:
    """Makes the published code's train step, from its own classes.

    Args:
      checkout: folder of a clone of github.com/ninatu/anomaly_detection.
      stage: see `steps.published`, as all up to `device`.
      parameters: copied.
      vgg: copied; layers it lacks must not be needed.
      statistics: put in the place of those that the clone brings.
      learning_rate: of Adam.
      device: `cpu` or `cuda`.
      full_resolution: of the images that the step will be given, in pixels.

    Returns:
      A function of images and alpha that takes one step and returns the loss before it.

    Raises:
      DpaError: the folder holds no such clone, or a package that it needs is missing.
    """
    code = _import_from(checkout, vgg)
    kind = code.pg_networks.ProgGrowStageType["trns" if stage.transition else "stab"]
    encoder, decoder = (
        built.get_net(kind, stage.resolution)
        for built in _build_networks(code, stage.resolution, parameters)
    )
    _load(parameters, encoder, decoder)
    loss = code.pg_rec_losses.PGRelativePerceptualL1Loss(
        max_resolution=full_resolution,
        weights_per_resolution={
            resolution: {"img_weight": stage.image_weight, "feature_weights": layers}
            for resolution, layers in stage.layers.items()
        },
        use_smooth_pg=stage.smooth,
    )
    loss._loss.mean_var_dict = {
        layer: tuple(
            torch.tensor(np.asarray(values[name])).view(1, -1, 1, 1)
            for name in ("mean", "std")
        )
        for layer, values in statistics.items()
    }
    loss.set_stage_resolution(kind, stage.resolution)
    mix = code.data_generators.MixResolution(kind, stage.resolution, full_resolution)
    parts = [part.to(device) for part in (encoder, decoder, loss, mix)]
    optimizer = code.optimizer.Optimizer(
        enc_params=encoder.parameters(),
        dec_params=decoder.parameters(),
        ddis_params=[],
        image_adv_loss=None,
        image_rec_loss=loss,
        image_adv_weight=0,
        image_rec_weight=1,
        adam_kwargs={"lr": learning_rate},
    )

    def step(images: Tensor, alpha: float) -> float:
        for part in parts:
            part.set_progress(alpha)
        real = mix(images)
        found = optimizer.compute_enc_dec_loss(None, real, decoder(encoder(real)))
        return found["image_rec_loss"]

    return step


def _import_from(checkout: str, vgg: Mapping[str, Parameters]) -> types.SimpleNamespace:
    """Imports the clone's modules, with our weights where it would download VGG19's."""
    root = pathlib.Path(checkout).resolve()
    package = "anomaly_detection.dpa"
    if not (root / package.replace(".", "/") / "pg_networks.py").is_file():
        raise errors.DpaError(
            f"{checkout} holds no {package}: give the folder of a clone of "
            "github.com/ninatu/anomaly_detection"
        )
    names = (
        *("pg_networks", "pg_encoders", "pg_decoders", "pg_rec_losses"),
        *("optimizer", "data_generators", "feature_extractor"),
    )
    sys.path.insert(0, str(root))
    try:
        with _torchvision():
            code = types.SimpleNamespace(
                **{name: importlib.import_module(f"{package}.{name}") for name in names}
            )
    except ImportError as error:
        raise errors.DpaError(
            f"the code in {checkout} does not import ({error}): install what it needs"
        ) from error
    finally:
        sys.path.remove(str(root))
    code.feature_extractor.vgg19 = lambda pretrained: types.SimpleNamespace(
        features=_all_convolutions(vgg)
    )
    return code


@contextlib.contextmanager
def _torchvision():
    """Lets the clone import torchvision where there is none.

    It needs the name alone: no data set is read, and VGG19's weights are ours.
    """
    if importlib.util.find_spec("torchvision") is not None:
        yield
        return
    models = types.ModuleType("torchvision.models")
    models.__dict__["vgg19"] = None
    torchvision = types.ModuleType("torchvision")
    torchvision.__dict__.update(models=models, datasets=None)
    added = {"torchvision": torchvision, "torchvision.models": models}
    sys.modules.update(added)
    try:
        yield
    finally:
        for name in added:
            del sys.modules[name]


def _all_convolutions(vgg: Mapping[str, Parameters]) -> nn.Sequential:
    """Returns VGG19's sixteen convolutions; those not given are zero."""
    convolutions, inputs = [], 3
    for layer in losses.layers_up_to("p5"):
        if layer[0] == "c":
            outputs = min(64 * 2 ** (int(layer[1]) - 1), 512)
            zeros = {"kernel": np.zeros((3, 3, inputs, outputs), np.float32)}
            zeros["bias"] = np.zeros(outputs, np.float32)
            convolutions.append(networks.convolution(vgg.get(layer, zeros)))
            inputs = outputs
    return nn.Sequential(*convolutions)


def _build_networks(code: Any, resolution: int, parameters: Parameters) -> tuple:
    """Builds the clone's encoder and decoder networks with our shapes."""
    encoder, decoder = parameters["encoder"], parameters["decoder"]
    entry = encoder[f"from_image_{resolution}"]
    blocks = networks.block_resolutions(encoder, resolution)  # high to low
    image_channels, first = entry["conv"]["kernel"].shape[2:]
    kind = code.pg_networks.NetworkType[
        "residual18" if "preact_1" in entry else "residual9"
    ]
    lowest = blocks[-1] // 2 if blocks else resolution
    latent_resolution = 1 if "conv" in encoder["latent"] else lowest

    def width(block: Parameters) -> int:
        return block.get("conv", block.get("conv_1"))["kernel"].shape[-1]

    latent_channels = width(encoder["latent"])
    widths = [first] + [width(encoder[f"block_{r}"]["down"]) for r in blocks]
    encoders = code.pg_encoders.ENCODER_NETWORKS[kind](
        max_input_res=resolution,
        output_res=latent_resolution,
        input_dim=image_channels,
        output_dim=latent_channels,
        inner_dims=widths,
    )
    widths = [width(decoder["latent"])]
    widths += [width(decoder[f"block_{r}"]["up"]) for r in blocks[::-1]]
    decoders = code.pg_decoders.DECODER_NETWORKS[kind](
        input_res=latent_resolution,
        max_output_res=resolution,
        input_dim=latent_channels,
        output_dim=image_channels,
        inner_dims=widths,
    )
    return encoders, decoders


def _load(parameters: Parameters, encoder: nn.Module, decoder: nn.Module):
    """Copies our parameters into the clone's networks.

    Its numbers are replaced by their indices and imported as a checkpoint's are: where
    an index arrives in our tree is where the number comes from.
    """
    tensors = [
        {name: p for name, p in net.named_parameters() if p.requires_grad}
        for net in (encoder, decoder)
    ]
    ends = np.cumsum([p.numel() for state in tensors for p in state.values()])
    indices = iter(np.split(np.arange(ends[-1], dtype=np.float32), ends[:-1]))
    numbered = [
        {name: next(indices).reshape(p.shape) for name, p in state.items()}
        for state in tensors
    ]
    tree = reference_checkpoint.convert_parameters(*numbered)
    flat = np.empty(ends[-1], np.float32)
    for ours, index in _pairs(parameters, tree):
        flat[index.astype(int)] = ours
    with torch.no_grad():
        parts = iter(np.split(flat, ends[:-1]))
        for state in tensors:
            for p in state.values():
                p.copy_(torch.from_numpy(next(parts)).view(p.shape))


def _pairs(ours: Parameters, tree: Parameters) -> Iterator[tuple[Any, np.ndarray]]:
    for name, branch in tree.items():
        if isinstance(branch, Mapping):
            yield from _pairs(ours[name], branch)
        else:
            yield ours[name], branch

import copy
import logging

import jax
import numpy as np
import pytest
import yaml

from dpa_jax import errors, models, stages, validation
from dpa_jax.config import completed, default_config, flat, updated
from dpa_jax.interop import reference_checkpoint, reference_config
from dpa_jax.storage import config_files

GROWING = """
verbose: true
random_seed: 11
finetune_from:
checkpoint_root: ./out/checkpoint
log_root: ./out/log
max_image_res: 32
initial_image_res: 8
image_dim: 1
latent_res: 1
latent_dim: 5
trns_iter: 200
stab_iter: 300
iters_per_res:
  32:
    stab: 50
val_iter: 1000000
early_stopping_patience: 3
early_stopping_min_delta: 0.001
log_iter: 10
image_sample_iter: 1000
adam_kwargs:
  lr: 0.0005
batch_sizes:
  8: 56
  16: 56
  32: 56
train_dataset:
  dataset_type: nih
  dataset_kwargs:
    image_root: ./pictures/nih_300/
    split_root: ./lists/
    split: train
    cache_data: true
  transform_kwargs: &prepared
    crop_size: 224
    equalize_hist: true
    resize: 32
val_dataset:
  dataset_type: nih
  transform_kwargs: *prepared
enc:
  type: residual18
  kwargs:
    inner_dims: [1, 2, 3, 4, 5, 6]
dec:
  type: residual18
  kwargs:
    inner_dims: [6, 5, 4, 3, 2, 1]
image_rec_loss:
  loss_type: relative_perceptual_L1
  loss_kwargs:
    use_smooth_pg: true
    weights_per_resolution:
      8: {feature_weights: {r12: 1}, img_weight: 0}
      16: {feature_weights: {r22: 1, r31: 0.5}, img_weight: 0}
      32: {feature_weights: {r32: 1}, img_weight: 0}
results_root: ./out/results
test_batch_size: 32
test_model_path: ./out/checkpoint/anomaly_detection.tar
test_datasets:
  normal: {dataset_type: nih, transform_kwargs: *prepared}
  anomaly: {dataset_type: nih, transform_kwargs: *prepared}
"""

PATCHES = """
random_seed: 3
max_image_res: 64
initial_image_res: 64
image_dim: 3
latent_res: 8
latent_dim: 4
trns_iter: 0
stab_iter: 100000
iters_per_res: {64: {stab: 700}}
adam_kwargs: {lr: 0.0002}
batch_size: 32
batch_sizes: {64: 128}
train_dataset:
  dataset_type: camelyon16
  transform_kwargs: {crop_size: 64, random_crop: true, random_flip: true}
enc: {type: residual18, kwargs: {inner_dims: [4, 4, 4, 4, 4, 4, 4]}}
dec: {type: residual18, kwargs: {inner_dims: [4, 4, 4, 4, 4, 4, 4]}}
image_rec_loss:
  loss_type: compose
  loss_kwargs:
    loss_1:
      loss_type: relative_perceptual_L1
      loss_weight: 1
      loss_kwargs:
        weights_per_resolution:
          64: {feature_weights: {r42: 1}, img_weight: 0}
    loss_2: {loss_type: l1, loss_weight: 0.1, loss_kwargs: {}}
loss_weights: {image_adv_loss: 0.5, image_rec_loss: 1}
image_adv_loss:
  loss_type: wasserstein
  loss_kwargs: {gradient_penalty: 10, lambd: 1, norm_penalty: 0.001}
ddis: {type: residual18, kwargs: {inner_dims: [4, 4, 4, 4, 4, 4, 4]}}
n_dis: 2
test_datasets:
  normal: {dataset_type: camelyon16, transform_kwargs: {crop_size: 64}}
  anomaly: {dataset_type: camelyon16, transform_kwargs: {crop_size: 64}}
"""


def edited(text, changes):
    """Returns the mapping with values replaced by dotted name; ... deletes."""
    mapping = copy.deepcopy(yaml.safe_load(text))
    for name, value in changes.items():
        node = mapping
        *parents, last = [int(k) if k.isdigit() else k for k in name.split("/")]
        for key in parents:
            node = node.setdefault(key, {})
        if value is ...:
            del node[last]
        else:
            node[last] = value
    return mapping


def test_a_growing_run_is_mapped():
    overrides, _ = reference_config.from_reference(yaml.safe_load(GROWING))
    assert overrides == {
        "data.channels": 1,
        "data.resolution": 32,
        "data.resize": 300,
        "data.crop": 224,
        "data.equalize": True,
        "data.size": 0,
        "data.random_crop": False,
        "data.horizontal_flip": False,
        "data.vertical_flip": False,
        "model.kind": "residual18",
        "model.latent_resolution": 1,
        "model.latent_channels": 5,
        "model.encoder_channels": (3, 4, 5, 6),
        "model.decoder_channels": (6, 5, 4, 3),
        "stages.initial_resolution": 8,
        "stages.transition_steps": 200,
        "stages.stabilization_steps": 300,
        "stages.final_steps": 50,
        "perceptual.layers": "8:r12 16:r22+r31*0.5 32:r32",
        "perceptual.image_weight": 0.0,
        "loss.relative_perceptual": 1.0,
        "loss.perceptual": 0.0,
        "loss.l1": 0.0,
        "loss.l2": 0.0,
        "loss.smooth_transition": True,
        "optimizer.learning_rate": 0.0005,
        "batch_size": 56,
        "seed": 11,
    }


def test_a_composed_adversarial_run_on_random_crops_is_mapped():
    overrides, notes = reference_config.from_reference(yaml.safe_load(PATCHES))
    expected = {
        "data.crop": 192,
        "data.size": 192,
        "data.random_crop": True,
        "data.horizontal_flip": True,
        "data.vertical_flip": True,
        "model.encoder_channels": (4, 4, 4, 4),
        "model.latent_resolution": 8,
        "stages.final_steps": 700,
        "loss.relative_perceptual": 1.0,
        "loss.l1": 0.1,
        "loss.adversarial": 0.5,
        "adversarial.discriminator_steps": 2,
        "loss.smooth_transition": False,
        "perceptual.layers": "64:r42",
    }
    assert {name: overrides[name] for name in expected} == expected
    assert "stages.transition_steps" not in overrides
    validation.validate(updated(default_config(), overrides, ""))
    assert "not read by the published code: batch_size=32" in notes


def test_what_has_no_counterpart_but_does_no_harm_is_reported_with_its_value():
    overrides, notes = reference_config.from_reference(yaml.safe_load(GROWING))
    text = "\n".join(notes)
    for name in (
        "checkpoint_root='./out/checkpoint'",
        "train_dataset.dataset_kwargs.image_root='./pictures/nih_300/'",
        "train_dataset.dataset_kwargs.split_root='./lists/'",
        "test_datasets.normal.dataset_type='nih'",
        "early_stopping_patience=3",
        "verbose=True",
        "data.resize=300",
    ):
        assert name in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"enc/type": "regular", "dec/type": "regular"}, "enc.type 'regular'"),
        ({"dec/type": "residual9"}, "enc.type and dec.type differ"),
        ({"enc/kwargs/norm": "batch"}, "enc.kwargs.norm is 'batch'; only 'none'"),
        ({"dec/kwargs/use_wscale": True}, "dec.kwargs.use_wscale is True"),
        ({"enc/kwargs/other": 1}, r"enc.kwargs.other \(1\) has no counterpart"),
        ({"batch_sizes/16": 128}, r"batch_sizes \[56, 128\] differ"),
        ({"iters_per_res/16": {"stab": 7}}, "iters_per_res.16.stab 7 differs"),
        ({"iters_per_res/32/trns": 7}, "iters_per_res.32.trns 7 differs"),
        ({"adam_kwargs/betas": [0, 0.99]}, r"adam_kwargs.betas is \[0, 0.99\]"),
        ({"adam_kwargs/lr": "1e-3"}, "adam_kwargs.lr is '1e-3', expected float"),
        ({"adam_kwargs": None}, "adam_kwargs.lr is missing"),
        ({"random_seed": ...}, "random_seed is missing"),
        ({"latent_dim": True}, "latent_dim is True, expected int"),
        ({"max_image_res": 48}, "max_image_res 48 is not a doubling"),
        ({"initial_image_res": 0}, "not a doubling"),
        ({"finetune_from": "a.tar"}, "finetune_from is 'a.tar'"),
        ({"val_iter": 10}, "val_iter 10 with early_stopping_patience 3 may stop"),
        ({"surprise": {"a": 1}}, r"surprise.a \(1\) has no counterpart"),
        ({"enc/kwargs/inner_dims": [1, 2]}, "enc.kwargs.inner_dims is .*needed are 4"),
        ({"train_dataset/transform_kwargs/resize": 64}, "come out at 64 pixels"),
        (
            {"test_datasets/normal/transform_kwargs": {"crop_size": 200}},
            "normal.transform_kwargs.crop_size is 200 where training images have 224",
        ),
        ({"train_dataset/transform_kwargs/rotate": 5}, r"rotate \(5\)"),
        (
            {"train_dataset/transform_kwargs": {"crop_size": 32, "random_crop": True},
             "test_datasets": {}},
            "random_crop has no counterpart but for camelyon16",
        ),
        ({"image_rec_loss/loss_type": "ssim"}, "loss_type 'ssim'"),
        (
            {"image_rec_loss/loss_kwargs/weights_per_resolution/16/img_weight": 1},
            "img_weight differs between resolutions",
        ),
        (
            {"image_rec_loss/loss_kwargs/weights_per_resolution/16": ...},
            "weights_per_resolution.16.feature_weights is missing",
        ),
        (
            {"image_rec_loss/loss_kwargs/weights_per_resolution/16/style": 1},
            r"weights_per_resolution.16.style \(1\)",
        ),
        ({"image_rec_loss/loss_kwargs/reduction": "sum"}, "reduction is 'sum'"),
    ],
)  # fmt: skip
def test_what_would_change_the_run_is_refused_by_name(changes, message):
    with pytest.raises(errors.UsageError, match=f"a.yaml: .*{message}"):
        reference_config.from_reference(edited(GROWING, changes), "a.yaml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_dis": "2"}, "n_dis is '2', expected int"),
        ({"n_dis": ...}, "n_dis is missing"),
        ({"image_adv_loss/loss_type": "lsgan"}, "image_adv_loss.loss_type is 'lsgan'"),
        (
            {"image_adv_loss/loss_kwargs/gradient_penalty": 1},
            "image_adv_loss.loss_kwargs.gradient_penalty is 1",
        ),
        ({"ddis/kwargs/inner_dims": [8] * 7}, "ddis.kwargs.inner_dims .* differ"),
        ({"ddis/kwargs/inner_dims": [4] * 6 + [8]}, "inner_dims .* differ"),
        ({"loss_weights/image_rec_loss": 2}, "loss_weights.image_rec_loss is 2"),
        ({"image_rec_loss/loss_kwargs/loss_2/loss_type": "relative_perceptual_L1"},
         "occurs twice"),
    ],
)  # fmt: skip
def test_another_adversarial_or_composed_loss_is_refused(changes, message):
    with pytest.raises(errors.UsageError, match=message):
        reference_config.from_reference(edited(PATCHES, changes))


def test_a_smooth_transition_beside_l1_is_refused_only_while_growing():
    loss = edited(PATCHES, {})["image_rec_loss"]
    perceptual = loss["loss_kwargs"]["loss_1"]["loss_kwargs"]
    perceptual["use_smooth_pg"] = True
    overrides, _ = reference_config.from_reference(
        edited(PATCHES, {"image_rec_loss": loss})
    )
    assert overrides["loss.smooth_transition"] is True
    for resolution in (8, 16, 32):
        perceptual["weights_per_resolution"][resolution] = {
            "feature_weights": {"r12": 1}
        }
    with pytest.raises(errors.UsageError, match="use_smooth_pg beside an l1"):
        reference_config.from_reference(edited(GROWING, {"image_rec_loss": loss}))


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ({"loss_type": "l1", "loss_kwargs": {}}, {"loss.l1": 1.0}),
        ({"loss_type": "l2"}, {"loss.l2": 1.0}),
        (
            {
                "loss_type": "perceptual",
                "loss_kwargs": {
                    "weights_per_resolution": {
                        64: {"feature_weights": {"r32": 1}, "img_weight": 0.5}
                    }
                },
            },
            {
                "loss.perceptual": 1.0,
                "perceptual.layers": "64:r32",
                "perceptual.image_weight": 0.5,
                "perceptual.normalize": False,
            },
        ),
    ],
)
def test_other_losses_are_mapped(loss, expected):
    overrides, _ = reference_config.from_reference(
        edited(PATCHES, {"image_rec_loss": loss})
    )
    assert {name: overrides[name] for name in expected} == expected
    assert overrides["loss.relative_perceptual"] == 0.0
    assert overrides["loss.smooth_transition"] is False


def test_a_yaml_file_becomes_a_valid_config_and_the_rest_is_logged(tmp_path, caplog):
    path = tmp_path / "train_eval.yaml"
    path.write_text(GROWING)
    with caplog.at_level(logging.WARNING, "dpa_jax"):
        config = config_files.load(str(path))
    validation.validate(config)
    assert config.model.encoder_channels == (3, 4, 5, 6)
    assert "set data.train" in caplog.text and "log_iter=10" in caplog.text


ALIASES = "".join(
    f"a{n}: &a{n} {{{', '.join(f'b{i}: *a{n - 1}' for i in range(9))}}}\n"
    for n in range(1, 9)
)


@pytest.mark.parametrize(
    "text",
    [
        "- 1\n- 2\n",
        "a: [1,\n",
        "!!python/name:os.system",
        "[" * 5_000,
        "a: " + "9" * 5_000,
        "a: &a {b: *a}\n",  # an alias of itself
        "a0: &a0 {x: 1}\n" + ALIASES,  # 9 to the 8th options
    ],
)
def test_what_is_no_yaml_mapping_is_refused(tmp_path, text):
    path = tmp_path / "train_eval.yaml"
    path.write_text(text)
    with pytest.raises(errors.UsageError, match="train_eval.yaml"):
        reference_config.load(path)


# --- checkpoints --------------------------------------------------------------------


def published_state(config, stage, seed=0):
    """Makes both networks' arrays of a stage under the published names."""
    rng = np.random.default_rng(seed)
    a = models.Architecture.from_config(config)
    top, second = stage.resolution, 2 if a.deep else 1
    parts = {"enc": {}, "dec": {}}

    def conv(part, name, inputs, outputs, size=3):
        parts[part][f"model.{name}.model.0.weight"] = rng.normal(
            size=(outputs, inputs, size, size)
        ).astype(np.float32)
        parts[part][f"model.{name}.model.0.bias"] = rng.normal(size=outputs).astype(
            np.float32
        )

    def residual(part, name, inputs, outputs, first=1, skip="skipcon"):
        conv(part, f"{name}.model.{first}", inputs, outputs)
        conv(part, f"{name}.model.{first + 1}", outputs, outputs)
        if inputs != outputs:
            conv(part, f"{name}.{skip}", inputs, outputs, 1)

    def from_image(prefix, r):
        name, width = f"{prefix}preprocess_res_{r}", a.encoder_width(r)
        conv("enc", f"{name}.0", a.image_channels, width)
        for i in range(second):
            residual("enc", f"{name}.{i + 1}", width, width)

    def block(part, prefix, r):
        width = a.encoder_width if part == "enc" else a.decoder_width
        ends = (r, r // 2) if part == "enc" else (r // 2, r)
        ends = tuple(map(width, ends))
        residual(part, f"{prefix}res_{r}.0", *ends, 2, "skipcon.1")
        if a.deep:
            residual(part, f"{prefix}res_{r}.1", ends[1], ends[1])

    def to_image(prefix, r):
        conv("dec", f"{prefix}postprocess_res_{r}.1", a.decoder_width(r),
             a.image_channels)  # fmt: skip

    new = "concat.layer2." if stage.transition else ""
    if stage.transition:
        from_image("concat.layer1.", top // 2)
        to_image("concat.layer1.", top // 2)
        for part in parts.values():
            part["model.fadein._alpha"] = np.array([0.25], np.float32)
    from_image(new, top)
    to_image(new, top)
    for part in parts:
        resolution = top
        while resolution > a.base:
            block(part, new if resolution == top else "", resolution)
            resolution //= 2
    lowest = (a.encoder_width(a.base), a.latent_channels)
    if a.latent_resolution == 1:
        conv("enc", "res_4.1", *lowest, 4)
        conv("dec", "res_4.1", a.latent_channels, a.decoder_width(4), 4)
    else:
        residual("enc", f"res_{a.base}.0", *lowest)
        residual("dec", f"res_{a.base}.0", a.latent_channels, a.decoder_width(a.base))
    return parts["enc"], parts["dec"]


def expected_shapes(config, stage):
    a = models.Architecture.from_config(config)
    image = jax.ShapeDtypeStruct(
        (1, stage.resolution, stage.resolution, a.image_channels), "float32"
    )
    latent = jax.ShapeDtypeStruct(
        (1, a.latent_resolution, a.latent_resolution, a.latent_channels), "float32"
    )
    key = jax.random.key(0)
    return {
        name: jax.eval_shape(module(a, stage).init, key, x)["params"]
        for name, module, x in (
            ("encoder", models.Encoder, image),
            ("decoder", models.Decoder, latent),
        )
    }


@pytest.mark.parametrize("transition", [False, True])
@pytest.mark.parametrize("kind", ["residual18", "residual9"])
@pytest.mark.parametrize("latent", [1, 4])
def test_every_parameter_finds_its_place_in_the_model(
    tiny_config, kind, latent, transition
):
    tiny_config.model.kind = kind
    tiny_config.model.latent_resolution = latent
    tiny_config.model.encoder_channels = (3, 5, 6)  # widening: with skip convolutions
    tiny_config.model.decoder_channels = (4, 6, 5)
    stage = stages.Stage(16, transition, 4)
    encoder, decoder = published_state(tiny_config, stage)
    parameters = reference_checkpoint.convert_parameters(encoder, decoder)
    expected = expected_shapes(tiny_config, stage)
    reference_checkpoint.check_shapes(parameters, expected)
    count = sum(a.size for s in (encoder, decoder) for a in s.values())
    assert count - 2 * transition == sum(a.size for a in jax.tree.leaves(parameters))


def test_kernels_are_transposed_and_stand_where_they_belong(tiny_config):
    tiny_config.model.encoder_channels = (3, 4, 4)
    encoder, decoder = published_state(tiny_config, stages.Stage(16, False, 1))
    found = reference_checkpoint.convert_parameters(encoder, decoder)
    for path, name in {
        "encoder from_image_16 conv": "preprocess_res_16.0",
        "encoder from_image_16 preact_1 conv_0": "preprocess_res_16.2.model.1",
        "encoder block_16 down conv_0": "res_16.0.model.2",
        "encoder block_16 down conv_1": "res_16.0.model.3",
        "encoder block_16 down skip": "res_16.0.skipcon.1",
        "encoder block_8 preact conv_1": "res_8.1.model.2",
        "encoder latent conv": "res_4.1",
        "decoder latent conv": "res_4.1",
        "decoder block_8 up conv_0": "res_8.0.model.2",
        "decoder to_image_16 conv": "postprocess_res_16.1",
    }.items():
        node = found
        for key in path.split():
            node = node[key]
        state = encoder if path.startswith("encoder") else decoder
        weight = state[f"model.{name}.model.0.weight"]
        np.testing.assert_array_equal(node["kernel"], np.einsum("oihw->hwio", weight))
        np.testing.assert_array_equal(node["bias"], state[f"model.{name}.model.0.bias"])


@pytest.mark.parametrize(
    "name",
    [
        "model.res_16.0.model.4.model.0.weight",
        "model.res_16.0.norm.weight",
        "model.res_16.2.model.1.model.0.weight",
        "model.preprocess_res_16.0.model.0.running_mean",
        "stages.res_16.1.model.0.weight",
        "ema.weight",
    ],
)
def test_an_unknown_tensor_is_refused_by_name(tiny_config, name):
    encoder, decoder = published_state(tiny_config, stages.Stage(16, False, 1))
    decoder[name] = np.zeros((4, 4, 3, 3), np.float32)
    with pytest.raises(errors.DpaError, match=f"unknown tensor dec.{name}"):
        reference_checkpoint.convert_parameters(encoder, decoder)


def test_missing_damaged_or_misshapen_tensors_are_named(tiny_config):
    stage = stages.Stage(16, False, 1)
    encoder, decoder = published_state(tiny_config, stage)
    convert = reference_checkpoint.convert_parameters
    name = "model.res_16.0.model.2.model.0"

    with pytest.raises(errors.DpaError, match="block_16/down/conv_0/kernel is there w"):
        convert({k: v for k, v in encoder.items() if k != f"{name}.bias"}, decoder)
    with pytest.raises(errors.DpaError, match=rf"dec.{name}.bias has values that"):
        convert(encoder, {**decoder, f"{name}.bias": np.full(4, np.nan)})
    with pytest.raises(errors.DpaError, match=rf"enc.{name}.weight has shape \[4\]"):
        convert({**encoder, f"{name}.weight": np.zeros(4)}, decoder)

    expected = expected_shapes(tiny_config, stage)
    without = {k: v for k, v in encoder.items() if not k.startswith(name)}
    with pytest.raises(errors.DpaError, match="block_16/down/conv_0/bias is missing"):
        reference_checkpoint.check_shapes(convert(without, decoder), expected)
    wide = {**encoder, f"{name}.weight": np.zeros((4, 9, 3, 3))}
    with pytest.raises(errors.DpaError, match=r"conv_0/kernel has shape \[3, 3, 9, 4"):
        reference_checkpoint.check_shapes(convert(wide, decoder), expected)
    larger = published_state(tiny_config, stages.Stage(16, True, 1))
    with pytest.raises(errors.DpaError, match=r"to_image_8.* has no place .*11 more"):
        reference_checkpoint.check_shapes(convert(*larger), expected)


@pytest.fixture
def checkpoint(tmp_path):
    """Returns a function that writes a checkpoint in the published layout."""
    torch = pytest.importorskip("torch")

    def write(changes=(), stage="stab"):
        overrides, _ = reference_config.from_reference(yaml.safe_load(GROWING))
        config = updated(default_config(), overrides, "")
        at = stages.Stage(32, stage == "trns", 50)
        encoder, decoder = published_state(config, at)
        content = {
            "niter": 50,
            "config": yaml.safe_load(GROWING),
            "stage": stage,
            "resolution": 32,
            "progress": 0.25 if stage == "trns" else 1.0,
            "enc": {k: torch.from_numpy(v) for k, v in encoder.items()},
            "dec": {k: torch.from_numpy(v) for k, v in decoder.items()},
            **dict(changes),
        }
        content = {k: v for k, v in content.items() if v is not ...}
        torch.save(content, tmp_path / "anomaly_detection.tar")
        return tmp_path / "anomaly_detection.tar", config, at

    return write


@pytest.mark.parametrize(
    ("stage", "name", "alpha"),
    [("stab", "stabilization", 1.0), ("trns", "transition", 0.25)],
)
def test_a_checkpoint_is_read_with_its_config(checkpoint, stage, name, alpha):
    path, config, at = checkpoint({"optimizer": {"a": 1}}, stage)
    overrides, notes, parameters, info = reference_checkpoint.read_checkpoint(path)
    assert overrides["model.encoder_channels"] == (3, 4, 5, 6)
    assert "not needed for scoring: optimizer" in notes
    reference_checkpoint.check_shapes(parameters, expected_shapes(config, at))
    assert info == {
        "step": 50,
        "stage": name,
        "resolution": 32,
        "alpha": alpha,
        "parameters": sum(a.size for a in jax.tree.leaves(parameters)),
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"enc": ..., "config": ...}, "lacks config, enc"),
        ({"enc": {"a": 1}}, "must hold tensors"),
        ({"stage": "final"}, "unknown stage 'final'"),
        ({"config": {"max_image_res": 8}}, "initial_image_res is missing"),
        ({"config": None}, "not a mapping of options"),
        ({"niter": "50"}, "niter is '50', not a number"),
        ({"niter": float("nan")}, "niter is nan, not a number"),
        ({"stage": ["stab"]}, r"unknown stage \['stab'\]"),
    ],
)
def test_a_bad_checkpoint_is_named(checkpoint, changes, message):
    path, *_ = checkpoint(changes)
    with pytest.raises(errors.DpaError, match=f"anomaly_detection.tar.*{message}"):
        reference_checkpoint.read_checkpoint(path)


@pytest.mark.parametrize("kind", ["meta", "sparse"])
def test_a_tensor_without_values_is_named(checkpoint, kind):
    torch = pytest.importorskip("torch")
    empty = (
        torch.empty(2, device="meta") if kind == "meta" else torch.ones(2).to_sparse()
    )
    path, *_ = checkpoint({"enc": {"a.weight": empty}})
    with pytest.raises(
        errors.DpaError, match="anomaly_detection.tar: a.weight is no arr"
    ):
        reference_checkpoint.read_checkpoint(path)


def test_a_truncated_checkpoint_is_named(checkpoint):
    path, *_ = checkpoint()
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(errors.DpaError, match="anomaly_detection.tar"):
        reference_checkpoint.read_checkpoint(path)


def test_the_published_checkpoint(shared):
    pytest.importorskip("torch")
    path = shared / "fixtures" / "anomaly_detection.tar"
    overrides, _, parameters, info = reference_checkpoint.read_checkpoint(path)
    assert info["parameters"] == 92_049
    assert (info["stage"], info["resolution"]) == ("stabilization", 64)
    config = updated(default_config(), overrides, "")
    # the default configuration is this very run, but for its seed and its data
    ours = flat(completed(default_config()))
    differing = {k for k, v in flat(config).items() if ours[k] != v}
    assert differing <= {"seed", "data.crop", "data.resize"}
    stage = stages.schedule(config)[-1]
    reference_checkpoint.check_shapes(parameters, expected_shapes(config, stage))


def test_every_stage_of_the_published_run(shared):
    config = completed(default_config())
    with np.load(shared / "fixtures" / "stages_nih_subset_pg.npz") as archive:
        for stage in stages.schedule(config):
            for kind in ("param", "grad"):
                prefix = f"{stage.name}/{kind}/"
                state = {
                    part: {
                        name.removeprefix(f"{prefix}{part}."): archive[name]
                        for name in archive.files
                        if name.startswith(f"{prefix}{part}.")
                    }
                    for part in ("enc", "dec")
                }
                found = reference_checkpoint.convert_parameters(
                    state["enc"], state["dec"]
                )
                expected = expected_shapes(config, stage)
                reference_checkpoint.check_shapes(found, expected)

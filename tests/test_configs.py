import csv
import json
import pathlib

import pytest

import dpa_jax
from dpa_jax import errors, stages, validation
from dpa_jax.storage import config_files

FOLDER = pathlib.Path(dpa_jax.__file__).parents[1] / "configs"


@pytest.mark.parametrize(
    "location, resolutions, steps",
    [
        # 3 stabilizations and 3 transitions of 20,000 steps, 3,500 at last
        ("configs/default.py", [8, 16, 32, 64], 123_500),
        ("configs/demo.py", [8, 16, 32], 1_300),
        ("configs/folder.py", [8, 16, 32, 64], 30_500),
        ("configs/folder.py:64", [8, 16, 32, 64], 30_500),
        ("configs/folder.py:32", [8, 16, 32], 3_600),
    ],
)
def test_config_loads_and_is_valid(location, resolutions, steps):
    config = config_files.load(location)
    validation.validate(config)
    plan = stages.schedule(config)
    assert sorted({stage.resolution for stage in plan}) == resolutions
    assert plan[-1].end == steps
    values = json.loads(config_files.to_json(config))
    assert config_files.from_values(values, "").to_dict() == config.to_dict()


def test_demo_says_that_its_weights_are_random():
    config = config_files.load("configs/demo.py")
    assert config.perceptual.weights == "random:0"
    assert "andom" in (FOLDER / "demo.py").read_text().split('"""')[1]


def test_folder_refuses_other_resolutions():
    with pytest.raises(errors.UsageError, match="takes 64 or 32, not '16'"):
        config_files.load("configs/folder.py:16")


def published_runs(shared):
    """Yields the rows of the table of all published runs, and our name for each."""
    names = {
        "wo_pg_unsupervised": "unsupervised",
        "wo_pg_L1_unsupervised": "l1_unsupervised",
    }
    with open(shared / "experiments.csv", newline="") as file:
        for row in csv.DictReader(file):
            dataset, normal = row["dataset"], row["normal_class"]
            kind, _, weight = row["experiment"].partition("/weight_")
            name = names.get(kind, kind)
            if weight:
                name = f"{kind.removeprefix('wo_pg_').lower()}_{float(weight):g}"
            argument = {
                "nih": f"{normal.lower()},{name}",
                "camelyon16": name,
            }.get(dataset, f"class{normal}")
            yield row, f"configs/{dataset}.py:{argument}"


CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()
PREPROCESSING = {
    "camelyon16": "crop_size=64 random_crop=True random_flip=True",
    "cifar10": "",
    "svhn": "to_grayscale=True",
}


def in_words(location: str, seed: int) -> dict:
    """Returns what the table says of a run, as our config has it."""
    config = config_files.load(f"{location},seed{seed}")
    validation.validate(config)
    data, model, stages = config.data, config.model, config.stages
    grows = stages.initial_resolution < data.resolution
    perceptual = config.loss.relative_perceptual == 1
    assert perceptual or config.loss.relative_perceptual == 0
    assert perceptual or config.loss.l1 == 1
    assert config.loss.perceptual == config.loss.l2 == 0
    assert (model.kind, config.perceptual.image_weight) == ("residual18", 0)
    assert config.perceptual.weights == config.perceptual.statistics == "imagenet"
    dataset, _, protocol = location.split("/")[1].partition(".py:")
    protocol = protocol.partition(",")[0]
    if dataset == "nih":
        equal = "_equalized" * data.equalize
        source = f"nih_chest_xray14/{protocol}_64{equal}"
        assert (data.resize, data.crop, data.size, data.normal) == (300, 224, 64, "")
        preprocessing = f"crop_size=224 equalize_hist={data.equalize} resize=64"
        normal = protocol if protocol == "subset" else protocol.upper()
    else:
        source = {"camelyon16": "camelyon16/x10", "svhn": "svhn_cropped"}.get(
            dataset, dataset
        )
        flips = (data.random_crop, data.horizontal_flip, data.vertical_flip)
        camelyon16 = dataset == "camelyon16"
        assert flips == (camelyon16,) * 3
        assert data.size == (192 if camelyon16 else 0)
        assert (data.resize, data.crop, data.equalize) == (0, data.size, False)
        preprocessing, normal = PREPROCESSING[dataset], "healthy"
        if not camelyon16:
            normal = protocol.removeprefix("class")
            name = CIFAR10_CLASSES[int(normal)] if dataset == "cifar10" else normal
            assert data.normal == f"class={name}"
        else:
            assert data.normal == ""
    assert (data.train, data.test) == (f"tfds:{source}:train", f"tfds:{source}:test")
    adversarial = config.loss.adversarial
    return {
        "dataset": dataset,
        "normal_class": normal,
        "initial_resolution": stages.initial_resolution,
        "final_resolution": data.resolution,
        "channels": data.channels,
        "latent_resolution": model.latent_resolution,
        "latent_channels": model.latent_channels,
        "encoder_channels_high_to_low": " ".join(map(str, model.encoder_channels)),
        "decoder_channels_low_to_high": " ".join(map(str, model.decoder_channels)),
        "learning_rate": config.optimizer.learning_rate,
        "batch_size": config.batch_size,
        "transition_steps": stages.transition_steps,
        "stabilization_steps": stages.stabilization_steps if grows else "",
        "final_stabilization_steps": stages.final_steps,
        "loss": "relative_perceptual_L1" if perceptual else "l1",
        "features": config.perceptual.layers if perceptual else "",
        "smooth_loss": str(config.loss.smooth_transition) if perceptual else "",
        "l1_weight": f"{config.loss.l1:g}" if perceptual else "0",
        "adversarial_weight": f"{adversarial:g}",
        "discriminator_steps": config.adversarial.discriminator_steps
        if adversarial
        else 0,
        "preprocessing": preprocessing,
        "seed": config.seed,
    }


def test_all_sixty_published_runs(shared):
    seen = set()
    for row, location in published_runs(shared):
        seen.add(location)
        row["features"] = row["features"].replace("*1", "")
        del row["experiment"]  # told by the location
        for number, seed in enumerate(row.pop("seeds").split()):
            found = in_words(location, number)
            assert {k: str(v) for k, v in found.items()} == {**row, "seed": seed}, (
                location
            )
    assert len(seen) == 60


@pytest.mark.parametrize(
    ("location", "steps", "channels", "layers", "rate", "normal", "seed"),
    [
        # written from the published files, three of each data set
        ("cifar10.py", 5666, (32, 32, 32, 32), "32:r32", 2e-3, "airplane", 7970),
        ("cifar10.py:class3", 4666, (32, 64, 128, 256), "32:r32", 2e-4, "cat", 7712),
        ("cifar10.py:class9,seed2", 5000, (8,) * 4, "32:r42", 1e-2, "truck", 5694),
        ("svhn.py:class0", 25333, (32, 64, 128, 256), "32:r42", 2e-4, "0", 2420),
        ("svhn.py:class1,seed2", 16666, (16,) * 4, "32:r32+r42", 5e-3, "1", 362),
        ("svhn.py:class9,seed1", 18000, (32, 64, 64, 64), "32:r42", 1e-3, "9", 826),
    ],
)
def test_one_class_against_the_rest(
    location, steps, channels, layers, rate, normal, seed
):
    config = config_files.load(f"configs/{location}")
    validation.validate(config)
    (stage,) = stages.schedule(config)
    assert (stage.resolution, stage.steps) == (32, steps)
    assert config.model.encoder_channels == channels
    assert config.model.decoder_channels == channels[::-1]
    assert config.model.latent_channels == channels[-1]
    assert config.perceptual.layers == layers
    assert config.optimizer.learning_rate == rate
    assert config.data.normal == f"class={normal}"
    assert config.data.channels == (3 if "cifar10" in location else 1)
    assert config.seed == seed


@pytest.mark.parametrize("name", ["cifar10", "svhn"])
@pytest.mark.parametrize("argument", ["class10", "cat", "class1,seed3", "class1,1,2"])
def test_a_class_that_does_not_exist_is_refused(name, argument):
    with pytest.raises(errors.UsageError, match=f"configs/{name}.py:{argument}: write"):
        config_files.load(f"configs/{name}.py:{argument}")


@pytest.mark.parametrize(
    "path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem
)
def test_docstring_holds_the_command(path):
    assert "    dpa-jax " in path.read_text().split('"""')[1]


PUBLIC_SETS = "rsna vincxr braintumor lag isic brats bmad_brain bmad_liver bmad_resc"
PUBLIC_SETS = [*PUBLIC_SETS.split(), "bmad_oct", "bmad_chest", "oct2017", "chest_xray"]
IN_COLOUR = ["camelyon16", "bmad_camelyon16", "mvtec"]


@pytest.mark.parametrize("name", PUBLIC_SETS + IN_COLOUR)
def test_public_sets_are_run_alike(name):
    config = config_files.load(f"configs/public_sets.py:{name}")
    validation.validate(config)
    (stage,) = stages.schedule(config)
    assert (stage.resolution, stage.steps) == (64, 16_000)
    assert config.data.train == f"{name}.csv:train"
    assert config.data.test == f"{name}.csv:test"
    assert config.data.channels == (3 if name in IN_COLOUR else 1)
    assert (config.data.resize, config.model.latent_channels) == (64, 16)
    assert config.perceptual.layers == "64:r42"


def test_an_unknown_public_set_names_those_there_are():
    with pytest.raises(errors.UsageError, match="no such set; there are rsna, vincxr"):
        config_files.load("configs/public_sets.py:mnist")


def test_the_layouts_of_public_sets_are_known():
    from dpa_jax.data import layouts

    text = (FOLDER / "public_sets.py").read_text().split('"""')[1]
    rows = [line.split() for line in text.splitlines() if line.startswith("    ")]
    names = PUBLIC_SETS + IN_COLOUR
    table = {row[0]: row[1] for row in rows if row[0] in names}
    assert set(table) == set(names)
    assert set(table.values()) <= set(layouts.LAYOUTS)

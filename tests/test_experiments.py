"""The published experiments as a program: what it runs, resumes and tabulates."""

import csv
import json

import numpy as np
import pytest
import run_factory
from PIL import Image

from benchmarks import experiment_table, experiments
from dpa_jax import errors, validation
from dpa_jax.storage import config_files, workdir


@pytest.fixture
def tiny_cifar10(tmp_path):
    """CIFAR10 of four images of each class, 8 pixels wide, as TFDS stores it."""
    import tensorflow_datasets as tfds

    from dpa_jax.datasets import cifar10_svhn

    class Tiny(cifar10_svhn.Cifar10, skip_registration=True):
        name = "cifar10"

        def _split_generators(self, dl_manager):
            names = "airplane automobile bird cat deer dog frog horse ship truck"
            self.info.features["label"].names = names.split()
            return {
                split: self._generate_examples(split, seed)
                for seed, split in enumerate(("train", "test"))
            }

        def _generate_examples(self, split, seed):
            for i, image in enumerate(run_factory.images(40, 32, seed)):
                colour = Image.fromarray(image).convert("RGB")
                yield i, {"id": f"{split}_{i}", "image": colour, "label": i % 10}

    builder = Tiny(data_dir=tmp_path / "data", file_format="array_record")
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )
    return f"--data_dir={tmp_path / 'data'}"


TINY = (
    # one stage of three steps at 8 pixels without VGG19
    *("--config.model.kind=residual9", "--config.batch_size=4"),
    *("--config.data.resolution=8", "--config.stages.initial_resolution=8"),
    *("--config.model.encoder_channels=(4,4)", "--config.model.decoder_channels=(4,4)"),
    *("--config.loss.relative_perceptual=0", "--config.loss.l1=1"),
    "--config.stages.final_steps=3",
)


def test_a_run_is_carried_out_and_not_again(tiny_cifar10, tmp_path):
    out = tmp_path / "out"
    given = ["--dataset=cifar10", "--experiments=class1", tiny_cifar10, *TINY]
    given += ["--seeds=1", f"--out={out}"]
    assert experiments.main(given) == 0
    run = out / "cifar10" / "class1" / "seed0"
    found = json.loads(experiment_table.evaluation(run).read_text())
    assert (found["normal"], found["abnormal"]) == (4, 36)
    assert found["trained_steps"] == 3
    assert workdir.read_config(run).seed == 2255  # the published one
    (row,) = json.loads((out / "results.json").read_text())["rows"]
    assert (row["dataset"], row["experiment"], row["runs"]) == ("cifar10", "class1", 1)
    assert row["seeds"] == {"seed0": row["roc_auc"]} == {"seed0": found["roc_auc"]}

    before = run_factory.files(out / "cifar10")
    assert experiments.main(given) == 0
    assert run_factory.files(out / "cifar10") == before


@pytest.fixture
def fake_runs(monkeypatch):
    """Runs that take no time: a workdir with a config and an evaluation."""

    def carry_out(config, folder):
        if config.seed in fake.failing:
            raise errors.DpaError("the loss diverged")
        auc = (config.seed % 100) / 100
        result = {"roc_auc": auc, "random_weights": False, "vgg_weights": "imagenet"}
        if config.perceptual.weights.startswith("random"):
            result |= {"random_weights": True, "vgg_weights": config.perceptual.weights}
        path = experiment_table.evaluation(folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        config_files.save(config, folder / "config.json")
        workdir.write_json(path, result)
        return auc

    def fake(*given):
        return experiments.main([f"--out={fake.out}", *given])

    fake.failing = set()
    monkeypatch.setattr(experiments, "carry_out", carry_out)
    return fake


def rows(folder):
    with open(folder / "table.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_stands_beside_the_published_numbers(fake_runs, tmp_path, capsys):
    fake_runs.out = tmp_path
    assert fake_runs("--dataset=nih", "--experiments=pg,with_l1_0.1") == 0
    told = capsys.readouterr().err
    assert "2 of 6 runs: nih subset pg, seed 6472: ROC AUC 0.7200; about 0:00:" in told
    pg, with_l1 = rows(tmp_path)
    # seeds 5159, 6472, 7581
    assert (pg["dataset"], pg["experiment"], pg["runs"]) == ("nih subset", "pg", "3")
    assert float(pg["roc_auc"]) == pytest.approx((0.59 + 0.72 + 0.81) / 3)
    assert float(pg["sd"]) == pytest.approx(np.std([0.59, 0.72, 0.81], ddof=1))
    assert (pg["published"], pg["note"]) == ("0.926", "")
    assert with_l1["published"] == ""
    text = (tmp_path / "table.md").read_text().splitlines()
    assert text[0].startswith("| dataset | experiment | runs | roc_auc | sd |")
    assert text[2].startswith("| nih subset | pg | 3 | 0.7067 | 0.1106 | 0.9260 |")


def test_what_other_calls_found_stays_in_the_table(fake_runs, tmp_path):
    fake_runs.out = tmp_path
    assert fake_runs("--dataset=nih", "--protocol=ap", "--experiments=pg") == 0
    assert fake_runs("--dataset=camelyon16", "--experiments=pg", "--seeds=1") == 0
    found = {(row["dataset"], row["runs"]) for row in rows(tmp_path)}
    assert found == {("nih ap", "3"), ("camelyon16", "1")}
    (one,) = [row for row in rows(tmp_path) if row["dataset"] == "camelyon16"]
    assert one["published"] == "0.934" and one["sd"] == ""


def test_what_is_not_as_published_is_named(fake_runs, tmp_path):
    fake_runs.out = tmp_path
    given = ["--config.perceptual.weights=random:3", "--config.stages.final_steps=10"]
    assert fake_runs("--dataset=svhn", "--experiments=class4", *given) == 0
    (row,) = rows(tmp_path)
    assert row["note"] == (
        "VGG19's weights are random (random:3); not the published settings: "
        "perceptual.weights=random:3 stages.final_steps=10"
    )


def test_classes_are_averaged_seed_by_seed(fake_runs, tmp_path):
    fake_runs.out = tmp_path
    names = [f"class{i}" for i in range(9)]
    assert fake_runs("--dataset=cifar10", f"--experiments={','.join(names)}") == 0
    assert len(rows(tmp_path)) == 9  # one class is missing still
    assert fake_runs("--dataset=cifar10", "--experiments=class9", "--seeds=2") == 0
    row = rows(tmp_path)[-1]
    assert (row["experiment"], row["runs"], row["published"]) == (
        *("all classes", "2"),
        "0.839",
    )
    seeds = np.array(  # the first and the second of every class
        [
            (7970, 9042), (2255, 7178), (4930, 8728), (7712, 8880), (7322, 7735),
            (9693, 3407), (3231, 8188), (7749, 1934), (7159, 9433), (2058, 9145),
        ]
    )  # fmt: skip
    means = (seeds % 100 / 100).mean(axis=0)
    assert float(row["roc_auc"]) == pytest.approx(means.mean())
    assert float(row["sd"]) == pytest.approx(means.std(ddof=1))


def test_a_run_that_fails_is_named_and_the_others_go_on(fake_runs, tmp_path, capsys):
    fake_runs.out, fake_runs.failing = tmp_path, {6472}
    assert fake_runs("--dataset=nih", "--experiments=pg") == 1
    assert "1 of 3 runs failed" in capsys.readouterr().err
    (row,) = rows(tmp_path)
    assert (row["runs"], row["note"]) == ("2", "seed1 failed: the loss diverged")
    fake_runs.failing = set()
    assert fake_runs("--dataset=nih", "--experiments=pg") == 0
    (row,) = rows(tmp_path)
    assert (row["runs"], row["note"]) == ("3", "")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--dataset=svhn", "--experiments=pg"], "--experiments: there is no 'pg'"),
        (["--dataset=svhn", "--protocol=pa"], "--protocol is of nih; svhn has none"),
        (["--dataset=nih", "--config.batch=3"], "no config key batch"),
        (["--dataset=nih", "--config.population.seeds=3"], "are the published ones"),
        (["--dataset=nih", "--config.batch_size=0"], "batch_size is 0"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_runs(
    fake_runs, tmp_path, capsys, given, message
):
    fake_runs.out = tmp_path / "out"
    assert fake_runs(*given) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_there_are_sixty_experiments_and_each_has_its_config():
    names = [
        experiment_table.Experiment(dataset, protocol, name)
        for dataset, experiments in experiment_table.EXPERIMENTS.items()
        for protocol in (experiment_table.PROTOCOLS if dataset == "nih" else ("",))
        for name in experiments
    ]
    assert len(names) == 60
    for one in names:
        validation.validate(one.config(2))

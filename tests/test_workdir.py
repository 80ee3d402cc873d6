import csv
import json

import numpy as np
import pytest
import run_factory

from dpa_jax import errors
from dpa_jax.data import ImageSet, Skipped
from dpa_jax.devices.platform import Platform
from dpa_jax.storage import checkpoints, workdir


@pytest.fixture
def config():
    return run_factory.quick_config()


def trained(folder):
    """Leaves what a run that has begun to train leaves."""
    with checkpoints.Checkpoints(folder) as kept:
        kept.save(1, {"x": np.zeros(2)}, {})


def test_claiming_makes_the_folder_and_stores_the_config(tmp_path, config):
    workdir.claim(tmp_path / "a" / "run", config)
    found = workdir.read_config(tmp_path / "a" / "run")
    assert found.to_dict() == config.to_dict()


def test_the_same_config_may_claim_again(tmp_path, config):
    workdir.claim(tmp_path, config)
    trained(tmp_path)
    before = run_factory.files(tmp_path)
    workdir.claim(tmp_path, config)
    assert run_factory.files(tmp_path) == before


def test_another_config_is_refused_by_the_fields_that_differ(tmp_path, config):
    workdir.claim(tmp_path, config)
    trained(tmp_path)
    config.batch_size, config.model.latent_channels = 16, 3
    with pytest.raises(errors.UsageError) as caught:
        workdir.claim(tmp_path, config)
    message = str(caught.value)
    assert str(tmp_path) in message
    assert "batch_size was 8, is 16" in message
    assert "model.latent_channels was 4, is 3" in message
    assert "learning_rate" not in message
    assert workdir.read_config(tmp_path).batch_size == 8


def test_a_run_with_layers_of_no_stage_goes_on_without_them(tmp_path, config):
    config.perceptual.layers = "8:r11 16:r12"  # of 8 pixels alone
    workdir.claim(tmp_path, config)
    trained(tmp_path)
    config.perceptual.layers = "8:r11"
    workdir.claim(tmp_path, config)
    assert workdir.read_config(tmp_path).perceptual.layers == "8:r11"
    config.perceptual.layers = "8:r12"
    with pytest.raises(errors.UsageError, match="layers was '8:r11', is '8:r12'"):
        workdir.claim(tmp_path, config)


def test_a_log_alone_makes_a_run(tmp_path, config):
    workdir.claim(tmp_path, config)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    config.batch_size = 16
    with pytest.raises(errors.UsageError, match="batch_size"):
        workdir.claim(tmp_path, config)


def test_what_does_not_change_a_run_may_change(tmp_path, config):
    workdir.claim(tmp_path, config)
    trained(tmp_path)
    config.log_every, config.data.test = 7, "test.csv"
    workdir.claim(tmp_path, config)
    assert workdir.read_config(tmp_path).log_every == 7


def test_an_attempt_that_trained_nothing_can_be_corrected(tmp_path, config):
    workdir.claim(tmp_path, config)
    for name in ("data.json", "skipped.csv", "statistics.npz", "weights.json"):
        (tmp_path / name).write_text("of that attempt")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "metrics.jsonl").touch()
    config.batch_size = 4
    workdir.claim(tmp_path, config)
    assert workdir.read_config(tmp_path).batch_size == 4
    assert not (tmp_path / "data.json").exists()
    assert not (tmp_path / "statistics.npz").exists()


def test_files_of_a_run_without_its_config_are_left_alone(tmp_path, config):
    (tmp_path / "metrics.jsonl").write_text("precious")
    with pytest.raises(errors.DpaError, match="metrics.jsonl but no config.json"):
        workdir.claim(tmp_path, config)
    assert (tmp_path / "metrics.jsonl").read_text() == "precious"


def test_a_file_in_the_way_is_told(tmp_path, config):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(
        errors.DpaError, match="run: the workdir cannot be writ.* File exists"
    ):
        workdir.claim(tmp_path / "run", config)


def test_reading_what_is_no_run_says_how_to_make_one(tmp_path):
    with pytest.raises(errors.DpaError, match="no run in .*dpa-jax train"):
        workdir.read_config(tmp_path)


def images(count=3, skipped=()):
    pixels = np.arange(count * 4, dtype=np.uint8).reshape(count, 2, 2, 1)
    return ImageSet(pixels, [f"{i}.png" for i in range(count)], skipped=skipped)


def test_images_are_recorded_by_count_and_checksum(tmp_path):
    workdir.record_images(tmp_path, images())
    found = json.loads((tmp_path / "data.json").read_text())
    # sha256 of the bytes 0 to 11, from coreutils' sha256sum
    assert found == {
        "images": 3,
        "skipped": 0,
        "sha256": "fff3a9bcdd37363d703c1c4f9512533686157868f0d4f16a0f02d0f1da24f9a2",
    }
    workdir.record_images(tmp_path, images())  # the same: fine
    with pytest.raises(
        errors.DpaError, match="was trained on 3 other images than the 4"
    ):
        workdir.record_images(tmp_path, images(4))


def test_images_left_out_are_listed(tmp_path):
    workdir.record_images(
        tmp_path, images(skipped=[Skipped("a, b.png", "the file is empty")])
    )
    with open(tmp_path / "skipped.csv", newline="") as file:
        assert list(csv.reader(file)) == [
            ["path", "reason"],
            ["a, b.png", "the file is empty"],
        ]
    assert json.loads((tmp_path / "data.json").read_text())["skipped"] == 1


@pytest.mark.parametrize(
    "value", [0.1, 1 / 3, 1e-30, 123456.78, 3.4e38, 1.1754944e-38, 0.0, 1.0]
)
def test_numbers_read_back_as_the_very_same_float32(value):
    value = np.float32(value)
    assert np.float32(workdir.number(value)) == value


def test_numbers_are_short():
    assert workdir.number(np.float32(0.1)) == "0.1"


def test_environment_names_versions_devices_commit_and_seed():
    found = workdir.environment(seed=5)
    assert found["seed"] == 5
    assert found["packages"]["numpy"] == np.__version__
    assert found["devices"]
    assert found["git_commit"] is None or len(found["git_commit"]) == 40


def test_where_a_run_went_on_is_added_to_where_it_began(tmp_path):
    here = Platform.here()
    workdir.record_session(tmp_path, 3, 0, "float32", here)
    first = json.loads((tmp_path / "environment.json").read_text())
    assert (first["seed"], first["step"], first["backend"]) == (3, 0, "cpu")
    assert workdir.precision(tmp_path) == "float32"
    for step in (7, 9):
        workdir.record_session(tmp_path, 3, step, "float32", here)
    found = json.loads((tmp_path / "environment.json").read_text())
    assert [session["step"] for session in found.pop("resumed")] == [7, 9]
    assert found == first


def test_more_steps_of_the_last_stage_are_the_same_run_and_fewer_are_not(
    tmp_path, config
):
    workdir.claim(tmp_path, config)
    trained(tmp_path)
    config.stages.final_steps = 9
    workdir.claim(tmp_path, config)
    assert workdir.read_config(tmp_path).stages.final_steps == 9
    config.stages.final_steps = 8
    with pytest.raises(errors.UsageError, match="final_steps was 9, is 8"):
        workdir.claim(tmp_path, config)


@pytest.mark.parametrize("place", ["gs://bucket/run", "s3://bucket/run"])
def test_a_bucket_is_no_workdir_and_nothing_is_made(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(errors.UsageError, match=f"{place}.*mount the bucket"):
        workdir.local(place)
    assert not list(tmp_path.iterdir())


def test_files_are_replaced_as_a_whole_or_not_at_all(tmp_path):
    path = tmp_path / "scores.csv"
    workdir.write_csv(path, ["a"], [["before"]])

    def rows():
        yield ["half"]
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        workdir.write_csv(path, ["a"], rows())
    assert path.read_text().split() == ["a", "before"]
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_spreadsheet_would_take_for_a_formula_is_made_text(tmp_path):
    texts = ["=1+1", "+cmd", "-x.png", "@a", "\t=1", "a=b.png", "'=1"]
    numbers = ["-1.5", "+2", "-inf", "1e-3"]
    workdir.write_csv(
        tmp_path / "a.csv", ["x", "y"], [[x, -3] for x in texts + numbers]
    )
    with open(tmp_path / "a.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["x", "y"]
    assert [row[0] for row in rows] == [
        *("'=1+1", "'+cmd", "'-x.png", "'@a", "'\t=1", "a=b.png", "'=1"),
        *numbers,
    ]
    assert {row[1] for row in rows} == {"-3"}

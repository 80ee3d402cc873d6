import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
import run_factory
import tiny_factory
from PIL import Image

import dpa_jax
from dpa_jax import errors, models, stages, state, step, training
from dpa_jax.devices.platform import Platform
from dpa_jax.ops.compute import Compute
from dpa_jax.scoring import loading
from dpa_jax.storage import checkpoints, config_files
from dpa_jax.training import programs, samples


def rows(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_every_file_of_a_finished_run_holds_what_it_should(trained):
    assert config_files.load(str(trained / "config.json")).batch_size == 8
    about = json.loads((trained / "environment.json").read_text())
    assert about["seed"] == 0 and about["packages"]["jax"] == jax.__version__
    assert about["devices"] == [str(device) for device in jax.devices()]
    kept = json.loads((trained / "data.json").read_text())
    assert kept["images"] == 24 and kept["skipped"] == 0
    assert json.loads((trained / "weights.json").read_text())["source"] == "random:0"
    with np.load(trained / "statistics.npz") as statistics:
        assert statistics["r12/std"].shape == (64,)
    assert not (trained / "skipped.csv").exists()
    grids = [path.name for path in (trained / "samples").iterdir()]
    assert grids == ["00000012_16_stabilization.png"]
    with Image.open(trained / "samples" / grids[0]) as grid:
        assert grid.size == (8 * 96, 2 * 96)
    assert {path.name for path in (trained / "checkpoints").iterdir()} == {
        "4",
        "8",
        "12",
    }


def test_metrics_have_each_logged_step_once_with_stage_and_alpha(trained):
    found = rows(trained)
    assert [row["step"] for row in found] == [2, 4, 6, 8, 10, 12]
    assert [row["stage"] for row in found[1:5]] == [
        "8_stabilization",
        "16_transition",
        "16_transition",
        "16_stabilization",
    ]
    assert [row["alpha"] for row in found] == [1, 1, 0.5, 1, 1, 1]
    assert all(0 < row["loss"] < 10 for row in found)
    assert all(row["images_per_second"] > 0 for row in found)


def test_tensorboard_has_the_same_losses(trained):
    found = {
        event.step: value.simple_value
        for event in run_factory.events(trained / "tensorboard")
        for value in event.summary.value
        if value.tag == "loss"
    }
    assert found == {row["step"]: np.float32(row["loss"]) for row in rows(trained)}


def test_checkpoint_holds_all_parameters_and_adam_of_the_stage(trained):
    saved = run_factory.arrays(trained, 12)
    architecture = models.Architecture.from_config(run_factory.tiny_config())
    names = {part: sorted(blocks) for part, blocks in saved["parameters"].items()}
    assert names == {
        "encoder": ["block_16", "block_8", "from_image_16", "from_image_8", "latent"],
        "decoder": ["block_16", "block_8", "latent", "to_image_16", "to_image_8"],
    }
    active = state.select(
        saved["parameters"],
        state.block_names(architecture, loading.load(trained).stage),
    )
    assert saved["optimizer"]["0.mu"].shape == (state.count(active),)
    assert saved["optimizer"]["0.count"] == 4


def test_parameters_of_a_finished_stage_stay(trained):
    grown = run_factory.arrays(trained, 8)["parameters"]
    last = run_factory.arrays(trained, 12)["parameters"]
    # from_image_8 is not part of the last stage, from_image_16 is
    kernel = ("from_image_8", "conv", "kernel")
    np.testing.assert_array_equal(
        grown["encoder"][kernel[0]][kernel[1]][kernel[2]],
        last["encoder"][kernel[0]][kernel[1]][kernel[2]],
    )
    assert not np.array_equal(
        grown["encoder"]["from_image_16"]["conv"]["kernel"],
        last["encoder"]["from_image_16"]["conv"]["kernel"],
    )


def test_finished_run_says_so_and_trains_nothing(trained):
    before = run_factory.files(trained)
    code, out, err = run_factory.call(
        "train", "--config", trained / "config.json", "--workdir", trained
    )
    assert (code, out) == (0, "")
    assert "is finished: 12 steps; nothing left to train" in err
    assert run_factory.files(trained) == before


@pytest.fixture
def quick(tmp_path):
    config = run_factory.quick_config()
    config.data.train = run_factory.write_npz(tmp_path / "train.npz")
    return config


def test_a_run_is_a_function_of_its_seed(quick, tmp_path):
    def parameters(name, seed):
        quick.seed = seed
        folder = dpa_jax.train(quick, tmp_path / name, visible=False)
        return jax.tree.leaves(run_factory.arrays(folder)["parameters"])

    first, again, other = (
        parameters("a", 0),
        parameters("b", 0),
        parameters("c", 1),
    )
    assert all(map(np.array_equal, first, again))
    assert not any(map(np.array_equal, first, other))


def test_training_lowers_the_loss(quick, tmp_path):
    quick.stages.final_steps = 300
    quick.log_every = 20
    folder = dpa_jax.train(quick, tmp_path / "run", visible=False)
    found = rows(folder)
    assert found[-1]["loss"] < 0.7 * found[0]["loss"]


def test_images_marked_abnormal_are_left_out(quick, tmp_path):
    run_factory.write_npz(
        tmp_path / "train.npz", labels=np.array(["normal"] * 16 + ["abnormal"] * 8)
    )
    code, _, err = run_factory.call(
        "train",
        "--config",
        run_factory.write_config(tmp_path / "config.json", quick),
        "--workdir",
        tmp_path / "run",
    )
    assert code == 0
    assert "8 of 24 training images are marked abnormal and left out" in err
    assert json.loads((tmp_path / "run" / "data.json").read_text())["images"] == 16


def test_only_abnormal_images_are_refused(quick, tmp_path):
    run_factory.write_npz(tmp_path / "train.npz", labels=np.ones(24, int))
    with pytest.raises(errors.DpaError, match="every training image is marked"):
        dpa_jax.train(quick, tmp_path / "run", visible=False)


def test_streamed_images_give_the_same_run(quick, tmp_path):
    quick.data.horizontal_flip = True
    resident = dpa_jax.train(quick, tmp_path / "resident", visible=False)
    quick.data.residency = "stream"
    streamed = dpa_jax.train(quick, tmp_path / "streamed", visible=False)
    run_factory.assert_same_run(streamed, resident)


def test_images_beyond_memory_are_mapped_and_streamed_and_give_the_same_run(
    quick, tmp_path, capsys
):
    quick.data.horizontal_flip = True
    usual = dpa_jax.train(quick, tmp_path / "usual", visible=False)
    small = dataclasses.replace(Platform.here(), host_memory=1000)
    mapped = dpa_jax.train(quick, tmp_path / "mapped", platform=small)
    shown = capsys.readouterr().err
    assert "images kept on the device" in shown and "may be deleted" in shown
    run_factory.assert_same_run(mapped, usual)
    quick.data.residency = "stream"
    streamed = dpa_jax.train(quick, tmp_path / "streamed", platform=small)
    assert "images sent to the device" in capsys.readouterr().err
    run_factory.assert_same_run(streamed, usual)


def test_the_next_stage_may_be_compiled_meanwhile(tmp_path):
    """As on accelerators."""
    config = run_factory.tiny_config()
    config.loss.relative_perceptual, config.loss.l1 = 0.0, 1.0
    config.data.train = run_factory.write_npz(tmp_path / "train.npz")
    usual = dpa_jax.train(config, tmp_path / "usual", visible=False)
    ahead = dataclasses.replace(Platform.here(), compiles_ahead=True)
    found = dpa_jax.train(config, tmp_path / "ahead", platform=ahead, visible=False)
    run_factory.assert_same_run(found, usual)


def test_sample_grids_come_as_often_as_asked(quick, tmp_path):
    quick.sample_every, quick.steps_per_chunk = 3, 2
    folder = dpa_jax.train(quick, tmp_path / "run", visible=False)
    assert sorted(path.name for path in (folder / "samples").iterdir()) == [
        "00000003_8_stabilization.png",
        "00000006_8_stabilization.png",
    ]


def write_grid(path, steps):
    """Writes a grid of a stage of so many steps."""
    config = run_factory.quick_config()
    config.stages.final_steps = steps
    plan = stages.schedule(config)
    spec = step.StepSpec.from_config(config, plan[-1], Compute())
    drawn = state.initialize(jax.random.key(0), spec.architecture, plan)
    samples.write(path, spec, drawn, run_factory.images(2, size=8)[..., None], 1.0)


def test_grids_of_a_longer_stage_compile_nothing(tmp_path):
    write_grid(tmp_path / "6.png", 6)
    with tiny_factory.compilations() as compiled:
        write_grid(tmp_path / "7.png", 7)
    assert not compiled
    assert (tmp_path / "6.png").read_bytes() == (tmp_path / "7.png").read_bytes()


def test_checkpoints_come_as_often_as_asked(quick, tmp_path):
    quick.checkpoint_every = 2
    folder = dpa_jax.train(quick, tmp_path / "run", visible=False)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "4",
        "6",
    ]  # the last two


# --- divergence ---


def replace_steps(monkeypatch, step):
    """Makes compiled chunks be taken by `step(run, state, ...)`."""
    real = programs.compile_stage

    def compile_stage(*arguments, **options):
        program = real(*arguments, **options)
        return dataclasses.replace(program, run=functools.partial(step, program.run))

    monkeypatch.setattr(programs, "compile_stage", compile_stage)


@pytest.fixture
def diverging(quick, tmp_path, monkeypatch):
    """Runs with a checkpoint after each step and the loss given for step 4."""
    quick.checkpoint_every = 1

    def run(value):
        def step(run, state, *rest):
            now = int(state.step) + 1
            state, scalars = run(state, *rest)
            return state, {"loss": np.array([[value]])} if now == 4 else scalars

        replace_steps(monkeypatch, step)
        return run_factory.call(
            "train",
            "--config",
            run_factory.write_config(tmp_path / "config.json", quick),
            "--workdir",
            tmp_path / "run",
            "--config.log_every=1",
        )

    return run


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.5e6])
def test_divergence_stops_names_the_step_and_keeps_the_last_good(
    diverging, tmp_path, value
):
    code, _, err = diverging(value)
    assert code == 1
    assert f"the loss of step 4 (8_stabilization) is {value:g}" in err
    assert "Traceback" not in err
    assert checkpoints.latest(tmp_path / "run") == 3
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 2, 3]
    assert not (tmp_path / "run" / "samples").exists()


def test_a_run_that_diverged_does_not_begin_again(diverging, tmp_path):
    first = diverging(1.5e6)
    before = run_factory.files(tmp_path / "run")
    code, _, err = diverging(0.1)
    assert (code, err.splitlines()) == (first[0], first[2].splitlines()[-1:])
    assert run_factory.files(tmp_path / "run") == before


def test_a_large_loss_below_the_limit_goes_on(diverging, tmp_path):
    assert diverging(0.9e6)[0] == 0
    assert checkpoints.latest(tmp_path / "run") == 6


def test_real_divergence_is_found(quick, tmp_path):
    quick.optimizer.learning_rate = 1e6
    with pytest.raises(errors.DpaError, match=r"the loss of step \d+ .* diverged"):
        dpa_jax.train(quick, tmp_path / "run", visible=False)
    assert checkpoints.latest(tmp_path / "run") is None


def test_parameters_that_are_not_finite_are_never_saved(quick, tmp_path, monkeypatch):
    # a gradient can be NaN where the loss before that step was not
    def step(run, state, *rest):
        state, scalars = run(state, *rest)
        broken = jax.tree.map(lambda leaf: np.nan * np.asarray(leaf), state.parameters)
        return state.replace(parameters=broken), scalars

    replace_steps(monkeypatch, step)
    with pytest.raises(errors.DpaError, match="not finite after step 6"):
        dpa_jax.train(quick, tmp_path / "run", visible=False)
    assert checkpoints.latest(tmp_path / "run") is None


# --- what it says ---


def test_progress_without_a_terminal_is_plain_lines(quick, tmp_path):
    quick.stages.final_steps = 4
    code, out, err = run_factory.call(
        "train",
        "--config",
        run_factory.write_config(tmp_path / "config.json", quick),
        "--workdir",
        tmp_path / "run[1]",
    )
    assert (code, out) == (0, "")
    lines = err.splitlines()
    assert lines[0].startswith("reading images: 24/24 images, ")
    assert lines[1].startswith(
        "stage 1 of 1, 8 px stabilization: 4 steps, 4 at a time, float32, "
        "images kept on the device; ready in "
    )
    (row,) = run_factory.rows(tmp_path / "run[1]")  # its loss is what is shown
    assert lines[2].startswith(
        f"stage 1 of 1, 8 px stabilization: step 4/4, mean loss {row['loss']:.4f}, "
    )
    assert lines[2].endswith(" elapsed, 0:00:00 left")
    assert lines[3:] == [
        f"{tmp_path}/run[1] is finished: 4 steps.",
        f"Next: dpa-jax evaluate --workdir={tmp_path}/run[1]",
    ]


def test_train_stays_a_function_when_its_module_is_loaded():
    assert dpa_jax.train is training.train


def test_data_normal_says_which_images_to_train_on(quick, tmp_path):
    run_factory.write_npz(tmp_path / "train.npz", kind=np.array(["cat", "dog"] * 12))
    quick.data.normal = "kind=dog"
    quick.batch_size = 12
    folder = dpa_jax.train(quick, tmp_path / "run", visible=False)
    kept = json.loads((folder / "data.json").read_text())
    assert kept["images"] == 12
    only = run_factory.write_npz(tmp_path / "o.npz", images=run_factory.images()[1::2])
    quick.data.train, quick.data.normal = only, ""
    other = dpa_jax.train(quick, tmp_path / "other", visible=False)
    assert json.loads((other / "data.json").read_text())["sha256"] == kept["sha256"]

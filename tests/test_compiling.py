"""Stages compiled for machines that need not be at hand."""

import dataclasses
import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
import run_factory

from dpa_jax import errors, stages
from dpa_jax.backbones import frozen
from dpa_jax.compiling import ahead, counting, targets
from dpa_jax.config import updated
from dpa_jax.devices.platform import Platform
from dpa_jax.training.run import Run
from dpa_jax.training.setup import Problem, Setup
from dpa_jax.weights import statistics_files

HERE = Platform.here()
V5E = targets.ACCELERATORS["v5e"]


@pytest.fixture(scope="module")
def quick():
    """One stage without VGG19, compiled for this machine."""
    config = run_factory.quick_config()
    plan = stages.schedule(config)
    (found,) = ahead.compile_stages(config, HERE, V5E, plan, 24)
    return config, found


def test_a_stage_is_compiled_as_training_compiles_it(trained):
    config = run_factory.tiny_config()
    plan, layers = stages.schedule(config), ("r11", "r12")
    setup = ahead.abstract_setup(config, HERE, 24)
    problem = Problem(
        plan=plan,
        images=run_factory.images()[..., None],
        rows=np.arange(24),
        held_out=np.zeros(0, np.int64),
        weights=frozen.load_weights(config, layers),
        statistics=statistics_files.load(str(trained / frozen.STATISTICS)),
        precision="float32",
    )
    run = Run(config, trained, run_factory.arrays(trained)["parameters"])
    training = Setup([run], problem, HERE)
    for stage in plan:
        assert setup.shapes(stage) == training.shapes(stage)
        assert setup.spec(stage) == training.spec(stage)
        assert setup.chunk_steps(stage) == training.chunk_steps(stage)
        assert setup.caches_targets(stage) == training.caches_targets(stage)


def test_a_streamed_stage_takes_a_chunks_images():
    config = run_factory.quick_config()
    config.data.residency = "stream"
    setup = ahead.abstract_setup(config, HERE, 24)
    (stage,) = stages.schedule(config)
    assert setup.shapes(stage)[2]["images"].shape == (1, 6 * 8, 1, 64)


def test_what_is_found_is_the_compilers_own_and_counted_in_its_program(quick):
    config, found = quick
    memory = found.program.run.memory_analysis()
    assert found.argument_bytes == memory.argument_size_in_bytes > 24 * 8 * 8
    assert found.temporary_bytes == memory.temp_size_in_bytes > 0
    assert found.program.planned_bytes >= found.argument_bytes + found.temporary_bytes
    assert found.fits and found.advice is None
    whole = counting.count(found.program.run.as_text())
    assert found.program.steps == 6
    assert found.cost.kernels == pytest.approx(whole.kernels / 6)


def test_operations_are_those_of_a_step_whatever_its_parts():
    def counted(**changes):
        config = updated(run_factory.quick_config(), changes, "a test")
        setup, (stage,) = (
            ahead.abstract_setup(config, HERE, 24),
            stages.schedule(config),
        )
        return ahead.count_operations(setup, stage, config.batch_size)

    whole = counted()
    assert counted(batch_parts=2) == whole
    assert counted(batch_size=16) == pytest.approx(2 * whole, rel=0.05)
    # the decoder's last convolution, forward, by its input and by its kernel; 9 of its
    # 9 multiply-adds but at the borders, for 4 channels of 8 images of 8x8
    assert whole > 3 * 2 * (3 * 8 - 2) ** 2 * 4 * 8


def test_the_least_time_is_that_of_what_takes_longest():
    cost = counting.Cost(kernels=100, bytes=3e9)
    slow = dataclasses.replace(V5E, bandwidth=1e12, rate=1e14)
    assert slow.least_seconds(cost, 1e11) == {
        "bytes": pytest.approx(3e-3),
        "arithmetic": pytest.approx(1e-3),
        "launches": 0,
        "bound": pytest.approx(3e-3),
    }
    gpu = dataclasses.replace(slow, launch=1e-6)
    assert gpu.least_seconds(cost, 1e12)["bound"] == pytest.approx(10e-3 + 100e-6)


# --- where a program does not fit


def test_the_parts_of_a_batch_that_fit_are_found(quick):
    config, found = quick
    config = updated(config, {"batch_parts": 1}, "a test")
    small = dataclasses.replace(HERE, memory=found.program.planned_bytes - 1)
    plan = stages.schedule(config)
    (less,) = ahead.compile_stages(config, small, None, plan, 24)
    assert not less.fits and less.least is None
    assert less.advice == {"batch_parts": 2}


@pytest.mark.parametrize("limit", [0, 1, 5, 6])
def test_the_largest_that_fits_is_found(limit):
    asked = []

    def fits(number):
        asked.append(number)
        return number <= limit

    assert ahead.largest(7, fits) == limit
    assert len(asked) == len(set(asked)) <= 4


# --- the command


def test_this_machine_is_a_target(tmp_path):
    config = run_factory.tiny_config()
    config.batch_size = 24
    config = run_factory.write_config(tmp_path / "a.json", config)
    out = tmp_path / "folder" / "out.json"
    code, text, error = run_factory.call(
        *("compile", f"--config={config}", "--target=here", "--images=24"),
        *("--stages=8_stabilization", "--batch=8", f"--json={out}"),
    )
    assert (code, error) == (0, "")
    title, header, line, note = text.splitlines()
    assert "batch 8, 24 training images" in title and "bound, not a prediction" in note
    assert header.split() == [
        *("stage", "compile", "s", "arguments", "MB", "temporary", "MB", "kernels"),
        *("MB", "moved", "GFLOP", "least", "ms", "fits", "collectives"),
    ]
    found = json.loads(out.read_text())
    (row,) = found["rows"]
    assert line.split()[0] == row["stage"] == "8_stabilization"
    assert found["batch"] == 8 and found["least_seconds"] is None
    assert row["fits"] and row["kernels"] > 0 and row["collectives"] == {}
    assert sum(row["kernels_by_name"].values()) == pytest.approx(row["kernels"])


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("h100", "--target=h100: write here, or a GPU (h100, h200) and how many"),
        ("h100:0", "--target=h100:0: write"),
        ("h100:2x4", "--target=h100:2x4: write"),
        ("v5e:8", "a TPU (v4, v5e, v5p, v6e) and how its chips lie"),
        ("b200:8", "--target=b200:8: write"),
    ],
)
def test_a_target_that_is_none_is_refused(target, message):
    with pytest.raises(targets.errors.UsageError) as refused:
        targets.describe(target)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("target", "modules", "extra"),
    [
        ("v5e:2x4", ("libtpu",), "dpa_jax[aot]"),
        ("h100:8", ("jax_cuda12_plugin", "jax_cuda13_plugin"), "dpa_jax[cuda12]"),
    ],
)
def test_a_missing_compiler_is_named(target, modules, extra, monkeypatch):
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(targets.errors.DpaError) as refused:
        targets.describe(target)
    assert f"pip install '{extra}'" in str(refused.value)


def compiled_elsewhere(target, tmp_path, *arguments):
    out = tmp_path / "out.json"
    command = ("compile", "--config=configs/nih.py:subset,pg", f"--target={target}")
    process = run_factory.start(*command, f"--json={out}", *arguments)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    return json.loads(out.read_text())


def needs(*modules):
    missing = not any(map(importlib.util.find_spec, modules))
    return pytest.mark.skipif(missing, reason=f"{modules[0]} is not installed")


COUNTS = """
from dpa_jax.compiling import counting, targets

targets.prepare("v5e:2x4")
platform, _ = targets.describe("v5e:2x4")

import jax

x = jax.ShapeDtypeStruct((8, 8), "float32")
with jax.default_device(platform.devices[0]):
    assert jax.jit(lambda x: x @ x).lower(x).cost_analysis() is None
    print(counting.operations(lambda x: x @ x, x))
"""


@needs("libtpu")
def test_operations_are_counted_whatever_device_computes():
    # for no other device than the CPU JAX tells them
    command = [sys.executable, "-c", COUNTS]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == f"{2 * 8**3:.1f}\n", done.stderr


def test_without_a_cpu_operations_are_not_counted(monkeypatch):
    def devices(backend):
        raise RuntimeError(f"Unknown backend {backend}")

    monkeypatch.setattr(counting.jax, "local_devices", devices)
    with pytest.raises(errors.DpaError, match="leaves out: add ,cpu to it"):
        counting.operations(abs, 1.0)


@needs("libtpu")
def test_a_tpu_slice_shares_each_step_by_one_all_reduce(tmp_path):
    names = "8_stabilization,16_stabilization"
    found = compiled_elsewhere(
        "v5e:2x4", tmp_path, "--images=4261", f"--stages={names}"
    )
    assert (found["devices"], found["device"]) == (8, "TPU v5 lite")
    # all that a step works on stays in the cores' own memory; benchmarks/results has
    # 254 and 479 kernels, 0.5 and 5.3 MB moved
    budgets = {"8_stabilization": (280, 1e6), "16_stabilization": (530, 7e6)}
    for row in found["rows"]:
        kernels, moved = budgets[row["stage"]]
        assert row["fits"] and row["precision"] == "bfloat16"
        assert row["collectives"] == {"all-reduce": 1}
        assert row["temporary_bytes"] < 1e6
        assert row["kernels"] < kernels and row["bytes"] < moved
        assert 0 < row["least_s"]["bound"] < 1e-3


@needs("libtpu")
def test_an_arrangement_that_no_machine_has_is_refused():
    process = run_factory.start(
        "compile", "--config=configs/nih.py", "--target=v5e:3x5"
    )
    _, error = process.communicate(timeout=60)
    assert process.returncode == 2
    assert (
        'there is no such machine: INVALID_ARGUMENT: Topology layout "v5e:3x5"' in error
    )


@needs("jax_cuda12_plugin", "jax_cuda13_plugin")
def test_a_gpu_is_compiled_for(tmp_path):
    found = compiled_elsewhere("h100:1", tmp_path, "--stages=8_stabilization")
    (row,) = found["rows"]
    assert found["device"] == "NVIDIA H100 80GB HBM3"
    assert row["fits"] and row["collectives"] == {}
    # benchmarks/results has 82 kernels, 5 of them cuDNN's convolutions, and 57 MB
    assert row["kernels"] <= 85 and row["convolutions"] == 5 and row["bytes"] < 60e6
    assert 0 < row["least_s"]["bound"] < 1e-3

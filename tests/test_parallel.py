"""Virtual devices against one; run as a program, it is those devices."""

import dataclasses
import os
import pathlib
import subprocess
import sys
from unittest import mock

import jax
import numpy as np
import pytest
import tiny_factory as tiny

from dpa_jax import engine, errors, parallel
from dpa_jax.data import feeding

ROOT = pathlib.Path(__file__).resolve().parents[1]
BATCH = 16
PLAIN = tiny.spec(tiny.GROWN)
# crops and flips are drawn for an image's place in the whole batch
AUGMENTED = tiny.spec(tiny.GROWING, horizontal_flip=True, vertical_flip=True)


def train(spec, size):
    """Trains a stage; returns its arrays, and what it compiled before and meanwhile."""
    begun = tiny.begin(spec.stage, bool(spec.adversarial), spec.members)
    rates = tiny.RATE if spec.members == 1 else [tiny.RATE, 2 * tiny.RATE]
    state, frozen = parallel.replicate((begun, tiny.frozen(rate=rates)))
    data = parallel.replicate({"images": tiny.images(40, size)})
    with tiny.compilations() as compiling:
        program = engine.compile_stage(spec, state, frozen, data, BATCH)
    stage = spec.stage
    rows = feeding.local_indices(0, 40, BATCH, stage.start, stage.steps, spec.batches)
    chunks = range(0, len(rows), program.steps)
    placed = [program.place(rows[i : i + program.steps]) for i in chunks]
    losses = []
    with tiny.compilations() as running, jax.transfer_guard("disallow"):
        for chunk in placed:
            state, scalars = program.run(state, frozen, data, chunk)
            losses.append(scalars["loss"])
    losses = np.concatenate([np.stack(jax.device_get(one)) for one in losses])
    losses = losses[: len(rows)]
    leaves = jax.tree.leaves((losses, state))
    return [np.asarray(leaf) for leaf in leaves], [len(compiling), len(running)]


def scan(spec, size):
    """The same as a GPU would, by one program of many steps."""
    with (
        mock.patch.object(jax, "default_backend", lambda: "gpu"),
        mock.patch.object(engine, "steps_per_chunk", lambda *_: 3),
    ):
        return train(spec, size)


RUNS = {
    "adversarial": (train, dataclasses.replace(PLAIN, adversarial=0.5), 16),
    "population": (train, dataclasses.replace(PLAIN, members=2), 16),
    "augmented": (train, AUGMENTED, 20),
    "plain": (train, PLAIN, 16),
    "scanned": (scan, PLAIN, 16),
}


def on_devices(count, what):
    """Runs this file as a program on so many devices."""
    flag = f"--xla_force_host_platform_device_count={count}"
    subprocess.run(
        [sys.executable, "-W", "error", __file__, what],
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(ROOT),
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flag}",
        },
        check=True,
    )


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    """What eight devices made of every run."""
    path = tmp_path_factory.mktemp("eight") / "out.npz"
    on_devices(8, path)
    with np.load(path) as arrays:
        assert arrays["devices"] == 8
        return dict(arrays)


@pytest.mark.parametrize("name", list(RUNS))
def test_eight_devices_give_the_numbers_of_one(eight, name):
    run, *arguments = RUNS[name]
    expected, _ = run(*arguments)
    assert len(expected) > 30
    for number, value in enumerate(expected):
        np.testing.assert_allclose(
            eight[f"{name}/{number}"], value, rtol=1e-6, atol=1e-6
        )


@pytest.mark.parametrize("name", list(RUNS))
def test_eight_devices_share_one_executable(eight, name):
    compiling, running = eight[f"{name}/compiled"]
    assert (compiling, running) == (1, 0)


def test_many_steps_do_not_wait_for_each_other_for_ever():
    on_devices(2, "many steps")  # XLA would end it after a minute


def test_a_batch_that_devices_cannot_share_is_refused():
    parallel.check_batch(16, 8)
    with pytest.raises(errors.UsageError, match="batch_size 20 .* 8 .* 16 or 24$"):
        parallel.check_batch(20, 8)
    with pytest.raises(errors.UsageError, match="nearest that can: 8$"):
        parallel.check_batch(5, 8)


def test_processes_that_are_half_described_are_refused():
    with pytest.raises(errors.UsageError, match="go together"):
        parallel.initialize("localhost:1234", 2, None)


def test_one_process_reads_the_whole_batch():
    assert parallel.local_part(16) == slice(0, 16)
    assert parallel.is_main_process()


def test_one_process_gathers_what_it_has():
    part = np.arange(3)
    assert parallel.gather_from_processes(part) is part
    parallel.barrier("alone")


def main(path):
    """Saves every run of this process's devices, or takes many steps at once."""
    if path == "many steps":
        train(tiny.spec(dataclasses.replace(tiny.GROWN, steps=400)), 16)
        return
    arrays = {"devices": np.array(jax.device_count())}
    for name, (run, *arguments) in RUNS.items():
        leaves, compiled = run(*arguments)
        arrays |= {f"{name}/{number}": leaf for number, leaf in enumerate(leaves)}
        arrays[f"{name}/compiled"] = np.array(compiled)
    np.savez(path, **arrays)


if __name__ == "__main__":
    main(sys.argv[1])

"""Virtual devices against one; run as a program, it is those devices."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_factory as tiny

from dpa_jax import errors, losses, state
from dpa_jax.devices import parallel, processes
from dpa_jax.devices.platform import Platform
from dpa_jax.devices.processes import ProcessGroup
from dpa_jax.images import tiles
from dpa_jax.ops.compute import Compute
from dpa_jax.training import feeding, programs

ROOT = pathlib.Path(__file__).resolve().parents[1]
BATCH, COUNT = 16, 43
PLAIN = tiny.spec(tiny.GROWN)
SMALL = tiny.spec(tiny.FIRST, loss=tiny.L2)
# crops and flips are drawn for an image's place in the whole batch, for all members
AUGMENTED = tiny.spec(
    tiny.FIRST, loss=tiny.L2, horizontal_flip=True, vertical_flip=True, members=2
)
LONG = dataclasses.replace(
    tiny.spec(
        dataclasses.replace(tiny.FIRST, steps=50),
        # of VGG19 its first layer: in float64 convolutions are slow
        loss=losses.StageLoss(losses.Loss((("r11", 1.0),))),
    ),
    compute=Compute("float64"),
)


def train(spec, size=16, steps=3, **options):
    """Trains a stage in chunks; returns its losses and its last state as arrays.

    Args:
      spec: of the stage.
      size: of the stored images.
      steps: of a chunk.
      **options: `is_streamed`, `caches` (targets) or `mapped_by`.
    """
    platform, stage, wide = Platform.here(), spec.stage, spec.compute.wide
    if wide == jnp.float64:
        # whose convolutions are loops of their own, and take long as conftest has them
        quick = {**platform.options, "xla_backend_optimization_level": 2}
        platform = dataclasses.replace(platform, options=quick)
    each = [
        tiny.parameters(tiny.ARCHITECTURE, stage, critic=spec.batches > 1, seed=2 + i)
        for i in range(spec.members)
    ]
    begun = state.begin(each, tiny.ARCHITECTURE, stage, spec.batches > 1, wide)
    frozen = tiny.frozen(wide, [tiny.RATE * (1 + i) for i in range(spec.members)])
    train_state, frozen = parallel.replicate((begun, frozen), platform)
    stored = tiny.images(COUNT, size)
    images = parallel.replicate(jnp.asarray(tiles(stored)), platform)
    order = feeding.Order(0, COUNT, BATCH, spec.batches)
    data = {"images": images}
    if options.get("caches"):
        data["targets"] = programs.compute_targets(spec, platform, frozen, images, 2)
    firsts = range(0, stage.steps, steps)
    pairs = [(stage.start + i, min(steps, stage.steps - i)) for i in firsts]
    if options.get("is_streamed"):
        blocks = feeding.stream(stored, np.arange(COUNT), order, pairs, steps, platform)
        fed = [
            parallel.shard(({"images": block.images}, block.indices), platform)
            for block in blocks
        ]
        data = fed[0][0]
    else:
        each = [order.indices(*pair, platform) for pair in pairs]
        fed = [
            (data, parallel.shard(feeding.padded(rows, steps), platform))
            for rows in each
        ]
    program = programs.compile_stage(
        spec,
        platform,
        train_state,
        frozen,
        data,
        BATCH,
        steps,
        is_streamed=bool(options.get("is_streamed")),
    )
    found = []
    for (block, rows), (_, count) in zip(fed, pairs, strict=True):
        valid = parallel.replicate(np.int32(count), platform)
        with jax.transfer_guard("disallow"):
            train_state, scalars = program.run(train_state, frozen, block, rows, valid)
        found.append(np.asarray(scalars["loss"])[:count])
    result = np.concatenate(found), train_state
    return [np.asarray(leaf) for leaf in jax.tree.leaves(result)]


RUNS = {
    "adversarial": lambda: train(
        dataclasses.replace(SMALL, adversarial=0.5, discriminator_steps=1)
    ),
    "augmented population": lambda: train(AUGMENTED, 20),
    "growing": lambda: train(tiny.spec(tiny.GROWING, loss=tiny.L2)),
    "streamed": lambda: train(SMALL, is_streamed=True),
    "targets cached": lambda: train(PLAIN, caches=True),
    "long": lambda: train(LONG, steps=7),
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


@pytest.fixture(scope="module")
def one():
    """What one device makes of the runs that differ in what is computed."""
    return {name: run_here(name) for name in RUNS}


def run_here(name):
    if name == "long":
        with jax.enable_x64(True):
            return RUNS[name]()
    return RUNS[name]()


@pytest.mark.parametrize("name", [name for name in RUNS if name != "long"])
def test_eight_devices_give_the_numbers_of_one(eight, one, name):
    assert len(one[name]) > 20
    for number, value in enumerate(one[name]):
        np.testing.assert_allclose(
            eight[f"{name}/{number}"], value, rtol=1e-6, atol=1e-6
        )


def test_after_fifty_steps_in_float64_eight_devices_are_at_rounding(eight, one):
    for number, value in enumerate(one["long"]):
        found = eight[f"long/{number}"]
        assert found.dtype == value.dtype
        if value.dtype == np.float64:
            assert np.abs(found - value).max() < 1e-9 * max(1, np.abs(value).max())


def test_a_step_is_the_same_program_by_pmap_and_by_shard_map(eight):
    assert eight["pmap"] == eight["shard_map"]
    np.testing.assert_array_equal(eight["by pmap"], eight["by shard_map"])


def test_a_batch_that_devices_cannot_share_is_refused():
    parallel.check_batch(16, 8)
    with pytest.raises(errors.UsageError, match="batch_size 20 .* 8 .* 16 or 24$"):
        parallel.check_batch(20, 8)
    with pytest.raises(errors.UsageError, match="nearest that can: 8$"):
        parallel.check_batch(5, 8)


def test_processes_that_are_half_described_are_refused():
    with pytest.raises(errors.UsageError, match="go together"):
        processes.initialize("localhost:1234", 2, None)


def test_one_process_reads_the_whole_batch_and_gathers_what_it_has():
    here, part = Platform.here(), np.arange(3)
    assert parallel.local_part(16, here) == slice(0, 16) and here.is_main
    assert parallel.gather_from_processes(part, here.group) is part


def test_processes_divide_what_they_read():
    found = parallel.parts(10, ProcessGroup(1, 3))
    assert [list(range(10))[part] for part in found] == [
        [0, 1, 2],
        [3, 4, 5],
        [6, 7, 8, 9],
    ]


def compare_mappings():
    """Compiles one step by pmap and by shard_map: operations, and what they give."""
    platform, found = Platform.here(), {}

    def make(axis):
        def step(x, w, y):
            z = jnp.tanh(y @ w) + jax.lax.axis_index(axis)
            return x + jax.lax.pmean(z.sum(0), axis), jax.lax.pmean(z, axis)

        return step

    w = jnp.asarray(np.random.default_rng(0).normal(size=(6, 6)), jnp.float32)
    y = np.random.default_rng(1).normal(size=(8, 5, 6)).astype(np.float32)
    w, y = parallel.replicate(w, platform), parallel.shard(y, platform)
    for way in ("pmap", "shard_map"):
        x = parallel.replicate(jnp.zeros(6), platform)
        program = parallel.compile_program(
            make, platform, (x, w, y), (False, False, True), mapped_by=way
        )
        lines = [line.partition(" = ")[2] for line in program.as_text().splitlines()]
        names = [line.partition("(")[0].split(" ")[-1] for line in lines if line]
        found[way] = np.array(" ".join(sorted(names)))
        found[f"by {way}"] = np.concatenate(
            [np.ravel(leaf) for leaf in program(x, w, y)]
        )
    return found


def main(path):
    """Saves every run of this process's devices."""
    arrays = {"devices": np.array(jax.device_count()), **compare_mappings()}
    for name in RUNS:
        leaves = run_here(name)
        arrays |= {f"{name}/{number}": leaf for number, leaf in enumerate(leaves)}
    np.savez(path, **arrays)


if __name__ == "__main__":
    main(sys.argv[1])

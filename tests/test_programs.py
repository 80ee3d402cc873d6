"""What turns a stage into a program: executables, parts of a batch, cached targets."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_factory as tiny

from dpa_jax import errors, losses, step
from dpa_jax.devices import parallel
from dpa_jax.devices.platform import Platform
from dpa_jax.ops.compute import Compute
from dpa_jax.training import feeding, programs
from dpa_jax.training.compiled import Programs

BATCH = 4
HERE = Platform.here()
ORDER = feeding.Order(0, 20, BATCH)


def arguments(stage, **data):
    """What a program is compiled for and called with."""
    frozen = tiny.frozen()
    data = {"images": tiny.in_tiles()} | data
    return parallel.replicate((tiny.begin(stage), frozen, data), HERE)


def compiled(spec, steps=5, platform=HERE, data=None, **options):
    state, frozen, resident = arguments(spec.stage)
    return programs.compile_stage(
        spec, platform, state, frozen, data or resident, BATCH, steps, **options
    )


def rows(stage, first=0, steps=5):
    """Which images steps of a stage see, and how many steps that are, for programs."""
    count = min(steps, stage.steps - first)
    found = ORDER.indices(stage.start + first, count, HERE)
    placed = parallel.shard(feeding.padded(found, steps), HERE)
    return placed, parallel.replicate(np.int32(count), HERE)


@pytest.fixture(scope="module")
def grow():
    """The program of a transition, what compiling and running it compiled, and gave."""
    state, frozen, data = arguments(tiny.GROWING)
    with tiny.compilations() as compiling:
        program = compiled(tiny.spec(tiny.GROWING))
    placed = rows(tiny.GROWING)
    with tiny.compilations() as running, jax.transfer_guard("disallow"):
        state, scalars = program.run(state, frozen, data, *placed)
    return program, len(compiling), len(running), state, scalars


def test_a_stage_has_one_executable(grow):
    assert grow[1] == 1


def test_nothing_is_compiled_while_alpha_moves(grow):
    _, _, running, state, scalars = grow
    assert running == 0
    assert state.step == 4 and scalars["loss"].shape == (5, 1)


def test_nothing_is_transferred_within_a_chunk(grow):
    # the fixture ran under a guard; that the guard bites here is shown by
    state, frozen, data = arguments(tiny.GROWING)
    placed, _ = rows(tiny.GROWING)
    with jax.transfer_guard("disallow"), pytest.raises(jax.errors.JaxRuntimeError):
        grow[0].run(state, frozen, data, placed, np.int32(4))


def test_the_state_is_donated(grow):
    state, frozen, data = arguments(tiny.GROWING)
    grow[0].run(state, frozen, data, *rows(tiny.GROWING))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.parameters))
    assert not data["images"].is_deleted()


@pytest.mark.parametrize("length", [1, 3])
def test_chunks_of_any_length_give_the_same_bits(grow, length):
    program = compiled(tiny.spec(tiny.GROWING), steps=length)
    state, frozen, data = arguments(tiny.GROWING)
    found = []
    for first in range(0, 4, length):
        placed, valid = rows(tiny.GROWING, first, length)
        state, scalars = program.run(state, frozen, data, placed, valid)
        found += [float(loss) for loss in scalars["loss"][: int(valid), 0]]
    *_, whole, expected = grow
    assert found == [float(loss) for loss in expected["loss"][:4, 0]]
    jax.tree.map(np.testing.assert_array_equal, state, whole)


@pytest.mark.parametrize("backend", ["gpu", "tpu"])
def test_an_accelerators_arrangement_computes_the_same(grow, backend):
    spec = tiny.spec(tiny.GROWING, compute=Compute(backend=backend))
    state, frozen, data = arguments(tiny.GROWING)
    state, scalars = compiled(spec).run(state, frozen, data, *rows(tiny.GROWING))
    *_, whole, expected = grow
    np.testing.assert_allclose(scalars["loss"][:4], expected["loss"][:4], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        state.parameters,
        whole.parameters,
    )


# --- parts of a batch


@pytest.mark.parametrize(
    ("resolution", "batch", "images"),
    [
        (8, 128, 128),  # 8,192 pixels
        (16, 128, 32),
        (32, 32, 8),
        (64, 32, 8),  # no fewer images
        (64, 20, 10),  # as near as the batch can be divided
        (64, 31, 31),
        (32, 4, 4),
    ],
)
def test_a_cpu_takes_a_batch_in_parts_that_fit_its_cache(resolution, batch, images):
    assert batch / programs.default_parts(resolution, batch, "cpu") == images


def test_an_accelerator_takes_a_batch_at_once():
    assert programs.default_parts(64, 128, "gpu") == 1


def test_parts_that_do_not_divide_a_batch_are_refused():
    with pytest.raises(errors.UsageError, match="batch_parts is 3.*4 images.*1, 2, 4"):
        compiled(tiny.spec(tiny.GROWN), batch_parts=3)


def test_the_parts_asked_for_are_taken(grow):
    assert compiled(tiny.spec(tiny.GROWING), batch_parts=2).spec.batch_parts == 2
    assert grow[0].spec.batch_parts == 1


def test_a_program_that_does_not_fit_takes_a_batch_in_more_parts(grow):
    small = dataclasses.replace(HERE, memory=grow[0].planned_bytes - 1)
    found = compiled(tiny.spec(tiny.GROWING), platform=small)
    assert found.spec.batch_parts > 1
    assert found.planned_bytes < grow[0].planned_bytes


def test_a_lack_of_memory_names_what_helps():
    # more than any machine has, asked of the allocator itself
    spec = dataclasses.replace(tiny.spec(tiny.GROWN), batch_parts=2)
    with (
        pytest.raises(
            programs.OutOfMemoryError, match=r"16_stabilization.*batch_parts=4.*below 8"
        ),
        programs.memory_errors(spec, 8),
    ):
        jax.block_until_ready(jnp.zeros((1 << 46,), jnp.uint8))


def test_other_errors_of_xla_stay_what_they_are():
    with (
        pytest.raises(jax.errors.JaxRuntimeError, match="mine"),
        programs.memory_errors(tiny.spec(tiny.GROWN), 8),
    ):
        raise jax.errors.JaxRuntimeError("INTERNAL: mine")


# --- cached targets


def test_cached_targets_give_the_same_losses():
    spec = tiny.spec(tiny.GROWN)
    found = []
    for is_cached in (False, True):
        state, frozen, data = arguments(tiny.GROWN)
        if is_cached:
            data["targets"] = programs.compute_targets(
                spec, HERE, frozen, data["images"], block=8
            )
        program = compiled(spec, data=data)
        state, scalars = program.run(state, frozen, data, *rows(tiny.GROWN))
        found.append((scalars["loss"], state.parameters))
    (plain, parameters), (cached, others) = found
    np.testing.assert_allclose(cached, plain, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        others,
        parameters,
    )


def test_the_program_of_targets_is_kept_for_the_same_shapes():
    spec, compiled = tiny.spec(tiny.GROWN), Programs()
    frozen, images = tiny.frozen(), tiny.in_tiles()

    def targets(images, frozen=frozen):
        with tiny.compilations() as found:
            made = programs.compute_targets(spec, HERE, frozen, images, 8, compiled)
        return np.asarray(made[0]["r21"]), len(found)

    expected, first = targets(images)
    again, second = targets(images)
    assert first > 0 and second == 0
    np.testing.assert_array_equal(again, expected)
    deeper = dataclasses.replace(frozen, backbone=tiny.vgg_weights("c22", tiny.WIDTH))
    np.testing.assert_allclose(targets(images, deeper)[0], expected, rtol=1e-5)
    assert len(targets(images[:19])[0]) == 19


@pytest.mark.parametrize(("precision", "block"), [("float32", 8), ("bfloat16", 256)])
def test_targets_are_the_features_of_what_a_step_sees(precision, block):
    full = losses.Loss((("r21", 1.0), ("r11", 0.5)), image_weight=0.1)
    spec = tiny.spec(
        tiny.GROWN,
        loss=losses.StageLoss(full=full),
        compute=Compute(precision),
    )
    frozen = tiny.frozen(spec.compute.dtype)
    images = jnp.asarray(tiny.images(19))  # 8 + 8 + 3, the last block overlapping
    found = programs.compute_targets(spec, HERE, frozen, tiny.in_tiles(19), block)
    with spec.compute.matmul_precision():
        expected = jax.jit(
            lambda images: step.targets(
                spec, frozen, step.prepare(spec, images, None, 1.0)
            )
        )(images)
    assert found[0].keys() == {"r21", "r11", "image"} and found[1] == {}
    for name, value in expected[0].items():
        assert found[0][name].dtype == value.dtype
        limit = 1e-5 if precision == "float32" else 0.02
        np.testing.assert_allclose(
            *(np.asarray(v, np.float32) for v in (found[0][name], value)),
            rtol=limit,
            atol=limit,
        )


def test_target_shapes_are_those_of_vgg19():
    full = losses.Loss((("r21", 1.0), ("p1", 1.0)), image_weight=1.0)
    spec = tiny.spec(
        tiny.GROWN, loss=losses.StageLoss(full=full), compute=Compute("bfloat16")
    )
    found, none = programs.target_shapes(spec, tiny.frozen(jnp.bfloat16), 5)
    assert {n: (f.shape, f.dtype.name) for n, f in found.items()} == {
        "r21": ((5, 8, 8, tiny.WIDTH), "bfloat16"),
        "p1": ((5, 8, 8, tiny.WIDTH), "bfloat16"),
        "image": ((5, 16, 16, 3), "float32"),
    }
    assert none == {}


# 20 images of 8x8 positions, in float32
SIZE = 20 * 8 * 8 * tiny.WIDTH * 4


def caches(spec, stored_size=16, draws=2.0, memory=1 << 40, wanted="auto"):
    return programs.caches_targets(
        spec,
        programs.target_shapes(spec, tiny.frozen(), 20),
        stored_size=stored_size,
        draws_per_image=draws,
        memory=memory,
        wanted=wanted,
    )


def test_targets_are_cached_where_images_never_change():
    grown = tiny.spec(tiny.GROWN)
    plain = losses.StageLoss(losses.Loss(relative_perceptual=0, l1=1.0))
    assert caches(grown)
    assert not caches(grown, wanted="never")
    for changing in (
        tiny.spec(tiny.GROWING),
        tiny.spec(tiny.GROWN, horizontal_flip=True),
        tiny.spec(tiny.GROWN, loss=plain),
    ):
        assert not caches(changing, wanted="always")
    assert not caches(grown, stored_size=20, wanted="always")


def test_targets_are_cached_when_it_pays_and_they_fit():
    grown = tiny.spec(tiny.GROWN)
    assert not caches(grown, draws=1.9)
    assert caches(grown, draws=1.9, wanted="always")
    enough = SIZE / programs.TARGET_SHARE
    assert caches(grown, memory=enough)
    assert not caches(grown, memory=enough - 100)

"""What turns a stage into a program: chunks, executables, cached targets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_factory as tiny

from dpa_jax import config as config_lib
from dpa_jax import engine, losses, parallel, stages, step
from dpa_jax.data import feeding

BATCH = 4
TERA = 1e12


def published(name):
    config = config_lib.default_config()
    plan = {stage.name: stage for stage in stages.schedule(config)}
    return step.StepSpec.from_config(config, plan[name], "float32")


# --- arithmetic


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("64_stabilization", 0.88),  # 2 * 3 * 128 * 1,139,539,968 multiply-adds
        ("64_transition", 0.99),
        ("32_stabilization", 0.12),
        ("16_stabilization", 0.019),
        ("8_stabilization", 0.002),
    ],
)
def test_flops_of_a_published_step(name, tera):
    assert engine.flops(published(name), 128) == pytest.approx(tera * TERA, rel=0.06)


def test_flops_by_hand():
    # 16 pixels to r21: 9 * 64 * (3 + 64) * 256 + 9 * 64 * 128 * 64 multiply-adds
    to_r21 = 9_879_552 + 4_718_592
    spec = tiny.spec(tiny.GROWN)
    assert engine.flops(spec, 10) == 2 * 3 * 10 * to_r21
    assert engine.flops(spec, 10, cached=True) == 2 * 2 * 10 * to_r21
    # the smooth loss sees 8 pixels to r11 as well
    to_r11 = 9 * 3 * 64 * 64
    assert engine.flops(tiny.spec(tiny.GROWING), 10) == 60 * (to_r21 + to_r11)


def test_without_perceptual_terms_vgg_costs_nothing():
    plain = losses.StageLoss(losses.Loss(relative_perceptual=0, l1=1.0))
    assert engine.flops(tiny.spec(tiny.GROWN, loss=plain), 10) == 0


# --- chunks


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("name", ["8_stabilization", "64_transition"])
def test_chunks_divide_a_stage_evenly(monkeypatch, platform, name):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    spec = published(name)
    steps = engine.steps_per_chunk(spec, 128)
    assert steps == engine.steps_per_chunk(spec, 128)  # of no timing
    chunks = -(-spec.stage.steps // steps)
    assert 0 <= chunks * steps - spec.stage.steps < chunks


def test_a_chunk_takes_about_the_seconds_asked_for(monkeypatch):
    # 0.88 TFLOP a step at 2e11 FLOP/s on CPU: 4.4 s, so one step a chunk
    spec = published("64_stabilization")
    assert engine.steps_per_chunk(spec, 128) == 1
    assert engine.steps_per_chunk(spec, 128, seconds=44) == 10
    # on a GPU at 3e13: 29 ms and 0.5 ms of overhead, 34 steps of 3,500 in 103 chunks
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert engine.steps_per_chunk(spec, 128) == 34


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
    assert batch / engine.parts(resolution, batch) == images


def test_an_accelerator_takes_a_batch_at_once(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert engine.parts(64, 128) == 1


def test_a_chunk_is_no_longer_than_its_stage():
    assert engine.steps_per_chunk(tiny.spec(tiny.GROWN), BATCH) == 5


def test_precision_follows_the_platform(monkeypatch):
    assert engine.precision("auto") == "float32"
    assert engine.precision("bfloat16") == "bfloat16"
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert engine.precision("auto") == "bfloat16"
    assert engine.precision("float32") == "float32"


# --- programs


def arguments(stage, **data):
    """What a program is compiled for and called with."""
    frozen = tiny.frozen()
    data = {"images": tiny.images()} | data
    return parallel.replicate(tiny.begin(stage)), frozen, parallel.replicate(data)


def rows(stage):
    return feeding.batch_indices(0, 20, BATCH, stage.start, stage.steps)


@pytest.fixture(scope="module")
def grow():
    """The program of a transition, what compiling and running it compiled, and gave."""
    state, frozen, data = arguments(tiny.GROWING)
    with tiny.compilations() as compiled:
        program = engine.compile_stage(
            tiny.spec(tiny.GROWING), state, frozen, data, BATCH
        )
    placed = program.place(rows(tiny.GROWING))
    with tiny.compilations() as ran, jax.transfer_guard("disallow"):
        state, scalars = program.run(state, frozen, data, placed)
    return program, len(compiled), len(ran), state, scalars


def test_a_stage_has_one_executable(grow):
    assert grow[1] == 1


def test_nothing_is_compiled_while_alpha_moves(grow):
    _, _, ran, state, scalars = grow
    assert ran == 0
    assert state.step == 4 and len(scalars["loss"]) == 4


def test_nothing_is_transferred_within_a_chunk(grow):
    # the fixture ran under a guard; that the guard bites here is shown by
    program = grow[0]
    state, frozen, data = arguments(tiny.GROWING)
    with jax.transfer_guard("disallow"), pytest.raises(jax.errors.JaxRuntimeError):
        program.run(state, frozen, data, list(rows(tiny.GROWING)))


def test_the_state_is_donated(grow):
    program = grow[0]
    state, frozen, data = arguments(tiny.GROWING)
    program.run(state, frozen, data, program.place(rows(tiny.GROWING)))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.parameters))
    assert not data["images"].is_deleted()


def test_a_scanned_chunk_gives_the_numbers_of_the_loop(grow, monkeypatch):
    # the options of a CPU, since others would leave it other kernels
    options = engine.xla_options()
    monkeypatch.setattr(engine, "xla_options", lambda: options)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    state, frozen, data = arguments(tiny.GROWING)
    # three steps a chunk, so that the second is filled up
    monkeypatch.setattr(engine, "steps_per_chunk", lambda *_: 3)
    program = engine.compile_stage(tiny.spec(tiny.GROWING), state, frozen, data, BATCH)
    losses = []
    placed = [program.place(rows(tiny.GROWING)[part]) for part in np.s_[:3, 3:]]
    with tiny.compilations() as ran, jax.transfer_guard("disallow"):
        for part in placed:
            state, scalars = program.run(state, frozen, data, part)
            losses.append(scalars["loss"])
    assert len(ran) == 0
    *_, looped, expected = grow
    np.testing.assert_allclose(np.concatenate(losses)[:4], expected["loss"], rtol=1e-6)
    assert state.step == 4
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        state.parameters,
        looped.parameters,
    )


# --- cached targets


def test_cached_targets_give_the_same_losses():
    spec = tiny.spec(tiny.GROWN)
    found = []
    for cached in (False, True):
        state, frozen, data = arguments(tiny.GROWN)
        if cached:
            images = data["images"]
            data["targets"] = engine.compute_targets(spec, frozen, images, block=8)
        program = engine.compile_stage(spec, state, frozen, data, BATCH)
        placed = program.place(rows(tiny.GROWN))
        state, scalars = program.run(state, frozen, data, placed)
        found.append((scalars["loss"], state.parameters))
    (plain, parameters), (cached, others) = found
    np.testing.assert_allclose(cached, plain, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        others,
        parameters,
    )


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("block", [7, 256])
def test_targets_are_the_features_of_every_image(precision, block):
    full = losses.Loss((("r21", 1.0), ("r11", 2.0)), image_weight=1.0)
    spec = tiny.spec(tiny.GROWN, loss=losses.StageLoss(full=full), precision=precision)
    frozen, images = tiny.frozen(spec.dtype), jnp.asarray(tiny.images(17))
    found = engine.compute_targets(spec, frozen, images, block)
    with step.exact(precision):
        expected = jax.jit(
            lambda images: step.targets(
                spec, frozen, step.prepare(spec, images, None, 1.0)
            )
        )(images)
    assert found[0].keys() == {"r21", "r11", "image"} and found[1] == {}
    for name, value in expected[0].items():
        assert found[0][name].dtype == value.dtype
        np.testing.assert_allclose(
            *(np.asarray(v, np.float32) for v in (found[0][name], value)),
            rtol=1e-5 if precision == "float32" else 0.01,
            atol=1e-5 if precision == "float32" else 0.02,
        )


def test_target_shapes_are_those_of_vgg19():
    full = losses.Loss((("r21", 1.0), ("p2", 1.0)), image_weight=1.0)
    spec = tiny.spec(tiny.GROWN, loss=losses.StageLoss(full=full), precision="bfloat16")
    found, none = engine.target_shapes(spec, tiny.images(5))
    assert {n: (f.shape, f.dtype.name) for n, f in found.items()} == {
        "r21": ((5, 8, 8, 128), "bfloat16"),
        "p2": ((5, 4, 4, 128), "bfloat16"),
        "image": ((5, 16, 16, 3), "float32"),
    }
    assert none == {}


def caches(spec, images=None, steps=1000, wanted="auto"):
    images = tiny.images() if images is None else images
    return engine.caches_targets(spec, images, BATCH, steps, wanted)


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
    assert not caches(grown, tiny.images(size=20), wanted="always")


def test_targets_are_cached_when_it_pays_and_they_fit(monkeypatch):
    grown = tiny.spec(tiny.GROWN)  # 20 images, batches of 4: two epochs are 10 steps
    assert caches(grown, steps=10) and not caches(grown, steps=9)
    assert caches(grown, steps=9, wanted="always")
    # 20 images * 8 * 8 * 128 float32
    needed = 20 * 8 * 8 * 128 * 4
    monkeypatch.setattr(engine, "memory_limit", lambda: needed / engine.TARGET_SHARE)
    assert caches(grown)
    monkeypatch.setattr(
        engine, "memory_limit", lambda: needed / engine.TARGET_SHARE - 100
    )
    assert not caches(grown)


def test_memory_is_that_of_the_machine():
    assert 2**28 < engine.memory_limit() < 2**50

"""Which arrangement of a stage is kept, and that all of them compute the same."""

import dataclasses
import functools
import json
import pathlib
import signal

import jax
import numpy as np
import pytest
import run_factory
import tiny_factory as tiny

import dpa_jax
from dpa_jax import errors, losses, stages, step
from dpa_jax.compiling import ahead
from dpa_jax.config import updated
from dpa_jax.devices.platform import Platform
from dpa_jax.devices.processes import ProcessGroup
from dpa_jax.ops.compute import Compute
from dpa_jax.training import autotune, choices, programs
from dpa_jax.training.arrangement import Arrangement
from dpa_jax.training.run import Run
from dpa_jax.training.setup import Problem, Setup

HERE = Platform.here()
GPU = dataclasses.replace(HERE, backend="gpu", options={"a": 1})
WITH_KERNELS = dataclasses.replace(GPU, has_kernels=True)


def seconds(**known):
    """A timer that knows what one change of the usual arrangement, of 1 s, takes."""

    def timer(arrangement):
        changed = {
            name: value
            for name, value in vars(arrangement).items()
            if value != getattr(Arrangement(), name)
        }
        factors = [known[f"{name}_{value}"] for name, value in changed.items()]
        if "fails" in factors:
            raise jax.errors.JaxRuntimeError("INTERNAL: status 5003\nat some place")
        return float(np.prod(factors))

    return timer


# --- what is the fastest


def test_each_field_is_chosen_beside_the_best_of_those_before():
    found, timings = autotune.fastest(
        {"fill": (1, 128), "batch_parts": (2,), "options": (False,)},
        seconds(fill_1=1.5, fill_128=0.5, batch_parts_2=2.0, options_False=0.5),
    )
    assert found == Arrangement(fill=128, options=False)
    assert timings == [
        {"seconds": 1.0},
        {"fill": 1, "seconds": 1.5},
        {"fill": 128, "seconds": 0.5},
        {"fill": 128, "batch_parts": 2, "seconds": 1.0},
        {"fill": 128, "options": False, "seconds": 0.25},
    ]


def test_what_is_hardly_faster_does_not_take_the_place_of_the_usual():
    found, _ = autotune.fastest({"fill": (1,)}, seconds(fill_1=0.985))
    assert found == Arrangement()


def test_an_arrangement_that_fails_is_not_taken_and_named():
    found, timings = autotune.fastest({"fill": (1,)}, seconds(fill_1="fails"))
    assert found == Arrangement()
    assert timings[1] == {"fill": 1, "failed": "INTERNAL: status 5003"}


def test_an_option_that_fails_has_a_fallback():
    def timer(arrangement):
        if arrangement.options:
            raise programs.OutOfMemoryError("no memory for graphs")
        return 2.0

    found, timings = autotune.fastest({"fill": (1,), "options": (False,)}, timer)
    assert found == Arrangement(options=False)
    assert choices.Choice("a GPU", found, timings).describe(tiny.GROWN) == (
        "16_stabilization: of 3 arrangements options=False is the fastest, 2000.000 ms "
        "a step (the usual one: it fails); kept in autotune.json"
    )


def test_where_nothing_runs_the_error_is_that_of_the_usual():
    def timer(arrangement):
        raise programs.OutOfMemoryError(f"fill {arrangement.fill}")

    with pytest.raises(programs.OutOfMemoryError, match="fill 0"):
        autotune.fastest({"fill": (1,)}, timer)


# --- what there is to choose


def setup_of(platform, **changes):
    """A setup without arrays, and its stages."""
    config = updated(run_factory.tiny_config(), changes, "a test")
    return ahead.abstract_setup(config, platform, 12), stages.schedule(config)


def test_a_cpu_has_nothing_to_choose():
    found, plan = setup_of(HERE, **{"population.seeds": 2})
    assert all(not found.alternatives(stage) for stage in plan)


@pytest.mark.parametrize(
    ("platform", "convolutions"),
    [
        (GPU, {"fill": (1, 128)}),
        (WITH_KERNELS, {"blocks": (False,), "backend": ("gpu",)}),
    ],
)
def test_a_gpu_may_choose_all_that_is_free(platform, convolutions):
    found, (stabilization, transition, _) = setup_of(
        platform, **{"population.seeds": 2}
    )
    alternatives = {
        **convolutions,
        "mapped_by": ("scan",),
        "batch_parts": (2,),
        "caches_targets": (False,),
        "options": (False,),
    }
    assert found.alternatives(stabilization) == alternatives
    del alternatives["caches_targets"]  # images change from step to step
    assert found.alternatives(transition) == alternatives


def test_without_a_block_that_a_kernel_takes_there_are_no_two_ways():
    channels = {f"model.{one}_channels": (32,) * 3 for one in ("encoder", "decoder")}
    found, (stage, *_) = setup_of(WITH_KERNELS, **channels)
    assert found.alternatives(stage).keys() >= {"backend"}
    assert "blocks" not in found.alternatives(stage)


def test_what_a_config_says_is_not_chosen():
    changes = {"batch_parts": 4, "perceptual.cache_targets": "always"}
    found, (stage, *_) = setup_of(GPU, **changes)
    assert found.alternatives(stage).keys() == {"fill", "options"}


def test_an_arrangement_is_what_is_compiled():
    found, (stage, *_) = setup_of(WITH_KERNELS, **{"population.seeds": 2})
    assert found.spec(stage).compute.backend == "cuda"
    assert found.spec(stage).compute.runs_blocks
    assert found.caches_targets(stage) and "targets" in found.shapes(stage)[2]
    found.arrange(stage, Arrangement("gpu", 128, False, "scan", 2, False))
    spec = found.spec(stage)
    assert (spec.compute.backend, spec.compute.fill) == ("gpu", 128)
    assert not spec.compute.blocks
    assert spec.mapped_by == "scan"
    assert not found.caches_targets(stage) and "targets" not in found.shapes(stage)[2]


def test_all_that_may_be_chosen_computes_the_same():
    """Kernels of our own, pixels of a row together, members in a loop, batch parts."""
    stage = dataclasses.replace(tiny.GROWN, resolution=8)
    begun, frozen = tiny.begin(stage, members=2), tiny.frozen(rates=[1e-4, 3e-4])
    data, index = {"images": tiny.in_tiles()}, np.arange(4)
    plain = losses.StageLoss(losses.Loss(relative_perceptual=0, l1=1.0))

    def run(backend, fill, **changes):
        compute = Compute(backend=backend, fill=fill)
        spec = tiny.spec(stage, loss=plain, members=2, compute=compute, **changes)
        return jax.jit(step.gathering_step(spec))(begun, frozen, data, index)

    usual, scalars = run("cuda", 1)
    other, others = run("gpu", 8, mapped_by="scan", batch_parts=2)
    np.testing.assert_allclose(others["loss"], scalars["loss"], rtol=1e-5)
    for a, b in zip(
        jax.tree.leaves(usual.parameters),
        jax.tree.leaves(other.parameters),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


# --- what is kept


@dataclasses.dataclass(frozen=True)
class Device:
    device_kind: str
    process_index: int = 0
    id: int = 0


@functools.cache
def quick(batch):
    """A run of one stage, without arrays."""
    config = run_factory.quick_config()
    config.batch_size = batch
    return config, ahead.abstract_setup(config, GPU, 24), stages.schedule(config)


@pytest.fixture
def arrange(tmp_path, monkeypatch):
    """Arranges a run of one stage; returns the arrangement, how often it timed, lines.

    The fastest is the one that fills 128 channels.
    """
    monkeypatch.setattr(autotune, "LEAST_STEPS", 6)

    def call(name, kind="a GPU", done=0, batch=8, group=None, **changes):
        config, found, plan = quick(batch)
        config = updated(config, {"autotune": str(tmp_path / "shared")} | changes, "")
        found.arrange(plan[0], Arrangement())
        platform = dataclasses.replace(
            GPU, devices=(Device(kind),), group=group or GPU.group
        )
        timed = []

        def timer(setup, stage, *_):
            timed.append(setup.arrangement(stage))
            return 1.0 if timed[-1].fill == 128 else 2.0

        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        runs = [Run(config, folder)]
        lines = list(
            autotune.arrange(found, runs, plan, done, None, None, platform, timer)
        )
        return found.arrangement(plan[0]), len(timed), lines

    return call


FASTEST = Arrangement(fill=128)


def test_the_fastest_is_kept_in_the_workdir_with_its_timings(arrange, tmp_path):
    found, timed, (line,) = arrange("run")
    assert (found, timed) == (FASTEST, 5)
    assert "fill=128 is the fastest, 1000.000 ms a step" in line
    kept = json.loads((tmp_path / "run" / "autotune.json").read_text())
    assert kept["8_stabilization"]["device"] == "a GPU"
    assert kept["8_stabilization"]["arrangement"]["fill"] == 128
    timings = kept["8_stabilization"]["timings"]
    assert [one["seconds"] for one in timings] == [2, 2, 1, 1, 1]


def test_what_was_chosen_is_not_timed_again_by_any_run_of_its_kind(arrange):
    arrange("run")
    assert arrange("run") == (FASTEST, 0, [])
    assert arrange("another") == (FASTEST, 0, [])
    assert arrange("other shapes", batch=4)[1] == 5
    assert arrange("other device", kind="a TPU")[1] == 5


def test_a_run_keeps_its_own_choice_whatever_others_chose_since(arrange, tmp_path):
    arrange("run")
    (shared,) = (tmp_path / "shared").iterdir()
    shared.write_text(shared.read_text().replace('"fill": 128', '"fill": 1'))
    assert arrange("another")[0] == Arrangement(fill=1)
    assert arrange("run")[0] == FASTEST


def test_a_run_that_goes_on_elsewhere_chooses_anew(arrange):
    arrange("run")
    assert arrange("run", kind="a TPU")[1] == 5
    assert arrange("run", kind="a TPU")[1] == 0


def test_a_stage_that_was_begun_stays_as_it_was(arrange):
    assert arrange("run", done=2) == (Arrangement(), 0, [])
    assert arrange("run") == (Arrangement(), 0, [])


def test_a_stage_that_is_soon_over_is_not_timed(arrange, monkeypatch):
    monkeypatch.setattr(autotune, "LEAST_STEPS", 7)
    assert arrange("run") == (Arrangement(), 0, [])


class Follower:
    """A process that is told what process 0 decided."""

    count, index, is_main = 2, 1, False

    def __init__(self, *decisions):
        self.decide = lambda make: next(left)
        left = iter(decisions)


def test_another_process_follows_the_clock_of_the_first(arrange, tmp_path):
    # not its own, by which filling 128 channels is the fastest
    follower = Follower("shared", None, 2.0, 1.0, 3.0, 3.0, 0.5)
    found, timed, _ = arrange("run", group=follower)
    assert (found, timed) == (Arrangement(fill=1, options=False), 5)
    assert list(tmp_path.rglob("*.json")) == []


def test_another_process_follows_what_the_first_had_chosen(arrange):
    choice = choices.Choice("a GPU", Arrangement(fill=1), [])
    follower = Follower("shared", dataclasses.asdict(choice))
    assert arrange("run", group=follower) == (Arrangement(fill=1), 0, [])


def test_nothing_is_timed_or_kept_where_it_is_off(arrange, tmp_path):
    assert arrange("run", autotune="off") == (Arrangement(), 0, [])
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("{", ""), "autotune.json: damaged, not JSON"),
        (
            ('"fill": 128', '"fill": "a"'),
            "damaged, fill is not a whole number; delete it",
        ),
        (('"fill"', '"full"'), "damaged, fill is missing"),
        (('"fill"', '"full": 1, "fill"'), "fields that this version does not know"),
    ],
)
def test_a_damaged_choice_is_named(arrange, tmp_path, change, message):
    arrange("run")
    path = tmp_path / "run" / "autotune.json"
    path.write_text(path.read_text().replace(*change, 1))
    with pytest.raises(errors.DpaError, match=message):
        arrange("run")


@pytest.mark.parametrize("field", vars(Arrangement()))
def test_a_choice_of_before_there_was_a_field_is_made_anew(arrange, tmp_path, field):
    arrange("run")
    path = tmp_path / "run" / "autotune.json"
    choices = json.loads(path.read_text())
    for choice in choices.values():
        del choice["arrangement"][field]
    path.write_text(json.dumps(choices))
    (tmp_path / "shared").rename(tmp_path / "elsewhere")
    assert arrange("run")[:2] == (FASTEST, 5)


def test_a_folder_that_cannot_be_made_is_named(arrange, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.DpaError, match="file/.*cannot be written: "):
        arrange("run", autotune=str(tmp_path / "file"))


# --- on this machine


def test_a_stage_is_timed_by_its_own_program_which_is_then_trained():
    config = run_factory.quick_config()
    plan = stages.schedule(config)
    problem = Problem(
        plan=plan,
        images=run_factory.images(size=8)[..., None],
        rows=np.arange(24),
        held_out=np.zeros(0, np.int64),
        weights={},
        statistics={},
        precision="float32",
    )
    run = Run(config, pathlib.Path())
    made = Setup([run], problem, HERE)
    run.parameters = made.first_parameters(run)
    images, frozen = made.resident_images(), made.resident_frozen()
    with tiny.compilations() as timing:
        taken = autotune.time_stage(made, plan[0], images, frozen, HERE)
    assert 0 < taken < 1 and timing
    with tiny.compilations() as again:
        made.compiled(plan[0])
    assert not again


def test_a_run_on_a_cpu_times_nothing(trained):
    assert not (trained / choices.FILE).exists()


def test_a_signal_that_comes_meanwhile_stops_the_run(tmp_path, monkeypatch):
    platform = dataclasses.replace(HERE, group=ProcessGroup())

    def arrange(*_):
        platform.group.signal = signal.SIGTERM
        yield "timed"

    monkeypatch.setattr(autotune, "arrange", arrange)
    config = run_factory.quick_config()
    config.data.train = run_factory.write_npz(tmp_path / "train.npz")
    with pytest.raises(errors.Interrupted, match="stopped by SIGTERM after step 0"):
        dpa_jax.train(config, tmp_path / "run", platform=platform, visible=False)

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import (
    end_to_end,
    host_memory,
    interruptions,
    measure,
    population,
    prepare,
    problem,
    report,
    report_page,
    score,
    train_step,
)
from dpa_jax import errors, losses, stages, step
from dpa_jax.backbones import vgg19
from dpa_jax.config import updated
from dpa_jax.datasets import nih_prepare
from dpa_jax.reporting import evaluation_files
from dpa_jax.storage import config_files
from dpa_jax.training import programs
from dpa_jax.training.chunks import Chunk

ROW = {
    *("stage", "implementation", "batch", "ms_per_step", "images_per_second"),
    *("compile_s", "peak_bytes", "tflops_per_second", "share_of_matmul_peak"),
    *("cached_targets", "target_fill_s", "first_loss", "precision"),
}
QUICK = ("--repeats=2", "--seconds=0.01", "--images=16", "--batch=4")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """What takes time for the sake of good figures alone is left out."""
    peaks = {"jax": 0.1}
    monkeypatch.setattr(measure, "matmul_peak", lambda precision, with_torch: peaks)
    monkeypatch.setattr(measure.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(measure.gc, "collect", lambda: 0)  # of all that the tests hold


@pytest.fixture
def config_file(tiny_config, tmp_path):
    def write(**overrides):
        path = tmp_path / "config.json"
        # the smaller network, which compiles in half the time
        changes = {"model.kind": "residual9", **overrides}
        config = updated(tiny_config, changes, "a test")
        path.write_text(config_files.to_json(config))
        return f"--config={path}"

    return write


def test_other_arrangements_take_turns_with_the_usual_one(config_file, tmp_path):
    out = tmp_path / "result.json"
    config = config_file(**{"perceptual.cache_targets": "always"})
    given = [config, "--stages=8_stabilization", "--baselines=none", *QUICK]
    arranged = ["--arranged=caches_targets=False", "--arranged=batch_parts=2"]
    assert train_step.main([*given, *arranged, f"--out={out}"]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [row["implementation"] for row in rows] == [
        *("dpa_jax", "dpa_jax caches_targets=False", "dpa_jax batch_parts=2")
    ]
    assert [row["cached_targets"] for row in rows] == [True, False, True]


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="torch, an extra, is not installed")


def fake_step(loss):
    return lambda *args, **kwargs: lambda images, alpha: loss


def test_training_is_measured_without_pytorch(config_file, tmp_path):
    out = tmp_path / "folder" / "result.json"
    stages = "--stages=8_stabilization,16_transition"
    given = [config_file(**{"perceptual.cache_targets": "always"}), f"--out={out}"]
    assert train_step.main([*given, stages, "--baselines=none", *QUICK]) == 0
    result = json.loads(out.read_text())
    assert [row["stage"] for row in result["rows"]] == stages[9:].split(",")
    for row in result["rows"]:
        assert row.keys() >= ROW
        assert row["implementation"] == "dpa_jax" and row["batch"] == 4
        assert row["images_per_second"] == pytest.approx(4e3 / row["ms_per_step"])
        assert len(row["turns_ms_per_step"]) == 2
        # each of the four steps of a stage pays its part of the targets
        fill, steps = row["target_fill_s"], np.median(row["turns_ms_per_step"])
        assert row["ms_per_step"] == pytest.approx(steps + 1e3 * fill / 4)
        assert row["cached_targets"] == (row["stage"] == "8_stabilization")
        assert (fill > 0) == row["cached_targets"]
    assert result["machine"]["versions"]["jax"]
    assert result["settings"]["repeats"] == 2
    assert str(tmp_path) not in out.read_text()


def test_pytorch_computes_the_same_on_augmented_images(config_file, tmp_path, torch):
    augmented = {
        "data.random_crop": True,
        "data.size": 20,
        "data.horizontal_flip": True,
        "data.vertical_flip": True,
    }
    out = tmp_path / "result.json"
    given = [config_file(**augmented), "--stages=16_transition", f"--out={out}", *QUICK]
    assert train_step.main([*given, "--baselines=published,tuned"]) == 0
    ours, *others = json.loads(out.read_text())["rows"]
    assert [row["implementation"] for row in others] == ["published", "tuned"]
    for row in others:
        assert row["first_loss"] == pytest.approx(ours["first_loss"], rel=1e-4)


def test_another_loss_is_refused(config_file, tmp_path, torch, monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.pytorch.steps.published", fake_step(12.5))
    out = tmp_path / "result.json"
    given = [config_file(), "--stages=8_stabilization", f"--out={out}", *QUICK]
    assert train_step.main([*given, "--baselines=published"]) == 1
    assert "the first loss of published (float32) is 12.5" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("precision", "apart", "refused"),
    [
        ("float32", 0.9e-4, False),
        ("float32", 1.1e-4, True),
        ("bfloat16", 1.9e-2, False),
        ("bfloat16", 2.1e-2, True),
        ("bfloat16", float("nan"), True),
    ],
)
def test_losses_may_differ_by_rounding_alone(precision, apart, refused):
    made = [
        train_step.Contestant(name, precision, lambda count: (1.0, 1.0), 1, loss, 0, 0)
        for name, loss in (("dpa_jax", 2.0), ("tuned", 2.0 * (1 + apart)))
    ]
    if refused:
        with pytest.raises(errors.DpaError, match="8_stabilization: the first loss of"):
            train_step.check_losses("8_stabilization", made)
    else:
        train_step.check_losses("8_stabilization", made)


def test_scoring_is_measured_beside_pytorch(config_file, tmp_path, torch):
    out = tmp_path / "result.json"
    given = [config_file(), "--baselines=published", f"--out={out}", *QUICK]
    assert score.main(given) == 0
    ours, theirs = json.loads(out.read_text())["rows"]
    assert (ours["implementation"], theirs["implementation"]) == (
        "dpa_jax",
        "published",
    )
    assert ours["first_score"] == pytest.approx(theirs["first_score"], rel=1e-4)


def test_other_scores_are_refused():
    scores = {
        ("dpa_jax", "float32"): np.array([1.0, 2.0]),
        ("published", "float32"): np.array([1.0, 2.1]),
    }
    with pytest.raises(errors.DpaError, match="the scores of published"):
        score.check_scores(scores)


@pytest.mark.parametrize("through", ["train", "programs"])
def test_a_whole_run_is_timed(config_file, tmp_path, through):
    out = tmp_path / "result.json"
    last = {"stages.initial_resolution": 16, "perceptual.layers": "16:r12"}
    given = [config_file(**last), f"--through={through}"]
    given += ["--steps-scale=0.5", "--images=16", "--batch=4", f"--out={out}"]
    given += ["--window=1e-9"] if through == "train" else []
    assert end_to_end.main(given) == 0
    result = json.loads(out.read_text())
    totals, (row,) = result["totals"], result["rows"]
    assert (row["stage"], row["steps"], totals["steps"]) == ("16_stabilization", 2, 2)
    assert row["images_per_second"] == pytest.approx(4 * 2 / row["train_s"])
    parts = {"data_s", "prepare_s", "train_s", "targets_s", "wait_s", "checkpoint_s"}
    if through == "train":
        parts |= {"samples_s", "closing_s", "other_s"}
        total = sum(totals[part] for part in parts)
        assert totals["total_s"] == pytest.approx(total)
        assert totals["other_s"] >= 0
        (window,) = row["windows"]  # its one chunk
        assert window["step"] == 2
        assert window["device_bytes"] >= 16 * 16 * 16  # the images


def window(ms, process, device=7e6):
    return {"ms_per_step": ms, "process_bytes": process, "device_bytes": device}


def test_the_last_third_of_a_stage_is_compared_with_its_first():
    from benchmarks import timed_run

    windows = [window(1, 1e6), window(3, 3e6), window(5, 0), window(5, 0)]
    windows += [window(6, 5e6), window(2, 9e6)]
    assert timed_run.drift(windows) == {
        "slowdown": 4 / 2,
        "process_rise_megabytes": 7 - 2,
        "device_rise_megabytes": 0,
    }
    assert timed_run.drift(windows[:2]) == {}
    unknown = [window(1, None), window(2, None), window(3, None)]
    assert timed_run.drift(unknown) == {"slowdown": 3, "device_rise_megabytes": 0}


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass for a timed run only when told to."""
    from benchmarks import timed_run

    now = [0.0]
    monkeypatch.setattr(timed_run.time, "perf_counter", lambda: now[0])
    return now


@pytest.fixture
def timing(tiny_config):
    from benchmarks import timed_run

    return timed_run.Timing(stages.schedule(tiny_config), 60)


def test_a_window_is_as_long_as_asked_for(tiny_config, clock, timing):
    stage = stages.schedule(tiny_config)[1]  # whose first step is number 4

    def feed(setup, stage):
        for first in (4, 14, 24, 34):
            yield Chunk(first, 10), None, None

    for _, clock[0] in zip(
        timing.fed(feed)(None, stage), (50, 100, 130, 160), strict=True
    ):
        pass
    found = [(one["step"], one["ms_per_step"]) for one in timing.windows[stage.name]]
    assert found == [(24, 1e3 * 100 / 20), (44, 1e3 * 60 / 20)]


def test_members_of_a_population_are_counted(config_file, tmp_path):
    out = tmp_path / "result.json"
    given = [config_file(), "--stages=8_stabilization", f"--out={out}", *QUICK]
    assert population.main([*given, "--members=2"]) == 0
    alone, two = json.loads(out.read_text())["rows"]
    assert (alone["members"], alone["gain"], two["members"]) == (1, 1, 2)
    assert two["member_images_per_second"] == pytest.approx(8e3 / two["ms_per_step"])
    rates = [row["member_images_per_second"] for row in (alone, two)]
    assert two["gain"] == pytest.approx(rates[1] / rates[0])


def test_a_critic_is_not_timed(config_file, capsys):
    assert train_step.main([config_file(**{"loss.adversarial": 0.1}), *QUICK]) == 2
    assert "trains a critic, which no baseline here has" in capsys.readouterr().err


def test_writing_checkpoints_is_not_training(tiny_config, clock, timing):
    stage = stages.schedule(tiny_config)[0]

    def feed(setup, stage):
        for first in (0, 2):
            clock[0] += 5
            yield Chunk(first, 2), None, None

    def save():
        clock[0] += 3

    for _ in timing.fed(feed)(None, stage):
        timing.timed("checkpoint_s", save)()
    spent = timing.spent[stage.name]
    assert (spent["train_s"], spent["checkpoint_s"]) == (10, 6)


def test_what_is_compiled_ahead_counts_for_its_own_stage(tiny_config, clock, timing):
    first, second, _ = stages.schedule(tiny_config)

    def passing(seconds):
        def run(setup, stage):
            clock[0] += seconds

        return run

    timing.timed("wait_s", passing(1))(None, first)
    timing.timed("compile_s", passing(4))(None, second)
    spent = [timing.spent[stage.name] for stage in (first, second)]
    assert [(one["wait_s"], one["compile_s"]) for one in spent] == [(1, 0), (0, 4)]


def test_a_chunk_is_as_long_as_in_training(config_file):
    location = config_file(**{"stages.stabilization_steps": 150}).partition("=")[2]
    given = problem.make(location, 16, "random:0", batch=4)
    made = train_step.ours(given, given.plan[0], "float32")
    assert made.unit == programs.default_steps(8) == 100


def test_operations_of_a_backbone_are_counted():
    # r11 at 8 and 4 pixels: 64 channels of 3 multiply-adds for each pixel that the 3x3
    # windows see, which at the edges are fewer; a bias and a ReLU; three times, for 5
    seen = (3 * 8 - 2) ** 2 + (3 * 4 - 2) ** 2
    every = (64 * 3 * seen * 2 + 64 * (8 * 8 + 4 * 4) * 2) * 3 * 5
    weights = vgg19.load("random:0", ["r11"])
    loss = losses.Loss((("r11", 1.0),))
    spec = step.StepSpec(
        stages.Stage(8, True, 1), None, losses.StageLoss(loss, loss), members=1
    )
    assert measure.backbone_operations(spec, weights, 5, cached=False) == every
    assert measure.backbone_operations(spec, weights, 5, cached=True) == every * 2 / 3


def test_memory_of_a_streamed_run_is_measured(config_file, tmp_path):
    out = tmp_path / "result.json"
    quick = {"stages.initial_resolution": 16, "loss.relative_perceptual": 0.0}
    given = [config_file(**quick, **{"loss.l1": 1.0}), f"--folder={tmp_path}"]
    given += [f"--out={out}", "--images=40", "--side=32", "--batch=4", "--steps=1"]
    assert host_memory.main(given) == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert row["image_bytes"] == 40 * 32 * 32
    assert 2**25 < row["anonymous_bytes"] < row["peak_bytes"]
    assert 2**20 < row["file_bytes"] < row["peak_bytes"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "result.json",
    ]


def test_every_image_that_the_preparation_is_timed_with_is_prepared(tmp_path):
    size = prepare.write_source(tmp_path / "source", 7, 2, 64)
    archives = sorted(path.name for path in (tmp_path / "source").glob("images*"))
    assert archives == ["images_001.tar.gz", "images_002.zip"]
    drawn = [path.stat().st_size for path in (tmp_path / "pictures").iterdir()]
    assert size == sum(drawn)
    made = nih_prepare.prepare(
        tmp_path / "source", tmp_path / "data", "pa", allow_resized=True
    )
    assert made.counts["pa_64"] == {
        "train": (2, 0),
        "validation": (0, 1),
        "test": (2, 2),
    }
    before = prepare.contents(tmp_path / "data")
    (next((tmp_path / "data").rglob("*.array_record*"))).write_bytes(b"other")
    assert prepare.contents(tmp_path / "data") != before
    assert prepare.main(["--archives=1"]) == 2


def test_a_peak_above_the_limit_is_an_error():
    host_memory.check_limit(2.0, 2.0)
    with pytest.raises(errors.DpaError, match="2.25 GiB is above the limit of 2 GiB"):
        host_memory.check_limit(2.25, 2.0)


@pytest.mark.parametrize(
    ("program", "argument", "message"),
    [
        (train_step, "--stages=24_stabilization", "8_stabilization, 16_transition"),
        (train_step, "--baselines=fast", "--baselines: there is no 'fast'"),
        (train_step, "--images=3", "less than a batch"),
        (train_step, "--arranged=block=True", "--arranged=block=True: change one of"),
        (train_step, "--arranged=fill=few", "change one of backend=, fill=0, blocks"),
        (score, "--precision=float64", "--precision: there is no 'float64'"),
        (end_to_end, "--steps-scale=0", "--steps-scale is 0"),
        (end_to_end, "--window=inf", "--window is inf, not a number"),
        (host_memory, "--images=4", "--images must be at least --batch"),
        (end_to_end, "--window=9 --through=programs", "does not look at memory"),
    ],
)
def test_wrong_arguments_say_what_is_possible(
    config_file, program, argument, message, capsys
):
    assert program.main([config_file(), *argument.split()]) == 2
    assert message in capsys.readouterr().err


# --- what benchmarks share


def test_everyone_has_as_many_turns_and_the_order_changes():
    order = []
    turns = {name: lambda name=name: order.append(name) or 2 for name in "ab"}
    seconds = measure.take_turns(turns, 3)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert {name: len(each) for name, each in seconds.items()} == {"a": 3, "b": 3}


def test_a_turn_takes_about_the_time_asked_for(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])

    def run(count):
        clock[0] += 0.01 * count

    assert measure.sized(run, 1, 0.5)() == 50
    assert measure.sized(run, 25, 0.5)() == 50
    assert measure.sized(run, 200, 0.5)() == 200


def test_time_in_nested_spans_counts_once():
    event = "/jax/core/compile/jaxpr_trace_duration"
    with measure.CompileTime() as compiling:
        for start, end in ((2.0, 3.0), (1.0, 4.0), (6.0, 7.5), (7.0, 8.0)):
            measure.jax.monitoring.record_event_time_span(event, start, end)
        measure.jax.monitoring.record_event_time_span("/other", 10.0, 20.0)
    measure.jax.monitoring.record_event_time_span(event, 30.0, 40.0)
    assert compiling.seconds == 3.0 + 2.0


def test_compiling_is_heard():
    with measure.CompileTime() as compiling:
        measure.jax.jit(lambda x: x * 3 + 1).lower(1.0).compile()
    assert 0 < compiling.seconds < 10


def test_memory_that_is_taken_and_given_back_shows():
    _, peak = measure.with_resident_peak(lambda: np.ones(8_000_000).sum())
    if peak is None:
        pytest.skip("this system does not tell how far a process's memory rose")
    assert 0.8 * 64e6 < peak < 2 * 64e6


# --- figures


def made_rows(benchmark):
    both = ("dpa_jax", 300.0), ("published", 100.0)
    fast = [
        {"implementation": name, "images_per_second": rate, "precision": "float32"}
        for name, rate in both
    ]
    return {
        "train_step": [{**row, "stage": "8_stabilization"} for row in fast],
        "score": [{**row, "batch": 32} for row in fast],
        "end_to_end": [
            {
                "stage": "8_stabilization",
                "train_s": 2.0,
                "wait_s": 1.0,
                "windows": [{"step": n, **window(2.0, None)} for n in (1, 2)],
            }
        ],
        "scaling": [
            {"stage": "8_stabilization", "devices": n, "images_per_second": 50.0 * n}
            for n in (1, 2)
        ],
        "input": [
            {"what": "decode", "workers": 1, "images_per_second": 90.0},
            {"what": "feed", "residency": "device", "images_per_second": 900.0},
        ],
        "population": [
            {"stage": "8_stabilization", "members": n, "gain": 1.0} for n in (1, 2)
        ],
    }[benchmark]


@pytest.mark.parametrize("benchmark", report.PENS)
def test_a_figure_is_drawn(benchmark, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    result = {
        "benchmark": benchmark,
        "machine": {"cpu": "a processor", "cores": 2, "backend": "cpu"},
        "settings": {"config": "configs/nih.py:subset,pg"},
        "rows": made_rows(benchmark),
    }
    (tmp_path / "a.json").write_text(json.dumps(result))
    assert report.main([str(tmp_path)]) == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_every_committed_result_has_its_figure():
    results = pathlib.Path(report.__file__).parent / "results"
    told = (results / "README.md").read_text()
    for path in results.glob("*.json"):
        assert f"`{path.name}`" in told
        if json.loads(path.read_text())["benchmark"] not in report.TABLES:
            assert path.with_suffix(".png").exists()
            assert f"({path.stem}.png)" in told


@pytest.mark.parametrize("text", ["{", "{}", '{"benchmark": "other"}'])
def test_a_file_that_is_no_result_is_named(text, tmp_path, capsys):
    (tmp_path / "a.json").write_text(text)
    assert report.main([str(tmp_path)]) == 1
    assert "a.json is not the result of a benchmark" in capsys.readouterr().err


def test_the_suite_needs_six_packages_and_theirs():
    absent = [
        *("PIL", "array_record", "grain", "matplotlib", "platformdirs", "pydicom"),
        *("safetensors", "sklearn", "tensorboardX", "tensorflow_datasets"),
    ]
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({absent}))\n"
        "from benchmarks import campaign\n"
        "from dpa_jax.backbones import vgg19\n"
        "assert vgg19.load('random:0')\n"
        "campaign.main(['--help'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "--minutes" in done.stdout


def test_the_report_that_is_measured_has_all_its_cases(tmp_path):
    report_page.write_run(tmp_path, 6, 8, False)
    found = evaluation_files.read(tmp_path / "evaluation")
    assert len(found.cases) == len(found.scores) == 6
    assert found.cases.image.shape == (6, 8, 8, 1)
    assert report_page.main(["--cases=1"]) == 2


@pytest.mark.parametrize(
    ("code", "text", "is_early"),
    [
        (-2, "", True),
        (1, "KeyboardInterrupt\n", True),
        (1, "ModuleNotFoundError: No module named 'jax'\n", False),
        (1, ", in entry\nKeyboardInterrupt\n", False),
        (130, "KeyboardInterrupt\n", False),
    ],
)
def test_python_itself_ends_at_an_interrupt_before_the_program(code, text, is_early):
    assert interruptions.is_early(code, 2, text) == is_early

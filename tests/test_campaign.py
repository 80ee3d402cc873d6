"""What is measured first, what is left for another time, and what is not done again."""

import json

import numpy as np
import pytest
import run_factory

from benchmarks import (
    autotune,
    campaign,
    kept_programs,
    kernels,
    phantom_auc,
    precision,
)
from dpa_jax import errors, stages
from dpa_jax.storage import config_files


class Clock:
    """Minutes that pass only when a job takes them."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(campaign.time, "monotonic", lambda: self.now)

    def job(self, name, share, seconds, status=0):
        def run(path):
            self.now += seconds
            path.write_text("{}")
            if status == "raises":
                raise RuntimeError("no memory left")
            return status

        return campaign.Job(name, share, run)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_job_whose_share_is_not_left_is_not_begun(clock, tmp_path, capsys):
    listed = [
        clock.job("a", 0.5, 60),
        clock.job("b", 0.5, 10),
        clock.job("c", 0.4, 10),
    ]
    campaign.work(listed, 100, tmp_path, tmp_path)
    assert names(tmp_path) == ["a.json", "c.json"]
    assert f"No time for b: go on with --resume={tmp_path}" in capsys.readouterr().out


def test_what_was_measured_before_is_not_measured_again(clock, tmp_path):
    before, out = tmp_path / "before", tmp_path / "out"
    before.mkdir(), out.mkdir()
    (before / "a.json").write_text("{}")
    (out / "b.json").write_text("mine")
    listed = [clock.job(name, 0.1, 1) for name in "abc"]
    campaign.work(listed, 100, out, before)
    assert names(out) == ["b.json", "c.json"]
    assert (out / "b.json").read_text() == "mine"


@pytest.mark.parametrize("status", [1, "raises"])
def test_a_job_that_fails_stops_no_other_and_leaves_no_result(clock, tmp_path, status):
    listed = [clock.job("a", 0.1, 1, status), clock.job("b", 0.1, 1)]
    with pytest.raises(errors.DpaError, match="^a failed"):
        campaign.work(listed, 100, tmp_path, tmp_path)
    assert names(tmp_path) == ["a.json.unfinished", "b.json"]


def test_a_campaign_on_a_cpu_goes_on_where_it_ended(tmp_path):
    path = run_factory.write_config(tmp_path / "a.json", run_factory.quick_config())
    first, second = tmp_path / "first", tmp_path / "second"
    arguments = [f"--config={path}", "--batch=8", "--images=24", "--baselines=none"]
    arguments += ["--minutes=0.1", "--jobs=precision"]
    assert campaign.main([*arguments, f"--out={first}"]) == 0
    (row,) = json.loads((first / "precision.json").read_text())["rows"]
    assert (row["stage"], row["precision"]) == ("8_stabilization", "bfloat16")
    assert 0.9 < row["gradient_cosine"] < 1
    assert campaign.main([*arguments, f"--out={second}", f"--resume={first}"]) == 0
    assert names(second) == []


def test_every_stage_of_both_published_runs_is_measured():
    listed = campaign.jobs(campaign.arguments().parse_args(["--minutes=9", "--out=x"]))
    assert listed[0].name == "parity"
    assert len({job.name for job in listed}) == len(listed)
    for config, stem in zip(campaign.CONFIGS, ("nih", "camelyon16"), strict=True):
        for stage in stages.schedule(config_files.load(config)):
            assert f"{stem}_{stage.name}" in {job.name for job in listed}
    assert all(0 < job.share < 1 for job in listed)


def test_jobs_that_do_not_exist_are_refused(tmp_path, capsys):
    assert campaign.main(["--minutes=1", f"--out={tmp_path}", "--jobs=a"]) == 2
    assert "--jobs: there is no 'a'" in capsys.readouterr().err
    assert campaign.main(["--minutes=0", f"--out={tmp_path}"]) == 2


def test_parity_is_that_of_the_tests_whatever_plugins_there_are(tmp_path, monkeypatch):
    site, tests = tmp_path / "site", tmp_path / "tests"
    info = site / "strange-1.dist-info"
    info.mkdir(parents=True), tests.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: strange\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[pytest11]\nstrange = strange\n")
    (site / "strange.py").write_text("raise RuntimeError('not asked for')\n")
    (tests / "test_it.py").write_text("def test_it():\n    pass\n")
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.setattr(campaign, "PARITY", str(tests / "test_it.py"))
    assert campaign.parity(tmp_path / "parity.json") == 0
    result = json.loads((tmp_path / "parity.json").read_text())
    (row,) = result["rows"]
    assert row["test"].endswith("test_it.py::test_it")
    assert "1 passed in " in result["summary"]


# --- its parts


def test_precisions_are_compared_by_loss_and_gradient():
    exact = 2.0, np.array([3.0, 4.0])
    found = precision.compared((2.1, np.array([3.0, 4.5])), exact)
    assert found["loss"] == 2.0
    assert found["loss_error"] == pytest.approx(0.05)
    assert found["gradient_error"] == pytest.approx(0.5 / 5)
    assert found["gradient_cosine"] == pytest.approx(27 / (29.25**0.5 * 5))


class Named:
    def __init__(self, name, **parts):
        self.name = name
        vars(self).update(parts)


def test_kernels_of_a_trace_are_added_up_by_name():
    events = [
        Named("loop_add_fusion_3", duration_ns=30),
        Named("loop_add_fusion_12", duration_ns=10),
        Named("sm90_xmma_fprop", duration_ns=5),
    ]
    streams = [
        Named("Stream #13(Compute)", events=events),
        Named("Steps", events=events),
    ]
    trace = Named("", planes=[Named("/device:GPU:0", lines=streams)])
    spent, counts = kernels.by_kernel(trace, "gpu")
    assert spent == {"loop_add_fusion": 40, "sm90_xmma_fprop": 5}
    assert counts == {"loop_add_fusion": 2, "sm90_xmma_fprop": 1}
    with pytest.raises(errors.DpaError, match="no kernels of the tpu"):
        kernels.by_kernel(trace, "tpu")


def test_a_step_on_this_machine_is_profiled(tmp_path):
    config = run_factory.write_config(tmp_path / "a.json", run_factory.quick_config())
    out = tmp_path / "out.json"
    arguments = [f"--config={config}", "--images=16", "--batch=8", f"--out={out}"]
    assert kernels.main(arguments) == 0
    rows = json.loads(out.read_text())["rows"]
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    # each of its convolutions has a gradient by its kernel
    convolutions = [row for row in rows if "conv" in row["kernel"]]
    assert convolutions and sum(row["count"] for row in convolutions) >= 2
    assert not any("ThunkExecutor" in row["kernel"] for row in rows)


def test_arrangements_are_timed_of_which_a_cpu_has_one(tmp_path):
    config = run_factory.write_config(tmp_path / "a.json", run_factory.quick_config())
    out = tmp_path / "out.json"
    arguments = [f"--config={config}", "--images=16", "--batch=8", f"--out={out}"]
    assert autotune.main(arguments) == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert (row["stage"], row["arrangement"]) == ("8_stabilization", "the usual one")
    assert 0 < row["ms_per_step"] < 1e3 and row["is_fastest"]


@pytest.mark.parametrize("fails", [False, True])
def test_a_kept_program_that_fails_is_a_result(tmp_path, monkeypatch, fails):
    """In the second of two processes, which are made up: each compiles anew."""
    folders = []

    def run(command, **_):
        folders.append(command[-1])
        if len(folders) == 2 and fails:
            return Named("", returncode=1, stdout="", stderr="a\nINTERNAL: 5003\n")
        found = {"is_loaded": len(folders) == 2, "compile_s": 9, "ms_per_step": 1}
        return Named("", returncode=0, stdout=json.dumps(found), stderr="")

    monkeypatch.setattr(kept_programs.subprocess, "run", run)
    out = tmp_path / "out.json"
    assert kept_programs.main([f"--out={out}"]) == 0
    first, second = json.loads(out.read_text())["rows"]
    assert folders[0] == folders[1] and folders[0].startswith("--folder=")
    assert first["compile_s"] == 9 and not first["is_loaded"]
    assert second.get("failed") == ("INTERNAL: 5003" if fails else None)


def test_phantoms_are_told_apart_in_each_precision(tmp_path, monkeypatch):
    def train(config, folder, visible):
        folder.mkdir()
        (folder / "precision").write_text(config.precision)
        return folder

    monkeypatch.setattr(phantom_auc, "train", train)
    monkeypatch.setattr(
        phantom_auc,
        "evaluated",
        lambda run, images: {
            "steps": 4,
            "roc_auc": 0.75,
            "low": 0.7,
            "high": 0.8,
            "trained_in": (run / "precision").read_text(),
        },
    )
    out = tmp_path / "out.json"
    assert phantom_auc.main(["--seeds=2", "--phantoms=4", f"--out={out}"]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [(row["trained_in"], row["seed"]) for row in rows] == [
        *(("float32", 0), ("float32", 1)),
        *(("bfloat16", 0), ("bfloat16", 1)),
    ]

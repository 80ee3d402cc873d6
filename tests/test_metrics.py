import io
import json

import pytest
import run_factory

from dpa_jax import console, errors
from dpa_jax.stages import Stage
from dpa_jax.storage import metrics
from dpa_jax.training import progress


def logged(folder):
    return [
        json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]


def scalars(folder):
    return [
        (event.step, value.tag, value.simple_value)
        for event in run_factory.events(folder / "tensorboard")
        for value in event.summary.value
    ]


def test_writes_jsonl_and_tensorboard(tmp_path):
    writer = metrics.Writer(tmp_path, 0)
    writer.write(5, {"stage": "8_stabilization", "loss": 0.5})
    # there to be read while the run goes on
    assert logged(tmp_path) == [{"step": 5, "stage": "8_stabilization", "loss": 0.5}]
    assert scalars(tmp_path) == [(5, "loss", 0.5)]
    writer.close()


def test_steps_beyond_the_checkpoint_and_half_lines_are_dropped(tmp_path):
    first = metrics.Writer(tmp_path, 0)
    for step in (1, 2, 3):
        first.write(step, {"loss": step / 2})
    first.close()
    with open(tmp_path / "metrics.jsonl", "a") as log:
        log.write('{"step": 4, "lo')
    second = metrics.Writer(tmp_path, 2)
    second.write(3, {"loss": 7.0})
    second.close()
    assert [(row["step"], row["loss"]) for row in logged(tmp_path)] == [
        (1, 0.5),
        (2, 1.0),
        (3, 7.0),
    ]


def test_a_damaged_row_is_named_and_nothing_is_lost(tmp_path):
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 1}\n{"step": 2, "lo\n{"step": 3}\n')
    with pytest.raises(errors.DpaError, match=r"jsonl, line 2: damaged, not JSON"):
        metrics.Writer(tmp_path, 3)
    assert len(log.read_text().splitlines()) == 3


def test_tensorboard_is_told_where_a_resumed_run_begins(tmp_path):
    metrics.Writer(tmp_path, 0).close()
    begun = [
        event.step
        for event in run_factory.events(tmp_path / "tensorboard")
        if event.HasField("session_log")
    ]
    assert begun == [1]


def test_unwritable_metrics_name_the_workdir(tmp_path):
    (tmp_path / "tensorboard").write_text("a file where a folder is needed")
    with pytest.raises(
        errors.DpaError, match=f"{tmp_path}/tensorboard: metrics cannot"
    ):
        metrics.Writer(tmp_path, 0)


def test_stopwatch_counts_images_per_second_of_late(monkeypatch):
    clock = iter([0.0, 1.0, 2.0, 11.5, 13.0, 50.0, 50.0, 60.0])
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: next(clock))
    watch = metrics.Stopwatch()
    assert watch.add(10) == 10
    assert watch.add(6) == 8
    assert watch.add(5) == 11 / 10.5  # the first second is more than ten ago
    assert watch.add(17) == 22 / 11
    assert watch.add(74) == 2  # the last chunk alone took longer than ten
    watch.start()
    assert watch.add(5) == 0.5


def test_print_line_neither_wraps_nor_reads_markup(capsys):
    text = "folder[bold] " + 40 * "long "
    console.print_line(text)
    assert capsys.readouterr().err == text + "\n"


# --- without a terminal ---


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when told to."""
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def test_counting_prints_a_line_every_ten_seconds_and_the_last(clock, capsys):
    with console.counting("reading", "images") as show:
        for done in range(1, 9):
            clock[0] = 4.0 * done
            show(done, 8)
    assert capsys.readouterr().err.splitlines() == [
        "reading: 3/8 images, 0/s",
        "reading: 6/8 images, 0/s",
        "reading: 8/8 images, 0/s",
    ]


def test_counting_can_be_silent(capsys):
    with console.counting("reading", "images", visible=False) as show:
        show(8, 8)
    assert capsys.readouterr().err == ""


PLAN = (Stage(8, False, 100), Stage(16, True, 100, 100), Stage(16, False, 200, 200))


def test_training_prints_stage_alpha_loss_rate_and_time(clock, capsys):
    _, transition, last = PLAN
    with progress.TrainingBar(PLAN, 100, visible=True) as bar:
        clock[0] = 5.0
        bar.update(transition, 110, 0.1, None, 1000.0, 1.0)  # too early for a line
        clock[0] = 20.0
        bar.update(transition, 140, 0.4, None, 1000.0, 130.0)
        bar.print_line("ready")
        clock[0] = 4021.0
        bar.update(transition, 200, 1.0, 0.125, 1234.5, 42.4)  # the end of a stage
        bar.update(last, 400, 1.0, 0.1, 1.0, 0.0)
    assert capsys.readouterr().err.splitlines() == [
        "stage 2 of 3, 16 px transition: step 140/400, alpha 0.40, 1,000 images/s, "
        "0:00:20 elapsed, 0:02:10 left",
        "ready",
        "stage 2 of 3, 16 px transition: step 200/400, alpha 1.00, mean loss 0.1250, "
        "1,234 images/s, 1:07:01 elapsed, 0:00:42 left",
        "stage 3 of 3, 16 px stabilization: step 400/400, mean loss 0.1000, "
        "1 images/s, 1:07:01 elapsed, 0:00:00 left",
    ]


def test_training_can_be_silent(capsys):
    with progress.TrainingBar(PLAN, 0, visible=False) as bar:
        bar.print_line("ready")
        bar.update(PLAN[-1], 400, 1.0, 0.5, 1.0, 0.0)
    assert capsys.readouterr().err == ""


# --- on a terminal ---


@pytest.fixture
def screen(monkeypatch):
    """A terminal of 80 columns; returns what was drawn on it."""
    drawn = io.StringIO()
    terminal = console.Console(
        file=drawn, force_terminal=True, width=80, highlight=False, color_system=None
    )
    monkeypatch.setattr(console, "console", lambda: terminal)
    monkeypatch.setenv("TERM", "xterm")
    return drawn


def test_bar_shows_all_on_a_terminal_of_80_columns(screen):
    with progress.TrainingBar(PLAN, 0, visible=True) as bar:
        bar.describe("compiling")
        bar.print_line("[ready]")
        bar.update(PLAN[1], 120, 0.2, 0.2345, 1234.0, 3600.0)
    drawn = screen.getvalue()
    assert "[ready]" in drawn
    last = [line for line in drawn.splitlines() if "%" in line][-1]
    for part in ("stage 2 of 3", "30%", "mean loss 0.2345", "1,234 img/s"):
        assert part in last
    assert "0:00:00 elapsed, 1:00:00 left" in last and "…" not in last


def test_a_bar_never_hides_the_cursor(screen):
    """So that it need not be restored, whatever ends the process."""
    with progress.TrainingBar(PLAN, 0, visible=True) as bar:
        bar.update(PLAN[0], 50, 1.0, None, 1.0, 1.0)
    assert "%" in screen.getvalue() and "\x1b[?25l" not in screen.getvalue()


def test_counting_shows_a_bar_on_a_terminal(screen):
    with console.counting("reading", "images") as show:
        show(5, 10)
    last = [line for line in screen.getvalue().splitlines() if "%" in line][-1]
    assert "reading" in last and "50%" in last and "5/10 images" in last


def test_files_of_a_second_writer_in_the_same_second_are_its_own(tmp_path, monkeypatch):
    for process in (11, 12):
        monkeypatch.setattr(metrics.os, "getpid", lambda process=process: process)
        metrics.Writer(tmp_path, 0).close()
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2

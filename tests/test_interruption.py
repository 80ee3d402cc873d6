"""Signals and kill -9 at any moment: nothing is lost, and the end is the same."""

import os
import resource
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import run_factory

import dpa_jax
from dpa_jax import errors
from dpa_jax.devices import interruption
from dpa_jax.devices.processes import ProcessGroup
from dpa_jax.storage import checkpoints, lock


def test_a_signal_is_noted_and_the_second_has_its_usual_effect():
    group = ProcessGroup()
    # what Python begins with, whoever started the tests
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), interruption.deferred(group):
            os.kill(os.getpid(), signal.SIGINT)
            assert group.signal == signal.SIGINT
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)  # for Python to notice
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_interrupt_that_meets_the_garbage_collector_is_not_lost():
    program = """
import gc, os, signal, sys, time
from dpa_jax.cli import main
main.insist_on_interrupts()
signal.signal(signal.SIGINT, signal.default_int_handler)
def callback(phase, info):
    gc.callbacks.clear()
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0)  # for Python to notice
gc.callbacks.append(callback)
gc.collect()
print("collected", flush=True)
try:
    time.sleep(20)
except KeyboardInterrupt:
    sys.exit(130)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (130, "collected\n"), done.stderr
    assert done.stderr == ""


def test_in_another_thread_signals_are_left_alone():
    found = []

    def work():
        with interruption.deferred(ProcessGroup()):
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGTERM)]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Takes some seconds, of which compiling is a part."""
    config = run_factory.quick_config()
    folder = tmp_path_factory.mktemp("data")
    config.data.train = run_factory.write_npz(folder / "train.npz")
    config.stages.final_steps = 2_000
    config.steps_per_chunk = 10
    config.checkpoint_every = 300
    config.log_every = 70
    return config


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    return dpa_jax.train(config, tmp_path_factory.mktemp("whole"), visible=False)


def start(config, folder):
    path = run_factory.write_config(folder / "config.json", config)
    return run_factory.start("train", "--config", path, "--workdir", folder / "run")


def has_begun(process, workdir):
    deadline = time.monotonic() + 240
    while not (workdir / "metrics.jsonl").exists() or not run_factory.rows(workdir):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)]
)
def test_a_signal_ends_a_chunk_saves_and_says_how_to_go_on(
    config, whole, tmp_path, number, code
):
    process, workdir = start(config, tmp_path), tmp_path / "run"
    try:
        has_begun(process, workdir)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code, err
    step = checkpoints.latest(workdir)
    assert step % 10 == 0 and step < 2_000
    last = err.splitlines()[-1]
    assert last == (
        f"dpa-jax: stopped by {signal.Signals(number).name} after step {step:,}, which "
        f"is saved; go on by: dpa-jax train --config={workdir}/config.json "
        f"--workdir={workdir}"
    )
    *_, command = last.partition("dpa-jax train ")
    assert run_factory.call("train", *command.split())[0] == 0
    run_factory.assert_same_run(workdir, whole)
    images = run_factory.images(5, size=8)
    np.testing.assert_array_equal(
        dpa_jax.load(workdir)(images), dpa_jax.load(whole)(images)
    )


def test_a_second_training_is_refused_and_the_lock_ends_with_its_owner(
    config, tmp_path
):
    process, workdir = start(config, tmp_path), tmp_path / "run"
    try:
        has_begun(process, workdir)
        os.kill(process.pid, signal.SIGSTOP)
        with pytest.raises(errors.UsageError, match=f"by process {process.pid} on "):
            dpa_jax.train(config, workdir, visible=False)
    finally:
        process.kill()
        process.communicate()
    with lock.hold(workdir / "lock", "", ""):
        pass


def test_a_workdir_that_cannot_be_locked_is_named(tmp_path):
    (tmp_path / "lock").mkdir()
    with pytest.raises(errors.DpaError, match="lock: the lock cannot be written"):
        with lock.hold(tmp_path / "lock", "", ""):
            pass


def test_a_lock_that_cannot_be_filled_is_named(tmp_path):
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(errors.DpaError, match="lock: the lock .* File too lar"):
            with lock.hold(tmp_path / "lock", "", ""):
                pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

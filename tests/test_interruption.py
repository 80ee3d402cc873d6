"""Signals and kill -9 at any moment: nothing is lost, and the end is the same."""

import os
import pathlib
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
    group, goes_on = ProcessGroup(), False
    # what Python begins with, whoever started the tests
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), interruption.deferred(group):
            for _ in range(2):  # at once, which are one
                os.kill(os.getpid(), signal.SIGINT)
                assert group.signal == signal.SIGINT
            time.sleep(0.2)
            goes_on = True
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)  # for Python to notice
        assert goes_on
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def run_python(program, *arguments):
    """Runs a program that a terminal has started; returns exit code, stdout, stderr."""
    begin = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", begin + program, *map(str, arguments)],
        cwd=pathlib.Path(__file__).resolve().parents[1],
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_any_training_ends_the_program_with_one_line(number):
    program = """
import threading, types
from dpa_jax.cli import main
number = int(sys.argv.pop())
def run(options):
    threading.Timer(5, print, ["waited for"]).start()
    os.kill(os.getpid(), number)
    time.sleep(20)
sys.modules["dpa_jax.cli.verbs"] = types.SimpleNamespace(run=run)
sys.argv.insert(1, "doctor")
main.entry()
"""
    expected = (128 + number, "", f"dpa-jax: stopped by {number.name}\n")
    assert run_python(program, int(number)) == expected


def test_an_interrupt_that_meets_a_native_import_stops_after_it():
    program = """
import enum
from dpa_jax import errors
from dpa_jax.devices import interruption
interruption.stop_on_signals()
def profile(frame, event, called):
    # jaxlib makes an enumeration: SIGINT as Python handles it aborts the process here
    makes_enum = frame.f_code is enum.EnumType.__call__.__code__
    if makes_enum and frame.f_back.f_code.co_name == "_call_with_frames_removed":
        sys.setprofile(None)
        print("met", flush=True)
        os.kill(os.getpid(), signal.SIGINT)
sys.setprofile(profile)
try:
    from jaxlib import _jax
    time.sleep(20)
except errors.Stopped:
    print("jaxlib._jax" in sys.modules)
"""
    assert run_python(program) == (0, "met\nTrue\n", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_waits_for_the_end_of_an_import(tmp_path, number):
    (tmp_path / "slow.py").write_text(
        "import os, sys, time\n"
        "os.kill(os.getpid(), int(sys.argv[1]))\n"
        "time.sleep(0.3)\n"
        "print('imported', flush=True)\n"
    )
    program = """
from dpa_jax import errors
from dpa_jax.devices import interruption
interruption.stop_on_signals()
sys.path.insert(0, sys.argv[2])
try:
    import slow
    time.sleep(20)
except errors.Stopped as stopped:
    print(stopped, stopped.signal == int(sys.argv[1]))
"""
    expected = f"imported\nstopped by {number.name} True\n"
    assert run_python(program, int(number), tmp_path) == (0, expected, "")


def test_a_second_signal_ends_at_once():
    program = """
from dpa_jax.devices import interruption
interruption.stop_on_signals()
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(20)
finally:
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(20)
"""
    assert run_python(program) == (143, "", "")


NATIVE = """
import contextlib, hashlib, threading
from dpa_jax.devices import interruption, processes
interruption.stop_on_signals()
def send(*times):
    for when in times:
        threading.Timer(when, os.kill, [os.getpid(), signal.SIGTERM]).start()
def work(iterations):  # in C, without Python's lock, as processes are joined
    hashlib.pbkdf2_hmac("sha256", b"", b"", iterations)
"""


@pytest.mark.parametrize(
    "manager",
    ["contextlib.nullcontext()", "interruption.deferred(processes.ProcessGroup())"],
)
def test_a_second_signal_ends_native_code(manager):
    program = f"""
with {manager}:
    send(0.1, 0.4)
    work(20_000_000)
"""
    assert run_python(NATIVE + program) == (143, "", "")


def test_a_signal_that_comes_twice_at_once_is_one():
    program = """
send(0.1, 0.15)
try:
    time.sleep(20)
except KeyboardInterrupt as stopped:
    time.sleep(0.1)
    print(stopped)
"""
    assert run_python(NATIVE + program) == (0, "stopped by SIGTERM\n", "")


def test_signals_to_a_forked_process_are_its_own():
    program = """
from dpa_jax.devices import interruption
interruption.stop_on_signals()
for _ in range(2):
    child = os.fork()
    if not child:
        try:
            time.sleep(20)
        finally:
            os._exit(0)
    time.sleep(0.15)
    os.kill(child, signal.SIGTERM)
    os.waitpid(child, 0)
print("goes on")
"""
    code, out, _ = run_python(program)  # newer Pythons warn of forking with threads
    assert (code, out) == (0, "goes on\n")


def test_a_signal_that_was_ignored_stays_ignored():
    program = """
from dpa_jax.devices import interruption
signal.signal(signal.SIGINT, signal.SIG_IGN)
interruption.stop_on_signals()
os.kill(os.getpid(), signal.SIGINT)
time.sleep(0.1)
"""
    assert run_python(program) == (0, "", "")


def test_a_signal_that_was_ignored_stays_ignored_while_training():
    group = ProcessGroup()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruption.deferred(group):
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_signal_that_meets_the_garbage_collector_is_not_lost():
    program = """
import gc
from dpa_jax import errors
from dpa_jax.devices import interruption
interruption.stop_on_signals()
def callback(phase, info):
    gc.callbacks.clear()
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0)  # for Python to notice
gc.callbacks.append(callback)
gc.collect()
print("collected", flush=True)
try:
    time.sleep(20)
except errors.Stopped:
    sys.exit(130)
"""
    assert run_python(program) == (130, "collected\n", "")


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

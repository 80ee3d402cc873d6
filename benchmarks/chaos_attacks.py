"""Attacks on a run or a data set: each returns its outcome, or raises `Lost`."""

import contextlib
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from unittest import mock

import numpy as np

from benchmarks import chaos_target
from benchmarks.chaos_target import Lost, Target
from dpa_jax import data, errors

# --- signals


def _start(target: Target, workdir: pathlib.Path) -> subprocess.Popen:
    """Starts training as a process of its own, with the programs compiled before."""
    command = [
        *(sys.executable, "-m", "dpa_jax", "train"),
        *(f"--config={target.folder}/config.json", f"--workdir={workdir}"),
    ]
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(target.folder / "compiled"),
    }
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
    )


def _kill(target: Target, folder: pathlib.Path, chance: random.Random) -> str:
    workdir = target.copy(folder)
    process = _start(target, workdir)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(chance.uniform(1, 12))
    process.kill()
    process.communicate()
    target.finish(workdir)
    return "same_bits"


def _pause(target: Target, folder: pathlib.Path, chance: random.Random) -> str:
    workdir = target.copy(folder)
    process = _start(target, workdir)
    for _ in range(3):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(chance.uniform(1, 4))
        process.send_signal(signal.SIGSTOP)
        time.sleep(chance.uniform(0, 2))
        process.send_signal(signal.SIGCONT)
    _, text = process.communicate(timeout=300)
    if process.returncode:
        raise Lost(f"exit code {process.returncode}: {text.decode()}")
    target.compare(workdir)
    return "same_bits"


# --- disks and clocks


def _file_size(target: Target, folder: pathlib.Path, chance: random.Random) -> str:
    """Allows files of so many bytes, as a quota or a full disk does."""
    workdir = target.copy(folder)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # what is written is between a hundred bytes and some ten thousand
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(10 ** chance.uniform(1, 5)), hard))
    try:
        message = target.go_on(workdir)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    return _after(target, workdir, message)


def _small_disk(target: Target, folder: pathlib.Path, chance: random.Random) -> str:
    with _mounted(folder / "disk", "size=4m") as disk:
        workdir = target.copy(disk)
        free = shutil.disk_usage(disk).free
        (disk / "filler").write_bytes(bytes(free - chance.randrange(0, 200_000)))
        message = target.go_on(workdir)
        (disk / "filler").unlink()
        return _after(target, workdir, message)


def _read_only_disk(target: Target, folder: pathlib.Path, chance: random.Random) -> str:
    with _mounted(folder / "disk", "size=16m") as disk:
        workdir = target.copy(disk)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        message = target.go_on(workdir)
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        return _after(target, workdir, message)


@contextlib.contextmanager
def _mounted(disk: pathlib.Path, options: str) -> Iterator[pathlib.Path]:
    """Mounts a disk in memory.

    Raises:
      DpaError: that is not allowed here.
    """
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise errors.DpaError(
            f"no disk can be mounted: {done.stderr.strip()}; leave out small_disk and "
            "read_only_disk by --only"
        )
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def _after(target: Target, workdir: pathlib.Path, message: str) -> str:
    """Goes on once the disk takes files again."""
    if message and str(workdir) not in message:
        raise Lost(f"no file is named: {message}")
    target.finish(workdir)
    return "refused" if message else "same_bits"


def _clock(target: Target, folder: pathlib.Path, chance: random.Random) -> str:
    """Lets Python's clock jump by a day, forward or back, at some moment."""
    now, workdir = time.time, target.copy(folder)
    moment, jump = now() + chance.uniform(0, 2), chance.choice((-86_400, 86_400))
    with mock.patch("time.time", lambda: now() + jump * (now() > moment)):
        message = target.go_on(workdir)
    return _after(target, workdir, message)


# --- damage


def _flip(path: pathlib.Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def _cut(path: pathlib.Path, chance: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: chance.randrange(len(content))])


def _on_workdir(damage: Callable[[pathlib.Path, random.Random], None]) -> Callable:
    def attack(target: Target, folder: pathlib.Path, chance: random.Random) -> str:
        workdir = target.copy(folder)
        name = _choose(workdir, chance)
        damage(workdir / name, chance)
        before = _contents(workdir)
        message = target.go_on(workdir)
        # a row of metrics may be the very thing that was damaged
        log = name != pathlib.Path("metrics.jsonl")
        if not message:
            with _telling(name):
                target.compare(workdir, log)
            return "same_bits"
        if not (str(workdir) in message and _part(name) in message):
            raise Lost(f"{name} is not named: {message}")
        whole = {p: c for p, c in _contents(workdir).items() if p.name != "lock"}
        gone = [p for p in before if p.name != "lock" and p not in whole]
        if gone and not any(".damaged" in str(p) for p in whole):
            raise Lost(f"{name}: {gone[0]} is gone")
        shutil.copy(target.half / name, workdir / name)
        with _telling(name):
            target.finish(workdir)
        return "refused"

    return attack


def _on_data_set(damage: Callable[[pathlib.Path, random.Random], None]) -> Callable:
    def attack(target: Target, folder: pathlib.Path, chance: random.Random) -> str:
        data_set = shutil.copytree(target.data_set, folder / "data")
        name = _choose(data_set, chance)
        damage(data_set / name, chance)
        try:
            found = chaos_target.load(data_set)
        except errors.DpaError as error:
            if "chaos" not in str(error):
                raise Lost(f"{name}: the data set is not named: {error}") from error
            return "refused"
        except Exception as error:
            raise Lost(f"{name}: {type(error).__name__}: {error}") from error
        if not np.array_equal(found.images, target.images.images):
            raise Lost(f"{name}: other images")
        if _labels(found) != _labels(target.images):
            raise Lost(f"{name}: other labels")
        return "same_bits"

    return attack


def _labels(images: data.ImageSet) -> list[int]:
    return [] if images.labels is None else images.labels.tolist()


def _choose(folder: pathlib.Path, chance: random.Random) -> pathlib.Path:
    """Chooses a file that is not empty, each with the same chance."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.stat().st_size]
    return chance.choice(files).relative_to(folder)


def _contents(folder: pathlib.Path) -> dict[pathlib.Path, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder): path.read_bytes() for path in files}


def _part(name: pathlib.Path) -> str:
    """Returns what a message about a file has to name: of a checkpoint, that."""
    return str(pathlib.Path(*name.parts[:2]))


@contextlib.contextmanager
def _telling(name: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except Lost as lost:
        raise Lost(f"{name}: {lost}") from lost


ATTACKS: dict[str, Callable[[Target, pathlib.Path, random.Random], str]] = {
    "kill": _kill,
    "pause": _pause,
    "file_size": _file_size,
    "small_disk": _small_disk,
    "read_only_disk": _read_only_disk,
    "clock": _clock,
    "flip_workdir": _on_workdir(_flip),
    "cut_workdir": _on_workdir(_cut),
    "flip_data_set": _on_data_set(_flip),
    "cut_data_set": _on_data_set(_cut),
}

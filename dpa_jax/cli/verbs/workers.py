"""Several processes that work on one study, each with devices of its own."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence

from dpa_jax import console, errors


def use(devices: Sequence[str]) -> None:
    """Lets JAX see these GPUs alone; to be called before it starts."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(devices)


def available() -> list[str]:
    """Returns the GPUs that this process may use; none on a machine without."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [d for d in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if d]
    found = pathlib.Path("/dev").glob("nvidia[0-9]*")
    return sorted((p.name.removeprefix("nvidia") for p in found), key=int)


def share(devices: Sequence[str], workers: int) -> list[list[str]]:
    """Returns the devices of each worker: all are given out, and none twice.

    Raises:
      UsageError: there are fewer devices than workers.
    """
    if devices and len(devices) < workers:
        raise errors.UsageError(
            f"--workers={workers} share out {len(devices)} GPUs: give no more workers "
            "than GPUs, as one keeps most of its memory to itself"
        )
    return [list(devices[i::workers]) for i in range(workers)]


@contextlib.contextmanager
def running(
    arguments: Sequence[str], shares: Sequence[Sequence[str]]
) -> Iterator[None]:
    """Runs a worker process for each share of the devices beside the body.

    They are waited for after the body, or stopped if it is interrupted.

    Args:
      arguments: of the command line, for each.
      shares: the devices of each.
    """
    # of an option that is given twice, the last counts
    command = [sys.executable, "-m", "dpa_jax", *arguments, "--workers=1"]
    processes: list[subprocess.Popen] = []
    try:
        for devices in shares:
            process = subprocess.Popen(
                [*command, *([f"--devices={','.join(devices)}"] if devices else [])],
                stdout=subprocess.DEVNULL,  # what was found, this process prints
                start_new_session=True,  # so that signals come from here, and once
            )
            processes.append(process)
        yield
        for process in processes:
            if process.wait():
                console.print_line(f"a worker ended with status {process.returncode}")
    finally:
        for process in processes:
            if process.poll() is None:
                # SIGINT is ignored by what a script starts in the background
                process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait()

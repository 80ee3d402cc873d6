"""A run killed again and again at random moments, against one never stopped.

For each kind of signal one small run is started, interrupted at a random moment and
started again, so many times; then it goes on to its end. Its scores must be those of
the run that was never stopped, bit for bit, and so must its metrics but for speeds.
"""

import json
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

import dpa_jax
from benchmarks import measure
from dpa_jax import errors
from dpa_jax.config import default_config
from dpa_jax.storage import checkpoints, config_files

SIGNALS = ("SIGKILL", "SIGTERM", "SIGINT")
_EXIT_CODES = {"SIGKILL": -9, "SIGTERM": 143, "SIGINT": 130}
COLUMNS = {
    "signal": "s",
    "moments": "d moments",
    "while_training": "d while training",
    "last_step": "d steps",
    "same": "s",
}


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; see `measure.main`."""
    return measure.main("interruptions", run, argv)


def run(argv: list[str]) -> None:
    """Interrupts runs as the arguments say, compares, prints and writes it.

    Raises:
      DpaError: a run did not end as the one that was never stopped.
    """
    parser = measure.arguments("interruptions", __doc__)
    add = parser.add_argument
    add("--signals", default="all", help=f"all, or some of {','.join(SIGNALS)}")
    add("--moments", type=int, default=30, help="interruptions of each run")
    add("--steps", type=int, default=20_000, help="of the run's last stage")
    add("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args(argv)
    names = measure.one_of("--signals", args.signals, SIGNALS)
    # a shell may have started this in the background, with SIGINT ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    moments = random.Random(args.seed)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        config = _config(place, args.steps)
        whole = dpa_jax.train(config, place / "whole", visible=False)
        for name in names:
            interrupted = _interrupt(place, name, args.moments, moments)
            different = _differences(place / name, whole)
            rows.append({**interrupted, "same": different or "same bits"})
            measure.show(rows[-1:], COLUMNS)
    measure.write("interruptions", args, argv, rows)
    lost = [row["signal"] for row in rows if row["same"] != "same bits"]
    if lost:
        raise errors.DpaError(f"runs differ after {', '.join(lost)}")


def _config(place: pathlib.Path, steps: int):
    rng = np.random.default_rng(0)
    np.savez(place / "images.npz", images=rng.integers(0, 256, (64, 8, 8), np.uint8))
    config = default_config()
    config.data.train = str(place / "images.npz")
    config.data.resolution = config.stages.initial_resolution = 8
    config.model.latent_channels = 4
    config.model.encoder_channels = config.model.decoder_channels = (4, 4)
    config.stages.final_steps = steps
    config.loss.relative_perceptual, config.loss.l1 = 0.0, 1.0
    config.batch_size = 16
    config.checkpoint_every, config.log_every = 700, 130
    config_files.save(config, place / "config.json")
    return config


def _interrupt(
    place: pathlib.Path, name: str, count: int, moments: random.Random
) -> dict[str, Any]:
    """Starts a run, interrupts it so often, and lets it end."""
    command = [
        *(sys.executable, "-m", "dpa_jax", "train"),
        *(f"--config={place}/config.json", f"--workdir={place / name}"),
    ]
    while_training, longest, sessions = 0, 15.0, 0
    while sessions < count:
        sessions += 1
        before = checkpoints.latest(place / name) or 0
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        time.sleep(moments.uniform(0, longest))
        number = getattr(signal, name)
        process.send_signal(number)
        _, text = process.communicate(timeout=300)
        if process.returncode == 0:
            break  # it came to its end
        ends_well = process.returncode == _EXIT_CODES[name] and "Traceback" not in text
        if not (ends_well or is_early(process.returncode, number, text)):
            raise errors.DpaError(f"{name}: exit code {process.returncode}: {text}")
        if (checkpoints.latest(place / name) or 0) == before:
            longest = min(30.0, longest * 1.1)  # it takes this long to start
        else:
            while_training += 1
    subprocess.run(command, check=True, capture_output=True)
    return {
        "signal": name,
        "moments": sessions,
        "while_training": while_training,
        "last_step": checkpoints.latest(place / name),
    }


def is_early(code: int, number: int, text: str) -> bool:
    """Whether Python itself ended the program, before `entry` ran."""
    if "dpa-jax:" in text or ", in entry" in text:
        return False
    return code == -number or (code == 1 and "KeyboardInterrupt" in text)


def _differences(folder: pathlib.Path, whole: pathlib.Path) -> str:
    """Says in what a run differs from another; empty if in nothing."""
    with np.load(whole.parent / "images.npz") as arrays:
        images = arrays["images"]
    a, b = (dpa_jax.load(one)(images) for one in (folder, whole))
    if not np.array_equal(a, b):
        return f"scores differ by {np.abs(a - b).max():g}"
    rows = []
    for one in (folder, whole):
        lines = (one / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        rows.append([json.loads(line) for line in lines])
        for row in rows[-1]:
            row.pop("images_per_second")
    return "" if rows[0] == rows[1] else "metrics differ"


if __name__ == "__main__":
    raise SystemExit(main())

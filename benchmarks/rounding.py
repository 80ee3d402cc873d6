"""How far runs drift apart that differ in nothing but rounding.

The same small run on 1, 2, ... virtual CPU devices and in two parts of a batch, which
add up gradients in another order: in float32, where Adam amplifies rounding (a gradient
near 0 is divided by its own size), and in float64, where a fault would stay as it is
and rounding all but vanishes.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np

from benchmarks import measure
from dpa_jax import errors
from dpa_jax.config import default_config
from dpa_jax.storage import config_files

COLUMNS = {
    "precision": "s",
    "compared": "s",
    "steps": "d steps",
    "scores_apart": ".1e scores",
    "parameters_apart": ".1e parameters",
}
_ONE = "1 device"


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; see `measure.main`."""
    return measure.main("rounding", run, argv)


def run(argv: list[str]) -> None:
    """Trains what the arguments ask for, compares, prints and writes it."""
    parser = measure.arguments("rounding", __doc__)
    parser.add_argument("--devices", default="2,8", help="numbers of virtual devices")
    parser.add_argument("--steps", default="1,10,50,200", help="to compare after")
    parser.add_argument("--precision", default="float32,float64")
    args = parser.parse_args(argv)
    counts = [int(count) for count in args.devices.split(",")]
    steps = sorted(int(step) for step in args.steps.split(","))
    ways = {_ONE: (1, 1), "2 parts of a batch": (1, 2)}
    ways |= {f"{count} devices": (count, 1) for count in counts}
    rows: list[dict[str, Any]] = []
    for precision in args.precision.split(","):
        found = {}
        for name, (devices, parts) in ways.items():
            with tempfile.TemporaryDirectory() as folder:
                path = pathlib.Path(folder)
                found[name] = _train(path, steps, precision, devices, parts)
        for name in list(ways)[1:]:
            for step in steps:
                pairs = zip(found[name][step], found[_ONE][step], strict=True)
                scores, parameters = (_apart(a, b) for a, b in pairs)
                rows.append(
                    {
                        "precision": precision,
                        "compared": f"{name} with {_ONE}",
                        "steps": step,
                        "scores_apart": scores,
                        "parameters_apart": parameters,
                    }
                )
    measure.show(rows, COLUMNS)
    measure.write("rounding", args, argv, rows)


def _apart(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the largest difference over the largest value."""
    return float(np.abs(a - b).max() / np.abs(b).max())


def _config(folder: pathlib.Path):
    config = default_config()
    config.data.train = str(folder / "images.npz")
    config.data.resolution, config.stages.initial_resolution = 16, 16
    config.model.latent_channels = 4
    config.model.encoder_channels = config.model.decoder_channels = (8, 8, 8)
    config.perceptual.layers = "16:r12"
    config.perceptual.weights, config.perceptual.statistics = "random:0", "train"
    config.batch_size = 16
    return config


def _train(
    folder: pathlib.Path, steps: list[int], precision: str, devices: int, parts: int
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Trains in a process of its own; returns scores and parameters after steps."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (64, 4, 4), dtype=np.uint8)
    np.savez(folder / "images.npz", images=coarse.repeat(4, 1).repeat(4, 2))
    found = {}
    for step in steps:
        config = _config(folder)
        config.stages.final_steps, config.precision = step, precision
        config.batch_parts = parts
        config_files.save(config, folder / "config.json")
        flag = f"--xla_force_host_platform_device_count={devices}"
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_ENABLE_X64": str(int(precision == "float64")),
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flag}",
        }
        command = [
            *(sys.executable, "-m", "benchmarks.rounding_worker"),
            *(str(folder), precision),
        ]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise errors.DpaError(f"training on {devices} devices: {last}")
        with np.load(folder / "found.npz") as arrays:
            found[step] = arrays["scores"], arrays["parameters"]
    return found


if __name__ == "__main__":
    raise SystemExit(main())

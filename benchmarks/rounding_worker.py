"""The process that `benchmarks.rounding` trains in: trains on, scores and saves."""

import pathlib
import sys

import jax
import numpy as np

import dpa_jax
from dpa_jax.storage import checkpoints, config_files


def main(folder: pathlib.Path, precision: str) -> None:
    """Trains the run in `folder` to its end and writes `found.npz` there."""
    config = config_files.load(str(folder / "config.json"))
    workdir = dpa_jax.train(config, folder / "run", visible=False)
    last = checkpoints.restore(workdir, checkpoints.latest(workdir) or 0)
    leaves = [np.ravel(leaf) for leaf in jax.tree.leaves(last.arrays["parameters"])]
    with np.load(folder / "images.npz") as arrays:
        scores = dpa_jax.load(workdir, precision=precision)(arrays["images"])
    np.savez(folder / "found.npz", scores=scores, parameters=np.concatenate(leaves))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), sys.argv[2])

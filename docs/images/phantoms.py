"""Draws docs/images/phantoms.png from the run that `dpa-jax demo` leaves.

    dpa-jax demo && python docs/images/phantoms.py dpa_jax_demo

Of the normal and of the abnormal test phantoms it takes the one with the median score.
"""

import pathlib
import sys

import matplotlib.pyplot as plt
import numpy as np

import dpa_jax
from dpa_jax import data

OUT = pathlib.Path(__file__).with_suffix(".png")


def main(folder: str) -> None:
    """Draws the picture of the demo in a folder."""
    score = dpa_jax.load(pathlib.Path(folder, "run"))
    preprocessing = data.Preprocessing.from_config(score.config)
    figure, axes = plt.subplots(2, 3, figsize=(5.4, 3.6), layout="constrained")
    scored, drawn = {}, []
    for label in ("normal", "abnormal"):
        test = data.load(pathlib.Path(folder, "images", "test", label), preprocessing)
        scores = score(test.images)
        row = int(np.argsort(scores)[len(scores) // 2])
        scored[label], image = scores[row], test.images[row : row + 1]
        drawn.append((image[0], score.reconstruct(image)[0], score.maps(image)[0]))
    top = max(found.max() for *_, found in drawn)
    for (label, value), row, (image, made, found) in zip(
        scored.items(), axes, drawn, strict=True
    ):
        row[0].imshow(image, cmap="gray", vmin=0, vmax=255)
        row[1].imshow(made, cmap="gray", vmin=-1, vmax=1)
        shown = row[2].imshow(found, cmap="magma", vmin=0, vmax=top)
        row[0].set_ylabel(f"{label}\nscore {value:.3f}")
        for axis in row:
            axis.set(xticks=[], yticks=[])
    for axis, title in zip(axes[0], ("image", "reconstruction", "map"), strict=True):
        axis.set_title(title, fontsize=10)
    figure.colorbar(shown, ax=axes[:, 2])
    figure.savefig(OUT, dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:])

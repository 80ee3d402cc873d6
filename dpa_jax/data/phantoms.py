"""Phantom chest radiographs: what the demo trains on and finds nodules in."""

import json
import os
import pathlib
import tempfile

import numpy as np
from PIL import Image

from dpa_jax import errors

MANIFEST = "phantoms.json"
_VERSION = 2  # of the drawing: a folder drawn by another one is not reused
_BATCH = 128  # drawn at once; bounds the memory of the intermediate images


def make_phantoms(
    folder: str | os.PathLike,
    *,
    train: int = 600,
    normal: int = 100,
    abnormal: int = 100,
    calibration: int = 100,
    size: int = 64,
    seed: int = 0,
) -> pathlib.Path:
    """Writes phantoms as 8-bit grey PNG files, or finds them written already.

    The files go to `train/normal`, `test/normal`, `test/abnormal` and
    `calibration/normal`, all of them or, if this is interrupted, none.

    Args:
      folder: made if absent; must be empty or hold these very phantoms.
      train: how many normal phantoms to train on.
      normal: how many normal phantoms to test on.
      abnormal: how many abnormal phantoms to test on.
      calibration: how many normal phantoms to calibrate a run's decisions with.
      size: height and width in pixels, at least 16.
      seed: the same seed gives the same files; a split does not depend on the size of
        another.

    Returns:
      The folder.

    Raises:
      UsageError: a count or the size is out of range.
      DpaError: the folder holds something else, or cannot be written.
    """
    folder = pathlib.Path(folder)
    splits = {
        "train/normal": train,
        "test/normal": normal,
        "test/abnormal": abnormal,
        "calibration/normal": calibration,
    }
    if min(splits.values()) < 1 or size < 16 or seed < 0:
        raise errors.UsageError(
            "phantoms need a count of at least 1 in each split, a size of at least 16 "
            f"and a seed of at least 0, not {splits}, size {size}, seed {seed}"
        )
    made = {"version": _VERSION, "splits": splits, "size": size, "seed": seed}
    names = {
        f"{split}/{i:05d}.png" for split, count in splits.items() for i in range(count)
    }
    try:
        if _holds(folder, made, names):
            return folder
        parent = folder.resolve().parent
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".phantoms.", dir=parent) as scratch:
            # A folder of our own inside, as the scratch folder is closed to others.
            drawn = pathlib.Path(scratch, "phantoms")
            _write(drawn, made)
            if folder.exists():  # and is empty; it may be linked to or worked in
                for name in ("train", "test", "calibration", MANIFEST):
                    os.replace(drawn / name, folder / name)
            else:
                os.replace(drawn, folder)
    except OSError as error:
        raise errors.DpaError(f"cannot write phantoms to {folder}: {error}") from error
    return folder


def _holds(folder: pathlib.Path, made: dict, names: set[str]) -> bool:
    """Returns whether the folder holds the phantoms (True) or nothing (False)."""
    if not folder.exists():
        return False
    found = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if not path.is_dir()
    }
    if not found and not any(folder.iterdir()):
        return False
    if found == names | {MANIFEST}:
        if (folder / MANIFEST).read_bytes() == _described(made):
            return True
    raise errors.DpaError(
        f"{folder} holds other files, and phantoms are not mixed with them: "
        "name an empty or new folder, or remove it"
    )


def _write(folder: pathlib.Path, made: dict) -> None:
    for number, (split, count) in enumerate(made["splits"].items()):
        (folder / split).mkdir(parents=True)
        rng = np.random.default_rng([made["seed"], number])
        for start in range(0, count, _BATCH):
            images = draw(
                min(_BATCH, count - start),
                made["size"],
                rng,
                abnormal=split.endswith("/abnormal"),
            )
            for i, image in enumerate(images, start):
                Image.fromarray(image).save(folder / split / f"{i:05d}.png")
    (folder / MANIFEST).write_bytes(_described(made))


def _described(made: dict) -> bytes:
    return (json.dumps(made, indent=2) + "\n").encode()


def draw(
    count: int, size: int, rng: np.random.Generator, *, abnormal: bool = False
) -> np.ndarray:
    """Draws phantom chest radiographs, dense tissue bright.

    Pose, build, lungs, diaphragm, heart, ribs, exposure and noise vary smoothly from
    one to the next. An abnormal phantom has one to three nodules or opacities whose
    centres lie in clear lung; but for these it is the normal phantom that the same
    `rng` state gives.

    Args:
      count: how many.
      size: height and width in pixels.
      rng: where all variation comes from.
      abnormal: whether to add lesions.

    Returns:
      uint8 `[count, size, size]`.
    """
    vary, lesions = rng.spawn(2)

    def uniform(low, high):
        return vary.uniform(low, high, [count, 1, 1]).astype(np.float32)

    # Coordinates of the body: x to the right, y down, the image within -1 to 1.
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
    column, row = axis[None, None, :], axis[None, :, None]
    angle, scale = uniform(-0.05, 0.05), uniform(0.95, 1.05)
    x = scale * (np.cos(angle) * column + np.sin(angle) * row) + uniform(-0.03, 0.03)
    y = scale * (np.cos(angle) * row - np.sin(angle) * column) + uniform(-0.03, 0.03)
    x = x * uniform(0.95, 1.05)

    # Outlines, as distances to the inside.
    body = _inside(x, y - 0.4, 0.88, 1.2, power=3)
    neck = _inside(x, y + 0.95, 0.24, 0.45)
    apart, width, height = uniform(0.38, 0.43), uniform(0.24, 0.29), uniform(0.62, 0.7)
    sides = []
    for sign, level in ((-1, uniform(0.40, 0.50)), (1, uniform(0.44, 0.54))):
        across = sign * x - apart - 0.12 * y
        dome = level + 0.9 * across**2 - y
        lung = _inside(across, y + 0.02, width, height, power=2.4)
        sides.append(np.minimum(lung, dome))
    lungs = np.maximum(*sides)
    heart = _inside(
        x - uniform(0.08, 0.14), y - 0.27, uniform(0.25, 0.33), uniform(0.22, 0.28)
    )

    # Tissue.
    lung = _soft(lungs, 0.02)
    density = 0.6 * _soft(np.maximum(body, neck), 0.03)
    density -= uniform(0.36, 0.42) * lung
    filled = 0.85 * _soft(heart, 0.03)
    density += filled * (0.6 - density)
    density += uniform(0.10, 0.16) * np.exp(-((x / 0.1) ** 2)) * _soft(body, 0.05)
    ribs = np.cos(2 * np.pi * ((y - 0.4 * x**2) / 0.23 + uniform(-0.12, 0.12)))
    density += uniform(0.03, 0.05) * (0.5 + 0.5 * ribs) ** 2 * lung
    clear = np.minimum(lungs, -heart) > 0.05

    if abnormal:
        density += _lesions(x, y, clear, lesions) * lung

    # Exposure.
    light = 1 + uniform(-0.12, 0.12) * column + uniform(-0.12, 0.12) * row
    image = uniform(0.95, 1.3) * light * np.maximum(density, 0) ** uniform(0.85, 1.15)
    image += uniform(0.0, 0.08)
    image += 0.012 * vary.standard_normal(image.shape, dtype=np.float32)
    return np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)


def _inside(x, y, width, height, power=2.0) -> np.ndarray:
    """Measures about how far inside a (super)ellipse a point lies; outside, below 0."""
    radius = (np.abs(x / width) ** power + np.abs(y / height) ** power) ** (1 / power)
    return (1 - radius) * np.minimum(width, height)


def _soft(inside: np.ndarray, edge: float) -> np.ndarray:
    """Turns distances to the inside into a mask with soft edges, 0 to 1."""
    return 0.5 + 0.5 * np.tanh(inside / (2 * edge))


def _lesions(
    x: np.ndarray, y: np.ndarray, clear: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Draws what one to three lesions per phantom add to its density."""
    count, size, _ = clear.shape
    added = np.zeros(clear.shape, np.float32)
    present = rng.integers(1, 4, [count, 1, 1])
    image = np.arange(count)
    for number in range(3):
        # A pixel of clear lung, each as likely as another.
        draws = rng.random(clear.shape, dtype=np.float32) * clear
        at = np.unravel_index(draws.reshape(count, -1).argmax(1), (size, size))
        u = x - x[image, *at][:, None, None]
        v = y - y[image, *at][:, None, None]

        def uniform(low, high):
            return rng.uniform(low, high, [count, 1, 1]).astype(np.float32)

        turn, radius, stretch = (
            uniform(0, np.pi),
            uniform(0.075, 0.105),
            uniform(1, 1.6),
        )
        along, across = (
            np.cos(turn) * u + np.sin(turn) * v,
            np.cos(turn) * v - np.sin(turn) * u,
        )
        nodule = _soft(radius - np.hypot(u, v), 0.015)
        opacity = np.exp(-((along / stretch) ** 2 + across**2) / (1.7 * radius) ** 2)
        shape = np.where(rng.random([count, 1, 1]) < 0.5, nodule, opacity)
        added += (number < present) * uniform(0.3, 0.45) * shape
    return added

"""A slide scored tile by tile, resumably: `dpa-jax score-slide`."""

import contextlib
import hashlib
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from dpa_jax.errors import DpaError, UsageError
from dpa_jax.scoring.calibration import Calibration
from dpa_jax.scoring.units import ALL
from dpa_jax.slides import heatmap, regions, stain, tiles
from dpa_jax.storage import json_files, workdir
from dpa_jax.weights import formats

# uint8 [B, tile, tile, 3] -> float32 [B], B always the same
Score = Callable[[np.ndarray], np.ndarray]

_RECORD = np.dtype([("row", "<i4"), ("column", "<i4"), ("score", "<f4")])


def score_slide(
    slide_path: str | os.PathLike,
    score: Score,
    out: str | os.PathLike,
    *,
    mpp: float | None = None,
    batch: int = 256,
    stain_target: stain.StainProfile | None = None,
    threshold: float | None = None,
    magnification: int = 10,
    tile: int = 64,
    workers: int = 0,
    model: str = "",
    calibration: Calibration | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Scores the tissue of a slide and draws where it is anomalous.

    Writes `heatmap.png`, `scores.tif`, `tiles.csv`, with a threshold `regions.geojson`,
    and, last, `summary.json` into `out`. Scores are kept there batch by batch, so that
    calling again after an interruption goes on with the same batches.

    Args:
      slide_path: the slide, a path or URL.
      score: gives the anomaly scores of a batch; called with batches of one size, the
        last filled up with blank tiles, whose scores are dropped.
      out: the folder for the results.
      mpp: micrometres per level-0 pixel, instead of what the slide says.
      batch: tiles per call.
      stain_target: the stains that the training images were normalised to, or None.
      threshold: scores above it make regions; None for that of the calibration or,
        without one, for no regions, since no threshold can be had from the slide alone,
        which may be healthy.
      magnification: that the model was trained at.
      tile: pixels a side that the model takes.
      workers: threads that read; 0 for one per core.
      model: names the model and its weights; results of another are not gone on with.
      calibration: of the model, without strata. Each tile is then taken for an image
        of its own: `tiles.csv` gets its `p_value` and whether it is `abnormal`.
      progress: called with (tiles scored, tiles) after each batch.

    Returns:
      What `summary.json` holds: the numbers of tiles, the mean, 99th percentile and
      maximum of the scores, the threshold and the number of regions (None without),
      alpha and the number of abnormal tiles (None without a calibration), tiles per
      second (None if all of them were scored before).

    Raises:
      DpaError: the slide is unusable, a score is not finite, or `out` holds results
        of another slide, model or setting.
      UsageError: a setting is impossible.
    """
    if batch < 1 or tile < 1 or magnification < 1:
        raise UsageError(f"batch {batch}, tile {tile}, magnification {magnification}")
    if calibration is not None:
        calibration.check_strata(None)
        if threshold is None:
            threshold = calibration.threshold(ALL)
    path, out = os.fspath(slide_path), pathlib.Path(out)
    run = {
        "slide": path,
        "size": os.path.getsize(path) if os.path.exists(path) else None,
        "mpp": mpp,
        "batch": batch,
        "magnification": magnification,
        "tile": tile,
        "model": model,
        "stain_target": stain_target and _digest(stain_target),
    }
    with regions.opened(path, mpp) as slide:
        grid = tiles.plan(slide, tile, magnification)
        out.mkdir(parents=True, exist_ok=True)
        record = _begin(out, run)
        scores, rate = _score_tiles(
            slide, score, record, grid, run, stain_target, workers, progress
        )
        known = scores[~np.isnan(scores)]
        if not len(known):
            raise DpaError(f"{path}: the stains of no part of it could be estimated")
        assert slide.mpp is not None  # or there would be no grid
        tile_side = grid.side * grid.scale  # in level-0 pixels
        columns, scale = {"score": scores}, None
        if calibration is not None:
            found = np.ones(scores.shape)
            found[~np.isnan(scores)] = calibration.p_values(known)
            abnormal = (found <= calibration.alpha).astype(int)
            columns |= {"p_value": found, "abnormal": abnormal}
            scale = calibration.score_range
        heatmap.write_csv(out / "tiles.csv", grid, columns)
        heatmap.write_scores(out / "scores.tif", scores, slide.mpp * tile_side)
        heatmap.write_overlay(out / "heatmap.png", slide, grid, scores, scale)
        outlines = out / "regions.geojson"
        outlines.unlink(missing_ok=True)  # of another threshold
        count = None
        if threshold is not None:
            count = heatmap.write_regions(outlines, grid, scores, threshold)
    summary = {
        "run": run,
        "tiles": int(grid.tissue.sum()),
        "tiles_without_score": int(grid.tissue.sum()) - len(known),
        "mean": float(known.mean(dtype=np.float64)),
        "percentile_99": float(np.percentile(known, 99)),
        "maximum": float(known.max()),
        "threshold": threshold,
        "regions": count,
        "alpha": calibration and calibration.alpha,
        "abnormal_tiles": calibration and int(columns["abnormal"].sum()),
        "tiles_per_second": rate,
    }
    workdir.write_json(out / "summary.json", summary)
    return summary


def _digest(target: stain.StainProfile) -> str:
    content = target.matrix.tobytes() + target.maxima.tobytes()
    return hashlib.sha256(content).hexdigest()[:16]


def _begin(out: pathlib.Path, run: dict[str, Any]) -> pathlib.Path:
    """Returns the file of scores so far, which belongs to this very run."""
    about, record = out / "run.json", out / "scores.bin"
    if about.exists():
        before = json_files.read(about, {}, "choose another --out or remove it")
        if before != run:
            changed = [key for key in run if before.get(key) != run[key]]
            raise DpaError(
                f"{out} holds scores made with another {', '.join(changed)}; "
                "choose another --out or remove it"
            )
    elif any(out.iterdir()):
        raise DpaError(f"{out} holds other files; choose an empty folder with --out")
    else:
        workdir.write_json(about, run)
    record.touch()
    return record


def _score_tiles(slide, score, record, grid, run, target, workers, progress):
    """Scores what is left, appending each batch; returns all scores and the rate."""
    batch, tile = run["batch"], run["tile"]
    done = np.frombuffer(_whole_batches(record, batch, grid), _RECORD)
    scores = np.full(grid.tissue.shape, np.nan, np.float32)
    scores[done["row"], done["column"]] = done["score"]
    total, left, position = int(grid.tissue.sum()), [], 0
    for cell in grid.cells():
        # Cells that were finished are not read again.
        count = len(grid.tiles(cell))
        if position + count > len(done):
            left.append((cell, max(0, len(done) - position)))
        position += count
    stream = tiles.read(
        slide,
        grid,
        tile,
        run["magnification"],
        target,
        [cell for cell, _ in left],
        workers,
    )
    start, scored = time.monotonic(), len(done)
    with contextlib.closing(stream), record.open("ab") as file:
        for positions, images, known in _batches(
            stream, [skip for _, skip in left], batch, tile
        ):
            values = np.asarray(score(images), np.float32)
            if values.shape != (batch,):
                raise ValueError(f"score gave {values.shape} for a batch of {batch}")
            values = np.where(known, values, np.nan)[: len(positions)]
            if not np.isfinite(values[known[: len(positions)]]).all():
                raise DpaError(
                    f"{slide.path}: the model gives scores that are not finite"
                )
            rows = np.empty(len(positions), _RECORD)
            rows["row"], rows["column"] = positions.T
            rows["score"] = values
            file.write(rows.tobytes())
            file.flush()
            scores[rows["row"], rows["column"]] = values
            scored += len(positions)
            if progress:
                progress(scored, total)
    if scored == len(done):
        return scores, None
    return scores, round((scored - len(done)) / (time.monotonic() - start), 1)


def _whole_batches(record: pathlib.Path, batch: int, grid) -> bytes:
    """Cuts the file back to whole batches, so that the same batches follow."""
    content = record.read_bytes()
    total = int(grid.tissue.sum())
    count = len(content) // _RECORD.itemsize
    if count != total:
        count -= count % batch
    content = content[: count * _RECORD.itemsize]
    with formats.replacing(record) as temporary:
        temporary.write_bytes(content)
    return content


def _batches(
    stream, skips: list[int], batch: int, tile: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Regroups the tiles of cells into batches.

    Yields:
      (row, column) `[n, 2]` of the tiles of a batch, n less than `batch` in the last
      alone; their pixels `[batch, tile, tile, 3]`; and which are known, `[batch]`.
    """
    positions = np.empty((batch, 2), np.int64)
    images = np.zeros((batch, tile, tile, 3), np.uint8)
    known = np.zeros(batch, bool)
    n = 0
    for (where, pixels), skip in zip(stream, skips, strict=True):
        for i in range(skip, len(where)):
            positions[n] = where[i]
            images[n] = 0 if pixels is None else pixels[i]
            known[n] = pixels is not None
            n += 1
            if n == batch:
                yield positions, images, known
                # The score function may still hold the arrays it was given.
                positions, images = positions.copy(), np.zeros_like(images)
                known, n = np.zeros(batch, bool), 0
    if n:
        images[n:], known[n:] = 0, False
        yield positions[:n], images, known

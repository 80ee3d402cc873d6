"""A slide scored end to end, with a score that can be computed by hand."""

import contextlib
import csv
import json
import threading
import time

import calibration_factory
import numpy as np
import pytest
import slide_factory
from PIL import Image

from dpa_jax.errors import DpaError, UsageError
from dpa_jax.slides import heatmap, reader, score, stain, tiles

tifffile = pytest.importorskip("tifffile", reason="slides are written by tifffile")
slide_factory.need_reader()
shapely = pytest.importorskip("shapely", reason="regions need shapely")

ROWS, COLUMNS = slice(2, 6), slice(1, 8)  # of the tissue, in tiles


@pytest.fixture(scope="module", autouse=True)
def small_overlay():
    """Keeps the time to write PNGs short."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heatmap, "_LONGEST", 480)
        yield


@pytest.fixture(scope="module")
def pixels():
    image = slide_factory.picture(2400, 1900, [(256, 512, 1792, 1024)], seed=5)
    image[768:1280, 1024:1536] //= 2  # a darker corner
    return image


@pytest.fixture(scope="module")
def path(pixels, tmp_path_factory):
    return slide_factory.write(tmp_path_factory.mktemp("slide") / "a.tif", pixels)


@pytest.fixture(scope="module")
def expected(pixels):
    """The darkness of each tile; the factory's x10 level is every fourth pixel."""
    x10 = pixels[:1792:4, :2304:4].astype(np.float64)
    means = 255 - x10.reshape(7, 64, 9, 64, 3).mean((1, 3, 4))
    result = np.full((7, 9), np.nan)
    result[ROWS, COLUMNS] = means[ROWS, COLUMNS]
    return result


def darkness(batch):
    assert batch.dtype == np.uint8 and batch.shape[1:] == (64, 64, 3)
    return 255 - batch.astype(np.float32).mean((1, 2, 3))


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def results(path, tmp_path_factory):
    out = tmp_path_factory.mktemp("results") / "out"
    return out, score.score_slide(path, darkness, out, batch=8, threshold=120)


def test_every_tissue_tile_has_its_score(results, expected):
    out, summary = results
    rows = read_csv(out / "tiles.csv")
    assert len(rows) == summary["tiles"] == 28
    for row in rows:
        i, j = int(row["row"]), int(row["column"])
        assert float(row["score"]) == pytest.approx(expected[i, j], rel=1e-6)
        assert [int(row[k]) for k in ("x", "y", "side")] == [256 * j, 256 * i, 256]


def test_summary_counts_and_measures(results, expected):
    _, summary = results
    known = expected[~np.isnan(expected)]
    assert summary["mean"] == pytest.approx(known.mean(), rel=1e-6)
    assert summary["maximum"] == pytest.approx(known.max(), rel=1e-6)
    assert summary["percentile_99"] == pytest.approx(np.percentile(known, 99), rel=1e-6)
    assert summary["tiles_without_score"] == 0
    assert summary["tiles_per_second"] > 0
    assert summary["regions"] == 1


def test_geojson_outlines_the_region_above_the_threshold(results, expected):
    out, _ = results
    (feature,) = json.loads((out / "regions.geojson").read_text())["features"]
    assert (expected > 120).sum() == 4  # the dark corner
    region = shapely.from_geojson(json.dumps(feature["geometry"]))
    assert region.equals(shapely.box(1024, 768, 1536, 1280))
    measured = feature["properties"]["measurements"]
    assert measured["tiles"] == 4
    assert measured["mean score"] == pytest.approx(expected[3:5, 4:6].mean(), rel=1e-6)
    assert feature["properties"]["objectType"] == "annotation"


def test_regions_are_strictly_above_and_apart_at_corners(tmp_path):
    grid = tiles.TileGrid(np.ones((4, 4), bool), 256, 3, 0.5)
    scores = np.zeros((4, 4), np.float32)
    scores[0, 0], scores[1, 1], scores[1, 2], scores[3, 3] = 2, 3, 4, 1
    path = tmp_path / "r.geojson"
    assert heatmap.write_regions(path, grid, scores, 1.0) == 2
    features = json.loads(path.read_text())["features"]
    found = {
        f["properties"]["measurements"]["maximum score"]: f["geometry"]
        for f in features
    }
    assert found.keys() == {2, 4}
    assert shapely.from_geojson(json.dumps(found[4])).equals(
        shapely.box(128, 128, 384, 256)
    )


def test_nothing_above_the_threshold_makes_no_region(tmp_path):
    grid = tiles.TileGrid(np.ones((2, 2), bool), 256, 3, 1.0)
    scores = np.full((2, 2), np.nan, np.float32)
    assert heatmap.write_regions(tmp_path / "r.geojson", grid, scores, 1.0) == 0


def test_tiff_holds_the_scores_with_their_resolution(results, expected):
    out, _ = results
    with tifffile.TiffFile(out / "scores.tif") as tiff:
        page = tiff.pages[0]
        found = page.asarray()
        # 64 um tiles: 156.25 a centimetre
        assert page.tags["XResolution"].value == (625, 4)
        assert page.is_tiled
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_overlay_colours_the_tissue_alone(results, path):
    out, _ = results
    with reader.open_slide(path) as slide:
        plain = slide.overview(5)
    with Image.open(out / "heatmap.png") as image:
        found = np.asarray(image)
    assert found.shape[1] == 480 and found.shape[0] > 380  # with a scale below
    assert (found[:100] == plain[:100]).all()  # background
    dark, light = found[200, 256].astype(int), found[120, 80].astype(int)
    assert (dark != plain[200, 256]).any()
    assert dark[1] > light[1]  # the highest scores are yellow, the lowest violet


def test_pyramid_averages_the_scores_that_there_are(tmp_path):
    scores = np.arange(7000, dtype=np.float32).reshape(100, 70)
    scores[0, 0], scores[2:4, 2:4] = np.nan, np.nan
    heatmap.write_scores(tmp_path / "s.tif", scores, 64.0)
    with tifffile.TiffFile(tmp_path / "s.tif") as tiff:
        levels = [page.asarray() for page in tiff.pages]
    assert [level.shape for level in levels] == [(100, 70), (50, 35)]
    assert levels[1][0, 0] == np.float32((1 + 70 + 71) / 3)
    assert np.isnan(levels[1][1, 1])
    assert levels[1][5, 5] == scores[10:12, 10:12].mean()


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("torn", [False, True])
def test_interrupted_run_goes_on_with_the_same_batches(
    path, results, tmp_path, torn, monkeypatch
):
    out = tmp_path / "out"
    seen = []

    def failing(batch):
        seen.append(batch)
        if len(seen) == 3:
            raise Interrupted
        return darkness(batch)

    with pytest.raises(Interrupted):
        score.score_slide(path, failing, out, batch=8, threshold=120)
    assert not (out / "summary.json").exists()
    if torn:  # in the middle of the second batch
        content = (out / "scores.bin").read_bytes()
        (out / "scores.bin").write_bytes(content[: len(content) * 3 // 4 + 1])
    rest, read = [], tiles.read

    def counted(slide, grid, tile, magnification, target, cells, workers):
        assert 0 < len(cells) < len(grid.cells())  # what is done is not read again
        return read(slide, grid, tile, magnification, target, cells, workers)

    monkeypatch.setattr(tiles, "read", counted)

    def counting(batch):
        rest.append(batch)
        return darkness(batch)

    score.score_slide(path, counting, out, batch=8, threshold=120)
    assert len(rest) == 3 if torn else 2
    assert (rest[0] == seen[1 if torn else 2]).all()  # the batch that was lost, whole
    for name in ("tiles.csv", "scores.tif", "regions.geojson", "heatmap.png"):
        assert (out / name).read_bytes() == (results[0] / name).read_bytes(), name


def test_finished_run_is_drawn_again_without_scoring(path, results):
    out, before = results

    def never(batch):
        raise AssertionError

    after = score.score_slide(path, never, out, batch=8, threshold=1e9)
    assert (after["regions"], after["mean"]) == (0, before["mean"])
    again = score.score_slide(path, never, out, batch=8, threshold=120)
    assert again["regions"] == 1


def test_results_of_another_model_are_kept(path, results):
    with pytest.raises(DpaError, match="made with another model; choose another --out"):
        score.score_slide(path, darkness, results[0], batch=8, model="another")


@pytest.mark.parametrize("text", ["", "[1]", "[" * 100_000])
def test_a_damaged_record_of_a_run_is_named(path, tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(DpaError, match=r"run.json: damaged, .*; choose another --out"):
        score.score_slide(path, darkness, tmp_path, batch=8)
    assert (tmp_path / "run.json").read_text() == text


def test_folder_of_other_files_is_refused(path, tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(DpaError, match="holds other files"):
        score.score_slide(path, darkness, tmp_path, batch=8)


def test_without_a_threshold_nothing_is_called_anomalous(path, tmp_path):
    out = tmp_path / "out"
    assert score.score_slide(path, darkness, out, batch=64, threshold=120)["regions"]
    assert (out / "regions.geojson").exists()
    summary = score.score_slide(path, darkness, out, batch=64)
    assert summary["threshold"] is None and summary["regions"] is None
    assert not (out / "regions.geojson").exists()


def test_calibrated_tiles_have_p_values_and_outlined_regions(path, expected, tmp_path):
    known = expected[~np.isnan(expected)]
    strata = {"all": np.linspace(known.min(), 120, 19)}
    found = calibration_factory.made(alpha=0.05, **strata)
    out = tmp_path / "out"
    summary = score.score_slide(path, darkness, out, batch=8, calibration=found)
    rows = read_csv(out / "tiles.csv")
    for row in rows:
        value = expected[int(row["row"]), int(row["column"])]
        higher = (strata["all"] >= value).sum()
        assert float(row["p_value"]) == pytest.approx((1 + higher) / 20)
        assert row["abnormal"] == str(int(value > 120))
    # those above 120 are the dark corner
    assert (summary["abnormal_tiles"], summary["alpha"]) == (4, 0.05)
    assert (summary["threshold"], summary["regions"]) == (120, 1)
    apart = calibration_factory.made(by="site", x=strata["all"])
    with pytest.raises(DpaError, match="calibrated by site, which these images do not"):
        score.score_slide(path, darkness, out, batch=8, calibration=apart)


def test_colours_of_a_calibrated_slide_are_of_its_range(path, tmp_path):
    """Tiles that hardly differ fill all colours only where there is no other range."""
    grid = tiles.TileGrid(np.ones((2, 2), bool), 256, 3, 1.0)
    scores = np.array([[1.0, 1.001], [1.002, 1.004]], np.float32)
    scales = {"own": None, "low": (0.1, 0.2), "high": (5.0, 9.0)}
    lowest, highest = {}, {}
    with reader.open_slide(path) as slide:
        for name, scale in scales.items():
            heatmap.write_overlay(tmp_path / name, slide, grid, scores, scale)
            with Image.open(tmp_path / name) as picture:
                pixels = np.asarray(picture).astype(int)  # 51 a side of a tile
            lowest[name], highest[name] = pixels[20, 20], pixels[80, 80]
    assert (abs(lowest["own"] - highest["own"]) > 50).all()
    for name in ("low", "high"):
        assert (abs(lowest[name] - highest[name]) < 15).all()
    assert (lowest["low"] > highest["high"] + 50).all()


def test_tiles_are_normalised_as_training_patches_are(path, pixels, tmp_path):
    target = stain.estimate(slide_factory.stained((256, 256), seed=8))
    found = []

    def keep(batch):
        found.append(batch)
        return np.zeros(len(batch), np.float32)

    score.score_slide(path, keep, tmp_path / "out", batch=28, stain_target=target)
    # The cell of tile rows 3 to 5 and columns 3 to 5, all tissue.
    cell = stain.normalize(pixels[768:1536, 768:1536], target)
    patch = Image.fromarray(cell).resize((192, 192), Image.Resampling.BILINEAR)
    first = np.asarray(patch)[:64, :64]
    assert any((tile == first).all() for tile in found[0])


def test_tiles_whose_stains_are_unknown_have_no_score(tmp_path, monkeypatch):
    image = slide_factory.picture(3072, 1536, [(256, 256, 768, 768)])
    image[256:1024, 2048:2816] = 150, 100, 160  # all of one colour
    path = slide_factory.write(tmp_path / "a.tif", image)
    target = stain.StainProfile(np.eye(2, 3), np.ones(2))
    estimate = stain.estimate

    def strict(image, source=""):
        if image[image.shape[0] // 2].std(0).max() < 1:
            raise stain.StainError("one colour")
        return estimate(image, source)

    monkeypatch.setattr(stain, "estimate", strict)
    summary = score.score_slide(
        path, darkness, tmp_path / "out", batch=4, stain_target=target
    )
    rows = read_csv(tmp_path / "out" / "tiles.csv")
    empty = [row for row in rows if not row["score"]]
    assert summary["tiles_without_score"] == len(empty) > 0
    assert all(int(row["x"]) >= 2048 for row in empty)


def test_reader_holds_few_cells(path):
    active, most, lock = 0, 0, threading.Lock()
    with reader.open_slide(path) as slide:
        grid = tiles.plan(slide, 64, 10)
        cells = grid.cells() * 10
        stream = tiles.read(slide, grid, 64, 10, None, cells, workers=2)
        original = tiles._cell

        def counted(*arguments):
            nonlocal active, most
            with lock:
                active += 1
                most = max(most, active)
            return original(*arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tiles, "_cell", counted)
            total = 0
            for positions, _ in stream:
                total += len(positions)
                with lock:
                    active -= 1
    assert total == 280
    assert most <= 5  # 2 * workers, and the one just taken


def test_slides_stay_open_until_the_last_thread_has_read(path, monkeypatch):
    events = []

    def slow(*arguments):
        time.sleep(0.1)
        events.append("read")

    @contextlib.contextmanager
    def watched(*arguments):
        with reader.open_slide(*arguments) as slide:
            try:
                yield slide
            finally:
                events.append("closed")

    monkeypatch.setattr(tiles, "_cell", slow)
    monkeypatch.setattr(tiles, "open_slide", watched)
    with reader.open_slide(path) as slide:
        grid = tiles.plan(slide, 64, 10)
        stream = tiles.read(slide, grid, 64, 10, None, grid.cells() * 9, workers=3)
        next(stream)
        stream.close()
    assert events.index("closed") == events.count("read") >= 2


def test_model_that_gives_nan_is_refused(path, tmp_path):
    with pytest.raises(DpaError, match=r"a\.tif: the model gives"):
        score.score_slide(
            path, lambda b: np.full(len(b), np.nan), tmp_path / "out", batch=8
        )


def test_slide_scanned_too_coarsely_is_refused(pixels, tmp_path):
    path = slide_factory.write(tmp_path / "a.tif", pixels, mpp=2.0)
    with pytest.raises(DpaError, match="scanned at x5, below the x10"):
        score.score_slide(path, darkness, tmp_path / "out")


def test_slide_without_resolution_is_refused(pixels, tmp_path):
    path = slide_factory.write(tmp_path / "a.tif", pixels, mpp=None)
    with pytest.raises(DpaError, match="--mpp"):
        score.score_slide(path, darkness, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tiles_that_do_not_fit_are_refused(path, tmp_path):
    with pytest.raises(UsageError, match="tiles of 64 px at x15"):
        score.score_slide(path, darkness, tmp_path / "o", magnification=15)


def test_tiles_of_another_size_cover_the_same_tissue(path, tmp_path):
    seen = []

    def keep(batch):
        seen.append(batch.shape)
        return np.zeros(len(batch), np.float32)

    score.score_slide(path, keep, tmp_path / "out", tile=32, batch=16)
    rows = read_csv(tmp_path / "out" / "tiles.csv")
    assert len(rows) == 4 * 28
    assert set(seen) == {(16, 32, 32, 3)}

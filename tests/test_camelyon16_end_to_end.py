"""Camelyon16 through the command line: slides to patches, a run, scores of a slide."""

import csv
import json
import shutil

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import slide_factory

from dpa_jax.cli import main
from dpa_jax.data import test_set
from dpa_jax.scoring.loading import Scorer, load
from dpa_jax.slides import heatmap, provenance, stain
from dpa_jax.storage import workdir

pytest.importorskip("tifffile", reason="slides are written by tifffile")
pytest.importorskip("shapely", reason="annotations need shapely")
slide_factory.need_reader()

TARGET = "normal_001:768,768,512,512"
SLIDES = {  # with the seed of each; the tissue of each holds two cells of the grid
    "training/normal/normal_001.tif": 0,
    "training/normal/normal_002.tif": 1,
    "training/tumor/tumor_001.tif": 2,
    "testing/images/test_001.tif": 3,
    "testing/images/test_002.tif": 4,
    "testing/images/test_003.tif": 5,
}
LISTED = {
    "normal/train": [
        f"normal_00{n}_normal_x_{x}_y_700" for n in (1, 2) for x in (9, 8)
    ],
    "normal/test": ["test_001_normal_x_768_y_512", "test_002_normal_x_768_y_768"],
    "anomaly/test": ["test_003_tumor_x_832_y_768"],
}
SHALLOW = (
    "--config.perceptual.weights=random:0",
    "--config.perceptual.statistics=train",
    "--config.perceptual.layers=64:r11",
    "--config.model.kind=residual9",  # half of the time to compile
    "--config.batch_size=4",
    "--config.stages.final_steps=3",
)


@pytest.fixture(scope="module", autouse=True)
def small():
    """Keeps the time to write PNGs short, and the compilations to this module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heatmap, "_LONGEST", 480)
        patch.setattr("dpa_jax.devices.compilation_cache.enable", lambda **_: None)
        yield


def picture(seed):
    return slide_factory.picture(2560, 1792, [(512, 512, 1792, 1024)], seed=seed)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The challenge's tree; tumours cover the left cell of tumor_001 and test_003."""
    root = tmp_path_factory.mktemp("camelyon16")
    for name, seed in SLIDES.items():
        slide_factory.write(root / name, picture(seed))
    left = [("Tumor", slide_factory.box(600, 600, 1000, 1000))]
    for name in ("training/lesion_annotations/tumor_001", "testing/Test_003"):
        slide_factory.asap(root / f"{name}.xml", left)
    return root


@pytest.fixture(scope="module")
def data(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    assert prepare(root, folder, f"--stain-target={TARGET}") == 0
    return folder


def prepare(root, folder, *more):
    return main.main(
        ["prepare", "camelyon16", f"--source={root}", f"--data_dir={folder}"]
        + ["--jobs=1", "--lists=none", *more]
    )


def train(data, workdir, *more):
    return main.main(
        ["train", "--config=configs/camelyon16.py:wo_pg", f"--workdir={workdir}"]
        + [f"--config.data.data_dir={data}", *SHALLOW, *more]
    )


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    assert train(data, workdir) == 0
    return workdir


def score_slide(root, run, out, *more, slide="testing/images/test_003.tif"):
    return main.main(
        ["score-slide", str(root / slide), f"--workdir={run}", f"--out={out}"]
        + ["--batch=8", *more]
    )


@pytest.fixture(scope="module")
def scored(root, run, tmp_path_factory):
    out = tmp_path_factory.mktemp("scored") / "out"
    assert score_slide(root, run, out) == 0
    return out


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def summary(out):
    return json.loads((out / "summary.json").read_text())


def evaluated(run, out):
    options = [f"--workdir={run}", f"--out={out}", "--batch=8"]
    assert main.main(["evaluate", *options]) == 0
    return json.loads((out / "metrics.json").read_text())


def test_evaluation_is_of_patches_and_of_slides(run, tmp_path):
    result = evaluated(run, tmp_path)
    rows = read_csv(tmp_path / "scores.csv")
    assert [row["group"] for row in rows] == 2 * ["test_001"] + 2 * ["test_002"] + [
        "test_003"
    ]
    labels = np.array([row["label"] == "abnormal" for row in rows])
    assert labels.tolist() == [False] * 4 + [True]
    scores = np.array([float(row["score"]) for row in rows])
    auc = sklearn.metrics.roc_auc_score
    assert result["roc_auc"] == pytest.approx(auc(labels, scores))
    # test_003 has one patch, and so has a draw of the others
    assert result["group_roc_auc"] == pytest.approx((scores[:4] < scores[4]).mean())
    assert result["group_images"] == 1
    assert result["groups"] == 3
    assert result["random_weights"]
    # of slides there is one pair of a normal and an abnormal one that shares none
    k = result["roc_auc"]
    low, high = scipy.stats.beta.ppf([0.025, 0.975], [k, k + 1], [2 - k, 1 - k])
    expected = [np.nan_to_num(low, nan=0.0), np.nan_to_num(high, nan=1.0)]
    assert result["roc_auc_interval"] == pytest.approx(expected)


def test_run_keeps_what_its_stains_were_normalised_to(run):
    kept = stain.load(run / "stain_target.npz")
    expected = stain.estimate(picture(0)[768:1280, 768:1280])
    assert kept.source == TARGET
    np.testing.assert_allclose(kept.matrix, expected.matrix, atol=1e-12)


def test_slide_is_scored_in_the_stains_of_the_run(root, run, scored, tmp_path):
    kept = stain.load(run / "stain_target.npz")
    scorer = load(run, batch_size=8)  # compiled before
    # The upper left tile of the cell at 768, 768: the patch that training would see.
    cell = stain.normalize(picture(5)[768:1536, 768:1536], kept)
    tile = np.asarray(heatmap.Image.fromarray(cell).resize((192, 192), 2))[:64, :64]
    rows = read_csv(scored / "tiles.csv")
    (found,) = (r for r in rows if (r["x"], r["y"]) == ("768", "768"))
    assert float(found["score"]) == pytest.approx(
        float(scorer(tile[None])[0]), rel=1e-4
    )

    plain = tmp_path / "plain"
    assert score_slide(root, run, plain, "--stain-target=none") == 0
    given = tmp_path / "given"
    path = run / "stain_target.npz"
    assert score_slide(root, run, given, f"--stain-target={path}") == 0
    files = [(out / "tiles.csv").read_text() for out in (scored, given, plain)]
    assert files[0] == files[1] != files[2]


def test_interrupted_slide_goes_on(root, run, scored, tmp_path, monkeypatch, capsys):
    call, sizes = Scorer.__call__, []

    def interrupted(self, images, progress=None):
        if len(sizes) == 2:
            raise KeyboardInterrupt
        sizes.append(len(images))
        return call(self, images, progress)

    monkeypatch.setattr(Scorer, "__call__", interrupted)
    out = tmp_path / "out"
    assert score_slide(root, run, out) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert not (out / "summary.json").exists()

    def counted(self, images, progress=None):
        sizes.append(len(images))
        return call(self, images, progress)

    monkeypatch.setattr(Scorer, "__call__", counted)
    assert score_slide(root, run, out) == 0
    assert sizes == [8] * 4  # 28 tiles
    assert (out / "tiles.csv").read_text() == (scored / "tiles.csv").read_text()
    assert score_slide(root, run, out) == 0
    assert len(sizes) == 4
    assert summary(out)["tiles_per_second"] is None


def test_scores_of_another_model_are_not_gone_on_with(
    root, run, scored, tmp_path, capsys
):
    assert score_slide(root, run, scored, "--precision=bfloat16") == 1
    assert "holds scores made with another model" in capsys.readouterr().err
    # The same weights elsewhere are the same model.
    moved = shutil.copytree(run, tmp_path / "moved")
    assert score_slide(root, moved, scored) == 0


def test_lists_to_patches_in_their_own_colours(root, run, tmp_path):
    for name, lines in LISTED.items():
        path = tmp_path / "lists" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(f"{line}_w_768_h_768.jpg" for line in lines))
    lists = f"--lists={tmp_path / 'lists'}"
    assert prepare(root, tmp_path / "data", lists, "--stain-target=none") == 0
    config = workdir.read_config(run)
    config.data.data_dir = str(tmp_path / "data")
    provenance.keep_stains(tmp_path / "run", config)
    assert not (tmp_path / "run").exists()
    images = test_set.load(config, visible=False)
    assert images.labels.tolist() == [0, 0, 1]
    assert [f"{path}.jpg" for path in images.paths] == [
        f"{line}_w_768_h_768.jpg"
        for name in ("normal/test", "anomaly/test")
        for line in LISTED[name]
    ]


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--stain-target=red"], 2, "--stain-target is 'red'"),
        ([], 1, "the slide normal_056"),
        (["--stain-target=none", "--runner=slurm"], 2, "--runner is 'slurm'"),
        (["--stain-target=none", "--", "--project=p"], 2, "need a --runner"),
    ],
)
def test_wrong_use_says_so(root, tmp_path, capsys, more, code, message):
    assert prepare(root, tmp_path, *more) == code
    assert message in capsys.readouterr().err

import csv
import gc
import json
import os
import shutil
import stat
import weakref

import numpy as np
import pytest
import run_factory
import tiny_factory
from PIL import Image

import dpa_jax
from dpa_jax import data, errors, stages
from dpa_jax.backbones import frozen
from dpa_jax.devices.platform import Platform
from dpa_jax.scoring import unlike
from dpa_jax.scoring.scorer import Scorer
from dpa_jax.storage import checkpoints, config_files


@pytest.fixture(scope="module")
def scorer(trained):
    return dpa_jax.load(trained)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The workdir of a run with a plain L1 loss, its images cropped at random."""
    folder = tmp_path_factory.mktemp("plain")
    config = run_factory.quick_config()
    config.data.train = run_factory.write_npz(folder / "train.npz")
    config.data.size, config.data.random_crop = 12, True
    config.stages.final_steps = 50
    return dpa_jax.train(config, folder / "run", visible=False)


IMAGES = run_factory.images(7, seed=5)[..., None]
AS_FLOAT = (IMAGES / 255).astype(np.float32)


def test_scores_are_finite_float32_one_for_each_image(scorer):
    found = scorer(IMAGES)
    assert found.shape == (7,) and found.dtype == np.float32
    assert np.isfinite(found).all() and (found > 0).all()
    assert len(set(found)) == 7


def test_a_run_loaded_again_compiles_nothing_and_is_let_go(trained, scorer):
    expected = scorer(IMAGES)
    gc.disable()  # which would also break a cycle that keeps a scorer
    try:
        with tiny_factory.compilations() as compiled:
            again = dpa_jax.load(trained)
            np.testing.assert_array_equal(again(IMAGES), expected)
        assert not compiled
        kept = weakref.ref(again)
        del again
        assert kept() is None
    finally:
        gc.enable()


def test_a_run_that_is_trained_further_scores_by_the_same_program(
    trained, scorer, tmp_path
):
    scorer(IMAGES)
    workdir = shutil.copytree(trained, tmp_path / "run")
    config = json.loads((workdir / "config.json").read_text())
    config["stages"]["final_steps"] += 5
    (workdir / "config.json").write_text(json.dumps(config))
    longer = dpa_jax.load(workdir)
    assert longer.stage.steps == scorer.stage.steps + 5
    with tiny_factory.compilations() as compiled:
        longer(IMAGES)
    assert not compiled


def test_score_of_an_l1_run_is_the_mean_difference(plain):
    scorer = dpa_jax.load(plain)
    images = run_factory.images(5, 8, seed=1)[..., None]
    x = images / 127.5 - 1
    y = scorer.reconstruct(images)
    assert y.shape == (5, 8, 8, 1)
    expected = np.abs(x - y).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(scorer(images), expected, rtol=1e-5)


def test_uint8_and_float_inputs_agree(scorer):
    np.testing.assert_array_equal(scorer(AS_FLOAT), scorer(IMAGES))
    np.testing.assert_array_equal(scorer(AS_FLOAT.astype(np.float64)), scorer(IMAGES))


def test_grey_images_may_lack_the_axis_of_channels(scorer):
    np.testing.assert_array_equal(scorer(IMAGES[..., 0]), scorer(IMAGES))


@pytest.mark.parametrize("size", [1, 3, 7, 8])
def test_batches_and_their_rest_do_not_matter(trained, scorer, size):
    found = dpa_jax.load(trained, batch_size=size)(IMAGES)
    np.testing.assert_allclose(found, scorer(IMAGES), rtol=1e-5)


def test_order_is_kept(scorer):
    turned = scorer(IMAGES[::-1])
    np.testing.assert_allclose(turned, scorer(IMAGES)[::-1], rtol=1e-6)


def test_progress_is_told(trained):
    told = []
    dpa_jax.load(trained, batch_size=3)(IMAGES, lambda *n: told.append(n))
    assert told == [(3, 7), (6, 7), (7, 7)]


@pytest.mark.parametrize("precision", ["tensorfloat32", "bfloat16"])
def test_lower_precision_scores_nearly_alike(trained, scorer, precision):
    found = dpa_jax.load(trained, precision=precision)(IMAGES)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, scorer(IMAGES), rtol=0.05)


@pytest.mark.parametrize(
    "images, message",
    [
        (np.zeros((2, 3, 16, 16), np.uint8), r"\[N, H, W, 3\] .* not \[2, 3, 16, 16\]"),
        (np.zeros((0, 16, 16, 1), np.uint8), "without a 0"),
        (np.zeros((2, 16, 16, 1), np.int32), "not int32"),
        (np.full((2, 16, 16, 1), 2.0), r"must lie in \[0, 1\]"),
        (np.full((2, 16, 16, 1), -1.0), r"normalised to \[-1, 1\]"),
        (np.full((2, 16, 16, 1), np.nan), "NaN"),
    ],
)
def test_what_is_no_batch_of_images_is_refused(scorer, images, message):
    with pytest.raises(errors.DpaError, match=message):
        scorer(images)


def test_images_of_every_kind_are_prepared_as_the_run_does(scorer, tmp_path):
    whole = run_factory.images(2, 40, seed=5)
    for i, pixels in enumerate(whole):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    expected = scorer(data.load(tmp_path, scorer.preprocessing))
    for given in (
        whole,
        tmp_path,
        [tmp_path / "0.png", tmp_path / "1.png"],
        [Image.fromarray(whole[0]), np.repeat(whole[1][..., None], 3, axis=2)],
    ):
        np.testing.assert_array_equal(scorer(given), expected)
    np.testing.assert_array_equal(scorer(whole[0]), expected[:1])
    assert scorer.maps(whole).shape == (2, 16, 16)
    assert scorer.reconstruct(whole).shape == (2, 16, 16, 1)


def test_a_scorer_says_what_it_is(scorer, trained):
    assert repr(scorer) == (
        f"Scorer(workdir='{trained}', stage='16_stabilization', steps=12, size=16, "
        "channels=1)"
    )


def test_images_unlike_those_of_training_are_warned_of_or_refused(trained):
    black = np.zeros((1, 40, 40), np.uint8)
    with pytest.warns(unlike.UnlikeTraining, match=r"images\[0\]: the largest value"):
        dpa_jax.score(trained, black)
    with pytest.raises(errors.DpaError, match="unlike the training images: images"):
        dpa_jax.score(trained, black, strict=True)
    with pytest.raises(errors.DpaError, match="unlike the training images: images"):
        dpa_jax.load(trained, strict=True)(black)


def test_shares_of_a_score_are_its_layers_weighted_terms(scorer):
    found = scorer.scores(IMAGES, ("loss", "layers", "share"))
    assert set(found) == {"loss", "layers.r12", "share.r12"}  # the one layer of 16 px
    np.testing.assert_allclose(found["share.r12"], 1, rtol=1e-6)
    np.testing.assert_allclose(found["layers.r12"], found["loss"], rtol=1e-6)


def test_of_larger_images_of_a_cropped_run_the_centre_is_scored(plain):
    scorer = dpa_jax.load(plain)
    images = run_factory.images(3, 12)[..., None]
    np.testing.assert_array_equal(scorer(images), scorer(images[:, 2:10, 2:10]))


def test_prepared_images_are_not_prepared_twice(plain, tmp_path):
    workdir = shutil.copytree(plain, tmp_path / "run")
    config = config_files.load(str(workdir / "config.json"))
    config.data.crop = 10
    config_files.save(config, workdir / "config.json")
    images = run_factory.images(3, 12)[..., None]
    expected = dpa_jax.load(plain)(images)
    scorer = dpa_jax.load(workdir)
    np.testing.assert_array_equal(scorer(images), expected)
    paths = [str(i) for i in range(3)]
    np.testing.assert_array_equal(scorer(data.ImageSet(images, paths)), expected)
    np.testing.assert_array_equal(scorer(images[..., 0]), expected)
    # others are: the centre is cut and enlarged
    assert (abs(scorer(list(images)) / expected - 1) > 0.01).all()


# --- maps ---


def test_maps_are_nonnegative_and_of_the_image_size(scorer):
    found = scorer.maps(IMAGES)
    assert found.shape == (7, 16, 16) and found.dtype == np.float32
    assert (found >= 0).all() and found.std() > 0


def test_mean_of_a_map_is_about_the_score(scorer):
    np.testing.assert_allclose(
        scorer.maps(IMAGES).mean(axis=(1, 2)), scorer(IMAGES), rtol=0.02
    )


def test_map_of_an_l1_run_is_the_difference(plain):
    scorer = dpa_jax.load(plain)
    images = run_factory.images(2, 8)[..., None]
    expected = np.abs(images / 127.5 - 1 - scorer.reconstruct(images))[..., 0]
    np.testing.assert_allclose(scorer.maps(images), expected, rtol=1e-4, atol=1e-6)


def test_maps_point_at_what_was_changed(plain):
    scorer = dpa_jax.load(plain)
    images = np.full((1, 8, 8, 1), 128, np.uint8)
    changed = images.copy()
    changed[0, 5:7, 1:3] = 255
    found = scorer.maps(changed)[0] - scorer.maps(images)[0]
    row, column = np.unravel_index(found.argmax(), found.shape)
    assert 5 <= row < 7 and 1 <= column < 3
    assert scorer(changed)[0] > scorer(images)[0]


# --- which run ---


def test_a_run_in_progress_is_scored_by_its_last_checkpoint(trained, tmp_path):
    workdir = shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "12")
    grown = dpa_jax.load(workdir)
    assert (grown.trained, grown.stage.name) == (8, "16_transition")
    # at the end of a transition alpha is 1: the same networks as the stage after it
    config = config_files.load(str(workdir / "config.json"))
    with np.load(workdir / "statistics.npz") as archive:
        statistics = {
            layer: {key: archive[f"{layer}/{key}"] for key in ("mean", "std")}
            for layer in ("r11", "r12")
        }
    stabilized = Scorer(
        config,
        stages.schedule(config)[-1],
        12,
        checkpoints.restore(workdir, 8).arrays["parameters"],
        frozen.load_weights(config, ("r11", "r12")),
        statistics,
        batch_size=64,
        precision="float32",
        platform=Platform.here(),
    )
    np.testing.assert_allclose(grown(IMAGES), stabilized(IMAGES), rtol=1e-5)


def test_an_early_stage_scores_at_its_own_resolution(trained, tmp_path):
    workdir = shutil.copytree(trained, tmp_path / "run")
    for step in ("8", "12"):
        shutil.rmtree(workdir / "checkpoints" / step)
    scorer = dpa_jax.load(workdir)
    assert scorer.resolution == 8
    assert scorer(IMAGES).shape == (7,)
    assert scorer.maps(IMAGES).shape == (7, 8, 8)


def test_other_vgg_weights_than_it_was_trained_with_are_refused(trained, tmp_path):
    workdir = shutil.copytree(trained, tmp_path / "run")
    config = config_files.load(str(workdir / "config.json"))
    config.perceptual.weights = "random:1"
    config_files.save(config, workdir / "config.json")
    with pytest.raises(errors.DpaError, match=r"holds other weights.*random:0"):
        dpa_jax.load(workdir)


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(errors.DpaError, match="no run in .*nowhere"):
        dpa_jax.load(tmp_path / "nowhere")


def test_a_run_without_a_checkpoint_is_told(tmp_path):
    config_files.save(run_factory.quick_config(), tmp_path / "config.json")
    with pytest.raises(errors.DpaError, match="has no checkpoint yet; train it first"):
        dpa_jax.load(tmp_path)


# --- through the command line ---


def read(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def folder(tmp_path):
    run_factory.write_folder(tmp_path / "b" / "deep", 2, seed=1)
    run_factory.write_folder(tmp_path / "b", 2, seed=2)
    Image.fromarray(IMAGES[0, ..., 0]).save(tmp_path / "z.png")
    Image.fromarray(IMAGES[1, ..., 0]).save(tmp_path / "a.png")
    return tmp_path


def test_files_and_folders_are_scored_in_the_order_given(trained, folder):
    given = [folder / "z.png", folder / "b", folder / "a.png", folder / "z.png"]
    out = folder / "new" / "scores.csv"
    code, said, err = run_factory.call(
        "score", *given, "--workdir", trained, "--out", out
    )
    assert code == 0, err
    assert said == f"7 scores in {out}\n"
    assert "warning: the weights of vgg19 are random (random:0): scores show" in err
    rows = read(out)
    assert rows[0] == ["path", "score"]
    assert [row[0].removeprefix(f"{folder}/") for row in rows[1:]] == [
        "z.png",
        "b/00.png",
        "b/01.png",
        "b/deep/00.png",
        "b/deep/01.png",
        "a.png",
        "z.png",
    ]
    assert rows[1][1] == rows[7][1]


def test_the_file_holds_every_bit_of_what_the_api_returns(trained, scorer, folder):
    out = folder / "scores.csv"
    assert run_factory.call("score", folder, "--workdir", trained, "--out", out)[0] == 0
    rows = read(out)[1:]
    images = np.stack([np.asarray(Image.open(path)) for path, _ in rows])
    expected = scorer(images)
    np.testing.assert_array_equal(np.array([row[1] for row in rows], "f"), expected)


def test_maps_are_written_as_pictures_and_arrays(trained, scorer, folder):
    code, said, _ = run_factory.call(
        "score",
        folder / "z.png",
        folder / "a.png",
        *("--workdir", trained, "--out", folder / "s.csv", "--maps", folder / "maps"),
    )
    assert code == 0 and f"2 maps in {folder}/maps" in said
    names = sorted(path.name for path in (folder / "maps").iterdir())
    assert names == ["a.npy", "a.png", "z.npy", "z.png"]
    assert [(row["path"], row["map"]) for row in table(folder / "s.csv")] == [
        (f"{folder}/{name}.png", f"{folder}/maps/{name}.png") for name in "za"
    ]
    np.testing.assert_allclose(
        np.load(folder / "maps" / "z.npy"), scorer.maps(IMAGES[:1])[0], rtol=1e-5
    )


def test_maps_of_equal_names_are_told_apart_by_their_folders(trained, folder):
    arguments = (folder / "b", "--workdir", trained, "--out", folder / "s.csv")
    assert run_factory.call("score", *arguments, "--maps", folder / "maps")[0] == 0
    names = sorted(path.stem for path in (folder / "maps").glob("*.png"))
    assert names == ["b_00", "b_01", "deep_00", "deep_01"]


def test_existing_scores_need_overwrite(trained, folder):
    out = folder / "scores.csv"
    out.write_text("of before")
    command = ("score", folder / "a.png", "--workdir", trained, "--out", out)
    code, _, err = run_factory.call(*command)
    assert code == 1 and "scores.csv is already there" in err and "--overwrite" in err
    assert out.read_text() == "of before"
    assert run_factory.call(*command, "--overwrite")[0] == 0
    assert len(read(out)) == 2


def test_existing_maps_need_overwrite_and_are_seen_before_scoring(trained, folder):
    (folder / "maps").mkdir()
    (folder / "maps" / "a.npy").write_text("of before")
    out = folder / "scores.csv"
    command = ("score", folder / "a.png", "--workdir", trained, "--out", out)
    code, _, err = run_factory.call(*command, "--maps", folder / "maps")
    assert code == 1 and "a.npy is already there" in err
    assert not out.exists()
    assert (folder / "maps" / "a.npy").read_text() == "of before"
    code, _, err = run_factory.call(*command, "--maps", folder / "maps", "--overwrite")
    assert code == 0, err


def test_corrupt_images_stop_scoring_or_are_left_out(trained, folder):
    (folder / "b" / "00.png").write_bytes(b"")
    out = folder / "scores.csv"
    command = ("score", folder / "b", "--workdir", trained, "--out", out)
    code, _, err = run_factory.call(*command)
    assert code == 1 and "b/00.png: the file is empty" in err and not out.exists()
    code, _, err = run_factory.call(*command, "--skip-corrupt")
    assert code == 0 and f"left out {folder}/b/00.png: the file is empty" in err
    assert [row[0][-8:] for row in read(out)[1:]] == [
        "b/01.png",
        "p/00.png",
        "p/01.png",
    ]


def test_scores_on_stdout_stand_there_alone(trained, folder):
    command = ("score", "a.png", "--workdir", trained, "--out=-", "--json", "--explain")
    process = run_factory.start(*command, cwd=folder)
    found, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    (line,) = found.splitlines()
    row = json.loads(line)
    assert list(row) == ["path", "score", "share.r12"]
    assert row["path"] == "a.png" and row["share.r12"] == pytest.approx(1)
    assert "1 scores in /dev/stdout" in err


def test_sources_of_all_kinds_are_scored_in_the_order_given(trained, scorer, folder):
    (folder / "m.csv").write_text(
        "path,label,split\nz.png,normal,x\na.png,abnormal,y\nb/00.png,normal,y\n"
    )
    run_factory.write_npz(folder / "n.npz", images=IMAGES[2:4], paths=["one", "two"])
    command = ("score", folder / "m.csv:y", folder / "n.npz", folder / "z.png")
    out = folder / "s.jsonl"
    more = ("--workdir", trained, "--out", out, "--json", "--quiet")
    code, said, err = run_factory.call(*command, *more)
    assert (code, said) == (0, ""), err
    assert "reading" not in err and "warning: the weights of vgg19 are random" in err
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["path"].removeprefix(f"{folder}/") for row in rows] == [
        *("a.png", "b/00.png", "one", "two", "z.png"),
    ]
    expected = scorer(IMAGES[[1, 2, 3, 0]])
    scores = np.array([row["score"] for row in rows], np.float32)
    np.testing.assert_array_equal(scores[[0, 2, 3, 4]], expected)


def test_strict_refuses_images_unlike_those_of_training(trained, folder):
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(folder / "black.png")
    out = folder / "s.csv"
    command = ("score", folder, "--workdir", trained, "--out", out)
    code, _, err = run_factory.call(*command, "--strict")
    assert code == 1 and f"unlike the training images: {folder}/black.png: the" in err
    assert not out.exists()
    code, _, err = run_factory.call(*command)
    assert code == 0 and f"warning: unlike the training images: {folder}/black" in err


def test_a_full_device_takes_no_scores_and_stays(trained, folder):
    command = ("score", folder / "a.png", "--workdir", trained, "--overwrite")
    code, _, err = run_factory.call(*command, "--out=/dev/full")
    assert code == 1 and "cannot write /dev/full: No space left on device" in err
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)

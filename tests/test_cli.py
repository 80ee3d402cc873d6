import json
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import run_factory
from PIL import Image

import dpa_jax
from dpa_jax import errors
from dpa_jax.cli import main, parsing, verbs
from dpa_jax.storage import config_files

VERBS = [
    [],
    ["demo"],
    ["train"],
    ["tune"],
    ["compile"],
    ["evaluate"],
    ["calibrate"],
    ["score"],
    ["score-slide"],
    ["report"],
    ["card"],
    ["prepare"],
    ["prepare", "layout"],
    ["prepare", "manifest"],
    ["prepare", "nih"],
    ["prepare", "camelyon16"],
    ["prepare", "cifar10"],
    ["prepare", "svhn"],
    ["weights"],
    ["weights", "fetch"],
    ["weights", "import"],
    ["weights", "stats"],
    ["weights", "verify"],
    ["export"],
    ["import-reference"],
    ["doctor"],
]


def names(parser):
    """Yields the words that lead to each parser."""
    yield []
    for action in parser._actions:
        if hasattr(action, "choices") and isinstance(action.choices, dict):
            for name, child in action.choices.items():
                yield from ([name, *rest] for rest in names(child))


def test_every_verb_is_listed_here():
    assert sorted(names(parsing.parser())) == sorted(VERBS)


def test_the_version_is_shown():
    assert run_factory.call("--version") == (0, f"dpa_jax {dpa_jax.__version__}\n", "")


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_help_comes_within_a_second(verb):
    seconds = []
    # another process may have the cores meanwhile
    while not seconds or (min(seconds) >= 1 and len(seconds) < 5):
        begun = time.perf_counter()
        process = run_factory.start(*verb, "--help")
        out, err = process.communicate()
        seconds.append(time.perf_counter() - begun)
    assert process.returncode == 0 and err == ""
    assert out.startswith("usage: dpa-jax")
    assert min(seconds) < 1


def loaded_by(code):
    """Returns the modules that a program has loaded at its end."""
    program = f"import sys\n{code}\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=main.__file__.rpartition("/dpa_jax/")[0],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.splitlines()[-1].split())


def test_help_imports_nothing_slow():
    code = f"""
from dpa_jax.cli import main
for verb in {VERBS}:
    try:
        main.main([*verb, "--help"])
    except SystemExit as stopped:
        assert stopped.code == 0
"""
    loaded = loaded_by(code)
    assert "dpa_jax.cli" in loaded
    slow = {"jax", "numpy", "tensorflow_datasets", "orbax", "flax", "sklearn", "rich"}
    assert not loaded & slow


def test_training_loads_no_tensorflow_torch_or_tfds():
    loaded = loaded_by("import dpa_jax.training")
    assert "dpa_jax.training" in loaded and "jax" in loaded
    assert not loaded & {"tensorflow", "torch", "tensorflow_datasets", "pydicom"}


def test_scoring_loads_none_of_them_either():
    loaded = loaded_by(
        "import dpa_jax.scoring.loading, dpa_jax.scoring.evaluation, dpa_jax.cli.verbs"
    )
    assert not loaded & {"tensorflow", "torch", "tensorflow_datasets", "pydicom"}


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "required: VERB"),
        (["traim"], "invalid choice: 'traim'"),
        (["train", "--workdir=x"], "required: --config"),
        (
            ["train", "--config=x", "--workdir=x", "--batch=4"],
            "unrecognized.*--batch=4",
        ),
        (["score", "--workdir=x", "a.png", "--config.seed=1"], "--config.seed=1"),
        (["score", "--workdir=x", "a.png", "--batch=0"], "'0' is not a whole number"),
        (
            ["score", "--workdir=x", "a.png", "--precision=half"],
            "invalid choice: 'half'",
        ),
        (["weights"], "required: ACTION"),
        (["doctor", "--verbose"], "unrecognized arguments: --verbose"),
    ],
)
def test_wrong_usage_exits_with_2(arguments, message):
    code, out, err = run_factory.call(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("usage: dpa-jax")
    assert re.search(message, err)


def test_errors_are_one_message_without_a_traceback(tmp_path):
    code, out, err = run_factory.call("score", "a.png", f"--workdir={tmp_path}/none")
    assert (code, out) == (1, "")
    assert err.startswith(f"dpa-jax: there is no run in {tmp_path}/none")
    assert len(err.splitlines()) == 1


def test_debug_shows_the_traceback(tmp_path):
    process = run_factory.start(
        "score", "a.png", f"--workdir={tmp_path}/none", "--debug"
    )
    _, err = process.communicate()
    assert process.returncode == 1
    assert "Traceback" in err and "no run in" in err


def test_debug_may_stand_before_the_verb(tmp_path):
    with pytest.raises(errors.DpaError, match="no run in"):
        run_factory.call("--debug", "score", "a.png", f"--workdir={tmp_path}/none")


def test_wrong_values_exit_with_2(tmp_path):
    code, _, err = run_factory.call(
        *("train", "--config=configs/demo.py", f"--workdir={tmp_path}/run"),
        "--config.batch_sise=3",
    )
    assert code == 2
    assert "no config key batch_sise; did you mean batch_size?" in err
    assert not (tmp_path / "run").exists()


def test_errors_of_the_system_name_the_file(tmp_path, monkeypatch):
    def fail(options):
        raise OSError(28, "No space left on device", "some/file")

    monkeypatch.setattr(verbs, "run", fail)
    code, _, err = run_factory.call("doctor")
    assert (code, err) == (1, "dpa-jax: some/file: No space left on device\n")


@pytest.mark.parametrize("verb, resumes", [("train", True), ("doctor", False)])
def test_an_interrupt_is_told_without_a_traceback(monkeypatch, verb, resumes):
    def interrupt(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(verbs, "run", interrupt)
    more = ["--config=x", "--workdir=x"] if verb == "train" else []
    code, _, err = run_factory.call(verb, *more)
    assert code == 130 and err.startswith("dpa-jax: stopped")
    assert ("the same command goes on" in err) == resumes


def test_doctor_tells_what_there_is(monkeypatch, tmp_path):
    monkeypatch.setenv("DPA_JAX_CACHE", str(tmp_path))
    (tmp_path / "compilations").mkdir()
    (tmp_path / "compilations" / "program").write_bytes(bytes(3_000_000))
    code, out, err = run_factory.call("doctor")
    assert code == 0 and err == ""
    assert f"{tmp_path}/compilations (1 files, 3 MB, which may be deleted)" in out
    for part in ("python", "jaxlib", "devices", "memory", "extra torch", str(tmp_path)):
        assert part in out
    assert "convolutions      XLA's\n" in out  # on a CPU
    assert "VGG19 weights     not in the cache: dpa-jax weights fetch" in out
    assert out.splitlines()[-1] == "a test program    ran and was right"


# --- train, evaluate and score, one after the other ---


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run trained by the command line on a folder, with a folder of each label."""
    folder = tmp_path_factory.mktemp("cli")
    run_factory.write_folder(folder / "train", 12)
    run_factory.write_folder(folder / "normal", 6, seed=1)
    run_factory.write_folder(folder / "abnormal", 5, seed=2)
    code, out, err = run_factory.call(
        "train",
        "--config",
        run_factory.write_config(folder / "mine.json", run_factory.quick_config()),
        "--workdir",
        folder / "run",
        f"--config.data.train={folder / 'train'}",
        "--config.batch_size=4",
        "--config.log_every=3",
    )
    assert (code, out) == (0, ""), err
    return folder


def test_flags_reach_the_run(run):
    config = config_files.load(str(run / "run" / "config.json"))
    assert config.batch_size == 4 and config.log_every == 3
    about = json.loads((run / "run" / "environment.json").read_text())
    assert "command" in about


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run / "run", tmp_path / "run")


def test_evaluate_two_folders(run, copy):
    code, out, err = run_factory.call(
        *("evaluate", "--workdir", copy),
        *("--normal", run / "normal", "--abnormal", run / "abnormal"),
    )
    assert code == 0, err
    # named by the folder that both are in
    place = copy / "evaluations" / run.name
    found = json.loads((place / "metrics.json").read_text())
    assert (found["normal"], found["abnormal"]) == (6, 5)
    assert f"ROC AUC {found['roc_auc']:.4f} (95% " in out
    assert "random" not in out  # there is no VGG19 in this run's loss
    names = {path.name for path in place.iterdir()}
    pictures = {"roc.png", "histogram.png"}
    assert names == pictures | {
        "metrics.json",
        "scores.csv",
        "cases.npz",
        "report.html",
    }


def test_evaluate_refuses_an_image_that_is_normal_and_abnormal(run, copy):
    code, _, err = run_factory.call(
        *("evaluate", "--workdir", copy),
        *("--normal", run / "normal", "--abnormal", run / "normal"),
    )
    assert code == 1
    name = f"{run}/normal/00.png"
    assert "6 of 6 abnormal images are among the 6 normal ones too" in err
    assert f"{name}, which is {name}" in err


def test_evaluations_stand_side_by_side(run, copy):
    pair = ("--normal", run / "normal", "--abnormal", run / "abnormal")
    command = ("evaluate", "--workdir", copy, *pair)
    assert run_factory.call(*command)[0] == 0
    before = run_factory.files(copy / "evaluations")
    code, out, err = run_factory.call(*command)
    assert code == 0, err
    assert f"see {copy}/evaluations/{run.name}-2/report.html" in out
    after = run_factory.files(copy / "evaluations")
    assert before.items() <= after.items() and len(after) == 2 * len(before)


def test_evaluate_does_not_replace_an_evaluation_unasked(run, copy):
    pair = ("--normal", run / "normal", "--abnormal", run / "abnormal")
    command = ("evaluate", "--workdir", copy, *pair, "--name=mine")
    assert run_factory.call(*command)[0] == 0
    before = run_factory.files(copy / "evaluations")
    code, _, err = run_factory.call(*command)
    assert code == 1 and "evaluations/mine holds an evaluation already" in err
    assert run_factory.files(copy / "evaluations") == before
    assert run_factory.call(*command, "--overwrite")[0] == 0
    assert run_factory.files(copy / "evaluations").keys() == before.keys()
    assert run_factory.files(copy / "evaluations") != before
    code, _, err = run_factory.call(*command, "--out", copy / "other")
    assert code == 2 and "--name is within the workdir, --out elsewhere" in err


def test_a_run_on_random_cuts_scores_the_centre_of_images_of_any_size(copy, tmp_path):
    path = copy / "config.json"
    config = json.loads(path.read_text())
    config["data"] |= {"random_crop": True, "crop": 40, "size": 40}
    path.write_text(json.dumps(config))
    side = config["data"]["resolution"]
    (whole,) = run_factory.images(1, 50)
    for size in (50, 40, 30, side, side - 1):
        edge = (50 - size) // 2
        cut = whole[edge : edge + size, edge : edge + size]
        (tmp_path / "x").mkdir(exist_ok=True)
        Image.fromarray(cut).save(tmp_path / "x" / f"{size}.png")
    arguments = [
        "score",
        tmp_path / "x",
        "--workdir",
        copy,
        "--out",
        tmp_path / "s.csv",
    ]
    code, _, err = run_factory.call(*arguments)
    assert code == 1 and f"{side - 1}.png: " in err and f"the crop of {side}" in err
    (tmp_path / "x" / f"{side - 1}.png").unlink()
    code, _, err = run_factory.call(*arguments)
    assert code == 0, err
    rows = (tmp_path / "s.csv").read_text().splitlines()[1:]
    assert len(rows) == 4 and len({row.rpartition(",")[2] for row in rows}) == 1


def test_evaluate_a_manifest_with_groups(run, copy):
    rows = ["path,label,group"]
    for label in ("normal", "abnormal"):
        rows += [f"{run}/{label}/{i:02d}.png,{label},{label}{i // 2}" for i in range(4)]
    (copy / "test.csv").write_text("\n".join(rows))
    code, _, err = run_factory.call(
        "evaluate", "--workdir", copy, "--test", copy / "test.csv"
    )
    assert code == 0, err
    found = json.loads((copy / "evaluations" / "test" / "metrics.json").read_text())
    assert found["groups"] == 4 and "group_roc_auc" in found
    lines = (copy / "evaluations" / "test" / "scores.csv").read_text().splitlines()
    assert ",abnormal,abnormal1," in lines[-1]


def test_evaluate_takes_the_test_set_of_the_config(run, copy):
    config = config_files.load(str(copy / "config.json"))
    config.data.test_normal = str(run / "normal")
    config.data.test_abnormal = str(run / "abnormal")
    config_files.save(config, copy / "config.json")
    assert run_factory.call("evaluate", "--workdir", copy)[0] == 0


@pytest.mark.parametrize(
    "arguments",
    [[], ["--normal=a"], ["--abnormal=a"], ["--normal=a", "--abnormal=b", "--test=c"]],
)
def test_evaluate_without_a_clear_test_set_says_what_to_give(copy, arguments):
    code, _, err = run_factory.call("evaluate", "--workdir", copy, *arguments)
    assert code == 2 and "--normal=DIR with --abnormal=DIR, or --test=" in err


def test_evaluate_needs_labels(copy):
    path = run_factory.write_npz(copy / "test.npz")
    code, _, err = run_factory.call("evaluate", "--workdir", copy, "--test", path)
    assert code == 1 and "test.npz has no labels" in err


def test_evaluate_names_images_unlike_those_of_training(copy):
    images = run_factory.images(seed=1)
    images[3] = 0
    path = run_factory.write_npz(copy / "t.npz", images=images, labels=[0, 1] * 12)
    command = ("evaluate", "--workdir", copy, "--test", path)
    code, _, err = run_factory.call(*command, "--strict")
    assert code == 1 and "unlike the training images: " in err and "t.npz[3]: " in err
    code, _, err = run_factory.call(*command)
    assert code == 0 and "warning: unlike the training images: " in err


def test_evaluate_refuses_one_label_before_it_scores(run, copy):
    path = run_factory.write_npz(copy / "test.npz", labels=np.zeros(24, np.int8))
    code, _, err = run_factory.call("evaluate", "--workdir", copy, "--test", path)
    assert code == 1 and "there are 24 and 0" in err
    assert "scoring" not in err


def test_weights_stats_over_a_folder(run, tmp_path):
    command = (
        *("weights", "stats", run / "train", "--out", tmp_path / "stats.npz"),
        *("--weights=random:0", "--layers=r11,r12", "--resolution=16"),
    )
    code, out, err = run_factory.call(*command)
    assert code == 0, err
    assert "statistics of r11, r12 over 12 images" in out
    with np.load(tmp_path / "stats.npz") as found:
        assert found["r12/mean"].shape == (64,)
    code, _, err = run_factory.call(*command)
    assert code == 1 and "stats.npz is already there" in err


def test_weights_stats_of_a_layer_without_a_pixel(run, tmp_path):
    code, _, err = run_factory.call(
        *("weights", "stats", run / "train", "--out", tmp_path / "stats.npz"),
        *("--weights=random:0", "--layers=r51", "--resolution=8"),
    )
    assert code == 2 and "r51 of vgg19 has no pixel left of a 8 pixel image" in err

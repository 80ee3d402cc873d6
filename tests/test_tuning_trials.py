import jax
import numpy as np
import pytest
import run_factory

from dpa_jax import data, stages
from dpa_jax.tuning import anomalies, results, trials

STAGE = stages.Stage(8, False, 4)


class Images:
    """Twelve normal images of four patients, and five anomalies of which two count."""

    visible = False

    def __call__(self, config):
        normal = data.ImageSet(
            run_factory.images(12, 8)[..., None],
            [f"normal{i}" for i in range(12)],
            groups=[f"patient{i // 3}" for i in range(12)],
        )
        pictures = run_factory.images(5, 8, seed=1)[..., None]
        found = data.ImageSet(pictures, [f"anomaly{i}" for i in range(5)])
        return normal, anomalies.Pool(found, ("",) * 5, np.array([1, 3]))


def brightness(images, progress=None):
    """Scores images by their mean."""
    return images.mean(axis=(1, 2, 3), dtype=np.float64).astype(np.float32)


@pytest.fixture
def works(tmp_path):
    """Three trials of two folds."""
    made = []
    for number in range(3):
        configs = []
        for fold in range(2):
            config = run_factory.quick_config()
            config.data.folds, config.data.fold, config.seed = 2, fold, number
            configs.append(config)
        folder = tmp_path / f"{number:04d}"
        made.append(trials.Work(None, number, {"x": number}, configs, folder, 0))
    return made


@pytest.fixture
def trained(monkeypatch):
    """Notes which seeds are trained together, in the place of training them."""
    calls = []

    def made(during=lambda configs, after_stage: [None] * len(configs)):
        def train_together(configs, folders, *, images, after_stage, visible):
            calls.append([config.seed for config in configs])
            return during(configs, after_stage)

        monkeypatch.setattr(trials.training, "train_together", train_together)
        monkeypatch.setattr(trials.score, "load", lambda folder: brightness)
        return calls

    return made


def ignore(work, stage, step, value):
    pass


def test_scores_are_of_the_fold_s_normal_images_and_of_the_whole_pool(works, trained):
    trained()
    for fold in range(2):
        trials.train_fold(works[:1], fold, Images(), ignore)
    normal, pool = Images()(None)
    held = [results.read_fold(works[0].scores(fold)) for fold in range(2)]
    assert sorted([*held[0].paths, *held[1].paths]) == sorted(normal.paths)
    assert set(held[0].groups).isdisjoint(held[1].groups)
    for fold in held:
        rows = [normal.paths.index(path) for path in fold.paths]
        np.testing.assert_array_equal(fold.normal, brightness(normal.images[rows]))
        np.testing.assert_array_equal(fold.anomalies, brightness(pool.images.images))
        # without early stopping: of the whole last stage, and the mean score
        assert (fold.steps, fold.loss) == (6, pytest.approx(fold.normal.mean()))


def test_fold_that_has_scores_is_not_trained_again(works, trained):
    calls = trained()
    trials.train_fold(works[:1], 0, Images(), ignore)
    trials.train_fold(works[:2], 0, Images(), ignore)
    assert calls == [[0], [1]]


def test_run_that_is_further_than_the_others_is_trained_apart(
    works, trained, monkeypatch
):
    calls = trained()
    steps = {"0000": None, "0001": 400, "0002": None}
    monkeypatch.setattr(
        trials.checkpoint, "latest", lambda folder: steps[folder.parent.name]
    )
    trials.train_fold(works, 0, Images(), ignore)
    assert calls == [[1], [0, 2]]
    assert all(work.scores(0).exists() for work in works)


def test_trials_that_do_not_fit_together_are_trained_one_by_one(works, trained):
    def narrow(configs, after_stage):
        if len(configs) > 1 or configs[0].seed == 1:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out\nof memory")
        return [None]

    calls = trained(narrow)
    trials.train_fold(works, 0, Images(), ignore)
    assert calls == [[0, 1, 2], [0], [1], [2]]
    assert [work.state for work in works] == ["running", "failed", "running"]
    assert works[1].reason == "fold 0: RESOURCE_EXHAUSTED: out"
    assert [work.scores(0).exists() for work in works] == [True, False, True]


def test_failure_of_one_leaves_the_others_alone(works, trained):
    trained(lambda configs, after_stage: [None, "diverged", None])
    trials.train_fold(works, 1, Images(), ignore)
    assert [work.state for work in works] == ["running", "failed", "running"]
    assert works[1].reason == "fold 1: diverged"
    assert [work.scores(1).exists() for work in works] == [True, False, True]


def test_judge_ends_trials_between_the_stages_of_the_first_fold(works, trained):
    judged, goes_on = [], []

    def judge(work, stage, step, value):
        judged.append((work.number, stage, step, value))
        if work.number:
            work.end("pruned", "why")

    def growing(configs, after_stage):
        if after_stage is not None:
            goes_on.extend(after_stage(i, STAGE, brightness) for i in range(3))
        return [None] * len(configs)

    for work in works:
        for config in work.configs:
            config.stages.final_steps = 4  # its only stage is STAGE
    trained(growing)
    trials.train_fold(works, 0, Images(), judge)
    assert goes_on == [True, False, False]
    assert [work.state for work in works] == ["running", "pruned", "pruned"]
    assert [work.scores(0).exists() for work in works] == [True, False, False]
    assert [call[:3] for call in judged] == [(i, STAGE, 0) for i in range(3)]
    # the share of pairs that are in order, of two drawn anomalies
    fold = results.read_fold(works[0].scores(0))
    pairs = fold.anomalies[[1, 3]][:, None] - fold.normal[None]
    expected = (pairs > 0).mean() + (pairs == 0).mean() / 2
    assert judged[0][3] == pytest.approx(expected)
    judged.clear()
    trials.train_fold(works[:1], 1, Images(), judge)
    assert not judged


def test_value_without_anomalies_is_the_mean_loss():
    normal, pool = Images()(None)
    expected = brightness(normal.images).mean(dtype=np.float64)
    assert trials.value(brightness, normal, None) == pytest.approx(expected)
    none = anomalies.Pool(pool.images, pool.kinds, np.zeros(0, np.int64))
    assert trials.value(brightness, normal, none) == pytest.approx(expected)


def test_images_are_read_again_only_for_another_preprocessing(monkeypatch, works):
    read = []

    def training_images(config, visible):
        read.append(config.data.equalize)
        return len(read)

    monkeypatch.setattr(trials.training, "training_images", training_images)
    monkeypatch.setattr(trials.anomalies, "load", lambda *_, **__: None)
    search = type("Search", (), {"anomalies": None})
    images = trials.Images(search, False)
    plain, other = works[0].configs
    assert images(plain) == images(other) == (1, None)
    other.data.equalize = True
    assert images(other) == (2, None)
    assert images(plain) == (3, None)
    assert read == [False, True, False]

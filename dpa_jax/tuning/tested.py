"""What the models of trials make of the test set, each of them once.

The learning curve alone looks at it: no trial is ever chosen by it.
"""

import hashlib
import pathlib
from collections.abc import Callable, Sequence

import ml_collections
import numpy as np

from dpa_jax import console, data, errors, roc
from dpa_jax.data.image_set import ImageSet
from dpa_jax.tuning import guard
from dpa_jax.tuning.results import Trial
from dpa_jax.weights import formats

SCORES = "test_scores.npz"
_TEST = ("test", "test_normal", "test_abnormal", "data_dir")

# a run's folder, images, and how to show progress, to float [N]
Scoring = Callable[[pathlib.Path, np.ndarray, console.Progress], np.ndarray]


def score_run(
    folder: pathlib.Path, images: np.ndarray, show: console.Progress
) -> np.ndarray:
    """Scores images with the run in a folder."""
    from dpa_jax import score

    return score.load(folder)(images, show)


def aucs(
    trials: Sequence[Trial],
    wanted: Sequence[int],
    config: ml_collections.ConfigDict,
    *,
    scoring: Scoring = score_run,
    visible: bool = True,
) -> dict[int, float]:
    """Returns the mean ROC AUC on the test set over the models of a trial's folds.

    Scores are kept in `test_scores.npz` of each fold, and not computed again.

    Args:
      trials: complete ones.
      wanted: numbers of those to score if that was not done.
      config: of the study, which names the test set.
      scoring: how a fold's run scores.
      visible: whether to show progress.

    Returns:
      By number, those of the trials wanted and of others that were scored before.

    Raises:
      DpaError: there is no test set, or another one than was scored before.
    """
    load = _loader(config, visible)
    todo: list[tuple[pathlib.Path, ImageSet, str]] = []
    known = []
    for trial in trials:
        places = [trial.folder / f"fold_{k}" / SCORES for k in range(len(trial.folds))]
        missing = [path for path in places if not path.exists()]
        scored = [path for path in places if path not in missing]
        if trial.number not in wanted and not scored:
            continue
        images, digest = load(trial)
        _check_same(scored, digest)
        if trial.number in wanted:
            todo += [(path, images, digest) for path in missing]
        if trial.number in wanted or not missing:
            known.append((trial.number, places))
    _score(todo, scoring, visible)
    return {number: float(np.mean([_auc(p) for p in ps])) for number, ps in known}


def _loader(
    config: ml_collections.ConfigDict, visible: bool
) -> Callable[[Trial], tuple[ImageSet, str]]:
    """Returns what gives a trial the test set as its runs take it, and a checksum.

    It is read once for each way of preprocessing, which trials may differ in.
    """
    loaded: dict[data.Preprocessing, tuple[ImageSet, str]] = {}

    def load(trial: Trial) -> tuple[ImageSet, str]:
        own = trial.config().copy_and_resolve_references()
        for name in _TEST:
            own.data[name] = config.data[name]
        way = data.Preprocessing.from_config(own)
        if way not in loaded:
            images = guard.test_set(own, visible=visible)
            if images is None or images.labels is None:
                raise errors.DpaError(
                    "the study's config names no test set (data.test): a learning "
                    "curve needs one"
                )
            if len(np.unique(images.labels)) < 2:
                raise errors.DpaError(
                    "the test set needs normal and abnormal images; all of its "
                    f"{len(images)} have one label"
                )
            digest = hashlib.sha256(np.ascontiguousarray(images.images).data)
            digest.update(images.labels.astype(np.int8).tobytes())
            loaded[way] = images, digest.hexdigest()
        return loaded[way]

    return load


def _check_same(paths: Sequence[pathlib.Path], digest: str) -> None:
    for path in paths:
        if str(_read(path)["sha256"]) != digest:
            raise errors.DpaError(
                f"{path} is of another test set than the config names now; restore "
                "that one, or remove the file"
            )


def _score(
    todo: Sequence[tuple[pathlib.Path, ImageSet, str]],
    scoring: Scoring,
    visible: bool,
) -> None:
    total, before = sum(len(images) for _, images, _ in todo), 0
    with console.counting("scoring the test set", "images", visible) as show:
        for path, images, digest in todo:

            def shown(done: int, _: int, before: int = before) -> None:
                show(before + done, total)

            scores = np.asarray(scoring(path.parent, images.images, shown), np.float32)
            if not np.isfinite(scores).all():
                raise errors.DpaError(f"{path.parent} gives scores that are not finite")
            with formats.replacing(path) as temporary, open(temporary, "wb") as file:
                np.savez(
                    file,
                    scores=scores,
                    labels=np.asarray(images.labels, np.int8),
                    paths=np.array(images.paths, np.str_),
                    sha256=np.array(digest),
                )
            before += len(images)


def _auc(path: pathlib.Path) -> float:
    kept = _read(path)
    return roc.auc(kept["scores"], kept["labels"])


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
    return formats.read_npz(path, lambda name: True)

"""What evaluate does."""

import argparse
import dataclasses
import pathlib
from typing import Any

import numpy as np

from dpa_jax import console, data, errors
from dpa_jax.cli.verbs import scoring
from dpa_jax.data import labels, leakage
from dpa_jax.storage import evaluations, workdir


def evaluate(options: argparse.Namespace) -> None:
    """Measures how well one run or several tell abnormal from normal."""
    from dpa_jax.devices import compilation_cache
    from dpa_jax.reporting import page
    from dpa_jax.scoring import audit, decisions, evaluation, localization

    compilation_cache.enable()
    runs = workdir.members(options.workdir)
    _check_place(options)
    scorers = [scoring.load_run(run, options) for run in runs]
    images = _labelled(options, scorers[0].config)
    leakage.check_labels(images)
    leakage.check(runs[0], images, "test images")
    for scorer in scorers:
        decisions.check(scorer.calibration, images)
    scoring.warn_unlike(scorers[0], images)
    masks = _masks(images, options, scorers[0])
    results, scores, several = [], [], len(runs) > 1
    for run, scorer in zip(runs, scorers, strict=True):
        with console.counting(
            f"scoring {run}" if several else "scoring", "images"
        ) as show:
            scores.append(scorer(images, show))
    out, places = _places(options, runs, scorers[0].config)
    for run, scorer, found, place in zip(runs, scorers, scores, places, strict=True):
        decided = decisions.decide(scorer.calibration, images, found)
        results.append(evaluation.report(scorer, images, found, decided))
        if masks is not None:
            results[-1]["pixels"] = _pixels(scorer, images, *masks)
        evaluation.write(place, images, found, results[-1], decided)
        page.write_with_cases(run, place, scorer, images, found)
        if several:
            print(run)
        print("\n".join(evaluation.describe(results[-1])))
        print("\n".join(audit.describe(results[-1])))
        if masks is not None:
            print(localization.describe(results[-1]["pixels"]))
        for warning in results[-1]["warnings"]:
            scoring.warn(warning)
    files = "report.html, metrics.json, scores.csv, roc.png, histogram.png"
    if several:
        found = evaluation.summarize(results, images, np.stack(scores))
        workdir.write_json(out / evaluations.METRICS, found)
        low, high = found["roc_auc_interval"]
        print(
            f"{len(runs)} runs: mean ROC AUC {found['roc_auc_mean']:.4f} "
            f"(95% {low:.4f} to {high:.4f}), standard deviation "
            f"{found['roc_auc_sd']:.4f}"
        )
        files = f"metrics.json, and of each run such as {places[0]}: {files}"
    scoring.warn_random(scorers[0].config)
    print(f"see {out}/{files}")


def _check_place(options) -> None:
    """Refuses to replace an evaluation unasked, before anything is scored."""
    if options.out and options.name:
        raise errors.UsageError("--name is within the workdir, --out elsewhere: one")
    out = pathlib.Path(options.out) if options.out else None
    if options.name:
        out = evaluations.folder(options.workdir, options.name)
    if out and (out / evaluations.METRICS).exists() and not options.overwrite:
        other = "--name" if options.name else "--out"
        raise errors.DpaError(
            f"{out} holds an evaluation already; give another {other}, or --overwrite"
        )


def _places(options, runs, config) -> tuple[pathlib.Path, list[pathlib.Path]]:
    """Returns where an evaluation goes, and where that of each run."""
    root = pathlib.Path(options.workdir)
    if options.out:
        out = pathlib.Path(options.out)
        return out, [out / run.relative_to(root) for run in runs]
    name = options.name or evaluations.name_of(_locations(options, config))
    if not (options.name or options.overwrite):
        name = evaluations.claim([root, *(run for run in runs if run != root)], name)
    return (
        evaluations.folder(root, name),
        [evaluations.folder(run, name) for run in runs],
    )


def _locations(options, config) -> tuple[str, ...]:
    """Returns where the labelled images are, or the normal and the abnormal ones."""
    normal, abnormal, test = options.normal, options.abnormal, options.test
    if not (normal or abnormal or test):
        normal, abnormal = config.data.test_normal, config.data.test_abnormal
        test = config.data.test
    if bool(normal) != bool(abnormal) or bool(normal) == bool(test):
        raise errors.UsageError(
            "say what to evaluate on: --normal=DIR with --abnormal=DIR, or --test=..."
        )
    return (test,) if test else (normal, abnormal)


def _labelled(options, config) -> data.ImageSet:
    """Loads the images to evaluate on: from the options, else from the config."""
    locations = _locations(options, config)
    if len(locations) == 1:
        (test,) = locations
        from dpa_jax.scoring import evaluation

        images = scoring.load_images(test, options, config)
        images = labels.labelled(images, config.data.normal, test)
        if images.labels is None:
            raise errors.DpaError(
                f"{test} has no labels: a manifest needs a label column, an .npz an "
                "array `labels`, and a run of any other set data.normal"
            )
        evaluation.count_labels(images.labels)  # before scoring, which may take long
        return images
    pair = [scoring.load_images(location, options, config) for location in locations]
    if any("mask" in (images.columns or {}) for images in pair):
        # normal images need no masks, and a join keeps what both have
        pair = [
            dataclasses.replace(
                images, columns={"mask": [""] * len(images), **(images.columns or {})}
            )
            for images in pair
        ]
    return data.joined(pair, labels=(0, 1))


def _masks(
    images: data.ImageSet, options, scorer
) -> tuple[np.ndarray, np.ndarray] | None:
    """Loads the masks of the images if they have any; see `masks.load`."""
    from dpa_jax.data import masks
    from dpa_jax.scoring import localization

    config = scorer.config
    location = options.test or ("" if options.normal else config.data.test)
    found = masks.load(
        images,
        data.Preprocessing.from_config(config, scoring=True),
        location,
        config.data.data_dir or None,
    )
    if found is not None:  # checked before scoring, which may take long
        fitted = localization.fit(
            found[0][found[1]], config.data.resolution, scorer.resolution
        )
        localization.count_abnormal(fitted)
    return found


def _pixels(
    scorer, images: data.ImageSet, masks: np.ndarray, known: np.ndarray
) -> dict[str, Any]:
    """Evaluates the maps of the images whose masks are known."""
    from dpa_jax.scoring import localization

    chosen = images.select(known)
    with console.counting("mapping", "images") as show:
        maps = scorer.maps(chosen, show)
    fitted = localization.fit(
        masks[known], scorer.config.data.resolution, scorer.resolution
    )
    found = localization.evaluate(maps, fitted)
    return {**found, "images": len(chosen), "images_without_mask": int((~known).sum())}

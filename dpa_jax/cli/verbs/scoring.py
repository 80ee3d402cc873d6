"""What evaluate, score and score-slide do."""

import argparse
import dataclasses
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from dpa_jax import console, data, errors
from dpa_jax.config import is_perceptual
from dpa_jax.data import labels
from dpa_jax.storage import workdir
from dpa_jax.weights import formats


def evaluate(options: argparse.Namespace) -> None:
    """Measures how well one run or several tell abnormal from normal."""
    from dpa_jax.devices import compilation_cache
    from dpa_jax.reporting import page
    from dpa_jax.scoring import audit, evaluation, localization

    compilation_cache.enable()
    out = pathlib.Path(options.out or pathlib.Path(options.workdir) / "evaluation")
    if (out / "metrics.json").exists() and not options.overwrite:
        raise errors.DpaError(
            f"{out} holds an evaluation already; give another --out, or --overwrite"
        )
    runs = workdir.members(options.workdir)
    scorers = [_load_run(run, options) for run in runs]
    images = _labelled(options, scorers[0].config)
    masks = _masks(images, options, scorers[0])
    results, scores = [], []
    for run, scorer in zip(runs, scorers, strict=True):
        several = len(runs) > 1
        with console.counting(
            f"scoring {run}" if several else "scoring", "images"
        ) as show:
            scores.append(scorer(images.images, show))
        results.append(evaluation.report(scorer, images, scores[-1]))
        if masks is not None:
            results[-1]["pixels"] = _pixels(scorer, images, *masks)
        place = out / run.relative_to(options.workdir) if several else out
        evaluation.write(place, images, scores[-1], results[-1])
        page.write_with_cases(run, place, scorer, images, scores[-1])
        if several:
            print(run)
        print("\n".join(evaluation.describe(results[-1])))
        print("\n".join(audit.describe(results[-1])))
        if masks is not None:
            print(localization.describe(results[-1]["pixels"]))
        for warning in results[-1]["warnings"]:
            print(f"warning: {warning}", file=sys.stderr)
    files = "report.html, metrics.json, scores.csv, roc.png, histogram.png"
    if len(runs) > 1:
        found = evaluation.summarize(results, images, np.stack(scores))
        workdir.write_json(out / "metrics.json", found)
        low, high = found["roc_auc_interval"]
        print(
            f"{len(runs)} runs: mean ROC AUC {found['roc_auc_mean']:.4f} "
            f"(95% {low:.4f} to {high:.4f}), standard deviation "
            f"{found['roc_auc_sd']:.4f}"
        )
        files = f"metrics.json, and of each run {workdir.MEMBERS}/N/{files}"
    if results[0]["random_weights"]:
        print(f"VGG19's weights are random ({scorers[0].config.perceptual.weights})")
    print(f"see {out}/{files}")


def _load_run(folder: str | pathlib.Path, options) -> Any:
    """Loads a run as the options that every verb here has say."""
    from dpa_jax.scoring import loading

    return loading.load(
        folder,
        batch_size=options.batch,
        precision=options.precision,
        trust=options.trust,
    )


def _labelled(options, config) -> data.ImageSet:
    """Loads the images to evaluate on: from the options, else from the config."""
    normal, abnormal, test = options.normal, options.abnormal, options.test
    if not (normal or abnormal or test):
        normal, abnormal = config.data.test_normal, config.data.test_abnormal
        test = config.data.test
    if bool(normal) != bool(abnormal) or bool(normal) == bool(test):
        raise errors.UsageError(
            "say what to evaluate on: --normal=DIR with --abnormal=DIR, or --test=..."
        )
    if test:
        from dpa_jax.scoring import evaluation

        images = _load(test, options, config)
        images = labels.labelled(images, config.data.normal, test)
        if images.labels is None:
            raise errors.DpaError(
                f"{test} has no labels: a manifest needs a label column, an .npz an "
                "array `labels`, and a run of any other set data.normal"
            )
        evaluation.count_labels(images.labels)  # before scoring, which may take long
        return images
    pair = [_load(location, options, config) for location in (normal, abnormal)]
    common = set(pair[0].paths).intersection(pair[1].paths)
    common = {path for path in common if os.path.isfile(path)}  # an .npz has mere names
    if common:
        raise errors.DpaError(
            f"{min(common)} is among the normal and the abnormal images"
        )
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
        maps = scorer.maps(chosen.images, show)
    fitted = localization.fit(
        masks[known], scorer.config.data.resolution, scorer.resolution
    )
    found = localization.evaluate(maps, fitted)
    return {**found, "images": len(chosen), "images_without_mask": int((~known).sum())}


def _load(location: str, options, config) -> data.ImageSet:
    from dpa_jax.data import test_set

    images = test_set.read(location, config, skip_corrupt=options.skip_corrupt)
    _tell_skipped(images)
    return images


def _tell_skipped(images: data.ImageSet) -> None:
    for skipped in images.skipped:
        print(f"left out {skipped.path}: {skipped.reason}", file=sys.stderr)


def score(options: argparse.Namespace) -> None:
    """Scores images, and writes their anomaly maps if asked to."""
    from dpa_jax.devices import compilation_cache
    from dpa_jax.scoring import maps, scores

    compilation_cache.enable()
    out = pathlib.Path(options.out)
    is_stream = formats.is_stream(out)
    if out.exists() and not (options.overwrite or is_stream):
        raise errors.DpaError(
            f"{out} is already there; give another --out, or --overwrite"
        )
    for name in options.score:
        scores.check(name)
    scorer = _load_run(options.workdir, options)
    paths = [
        path
        for given in options.images
        for path in (data.list_images(given) if os.path.isdir(given) else [given])
    ]
    with console.counting("reading images", "images") as show:
        images = data.load_files(
            paths,
            data.Preprocessing.from_config(scorer.config, scoring=True),
            skip_corrupt=options.skip_corrupt,
            progress=show,
        )
    _tell_skipped(images)
    if options.maps:  # refused before scoring, which may take long
        maps.files(pathlib.Path(options.maps), _names(images.paths), options.overwrite)
    with console.counting("scoring", "images") as show:
        found = scorer.scores(
            images.images,
            ("loss", *options.score, *(["map"] if options.maps else [])),
            show,
        )
    columns = {name: values for name, values in found.items() if values.ndim == 1}
    drawn = {name: values for name, values in found.items() if values.ndim == 3}
    if drawn and not options.maps:
        raise errors.UsageError(
            f"--score={next(iter(drawn))} returns maps: say by --maps=DIR where to"
        )
    columns = {"score": columns.pop("loss"), **columns}
    numbers = [map(workdir.number, values) for values in columns.values()]
    rows = list(zip(images.paths, *numbers, strict=True))
    workdir.write_csv(out, ("path", *columns), rows)
    # scores that are written to stdout stand there alone
    report = sys.stderr if is_stream else sys.stdout
    print(f"{len(images)} scores in {out}", file=report)
    for name, values in drawn.items():
        place = pathlib.Path(options.maps)
        if name != "map":
            place /= name.replace(":", ".")
        paths = maps.files(place, _names(images.paths), options.overwrite)
        maps.write_maps(paths, images.images, values)
        print(f"{len(paths)} maps in {place}", file=report)


def _names(paths: Sequence[str]) -> list[str]:
    """Names files by their stem, or by their folder too if that is not enough."""
    named = [pathlib.Path(path) for path in paths]
    stems = [path.stem for path in named]
    if len(set(stems)) == len(stems):
        return stems
    return [f"{path.parent.name}_{path.stem}".lstrip("_") for path in named]


def score_slide(options: argparse.Namespace) -> None:
    """Scores a whole slide tile by tile."""
    from dpa_jax.devices import compilation_cache
    from dpa_jax.slides import provenance, stain
    from dpa_jax.slides import score as slide_score

    compilation_cache.enable()
    folder = pathlib.Path(options.workdir)
    scorer = _load_run(folder, options)
    magnification = options.magnification or provenance.magnification(scorer.config)
    target = None
    if options.stain_target is None:
        target = stain.find(folder)
    elif options.stain_target != "none":
        target = stain.load(options.stain_target)
    stains = f"normalised to {target.source}" if target else "left as they are"
    console.print_line(f"tiles at x{magnification}, stains {stains}")
    out = options.out or f"{pathlib.Path(options.slide).stem}_scores"
    with console.counting("scoring tiles", "tiles") as show:
        found = slide_score.score_slide(
            options.slide,
            scorer,
            out,
            mpp=options.mpp,
            batch=options.batch,
            stain_target=target,
            threshold=options.threshold,
            magnification=magnification,
            tile=provenance.tile(folder, scorer.config),
            model=provenance.model(folder, scorer.config, scorer.trained)
            + f", {options.precision}",
            progress=show,
        )
    print(
        f"{found['tiles']:,} tiles: see heatmap.png, scores.tif and tiles.csv in {out}"
    )
    if options.threshold is None:
        print("no regions are outlined: --threshold says from which score on")
    else:
        print(
            f"{found['regions']:,} regions above {options.threshold:.4g}: see "
            "regions.geojson"
        )
    if found["tiles_without_score"]:
        print(
            f"{found['tiles_without_score']:,} tiles have no score: "
            "their stains cannot be estimated"
        )
    weights = scorer.config.perceptual.weights
    if is_perceptual(scorer.config) and weights.startswith("random:"):
        print(f"VGG19's weights are random ({weights})")

"""What evaluate, score and score-slide do."""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from dpa_jax import console, data, errors
from dpa_jax.config import has_random_weights
from dpa_jax.data import labels, leakage
from dpa_jax.storage import evaluations, json_files, workdir
from dpa_jax.weights import formats


def evaluate(options: argparse.Namespace) -> None:
    """Measures how well one run or several tell abnormal from normal."""
    from dpa_jax.devices import compilation_cache
    from dpa_jax.reporting import page
    from dpa_jax.scoring import audit, decisions, evaluation, localization

    compilation_cache.enable()
    runs = workdir.members(options.workdir)
    _check_place(options)
    scorers = [_load_run(run, options) for run in runs]
    images = _labelled(options, scorers[0].config)
    leakage.check_labels(images)
    leakage.check(runs[0], images, "test images")
    for scorer in scorers:
        decisions.check(scorer.calibration, images)
    _warn_unlike(scorers[0], images)
    masks = _masks(images, options, scorers[0])
    results, scores, several = [], [], len(runs) > 1
    for run, scorer in zip(runs, scorers, strict=True):
        with console.counting(
            f"scoring {run}" if several else "scoring", "images"
        ) as show:
            scores.append(scorer(images, show))
    out, places = _places(options, runs, scorers[0].config)
    for run, scorer, found, place in zip(runs, scorers, scores, places, strict=True):
        results.append(evaluation.report(scorer, images, found))
        if masks is not None:
            results[-1]["pixels"] = _pixels(scorer, images, *masks)
        decided = decisions.decide(scorer.calibration, images, found)
        columns = decided.columns() if decided else {}
        evaluation.write(place, images, found, results[-1], columns)
        page.write_with_cases(run, place, scorer, images, found)
        if several:
            print(run)
        print("\n".join(evaluation.describe(results[-1])))
        print("\n".join(audit.describe(results[-1])))
        if masks is not None:
            print(localization.describe(results[-1]["pixels"]))
        for warning in results[-1]["warnings"]:
            _warn(warning)
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
    _warn_random(scorers[0].config)
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


def _warn_random(config) -> None:
    """Says, wherever scores are shown, that they come from random features."""
    if has_random_weights(config):
        _warn(
            f"the weights of {config.perceptual.backbone} are random "
            f"({config.perceptual.weights}): scores show that everything works, not "
            "how well the method does"
        )


def _warn_unlike(scorer, images: data.ImageSet) -> None:
    """Says how images are unlike those of training, or refuses them."""
    from dpa_jax.scoring import unlike

    for text in unlike.check(
        scorer.inputs, images, scorer.preprocessing, scorer.strict
    ):
        _warn(f"unlike the training images: {text}")


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


def _load_run(folder: str | pathlib.Path, options) -> Any:
    """Loads a run as the options that every verb here has say."""
    from dpa_jax.scoring import loading

    return loading.load(
        folder,
        batch_size=options.batch,
        precision=options.precision,
        trust=options.trust,
        strict=getattr(options, "strict", False),  # score-slide has none
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

        images = _load(test, options, config)
        images = labels.labelled(images, config.data.normal, test)
        if images.labels is None:
            raise errors.DpaError(
                f"{test} has no labels: a manifest needs a label column, an .npz an "
                "array `labels`, and a run of any other set data.normal"
            )
        evaluation.count_labels(images.labels)  # before scoring, which may take long
        return images
    pair = [_load(location, options, config) for location in locations]
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
    from dpa_jax.data import test_set
    from dpa_jax.devices import compilation_cache
    from dpa_jax.scoring import decisions, maps, scores

    compilation_cache.enable()
    out = _table(options)
    is_stream, visible = formats.is_stream(out), not options.quiet
    if out.exists() and not (options.overwrite or is_stream):
        raise errors.DpaError(
            f"{out} is already there; give another --out, or --overwrite"
        )
    for name in options.score:
        scores.check(name)
    scorer = _load_run(options.workdir, options)
    images = test_set.read(
        options.images,
        scorer.config,
        visible=visible,
        skip_corrupt=options.skip_corrupt,
    )
    _tell_skipped(images)
    if options.fdr and not scorer.calibration:
        raise errors.UsageError("--fdr needs p-values: run dpa-jax calibrate first")
    decisions.check(scorer.calibration, images)
    _warn_unlike(scorer, images)
    _warn_random(scorer.config)
    if options.maps:  # refused before scoring, which may take long
        maps.files(pathlib.Path(options.maps), _names(images.paths), options.overwrite)
    with console.counting("scoring", "images", visible) as show:
        found = scorer.scores(
            images,
            (
                "loss",
                *options.score,
                *(["share"] if options.explain else []),
                *(["map"] if options.maps else []),
            ),
            show,
        )
    columns = {name: values for name, values in found.items() if values.ndim == 1}
    drawn = {name: values for name, values in found.items() if values.ndim == 3}
    if drawn and not options.maps:
        raise errors.UsageError(
            f"--score={next(iter(drawn))} returns maps: say by --maps=DIR where to"
        )
    decided = decisions.decide(scorer.calibration, images, found["loss"], options.fdr)
    if decided:
        columns = {"loss": columns.pop("loss"), **decided.columns(), **columns}
        for warning in decided.warnings():
            print(f"warning: {warning}", file=sys.stderr)
    columns = {"score": columns.pop("loss"), **columns}
    number = json_files.number if options.json else workdir.number
    named = {name: [*map(number, values)] for name, values in columns.items()}
    places = {}
    for name in drawn:
        place = pathlib.Path(options.maps)
        if name != "map":
            place /= name.replace(":", ".")
        places[name] = maps.files(place, _names(images.paths), options.overwrite)
    if "map" in places:
        named["map"] = [str(path) for path in places["map"]]
    rows = list(zip(images.paths, *named.values(), strict=True))
    write = json_files.write_lines if options.json else workdir.write_csv
    write(out, ("path", *named), rows)
    # scores that are written to stdout stand there alone
    report = sys.stderr if is_stream else sys.stdout
    lines = [f"{len(images)} scores in {out}"]
    if decided:
        lines.append(decided.describe())
    for name, paths in places.items():
        scale = scorer.calibration.map_range if decided and name == "map" else None
        maps.write_maps(paths, images.images, drawn[name], scale)
        lines.append(f"{len(paths)} maps in {paths[0].parent}")
    if visible:
        print("\n".join(lines), file=report)


def _table(options) -> pathlib.Path:
    """Returns the file that scores are written to."""
    if options.out == "-":
        return pathlib.Path("/dev/stdout")
    return pathlib.Path(
        options.out or ("scores.jsonl" if options.json else "scores.csv")
    )


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
            calibration=scorer.calibration,
            progress=show,
        )
    print(
        f"{found['tiles']:,} tiles: see heatmap.png, scores.tif and tiles.csv in {out}"
    )
    if found["threshold"] is None:
        print("no regions are outlined: --threshold says from which score on")
    else:
        print(
            f"{found['regions']:,} regions above {found['threshold']:.4g}: see "
            "regions.geojson"
        )
    if found["alpha"] is not None:
        print(
            f"{found['abnormal_tiles']:,} tiles have a p-value of at most "
            f"{found['alpha']:.3g}, each taken by itself"
        )
    if found["tiles_without_score"]:
        print(
            f"{found['tiles_without_score']:,} tiles have no score: "
            "their stains cannot be estimated"
        )
    _warn_random(scorer.config)

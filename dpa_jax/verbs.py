"""What each verb of the command line does, from its parsed options."""

import argparse
import dataclasses
import importlib.util
import os
import pathlib
import platform
import sys
from collections.abc import Sequence

import numpy as np

from dpa_jax import config as config_lib
from dpa_jax import data, errors, metrics, workdir
from dpa_jax.data import labels


def run(options: argparse.Namespace) -> None:
    """Does what was asked for."""
    name = options.verb
    for level in ("dataset", "action"):
        name = f"{name} {getattr(options, level)}" if hasattr(options, level) else name
    {
        "demo": _demo,
        "train": _train,
        "tune": _tune,
        "evaluate": _evaluate,
        "score": _score,
        "score-slide": _score_slide,
        "prepare nih": _prepare_nih,
        "prepare camelyon16": _prepare_camelyon16,
        "prepare cifar10": _prepare_cifar10_svhn,
        "prepare svhn": _prepare_cifar10_svhn,
        "weights fetch": _fetch,
        "weights import": _import,
        "weights stats": _stats,
        "weights verify": _verify,
        "import-reference": _import_reference,
        "doctor": _doctor,
    }[name](options)


def _demo(options) -> None:
    from dpa_jax import demo

    demo.demo(options.workdir)


def _train(options) -> None:
    config = config_lib.with_flags(config_lib.load(options.config), options.overrides)
    config_lib.validate(config)
    from dpa_jax import cache, parallel
    from dpa_jax.training import train

    given = (options.coordinator, options.processes, options.process)
    if options.distributed or any(value is not None for value in given):
        parallel.initialize(*given)
    cache.enable(training=True)
    train(config, options.workdir)


def _tune(options) -> None:
    from dpa_jax import cache
    from dpa_jax.tuning import learning_curve, study

    folder = pathlib.Path(options.workdir)
    if options.learning_curve is not None:
        study.check_finished(folder)
        cache.enable()
        found = learning_curve.learning_curve(
            folder, options.learning_curve, options.draws
        )
        print("\n".join(found.lines))
        return
    config, search = _study(options, folder)
    cache.enable(training=True)
    found = study.tune(config, search, folder, storage=options.storage)
    print("\n".join(found.lines))


def _study(options, folder: pathlib.Path):
    """Returns the config and the search of a study: from the options, else its own."""
    from dpa_jax.tuning import search as search_lib

    given = []
    for name in ("config", "search"):
        kept = folder / f"{name}.json"
        if not getattr(options, name) and not (folder / "search.json").exists():
            raise errors.UsageError(f"--{name} is missing: {folder} holds no study yet")
        given.append(getattr(options, name) or str(kept))
    config = config_lib.with_flags(config_lib.load(given[0]), options.overrides)
    search = config_lib.with_flags(
        search_lib.load(given[1]), options.search_overrides, "search"
    )
    for name, value in (
        ("trials", options.trials),
        ("folds", options.folds),
        ("anomalies.count", options.anomalies),
        ("anomalies.source", options.anomalies_from),
    ):
        if value is not None:
            search = config_lib.updated(search, {name: value}, "the search")
    if options.trials and search.sampler == "grid":
        raise errors.UsageError("--trials: a grid tries all its combinations; leave it")
    return config, search


def _evaluate(options) -> None:
    from dpa_jax import audit, cache, evaluate, score

    cache.enable()
    out = pathlib.Path(options.out or pathlib.Path(options.workdir) / "evaluation")
    if (out / "metrics.json").exists() and not options.overwrite:
        raise errors.DpaError(
            f"{out} holds an evaluation already; give another --out, or --overwrite"
        )
    runs = workdir.members(options.workdir)
    scorers = [
        score.load(run, batch_size=options.batch, precision=options.precision)
        for run in runs
    ]
    images = _labelled(options, scorers[0].config)
    results, scores = [], []
    for run, scorer in zip(runs, scorers, strict=True):
        several = len(runs) > 1
        with metrics.counting(
            f"scoring {run}" if several else "scoring", "images"
        ) as show:
            scores.append(scorer(images.images, show))
        results.append(evaluate.report(scorer, images, scores[-1]))
        place = out / run.relative_to(options.workdir) if several else out
        evaluate.write(place, images, scores[-1], results[-1])
        if several:
            print(run)
        print("\n".join(evaluate.describe(results[-1])))
        print("\n".join(audit.describe(results[-1])))
        for warning in results[-1]["warnings"]:
            print(f"warning: {warning}", file=sys.stderr)
    files = "metrics.json, scores.csv, roc.png, histogram.png"
    if len(runs) > 1:
        found = evaluate.summarize(results, images, np.stack(scores))
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
        images = _load(test, options, config)
        if config.data.normal:
            normal = labels.matches(images, config.data.normal)
            return dataclasses.replace(images, labels=(~normal).astype(np.int8))
        if images.labels is None:
            raise errors.DpaError(
                f"{test} has no labels: a manifest needs a label column, an .npz an "
                "array `labels`, and a run of any other set data.normal"
            )
        return images
    pair = [_load(location, options, config) for location in (normal, abnormal)]
    return data.joined(pair, labels=(0, 1))


def _load(location: str, options, config) -> data.ImageSet:
    with metrics.counting("reading images", "images") as show:
        images = data.load(
            location,
            data.Preprocessing.from_config(config),
            skip_corrupt=options.skip_corrupt,
            progress=show,
            data_dir=config.data.data_dir or None,
        )
    _tell_skipped(images)
    return images


def _tell_skipped(images: data.ImageSet) -> None:
    for skipped in images.skipped:
        print(f"left out {skipped.path}: {skipped.reason}", file=sys.stderr)


def _score(options) -> None:
    from dpa_jax import cache, maps, score

    cache.enable()
    out = pathlib.Path(options.out)
    if out.exists() and not options.overwrite:
        raise errors.DpaError(
            f"{out} is already there; give another --out, or --overwrite"
        )
    scorer = score.load(
        options.workdir, batch_size=options.batch, precision=options.precision
    )
    paths = [
        path
        for given in options.images
        for path in (data.list_images(given) if os.path.isdir(given) else [given])
    ]
    with metrics.counting("reading images", "images") as show:
        images = data.load_files(
            paths,
            data.Preprocessing.from_config(scorer.config),
            skip_corrupt=options.skip_corrupt,
            progress=show,
        )
    _tell_skipped(images)
    pictures = []
    if options.maps:
        pictures = maps.files(
            pathlib.Path(options.maps), _names(images.paths), options.overwrite
        )
    with metrics.counting("scoring", "images") as show:
        scores = scorer(images.images, show)
    rows = list(zip(images.paths, map(workdir.number, scores), strict=True))
    workdir.write_csv(out, ("path", "score"), rows)
    print(f"{len(scores)} scores in {out}")
    if options.maps:
        with metrics.counting("mapping", "images") as show:
            found = scorer.maps(images.images, show)
        maps.write_maps(pictures, images.images, found)
        print(f"{len(pictures)} maps in {options.maps}")


def _names(paths: Sequence[str]) -> list[str]:
    """Names files by their stem, or by their folder too if that is not enough."""
    named = [pathlib.Path(path) for path in paths]
    stems = [path.stem for path in named]
    if len(set(stems)) == len(stems):
        return stems
    return [f"{path.parent.name}_{path.stem}".lstrip("_") for path in named]


def _score_slide(options) -> None:
    from dpa_jax import cache, score
    from dpa_jax.slides import provenance, stain
    from dpa_jax.slides import score as slide_score

    cache.enable()
    folder = pathlib.Path(options.workdir)
    scorer = score.load(folder, batch_size=options.batch, precision=options.precision)
    magnification = options.magnification or provenance.magnification(scorer.config)
    target = None
    if options.stain_target is None:
        target = provenance.stains(folder)
    elif options.stain_target != "none":
        target = stain.load(options.stain_target)
    stains = f"normalised to {target.source}" if target else "left as they are"
    metrics.say(f"tiles at x{magnification}, stains {stains}")
    out = options.out or f"{pathlib.Path(options.slide).stem}_scores"
    with metrics.counting("scoring tiles", "tiles") as show:
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
    plural = "s" * (found["regions"] != 1)
    print(
        f"{found['tiles']:,} tiles, {found['regions']:,} region{plural} above "
        f"{found['threshold']:.4g}: see heatmap.png, scores.tif, regions.geojson and "
        f"tiles.csv in {out}"
    )
    if found["tiles_without_score"]:
        print(
            f"{found['tiles_without_score']:,} tiles have no score: "
            "their stains cannot be estimated"
        )
    weights = scorer.config.perceptual.weights
    if config_lib.uses_vgg(scorer.config) and weights.startswith("random:"):
        print(f"VGG19's weights are random ({weights})")


def _prepare_nih(options) -> None:
    from dpa_jax.datasets import nih_prepare

    with metrics.counting("preparing", "images") as show:
        found = nih_prepare.prepare(
            pathlib.Path(options.source),
            pathlib.Path(options.data_dir),
            options.protocol,
            pathlib.Path(options.lists) if options.lists else None,
            options.jobs,
            options.allow_missing,
            show,
        )
    print(nih_prepare.describe(found))


def _prepare_camelyon16(options) -> None:
    from dpa_jax.datasets import camelyon16_prepare

    stain_target = options.stain_target or camelyon16_prepare.STAIN_TARGET
    with metrics.counting("preparing", "slides") as show:
        found = camelyon16_prepare.prepare(
            options.source,
            options.data_dir,
            lists=options.lists,
            magnification=options.magnification,
            stain_target=stain_target,
            runner=options.runner,
            beam_options=options.beam,
            mpp=options.mpp,
            jobs=options.jobs,
            seed=options.seed,
            parts=options.parts,
            allow_missing=options.allow_missing,
            progress=lambda done, total, _: show(done, total),
        )
    print(found.text())


def _prepare_cifar10_svhn(options) -> None:
    from dpa_jax.datasets import cifar10_svhn

    name = {"svhn": "svhn_cropped"}.get(options.dataset, options.dataset)
    print(cifar10_svhn.prepare(name, options.data_dir, options.source))


def _fetch(options) -> None:
    from dpa_jax.weights import fetch

    with metrics.counting("downloading", "bytes") as show:
        fetch.fetch(
            source=options.source,
            weights_file=options.file,
            statistics_file=options.stats,
            mirror=options.mirror,
            offline=options.offline,
            keep=options.keep,
            progress=show,
        )


def _import(options) -> None:
    from dpa_jax.weights import fetch

    if not options.file and not options.stats:
        raise errors.UsageError("say what to import: FILE, --stats FILE or both")
    fetch.import_files(weights_file=options.file, statistics_file=options.stats)


def _verify(options) -> None:
    from dpa_jax.weights import fetch

    fetch.verify()


def _stats(options) -> None:
    import jax

    from dpa_jax import cache, statistics, vgg
    from dpa_jax.weights import files

    cache.enable()
    layers = options.layers.split(",")
    for layer in layers:
        if layer not in vgg.LAYERS or options.resolution < vgg.stride(layer):
            raise errors.UsageError(
                f"--layers: VGG19 has no {layer} at {options.resolution} pixels"
            )
    if pathlib.Path(options.out).exists():
        raise errors.DpaError(f"{options.out} is already there; give another --out")
    weights = files.load_vgg19(options.weights)
    with metrics.counting("reading images", "images") as show:
        images = data.load(
            options.images,
            data.Preprocessing(options.channels, options.resolution),
            progress=show,
        )
    with metrics.counting("feature statistics", "images") as show:
        found = statistics.feature_statistics(
            jax.device_put(weights),
            images.images,
            dict.fromkeys(layers, options.resolution),
            progress=show,
        )
    source = f"{len(images)} images of {options.images}, weights {options.weights}"
    files.save_statistics(options.out, found, {"source": source})
    print(f"statistics of {', '.join(layers)} over {len(images)} images: {options.out}")


def _import_reference(options) -> None:
    from dpa_jax.interop import workdir_from_reference

    for note in workdir_from_reference.import_checkpoint(
        options.checkpoint, options.workdir, options.weights, options.stats
    ):
        print(f"note: {note}", file=sys.stderr)
    print(
        f"{options.workdir} is ready: dpa-jax score --workdir={options.workdir} IMAGES"
    )


def _doctor(options) -> None:
    import jax

    from dpa_jax import cache, engine
    from dpa_jax.weights import files

    def tell(name: str, value: object) -> None:
        print(f"{name:17s} {value}")

    about = workdir.environment(seed=0)
    tell("python", f"{about['python']} on {platform.platform()}")
    for name, version in about["packages"].items():
        tell(name, version)
    tell("devices", f"{', '.join(about['devices'])} ({about['device_kind']})")
    tell("memory", f"{engine.memory_limit() / 2**30:.1f} GiB a device")
    tell("precision", f"{engine.precision('auto')} unless configured")
    tell("cores", os.cpu_count())
    tell("cache", files.cache_dir())
    tell("compilations", cache.folder())
    for name, path in (
        ("VGG19 weights", files.cached_vgg19()),
        ("statistics", files.cached_statistics()),
    ):
        if path.exists():
            source = files.read_metadata(path).get("source", "of unknown origin")
            tell(name, f"{path} ({source})")
        else:
            tell(name, "not in the cache: dpa-jax weights fetch")
    for extra, module in {
        "torch": "torch",
        "dicom": "pydicom",
        "wsi": "openslide",
        "beam": "apache_beam",
        "tune": "optuna",
    }.items():
        found = importlib.util.find_spec(module) is not None
        tell(
            f"extra {extra}",
            "installed" if found else f"pip install 'dpa_jax[{extra}]'",
        )
    ones = np.ones((8, 8), np.float32)
    total = float(jax.jit(lambda x: (x @ x).sum())(ones))
    if total != 512:
        raise errors.DpaError(f"the device computes wrongly: {total} instead of 512")
    tell("a test program", "ran and was right")

"""What the verbs under weights do."""

import argparse
import pathlib

from dpa_jax import console, data, errors


def fetch(options: argparse.Namespace) -> None:
    """Fills the cache by download, or from files that are brought."""
    from dpa_jax.weights import fetch

    with console.counting("downloading", "bytes") as show:
        fetch.fetch(
            backbone=options.backbone,
            source=options.source,
            weights_file=options.file,
            statistics_file=options.stats,
            mirror=options.mirror,
            offline=options.offline,
            keep=options.keep,
            progress=show,
        )


def import_files(options: argparse.Namespace) -> None:
    """Takes files as what `imagenet` means."""
    from dpa_jax.weights import fetch

    if not options.file and not options.stats:
        raise errors.UsageError("say what to import: FILE, --stats FILE or both")
    fetch.import_files(
        backbone=options.backbone,
        weights_file=options.file,
        statistics_file=options.stats,
    )


def stats(options: argparse.Namespace) -> None:
    """Computes feature statistics over a folder of images."""
    import jax

    from dpa_jax.backbones import base, statistics
    from dpa_jax.devices import compilation_cache
    from dpa_jax.devices.platform import Platform
    from dpa_jax.weights import statistics_files

    compilation_cache.enable()
    backbone, layers = base.named(options.backbone), options.layers.split(",")
    backbone.check_layers(layers, "--layers")
    if pathlib.Path(options.out).exists():
        raise errors.DpaError(f"{options.out} is already there; give another --out")
    weights = backbone.load(options.weights, layers)
    backbone.feature_shapes(weights, layers, options.resolution)
    with console.counting("reading images", "images") as show:
        images = data.load(
            options.images,
            data.Preprocessing(options.channels, options.resolution),
            progress=show,
        )
    with console.counting("feature statistics", "images") as show:
        found = statistics.feature_statistics(
            backbone,
            jax.device_put(weights),
            images,
            dict.fromkeys(layers, options.resolution),
            backend=Platform.here().backend,
            progress=show,
        )
    source = f"{len(images)} images of {options.images}, weights {options.weights}"
    statistics_files.save(options.out, found, {"source": source})
    print(f"statistics of {', '.join(layers)} over {len(images)} images: {options.out}")


def verify(options: argparse.Namespace) -> None:
    """Recomputes what was recorded of the cache."""
    from dpa_jax.weights import verify

    verify.verify()

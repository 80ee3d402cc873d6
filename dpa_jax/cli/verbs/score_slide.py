"""What score-slide does."""

import argparse
import pathlib

from dpa_jax import console
from dpa_jax.cli.verbs import scoring


def score_slide(options: argparse.Namespace) -> None:
    """Scores a whole slide tile by tile."""
    from dpa_jax.devices import compilation_cache
    from dpa_jax.slides import provenance, stain
    from dpa_jax.slides import score as slide_score

    compilation_cache.enable()
    folder = pathlib.Path(options.workdir)
    scorer = scoring.load_run(folder, options)
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
    scoring.warn_random(scorer.config)

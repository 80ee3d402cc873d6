"""What score does."""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from dpa_jax import console, errors
from dpa_jax.cli.verbs import scoring
from dpa_jax.storage import json_files, workdir
from dpa_jax.weights import formats


def score(options: argparse.Namespace) -> None:
    """Scores images, and writes their anomaly maps if asked to."""
    from dpa_jax.devices import compilation_cache
    from dpa_jax.scoring import decisions, maps, scores

    compilation_cache.enable()
    out = _table(options)
    is_stream, visible = formats.is_stream(out), not options.quiet
    formats.check_free(out, options.overwrite)
    for name in options.score:
        scores.check(name)
    scorer = scoring.load_run(options.workdir, options)
    images = scoring.load_images(options.images, options, scorer.config, visible)
    if options.fdr and not scorer.calibration:
        raise errors.UsageError("--fdr needs p-values: run dpa-jax calibrate first")
    decisions.check(scorer.calibration, images)
    scoring.warn_unlike(scorer, images)
    scoring.warn_random(scorer.config)
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
            scoring.warn(warning)
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

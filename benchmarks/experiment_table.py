"""All published experiments, and the table of what our runs of them have reached."""

import argparse
import dataclasses
import json
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from benchmarks import measure
from dpa_jax import errors
from dpa_jax.config import flat
from dpa_jax.storage import config_files, evaluations, workdir
from dpa_jax.weights import formats

PROTOCOLS = ("subset", "pa", "ap")
KINDS = ("with_l1", "with_adversarial", "with_adversarial_l1")
EXPERIMENTS = {
    **dict.fromkeys(
        ("nih", "camelyon16"),
        ("pg", "wo_pg", "unsupervised", "l1_unsupervised")
        + tuple(f"{kind}_{weight}" for kind in KINDS for weight in ("0.1", "1")),
    ),
    **dict.fromkeys(("cifar10", "svhn"), tuple(f"class{i}" for i in range(10))),
}
# ROC AUC, mean of three seeds (Shvetsova et al., 2021)
PUBLISHED = {
    ("camelyon16", "pg"): 0.934,
    ("nih subset", "pg"): 0.926,
    ("nih subset", "wo_pg"): 0.920,
    ("cifar10", "all classes"): 0.839,
}
EVALUATION = "published-test"  # the name of a run's evaluation on its own test set
COLUMNS = {  # of the table, with the format in which they are shown
    "dataset": "s",
    "experiment": "s",
    "runs": "d",
    "roc_auc": ".4f",
    "sd": ".4f",
    "published": ".3f",
    "note": "s",
}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One row of the table: a published configuration, to be run with three seeds."""

    dataset: str
    protocol: str  # of NIH, else empty
    name: str

    @property
    def group(self) -> str:
        """The data set, with its protocol if it has several."""
        return f"{self.dataset} {self.protocol}".strip()

    def config(self, seed: int) -> ml_collections.ConfigDict:
        """Returns the published configuration of a seed, 0 to 2."""
        parts = (self.protocol, self.name, f"seed{seed}")
        argument = ",".join(part for part in parts if part)
        return config_files.load(f"configs/{self.dataset}.py:{argument}")

    def workdir(self, out: pathlib.Path, seed: int) -> pathlib.Path:
        """Returns where a run lies."""
        return out / self.group.replace(" ", "_") / self.name / f"seed{seed}"


def table(
    out: pathlib.Path, failed: Mapping[pathlib.Path, str] | None = None
) -> list[dict[str, Any]]:
    """Puts together what all finished runs below a folder have reached.

    Args:
      out: the folder.
      failed: workdirs of runs that failed, with the reason.

    Returns:
      A row for each experiment that was tried, and one of the mean over the classes of
      CIFAR10 and SVHN if all ten are there: see `COLUMNS`; `runs` is how many seeds
      there are, `seeds` what each reached, `sd` their standard deviation (of the n - 1
      kind).
    """
    rows: list[dict[str, Any]] = []
    for dataset, names in EXPERIMENTS.items():
        for protocol in PROTOCOLS if dataset == "nih" else ("",):
            found = [
                _row(Experiment(dataset, protocol, name), out, failed or {})
                for name in names
            ]
            found = [row for row in found if row["runs"] or row["note"]]
            rows += found
            if names[0] == "class0" and sum(bool(r["runs"]) for r in found) == 10:
                rows.append(_mean_row(found))
    return rows


def _row(
    one: Experiment, out: pathlib.Path, failed: Mapping[pathlib.Path, str]
) -> dict[str, Any]:
    seeds, notes = {}, []
    for seed in range(3):
        folder = one.workdir(out, seed)
        if folder in failed:
            notes.append(f"seed{seed} failed: {failed[folder]}")
        if evaluation(folder).exists():
            result = read(evaluation(folder))
            seeds[f"seed{seed}"] = result["roc_auc"]
            if result["random_weights"]:
                notes.append(f"VGG19's weights are random ({result['vgg_weights']})")
            notes += _changes(workdir.read_config(folder), one.config(seed))
    return _summary(one.group, one.name, seeds, notes)


def _mean_row(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Averages the classes, each seed for itself; a seed that some lack is left out."""
    common = set.intersection(*(set(row["seeds"]) for row in rows))
    seeds = {
        seed: statistics.fmean(row["seeds"][seed] for row in rows)
        for seed in sorted(common)
    }
    notes = [note for row in rows for note in row["note"].split("; ") if note]
    return _summary(rows[0]["dataset"], "all classes", seeds, notes)


def _summary(
    group: str, name: str, seeds: Mapping[str, float], notes: Sequence[str]
) -> dict[str, Any]:
    values = list(seeds.values())
    return {
        "dataset": group,
        "experiment": name,
        "runs": len(values),
        "roc_auc": statistics.fmean(values) if values else None,
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "published": PUBLISHED.get((group, name)),
        "note": "; ".join(dict.fromkeys(notes)),
        "seeds": dict(seeds),
    }


def _changes(
    config: ml_collections.ConfigDict, published: ml_collections.ConfigDict
) -> list[str]:
    """Names what a run's settings differ in from the published ones."""
    usual = flat(published)
    changes = [
        f"{name}={value}"
        for name, value in sorted(flat(config).items())
        if value != usual[name] and name != "data.data_dir"
    ]
    return [f"not the published settings: {' '.join(changes)}"] if changes else []


def evaluation(folder: pathlib.Path) -> pathlib.Path:
    """Returns the file that a run's evaluation leaves."""
    return evaluations.folder(folder, EVALUATION) / evaluations.METRICS


def read(path: pathlib.Path) -> dict[str, Any]:
    """Reads a JSON file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise errors.DpaError(f"{path} cannot be read: {error}") from None


def write(
    out: pathlib.Path,
    rows: Sequence[Mapping[str, Any]],
    argv: Sequence[str],
    args: argparse.Namespace,
) -> None:
    """Writes table.csv, table.md and results.json, each atomically.

    Args:
      out: the folder; made if absent.
      rows: see `table`.
      argv: as given, for the command.
      args: the settings of the call.
    """
    cells = [
        ["" if row[name] is None else row[name] for name in COLUMNS] for row in rows
    ]
    out.mkdir(parents=True, exist_ok=True)
    workdir.write_csv(out / "table.csv", tuple(COLUMNS), cells)
    text = [COLUMNS, ["---"] * len(COLUMNS), *map(_in_markdown, cells)]
    with formats.replacing(out / "table.md") as temporary:
        temporary.write_text(
            "".join(f"| {' | '.join(line)} |\n" for line in text), encoding="utf-8"
        )
    settings = argparse.Namespace(**{**vars(args), "out": str(out / "results.json")})
    measure.write("experiments", settings, argv, rows)


def _in_markdown(cells: Sequence[Any]) -> list[str]:
    return [
        f"{cell:.4f}" if isinstance(cell, float) else str(cell).replace("|", "/")
        for cell in cells
    ]

"""From the files as distributed to prepared data sets: `dpa-jax prepare nih`."""

import contextlib
import dataclasses
import pathlib
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence

from dpa_jax.datasets import nih_collect, nih_protocols, nih_source, writing
from dpa_jax.datasets.nih_chest_xray14 import NihChestXray14
from dpa_jax.errors import DpaError


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What `prepare` has made.

    Attributes:
      counts: by the name of a data set, then of a split: normal and abnormal images.
      reused: of the data sets that were there already, how many images they lack.
      problems: images left out, and images of another size.
      data_dir: where the data sets are.
      table: the CSV file that labels and metadata are from.
    """

    counts: Mapping[str, Mapping[str, tuple[int, int]]]
    reused: Mapping[str, int]
    problems: Sequence[nih_source.Problem]
    data_dir: pathlib.Path
    table: pathlib.Path


def prepare(
    source: pathlib.Path,
    data_dir: pathlib.Path,
    protocol: str = "all",
    lists: pathlib.Path | None = None,
    jobs: int = 0,
    allow_missing: bool = False,
    allow_resized: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Prepared:
    """Prepares NIH ChestX-ray14 for TFDS.

    May be interrupted at any moment; called again it goes on where it was, and
    writes the same files.

    Args:
      source: the folder that everything lies below, as distributed.
      data_dir: the folder of TFDS data sets to write to.
      protocol: `subset`, `pa`, `ap`, `all` (those three and both views together),
        `native` or `custom`.
      lists: the folder of the lists of the subset, None for the published ones, or of
        a custom protocol.
      jobs: decoding threads; 0 for one a core.
      allow_missing: whether to go on without images that are missing or unreadable.
      allow_resized: whether to go on with images that are not 1024 x 1024, such as
        those of a mirror that resized them.
      progress: called with the number of images decoded, and of all.

    Returns:
      What was made.

    Raises:
      UsageError: the protocol is unknown or does not go with `lists`.
      DpaError: something is missing, unreadable or contradictory, or a data set is
        there already that was made of other images.
    """
    configs = nih_protocols.configs_of(protocol, lists is not None)
    allowed = {"missing", "unreadable"} if allow_missing else set()
    allowed |= {"size"} if allow_resized else set()
    cache_dir = nih_collect.cache_dir(data_dir, source, protocol)
    try:
        with contextlib.ExitStack() as stack:
            plan = nih_collect.plan(source, configs, lists)
            for name in plan.requested:
                held = writing.locked(data_dir, NihChestXray14.name, name)
                stack.enter_context(held)
            builders = {
                name: NihChestXray14(config=name, data_dir=data_dir)
                for name in plan.requested
            }
            reused = {
                name: _check_same(builder, plan.requested[name], allowed)
                for name, builder in builders.items()
                if builder.data_path.exists()
            }
            left = {n: plan.requested[n] for n in builders if n not in reused}
            problems: Sequence[nih_source.Problem] = ()
            if left:
                collected = nih_collect.collect(
                    dataclasses.replace(plan, requested=left),
                    cache_dir,
                    jobs,
                    allowed,
                    progress,
                )
                problems = collected.problems
                for name in left:
                    builders[name].collected = collected
                    writing.write(builders[name])
            if cache_dir.exists():
                shutil.rmtree(cache_dir)
    except OSError as error:
        raise DpaError(f"{error.filename or data_dir}: {error.strerror}") from error
    return Prepared(
        counts={
            name: {part: tuple(n) for part, n in made.info.metadata["counts"].items()}
            for name, made in builders.items()
        },
        reused=reused,
        problems=problems,
        data_dir=data_dir,
        table=plan.source.table("entries"),
    )


def describe(prepared: Prepared) -> str:
    """Returns in a few lines what was made, where, and what was left out."""
    lines = []
    for name, splits in prepared.counts.items():
        parts = [
            f"{part} {normal:,} normal, {abnormal:,} abnormal"
            for part, (normal, abnormal) in splits.items()
        ]
        if name in prepared.reused:
            parts.append(f"was there already, without {prepared.reused[name]:,} images")
        lines.append(f"{NihChestXray14.name}/{name}: {'; '.join(parts)}")
    lines.append(f"in {prepared.data_dir}, labels as in {prepared.table}")
    if prepared.problems:
        lines.append(nih_collect.summarize(prepared.problems))
        lines.append("all are listed in problems.csv in the folder of each data set")
    return "\n".join(lines)


def _check_same(
    builder: NihChestXray14, splits: nih_protocols.Splits, allowed: Collection[str]
) -> int:
    """Checks that a data set that is there is the one asked for.

    Returns:
      How many images it lacks.
    """
    made, fault = builder.info.metadata, ""
    if made["fingerprint"] != nih_protocols.fingerprint(splits):
        fault = "from other lists or labels; name another --data_dir"
    elif made["left_out"] and "missing" not in allowed:
        fault = (
            f"without {made['left_out']:,} images that were missing or unreadable; "
            "accept it by --allow-missing"
        )
    elif made["resized"] and "size" not in allowed:
        fault = (
            f"from {made['resized']:,} images that were not 1024 x 1024; accept it by "
            "--allow-resized"
        )
    if fault:
        raise DpaError(
            f"{builder.data_path} was prepared {fault}, or delete it to prepare it anew"
        )
    return made["left_out"]

"""One file of patches for each slide, made by many processes or by Apache Beam."""

import concurrent.futures.process
import dataclasses
import hashlib
import io
import json
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from dpa_jax.data import filesystems
from dpa_jax.datasets import camelyon16_patches
from dpa_jax.errors import DpaError, UsageError

RUNNERS = ("multiprocess", "direct", "spark", "flink", "dataflow")

# (slides done, slides in all, the name of the last)
Progress = Callable[[int, int, str], None]


@dataclasses.dataclass(frozen=True)
class PartTask:
    """A slide to cut, how, and the path or URL of the file to write.

    Where the slide cannot be cut, the reason is written beside it.
    """

    task: camelyon16_patches.SlideTask
    settings: camelyon16_patches.Settings
    path: str

    @property
    def failure(self) -> str:
        """Path or URL of the reason."""
        return f"{self.path}.failed"


def plan(
    tasks: Sequence[camelyon16_patches.SlideTask],
    settings: camelyon16_patches.Settings,
    sizes: Mapping[str, int],
    folder: str | os.PathLike,
) -> list[PartTask]:
    """Names a file for each task after all that decides what is in it.

    Args:
      tasks: what to cut.
      settings: how.
      sizes: bytes of each file, so that a slide that was replaced is cut anew.
      folder: where the files go; a path or URL that every worker reaches.
    """
    result = []
    for task in tasks:
        files = [
            (path, sizes.get(path))
            for path in (task.path, task.annotation, task.mask)
            if path
        ]
        what = json.dumps(
            [dataclasses.asdict(settings), dataclasses.asdict(task), files],
            sort_keys=True,
            default=np.ndarray.tolist,
        )
        digest = hashlib.sha256(what.encode()).hexdigest()[:16]
        name = f"{task.split}-{task.slide}-{digest}.npz"
        result.append(PartTask(task, settings, f"{os.fspath(folder)}/{name}"))
    return result


def make_part(part: PartTask) -> None:
    """Cuts one slide and writes its patches, or why that failed, unless it is done."""
    if filesystems.exists(part.path):
        return
    try:
        cut = camelyon16_patches.cut(part.task, part.settings)
    except UsageError:
        raise
    except DpaError as error:
        filesystems.write(part.failure, str(error).encode())
        return
    buffer = io.BytesIO()
    np.savez(
        buffer,
        images=cut.images,
        corners=cut.corners,
        fractions=cut.fractions,
        notes=np.array(json.dumps(list(cut.notes))),
    )
    filesystems.write(part.path, buffer.getvalue())


def read_part(part: PartTask) -> camelyon16_patches.Patches | str:
    """Reads the patches of one slide, or why there are none."""
    if not filesystems.exists(part.path):
        return filesystems.read(part.failure).decode()
    content = io.BytesIO(filesystems.read(part.path))
    with np.load(content, allow_pickle=False) as arrays:
        notes = json.loads(str(arrays["notes"]))
        return camelyon16_patches.Patches(**{**arrays, "notes": notes})


def run(
    parts: Sequence[PartTask],
    runner: str = "multiprocess",
    jobs: int = 0,
    beam_options: Sequence[str] = (),
    progress: Progress = lambda done, total, slide: None,
) -> None:
    """Makes all parts that are not there yet.

    Args:
      parts: from `plan`.
      runner: one of `RUNNERS`; all but the first are Apache Beam's.
      jobs: processes of `multiprocess`; 0 for one per core.
      beam_options: flags of Apache Beam, such as `--project=...`.
      progress: called after each slide, by `multiprocess` alone.

    Raises:
      UsageError: there is no such runner.
      DpaError: Apache Beam is not installed, its runner failed, or a process was ended.
    """
    if runner not in RUNNERS:
        raise UsageError(f"--runner is {runner!r}; it may be {', '.join(RUNNERS)}")
    if beam_options and runner == "multiprocess":
        raise UsageError("flags of Apache Beam need a --runner of it, such as direct")
    if runner != "multiprocess":
        _run_beam(parts, f"{runner.capitalize()}Runner", beam_options)
        return
    left = [part for part in parts if not filesystems.exists(part.path)]
    before = len(parts) - len(left)
    workers = min(jobs or os.cpu_count() or 1, len(left))
    if workers <= 1:
        for done, part in enumerate(left, before + 1):
            make_part(part)
            progress(done, len(parts), part.task.slide)
        return
    # JAX may have started threads, which a forked process would not survive.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, context) as pool:
        futures = {pool.submit(make_part, part): part for part in left}
        finished = concurrent.futures.as_completed(futures)
        try:
            for done, future in enumerate(finished, before + 1):
                future.result()
                progress(done, len(parts), futures[future].task.slide)
        except concurrent.futures.process.BrokenProcessPool as error:
            raise DpaError(
                "a process that cuts slides was ended from outside, as the system does "
                "when memory runs out: try fewer --jobs; what was cut is kept"
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _run_beam(parts: Sequence[PartTask], runner: str, flags: Sequence[str]) -> None:
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise DpaError(
            f"the runner {runner} needs Apache Beam: pip install 'dpa_jax[beam]'"
        ) from None
    options = PipelineOptions(list(flags), runner=runner)
    try:
        with beam.Pipeline(options=options) as pipeline:
            _ = (
                pipeline
                | "Slides" >> beam.Create(list(parts))
                | "Spread" >> beam.Reshuffle()
                | "Cut" >> beam.Map(make_part)
            )
    except DpaError:
        raise
    except Exception as error:  # each runner raises its own
        raise DpaError(f"Apache Beam's {runner} failed: {error}") from error

"""How fast `dpa-jax prepare nih` is, and that it goes on after kill -9.

Makes up PNG files in archives, .tar.gz and .zip by turns, with tables that make all of
them part of the data set, and prepares them in a process of its own: once without
interruption, and once killed half-way and started again, which must give the same
bytes. The time is that of the whole preparation, the start of Python and the plan
included.
"""

import csv
import functools
import hashlib
import io
import itertools
import multiprocessing
import os
import pathlib
import signal
import tarfile
import tempfile
import time
import zipfile
from typing import Any

from benchmarks import input as files
from benchmarks import measure
from dpa_jax import errors

COLUMNS = {
    "run": "s",
    "images": ",d images",
    "seconds": ",.1f s",
    "images_per_second": ",.1f images/s",
    "megabytes_per_second": ",.1f MB/s of files",
}
_DRAWN = 64  # pictures, each of which is many files
_HEADER = (
    *("Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age"),
    *("Patient Gender", "View Position", "OriginalImage[Width", "Height]"),
)


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; see `measure.main`."""
    return measure.main("prepare", run, argv)


def run(argv: list[str]) -> None:
    """Measures what the arguments ask for, prints and writes it.

    Raises:
      DpaError: what was gone on with differs from what was not interrupted.
    """
    parser = measure.arguments("prepare", __doc__)
    add = parser.add_argument
    add("--images", type=int, default=10_000, help="PNG files")
    add("--side", type=int, default=1024, help="of them, in pixels")
    add("--archives", type=int, default=12, help="that hold them")
    add("--jobs", type=int, default=0, help="decoding threads; 0 for one a core")
    add("--folder", metavar="DIR", help="for files, which are deleted; on a large disk")
    args = parser.parse_args(argv)
    if not 2 <= args.archives <= args.images or args.side < 8:
        raise errors.UsageError(
            "--archives must be at least 2, --images as many and --side at least 8"
        )
    load = measure.load_before()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        root = pathlib.Path(folder)
        size = write_source(root / "source", args.images, args.archives, args.side)
        timed = functools.partial(_timed, root, args, size)
        rows = [timed("whole", root / "whole")]
        killed = prepare(root / "source", root / "killed", args.jobs, args.images // 2)
        if killed != -signal.SIGKILL:
            raise errors.DpaError(f"the preparation ended by itself ({killed})")
        rows.append(timed("after kill -9 half-way", root / "killed"))
        if contents(root / "whole") != contents(root / "killed"):
            raise errors.DpaError("after kill -9 the data set is another")
    measure.show(rows, COLUMNS)
    measure.write("prepare", args, argv, rows, load_before=load)


def _timed(root: pathlib.Path, args, size: int, name: str, data_dir: pathlib.Path):
    begun = time.perf_counter()
    if status := prepare(root / "source", data_dir, args.jobs):
        raise errors.DpaError(f"the preparation failed ({status})")
    spent = time.perf_counter() - begun
    left = args.images if name == "whole" else args.images - args.images // 2
    row: dict[str, Any] = {"run": name, "images": left, "seconds": spent}
    row["images_per_second"] = left / spent
    row["megabytes_per_second"] = size * left / args.images / spent / 1e6
    return row


def write_source(root: pathlib.Path, count: int, archives: int, side: int) -> int:
    """Writes images and tables as distributed; returns the bytes of the images."""
    pictures = root.parent / "pictures"
    pictures.mkdir()
    files.draw_files(pictures, min(_DRAWN, count), side, 1)
    contents = [path.read_bytes() for path in sorted(pictures.iterdir())]
    root.mkdir()
    names = [f"{number + 1:08d}_000.png" for number in range(count)]
    sources = dict(zip(names, itertools.cycle(contents), strict=False))
    for number in range(archives):
        _write_archive(root, number, {n: sources[n] for n in names[number::archives]})
    with open(root / "Data_Entry_2017.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(_HEADER)
        for number, name in enumerate(names):
            finding = ("No Finding", "Mass")[number % 2]
            writer.writerow([name, finding, 0, number + 1, 50, "F", "PA", side, side])
    half = count // 2
    (root / "train_val_list.txt").write_text("\n".join(names[:half]))
    (root / "test_list.txt").write_text("\n".join(names[half:]))
    return sum(map(len, sources.values()))


def _write_archive(root: pathlib.Path, number: int, members: dict[str, bytes]) -> None:
    stem = root / f"images_{number + 1:03d}"
    if number % 2:
        with zipfile.ZipFile(f"{stem}.zip", "w") as packed:
            for name, content in members.items():
                packed.writestr(f"images/{name}", content)
        return
    with tarfile.open(f"{stem}.tar.gz", "w:gz", compresslevel=1) as packed:
        for name, content in members.items():
            member = tarfile.TarInfo(f"images/{name}")
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))


def prepare(
    source: pathlib.Path, data_dir: pathlib.Path, jobs: int, stop: int = -1
) -> int | None:
    """Prepares in a process of its own, which kills itself after so many images.

    Returns:
      The exit code of the process.
    """
    spawn = multiprocessing.get_context("spawn")
    process = spawn.Process(target=_prepare, args=(source, data_dir, jobs, stop))
    process.start()
    process.join()
    return process.exitcode


def _prepare(source, data_dir, jobs: int, stop: int) -> None:
    from dpa_jax.datasets import nih_prepare

    def progress(done: int, total: int) -> None:
        if done == stop:
            os.kill(os.getpid(), signal.SIGKILL)

    nih_prepare.prepare(
        source, data_dir, "pa", None, jobs, allow_resized=True, progress=progress
    )


def contents(data_dir: pathlib.Path) -> dict[str, str]:
    """Returns a digest of every file of a data set, by its path."""
    return {
        str(path.relative_to(data_dir)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in data_dir.rglob("*")
        if path.is_file() and path.suffix != ".lock"  # which names its process
    }


if __name__ == "__main__":
    raise SystemExit(main())

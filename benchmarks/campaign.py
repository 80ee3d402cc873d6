"""All that is worth measuring on a device that is lent for minutes, best first.

    python -m benchmarks.campaign --minutes=9 --out=DIR

Each job has a share of the time and writes its result when it has it; one whose share
is more than what is left is not begun. The same command with --resume=DIR, where the
results of before are, goes on with what is missing.
"""

import argparse
import dataclasses
import importlib
import importlib.util
import os
import pathlib
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence

from benchmarks import measure
from dpa_jax import errors, stages
from dpa_jax.storage import config_files

CONFIGS = ("configs/nih.py:subset,pg", "configs/camelyon16.py:pg")
PARITY = "tests/test_parity.py"
# what training writes with, beyond jax, flax, optax, numpy and ml_collections
WRITERS = ("PIL", "safetensors", "tensorboardX")


@dataclasses.dataclass(frozen=True)
class Job:
    """One thing to measure.

    Attributes:
      name: of its result, `NAME.json`.
      share: of the minutes, which it is begun with at least.
      run: given the file to write; returns 0 if it did, see `measure.main`.
    """

    name: str
    share: float
    run: Callable[[pathlib.Path], int]


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; see `measure.main`."""
    return measure.main("campaign", run, argv)


def run(argv: list[str]) -> None:
    """Runs the jobs that fit.

    Raises:
      DpaError: a job failed; the others ran.
    """
    args = arguments().parse_args(argv)
    if not args.minutes > 0:
        raise errors.UsageError(f"--minutes is {args.minutes}, not a number above 0")
    listed = jobs(args)
    chosen = measure.one_of("--jobs", args.jobs, [job.name for job in listed])
    if args.baselines != "none":
        measure.share_gpu()
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    work(
        [job for job in listed if job.name in chosen],
        60 * args.minutes,
        out,
        pathlib.Path(args.resume or args.out),
    )


def arguments() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.campaign", description=__doc__
    )
    add = parser.add_argument
    add("--minutes", type=float, required=True, help="that there are")
    add("--out", required=True, metavar="DIR", help="where the results go")
    add("--resume", metavar="DIR", help="where the results of before are")
    add("--jobs", default="all", help="some of them, by name")
    add("--config", action="append", metavar="FILE[:ARGS]", help="of runs; repeatable")
    add("--batch", type=int, default=128, help="images per step")
    add("--images", type=int, default=4096, help="training images")
    add("--baselines", default="published,tuned", help="none leaves PyTorch out")
    return parser


def work(
    listed: Sequence[Job], seconds: float, out: pathlib.Path, before: pathlib.Path
) -> None:
    """Runs the jobs whose results are missing, as long as there is time.

    Args:
      listed: in order of what they are worth.
      seconds: that there are.
      out: where results go.
      before: where results may be already.

    Raises:
      DpaError: a job failed; the others ran.
    """
    begun, failed, left = time.monotonic(), [], []
    for job in listed:
        path = out / f"{job.name}.json"
        if any((folder / path.name).exists() for folder in (before, out)):
            continue
        if time.monotonic() - begun + job.share * seconds > seconds:
            left.append(job.name)
            continue
        print(f"\n{job.name}", flush=True)
        # what is cut off is not taken for a result
        unfinished = out / f"{job.name}.json.unfinished"
        try:
            status = job.run(unfinished)
        except Exception:  # such as no memory left: the other jobs still say much
            traceback.print_exc()
            status = 1
        if status:
            failed.append(job.name)
        else:
            unfinished.rename(path)
        print(f"{job.name}: {time.monotonic() - begun:.0f} s so far", flush=True)
    if left:
        print(f"\nNo time for {', '.join(left)}: go on with --resume={out}")
    if failed:
        raise errors.DpaError(f"{', '.join(failed)} failed; see above")


def jobs(args: argparse.Namespace) -> list[Job]:
    """Returns all jobs in order of what they are worth.

    Shares are of nine minutes of an H100, where a stage's compiling alone takes 8 to 18
    s ours and 22 to 40 s tuned (benchmarks/results).
    """
    first, *others = args.config or CONFIGS
    batch, images = f"--batch={args.batch}", f"--images={args.images}"
    ours = [f"--config={first}", batch, images]
    turns = [f"--seconds={args.minutes / 18}", "--repeats=5"]  # 0.5 s in nine minutes
    baselines = f"--baselines={args.baselines}"
    plan = stages.schedule(config_files.load(first))
    final = f"--stages={plan[-1].name}"
    low = [stage.name for stage in plan if stage.resolution <= 32]
    missing = [name for name in WRITERS if importlib.util.find_spec(name) is None]
    whole = ["--through=programs"] if missing else []
    return [
        Job("parity", 0.1, parity),
        _job("precision", 0.1, "precision", *ours, final),
        _job("kept_programs", 0.08, "kept_programs", *ours, final),
        _job("autotune", 0.2, "autotune", *ours, final),
        *_stages(first, batch, images, *turns, baselines, "--arranged=blocks=False"),
        _job("kernels", 0.06, "kernels", *ours, final),
        *(
            job
            for other in others
            for job in _stages(other, batch, images, *turns, baselines)
        ),
        _job("score", 0.12, "score", *ours, *turns, baselines),
        _job("end_to_end", 0.25, "end_to_end", *ours, "--steps-scale=0.02", *whole),
        _job(
            *("population", 0.3, "population", *ours, *turns),
            *("--members=1,8", f"--stages={','.join(low)}"),
        ),
        _job("phantom_auc", 0.3, "phantom_auc"),
    ]


def _job(name: str, share: float, program: str, *arguments: str) -> Job:
    def run(path: pathlib.Path) -> int:
        # imported late: some need more packages than others
        main = importlib.import_module(f"benchmarks.{program}").main
        return main([*arguments, f"--out={path}"])

    return Job(name, share, run)


def _stages(config: str, *arguments: str) -> list[Job]:
    """Returns a job for each stage of a run, the most expensive first."""
    stem = pathlib.Path(config.partition(":")[0]).stem
    return [
        _job(
            *(f"{stem}_{stage.name}", 0.12, "train_step", f"--config={config}"),
            *(f"--stages={stage.name}", *arguments),
        )
        for stage in reversed(stages.schedule(config_files.load(config)))
    ]


def parity(path: pathlib.Path) -> int:
    """Compares with the published code's arrays, by the tests that do so on a CPU."""
    workers = str(min(8, os.cpu_count() or 1))
    command = [sys.executable, "-m", "pytest", "-p", "xdist", "-n", workers]
    env = {
        **os.environ,
        # each takes what memory it needs, beside the others
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        # others that happen to be installed may warn, which is an error here
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    done = subprocess.run(
        [*command, "-rA", PARITY], capture_output=True, text=True, env=env
    )
    print(done.stdout[-2000:], done.stderr[-2000:])
    lines = [line for line in done.stdout.splitlines() if line.startswith("PASSED")]
    rows = [{"test": line.split(maxsplit=1)[1]} for line in lines]
    namespace = argparse.Namespace(out=str(path))
    measure.write("parity", namespace, [], rows, summary=done.stdout.splitlines()[-1])
    return done.returncode


if __name__ == "__main__":
    raise SystemExit(main())

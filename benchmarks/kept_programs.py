"""Whether a stage's program that was kept on disk runs in another process.

Two processes compile the same stage, one after the other, with XLA's options of the
platform and one folder for compiled programs: the second finds it there. On a GPU it
may fail, see `devices/compilation_cache.py`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax

from benchmarks import measure, problem
from dpa_jax.devices.platform import Platform
from dpa_jax.ops import compute
from dpa_jax.stages import select
from dpa_jax.training import autotune

COLUMNS = {
    "process": "s",
    "is_loaded": "",
    "compile_s": ".1f compile s",
    "ms_per_step": ",.3f ms/step",
    "failed": "s",
}


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; see `measure.main`."""
    return measure.main("kept_programs", run, argv)


def run(argv: list[str]) -> None:
    """Runs both processes, prints and writes what they found; or is one of them."""
    parser = measure.arguments("kept_programs", __doc__)
    add = parser.add_argument
    add("--config", default="configs/nih.py:subset,pg", metavar="FILE[:ARGS]")
    add("--batch", type=int, help="images per step; as configured if left out")
    add("--stages", default="64_stabilization", help="the name of one")
    add("--images", type=int, default=4096, help="training images, on the device")
    add("--folder", metavar="DIR", help="of compiled programs: be one of the processes")
    args = parser.parse_args(argv)
    if args.folder:
        print(json.dumps(measured(args)))
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            {"process": name, **in_a_process([*argv, f"--folder={folder}"])}
            for name in ("first", "second")
        ]
    measure.show(rows, COLUMNS)
    measure.write("kept_programs", args, argv, rows, note=problem.NOTE)


def in_a_process(argv: list[str]) -> dict[str, Any]:
    """Returns what `measured` does in a process of its own, or why it failed."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.kept_programs", *argv],
        # beside this process, which may hold most of a GPU's memory
        env={**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """Compiles a stage, or loads it from the folder, and times its steps."""
    platform = Platform.here()  # with all options: no folder is set yet
    jax.config.update("jax_compilation_cache_dir", args.folder)
    given = problem.make(args.config, args.images, "random:0", args.batch)
    precision = compute.resolve("auto", platform.backend)
    setup = given.setup(precision, platform=platform)
    (stage,) = select(given.plan, args.stages)
    images, frozen = setup.resident_images(), setup.resident_frozen()
    hits = []

    def listen(event: str, **_: Any) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            hits.append(event)

    jax.monitoring.register_event_listener(listen)
    begun = time.perf_counter()
    setup.compile(stage)
    seconds, is_loaded = time.perf_counter() - begun, bool(hits)
    step = autotune.time_stage(setup, stage, images, frozen, platform)
    return {"is_loaded": is_loaded, "compile_s": seconds, "ms_per_step": 1e3 * step}


if __name__ == "__main__":
    raise SystemExit(main())

"""Speed of a training step on 1, 2, ... devices of this machine.

Each number of devices is a process of its own. On CPU `--virtual-devices=N` divides the
processor into N devices, which share its cores: that shows what dividing a batch costs,
not what more devices bring.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

from benchmarks import measure, problem, train_step
from dpa_jax import errors

COLUMNS = {
    "stage": "s",
    "devices": "d devices",
    "batch": "d",
    "ms_per_step": ",.3f ms/step",
    "images_per_second": ",.0f images/s",
    "efficiency": ".1%",
}


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; see `measure.main`."""
    return measure.main("scaling", run, argv)


def run(argv: list[str]) -> None:
    """Measures what the arguments ask for, prints and writes it."""
    parser = measure.arguments("scaling", __doc__)
    add = parser.add_argument
    add("--config", default="configs/nih.py:subset,wo_pg", metavar="FILE[:ARGS]")
    add("--batch", type=int, default=128, help="images per step on all devices")
    add("--weak", action="store_true", help="--batch is of each device")
    add("--stages", default="all", help="all, or names such as 64_stabilization,...")
    add("--devices", default="1,2,4,8", help="numbers of devices to compare")
    add("--virtual-devices", type=int, default=0, metavar="N", help="of a CPU")
    add("--precision", default="auto", choices=train_step.PRECISIONS)
    add("--repeats", type=int, default=5, help="turns of each number of devices")
    add("--seconds", type=float, default=0.5, help="that one turn takes, about")
    add("--images", type=int, default=4096, help="training images, on every device")
    args = parser.parse_args(argv)
    load = measure.load_before()
    try:
        counts = sorted({int(count) for count in args.devices.split(",")})
    except ValueError:
        raise errors.UsageError(f"--devices is {args.devices}; write 1,2,4") from None
    there = args.virtual_devices or accelerators()
    wanted, counts = counts, [count for count in counts if 0 < count <= there]
    if not counts:
        raise errors.UsageError(f"--devices={args.devices}: there are {there}")
    if wanted != counts:
        print(f"there are {there} devices: measuring {', '.join(map(str, counts))}")
    print(problem.NOTE)
    rows: list[dict[str, Any]] = []
    for count in counts:
        rows += one_count(args, count)
        alone = {row["stage"]: row for row in rows if row["devices"] == counts[0]}
        for row in rows:
            base = alone[row["stage"]]
            more = row["devices"] / base["devices"]
            row["efficiency"] = (
                row["images_per_second"] / base["images_per_second"] / more
            )
    measure.show(rows, COLUMNS)
    measure.write("scaling", args, argv, rows, load_before=load, note=problem.NOTE)


def accelerators() -> int:
    """Counts this machine's GPUs in another process, which alone touches them.

    Raises:
      UsageError: there are none, or they are not GPUs.
    """
    program = "import jax; print(jax.default_backend(), jax.local_device_count())"
    backend, count = _output([sys.executable, "-c", program], dict(os.environ)).split()
    if backend != "gpu":
        raise errors.UsageError(
            f"JAX computes on {backend} here; this benchmark compares numbers of GPUs, "
            "or on a CPU those of --virtual-devices=N"
        )
    return int(count)


def one_count(args, count: int) -> list[dict[str, Any]]:
    """Runs `benchmarks.train_step` on some devices; returns its rows."""
    environment = dict(os.environ)
    if args.virtual_devices:
        flags = environment.get("XLA_FLAGS", "")
        divide = f"--xla_force_host_platform_device_count={count}"
        environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{flags} {divide}"}
    else:
        shown = environment.get("CUDA_VISIBLE_DEVICES")
        names = shown.split(",") if shown else [str(i) for i in range(count)]
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(names[:count])
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "rows.json"
        command = [
            *(sys.executable, "-m", "benchmarks.train_step", "--baselines=none"),
            f"--config={args.config}",
            f"--batch={args.batch * (count if args.weak else 1)}",
            f"--stages={args.stages}",
            f"--precision={args.precision}",
            f"--repeats={args.repeats}",
            f"--seconds={args.seconds}",
            f"--images={args.images}",
            f"--out={out}",
        ]
        _output(command, environment)
        rows = json.loads(out.read_text())["rows"]
    return [{**row, "devices": count} for row in rows]


def _output(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise errors.DpaError(f"{' '.join(command[1:4])}: {last}")
    return done.stdout


if __name__ == "__main__":
    raise SystemExit(main())

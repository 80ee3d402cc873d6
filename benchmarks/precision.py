"""How far a step's loss and gradient are from those of float32, on this device.

On a GPU or TPU float32 is compared with float32 on the CPU, by the CPU's arrangement of
convolutions, and bfloat16 with float32; on a CPU bfloat16 alone.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import measure, problem, train_step
from dpa_jax import step
from dpa_jax.devices.platform import Platform
from dpa_jax.images import tiles
from dpa_jax.stages import Stage, select

COLUMNS = {
    "stage": "s",
    "precision": "s",
    "against": "s",
    "loss": ".6f",
    "loss_error": ".1e loss error",
    "gradient_error": ".1e gradient error",
    "gradient_cosine": ".6f gradient cosine",
}


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; see `measure.main`."""
    return measure.main("precision", run, argv)


def run(argv: list[str]) -> None:
    """Compares what the arguments ask for, prints and writes it."""
    parser = measure.arguments("precision", __doc__)
    add = parser.add_argument
    add("--config", default="configs/nih.py:subset,pg", metavar="FILE[:ARGS]")
    add("--batch", type=int, help="images per step; as configured if left out")
    add("--stages", default="all", help="all, or names such as 64_stabilization,...")
    add("--images", type=int, default=4096, help="training images")
    add("--weights", default="random:0", help="of VGG19, or a file")
    args = parser.parse_args(argv)
    given = problem.make(args.config, args.images, args.weights, args.batch)
    here = Platform.here()
    cpus = tuple(jax.local_devices(backend="cpu")[:1])
    cpu = dataclasses.replace(
        here, backend="cpu", devices=cpus, local_devices=cpus, options={}
    )
    rows: list[dict[str, Any]] = []
    for stage in select(given.plan, args.stages):
        exact = first_step(given, stage, "float32", here)
        found = {"bfloat16": (first_step(given, stage, "bfloat16", here), exact)}
        if here.backend != "cpu":
            found["float32"] = exact, first_step(given, stage, "float32", cpu)
        rows += [
            {
                "stage": stage.name,
                "precision": precision,
                "against": "float32" if precision == "bfloat16" else "float32 on CPU",
                **compared(*pair),
            }
            for precision, pair in found.items()
        ]
    measure.show(rows, COLUMNS)
    measure.write("precision", args, argv, rows, note=problem.NOTE)


def first_step(
    given: problem.Problem, stage: Stage, precision: str, platform: Platform
) -> tuple[float, np.ndarray]:
    """Takes a step of a stage.

    Returns:
      The loss, and Adam's first moment after it, float64: a tenth of the gradient.
    """
    setup = given.setup(precision, platform=platform)
    batch = given.config.batch_size
    with jax.default_device(platform.local_devices[0]):
        begun = setup.begin(stage)
        begun = begun.replace(step=jnp.int32(train_step.first_step(stage)))
        data = {"images": tiles(given.images[:batch])}
        take = jax.jit(step.gathering_step(setup.spec(stage)))
        after, scalars = take(begun, setup.resident_frozen(), data, np.arange(batch))
    moments = jax.device_get(optax.tree_utils.tree_get(after.optimizer, "mu"))
    flat = [np.ravel(leaf).astype(np.float64) for leaf in jax.tree.leaves(moments)]
    return float(scalars["loss"][0]), np.concatenate(flat)


def compared(
    found: tuple[float, np.ndarray], exact: tuple[float, np.ndarray]
) -> dict[str, float]:
    """Returns how far a loss and a gradient are from exact ones.

    Args:
      found: loss and gradient.
      exact: likewise.

    Returns:
      `loss`, the exact one; `loss_error`, relative to it; `gradient_error`, the length
      of the difference over that of the exact gradient; `gradient_cosine` of both.
    """
    (loss, gradient), (exact_loss, exact_gradient) = found, exact
    length = np.linalg.norm(exact_gradient)
    return {
        "loss": exact_loss,
        "loss_error": abs(loss / exact_loss - 1),
        "gradient_error": float(np.linalg.norm(gradient - exact_gradient) / length),
        "gradient_cosine": float(
            gradient @ exact_gradient / (np.linalg.norm(gradient) * length)
        ),
    }


if __name__ == "__main__":
    raise SystemExit(main())

"""# Many devices

A batch is shared out among all devices that JAX sees; nothing has to be said. Here
eight virtual ones of a CPU stand in for a machine with eight GPUs or a slice of a TPU.
"""

import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"  # before JAX

import jax  # noqa: E402
import numpy as np  # noqa: E402

import dpa_jax  # noqa: E402

print(len(jax.devices()), "devices")

# %% The same run as on one device; each has two of the sixteen images of a batch.

images = np.random.default_rng(0).integers(0, 256, (64, 8, 8), np.uint8)

config = dpa_jax.default_config()
config.data.resolution = 8
config.perceptual.weights = "random:0"  # "imagenet" once it is fetched
config.perceptual.statistics = "train"
config.batch_size = 16
config.stages.final_steps = 20
config.log_every = 10

events = []
dpa_jax.train(
    config, "eight_run", images=images, callbacks=[events.append], visible=False
)

# %% What a callback is told.

for event in events:
    loss = event.values.get("loss")
    print(f"step {event.step}: {event.kind}", "" if loss is None else f"{loss:.2f}")

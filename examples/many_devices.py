"""# Many devices

A batch is shared out among all devices that JAX sees; nothing has to be said. Here
eight virtual ones of a CPU stand in for a machine with eight GPUs or a slice of a TPU.
"""

import jax
import numpy as np

import dpa_jax

jax.config.update("jax_num_cpu_devices", 8)
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

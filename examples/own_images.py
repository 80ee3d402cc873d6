"""# A folder of your own images

A folder of normal images is all that training needs. Here phantoms stand in for yours:
drawn chest radiographs, some with a lesion. VGG19's weights are random, so the figures
show that it works and not how well.
"""

import dpa_jax
from dpa_jax import data
from dpa_jax.data import phantoms

phantoms.make_phantoms("images", train=64, normal=16, abnormal=16)

# %% The defaults are the published run on chest X-rays. This one is as short as can be.

config = dpa_jax.default_config()
config.data.resolution = 8
config.perceptual.weights = "random:0"  # "imagenet" once it is fetched
config.perceptual.statistics = "train"
config.stages.final_steps = 100
config.batch_size = 16
config.data.train = "images/train/normal"

dpa_jax.train(config, "own_run", visible=False)

# %% A trained run is a function of images: a number each, the higher the more abnormal.

score = dpa_jax.load("own_run")
for kind in ("normal", "abnormal"):
    found = score(f"images/test/{kind}")
    print(f"{kind:9s} {found.mean():.3f} on average")

# %% And a figure of merit with its interval.

both = data.joined(
    [score.prepare(f"images/test/{kind}") for kind in ("normal", "abnormal")],
    labels=(0, 1),
)
result = dpa_jax.evaluate("own_run", both)
low, high = result["roc_auc_interval"]
print(f"ROC AUC {result['roc_auc']:.2f} (95% {low:.2f} to {high:.2f})")

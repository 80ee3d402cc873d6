r"""Public data sets at 64 pixels: latent 16, r42, as MedIAnomaly compares methods.

Write the manifest of a set once, then train, then evaluate:

    dpa-jax prepare layout medianomaly --source=MedIAnomaly-Data/RSNA --out=rsna.csv
    dpa-jax train --config=configs/public_sets.py:rsna --workdir=RUN
    dpa-jax evaluate --workdir=RUN

The argument is SET; its manifest is SET.csv in the working directory. For another
place, or one that was prepared as a TFDS data set, set data.train and data.test:

    --config.data.train=tfds:rsna:train --config.data.test=tfds:rsna:test \
        --config.data.data_dir=DATA

    SET              layout             published ROC AUC
    rsna             medianomaly        0.875
    vincxr           medianomaly        0.753
    braintumor       medianomaly        0.957
    lag              medianomaly        0.856
    isic             medianomaly-isic   0.684
    brats            medianomaly-brats  0.851, masks
    camelyon16       bmad               0.761
    bmad_brain       bmad               masks
    bmad_liver       bmad               masks
    bmad_resc        bmad               masks
    bmad_oct         bmad
    bmad_chest       bmad
    bmad_camelyon16  bmad
    mvtec            mvtec              masks
    oct2017          oct2017
    chest_xray       chest-xray

Published is what MedIAnomaly (Cai et al., 2024) reports of this loss, with an
autoencoder of its own, 250 epochs (600 of braintumor) of batches of 64 at a learning
rate of 1e-3. Its code reads all sets in grey but Camelyon16, so this does; for lag and
isic in colour, --config.data.channels=3. Steps are those of the published NIH run at 64
pixels throughout. None of these runs has been made with this package.

Expected time: 1.0 M images at 64 pixels, half of that run's, which took the PyTorch
code 71 minutes on a T4.
"""

from dpa_jax.config import default_config
from dpa_jax.errors import UsageError

CHANNELS = {
    "rsna": 1,
    "vincxr": 1,
    "braintumor": 1,
    "lag": 1,
    "isic": 1,
    "brats": 1,
    "camelyon16": 3,
    "bmad_brain": 1,
    "bmad_liver": 1,
    "bmad_resc": 1,
    "bmad_oct": 1,
    "bmad_chest": 1,
    "bmad_camelyon16": 3,
    "mvtec": 3,
    "oct2017": 1,
    "chest_xray": 1,
}


def get_config(name: str = "rsna"):
    """Returns the configuration of a run on a public data set.

    Args:
      name: of the set.

    Raises:
      UsageError: there is no such set.
    """
    if name not in CHANNELS:
        raise UsageError(
            f"configs/public_sets.py:{name}: there is no such set; there are "
            f"{', '.join(CHANNELS)}"
        )
    config = default_config()
    config.data.train, config.data.test = f"{name}.csv:train", f"{name}.csv:test"
    config.data.channels = CHANNELS[name]
    config.data.resize = 64  # the whole image, whatever its aspect

    config.stages.initial_resolution = 64
    config.stages.transition_steps = 0
    config.stages.stabilization_steps = 0
    config.stages.final_steps = 16_000
    config.perceptual.layers = "64:r42"
    config.loss.smooth_transition = False
    config.batch_size = 64
    return config

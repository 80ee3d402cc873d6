"""Makes calibrations without a run: scores as given."""

import numpy as np

from dpa_jax.scoring.calibration import Calibration


def made(alpha=0.1, group=None, by=None, **strata):
    """A calibration by the scores of strata; those of `all` are 1 to 19."""
    strata = strata or {"all": np.arange(1.0, 20)}
    return Calibration(
        alpha=alpha,
        images=40,
        units=sum(map(len, strata.values())),
        group=group,
        by=by,
        strata={name: np.asarray(scores, float) for name, scores in strata.items()},
        data={"location": "here", "sha256": "0"},
        trained=12,
        precision="float32",
        hashes=np.zeros(0, np.uint64),
        size=16,
        score_range=(10.0, 19.0),
        map_range=(0.25, 0.75),
    )

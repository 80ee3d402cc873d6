"""Which runs may be trained at once, and by which processes."""

from collections.abc import Sequence

import ml_collections

from dpa_jax import errors
from dpa_jax.config import data_seed, flat, updated
from dpa_jax.devices.platform import Platform
from dpa_jax.storage import config_files, workdir

# what runs that are trained at once may differ in
_OWN = ("seed", "optimizer.learning_rate")
# what each process may have in a place of its own, or process 0 alone needs
_LOCAL = {"data.train", "perceptual.weights", "perceptual.statistics"}


def members(
    config: ml_collections.ConfigDict,
) -> list[ml_collections.ConfigDict]:
    """Returns the configuration of each run of a population: this one, if it is none.

    Each can be trained alone, with the same result but for rounding.
    """
    count = config.population.seeds
    if count == 1:
        return [config]
    return [
        updated(
            config,
            {
                "population.seeds": 1,
                "seed": config.seed + i,
                "data.seed": data_seed(config),
            },
            "population",
        )
        for i in range(count)
    ]


def check_alike(configs: Sequence[ml_collections.ConfigDict]) -> None:
    """Refuses runs that one program cannot train together."""
    first = flat(configs[0])
    for other in map(flat, configs[1:]):
        for name, value in first.items():
            if name not in _OWN and other[name] != value:
                raise errors.UsageError(
                    f"runs trained together differ in {name}: {value!r} and "
                    f"{other[name]!r}; only {' and '.join(_OWN)} may differ"
                )
    if len(configs) > 1 and len({data_seed(one) for one in configs}) > 1:
        raise errors.UsageError(
            "runs trained together see the same batches: give them the same data.seed"
        )


def check_same_everywhere(
    configs: Sequence[ml_collections.ConfigDict], platform: Platform
) -> None:
    """Refuses a process whose configuration is not that of process 0."""
    own = [one.to_dict() for one in configs]
    for theirs, ours in zip(platform.group.decide(lambda: own), configs, strict=True):
        first = flat(config_files.from_values(theirs, "process 0"))
        for name, value in flat(ours).items():
            if name not in workdir.FREE | _LOCAL and value != first[name]:
                raise errors.UsageError(
                    f"process {platform.group.index} has {name}={value!r}, process 0 "
                    f"{first[name]!r}: give all the same configuration"
                )

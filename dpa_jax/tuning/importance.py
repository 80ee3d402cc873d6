"""Which parameters of a study matter."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dpa_jax import errors
from dpa_jax.tuning.results import Trial


def importance(
    trials: Sequence[Trial], goals: Sequence[float], space: Mapping[str, Any]
) -> tuple[dict[str, float], str]:
    """Returns the share of each parameter in how the trials differ, by fANOVA.

    Args:
      trials: complete ones.
      goals: what each came to: ROC AUC or loss.
      space: entries of the search by name; `low`, `high` and `log` are used.

    Returns:
      The shares, largest first, and an empty string; or no shares and the reason.

    Raises:
      DpaError: Optuna is not installed.
    """
    if len(trials) < 2:
        return {}, f"it needs two complete trials, there are {len(trials)}"
    varied = {
        name: [_hashable(t.parameters[name]) for t in trials]
        for name in trials[0].parameters
        if all(name in t.parameters for t in trials)
    }
    varied = {name: found for name, found in varied.items() if len(set(found)) > 1}
    if not varied:
        return {}, "no parameter differs between the trials"
    # rounding apart, fANOVA would divide by their variance
    if np.ptp(goals) < 1e-9:
        return {}, "all trials came to the same"
    try:
        import optuna
    except ImportError:
        raise errors.DpaError(
            "the importance of parameters needs Optuna: pip install 'dpa_jax[tune]'"
        ) from None
    distributions = {
        name: _distribution(found, space.get(name, {}))
        for name, found in varied.items()
    }
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # it tells of every study made
    try:
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        for i, goal in enumerate(goals):
            study.add_trial(
                optuna.trial.create_trial(
                    params={name: found[i] for name, found in varied.items()},
                    distributions=distributions,
                    value=goal,
                )
            )
        shares = optuna.importance.get_param_importances(
            # that of Optuna 5 by default compares the best tenth with the rest, which
            # needs far more trials than these studies have
            study,
            evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0),
        )
    finally:
        optuna.logging.set_verbosity(level)
    return {name: float(share) for name, share in shares.items()}, ""


def _distribution(found: Sequence[Any], entry: Mapping[str, Any]) -> Any:
    from optuna import distributions

    numbers = all(type(value) in (int, float) for value in found)
    if "low" not in entry or not numbers:
        return distributions.CategoricalDistribution(sorted(set(found), key=str))
    whole = all(type(value) is int for value in found)
    kind = distributions.IntDistribution if whole else distributions.FloatDistribution
    return kind(entry["low"], entry["high"], log=bool(entry.get("log", False)))


def _hashable(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool) else str(value)

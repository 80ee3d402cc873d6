"""Conformal p-values, what is found by many of them, and whether they still hold.

Everything rests on exchangeability: a new normal score and those of the calibration may
stand in any order with equal probability. See Vovk, Gammerman and Shafer, Algorithmic
Learning in a Random World (2005).
"""

import bisect
import math

import numpy as np
import scipy.special

# Beta densities that are bet on: low, high, extreme and middling p-values
_SHAPES = 2.0 ** np.arange(-2, 3)
_MOVED = 0.01  # of the capital at each step, spread over all bets evenly


def p_values(calibration: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Returns the share of normal scores, each one's own among them, that are as high.

    Args:
      calibration: float `[n]`, ascending: scores of normal units.
      scores: float `[N]`.

    Returns:
      float64 `[N]`, `(1 + #{calibration >= score}) / (n + 1)`: for a normal unit at
      most `t` with probability at most `t`, over the drawing of all n + 1.
    """
    count = len(calibration)
    higher = count - np.searchsorted(calibration, scores, "left")
    return (1 + higher) / (count + 1)


def fewest(alpha: float) -> int:
    """Returns how many calibration scores a p-value of `alpha` needs."""
    return math.ceil(1 / alpha) - 1


def threshold(calibration: np.ndarray, alpha: float) -> float:
    """Returns the score above which, and nowhere else, p-values are at most `alpha`.

    Args:
      calibration: float `[n]`, ascending, n at least `fewest(alpha)`.
      alpha: between 0 and 1.
    """
    count = len(calibration)
    higher = np.flatnonzero((1 + np.arange(count)) / (count + 1) <= alpha)[-1]
    return float(calibration[count - 1 - higher])


def rate_range(count: int, alpha: float) -> tuple[float, float]:
    """Returns between what the false positive rate of `threshold` lies.

    Its mean over calibrations is at most alpha; in 90% of them it lies in this range,
    the 5th to the 95th percentile of the Beta distribution of an order statistic.

    Args:
      count: of calibration scores, distinct and independent ones.
      alpha: between 0 and 1.
    """
    higher = np.flatnonzero((1 + np.arange(count)) / (count + 1) <= alpha)[-1]
    low, high = scipy.special.betaincinv(higher + 1, count - higher, [0.05, 0.95])
    return float(low), float(high)


def benjamini_hochberg(found: np.ndarray, rate: float) -> np.ndarray:
    """Returns which hypotheses are rejected at a false discovery rate: bool `[N]`.

    Conformal p-values of one calibration depend on each other in a way that the
    procedure of Benjamini and Hochberg (1995) allows (Bates et al., 2023).

    Args:
      found: p-values, float `[N]`.
      rate: expected share of false ones among those rejected, at most.
    """
    ranked = np.sort(found)
    passing = np.flatnonzero(ranked <= rate * np.arange(1, len(found) + 1) / len(found))
    return found <= (ranked[passing[-1]] if len(passing) else -1)


def sequential(
    calibration: np.ndarray, scores: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Returns p-values that are independent and uniform under exchangeability.

    Each score is ranked among those of the calibration and all before it, its place
    among equal ones drawn. `p_values`, which are not, would seem to drift in a long
    batch by the chance of the one calibration that they share.

    Args:
      calibration: float `[n]`, ascending.
      scores: float `[N]`, in their order.
      rng: draws the places.

    Returns:
      float64 `[N]`, low for high scores.
    """
    known, found = calibration.tolist(), np.empty(len(scores))
    draws = rng.random(len(scores))
    for i, score in enumerate(np.asarray(scores).tolist()):
        bisect.insort(known, score)
        low, high = bisect.bisect_left(known, score), bisect.bisect_right(known, score)
        found[i] = (len(known) - high + draws[i] * (high - low)) / len(known)
    return found


def log_martingale(found: np.ndarray) -> np.ndarray:
    """Returns what betting against uniform p-values makes of 1, as its logarithm.

    The capital is spread over Beta densities as bets, and a little of it moves between
    them at each step, so that a change in the midst is noticed too.

    Args:
      found: independent p-values, float `[..., N]`; see `sequential`.

    Returns:
      float64 `[..., N]`, the natural logarithm of the capital after each. If they are
      uniform, the capital ever reaches `c` with probability at most `1 / c` (Ville).
    """
    a, b = (shape.ravel() for shape in np.meshgrid(_SHAPES, _SHAPES))
    p = np.clip(found, 1e-12, 1 - 1e-12)[..., None]
    bets = np.exp(
        (a - 1) * np.log(p) + (b - 1) * np.log1p(-p) - scipy.special.betaln(a, b)
    )
    shares = np.full(a.shape, 1 / a.size)
    result = np.empty(found.shape)
    total = np.zeros(found.shape[:-1])
    for i in range(found.shape[-1]):
        shares = shares * bets[..., i, :]
        gain = shares.sum(-1)
        total = total + np.log(gain)
        result[..., i] = total
        shares = (1 - _MOVED) * shares / gain[..., None] + _MOVED / a.size
    return result

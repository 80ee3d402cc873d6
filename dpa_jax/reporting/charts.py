"""The geometry of a report's plots; the page draws them as SVG."""

import dataclasses

import numpy as np
from matplotlib import ticker

WIDTH, HEIGHT = 460, 300  # of the whole plot, in its own units
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 44  # margins for ticks and names of axes
_POINTS = 600  # of a curve, at most


@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis of a plot.

    Attributes:
      name: what it shows.
      low: value at its beginning.
      high: value at its end, above `low`.
      begin: where it begins, in units of the plot.
      end: where it ends.
    """

    name: str
    low: float
    high: float
    begin: float
    end: float

    def at(self, values) -> np.ndarray:
        """Returns where values lie, in units of the plot."""
        share = (np.asarray(values, float) - self.low) / (self.high - self.low)
        return self.begin + share * (self.end - self.begin)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Where ticks are, and their texts."""
        found = ticker.MaxNLocator(5).tick_values(self.low, self.high)
        room = 1e-9 * (self.high - self.low)
        kept = [v for v in found if self.low - room <= v <= self.high + room]
        return [(round(float(self.at(v)), 1), f"{v:,.6g}") for v in kept]


@dataclasses.dataclass(frozen=True)
class Plot:
    """Two axes, in which curves are drawn."""

    x: Axis
    y: Axis

    def points(self, x: np.ndarray, y: np.ndarray) -> str:
        """Returns a curve as the `points` of an SVG polyline or polygon.

        Args:
          x: numbers `[N]`, of which about `_POINTS` are kept if there are more.
          y: likewise.
        """
        step = max(1, -(-len(x) // _POINTS))
        keep = np.unique(np.append(np.arange(0, len(x), step), len(x) - 1))
        pairs = np.stack([self.x.at(x)[keep], self.y.at(y)[keep]], axis=1)
        return " ".join(f"{a:.1f},{b:.1f}" for a, b in pairs)


def plot(x: tuple[str, float, float], y: tuple[str, float, float]) -> Plot:
    """Returns a plot whose axes have a name, a least and a greatest value."""

    def axis(name: str, low: float, high: float, begin: float, end: float) -> Axis:
        spread = high - low or abs(high) or 1.0
        return Axis(name, low, low + spread, begin, end)

    return Plot(axis(*x, LEFT, WIDTH - RIGHT), axis(*y, HEIGHT - BOTTOM, TOP))

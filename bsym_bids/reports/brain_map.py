"""Values of the 450 ROIs on the brain: cortex from four sides, and slices of the subcortex."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bsym_bids import atlas
from bsym_bids.reports.style import INK, SMALL
from bsym_bids.reports.tiles import Tile, draw_tiles

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

#: In inches, at which the type is as in other figures.
SIZE = (8.2, 3.3)
#: Of surfaces without an ROI, of ROIs without a value, and of the borders of ROIs.
_BARE, _MISSING, _BORDER = (0.62, 0.65, 0.69, 0.45), (0.45, 0.47, 0.5, 1.0), (0, 0, 0, 0.35)
_OUTSIDE = -1
_CORTEX = ("left_lateral", "left_medial", "right_medial", "right_lateral")
_TITLES = {
    "left_lateral": "left, outer side",
    "left_medial": "left, inner side",
    "right_medial": "right, inner side",
    "right_lateral": "right, outer side",
}


@dataclass(frozen=True)
class Scale:
    """How values become colours.

    Attributes
    ----------
    low, high : float
        Ends of the scale; values beyond have the colours of the ends.
    colours : str
        Name of a colour map of matplotlib.
    label : str
        What the values are, with their unit.
    """

    low: float
    high: float
    colours: str
    label: str

    @property
    def ticks(self) -> list[float]:
        """Some round values between the ends."""
        from matplotlib.ticker import MaxNLocator

        found = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], min_n_ticks=3).tick_values(
            self.low, self.high
        )
        pad = 1e-9 * (self.high - self.low)
        return [float(tick) for tick in found if self.low - pad <= tick <= self.high + pad]

    @property
    def decimals(self) -> int:
        """As many as tell the ticks apart."""
        step = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else self.high - self.low
        decimals = max(0, -math.floor(math.log10(step)))
        return decimals + (abs(round(step, decimals) - step) > 0.01 * step)  # steps of 2.5

    @property
    def tick_labels(self) -> list[str]:
        """The ticks as they are written, which differ from each other."""
        written = (f"{tick + 0.0:.{self.decimals}f}" for tick in self.ticks)
        return [text.replace("-", "\N{MINUS SIGN}") for text in written]

    @classmethod
    def around_zero(cls, values: NDArray[np.floating], label: str) -> Scale:
        """Return a scale from blue over white to red that holds 98 % of the values."""
        most = robust_limit(np.abs(values))
        return cls(-most, most, "RdBu_r", label)

    @classmethod
    def from_zero(cls, values: NDArray[np.floating], label: str) -> Scale:
        """Return a scale from dark to bright that begins at 0 and holds 98 % of the values."""
        return cls(0.0, robust_limit(values), "viridis", label)


def robust_limit(values: NDArray[np.floating]) -> float:
    """Return what 98 % of the values do not exceed, never 0."""
    finite = values[np.isfinite(values)]
    limit = float(np.percentile(finite, 98)) if finite.size else 0.0
    return limit if limit > 0 else 1.0


@cache
def views() -> Mapping[str, NDArray[np.int16]]:
    """Return images of ROI indices: -1 outside, 0 without an ROI, else 1 to 450; by name."""
    path = files("bsym_bids").joinpath("data/brain/views.npz")
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        return dict(archive)


def draw_brain(figure: Figure, values: NDArray[np.floating], scale: Scale) -> None:
    """Draw a value of each ROI.

    Parameters
    ----------
    figure : Figure
        Empty, about of `SIZE`.
    values : ndarray, shape (450,)
        NaN for what was not measured, which is dark grey.
    scale : Scale
        How they become colours.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    table = colour_table(values, scale, colormaps[scale.colours])
    slices = [name for name in views() if name not in _CORTEX]
    upper, lower, right = (0, 0.4, 0.86, 0.6), (0, 0.0, 0.86, 0.4), (0.88, 0.1, 0.016, 0.76)
    figure.set_layout_engine(None)
    for place, names in ((upper, _CORTEX), (lower, slices)):
        marks = ["L" * (names is slices and not index) for index in range(len(names))]
        row = [
            Tile(_coloured(views()[name], table), _title(name), mark, INK)
            for name, mark in zip(names, marks, strict=True)
        ]
        draw_tiles(figure, place, [row])
    bar = figure.add_axes(right)
    mapped = ScalarMappable(Normalize(scale.low, scale.high), scale.colours)
    figure.colorbar(mapped, cax=bar, label=scale.label, ticks=scale.ticks)
    bar.set_yticks(scale.ticks, scale.tick_labels)
    if not np.isfinite(values).all():
        bar.set_title("grey: n/a", fontsize=SMALL, loc="left", pad=8)


def colour_table(
    values: NDArray[np.floating], scale: Scale, colours: Colormap
) -> NDArray[np.floating]:
    """Return the colour of each index of a view, shape (452, 4), the last that of the outside."""
    table = np.empty((atlas.N_ROIS + 2, 4))
    table[0], table[_OUTSIDE] = _BARE, (0, 0, 0, 0)
    shares = (np.asarray(values, dtype=float) - scale.low) / (scale.high - scale.low)
    # 64 steps, so that an image has few colours.
    table[1:-1] = colours(np.rint(np.clip(np.nan_to_num(shares), 0, 1) * 63) / 63)
    table[1:-1][~np.isfinite(values)] = _MISSING
    return table


def _coloured(view: NDArray[np.int16], table: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return a view in colours, with the borders of ROIs."""
    image = table[view]
    border = edges(view) & (view != _OUTSIDE)
    ink, alpha = np.array(_BORDER[:3]), _BORDER[3]
    image[border, :3] = (1 - alpha) * image[border, :3] + alpha * ink
    return image


def edges(labels: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Tell which pixels have a neighbour, above or to the left, of another label."""
    edge = np.zeros(labels.shape, bool)
    edge[1:] |= labels[1:] != labels[:-1]
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    return edge


def _title(view: str) -> str:
    height = view.removeprefix("axial_").replace("-", "\N{MINUS SIGN}")
    return _TITLES.get(view, f"z = {height} mm")

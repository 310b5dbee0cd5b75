"""Figures of how a measure is distributed over a cohort."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bsym_bids.reports.lights import AMBER, RED, WORDS
from bsym_bids.reports.measures import Spread
from bsym_bids.reports.numbers import shortened
from bsym_bids.reports.style import COLOURS, INK, MUTED, PAPER

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Of a figure: inches, with words above the values and without; values that are named; points that
#: can be told apart; bins for more.
WIDTH, HEIGHTS, MOST_NAMED, _MOST_POINTS, _BINS = 5.2, (1.95, 1.2), 5, 150, 40
#: Share of the width that a letter takes; heights of the names of values, and of all.
_LETTER_SHARE, _NAME_LEVELS, _TOP = 0.0165, (1.14, 1.44), 2.05
#: Robust ranges around the median that are shown.
_VIEW_REACH = 3.0
_LIMIT_LOOKS: Mapping[str, tuple[str, str]] = {
    AMBER: (COLOURS[5], "dashed"),
    RED: (COLOURS[1], "solid"),
}


def draw_spread(
    figure: Figure, spread: Spread, limits: Sequence[tuple[str, float]], names: Sequence[str]
) -> None:
    """Draw the values of a measure: a box, every value or a histogram, and who is far off.

    Parameters
    ----------
    figure : Figure
        An empty one.
    spread : Spread
        The values.
    limits : sequence of tuple
        Colour and number of each limit.
    names : sequence of str
        Of the values that are furthest off.
    """
    panel = figure.subplots()
    panel.spines[["left"]].set_visible(False)
    panel.set_yticks([])
    view = _view(spread, [limit for _, limit in limits])
    panel.set_xlim(*view)
    panel.set_ylim(-0.45, _TOP if has_words(spread, limits) else 1.1)
    panel.set_xlabel(spread.measure.titled)
    _draw_box(panel, spread)
    heights = _draw_values(panel, spread)
    _draw_limits(panel, limits, spread.measure.worse)
    _draw_outside(panel, spread, heights)
    _draw_names(panel, spread, names)


def has_words(spread: Spread, limits: Sequence[tuple[str, float]]) -> bool:
    """Tell whether names, or words of limits, stand above the values."""
    left, right = _view(spread, [limit for _, limit in limits])
    return len(spread.outside) > 0 or any(left <= limit <= right for _, limit in limits)


def _view(spread: Spread, limits: Sequence[float]) -> tuple[float, float]:
    """Return the range that is shown: not all of it, where a few values are very far off."""
    low, high = float(spread.values.min()), float(spread.values.max())
    if not math.isnan(spread.low):
        first, third = (float(x) for x in np.quantile(spread.values, (0.25, 0.75)))
        middle, reach = (spread.low + spread.high) / 2, (spread.high - spread.low) / 2
        reach = _VIEW_REACH * max(reach, third - first)
        low, high = max(low, middle - reach), min(high, middle + reach)
    span = high - low
    for limit in limits:
        if low - span <= limit <= high + span:
            low, high = min(low, limit), max(high, limit)
    margin = 0.04 * (high - low)
    return low - margin, high + margin


def _draw_box(panel: Axes, spread: Spread) -> None:
    """Draw the quartiles as a box, and the robust limits (or the range) as whiskers."""
    first, middle, third = np.quantile(spread.values, (0.25, 0.5, 0.75))
    ends = (float(spread.values.min()), float(spread.values.max()))
    if not math.isnan(spread.low):
        ends = (max(ends[0], spread.low), min(ends[1], spread.high))
    panel.hlines(-0.15, *ends, color=MUTED, linewidth=1.2)
    panel.vlines(ends, -0.24, -0.06, color=MUTED, linewidth=1.2)
    panel.fill_between([first, third], -0.3, 0, color=MUTED, alpha=0.4, linewidth=0)
    panel.vlines(middle, -0.3, 0, color=INK, linewidth=2)


def _draw_values(panel: Axes, spread: Spread) -> NDArray[np.float64]:
    """Draw all values that are not far off; return at which height each value is."""
    values = spread.values
    usual = np.setdiff1d(np.arange(len(values)), spread.outside)
    if len(values) > _MOST_POINTS:
        counts, edges = np.histogram(values[usual], bins=_BINS, range=panel.get_xlim())
        tops = 0.15 + 0.85 * counts / counts.max()
        panel.stairs(tops, edges, baseline=0.15, fill=True, color=COLOURS[0], alpha=0.6)
        return np.full(len(values), 0.3)
    # The golden ratio spreads points evenly, whatever their number.
    heights = 0.15 + 0.85 * (np.arange(1, len(values) + 1) * 0.618034 % 1)
    panel.plot(values[usual], heights[usual], "o", color=COLOURS[0], alpha=0.6, ms=4.2, mew=0)
    return heights


def _draw_limits(panel: Axes, limits: Sequence[tuple[str, float]], worse: str) -> None:
    """Draw limits with their words above, which part to both sides where there are two."""
    left, right = panel.get_xlim()
    for colour, limit in limits:
        if not left <= limit <= right:
            continue
        hue, dashes = _LIMIT_LOOKS[colour]
        panel.vlines(limit, -0.45, _TOP - 0.3, color=hue, linestyle=dashes, linewidth=1.6)
        outwards = (colour == RED) == (worse == "higher")
        side = "left" if outwards else "right"
        panel.text(limit, _TOP - 0.25, f" {WORDS[colour]} ", ha=side, fontsize=9, color=INK)


def _draw_outside(panel: Axes, spread: Spread, heights: NDArray[np.float64]) -> None:
    """Mark values that are far off: diamonds, and arrows for those that lie out of the figure."""
    left, right = panel.get_xlim()
    furthest = spread.outside[:_MOST_POINTS]
    values = spread.values[furthest]
    markers = np.where(values < left, "<", np.where(values > right, ">", "D"))
    for marker in np.unique(markers):
        own = markers == marker
        places = np.clip(values[own], left, right), heights[furthest[own]]
        panel.plot(*places, str(marker), color=COLOURS[1], ms=5.5, mew=0, clip_on=False)


def _draw_names(panel: Axes, spread: Spread, names: Sequence[str]) -> None:
    """Write the names of values above them, as far as there is room; the caption has all."""
    left, right = panel.get_xlim()
    ends = [-math.inf] * len(_NAME_LEVELS)
    values = spread.values[spread.outside][: len(names)]
    for place in np.argsort(values, kind="stable"):
        text = shortened(names[place], 20)
        width = _LETTER_SHARE * len(text)
        x = float(np.clip((values[place] - left) / (right - left), 0, 1))
        start = min(max(0.0, x - width / 2), 1 - width)
        level = next((k for k, end in enumerate(ends) if start > end), None)
        if level is None:
            continue
        ends[level] = start + width + _LETTER_SHARE
        middle = left + (start + width / 2) * (right - left)
        ground = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.6}  # over lines of limits
        look: dict[str, Any] = {"ha": "center", "fontsize": 9, "color": INK, "bbox": ground}
        panel.text(middle, _NAME_LEVELS[level], text, **look)

"""Figures of what was predicted of a cohort, as elements of its page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bsym_bids.reports.numbers import shortened
from bsym_bids.reports.style import COLOURS, GRID, INK, LINES, MARKERS, MUTED, PAPER, inline_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bsym_bids.prediction.records import Target

#: What candidates are for: the one that stands for the network, and the one that it has to beat.
HEADLINE, REFERENCE = "headline", "reference"
_BLUE, _VERMILLION = COLOURS[:2]
_LOOKS: Mapping[str, tuple[str, str, float]] = {
    HEADLINE: ("D", _BLUE, 7.5),
    REFERENCE: ("s", _VERMILLION, 7.0),
    "": ("o", MUTED, 5.5),
}
#: More points than this are counted in hexagons.
_MOST_POINTS = 2000
#: Bins of a histogram; bins of a calibration curve, and units that each should have.
_BINS, _CALIBRATION_BINS, _UNITS_PER_BIN = 25, 10, 20
#: Classes that can be told apart as lines.
MOST_LINES = 8
_SQUARE = (4.6, 4.5)


@dataclass(frozen=True)
class Row:
    """A candidate's place in a dot plot.

    Attributes
    ----------
    title : str
        What it is called.
    value, low, high : float
        Score or difference, and its interval; NaN where there is none.
    role : str
        `HEADLINE`, `REFERENCE`, or empty.
    """

    title: str
    value: float
    low: float
    high: float
    role: str = ""


@dataclass(frozen=True)
class Line:
    """A value that rows are held against.

    Attributes
    ----------
    value : float
        Where it is; NaN is left out.
    title : str
        What it is.
    """

    value: float
    title: str


def dot_plot(rows: Sequence[Row], axis: str, line: Line, *, name: str, label: str) -> str:
    """Draw scores or differences with their intervals, one row each.

    Parameters
    ----------
    rows : sequence of Row
        From the top.
    axis : str
        What the numbers are, with their units.
    line : Line
        Of chance, or of no difference.
    name, label : str
        See `bsym_bids.reports.style.inline_svg`.

    Returns
    -------
    str
        An SVG element.
    """

    def draw(figure: Figure) -> None:
        panel = figure.subplots()
        panel.spines[["left"]].set_visible(False)
        panel.tick_params(axis="y", length=0)
        panel.grid(axis="x", color=GRID, linewidth=0.8)
        panel.set_axisbelow(True)
        for place, row in enumerate(rows):
            _draw_row(panel, place, row)
        if math.isfinite(line.value):
            panel.axvline(line.value, color=INK, linewidth=1.2, linestyle="dashed", zorder=1)
            panel.set_title(line.title, x=_share(panel, line.value), fontsize=10)
        panel.set_yticks(range(len(rows)), [row.title for row in rows])
        for text, row in zip(panel.get_yticklabels(), rows, strict=True):
            text.set_fontweight("bold" if row.role else "normal")
        panel.set_ylim(len(rows) - 0.4, -0.6)
        panel.set_xlabel(axis)

    return inline_svg(draw, (8.2, 1.1 + 0.29 * len(rows)), name=name, label=label)


def _draw_row(panel: Axes, place: int, row: Row) -> None:
    marker, colour, size = _LOOKS[row.role]
    if math.isfinite(row.low) and math.isfinite(row.high):
        panel.plot([row.low, row.high], [place, place], color=colour, linewidth=2)
    # Those without an interval are hollow.
    has_interval = math.isfinite(row.low)
    panel.plot(
        [row.value],
        [place],
        marker,
        color=colour,
        markersize=size,
        markerfacecolor=colour if has_interval else PAPER,
    )


def _share(panel: Axes, value: float) -> float:
    """Return how far along the axis a value is, fixing its limits."""
    low, high = panel.get_xlim()
    panel.set_xlim(low, high)
    return min(0.93, max(0.07, (value - low) / (high - low)))


def fit_line(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float]:
    """Return slope and intercept of the least-squares line; NaN if there is none.

    Parameters
    ----------
    x, y : ndarray, shape (n,)
        Finite.
    """
    if len(x) < 2 or np.ptp(x) == 0:
        return math.nan, math.nan
    centred = x - x.mean()
    slope = float(centred @ y / (centred @ centred))
    return slope, float(y.mean() - slope * x.mean())


def scatter(
    observed: NDArray[np.float64],
    values: NDArray[np.float64],
    axes: tuple[str, str],
    *,
    residual: bool,
    name: str,
    label: str,
) -> str:
    """Draw predictions, or residuals, against what was observed.

    Parameters
    ----------
    observed, values : ndarray, shape (n,)
        Finite. Beyond 2000, hexagons are drawn, the darker the more units they hold.
    axes : tuple of str
        Names of both axes, with units.
    residual : bool
        Values are observed less predicted: right are those on zero, not on the diagonal.
    name, label : str
        See `bsym_bids.reports.style.inline_svg`.

    Returns
    -------
    str
        An SVG element.
    """
    span = np.array([observed.min(), observed.max()])

    def draw(figure: Figure) -> None:
        panel = figure.subplots()
        _draw_points(panel, observed, values)
        if residual:
            panel.axhline(0, color=INK, linewidth=1.2, linestyle="dashed", label="no error")
        else:
            both = [min(span[0], values.min()), max(span[1], values.max())]
            panel.plot(both, both, color=INK, linewidth=1.2, linestyle="dashed", label="no error")
            panel.set_aspect("equal")
        slope, intercept = fit_line(observed, values)
        if math.isfinite(slope):
            panel.plot(
                span,
                intercept + slope * span,
                color=_VERMILLION,
                linewidth=2.2,
                label="fit",
            )
        _finish(figure, panel, axes)

    return inline_svg(draw, _SQUARE, name=name, label=label)


def _draw_points(panel: Axes, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
    if len(x) <= _MOST_POINTS:
        few = len(x) <= 300
        alpha = 0.6 if few else 0.4
        panel.plot(x, y, "o", color=_BLUE, alpha=alpha, markersize=4.5 if few else 3.2, mew=0)
        return
    from matplotlib.colors import to_rgb

    bins = panel.hexbin(x, y, gridsize=36, mincnt=1, linewidths=0)
    counts = np.asarray(bins.get_array(), dtype=np.float64)
    shades = 0.15 + 0.85 * np.sqrt(counts / counts.max())
    bins.set_array(None)
    bins.set_facecolor([(*to_rgb(_BLUE), shade) for shade in shades])


def _finish(figure: Figure, panel: Axes, axes: tuple[str, str]) -> None:
    panel.set_xlabel(axes[0])
    panel.set_ylabel(axes[1])
    columns = 2 if len(panel.get_legend_handles_labels()[0]) > 1 else 1
    if panel.get_legend_handles_labels()[0]:
        figure.legend(loc="outside upper left", ncols=columns, handlelength=2.6)


def null_distribution(
    null: NDArray[np.float64], observed: float, axis: str, *, name: str, label: str
) -> str:
    """Draw the permutation statistic under permuted labels, and under the true ones.

    Parameters
    ----------
    null : ndarray, shape (permutations,)
        Finite.
    observed : float
        Under the true labels.
    axis : str
        What the statistic is.
    name, label : str
        See `bsym_bids.reports.style.inline_svg`.

    Returns
    -------
    str
        An SVG element.
    """

    def draw(figure: Figure) -> None:
        panel = figure.subplots()
        panel.hist(null, bins=_BINS, color=MUTED, alpha=0.55, label="permuted labels")
        panel.axvline(observed, color=_BLUE, linewidth=2.5, label="true labels")
        _finish(figure, panel, (axis, "permutations"))

    return inline_svg(draw, (6.0, 3.2), name=name, label=label)


def roc_curves(
    target: Target, labels: NDArray[np.int64], probabilities: NDArray[np.float64], *, label: str
) -> str:
    """Draw the ROC curve of the second of two classes, or of each against all others.

    Parameters
    ----------
    target : Target
        Names of the classes.
    labels : ndarray of int, shape (n,)
        True classes.
    probabilities : ndarray, shape (n, classes)
        Of the classes.
    label : str
        See `bsym_bids.reports.style.inline_svg`.

    Returns
    -------
    str
        An SVG element.
    """
    from sklearn.metrics import roc_curve

    def draw(figure: Figure) -> None:
        panel = figure.subplots()
        panel.plot([0, 1], [0, 1], color=INK, linewidth=1.2, linestyle="dashed", label="chance")
        for index, look in _lines(target):
            own = labels == index
            if own.any() and not own.all():
                false, true, _ = roc_curve(own, probabilities[:, index])
                panel.plot(false, true, label=_class_name(target, index), **_unmarked(look))
        panel.set_aspect("equal")
        _finish(figure, panel, ("false positive rate", "true positive rate"))

    return inline_svg(draw, _SQUARE, name="roc", label=label)


def probability_histogram(
    target: Target, labels: NDArray[np.int64], probabilities: NDArray[np.float64], *, label: str
) -> str:
    """Draw how probabilities of a class are spread over the members of each class.

    Of two classes, the probability of the second, one over the other; of more, that of the true
    class, one above the other. Otherwise as `roc_curves`.
    """
    binary = len(target.classes) == 2
    edges = np.linspace(0, 1, _BINS - 4)
    looks = [(i, look) for i, look in _lines(target, every=True) if (labels == i).any()]

    def draw(figure: Figure) -> None:
        n_panels = 1 if binary else len(looks)
        panels = figure.subplots(n_panels, sharex=True, squeeze=False)[:, 0]
        for place, (index, look) in enumerate(looks):
            panel = panels[0 if binary else place]
            values = probabilities[labels == index, 1 if binary else index]
            shares = 100 * np.histogram(values, edges)[0] / len(values)
            panel.stairs(shares, edges, label=_class_name(target, index), **_unmarked(look))
            panel.stairs(shares, edges, fill=True, color=look["color"], alpha=0.2)
            if not binary:
                panel.set_title(_class_name(target, index), loc="left", pad=2)
        which = shortened(target.classes[1], 24) if binary else "the true class"
        panels[-1].set_xlabel(f"probability of {which}")
        figure.supylabel("members of the class (%)", fontsize=10)
        if binary:
            figure.legend(loc="outside upper left", ncols=2, handlelength=2.6)

    size = _SQUARE if binary else (_SQUARE[0], max(_SQUARE[1], 0.7 + 0.95 * len(looks)))
    return inline_svg(draw, size, name="histogram", label=label)


def calibration_curves(
    target: Target, labels: NDArray[np.int64], probabilities: NDArray[np.float64], *, label: str
) -> str:
    """Draw how often what has a probability comes true, in bins of as many units; see `roc_curves`.

    Of two classes with 95 % intervals of the shares (Wilson 1927, doi:10.2307/2276774).
    """
    binary = len(target.classes) == 2

    def draw(figure: Figure) -> None:
        panel = figure.subplots()
        panel.plot([0, 1], [0, 1], color=INK, linewidth=1.2, linestyle="dashed", label="right")
        for index, look in _lines(target):
            means, shares, sizes = calibration(labels == index, probabilities[:, index])
            name = _class_name(target, index)
            panel.plot(means, shares, markersize=5.5, label=name, **look)
            if binary:
                panel.vlines(means, *wilson(shares, sizes), color=look["color"], linewidth=1.4)
        panel.set_xlim(-0.02, 1.02)
        panel.set_ylim(-0.02, 1.02)
        panel.set_aspect("equal")
        which = f"of {shortened(target.classes[1], 20)}" if binary else "of the class"
        _finish(figure, panel, (f"mean probability {which}", f"observed share {which}"))

    return inline_svg(draw, _SQUARE, name="calibration", label=label)


def calibration(
    positive: NDArray[np.bool_], probability: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Return mean probability, share of positive units, and units, of bins of equal size.

    Parameters
    ----------
    positive : ndarray of bool, shape (n,)
        Who is of the class.
    probability : ndarray, shape (n,)
        Of being so.

    Returns
    -------
    tuple of ndarray, each of shape (bins,)
        At most 10 bins, of about 20 units or more; equal probabilities are in one bin.
    """
    n_bins = int(np.clip(len(positive) // _UNITS_PER_BIN, 2, _CALIBRATION_BINS))
    edges = np.unique(np.quantile(probability, np.linspace(0, 1, n_bins + 1)))
    bins = np.clip(np.searchsorted(edges, probability, side="right") - 1, 0, max(len(edges) - 2, 0))
    sizes = np.bincount(bins)
    there = sizes > 0
    means, shares = (
        np.bincount(bins, weights=values)[there] / sizes[there]
        for values in (probability, positive.astype(float))
    )
    return means, shares, sizes[there]


def wilson(
    shares: NDArray[np.float64], sizes: NDArray[np.int64], z: float = 1.959964
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the score interval of shares (Wilson 1927): lower and upper limits, (bins,) each."""
    scale = 1 + z**2 / sizes
    middle = (shares + z**2 / (2 * sizes)) / scale
    half = z / scale * np.sqrt(shares * (1 - shares) / sizes + z**2 / (4 * sizes**2))
    return middle - half, middle + half


def _lines(target: Target, every: bool = False) -> list[tuple[int, dict[str, Any]]]:
    """Return the classes that have a line, and how it looks: by colour, dashes and marker."""
    n_classes = len(target.classes)
    first = 1 if n_classes == 2 and not every else 0
    found = []
    for place, index in enumerate(range(first, min(n_classes, MOST_LINES))):
        colour, dashes, marker = (cycle[place % len(cycle)] for cycle in (COLOURS, LINES, MARKERS))
        look = {"color": colour, "linestyle": dashes, "marker": marker, "linewidth": 1.8}
        found.append((index, look))
    return found


def _unmarked(look: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in look.items() if key != "marker"}


def _class_name(target: Target, index: int) -> str:
    return shortened(target.classes[index], 22)

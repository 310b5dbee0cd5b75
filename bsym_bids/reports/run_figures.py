"""Figures of a BOLD run, each drawn onto an empty figure from arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bsym_bids.reports import networks
from bsym_bids.reports.style import (
    COLOURS,
    DARK_MARK,
    GRID,
    INK,
    LIGHT_MARK,
    LINES,
    MARKERS,
    MUTED,
    SMALL,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CARPET_SIZE, MATRIX_SIZE, CHORD_SIZE = (9.2, 6.4), (5.6, 4.6), (5.0, 5.0)
_STEPS = 48  # of brightness or colour, so that an image has few colours
#: Kept of a carpet: more columns than that would be narrower than a dot.
_MOST_COLUMNS = 500
#: Standard deviations at which a carpet is black or white.
_CARPET_LIMIT = 2.5
#: Of volumes without values in a carpet: vermillion, half transparent.
_CENSORED = (0.835, 0.369, 0.0, 0.6)
#: Half the width of a dot, in networks.
_DOT = 0.012
#: Arcs of a chord diagram: more could not be told apart.
CHORDS = 60


@dataclass(frozen=True, eq=False)
class Motion:
    """What moved, frame by frame.

    Attributes
    ----------
    displacement : ndarray, shape (T,)
        Framewise displacement in mm; NaN where it is not known.
    threshold : float
        Above which frames are censored, in mm; 0 for none.
    censored : ndarray of bool, shape (T,)
        Frames that count for nothing.
    """

    displacement: NDArray[np.float64]
    threshold: float
    censored: NDArray[np.bool_]


def draw_carpet(
    figure: Figure,
    raw: NDArray[np.float64],
    cleaned: NDArray[np.float64],
    motion: Motion,
    repetition_time: float,
) -> None:
    """Draw motion, the change from frame to frame, and the series of all ROIs, as grey values.

    Parameters
    ----------
    figure : Figure
        Empty, about of `CARPET_SIZE`.
    raw, cleaned : ndarray, shape (T, 450)
        Series before and after cleaning; NaN for what was not measured or was censored.
    motion : Motion
        Displacement and censored frames.
    repetition_time : float
        In seconds.
    """
    minutes = np.arange(len(raw)) * repetition_time / 60
    grid = figure.subplots(4, 1, sharex=True, height_ratios=(1, 1, 2.4, 2.4))
    _draw_displacement(grid[0], minutes, motion)
    _draw_dvars(grid[1], minutes, raw, cleaned)
    for axes, series, title in ((grid[2], raw, "before"), (grid[3], cleaned, "after")):
        _draw_series(axes, series, minutes, f"ROIs, {title}\ncleaning")
    for axes in grid[:2]:
        _mark_censored(axes, minutes, motion.censored, repetition_time / 60)
        axes.margins(x=0)
    grid[3].set_xlabel("time (min)")
    figure.align_ylabels(grid)


def _draw_displacement(axes: Axes, minutes: NDArray[np.float64], motion: Motion) -> None:
    axes.plot(minutes, motion.displacement, color=COLOURS[0], linewidth=0.9)
    if motion.threshold:
        axes.axhline(motion.threshold, color=COLOURS[1], linestyle="dashed", linewidth=0.9)
    known = motion.displacement[np.isfinite(motion.displacement)]
    top = max(0.5, motion.threshold * 1.2, float(known.max(initial=0)) * 1.05)
    axes.set_ylim(0, top)
    axes.set_ylabel("FD (mm)")
    if not known.size:
        axes.text(0.5, 0.5, "not known", transform=axes.transAxes, ha="center", va="center")


def _draw_dvars(
    axes: Axes,
    minutes: NDArray[np.float64],
    raw: NDArray[np.float64],
    cleaned: NDArray[np.float64],
) -> None:
    for index, (series, label) in enumerate(((raw, "before"), (cleaned, "after"))):
        change = relative_dvars(series)
        style = {"color": COLOURS[index], "linestyle": LINES[index], "linewidth": 0.9}
        axes.plot(minutes, change, label=f"{label} cleaning", **style)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("DVARS\n(x median)")
    axes.legend(loc="upper right", ncols=2, fontsize=SMALL, borderpad=0.1)


def relative_dvars(series: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return DVARS over ROIs by its median (Power et al. 2012); NaN beside censored frames."""
    measured = np.isfinite(series).any(axis=0)
    steps = np.diff(series[:, measured], axis=0)
    if not steps.shape[1]:
        return np.full(len(series), np.nan)
    dvars = np.concatenate([[np.nan], np.sqrt((steps**2).mean(axis=1))])
    known = dvars[np.isfinite(dvars)]
    middle = float(np.median(known)) if known.size else 0.0
    return dvars / middle if middle else dvars


def _mark_censored(
    axes: Axes, minutes: NDArray[np.float64], censored: NDArray[np.bool_], width: float
) -> None:
    for start, stop in _stretches(censored):
        axes.axvspan(
            minutes[start] - width / 2,
            minutes[stop - 1] + width / 2,
            color=COLOURS[1],
            alpha=0.3,
            linewidth=0,
        )


def _stretches(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return where a mask is true, as starts and stops."""
    steps = np.diff(np.concatenate([[0], mask.astype(int), [0]]))
    return list(zip(np.flatnonzero(steps == 1), np.flatnonzero(steps == -1), strict=True))


def _draw_series(
    axes: Axes,
    series: NDArray[np.float64],
    minutes: NDArray[np.float64],
    label: str,
) -> None:
    known = np.isfinite(series)
    kept = series[known.any(axis=1)]
    middle, spread = kept.mean(axis=0), kept.std(axis=0)  # NaN of ROIs that were not measured
    scores = ((series - middle) / np.where(spread > 0, spread, np.nan)).T[networks.order()]
    image = _fewer_columns(scores, max(1, -(-scores.shape[1] // _MOST_COLUMNS)))
    drawn = coloured(image, -_CARPET_LIMIT, _CARPET_LIMIT, "gray")
    drawn[:, ~np.isfinite(image).any(axis=0)] = _CENSORED
    ends = (minutes[0], minutes[-1]) if len(minutes) > 1 else (0.0, 1.0)
    step = (ends[1] - ends[0]) / max(1, len(minutes) - 1) / 2
    axes.imshow(
        drawn,
        aspect="auto",
        interpolation="nearest",
        extent=(ends[0] - step, ends[1] + step, len(scores), 0),
    )
    _name_networks(axes.set_yticks, axes.axhline)
    axes.set_ylabel(label)


def _fewer_columns(values: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Return means of so many columns each; NaN where none has a value."""
    width = -(-values.shape[1] // count)
    whole = np.full((len(values), width * count), np.nan)
    whole[:, : values.shape[1]] = values
    blocks = whole.reshape(len(values), width, count)
    known = np.isfinite(blocks)
    counts = known.sum(axis=2)
    sums = np.where(known, blocks, 0).sum(axis=2)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def coloured(
    values: NDArray[np.floating], low: float, high: float, colours: str
) -> NDArray[np.floating]:
    """Return numbers as colours, of which there are few; what is NaN is transparent."""
    from matplotlib import colormaps

    shares = np.clip((np.nan_to_num(values) - low) / (high - low), 0, 1)
    image = colormaps[colours](np.rint(shares * (_STEPS - 1)) / (_STEPS - 1))
    image[~np.isfinite(values)] = 0
    return image


def _name_networks(set_ticks: Callable[..., object], draw_line: Callable[..., object]) -> None:
    """Name the networks along an axis of ROIs, and draw lines between them."""
    ends = np.cumsum([0, *networks.sizes().values()])
    for end in ends[1:-1]:
        draw_line(end, color=MUTED, linewidth=0.6)
    set_ticks((ends[:-1] + ends[1:]) / 2, list(networks.sizes()))


def draw_matrix(
    figure: Figure,
    matrix: NDArray[np.floating],
    *,
    limits: tuple[float, float],
    colours: str,
    label: str,
    ground: str = GRID,
) -> None:
    """Draw a matrix over ROIs, network by network.

    Parameters
    ----------
    figure : Figure
        Empty, about of `MATRIX_SIZE`.
    matrix : ndarray, shape (450, 450)
        NaN for what was not measured.
    limits : tuple of float
        Ends of the scale.
    colours : str
        Colour map of matplotlib.
    label : str
        What the numbers are, with their unit.
    ground : str
        Of what was not measured.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    axes = figure.subplots()
    order = networks.order()
    image = matrix[np.ix_(order, order)]
    extent = (0, len(order), len(order), 0)
    drawn = coloured(image, *limits, colours)
    axes.imshow(drawn, interpolation="none", extent=extent)
    _name_networks(axes.set_yticks, axes.axhline)
    _name_networks(axes.set_xticks, axes.axvline)
    axes.tick_params(axis="x", rotation=55)
    for tick in axes.get_xticklabels():
        tick.set(horizontalalignment="right", rotation_mode="anchor")
    axes.set_facecolor(ground)
    figure.colorbar(ScalarMappable(Normalize(*limits), colours), ax=axes, label=label, shrink=0.8)


def draw_by_network(
    figure: Figure,
    values: Mapping[str, NDArray[np.floating]],
    label: str,
    zero: float | None = 0.0,
) -> None:
    """Draw values of ROIs as dots network by network, several kinds side by side, with means.

    Parameters
    ----------
    figure : Figure
        Empty, about (8.2, 3).
    values : mapping of str to ndarray, shape (450,)
        By what they are called.
    label : str
        What they are, with their unit.
    zero : float, optional
        A line to compare with.
    """
    axes = figure.subplots()
    rng = np.random.default_rng(0)
    width = 0.8 / len(values)
    for index, (name, numbers) in enumerate(values.items()):
        colour, marker = COLOURS[index], MARKERS[index]
        for place, network in enumerate(networks.NAMES):
            own = numbers[networks.members(network)]
            own = own[np.isfinite(own)]
            if not own.size:
                continue
            centre = place + (index - (len(values) - 1) / 2) * width
            spread = rng.uniform(-0.3, 0.3, own.size) * width
            _dots(axes, centre + spread, own, colour)
            axes.plot(
                centre,
                own.mean(),
                marker,
                color=colour,
                markersize=6,
                markeredgecolor=INK,
                markeredgewidth=0.6,
                label=name if place == 0 else None,
            )
    if zero is not None:
        axes.axhline(zero, color=MUTED, linewidth=0.8)
    axes.set_xticks(range(len(networks.NAMES)), list(networks.NAMES))
    axes.set_ylabel(label)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    low, high = _window(list(values.values()))
    axes.set_ylim(low, high)
    if len(values) > 1:
        figure.legend(loc="outside upper center", ncols=len(values))


def _dots(axes: Axes, x: NDArray[np.floating], y: NDArray[np.floating], colour: str) -> None:
    """Draw small dots as one line of short pieces: much smaller than markers, and with a theme."""
    pieces = np.stack([x - _DOT, x + _DOT, np.full(len(x), np.nan)], axis=1).ravel()
    (line,) = axes.plot(pieces, np.repeat(y, 3), color=colour, alpha=0.55, linewidth=1.8)
    line.get_path().should_simplify = False


def _window(kinds: Sequence[NDArray[np.floating]]) -> tuple[float, float]:
    """Return limits that hold all but the furthest 1 % of the values on either side."""
    numbers = np.concatenate([kind[np.isfinite(kind)] for kind in kinds])
    if not numbers.size:
        return 0.0, 1.0
    low, high = np.percentile(numbers, [1, 99])
    pad = 0.1 * (high - low) or 0.1
    return float(min(low, 0) - pad), float(max(high, 0) + pad)


def strongest_pairs(
    matrix: NDArray[np.floating], count: int = CHORDS
) -> list[tuple[int, int, float]]:
    """Return the largest entries off the diagonal: row, column, value, largest first."""
    values = np.array(matrix, dtype=float)
    np.fill_diagonal(values, np.nan)
    flat = np.where(np.isfinite(values), values, -np.inf).ravel()
    best = np.argsort(-flat, kind="stable")[:count]
    pairs = [(*divmod(int(index), len(values)), float(flat[index])) for index in best]
    return [pair for pair in pairs if pair[2] > 0]


def _around(place: int, size: int) -> tuple[float, float]:
    """Return the ends of an arc that can be seen, around an ROI of a network."""
    return max(0.0, place - 0.5), min(float(size), place + 1.5)


def draw_chords(figure: Figure, attention: NDArray[np.floating], count: int = CHORDS) -> None:
    """Draw the strongest attention between different ROIs as chords of a circle of networks.

    Parameters
    ----------
    figure : Figure
        Empty, about of `CHORD_SIZE`.
    attention : ndarray, shape (450, 450)
        Of the row's ROI to the column's.
    count : int
        How many.
    """
    from pycirclize import Circos

    circos = Circos(networks.sizes(), space=4)
    order = networks.order()
    place = np.empty(len(order), int)  # of an ROI in its network
    owner = {}
    start = 0
    for name, size in networks.sizes().items():
        for offset, roi in enumerate(order[start : start + size]):
            place[roi], owner[int(roi)] = offset, name
        start += size
    for sector in circos.sectors:
        track = sector.add_track((93, 100))
        track.axis(fc=networks.COLOURS[sector.name], ec="none")
        sector.text(sector.name, r=107, size=9, color=INK)
    pairs = strongest_pairs(attention, count)
    strongest = pairs[0][2] if pairs else 1.0
    for row, column, value in reversed(pairs):
        source, target = (
            (owner[roi], *_around(place[roi], networks.sizes()[owner[roi]]))
            for roi in (column, row)
        )
        circos.link(
            source,
            target,
            color=networks.COLOURS[owner[column]],
            alpha=0.4 + 0.5 * value / strongest,
        )
    figure.set_layout_engine(None)
    axes = figure.add_axes((0.08, 0.08, 0.84, 0.84), projection="polar")
    circos.plotfig(ax=axes)


def draw_network_means(
    figure: Figure, matrix: NDArray[np.floating], label: str, colours: str = "RdBu_r"
) -> None:
    """Draw the mean of a matrix over ROIs within and between networks, diagonal left out.

    Parameters
    ----------
    figure : Figure
        Empty, about (5.2, 4.4).
    matrix : ndarray, shape (450, 450)
        NaN for what was not measured.
    label : str
        What the numbers are.
    colours : str
        Colour map of matplotlib.
    """
    means = network_means(matrix)
    finite = np.abs(means[np.isfinite(means)])
    most = float(finite.max(initial=0)) or 1.0
    axes = figure.subplots()
    shown = axes.imshow(means, cmap=colours, vmin=-most, vmax=most)
    for (row, column), value in np.ndenumerate(means):
        if np.isfinite(value):
            ink = LIGHT_MARK if abs(value) > 0.65 * most else DARK_MARK
            text = f"{value:.2f}".replace("-", "\N{MINUS SIGN}")
            axes.text(column, row, text, ha="center", va="center", fontsize=SMALL, color=ink)
    axes.set_yticks(range(len(means)), list(networks.NAMES))
    axes.set_xticks(range(len(means)), list(networks.NAMES), rotation=55, ha="right")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(shown, ax=axes, label=label, shrink=0.8)


def network_means(matrix: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the mean within and between networks, shape (8, 8), without the diagonal."""
    values = np.array(matrix, dtype=float)
    np.fill_diagonal(values, np.nan)
    known = np.isfinite(values)
    rows = np.stack([networks.members(name) for name in networks.NAMES]).astype(float)
    counts = rows @ known @ rows.T
    sums = rows @ np.where(known, values, 0) @ rows.T
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)

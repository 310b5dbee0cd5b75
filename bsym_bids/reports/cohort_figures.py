"""Figures of a cohort: identification, reliability, contrasts.

Every function writes one file, SVG or PNG by its suffix. Colours are those of Okabe & Ito and a
diverging map of red and blue, which can be told apart without red or green cones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bsym_bids import atlas
from bsym_bids.cohort.contrast import MEASURES, ContrastMap, EmbeddingShift, pair_matrix
from bsym_bids.cohort.edges import networks_in_order
from bsym_bids.cohort.identification import KINDS, Identification
from bsym_bids.model.networks import FEATURES
from bsym_bids.reports.style import COLOURS, MARKERS, figure_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_HIGHER, _LOWER, _PLAIN = COLOURS[1], COLOURS[0], "#9A9A9A"
_MOST_NAMES = 15
#: What figures say where there are no permutations, or nothing that could be tested.
_NO_P = "no p-values: nothing was tested"
#: Width and height of what a view along each axis shows, in mm; one height, so that titles align.
_VIEW_MM = ((190, 190), (150, 190), (150, 190))
_DIVERGING, _SEQUENTIAL = "RdBu_r", "viridis_r"
#: Full names of the networks, for axes.
NETWORK_NAMES: Mapping[str, str] = {
    "all": "all",
    "Vis": "visual",
    "SomMot": "somatomotor",
    "DorsAttn": "dorsal attention",
    "SalVentAttn": "ventral attention",
    "Limbic": "limbic",
    "Cont": "control",
    "Default": "default mode",
    "Subcortex": "subcortex",
}


def draw_identification(results: Mapping[str, Sequence[Identification]], path: Path) -> None:
    """Draw how often people are identified, a panel per comparison.

    Parameters
    ----------
    results : mapping of str to sequence of Identification
        By the name of the features, in order from the top.
    path : Path
        An SVG or PNG.
    """
    kinds = [r.comparison.kind for own in results.values() for r in own]
    kinds = list(dict.fromkeys(sorted(kinds, key=list(KINDS).index)))
    height = 1.3 + 0.55 * len(results)
    with figure_file(path, (max(6.4, 1.6 + 3.4 * len(kinds)), height)) as figure:
        panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
        for panel, kind in zip(panels, kinds, strict=True):
            own = {
                name: [r for r in found if r.comparison.kind == kind]
                for name, found in results.items()
            }
            _identification_panel(panel, own)
        panels[0].set_yticks(range(len(results)), list(results))
        panels[0].invert_yaxis()
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)


def draw_reliability(tables: Mapping[str, Mapping[str, Sequence[Any]]], path: Path) -> None:
    """Draw the reliability of features by network: medians, and the range of the middle half.

    Parameters
    ----------
    tables : mapping of str to mapping
        Tables of `bsym_bids.cohort.reliability.table` by the name of the features.
    path : Path
        An SVG or PNG.
    """
    networks = list(dict.fromkeys(name for table in tables.values() for name in table["network"]))
    with figure_file(path, (7.2, 1.6 + 0.13 * len(networks) * (len(tables) + 1))) as figure:
        panel = figure.subplots()
        for place, (name, table) in enumerate(tables.items()):
            offset = (place - (len(tables) - 1) / 2) * 0.7 / max(len(tables), 2)
            rows = np.array([networks.index(network) for network in table["network"]]) + offset
            median, low, high = (
                np.asarray(table[f"icc_{key}"]) for key in ("median", "q25", "q75")
            )
            colour, marker = (cycle[place % len(cycle)] for cycle in (COLOURS, MARKERS))
            panel.hlines(rows, low, high, color=colour, linewidth=1.5)
            panel.plot(median, rows, marker, color=colour, markersize=5, label=name)
        _reliability_axes(panel, networks)
        figure.legend(loc="outside lower center", ncols=min(len(tables), 3))


def draw_recovery(table: Mapping[str, Sequence[Any]], model: str, path: Path) -> None:
    """Draw how often the network of an ROI is told right, with the spread over people.

    Parameters
    ----------
    table : mapping
        Of `bsym_bids.cohort.recovery.CohortRecovery.table`.
    model : str
        Name of the model.
    path : Path
        An SVG or PNG.
    """
    names = [FEATURES[name] for name in table["what"]]
    rows = np.arange(len(names))
    with figure_file(path, (7.6, 1.8 + 0.36 * len(names))) as figure:
        panel = figure.subplots()
        ways = (("accuracy", "ROIs of five folds"), ("left_to_right", "right by left hemisphere"))
        for place, (column, label) in enumerate(ways):
            means = 100 * np.asarray(table[column])
            spreads = 100 * np.nan_to_num(np.asarray(table[f"{column}_sd"], dtype=float))
            height = rows + 0.22 * (place - 0.5)
            colour, marker = COLOURS[place], MARKERS[place]
            panel.hlines(height, means - spreads, means + spreads, color=colour, linewidth=1.5)
            panel.plot(means, height, marker, color=colour, markersize=5, label=label)
        chance = 100 * table["chance"][0]
        panel.axvline(chance, color="black", linestyle=":", linewidth=1, label="largest network")
        panel.set_yticks(rows, names)
        panel.invert_yaxis()
        panel.set_xlim(0, 100)
        panel.set_xlabel("network told right (% of ROIs)")
        people = table["n_people"][0]
        said = f"{people} people: mean and standard deviation" if people > 1 else "one person"
        panel.set_title(f"{model}, {said}", loc="left")
        figure.legend(loc="outside lower center", ncols=3)


def draw_roi_contrast(result: ContrastMap | EmbeddingShift, path: Path) -> None:
    """Draw the difference of every ROI by network, with significant ones marked and named.

    Parameters
    ----------
    result : ContrastMap or EmbeddingShift
        Of the ROIs.
    path : Path
        An SVG or PNG.
    """
    values, significant, label = _roi_values(result)
    order = networks_in_order(result.networks)
    rank = -np.abs(result.tests.t if isinstance(result, ContrastMap) else values)
    marked = [int(roi) for roi in np.argsort(rank) if significant[roi]]
    with figure_file(path, (9.0, 4.6)) as figure:
        panel, legend = figure.subplots(1, 2, width_ratios=(2.2, 1))
        heights = _strip_heights(values, result.networks, order)
        _boxes(panel, values, result.networks, order)
        panel.plot(values[~significant], heights[~significant], "o", color=_PLAIN, markersize=3)
        _mark(panel, values, heights, marked, signed=isinstance(result, ContrastMap))
        panel.axvline(_null_value(result), color="black", linewidth=0.8)
        panel.set_yticks(range(len(order)), [NETWORK_NAMES.get(name, name) for name in order])
        panel.set_ylim(len(order) - 0.5, -0.5)
        panel.set_xlabel(label)
        panel.ticklabel_format(axis="x", style="sci", scilimits=(-2, 4), useMathText=True)
        _list_of_rois(legend, result, marked)


def draw_network_matrix(result: ContrastMap, path: Path) -> None:
    """Draw the difference of each pair of networks; significant ones are framed.

    Parameters
    ----------
    result : ContrastMap
        Of the pairs of networks.
    path : Path
        An SVG or PNG.
    """
    n_networks = round((np.sqrt(8 * len(result.names) + 1) - 1) / 2)
    matrix = pair_matrix(result.tests.difference, n_networks)
    significant = pair_matrix(result.significant, n_networks) > 0
    order = [name.split("-")[1] for name in result.names[:n_networks]]
    names = [NETWORK_NAMES.get(name, name) for name in order]
    limit = _limit(matrix)
    with figure_file(path, (6.8, 5.4)) as figure:
        panel = figure.subplots()
        image = panel.imshow(matrix, cmap=_DIVERGING, vmin=-limit, vmax=limit)
        for row, column in np.ndindex(matrix.shape):
            _cell(panel, row, column, matrix[row, column], significant[row, column], limit)
        panel.set_xticks(range(n_networks), names, rotation=40, ha="right", rotation_mode="anchor")
        panel.set_yticks(range(n_networks), names)
        panel.tick_params(length=0)
        panel.spines[:].set_visible(False)
        n_tested = int(np.isfinite(result.tests.p_corrected).sum())
        note = f"framed: p < 0.05, corrected for {n_tested} pairs of networks"
        panel.set_title(note if n_tested else _NO_P, loc="left")
        figure.colorbar(image, shrink=0.8, label=_difference_label(result))


def draw_glass_brain(result: ContrastMap | EmbeddingShift, path: Path) -> None:
    """Draw every ROI of the atlas at its centre, coloured by its difference, in four views.

    Parameters
    ----------
    result : ContrastMap or EmbeddingShift
        Of the 450 ROIs; those that are significant are large and framed.
    path : Path
        An SVG or PNG.
    """
    values, significant, label = _roi_values(result)
    signed = isinstance(result, ContrastMap)
    limit = _limit(values)
    low = -limit if signed else 0.0
    left = np.array([roi.hemisphere == "L" for roi in atlas.rois()])
    views = {
        "left hemisphere": (0, left, False),
        "right hemisphere": (0, ~left, True),
        "from above": (2, np.ones_like(left), False),
        "from behind": (1, np.ones_like(left), False),
    }
    with figure_file(path, (9.0, 3.4)) as figure:
        panels = figure.subplots(
            1, len(views), width_ratios=[_VIEW_MM[axis][0] for axis, _, _ in views.values()]
        )
        for panel, (title, (axis, shown, turned)) in zip(panels, views.items(), strict=True):
            _outline(panel, axis, turned)
            marks = _view(panel, axis, values, significant, shown, (low, limit), signed)
            panel.set_title(title)
        bar = figure.colorbar(
            marks, ax=panels, location="bottom", shrink=0.5, aspect=40, label=label
        )
        bar.formatter.set_powerlimits((-2, 4))
        bar.formatter.set_useMathText(True)
        note = "large, framed: p < 0.05" if significant.any() else "none has p < 0.05"
        n_tested = int(np.isfinite(_corrected(result)).sum())
        title = f"{note}, corrected for {n_tested} ROIs" if n_tested else _NO_P
        figure.suptitle(title, x=0.01, ha="left", fontsize=9)


@cache
def roi_centres() -> NDArray[np.float64]:
    """Return the centre of mass of each ROI in the packaged volume of MNI152NLin2009cAsym.

    Returns
    -------
    ndarray, shape (450, 3)
        In mm: to the right, to the front, up. Read-only.
    """
    import nibabel as nib
    from scipy.ndimage import center_of_mass

    image = nib.load(atlas.volume_path(atlas.SPACES[0], 2))
    labels = np.asarray(image.dataobj, dtype=np.int16)
    voxels = center_of_mass(labels > 0, labels, range(1, atlas.N_ROIS + 1))
    centres = nib.affines.apply_affine(image.affine, np.array(voxels))
    centres.setflags(write=False)
    return centres


def _identification_panel(panel: Axes, results: Mapping[str, Sequence[Identification]]) -> None:
    for removed, colour in ((False, COLOURS[4]), (True, COLOURS[0])):
        found = [
            (place, result)
            for place, own in enumerate(results.values())
            for result in own
            if result.mean_removed == removed
        ]
        rates = np.array([result.rate for _, result in found])
        bounds = np.array([result.interval for _, result in found]).reshape(-1, 2)
        panel.barh(
            [place + (0.19 if removed else -0.19) for place, _ in found],
            100 * rates,
            height=0.36,
            color=colour,
            xerr=100 * np.abs(bounds.T - rates),
            error_kw={"elinewidth": 1, "capsize": 2},
            label="mean over people removed" if removed else "features as they are",
        )
    places = [place for place, own in enumerate(results.values()) if own]
    found = [own[0] for own in results.values() if own]
    chances = [100 * result.chance for result in found]
    low, high = np.array(places) - 0.45, np.array(places) + 0.45
    panel.vlines(chances, low, high, "black", "dashed", linewidth=1, label="chance")
    kind = found[0].comparison.kind
    what = "other half of the run" if kind == "half" else f"another {kind}"
    people = _span([result.hits.shape[1] for result in found])
    candidates = _span([round(1 / result.chance) for result in found])
    panel.set_title(f"{what}: {people} people\namong {candidates} candidates", loc="left")
    panel.set_xlim(0, 100)
    panel.set_xlabel("people identified (%)")


def _span(numbers: Sequence[int]) -> str:
    """Return what numbers are, in words: one, or from the smallest to the largest."""
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def _reliability_axes(panel: Axes, networks: Sequence[str]) -> None:
    """Label the axes, with the ranges of Cicchetti 1994 at the top."""
    low = min(0.0, panel.get_xlim()[0])
    panel.set_xlim(low, 1)
    bounds = (max(low, 0.0), 0.4, 0.6, 0.75, 1.0)
    for start, end, name in zip(bounds, bounds[1:], _GRADES, strict=False):
        panel.axvline(start, color="#DDDDDD", linewidth=0.8, zorder=0)
        panel.text((start + end) / 2, -0.75, name, ha="center", va="bottom", color="#555555")
    panel.set_yticks(range(len(networks)), [NETWORK_NAMES.get(name, name) for name in networks])
    panel.set_ylim(len(networks) - 0.5, -0.7)
    panel.set_xlabel("reliability, ICC(1,1): median and middle half of the features")


_GRADES = ("poor", "fair", "good", "excellent")


def _roi_values(
    result: ContrastMap | EmbeddingShift,
) -> tuple[NDArray[np.float64], NDArray[np.bool_], str]:
    """Return what is drawn of each ROI, whether it is significant, and what the axis says."""
    if isinstance(result, ContrastMap):
        return result.tests.difference, result.significant, _difference_label(result)
    label = "common change of the mean embedding\n(1: as large as by chance)"
    return result.relative_size, result.p_corrected < 0.05, label


def _corrected(result: ContrastMap | EmbeddingShift) -> NDArray[np.float64]:
    return (result.tests if isinstance(result, ContrastMap) else result).p_corrected


def _difference_label(result: ContrastMap) -> str:
    measure = MEASURES[result.measure]
    what = {"attention": "incoming attention"}.get(result.measure, result.measure)
    states = f"{result.contrast.name_a} minus {result.contrast.name_b}"
    return f"difference of {what} ({measure.unit})\n{states}"


def _null_value(result: ContrastMap | EmbeddingShift) -> float:
    return 0.0 if isinstance(result, ContrastMap) else 1.0


def _limit(values: NDArray[np.float64]) -> float:
    """Return the largest size among values, 1 where there is none."""
    return float(np.nan_to_num(np.abs(values)).max(initial=0)) or 1.0


def _strip_heights(
    values: NDArray[np.float64], networks: Sequence[str], order: Sequence[str]
) -> NDArray[np.float64]:
    """Return where on its network's row each ROI is drawn: spread evenly, not at random."""
    heights = np.array([float(order.index(name)) for name in networks])
    for row in range(len(order)):
        own = np.flatnonzero(heights == row)
        own = own[np.argsort(values[own])]
        heights[own] += 0.3 * (np.arange(own.size) * 0.618034 % 1 * 2 - 1)
    return heights


def _boxes(
    panel: Axes, values: NDArray[np.float64], networks: Sequence[str], order: Sequence[str]
) -> None:
    labels = np.asarray(networks)
    panel.boxplot(
        [values[(labels == name) & np.isfinite(values)] for name in order],
        positions=range(len(order)),
        orientation="horizontal",
        widths=0.75,
        showfliers=False,
        patch_artist=True,
        boxprops={"facecolor": "#EFEFEF", "edgecolor": "none"},
        medianprops={"color": "black", "linewidth": 1.2},
        whiskerprops={"color": "#CCCCCC"},
        capprops={"color": "#CCCCCC"},
        zorder=0,
    )


def _mark(
    panel: Axes,
    values: NDArray[np.float64],
    heights: NDArray[np.float64],
    marked: Sequence[int],
    signed: bool,
) -> None:
    """Mark significant ROIs by colour and shape, the first ones with their number.

    A number that would cover another one is left out.
    """
    width = np.ptp(values[np.isfinite(values)]) or 1.0
    numbered: list[int] = []
    for number, roi in enumerate(marked, 1):
        higher = values[roi] > 0 or not signed
        symbol, colour = ("^", _HIGHER) if higher else ("v", _LOWER)
        panel.plot(
            values[roi],
            heights[roi],
            symbol,
            color=colour,
            markersize=6 if len(marked) <= _MOST_NAMES else 4.5,
            markeredgecolor="white",
            markeredgewidth=0.4,
        )
        crowded = any(
            abs(values[roi] - values[other]) < 0.04 * width
            and abs(heights[roi] - heights[other]) < 0.3
            for other in numbered
        )
        if number <= _MOST_NAMES and not crowded:
            numbered.append(roi)
            _number(panel, number, values[roi], heights[roi], 5 if higher else -5)


def _number(panel: Axes, number: int, x: float, y: float, offset: float) -> None:
    """Write the number of an ROI beside its mark."""
    from matplotlib.patheffects import withStroke

    panel.annotate(
        str(number),
        (x, y),
        xytext=(offset, 0),
        textcoords="offset points",
        ha="left" if offset > 0 else "right",
        va="center",
        fontsize=8,
        zorder=5,
        path_effects=[withStroke(linewidth=2, foreground="white")],
    )


def _list_of_rois(panel: Axes, result: ContrastMap | EmbeddingShift, marked: Sequence[int]) -> None:
    """Write the names of the marked ROIs beside the strips."""
    corrected = _corrected(result)
    n_tested = int(np.isfinite(corrected).sum())
    lines = [f"p < 0.05, corrected for {n_tested} ROIs:" if n_tested else _NO_P]
    for number, roi in enumerate(marked[:_MOST_NAMES], 1):
        lines.append(f"{number}  {_short(result.names[roi])}  (p {_p_text(corrected[roi])})")
    if len(marked) > _MOST_NAMES:
        lines.append(f"and {len(marked) - _MOST_NAMES} more, see the table")
    if n_tested and not marked:
        lines.append("none")
    panel.axis("off")
    panel.text(0, 1, "\n".join(lines), va="top", transform=panel.transAxes, linespacing=1.4)


def _short(name: str) -> str:
    """Return the name of an ROI without what all names of the cortex share."""
    return name.removeprefix("7Networks_").replace("_", " ")


def _p_text(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def _cell(
    panel: Axes, row: int, column: int, value: float, significant: bool, limit: float
) -> None:
    """Write the value of a pair of networks into its cell, and frame it."""
    if not np.isfinite(value):
        panel.text(column, row, "n/a", ha="center", va="center", color="#777777", fontsize=8)
        return
    panel.text(
        column,
        row,
        _signed(value, 3 if limit < 0.1 else 2),
        ha="center",
        va="center",
        color="white" if abs(value) > 0.6 * limit else "black",
        fontsize=8,
        weight="bold" if significant else "normal",
    )
    if significant:
        from matplotlib.patches import Rectangle

        corner = (column - 0.46, row - 0.46)
        panel.add_patch(Rectangle(corner, 0.92, 0.92, fill=False, edgecolor="black", linewidth=1.8))


def _signed(value: float, digits: int) -> str:
    """Return a number with its sign and without the 0 before the point: +.012, −.3, 0."""
    text = f"{abs(value):.{digits}f}"
    if not float(text):
        return "0"
    return ("+" if value > 0 else "\N{MINUS SIGN}") + text.removeprefix("0")


@cache
def _silhouette(axis: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the two coordinates (mm) and the shadow (.., ..) of the brain along an axis."""
    import nibabel as nib

    folder = Path(__file__).parents[1] / "data" / "templates"
    image = nib.load(folder / "tpl-MNI152NLin2009cAsym_res-01_desc-brain_mask.nii.gz")
    shadow = (np.asarray(image.dataobj) > 0).any(axis=axis)
    across, up = (which for which in range(3) if which != axis)
    coordinates = [
        image.affine[which, which] * np.arange(image.shape[which]) + image.affine[which, 3]
        for which in (across, up)
    ]
    return coordinates[0], coordinates[1], shadow.astype(np.float64)


def _outline(panel: Axes, axis: int, turned: bool) -> None:
    across, up, shadow = _silhouette(axis)
    panel.contour(across, up, shadow.T, levels=[0.5], colors="#888888", linewidths=1)
    inside = across[shadow.any(axis=1)], up[shadow.any(axis=0)]
    (left, right), (low, high) = (
        ((x.min() + x.max() - span) / 2, (x.min() + x.max() + span) / 2)
        for x, span in zip(inside, _VIEW_MM[axis], strict=True)
    )
    panel.set(xlim=(left, right), ylim=(low, high), aspect="equal")
    panel.axis("off")
    if (axis == 0) != turned:
        panel.invert_xaxis()  # the left hemisphere from the left: the front is on the left
    if axis != 0:
        for side, place in (("L", 0.05), ("R", 0.95)):
            panel.text(place, 0.85, side, ha="center", va="top", transform=panel.transAxes)


def _view(
    panel: Axes,
    axis: int,
    values: NDArray[np.float64],
    significant: NDArray[np.bool_],
    shown: NDArray[np.bool_],
    limits: tuple[float, float],
    signed: bool,
) -> Any:
    """Draw the ROIs that a view shows, the largest differences on top."""
    own = np.flatnonzero(shown & np.isfinite(values))
    own = own[np.lexsort((np.abs(values[own]), significant[own]))]
    across, up = (which for which in range(3) if which != axis)
    return panel.scatter(
        roi_centres()[own, across],
        roi_centres()[own, up],
        c=values[own],
        s=np.where(significant[own], 42, 12),
        edgecolors=np.where(significant[own], "black", "#BBBBBB"),
        linewidths=np.where(significant[own], 1.0, 0.3),
        cmap=_DIVERGING if signed else _SEQUENTIAL,
        vmin=limits[0],
        vmax=limits[1],
    )

"""What a participant's page shows of a BOLD run, from the files that were written of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bsym_bids import atlas
from bsym_bids.errors import BadDataError
from bsym_bids.outputs.reading import (
    WrittenRun,
    read_embedding,
    read_matrix,
    read_numbers,
    read_roi_column,
    read_roi_series,
    read_sidecar,
    read_timeseries,
    read_windows,
)
from bsym_bids.reports import brain_map, networks, run_figures
from bsym_bids.reports.numbers import NONE, plain
from bsym_bids.reports.parts import Block, Figures, SeriesSection, Table, named, plural
from bsym_bids.reports.slices import SIZE as SLICES_SIZE
from bsym_bids.reports.slices import Image, atlas_borders, draw_slices, read_image
from bsym_bids.reports.style import MUTED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bsym_bids.outputs.names import RunNames

_NO_IMAGE = (
    "There is no mean image to lay the ROIs on: the series has grayordinates, or it was made by an "
    "earlier version."
)
_BY_NETWORK = (8.2, 3.0)
MEANS_SIZE = (5.2, 4.4)


def run_section(output_dir: Path, run: WrittenRun, name: str, coarseness: int = 1) -> SeriesSection:
    """Collect what is shown of a run.

    Parameters
    ----------
    output_dir : Path
        Root of the output dataset.
    run : WrittenRun
        The run.
    name : str
        Anchor of the section.
    coarseness : int
        Of images, see `Figures`.
    """
    names, figures = run.names(output_dir), Figures(name, coarseness)
    has_model = names.path("embedding").is_file()
    model = sidecar_or_nothing(names.path("embedding")) if has_model else {}
    blocks = [
        _signal(run, names, figures),
        _cleaning(run, names, figures),
        _connectivity(names, figures),
    ]
    if has_model:
        blocks += [
            _reconstruction(names, figures),
            _attention(names, figures),
            _embedding(names, figures),
        ]
    if names.path("gate").is_file():
        blocks.append(_gate(names, figures))
    warnings = [str(model["Warning"])] if model.get("Warning") else []
    warnings += [str(said) for said in model.get("ModelContractDeviations") or ()]
    notes = dict.fromkeys([*run.notes, *map(str, model.get("Notes") or ())])
    return SeriesSection(
        name,
        run.label,
        "BOLD run",
        tuple(_facts(run, model)),
        tuple(warnings),
        tuple(blocks),
        tuple(notes),
    )


def sidecar_or_nothing(path: Path) -> Mapping[str, Any]:
    """Return what the sidecar of a file says; nothing where it cannot be read."""
    try:
        return read_sidecar(path)
    except BadDataError:
        return {}


def _facts(run: WrittenRun, model: Mapping[str, Any]) -> list[tuple[str, str]]:
    settings = run.sidecar.get("TimeSeriesSettings") or {}
    strategy = settings.get("NuisanceStrategy") or {}
    confounds = run.sidecar.get("Confounds") or []
    facts = [
        ("Space", run.space),
        ("Repetition time", f"{run.repetition_time:g} s"),
        (
            "Nuisance regression",
            f"{strategy.get('name', NONE)}: {plural(len(confounds), 'column')}",
        ),
        ("Filter", _filter(settings)),
        ("Censoring", _censoring(run, settings)),
    ]
    if not model:
        return [*facts, ("Model", "none: this run has no embedding")]
    about, embedded = model.get("Model") or {}, model.get("EmbeddingSettings") or {}
    onsets = model.get("WindowOnsets") or []
    domain = model.get("ModelDomain") or {}
    missing = model.get("MissingROIs") or []
    return [
        *facts,
        ("Model", f"{about.get('Name', NONE)}, version {about.get('Version', NONE)}"),
        ("Does it know the data", f"{domain.get('Verdict', NONE)}: {domain.get('Reason', NONE)}"),
        ("Scaling", str(embedded.get("Scaling", NONE))),
        ("Windows", f"{len(onsets)} of {model.get('WindowLength', NONE)} frames"),
        (
            "Missing for the model",
            f"{plural(len(missing), 'ROI')} of {atlas.N_ROIS}{named(missing)}",
        ),
    ]


def _filter(settings: Mapping[str, Any]) -> str:
    high, low = settings.get("HighPass") or 0, settings.get("LowPass") or 0
    parts = [f"above {high:g} Hz"] * bool(high) + [f"below {low:g} Hz"] * bool(low)
    return " and ".join(parts) or "none"


def _censoring(run: WrittenRun, settings: Mapping[str, Any]) -> str:
    threshold = settings.get("FDThreshold") or 0
    frames = plural(len(run.sidecar.get("CensoredVolumes") or []), "volume")
    return (
        f"{frames}, displacement above {threshold:g} mm"
        if threshold
        else f"{frames}, not asked for"
    )


def _signal(run: WrittenRun, names: RunNames, figures: Figures) -> Block:
    charts = []
    if names.path("mean_bold").is_file():
        charts.append(
            figures.chart(
                lambda figure: _draw_mean(figure, run, names),
                SLICES_SIZE,
                "Mean BOLD image with the borders of the ROIs",
                "Mean of all volumes. Orange: borders of cortical ROIs, blue: of subcortical ones."
                " They should follow the brain; where they lie in black or outside of it, the image"
                " was cut off, has lost its signal, or is not in the space that its name says.",
            )
        )
    charts.append(
        figures.chart(
            lambda figure: brain_map.draw_brain(
                figure,
                read_roi_column(names.path("coverage"), "coverage"),
                brain_map.Scale(0, 1, "viridis", "measured (share of voxels)"),
            ),
            brain_map.SIZE,
            "Coverage of each ROI",
            "Share of each ROI that lies in the brain mask and holds data. Dark ROIs were hardly "
            "measured: usually frontal and temporal poles, where the signal is lost near air.",
        )
    )
    text = "" if names.path("mean_bold").is_file() else _NO_IMAGE
    return Block("Signal and coverage", text, tuple(charts))


def _draw_mean(figure: Figure, run: WrittenRun, names: RunNames) -> None:
    mean = read_image(names.path("mean_bold"))
    labels = atlas.labels_on_grid(mean.values.shape[:3], mean.affine, run.space).astype(np.int16)
    placed = Image(labels, mean.affine)
    draw_slices(figure, mean, around=placed, borders=atlas_borders(placed))


def _cleaning(run: WrittenRun, names: RunNames, figures: Figures) -> Block:
    return Block(
        "Motion and cleaning",
        charts=(
            figures.chart(
                lambda figure: _draw_carpet(figure, run, names),
                run_figures.CARPET_SIZE,
                "Motion and the series of all ROIs, before and after cleaning",
                "Top: framewise displacement of the head (dashed: threshold, orange: censored"
                " volumes). Second: DVARS over ROIs, the size of the change from volume to volume."
                " Below: each row is an ROI, in standard deviations around its mean (black -2.5,"
                " white 2.5; orange: censored). Vertical stripes are changes of the whole brain;"
                " after cleaning they should no longer go with the displacement.".replace(
                    "-2.5", "\N{MINUS SIGN}2.5"
                ),
            ),
        ),
    )


def _draw_carpet(figure: Figure, run: WrittenRun, names: RunNames) -> None:
    cleaned, censored = read_timeseries(run)
    displacement = read_numbers(names.path("censoring"), "framewise_displacement")
    settings = run.sidecar.get("TimeSeriesSettings") or {}
    raw = read_roi_series(names.path("timeseries"))
    if not len(raw) == len(cleaned) == len(displacement):
        raise BadDataError(f"{run.path}: the tables of this run have different numbers of rows")
    threshold = float(settings.get("FDThreshold") or 0)
    motion = run_figures.Motion(displacement, threshold, censored)
    run_figures.draw_carpet(figure, raw, cleaned, motion, run.repetition_time)


def _connectivity(names: RunNames, figures: Figures) -> Block:
    path = names.path("connectivity")
    return Block(
        "Functional connectivity",
        charts=(
            figures.chart(
                lambda figure: run_figures.draw_matrix(
                    figure,
                    read_matrix(path),
                    limits=(-1, 1),
                    colours="RdBu_r",
                    label="Pearson correlation",
                    ground=MUTED,
                ),
                run_figures.MATRIX_SIZE,
                "Functional connectivity, network by network",
                "Red squares along the diagonal are networks. A matrix that is red all over has"
                " motion or breathing left in it; one without structure has little signal. Dark"
                " grey rows: ROIs that were not measured.",
            ),
            figures.chart(
                lambda figure: run_figures.draw_network_means(
                    figure, read_matrix(path), "mean correlation"
                ),
                MEANS_SIZE,
                "Mean correlation within and between networks",
                "Means over pairs of ROIs of the two networks.",
            ),
        ),
    )


_SCORES = {"model": "r2", "model, ROIs permuted": "permuted_r2", "linear baseline": "linear_r2"}


def _reconstruction(names: RunNames, figures: Figures) -> Block:
    path = names.path("reconstruction")
    scores = {name: _column(path, column) for name, column in _SCORES.items()}
    rows = [
        (
            networks.NAMES[network],
            "",
            tuple(
                plain(networks.mean_by_network(values)[network], 2) for values in scores.values()
            ),
        )
        for network in networks.NAMES
    ]
    everything = tuple(plain(_mean(values), 2) for values in scores.values())
    table = Table(
        f"{names.stem}-r2",
        "R2 of held-out ROIs, mean over ROIs",
        ("Network", *scores),
        (("All", "mean over all ROIs", everything), *rows),
    )
    return Block(
        "Reconstruction: does the model know these data?",
        "Each ROI was hidden in turn and reconstructed from the others. R2 is 1 for a perfect"
        " reconstruction, 0 for the ROI's own mean. It says something only beside its control"
        " (series under permuted ROI labels) and beside the linear baseline, which needs no model:"
        " average correlations of other people.",
        (
            figures.chart(
                lambda figure: brain_map.draw_brain(
                    figure,
                    scores["model"],
                    brain_map.Scale.around_zero(scores["model"], "R2 of the model"),
                ),
                brain_map.SIZE,
                "Reconstruction R2 of each ROI",
                "Red: better than the ROI's own mean; blue: worse.",
            ),
            figures.chart(
                lambda figure: run_figures.draw_by_network(figure, scores, "R2 of held-out ROIs"),
                _BY_NETWORK,
                "Reconstruction R2 by network, with control and baseline",
                "Small dots are ROIs (without the furthest 1 % on either side), large marks means."
                " A model that knows the data lies above its control; what it has learnt beyond"
                " correlations lies above the linear baseline.",
            ),
        ),
        (table,),
    )


def _attention(names: RunNames, figures: Figures) -> Block:
    path = names.path("attention")
    try:
        matrix = read_matrix(path)
    except BadDataError as error:
        return Block("Attention", f"Cannot be shown. {error}")
    incoming, own = incoming_attention(matrix)
    return Block(
        "Attention: where the model looks",
        f"Of the attention of an ROI, {plain(100 * own, 1)} % goes to its own signal; what follows"
        " is the rest, to other ROIs. Attention is where the network looks, not how regions act on"
        " each other.",
        (
            figures.chart(
                lambda figure: brain_map.draw_brain(
                    figure, incoming, brain_map.Scale.from_zero(incoming, "times an even share")
                ),
                brain_map.SIZE,
                "Attention that each ROI receives from the others",
                "1 is what each ROI would receive if attention were even.",
            ),
            figures.chart(
                lambda figure: run_figures.draw_by_network(
                    figure, {"attention": incoming}, "times an even share", 1.0
                ),
                _BY_NETWORK,
                "Attention that ROIs receive, by network",
                "Small dots are ROIs (without the furthest 1 % on either side), large marks means;"
                " the line is an even share.",
            ),
            figures.chart(
                lambda figure: run_figures.draw_chords(figure, matrix),
                run_figures.CHORD_SIZE,
                "The strongest attention between two ROIs",
                f"The {run_figures.CHORDS} strongest pairs of different ROIs, in the colour of"
                " the network of the ROI that is looked at. Those near the strongest are less"
                " transparent; the table has the first ones with their numbers. ROIs lie on the"
                " circle network by network, those on the left first.",
            ),
        ),
        (_strongest_table(names, matrix),),
    )


def incoming_attention(matrix: NDArray[np.floating]) -> tuple[NDArray[np.float64], float]:
    """Return what each ROI receives from others, and the share that goes to an ROI's own signal.

    Parameters
    ----------
    matrix : ndarray, shape (450, 450)
        Attention of the row's ROI to the column's; NaN for ROIs that were not measured.

    Returns
    -------
    incoming : ndarray, shape (450,)
        Mean attention from other ROIs, divided by its mean over ROIs.
    own : float
        Mean of the diagonal by the mean sum of rows.
    """
    values = np.array(matrix, dtype=float)
    known = np.isfinite(np.diagonal(values))
    incoming = np.full(len(values), np.nan)
    if known.sum() < 2:
        return incoming, float("nan")
    inner = values[np.ix_(known, known)]
    diagonal, sums = np.diagonal(inner).copy(), inner.sum(axis=1)
    np.fill_diagonal(inner, 0)
    received = inner.sum(axis=0)
    incoming[known] = received / received.mean() if received.any() else received
    return incoming, float(diagonal.mean() / sums.mean())


def _strongest_table(names: RunNames, matrix: NDArray[np.floating]) -> Table:
    rois = atlas.rois()
    rows = tuple(
        (rois[row].name, "", (rois[column].name, f"{100 * value:.2g} %"))
        for row, column, value in run_figures.strongest_pairs(matrix, 10)
    )
    return Table(
        f"{names.stem}-attention",
        "The ten strongest pairs",
        ("ROI that looks", "ROI that is looked at", "share of its attention"),
        rows,
    )


def _embedding(names: RunNames, figures: Figures) -> Block:
    norms = _norms(names.path("embedding"))
    similarity = names.path("similarity")
    return Block(
        "Embeddings",
        "An embedding of an ROI holds its signal and a code of the ROI that is the same for"
        " everyone. That networks can be told apart says little, therefore, unless it is more than"
        " without data.",
        (
            figures.chart(
                lambda figure: brain_map.draw_brain(figure, norms, scale_of_norms(norms)),
                brain_map.SIZE,
                "Length of the mean embedding of each ROI",
                "Length (Euclidean norm) of the mean embedding, no unit. ROIs that stand out were"
                " seen by the model as unlike the others: compare them with coverage and cleaning.",
            ),
            figures.chart(
                lambda figure: run_figures.draw_network_means(
                    figure, read_matrix(similarity), "mean similarity"
                ),
                MEANS_SIZE,
                "Similarity of the embeddings within and between networks",
                "Correlation of the embeddings of two ROIs less the embedding of no data, mean over"
                " pairs: what the data brought, without the code. Larger on the diagonal: networks"
                " differ.",
            ),
        ),
        _separability(names),
    )


def scale_of_norms(norms: NDArray[np.float64]) -> brain_map.Scale:
    """Return the scale of lengths of embeddings: they differ little from each other."""
    known = norms[np.isfinite(norms)]
    low, high = np.percentile(known, [1, 99]) if known.size else (0.0, 1.0)
    return brain_map.Scale(float(low), float(max(high, low + 1e-6)), "viridis", "length (no unit)")


def _norms(path: Path) -> NDArray[np.float64]:
    try:
        return np.linalg.norm(read_embedding(path), axis=1)
    except BadDataError:
        return np.full(atlas.N_ROIS, np.nan)


_SEPARATED = {
    "embedding": "Embedding of this run",
    "masked": "Embedding of no data: the code alone",
    "connectivity": "Functional connectivity, no model",
}


def _separability(names: RunNames) -> tuple[Table, ...]:
    """Return how well features tell networks, beside what needs no data or no model."""
    try:
        found = network_separability(names)
    except BadDataError:
        return ()
    shares = {_SEPARATED[key]: value for key, value in found.items()}
    return (separability_table(f"{names.stem}-networks", shares),)


def separability_table(name: str, shares: Mapping[str, float]) -> Table:
    """Return the table of shares of `same_network_share`, by what ROIs are similar in."""
    sizes = np.array(list(networks.sizes().values()))
    chance = float((sizes * (sizes - 1)).sum() / (sizes.sum() * (sizes.sum() - 1)))
    rows = {**shares, "Chance": chance}
    return Table(
        name,
        "Network separability: ROIs whose most similar other ROI is of the same network",
        ("By similarity of", "ROIs (%)"),
        tuple((said, "", (plain(100 * share, 0),)) for said, share in rows.items()),
    )


def network_separability(names: RunNames) -> dict[str, float]:
    """Return how often the ROI that is most similar to another one is of its network.

    Raises
    ------
    BadDataError
        A file cannot be read.
    """
    windows = read_windows(names.path("window_embeddings"))
    connectivity = read_matrix(names.path("connectivity"))
    embedding = read_embedding(names.path("embedding"))
    known = np.isfinite(embedding).all(axis=1) & np.isfinite(np.diagonal(connectivity))
    masked = np.asarray(windows["masked"], dtype=float)
    labels = np.array(atlas.networks())[known]
    similarity = {
        "embedding": np.corrcoef(embedding[known]),
        "masked": np.corrcoef(masked[known]),
        "connectivity": connectivity[np.ix_(known, known)],
    }
    return {key: same_network_share(matrix, labels) for key, matrix in similarity.items()}


def same_network_share(similarity: NDArray[np.floating], labels: NDArray[np.str_]) -> float:
    """Return the share of rows whose largest entry off the diagonal has their own label.

    Parameters
    ----------
    similarity : ndarray, shape (R, R)
        NaN counts as least similar.
    labels : ndarray of str, shape (R,)
        Networks.
    """
    if len(labels) < 2:
        return float("nan")
    others = np.where(np.isfinite(similarity), similarity, -np.inf)
    np.fill_diagonal(others, -np.inf)
    return float((labels[others.argmax(axis=1)] == labels).mean())


def _gate(names: RunNames, figures: Figures) -> Block:
    path = names.path("gate")
    return Block(
        "Fusion with the structural embedding",
        charts=(
            figures.chart(
                lambda figure: brain_map.draw_brain(
                    figure,
                    read_roi_column(path, "gate"),
                    brain_map.Scale(0, 1, "viridis", "share of the functional embedding"),
                ),
                brain_map.SIZE,
                "Share of the functional embedding in the fused one",
                "1: the fused embedding of the ROI is the functional one; 0: the structural one.",
            ),
        ),
    )


def _column(path: Path, column: str) -> NDArray[np.float64]:
    try:
        return read_roi_column(path, column)
    except BadDataError:
        return np.full(atlas.N_ROIS, np.nan)


def _mean(values: NDArray[np.float64]) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")

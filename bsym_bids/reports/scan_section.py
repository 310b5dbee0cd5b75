"""What a participant's page shows of a diffusion scan, from the files that were written of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bsym_bids import atlas
from bsym_bids.errors import BadDataError
from bsym_bids.outputs.reading import (
    WrittenConnectome,
    read_embedding,
    read_matrix,
    read_numbers,
    read_roi_column,
)
from bsym_bids.reports import brain_map, run_figures
from bsym_bids.reports.numbers import NONE, plain
from bsym_bids.reports.parts import Block, Figures, SeriesSection, Table, named, plural
from bsym_bids.reports.run_section import (
    MEANS_SIZE,
    same_network_share,
    scale_of_norms,
    separability_table,
    sidecar_or_nothing,
)
from bsym_bids.reports.slices import SIZE as SLICES_SIZE
from bsym_bids.reports.slices import Border, Image, atlas_borders, draw_slices, read_image
from bsym_bids.reports.style import COLOURS, GRID, MUTED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bsym_bids.outputs.names import ScanNames

_WHITE, _MASK = COLOURS[5], COLOURS[4]
_WHITE_MATTER = 3
_CURVE_SIZE = (5.2, 3.2)
#: Anisotropy at which a colour is as bright as it gets.
_BRIGHT_FA = 0.8


def scan_section(
    output_dir: Path, scan: WrittenConnectome, name: str, coarseness: int = 1
) -> SeriesSection:
    """Collect what is shown of a scan.

    Parameters
    ----------
    output_dir : Path
        Root of the output dataset.
    scan : WrittenConnectome
        Any connectome of the scan.
    name : str
        Anchor of the section.
    coarseness : int
        Of images, see `Figures`.
    """
    names, figures = scan.names(output_dir), Figures(name, coarseness)
    made = sidecar_or_nothing(names.path("count"))
    model = sidecar_or_nothing(names.path("structural_embedding"))
    blocks = [
        _series(names, figures),
        _preprocessing(made, name),
        _anatomy(names, made, figures, name),
        _orientations(names, figures),
        _streamlines(names, made, figures),
        _connectome(names, figures),
    ]
    if model:
        blocks.append(_embedding(names, figures, name))
    warnings = [str(model["Warning"])] if model.get("Warning") else []
    warnings += [str(said) for said in model.get("ModelContractDeviations") or ()]
    return SeriesSection(
        name,
        scan_title(scan),
        "Diffusion scan",
        tuple(_facts(made, model)),
        tuple(warnings),
        tuple(blocks),
        tuple(map(str, made.get("Notes") or ())),
    )


def scan_title(scan: WrittenConnectome) -> str:
    """Return what a scan is called in messages and tables."""
    return "_".join([scan.label, *([f"space-{scan.space}"] if scan.space else []), "dwi"])


def _facts(made: Mapping[str, Any], model: Mapping[str, Any]) -> list[tuple[str, str]]:
    settings = made.get("ConnectomeSettings") or {}
    preprocessing = made.get("Preprocessing") or {}
    fibres = made.get("FibreOrientations") or {}
    shells = preprocessing.get("NumberOfVolumesByB") or {}
    streamlines = made.get("Streamlines")
    reliability = made.get("SamplingReliability")
    facts = [
        ("Volumes", ", ".join(f"{n} at b = {b} s/mm2" for b, n in shells.items()) or NONE),
        ("Directions", f"{fibres.get('Directions', NONE)} that differ"),
        ("Engine", f"{settings.get('Engine', NONE)} {settings.get('EngineVersion', '')}".strip()),
        ("Preset", str((settings.get("Preset") or {}).get("name", NONE))),
        ("Streamlines", f"{streamlines:,}" if isinstance(streamlines, int) else NONE),
        ("Sampling reliability", plain(float(reliability), 3) if reliability else NONE),
    ]
    if not model:
        return [*facts, ("Model", "none: this scan has no embedding")]
    about, domain = model.get("Model") or {}, model.get("ModelDomain") or {}
    used = model.get("StructuralSettings") or {}
    return [
        *facts,
        ("Model", f"{about.get('Name', NONE)}, version {about.get('Version', NONE)}"),
        ("Does it know the data", f"{domain.get('Verdict', NONE)}: {domain.get('Reason', NONE)}"),
        ("Input of the model", f"{used.get('Measure', NONE)}, {used.get('Transform', NONE)}"),
        ("Depth", _depth(model)),
    ]


def _depth(model: Mapping[str, Any]) -> str:
    """Say what counts were multiplied by, so that there are as many as the model was made for."""
    factor, between = model.get("DepthFactor"), model.get("StreamlinesBetweenROIs")
    expected = model.get("StreamlinesExpectedByModel")
    if not isinstance(factor, int | float) or factor == 1:
        return "streamline counts as they are"
    said = f"streamline counts times {plain(float(factor), 2)}"
    if isinstance(between, int | float) and expected:
        wanted = " to ".join(f"{float(count):,.0f}" for count in expected)
        said += f": there are {float(between):,.0f} between ROIs, the model was made for {wanted}"
    return said


def _series(names: ScanNames, figures: Figures) -> Block:
    charts = [
        figures.chart(
            lambda figure: _draw_atlas(figure, names),
            SLICES_SIZE,
            "Mean b0 image with the borders of the ROIs",
            "Mean of the volumes without diffusion weighting. Orange: borders of cortical ROIs,"
            " blue: of subcortical ones. Cortex should lie on the rim of the brain, the subcortex"
            " beside the ventricles; without correction of distortions, the frontal pole may not"
            " fit.",
        ),
        figures.chart(
            lambda figure: _draw_tissue(figure, names),
            SLICES_SIZE,
            "Mean b0 image with brain mask and white matter",
            "Blue: border of the brain mask, which should hold all of the brain and no eyes."
            " Orange: border of white matter, where streamlines begin; absent where there is no T1w"
            " image.",
        ),
    ]
    return Block("Series, atlas, tissue and mask", charts=tuple(charts))


def _draw_atlas(figure: Figure, names: ScanNames) -> None:
    b0, labels = read_image(names.path("reference")), read_image(names.path("labels"))
    borders = atlas_borders(labels)
    draw_slices(figure, b0, around=labels, borders=borders, limits=_limits(names, b0))


def _draw_tissue(figure: Figure, names: ScanNames) -> None:
    b0, mask = read_image(names.path("reference")), read_image(names.path("brain_mask"))
    borders = [Border(mask, _MASK)]
    if names.path("tissues").is_file():
        tissues = read_image(names.path("tissues"))
        white = (tissues.values == _WHITE_MATTER).astype(np.uint8)
        borders.insert(0, Border(Image(white, tissues.affine), _WHITE))
    draw_slices(figure, b0, around=mask, borders=borders)


def _limits(names: ScanNames, b0: Image) -> tuple[float, float] | None:
    """Return what is dark and bright in the brain, where its mask is known."""
    path = names.path("brain_mask")
    if not path.is_file():
        return None
    inside = b0.values[read_image(path).values > 0]
    return 0.0, float(np.percentile(inside, 99)) if inside.size else 1.0


def _preprocessing(made: Mapping[str, Any], name: str) -> Block:
    steps = made.get("Preprocessing") or {}
    check = steps.get("GradientCheck") or {}
    lengths = check.get("MeanLengthsMm") or {}
    motion = steps.get("MotionCorrection") or {}
    rows = [
        ("Denoising", _tool(steps.get("Denoising"))),
        ("Gibbs ringing", _tool(steps.get("GibbsRemoval"))),
        ("Motion and eddy currents", _tool(motion)),
        ("Mean shift of the head", _with_unit(motion.get("MeanTranslationMm"), "mm", 1)),
        ("Mean turn of the head", _with_unit(motion.get("MeanRotationDegrees"), "degrees", 1)),
        ("Bias field", _tool(steps.get("BiasCorrection"))),
        ("Volume of the brain mask", _with_unit(_in(steps, "BrainMask", "VolumeMl"), "ml", 0)),
        ("Signal to noise of the b0", _with_unit(steps.get("SignalToNoiseB0"), "", 1)),
        ("Volumes left out", str(steps.get("NumberOfVolumesLeftOut", NONE))),
    ]
    table = Table(
        f"{name}-steps",
        "What was done to the series",
        ("Step", "how, or how much"),
        tuple((step, "", (said,)) for step, said in rows),
    )
    gradients = [
        ("as given", _with_unit(lengths.get("Given"), "mm", 1)),
        (f"best: {check.get('Best', NONE)}", _with_unit(lengths.get("Best"), "mm", 1)),
        (f"next: {check.get('SecondBest', NONE)}", _with_unit(lengths.get("SecondBest"), "mm", 1)),
    ]
    checked = Table(
        f"{name}-gradients",
        "Check of the gradients: mean length of streamlines. If other axes than those given do "
        f"better, the .bvec file is wrong. What was done: {_action(check)}",
        ("Axes of the gradients", "mean length"),
        tuple((axes, "", (length,)) for axes, length in gradients),
    )
    return Block("Preprocessing and gradients", tables=(table, checked))


def _action(check: Mapping[str, Any]) -> str:
    if check.get("NotChecked"):
        return f"not checked, {check['NotChecked']}"
    return {"none": "nothing, they are right", "corrected": "they were corrected"}.get(
        str(check.get("Action")), str(check.get("Action", NONE))
    )


def _tool(step: Mapping[str, Any] | None) -> str:
    if not step:
        return "not here"
    parts = (step.get("Method"), step.get("Tool") or step.get("Command"), step.get("Version"))
    return " ".join(str(part) for part in parts if part) or NONE


def _in(document: Mapping[str, Any], *keys: str) -> Any:
    value: Any = document
    for key in keys:
        value = (value or {}).get(key)
    return value


def _with_unit(value: Any, unit: str, decimals: int) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return NONE
    return f"{plain(float(value), decimals)} {unit}".strip()


#: Of RegistrationQuality: what it is, and beyond what it is poor, as docs/outputs.md says.
_REGISTRATION = {
    "MutualInformation": ("Mutual information of b0 and T1w", "nats", "0.2 or more"),
    "MaskDice": ("Overlap of their brain masks (Dice)", "", "0.85 or more"),
    "Offset": ("Move that would align them better", "mm", "3 or less"),
    "CorticalROIsOnInterface": (
        "Cortical ROIs within 2 mm of the border of grey and white",
        "",
        "",
    ),
    "CorticalROIsInGrey": ("Cortical ROIs mostly in grey matter", "", ""),
    "TemplateMutualInformation": ("Mutual information with the template", "nats", "0.3 or more"),
    "TemplateMaskDice": ("Overlap of brain masks with the template (Dice)", "", "0.85 or more"),
    "Folded": ("Share of the brain in which the registration folds", "", ""),
}


def _anatomy(names: ScanNames, made: Mapping[str, Any], figures: Figures, name: str) -> Block:
    anatomy = made.get("Anatomy") or {}
    quality = anatomy.get("RegistrationQuality") or {}
    rows = tuple(
        (title, "", (_with_unit(quality.get(key), unit, 2), good or "no limit"))
        for key, (title, unit, good) in _REGISTRATION.items()
        if quality.get(key) is not None
    )
    cut, outside = (anatomy.get(key) or [] for key in ("ROIsCut", "ROIsOutside"))
    text = (
        f"Verdict: {quality.get('Verdict', NONE)}. T1w: {anatomy.get('T1w') or 'none'}. Atlas:"
        f" {anatomy.get('TemplateTransform', NONE)}. Tissue:"
        f" {anatomy.get('TissueSource') or 'none'}. {plural(len(cut), 'ROI')} cut by the field of"
        f" view{named(cut)}. {plural(len(outside), 'ROI')} outside of it{named(outside)}."
    )
    chart = figures.chart(
        lambda figure: _draw_volumes(figure, names),
        brain_map.SIZE,
        "Volume of each ROI in the person's space",
        "An ROI that is far smaller than its neighbours was cut off or squeezed by the"
        " registration.",
    )
    table = Table(
        f"{name}-registration",
        "Quality of the registration",
        ("Measure", "this scan", "should be"),
        rows,
    )
    return Block("Registration", text, (chart,), (table,) if rows else ())


def _draw_volumes(figure: Figure, names: ScanNames) -> None:
    volumes = read_roi_column(names.path("rois"), "volume") / 1000
    volumes[volumes == 0] = np.nan
    scale = brain_map.Scale.from_zero(volumes, "volume (ml)")
    brain_map.draw_brain(figure, volumes, scale)


def _orientations(names: ScanNames, figures: Figures) -> Block:
    return Block(
        "Fibre orientations",
        charts=(
            figures.chart(
                lambda figure: draw_slices(
                    figure,
                    read_image(names.path("coloured_anisotropy")),
                    around=read_image(names.path("brain_mask")),
                    limits=(0, _BRIGHT_FA),
                ),
                SLICES_SIZE,
                "Fractional anisotropy, coloured by direction",
                "Red: fibres from left to right (the corpus callosum in the middle has to be red),"
                " green: back to front, blue: up and down (the corticospinal tract). Bright:"
                " anisotropic. Other colours there mean that gradients are wrong.",
            ),
        ),
    )


def _streamlines(names: ScanNames, made: Mapping[str, Any], figures: Figures) -> Block:
    rule = _in(made, "Tracking", "SamplingRule", "Reliability")
    wanted = float(rule) if isinstance(rule, int | float) else None
    counted = sidecar_or_nothing(names.path("track_density")).get("StreamlinesCounted")
    number = f"{counted:,}" if isinstance(counted, int) else "some"
    return Block(
        "Streamlines",
        "Streamlines are a sample. Reliability says how much chance is left in it, not how true it"
        " is: false connections come back in every repeat.",
        (
            figures.chart(
                lambda figure: _draw_density(figure, names),
                SLICES_SIZE,
                "Streamlines through each voxel",
                f"Of {number} streamlines, how many come by each voxel, on a logarithmic scale."
                " White matter should be filled on both sides alike; there should"
                " be none outside of the brain.",
            ),
            figures.chart(
                lambda figure: _draw_curve(figure, names, wanted),
                _CURVE_SIZE,
                "Sampling reliability by the number of streamlines",
                "Correlation of counts to expect with an independent repeat of the same tracking; "
                "dashed: where tracking was to stop.",
            ),
        ),
    )


def _draw_density(figure: Figure, names: ScanNames) -> None:
    density = read_image(names.path("track_density"))
    values = np.log10(1 + density.values.astype(np.float32))
    draw_slices(
        figure,
        Image(values, density.affine),
        around=read_image(names.path("brain_mask")),
        colours="inferno",
        limits=(0.0, float(values.max(initial=0)) or 1.0),
        bar="1 + streamlines (log10)",
    )


def _draw_curve(figure: Figure, names: ScanNames, wanted: float | None) -> None:
    path = names.path("sampling")
    streamlines, reliability = read_numbers(path, "streamlines"), read_numbers(path, "reliability")
    axes = figure.subplots()
    axes.plot(streamlines / 1000, reliability, "o-", color=COLOURS[0], markersize=3)
    if wanted is not None:
        axes.axhline(wanted, color=COLOURS[1], linestyle="dashed", linewidth=1)
    axes.set_xlabel("streamlines (thousands)")
    axes.set_ylabel("reliability (correlation)")
    axes.set_ylim(min(0.0, float(np.nanmin(reliability, initial=0))), 1.02)
    axes.grid(color=GRID, linewidth=0.7)


def _connectome(names: ScanNames, figures: Figures) -> Block:
    return Block(
        "Structural connectivity",
        charts=(
            figures.chart(
                lambda figure: _draw_counts(figure, names),
                run_figures.MATRIX_SIZE,
                "Structural connectivity, network by network",
                "Streamlines between each pair of ROIs, on a logarithmic scale; 2 % of"
                " the pairs lie beyond its end. Where the ground shows, there are none.",
            ),
            figures.chart(
                lambda figure: _draw_degree_histogram(figure, names),
                _CURVE_SIZE,
                "Degree of the ROIs",
                "Of each ROI, how many others it has a streamline with.",
            ),
            figures.chart(
                lambda figure: _draw_degree(figure, names),
                brain_map.SIZE,
                "Degree of each ROI on the brain",
                "ROIs without connections were not reached: see volume and registration.",
            ),
        ),
    )


def _draw_counts(figure: Figure, names: ScanNames) -> None:
    counts = read_matrix(names.path("count"))
    logarithms = np.full(counts.shape, np.nan)
    logarithms[counts > 0] = np.log10(counts[counts > 0])
    run_figures.draw_matrix(
        figure,
        logarithms,
        limits=(0.0, brain_map.robust_limit(logarithms)),
        colours="viridis",
        label="streamlines (log10)",
    )


def degree(counts: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return with how many others each ROI has a streamline; NaN for absent ROIs, shape (450,)."""
    others = np.array(counts, dtype=float)
    absent = np.isnan(np.diagonal(others))
    np.fill_diagonal(others, 0)
    found = (np.nan_to_num(others) > 0).sum(axis=1).astype(float)
    found[absent] = np.nan
    return found


def _draw_degree(figure: Figure, names: ScanNames) -> None:
    found = degree(read_matrix(names.path("count")))
    scale = brain_map.Scale.from_zero(found, "degree (ROIs)")
    brain_map.draw_brain(figure, found, scale)


def _draw_degree_histogram(figure: Figure, names: ScanNames) -> None:
    found = degree(read_matrix(names.path("count")))
    known = found[np.isfinite(found)]
    axes = figure.subplots()
    axes.hist(known, bins=40, color=COLOURS[0])
    if known.size:
        axes.axvline(float(np.median(known)), color=MUTED, linestyle="dashed", linewidth=1)
    axes.set_xlabel("degree (ROIs; dashed: median)")
    axes.set_ylabel("number of ROIs")


_EDGE_ROWS = {
    "model": ("r2", "rho"),
    "model, ROIs permuted": ("permuted_r2", "permuted_rho"),
    "group average, fitted": ("group_r2", "group_rho"),
}


def _embedding(names: ScanNames, figures: Figures, name: str) -> Block:
    path = names.path("structural_embedding")

    def draw(figure: Figure) -> None:
        norms = np.linalg.norm(read_embedding(path), axis=1)
        brain_map.draw_brain(figure, norms, scale_of_norms(norms))

    return Block(
        "Structural embedding",
        "Pairs of ROIs were hidden and predicted. The model knows these data if it does better than"
        " under permuted ROI labels, and as well as a line fitted to the average of other people."
        " It is judged by the correlation; R2, which a wrong scale lowers too, may be below 0.",
        (
            figures.chart(
                draw,
                brain_map.SIZE,
                "Length of the structural embedding of each ROI",
                "Length (Euclidean norm) of the embedding, no unit. The scale holds 98 % of the"
                " ROIs: where its ends are close to each other, ROIs hardly differ.",
            ),
            figures.chart(
                lambda figure: run_figures.draw_network_means(
                    figure, _correlations(read_embedding(path)), "mean similarity"
                ),
                MEANS_SIZE,
                "Similarity of the structural embeddings within and between networks",
                "Correlation of the embeddings of two ROIs, mean over pairs. It holds the code of"
                " the ROIs, which is the same for everyone.",
            ),
        ),
        _edge_table(names, name) + _separability(names, name),
    )


def _separability(names: ScanNames, name: str) -> tuple[Table, ...]:
    """Return how well the embedding tells networks, beside connectivity itself."""
    try:
        embedding = read_embedding(names.path("structural_embedding"))
        counts = read_matrix(names.path("count"))
    except BadDataError:
        return ()
    labels = np.array(atlas.networks())
    shares = {
        "Embedding of this scan": same_network_share(_correlations(embedding), labels),
        "Structural connectivity, no model": same_network_share(counts, labels),
    }
    return (separability_table(f"{name}-networks", shares),)


def _correlations(embedding: NDArray[np.float64]) -> NDArray[np.float64]:
    known = np.isfinite(embedding).all(axis=1)
    matrix = np.full((len(embedding), len(embedding)), np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):  # of embeddings that do not vary
        matrix[np.ix_(known, known)] = np.corrcoef(embedding[known])
    return matrix


def _edge_table(names: ScanNames, name: str) -> tuple[Table, ...]:
    path = names.path("edge_quality")
    try:
        rows = tuple(
            (said, "", tuple(plain(float(read_numbers(path, column)[0]), 2) for column in columns))
            for said, columns in _EDGE_ROWS.items()
        )
    except (BadDataError, IndexError):
        return ()
    return (
        Table(
            f"{name}-edges",
            "Hidden edges, over all pairs of ROIs",
            ("Predicted by", "R2", "correlation"),
            rows,
        ),
    )

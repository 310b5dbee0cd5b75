"""The text on diffusion scans: preprocessing, anatomy, tractography, connectomes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from bsym_bids.methods.aspects import (
    APARC,
    ASEG,
    DERIVATIVES,
    GIVEN,
    MAPS,
    NO_T1W,
    OWN,
    REGISTERED,
    REGISTERED_B0,
    SCAN,
    SEGMENTATION,
)
from bsym_bids.methods.facts import Facts
from bsym_bids.methods.sentences import (
    Paragraph,
    cite,
    clean,
    counted,
    listed,
    paragraph,
    said,
    sentence,
    spread,
    varied,
)

Settings = Mapping[str, Any]
MRTRIX3, DIPY = "mrtrix3", "dipy"
#: Steps of preprocessing, in their order.
_STEPS = ("denoising", "gibbs", "motion", "bias")
_TEMPLATE = f"MNI152NLin2009cAsym{cite('fonov2009', 'fonov2011')}"
_GRADIENTS: Mapping[str, str] = {
    "none": "were found to be right",
    "corrected": "were found to be wrong and were corrected",
    "warned": "were found to be wrong and were left as they were",
    "not checked": "could not be checked",
    "off": "were not checked",
}
_RESPONSES: Mapping[str, tuple[str, ...]] = {
    "dhollander": ("dhollander2016", "dhollander2019"),
    "tournier": ("tournier2013",),
    "fa": ("tournier2004",),
}
_TISSUES: Mapping[str, str] = {"wm": "white matter", "gm": "grey matter", "csf": "CSF"}


def paragraphs(facts: Facts) -> list[Paragraph]:
    """Return what is to be said of diffusion scans before the model."""
    if not facts.has("dwi_source"):
        return []
    return [
        *paragraph("Diffusion preprocessing", *_preprocessing(facts)),
        *paragraph("Anatomy and registration", *_anatomy(facts)),
        *paragraph("Fibre orientations and tractography", *_tractography(facts)),
        *paragraph("Structural connectivity", *_connectivity(facts)),
    ]


# --- preprocessing -------------------------------------------------------------------------------


def _preprocessing(facts: Facts) -> list[str]:
    steps = [varied(facts, step, _CLAUSES[step]) for step in _STEPS]
    return [
        varied(facts, "dwi_source", _source),
        varied(facts, "shells", _shells),
        *steps,
        varied(facts, "mask", _mask),
        _gradient_check(facts),
    ]


def _source(settings: Settings) -> str:
    if not settings.get("Preprocessed"):
        return "the raw diffusion series were preprocessed by bsym-bids"
    name, version = clean(settings.get("Name", "")), clean(settings.get("Version", ""))
    if "qsiprep" in name.lower() or not name:
        known = f"QSIPrep{' ' + version if version and name else ''}{cite('cieslak2021')}"
        how = f"with {known}" if name else f"elsewhere, in the form of {known}"
    else:
        how = f"with {f'{name} {version}'.strip()}"
    return f"the diffusion series had been preprocessed {how} and were not processed again"


def _shells(settings: Settings) -> str:
    shells = settings.get("Shells") or []
    if not shells:
        return ""
    return (
        f"the series had b-values of {listed(map(said, shells))} s/mm² (rounded to 50 s/mm²) "
        "beside volumes without diffusion weighting"
    )


def _by(settings: Settings) -> str:
    """Return the program that did a step, in parentheses; empty if it is not known."""
    tool, version = str(settings.get("Tool", "")), clean(settings.get("Version", ""))
    if tool.startswith("dipy"):
        return f" (DIPY {version}{cite('garyfallidis2014')})".replace("DIPY  ", "DIPY ")
    if tool in ("dwidenoise", "mrdegibbs"):
        return f" ({tool} of MRtrix3 {version}{cite('tournier2019')})"
    if tool.startswith("SimpleITK"):
        return f" (SimpleITK {version}{cite('lowekamp2013')})"
    return f" ({clean(tool)} {version})" if tool else ""


def _denoising(settings: Settings) -> str:
    if not settings.get("Tool"):
        return "the series were not denoised"
    radius = settings.get("PatchRadius")
    edge = said(2 * radius + 1) if radius is not None else ""
    patches = f", in patches of {edge} by {edge} by {edge} voxels" if edge else ""
    return (
        "noise was removed by Marchenko-Pastur principal component analysis"
        f"{cite('veraart2016')}{_by(settings)}{patches}"
    )


def _gibbs(settings: Settings) -> str:
    if not settings.get("Tool"):
        return ""
    return f"Gibbs ringing was removed by subvoxel shifts{cite('kellner2016')}{_by(settings)}"


def _motion(settings: Settings) -> str:
    tool = settings.get("Tool", "")
    if tool == "dwifslpreproc":
        version = clean(settings.get("Version", ""))
        by = f" (FSL {version}, by dwifslpreproc of MRtrix3{cite('tournier2019')})"
        outliers = ", outlier slices were replaced" if settings.get("OutliersReplaced") else ""
        distortions = (
            f"and distortions by susceptibility, as estimated with topup{cite('andersson2003')}, "
            "were corrected with them"
            if settings.get("SusceptibilityCorrected")
            else "and distortions by susceptibility were not corrected"
        )
        return (
            f"head motion and eddy currents were corrected with eddy{cite('andersson2016')}{by}"
            f"{outliers}, {distortions}"
        )
    if not tool:
        return ""
    return (
        "head motion and eddy currents were corrected by registration with mutual information"
        f"{cite('mattes2003')}{_by(settings)}, rigid for volumes without and affine for volumes "
        "with diffusion weighting, in large shells finally with what a Gaussian process predicted "
        f"from the other volumes{cite('andersson2015')}; each volume was interpolated once, by "
        f"cubic B-splines, gradients were rotated with the head{cite('leemans2009')}, and "
        "distortions by susceptibility were not corrected"
    )


def _bias(settings: Settings) -> str:
    if not settings.get("Tool"):
        return ""
    by = _by(settings)
    return (
        "the bias field of the mean volume without diffusion weighting was estimated by N4"
        f"{cite('tustison2010')}{by} and divided out of all volumes"
    )


_CLAUSES = {"denoising": _denoising, "gibbs": _gibbs, "motion": _motion, "bias": _bias}


def _mask(settings: Settings) -> str:
    computed = settings.get("Computed")
    if computed is None:
        return ""
    if not computed:
        return "the brain mask was that of the preprocessed series"
    return (
        "the brain mask was computed from the volumes without and with diffusion weighting, by a "
        f"threshold{cite('otsu1979')}"
    )


def _gradient_check(facts: Facts) -> str:
    actions = {block.settings.get("Action") for block in facts.of("gradients")}
    is_method_said = bool(actions & {"none", "corrected", "warned"})
    if not is_method_said:
        return varied(facts, "gradients", partial(_axes, "the axes of the gradients"))
    return (
        "The axes of the gradients were checked by the mean length of streamlines under all "
        f"exchanges and inversions of axes{cite('jeurissen2014gradients')}. "
        + varied(facts, "gradients", partial(_axes, "they"))
    )


def _axes(subject: str, settings: Settings) -> str:
    found = _GRADIENTS.get(settings.get("Action", ""))
    return f"{subject} {found}" if found else ""


# --- anatomy -------------------------------------------------------------------------------------


def _anatomy(facts: Facts) -> list[str]:
    return [
        varied(facts, "t1w", _t1w),
        varied(facts, "template", _template),
        varied(facts, "tissue", _tissue),
        varied(facts, "alignment", _alignment),
        _poor(facts),
    ]


def _t1w(settings: Settings) -> str:
    kind = settings.get("Kind")
    if kind == NO_T1W:
        return "there was no T1-weighted image"
    if kind == DERIVATIVES:
        name = clean(f"{settings.get('Name', '')} {settings.get('Version', '')}")
        text = f"the T1-weighted image was one that {name or 'another program'} had preprocessed"
    else:
        text = "the T1-weighted image was the one that was acquired"
    parts = []
    if settings.get("BiasCorrected"):
        parts.append(f"its bias field was corrected by N4{cite('tustison2010')}")
    if settings.get("Brain") == "extracted here":
        parts.append("its brain was extracted by registration with the template")
    if settings.get("Brain") == "voxels above 0":
        parts.append("it had been brain-extracted before")
    return text + (f"; {listed(parts)}" if parts else "")


def _template(settings: Settings) -> str:
    how = settings.get("How")
    brought = f"the atlas in {_TEMPLATE} was brought into the person's space"
    if how == GIVEN:
        return f"{brought} by the transform that came with the derivatives"
    registration = (
        f"affine by mutual information{cite('mattes2003')}, then by symmetric diffeomorphic "
        f"registration with local cross-correlation{cite('avants2008')} in DIPY"
        f"{cite('garyfallidis2014')}"
    )
    if how == REGISTERED:
        return f"{brought} by registration of the template with the T1-weighted image, " + (
            registration
        )
    if how == REGISTERED_B0:
        return (
            f"{brought} by registration of the template with the mean volume without diffusion "
            f"weighting, whose intensities were inverted by rank, {registration}"
        )
    return ""


def _tissue(settings: Settings) -> str:
    sources = {
        APARC: "were those of FreeSurfer's cortical parcellation and segmentation (aparc+aseg)",
        ASEG: "were those of FreeSurfer's segmentation (aseg)",
        MAPS: "came from the probability maps of grey matter, white matter and CSF of the "
        "derivatives",
        SEGMENTATION: "came from the segmentation of the derivatives",
        OWN: "were segmented by three normal distributions with priors from the template"
        f"{cite('ashburner2005')} and a Markov random field{cite('zhang2001')}",
    }
    found = sources.get(settings.get("From", ""))
    return f"tissues for anatomically constrained tracking {found}" if found else ""


def _alignment(settings: Settings) -> str:
    if settings.get("Registered"):
        return (
            "diffusion series and T1-weighted image were registered rigidly, by mutual information"
            f"{cite('mattes2003')}"
        )
    return "diffusion series and T1-weighted image were in one space already"


def _poor(facts: Facts) -> str:
    poor = {
        h
        for b in facts.of("registration")
        if b.settings.get("Verdict") == "poor"
        for h in b.holders
    }
    if not facts.any_has("registration", "Verdict", "poor"):
        return ""
    if not facts.is_counted:
        return "Some registrations were flagged as poor."
    total = counted(len(facts.holders("registration")), SCAN)
    return f"The registration was flagged as poor in {len(poor):,} of {total}."


# --- tractography --------------------------------------------------------------------------------


def _tractography(facts: Facts) -> list[str]:
    return [
        varied(facts, "orientations", _orientations),
        varied(facts, "modelled", _modelled),
        varied(facts, "tracking", _tracking),
        varied(facts, "sampling", _sampling),
        _reached(facts),
    ]


def _engine(settings: Settings) -> str:
    version = clean(settings.get("EngineVersion", ""))
    engine = settings.get("Engine", "")
    known = {MRTRIX3: ("MRtrix3", "tournier2019"), DIPY: ("DIPY", "garyfallidis2014")}
    name, key = known.get(engine, (clean(engine), ""))
    return f"{name} {version}".strip() + (cite(key) if key else "")


def _orientations(settings: Settings) -> str:
    if not settings.get("Engine"):
        return ""
    text = f"fibre orientations were estimated with {_engine(settings)}"
    if deconvolution := _deconvolution(settings):
        text += f" by {deconvolution}"
    if response := _response(settings):
        text += f", {response}"
    edge = settings.get("VoxelSize")
    return text + (
        f"; voxels smaller than {said(edge)} mm were brought to cubes of that edge" if edge else ""
    )


def _deconvolution(settings: Settings) -> str:
    method = settings.get("Deconvolution")
    if method == "csd":
        return f"constrained spherical deconvolution of one shell{cite('tournier2007')}"
    if method != "msmt_csd":
        return ""
    tissues = listed(_TISSUES.get(one, clean(one)) for one in settings.get("Tissues", ()))
    into = f" into {tissues}" if tissues else ""
    return (
        f"multi-tissue constrained spherical deconvolution{cite('jeurissen2014')}{into}, with "
        f"multi-tissue intensity normalisation{cite('raffelt2017')}"
    )


def _response(settings: Settings) -> str:
    response = clean(settings.get("Response", ""))
    if response in _RESPONSES:
        return f'with responses by the algorithm "{response}"{cite(*_RESPONSES[response])}'
    if "voxels of highest FA" in response:
        number = response.split()[0]
        return f"with the response of the {number} voxels of highest fractional anisotropy"
    return f'with responses by "{response}"' if response else ""


def _modelled(settings: Settings) -> str:
    shells, order = settings.get("Shells") or [], settings.get("Order")
    if not shells or order is None:
        return ""
    return (
        f"the modelled volumes had b = {listed(map(said, shells))} s/mm², and spherical harmonics "
        f"went up to order {said(order)}"
    )


def _tracking(settings: Settings) -> str:
    engine, is_constrained = settings.get("Engine"), settings.get("Constrained")
    if not engine or is_constrained is None:
        return ""
    constraints = f"under anatomical constraints{cite('smith2012')}"
    preset = settings.get("Preset", {})
    if not is_constrained:
        constraints = "without anatomical constraints"
    if engine == MRTRIX3:
        how = (
            "streamlines were tracked by second-order integration over fibre orientation "
            f"distributions (iFOD2){cite('tournier2010')} {constraints}"
            + (", with back-tracking" if is_constrained else "")
        )
    else:
        how = (
            f"streamlines were tracked probabilistically with {_engine(settings)} {constraints}"
            + (" evaluated on the grid of the fibre orientations" if is_constrained else "")
        )
    return f"{how}, {_begin(preset, is_constrained)}{_steps(engine, preset, is_constrained)}"


def _begin(preset: Settings, is_constrained: bool) -> str:
    if is_constrained:
        return "from the border of grey and white matter"
    seed, stop = preset.get("fa_seed"), preset.get("fa_stop")
    if seed is None or stop is None:
        return "from voxels of high fractional anisotropy"
    return (
        f"from voxels with a fractional anisotropy of at least {said(seed)} until it fell below "
        f"{said(stop)}"
    )


def _steps(engine: str, preset: Settings, is_constrained: bool) -> str:
    parts = []
    if preset.get("step") is not None:
        parts.append(f"steps of {said(preset['step'])} voxels")
    if preset.get("angle") is not None:
        parts.append(f"turns of at most {said(preset['angle'])} degrees a step")
    cutoff = preset.get("cutoff")
    if cutoff is not None and engine == MRTRIX3:
        parts.append(f"an amplitude of at least {said(cutoff * (1 if is_constrained else 2))}")
    elif cutoff is not None:
        parts.append(f"amplitudes of at least {said(cutoff)} of the largest at the same place")
    low, high = preset.get("min_length"), preset.get("max_length")
    if low is not None and high is not None:
        parts.append(f"lengths of {said(low)} to {said(high)} mm")
    name = clean(preset.get("name", ""))
    shown = f' (preset "{name}")' if name else ""
    return f", with {listed(parts)}{shown}" if parts else shown


def _sampling(settings: Settings) -> str:
    fixed, batch = settings.get("Streamlines"), settings.get("BatchSize")
    if fixed:
        return f"the number of streamlines was fixed to {said(fixed)}"
    reliability, most = settings.get("Reliability"), settings.get("MaxStreamlines")
    if not reliability:
        return f"the number of streamlines was {said(most)}" if most else ""
    batches = f" in batches of {said(batch)} streamlines" if batch else ""
    limit = f", or the number of streamlines {said(most)}" if most else ""
    return (
        f"tracking went on{batches} until the correlation of streamline counts to be expected with "
        "an independent repeat of the same size, 1 - mean/variance of the counts, reached "
        f"{said(reliability)}{limit}"
    )


def _reached(facts: Facts) -> str:
    streamlines, reliability = facts.numbers.get("streamlines"), facts.numbers.get("reliability")
    if not streamlines:
        return ""
    text = f"the connectomes rested on {spread(streamlines, unit='streamlines')}"
    if reliability:
        text += f", with an expected correlation of {spread(reliability, lambda v: f'{v:.3f}')}"
    text = sentence(text)
    limit = "maximum number of streamlines"
    stopped = {h for b in facts.of("stopped") if b.settings.get("By") == limit for h in b.holders}
    if stopped:
        total = counted(len(facts.holders("stopped")), SCAN)
        text += f" In {len(stopped):,} of {total}, the limit came first."
    return text


# --- connectomes ---------------------------------------------------------------------------------


def _connectivity(facts: Facts) -> list[str]:
    return [
        varied(facts, "assignment", _assignment),
        "Edges were numbers of streamlines, also divided by the mean volume of the two ROIs"
        f"{cite('hagmann2008')}, and the mean length (mm) and mean fractional anisotropy of the "
        "streamlines.",
        varied(facts, "sift2", _fibre_capacity),
    ]


def _assignment(settings: Settings) -> str:
    radius = settings.get("Radius")
    within = f" within {said(radius)} mm" if radius else ""
    return (
        f"each end of a streamline was assigned to the nearest voxel of an ROI{within}"
        f"{cite('smith2015')}, and streamlines with an ROI at both ends were edges"
    )


def _fibre_capacity(settings: Settings) -> str:
    if not settings.get("There"):
        return ""
    return (
        "fibre bundle capacity was the sum of the SIFT2 weights of the streamlines of an edge"
        f"{cite('smith2015sift2')}, times the proportionality coefficient{cite('smith2022')}"
    )

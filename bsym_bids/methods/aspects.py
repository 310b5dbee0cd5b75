"""What sidecars say of how outputs were made, in aspects: small blocks that can be compared.

An aspect holds what one clause of the text needs, and nothing that differs from run to run without
being a setting. Values of the wrong type, as damaged sidecars have them, count as absent.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Document = Mapping[str, Any]
#: An aspect by name, and its settings.
Aspect = tuple[str, dict[str, Any]]
#: s/mm2 that b-values are rounded to: shells of one protocol differ by less from scan to scan.
B_STEP = 50
#: Which T1-weighted image: none, one of derivatives, or as scanned.
NO_T1W, DERIVATIVES, RAW = "none", "derivatives", "raw"
#: How the atlas came to a person.
GIVEN, REGISTERED, REGISTERED_B0 = "given", "registered", "registered from b0"
#: Where tissues are from.
APARC, ASEG, MAPS, SEGMENTATION, OWN, NO_TISSUE = (
    "aparcaseg",
    "aseg",
    "maps",
    "segmentation",
    "own",
    "none",
)
#: Numbers of a preset that are told, and those of an engine in it.
_PRESET = ("min_length", "max_length", "fa_stop", "fa_seed")
_PRESET_OF_ENGINE = ("step", "angle", "cutoff")
#: Units of what is counted, by aspect; those of the dataset as a whole have none.
RUN, SCAN = "run", "scan"
UNITS: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "bold_source",
            "bold_simulated",
            "space",
            "roi_values",
            "coverage",
            "repetition_time",
            "regressors",
            "filter",
            "censoring",
            "censored",
            "connectivity",
            "model",
            "time_base",
            "resampling",
            "scaling",
            "windows",
            "seed",
            "deviation",
            "domain",
            "similarity",
            "attention",
            "reconstruction",
            "fusion",
            "cohort_embedding",
        ),
        RUN,
    ),
    **dict.fromkeys(
        (
            "dwi_source",
            "dwi_simulated",
            "shells",
            "denoising",
            "gibbs",
            "motion",
            "bias",
            "mask",
            "gradients",
            "t1w",
            "template",
            "tissue",
            "alignment",
            "registration",
            "orientations",
            "modelled",
            "tracking",
            "sampling",
            "stopped",
            "assignment",
            "tracking_seed",
            "sift2",
            "structural_model",
            "structural_input",
            "structural_deviation",
            "structural_domain",
            "structural_attention",
            "depth",
            "edges",
        ),
        SCAN,
    ),
}


# --- reading values ------------------------------------------------------------------------------


def mapping(document: Document, *keys: str) -> Document:
    """Return a mapping within a document; empty where there is none."""
    for key in keys:
        inner = document.get(key)
        document = inner if isinstance(inner, Mapping) else {}
    return document


def text(document: Document, key: str) -> str:
    """Return a text; empty where there is none."""
    value = document.get(key)
    return value if isinstance(value, str) else ""


def number(document: Document, key: str) -> float | None:
    """Return a finite number; None where there is none."""
    value = document.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def entries(document: Document, key: str) -> list[Any]:
    """Return a list; empty where there is none."""
    value = document.get(key)
    return value if isinstance(value, list) else []


def texts(document: Document, key: str) -> list[str]:
    """Return the texts of a list."""
    return [entry for entry in entries(document, key) if isinstance(entry, str)]


def _rounded_b(values: Sequence[Any]) -> list[int]:
    found = set()
    for value in values:
        try:
            b = float(value)
        except (TypeError, ValueError):
            continue
        if math.isfinite(b) and b >= B_STEP / 2:
            found.add(round(b / B_STEP) * B_STEP)
    return sorted(found)


# --- BOLD runs -----------------------------------------------------------------------------------


def of_series(denoised: Document, raw: Document, program: Document, form: Document) -> list[Aspect]:
    """Return the aspects of a run's time series.

    Parameters
    ----------
    denoised, raw : mapping
        Sidecars of the series after and before cleaning; the latter may be empty.
    program : mapping
        ``Name`` and ``Version`` of what preprocessed the source; empty where that is not known.
    form : mapping
        ``space``, ``resolution`` and ``density`` of the source, as far as its name has them.
    """
    settings = mapping(denoised, "TimeSeriesSettings")
    strategy = mapping(settings, "NuisanceStrategy")
    is_simulated = denoised.get("Simulated") is True
    aspects: list[Aspect] = [
        ("bold_simulated", {"Simulated": is_simulated}),
        ("space", dict(form)),
        ("roi_values", _roi_values(settings, raw, form)),
        ("coverage", {"MinCoverage": number(settings, "MinCoverage")}),
        ("repetition_time", {"Seconds": _seconds(denoised, "RepetitionTime")}),
        ("regressors", _regressors(strategy)),
        ("filter", _filter(settings, strategy, text(denoised, "Filter"))),
        ("censoring", {"FDThreshold": number(settings, "FDThreshold")}),
        ("censored", _censored(denoised)),
    ]
    return aspects if is_simulated else [("bold_source", dict(program)), *aspects]


def _seconds(document: Document, key: str) -> float | None:
    value = number(document, key)
    return None if value is None else round(value, 4)


def _roi_values(settings: Document, raw: Document, form: Document) -> dict[str, Any]:
    sources = texts(raw, "Sources")
    return {
        "ParcelMethod": text(settings, "ParcelMethod"),
        "Grayordinates": form.get("space") == "fsLR",
        "Masked": len(sources) > 1 if sources else None,
    }


def _regressors(strategy: Document) -> dict[str, Any]:
    compcor = mapping(strategy, "acompcor")
    return {
        "name": text(strategy, "name"),
        "citation": texts(strategy, "citation"),
        "columns": texts(strategy, "columns"),
        "masks": texts(compcor, "masks"),
        "components": number(compcor, "components"),
    }


def _filter(settings: Document, strategy: Document, rule: str) -> dict[str, Any]:
    order = re.search(r"order (\d+)", rule)
    return {
        "filter": text(strategy, "filter"),
        "order": int(order[1]) if order else None,
        "HighPass": number(settings, "HighPass"),
        "LowPass": number(settings, "LowPass"),
        "detrend": strategy.get("detrend") is not False,
        "regression": bool(texts(strategy, "columns") or mapping(strategy, "acompcor")),
    }


def _censored(denoised: Document) -> dict[str, Any]:
    notes = " ".join(texts(denoised, "Notes"))
    return {
        "Any": bool(entries(denoised, "CensoredVolumes")),
        "NonSteadyState": "non-steady-state" in notes,
    }


# --- embeddings of runs --------------------------------------------------------------------------


def of_embedding(document: Document) -> list[Aspect]:
    """Return the aspects of a run's functional embedding."""
    settings = mapping(document, "EmbeddingSettings")
    tolerance = re.search(r"(\d+(?:\.\d+)?)\s*%", text(document, "ResamplingRule"))
    share = re.search(r"(\d+(?:\.\d+)?)\s*%", text(document, "WindowRule"))
    return [
        ("model", of_model(document)),
        (
            "time_base",
            {
                "Seconds": _seconds(settings, "ModelRepetitionTime"),
                "Tolerance": float(tolerance[1]) if tolerance else None,
            },
        ),
        (
            "resampling",
            {
                "Source": _seconds(document, "SourceRepetitionTime"),
                "Windows": _seconds(document, "WindowRepetitionTime"),
            },
        ),
        ("scaling", {"Scaling": text(settings, "Scaling")}),
        (
            "windows",
            {
                "Length": number(document, "WindowLength"),
                "Step": number(settings, "WindowStep"),
                "Seconds": _seconds(document, "WindowRepetitionTime"),
                "MostCensored": float(share[1]) if share else None,
            },
        ),
        ("seed", {"Seed": number(settings, "Seed")}),
        *_judged(document, ""),
    ]


def of_model(document: Document) -> dict[str, Any]:
    """Return what is said of the model."""
    model = mapping(document, "Model")
    trained = model.get("Trained")
    return {
        "Name": text(model, "Name"),
        "Version": str(model.get("Version", "")),
        "Trained": trained if isinstance(trained, bool) else None,
        "Fingerprint": text(model, "Fingerprint"),
        "Warning": text(document, "Warning"),
    }


def _judged(document: Document, prefix: str) -> Iterator[Aspect]:
    """Yield what differs from what the model was made for, and whether it knows the data."""
    for sentence in texts(document, "ModelContractDeviations"):
        yield f"{prefix}deviation", {"Sentence": sentence}
    if verdict := text(mapping(document, "ModelDomain"), "Verdict"):
        yield f"{prefix}domain", {"Verdict": verdict}


def of_reconstruction(document: Document) -> list[Aspect]:
    """Return the aspects of a run's reconstruction."""
    baseline = text(document, "LinearBaseline")
    ridge = re.search(r"ridge (\d+(?:\.\d+)?)", baseline)
    settings = {
        "Folds": number(document, "Folds"),
        "Control": bool(text(document, "Control")),
        "Baseline": bool(baseline),
        "Ridge": float(ridge[1]) if ridge else None,
    }
    return [("reconstruction", settings)]


def of_cohort_embedding(document: Document) -> list[Aspect]:
    """Return the aspects of what a run has under cohort scaling."""
    settings = mapping(document, "EmbeddingSettings")
    return [
        ("cohort_embedding", {"ScalingStatistics": text(settings, "ScalingStatistics")}),
        ("model", of_model(document)),
        *(aspect for aspect in _judged(document, "") if aspect[0] == "deviation"),
    ]


# --- diffusion scans -----------------------------------------------------------------------------


def of_connectome(document: Document, programs: Mapping[str, Document]) -> list[Aspect]:
    """Return the aspects of a scan's connectome.

    Parameters
    ----------
    document : mapping
        Sidecar of the streamline counts.
    programs : mapping of str to mapping
        ``Name`` and ``Version`` of what made each dataset, by the dataset's name.
    """
    if document.get("Simulated") is True:
        return [("dwi_simulated", {"Simulated": True})]
    found = mapping(document, "Preprocessing")
    is_raw = bool({"MotionCorrection", "GibbsRemoval", "BiasCorrection"} & found.keys())
    source = _dataset_of(document, "_dwi.")
    program = {} if is_raw else dict(programs.get(source, {}))
    mask = text(mapping(found, "BrainMask"), "Source")
    return [
        ("dwi_simulated", {"Simulated": False}),
        ("dwi_source", {"Preprocessed": not is_raw, **program}),
        ("shells", {"Shells": _rounded_b(list(mapping(found, "NumberOfVolumesByB")))}),
        *(_preprocessing(found) if is_raw else ()),
        ("mask", {"Computed": mask == "computed" if mask else None}),
        ("gradients", _gradients(mapping(found, "GradientCheck"))),
        *_anatomy(document, programs, is_raw=is_raw, source=source),
        *_tractography(document),
    ]


def _dataset_of(document: Document, part: str) -> str:
    """Return the name of the dataset that a source is in whose path has some part."""
    for uri in texts(document, "Sources"):
        found = re.fullmatch(r"bids:([^:]+):(.*)", uri)
        if found and part in found[2]:
            return found[1]
    return ""


def _preprocessing(found: Document) -> list[Aspect]:
    denoising, gibbs = mapping(found, "Denoising"), mapping(found, "GibbsRemoval")
    motion, bias = mapping(found, "MotionCorrection"), mapping(found, "BiasCorrection")
    command = " ".join(texts(motion, "Command"))
    return [
        ("denoising", {**_tool(denoising), "PatchRadius": number(denoising, "PatchRadius")}),
        ("gibbs", _tool(gibbs)),
        (
            "motion",
            {
                **_tool(motion),
                "SusceptibilityCorrected": motion.get("SusceptibilityCorrected") is True,
                "OutliersReplaced": "--repol" in command,
            },
        ),
        ("bias", _tool(bias)),
    ]


def _tool(document: Document) -> dict[str, Any]:
    return {"Tool": text(document, "Tool"), "Version": text(document, "Version")}


def _gradients(check: Document) -> dict[str, Any]:
    return {"Action": "not checked" if "NotChecked" in check else text(check, "Action")}


def _anatomy(
    document: Document, programs: Mapping[str, Document], *, is_raw: bool, source: str
) -> Iterator[Aspect]:
    anatomy = mapping(document, "Anatomy")
    image = text(anatomy, "T1w")
    own = _dataset_of(document, f"/{image}") if image else ""
    kind = NO_T1W if not image else DERIVATIVES if "_desc-preproc_" in image else RAW
    brain = text(anatomy, "BrainMask")
    yield (
        "t1w",
        {
            "Kind": kind,
            "Brain": brain if brain in ("extracted here", "voxels above 0") else "mask",
            "BiasCorrected": text(anatomy, "BiasCorrection") == "N4",
            **(programs.get(own, {}) if kind == DERIVATIVES else {}),
        },
    )
    yield "template", {"How": _template(text(anatomy, "TemplateTransform"))}
    if image:
        yield "tissue", {"From": _tissue(text(anatomy, "TissueSource"))}
        yield "alignment", {"Registered": is_raw or own != source}
    yield "registration", {"Verdict": text(mapping(anatomy, "RegistrationQuality"), "Verdict")}


def _template(transform: str) -> str:
    told = {
        "registered here": REGISTERED,
        "registered here, from the b0": REGISTERED_B0,
        "": "",
    }
    return told.get(transform, GIVEN)


def _tissue(source: str) -> str:
    if source == "segmented here":
        return OWN
    parts = (("aparcaseg", APARC), ("aseg", ASEG), ("probseg", MAPS), ("dseg", SEGMENTATION))
    return next((kind for part, kind in parts if part in source), NO_TISSUE)


def _tractography(document: Document) -> list[Aspect]:
    settings, found = (
        mapping(document, "ConnectomeSettings"),
        mapping(document, "FibreOrientations"),
    )
    preset, tracking = mapping(settings, "Preset"), mapping(document, "Tracking")
    engine = {"Engine": text(settings, "Engine"), "EngineVersion": text(settings, "EngineVersion")}
    rule = mapping(settings, "SamplingRule")
    is_constrained = found.get("AnatomicallyConstrained")
    return [
        (
            "orientations",
            {
                **engine,
                "Response": text(found, "ResponseAlgorithm"),
                "Deconvolution": text(found, "DeconvolutionAlgorithm"),
                "Tissues": texts(found, "Tissues"),
                "VoxelSize": number(preset, "voxel_size"),
            },
        ),
        (
            "modelled",
            {
                "Shells": _rounded_b(entries(found, "ModelledShells")),
                "Order": number(found, "SphericalHarmonicsOrder"),
            },
        ),
        (
            "tracking",
            {
                **engine,
                "Constrained": is_constrained if isinstance(is_constrained, bool) else None,
                "Preset": _preset(preset, engine["Engine"]),
            },
        ),
        (
            "sampling",
            {
                "Reliability": number(rule, "reliability"),
                "MaxStreamlines": number(rule, "max_streamlines"),
                "Streamlines": number(rule, "streamlines"),
                "BatchSize": number(preset, "batch_size"),
            },
        ),
        ("stopped", {"By": text(mapping(tracking, "SamplingRule"), "StoppedBy")}),
        ("assignment", {"Radius": number(document, "AssignmentRadius")}),
        ("tracking_seed", {"Seed": number(settings, "Seed")}),
    ]


def _preset(preset: Document, engine: str) -> dict[str, Any]:
    own = mapping(preset, engine)
    told: dict[str, Any] = {"name": text(preset, "name")}
    told |= {key: number(preset, key) for key in _PRESET}
    return told | {key: number(own, key) for key in _PRESET_OF_ENGINE}


def of_structure(document: Document) -> list[Aspect]:
    """Return the aspects of a scan's structural embedding."""
    settings = mapping(document, "StructuralSettings")
    factor = number(document, "DepthFactor")
    return [
        ("structural_model", of_model(document)),
        (
            "structural_input",
            {"Measure": text(settings, "Measure"), "Transform": text(settings, "Transform")},
        ),
        ("depth", {"Changed": factor is not None and factor != 1}),
        *_judged(document, "structural_"),
    ]


# --- the dataset as a whole ----------------------------------------------------------------------


def of_prediction(document: Document) -> list[Aspect]:
    """Return the aspects of what was predicted of a target."""
    settings = mapping(document, "PredictionSettings")
    correction = mapping(document, "BiasCorrection")
    told = {
        "Target": text(document, "Target"),
        "TargetUnits": text(document, "TargetUnits"),
        "TaskType": text(document, "TaskType"),
        "Classes": texts(document, "Classes"),
        "Candidates": list(mapping(document, "Candidates")),
        "Headline": text(document, "Headline"),
        "Reference": text(document, "Reference"),
        "BiasCorrected": bool(correction) and "Reason" not in correction,
        "GroupBy": text(settings, "GroupBy"),
        "Exchange": text(settings, "Exchange"),
        "Confounds": texts(settings, "Confounds"),
        "Harmonize": text(settings, "Harmonize"),
    }
    numbers = (
        "Units",
        "Labelled",
        "Groups",
        "Folds",
        "Repeats",
        "GateRepeats",
        "Permutations",
        "Bootstrap",
        "Seed",
    )
    return [("prediction", told | {key: number(settings, key) for key in numbers})]


def of_applied(document: Document) -> list[Aspect]:
    """Return the aspects of what predictors of another dataset predict."""
    told = {key: text(document, key) for key in ("Target", "TaskType", "Head")}
    return [("applied", told)]


def of_group(key: str, document: Document) -> list[Aspect]:
    """Return the aspects of a table of the cohort, by the key of its product."""
    settings = mapping(document, "GroupSettings")
    told: dict[str, Any] = {
        name: number(settings, name) for name in ("Participants", "Permutations", "Seed")
    }
    if key == "contrast":
        told |= {name: text(settings, name) for name in ("Contrast", "Difference")}
    if key == "recovery":
        told["Recovered"] = len(texts(document, "RecoveredParticipants"))
    if key == "group_mean":
        told = {"Features": text(document, "Features")}
    return [(key, told)]


def of_cohort_scaling(document: Document) -> list[Aspect]:
    """Return the aspects of the statistics of cohort scaling."""
    told = {
        "ScalingStatistics": text(document, "ScalingStatistics"),
        "Participants": len(texts(document, "Participants")),
    }
    return [("cohort_scaling", told)]


def of_software(document: Document, *, with_model: bool) -> list[Aspect]:
    """Return each program whose version a sidecar has; torch only where a model was used."""
    versions = mapping(document, "SoftwareVersions")
    return [
        ("software", {"Name": name, "Version": version})
        for name, version in versions.items()
        if isinstance(version, str) and (with_model or name != "torch")
    ]

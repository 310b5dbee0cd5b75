"""The methods paragraphs: what was run, as a paper has it."""

from __future__ import annotations

from collections.abc import Mapping

from bsym_bids.methods import cohort, diffusion, embeddings, functional
from bsym_bids.methods.facts import Facts
from bsym_bids.methods.sentences import (
    Paragraph,
    cite,
    clean,
    counted,
    listed,
    paragraph,
    values_of,
    varied,
)

#: Programs whose versions sidecars have: what they are called, and what is cited for them.
_SOFTWARE: Mapping[str, tuple[str, str]] = {
    "python": ("Python", ""),
    "numpy": ("NumPy", "harris2020"),
    "scipy": ("SciPy", "virtanen2020"),
    "nibabel": ("NiBabel", "brett"),
    "torch": ("PyTorch", "paszke2019"),
    "dipy": ("DIPY", "garyfallidis2014"),
    "SimpleITK": ("SimpleITK", "lowekamp2013"),
    "nitransforms": ("NiTransforms", ""),
    "mrtrix3": ("MRtrix3", "tournier2019"),
}
_PROGRAM = "bsym-bids"
#: Fewer labelled units than this are few.
_FEW = 100


def paragraphs(facts: Facts) -> list[Paragraph]:
    """Return the methods text.

    Parameters
    ----------
    facts : Facts
        What was run.

    Returns
    -------
    list of Paragraph
        In the order of a paper. Numbers of runs and scans are in it where they are known.
    """
    if not facts.blocks:
        return [Paragraph("Overview", "There were no complete outputs to describe.")]
    return [
        *paragraph("Overview", *_overview(facts)),
        *functional.paragraphs(facts),
        *diffusion.paragraphs(facts),
        *embeddings.paragraphs(facts),
        *cohort.paragraphs(facts),
        *paragraph("Software", _software(facts)),
        *paragraph("Limits", *_limits(facts)),
        Paragraph(
            "Copyright waiver",
            f"{_PROGRAM} has written this text from what is on record of the outputs, so that it "
            "can be copied into manuscripts as it is. It is released under CC0 1.0.",
        ),
    ]


# --- overview ------------------------------------------------------------------------------------


def _overview(facts: Facts) -> list[str]:
    return [
        f"Data were processed with {_program(facts)}, a BIDS App{cite('gorgolewski2017')} for data "
        f"in the Brain Imaging Data Structure (BIDS){cite('gorgolewski2016')}.",
        _numbers(facts),
        _simulated(facts, "bold_simulated", "BOLD runs"),
        _simulated(facts, "dwi_simulated", "diffusion scans"),
        _framework(facts),
        varied(facts, "bold_source", _preprocessed),
    ]


def _versions(facts: Facts, name: str) -> str:
    return listed(
        sorted(
            clean(block.settings.get("Version", ""))
            for block in facts.of("software")
            if block.settings.get("Name") == name
        )
    )


def _program(facts: Facts) -> str:
    return f"{_PROGRAM} {_versions(facts, _PROGRAM)}".rstrip()


def _numbers(facts: Facts) -> str:
    if not facts.is_counted:
        return ""
    parts = []
    for aspect, name in (("regressors", "BOLD run"), ("dwi_simulated", "diffusion scan")):
        holders = facts.holders(aspect)
        people = {p for b in facts.of(aspect) for p in b.participants}
        if holders:
            parts.append(f"{counted(len(holders), name)} of {counted(len(people), 'participant')}")
    return f"Outputs were made of {listed(parts, 'and of')}." if parts else ""


def _simulated(facts: Facts, aspect: str, what: str) -> str:
    if not facts.any_has(aspect, "Simulated", True):
        return ""
    blocks = facts.of(aspect)
    if all(block.settings.get("Simulated") for block in blocks):
        return f"The {what} were simulated, not measured."
    if not facts.is_counted:
        return f"Some of the {what} were simulated, not measured."
    number = sum(len(b.holders) for b in blocks if b.settings.get("Simulated"))
    return f"Of the {what}, {number:,} {'was' if number == 1 else 'were'} simulated, not measured."


def _framework(facts: Facts) -> str:
    """Say what ran the steps; simulated outputs were written without it."""
    has_runs, has_scans = facts.has("bold_source"), facts.has("dwi_source")
    if not (has_runs or has_scans):
        return ""
    text = f"The steps were connected and run by Nipype{cite('gorgolewski2011')}"
    if has_runs:
        text += f", and BOLD series were found with PyBIDS{cite('yarkoni2019')}"
    return text + "."


def _preprocessed(settings: Mapping[str, object]) -> str:
    name, version = clean(settings.get("Name", "")), clean(settings.get("Version", ""))
    if not name:
        return (
            "the BOLD series had been preprocessed, in the form of fMRIPrep"
            f"{cite('esteban2019')} derivatives"
        )
    if "fmriprep" not in name.lower():
        return f"the BOLD series had been preprocessed with {f'{name} {version}'.strip()}"
    shown = f"fMRIPrep{' ' + version if version else ''}{cite('esteban2019')}"
    return f"the BOLD series had been preprocessed with {shown}, as its own methods text describes"


# --- software and limits -------------------------------------------------------------------------


def _software(facts: Facts) -> str:
    parts = []
    for name, (shown, key) in _SOFTWARE.items():
        if versions := _versions(facts, name):
            parts.append(f"{shown} {versions}{cite(key) if key else ''}")
    return f"The software was {listed([_program(facts), *parts])}."


def _limits(facts: Facts) -> list[str]:
    limits = []
    if any(model.get("Trained") is False for model in embeddings.models(facts)):
        limits.append("What comes from random weights is no measurement of a brain.")
    elif embeddings.warnings_of(facts):
        limits.append(
            "What is said above of the weights holds for everything that came from the model."
        )
    if facts.has("time_base"):
        limits.append(
            "The mean embedding of an ROI holds a code of the ROI that is the same for everyone, "
            "and carries little of the person."
        )
    if facts.has("attention") or facts.has("structural_attention"):
        limits.append("Attention says where the network looked, not how regions act on each other.")
    if facts.has("tracking"):
        limits.append(
            "Streamlines are no count of axons, and the sampling reliability says how much chance "
            "is left in their counts, not whether connections are true."
        )
    return limits + _data_limits(facts)


def _data_limits(facts: Facts) -> list[str]:
    limits = []
    if facts.any_has("motion", "SusceptibilityCorrected", False):
        where = " in some scans" if facts.any_has("motion", "SusceptibilityCorrected", True) else ""
        limits.append(
            f"Distortions of raw diffusion series by susceptibility were not corrected{where}"
        )
    if facts.any_has("roi_values", "ParcelMethod", "pca"):
        limits.append(
            "A first principal component follows what is strongest in an ROI, which may be motion"
        )
    labelled = values_of(facts.of("prediction"), "Labelled")
    if labelled and labelled[0] < _FEW:
        limits.append(f"Scores of predictions of fewer than {_FEW} people are uncertain")
    if facts.has("prediction"):
        limits.append("Predictions are of how well a group can be told, not of a person")
    return [f"{limit}." for limit in limits]

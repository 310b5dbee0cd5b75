"""The text on the model and what it makes of runs and scans."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from bsym_bids.methods.aspects import RUN, SCAN
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
    values_of,
    varied,
)

Settings = Mapping[str, Any]
_MODELS = ("model", "structural_model")
#: Verdicts on whether a model knows the data, that are worth a sentence.
_VERDICTS = ("in domain", "doubtful", "out of domain")
_SCALINGS: Mapping[str, str] = {
    "robust": "the series of each ROI was scaled by its median and interquartile range in the run",
    "zscore": "the series of each ROI was scaled by its mean and standard deviation in the run",
    "none": "the series were not scaled",
}
_MEASURES: Mapping[str, str] = {
    "count": "streamline counts",
    "invnodevol": "streamline counts divided by the mean volume (mm³) of the two ROIs",
}
_TRANSFORMS: Mapping[str, str] = {
    "log10p1": "log10(1 + d) of",
    "log10": "log10(d) of the edges, of",
}


def paragraphs(facts: Facts) -> list[Paragraph]:
    """Return what is to be said of the model and of embeddings."""
    if not any(facts.has(aspect) for aspect in _MODELS):
        return []
    found = paragraph("Model", *_model(facts))
    if facts.has("time_base"):
        found += paragraph("Functional embeddings", *_functional(facts))
    if facts.has("reconstruction"):
        found += paragraph("Reconstruction of held-out ROIs", *_reconstruction(facts))
    if facts.has("structural_model"):
        found += paragraph("Structural embeddings", *_structural(facts))
    if facts.has("fusion"):
        found += paragraph("Fusion", _fusion(facts))
    if facts.has("cohort_embedding") or facts.has("cohort_scaling"):
        found += paragraph("Cohort scaling", *_cohort_scaling(facts))
    return found


# --- model ---------------------------------------------------------------------------------------


def models(facts: Facts) -> list[Settings]:
    """Return the models that were used, each once."""
    found: dict[str, Settings] = {}
    for aspect in _MODELS:
        for block in facts.of(aspect):
            found.setdefault(f"{sorted(block.settings.items())}", block.settings)
    return list(found.values())


def warnings_of(facts: Facts) -> list[str]:
    """Return what the models' cards warn of, each once, as sentences."""
    given = [clean(model.get("Warning", ""), 600) for model in models(facts)]
    return [f"{text.rstrip('.')}." for text in dict.fromkeys(given) if text]


def _model(facts: Facts) -> list[str]:
    used = models(facts)
    what = listed(
        [
            *(["ROI time series"] if facts.has("time_base") else []),
            *(["structural connectomes"] if facts.has("structural_model") else []),
        ]
        or ["The data"]
    )
    names = listed(_name(model) for model in used)
    first = sentence(f"{what} were embedded by BrainSymphony{cite('khajehnejad2025')} with {names}")
    return [
        first,
        *(_training(model, is_only=len(used) == 1) for model in used),
        *warnings_of(facts),
        *_deviations(facts),
        *_domains(facts),
    ]


def _name(model: Settings) -> str:
    name, version = clean(model.get("Name", "")), clean(model.get("Version", ""))
    shown = f'the weights "{name}"' if name else "weights without a name"
    details = [f"version {version}"] if version else []
    if fingerprint := clean(model.get("Fingerprint", "")):
        details.append(f"SHA-256 fingerprint of weights and sizes {fingerprint[:16]}")
    return shown + (f" ({', '.join(details)})" if details else "")


def _training(model: Settings, is_only: bool) -> str:
    name = clean(model.get("Name", ""))
    which = f' "{name}"' if name and not is_only else ""
    if model.get("Trained") is None:
        return ""
    if model["Trained"]:
        return f"The weights{which} had been trained beforehand and were not changed."
    return (
        f"The weights{which} were random and not trained, so that nothing that came from the model "
        "says anything about a brain."
    )


def _deviations(facts: Facts) -> list[str]:
    found = []
    for aspect, unit in (("deviation", RUN), ("structural_deviation", SCAN)):
        total = counted(len(facts.holders("model" if unit == RUN else "structural_model")), unit)
        for block in facts.of(aspect):
            what = re.sub(r"\s*\(--[^)]*\)", "", clean(block.settings.get("Sentence", "")))
            where = f" (in {len(block.holders):,} of {total})" if facts.is_counted else ""
            found.append(f"The use of the model differed from what it was made for{where}: {what}.")
    return list(dict.fromkeys(found))


def _domains(facts: Facts) -> list[str]:
    found = []
    parts = (
        ("domain", "held-out ROIs", RUN),
        ("structural_domain", "hidden edges", SCAN),
    )
    for aspect, what, unit in parts:
        numbers = {str(b.settings.get("Verdict")): len(b.holders) for b in facts.of(aspect)}
        known = [verdict for verdict in _VERDICTS if verdict in numbers]
        if not known:
            continue
        if facts.is_counted:
            total = counted(len(facts.holders(aspect)), unit)
            each = [f"{verdict} in {numbers[verdict]:,}" for verdict in known]
            each[0] += f" of {total}"
        else:
            each = known if len(known) == 1 else [f"{verdict} in some {unit}s" for verdict in known]
        found.append(
            f"By how much better {what} were predicted than under permuted ROI labels, the data "
            f"were judged {listed(each)}."
        )
    return found


# --- runs ----------------------------------------------------------------------------------------


def _functional(facts: Facts) -> list[str]:
    return [
        varied(facts, "time_base", _time_base),
        varied(facts, "resampling", _resampling),
        varied(facts, "scaling", lambda settings: _SCALINGS.get(settings.get("Scaling", ""), "")),
        varied(facts, "windows", _windows),
        "ROIs that were missing or constant were presented to the model as held out.",
        "The functional embedding of an ROI was its latent in the model's Perceiver, for each "
        "window, and the mean over windows.",
        _similarity(facts),
        _attention(facts),
        _seeds(facts, "seed"),
    ]


def _time_base(settings: Settings) -> str:
    seconds, tolerance = settings.get("Seconds"), settings.get("Tolerance")
    if seconds is None or tolerance is None:
        return ""
    return (
        f"the model got frames {said(seconds)} s apart; series whose repetition time was within "
        f"{said(tolerance)} % of that passed as they were"
    )


def _resampling(settings: Settings) -> str:
    source, windows = settings.get("Source"), settings.get("Windows")
    if source is None or windows is None:
        return ""
    if source == windows:
        return f"series with a repetition time of {said(source)} s were not resampled"
    return (
        f"series with a repetition time of {said(source)} s were resampled to {said(windows)} s "
        "as a sum of sines, without frequencies above those of the source"
    )


def _windows(settings: Settings) -> str:
    length, step = settings.get("Length"), settings.get("Step")
    if length is None or step is None:
        return ""
    seconds = settings.get("Seconds")
    lasting = f" ({said(round(length * seconds, 3))} s)" if seconds is not None else ""
    most = settings.get("MostCensored")
    left_out = (
        f"; windows with more than {said(most)} % of their frames censored were left out"
        if most is not None
        else ""
    )
    return (
        f"windows of {said(length)} frames{lasting} began every {said(step)} frames, and where "
        f"frames would have been left over, a last one ended with the run{left_out}"
    )


def _similarity(facts: Facts) -> str:
    if not facts.has("similarity"):
        return ""
    return (
        "The similarity of two ROIs was the correlation of their embeddings after the embedding of "
        "a fully masked input had been subtracted, averaged over windows as Fisher's z."
    )


def _attention(facts: Facts) -> str:
    if not facts.has("attention"):
        return ""
    return (
        "The attention of the Perceiver was averaged over heads and windows, and summed over time "
        "to give that between ROIs."
    )


def _seeds(facts: Facts, aspect: str) -> str:
    seeds = values_of(facts.of(aspect), "Seed")
    if not seeds:
        return ""
    return f"The random seed was {listed(map(said, seeds))}."


def _reconstruction(facts: Facts) -> list[str]:
    windows = facts.numbers.get("windows")
    number = (
        f"at most {said(windows[-1])} windows" if windows and windows[-1] > 1 else "some windows"
    )
    first = varied(
        facts,
        "reconstruction",
        lambda settings: (
            f"each measured ROI was held out of the input once in each of {number} of the run, in "
            f"{said(settings.get('Folds'))} folds, and reconstructed through the whole network"
            if settings.get("Folds")
            else "measured ROIs were held out of the input and reconstructed through the network"
        ),
    )
    return [
        first,
        "Scores were R² (1 - SSE/SST about the ROI's own mean in a window), Pearson's correlation "
        "and the mean absolute error over frames that were not censored.",
        varied(facts, "reconstruction", _control),
        varied(facts, "reconstruction", _baseline),
    ]


def _control(settings: Settings) -> str:
    if not settings.get("Control"):
        return ""
    return "as a control, the same series were presented under permuted ROI labels"


def _baseline(settings: Settings) -> str:
    if not settings.get("Baseline"):
        return ""
    ridge = settings.get("Ridge")
    shown = f", with a ridge of {said(ridge)}" if ridge is not None else ""
    return (
        "as a baseline, held-out ROIs were predicted from the others, frame by frame, as the "
        "conditional mean of a normal distribution with the group-average functional connectivity "
        f"of young adults of the Human Connectome Project{cite('lariviere2021')}{shown}"
    )


# --- scans ---------------------------------------------------------------------------------------


def _structural(facts: Facts) -> list[str]:
    return [
        varied(facts, "structural_input", _structural_input),
        _depth(facts),
        "Absent ROIs had no edges there.",
        "The structural embedding of an ROI came from the model's graph transformer"
        + (
            ", and its attention from the last layer, averaged over heads."
            if facts.has("structural_attention")
            else "."
        ),
        _edges(facts),
    ]


def _structural_input(settings: Settings) -> str:
    measure = _MEASURES.get(settings.get("Measure", ""), "")
    transform = _TRANSFORMS.get(settings.get("Transform", ""), "")
    if not measure:
        return ""
    return f"the model got {transform} {measure}".replace("  ", " ")


def _depth(facts: Facts) -> str:
    changed = {h for b in facts.of("depth") if b.settings.get("Changed") for h in b.holders}
    if not facts.any_has("depth", "Changed", True):
        return ""
    text = (
        "Where the number of streamlines between ROIs was outside of the range that the model was "
        "made for, counts were multiplied by what brought their sum to the nearer end of it"
    )
    if not facts.is_counted:
        return text + "."
    total = counted(len(facts.holders("depth")), SCAN)
    factors = [value for value in facts.numbers.get("depth", ()) if value != 1]
    by = f"; factor {spread(factors, lambda value: f'{value:.3g}')}" if factors else ""
    return f"{text} ({len(changed):,} of {total}{by})."


def _edges(facts: Facts) -> str:
    if not facts.has("edges"):
        return ""
    return (
        "Pairs of ROIs were hidden in folds and predicted from the embeddings that the other pairs "
        "gave; scores stand beside those under permuted ROI labels and those of the group-average "
        f"connectome of the Human Connectome Project{cite('lariviere2021')}."
    )


def _fusion(facts: Facts) -> str:
    where = ""
    if facts.is_counted:
        total = counted(len(facts.holders("model")), RUN)
        where = f" of {len(facts.holders('fusion')):,} of {total}"
    return (
        f"The functional embeddings{where} were fused with the structural embedding of the first "
        "diffusion scan of the session, or else of the participant, by the model's gate: "
        "g f + (1 - g) s for each window, ROI and dimension, with f the functional and s the "
        "structural embedding and g the gate."
    )


def _cohort_scaling(facts: Facts) -> list[str]:
    people = values_of(facts.of("cohort_scaling"), "Participants")
    of = f" of {counted(people[-1], 'participant')}" if people and people[-1] else ""
    again = ""
    if facts.has("cohort_embedding"):
        number = len(facts.holders("cohort_embedding"))
        which = counted(number, RUN) if facts.is_counted else "runs"
        verb = "was" if facts.is_counted and number == 1 else "were"
        again = (
            f"With these, {which} {verb} embedded anew; the embeddings from before stand beside "
            "the new ones."
        )
    return [
        f"Medians and interquartile ranges of the ROIs were taken over the kept frames{of}, with "
        "the same weight for each participant.",
        again,
    ]

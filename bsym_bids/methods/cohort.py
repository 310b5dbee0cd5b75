"""The text on what was made of a cohort: predictions, identification, reliability, contrasts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
    times,
    values_of,
)

Settings = Mapping[str, Any]
REGRESSION = "regression"
#: What candidates predict from.
_CANDIDATES: Mapping[str, str] = {
    "mean": "the mean (or the shares of the classes) in training",
    "confounds": "the confounds alone",
    "fc": "functional connectivity (Fisher's z)",
    "fc_tangent": "functional connectivity in the tangent space"
    f"{cite('varoquaux2010')} of a group average of other people{cite('lariviere2021')}, after "
    f"shrinkage{cite('chen2010')}",
    "sc": "structural connectivity (log10(1 + streamlines))",
    "fc_sc": "both connectivities",
    "bs_functional_mean": "the mean functional embedding",
    "bs_functional": "the similarity of functional embeddings",
    "bs_structural": "the structural embedding",
    "bs_concatenated": "the similarity of functional embeddings and the structural embedding",
    "bs_gate": "functional and structural embeddings through the model's gate",
    "random_functional": "the similarity of functional embeddings by the same network with random "
    "weights",
    "random_structural": "the structural embedding by the same network with random weights",
    "random_concatenated": "both by the same network with random weights",
    "fc_bs": "functional connectivity and the similarity of functional embeddings",
}
_CONFOUNDS: Mapping[str, str] = {
    "fd_mean": "mean framewise displacement (mm)",
    "n_frames": "number of frames kept",
    "roi_volume": "total volume of the ROIs (mm³)",
}
_MEANS: Mapping[str, str] = {
    "fc": "functional connectivity",
    "sc": "structural connectivity",
    "bs_functional": "similarity of functional embeddings",
}
_SCORES = {
    True: "mean absolute error, root mean squared error, R², and Pearson's and Spearman's "
    "correlation",
    False: "area under the ROC curve, balanced accuracy, accuracy, F1, Brier score, log loss and "
    "calibration",
}


def paragraphs(facts: Facts) -> list[Paragraph]:
    """Return what is to be said of a cohort."""
    found: list[Paragraph] = []
    blocks = sorted(facts.of("prediction"), key=lambda block: str(block.settings.get("Target")))
    for block in blocks:
        found += _prediction(block.settings)
    for block in facts.of("applied"):
        target, head = (clean(block.settings.get(key, "")) for key in ("Target", "Head"))
        text = (
            f'The variable "{target}" was predicted of everyone by predictors that had been fitted '
            f"to another dataset (file {head})."
        )
        found += paragraph(f"Application of predictors of {target}", text)
    found += paragraph("Identification and reliability", *_identification(facts))
    found += paragraph("Network recovery", _recovery(facts))
    found += paragraph("Contrasts", *_contrasts(facts))
    found += paragraph("Group means", _means(facts))
    return found


# --- predictions ---------------------------------------------------------------------------------


def _prediction(settings: Settings) -> list[Paragraph]:
    target = clean(settings.get("Target", "")) or "the label"
    is_regression = settings.get("TaskType") == REGRESSION
    return paragraph(
        f"Prediction of {target}",
        _question(target, settings, is_regression),
        _candidates(settings),
        _heads(settings, is_regression),
        _validation(settings),
        _confounds(settings),
        _harmonisation(settings),
        _gate(settings),
        _scores(settings, is_regression),
        _permutations(settings, is_regression),
        _comparison(settings, is_regression),
        _bias_correction(settings),
    )


def _question(target: str, settings: Settings, is_regression: bool) -> str:
    labelled, units = settings.get("Labelled"), settings.get("Units")
    whom = "participants" if _is_of_participants(settings) else "participants, sessions or states"
    number = f" of {said(labelled)} labelled {whom}" if labelled is not None else f" of {whom}"
    if units is not None and labelled is not None and units > labelled:
        number += f" (of {said(units)})"
    unit = clean(settings.get("TargetUnits", ""))
    what = f'"{target}"' + (f" ({unit})" if unit and is_regression else "")
    classes = [clean(name) for name in settings.get("Classes", ())]
    if not is_regression and classes:
        what += f" ({listed(classes, 'or')})"
    return f"The variable {what}{number} was predicted."


def _is_of_participants(settings: Settings) -> bool:
    return settings.get("GroupBy") == "participant" and settings.get("Units") == settings.get(
        "Groups"
    )


def _candidates(settings: Settings) -> str:
    tried = [_CANDIDATES[key] for key in settings.get("Candidates", ()) if key in _CANDIDATES]
    if not tried:
        return ""
    return f"Predictions were made, on the same folds, from {'; '.join(tried)}."


def _heads(settings: Settings, is_regression: bool) -> str:
    how = "ridge regression" if is_regression else "logistic regression with an L2 penalty"
    return f"They were made by {how}."


def _validation(settings: Settings) -> str:
    folds, repeats = settings.get("Folds"), settings.get("Repeats")
    if folds is None or repeats is None:
        return ""
    group = clean(settings.get("GroupBy", "")) or "participant"
    together = f'all with the same "{group}"'
    if group == "participant":
        together = "all data of a participant"
    seed = settings.get("Seed")
    drawn = f", with the random seed {said(seed)}" if seed is not None else ""
    return (
        f"Everyone was predicted out of fold in a nested cross-validation with {said(folds)} folds,"
        f" done {times(repeats)}{drawn}; folds were dealt by scikit-learn{cite('pedregosa2011')}, "
        f"and {together} were in one fold. Penalties were "
        "chosen in inner folds, and everything that was learned from data was learned in the "
        "training folds."
    )


def _confounds(settings: Settings) -> str:
    names = [_confound(name) for name in settings.get("Confounds", ())]
    if not names:
        return "No confounds were regressed out of the features."
    return (
        f"Confounds were regressed out of the features, with weights learned in the training "
        f"folds: {listed(names)}."
    )


def _confound(name: str) -> str:
    """Return what a confound is called; a class stands behind its column."""
    column, sign, level = clean(name).partition("=")
    return f"{column} ({level})" if sign else _CONFOUNDS.get(column, column)


def _harmonisation(settings: Settings) -> str:
    method = settings.get("Harmonize")
    if not method:
        return ""
    name = f"ComBat{cite('johnson2007', 'fortin2018')}" if method == "combat" else clean(method)
    return (
        f"Features were harmonised between sites by {name}, learned in the training folds and "
        "without covariates."
    )


def _gate(settings: Settings) -> str:
    if "bs_gate" not in settings.get("Candidates", ()):
        return ""
    repeats = settings.get("GateRepeats")
    first = "repeat" if repeats == 1 else f"{said(repeats)} repeats"
    often = f", in the first {first} alone" if repeats else ""
    return f"The gate was trained in the training folds{often}."


def _scores(settings: Settings, is_regression: bool) -> str:
    text = f"Scores were {_SCORES[is_regression]}"
    samples = settings.get("Bootstrap")
    if samples:
        text += f", with 95 % intervals from {said(samples)} bootstrap samples"
    return text + "."


def _permutations(settings: Settings, is_regression: bool) -> str:
    number = settings.get("Permutations")
    if not number:
        return "No permutation test was made."
    exchange = clean(settings.get("Exchange", ""))
    shown = f" ({exchange})" if exchange else ""
    statistic = (
        "R²"
        if is_regression
        else "the area under the curve of a least-squares classifier, on folds that were dealt "
        "without a look at the labels"
    )
    return (
        f"Predictions were tested by {said(number)} permutations of the labels, as far as these "
        f"were exchangeable{cite('winkler2015')}{shown}, through the whole cross-validation; the "
        f"statistic was {statistic}."
    )


def _comparison(settings: Settings, is_regression: bool) -> str:
    metric = "mean absolute errors" if is_regression else "areas under the ROC curve"
    text = (
        f"Candidates were compared by the corrected resampled t-test{cite('nadeau2003')} of their "
        f"{metric} by fold."
    )
    shown = [_CANDIDATES.get(settings.get(key, ""), "") for key in ("Headline", "Reference")]
    if all(shown):
        text += f" Fixed beforehand was the comparison of {shown[0]} with {shown[1]}."
    return text


def _bias_correction(settings: Settings) -> str:
    if not settings.get("BiasCorrected"):
        return ""
    return (
        "Predictions were also corrected for regression to the mean, by a line through those of "
        f"the other folds{cite('cole2018', 'delange2020')}; corrected predictions entered no score."
    )


# --- maps ----------------------------------------------------------------------------------------


def _tested(facts: Facts, aspect: str) -> str:
    numbers = values_of(facts.of(aspect), "Permutations")
    return f"{listed(map(said, numbers), 'or')} permutations" if numbers else "permutations"


def _people(facts: Facts, aspect: str) -> str:
    numbers = values_of(facts.of(aspect), "Participants")
    return (
        f" {listed((f'{said(n)}' for n in numbers), 'or')} participants"
        if numbers
        else (" the participants")
    )


def _identification(facts: Facts) -> list[str]:
    found = []
    if facts.has("identification"):
        found.append(
            f"How often a person's other scan was identified{cite('finn2015', 'amico2018')} among "
            f"the scans of{_people(facts, 'identification')} was measured for each kind of "
            "features, with the mean over people kept and removed, and tested by "
            f"{_tested(facts, 'identification')} of people."
        )
    if facts.has("reliability"):
        found.append(
            "The reliability of features was the intraclass correlation ICC(1,1)"
            f"{cite('shrout1979')} of repeated scans."
        )
    return found


def _recovery(facts: Facts) -> str:
    if not facts.has("recovery"):
        return ""
    people = values_of(facts.of("recovery"), "Recovered")
    of = f" of {counted(people[-1], 'participant')}" if people and people[-1] else ""
    return (
        f"How well embeddings{of} tell the network of an ROI was the accuracy of a multinomial "
        f"logistic regression{cite('pedregosa2011')} on ROIs that it was not trained on, in five "
        "folds and from the left to the right hemisphere, beside shuffled data, a fully masked "
        "input, the positional code alone, the series, and the correlation matrix."
    )


def _contrasts(facts: Facts) -> list[str]:
    found = []
    for block in sorted(facts.of("contrast"), key=lambda b: str(b.settings.get("Contrast"))):
        difference = clean(block.settings.get("Difference", ""))
        number = block.settings.get("Permutations")
        flips = f" (all of them for few people, else {said(number)})" if number else ""
        found.append(
            f"Paired differences{f' ({difference})' if difference else ''} were tested by flipping "
            f"the signs of people{flips}, and corrected for the number of ROIs, networks or pairs "
            f"of networks by the largest statistic{cite('nichols2002')}."
        )
    return list(dict.fromkeys(found))


def _means(facts: Facts) -> str:
    kinds = values_of(facts.of("group_mean"), "Features")
    if not kinds:
        return ""
    names = listed(_MEANS.get(kind, clean(kind)) for kind in kinds)
    return sentence(
        f"means over people were taken of {names}, each person once and correlations as Fisher's z"
    )

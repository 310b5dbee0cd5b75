"""What a reviewer would ask about predictions, asked beforehand."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bsym_bids.prediction.candidates import HEADLINES, REFERENCES, first_of
from bsym_bids.prediction.comparisons import Comparison
from bsym_bids.prediction.records import Target
from bsym_bids.prediction.scores import Scored
from bsym_bids.prediction.verdict import (
    ALPHA,
    above_chance,
    against_confounds,
    brain_candidates,
    is_above_chance,
    is_tested,
    say_difference,
    say_score,
    title_of,
)

#: Fewer labelled participants are few, and fewer units of a class.
FEW_PARTICIPANTS, FEW_OF_CLASS = 100, 20
#: So many times as many units of the largest as of the smallest class are an imbalance.
IMBALANCE = 4.0
#: Association of label and site that matters (Cramer's V, or eta), and units that a site must have
#: for its single class to be more than accident.
ASSOCIATION, SITE_UNITS = 0.1, 5
#: Slopes of calibration between are close to 1.
CALIBRATED = (0.8, 1.25)
#: Of more candidates a warning gives the names alone.
_LISTED = 3
#: Share of participants with labels of the Human Connectome Project that makes a dataset its own.
_SHARE_OF_LABELS = 0.5
_HCP_LABEL = re.compile(r"\d{6}|HC[AD]\d{7}", re.IGNORECASE)
_HCP_NAME = re.compile(r"(?<![a-z])hcp|human connectome project", re.IGNORECASE)


@dataclass(frozen=True)
class Caution:
    """A reason to doubt a prediction.

    Attributes
    ----------
    code : str
        ``few_participants``, ``few_of_class``, ``imbalance``, ``confounds``, ``site``,
        ``training_data``, ``few_rearrangements``, ``few_permutations``, ``relatives``,
        ``unharmonized``, ``chance``, ``calibration``.
    text : str
        For people.
    numbers : mapping of str to float
        What it rests on.
    """

    code: str
    text: str
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Circumstances:
    """What is known besides the predictions.

    Attributes
    ----------
    participants : sequence of str, length N
        Label of each unit's participant, without ``sub-``.
    sites : sequence of str, length N, optional
        Where each unit was scanned; empty where it is not known.
    dataset_name : str
        ``Name`` of the dataset's description.
    model_knows_hcp : bool
        The model was trained on people of the Human Connectome Project, see `knows_hcp`.
    rearrangements : float
        In how many ways labels can be shuffled, as a base 10 logarithm; infinite: enough.
    unharmonized : int
        Labelled participants whose site no one shares who trains: `--harmonize` leaves them alone.
    relatives : str
        Column of families that was not asked for; empty without.
    """

    participants: Sequence[str]
    sites: Sequence[str] | None = None
    dataset_name: str = ""
    model_knows_hcp: bool = False
    rearrangements: float = math.inf
    unharmonized: int = 0
    relatives: str = ""


def warnings_for(
    target: Target,
    results: Mapping[str, Scored],
    comparisons: Sequence[Comparison],
    circumstances: Circumstances,
) -> list[Caution]:
    """Return all reasons to doubt what is predicted of a target.

    Parameters
    ----------
    target : Target
        What was predicted.
    results : mapping of str to Scored
        By key of the candidate.
    comparisons : sequence of Comparison
        As for `bsym_bids.prediction.verdict.verdict`.
    circumstances : Circumstances
        What is known besides.

    Returns
    -------
    list of Caution
        In the order of `Caution.code`.
    """
    found = [
        _few_participants(target, circumstances.participants),
        *_classes(target),
        _confounds(target, results, comparisons),
        _site(target, circumstances.sites),
        _training_data(circumstances),
        _rearrangements(target, circumstances.rearrangements),
        _permutations(target, results),
        _relatives(target, circumstances.relatives),
        _unharmonized(target, circumstances.unharmonized),
        _chance(target, results),
        *_calibration(target, results),
    ]
    return [caution for caution in found if caution]


def knows_hcp(card: Mapping[str, Any]) -> bool:
    """Return whether a model's card says in words that people of HCP trained it."""
    words = card.get("training")
    return bool(card.get("trained", True)) and is_hcp_name(words if isinstance(words, str) else "")


def is_hcp_name(text: str) -> bool:
    """Return whether a text names the Human Connectome Project."""
    return bool(_HCP_NAME.search(text))


def _few_participants(target: Target, participants: Sequence[str]) -> Caution | None:
    labelled = {name for name, known in zip(participants, target.labelled, strict=True) if known}
    if len(labelled) >= FEW_PARTICIPANTS:
        return None
    return Caution(
        "few_participants",
        f"{target.name}: {len(labelled)} labelled participants, fewer than {FEW_PARTICIPANTS}: "
        "scores are uncertain by more than most differences between candidates",
        {"participants": len(labelled)},
    )


def _classes(target: Target) -> list[Caution]:
    """Return what the numbers of units of the classes are too small or too unequal for."""
    if target.is_regression:
        return []
    labels = target.values[target.labelled].astype(int)
    counts = np.bincount(labels, minlength=len(target.classes))
    least, most = int(counts.argmin()), int(counts.argmax())
    few, many = f"{target.classes[least]}: {counts[least]}", f"{target.classes[most]}: "
    numbers = {name: float(n) for name, n in zip(target.classes, counts, strict=True)}
    found = []
    if counts[least] < FEW_OF_CLASS:
        text = f"{target.name}: few units of a class ({few}), fewer than {FEW_OF_CLASS}"
        found.append(Caution("few_of_class", text, numbers))
    if counts[most] >= IMBALANCE * counts[least]:
        share = counts[most] / counts.sum()
        text = (
            f"{target.name}: unequal classes ({many}{counts[most]}, {few}): whoever always says "
            f"{target.classes[most]} is right in {100 * share:.0f} %; balanced accuracy and AUC do "
            "not reward this, accuracy does"
        )
        found.append(Caution("imbalance", text, numbers))
    return found


def _confounds(
    target: Target, results: Mapping[str, Scored], comparisons: Sequence[Comparison]
) -> Caution | None:
    """Warn where confounds carry the label, or do as well as the best from the brain."""
    confounds = results.get("confounds")
    if confounds is None or not confounds.n_units:
        return None
    carried = is_above_chance(confounds)
    known = against_confounds(comparisons, brain_candidates(results)).values()
    best = max(known, key=lambda pair: pair.difference, default=None)
    as_good = best is not None and best.difference <= 0 and bool(above_chance(results))
    if not carried and not as_good:
        return None
    text = f"{target.name}: confounds alone "
    text += "predict it" if carried else "do as well as the best brain feature"
    text += f", {say_score(target, confounds)}"
    numbers = {name: confounds.scores[name] for name in ("r2", "auc") if name in confounds.scores}
    numbers["p"] = confounds.p
    if best:
        text += f"; the best brain feature, {title_of(best.a)}, against them: "
        text += say_difference(target, best)
        numbers["difference"] = best.difference
    return Caution("confounds", text, numbers)


def _site(target: Target, sites: Sequence[str] | None) -> Caution | None:
    if sites is None:
        return None
    names = np.asarray(sites, dtype=str)
    known = target.labelled & (names != "")
    labels, own = target.values[known], names[known]
    if len(np.unique(own)) < 2 or len(np.unique(labels)) < 2:
        return None
    if target.is_regression:
        return _site_of_numbers(target, labels, own)
    return _site_of_classes(target, labels, own)


def _site_of_numbers(
    target: Target, labels: NDArray[np.float64], sites: NDArray[np.str_]
) -> Caution | None:
    """Warn if labels differ between sites, by a one-way analysis of variance."""
    from scipy.stats import f_oneway

    groups = [labels[sites == name] for name in np.unique(sites)]
    if len(labels) <= len(groups) or all(np.ptp(group) == 0 for group in groups):
        return None
    p = float(f_oneway(*groups).pvalue)
    within = sum(((group - group.mean()) ** 2).sum() for group in groups)
    eta = math.sqrt(max(0.0, 1 - within / ((labels - labels.mean()) ** 2).sum()))
    if p > ALPHA or eta < ASSOCIATION:
        return None
    return Caution(
        "site",
        f"{target.name} differs between sites (eta {eta:.2f}): what tells sites apart predicts it; "
        "see --group-by site and --harmonize",
        {"eta": eta, "p": p},
    )


def _site_of_classes(
    target: Target, labels: NDArray[np.float64], sites: NDArray[np.str_]
) -> Caution | None:
    """Warn if classes are not spread evenly over sites."""
    from scipy.stats import chi2_contingency
    from scipy.stats.contingency import association, crosstab

    (names, _), table = crosstab(sites, labels)
    p = float(chi2_contingency(table, correction=False).pvalue)
    strength = float(association(table, method="cramer"))
    single = [
        str(name)
        for name, row in zip(names, table, strict=True)
        if row.sum() >= SITE_UNITS and (row > 0).sum() == 1
    ]
    if not single and (p > ALPHA or strength < ASSOCIATION):
        return None
    text = f"{target.name}: classes go with sites (Cramer's V {strength:.2f})"
    if single:
        text += f", and of some sites there is one class only ({', '.join(single)})"
    text += ": what tells sites apart predicts it; see --group-by site and --harmonize"
    numbers = {"cramers_v": strength, "p": p, "sites_of_one_class": float(len(single))}
    return Caution("site", text, numbers)


def _training_data(circumstances: Circumstances) -> Caution | None:
    """Warn if the model may have been trained on these people."""
    if not circumstances.model_knows_hcp:
        return None
    people = set(circumstances.participants)
    share = sum(bool(_HCP_LABEL.fullmatch(label)) for label in people) / max(len(people), 1)
    named = is_hcp_name(circumstances.dataset_name)
    if not named and share < _SHARE_OF_LABELS:
        return None
    why = f"its name is {circumstances.dataset_name!r}" if named else "by their labels"
    return Caution(
        "training_data",
        "these people may be of the Human Connectome Project "
        f"({why}), on which the model was trained: its embeddings of them may be better than of "
        "others, and their scores are no estimate for anyone else",
        {"share_of_hcp_labels": share},
    )


def _chance(target: Target, results: Mapping[str, Scored]) -> Caution | None:
    """Warn of candidates from the brain that were tested and not shown to be above chance."""
    above = above_chance(results)
    failing = [k for k in brain_candidates(results) if k not in above and is_tested(results[k])]
    if not failing:
        return None
    if len(failing) > _LISTED:  # the table has their scores
        said = ", ".join(title_of(key) for key in failing)
    else:
        said = "; ".join(f"{title_of(key)}, {say_score(target, results[key])}" for key in failing)
    numbers = {key: results[key].p for key in failing}
    text = f"{target.name}: not shown to be better than chance: {said}"
    return Caution("chance", text, numbers)


def _rearrangements(target: Target, ways: float) -> Caution | None:
    """Warn where labels can be shuffled in so few ways that no p-value can be small."""
    if 10**-ways <= ALPHA / 5:
        return None
    return Caution(
        "few_rearrangements",
        f"{target.name}: labels can be shuffled in {10**ways:.0f} ways only (see Exchange): no "
        f"p-value can be below {10**-ways:.2g}, and permutation tests say little",
        {"log10_ways": ways},
    )


def _permutations(target: Target, results: Mapping[str, Scored]) -> Caution | None:
    """Warn where permutations are too few for anything to be found."""
    brain = [key for key in brain_candidates(results) if math.isfinite(results[key].p)]
    least = max((results[key].least_p for key in brain), default=0.0)
    if least * len(brain) <= ALPHA:
        return None
    needed = math.ceil(len(brain) / ALPHA)
    text = f"{target.name}: no p-value can be below {least:.2g} with so few permutations"
    if least <= ALPHA:
        text += f", and after correction for {len(brain)} sets of features none can be small"
    text += f": take --permutations {needed} or more"
    return Caution("few_permutations", text, {"least_p": least})


def _relatives(target: Target, column: str) -> Caution | None:
    """Warn of relatives on both sides of a split."""
    if not column:
        return None
    return Caution(
        "relatives",
        f"{target.name}: by the column {column}, some participants belong together, and may be on "
        "both sides of a split: who is alike is then predicted by each other; see --group-by "
        f"{column}",
    )


def _unharmonized(target: Target, count: int) -> Caution | None:
    """Warn of people who are harmonised with nobody."""
    if not count:
        return None
    return Caution(
        "unharmonized",
        f"{target.name}: {count} participants are predicted by others of whom none is of their "
        "site: their features were not harmonised, those of the others were",
        {"participants": count},
    )


def _calibration(target: Target, results: Mapping[str, Scored]) -> list[Caution]:
    """Warn of probabilities that are too extreme or too cautious, of the candidates that count."""
    if target.is_regression:
        return []
    found = []
    brain, above = brain_candidates(results), above_chance(results)
    for key in (first_of(HEADLINES, brain), first_of(REFERENCES, brain)):
        if key not in above:
            continue
        slope = results[key].scores["calibration_slope"]
        low, high = results[key].intervals["calibration_slope"]
        if CALIBRATED[0] <= slope <= CALIBRATED[1] or not (low > 1 or high < 1):
            continue
        how = "too extreme" if slope < 1 else "too cautious"
        text = (
            f"{target.name}: probabilities of {title_of(key)} are {how}: calibration slope "
            f"{slope:.2f} (interval {low:.2f} to {high:.2f}; 1 is right)"
        )
        found.append(Caution("calibration", text, {"slope": slope, "low": low, "high": high}))
    return found

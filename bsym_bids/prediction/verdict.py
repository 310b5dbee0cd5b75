"""What the numbers say, in plain words.

What is compared is fixed before anything is seen (`HEADLINES` and `REFERENCES` in
`bsym_bids.prediction.candidates`): the best of many candidates would be too good. An interval that
contains 0 shows no difference; only if the gain that it allows is below a twentieth of all that
there is to gain, from knowing nothing to being always right, does the verdict say that there is
none.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from bsym_bids.prediction.candidates import CANDIDATES, HEADLINES, REFERENCES, first_of
from bsym_bids.prediction.comparisons import Comparison
from bsym_bids.prediction.records import Target
from bsym_bids.prediction.scores import METRICS, Scored

#: Largest p-value that counts.
ALPHA = 0.05
#: Share of all there is to gain that matters.
LEAST_GAIN = 0.05
#: What is not of the brain.
NOT_BRAIN = ("mean", "confounds")
#: Controls, which stand beside what they control for and are not counted.
CONTROLS = ("random_functional", "random_structural", "random_concatenated")
#: The untrained twin of what stands for the network.
RANDOM = {
    "bs_concatenated": "random_concatenated",
    "bs_functional": "random_functional",
    "bs_structural": "random_structural",
}
#: What holds the reference's features and the network's.
BOTH = "fc_bs"
#: How two candidates compare.
BETTER, WORSE, NO_BETTER, OPEN, UNKNOWN = "better", "worse", "no better", "open", "unknown"
_FORMS = {
    "bs_concatenated": "functional and structural embeddings, side by side",
    "bs_functional": "functional embedding",
    "bs_structural": "structural embedding",
}
_TITLES = {candidate.key: candidate.title for candidate in CANDIDATES}


def verdict(
    target: Target, results: Mapping[str, Scored], comparisons: Sequence[Comparison]
) -> str:
    """Say what was found on a target.

    Parameters
    ----------
    target : Target
        What was predicted.
    results : mapping of str to Scored
        By key of the candidate.
    comparisons : sequence of Comparison
        In any order and direction. Those that count: what stands for the network with FC (or SC),
        with its twin of random weights, and all candidates with confounds alone.

    Returns
    -------
    str
        Some sentences.
    """
    brain = brain_candidates(results)
    if not brain:
        return f"{target.name} was not predicted from the brain."
    above = above_chance(results)
    sentences = [
        *_say_chance(target, results, brain, above),
        *_say_confounds(target, results, comparisons, brain, above),
    ]
    if above:
        sentences += _say_network(target, results, comparisons, above)
    return " ".join([*sentences, _say_tried(brain)])


def brain_candidates(results: Mapping[str, Scored]) -> list[str]:
    """Return keys of the candidates that predict from the brain, for whom there is a score."""
    left_out = (*NOT_BRAIN, *CONTROLS)
    return [key for key, result in results.items() if key not in left_out and result.n_units]


def title_of(key: str) -> str:
    """Return what a candidate is called."""
    return _TITLES.get(key, key)


def chance_metric(target: Target) -> str:
    """Return the score that is known for predictions that know nothing: ``r2`` or ``auc``."""
    return "r2" if target.is_regression else "auc"


def has_p(result: Scored) -> bool:
    """Return whether there is a p-value that could have been small enough."""
    return math.isfinite(result.p) and result.least_p <= ALPHA


def is_tested(result: Scored) -> bool:
    """Return whether a candidate has a p-value that counts, or an interval."""
    return has_p(result) or math.isfinite(_low(result))


def is_above_chance(result: Scored, alpha: float = ALPHA) -> bool:
    """Return whether a candidate is better than chance.

    Its score has to be, and its p-value small, or without one that counts its interval above
    chance. Of predictions that are worse than the mean, those of shuffled labels may be worse yet.
    """
    name = _known_for_chance(result)
    if not result.scores[name] > METRICS[name].chance:
        return False
    return result.p <= alpha if has_p(result) else _low(result) > METRICS[name].chance


def _known_for_chance(result: Scored) -> str:
    return "r2" if "r2" in result.scores else "auc"


def _low(result: Scored) -> float:
    """Return the lower limit of the score that is known for chance."""
    return result.intervals.get(_known_for_chance(result), (math.nan, math.nan))[0]


def above_chance(results: Mapping[str, Scored]) -> list[str]:
    """Return keys of the candidates from the brain that are better than chance.

    Those that the verdict is about, fixed beforehand, at a p-value of 0.05; the others at 0.05
    after correction for their number (Holm 1979).
    """
    brain = brain_candidates(results)
    fixed = [first_of(HEADLINES, brain), first_of(REFERENCES, brain)]
    corrected = holm([results[key].p if has_p(results[key]) else math.nan for key in brain])
    return [
        key
        for key, p in zip(brain, corrected, strict=True)
        if is_above_chance(results[key]) and (key in fixed or not p > ALPHA)
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values that are corrected for their number (Holm 1979); NaN do not count."""
    known = sorted((p, i) for i, p in enumerate(p_values) if math.isfinite(p))
    corrected, largest = [math.nan] * len(p_values), 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        corrected[i] = largest
    return corrected


def find(comparisons: Sequence[Comparison], a: str | None, b: str | None) -> Comparison | None:
    """Return the comparison of a with b, if there is one in either direction."""
    for comparison in comparisons:
        if (comparison.a, comparison.b) == (a, b):
            return comparison
        if (comparison.a, comparison.b) == (b, a):
            return comparison.reversed
    return None


def against_confounds(
    comparisons: Sequence[Comparison], keys: Sequence[str]
) -> dict[str, Comparison]:
    """Return the comparisons of candidates with confounds alone, where there is a difference."""
    pairs = {key: find(comparisons, key, "confounds") for key in keys}
    return {key: pair for key, pair in pairs.items() if pair and math.isfinite(pair.difference)}


def least_gain(target: Target, results: Mapping[str, Scored]) -> float:
    """Return the difference that matters: a twentieth of that of knowing nothing and everything.

    Of areas under the curve, this is 0.025; of errors, a twentieth of what the mean errs.
    """
    if not target.is_regression:
        return LEAST_GAIN * 0.5
    mean = results.get("mean")
    return LEAST_GAIN * (mean.scores["mae"] if mean else math.nan)


def outcome(comparison: Comparison, gain: float) -> str:
    """Return how a compares with b.

    Parameters
    ----------
    comparison : Comparison
        With its interval.
    gain : float
        Difference that matters.

    Returns
    -------
    str
        `BETTER` or `WORSE` if the interval lies on one side of 0; `NO_BETTER` if it contains 0
        and no gain that matters; else `OPEN`. `UNKNOWN` without an interval.
    """
    if not (math.isfinite(comparison.low) and math.isfinite(comparison.high)):
        return UNKNOWN
    if comparison.low > 0:
        return BETTER
    if comparison.high < 0:
        return WORSE
    return NO_BETTER if comparison.high < gain else OPEN


def say_score(target: Target, result: Scored) -> str:
    """Return the score that is known for chance, with what there is of interval and p-value."""
    name = chance_metric(target)
    value, limits = result.scores[name], result.intervals.get(name, (math.nan, math.nan))
    text = f"{METRICS[name].title} {_plain(value, 2)}"
    inside = []
    if math.isfinite(limits[0]):
        inside.append(f"interval {_plain(limits[0], 2)} to {_plain(limits[1], 2)}")
    if math.isfinite(result.p):
        inside.append(say_p(result.p))
    return f"{text} ({', '.join(inside)})" if inside else text


def say_p(p: float) -> str:
    """Return a p-value in words."""
    return f"p = {p:.2g}" if p >= 0.001 else "p < 0.001"


def _say_chance(
    target: Target, results: Mapping[str, Scored], brain: Sequence[str], above: Collection[str]
) -> list[str]:
    if above:
        return []
    best = _best(target, results, brain)
    if not is_tested(results[best]):
        return [
            f"Whether brain features predict {target.name} better than chance was not tested: that "
            "takes more permutations, or bootstrap resamples. The best of "
            f"{_count(brain)}, {title_of(best)}, has {say_score(target, results[best])}."
        ]
    confounds = results.get("confounds")
    neither = confounds is not None and not is_above_chance(confounds)
    subject = "Neither brain features nor confounds predict" if neither else None
    return [
        f"{subject or 'No brain feature predicts'} {target.name} better than chance: the best of "
        f"{_count(brain)}, {title_of(best)}, has {say_score(target, results[best])}."
    ]


def _say_confounds(
    target: Target,
    results: Mapping[str, Scored],
    comparisons: Sequence[Comparison],
    brain: Sequence[str],
    above: Collection[str],
) -> list[str]:
    """Say whether the label can be read off confounds."""
    confounds = results.get("confounds")
    if confounds is None or not is_above_chance(confounds):
        if not above or confounds is None or not is_tested(confounds):
            return []
        return [f"Confounds alone do not predict {target.name} better than chance."]
    said = say_score(target, confounds)
    known = against_confounds(comparisons, brain)
    if not known:
        too = ", too" if above else ""
        return [f"Confounds alone predict {target.name}{too}: {said}."]
    best = max(known, key=lambda key: known[key].difference)
    difference = say_difference(target, known[best])
    if known[best].difference <= 0:
        return [
            f"Confounds alone predict {target.name}, and scored at least as well as any brain "
            f"feature: {said}; the best brain feature, {title_of(best)}, against them: "
            f"{difference}."
        ]
    corrected = holm([pair.p for pair in known.values()])
    better = [
        key
        for (key, pair), p in zip(known.items(), corrected, strict=True)
        if p <= ALPHA and pair.difference > 0
    ]
    if not better:
        return [
            f"No brain feature was shown to predict {target.name} better than confounds alone, "
            f"which have {said}; the best, {title_of(best)}, against them: {difference}."
        ]
    return [
        f"Confounds alone predict {target.name}, too: {said}; {len(better)} of "
        f"{_count(list(known))} predict better, the best, {title_of(best)}: {difference}."
    ]


def _say_network(
    target: Target,
    results: Mapping[str, Scored],
    comparisons: Sequence[Comparison],
    above: Collection[str],
) -> list[str]:
    """Say how the network compares with its reference, with its twin, and what it adds."""
    brain = brain_candidates(results)
    headline, reference = first_of(HEADLINES, brain), first_of(REFERENCES, brain)
    if headline is None:
        return ["BrainSymphony was not tried."]
    said = say_score(target, results[headline])
    predicts = f"predicts {target.name} better than chance"
    if headline not in above:
        predicts = f"was not shown to predict {target.name} better than chance"
    sentences = [f"BrainSymphony {predicts}: {said}."]
    gain = least_gain(target, results)
    pair = find(comparisons, headline, reference)
    if pair and reference:
        sentences.append(_say_pair(target, pair, gain, "BrainSymphony", title_of(reference)))
    added = find(comparisons, BOTH, "fc")
    if added:
        sentences.append(_say_added(target, added, gain))
    twin = find(comparisons, headline, RANDOM[headline])
    if twin and headline in above:
        name = "the same network with random weights"
        sentences.append(_say_pair(target, twin, gain, "BrainSymphony", name))
    return sentences


def _say_pair(target: Target, pair: Comparison, gain: float, a: str, b: str) -> str:
    found = outcome(pair, gain)
    if found == UNKNOWN:
        return f"{a} and {b} could not be compared: {pair.reason}."
    said = f"{say_difference(target, pair)}{_say_scores(target, pair)}"
    if found in (BETTER, WORSE):
        return f"{a} predicts {target.name} {found} than {b}: {said}, {say_p(pair.p)}."
    if found == NO_BETTER:
        return f"{a} predicts {target.name} no better than {b} here: {said}."
    return (
        f"No difference between {a} and {b} was found: {said}, so that {a} may be better by up to "
        f"{_amount(target, pair, pair.high)} or worse by up to {_amount(target, pair, -pair.low)}."
    )


def _say_added(target: Target, pair: Comparison, gain: float) -> str:
    """Say what the network adds to FC."""
    found = outcome(pair, gain)
    if found == UNKNOWN:
        return f"Whether BrainSymphony adds to FC could not be tested: {pair.reason}."
    said = say_difference(target, pair)
    how = f"{title_of(BOTH)} against FC"
    if found == BETTER:
        return f"BrainSymphony adds to FC: {said} ({how}), {say_p(pair.p)}."
    if found == WORSE:
        return f"BrainSymphony adds nothing beyond FC here and takes away: {said} ({how})."
    if found == NO_BETTER:
        return f"BrainSymphony adds nothing beyond FC here: {said} ({how})."
    return (
        f"BrainSymphony was not shown to add to FC: {said} ({how}), which allows a gain of up to "
        f"{_amount(target, pair, pair.high)}."
    )


def _say_tried(brain: Sequence[str]) -> str:
    """Say how many candidates there were, and which of them stands for the network."""
    headline = first_of(HEADLINES, brain)
    text = f"{_count(brain)} {'was' if len(brain) == 1 else 'were'} tried"
    if headline:
        text += f"; BrainSymphony stands for its {_FORMS[headline]}, as fixed beforehand"
    return (
        f"{text}. Differences are positive if the one named first is better; intervals are at 95 %."
    )


def say_difference(target: Target, pair: Comparison) -> str:
    """Return a difference and its interval: ``difference 0.1 years, interval -0.4 to 0.6``."""
    digits = _digits(pair)
    text = f"difference {_plain(pair.difference, digits)}{_unit(target)}"
    if math.isnan(pair.low):
        return text
    return f"{text}, interval {_plain(pair.low, digits)} to {_plain(pair.high, digits)}"


def _say_scores(target: Target, pair: Comparison) -> str:
    """Return both scores in brackets."""
    digits = _digits(pair)
    what = "mean errors" if target.is_regression else "AUC"
    a, b = _plain(pair.score_a, digits), _plain(pair.score_b, digits)
    return f" ({what} {a} and {b}{_unit(target)})"


def _amount(target: Target, pair: Comparison, value: float) -> str:
    return f"{_plain(max(value, 0.0), _digits(pair))}{_unit(target)}"


def _unit(target: Target) -> str:
    """Return the unit after a number; areas under the curve have none."""
    return f" {target.units}" if target.is_regression and target.units else ""


def _digits(pair: Comparison) -> int:
    """Return how many decimals a difference is known to."""
    width = (pair.high - pair.low) / 2
    scale = width if math.isfinite(width) and width > 0 else abs(pair.difference)
    return max(0, -math.floor(math.log10(scale / 3))) if scale > 0 else 2


def _plain(value: float, digits: int) -> str:
    """Return a number with some decimals, and without a minus before zero."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def _count(brain: Sequence[str]) -> str:
    return f"{len(brain)} {'set' if len(brain) == 1 else 'sets'} of brain features"


def _best(target: Target, results: Mapping[str, Scored], keys: Sequence[str]) -> str:
    name = chance_metric(target)
    known = [key for key in keys if math.isfinite(results[key].scores[name])]
    return max(known or keys, key=lambda key: results[key].scores[name])

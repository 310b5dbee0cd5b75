"""The page that says what was predicted of a cohort, how well, and how far it can be trusted."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from bsym_bids.prediction.candidates import CANDIDATES
from bsym_bids.prediction.scores import (
    LOWER,
    METRICS,
    averaged,
    averaged_training_mean,
    metrics_of,
    predicted_classes,
    primary_metric,
)
from bsym_bids.reports import prediction_figures as figures
from bsym_bids.reports.numbers import (
    NONE,
    decimals_for,
    decimals_known,
    interval,
    p_value,
    plain,
    shortened,
)
from bsym_bids.reports.pages import render
from bsym_bids.reports.parts import Chart, Table

if TYPE_CHECKING:
    from bsym_bids.prediction.cautions import Caution
    from bsym_bids.prediction.comparisons import Comparison
    from bsym_bids.prediction.records import Target
    from bsym_bids.prediction.results import Result
    from bsym_bids.prediction.scores import Scored

_TITLES = {candidate.key: candidate.title for candidate in CANDIDATES}
_CAUTIONS = {
    "few_participants": "Few participants",
    "few_of_class": "Few of a class",
    "imbalance": "Unequal classes",
    "confounds": "Confounds carry the label",
    "site": "Sites differ in the label",
    "training_data": "Known to the model",
    "chance": "Not better than chance",
    "calibration": "Probabilities are not calibrated",
}
#: How labels were shuffled, see `bsym_bids.prediction.folds`.
#: Scores lie between 0 and 1, or close: these many decimals.
_SCORE_DECIMALS = 2


@dataclass(frozen=True)
class Pair:
    """All comparisons with one candidate: the figure and the table."""

    title: str
    chart: Chart
    table: Table


@dataclass(frozen=True)
class Shown:
    """What is shown of the candidate that stands for the network.

    Attributes
    ----------
    title : str
        The candidate.
    charts : tuple of Chart
        Side by side.
    confusion : Confusion, optional
        Of classes.
    null : Chart
        The permutation test.
    """

    title: str
    charts: tuple[Chart, ...]
    null: Chart
    confusion: Confusion | None = None


@dataclass(frozen=True)
class Confusion:
    """Who was predicted to be what.

    Attributes
    ----------
    classes : tuple of str
        Of rows (true) and columns (predicted).
    rows : tuple of tuple
        Of each cell: units, and their share of the row from 0 to 1.
    """

    classes: tuple[str, ...]
    rows: tuple[tuple[tuple[int, float], ...], ...] = field(default=())


def prediction_page(result: Result, *, title: str, links: Mapping[str, str]) -> str:
    """Return the page of one target.

    Parameters
    ----------
    result : Result
        What is reported.
    title : str
        What was predicted.
    links : mapping of str to str
        Files that belong to it: their names, and their paths relative to the page.

    Returns
    -------
    str
        HTML that needs no other file: light or dark as the reader's system, without scripts.
    """
    target = result.question.target
    metric = METRICS[primary_metric(target)]
    return render(
        "prediction.html.j2",
        title=title,
        verdict=_sentences(result.verdict),
        key_scores=_key_scores(result),
        score_name=f"{metric.title}{_in_units(target)}",
        lower_is_better=metric.better == LOWER,
        cautions=[_caution(c, target) for c in result.cautions],
        asked=_asked(result),
        model_warning=_model_warning(result.settings),
        candidates=_candidates_table(result),
        candidates_chart=_candidates_chart(result),
        notes=_notes(result),
        pairs=[_pair(result, base) for base in dict.fromkeys(c.b for c in result.comparisons)],
        shown=_shown(result),
        by_site=_site_table(result) if result.by_site else None,
        target=target,
        links=links,
        version=_setting(result, "Version", ""),
    )


def _title(key: str) -> str:
    return _TITLES.get(key, key)


def _caution(caution: Caution, target: Target) -> tuple[str, str]:
    """Return heading and text of a caution; the page says of which target it is."""
    name = _CAUTIONS.get(caution.code, caution.code.replace("_", " ").capitalize())
    text = " ".join(_sentences(caution.text.removeprefix(f"{target.name}: ")))
    end = "" if text.endswith((".", "!", "?")) else "."
    return name, f"{text[:1].upper()}{text[1:]}{end}"


def _sentences(text: str) -> list[str]:
    """Return sentences, with real minus signs and p-values that are not broken over lines."""
    text = re.sub(r"(?<=[ (])-(?=\d)", "\N{MINUS SIGN}", text.strip())
    text = re.sub(r"\bp ([<=]) (?=\d)", "p\N{NO-BREAK SPACE}\\1\N{NO-BREAK SPACE}", text)
    return re.split(r"(?<=[.!?]) (?=[A-Z0-9])", text)


def _in_units(target: Target) -> str:
    """Return the unit in brackets, as axes and heads of columns have it."""
    return f" ({target.units})" if target.is_regression and target.units else ""


def _with_units(text: str, target: Target) -> str:
    return f"{text} {target.units}" if target.is_regression and target.units else text


def _setting(result: Result, key: str, default: Any = None) -> Any:
    value = result.settings.get(key)
    return default if value is None else value


def _role(result: Result, key: str) -> str:
    if key == result.headline:
        return figures.HEADLINE
    return figures.REFERENCE if key == result.reference else ""


_ROLES = {figures.HEADLINE: "stands for the network", figures.REFERENCE: "has to be beaten", "": ""}


def _half_widths(limits: Iterable[tuple[float, float]]) -> list[float]:
    return [(high - low) / 2 for low, high in limits]


def _limits(scored: Scored, name: str) -> tuple[float, float]:
    return scored.intervals.get(name, (math.nan, math.nan))


def _decimals(target: Target, scored: Iterable[Scored], name: str) -> int:
    """Return to how many decimals a score is written, for all candidates."""
    scored = list(scored)
    if name not in ("mae", "rmse"):
        return _SCORE_DECIMALS
    known = decimals_known(_half_widths(_limits(s, name) for s in scored))
    return decimals_for(s.scores.get(name, math.nan) for s in scored) if known is None else known


def _key_scores(result: Result) -> list[tuple[str, str, str, str]]:
    """Return what it all comes down to: role, candidate, score and interval."""
    target = result.question.target
    name = primary_metric(target)
    decimals = _decimals(target, result.scored.values(), name)
    chosen = {
        "For the network": result.headline,
        "To be beaten": result.reference,
        "Without the brain": "confounds",
        "Without knowledge": "mean",
    }
    return [
        (
            role,
            _title(key),
            plain(result.scored[key].scores.get(name, math.nan), decimals),
            interval(_limits(result.scored[key], name), decimals),
        )
        for role, key in chosen.items()
        if key in result.scored
    ]


def _asked(result: Result) -> list[tuple[str, str]]:
    """Return what was asked, and how, as terms and what they are."""
    question, target = result.question, result.question.target
    people = len({unit.participant for unit in question.units})
    n_units, n_labelled = len(question.units), int(target.labelled.sum())
    kind = "numbers (regression)" if target.is_regression else "classes (classification)"
    rows = [
        ("Column", target.name),
        ("Table", target.source.name if target.source else ""),
        ("Description", target.description),
        ("Units", target.units),
        ("Predicted are", kind),
        ("Labels", _labels(target)),
        ("Predicted units", f"{n_units:,}, of {people:,} participants"),
        ("With a label", f"{n_labelled:,}: predicted out of fold"),
        ("Without a label", f"{n_units - n_labelled:,}: predicted by the model fitted to the rest"),
        ("Kept together", _groups(result)),
        ("Sites", f"{len(set(question.sites)):,}" if question.sites else ""),
        *_methods(result),
        *_model(result.settings),
    ]
    return [(term, text) for term, text in rows if text]


def _labels(target: Target) -> str:
    """Return how labels are distributed."""
    values = target.values[target.labelled]
    if not len(values):
        return "none"
    if not target.is_regression:
        counts = Counter(values.astype(int).tolist())
        return ", ".join(f"{name}: {counts[i]:,}" for i, name in enumerate(target.classes))
    decimals = decimals_for([values.std()])
    mean, spread, low, high = (
        plain(float(x), decimals) for x in (values.mean(), values.std(), values.min(), values.max())
    )
    return _with_units(f"mean {mean}, standard deviation {spread}, from {low} to {high}", target)


def _groups(result: Result) -> str:
    by = _setting(result, "GroupBy", "participant")
    number = len(set(result.question.groups))
    return f"{number:,} groups (by {by}); all of a group are in one fold"


def _methods(result: Result) -> list[tuple[str, str]]:
    """Return how predictions were made and tested."""
    folds = result.evaluation.folds
    permutations = int(_setting(result, "Permutations", 0))
    exchange = result.question.exchange.said
    return [
        ("Folds", f"{folds.n_folds} folds, {folds.n_repeats} times"),
        ("Permutations", f"{permutations:,}; {exchange}" if permutations else "none"),
        ("Bootstrap", f"{int(_setting(result, 'Bootstrap', 0)):,} resamples of groups"),
        ("Confounds", ", ".join(result.confounds.names) or "none"),
        ("Harmonisation", str(_setting(result, "Harmonize", "none"))),
        ("Several scans", str(_setting(result, "Combination", ""))),
        ("Seed", str(_setting(result, "Seed", ""))),
    ]


def _model(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    model = settings.get("Model") or {}
    name = " ".join(str(model[key]) for key in ("Name", "Version") if model.get(key))
    return [("Model", name or "none")]


def _model_warning(settings: Mapping[str, Any]) -> str:
    """Return what has to be known of the model."""
    model = settings.get("Model") or {}
    said = settings.get("ModelWarning") or model.get("Warning")
    if said:
        return str(said)
    return "" if model.get("Trained", True) else "The weights of this model are not trained."


def _score_cells(
    target: Target, scored: Scored, names: Sequence[str], decimals: Mapping[str, int]
) -> tuple[str, ...]:
    """Return the primary score, its interval, and the other scores."""
    cells = [plain(scored.scores.get(name, math.nan), decimals[name]) for name in names]
    return (cells[0], interval(_limits(scored, names[0]), decimals[names[0]]), *cells[1:])


def _score_heads(target: Target) -> tuple[list[str], list[str]]:
    """Return names of the scores, the primary one first, and heads of their columns."""
    primary = primary_metric(target)
    names = [primary, *(name for name in metrics_of(target) if name != primary)]
    titles = [
        METRICS[name].title + (_in_units(target) if name in ("mae", "rmse") else "")
        for name in names
    ]
    return names, [titles[0], f"95 % interval of {METRICS[primary].title}", *titles[1:]]


def _candidates_table(result: Result) -> Table:
    target = result.question.target
    names, heads = _score_heads(target)
    decimals = {name: _decimals(target, result.scored.values(), name) for name in names}
    rows = []
    for candidate in result.evaluation.candidates:
        scored = result.scored.get(candidate.key)
        if scored is None:
            continue
        cells = _score_cells(target, scored, names, decimals)
        cells = (*cells[:2], p_value(scored.p), f"{scored.n_units:,}", *cells[2:])
        rows.append((candidate.title, _ROLES[_role(result, candidate.key)], cells))
    return Table(
        "candidates",
        f"Scores of all candidates on {target.name}, out of fold; p is of the permutation test",
        ("Candidate", *heads[:2], "p", "n", *heads[2:]),
        tuple(rows),
    )


def _candidates_chart(result: Result) -> Chart:
    target = result.question.target
    name = primary_metric(target)
    metric = METRICS[name]
    rows = [
        figures.Row(
            candidate.title,
            result.scored[candidate.key].scores.get(name, math.nan),
            *_limits(result.scored[candidate.key], name),
            _role(result, candidate.key),
        )
        for candidate in result.evaluation.candidates
        if candidate.key in result.scored
    ]
    line = figures.Line(metric.chance, "chance")
    if target.is_regression:
        mean = result.scored.get("mean")
        value = mean.scores.get(name, math.nan) if mean else math.nan
        line = figures.Line(value, "mean of the labels")
    side = "left" if metric.better == LOWER else "right"
    said = f"{metric.title} of {len(rows)} candidates with 95 % intervals"
    svg = figures.dot_plot(
        rows,
        f"{metric.title}{_in_units(target)}: better to the {side}",
        line,
        name="scores",
        label=f"Dot plot: {said}. The numbers are in the table of candidates.",
    )
    held = f"Dashed: {line.title}. " if math.isfinite(line.value) else ""
    marks = f"{held}Diamond: what stands for the network. Square: what it has to beat."
    return Chart(Markup(svg), f"{said}. {marks}")


def _notes(result: Result) -> list[str]:
    """Return what has to be known to compare rows of the table."""
    tried = {candidate.key for candidate in result.evaluation.candidates}
    absent = [candidate.title for candidate in CANDIDATES if candidate.key not in tried]
    notes = []
    if len({scored.n_units for scored in result.scored.values()}) > 1:
        notes.append(
            "Candidates are scored on those whose features there are, so that n differs between "
            "rows: scores of different people cannot be compared. The comparisons below are on "
            "the same people."
        )
    repeats = int(_setting(result, "GateRepeats", 0))
    if "bs_gate" in tried and 0 < repeats < result.evaluation.folds.n_repeats:
        times = "once" if repeats == 1 else f"{repeats} times"
        notes.append(f"The gate is trained {times} per fold, and has no permutation test.")
    if absent:
        notes.append(
            "Not tried, as their features are not in the outputs or were not asked for: "
            f"{'; '.join(absent)}."
        )
    notes += [str(said) for said in _setting(result, "Differences", ())]
    notes += [f"Not used: {said}" for said in _setting(result, "NotUsed", ())]
    return notes


def _pair(result: Result, base: str) -> Pair:
    """Return figure and table of the comparisons with one candidate."""
    target = result.question.target
    found = [comparison for comparison in result.comparisons if comparison.b == base]
    metric = METRICS[primary_metric(target)]
    said = f"Difference of {metric.title}{_in_units(target)} from {_title(base)}"
    rows = [
        figures.Row(_title(c.a), c.difference, c.low, c.high, _role(result, c.a)) for c in found
    ]
    svg = figures.dot_plot(
        rows,
        f"difference of {metric.title}{_in_units(target)}: better to the right",
        figures.Line(0.0, f"as good as {_title(base)}"),
        name=f"against-{_identifier(base)}",
        label=f"Forest plot: {said}, with 95 % intervals. The numbers are in the table below.",
    )
    caption = (
        f"{said}, with 95 % intervals of the corrected resampled t-test. To the right of the "
        f"dashed line are candidates that predict better than {_title(base)}."
    )
    return Pair(_title(base), Chart(Markup(svg), caption), _pair_table(result, base, found))


def _pair_table(result: Result, base: str, found: Sequence[Comparison]) -> Table:
    target = result.question.target
    metric = METRICS[primary_metric(target)]
    decimals = decimals_known(_half_widths((c.low, c.high) for c in found))
    if decimals is None:
        decimals = decimals_for(c.difference for c in found)
    rows = [
        (
            _title(c.a),
            _ROLES[_role(result, c.a)],
            (
                plain(c.score_a, decimals),
                plain(c.score_b, decimals),
                plain(c.difference, decimals),
                f"{NONE}: {c.reason}" if c.reason else interval((c.low, c.high), decimals),
                plain(c.t, 2),
                plain(c.df, 0),
                p_value(c.p),
                f"{c.n_units:,}",
            ),
        )
        for c in found
    ]
    return Table(
        f"table-{_identifier(base)}",
        f"Each candidate against {_title(base)}, on the people that both predict",
        (
            "Candidate",
            f"Its {metric.title}{_in_units(target)}",
            f"{metric.title} of {_title(base)}",
            "Difference (positive: better)",
            "95 % interval",
            "t",
            "df",
            "p",
            "n",
        ),
        tuple(rows),
    )


def _identifier(key: str) -> str:
    return re.sub(r"[^A-Za-z0-9-]+", "-", key)


def _site_table(result: Result) -> Table:
    """Return scores of predictions of each site by all others."""
    target = result.question.target
    names, heads = _score_heads(target)
    both = [*result.by_site.values(), *result.scored.values()]
    decimals = {name: _decimals(target, both, name) for name in names}
    rows = []
    for key, scored in result.by_site.items():
        usual = result.scored.get(key)
        value = usual.scores.get(names[0], math.nan) if usual else math.nan
        cells = _score_cells(target, scored, names, decimals)
        within = plain(value, decimals[names[0]])
        cells = (*cells[:2], within, f"{scored.n_units:,}", *cells[2:])
        rows.append((_title(key), _ROLES[_role(result, key)], cells))
    return Table(
        "sites",
        "Scores of predictions of each site by models that were fitted to all other sites",
        ("Candidate", *heads[:2], f"{heads[0]}, in usual folds", "n", *heads[2:]),
        tuple(rows),
    )


def _shown(result: Result) -> Shown | None:
    """Return figures of the candidate that stands for the network, or of the next best known."""
    predictions = result.evaluation.predictions
    order = (result.headline, result.reference, "mean")
    key = next((key for key in order if key in predictions), None)
    if key is None:
        return None
    target = result.question.target
    means = averaged(predictions[key])
    known = target.labelled & np.isfinite(means.reshape(len(means), -1)).all(axis=1)
    null = _null_chart(result, key)
    if not known.any():
        return Shown(_title(key), (Chart(Markup(""), "It predicts nobody who has a label."),), null)
    if target.is_regression:
        charts = _number_charts(target, target.values[known], means[known], _title(key))
        return Shown(_title(key), charts, null)
    labels = target.values[known].astype(int)
    shares = averaged_training_mean(predictions[key])[known]
    codes = predicted_classes(means[known], shares)
    charts = _class_charts(target, labels, means[known], _title(key))
    return Shown(_title(key), charts, null, _confusion(target, labels, codes))


def _number_charts(
    target: Target, observed: NDArray[np.float64], predicted: NDArray[np.float64], title: str
) -> tuple[Chart, ...]:
    slope, _ = figures.fit_line(observed, predicted)
    name = f"{shortened(target.name)}{_in_units(target)}"
    said = f"{len(observed):,} units, mean of their out-of-fold predictions by {title}"
    first = figures.scatter(
        observed,
        predicted,
        (f"observed {name}", f"predicted {name}"),
        residual=False,
        name="predicted",
        label=f"Scatter plot of predicted against observed {target.name}. {_say_slope(slope)}",
    )
    second = figures.scatter(
        observed,
        observed - predicted,
        (f"observed {name}", f"residual{_in_units(target)}: observed less predicted"),
        residual=True,
        name="residuals",
        label=f"Scatter plot of residuals against observed {target.name}. "
        f"Their slope is {plain(1 - slope, 2)}.",
    )
    caption = (
        "Residuals (observed less predicted) go with what was observed: this is regression to the "
        "mean, and happens to any prediction that is not perfect. It makes the residual of "
        "someone at the edge large without anything being special about them."
    )
    return (
        Chart(Markup(first), f"Predicted against observed: {said}. {_say_slope(slope)}"),
        Chart(Markup(second), caption),
    )


def _say_slope(slope: float) -> str:
    if not math.isfinite(slope):
        return "There is no line of fit, as all labels are the same."
    said = f"The line of fit has slope {plain(slope, 2)} (1 is right)"
    if slope <= 0:
        return f"{said}: predictions do not follow the label."
    return f"{said}: of a difference between two people, {100 * slope:.0f} % is predicted."


def _class_charts(
    target: Target, labels: NDArray[np.int64], means: NDArray[np.float64], title: str
) -> tuple[Chart, ...]:
    binary = len(target.classes) == 2
    of = f"of {target.classes[1]} against {target.classes[0]}" if binary else "of each class"
    said = f"{len(labels):,} units, mean probabilities over repeats by {title}"
    more = len(target.classes) > figures.MOST_LINES
    cut = f" The first {figures.MOST_LINES} classes are drawn." if more else ""
    captions = {
        figures.roc_curves: f"ROC curve {of}: {said}. The table's area under the curve is the mean "
        "over repeats of the areas, and may be slightly smaller than that of the mean.",
        figures.probability_histogram: "How probabilities are spread over the members of each "
        "class: the less the classes overlap, the better they are told apart."
        if binary
        else "The probability of their true class, of the members of each class.",
        figures.calibration_curves: f"Calibration {of}: of those with a probability of 0.8, 8 in "
        "10 should be members. Points are bins of as many units each"
        + (", lines their 95 % intervals." if binary else "."),
    }
    return tuple(
        Chart(Markup(draw(target, labels, means, label=f"{caption}{cut}")), caption + cut)
        for draw, caption in captions.items()
    )


def _confusion(target: Target, labels: NDArray[np.int64], codes: NDArray[np.int64]) -> Confusion:
    counts = np.zeros((len(target.classes),) * 2, dtype=np.int64)
    np.add.at(counts, (labels[codes >= 0], codes[codes >= 0]), 1)
    rows = tuple(
        tuple((int(n), float(n / max(row.sum(), 1))) for n in row)  #
        for row in counts
    )
    return Confusion(target.classes, rows)


def _null_chart(result: Result, key: str) -> Chart:
    """Return the permutation test of a candidate, or why there is none."""
    predictions = result.evaluation.predictions[key]
    null = predictions.null_scores[np.isfinite(predictions.null_scores)]
    observed = predictions.null_statistic
    if not len(null) or not math.isfinite(observed):
        return Chart(Markup(""), f"No labels were permuted for {_title(key)}.")
    is_regression = result.question.target.is_regression
    axis = "R2" if is_regression else "AUC of the least-squares classifier"
    p = result.scored[key].p if key in result.scored else math.nan
    caption = (
        f"{axis} of {_title(key)} under {len(null):,} permutations of the labels, and under the "
        f"true ones ({plain(observed, _SCORE_DECIMALS)}). p is the share of permutations that "
        f"reach it, the true labels among them: {p_value(p)}; it cannot be below "
        f"{1 / (len(null) + 1):.2g}, and is not corrected for the number of candidates."
    )
    svg = figures.null_distribution(null, observed, axis, name="null", label=caption)
    return Chart(Markup(svg), caption)

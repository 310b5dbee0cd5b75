"""Traffic lights: which runs and scans are good, which to look at, and which not to use.

What is held against which limits, and why, is in ``data/reports/lights.yaml``. A colour is never
alone: each has a word, and a shape in the style sheet.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from bsym_bids.reports.measures import Measure, SeriesMeasures, measures
from bsym_bids.reports.numbers import plain
from bsym_bids.reports.pages import FOLDER

GREEN, AMBER, RED, GREY = "green", "amber", "red", "grey"
#: What colours mean, from the worst.
WORDS: Mapping[str, str] = {
    RED: "do not use",
    AMBER: "look",
    GREY: "not judged",
    GREEN: "good",
}
#: What lights are about: all that comes of a series, or what comes from the model alone.
DATA, MODEL = "data", "model"
#: Where limits are from, and what pages say of it.
ORIGINS: Mapping[str, str] = {
    "literature": "from the literature",
    "own": "our choice",
    "code": "of the program",
}
#: Units that sentences leave out, since they say what the number is.
_UNSAID = frozenset({"", "r", "R2", "share", "Dice", "ROIs"})
#: More decimals than usual, at most, where a rounded value would look like its limit.
_MORE_DECIMALS = 4


@dataclass(frozen=True)
class Light:
    """What one rule says of a run or scan.

    Attributes
    ----------
    colour : str
        ``green``, ``amber``, ``red`` or ``grey``: could not be judged.
    title : str
        What was looked at.
    reason : str
        A sentence with the value and the limit.
    concerns : str
        ``data``: all that comes of the series; ``model``: what comes from the model alone; empty:
        both.
    why : str
        What is wrong with such a value; empty where nothing is.
    rule : str
        Key of the rule; empty where there is none.
    detail : str
        What another measure adds to the reason, at its end.
    """

    colour: str
    title: str
    reason: str
    concerns: str = DATA
    why: str = ""
    rule: str = ""
    detail: str = ""

    @property
    def word(self) -> str:
        """The word that goes with the colour."""
        return WORDS[self.colour]

    @property
    def short(self) -> str:
        """The reason without what another measure adds to it."""
        if not self.detail:
            return self.reason
        return _sentence(self.reason.removesuffix(".").removesuffix(f": {self.detail}"))


@dataclass(frozen=True)
class Rule:
    """What a measure is held against; see the data file for the attributes.

    Attributes
    ----------
    key, title, modality, concerns, measure, detail, unknown, needs, why, origin, source : str
        Texts.
    said : str or mapping of str to str
        Sentence, of verdicts by level.
    amber, red : float, optional
        Limits.
    levels : mapping of str to str
        Colours of verdicts.
    """

    key: str
    title: str
    modality: str
    concerns: str
    measure: str
    said: str | Mapping[str, str]
    unknown: str
    why: str
    origin: str
    source: str
    amber: float | None = None
    red: float | None = None
    levels: Mapping[str, str] = field(default_factory=dict)
    detail: str = ""
    needs: str = ""

    @property
    def limits(self) -> tuple[tuple[str, float], ...]:
        """The limits that there are, by colour, from the worst."""
        both = ((RED, self.red), (AMBER, self.amber))
        return tuple((colour, limit) for colour, limit in both if limit is not None)


@cache
def rules() -> tuple[Rule, ...]:
    """Return all rules, in the order in which lights are shown."""
    import yaml

    entries = yaml.safe_load((FOLDER / "lights.yaml").read_text("utf-8"))
    return tuple(Rule(key=key, **entry) for key, entry in entries.items())


@cache
def rules_by_key() -> Mapping[str, Rule]:
    """Return all rules by their keys."""
    return {rule.key: rule for rule in rules()}


def rules_of(modality: str) -> tuple[Rule, ...]:
    """Return the rules for series of a modality."""
    return tuple(rule for rule in rules() if rule.modality == modality)


def lights_of(series: SeriesMeasures) -> list[Light]:
    """Judge a run or scan by all rules that it has the measures for.

    Parameters
    ----------
    series : SeriesMeasures
        What is known of it.

    Returns
    -------
    list of Light
        In the order of the rules; the first is about files that could not be read, where there are
        some.
    """
    lights = [_problems(series.problems)] if series.problems else []
    for rule in rules_of(series.modality):
        if not rule.needs or series.text(rule.needs):
            lights.append(_judged(rule, series))
    return lights


def overall(lights: Iterable[Light], concerns: str = "") -> Light:
    """Put lights together: the worst colour counts, and what could not be judged is named.

    Parameters
    ----------
    lights : iterable of Light
        Of one series.
    concerns : str
        ``data`` or ``model`` for these lights alone; all where empty.

    Returns
    -------
    Light
        Grey where nothing could be judged, or less than half of it and nothing is bad. Its reason
        names the lights of the worst colour.
    """
    own = [light for light in lights if not concerns or light.concerns == concerns]
    judged = [light for light in own if light.colour != GREY]
    unjudged = ", ".join(within(light.title) for light in own if light.colour == GREY)
    left = f" Not judged: {unjudged}." if unjudged else ""
    if not judged:
        return Light(GREY, "Overall", left.strip() or "Nothing could be judged.", concerns)
    colour = worst(light.colour for light in judged)
    if colour == GREEN and len(judged) < len(own) / 2:
        return Light(GREY, "Overall", f"Most could not be judged.{left}", concerns)
    if colour == GREEN:
        return Light(GREEN, "Overall", f"Nothing was found.{left}", concerns)
    said = " ".join(light.reason for light in judged if light.colour == colour)
    return Light(colour, "Overall", said, concerns)


def worst(colours: Iterable[str]) -> str:
    """Return the worst of some colours; grey of none."""
    order = list(WORDS)
    return min(colours, key=order.index, default=GREY)


def within(title: str) -> str:
    """Return a title as it stands within a sentence: ``motion``, but ``SNR of b0``."""
    return title if title[1:2].isupper() else f"{title[:1].lower()}{title[1:]}"


def limit_said(measure: Measure, limit: float) -> str:
    """Return a limit with its unit: ``0.25 mm``."""
    return with_unit(f"{limit:g}".replace("-", "\N{MINUS SIGN}"), measure)


def limits_of(measure: Measure, modality: str) -> list[tuple[str, str, float]]:
    """Return what lights hold a measure against: colour, limit in words, and limit."""
    return [
        (colour, f"{_side(colour, measure)} {limit_said(measure, limit)}", limit)
        for rule in rules_of(modality)
        if rule.measure == measure.key
        for colour, limit in reversed(rule.limits)
    ]


def limits_said(rule: Rule) -> str:
    """Return the limits of a rule with the words of their colours."""
    if rule.levels:
        return ", ".join(f"{level}: {WORDS[colour]}" for level, colour in rule.levels.items())
    found = limits_of(measures()[rule.measure], rule.modality)
    return ", ".join(f"{said}: {WORDS[colour]}" for colour, said, _ in found)


def _problems(problems: Sequence[str]) -> Light:
    return Light(
        AMBER,
        "Files",
        f"Could not be read: {'; '.join(problems)}.",
        DATA,
        "What could not be read is n/a here, and missing for everything else.",
    )


def _judged(rule: Rule, series: SeriesMeasures) -> Light:
    return _by_level(rule, series) if rule.levels else _by_limits(rule, series)


def _by_level(rule: Rule, series: SeriesMeasures) -> Light:
    value, reason = series.text(rule.measure), series.text(rule.detail)
    if value not in rule.levels:
        known = f"a verdict that is not known: {value}" if value else rule.unknown
        return _unknown(rule, known)
    assert not isinstance(rule.said, str)
    return _light(rule, rule.levels[value], rule.said[value], reason)


def _by_limits(rule: Rule, series: SeriesMeasures) -> Light:
    value, measure = series.number(rule.measure), measures()[rule.measure]
    if math.isnan(value):
        return _unknown(rule, rule.unknown)
    colour = GREEN
    passed = rule.limits[-1][1]
    for own, limit in rule.limits:
        if _is_beyond(value, limit, measure):
            colour, passed = own, limit
            break
    assert isinstance(rule.said, str)
    said = rule.said.format(
        value=with_unit(_apart(value, passed, measure.decimals), measure),
        limit=f"{_side(colour, measure)} {limit_said(measure, passed)}",
    )
    return _light(rule, colour, said, series.text(rule.detail) if colour != GREEN else "")


def _is_beyond(value: float, limit: float, measure: Measure) -> bool:
    return value > limit if measure.worse == "higher" else value < limit


def _side(colour: str, measure: Measure) -> str:
    """Say on which side of a limit a value is."""
    beyond = "above" if measure.worse == "higher" else "below"
    return f"not {beyond}" if colour == GREEN else beyond


def _apart(value: float, limit: float, decimals: int) -> str:
    """Write a number with as many decimals as tell it from its limit."""
    for more in range(_MORE_DECIMALS):
        if value == limit or round(value, decimals + more) != limit:
            return plain(value, decimals + more)
    return plain(value, decimals)


def with_unit(number: str, measure: Measure) -> str:
    """Return a number with its unit, where the unit does not say what the number is."""
    return number if measure.unit in _UNSAID else f"{number}\N{NO-BREAK SPACE}{measure.unit}"


def _light(rule: Rule, colour: str, said: str, detail: str) -> Light:
    reason = f"{said}: {detail}" if detail else said
    why = "" if colour in (GREEN, GREY) else rule.why
    return Light(colour, rule.title, _sentence(reason), rule.concerns, why, rule.key, detail)


def _unknown(rule: Rule, reason: str) -> Light:
    said = _sentence(f"{reason[:1].upper()}{reason[1:]}")
    return Light(GREY, rule.title, said, rule.concerns, "", rule.key)


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."

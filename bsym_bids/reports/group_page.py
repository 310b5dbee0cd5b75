"""The page of all participants: who is good, who to look at, and who failed.

Beside the page stand the same numbers as a table. Both are made from the outputs of the participant
level alone. What was read of each participant is kept, so that the next call reads what changed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from bsym_bids import __version__
from bsym_bids.outputs.names import study_page
from bsym_bids.outputs.publish import explained, file_identity, fingerprint, write_whole
from bsym_bids.outputs.tables import NOT_AVAILABLE, Json, Table, Text
from bsym_bids.reports import group_rows, spread_figures
from bsym_bids.reports import lights as judging
from bsym_bids.reports.group_rows import (
    BOTH,
    KINDS,
    MODALITIES,
    Row,
    capital,
    identity_of,
    of_modality,
    read_outcomes,
    rows_of,
    sentence,
)
from bsym_bids.reports.lights import (
    AMBER,
    DATA,
    GREEN,
    GREY,
    MODEL,
    ORIGINS,
    RED,
    WORDS,
    Light,
    Rule,
    limits_of,
    limits_said,
    rules,
    rules_by_key,
    rules_of,
    with_unit,
    within,
    worst,
)
from bsym_bids.reports.measures import (
    BOLD,
    DEVIATIONS,
    DWI,
    FEWEST,
    MAD_TO_SD,
    Measure,
    SeriesMeasures,
    Spread,
    measure_all,
    measures,
    measures_of,
    spreads,
)
from bsym_bids.reports.numbers import plain
from bsym_bids.reports.pages import FOLDER, render, without_places
from bsym_bids.reports.spread_figures import HEIGHTS, MOST_NAMED, WIDTH, draw_spread, has_words
from bsym_bids.reports.style import inline_svg
from bsym_bids.untrusted import parse_json

#: Kept of an earlier call, in the folder that the caller names.
CACHE = "group_page.json"
_MANY: Mapping[str, str] = {BOLD: "BOLD runs", DWI: "diffusion scans"}
#: Rules with a colour that most series have.
Common = Collection[tuple[str, str]]
#: Share of the series of a modality beyond which a light is one of the cohort, not of a person,
#: and the fewest series that are a cohort.
_COHORT_SHARE, _COHORT_FEWEST = 0.5, 4
#: Series that a list names.
_MOST_LISTED = 30
_LEVELS = {
    GREEN: "good: nothing was found",
    AMBER: "look: something is near its limit, or not as it should be",
    RED: "do not use: something is beyond its limit",
    GREY: "not judged: there is nothing to judge by",
}
_FIXED: Mapping[str, dict[str, Any]] = {
    "participant_id": {"Description": "The participant"},
    "session_id": {"Description": "The session; n/a for none"},
    "series": {
        "Description": "What the BOLD run or diffusion scan is called in messages and summaries; "
        "n/a for what keeps the whole participant from being processed"
    },
    "modality": {
        "Description": "What the series is",
        "Levels": {
            BOLD: "a BOLD run",
            DWI: "a diffusion scan",
            BOTH: "a BOLD run and a diffusion scan together, which failed",
        },
    },
    "status": {
        "Description": "What became of it in the last call that worked on it, by the summaries "
        "under logs/; n/a without one",
        "Levels": {
            "done": "it was processed",
            "unchanged": "its outputs were up to date",
            "failed": "it could not be processed",
            "not run": "something else failed first",
        },
    },
    "light": {"Description": "The worse of the two next columns", "Levels": _LEVELS},
    "light_data": {
        "Description": "Whether anything of the series is to be used",
        "Levels": _LEVELS,
    },
    "light_model": {
        "Description": "Whether what comes from the model is to be used",
        "Levels": _LEVELS,
    },
    "reasons": {"Description": "What the red and amber lights say, and what was not judged"},
    "unusual": {
        "Description": f"Columns in which it lies further than {DEVIATIONS:g} times {MAD_TO_SD:g} "
        "median absolute deviations from the median of its modality, separated by |"
    },
    "problems": {"Description": "Files that could not be read, and why, separated by |"},
    "report": {"Description": "The participant's report, relative to this file"},
}
_LISTS = (
    (
        "exclude",
        "Do not use",
        "Something of the data is beyond its limit: leave these out, or find out what is wrong.",
    ),
    ("look", "Look at", "Something of the data is near its limit, or not as it should be."),
    (
        "of-model",
        "Look before using the model",
        "The data are good, as far as is known: time series and connectivity can be used.",
    ),
    (
        "unusual",
        "Unusual in this cohort",
        "Within all limits, but far from the others, on the side of poor data, in something that "
        "there is no limit for.",
    ),
)


@dataclass(frozen=True)
class Listed:
    """A series in a list of those to look at: the worst of its lights there, and sentences."""

    row: Row
    colour: str
    said: tuple[str, ...]


@dataclass(frozen=True)
class List:
    """Series that something has to be done about.

    Attributes
    ----------
    name : str
        Anchor.
    title, text : str
        What they have in common.
    shown : tuple of Listed
        The first of them.
    n_more : int
        How many more there are.
    """

    name: str
    title: str
    text: str
    shown: tuple[Listed, ...]
    n_more: int


@dataclass(frozen=True)
class Drawn:
    """A figure of the distribution of a measure.

    Attributes
    ----------
    title, description : str
        What the measure is.
    svg : Markup
        The figure.
    caption : str
        What it shows.
    """

    title: str
    description: str
    svg: Markup
    caption: str


def write_group_page(output_dir: Path, cache_dir: Path) -> tuple[Path, ...]:
    """Write the page of all participants, and its numbers as a table with a sidecar.

    Nothing is written where nothing has changed. Calls for the same `cache_dir` wait for each
    other.

    Parameters
    ----------
    output_dir : Path
        Root of the output dataset.
    cache_dir : Path
        Folder to keep what was read in; made if it isn't there. It can be deleted at any time.

    Returns
    -------
    tuple of Path
        ``group_participants.html``, ``.tsv`` and ``.json``.

    Raises
    ------
    CannotCreateOutputError, OutputIOError
        A file cannot be written.
    """
    page = study_page(output_dir)
    paths = (page, page.with_suffix(".tsv"), page.with_suffix(".json"))
    with _one_writer(cache_dir):
        before = _read_kept(cache_dir / CACHE)
        measured, read = measure_all(output_dir, before.get("read", {}))
        outcomes, unread = read_outcomes(output_dir / "logs")
        rows = rows_of(output_dir, measured, outcomes)
        made_of = fingerprint(_code(), [identity_of(row) for row in rows], unread)
        written = [made_of, [file_identity(path) for path in paths]]
        if before.get("written") != written:
            _write_all(paths, rows, unread)
            written = [made_of, [file_identity(path) for path in paths]]
        kept = {"read": read, "written": written}
        if kept != before:
            write_whole(cache_dir / CACHE, Text(json.dumps(kept)))
    return paths


@contextmanager
def _one_writer(cache_dir: Path) -> Iterator[None]:
    from filelock import FileLock

    path = cache_dir / f".{CACHE}.lock"
    with explained(path):
        cache_dir.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _read_kept(path: Path) -> dict[str, Any]:
    """Return what an earlier call has kept; nothing where it cannot be read."""
    try:
        kept = parse_json(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) and isinstance(kept.get("read"), dict) else {}


@cache
def _code() -> str:
    """Return what tells one way of making the page from another."""
    files = (FOLDER / f"{name}.html.j2" for name in ("group", "page", "parts"))
    modules = (Path(module.__file__ or "") for module in (judging, group_rows, spread_figures))
    code = (Path(__file__), *modules, FOLDER / "lights.yaml", FOLDER / "page.css")
    contents = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (*code, *files)]
    return fingerprint(__version__, contents, list(measures()))


# Files


def _write_all(paths: Sequence[Path], rows: Sequence[Row], unread: Sequence[str]) -> None:
    page, table, sidecar = paths
    write_whole(sidecar, Json(describe_columns()))
    write_whole(table, Table(columns_of(rows)))
    write_whole(page, Text(without_places(group_page(rows, unread), page.parent)))


def describe_columns() -> dict[str, Mapping[str, Any]]:
    """Return what the sidecar says of each column of the table, in its order."""
    return {**_FIXED, **{measure.key: _described(measure) for measure in measures().values()}}


def _described(measure: Measure) -> dict[str, Any]:
    only = {BOLD: " Of BOLD runs alone.", DWI: " Of diffusion scans alone."}
    limits = {
        modality: {colour: limit for colour, _, limit in limits_of(measure, modality)}
        for modality in MODALITIES
    }
    entry = {
        "LongName": measure.title,
        "Description": measure.description + only.get(measure.modality, ""),
        "Units": measure.unit,
        "Levels": dict(measure.levels),
        "Limits": {modality: own for modality, own in limits.items() if own},
    }
    return {key: value for key, value in entry.items() if value}


def columns_of(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Return the columns of the table."""
    columns: dict[str, list[Any]] = {
        "participant_id": [row.participant for row in rows],
        "session_id": [f"ses-{row.measured.session}" * bool(row.measured.session) for row in rows],
        "series": [row.measured.series for row in rows],
        "modality": [row.modality for row in rows],
        "status": [row.outcome.status if row.outcome else "" for row in rows],
        "light": [row.colour() for row in rows],
        "light_data": [row.colour(DATA) for row in rows],
        "light_model": [row.colour(MODEL) for row in rows],
        "reasons": [" ".join(_all_said(row)) for row in rows],
        "unusual": ["|".join(row.unusual) for row in rows],
        "problems": ["|".join(row.measured.problems) for row in rows],
        "report": [row.report for row in rows],
    }
    for measure in measures().values():
        columns[measure.key] = [row.measured.values.get(measure.key, "") for row in rows]
    return {
        key: [" ".join(cell.split()) if isinstance(cell, str) else cell for cell in cells]
        for key, cells in columns.items()
    }


def _all_said(row: Row) -> list[str]:
    """Return all that was found of a row, and what could not be judged."""
    said = [row.failure] if row.failure else []
    return [*said, *(light.reason for light in row.reasons), *_not_judged(row.unjudged)]


def _not_judged(lights: Iterable[Light]) -> list[str]:
    titles = ", ".join(within(light.title) for light in lights)
    return [f"Not judged: {titles}."] if titles else []


# The page


def group_page(rows: Sequence[Row], unread: Sequence[str] = ()) -> str:
    """Return the page.

    Parameters
    ----------
    rows : sequence of Row
        All series.
    unread : sequence of str
        Summaries that could not be read.

    Returns
    -------
    str
        HTML that needs no other file: light or dark as the reader's system. Its one script sorts
        and filters the table, and is allowed by its hash; without it the table can be read, too.
    """
    common = common_lights(rows)
    shown = [measure for measure in measures().values() if measure.show == "table"]
    html = render(
        "group.html.j2",
        counts=_counts(rows),
        verdict=_verdict(rows),
        cautions=_cautions(rows, common, unread),
        lists=lists_of(rows, common),
        failed=[row for row in rows if row.failure],
        shown=shown,
        rows=[_cells(row, shown, common) for row in rows],
        data=Markup(_script_data(rows)),
        modalities=MODALITIES,
        words=WORDS,
        figures=_figures(rows),
        rules=[(capital(_MANY[modality]), _rule_lines(modality)) for modality in _there(rows)],
        robust=f"{DEVIATIONS:g} times {MAD_TO_SD:g}",
        fewest=FEWEST,
        name=study_page(Path()).stem,
        version=__version__,
    )
    return _with_script_allowed(html)


def _with_script_allowed(html: str) -> str:
    """Let the page run its own script and no other, by a hash in its policy."""
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    policy = "default-src 'none';"
    head, _, body = html.partition("<body")  # where names from the data may look like a policy
    if len(scripts) != 1 or head.count(policy) != 1:
        raise ValueError("the page has to have one script and one policy")
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    allowed = head.replace(policy, f"{policy} script-src 'sha256-{digest}';")
    return f"{allowed}<body{body}"


def _there(rows: Sequence[Row]) -> list[str]:
    """Return the modalities that there are."""
    return [modality for modality in MODALITIES if of_modality(rows, modality)]


def _counts(rows: Sequence[Row]) -> list[tuple[str, str, list[tuple[str, int]]]]:
    """Return how many participants, runs and scans there are, and how many have each colour."""
    people = len({row.participant for row in rows} - {NOT_AVAILABLE})
    counted: list[tuple[str, str, list[tuple[str, int]]]] = [("Participants", f"{people:,}", [])]
    for modality in _there(rows):
        own = of_modality(rows, modality)
        colours = Counter(row.colour(DATA) for row in own)
        by_colour = [(colour, colours[colour]) for colour in reversed(WORDS) if colours[colour]]
        counted.append((capital(_MANY[modality]), f"{len(own):,}", by_colour))
    failed = sum(bool(row.failure) for row in rows)
    return counted + ([("Failed or not run", f"{failed:,}", [])] if failed else [])


def _verdict(rows: Sequence[Row]) -> list[str]:
    """Say how many can be used."""
    own = [row for row in rows if row.is_measured]
    if not own:
        return ["There are no outputs of any participant."]
    said = []
    for concerns, what in ((DATA, "Data"), (MODEL, "What comes from the model")):
        colours = Counter(row.colour(concerns) for row in own)
        counts = ", ".join(f"{colours[c]:,} {WORDS[c]}" for c in reversed(WORDS) if colours[c])
        said.append(f"{what}, of {len(own):,} runs and scans: {counts}.")
    return said


def common_lights(rows: Sequence[Row]) -> set[tuple[str, str]]:
    """Return the rules, each with a colour, that most series of their modality have.

    What is so of most is about how the cohort was measured or processed, and tells nobody apart.
    """
    common = set()
    for modality in MODALITIES:
        own = of_modality(rows, modality)
        lights = (light for row in own for light in row.lights if light.rule)
        counts = Counter((x.rule, x.colour) for x in lights if x.colour != GREEN)
        if len(own) >= _COHORT_FEWEST:
            common |= {key for key, n in counts.items() if n > _COHORT_SHARE * len(own)}
    return common


def _cautions(rows: Sequence[Row], common: Common, unread: Sequence[str]) -> list[tuple[str, str]]:
    """Return what holds of the cohort as a whole: heading and text."""
    found = [
        (f"{rule.title}, most {_MANY[rule.modality]}", _common_text(rule, colour, rows))
        for rule in rules()
        for colour in WORDS
        if (rule.key, colour) in common
    ]
    warnings = dict.fromkeys(row.measured.text("model_warning") for row in rows)
    found += [("Of the model", warning) for warning in warnings if warning]
    found += _mixed_settings(rows)
    return found + [("A summary was left out", sentence(said)) for said in unread]


def _common_text(rule: Rule, colour: str, rows: Sequence[Row]) -> str:
    own = of_modality(rows, rule.modality)
    lights = [light for row in own for light in row.lights if light.rule == rule.key]
    same = [light for light in lights if light.colour == colour]
    said = f"{capital(WORDS[colour])}: {len(same):,} of {len(own):,}, which is not said of each."
    return f"{said} {same[0].short} {same[0].why}".rstrip()


def _mixed_settings(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Say which settings differ between the series of a modality."""
    found = []
    for modality in MODALITIES:
        for measure in measures_of(modality):
            if not measure.setting or measure.key == "model_warning":
                continue
            values = (_setting(row.measured, measure) for row in of_modality(rows, modality))
            counts = Counter(value for value in values if value)
            if len(counts) > 1:
                said = ", ".join(f"{value} ({n:,})" for value, n in counts.most_common())
                heading = f"{measure.title} differs between {_MANY[modality]}"
                found.append((heading, f"{said}. Hold only those against each other that agree."))
    return found


def _setting(series: SeriesMeasures, measure: Measure) -> str:
    if measure.is_text:
        return series.text(measure.key)
    number = series.number(measure.key)
    return "" if math.isnan(number) else f"{number:g} {measure.unit}".rstrip()


def lists_of(rows: Sequence[Row], common: Common) -> list[List]:
    """Return who to leave out or look at first, and why.

    Parameters
    ----------
    rows : sequence of Row
        All series.
    common : collection of tuple
        Rules and colours that most series have: these say nothing of one of them.
    """
    found: dict[str, list[Listed]] = {name: [] for name, _, _ in _LISTS}
    for row in rows:
        own = _own(row.reasons, common)
        colour = worst(light.colour for light in own if light.concerns == DATA)
        if row.colour(DATA) == RED:  # whoever is not to be used is listed, for whatever reason
            colour = RED
        said = (*(light.reason for light in own), *_as_most(row, common), *_poor(row))
        if colour in (RED, AMBER):
            found["exclude" if colour == RED else "look"].append(Listed(row, colour, said))
        elif own:
            found["of-model"].append(Listed(row, worst(light.colour for light in own), said))
        elif _poor(row):
            found["unusual"].append(Listed(row, GREEN, said))
    return [_list(*entry, found[entry[0]]) for entry in _LISTS if found[entry[0]]]


def _list(name: str, title: str, text: str, listed: Sequence[Listed]) -> List:
    """Return a list of those with the worst lights, and the most of them, first."""
    order = list(WORDS)
    ranked = sorted(listed, key=lambda one: (order.index(one.colour), -len(one.said)))
    first = tuple(ranked[:_MOST_LISTED])
    return List(name, title, text, first, len(ranked) - len(first))


def _own(lights: Iterable[Light], common: Common) -> list[Light]:
    """Return the lights that most others do not have, too."""
    return [light for light in lights if (light.rule, light.colour) not in common]


def _as_most(row: Row, common: Common) -> tuple[str, ...]:
    """Name the lights of the data that most others have, too."""
    titles = [
        within(light.title)
        for light in row.reasons
        if light.concerns == DATA and (light.rule, light.colour) in common
    ]
    return (f"As most: {', '.join(titles)}.",) if titles else ()


def _poor(row: Row) -> tuple[str, ...]:
    """Say where a row is far from the others in what no light judges."""
    said = "; ".join(
        f"{within(measure.title)} {_value(row.measured.number(measure.key), measure)}"
        for measure in map(measures().__getitem__, row.poor)
        if measure.show != "more" and not limits_of(measure, row.modality)
    )
    return (f"Far from the others: {said}.",) if said else ()


def _value(value: float, measure: Measure) -> str:
    return with_unit(plain(value, measure.decimals), measure)


# The table of the page


def _cells(row: Row, shown: Sequence[Measure], common: Common) -> dict[str, Any]:
    """Return what the page's table has of a row."""
    beyond = {rules_by_key()[x.rule].measure: x.colour for x in reversed(row.reasons) if x.rule}
    found = [row.failure] if row.failure else []
    # Reasons of the model's verdict are long, and in the participant's report.
    found += [x.short if x.concerns == MODEL else x.reason for x in _own(row.reasons, common)]
    found += [*_as_most(row, common), *_not_judged(_own(row.unjudged, common))]
    return {
        "row": row,
        "kind": KINDS.get(row.modality, NOT_AVAILABLE),
        "data": row.colour(DATA),
        "model": row.colour(MODEL),
        "found": " ".join(found),
        "cells": [(_cell(row.measured, x), beyond.get(x.key, ""), x.is_text) for x in shown],
    }


def _cell(series: SeriesMeasures, measure: Measure) -> str:
    if measure.is_text:
        return series.text(measure.key) or NOT_AVAILABLE
    return plain(series.number(measure.key), measure.decimals)


def _script_data(rows: Sequence[Row]) -> str:
    """Return all values for the script, as JSON that can stand within a page."""
    columns = [_script_column(measure, rows) for measure in measures().values()]
    text = json.dumps(columns, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # Nothing in a text may end the element that it stands in, or begin another one.
    for character in "&<>":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _script_column(measure: Measure, rows: Sequence[Row]) -> dict[str, Any]:
    limits = {
        modality: {colour: limit for colour, _, limit in limits_of(measure, modality)}
        for modality in MODALITIES
    }
    column: dict[str, Any] = {
        "key": measure.key,
        "title": measure.titled,
        "modality": measure.modality,
        "shown": measure.show == "table",
        "worse": measure.worse,
        "limits": limits,
    }
    if not measure.is_text:
        numbers = (row.measured.number(measure.key) for row in rows)
        return column | {"decimals": measure.decimals, "values": [_short(x) for x in numbers]}
    texts = [row.measured.text(measure.key) for row in rows]
    levels = list(dict.fromkeys(text for text in texts if text))
    places = {level: place for place, level in enumerate(levels)}
    return column | {"levels": levels, "values": [places.get(text) for text in texts]}


def _short(value: float) -> float | int | None:
    """Return a number of seven digits, as JSON has it in few characters."""
    if math.isnan(value):
        return None
    rounded = float(f"{value:.7g}")
    return int(rounded) if rounded.is_integer() else rounded


def _rule_lines(modality: str) -> list[tuple[Rule, str, str]]:
    """Return each rule with its limits in words, and where they are from."""
    return [(rule, capital(limits_said(rule)), ORIGINS[rule.origin]) for rule in rules_of(modality)]


# Figures


def _figures(rows: Sequence[Row]) -> list[tuple[str, list[Drawn], list[Drawn]]]:
    """Return figures by modality: those that are shown, and those that are shown on demand."""
    labels = {row.measured.series: row.label for row in rows}
    found = spreads(row.measured for row in rows)
    parts = []
    for modality in _there(rows):
        own = [spread for spread in found if spread.modality == modality]
        first = [_drawn(spread, labels) for spread in own if spread.measure.show != "more"]
        more = [_drawn(spread, labels) for spread in own if spread.measure.show == "more"]
        parts.append((capital(_MANY[modality]), first, more))
    return parts


def _drawn(spread: Spread, labels: Mapping[str, str]) -> Drawn:
    """Draw the distribution of a measure, and say what is to be seen."""
    measure = spread.measure
    limits = limits_of(measure, spread.modality)
    names = [_name(spread, int(place), labels) for place in spread.outside[:MOST_NAMED]]
    caption = f"{len(spread.values):,} {_MANY[spread.modality]}, median "
    caption += f"{_value(float(np.median(spread.values)), measure)}.{_outside_said(spread, names)}"
    if limits:
        caption += f" Limits: {', '.join(f'{WORDS[c]} {said}' for c, said, _ in limits)}."
    lines = [(colour, limit) for colour, _, limit in limits]
    svg = inline_svg(
        lambda figure: draw_spread(figure, spread, lines, names),
        (WIDTH, HEIGHTS[0] if has_words(spread, lines) else HEIGHTS[1]),
        name=f"{spread.modality}-{measure.key}",
        label=f"Distribution of {within(measure.title)}. {caption}",
    )
    return Drawn(measure.titled, measure.description, Markup(svg), caption)


def _outside_said(spread: Spread, names: Sequence[str]) -> str:
    """Say who is far from the others, or why nobody is called so."""
    if math.isnan(spread.low):
        few = len(spread.values) < FEWEST
        why = f"there are fewer than {FEWEST}" if few else "half of them or more are the same"
        return f" None is called unusual, since {why}."
    if not names:
        return ""
    values = (float(spread.values[place]) for place in spread.outside)
    named = [
        f"{name} ({_value(value, spread.measure)})"
        for name, value in zip(names, values, strict=False)
    ]
    rest = len(spread.outside) - len(named)
    return f" Unusual: {', '.join(named)}{f' and {rest:,} more' if rest else ''}."


def _name(spread: Spread, place: int, labels: Mapping[str, str]) -> str:
    """Return the participant of a value, with the series where they have several."""
    own = spread.series[place]
    mine = sum(series.participant == own.participant for series in spread.series)
    sub = f"sub-{own.participant}"
    return sub if mine == 1 else f"{sub} {labels.get(own.series, own.series)}"

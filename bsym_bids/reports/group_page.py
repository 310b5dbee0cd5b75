"""The page of all participants: who is good, who to look at, and who failed.

Beside the page stand the same numbers as a table. Both are made from the outputs of the participant
level alone. What was read of each participant is kept, so that the next call reads what changed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from bsym_bids import __version__
from bsym_bids.outputs.names import participant_page, study_page
from bsym_bids.outputs.publish import explained, file_identity, fingerprint, write_whole
from bsym_bids.outputs.tables import NOT_AVAILABLE, Json, Table, Text
from bsym_bids.reports import lights as judging
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
    lights_of,
    limits_of,
    limits_said,
    overall,
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
    packed,
    spreads,
)
from bsym_bids.reports.numbers import plain, shortened
from bsym_bids.reports.pages import FOLDER, render
from bsym_bids.reports.style import COLOURS, INK, MUTED, PAPER, inline_svg
from bsym_bids.summary import Outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Kept of an earlier call, in the folder that the caller names.
CACHE = "group_page.json"
#: What a series of a modality is, and a kind that only what failed can be of.
MODALITIES: Mapping[str, str] = {BOLD: "BOLD", DWI: "diffusion"}
BOTH = "both"
KINDS: Mapping[str, str] = {**MODALITIES, BOTH: "both together"}
_MANY: Mapping[str, str] = {BOLD: "BOLD runs", DWI: "diffusion scans"}
#: Of what did not come to its end.
_FAILED = ("failed", "not run")
#: Entities that a label goes without where they are the same for all series of a modality.
_SHARED = ("space-", "res-", "den-")
#: Rules with a colour that most series have.
Common = Collection[tuple[str, str]]
#: Share of the series of a modality beyond which a light is one of the cohort, not of a person,
#: and the fewest series that are a cohort.
_COHORT_SHARE, _COHORT_FEWEST = 0.5, 4
#: Series that a list names.
_MOST_LISTED = 30
#: Of a figure: inches, with words above the values and without; values that are named; points that
#: can be told apart; bins for more.
_WIDTH, _HEIGHTS, _MOST_NAMED, _MOST_POINTS, _BINS = 5.2, (1.95, 1.2), 5, 150, 40
#: Share of the width that a letter takes; heights of the names of values, and of all.
_LETTER_SHARE, _NAME_LEVELS, _TOP = 0.0165, (1.14, 1.44), 2.05
#: Robust ranges around the median that are shown.
_VIEW_REACH = 3.0
_LIMIT_LOOKS: Mapping[str, tuple[str, str]] = {
    AMBER: (COLOURS[5], "dashed"),
    RED: (COLOURS[1], "solid"),
}
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


@dataclass(frozen=True, eq=False)
class Row:
    """A series of the cohort, or one that failed.

    Attributes
    ----------
    measured : SeriesMeasures
        What is known of it; without values for one that has no outputs.
    lights : tuple of Light
        What that means.
    outcome : Outcome, optional
        What became of it in the last call that worked on it.
    label : str
        What it is called beside its participant; empty for the whole participant.
    report : str
        Its participant's page, relative to the group's; empty for none.
    unusual, poor : tuple of str
        Measures in which it is far from the cohort, and those of them where it is so on the side
        of poor data.
    """

    measured: SeriesMeasures
    lights: tuple[Light, ...] = ()
    outcome: Outcome | None = None
    label: str = ""
    report: str = ""
    unusual: tuple[str, ...] = ()
    poor: tuple[str, ...] = ()

    @property
    def participant(self) -> str:
        """The participant, with ``sub-``; ``n/a`` for what concerns none."""
        label = self.measured.participant
        return label if label == NOT_AVAILABLE else f"sub-{label}"

    @property
    def modality(self) -> str:
        """``bold``, ``dwi``, ``both`` or ``n/a``."""
        return self.measured.modality

    @property
    def is_measured(self) -> bool:
        """Whether there are outputs."""
        return bool(self.measured.values)

    @property
    def failure(self) -> str:
        """Why it failed; empty where it did not."""
        if self.outcome is None or self.outcome.status not in _FAILED:
            return ""
        return _sentence(f"{self.outcome.status}: {self.outcome.reason or NOT_AVAILABLE}")

    @property
    def reasons(self) -> tuple[Light, ...]:
        """The red and amber lights: of the data before the model, the worst first."""
        found = [light for light in self.lights if light.colour in (RED, AMBER)]
        order = list(WORDS)
        return tuple(sorted(found, key=lambda x: (x.concerns == MODEL, order.index(x.colour))))

    @property
    def unjudged(self) -> tuple[Light, ...]:
        """The lights that could not be judged."""
        return tuple(light for light in self.lights if light.colour == GREY)

    def colour(self, concerns: str = "") -> str:
        """Return the overall colour, of what it concerns alone where that is given."""
        return overall(self.lights, concerns).colour


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
        made_of = fingerprint(_code(), [_identity(row) for row in rows], unread)
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
        kept = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) and isinstance(kept.get("read"), dict) else {}


@cache
def _code() -> str:
    """Return what tells one way of making the page from another."""
    files = (FOLDER / f"{name}.html.j2" for name in ("group", "page", "parts"))
    code = (Path(__file__), Path(judging.__file__), FOLDER / "lights.yaml", FOLDER / "page.css")
    contents = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (*code, *files)]
    return fingerprint(__version__, contents, list(measures()))


def read_outcomes(logs: Path) -> tuple[dict[tuple[str, str], Outcome], list[str]]:
    """Return what became of every run in the last call that worked on it.

    Parameters
    ----------
    logs : Path
        Folder with the summaries ``<time>_<id>_summary.tsv``.

    Returns
    -------
    outcomes : dict
        By participant and run. What concerns no run is there if it was so in the last call for
        the participant; what concerns no participant, if it was so in the last call.
    unread : list of str
        Summaries that could not be read, and why.
    """
    of_series: dict[tuple[str, str], Outcome] = {}
    others: dict[tuple[str, str], Outcome] = {}
    unread = []
    for path in sorted(logs.glob("*_summary.tsv")):
        try:
            found = _read_summary(path)
        except (OSError, ValueError, LookupError) as error:
            unread.append(f"logs/{path.name} cannot be read: {error}")
            continue
        people = {outcome.participant for outcome in found} | {NOT_AVAILABLE}
        others = {key: outcome for key, outcome in others.items() if key[0] not in people}
        for outcome in found:
            known = of_series if _is_of_series(outcome) else others
            known[outcome.participant, outcome.run] = outcome
    return of_series | others, unread


def _is_of_series(outcome: Outcome) -> bool:
    return outcome.run.startswith(f"sub-{outcome.participant}_")


def _read_summary(path: Path) -> list[Outcome]:
    header, *lines = path.read_text("utf-8").splitlines()
    names = header.split("\t")
    rows = [dict(zip(names, line.split("\t"), strict=True)) for line in lines if line]
    return [
        Outcome(
            row["participant"],
            row["run"],
            row["status"],
            *("" if row[key] == NOT_AVAILABLE else row[key] for key in ("reason", "hint")),
        )
        for row in rows
    ]


# Rows


def rows_of(
    output_dir: Path,
    measured: Iterable[SeriesMeasures],
    outcomes: Mapping[tuple[str, str], Outcome],
) -> list[Row]:
    """Return a row for each series, and for each that failed without outputs, by participant.

    Parameters
    ----------
    output_dir : Path
        Root of the output dataset, which reports of participants are looked for in.
    measured : iterable of SeriesMeasures
        All series that have outputs.
    outcomes : mapping
        What became of every run, see `read_outcomes`.
    """
    left = dict(outcomes)
    rows = []
    for series in measured:
        outcome = left.pop((series.participant, series.series), None)
        rows.append(Row(series, tuple(lights_of(series)), outcome))
    failed = (outcome for outcome in left.values() if outcome.status in _FAILED)
    rows += [Row(_without_outputs(outcome), (), outcome) for outcome in failed]
    rows.sort(key=lambda row: (row.participant, row.modality != BOLD, row.measured.series))
    return _told_apart(rows, set(os.listdir(output_dir)))


def _without_outputs(outcome: Outcome) -> SeriesMeasures:
    """Return the series of a run that has none, as far as its name tells."""
    if not _is_of_series(outcome):
        return SeriesMeasures(outcome.participant, None, NOT_AVAILABLE, NOT_AVAILABLE, {})
    entities = dict(part.partition("-")[::2] for part in outcome.run.split("_"))
    modality = BOTH if " with " in outcome.run else DWI if outcome.run.endswith("_dwi") else BOLD
    return SeriesMeasures(outcome.participant, entities.get("ses"), outcome.run, modality, {})


def _told_apart(rows: Sequence[Row], there: Collection[str]) -> list[Row]:
    """Add labels, links to reports, and what each row differs from the others in."""
    shared = {modality: _shared_parts(_of(rows, modality)) for modality in MODALITIES}
    found: dict[int, tuple[list[str], list[str]]] = {}
    for spread in spreads(row.measured for row in rows):
        for place in spread.outside:
            unusual, poor = found.setdefault(id(spread.series[place]), ([], []))
            unusual.append(spread.measure.key)
            if spread.is_poor(float(spread.values[place])):
                poor.append(spread.measure.key)
    told = []
    for row in rows:
        page = participant_page(Path(), row.measured.participant).name
        unusual, poor = found.get(id(row.measured), ([], []))
        told.append(
            replace(
                row,
                label=_label(row, shared.get(row.modality, frozenset())),
                report=page if page in there else "",
                unusual=tuple(unusual),
                poor=tuple(poor),
            )
        )
    return told


def _shared_parts(rows: Sequence[Row]) -> frozenset[str]:
    """Return the parts of names that tell no series of a modality from another."""
    sets = [
        {part for part in row.measured.series.split("_") if part.startswith(_SHARED)}
        for row in rows
    ]
    return frozenset.intersection(*map(frozenset, sets)) if sets else frozenset()


def _label(row: Row, shared: Collection[str]) -> str:
    if row.measured.series == NOT_AVAILABLE:
        run = row.outcome.run if row.outcome else NOT_AVAILABLE
        return "" if run == NOT_AVAILABLE else run
    parts = row.measured.series.removeprefix(row.participant).lstrip("_").split("_")
    return "_".join(part for part in parts if part not in shared)


def _of(rows: Iterable[Row], modality: str) -> list[Row]:
    return [row for row in rows if row.is_measured and row.modality == modality]


def _identity(row: Row) -> list[Any]:
    """Return what decides how a row is written."""
    outcome = row.outcome
    return [
        packed(row.measured) if row.is_measured else row.measured.series,
        row.report,
        [outcome.participant, outcome.status, outcome.reason, outcome.hint] if outcome else None,
    ]


# Files


def _write_all(paths: Sequence[Path], rows: Sequence[Row], unread: Sequence[str]) -> None:
    page, table, sidecar = paths
    write_whole(sidecar, Json(describe_columns()))
    write_whole(table, Table(columns_of(rows)))
    write_whole(page, Text(group_page(rows, unread)))


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


def _sentence(text: str) -> str:
    end = "" if text.endswith((".", "!", "?")) else "."
    return f"{_capital(text)}{end}"


def _capital(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"


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
        rules=[(_capital(_MANY[modality]), _rule_lines(modality)) for modality in _there(rows)],
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
    if len(scripts) != 1 or html.count(policy) != 1:
        raise ValueError("the page has to have one script and one policy")
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    return html.replace(policy, f"{policy} script-src 'sha256-{digest}';")


def _there(rows: Sequence[Row]) -> list[str]:
    """Return the modalities that there are."""
    return [modality for modality in MODALITIES if _of(rows, modality)]


def _counts(rows: Sequence[Row]) -> list[tuple[str, str, list[tuple[str, int]]]]:
    """Return how many participants, runs and scans there are, and how many have each colour."""
    people = len({row.participant for row in rows} - {NOT_AVAILABLE})
    counted: list[tuple[str, str, list[tuple[str, int]]]] = [("Participants", f"{people:,}", [])]
    for modality in _there(rows):
        own = _of(rows, modality)
        colours = Counter(row.colour(DATA) for row in own)
        by_colour = [(colour, colours[colour]) for colour in reversed(WORDS) if colours[colour]]
        counted.append((_capital(_MANY[modality]), f"{len(own):,}", by_colour))
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
        own = _of(rows, modality)
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
    return found + [("A summary was left out", _sentence(said)) for said in unread]


def _common_text(rule: Rule, colour: str, rows: Sequence[Row]) -> str:
    own = _of(rows, rule.modality)
    lights = [light for row in own for light in row.lights if light.rule == rule.key]
    same = [light for light in lights if light.colour == colour]
    said = f"{_capital(WORDS[colour])}: {len(same):,} of {len(own):,}, which are not listed for it."
    return f"{said} {same[0].short} {same[0].why}".rstrip()


def _mixed_settings(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Say which settings differ between the series of a modality."""
    found = []
    for modality in MODALITIES:
        for measure in measures_of(modality):
            if not measure.setting or measure.key == "model_warning":
                continue
            values = (_setting(row.measured, measure) for row in _of(rows, modality))
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
        said = (*(light.reason for light in own), *_poor(row))
        if colour in (RED, AMBER):
            found["exclude" if colour == RED else "look"].append(Listed(row, colour, said))
        elif own:
            found["of-model"].append(Listed(row, worst(light.colour for light in own), said))
        elif said:
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
    found += _not_judged(_own(row.unjudged, common))
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
    return [
        (rule, _capital(limits_said(rule)), ORIGINS[rule.origin]) for rule in rules_of(modality)
    ]


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
        parts.append((_capital(_MANY[modality]), first, more))
    return parts


def _drawn(spread: Spread, labels: Mapping[str, str]) -> Drawn:
    """Draw the distribution of a measure, and say what is to be seen."""
    measure = spread.measure
    limits = limits_of(measure, spread.modality)
    names = [_name(spread, int(place), labels) for place in spread.outside[:_MOST_NAMED]]
    caption = f"{len(spread.values):,} {_MANY[spread.modality]}, median "
    caption += f"{_value(float(np.median(spread.values)), measure)}.{_outside_said(spread, names)}"
    if limits:
        caption += f" Limits: {', '.join(f'{WORDS[c]} {said}' for c, said, _ in limits)}."
    lines = [(colour, limit) for colour, _, limit in limits]
    svg = inline_svg(
        lambda figure: draw_spread(figure, spread, lines, names),
        (_WIDTH, _HEIGHTS[0] if _has_words(spread, lines) else _HEIGHTS[1]),
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


def draw_spread(
    figure: Figure, spread: Spread, limits: Sequence[tuple[str, float]], names: Sequence[str]
) -> None:
    """Draw the values of a measure: a box, every value or a histogram, and who is far off.

    Parameters
    ----------
    figure : Figure
        An empty one.
    spread : Spread
        The values.
    limits : sequence of tuple
        Colour and number of each limit.
    names : sequence of str
        Of the values that are furthest off.
    """
    panel = figure.subplots()
    panel.spines[["left"]].set_visible(False)
    panel.set_yticks([])
    view = _view(spread, [limit for _, limit in limits])
    panel.set_xlim(*view)
    panel.set_ylim(-0.45, _TOP if _has_words(spread, limits) else 1.1)
    panel.set_xlabel(spread.measure.titled)
    _draw_box(panel, spread)
    heights = _draw_values(panel, spread)
    _draw_limits(panel, limits, spread.measure.worse)
    _draw_outside(panel, spread, heights)
    _draw_names(panel, spread, names)


def _has_words(spread: Spread, limits: Sequence[tuple[str, float]]) -> bool:
    """Tell whether names, or words of limits, stand above the values."""
    left, right = _view(spread, [limit for _, limit in limits])
    return len(spread.outside) > 0 or any(left <= limit <= right for _, limit in limits)


def _view(spread: Spread, limits: Sequence[float]) -> tuple[float, float]:
    """Return the range that is shown: not all of it, where a few values are very far off."""
    low, high = float(spread.values.min()), float(spread.values.max())
    if not math.isnan(spread.low):
        first, third = (float(x) for x in np.quantile(spread.values, (0.25, 0.75)))
        middle, reach = (spread.low + spread.high) / 2, (spread.high - spread.low) / 2
        reach = _VIEW_REACH * max(reach, third - first)
        low, high = max(low, middle - reach), min(high, middle + reach)
    span = high - low
    for limit in limits:
        if low - span <= limit <= high + span:
            low, high = min(low, limit), max(high, limit)
    margin = 0.04 * (high - low)
    return low - margin, high + margin


def _draw_box(panel: Axes, spread: Spread) -> None:
    """Draw the quartiles as a box, and the robust limits (or the range) as whiskers."""
    first, middle, third = np.quantile(spread.values, (0.25, 0.5, 0.75))
    ends = (float(spread.values.min()), float(spread.values.max()))
    if not math.isnan(spread.low):
        ends = (max(ends[0], spread.low), min(ends[1], spread.high))
    panel.hlines(-0.15, *ends, color=MUTED, linewidth=1.2)
    panel.vlines(ends, -0.24, -0.06, color=MUTED, linewidth=1.2)
    panel.fill_between([first, third], -0.3, 0, color=MUTED, alpha=0.4, linewidth=0)
    panel.vlines(middle, -0.3, 0, color=INK, linewidth=2)


def _draw_values(panel: Axes, spread: Spread) -> NDArray[np.float64]:
    """Draw all values that are not far off; return at which height each value is."""
    values = spread.values
    usual = np.setdiff1d(np.arange(len(values)), spread.outside)
    if len(values) > _MOST_POINTS:
        counts, edges = np.histogram(values[usual], bins=_BINS, range=panel.get_xlim())
        tops = 0.15 + 0.85 * counts / counts.max()
        panel.stairs(tops, edges, baseline=0.15, fill=True, color=COLOURS[0], alpha=0.6)
        return np.full(len(values), 0.3)
    # The golden ratio spreads points evenly, whatever their number.
    heights = 0.15 + 0.85 * (np.arange(1, len(values) + 1) * 0.618034 % 1)
    panel.plot(values[usual], heights[usual], "o", color=COLOURS[0], alpha=0.6, ms=4.2, mew=0)
    return heights


def _draw_limits(panel: Axes, limits: Sequence[tuple[str, float]], worse: str) -> None:
    """Draw limits with their words above, which part to both sides where there are two."""
    left, right = panel.get_xlim()
    for colour, limit in limits:
        if not left <= limit <= right:
            continue
        hue, dashes = _LIMIT_LOOKS[colour]
        panel.vlines(limit, -0.45, _TOP - 0.3, color=hue, linestyle=dashes, linewidth=1.6)
        outwards = (colour == RED) == (worse == "higher")
        side = "left" if outwards else "right"
        panel.text(limit, _TOP - 0.25, f" {WORDS[colour]} ", ha=side, fontsize=9, color=INK)


def _draw_outside(panel: Axes, spread: Spread, heights: NDArray[np.float64]) -> None:
    """Mark values that are far off: diamonds, and arrows for those that lie out of the figure."""
    left, right = panel.get_xlim()
    furthest = spread.outside[:_MOST_POINTS]
    values = spread.values[furthest]
    markers = np.where(values < left, "<", np.where(values > right, ">", "D"))
    for marker in np.unique(markers):
        own = markers == marker
        places = np.clip(values[own], left, right), heights[furthest[own]]
        panel.plot(*places, str(marker), color=COLOURS[1], ms=5.5, mew=0, clip_on=False)


def _draw_names(panel: Axes, spread: Spread, names: Sequence[str]) -> None:
    """Write the names of values above them, as far as there is room; the caption has all."""
    left, right = panel.get_xlim()
    ends = [-math.inf] * len(_NAME_LEVELS)
    values = spread.values[spread.outside][: len(names)]
    for place in np.argsort(values, kind="stable"):
        text = shortened(names[place], 20)
        width = _LETTER_SHARE * len(text)
        x = float(np.clip((values[place] - left) / (right - left), 0, 1))
        start = min(max(0.0, x - width / 2), 1 - width)
        level = next((k for k, end in enumerate(ends) if start > end), None)
        if level is None:
            continue
        ends[level] = start + width + _LETTER_SHARE
        middle = left + (start + width / 2) * (right - left)
        ground = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.6}  # over lines of limits
        look: dict[str, Any] = {"ha": "center", "fontsize": 9, "color": INK, "bbox": ground}
        panel.text(middle, _NAME_LEVELS[level], text, **look)

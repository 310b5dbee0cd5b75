"""The rows of the page of all participants: what each run and scan is like, or why it failed."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bsym_bids.outputs.names import participant_page
from bsym_bids.outputs.tables import NOT_AVAILABLE
from bsym_bids.reports.lights import AMBER, GREY, MODEL, RED, WORDS, Light, lights_of, overall
from bsym_bids.reports.measures import BOLD, DWI, SeriesMeasures, packed, spreads
from bsym_bids.summary import Outcome
from bsym_bids.untrusted import read_text

#: What a series of a modality is, and a kind that only what failed can be of.
MODALITIES: Mapping[str, str] = {BOLD: "BOLD", DWI: "diffusion"}
BOTH = "both"
KINDS: Mapping[str, str] = {**MODALITIES, BOTH: "both together"}
#: Of what did not come to its end.
FAILED = ("failed", "not run")
#: Entities that a label goes without where they are the same for all series of a modality.
_SHARED = ("space-", "res-", "den-")


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
        if self.outcome is None or self.outcome.status not in FAILED:
            return ""
        return sentence(f"{self.outcome.status}: {self.outcome.reason or NOT_AVAILABLE}")

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
    header, *lines = read_text(path).splitlines()
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
    failed = (outcome for outcome in left.values() if outcome.status in FAILED)
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
    shared = {modality: _shared_parts(of_modality(rows, modality)) for modality in MODALITIES}
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


def of_modality(rows: Iterable[Row], modality: str) -> list[Row]:
    """Return the rows of a modality that have outputs."""
    return [row for row in rows if row.is_measured and row.modality == modality]


def identity_of(row: Row) -> list[Any]:
    """Return what decides how a row is written."""
    outcome = row.outcome
    return [
        packed(row.measured) if row.is_measured else row.measured.series,
        row.report,
        [outcome.participant, outcome.status, outcome.reason, outcome.hint] if outcome else None,
    ]


def sentence(text: str) -> str:
    """Return a text with a capital and an end."""
    end = "" if text.endswith((".", "!", "?")) else "."
    return f"{capital(text)}{end}"


def capital(text: str) -> str:
    """Return a text with a capital."""
    return f"{text[:1].upper()}{text[1:]}"

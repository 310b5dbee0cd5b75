"""The page of a participant: whether to trust what was made of their data, at a glance.

It is made from the files of the output dataset alone, so that it can be made again at any time.
"""

from __future__ import annotations

import logging
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bsym_bids import __version__
from bsym_bids.errors import NothingSelectedError
from bsym_bids.methods import methods_html
from bsym_bids.methods.facts import facts_of
from bsym_bids.outputs.names import participant_page
from bsym_bids.outputs.participant_record import Series, read_record
from bsym_bids.outputs.publish import explained, write_whole
from bsym_bids.outputs.reading import WrittenConnectome, find_connectomes, find_runs
from bsym_bids.outputs.tables import Text
from bsym_bids.reports.lights import MODEL, Light, lights_of, overall
from bsym_bids.reports.measures import SeriesMeasures, measure_participant
from bsym_bids.reports.pages import render, without_places
from bsym_bids.reports.parts import SeriesSection, plural
from bsym_bids.reports.run_section import run_section
from bsym_bids.reports.scan_section import scan_section, scan_title
from bsym_bids.untrusted import open_regular

LOGGER = logging.getLogger("bsym_bids")
#: Series that a page holds in full; of more, all images are drawn coarser.
_FULL = 8
#: Lines at the end of a crash file that are shown.
_CRASH_LINES = 25
_CRASH_BYTES = 1 << 18
_MOST_CRASHES = 10


@dataclass(frozen=True)
class Judged:
    """The traffic lights of a series.

    Attributes
    ----------
    title : str
        What the series is called.
    anchor : str
        Of its section; empty where it has none.
    kind : str
        ``BOLD run`` or ``Diffusion scan``.
    data, model : Light
        The worst of those that concern all that comes of the series, and of those that concern
        what comes from the model; the latter only where there are some.
    lights : tuple of Light
        One for each thing that is judged.
    problems : tuple of str
        What could not be read.
    """

    title: str
    anchor: str
    kind: str
    data: Light
    model: Light | None
    lights: tuple[Light, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Crash:
    """What Nipype wrote about a failed step.

    Attributes
    ----------
    path : str
        Of the file, relative to the page.
    tail : str
        Its last lines.
    """

    path: str
    tail: str


def write_participant_page(output_dir: Path, label: str) -> Path:
    """Make the page of a participant anew.

    Parameters
    ----------
    output_dir : Path
        Root of the output dataset.
    label : str
        Of the participant, without ``sub-``.

    Returns
    -------
    Path
        ``sub-<label>.html``.

    Raises
    ------
    NothingSelectedError
        There is nothing of this participant, neither outputs nor a record.
    """
    path, begun = participant_page(output_dir, label), time.time_ns()
    write_whole(path, Text(render_participant(output_dir, label)))
    # As of when it was begun: what is written meanwhile is not on it.
    with explained(path):
        os.utime(path, ns=(begun, begun))
    return path


def render_participant(output_dir: Path, label: str) -> str:
    """Return the page of a participant; raises as `write_participant_page`."""
    record = read_record(output_dir, label)
    unread: list[str] = []
    sections = _sections(output_dir, label, unread)
    measured = measure_participant(output_dir, label)
    if not (sections or measured or record.series or unread):
        raise NothingSelectedError(
            f"{output_dir}: holds nothing of sub-{label}",
            hint="process the participant first, and see the summary under logs/",
        )
    unread += _without_section(measured, sections)
    judged = _judged(measured, sections)
    failed = [one for one in record.series if one.status in ("failed", "not run")]
    page = render(
        "participant.html.j2",
        label=label,
        verdict=_verdict(judged, failed),
        judged=judged,
        record=record,
        found=[one for one in record.series if one.files],
        failed=failed,
        unread=unread,
        sections=sections,
        crashes=_crashes(output_dir, label),
        files=_files(output_dir, label),
        methods=methods_html(facts_of(output_dir, [label])),
        version=record.version or __version__,
        warnings=list(dict.fromkeys(said for one in sections for said in one.warnings)),
        is_on_record=bool(record.version),
    )
    return without_places(page, output_dir)


def _sections(output_dir: Path, label: str, unread: list[str]) -> list[SeriesSection]:
    """Return a section for each series that was written, and say what could not be read."""
    runs = find_runs(output_dir, unread, label)
    scans = _one_per_scan(find_connectomes(output_dir, label))
    coarseness = max(1, math.ceil(math.sqrt((len(runs) + len(scans)) / _FULL)))
    titles = [*(run.label for run in runs), *map(scan_title, scans)]
    makers = [
        *(partial(run_section, output_dir, run, f"bold-{i + 1}") for i, run in enumerate(runs)),
        *(partial(scan_section, output_dir, scan, f"dwi-{i + 1}") for i, scan in enumerate(scans)),
    ]
    return [
        _section_or_reason(make, title, coarseness)
        for make, title in zip(makers, titles, strict=True)
    ]


def _section_or_reason(
    make: Callable[[int], SeriesSection], title: str, coarseness: int
) -> SeriesSection:
    """Make a section; of data that nobody thought of, say what is wrong: others can be shown."""
    try:
        return make(coarseness)
    except Exception as error:
        LOGGER.warning("%s cannot be shown", title, exc_info=error)
        said = f"This series cannot be shown. {type(error).__name__}: {error}"
        name = "broken-" + re.sub(r"[^\w-]", "-", title)
        return SeriesSection(name, title, "Series", (), (said,), (), ())


def _without_section(
    measured: Sequence[SeriesMeasures], sections: Sequence[SeriesSection]
) -> list[str]:
    """Say of which series there is too little left to show it."""
    shown = {section.title for section in sections}
    return [
        f"{one.series}: its {'denoised series' if one.modality == 'bold' else 'connectome'} is not "
        "there, or has no sidecar: process it again"
        for one in measured
        if one.series not in shown
    ]


def _one_per_scan(connectomes: Sequence[WrittenConnectome]) -> list[WrittenConnectome]:
    """Return the counts of each scan: other measures are of the same connectome."""
    return [connectome for connectome in connectomes if connectome.measure == "count"]


def _judged(measured: Sequence[SeriesMeasures], sections: Sequence[SeriesSection]) -> list[Judged]:
    anchors = {section.title: section.name for section in sections}
    judged = []
    for series in measured:
        lights = tuple(lights_of(series))
        judged.append(
            Judged(
                series.series,
                anchors.get(series.series, ""),
                "BOLD run" if series.modality == "bold" else "Diffusion scan",
                overall(light for light in lights if light.concerns != MODEL),
                overall(lights, MODEL) if any(x.concerns == MODEL for x in lights) else None,
                lights,
                series.problems,
            )
        )
    return judged


def _verdict(judged: Sequence[Judged], failed: Sequence[Series]) -> list[str]:
    """Say in words what the lights say: of the data, then of what comes from the model."""
    said = []
    for about, lights in (
        ("data", [one.data for one in judged]),
        ("what comes from the model", [one.model for one in judged if one.model]),
    ):
        for colour, ending in _SAID.items():
            count = sum(light.colour == colour for light in lights)
            if count:
                said.append(f"{count} of {len(lights)} series: {about} {ending}.")
    if failed:
        said.append(f"{plural(len(failed), 'thing')} could not be done, see what failed.")
    return said or ["Nothing could be judged."]


_SAID: Mapping[str, str] = {
    "red": "should not be used as they stand",
    "amber": "to be looked at before use",
    "green": "good, nothing was found",
    "grey": "could not be judged",
}


def _crashes(output_dir: Path, label: str) -> list[Crash]:
    """Return the newest crash files of the participant."""
    folder = output_dir / "logs" / f"sub-{label}"
    files = sorted(folder.glob("crash-*.txt"), key=lambda path: path.name, reverse=True)
    crashes = []
    for path in files[:_MOST_CRASHES]:
        try:
            with open_regular(path) as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - _CRASH_BYTES))
                text = file.read(_CRASH_BYTES).decode("utf-8", errors="replace")
            lines = text.rstrip().splitlines()
        except (OSError, ValueError) as error:
            lines = [f"cannot be read: {error}"]
        tail = "\n".join(lines[-_CRASH_LINES:])
        crashes.append(Crash(path.relative_to(output_dir).as_posix(), tail))
    return crashes


def _files(output_dir: Path, label: str) -> list[str]:
    """Return the data files of the participant, relative to the page."""
    folder = output_dir / f"sub-{label}"
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(
        path.relative_to(output_dir).as_posix()
        for path in files
        if path.suffix != ".json" and not path.name.startswith(".")
    )

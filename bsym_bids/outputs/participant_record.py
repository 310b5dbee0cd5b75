"""What became of a participant, kept beside the outputs: found, skipped, done, failed.

One file for each participant, ``logs/sub-<label>/record.json``. Reports are made from it, also
later and elsewhere. A call that selects a part of the data leaves the others on record.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from bsym_bids import __version__
from bsym_bids.outputs.publish import explained, write_whole
from bsym_bids.outputs.tables import NOT_AVAILABLE, Json
from bsym_bids.untrusted import read_json

if TYPE_CHECKING:
    from bsym_bids.inputs import Participant, Plan
    from bsym_bids.summary import Outcome

LOGGER = logging.getLogger("bsym_bids")


@dataclass(frozen=True)
class Series:
    """What is on record of a run, a scan, or both together.

    Attributes
    ----------
    label : str
        What it is called in messages and tables; ``n/a`` for what keeps the participant from it.
    kind : str
        ``bold``, ``dwi`` or ``both``; empty for a problem without a series.
    status : str
        ``done``, ``failed`` or ``not run``.
    reason, hint : str
        Why it failed, and what to do.
    files : mapping of str to str
        Input files by their role, as ``<dataset>:<path>``.
    route : tuple of str
        How it was processed, in sentences.
    """

    label: str
    kind: str
    status: str
    reason: str = ""
    hint: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    route: tuple[str, ...] = ()


@dataclass(frozen=True)
class ParticipantRecord:
    """What is on record of a participant.

    Attributes
    ----------
    label : str
        Without ``sub-``.
    version : str
        Of bsym-bids, at the last call.
    call : str
        Name of the last call, as its log is named.
    series : tuple of Series
        By label.
    skipped : tuple of tuple of str
        Files that were not processed, and why, at the last call.
    """

    label: str
    version: str = __version__
    call: str = ""
    series: tuple[Series, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()


def record_path(output_dir: Path, label: str) -> Path:
    """Return where the record of a participant goes."""
    return output_dir / "logs" / f"sub-{label}" / "record.json"


def recorded_participants(output_dir: Path) -> list[str]:
    """Return the labels of all who are on record, sorted: also of those without any outputs."""
    records = output_dir.glob("logs/sub-*/record.json")
    return sorted(path.parent.name.removeprefix("sub-") for path in records)


def read_record(output_dir: Path, label: str) -> ParticipantRecord:
    """Read the record of a participant; an empty one where there is none that can be read."""
    path = record_path(output_dir, label)
    try:
        document = read_json(path)
        series = tuple(map(_read_series, document["series"]))
        skipped = tuple((str(path), str(reason)) for path, reason in document["skipped"])
        return ParticipantRecord(
            label, str(document["version"]), str(document["call"]), series, skipped
        )
    except FileNotFoundError:
        pass
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        LOGGER.warning("%s: cannot be read: %s", path, error)
    return ParticipantRecord(label, version="")


def _read_series(one: Mapping[str, Any]) -> Series:
    """Return a series that is on record, whatever is there as text."""
    said = {key: str(one[key]) for key in ("label", "kind", "status", "reason", "hint")}
    files = {str(role): str(path) for role, path in one["files"].items()}
    return Series(**said, files=files, route=tuple(map(str, one["route"])))


def write_record(output_dir: Path, record: ParticipantRecord, is_whole: bool = False) -> Path:
    """Write the record of a participant; what says the same already is left as it is.

    Parameters
    ----------
    output_dir : Path
        Root of the output dataset.
    record : ParticipantRecord
        What a call found.
    is_whole : bool
        Whether it looked at all that there is of the participant: what it did not find is gone.
        Otherwise series, problems and skipped files of earlier calls stay, but for what this call
        says of them, and for files of series that are on record.
    """
    path = record_path(output_dir, record.label)
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(".record.lock")
    with explained(lock), FileLock(lock):
        before = read_record(output_dir, record.label)
        after = record if is_whole else _together(before, record)
        series = tuple(sorted(after.series, key=lambda one: (one.label, one.reason)))
        after = replace(after, series=series)
        if replace(before, call=after.call) != after:
            write_whole(path, Json(asdict(after)))
    return path


def _together(before: ParticipantRecord, now: ParticipantRecord) -> ParticipantRecord:
    """Put what an earlier call found beside what this one did."""
    said = {_name(one) for one in now.series}
    series = (*(one for one in before.series if _name(one) not in said), *now.series)
    used = {file for one in series for file in one.files.values()}
    paths = {path for path, _ in now.skipped}
    skipped = (*(one for one in before.skipped if one[0] not in paths), *now.skipped)
    return replace(now, series=series, skipped=tuple(s for s in skipped if s[0] not in used))


def _name(series: Series) -> tuple[str, str]:
    """Return what tells a series from others; problems without one, by what they say."""
    return series.label, series.reason if series.label == NOT_AVAILABLE else ""


def record_of(
    plan: Plan,
    participant: Participant,
    outcomes: Sequence[Outcome],
    call: str,
    output_dir: Path,
) -> ParticipantRecord:
    """Collect what a call found of a participant and what became of it.

    Parameters
    ----------
    plan : Plan
        All that was found.
    participant : Participant
        The participant.
    outcomes : sequence of Outcome
        Of this participant.
    call : str
        Name of the call.
    output_dir : Path
        The output dataset, of which messages say ``output``.
    """
    roots = {str(dataset.root): dataset.name for dataset in plan.datasets}
    roots |= {str(plan.bids_dir): "dataset", str(output_dir): "output"}
    found = _found(participant)
    series = []
    for outcome in outcomes:
        kind, files, route = found.get(
            outcome.run, ("both" if " with " in outcome.run else "", {}, ())
        )
        series.append(
            Series(
                outcome.run,
                kind,
                "done" if outcome.status == "unchanged" else outcome.status,
                _without_roots(outcome.reason, roots),
                _without_roots(outcome.hint, roots),
                {role: _without_roots(str(path), roots) for role, path in files.items()},
                tuple(route),
            )
        )
    skipped = [
        (_without_roots(str(one.path), roots), one.reason)
        for one in plan.skipped_of(participant.label)
    ]
    return ParticipantRecord(
        participant.label, call=call, series=tuple(series), skipped=tuple(skipped)
    )


def _found(participant: Participant) -> dict[str, tuple[str, dict[str, Path], Sequence[str]]]:
    """Return kind, files and route of each series that was found, by label."""
    from bsym_bids.inputs.routes import describe_route

    found: dict[str, tuple[str, dict[str, Path], Sequence[str]]] = {}
    for run in participant.bold_runs:
        files: dict[str, Any] = {
            "series": run.bold,
            "mask": run.mask,
            "confounds": run.confounds,
        }
        found[run.label] = ("bold", {k: path for k, path in files.items() if path}, ())
    for scan in participant.dwi_scans:
        files = {}
        for role, images in (("series", scan.images), ("reverse", scan.reverse)):
            for index, image in enumerate(images):
                files[f"{role} {index + 1}" if len(images) > 1 else role] = image.image
        files |= {"mask": scan.mask, "T1w": scan.anatomy.t1w if scan.anatomy else None}
        found[scan.label] = (
            "dwi",
            {k: path for k, path in files.items() if path},
            describe_route(scan),
        )
    return found


def _without_roots(text: str, roots: Mapping[str, str]) -> str:
    """Return a message in which datasets have names instead of places on a machine."""
    for root in sorted(roots, key=len, reverse=True):
        text = text.replace(f"{root}/", f"{roots[root]}:")
    return text

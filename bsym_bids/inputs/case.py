"""Labels that differ in capitals only: BIDS tells them apart, but not every file system does."""

from __future__ import annotations

import os
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from bsym_bids.errors import CannotCreateOutputError
from bsym_bids.inputs.records import Plan


def folds_case(folder: Path) -> bool:
    """Tell whether names that differ in capitals only are the same where a folder is or will be.

    Parameters
    ----------
    folder : Path
        The folder. Where it is not there, the nearest one above it is asked, by a file that is
        gone at once.

    Returns
    -------
    bool
        False too where no file can be made: whoever writes there says why.
    """
    place = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".bsym-case-") as file:
            path = Path(file.name)
            return os.path.lexists(path.with_name(path.name.swapcase()))
    except OSError:
        return False


def alike(labels: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the labels that differ from others in capitals only, each with the others.

    Parameters
    ----------
    labels : iterable of str
        All labels there are.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for label in sorted(set(labels)):
        groups[label.casefold()].append(label)
    return {
        label: tuple(other for other in group if other != label)
        for group in groups.values()
        if len(group) > 1
        for label in group
    }


def check_case(plan: Plan, output_dir: Path, work_dir: Path, *, is_trial: bool) -> None:
    """Refuse to begin where outputs, pages or logs would overwrite each other.

    Parameters
    ----------
    plan : Plan
        What was found.
    output_dir, work_dir : Path
        Output dataset and scratch folder.
    is_trial : bool
        Whether nothing is to be written. Otherwise a participant who has such a namesake gets the
        folder at once, so that jobs for the two that run at the same time meet here.

    Raises
    ------
    CannotCreateOutputError
        There are labels that differ in capitals only, and a folder does not tell them apart.
    """
    people = [f"sub-{person.label}" for person in plan.participants]
    series = [
        one.label for person in plan.participants for one in (*person.bold_runs, *person.dwi_scans)
    ]
    clashes = alike(people) or alike(series)
    if not clashes and not plan.alike:
        return
    places = [place for place in (output_dir, work_dir) if folds_case(place)]
    if clashes and places:
        raise _clash(clashes, places[0])
    for place in places:
        found = {f"sub-{one}": _namesakes(place, f"sub-{one}", is_trial) for one in plan.alike}
        if clashes := {name: others for name, others in found.items() if others}:
            raise _clash(clashes, place)


def _clash(clashes: Mapping[str, Sequence[str]], place: Path) -> CannotCreateOutputError:
    name, others = next(iter(clashes.items()))
    more = f", and so would {len(clashes) - 2} more" if len(clashes) > 2 else ""
    return CannotCreateOutputError(
        f"{place}: {name} and {', '.join(others)} would overwrite each other here{more}: to this "
        "file system, names that differ in capitals only are the same",
        "rename one of them in the input, or process each with --participant-label into an output "
        "folder of its own, with a --work-dir of its own",
    )


def _namesakes(place: Path, name: str, is_trial: bool) -> tuple[str, ...]:
    """Return whose folder a participant would write in, by its name in other capitals."""
    with suppress(OSError):  # whoever writes there says why not
        if not is_trial:
            (place / name).mkdir(parents=True, exist_ok=True)
        there = [other for other in os.listdir(place) if other.casefold() == name.casefold()]
        return tuple(other for other in there if other != name)
    return ()

"""The plan: whom to process, with which files, and why everything else is left out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from bsym_bids.config import DEFAULT_SPACES
from bsym_bids.errors import BsymError, NothingSelectedError
from bsym_bids.inputs.bold import (
    SUPPORTED_SPACES,
    Candidate,
    check_spaces,
    choose,
    complete,
    find_candidates,
)
from bsym_bids.inputs.datasets import check_bids, find_derivatives, participants_of
from bsym_bids.inputs.records import BoldRun, Derivatives, Participant, Plan, Skipped
from bsym_bids.inputs.selection import Selection, unknown_label


def plan_inputs(
    bids_dir: Path,
    derivatives: Mapping[str, Path] | None = None,
    selection: Selection | None = None,
    spaces: Sequence[str] = DEFAULT_SPACES,
    skip_bids_validation: bool = False,
    database_dir: Path | None = None,
) -> Plan:
    """Find what there is to do.

    Parameters
    ----------
    bids_dir : Path
        BIDS dataset, or a derivative dataset.
    derivatives : mapping of str to Path, optional
        Derivative datasets to read; searched for by default.
    selection : Selection, optional
        What the user wants; everything by default.
    spaces : sequence of str
        Spaces in order of preference; one is used per run.
    skip_bids_validation : bool
        Go on without a valid ``dataset_description.json``.
    database_dir : Path, optional
        Where PyBIDS keeps its index.

    Returns
    -------
    Plan
        When two derivative datasets have the same run, the first one's is taken.

    Raises
    ------
    BsymError
        The input is absent or not BIDS, labels are unknown, or nothing is selected.
    """
    selection = selection or Selection()
    check_spaces(spaces)
    check_bids(bids_dir, skip_bids_validation)
    datasets = find_derivatives(bids_dir, derivatives)
    with_derivatives = set().union(*(participants_of(d.root) for d in datasets))
    raw = participants_of(bids_dir)
    labels = _wanted_participants(selection, with_derivatives, raw)
    skipped = [
        Skipped(bids_dir / f"sub-{label}", "no fMRIPrep derivatives for this participant")
        for label in sorted(raw - with_derivatives)
        if not selection.participants
    ]
    candidates = _candidates(datasets, labels & with_derivatives, selection, database_dir)
    selection.check_known(c.entities for c in candidates)
    participants = []
    for label in sorted(labels):
        if label not in with_derivatives:
            problem = f"sub-{label}: no fMRIPrep derivatives for this participant"
            participants.append(Participant(label, (), (problem,)))
            continue
        own = [c for c in candidates if c.entities.get("sub") == label]
        participant, unused = _participant(label, own, selection, spaces)
        skipped += unused
        if participant.bold_runs or participant.problems:
            participants.append(participant)
        else:
            where = next(d.root for d in datasets if (d.root / f"sub-{label}").is_dir())
            skipped.append(Skipped(where / f"sub-{label}", "no BOLD series that is asked for"))
    if not participants:
        raise NothingSelectedError(
            f"{bids_dir}: nothing to process is left after all labels and filters",
            "see what there is with --dry-run and fewer filters",
        )
    return Plan(bids_dir, datasets, tuple(participants), tuple(skipped))


def _wanted_participants(
    selection: Selection, with_derivatives: set[str], raw: set[str]
) -> set[str]:
    for label in selection.participants:
        if label not in with_derivatives | raw:
            raise unknown_label("--participant-label", label, with_derivatives | raw)
    return set(selection.participants) or with_derivatives


def _candidates(
    datasets: Sequence[Derivatives],
    labels: set[str],
    selection: Selection,
    database_dir: Path | None,
) -> list[Candidate]:
    if not labels:
        return []
    return [
        candidate
        for dataset in datasets
        for candidate in find_candidates(dataset, labels, selection.filters, database_dir)
    ]


def _participant(
    label: str, candidates: Sequence[Candidate], selection: Selection, spaces: Sequence[str]
) -> tuple[Participant, list[Skipped]]:
    """Decide about every file of one participant."""
    runs: list[BoldRun] = []
    problems: list[str] = []
    skipped: list[Skipped] = []
    by_run: dict[tuple[tuple[str, str], ...], list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        if selection.takes(candidate.entities):
            by_run[tuple(candidate.run_entities.items())].append(candidate)
        else:
            skipped.append(Skipped(candidate.path, "not selected by session, task or run"))
    for forms in by_run.values():
        first = forms[0].derivatives
        others = [c for c in forms if c.derivatives != first]
        skipped += [
            Skipped(c.path, f"the same run is taken from derivatives {first.name}") for c in others
        ]
        _decide([c for c in forms if c.derivatives == first], spaces, runs, problems, skipped)
    return Participant(label, tuple(runs), tuple(problems)), skipped


def _decide(
    forms: Sequence[Candidate],
    spaces: Sequence[str],
    runs: list[BoldRun],
    problems: list[str],
    skipped: list[Skipped],
) -> None:
    """Take one form of a run, and say why not the others, or why none."""
    chosen = choose(forms, spaces)
    skipped += [Skipped(c.path, _why_not(c, chosen, spaces)) for c in forms if c is not chosen]
    if chosen is None:
        found = ", ".join(sorted({c.space or "native" for c in forms}))
        problems.append(
            f"{_name(forms[0])}: none of its spaces can be used ({found}); wanted: "
            f"{', '.join(spaces)}. Add one to fMRIPrep's --output-spaces"
        )
    elif not chosen.is_downloaded:
        problems.append(f"{chosen.path}: not downloaded: datalad get {chosen.path.name}")
    else:
        try:
            runs.append(complete(chosen))
        except BsymError as error:
            problems.append(str(error))


def _name(candidate: Candidate) -> str:
    return "_".join(f"{key}-{value}" for key, value in candidate.run_entities.items())


def _why_not(candidate: Candidate, chosen: Candidate | None, spaces: Sequence[str]) -> str:
    if candidate.is_usable and chosen is not None:
        return f"the run is taken as {chosen.path.name}"
    if candidate.is_usable:
        return f"not in a space that --space asks for ({', '.join(spaces)})"
    if candidate.space is None:
        return "in the scanner's own space, for which there is no atlas"
    if candidate.space in SUPPORTED_SPACES:
        return "not in a form that is supported (volumes: desc-preproc_bold.nii.gz; CIFTI: den-91k)"
    return f"in space {candidate.space}, for which there is no atlas"

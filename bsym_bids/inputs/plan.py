"""The plan: whom to process, with which files, and why everything else is left out."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from bsym_bids.config import DEFAULT_SPACES
from bsym_bids.errors import BadDataError, BsymError, InputMissingError, NothingSelectedError
from bsym_bids.inputs.bold import (
    SUPPORTED_SPACES,
    Candidate,
    check_spaces,
    choose,
    complete,
    describe_form,
    entities_of,
    find_candidates,
)
from bsym_bids.inputs.datasets import (
    bold_files,
    check_bids,
    find_derivatives,
    odd_participants,
    participants_of,
)
from bsym_bids.inputs.records import BoldRun, Derivatives, Participant, Plan, Skipped
from bsym_bids.inputs.selection import Selection, unknown_label

_SHOWN = 3  # reasons in the message that nothing is left
_HCP = "*_Atlas*.dtseries.nii"


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
        When several derivative datasets have the same run, it is taken from the first one in which
        it can be used.

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
    if not with_derivatives:
        raise InputMissingError(
            f"no folder of a participant in {', '.join(str(d.root) for d in datasets)}",
            "name the folder that has sub-<label> in it: --derivatives fmriprep=PATH",
        )
    raw = participants_of(bids_dir)
    labels = _wanted_participants(selection, with_derivatives, raw)
    skipped = [] if selection.participants else _not_looked_into(bids_dir, datasets)
    candidates = _candidates(datasets, labels & with_derivatives, selection, database_dir)
    _check_labels(selection, candidates, datasets)
    by_label: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        by_label[candidate.label].append(candidate)
    participants = []
    for label in sorted(labels):
        own = by_label[label]
        participant, unused = _participant(label, own, selection, spaces)
        skipped += unused
        if not participant.bold_runs and not participant.problems:
            reason = _why_nothing(label, datasets)
            named = label in selection.participants and not selection.filters
            if label in with_derivatives and (own or not named):
                skipped.append(reason)
                continue
            participant = Participant(
                label, (), (InputMissingError(f"{reason.path}: {reason.reason}"),)
            )
        participants.append(participant)
    if not participants:
        reasons = "; ".join(f"{s.path}: {s.reason}" for s in skipped[:_SHOWN])
        raise NothingSelectedError(
            f"{bids_dir}: nothing to process is left after all labels and filters",
            f"why, for example: {reasons}",
        )
    return Plan(bids_dir, datasets, tuple(participants), tuple(skipped))


def _not_looked_into(bids_dir: Path, datasets: Sequence[Derivatives]) -> list[Skipped]:
    """List the folders of participants that have no derivatives, or no label."""
    with_derivatives = set().union(*(participants_of(d.root) for d in datasets))
    odd = [
        Skipped(path, "not a label of BIDS: letters and digits only")
        for dataset in datasets
        for path in odd_participants(dataset.root)
    ]
    return odd + [
        Skipped(bids_dir / f"sub-{label}", "no fMRIPrep derivatives for this participant")
        for label in sorted(participants_of(bids_dir) - with_derivatives)
    ]


def _check_labels(
    selection: Selection, candidates: Sequence[Candidate], datasets: Sequence[Derivatives]
) -> None:
    """Complain about labels that nobody has, also not among those who are not selected."""
    try:
        selection.check_known(c.entities for c in candidates)
    except NothingSelectedError:
        # A session or task that only others have is no typing mistake.
        files = itertools.chain.from_iterable(bold_files(d.root) for d in datasets)
        selection.check_known(entities_of(path) for path in files)


def _why_nothing(label: str, datasets: Sequence[Derivatives]) -> Skipped:
    """Say why a participant has nothing to process, not even a problem."""
    folders = [d.root / f"sub-{label}" for d in datasets if (d.root / f"sub-{label}").is_dir()]
    if not folders:
        return Skipped(Path(f"sub-{label}"), "no fMRIPrep derivatives for this participant")
    for folder in folders:
        for pattern in (f"func/{_HCP}", f"ses-*/func/{_HCP}"):
            for path in sorted(folder.glob(pattern)):
                return Skipped(
                    path,
                    "named by the HCP pipelines; fMRIPrep's names are read: "
                    "sub-<label>_task-<name>_space-fsLR_den-91k_bold.dtseries.nii",
                )
    return Skipped(folders[0], "no BOLD series that is asked for")


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
    problems: list[BsymError] = []
    skipped: list[Skipped] = []
    by_run: dict[tuple[tuple[str, str], ...], list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        if not candidate.is_in_place:
            skipped.append(Skipped(candidate.path, "not in the folder that its name belongs in"))
        elif not selection.takes(candidate.entities):
            skipped.append(Skipped(candidate.path, "not selected by session, task or run"))
        elif not candidate.is_well_named:
            problems.append(
                BadDataError(f"{candidate.path}: its name is not one of BIDS", "rename it")
            )
        else:
            by_run[tuple(candidate.run_entities.items())].append(candidate)
    for key, forms in by_run.items():
        own, others = _by_dataset(forms, spaces)
        name = own[0].derivatives.name
        skipped += [
            Skipped(c.path, f"the same run is taken from derivatives {name}") for c in others
        ]
        combined = tuple(item for item in key if item[0] != "echo")
        if choose(own, spaces) is None and combined != key and combined in by_run:
            # fMRIPrep's --me-output-echos, in the scanner's space only
            skipped += [Skipped(c.path, "one echo of a run that is there combined") for c in own]
        else:
            _decide(own, spaces, runs, problems, skipped)
    return Participant(label, tuple(runs), tuple(problems)), skipped


def _by_dataset(
    forms: Sequence[Candidate], spaces: Sequence[str]
) -> tuple[list[Candidate], list[Candidate]]:
    """Split the files of a run: of the first dataset in which it can be used, and of others."""
    of: dict[Derivatives, list[Candidate]] = defaultdict(list)
    for candidate in forms:
        of[candidate.derivatives].append(candidate)
    first = next((own for own in of.values() if choose(own, spaces)), next(iter(of.values())))
    return first, [candidate for candidate in forms if candidate not in first]


def _decide(
    forms: Sequence[Candidate],
    spaces: Sequence[str],
    runs: list[BoldRun],
    problems: list[BsymError],
    skipped: list[Skipped],
) -> None:
    """Take one form of a run, and say why not the others, or why none."""
    chosen = choose(forms, spaces)
    skipped += [Skipped(c.path, _why_not(c, chosen, spaces)) for c in forms if c is not chosen]
    if chosen is None:
        found = ", ".join(sorted(map(describe_form, forms)))
        problems.append(
            InputMissingError(
                f"{_name(forms[0])}: none of its spaces can be used ({found}); wanted: "
                + ", ".join(spaces),
                "add one to fMRIPrep's --output-spaces",
            )
        )
    else:
        try:
            runs.append(complete(chosen))
        except BsymError as error:
            problems.append(error)


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

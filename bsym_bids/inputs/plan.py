"""The plan: whom to process, with which files, and why everything else is left out."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bsym_bids.config import DEFAULT_SPACES, MODALITIES
from bsym_bids.errors import BadDataError, BsymError, InputMissingError, NothingSelectedError
from bsym_bids.inputs.bold import (
    SUPPORTED_SPACES,
    Candidate,
    check_spaces,
    choose,
    complete,
    describe_form,
    find_candidates,
)
from bsym_bids.inputs.datasets import (
    bold_files,
    check_bids,
    dwi_files,
    find_derivatives,
    nothing_found,
    odd_participants,
    participants_of,
    raw_dataset,
)
from bsym_bids.inputs.dwi import find_scans
from bsym_bids.inputs.files import entities_of
from bsym_bids.inputs.records import BoldRun, Derivatives, Participant, Plan, Skipped
from bsym_bids.inputs.selection import Selection, check_filters, unknown_label
from bsym_bids.inputs.series import Found

_SHOWN = 3  # reasons in the message that nothing is left
_HCP = "*_Atlas*.dtseries.nii"


@dataclass(frozen=True)
class _Sources:
    """Where to look, and who is there.

    Attributes
    ----------
    raw : Derivatives
        The dataset itself.
    derivatives : tuple of Derivatives
        Derivative datasets.
    modalities : tuple of str
        What is wanted: ``bold``, ``dwi``.
    with_derivatives, with_dwi, known : set of str
        Participants with derivatives, with raw diffusion series if those are wanted, and all.
    """

    raw: Derivatives
    derivatives: tuple[Derivatives, ...]
    modalities: tuple[str, ...]
    with_derivatives: set[str]
    with_dwi: set[str]
    known: set[str]

    @classmethod
    def of(
        cls, bids_dir: Path, named: Mapping[str, Path] | None, modalities: Sequence[str]
    ) -> _Sources:
        """Look for datasets, and see that there is something of what is wanted."""
        derivatives = find_derivatives(bids_dir, named)
        raw = raw_dataset(bids_dir, derivatives)
        everybody = participants_of(raw.root)
        with_derivatives = set().union(*(participants_of(d.root) for d in derivatives))
        wanted = "dwi" in modalities
        with_dwi = {_label_of(path, raw) for path in dwi_files(raw.root)} if wanted else set()
        with_dwi &= everybody
        if derivatives and not with_derivatives and (named or not with_dwi):
            raise InputMissingError(
                f"no folder of a participant in {', '.join(str(d.root) for d in derivatives)}",
                "name the folder that has sub-<label> in it: --derivatives fmriprep=PATH",
            )
        if not with_derivatives and not with_dwi:
            raise nothing_found(bids_dir, modalities)
        if tuple(modalities) == ("dwi",) and not with_dwi:
            files = itertools.chain.from_iterable(dwi_files(d.root) for d in derivatives)
            if next(files, None) is None:
                raise nothing_found(bids_dir, modalities)
        known = everybody | with_derivatives
        return cls(raw, derivatives, tuple(modalities), with_derivatives, with_dwi, known)

    @property
    def with_inputs(self) -> set[str]:
        """Participants who may have something to process."""
        return self.with_derivatives | self.with_dwi

    def diffusion_files(self) -> Iterator[Path]:
        """Yield what may be diffusion series of anybody, if those are wanted."""
        if "dwi" in self.modalities:
            for dataset in dict.fromkeys([*self.derivatives, self.raw]):
                yield from dwi_files(dataset.root)


def _label_of(path: Path, dataset: Derivatives) -> str:
    return path.relative_to(dataset.root).parts[0].removeprefix("sub-")


def plan_inputs(
    bids_dir: Path,
    derivatives: Mapping[str, Path] | None = None,
    selection: Selection | None = None,
    spaces: Sequence[str] = DEFAULT_SPACES,
    skip_bids_validation: bool = False,
    database_dir: Path | None = None,
    modalities: Sequence[str] = MODALITIES,
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
        Spaces of BOLD series in order of preference; one is used per run.
    skip_bids_validation : bool
        Go on without a valid ``dataset_description.json``.
    database_dir : Path, optional
        Where PyBIDS keeps its index of BOLD series.
    modalities : sequence of str
        ``bold``, ``dwi`` or both.

    Returns
    -------
    Plan
        When several derivative datasets have the same run or scan, it is taken from the first one
        in which it can be used.

    Raises
    ------
    BsymError
        The input is absent or not BIDS, labels are unknown, or nothing is selected.
    """
    selection = selection or Selection()
    check_spaces(spaces)
    check_filters("dwi", selection.dwi_filters)
    check_filters("t1w", selection.t1w_filters)
    check_bids(bids_dir, skip_bids_validation)
    sources = _Sources.of(bids_dir, derivatives, modalities)
    labels = _wanted_participants(selection, sources)
    skipped = [] if selection.participants else _not_looked_into(bids_dir, sources)
    candidates = _candidates(sources, labels, selection, database_dir)
    diffusion = {label: _diffusion(label, sources, selection) for label in sorted(labels)}
    _check_labels(selection, candidates, diffusion, sources)
    by_label: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        by_label[candidate.label].append(candidate)
    participants = []
    for label, found in diffusion.items():
        own = by_label[label]
        participant, unused = _participant(label, own, found, selection, spaces)
        skipped += unused
        if participant.bold_runs or participant.dwi_scans or participant.problems:
            participants.append(participant)
            continue
        reason = _why_nothing(label, sources)
        named = label in selection.participants and not selection.has_filters
        if label in sources.with_inputs and (own or found.series or not named):
            skipped.append(reason)
        else:
            problem = InputMissingError(f"{reason.path}: {reason.reason}")
            participants.append(Participant(label, (), (problem,)))
    if not participants:
        reasons = "; ".join(f"{s.path}: {s.reason}" for s in skipped[:_SHOWN])
        raise NothingSelectedError(
            f"{bids_dir}: nothing to process is left after all labels and filters",
            f"why, for example: {reasons}",
        )
    return Plan(bids_dir, sources.derivatives, tuple(participants), tuple(skipped))


def _not_looked_into(bids_dir: Path, sources: _Sources) -> list[Skipped]:
    """List the folders of participants that have nothing to look at, or no label."""
    odd = [path for dataset in sources.derivatives for path in odd_participants(dataset.root)]
    if "dwi" in sources.modalities and sources.raw not in sources.derivatives:
        odd += [path for path in odd_participants(bids_dir) if any(path.glob("**/*_dwi.nii*"))]
    return [Skipped(path, "not a label of BIDS: letters and digits only") for path in odd] + [
        Skipped(bids_dir / f"sub-{label}", _nothing_of(sources))
        for label in sorted(participants_of(bids_dir) - sources.with_inputs)
    ]


def _nothing_of(sources: _Sources) -> str:
    """Say what a participant has not."""
    absent = ["no fMRIPrep derivatives"] * ("bold" in sources.modalities)
    absent += ["no diffusion series"] * ("dwi" in sources.modalities)
    return f"{' and '.join(absent)} for this participant"


def _check_labels(
    selection: Selection,
    candidates: Sequence[Candidate],
    diffusion: Mapping[str, Found],
    sources: _Sources,
) -> None:
    """Complain about labels that nobody has, also not among those who are not selected."""
    series = [one.entities for found in diffusion.values() for one in found.series]
    try:
        selection.check_known([c.entities for c in candidates], series)
    except NothingSelectedError:
        # A session or task that only others have is no typing mistake.
        datasets = sources.derivatives if "bold" in sources.modalities else ()
        files = itertools.chain.from_iterable(bold_files(d.root) for d in datasets)
        selection.check_known(map(entities_of, files), map(entities_of, sources.diffusion_files()))


def _why_nothing(label: str, sources: _Sources) -> Skipped:
    """Say why a participant has nothing to process, not even a problem."""
    datasets = dict.fromkeys([*sources.derivatives, sources.raw])
    if label not in sources.with_inputs:
        return Skipped(Path(f"sub-{label}"), _nothing_of(sources))
    folders = [d.root / f"sub-{label}" for d in datasets if (d.root / f"sub-{label}").is_dir()]
    for folder in folders:
        for pattern in (f"func/{_HCP}", f"ses-*/func/{_HCP}"):
            for path in sorted(folder.glob(pattern)):
                return Skipped(
                    path,
                    "named by the HCP pipelines; fMRIPrep's names are read: "
                    "sub-<label>_task-<name>_space-fsLR_den-91k_bold.dtseries.nii",
                )
    absent = ["no BOLD series"] * ("bold" in sources.modalities)
    absent += ["no diffusion series"] * ("dwi" in sources.modalities)
    return Skipped(folders[0], f"{' and '.join(absent)} that is asked for")


def _wanted_participants(selection: Selection, sources: _Sources) -> set[str]:
    for label in selection.participants:
        if label not in sources.known:
            raise unknown_label("--participant-label", label, sources.known)
    return set(selection.participants) or sources.with_inputs


def _diffusion(label: str, sources: _Sources, selection: Selection) -> Found:
    if "dwi" not in sources.modalities:
        return Found()
    return find_scans(label, sources.raw, sources.derivatives, selection)


def _candidates(
    sources: _Sources, labels: set[str], selection: Selection, database_dir: Path | None
) -> list[Candidate]:
    wanted = labels & sources.with_derivatives
    if not wanted or "bold" not in sources.modalities:
        return []
    return [
        candidate
        for dataset in sources.derivatives
        for candidate in find_candidates(dataset, wanted, selection.filters, database_dir)
    ]


def _participant(
    label: str,
    candidates: Sequence[Candidate],
    found: Found,
    selection: Selection,
    spaces: Sequence[str],
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
    problems += found.problems
    skipped += found.skipped
    return Participant(label, tuple(runs), tuple(problems), tuple(found.scans)), skipped


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

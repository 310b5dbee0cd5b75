"""The plan: whom to process, with which files, and why everything else is left out."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from bsym_bids.inputs.case import alike
from bsym_bids.inputs.database import Database
from bsym_bids.inputs.datasets import (
    DWI,
    bold_files,
    check_bids,
    dwi_files,
    files_of,
    find_derivatives,
    lost_folders,
    nothing_found,
    odd_participants,
    participants_of,
    raw_dataset,
)
from bsym_bids.inputs.dwi import find_scans
from bsym_bids.inputs.files import entities_of, why_lost
from bsym_bids.inputs.listing import Listing
from bsym_bids.inputs.records import BoldRun, Derivatives, Participant, Plan, Skipped
from bsym_bids.inputs.selection import Selection, check_filters, unknown_label
from bsym_bids.inputs.series import Found

_SHOWN = 3  # reasons in the message that nothing is left
_HCP = re.compile(r"_Atlas.*\.dtseries\.nii$")
_NOT_FUNC = re.compile("(?!func$|ses-).*")


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
    everybody, with_derivatives : set of str
        Participants of the dataset itself, and those with derivatives.
    """

    raw: Derivatives
    derivatives: tuple[Derivatives, ...]
    modalities: tuple[str, ...]
    everybody: set[str]
    with_derivatives: set[str]

    @classmethod
    def of(
        cls,
        bids_dir: Path,
        named: Mapping[str, Path] | None,
        modalities: Sequence[str],
        listing: Listing,
    ) -> _Sources:
        """Look for datasets, and who is in them."""
        derivatives = find_derivatives(bids_dir, named, listing)
        raw = raw_dataset(bids_dir, derivatives, listing)
        with_derivatives = set().union(*map(participants_of, derivatives))
        return cls(raw, derivatives, tuple(modalities), participants_of(raw), with_derivatives)

    def check_something(self, labels: Iterable[str], named: bool) -> None:
        """See that there is something of what is wanted.

        Parameters
        ----------
        labels : iterable of str
            Those who are asked for: where one of them has it, nobody else is looked at.
        named : bool
            Whether the user names the derivative datasets.

        Raises
        ------
        InputMissingError
            There is nothing.
        """
        if self.derivatives and not self.with_derivatives and (named or not self._any_raw(labels)):
            raise InputMissingError(
                f"no folder of a participant in {', '.join(str(d.root) for d in self.derivatives)}",
                "name the folder that has sub-<label> in it: --derivatives fmriprep=PATH; it is "
                "empty where datalad has not installed it: datalad get -n PATH",
            )
        if not self.with_derivatives and not self._any_raw(labels):
            raise nothing_found(self.raw.root, self.modalities, self.raw.listing)
        if self.modalities != ("dwi",) or any(map(self._has_dwi, labels)):
            return
        if next(self.diffusion_files(), None) is None:
            raise nothing_found(self.raw.root, self.modalities, self.raw.listing)

    def _any_raw(self, labels: Iterable[str]) -> bool:
        """Tell whether anybody has raw diffusion series that are wanted."""
        return any(map(self.has_raw_dwi, itertools.chain(labels, sorted(self.everybody))))

    def has_raw_dwi(self, label: str) -> bool:
        """Tell whether a participant has raw diffusion series that are wanted."""
        wanted = "dwi" in self.modalities and label in self.everybody
        return wanted and next(files_of(self.raw, label, "dwi", DWI), None) is not None

    def _has_dwi(self, label: str) -> bool:
        files = (files_of(dataset, label, "dwi", DWI) for dataset in self.derivatives)
        return self.has_raw_dwi(label) or next(itertools.chain(*files), None) is not None

    def lost(self, label: str) -> list[Path]:
        """Return the folders of a participant that are wanted and could not be looked into."""
        diffusion = ("dwi", "anat") if "dwi" in self.modalities else ()
        functional = ("func",) if "bold" in self.modalities else ()
        wanted = dict.fromkeys(self.derivatives, (*functional, *diffusion))
        if diffusion:
            wanted.setdefault(self.raw, diffusion)
        lost = [lost_folders(dataset, label, types) for dataset, types in wanted.items()]
        return list(itertools.chain.from_iterable(lost))

    def has_inputs(self, label: str) -> bool:
        """Tell whether a participant may have something to process."""
        return label in self.with_derivatives or self.has_raw_dwi(label)

    @property
    def known(self) -> set[str]:
        """All participants there are."""
        return self.everybody | self.with_derivatives

    def diffusion_files(self) -> Iterator[Path]:
        """Yield what may be diffusion series of anybody, if those are wanted."""
        if "dwi" in self.modalities:
            for dataset in dict.fromkeys([*self.derivatives, self.raw]):
                yield from dwi_files(dataset)


@dataclass
class _Finding:
    """What was found of one participant.

    Attributes
    ----------
    participant : Participant, optional
        What to process, or why it cannot be; None for nothing.
    skipped : list of Skipped
        What is not processed.
    runs, scans : list of mapping
        Entities of all BOLD and diffusion series that were looked at.
    is_there : bool
        Whether there is anything that may be processed.
    """

    participant: Participant | None
    skipped: list[Skipped]
    runs: list[Mapping[str, str]] = field(default_factory=list)
    scans: list[Mapping[str, str]] = field(default_factory=list)
    is_there: bool = True


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
        Where what there is in the folders of participants is kept for later calls.
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
    for query, filters in (
        ("bold", selection.filters),
        ("dwi", selection.dwi_filters),
        ("t1w", selection.t1w_filters),
    ):
        check_filters(query, filters)
    check_bids(bids_dir, skip_bids_validation)
    listing = Listing(Database.of(database_dir, bids_dir) if database_dir else None)
    sources = _Sources.of(bids_dir, derivatives, modalities, listing)
    sources.check_something(selection.participants, bool(derivatives))
    labels = _wanted_participants(selection, sources)
    findings = []
    for label in labels:
        with listing.of_participant(label):
            findings.append(_look_at(label, sources, selection, spaces))
    _check_labels(selection, findings, sources)
    skipped = [] if selection.participants else _odd_folders(sources)
    for finding in sorted(findings, key=lambda finding: finding.is_there):
        skipped += finding.skipped
    participants = [finding.participant for finding in findings if finding.participant]
    listing.forget()
    if not participants:
        reasons = "; ".join(f"{s.path}: {s.reason}" for s in skipped[:_SHOWN])
        raise NothingSelectedError(
            f"{bids_dir}: nothing to process is left after all labels and filters",
            f"why, for example: {reasons}",
        )
    others = alike(sources.known)
    return Plan(
        bids_dir,
        sources.derivatives,
        tuple(participants),
        tuple(skipped),
        {one.label: others[one.label] for one in participants if one.label in others},
        listing.notes,
    )


def _look_at(
    label: str, sources: _Sources, selection: Selection, spaces: Sequence[str]
) -> _Finding:
    """Look for all series of a participant, and decide about them."""
    has_inputs = sources.has_inputs(label)
    if not has_inputs and not selection.participants and not sources.lost(label):
        path = sources.raw.root / f"sub-{label}"
        return _Finding(None, [Skipped(path, _nothing_of(sources))], is_there=False)
    own = _candidates(label, sources, selection)
    found = _diffusion(label, sources, selection)
    participant, skipped = _participant(label, own, found, selection, spaces)
    lost = map(why_lost, sources.lost(label))
    participant = replace(participant, problems=(*participant.problems, *lost))
    runs, scans = [one.entities for one in own], [one.entities for one in found.series]
    if participant.bold_runs or participant.dwi_scans or participant.problems:
        return _Finding(participant, skipped, runs, scans)
    reason = _why_nothing(label, sources)
    named = label in selection.participants and not selection.has_filters
    if has_inputs and (own or found.series or not named):
        return _Finding(None, [*skipped, reason], runs, scans)
    problem = InputMissingError(f"{reason.path}: {reason.reason}")
    return _Finding(Participant(label, (), (problem,)), skipped, runs, scans)


def _odd_folders(sources: _Sources) -> list[Skipped]:
    """List the folders that begin like those of participants but have no label."""
    odd = [path for dataset in sources.derivatives for path in odd_participants(dataset)]
    if "dwi" in sources.modalities and sources.raw not in sources.derivatives:
        odd += [path for path in odd_participants(sources.raw) if any(path.glob("**/*_dwi.nii*"))]
    return [Skipped(path, "not a label of BIDS: letters and digits only") for path in odd]


def _nothing_of(sources: _Sources) -> str:
    """Say what a participant has not."""
    absent = ["no fMRIPrep derivatives"] * ("bold" in sources.modalities)
    absent += ["no diffusion series"] * ("dwi" in sources.modalities)
    return f"{' and '.join(absent)} for this participant"


def _check_labels(selection: Selection, findings: Sequence[_Finding], sources: _Sources) -> None:
    """Complain about labels that nobody has, also not among those who are not selected."""
    try:
        selection.check_known(
            itertools.chain.from_iterable(finding.runs for finding in findings),
            itertools.chain.from_iterable(finding.scans for finding in findings),
        )
    except NothingSelectedError:
        # A session or task that only others have is no typing mistake.
        datasets = sources.derivatives if "bold" in sources.modalities else ()
        files = itertools.chain.from_iterable(map(bold_files, datasets))
        selection.check_known(map(entities_of, files), map(entities_of, sources.diffusion_files()))


def _why_nothing(label: str, sources: _Sources) -> Skipped:
    """Say why a participant has nothing to process, not even a problem."""
    if not sources.has_inputs(label):
        return Skipped(Path(f"sub-{label}"), _nothing_of(sources))
    datasets = dict.fromkeys([*sources.derivatives, sources.raw])
    folders = [d.root / f"sub-{label}" for d in datasets if (d.root / f"sub-{label}").is_dir()]
    for folder in folders:
        for path in sources.raw.listing.below(folder, _HCP.search, _NOT_FUNC):
            return Skipped(
                path,
                "named by the HCP pipelines; fMRIPrep's names are read: "
                "sub-<label>_task-<name>_space-fsLR_den-91k_bold.dtseries.nii",
            )
    absent = ["no BOLD series"] * ("bold" in sources.modalities)
    absent += ["no diffusion series"] * ("dwi" in sources.modalities)
    where = folders[0] if folders else Path(f"sub-{label}")  # gone in the meantime
    return Skipped(where, f"{' and '.join(absent)} that is asked for")


def _wanted_participants(selection: Selection, sources: _Sources) -> list[str]:
    for label in selection.participants:
        if label not in sources.known:
            raise unknown_label("--participant-label", label, sources.known)
    return sorted(set(selection.participants) or sources.known)


def _diffusion(label: str, sources: _Sources, selection: Selection) -> Found:
    if "dwi" not in sources.modalities:
        return Found()
    return find_scans(label, sources.raw, sources.derivatives, selection)


def _candidates(label: str, sources: _Sources, selection: Selection) -> list[Candidate]:
    if label not in sources.with_derivatives or "bold" not in sources.modalities:
        return []
    return [
        candidate
        for dataset in sources.derivatives
        for candidate in find_candidates(dataset, label, selection.filters)
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

"""BOLD runs of a derivative dataset: series, masks, confounds, repetition times."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bsym_bids import atlas
from bsym_bids.bold.parcellate import CIFTI_SPACE
from bsym_bids.bold.volumes import LONGEST_TR
from bsym_bids.errors import BadDataError, UsageError
from bsym_bids.inputs.files import (
    check_present,
    entities_of,
    first_file,
    is_in_place,
    is_well_named,
    join,
    metadata,
)
from bsym_bids.inputs.records import BoldRun, Derivatives
from bsym_bids.inputs.selection import fits

SUPPORTED_SPACES = (*atlas.SPACES, CIFTI_SPACE)
#: Entities that tell in which form a run is given, not which run it is.
_FORM = ("space", "cohort", "res", "den", "desc")
_VOLUME = re.compile(r"_desc-preproc_bold\.nii(\.gz)?$")
_CIFTI = re.compile(r"_den-91k(_desc-preproc)?_bold\.dtseries\.nii$")
_SERIES = re.compile(r"_desc-preproc_bold\.nii(\.gz)?$|_bold\.dtseries\.nii$")
# Folders that can hold no BOLD series and are often the bulk of a dataset.
_IGNORED = re.compile("anat|dwi|figures|fmap|logs?|perf|sourcedata|work|code")


@dataclass(frozen=True)
class Candidate:
    """A file that may be the series of a run.

    Attributes
    ----------
    path : Path
        The file.
    entities : mapping of str to str
        All entities of its name in order.
    derivatives : Derivatives
        The dataset it is in.
    """

    path: Path
    entities: Mapping[str, str]
    derivatives: Derivatives

    @property
    def run_entities(self) -> dict[str, str]:
        """The entities that tell the run."""
        return {key: value for key, value in self.entities.items() if key not in _FORM}

    @property
    def space(self) -> str | None:
        """Space, None for the scanner's own."""
        return self.entities.get("space")

    @property
    def is_usable(self) -> bool:
        """Whether there is an atlas for it."""
        if self.space == CIFTI_SPACE:
            return bool(_CIFTI.search(self.path.name))
        return self.space in atlas.SPACES and bool(_VOLUME.search(self.path.name))

    @property
    def is_in_place(self) -> bool:
        """Whether it is in the folder where its name belongs, and no copy put aside."""
        return is_in_place(self.path, self.derivatives.root, "func")

    @property
    def is_well_named(self) -> bool:
        """Whether all of its name is entities, so that they tell it from every other file."""
        return is_well_named(self.path)


def find_candidates(
    derivatives: Derivatives, label: str, filters: Mapping[str, Any]
) -> list[Candidate]:
    """Return the BOLD series of a participant, in any space.

    Parameters
    ----------
    derivatives : Derivatives
        The dataset.
    label : str
        Label of the participant; no folder of anybody else is looked into.
    filters : mapping
        PyBIDS filters.

    Returns
    -------
    list of Candidate
        Sorted by path.
    """
    folder = derivatives.root / f"sub-{label}"
    paths = derivatives.listing.below(folder, _SERIES.search, _IGNORED)
    return [
        Candidate(path, entities_of(path), derivatives)
        for path in sorted(paths)
        if fits(path, filters)
    ]


def choose(candidates: Sequence[Candidate], spaces: Sequence[str]) -> Candidate | None:
    """Return the form in which a run is used, or None when none can be.

    Parameters
    ----------
    candidates : sequence of Candidate
        The same run in several spaces and resolutions.
    spaces : sequence of str
        Spaces in order of preference; ``MNI152NLin6Asym:res-2`` asks for one resolution.

    Returns
    -------
    Candidate or None
        Of the first space there is: resolution 2, else none or native, else the first.
    """
    for wanted in spaces:
        space, _, form = wanted.partition(":")
        fitting = [c for c in candidates if c.is_usable and c.space == space and _has(c, form)]
        if fitting:
            return min(fitting, key=_resolution_rank)
    return None


def check_spaces(spaces: Sequence[str]) -> None:
    """Refuse spaces for which there is no atlas."""
    for wanted in spaces:
        space, sign, form = wanted.partition(":")
        if space not in SUPPORTED_SPACES or (sign and not re.fullmatch("(res|den)-[^-]+", form)):
            raise UsageError(
                f"--space {wanted}: not supported",
                f"spaces: {', '.join(SUPPORTED_SPACES)}; a resolution is chosen like "
                "MNI152NLin6Asym:res-2",
            )


def _has(candidate: Candidate, form: str) -> bool:
    key, _, value = form.partition("-")
    found = candidate.entities.get(key)
    return not form or (found is not None and found.lstrip("0") == value.lstrip("0"))


def _resolution_rank(candidate: Candidate) -> tuple[int, str]:
    resolution = candidate.entities.get("res")
    order = {"2": 0, "02": 0, None: 1, "native": 1}
    return order.get(resolution, 2), candidate.path.name


def complete(candidate: Candidate) -> BoldRun:
    """Return the run of a series, with the files that belong to it.

    Raises
    ------
    InputMissingError
        A file is a link to content that is not there.
    BadDataError
        A sidecar cannot be read.
    """
    entities = candidate.entities
    mask, confounds = _mask(candidate), _confounds(candidate)
    # Without what tells the masks of CompCor components, all would be taken for one.
    check_present((candidate.path, mask, confounds, _description(candidate, confounds)))
    return BoldRun(
        entities=candidate.run_entities,
        space=str(candidate.space),
        resolution=entities.get("res"),
        density=entities.get("den"),
        bold=candidate.path,
        mask=mask,
        confounds=confounds,
        repetition_time=_repetition_time(candidate),
        derivatives=candidate.derivatives,
    )


def _mask(candidate: Candidate) -> Path | None:
    if candidate.space == CIFTI_SPACE:
        return None
    kept = {key: value for key, value in candidate.entities.items() if key != "desc"}
    names = [f"{join(e)}_desc-brain_mask.nii{gz}" for e in _fewer(kept) for gz in (".gz", "")]
    return first_file(candidate.derivatives.listing, candidate.path.parent, names)


def _confounds(candidate: Candidate) -> Path | None:
    names = [
        f"{join(e)}_desc-confounds_{suffix}.tsv"
        for e in _fewer(candidate.run_entities)
        for suffix in ("timeseries", "regressors")
    ]
    return first_file(candidate.derivatives.listing, candidate.path.parent, names)


def _description(candidate: Candidate, confounds: Path | None) -> Path | None:
    """Return the file that says what the columns of the confounds are, if there is one."""
    if confounds is None:
        return None
    name = confounds.with_suffix(".json").name
    return first_file(candidate.derivatives.listing, confounds.parent, [name])


def _fewer(entities: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Yield entities, then without those that fMRIPrep's masks and confounds are shared over."""
    shared: tuple[str, ...] = ()
    yield dict(entities)
    for key in ("echo", "part"):
        if key in entities:
            shared += (key,)
            yield {k: v for k, v in entities.items() if k not in shared}


def describe_form(candidate: Candidate) -> str:
    """Return in which form a series is: space, resolution and so on."""
    others = [f"{key}-{candidate.entities[key]}" for key in _FORM[1:] if key in candidate.entities]
    return " ".join([candidate.space or "native", *(o for o in others if o != "desc-preproc")])


def _repetition_time(candidate: Candidate) -> float | None:
    """Return RepetitionTime from the sidecars, the nearest and most specific first."""
    endings = ("bold.json", "bold.dtseries.json")
    found = metadata(candidate.path, candidate.derivatives, "RepetitionTime", *endings)
    if found is None:
        return None
    value, path = found
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadDataError(f"{path}: RepetitionTime is {value!r}, not a number")
    if not (math.isfinite(value) and 0 < value < LONGEST_TR):
        raise BadDataError(f"{path}: RepetitionTime is {value!r}, but must be in seconds")
    return float(value)

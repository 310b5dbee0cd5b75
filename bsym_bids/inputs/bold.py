"""BOLD runs of a derivative dataset: series, masks, confounds, repetition times."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bsym_bids import atlas
from bsym_bids.bold.parcellate import CIFTI_SPACE
from bsym_bids.bold.volumes import LONGEST_TR
from bsym_bids.errors import BadDataError, CannotCreateOutputError, UsageError
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

if TYPE_CHECKING:
    from bids.layout import BIDSLayout

SUPPORTED_SPACES = (*atlas.SPACES, CIFTI_SPACE)
#: Entities that tell in which form a run is given, not which run it is.
_FORM = ("space", "cohort", "res", "den", "desc")
_VOLUME = re.compile(r"_desc-preproc_bold\.nii(\.gz)?$")
_CIFTI = re.compile(r"_den-91k(_desc-preproc)?_bold\.dtseries\.nii$")
_INDEX = "layout_index.sqlite"  # the name is PyBIDS's
# What can hold no BOLD series and is often the bulk of a dataset.
_IGNORED = re.compile(
    r"/(anat|dwi|figures|fmap|log|logs|perf|sourcedata|work|code|\.[^/]*)(/|$)"
    r"|\.(html|svg|tsv|h5|json|gii|txt|toml|mat|md|png)$"
)


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
    def label(self) -> str:
        """Label of the participant whose folder it is in."""
        return self.path.relative_to(self.derivatives.root).parts[0].removeprefix("sub-")

    @property
    def is_in_place(self) -> bool:
        """Whether it is in the folder where its name belongs, and no copy put aside."""
        return is_in_place(self.path, self.derivatives.root, "func")

    @property
    def is_well_named(self) -> bool:
        """Whether all of its name is entities, so that they tell it from every other file."""
        return is_well_named(self.path)


def find_candidates(
    derivatives: Derivatives,
    participants: Iterable[str],
    filters: Mapping[str, Any],
    database_dir: Path | None = None,
) -> list[Candidate]:
    """Return the BOLD series of some participants, in any space.

    Parameters
    ----------
    derivatives : Derivatives
        The dataset.
    participants : iterable of str
        Labels; no folder of anybody else is looked into, unless a database is kept.
    filters : mapping
        PyBIDS filters.
    database_dir : Path, optional
        Where PyBIDS keeps its index of the whole dataset. It is reused as it is: remove it when
        the dataset has changed.

    Returns
    -------
    list of Candidate
        Sorted by path.

    Raises
    ------
    UsageError
        PyBIDS does not take the filters.
    CannotCreateOutputError
        The index cannot be written.
    BadDataError
        The index cannot be read.
    """
    wanted = sorted(participants)
    if database_dir is None:
        others = re.compile(rf"^/sub-(?!({'|'.join(map(re.escape, wanted))})(/|$))")
        layout = _layout(derivatives, [_IGNORED, others])
    else:
        layout = _kept_layout(derivatives, database_dir)
    query = {"suffix": "bold", **filters, "subject": wanted, "return_type": "filename"}
    try:
        found = layout.get(**query)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UsageError(
            f"the filters for bold cannot be used: {error}",
            'entities have their long names: {"bold": {"task": "rest", "acquisition": "mb"}}',
        ) from error
    paths = [Path(path) for path in found]
    return [
        Candidate(path, entities_of(path), derivatives)
        for path in sorted(paths)
        if _VOLUME.search(path.name) or path.name.endswith(".dtseries.nii")
    ]


def _layout(
    derivatives: Derivatives, ignore: Sequence[re.Pattern[str]], database: Path | None = None
) -> BIDSLayout:
    """Index a dataset with PyBIDS, or open the database when there is one."""
    logging.getLogger("bids-layout").setLevel(logging.ERROR)
    from bids.layout import BIDSLayout, BIDSLayoutIndexer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return BIDSLayout(
            derivatives.root,
            validate=False,
            config=["bids", "derivatives"],
            indexer=BIDSLayoutIndexer(validate=False, index_metadata=False, ignore=ignore),
            database_path=database,
        )


def _kept_layout(derivatives: Derivatives, database_dir: Path) -> BIDSLayout:
    """Open the index that is kept of a dataset; make it first when there is none."""
    from sqlalchemy.exc import SQLAlchemyError

    # PyBIDS believes an index without asking which dataset it is of.
    of_which = hashlib.sha256(os.fsencode(derivatives.root)).hexdigest()[:8]
    folder = database_dir / f"{derivatives.name}-{of_which}"
    if not (folder / _INDEX).is_file():
        try:
            _make_index(derivatives, folder)
        except (OSError, SQLAlchemyError) as error:
            raise CannotCreateOutputError(
                f"{folder}: the index of {derivatives.root} cannot be written: {error}",
                "choose another folder with --bids-database-dir, or go without",
            ) from error
    try:
        return _layout(derivatives, [_IGNORED], folder)
    except SQLAlchemyError as error:
        raise BadDataError(
            f"{folder / _INDEX}: cannot be read as an index: {error}", "remove it"
        ) from error


def _make_index(derivatives: Derivatives, folder: Path) -> None:
    """Write the index aside and move it into place, so that nobody opens half of it."""
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if (folder / _INDEX).is_file():
            return  # made by another job in the meantime
        with tempfile.TemporaryDirectory(dir=folder) as aside:
            _layout(derivatives, [_IGNORED], Path(aside)).session.close()
            os.replace(Path(aside, _INDEX), folder / _INDEX)


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
    check_present((candidate.path, mask, confounds))
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
    return first_file(candidate.path.parent, names)


def _confounds(candidate: Candidate) -> Path | None:
    names = [
        f"{join(e)}_desc-confounds_{suffix}.tsv"
        for e in _fewer(candidate.run_entities)
        for suffix in ("timeseries", "regressors")
    ]
    return first_file(candidate.path.parent, names)


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
    found = metadata(candidate.path, candidate.derivatives.root, "RepetitionTime", *endings)
    if found is None:
        return None
    value, path = found
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadDataError(f"{path}: RepetitionTime is {value!r}, not a number")
    if not (math.isfinite(value) and 0 < value < LONGEST_TR):
        raise BadDataError(f"{path}: RepetitionTime is {value!r}, but must be in seconds")
    return float(value)

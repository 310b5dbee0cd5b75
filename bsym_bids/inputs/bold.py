"""BOLD runs of a derivative dataset: series, masks, confounds, repetition times."""

from __future__ import annotations

import json
import logging
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bsym_bids import atlas
from bsym_bids.errors import BadDataError, UsageError
from bsym_bids.inputs.records import BoldRun, Derivatives

if TYPE_CHECKING:
    from bids.layout import BIDSLayout

CIFTI_SPACE = "fsLR"
SUPPORTED_SPACES = (*atlas.SPACES, CIFTI_SPACE)
#: Entities that tell in which form a run is given, not which run it is.
_FORM = ("space", "cohort", "res", "den", "desc")
_VOLUME = re.compile(r"_desc-preproc_bold\.nii(\.gz)?$")
_CIFTI = re.compile(r"_den-91k(_desc-[a-zA-Z0-9]+)?_bold\.dtseries\.nii$")
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
    def is_downloaded(self) -> bool:
        """Whether the content is there, not only a link to it."""
        return self.path.exists()


def entities_of(path: Path) -> dict[str, str]:
    """Split a BIDS name into its entities, in order; nothing is dropped.

    PyBIDS knows the entities of its configuration only; two files that differ in another one must
    not become one run.
    """
    parts = path.name.split("_")[:-1]
    return dict(part.split("-", 1) for part in parts if "-" in part)


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
    """
    wanted = sorted(participants)
    layout = _layout(derivatives, wanted, database_dir)
    try:
        found = layout.get(subject=wanted, suffix="bold", return_type="filename", **filters)
    except (ValueError, TypeError) as error:
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
    derivatives: Derivatives, participants: Sequence[str], database_dir: Path | None
) -> BIDSLayout:
    """Index with PyBIDS: the folders of the wanted participants, or everybody's for a database."""
    logging.getLogger("bids-layout").setLevel(logging.ERROR)
    from bids.layout import BIDSLayout, BIDSLayoutIndexer

    ignore = [_IGNORED]
    if database_dir is None:
        labels = "|".join(map(re.escape, participants))
        ignore.append(re.compile(rf"^/sub-(?!({labels})(/|$))"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return BIDSLayout(
            derivatives.root,
            validate=False,
            config=["bids", "derivatives"],
            indexer=BIDSLayoutIndexer(validate=False, index_metadata=False, ignore=ignore),
            database_path=database_dir and database_dir / derivatives.name,
        )


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
    return not form or candidate.entities.get(key) == value


def _resolution_rank(candidate: Candidate) -> tuple[int, str]:
    resolution = candidate.entities.get("res")
    order = {"2": 0, "02": 0, None: 1, "native": 1}
    return order.get(resolution, 2), candidate.path.name


def complete(candidate: Candidate) -> BoldRun:
    """Return the run of a series, with the files that belong to it.

    Raises
    ------
    BadDataError
        A sidecar cannot be read.
    """
    entities = candidate.entities
    return BoldRun(
        entities=candidate.run_entities,
        space=str(candidate.space),
        resolution=entities.get("res"),
        density=entities.get("den"),
        bold=candidate.path,
        mask=_mask(candidate),
        confounds=_confounds(candidate),
        repetition_time=_repetition_time(candidate),
        derivatives=candidate.derivatives,
    )


def _mask(candidate: Candidate) -> Path | None:
    if candidate.space == CIFTI_SPACE:
        return None
    kept = {key: value for key, value in candidate.entities.items() if key != "desc"}
    names = [f"{_join(e)}_desc-brain_mask.nii{gz}" for e in _fewer(kept) for gz in (".gz", "")]
    return _first_file(candidate.path.parent, names)


def _confounds(candidate: Candidate) -> Path | None:
    names = [
        f"{_join(e)}_desc-confounds_{suffix}.tsv"
        for e in _fewer(candidate.run_entities)
        for suffix in ("timeseries", "regressors")
    ]
    return _first_file(candidate.path.parent, names)


def _fewer(entities: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Yield entities, then without those that fMRIPrep's masks and confounds are shared over."""
    shared: tuple[str, ...] = ()
    yield dict(entities)
    for key in ("echo", "part"):
        if key in entities:
            shared += (key,)
            yield {k: v for k, v in entities.items() if k not in shared}


def _join(entities: Mapping[str, str]) -> str:
    return "_".join(f"{key}-{value}" for key, value in entities.items())


def _first_file(folder: Path, names: Iterable[str]) -> Path | None:
    # A dangling link counts: whoever reads it says that the content is not there.
    paths = (folder / name for name in names)
    return next((path for path in paths if path.exists() or path.is_symlink()), None)


def _repetition_time(candidate: Candidate) -> float | None:
    """Return RepetitionTime from the sidecars, the nearest and most specific first."""
    for path in _sidecars(candidate):
        try:
            document = json.loads(path.read_text("utf-8"))
            value = document.get("RepetitionTime")
        except (OSError, ValueError, AttributeError) as error:
            raise BadDataError(f"{path}: cannot be read as JSON: {error}") from error
        if value is None:
            continue
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise BadDataError(
                f"{path}: RepetitionTime is {value!r}, not a number", "give it in seconds"
            )
        return float(value)
    return None


def _sidecars(candidate: Candidate) -> Iterator[Path]:
    """Yield the JSON files that apply to a series by BIDS's inheritance principle."""
    entities = candidate.entities.items()
    folder, root = candidate.path.parent, candidate.derivatives.root
    while True:
        applying = [
            path
            for path in [*folder.glob("*_bold.json"), *folder.glob("*_bold.dtseries.json")]
            if entities_of(path).items() <= entities
        ]
        yield from sorted(applying, key=lambda path: (-len(entities_of(path)), path.name))
        if folder == root or root not in folder.parents:
            return
        folder = folder.parent

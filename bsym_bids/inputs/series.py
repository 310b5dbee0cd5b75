"""Diffusion series: files, their gradients and how they were acquired."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from bsym_bids.errors import BadDataError, BsymError, InputMissingError
from bsym_bids.inputs.files import (
    applying,
    check_present,
    entities_of,
    first_file,
    in_order,
    metadata,
)
from bsym_bids.inputs.records import Derivatives, DwiImage, DwiScan, Skipped
from bsym_bids.untrusted import read_text, to_float

_NAME = re.compile(r"_dwi\.nii(\.gz)?$")
#: Entities that tell in which form a scan is given, not which scan it is.
_FORM = ("space", "res", "desc")
_IGNORED = re.compile("figures|logs?")
_GRADIENTS = {"bval": "b-values", "bvec": "gradient directions"}
_PHASE_ENCODINGS = ("i", "i-", "j", "j-", "k", "k-")
_LONGEST_READOUT = 1.0  # s; about ten times what there is
_LARGEST_BVAL = 1 << 22  # bytes; ten thousand volumes have a hundredth of it
_B0 = 50.0  # s/mm2: up to here a volume counts as not diffusion-weighted


@dataclass(frozen=True)
class Series:
    """A file that may be a diffusion series.

    Attributes
    ----------
    path : Path
        The file.
    dataset : Derivatives
        The dataset it is in.
    """

    path: Path
    dataset: Derivatives

    @cached_property
    def entities(self) -> Mapping[str, str]:
        """All entities of its name in order."""
        return entities_of(self.path)

    @property
    def scan_entities(self) -> dict[str, str]:
        """The entities that tell the scan."""
        return {key: value for key, value in self.entities.items() if key not in _FORM}

    @property
    def session(self) -> str | None:
        """Label of its session."""
        return self.entities.get("ses")

    @property
    def space(self) -> str | None:
        """Space of a preprocessed series."""
        return self.entities.get("space")

    @property
    def is_preprocessed(self) -> bool:
        """Whether it is named as QSIPrep names preprocessed series, in whatever space."""
        return self.entities.get("desc") == "preproc"

    @property
    def is_raw(self) -> bool:
        """Whether it is named as a scanner's series are."""
        return not self.entities.keys() & set(_FORM)


@dataclass
class Found:
    """What there is of a participant's diffusion data.

    Attributes
    ----------
    scans : list of DwiScan
        To process.
    problems : list of BsymError
        What should be processed but cannot be.
    skipped : list of Skipped
        What is left out on purpose.
    series : list of Series
        Everything that was looked at.
    """

    scans: list[DwiScan] = field(default_factory=list)
    problems: list[BsymError] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    series: list[Series] = field(default_factory=list)

    def skip(self, series: Iterable[Series], reason: str) -> None:
        """Leave some series out."""
        self.skipped += [Skipped(one.path, reason) for one in series]


def series_of(dataset: Derivatives, label: str) -> list[Series]:
    """Return the diffusion series in a participant's folder of a dataset, wherever they lie."""
    folder = dataset.root / f"sub-{label}"
    paths = dataset.listing.below(folder, _NAME.search, _IGNORED)
    return [Series(path, dataset) for path in sorted(paths, key=in_order)]


def acquired(series: Series) -> DwiImage:
    """Return a raw series with its gradients and how it was acquired, by BIDS's inheritance.

    Raises
    ------
    InputMissingError
        It has no b-values or no directions, or a file is a link to content that is not there.
    BadDataError
        A sidecar cannot be read, or what it says of the acquisition cannot be.
    """
    path, dataset = series.path, series.dataset
    found = {kind: next(applying(path, dataset, f"dwi.{kind}"), None) for kind in _GRADIENTS}
    check_present((path, *found.values()))
    return DwiImage(
        image=path,
        bval=_needed(series, "bval", found["bval"]),
        bvec=_needed(series, "bvec", found["bvec"]),
        phase_encoding=_phase_encoding(series),
        readout_time=_readout_time(series),
    )


def preprocessed(series: Series) -> DwiImage:
    """Return a preprocessed series with the gradients beside it.

    Gradients are not inherited: preprocessing has rotated them, and those of another file have not
    been turned with this one.

    Raises
    ------
    InputMissingError
        It has no b-values or no directions, or a file is a link to content that is not there.
    """
    listing, folder, stem = series.dataset.listing, series.path.parent, _stem(series.path)
    found = {kind: first_file(listing, folder, [f"{stem}.{kind}"]) for kind in _GRADIENTS}
    check_present((series.path, *found.values()))
    return DwiImage(
        image=series.path,
        bval=_needed(series, "bval", found["bval"]),
        bvec=_needed(series, "bvec", found["bvec"]),
    )


def _needed(series: Series, kind: str, path: Path | None) -> Path:
    if path is None:
        raise InputMissingError(
            f"{series.path}: no {_GRADIENTS[kind]} ({_stem(series.path)}.{kind})",
            "put them beside the series, or leave it out: --bids-filter-file, or --modalities bold",
        )
    return path


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")


def _phase_encoding(series: Series) -> str | None:
    found = metadata(series.path, series.dataset, "PhaseEncodingDirection", "dwi.json")
    if found is None:
        return None
    value, path = found
    if value not in _PHASE_ENCODINGS:
        raise BadDataError(
            f"{path}: PhaseEncodingDirection is {value!r}, but must be one of "
            + ", ".join(_PHASE_ENCODINGS)
        )
    return str(value)


def _readout_time(series: Series) -> float | None:
    found = metadata(series.path, series.dataset, "TotalReadoutTime", "dwi.json")
    if found is None:
        return None
    value, path = found
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadDataError(f"{path}: TotalReadoutTime is {value!r}, not a number")
    if not (math.isfinite(value) and 0 < value < _LONGEST_READOUT):
        raise BadDataError(f"{path}: TotalReadoutTime is {value!r}, but must be in seconds")
    return float(value)


def count_weighted(bval: Path) -> int:
    """Return how many volumes of a series are diffusion-weighted.

    Raises
    ------
    BadDataError
        The file holds no numbers.
    """
    hint = "make the gradient files again from the scanner's data"
    try:
        words = read_text(bval, _LARGEST_BVAL).replace(",", " ").split()
        values = [to_float(word) for word in words]
    except (OSError, ValueError) as error:
        raise BadDataError(f"{bval}: cannot be read as b-values: {error}", hint) from error
    if not values:
        raise BadDataError(f"{bval}: is empty, but must hold a b-value for each volume", hint)
    if not all(0 <= value < math.inf for value in values):
        raise BadDataError(f"{bval}: holds b-values that are negative or not a number", hint)
    return sum(value > _B0 for value in values)

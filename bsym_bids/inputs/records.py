"""The records that discovery hands on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bsym_bids.errors import BsymError


@dataclass(frozen=True)
class Derivatives:
    """A derivative dataset.

    Attributes
    ----------
    name : str
        Name that BIDS URIs use for it.
    root : Path
        Its folder.
    """

    name: str
    root: Path


@dataclass(frozen=True)
class BoldRun:
    """One BOLD run in one space.

    Attributes
    ----------
    entities : mapping of str to str
        Entities of the source name in its order, short keys, without ``space``, ``res``, ``den``
        and ``desc``: they tell one run from another.
    space : str
        Space of the series.
    resolution, density : str, optional
        ``res-`` and ``den-`` of the source.
    bold : Path
        The preprocessed series.
    mask, confounds : Path, optional
        Brain mask on the same grid, and confounds table.
    repetition_time : float, optional
        From the JSON sidecars, in seconds.
    derivatives : Derivatives
        The dataset it is from.
    """

    entities: Mapping[str, str]
    space: str
    bold: Path
    derivatives: Derivatives
    resolution: str | None = None
    density: str | None = None
    mask: Path | None = None
    confounds: Path | None = None
    repetition_time: float | None = None

    @property
    def confounds_json(self) -> Path | None:
        """What describes the confounds, if it is there: older tables need it for CompCor."""
        path = self.confounds and self.confounds.with_suffix(".json")
        return path if path and os.path.isfile(path) else None

    @property
    def label(self) -> str:
        """What the run is called in messages and tables."""
        parts = [f"{key}-{value}" for key, value in self.entities.items()]
        parts.append(f"space-{self.space}")
        if self.resolution:
            parts.append(f"res-{self.resolution}")
        if self.density:
            parts.append(f"den-{self.density}")
        return "_".join(parts)


@dataclass(frozen=True)
class Participant:
    """One participant.

    Attributes
    ----------
    label : str
        Label without ``sub-``.
    bold_runs : tuple of BoldRun
        Runs to process.
    problems : tuple of BsymError
        What should have been processed but cannot be, and why.
    """

    label: str
    bold_runs: tuple[BoldRun, ...]
    problems: tuple[BsymError, ...] = ()


@dataclass(frozen=True)
class Skipped:
    """Something that is not processed, on purpose.

    Attributes
    ----------
    path : Path
        File or folder.
    reason : str
        Why.
    """

    path: Path
    reason: str


@dataclass(frozen=True)
class Plan:
    """All that was found.

    Attributes
    ----------
    bids_dir : Path
        The dataset.
    derivatives : tuple of Derivatives
        Derivative datasets that were read.
    participants : tuple of Participant
        Whom to process, sorted by label.
    skipped : tuple of Skipped
        What is not processed, and why.
    """

    bids_dir: Path
    derivatives: tuple[Derivatives, ...]
    participants: tuple[Participant, ...]
    skipped: tuple[Skipped, ...]

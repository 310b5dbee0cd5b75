"""The records that discovery hands on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from bsym_bids.errors import BsymError
from bsym_bids.inputs.listing import Listing


@dataclass(frozen=True)
class Derivatives:
    """A derivative dataset.

    Attributes
    ----------
    name : str
        Name that BIDS URIs use for it.
    root : Path
        Its folder.
    listing : Listing
        What there is in its folders.
    """

    name: str
    root: Path
    listing: Listing = field(default_factory=Listing, repr=False, compare=False)


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
class DwiImage:
    """One diffusion series with its gradients.

    Attributes
    ----------
    image, bval, bvec : Path
        The series and its gradients in FSL's form. The gradients may lie higher up by BIDS's
        inheritance.
    phase_encoding : str, optional
        ``PhaseEncodingDirection`` of the sidecar: ``i``, ``j-``, ...; None where it is not said.
    readout_time : float, optional
        ``TotalReadoutTime`` in seconds.
    """

    image: Path
    bval: Path
    bvec: Path
    phase_encoding: str | None = None
    readout_time: float | None = None


@dataclass(frozen=True)
class Anatomy:
    """What there is of a participant's anatomy.

    Attributes
    ----------
    source : str
        ``fmriprep`` or ``qsiprep`` (derivatives in either shape), or ``raw``.
    t1w : Path
        T1-weighted image: preprocessed, or as scanned when ``source`` is ``raw``.
    dataset : Derivatives
        The dataset the files are in.
    mask : Path, optional
        Brain mask on the grid of ``t1w``.
    probseg : mapping of str to Path
        Probability maps by ``label-`` (``GM``, ``WM``, ``CSF``); empty unless all three are there.
    dseg : Path, optional
        Three-class segmentation of fMRIPrep: 1 GM, 2 WM, 3 CSF as BIDS has it. QSIPrep's has other
        numbers and is left out.
    aparcaseg : Path, optional
        ``desc-aparcaseg_dseg`` of FreeSurfer on the grid of ``t1w``; where there is none, its
        ``desc-aseg_dseg``, which has one label for the cortex of each hemisphere.
    template_to_t1w : Path, optional
        Composite transform ``from-MNI152NLin2009cAsym_to-<T1w|ACPC|anat>_mode-image_xfm.h5``, into
        the space of ``t1w``.
    """

    source: str
    t1w: Path
    dataset: Derivatives
    mask: Path | None = None
    probseg: Mapping[str, Path] = field(default_factory=dict)
    dseg: Path | None = None
    aparcaseg: Path | None = None
    template_to_t1w: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """All of its files."""
        optional = (self.mask, *self.probseg.values(), self.dseg, self.aparcaseg)
        return tuple(p for p in (self.t1w, *optional, self.template_to_t1w) if p is not None)


@dataclass(frozen=True)
class DwiScan:
    """The diffusion data of one session that become one connectome.

    Attributes
    ----------
    entities : mapping of str to str
        Entities of the source in its order, short keys, without ``space``, ``res``, ``desc``; also
        without ``run`` or ``dir`` where series that differ in it are put together.
    images : tuple of DwiImage
        Series that are put together, in order.
    dataset : Derivatives
        The dataset the series are in: the raw one, or one of QSIPrep.
    space : str, optional
        Space of preprocessed series, ``ACPC`` or ``T1w``; None for raw ones.
    mask : Path, optional
        Brain mask of preprocessed series.
    reverse : tuple of DwiImage
        Series of the opposite phase encoding that only serve to measure distortions.
    anatomy : Anatomy, optional
        What there is of the anatomy.
    """

    entities: Mapping[str, str]
    images: tuple[DwiImage, ...]
    dataset: Derivatives
    space: str | None = None
    mask: Path | None = None
    reverse: tuple[DwiImage, ...] = ()
    anatomy: Anatomy | None = None

    @property
    def is_preprocessed(self) -> bool:
        """Whether the series are not to be processed again."""
        return self.space is not None

    @property
    def same_space(self) -> bool:
        """Whether the series are aligned with the anatomy, as QSIPrep's are with its own."""
        anatomy = self.anatomy
        return self.is_preprocessed and anatomy is not None and anatomy.dataset == self.dataset

    @property
    def label(self) -> str:
        """What the scan is called in messages and tables."""
        parts = [f"{key}-{value}" for key, value in self.entities.items()]
        parts += [f"space-{self.space}"] if self.space else []
        return "_".join([*parts, "dwi"])

    @property
    def own_files(self) -> tuple[Path, ...]:
        """The series with their gradients and mask."""
        series = [
            path
            for image in (*self.images, *self.reverse)
            for path in (image.image, image.bval, image.bvec)
        ]
        return (*series, *(() if self.mask is None else (self.mask,)))

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that decide the result."""
        return (*self.own_files, *(self.anatomy.files if self.anatomy else ()))


@dataclass(frozen=True)
class Participant:
    """One participant.

    Attributes
    ----------
    label : str
        Label without ``sub-``.
    bold_runs : tuple of BoldRun
        BOLD runs to process.
    problems : tuple of BsymError
        What should have been processed but cannot be, and why.
    dwi_scans : tuple of DwiScan
        Diffusion scans to process.
    """

    label: str
    bold_runs: tuple[BoldRun, ...]
    problems: tuple[BsymError, ...] = ()
    dwi_scans: tuple[DwiScan, ...] = ()


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
    alike : mapping of str to tuple of str
        Of those participants, whose label differs from those of others in the dataset in capitals
        only, with these others, selected or not.
    notes : tuple of str
        What is to be logged of how it was found.
    """

    bids_dir: Path
    derivatives: tuple[Derivatives, ...]
    participants: tuple[Participant, ...]
    skipped: tuple[Skipped, ...]
    alike: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = field(default=(), compare=False)

    @cached_property  # everyone's record asks
    def datasets(self) -> tuple[Derivatives, ...]:
        """All datasets that files are taken from, each once."""
        scans = [scan for participant in self.participants for scan in participant.dwi_scans]
        used = [scan.dataset for scan in scans]
        used += [scan.anatomy.dataset for scan in scans if scan.anatomy]
        return tuple(dict.fromkeys([*self.derivatives, *used]))

    def skipped_of(self, label: str) -> list[Skipped]:
        """Return what is not processed of one participant, by folders and names."""
        return self._skipped_by_name.get(f"sub-{label}", [])

    @cached_property
    def _skipped_by_name(self) -> dict[str, list[Skipped]]:
        found: dict[str, list[Skipped]] = {}
        for one in self.skipped:
            for name in {*one.path.parts, one.path.name.split("_")[0]}:
                if name.startswith("sub-"):
                    found.setdefault(name, []).append(one)
        return found

"""What the steps of a diffusion scan hand on: files in the work folder and what is known of them.

Every path is absolute. World coordinates are those of NIfTI (RAS+, mm) of the diffusion series,
and everything that follows preprocessing is in them, so that no step has to know of transforms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class PreparedDwi:
    """A diffusion series that can be modelled.

    Attributes
    ----------
    image : str
        Series (X, Y, Z, V), float32 NIfTI.
    bval, bvec : str
        Gradients in FSL's form: b in s/mm2, and unit vectors (3, V) in the axes of the image, x
        negated where the determinant of its affine is positive.
    mask : str
        Brain mask on the same grid.
    b0 : str
        Mean of the volumes without diffusion weighting on the same grid, bias-corrected.
    notes : sequence of str
        What was found and done, in sentences for the sidecar and the report.
    details : mapping
        The same in numbers and names, for the sidecar (JSON values).
    colour_fa : str, optional
        Anisotropy by direction (X, Y, Z, 3) on the same grid, see `coloured_anisotropy`.
    """

    image: str
    bval: str
    bvec: str
    mask: str
    b0: str
    notes: Sequence[str] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    colour_fa: str | None = None


@dataclass(frozen=True)
class PreparedAnatomy:
    """The anatomy of a participant in its own space, or that there is none.

    Attributes
    ----------
    t1w : str, optional
        T1-weighted image, brain-extracted and bias-corrected.
    mask : str, optional
        Its brain mask.
    labels : str, optional
        The 450-ROI atlas on the grid of ``t1w``, by one interpolation.
    tissue : str, optional
        Five tissues (X, Y, Z, 5) as MRtrix3 has them, on the grid of ``t1w``; None without T1w.
    notes, details
        As in `PreparedDwi`.
    """

    t1w: str | None = None
    mask: str | None = None
    labels: str | None = None
    tissue: str | None = None
    notes: Sequence[str] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PlacedAnatomy:
    """Atlas and tissue in the world of the diffusion series.

    Attributes
    ----------
    labels : str
        int16 NIfTI, 0 to 450; on a grid of its own, finer than that of the series. ROIs may be
        absent.
    tissue : str, optional
        Five tissues (X, Y, Z, 5), cortical grey matter, subcortical grey matter, white matter, CSF,
        pathological, on the grid of ``labels``; None where tracking goes without anatomical
        constraints.
    notes, details
        As in `PreparedDwi`; among the details ``RegistrationQuality``.
    """

    labels: str
    tissue: str | None = None
    notes: Sequence[str] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FittedModel:
    """Fibre orientations, ready for tracking.

    Attributes
    ----------
    engine : str
        ``mrtrix3`` or ``dipy``.
    version : str
        Its version.
    files : mapping of str to str
        What tracking reads, by role; known to the engine alone.
    fa : str
        Fractional anisotropy on the grid of the series.
    notes, details
        As in `PreparedDwi`.
    """

    engine: str
    version: str
    files: Mapping[str, str]
    fa: str
    notes: Sequence[str] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

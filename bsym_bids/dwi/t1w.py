"""Reading a participant's T1-weighted image: checked, brain-extracted, bias-corrected, cut out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bsym_bids.dwi.brain import (
    PLAUSIBLE_BRAIN,
    bias_corrected,
    cleaned_mask,
    extract_brain,
    looks_extracted,
)
from bsym_bids.dwi.masking import otsu
from bsym_bids.dwi.series import grid_distance
from bsym_bids.dwi.transforms import Volume, bounds, load_volume, resample
from bsym_bids.errors import BadDataError
from bsym_bids.inputs.records import Anatomy

#: ml; less than this is no brain, not even a newborn's, but a mask gone wrong.
SMALLEST_BRAIN = 200.0
#: Share of the brain that may be without a number, and of the image that may be below zero.
MOST_DEFECTIVE = 0.01
#: Share of a voxel by which the corners of grids may differ that count as the same.
SAME_GRID = 0.05
# Voxels left around the brain when the image is cut down to it.
_EDGE = 3


@dataclass
class Told:
    """What is found and done on the way, for the record that is handed on."""

    notes: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Brain:
    """A brain on the grid of its image, cut down to a box around it.

    Attributes
    ----------
    image : Volume
        Bias-corrected, float32, 0 outside of the mask.
    mask : Volume
        Bool.
    full_shape : tuple of int
        Of the grid before it was cut.
    full_affine : ndarray, shape (4, 4)
        Of the grid before it was cut.
    box : tuple of slice
        What was cut from it.
    """

    image: Volume
    mask: Volume
    full_shape: tuple[int, ...]
    full_affine: NDArray[np.float64]
    box: tuple[slice, ...]

    def is_on_grid(self, volume: Volume) -> bool:
        """Tell whether an image is on the grid from which the brain was cut."""
        return _same_grid(volume, self.full_shape, self.full_affine)

    def bring(self, volume: Volume, order: int) -> NDArray:
        """Return an image on the grid of the brain: cut likewise, or else resampled."""
        if self.is_on_grid(volume):
            return np.ascontiguousarray(volume.data[self.box])
        shape, affine = self.mask.data.shape, self.mask.affine
        return resample(volume, shape, affine, order=order).data


def _same_grid(volume: Volume, shape: tuple[int, ...], affine: NDArray[np.float64]) -> bool:
    same_shape = volume.data.shape == shape
    return same_shape and grid_distance(affine, volume.affine, shape) <= SAME_GRID


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the name of a file before errors of functions that know only its content."""
    try:
        yield
    except BadDataError as error:
        raise BadDataError(f"{path}: {error}", error.hint) from error


def read_brain(anatomy: Anatomy, told: Told) -> Brain:
    """Read the T1-weighted image of a participant and find the brain in it.

    The brain is that of the given mask. Without one, an image that is 0 around a plausible brain
    is of that brain, and of others the brain is extracted here. Images of derivatives that have
    a mask are bias-corrected already; others are corrected by N4.

    Parameters
    ----------
    anatomy : Anatomy
        What there is.
    told : Told
        Gets notes and details.

    Returns
    -------
    Brain

    Raises
    ------
    BadDataError
        The image or its mask cannot be used; both are named.
    InputMissingError
        A file is not there.
    """
    head, absent = _read_head(anatomy.t1w, told)
    if anatomy.mask is None:
        head, mask = _find_brain(head, anatomy.t1w, told)
    else:
        mask = _read_mask(anatomy.mask, head, told)
    defective = absent[mask.data].mean() if absent is not None else 0.0
    if defective > MOST_DEFECTIVE:
        raise BadDataError(
            f"{anatomy.t1w}: {defective:.0%} of the brain is without a number (NaN or infinite)",
            "make or copy the image again",
        )
    low, high = bounds(mask.data)
    box = tuple(
        slice(max(0, a - _EDGE), min(n, b + 1 + _EDGE))
        for a, b, n in zip(low, high, mask.data.shape, strict=True)
    )
    affine = head.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [edge.start for edge in box]
    inside = np.ascontiguousarray(mask.data[box])
    image = np.where(inside, head.data[box], 0).astype(np.float32)
    values = image[inside]
    if values.min() == values.max():
        raise BadDataError(f"{anatomy.t1w}: the brain has the same value everywhere", "look at it")
    told.details["BrainVolumeMl"] = round(float(inside.sum() * mask.voxel_volume / 1000), 1)
    full = head.data.shape, head.affine
    return Brain(Volume(image, affine), Volume(inside, affine), *full, box)


def _read_head(path: Path, told: Told) -> tuple[Volume, NDArray[np.bool_] | None]:
    """Read an image; what is not a number becomes 0 and is returned beside it."""
    volume = load_volume(path)
    told.details["T1w"] = path.name
    data = volume.data.astype(np.float32)
    absent = ~np.isfinite(data)
    if absent.all():
        raise BadDataError(f"{path}: holds no finite number", "make or copy the image again")
    if absent.any():
        data[absent] = 0
        told.notes.append(
            f"{path.name}: {absent.sum()} voxels are not finite numbers; they count as 0."
        )
    if data.min() == data.max():
        raise BadDataError(
            f"{path}: has the same value ({data.flat[0]:g}) everywhere",
            "is the image empty? Make or copy it again",
        )
    below = data < 0
    if below.mean() > MOST_DEFECTIVE * 5:
        raise BadDataError(
            f"{path}: {below.mean():.0%} of it is below 0, which intensities of MRI are not",
            "give the image as it was scanned or preprocessed, not standardised",
        )
    if below.any():
        data[below] = 0
        told.notes.append(f"{path.name}: {below.sum()} voxels are below 0; they count as 0.")
    return Volume(data, volume.affine), absent if absent.any() else None


def _read_mask(path: Path, head: Volume, told: Told) -> Volume:
    given = load_volume(path)
    data = np.nan_to_num(given.data) > 0.5
    if not data.any():
        raise BadDataError(
            f"{path}: the brain mask is empty", "look at it; without it the brain is extracted here"
        )
    mask = Volume(data, given.affine)
    if not _same_grid(mask, head.data.shape, head.affine):
        mask = resample(mask, head.data.shape, head.affine, order=0)
        told.notes.append(
            f"{path.name}: on another grid than the T1-weighted image; it was brought onto it by "
            "nearest neighbours."
        )
    volume = mask.data.sum() * mask.voxel_volume / 1000
    if volume < SMALLEST_BRAIN:
        raise BadDataError(
            f"{path}: the brain mask holds {volume:.0f} ml of the T1-weighted image, too little "
            "for a brain",
            "give the mask that belongs to the image, or remove it to have the brain extracted",
        )
    if not PLAUSIBLE_BRAIN[0] <= volume <= PLAUSIBLE_BRAIN[1]:
        told.notes.append(
            f"{path.name}: the brain mask has {volume:.0f} ml, unusual for a brain: look at it."
        )
    told.details["BrainMask"] = path.name
    return mask


def _find_brain(head: Volume, path: Path, told: Told) -> tuple[Volume, Volume]:
    """Correct the bias of an image without mask, and find its brain."""
    with naming(path):
        if looks_extracted(head):
            mask = Volume(cleaned_mask(Volume(head.data > 0, head.affine), 2.0), head.affine)
            told.details["BrainMask"] = "voxels above 0"
            told.notes.append(f"{path.name}: brain-extracted already; its voxels above 0 are used.")
        else:
            bright = Volume(head.data > otsu(head.data.ravel()), head.affine)
            head = bias_corrected(head, bright)
            mask = Volume(extract_brain(head), head.affine)
            told.details["BrainMask"] = "extracted here"
            told.notes.append(f"{path.name}: the brain was extracted here.")
    told.details["BiasCorrection"] = "N4"
    return bias_corrected(head, mask), mask

"""The series as engines take it: chosen volumes, cut to the brain, on a coarser grid if wanted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from bsym_bids.dwi.records import PreparedDwi
from bsym_bids.dwi.series import SeriesWriter, save_image
from bsym_bids.dwi.transforms import Volume, bounds, coarsened, resample
from bsym_bids.errors import BadDataError

# Voxels of less than this share of the wanted volume are brought to the coarser grid; interpolating
# for less than that would only blur.
_FINE = 0.7
_MARGIN = 2  # voxels left around the brain


@dataclass(frozen=True)
class BrainGrid:
    """The part of a series that holds the brain, and the grid that is fitted on.

    Attributes
    ----------
    corner, shape : tuple of int
        First voxel and size of the part.
    affine : ndarray, shape (4, 4)
        Of the part, on the grid of the series.
    mask : ndarray of bool
        Brain, on the grid that is fitted on.
    fitted_affine : ndarray, shape (4, 4)
        Of the grid that is fitted on: ``affine``, or a coarser one with the same axes.
    """

    corner: tuple[int, int, int]
    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    mask: NDArray[np.bool_]
    fitted_affine: NDArray[np.float64]

    @property
    def is_coarsened(self) -> bool:
        """Whether volumes are resampled."""
        return not np.array_equal(self.fitted_affine, self.affine)

    @property
    def voxel_size(self) -> float:
        """Edge in mm of a cube with the volume of a fitted voxel."""
        return float(abs(np.linalg.det(self.fitted_affine[:3, :3])) ** (1 / 3))

    def place(self, volume: NDArray) -> NDArray[np.float32]:
        """Bring one volume of the series to the grid that is fitted on."""
        part = tuple(slice(c, c + n) for c, n in zip(self.corner, self.shape, strict=True))
        cut = Volume(np.asarray(volume[part], dtype=np.float32), self.affine)
        if not self.is_coarsened:
            return cut.data
        return coarsened(cut, self.mask.shape, self.fitted_affine, self.voxel_size).data


def brain_grid(dwi: PreparedDwi, voxel_size: float | None) -> BrainGrid:
    """Find the part of a series that holds the brain.

    Parameters
    ----------
    dwi : PreparedDwi
        The series.
    voxel_size : float, optional
        Edge in mm of the voxels to fit on, if those of the series are clearly smaller.

    Raises
    ------
    BadDataError
        The mask is empty, not on the grid of the series, or so thin that nothing of it is left on
        the coarser one.
    """
    image = nib.load(dwi.mask)
    mask = np.asanyarray(image.dataobj) > 0
    if mask.shape != nib.load(dwi.image).shape[:3]:
        raise BadDataError(
            f"{dwi.mask}: is not on the grid of {dwi.image}",
            hint="give the mask that belongs to the series",
        )
    if not mask.any():
        raise BadDataError(
            f"{dwi.mask}: the brain mask is empty", hint="make it again, or remove it"
        )
    low, high = bounds(mask)
    corner = np.maximum(low - _MARGIN, 0)
    shape = np.minimum(high + _MARGIN + 1, mask.shape) - corner
    affine = np.array(image.affine, dtype=np.float64)
    affine[:3, 3] += affine[:3, :3] @ corner
    part = mask[tuple(slice(c, c + n) for c, n in zip(corner, shape, strict=True))]
    grid = BrainGrid(_three(corner), _three(shape), affine, part, affine)
    if voxel_size is None or grid.voxel_size**3 >= _FINE * voxel_size**3:
        return grid
    grid = _coarser(grid, voxel_size)
    if not grid.mask.any():
        raise BadDataError(
            f"{dwi.mask}: nothing of the brain mask is left in voxels of {voxel_size:g} mm",
            hint="see that it is the mask of a brain",
        )
    return grid


def _coarser(grid: BrainGrid, voxel_size: float) -> BrainGrid:
    """Return a grid of cubes with the same axes, edges and centre."""
    zooms = np.linalg.norm(grid.affine[:3, :3], axis=0)
    shape = np.maximum(np.ceil(np.array(grid.shape) * zooms / voxel_size), 1).astype(int)
    affine = grid.affine.copy()
    affine[:3, :3] *= voxel_size / zooms
    centre = grid.affine[:3, :3] @ ((np.array(grid.shape) - 1) / 2) + grid.affine[:3, 3]
    affine[:3, 3] = centre - affine[:3, :3] @ ((shape - 1) / 2)
    mask = resample(Volume(grid.mask.astype(np.float32), grid.affine), _three(shape), affine)
    return BrainGrid(grid.corner, grid.shape, grid.affine, mask.data > 0.5, affine)


def _three(values: Sequence[int] | NDArray) -> tuple[int, int, int]:
    first, second, third = (int(value) for value in values)
    return first, second, third


def read_volumes(path: str, volumes: NDArray[np.intp]) -> Iterator[NDArray]:
    """Yield some volumes of a series in order, one at a time."""
    image = nib.load(path, keep_file_open=True)  # compressed files can only be read forward
    for index in volumes:
        yield np.asanyarray(image.dataobj[..., int(index)])


def write_fitted_series(
    dwi: PreparedDwi, grid: BrainGrid, volumes: NDArray[np.intp], image: Path, mask: Path
) -> None:
    """Write the chosen volumes on the grid that is fitted on, uncompressed, and the mask."""
    with SeriesWriter(image, grid.mask.shape, grid.fitted_affine) as writer:
        for volume in read_volumes(dwi.image, volumes):
            writer.append(np.maximum(grid.place(volume), 0))
    save_image(mask, grid.mask, grid.fitted_affine)


def masked_signals(
    dwi: PreparedDwi, grid: BrainGrid, volumes: NDArray[np.intp]
) -> NDArray[np.float32]:
    """Return the chosen volumes inside the mask, (voxels, volumes), on the fitted grid."""
    out = np.empty((int(grid.mask.sum()), len(volumes)), np.float32)
    for column, volume in enumerate(read_volumes(dwi.image, volumes)):
        out[:, column] = np.maximum(grid.place(volume)[grid.mask], 0)
    return out

"""The atlas on voxel grids: nearest neighbour onto any grid of its two volume spaces."""

from __future__ import annotations

from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bsym_bids.atlas.table import LABEL, N_ROIS, SCALE, folder
from bsym_bids.errors import BadDataError

#: Spaces in which the atlas has a volume of its own.
SPACES = ("MNI152NLin2009cAsym", "MNI152NLin6Asym")
RESOLUTIONS = (1, 2)
# Half-way cases go to the higher index; the margin keeps rounding errors from deciding them.
_TIE = 1e-4


def volume_path(space: str, resolution: int = 1) -> Path:
    """Return the packaged label volume of a space at 1 or 2 mm."""
    if space not in SPACES or resolution not in RESOLUTIONS:
        raise BadDataError(
            f"the atlas has no volume in space {space!r} at {resolution} mm",
            hint=f"spaces: {', '.join(SPACES)}; resolutions: 1 and 2 mm",
        )
    name = f"tpl-{space}_atlas-{LABEL}_scale-{SCALE}_res-{resolution}_dseg.nii.gz"
    return folder() / name


@lru_cache(maxsize=4)
def _volume(space: str, resolution: int) -> tuple[NDArray[np.uint16], NDArray[np.float64]]:
    """Read a packaged volume; the array is in Fortran order, as the file is."""
    import nibabel as nib
    from isal import igzip  # a third of the time that nibabel takes with zlib

    with igzip.open(volume_path(space, resolution)) as file:
        image = nib.Nifti1Image.from_stream(file)
        return np.asarray(image.dataobj, dtype=np.uint16), np.asarray(image.affine)


@cache
def roi_volumes() -> NDArray[np.float64]:
    """Return the volume of each ROI in the packaged 1 mm volume of MNI152NLin2009cAsym.

    Returns
    -------
    ndarray, shape (450,)
        In mm3. Read-only.
    """
    labels, affine = _volume(SPACES[0], 1)
    voxels = np.bincount(labels.ravel(order="K"), minlength=N_ROIS + 1)[1:]
    volumes = voxels * abs(np.linalg.det(affine[:3, :3]))
    volumes.setflags(write=False)
    return volumes


def labels_on_grid(
    shape: tuple[int, int, int], affine: NDArray[np.floating], space: str
) -> NDArray[np.uint16]:
    """Return the atlas on a voxel grid, by nearest neighbour.

    A grid whose voxels coincide with those of the packaged 2 mm volume (whatever its field of view
    or orientation) takes its labels from that; every other grid from the 1 mm volume.

    Parameters
    ----------
    shape : tuple of int
        Voxels along each axis.
    affine : ndarray, shape (4, 4)
        From voxel indices to mm, any orientation.
    space : str
        One of `SPACES`.

    Returns
    -------
    ndarray of uint16, shape ``shape``
        ROI index, 0 outside of all ROIs; in Fortran order, as images lie on disk.
    """
    affine = np.asarray(affine, dtype=np.float64)
    for resolution in (2, 1):
        atlas, atlas_affine = _volume(space, resolution)
        to_atlas = np.linalg.inv(atlas_affine) @ affine
        if resolution == 1 or _same_lattice(to_atlas):
            break
    if np.allclose(to_atlas[:3, :3] - np.diag(np.diag(to_atlas)[:3]), 0, atol=1e-6):
        return _along_axes(atlas, shape, to_atlas)
    return _by_slabs(atlas, shape, to_atlas)


def roi_voxels_on_lattice(affine: NDArray[np.floating], space: str) -> NDArray[np.int64]:
    """Count the voxels that each ROI has on a lattice of unlimited extent.

    Parameters
    ----------
    affine : ndarray, shape (4, 4)
        From voxel indices to mm.
    space : str
        One of `SPACES`.

    Returns
    -------
    ndarray of int, shape (450,)
        Voxels of each ROI.
    """
    affine = np.asarray(affine, dtype=np.float64)
    atlas, atlas_affine = _volume(space, 2)  # good enough, and small, for finding the extent
    occupied = [np.flatnonzero(atlas.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    box = np.array([[o[0] - 2, o[-1] + 2] for o in occupied], dtype=np.float64)
    corners = np.stack(np.meshgrid(*box, indexing="ij"), axis=-1).reshape(-1, 3)
    to_lattice = np.linalg.inv(affine) @ atlas_affine
    voxels = corners @ to_lattice[:3, :3].T + to_lattice[:3, 3]
    first = np.floor(voxels.min(axis=0)).astype(int)
    last = np.ceil(voxels.max(axis=0)).astype(int)
    shifted = affine.copy()
    shifted[:3, 3] += affine[:3, :3] @ first
    labels = labels_on_grid(tuple(last - first + 1), shifted, space)
    return np.bincount(labels.ravel(), minlength=N_ROIS + 1)[1:]


def _same_lattice(to_atlas: NDArray[np.float64]) -> bool:
    """Tell whether voxel centres fall on voxel centres, one to one."""
    whole = np.allclose(to_atlas[:3], np.round(to_atlas[:3]), atol=1e-3)
    return bool(whole and np.isclose(abs(np.linalg.det(to_atlas[:3, :3])), 1))


def _nearest(coordinates: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.floor(coordinates + 0.5 + _TIE).astype(np.int64)


def _along_axes(
    atlas: NDArray[np.uint16], shape: tuple[int, int, int], to_atlas: NDArray[np.float64]
) -> NDArray[np.uint16]:
    """Look labels up axis by axis, where the axes of both grids are parallel."""
    labels = np.zeros(shape, dtype=np.uint16, order="F")
    inside = []
    found = atlas.T  # in the order of memory, which is several times faster
    for axis, size in enumerate(shape):
        index = _nearest(to_atlas[axis, axis] * np.arange(size) + to_atlas[axis, 3])
        valid = np.flatnonzero((index >= 0) & (index < atlas.shape[axis]))
        if not valid.size:
            return labels
        inside.append(slice(valid[0], valid[-1] + 1))  # the index rises or falls, so no gaps
        found = found.take(index[valid], axis=2 - axis)
    labels[tuple(inside)] = found.T
    return labels


def _by_slabs(
    atlas: NDArray[np.uint16], shape: tuple[int, int, int], to_atlas: NDArray[np.float64]
) -> NDArray[np.uint16]:
    """Look labels up voxel by voxel, one slab at a time, for oblique or permuted axes."""
    labels = np.zeros(shape, dtype=np.uint16, order="F")
    plane = np.stack(np.meshgrid(*map(np.arange, shape[:2]), indexing="ij"), axis=-1)
    in_plane = plane @ to_atlas[:3, :2].T + to_atlas[:3, 3]
    limits = np.array(atlas.shape)
    for k in range(shape[2]):
        index = _nearest(in_plane + k * to_atlas[:3, 2])
        inside = ((index >= 0) & (index < limits)).all(axis=-1)
        labels[inside, k] = atlas[tuple(index[inside].T)]
    return labels

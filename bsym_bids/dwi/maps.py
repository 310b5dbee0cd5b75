"""Images of a diffusion scan that are there to be looked at."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from bsym_bids.dwi.gradients import image_axes, read_gradients
from bsym_bids.dwi.orientation import principal_directions
from bsym_bids.dwi.records import PreparedDwi
from bsym_bids.dwi.series import save_image
from bsym_bids.dwi.tracks import Streamlines

#: Points of a streamline are taken to be no further apart than this share of a voxel.
_SPACING = 0.25


def with_coloured_anisotropy(dwi: PreparedDwi, work: Path, *, threads: int) -> PreparedDwi:
    """Write fractional anisotropy by direction, and name it in the record.

    Parameters
    ----------
    dwi : PreparedDwi
        A series whose gradients were checked.
    work : Path
        Folder for the image.
    threads : int
        Threads; the result is the same for any number.

    Returns
    -------
    PreparedDwi
        With ``colour_fa``: the absolute components of the tensor's principal direction in the
        world (x, y, z) times fractional anisotropy (Pajevic & Pierpaoli 1999,
        doi:10.1002/(SICI)1522-2594(199909)42:3<526::AID-MRM15>3.0.CO;2-J), 0 outside of the mask.
    """
    affine = np.asarray(nib.load(dwi.image).affine)
    gradients, _ = read_gradients(Path(dwi.bval), Path(dwi.bvec), nib.load(dwi.image).shape[3])
    mask = np.asanyarray(nib.load(dwi.mask).dataobj) > 0
    directions, anisotropy = principal_directions(dwi, gradients, affine, mask, threads)
    colours = np.abs(directions @ image_axes(affine).T) * np.clip(anisotropy, 0, 1)[..., None]
    out = work / "colour_fa.nii"
    save_image(out, colours, affine)
    return replace(dwi, colour_fa=str(out))


def add_track_density(
    density: NDArray[np.uint32], streamlines: Streamlines, affine: NDArray[np.float64]
) -> None:
    """Count streamlines in each voxel, each once however often it comes by.

    Track density (Calamante et al. 2010, doi:10.1016/j.neuroimage.2010.07.024): lines are straight
    between points, and looked up at steps of a quarter of a voxel or less.

    Parameters
    ----------
    density : ndarray, shape (X, Y, Z)
        What is added to, in place.
    streamlines : Streamlines
        Points in mm.
    affine : ndarray, shape (4, 4)
        From its voxel indices to mm.
    """
    to_voxel = np.linalg.inv(affine)
    points = streamlines.points @ to_voxel[:3, :3].T + to_voxel[:3, 3]
    owner = np.repeat(np.arange(len(streamlines)), np.diff(streamlines.offsets))
    same = owner[1:] == owner[:-1]
    starts, steps = points[:-1][same], np.diff(points, axis=0)[same]
    longest = np.abs(steps).max(initial=0)
    n_parts = max(1, int(np.ceil(longest / _SPACING)))
    found = [_visits(points, owner, density.shape)]
    for part in range(1, n_parts):
        found.append(_visits(starts + steps * (part / n_parts), owner[:-1][same], density.shape))
    visits = np.unique(np.concatenate(found))
    counts = np.bincount(visits % density.size, minlength=density.size)
    density += counts.reshape(density.shape).astype(density.dtype)


def _visits(
    points: NDArray[np.floating], owner: NDArray[np.intp], shape: tuple[int, ...]
) -> NDArray[np.int64]:
    """Return which streamline comes by which voxel, as one number; each pair once."""
    voxels = np.rint(points).astype(np.int64)
    inside = ((voxels >= 0) & (voxels < shape)).all(axis=1)
    flat = np.ravel_multi_index(tuple(voxels[inside].T), shape)
    visits = owner[inside] * int(np.prod(shape)) + flat
    # Most neighbours are in one voxel: far fewer are left to be sorted.
    return visits[np.concatenate([[True], visits[1:] != visits[:-1]])] if len(visits) else visits

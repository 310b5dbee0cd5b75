"""Denoising of diffusion series by principal components, a few slices at a time.

Marchenko-Pastur PCA (Veraart et al. 2016, doi:10.1016/j.neuroimage.2016.08.016), by dwidenoise of
MRtrix3 where that is installed, else by DIPY. Only the brain and what is near it is denoised. A
slab with as many slices around it as patches reach gives the same as the whole series, in a memory
that doesn't grow with it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bsym_bids.dwi.commands import find_command, run
from bsym_bids.dwi.series import SeriesWriter, create_series, read_volumes, save_image, write_slab
from bsym_bids.dwi.tools import mrtrix3_version
from bsym_bids.dwi.transforms import bounds
from bsym_bids.pool import Workers

#: mm; what is no further from the brain is denoised as well, should the mask be too small.
AROUND_BRAIN_MM = 5.0
# A slab has so many slices, fewer where with what is around them they exceed the bytes.
_SLICES = (4, 8)
_SLAB_BYTES = 128_000_000
_DIPY_RADIUS = 2  # voxels; of the patches of DIPY, which does not fit it to the series

Volumes = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Method:
    """A program that denoises.

    Attributes
    ----------
    tool, version : str
        What it is.
    radius : int
        Of its patches, in voxels.
    averages : bool
        Whether a voxel becomes the mean over all patches that it is in, or is the middle of one.
    denoise : callable
        From data (x, y, z, V), mask (x, y, z) of the middles of patches, radius, and a folder for
        its files, to denoised data, zero where there is no patch, and the noise (x, y, z).
    """

    tool: str
    version: str
    radius: int
    averages: bool
    denoise: Callable[[Volumes, Mask, int, Path], tuple[Volumes, Volumes]]

    @property
    def overlap(self) -> int:
        """How far outside of a slab the middles of patches lie that decide what is in it."""
        return self.radius if self.averages else 0

    @property
    def reach(self) -> int:
        """How far outside of a slab there is data that decides what is in it."""
        return self.radius + self.overlap

    def part(self, start: int, stop: int, length: int) -> slice:
        """Return what decides the voxels from ``start`` to ``stop`` along an axis.

        dwidenoise moves a patch that would stick out of the image inside, so that at least a whole
        one is needed there.
        """
        whole = 2 * self.radius + 1
        first = min(start - self.reach, length - whole)
        last = max(stop + self.reach, whole)
        return slice(max(first, 0), min(last, length))


def choose_method(n_volumes: int) -> Method:
    """Return dwidenoise where it is installed, else DIPY."""
    if find_command("dwidenoise"):
        radius = patch_radius(n_volumes)
        version = mrtrix3_version("dwidenoise")
        return Method("dwidenoise", version, radius, False, _denoise_with_mrtrix3)
    import dipy

    tool = "dipy.denoise.localpca.mppca"
    return Method(tool, dipy.__version__, _DIPY_RADIUS, True, _denoise_with_dipy)


def patch_radius(n_volumes: int) -> int:
    """Return the radius of the smallest cube with at least as many voxels as there are volumes.

    It is what dwidenoise takes by itself.
    """
    radius = 1
    while (2 * radius + 1) ** 3 < n_volumes:
        radius += 1
    return radius


def denoise_series(
    image: Path, out: Path, noise: Path, brain: Mask, pool: Workers
) -> dict[str, Any]:
    """Denoise a series of the work folder.

    Parameters
    ----------
    image : Path
        The series (X, Y, Z, V).
    out, noise : Path
        Where the denoised series and the map of the noise's standard deviation (X, Y, Z) go.
    brain : ndarray of bool, shape (X, Y, Z)
        Outside of it and of its surroundings the series stays as it is, and the noise is 0.
    pool : Workers
        Where slabs are denoised; the result is the same for any number of processes.

    Returns
    -------
    dict
        What was done with what, for the sidecar.

    Raises
    ------
    BsymError
        The command failed, or a worker was killed.
    """
    data, affine = read_volumes(image), nib.load(image).affine
    method = choose_method(data.shape[3])
    wanted = surroundings(brain, affine)
    columns = columns_of(wanted, method)
    slice_bytes = 4 * wanted[columns].shape[0] * wanted[columns].shape[1] * data.shape[3]
    thickness = slab_thickness(slice_bytes, method.reach)
    starts = range(0, data.shape[2], thickness)
    create_series(out, data.shape, affine)
    arguments = (repeat(image), repeat(out), starts, repeat(thickness), repeat(columns))
    levels = list(pool.map(denoise_slab, *arguments, repeat(wanted), repeat(method)))
    save_image(noise, np.concatenate(levels, axis=2), affine)
    return {
        "Tool": method.tool,
        "Version": method.version,
        "PatchRadius": method.radius,
        "Region": f"brain and {AROUND_BRAIN_MM:g} mm around it",
    }


def surroundings(brain: Mask, affine: NDArray[np.float64]) -> Mask:
    """Return the brain and what is no further from it than `AROUND_BRAIN_MM`."""
    if not brain.any():
        return brain
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    return ndimage.distance_transform_edt(~brain, sizes) <= AROUND_BRAIN_MM


def columns_of(wanted: Mask, method: Method) -> tuple[slice, slice]:
    """Return the part of all slices that decides what is wanted."""
    if not wanted.any():
        return slice(0), slice(0)
    low, high = bounds(wanted)
    first, second = (
        method.part(int(low[axis]), int(high[axis]) + 1, wanted.shape[axis]) for axis in (0, 1)
    )
    return first, second


def slab_thickness(slice_bytes: int, reach: int) -> int:
    """Return how many slices are to be denoised at a time."""
    slices = _SLAB_BYTES // max(slice_bytes, 1) - 2 * reach
    return int(np.clip(slices, *_SLICES))


def denoise_slab(
    image: Path,
    out: Path,
    start: int,
    thickness: int,
    columns: tuple[slice, slice],
    wanted: Mask,
    method: Method,
) -> Volumes:
    """Denoise the slices from ``start`` on where ``wanted``; return the noise in them."""
    data = read_volumes(image)
    stop = min(start + thickness, data.shape[2])
    slab = np.array(data[:, :, start:stop])
    levels = np.zeros(slab.shape[:3], dtype=np.float32)
    if wanted[:, :, start:stop].any():
        part = method.part(start, stop, data.shape[2])
        around, first = (*columns, part), part.start
        inner = np.s_[:, :, start - first : stop - first]
        middles = wanted[around].copy()
        middles[:, :, : max(start - first - method.overlap, 0)] = False
        middles[:, :, stop - first + method.overlap :] = False
        with tempfile.TemporaryDirectory(dir=out.parent, prefix="slab") as folder:
            clean, sigma = method.denoise(
                np.array(data[around]), middles, method.radius, Path(folder)
            )
        known = wanted[around][inner] & clean[inner].any(axis=-1)
        slab[columns][known] = clean[inner][known]
        levels[columns][known] = sigma[inner][known]
    write_slab(out, start, slab)
    return levels


def _denoise_with_mrtrix3(
    part: Volumes, middles: Mask, radius: int, folder: Path
) -> tuple[Volumes, Volumes]:
    series, mask, clean, sigma = (
        folder / f"{name}.nii" for name in ("series", "mask", "clean", "sigma")
    )
    with SeriesWriter(series, part.shape[:3], np.eye(4)) as writer:
        for index in range(part.shape[3]):
            writer.append(part[..., index])
    save_image(mask, middles, np.eye(4))
    extent = ",".join([str(2 * radius + 1)] * 3)
    command = ["dwidenoise", series, clean, "-mask", mask, "-noise", sigma, "-extent", extent]
    run([*command, "-nthreads", "0", "-quiet"], folder=folder)
    return np.array(read_volumes(clean)), np.array(read_volumes(sigma)[..., 0])


def _denoise_with_dipy(
    part: Volumes, middles: Mask, radius: int, folder: Path
) -> tuple[Volumes, Volumes]:
    from dipy.denoise.localpca import mppca

    if min(part.shape[:3]) < 2 * radius + 1:  # no patch fits
        return np.zeros_like(part), np.zeros(part.shape[:3], dtype=np.float32)
    with np.errstate(invalid="ignore"):  # where no patch is it divides 0 by 0
        clean, sigma = mppca(part, mask=middles, patch_radius=radius, return_sigma=True)
    return np.nan_to_num(clean), np.nan_to_num(sigma).astype(np.float32)

"""Where streamlines begin and end when there is no tissue: bounds by anisotropy."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import scipy  # of which parts are loaded when they are used
from numpy.typing import NDArray

from bsym_bids.dwi.presets import Preset
from bsym_bids.dwi.series import save_image
from bsym_bids.errors import BadDataError


def write_fa_mask(fa: Path, preset: Preset, out: Path) -> Path:
    """Write the mask in which streamlines stay: where FA is at least ``preset.fa_stop``.

    Parameters
    ----------
    fa : Path
        Fractional anisotropy, 0 outside of the brain.
    preset : Preset
        With the threshold.
    out : Path
        The mask.

    Returns
    -------
    Path
        ``out``.
    """
    values, affine = _read(fa)
    save_image(out, values >= preset.fa_stop, affine)
    return out


def write_fa_seeds(fa: Path, preset: Preset, out: Path) -> Path:
    """Write the mask in which streamlines begin.

    That is where FA is at least ``preset.fa_seed`` and no edge of the brain within two voxels:
    there noise passes for anisotropy.

    Parameters
    ----------
    fa : Path
        Fractional anisotropy, 0 outside of the brain.
    preset : Preset
        With the threshold.
    out : Path
        The mask.

    Returns
    -------
    Path
        ``out``.

    Raises
    ------
    BadDataError
        Nowhere is the anisotropy high enough.
    """
    values, affine = _read(fa)
    inner = scipy.ndimage.binary_erosion(values > 0, iterations=2)
    seeds = inner & (values >= preset.fa_seed)
    if not seeds.any():
        raise BadDataError(
            f"{fa}: no voxel in the brain has an anisotropy of {preset.fa_seed:g} or more, so that "
            "no streamline can begin",
            hint="see that gradients and mask belong to the series; fa_seed of the preset is the "
            "threshold",
        )
    save_image(out, seeds, affine)
    return out


def _read(fa: Path) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    image = nib.load(fa)
    values = np.nan_to_num(np.asanyarray(image.dataobj, dtype=np.float32))
    return values, np.asarray(image.affine)

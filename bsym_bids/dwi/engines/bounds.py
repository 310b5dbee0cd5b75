"""Where streamlines begin and end when there is no tissue: bounds by anisotropy."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from bsym_bids.dwi.presets import Preset
from bsym_bids.dwi.series import save_image
from bsym_bids.errors import BadDataError


def write_fa_bounds(fa: Path, preset: Preset, work: Path) -> dict[str, str]:
    """Write the masks in which streamlines stay and begin.

    They stay where FA is at least ``preset.fa_stop``, and begin where it is at least
    ``preset.fa_seed`` and no edge of the brain is next: there noise passes for anisotropy.

    Parameters
    ----------
    fa : Path
        Fractional anisotropy, 0 outside of the brain.
    preset : Preset
        With both thresholds.
    work : Path
        Folder for the masks.

    Returns
    -------
    dict
        Paths of ``mask`` and ``seeds``.

    Raises
    ------
    BadDataError
        Nowhere is the anisotropy high enough.
    """
    image = nib.load(fa)
    values = np.nan_to_num(np.asanyarray(image.dataobj, dtype=np.float32))
    inner = ndimage.binary_erosion(values > 0, iterations=2)
    seeds = inner & (values >= preset.fa_seed)
    if not seeds.any():
        raise BadDataError(
            f"{fa}: no voxel in the brain has an anisotropy of {preset.fa_seed:g} or more, so that "
            "no streamline can begin",
            hint="see that gradients and mask belong to the series; fa_seed of the preset is the "
            "threshold",
        )
    paths = {"mask": work / "tracking_mask.nii", "seeds": work / "seeds.nii"}
    save_image(paths["mask"], values >= preset.fa_stop, image.affine)
    save_image(paths["seeds"], seeds, image.affine)
    return {key: str(path) for key, path in paths.items()}

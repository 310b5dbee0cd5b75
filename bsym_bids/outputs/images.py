"""What an output file can hold: images, copied or made of arrays."""

from __future__ import annotations

import gzip
import shutil
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

_NO_EXTENSION = bytes(4)
_STEPS = 32000  # of the range of real numbers, each side of zero


@dataclass(frozen=True, eq=False)
class Volume:
    """An image of an array; equal arrays give equal files.

    Real numbers are kept as 16-bit integers with a slope, to 1/32000 of the largest: enough to look
    at, and a third of the size.

    Attributes
    ----------
    values : ndarray, shape (X, Y, Z) or (X, Y, Z, V)
        Small whole numbers (uint8, int16, ...), truth values, or finite real numbers.
    affine : ndarray, shape (4, 4)
        From voxel indices to mm.
    """

    values: NDArray
    affine: NDArray[np.float64]

    def write(self, path: Path) -> None:
        """Write a ``.nii.gz``."""
        values, slope = self.values, 1.0
        if values.dtype == bool:
            values = values.astype(np.uint8)
        elif values.dtype.kind == "f":
            slope = float(np.abs(values).max(initial=0)) / _STEPS or 1.0
            values = np.rint(values / slope).astype(np.int16)
        # By hand: nibabel would choose slope and intercept anew, and zero would not stay zero.
        header = nib.Nifti1Image(values, self.affine).header
        header.set_xyzt_units("mm", "sec")  # the validator wants a unit of the fourth axis
        header.set_slope_inter(slope, 0)
        header["vox_offset"] = header.sizeof_hdr + len(_NO_EXTENSION)
        data = header.binaryblock + _NO_EXTENSION + values.tobytes(order="F")
        with path.open("wb") as file:
            file.write(_compressed(data))


@dataclass(frozen=True)
class FileCopy:
    """A file that is there already; a NIfTI image is compressed where its name says so.

    Attributes
    ----------
    source : Path
        What to copy.
    """

    source: Path

    def write(self, path: Path) -> None:
        """Write the content to ``path``."""
        if not path.name.removesuffix(".part").endswith(".gz") or self.source.suffix == ".gz":
            shutil.copyfile(self.source, path)
            return
        image = nib.load(self.source)
        with path.open("wb") as file:
            file.write(_compressed(image.to_bytes()))


def _compressed(data: bytes) -> bytes:
    """Compress without a time stamp, so that equal data give equal files."""
    return gzip.compress(data, compresslevel=6, mtime=0)

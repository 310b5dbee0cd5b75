"""First principal component of each ROI, from a temporary file instead of memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from bsym_bids.bold.volumes import fill
from bsym_bids.errors import OutputIOError


def first_component(voxels: NDArray[np.float64], mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the first principal component of some voxels.

    With the centred series X (V, T) = U S W^T it is S[0] W[0] / sqrt(V), up to sign: the series in
    units of the image whose outer product with equal weights would carry the component's variance.

    Parameters
    ----------
    voxels : ndarray, shape (V, T)
        Series by voxel; voxels with samples that are not finite are left out.
    mean : ndarray, shape (T,)
        Series with which the result is to correlate positively.

    Returns
    -------
    ndarray, shape (T,)
        Scores divided by the square root of the number of voxels; zero when nothing varies, NaN
        when no voxel is left.
    """
    voxels = voxels[np.isfinite(voxels).all(axis=1)]
    if not len(voxels):
        return np.full(len(mean), np.nan)
    voxels = voxels - voxels.mean(axis=1, keepdims=True)
    # Of the two Gram matrices the smaller one has all that is needed.
    if len(voxels) <= voxels.shape[1]:
        scores = _leading(voxels @ voxels.T)[1] @ voxels
    else:
        value, vector = _leading(voxels.T @ voxels)
        scores = vector * np.sqrt(max(value, 0.0))
    sign = np.sign(scores @ (mean - np.nanmean(mean))) or 1.0
    return sign * scores / np.sqrt(len(voxels))


def _leading(gram: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """Return the largest eigenvalue of a symmetric matrix and its vector."""
    from scipy import linalg  # here, since means go without it and it takes long to import

    last = len(gram) - 1
    values, vectors = linalg.eigh(gram, subset_by_index=[last, last], check_finite=False)
    return float(values[0]), vectors[:, 0]


class Spill:
    """The gathered voxels of every volume in a file, as they are stored in the image.

    Parameters
    ----------
    file : binary file
        Where the volumes are written, one after the other.
    dtype : numpy.dtype
        Type of the image.
    width : int
        Voxels gathered from each volume.
    """

    def __init__(self, file: BinaryIO, dtype: np.dtype, width: int) -> None:
        self._file = file
        self._dtype = dtype
        self._width = width
        self._n_volumes = 0

    def add(self, gathered: NDArray) -> None:
        """Append the voxels of one volume."""
        try:
            self._file.write(gathered.view(np.uint8))
        except OSError as error:
            raise _no_room(error) from error
        self._n_volumes += 1

    def read(self, part: slice) -> NDArray:
        """Return the series of some voxels, shape (V, T)."""
        rows = np.empty((self._n_volumes, part.stop - part.start), dtype=self._dtype)
        for t, row in enumerate(rows):
            self._file.seek((t * self._width + part.start) * self._dtype.itemsize)
            fill(self._file, row)
        return rows.T


@contextmanager
def open_spill(folder: str | Path | None, dtype: np.dtype, width: int) -> Iterator[Spill]:
    """Open a spill on an unnamed file that is gone when it is closed.

    Parameters
    ----------
    folder : str or Path or None
        Where; by default the system's folder for temporary files.
    dtype : numpy.dtype
        Type of the image.
    width : int
        Voxels gathered from each volume.

    Raises
    ------
    OutputIOError
        The folder cannot be written.
    """
    try:
        file = tempfile.TemporaryFile(dir=folder, prefix="parcellate-")  # noqa: SIM115 (below)
    except OSError as error:
        raise _no_room(error) from error
    with file:
        yield Spill(file, dtype, width)


def _no_room(error: OSError) -> OutputIOError:
    return OutputIOError(
        f"the temporary file of principal components cannot be written: {error}",
        "choose a work directory with room for the uncompressed series",
    )

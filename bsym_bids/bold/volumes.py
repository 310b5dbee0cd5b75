"""Reading a 4D NIfTI series volume by volume, without ever holding the series."""

from __future__ import annotations

import queue
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np
from isal import igzip, isal_zlib
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError, SpatialImage
from numpy.typing import NDArray

from bsym_bids.errors import BadDataError, InputMissingError

_GZIP_MAGIC = b"\x1f\x8b"
_READ_BYTES = 1 << 18
_TIME_UNITS = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6, "unknown": 1.0}
_COPY_AGAIN = "the file is damaged or incomplete: copy or make it again"


@dataclass(frozen=True)
class VolumeSeries:
    """A 4D image as it lies on disk.

    Attributes
    ----------
    path : Path
        The file.
    shape : tuple of int
        Voxels along x, y, z.
    n_volumes : int
        Number of volumes.
    affine : ndarray, shape (4, 4)
        From voxel indices to mm.
    dtype : numpy.dtype
        Type on disk, byte order included.
    offset : int
        Bytes before the first voxel.
    slope, intercept : float
        ``value = slope * stored + intercept``.
    repetition_time : float or None
        From the header, in seconds; None when absent or zero.
    """

    path: Path
    shape: tuple[int, int, int]
    n_volumes: int
    affine: NDArray[np.float64]
    dtype: np.dtype
    offset: int
    slope: float
    intercept: float
    repetition_time: float | None

    @property
    def voxels(self) -> int:
        """Voxels of one volume."""
        return int(np.prod(self.shape))


def load_image(path: Path) -> SpatialImage:
    """Open an image, explaining what can be wrong with it."""
    if not path.exists():
        hint = "check the path"
        if path.is_symlink():
            hint = "the link leads nowhere; in a datalad dataset: datalad get " + path.name
        raise InputMissingError(f"{path}: no such file", hint)
    try:
        return nib.load(path)
    except (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, zlib.error) as error:
        raise BadDataError(f"{path}: cannot be read as an image: {error}", _COPY_AGAIN) from error


def open_series(path: Path, image: SpatialImage) -> VolumeSeries:
    """Return the layout of a 4D NIfTI image.

    Raises
    ------
    BadDataError
        Not NIfTI, not 4D, without volumes, or of a type that is no number per voxel.
    """
    if not isinstance(image, nib.Nifti1Image | nib.Nifti2Image):
        raise BadDataError(f"{path}: is {type(image).__name__}, not NIfTI", "convert it to .nii.gz")
    if len(image.shape) != 4:
        raise BadDataError(
            f"{path}: has {len(image.shape)} dimensions, but a series has 4",
            "is this the whole BOLD series, not a single volume or a reference image?",
        )
    if 0 in image.shape:
        raise BadDataError(f"{path}: is empty, its shape is {image.shape}", _COPY_AGAIN)
    dtype = image.get_data_dtype()
    if dtype.kind not in "iuf":
        raise BadDataError(f"{path}: voxels are of type {dtype}, not numbers", "convert it")
    # The header of a loaded image says offset 0; the data object knows the right one.
    proxy = image.dataobj
    return VolumeSeries(
        path=path,
        shape=image.shape[:3],
        n_volumes=image.shape[3],
        affine=np.asarray(image.affine, dtype=np.float64),
        dtype=dtype,
        offset=int(proxy.offset),
        slope=float(proxy.slope),
        intercept=float(proxy.inter),
        repetition_time=_repetition_time(image),
    )


def _repetition_time(image: SpatialImage) -> float | None:
    step = float(image.header.get_zooms()[3])
    seconds = step * _TIME_UNITS.get(image.header.get_xyzt_units()[1], 0.0)
    return seconds if np.isfinite(seconds) and seconds > 0 else None


def stream(series: VolumeSeries) -> Iterator[NDArray]:
    """Yield each volume as a flat array in the order of the file (x fastest).

    One thread inflates the next volume while the caller works on the last one. The array is valid
    until the next one is asked for.

    Raises
    ------
    BadDataError
        The file is truncated or corrupt.
    """
    free: queue.Queue[NDArray] = queue.Queue()
    full: queue.Queue[NDArray | BaseException] = queue.Queue()
    stop = threading.Event()
    for _ in range(3):
        free.put(np.empty(series.voxels, dtype=series.dtype))
    reader = threading.Thread(target=_read_all, args=(series, free, full, stop), daemon=True)
    reader.start()
    try:
        for _ in range(series.n_volumes):
            volume = full.get()
            if isinstance(volume, BaseException):
                raise volume
            yield volume
            free.put(volume)
        end = full.get()  # the checksum stands after the last volume
        if isinstance(end, BaseException):
            raise end
    finally:
        stop.set()
        free.put(np.empty(0, dtype=series.dtype))
        reader.join()


def _read_all(
    series: VolumeSeries,
    free: queue.Queue[NDArray],
    full: queue.Queue[NDArray | BaseException],
    stop: threading.Event,
) -> None:
    """Fill free buffers with volumes until the end of the file, or until told to stop."""
    n_read = 0
    try:
        with _inflated(series.path) as file:
            _skip(file, series.offset)
            while n_read < series.n_volumes:
                buffer = free.get()
                if stop.is_set():
                    return
                if _fill(file, buffer) < buffer.nbytes:
                    raise EOFError("the data end here")
                full.put(buffer)
                n_read += 1
            while file.read(_READ_BYTES):
                pass
        full.put(np.empty(0, dtype=series.dtype))
    except (OSError, EOFError, zlib.error, isal_zlib.error) as error:
        reason = f"{series.path}: after {n_read} of {series.n_volumes} volumes: {error}"
        full.put(BadDataError(reason, _COPY_AGAIN))
    except BaseException as error:
        full.put(error)


@contextmanager
def _inflated(path: Path) -> Iterator[BinaryIO]:
    with path.open("rb") as raw:
        compressed = raw.read(2) == _GZIP_MAGIC
        raw.seek(0)
        if not compressed:
            yield raw
            return
        with igzip.GzipFile(fileobj=raw, mode="rb") as file:
            yield file


def _skip(file: BinaryIO, count: int) -> None:
    while count > 0:
        got = len(file.read(min(count, _READ_BYTES)))
        if not got:
            raise EOFError("the header ends here")
        count -= got


def _fill(file: BinaryIO, buffer: NDArray) -> int:
    """Read into the whole buffer and return the number of bytes that there were."""
    view = memoryview(buffer.view(np.uint8))
    done = 0
    while done < len(view):
        got = file.readinto(view[done : done + _READ_BYTES])
        if not got:
            break
        done += got
    return done

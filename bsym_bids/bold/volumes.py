"""Reading a series piece by piece, without ever holding all of it."""

from __future__ import annotations

import queue
import threading
import zlib
from collections.abc import Iterator, Sequence
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
# Larger reads take no less time (inflating is the limit) and push the output out of the cache.
_READ_BYTES = 1 << 18
_BUFFERS = 3  # one being filled, one being worked on, one between them
_TIME_UNITS = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6, "unknown": 1.0}
_COPY_AGAIN = "the file is damaged or incomplete: copy or make it again"
#: Seconds; a longer repetition time was written in milliseconds.
LONGEST_TR = 100.0
#: What reading a damaged image can raise.
READ_ERRORS = (OSError, EOFError, ValueError, zlib.error, isal_zlib.error)


@dataclass(frozen=True)
class StoredNumbers:
    """How the numbers of an image lie on disk.

    Attributes
    ----------
    path : Path
        The file.
    dtype : numpy.dtype
        Type on disk, byte order included.
    offset : int
        Bytes before the first number.
    slope, intercept : float
        ``value = slope * stored + intercept``.
    """

    path: Path
    dtype: np.dtype
    offset: int
    slope: float
    intercept: float

    @property
    def zero(self) -> float:
        """The stored number that stands for zero, the nearest one of integer types."""
        zero = -self.intercept / self.slope
        return zero if self.dtype.kind == "f" else round(zero)

    def values(self, stored: NDArray) -> NDArray[np.float64]:
        """Return what stored numbers stand for."""
        with np.errstate(invalid="ignore"):  # of NaN that signal
            return stored.astype(np.float64) * self.slope + self.intercept


@dataclass(frozen=True)
class VolumeSeries(StoredNumbers):
    """A 4D image as it lies on disk.

    Attributes
    ----------
    shape : tuple of int
        Voxels along x, y, z.
    n_volumes : int
        Number of volumes.
    affine : ndarray, shape (4, 4)
        From voxel indices to mm.
    repetition_time : float or None
        From the header, in seconds; None when absent or zero.
    """

    shape: tuple[int, int, int]
    n_volumes: int
    affine: NDArray[np.float64]
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
    except (ImageFileError, HeaderDataError, *READ_ERRORS) as error:
        reason = f"{path}: cannot be read as an image: {error}"
        raise BadDataError(reason, _compression_hint(path) or _COPY_AGAIN) from error


def _compression_hint(path: Path) -> str:
    """Say so when the name promises gzip and the content is not, or the other way round."""
    try:
        compressed = _starts_as_gzip(path)
    except OSError:
        return ""
    if compressed and path.suffix != ".gz":
        return "the content is gzip: name the file .nii.gz"
    if not compressed and path.suffix == ".gz":
        return "the content is not gzip: if it is plain NIfTI, name the file .nii"
    return ""


def stored_numbers(path: Path, image: SpatialImage) -> StoredNumbers:
    """Return how the numbers of a loaded NIfTI or CIFTI-2 image lie on disk."""
    # The header of a loaded image says offset 0; the data object knows the right one.
    proxy = image.dataobj
    if proxy.dtype.kind not in "iuf":
        raise BadDataError(
            f"{path}: is of type {proxy.dtype}, not one real number per sample",
            "convert it to integers or floating point numbers",
        )
    return StoredNumbers(path, proxy.dtype, proxy.offset, float(proxy.slope), float(proxy.inter))


def open_series(path: Path, image: SpatialImage) -> VolumeSeries:
    """Return the layout of a 4D NIfTI image.

    Raises
    ------
    BadDataError
        Not NIfTI, not 4D, without volumes, without a place in space, or of a type that is not
        one number per voxel.
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
    affine = np.asarray(image.affine, dtype=np.float64)
    if not np.isfinite(affine).all() or np.linalg.det(affine[:3, :3]) == 0:
        raise BadDataError(
            f"{path}: its affine has no inverse, so that no voxel has a place:\n{affine}",
            "make the image again, or repair sform and qform",
        )
    return VolumeSeries(
        **vars(stored_numbers(path, image)),
        shape=image.shape[:3],
        n_volumes=image.shape[3],
        affine=affine,
        repetition_time=_repetition_time(image),
    )


def _repetition_time(image: SpatialImage) -> float | None:
    step = float(image.header.get_zooms()[3])
    seconds = step * _TIME_UNITS.get(image.header.get_xyzt_units()[1], 0.0)
    return seconds if np.isfinite(seconds) and seconds > 0 else None


def stream(series: VolumeSeries) -> Iterator[NDArray]:
    """Yield each volume as a flat array in the order of the file (x fastest).

    As `read_pieces`: the array is valid until the next one is asked for.
    """
    return read_pieces(series, [series.voxels] * series.n_volumes)


def read_pieces(stored: StoredNumbers, sizes: Sequence[int]) -> Iterator[NDArray]:
    """Yield the numbers of a file in pieces, as they are stored.

    One thread inflates the next piece while the caller works on the last one. An array is valid
    until the next one is asked for.

    Parameters
    ----------
    stored : StoredNumbers
        The file and its type.
    sizes : sequence of int
        Numbers per piece; together all of the file.

    Raises
    ------
    BadDataError
        The file is truncated or corrupt.
    """
    free: queue.Queue[NDArray] = queue.Queue()
    full: queue.Queue[NDArray | BaseException] = queue.Queue()
    stop = threading.Event()
    for _ in range(_BUFFERS):
        free.put(np.empty(max(sizes), dtype=stored.dtype))
    arguments = (stored, sizes, free, full, stop)
    reader = threading.Thread(target=_read_all, args=arguments, daemon=True)
    reader.start()
    try:
        for size in sizes:
            buffer = full.get()
            if isinstance(buffer, BaseException):
                raise buffer
            yield buffer[:size]
            free.put(buffer)
        end = full.get()  # the checksum stands after the last piece
        if isinstance(end, BaseException):
            raise end
    finally:
        stop.set()
        free.put(np.empty(0, dtype=stored.dtype))
        reader.join()


def _read_all(
    stored: StoredNumbers,
    sizes: Sequence[int],
    free: queue.Queue[NDArray],
    full: queue.Queue[NDArray | BaseException],
    stop: threading.Event,
) -> None:
    """Fill free buffers until the end of the file, or until told to stop."""
    n_read = 0
    try:
        with opened(stored.path) as file:
            _skip(file, stored.offset)
            for size in sizes:
                buffer = free.get()
                if stop.is_set():
                    return
                fill(file, buffer[:size])
                full.put(buffer)
                n_read += 1
            while file.read(_READ_BYTES):
                pass
        full.put(np.empty(0, dtype=stored.dtype))
    except READ_ERRORS as error:
        reason = f"{stored.path}: after {n_read} of {len(sizes)} volumes or pieces: {error}"
        full.put(BadDataError(reason, _COPY_AGAIN))
    except BaseException as error:
        full.put(error)


def _starts_as_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == _GZIP_MAGIC


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading, inflated if it is gzip by content."""
    if not _starts_as_gzip(path):
        with path.open("rb") as file:
            yield file
        return
    with path.open("rb") as raw, igzip.GzipFile(fileobj=raw, mode="rb") as file:
        yield file


def fill(file: BinaryIO, array: NDArray) -> None:
    """Read as many bytes as a contiguous array has into it."""
    view = memoryview(array.reshape(-1).view(np.uint8))
    done = 0
    while done < len(view):
        got = file.readinto(view[done : done + _READ_BYTES])
        if not got:
            raise EOFError("the data end here")
        done += got


def _skip(file: BinaryIO, count: int) -> None:
    while count > 0:
        got = len(file.read(min(count, _READ_BYTES)))
        if not got:
            raise EOFError("the header ends here")
        count -= got

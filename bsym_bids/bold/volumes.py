"""Reading a series piece by piece, without ever holding all of it."""

from __future__ import annotations

import math
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
from nibabel.spatialimages import SpatialImage
from numpy.typing import NDArray

from bsym_bids.errors import BadDataError, InputMissingError
from bsym_bids.untrusted import open_regular

_GZIP_MAGIC = b"\x1f\x8b"
# Larger reads take no less time (inflating is the limit) and push the output out of the cache.
_READ_BYTES = 1 << 18
_BUFFERS = 3  # one being filled, one being worked on, one between them
_TIME_UNITS = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6, "unknown": 1.0}
_COPY_AGAIN = "the file is damaged or incomplete: copy or make it again"
#: Seconds; a longer repetition time was written in milliseconds, and none is shorter.
SHORTEST_TR, LONGEST_TR = 0.01, 100.0
#: Voxels along an axis, voxels of a volume, and volumes of a series: no image of MRI has more.
LONGEST_AXIS, MOST_VOXELS, MOST_VOLUMES = 2048, 1 << 29, 100_000
#: Grayordinates of the largest CIFTI file; the finest that there is has 170,494.
MOST_GRAYORDINATES = 1_000_000
#: mm; edges of voxels lie between.
SMALLEST_VOXEL, LARGEST_VOXEL = 0.05, 100.0
_FLATTEST = 1e-4  # volume of a voxel, relative to a cuboid of its edges: less has no inverse
_MOST_DEFLATED = 1032  # bytes that one byte of gzip can stand for
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
    """Open an image, explaining what can be wrong with it.

    Only the header is read. What it says is held against the size of the file, and against what
    images of MRI are like: what is read next can take no more memory than they do.

    Raises
    ------
    InputMissingError
        There is no such file.
    BadDataError
        It is no image, or its header says what cannot be.
    """
    if not path.exists():
        hint = "check the path"
        if path.is_symlink():
            hint = "the link leads nowhere; in a datalad dataset: datalad get " + path.name
        raise InputMissingError(f"{path}: no such file", hint)
    try:
        open_regular(path).close()
    except (OSError, ValueError) as error:
        raise BadDataError(f"{path}: cannot be read as an image: {error}", _COPY_AGAIN) from error
    try:
        image = nib.load(path)
    except Exception as error:  # nibabel and the parser of CIFTI raise what the bytes lead them to
        reason = f"{path}: cannot be read as an image: {error or type(error).__name__}"
        raise BadDataError(reason, _compression_hint(path) or _COPY_AGAIN) from error
    _check_size(path, image)
    return image


def _check_size(path: Path, image: SpatialImage) -> None:
    """Refuse a header that asks for more memory than an image of MRI can take."""
    shape = image.shape
    if isinstance(image, nib.Cifti2Image):
        is_possible = max(shape) <= MOST_GRAYORDINATES
    else:
        space, volumes = shape[:3], math.prod(shape[3:])
        is_possible = (
            max(space, default=0) <= LONGEST_AXIS
            and math.prod(space) <= MOST_VOXELS
            and volumes <= MOST_VOLUMES
        )
    if not is_possible or min(shape, default=0) < 0:
        raise BadDataError(
            f"{path}: its header says that it has the shape {tuple(map(int, shape))}, which no "
            "image of MRI has",
            _COPY_AGAIN,
        )
    needed = math.prod(map(int, shape)) * image.dataobj.dtype.itemsize
    size = path.stat().st_size
    before = int(getattr(image.dataobj, "offset", 0))
    if before < 0 or before + needed > _MOST_DEFLATED * max(size, 1):
        raise BadDataError(
            f"{path}: its header says that it holds {needed} bytes after the first {before}, but a "
            f"file of {size} bytes cannot hold so many",
            _COPY_AGAIN,
        )


def check_place(path: Path, affine: NDArray[np.float64]) -> None:
    """Refuse an affine under which voxels have no place, or no size that voxels have.

    Raises
    ------
    BadDataError
        It is not finite, has no inverse, or makes voxels that are too small or too large.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        sizes = np.linalg.norm(affine[:3, :3], axis=0)
        volume = abs(np.linalg.det(affine[:3, :3] / np.where(sizes > 0, sizes, 1)))
    if not np.isfinite(affine).all() or not (sizes > 0).all() or volume < _FLATTEST:
        raise BadDataError(
            f"{path}: its affine has no inverse, so that no voxel has a place:\n{affine}",
            "make the image again, or repair sform and qform",
        )
    if sizes.min() < SMALLEST_VOXEL or sizes.max() > LARGEST_VOXEL:
        text = " x ".join(f"{mm:.3g}" for mm in sizes)
        raise BadDataError(
            f"{path}: its voxels have edges of {text} mm, but {SMALLEST_VOXEL:g} to "
            f"{LARGEST_VOXEL:g} mm are possible",
            "the affine has to be in mm: make the image again, or repair sform and qform",
        )


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
    slope, intercept = float(proxy.slope), float(proxy.inter)
    if not (math.isfinite(slope) and math.isfinite(intercept) and slope != 0):
        raise BadDataError(
            f"{path}: its numbers are to be scaled by {slope} and {intercept}", _COPY_AGAIN
        )
    return StoredNumbers(path, proxy.dtype, int(proxy.offset), slope, intercept)


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
    check_place(path, affine)
    return VolumeSeries(
        **vars(stored_numbers(path, image)),
        shape=image.shape[:3],
        n_volumes=image.shape[3],
        affine=affine,
        repetition_time=_repetition_time(image),
    )


def _repetition_time(image: SpatialImage) -> float | None:
    step = float(image.header.get_zooms()[3])
    try:
        unit = image.header.get_xyzt_units()[1]
    except KeyError:  # a code that stands for none
        return None
    seconds = step * _TIME_UNITS.get(unit, 0.0)
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

"""Diffusion series: opening them, seeing what is wrong with them, putting runs together.

Series in the work folder are uncompressed float32 NIfTI, so that steps read them piece by piece
through memory maps. They are written with plain writes: on a full disk a write through a memory
map would kill the process instead of raising an error.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
from nibabel.spatialimages import SpatialImage
from numpy.typing import NDArray

from bsym_bids.bold.volumes import (
    VolumeSeries,
    check_place,
    load_image,
    open_series,
    stored_numbers,
    stream,
)
from bsym_bids.dwi.gradients import Gradients, check_gradients, read_gradients
from bsym_bids.errors import BadDataError, BsymError
from bsym_bids.inputs.records import DwiImage

#: Share of the volumes that may be empty or without direction before a series is refused.
MOST_DROPPED = 0.1
#: A field of view smaller than this (voxels, mm) along any axis holds no brain.
FEWEST_VOXELS = 10
SMALLEST_MM = 60.0
#: mm; one smaller than this may have cut off part of a brain.
WHOLE_BRAIN_MM = 100.0
# Grids are the same when no corner lies further than this share of a voxel from the other's.
_SAME_GRID = 0.01
_OFFSET = 352  # bytes of a NIfTI header in a .nii file


@dataclass(frozen=True)
class Run:
    """One series as it is on disk, looked at but not read.

    Attributes
    ----------
    source : DwiImage
        Its files.
    layout : VolumeSeries
        How the numbers lie on disk.
    gradients : Gradients
        One per volume.
    notes : tuple of str
        What was unusual about them.
    """

    source: DwiImage
    layout: VolumeSeries
    gradients: Gradients
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Series:
    """A series in the work folder.

    Attributes
    ----------
    image : Path
        Uncompressed float32 NIfTI.
    gradients : Gradients
        One per volume.
    sources : tuple of DwiImage
        The series that each volume is from, shape (V,).
    notes, details
        As in `bsym_bids.dwi.records.PreparedDwi`.
    """

    image: Path
    gradients: Gradients
    sources: tuple[DwiImage, ...]
    notes: Sequence[str] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


def open_run(source: DwiImage) -> Run:
    """Open one series and read its gradients.

    Raises
    ------
    InputMissingError, BadDataError
        What is wrong with which file.
    """
    image = load_image(source.image)
    layout = _layout(source.image, image)
    gradients, notes = read_gradients(source.bval, source.bvec, layout.n_volumes)
    return Run(source, layout, gradients, tuple(notes))


def work_bytes(images: Sequence[DwiImage]) -> int:
    """Return how many bytes series have in the work folder; what cannot be opened counts nothing.

    Only headers are read.
    """
    total = 0
    for image in images:
        with suppress(BsymError, OSError):
            total += max(4 * math.prod(load_image(image.image).shape), 0)
    return total


def _layout(path: Path, image: SpatialImage) -> VolumeSeries:
    if len(image.shape) not in (3, 4):
        raise BadDataError(
            f"{path}: has {len(image.shape)} dimensions, but a diffusion series has 4",
            "give the whole series with all of its volumes in one NIfTI image",
        )
    if len(image.shape) == 4:
        return open_series(path, image)
    if not isinstance(image, nib.Nifti1Image):
        raise BadDataError(f"{path}: is {type(image).__name__}, not NIfTI", "convert it to .nii.gz")
    affine = np.asarray(image.affine, dtype=np.float64)
    check_place(path, affine)
    stored = vars(stored_numbers(path, image))  # one volume, as converters write single b0 images
    return VolumeSeries(
        **stored, shape=image.shape, n_volumes=1, affine=affine, repetition_time=None
    )


def check_field_of_view(run: Run) -> list[str]:
    """Refuse a field of view that holds no brain, and note one that may not hold all of it."""
    sizes = np.linalg.norm(run.layout.affine[:3, :3], axis=0)
    extent = sizes * run.layout.shape
    text = " x ".join(f"{mm:.0f}" for mm in extent)
    grid = " x ".join(str(n) for n in run.layout.shape)
    if min(run.layout.shape) < FEWEST_VOXELS or extent.min() < SMALLEST_MM:
        raise BadDataError(
            f"{run.source.image}: its field of view of {grid} voxels, {text} mm, holds no whole "
            f"brain: at least {FEWEST_VOXELS} voxels and {SMALLEST_MM:.0f} mm along each axis are "
            "needed",
            "a connectome takes a series of the whole brain",
        )
    if extent.min() < WHOLE_BRAIN_MM:
        return [
            f"{run.source.image.name}: the field of view is {text} mm; where it cuts off the "
            "brain, ROIs are absent."
        ]
    return []


def check_same_grid(first: Run, other: Run) -> None:
    """Refuse to put together series whose voxels are not in the same places."""
    if first.layout.shape == other.layout.shape and (
        grid_distance(first.layout.affine, other.layout.affine, first.layout.shape) <= _SAME_GRID
    ):
        return
    raise BadDataError(
        f"{other.source.image}: its grid is not that of {first.source.image.name} "
        f"({other.layout.shape} and {first.layout.shape} voxels, or other places), so that the "
        "two cannot be put together",
        "resample one to the grid of the other, or process them apart with a BIDS filter",
    )


def grid_distance(
    one: NDArray[np.float64], other: NDArray[np.float64], shape: Sequence[int]
) -> float:
    """Return the largest distance between corners of two grids, in voxels of the first."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape[:3]], indexing="ij")).reshape(3, -1)
    corners = np.vstack([corners, np.ones(corners.shape[1])])
    apart = np.linalg.solve(one, other @ corners) - corners
    return float(np.linalg.norm(apart[:3], axis=0).max())


def gather(runs: Sequence[Run], out: Path, name: str) -> Series:
    """Put runs together in one series in the work folder.

    What is not a number becomes 0; volumes that hold nothing, or that are weighted without a
    direction, are left out; later runs are scaled to the mean b0 of the first.

    Parameters
    ----------
    runs : sequence of Run
        At least one, in order.
    out : Path
        The .nii to write.
    name : str
        What messages call the scan.

    Raises
    ------
    BadDataError
        Grids differ, the field of view is too small, too many volumes hold nothing, or the
        gradients don't suffice (see `check_gradients`).
    """
    notes = [note for run in runs for note in run.notes]
    for run in runs:
        notes += check_field_of_view(run)
        check_same_grid(runs[0], run)
    kept, scales = [], []
    with SeriesWriter(out, runs[0].layout.shape, runs[0].layout.affine) as writer:
        for run in runs:
            good, repaired = _copy(run, writer)
            kept.append(good)
            notes += repaired
    gradients = Gradients(
        np.concatenate([r.gradients.bvals[k] for r, k in zip(runs, kept, strict=True)]),
        np.concatenate([r.gradients.bvecs[k] for r, k in zip(runs, kept, strict=True)]),
    )
    notes += check_gradients(gradients, name)
    sources = [run.source for run, good in zip(runs, kept, strict=True) for _ in good]
    scales, scaled = _scale_runs(out, gradients, [len(good) for good in kept])
    dropped = sum(len(r.gradients) - len(k) for r, k in zip(runs, kept, strict=True))
    details = {
        "NumberOfVolumesByB": _counts_by_b(gradients),
        "NumberOfVolumesLeftOut": dropped,
        "RunScales": scales,
    }
    return Series(out, gradients, tuple(sources), [*notes, *scaled], details)


def _counts_by_b(gradients: Gradients) -> dict[str, int]:
    counts = {"0": int(gradients.is_b0.sum())}
    return counts | {f"{shell.b:.0f}": len(shell.volumes) for shell in gradients.shells}


def _copy(run: Run, writer: SeriesWriter) -> tuple[list[int], list[str]]:
    """Copy what can be used of a run; return which volumes, and notes on the others."""
    name = run.source.image.name
    directionless = ~run.gradients.is_b0 & ~run.gradients.has_direction
    good, empty, not_numbers = [], [], 0
    for index, stored in enumerate(stream(run.layout)):
        if directionless[index]:
            continue
        volume = run.layout.values(stored).astype(np.float32)
        finite = np.isfinite(volume)
        not_numbers += volume.size - int(finite.sum())
        volume[~finite] = 0
        if volume.min() == volume.max():
            empty.append(index)
            continue
        good.append(index)
        writer.append(volume)
    without = np.flatnonzero(directionless).tolist()
    count = len(run.gradients)
    if len(empty) + len(without) > max(MOST_DROPPED * count, 1):
        raise BadDataError(
            f"{run.source.image}: {len(empty)} of {count} volumes hold nothing and {len(without)} "
            "are weighted without a direction",
            "see whether the scan was broken off, and that the gradients are of this series",
        )
    notes = []
    if empty:
        notes.append(f"{name}: volumes {empty} (counted from 0) hold nothing and were left out.")
    if without:
        notes.append(
            f"{name}: volumes {without} (counted from 0) are weighted but have no direction, as "
            "trace images do; they were left out."
        )
    if not_numbers:
        notes.append(f"{name}: {not_numbers} values are not numbers and were set to 0.")
    return good, notes


def _scale_runs(
    path: Path, gradients: Gradients, counts: Sequence[int]
) -> tuple[list[float], list[str]]:
    """Scale all runs but the first to its mean b0; the scanner's gain may differ between runs."""
    data, scales, notes = read_volumes(path), [1.0] * len(counts), []
    starts = np.cumsum([0, *counts])
    levels = [
        _level(data, start + np.flatnonzero(gradients.is_b0[start : start + count]))
        for start, count in zip(starts, counts, strict=False)
    ]
    for run, level in enumerate(levels):
        if run == 0 or level is None or levels[0] is None:
            continue
        scales[run] = round(levels[0] / level, 6)
        for index in range(starts[run], starts[run + 1]):
            write_volume(path, index, data[..., index] * np.float32(scales[run]))
    if any(abs(scale - 1) > 0.1 for scale in scales):
        text = ", ".join(f"{scale:.2f}" for scale in scales)
        notes.append(f"The runs differ in brightness; they were multiplied by {text}.")
    if len(counts) > 1 and None in levels:
        notes.append("A run without a b0 volume was not scaled to the others.")
    return scales, notes


def _level(data: NDArray[np.float32], b0s: NDArray[np.intp]) -> float | None:
    """Return the mean brightness of the head in some volumes."""
    if not len(b0s):
        return None
    mean = mean_volume(data, b0s)
    return float(mean[mean > mean.mean()].mean(dtype=np.float64))


def mean_volume(data: NDArray[np.float32], volumes: Sequence[int] | NDArray) -> NDArray[np.float32]:
    """Return the mean of some volumes (X, Y, Z), one read after the other."""
    total = np.zeros(data.shape[:3], dtype=np.float64)
    for index in volumes:
        total += data[..., index]
    return (total / len(volumes)).astype(np.float32)


class SeriesWriter:
    """Write a float32 NIfTI series volume by volume, without knowing how many there will be.

    Parameters
    ----------
    path : Path
        The .nii to write.
    shape : sequence of int
        Voxels along x, y, z.
    affine : ndarray, shape (4, 4)
        From voxels to world.
    """

    def __init__(self, path: Path, shape: Sequence[int], affine: NDArray[np.float64]) -> None:
        self._path, self._shape, self._affine = path, tuple(shape), affine
        self._count = 0
        self._file: BinaryIO | None = None

    def __enter__(self) -> SeriesWriter:
        self._file = self._path.open("wb")
        self._file.write(bytes(_OFFSET))
        return self

    def append(self, volume: NDArray) -> None:
        """Write the next volume, flat in Fortran order or (X, Y, Z)."""
        self._file.write(volume.astype(np.float32).tobytes(order="F"))
        self._count += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._file.seek(0)
                self._file.write(_header((*self._shape, self._count), self._affine))
        finally:
            self._file.close()


def _header(shape: Sequence[int], affine: NDArray[np.float64]) -> bytes:
    """Return the first bytes of an uncompressed float32 NIfTI image."""
    image = nib.Nifti1Image(np.broadcast_to(np.float32(0), shape), affine)
    image.set_qform(affine, code=1, strip_shears=True)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units("mm", "sec")
    image.header["vox_offset"] = _OFFSET
    image.header["magic"] = b"n+1"
    return image.header.binaryblock + bytes(_OFFSET - len(image.header.binaryblock))


def create_series(path: Path, shape: Sequence[int], affine: NDArray[np.float64]) -> None:
    """Create a float32 series (X, Y, Z, V) of zeros, to be filled by `write_volume`."""
    with path.open("wb") as file:
        file.write(_header(shape, affine))
        file.truncate(_OFFSET + 4 * int(np.prod(shape)))


def write_volume(path: Path, index: int, volume: NDArray) -> None:
    """Write one volume (X, Y, Z) of a float32 series that is there."""
    data = volume.astype(np.float32).tobytes(order="F")
    with path.open("r+b") as file:
        file.seek(_OFFSET + index * len(data))
        file.write(data)


def write_slab(path: Path, first: int, slab: NDArray) -> None:
    """Write some slices (X, Y, slices, V) of a float32 series that is there, from ``first`` on."""
    shape = nib.load(path).shape
    with path.open("r+b") as file:
        for index in range(shape[3]):
            file.seek(_OFFSET + 4 * int(np.prod(shape[:2])) * (index * shape[2] + first))
            file.write(slab[..., index].astype(np.float32).tobytes(order="F"))


def read_volumes(path: Path) -> NDArray[np.float32]:
    """Return a series of the work folder as a read-only memory map (X, Y, Z, V)."""
    image = nib.load(path, mmap="r")
    data = np.asanyarray(image.dataobj)
    return data if data.ndim == 4 else data[..., None]


def save_image(path: Path, data: NDArray, affine: NDArray[np.float64]) -> None:
    """Write an image of the work folder: masks as uint8, anything else as float32."""
    kind = np.uint8 if data.dtype == np.bool_ else np.float32
    image = nib.Nifti1Image(data.astype(kind), affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, path)


def map_volumes(
    source: Path,
    out: Path,
    volumes: Iterator[NDArray] | Sequence[NDArray],
    shape: Sequence[int] | None = None,
) -> None:
    """Write volumes one after the other on the grid of another series.

    With ``shape``, they have other numbers of voxels, and the first voxel in common.
    """
    image = nib.load(source)
    with SeriesWriter(out, shape or image.shape[:3], image.affine) as writer:
        for volume in volumes:
            writer.append(volume)


def with_image(series: Series, image: Path, **details: Any) -> Series:
    """Return a series whose image is another one, with further details."""
    return replace(series, image=image, details={**series.details, **details})

"""From voxels or grayordinates to the values of ROIs, as the file is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bsym_bids import atlas
from bsym_bids.bold.components import Spill, first_component
from bsym_bids.bold.volumes import (
    READ_ERRORS,
    StoredNumbers,
    VolumeSeries,
    fill,
    opened,
    read_pieces,
    stream,
)
from bsym_bids.errors import BadDataError

_PIECE = 1 << 18  # numbers of a CIFTI series that are read at a time


@dataclass(frozen=True, eq=False)
class Gathering:
    """Which voxels are taken, sorted by ROI, and where each ROI's begin.

    Attributes
    ----------
    voxels : ndarray of int, shape (V,)
        Flat indices of the labelled voxels, those of the first ROI first.
    starts : ndarray of int, shape (R,)
        Where the voxels of each ROI that is present begin.
    present : ndarray of int, shape (R,)
        ROIs that have voxels, 0 to 449.
    counts : ndarray of int, shape (450,)
        Voxels of each ROI.
    """

    voxels: NDArray[np.intp]
    starts: NDArray[np.intp]
    present: NDArray[np.intp]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, labels: NDArray[np.uint16]) -> Gathering:
        """Sort the voxels of flat labels (0 outside of all ROIs)."""
        taken = np.flatnonzero(labels)
        voxels = taken[np.argsort(labels[taken], kind="stable")]
        counts = np.bincount(labels[voxels], minlength=atlas.N_ROIS + 1)[1:]
        present = np.flatnonzero(counts)
        starts = np.concatenate([[0], np.cumsum(counts[present])[:-1]]).astype(np.intp)
        return cls(voxels, starts, present, counts)

    def parts(self) -> Iterator[tuple[int, slice]]:
        """Yield each ROI that is present (0 to 449) and where its voxels stand."""
        ends = [*self.starts[1:], len(self.voxels)]
        for roi, start, end in zip(self.present, self.starts, ends, strict=True):
            yield int(roi), slice(int(start), int(end))


def reduce_volumes(
    series: VolumeSeries, gathering: Gathering, spill: Spill | None
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float32]]:
    """Take the mean of each ROI in each volume, and of each voxel over time.

    Parameters
    ----------
    series : VolumeSeries
        The file, read once as a stream.
    gathering : Gathering
        Voxels to take, as flat indices with x fastest.
    spill : Spill or None
        Where to keep the voxels that were taken, if they are needed again.

    Returns
    -------
    means : ndarray, shape (T, 450)
        In units of the image, over samples that are finite; NaN where there is none.
    data : ndarray of int, shape (450,)
        Voxels of each ROI that are finite and not zero at some time.
    mean_volume : ndarray of float32, shape (X, Y, Z)
        In units of the image; 0 where a sample is not finite.
    """
    means = np.full((series.n_volumes, atlas.N_ROIS), np.nan)
    total = np.zeros(series.voxels)
    gathered = np.empty(len(gathering.voxels), dtype=series.dtype)
    with_data = np.zeros(len(gathering.voxels), dtype=bool)
    counts = gathering.counts[gathering.present]
    for t, volume in enumerate(stream(series)):
        with np.errstate(invalid="ignore"):
            total += volume
        volume.take(gathering.voxels, out=gathered, mode="clip")
        if spill is not None:
            spill.add(gathered)
        with np.errstate(invalid="ignore"):  # of NaN that signal
            values = gathered.astype(np.float64)
        sums = np.add.reduceat(values, gathering.starts) if len(values) else np.empty(0)
        number = counts
        if not np.isfinite(sums).all():
            finite = np.isfinite(values)
            sums = np.add.reduceat(np.where(finite, values, 0), gathering.starts)
            number = np.add.reduceat(finite, gathering.starts, dtype=np.int64)
            with_data |= finite & (gathered != series.zero)
        elif not with_data.all():
            with_data |= gathered != series.zero
        with np.errstate(invalid="ignore"):
            means[t, gathering.present] = sums / number
    means = means * series.slope + series.intercept
    data = np.zeros(atlas.N_ROIS, dtype=np.int64)
    if len(with_data):
        data[gathering.present] = np.add.reduceat(with_data, gathering.starts, dtype=np.int64)
    return means, data, _mean_volume(series, total)


def _mean_volume(series: VolumeSeries, total: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the mean (X, Y, Z) of volumes from their sum as they are stored."""
    with np.errstate(invalid="ignore", over="ignore"):
        mean = total / series.n_volumes * series.slope + series.intercept
        mean = mean.astype(np.float32)
    mean[~np.isfinite(mean)] = 0
    return mean.reshape(series.shape, order="F")


def volume_components(
    series: VolumeSeries, gathering: Gathering, spill: Spill, means: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Take the first principal component of each ROI.

    Parameters
    ----------
    series : VolumeSeries
        The series that `reduce_volumes` read.
    gathering : Gathering
        Voxels that were taken.
    spill : Spill
        Their values.
    means : ndarray, shape (T, 450)
        What the components are to correlate with positively.

    Returns
    -------
    ndarray, shape (T, 450)
    """
    components = np.full_like(means, np.nan)
    for roi, part in gathering.parts():
        components[:, roi] = first_component(series.values(spill.read(part)), means[:, roi])
    return components


def reduce_rows(
    stored: StoredNumbers, labels: NDArray[np.uint16], n_volumes: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Take the mean of each ROI of a file that has one grayordinate's series after the other.

    Parameters
    ----------
    stored : StoredNumbers
        The file, read once as a stream.
    labels : ndarray of int, shape (G,)
        ROI of each grayordinate, 0 outside of all.
    n_volumes : int
        Length T of a series.

    Returns
    -------
    means, data
        As `reduce_volumes`.
    """
    sums = np.zeros((atlas.N_ROIS, n_volumes))
    number = np.zeros((atlas.N_ROIS, n_volumes), dtype=np.int64)
    data = np.zeros(atlas.N_ROIS, dtype=np.int64)
    at_once = max(1, _PIECE // n_volumes)
    parts = [labels[start : start + at_once] for start in range(0, len(labels), at_once)]
    pieces = read_pieces(stored, [len(part) * n_volumes for part in parts])
    for part, piece in zip(parts, pieces, strict=True):
        here = Gathering.of(part)
        if not len(here.voxels):
            continue
        rows = piece.reshape(-1, n_volumes)[here.voxels]
        finite = np.isfinite(rows)
        values = np.where(finite, stored.values(rows), 0)
        sums[here.present] += np.add.reduceat(values, here.starts)
        number[here.present] += np.add.reduceat(finite, here.starts, dtype=np.int64)
        with_data = (finite & (rows != stored.zero)).any(axis=1)
        data[here.present] += np.add.reduceat(with_data, here.starts, dtype=np.int64)
    with np.errstate(invalid="ignore"):
        return (sums / number).T, data


def row_components(
    stored: StoredNumbers, gathering: Gathering, means: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Take the first principal component of each ROI of such a file, reading row by row.

    Parameters
    ----------
    stored : StoredNumbers
        The file.
    gathering : Gathering
        Grayordinates to take.
    means : ndarray, shape (T, 450)
        What the components are to correlate with positively.

    Returns
    -------
    ndarray, shape (T, 450)
    """
    components = np.full_like(means, np.nan)
    n_volumes = len(means)
    try:
        with opened(stored.path) as file:
            for roi, part in gathering.parts():
                rows = np.empty((part.stop - part.start, n_volumes), dtype=stored.dtype)
                for row, grayordinate in zip(rows, gathering.voxels[part], strict=True):
                    first = int(grayordinate) * n_volumes
                    file.seek(stored.offset + first * stored.dtype.itemsize)
                    fill(file, row)
                components[:, roi] = first_component(stored.values(rows), means[:, roi])
    except READ_ERRORS as error:
        raise BadDataError(
            f"{stored.path}: cannot be read a second time: {error}",
            "the file changed or the disk fails: copy it again",
        ) from error
    return components

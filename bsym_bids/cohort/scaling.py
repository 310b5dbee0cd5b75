"""Cohort scaling: median and interquartile range of each ROI over all participants.

Robust scaling of each run by itself takes differences between people in how much an ROI varies
away; scaling all runs by the same statistics keeps them. No label of a participant enters.

The statistics are quartiles of a mixture: of each ROI the kept frames of a participant, of all of
their runs together, are one distribution, and the mean of these distributions over participants
with the ROI is what quartiles are taken of. So everyone has the same weight, however many runs and
frames they have, and no frame is left out or drawn at random. Quartiles are exact: the smallest
value at which the weight reaches the share, or the middle between it and the next where the weight
meets the share there (definition 2 of Hyndman & Fan 1996, doi:10.1080/00031305.1996.10473566).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from bsym_bids import __version__
from bsym_bids.bold.scaling import RoiStatistics
from bsym_bids.cohort.parallel import each_apart, memory_allows
from bsym_bids.errors import BadDataError, BsymError, InputMissingError
from bsym_bids.outputs.publish import FINGERPRINT_KEY, explained, file_identity, fingerprint
from bsym_bids.outputs.reading import WrittenRun, one_space, read_timeseries

QUARTILES = (0.25, 0.5, 0.75)
_BLOCK_BYTES = 128_000_000  # of series that are in memory at a time
_READER_GB = 0.4  # of a process that reads a table
_ROUNDING = 1e-9  # share of the weight below which two sums of weights are the same


@dataclass(frozen=True, eq=False)
class CohortScaling:
    """What the runs of a cohort are scaled by.

    Attributes
    ----------
    statistics : RoiStatistics
        Median and interquartile range of each ROI (450,), in the digits that are on disk; NaN for
        ROIs that nobody has.
    n_participants : ndarray of int, shape (450,)
        Participants who have the ROI.
    participants : tuple of str
        Labels of those who went in, without ``sub-``.
    runs : tuple of Path
        Tables that went in.
    left_out : tuple of str
        Why others could not.
    timeseries : mapping
        Settings that all of these were cleaned under.
    """

    statistics: RoiStatistics
    n_participants: NDArray[np.int64]
    participants: tuple[str, ...]
    runs: tuple[Path, ...]
    left_out: tuple[str, ...]
    timeseries: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the statistics: what is scaled by the same ones has the same."""
        return statistics_fingerprint(self.statistics)


def statistics_fingerprint(statistics: RoiStatistics) -> str:
    """Return a digest of statistics, as they are on disk."""
    return fingerprint(*(_digits(values) for values in (statistics.location, statistics.spread)))


def measure_cohort(
    runs: Sequence[WrittenRun],
    *,
    work_dir: Path | None = None,
    n_workers: int = 1,
    memory_gb: float | None = None,
) -> CohortScaling:
    """Take the statistics of a cohort.

    Memory does not grow with the cohort: series lie in an unnamed file meanwhile, 4 bytes for each
    ROI and frame.

    Parameters
    ----------
    runs : sequence of WrittenRun
        All runs; of one that was processed in several spaces, the first is taken.
    work_dir : Path, optional
        Folder for that file; None is the system's.
    n_workers : int
        Processes that read tables; 0 reads them in this one.
    memory_gb : float, optional
        Memory that may be used; None is not limited.

    Returns
    -------
    CohortScaling
        Runs that cannot be read are left out.

    Raises
    ------
    InputMissingError
        There are no runs.
    BadDataError
        Runs were cleaned under different settings.
    BsymError
        The first of the problems, when no run can be read.
    """
    runs = one_space(runs)
    timeseries = _common_settings(runs)
    count = memory_allows(n_workers, memory_gb, _READER_GB)
    went_in: list[WrittenRun] = []
    problems: list[BsymError] = []

    def series() -> Iterator[tuple[str, NDArray[np.float32]]]:
        for index, result in each_apart(kept_series, runs, count):
            if isinstance(result, BsymError):
                problems.append(result)
            else:
                went_in.append(runs[index])
                yield runs[index].participant, result

    statistics, n_participants = cohort_statistics(series(), work_dir)
    if not went_in:
        raise problems[0]
    return CohortScaling(
        statistics,
        n_participants,
        tuple(sorted({run.participant for run in went_in})),
        tuple(sorted(run.path for run in went_in)),
        tuple(sorted(map(str, problems))),
        timeseries,
    )


def inputs_fingerprint(runs: Sequence[WrittenRun]) -> str:
    """Return a digest of what the statistics of some runs are taken from."""
    parts = [(run.sidecar.get(FINGERPRINT_KEY), file_identity(run.path)) for run in one_space(runs)]
    return fingerprint(__version__, np.__version__, parts)


def kept_series(run: WrittenRun) -> NDArray[np.float32]:
    """Read the frames of a run that are not censored.

    Returns
    -------
    ndarray of float32, shape (450, kept frames)
        NaN for ROIs that were not measured, or do not vary.

    Raises
    ------
    BadDataError
        As `read_timeseries`, and when every frame is censored.
    """
    values, censored = read_timeseries(run)
    kept = values[~censored].T.astype(np.float32)
    if not kept.size:
        raise BadDataError(f"{run.path}: every frame is censored")
    usable = np.isfinite(kept).all(axis=1) & (kept != kept[:, :1]).any(axis=1)
    return np.where(usable[:, None], kept, np.float32(np.nan))


def cohort_statistics(
    series: Iterable[tuple[str, NDArray[np.float32]]], work_dir: Path | None = None
) -> tuple[RoiStatistics, NDArray[np.int64]]:
    """Return median and interquartile range over participants of equal weight.

    Parameters
    ----------
    series : iterable of (str, ndarray of shape (R, frames))
        Whose, and the series; one participant may have several, in any order. Rows with NaN are
        ROIs that were not measured.
    work_dir : Path, optional
        Folder for the file that keeps them meanwhile.

    Returns
    -------
    statistics : RoiStatistics
        (R,), rounded to the digits that are on disk; NaN for ROIs that nobody has.
    n_participants : ndarray of int, shape (R,)
        Who has the ROI.

    Raises
    ------
    OutputIOError
        The disk of ``work_dir`` is full.
    """
    folder = work_dir or Path(tempfile.gettempdir())
    with explained(folder), tempfile.TemporaryFile(dir=folder) as file:
        parts = [_Part.of(file, participant, values) for participant, values in series]
        people = {label: number for number, label in enumerate({p.participant: 0 for p in parts})}
        owner = np.array([people[part.participant] for part in parts], np.intp)
        n_rois = parts[0].shape[0] if parts else 0
        quartiles = np.full((3, n_rois), np.nan)
        n_participants = np.zeros(n_rois, np.int64)
        frames = sum(part.shape[1] for part in parts)
        step = max(1, _BLOCK_BYTES // (4 * max(frames, 1)))
        for first in range(0, n_rois, step):
            rois = slice(first, min(first + step, n_rois))
            blocks = [part.read(file, rois) for part in parts]
            for index in range(rois.start, rois.stop):
                rows = [block[index - first] for block in blocks]
                has = np.array([np.isfinite(row).all() for row in rows])
                quartiles[:, index] = _mixture_quartiles(rows, owner, has)
                n_participants[index] = np.unique(owner[has]).size
    low, middle, high = quartiles
    return RoiStatistics(_as_on_disk(middle), _as_on_disk(high - low)), n_participants


@dataclass(frozen=True)
class _Part:
    """Where the series of a run are in the file that keeps them."""

    participant: str
    shape: tuple[int, int]
    start: int

    @classmethod
    def of(cls, file: BinaryIO, participant: str, values: NDArray[np.floating]) -> _Part:
        start = file.seek(0, 2)
        file.write(np.ascontiguousarray(values, np.float32).data)
        return cls(participant, values.shape, start)

    def read(self, file: BinaryIO, rois: slice) -> NDArray[np.float32]:
        """Return the series of some ROIs."""
        n_frames = self.shape[1]
        file.seek(self.start + 4 * n_frames * rois.start)
        content = file.read(4 * n_frames * (rois.stop - rois.start))
        return np.frombuffer(content, np.float32).reshape(-1, n_frames)


def _mixture_quartiles(
    rows: Sequence[NDArray[np.float32]], owner: NDArray[np.intp], has: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return the quartiles of an ROI over participants of equal weight; NaN if nobody has it."""
    if not has.any():
        return np.full(3, np.nan)
    lengths = np.array([row.size for row in rows])[has]
    frames = np.bincount(owner[has], weights=lengths)
    weights = np.repeat(1 / frames[owner[has]], lengths)
    values = np.concatenate([row for row, there in zip(rows, has, strict=True) if there])
    return weighted_quantiles(values, weights, QUARTILES)


def weighted_quantiles(
    values: NDArray[np.floating], weights: NDArray[np.float64], shares: Sequence[float]
) -> NDArray[np.float64]:
    """Return quantiles of weighted values: definition 2 of Hyndman & Fan 1996.

    Parameters
    ----------
    values : ndarray, shape (n,)
        Finite.
    weights : ndarray, shape (n,)
        Above 0.
    shares : sequence of float
        Above 0 and below 1.

    Returns
    -------
    ndarray, shape (shares,)
    """
    order = np.argsort(values)
    reached = np.cumsum(weights[order])
    wanted = np.asarray(shares) * reached[-1]
    # Where the weight meets the share but for rounding, it meets it.
    slack = _ROUNDING * reached[-1]
    last = values.size - 1
    low = np.minimum(np.searchsorted(reached, wanted - slack, side="left"), last)
    high = np.minimum(np.searchsorted(reached, wanted + slack, side="right"), last)
    found = values[order[np.stack([low, high])]].astype(np.float64)
    return found.mean(axis=0)


def _common_settings(runs: Sequence[WrittenRun]) -> Mapping[str, Any]:
    """Return the settings that all runs were cleaned under, or refuse a mixture."""
    if not runs:
        raise InputMissingError(
            "there are no denoised time series to take statistics of",
            hint="name the output folder of the participant level",
        )
    groups: dict[str, list[WrittenRun]] = {}
    for run in runs:
        key = fingerprint(run.sidecar.get("TimeSeriesSettings", {}))
        groups.setdefault(key, []).append(run)
    found = [dict(some[0].sidecar.get("TimeSeriesSettings", {})) for some in groups.values()]
    if len(groups) > 1:
        names = sorted({name for settings in found for name in settings})
        differing = [n for n in names if any(s.get(n) != found[0].get(n) for s in found)]
        examples = ", ".join(f"{g[0].label} and {len(g) - 1} more" for g in groups.values())
        raise BadDataError(
            f"runs were cleaned under {len(groups)} different settings ({', '.join(differing)}): "
            f"{examples}",
            hint="process all participants under the same settings, or into folders of their own",
        )
    return found[0]


def _as_on_disk(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Round to the digits of tables, so that what is read back is what was used."""
    return np.array([float(text) for text in _digits(values)])


def _digits(values: NDArray[np.float64]) -> list[str]:
    return [f"{value:.7g}" for value in values.tolist()]

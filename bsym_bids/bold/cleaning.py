"""The cleaning of one run: from ROI series to clean series.

Regression, filtering and interpolation in time are linear and the same for every voxel, so they
commute with the mean over an ROI's voxels. They are done on the 450 series, not on the images. With
a principal component instead of the mean they don't commute: it is the component of uncleaned
voxels that is cleaned.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bsym_bids.bold.censoring import censor
from bsym_bids.bold.confounds import Confounds, read_confounds
from bsym_bids.bold.denoising import denoise
from bsym_bids.bold.nuisance import NuisanceStrategy
from bsym_bids.bold.volumes import LONGEST_TR, SHORTEST_TR
from bsym_bids.errors import BadDataError, BsymError


@dataclass(frozen=True, eq=False)
class CleanedRun:
    """A cleaned run and what is known about its cleaning.

    Attributes
    ----------
    timeseries : ndarray, shape (T, N)
        Clean and contiguous; NaN columns are unmeasured ROIs, censored frames are interpolated.
    censored : ndarray of bool, shape (T,)
        Frames that count for nothing.
    repetition_time : float
        In seconds.
    framewise_displacement : ndarray, shape (T,), optional
        In mm.
    confounds : tuple of str
        Confounds that were regressed out.
    high_pass, low_pass : float
        Cut-offs that were used, in Hz; 0 is none.
    n_regressors, degrees_of_freedom : int
        Rank of the regression, and what it and the filter leave.
    notes : tuple of str
        The rules that were applied to this run.
    """

    timeseries: NDArray[np.float64]
    censored: NDArray[np.bool_]
    repetition_time: float
    framewise_displacement: NDArray[np.float64] | None
    confounds: tuple[str, ...]
    high_pass: float
    low_pass: float
    n_regressors: int
    degrees_of_freedom: int
    notes: tuple[str, ...]


def clean_run(
    timeseries: NDArray[np.float64],
    repetition_time: float,
    confounds_file: str | Path | None,
    strategy: NuisanceStrategy,
    high_pass: float | None = None,
    low_pass: float | None = None,
    fd_threshold: float | None = None,
    *,
    source: str | Path = "",
) -> CleanedRun:
    """Clean the ROI series of one run.

    Parameters
    ----------
    timeseries : ndarray, shape (T, N)
        ROI means; an ROI with anything but numbers in it is unmeasured.
    repetition_time : float
        In seconds.
    confounds_file : str or Path, optional
        fMRIPrep's table; None only goes with a strategy that reads no column.
    strategy : NuisanceStrategy
        What to remove.
    high_pass, low_pass : float, optional
        Cut-offs in Hz; None follows the strategy, 0 is none.
    fd_threshold : float, optional
        Framewise displacement in mm above which frames are censored; None or 0 censors none.
    source : str or Path
        File that error messages name.

    Returns
    -------
    CleanedRun
    """
    high_pass = strategy.high_pass if high_pass is None else high_pass
    low_pass = strategy.low_pass if low_pass is None else low_pass
    confounds = read_confounds(confounds_file, strategy, len(timeseries))
    with naming(source):
        _check_repetition_time(repetition_time)
        censored = censor(
            confounds.framewise_displacement, fd_threshold, confounds.non_steady_state
        )
        denoised = denoise(
            timeseries,
            repetition_time,
            confounds.values,
            censored,
            high_pass=high_pass,
            low_pass=low_pass,
            filter=strategy.filter,
            detrend=strategy.detrend,
        )
    given = np.isfinite(timeseries[~censored]).all(axis=0)
    lost = given & np.isnan(denoised.timeseries).all(axis=0)
    return CleanedRun(
        timeseries=denoised.timeseries,
        censored=censored,
        repetition_time=repetition_time,
        framewise_displacement=confounds.framewise_displacement,
        confounds=confounds.names,
        high_pass=high_pass,
        low_pass=low_pass,
        n_regressors=denoised.n_regressors,
        degrees_of_freedom=denoised.degrees_of_freedom,
        notes=(*confounds.notes, *_notes(confounds, censored), *note_lost(lost)),
    )


@contextmanager
def naming(source: str | Path) -> Iterator[None]:
    """Put a file's name in front of the errors that are raised about its series."""
    try:
        yield
    except BsymError as error:
        if not str(source):
            raise
        raise type(error)(f"{source}: {error}", error.hint) from error


def _check_repetition_time(seconds: float) -> None:
    if not SHORTEST_TR <= seconds <= LONGEST_TR:
        said = f"is {seconds:g} s" if seconds else "is 0 or absent in sidecar and header"
        raise BadDataError(
            f"the repetition time {said}",
            hint="write RepetitionTime in seconds into the sidecar of the images",
        )


def _notes(confounds: Confounds, censored: NDArray[np.bool_]) -> list[str]:
    notes = []
    if confounds.non_steady_state.any():
        count = int(confounds.non_steady_state.sum())
        notes.append(f"non-steady-state frames, censored: {count}")
    if censored.any():
        notes.append(f"censored frames, interpolated: {int(censored.sum())}")
    return notes


def note_lost(lost: NDArray[np.bool_]) -> list[str]:
    """Say which ROIs became missing on the way, by their atlas index; nothing if none did."""
    indices = ", ".join(str(i + 1) for i in np.flatnonzero(lost))
    return [f"ROIs without variation, n/a (index): {indices}"] if lost.any() else []

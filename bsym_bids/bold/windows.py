"""Windows of fixed length: what the model takes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bsym_bids.bold.cleaning import naming, note_lost
from bsym_bids.bold.resampling import needs_resampling, resample, resample_mask
from bsym_bids.bold.scaling import RoiStatistics, scale
from bsym_bids.errors import BadDataError, UsageError

#: Frames of a window.
WINDOW_LENGTH = 200
#: A window with a larger share of censored frames than this is left out.
MAX_CENSORED_SHARE = 0.5


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows of one run, in the order of the model: (window, ROI, time).

    Attributes
    ----------
    data : ndarray of float32, shape (W, N, length)
        0 at missing ROIs.
    missing : ndarray of bool, shape (N,)
        ROIs that were not measured.
    onsets : ndarray of int, shape (W,)
        First frame of each window.
    censored : ndarray of bool, shape (W, length)
        Frames that are interpolated.
    repetition_time : float
        Of the frames, in seconds.
    n_left_out : int
        Windows left out because too much of them is censored.
    notes : tuple of str
        What was done to the series on the way.
    """

    data: NDArray[np.float32]
    missing: NDArray[np.bool_]
    onsets: NDArray[np.int64]
    censored: NDArray[np.bool_]
    repetition_time: float
    n_left_out: int = 0
    notes: tuple[str, ...] = ()

    @property
    def onset_seconds(self) -> NDArray[np.float64]:
        """Start of each window after the first frame of the run, in seconds."""
        return self.onsets * self.repetition_time

    @property
    def censored_share(self) -> NDArray[np.float64]:
        """Share of each window's frames that is interpolated."""
        return self.censored.mean(axis=1)


class CleanSeries(Protocol):
    """A cleaned run, just made (`CleanedRun`) or read back."""

    @property
    def timeseries(self) -> NDArray[np.float64]:
        """Contiguous series (T, N); columns of NaN are unmeasured ROIs."""

    @property
    def censored(self) -> NDArray[np.bool_]:
        """Frames that are interpolated (T,)."""

    @property
    def repetition_time(self) -> float:
        """In seconds."""


def windows_for_model(
    cleaned: CleanSeries,
    model_tr: float = 0.8,
    scaling: str | RoiStatistics = "robust",
    step: int = 100,
    *,
    source: str | Path = "",
) -> Windows:
    """Resample, scale and cut a cleaned run into what the model takes.

    Parameters
    ----------
    cleaned : CleanSeries
        The run.
    model_tr : float
        Repetition time that the model expects, in seconds; runs within 12 % pass as they are.
    scaling : str or RoiStatistics
        ``robust``, ``zscore`` or ``none``, per ROI over the kept frames of the run; or what to
        scale by.
    step : int
        Frames between the starts of two windows.
    source : str or Path
        File that error messages name.

    Returns
    -------
    Windows
    """
    before = cleaned.repetition_time
    with naming(source):
        series, after = resample(cleaned.timeseries, before, model_tr)
        censored = resample_mask(cleaned.censored, before, model_tr)
        scaled = scale(series, ~censored, scaling)
        windows = make_windows(scaled, censored, after, step=step)
    lost = np.isfinite(series).all(axis=0) & windows.missing
    notes = note_lost(lost)
    if needs_resampling(before, model_tr):
        notes.append(f"resampled from {before:g} s to {after:g} s")
    if windows.n_left_out:
        notes.append(f"windows left out for censored frames: {windows.n_left_out}")
    return replace(windows, notes=tuple(notes))


def make_windows(
    timeseries: NDArray[np.float64],
    censored: NDArray[np.bool_],
    repetition_time: float,
    length: int = WINDOW_LENGTH,
    step: int = 100,
    max_censored_share: float = MAX_CENSORED_SHARE,
) -> Windows:
    """Cut a run into windows.

    Windows start every ``step`` frames; where that leaves frames at the end uncovered, one more
    window ends with the run.

    Parameters
    ----------
    timeseries : ndarray, shape (T, N)
        Contiguous series; a column with NaN is a missing ROI.
    censored : ndarray of bool, shape (T,)
        Frames that are interpolated.
    repetition_time : float
        In seconds.
    length, step : int
        Frames of a window and between the starts of two.
    max_censored_share : float
        Windows with a larger share of censored frames are left out.

    Returns
    -------
    Windows

    Raises
    ------
    BadDataError
        The run is shorter than one window, no window is left, or no ROI is measured.
    """
    if step < 1:
        raise UsageError(f"--window-step is {step}, but must be at least 1 frame")
    n_frames = len(timeseries)
    if n_frames < length:
        raise BadDataError(
            f"the run is too short: {n_frames} frames of {repetition_time:g} s "
            f"({n_frames * repetition_time:.1f} s), but a window needs {length} "
            f"({length * repetition_time:.1f} s)",
            hint="nothing is padded; time series and connectivity need no such length",
        )
    missing = ~np.isfinite(timeseries).all(axis=0)
    if missing.all():
        raise BadDataError("no ROI is measured, or none varies")
    starts = _starts(n_frames, length, step)
    marked = np.stack([censored[start : start + length] for start in starts])
    shares = marked.mean(axis=1)
    usable = shares <= max_censored_share
    if not usable.any():
        raise BadDataError(
            f"censored frames fill more than {max_censored_share:.0%} of every window "
            f"(the best has {shares.min():.0%})",
            hint="choose a higher --fd-threshold, or exclude the run",
        )
    filled = np.where(missing, 0, timeseries).astype(np.float32)
    onsets = starts[usable]
    return Windows(
        data=np.stack([filled[start : start + length].T for start in onsets]),
        missing=missing,
        onsets=onsets,
        censored=marked[usable],
        repetition_time=repetition_time,
        n_left_out=int((~usable).sum()),
    )


def _starts(n_frames: int, length: int, step: int) -> NDArray[np.int64]:
    last = n_frames - length
    starts = np.arange(0, last + 1, step)
    return starts if starts[-1] == last else np.append(starts, last)

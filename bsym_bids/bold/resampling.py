"""Resampling of ROI series in time, without inventing frequencies.

The series, less the line through its first and last frame, is a sum of sines (DST-I), which is the
same as continuing it by point reflection at both ends. The sines are evaluated at the new times.
None of them is faster than the Nyquist frequency of the frames, so up-sampling invents nothing, and
the frames themselves are met exactly. For down-sampling, sines beyond the new Nyquist frequency are
left out, with a soft edge, so that nothing folds back.
"""

from __future__ import annotations

import math

import numpy as np
import scipy  # of which parts are loaded when they are used
from numpy.typing import NDArray

from bsym_bids.errors import BadDataError

#: Runs whose repetition time is this close to the model's pass as they are.
TOLERANCE = 0.12
_SOFT_EDGE = 0.9  # share of the new Nyquist frequency where the anti-alias edge starts
_MIN_FRAMES = 4


def needs_resampling(repetition_time: float, target: float) -> bool:
    """Tell whether a run's repetition time is further than 12 % from the wanted one."""
    return abs(repetition_time - target) > TOLERANCE * target * (1 + 1e-9)


def resample(
    timeseries: NDArray[np.float64], repetition_time: float, target: float
) -> tuple[NDArray[np.float64], float]:
    """Bring series to another repetition time, unless theirs is close enough.

    Frame k is at k TR. The new frames cover what was acquired and nothing beyond: the last is at or
    before the last frame.

    Parameters
    ----------
    timeseries : ndarray, shape (T, N)
        Series without gaps; columns of NaN stay so.
    repetition_time, target : float
        In seconds.

    Returns
    -------
    timeseries : ndarray, shape (T', N)
    repetition_time : float
        ``target``, or the repetition time of the run where it passed as it is.

    Raises
    ------
    BadDataError
        Fewer than four frames.
    """
    if not needs_resampling(repetition_time, target):
        return timeseries, repetition_time
    n_frames = len(timeseries)
    if n_frames < _MIN_FRAMES:
        raise BadDataError(f"{n_frames} frames are too few to resample")
    measured = np.isfinite(timeseries).all(axis=0)
    series = timeseries[:, measured]
    position = _new_times(n_frames, repetition_time, target) / ((n_frames - 1) * repetition_time)
    first, last = series[0], series[-1]
    line = first + (last - first) * np.linspace(0, 1, n_frames)[:, None]
    orders = np.arange(1, n_frames - 1)
    gain = _anti_alias(orders / (2 * (n_frames - 1) * repetition_time), 0.5 / target)
    used = gain > 0
    amplitudes = scipy.fft.dst((series - line)[1:-1], type=1, axis=0) / (n_frames - 1)
    waves = np.sin(np.pi * np.outer(position, orders[used])) * gain[used]
    resampled = np.full((len(position), timeseries.shape[1]), np.nan)
    resampled[:, measured] = first + (last - first) * position[:, None] + waves @ amplitudes[used]
    return resampled, target


def resample_mask(
    censored: NDArray[np.bool_], repetition_time: float, target: float
) -> NDArray[np.bool_]:
    """Carry censoring along to the frames of `resample`.

    A new frame is censored when an old censored frame is at most half a repetition time away, of
    the longer of the two: up-sampled, when its nearest frame was; down-sampled, when any of the
    frames it stands for was.

    Parameters
    ----------
    censored : ndarray of bool, shape (T,)
        Of the old frames.
    repetition_time, target : float
        In seconds.

    Returns
    -------
    ndarray of bool, shape (T',)
    """
    if not needs_resampling(repetition_time, target):
        return censored
    times = _new_times(len(censored), repetition_time, target)
    if not censored.any():
        return np.zeros(times.size, dtype=bool)
    bad = np.flatnonzero(censored) * repetition_time
    after = np.searchsorted(bad, times)
    distance = np.minimum(
        np.abs(times - bad[np.minimum(after, bad.size - 1)]),
        np.abs(times - bad[np.maximum(after - 1, 0)]),
    )
    return distance <= max(repetition_time, target) / 2 * (1 + 1e-9)


def _new_times(n_frames: int, repetition_time: float, target: float) -> NDArray[np.float64]:
    """Return the times of new frames in seconds, up to the last old one."""
    last = (n_frames - 1) * repetition_time
    # The margin keeps a frame that meets the last one but for rounding; it is then held there.
    count = math.floor(last / target * (1 + 1e-9)) + 1
    return np.minimum(np.arange(count) * target, last)


def _anti_alias(frequencies: NDArray[np.float64], nyquist: float) -> NDArray[np.float64]:
    """Return a gain that falls from 1 to 0 as a half cosine, up to the new Nyquist frequency."""
    edge = _SOFT_EDGE * nyquist
    share = np.clip((frequencies - edge) / (nyquist - edge), 0, 1)
    return 0.5 * (1 + np.cos(np.pi * share))

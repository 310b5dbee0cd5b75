"""Temporal filters: Butterworth, and the cosine regressors that do the same in a regression."""

from __future__ import annotations

import numpy as np
import scipy  # of which parts are loaded when they are used
from numpy.typing import NDArray

from bsym_bids.errors import BadDataError, UsageError

#: Of the Butterworth filter, once forth and once back.
ORDER = 5


def check_cutoffs(high_pass: float, low_pass: float, repetition_time: float) -> None:
    """Refuse cut-off frequencies that no filter can have.

    Parameters
    ----------
    high_pass, low_pass : float
        Cut-offs in Hz; 0 is no filter.
    repetition_time : float
        In seconds.
    """
    nyquist = 0.5 / repetition_time
    for name, value in (("high-pass", high_pass), ("low-pass", low_pass)):
        if value < 0:
            raise UsageError(f"the {name} cut-off is {value:g} Hz, but must be 0 or more")
        if value >= nyquist:
            raise UsageError(
                f"the {name} cut-off of {value:g} Hz is not below {nyquist:g} Hz, the highest "
                f"frequency in frames of {repetition_time:g} s",
                hint=f"choose a lower --{name}, or 0 for none",
            )
    if low_pass and high_pass >= low_pass:
        raise UsageError(
            f"the high-pass cut-off of {high_pass:g} Hz is not below the low-pass cut-off of "
            f"{low_pass:g} Hz",
            hint="the pass band lies between --high-pass and --low-pass",
        )


def passed_share(high_pass: float, low_pass: float, repetition_time: float) -> float:
    """Return the share of the frequencies up to Nyquist's that a filter leaves."""
    nyquist = 0.5 / repetition_time
    return ((low_pass or nyquist) - high_pass) / nyquist


def butterworth(
    series: NDArray[np.float64], repetition_time: float, high_pass: float, low_pass: float
) -> NDArray[np.float64]:
    """Filter forth and back (zero phase) with a Butterworth filter of order 5.

    Parameters
    ----------
    series : ndarray, shape (T, N)
        Evenly sampled series.
    repetition_time : float
        In seconds.
    high_pass, low_pass : float
        Cut-offs in Hz; 0 is none.

    Returns
    -------
    ndarray, shape (T, N)

    Raises
    ------
    BadDataError
        The series are shorter than the padding of the filter.
    """
    if not high_pass and not low_pass:
        return series
    if high_pass and low_pass:
        cutoffs, kind = [high_pass, low_pass], "bandpass"
    else:
        cutoffs, kind = high_pass or low_pass, "highpass" if high_pass else "lowpass"
    sections = scipy.signal.butter(ORDER, cutoffs, btype=kind, output="sos", fs=1 / repetition_time)
    try:
        return scipy.signal.sosfiltfilt(sections, series, axis=0)
    except ValueError as error:
        raise BadDataError(
            f"{len(series)} frames are too few for a Butterworth {kind} filter",
            hint="exclude the run, or switch the filter off",
        ) from error


def cosine_drift(n_volumes: int, repetition_time: float, high_pass: float) -> NDArray[np.float64]:
    """Return the discrete cosines (DCT-II, no constant) up to a cut-off frequency.

    Parameters
    ----------
    n_volumes : int
        Length T of the run.
    repetition_time : float
        In seconds.
    high_pass : float
        Cut-off in Hz: the cosines of order 1 to floor(2 T TR cut-off) are returned.

    Returns
    -------
    ndarray, shape (T, K)
        Orthonormal columns.
    """
    order = min(n_volumes - 1, int(np.floor(2 * n_volumes * repetition_time * high_pass)))
    centres = np.arange(n_volumes) + 0.5
    waves = np.cos(np.pi / n_volumes * np.outer(centres, np.arange(1, order + 1)))
    return np.sqrt(2 / n_volumes) * waves

"""What a network has to be better than: linear prediction of hidden ROIs from the group average."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bsym_bids.errors import BadDataError

#: Added to the variance of the ROIs that are seen, as if so much of it were noise.
RIDGE = 0.05


def linear_reconstruction(
    window: NDArray[np.floating],
    held_out: NDArray[np.bool_],
    correlation: NDArray[np.floating],
    ridge: float = RIDGE,
) -> NDArray[np.float64]:
    """Return the mean of the hidden ROIs given the others, if series were Gaussian.

    For every frame by itself, ``x_h = C_hs (C_ss + ridge I)^-1 x_s``, where h are the hidden ROIs,
    s those that are seen and C is the correlation that the series are taken to have: conditioning
    of a multivariate normal distribution of mean 0 whose seen part has noise on top (the same as
    kriging; Rasmussen & Williams 2006, Gaussian Processes for Machine Learning, eq. 2.25). Nothing
    is fitted to the window.

    Parameters
    ----------
    window : ndarray
        (R, T), centred and scaled per ROI. Values of hidden ROIs are ignored and may be NaN.
    held_out : ndarray of bool
        (R,), ROIs that are hidden.
    correlation : ndarray
        (R, R), positive semidefinite, diagonal 1; for the atlas see
        `bsym_bids.atlas.group.group_functional_connectivity`.
    ridge : float
        Above 0.

    Returns
    -------
    ndarray
        (R, T); rows of seen ROIs are NaN.

    Raises
    ------
    BadDataError
        When shapes do not fit, or no ROI is seen.
    """
    rois = len(window)
    if np.shape(correlation) != (rois, rois) or held_out.shape != (rois,):
        raise BadDataError(
            f"linear baseline: a correlation of shape {np.shape(correlation)} and hidden ROIs of "
            f"shape {held_out.shape} for {rois} ROIs"
        )
    if held_out.all():
        raise BadDataError("linear baseline: every ROI is hidden")
    seen = ~held_out
    covariance = np.array(correlation[np.ix_(seen, seen)], dtype=np.float64)
    covariance[np.diag_indices_from(covariance)] += ridge
    weights = np.linalg.solve(covariance, correlation[np.ix_(seen, held_out)]).T
    predicted = np.full(window.shape, np.nan)
    predicted[held_out] = weights @ window[seen]
    return predicted

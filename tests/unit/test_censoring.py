"""Which frames are censored, and what stands in for them."""

import numpy as np
import pytest

from bsym_bids.bold.censoring import bridge, censor, fill_censored
from bsym_bids.errors import BadDataError

STEADY = np.zeros(5, dtype=bool)
FD = np.array([0.0, 0.1, 0.5, 0.2, 0.6])


def test_frames_above_the_threshold_are_censored_and_those_at_it_are_not():
    assert censor(FD, 0.5, STEADY).tolist() == [False, False, False, False, True]


@pytest.mark.parametrize("threshold", [None, 0, 0.0])
def test_no_threshold_leaves_only_non_steady_state_out(threshold):
    unsteady = np.array([True, True, False, False, False])
    assert censor(FD, threshold, unsteady).tolist() == unsteady.tolist()
    assert censor(FD, 0.5, unsteady).tolist() == [True, True, False, False, True]


def test_a_threshold_without_displacement_is_an_error():
    assert not censor(None, None, STEADY).any()
    with pytest.raises(BadDataError, match="framewise_displacement"):
        censor(None, 0.5, STEADY)


def test_a_cubic_is_bridged_exactly():
    t = np.arange(12.0)
    series = np.stack([t**3 - 5 * t, 2 - t**2], axis=1)
    kept = np.ones(12, dtype=bool)
    kept[[3, 4, 8]] = False
    broken = series.copy()
    broken[~kept] = 1e6
    np.testing.assert_allclose(bridge(broken, kept), series, rtol=1e-10, atol=1e-9)


def test_filling_keeps_kept_frames_holds_ends_and_never_leaves_the_neighbours_range():
    rng = np.random.default_rng(0)
    kept = np.ones(60, dtype=bool)
    kept[:3] = kept[20:32] = kept[58:] = False
    values = rng.normal(size=(int(kept.sum()), 4))
    filled = fill_censored(values, kept)
    np.testing.assert_array_equal(filled[kept], values)
    np.testing.assert_array_equal(filled[:3], np.repeat(filled[3:4], 3, axis=0))
    np.testing.assert_array_equal(filled[58:], np.repeat(filled[57:58], 2, axis=0))
    low, high = np.minimum(filled[19], filled[32]), np.maximum(filled[19], filled[32])
    assert (filled[20:32] >= low - 1e-12).all()
    assert (filled[20:32] <= high + 1e-12).all()
    assert np.ptp(filled[19:33], axis=0).min() > 0

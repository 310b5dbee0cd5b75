"""Functional connectivity against numpy."""

import numpy as np
import pytest

from bsym_bids.bold.connectivity import functional_connectivity
from bsym_bids.errors import BadDataError


@pytest.fixture
def series():
    rng = np.random.default_rng(0)
    return 1000 + rng.normal(size=(150, 20)) @ rng.normal(size=(20, 20))


EVERY = np.ones(150, dtype=bool)


def test_it_is_the_correlation_of_kept_frames(series):
    kept = np.random.default_rng(1).random(150) < 0.7
    spoiled = series.copy()
    spoiled[~kept] = 1e6
    found = functional_connectivity(spoiled, kept)
    np.testing.assert_allclose(found, np.corrcoef(series[kept].T), atol=1e-12)
    np.testing.assert_array_equal(found, found.T)
    assert (np.diag(found) == 1).all()
    assert np.abs(found).max() <= 1


def test_missing_and_constant_rois_are_nan_and_touch_no_other(series):
    expected = np.corrcoef(series.T)
    holed = series.copy()
    holed[:, 2] = np.nan
    holed[:, 5] = 0.1
    found = functional_connectivity(holed, EVERY)
    others = [i for i in range(20) if i not in (2, 5)]
    assert np.isnan(found[[2, 5]]).all()
    assert np.isnan(found[:, [2, 5]]).all()
    np.testing.assert_allclose(found[np.ix_(others, others)], expected[np.ix_(others, others)])


def test_perfect_correlations_do_not_leave_the_range():
    wave = np.random.default_rng(2).normal(size=(100, 1))
    found = functional_connectivity(wave * np.array([1, 3e5, -7e-4]), np.ones(100, dtype=bool))
    np.testing.assert_allclose(found, [[1, 1, -1], [1, 1, -1], [-1, -1, 1]], atol=1e-12)
    assert np.abs(found).max() <= 1


def test_fewer_than_three_kept_frames_are_an_error(series):
    with pytest.raises(BadDataError, match="2 kept frames"):
        functional_connectivity(series, np.arange(150) < 2)

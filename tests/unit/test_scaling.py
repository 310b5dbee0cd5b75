"""Scaling against scikit-learn and scipy."""

import numpy as np
import pytest
from scipy.stats import zscore
from sklearn.preprocessing import RobustScaler

from bsym_bids.bold.scaling import scale
from bsym_bids.errors import BadDataError, UsageError


@pytest.fixture
def series():
    rng = np.random.default_rng(0)
    return 50 + rng.normal(size=(120, 8)) * np.logspace(-3, 3, 8)


@pytest.fixture
def kept():
    return np.random.default_rng(1).random(120) < 0.8


def test_robust_is_scikit_learns_robust_scaler_fitted_on_kept_frames(series, kept):
    expected = RobustScaler().fit(series[kept]).transform(series)
    np.testing.assert_allclose(scale(series, kept, "robust"), expected, rtol=1e-12, atol=1e-12)


def test_zscore_is_scipys_at_kept_frames(series, kept):
    expected = zscore(series[kept], ddof=1)
    np.testing.assert_allclose(scale(series, kept, "zscore")[kept], expected, rtol=1e-9, atol=1e-9)


def test_none_changes_nothing(series, kept):
    np.testing.assert_array_equal(scale(series, kept, "none"), series)


@pytest.mark.parametrize("method", ["robust", "zscore"])
def test_censored_values_have_no_influence(series, kept, method):
    spoiled = series.copy()
    spoiled[~kept] = 1e9
    np.testing.assert_array_equal(
        scale(spoiled, kept, method)[kept], scale(series, kept, method)[kept]
    )


@pytest.mark.parametrize("method", ["robust", "zscore"])
def test_rois_without_spread_become_missing_and_touch_no_other(series, kept, method):
    expected = scale(series, kept, method)
    flat = series.copy()
    flat[:, 1] = 0.1
    flat[:, 2] = 1000 + 1e-11 * np.arange(120)
    flat[:, 4] = np.nan
    found = scale(flat, kept, method)
    assert np.isnan(found[:, [1, 2, 4]]).all()
    others = [0, 3, 5, 6, 7]
    np.testing.assert_array_equal(found[:, others], expected[:, others])


def test_an_roi_that_is_flat_but_for_spikes_has_no_interquartile_range():
    series = np.random.default_rng(2).normal(size=(100, 2))
    series[:, 1] = np.where(np.arange(100) % 10 == 0, 1000.0, 1e-7 * series[:, 0])
    found = scale(series, np.ones(100, dtype=bool), "robust")
    assert np.isnan(found[:, 1]).all()
    assert np.isfinite(found[:, 0]).all()


def test_an_roi_with_spikes_beyond_a_hundred_spreads_is_missing():
    series = np.random.default_rng(3).normal(size=(200, 3))
    series[50, 1] = 50 * np.subtract(*np.percentile(series[:, 1], [75, 25]))
    series[50, 2] = 1000
    found = scale(series, np.ones(200, dtype=bool), "robust")
    assert np.isfinite(found[:, :2]).all() and np.isnan(found[:, 2]).all()


def test_wrong_method_and_too_few_frames(series):
    with pytest.raises(UsageError, match="'minmax'"):
        scale(series, np.ones(120, dtype=bool), "minmax")
    with pytest.raises(BadDataError, match="1 kept frames"):
        scale(series, np.arange(120) == 3, "robust")

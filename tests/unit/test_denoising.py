"""Nuisance regression, filters and censoring against nilearn, scipy and plain least squares."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nilearn.signal import clean, create_cosine_drift
from scipy.interpolate import CubicSpline

from bsym_bids.bold.denoising import denoise
from bsym_bids.bold.filtering import cosine_drift
from bsym_bids.errors import BadDataError, UsageError

TR = 0.8
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def make_run(n_volumes=300, n_rois=12, n_confounds=6, seed=0):
    """Series near 1000 with drift, noise and confounds mixed in."""
    rng = np.random.default_rng(seed)
    confounds = rng.normal(size=(n_volumes, n_confounds)).cumsum(axis=0) * 0.1
    series = rng.normal(size=(n_volumes, n_rois)) + confounds @ rng.normal(
        size=(n_confounds, n_rois)
    )
    drift = np.linspace(0, 1, n_volumes)[:, None] * rng.normal(size=n_rois)
    return 1000 + 3 * series + 10 * drift, confounds


def some_censored(n_volumes, seed=0, share=0.1):
    """Isolated and neighbouring censored frames; both ends kept.

    No censored frame mirrors another about the middle of the run: nilearn (seen in 0.14.1) inverts
    an index mask bit by bit, and leaves such pairs uninterpolated.
    """
    rng = np.random.default_rng(seed)
    censored = rng.random(n_volumes) < share
    censored[[0, -1]] = False
    return censored & ~censored[::-1]


def reference(series, confounds, censored=None, **options):
    kept = None if censored is None else np.flatnonzero(~censored)
    return clean(series, confounds=confounds, sample_mask=kept, standardize=None, t_r=TR, **options)


PASS_BANDS = [(0.008, None), (None, 0.1), (0.01, 0.08)]


@pytest.mark.parametrize(("high_pass", "low_pass"), PASS_BANDS)
@pytest.mark.parametrize("with_confounds", [True, False])
@pytest.mark.parametrize("detrend", [True, False])
@pytest.mark.filterwarnings("ignore:.*detrend.*")
def test_butterworth_and_regression_are_nilearns(high_pass, low_pass, with_confounds, detrend):
    series, confounds = make_run()
    confounds = confounds if with_confounds else None
    expected = reference(series, confounds, high_pass=high_pass, low_pass=low_pass, detrend=detrend)
    found = denoise(
        series, TR, confounds, high_pass=high_pass or 0, low_pass=low_pass or 0, detrend=detrend
    )
    np.testing.assert_allclose(found.timeseries, expected, **CLOSE)


@pytest.mark.parametrize(("high_pass", "low_pass"), PASS_BANDS)
@pytest.mark.parametrize("with_confounds", [True, False])
def test_censored_butterworth_is_nilearns_at_kept_frames(high_pass, low_pass, with_confounds):
    series, confounds = make_run(seed=1)
    confounds = confounds if with_confounds else None
    censored = some_censored(len(series))
    assert censored.sum() > 15
    expected = reference(series, confounds, censored, high_pass=high_pass, low_pass=low_pass)
    found = denoise(
        series, TR, confounds, censored, high_pass=high_pass or 0, low_pass=low_pass or 0
    )
    np.testing.assert_allclose(found.timeseries[~censored], expected, **CLOSE)


def test_censored_ends_stay_out_of_the_filter_as_in_nilearn():
    series, confounds = make_run(seed=2)
    censored = some_censored(len(series), seed=2)
    censored[:5] = True
    expected = reference(series, confounds, censored, high_pass=0.008)
    found = denoise(series, TR, confounds, censored, high_pass=0.008).timeseries
    np.testing.assert_allclose(found[~censored], expected, **CLOSE)
    first = np.flatnonzero(~censored)[0]
    np.testing.assert_array_equal(found[:first], np.repeat(found[first : first + 1], first, axis=0))


def test_mirrored_censored_frames_are_bridged_too():
    series, confounds = make_run(seed=3)
    censored = np.zeros(len(series), dtype=bool)
    censored[[50, 51, 52, len(series) - 51, len(series) - 52]] = True
    spoiled = series.copy()
    spoiled[censored] += 1e5
    frames, kept = np.arange(len(series)), ~censored
    through = [CubicSpline(frames[kept], values[kept])(frames) for values in (series, confounds)]
    expected = reference(*through, censored, high_pass=0.008)
    found = denoise(spoiled, TR, confounds, censored, high_pass=0.008).timeseries
    np.testing.assert_allclose(found[kept], expected, **CLOSE)


@pytest.mark.parametrize("with_confounds", [True, False])
def test_cosine_filter_is_nilearns(with_confounds):
    series, confounds = make_run(seed=4)
    confounds = confounds if with_confounds else None
    expected = reference(series, confounds, high_pass=0.01, filter="cosine")
    found = denoise(series, TR, confounds, high_pass=0.01, filter="cosine")
    np.testing.assert_allclose(found.timeseries, expected, **CLOSE)


def test_cosines_are_nilearns():
    for n_volumes, high_pass in ((156, 0.008), (1200, 0.01), (20, 0.001)):
        expected = create_cosine_drift(high_pass, np.arange(n_volumes) * TR)[:, :-1]
        np.testing.assert_allclose(cosine_drift(n_volumes, TR, high_pass), expected, atol=1e-12)


def test_censored_cosine_filter_is_nilearns_with_the_trend_as_a_regressor():
    series, confounds = make_run(seed=5)
    censored = some_censored(len(series), seed=5)
    # nilearn would detrend over the number of the kept frame; the trend here is one in time.
    time = np.arange(len(series), dtype=float)[:, None]
    expected = reference(
        series,
        np.hstack([confounds, time]),
        censored,
        high_pass=0.01,
        filter="cosine",
        detrend=False,
    )
    found = denoise(series, TR, confounds, censored, high_pass=0.01, filter="cosine").timeseries
    np.testing.assert_allclose(found[~censored], expected - expected.mean(axis=0), **CLOSE)


def test_cosine_filter_with_censored_ends_is_nilearns():
    series, confounds = make_run(seed=6)
    censored = np.zeros(len(series), dtype=bool)
    censored[:4] = censored[-7:] = True
    expected = reference(series, confounds, censored, high_pass=0.01, filter="cosine")
    found = denoise(series, TR, confounds, censored, high_pass=0.01, filter="cosine").timeseries
    np.testing.assert_allclose(found[~censored], expected, **CLOSE)


def test_plain_regression_is_least_squares_on_kept_frames():
    series, confounds = make_run(seed=7)
    censored = some_censored(len(series), seed=7)
    kept = ~censored
    design = np.column_stack([np.ones(len(series)), np.arange(len(series)), confounds])
    beta, *_ = np.linalg.lstsq(design[kept], series[kept], rcond=None)
    found = denoise(series, TR, confounds, censored)
    np.testing.assert_allclose(
        found.timeseries[kept], series[kept] - design[kept] @ beta, rtol=1e-7, atol=1e-8
    )
    assert found.n_regressors == 7
    assert found.degrees_of_freedom == kept.sum() - 8


def test_filter_and_regression_leave_nothing_of_drift_or_confounds():
    series, confounds = make_run(seed=8)
    cleaned = denoise(series, TR, confounds, high_pass=0.01, filter="cosine").timeseries
    removed = np.column_stack([cosine_drift(len(series), TR, 0.01), confounds])
    correlation = np.corrcoef(cleaned.T, removed.T)[: cleaned.shape[1], cleaned.shape[1] :]
    assert np.abs(correlation).max() < 1e-10


def test_values_at_censored_frames_have_no_influence():
    series, confounds = make_run(seed=9)
    censored = some_censored(len(series), seed=9)
    spoiled, spoiled_confounds = series.copy(), confounds.copy()
    spoiled[censored] = 1e7
    spoiled_confounds[censored] = -1e7
    for options in ({"high_pass": 0.008}, {"high_pass": 0.008, "filter": "cosine"}, {}):
        expected = denoise(series, TR, confounds, censored, **options).timeseries
        found = denoise(spoiled, TR, spoiled_confounds, censored, **options).timeseries
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("filter", ["butterworth", "cosine"])
def test_a_value_that_is_missing_at_a_censored_frame_is_not_missed(filter):
    series, confounds = make_run(seed=8)
    censored = some_censored(len(series), seed=8)
    options = {"high_pass": 0.01, "filter": filter}
    expected = denoise(series, TR, confounds, censored, **options).timeseries
    lacking = series.copy()
    lacking[censored] = np.nan
    found = denoise(lacking, TR, confounds, censored, **options).timeseries
    np.testing.assert_array_equal(found, expected)


def test_none_at_all_gives_the_series_back():
    series, _ = make_run()
    found = denoise(series, TR, detrend=False)
    np.testing.assert_array_equal(found.timeseries, series)
    assert found.n_regressors == 0


@settings(max_examples=25, deadline=None)
@given(
    missing=st.sets(st.integers(0, 11), max_size=8),
    partly=st.booleans(),
    cosine=st.booleans(),
)
def test_unmeasured_rois_stay_unmeasured_and_touch_no_other(missing, partly, cosine):
    series, confounds = make_run(n_volumes=120)
    options = {"high_pass": 0.01, "filter": "cosine" if cosine else "butterworth"}
    censored = some_censored(120)
    whole = denoise(series, TR, confounds, censored, **options).timeseries
    holed = series.copy()
    holed[5 if partly else slice(None), sorted(missing)] = np.nan
    found = denoise(holed, TR, confounds, censored, **options).timeseries
    others = [i for i in range(12) if i not in missing]
    assert np.isnan(found[:, sorted(missing)]).all()
    np.testing.assert_allclose(found[:, others], whole[:, others], rtol=1e-9, atol=1e-9)


def test_dependent_confounds_change_nothing():
    series, confounds = make_run(seed=10)
    more = np.hstack([confounds, confounds @ np.ones((6, 3)), confounds[:, :1] * 1e6 + 5])
    for options in ({"high_pass": 0.008}, {}):
        expected = denoise(series, TR, confounds, **options)
        found = denoise(series, TR, more, **options)
        assert found.n_regressors == expected.n_regressors
        np.testing.assert_allclose(found.timeseries, expected.timeseries, rtol=1e-7, atol=1e-8)


def test_a_confound_that_the_filter_takes_away_counts_for_nothing():
    series, _ = make_run(seed=11)
    trend = np.arange(len(series), dtype=float)[:, None]
    expected = denoise(series, TR, None, high_pass=0.008)
    found = denoise(series, TR, trend, high_pass=0.008)
    assert found.n_regressors == 0
    np.testing.assert_array_equal(found.timeseries, expected.timeseries)


@pytest.mark.parametrize(
    "options", [{"high_pass": 0.008}, {"high_pass": 0.008, "filter": "cosine"}]
)
def test_constant_and_fully_explained_rois_become_missing(options):
    series, confounds = make_run(seed=12)
    series[:, 3] = 1234.5678
    series[:, 7] = 1000 + confounds @ np.arange(1.0, 7.0)
    found = denoise(series, TR, confounds, **options).timeseries
    assert np.flatnonzero(np.isnan(found).all(axis=0)).tolist() == [3, 7]
    assert np.isfinite(np.delete(found, [3, 7], axis=1)).all()


def test_more_regressors_than_kept_frames_is_an_error_with_a_hint():
    series, confounds = make_run(n_volumes=60, n_confounds=30)
    censored = np.zeros(60, dtype=bool)
    censored[20:55] = True
    for options in ({"high_pass": 0.01}, {"high_pass": 0.01, "filter": "cosine"}, {}):
        with pytest.raises(BadDataError, match=r"degrees of freedom in 25 kept frames of 60") as e:
            denoise(series, TR, confounds, censored, **options)
        assert "--fd-threshold" in e.value.hint


def test_too_few_frames_or_rois_are_errors():
    series, _ = make_run(n_volumes=60)
    censored = np.ones(60, dtype=bool)
    censored[[4, 9]] = False
    with pytest.raises(BadDataError, match="leaves 2 of 60 frames"):
        denoise(series, TR, None, censored)
    with pytest.raises(BadDataError, match="no ROI is measured"):
        denoise(np.full_like(series, np.nan), TR)
    with pytest.raises(BadDataError, match="10 frames are too few for a Butterworth"):
        denoise(series[:10], TR, high_pass=0.01)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"high_pass": 0.625}, r"high-pass cut-off of 0.625 Hz is not below 0.625 Hz"),
        ({"low_pass": 0.7}, r"low-pass cut-off of 0.7 Hz is not below"),
        ({"high_pass": -0.1}, "0 or more"),
        ({"high_pass": 0.1, "low_pass": 0.1}, "is not below the low-pass"),
        ({"low_pass": 0.1, "filter": "cosine"}, "has no low-pass"),
    ],
)
def test_impossible_cut_offs_are_wrong_usage(options, said):
    series, _ = make_run(n_volumes=60)
    with pytest.raises(UsageError, match=said):
        denoise(series, TR, **options)

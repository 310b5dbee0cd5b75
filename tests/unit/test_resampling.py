"""Resampling in time: nothing invented, nothing folded back, the right times."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import CubicSpline
from scipy.signal import periodogram

from bsym_bids.bold.resampling import needs_resampling, resample, resample_mask
from bsym_bids.errors import BadDataError

RATES = [(2.0, 0.8), (2.013, 0.8), (0.72, 1.1), (0.5, 0.8), (1.37, 0.8), (3.0, 0.72), (1.0, 0.8)]


def sines(frequencies, times):
    """One column per frequency, each with its own phase."""
    phases = np.linspace(0.3, 2.0, len(frequencies))
    return np.sin(2 * np.pi * np.outer(times, frequencies) + phases)


def power_above(series, repetition_time, frequency):
    """Largest share of a column's power above a frequency, ends tapered against leakage."""
    rate = 1 / repetition_time
    frequencies, power = periodogram(series, rate, window="blackmanharris", axis=0)
    return (power[frequencies > frequency].sum(axis=0) / power.sum(axis=0)).max()


def cover(n_frames, repetition_time, target):
    """Count new frames by adding them up."""
    count = 0
    while count * target <= (n_frames - 1) * repetition_time + 1e-9:
        count += 1
    return count


@pytest.mark.parametrize("repetition_time", [0.704, 0.72, 0.8, 0.896])
def test_runs_within_12_percent_pass_as_they_are(repetition_time):
    series = np.random.default_rng(0).normal(size=(30, 3))
    found, after = resample(series, repetition_time, 0.8)
    assert after == repetition_time
    np.testing.assert_array_equal(found, series)
    censored = np.arange(30) == 3
    np.testing.assert_array_equal(resample_mask(censored, repetition_time, 0.8), censored)


@pytest.mark.parametrize("repetition_time", [0.70, 0.90, 2.0])
def test_others_do_not(repetition_time):
    assert needs_resampling(repetition_time, 0.8)


@pytest.mark.parametrize(("before", "after"), RATES)
def test_sinusoids_are_recovered_at_the_right_times(before, after):
    n_frames = 400
    top = 0.85 * 0.5 / max(before, after)
    frequencies = np.linspace(0.01, top, 8)
    found, rate = resample(sines(frequencies, np.arange(n_frames) * before), before, after)
    times = np.arange(len(found)) * after
    assert rate == after
    error = np.abs(found - sines(frequencies, times))
    margin = 20 * max(before, after)
    away = (times > margin) & (times < times[-1] - margin)
    assert error[away].max() < 0.01
    # What lies beyond the ends is not known; up to 60 % of the Nyquist frequency it costs little.
    slow = frequencies < 0.6 * 0.5 / max(before, after)
    assert error[:, slow].max() < 0.2


@pytest.mark.parametrize(("before", "after"), [(2.0, 0.8), (2.013, 0.8), (3.0, 0.72)])
def test_fast_sinusoids_come_closer_than_a_cubic_spline_at_the_ends_too(before, after):
    times = np.arange(400) * before
    frequencies = np.linspace(0.6, 0.9, 12) * 0.5 / before
    given_series = sines(frequencies, times)
    found, _ = resample(given_series, before, after)
    new = np.arange(len(found)) * after
    truth = sines(frequencies, new)
    spline = CubicSpline(times, given_series)(new)
    for part in (slice(0, 15), slice(-15, None), slice(100, -100)):
        assert np.linalg.norm((found - truth)[part]) < 0.6 * np.linalg.norm((spline - truth)[part])


def test_slow_sinusoids_are_recovered_up_to_the_ends():
    frequencies = np.array([0.01, 0.03, 0.05])
    found, _ = resample(sines(frequencies, np.arange(156) * 2.0), 2.0, 0.8)
    error = np.abs(found - sines(frequencies, np.arange(len(found)) * 0.8))
    assert error.max() < 0.02


@pytest.mark.parametrize(("before", "after"), [(2.0, 0.8), (2.013, 0.8), (3.0, 0.72), (1.37, 0.8)])
def test_up_sampling_invents_no_frequency(before, after):
    noise = np.random.default_rng(1).normal(size=(500, 6)) + 5
    found, _ = resample(noise, before, after)
    nyquist = 0.5 / before
    # The taper of the measurement itself blurs by four of its frequency steps.
    blur = 4 / (len(found) * after)
    assert power_above(found - found.mean(axis=0), after, nyquist + blur) < 1e-6
    linear = np.stack(
        [
            np.interp(np.arange(len(found)) * after, np.arange(500) * before, column)
            for column in noise.T
        ],
        axis=1,
    )
    assert power_above(linear - linear.mean(axis=0), after, nyquist + blur) > 1e-3


@pytest.mark.parametrize(("before", "after"), [(0.5, 0.8), (0.4, 0.8), (0.72, 1.1), (0.1, 0.8)])
def test_down_sampling_folds_nothing_back(before, after):
    times = np.arange(2000) * before
    nyquist_after, nyquist_before = 0.5 / after, 0.5 / before
    frequencies = np.linspace(1.02 * nyquist_after, 0.98 * nyquist_before, 6)
    found, _ = resample(sines(frequencies, times), before, after)
    inner = found[20:-20]
    assert np.abs(inner).max() < 0.02


@settings(max_examples=60, deadline=None)
@given(
    n_frames=st.integers(4, 700),
    before=st.floats(0.1, 4.0),
    after=st.floats(0.3, 3.0),
)
def test_straight_lines_and_the_span_survive_any_rate(n_frames, before, after):
    times = np.arange(n_frames) * before
    series = np.stack([3 - 0.5 * times, np.full(n_frames, 7.0)], axis=1)
    found, rate = resample(series, before, after)
    new = np.arange(len(found)) * rate
    np.testing.assert_allclose(found[:, 0], 3 - 0.5 * new, rtol=0, atol=1e-6 * (1 + times[-1]))
    np.testing.assert_allclose(found[:, 1], 7, atol=1e-9)
    assert new[-1] <= times[-1] * (1 + 1e-6)
    assert new[-1] + rate > times[-1] * (1 - 1e-6)
    assert len(resample_mask(np.zeros(n_frames, dtype=bool), before, after)) == len(found)


@pytest.mark.parametrize(("before", "after"), RATES)
def test_the_number_of_frames_covers_what_was_acquired(before, after):
    for n_frames in (100, 156, 301):
        found, _ = resample(np.zeros((n_frames, 1)), before, after)
        assert len(found) == cover(n_frames, before, after)


def test_frames_that_meet_are_kept_exactly():
    series = np.random.default_rng(2).normal(size=(101, 4))
    found, _ = resample(series, 2.0, 0.8)
    np.testing.assert_allclose(found[::5], series[::2], atol=1e-10)


def test_resampling_is_linear_and_unmeasured_rois_touch_no_other():
    rng = np.random.default_rng(3)
    series, other = rng.normal(size=(2, 90, 5))
    a, b = resample(series, 2.0, 0.8)[0], resample(other, 2.0, 0.8)[0]
    np.testing.assert_allclose(resample(2 * series - 3 * other, 2.0, 0.8)[0], 2 * a - 3 * b)
    holed = series.copy()
    holed[:, 1] = np.nan
    found, _ = resample(holed, 2.0, 0.8)
    assert np.isnan(found[:, 1]).all()
    np.testing.assert_allclose(np.delete(found, 1, axis=1), np.delete(a, 1, axis=1), atol=1e-12)


def test_too_few_frames():
    with pytest.raises(BadDataError, match="3 frames are too few"):
        resample(np.zeros((3, 2)), 2.0, 0.8)


def test_up_sampled_frames_follow_their_nearest_frame():
    censored = np.zeros(20, dtype=bool)
    censored[[0, 7, 8]] = True
    found = resample_mask(censored, 2.0, 0.7)
    times = np.arange(len(found)) * 0.7
    nearest = np.rint(times / 2.0).astype(int)
    ties = np.isclose(times % 2, 1)
    np.testing.assert_array_equal(found[~ties], censored[nearest][~ties])
    assert found[~ties].any()


def test_down_sampled_frames_are_censored_for_any_frame_they_stand_for():
    censored = np.arange(40) == 10  # at 5.0 s
    found = resample_mask(censored, 0.5, 1.2)
    times = np.arange(len(found)) * 1.2
    assert times[found].tolist() == [4.8]  # 4.2 to 5.4 s
    assert not resample_mask(np.zeros(40, dtype=bool), 0.5, 1.2).any()
    assert resample_mask(np.ones(40, dtype=bool), 0.5, 1.2).all()

"""Cutting runs into windows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bsym_bids.bold.windows import make_windows
from bsym_bids.errors import BadDataError, UsageError


def ramp(n_frames, n_rois=5):
    """Values that tell their frame and ROI."""
    return np.arange(n_frames)[:, None] + 1000.0 * np.arange(n_rois)


def windows_of(n_frames, censored=(), **options):
    marked = np.zeros(n_frames, dtype=bool)
    marked[list(censored)] = True
    return make_windows(ramp(n_frames), marked, 0.8, **options)


@pytest.mark.parametrize(
    ("n_frames", "step", "onsets"),
    [
        (200, 100, [0]),
        (201, 100, [0, 1]),
        (300, 100, [0, 100]),
        (388, 100, [0, 100, 188]),
        (1200, 200, [0, 200, 400, 600, 800, 1000]),
        (450, 1000, [0, 250]),
    ],
)
def test_windows_overlap_and_the_last_ends_with_the_run(n_frames, step, onsets):
    windows = windows_of(n_frames, step=step)
    assert windows.onsets.tolist() == onsets
    assert windows.data.shape == (len(onsets), 5, 200)
    np.testing.assert_allclose(windows.onset_seconds, np.array(onsets) * 0.8)


@settings(max_examples=50, deadline=None)
@given(n_frames=st.integers(200, 900), step=st.integers(1, 200))
def test_every_frame_is_covered_and_every_value_is_where_it_belongs(n_frames, step):
    windows = windows_of(n_frames, step=step)
    covered = np.zeros(n_frames, dtype=bool)
    for onset, window in zip(windows.onsets, windows.data, strict=True):
        covered[onset : onset + 200] = True
        np.testing.assert_array_equal(window, ramp(n_frames)[onset : onset + 200].T)
    assert covered.all()
    assert len(set(windows.onsets)) == len(windows.onsets)


def test_missing_rois_are_zero_and_marked():
    series = ramp(300)
    series[:, 1] = np.nan
    series[7, 3] = np.nan
    windows = make_windows(series, np.zeros(300, dtype=bool), 0.8)
    assert windows.missing.tolist() == [False, True, False, True, False]
    assert windows.data.dtype == np.float32
    assert (windows.data[:, [1, 3]] == 0).all()
    np.testing.assert_array_equal(windows.data[1, 2], series[100:, 2])


def test_windows_that_are_mostly_censored_are_left_out():
    windows = windows_of(400, censored=range(101))
    assert windows.onsets.tolist() == [100, 200]
    assert windows.n_left_out == 1
    assert windows.censored_share.tolist() == [1 / 200, 0]
    assert windows_of(400, censored=range(100)).censored_share.tolist() == [0.5, 0, 0]


def test_a_run_without_a_usable_window_says_so():
    with pytest.raises(BadDataError, match=r"more than 50% of every window \(the best has 60%\)"):
        windows_of(200, censored=range(120))


def test_a_short_run_says_how_long_it_is_and_what_is_needed():
    said = r"120 frames of 0.8 s \(96.0 s\), but a window needs 200 \(160.0 s\)"
    with pytest.raises(BadDataError, match=said) as caught:
        windows_of(120)
    assert caught.value.hint


def test_no_measured_roi_and_no_step():
    with pytest.raises(BadDataError, match="no ROI"):
        make_windows(np.full((200, 3), np.nan), np.zeros(200, dtype=bool), 0.8)
    with pytest.raises(UsageError, match="--window-step is 0"):
        windows_of(200, step=0)

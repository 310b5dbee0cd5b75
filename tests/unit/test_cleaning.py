"""One run from ROI series to windows for the model."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from nilearn.signal import clean
from scipy.interpolate import CubicSpline

from bsym_bids.bold.cleaning import clean_run
from bsym_bids.bold.connectivity import functional_connectivity
from bsym_bids.bold.nuisance import NuisanceStrategy, load_strategy
from bsym_bids.bold.quality import run_quality
from bsym_bids.bold.windows import windows_for_model
from bsym_bids.errors import BadDataError, InputMissingError, UsageError

MOTION = [f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz"]
DEFAULT = load_strategy("24p-wm-csf")
NONE = load_strategy("none")
TR, N = 2.0, 220


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    columns = {name: rng.normal(size=N).cumsum() * 0.01 for name in [*MOTION]}
    columns |= {name: 1000 + rng.normal(size=N) for name in ("white_matter", "csf")}
    columns["framewise_displacement"] = np.r_[np.nan, rng.gamma(2, 0.1, size=N - 1)]
    columns["non_steady_state_outlier00"] = (np.arange(N) == 0).astype(float)
    return pd.DataFrame(columns)


@pytest.fixture
def confounds_file(table, tmp_path):
    path = tmp_path / "sub-01_desc-confounds_timeseries.tsv"
    table.to_csv(path, sep="\t", index=False, na_rep="n/a")
    return path


@pytest.fixture
def series(table):
    rng = np.random.default_rng(1)
    motion = table[MOTION].to_numpy()
    return 500 + rng.normal(size=(N, 30)) + 20 * motion @ rng.normal(size=(6, 30))


def full_model(table):
    """The 26 regressors by hand, from the six parameters."""
    motion = table[MOTION].to_numpy()
    difference = np.diff(motion, axis=0)
    difference = np.vstack([difference[:1], difference])
    physiology = table[["white_matter", "csf"]].to_numpy()
    return np.hstack([motion, difference, motion**2, difference**2, physiology])


def test_the_default_is_24_parameters_and_high_pass_as_nilearn_does_them(
    series, table, confounds_file
):
    cleaned = clean_run(series, TR, confounds_file, DEFAULT)
    kept = np.arange(1, N)  # the first frame is not in steady state
    expected = clean(
        series,
        confounds=full_model(table),
        sample_mask=kept,
        high_pass=0.008,
        t_r=TR,
        standardize=None,
    )
    assert np.flatnonzero(cleaned.censored).tolist() == [0]
    np.testing.assert_allclose(cleaned.timeseries[kept], expected, rtol=1e-8, atol=1e-8)
    assert len(cleaned.confounds) == cleaned.n_regressors == 26
    assert (cleaned.high_pass, cleaned.low_pass) == (0.008, 0)
    assert any("non-steady-state frames, censored: 1" in note for note in cleaned.notes)


def test_cut_offs_given_win_over_the_strategys_and_zero_switches_off(series, confounds_file):
    changed = NuisanceStrategy("x", columns=DEFAULT.columns, high_pass=0.02, low_pass=0.1)
    expected = clean_run(series, TR, confounds_file, changed)
    found = clean_run(series, TR, confounds_file, DEFAULT, high_pass=0.02, low_pass=0.1)
    np.testing.assert_array_equal(found.timeseries, expected.timeseries)
    off = clean_run(series, TR, confounds_file, changed, high_pass=0, low_pass=0)
    bare = clean_run(series, TR, confounds_file, NuisanceStrategy("x", columns=DEFAULT.columns))
    np.testing.assert_array_equal(off.timeseries, bare.timeseries)
    assert (off.high_pass, off.low_pass) == (0, 0)


def test_frames_of_much_motion_are_censored(series, table, confounds_file):
    threshold = 0.5
    cleaned = clean_run(series, TR, confounds_file, DEFAULT, fd_threshold=threshold)
    expected = table["framewise_displacement"].fillna(0).to_numpy() > threshold
    expected[0] = True
    assert expected.sum() > 5
    np.testing.assert_array_equal(cleaned.censored, expected)
    assert np.isfinite(cleaned.timeseries).all()


def test_none_without_a_confounds_file_gives_the_series_back(series):
    cleaned = clean_run(series, TR, None, NONE)
    np.testing.assert_array_equal(cleaned.timeseries, series)
    assert cleaned.confounds == cleaned.notes == ()
    with pytest.raises(InputMissingError):
        clean_run(series, TR, None, DEFAULT)
    with pytest.raises(BadDataError, match="framewise_displacement"):
        clean_run(series, TR, None, NONE, fd_threshold=0.5)


def test_errors_name_the_source(series):
    for seconds, said in ((0.0, "is 0 or absent"), (2000.0, "is 2000 s")):
        with pytest.raises(BadDataError, match=rf"^sub-01_bold\.nii\.gz: the repetition.* {said}"):
            clean_run(series, seconds, None, NONE, source=Path("sub-01_bold.nii.gz"))
    with pytest.raises(UsageError, match=r"^x: the low-pass") as caught:
        clean_run(series, TR, None, NONE, low_pass=0.3, source="x")
    assert "--low-pass" in caught.value.hint
    short = clean_run(series[:70], TR, None, NONE)
    with pytest.raises(BadDataError, match=r"^x: the run is too short: 173 frames of 0\.8 s"):
        windows_for_model(short, source="x")


def test_unmeasured_rois_stay_so_and_constant_ones_are_told(series, confounds_file):
    series[:, 4] = np.nan
    series[:, 9] = 500.0
    cleaned = clean_run(series, TR, confounds_file, DEFAULT)
    assert np.flatnonzero(np.isnan(cleaned.timeseries).all(axis=0)).tolist() == [4, 9]
    assert [note for note in cleaned.notes if "variation" in note] == [
        "ROIs without variation, n/a (index): 10"
    ]
    windows = windows_for_model(cleaned)
    assert np.flatnonzero(windows.missing).tolist() == [4, 9]
    assert (windows.data[:, [4, 9]] == 0).all()


def test_windows_are_resampled_scaled_and_cut(series):
    windows = windows_for_model(clean_run(series, TR, None, NONE), scaling="zscore", step=150)
    n_frames = int(np.floor((N - 1) * TR / 0.8)) + 1
    assert windows.repetition_time == 0.8
    assert windows.onsets.tolist() == [0, 150, 300, n_frames - 200]
    assert any("2 s to 0.8 s" in note for note in windows.notes)
    middle = windows.data.mean(axis=2)
    assert np.abs(middle).max() < 1.5
    assert 0.5 < windows.data.std() < 1.5
    unscaled = windows_for_model(clean_run(series, TR, None, NONE), scaling="none", step=150)
    # Frame 0 and every fifth new frame are old frames: 4 s are two of 2 s and five of 0.8 s.
    np.testing.assert_allclose(unscaled.data[0, :, ::5].T, series[:80:2], rtol=1e-6)


def test_runs_near_the_models_repetition_time_are_not_resampled(series):
    cleaned = clean_run(series, 0.72, None, NONE)
    windows = windows_for_model(cleaned, scaling="none")
    assert windows.repetition_time == 0.72
    np.testing.assert_array_equal(windows.data[-1], series[20:].T.astype(np.float32))
    other = windows_for_model(cleaned, model_tr=0.5, scaling="none")
    assert other.repetition_time == 0.5


def test_censoring_reaches_the_windows(series, table, confounds_file):
    cleaned = clean_run(series, TR, confounds_file, DEFAULT, fd_threshold=0.5)
    windows = windows_for_model(cleaned)
    assert windows.censored_share.max() > 0
    assert abs(windows.censored_share.mean() - cleaned.censored.mean()) < 0.05


def test_censored_values_have_no_influence_on_any_result(series, confounds_file):
    spoiled = series.copy()
    reference = clean_run(series, TR, confounds_file, DEFAULT, fd_threshold=0.5)
    spoiled[reference.censored] = 1e5
    found = clean_run(spoiled, TR, confounds_file, DEFAULT, fd_threshold=0.5)
    kept = ~reference.censored
    np.testing.assert_allclose(
        windows_for_model(found).data, windows_for_model(reference).data, atol=1e-5
    )
    np.testing.assert_allclose(
        functional_connectivity(found.timeseries, kept),
        functional_connectivity(reference.timeseries, kept),
        atol=1e-9,
    )


REAL = Path(__file__).parents[3] / "shared/data/real-bids/derivatives/fmriprep"
REAL_STEM = "sub-studyforrest02/func/sub-studyforrest02_task-oneback_"


@pytest.mark.skipif(not REAL.is_dir(), reason="the real run is not part of the repository")
@pytest.mark.parametrize("fd_threshold", [0, 0.3])
def test_a_real_run_is_cleaned_as_nilearn_does_it(fd_threshold):
    from bsym_bids.bold import parcellate

    stem = str(REAL / REAL_STEM)
    confounds_file = f"{stem}desc-confounds_timeseries.tsv"
    parcels = parcellate(f"{stem}space-MNI152NLin6Asym_res-2_desc-preproc_bold.nii.gz")
    raw = np.array(parcels.timeseries, dtype=np.float64)
    raw[:, 7] = np.nan
    cleaned = clean_run(raw, TR, confounds_file, DEFAULT, fd_threshold=fd_threshold)
    table = pd.read_csv(confounds_file, sep="\t", na_values="n/a").bfill(limit=1)
    censored = table["framewise_displacement"].to_numpy() > (fd_threshold or np.inf)
    np.testing.assert_array_equal(cleaned.censored, censored)
    measured = np.isfinite(cleaned.timeseries).all(axis=0)
    assert not measured[7]
    assert measured.sum() > 430
    through = raw[:, measured].copy(), table[list(DEFAULT.columns)].to_numpy().copy()
    frames = np.arange(len(raw))
    for values in through:
        spline = CubicSpline(frames[~censored], values[~censored])
        values[censored] = spline(frames[censored])
    expected = clean(
        through[0],
        confounds=through[1],
        sample_mask=frames[~censored],
        high_pass=0.008,
        t_r=TR,
        standardize=None,
    )
    np.testing.assert_allclose(
        cleaned.timeseries[~censored][:, measured], expected, rtol=1e-7, atol=1e-7
    )
    quality = run_quality(
        raw, cleaned, functional_connectivity(cleaned.timeseries, ~cleaned.censored)
    )
    assert quality["n_censored"] == censored.sum()
    assert quality["degrees_of_freedom"] > 100
    windows = windows_for_model(cleaned)
    assert windows.data.shape == (3, 450, 200)
    assert windows.onsets.tolist() == [0, 100, 188]
    assert np.isfinite(windows.data).all()

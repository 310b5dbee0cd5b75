"""Quality numbers against a hand computation."""

import json

import numpy as np
import pytest

from bsym_bids.bold.cleaning import CleanedRun
from bsym_bids.bold.connectivity import functional_connectivity
from bsym_bids.bold.quality import run_quality

N, ROIS = 150, 12


def make_run(displacement, censored, seed=0):
    rng = np.random.default_rng(seed)
    raw = 800 + rng.normal(size=(N, ROIS))
    if displacement is not None:
        raw += 5 * displacement[:, None] * rng.choice([-1, 1], size=(N, 1))
    raw[:, 3] = np.nan
    series = raw - raw.mean(axis=0)
    cleaned = CleanedRun(
        timeseries=series,
        censored=censored,
        repetition_time=2.0,
        framewise_displacement=displacement,
        confounds=("csf",),
        high_pass=0.0,
        low_pass=0.0,
        n_regressors=1,
        degrees_of_freedom=140,
        notes=(),
    )
    return raw, cleaned, functional_connectivity(series, ~censored)


@pytest.fixture
def displacement():
    return np.r_[0, np.random.default_rng(1).gamma(2, 0.2, size=N - 1)]


def test_numbers_are_those_computed_by_hand(displacement):
    censored = displacement > 0.8
    raw, cleaned, connectivity = make_run(displacement, censored)
    quality = run_quality(raw, cleaned, connectivity)
    kept, rois = ~censored, [i for i in range(ROIS) if i != 3]
    assert quality["n_volumes"] == N
    assert quality["duration"] == 300
    assert quality["fd_mean"] == pytest.approx(displacement.mean())
    assert quality["fd_max"] == pytest.approx(displacement.max())
    assert quality["n_censored"] == censored.sum() > 0
    assert quality["percent_censored"] == pytest.approx(100 * censored.sum() / N)
    assert (quality["n_regressors"], quality["degrees_of_freedom"]) == (1, 140)
    assert quality["n_rois"] == 11
    tsnr = [raw[kept, i].mean() / raw[kept, i].std() for i in rois]
    assert quality["tsnr_median"] == pytest.approx(np.median(tsnr))
    edges = [abs(connectivity[i, j]) for i in rois for j in rois if i < j]
    assert quality["fc_mean_absolute"] == pytest.approx(np.mean(edges))


def test_motion_correlations_are_taken_over_pairs_of_kept_frames(displacement):
    censored = displacement > 0.8
    raw, cleaned, connectivity = make_run(displacement, censored)
    quality = run_quality(raw, cleaned, connectivity)
    frames = [t for t in range(1, N) if not censored[t] and not censored[t - 1]]
    measured = np.delete(raw, 3, axis=1)
    dvars = [np.sqrt(np.mean((measured[t] - measured[t - 1]) ** 2)) for t in frames]
    change = [abs(measured[t].mean() - measured[t - 1].mean()) for t in frames]
    for name, values in (("dvars", dvars), ("global_change", change)):
        expected = np.corrcoef(displacement[frames], values)[0, 1]
        assert quality[f"fd_{name}_correlation_raw"] == pytest.approx(expected)


def test_what_cannot_be_had_is_none_and_all_of_it_is_json(displacement):
    none = np.zeros(N, dtype=bool)
    quality = run_quality(*make_run(None, none))
    assert quality["fd_mean"] is quality["fd_dvars_correlation_cleaned"] is None
    json.dumps(quality, allow_nan=False)
    still = run_quality(*make_run(np.zeros(N), none))
    assert still["fd_max"] == 0
    assert still["fd_dvars_correlation_raw"] is None
    json.dumps(run_quality(*make_run(displacement, none)), allow_nan=False)


def test_a_run_without_any_measured_roi_has_no_numbers(displacement):
    raw, cleaned, connectivity = make_run(displacement, np.zeros(N, dtype=bool))
    for array in (raw, cleaned.timeseries, connectivity):
        array[:] = np.nan
    quality = run_quality(raw, cleaned, connectivity)
    assert quality["n_rois"] == 0
    assert quality["tsnr_median"] is quality["fc_mean_absolute"] is None
    assert quality["fd_global_change_correlation_raw"] is None

"""What the options of processing do to the numbers, in one run and a second with another seed.

That the same seed gives the same numbers again is part of what `test_participant` shows.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from conftest import N_VOLUMES, participant_level

from bsym_bids.outputs.names import sidecar_of

HIGH_PASS, LOW_PASS, MIN_COVERAGE, MODEL_TR, STEP = 0.03, 0.1, 0.9, 0.6, 50
THREADS = 3  # one run would get all the cores, or eight
TR = 0.8
PRODUCTS = {
    "raw": "*_stat-mean_timeseries.tsv",
    "denoised": "*_desc-denoised_timeseries.tsv",
    "coverage": "*_stat-coverage_bold.tsv",
    "censoring": "*_desc-censoring_timeseries.tsv",
    "windows": "*_desc-functionalwindows_embedding.npz",
    "embedding": "*_desc-functional_embedding.tsv",
    "reconstruction": "*_desc-reconstruction_qc.tsv",
}


def path_of(out: Path, key: str) -> Path:
    (path,) = out.glob(f"sub-01/**/{PRODUCTS[key]}")
    return path


def table(out: Path, key: str) -> pd.DataFrame:
    return pd.read_csv(path_of(out, key), sep="\t", na_values="n/a", keep_default_na=False)


def sidecar(out: Path, key: str) -> dict:
    return json.loads(sidecar_of(path_of(out, key)).read_text())


@pytest.fixture(scope="module")
def cut(dataset, tmp_path_factory) -> tuple[Path, float]:
    """The made dataset with a mask that cuts through ROIs, and a threshold that censors a few."""
    bids = tmp_path_factory.mktemp("cut") / "bids"
    shutil.copytree(dataset, bids)
    (path,) = bids.glob("derivatives/**/sub-01*_desc-brain_mask.nii.gz")
    mask = nib.load(path)
    inside = np.asarray(mask.dataobj).copy()
    inside[:8] = 0  # 15 mm of the left hemisphere
    nib.save(nib.Nifti1Image(inside, mask.affine, mask.header), path)
    (path,) = bids.glob("derivatives/**/sub-01*_desc-confounds_timeseries.tsv")
    displacement = pd.read_csv(path, sep="\t", na_values="n/a")["framewise_displacement"]
    return bids, float(displacement.quantile(0.9))


@pytest.fixture(scope="module")
def run(cut, small_model, tmp_path_factory):
    """Return what runs with settings that all differ from the defaults."""
    out = tmp_path_factory.mktemp("effects") / "out"
    bids, threshold = cut
    settings = {
        "nuisance": "none",  # 26 regressors would leave such a narrow band no freedom
        "high-pass": HIGH_PASS,
        "low-pass": LOW_PASS,
        "fd-threshold": threshold,
        "min-coverage": MIN_COVERAGE,
        "model-tr": MODEL_TR,
        "window-step": STEP,
        "nprocs": THREADS,
        "omp-nthreads": THREADS,
        "mem-gb": 2,
    }

    def again(**changed):
        given = {"seed": 3, **settings, **changed}
        words = [word for name, value in given.items() for word in (f"--{name}", value)]
        result = participant_level(bids, out, *small_model, "--participant-label", "01", *words)
        assert result.code == 0, result.err
        return out

    return again


@pytest.fixture(scope="module")
def changed(run):
    return run()


def share_outside(out: Path) -> float:
    """Return the share of the clean series' power that is well outside the band."""
    series = table(out, "denoised").dropna(axis=1, how="all")
    series = series.interpolate(limit_direction="both").to_numpy()
    power = (np.abs(np.fft.rfft(series - series.mean(axis=0), axis=0)) ** 2).sum(axis=1)
    frequencies = np.fft.rfftfreq(len(series), TR)
    outside = (frequencies < HIGH_PASS / 1.5) | (frequencies > LOW_PASS * 1.5)
    return float(power[outside].sum() / power.sum())


def test_filter_takes_what_is_outside_its_band(changed, finished):
    assert share_outside(changed) < 0.05
    assert share_outside(finished[0]) > 0.15
    cleaned = sidecar(changed, "denoised")["TimeSeriesSettings"]
    assert (cleaned["HighPass"], cleaned["LowPass"]) == (HIGH_PASS, LOW_PASS)


def test_frames_above_the_threshold_are_censored_and_no_others(changed, finished, cut):
    frames = table(changed, "censoring")
    above = frames["framewise_displacement"] > cut[1]
    assert 5 < above.sum() < 50
    assert (frames["censored"] == above).all()
    clean = table(changed, "denoised").dropna(axis=1, how="all")
    assert (clean.isna().all(axis=1) == above).all()
    assert not table(finished[0], "censoring")["censored"].any()


def test_rois_below_the_coverage_are_not_available(changed):
    rois = table(changed, "coverage").set_index("name")
    below = rois["coverage"] < MIN_COVERAGE
    assert (rois["coverage"].between(0.5, MIN_COVERAGE, inclusive="left")).sum() > 3
    assert (rois["included"] == ~below).all()
    series = table(changed, "raw")
    assert (series.isna().all() == below).all() and (series.notna().all() == ~below).all()


def test_model_sees_its_own_repetition_time_in_steps(changed):
    windows = np.load(path_of(changed, "windows"))
    frames = int(np.floor((N_VOLUMES - 1) * TR / MODEL_TR)) + 1
    starts = [*range(0, frames - 200 + 1, STEP)]
    starts += [] if starts[-1] == frames - 200 else [frames - 200]
    assert len(starts) > 2
    np.testing.assert_allclose(windows["onset"], np.array(starts) * MODEL_TR)
    assert sidecar(changed, "windows")["WindowRepetitionTime"] == MODEL_TR


def test_mean_embedding_is_the_mean_of_the_windows(changed):
    windows = np.load(path_of(changed, "windows"), allow_pickle=False)["embedding"]
    assert len(windows) > 2
    mean = table(changed, "embedding").filter(regex="^dim").to_numpy()
    np.testing.assert_allclose(windows.mean(axis=0), mean, atol=1e-5)


def test_model_is_the_one_in_the_folder(changed, small_model):
    model = sidecar(changed, "embedding")["Model"]
    assert (model["Name"], model["Trained"]) == ("small", True)
    assert set(model["SHA256"]) == {p.stem for p in Path(small_model[-1]).glob("*.pth")}
    assert "Warning" not in sidecar(changed, "embedding")


def test_threads_are_used_and_recorded(changed):
    assert sidecar(changed, "embedding")["Threads"] == THREADS
    assert sidecar(changed, "reconstruction")["Threads"] == THREADS


def test_another_seed_draws_other_folds_and_changes_nothing_else(run, changed):
    before = {key: path_of(changed, key).read_bytes() for key in PRODUCTS}
    made = path_of(changed, "raw").stat().st_mtime_ns
    out = run(seed=4)
    assert path_of(out, "raw").stat().st_mtime_ns == made
    assert path_of(out, "reconstruction").read_bytes() != before["reconstruction"]
    for key in ("embedding", "denoised"):
        assert path_of(out, key).read_bytes() == before[key]
    assert sidecar(out, "reconstruction")["EmbeddingSettings"]["Seed"] == 4

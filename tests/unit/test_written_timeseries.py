"""What the sidecars and tables of the time series say about one run."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from bsym_bids import atlas
from bsym_bids.bold.cleaning import CleanedRun
from bsym_bids.bold.nuisance import load_strategy
from bsym_bids.bold.parcellate import Parcellation
from bsym_bids.config import RunConfig
from bsym_bids.inputs.records import BoldRun, Derivatives
from bsym_bids.jobs import RunJob, Settings
from bsym_bids.model.weights import resolve_release
from bsym_bids.outputs.names import RunNames, sidecar_of
from bsym_bids.outputs.timeseries import write_timeseries

N, T, TR = atlas.N_ROIS, 20, 0.8


@pytest.fixture
def job(tmp_path):
    bold = tmp_path / "bold.nii.gz"
    bold.touch()
    run = BoldRun(
        {"sub": "01"}, "fsLR", bold, Derivatives("fmriprep", tmp_path), repetition_time=TR
    )
    names = RunNames(tmp_path / "out", run.entities, run.space)
    config = RunConfig(tmp_path, tmp_path / "out", "participant")
    settings = Settings.of(config, load_strategy("24p-wm-csf"), resolve_release("untrained"))
    return RunJob(run, names, settings)


@pytest.fixture
def parcellation():
    series = 100 + np.random.default_rng(0).standard_normal((T, N))
    voxels = np.ones(N, dtype=int)
    return Parcellation(series, np.ones(N), TR, TR, "fsLR", "grid", "mean", voxels, voxels)


@pytest.fixture
def cleaned():
    series = np.random.default_rng(1).standard_normal((T, N))
    series[:, 7] = np.nan  # cleaning left nothing of it
    return CleanedRun(series, np.zeros(T, bool), TR, None, (), 0.008, 0.0, 1, 5, ("a note",))


def sidecar(job, key):
    return json.loads(sidecar_of(job.names.path(key)).read_text())


def table(job, key):
    return pd.read_csv(job.names.path(key), sep="\t", na_values="n/a", keep_default_na=False)


@pytest.mark.parametrize(
    ("header", "told"), [(TR, False), (0.803, False), (2.0, True), (None, False)]
)
def test_a_header_that_contradicts_the_sidecar_is_noted(job, parcellation, cleaned, header, told):
    write_timeseries(job, replace(parcellation, header_repetition_time=header), cleaned)
    notes = sidecar(job, "denoised")["Notes"]
    assert "a note" in notes
    assert any("sidecar says 0.8 s" in note and "header 2 s" in note for note in notes) is told
    document = sidecar(job, "timeseries")
    assert document["RepetitionTimeSource"] == "sidecar"
    assert document["HeaderRepetitionTime"] == header
    assert document["RepetitionTime"] == TR


def test_repetition_time_from_the_header_is_told(job, parcellation, cleaned):
    from_header = replace(job, run=replace(job.run, repetition_time=None))
    write_timeseries(from_header, parcellation, cleaned)
    assert sidecar(job, "timeseries")["RepetitionTimeSource"] == "header"


def test_included_are_the_rois_with_a_cleaned_series(job, parcellation, cleaned):
    write_timeseries(job, parcellation, cleaned)
    included = table(job, "coverage")["included"]
    assert np.flatnonzero(~included.to_numpy(bool)).tolist() == [7]


@pytest.mark.parametrize("method", ["mean", "pca"])
def test_a_component_has_no_signal_to_noise(job, parcellation, cleaned, method):
    of_method = replace(job, names=replace(job.names, method=method))
    write_timeseries(of_method, replace(parcellation, method=method), cleaned)
    assert table(of_method, "run_quality")["tsnr_median"].isna().all() == (method == "pca")
    said = sidecar(of_method, "timeseries")["ROISummary"]
    assert ("before cleaning" in said) == (method == "pca")


@pytest.mark.parametrize(
    ("strategy", "high_pass", "said"),
    [("36p", 0.01, "Butterworth, order 5"), ("acompcor", 0.01, "cosines"), ("none", 0.0, "none")],
)
def test_the_filter_in_use_is_told(job, parcellation, cleaned, strategy, high_pass, said):
    settings = replace(job.settings, strategy=load_strategy(strategy))
    write_timeseries(
        replace(job, settings=settings), parcellation, replace(cleaned, high_pass=high_pass)
    )
    assert said in sidecar(job, "denoised")["Filter"]

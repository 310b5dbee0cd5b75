"""Reading back what was written."""

import json
from dataclasses import replace

import numpy as np
import pytest

from bsym_bids import atlas
from bsym_bids.bold.cleaning import clean_run
from bsym_bids.bold.nuisance import load_strategy
from bsym_bids.bold.parcellate import Parcellation
from bsym_bids.bold.windows import windows_for_model
from bsym_bids.config import RunConfig
from bsym_bids.errors import BadDataError, InputMissingError
from bsym_bids.inputs.records import BoldRun, Derivatives
from bsym_bids.jobs import RunJob, Settings
from bsym_bids.model.weights import resolve_release
from bsym_bids.outputs.names import RunNames, sidecar_of
from bsym_bids.outputs.reading import (
    find_connectomes,
    find_runs,
    read_connectome,
    read_series,
    read_timeseries,
)
from bsym_bids.outputs.tables import Matrix
from bsym_bids.outputs.timeseries import write_timeseries

N, T, TR = atlas.N_ROIS, 240, 2.0
NAMES = atlas.roi_names()
SPACE = "MNI152NLin6Asym"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def write_run(out, entities, cleaned, space=SPACE, method="mean"):
    """Write a run as the participant level does."""
    source = out.parent / "bold.nii.gz"
    source.touch()
    run = BoldRun(entities, space, source, Derivatives("fmriprep", out.parent), repetition_time=TR)
    names = RunNames(out, entities, space, resolution="2", method=method)
    config = RunConfig(out.parent, out, "participant")
    settings = Settings.of(config, load_strategy("none"), resolve_release("untrained"))
    series, voxels = np.ones(cleaned.timeseries.shape), np.ones(N, int)
    parcellation = Parcellation(series, np.ones(N), TR, TR, space, "grid", method, voxels, voxels)
    write_timeseries(RunJob(run, names, settings), parcellation, cleaned)
    return names.path("denoised")


@pytest.fixture
def cleaned(tmp_path):
    """A run with censored volumes, also at both ends, and an ROI that was not measured."""
    draw = np.random.default_rng(0)
    series = 500 + draw.standard_normal((T, N)).cumsum(0)
    series[:, 7] = np.nan
    displacement = np.where(np.isin(np.arange(T), [0, 50, 51, T - 1]), 2.0, 0.1)
    table = tmp_path / "confounds.tsv"
    lines = ["framewise_displacement", *map(str, displacement)]
    table.write_text("\n".join(lines) + "\n")
    return clean_run(series, TR, table, load_strategy("none"), fd_threshold=1, high_pass=0.01)


def test_the_model_gets_what_it_got(out, cleaned):
    write_run(out, {"sub": "01", "task": "rest"}, cleaned)
    (run,) = find_runs(out)
    found = read_series(run)
    np.testing.assert_array_equal(found.censored, cleaned.censored)
    assert found.repetition_time == TR
    expected, again = windows_for_model(cleaned), windows_for_model(found)
    np.testing.assert_allclose(again.data, expected.data, atol=1e-5)
    np.testing.assert_array_equal(again.missing, expected.missing)
    np.testing.assert_array_equal(again.censored, expected.censored)
    values, censored = read_timeseries(run)
    assert np.flatnonzero(np.isnan(values).all(0)).tolist() == [7]
    np.testing.assert_array_equal(np.isnan(values).all(1), censored)


def test_runs_are_found_with_their_labels(out, cleaned):
    short = replace(
        cleaned,
        timeseries=cleaned.timeseries[:9],
        censored=np.arange(9) == 2,
        framewise_displacement=None,
    )
    write_run(out, {"sub": "02", "ses": "b", "task": "rest", "run": "1"}, short, method="pca")
    write_run(out, {"sub": "01", "task": "rest"}, short)
    write_run(out, {"sub": "01", "task": "rest"}, short, space="fsLR")
    (out / "sub-03" / "func").mkdir(parents=True)
    runs = find_runs(out)
    assert [(run.participant, run.session, run.space) for run in runs] == [
        ("01", None, SPACE),
        ("01", None, "fsLR"),
        ("02", "b", SPACE),
    ]
    assert runs[2].label == f"sub-02_ses-b_task-rest_run-1_space-{SPACE}_res-2"
    assert runs[2].path.name.endswith("_stat-pc1_desc-denoised_timeseries.tsv")
    assert runs[2].sidecar["TimeSeriesSettings"]["ParcelMethod"] == "mean"


def test_what_is_not_complete_or_not_ours_is_left_out(out, cleaned, caplog):
    path = write_run(out, {"sub": "01", "task": "rest"}, cleaned)
    for other in (
        path.name.replace("atlas-Schaefer2018Tian2020", "atlas-Glasser"),
        path.name.replace("desc-denoised", "desc-other"),
        path.name.replace("stat-mean", "stat-median"),
    ):
        (path.parent / other).write_bytes(path.read_bytes())
    assert [run.path for run in find_runs(out)] == [path]
    assert not caplog.records
    sidecar_of(path).unlink()
    assert not find_runs(out)
    assert path.name in caplog.text


def test_a_folder_that_is_not_there(tmp_path):
    for find in (find_runs, find_connectomes):
        with pytest.raises(InputMissingError, match="nowhere"):
            find(tmp_path / "nowhere")
        assert find(tmp_path) == []


@pytest.mark.parametrize("seconds", [None, 0, "2", True, [2]])
def test_a_run_without_repetition_time_is_left_out(out, cleaned, seconds, caplog):
    path = write_run(out, {"sub": "01"}, cleaned)
    document = json.loads(sidecar_of(path).read_text())
    sidecar_of(path).write_text(json.dumps(document | {"RepetitionTime": seconds}))
    other = write_run(out, {"sub": "02"}, cleaned)
    assert [run.path for run in find_runs(out)] == [other]
    assert ".json: RepetitionTime is" in caplog.text


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_run_with_a_broken_sidecar_is_left_out(out, cleaned, text, caplog):
    path = write_run(out, {"sub": "01"}, cleaned)
    sidecar_of(path).write_text(text)
    assert find_runs(out) == []
    assert "denoised_timeseries.json: " in caplog.text


@pytest.mark.parametrize("volumes", [[T], [-1], ["x"], [1.5], 3, None])
def test_censored_volumes_have_to_fit(out, cleaned, volumes):
    path = write_run(out, {"sub": "01"}, cleaned)
    document = json.loads(sidecar_of(path).read_text())
    sidecar_of(path).write_text(json.dumps(document | {"CensoredVolumes": volumes}))
    with pytest.raises(BadDataError, match="CensoredVolumes"):
        read_timeseries(find_runs(out)[0])


def spoil(path, change):
    lines = path.read_text().splitlines()
    path.write_text("\n".join(change(lines)) + "\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [lines[0]], "no rows"),
        (lambda lines: [lines[0].replace(NAMES[3], "other"), *lines[1:]], "not the 450 ROIs"),
        (lambda lines: [line.rpartition("\t")[0] for line in lines], "not the 450 ROIs"),
        (lambda lines: [*lines[:5], lines[5] + "\t1\t2", *lines[6:]], "cannot be read"),
        (lambda lines: [*lines[:5], "x" + lines[5], *lines[6:]], "cannot be read"),
        (lambda lines: [*lines[:-1], lines[-1].rpartition("\t")[0]], "line 241 has 449 columns"),
        (lambda lines: [*lines[:7], "1\t2\t3"], "numbers: line 8 has 3 columns instead of 450$"),
        (lambda lines: [lines[0], *(line + "\t1" for line in lines[1:])], "cannot be read"),
        (lambda lines: [*lines[:5], lines[5].replace("n/a", "inf"), *lines[6:]], "not finite"),
        (lambda lines: [], "cannot be read"),
    ],
)
def test_a_broken_table_is_named(out, cleaned, change, message):
    path = write_run(out, {"sub": "01"}, cleaned)
    spoil(path, change)
    with pytest.raises(BadDataError, match=message) as caught:
        read_timeseries(find_runs(out)[0])
    assert str(path) in str(caught.value)


def test_series_of_censored_volumes_only_are_refused(out, cleaned):
    path = write_run(out, {"sub": "01"}, cleaned)
    document = json.loads(sidecar_of(path).read_text())
    volumes = {"CensoredVolumes": list(range(1, T))}
    sidecar_of(path).write_text(json.dumps(document | volumes))
    with pytest.raises(BadDataError, match="1 of 240 volumes"):
        read_series(find_runs(out)[0])


def write_connectome(out, name, values):
    path = out / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Matrix(values, NAMES, rows=NAMES).write(path)
    return path


def test_connectomes_are_found_by_measure(out):
    values = np.random.default_rng(0).poisson(1.0, (N, N)).astype(float)
    values[4] = values[:, 4] = np.nan
    made = "atlas-Schaefer2018Tian2020_scale-450"
    write_connectome(out, f"sub-01/dwi/sub-01_{made}_desc-count_relmat.tsv", values)
    stem = f"sub-02/ses-1/dwi/sub-02_ses-1_dir-AP_space-T1w_{made}"
    path = write_connectome(out, f"{stem}_desc-invnodevol_relmat.tsv", values + 1)
    write_connectome(out, f"sub-01/func/sub-01_{made}_desc-count_relmat.tsv", values)
    found = find_connectomes(out)
    assert [(c.participant, c.session, c.label, c.measure) for c in found] == [
        ("01", None, "sub-01", "count"),
        ("02", "1", "sub-02_ses-1_dir-AP", "invnodevol"),
    ]
    np.testing.assert_array_equal(read_connectome(found[0]), values)
    spoil(path, lambda lines: [lines[0], *lines[2:]])
    with pytest.raises(BadDataError, match="rows and columns"):
        read_connectome(found[1])

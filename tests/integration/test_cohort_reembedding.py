"""Cohort scaling of a dataset that the participant level has written."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from small_network import FUNCTIONAL_SIZES, STRUCTURAL_SIZES, write_release

from bsym_bids import atlas
from bsym_bids.bold.nuisance import load_strategy
from bsym_bids.bold.parcellate import Parcellation
from bsym_bids.bold.scaling import RoiStatistics
from bsym_bids.cohort import reembedding
from bsym_bids.cohort.edges import edges_of, fisher_z
from bsym_bids.cohort.reembedding import (
    RandomNetwork,
    cohort_scaling,
    embed_again,
    embed_connectome_again,
    run_cohort_scaling,
)
from bsym_bids.cohort.scaling import kept_series
from bsym_bids.config import RunConfig
from bsym_bids.errors import BadDataError, InputMissingError
from bsym_bids.inputs import BoldRun, Derivatives
from bsym_bids.interfaces.files import save_record
from bsym_bids.jobs import RunJob, Settings
from bsym_bids.model.reconstruction import ReconstructionQuality
from bsym_bids.model.structural import EdgeConvention
from bsym_bids.model.structural_embedding import connectome_input, embed_connectome
from bsym_bids.model.weights import load_model, load_random, resolve_release
from bsym_bids.outputs.claims import Claims
from bsym_bids.outputs.cohort import read_cohort_scaling
from bsym_bids.outputs.dataset import describe_dataset
from bsym_bids.outputs.names import RunNames, sidecar_of
from bsym_bids.outputs.reading import connectome_of, find_runs, read_matrix, run_of
from bsym_bids.outputs.tables import Matrix, Table
from bsym_bids.prediction.inventory import take_inventory
from bsym_bids.prediction.random_network import random_kinds
from bsym_bids.workflows.bold import init_bold_run_wf

N, T, TR = atlas.N_ROIS, 110, 2.0
#: By run: what the series are multiplied by, and the ROIs that are not measured.
RUNS = {
    ("01", "1"): (1.0, [4]),
    ("01", "2"): (1.5, []),
    ("02", "1"): (3.0, [4, 9]),
}
GROUP = ("embedding", "window_embeddings", "similarity", "attention", "attention_time")


def make_release(folder):
    """Write a small release of all branches."""
    sizes = FUNCTIONAL_SIZES | STRUCTURAL_SIZES
    return write_release(folder, sizes, contract={"scaling": "robust"})


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return make_release(tmp_path_factory.mktemp("release"))


def no_scores(*_, **__):
    """Score the reconstruction of nothing: of all steps the longest, and no matter here."""
    return ReconstructionQuality(*np.full((12, N), 0.5), windows=(0,), n_folds=7, threads=1)


def participant_level(root, out, label, number, release, model="small"):
    """Run the graph of the participant level on series that are there instead of volumes."""
    draw = np.random.default_rng([int(label), int(number)])
    factor, missing = RUNS[label, number]
    white = draw.standard_normal((T, N))
    series = 500 + factor * (white + 0.5 * white.cumsum(axis=0))
    series[:, missing] = np.nan
    displacement = np.where(np.isin(np.arange(T), [0, 30, 31, 80]), 0.9, 0.1)
    entities = {"sub": label, "task": "rest", "run": number}
    bold = root / f"sub-{label}_run-{number}_bold.nii.gz"
    confounds = bold.with_name(f"{bold.name}.tsv")
    if not bold.exists():
        bold.touch()
        Table({"framewise_displacement": displacement}).write(confounds)
    run = BoldRun(
        entities=entities,
        space="MNI152NLin6Asym",
        bold=bold,
        derivatives=Derivatives("fmriprep", root),
        confounds=confounds,
        repetition_time=TR,
    )
    config = RunConfig(root, out, "participant", nuisance="none", fd_threshold=0.5, model=model)
    settings = Settings.of(config, load_strategy("none"), release)
    job = RunJob(run, RunNames(out, entities, run.space), settings)
    voxels = np.ones(N, int)
    coverage = np.where(np.isin(np.arange(N), missing), 0.0, 1.0)
    parcellation = Parcellation(series, coverage, TR, TR, run.space, "grid", "mean", voxels, voxels)
    workflow = init_bold_run_wf(job=job)
    workflow.base_dir = str(root / "work")
    workflow.remove_nodes([workflow.get_node("parcellate")])
    record = save_record(parcellation, root / f"{bold.name}.npz")
    for name in ("clean", "write_timeseries"):
        workflow.get_node(name).inputs.parcellation = str(record)
    workflow.config["execution"] = {"create_report": "false", "poll_sleep_duration": "0.05"}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("bsym_bids.model.reconstruction.score_windows", no_scores)
        workflow.run()
    return job


@pytest.fixture(scope="module")
def finished(tmp_path_factory, release):
    """What the participant level has written of three runs; not to be changed."""
    root = tmp_path_factory.mktemp("finished")
    out = root / "out"
    describe_dataset(out, {"fmriprep": root})
    for label, number in RUNS:
        participant_level(root, out, label, number, release)
    return out


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Score no reconstruction in this process; others, where there are any, do."""
    monkeypatch.setattr(reembedding, "score_windows", no_scores)


@pytest.fixture
def out(finished, tmp_path):
    """A copy that a test may change; with its times, on which fingerprints rest."""
    return Path(shutil.copytree(finished, tmp_path / "out"))


def table(path):
    """Return the numbers of a table."""
    frame = pd.read_csv(path, sep="\t", na_values="n/a", keep_default_na=False)
    return frame.select_dtypes("number").to_numpy(np.float64)


def sidecar(path):
    return json.loads(sidecar_of(path).read_text())


def state_of(folder):
    """Return what tells whether files were written: their times and content."""
    return {
        path.relative_to(folder): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file() and path.parent.name != "logs"
    }


def cohort_files(folder):
    return sorted(path for path in folder.rglob("*cohort_*") if path.is_file())


def statuses(result):
    return [outcome.status for outcome in result.outcomes]


# Series of 500 with a spread of 5 are on disk to 1e-5 of their spread, seven digits.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def test_the_same_scaling_gives_what_the_participant_level_gave(out, release):
    model = load_model(release)
    for run in find_runs(out):
        names = run.names(out)
        windows, embedding = embed_again(run, model)
        assert sidecar(names.path("embedding"))["WindowOnsets"] == pytest.approx(
            windows.onset_seconds.tolist()
        )
        assert len(windows.data) == 2 and windows.repetition_time == 0.8
        assert windows.censored.any()
        with np.load(names.path("window_embeddings")) as arrays:
            np.testing.assert_allclose(embedding.windows, arrays["embedding"], **CLOSE)
            np.testing.assert_array_equal(embedding.masked, arrays["masked"])
        np.testing.assert_allclose(embedding.mean, table(names.path("embedding")), **CLOSE)
        similarity = read_matrix(names.path("similarity"))
        np.testing.assert_allclose(embedding.similarity, similarity, rtol=0, atol=1e-3)
        np.testing.assert_allclose(
            embedding.attention_roi, read_matrix(names.path("attention")), **CLOSE
        )
        missing = RUNS[run.participant, run.entities["run"]][1]
        assert np.flatnonzero(np.isnan(embedding.mean).all(axis=1)).tolist() == missing


def test_cohort_scaling_stands_beside_the_other(out, release):
    before = state_of(out)
    said = []
    result = run_cohort_scaling(out, release, n_workers=2, say=said.append)
    assert statuses(result) == ["done"] * 3 and result.scaling.participants == ("01", "02")
    assert len(said) == 4 and "3 of 3" in said[-1]
    after = state_of(out)
    assert {path: after[path] for path in before} == before
    new = {path.name for path in after.keys() - before.keys()}
    assert len(new) == 3 * 7 * 2 + 2 and all("cohort" in name for name in new)
    model = load_model(release)
    for run in find_runs(out):
        names = run.names(out, cohort_scaled=True)
        _, embedding = embed_again(run, model, result.scaling)
        with np.load(names.path("window_embeddings")) as arrays:
            np.testing.assert_array_equal(embedding.windows, arrays["embedding"])
        document = sidecar(names.path("similarity"))
        settings = document["EmbeddingSettings"]
        own = sidecar(run.names(out).path("similarity"))["EmbeddingSettings"]
        assert settings == own | {
            "Scaling": "cohort",
            "ScalingStatistics": result.scaling.fingerprint,
        }
        assert "cohort's median" in document["Description"]
        assert any("'cohort'" in text for text in document["ModelContractDeviations"])
        assert document["ModelDomain"]["Verdict"]
        sources = sidecar(names.path("window_embeddings"))["Sources"]
        assert sources == [run.names(out).uri("denoised"), "bids::desc-cohortscaling_qc.tsv"]
        assert document["Sources"] == [names.uri("window_embeddings")]
        assert document["TimeSeriesSettings"] == run.sidecar["TimeSeriesSettings"]


def test_scaling_keeps_how_much_people_vary(out, release):
    """By numpy alone: what the network saw is the series by the statistics of everyone."""
    runs = find_runs(out)
    scaling = cohort_scaling(runs, out, n_workers=0)
    spreads = {}
    for run in runs:
        windows, _ = embed_again(run, load_model(release), scaling)
        kept = kept_series(run).astype(float)
        location, spread = scaling.statistics.location, scaling.statistics.spread
        rois = np.flatnonzero(np.isfinite(kept).all(axis=1))
        expected = ((kept - location[:, None]) / spread[:, None])[rois]
        seen = windows.data[:, rois].transpose(1, 0, 2).reshape(rois.size, -1)
        widths = [np.subtract(*np.percentile(v, [75, 25], axis=1)) for v in (seen, expected)]
        assert 0.8 < np.median(widths[0] / widths[1]) < 1.25
        spreads[run.participant, run.entities["run"]] = np.median(widths[0])
    assert spreads["02", "1"] > 1.5 * spreads["01", "1"]


def test_a_second_call_does_nothing_and_other_settings_do_everything(out, release, monkeypatch):
    run_cohort_scaling(out, release, n_workers=0)
    before = state_of(out)
    with monkeypatch.context() as patched:
        patched.setattr("bsym_bids.cohort.reembedding.measure_cohort", None)
        patched.setattr("bsym_bids.cohort.reembedding.each_apart", lambda *_: iter(()))
        result = run_cohort_scaling(out, release, n_workers=0)
    assert statuses(result) == ["unchanged"] * 3 and state_of(out) == before
    result = run_cohort_scaling(out, release, window_step=50, n_workers=0)
    assert statuses(result) == ["done"] * 3
    (path, *_) = out.rglob("*desc-functionalcohort_embedding.tsv")
    assert sidecar(path)["EmbeddingSettings"]["WindowStep"] == 50


def test_it_goes_on_where_it_was_when_killed(out, release, tmp_path):
    code = (
        "import sys; from pathlib import Path; "
        "from bsym_bids.cohort.reembedding import run_cohort_scaling; "
        "from bsym_bids.model.weights import resolve_release; "
        "run_cohort_scaling(Path(sys.argv[1]), resolve_release('small', sys.argv[2]), n_workers=0)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(out), str(release.folder)])
    end = time.monotonic() + 120
    while not list(out.rglob("*cohort_qc.json")) and time.monotonic() < end:
        assert child.poll() is None
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    table_before = (out / "desc-cohortscaling_qc.tsv").stat().st_mtime_ns
    first = state_of(out)
    result = run_cohort_scaling(out, release, n_workers=0)
    assert "done" in statuses(result) and "failed" not in statuses(result)
    assert (out / "desc-cohortscaling_qc.tsv").stat().st_mtime_ns == table_before
    now = state_of(out)
    unchanged = [o for o in result.outcomes if o.status == "unchanged"]
    for outcome in unchanged:
        mine = [p for p in now if f"run-{outcome.run.split('_run-')[1][0]}" in p.name]
        mine = [p for p in mine if f"sub-{outcome.participant}" in p.name]
        assert mine and all(first[path] == now[path] for path in mine)
    assert len(cohort_files(out)) == 3 * 14
    assert statuses(run_cohort_scaling(out, release, n_workers=0)) == ["unchanged"] * 3


def test_a_run_that_is_broken_stops_no_other(out, release):
    runs = find_runs(out)
    broken = runs[1]
    text = broken.path.read_text()
    broken.path.write_text("\n".join(text.splitlines()[:40])[:-30] + "\n")
    result = run_cohort_scaling(out, release, n_workers=0)
    assert statuses(result) == ["done", "failed", "done"]
    failed = result.outcomes[1]
    assert str(broken.path) in failed.reason and failed.hint and failed.exit_code == 65
    assert len(result.scaling.left_out) == 1
    assert broken.path not in result.scaling.runs
    document = sidecar(out / "desc-cohortscaling_qc.tsv")
    assert str(broken.path.name) in document["LeftOut"][0] and len(document["Sources"]) == 2
    again = run_cohort_scaling(out, release, n_workers=0)
    assert statuses(again) == ["unchanged", "failed", "unchanged"]
    broken.path.write_text(text)  # mended: other statistics, so that everything is made anew
    assert statuses(run_cohort_scaling(out, release, n_workers=0)) == ["done"] * 3


def test_a_new_participant_changes_the_statistics_and_all_embeddings(out, release):
    away = out / "sub-02"
    kept = away.rename(out.parent / "sub-02")
    first = run_cohort_scaling(out, release, n_workers=0)
    assert first.scaling.n_participants.max() == 1
    shutil.move(kept, away)
    second = run_cohort_scaling(out, release, n_workers=0)
    assert first.scaling.fingerprint != second.scaling.fingerprint
    assert statuses(second) == ["done"] * 3


def test_new_series_take_embeddings_of_the_old_ones_away(tmp_path, release):
    out = tmp_path / "out"
    describe_dataset(out, {"fmriprep": tmp_path})
    job = participant_level(tmp_path, out, "02", "1", release)
    run_cohort_scaling(out, release, n_workers=0)
    anew = set(cohort_files(out)) - {out / "desc-cohortscaling_qc.tsv"}
    assert len(anew) == 14
    job.names.path("coverage").unlink()
    participant_level(tmp_path, out, "02", "1", release)  # the same series
    assert anew <= set(cohort_files(out))
    os.utime(job.run.bold, ns=(1, 1))  # another state of the input
    participant_level(tmp_path, out, "02", "1", release)
    assert not anew & set(cohort_files(out))
    assert job.names.path("embedding").is_file()


def test_runs_that_another_process_works_on_are_left_to_it(out, release):
    run_cohort_scaling(out, release, n_workers=0)
    for path in out.rglob("*desc-functionalcohort_embedding.tsv"):
        path.unlink()
    code = (
        "import sys; from pathlib import Path; from bsym_bids.outputs.claims import Claims; "
        "claims = Claims([Path(sys.argv[1])]); claims.claim(sys.argv[2]); "
        "print('ready', flush=True); input()"
    )
    from bsym_bids.jobs import CohortJob

    run = find_runs(out)[0]
    name = CohortJob.of(run, out, release, "x").work_name
    command = [sys.executable, "-c", code, str(out / "logs"), name]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout.readline() == "ready\n"
        with Claims([out / "logs"]) as claims:
            result = run_cohort_scaling(out, release, n_workers=0, claims=claims)
        other.communicate("\n")
    assert statuses(result) == ["failed", "done", "done"]
    assert "another process" in result.outcomes[0].reason


def test_a_dataset_without_runs_and_a_model_that_is_broken(out, release, tmp_path):
    with pytest.raises(InputMissingError, match="no denoised time series"):
        run_cohort_scaling(tmp_path, release)
    with pytest.raises(InputMissingError, match="nowhere"):
        run_cohort_scaling(tmp_path / "nowhere", release)
    folder = tmp_path / "model"
    folder.mkdir()
    other = make_release(folder)
    (folder / "spatial.pth").write_bytes(b"x")
    with pytest.raises(BadDataError, match=r"spatial\.pth"):
        run_cohort_scaling(out, other)
    assert not list(out.rglob("*desc-functionalcohort_embedding.tsv"))


def test_a_run_in_other_units_fails_with_the_reason(out, release):
    run = find_runs(out)[0]
    far = RoiStatistics(np.full(N, 1e6), np.full(N, 1.0))
    with pytest.raises(BadDataError, match="no ROI can be scaled") as caught:
        embed_again(run, load_model(release), far)
    assert str(run.path) in str(caught.value)


def test_random_weights_have_the_sizes_of_the_release_and_follow_the_seed(out, release):
    trained, random = load_model(release), load_random(release, seed=5)
    for name, value in trained.state_dict().items():
        # the release of this test was drawn with seed 5 itself
        np.testing.assert_array_equal(value, random.state_dict()[name])
    run = find_runs(out)[0]
    one, same, other = (RandomNetwork(release, seed).functional(run.path) for seed in (1, 1, 2))
    assert one.similarity.shape == (N, N) and one.mean.shape == (N, 8)
    np.testing.assert_array_equal(one.similarity, same.similarity)
    assert not np.allclose(one.similarity, other.similarity, equal_nan=True)
    _, expected = embed_again(run, load_random(release, 1))
    np.testing.assert_array_equal(one.mean, expected.mean)
    assert not cohort_files(out)
    untrained = resolve_release("untrained")
    for mine, theirs in zip(
        load_random(untrained, 3).parameters(), load_model(untrained, 3).parameters(), strict=True
    ):
        assert torch.equal(mine, theirs)


def test_structural_embedding_with_random_weights(tmp_path, release):
    draw = np.random.default_rng(0)
    counts = np.triu(draw.poisson(2.0, (N, N)), 1).astype(float)
    counts += counts.T
    counts[7] = counts[:, 7] = np.nan
    folder = tmp_path / "sub-01" / "dwi"
    folder.mkdir(parents=True)
    stem = "sub-01_atlas-Schaefer2018Tian2020_scale-450"
    path = folder / f"{stem}_desc-count_relmat.tsv"
    Matrix(counts, atlas.roi_names(), rows=atlas.roi_names()).write(path)
    volumes = draw.uniform(500, 1500, N)
    Table({"name": atlas.roi_names(), "volume": volumes}).write(folder / f"{stem}_desc-rois_qc.tsv")
    convention = EdgeConvention("invnodevol", "log10")
    found = RandomNetwork(release, seed=3).structural(path)
    given = connectome_input(counts, volumes, convention)
    model = load_random(release, 3)
    expected = embed_connectome(model, given, seed=0, threads=1).embedding
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert np.flatnonzero(np.isnan(found).all(axis=1)).tolist() == [7]
    count = EdgeConvention("count", "log10p1")
    other = embed_connectome_again(connectome_of(path), model, count)
    np.testing.assert_array_equal(
        RandomNetwork(release, 3, convention=count).structural(path), other
    )
    assert not np.allclose(found, other, equal_nan=True)


def test_random_weights_get_series_scaled_as_the_outputs_say(out, release):
    run_cohort_scaling(out, release, n_workers=0)
    for cohort_scaled in (False, True):
        inventory = take_inventory(out, cohort_scaled=cohort_scaled)
        kind = random_kinds(inventory, release.folder, seed=1)["random_functional"]
        scaling = read_cohort_scaling(out) if cohort_scaled else "robust"
        run = inventory.of_modality("bold")[0].files["denoised"]
        _, expected = embed_again(run_of(run), load_random(release, 1), scaling)
        found = kind.read((run,))
        np.testing.assert_allclose(found, fisher_z(edges_of(expected.similarity)), atol=1e-6)

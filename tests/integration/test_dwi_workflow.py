"""The graph of a diffusion scan: its steps, what flows between them, and what is left of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from nipype.interfaces.base import isdefined

from bsym_bids.bold.nuisance import load_strategy
from bsym_bids.config import RunConfig
from bsym_bids.errors import BadDataError, InputMissingError
from bsym_bids.inputs import Anatomy, Derivatives, DwiImage, DwiScan, Participant, Plan
from bsym_bids.interfaces.dwi import BATCHES, RemoveWork
from bsym_bids.jobs import ScanJob, ScanSettings, Settings, jobs_of
from bsym_bids.model.weights import resolve_release
from bsym_bids.workflows import participant
from bsym_bids.workflows.dwi import init_dwi_scan_wf

# What flows from one step to another, by what is to be done.
IMAGES = {
    ("prepare", "orient"): {("dwi", "dwi")},
    ("orient", "place"): {("dwi", "dwi")},
    ("anatomy", "place"): {("anatomy", "anatomy")},
}
TRACKING = {
    ("orient", "fit"): {("dwi", "dwi")},
    ("place", "fit"): {("placed", "placed")},
    ("place", "track"): {("placed", "placed")},
    ("fit", "track"): {("model", "model")},
    ("orient", "write_connectome"): {("dwi", "dwi")},
    ("place", "write_connectome"): {("placed", "placed")},
    ("fit", "write_connectome"): {("model", "model")},
    ("track", "write_connectome"): {
        ("connectome", "connectome"),
        ("tractogram", "tractogram"),
    },
}
MODEL = {
    ("embed", "write_structural"): {("given", "given"), ("embedding", "embedding")},
    ("write_structural", "tidy"): {("out_files", "after")},
}
EDGES = {
    ("connectome", "structural"): IMAGES
    | TRACKING
    | MODEL
    | {("write_connectome", "embed"): {("out_files", "after")}},
    ("connectome",): IMAGES | TRACKING | {("write_connectome", "tidy"): {("out_files", "after")}},
    # What was published is all that the model needs: hours of tracking are not done again.
    ("structural",): MODEL,
}


@pytest.fixture
def scan(tmp_path):
    folder = tmp_path / "raw" / "sub-01" / "dwi"
    folder.mkdir(parents=True)
    paths = {kind: folder / f"sub-01_dwi.{kind}" for kind in ("nii.gz", "bval", "bvec")}
    t1w = tmp_path / "raw" / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    t1w.parent.mkdir()
    for path in (*paths.values(), t1w):
        path.touch()
    raw = Derivatives("raw", tmp_path / "raw")
    return DwiScan(
        entities={"sub": "01"},
        images=(DwiImage(*paths.values()),),
        dataset=raw,
        anatomy=Anatomy("raw", t1w, raw),
    )


def plan_of(scan):
    return Plan(scan.dataset.root, (), (Participant("01", (), dwi_scans=(scan,)),), ())


def job_of(scan, tmp_path, model="untrained", **settings):
    settings = {"engine": "dipy"} | settings
    config = RunConfig(tmp_path, tmp_path / "out", "participant", **settings)
    release = resolve_release(model)
    runs = Settings.of(config, load_strategy(config.nuisance), release)
    made = jobs_of(plan_of(scan), config, runs, ScanSettings.of(config, release))
    return made["01"][0]


@pytest.fixture
def job(scan, tmp_path):
    return job_of(scan, tmp_path)


def edges_of(workflow):
    return {
        (source.name, target.name): set(data["connect"])
        for source, target, data in workflow._graph.edges(data=True)
    }


@pytest.mark.parametrize("to_do", EDGES)
def test_steps_and_connections_follow_what_is_to_do(job, monkeypatch, to_do):
    monkeypatch.setattr(ScanJob, "is_done", lambda job, group: group not in to_do)
    workflow = init_dwi_scan_wf(job=job)
    assert edges_of(workflow) == EDGES[to_do]
    assert set(workflow.list_node_names()) == {name for edge in EDGES[to_do] for name in edge}


def test_every_file_and_setting_reaches_its_step(scan, tmp_path):
    job = job_of(scan, tmp_path, gradient_check="warn", seed=3, preset="fast", reliability=0.9)
    workflow = init_dwi_scan_wf(job=job, threads=3)
    nodes = {name: workflow.get_node(name).inputs for name in workflow.list_node_names()}
    assert nodes["prepare"].scan == scan and nodes["anatomy"].anatomy == scan.anatomy
    assert nodes["orient"].mode == "warn"
    assert nodes["place"].same_space is False
    for name in ("fit", "track"):
        assert nodes[name].engine.name == "dipy" and nodes[name].preset.name == "fast"
        assert (nodes[name].seed, nodes[name].threads) == (3, 3)
    assert nodes["track"].rule.reliability == 0.9
    assert not isdefined(nodes["track"].tractogram)
    for name in ("write_connectome", "embed", "write_structural"):
        assert nodes[name].job == job
    kept = job_of(scan, tmp_path, save_tractogram="trx")
    assert init_dwi_scan_wf(job=kept).get_node("track").inputs.tractogram == "trx"


def test_without_anatomy_the_step_is_told_of_none(scan, tmp_path):
    workflow = init_dwi_scan_wf(job=job_of(replace(scan, anatomy=None), tmp_path))
    assert not isdefined(workflow.get_node("anatomy").inputs.anatomy)


@pytest.mark.parametrize("step", ["prepare", "anatomy", "place", "fit", "track"])
def test_cached_results_know_files_version_and_settings_but_not_threads(scan, tmp_path, step):
    def hash_of(scan=scan, threads=1, **settings):
        workflow = init_dwi_scan_wf(job=job_of(scan, tmp_path, **settings), threads=threads)
        return workflow.get_node(step).inputs.get_hashval("timestamp")[1]

    before = hash_of()
    assert hash_of(threads=4) == before
    inputs = init_dwi_scan_wf(job=job_of(scan, tmp_path)).get_node(step).inputs
    inputs.version = "next"
    assert inputs.get_hashval("timestamp")[1] != before
    if step in ("fit", "track"):
        assert hash_of(preset="fast") != before
        assert hash_of(seed=5) != before
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bsym_bids.dwi.tools.preprocessing_tools", lambda: {"Denoising": "other"})
        assert (hash_of() != before) == (step == "prepare")
    if step in ("prepare", "anatomy"):
        path = scan.images[0].image if step == "prepare" else scan.anatomy.t1w
        path.write_text("other")
        assert hash_of() != before


def test_preprocessing_is_given_memory_by_processes_and_size_of_the_series(job, monkeypatch):
    def memory(size, threads):
        monkeypatch.setitem(vars(job), "work_bytes", size)
        return init_dwi_scan_wf(job=job, threads=threads).get_node("prepare").mem_gb

    assert memory(10**8, 2) < memory(10**9, 2) < memory(4 * 10**9, 2) == memory(10**11, 2) == 3
    assert memory(10**9, 1) < memory(10**9, 2)


def test_eddy_is_given_memory_for_its_copies(job, monkeypatch):
    def memory(tool):
        monkeypatch.setitem(vars(job), "preprocessing", {"MotionCorrection": tool})
        monkeypatch.setitem(vars(job), "work_bytes", 10**9)
        return init_dwi_scan_wf(job=job).get_node("prepare").mem_gb

    assert memory("FSL 6.0.7 eddy_cpu") == pytest.approx(memory("SimpleITK 2.5.7") + 3)


def test_disk_is_asked_for_what_is_still_to_be_written(job, tmp_path, monkeypatch):
    monkeypatch.setitem(vars(job), "work_bytes", 10**9)
    work = tmp_path / "scratch"
    whole = participant._missing_bytes(work, job)
    assert whole == 5_500_000_000
    left = work / "bsym" / "sub_01" / job.work_name / "prepare" / "dwi.nii"
    left.parent.mkdir(parents=True)
    left.write_bytes(bytes(1000))
    assert participant._missing_bytes(work, job) == whole - 1000
    monkeypatch.setattr(ScanJob, "is_done", lambda job, group: group == "connectome")
    assert participant._missing_bytes(work, job) == 0


def test_a_step_that_names_files_beside_it_keeps_them(job, tmp_path):
    from bsym_bids.workflows.base import init_participants_wf

    workflow = init_participants_wf(
        jobs={"01": [job]}, output_dir=tmp_path / "out", work_dir=tmp_path / "w"
    )
    assert workflow.config["execution"]["remove_unnecessary_outputs"] == "false"


def test_tidying_leaves_the_steps_that_others_read(job, tmp_path):
    workflow = init_dwi_scan_wf(job=job)
    keep = workflow.get_node("tidy").inputs.keep
    assert keep == ["write_connectome", "write_structural"]
    for name in ("prepare", "track", "tidy", BATCHES, *keep):
        (tmp_path / "scan" / name).mkdir(parents=True)
    RemoveWork(keep=keep)._call(tmp_path / "scan" / "tidy")
    left = {path.name for path in (tmp_path / "scan").iterdir()}
    assert left == {"tidy", "write_connectome", "write_structural"}


def test_tidying_is_done_again_when_a_scan_is_done_anew(job, tmp_path):
    node = init_dwi_scan_wf(job=job).get_node("tidy")
    node.base_dir = str(tmp_path)
    left = Path(node.output_dir()).with_name("prepare")
    for _ in range(2):
        left.mkdir(parents=True)
        node.run()
        assert not left.exists()


def test_batches_outlive_the_folder_of_their_step(job, tmp_path, monkeypatch):
    """Nipype empties the folder of a step that did not finish."""
    from bsym_bids.dwi import sampling
    from bsym_bids.dwi.records import FittedModel, PlacedAnatomy
    from bsym_bids.interfaces.dwi import SampleConnectome
    from bsym_bids.interfaces.files import save_record

    seen = []

    def killed(*arguments, **_):
        seen.append(arguments[4])
        raise BadDataError("killed")

    monkeypatch.setattr(sampling, "sample_connectome", killed)
    step = tmp_path / "scan" / "track"
    step.mkdir(parents=True)
    model = FittedModel("dipy", "1", {}, "fa.nii")
    interface = SampleConnectome(
        engine=job.settings.engine,
        preset=job.settings.preset,
        rule=job.settings.rule,
        placed=save_record(PlacedAnatomy("labels.nii"), tmp_path / "placed.npz"),
        model=save_record(model, tmp_path / "model.npz"),
    )
    with pytest.raises(BadDataError):
        interface._call(step)
    assert seen == [tmp_path / "scan" / BATCHES] and seen[0].is_dir()


def test_absent_engine_is_a_problem_of_those_with_scans_alone(scan, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    config = RunConfig(tmp_path, tmp_path / "out", "participant", engine="mrtrix3")
    people = (Participant("01", (), dwi_scans=(scan,)), Participant("02", ()))
    plan, settings = participant._scan_settings(
        replace(plan_of(scan), participants=people), config, resolve_release("untrained")
    )
    assert settings is None
    first, second = plan.participants
    assert not first.dwi_scans and not second.problems
    assert isinstance(first.problems[0], InputMissingError)
    assert "--engine dipy" in first.problems[0].hint


def test_without_mrtrix3_the_automatic_choice_is_dipy(scan, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert job_of(scan, tmp_path, engine="auto").settings.engine.name == "dipy"


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"something else"])
def test_windows_that_cannot_be_read_are_named(job, tmp_path, content):
    from types import SimpleNamespace

    from bsym_bids.outputs.structural import read_embeddings

    path = tmp_path / "windows.npz"
    path.write_bytes(content)
    run = SimpleNamespace(names=SimpleNamespace(path=lambda key: path), is_done=lambda group: True)
    scan = SimpleNamespace(names=job.names, is_done=run.is_done)
    with pytest.raises(BadDataError, match=r"windows\.npz"):
        read_embeddings(SimpleNamespace(run=run, scan=scan))


def test_embeddings_of_other_settings_are_not_fused(job):
    from types import SimpleNamespace

    from bsym_bids.outputs.structural import read_embeddings

    run = SimpleNamespace(names=job.names, is_done=lambda group: True)
    with pytest.raises(BadDataError, match="not those of these settings") as caught:
        read_embeddings(SimpleNamespace(run=run, scan=job))
    assert "run the same command again" in caught.value.hint


def test_volumes_that_were_published_are_the_ones_the_model_gets(job):
    from bsym_bids import atlas
    from bsym_bids.outputs.connectome import read_counts
    from bsym_bids.outputs.publish import OutputFile, publish
    from bsym_bids.outputs.tables import Matrix, Table

    rng = np.random.default_rng(0)
    counts = rng.poisson(20.0, (450, 450)).astype(float)
    counts[3] = counts[:, 3] = np.nan
    volumes = rng.integers(1, 9000, 450) * 0.125
    names = atlas.roi_names()
    rois = Table({"name": names, "network": atlas.networks(), "volume": volumes})
    publish(
        [
            OutputFile(job.names.path("count"), Matrix(counts, names, rows=names), {}),
            OutputFile(job.names.path("rois"), rois, {}),
        ],
        "x",
    )
    found = read_counts(job)
    np.testing.assert_array_equal(found[0], counts)
    np.testing.assert_array_equal(found[1], volumes)
    job.names.path("rois").write_text("name\tvolume\nA\t1\n")
    with pytest.raises(BadDataError, match="rois"):
        read_counts(job)

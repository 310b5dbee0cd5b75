"""The graphs: which steps there are, what flows between them, and what they may use."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from nipype.interfaces.base import isdefined

from bsym_bids import __version__
from bsym_bids.bold.nuisance import load_strategy
from bsym_bids.config import RunConfig
from bsym_bids.errors import CannotCreateOutputError
from bsym_bids.inputs import BoldRun, Derivatives, Participant, Plan
from bsym_bids.jobs import FusionJob, RunJob, ScanJob, Settings, jobs_of
from bsym_bids.model.weights import resolve_release
from bsym_bids.outputs.claims import Claims
from bsym_bids.workflows import invocation, participant
from bsym_bids.workflows.base import (
    crash_folder,
    init_participant_wf,
    init_participants_wf,
    run_folder,
)
from bsym_bids.workflows.bold import init_bold_run_wf
from bsym_bids.workflows.execution import PluginChoice, choose_plugin, failure_of, run_graph

# What flows from one step to another, by what is to be done.
ALWAYS = {("parcellate", "clean"): {("parcellation", "parcellation")}}
SERIES = {
    ("parcellate", "write_timeseries"): {("parcellation", "parcellation")},
    ("clean", "write_timeseries"): {("cleaned", "cleaned")},
}
EMBEDDING = {
    ("clean", "embed"): {("cleaned", "cleaned")},
    ("embed", "reconstruct"): {("windows", "windows")},
    ("clean", "write_embedding"): {("cleaned", "cleaned")},
    ("embed", "write_embedding"): {("windows", "windows"), ("embedding", "embedding")},
    ("reconstruct", "write_embedding"): {("reconstruction", "reconstruction")},
}
IN_ORDER = {("write_timeseries", "write_embedding"): {("out_files", "after")}}
EDGES = {
    ("timeseries", "embedding"): ALWAYS | SERIES | EMBEDDING | IN_ORDER,
    ("timeseries",): ALWAYS | SERIES,
    ("embedding",): ALWAYS | EMBEDDING,
}
MODEL_STEPS = ("embed", "reconstruct")


@pytest.fixture
def run(tmp_path):
    root = tmp_path / "fmriprep"
    root.mkdir()
    paths = {role: root / role for role in ("bold", "mask", "confounds")}
    for path in paths.values():
        path.touch()
    return BoldRun(
        entities={"sub": "01", "task": "rest"},
        space="MNI152NLin6Asym",
        derivatives=Derivatives("fmriprep", root),
        repetition_time=0.8,
        **paths,
    )


def jobs_for(tmp_path, *runs, **settings):
    """Return the jobs of some runs by participant."""
    config = RunConfig(tmp_path, tmp_path / "out", "participant", **settings)
    made = Settings.of(config, load_strategy(config.nuisance), resolve_release("untrained"))
    labels = sorted({run.entities["sub"] for run in runs})
    people = tuple(
        Participant(label, tuple(r for r in runs if r.entities["sub"] == label)) for label in labels
    )
    return jobs_of(Plan(tmp_path, (runs[0].derivatives,), people, ()), config, made)


@pytest.fixture
def job(run, tmp_path):
    return jobs_for(tmp_path, run)["01"][0]


def only(monkeypatch, *to_do):
    """Let only some groups of outputs be missing."""
    monkeypatch.setattr(RunJob, "is_done", lambda job, group: group not in to_do)


def edges_of(workflow):
    return {
        (source.name, target.name): set(data["connect"])
        for source, target, data in workflow._graph.edges(data=True)
    }


@pytest.mark.parametrize("to_do", EDGES)
def test_steps_and_connections_follow_what_is_to_do(job, monkeypatch, to_do):
    only(monkeypatch, *to_do)
    workflow = init_bold_run_wf(job=job)
    assert edges_of(workflow) == EDGES[to_do]
    assert set(workflow.list_node_names()) == {name for edge in EDGES[to_do] for name in edge}


def test_run_with_nothing_to_do_is_left_out(run, tmp_path, monkeypatch):
    second = replace(run, entities=run.entities | {"run": "2"})
    jobs = jobs_for(tmp_path, run, second)["01"]
    monkeypatch.setattr(RunJob, "is_done", lambda job, _: "run" in job.run.entities)
    graph = init_participant_wf(label="01", jobs=jobs)
    assert {name.split(".")[0] for name in graph.list_node_names()} == {
        "sub_01_task_rest_space_MNI152NLin6Asym_atlas_Schaefer2018Tian2020_scale_450"
    }


def test_every_input_file_and_setting_reaches_its_step(run, tmp_path):
    settings = {
        "nuisance": "36p",
        "high_pass": 0.02,
        "low_pass": 0.1,
        "fd_threshold": 0.3,
        "min_coverage": 0.8,
        "parcel_method": "pca",
        "model_tr": 0.72,
        "window_step": 50,
        "scaling": "zscore",
        "seed": 7,
    }
    job = jobs_for(tmp_path, run, **settings)["01"][0]
    workflow = init_bold_run_wf(job=job, threads=3)
    nodes = {name: workflow.get_node(name).inputs for name in workflow.list_node_names()}
    parcellate, clean, embed = (nodes[name] for name in ("parcellate", "clean", "embed"))
    files = (parcellate.bold_file, parcellate.mask_file, clean.confounds_file)
    assert files == (str(run.bold), str(run.mask), str(run.confounds))
    assert (parcellate.space, parcellate.repetition_time) == ("MNI152NLin6Asym", 0.8)
    assert parcellate.method == "pca"
    assert clean.strategy == load_strategy("36p")
    assert (clean.high_pass, clean.low_pass) == (0.02, 0.1)
    assert (clean.fd_threshold, clean.min_coverage) == (0.3, 0.8)
    assert (embed.model_tr, embed.window_step, embed.scaling) == (0.72, 50, "zscore")
    for name in MODEL_STEPS:
        assert nodes[name].release.name == "untrained"
        assert (nodes[name].seed, nodes[name].threads) == (7, 3)
    for name in ("write_timeseries", "write_embedding"):
        assert nodes[name].job == job
    # Whoever fails names the file it was about.
    assert clean.bold_file == embed.bold_file == str(run.bold)


def test_what_a_run_does_not_have_stays_undefined(run, tmp_path):
    bare = replace(run, mask=None, confounds=None, repetition_time=None)
    workflow = init_bold_run_wf(job=jobs_for(tmp_path, bare)["01"][0])
    parcellate, clean = (workflow.get_node(n).inputs for n in ("parcellate", "clean"))
    assert not isdefined(parcellate.mask_file) and not isdefined(parcellate.repetition_time)
    assert not isdefined(clean.confounds_file)


def test_only_steps_of_the_model_take_several_threads_and_much_memory(job):
    workflow = init_bold_run_wf(job=job, threads=4)
    nodes = [workflow.get_node(name) for name in workflow.list_node_names()]
    assert {node.name: node.n_procs for node in nodes if node.n_procs != 1} == dict.fromkeys(
        MODEL_STEPS, 4
    )
    memory = {node.name: node.mem_gb for node in nodes}
    assert all(memory[name] == 1.5 for name in MODEL_STEPS)
    assert all(memory[name] == 0.4 for name in memory if name not in MODEL_STEPS)


def test_number_of_threads_changes_no_cached_result(job):
    hashes = [
        init_bold_run_wf(job=job, threads=threads)
        .get_node("embed")
        .inputs.get_hashval("timestamp")[1]
        for threads in (1, 4)
    ]
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize("name", ["parcellate", "clean", "embed", "reconstruct"])
def test_another_version_uses_no_cached_result(job, name):
    inputs = init_bold_run_wf(job=job).get_node(name).inputs
    before = inputs.get_hashval("timestamp")[1]
    assert inputs.version.split()[0] == __version__
    assert f'"numpy": "{np.__version__}"' in inputs.version
    inputs.version = "next"
    assert inputs.get_hashval("timestamp")[1] != before


def test_steps_that_write_are_never_taken_from_the_cache(job):
    workflow = init_bold_run_wf(job=job)
    writing = {n for n in workflow.list_node_names() if workflow.get_node(n).overwrite}
    assert writing == {"write_timeseries", "write_embedding"}


def test_crash_files_go_to_the_logs_of_their_participant(run, tmp_path):
    other = replace(run, entities=run.entities | {"sub": "a+b"})
    jobs = jobs_for(tmp_path, run, other)
    workflow = init_participants_wf(jobs=jobs, output_dir=tmp_path / "out", work_dir=tmp_path / "w")
    folders = {}
    for name in workflow.list_node_names():
        node = workflow.get_node(name)
        folders.setdefault(name.split(".")[0], set()).add(node.config["execution"]["crashdump_dir"])
    assert folders == {
        "sub_01": {str(tmp_path / "out" / "logs" / "sub-01")},
        "sub_a_b": {str(tmp_path / "out" / "logs" / "sub-a+b")},
    }


@pytest.mark.parametrize("stop", [True, False])
def test_settings_of_the_whole_graph(job, tmp_path, stop):
    workflow = init_participants_wf(
        jobs={"01": [job]},
        output_dir=tmp_path / "out",
        work_dir=tmp_path / "w",
        stop_on_first_crash=stop,
    )
    execution = workflow.config["execution"]
    assert execution["stop_on_first_crash"] == str(stop).lower()
    assert execution["crashfile_format"] == "txt"
    assert workflow.base_dir == str(tmp_path / "w")


def test_steps_work_in_the_folder_of_their_run(job, tmp_path):
    """Where failures are looked for is where they are recorded, crash files included."""
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2)), np.eye(4)), tmp_path / "volume.nii.gz")
    job = replace(job, run=replace(job.run, bold=tmp_path / "volume.nii.gz"))
    workflow = init_participants_wf(
        jobs={"01": [job]}, output_dir=tmp_path / "out", work_dir=tmp_path / "w"
    )
    run_graph(workflow, choose_plugin(None, 1, 4.0).build(lambda *_: None))
    folder = run_folder(tmp_path / "w", "01", job)
    record = json.loads((folder / "parcellate" / "failure.json").read_text())
    assert "volume.nii.gz: has 3 dimensions" in record["message"]
    crashes = crash_folder(tmp_path / "out", "01")
    assert len(list(crashes.glob("crash-*parcellate*.txt"))) == 1
    (folder / "parcellate" / "failure.json").unlink()
    assert "3 dimensions" in failure_of(folder, crashes).message


@pytest.mark.parametrize("role", ["bold", "mask", "confounds"])
def test_file_that_vanishes_does_not_keep_the_graph_from_being_made(job, role):
    # It may be hours between discovery and the graph of the last participants.
    getattr(job.run, role).unlink()
    assert init_bold_run_wf(job=job).list_node_names()


@pytest.mark.parametrize(
    ("settings", "n_runs", "n_scans", "expected"),
    [
        ({"nprocs": 8}, 1, 0, (8, 8)),
        ({"nprocs": 8}, 3, 1, (2, 8)),
        ({"nprocs": 8}, 100, 3, (1, 2)),
        ({"nprocs": 8}, 0, 100, (8, 1)),
        ({"nprocs": 64}, 1, 1, (8, 64)),
        ({"nprocs": 8, "omp_nthreads": 3}, 100, 1, (3, 3)),
        ({"nprocs": 2, "omp_nthreads": 16}, 1, 1, (2, 2)),
    ],
)
def test_threads_of_a_step(settings, n_runs, n_scans, expected):
    config = RunConfig(Path("in"), Path("out"), "participant", **settings)
    runs = [RunJob(None, None, None)] * n_runs
    scans = [ScanJob(None, None, None)] * n_scans
    found = participant._threads(config, [*runs, *scans], PluginChoice("local", {}))
    assert (found.run, found.scan) == expected


@pytest.mark.parametrize(("asked", "expected"), [(None, 1), (6, 6)])
def test_steps_that_are_jobs_of_their_own_have_what_is_asked_for(asked, expected):
    # How many cores the machine has that submits them says nothing.
    config = RunConfig(Path("in"), Path("out"), "participant", nprocs=2, omp_nthreads=asked)
    found = participant._threads(config, [ScanJob(None, None, None)], PluginChoice("SLURM", {}))
    assert (found.run, found.scan) == (expected, expected)


def test_runs_whose_names_differ_in_signs_do_not_share_a_folder(tmp_path):
    stems = ("sub-1_task-a_acq-x", "sub-1_task-a+acq+x", "sub-1_task-a_acq+x")
    jobs = [RunJob(None, SimpleNamespace(stem=stem), None) for stem in stems]
    assert len({job.work_name for job in jobs}) == 3
    assert all(job.work_name.replace("_", "").isalnum() for job in jobs)
    assert jobs[0].work_name == "sub_1_task_a_acq_x"


def test_calls_that_fuse_hold_the_settings_of_what_they_read(monkeypatch):
    monkeypatch.setattr(participant, "fingerprint", lambda *parts: str(len(parts)))
    run = RunJob(None, None, SimpleNamespace(timeseries=1, embedding=2))
    scan = ScanJob(None, None, SimpleNamespace(connectome=1, structural=2, preprocessing=3))
    decided = participant._decided_by(run.settings, scan.settings, [FusionJob(run, scan)])
    assert decided == {"BOLD runs": "2", "diffusion scans": "3"}


def test_cleaning_stays_within_the_work_folder_and_with_who_is_asked_for(tmp_path):
    work, logs, elsewhere = tmp_path / "bsym", tmp_path / "logs", tmp_path / "elsewhere"
    for folder in (work / "sub_1" / "x", work / "sub_2" / "x", logs, elsewhere / "precious"):
        folder.mkdir(parents=True)
    (work / "sub_3").symlink_to(elsewhere)
    (work / "sub_2" / "y").symlink_to(elsewhere)
    with Claims([logs]) as claims:
        participant._clean_work(work, claims, ["1"])
        assert not (work / "sub_1" / "x").exists() and (work / "sub_2" / "x").exists()
        participant._clean_work(work, claims, [])
        assert not (work / "sub_2" / "x").exists() and (elsewhere / "precious").exists()
        (tmp_path / "link").symlink_to(elsewhere)
        with pytest.raises(CannotCreateOutputError, match="is a link"):
            participant._clean_work(tmp_path / "link", claims, [])


def test_processes_and_memory_reach_the_plugin(tmp_path):
    config = RunConfig(tmp_path, tmp_path, "participant", nprocs=3, mem_gb=2.5)
    plugin = participant._plugin(config).build(lambda *_: None)
    assert (plugin.processors, plugin.memory_gb) == (3, 2.5)


def test_processes_and_memory_of_the_machine_are_the_default(tmp_path, monkeypatch):
    monkeypatch.setattr(invocation.os, "sched_getaffinity", lambda _: {0, 1, 5})
    monkeypatch.setattr(invocation, "memory_bytes", lambda: 10 * 10**9)
    choice = participant._plugin(RunConfig(tmp_path, tmp_path, "participant"))
    assert choice.arguments["n_procs"] == 3
    assert choice.arguments["memory_gb"] == pytest.approx(9.0)

"""What decides whether a run is done again, and what does not."""

import os
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from bsym_bids import jobs, software
from bsym_bids.bold.nuisance import load_strategy
from bsym_bids.config import CALL_FIELDS, GROUP_FIELDS, RunConfig
from bsym_bids.errors import BadDataError, UsageError
from bsym_bids.inputs import BoldRun, Derivatives, Participant, Plan
from bsym_bids.jobs import RunJob, Settings, in_chunks, jobs_of
from bsym_bids.model.cards import read_card
from bsym_bids.model.weights import resolve_release
from bsym_bids.outputs.publish import OutputFile, publish
from bsym_bids.outputs.tables import Matrix

# Every setting, by what it decides, with a value that differs from the default.
OF_THE_SERIES = {
    "nuisance": "36p",
    "high_pass": 0.02,
    "low_pass": 0.1,
    "fd_threshold": 0.3,
    "min_coverage": 0.8,
    "parcel_method": "pca",
}
OF_THE_EMBEDDING = {"model_tr": 0.72, "window_step": 50, "scaling": "zscore", "seed": 1}
# What decides connectomes and structural embeddings of diffusion scans.
OF_THE_SCAN = {
    "engine": "mrtrix3",
    "preset": "fast",
    "reliability": 0.9,
    "max_streamlines": 100,
    "streamlines": 100,
    "save_tractogram": "tck",
    "gradient_check": "off",
    "sc_measure": "count",
    "sc_transform": "log10",
}
# Which runs there are, where files lie, and how much of the machine is used.
OF_NOTHING = {
    "modalities": ("dwi",),
    "participant_label": ("01",),
    "session_label": ("1",),
    "task_id": ("rest",),
    "run_id": ("1",),
    "bids_filter_file": Path("f.json"),
    "derivatives": {"a": Path("a")},
    "space": ("fsLR",),
    "work_dir": Path("w"),
    "clean_workdir": True,
    "nprocs": 3,
    "omp_nthreads": 2,
    "mem_gb": 4.0,
    "use_plugin": Path("p.yml"),
    "write_slurm": Path("jobs.sh"),
    "slurm_throttle": 9,
    "bids_database_dir": Path("db"),
    "skip_bids_validation": True,
    "stop_on_first_crash": True,
    "dry_run": True,
    "reports_only": True,
    "skip_reports": True,
    "verbose": 2,
}


@pytest.fixture
def run(tmp_path):
    root = tmp_path / "fmriprep"
    folder = root / "sub-01" / "func"
    folder.mkdir(parents=True)
    paths = {role: folder / f"sub-01_task-rest_{role}" for role in ("bold", "mask", "confounds")}
    for path in paths.values():
        path.write_text("one")
    return BoldRun(
        entities={"sub": "01", "task": "rest"},
        space="MNI152NLin6Asym",
        derivatives=Derivatives("fmriprep", root),
        repetition_time=0.8,
        **paths,
    )


def job_of(run, **settings):
    """Return the job of one run, as the participant level makes it."""
    config = RunConfig(Path("in"), Path("out"), "participant", **settings)
    release = resolve_release(config.model or "untrained")
    plan = Plan(Path("in"), (run.derivatives,), (Participant("01", (run,)),), ())
    made = Settings.of(config, load_strategy(config.nuisance), release)
    return jobs_of(plan, config, made)["01"][0]


def test_every_setting_is_known_to_decide_something_or_nothing():
    known = {*OF_THE_SERIES, *OF_THE_EMBEDDING, *OF_THE_SCAN, *OF_NOTHING, "model", "model_dir"}
    known |= set(GROUP_FIELDS)
    assert known == {f.name for f in fields(RunConfig)} - set(CALL_FIELDS)


@pytest.mark.parametrize("name", OF_THE_SERIES)
def test_settings_of_the_series_make_everything_anew(run, name):
    before, after = job_of(run), job_of(run, **{name: OF_THE_SERIES[name]})
    assert before.fingerprints["timeseries"] != after.fingerprints["timeseries"]
    assert before.fingerprints["embedding"] != after.fingerprints["embedding"]


@pytest.mark.parametrize("name", OF_THE_EMBEDDING)
def test_settings_of_the_embedding_leave_the_series_alone(run, name):
    before, after = job_of(run), job_of(run, **{name: OF_THE_EMBEDDING[name]})
    assert before.fingerprints["timeseries"] == after.fingerprints["timeseries"]
    assert before.fingerprints["embedding"] != after.fingerprints["embedding"]


@pytest.mark.parametrize("name", OF_NOTHING)
def test_other_settings_leave_everything_alone(run, name):
    assert job_of(run).fingerprints == job_of(run, **{name: OF_NOTHING[name]}).fingerprints


@pytest.mark.parametrize(
    "change",
    [
        {"version": "other"},
        {"sha256": {"spatial": "0" * 64}},
        {"card": read_card("untrained") | {"network": {"max_hops": 7}}},
    ],
)
def test_another_model_leaves_the_series_alone(run, change):
    job = job_of(run)
    release = replace(job.settings.release, **change)
    config = RunConfig(Path("in"), Path("out"), "participant")
    other = replace(job, settings=Settings.of(config, job.settings.strategy, release))
    assert job.fingerprints["timeseries"] == other.fingerprints["timeseries"]
    assert job.fingerprints["embedding"] != other.fingerprints["embedding"]


@pytest.mark.parametrize("role", ["bold", "mask", "confounds"])
@pytest.mark.parametrize("change", ["content", "touched", "absent"])
def test_changed_input_files_make_everything_anew(run, role, change):
    before = job_of(run).fingerprints
    path = getattr(run, role)
    match change:
        case "content":
            path.write_text("other")
        case "touched":
            os.utime(path, (1, 1))
        case "absent" if role == "bold":
            path.unlink()  # it may vanish between discovery and here: the reading step says so
        case "absent":
            run = replace(run, **{role: None})
    after = job_of(run).fingerprints
    assert all(before[group] != after[group] for group in before)


def test_a_changed_description_of_the_confounds_makes_everything_anew(run):
    # Older tables tell the mask of a CompCor component there.
    before = job_of(run).fingerprints
    run.confounds.with_suffix(".json").write_text("{}")
    after = job_of(run).fingerprints
    assert all(before[group] != after[group] for group in before)


def test_repetition_time_and_version_make_everything_anew(run, monkeypatch):
    before = job_of(run).fingerprints
    slower = job_of(replace(run, repetition_time=2.0)).fingerprints
    monkeypatch.setattr(jobs.bold, "__version__", "next")
    newer = job_of(run).fingerprints
    for group, value in before.items():
        assert len({value, slower[group], newer[group]}) == 3


@pytest.mark.parametrize("library", ["numpy", "scipy", "nibabel", "torch", "dipy"])
def test_another_version_of_a_library_makes_anew_what_it_computes(run, monkeypatch, library):
    before = job_of(run).fingerprints
    own = software._version
    monkeypatch.setattr(software, "_version", lambda name: "0" if name == library else own(name))
    after = job_of(run).fingerprints
    assert (before["timeseries"] == after["timeseries"]) == (library in ("torch", "dipy"))
    assert (before["embedding"] == after["embedding"]) == (library == "dipy")


def test_cut_offs_given_as_the_strategy_has_them_change_nothing(run):
    same = load_strategy("24p-wm-csf").high_pass
    assert job_of(run).fingerprints == job_of(run, high_pass=same).fingerprints


@pytest.mark.parametrize(
    "settings",
    [
        {"high_pass": 0.1, "low_pass": 0.05},
        {"high_pass": 0.1, "low_pass": 0.1},
        {"low_pass": 0.001},  # below the strategy's own high-pass
    ],
)
def test_filter_that_lets_nothing_pass_is_refused_before_anything_runs(run, settings):
    with pytest.raises(UsageError, match="not below") as caught:
        job_of(run, **settings)
    assert "--low-pass" in caught.value.hint


def test_only_missing_groups_are_to_do(run, tmp_path):
    job = job_of(run)
    job = replace(job, names=replace(job.names, output_dir=tmp_path / "out"))
    assert job.to_do == ("timeseries", "embedding")
    content = Matrix(np.ones((1, 1)), ["x"])
    for group, left in (("timeseries", ("embedding",)), ("embedding", ())):
        files = [OutputFile(path, content, {}) for path in job.names.group_paths(group)]
        publish(files, job.fingerprints[group])
        assert job.to_do == left
    job.names.path("coverage").unlink()
    assert job.to_do == ("timeseries",)


@pytest.mark.parametrize(
    ("own", "settings", "words"),
    [
        (0.8, {}, []),
        (0.72, {}, []),
        (2.0, {}, []),
        (None, {}, []),
        (0.64, {"model_tr": 0.72}, ["0.64 s apart"]),  # passes as it is
        (2.0, {"model_tr": 0.6}, ["0.6 s apart"]),
        (None, {"model_tr": 2.0, "scaling": "none"}, ["2 s apart", "'none'"]),
    ],
)
def test_deviations_from_what_the_model_is_for_are_foreseen(run, own, settings, words):
    found = job_of(replace(run, repetition_time=own), **settings).expected_deviations()
    assert len(found) == len(words)
    assert all(word in text for word, text in zip(words, found, strict=True))


def test_model_for_other_rois_has_no_settings(run):
    job = job_of(run)
    card = read_card("untrained")
    card["contract"]["rois"] = 400
    config = RunConfig(Path("in"), Path("out"), "participant")
    with pytest.raises(BadDataError, match=r"contract\.rois is 400"):
        Settings.of(config, job.settings.strategy, replace(job.settings.release, card=card))


def test_sources_are_uris_within_the_derivatives(run, tmp_path):
    assert job_of(run).sources() == {
        role: f"bids:fmriprep:sub-01/func/sub-01_task-rest_{role}"
        for role in ("bold", "mask", "confounds")
    }
    elsewhere = replace(run, bold=tmp_path / "bold.nii", mask=None)
    sources = job_of(elsewhere).sources()
    assert sources["bold"] == "bids:fmriprep:bold.nii"
    assert "mask" not in sources


def test_jobs_follow_the_plan_and_name_the_outputs(run):
    second = replace(run, entities=run.entities | {"run": "2"}, resolution="2", density=None)
    people = (Participant("02", ()), Participant("01", (second, run)))
    plan = Plan(Path("in"), (run.derivatives,), people, ())
    config = RunConfig(Path("in"), Path("out"), "participant", parcel_method="pca")
    settings = Settings.of(config, load_strategy("none"), resolve_release("untrained"))
    made = jobs_of(plan, config, settings)
    assert list(made) == ["02", "01"] and made["02"] == []
    assert [job.run for job in made["01"]] == [second, run]
    name = made["01"][0].names.path("timeseries").as_posix()
    assert name.startswith("out/sub-01/func/sub-01_task-rest_run-2_space-MNI152NLin6Asym_")
    assert name.endswith("_res-2_stat-pc1_timeseries.tsv")
    assert all(isinstance(job, RunJob) and job.settings is settings for job in made["01"])


@pytest.mark.parametrize(
    ("count", "size", "expected"), [(0, 3, []), (3, 3, [3]), (4, 3, [3, 1]), (2, 5, [2])]
)
def test_chunks_hold_everybody_once_and_in_order(count, size, expected):
    labels = [str(number) for number in range(count)]
    chunks = list(in_chunks(labels, size))
    assert [len(chunk) for chunk in chunks] == expected
    assert [label for chunk in chunks for label in chunk] == labels

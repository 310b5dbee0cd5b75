"""What decides whether a diffusion scan is done again, and what its outputs are."""

import os
from dataclasses import replace
from pathlib import Path

import dipy
import pytest

from bsym_bids import jobs, software
from bsym_bids.bold.nuisance import load_strategy
from bsym_bids.config import RunConfig
from bsym_bids.inputs import Anatomy, BoldRun, Derivatives, DwiImage, DwiScan, Participant, Plan
from bsym_bids.jobs import FusionJob, RunJob, ScanJob, ScanSettings, Settings, jobs_of
from bsym_bids.jobs.fusion import fusions_of
from bsym_bids.model.weights import resolve_release
from bsym_bids.outputs.sidecars import scan_sidecar

# Every setting that decides a connectome, and those that decide what the model makes of it.
OF_THE_CONNECTOME = {
    "preset": "fast",
    "reliability": 0.9,
    "max_streamlines": 100,
    "streamlines": 100,
    "save_tractogram": "tck",
    "gradient_check": "off",
    "seed": 1,
}
OF_THE_EMBEDDING = {"sc_measure": "count", "sc_transform": "log10p1"}
OF_NOTHING = {"nprocs": 3, "omp_nthreads": 2, "nuisance": "36p", "work_dir": Path("w")}


@pytest.fixture
def scan(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    paths = [folder / f"sub-01_dwi.{kind}" for kind in ("nii.gz", "bval", "bvec")]
    t1w = folder / "sub-01_T1w.nii.gz"
    for path in (*paths, t1w):
        path.write_text("one")
    raw = Derivatives("raw", folder)
    return DwiScan({"sub": "01"}, (DwiImage(*paths),), raw, anatomy=Anatomy("raw", t1w, raw))


def settings_of(model="untrained", **settings):
    settings = {"engine": "dipy"} | settings
    config = RunConfig(Path("in"), Path("out"), "participant", **settings)
    return config, ScanSettings.of(config, resolve_release(model))


def job_of(scan, **settings):
    config, made = settings_of(**settings)
    plan = Plan(Path("in"), (), (Participant("01", (), dwi_scans=(scan,)),), ())
    runs = Settings.of(config, load_strategy(config.nuisance), made.release)
    return jobs_of(plan, config, runs, made)["01"][0]


@pytest.mark.parametrize("name", OF_THE_CONNECTOME)
def test_settings_of_the_connectome_make_everything_anew(scan, name):
    before, after = job_of(scan), job_of(scan, **{name: OF_THE_CONNECTOME[name]})
    assert before.fingerprints["connectome"] != after.fingerprints["connectome"]
    assert before.fingerprints["structural"] != after.fingerprints["structural"]


@pytest.mark.mrtrix3
def test_the_engine_makes_everything_anew(scan):
    before, after = job_of(scan), job_of(scan, engine="mrtrix3")
    assert all(before.fingerprints[group] != after.fingerprints[group] for group in before.to_do)


@pytest.mark.parametrize("name", OF_THE_EMBEDDING)
def test_settings_of_the_embedding_leave_the_connectome_alone(scan, name):
    before, after = job_of(scan), job_of(scan, **{name: OF_THE_EMBEDDING[name]})
    assert before.fingerprints["connectome"] == after.fingerprints["connectome"]
    assert before.fingerprints["structural"] != after.fingerprints["structural"]


def test_another_model_leaves_the_connectome_alone(scan):
    before, after = job_of(scan), job_of(scan, model="bsym-sim-v1")
    assert before.fingerprints["connectome"] == after.fingerprints["connectome"]
    assert before.fingerprints["structural"] != after.fingerprints["structural"]


@pytest.mark.parametrize("name", OF_NOTHING)
def test_other_settings_leave_everything_alone(scan, name):
    assert job_of(scan).fingerprints == job_of(scan, **{name: OF_NOTHING[name]}).fingerprints


def test_a_preset_of_ones_own_is_known_by_what_is_in_it(scan, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("base: fast\nmin_length: 30\n")
    before = job_of(scan, preset=str(path)).fingerprints
    path.write_text("base: fast\nmin_length: 31\n")
    assert job_of(scan, preset=str(path)).fingerprints != before


@pytest.mark.parametrize("what", ["image", "bval", "bvec", "t1w"])
def test_changed_input_files_make_everything_anew(scan, what):
    before = job_of(scan).fingerprints
    path = scan.anatomy.t1w if what == "t1w" else getattr(scan.images[0], what)
    os.utime(path, (1, 1))
    after = job_of(scan).fingerprints
    assert all(before[group] != after[group] for group in before)


@pytest.mark.parametrize("change", [{"phase_encoding": "j-"}, {"readout_time": 0.05}])
def test_how_it_was_acquired_and_the_version_make_everything_anew(scan, change, monkeypatch):
    before = job_of(scan).fingerprints
    image = replace(scan.images[0], **change)
    after = job_of(replace(scan, images=(image,))).fingerprints
    monkeypatch.setattr(jobs.dwi, "__version__", "next")
    newer = job_of(scan).fingerprints
    for group, value in before.items():
        assert len({value, after[group], newer[group]}) == 3


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """A PATH with nothing on it, and what puts commands there."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("FSLDIR", raising=False)

    def install(*names, version="3.0.4"):
        for name in names:
            (folder / name).write_text(f"#!/bin/sh\necho '== {name} {version} =='\n")
            (folder / name).chmod(0o755)
        (tmp_path / "etc").mkdir(exist_ok=True)
        (tmp_path / "etc" / "fslversion").write_text(version)

    return install


MRTRIX3, FSL = ("dwidenoise", "mrdegibbs", "dwifslpreproc"), ("eddy_cpu",)


def encoded(scan, *encodings, reverse=()):
    """Return the scan with a series for each phase encoding; reverse ones only serve topup."""
    images = [replace(scan.images[0], phase_encoding=encoding) for encoding in encodings]
    others = [replace(scan.images[0], phase_encoding=encoding) for encoding in reverse]
    return replace(scan, images=tuple(images), reverse=tuple(others))


@pytest.mark.parametrize("installed", [MRTRIX3, MRTRIX3[:1], (*MRTRIX3, *FSL)])
def test_what_preprocesses_raw_series_makes_them_anew(scan, commands, installed):
    """Programs of MRtrix3 and FSL are used whatever the engine is."""
    scan = encoded(scan, "j")
    preprocessed = replace(scan, space="ACPC")
    before, alone = job_of(scan).fingerprints, job_of(preprocessed).fingerprints
    commands(*installed)
    after = job_of(scan).fingerprints
    commands(*installed, version="3.0.5")
    newer = job_of(scan).fingerprints
    for group, value in before.items():
        assert len({value, after[group], newer[group]}) == 3
    assert job_of(preprocessed).fingerprints == alone


@pytest.mark.parametrize(
    ("encodings", "reverse", "with_eddy", "with_topup"),
    [
        (["j"], [], True, False),
        (["j", "j"], [], True, False),
        (["j", "j-"], [], True, True),
        (["j"], ["j-"], True, True),
        (["j"], ["j"], True, False),
        (["j"], [None], True, False),  # of which nobody knows what it measures
        ([None], [], False, False),
        (["j", None], ["j-"], False, False),
    ],
)
def test_fsl_makes_those_scans_anew_that_it_is_used_for(
    scan, commands, tmp_path, encodings, reverse, with_eddy, with_topup
):
    scan = encoded(scan, *encodings, reverse=reverse)

    def decided():
        job = job_of(scan)
        return job.fingerprints, job.preprocessing["MotionCorrection"]

    commands("dwifslpreproc")
    without, _ = decided()
    commands(*FSL)
    eddy, tool = decided()
    assert (eddy != without) == with_eddy
    assert tool.startswith("FSL 3.0.4 eddy_cpu" if with_eddy else "SimpleITK ")
    commands("topup", "applytopup")
    config = tmp_path / "etc" / "flirtsch" / "b02b0.cnf"
    config.parent.mkdir()
    config.touch()
    topup, tool = decided()
    assert (topup != eddy) == with_topup and tool.endswith("and topup") == with_topup


@pytest.mark.parametrize("space", [None, "ACPC"])
@pytest.mark.parametrize(
    "library", ["numpy", "scipy", "nibabel", "dipy", "SimpleITK", "nitransforms", "torch"]
)
def test_another_version_of_a_library_makes_anew_what_it_computes(
    scan, monkeypatch, space, library
):
    scan = replace(scan, space=space)
    before = job_of(scan).fingerprints
    own = software._version
    monkeypatch.setattr(software, "_version", lambda name: "0" if name == library else own(name))
    after = job_of(scan).fingerprints
    assert (before["connectome"] == after["connectome"]) == (library == "torch")
    assert before["structural"] != after["structural"]


def test_sidecars_list_what_the_fingerprint_is_of(scan, commands):
    listed = scan_sidecar(job_of(scan), "count", [])["SoftwareVersions"]
    libraries = {*software.OF_ALL, *software.OF_SCANS, *software.OF_MODELS}
    assert set(listed) == libraries | {"bsym-bids", "python"}
    assert listed["dipy"] == dipy.__version__


def test_what_preprocesses_is_named_with_its_version(scan, commands):
    commands(*MRTRIX3, *FSL)
    tools = job_of(encoded(scan, "j")).preprocessing
    assert tools["Denoising"] == "dwidenoise 3.0.4"
    assert tools["GibbsRemoval"] == "mrdegibbs 3.0.4"
    assert tools["MotionCorrection"] == "FSL 3.0.4 eddy_cpu"
    assert tools["BiasCorrection"].startswith("SimpleITK ")


def test_a_command_that_cannot_be_run_does_not_keep_the_others_from_running(commands, tmp_path):
    commands("dwidenoise")
    (tmp_path / "bin" / "dwidenoise").write_text("#!/bin/sh\nexit 127\n")
    assert settings_of()[1].preprocessing["Denoising"] == "dwidenoise unknown"


def test_sidecars_have_the_parameters_of_the_engine_in_use(scan):
    preset = job_of(scan).settings.connectome["Preset"]
    assert "dipy" in preset and "mrtrix3" not in preset


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (0.99, 10_000_000, None)),
        ({"preset": "fast"}, (0.95, 2_000_000, None)),
        ({"reliability": 0.9, "max_streamlines": 7}, (0.9, 7, None)),
        ({"streamlines": 5}, (None, 10_000_000, 5)),
    ],
)
def test_rule_is_as_asked_else_the_presets(settings, expected):
    rule = settings_of(**settings)[1].rule
    assert (rule.reliability, rule.max_streamlines, rule.streamlines) == expected


def test_convention_is_as_asked_else_the_cards():
    card = settings_of("bsym-sim-v1")[1].convention
    asked = settings_of("bsym-sim-v1", sc_measure="invnodevol", sc_transform="log10")[1].convention
    assert (card.measure, card.transform) == ("count", "log10p1")
    assert (asked.measure, asked.transform) == ("invnodevol", "log10")


def test_names_tell_what_the_engine_gives(scan):
    paths = job_of(scan).names.group_paths("connectome")
    assert not any("desc-sift2" in path.name or path.suffix == ".tck" for path in paths)
    kept = job_of(scan, save_tractogram="tck").names.group_paths("connectome")
    assert sum(path.suffix == ".tck" for path in kept) == 1


@pytest.mark.mrtrix3
def test_mrtrix3_gives_fibre_capacities(scan, tmp_path):
    def has_sift2(**settings):
        paths = job_of(scan, engine="mrtrix3", **settings).names.group_paths("connectome")
        return any("desc-sift2" in path.name for path in paths)

    without = tmp_path / "without.yaml"
    without.write_text("base: fast\nsift2: false\n")
    assert has_sift2() and not has_sift2(preset=str(without))


def test_sources_are_uris_within_their_datasets(scan):
    assert job_of(scan).sources() == [
        "bids:raw:sub-01_dwi.nii.gz",
        "bids:raw:sub-01_dwi.bval",
        "bids:raw:sub-01_dwi.bvec",
        "bids:raw:sub-01_T1w.nii.gz",
    ]


def test_connectomes_unlike_those_of_the_model_are_foreseen(scan):
    assert job_of(scan, model="bsym-sim-v1").expected_deviations() == []
    unlike = job_of(scan, model="bsym-sim-v1", sc_transform="log10").expected_deviations()
    assert len(unlike) == 1 and "log10" in unlike[0]


# --- both modalities -----------------------------------------------------------------------------


def both(scan, model, run_sessions, scan_sessions):
    """Return the jobs of a participant with runs and scans in some sessions."""
    config, made = settings_of(model)
    runs = Settings.of(config, load_strategy("none"), made.release)
    derivatives = Derivatives("fmriprep", Path("d"))

    def entities(session):
        return {"sub": "01"} | ({"ses": session} if session else {})

    person = Participant(
        "01",
        tuple(
            BoldRun({**entities(s), "task": "rest"}, "fsLR", Path("b"), derivatives)
            for s in run_sessions
        ),
        dwi_scans=tuple(replace(scan, entities=entities(s)) for s in scan_sessions),
    )
    return jobs_of(Plan(Path("in"), (), (person,), ()), config, runs, made)["01"]


def test_a_run_is_fused_with_the_scan_of_its_session_else_the_first(scan):
    made = both(scan, "bsym-sim-v1", ["1", "2", "3"], ["2", "3"])
    pairs = [
        (job.run.run.entities["ses"], job.scan.scan.entities["ses"])
        for job in made
        if isinstance(job, FusionJob)
    ]
    assert pairs == [("1", "2"), ("2", "2"), ("3", "3")]
    assert [type(job) for job in made[:5]] == [RunJob] * 3 + [ScanJob] * 2


@pytest.mark.parametrize(
    ("model", "runs", "scans"),
    [("untrained", [None], [None]), ("bsym-sim-v1", [], [None]), ("bsym-sim-v1", [None], [])],
)
def test_nothing_is_fused_without_both_modalities_and_a_trained_gate(scan, model, runs, scans):
    made = both(scan, model, runs, scans)
    assert not any(isinstance(job, FusionJob) for job in made)
    assert fusions_of([], []) == []


def test_a_fusion_is_done_again_when_one_of_the_two_is(scan):
    *_, fusion = both(scan, "bsym-sim-v1", [None], [None])
    before = fusion.fingerprints
    os.utime(scan.images[0].image, (1, 1))
    *_, again = both(scan, "bsym-sim-v1", [None], [None])
    assert again.fingerprints != before
    assert fusion.waits_for == (fusion.run, fusion.scan)

"""Which diffusion scans are found, with which anatomy, and what is said about the rest."""

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from fake_bids import (
    DIRECTIONS,
    FMRIPREP,
    MNI2009,
    NO_DIRECTIONS,
    TEMPLATE,
    add_anatomy,
    add_dwi,
    add_qsiprep,
    add_run,
    make_fmriprep,
    make_qsiprep,
    make_raw,
    undownload,
    undownload_unlocked,
    write,
)

from bsym_bids.cli import parse_config
from bsym_bids.errors import InputMissingError, NothingSelectedError, UsageError
from bsym_bids.inputs import Selection, describe_route, plan_inputs
from bsym_bids.inputs.datasets import find_derivatives
from bsym_bids.summary import print_plan

RES2 = f"{MNI2009}_res-2"
AFEW = (0, 1000, 1000, 1000)


@pytest.fixture
def bids(tmp_path):
    """A BIDS dataset without anybody."""
    return make_raw(tmp_path / "bids")


@pytest.fixture
def fmriprep(bids):
    """An empty fMRIPrep dataset in it."""
    return make_fmriprep(bids / "derivatives" / "fmriprep")


@pytest.fixture
def qsiprep(bids):
    """An empty QSIPrep dataset in it."""
    return make_qsiprep(bids / "derivatives" / "qsiprep")


def scans_of(plan):
    return [scan for participant in plan.participants for scan in participant.dwi_scans]


def labels_of(plan):
    return [scan.label for scan in scans_of(plan)]


def names_of(images):
    return [image.image.name for image in images]


def problems_of(plan):
    return [str(problem) for participant in plan.participants for problem in participant.problems]


def reasons_of(plan):
    return {skipped.path.name: skipped.reason for skipped in plan.skipped}


def only_scan(plan):
    (scan,) = scans_of(plan)
    assert not problems_of(plan)
    return scan


def nothing_of(bids, **options):
    """Return why nobody is left."""
    with pytest.raises(NothingSelectedError) as caught:
        plan_inputs(bids, **options)
    return caught.value.hint


def t1w(dataset, stem):
    return write(add_run_folder(dataset, stem) / f"{stem}_T1w.nii.gz")


def add_run_folder(dataset, stem):
    parts = [part for part in stem.split("_") if part.startswith(("sub-", "ses-"))]
    return dataset.joinpath(*parts, "anat")


# ---------------------------------------------------------------------------------------------
# Who has what
# ---------------------------------------------------------------------------------------------


def test_raw_diffusion_alone_is_enough(bids):
    image = add_dwi(bids, "sub-01", phase_encoding="j-")
    plan = plan_inputs(bids)
    assert plan.derivatives == ()
    scan = only_scan(plan)
    assert scan.label == "sub-01_dwi"
    assert scan.entities == {"sub": "01"}
    (one,) = scan.images
    assert (one.image, one.phase_encoding, one.readout_time) == (image, "j-", None)
    assert one.bval == image.with_name("sub-01_dwi.bval")
    assert one.bvec == image.with_name("sub-01_dwi.bvec")
    assert (scan.space, scan.mask, scan.reverse, scan.anatomy) == (None, None, (), None)
    assert (scan.dataset.name, scan.dataset.root) == ("raw", bids)
    assert not scan.is_preprocessed and not scan.same_space
    assert plan.datasets == (scan.dataset,)


def test_one_command_serves_everybody(bids, fmriprep, qsiprep):
    add_run(fmriprep, "sub-bold_task-rest")
    add_run(fmriprep, "sub-both_task-rest")
    add_dwi(bids, "sub-both")
    add_dwi(bids, "sub-raw")
    add_qsiprep(qsiprep, "sub-prep")
    t1w(bids, "sub-none")
    plan = plan_inputs(bids)
    assert {p.label: (len(p.bold_runs), len(p.dwi_scans)) for p in plan.participants} == {
        "bold": (1, 0),
        "both": (1, 1),
        "prep": (0, 1),
        "raw": (0, 1),
    }
    assert not problems_of(plan)
    assert reasons_of(plan) == {
        "sub-none": "no fMRIPrep derivatives and no diffusion series for this participant"
    }
    assert [d.name for d in plan.derivatives] == ["fmriprep", "qsiprep"]


@pytest.mark.parametrize(
    ("modalities", "expected", "left"),
    [
        (["bold"], {"a": (1, 0)}, "no fMRIPrep derivatives for this participant"),
        (["dwi"], {"a": (0, 1), "b": (0, 1)}, None),
    ],
)
def test_half_of_it_can_be_asked_for(bids, fmriprep, modalities, expected, left):
    add_run(fmriprep, "sub-a_task-rest")
    add_dwi(bids, "sub-a")
    add_dwi(bids, "sub-b")
    plan = plan_inputs(bids, modalities=modalities)
    found = {p.label: (len(p.bold_runs), len(p.dwi_scans)) for p in plan.participants}
    assert found == expected
    assert reasons_of(plan).get("sub-b") == left


def test_diffusion_alone_of_people_without_it(bids, fmriprep):
    add_run(fmriprep, "sub-01_task-rest")
    with pytest.raises(InputMissingError, match="no diffusion series found"):
        plan_inputs(bids, modalities=["dwi"])
    add_dwi(bids, "sub-02")
    plan = plan_inputs(bids, modalities=["dwi"])
    assert labels_of(plan) == ["sub-02_dwi"]
    assert reasons_of(plan)["sub-01"] == "no diffusion series that is asked for"


def test_someone_asked_for_who_has_nothing_is_a_problem(bids):
    add_dwi(bids, "sub-01")
    t1w(bids, "sub-02")
    plan = plan_inputs(bids, selection=Selection(participants=["01", "02"]))
    assert problems_of(plan) == [
        "sub-02: no fMRIPrep derivatives and no diffusion series for this participant"
    ]
    assert len(scans_of(plan)) == 1
    with pytest.raises(NothingSelectedError, match="--participant-label 3"):
        plan_inputs(bids, selection=Selection(participants=["3"]))


def test_named_derivatives_without_participants_are_an_error_all_the_same(bids, tmp_path):
    add_dwi(bids, "sub-01")
    wrong = make_qsiprep(tmp_path / "deep" / "qsiprep", "sub-01").parent
    with pytest.raises(InputMissingError, match="no folder of a participant"):
        plan_inputs(bids, derivatives={"qsiprep": wrong})


def test_the_raw_dataset_gets_a_name_of_its_own(bids, tmp_path):
    add_dwi(bids, "sub-01")
    other = make_fmriprep(tmp_path / "other", "sub-01_task-rest")
    plan = plan_inputs(bids, derivatives={"raw": other})
    assert only_scan(plan).dataset.name == "raw-2"
    assert [d.name for d in plan.datasets] == ["raw", "raw-2"]


def test_relative_paths_find_the_same(bids, monkeypatch):
    add_dwi(bids, "sub-01", kinds=("bvec",))
    write(bids / "dwi.bval", "0 1000")
    monkeypatch.chdir(bids)
    for given in (".", "../bids"):
        scan = only_scan(plan_inputs(Path(given)))
        assert scan.images[0].bval.is_relative_to(scan.dataset.root)


# ---------------------------------------------------------------------------------------------
# Which raw series are one scan
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("series", "expected"),
    [
        (["run-1", "run-2"], {"": ["run-1", "run-2"]}),
        (["run-2", "run-10"], {"": ["run-2", "run-10"]}),
        (["dir-AP", "dir-PA"], {"": ["dir-AP", "dir-PA"]}),
        (
            ["dir-AP_run-1", "dir-AP_run-2", "dir-PA_run-1", "dir-PA_run-2"],
            {"": ["dir-AP_run-1", "dir-AP_run-2", "dir-PA_run-1", "dir-PA_run-2"]},
        ),
        # what all of them have is kept
        (["dir-AP_run-1", "dir-AP_run-2"], {"dir-AP": ["dir-AP_run-1", "dir-AP_run-2"]}),
        (["dir-AP_run-1", "dir-PA_run-1"], {"run-1": ["dir-AP_run-1", "dir-PA_run-1"]}),
        # a lone series keeps its name
        (["run-1"], {"run-1": ["run-1"]}),
        (["acq-x_dir-AP_run-1"], {"acq-x_dir-AP_run-1": ["acq-x_dir-AP_run-1"]}),
        (["acq-a", "acq-b"], {"acq-a": ["acq-a"], "acq-b": ["acq-b"]}),
        (
            ["acq-a_run-1", "acq-a_run-2", "acq-b_run-1"],
            {"acq-a": ["acq-a_run-1", "acq-a_run-2"], "acq-b_run-1": ["acq-b_run-1"]},
        ),
        (["chunk-1", "chunk-2"], {"chunk-1": ["chunk-1"], "chunk-2": ["chunk-2"]}),
        (["rec-a", "rec-b"], {"rec-a": ["rec-a"], "rec-b": ["rec-b"]}),
    ],
)
@pytest.mark.parametrize("stem", ["sub-01", "sub-01_ses-1"])
def test_series_that_differ_in_run_and_direction_are_one_scan(bids, stem, series, expected):
    for name in series:
        add_dwi(bids, f"{stem}_{name}")
    plan = plan_inputs(bids)
    assert not problems_of(plan) and not plan.skipped
    assert {scan.label: names_of(scan.images) for scan in scans_of(plan)} == {
        "_".join(filter(None, (stem, scan, "dwi"))): [f"{stem}_{one}_dwi.nii.gz" for one in names]
        for scan, names in expected.items()
    }
    assert all(scan.reverse == () for scan in scans_of(plan))


def test_sessions_stay_apart(bids):
    for session in ("a", "b"):
        for run in "12":
            add_dwi(bids, f"sub-01_ses-{session}_run-{run}")
    assert labels_of(plan_inputs(bids)) == ["sub-01_ses-a_dwi", "sub-01_ses-b_dwi"]


@pytest.mark.parametrize("bvals", [NO_DIRECTIONS, AFEW])
@pytest.mark.parametrize(
    ("main", "helper"),
    [
        (("dir-AP", "j-"), ("dir-PA", "j")),
        (("run-1", "i"), ("run-2", "i-")),
        # of another acquisition of the session
        (("acq-multi_dir-AP", "j-"), ("acq-b0_dir-PA", "j")),
        (("acq-multi", "j"), ("acq-b0", "j-")),
    ],
)
def test_a_series_against_the_phase_encoding_measures_distortions(bids, main, helper, bvals):
    add_dwi(bids, f"sub-01_{main[0]}", phase_encoding=main[1])
    add_dwi(bids, f"sub-01_{helper[0]}", bvals, phase_encoding=helper[1])
    scan = only_scan(plan_inputs(bids))
    assert scan.label == f"sub-01_{main[0]}_dwi"
    assert names_of(scan.images) == [f"sub-01_{main[0]}_dwi.nii.gz"]
    assert names_of(scan.reverse) == [f"sub-01_{helper[0]}_dwi.nii.gz"]


def test_one_series_may_measure_the_distortions_of_several_scans(bids):
    for name in ("acq-a_dir-AP", "acq-b_dir-AP", "acq-c_dir-PA"):
        add_dwi(bids, f"sub-01_{name}")
    add_dwi(bids, "sub-01_acq-rev_dir-PA", NO_DIRECTIONS)
    plan = plan_inputs(bids)
    assert [len(scan.reverse) for scan in scans_of(plan)] == [1, 1, 0]
    assert not plan.skipped


@pytest.mark.parametrize(
    ("stem", "encoding", "label"),
    [("sub-01", "j", "sub-01_dwi"), ("sub-01_dir-1", None, "sub-01_dir-1_dwi")],
)
def test_a_short_series_of_the_same_phase_encoding_belongs_to_the_scan(bids, stem, encoding, label):
    add_dwi(bids, f"{stem}_run-1", phase_encoding=encoding)
    add_dwi(bids, f"{stem}_run-2", NO_DIRECTIONS, phase_encoding=encoding)
    scan = only_scan(plan_inputs(bids))
    assert (len(scan.images), scan.reverse, scan.label) == (2, (), label)


@pytest.mark.parametrize("known", [(None, None), ("j-", None)])
def test_without_phase_encodings_in_the_sidecars_one_direction_is_used(bids, known):
    few = (0, *(1000,) * 7)
    for stem, encoding in zip(("dir-AP", "dir-PA"), known, strict=True):
        for run in "12":
            bvals = few if (stem, run) == ("dir-AP", "2") else DIRECTIONS
            add_dwi(bids, f"sub-01_{stem}_run-{run}", bvals, phase_encoding=encoding)
    add_dwi(bids, "sub-02_dir-1", phase_encoding=None)
    add_dwi(bids, "sub-02_dir-2", phase_encoding=None)
    plan = plan_inputs(bids)
    assert labels_of(plan) == ["sub-01_dir-PA_dwi", "sub-02_dir-1_dwi"]
    assert [len(scan.images) for scan in scans_of(plan)] == [2, 1]
    reasons = reasons_of(plan)
    assert len(reasons) == 3
    assert "as dir-PA by its name" in reasons["sub-01_dir-AP_run-1_dwi.nii.gz"]
    assert "PhaseEncodingDirection" in reasons["sub-02_dir-2_dwi.nii.gz"]


@pytest.mark.parametrize(
    ("main", "other"),
    [
        (("run-1", None), ("run-2", None)),  # nobody knows
        (("dir-AP", None), ("dir-PA", None)),  # without sidecars topup is no use
        (("dir-AP", "j-"), ("dir-PA", None)),
        (("run-1", "j"), ("run-2", "i")),  # across
        (("acq-a", "j"), ("acq-b", "j")),  # another acquisition, and no help
    ],
)
def test_a_short_series_that_is_no_help_is_left_out(bids, main, other):
    add_dwi(bids, f"sub-01_{main[0]}", phase_encoding=main[1])
    add_dwi(bids, f"sub-01_{other[0]}", NO_DIRECTIONS, phase_encoding=other[1])
    plan = plan_inputs(bids)
    assert only_scan(plan).label == f"sub-01_{main[0]}_dwi"
    reason = reasons_of(plan)[f"sub-01_{other[0]}_dwi.nii.gz"]
    assert reason.startswith("fewer than 6 diffusion-weighted volumes")


def test_opposite_series_with_directions_are_both_used(bids):
    add_dwi(bids, "sub-01_dir-AP", phase_encoding="j-")
    add_dwi(bids, "sub-01_dir-PA", phase_encoding="j")
    scan = only_scan(plan_inputs(bids))
    assert [image.phase_encoding for image in scan.images] == ["j-", "j"]


@pytest.mark.parametrize("bvals", [NO_DIRECTIONS, (0, 1, 1, 1, 1, 1, 1, 2)])
def test_b_values_in_other_units_or_none_are_left_to_those_who_check_them(bids, bvals):
    # All b-values of s/um2 are below 50: nothing may be taken for a help then.
    add_dwi(bids, "sub-01_dir-AP", bvals)
    add_dwi(bids, "sub-01_dir-PA", bvals)
    scan = only_scan(plan_inputs(bids))
    assert (len(scan.images), len(scan.reverse)) == (2, 0)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("sub-01/dwi/sub-01_part-phase_dwi.nii.gz", "part-phase: only magnitude"),
        ("sub-01/dwi/sub-01_part-imag_dwi.nii.gz", "part-imag: only magnitude"),
        ("sub-01/dwi/sub-01_desc-denoised_dwi.nii.gz", "neither a raw series"),
        ("sub-01/dwi/sub-01_space-orig_dwi.nii.gz", "neither a raw series"),
        ("sub-01/dwi/sub-01_dwi.nii", "the same series is taken as sub-01_dwi.nii.gz"),
        ("sub-01/dwi/sub-01_ses-2_dwi.nii.gz", "not in the folder that its name belongs in"),
        ("sub-01/dwi/sub-02_dwi.nii.gz", "not in the folder that its name belongs in"),
        ("sub-01/dwi/old/sub-01_dwi.nii.gz", "not in the folder that its name belongs in"),
        ("sub-01/old/dwi/sub-01_dwi.nii.gz", "not in the folder that its name belongs in"),
        ("sub-01/ses-1/dwi/sub-01_dwi.nii.gz", "not in the folder that its name belongs in"),
        ("sub-01/func/sub-01_run-9_dwi.nii.gz", "not in the folder that its name belongs in"),
        ("sub-01/dwi/dti_dwi.nii.gz", "not in the folder that its name belongs in"),
        ("sub-01_old/dwi/sub-01_dwi.nii.gz", "not a label of BIDS"),
    ],
)
def test_series_that_are_not_used_are_listed(bids, name, reason):
    add_dwi(bids, "sub-01")
    extra = write(bids / name)
    plan = plan_inputs(bids)
    assert names_of(only_scan(plan).images) == ["sub-01_dwi.nii.gz"]
    (skipped,) = plan.skipped
    assert skipped.path in (extra, *extra.parents)
    assert skipped.reason.startswith(reason)


@pytest.mark.parametrize(
    "name",
    [
        "sub-01/dwi/sub-01_sbref.nii.gz",
        "sub-01/dwi/sub-01_ADC.nii.gz",
        "sub-01/dwi/sub-01_dwi.nii.gz.part",
        "sub-01/dwi/._sub-01_dwi.nii.gz",
        "sub-01/dwi/.ipynb_checkpoints/sub-01_dwi.nii.gz",
        "sub-01/dwi/sub-01_dwi (1).nii.gz",
        "sub-01/dwi/sub-01_dwiref.nii.gz",
        "sourcedata/sub-01/dwi/sub-01_dwi.nii.gz",
    ],
)
def test_other_files_are_no_series(bids, name):
    add_dwi(bids, "sub-01")
    write(bids / name)
    plan = plan_inputs(bids)
    assert names_of(only_scan(plan).images) == ["sub-01_dwi.nii.gz"]
    assert not plan.skipped


def test_magnitude_images_are_used(bids):
    for part in ("mag", "phase"):
        add_dwi(bids, f"sub-01_part-{part}", kinds=())
    write(bids / "sub-01" / "dwi" / "sub-01_dwi.bval", "0 1000")
    write(bids / "sub-01" / "dwi" / "sub-01_dwi.bvec", "0 1\n0 0\n0 0")
    assert labels_of(plan_inputs(bids)) == ["sub-01_part-mag_dwi"]


@pytest.mark.parametrize("name", ["sub-01_eyes_dwi", "sub-01_acq-a.b_dwi", "sub-01_acq-a-b_dwi"])
def test_a_name_that_is_not_all_entities_is_a_problem(bids, name):
    add_dwi(bids, "sub-01")
    odd = write(bids / "sub-01" / "dwi" / f"{name}.nii.gz")
    plan = plan_inputs(bids)
    assert labels_of(plan) == ["sub-01_dwi"]
    (problem,) = problems_of(plan)
    assert problem == f"{odd}: its name is not one of BIDS"


def test_sessions_and_participants_may_be_links(bids, tmp_path):
    store = make_raw(tmp_path / "store")
    add_dwi(store, "sub-01_ses-1")
    add_dwi(store, "sub-02")
    (bids / "sub-01").mkdir()
    (bids / "sub-01" / "ses-1").symlink_to(store / "sub-01" / "ses-1")
    (bids / "sub-02").symlink_to(store / "sub-02")
    assert labels_of(plan_inputs(bids)) == ["sub-01_ses-1_dwi", "sub-02_dwi"]


# ---------------------------------------------------------------------------------------------
# Gradients and sidecars
# ---------------------------------------------------------------------------------------------

STEM = "sub-01_ses-1_acq-x"
OWN = f"sub-01/ses-1/dwi/{STEM}_dwi"


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        ([OWN], OWN),
        (["dwi"], "dwi"),
        (["acq-x_dwi", "dwi"], "acq-x_dwi"),
        (["acq-x_dwi", "sub-01/sub-01_dwi"], "sub-01/sub-01_dwi"),
        (["sub-01/ses-1/dwi/sub-01_ses-1_dwi", "acq-x_dwi"], "sub-01/ses-1/dwi/sub-01_ses-1_dwi"),
        ([OWN, "sub-01/ses-1/dwi/sub-01_ses-1_dwi"], OWN),
        (["acq-y_dwi", "dwi"], "dwi"),
    ],
)
def test_gradients_and_sidecars_are_inherited(bids, names, taken):
    add_dwi(bids, STEM, kinds=())
    for number, name in enumerate(names):
        write(bids / f"{name}.bval", "0 1000")
        write(bids / f"{name}.bvec", "0 1\n0 0\n0 0")
        write(bids / f"{name}.json", {"TotalReadoutTime": 0.01 * (number + 1)})
    (image,) = only_scan(plan_inputs(bids)).images
    assert image.bval == bids / f"{taken}.bval"
    assert image.bvec == bids / f"{taken}.bvec"
    assert image.readout_time == 0.01 * (names.index(taken) + 1)


@pytest.mark.parametrize("kind", ["bval", "bvec"])
def test_a_series_without_gradients_is_a_problem_of_its_scan_only(bids, fmriprep, kind):
    add_run(fmriprep, "sub-01_task-rest")
    kinds = {"bval", "bvec"} - {kind}
    image = add_dwi(bids, "sub-01_acq-a_run-1", kinds=kinds)
    add_dwi(bids, "sub-01_acq-a_run-2")
    add_dwi(bids, "sub-01_acq-b")
    add_dwi(bids, "sub-02")
    plan = plan_inputs(bids)
    assert labels_of(plan) == ["sub-01_acq-b_dwi", "sub-02_dwi"]
    assert len(plan.participants[0].bold_runs) == 1
    (problem,) = plan.participants[0].problems
    assert str(image) in str(problem)
    assert f"sub-01_acq-a_run-1_dwi.{kind}" in str(problem)
    assert problem.exit_code == 66 and problem.hint


def test_a_help_does_not_become_a_scan_when_the_series_it_is_for_is_broken(bids):
    add_dwi(bids, "sub-01_acq-multi_dir-AP", kinds=("bval",))
    add_dwi(bids, "sub-01_acq-b0_dir-PA", NO_DIRECTIONS)
    plan = plan_inputs(bids)
    assert not scans_of(plan)
    assert len(problems_of(plan)) == 1


@pytest.mark.parametrize("content", ["0 1000 b", "", "\n"])
def test_b_values_that_are_none_are_a_problem(bids, content):
    image = add_dwi(bids, "sub-01")
    bval = write(image.with_name("sub-01_dwi.bval"), content)
    plan = plan_inputs(bids)
    assert not scans_of(plan)
    (problem,) = plan.participants[0].problems
    assert str(problem).startswith(f"{bval}: ") and problem.exit_code == 65


@pytest.mark.parametrize(
    ("sidecar", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "is not a JSON object"),
        ({"PhaseEncodingDirection": "AP"}, "PhaseEncodingDirection is 'AP'"),
        ({"PhaseEncodingDirection": 1}, "PhaseEncodingDirection is 1"),
        ({"TotalReadoutTime": "0.05"}, "TotalReadoutTime is '0.05', not a number"),
        ({"TotalReadoutTime": True}, "TotalReadoutTime is True, not a number"),
        ({"TotalReadoutTime": 62.5}, "TotalReadoutTime is 62.5, but must be in seconds"),
        ({"TotalReadoutTime": 0}, "TotalReadoutTime is 0, but must be in seconds"),
    ],
)
def test_sidecars_that_cannot_be_meant_are_a_problem(bids, sidecar, message):
    image = add_dwi(bids, "sub-01")
    path = write(image.with_name("sub-01_dwi.json"), sidecar)
    add_dwi(bids, "sub-02")
    plan = plan_inputs(bids)
    assert labels_of(plan) == ["sub-02_dwi"]
    (problem,) = problems_of(plan)
    assert problem.startswith(f"{path}: ") and message in problem


@pytest.mark.parametrize("leave", [undownload, undownload_unlocked])
@pytest.mark.parametrize("kind", ["nii.gz", "bval", "bvec", "json"])
def test_files_that_datalad_has_not_downloaded_are_named(bids, fmriprep, kind, leave):
    add_run(fmriprep, "sub-01_task-rest")
    missing = leave(add_dwi(bids, "sub-01").with_name(f"sub-01_dwi.{kind}"))
    plan = plan_inputs(bids)
    assert not scans_of(plan)
    assert len(plan.participants[0].bold_runs) == 1
    assert problems_of(plan) == [f"{missing}: not downloaded: datalad get {missing}"]


def test_field_maps_for_diffusion_are_listed(bids):
    add_dwi(bids, "sub-01")
    folder = bids / "sub-01" / "fmap"
    for name, intended in (("dir-AP", "dwi/sub-01_dwi.nii.gz"), ("dir-PA", "func/x_bold.nii.gz")):
        write(folder / f"sub-01_{name}_epi.nii.gz")
        write(folder / f"sub-01_{name}_epi.json", {"IntendedFor": [intended]})
    write(folder / "sub-01_acq-x_epi.nii.gz")
    write(folder / "sub-01_acq-x_epi.json", "{")
    assert list(reasons_of(plan_inputs(bids))) == ["sub-01_dir-AP_epi.nii.gz"]


# ---------------------------------------------------------------------------------------------
# Preprocessed series
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("description", "form"),
    [
        (None, "space-ACPC"),
        (None, "space-T1w"),
        ("{", "space-ACPC_res-2mm"),
        ({"GeneratedBy": [{"Name": "QSIPrep"}]}, "space-ACPC"),
        ({"PipelineDescription": {"Name": "qsiprep"}}, "space-T1w"),
    ],
)
@pytest.mark.parametrize("stem", ["sub-01", "sub-01_ses-1_acq-x_run-1"])
@pytest.mark.parametrize("where", ["out", "2024/out"])
def test_derivatives_of_qsiprep_are_found(bids, stem, description, form, where):
    other = make_qsiprep(bids / "derivatives" / where, description=description)
    image = add_qsiprep(other, stem, form)
    scan = only_scan(plan_inputs(bids))
    assert scan.label == f"{stem}_space-{scan.space}_dwi"
    assert form.startswith(f"space-{scan.space}")
    assert "res" not in scan.entities and "desc" not in scan.entities
    (one,) = scan.images
    assert one.image == image
    assert one.bval == image.with_name(f"{stem}_{form}_desc-preproc_dwi.bval")
    assert one.bvec == image.with_name(f"{stem}_{form}_desc-preproc_dwi.bvec")
    assert scan.mask == image.with_name(f"{stem}_{form}_desc-brain_mask.nii.gz")
    assert (scan.dataset.root, scan.is_preprocessed) == (other, True)


def test_the_dataset_itself_may_be_qsipreps(tmp_path):
    root = make_qsiprep(tmp_path / "qsiprep", "sub-01")
    plan = plan_inputs(root)
    assert only_scan(plan).dataset == plan.derivatives[0]
    assert [(d.name, d.root) for d in plan.datasets] == [("qsiprep", root)]


def test_what_other_programs_made_of_it_is_not_taken(bids):
    add_dwi(bids, "sub-01")
    recon = make_qsiprep(
        bids / "derivatives" / "qsirecon",
        description={"GeneratedBy": [{"Name": "QSIRecon"}, {"Name": "QSIPrep"}]},
    )
    write(recon / "sub-01" / "dwi" / "sub-01_space-ACPC_model-csd_param-fod_dwimap.nii.gz")
    own = make_qsiprep(
        bids / "derivatives" / "bsym", description={"GeneratedBy": [{"Name": "bsym-bids"}]}
    )
    add_qsiprep(own, "sub-01")
    assert not only_scan(plan_inputs(bids)).is_preprocessed


def test_named_derivatives_are_taken_and_no_others(bids, qsiprep, tmp_path):
    add_qsiprep(qsiprep, "sub-01")
    elsewhere = make_qsiprep(tmp_path / "else where", "sub-01", description=None)
    scan = only_scan(plan_inputs(bids, derivatives={"prep": elsewhere}))
    assert scan.dataset.root == elsewhere


@pytest.mark.parametrize(
    ("preprocessed", "covered", "rest"),
    [
        ("sub-01_ses-1", ["sub-01_ses-1"], []),
        # QSIPrep drops what the series it puts together do not share
        ("sub-01_ses-1", ["sub-01_ses-1_run-1", "sub-01_ses-1_run-2"], []),
        ("sub-01_ses-1", ["sub-01_ses-1_acq-a_dir-AP", "sub-01_ses-1_acq-b_dir-PA"], []),
        ("sub-01_ses-1_acq-a", ["sub-01_ses-1_acq-a_run-1"], ["sub-01_ses-1_acq-b"]),
        ("sub-01_ses-1_run-01", ["sub-01_ses-1_run-1"], ["sub-01_ses-1_run-2"]),
        ("sub-01_ses-1", ["sub-01_ses-1"], ["sub-01_ses-2"]),
        ("sub-01_ses-1", ["sub-01_ses-1"], ["sub-02_ses-1"]),
    ],
)
def test_raw_series_of_what_is_preprocessed_are_skipped(bids, qsiprep, preprocessed, covered, rest):
    for stem in (*covered, *rest):
        add_dwi(bids, stem)
    add_qsiprep(qsiprep, preprocessed)
    plan = plan_inputs(bids)
    assert set(labels_of(plan)) == {
        f"{preprocessed}_space-ACPC_dwi",
        *(f"{stem}_dwi" for stem in rest),
    }
    reason = f"the scan is taken as preprocessed: {preprocessed}_space-ACPC_desc-preproc_dwi.nii.gz"
    assert reasons_of(plan) == {f"{stem}_dwi.nii.gz": reason for stem in covered}


def test_what_helped_to_preprocess_does_not_become_a_scan(bids, qsiprep):
    add_dwi(bids, "sub-01_dir-AP")
    add_dwi(bids, "sub-01_dir-PA", NO_DIRECTIONS)
    add_qsiprep(qsiprep, "sub-01_dir-AP")
    plan = plan_inputs(bids)
    assert only_scan(plan).is_preprocessed
    assert set(reasons_of(plan)) == {"sub-01_dir-AP_dwi.nii.gz", "sub-01_dir-PA_dwi.nii.gz"}


@pytest.mark.parametrize(
    ("forms", "taken"),
    [
        (["space-T1w", "space-ACPC"], "space-ACPC"),
        (["space-ACPC_res-2mm", "space-ACPC_res-1p5mm"], "space-ACPC_res-1p5mm"),
        (["space-MNI152NLin2009cAsym", "space-T1w"], "space-T1w"),
    ],
)
def test_one_form_of_a_scan_is_used(bids, qsiprep, forms, taken):
    for form in forms:
        add_qsiprep(qsiprep, "sub-01", form)
    plan = plan_inputs(bids)
    used = f"sub-01_{taken}_desc-preproc_dwi.nii.gz"
    assert names_of(only_scan(plan).images) == [used]
    assert only_scan(plan).mask.name == f"sub-01_{taken}_desc-brain_mask.nii.gz"
    (reason,) = reasons_of(plan).values()
    assert reason == f"the scan is taken as {used}" or "in space MNI152" in reason


@pytest.mark.parametrize("form", ["", "space-MNI152NLin2009cAsym"])
def test_preprocessed_in_another_space_only(bids, qsiprep, form):
    image = add_qsiprep(qsiprep, "sub-01", form)
    plan = plan_inputs(bids)
    (problem,) = problems_of(plan)
    assert str(image) in problem and "space-ACPC or space-T1w is needed" in problem
    add_dwi(bids, "sub-01")
    plan = plan_inputs(bids)
    assert not only_scan(plan).is_preprocessed
    assert image.name in reasons_of(plan)


def test_the_same_scan_in_two_datasets_is_taken_from_the_first(bids, qsiprep, tmp_path):
    other = make_qsiprep(tmp_path / "other", "sub-01", "sub-02", form="space-T1w")
    add_qsiprep(qsiprep, "sub-01", form="space-T1w")
    for named in ({"a": qsiprep, "b": other}, {"b": other, "a": qsiprep}):
        plan = plan_inputs(bids, derivatives=named)
        first, second = scans_of(plan)
        assert first.dataset.name == next(iter(named)) and second.dataset.name == "b"
        assert list(reasons_of(plan).values()) == [
            f"the same scan is taken from derivatives {next(iter(named))}"
        ]


@pytest.mark.parametrize("kind", ["bval", "bvec"])
def test_gradients_of_preprocessed_series_are_not_inherited(bids, qsiprep, kind):
    # They have been rotated with the head: those of the raw series are other ones.
    add_dwi(bids, "sub-01")
    image = add_qsiprep(qsiprep, "sub-01")
    image.with_name(f"sub-01_space-ACPC_desc-preproc_dwi.{kind}").unlink()
    write(image.with_name(f"sub-01_dwi.{kind}"), "0 1000")
    plan = plan_inputs(bids)
    assert not scans_of(plan)
    (problem,) = problems_of(plan)
    assert str(image) in problem and f"desc-preproc_dwi.{kind}" in problem


def test_preprocessed_without_a_mask(bids, qsiprep):
    add_qsiprep(qsiprep, "sub-01", mask=False)
    scan = only_scan(plan_inputs(bids))
    assert scan.mask is None
    assert "no mask, one is made" in describe_route(scan)[0]


@pytest.mark.parametrize("leave", [undownload, undownload_unlocked])
@pytest.mark.parametrize("kind", ["nii.gz", "bval", "bvec", "mask"])
def test_preprocessed_files_that_are_not_downloaded_are_named(bids, qsiprep, kind, leave):
    missing = add_qsiprep(qsiprep, "sub-01")
    if kind == "mask":
        missing = missing.with_name("sub-01_space-ACPC_desc-brain_mask.nii.gz")
    else:
        missing = missing.with_name(f"sub-01_space-ACPC_desc-preproc_dwi.{kind}")
    leave(missing)
    assert problems_of(plan_inputs(bids)) == [f"{missing}: not downloaded: datalad get {missing}"]


# ---------------------------------------------------------------------------------------------
# Anatomy: every combination has its way
# ---------------------------------------------------------------------------------------------

RAW = "preprocessing: raw, 1 series; denoising, Gibbs ringing, motion and eddy currents by "
DONE = "preprocessing: none, QSIPrep has done it; its mask"
FULL = ("mask", "probseg", "dseg", "xfm")
# What there is (raw or preprocessed series; anatomy of fMRIPrep, of QSIPrep, raw), and the way.
WAYS = {
    "raw": (["raw"], RAW, "no T1w", "of the series with", "without anatomical constraints"),
    "raw t1w": (
        ["raw", "t1w"],
        RAW,
        "raw T1w",
        "own registration of the T1w",
        "own segmentation of the T1w",
    ),
    "raw fmriprep": (
        ["raw", "t1w", "fmriprep"],
        RAW,
        "T1w of fMRIPrep, aligned with the b0",
        f"transform of fMRIPrep from {TEMPLATE}",
        "probability maps of fMRIPrep",
    ),
    "raw qsiprep anatomy": (
        ["raw", "t1w", "qsiprep"],
        RAW,
        "T1w of QSIPrep, aligned with the b0",
        f"transform of QSIPrep from {TEMPLATE}",
        "probability maps of QSIPrep",
    ),
    "raw both": (
        ["raw", "t1w", "fmriprep", "qsiprep"],
        RAW,
        "T1w of fMRIPrep, aligned with the b0",
        f"transform of fMRIPrep from {TEMPLATE}",
        "probability maps of fMRIPrep",
    ),
    "done": (["done"], DONE, "no T1w", "of the series with", "without anatomical constraints"),
    "done t1w": (
        ["done", "t1w"],
        DONE,
        "raw T1w, brain extracted here and aligned with the b0",
        "own registration of the T1w",
        "own segmentation of the T1w",
    ),
    "done fmriprep": (
        ["done", "raw", "t1w", "fmriprep"],
        DONE,
        "T1w of fMRIPrep, aligned with the b0",
        f"transform of fMRIPrep from {TEMPLATE}",
        "probability maps of fMRIPrep",
    ),
    "done qsiprep": (
        ["done", "raw", "t1w", "fmriprep", "qsiprep"],
        DONE,
        "T1w of QSIPrep, in the space of the series",
        f"transform of QSIPrep from {TEMPLATE}",
        "probability maps of QSIPrep",
    ),
}
ADD = {
    "raw": lambda bids, space: add_dwi(bids, "sub-01"),
    "t1w": lambda bids, space: t1w(bids, "sub-01"),
    "done": lambda bids, space: add_qsiprep(
        bids / "derivatives" / "qsiprep", "sub-01", f"space-{space}"
    ),
    "fmriprep": lambda bids, space: add_anatomy(bids / "derivatives" / "fmriprep", "sub-01"),
    "qsiprep": lambda bids, space: add_anatomy(
        bids / "derivatives" / "qsiprep", "sub-01", "ACPC" if space == "ACPC" else ""
    ),
}


@pytest.mark.parametrize("space", ["ACPC", "T1w"])
@pytest.mark.parametrize("way", WAYS)
def test_every_combination_has_its_way(bids, fmriprep, qsiprep, monkeypatch, way, space):
    there, *sentences = WAYS[way]
    monkeypatch.setattr("bsym_bids.dwi.fsl.find_fsl", lambda: None)
    for part in there:
        ADD[part](bids, space)
    plan = plan_inputs(bids)
    scan = only_scan(plan)
    route = describe_route(scan)
    assert [line.split(":")[0] for line in route] == ["preprocessing", "anatomy", "atlas", "tissue"]
    for sentence, words in zip(route, sentences, strict=True):
        assert words in sentence
    printed = io.StringIO()
    print_plan(plan, None, printed)
    assert all(f"    {sentence}\n" in printed.getvalue() for sentence in route)
    assert scan.same_space == (way == "done qsiprep")
    assert scan.is_preprocessed == ("done" in there)
    if scan.anatomy:
        used = {"raw": "raw", "fmriprep": "fmriprep", "qsiprep": "qsiprep"}[scan.anatomy.source]
        assert scan.anatomy.dataset.name == used


@pytest.mark.parametrize("stem", ["sub-01", "sub-01_acq-mprage_run-1", "sub-01_ses-1"])
@pytest.mark.parametrize("space", ["", "ACPC"])
def test_the_files_of_an_anatomy(bids, fmriprep, qsiprep, stem, space):
    dataset = qsiprep if space else fmriprep
    image = add_anatomy(dataset, stem, space, ("mask", "probseg", "dseg", "aparcaseg", "xfm"))
    add_dwi(bids, "sub-01_ses-1")
    anatomy = only_scan(plan_inputs(bids)).anatomy
    whole = f"{stem}_space-{space}" if space else stem
    assert anatomy.source == dataset.name
    assert anatomy.t1w == image
    folder = image.parent
    assert anatomy.mask == folder / f"{whole}_desc-brain_mask.nii.gz"
    assert dict(anatomy.probseg) == {
        tissue: folder / f"{whole}_label-{tissue}_probseg.nii.gz" for tissue in ("GM", "WM", "CSF")
    }
    # QSIPrep's has other numbers
    assert anatomy.dseg == (None if space else folder / f"{whole}_dseg.nii.gz")
    assert anatomy.aparcaseg == folder / f"{whole}_desc-aparcaseg_dseg.nii.gz"
    target = space or "T1w"
    name = f"{stem}_from-{TEMPLATE}_to-{target}_mode-image_xfm.h5"
    assert anatomy.template_to_t1w == folder / name


@pytest.mark.parametrize(
    ("tails", "atlas", "tissue"),
    [
        ((), "own registration", "own segmentation"),
        (("xfm",), "by the transform", "own segmentation"),
        (("dseg",), "own registration", "from the segmentation of fMRIPrep"),
        (("probseg", "dseg"), "own registration", "from the probability maps"),
        (("probseg", "aseg"), "own registration", "FreeSurfer's segmentation"),
        (("other-xfm",), "own registration", "own segmentation"),
    ],
)
def test_what_the_anatomy_lacks_is_made(bids, fmriprep, tails, atlas, tissue):
    add_dwi(bids, "sub-01")
    add_anatomy(fmriprep, "sub-01", tails=tails)
    plan = plan_inputs(bids)
    scan = only_scan(plan)
    route = describe_route(scan)
    assert atlas in route[2] and tissue in route[3]
    assert scan.anatomy.mask is None
    name = "sub-01_from-MNI152NLin6Asym_to-T1w_mode-image_xfm.h5"
    assert (name in reasons_of(plan)) == ("other-xfm" in tails)


def test_tissue_maps_count_together_only(bids, fmriprep):
    add_dwi(bids, "sub-01")
    image = add_anatomy(fmriprep, "sub-01")
    image.with_name("sub-01_label-CSF_probseg.nii.gz").unlink()
    assert only_scan(plan_inputs(bids)).anatomy.probseg == {}


def test_a_transform_to_the_space_before_alignment_is_not_taken_for_acpc(bids, qsiprep):
    add_qsiprep(qsiprep, "sub-01")
    image = add_anatomy(qsiprep, "sub-01", "ACPC", tails=())
    write(image.with_name(f"sub-01_from-{TEMPLATE}_to-anat_mode-image_xfm.h5"))
    write(image.with_name(f"sub-01_from-{TEMPLATE}_to-T1w_mode-image_xfm.h5"))
    assert only_scan(plan_inputs(bids)).anatomy.template_to_t1w is None


def test_files_of_another_space_or_image_are_not_taken(bids, fmriprep):
    add_dwi(bids, "sub-01")
    image = add_anatomy(fmriprep, "sub-01_run-1", tails=())
    for name in (
        "sub-01_run-2_desc-brain_mask.nii.gz",
        "sub-01_run-1_space-ACPC_desc-brain_mask.nii.gz",
        "sub-01_run-1_acq-x_dseg.nii.gz",
    ):
        write(image.with_name(name))
    anatomy = only_scan(plan_inputs(bids)).anatomy
    assert (anatomy.mask, anatomy.dseg) == (None, None)
    # made of all runs together
    mask = write(image.with_name("sub-01_desc-brain_mask.nii"))
    assert only_scan(plan_inputs(bids)).anatomy.mask == mask


@pytest.mark.parametrize(
    ("images", "taken"),
    [
        (["sub-01_run-10", "sub-01_run-2"], "sub-01_run-2"),
        (["sub-01_acq-b", "sub-01_acq-a"], "sub-01_acq-a"),
        (["sub-01_ses-1", "sub-01_ses-2"], "sub-01_ses-2"),
        (["sub-01_ses-1", "sub-01_ses-3"], "sub-01_ses-1"),
    ],
)
@pytest.mark.parametrize("kind", ["raw", "fmriprep"])
def test_the_t1w_that_is_used_is_said(bids, fmriprep, images, taken, kind):
    add_dwi(bids, "sub-01_ses-2")
    for stem in images:
        if kind == "raw":
            t1w(bids, stem)
        else:
            add_anatomy(fmriprep, stem)
            t1w(bids, stem)
    tail = "T1w.nii.gz" if kind == "raw" else "desc-preproc_T1w.nii.gz"
    plan = plan_inputs(bids)
    scan = only_scan(plan)
    assert (scan.anatomy.t1w.name, scan.anatomy.source) == (f"{taken}_{tail}", kind)
    assert reasons_of(plan) == {
        f"{stem}_{tail}": f"the anatomy is taken from {taken}_{tail}"
        for stem in images
        if stem != taken
    }


def test_each_session_takes_its_own_anatomy(bids, fmriprep):
    for session in "12":
        add_dwi(bids, f"sub-01_ses-{session}")
        add_anatomy(fmriprep, f"sub-01_ses-{session}")
    plan = plan_inputs(bids)
    for scan in scans_of(plan):
        assert f"ses-{scan.entities['ses']}" in scan.anatomy.t1w.name
    assert not plan.skipped


def test_the_sessions_of_a_participant_share_an_anatomy(bids, fmriprep):
    for session in "12":
        add_dwi(bids, f"sub-01_ses-{session}")
    add_anatomy(fmriprep, "sub-01")
    first, second = scans_of(plan_inputs(bids))
    assert first.anatomy is second.anatomy


def test_a_preprocessed_scan_is_not_aligned_with_the_anatomy_of_another_session(bids, qsiprep):
    add_qsiprep(qsiprep, "sub-01_ses-3")
    add_anatomy(qsiprep, "sub-01_ses-1", "ACPC")
    scan = only_scan(plan_inputs(bids))  # the only one there is: all were aligned with it
    assert scan.same_space
    add_anatomy(qsiprep, "sub-01_ses-2", "ACPC")
    assert only_scan(plan_inputs(bids)).anatomy is None


@pytest.mark.parametrize(
    "name",
    [
        "sub-01_eyes_T1w.nii.gz",
        "sub-01_part-phase_T1w.nii.gz",
    ],
)
def test_raw_t1w_that_cannot_be_used_are_listed(bids, name):
    add_dwi(bids, "sub-01")
    write(bids / "sub-01" / "anat" / name)
    for other in ("sub-01_T2w.nii.gz", "sub-01_desc-x_T1w.nii.gz", "._sub-01_T1w.nii.gz"):
        write(bids / "sub-01" / "anat" / other)
    plan = plan_inputs(bids)
    assert only_scan(plan).anatomy is None
    assert list(reasons_of(plan)) == [name]


@pytest.mark.parametrize("leave", [undownload, undownload_unlocked])
@pytest.mark.parametrize(
    "name", ["desc-preproc_T1w.nii.gz", "desc-brain_mask.nii.gz", "label-WM_probseg.nii.gz", "xfm"]
)
def test_anatomy_that_is_not_downloaded_is_named(bids, fmriprep, name, leave):
    add_run(fmriprep, "sub-01_task-rest")
    add_dwi(bids, "sub-01")
    image = add_anatomy(fmriprep, "sub-01")
    name = f"from-{TEMPLATE}_to-T1w_mode-image_xfm.h5" if name == "xfm" else name
    missing = leave(image.with_name(f"sub-01_{name}"))
    plan = plan_inputs(bids)
    assert not scans_of(plan) and len(plan.participants[0].bold_runs) == 1
    assert problems_of(plan) == [f"{missing}: not downloaded: datalad get {missing}"]


@pytest.mark.parametrize("leave", [undownload, undownload_unlocked])
def test_a_raw_t1w_that_is_not_downloaded_is_named(bids, leave):
    add_dwi(bids, "sub-01")
    add_dwi(bids, "sub-02")
    missing = leave(t1w(bids, "sub-01"))
    plan = plan_inputs(bids)
    assert labels_of(plan) == ["sub-02_dwi"]
    assert problems_of(plan) == [f"{missing}: not downloaded: datalad get {missing}"]


def test_derivatives_with_nothing_but_anatomy_are_found(bids):
    add_dwi(bids, "sub-01")
    root = bids / "derivatives" / "smriprep"
    add_anatomy(root, "sub-01")
    assert only_scan(plan_inputs(bids)).anatomy.source == "fmriprep"
    write(root / "dataset_description.json", {"GeneratedBy": [{"Name": "sMRIPrep"}]})
    assert only_scan(plan_inputs(bids)).anatomy.source == "fmriprep"
    write(root / "dataset_description.json", {"GeneratedBy": [{"Name": "xcp_d"}]})
    assert find_derivatives(bids) == ()


def test_one_folder_with_what_both_programs_wrote(bids):
    mixed = make_fmriprep(bids / "derivatives" / "mixed", description=FMRIPREP)
    add_anatomy(mixed, "sub-01")
    add_anatomy(mixed, "sub-01", "ACPC")
    add_qsiprep(mixed, "sub-01")
    add_dwi(bids, "sub-01_ses-2")
    add_dwi(bids, "sub-01")
    raw, done = scans_of(plan_inputs(bids))
    assert done.anatomy.source == "qsiprep" and done.same_space
    assert done.anatomy.template_to_t1w.name == f"sub-01_from-{TEMPLATE}_to-ACPC_mode-image_xfm.h5"
    assert raw.anatomy.source == "fmriprep"


@pytest.mark.parametrize(
    ("fsl", "encodings", "words"),
    [
        (None, ("j", "j-"), "by registration, bias field, mask; distortions stay, one phase enc"),
        (None, ("j", "j"), "by registration, bias field, mask; distortions stay"),
        (False, ("j", "j-"), "FSL's eddy, bias field, mask; distortions stay, one phase encoding"),
        (True, ("j", "j"), "FSL's eddy, bias field, mask; distortions stay"),
        (True, ("j", "j-"), "FSL's eddy, bias field, mask; distortions by FSL's topup"),
        (True, (None, None), "by registration, bias field, mask; distortions stay"),
    ],
)
@pytest.mark.parametrize("bvals", [DIRECTIONS, NO_DIRECTIONS])
def test_what_fsl_will_do_is_said(bids, monkeypatch, fsl, encodings, words, bvals):
    from bsym_bids.dwi.fsl import Fsl

    found = None if fsl is None else Fsl(bids, "eddy", fsl)
    monkeypatch.setattr("bsym_bids.dwi.fsl.find_fsl", lambda: found)
    add_dwi(bids, "sub-01_run-1", phase_encoding=encodings[0])
    add_dwi(bids, "sub-01_run-2", bvals, phase_encoding=encodings[1])
    line = describe_route(only_scan(plan_inputs(bids)))[0]
    assert words in line
    assert line.endswith("distortions stay") == ("one phase" not in words and "topup" not in words)


def test_a_reversed_series_without_encoding_leaves_fsl_to_the_others(bids, monkeypatch):
    """As preprocessing does it, which leaves that series out."""
    from bsym_bids.dwi.fsl import Fsl

    monkeypatch.setattr("bsym_bids.dwi.fsl.find_fsl", lambda: Fsl(bids, "eddy", True))
    add_dwi(bids, "sub-01_dir-AP", phase_encoding="j-")
    add_dwi(bids, "sub-01_dir-PA", NO_DIRECTIONS)
    (scan,) = scans_of(plan_inputs(bids))
    unknown = tuple(replace(image, phase_encoding=None) for image in scan.reverse)
    line = describe_route(replace(scan, reverse=unknown))[0]
    assert len(unknown) == 1 and "FSL's eddy" in line
    assert line.endswith("distortions stay")


# ---------------------------------------------------------------------------------------------
# Choosing
# ---------------------------------------------------------------------------------------------


@pytest.fixture
def sessions(bids, fmriprep):
    """Sessions with BOLD, with diffusion and with both."""
    add_run(fmriprep, "sub-01_ses-a_task-rest_run-1")
    for stem in ("sub-01_ses-a_acq-x_run-1", "sub-01_ses-a_acq-x_run-2", "sub-01_ses-b_acq-y"):
        add_dwi(bids, stem)
    add_dwi(bids, "sub-02_dir-AP")
    return bids


AX, BY, TWO = "sub-01_ses-a_acq-x_dwi", "sub-01_ses-b_acq-y_dwi", "sub-02_dir-AP_dwi"
AX1 = "sub-01_ses-a_acq-x_run-1_dwi"


@pytest.mark.parametrize(
    ("selection", "scans", "runs"),
    [
        ({}, [AX, BY, TWO], 1),
        ({"participants": ["02"]}, [TWO], 0),
        ({"sessions": ["a"]}, [AX], 1),
        ({"sessions": ["b"]}, [BY], 0),  # known from diffusion alone
        ({"participants": ["01"], "sessions": ["a", "b"]}, [AX, BY], 1),
        # tasks and runs choose BOLD series only
        ({"tasks": ["rest"]}, [AX, BY, TWO], 1),
        ({"runs": ["1"]}, [AX, BY, TWO], 1),
        ({"dwi_filters": {"acquisition": "x"}}, [AX], 1),
        ({"dwi_filters": {"acquisition": ["x", "y"], "run": 1}}, [AX1], 1),
        ({"dwi_filters": {"run": "01"}}, [AX1], 1),
        ({"dwi_filters": {"direction": "AP"}}, [TWO], 1),
        ({"dwi_filters": {"suffix": "dwi", "datatype": "dwi", "extension": "nii.gz"}}, None, 1),
        ({"filters": {"task": "none"}}, [AX, BY, TWO], 0),
    ],
)
@pytest.mark.parametrize("kept", [False, True])
def test_what_is_asked_for_is_taken(sessions, tmp_path, selection, scans, runs, kept):
    for _ in range(1 + kept):
        plan = plan_inputs(
            sessions,
            selection=Selection(**selection),
            database_dir=tmp_path / "index" if kept else None,
        )
        assert labels_of(plan) == (scans or [AX, BY, TWO])
        assert sum(len(p.bold_runs) for p in plan.participants) == runs
        assert not problems_of(plan)


@pytest.mark.parametrize(
    ("given", "scans"),
    [
        ({"dwi": {"acquisition": None}}, [TWO]),
        ({"dwi": {"acquisition": "*"}}, [AX, BY]),
        ({"dwi": {"acquisition": ["y", None]}}, [BY, TWO]),
        ({"bold": {"task": "rest"}}, [AX, BY, TWO]),
    ],
)
def test_filter_files_choose_scans(sessions, tmp_path, given, scans):
    file = write(tmp_path / "filters.json", given)
    config = parse_config([str(sessions), "out", "participant", "--bids-filter-file", str(file)])
    assert labels_of(plan_inputs(sessions, selection=Selection.of(config))) == scans


def test_what_filters_leave_out_is_listed(sessions):
    plan = plan_inputs(sessions, selection=Selection(dwi_filters={"acquisition": "x"}))
    assert reasons_of(plan)["sub-02_dir-AP_dwi.nii.gz"] == (
        "not selected by the dwi query of the filter file"
    )
    plan = plan_inputs(sessions, selection=Selection(sessions=["a"]))
    assert reasons_of(plan)["sub-02_dir-AP_dwi.nii.gz"] == "not selected by session"


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"sessions": ["c"]}, "--session-label c: not found"),
        ({"tasks": ["movie"]}, "--task-id movie: not found"),
        ({"runs": ["2"]}, "--run-id 2: not found"),  # a run of diffusion is none
        ({"participants": ["02"], "sessions": ["b"]}, "nothing to process is left"),
        (
            {"filters": {"task": "none"}, "dwi_filters": {"acquisition": "z"}},
            "nothing to process is left",
        ),
    ],
)
def test_when_nothing_is_left_the_exit_code_is_18(sessions, selection, message):
    with pytest.raises(NothingSelectedError) as caught:
        plan_inputs(sessions, selection=Selection(**selection))
    assert message in str(caught.value)


@pytest.mark.parametrize("query", ["dwi_filters", "t1w_filters"])
def test_filters_by_no_entity_are_wrong_usage(sessions, query):
    with pytest.raises(UsageError, match="'acq' is no entity"):
        plan_inputs(sessions, selection=Selection(**{query: {"acq": "x"}}))


def test_filters_do_not_exclude_what_derivatives_no_longer_state(bids, qsiprep):
    add_dwi(bids, "sub-01_dir-AP")
    add_qsiprep(qsiprep, "sub-01")
    add_qsiprep(qsiprep, "sub-02_dir-PA")
    plan = plan_inputs(bids, selection=Selection(dwi_filters={"direction": "AP"}))
    assert labels_of(plan) == ["sub-01_space-ACPC_dwi"]


@pytest.mark.parametrize(
    ("filters", "taken"),
    [
        ({}, "sub-01_acq-a"),
        ({"acquisition": "b"}, "sub-01_acq-b"),
        ({"acquisition": None}, None),
        ({"session": "1", "suffix": "T1w"}, "sub-01_ses-1_acq-c"),
    ],
)
def test_the_t1w_query_chooses_the_anatomy(bids, filters, taken):
    add_dwi(bids, "sub-01")
    for stem in ("sub-01_acq-a", "sub-01_acq-b", "sub-01_ses-1_acq-c"):
        t1w(bids, stem)
    plan = plan_inputs(bids, selection=Selection(t1w_filters=filters))
    anatomy = only_scan(plan).anatomy
    assert (anatomy and anatomy.t1w.name) == (taken and f"{taken}_T1w.nii.gz")
    assert len(plan.skipped) == (2 if taken else 3)


def test_the_t1w_query_written_for_fmriprep_keeps_its_derivatives(bids, fmriprep):
    add_dwi(bids, "sub-01")
    add_anatomy(fmriprep, "sub-01_acq-b")
    add_anatomy(fmriprep, "sub-01")
    filters = {"acquisition": "a", "session": "1", "suffix": "T1w", "datatype": "anat"}
    anatomy = only_scan(plan_inputs(bids, selection=Selection(t1w_filters=filters))).anatomy
    assert anatomy.t1w.name == "sub-01_desc-preproc_T1w.nii.gz"


def test_nothing_left_names_a_reason(bids):
    add_dwi(bids, "sub-01")
    hint = nothing_of(bids, selection=Selection(dwi_filters={"acquisition": "x"}))
    assert "not selected by the dwi query" in hint


# ---------------------------------------------------------------------------------------------
# What a dry run prints
# ---------------------------------------------------------------------------------------------


def test_the_plan_tells_the_files_of_a_scan(bids, fmriprep):
    add_run(fmriprep, "sub-01_task-rest")
    for run in "12":
        add_dwi(bids, f"sub-01_dir-AP_run-{run}")
    add_dwi(bids, "sub-01_dir-PA_run-1", NO_DIRECTIONS)
    stream = io.StringIO()
    print_plan(plan_inputs(bids), None, stream)
    text = stream.getvalue()
    folder = bids / "sub-01" / "dwi"
    assert f"dataset raw: {bids}\n" in text
    assert "  scan sub-01_dir-AP_dwi\n" in text
    assert f"    dwi       {folder}/sub-01_dir-AP_run-2_dwi.nii.gz\n" in text
    assert f"    reverse   {folder}/sub-01_dir-PA_run-1_dwi.nii.gz\n" in text
    assert re.search(r"gradients \S*run-2_dwi.bval \S*run-2_dwi.bvec\n", text)
    assert "raw, 2 series put together; denoising" in text
    assert f"_{RES2}\n" in text
    assert text.endswith("1 participant(s), 1 run(s), 1 scan(s) to process\n")

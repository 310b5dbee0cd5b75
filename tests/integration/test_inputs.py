"""What is found in datasets as fMRIPrep writes them, and what is said about the rest."""

import errno
import json
import logging
import os
import re
import shutil
import time
import unicodedata
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from bids.layout import BIDSLayout, Query
from fake_bids import (
    CIFTI,
    FMRIPREP,
    MNI6,
    MNI2009,
    add_dwi,
    add_run,
    make_fmriprep,
    make_raw,
    undownload,
    undownload_unlocked,
    write,
)

from bsym_bids.errors import (
    CannotCreateOutputError,
    InputMissingError,
    NotBidsError,
    NothingSelectedError,
    UsageError,
)
from bsym_bids.inputs import Derivatives, Selection, database, plan_inputs
from bsym_bids.inputs.bold import find_candidates
from bsym_bids.inputs.datasets import check_bids, find_derivatives
from bsym_bids.inputs.listing import look_into

RES2 = f"{MNI2009}_res-2"
XCPD = {**FMRIPREP, "GeneratedBy": [{"Name": "xcp_d"}, *FMRIPREP["GeneratedBy"]]}


@pytest.fixture
def bids(tmp_path):
    """A BIDS dataset of two people without derivatives."""
    return make_raw(tmp_path / "bids", "01", "02")


@pytest.fixture
def fmriprep(bids):
    """An empty fMRIPrep dataset in it."""
    return make_fmriprep(bids / "derivatives" / "fmriprep")


def runs_of(plan):
    return [run for participant in plan.participants for run in participant.bold_runs]


def labels_of(plan):
    return [run.label for run in runs_of(plan)]


def problems_of(plan):
    return [
        f"{problem} {problem.hint}".strip()
        for participant in plan.participants
        for problem in participant.problems
    ]


def reasons_of(plan):
    return {skipped.path.name: skipped.reason for skipped in plan.skipped}


def only_run(plan):
    (run,) = runs_of(plan)
    assert not problems_of(plan)
    return run


def roots(found, bids):
    return [(d.name, d.root.relative_to(bids).as_posix()) for d in found]


# ---------------------------------------------------------------------------------------------
# Is this BIDS
# ---------------------------------------------------------------------------------------------


def test_a_folder_that_is_not_there_is_missing_input(tmp_path):
    with pytest.raises(InputMissingError) as caught:
        check_bids(tmp_path / "none", skip_validation=True)
    assert caught.value.exit_code == 66


def test_a_file_is_no_dataset(tmp_path):
    with pytest.raises(InputMissingError):
        check_bids(write(tmp_path / "bids.tar"), skip_validation=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is absent"),
        (b"{,}", "cannot be read as JSON"),
        (b"", "cannot be read as JSON"),
        (b'{"Name": "\xff"}', "cannot be read as JSON"),
        (b'["Name"]', "is not a JSON object"),
    ],
)
def test_a_folder_without_a_valid_description_is_not_bids(
    tmp_path, caplog, monkeypatch, content, message
):
    if content is not None:
        (tmp_path / "dataset_description.json").write_bytes(content)
    with pytest.raises(NotBidsError) as caught:
        check_bids(tmp_path, skip_validation=False)
    assert message in str(caught.value)
    assert caught.value.exit_code == 16
    assert "--skip-bids-validation" in caught.value.hint
    monkeypatch.setattr(logging.getLogger("bsym_bids"), "propagate", True)
    with caplog.at_level(logging.WARNING, "bsym_bids"):
        check_bids(tmp_path, skip_validation=True)
    assert message in caplog.text


def test_skipping_validation_finds_what_there_is(bids, fmriprep):
    add_run(fmriprep, "sub-01_task-rest")
    (bids / "dataset_description.json").unlink()
    with pytest.raises(NotBidsError):
        plan_inputs(bids)
    assert len(runs_of(plan_inputs(bids, skip_bids_validation=True))) == 1


# ---------------------------------------------------------------------------------------------
# Which derivative datasets
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "description",
    [
        FMRIPREP,
        # before BIDS 1.4
        {"Name": "x", "BIDSVersion": "1.1.1", "PipelineDescription": {"Name": "fMRIPrep"}},
        {"Name": "x", "GeneratedBy": [{"Name": "fmriprep"}, {"Name": "Manual"}]},
    ],
)
def test_a_dataset_is_known_by_its_own_word(bids, description):
    make_fmriprep(bids / "derivatives" / "preprocessed", description=description)
    assert roots(find_derivatives(bids), bids) == [("preprocessed", "derivatives/preprocessed")]


@pytest.mark.parametrize("form", [RES2, "", MNI6, CIFTI])
@pytest.mark.parametrize("run", ["sub-01_task-rest", "sub-01_ses-1_task-rest"])
@pytest.mark.parametrize("description", [None, {}, {"GeneratedBy": "?"}, "{", [1]])
def test_a_dataset_that_does_not_say_is_known_by_its_files(bids, description, run, form):
    make_fmriprep(bids / "derivatives" / "out", run, description=description, forms=[form])
    assert roots(find_derivatives(bids), bids) == [("out", "derivatives/out")]


@pytest.mark.parametrize(
    ("description", "name"),
    [
        ({"GeneratedBy": [{"Name": "MRIQC"}]}, "sub-01_task-rest_bold.json"),
        (None, "sub-01_task-rest_bold.nii.gz"),
        # XCP-D copies the description of the fMRIPrep dataset and puts its own name first.
        (XCPD, f"sub-01_task-rest_{CIFTI}_desc-denoised_bold.dtseries.nii"),
        (XCPD, f"sub-01_task-rest_{RES2}_desc-denoised_bold.nii.gz"),
        ({"GeneratedBy": [{"Name": "tedana"}]}, "sub-01_task-rest_desc-optcom_bold.nii.gz"),
        (
            {"GeneratedBy": [{"Name": "bsym-bids"}]},
            f"sub-01_task-rest_{CIFTI}_desc-preproc_bold.dtseries.nii",
        ),
    ],
)
def test_what_other_programs_made_is_not_taken(bids, description, name):
    other = make_fmriprep(bids / "derivatives" / "a", description=description)
    write(other / "sub-01" / "func" / name)
    make_fmriprep(bids / "derivatives" / "fmriprep", "sub-01_task-rest")
    assert roots(find_derivatives(bids), bids) == [("fmriprep", "derivatives/fmriprep")]


def test_the_apps_own_outputs_are_not_taken_for_input(bids, fmriprep):
    from bsym_bids.outputs.dataset import describe_dataset

    add_run(fmriprep, "sub-01_task-rest")
    own = bids / "derivatives" / "bsym"
    describe_dataset(own, {"fmriprep": fmriprep})
    stem = "sub-01_task-rest_space-MNI152NLin2009cAsym_atlas-Schaefer2018Tian2020_scale-450"
    write(own / "sub-01" / "func" / f"{stem}_stat-coverage_bold.tsv")
    plan = plan_inputs(bids)
    assert roots(plan.derivatives, bids) == [("fmriprep", "derivatives/fmriprep")]
    assert len(runs_of(plan)) == 1


@pytest.mark.parametrize("description", [FMRIPREP, None])
def test_datasets_one_level_further_down_are_found(bids, description):
    make_fmriprep(
        bids / "derivatives" / "2024" / "fmriprep", "sub-01_task-rest", description=description
    )
    write(bids / "derivatives" / "2024" / "freesurfer" / "sub-01" / "mri" / "brain.mgz")
    assert roots(find_derivatives(bids), bids) == [("fmriprep", "derivatives/2024/fmriprep")]


def test_datasets_of_the_same_name_get_names_that_differ(bids):
    # BIDS URIs, dataset links and indices go by these names.
    for study in "ab":
        make_fmriprep(bids / "derivatives" / study / "fmriprep", f"sub-01_task-{study}")
    make_fmriprep(bids / "derivatives" / "fmriprep_lts", "sub-01_task-c")
    plan = plan_inputs(bids)
    assert [d.name for d in plan.derivatives] == ["fmriprep_lts", "a-fmriprep", "b-fmriprep"]
    assert {run.entities["task"]: run.derivatives.name for run in runs_of(plan)} == {
        "a": "a-fmriprep",
        "b": "b-fmriprep",
        "c": "fmriprep_lts",
    }


def test_the_dataset_itself_may_be_the_derivatives(tmp_path):
    root = make_fmriprep(tmp_path / "fmriprep", "sub-01_task-rest")
    plan = plan_inputs(root)
    assert [(d.name, d.root) for d in plan.derivatives] == [("fmriprep", root)]
    assert only_run(plan).bold.is_relative_to(root)
    assert not [s for s in plan.skipped if "no fMRIPrep derivatives" in s.reason]


@pytest.mark.parametrize(
    ("modalities", "words", "others"),
    [
        (["bold"], ["no fMRIPrep derivatives found"], "diffusion"),
        (["dwi"], ["no diffusion series found"], "fMRIPrep"),
        (
            ["bold", "dwi"],
            ["no fMRIPrep derivatives found", "no diffusion series found"],
            "nothing",
        ),
    ],
)
def test_raw_bold_alone_is_missing_input(bids, modalities, words, others):
    assert find_derivatives(bids) == ()
    with pytest.raises(InputMissingError) as caught:
        plan_inputs(bids, modalities=modalities)
    assert caught.value.exit_code == 66
    assert "--derivatives" in caught.value.hint
    assert all(word in str(caught.value) for word in words)
    assert others not in f"{caught.value} {caught.value.hint}"


def test_when_none_is_found_the_message_says_where_it_looked(bids):
    (bids / "derivatives" / "freesurfer" / "sub-01" / "mri").mkdir(parents=True)
    (bids / "derivatives" / ".git" / "objects").mkdir(parents=True)
    with pytest.raises(InputMissingError) as caught:
        plan_inputs(bids)
    assert str(bids / "derivatives" / "freesurfer") in str(caught.value)
    assert ".git" not in str(caught.value)


def test_named_datasets_are_taken_and_no_others(bids, fmriprep, tmp_path):
    add_run(fmriprep, "sub-01_task-rest")
    elsewhere = make_fmriprep(tmp_path / "else where", "sub-01_task-movie", description=None)
    plan = plan_inputs(bids, derivatives={"my prep": elsewhere})
    assert [(d.name, d.root) for d in plan.derivatives] == [("my_prep", elsewhere)]
    assert only_run(plan).entities["task"] == "movie"


def test_names_that_differ_only_in_what_a_uri_cannot_hold_stay_apart(bids, tmp_path):
    named = {name: make_fmriprep(tmp_path / name) for name in ("a b", "a_b", "a+b")}
    found = find_derivatives(bids, named)
    assert [d.root for d in found] == list(named.values())
    assert len({d.name for d in found}) == 3


def test_a_named_dataset_that_is_not_there_is_missing_input(bids, fmriprep, tmp_path):
    named = {"fmriprep": fmriprep, "other": tmp_path / "none"}
    with pytest.raises(InputMissingError, match="--derivatives other="):
        find_derivatives(bids, named)


def test_a_named_folder_above_the_dataset_is_missing_input(bids, fmriprep):
    add_run(fmriprep, "sub-01_task-rest")
    with pytest.raises(InputMissingError) as caught:
        plan_inputs(bids, derivatives={"fmriprep": fmriprep.parent})
    assert str(fmriprep.parent) in str(caught.value)


def test_links_to_datasets(bids, tmp_path):
    store = make_fmriprep(tmp_path / "store" / "v23", "sub-01_task-rest")
    (bids / "derivatives").mkdir()
    for name in ("fmriprep", "latest"):
        (bids / "derivatives" / name).symlink_to(store)
    plan = plan_inputs(bids)
    assert roots(plan.derivatives, bids) == [("fmriprep", "derivatives/fmriprep")]
    assert only_run(plan).bold.is_relative_to(bids)


def test_relative_paths_find_the_same(bids, fmriprep, monkeypatch):
    folder = add_run(fmriprep, "sub-01_task-rest", repetition_time=None)
    write(fmriprep / "task-rest_bold.json", {"RepetitionTime": 0.8})
    monkeypatch.chdir(bids)
    for given, named in (
        (".", None),
        ("../bids", None),
        (".", {"x": Path("derivatives/fmriprep")}),
    ):
        run = only_run(plan_inputs(Path(given), derivatives=named))
        assert run.bold.is_relative_to(run.derivatives.root)
        assert run.bold.resolve().parent == folder
        assert run.repetition_time == 0.8
    monkeypatch.chdir(fmriprep / "sub-01")
    assert [d.name for d in find_derivatives(Path(".."))] == ["fmriprep"]


# ---------------------------------------------------------------------------------------------
# Participants, sessions, tasks, runs
# ---------------------------------------------------------------------------------------------


def test_everybody_with_derivatives_is_processed_and_the_others_are_listed(bids, fmriprep):
    for label in ("02", "sick", "A1b2"):
        add_run(fmriprep, f"sub-{label}_task-rest")
    plan = plan_inputs(bids)
    assert [p.label for p in plan.participants] == ["02", "A1b2", "sick"]
    assert reasons_of(plan) == {
        "sub-01": "no fMRIPrep derivatives and no diffusion series for this participant"
    }
    plan = plan_inputs(bids, modalities=["bold"])
    assert reasons_of(plan) == {"sub-01": "no fMRIPrep derivatives for this participant"}


def test_an_unknown_participant_is_an_error_that_names_near_ones(bids, fmriprep):
    add_run(fmriprep, "sub-control01_task-rest")
    with pytest.raises(NothingSelectedError) as caught:
        plan_inputs(bids, selection=Selection(participants=["control1"]))
    assert caught.value.exit_code == 18
    assert "--participant-label control1" in str(caught.value)
    assert "control01" in caught.value.hint


def test_one_unknown_participant_among_known_ones_is_an_error(bids, fmriprep):
    add_run(fmriprep, "sub-01_task-rest")
    with pytest.raises(NothingSelectedError, match="--participant-label 1"):
        plan_inputs(bids, selection=Selection(participants=["01", "1"]))


def test_a_participant_who_is_asked_for_but_has_no_derivatives_is_a_problem(bids, fmriprep):
    add_run(fmriprep, "sub-02_task-rest")
    for filters in ({}, {"task": "rest"}):
        selection = Selection(participants=["01", "02"], filters=filters)
        plan = plan_inputs(bids, selection=selection, modalities=["bold"])
        assert [p.label for p in plan.participants] == ["01", "02"]
        assert problems_of(plan) == ["sub-01: no fMRIPrep derivatives for this participant"]
        assert len(runs_of(plan)) == 1
        assert not plan.skipped


def test_others_are_not_listed_when_participants_are_named(bids, fmriprep):
    add_run(fmriprep, "sub-02_task-rest")
    assert not plan_inputs(bids, selection=Selection(participants=["02"])).skipped


def test_a_participant_without_func_is_skipped_unless_asked_for(bids, fmriprep):
    write(fmriprep / "sub-01" / "anat" / "sub-01_desc-preproc_T1w.nii.gz")
    add_run(fmriprep, "sub-02_task-rest")
    plan = plan_inputs(bids)
    assert [p.label for p in plan.participants] == ["02"]
    assert "no BOLD series" in reasons_of(plan)["sub-01"]
    plan = plan_inputs(bids, selection=Selection(participants=["01", "02"]))
    (problem,) = problems_of(plan)
    assert "sub-01" in problem
    assert "no BOLD series" in problem


RUNS = (
    "sub-01_ses-pre_task-rest_run-1",
    "sub-01_ses-pre_task-rest_run-2",
    "sub-01_ses-pre_task-movie",
    "sub-01_ses-post_task-rest_run-01",
    "sub-02_ses-pre_task-rest_run-10",
    "sub-03_task-rest",
)


@pytest.fixture
def sessions(bids, fmriprep):
    """Sessions, tasks and runs, some of some participants only."""
    for run in RUNS:
        add_run(fmriprep, run)
    return bids


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    """The same and more, as PyBIDS sees it."""
    root = make_fmriprep(tmp_path_factory.mktemp("layout") / "fmriprep", *RUNS)
    add_run(root, "sub-03_task-rest_acq-mb_dir-AP_run-1", forms=["", MNI6, CIFTI])
    add_run(root, "sub-03_task-rest_echo-2", forms=[f"{MNI2009}_res-1"])
    return BIDSLayout(root, validate=False, config=["bids", "derivatives"])


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (
            {"sessions": ["post"]},
            ["sub-01_ses-post_task-rest_run-01"],
        ),
        (
            {"tasks": ["movie"]},
            ["sub-01_ses-pre_task-movie"],
        ),
        (
            {"runs": ["1"]},
            ["sub-01_ses-post_task-rest_run-01", "sub-01_ses-pre_task-rest_run-1"],
        ),
        (
            {"runs": ["001", "10"]},
            [
                "sub-01_ses-post_task-rest_run-01",
                "sub-01_ses-pre_task-rest_run-1",
                "sub-02_ses-pre_task-rest_run-10",
            ],
        ),
        (
            {"sessions": ["pre"], "tasks": ["rest"], "runs": ["2"]},
            ["sub-01_ses-pre_task-rest_run-2"],
        ),
        ({"participants": ["03"], "tasks": ["rest"]}, ["sub-03_task-rest"]),
        (
            {"participants": ["02", "01"], "sessions": ["post", "pre"], "runs": ["01", "10"]},
            [
                "sub-01_ses-post_task-rest_run-01",
                "sub-01_ses-pre_task-rest_run-1",
                "sub-02_ses-pre_task-rest_run-10",
            ],
        ),
        # A session that only others have: what there is of the rest is done. A job for each
        # participant, all with the same labels, is how clusters are used.
        (
            {"participants": ["02"], "sessions": ["pre", "post"]},
            ["sub-02_ses-pre_task-rest_run-10"],
        ),
        # PyBIDS filters, as in fMRIPrep's filter file
        ({"filters": {"session": "post"}}, ["sub-01_ses-post_task-rest_run-01"]),
        (
            {"filters": {"task": "movie", "suffix": "bold", "datatype": "func"}},
            ["sub-01_ses-pre_task-movie"],
        ),
        (
            {"filters": {"run": 1}},
            ["sub-01_ses-post_task-rest_run-01", "sub-01_ses-pre_task-rest_run-1"],
        ),
        (
            {"filters": {"run": ["01", "10"]}, "sessions": ["pre"]},
            ["sub-01_ses-pre_task-rest_run-1", "sub-02_ses-pre_task-rest_run-10"],
        ),
    ],
)
def test_what_is_asked_for_is_taken(sessions, selection, expected):
    plan = plan_inputs(sessions, selection=Selection(**selection))
    assert labels_of(plan) == [f"{run}_{RES2}" for run in expected]
    assert not problems_of(plan)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"session": None}, {"03"}),
        ({"session": "*"}, {"01", "02"}),
        ({"session": ["post", None]}, {"01", "03"}),
        ({"run": None}, {"01", "03"}),
        ({"acquisition": None, "task": "rest"}, {"01", "02", "03"}),
        ({"part": ["mag", None]}, {"01", "02", "03"}),
    ],
)
def test_filter_files_have_the_effect_they_have_in_fmriprep(sessions, tmp_path, given, expected):
    from bsym_bids.inputs import read_filter_file

    filters = read_filter_file(write(tmp_path / "filters.json", {"bold": given}))
    plan = plan_inputs(sessions, selection=Selection(filters=filters))
    assert {p.label for p in plan.participants} == expected


@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"session": "pre"},
        {"session": ["post", Query.NONE]},
        {"session": Query.NONE, "task": "rest"},
        {"session": Query.ANY, "task": ["movie", "x"]},
        {"session": []},
        {"run": 1},
        {"run": "2"},
        {"run": [1, 10]},
        {"run": Query.NONE},
        {"run": Query.OPTIONAL},
        {"acquisition": Query.NONE},
        {"acquisition": "mb"},
        {"acquisition": ["mb", Query.NONE], "run": [1, Query.NONE]},
        {"space": "MNI152NLin6Asym"},
        {"space": "MNI152NLin2009cAsym", "res": "2"},
        {"res": Query.NONE},
        {"den": "91k"},
        {"desc": "preproc"},
        {"desc": Query.NONE},
        {"extension": ".nii.gz"},
        {"extension": "dtseries.nii"},
        {"datatype": "func", "suffix": "bold"},
        {"datatype": "anat"},
        {"echo": 2},
        {"direction": "AP", "reconstruction": Query.NONE},
    ],
)
def test_filters_choose_what_pybids_chooses(layout, filters):
    chosen = layout.get(**{"suffix": "bold", **filters}, return_type="filename")
    expected = {Path(path) for path in chosen if path.endswith((".nii.gz", ".dtseries.nii"))}
    dataset = Derivatives("fmriprep", Path(layout.root))
    labels = ("01", "02", "03")
    found = [one.path for label in labels for one in find_candidates(dataset, label, filters)]
    assert set(found) == expected


def test_folders_above_the_dataset_do_not_count_for_filters(tmp_path):
    # PyBIDS takes the first ses- and task- of a whole path.
    root = tmp_path / "sub-x_ses-y" / "ses-y" / "anat"
    fmriprep = make_fmriprep(root / "fmriprep", *RUNS)
    for filters, count in (
        ({"session": "y"}, 0),
        ({"session": None}, 1),
        ({"datatype": "func"}, 6),
    ):
        filters = {key: Query.NONE if value is None else value for key, value in filters.items()}
        dataset = Derivatives("fmriprep", fmriprep)
        found = [find_candidates(dataset, label, filters) for label in ("01", "02", "03")]
        assert sum(map(len, found)) == count


def test_files_that_are_not_asked_for_are_listed(sessions):
    plan = plan_inputs(sessions, selection=Selection(sessions=["post"]))
    reasons = reasons_of(plan)
    name = f"sub-01_ses-pre_task-movie_{RES2}_desc-preproc_bold.nii.gz"
    assert reasons[name] == "not selected by session, task or run"
    assert "sub-02" in reasons
    assert "sub-03" in reasons


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"sessions": ["mid"]}, "--session-label mid: not found"),
        ({"sessions": ["pre", "mid"]}, "--session-label mid: not found"),
        ({"tasks": ["rset"]}, "--task-id rset: not found"),
        ({"runs": ["3"]}, "--run-id 3: not found"),
        ({"participants": ["02"], "tasks": ["nback"]}, "--task-id nback: not found"),
        # there are such labels, but not together
        ({"participants": ["02"], "tasks": ["movie"]}, "nothing to process is left"),
        ({"sessions": ["post"], "tasks": ["movie"]}, "nothing to process is left"),
        ({"filters": {"task": "nback"}}, "nothing to process is left"),
        ({"filters": {"task": "rest"}, "tasks": ["movie"]}, "nothing to process is left"),
        ({"filters": {"suffix": "sbref"}}, "nothing to process is left"),
    ],
)
def test_when_nothing_is_left_the_exit_code_is_18(sessions, selection, message):
    with pytest.raises(NothingSelectedError) as caught:
        plan_inputs(sessions, selection=Selection(**selection))
    assert message in str(caught.value)
    assert caught.value.exit_code == 18
    assert "sub-" in caught.value.hint or "there is:" in caught.value.hint


@pytest.mark.parametrize("filters", [{"acq": "mb"}, {"sesion": "pre"}, {"run": {"is": 1}}])
def test_filters_that_pybids_does_not_take_are_wrong_usage(sessions, filters, tmp_path):
    from bsym_bids.inputs import read_filter_file

    with pytest.raises(UsageError) as caught:
        filters = read_filter_file(write(tmp_path / "f.json", {"bold": filters}))
        plan_inputs(sessions, selection=Selection(filters=filters))
    assert caught.value.hint


# ---------------------------------------------------------------------------------------------
# Spaces
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("forms", "spaces", "taken"),
    [
        (["", MNI6, MNI2009, CIFTI], None, MNI2009),
        (["", MNI6, CIFTI], None, MNI6),
        (["", "space-T1w", CIFTI], None, CIFTI),
        ([MNI6, MNI2009, CIFTI], ["fsLR", "MNI152NLin6Asym"], CIFTI),
        ([MNI6, MNI2009], ["fsLR", "MNI152NLin6Asym"], MNI6),
        ([f"{MNI2009}_res-{r}" for r in ("1", "2", "native")], None, f"{MNI2009}_res-2"),
        ([f"{MNI2009}_res-{r}" for r in ("1", "native")], None, f"{MNI2009}_res-native"),
        ([MNI2009, f"{MNI2009}_res-1"], None, MNI2009),
        ([MNI2009, f"{MNI2009}_res-2"], None, f"{MNI2009}_res-2"),
        ([f"{MNI2009}_res-1", f"{MNI6}_res-2"], None, f"{MNI2009}_res-1"),
        ([f"{MNI6}_res-1", f"{MNI6}_res-2"], ["MNI152NLin6Asym:res-1"], f"{MNI6}_res-1"),
        (
            [f"{MNI6}_res-1", f"{MNI2009}_res-2"],
            ["MNI152NLin6Asym:res-2", "MNI152NLin2009cAsym"],
            f"{MNI2009}_res-2",
        ),
        # TemplateFlow writes resolutions with a leading zero, and users write them in both ways
        ([f"{MNI6}_res-01", f"{MNI6}_res-02"], ["MNI152NLin6Asym:res-2"], f"{MNI6}_res-02"),
        ([f"{MNI6}_res-1", f"{MNI6}_res-2"], ["MNI152NLin6Asym:res-02"], f"{MNI6}_res-2"),
        ([CIFTI, MNI6], ["fsLR:den-91k"], CIFTI),
        (["space-fsLR_den-170k", MNI6], ["fsLR", "MNI152NLin6Asym"], MNI6),
        (["space-MNIInfant_cohort-1", "space-MNI152NLin2009aAsym", MNI6], None, MNI6),
    ],
)
def test_the_first_space_there_is_of_those_asked_for_is_used(bids, fmriprep, forms, spaces, taken):
    add_run(fmriprep, "sub-01_task-rest", forms=forms)
    options = {} if spaces is None else {"spaces": spaces}
    plan = plan_inputs(bids, **options)
    assert only_run(plan).label == f"sub-01_task-rest_{taken}"
    # whatever is not used is listed
    assert len([s for s in plan.skipped if s.path.parent.name == "func"]) == len(forms) - 1


def test_the_reason_for_each_form_that_is_not_used(bids, fmriprep):
    forms = ["", "space-T1w", "space-fsLR_den-170k", MNI6, MNI2009]
    add_run(fmriprep, "sub-01_task-rest", forms=forms)
    reasons = {
        name.removeprefix("sub-01_task-rest_"): reason
        for name, reason in reasons_of(plan_inputs(bids, spaces=["MNI152NLin6Asym"])).items()
        if "task" in name
    }
    used = f"sub-01_task-rest_{MNI6}_desc-preproc_bold.nii.gz"
    assert reasons["desc-preproc_bold.nii.gz"].startswith("in the scanner's own space")
    assert reasons["space-T1w_desc-preproc_bold.nii.gz"].startswith("in space T1w")
    assert "CIFTI: den-91k" in reasons["space-fsLR_den-170k_bold.dtseries.nii"]
    assert reasons[f"{MNI2009}_desc-preproc_bold.nii.gz"] == f"the run is taken as {used}"


@pytest.mark.parametrize(
    ("forms", "spaces", "named"),
    [
        (["", "space-T1w"], None, ["native", "T1w"]),
        (["space-MNI152NLin2009aSym_res-2"], None, ["MNI152NLin2009aSym res-2"]),
        (["space-fsLR_den-170k"], None, ["fsLR den-170k"]),
        ([f"{MNI6}_res-1"], ["MNI152NLin6Asym:res-2"], ["MNI152NLin6Asym res-1"]),
        ([MNI2009], ["fsLR"], ["MNI152NLin2009cAsym"]),
    ],
)
def test_a_run_in_other_spaces_only_is_a_problem_that_names_them(
    bids, fmriprep, forms, spaces, named
):
    add_run(fmriprep, "sub-01_task-rest", forms=forms)
    plan = plan_inputs(bids, **({"spaces": spaces} if spaces else {}))
    assert not runs_of(plan)
    (problem,) = problems_of(plan)
    assert problem.startswith("sub-01_task-rest: ")
    assert "--output-spaces" in problem
    for space in named:
        assert space in problem
    for space in spaces or ["MNI152NLin2009cAsym", "MNI152NLin6Asym", "fsLR"]:
        assert space in problem


def test_a_run_in_another_space_does_not_stop_the_others(bids, fmriprep):
    add_run(fmriprep, "sub-01_task-rest")
    add_run(fmriprep, "sub-01_task-movie", forms=["space-T1w"])
    plan = plan_inputs(bids)
    assert labels_of(plan) == [f"sub-01_task-rest_{RES2}"]
    assert len(problems_of(plan)) == 1


@pytest.mark.parametrize(
    "space", ["MNI", "T1w", "fsaverage5", "MNI152NLin6Asym:2", "MNI152NLin6Asym:", "fsLR:res-"]
)
def test_a_space_without_an_atlas_is_wrong_usage(bids, fmriprep, space):
    add_run(fmriprep, "sub-01_task-rest")
    with pytest.raises(UsageError) as caught:
        plan_inputs(bids, spaces=["fsLR", space])
    assert f"--space {space}" in str(caught.value)
    assert "MNI152NLin2009cAsym" in caught.value.hint


# ---------------------------------------------------------------------------------------------
# CIFTI
# ---------------------------------------------------------------------------------------------


def test_a_cifti_run_has_no_mask_but_confounds(bids, fmriprep):
    folder = add_run(fmriprep, "sub-01_task-rest", forms=[CIFTI], repetition_time=0.72)
    run = only_run(plan_inputs(bids))
    assert run.bold == folder / f"sub-01_task-rest_{CIFTI}_bold.dtseries.nii"
    assert (run.space, run.resolution, run.density) == ("fsLR", None, "91k")
    assert run.mask is None
    assert run.confounds == folder / "sub-01_task-rest_desc-confounds_timeseries.tsv"
    assert run.repetition_time == 0.72
    assert "space" not in run.entities
    assert "den" not in run.entities


def test_the_sidecar_of_fmriprep_before_21_is_read(bids, fmriprep):
    folder = add_run(fmriprep, "sub-01_task-rest", forms=[CIFTI], repetition_time=None)
    write(folder / f"sub-01_task-rest_{CIFTI}_bold.dtseries.json", {"RepetitionTime": 0.8})
    assert only_run(plan_inputs(bids)).repetition_time == 0.8


def test_a_series_that_another_program_cleaned_is_not_cleaned_again(bids, fmriprep):
    # XCP-D's, copied beside fMRIPrep's
    name = f"sub-01_task-rest_{CIFTI}_desc-denoised_bold.dtseries.nii"
    folder = add_run(fmriprep, "sub-01_task-rest", forms=[])
    write(folder / name)
    (problem,) = problems_of(plan_inputs(bids))
    assert "fsLR den-91k desc-denoised" in problem
    add_run(fmriprep, "sub-01_task-rest", forms=[CIFTI])
    plan = plan_inputs(bids)
    assert only_run(plan).bold.name == f"sub-01_task-rest_{CIFTI}_bold.dtseries.nii"
    assert name in reasons_of(plan)


@pytest.mark.parametrize(
    "name",
    [
        "sub-01_task-rest_Atlas.dtseries.nii",
        "sub-01_task-rest_Atlas_MSMAll_hp2000_clean.dtseries.nii",
        "rfMRI_REST1_LR_Atlas_MSMAll.dtseries.nii",
    ],
)
def test_series_named_by_the_hcp_pipelines_are_named_and_not_taken(bids, tmp_path, name):
    # Several of them are the same run in stages of cleaning, and no name tells the run for sure.
    hcp = tmp_path / "hcp"
    write(hcp / "sub-01" / "ses-1" / "func" / name)
    with pytest.raises(NothingSelectedError) as caught:
        plan_inputs(bids, derivatives={"hcp": hcp})
    assert name in caught.value.hint
    assert "_space-fsLR_den-91k_bold.dtseries.nii" in caught.value.hint
    plan = plan_inputs(bids, derivatives={"hcp": hcp}, selection=Selection(participants=["01"]))
    assert name in problems_of(plan)[0]


# ---------------------------------------------------------------------------------------------
# Masks and confounds
# ---------------------------------------------------------------------------------------------


def test_the_files_of_a_run(bids, fmriprep):
    stem = "sub-01_ses-1_task-rest_run-1"
    folder = add_run(fmriprep, stem, forms=[f"{MNI6}_res-1", f"{MNI6}_res-2", MNI2009])
    run = only_run(plan_inputs(bids, spaces=["MNI152NLin6Asym"]))
    assert run.bold == folder / f"{stem}_{MNI6}_res-2_desc-preproc_bold.nii.gz"
    assert run.mask == folder / f"{stem}_{MNI6}_res-2_desc-brain_mask.nii.gz"
    assert run.confounds == folder / f"{stem}_desc-confounds_timeseries.tsv"
    assert run.repetition_time == 2.0
    assert (run.space, run.resolution, run.density) == ("MNI152NLin6Asym", "2", None)
    assert list(run.entities.items()) == [
        ("sub", "01"),
        ("ses", "1"),
        ("task", "rest"),
        ("run", "1"),
    ]


def test_a_mask_in_another_space_or_resolution_is_not_taken(bids, fmriprep):
    folder = add_run(fmriprep, "sub-01_task-rest", forms=[f"{MNI6}_res-2"])
    mask = folder / f"sub-01_task-rest_{MNI6}_res-2_desc-brain_mask.nii.gz"
    for other in (f"{MNI6}_res-1", MNI6, MNI2009, "space-T1w"):
        mask.rename(folder / f"sub-01_task-rest_{other}_desc-brain_mask.nii.gz")
        mask = folder / f"sub-01_task-rest_{other}_desc-brain_mask.nii.gz"
        assert only_run(plan_inputs(bids)).mask is None


def test_uncompressed_images_are_found(bids, fmriprep):
    stem = f"sub-01_task-rest_{MNI6}"
    folder = add_run(fmriprep, "sub-01_task-rest", forms=[])
    series = write(folder / f"{stem}_desc-preproc_bold.nii")
    mask = write(folder / f"{stem}_desc-brain_mask.nii")
    run = only_run(plan_inputs(bids))
    assert (run.bold, run.mask) == (series, mask)


def test_the_older_name_of_the_confounds(bids, fmriprep):
    folder = add_run(fmriprep, "sub-01_task-rest", confounds="regressors")
    old = folder / "sub-01_task-rest_desc-confounds_regressors.tsv"
    assert only_run(plan_inputs(bids)).confounds == old
    new = write(folder / "sub-01_task-rest_desc-confounds_timeseries.tsv")
    assert only_run(plan_inputs(bids)).confounds == new


def test_a_run_without_confounds_is_left_to_the_cleaning(bids, fmriprep):
    # --nuisance none needs none
    add_run(fmriprep, "sub-01_task-rest", confounds="")
    add_run(fmriprep, "sub-01_task-rest_run-1")
    plan = plan_inputs(bids)
    assert {r.label: r.confounds is None for r in runs_of(plan)} == {
        f"sub-01_task-rest_{RES2}": True,
        f"sub-01_task-rest_run-1_{RES2}": False,
    }


# ---------------------------------------------------------------------------------------------
# Runs are never merged
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("task-rest", "task-rest_acq-mb"),
        ("task-rest_acq-mb", "task-rest_acq-mb4"),
        ("task-rest_ce-gad", "task-rest"),
        ("task-rest_dir-AP", "task-rest_dir-PA"),
        ("task-rest_rec-a", "task-rest_rec-b"),
        ("task-rest_run-1", "task-rest_run-2"),
        ("task-rest_echo-1", "task-rest_echo-2"),
        ("task-rest_echo-1", "task-rest"),
        ("task-rest_part-mag", "task-rest_part-phase"),
        ("task-rest_part-mag", "task-rest"),
        # PyBIDS does not know these
        ("task-rest_chunk-1", "task-rest_chunk-2"),
        ("task-rest_split-1", "task-rest_split-2"),
    ],
)
def test_files_that_differ_in_an_entity_are_runs_of_their_own(bids, fmriprep, first, second):
    for run in (first, second):
        add_run(fmriprep, f"sub-01_{run}")
    plan = plan_inputs(bids)
    assert set(labels_of(plan)) == {f"sub-01_{run}_{RES2}" for run in (first, second)}
    for run in runs_of(plan):
        stem = run.label.removesuffix(f"_{RES2}")
        assert run.mask.name == f"{run.label}_desc-brain_mask.nii.gz"
        assert run.confounds.name == f"{stem}_desc-confounds_timeseries.tsv"


def test_masks_and_confounds_that_the_echoes_share(bids, fmriprep):
    stem = "sub-01_task-rest"
    folder = add_run(fmriprep, stem)
    for echo in "12":
        write(folder / f"{stem}_echo-{echo}_{RES2}_desc-preproc_bold.nii.gz")
        write(folder / f"{stem}_echo-{echo}_part-mag_{RES2}_desc-preproc_bold.nii.gz")
    runs = runs_of(plan_inputs(bids))
    assert len(runs) == 5
    assert {run.mask.name for run in runs} == {f"{stem}_{RES2}_desc-brain_mask.nii.gz"}
    assert {run.confounds.name for run in runs} == {f"{stem}_desc-confounds_timeseries.tsv"}


@pytest.mark.parametrize("entity", ["acq-mb", "dir-AP", "run-1", "rec-x"])
def test_nothing_else_is_shared(bids, fmriprep, entity):
    add_run(fmriprep, "sub-01_task-rest")
    folder = add_run(fmriprep, f"sub-01_task-rest_{entity}", confounds="")
    (folder / f"sub-01_task-rest_{entity}_{RES2}_desc-brain_mask.nii.gz").unlink()
    own = next(r for r in runs_of(plan_inputs(bids)) if entity in r.label)
    assert (own.mask, own.confounds) == (None, None)


def test_the_echoes_that_fmriprep_writes_beside_their_combination_are_no_problem(bids, fmriprep):
    # --me-output-echos writes them in the scanner's space, whatever --output-spaces says.
    stem = "sub-01_task-rest_run-1"
    folder = add_run(fmriprep, stem)
    for echo in "123":
        write(folder / f"{stem}_echo-{echo}_desc-preproc_bold.nii.gz")
    plan = plan_inputs(bids)
    assert only_run(plan).label == f"{stem}_{RES2}"
    assert "combined" in reasons_of(plan)[f"{stem}_echo-3_desc-preproc_bold.nii.gz"]


def test_echoes_without_their_combination_are_a_problem(bids, fmriprep):
    folder = add_run(fmriprep, "sub-01_task-rest_run-1")
    for echo in "12":
        write(folder / f"sub-01_task-rest_run-2_echo-{echo}_desc-preproc_bold.nii.gz")
    plan = plan_inputs(bids)
    assert len(runs_of(plan)) == 1
    assert [problem.split(":")[0] for problem in problems_of(plan)] == [
        "sub-01_task-rest_run-2_echo-1",
        "sub-01_task-rest_run-2_echo-2",
    ]


# ---------------------------------------------------------------------------------------------
# Repetition time
# ---------------------------------------------------------------------------------------------

STEM = "sub-01_ses-1_task-rest"
OWN = f"sub-01/ses-1/func/{STEM}_{RES2}_desc-preproc_bold.json"


@pytest.mark.parametrize(
    ("sidecars", "expected"),
    [
        ({}, None),
        ({OWN: 0.8}, 0.8),
        ({OWN: 2}, 2.0),
        # the inheritance principle, from the dataset down to the file
        ({"task-rest_bold.json": 3.0}, 3.0),
        ({"bold.json": 3.0}, 3.0),
        ({"task-movie_bold.json": 3.0}, None),
        ({"task-rest_sbref.json": 3.0}, None),
        ({"sub-01/sub-01_bold.json": 2.5, "task-rest_bold.json": 3.0}, 2.5),
        ({"sub-01/ses-1/sub-01_ses-1_bold.json": 2.4, "sub-01/sub-01_bold.json": 2.5}, 2.4),
        ({OWN: 2.0, "task-rest_bold.json": 3.0, "sub-01/ses-1/func/" + STEM + "_bold.json": 1}, 2),
        # nearer is stronger than more specific
        ({"sub-01/sub-01_bold.json": 2.5, f"{STEM}_bold.json": 3.0}, 2.5),
        # in one folder the more specific one counts
        ({"task-rest_bold.json": 3.0, "task-rest_acq-x_bold.json": 1.0, "bold.json": 4.0}, 3.0),
        ({f"task-rest_{MNI2009}_bold.json": 1.5, "task-rest_bold.json": 3.0}, 1.5),
        # without the field the next one is asked
        ({OWN: None, "task-rest_bold.json": 3.0}, 3.0),
    ],
)
def test_the_nearest_sidecar_that_applies_gives_the_repetition_time(
    bids, fmriprep, sidecars, expected
):
    add_run(fmriprep, STEM, repetition_time=None)
    for name, value in sidecars.items():
        write(fmriprep / name, {} if value is None else {"RepetitionTime": value})
    found = only_run(plan_inputs(bids)).repetition_time
    assert found == expected
    assert found is None or isinstance(found, float)


def test_sidecars_above_the_dataset_do_not_count(bids, fmriprep):
    add_run(fmriprep, STEM, repetition_time=None)
    write(bids / "task-rest_bold.json", {"RepetitionTime": 3.0})
    assert only_run(plan_inputs(bids)).repetition_time is None


@pytest.mark.parametrize(
    "value", ["2.0", True, [2.0], {"s": 2}, 0, -2.0, float("nan"), float("inf"), 2000]
)
def test_a_repetition_time_that_is_none_is_a_problem(bids, fmriprep, value):
    add_run(fmriprep, "sub-01_task-rest", repetition_time=value)
    add_run(fmriprep, "sub-02_task-rest")
    plan = plan_inputs(bids)
    assert [run.entities["sub"] for run in runs_of(plan)] == ["02"]
    (problem,) = problems_of(plan)
    assert "RepetitionTime" in problem
    assert f"sub-01_task-rest_{RES2}_desc-preproc_bold.json" in problem


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"RepetitionTime": 2.0,}', "cannot be read as JSON"),
        ("", "cannot be read as JSON"),
        ("[2.0]", "is not a JSON object"),
    ],
)
def test_a_sidecar_that_is_no_json_is_a_problem(bids, fmriprep, content, message):
    folder = add_run(fmriprep, "sub-01_task-rest")
    add_run(fmriprep, "sub-02_task-rest")
    sidecar = write(folder / f"sub-01_task-rest_{RES2}_desc-preproc_bold.json", content)
    plan = plan_inputs(bids)
    assert [run.entities["sub"] for run in runs_of(plan)] == ["02"]
    (problem,) = problems_of(plan)
    assert problem.startswith(f"{sidecar}: {message}")


def test_broken_json_that_nobody_needs_harms_nobody(bids, fmriprep):
    folder = add_run(fmriprep, "sub-01_task-rest")
    write(folder / "sub-01_task-rest_desc-confounds_timeseries.json", "{")
    write(fmriprep / "task-movie_bold.json", "{")
    write(folder / f"._sub-01_task-rest_{RES2}_desc-preproc_bold.json", "\0\5\26")
    assert only_run(plan_inputs(bids)).repetition_time == 2.0


# ---------------------------------------------------------------------------------------------
# Content that is not there
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leave", [undownload, undownload_unlocked])
@pytest.mark.parametrize(
    "name",
    [
        f"{RES2}_desc-preproc_bold.nii.gz",
        f"{RES2}_desc-preproc_bold.json",
        f"{RES2}_desc-brain_mask.nii.gz",
        "desc-confounds_timeseries.tsv",
    ],
)
def test_files_that_datalad_has_not_downloaded_are_named(bids, fmriprep, name, leave):
    folder = add_run(fmriprep, "sub-01_task-rest")
    add_run(fmriprep, "sub-02_task-rest")
    missing = leave(folder / f"sub-01_task-rest_{name}")
    plan = plan_inputs(bids)
    assert [run.entities["sub"] for run in runs_of(plan)] == ["02"]
    (problem,) = problems_of(plan)
    assert problem == f"{missing}: not downloaded: datalad get {missing}"


@pytest.mark.parametrize("leave", [undownload, undownload_unlocked])
def test_a_description_that_is_not_downloaded_is_named(bids, fmriprep, leave):
    add_run(fmriprep, "sub-01_task-rest")
    missing = leave(bids / "dataset_description.json")
    with pytest.raises(InputMissingError) as caught:
        plan_inputs(bids)
    assert str(caught.value) == f"{missing}: not downloaded: datalad get {missing}"
    assert len(runs_of(plan_inputs(bids, skip_bids_validation=True))) == 1


def test_a_link_that_leads_nowhere_is_not_taken_for_datalads(bids, fmriprep):
    folder = add_run(fmriprep, "sub-01_task-rest")
    add_run(fmriprep, "sub-02_task-rest")
    for name, target in ((f"{RES2}_desc-preproc_bold.nii.gz", "/store/x.nii.gz"), ("x", "x")):
        path = folder / f"sub-01_task-rest_{name}"
        path.unlink(missing_ok=True)
        path.symlink_to(target)
    plan = plan_inputs(bids)
    assert [run.entities["sub"] for run in runs_of(plan)] == ["02"]
    (problem,) = problems_of(plan)
    assert "a link to /store/x.nii.gz, which is not there" in problem
    assert "datalad" not in problem


def test_only_what_is_used_has_to_be_downloaded(bids, fmriprep):
    folder = add_run(fmriprep, "sub-01_task-rest", forms=["", MNI6, MNI2009])
    for form in ("", f"{MNI6}_"):
        undownload(folder / f"sub-01_task-rest_{form}desc-preproc_bold.nii.gz")
    assert only_run(plan_inputs(bids)).space == "MNI152NLin2009cAsym"


# ---------------------------------------------------------------------------------------------
# Several datasets
# ---------------------------------------------------------------------------------------------


def test_the_same_run_in_two_datasets_is_taken_from_the_first(bids, fmriprep, tmp_path):
    add_run(fmriprep, "sub-01_task-rest")
    other = make_fmriprep(tmp_path / "other", "sub-01_task-rest", "sub-02_task-rest")
    for named, first in (
        ({"a": fmriprep, "b": other}, fmriprep),
        ({"b": other, "a": fmriprep}, other),
    ):
        plan = plan_inputs(bids, derivatives=named)
        run = next(run for run in runs_of(plan) if run.entities["sub"] == "01")
        assert run.derivatives.root == first
        assert run.mask.is_relative_to(first)
        assert len(runs_of(plan)) == 2
        same = [s for s in plan.skipped if "the same run" in s.reason]
        assert [s.path.is_relative_to(first) for s in same] == [False]
        assert same[0].reason.endswith(f"derivatives {next(iter(named))}")


def test_a_run_that_the_first_dataset_has_in_no_space_is_taken_from_the_second(bids, tmp_path):
    # fMRIPrep --level minimal, and its completion into another folder
    minimal = make_fmriprep(tmp_path / "minimal", "sub-01_task-rest", forms=[""])
    full = make_fmriprep(tmp_path / "full", "sub-01_task-rest")
    run = only_run(plan_inputs(bids, derivatives={"minimal": minimal, "full": full}))
    assert run.derivatives.name == "full"


def test_participants_of_all_datasets_together(bids, fmriprep, tmp_path):
    add_run(fmriprep, "sub-01_task-rest")
    other = make_fmriprep(tmp_path / "other", "sub-02_task-rest")
    plan = plan_inputs(bids, derivatives={"a": fmriprep, "b": other})
    assert [p.label for p in plan.participants] == ["01", "02"]
    assert [r.derivatives.name for r in runs_of(plan)] == ["a", "b"]
    assert not plan.skipped


# ---------------------------------------------------------------------------------------------
# A database that is kept
# ---------------------------------------------------------------------------------------------


@pytest.fixture
def looked_into(monkeypatch):
    """The folders that are looked into for the database, which believes fresh folders here."""
    looked = []

    def spy(folder):
        looked.append(folder)
        return look_into(folder)

    monkeypatch.setattr(database, "look_into", spy)
    monkeypatch.setattr(database, "_SETTLING", 0)
    return looked


def tick():
    """Let the clock of the file system go on."""
    time.sleep(0.02)


@pytest.fixture
def kept(sessions, looked_into, tmp_path):
    """A database of the sessions."""
    tick()
    plan_inputs(sessions, database_dir=tmp_path / "new" / "database")
    looked_into.clear()
    return tmp_path / "new" / "database"


def test_folders_are_kept_and_looked_into_no_more(sessions, kept, looked_into):
    files = {path: path.read_bytes() for path in kept.rglob("*.json")}
    assert {path.name for path in files} == {"sub-01.json", "sub-02.json", "sub-03.json"}
    plan = plan_inputs(sessions, database_dir=kept)
    assert plan == plan_inputs(sessions)
    assert not looked_into
    assert {path: path.read_bytes() for path in kept.rglob("*.*")} == files
    (note,) = plan.notes
    assert str(kept) in note and note.endswith("as they were kept, 0 were looked into")


def test_of_one_participant_nobody_else_is_kept_or_looked_into(sessions, looked_into, tmp_path):
    selection = Selection(participants=["02"])
    plan = plan_inputs(sessions, selection=selection, database_dir=tmp_path / "database")
    assert labels_of(plan) == [f"sub-02_ses-pre_task-rest_run-10_{RES2}"]
    assert [path.name for path in tmp_path.joinpath("database").rglob("*.json")] == ["sub-02.json"]
    assert all("sub-02" in folder.parts for folder in looked_into)


def add_a_run(fmriprep):
    add_run(fmriprep, "sub-01_ses-pre_task-new")


def add_a_form(fmriprep):
    add_run(fmriprep, "sub-02_ses-pre_task-rest_run-10", forms=[CIFTI, MNI2009])


def add_a_session(fmriprep):
    add_run(fmriprep, "sub-02_ses-late_task-rest")


def add_a_participant(fmriprep):
    add_run(fmriprep, "sub-04_task-rest")


def remove_a_run(fmriprep):
    for path in (fmriprep / "sub-01" / "ses-pre" / "func").glob("*_run-2_*_bold.nii.gz"):
        path.unlink()


def remove_a_session(fmriprep):
    shutil.rmtree(fmriprep / "sub-01" / "ses-post")


def remove_a_participant(fmriprep):
    shutil.rmtree(fmriprep / "sub-02")


def remove_the_confounds(fmriprep):
    for path in (fmriprep / "sub-02").rglob("*_timeseries.tsv"):
        path.unlink()


def rename_a_task(fmriprep):
    for path in (fmriprep / "sub-03" / "func").iterdir():
        path.rename(path.with_name(path.name.replace("rest", "movie")))


def change_a_sidecar_in_place(fmriprep):
    (path,) = (fmriprep / "sub-03" / "func").glob("*_bold.json")
    path.write_text('{"RepetitionTime": 3.5}')


def put_a_sidecar_above(fmriprep):
    for path in (fmriprep / "sub-03" / "func").glob("*_bold.json"):
        path.unlink()
    write(fmriprep / "task-rest_bold.json", {"RepetitionTime": 4.5})


def replace_a_folder_of_the_same_age(fmriprep):
    """Copying programs set the times of folders back."""
    folder = fmriprep / "sub-03" / "func"
    status = folder.stat()
    shutil.rmtree(folder)
    add_run(fmriprep, "sub-03_task-other")
    os.utime(folder, ns=(status.st_atime_ns, status.st_mtime_ns))


def lead_a_participant_elsewhere(fmriprep):
    store = make_fmriprep(fmriprep.parents[2] / "store", "sub-03_task-elsewhere")
    shutil.rmtree(fmriprep / "sub-03")
    (fmriprep / "sub-03").symlink_to(store / "sub-03")


def lead_a_participant_to_what_comes_later(fmriprep):
    lead_a_participant_elsewhere(fmriprep)
    store = fmriprep.parents[2] / "store"
    store.rename(store.with_name("later"))
    for _ in range(2):
        tick()
        plan_inputs(fmriprep.parents[1], database_dir=fmriprep.parents[2] / "new" / "database")
    store.with_name("later").rename(store)


CHANGES = (
    lead_a_participant_to_what_comes_later,
    add_a_run,
    add_a_form,
    add_a_session,
    add_a_participant,
    remove_a_run,
    remove_a_session,
    remove_a_participant,
    remove_the_confounds,
    rename_a_task,
    change_a_sidecar_in_place,
    put_a_sidecar_above,
    replace_a_folder_of_the_same_age,
    lead_a_participant_elsewhere,
)


@pytest.mark.parametrize("change", CHANGES)
def test_what_has_changed_since_is_seen(sessions, fmriprep, kept, change):
    before = plan_inputs(sessions)
    tick()
    change(fmriprep)
    expected = plan_inputs(sessions)
    assert expected != before
    tick()
    for _ in range(2):
        assert plan_inputs(sessions, database_dir=kept) == expected


@pytest.mark.parametrize("lost", ["sub-03", "sub-03/func", "sub-01/ses-pre", "sub-01/ses-pre/func"])
@pytest.mark.parametrize("with_database", [False, True])
def test_folders_that_are_there_in_name_only_are_problems(
    sessions, fmriprep, kept, lost, with_database
):
    folder = fmriprep / lost
    shutil.rmtree(folder)
    folder.symlink_to("/nowhere/at/all")
    plan = plan_inputs(sessions, database_dir=kept if with_database else None)
    (person,) = [one for one in plan.participants if one.label == lost[4:6]]
    (problem,) = person.problems
    assert str(problem) == f"{folder}: a link to /nowhere/at/all, which is not there"
    assert problem.exit_code == 66
    assert len(plan.participants) == 3  # the others are processed
    assert bool(person.bold_runs) == (person.label == "01")  # as is what else there is
    (named,) = plan_inputs(sessions, selection=Selection(participants=[person.label])).participants
    assert named.bold_runs == person.bold_runs and str(named.problems[0]) == str(problem)


@pytest.mark.parametrize("with_database", [False, True])
def test_folders_that_may_not_be_looked_into_are_problems(
    sessions, fmriprep, kept, monkeypatch, with_database
):
    folder = fmriprep / "sub-03" / "func"

    def refusing(original):
        def call(path, *arguments, **options):
            if os.fspath(path) == os.fspath(folder):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return original(path, *arguments, **options)

        return call

    for name in ("scandir", "stat"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))
    plan = plan_inputs(sessions, database_dir=kept if with_database else None)
    (problem,) = plan.participants[2].problems
    assert str(problem) == f"{folder}: may not be looked into"
    assert [len(one.problems) for one in plan.participants] == [0, 0, 1]


def test_a_disk_that_fails_is_not_taken_for_an_empty_one(sessions, fmriprep, kept, monkeypatch):
    def fail(path):
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(database, "_stamp", fail)
    with pytest.raises(OSError, match="Input/output error"):
        plan_inputs(sessions, database_dir=kept)


@pytest.mark.parametrize("as_link", [True, False])
def test_the_description_of_confounds_has_to_be_here_if_it_is_there(sessions, fmriprep, as_link):
    (table,) = (fmriprep / "sub-03" / "func").glob("*_timeseries.tsv")
    path = table.with_suffix(".json")
    path.unlink(missing_ok=True)
    if as_link:
        path.symlink_to("../../.git/annex/objects/x/y")
    else:
        path.write_text("/annex/objects/MD5E-s3--x.json\n")
    person = plan_inputs(sessions).participants[2]
    assert not person.bold_runs
    assert str(person.problems[0]) == f"{path}: not downloaded: datalad get {path}"


def test_a_folder_that_changed_just_before_is_not_believed(
    sessions, fmriprep, tmp_path, monkeypatch
):
    # A second change within the same step of the clock leaves no trace.
    looked = []
    monkeypatch.setattr(database, "look_into", lambda path: looked.append(path) or look_into(path))
    for _ in range(2):
        looked.clear()
        plan = plan_inputs(sessions, database_dir=tmp_path / "database")
        assert plan == plan_inputs(sessions)
        assert {fmriprep / "sub-03", fmriprep / "sub-03" / "func"} < set(looked)


def test_datasets_that_share_a_folder_for_databases_do_not_mix(tmp_path, looked_into):
    for study in "ab":
        bids = make_raw(tmp_path / study / "data", "01")
        make_fmriprep(bids / "derivatives" / "fmriprep", f"sub-01_task-{study}")
        tick()
        plan = plan_inputs(bids, database_dir=tmp_path / "database")
        assert only_run(plan).bold.is_relative_to(bids)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b"\xff",
        b'{"Format": 0, "Folders": {}}',
        b'{"Format": 2, "Folders": []}',
        b'{"Format": 2, "Folders": {"x": 1}}',
        b'{"Format": 2, "Folders": {"x": [["a"], [], []]}}',
        None,
    ],
)
def test_a_database_that_cannot_be_read_is_made_anew(sessions, kept, content):
    (path,) = kept.rglob("sub-02.json")
    before = path.read_bytes()
    path.unlink()
    path.mkdir() if content is None else path.write_bytes(content)
    plan = plan_inputs(sessions, database_dir=kept)
    assert plan == plan_inputs(sessions)
    if content is None:
        assert any(f"{path}: cannot be written" in note for note in plan.notes)
    else:
        assert path.read_bytes() == before


def test_a_database_that_cannot_be_written_still_serves(
    sessions, fmriprep, kept, looked_into, monkeypatch
):
    add_a_run(fmriprep)
    expected = plan_inputs(sessions)

    def refuse(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    files = {path: path.read_bytes() for path in kept.rglob("*.*")}
    monkeypatch.setattr(database.os, "replace", refuse)
    for _ in range(2):
        looked_into.clear()
        plan = plan_inputs(sessions, database_dir=kept)
        assert plan == expected
        assert [folder.name for folder in looked_into] == ["func"]
        assert "Read-only file system" in plan.notes[1]
    assert {path: path.read_bytes() for path in kept.rglob("*.*")} == files


def test_jobs_that_make_and_use_one_database_at_the_same_time(sessions, tmp_path, looked_into):
    expected = plan_inputs(sessions)
    tick()
    with ProcessPoolExecutor(4, mp_context=get_context("fork")) as pool:
        calls = [pool.submit(plan_inputs, sessions, database_dir=tmp_path / "d") for _ in range(12)]
        assert all(call.result() == expected for call in calls)
    assert plan_inputs(sessions, database_dir=tmp_path / "d") == expected
    assert not looked_into
    assert len(list(tmp_path.joinpath("d").rglob("*.*"))) == 3


def test_a_database_that_cannot_be_made_is_explained(bids, fmriprep, tmp_path):
    add_run(fmriprep, "sub-01_task-rest")
    with pytest.raises(CannotCreateOutputError) as caught:
        plan_inputs(bids, database_dir=write(tmp_path / "file") / "database")
    assert caught.value.exit_code == 73
    assert "--bids-database-dir" in caught.value.hint


# ---------------------------------------------------------------------------------------------
# What is in the way
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        f"sub-01/func/._sub-01_task-x_{RES2}_desc-preproc_bold.nii.gz",
        f"sub-01/func/.sub-01_task-x_{RES2}_desc-preproc_bold.nii.gz.Xa3dQ1",
        f"sub-01/func/sub-01_task-x_{RES2}_desc-preproc_bold.nii.gz.part",
        f"sub-01/func/sub-01_task-x_{RES2}_desc-preproc_bold.nii.gz~",
        f"sub-01/func/sub-01_task-x_{RES2}_desc-preproc_bold (1).nii.gz",
        f"sub-01/func/.ipynb_checkpoints/sub-01_task-x_{RES2}_desc-preproc_bold.nii.gz",
        f".git/annex/sub-01/func/sub-01_task-x_{RES2}_desc-preproc_bold.nii.gz",
        f"sourcedata/sub-01/func/sub-01_task-x_{RES2}_desc-preproc_bold.nii.gz",
        f"work/sub-01/func/sub-01_task-x_{RES2}_desc-preproc_bold.nii.gz",
        f"sub-01/anat/sub-01_task-x_{RES2}_desc-preproc_bold.nii.gz",
        f"sub-01/func/sub-01_task-x_{RES2}_desc-preproc_boldref.nii.gz",
        f"sub-01/func/sub-01_task-x_{RES2}_desc-preproc_sbref.nii.gz",
        f"sub-01/func/sub-01_task-x_{RES2}_desc-smoothAROMAnonaggr_bold.nii.gz",
        "sub-01/func/sub-01_task-x_hemi-L_space-fsaverage5_bold.func.gii",
    ],
)
def test_hidden_temporary_and_other_files_are_no_series(bids, fmriprep, name):
    add_run(fmriprep, "sub-01_task-rest")
    write(fmriprep / name)
    assert only_run(plan_inputs(bids)).entities["task"] == "rest"


@pytest.mark.parametrize(
    "folder",
    [
        "sub-01_old/func",
        "sub-01-old/func",
        "sub-01.bak/func",
        "sub-01/func/old",
        "sub-01/old/func",
        "sub-01/ses-1/func",
    ],
)
@pytest.mark.parametrize("is_kept", [True, False])
def test_copies_put_aside_are_not_taken_for_runs(bids, fmriprep, tmp_path, folder, is_kept):
    # PyBIDS reads the subject of a file in sub-01_old as 01.
    add_run(fmriprep, "sub-01_task-rest")
    add_run(fmriprep, "sub-02_task-rest")
    for task in ("rest", "rejected"):
        name = f"sub-01_task-{task}_{RES2}_desc-preproc_bold.nii.gz"
        write(fmriprep / folder / name)
    plan = plan_inputs(bids, database_dir=tmp_path / "database" if is_kept else None)
    own = fmriprep / "sub-01" / "func" / f"sub-01_task-rest_{RES2}_desc-preproc_bold.nii.gz"
    assert [r.bold for r in runs_of(plan) if r.entities["sub"] == "01"] == [own]
    assert not problems_of(plan)
    aside = [s.path for s in plan.skipped if s.path.is_relative_to(fmriprep)]
    assert aside
    top = fmriprep / folder.split("/")[0]
    assert all(path.is_relative_to(top) for path in aside)


def test_a_file_in_the_folder_of_another_participant_is_nobodys(bids, fmriprep):
    add_run(fmriprep, "sub-01_task-rest")
    add_run(fmriprep, "sub-02_task-rest")
    stray = f"sub-02_task-x_{RES2}_desc-preproc_bold.nii.gz"
    write(fmriprep / "sub-01" / "func" / stray)
    plan = plan_inputs(bids)
    assert len(runs_of(plan)) == 2
    assert "not in the folder" in reasons_of(plan)[stray]


@pytest.mark.parametrize("label", ["01_old", "01-old", "01.bak", ""])
def test_a_folder_with_a_label_that_is_none_cannot_be_asked_for(bids, fmriprep, label):
    add_run(fmriprep, "sub-01_task-rest")
    (fmriprep / f"sub-{label}" / "func").mkdir(parents=True)
    assert f"sub-{label}" in reasons_of(plan_inputs(bids))
    with pytest.raises(NothingSelectedError):
        plan_inputs(bids, selection=Selection(participants=[label]))


@pytest.mark.parametrize("label", ["01", "1", "NDARINV00ABC", "s+t", "sub"])
def test_labels_that_bids_allows(bids, fmriprep, label):
    run = f"sub-{label}_ses-{label}_task-{label}"
    add_run(fmriprep, run)
    add_run(fmriprep, "sub-010_task-rest")  # begins like another
    plan = plan_inputs(bids, selection=Selection(participants=[label]))
    assert labels_of(plan) == [f"{run}_{RES2}"]


@pytest.mark.parametrize("part", ["eyes", "eyes-open-x", "task-b", "acq-a.b"])
def test_a_series_whose_name_is_not_all_entities_is_a_problem(bids, fmriprep, part):
    # Outputs are named by entities: what is none would be lost, and two runs become one.
    add_run(fmriprep, "sub-01_task-rest")
    odd = write(
        fmriprep / "sub-01" / "func" / f"sub-01_task-rest_{part}_{RES2}_desc-preproc_bold.nii.gz"
    )
    plan = plan_inputs(bids)
    assert labels_of(plan) == [f"sub-01_task-rest_{RES2}"]
    (problem,) = problems_of(plan)
    assert problem.startswith(f"{odd}: ")


def test_participants_and_sessions_may_be_links(bids, fmriprep, tmp_path):
    store = make_fmriprep(tmp_path / "store", "sub-01_ses-1_task-rest", "sub-02_ses-2_task-rest")
    (fmriprep / "sub-01").symlink_to(store / "sub-01")
    (fmriprep / "sub-02").mkdir()
    (fmriprep / "sub-02" / "ses-2").symlink_to(store / "sub-02" / "ses-2")
    plan = plan_inputs(bids)
    assert [r.label for r in runs_of(plan)] == [
        f"sub-01_ses-1_task-rest_{RES2}",
        f"sub-02_ses-2_task-rest_{RES2}",
    ]
    assert all(run.bold.is_relative_to(fmriprep) for run in runs_of(plan))


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_paths_may_have_spaces_and_any_letters(tmp_path, form):
    folder = unicodedata.normalize(form, "Größe & 年 [1] {2} 100%")
    bids = make_raw(tmp_path / folder / "my data", "01")
    fmriprep = make_fmriprep(bids / "derivatives" / unicodedata.normalize(form, "prép 1"))
    add_run(fmriprep, "sub-01_ses-1_task-rest", forms=[MNI2009, CIFTI], repetition_time=None)
    write(fmriprep / "task-rest_bold.json", {"RepetitionTime": 0.8})
    add_dwi(bids, "sub-01_ses-1")
    for _ in range(2):
        plan = plan_inputs(
            bids,
            selection=Selection(filters={"session": "1"}, dwi_filters={"session": "1"}),
            database_dir=tmp_path / folder / "data base",
        )
        run = only_run(plan)
        assert run.bold.is_file() and run.mask.is_file() and run.confounds.is_file()
        assert run.bold.is_relative_to(fmriprep)
        assert run.repetition_time == 0.8
        assert re.fullmatch(r"[A-Za-z0-9._-]+", run.derivatives.name)
        (scan,) = plan.participants[0].dwi_scans
        assert all(path.is_file() for path in scan.files)


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"GeneratedBy": "fMRIPrep"})])
def test_a_named_dataset_with_a_broken_description_is_read(bids, tmp_path, content):
    other = make_fmriprep(tmp_path / "other", "sub-01_task-rest", description=content)
    assert only_run(plan_inputs(bids, derivatives={"other": other}))

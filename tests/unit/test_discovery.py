"""What folders are looked into, which files are there, and labels that differ in capitals only."""

import os
import pickle
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from bsym_bids.errors import CannotCreateOutputError, InputMissingError
from bsym_bids.inputs import (
    BoldRun,
    Derivatives,
    Participant,
    Plan,
    Selection,
    case,
    listing,
    plan_inputs,
)
from bsym_bids.inputs.case import alike, check_case, folds_case
from bsym_bids.inputs.files import applying, check_present
from bsym_bids.inputs.listing import Listing, look_into

NOTHING = re.compile("")


def touch(path: Path, content: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# ---------------------------------------------------------------------------------------------
# Folders
# ---------------------------------------------------------------------------------------------


def test_a_folder_is_what_it_holds_with_links_as_what_they_lead_to(tmp_path):
    store = touch(tmp_path / "store" / "a.json").parent
    folder = tmp_path / "folder"
    for name in ("b.json", ".hidden", ".git/x", "z/x", "a/x"):
        touch(folder / name)
    for name, target in {
        "fmriprep-23.2.1": store,
        "file": store / "a.json",
        "nowhere": "absent",
        "nowhere.nii.gz": ".git/annex/objects/x",
        "self": "self",
    }.items():
        (folder / name).symlink_to(target)
    found = look_into(folder)
    assert found.folders == ("a", "fmriprep-23.2.1", "nowhere", "self", "z")
    assert found.lost == ("nowhere", "self")
    assert found.files == ("b.json", "file", "nowhere.nii.gz")
    assert found.ending(".json") == ("b.json",)
    assert found.has("file") and not found.has("a") and not found.has(".hidden")


@pytest.mark.parametrize("name", ["absent", "file", "file/x", "loop"])
def test_what_is_no_folder_holds_nothing(tmp_path, name):
    touch(tmp_path / "file")
    (tmp_path / "loop").symlink_to("loop")
    found = Listing().look(tmp_path / name)
    assert not found.files and not found.folders


def test_a_folder_that_may_not_be_looked_into_is_named(tmp_path, monkeypatch, caplog):
    def refuse(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(listing.os, "scandir", refuse)
    monkeypatch.setattr(listing.LOGGER, "propagate", True)
    assert not Listing().look(tmp_path).files
    assert f"{tmp_path}: may not be looked into" in caplog.text


def test_a_failing_disk_is_no_empty_folder(tmp_path, monkeypatch):
    def fail(folder):
        raise OSError(5, "Input/output error", str(folder))

    monkeypatch.setattr(listing.os, "scandir", fail)
    with pytest.raises(OSError, match="Input/output error"):
        Listing().look(tmp_path)


def test_each_folder_is_looked_into_once(tmp_path, monkeypatch):
    looked = []
    monkeypatch.setattr(listing, "look_into", lambda path: looked.append(path) or look_into(path))
    for name in ("sub-01/func/x", "sub-01/anat/x", "sub-02/func/x"):
        touch(tmp_path / name)
    found = Listing()
    for _ in range(2):
        paths = found.below(tmp_path / "sub-01", lambda name: name == "x", re.compile("anat"))
        assert list(paths) == [tmp_path / "sub-01" / "func" / "x"]
    assert looked == [tmp_path / "sub-01", tmp_path / "sub-01" / "func"]
    found.look(tmp_path / "sub-01" / "dwi")  # the folder above says that there is none
    assert len(looked) == 2


def test_what_was_seen_of_a_participant_is_forgotten_after_it(tmp_path):
    touch(tmp_path / "sub-01" / "func" / "x")
    found = Listing()
    with found.of_participant("01"):
        assert found.look(tmp_path).folders == ("sub-01",)
        assert found.look(tmp_path / "sub-01" / "func").files == ("x",)
    touch(tmp_path / "sub-01" / "func" / "y")
    touch(tmp_path / "sub-02" / "func" / "x")
    with found.of_participant("01"):
        assert found.look(tmp_path / "sub-01" / "func").files == ("x", "y")
    assert found.look(tmp_path).folders == ("sub-01",)


def test_links_that_go_round_in_a_circle_end(tmp_path):
    touch(tmp_path / "sub-01" / "x")
    (tmp_path / "sub-01" / "again").symlink_to(tmp_path / "sub-01")
    paths = list(Listing().below(tmp_path / "sub-01", lambda name: name == "x", NOTHING))
    assert paths[0] == tmp_path / "sub-01" / "x"
    assert len(paths) == 4


def test_listings_do_not_cross_process_borders(tmp_path):
    touch(tmp_path / "x")
    dataset = Derivatives("fmriprep", tmp_path)
    before = pickle.dumps(dataset)
    dataset.listing.look(tmp_path)
    assert pickle.dumps(dataset) == before
    assert pickle.loads(before) == dataset
    assert "Listing" not in repr(dataset)


@pytest.mark.parametrize("count", [2, 6])
def test_one_participant_costs_the_same_among_few_and_many(tmp_path, monkeypatch, count):
    looked = []
    monkeypatch.setattr(listing, "look_into", lambda path: looked.append(path) or look_into(path))
    touch(tmp_path / "dataset_description.json", b'{"Name": "x"}')
    prep = tmp_path / "derivatives" / "fmriprep"
    touch(prep / "dataset_description.json", b'{"GeneratedBy": [{"Name": "fMRIPrep"}]}')
    for index in range(count):
        stem = f"sub-{index}_task-x"
        space = "space-MNI152NLin6Asym_desc-preproc_bold.nii.gz"
        touch(prep / f"sub-{index}" / "func" / f"{stem}_{space}")
        touch(tmp_path / f"sub-{index}" / "func" / f"{stem}_bold.nii.gz")
    monkeypatch.setattr("bsym_bids.inputs.datasets._LOOK_AT", 1)
    plan = plan_inputs(tmp_path, selection=Selection(participants=["1"]))
    assert len(plan.participants[0].bold_runs) == 1
    own = {path for path in looked if "sub-1" in path.parts}
    others = {path.name for path in looked if re.search("sub-[02-9]", str(path))}
    assert own and others <= {"sub-0", "func"}  # where it was seen what the dataset is


# ---------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------

POINTER = b"/annex/objects/MD5E-s1--0.nii.gz"


@pytest.mark.parametrize("content", [POINTER, POINTER + b"\n", POINTER + b"\n\nmore\n"])
def test_a_pointer_of_git_annex_is_not_downloaded(tmp_path, content):
    path = touch(tmp_path / "x.nii.gz", content)
    with pytest.raises(InputMissingError) as caught:
        check_present([None, touch(tmp_path / "y"), path])
    assert str(caught.value) == f"{path}: not downloaded: datalad get {path}"


@pytest.mark.parametrize(
    "target", [".git/annex/objects/a/b/c", "../../.git/modules/x/annex/objects/a/b/c"]
)
def test_a_link_into_the_annex_is_not_downloaded(tmp_path, target):
    path = tmp_path / "x.nii.gz"
    path.symlink_to(target)
    with pytest.raises(InputMissingError) as caught:
        check_present([path])
    assert str(caught.value) == f"{path}: not downloaded: datalad get {path}"


def test_downloaded_content_is_there(tmp_path):
    key = touch(tmp_path / ".git" / "annex" / "objects" / "k" / "k", b"content")
    link = tmp_path / "linked.nii.gz"
    link.symlink_to(os.path.relpath(key, tmp_path))
    about = touch(tmp_path / "about.json", b'{"x": "/annex/objects/"}')
    check_present([link, about, touch(tmp_path / "long", POINTER + b"\0" * 40000), tmp_path])


def test_a_file_that_is_gone(tmp_path):
    with pytest.raises(InputMissingError, match="no longer there") as caught:
        check_present([tmp_path / "x"])
    assert "again" in caught.value.hint


def test_sidecars_of_many_are_looked_for_once(tmp_path, monkeypatch):
    looked = []
    monkeypatch.setattr(listing, "look_into", lambda path: looked.append(path) or look_into(path))
    common = touch(tmp_path / "task-x_bold.json")
    dataset = Derivatives("fmriprep", tmp_path)
    for label in "abc":
        series = touch(tmp_path / f"sub-{label}" / "func" / f"sub-{label}_task-x_bold.nii.gz")
        own = touch(series.with_name(f"sub-{label}_bold.json"))
        assert list(applying(series, dataset, "bold.json")) == [own, common]
    assert looked.count(tmp_path) == 1


# ---------------------------------------------------------------------------------------------
# Steps
# ---------------------------------------------------------------------------------------------


def test_steps_are_counted_once_for_all_who_have_the_same_to_do(monkeypatch):
    from bsym_bids.workflows import participant

    class Run(NamedTuple):
        to_do: tuple[str, ...]

    class Scan(NamedTuple):
        to_do: tuple[str, ...]

    counted = []

    def count(jobs, threads):
        counted.append(jobs)
        return sum(len(job.to_do) * (2 if isinstance(job, Scan) else 1) for job in jobs)

    monkeypatch.setattr(participant, "_count_steps", count)
    todo = {
        "01": [Run(("a", "b"))],
        "02": [Run(("a",)), Run(("b",))],
        "03": [Run(("a", "b"))],
        "04": [Scan(("a", "b"))],
        "05": [Scan(("a", "b"))],
    }
    steps = participant._count_all_steps(todo, None)
    assert steps == {"01": 2, "02": 2, "03": 2, "04": 4, "05": 4}
    assert counted == [todo["01"], todo["02"], todo["04"]]


# ---------------------------------------------------------------------------------------------
# Capitals
# ---------------------------------------------------------------------------------------------


def test_labels_that_differ_in_capitals_only():
    assert alike(["a", "A", "b", "B1", "b1", "a"]) == {
        "A": ("a",),
        "a": ("A",),
        "B1": ("b1",),
        "b1": ("B1",),
    }


@pytest.mark.parametrize("name", ["", "not/yet/there"])
def test_this_file_system_is_asked_and_left_as_it_was(tmp_path, name):
    touch(tmp_path / "probe")
    folds = (tmp_path / "PROBE").exists()
    assert folds_case(tmp_path / name) is folds
    assert [path.name for path in tmp_path.iterdir()] == ["probe"]


def test_a_file_system_that_folds_case_is_known(tmp_path, monkeypatch):
    there = os.path.lexists

    def folding(path):
        names = {name.casefold() for name in os.listdir(Path(path).parent)}
        return there(path) or Path(path).name.casefold() in names

    monkeypatch.setattr(case.os.path, "lexists", folding)
    assert folds_case(tmp_path)


def test_where_nothing_can_be_written_nothing_is_known(tmp_path, monkeypatch):
    def refuse(**_):
        raise PermissionError

    monkeypatch.setattr(case.tempfile, "NamedTemporaryFile", refuse)
    assert not folds_case(tmp_path)


def plan_of(root: Path, *runs: str, known: str = "") -> Plan:
    """Return a plan with some runs, of a dataset in which there are some participants more."""
    dataset = Derivatives("fmriprep", root)
    people = {}
    for run in runs:
        entities = dict(part.split("-") for part in run.split("_"))
        bold = BoldRun(entities, "fsLR", root / f"{run}.nii.gz", dataset)
        people.setdefault(entities["sub"], []).append(bold)
    participants = tuple(Participant(label, tuple(own)) for label, own in people.items())
    others = alike([*people, *known.split()])
    found = {label: others[label] for label in people if label in others}
    return Plan(root, (dataset,), participants, (), found)


CLASHES = [
    (("sub-A_task-x", "sub-a_task-x"), "sub-A and sub-a"),
    (("sub-A_task-x", "sub-a_task-y"), "sub-A and sub-a"),
    (("sub-1_ses-B_task-x", "sub-1_ses-b_task-x"), "sub-1_ses-B_task-x_space-fsLR and sub-1_ses-b"),
    (("sub-1_task-Rest", "sub-1_task-rest", "sub-1_task-REST"), "and so would 1 more"),
]


@pytest.mark.parametrize(("runs", "words"), CLASHES)
@pytest.mark.parametrize("folding", ["out", "work"])
def test_what_would_overwrite_each_other_is_refused(tmp_path, monkeypatch, runs, words, folding):
    out, work = tmp_path / "out", tmp_path / "work"
    monkeypatch.setattr(case, "folds_case", lambda folder: folder.name == folding)
    with pytest.raises(CannotCreateOutputError) as caught:
        check_case(plan_of(tmp_path, *runs), out, work, is_trial=True)
    assert caught.value.exit_code == 73
    assert words in str(caught.value) and str(tmp_path / folding) in str(caught.value)
    assert "--participant-label" in caught.value.hint
    assert not out.exists()


@pytest.mark.parametrize(("runs", "words"), CLASHES)
def test_where_capitals_count_nothing_is_refused(tmp_path, monkeypatch, runs, words):
    monkeypatch.setattr(case, "folds_case", lambda folder: False)
    check_case(plan_of(tmp_path, *runs), tmp_path / "out", tmp_path / "work", is_trial=False)
    assert not (tmp_path / "out").exists()


def test_where_no_labels_are_alike_no_file_system_is_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(case, "folds_case", lambda folder: pytest.fail("asked"))
    plan = plan_of(tmp_path, "sub-A_task-x", "sub-b_task-x")
    check_case(plan, tmp_path / "out", tmp_path / "work", is_trial=False)


def test_jobs_for_namesakes_meet_at_the_folder_of_the_outputs(tmp_path, monkeypatch):
    monkeypatch.setattr(case, "folds_case", lambda folder: True)
    out, work = tmp_path / "out", tmp_path / "work"
    first = plan_of(tmp_path, "sub-A_task-x", known="a b")
    second = plan_of(tmp_path, "sub-a_task-x", known="A b")
    check_case(first, out, work, is_trial=True)
    assert not out.exists()
    for _ in range(2):
        check_case(first, out, work, is_trial=False)
        assert os.listdir(out) == ["sub-A"]
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: None)  # as where it is there already
    for is_trial in (True, False):
        with pytest.raises(CannotCreateOutputError, match="sub-a and sub-A would overwrite"):
            check_case(second, out, work, is_trial=is_trial)


def test_jobs_for_namesakes_meet_in_the_work_folder_too(tmp_path, monkeypatch):
    out, work = tmp_path / "out", tmp_path / "work"
    monkeypatch.setattr(case, "folds_case", lambda folder: folder == work)
    check_case(plan_of(tmp_path, "sub-A_task-x", known="a"), out, work, is_trial=False)
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: None)
    with pytest.raises(CannotCreateOutputError, match="work: sub-a and sub-A would overwrite"):
        check_case(plan_of(tmp_path, "sub-a_task-x", known="A"), out, work, is_trial=False)


def test_the_plan_knows_of_namesakes_that_are_not_selected(tmp_path):
    touch(tmp_path / "dataset_description.json", b'{"Name": "x"}')
    for label in ("A", "a", "b"):
        stem = f"sub-{label}/dwi/sub-{label}_dwi"
        touch(tmp_path / f"{stem}.nii.gz")
        touch(tmp_path / f"{stem}.bval", b"0 1000")
        touch(tmp_path / f"{stem}.bvec", b"0 1\n0 0\n0 0")
    if len(os.listdir(tmp_path)) < 4:
        pytest.skip("this file system does not tell them apart")
    assert plan_inputs(tmp_path, selection=Selection(participants=["a"])).alike == {"a": ("A",)}
    assert plan_inputs(tmp_path).alike == {"A": ("a",), "a": ("A",)}
    assert plan_inputs(tmp_path, selection=Selection(participants=["b"])).alike == {}

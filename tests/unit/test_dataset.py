"""Where the output dataset may go, and what describes it."""

import json
import multiprocessing
import os
import shutil
from collections import namedtuple
from contextlib import contextmanager
from pathlib import Path

import pytest

from bsym_bids import __version__, atlas
from bsym_bids.errors import CannotCreateOutputError, OutputIOError
from bsym_bids.outputs import dataset
from bsym_bids.outputs.dataset import (
    check_apart,
    check_location,
    check_space,
    describe_dataset,
    make_writable,
)

NOBODY = 65534


@pytest.fixture
def bids(tmp_path):
    folder = tmp_path / "bids"
    (folder / "sub-01").mkdir(parents=True)
    (folder / "derivatives").mkdir()
    return folder


@contextmanager
def unprivileged():
    """Let permissions count for a user who may do anything otherwise."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.fixture
def locked(tmp_path):
    """A folder that may be neither searched nor written."""
    folder = tmp_path / "locked"
    (folder / "inside").mkdir(parents=True)
    folder.chmod(0)
    yield folder
    folder.chmod(0o700)


# Relative to a folder that holds the BIDS dataset `bids`.
@pytest.mark.parametrize(
    ("output", "work", "word"),
    [
        ("bids", "work", "is the input dataset"),
        ("bids/sub-01", "work", "inside the input data"),
        ("bids/sub-01/func/out", "work", "inside the input data"),
        ("bids/out", "work", "inside the input data"),
        ("bids/sourcedata/out", "work", "inside the input data"),
        ("out/../bids/out", "work", "inside the input data"),
        ("link/out", "work", "inside the input data"),
        ("out", "bids", "work folder is the input dataset"),
        ("out", "bids/work", "work folder lies inside"),
        ("out", "out", "work folder is the output folder"),
        ("file", "work", "is a file"),
        ("out", "file", "is a file"),
        # --clean-workdir empties work/bsym: neither input nor output may be there
        ("bsym", ".", "work folder keeps its files"),
        ("bsym/out", ".", "work folder keeps its files"),
    ],
)
def test_locations_that_would_mix_are_refused(tmp_path, bids, output, work, word):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(bids)
    with pytest.raises(CannotCreateOutputError, match=word) as caught:
        check_location(bids, tmp_path / output, tmp_path / work)
    assert caught.value.exit_code == 73
    assert caught.value.hint


def test_input_where_intermediate_results_go_is_refused(tmp_path):
    (tmp_path / "bsym").mkdir()
    with pytest.raises(CannotCreateOutputError, match="keeps its files"):
        check_location(tmp_path / "bsym", tmp_path / "out", tmp_path)


@pytest.mark.parametrize(
    ("output", "work"),
    [
        ("out", "out/work"),
        ("out", "work"),
        ("work/out", "work"),
        ("bids/derivatives/bsym", "bids/derivatives/bsym/work"),
        ("bids/derivatives/bsym", "bids/derivatives/work"),
        ("not/yet/there", "nor/this"),
        ("bids2", "bids3"),
    ],
)
def test_locations_that_mix_nothing_are_taken(tmp_path, bids, output, work):
    before = set(tmp_path.rglob("*"))
    check_location(bids, tmp_path / output, tmp_path / work)
    assert set(tmp_path.rglob("*")) == before  # a check makes nothing


def test_dataset_of_another_program_is_not_written_into_but_ours_is(tmp_path, bids):
    (tmp_path / "dataset_description.json").write_text('{"GeneratedBy": [{"Name": "fMRIPrep"}]}')
    with pytest.raises(CannotCreateOutputError, match="fMRIPrep"):
        check_location(bids, tmp_path, tmp_path / "work")
    describe_dataset(tmp_path / "ours", {})
    check_location(bids, tmp_path / "ours", tmp_path / "work")


@pytest.mark.parametrize("text", ["{}", "[]", "", '{"GeneratedBy": []}', '{"GeneratedBy": [{}]}'])
def test_dataset_of_unknown_origin_is_not_written_into(tmp_path, bids, text):
    out = tmp_path / "out"
    out.mkdir()
    (out / "dataset_description.json").write_text(text)
    with pytest.raises(CannotCreateOutputError, match="unknown program"):
        check_location(bids, out, tmp_path / "work")


@pytest.mark.parametrize("output", ["", "sub-01", "sub-01/func/out"])
def test_output_among_the_derivatives_is_refused(tmp_path, output):
    derivatives = tmp_path / "fmriprep"
    with pytest.raises(CannotCreateOutputError, match="derivatives that are read") as caught:
        check_apart(derivatives, derivatives / output)
    assert str(tmp_path / "bsym") in caught.value.hint


@pytest.mark.parametrize("output", ["bsym", "fmriprep/bsym", "fmriprep/derivatives/bsym"])
def test_output_beside_the_participants_is_taken(tmp_path, output):
    check_apart(tmp_path / "fmriprep", tmp_path / output)


def test_folder_is_made_and_nothing_left_in_it(tmp_path):
    folder = tmp_path / "a" / "b"
    make_writable(folder)
    make_writable(folder)
    assert folder.is_dir() and not list(folder.iterdir())


def test_folder_below_a_file_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    check_location(tmp_path / "bids", tmp_path / "file" / "out", tmp_path / "work")
    with pytest.raises(CannotCreateOutputError, match=r"file/out: Not a directory"):
        make_writable(tmp_path / "file" / "out")


def test_dangling_link_cannot_be_made(tmp_path):
    (tmp_path / "out").symlink_to(tmp_path / "nowhere" / "deep")
    with pytest.raises(CannotCreateOutputError):
        make_writable(tmp_path / "out")


@pytest.mark.parametrize("name", ["", "new", "inside", "inside/new"])
def test_folder_without_permission_is_explained(bids, locked, tmp_path, name):
    with unprivileged():
        check_location(bids, locked / name, tmp_path / "work")
        with pytest.raises(CannotCreateOutputError, match="Permission denied") as caught:
            make_writable(locked / name)
    assert "permissions" in caught.value.hint


def test_full_disk_is_told_from_a_forbidden_one(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bsym_bids.outputs.dataset.os.fsync", full)
    with pytest.raises(OutputIOError, match="No space left"):
        make_writable(tmp_path)


@pytest.mark.parametrize(("free", "refused"), [(999_999, True), (1_000_000, False)])
def test_space_is_compared_with_what_is_free(tmp_path, monkeypatch, free, refused):
    usage = namedtuple("usage", ["total", "used", "free"])(10**9, 10**9 - free, free)
    asked = []
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: asked.append(folder) or usage)
    if refused:
        with pytest.raises(OutputIOError, match=r"1 MB free, but about 1 MB") as caught:
            check_space(tmp_path, 1_000_000)
        assert caught.value.exit_code == 74 and "--work-dir" in caught.value.hint
    else:
        check_space(tmp_path, 1_000_000)
    assert asked == [tmp_path]


def description(out):
    return json.loads((out / "dataset_description.json").read_text())


def test_description_says_what_made_it_from_what(tmp_path):
    describe_dataset(tmp_path / "out", {"fmriprep": tmp_path / "prep"})
    document = description(tmp_path / "out")
    uri = (tmp_path / "prep").as_uri()
    assert document["DatasetLinks"] == {"fmriprep": uri}
    assert document["SourceDatasets"] == [{"URL": uri}]
    assert document["GeneratedBy"] == [{"Name": "bsym-bids", "Version": __version__}]
    table = tmp_path / "out" / atlas.table_path().name
    assert table.read_bytes() == atlas.table_path().read_bytes()
    assert not [p for p in (tmp_path / "out").rglob("*") if p.name.endswith(".part")]


def test_second_call_keeps_the_links_of_the_first(tmp_path):
    describe_dataset(tmp_path, {"fmriprep": tmp_path / "a"})
    describe_dataset(tmp_path, {"other": tmp_path / "b"})
    assert set(description(tmp_path)["DatasetLinks"]) == {"fmriprep", "other"}
    assert description(tmp_path)["DatasetType"] == "derivative"


def test_files_that_would_not_change_are_left_as_they_are(tmp_path):
    describe_dataset(tmp_path, {"fmriprep": tmp_path / "a"})
    before = {path: path.stat().st_ino for path in tmp_path.iterdir()}
    (tmp_path / "dataset_description.json").chmod(0o444)
    describe_dataset(tmp_path, {"fmriprep": tmp_path / "a"})
    assert {path: path.stat().st_ino for path in tmp_path.iterdir()} == before
    describe_dataset(tmp_path, {"raw": tmp_path / "b"})
    assert set(description(tmp_path)["DatasetLinks"]) == {"fmriprep", "raw"}


def test_second_call_moves_a_link_and_keeps_what_people_wrote(tmp_path):
    describe_dataset(tmp_path, {"fmriprep": tmp_path / "a"})
    (tmp_path / "README.md").write_text("ours")
    (tmp_path / ".bidsignore").write_text("extra\n")
    describe_dataset(tmp_path, {"fmriprep": tmp_path / "b"})
    assert description(tmp_path)["DatasetLinks"] == {"fmriprep": (tmp_path / "b").as_uri()}
    assert (tmp_path / "README.md").read_text() == "ours"
    lines = (tmp_path / ".bidsignore").read_text().splitlines()
    assert lines[0] == "extra" and "*_predictions.*" in lines
    assert len(lines) == len(set(lines))


def test_a_link_that_moves_is_told(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(dataset.LOGGER, "warning", lambda text, *values: said.append(text % values))
    for folder in ("a", "a", "b"):
        describe_dataset(tmp_path, {"fmriprep": tmp_path / folder})
    (only,) = said
    assert (tmp_path / "a").as_uri() in only and (tmp_path / "b").as_uri() in only


@pytest.mark.parametrize("text", ["", "[]", "{", '{"DatasetLinks": null}', '{"DatasetLinks": 3}'])
def test_broken_description_is_made_anew(tmp_path, text):
    (tmp_path / "dataset_description.json").write_text(text)
    describe_dataset(tmp_path, {"fmriprep": tmp_path / "a"})
    assert set(description(tmp_path)["DatasetLinks"]) == {"fmriprep"}


def _describe_often(out, name, barrier):
    barrier.wait()
    for number in range(10):
        describe_dataset(out, {f"{name}{number}": Path("/", name)})


def test_processes_at_once_lose_no_link(tmp_path):
    # Jobs of a cluster share one output folder; each names the derivatives it reads.
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3)
    jobs = [
        context.Process(target=_describe_often, args=(tmp_path, name, barrier)) for name in "abc"
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(60)
    assert [job.exitcode for job in jobs] == [0, 0, 0]
    expected = {f"{name}{number}" for name in "abc" for number in range(10)}
    assert set(description(tmp_path)["DatasetLinks"]) == expected


def test_lock_that_cannot_be_made_is_explained(tmp_path):
    (tmp_path / "logs" / ".description.lock").mkdir(parents=True)
    with pytest.raises(CannotCreateOutputError, match=r"\.description\.lock"):
        describe_dataset(tmp_path, {})

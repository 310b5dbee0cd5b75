"""What is on record of a participant: found, skipped, done, failed, and what later calls leave."""

import json
from dataclasses import replace
from multiprocessing import get_context

import pytest

from bsym_bids.errors import InputMissingError
from bsym_bids.inputs.records import (
    BoldRun,
    Derivatives,
    DwiImage,
    DwiScan,
    Participant,
    Plan,
    Skipped,
)
from bsym_bids.outputs.participant_record import (
    ParticipantRecord,
    Series,
    read_record,
    record_of,
    record_path,
    recorded_participants,
    write_record,
)
from bsym_bids.summary import Outcome


@pytest.fixture
def plan(tmp_path):
    prep = Derivatives("fmriprep", tmp_path / "bids" / "derivatives" / "fmriprep")
    raw = Derivatives("raw", tmp_path / "bids")
    folder = prep.root / "sub-01" / "func"
    run = BoldRun(
        {"sub": "01", "task": "rest"},
        "fsLR",
        folder / "bold.dtseries.nii",
        prep,
        confounds=folder / "confounds.tsv",
    )
    series = raw.root / "sub-01" / "dwi"
    image = DwiImage(series / "a.nii.gz", series / "a.bval", series / "a.bvec")
    scan = DwiScan({"sub": "01"}, (image,), raw)
    problem = InputMissingError(f"{folder}/x.tsv: no such file", hint=f"look into {folder}/y")
    person = Participant("01", (run,), (problem,), (scan,))
    skipped = (
        Skipped(folder / "sub-01_space-T1w_bold.nii.gz", "in space T1w"),
        Skipped(prep.root / "sub-011" / "func" / "sub-011_bold.nii.gz", "of someone else"),
    )
    return Plan(tmp_path / "bids", (prep,), (person,), skipped)


def outcomes_of(plan, run="done", scan="failed"):
    (person,) = plan.participants
    return [
        Outcome("01", "n/a", "failed", str(person.problems[0]), person.problems[0].hint, 66),
        Outcome("01", person.bold_runs[0].label, run),
        Outcome("01", person.dwi_scans[0].label, scan, f"{plan.bids_dir}/sub-01/dwi/a.nii.gz: bad"),
    ]


def test_everything_is_on_record_by_names_of_datasets(plan, tmp_path):
    record = record_of(plan, plan.participants[0], outcomes_of(plan), "call", tmp_path / "out")
    write_record(tmp_path / "out", record)
    text = record_path(tmp_path / "out", "01").read_text()
    assert str(tmp_path) not in text
    back = read_record(tmp_path / "out", "01")
    problem, scan, run = back.series  # by label
    assert problem.reason == "fmriprep:sub-01/func/x.tsv: no such file"
    assert problem.hint == "look into fmriprep:sub-01/func/y"
    assert (run.kind, run.status) == ("bold", "done")
    assert run.files == {
        "series": "fmriprep:sub-01/func/bold.dtseries.nii",
        "confounds": "fmriprep:sub-01/func/confounds.tsv",
    }
    assert (scan.kind, scan.status) == ("dwi", "failed")
    assert scan.reason.endswith(":sub-01/dwi/a.nii.gz: bad") and len(scan.route) == 4
    assert back.skipped == (("fmriprep:sub-01/func/sub-01_space-T1w_bold.nii.gz", "in space T1w"),)
    assert recorded_participants(tmp_path / "out") == ["01"]


DWI = Series("sub-01_dwi", "dwi", "done", files={"series": "raw:a.nii.gz"})
BOLD = Series("sub-01_a", "bold", "done", files={"series": "prep:b.nii.gz"})
PROBLEM = Series("n/a", "", "failed", "has no bvec")


def test_a_call_for_a_part_leaves_the_others_on_record(tmp_path):
    skipped = (("prep:b.nii.gz", "not selected"), ("prep:c.nii.gz", "in space T1w"))
    write_record(tmp_path, ParticipantRecord("01", series=(DWI, PROBLEM), skipped=skipped))
    also = (("raw:a.nii.gz", "not selected"),)
    write_record(tmp_path, ParticipantRecord("01", series=(BOLD,), skipped=also))
    found = read_record(tmp_path, "01")
    assert found.series == (PROBLEM, BOLD, DWI)
    assert found.skipped == (("prep:c.nii.gz", "in space T1w"),)  # the others were processed
    write_record(tmp_path, ParticipantRecord("01", series=(replace(DWI, status="failed"),)))
    assert [one.status for one in read_record(tmp_path, "01").series] == [
        "failed",
        "done",
        "failed",
    ]


def test_a_call_for_everything_drops_what_is_gone(tmp_path):
    write_record(tmp_path, ParticipantRecord("01", series=(DWI, PROBLEM)))
    write_record(tmp_path, ParticipantRecord("01", series=(BOLD,)), is_whole=True)
    assert read_record(tmp_path, "01").series == (BOLD,)


def test_what_says_the_same_is_left_as_it_is(tmp_path):
    path = write_record(tmp_path, ParticipantRecord("01", call="a", series=(DWI,)))
    before = path.stat().st_mtime_ns
    write_record(tmp_path, ParticipantRecord("01", call="b", series=(DWI,)))
    assert path.stat().st_mtime_ns == before


def _add(job):
    folder, number = job
    series = Series(f"sub-01_run-{number}", "bold", "done")
    for _ in range(5):
        write_record(folder, ParticipantRecord("01", call=str(number), series=(series,)))


def test_jobs_at_once_lose_nothing_of_each_other(tmp_path):
    with get_context("spawn").Pool(4) as pool:
        pool.map(_add, [(tmp_path, number) for number in range(12)], chunksize=1)
    assert len(read_record(tmp_path, "01").series) == 12
    assert not list(record_path(tmp_path, "01").parent.glob(".*.part"))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"series": [{"label": 1}]}', "null"])
def test_a_damaged_record_is_as_none(tmp_path, text):
    path = record_path(tmp_path, "01")
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert read_record(tmp_path, "01").series == ()
    write_record(tmp_path, ParticipantRecord("01", series=(Series("a", "bold", "done"),)))
    assert json.loads(path.read_text())["series"][0]["label"] == "a"


def test_there_may_be_no_record(tmp_path):
    assert read_record(tmp_path, "01").series == ()
    assert recorded_participants(tmp_path) == []

"""Exit codes, the summary table, and what is printed."""

import errno
import io
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from bsym_bids.bold.nuisance import load_strategy
from bsym_bids.config import RunConfig
from bsym_bids.errors import OutputIOError
from bsym_bids.inputs import BoldRun, Derivatives, Participant, Plan, Skipped
from bsym_bids.jobs import RunJob, Settings, jobs_of
from bsym_bids.model.weights import resolve_release
from bsym_bids.outputs.names import products
from bsym_bids.summary import Outcome, exit_code, print_plan, print_summary, write_summary

DONE = Outcome("01", "sub-01_task-rest", "done")
BROKEN = Outcome("02", "sub-02_task-rest", "failed", "sub-02.nii.gz: broken", "copy it again", 65)


def failed(participant, code, run="run"):
    return Outcome(participant, run, "failed", "reason", "hint", code)


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [
        ([], 0),
        ([DONE], 0),
        ([DONE, Outcome("02", "run", "unchanged")], 0),
        ([DONE, BROKEN], 1),
        ([Outcome("01", "run", "unchanged"), BROKEN], 1),
        ([BROKEN], 65),
        ([failed("01", 66)], 66),
        ([failed("01", 73), failed("02", 73)], 73),
        ([failed("01", 74), failed("02", 74), failed("02", 74, "second")], 74),
        ([failed("01", 65), failed("02", 66)], 1),
        ([failed("01", 65), failed("01", 66, "second")], 1),
        ([failed("01", 1)], 1),
        # no participant is complete, though one run is
        ([DONE, failed("01", 65, "second")], 65),
        ([BROKEN, Outcome("03", "run", "not run", "stopped before", "", 1)], 1),
    ],
)
def test_exit_code_of_every_mixture(outcomes, code):
    assert exit_code(outcomes) == code
    assert exit_code(outcomes[::-1]) == code


def test_table_has_one_row_per_run_and_no_stray_tabs(tmp_path):
    messy = replace(BROKEN, reason="affine:\n[[1\t0]\n [0 1]]", hint="")
    known = replace(DONE, model_domain="in domain")
    write_summary([known, messy], tmp_path / "logs" / "summary.tsv")
    table = pd.read_csv(
        tmp_path / "logs" / "summary.tsv", sep="\t", dtype=str, keep_default_na=False
    )
    columns = ["participant", "run", "status", "reason", "hint", "model_domain"]
    assert list(table.columns) == columns
    assert table.to_numpy().tolist() == [
        ["01", "sub-01_task-rest", "done", "n/a", "n/a", "in domain"],
        ["02", "sub-02_task-rest", "failed", "affine: [[1 0] [0 1]]", "n/a", "n/a"],
    ]


def test_table_of_nobody_has_its_header(tmp_path):
    write_summary([], tmp_path / "summary.tsv")
    header = "participant\trun\tstatus\treason\thint\tmodel_domain\n"
    assert (tmp_path / "summary.tsv").read_text() == header


def test_table_on_a_full_disk_is_explained(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OutputIOError, match=r"summary\.tsv: No space left"):
        write_summary([DONE], tmp_path / "summary.tsv")


def printed(outcomes):
    stream = io.StringIO()
    print_summary(outcomes, Path("OUT"), stream)
    return stream.getvalue().splitlines()


def test_summary_names_who_failed_and_why():
    unchanged = Outcome("03", "sub-03_task-rest", "unchanged")
    stopped = Outcome("04", "sub-04_task-rest", "not run", "stopped before", "", 1)
    nobody = Outcome("05", "n/a", "failed", "sub-05: no derivatives", "", 66)
    assert printed([DONE, BROKEN, unchanged, stopped, nobody]) == [
        "5 participant(s), 5 run(s): 1 done, 1 unchanged, 2 failed, 1 not run",
        "  sub-02_task-rest: failed: sub-02.nii.gz: broken",
        "    hint: copy it again",
        "  sub-04_task-rest: not run: stopped before",
        "  sub-05: failed: sub-05: no derivatives",
        "outputs: OUT",
    ]


def test_summary_of_success_is_two_lines():
    second = replace(DONE, run="sub-01_task-rest_run-2")
    assert printed([DONE, second]) == ["1 participant(s), 2 run(s): 2 done", "outputs: OUT"]


def test_summary_says_whether_the_model_knows_the_data():
    verdicts = ["doubtful", "in domain", "in domain", "not trained", ""]
    outcomes = [replace(DONE, model_domain=verdict) for verdict in verdicts]
    assert printed([*outcomes, BROKEN])[-2] == (
        "does the model know these data? 2 in domain, 1 doubtful, 1 not trained "
        "(ModelDomain in the sidecars)"
    )


@pytest.fixture
def plan(tmp_path):
    derivatives = Derivatives("fmriprep", tmp_path)
    run = BoldRun(
        {"sub": "01", "task": "rest"}, "fsLR", tmp_path / "a.dtseries.nii", derivatives, None, "91k"
    )
    people = (Participant("01", (run,)), Participant("02", (), ("sub-02: only in T1w",)))
    skipped = (Skipped(tmp_path / "b.nii.gz", "in space T1w, for which there is no atlas"),)
    return Plan(tmp_path, (derivatives,), people, skipped)


def plan_text(plan, jobs):
    stream = io.StringIO()
    print_plan(plan, jobs, stream)
    return stream.getvalue()


def test_plan_tells_inputs_outputs_problems_and_what_is_skipped(plan, tmp_path):
    config = RunConfig(tmp_path, tmp_path / "OUT", "participant")
    settings = Settings.of(config, load_strategy("none"), resolve_release("untrained"))
    jobs = jobs_of(plan, config, settings)
    text = plan_text(plan, jobs)
    assert f"derivatives fmriprep: {tmp_path}\n" in text
    assert f"bold      {tmp_path / 'a.dtseries.nii'}\n" in text
    assert "mask      none\n" in text and "confounds none\n" in text
    sure = [product for product in products().values() if not product.optional]
    assert text.count("    write     ") == len(sure)
    assert "problem: sub-02: only in T1w\n" in text
    assert f"skipped {tmp_path / 'b.nii.gz'}: in space T1w, for which there is no atlas\n" in text
    assert text.endswith("2 participant(s), 1 run(s) to process\n")


def test_plan_tells_what_is_kept(plan, tmp_path, monkeypatch):
    config = RunConfig(tmp_path, tmp_path / "OUT", "participant")
    settings = Settings.of(config, load_strategy("none"), resolve_release("untrained"))
    monkeypatch.setattr(RunJob, "is_done", lambda job, group: group == "timeseries")
    text = plan_text(plan, jobs_of(plan, config, settings))
    kept = [line for line in text.splitlines() if line.startswith("    keep ")]
    of_the_group = [one for one in products().values() if one.group == "timeseries"]
    assert len(kept) == sum(not one.optional for one in of_the_group)
    assert any("_timeseries.tsv" in line for line in kept)


def test_plan_without_a_model_tells_the_inputs(plan):
    text = plan_text(plan, None)
    assert "a.dtseries.nii" in text and "write" not in text

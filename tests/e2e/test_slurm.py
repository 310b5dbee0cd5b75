"""SLURM for real, on this machine: array jobs of a script of ours, and Nipype's plugin."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pandas as pd
import pytest
from conftest import participant_level, run_command

from tests.bids_validation import validate
from tests.dataset_checks import assert_sources_resolve, assert_strictly_valid
from tests.slurm_cluster import SlurmCluster

pytestmark = pytest.mark.slurm

#: As many at once as the cluster of the tests has cores.
PEOPLE = [f"{number:02d}" for number in range(1, 21)]
QUICK = ("--window-step", "200", "--nuisance", "none", "--modalities", "bold")


@pytest.fixture(scope="module")
def cluster():
    folder = Path(tempfile.mkdtemp(prefix="slurm", dir="/tmp"))  # a short path, for the sockets
    try:
        with SlurmCluster(folder, cores=len(PEOPLE)) as running:
            yield running
    finally:
        shutil.rmtree(folder)


def make_cohort(dataset: Path, folder: Path, people: list[str]) -> Path:
    """Make a dataset in which all have the data of one participant, under their own names."""
    source = dataset / "derivatives" / "fmriprep"
    target = folder / "derivatives" / "fmriprep"
    target.mkdir(parents=True)
    shutil.copy(dataset / "dataset_description.json", folder)
    shutil.copy(source / "dataset_description.json", target)
    for path in source.glob("sub-03/**/*"):
        for label in people if path.is_file() else ():
            renamed = str(path.relative_to(source)).replace("sub-03", f"sub-{label}")
            (target / renamed).parent.mkdir(parents=True, exist_ok=True)
            os.link(path, target / renamed)
    table = pd.DataFrame({"participant_id": [f"sub-{label}" for label in people]})
    table.to_csv(folder / "participants.tsv", sep="\t", index=False)
    return folder


@pytest.fixture(scope="module")
def from_array(cluster, dataset, small_model, tmp_path_factory):
    """The outputs of an array job: a task for each of twenty, and one whose series is broken.

    The first task is put back into the queue while it is at work, as where jobs are preempted.
    """
    folder = tmp_path_factory.mktemp("array of jobs")  # a space, for the script to get right
    bids = make_cohort(dataset, folder / "bids", [*PEOPLE, "broken"])
    (series,) = bids.glob("derivatives/fmriprep/sub-broken/**/*_bold.dtseries.nii")
    content = series.read_bytes()
    series.unlink()  # a link: the others' must stay whole
    series.write_bytes(content[: len(content) // 2])
    script, out = folder / "jobs.sh", folder / "out"
    written = participant_level(
        *(bids, out, *small_model, *QUICK, "--nprocs", "1", "--mem-gb", "2"),
        *("--write-slurm", script, "--slurm-throttle", len(PEOPLE)),
    )
    assert written.code == 0, written.err
    assert not out.exists()
    text = script.read_text()
    assert text.count("GROUP_OPTIONS=(") == 1  # the place where users say what to do
    script.write_text(text.replace("GROUP_OPTIONS=(", "GROUP_OPTIONS=(--reports-only "))
    done = subprocess.run(
        ["bash", script.name, "--partition=main"],
        cwd=folder,
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    array = re.search(r"bsym-bold: job (\d+)", done.stdout)[1]
    cluster.wait_for_start(f"{array}_0", out / "work" / "bsym" / f"sub_{PEOPLE[0]}")
    cluster.call("scontrol", "requeue", f"{array}_0")
    cluster.wait_for_jobs(900)
    return bids, out, cluster.completed()


def test_every_task_ends_as_its_participant(from_array):
    _, out, completed = from_array
    said = "\n".join(path.read_text() for path in sorted((out / "logs/slurm").glob("*.txt")))
    states = {
        (job["Name"], job.get("ArrayTaskId")): (job["JobState"], job["ExitCode"])
        for job in completed
    }
    good = {("bsym-bold", str(task)): ("COMPLETED", "0:0") for task in range(len(PEOPLE))}
    bad = {("bsym-bold", str(len(PEOPLE))): ("FAILED", "65:0")}
    assert states.pop(("bsym-group", None))[0] == "COMPLETED", said
    assert states == good | bad, said


def test_a_task_that_was_put_back_into_the_queue_goes_on(from_array):
    _, out, _ = from_array
    (log,) = (out / "logs" / "slurm").glob("bsym-bold_*_0.txt")
    said = log.read_text()
    assert "DUE TO JOB REQUEUE" in said
    assert "1 done" in said.split("DUE TO JOB REQUEUE")[1]


def test_nothing_is_lost_and_nothing_is_mixed(from_array):
    _, out, _ = from_array

    def outputs(label: str) -> dict[str, object]:
        """The files of a participant, as they would be called and say of everyone."""
        found: dict[str, object] = {}
        for path in (out / f"sub-{label}").rglob("*"):
            name = str(path.relative_to(out)).replace(f"sub-{label}", "sub-XX")
            if path.suffix == ".json":
                text = path.read_text().replace(f"sub-{label}", "sub-XX")
                sidecar = json.loads(text)
                found[name] = {k: v for k, v in sidecar.items() if k != "Fingerprint"}
            elif path.is_file():
                found[name] = path.read_bytes()
        return found

    first = outputs(PEOPLE[0])
    assert len(first) > 20
    for label in PEOPLE[1:]:
        assert outputs(label) == first, label
    assert not [path for path in out.rglob("*") if path.name.endswith(".part")]


def test_one_valid_dataset_comes_of_it(from_array, tmp_path):
    _, out, _ = from_array
    assert [issue for issue in validate(out) if issue.severity == "error"] == []
    assert_strictly_valid(out, tmp_path)
    assert_sources_resolve(out)


def test_the_summary_is_complete(from_array):
    _, out, _ = from_array
    summaries = [pd.read_csv(path, sep="\t", dtype=str) for path in out.glob("logs/*_summary.tsv")]
    rows = pd.concat(summaries)
    of_runs = rows[rows["run"].str.contains("task-")]
    assert sorted(of_runs[of_runs["status"] == "done"]["participant"]) == PEOPLE
    assert list(of_runs[of_runs["status"] == "failed"]["participant"]) == ["broken"]
    everyone = pd.read_csv(out / "group_participants.tsv", sep="\t")
    assert set(everyone["participant_id"]) == {f"sub-{label}" for label in [*PEOPLE, "broken"]}


def test_the_same_script_again_has_nothing_left_to_do(from_array, cluster, small_model):
    bids, out, _ = from_array
    script = out.parent / "again.sh"
    written = participant_level(bids, out, *small_model, *QUICK, "--write-slurm", script)
    assert "1 of 21 participant(s)" in written.out
    assert "bold=(broken)" in script.read_text()


def test_each_step_can_be_a_job_of_its_own(cluster, dataset, small_model, tmp_path):
    bids = make_cohort(dataset, tmp_path / "bids", PEOPLE[:2])
    plugin = tmp_path / "slurm.yml"
    plugin.write_text("plugin: SLURM\nplugin_args: {sbatch_args: '--mem=1G'}\n")
    before = len(cluster.completed())
    result = run_command(
        *(bids, tmp_path / "out", "participant", *small_model, *QUICK),
        *("--skip-reports", "--use-plugin", plugin),
        env=cluster.environment,
    )
    assert result.code == 0, result.err
    assert "2 done" in result.err
    steps = [job["JobState"] for job in cluster.completed()[before:]]
    assert len(steps) > 4 and set(steps) == {"COMPLETED"}

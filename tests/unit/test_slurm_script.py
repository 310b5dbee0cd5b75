"""The script for SLURM, short of submitting it."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from bsym_bids.cli import parse_config
from bsym_bids.config import RunConfig
from bsym_bids.errors import UsageError
from bsym_bids.slurm import ParticipantWork, arguments_of, bsym_command, submission_script

CONFIG = RunConfig(Path("/data in"), Path("/out"), "participant")
#: Stand for sbatch and scancel: keep what they were called with; a number, as with --parsable.
SBATCH = """#!/bin/bash
echo "$@" >> {log}
[[ "$*" = *--job-name=bsym-$REFUSED* ]] && exit 1
[[ "$*" = *--test-only* ]] || grep -c . {log}
"""
SCANCEL = """#!/bin/bash
echo "cancelled $@" >> {log}
"""


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--participant-label", "01", "02", "--session-label", "a"],
        ["--derivatives", "a b=/x/y z", "c=/d", "--space", "fsLR", "MNI152NLin6Asym"],
        ["--high-pass", "0", "--low-pass", "0.15", "--min-coverage", "0.3", "-vv"],
        ["--modalities", "dwi", "--streamlines", "1000", "--save-tractogram", "trx"],
        ["--skip-bids-validation", "--clean-workdir", "-w", "/tmp/it's", "--seed", "7"],
    ],
)
def test_options_give_the_settings_they_were_made_of(words):
    config = parse_config(["/data", "/out", "participant", *words])
    again = parse_config(["/data", "/out", "participant", *arguments_of(config)])
    assert again == config


def call_script(
    tmp_path: Path, script: str, *options: str, refused: str = "none"
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run a script with commands in place of SLURM's; return its end, and how they were called."""
    log, folder, file = tmp_path / "log", tmp_path / "bin", tmp_path / "the jobs.sh"
    folder.mkdir(exist_ok=True)
    for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        (folder / name).write_text(text.format(log=log))
        (folder / name).chmod(0o755)
    file.write_text(script, errors="surrogateescape")
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "REFUSED": refused}
    call = ["bash", str(file), *options]
    done = subprocess.run(call, env=environment, capture_output=True, text=True, errors="replace")
    return done, log.read_text(errors="replace").splitlines()


def submit(tmp_path: Path, script: str, *options: str) -> list[str]:
    """Return how sbatch was called by a script."""
    done, calls = call_script(tmp_path, script, *options)
    assert done.returncode == 0, done.stderr
    return calls


def test_those_with_scans_have_an_array_of_their_own(tmp_path):
    config = replace(CONFIG, output_dir=tmp_path / "out", slurm_throttle=3)
    work = [ParticipantWork("01", 2, 0), ParticipantWork("02", 0, 1), ParticipantWork("03", 1, 0)]
    bold, dwi, group = submit(tmp_path, submission_script(config, work), "--account=me")
    assert "--array=0-1%3" in bold and "participants bold 1" in bold
    assert "--array=0-0%3" in dwi and "participants dwi 1" in dwi
    assert "--dependency=afterany:1:2" in group
    assert all("--account=me" in call for call in (bold, dwi, group))
    minutes = [int(call.split("--time=")[1].split()[0]) for call in (bold, dwi)]
    assert minutes[0] < minutes[1]


def test_nothing_stays_queued_where_not_all_is_taken(tmp_path):
    config = replace(CONFIG, output_dir=tmp_path / "out")
    script = submission_script(config, [ParticipantWork("01", 2, 0), ParticipantWork("02", 0, 1)])
    done, calls = call_script(tmp_path, script, refused="group")
    assert done.returncode == 1 and "cancelling 1 2" in done.stderr
    assert [call for call in calls if call.startswith("cancelled")] == ["cancelled 1 2"]


def test_a_trial_submits_nothing_that_waits(tmp_path):
    config = replace(CONFIG, output_dir=tmp_path / "out")
    script = submission_script(config, [ParticipantWork("01", 2, 0)])
    assert not any("--dependency" in call for call in submit(tmp_path, script, "--test-only"))


def test_time_is_that_of_the_task_with_most_to_do(tmp_path):
    config = replace(CONFIG, output_dir=tmp_path / "out")
    one, three = ParticipantWork("1", 1, 0), ParticipantWork("3", 3, 0)

    def minutes(work: list[ParticipantWork]) -> int:
        (tmp_path / "log").unlink(missing_ok=True)
        bold, _ = submit(tmp_path, submission_script(config, work))
        return int(bold.split("--time=")[1].split()[0])

    single, longer = minutes([one]), minutes([one, three])
    assert single < longer
    assert minutes([one] * 1500) == 2 * single
    assert minutes([one] * 1499 + [three]) == single + longer


def test_without_anyone_there_is_the_group_level(tmp_path):
    config = replace(CONFIG, output_dir=tmp_path / "out")
    (group,) = submit(tmp_path, submission_script(config, []))
    assert "--dependency" not in group


def test_what_is_asked_for_is_what_jobs_get(tmp_path):
    config = replace(CONFIG, output_dir=tmp_path / "out", nprocs=3, mem_gb=5.5)
    bold, group = submit(tmp_path, submission_script(config, [ParticipantWork("01", 1, 0)]))
    for call in (bold, group):
        assert "--cpus-per-task=3" in call and "--mem=6G" in call


@pytest.mark.parametrize(("people", "tasks", "per_task"), [(1000, 1000, 1), (2500, 834, 3)])
def test_arrays_stay_within_what_clusters_take(tmp_path, people, tasks, per_task):
    config = replace(CONFIG, output_dir=tmp_path / "out")
    work = [ParticipantWork(f"{number:04}", 1, 0) for number in range(people)]
    script = submission_script(config, work)
    bold, _ = submit(tmp_path, script)
    assert f"--array=0-{tasks - 1}%50" in bold
    processed = []
    for task in (0, 1, tasks - 1):
        words = run_task(tmp_path, script, "participants", "bold", str(per_task), "3.6", task=task)
        first = words.index("--participant-label") + 1
        labels = words[first : words.index("--nprocs")]
        assert labels == [one.label for one in work][task * per_task : (task + 1) * per_task]
        processed += labels
    assert processed[-1] == work[-1].label


def run_task(tmp_path: Path, script: str, *arguments: str, task: int = 0) -> list[str]:
    """Return the words that a task of the script starts bsym-bids with."""
    program = tmp_path / "show"
    program.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    lines = [
        f"BSYM=('{program}')" if line.startswith("BSYM=") else line for line in script.splitlines()
    ]
    file = tmp_path / "task.sh"
    file.write_text("\n".join(lines))
    environment = os.environ | {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_CPUS_PER_TASK": "2"}
    call = ["bash", str(file), *arguments]
    done = subprocess.run(call, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_a_task_has_the_settings_of_the_call(tmp_path):
    config = replace(
        CONFIG,
        bids_dir=Path("/data in/it's $HOME"),
        model="small",
        model_dir=Path("/models/a b"),
        participant_label=("01", "02"),
        dry_run=False,
        write_slurm=tmp_path / "x.sh",
    )
    script = submission_script(config, [ParticipantWork("01", 1, 0), ParticipantWork("02", 1, 0)])
    words = run_task(tmp_path, script, "participants", "bold", "1", "3.6", task=1)
    expected = replace(config, participant_label=("02",), nprocs=2, mem_gb=3.6, write_slurm=None)
    assert parse_config(words) == expected
    group = parse_config(run_task(tmp_path, script, "group", "10.8"))
    assert group.analysis_level == "group"
    assert (group.model, group.model_dir, group.mem_gb) == ("small", config.model_dir, 10.8)


def test_names_are_what_they_are(tmp_path):
    out = tmp_path / "@group@ 100%j caf\udce9"
    config = replace(CONFIG, output_dir=out)
    bold, group = submit(tmp_path, submission_script(config, [ParticipantWork("01", 1, 0)]))
    assert f"--output={tmp_path}/@group@ 100%%j" in bold
    assert (out / "logs" / "slurm").is_dir()
    assert group.startswith("--parsable --job-name=bsym-group")


def test_no_task_empties_the_work_folder_that_others_share():
    config = replace(CONFIG, clean_workdir=True)
    assert "--clean-workdir" not in submission_script(config, [ParticipantWork("01", 1, 0)])


def test_the_group_level_takes_the_same_outputs(tmp_path):
    given = ["--session-label", "a", "--modalities", "bold", "--window-step", "50"]
    given += ["--model", "m", "--seed", "3"]
    config = parse_config(["/data", str(tmp_path), "participant", *given])
    script = submission_script(config, [ParticipantWork("01", 1, 0)])
    group = parse_config(run_task(tmp_path, script, "group", "10.8"))
    expected = replace(config, analysis_level="group", nprocs=2, mem_gb=10.8)
    assert group == expected


def test_jobs_find_models_where_this_call_does(monkeypatch):
    monkeypatch.setenv("BSYM_MODEL_HOME", "/models of us")
    monkeypatch.setenv("SECRET", "x")
    script = submission_script(CONFIG, [])
    assert "export BSYM_MODEL_HOME='/models of us'" in script
    assert "SECRET" not in script
    monkeypatch.setenv("APPTAINER_CONTAINER", "/images/bsym.sif")  # which has its own
    assert "BSYM_MODEL_HOME" not in submission_script(CONFIG, [])


@pytest.mark.parametrize("binds", ["/lustre/me/out:/out", "/data,out", "/a:/a:ro,/b:/c:ro"])
def test_folders_have_the_same_names_in_and_outside_of_a_container(monkeypatch, binds):
    monkeypatch.setenv("APPTAINER_CONTAINER", "/images/bsym.sif")
    monkeypatch.setenv("APPTAINER_BIND", binds)
    with pytest.raises(UsageError, match="outside of this container") as raised:
        submission_script(CONFIG, [])
    assert "bind folders under their own names" in raised.value.hint


@pytest.mark.parametrize(
    "words", [["group"], *(["participant", option] for option in ("--dry-run", "--reports-only"))]
)
def test_a_script_is_not_written_beside_something_else(words):
    level, *options = words
    with pytest.raises(UsageError, match="--write-slurm"):
        parse_config(["/data", "/out", level, *options, "--write-slurm", "x.sh"])


def test_a_container_is_started_as_a_container(monkeypatch):
    monkeypatch.setenv("APPTAINER_CONTAINER", "/images/bsym.sif")
    monkeypatch.setenv("APPTAINER_BIND", "/data:/data:ro,/out")
    assert bsym_command() == [
        *("apptainer", "run", "--cleanenv", "--bind", "/data:/data:ro,/out", "/images/bsym.sif")
    ]

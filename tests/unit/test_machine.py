"""What of a machine a process may use: containers, jobs of schedulers, ulimit."""

import os
import resource
import subprocess
import sys
import tempfile

import pytest

from bsym_bids import machine
from bsym_bids.workflows import invocation


@pytest.fixture
def limits(tmp_path, monkeypatch):
    """A machine of 10 GB without limits, and what sets those of its control groups."""
    monkeypatch.setattr(machine, "_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(machine, "_MEMBERSHIP", tmp_path / "membership")
    total = type("memory", (), {"total": 10 * 10**9})
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: total)
    monkeypatch.setattr(machine.resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)

    def put(membership: str, **files: str) -> None:
        (tmp_path / "membership").write_text(membership)
        for name, text in files.items():
            path = tmp_path / "groups" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")

    return put


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("", {}, 10),
        ("0::/\n", {"memory.max": "4000000000"}, 4),
        ("0::/\n", {"memory.max": "max"}, 10),
        # a job of SLURM: its step has no limit of its own, the job around it has
        (
            "0::/slurm/job_1/step_batch\n",
            {"slurm/job_1/memory.max": "3000000000", "slurm/job_1/step_batch/memory.max": "max"},
            3,
        ),
        ("0::/slurm/job_1\n", {"slurm/job_2/memory.max": "3000000000"}, 10),
        (
            "4:memory:/uid_1/job_2\n3:cpuset:/other\n",
            {"memory/uid_1/job_2/memory.limit_in_bytes": "2000000000"},
            2,
        ),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712"}, 10),
    ],
)
def test_limits_of_control_groups_count(limits, membership, files, expected):
    limits(membership, **files)
    assert machine.memory_bytes() == expected * 10**9


def test_names_of_control_groups_are_what_they_are(limits, tmp_path):
    limits("", **{"caf\udce9/memory.max": "4000000000"})
    (tmp_path / "membership").write_bytes(b"0::/caf\xe9\n")
    assert machine.memory_bytes() == 4 * 10**9


def test_without_control_groups_there_is_the_machine(limits):
    assert machine.memory_bytes() == 10 * 10**9


@pytest.mark.parametrize("chosen", [True, False])
def test_a_folder_for_temporary_files_that_was_chosen_stays(tmp_path, monkeypatch, chosen):
    # Jobs often start in it; without any, Python takes wherever it was started.
    monkeypatch.chdir(tmp_path)
    for name in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.delenv(name, raising=False)
    if chosen:
        monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    invocation._find_temporary_folder(tmp_path / "work")
    assert os.environ["TMPDIR"] == str(tmp_path if chosen else tmp_path / "work")


def test_ulimit_counts():
    code = "from bsym_bids.machine import memory_bytes; print(memory_bytes())"
    call = f"ulimit -v 1000000; exec {sys.executable} -c '{code}'"
    said = subprocess.run(["bash", "-c", call], capture_output=True, text=True, check=True)
    assert int(said.stdout) == 1000000 * 1024

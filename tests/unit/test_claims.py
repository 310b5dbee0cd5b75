"""Claims on runs, between processes."""

import errno
import fcntl
import signal
import subprocess
import sys

import pytest

from bsym_bids.errors import CannotCreateOutputError
from bsym_bids.outputs.claims import Claims

OTHER = """
import sys
from pathlib import Path
from bsym_bids.outputs.claims import Claims
claims = Claims([Path(folder) for folder in sys.argv[2:]])
print(claims.claim(sys.argv[1]), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folders(tmp_path):
    for name in ("logs", "work", "other"):
        (tmp_path / name).mkdir()
    return [tmp_path / "logs", tmp_path / "work"]


@pytest.fixture
def other():
    """Start a process that claims a run, says whether it got it, and keeps it."""
    started = []

    def start(run, folders):
        call = [sys.executable, "-c", OTHER, run, *map(str, folders)]
        process = subprocess.Popen(call, stdin=-1, stdout=-1, text=True)
        started.append(process)
        return process, process.stdout.readline().strip() == "True"

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_run_has_one_process_and_others_are_free(folders, other):
    with Claims(folders) as claims:
        assert claims.claim("sub_01_task_a")
        assert claims.claim("sub_01_task_a")
        assert not other("sub_01_task_a", folders)[1]
        assert other("sub_01_task_b", folders)[1]
        assert not claims.claim("sub_01_task_b")
        claims.release("sub_01_task_a")
        assert other("sub_01_task_a", folders)[1]


def test_sharing_one_of_the_folders_is_enough(folders, other, tmp_path):
    with Claims(folders) as claims:
        assert claims.claim("run")
        assert not other("run", [tmp_path / "other", folders[1]])[1]
        # ... and what the refused process had locked in the other folder is free again
        assert other("run", [tmp_path / "other"])[1]


def test_claims_go_with_a_killed_process(folders, other):
    process, got = other("run", folders)
    with Claims(folders) as claims:
        assert got and not claims.claim("run")
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert claims.claim("run")


def test_file_systems_without_locks_grant_everything(folders, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with Claims(folders) as claims:
        assert claims.claim("run")


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(CannotCreateOutputError, match="absent"):
        Claims([tmp_path / "absent"])

"""Claims on runs, between processes."""

import errno
import fcntl
import signal
import subprocess
import sys

import pytest

from bsym_bids.errors import CannotCreateOutputError
from bsym_bids.outputs import claims as claims_module
from bsym_bids.outputs.claims import KINDS, Claims, same_settings

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


def test_file_systems_without_locks_grant_everything_and_are_warned_of(folders, monkeypatch):
    said: list[str] = []

    def warn(text, *values):
        said.append(text % values)

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    monkeypatch.setattr(claims_module.LOGGER, "warning", warn)
    with Claims(folders) as claims, same_settings(folders[0], {KINDS[0]: "a"}):
        assert claims.claim("run") and claims.claim("another")
    for file in (folders[0] / ".runs.lock", folders[0] / ".settings.lock"):
        beginning = f"{file}: cannot be locked (No locks available)"
        assert sum(warning.startswith(beginning) for warning in said) == 1


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(CannotCreateOutputError, match="absent"):
        Claims([tmp_path / "absent"])


SETTLED = """
import sys
from pathlib import Path
from bsym_bids.errors import CannotCreateOutputError
from bsym_bids.outputs.claims import same_settings
kind, value = sys.argv[2:]
try:
    with same_settings(Path(sys.argv[1]), {kind: value or None}):
        print("held", flush=True)
        sys.stdin.read()
except CannotCreateOutputError as error:
    print(error, flush=True)
"""


def settled(folder, kind, value):
    """What a call with some settings says while this process holds others."""
    call = [sys.executable, "-c", SETTLED, str(folder), kind, value]
    return subprocess.run(call, input="", capture_output=True, text=True).stdout.strip()


def test_calls_with_other_settings_are_refused_while_one_works(tmp_path):
    bold, dwi, group = KINDS
    with same_settings(tmp_path, {bold: "a"}):
        assert settled(tmp_path, bold, "a") == "held"
        refused = settled(tmp_path, bold, "b")
        assert (
            refused
            == f"{tmp_path.parent}: another call is working on {bold} there, with other settings"
        )
        assert settled(tmp_path, dwi, "b") == "held"  # what is left alone may have other settings
        assert settled(tmp_path, group, "") == "held"
    assert settled(tmp_path, bold, "b") == "held"


def test_what_is_to_be_alone_is(tmp_path):
    group = KINDS[2]
    with same_settings(tmp_path, {group: None}):
        assert settled(tmp_path, group, "") == (
            f"{tmp_path.parent}: another call is working on {group} there"
        )
        assert settled(tmp_path, KINDS[0], "a") == "held"


def test_settings_are_let_go_by_a_process_that_is_killed_or_refused(tmp_path):
    call = [sys.executable, "-c", SETTLED, str(tmp_path), KINDS[0], "a"]
    other = subprocess.Popen(call, stdin=-1, stdout=-1, text=True)
    assert other.stdout.readline() == "held\n"
    for _ in range(2):
        refused = pytest.raises(CannotCreateOutputError, match="with other settings")
        with refused, same_settings(tmp_path, {KINDS[0]: "b"}):
            pass
    other.kill()
    other.communicate()
    with same_settings(tmp_path, {KINDS[0]: "b"}):
        pass


def test_an_error_within_is_not_laid_to_the_lock(tmp_path):
    with pytest.raises(OSError, match="of something else"), same_settings(tmp_path, {}):
        raise OSError("of something else")

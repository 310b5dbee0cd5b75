"""A diffusion scan that is killed again and again: it goes on, and gives what it would have given.

Each kill takes the command with all of its workers, once in a step before tracking, once between
batches of streamlines, and once about when the outputs are written.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from test_interrupted import PROGRAM

from bsym_bids.simulation.diffusion import make_phantom
from bsym_bids.simulation.diffusion_files import write_phantom

SUB = "03"
# Many batches of streamlines, and little time before them.
PRESET = """
base: fast
batch_size: 100
lmax: 4
sift2: false
mrtrix3: {response: fa}
dipy: {sphere: repulsion100}
"""
STREAMLINES = "3000"


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    """One participant with a coarse series as QSIPrep makes it, and a preset of small batches."""
    bids = tmp_path_factory.mktemp("killed") / "bids"
    phantom = make_phantom(
        0,
        voxel_mm=5.0,
        t1w_mm=3.0,
        n_bundles=4,
        shells=((0, 2), (1000, 16)),
        rotation=(0, 0, 0),
        motion=0,
        bias=0,
    )
    write_phantom(phantom, bids, SUB, derivatives="qsiprep")
    bids.with_name("small.yaml").write_text(PRESET)
    return bids


class Command:
    """The installed command, running beside the test with a process group of its own."""

    def __init__(self, out: Path, bids: Path, options: list[object]) -> None:
        self.out = out
        self.err = out.with_name(f"{out.name}.txt")
        call = [PROGRAM, bids, out, "participant", "--skip-reports", *map(str, options)]
        with self.err.open("w") as err:
            self.process = subprocess.Popen(call, stderr=err, start_new_session=True)

    def wait_until(self, seen: Callable[[], object]) -> None:
        deadline = time.monotonic() + 300
        while not seen():
            assert self.process.poll() is None, self.err.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def end(self) -> None:
        assert self.process.wait(300) == 0, self.err.read_text()

    def kill(self) -> None:
        """Kill it with all of its workers, and see that nothing is left."""
        os.killpg(self.process.pid, signal.SIGSTOP)  # it must not go on while they are listed
        family = psutil.Process(self.process.pid).children(recursive=True)
        assert family
        os.killpg(self.process.pid, signal.SIGKILL)
        assert self.process.wait() == -signal.SIGKILL
        _, alive = psutil.wait_procs(family, timeout=10)
        assert not alive

    @property
    def executed(self) -> set[str]:
        """The steps that were computed, not taken from an earlier run, by the newest log."""
        log = max(self.out.glob("logs/*.log"), key=lambda path: path.stat().st_mtime_ns)
        lines = [line for line in log.read_text().splitlines() if "[Node] Executing " in line]
        return {line.split('"')[1] for line in lines}


@pytest.fixture
def start():
    """Return what starts a command that doesn't outlive the test."""
    commands: list[Command] = []

    def start(*arguments) -> Command:
        commands.append(Command(*arguments))
        return commands[-1]

    yield start
    for command in commands:
        if command.process.poll() is None:
            os.killpg(command.process.pid, signal.SIGKILL)
            command.process.wait()


def outputs(out: Path) -> dict[str, bytes]:
    """Return everything but logs and work files."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and path.relative_to(out).parts[0] not in ("logs", "work")
    }


@pytest.mark.parametrize("engine", ["dipy", pytest.param("mrtrix3", marks=pytest.mark.mrtrix3)])
def test_a_killed_scan_goes_on_and_gives_the_same(scans, small_model, tmp_path, start, engine):
    options = [*small_model, "--modalities", "dwi", "--engine", engine, "--nprocs", "2"]
    options += ["--preset", scans.with_name("small.yaml"), "--streamlines", STREAMLINES]
    options += ["--save-tractogram", "tck"]
    out = tmp_path / "out"
    whole = start(tmp_path / "whole", scans, options)  # beside the others, to save time

    def found(pattern: str) -> dict[Path, tuple[int, int]]:
        """Return the files of the scan's work that match, and what tells them from later ones."""
        seen = {}
        for path in out.glob(f"work/bsym/sub_{SUB}/*/{pattern}"):
            with suppress(FileNotFoundError):  # removed in the meantime
                seen[path] = (path.stat().st_ino, path.stat().st_mtime_ns)
        return seen

    # in the step after the series and the anatomy were prepared
    command = start(out, scans, options)
    command.wait_until(lambda: found("orient") and found("anatomy/result_*"))
    command.kill()
    assert "prepare" in command.executed and "track" not in command.executed
    results = found("prepare/result_*") | found("anatomy/result_*")
    assert len(results) == 2

    # between batches of streamlines
    batches = "batches/sampling/0*.npz"
    command = start(out, scans, options)
    command.wait_until(lambda: len(found(batches)) >= 3)
    command.kill()
    assert "track" in command.executed and not {"prepare", "anatomy"} & command.executed
    assert results == found("prepare/result_*") | found("anatomy/result_*")
    before = found(batches)
    assert 3 <= len(before) < int(STREAMLINES) // 100 and not list(out.glob("sub-*"))

    # about when the outputs are written
    command = start(out, scans, options)
    seen: dict[Path, tuple[int, int]] = {}

    def has_one_more() -> bool:
        seen.update(found(batches))
        return len(seen) > len(before)

    command.wait_until(has_one_more)
    assert before.items() < seen.items()  # none was tracked again
    command.wait_until(lambda: found("write_connectome"))
    command.kill()

    command = start(out, scans, options)
    command.end()
    assert "track" not in command.executed
    whole.end()
    assert "track" in whole.executed
    assert outputs(out) == outputs(whole.out)

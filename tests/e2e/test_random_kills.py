"""A machine that dies at any moment: killed at random, what comes in the end is as if undisturbed.

``BSYM_KILLS=30`` kills each command so many times instead of once; ``BSYM_KILLS_SEED`` chooses
other moments. What each kill met is printed (``-s`` shows it).
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest

from bsym_bids.demo.dataset import make_demo_dataset
from bsym_bids.simulation.cohort import simulate_recipe
from bsym_bids.simulation.cohort_files import Layout, write_cohort
from bsym_bids.simulation.diffusion import make_phantom
from bsym_bids.simulation.diffusion_files import write_phantom

KILLS = int(os.environ.get("BSYM_KILLS", "1"))
SEED = int(os.environ.get("BSYM_KILLS_SEED", "0"))
#: Logs, work files, and what a training goes on from, which has the seconds that it took.
_OF_THE_CALL = ("logs", "work", "checkpoint.pt")
_TIME = re.compile(rb"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?(\.\d+)?(Z|[+-]\d\d:?\d\d)?")
#: Of a prediction.
FEW = ("--repeats", "1", "--permutations", "19", "--bootstrap", "50", "--folds", "3")
#: Small batches of streamlines, and little time before them.
PRESET = """
base: fast
batch_size: 200
lmax: 4
mrtrix3: {response: fa}
dipy: {sphere: repulsion100}
"""


@dataclass
class Level:
    """A command, and where its outputs are.

    Attributes
    ----------
    call : list of str
        The command.
    out : Path
        Folder of its outputs.
    reset : callable
        Makes that as it was before the first call.
    """

    call: list[str]
    out: Path
    reset: Callable[[], None]

    def run_for(self, seconds: float | None) -> bool:
        """Run the command and kill it with all that it started; True when it came to its end."""
        log = self.out.with_name(f"{self.out.name}.txt")
        with log.open("w") as err:
            process = subprocess.Popen(self.call, stdout=err, stderr=err, start_new_session=True)
        try:
            code = process.wait(900 if seconds is None else seconds)
        except subprocess.TimeoutExpired:
            _kill(process)
            assert seconds is not None, f"no end: {log.read_text()}"
            return False
        assert code == 0, log.read_text()
        left = [path.relative_to(self.out) for path in self.out.rglob("*.part")]
        assert not [path for path in left if path.parts[0] != "work"]
        return True

    def outputs(self) -> dict[str, bytes]:
        """Return what is in the folder but logs and work files, without times."""
        return {
            str(path.relative_to(self.out)): _without_times(path)
            for path in sorted(self.out.rglob("*"))
            if path.is_file() and path.relative_to(self.out).parts[0] not in _OF_THE_CALL
        }


def _without_times(path: Path) -> bytes:
    """Return what a file holds without times of day, and a log without its last column, seconds."""
    content = path.read_bytes()
    if path.name == "log.tsv":
        return b"\n".join(line.rpartition(b"\t")[0] for line in content.splitlines())
    return _TIME.sub(b"TIME", content)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a command with everything below it, as when a machine loses its power."""
    os.killpg(process.pid, signal.SIGSTOP)  # it must not start anything while it is looked at
    command = psutil.Process(process.pid)
    family = [command, *command.children(recursive=True)]
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()
    psutil.wait_procs(family[1:], timeout=10)


def kill_at_random(level: Level, kills: int, seed: int) -> None:
    """Kill a command at random moments until it has been killed so often, and compare.

    Each kill is followed by the same command again, on what the killed one left; whenever one
    comes to its end, its outputs are compared with those of an undisturbed one, and it begins anew.
    """
    began = time.monotonic()
    level.run_for(None)
    duration = time.monotonic() - began
    expected = level.outputs()
    assert expected
    rng = np.random.default_rng(seed)
    level.reset()
    killed = 0
    while True:
        moment = rng.uniform(0.3, duration) if killed < kills else None
        if not level.run_for(moment):
            killed += 1
            print(f"kill {killed} after {moment:.1f} of {duration:.1f} s: {_met(level.out)}")
            continue
        found = level.outputs()
        assert found.keys() == expected.keys()
        assert [name for name in found if found[name] != expected[name]] == []
        if killed >= kills:
            return
        level.reset()


def _met(out: Path) -> str:
    """Return what was last on its way when the command was killed."""
    written = [path for path in out.rglob("*") if path.is_file()]
    if not written:
        return "nothing was written yet"
    last = max(written, key=lambda path: path.lstat().st_mtime_ns)
    return f"last wrote {last.relative_to(out)}"


@pytest.fixture(scope="module")
def person(tmp_path_factory, small_model) -> tuple[Path, tuple[str, ...]]:
    """One participant with a BOLD run and a diffusion scan, and options that make them quick."""
    bids = tmp_path_factory.mktemp("person") / "bids"
    make_demo_dataset(bids, participants=("01",), resolution_mm=5, n_volumes=200)
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
    write_phantom(phantom, bids, "02", derivatives="qsiprep")
    preset = bids.with_name("small.yaml")
    preset.write_text(PRESET)
    options = (*small_model, "--preset", preset, "--streamlines", 3000, "--window-step", 200)
    return bids, tuple(map(str, options))


@pytest.mark.parametrize("engine", ["dipy", pytest.param("mrtrix3", marks=pytest.mark.mrtrix3)])
def test_the_participant_level_survives(person, tmp_path, engine):
    bids, options = person
    out = tmp_path / "out"
    program = str(Path(sys.executable).with_name("bsym-bids"))
    call = [program, str(bids), str(out), "participant", *options, "--engine", engine]
    level = Level([*call, "--save-tractogram", "tck"], out, lambda: shutil.rmtree(out))
    kill_at_random(level, KILLS, SEED)


@pytest.mark.parametrize(
    "asked", [["--predict", "age", *FEW], ["--features", "fc"]], ids=["predictions", "maps"]
)
def test_the_group_level_survives(tmp_path, asked):
    simulated = simulate_recipe("both", 12, seed=3, share=0.5, proper=True)
    begin, out, bids = tmp_path / "begin", tmp_path / "out", tmp_path / "bids"
    write_cohort(simulated, bids, begin, Layout(decimals=3))

    def reset() -> None:
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(begin, out)

    reset()
    program = str(Path(sys.executable).with_name("bsym-bids"))
    call = [program, str(bids), str(out), "group", *asked]
    kill_at_random(Level(call, out, reset), KILLS, SEED)


def test_pretraining_survives(tmp_path, people):
    out = tmp_path / "out"
    program = str(Path(sys.executable).with_name("bsym-model"))
    steps = "--steps 12 --structural-steps 12 --gate-steps 6 --validate-every 4 --batch-size 2"
    call = [program, "pretrain", str(people), str(out), *steps.split()]
    call += ["--validation-share", "0.25", "--init", "bsym-sim-v1", "--name", "made-here"]
    kill_at_random(Level(call, out, lambda: shutil.rmtree(out)), KILLS, SEED)


@pytest.fixture(scope="module")
def people(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("simulated") / "people"
    program = Path(sys.executable).with_name("bsym-model")
    subprocess.run([program, "simulate", out, "--participants", "4", "--seed", "2"], check=True)
    return out

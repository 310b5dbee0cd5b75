"""A small dataset made once, and the installed command run on copies of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from small_network import write_release

from bsym_bids.demo.dataset import make_demo_dataset


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


def run_command(*arguments: object, **options: object) -> Result:
    """Run the installed ``bsym-bids`` as a user would."""
    program = Path(sys.executable).with_name("bsym-bids")
    environment = {**os.environ, **options.pop("env", {})}
    done = subprocess.run(
        [program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=600,
        env=environment,
        check=False,
        **options,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def participant_level(
    bids: Path, out: Path, *arguments: object, reports: bool = False, **options: object
) -> Result:
    """Run the participant level, without reports unless they are what a test is about."""
    arguments = ("--model", "bsym-sim-v1", *arguments, *([] if reports else ["--skip-reports"]))
    return run_command(bids, out, "participant", *arguments, **options)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Path:
    """One participant with a volume, one with CIFTI."""
    bids = tmp_path_factory.mktemp("made") / "bids"
    make_demo_dataset(bids, participants=("01", "03"), resolution_mm=5, n_volumes=210)
    return bids


@pytest.fixture
def bids(dataset, tmp_path) -> Path:
    """A copy that a test may break."""
    shutil.copytree(dataset, tmp_path / "bids")
    return tmp_path / "bids"


@pytest.fixture(scope="session")
def small_model(tmp_path_factory) -> tuple[object, ...]:
    """The arguments that use a release of one's own: a network small enough for quick tests."""
    folder = tmp_path_factory.mktemp("model")
    write_release(folder)
    return ("--model", "small", "--model-dir", folder)


@pytest.fixture(scope="session")
def finished(dataset, small_model, tmp_path_factory) -> tuple[Path, Result]:
    """The outputs of an undisturbed run, not to be changed."""
    out = tmp_path_factory.mktemp("finished") / "out"
    return out, participant_level(dataset, out, *small_model, reports=True)

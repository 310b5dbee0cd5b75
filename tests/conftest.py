"""What holds for every test: nothing reaches for the internet, no setting of the machine counts."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from tests.slurm_cluster import can_run_slurm

# As a test is collected, so that fixtures of every scope and the commands they start have it too.
os.environ["BSYM_OFFLINE"] = "1"
for name in ("BSYM_MODEL", "BSYM_MODEL_HOME", "BSYM_MODEL_MIRROR", "BSYM_TIMEOUT"):
    os.environ.pop(name, None)
for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
    os.environ.pop(name, None)
    os.environ.pop(name.upper(), None)
# Hundreds of commands are started: compiled each time, the package would take them a second more.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Return what gives a folder that is made once for all processes of a session.

    Processes that share the tests have fixtures of their own, and one temporary folder beside the
    other. Whichever needs something first makes it, the others wait for it; it is not to be
    changed.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    root = root / "made_once"
    root.mkdir(exist_ok=True)

    def made(name: str, make: Callable[[Path], object]) -> Path:
        folder, done = root / name, root / f"{name}.done"
        with FileLock(root / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of one that failed
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return made


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs programs that are not installed; `scripts/test.sh` installs them."""
    there = {
        "mrtrix3": ("MRtrix3 is not installed", shutil.which("tckgen") is not None),
        "slurm": ("SLURM is not installed, or this is not root", can_run_slurm()),
    }
    for item in items:
        for marker, (reason, runs) in there.items():
            if item.get_closest_marker(marker) and not runs:
                item.add_marker(pytest.mark.skip(reason=reason))

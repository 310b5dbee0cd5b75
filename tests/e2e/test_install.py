"""What the packaging promises: graphs inside the package, and commands that start at once."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# -S: without the site-packages of the environment that runs the tests, which has bsym-bids too.
SHOW = (
    "import site, sys; site.addsitedir(sys.argv[1]); "
    "import bsym_bids, bsym_bids.workflows; "
    "print(bsym_bids.__file__); print(bsym_bids.workflows.__file__)"
)


def install(source: Path, target: Path, *options: str) -> list[Path]:
    call = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", target]
    subprocess.run([*call, *options, source], check=True)
    done = subprocess.run(
        [sys.executable, "-S", "-c", SHOW, target],
        check=True,
        cwd=target,
        capture_output=True,
        text=True,
    )
    return [Path(line) for line in done.stdout.splitlines()]


def test_wheel_holds_the_graphs_and_the_data(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    # A copy: building in place would leave a build folder that later wheels pick up.
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "build", "*.egg-info"))
    package, workflows = install(source, target)
    assert package.is_relative_to(target)
    assert workflows == package.parent / "workflows" / "__init__.py"
    data = {p.relative_to(ROOT) for p in (ROOT / "bsym_bids/data").rglob("*") if p.is_file()}
    assert data and all((target / path).is_file() for path in data)


def test_editable_install_points_at_the_sources(tmp_path):
    package, workflows = install(ROOT, tmp_path, "--editable")
    assert package == ROOT / "bsym_bids" / "__init__.py"
    assert workflows == ROOT / "workflows" / "__init__.py"


@pytest.mark.parametrize("command", ["bsym-bids", "bsym-model", "bsym-demo"])
@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_imports_nothing_heavy(command, option):
    program = Path(sys.executable).with_name(command)
    done = subprocess.run(
        [sys.executable, "-X", "importtime", program, option],
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    heavy = {"numpy", "torch", "nipype", "bids", "pandas", "nibabel", "scipy", "requests"}
    assert not imported & heavy
    assert command in done.stdout

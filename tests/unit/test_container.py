"""What the container is built of, as far as that can be told without building it."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

from bsym_bids import __version__

ROOT = Path(__file__).parents[2]


def pins(name: str) -> dict[str, str]:
    """The versions that a file pins, by the normalised names of packages."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", (ROOT / name).read_text(), re.M)
    return {re.sub("[-_.]+", "-", package).lower(): version for package, version in found}


def test_what_is_locked_is_what_is_needed_in_the_versions_that_are_tested():
    locked, tested = pins("requirements.lock"), pins("constraints.txt")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in project["dependencies"]:
        need = Requirement(text)
        version = (locked | {"torch": tested["torch"]})[need.name.lower()]
        assert need.specifier.contains(version), f"{need}: run scripts/lock.sh"
    differ = {name for name in locked.keys() & tested.keys() if locked[name] != tested[name]}
    assert differ == set(), "run scripts/lock.sh"


def test_every_locked_package_has_hashes():
    text = (ROOT / "requirements.lock").read_text()
    for line in re.split(r"\n(?=\w)", text[re.search(r"^\w", text, re.M).start() :]):
        assert "--hash=sha256:" in line, line.split("\n")[0]


def test_what_is_locked_has_nothing_for_gpus():
    gpu = {
        name for name in pins("requirements.lock") if re.match("nvidia|cuda|triton|torch$", name)
    }
    assert gpu == set()


def test_the_image_is_made_of_the_whole_package():
    kept = set(re.findall(r"^!(\S+)", (ROOT / ".dockerignore").read_text(), re.M))
    assert kept >= {"bsym_bids", "workflows", "pyproject.toml", "README.md", "LICENSE"}
    assert all((ROOT / name).exists() for name in kept)


def test_the_image_has_the_version_of_the_program():
    assert f"ARG VERSION={__version__}\n" in (ROOT / "Dockerfile").read_text()

"""What holds for every test: nothing reaches for the internet, no setting of the machine counts."""

import os
import shutil

import pytest

# As a test is collected, so that fixtures of every scope and the commands they start have it too.
os.environ["BSYM_OFFLINE"] = "1"
for name in ("BSYM_MODEL", "BSYM_MODEL_HOME", "BSYM_MODEL_MIRROR", "BSYM_TIMEOUT"):
    os.environ.pop(name, None)
for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
    os.environ.pop(name, None)
    os.environ.pop(name.upper(), None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs MRtrix3 where it is not installed; `scripts/test.sh` installs it."""
    if shutil.which("tckgen"):
        return
    for item in items:
        if item.get_closest_marker("mrtrix3"):
            item.add_marker(pytest.mark.skip(reason="MRtrix3 is not installed"))

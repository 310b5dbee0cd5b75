"""The libraries that results depend on, with their versions."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version

#: What all results depend on.
OF_ALL = ("numpy", "scipy", "nibabel")
#: What those of diffusion scans depend on beside that, whatever the engine is.
OF_SCANS = ("dipy", "SimpleITK", "nitransforms")
#: What the model runs on.
OF_MODELS = ("torch",)


def library_versions(*names: str) -> dict[str, str]:
    """Return the versions of libraries by name."""
    return {name: _version(name) for name in names}


@cache  # every job asks, and the metadata are files
def _version(name: str) -> str:
    return version(name)

"""The BrainSymphony network: the network itself, named releases, embeddings, reconstruction.

Names are imported on first use, so that the command ``bsym-model`` starts without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bsym_bids.model.brainsymphony import BrainSymphony, BrainSymphonyOutput
    from bsym_bids.model.embed import FunctionalEmbedding, embed_windows
    from bsym_bids.model.fetch import fetch_release
    from bsym_bids.model.reconstruction import ReconstructionQuality, reconstruction_quality
    from bsym_bids.model.weights import Release, default_model_name, load_model, resolve_release

__all__ = [
    "BrainSymphony",
    "BrainSymphonyOutput",
    "FunctionalEmbedding",
    "ReconstructionQuality",
    "Release",
    "default_model_name",
    "embed_windows",
    "fetch_release",
    "load_model",
    "reconstruction_quality",
    "resolve_release",
]

_HOME = {
    "BrainSymphony": "brainsymphony",
    "BrainSymphonyOutput": "brainsymphony",
    "FunctionalEmbedding": "embed",
    "embed_windows": "embed",
    "fetch_release": "fetch",
    "ReconstructionQuality": "reconstruction",
    "reconstruction_quality": "reconstruction",
    "Release": "weights",
    "default_model_name": "weights",
    "load_model": "weights",
    "resolve_release": "weights",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)

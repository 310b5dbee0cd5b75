"""A network of the published shape with next to nothing in it: a tenth of the time."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from bsym_bids.model.weights import Release, random_state_dicts, resolve_release

FUNCTIONAL_SIZES = {
    "spatial": {"steps": 200, "width": 8, "layers": 1, "mlp_width": 8, "positions": 450},
    "temporal": {"rois": 450, "width": 8, "layers": 1, "mlp_width": 8, "positions": 200},
    "context": {"channels": 3, "hidden": (4, 4)},
    "perceiver": {
        "rois": 450,
        "steps": 200,
        "width": 8,
        "layers": 1,
        "mlp_width": 8,
        "projection": 4,
        "head_width": 8,
        "roi_width": 8,
        "time_width": 8,
        "channels": 3,
    },
}
STRUCTURAL_SIZES = {
    "structural": {
        "rois": 450,
        "width": 8,
        "layers": 1,
        "mlp_width": 8,
        "eigenvectors": 4,
        "learnable": True,
        "edge_widths": (8, 4),
    },
}
HEADS = {f"{branch}_heads": 1 for branch in ("spatial", "temporal", "perceiver", "structural")}


def write_release(
    folder: Path, sizes: Mapping[str, Any] = FUNCTIONAL_SIZES, *, name: str = "small", **card: Any
) -> Release:
    """Write a release whose card says that it is trained, with small random weights."""
    files = {}
    for branch, state in random_state_dicts({"sizes": sizes}, seed=5).items():
        path = folder / f"{branch}.pth"
        torch.save({key: torch.from_numpy(value) for key, value in state.items()}, path)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        files[branch] = {"path": path.name, "sha256": sha256}
    heads = {f"{branch}_heads": 1 for branch in sizes if f"{branch}_heads" in HEADS}
    written = {"name": name, "version": "1", "trained": True, "network": heads, "files": files}
    (folder / "model.yaml").write_text(yaml.safe_dump(written | card))
    return resolve_release(name, folder)

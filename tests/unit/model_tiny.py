"""A network of all branches that is small enough for quick tests."""

import numpy as np
import pytest
import torch

from bsym_bids.model import BrainSymphony
from bsym_bids.model.weights import random_state_dicts

ROIS, STEPS, WIDTH = 12, 20, 8
SIZES = {
    "spatial": {"steps": STEPS, "width": WIDTH, "layers": 2, "mlp_width": 16, "positions": 14},
    "temporal": {"rois": ROIS, "width": WIDTH, "layers": 2, "mlp_width": 16, "positions": 30},
    "context": {"channels": 6, "hidden": (5, 4)},
    "perceiver": {
        "rois": ROIS,
        "steps": STEPS,
        "width": WIDTH,
        "layers": 2,
        "mlp_width": 16,
        "projection": 7,
        "head_width": 10,
        "roi_width": WIDTH,
        "time_width": WIDTH,
        "channels": 6,
    },
    "structural": {
        "rois": ROIS,
        "width": WIDTH,
        "layers": 2,
        "mlp_width": 16,
        "eigenvectors": 3,
        "learnable": True,
        "edge_widths": (6, 5),
    },
    "gate": {"width": WIDTH},
}
HEADS = {f"{name}_heads": 2 for name in ("spatial", "temporal", "perceiver", "structural")}


@pytest.fixture(autouse=True)
def one_thread():
    """Keep threads from waiting for each other over arrays this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny_states(seed=0):
    """Return the state dicts of the small network."""
    states = random_state_dicts({"sizes": SIZES}, seed)
    states["context"]["mask_token"] += 0.5
    return states


def tiny_model(seed=0, **options):
    """Return the small network."""
    return BrainSymphony.from_state_dicts(**tiny_states(seed), **HEADS, **options)


def tiny_windows(count=2, seed=0):
    """Return windows (count, ROIs, frames)."""
    return np.random.default_rng(seed).standard_normal((count, ROIS, STEPS)).astype(np.float32)


def tiny_sc(count=2, seed=0):
    """Return connectomes with edges of either sign and without edges."""
    draw = np.random.default_rng(seed)
    sc = draw.standard_normal((count, ROIS, ROIS)) * (draw.random((count, ROIS, ROIS)) > 0.4)
    return (sc + sc.swapaxes(1, 2)).astype(np.float32)

"""The packaged template: ICBM 152 nonlinear 2009c asymmetric, brain-extracted."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np

from bsym_bids import atlas
from bsym_bids.dwi.transforms import Volume, load_volume

#: Its name in TemplateFlow.
SPACE = "MNI152NLin2009cAsym"


def template_path(name: str) -> Path:
    """Return a packaged file of the template: ``T1w`` (brain-extracted) or ``mask``."""
    folder = Path(str(files("bsym_bids") / "data" / "templates"))
    return folder / f"tpl-{SPACE}_res-01_desc-brain_{name}.nii.gz"


@cache
def template_t1w() -> Volume:
    """Return the brain-extracted T1-weighted template (1 mm), intensities 0 to about 1."""
    volume = load_volume(template_path("T1w"))
    data = volume.data.astype(np.float32)
    return Volume(data / np.percentile(data[data > 0], 99.5), volume.affine)


@cache
def template_mask() -> Volume:
    """Return its brain mask, bool."""
    volume = load_volume(template_path("mask"))
    return Volume(volume.data > 0, volume.affine)


@cache
def template_labels() -> Volume:
    """Return the 450-ROI atlas on the template, int16."""
    volume = load_volume(atlas.volume_path(SPACE, 1))
    return Volume(volume.data.astype(np.int16), volume.affine)

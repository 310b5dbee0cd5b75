"""The atlas on the 91,282 grayordinates of fsLR 32k surfaces and subcortical voxels."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bsym_bids.atlas.table import LABEL, SCALE, folder

if TYPE_CHECKING:
    from nibabel.cifti2 import BrainModelAxis


def dlabel_path() -> Path:
    """Return the packaged CIFTI-2 label file."""
    return folder() / f"tpl-fsLR_atlas-{LABEL}_scale-{SCALE}_den-91k_dseg.dlabel.nii"


@lru_cache(maxsize=1)
def _dlabel() -> tuple[NDArray[np.uint16], BrainModelAxis]:
    import nibabel as nib

    image = nib.load(dlabel_path())
    return np.asarray(image.dataobj, dtype=np.uint16)[0], image.header.get_axis(1)


def dlabel() -> NDArray[np.uint16]:
    """Return the ROI index of each grayordinate, 0 outside of all ROIs; shape (91282,)."""
    return _dlabel()[0].copy()


def labels_of(axis: BrainModelAxis) -> NDArray[np.uint16]:
    """Return the ROI index of each grayordinate of another brain-model axis.

    Grayordinates are matched by structure and vertex or voxel, so the axis may be ordered
    otherwise, or be a part of the 91,282.

    Parameters
    ----------
    axis : nibabel.cifti2.BrainModelAxis
        Axis of the data.

    Returns
    -------
    ndarray of uint16, shape (len(axis),)
        ROI index, 0 outside of all ROIs.
    """
    labels, own = _dlabel()
    if axis == own:
        return labels.copy()
    found = np.zeros(len(axis), dtype=np.uint16)
    ours = {name: (part, model) for name, part, model in own.iter_structures()}
    for name, part, model in axis.iter_structures():
        if name in ours:
            own_part, own_model = ours[name]
            found[part] = _match(model, own_model, labels[own_part])
    return found


def _match(
    model: BrainModelAxis, own: BrainModelAxis, labels: NDArray[np.uint16]
) -> NDArray[np.uint16]:
    """Look up the labels of one structure."""
    if model.surface_mask.any():
        vertices = max(own.nvertices.values())
        if vertices != max(model.nvertices.values()):
            return np.zeros(len(model), dtype=np.uint16)  # another mesh: nothing corresponds
        by_vertex = np.zeros(vertices, dtype=np.uint16)
        by_vertex[own.vertex] = labels
        return by_vertex[model.vertex]
    if model.affine is None or not np.allclose(model.affine, own.affine, atol=1e-3):
        return np.zeros(len(model), dtype=np.uint16)
    by_voxel = {
        tuple(voxel): label for voxel, label in zip(own.voxel.tolist(), labels, strict=True)
    }
    return np.array([by_voxel.get(tuple(v), 0) for v in model.voxel.tolist()], dtype=np.uint16)

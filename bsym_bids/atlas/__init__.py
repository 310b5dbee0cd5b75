"""The 450-ROI atlas: Schaefer 2018 (400 parcels, 7 networks) and Tian 2020 (scale III).

ROIs 1-25 are right and 26-50 left subcortex, 51-250 left and 251-450 right cortex; wherever arrays
have an ROI axis it is in that order, starting at 0.
"""

from __future__ import annotations

from bsym_bids.atlas.grayordinates import dlabel, dlabel_path
from bsym_bids.atlas.grids import (
    SPACES,
    labels_on_grid,
    roi_volumes,
    roi_voxels_on_lattice,
    volume_path,
)
from bsym_bids.atlas.table import (
    LABEL,
    N_ROIS,
    SCALE,
    Roi,
    description_path,
    networks,
    roi_names,
    rois,
    table_path,
)

__all__ = [
    "LABEL",
    "N_ROIS",
    "SCALE",
    "SPACES",
    "Roi",
    "description_path",
    "dlabel",
    "dlabel_path",
    "labels_on_grid",
    "networks",
    "roi_names",
    "roi_volumes",
    "roi_voxels_on_lattice",
    "rois",
    "table_path",
    "volume_path",
]

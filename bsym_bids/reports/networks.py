"""The networks of the atlas in figures: their order, names and colours."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np
from numpy.typing import NDArray

from bsym_bids import atlas

#: In the order of figures, from the senses to what is furthest from them.
NAMES: Mapping[str, str] = {
    "Vis": "Visual",
    "SomMot": "Somatomotor",
    "DorsAttn": "Dorsal attention",
    "SalVentAttn": "Salience, ventral attention",
    "Limbic": "Limbic",
    "Cont": "Control",
    "Default": "Default",
    "Subcortex": "Subcortex",
}
#: Of Okabe & Ito and one grey: they differ in brightness too, and stand beside a name.
COLOURS: Mapping[str, str] = dict(
    zip(
        NAMES,
        (
            "#0072B2",
            "#56B4E9",
            "#009E73",
            "#CC79A7",
            "#F0E442",
            "#E69F00",
            "#D55E00",
            "#7F7F7F",
        ),
        strict=True,
    )
)


@cache
def order() -> NDArray[np.intp]:
    """Return the ROIs, 0 to 449, network by network, those on the left first."""
    rank = {name: index for index, name in enumerate(NAMES)}
    keys = [(rank[roi.network], roi.hemisphere != "L", roi.index) for roi in atlas.rois()]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__))


def sizes() -> dict[str, int]:
    """Return how many ROIs each network has, in the order of figures."""
    networks = list(atlas.networks())
    return {name: networks.count(name) for name in NAMES}


def members(network: str) -> NDArray[np.bool_]:
    """Return which ROIs belong to a network, shape (450,)."""
    return np.array([name == network for name in atlas.networks()])


def mean_by_network(values: NDArray[np.floating]) -> dict[str, float]:
    """Return the mean over the ROIs of each network that have a value; NaN where none has."""
    means = {}
    for name in NAMES:
        own = values[members(name)]
        own = own[np.isfinite(own)]
        means[name] = float(own.mean()) if own.size else float("nan")
    return means

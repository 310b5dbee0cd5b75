"""How well images and atlas lie on each other, and whether one of them is a mirror image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from bsym_bids.dwi.registration import (
    TILTS,
    Coarse,
    LinearFit,
    centroid,
    coarse_template,
    information,
    register_brains,
    register_linear,
    starts_between,
)
from bsym_bids.dwi.tissue import CORTICAL, N_SUBCORTICAL, SUBCORTICAL, WHITE
from bsym_bids.dwi.transforms import Affine, Transform, Volume, resample
from bsym_bids.errors import BadDataError

#: Share by which the mirror image must fit better (mutual information) to be taken for the true
#: one. Of simulated heads the wrong one has 0.5 to 0.6 of what the right one has; of a real b0 and
#: the template warped onto it 0.66, and 0.94 where an affine map brings the template there, so that
#: nothing of it is that person's.
MIRROR_MARGIN = 0.1
#: mm around the border of grey and white matter in which cortex lies.
INTERFACE = 2.0
#: mm by which a series that is said to be aligned may be off before it is pointed out.
MOST_OFFSET = 3.0
#: Overlap of brain masks below which a registration is poor: 0.97 to 0.99 where it is right, 0.81
#: to 0.90 with the transform of another simulated person.
LEAST_DICE = 0.85
#: Mutual information (nats) below which it is poor. With the template: 1.0 to 1.7 where it is right
#: (a real b0: 1.0), 0.12 to 0.28 with another person's transform, about 0.1 with none. Of b0 and
#: T1w 0.9 to 1.1 in simulated heads; lower, as real contrasts have less in common.
LEAST_INFORMATION = {"b0": 0.2, "template": 0.3}
#: Share of cortical ROI voxels in grey matter below which it is poor: 0.76 where it is right, 0.68
#: at 4 mm off, 0.60 at 8 mm and 0.53 at 12 mm. That on the border of grey and white matter says
#: less: 0.61, 0.59, 0.54 and 0.50.
LEAST_IN_GREY = 0.55
#: Above this it is poor: share of the brain where the map to the template folds.
MOST_FOLDED = 0.01


@dataclass(frozen=True)
class Alignment:
    """How a series lies to the T1-weighted image of the same head.

    Attributes
    ----------
    matrix : ndarray, shape (4, 4)
        Rigid, from points of the series to points of the T1-weighted image, RAS+ mm.
    information : float
        Mutual information (nats) of b0 and T1w under it.
    best_information : float
        The same under the best rigid map.
    mirror_information : float
        The same with the T1-weighted image mirrored left to right, at its best.
    dice : float
        Overlap of the two brain masks.
    offset : float
        Mean distance in mm, over the brain, between ``matrix`` and the best rigid map.
    """

    matrix: NDArray[np.float64]
    information: float
    best_information: float
    mirror_information: float
    dice: float
    offset: float

    @property
    def is_mirrored(self) -> bool:
        """Whether one of the two is left-right mirrored: the mirror image fits clearly better."""
        return self.mirror_information > (1 + MIRROR_MARGIN) * self.best_information


def align(series: Coarse, t1w: Coarse, *, same_space: bool) -> Alignment:
    """Register a series to the T1-weighted image of the same head, and to its mirror image.

    Parameters
    ----------
    series : Coarse
        Its b0.
    t1w : Coarse
        The T1-weighted image.
    same_space : bool
        The two are aligned: the map is the identity, and registration only says how good it is.

    Raises
    ------
    BadDataError
        They cannot be registered.
    """
    best = register_brains(series, t1w, rigid=True, same_world=True)
    mirror = _register_mirrored(series, t1w, best)
    matrix = np.eye(4) if same_space else best.matrix
    shared = information(series.image, t1w.image, matrix, series.around)
    points = _points(series.mask)
    apart = Affine(matrix)(points) - Affine(best.matrix)(points)
    return Alignment(
        matrix=matrix,
        information=shared,
        best_information=max(shared, best.information),
        mirror_information=mirror.information,
        dice=_dice(series.mask, t1w.mask, [Affine(matrix)]),
        offset=float(np.linalg.norm(apart, axis=1).mean()),
    )


def _register_mirrored(series: Coarse, t1w: Coarse, fit: LinearFit) -> LinearFit:
    """Register a series to the mirror image, also from where the true image fits."""
    mirror = mirrored(t1w)
    centres = centroid(t1w.mask), centroid(mirror.mask)
    shift = np.eye(4)
    shift[:3, 3] = centres[1] - centres[0]
    starts = [*starts_between(centroid(series.mask), centres[1], TILTS), shift @ fit.matrix]
    return register_linear(series.image, mirror.image, starts, rigid=True, mask=series.around)


def mirrored(brain: Coarse) -> Coarse:
    """Return a brain with left and right exchanged in the world."""

    def mirror(volume: Volume) -> Volume:
        affine = volume.affine.copy()
        affine[0, 3] = -(affine[0, 3] + affine[0, 0] * (volume.data.shape[0] - 1))
        return Volume(np.ascontiguousarray(volume.data[::-1]), affine)

    return Coarse(mirror(brain.image), mirror(brain.mask))


def _points(mask: Volume) -> NDArray[np.float64]:
    return Affine(mask.affine)(np.argwhere(mask.data)[::50].astype(np.float64))


def _dice(wanted: Volume, other: Volume, chain: Sequence[Transform]) -> float:
    """Return the overlap of a mask with another that is brought onto its grid."""
    moved = resample(other, wanted.data.shape, wanted.affine, chain, order=0).data
    return float(2 * (moved & wanted.data).sum() / (moved.sum() + wanted.data.sum()))


def fit_with_template(brain: Coarse, chain: Sequence[Transform]) -> dict[str, float]:
    """Return how a brain fits onto the template.

    Parameters
    ----------
    brain : Coarse
        Image and mask.
    chain : sequence of Transform
        From its world to the template.

    Returns
    -------
    dict
        ``TemplateMutualInformation`` in nats and ``TemplateMaskDice``.
    """
    template = coarse_template()
    shape, affine = brain.image.data.shape, brain.image.affine
    warped = resample(template.image, shape, affine, chain)
    shared = information(brain.image, warped, mask=brain.around)
    dice = _dice(brain.mask, template.mask, chain)
    return {"TemplateMutualInformation": round(shared, 3), "TemplateMaskDice": round(dice, 3)}


def cortical_fit(labels: Volume, tissue: NDArray[np.float32]) -> dict[str, float | None]:
    """Return how well cortical ROIs lie in cortex.

    Parameters
    ----------
    labels : Volume
        The atlas.
    tissue : ndarray, shape (X, Y, Z, 5)
        Tissues on the same grid.

    Returns
    -------
    dict
        ``CorticalROIsOnInterface``: the share of their voxels with the centre within `INTERFACE`
        of the border of grey and white matter; ``CorticalROIsInGrey``: the share that are mostly
        grey matter, which falls faster with distance. None where there are no cortical ROIs or
        no border.
    """
    cortical = labels.data > N_SUBCORTICAL
    white = tissue[..., WHITE] >= 0.5
    if not cortical.any() or white.all() or not white.any():
        return {"CorticalROIsOnInterface": None, "CorticalROIsInGrey": None}
    # Distances are to centres of the first voxel beyond the border, half a voxel behind it.
    half = labels.zooms.mean() / 2
    outside = distance_transform_edt(~white, sampling=labels.zooms)[cortical]
    inside = distance_transform_edt(white, sampling=labels.zooms)[cortical]
    near = (np.maximum(outside, inside) - half <= INTERFACE).mean()
    grey = (tissue[cortical][:, [CORTICAL, SUBCORTICAL]].sum(axis=1) >= 0.5).mean()
    return {
        "CorticalROIsOnInterface": round(float(near), 3),
        "CorticalROIsInGrey": round(float(grey), 3),
    }


def weaknesses(quality: Mapping[str, Any]) -> list[str]:
    """Say what is poor about a registration.

    Parameters
    ----------
    quality : mapping
        As in ``RegistrationQuality``; what is None or absent is not judged.

    Returns
    -------
    list of str
        Clauses for a sentence; empty where all is good.
    """
    limits = (
        ("MutualInformation", LEAST_INFORMATION["b0"], "b0 and T1w share little information"),
        ("MaskDice", LEAST_DICE, "the brain masks of series and T1w overlap little"),
        (
            "TemplateMutualInformation",
            LEAST_INFORMATION["template"],
            "image and template share little information",
        ),
        ("TemplateMaskDice", LEAST_DICE, "the brain masks of image and template overlap little"),
        (
            "CorticalROIsInGrey",
            LEAST_IN_GREY,
            "much of the cortical ROIs lies outside of grey matter",
        ),
    )
    found = []
    for key, least, words in limits:
        value = quality.get(key)
        if value is not None and value < least:
            found.append(f"{words} ({value:.2f}, at least {least:g} is usual)")
    folded = quality.get("Folded") or 0.0
    if folded > MOST_FOLDED:
        found.append(f"the map to the template folds in {folded:.1%} of the brain")
    offset = quality.get("Offset") or 0.0
    if offset > MOST_OFFSET:
        found.append(f"they are said to be aligned, but registration moves them {offset:.1f} mm")
    return found


def refuse_mirrored(alignment: Alignment, series: str, t1w: str) -> None:
    """Raise if series and T1-weighted image are mirror images of each other.

    Raises
    ------
    BadDataError
        They are.
    """
    if not alignment.is_mirrored:
        return
    raise BadDataError(
        f"{series} and {t1w}: one of the two is mirrored left to right: mutual information is "
        f"{alignment.mirror_information:.3f} with the T1-weighted image mirrored and "
        f"{alignment.best_information:.3f} as it is",
        "which of them is wrong cannot be told from the images: compare with other images of the "
        "participant or with how they were converted, and correct the affine or the data of the "
        "wrong one",
    )

"""Five tissues for anatomically-constrained tracking (Smith et al. 2012).

doi:10.1016/j.neuroimage.2012.06.005. The volumes are those of MRtrix3: cortical grey matter,
subcortical grey matter, white matter, cerebrospinal fluid, pathological tissue; shares of a voxel
that sum to 1 in the brain and to 0 outside.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np
import scipy  # of which parts are loaded when they are used
from numpy.typing import NDArray

from bsym_bids.dwi.template import template_labels, template_mask, template_t1w
from bsym_bids.dwi.transforms import Volume

CORTICAL, SUBCORTICAL, WHITE, CSF, PATHOLOGICAL = range(5)
#: ROIs 1 to 50 of the atlas are subcortical.
N_SUBCORTICAL = 50
#: Grey matter so near a subcortical ROI, and nearer than to a cortical one, is subcortical (mm).
NEAR = 4.0
# Voxels that classes are fitted to; evenly spaced ones of more change no mean in its third digit.
_SAMPLES = 200_000

# FreeSurfer's numbers (FreeSurferColorLUT.txt). The ventral diencephalon counts as white matter,
# as the peduncle runs through it; vessels and choroid plexus as CSF.
_WHITE = (2, 41, 7, 46, 16, 28, 60, 77, 78, 79, 85, 192, *range(250, 256), 5001, 5002)
_SUBCORTICAL = (
    *(9, 10, 48, 49, 11, 50, 12, 51, 13, 52, 17, 53, 18, 54, 26, 58, 27, 59),
    *(80, 81, 82),  # hypointensities outside of the white matter lie in the basal ganglia
)
_CSF = (4, 43, 5, 44, 14, 15, 24, 72, 30, 62, 31, 63, 213, 221, 257)
_CORTICAL = (3, 42, 8, 47, 19, 55, 20, 56)
_LESION = (25, 57)
#: Cortical parcels of both hemispheres (Desikan-Killiany, Destrieux), and the white matter below.
_CORTICAL_RANGES = ((1000, 2999), (11100, 12999))
_WHITE_RANGES = ((3000, 4999), (13100, 14999))


def freesurfer_tissue() -> dict[int, int]:
    """Return the tissue (0 to 4) of every number of FreeSurfer's segmentation."""
    kinds = {
        CORTICAL: _CORTICAL,
        SUBCORTICAL: _SUBCORTICAL,
        WHITE: _WHITE,
        CSF: _CSF,
        PATHOLOGICAL: _LESION,
    }
    table = {number: kind for kind, numbers in kinds.items() for number in numbers}
    for kind, ranges in ((CORTICAL, _CORTICAL_RANGES), (WHITE, _WHITE_RANGES)):
        for first, last in ranges:
            table.update(dict.fromkeys(range(first, last + 1), kind))
    return table


def tissues_from_freesurfer(
    segmentation: NDArray[np.integer], mask: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Return five tissues from FreeSurfer's ``aparc+aseg``.

    Parameters
    ----------
    segmentation : ndarray of int, shape (X, Y, Z)
        FreeSurfer's numbers.
    mask : ndarray of bool, shape (X, Y, Z)
        Brain mask.

    Returns
    -------
    ndarray, shape (X, Y, Z, 5)
        0 or 1. What the mask holds and the segmentation does not name is CSF; what the
        segmentation names outside of the mask counts too.
    """
    table = freesurfer_tissue()
    kinds = np.full(max(int(segmentation.max()), max(table)) + 1, -1, dtype=np.int8)
    kinds[list(table)] = list(table.values())
    kind = kinds[np.maximum(segmentation, 0)]
    kind[(kind < 0) & mask] = CSF
    tissues = np.zeros((*segmentation.shape, 5), dtype=np.float32)
    for number in range(5):
        tissues[..., number] = kind == number
    return tissues


def three_from_dseg(segmentation: NDArray) -> NDArray[np.float32]:
    """Return shares of GM, WM and CSF (0 or 1) from a discrete segmentation.

    Parameters
    ----------
    segmentation : ndarray, shape (X, Y, Z)
        1 grey matter, 2 white matter, 3 CSF, as BIDS has it.

    Returns
    -------
    ndarray, shape (X, Y, Z, 3)
    """
    return np.stack([segmentation == number for number in (1, 2, 3)], axis=-1).astype(np.float32)


def five_tissues(
    shares: NDArray[np.float32],
    labels: Volume,
    mask: NDArray[np.bool_],
) -> NDArray[np.float32]:
    """Return five tissues from shares of three and the subcortical ROIs of the atlas.

    Inside of a subcortical ROI all that is not CSF is subcortical grey matter: thalamus and
    pallidum look like white matter in T1-weighted images. Grey matter within `NEAR` of such an
    ROI, and nearer to it than to a cortical one, is subcortical too: it belongs to the same
    nuclei, and streamlines may pass through those, as they may not through cortex.

    Parameters
    ----------
    shares : ndarray, shape (X, Y, Z, 3)
        Shares of GM, WM and CSF, not necessarily with sum 1.
    labels : Volume
        The atlas on the same grid.
    mask : ndarray of bool, shape (X, Y, Z)
        Brain mask.

    Returns
    -------
    ndarray, shape (X, Y, Z, 5)
        Sum 1 inside of the mask, 0 outside. What no share is given to inside of the mask is CSF.
    """
    inside = mask[..., None] * np.clip(np.nan_to_num(shares), 0, None)
    total = inside.sum(axis=-1)
    tissues = np.zeros((*mask.shape, 5), dtype=np.float32)
    known = total > 1e-3
    scaled = np.divide(inside, total[..., None], where=known[..., None], out=np.zeros_like(inside))
    tissues[..., CORTICAL], tissues[..., WHITE], tissues[..., CSF] = np.moveaxis(scaled, -1, 0)
    tissues[mask & ~known, CSF] = 1
    nucleus = (labels.data > 0) & (labels.data <= N_SUBCORTICAL)
    _hand_over(tissues, nucleus & mask, (CORTICAL, WHITE))
    _hand_over(tissues, _beside(labels) & mask, (CORTICAL,))
    return tissues


def _hand_over(
    tissues: NDArray[np.float32], where: NDArray[np.bool_], given: tuple[int, ...]
) -> None:
    """Make tissues of a region subcortical grey matter."""
    for kind in given:
        tissues[where, SUBCORTICAL] += tissues[where, kind]
        tissues[where, kind] = 0


def _beside(labels: Volume) -> NDArray[np.bool_]:
    """Return where a subcortical ROI is near, and nearer than a cortical one."""
    nucleus = (labels.data > 0) & (labels.data <= N_SUBCORTICAL)
    cortex = labels.data > N_SUBCORTICAL
    if not nucleus.any():
        return nucleus
    far = (
        np.inf
        if not cortex.any()
        else scipy.ndimage.distance_transform_edt(~cortex, sampling=labels.zooms)
    )
    near = scipy.ndimage.distance_transform_edt(~nucleus, sampling=labels.zooms)
    return (near <= NEAR) & (near < far)


@cache
def template_priors() -> Volume:
    """Return prior shares of GM, WM and CSF on the template, shape (X, Y, Z, 3).

    The template's own intensities say what is what, but for the nuclei of the atlas, which are
    grey matter; smoothed by 1.5 mm (standard deviation) as no two brains fold alike.
    """
    image, mask = template_t1w(), template_mask().data
    flat = np.full((int(mask.sum()), 3), 1 / 3, dtype=np.float32)
    shares = np.zeros((*mask.shape, 3), dtype=np.float32)
    shares[mask] = _mixture(image.data[mask], flat)
    labels = template_labels().data
    shares[(labels > 0) & (labels <= N_SUBCORTICAL)] = (0.9, 0.1, 0)
    for kind in range(3):
        shares[..., kind] = scipy.ndimage.gaussian_filter(shares[..., kind], 1.5)
    return Volume(shares, image.affine)


def _mixture(
    values: NDArray[np.float32], priors: NDArray[np.float32], iterations: int = 40
) -> NDArray[np.float32]:
    """Return the posterior of three normal classes given spatial priors (Ashburner & Friston 2005).

    doi:10.1016/j.neuroimage.2005.02.018, without its bias field and its warps.

    Parameters
    ----------
    values : ndarray, shape (N,)
        T1-weighted intensities.
    priors : ndarray, shape (N, 3)
        Of GM, WM, CSF.
    iterations : int
        At most, of expectation and maximisation.

    Returns
    -------
    ndarray, shape (N, 3)
    """
    low, middle, high = np.percentile(values, (6, 40, 85)).astype(np.float64)
    means = np.array([middle, high, low])
    spread = max(float(high - low), 1e-6)
    widths = np.full(3, spread / 6)
    shares = np.full(3, 1 / 3)
    stride = max(1, len(values) // _SAMPLES)
    some, prior = values[::stride].astype(np.float64), priors[::stride].astype(np.float64)
    for _ in range(iterations):
        posterior = _expectation(some, prior * shares, means, widths)
        weights = posterior.sum(axis=0) + 1e-9
        before = means
        means = (posterior * some[:, None]).sum(axis=0) / weights
        squares = (posterior * (some[:, None] - means) ** 2).sum(axis=0)
        widths = np.maximum(np.sqrt(squares / weights), spread / 50)
        shares = weights / (prior.sum(axis=0) + 1e-9)
        shares /= shares.sum()
        if np.abs(means - before).max() < 1e-4 * spread:
            break
    return _expectation(values, priors * shares.astype(np.float32), means, widths)


def _expectation(
    values: NDArray, priors: NDArray, means: NDArray[np.float64], widths: NDArray[np.float64]
) -> NDArray:
    likelihood = np.empty_like(priors)
    for kind, (mean, width) in enumerate(zip(means, widths, strict=True)):
        likelihood[:, kind] = np.exp(-0.5 * ((values - mean) / width) ** 2) / width
    # Beyond the outer means the wider of the middle class's tails must not win.
    likelihood[values > means[1], 1] = 1 / widths[1]
    likelihood[values < means[2], 2] = 1 / widths[2]
    posterior = likelihood * np.maximum(priors, 1e-3)
    posterior /= posterior.sum(axis=1, keepdims=True) + 1e-20
    return posterior


def segment(
    image: NDArray[np.float32],
    mask: NDArray[np.bool_],
    priors: NDArray[np.float32],
    *,
    smoothness: float = 0.3,
) -> NDArray[np.float32]:
    """Segment a T1-weighted brain into GM, WM and CSF.

    A mixture of three normal distributions with spatial priors, then mean-field steps of a Markov
    random field over the six neighbours (Zhang et al. 2001, doi:10.1109/42.906424).

    Parameters
    ----------
    image : ndarray, shape (X, Y, Z)
        Bias-corrected intensities.
    mask : ndarray of bool, shape (X, Y, Z)
        Brain mask.
    priors : ndarray, shape (X, Y, Z, 3)
        Prior shares of GM, WM and CSF from the template.
    smoothness : float
        Weight of a neighbour.

    Returns
    -------
    ndarray, shape (X, Y, Z, 3)
        Shares of GM, WM and CSF, 0 outside of the mask.
    """
    known = _mixture(image[mask], priors[mask] + 0.02)
    evidence = np.log(known + 1e-6)
    shares = np.zeros((*mask.shape, 3), dtype=np.float32)
    for _ in range(3):
        shares[mask] = known
        field = np.stack([_neighbours(shares[..., kind])[mask] for kind in range(3)], axis=-1)
        known = np.exp(evidence + smoothness * field)
        known /= known.sum(axis=-1, keepdims=True)
    shares[mask] = known
    return shares


def _neighbours(share: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the sum over the six neighbours, 0 beyond the edges."""
    total = np.zeros_like(share)
    for axis in range(3):
        ahead = [slice(None)] * 3
        behind = [slice(None)] * 3
        ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
        total[tuple(behind)] += share[tuple(ahead)]
        total[tuple(ahead)] += share[tuple(behind)]
    return total


def tissue_volumes(tissues: NDArray[np.float32], voxel_volume: float) -> Mapping[str, float]:
    """Return the volume of every tissue in ml, by its name."""
    names = ("CorticalGrey", "SubcorticalGrey", "White", "CSF", "Pathological")
    sums = tissues.reshape(-1, 5).sum(axis=0, dtype=np.float64) * voxel_volume / 1000
    return {name: round(float(value), 1) for name, value in zip(names, sums, strict=True)}

"""Brain masks of diffusion series."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

# mm; the image is smoothed by it before a threshold is laid.
_SMOOTHING = 1.5
# Share of Otsu's threshold that is used: at Otsu's own, the rim of the cortex is lost.
_THRESHOLD = 0.8
# mm; what hangs on a bridge thinner than twice this (eyes, optic nerves, neck) is cut off.
_BRIDGE = 5.0
# mm; gaps in the surface narrower than twice this are closed.
_GAP = 6.0


def brain_mask(
    b0: NDArray[np.float32], weighted: NDArray[np.float32], affine: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Find the brain in a diffusion series.

    Brain is bright both without and with diffusion weighting, while eyes and fluids fade with
    weighting and fat is suppressed in both: the geometric mean of the two is thresholded (Otsu
    1979, doi:10.1109/TSMC.1979.4310076), and what hangs on the brain by narrow bridges is cut off.

    Parameters
    ----------
    b0, weighted : ndarray, shape (X, Y, Z)
        Mean volume without and with diffusion weighting.
    affine : ndarray, shape (4, 4)
        From voxels to mm.

    Returns
    -------
    ndarray of bool, shape (X, Y, Z)
        May be empty.
    """
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    both = np.sqrt(np.clip(b0, 0, None) * np.clip(weighted, 0, None))
    smooth = ndimage.gaussian_filter(both, _SMOOTHING / sizes)
    bright = smooth > _THRESHOLD * otsu(_ordinary(smooth))
    core = _largest(ndimage.distance_transform_edt(bright, sizes) > _BRIDGE)
    if not core.any():
        core = _largest(bright)
    # A little further than it was eroded, so that corners of the brain come back.
    near = ndimage.distance_transform_edt(~core, sizes) <= _BRIDGE + 1
    return ndimage.binary_fill_holes(_closed(near & bright, sizes))


def otsu(values: NDArray) -> float:
    """Return Otsu's threshold between two classes of values; 0 where all are alike."""
    if not len(values) or values.min() == values.max():
        return 0.0
    counts, edges = np.histogram(values, 256)
    centres = (edges[1:] + edges[:-1]) / 2
    below, total = np.cumsum(counts), counts.sum()
    sums = np.cumsum(counts * centres)
    between = (sums[-1] * below - sums * total) ** 2 / np.maximum(below * (total - below), 1)
    return float(centres[np.argmax(between)])


def _ordinary(smooth: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return values with the air left out and the few brightest ones cut."""
    inside = smooth[smooth > 0.05 * np.percentile(smooth, 99.5)]
    # Where the air was set to zero, it has to be there for Otsu to see two classes.
    values = inside if len(inside) > 0.3 * smooth.size else smooth.ravel()
    return np.minimum(values, np.percentile(values, 98))


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    labels, count = ndimage.label(mask)
    if count < 2:
        return mask
    return labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])


def _closed(mask: NDArray[np.bool_], sizes: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Close gaps in the surface."""
    if not mask.any():
        return mask
    margin = [(int(np.ceil(_GAP / size)) + 1,) * 2 for size in sizes]
    grown = ndimage.distance_transform_edt(~np.pad(mask, margin), sizes) <= _GAP
    closed = ndimage.distance_transform_edt(grown, sizes) > _GAP
    inner = tuple(slice(before, -after) for before, after in margin)
    return _largest(closed[inner] | mask)

"""Are the gradients in the axes of the image? Where axes are inverted or exchanged, fibres break.

With gradients in the wrong axes, fibre orientations don't line up from voxel to voxel, and
streamlines end early. So streamlines are drawn for all 24 ways to exchange and invert axes, and
their mean lengths are compared (Jeurissen et al. 2014, doi:10.1016/j.media.2014.05.012). An
exchange or inversion of the gradients' axes is the same for the tensor's principal direction, so
the tensor is fitted once.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import scipy  # of which parts are loaded when they are used
from numpy.typing import NDArray

from bsym_bids.dwi.engines.volumes import tensor_volumes
from bsym_bids.dwi.gradients import (
    Gradients,
    read_gradients,
    voxel_directions,
    write_gradients,
)
from bsym_bids.dwi.records import PreparedDwi
from bsym_bids.dwi.series import read_volumes

#: Mean streamline length of the best axes over that of the given ones from which these are wrong.
#: Right axes led wrong ones by 1.3 (six directions, noisy) to 2 (clinical series of a person).
LARGE_RATIO = 1.3
#: The same over that of the second best, below which it isn't sure what is right.
CLEAR_LEAD = 1.1
#: mm; mean lengths below are those of noise.
SHORTEST_MM = 10.0
#: Voxels with oriented fibres that it takes.
FEWEST_VOXELS = 200
# Streamlines, started at random places in voxels of at least this fractional anisotropy.
_SEEDS = 1500
_SEED_FA = 0.4
# Where streamlines end: anisotropy, turn (degrees) in a step of half a voxel, mm to either side.
_STOP_FA = 0.2
_STOP_ANGLE = 20.0
_LONGEST_MM = 125.0
_CHUNK = 20_000  # voxels that are fitted at once
_AXES = "xyz"


@dataclass(frozen=True)
class Variant:
    """One way to exchange and invert the axes of gradients.

    Attributes
    ----------
    order : tuple of int
        New axis i is the old axis ``order[i]``.
    inverted : int, optional
        The new axis that is inverted; inverting two is the same as inverting the third, since
        opposite gradients measure the same.
    """

    order: tuple[int, int, int]
    inverted: int | None

    @property
    def matrix(self) -> NDArray[np.float64]:
        """From old to new vectors, shape (3, 3)."""
        matrix = np.eye(3)[list(self.order)]
        if self.inverted is not None:
            matrix[self.inverted] *= -1
        return matrix

    @property
    def is_given(self) -> bool:
        """Whether nothing changes."""
        return self == _GIVEN

    @property
    def name(self) -> str:
        """What is done to the rows of the .bvec file."""
        moved = [axis for axis in range(3) if self.order[axis] != axis]
        parts = []
        if len(moved) == 2:
            parts.append(f"exchange {_AXES[moved[0]]} and {_AXES[moved[1]]}")
        elif moved:
            rows = ", ".join(_AXES[axis] for axis in self.order)
            parts.append(f"take {rows} as x, y, z")
        if self.inverted is not None:
            parts.append(f"flip {_AXES[self.inverted]}")
        return ", then ".join(parts) or "as given"


_GIVEN = Variant((0, 1, 2), None)
#: All of them, the given one first.
VARIANTS = tuple(
    Variant(order, inverted) for order in permutations(range(3)) for inverted in (None, 0, 1, 2)
)


def check_orientation(
    dwi: PreparedDwi, work: Path, *, mode: Literal["correct", "warn", "off"], threads: int
) -> PreparedDwi:
    """Check that the gradients are in the axes of the image, and correct them where they are not.

    They count as wrong when other axes make streamlines longer by `LARGE_RATIO`; they are corrected
    when these axes also lead all others by `CLEAR_LEAD`. In a series that was moved before,
    gradients were rotated with the head in the wrong axes: after correction, they are off by up to
    twice the angle by which the head had turned.

    Parameters
    ----------
    dwi : PreparedDwi
        The series.
    work : Path
        Where corrected gradients are written.
    mode : {'correct', 'warn', 'off'}
        What to do about wrong axes: correct them, only say so, or don't look.
    threads : int
        Threads; the result is the same for any number.

    Returns
    -------
    PreparedDwi
        With ``GradientCheck`` among the details and, where axes are wrong or could not be checked,
        a note.
    """
    if mode == "off":
        return _with(dwi, {"Action": "off"})
    gradients, affine = _gradients(dwi), nib.load(dwi.image).affine
    mask = np.asarray(nib.load(dwi.mask).dataobj) > 0
    directions, anisotropy = principal_directions(dwi, gradients, affine, mask, threads)
    details: dict[str, Any] = {"Method": "mean streamline length (Jeurissen et al. 2014)"}
    # The rim of the mask is left out: partial volume and motion make it anisotropic.
    seeds = np.argwhere((anisotropy > _SEED_FA) & scipy.ndimage.binary_erosion(mask, iterations=2))
    if len(seeds) < FEWEST_VOXELS:
        reason = f"only {len(seeds)} voxels have oriented fibres"
        return _unchecked(dwi, details, reason)
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    lengths = _mean_lengths(directions, anisotropy, seeds, sizes, affine, threads)
    order = np.argsort(-lengths, kind="stable")
    best, second = order[:2]
    details |= {
        "MeanLengthsMm": {
            "Given": round(float(lengths[0]), 1),
            "Best": round(float(lengths[best]), 1),
            "SecondBest": round(float(lengths[second]), 1),
        },
        "Best": VARIANTS[best].name,
        "SecondBest": VARIANTS[second].name,
    }
    if lengths[best] < SHORTEST_MM:
        reason = f"streamlines are {lengths[best]:.1f} mm long on average in the best axes"
        return _unchecked(dwi, details, reason)
    details["Ratio"] = round(float(lengths[best] / lengths[0]), 3) if lengths[0] > 0 else None
    if lengths[best] < LARGE_RATIO * lengths[0]:
        notes = [] if VARIANTS[best].is_given else [_undecided(details)]
        return _with(dwi, details | {"Action": "none"}, *notes)
    is_clear = bool(lengths[best] >= CLEAR_LEAD * lengths[second])
    return _report_wrong(dwi, work, gradients, VARIANTS[best], details, mode, is_clear)


def _report_wrong(
    dwi: PreparedDwi,
    work: Path,
    gradients: Gradients,
    best: Variant,
    details: dict[str, Any],
    mode: str,
    is_clear: bool,
) -> PreparedDwi:
    """Say that the axes of the gradients are wrong, and correct them where that is wanted."""
    lengths = details["MeanLengthsMm"]
    found = (
        "The gradients are not in the axes of the image: streamlines are "
        f"{lengths['Given']:.0f} mm long on average as given, and {lengths['Best']:.0f} mm with "
        f"the rows of the .bvec file changed ({best.name})."
    )
    if mode == "correct" and is_clear:
        bvec, bval = work / "oriented.bvec", work / "oriented.bval"
        turned = Gradients(gradients.bvals, gradients.bvecs @ best.matrix.T)
        write_gradients(turned, bval, bvec)
        note = f"{found} They were corrected; see that the source is corrected too."
        corrected = replace(dwi, bval=str(bval), bvec=str(bvec))
        return _with(corrected, details | {"Action": "corrected"}, note)
    if not is_clear:
        found += (
            f" Other axes ({details['SecondBest']}) do nearly as well ({lengths['SecondBest']:.0f} "
            "mm), so that it isn't sure which are right."
        )
    note = f"{found} They were left as they are: do not trust this connectome."
    return _with(dwi, details | {"Action": "warned"}, note)


def _undecided(details: dict[str, Any]) -> str:
    lengths = details["MeanLengthsMm"]
    return (
        f"The gradients' axes are not sure to be right: changing the rows of the .bvec file "
        f"({details['Best']}) makes streamlines {lengths['Best']:.1f} mm long on average instead "
        f"of {lengths['Given']:.1f} mm, which is too little to call the given ones wrong."
    )


def _unchecked(dwi: PreparedDwi, details: dict[str, Any], reason: str) -> PreparedDwi:
    note = f"Whether the gradients are in the axes of the image could not be checked: {reason}."
    return _with(dwi, details | {"Action": "none", "NotChecked": reason}, note)


def _with(dwi: PreparedDwi, details: dict[str, Any], *notes: str) -> PreparedDwi:
    return replace(
        dwi, notes=[*dwi.notes, *notes], details={**dwi.details, "GradientCheck": details}
    )


def _gradients(dwi: PreparedDwi) -> Gradients:
    return read_gradients(Path(dwi.bval), Path(dwi.bvec), nib.load(dwi.image).shape[3])[0]


def principal_directions(
    dwi: PreparedDwi,
    gradients: Gradients,
    affine: NDArray[np.float64],
    mask: NDArray[np.bool_],
    threads: int,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return principal directions (X, Y, Z, 3) along voxel axes and anisotropy (X, Y, Z)."""
    volumes = tensor_volumes(gradients)
    chosen = gradients.take(volumes)
    design = _design(chosen.bvals, voxel_directions(chosen, affine))
    data = read_volumes(Path(dwi.image))
    signals = np.stack([data[..., index][mask] for index in volumes], axis=1)
    chunks = [signals[start : start + _CHUNK] for start in range(0, len(signals), _CHUNK)]
    directions = np.zeros((*mask.shape, 3), dtype=np.float32)
    anisotropy = np.zeros(mask.shape, dtype=np.float32)
    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(lambda chunk: _fit_tensor(chunk, design), chunks))
    directions[mask] = np.concatenate([one for one, _ in found])
    anisotropy[mask] = np.concatenate([other for _, other in found])
    return directions, anisotropy


def _design(bvals: NDArray[np.float64], vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the design (V, 7) of the log-linear tensor: xx, yy, zz, xy, xz, yz, log S0."""
    x, y, z = vectors.T
    products = np.stack([x * x, y * y, z * z, 2 * x * y, 2 * x * z, 2 * y * z], axis=1)
    # In um2/ms, so that the columns are of about the same size.
    return np.hstack([-bvals[:, None] / 1000 * products, np.ones((len(bvals), 1))])


def _fit_tensor(
    signals: NDArray[np.float32], design: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Fit tensors by weighted least squares; return principal directions and anisotropy.

    Weights are the squared signals (Salvador et al. 2005, doi:10.1002/hbm.20076).
    """
    floor = np.maximum(signals.max(axis=1, keepdims=True) * 1e-3, 1e-6)
    safe = np.maximum(signals, floor).astype(np.float64)
    squares = (safe / safe.max(axis=1, keepdims=True)) ** 2
    # einsum instead of products of matrices: its order of summation is fixed.
    pairs = (design[:, :, None] * design[:, None, :]).reshape(len(design), -1)
    normal = np.einsum("nv,vk->nk", squares, pairs).reshape(-1, 7, 7)
    right = np.einsum("nv,vk->nk", squares * np.log(safe), design)
    normal += 1e-9 * np.eye(7)
    coefficients = np.linalg.solve(normal, right[..., None])[..., 0]
    xx, yy, zz, xy, xz, yz = coefficients[:, :6].T
    tensors = np.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], axis=1).reshape(-1, 3, 3)
    values, vectors = np.linalg.eigh(tensors)
    values = np.maximum(values, 0)
    spread = ((values - values.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
    total = np.maximum((values**2).sum(axis=1), 1e-12)
    return vectors[:, :, 2], np.sqrt(1.5 * spread / total)


def _mean_lengths(
    directions: NDArray[np.float32],
    anisotropy: NDArray[np.float32],
    voxels: NDArray[np.intp],
    sizes: NDArray[np.float64],
    affine: NDArray[np.float64],
    threads: int,
) -> NDArray[np.float64]:
    """Return the mean streamline length of each variant, mm, shape (24,)."""
    rng = np.random.default_rng(0)
    seeds = voxels[rng.integers(len(voxels), size=_SEEDS)] + rng.uniform(-0.5, 0.5, (_SEEDS, 3))
    # Variants are those of .bvec files, which may have another x than the voxel axes.
    signs = voxel_directions(Gradients(np.ones(3), np.eye(3)), affine)
    matrices = np.array([signs @ variant.matrix @ signs for variant in VARIANTS])
    field = np.concatenate([directions, anisotropy[..., None]], axis=-1)
    field = np.pad(field, ((1, 1), (1, 1), (1, 1), (0, 0)))
    parts = np.array_split(matrices, min(threads, len(matrices)))
    with ThreadPoolExecutor(threads) as pool:
        lengths = pool.map(lambda part: _lengths(field, seeds + 1, part, sizes), parts)
        return np.concatenate(list(lengths)).mean(axis=1)


def _lengths(
    field: NDArray[np.float32],
    seeds: NDArray[np.float64],
    matrices: NDArray[np.float64],
    sizes: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return how long the streamline of each seed is for each matrix, mm, shape (M, seeds).

    Streamlines keep the direction that was fitted, and step in that direction times the matrix:
    whether they turn too much is the same for both.
    """
    step = 0.5 * float(sizes.min())
    lengths = np.zeros(len(matrices) * len(seeds))
    start, _ = _interpolate(field, seeds, None)
    for sign in (1.0, -1.0):
        walker = np.arange(len(lengths))  # those that are still under way
        places = np.tile(seeds, (len(matrices), 1))
        heading = np.tile(sign * start, (len(matrices), 1))
        into_voxels = np.repeat(matrices * (step / sizes)[:, None], len(seeds), axis=0)
        for _ in range(int(_LONGEST_MM / step)):
            places = places + np.einsum("nij,nj->ni", into_voxels, heading)
            ahead, anisotropy = _interpolate(field, places, heading)
            turn = np.einsum("ni,ni->n", ahead, heading)
            goes_on = (anisotropy > _STOP_FA) & (turn > np.cos(np.radians(_STOP_ANGLE)))
            walker, places, heading = walker[goes_on], places[goes_on], ahead[goes_on]
            into_voxels = into_voxels[goes_on]
            if not len(walker):
                break
            lengths[walker] += step
    return lengths.reshape(len(matrices), len(seeds))


def _interpolate(
    field: NDArray[np.float32], places: NDArray[np.float64], heading: NDArray[np.float64] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return unit directions (N, 3) and anisotropy (N,) at places in voxels, linearly.

    Opposite directions are the same fibre: each neighbour's is turned along ``heading``; without
    one, the nearest voxel's is taken.
    """
    last = np.array(field.shape[:3]) - 1
    flat = field.reshape(-1, 4)
    strides = np.array([field.shape[1] * field.shape[2], field.shape[2], 1])
    places = np.clip(places, 0, last)
    if heading is None:
        nearest = flat[np.rint(places).astype(np.intp) @ strides].astype(np.float64)
        return nearest[:, :3], nearest[:, 3]
    corner = np.minimum(places.astype(np.intp), last - 1)
    beyond = places - corner
    base = corner @ strides
    total = np.zeros((len(places), 4))
    for offset in np.ndindex(2, 2, 2):
        share = np.where(offset, beyond, 1 - beyond).prod(axis=1)
        values = flat.take(base + int(strides @ offset), axis=0)
        along = np.einsum("ni,ni->n", values[:, :3], heading)
        total[:, :3] += (np.where(along < 0, -share, share))[:, None] * values[:, :3]
        total[:, 3] += share * values[:, 3]
    length = np.linalg.norm(total[:, :3], axis=1, keepdims=True)
    unit = np.divide(total[:, :3], length, out=np.zeros_like(total[:, :3]), where=length > 0)
    return unit, total[:, 3]

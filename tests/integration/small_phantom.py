"""A small diffusion phantom with known bundles, on any grid: two cross, one bends by 90 degrees."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from bsym_bids.dwi.records import PlacedAnatomy, PreparedDwi

#: Half the edges of the brain in mm; the world origin is its centre.
BRAIN = np.array([37.0, 37.0, 21.0])
RADIUS = 6.0  # mm, of a bundle
END = 26.0  # mm; beyond that grey matter
BEND = np.array([26.0, -26.0])  # centre of the quarter circle, mm
BEND_RADIUS = 40.0  # mm; from the y = -26 face to the x = 26 face


@dataclass(frozen=True)
class SmallPhantom:
    """Everything that the engines take, and the regions at the ends of the bundles."""

    dwi: PreparedDwi
    placed: PlacedAnatomy
    affine: NDArray


def affine_of(zoom=2.0, shape=(40, 40, 24), flip=False, tilt=0.0) -> NDArray:
    """Return an affine with the given voxel size, the centre of the grid at the world origin."""
    c, s = np.cos(tilt), np.sin(tilt)
    rotation = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array(
        [[1, 0, 0], [0, c, -s], [0, s, c]]
    )
    zooms = np.broadcast_to(np.asarray(zoom, float), 3)
    matrix = rotation @ np.diag(zooms * [-1 if flip else 1, 1, 1])
    affine = np.eye(4)
    affine[:3, :3] = matrix
    affine[:3, 3] = -matrix @ ((np.array(shape) - 1) / 2)
    return affine


def world_grid(affine, shape) -> NDArray:
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return index @ affine[:3, :3].T + affine[:3, 3]


def bundles(points) -> tuple[NDArray, NDArray]:
    """Return which bundles each point is in, (..., 3), and their directions, (..., 3, 3)."""
    x, y, z = np.moveaxis(points, -1, 0)
    inside = np.zeros((*x.shape, 3), bool)
    directions = np.zeros((*x.shape, 3, 3))
    inside[..., 0] = (y**2 + z**2 < RADIUS**2) & (abs(x) < END + 6)
    directions[..., 0, 0] = 1
    inside[..., 1] = (x**2 + z**2 < RADIUS**2) & (abs(y) < END + 6)
    directions[..., 1, 1] = 1
    dx, dy = x - BEND[0], y - BEND[1]
    distance = np.hypot(dx, dy)
    tube = (distance - BEND_RADIUS) ** 2 + (z - 13) ** 2 < (0.8 * RADIUS) ** 2
    inside[..., 2] = tube & (x < END + 6) & (y > -END - 6)
    safe = np.maximum(distance, 1e-6)
    directions[..., 2, 0], directions[..., 2, 1] = -dy / safe, dx / safe
    return inside, directions


def tissues(points) -> NDArray:
    """Return the five tissues at points, (..., 5)."""
    brain = (abs(points) < BRAIN).all(-1)
    white = bundles(points)[0].any(-1)
    grey = brain & (abs(points[..., :2]) >= END).any(-1)
    white &= ~grey & brain
    out = np.zeros((*points.shape[:-1], 5), np.float32)
    out[..., 0], out[..., 2], out[..., 3] = grey, white, brain & ~grey & ~white
    return out


def directions_on_sphere(n: int, seed: int) -> NDArray:
    """Return n directions that repel each other on the half sphere."""
    rng = np.random.default_rng(seed)
    v = rng.normal(size=(n, 3))
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    for _ in range(150):
        both = np.concatenate([v, -v])
        gap = v[:, None] - both[None]
        d = np.linalg.norm(gap, axis=-1, keepdims=True)
        v = v + 0.02 * (gap / np.maximum(d, 1e-3) ** 3 * (d > 1e-9)).sum(1) / n
        v /= np.linalg.norm(v, axis=1, keepdims=True)
    return v


def signal(points, bvals, directions, rng, snr) -> NDArray:
    """Return the signal (..., V) of world points: stick and zeppelin, grey matter, CSF, noise."""
    tissue = tissues(points)
    inside, axes = bundles(points)
    b = np.asarray(bvals, float)
    white = np.zeros((*points.shape[:-1], len(b)))
    for i in range(3):
        cos2 = (axes[..., i, :] @ directions.T) ** 2
        fibre = 0.65 * np.exp(-b * 1.7e-3 * cos2)
        fibre += 0.35 * np.exp(-b * (0.4e-3 + 1.3e-3 * cos2))
        white += inside[..., i, None] * fibre
    white /= np.maximum(inside.sum(-1), 1)[..., None]
    clean = tissue[..., 2, None] * white
    clean = clean + tissue[..., 0, None] * 1.2 * np.exp(-b * 0.85e-3)
    clean = clean + tissue[..., 3, None] * 2.0 * np.exp(-b * 3e-3)
    noise = rng.normal(scale=1 / snr, size=(2, *clean.shape))
    return 1000 * np.hypot(clean + noise[0], noise[1])


def make(
    folder: Path,
    *,
    shells=((1000, 30), (2000, 45)),
    flip=False,
    tilt=0.0,
    zoom=2.0,
    shape=(40, 40, 24),
    snr=30.0,
    act=True,
    seed=0,
) -> SmallPhantom:
    """Write a phantom to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    affine = affine_of(zoom, shape, flip, tilt)
    world = np.concatenate([np.zeros((4, 3))] + [directions_on_sphere(n, seed) for _, n in shells])
    bvals = np.concatenate([np.zeros(4)] + [np.full(n, float(b)) for b, n in shells])
    points = world_grid(affine, shape)
    data = signal(points, bvals, world, rng, snr).astype(np.float32)
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    bvecs = world @ axes  # along the axes of the image, as a scanner would say
    if np.linalg.det(affine[:3, :3]) > 0:
        bvecs[:, 0] *= -1
    np.savetxt(folder / "dwi.bval", bvals[None], "%g")
    np.savetxt(folder / "dwi.bvec", bvecs.T, "%.8f")
    mask = (abs(points) < BRAIN).all(-1)
    images = {"dwi": data, "mask": mask.astype(np.uint8), "b0": data[..., :4].mean(-1)}
    for name, array in images.items():
        nib.save(nib.Nifti1Image(array, affine), folder / f"{name}.nii.gz")
    fine_shape = (80, 78, 46)
    fine = affine_of(1.0, fine_shape, flip=True)
    tissue = tissues(world_grid(fine, fine_shape))
    nib.save(nib.Nifti1Image(tissue, fine), folder / "tissue.nii.gz")
    labels = ends(world_grid(fine, fine_shape))
    nib.save(nib.Nifti1Image(labels, fine), folder / "labels.nii.gz")
    dwi = PreparedDwi(
        image=str(folder / "dwi.nii.gz"),
        bval=str(folder / "dwi.bval"),
        bvec=str(folder / "dwi.bvec"),
        mask=str(folder / "mask.nii.gz"),
        b0=str(folder / "b0.nii.gz"),
    )
    tissue_file = str(folder / "tissue.nii.gz") if act else None
    return SmallPhantom(dwi, PlacedAnatomy(str(folder / "labels.nii.gz"), tissue_file), affine)


def ends(points) -> NDArray:
    """Return the region at each point: 1-2 x bundle, 3-4 y bundle, 5-6 the bent one, 0 none."""
    x, y, z = np.moveaxis(points, -1, 0)
    near, wide = END - 3, RADIUS + 3
    out = np.zeros(x.shape, np.int16)
    for label, along, across, height in (
        (1, -x, y, z),
        (2, x, y, z),
        (3, -y, x, z),
        (4, y, x, z),
        (5, -y, x - (BEND[0] - BEND_RADIUS), z - 13),
        (6, x, y - (BEND[1] + BEND_RADIUS), z - 13),
    ):
        out[(along > near) & (np.hypot(across, height) < wide)] = label
    return out


def end_labels(streamlines) -> NDArray:
    """Return the regions at the two ends of each streamline, (n, 2)."""
    return ends(np.array([[s[0], s[-1]] for s in streamlines]).reshape(-1, 2, 3))


#: Pairs of regions that bundles join.
TRUE_PAIRS = {(1, 2), (3, 4), (5, 6)}


def share_of_true(streamlines) -> tuple[float, float]:
    """Return the share of streamlines with both ends in regions, and of true ones among these."""
    pairs = np.sort(end_labels(streamlines), axis=1)
    whole = pairs[(pairs > 0).all(1)]
    true = sum(tuple(p) in TRUE_PAIRS for p in whole)
    return len(whole) / max(1, len(pairs)), true / max(1, len(whole))

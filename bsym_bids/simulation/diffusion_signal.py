"""Diffusion-weighted signals: gradient tables, compartments, head motion and noise.

Each voxel is a mixture. A fibre population is a stick and a zeppelin (intra- and extra-axonal
water; Behrens et al. 2003, doi:10.1002/mrm.10609; Panagiotaki et al. 2012,
doi:10.1016/j.neuroimage.2011.09.081), with the perpendicular diffusivity that the tortuosity of
densely packed sticks gives (Szafer et al. 1995, doi:10.1002/mrm.1910330516). Grey matter and CSF
are isotropic. White matter that no bundle passes holds the same two compartments, dispersed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, special

from bsym_bids.simulation.diffusion_anatomy import rotation_matrix

#: Diffusivities in mm2/s, volume fraction of the stick, and signals without weighting relative to
#: white matter (those of a T2 weighting at an echo time of about 90 ms and 3 T).
PARALLEL = 1.7e-3
GREY = 0.85e-3
CSF = 3.0e-3
INTRA_AXONAL = 0.6
PERPENDICULAR = PARALLEL * (1 - INTRA_AXONAL)
B0_GREY = 1.25
B0_CSF = 2.6


@dataclass(frozen=True)
class Background:
    """What white matter is where no bundle fills it.

    Attributes
    ----------
    aligned : float
        Share of fibres along the main direction.
    dispersed : float
        Share of fibres that point everywhere. The rest is isotropic, as grey matter is.
    """

    aligned: float
    dispersed: float


@dataclass(frozen=True)
class GradientTable:
    """Gradients.

    Attributes
    ----------
    bvals : ndarray, shape (V,)
        In s/mm2.
    directions : ndarray, shape (V, 3)
        Unit vectors in world coordinates; 0 without weighting.
    """

    bvals: NDArray[np.float64]
    directions: NDArray[np.float64]


def gradient_table(shells: Sequence[tuple[float, int]], rng: np.random.Generator) -> GradientTable:
    """Return evenly spread gradients in mixed order, the first without weighting.

    The directions of each shell repel each other and each other's opposites as charges do (Jones et
    al. 1999, doi:10.1002/(SICI)1522-2594(199909)42:3<515::AID-MRM14>3.0.CO;2-Q); they are turned at
    random, and have random signs, so that a whole sphere is covered as the correction of eddy
    currents wants it.

    Parameters
    ----------
    shells : sequence of (b-value, number of volumes)
        One of them with b = 0.
    rng : Generator
        Source of turns, signs and order.

    Returns
    -------
    GradientTable
    """
    weighted = [(b, n) for b, n in shells if b > 0]
    n_unweighted = sum(n for b, n in shells if b == 0)
    parts = [_repelled(n, rng) for _, n in weighted]
    bvals = np.concatenate([np.full(n, float(b)) for b, n in weighted])
    directions = np.concatenate(parts)
    order = rng.permutation(len(bvals))
    bvals, directions = bvals[order], directions[order]
    places = np.linspace(0, len(bvals), n_unweighted, endpoint=False).astype(int)
    return GradientTable(
        np.insert(bvals, places, 0.0), np.insert(directions, places, np.zeros(3), axis=0)
    )


def _repelled(n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return directions that are as far apart as they get, starting from a Fibonacci lattice."""
    z = (np.arange(n) + 0.5) / n
    turn = np.pi * (3 - np.sqrt(5)) * np.arange(n)
    radius = np.sqrt(1 - z**2)
    points = np.column_stack([radius * np.cos(turn), radius * np.sin(turn), z])
    for step in np.geomspace(0.5, 0.02, 300):
        others = np.concatenate([points, -points])
        apart = points[:, None] - others
        distance = np.sqrt((apart**2).sum(axis=2))
        distance[distance < 1e-9] = np.inf  # itself
        force = (apart / distance[..., None] ** 3).sum(axis=1)
        force -= points * (force * points).sum(axis=1, keepdims=True)
        points = points + step / n * force / np.sqrt((force**2).sum(axis=1)).max()
        points /= np.sqrt((points**2).sum(axis=1, keepdims=True))
    turned = np.einsum("ni,ji->nj", points, rotation_matrix(tuple(rng.uniform(0, 360, 3))))
    return turned * rng.choice([-1.0, 1.0], n)[:, None]


def fsl_bvecs(directions: NDArray[np.float64], affine: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return gradients as FSL has them: along the axes of the image, x as if it were stored -x.

    FSL's rule: components are along the voxel axes, and x is negated where the determinant of the
    affine is positive ("neurological" storage).

    Parameters
    ----------
    directions : ndarray, shape (V, 3)
        Unit vectors in world coordinates (RAS+).
    affine : ndarray, shape (4, 4)
        From voxels to world.

    Returns
    -------
    ndarray, shape (V, 3)
    """
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    bvecs = np.einsum("vi,ij->vj", directions, axes)
    if np.linalg.det(affine[:3, :3]) > 0:
        bvecs[:, 0] *= -1
    return bvecs + 0.0  # no negative zeros


def fibre_signal(bvals: NDArray[np.floating], cosine: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the signal of fibres of one direction.

    Panagiotaki et al. 2012: ``f exp(-b d c^2) + (1 - f) exp(-b (d_perp + (d - d_perp) c^2))``.

    Parameters
    ----------
    bvals : ndarray
        In s/mm2.
    cosine : ndarray
        Of the angle between gradient and fibres; broadcasts with ``bvals``.

    Returns
    -------
    ndarray
        Relative to no weighting.
    """
    squared = cosine * cosine
    stick = np.exp(-bvals * PARALLEL * squared)
    zeppelin = np.exp(-bvals * (PERPENDICULAR + (PARALLEL - PERPENDICULAR) * squared))
    return INTRA_AXONAL * stick + (1 - INTRA_AXONAL) * zeppelin


def dispersed_signal(bvals: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the signal of fibres that point everywhere: `fibre_signal`, averaged over the sphere.

    The integral of ``exp(-k c^2)`` over c from 0 to 1 is ``sqrt(pi / 4k) erf(sqrt(k))``.
    """

    def mean_over_sphere(k: NDArray[np.floating]) -> NDArray[np.floating]:
        k = np.maximum(k, 1e-9)
        return np.sqrt(np.pi / (4 * k)) * special.erf(np.sqrt(k))

    stick = mean_over_sphere(bvals * PARALLEL)
    zeppelin = np.exp(-bvals * PERPENDICULAR) * mean_over_sphere(bvals * (PARALLEL - PERPENDICULAR))
    return INTRA_AXONAL * stick + (1 - INTRA_AXONAL) * zeppelin


@dataclass(frozen=True)
class Mixture:
    """What the voxels of a brain are made of; directions in the world of the head at rest.

    Attributes
    ----------
    fractions : ndarray of float32, shape (n, 3)
        Of the fibre populations.
    directions : ndarray of float32, shape (n, 3, 3)
        Of the fibre populations (voxel, population, axis).
    background : ndarray of float32, shape (n,)
        Share of white matter without bundles.
    main : ndarray of float32, shape (n, 3)
        Its main direction.
    grey, csf : ndarray of float32, shape (n,)
        Shares. All shares of a voxel sum to 1 or less.
    """

    fractions: NDArray[np.float32]
    directions: NDArray[np.float32]
    background: NDArray[np.float32]
    main: NDArray[np.float32]
    grey: NDArray[np.float32]
    csf: NDArray[np.float32]

    def signal(
        self, bval: float, gradient: NDArray[np.float64], rest: Background
    ) -> NDArray[np.float32]:
        """Return the signal of each voxel in one volume; white matter without weighting is 1."""
        b = np.float32(bval)
        total = B0_GREY * self.grey * np.exp(-b * np.float32(GREY))
        total += B0_CSF * self.csf * np.exp(-b * np.float32(CSF))
        main = fibre_signal(b, _along(self.main, gradient))
        spread = np.float32(dispersed_signal(np.array(float(bval))))
        isotropic = np.float32((1 - rest.aligned - rest.dispersed) * np.exp(-bval * GREY))
        total += self.background * (rest.aligned * main + rest.dispersed * spread + isotropic)
        for k in range(self.fractions.shape[1]):
            total += self.fractions[:, k] * fibre_signal(b, _along(self.directions[:, k], gradient))
        return total.astype(np.float32)


def _along(directions: NDArray[np.float32], gradient: NDArray[np.float64]) -> NDArray[np.float32]:
    g = gradient.astype(np.float32)
    return directions[:, 0] * g[0] + directions[:, 1] * g[1] + directions[:, 2] * g[2]


def head_motion(n_volumes: int, strength: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the pose of the head in each volume.

    A random walk and, as in people, now and then a sudden move to a new place.

    Parameters
    ----------
    n_volumes : int
        Volumes.
    strength : float
        Largest displacement in mm and largest rotation in degrees; 0 for none.
    rng : Generator
        Source of the draw.

    Returns
    -------
    ndarray, shape (V, 6)
        Translations in mm and rotations in degrees about x, y and z; 0 in the first volume.
    """
    steps = 0.3 * rng.standard_normal((n_volumes, 6))
    steps += (rng.random((n_volumes, 1)) < 0.08) * rng.standard_normal((n_volumes, 6))
    walk = np.cumsum(steps, axis=0) - steps[0]
    return strength * walk / max(np.abs(walk).max(), 1e-9)


def pose_matrix(pose: NDArray[np.float64], centre: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a pose of `head_motion` as the transform of the head from its first place; (4, 4)."""
    matrix = np.eye(4)
    matrix[:3, :3] = rotation_matrix(tuple(pose[3:]))
    matrix[:3, 3] = centre - matrix[:3, :3] @ centre + pose[:3]
    return matrix


def scan(
    mixture: Mixture,
    inside: NDArray[np.bool_],
    outside: NDArray[np.float32],
    affine: NDArray[np.float64],
    table: GradientTable,
    motion: NDArray[np.float64],
    rest: Background,
) -> NDArray[np.float32]:
    """Return the series without noise.

    In each volume the head is where its pose puts it: gradients are turned into the head's frame,
    and the image that results is resampled (cubic spline) to where it is seen.

    Parameters
    ----------
    mixture : Mixture
        Voxels of the brain.
    inside : ndarray of bool, shape (X, Y, Z)
        Where they are.
    outside : ndarray of float32, shape (X, Y, Z)
        Signal around the brain, with the same decay as grey matter.
    affine : ndarray, shape (4, 4)
        From voxels to world.
    table : GradientTable
        Gradients in world coordinates.
    motion : ndarray, shape (V, 6)
        From `head_motion`.
    rest : Background
        White matter without bundles.

    Returns
    -------
    ndarray of float32, shape (X, Y, Z, V)
    """
    centre = affine[:3, :3] @ ((np.array(inside.shape) - 1) / 2) + affine[:3, 3]
    series = np.empty((*inside.shape, len(table.bvals)), dtype=np.float32, order="F")
    for v, (bval, gradient) in enumerate(zip(table.bvals, table.directions, strict=True)):
        pose = pose_matrix(motion[v], centre)
        image = outside * np.float32(np.exp(-bval * GREY))
        image[inside] = mixture.signal(bval, pose[:3, :3].T @ gradient, rest)
        if motion[v].any():
            seen = np.linalg.inv(affine) @ np.linalg.inv(pose) @ affine
            image = ndimage.affine_transform(image, seen[:3, :3], seen[:3, 3], order=3)
        series[..., v] = np.maximum(image, 0)
    return series


def add_rician_noise(series: NDArray[np.float32], snr: float, rng: np.random.Generator) -> None:
    """Add noise to a series in place: the magnitude of a signal with Gaussian noise in both parts.

    Gudbjartsson & Patz 1995, doi:10.1002/mrm.1910340618.

    Parameters
    ----------
    series : ndarray of float32, shape (X, Y, Z, V)
        Without noise; white matter without weighting is about 1.
    snr : float
        1 over the standard deviation of the noise.
    rng : Generator
        Source of the noise.
    """
    for v in range(series.shape[-1]):
        noise = rng.standard_normal((2, *series.shape[:3]), dtype=np.float32) / np.float32(snr)
        series[..., v] = np.hypot(series[..., v] + noise[0], noise[1])

"""Head motion and eddy currents: every volume is registered to what it should look like.

Volumes without diffusion weighting are registered to the first of them (rigid, mutual
information). The mean of a shell is registered to their mean, and every weighted volume to the
mean of its shell (affine: eddy currents scale and shear). Then each is registered once more, to a
prediction of it from all others of its shell, which has its own contrast instead of the mean's.
The transforms of a volume become one, and so each volume is interpolated once.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from bsym_bids.dwi.gradients import Gradients, Shell, rotated, world_directions
from bsym_bids.dwi.series import create_series, mean_volume, read_volumes, write_volume
from bsym_bids.dwi.transforms import FLIP, from_itk, on_one_thread, to_itk
from bsym_bids.pool import Workers

#: mm; voxels of the grid on which volumes are compared.
COMPARED_MM = 3.5
#: mm; standard deviation of the smoothing before comparing.
SMOOTHED_MM = 1.5
#: mm; radius of the sphere on which rotations become displacements (Power et al. 2012).
HEAD_RADIUS = 50.0
#: Volumes of a shell from which on each is predicted from the others.
FEWEST_TO_PREDICT = 12
# Angular range (radians) and noise of the covariance of signals; see `leave_one_out`.
_RANGE = 1.2
_NOISE = 0.2
_BINS = 32


@dataclass(frozen=True)
class Motion:
    """How the head moved.

    Attributes
    ----------
    transforms : ndarray, shape (V, 4, 4)
        From the common space to each volume, world coordinates (RAS+, mm).
    centre : ndarray, shape (3,)
        Centre of the brain, mm.
    """

    transforms: NDArray[np.float64]
    centre: NDArray[np.float64]

    @property
    def rotations(self) -> NDArray[np.float64]:
        """Rotation of the head from each volume to the common space, shape (V, 3, 3)."""
        return np.array([nearest_rotation(t[:3, :3]).T for t in self.transforms])

    @property
    def displacements(self) -> NDArray[np.float64]:
        """How far the centre of the brain lies from its place, mm, shape (V,)."""
        return np.linalg.norm(self._shifts, axis=1)

    @property
    def angles(self) -> NDArray[np.float64]:
        """How far the head is turned, degrees, shape (V,)."""
        return np.degrees(Rotation.from_matrix(self.rotations).magnitude())

    @property
    def framewise_displacement(self) -> NDArray[np.float64]:
        """Displacement from the volume before, mm, shape (V - 1,).

        Sum of absolute translations and rotations on a sphere of 50 mm (Power et al. 2012,
        doi:10.1016/j.neuroimage.2011.10.018).
        """
        turns = Rotation.from_matrix(self.rotations).as_rotvec() * HEAD_RADIUS
        both = np.hstack([self._shifts, turns])
        return np.abs(np.diff(both, axis=0)).sum(axis=1)

    @property
    def _shifts(self) -> NDArray[np.float64]:
        return self.transforms[:, :3, :3] @ self.centre + self.transforms[:, :3, 3] - self.centre

    def details(self) -> dict[str, float]:
        """Return the numbers for the sidecar."""
        steps = self.framewise_displacement
        return {
            "MeanTranslationMm": round(float(self.displacements.mean()), 3),
            "MaxTranslationMm": round(float(self.displacements.max()), 3),
            "MeanRotationDegrees": round(float(self.angles.mean()), 3),
            "MaxRotationDegrees": round(float(self.angles.max()), 3),
            "MeanFramewiseDisplacementMm": round(float(steps.mean()) if len(steps) else 0.0, 3),
        }


@dataclass(frozen=True)
class Grid:
    """Where the voxels of an image are.

    Attributes
    ----------
    shape : tuple of int
        Voxels along x, y, z.
    affine : ndarray, shape (4, 4)
        From voxels to world.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]

    def coarser(self, mm: float) -> Grid:
        """Return a grid of the same extent with voxels of about ``mm``, never finer ones."""
        sizes = np.linalg.norm(self.affine[:3, :3], axis=0)
        shape = np.maximum(np.ceil(sizes * self.shape / np.maximum(mm, sizes)), 1).astype(int)
        factors = np.array(self.shape) / shape
        affine = self.affine.copy()
        affine[:3, :3] *= factors
        affine[:3, 3] += self.affine[:3, :3] @ ((factors - 1) / 2)
        return Grid(tuple(shape.tolist()), affine)


def correct_motion(
    image: Path,
    affine: NDArray[np.float64],
    gradients: Gradients,
    mask: NDArray[np.bool_],
    out: Path,
    pool: Workers,
) -> tuple[Motion, Gradients]:
    """Bring all volumes to the place of the first volume without weighting.

    Parameters
    ----------
    image : Path
        Series of the work folder (X, Y, Z, V).
    affine : ndarray, shape (4, 4)
        Of the series.
    gradients : Gradients
        Of the series.
    mask : ndarray of bool, shape (X, Y, Z)
        Brain in the first volume without weighting.
    out : Path
        Where the corrected series goes. Intensities are not modulated with the change of volume.
    pool : Workers
        Where volumes are registered.

    Returns
    -------
    Motion
    Gradients
        Rotated with the head.
    """
    data = read_volumes(image)
    grid = Grid(data.shape[:3], affine)
    compared = grid.coarser(COMPARED_MM)
    region = _region(mask, grid, compared)
    transforms = np.repeat(np.eye(4)[None], len(gradients), axis=0)
    b0s = np.flatnonzero(gradients.is_b0)
    task = _Task(image, grid, compared, region)
    _register_b0s(task, data, b0s, transforms, pool)
    mean_b0 = _mean_at(task, b0s, transforms[b0s], pool)
    for shell in gradients.shells:
        _register_shell(task, data, gradients, shell, mean_b0, transforms, pool)
    _resample_all(image, grid, transforms, out, pool)
    centre = affine[:3, :3] @ np.argwhere(mask).mean(axis=0) + affine[:3, 3]
    motion = Motion(transforms, centre)
    return motion, rotated(gradients, motion.rotations, affine)


@dataclass(frozen=True)
class _Task:
    """What registering any volume of a series takes."""

    image: Path
    grid: Grid
    compared: Grid
    region: NDArray[np.float32]


def _region(mask: NDArray[np.bool_], grid: Grid, compared: Grid) -> NDArray[np.float32]:
    """Return the brain and what is around it on the grid of comparison."""
    near = sitk.BinaryDilate(to_itk(mask.astype(np.float32), grid.affine) > 0.5, [3, 3, 2])
    return _resample(sitk.Cast(near, sitk.sitkFloat32), compared, np.eye(4), sitk.sitkLinear)


def _register_b0s(
    task: _Task,
    data: NDArray[np.float32],
    b0s: NDArray[np.intp],
    transforms: NDArray[np.float64],
    pool: Workers,
) -> None:
    first = _on_grid(np.asarray(data[..., b0s[0]]), task, np.eye(4))
    later = b0s[1:]
    arguments = (repeat(task), later.tolist(), repeat(first), repeat(np.eye(4)), repeat("rigid"))
    for index, found in zip(later, pool.map(_register_volume, *arguments), strict=True):
        transforms[index] = found


def _mean_at(
    task: _Task, volumes: NDArray[np.intp], transforms: NDArray[np.float64], pool: Workers
) -> NDArray[np.float32]:
    """Return the mean of some volumes in the common space, on the grid of comparison."""
    total = np.zeros(task.compared.shape, dtype=np.float64)
    for volume in pool.map(_volume_on_grid, repeat(task), volumes.tolist(), transforms):
        total += volume
    return (total / len(volumes)).astype(np.float32)


def _register_shell(
    task: _Task,
    data: NDArray[np.float32],
    gradients: Gradients,
    shell: Shell,
    mean_b0: NDArray[np.float32],
    transforms: NDArray[np.float64],
    pool: Workers,
) -> None:
    """Register the volumes of one shell, in place in ``transforms``."""
    mean = mean_volume(data, shell.volumes)
    whole = pool.call(_register_array, task, mean, mean_b0, np.eye(4), "rigid")
    target = _on_grid(mean, task, whole)
    volumes = shell.volumes.tolist()
    arguments = (repeat(task), volumes, repeat(target), repeat(whole), repeat("affine"))
    transforms[shell.volumes] = list(pool.map(_register_volume, *arguments))
    if len(volumes) < FEWEST_TO_PREDICT:
        return
    found = transforms[shell.volumes]
    placed = np.array(list(pool.map(_volume_on_grid, repeat(task), volumes, found)))
    turned = rotated(
        gradients.take(shell.volumes),
        np.array([nearest_rotation(t[:3, :3]).T for t in found]),
        task.grid.affine,
    )
    weights = leave_one_out(world_directions(turned, task.grid.affine))
    # einsum instead of a product of matrices: its order of summation is fixed.
    predicted = (np.einsum("v,vxyz->xyz", row.astype(np.float32), placed) for row in weights)
    arguments = (repeat(task), volumes, predicted, found)
    transforms[shell.volumes] = list(pool.map(_refine_volume, *arguments))


def leave_one_out(directions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how each volume of a shell is predicted from the others.

    The signals of a voxel are a mean plus a Gaussian process over the sphere, whose spherical
    covariance falls with the angle (Andersson and Sotiropoulos 2015,
    doi:10.1016/j.neuroimage.2015.07.067). Leaving a volume out of its own prediction keeps it
    from being registered to itself.

    Parameters
    ----------
    directions : ndarray, shape (N, 3)
        Unit vectors.

    Returns
    -------
    ndarray, shape (N, N)
        Row i holds the weights of the volumes in the prediction of volume i; they sum to one.
    """
    angles = np.arccos(np.clip(np.abs(directions @ directions.T), 0, 1)) / _RANGE
    covariance = np.where(angles < 1, 1 - 1.5 * angles + 0.5 * angles**3, 0)
    count = len(directions)
    weights = np.zeros((count, count))
    for index in range(count):
        others = np.delete(np.arange(count), index)
        among = covariance[np.ix_(others, others)] + _NOISE * np.eye(count - 1)
        towards = np.linalg.solve(among, covariance[others, index])
        level = (1 - towards.sum()) / (count - 1)
        weights[index, others] = towards + level
    return weights


def _register_volume(
    task: _Task, index: int, target: NDArray[np.float32], start: NDArray[np.float64], kind: str
) -> NDArray[np.float64]:
    volume = np.asarray(read_volumes(task.image)[..., index])
    return _register_array(task, volume, target, start, kind)


def _refine_volume(
    task: _Task, index: int, target: NDArray[np.float32], start: NDArray[np.float64]
) -> NDArray[np.float64]:
    volume = np.asarray(read_volumes(task.image)[..., index])
    return _register_array(task, volume, target, start, "affine", refine=True)


def _register_array(
    task: _Task,
    volume: NDArray[np.float32],
    target: NDArray[np.float32],
    start: NDArray[np.float64],
    kind: str,
    *,
    refine: bool = False,
) -> NDArray[np.float64]:
    return register(
        to_itk(target, task.compared.affine),
        smoothed(to_itk(volume, task.grid.affine)),
        to_itk(task.region, task.compared.affine) > 0.5,
        start,
        kind,
        refine=refine,
    )


def _volume_on_grid(task: _Task, index: int, transform: NDArray[np.float64]) -> NDArray[np.float32]:
    return _on_grid(np.asarray(read_volumes(task.image)[..., index]), task, transform)


def _on_grid(
    volume: NDArray[np.float32], task: _Task, transform: NDArray[np.float64]
) -> NDArray[np.float32]:
    image = smoothed(to_itk(volume, task.grid.affine))
    return _resample(image, task.compared, transform, sitk.sitkLinear)


def _resample_all(
    image: Path, grid: Grid, transforms: NDArray[np.float64], out: Path, pool: Workers
) -> None:
    """Write every volume in the common space."""
    create_series(out, (*grid.shape, len(transforms)), grid.affine)
    arguments = (repeat(image), range(len(transforms)), repeat(grid), transforms, repeat(out))
    for _ in pool.map(_resample_volume, *arguments):
        pass


def _resample_volume(
    image: Path, index: int, grid: Grid, transform: NDArray[np.float64], out: Path
) -> None:
    """Write one volume in the common space, by cubic B-splines within the range of its values."""
    volume = np.asarray(read_volumes(image)[..., index])
    if not np.array_equal(transform, np.eye(4)):
        low, high = volume.min(), volume.max()
        moving = to_itk(volume, grid.affine)
        volume = np.clip(_resample(moving, grid, transform, sitk.sitkBSpline), low, high)
    write_volume(out, index, volume)


@on_one_thread()
def register(
    fixed: sitk.Image,
    moving: sitk.Image,
    region: sitk.Image,
    start: NDArray[np.float64],
    kind: str,
    *,
    refine: bool = False,
) -> NDArray[np.float64]:
    """Register one image to another by mutual information.

    Mattes et al. (2003), doi:10.1109/TMI.2003.809072. All voxels of the region are used, so that
    nothing is random.

    Parameters
    ----------
    fixed, moving : SimpleITK.Image
        Images; both smooth enough for the grid of ``fixed``.
    region : SimpleITK.Image
        Binary, on the grid of ``fixed``: where they are compared.
    start : ndarray, shape (4, 4)
        First guess, as what is returned.
    kind : str
        ``rigid`` or ``affine``.
    refine : bool
        Whether ``start`` is nearly right.

    Returns
    -------
    ndarray, shape (4, 4)
        From the world of ``fixed`` to that of ``moving`` (RAS+).
    """
    transform = _start_transform(kind, start, _centre(region))
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(_BINS)
    method.SetMetricFixedMask(region)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=0.1 if refine else 0.5,
        minStep=0.002 if refine else 0.005,
        numberOfIterations=60,
        relaxationFactor=0.6,
        gradientMagnitudeTolerance=1e-8,
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([1] if refine else [2, 1])
    method.SetSmoothingSigmasPerLevel([0] if refine else [COMPARED_MM, 0])
    method.SetInitialTransform(transform, inPlace=True)
    method.Execute(fixed, moving)
    return _matrix(transform)


def _centre(region: sitk.Image) -> NDArray[np.float64]:
    """Return the centre of a binary image in ITK's world."""
    voxels = np.argwhere(sitk.GetArrayViewFromImage(region) > 0)[:, ::-1]
    return np.array(region.TransformContinuousIndexToPhysicalPoint(voxels.mean(axis=0).tolist()))


def _start_transform(
    kind: str, start: NDArray[np.float64], centre: NDArray[np.float64]
) -> sitk.Transform:
    matrix = FLIP @ start @ FLIP
    if kind == "rigid":
        transform = sitk.Euler3DTransform()
        matrix = matrix.copy()
        matrix[:3, :3] = nearest_rotation(matrix[:3, :3])
    else:
        transform = sitk.AffineTransform(3)
    transform.SetCenter(centre.tolist())
    transform.SetMatrix(matrix[:3, :3].ravel().tolist(), *([1e-6] if kind == "rigid" else []))
    shift = matrix[:3, 3] - centre + matrix[:3, :3] @ centre
    transform.SetTranslation(shift.tolist())
    return transform


def _matrix(transform: sitk.Transform) -> NDArray[np.float64]:
    """Return a linear transform as a matrix in NIfTI's world."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(transform.GetMatrix()).reshape(3, 3)
    centre = np.array(transform.GetCenter())
    matrix[:3, 3] = np.array(transform.GetTranslation()) + centre - matrix[:3, :3] @ centre
    return FLIP @ matrix @ FLIP


def smoothed(image: sitk.Image) -> sitk.Image:
    """Smooth an image as far as the grid of comparison asks for."""
    return sitk.SmoothingRecursiveGaussian(image, SMOOTHED_MM)


def _resample(
    image: sitk.Image, grid: Grid, transform: NDArray[np.float64], interpolator: int
) -> NDArray[np.float32]:
    reference = to_itk(np.broadcast_to(np.float32(0), grid.shape), grid.affine)
    linear = _start_transform("affine", transform, np.zeros(3))
    return from_itk(sitk.Resample(image, reference, linear, interpolator, 0.0))


def nearest_rotation(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rotation nearest to a 3 x 3 matrix (its polar decomposition)."""
    left, _, right = np.linalg.svd(matrix)
    return left @ np.diag([1, 1, np.linalg.det(left @ right)]) @ right

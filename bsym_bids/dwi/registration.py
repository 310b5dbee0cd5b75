"""Registration of two images: linear by mutual information, nonlinear by cross-correlation.

Both run on isotropic grids along the axes of the world, on one thread: with more, sums are taken
in an order that changes the last digits, and an optimiser makes other steps of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation

from bsym_bids.dwi.template import template_mask, template_t1w
from bsym_bids.dwi.transforms import (
    FLIP,
    Affine,
    Displacement,
    Volume,
    coarsened,
    isotropic_box,
    matrix_from_itk,
    on_one_thread,
    resample,
    to_itk,
)
from bsym_bids.errors import BadDataError

#: Bins of the joint histogram (Mattes et al. 2003, doi:10.1109/TMI.2003.809072).
BINS = 32
#: Iterations of SyN from coarse to fine.
SYN_ITERATIONS = (60, 60, 30)
#: Edge of the voxels that are registered, in mm.
STEP = 2.0
#: How far beyond the brain the fit is measured, in mm: its outline is what both images share.
AROUND = 6.0
#: Heads are tilted this much (degrees) when registration starts.
TILTS = (-25.0, 0.0, 25.0)
_MARGIN = 12.0
_LEVELS = (4, 2, 1)  # shrinking, with smoothing in voxels of half as much
_ITERATIONS = 200


@dataclass(frozen=True)
class LinearFit:
    """How two images fit after linear registration.

    Attributes
    ----------
    matrix : ndarray, shape (4, 4)
        From points of the fixed image to points of the moving one, RAS+ mm.
    information : float
        Mutual information (nats) that was reached; greater is better.
    """

    matrix: NDArray[np.float64]
    information: float


def _method(fixed_mask: Volume | None) -> sitk.ImageRegistrationMethod:
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(BINS)
    method.SetMetricSamplingStrategy(method.NONE)
    method.SetInterpolator(sitk.sitkLinear)
    if fixed_mask is not None:
        method.SetMetricFixedMask(to_itk(fixed_mask.data, fixed_mask.affine))
    return method


def _as_transform(matrix: NDArray[np.float64], centre: NDArray[np.float64], rigid: bool) -> object:
    """Return a matrix in RAS+ mm as a transform of ITK about a centre."""
    lps = FLIP @ matrix @ FLIP
    transform = sitk.Euler3DTransform() if rigid else sitk.AffineTransform(3)
    transform.SetCenter(tuple(FLIP[:3, :3] @ centre))
    rotation = lps[:3, :3]
    if rigid:
        left, _, right = np.linalg.svd(rotation)
        rotation = left @ right
    transform.SetMatrix(tuple(rotation.ravel()))
    # ITK: T(x) = A (x - c) + c + t.
    centre_lps = FLIP[:3, :3] @ centre
    transform.SetTranslation(tuple(lps[:3, 3] - centre_lps + rotation @ centre_lps))
    return transform


@on_one_thread()
def information(
    fixed: Volume,
    moving: Volume,
    matrix: NDArray[np.float64] | None = None,
    mask: Volume | None = None,
) -> float:
    """Return the mutual information (nats, Mattes) of two images under a linear map."""
    method = _method(mask)
    matrix = np.eye(4) if matrix is None else matrix
    method.SetInitialTransform(_as_transform(matrix, np.zeros(3), rigid=False))
    return -method.MetricEvaluate(
        to_itk(fixed.data, fixed.affine), to_itk(moving.data, moving.affine)
    )


@on_one_thread()
def register_linear(
    fixed: Volume,
    moving: Volume,
    starts: Sequence[NDArray[np.float64]],
    *,
    rigid: bool,
    mask: Volume | None = None,
) -> LinearFit:
    """Register two images of one head linearly (Mattes mutual information, three resolutions).

    Every start is followed at the coarsest resolution, and the best one to the end.

    Parameters
    ----------
    fixed, moving : Volume
        On isotropic grids of about 2 mm.
    starts : sequence of ndarray, shape (4, 4)
        First guesses, from fixed to moving in RAS+ mm.
    rigid : bool
        Six parameters; otherwise twelve, after six.
    mask : Volume, optional
        Where in the fixed image the fit is measured.

    Returns
    -------
    LinearFit

    Raises
    ------
    BadDataError
        The images do not meet under any start.
    """
    images = to_itk(fixed.data, fixed.affine), to_itk(moving.data, moving.affine)
    centre = _centre_of(fixed, mask)
    tried = []
    for start in starts:
        try:
            tried.append(_descend(images, start, centre, mask, rigid=True, levels=_LEVELS[:1]))
        except RuntimeError:  # too few samples: the start puts one image beside the other
            continue
    if not tried:
        raise BadDataError(
            "two images could not be registered: they do not overlap",
            "check that both show the whole brain of the same participant",
        )
    best = max(tried, key=lambda fit: fit.information)
    try:
        if rigid:
            return _descend(images, best.matrix, centre, mask, rigid=True, levels=_LEVELS[1:])
        best = _descend(images, best.matrix, centre, mask, rigid=True, levels=_LEVELS[1:2])
        return _descend(images, best.matrix, centre, mask, rigid=False, levels=_LEVELS)
    except RuntimeError as error:
        raise BadDataError(
            f"two images could not be registered: {str(error).strip().splitlines()[-1]}",
            "check that both show the whole brain of the same participant",
        ) from error


def _centre_of(volume: Volume, mask: Volume | None) -> NDArray[np.float64]:
    chosen = volume if mask is None else mask
    return centroid(Volume(chosen.data > 0, chosen.affine))


def centroid(mask: Volume) -> NDArray[np.float64]:
    """Return the centre of a mask in the world, shape (3,)."""
    index = np.array([axis.mean() for axis in np.nonzero(mask.data)])
    return mask.affine[:3, :3] @ index + mask.affine[:3, 3]


def _descend(
    images: tuple[sitk.Image, sitk.Image],
    start: NDArray[np.float64],
    centre: NDArray[np.float64],
    mask: Volume | None,
    *,
    rigid: bool,
    levels: Sequence[int],
) -> LinearFit:
    method = _method(mask)
    transform = _as_transform(start, centre, rigid)
    method.SetInitialTransform(transform, inPlace=True)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=2.0,
        minStep=1e-3,
        numberOfIterations=_ITERATIONS,
        gradientMagnitudeTolerance=1e-6,
        relaxationFactor=0.6,
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(list(levels))
    method.SetSmoothingSigmasPerLevel([level / 2 if level > 1 else 0 for level in levels])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
    method.Execute(*images)
    return LinearFit(matrix_from_itk(transform), -method.GetMetricValue())


def rotations(angles: Sequence[float]) -> list[NDArray[np.float64]]:
    """Return rotations about the left-right axis by angles in degrees, shape (3, 3) each."""
    turns = []
    for angle in angles:
        sine, cosine = math.sin(math.radians(angle)), math.cos(math.radians(angle))
        turns.append(np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]]))
    return turns


def starts_between(
    fixed: NDArray[np.float64], moving: NDArray[np.float64], angles: Sequence[float]
) -> list[NDArray[np.float64]]:
    """Return first guesses that lay one centre onto another, nodded by several angles.

    Parameters
    ----------
    fixed, moving : ndarray, shape (3,)
        Centres of the two images in mm.
    angles : sequence of float
        About the left-right axis, in degrees: heads differ in how they are tilted the most.
    """
    starts = []
    for turn in rotations(angles):
        start = np.eye(4)
        start[:3, :3], start[:3, 3] = turn, moving - turn @ fixed
        starts.append(start)
    return starts


def register_nonlinear(
    static: Volume, moving: Volume, iterations: Sequence[int] = SYN_ITERATIONS
) -> Displacement:
    """Register two images on one grid by SyN with local cross-correlation.

    Avants et al. 2008, doi:10.1016/j.media.2007.06.004, as implemented in DIPY. The square of the
    correlation counts, so that inverted contrast does no harm.

    Parameters
    ----------
    static, moving : Volume
        On the same grid, linearly registered, 0 outside of the brain.
    iterations : sequence of int
        At most, from coarse to fine.

    Returns
    -------
    Displacement
        From points of the static image to points of the moving one.
    """
    from dipy.align import VerbosityLevels
    from dipy.align.imwarp import SymmetricDiffeomorphicRegistration
    from dipy.align.metrics import CCMetric

    metric = CCMetric(3, sigma_diff=2.0, radius=4)
    syn = SymmetricDiffeomorphicRegistration(metric, level_iters=list(iterations))
    syn.verbosity = VerbosityLevels.NONE
    mapping = syn.optimize(
        static.data.astype(np.float32),
        moving.data.astype(np.float32),
        static_grid2world=static.affine,
        moving_grid2world=moving.affine,
    )
    # The map that DIPY returns is the inverse of one from moving to static.
    field = mapping.backward if mapping.is_inverse else mapping.forward
    return Displacement(np.array(field, dtype=np.float32), static.affine)


@dataclass(frozen=True)
class Coarse:
    """A brain on an isotropic grid of `STEP` mm.

    Attributes
    ----------
    image : Volume
        0 outside of the brain.
    mask : Volume
        Brain mask, bool.
    """

    image: Volume
    mask: Volume

    @property
    def around(self) -> Volume:
        """The brain and what is within `AROUND` of it."""
        steps = round(AROUND / STEP)
        return Volume(binary_dilation(self.mask.data, iterations=steps), self.mask.affine)


def coarse(image: Volume, mask: Volume) -> Coarse:
    """Bring a brain onto an isotropic grid.

    Parameters
    ----------
    image : Volume
        Any contrast.
    mask : Volume
        Brain mask on the same grid, bool, not empty.
    """
    shape, affine = isotropic_box(mask, mask.data, STEP, _MARGIN)
    brain = Volume(np.where(mask.data, image.data, 0).astype(np.float32), image.affine)
    share = Volume(mask.data.astype(np.float32), mask.affine)
    small = coarsened(brain, shape, affine, STEP)
    inside = coarsened(share, shape, affine, STEP).data > 0.5
    return Coarse(small, Volume(inside, affine))


def coarse_template() -> Coarse:
    """Return the template on the grid that registration runs on."""
    return coarse(template_t1w(), template_mask())


def register_brains(
    fixed: Coarse, moving: Coarse, *, rigid: bool, same_world: bool = False
) -> LinearFit:
    """Register two brains linearly, from several starts.

    Parameters
    ----------
    fixed, moving : Coarse
        The brains.
    rigid : bool
        As in `register_linear`.
    same_world : bool
        Whether the headers may agree, so that one more start is where they say.
    """
    centres = centroid(fixed.mask), centroid(moving.mask)
    starts = starts_between(*centres, TILTS)
    starts += [np.eye(4)] if same_world else []
    return register_linear(fixed.image, moving.image, starts, rigid=rigid, mask=fixed.around)


@dataclass(frozen=True)
class TemplateFit:
    """How a brain was registered to the template.

    Attributes
    ----------
    chain : tuple of Affine and Displacement
        From points of the individual to points of the template.
    information : float
        Mutual information after the affine part, nats.
    folded : float
        Share of the template's brain where the nonlinear part folds.
    """

    chain: tuple[Affine, Displacement]
    information: float
    folded: float


def register_to_template(
    image: Volume, mask: Volume, iterations: Sequence[int] = SYN_ITERATIONS
) -> TemplateFit:
    """Register a brain to the packaged template: affine, then SyN.

    Parameters
    ----------
    image : Volume
        Any contrast in which grey and white matter differ; one like T1w fits best.
    mask : Volume
        Brain mask on the same grid, bool, not empty.
    iterations : sequence of int
        As in `register_nonlinear`.
    """
    template, brain = coarse_template(), coarse(image, mask)
    linear = register_brains(template, brain, rigid=False)
    grid = template.image.data.shape, template.image.affine
    aligned = resample(brain.image, *grid, [Affine(linear.matrix)])
    # What lies far from any brain is neck or eyes that a mask has left, and draws cortex to it.
    aligned.data[~template.around.data] = 0
    field = register_nonlinear(aligned, template.image, iterations)
    folded = float((field.jacobian()[template.mask.data] <= 0).mean())
    chain = (Affine(np.linalg.inv(linear.matrix)), field)
    return TemplateFit(chain, linear.information, folded)

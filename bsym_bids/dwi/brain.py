"""Bias field and brain mask of a T1-weighted head."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes, distance_transform_edt, label

from bsym_bids.dwi.masking import otsu
from bsym_bids.dwi.registration import (
    STEP,
    centroid,
    coarse_template,
    register_linear,
    register_nonlinear,
    starts_between,
)
from bsym_bids.dwi.template import template_mask
from bsym_bids.dwi.transforms import (
    Affine,
    Volume,
    coarsened,
    from_itk,
    isotropic_box,
    on_one_thread,
    resample,
    to_itk,
)
from bsym_bids.errors import BadDataError

#: Edge of the voxels that the bias field is estimated on, in mm.
BIAS_STEP = 4.0
#: ml; brains of children and adults lie between (Bethlehem et al. 2022,
#: doi:10.1038/s41586-022-04554-y).
PLAUSIBLE_BRAIN = (600.0, 2200.0)
# Heads hang down from their vertex: the middle of the brain lies this far below it (mm).
_BELOW_VERTEX = (70.0, 90.0)
_TILTS = (-20.0, 0.0, 20.0)


@on_one_thread()
def bias_corrected(image: Volume, mask: Volume) -> Volume:
    """Divide by a smooth bias field (N4, Tustison et al. 2010, doi:10.1109/TMI.2010.2046908).

    Parameters
    ----------
    image : Volume
        Intensities, 0 or more.
    mask : Volume
        Where the field is estimated; it applies everywhere.
    """
    shape, affine = isotropic_box(mask, mask.data, BIAS_STEP, BIAS_STEP)
    small = coarsened(image, shape, affine, BIAS_STEP)
    inside = coarsened(
        Volume(mask.data.astype(np.float32), mask.affine), shape, affine, BIAS_STEP
    ).data
    known = (inside > 0.5) & (small.data > 0)
    if known.sum() < 100:
        return Volume(image.data.astype(np.float32), image.affine)
    method = sitk.N4BiasFieldCorrectionImageFilter()
    method.SetMaximumNumberOfIterations([50, 50, 30])
    reference = to_itk(small.data, affine)
    method.Execute(reference, to_itk(known, affine))
    log_field = from_itk(method.GetLogBiasFieldAsImage(reference))
    log_field = log_field - log_field[known].mean()
    wide = Volume(np.ascontiguousarray(log_field, dtype=np.float32), affine)
    field = _held(wide, image)
    return Volume((image.data / np.exp(field)).astype(np.float32), image.affine)


def _held(field: Volume, image: Volume) -> NDArray[np.float32]:
    """Return a field on the grid of an image, held at its edges beyond them."""
    last = np.array(field.data.shape) - 1
    inverse = np.linalg.inv(field.affine)

    def into(points: NDArray[np.float64]) -> NDArray[np.float64]:
        index = np.clip(points @ inverse[:3, :3].T + inverse[:3, 3], 0, last)
        return index @ field.affine[:3, :3].T + field.affine[:3, 3]

    return resample(field, image.data.shape, image.affine, [into]).data


def cleaned_mask(mask: Volume, radius: float) -> NDArray[np.bool_]:
    """Return the largest part of a mask without bridges, islands and holes.

    Parameters
    ----------
    mask : Volume
        Bool, not empty.
    radius : float
        Bridges thinner than twice this (mm) are cut; where nothing would be left, none.
    """
    core = distance_transform_edt(mask.data, sampling=mask.zooms) > radius
    if not core.any():
        return mask.data
    core = largest_part(core)
    near = distance_transform_edt(~core, sampling=mask.zooms) <= radius + mask.zooms.max() / 2
    return binary_fill_holes(near & mask.data)


def largest_part(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the largest connected part of a mask that isn't empty."""
    parts, _ = label(mask)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return parts == sizes.argmax()


def looks_extracted(image: Volume) -> bool:
    """Tell whether an image is of a brain without its head: no signal around a plausible brain.

    Of scanned images the air has noise, and with it zeroed, the head is larger than a brain.
    """
    volume = (image.data > 0).sum() * image.voxel_volume / 1000
    zero = (image.data <= 0).mean()
    return bool(zero > 0.3 and PLAUSIBLE_BRAIN[0] <= volume <= PLAUSIBLE_BRAIN[1])


def extract_brain(head: Volume) -> NDArray[np.bool_]:
    """Return a brain mask of a T1-weighted head.

    The template is registered to the head from several heights and tilts, by an affine map; what
    lies within 10 mm of its mask and is as bright as brain is opened by 3 mm, so that scalp,
    marrow and eyes fall off; SyN then brings the template's mask onto the rest.

    Parameters
    ----------
    head : Volume
        Bias-corrected, with scalp and skull.

    Returns
    -------
    ndarray of bool, shape (X, Y, Z)

    Raises
    ------
    BadDataError
        No plausible brain is found.
    """
    small = _coarse_head(head)
    template = coarse_template()
    starts = _starts_in_head(small, centroid(template.mask))
    linear = register_linear(template.image, small, starts, rigid=False, mask=template.mask)
    grid = template.image.data.shape, template.image.affine
    aligned = resample(small, *grid, [Affine(linear.matrix)])
    rough = _bright_as_brain(aligned, template.mask)
    brain = Volume(np.where(rough, aligned.data, 0), aligned.affine)
    field = register_nonlinear(brain, template.image, (60, 40))
    chain = [Affine(np.linalg.inv(linear.matrix)), field]
    whole = template_mask()
    warped = resample(
        Volume(whole.data.astype(np.float32), whole.affine), head.data.shape, head.affine, chain
    )
    mask = (warped.data > 0.5) & (head.data > 0)
    volume = mask.sum() * head.voxel_volume / 1000
    if not PLAUSIBLE_BRAIN[0] <= volume <= PLAUSIBLE_BRAIN[1]:
        raise BadDataError(
            f"a brain of {volume:.0f} ml was found, which is none",
            "give a brain mask: derivatives of fMRIPrep or QSIPrep have one",
        )
    return cleaned_mask(Volume(mask, head.affine), 2.0)


def _coarse_head(head: Volume) -> Volume:
    shape, affine = isotropic_box(head, head.data > 0, STEP, STEP)
    return coarsened(head, shape, affine, STEP)


def _starts_in_head(head: Volume, brain: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Return first guesses from the template's points to the head's."""
    inside = head.data > otsu(head.data.ravel())
    inside = largest_part(inside)
    height = np.flatnonzero(inside.any(axis=(0, 1)))[-1]
    top = inside.copy()
    top[:, :, : max(0, height - int(150 / STEP))] = False  # without neck
    centre = centroid(Volume(top, head.affine))
    vertex = head.affine[2, 2] * height + head.affine[2, 3]
    starts = []
    for below in _BELOW_VERTEX:
        target = np.array([centre[0], centre[1], vertex - below])
        starts += starts_between(brain, target, _TILTS)
    return starts


def _bright_as_brain(aligned: Volume, mask: Volume) -> NDArray[np.bool_]:
    """Return what may be brain near the template's mask, in the template's space."""
    away = distance_transform_edt(~mask.data, sampling=mask.zooms)
    deep = distance_transform_edt(mask.data, sampling=mask.zooms) > 8
    values = aligned.data[deep & (aligned.data > 0)]
    if not len(values):
        raise BadDataError("no brain was found", "give a brain mask, or check the image")
    white = np.percentile(values, 90)
    bright = (aligned.data > 0.35 * white) & (aligned.data < 1.25 * white) & (away <= 10)
    return cleaned_mask(Volume(bright | deep, aligned.affine), 3.0)

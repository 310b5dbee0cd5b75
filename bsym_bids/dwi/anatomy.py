"""Atlas and tissues: first in the space of the T1-weighted image, then in that of the series.

The atlas is interpolated once, by nearest neighbours through all transforms that lie between. What
lies on the grid of the T1-weighted image is brought to the series by another affine alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from bsym_bids import atlas
from bsym_bids.dwi.alignment import (
    LEAST_DICE,
    LEAST_INFORMATION,
    align,
    cortical_fit,
    fit_with_template,
    refuse_mirrored,
    weaknesses,
)
from bsym_bids.dwi.contrast import t1w_like
from bsym_bids.dwi.records import PlacedAnatomy, PreparedAnatomy, PreparedDwi
from bsym_bids.dwi.registration import coarse, register_to_template
from bsym_bids.dwi.t1w import Brain, Told, naming, read_brain
from bsym_bids.dwi.template import SPACE, template_labels
from bsym_bids.dwi.tissue import tissue_volumes
from bsym_bids.dwi.tissue_sources import find_tissue
from bsym_bids.dwi.transforms import (
    Affine,
    Transform,
    Volume,
    isotropic_box,
    load_volume,
    read_template_transform,
    resample,
    save_volume,
)
from bsym_bids.errors import BadDataError
from bsym_bids.inputs.records import Anatomy

#: Edge in mm of the voxels of the atlas where there is no T1-weighted image.
LABEL_STEP = 1.0
#: mm from the brain mask of the series within which streamlines can reach an ROI.
REACH = 4.0
_NO_T1W = (
    "There is no T1-weighted image: the atlas was registered to the diffusion series itself, and "
    "tracking goes without anatomical constraints."
)


def prepare_anatomy(anatomy: Anatomy | None, work: Path) -> PreparedAnatomy:
    """Bring atlas and tissues onto the grid of the T1-weighted image, cut down to the brain.

    The atlas comes by the transform of the derivatives where there is one, else by registration.
    Tissues are those of FreeSurfer's segmentation, else of probability maps, else of a
    segmentation into three, else of a segmentation made here; a file of theirs that is empty or
    has numbers missing in the brain is passed over with a note.

    It runs on one thread: with more, sums in registration depend on their number.

    Parameters
    ----------
    anatomy : Anatomy, optional
        What there is; None for nothing.
    work : Path
        Folder for work files; made if it isn't there.

    Returns
    -------
    PreparedAnatomy
        Without files where there is no anatomy.

    Raises
    ------
    BadDataError
        A file cannot be used, or there is no brain in the image.
    InputMissingError
        A file is not there.
    """
    if anatomy is None:
        return PreparedAnatomy(notes=[_NO_T1W], details={"T1w": None})
    work.mkdir(parents=True, exist_ok=True)
    told = Told()
    brain = read_brain(anatomy, told)
    chain = _to_template(anatomy, brain, told)
    grid = brain.mask.data.shape, brain.mask.affine
    labels = resample(template_labels(), *grid, chain, order=0)
    tissue = find_tissue(anatomy, brain, labels, chain, told)
    told.details["TissueVolumesMl"] = dict(tissue_volumes(tissue, labels.voxel_volume))
    told.details |= cortical_fit(labels, tissue)
    mask = Volume(brain.mask.data.astype(np.uint8), brain.mask.affine)
    return PreparedAnatomy(
        t1w=save_volume(brain.image, work / "t1w.nii"),
        mask=save_volume(mask, work / "t1w_mask.nii"),
        labels=save_volume(labels, work / "t1w_labels.nii"),
        tissue=save_volume(Volume(tissue, labels.affine), work / "t1w_tissue.nii"),
        notes=told.notes,
        details=told.details,
    )


def _to_template(anatomy: Anatomy, brain: Brain, told: Told) -> Sequence[Transform]:
    """Return the map from points of the T1-weighted image to points of the template."""
    small = coarse(brain.image, brain.mask)
    path = anatomy.template_to_t1w
    if path is None:
        with naming(anatomy.t1w):
            fit = register_to_template(brain.image, brain.mask)
        told.details |= {"TemplateTransform": "registered here", "Folded": round(fit.folded, 4)}
        told.notes.append(f"{anatomy.t1w.name}: registered here with {SPACE}.")
        told.details |= fit_with_template(small, fit.chain)
        return fit.chain
    chain = read_template_transform(path)
    quality = fit_with_template(small, chain)
    dice, shared = quality["TemplateMaskDice"], quality["TemplateMutualInformation"]
    if dice < LEAST_DICE or shared < LEAST_INFORMATION["template"]:
        raise BadDataError(
            f"{path}: does not bring {SPACE} onto {anatomy.t1w}: brain masks overlap by {dice:.2f} "
            f"(Dice, at least {LEAST_DICE:g} is needed), and the images share {shared:.2f} nats "
            f"(at least {LEAST_INFORMATION['template']:g})",
            "the transform is for another space, another image or the other direction: give the "
            "right one, or remove it to have the image registered here",
        )
    told.details |= {"TemplateTransform": path.name} | quality
    return chain


def place_anatomy(
    dwi: PreparedDwi, anatomy: PreparedAnatomy, work: Path, *, same_space: bool
) -> PlacedAnatomy:
    """Bring atlas and tissues into the world of a diffusion series.

    With a T1-weighted image the series is registered to it by a rigid map, and atlas and tissues
    get another affine, no other voxels. Without one the series is registered to the template.
    ROIs that the series does not show are taken out.

    Parameters
    ----------
    dwi : PreparedDwi
        The series.
    anatomy : PreparedAnatomy
        The anatomy, or that there is none.
    work : Path
        Folder for work files; made if it isn't there.
    same_space : bool
        Whether the series is aligned with the anatomy already.

    Returns
    -------
    PlacedAnatomy

    Raises
    ------
    BadDataError
        Series and anatomy cannot be registered, or one is a mirror image of the other.
    """
    work.mkdir(parents=True, exist_ok=True)
    told = Told([*anatomy.notes], dict(anatomy.details))
    b0, mask = load_volume(Path(dwi.b0)), load_volume(Path(dwi.mask))
    mask = Volume(mask.data > 0, mask.affine)
    if anatomy.t1w is None:
        labels, quality = _place_by_series(dwi, b0, mask, told)
        tissue = None
    else:
        world, quality = _place_by_t1w(dwi, anatomy, b0, mask, same_space)
        labels = _moved(Path(str(anatomy.labels)), world)
        tissue = _tissue_moved(Path(str(anatomy.tissue)), world, work / "tissue.nii")
    told.details["RegistrationQuality"] = _judged(quality, told)
    labels = _seen(labels, mask, told)
    return PlacedAnatomy(
        labels=save_volume(labels, work / "labels.nii"),
        tissue=tissue,
        notes=told.notes,
        details=told.details,
    )


def _place_by_t1w(
    dwi: PreparedDwi, anatomy: PreparedAnatomy, b0: Volume, mask: Volume, same_space: bool
) -> tuple[NDArray[np.float64], dict[str, Any]]:
    """Return the map from the world of the T1-weighted image to that of the series."""
    t1w, brain = load_volume(Path(str(anatomy.t1w))), load_volume(Path(str(anatomy.mask)))
    series = coarse(b0, mask)
    name = str(anatomy.details.get("T1w", anatomy.t1w))
    with naming(Path(f"{dwi.image} and {name}")):
        found = align(
            series, coarse(t1w, Volume(brain.data > 0, brain.affine)), same_space=same_space
        )
    refuse_mirrored(found, dwi.image, name)
    turn = np.degrees(np.arccos(np.clip((np.trace(found.matrix[:3, :3]) - 1) / 2, -1, 1)))
    middle = Affine(mask.affine)(np.argwhere(mask.data).mean(axis=0, keepdims=True))
    shift = np.linalg.norm(Affine(found.matrix)(middle) - middle)
    keys = (
        "CorticalROIsOnInterface",
        "CorticalROIsInGrey",
        "TemplateMutualInformation",
        "TemplateMaskDice",
        "Folded",
    )
    quality = {
        "MutualInformation": round(found.information, 3),
        "MirrorInformation": round(found.mirror_information, 3),
        "MaskDice": round(found.dice, 3),
        "Rotation": round(float(turn), 2),
        "Translation": round(float(shift), 2),
        "Offset": round(found.offset, 2),
    } | {key: anatomy.details.get(key) for key in keys}
    return np.linalg.inv(found.matrix), quality


def _moved(path: Path, world: NDArray[np.float64]) -> Volume:
    volume = load_volume(path)
    return Volume(volume.data, world @ volume.affine)


def _tissue_moved(path: Path, world: NDArray[np.float64], out: Path) -> str:
    import nibabel as nib

    image = nib.load(path)
    return save_volume(Volume(np.asarray(image.dataobj), world @ image.affine), out)


def _place_by_series(
    dwi: PreparedDwi, b0: Volume, mask: Volume, told: Told
) -> tuple[Volume, dict[str, Any]]:
    """Return the atlas by registration of the series itself with the template."""
    image = t1w_like(b0, mask)
    with naming(Path(dwi.image)):
        fit = register_to_template(image, mask)
    labels = resample(
        template_labels(), *isotropic_box(mask, mask.data, LABEL_STEP, 5.0), fit.chain, order=0
    )
    told.details["TemplateTransform"] = "registered here, from the b0"
    told.details["TissueSource"] = None
    quality = fit_with_template(coarse(image, mask), fit.chain)
    return labels, {
        "MutualInformation": None,
        "MaskDice": None,
        "CorticalROIsOnInterface": None,
        "CorticalROIsInGrey": None,
        **quality,
        "Folded": round(fit.folded, 4),
    }


def _judged(quality: dict[str, Any], told: Told) -> dict[str, Any]:
    """Add the verdict, and a note where it is poor."""
    found = weaknesses(quality)
    if found:
        told.notes.append(
            f"Registration is flagged as poor: {'; '.join(found)}. Look at the atlas over the b0 "
            "before using this connectome."
        )
    return quality | {"Verdict": "poor" if found else "good"}


def _seen(labels: Volume, mask: Volume, told: Told) -> Volume:
    """Take out of the atlas what the series does not show.

    Voxels outside of the grid of the series are cleared, and so are ROIs that are nowhere within
    `REACH` of its brain mask: no streamline can get there, and none there says nothing.
    """
    away = Volume(
        distance_transform_edt(~mask.data, sampling=mask.zooms).astype(np.float32), mask.affine
    )
    near = Volume(1 + (away.data <= REACH).astype(np.uint8), mask.affine)
    # 0 outside of the grid, 1 inside of it, 2 near the brain.
    where = resample(near, labels.data.shape, labels.affine, order=0).data
    before = _sizes(labels.data)
    kept = np.where(where > 0, labels.data, 0)
    reached = _sizes(kept[where == 2]) > 0
    kept = np.where(np.append(False, reached[1:])[kept], kept, 0).astype(labels.data.dtype)
    after = _sizes(kept)
    names = ("", *atlas.roi_names())
    cut = [names[i] for i in np.flatnonzero((after < before) & (after > 0))]
    lost = [names[i] for i in np.flatnonzero((after < before) & (after == 0))]
    absent = [names[i] for i in np.flatnonzero(before[1:] == 0) + 1]
    told.details |= {"ROIsCut": cut, "ROIsOutside": lost, "ROIsVanished": absent}
    if cut or lost:
        told.notes.append(
            f"The series does not show all of the brain: {len(lost)} ROIs lie outside of it and "
            f"are absent, {len(cut)} lie partly outside."
        )
    if absent:
        told.notes.append(f"{len(absent)} ROIs have no voxel after registration and are absent.")
    return Volume(kept, labels.affine)


def _sizes(labels: NDArray[np.int16]) -> NDArray[np.int64]:
    """Return the number of voxels of 0 and of every ROI, shape (451,)."""
    return np.bincount(labels.ravel(), minlength=atlas.N_ROIS + 1)

"""The phantom as files: raw BIDS, and derivatives in the shape of fMRIPrep's or QSIPrep's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import nibabel as nib
import numpy as np
from isal import igzip
from numpy.typing import NDArray

from bsym_bids.errors import UsageError
from bsym_bids.simulation.diffusion_anatomy import SPACE, HeadMap, Tissues

if TYPE_CHECKING:
    from bsym_bids.simulation.diffusion import DiffusionPhantom

#: What `write_phantom` writes beside the truth.
KINDS = ("raw", "fmriprep", "qsiprep")
_GENERATORS = {"fmriprep": "fMRIPrep", "qsiprep": "QSIPrep"}
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def write_phantom(
    phantom: DiffusionPhantom,
    bids_dir: Path,
    label: str,
    *,
    derivatives: Literal["raw", "fmriprep", "qsiprep"] = "raw",
    session: str | None = None,
    with_t1w: bool = True,
) -> None:
    """Write a phantom as a participant of a BIDS dataset.

    What is true of it goes to ``sourcedata/simulation/<sub-label>[_<ses-session>]_dwi_truth.npz``:
    the arrays ``weights``, ``lengths``, ``rois``, ``motion`` and ``dwi_from_t1w`` of the phantom,
    and ``template_from_t1w``, the affine part of its head map.

    Parameters
    ----------
    phantom : DiffusionPhantom
        The phantom.
    bids_dir : Path
        The dataset; the descriptions at its root are made if they are not there.
    label : str
        Participant label without ``sub-``.
    derivatives : {'raw', 'fmriprep', 'qsiprep'}
        ``raw``: series and T1w as scanned. ``fmriprep``: these, and the anatomy under
        ``derivatives/fmriprep``: bias-corrected T1w, brain mask, tissue maps, and the transform
        from the template that is exact. ``qsiprep``: the series and the anatomy under
        ``derivatives/qsiprep`` in ``space-ACPC``, and nothing raw.
    session : str, optional
        Session label without ``ses-``.
    with_t1w : bool
        Whether there is a T1w image; without it there is no anatomy at all.

    Raises
    ------
    UsageError
        A phantom whose head moved cannot be what QSIPrep makes, or ``derivatives`` is no kind.
    """
    if derivatives not in KINDS:
        raise UsageError(f"derivatives is {derivatives!r}, but must be one of {', '.join(KINDS)}")
    if derivatives == "qsiprep" and not phantom.is_aligned:
        raise UsageError(
            "a phantom whose head moved is not what QSIPrep makes",
            hint="make it with rotation=(0, 0, 0) and motion=0",
        )
    entities = [f"sub-{label}", *([f"ses-{session}"] if session else [])]
    describe(bids_dir / "dataset_description.json", "Simulated diffusion MRI", "raw")
    if derivatives == "qsiprep":
        _write_qsiprep(phantom, bids_dir / "derivatives" / "qsiprep", entities, with_t1w)
    else:
        _write_raw(phantom, bids_dir, entities, with_t1w)
    if derivatives == "fmriprep" and with_t1w:
        root = bids_dir / "derivatives" / "fmriprep"
        describe(
            root / "dataset_description.json", "Simulated derivatives", "derivative", "fmriprep"
        )
        _write_anatomy(phantom, root.joinpath(*entities, "anat"), "_".join(entities), "T1w")
    _write_truth(phantom, bids_dir / "sourcedata" / "simulation", "_".join(entities))


def describe(path: Path, name: str, kind: str, generator: str | None = None) -> None:
    """Write a ``dataset_description.json`` where there is none."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    document: dict[str, Any] = {
        "Name": name,
        "BIDSVersion": "1.10.0",
        "DatasetType": kind,
        "License": "CC0",
    }
    if generator is not None:
        note = "shape only: simulated by bsym-bids"
        document["GeneratedBy"] = [{"Name": _GENERATORS[generator], "Description": note}]
    _write_json(path, document)


def _write_raw(
    phantom: DiffusionPhantom, bids_dir: Path, entities: list[str], with_t1w: bool
) -> None:
    stem = "_".join(entities)
    _write_series(phantom, bids_dir.joinpath(*entities, "dwi"), f"{stem}_dwi")
    sidecar = {
        "PhaseEncodingDirection": "j-",
        "TotalReadoutTime": 0.05,
        "EchoTime": 0.09,
        "RepetitionTime": 5.0,
        "MagneticFieldStrength": 3,
    }
    _write_json(bids_dir.joinpath(*entities, "dwi", f"{stem}_dwi.json"), sidecar)
    if with_t1w:
        anat = bids_dir.joinpath(*entities, "anat")
        _write_nifti(anat / f"{stem}_T1w.nii.gz", _whole(phantom.t1w), phantom.t1w_affine)
        _write_json(anat / f"{stem}_T1w.json", {"MagneticFieldStrength": 3})


def _write_qsiprep(
    phantom: DiffusionPhantom, root: Path, entities: list[str], with_t1w: bool
) -> None:
    describe(root / "dataset_description.json", "Simulated derivatives", "derivative", "qsiprep")
    stem = f"{'_'.join(entities)}_space-ACPC"
    folder = root.joinpath(*entities, "dwi")
    _write_series(phantom, folder, f"{stem}_desc-preproc_dwi")
    mask = folder / f"{stem}_desc-brain_mask.nii.gz"
    _write_nifti(mask, phantom.mask.astype(np.uint8), phantom.affine)
    if with_t1w:
        _write_anatomy(phantom, root.joinpath(*entities, "anat"), stem, "ACPC")


def _write_series(phantom: DiffusionPhantom, folder: Path, stem: str) -> None:
    """Write a series and its gradients."""
    _write_nifti(folder / f"{stem}.nii.gz", _whole(phantom.dwi), phantom.affine)
    np.savetxt(folder / f"{stem}.bval", phantom.bvals[None], fmt="%g")
    np.savetxt(folder / f"{stem}.bvec", phantom.bvecs.T, fmt="%.8f")


def _write_anatomy(phantom: DiffusionPhantom, folder: Path, stem: str, space: str) -> None:
    """Write what a pipeline makes of a T1w image; the space is named as transforms name it."""
    affine = phantom.t1w_affine
    corrected = _whole(phantom.t1w / phantom.t1w_bias)
    _write_nifti(folder / f"{stem}_desc-preproc_T1w.nii.gz", corrected, affine)
    brain = phantom.tissues.brain
    _write_nifti(folder / f"{stem}_desc-brain_mask.nii.gz", brain.astype(np.uint8), affine)
    if space == "T1w":  # QSIPrep numbers its tissues otherwise in every other version
        _write_nifti(folder / f"{stem}_dseg.nii.gz", _segmentation(phantom.tissues), affine)
    for tissue, share in phantom.probseg.items():
        _write_nifti(folder / f"{stem}_label-{tissue}_probseg.nii.gz", share, affine)
    stem = stem.removesuffix("_space-ACPC")
    write_transform(phantom.head, folder / f"{stem}_from-{SPACE}_to-{space}_mode-image_xfm.h5")


def _segmentation(tissues: Tissues) -> NDArray[np.uint8]:
    """Return the tissue that fills most of each voxel: 1 grey, 2 white, 3 CSF."""
    most = np.argmax([tissues.grey, tissues.white, tissues.csf], axis=0) + 1
    return np.where(tissues.brain, most, 0).astype(np.uint8)


def write_transform(head: HeadMap, path: Path) -> None:
    """Write a head map as a composite transform of ITK, as ANTs and fMRIPrep write it.

    ITK applies the last transform that was added first: the affine, then the displacements.

    Parameters
    ----------
    head : HeadMap
        From T1w world to the template.
    path : Path
        ``.h5``; resampling a template image with it gives it in T1w space.
    """
    import SimpleITK as sitk

    in_lps = _LPS @ head.affine @ _LPS
    affine = sitk.AffineTransform(3)
    affine.SetMatrix(in_lps[:3, :3].ravel().tolist())
    affine.SetTranslation(in_lps[:3, 3].tolist())
    vectors = np.ascontiguousarray((head.field * np.diag(_LPS)[:3]).transpose(2, 1, 0, 3))
    image = sitk.GetImageFromArray(vectors, isVector=True)
    image.SetOrigin((_LPS @ head.field_affine)[:3, 3].tolist())
    image.SetSpacing(np.diag(head.field_affine)[:3].tolist())
    image.SetDirection(_LPS[:3, :3].ravel().tolist())
    composite = sitk.CompositeTransform(3)
    composite.AddTransform(sitk.DisplacementFieldTransform(image))
    composite.AddTransform(affine)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteTransform(composite, str(path))


def _write_truth(phantom: DiffusionPhantom, folder: Path, stem: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        folder / f"{stem}_dwi_truth.npz",
        weights=phantom.weights,
        lengths=phantom.lengths,
        rois=phantom.rois,
        motion=phantom.motion,
        dwi_from_t1w=phantom.dwi_from_t1w,
        template_from_t1w=phantom.head.affine,
    )


def _whole(image: NDArray[np.floating]) -> NDArray[np.int16]:
    return np.rint(image).astype(np.int16)


def _write_nifti(path: Path, data: NDArray[Any], affine: NDArray[np.float64]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm", "sec")
    path.write_bytes(igzip.compress(image.to_bytes(), compresslevel=1, mtime=0))


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n", "utf-8")

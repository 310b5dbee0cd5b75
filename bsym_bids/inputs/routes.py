"""Which way a diffusion scan goes, by what there is of it: said before anything is computed."""

from __future__ import annotations

from bsym_bids.inputs.records import Anatomy, DwiScan

_PROGRAMS = {"fmriprep": "fMRIPrep", "qsiprep": "QSIPrep"}
_TEMPLATE = "MNI152NLin2009cAsym"


def describe_route(scan: DwiScan) -> list[str]:
    """Say what will be done with a scan.

    Returns
    -------
    list of str
        One sentence each for preprocessing, anatomy, atlas and tissue.
    """
    return [_preprocessing(scan), _alignment(scan), _atlas(scan.anatomy), _tissue(scan.anatomy)]


def _preprocessing(scan: DwiScan) -> str:
    if scan.is_preprocessed:
        mask = "its mask" if scan.mask else "no mask, one is made"
        return f"preprocessing: none, QSIPrep has done it; {mask}"
    count = len(scan.images)
    series = "1 series" if count == 1 else f"{count} series put together"
    movement, distortions = _movement(scan)
    return (
        f"preprocessing: raw, {series}; denoising, Gibbs ringing, {movement}, bias field, mask; "
        f"{distortions}"
    )


def _movement(scan: DwiScan) -> tuple[str, str]:
    """Say what corrects movement, and what becomes of distortions."""
    from bsym_bids.dwi.fsl import choose_fsl

    fsl, _ = choose_fsl(scan.images)
    every = (*scan.images, *scan.reverse)
    movement = "motion and eddy currents by registration" if fsl is None else "FSL's eddy"
    if fsl is not None and fsl.corrects_distortions(every):
        return movement, "distortions by FSL's topup"
    encodings = {image.phase_encoding for image in every}
    if fsl is not None:
        encodings -= {None}  # of what only serves to measure distortions, and is left out then
    distortions = "distortions stay"
    if len(encodings) > 1:
        distortions += f", one phase encoding of {len(encodings)} is used, without FSL's topup"
    return movement, distortions


def _alignment(scan: DwiScan) -> str:
    anatomy = scan.anatomy
    if anatomy is None:
        return "anatomy: no T1w, the diffusion series has to do"
    if anatomy.source == "raw":
        return "anatomy: raw T1w, brain extracted here and aligned with the b0"
    program = _PROGRAMS[anatomy.source]
    how = "in the space of the series" if scan.same_space else "aligned with the b0"
    return f"anatomy: T1w of {program}, {how}"


def _atlas(anatomy: Anatomy | None) -> str:
    if anatomy is None:
        return f"atlas: own registration of the series with {_TEMPLATE}"
    if anatomy.template_to_t1w is None:
        return f"atlas: own registration of the T1w with {_TEMPLATE}"
    return f"atlas: by the transform of {_PROGRAMS[anatomy.source]} from {_TEMPLATE}"


def _tissue(anatomy: Anatomy | None) -> str:
    if anatomy is None:
        return "tissue: none, so tracking goes without anatomical constraints"
    if anatomy.aparcaseg is not None:
        return "tissue: from FreeSurfer's segmentation"
    if anatomy.probseg:
        return f"tissue: from the probability maps of {_PROGRAMS[anatomy.source]}"
    if anatomy.dseg is not None:
        return f"tissue: from the segmentation of {_PROGRAMS[anatomy.source]}"
    return "tissue: own segmentation of the T1w"

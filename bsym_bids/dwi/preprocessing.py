"""From the series of a scan to one that can be modelled."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from itertools import repeat
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from bsym_bids.bold.volumes import READ_ERRORS, load_image, stored_numbers
from bsym_bids.dwi.commands import find_command, run
from bsym_bids.dwi.fsl import choose_fsl, correct_with_fsl
from bsym_bids.dwi.gradients import Gradients, check_gradients, write_gradients
from bsym_bids.dwi.masking import brain_mask
from bsym_bids.dwi.motion import correct_motion
from bsym_bids.dwi.mppca import denoise_series
from bsym_bids.dwi.records import PreparedDwi
from bsym_bids.dwi.series import (
    Run,
    Series,
    create_series,
    gather,
    grid_distance,
    map_volumes,
    mean_volume,
    open_run,
    read_volumes,
    save_image,
    with_image,
    write_volume,
)
from bsym_bids.dwi.tools import mrtrix3_version
from bsym_bids.dwi.transforms import from_itk, on_one_thread, to_itk
from bsym_bids.errors import BadDataError
from bsym_bids.inputs.records import DwiImage, DwiScan
from bsym_bids.pool import Workers, workers

#: Fewer volumes than this have too little in common to tell noise from signal.
FEWEST_TO_DENOISE = 10
#: ml; a brain mask outside of this is pointed out.
PLAUSIBLE_ML = (500, 2200)
#: mm; voxels of about this size, never finer ones, are taken to estimate the bias field.
N4_MM = 10.0
# A mask is on the grid of a series when no corner is off by more than this share of a voxel.
_SAME_GRID = 0.05


def prepare_dwi(scan: DwiScan, work: Path, *, threads: int) -> PreparedDwi:
    """Prepare the series of a scan for modelling.

    Raw series are denoised (MP-PCA), freed of Gibbs ringing, corrected for motion, eddy currents
    and, with FSL, distortions, corrected for bias (N4) and masked. Preprocessed ones are checked.

    Parameters
    ----------
    scan : DwiScan
        What was found.
    work : Path
        Folder for work files; made if it isn't there.
    threads : int
        Processes to use. The result is the same for any number (FSL's excepted).

    Returns
    -------
    PreparedDwi

    Raises
    ------
    BsymError
        A file cannot be used, or a command failed.
    """
    work.mkdir(parents=True, exist_ok=True)
    images = [open_run(image) for image in scan.images]
    if scan.is_preprocessed:
        return _check_preprocessed(scan, images, work)
    fsl, notes = choose_fsl(scan.images)
    reverse: list[Run] = []
    if fsl is None or not fsl.topup:
        images, left_out = choose_encoding(images)
        notes += [*left_out, *_unused(scan.reverse)]
    else:
        reverse, without = _known_encoding(scan.reverse)
        notes += without
    series = gather(images, work / "raw.nii", scan.label)
    with workers(threads) as pool:
        series = _denoise(series, work, pool)
        series = _remove_ringing(series, work, threads, pool)
        if fsl is None:
            series = _correct_motion(series, work, pool)
        else:
            before = series.image
            series = correct_with_fsl(series, reverse, fsl, work, threads=threads)
            before.unlink()
        prepared = _correct_bias(series, scan.label, work, pool)
    shutil.rmtree(work / "fsl", ignore_errors=True)
    return replace(prepared, notes=[*notes, *prepared.notes])


def _known_encoding(reverse: Sequence[DwiImage]) -> tuple[list[Run], list[str]]:
    """Return the reversed series that say their phase encoding, and a note on the others."""
    unknown = [image.image.name for image in reverse if image.phase_encoding is None]
    notes = [
        f"{name}: not used to measure distortions, since its sidecar has no PhaseEncodingDirection."
        for name in unknown
    ]
    return [open_run(image) for image in reverse if image.phase_encoding is not None], notes


def _unused(reverse: Sequence[DwiImage]) -> list[str]:
    if not reverse:
        return []
    names = ", ".join(image.image.name for image in reverse)
    return [f"{names}: not used, since only FSL's topup can."]


def choose_encoding(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Keep the series of one phase encoding: without topup, others don't fit onto each other.

    Parameters
    ----------
    runs : sequence of Run
        Series of a scan.

    Returns
    -------
    runs : list of Run
        Those of the phase encoding with the most weighted volumes, the first of equals.
    notes : list of str
        Which were left out.
    """
    counts: dict[str | None, int] = {}
    for one in runs:
        encoding = one.source.phase_encoding
        counts[encoding] = counts.get(encoding, 0) + int((~one.gradients.is_b0).sum())
    best = max(counts, key=lambda encoding: counts[encoding])
    left = [one.source.image.name for one in runs if one.source.phase_encoding != best]
    if not left:
        return list(runs), []
    note = (
        f"{', '.join(left)}: left out. Its phase encoding is another one than {best or 'unknown'}, "
        f"which has the most weighted volumes ({counts[best]}), and only FSL's topup can combine "
        "the two."
    )
    return [one for one in runs if one.source.phase_encoding == best], [note]


def _denoise(series: Series, work: Path, pool: Workers) -> Series:
    """Denoise by MP-PCA; the noise map stays as ``noise.nii``."""
    count = len(series.gradients)
    if count < FEWEST_TO_DENOISE:
        note = f"Not denoised: {count} volumes are too few for MP-PCA."
        return replace(series, notes=[*series.notes, note])
    out, noise = work / "denoised.nii", work / "noise.nii"
    affine = nib.load(series.image).affine
    brain = brain_mask(*_means(read_volumes(series.image), series.gradients), affine)
    details = denoise_series(series.image, out, noise, brain, pool)
    series.image.unlink()
    return with_image(series, out, Denoising={"Method": "MP-PCA", **details})


def _remove_ringing(series: Series, work: Path, threads: int, pool: Workers) -> Series:
    """Remove Gibbs ringing by subvoxel shifts (Kellner et al. 2016, doi:10.1002/mrm.26054)."""
    out = work / "unringed.nii"
    image = nib.load(series.image)
    axis = slice_axis(image.shape, np.linalg.norm(image.affine[:3, :3], axis=0))
    if find_command("mrdegibbs"):
        axes = ",".join(str(other) for other in range(3) if other != axis)
        command = ["mrdegibbs", series.image, out, "-axes", axes, *_quietly(threads)]
        run(command, folder=work)
        details = {"Tool": "mrdegibbs", "Version": mrtrix3_version("mrdegibbs")}
    else:
        import dipy

        create_series(out, image.shape, image.affine)
        arguments = (repeat(series.image), range(image.shape[3]), repeat(axis), repeat(out))
        for _ in pool.map(_unring_volume, *arguments):
            pass
        details = {"Tool": "dipy.denoise.gibbs.gibbs_removal", "Version": dipy.__version__}
    series.image.unlink()
    details |= {"SliceAxis": "ijk"[axis], "Assumes": "k-space covered in full"}
    return with_image(series, out, GibbsRemoval=details)


def _unring_volume(image: Path, index: int, axis: int, out: Path) -> None:
    from dipy.denoise.gibbs import gibbs_removal

    volume = np.array(read_volumes(image)[..., index])
    clean = gibbs_removal(volume, slice_axis=axis, inplace=False, num_processes=1)
    write_volume(out, index, clean)


def slice_axis(shape: Sequence[int], sizes: Sequence[float]) -> int:
    """Return the axis across slices: the odd one out in voxel size or in number, else the third."""
    for values in (np.asarray(sizes), np.asarray(shape[:3])):
        for axis in range(3):
            one, other = np.delete(values, axis)
            same, odd = abs(one / other - 1) < 0.01, abs(values[axis] / one - 1) > 0.01
            if same and odd:
                return axis
    return 2


def _correct_motion(series: Series, work: Path, pool: Workers) -> Series:
    import SimpleITK as sitk

    affine = nib.load(series.image).affine
    data = read_volumes(series.image)
    mask = brain_mask(*_means(data, series.gradients), affine)
    _refuse_empty(mask, series.sources[0].image)
    out = work / "moved.nii"
    arguments = (series.image, affine, series.gradients, mask, out, pool)
    motion, gradients = correct_motion(*arguments)
    series.image.unlink()
    details = {
        "Tool": "SimpleITK",
        "Version": sitk.Version.VersionString(),
        "Metric": "Mattes mutual information",
        "Transform": "rigid without, affine with diffusion weighting",
        "Target": "the volume as predicted from the others of its shell",
        "Interpolation": "cubic B-spline, once",
        "GradientsRotated": True,
        "IntensitiesModulated": False,
        **motion.details(),
    }
    numbers = motion.details()
    note = (
        f"The head moved by {numbers['MeanTranslationMm']:.1f} mm and "
        f"{numbers['MeanRotationDegrees']:.1f} degrees on average, at most by "
        f"{numbers['MaxTranslationMm']:.1f} mm and {numbers['MaxRotationDegrees']:.1f} degrees; "
        "it was put back, and the gradients were rotated with it."
    )
    moved = with_image(series, out, MotionCorrection=details)
    return replace(moved, gradients=gradients, notes=[*moved.notes, note])


def _correct_bias(series: Series, name: str, work: Path, pool: Workers) -> PreparedDwi:
    """Correct the bias field, mask, and write what is handed on."""
    import SimpleITK as sitk

    affine = nib.load(series.image).affine
    data = read_volumes(series.image)
    b0, weighted = _means(data, series.gradients)
    rough = brain_mask(b0, weighted, affine)
    _refuse_empty(rough, series.sources[0].image)
    field = pool.call(bias_field, b0, rough, affine)
    final = replace(series, image=work / "dwi.nii")
    map_volumes(
        series.image, final.image, (data[..., index] / field for index in range(data.shape[3]))
    )
    del data
    series.image.unlink()
    mask = brain_mask(b0 / field, weighted / field, affine)
    inside = field[mask]
    details = {
        "BiasCorrection": {
            "Tool": "SimpleITK N4",
            "Version": sitk.Version.VersionString(),
            "EstimatedAtMm": N4_MM,
            "FieldPercentiles5And95": np.percentile(inside, [5, 95]).round(3).tolist(),
        },
    }
    final = replace(final, details={**final.details, **details})
    return _finish(final, mask, name, work, "computed")


@on_one_thread()
def bias_field(
    b0: NDArray[np.float32], mask: NDArray[np.bool_], affine: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Estimate the bias field of a volume.

    N4 (Tustison et al. 2010, doi:10.1109/TMI.2010.2046908).

    Parameters
    ----------
    b0 : ndarray, shape (X, Y, Z)
        Volume without diffusion weighting.
    mask : ndarray of bool, shape (X, Y, Z)
        Brain.
    affine : ndarray, shape (4, 4)
        From voxels to mm.

    Returns
    -------
    ndarray, shape (X, Y, Z)
        By what to divide; its mean over the mask is one.
    """
    import SimpleITK as sitk

    image = to_itk(np.maximum(b0, 0).astype(np.float32), affine)
    region = sitk.Cast(to_itk(mask.astype(np.float32), affine) > 0.5, sitk.sitkUInt8)
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    # At least 8 voxels are left along each axis.
    factors = np.clip(np.rint(N4_MM / sizes), 1, np.maximum(np.array(b0.shape) // 8, 1))
    method = sitk.N4BiasFieldCorrectionImageFilter()
    method.SetMaximumNumberOfIterations([50, 50, 50])
    shrink = [int(factor) for factor in factors]
    small = sitk.Shrink(region, shrink)
    if not sitk.GetArrayViewFromImage(small).any():
        return np.ones(b0.shape, dtype=np.float32)
    method.Execute(sitk.Shrink(image, shrink), small)
    field = np.exp(from_itk(method.GetLogBiasFieldAsImage(image)).astype(np.float64))
    return (field / field[mask].mean()).astype(np.float32)


def _check_preprocessed(scan: DwiScan, runs: Sequence[Run], work: Path) -> PreparedDwi:
    """Check a series that was preprocessed elsewhere, and find or make its mask."""
    series = gather(runs, work / "dwi.nii", scan.label)
    affine = nib.load(series.image).affine
    note = f"The series was preprocessed in {scan.dataset.name}; it was not processed again."
    series = replace(series, notes=[note, *series.notes])
    if scan.mask is not None:
        mask = _read_mask(scan.mask, runs[0])
        return _finish(series, mask, scan.label, work, scan.mask.name)
    series.notes.append("There is no brain mask beside the series; it was computed.")
    mask = brain_mask(*_means(read_volumes(series.image), series.gradients), affine)
    return _finish(series, mask, scan.label, work, "computed")


def _read_mask(path: Path, first: Run) -> NDArray[np.bool_]:
    image = load_image(path)
    shape, affine = first.layout.shape, first.layout.affine
    if image.shape[:3] != shape or grid_distance(affine, image.affine, shape) > _SAME_GRID:
        raise BadDataError(
            f"{path}: the mask is not on the grid of {first.source.image.name}",
            "give the mask that belongs to the series, or remove it to have one computed",
        )
    stored_numbers(path, image)  # refuses types that are not one number per voxel
    try:
        values = np.asarray(image.dataobj).reshape(shape)
    except READ_ERRORS as error:
        raise BadDataError(f"{path}: cannot be read: {error}", "copy or make it again") from error
    mask = np.nan_to_num(values) > 0.5
    _refuse_empty(mask, path)
    return mask


def _finish(
    series: Series, mask: NDArray[np.bool_], name: str, work: Path, origin: str
) -> PreparedDwi:
    """Write the gradients, the mask and the mean b0 of a series that is ready."""
    _refuse_empty(mask, series.sources[0].image)
    affine = nib.load(series.image).affine
    data = read_volumes(series.image)
    poor = check_gradients(series.gradients, name)
    b0s = np.flatnonzero(series.gradients.is_b0)
    b0 = mean_volume(data, b0s)
    files = {end: work / f"dwi.{end}" for end in ("bval", "bvec")}
    write_gradients(series.gradients, files["bval"], files["bvec"])
    save_image(work / "mask.nii", mask, affine)
    save_image(work / "b0.nii", b0, affine)
    volume = float(mask.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000)
    notes = [*series.notes, *(note for note in poor if note not in series.notes)]
    if not PLAUSIBLE_ML[0] <= volume <= PLAUSIBLE_ML[1]:
        notes.append(f"The brain mask has {volume:.0f} ml, which no adult brain has: look at it.")
    details = {
        **series.details,
        "BrainMask": {"Source": origin, "VolumeMl": round(volume, 1)},
        **_signal_to_noise(data, b0, b0s, mask, work / "noise.nii"),
    }
    return PreparedDwi(
        image=str(series.image),
        bval=str(files["bval"]),
        bvec=str(files["bvec"]),
        mask=str(work / "mask.nii"),
        b0=str(work / "b0.nii"),
        notes=notes,
        details=details,
    )


def _signal_to_noise(
    data: NDArray[np.float32],
    b0: NDArray[np.float32],
    b0s: NDArray[np.intp],
    mask: NDArray[np.bool_],
    noise: Path,
) -> dict[str, float]:
    """Return the signal of b0 over noise: that of MP-PCA, and over repetitions if there are."""
    ratios = {}
    if noise.is_file():
        sigma = np.asarray(nib.load(noise).dataobj)[mask]
        known = sigma > 0
        if known.any():
            ratios["SignalToNoiseB0"] = round(float(np.median(b0[mask][known] / sigma[known])), 2)
        noise.unlink()
    if len(b0s) > 2:
        squares = np.zeros(int(mask.sum()))
        for index in b0s:
            squares += (data[..., index][mask] - b0[mask]) ** 2
        spread = np.sqrt(squares / (len(b0s) - 1))
        varies = spread > 0
        ratios["TemporalSignalToNoiseB0"] = round(
            float(np.median(b0[mask][varies] / spread[varies])), 2
        )
    return ratios


def _means(
    data: NDArray[np.float32], gradients: Gradients
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the mean volume without weighting, and that of the lowest shell."""
    b0 = mean_volume(data, np.flatnonzero(gradients.is_b0))
    return b0, mean_volume(data, gradients.shells[0].volumes)


def _refuse_empty(mask: NDArray[np.bool_], path: Path) -> None:
    if not mask.any():
        raise BadDataError(
            f"{path}: the brain mask is empty", "look at the image: is there a brain in it?"
        )


def _quietly(threads: int) -> list[str]:
    """Return options of MRtrix3; its number of threads counts those beside the first."""
    return ["-nthreads", str(threads if threads > 1 else 0), "-quiet", "-force"]

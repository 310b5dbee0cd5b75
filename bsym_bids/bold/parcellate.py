"""Parcellation: from a BOLD series, volumes or grayordinates, to the series of 450 ROIs."""

from __future__ import annotations

import logging
import re
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from bsym_bids import atlas
from bsym_bids.bold.components import open_spill
from bsym_bids.bold.reduction import (
    Gathering,
    reduce_rows,
    reduce_volumes,
    row_components,
    volume_components,
)
from bsym_bids.bold.volumes import (
    READ_ERRORS,
    VolumeSeries,
    load_image,
    open_series,
    stored_numbers,
)
from bsym_bids.errors import BadDataError, UsageError

LOGGER = logging.getLogger("bsym_bids")
METHODS = ("mean", "pca")
CIFTI_SPACE = "fsLR"


@dataclass(frozen=True, eq=False)
class Parcellation:
    """Series of 450 ROIs and how well each was measured.

    Attributes
    ----------
    timeseries : ndarray, shape (T, 450)
        One column per ROI in atlas order, in the units of the image; NaN where an ROI has no voxel.
    coverage : ndarray, shape (450,)
        Voxels in ROI and mask that hold data, divided by ``n_voxels_expected``.
    repetition_time : float or None
        In seconds; None when neither argument nor header tells.
    header_repetition_time : float or None
        What the header of the image says.
    space : str
        Space of the series.
    space_source : str
        How the space is known: ``argument``, ``name`` of the file, ``grid``, or ``assumed``.
    method : str
        ``mean`` or ``pca``.
    n_voxels : ndarray of int, shape (450,)
        Voxels (grayordinates) in ROI and mask.
    n_voxels_expected : ndarray of int, shape (450,)
        Voxels the ROI would have on this lattice in an unlimited field of view.
    mean_volume : ndarray of float32, shape (X, Y, Z), or None
        Mean over time in units of the image, 0 where it is not finite; None of grayordinates.
    affine : ndarray, shape (4, 4), or None
        From its voxel indices to mm.
    """

    timeseries: NDArray[np.float64]
    coverage: NDArray[np.float64]
    repetition_time: float | None
    header_repetition_time: float | None
    space: str
    space_source: str
    method: str
    n_voxels: NDArray[np.int64]
    n_voxels_expected: NDArray[np.int64]
    mean_volume: NDArray[np.float32] | None = None
    affine: NDArray[np.float64] | None = None


def parcellate(
    path: str | Path,
    mask: str | Path | None = None,
    method: str = "mean",
    space: str | None = None,
    repetition_time: float | None = None,
    work_dir: str | Path | None = None,
) -> Parcellation:
    """Summarise a BOLD series by ROI.

    Volumes are read as a stream, one in memory at a time. ``mean`` is the mean over the ROI's
    voxels inside the mask; samples that are not finite are left out of their volume's mean.
    ``pca`` is the score of the first principal component of those voxels (centred over time, voxels
    with samples that are not finite left out), divided by the square root of their number and with
    the sign that correlates with the mean; it spills to a temporary file, not to memory.

    Parameters
    ----------
    path : str or Path
        ``.nii`` or ``.nii.gz`` in MNI152NLin2009cAsym or MNI152NLin6Asym at any resolution and
        orientation, or CIFTI-2 ``.dtseries.nii`` on (part of) the 91,282 grayordinates of fsLR.
    mask : str or Path, optional
        Brain mask on the same grid, above zero inside; volumes only.
    method : str
        ``mean`` or ``pca``.
    space : str, optional
        Space of a volume. By default the ``space-`` entity of the name, else the space whose
        packaged grid the image has, else MNI152NLin2009cAsym with a warning.
    repetition_time : float, optional
        In seconds, instead of the header's.
    work_dir : str or Path, optional
        Folder for temporary files of ``pca``.

    Returns
    -------
    Parcellation

    Raises
    ------
    InputMissingError
        A file does not exist.
    BadDataError
        A file is damaged, not 4D, in another space, on another grid than its mask, or holds no
        data where the atlas is.
    """
    if method not in METHODS:
        raise UsageError(f"{method!r} is no way to summarise an ROI", f"one of {METHODS}")
    path = Path(path)
    image = load_image(path)
    if isinstance(image, nib.Cifti2Image):
        result = _grayordinates(path, image, method)
    else:
        result = _volumes(path, image, mask, method, space, work_dir)
    _check_data(path, result)
    if repetition_time is not None:
        result = replace(result, repetition_time=float(repetition_time))
    return result


def drop_low_coverage(
    timeseries: NDArray[np.float64], coverage: NDArray[np.float64], min_coverage: float
) -> NDArray[np.float64]:
    """Return a copy in which ROIs below the coverage are NaN.

    Parameters
    ----------
    timeseries : ndarray, shape (T, N)
        Series by ROI.
    coverage : ndarray, shape (N,)
        Coverage by ROI, 0 to 1.
    min_coverage : float
        Smallest coverage that is kept; an ROI without any data is never kept.
    """
    kept = timeseries.copy()
    kept[:, (coverage < min_coverage) | (coverage == 0)] = np.nan
    return kept


def _volumes(
    path: Path,
    image: nib.spatialimages.SpatialImage,
    mask: str | Path | None,
    method: str,
    space: str | None,
    work_dir: str | Path | None,
) -> Parcellation:
    series = open_series(path, image)
    space, space_source = _space_of(series, space)
    labels = atlas.labels_on_grid(series.shape, series.affine, space)
    if not labels.any():
        raise BadDataError(
            f"{path}: no ROI of the atlas lies in its field of view",
            "is the image in the space that its name says? Its affine is\n"
            + str(np.round(series.affine, 2)),
        )
    if mask is not None:
        labels[~_read_mask(Path(mask), series)] = 0
    gathering = Gathering.of(labels.ravel(order="F"))
    del labels
    width = len(gathering.voxels)
    with open_spill(work_dir, series.dtype, width) if method == "pca" else nullcontext() as spill:
        timeseries, with_data, mean_volume = reduce_volumes(series, gathering, spill)
        if spill is not None:
            timeseries = volume_components(series, gathering, spill, timeseries)
    expected = atlas.roi_voxels_on_lattice(series.affine, space)
    return Parcellation(
        timeseries=timeseries,
        coverage=_ratio(with_data, expected),
        repetition_time=series.repetition_time,
        header_repetition_time=series.repetition_time,
        space=space,
        space_source=space_source,
        method=method,
        n_voxels=gathering.counts,
        n_voxels_expected=expected,
        mean_volume=mean_volume,
        affine=series.affine,
    )


def _space_of(series: VolumeSeries, space: str | None) -> tuple[str, str]:
    """Return the space of a volume and how it is known."""
    source = "argument"
    if space is None:
        named = re.search(r"(?:^|_)space-([a-zA-Z0-9]+)", series.path.name)
        space, source = (named[1], "name") if named else (None, "grid")
    if space is None:
        space = next((s for s in atlas.SPACES if _has_packaged_grid(series, s)), None)
    if space is None:
        space, source = atlas.SPACES[0], "assumed"
        LOGGER.warning("%s: neither name nor grid tell the space: %s assumed", series.path, space)
    if space not in atlas.SPACES:
        raise BadDataError(
            f"{series.path}: is in space {space!r}, for which there is no atlas",
            f"volumes can be in {' or '.join(atlas.SPACES)}: add one to fMRIPrep's --output-spaces",
        )
    return space, source


def _has_packaged_grid(series: VolumeSeries, space: str) -> bool:
    for resolution in (1, 2):
        packaged = nib.load(atlas.volume_path(space, resolution))
        if series.shape == packaged.shape and np.allclose(
            series.affine, packaged.affine, atol=1e-3
        ):
            return True
    return False


def _read_mask(path: Path, series: VolumeSeries) -> NDArray[np.bool_]:
    image = load_image(path)
    if image.shape[:3] != series.shape or not np.allclose(image.affine, series.affine, atol=1e-2):
        raise BadDataError(
            f"{path}: is not on the grid of {series.path.name}: shape {image.shape} against "
            f"{series.shape}, or another affine",
            "use the mask of the same space and resolution",
        )
    stored_numbers(path, image)  # refuses types that are not one number per voxel
    try:
        inside = np.asarray(image.dataobj) > 0
    except READ_ERRORS as error:
        raise BadDataError(f"{path}: cannot be read: {error}", "make the mask again") from error
    inside = inside.reshape(*series.shape, -1).any(axis=-1)
    if not inside.any():
        raise BadDataError(f"{path}: the mask is empty", "make the mask again")
    return inside


def _grayordinates(path: Path, image: nib.Cifti2Image, method: str) -> Parcellation:
    """Summarise a CIFTI series, whose file has one grayordinate's series after the other."""
    from bsym_bids.atlas.grayordinates import labels_of

    try:
        axes = [image.header.get_axis(i) for i in range(image.ndim)]
    except Exception as error:  # nibabel raises what the XML leads it to
        raise BadDataError(
            f"{path}: its header cannot be read: {error or type(error).__name__}",
            "the file is damaged or incomplete: copy or make it again",
        ) from error
    if image.ndim != 2 or not isinstance(axes[1], nib.cifti2.BrainModelAxis):
        raise BadDataError(f"{path}: is no dense CIFTI series", "expected *.dtseries.nii")
    if not isinstance(axes[0], nib.cifti2.SeriesAxis):
        raise BadDataError(f"{path}: its rows are no time series", "expected *.dtseries.nii")
    if image.shape != tuple(map(len, axes)):
        raise BadDataError(
            f"{path}: has the shape {image.shape}, but its header describes "
            f"{tuple(map(len, axes))}",
            "the file is damaged or incomplete: copy or make it again",
        )
    labels = labels_of(axes[1])
    if not labels.any():
        raise BadDataError(
            f"{path}: its grayordinates are not those of fsLR 32k",
            "use fMRIPrep's --cifti-output 91k",
        )
    stored = stored_numbers(path, image)
    gathering = Gathering.of(labels)
    timeseries, data = reduce_rows(stored, labels, len(axes[0]))
    if method == "pca":
        timeseries = row_components(stored, gathering, timeseries)
    expected = np.bincount(atlas.dlabel(), minlength=atlas.N_ROIS + 1)[1:]
    return Parcellation(
        timeseries=timeseries,
        coverage=_ratio(data, expected),
        repetition_time=_series_step(axes[0]),
        header_repetition_time=_series_step(axes[0]),
        space=CIFTI_SPACE,
        space_source="grid",
        method=method,
        n_voxels=gathering.counts,
        n_voxels_expected=expected,
    )


def _series_step(axis: nib.cifti2.SeriesAxis) -> float | None:
    step = float(axis.step)
    return step if axis.unit == "SECOND" and np.isfinite(step) and step > 0 else None


def _ratio(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return shares between 0 and 1; an ROI that no voxel can hit has none."""
    return np.minimum(part / np.maximum(whole, 1), 1.0)


def _check_data(path: Path, result: Parcellation) -> None:
    if not (result.coverage > 0).any():
        raise BadDataError(
            f"{path}: holds no data (only zeros or NaN) where the atlas and the mask are",
            "look at the image and its mask",
        )

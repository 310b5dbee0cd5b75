"""Parcellation: from a BOLD series, volumes or grayordinates, to the series of 450 ROIs."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from bsym_bids import atlas
from bsym_bids.bold.volumes import VolumeSeries, load_image, open_series, stream
from bsym_bids.errors import BadDataError, UsageError

LOGGER = logging.getLogger("bsym_bids")
METHODS = ("mean", "pca")
CIFTI_SPACE = "fsLR"
_ROW_BYTES = 1 << 24  # grayordinates are read in pieces of about this size
_SPILL_VOLUMES = 32


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
    """

    timeseries: NDArray[np.float64]
    coverage: NDArray[np.float64]
    repetition_time: float | None
    space: str
    space_source: str
    method: str
    n_voxels: NDArray[np.int64]
    n_voxels_expected: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class _Gathering:
    """Which voxels are taken, sorted by ROI, and where each ROI's begin."""

    voxels: NDArray[np.intp]
    starts: NDArray[np.intp]
    present: NDArray[np.intp]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, labels: NDArray[np.uint16]) -> _Gathering:
        taken = np.flatnonzero(labels)
        voxels = taken[np.argsort(labels[taken], kind="stable")]
        counts = np.bincount(labels[voxels], minlength=atlas.N_ROIS + 1)[1:]
        present = np.flatnonzero(counts)
        starts = np.concatenate([[0], np.cumsum(counts[present])[:-1]]).astype(np.intp)
        return cls(voxels, starts, present, counts)


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
    gathering = _Gathering.of(labels.ravel(order="F"))
    del labels
    with tempfile.TemporaryDirectory(dir=work_dir, prefix="parcellate-") as folder:
        spill = _Spill(Path(folder), gathering, series.n_volumes) if method == "pca" else None
        means, with_data = _reduce(series, gathering, spill)
        timeseries = spill.first_components(means) if spill else means
    expected = atlas.roi_voxels_on_lattice(series.affine, space)
    return Parcellation(
        timeseries=timeseries,
        coverage=_ratio(with_data, expected),
        repetition_time=series.repetition_time,
        space=space,
        space_source=space_source,
        method=method,
        n_voxels=gathering.counts,
        n_voxels_expected=expected,
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
    try:
        inside = np.asarray(image.dataobj) > 0
    except (OSError, EOFError, ValueError) as error:
        raise BadDataError(f"{path}: cannot be read: {error}", "make the mask again") from error
    inside = inside.reshape(*series.shape, -1).any(axis=-1)
    if not inside.any():
        raise BadDataError(f"{path}: the mask is empty", "make the mask again")
    return inside


def _reduce(
    series: VolumeSeries, gathering: _Gathering, spill: _Spill | None
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the mean of each ROI in each volume, and how many of its voxels ever hold data."""
    means = np.full((series.n_volumes, atlas.N_ROIS), np.nan)
    gathered = np.empty(len(gathering.voxels), dtype=series.dtype)
    with_data = np.zeros(len(gathering.voxels), dtype=bool)
    counts = gathering.counts[gathering.present]
    for t, volume in enumerate(stream(series)):
        volume.take(gathering.voxels, out=gathered, mode="clip")
        with np.errstate(invalid="ignore"):  # of NaN that signal
            values = gathered.astype(np.float64)
        sums = np.add.reduceat(values, gathering.starts) if len(values) else np.empty(0)
        number = counts
        if not np.isfinite(sums).all():
            finite = np.isfinite(values)
            sums = np.add.reduceat(np.where(finite, values, 0), gathering.starts)
            number = np.add.reduceat(finite, gathering.starts, dtype=np.int64)
            with_data |= finite & (values != 0)
        elif t % 16 == 0 or not with_data.all():
            np.logical_or(with_data, gathered, out=with_data)
        with np.errstate(invalid="ignore"):
            means[t, gathering.present] = sums / number
        if spill:
            spill.add(values * series.slope + series.intercept)
    means = means * series.slope + series.intercept
    data = np.zeros(atlas.N_ROIS, dtype=np.int64)
    if len(with_data):
        data[gathering.present] = np.add.reduceat(with_data, gathering.starts, dtype=np.int64)
    return means, data


class _Spill:
    """The series of all gathered voxels on disk, voxel by voxel."""

    def __init__(self, folder: Path, gathering: _Gathering, n_volumes: int) -> None:
        self._gathering = gathering
        self._n_volumes = n_volumes
        self._path = folder / "voxels.f4"
        self._shape = (len(gathering.voxels), n_volumes)
        self._block: list[NDArray[np.float32]] = []
        self._written = 0
        if len(gathering.voxels):
            np.memmap(self._path, np.float32, "w+", shape=self._shape)

    def add(self, values: NDArray[np.float64]) -> None:
        """Take the values of one volume, in gathered order."""
        self._block.append(values.astype(np.float32))
        if (
            len(self._block) == _SPILL_VOLUMES
            or self._written + len(self._block) == self._n_volumes
        ):
            end = self._written + len(self._block)
            voxels = np.memmap(self._path, np.float32, "r+", shape=self._shape)
            voxels[:, self._written : end] = np.stack(self._block, axis=1)
            voxels.flush()  # and dropped at once, so that its pages don't count as our memory
            self._written, self._block = end, []

    def first_components(self, means: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the first principal component of each ROI, shape (T, 450)."""
        components = np.full_like(means, np.nan)
        ends = [*self._gathering.starts[1:], len(self._gathering.voxels)]
        for roi, start, end in zip(
            self._gathering.present, self._gathering.starts, ends, strict=True
        ):
            voxels = np.memmap(self._path, np.float32, "r", shape=self._shape)[start:end]
            components[:, roi] = first_component(np.asarray(voxels, np.float64), means[:, roi])
        return components


def first_component(voxels: NDArray[np.float64], mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the first principal component of some voxels.

    Parameters
    ----------
    voxels : ndarray, shape (V, T)
        Series by voxel; voxels with samples that are not finite are left out.
    mean : ndarray, shape (T,)
        Series with which the result is to correlate positively.

    Returns
    -------
    ndarray, shape (T,)
        Scores divided by the square root of the number of voxels; zero when nothing varies.
    """
    voxels = voxels[np.isfinite(voxels).all(axis=1)]
    if not len(voxels):
        return np.full(len(mean), np.nan)
    voxels = voxels - voxels.mean(axis=1, keepdims=True)
    # Of the two Gram matrices the smaller one has all that is needed.
    if len(voxels) <= voxels.shape[1]:
        weights = np.linalg.eigh(voxels @ voxels.T)[1][:, -1]
        scores = weights @ voxels
    else:
        values, vectors = np.linalg.eigh(voxels.T @ voxels)
        scores = vectors[:, -1] * np.sqrt(max(values[-1], 0.0))
    sign = np.sign(scores @ (mean - np.nanmean(mean))) or 1.0
    return sign * scores / np.sqrt(len(voxels))


def _grayordinates(path: Path, image: nib.Cifti2Image, method: str) -> Parcellation:
    """Summarise a CIFTI series, whose file has one grayordinate's series after the other."""
    from bsym_bids.atlas.grayordinates import labels_of

    axes = [image.header.get_axis(i) for i in range(image.ndim)]
    if image.ndim != 2 or not isinstance(axes[1], nib.cifti2.BrainModelAxis):
        raise BadDataError(f"{path}: is no dense CIFTI series", "expected *.dtseries.nii")
    if not isinstance(axes[0], nib.cifti2.SeriesAxis):
        raise BadDataError(f"{path}: its rows are no time series", "expected *.dtseries.nii")
    labels = labels_of(axes[1])
    if not labels.any():
        raise BadDataError(
            f"{path}: its grayordinates are not those of fsLR 32k",
            "use fMRIPrep's --cifti-output 91k",
        )
    n_volumes = len(axes[0])
    counts = np.bincount(labels, minlength=atlas.N_ROIS + 1)[1:]
    gathering = _Gathering.of(labels)
    sums = np.zeros((atlas.N_ROIS + 1, n_volumes))
    number = np.zeros((atlas.N_ROIS + 1, n_volumes), dtype=np.int64)
    with_data = np.zeros(len(labels), dtype=bool)
    for part, rows in _grayordinate_rows(path, image, labels):
        finite = np.isfinite(rows)
        with_data[part] = (finite & (rows != 0)).any(axis=1)
        for roi in np.unique(labels[part]):
            chosen = labels[part] == roi
            sums[roi] += np.where(finite[chosen], rows[chosen], 0).sum(axis=0)
            number[roi] += finite[chosen].sum(axis=0)
    with np.errstate(invalid="ignore"):
        means = (sums / number)[1:].T
    timeseries = means
    if method == "pca":
        timeseries = _grayordinate_components(path, image, gathering, means)
    expected = np.bincount(atlas.dlabel(), minlength=atlas.N_ROIS + 1)[1:]
    data = np.bincount(labels[with_data], minlength=atlas.N_ROIS + 1)[1:]
    return Parcellation(
        timeseries=timeseries,
        coverage=_ratio(data, expected),
        repetition_time=_series_step(axes[0]),
        space=CIFTI_SPACE,
        space_source="grid",
        method=method,
        n_voxels=counts,
        n_voxels_expected=expected,
    )


def _grayordinate_rows(
    path: Path, image: nib.Cifti2Image, labels: NDArray[np.uint16]
) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Yield pieces of the labelled grayordinates' series, shape (G, T)."""
    n_volumes, n_grayordinates = image.shape
    size = max(1, _ROW_BYTES // (8 * n_volumes))
    for start in range(0, n_grayordinates, size):
        part = slice(start, min(start + size, n_grayordinates))
        if labels[part].any():
            yield part, _read_rows(path, image, part)


def _read_rows(path: Path, image: nib.Cifti2Image, part: slice) -> NDArray[np.float64]:
    try:
        return np.asarray(image.dataobj[:, part], dtype=np.float64).T
    except (OSError, EOFError, ValueError) as error:
        raise BadDataError(
            f"{path}: the data end early: {error}",
            "the file is damaged or incomplete: copy or make it again",
        ) from error


def _grayordinate_components(
    path: Path, image: nib.Cifti2Image, gathering: _Gathering, means: NDArray[np.float64]
) -> NDArray[np.float64]:
    components = np.full_like(means, np.nan)
    ends = [*gathering.starts[1:], len(gathering.voxels)]
    for roi, start, end in zip(gathering.present, gathering.starts, ends, strict=True):
        chosen = gathering.voxels[start:end]
        span = slice(int(chosen.min()), int(chosen.max()) + 1)
        rows = _read_rows(path, image, span)[chosen - span.start]
        components[:, roi] = first_component(rows, means[:, roi])
    return components


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

"""From streamlines to the edges between the 450 ROIs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import scipy  # of which parts are loaded when they are used
from numpy.typing import NDArray

from bsym_bids.atlas import N_ROIS, SPACES, roi_names, volume_path
from bsym_bids.bold.volumes import READ_ERRORS, load_image
from bsym_bids.dwi.tracks import Streamlines
from bsym_bids.errors import BadDataError

#: How far from an end the voxel of an ROI may be, in mm.
SEARCH_RADIUS = 4.0
_ORTHOGONAL = 1e-4  # largest cosine between two axes of voxels
_NAMES_AT_MOST = 6  # in a sentence; the sidecar has all
# Lengths and FA are added up as whole numbers of these parts: the order of summands then doesn't
# matter to the last bit. Double precision holds the sums of 500 million streamlines exactly.
_LENGTH_PARTS = 2.0**16
_FA_PARTS = 2.0**24


class Measures(NamedTuple):
    """What is kept of each streamline, (n,) each.

    Attributes
    ----------
    roi_a, roi_b : ndarray of uint16
        ROIs (1 to 450) at its two ends, 0 where there is none.
    length : ndarray of float32
        In mm.
    fa : ndarray of float32
        Mean FA along it; NaN without points.
    """

    roi_a: NDArray[np.uint16]
    roi_b: NDArray[np.uint16]
    length: NDArray[np.float32]
    fa: NDArray[np.float32]


@dataclass(frozen=True)
class Connectome:
    """The edges between the ROIs of one scan, and how they came about.

    Matrices are (450, 450), symmetric, and NaN in rows and columns of absent ROIs. On the diagonal
    are streamlines with both ends in one ROI.

    Attributes
    ----------
    counts : ndarray
        Number of streamlines.
    sift2 : ndarray, optional
        Fibre bundle capacity: sum of the streamlines' SIFT2 weights times mu (Smith et al. 2022,
        doi:10.52294/ApertureNeuro.2022.2.NEOD9565); None where the engine has none.
    meanlength : ndarray
        Mean length of the streamlines in mm, NaN where there is none.
    meanfa : ndarray
        Mean over the streamlines of the mean FA along them, NaN where there is none.
    roi_volumes : ndarray
        (450,), mm3, in the individual's space; 0 for absent ROIs.
    roi_streamlines : ndarray of int64
        (450,), streamlines with an end in the ROI and the other one in any.
    curve : ndarray
        (batches, 2): number of streamlines, and `sampling_reliability` of the connectome that they
        give; NaN where it is not defined.
    sampling_reliability : float or None
        Correlation of counts to expect with an independent repeat of the same tracking. It tells
        how much chance is left in the counts, not how true they are: false positives are bias, not
        noise, and come back in every repeat. None where it is not defined.
    n_streamlines, n_assigned : int
        Streamlines made, and those with an ROI at both ends.
    n_unassigned_ends : int
        Ends with no ROI within 4 mm.
    absent_rois : sequence of str
        ROIs without a voxel.
    rule : mapping
        When tracking was to stop, and why it did.
    seconds : mapping of str to float
        Time that each stage took.
    notes : sequence of str
        Sentences for the sidecar and the report.
    details : mapping
        The same in numbers and names, for the sidecar (JSON values).
    track_density : ndarray of uint32, optional
        (X, Y, Z), streamlines of the first batch through each voxel.
    track_density_affine : ndarray, optional
        (4, 4), from its voxel indices to mm.
    track_density_streamlines : int
        How many streamlines the first batch has.
    """

    counts: NDArray[np.float64]
    sift2: NDArray[np.float64] | None
    meanlength: NDArray[np.float64]
    meanfa: NDArray[np.float64]
    roi_volumes: NDArray[np.float64]
    roi_streamlines: NDArray[np.int64]
    curve: NDArray[np.float64]
    sampling_reliability: float | None
    n_streamlines: int
    n_assigned: int
    n_unassigned_ends: int
    absent_rois: Sequence[str] = ()
    rule: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    track_density: NDArray[np.uint32] | None = None
    track_density_affine: NDArray[np.float64] | None = None
    track_density_streamlines: int = 0

    def counts_per_volume(self) -> NDArray[np.float64]:
        """Return streamlines per mm3: counts divided by the mean volume of the two ROIs.

        As `bsym_bids.model.structural.volume_normalised`; NaN for absent ROIs.
        """
        from bsym_bids.model.structural import volume_normalised

        present = np.where(self.roi_volumes > 0, self.roi_volumes, 1.0)
        return volume_normalised(self.counts, present)


# --- images --------------------------------------------------------------------------------------


class Image(NamedTuple):
    """Values (X, Y, Z) and the (4, 4) affine from voxel indices to mm."""

    values: NDArray
    affine: NDArray[np.float64]


def read_labels(path: Path) -> Image:
    """Read a label image of the 450 ROIs, as uint16.

    Raises
    ------
    InputMissingError, BadDataError
        There is no such image, it cannot be read, or it holds other values than 0 to 450.
    """
    image = _read_volume(path)
    if not (np.isfinite(image.values).all() and image.values.any()):
        raise BadDataError(f"{path}: holds no ROI, or values that are not numbers")
    labels = image.values.astype(np.uint16)
    if image.values.min() < 0 or image.values.max() > N_ROIS or (labels != image.values).any():
        raise BadDataError(
            f"{path}: holds values other than whole numbers from 0 to {N_ROIS}",
            hint="resample labels by nearest neighbour",
        )
    return Image(labels, image.affine)


def read_fa(path: Path) -> Image:
    """Read an image of FA as float32; what is not finite becomes 0, as it is outside the mask."""
    image = _read_volume(path)
    return Image(
        np.nan_to_num(image.values.astype(np.float32), nan=0, posinf=0, neginf=0), image.affine
    )


def _read_volume(path: Path) -> Image:
    image = load_image(path)
    try:
        values = np.asanyarray(image.dataobj)
    except READ_ERRORS as error:
        raise BadDataError(f"{path}: {error}", hint="the file is damaged: make it again") from error
    affine = np.asarray(image.affine, dtype=np.float64)
    if values.ndim != 3 or np.linalg.det(affine[:3, :3]) == 0:
        raise BadDataError(f"{path}: is not one volume with a place in space")
    return Image(values, affine)


def volumes_of_rois(labels: Image) -> NDArray[np.float64]:
    """Return the volume of each ROI in a label image, (450,) in mm3."""
    voxels = np.bincount(labels.values.ravel(order="K"), minlength=N_ROIS + 1)[1:]
    return voxels * abs(np.linalg.det(labels.affine[:3, :3]))


# --- ends ----------------------------------------------------------------------------------------


class EndLookup:
    """Finds the ROI at the end of a streamline: that of the nearest labelled voxel centre.

    As ``tck2connectome -assignment_radial_search`` of MRtrix3 does (``Tck2nodes_radial``). Between
    voxel centres that are equally near, to rounding error, the choice is arbitrary but always the
    same. Ends outside the grid are looked up like others.

    Parameters
    ----------
    labels : Image
        Label image, on a grid of any orientation and voxel size.
    radius : float
        In mm; a voxel centre has to be nearer than this.
    """

    def __init__(self, labels: Image, radius: float = SEARCH_RADIUS) -> None:
        self._labels = np.ascontiguousarray(labels.values)
        self._to_voxel = np.linalg.inv(labels.affine)
        self._radius = radius
        axes = labels.affine[:3, :3] / np.linalg.norm(labels.affine[:3, :3], axis=0)
        labelled = self._labels > 0
        self._is_orthogonal = bool(np.abs(axes.T @ axes - np.eye(3)).max() < _ORTHOGONAL)
        if self._is_orthogonal:
            # From an end outside of all labelled voxels, a voxel with labelled voxels on all sides
            # is never the nearest: the next one towards the end is nearer.
            labelled &= ~scipy.ndimage.binary_erosion(labelled)
        voxels = np.argwhere(labelled)
        self._rois = self._labels[tuple(voxels.T)]
        centres = voxels @ labels.affine[:3, :3].T + labels.affine[:3, 3]
        self._tree = scipy.spatial.cKDTree(centres, balanced_tree=False, compact_nodes=False)

    def rois_at(self, points: NDArray[np.floating]) -> NDArray[np.uint16]:
        """Return the ROI (1 to 450) at each of the points (n, 3) in mm, 0 where there is none."""
        points = np.asarray(points, dtype=np.float64)
        found = self._in_own_voxel(points)
        rest = np.flatnonzero(found == 0)
        distance, nearest = self._tree.query(points[rest], distance_upper_bound=self._radius)
        near = np.isfinite(distance)
        found[rest[near]] = self._rois[nearest[near]]
        return found

    def _in_own_voxel(self, points: NDArray[np.float64]) -> NDArray[np.uint16]:
        """Look up the voxel that a point is in: on an orthogonal grid no centre is nearer."""
        found = np.zeros(len(points), np.uint16)
        if not self._is_orthogonal:
            return found
        voxel = np.rint(_coordinates(self._to_voxel, points)).astype(np.int64)
        limits = np.array(self._labels.shape)[:, None]
        inside = ((voxel >= 0) & (voxel < limits)).all(axis=0)
        voxel = voxel[:, inside]
        labels = self._labels[tuple(voxel)]
        back = np.linalg.inv(self._to_voxel)
        distance = np.linalg.norm(_coordinates(back, voxel.T) - points[inside].T, axis=0)
        found[inside] = np.where(distance < self._radius, labels, 0)
        return found


def _coordinates(matrix: NDArray[np.float64], points: NDArray) -> NDArray[np.float64]:
    """Transform points (n, 3) to coordinates (3, n); each one the same, whichever are beside it.

    A matrix product may round differently with the number of points.
    """
    out = np.empty((3, len(points)))
    x, y, z = (points[:, axis].astype(np.float64) for axis in range(3))
    for row, to in zip(matrix[:3], out, strict=True):
        to[:] = row[0] * x + row[1] * y + row[2] * z + row[3]
    return out


# --- streamlines ---------------------------------------------------------------------------------


def measure(streamlines: Streamlines, lookup: EndLookup, fa: Image) -> Measures:
    """Look up the ends of streamlines, and measure their lengths and the FA along them.

    FA is interpolated trilinearly at each point, 0 outside the image, and averaged with each point
    weighted by half the length of its two segments, as ``tcksample -stat_tck mean`` of MRtrix3
    does. (It gives 0 for a streamline of no length; here that has the mean over its points.)

    Parameters
    ----------
    streamlines : Streamlines
        Their points in mm.
    lookup : EndLookup
        For the ends.
    fa : Image
        Finite values.

    Returns
    -------
    Measures
        A streamline without points has no ROI, length 0 and FA NaN.
    """
    points, offsets = streamlines
    n = len(streamlines)
    filled = np.flatnonzero(np.diff(offsets))
    starts, ends = offsets[filled], offsets[filled + 1]
    segments = np.diff(points, axis=0)
    segments *= segments
    steps = np.zeros(len(points))  # from each point to the next of the same streamline
    steps[:-1] = np.sqrt(segments[:, 0] + segments[:, 1] + segments[:, 2])
    steps[ends - 1] = 0
    weights = steps.copy()
    weights[1:] += steps[:-1]
    values = _interpolated(fa, points)
    rois = np.zeros((2, n), np.uint16)
    length = np.zeros(n, np.float32)
    mean_fa = np.full(n, np.nan, np.float32)
    if filled.size:
        rois[0, filled] = lookup.rois_at(points[starts])
        rois[1, filled] = lookup.rois_at(points[ends - 1])
        sums = np.add.reduceat(steps, starts)
        length[filled] = sums
        with np.errstate(invalid="ignore"):
            mean = np.add.reduceat(weights * values, starts) / (2 * sums)
        plain = np.add.reduceat(values, starts) / (ends - starts)
        mean_fa[filled] = np.where(sums > 0, mean, plain)
    return Measures(rois[0], rois[1], length, mean_fa)


def _interpolated(image: Image, points: NDArray[np.float32]) -> NDArray[np.float64]:
    """Interpolate at points (n, 3) in mm; up to the faces of the outermost voxels, 0 beyond."""
    coordinates = _coordinates(np.linalg.inv(image.affine), points)
    values = scipy.ndimage.map_coordinates(
        image.values, coordinates, output=np.float64, order=1, mode="nearest"
    )
    for row, size in zip(coordinates, image.values.shape, strict=True):
        values[(row < -0.5) | (row > size - 0.5)] = 0
    return values


# --- edges ---------------------------------------------------------------------------------------


class EdgeSums:
    """Adds up streamlines to edges, batch after batch; how they are divided makes no difference."""

    def __init__(self) -> None:
        self._sums = np.zeros((3, N_ROIS * N_ROIS))  # streamlines, parts of length, parts of FA
        self.n_streamlines = 0
        self.n_unassigned_ends = 0

    def add(self, measures: Measures) -> None:
        """Add streamlines."""
        edges, assigned = _edges_of(measures)
        self.n_streamlines += len(assigned)
        self.n_unassigned_ends += int((measures.roi_a == 0).sum() + (measures.roi_b == 0).sum())
        length = np.rint(measures.length[assigned] * _LENGTH_PARTS)
        fa = np.rint(measures.fa[assigned] * _FA_PARTS)
        for total, summands in zip(self._sums, (None, length, fa), strict=True):
            total += np.bincount(edges, summands, minlength=N_ROIS * N_ROIS)

    @property
    def n_assigned(self) -> int:
        """Streamlines with an ROI at both ends."""
        return int(self._sums[0].sum())

    @property
    def counts(self) -> NDArray[np.float64]:
        """Streamlines (450, 450), symmetric."""
        return _symmetric(self._sums[0])

    @property
    def mean_length(self) -> NDArray[np.float64]:
        """Mean length (450, 450) in mm, NaN without streamlines."""
        return self._mean(self._sums[1] / _LENGTH_PARTS)

    @property
    def mean_fa(self) -> NDArray[np.float64]:
        """Mean FA (450, 450), NaN without streamlines."""
        return self._mean(self._sums[2] / _FA_PARTS)

    def _mean(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        with np.errstate(invalid="ignore"):
            return _symmetric(sums / self._sums[0])


def summed_weights(measures: Measures, weights: NDArray[np.floating]) -> NDArray[np.float64]:
    """Add up the weights (n,) of the streamlines of each edge, (450, 450), symmetric."""
    edges, assigned = _edges_of(measures)
    weights = weights[assigned].astype(np.float64)
    return _symmetric(np.bincount(edges, weights, minlength=N_ROIS * N_ROIS))


def _edges_of(measures: Measures) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return which edge each assigned streamline belongs to, and which streamlines these are."""
    first = np.minimum(measures.roi_a, measures.roi_b).astype(np.int64)
    assigned = first > 0
    second = np.maximum(measures.roi_a, measures.roi_b)[assigned].astype(np.int64)
    return (first[assigned] - 1) * N_ROIS + second - 1, assigned


def _symmetric(upper: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the matrix whose upper triangle, diagonal included, is given (202500,)."""
    matrix = upper.reshape(N_ROIS, N_ROIS).copy()
    lower = np.tril_indices(N_ROIS, -1)
    matrix[lower] = matrix.T[lower]
    return matrix


def without_absent(
    matrix: NDArray[np.float64], volumes: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return a matrix with NaN in the rows and columns of ROIs without volume."""
    absent = volumes == 0
    return np.where(absent[:, None] | absent, np.nan, matrix)


# --- what is missing -----------------------------------------------------------------------------


def describe_gaps(
    counts: NDArray[np.float64], volumes: NDArray[np.float64]
) -> tuple[list[str], dict[str, Any]]:
    """Say which ROIs are absent, where their streamlines may have gone, and which ROIs have none.

    Ends in the area of an absent ROI are assigned to another within 4 mm, or to none. How many
    did cannot be known, as the area is not; but no more than end in the ROIs that are within
    4 mm of it in the packaged atlas.

    Parameters
    ----------
    counts : ndarray
        (450, 450), streamlines.
    volumes : ndarray
        (450,), mm3.

    Returns
    -------
    notes : list of str
        Sentences.
    details : dict
        For the sidecar.
    """
    names = np.array(roi_names())
    streamlines = np.nansum(counts, axis=1)
    absent = np.flatnonzero(volumes == 0)
    empty = np.flatnonzero((volumes > 0) & (streamlines == 0))
    around = {roi: near for roi in absent if (near := _neighbours(roi)).size}
    details: dict[str, Any] = {
        "ROIsWithoutStreamlines": names[empty].tolist(),
        "AbsentROIs": [
            {
                "Name": str(names[roi]),
                "Neighbours": names[around.get(roi, [])].tolist(),
                "StreamlinesOfNeighbours": int(_ending_in(counts, around.get(roi, []))),
            }
            for roi in absent
        ],
    }
    notes = []
    if absent.size:
        affected = np.unique(np.concatenate([*around.values(), np.empty(0, np.int64)]))
        most = int(_ending_in(counts, np.setdiff1d(affected, absent)))
        total = int(np.nansum(np.triu(counts)))
        share = most / total if total else 0.0
        details["StreamlinesNearAbsentROIs"] = most
        details["ShareOfStreamlinesNearAbsentROIs"] = round(share, 6)
        notes.append(
            f"{len(absent)} of {N_ROIS} ROIs have no voxel in the individual's space "
            f"({_listed(names[absent])}): their rows and columns are n/a. Streamlines that end "
            f"where they should be may be counted for ROIs next to them; {most} ({share:.1%} of "
            "those between ROIs) end in such a neighbour and are the most that can be affected."
        )
    if empty.size:
        notes.append(f"{len(empty)} ROIs have voxels but no streamlines: {_listed(names[empty])}.")
    return notes, details


def _ending_in(counts: NDArray[np.float64], rois: Sequence[int] | NDArray[np.int64]) -> float:
    """Count the streamlines with at least one end in some ROIs, each once."""
    touched = np.zeros(N_ROIS, bool)
    touched[np.asarray(rois, dtype=np.int64)] = True
    upper = np.triu(np.nan_to_num(counts))
    return float(upper[touched[:, None] | touched].sum())


def _neighbours(roi: int) -> NDArray[np.int64]:
    """Return the ROIs within the search radius of one (all from 0) in the packaged 2 mm atlas."""
    labels, spacing = _packaged_atlas()
    margin = np.ceil(SEARCH_RADIUS / spacing).astype(int) + 1
    voxels = np.argwhere(labels == roi + 1)
    first = np.maximum(voxels.min(axis=0) - margin, 0)
    box = labels[tuple(slice(a, b + 1) for a, b in zip(first, voxels.max(0) + margin, strict=True))]
    distance = scipy.ndimage.distance_transform_edt(box != roi + 1, sampling=spacing)
    near = np.unique(box[distance <= SEARCH_RADIUS])
    return near[(near > 0) & (near != roi + 1)].astype(np.int64) - 1


@cache
def _packaged_atlas() -> tuple[NDArray[np.integer], NDArray[np.float64]]:
    """Return the labels of the packaged 2 mm atlas, and the size of its voxels."""
    image = nib.load(volume_path(SPACES[0], 2))
    return np.asarray(image.dataobj), np.linalg.norm(image.affine[:3, :3], axis=0)


def _listed(names: NDArray[np.str_]) -> str:
    shown, more = ", ".join(names[:_NAMES_AT_MOST]), len(names) - _NAMES_AT_MOST
    return shown if more <= 0 else f"{shown} and {more} more"

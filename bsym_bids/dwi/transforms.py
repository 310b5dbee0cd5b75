"""Transforms between spaces: points in, points out, in the world of NIfTI (RAS+, mm).

A transform says for a point of the space that is wanted where it lies in the space that is there
(a pull-back, as resampling needs it). Several are composed by mapping the points through one after
the other, so that an image is interpolated once however many transforms lie between.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

from bsym_bids.bold.volumes import READ_ERRORS, load_image
from bsym_bids.errors import BadDataError, InputMissingError

if TYPE_CHECKING:
    import SimpleITK as sitk

#: From the axes of ITK (LPS+) to those of NIfTI (RAS+) and back.
FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])
# Points that are mapped at a time: bounds the memory of maps over large grids.
_SLAB_POINTS = 1 << 19


@dataclass(frozen=True)
class Volume:
    """One image in memory.

    Attributes
    ----------
    data : ndarray, shape (X, Y, Z)
        Its values.
    affine : ndarray, shape (4, 4)
        From voxel indices to world.
    """

    data: NDArray
    affine: NDArray[np.float64]

    @property
    def zooms(self) -> NDArray[np.float64]:
        """Edges of a voxel in mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def voxel_volume(self) -> float:
        """Volume of a voxel in mm3."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))


class Transform(Protocol):
    """What maps points of the wanted space to points of the one that is there."""

    def __call__(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map points, shape (N, 3), in mm."""


@dataclass(frozen=True)
class Affine:
    """A linear map with translation.

    Attributes
    ----------
    matrix : ndarray, shape (4, 4)
        In RAS+ mm.
    """

    matrix: NDArray[np.float64]

    def __call__(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map points, shape (N, 3), in mm."""
        return points @ self.matrix[:3, :3].T + self.matrix[:3, 3]


@dataclass(frozen=True)
class Displacement:
    """A dense field of displacements, linear between its nodes and zero beyond, as ITK has it.

    Attributes
    ----------
    field : ndarray, shape (X, Y, Z, 3)
        Displacements in RAS+ mm.
    affine : ndarray, shape (4, 4)
        From indices of the field to world.
    """

    field: NDArray[np.float32]
    affine: NDArray[np.float64]

    def __call__(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map points, shape (N, 3), in mm."""
        inverse = np.linalg.inv(self.affine)
        indices = (points @ inverse[:3, :3].T + inverse[:3, 3]).T
        inside = _within(indices, self.field.shape)
        moved = points.copy()
        for axis in range(3):
            # ITK holds the value of the last node over the outer half of its voxel.
            moved[inside, axis] += map_coordinates(
                self.field[..., axis], indices[:, inside], order=1, mode="nearest"
            )
        return moved

    def jacobian(self) -> NDArray[np.float32]:
        """Return the determinant of the Jacobian at every node; below 0 the map folds."""
        steps = np.linalg.inv(self.affine[:3, :3])
        gradients = np.stack(
            [np.stack(np.gradient(self.field[..., i]), axis=-1) for i in range(3)], axis=-2
        )
        return np.linalg.det(np.eye(3) + gradients @ steps).astype(np.float32)


def through(chain: Sequence[Transform], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Map points through one transform after the other.

    Parameters
    ----------
    chain : sequence of Transform
        In the order in which they are applied to points.
    points : ndarray, shape (N, 3)
        In mm.
    """
    for transform in chain:
        points = transform(points)
    return points


def _slabs(
    shape: tuple[int, ...], affine: NDArray[np.float64]
) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Yield slabs along x with the world coordinates of their voxels, shape (N, 3)."""
    thick = max(1, _SLAB_POINTS // (shape[1] * shape[2]))
    for start in range(0, shape[0], thick):
        slab = slice(start, min(start + thick, shape[0]))
        axes = (np.arange(slab.start, slab.stop), np.arange(shape[1]), np.arange(shape[2]))
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
        yield slab, grid @ affine[:3, :3].T + affine[:3, 3]


def resample(
    source: Volume,
    shape: tuple[int, ...],
    affine: NDArray[np.float64],
    chain: Sequence[Transform] = (),
    *,
    order: int = 1,
) -> Volume:
    """Bring an image onto another grid by one interpolation.

    Parameters
    ----------
    source : Volume
        What is sampled.
    shape : tuple of int
        Of the wanted grid.
    affine : ndarray, shape (4, 4)
        Of the wanted grid.
    chain : sequence of Transform
        From the world of the wanted grid to that of the source.
    order : int
        0 nearest neighbour (the type is kept), 1 linear (float32).

    Returns
    -------
    Volume
        0 outside of the source.
    """
    inverse = np.linalg.inv(source.affine)
    kind = source.data.dtype if order == 0 else np.float32
    out = np.zeros(shape, dtype=kind)
    data = source.data if order == 0 else source.data.astype(np.float32, copy=False)
    for slab, points in _slabs(shape, affine):
        mapped = through(chain, points)
        indices = (mapped @ inverse[:3, :3].T + inverse[:3, 3]).T
        values = _nearest(data, indices) if order == 0 else _linear(data, indices)
        out[slab] = values.reshape(out[slab].shape)
    return Volume(out, np.asarray(affine, dtype=np.float64))


def _nearest(data: NDArray, indices: NDArray[np.float64]) -> NDArray:
    nearest = np.floor(indices + 0.5).astype(np.int64)
    inside = ((nearest >= 0) & (nearest < np.array(data.shape)[:, None])).all(axis=0)
    values = np.zeros(nearest.shape[1], dtype=data.dtype)
    values[inside] = data[tuple(nearest[:, inside])]
    return values


def _linear(data: NDArray[np.float32], indices: NDArray[np.float64]) -> NDArray[np.float32]:
    # The outermost values hold for half a voxel, as in ITK: a mere rounding error loses no plane.
    inside = _within(indices, data.shape)
    values = np.zeros(indices.shape[1], dtype=np.float32)
    values[inside] = map_coordinates(data, indices[:, inside], order=1, mode="nearest")
    return values


def _within(indices: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Tell which indices, shape (3, N), lie in the voxels of a grid."""
    last = np.array(shape[:3])[:, None] - 0.5
    return ((indices > -0.5) & (indices < last)).all(axis=0)


def isotropic_box(
    volume: Volume, inside: NDArray[np.bool_], step: float, margin: float
) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """Return an isotropic grid along the axes of the world that holds a region of an image.

    Registration runs on such grids, so that neither slanted nor sheared affines nor the field of
    view of a series matter to it.

    Parameters
    ----------
    volume : Volume
        Gives the affine.
    inside : ndarray of bool, shape (X, Y, Z)
        The region, not empty.
    step : float
        Edge of a voxel in mm.
    margin : float
        Left around the region, in mm.

    Returns
    -------
    shape : tuple of int
    affine : ndarray, shape (4, 4)
    """
    low, high = bounds(inside)
    corners = np.array(np.meshgrid(*zip(low, high, strict=True), indexing="ij")).reshape(3, -1).T
    world = Affine(volume.affine)(corners.astype(np.float64))
    start, stop = world.min(axis=0) - margin, world.max(axis=0) + margin
    affine = np.diag([step, step, step, 1.0])
    affine[:3, 3] = start
    shape = np.ceil((stop - start) / step).astype(int) + 1
    return (int(shape[0]), int(shape[1]), int(shape[2])), affine


def bounds(inside: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first and the last index of a region along each axis."""
    ends = [np.flatnonzero(inside.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    return np.array([e[0] for e in ends]), np.array([e[-1] for e in ends])


def coarsened(
    volume: Volume, shape: tuple[int, ...], affine: NDArray[np.float64], step: float
) -> Volume:
    """Resample to a coarser grid, smoothed before so that nothing aliases."""
    # A Gaussian with half the FWHM by which the new voxels exceed the old ones.
    excess = np.sqrt(np.maximum(step**2 - volume.zooms**2, 0)) / volume.zooms
    smooth = gaussian_filter(volume.data.astype(np.float32), excess / 2.355, mode="constant")
    return resample(Volume(smooth, volume.affine), shape, affine)


def read_template_transform(path: Path) -> list[Transform]:
    """Read a composite transform of ITK that brings a template onto an image.

    Parameters
    ----------
    path : Path
        HDF5 file as ANTs writes it.

    Returns
    -------
    list of Transform
        In the order of their application to points of the image.

    Raises
    ------
    InputMissingError
        There is no such file.
    BadDataError
        The file cannot be read or holds what is not a transform in three dimensions.
    """
    if not path.exists():
        hint = "check the path"
        if path.is_symlink():
            hint = "the link leads nowhere; in a datalad dataset: datalad get " + path.name
        raise InputMissingError(f"{path}: no such file", hint)
    from nitransforms.io.base import TransformIOError
    from nitransforms.io.itk import ITKCompositeH5

    try:
        # The class method checks the extension, which linked and annexed files may lack.
        parts = ITKCompositeH5.from_filename(path)
        chain = [_from_nitransforms(part) for part in reversed(parts)]
    except TransformIOError:
        # Of the linear transforms nitransforms knows the affine one only.
        chain = _read_with_itk(path)
    except (*READ_ERRORS, KeyError, IndexError, TypeError) as error:
        raise _unreadable(path, str(error)) from error
    if not chain:
        raise _unreadable(path, "it holds no transform")
    for part in chain:
        values = part.matrix if isinstance(part, Affine) else part.field
        if not np.isfinite(values).all():
            raise _unreadable(path, "it holds numbers that are not finite")
    return list(chain)


def _unreadable(path: Path, reason: str) -> BadDataError:
    return BadDataError(
        f"{path}: cannot be read as a composite transform: {reason}",
        "make or copy the file again, or remove it: the T1-weighted image is then registered here",
    )


def _from_nitransforms(part: object) -> Affine | Displacement:
    """Convert what nitransforms reads from a file: its linear type, or an image of a field."""
    if isinstance(part, nib.Nifti1Image):
        field = np.asarray(part.dataobj, dtype=np.float32)
        return Displacement(field, np.asarray(part.affine, dtype=np.float64))
    return Affine(np.asarray(part.to_ras(), dtype=np.float64))


def _read_with_itk(path: Path) -> list[Affine | Displacement]:
    """Read a composite with linear transforms of any kind."""
    import SimpleITK as sitk

    try:
        composite = sitk.CompositeTransform(sitk.ReadTransform(str(path)))
        parts = [composite.GetNthTransform(i) for i in range(composite.GetNumberOfTransforms())]
    except RuntimeError as error:
        raise _unreadable(path, str(error).strip().splitlines()[-1]) from error
    chain: list[Affine | Displacement] = []
    for part in reversed(parts):
        if part.GetDimension() != 3:
            raise _unreadable(path, f"it is of {part.GetDimension()} dimensions, not 3")
        if part.IsLinear():
            chain.append(Affine(matrix_from_itk(part)))
        elif part.GetTransformEnum() == sitk.sitkDisplacementField:
            chain.append(_field_from_itk(sitk.DisplacementFieldTransform(part)))
        else:
            raise _unreadable(path, f"a {part.GetName()} is not supported")
    return chain


def matrix_from_itk(transform: sitk.Transform) -> NDArray[np.float64]:
    """Return a linear transform of ITK as a matrix in RAS+ mm, shape (4, 4)."""
    origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    axes = [np.array(transform.TransformPoint(tuple(row))) - origin for row in np.eye(3)]
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = np.stack(axes, axis=1), origin
    return FLIP @ matrix @ FLIP


@contextmanager
def on_one_thread() -> Iterator[None]:
    """Make filters and registrations of ITK give the same bits each time, on any machine.

    What is summed by several threads is summed in the order in which they come, and in as many
    parts as there are threads. Setting them on a filter alone doesn't reach those inside of it, nor
    the units that work is cut into.
    """
    import SimpleITK as sitk

    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


def to_itk(data: NDArray, affine: NDArray[np.float64]) -> sitk.Image:
    """Return values (X, Y, Z) as an ITK image in their place; axes must be orthogonal.

    What is bool becomes uint8, anything else float32.
    """
    import SimpleITK as sitk

    kind = np.uint8 if data.dtype == bool else np.float32
    image = sitk.GetImageFromArray(np.ascontiguousarray(data.T, dtype=kind))
    in_lps = FLIP @ affine
    sizes = np.linalg.norm(in_lps[:3, :3], axis=0)
    image.SetSpacing(sizes.tolist())
    image.SetOrigin(in_lps[:3, 3].tolist())
    image.SetDirection((in_lps[:3, :3] / sizes).ravel().tolist())
    return image


def from_itk(image: sitk.Image) -> NDArray:
    """Return the values of an ITK image, shape (X, Y, Z)."""
    import SimpleITK as sitk

    return sitk.GetArrayFromImage(image).T


def _field_from_itk(transform: sitk.DisplacementFieldTransform) -> Displacement:
    import SimpleITK as sitk

    image = transform.GetDisplacementField()
    field = np.moveaxis(sitk.GetArrayFromImage(image), (0, 1, 2), (2, 1, 0)).astype(np.float32)
    field[..., :2] *= -1
    affine = np.eye(4)
    directions = np.reshape(image.GetDirection(), (3, 3))
    affine[:3, :3], affine[:3, 3] = directions * image.GetSpacing(), image.GetOrigin()
    return Displacement(np.ascontiguousarray(field), FLIP @ affine)


def load_volume(path: Path) -> Volume:
    """Read one three-dimensional image.

    Raises
    ------
    InputMissingError
        There is no such file.
    BadDataError
        It cannot be read, is not of three dimensions, is empty or has no place in space.
    """
    image = load_image(path)
    shape = image.shape
    if len(shape) == 4 and shape[3] == 1:
        shape = shape[:3]
    if len(shape) != 3 or 0 in shape:
        raise BadDataError(
            f"{path}: its shape is {tuple(image.shape)}, but one volume of three dimensions is "
            "needed",
            "is this one image, not a series? Name the right file, or take one of its volumes",
        )
    affine = np.asarray(image.affine, dtype=np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise BadDataError(
            f"{path}: its affine has no inverse, so that no voxel has a place:\n{affine}",
            "make the image again, or repair sform and qform",
        )
    try:
        data = np.asanyarray(image.dataobj).reshape(shape)
    except READ_ERRORS as error:
        raise BadDataError(
            f"{path}: cannot be read: {error}", "the file is damaged or incomplete: copy it again"
        ) from error
    if data.dtype.kind not in "iufb":
        raise BadDataError(
            f"{path}: is of type {data.dtype}, not one real number per voxel",
            "convert it to integers or floating point numbers",
        )
    return Volume(data, affine)


def save_volume(volume: Volume, path: Path) -> str:
    """Write an image (three or four dimensions) and return its path."""
    image = nib.Nifti1Image(volume.data, volume.affine)
    image.header.set_xyzt_units("mm", "sec")
    # Programs differ in which of the two they read.
    image.set_sform(volume.affine, code="aligned")
    image.set_qform(volume.affine, code="aligned")
    nib.save(image, path)
    return str(path)

"""Transforms between spaces: points in, points out, in the world of NIfTI (RAS+, mm).

A transform says for a point of the space that is wanted where it lies in the space that is there
(a pull-back, as resampling needs it). Several are composed by mapping the points through one after
the other, so that an image is interpolated once however many transforms lie between.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import nibabel as nib
import numpy as np
import scipy  # of which parts are loaded when they are used
from numpy.typing import NDArray

from bsym_bids.bold.volumes import READ_ERRORS, check_place, load_image, stored_numbers
from bsym_bids.errors import BadDataError, InputMissingError
from bsym_bids.untrusted import open_regular, try_apart

if TYPE_CHECKING:
    import h5py
    import SimpleITK as sitk

#: From the axes of ITK (LPS+) to those of NIfTI (RAS+) and back.
FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])
# What ITK calls the group of the parts in a file, and the type of a part.
_GROUP, _TYPE = "TransformGroup", "TransformType"
# Of a composite transform: bytes of its parts (a field of 1 mm has 90 MB), and how many there are.
_MOST_BYTES, _MOST_GROUPS = 1 << 31, 1000
# By how much a transform between two heads changes volumes at most, either way.
_SMALLEST_SCALE = 1e-3
# The linear transforms that ITK writes: those of any number of dimensions, and those of three.
_LINEAR_OF_ANY = ("AffineTransform", "TranslationTransform", "ScaleTransform")
_LINEAR_OF_SPACE = (
    "Euler3DTransform",
    "VersorTransform",
    "VersorRigid3DTransform",
    "Similarity3DTransform",
    "ScaleVersor3DTransform",
    "ScaleSkewVersor3DTransform",
    "ComposeScaleSkewVersor3DTransform",
)
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
            moved[inside, axis] += scipy.ndimage.map_coordinates(
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
    values[inside] = scipy.ndimage.map_coordinates(
        data, indices[:, inside], order=1, mode="nearest"
    )
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
    smooth = scipy.ndimage.gaussian_filter(
        volume.data.astype(np.float32), excess / 2.355, mode="constant"
    )
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
        open_regular(path).close()
        try_apart(lambda: _check_contents(path))
        _check_contents(path)
        try:
            # The class method checks the extension, which linked and annexed files may lack.
            parts = ITKCompositeH5.from_filename(path)
            chain = [_from_nitransforms(part) for part in reversed(parts)]
        except TransformIOError:
            # Of the linear transforms nitransforms knows the affine one only.
            chain = _read_linear(path)
    except BadDataError:
        raise
    except Exception as error:  # the libraries raise what the contents lead them to
        raise _unreadable(path, str(error) or type(error).__name__) from error
    if not chain:
        raise _unreadable(path, "it holds no transform")
    for part in chain:
        _check_transform(path, part)
    return list(chain)


def _check_contents(path: Path) -> None:
    """Read an HDF5 file, and refuse contents that are elsewhere, or larger than transforms are.

    A file of a few bytes can describe data that take all memory when they are read.
    """
    import h5py

    with h5py.File(path, "r") as file:
        groups, total, seen = [file], 0, 0
        while groups:
            group = groups.pop()
            seen += 1
            for name in group:
                if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                    raise _unreadable(path, f"{name} is a link")
                item = group[name]
                if isinstance(item, h5py.Group):
                    groups.append(item)
                elif item.external or item.is_virtual:
                    raise _unreadable(path, f"{name} is in another file")
                else:
                    total += item.nbytes
                    if total <= _MOST_BYTES:
                        item[()]
                if total > _MOST_BYTES or seen > _MOST_GROUPS:
                    raise _unreadable(path, "it is larger than a transform can be")


def _check_transform(path: Path, part: Affine | Displacement) -> None:
    """Refuse what is no map of space: numbers that are not finite, or no way back."""
    if isinstance(part, Affine):
        if not np.isfinite(part.matrix).all():
            raise _unreadable(path, "it holds numbers that are not finite")
        scale = abs(np.linalg.det(part.matrix[:3, :3]))
        if not _SMALLEST_SCALE < scale < 1 / _SMALLEST_SCALE:
            raise _unreadable(path, f"it scales volumes by {scale:.3g}")
        return
    check_place(path, part.affine)
    if part.field.ndim != 4 or part.field.shape[3] != 3 or 0 in part.field.shape:
        raise _unreadable(path, f"its field has the shape {part.field.shape}")
    if not np.isfinite(part.field).all():
        raise _unreadable(path, "it holds numbers that are not finite")


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


def _read_linear(path: Path) -> list[Affine | Displacement]:
    """Read a composite with linear transforms of any kind.

    Not by ITK's own reader: a damaged file can end the process that it is in.
    """
    import h5py

    with h5py.File(path, "r") as file:
        group = file[_GROUP]
        names = sorted(group, key=int)[1:]  # the first one says that it is a composite
        return [_part_of(path, group[name]) for name in reversed(names)]


def _part_of(path: Path, group: h5py.Group) -> Affine | Displacement:
    """Return one transform of a composite file."""
    kind = group[_TYPE][0].decode()
    # Older versions of ITK misspell it.
    start = "Transform" if "TransformParameters" in group else "Tranform"
    parameters, fixed = (
        np.asarray(group[f"{start}{what}"], dtype=np.float64).ravel()
        for what in ("Parameters", "FixedParameters")
    )
    name = kind.partition("_")[0]
    if not kind.endswith("_3_3"):
        raise _unreadable(path, f"a {kind} is not of three dimensions")
    if name == "DisplacementFieldTransform":
        return _field_of(path, parameters, fixed)
    if name not in (*_LINEAR_OF_ANY, *_LINEAR_OF_SPACE):
        raise _unreadable(path, f"a {name} is not supported")
    return Affine(_linear_of(path, name, parameters, fixed))


def _linear_of(
    path: Path, name: str, parameters: NDArray[np.float64], fixed: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the matrix of a linear transform of ITK from its parameters."""
    import SimpleITK as sitk

    transform = getattr(sitk, name)(*([3] if name in _LINEAR_OF_ANY else []))
    if name == "Euler3DTransform":
        fixed = np.append(fixed, 0.0)[:4]  # older files don't have the order of rotations
    sizes = transform.GetNumberOfParameters(), len(transform.GetFixedParameters())
    if (len(parameters), len(fixed)) != sizes:
        raise _unreadable(path, f"a {name} has {len(parameters)} and {len(fixed)} parameters")
    transform.SetFixedParameters(fixed.tolist())
    transform.SetParameters(parameters.tolist())
    return matrix_from_itk(transform)


def _field_of(
    path: Path, parameters: NDArray[np.float64], fixed: NDArray[np.float64]
) -> Displacement:
    """Return a field of displacements from its parameters: size, origin, spacing, directions."""
    shape = tuple(int(size) for size in fixed[:3])
    if len(fixed) != 18 or min(shape) < 1 or 3 * math.prod(shape) != len(parameters):
        raise _unreadable(path, f"its field has {len(parameters)} numbers for the shape {shape}")
    field = np.moveaxis(parameters.reshape((3, *shape), order="F"), 0, -1).astype(np.float32)
    field[..., :2] *= -1
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = fixed[9:].reshape(3, 3) * fixed[6:9], fixed[3:6]
    return Displacement(np.ascontiguousarray(field), FLIP @ affine)


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
    check_place(path, affine)
    if not isinstance(image, nib.Nifti1Image | nib.Nifti2Image | nib.Cifti2Image):
        raise BadDataError(f"{path}: is {type(image).__name__}, not NIfTI", "convert it to .nii.gz")
    stored_numbers(path, image)  # refuses types that are not one number per voxel
    try:
        data = np.asanyarray(image.dataobj).reshape(shape)
    except READ_ERRORS as error:
        raise BadDataError(
            f"{path}: cannot be read: {error}", "the file is damaged or incomplete: copy it again"
        ) from error
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

"""The anatomy of a simulated person: the template, moved, scaled and bent.

All of a phantom's geometry comes from one map, from the person's T1w world to the template: what
lies at a point of the head is what the template and the atlas have at the point it maps to. That is
the direction in which ITK's transforms work, so the file that a pipeline would have estimated,
``from-MNI152NLin2009cAsym_to-T1w_mode-image_xfm.h5``, is the map itself and exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import nibabel as nib
import numpy as np
from isal import igzip
from numpy.typing import NDArray
from scipy import ndimage

from bsym_bids import atlas
from bsym_bids.dwi.template import SPACE, template_path

#: Last subcortical ROI of the atlas.
LAST_SUBCORTICAL = 50

# Intensities of the template at which a voxel is half one tissue and half the other, and the width
# of the passage; read off its histogram (peaks near 7,200 for grey and 8,900 for white matter).
_GREY_WHITE, _GREY_WHITE_WIDTH = 8000.0, 220.0
_CSF_GREY, _CSF_GREY_WIDTH = 4600.0, 350.0
_WARP_GRID_MM = 4.0
_SKULL_MM = (2.0, 8.0, 13.0)  # depth of CSF, bone and scalp around the brain


@dataclass(frozen=True)
class HeadMap:
    """The map from a person's T1w world to the template, in RAS+ mm.

    A point goes through ``affine`` and is then displaced by ``field`` at the place where it
    arrives, as in what ANTs writes for the direction from template to image.

    Attributes
    ----------
    affine : ndarray, shape (4, 4)
        Rotation and scaling from T1w world to the template.
    field : ndarray, shape (X, Y, Z, 3)
        Displacement in mm, on a grid of the template, linearly interpolated.
    field_affine : ndarray, shape (4, 4)
        From the voxels of ``field`` to mm.
    """

    affine: NDArray[np.float64]
    field: NDArray[np.float64]
    field_affine: NDArray[np.float64]

    def __call__(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map points (N, 3) from T1w world to the template."""
        moved = apply_affine(self.affine, points)
        voxels = apply_affine(np.linalg.inv(self.field_affine), moved).T
        for axis in range(3):
            moved[:, axis] += ndimage.map_coordinates(
                self.field[..., axis], voxels, order=1, mode="nearest"
            )
        return moved


@dataclass(frozen=True)
class Tissues:
    """What fills the voxels of a grid; all of shape (X, Y, Z).

    Attributes
    ----------
    labels : ndarray of int16
        ROI index of the atlas, 0 outside of all ROIs.
    white, grey, csf : ndarray of float32
        Shares of the voxel; they sum to 1 inside the brain and to 0 outside.
    """

    labels: NDArray[np.int16]
    white: NDArray[np.float32]
    grey: NDArray[np.float32]
    csf: NDArray[np.float32]

    @property
    def brain(self) -> NDArray[np.bool_]:
        """Where the brain is."""
        return self.white + self.grey + self.csf > 0.5


def apply_affine(affine: NDArray[np.floating], points: NDArray[np.floating]) -> NDArray[np.float64]:
    """Transform points (N, 3); the same bits for any number of BLAS threads."""
    matrix = np.asarray(affine, dtype=np.float64)
    moved = np.empty((len(points), 3))
    for axis in range(3):
        row = matrix[axis]
        moved[:, axis] = (
            row[0] * points[:, 0] + row[1] * points[:, 1] + row[2] * points[:, 2] + row[3]
        )
    return moved


def rotation_matrix(degrees: tuple[float, float, float]) -> NDArray[np.float64]:
    """Return the rotation about x, then y, then z, by angles in degrees; (3, 3)."""
    x, y, z = np.deg2rad(degrees)
    about_x = [[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]]
    about_y = [[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]]
    about_z = [[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]]
    return np.array(about_z) @ np.array(about_y) @ np.array(about_x)


def draw_head(rng: np.random.Generator, scale: float, warp_mm: float) -> HeadMap:
    """Draw how a person's head differs from the template.

    Parameters
    ----------
    rng : Generator
        Source of the draw.
    scale : float
        Size of the brain along each axis relative to the template, which is larger than most
        people's; a few percent differ between the axes.
    warp_mm : float
        Root mean square of the displacement that no affine map describes, with a correlation
        length of about 4 cm; 0 for none.

    Returns
    -------
    HeadMap
    """
    sizes = scale * (1 + 0.03 * rng.uniform(-1, 1, 3))
    turn = rotation_matrix(tuple(rng.uniform(-6, 6, 3)))
    to_person = np.eye(4)
    to_person[:3, :3] = turn @ np.diag(sizes)
    to_person[:3, 3] = rng.uniform(-8, 8, 3)
    shape, field_affine = _grid_around(
        np.array([[-100, -136, -82], [100, 100, 118]]), _WARP_GRID_MM
    )
    field = np.stack(
        [ndimage.gaussian_filter(rng.standard_normal(shape), 16 / _WARP_GRID_MM) for _ in range(3)],
        axis=-1,
    )
    field *= warp_mm / np.sqrt(np.mean(field**2))
    return HeadMap(np.linalg.inv(to_person), field, field_affine)


def grid_of_head(head: HeadMap, voxel_mm: float, margin_mm: float) -> tuple[tuple, NDArray]:
    """Return the shape and affine of an upright grid in T1w world that holds the brain."""
    image, affine = _template()
    inside = np.argwhere(image[::4, ::4, ::4] > 0) * 4.0
    points = apply_affine(np.linalg.inv(head.affine) @ affine, inside)
    box = np.stack([points.min(axis=0) - margin_mm, points.max(axis=0) + margin_mm])
    return _grid_around(box, voxel_mm)


def tissues_on_grid(
    head: HeadMap, shape: tuple[int, int, int], to_t1w: NDArray[np.float64]
) -> Tissues:
    """Return what fills the voxels of a grid.

    White and grey matter and CSF are told apart by the template's intensity, softly; all of an ROI
    of the subcortex is grey.

    Parameters
    ----------
    head : HeadMap
        The person.
    shape : tuple of int
        Of the grid.
    to_t1w : ndarray, shape (4, 4)
        From its voxels to the T1w world.

    Returns
    -------
    Tissues
    """
    image, affine = _template()
    to_voxels = np.linalg.inv(affine)
    intensity = np.empty(shape, dtype=np.float32)
    labels = np.empty(shape, dtype=np.int16)
    for k in range(shape[2]):  # slab by slab, for the sake of memory
        points = head(apply_affine(to_t1w, _voxels_of_slab(shape, k)))
        voxels = apply_affine(to_voxels, points).T
        sample = ndimage.map_coordinates(image, voxels, order=1, output=np.float32)
        intensity[:, :, k] = sample.reshape(shape[:2])
        found = ndimage.map_coordinates(_labels(), voxels, order=0, output=np.int16)
        labels[:, :, k] = found.reshape(shape[:2])
    return _tissues(intensity, labels)


def t1w_image(
    tissues: Tissues, voxel_mm: float, rng: np.random.Generator, *, noise: float = 0.04
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return an image that looks T1-weighted, and the bias field that it has.

    Parameters
    ----------
    tissues : Tissues
        On the grid of the image.
    voxel_mm : float
        Size of its voxels.
    rng : Generator
        Source of texture, bias and noise.
    noise : float
        Standard deviation of the noise relative to white matter.

    Returns
    -------
    image, bias : ndarray of float32, shape (X, Y, Z)
        With a skull and scalp around the brain. The image divided by the bias is what bias
        correction should give.
    """
    white, grey, csf = 1000.0, 680.0, 250.0
    image = white * tissues.white + grey * tissues.grey + csf * tissues.csf
    outside = ndimage.distance_transform_edt(~tissues.brain) * voxel_mm
    fluid, bone, scalp = _SKULL_MM
    image[(outside > 0) & (outside <= fluid)] = csf
    image[(outside > fluid) & (outside <= bone)] = 60.0
    image[(outside > bone) & (outside <= scalp)] = 850.0
    texture = ndimage.gaussian_filter(rng.standard_normal(image.shape, dtype=np.float32), 2)
    image *= 1 + 0.02 * texture / texture.std()
    bias = smooth_bias(image.shape, voxel_mm, rng, 0.12)
    real = bias * image + noise * white * rng.standard_normal(image.shape, dtype=np.float32)
    imaginary = noise * white * rng.standard_normal(image.shape, dtype=np.float32)
    return np.hypot(real, imaginary).astype(np.float32), bias


def smooth_bias(
    shape: tuple[int, ...], voxel_mm: float, rng: np.random.Generator, strength: float
) -> NDArray[np.float32]:
    """Return a field that multiplies an image, around 1 and smooth over 6 cm; (X, Y, Z)."""
    coarse = tuple(int(np.ceil(size * voxel_mm / 12)) + 2 for size in shape)
    field = ndimage.gaussian_filter(rng.standard_normal(coarse), 60 / 12 / 2)
    field *= strength / max(np.sqrt(np.mean(field**2)), 1e-12)
    axes = [np.arange(size) * voxel_mm / 12 + 0.5 for size in shape]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"))
    return np.exp(ndimage.map_coordinates(field, grid, order=1)).astype(np.float32)


def voxel_centres(shape: tuple[int, int, int]) -> NDArray[np.float64]:
    """Return the voxel indices of a grid, (X*Y*Z, 3), in the order of ``ravel``."""
    return np.stack(np.indices(shape), axis=-1).reshape(-1, 3).astype(np.float64)


def _tissues(intensity: NDArray[np.float32], labels: NDArray[np.int16]) -> Tissues:
    """Tell tissues apart by intensity, with the subcortical ROIs as grey matter."""
    brain = intensity > 700  # the template is 0 outside of the brain, and above 760 inside
    labels = np.where(brain, labels, 0).astype(np.int16)
    white = brain / (1 + np.exp((_GREY_WHITE - intensity) / _GREY_WHITE_WIDTH))
    csf = brain / (1 + np.exp((intensity - _CSF_GREY) / _CSF_GREY_WIDTH))
    nuclei = (labels > 0) & (labels <= LAST_SUBCORTICAL)
    white[nuclei] = csf[nuclei] = 0
    grey = brain - white - csf
    return Tissues(labels, *(part.astype(np.float32) for part in (white, grey, csf)))


def _voxels_of_slab(shape: tuple[int, int, int], k: int) -> NDArray[np.float64]:
    plane = np.stack(np.indices(shape[:2]), axis=-1).reshape(-1, 2)
    return np.column_stack([plane, np.full(len(plane), k)]).astype(np.float64)


def _grid_around(box: NDArray[np.floating], voxel_mm: float) -> tuple[tuple, NDArray]:
    """Return the shape and affine of an upright grid that holds a box (2, 3) in mm."""
    shape = tuple(int(n) for n in np.ceil((box[1] - box[0]) / voxel_mm) + 1)
    affine = np.diag([voxel_mm] * 3 + [1.0])
    affine[:3, 3] = box[0]
    return shape, affine


@lru_cache(maxsize=1)
def _template() -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Read the template."""
    with igzip.open(template_path("T1w")) as file:
        image = nib.Nifti1Image.from_stream(file)
        return np.asarray(image.dataobj, dtype=np.float32), np.asarray(image.affine)


@lru_cache(maxsize=1)
def _labels() -> NDArray[np.int16]:
    """Return the atlas on the grid of the template."""
    image, affine = _template()
    return atlas.labels_on_grid(image.shape, affine, SPACE).astype(np.int16)

"""Slices through images of any grid, with borders of other images on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from bsym_bids.bold.volumes import READ_ERRORS
from bsym_bids.errors import BadDataError
from bsym_bids.reports.brain_map import edges
from bsym_bids.reports.numbers import plain
from bsym_bids.reports.style import COLOURS
from bsym_bids.reports.tiles import Tile, draw_tiles

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: In inches, at which the type is as in other figures.
SIZE = (9.2, 4.1)
_N_SUBCORTICAL = 50  # the first ones of the atlas
_PIXEL = 1.0  # mm
_MARGIN = 6.0  # mm around what is shown
_COLUMNS = 7
_GREYS = 96  # steps of brightness, so that an image has few colours
#: Axis across the slices, and those to the right and upwards.
_PLANES = ((0, 1, 2), (1, 0, 2), (2, 0, 1))
_NAMES = "xyz"


@dataclass(frozen=True, eq=False)
class Image:
    """Values on a grid, and where it lies.

    Attributes
    ----------
    values : ndarray, shape (X, Y, Z) or (X, Y, Z, 3)
        Numbers, labels, or shares of red, green and blue.
    affine : ndarray, shape (4, 4)
        From voxel indices to mm.
    """

    values: NDArray
    affine: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Border:
    """Borders of labels in one colour.

    Attributes
    ----------
    labels : Image
        Whole numbers; 0 is outside.
    colour : str
        As matplotlib takes it.
    """

    labels: Image
    colour: str


def atlas_borders(labels: Image) -> list[Border]:
    """Return the borders of ROIs: orange of cortical ones, blue of subcortical ones."""
    values = labels.values
    return [
        Border(Image(np.where(part, values, 0), labels.affine), colour)
        for part, colour in (
            (values > _N_SUBCORTICAL, COLOURS[5]),
            (values <= _N_SUBCORTICAL, COLOURS[4]),
        )
    ]


def read_image(path: Path) -> Image:
    """Read an image.

    Raises
    ------
    BadDataError
        It cannot be read.
    """
    try:
        image = nib.load(path)
        values, affine = np.asanyarray(image.dataobj), np.asarray(image.affine, dtype=float)
    except (nib.filebasedimages.ImageFileError, *READ_ERRORS) as error:
        raise BadDataError(f"{path}: cannot be read as an image: {error}") from error
    if values.ndim not in (3, 4) or 0 in values.shape or np.linalg.det(affine[:3, :3]) == 0:
        raise BadDataError(f"{path}: is no image of a brain, its shape is {values.shape}")
    return Image(values, affine)


def draw_slices(
    figure: Figure,
    image: Image,
    *,
    around: Image,
    borders: Sequence[Border] = (),
    colours: str = "gray",
    limits: tuple[float, float] | None = None,
    bar: str = "",
) -> None:
    """Draw rows of sagittal, coronal and axial slices, with the left of the brain on the left.

    Parameters
    ----------
    figure : Figure
        Empty, about of `SIZE`.
    image : Image
        What is shown.
    around : Image
        Where there is something to see: slices are spread over what is not 0 in it.
    borders : sequence of Border
        On top of it, the last one uppermost.
    colours : str
        Colour map of matplotlib for numbers.
    limits : tuple of float, optional
        What is dark and what is bright; by default 0 and what 99 % of the voxels in `around` do not
        exceed.
    bar : str
        What the numbers are, with their unit: then there is a scale beside the slices.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    low, high = _extent(around)
    if limits is None:
        limits = 0.0, _bright(image, around)
    figure.set_layout_engine(None)
    rows = []
    for across, right, up in _PLANES:
        places = np.linspace(low[across], high[across], _COLUMNS + 4)[2:-2]
        row = []
        for column, place in enumerate(places):
            points = _plane(across, right, up, place, low, high)
            pixels = _drawn(points, image, borders, colours, limits)
            mark = "L" if across and not column else ""
            row.append(Tile(pixels, f"{_NAMES[across]} = {plain(place, 0)} mm", mark))
        rows.append(row)
    draw_tiles(figure, (0, 0, 0.91 if bar else 1, 1), rows)
    if bar:
        mapped = ScalarMappable(Normalize(*limits), colours)
        figure.colorbar(mapped, cax=figure.add_axes((0.93, 0.12, 0.014, 0.76)), label=bar)


def _extent(around: Image) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the lowest and the highest corner, mm, of what is not 0."""
    inside = around.values != 0
    if inside.ndim == 4:
        inside = inside.any(axis=3)
    ends = []
    for axis in range(3):
        found = np.flatnonzero(inside.any(axis=tuple(a for a in range(3) if a != axis)))
        ends.append((found[0], found[-1]) if found.size else (0, inside.shape[axis] - 1))
    corners = np.array(np.meshgrid(*ends, indexing="ij")).reshape(3, -1)
    world = around.affine[:3, :3] @ corners + around.affine[:3, 3:]
    return world.min(axis=1) - _MARGIN, world.max(axis=1) + _MARGIN


def _bright(image: Image, around: Image) -> float:
    values = image.values
    if values.shape[:3] == around.values.shape[:3]:
        values = values[around.values != 0]
    values = values[np.isfinite(values) & (values != 0)]
    bright = float(np.percentile(values, 99)) if values.size else 1.0
    return bright if bright > 0 else 1.0


def _plane(
    across: int,
    right: int,
    up: int,
    place: float,
    low: NDArray[np.float64],
    high: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the world coordinates of the pixels of a slice, shape (3, rows, columns)."""
    columns = np.arange(low[right], high[right], _PIXEL)
    rows = np.arange(high[up], low[up], -_PIXEL)
    points = np.empty((3, len(rows), len(columns)))
    points[across] = place
    points[right] = columns[None, :]
    points[up] = rows[:, None]
    return points


def _drawn(
    points: NDArray[np.float64],
    image: Image,
    borders: Sequence[Border],
    colours: str,
    limits: tuple[float, float],
) -> NDArray[np.floating]:
    """Return a slice in colours, shape (rows, columns, 3)."""
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb

    low, high = limits
    shares = np.clip((sampled(image, points, order=1) - low) / (high - low or 1), 0, 1)
    if image.values.ndim == 4:
        drawn = np.rint(shares * 5) / 5
    else:
        shares = np.rint(shares * (_GREYS - 1)) / (_GREYS - 1)
        drawn = colormaps[colours](shares)[..., :3]
    for border in borders:
        drawn[edges(sampled(border.labels, points, order=0).astype(int))] = to_rgb(border.colour)
    return drawn


def sampled(image: Image, points: NDArray[np.float64], order: int) -> NDArray[np.floating]:
    """Return the values at points in mm, (3, ...); 0 outside of the grid.

    Parameters
    ----------
    image : Image
        The image.
    points : ndarray, shape (3, ...)
        In mm.
    order : int
        0 for the nearest voxel, 1 for linear interpolation.
    """
    to_voxel = np.linalg.inv(image.affine)
    voxels = np.tensordot(to_voxel[:3, :3], points, 1) + to_voxel[:3, 3].reshape(3, 1, 1)
    values = image.values
    if values.dtype.kind == "f":
        values = np.nan_to_num(values)
    if values.ndim == 3:
        return map_coordinates(values, voxels, order=order, output=np.float32)
    channels = [
        map_coordinates(values[..., c], voxels, order=order, output=np.float32)
        for c in range(values.shape[3])
    ]
    return np.stack(channels, axis=-1)

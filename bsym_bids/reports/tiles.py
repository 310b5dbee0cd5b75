"""Rows of small images under titles, drawn as one: axes for each take several times as long."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bsym_bids.reports.style import LIGHT_MARK, SMALL

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TITLE = 0.2  # inches
_BETWEEN = 0.02  # share of the width of an image


@dataclass(frozen=True, eq=False)
class Tile:
    """A small image.

    Attributes
    ----------
    pixels : ndarray, shape (rows, columns, 3 or 4)
        Shares of red, green, blue and, where there are four, of what is seen.
    title : str
        Above it.
    mark : str
        In its lower left corner.
    ink : str
        Of the mark.
    """

    pixels: NDArray[np.floating]
    title: str
    mark: str = ""
    ink: str = LIGHT_MARK


def draw_tiles(
    figure: Figure, place: tuple[float, float, float, float], rows: Sequence[Sequence[Tile]]
) -> None:
    """Draw rows of images at one scale, as large as the place allows.

    Parameters
    ----------
    figure : Figure
        Without a layout of its own.
    place : tuple of float
        Left, bottom, width and height, as shares of the figure.
    rows : sequence of sequence of Tile
        From the top; images of a row have places of equal width.
    """
    _, _, width, height = place
    inches = width * figure.get_figwidth(), height * figure.get_figheight() - len(rows) * _TITLE
    wide = max(len(row) * math.ceil((1 + _BETWEEN) * _width(row)) for row in rows)
    high = sum(map(_height, rows))
    title = math.ceil(_TITLE * max(wide / inches[0], high / inches[1]))
    canvas = np.zeros((high + len(rows) * title, wide, 4), np.float32)
    axes = figure.add_axes(place)
    axes.set_axis_off()
    top = 0
    for row in rows:
        top += title
        for column, tile in enumerate(row):
            rows_of, columns_of = tile.pixels.shape[:2]
            left = column * wide // len(row) + (wide // len(row) - columns_of) // 2
            here = canvas[top : top + rows_of, left : left + columns_of]
            here[..., 3] = 1
            here[..., : tile.pixels.shape[2]] = tile.pixels
            middle, above = left + columns_of / 2, top - 0.3 * title
            axes.text(middle, above, tile.title, fontsize=SMALL, ha="center", va="baseline")
            if tile.mark:
                corner = left + 0.03 * columns_of, top + 0.96 * rows_of
                axes.text(*corner, tile.mark, color=tile.ink, weight="bold", va="baseline")
        top += _height(row)
    axes.imshow(canvas, interpolation="none")


def _width(row: Sequence[Tile]) -> int:
    return max(tile.pixels.shape[1] for tile in row)


def _height(row: Sequence[Tile]) -> int:
    return max(tile.pixels.shape[0] for tile in row)

"""What pages are put together from: tables and figures with captions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup

from bsym_bids.errors import BsymError
from bsym_bids.reports.style import inline_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Table:
    """A table of a page.

    Attributes
    ----------
    name : str
        Different for each table of a page.
    caption : str
        What it shows.
    heads : tuple of str
        Of the columns; the first is that of the rows' heads.
    rows : tuple
        Of each row: its head, what is remarkable about it (or an empty text), and its cells.
    """

    name: str
    caption: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class Chart:
    """A figure of a page.

    Attributes
    ----------
    svg : Markup
        The figure; empty if there is none.
    caption : str
        What it shows, or why there is none.
    width : int
        In pixels, of figure and caption; 0 for as wide as the caption is.
    """

    svg: Markup
    caption: str
    width: int = 0


@dataclass(frozen=True)
class Block:
    """Figures and tables under one heading.

    Attributes
    ----------
    heading : str
        What they are about.
    text : str
        How to read them.
    charts : tuple of Chart
        Figures, side by side where they fit.
    tables : tuple of Table
        Tables.
    """

    heading: str
    text: str = ""
    charts: tuple[Chart, ...] = ()
    tables: tuple[Table, ...] = ()


@dataclass(frozen=True)
class SeriesSection:
    """What a participant's page says of one run or scan.

    Attributes
    ----------
    name : str
        Its anchor, different for each section of a page.
    title : str
        What the series is called.
    kind : str
        ``BOLD run`` or ``Diffusion scan``.
    facts : tuple of tuple of str
        Terms and what they are.
    warnings : tuple of str
        What has to be known before anything of it is used.
    blocks : tuple of Block
        Figures.
    notes : tuple of str
        What was found and decided on the way.
    """

    name: str
    title: str
    kind: str
    facts: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
    blocks: tuple[Block, ...]
    notes: tuple[str, ...]


LOGGER = logging.getLogger("bsym_bids")
_PIXELS_PER_INCH, _NARROWEST = 96, 480
#: ROIs that are named where some lack something.
MOST_NAMED = 12


class Figures:
    """Makes the figures of a page, each with a name of its own.

    Parameters
    ----------
    prefix : str
        Of the names.
    coarseness : int
        Of images: one row and column of so many is kept, for pages with many of them.
    """

    def __init__(self, prefix: str, coarseness: int = 1) -> None:
        self._prefix = prefix
        self._coarseness = coarseness
        self._count = 0

    def chart(
        self,
        draw: Callable[[Figure], None],
        size: tuple[float, float],
        label: str,
        caption: str,
    ) -> Chart:
        """Make a figure; where its data cannot be read, only say so.

        Parameters
        ----------
        draw : callable
            Reads what it needs and draws onto the figure that it is given.
        size : tuple of float
            In inches.
        label : str
            What it shows, in a few words, for those who cannot see it.
        caption : str
            How to read it.
        """
        self._count += 1
        name = f"{self._prefix}-{self._count}"
        try:
            svg = Markup(
                inline_svg(draw, size, name=name, label=label, coarseness=self._coarseness)
            )
            return Chart(svg, caption, max(_NARROWEST, round(size[0] * _PIXELS_PER_INCH)))
        except (BsymError, OSError) as error:
            return Chart(Markup(""), f"{label}: cannot be shown. {error}")
        except Exception as error:  # of data that nobody thought of: the others can be shown
            LOGGER.warning("%s cannot be shown", label, exc_info=error)
            said = f"{label}: cannot be shown. {type(error).__name__}: {error}"
            return Chart(Markup(""), said)


def named(rois: Sequence[str]) -> str:
    """Return names of ROIs after their number: ``: A, B``, the first of many, nothing of none."""
    more = f" and {len(rois) - MOST_NAMED} more" if len(rois) > MOST_NAMED else ""
    return f": {', '.join(rois[:MOST_NAMED])}{more}" if rois else ""


def plural(count: int, one: str, more: str = "") -> str:
    """Return a number with its noun: ``1 run``, ``2 runs``."""
    return f"{count:,} {one if count == 1 else more or one + 's'}"

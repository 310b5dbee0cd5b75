"""What all figures look like: colours, type, and how they get into files and pages.

Colours are those of Okabe & Ito, which can be told apart without red or green cones. In pages,
colours of figures are variables of the style sheet, so that figures are light or dark as the page.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import warnings
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from html import escape
from io import BytesIO, StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bsym_bids.outputs.publish import explained

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Colours of Okabe & Ito that are dark enough for marks on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("solid", "dashed", "dashdot", "dotted")
#: Of text and axes, of what stands back, of grids, and of the ground, in pages.
INK, MUTED, GRID, PAPER = "#1B1F24", "#56606B", "#DDE1E6", "#FFFFFF"
#: On images and coloured cells, which are the same in light and dark: no variables stand for them.
DARK_MARK, LIGHT_MARK = "#010101", "#FEFEFE"
STYLE: Mapping[str, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.hashsalt": "bsym-bids",  # the same figure is the same file
}
_PAGE_STYLE: Mapping[str, Any] = {
    **STYLE,
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "legend.fontsize": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.titlecolor": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "text.parse_math": False,  # a dollar in a name is a dollar
    "svg.fonttype": "none",  # text stays text, in the page's type
}
#: Variables of the style sheet by colour.
_VARIABLES: Mapping[str, str] = {
    INK.lower(): "ink",
    MUTED.lower(): "muted",
    GRID.lower(): "grid",
    PAPER.lower(): "paper",
    **dict(
        zip(
            (colour.lower() for colour in COLOURS),
            ("blue", "vermillion", "green", "purple", "sky", "orange", "ink"),
            strict=True,
        )
    ),
}


#: On screens narrower than this share of a figure it scrolls: smaller type could not be read.
_NARROWEST = 0.92
#: Size of the smallest type in figures, pt: 12 pixels, on narrow screens 11.
SMALL = 9
_IMAGE_DPI = 144  # of images in figures: sharp on screens with two dots a pixel
_PALETTE = 256
_IMAGE_START = "data:image/png;base64,"
_IMAGE = re.compile(re.escape(_IMAGE_START) + r"([A-Za-z0-9+/=\s]+)")


def load_matplotlib() -> Any:
    """Import matplotlib without letting it, or what it asks for fonts, write to the user's home."""
    if "matplotlib.font_manager" not in sys.modules and "MPLCONFIGDIR" not in os.environ:
        before = dict(os.environ)
        with tempfile.TemporaryDirectory() as folder:
            os.environ |= {"MPLCONFIGDIR": folder, "XDG_CACHE_HOME": folder}
            try:
                import matplotlib.font_manager

                matplotlib.get_configdir()  # is remembered, as is the cache's folder
            finally:
                for name in ("MPLCONFIGDIR", "XDG_CACHE_HOME"):
                    os.environ.pop(name)
                    if name in before:
                        os.environ[name] = before[name]
    import matplotlib

    return matplotlib


@contextmanager
def figure_file(path: Path, size: tuple[float, float]) -> Iterator[Figure]:
    """Yield a figure of a size in inches that is written when the block ends.

    Parameters
    ----------
    path : Path
        An SVG or PNG.
    size : tuple of float
        Width and height.
    """
    matplotlib = load_matplotlib()
    from matplotlib.figure import Figure

    with matplotlib.rc_context(dict(STYLE)):
        figure = Figure(figsize=size, layout="constrained")
        yield figure
        metadata = {"Date": None} if path.suffix == ".svg" else None
        with explained(path):
            figure.savefig(path, dpi=150, metadata=metadata)


def inline_svg(
    draw: Callable[[Figure], None],
    size: tuple[float, float],
    *,
    name: str,
    label: str,
    coarseness: int = 1,
) -> str:
    """Return a figure as an element of a page that has the style sheet of `pages`.

    Parameters
    ----------
    draw : callable
        Draws onto the empty figure that it is given.
    size : tuple of float
        Width and height in inches, at which the type is 10 pt.
    name : str
        Different for each figure of a page.
    label : str
        What the figure shows, for those who cannot see it.
    coarseness : int
        Of images in it, one row and column of so many is kept.

    Returns
    -------
    str
        An ``svg`` element with ``role="img"``. Names of units and classes in it are escaped.
    """
    matplotlib = load_matplotlib()
    from matplotlib.figure import Figure

    buffer = StringIO()
    with matplotlib.rc_context(dict(_PAGE_STYLE)), warnings.catch_warnings():
        # Type is the browser's: that matplotlib's own lacks a letter does not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        _lay_out(figure)
        figure.savefig(buffer, format="svg", dpi=_IMAGE_DPI, metadata={"Date": None})
    return _themed(with_small_images(buffer.getvalue(), coarseness), name, label)


def _lay_out(figure: Figure) -> None:
    """Give everything its place now: while it is saved, all would be drawn once more for that."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine(None)


def with_small_images(svg: str, coarseness: int = 1) -> str:
    """Return an SVG whose images are smaller: with a palette, where few colours are in them."""
    return _IMAGE.sub(lambda found: _IMAGE_START + _smaller(found[1], coarseness), svg)


def _smaller(png: str, coarseness: int) -> str:
    """Return an image in base64 as one of at most 256 colours, if it has no more of them."""
    from PIL import Image

    with Image.open(BytesIO(b64decode(png))) as image:
        pixels = np.ascontiguousarray(image.convert("RGBA")).view(np.uint32)[..., 0]
    pixels = np.ascontiguousarray(pixels[::coarseness, ::coarseness])
    colours, indices = np.unique(pixels, return_inverse=True)
    if len(colours) > _PALETTE:
        return "".join(png.split())
    palette = colours.view(np.uint8).reshape(-1, 4)
    small = Image.fromarray(indices.reshape(pixels.shape).astype(np.uint8), mode="P")
    small.putpalette(palette[:, :3].tobytes())
    buffer = BytesIO()
    small.save(buffer, "png", optimize=True, transparency=palette[:, 3].tobytes())
    return b64encode(buffer.getvalue()).decode()


def _themed(svg: str, name: str, label: str) -> str:
    """Turn a file of matplotlib into an element of a page."""
    root = re.search(r"<svg[^>]*>", svg)
    assert root is not None
    view = re.search(r'viewBox="[^"]*"', root[0])
    width = re.search(r'width="([\d.]+)pt"', root[0])
    assert view is not None and width is not None
    body = svg[root.end() : svg.rindex("</svg>")]
    # The style is for all elements of the page that it is in; the page has its own.
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.S)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', body))
    body = re.sub(r"<[^>]*>", lambda tag: _themed_tag(tag[0], name, used), body)
    body = re.sub(r">\s+<", "><", body)
    pixels = round(float(width[1]) * 96 / 72)
    return (
        f'<svg class="chart" role="img" aria-label="{escape(label)}" {view[0]} '
        f'style="width: {pixels}px; min-width: {round(_NARROWEST * pixels)}px">{body}</svg>'
    )


def _themed_tag(tag: str, name: str, used: set[str]) -> str:
    tag = re.sub(
        r' id="([^"]*)"', lambda own: f' id="{name}-{own[1]}"' if own[1] in used else "", tag
    )
    tag = re.sub(r'(?:xlink:)?href="#', f'href="#{name}-', tag)
    tag = tag.replace("url(#", f"url(#{name}-")
    tag = re.sub(r"font-family: [^;\"]*;? ?", "", tag)
    # Numbers are of pixels, but for the factors of a transformation, which many pixels multiply.
    tag = re.sub(r'transform="[^"]*"|(\d\.\d\d)\d+', lambda found: found[1] or found[0], tag)
    return re.sub(r"#[0-9a-fA-F]{6}\b", lambda colour: _variable(colour[0]), tag)


def _variable(colour: str) -> str:
    known = _VARIABLES.get(colour.lower())
    return f"var(--{known})" if known else colour

"""Pages of HTML: one file each, with its style and figures inside, and nothing from elsewhere."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from bsym_bids.outputs.dataset import linked_folders

FOLDER = Path(__file__).parents[1] / "data" / "reports"


def render(template: str, **values: Any) -> str:
    """Fill in a template of ``data/reports``.

    Parameters
    ----------
    template : str
        Name of its file.
    **values
        What it needs. Text is escaped; `Markup` is not.

    Returns
    -------
    str
        A page of HTML.
    """
    style = Markup((FOLDER / "page.css").read_text("utf-8"))
    return _environment().get_template(template).render(style=style, **values)


def local_link(path: str) -> str:
    """Return the address of a file, relative to the page: never of another place, or a script."""
    return quote(path, safe="/")


def without_places(page: str, output_dir: Path) -> str:
    """Name files by their datasets: where these lie on this machine is nobody's business."""
    names = {folder: f"{name}:" for name, folder in linked_folders(output_dir).items()}
    names[str(output_dir)] = ""
    for folder in sorted(names, key=len, reverse=True):  # one may lie in another
        if folder.strip("/"):
            name = str(escape(names[folder]))
            # Not within other paths, or the text of an image, where "/out/" may stand by chance.
            start = rf"(?<![\w+./-]){re.escape(str(escape(folder)))}/"
            page = re.sub(start, lambda _, name=name: name, page)
    return page


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["local_link"] = local_link
    return environment

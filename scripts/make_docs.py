#!/usr/bin/env python3
"""Bring the tables of the documentation up to date that are made of data files.

They lie between <!-- from FILE: ... --> and <!-- end -->; what stands around them is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from bsym_bids.outputs.documentation import with_tables
from bsym_bids.reports.documentation import with_lights

DOCS = Path(__file__).parents[1] / "docs"
#: What makes a page anew from its text.
PAGES: Mapping[str, Callable[[str], str]] = {
    "outputs.md": with_tables,
    "reports.md": with_lights,
}


def main() -> None:
    """Write the pages that are not up to date, and name them."""
    for name, made_anew in PAGES.items():
        path = DOCS / name
        old = path.read_text("utf-8")
        new = made_anew(old)
        if new != old:
            path.write_text(new, "utf-8")
            print(path)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Write what programs take that run bsym-bids: scripts/make_descriptors.py [OUT].

Without OUT, docs/runners is brought up to date. `--without-sessions OUT` writes into OUT the
pipeline for Nipoppy alone, for a study whose participants have no session folders.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from bsym_bids.cli import build_parser
from bsym_bids.descriptors.boutiques import describe_command
from bsym_bids.descriptors.runners import nipoppy_bundle, runner_files

DOCS = Path(__file__).parents[1] / "docs" / "runners"


def write_files(folder: Path, texts: Mapping[str, str]) -> None:
    """Write texts by their paths below a folder."""
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, nargs="?", default=DOCS, help="default: docs/runners")
    parser.add_argument("--without-sessions", action="store_true")
    arguments = parser.parse_args()
    descriptor = describe_command(build_parser())
    if not arguments.without_sessions:
        write_files(arguments.out, runner_files(descriptor))
    elif arguments.out == DOCS:
        parser.error("--without-sessions needs a folder to write into")
    else:
        write_files(arguments.out, nipoppy_bundle(descriptor, sessions=False))


if __name__ == "__main__":
    main()

"""The command ``bsym-model``: what model releases there are, and whether their files are intact."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bsym_bids import __version__
from bsym_bids.cli import Parser, report
from bsym_bids.errors import BsymError, InputMissingError


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of ``bsym-model``."""
    parser = Parser(prog="bsym-model", description="Model releases of bsym-bids.")
    parser.add_argument("--version", action="version", version=f"bsym-model {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("list", help="the models that --model takes, and whether they are here")
    for name, text in (
        ("info", "the card of a model"),
        ("verify", "check the files of a model, and that they load"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("name", metavar="NAME", help="the model")
        command.add_argument(
            "--model-dir", type=Path, metavar="DIR", help="folder with the files of the release"
        )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``bsym-model`` and return its exit code."""
    arguments = build_parser().parse_args(argv)
    try:
        if arguments.command == "list":
            _list()
        elif arguments.command == "info":
            _info(arguments.name, arguments.model_dir)
        else:
            _verify(arguments.name, arguments.model_dir)
    except BsymError as error:
        return report(error, "bsym-model")
    except KeyboardInterrupt:
        return 130
    return 0


def _list() -> None:
    from bsym_bids.model.weights import default_model_name, known_releases, read_card

    default = default_model_name()
    for name in known_releases():
        mark = " (default)" if name == default else ""
        print(f"{name}{mark}: {read_card(name)['summary']}; {_state(name, None)}")


def _state(name: str, model_dir: Path | None) -> str:
    """Say in a few words whether a model can be used."""
    from bsym_bids.model.weights import resolve_release

    try:
        release = resolve_release(name, model_dir)
    except InputMissingError:
        return "its files are not here"
    except BsymError as error:
        return f"cannot be used: {error}"
    return f"files in {release.folder}" if release.files else "no files needed"


def _info(name: str, model_dir: Path | None) -> None:
    import yaml

    from bsym_bids.model.weights import find_card

    card: dict[str, Any] = find_card(name, model_dir)
    print(yaml.safe_dump(card, sort_keys=False, allow_unicode=True, width=100), end="")
    print(f"here: {_state(name, model_dir)}")


def _verify(name: str, model_dir: Path | None) -> None:
    from bsym_bids.model.weights import load_model, resolve_release

    release = resolve_release(name, model_dir)
    load_model(release)
    for branch, path in release.files.items():
        print(f"{branch}: {path} sha256 {release.sha256[branch]}")
    if release.warning:
        print(release.warning)
    print(f"{release.name}: complete, unchanged and loads; fingerprint {release.fingerprint}")


if __name__ == "__main__":
    sys.exit(main())

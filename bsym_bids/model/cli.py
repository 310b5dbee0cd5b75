"""The command ``bsym-model``: what model releases there are, getting them, and checking them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bsym_bids import __version__
from bsym_bids.cli import Parser, report
from bsym_bids.errors import BsymError, InputMissingError
from bsym_bids.model.checking_cli import add_check
from bsym_bids.training.cli import add_pretrain, add_simulate
from bsym_bids.untrusted import say

if TYPE_CHECKING:
    from bsym_bids.model.weights import Release

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

_INTERRUPTED = 130


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of ``bsym-model``."""
    parser = Parser(prog="bsym-model", description="Model releases of bsym-bids.")
    parser.add_argument("--version", action="version", version=f"bsym-model {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in _COMMANDS:
        add(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``bsym-model`` and return its exit code."""
    arguments = build_parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except BsymError as error:
        return report(error, "bsym-model")
    except KeyboardInterrupt:
        print("bsym-model: interrupted", file=sys.stderr)
        return _INTERRUPTED
    return 0


def _add(commands: Commands, name: str, text: str, run: Any) -> argparse.ArgumentParser:
    """Add a command that is carried out by ``run``, which gets the parsed arguments."""
    command = commands.add_parser(name, help=text, description=text)
    command.set_defaults(run=run)
    return command


def _add_name(command: argparse.ArgumentParser, folder: str) -> None:
    """Add the arguments of a command on one model."""
    command.add_argument("name", metavar="NAME", help="the model")
    command.add_argument("--model-dir", type=Path, metavar="DIR", help=folder)


# --- list ----------------------------------------------------------------------------------------


def _add_list(commands: Commands) -> None:
    _add(commands, "list", "the models that --model takes, and whether they are here", _list)


def _list(_: argparse.Namespace) -> None:
    from bsym_bids.model.cards import known_releases, read_card
    from bsym_bids.model.weights import default_model_name

    default = default_model_name()
    for name in known_releases():
        mark = " (default)" if name == default else ""
        say(f"{name}{mark}: {read_card(name)['summary']}; {_state(name, None)}")


def _state(name: str, model_dir: Path | None) -> str:
    """Say in a few words whether a model can be used."""
    from bsym_bids.model.weights import resolve_release

    try:
        release = resolve_release(name, model_dir)
    except InputMissingError:
        return f"its files are not here (bsym-model fetch {name})"
    except BsymError as error:
        return f"cannot be used: {error}"
    return _whereabouts(release)


def _whereabouts(release: Release) -> str:
    from bsym_bids.model.cards import packaged_folder

    if not release.files:
        return "no files needed"
    if release.folder == packaged_folder(release.name):
        return "comes with bsym-bids"
    return f"files in {release.folder}"


# --- info ----------------------------------------------------------------------------------------


def _add_info(commands: Commands) -> None:
    command = _add(commands, "info", "the card of a model", _info)
    _add_name(command, "folder with the files of the release")


def _info(arguments: argparse.Namespace) -> None:
    import yaml

    from bsym_bids.model.cards import find_card

    card: dict[str, Any] = find_card(arguments.name, arguments.model_dir)
    print(yaml.safe_dump(card, sort_keys=False, allow_unicode=True, width=100), end="")
    say(f"here: {_state(arguments.name, arguments.model_dir)}")


# --- fetch ---------------------------------------------------------------------------------------


def _add_fetch(commands: Commands) -> None:
    command = _add(commands, "fetch", "get the files of a model, verified, if need be", _fetch)
    _add_name(
        command,
        "where they go (default: $BSYM_MODEL_HOME/NAME, else bsym-bids/models/NAME in the user's "
        "cache)",
    )
    command.add_argument(
        "--from",
        dest="source",
        metavar="DIR_OR_URL",
        help="folder or address that has them (default: $BSYM_MODEL_MIRROR/NAME, else the address "
        "on the card)",
    )


def _fetch(arguments: argparse.Namespace) -> None:
    from bsym_bids.model.fetch import fetch_release

    release = fetch_release(arguments.name, arguments.source, arguments.model_dir)
    say(f"{release.name}: complete and verified; {_whereabouts(release)}")


# --- verify --------------------------------------------------------------------------------------


def _add_verify(commands: Commands) -> None:
    command = _add(commands, "verify", "check the files of a model, and that they load", _verify)
    _add_name(command, "folder with the files of the release")


def _verify(arguments: argparse.Namespace) -> None:
    from bsym_bids.model.weights import load_model, resolve_release

    release = resolve_release(arguments.name, arguments.model_dir)
    load_model(release)
    for branch, path in release.files.items():
        say(f"{branch}: {path} sha256 {release.sha256[branch]}")
    if release.warning:
        say(release.warning)
    say(f"{release.name}: complete, unchanged and loads; fingerprint {release.fingerprint}")


_COMMANDS = (_add_list, _add_info, _add_fetch, _add_verify, add_check, add_simulate, add_pretrain)


if __name__ == "__main__":
    sys.exit(main())

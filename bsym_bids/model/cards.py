"""Cards of model releases: what a release is, what it was made for, and what pins its files.

A card is a YAML file. Those that the program carries have to say everything; one in a folder of the
user's only what is needed to load the network, but what it says is checked as well.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from bsym_bids.config import SCALINGS
from bsym_bids.errors import BadDataError, UsageError
from bsym_bids.untrusted import read_yaml

OFFICIAL = "brainsymphony-v1"
UNTRAINED = "untrained"
CARD_FILES = ("model.yaml", "model.json")
BRANCHES = ("spatial", "temporal", "context", "perceiver", "structural", "gate")
#: How the densities of structural connections may be transformed: log10(1 + d), log10(d), d.
SC_TRANSFORMS = ("log10p1", "log10", "none")
_HASHES = {"sha256": 64, "git_sha1": 40}
#: Names of the machine that the program runs on.
_OWN = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class _Rule:
    """What one entry of a card has to be; `key` has a dot for each level."""

    key: str
    wanted: str
    holds: Callable[[Any], bool]


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_count(value: Any, most: int = 10**6) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= most


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_range(value: Any) -> bool:
    pair = isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))
    return pair and 0 < value[0] <= value[1]


def _is_hash(value: Any, length: int = 64) -> bool:
    return isinstance(value, str) and re.fullmatch(f"[0-9a-f]{{{length}}}", value) is not None


def is_pinned_address(value: Any) -> bool:
    """Tell whether something is an address that a card may have.

    What comes over TLS comes from where it says. Nobody stands between a machine and itself: plain
    ``http`` is for servers of this machine alone.
    """
    if not _is_text(value):
        return False
    try:
        parts = urlsplit(value)
        host = parts.hostname
    except ValueError:  # of brackets without an end
        return False
    if parts.scheme == "file":
        return parts.netloc in ("", "localhost")
    return bool(host) and (parts.scheme == "https" or (parts.scheme == "http" and host in _OWN))


def _is_inside(text: str) -> bool:
    """Tell whether a path stays in the folder that it is relative to, and is of a file."""
    path = PurePosixPath(text)
    inside = not path.is_absolute() and ".." not in path.parts and "\\" not in text
    return inside and text.isprintable() and not path.name.startswith(".") and path.name != ""


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_text, value))


def is_release_name(value: Any) -> bool:
    """Tell whether something can be the name of a release."""
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9][\w.-]*", value) is not None


#: What every card needs.
_NEEDED = (
    _Rule("name", "letters, digits, '.', '_' and '-'", is_release_name),
    _Rule("version", "text (in quotes, if it is a number)", _is_text),
    _Rule("trained", "true or false", lambda value: isinstance(value, bool)),
    _Rule("network", "a mapping", lambda value: isinstance(value, dict)),
)
#: What the cards of the program need too.
_STATED = (
    _Rule("summary", "text", _is_text),
    _Rule("licence", "text", _is_text),
    _Rule("contract", "a mapping", lambda value: isinstance(value, dict)),
    _Rule("contract.rois", "a whole number above 0", _is_count),
    _Rule("contract.roi_order", "text", _is_text),
    _Rule("contract.roi_names_sha256", "64 hexadecimal digits", _is_hash),
    _Rule("contract.window_frames", "a whole number above 0", _is_count),
    _Rule(
        "contract.repetition_time",
        "seconds, from 0.01 to 100",
        lambda value: _is_number(value) and 0.01 <= value <= 100,
    ),
    _Rule(
        "contract.repetition_time_tolerance",
        "a share from 0 to below 1",
        lambda value: _is_number(value) and 0 <= value < 1,
    ),
    _Rule("contract.scaling", f"one of {', '.join(SCALINGS)}", lambda v: v in SCALINGS),
    _Rule("training", "text or a mapping", lambda v: _is_text(v) or (isinstance(v, dict) and v)),
    _Rule(
        "lacks",
        "a mapping of what is lacking to what is done about it",
        lambda value: isinstance(value, dict) and all(map(_is_text, [*value, *value.values()])),
    ),
    _Rule("limits", "a list of texts", _are_texts),
)
#: What they need when they have a structural branch.
_OF_SC = (
    _Rule("contract.structural_connectivity", "a mapping", lambda v: isinstance(v, dict)),
    _Rule("contract.structural_connectivity.measure", "text", _is_text),
    _Rule(
        "contract.structural_connectivity.volume_normalised",
        "true or false",
        lambda value: isinstance(value, bool),
    ),
    _Rule(
        "contract.structural_connectivity.transform",
        f"one of {', '.join(SC_TRANSFORMS)}",
        lambda value: value in SC_TRANSFORMS,
    ),
)
#: What may be there, in any card.
_OPTIONAL = (
    _Rule("packaged", "true or false", lambda value: isinstance(value, bool)),
    _Rule("url", "an address that starts with https:// (or file://)", is_pinned_address),
    _Rule("source", "text", _is_text),
    _Rule("citation", "text", _is_text),
    _Rule("warning", "text", _is_text),
    _Rule("quality", "a mapping", lambda value: isinstance(value, dict)),
    _Rule("quality.reconstruction", "a mapping", lambda value: isinstance(value, dict)),
    _Rule("quality.edges", "a mapping", lambda value: isinstance(value, dict)),
    *(
        _Rule(f"quality.{what}.{score}", "a number", _is_number)
        for what in ("reconstruction", "edges")
        for score in ("r2", "rho", "mae", "permuted_r2", "permuted_rho")
    ),
    *(
        _Rule(f"network.{branch}_heads", "a whole number above 0", _is_count)
        for branch in ("spatial", "temporal", "perceiver", "structural")
    ),
    _Rule(
        "contract.structural_connectivity.streamlines",
        "the fewest and the most streamlines between different ROIs, two numbers above 0",
        _is_range,
    ),
    _Rule("network.attention", "text", _is_text),
    _Rule("network.max_hops", "a whole number from 1 to 450", lambda v: _is_count(v, 450)),
    _Rule("network.diffusion_theta", "a number", _is_number),
)
_RULES = (*_NEEDED, *_STATED, *_OF_SC, *_OPTIONAL)
#: Mappings in which another entry can only be a mistake: it would be passed over.
_CLOSED = ("network", "contract", "contract.structural_connectivity")


def known_releases() -> tuple[str, ...]:
    """Return the names of the releases that the program knows."""
    return tuple(sorted(path.stem for path in _cards_folder().glob("*.yaml")))


def known_card_path(name: str) -> Path:
    """Return the file of the card of a known release."""
    return _cards_folder() / f"{name}.yaml"


def packaged_folder(name: str) -> Path:
    """Return where the files of a release lie that ships with the program."""
    return Path(str(resources.files("bsym_bids") / "data" / "weights" / name))


def read_card(name: str) -> dict[str, Any]:
    """Read the card of a known release.

    Raises
    ------
    UsageError
        When there is no release of that name.
    """
    known = known_releases()
    if name not in known:
        raise UsageError(
            f"there is no model {name!r}",
            hint=f"known models: {', '.join(known)}; a release of your own needs --model-dir with "
            f"the folder that holds its {CARD_FILES[0]}",
        )
    path = known_card_path(name)
    card = _read(path)
    check_card(card, str(path), in_full=True)
    return card


def find_card(name: str, model_dir: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Return the card of a release: the one in its folder if that is its name, else as `read_card`.

    The names that the program knows are taken: a card in a folder cannot stand for them.
    """
    own = own_card(Path(model_dir)) if model_dir is not None else None
    if own is not None and own["name"] == name and name not in known_releases():
        return own
    return read_card(name)


def own_card(folder: Path) -> dict[str, Any] | None:
    """Read the card that a folder holds, if it holds one."""
    for name in CARD_FILES:
        path = folder / name
        try:
            card = _read(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        check_card(card, str(path))
        return card
    return None


def card_place(name: str, folder: Path | None) -> str:
    """Return the file that a card was read from, for messages."""
    if name in known_releases() or folder is None:
        return str(known_card_path(name))
    places = [folder / file for file in CARD_FILES]
    return str(next((place for place in places if os.path.isfile(place)), places[0]))


def check_card(card: Mapping[str, Any], where: str, in_full: bool = False) -> None:
    """Check a card.

    Parameters
    ----------
    card : mapping
        The card.
    where : str
        Its file, for messages.
    in_full : bool
        Whether it has to say everything that a card of the program says.

    Raises
    ------
    BadDataError
        When an entry is absent, unknown or not what it has to be; the message names file and key.
    """
    needed = list(_NEEDED)
    if in_full:
        needed += _STATED
        branches = card.get("files") or card.get("sizes") or ()
        needed += _OF_SC if "structural" in branches else ()
    for rule in needed:
        _check(card, rule, where, required=True)
    for rule in _RULES:
        _check(card, rule, where, required=False)
    _check_nothing_else(card, where)
    if not (in_full and "sizes" in card):
        _check_files(card.get("files"), where)
    elif card["trained"]:
        raise BadDataError(f"{where}: trained is true, but random weights of 'sizes' are not")
    if in_full and "files" in card and not (card.get("packaged") or "url" in card):
        raise BadDataError(f"{where}: url is missing, and packaged is not true")


_ABSENT = object()


def _get(card: Mapping[str, Any], key: str) -> Any:
    value: Any = card
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return _ABSENT
        value = value[part]
    return value


def _check(card: Mapping[str, Any], rule: _Rule, where: str, required: bool) -> None:
    value = _get(card, rule.key)
    if value is _ABSENT:
        if required:
            raise BadDataError(f"{where}: {rule.key} is missing; it has to be {rule.wanted}")
    elif not rule.holds(value):
        raise BadDataError(f"{where}: {rule.key} is {value!r}, but must be {rule.wanted}")


def _check_nothing_else(card: Mapping[str, Any], where: str) -> None:
    rules = [rule.key for rule in _RULES]
    for mapping in _CLOSED:
        given = _get(card, mapping)
        known = [key.removeprefix(f"{mapping}.") for key in rules if key.startswith(f"{mapping}.")]
        known = [key for key in known if "." not in key]
        for key in given if given is not _ABSENT else ():
            if key not in known:
                raise BadDataError(
                    f"{where}: {mapping}.{key} is unknown", hint=f"known: {', '.join(known)}"
                )


def _check_files(files: Any, where: str) -> None:
    if not isinstance(files, dict) or not files or not set(files) <= set(BRANCHES):
        raise BadDataError(
            f"{where}: the release card needs 'files' with some of {', '.join(BRANCHES)}"
        )
    for branch, entry in files.items():
        given = entry if isinstance(entry, dict) else {}
        if not _is_text(given.get("path")) or not set(_HASHES) & set(given):
            raise BadDataError(f"{where}: files.{branch} needs 'path' and 'sha256'")
        if not _is_inside(given["path"]):
            raise BadDataError(
                f"{where}: files.{branch} lies outside the folder of the release, or has no name "
                "that files of releases have"
            )
        for kind, length in _HASHES.items():
            if kind in given and not _is_hash(given[kind], length):
                raise BadDataError(
                    f"{where}: files.{branch}.{kind} is {given[kind]!r}, but must be {length} "
                    "hexadecimal digits (in quotes)"
                )


def _read(path: Path) -> dict[str, Any]:
    try:
        card = read_yaml(path)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except (OSError, ValueError) as error:
        raise BadDataError(
            f"{path}: cannot be read as YAML: {error}", "docs/models.md shows what a card has"
        ) from error
    if not isinstance(card, dict):
        raise BadDataError(f"{path}: not a release card")
    return card


def _cards_folder() -> Path:
    return Path(str(resources.files("bsym_bids") / "data" / "models"))

"""Fetching the files of a release: each is verified before it gets its name, and fetched once."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote

from bsym_bids.errors import (
    BadDataError,
    BsymError,
    CannotCreateOutputError,
    InputMissingError,
    UsageError,
)
from bsym_bids.model.cards import find_card
from bsym_bids.model.download import (
    Patience,
    Progress,
    copy_file,
    download_file,
    local_folder,
    without_credentials,
    writing,
)
from bsym_bids.model.turns import Turn, turn
from bsym_bids.model.weights import (
    Release,
    check_file,
    home_of,
    is_offline,
    place_of,
    resolve_release,
    ways_out,
)
from bsym_bids.untrusted import parse_json

_LOCK = ".fetch.lock"
_DEAD = 180.0  # s, at least, that a process is waited for which shows no sign of life
#: Failures that those who waited for the one that failed need not meet again.
_SHARED = {kind.exit_code: kind for kind in (InputMissingError, BadDataError)}


def fetch_release(
    name: str,
    source: str | None = None,
    model_dir: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] = os.environ,
    stream: TextIO | None = None,
) -> Release:
    """Fetch the files of a release that are missing, or are not what the card pins.

    Each file comes in beside its final name, which it gets once it is verified. Of several
    processes one fetches; the others wait, and find the files.

    Parameters
    ----------
    name : str
        The release.
    source : str, optional
        Folder or address with its files, laid out as in the release or flat, instead of
        ``$BSYM_MODEL_MIRROR/<name>`` or the address on the card.
    model_dir : path, optional
        Where the files go; by default `bsym_bids.model.weights.release_folder`.
    env : mapping
        Environment variables.
    stream : TextIO, optional
        Where progress is shown; standard error by default.

    Returns
    -------
    Release
        Complete and verified.

    Raises
    ------
    UsageError
        For an unknown name and an address that is none.
    InputMissingError
        The files cannot be had: no network, no such file, downloads forbidden.
    BadDataError
        What came is not the file that the card pins.
    CannotCreateOutputError, OutputIOError
        The folder cannot be written.
    """
    folder = Path(model_dir) if model_dir is not None else None
    card = find_card(name, folder)
    home = home_of(card, folder, env)
    if "files" in card and not (card.get("packaged") and folder is None):
        if home is None:
            raise CannotCreateOutputError(
                f"there is no folder to keep {name} in: BSYM_MODEL_HOME, XDG_CACHE_HOME and HOME "
                "are not set",
                hint="name one with $BSYM_MODEL_HOME",
            )
        try:
            _fetch(card, home, source, env, Progress(stream))
        except InputMissingError as error:
            hints = filter(None, (error.hint, ways_out(card, home, env)))
            raise InputMissingError(
                f"{name} cannot be fetched: {error}", hint="; or ".join(hints)
            ) from error
    return resolve_release(name, folder, env)


def resolve_or_fetch(name: str, model_dir: Path | None = None) -> Release:
    """Return a release; one that has an address is fetched when it is used first.

    Raises
    ------
    BsymError
        As `resolve_release` and `fetch_release`.
    """
    try:
        return resolve_release(name, model_dir)
    except InputMissingError:
        if first_use_source(name, model_dir) is None:
            raise
        return fetch_release(name)


def source_of(
    card: Mapping[str, Any], source: str | None = None, env: Mapping[str, str] = os.environ
) -> str | None:
    """Return where the files of a release come from; None when that is nowhere."""
    if source:
        return source
    if mirror := env.get("BSYM_MODEL_MIRROR"):
        return f"{mirror.rstrip('/')}/{card['name']}"
    return card.get("url")


def first_use_source(
    name: str,
    model_dir: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] = os.environ,
) -> str | None:
    """Return from where a release that is not here may be fetched when it is first used.

    Returns
    -------
    str or None
        Folder or address; None when a folder of the user's has to hold it, when its card has no
        address and when downloads are forbidden.
    """
    card = find_card(name, model_dir)
    source = source_of(card, env=env)
    if model_dir is not None or source is None or card.get("packaged") or "files" not in card:
        return None
    is_remote = local_folder(source) is None
    if is_remote and is_offline(env):
        return None
    return without_credentials(source)


def _fetch(
    card: Mapping[str, Any],
    home: Path,
    source: str | None,
    env: Mapping[str, str],
    progress: Progress,
) -> None:
    """Fetch what is missing in the home of a release, alone."""
    name = card["name"]
    if not _wanted(card, home):
        return
    origin = source_of(card, source, env)
    may_leave = origin != card.get("url")  # the user's word for it, not that of a card
    if origin is None:
        raise UsageError(
            f"the card of {name} has no address to fetch it from", hint="name one with --from"
        )
    if local_folder(origin) is None and is_offline(env):
        raise InputMissingError("BSYM_OFFLINE is set, so nothing is downloaded")
    patience = Patience.of(env)
    shown = without_credentials(origin)

    def on_wait() -> None:
        progress.say(f"{name}: waiting for another process that fetches it into {home}")

    with ExitStack() as stack:
        with writing(home):
            home.mkdir(parents=True, exist_ok=True)
            dead_after = max(_DEAD, 5 * patience.silence)
            taking_turns = turn(home / _LOCK, on_wait, lambda: _sizes(home), dead_after)
            mine = stack.enter_context(taking_turns)
        wanted = _wanted(card, home)
        if not wanted:
            return
        _repeat_failure(mine, shown)
        progress.say(f"{name}: fetching {len(wanted)} file(s) from {shown} into {home}")
        stack.callback(progress.close)
        try:
            for entry in wanted.values():
                bring = partial(
                    _bring, origin=origin, patience=patience, progress=progress, may_leave=may_leave
                )
                _fetch_file(card, entry, home, shown, bring, progress, mine.alone)
        except BsymError as error:
            _leave_failure(mine, shown, error)
            raise
        with suppress(OSError):
            mine.leave("")


def _wanted(card: Mapping[str, Any], home: Path) -> dict[str, Mapping[str, str]]:
    """Return the entries of the files that are not there, or are not what the card pins."""
    wanted = {}
    for branch, entry in card["files"].items():
        place = place_of(entry, home)
        if place is None or not _is_right(place, entry):
            wanted[branch] = entry
    return wanted


def _fetch_file(
    card: Mapping[str, Any],
    entry: Mapping[str, str],
    home: Path,
    origin: str,
    bring: Callable[[str, Path], None],
    progress: Progress,
    alone: bool,
) -> None:
    """Bring one file in, verify it, and give it its name."""
    label = f"{card['name']}: {entry['path']}"
    progress.start(label)
    if place := place_of(entry, home):
        progress.say(f"{place}: not the file that the card pins: it is fetched anew")
    target = home / entry["path"]
    # Where another process may be writing too, what is begun is not gone on with.
    own = "" if alone else f".{uuid.uuid4().hex[:8]}"
    part = target.with_name(f".{target.name}{own}.part")
    try:
        with writing(part):
            _make_folder(target.parent, home)
            began = part.exists()
        bring(entry["path"], part)
        if began and not _is_right(part, entry):
            progress.say(f"{label}: what was here of it is of no use")
            _remove(part)
            bring(entry["path"], part)
        _publish(part, target, entry, card["name"], origin)
    finally:
        if not alone:
            _remove(part)
    progress.say(f"{label}: verified")


def _make_folder(folder: Path, home: Path) -> None:
    """Make the folder of a file, unless a link in the home of the release leads out of it."""
    if not folder.resolve().is_relative_to(home.resolve()):
        raise CannotCreateOutputError(
            f"{folder}: leads out of {home} by a link, and nothing is written through it",
            hint="put a folder in its place",
        )
    folder.mkdir(parents=True, exist_ok=True)


def _bring(
    path: str,
    part: Path,
    *,
    origin: str,
    patience: Patience,
    progress: Progress,
    may_leave: bool,
) -> None:
    """Complete a part from a folder or a server, laid out as in the release or flat."""
    flat = Path(path).name
    folder = local_folder(origin)
    if folder is not None:
        copy_file([folder / path, folder / flat], part, progress)
    else:
        urls = [f"{origin.rstrip('/')}/{quote(place)}" for place in dict.fromkeys([path, flat])]
        download_file(urls, part, patience, progress, may_leave=may_leave)


def _is_right(part: Path, entry: Mapping[str, str]) -> bool:
    try:
        check_file(part, entry, "")
    except BadDataError:
        return False
    return True


def _publish(part: Path, target: Path, entry: Mapping[str, str], name: str, origin: str) -> None:
    """Give a part its final name if it is the file that the card pins, else take it away."""
    try:
        check_file(part, entry, name)
    except BadDataError as error:
        said = str(error).removeprefix(f"{part}: ")
        _remove(part)
        raise BadDataError(
            f"{entry['path']} from {origin}: {said}",
            hint="nothing of it was kept. The source has another file, or something on the way "
            "(a proxy, a page to log in) answered in its place: take another with --from",
        ) from error
    with writing(target):
        os.replace(part, target)
        _settle_folder(target.parent)


def _remove(part: Path) -> None:
    with writing(part):
        part.unlink(missing_ok=True)


def _settle_folder(folder: Path) -> None:
    """Have the disk keep the names in a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sizes(home: Path) -> list[tuple[str, int]]:
    """Return names and sizes of the parts and files in a folder: they change while it is filled."""
    sizes = []
    for path in home.rglob("*"):
        try:
            sizes.append((path.name, path.stat().st_size))
        except OSError:
            continue  # it has got its name in between
    return sorted(sizes)


def _leave_failure(mine: Turn, origin: str, error: BsymError) -> None:
    """Tell those who wait, so that a hundred jobs without a network don't try one by one."""
    if error.exit_code in _SHARED:
        news = {"id": uuid.uuid4().hex, "origin": origin, "code": error.exit_code}
        with suppress(OSError):  # then they find out for themselves
            mine.leave(json.dumps(news | {"message": str(error), "hint": error.hint}))


def _repeat_failure(mine: Turn, origin: str) -> None:
    """Fail as the process did that was waited for, if it asked the same source."""
    try:
        news = parse_json(mine.news)
        asked = news["origin"]
        error = _SHARED[news["code"]](str(news["message"]), str(news["hint"]))
    except (ValueError, LookupError, TypeError):
        return
    if asked == origin:
        raise error

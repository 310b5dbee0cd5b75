"""Named model releases: where their files are, whether they are intact, and strict loading.

A release is described by a card (`bsym_bids.model.cards`). Resolving one reads and verifies its
files, and imports nothing heavy, so that a run can stop before any processing; loading needs torch.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bsym_bids.errors import BadDataError, InputMissingError, UsageError
from bsym_bids.model.cards import (
    BRANCHES,
    OFFICIAL,
    UNTRAINED,
    find_card,
    known_releases,
    own_card,
    packaged_folder,
    read_card,
)
from bsym_bids.untrusted import read_bytes

if TYPE_CHECKING:
    import numpy as np

    from bsym_bids.model.brainsymphony import BrainSymphony

_CHUNK = 1 << 20
#: Bytes of the largest file of weights; those of the official release have 40 MB.
LARGEST_FILE = 1 << 32
_MOST_INFLATED = 8
_OFF = ("", "0", "false", "no", "off")


@dataclass(frozen=True)
class Release:
    """A model release whose files were found and verified.

    Attributes
    ----------
    name, version : str
        Name, and commit or version of the weights.
    trained : bool
        False for random weights.
    card : mapping
        The release card.
    files : mapping of str to Path
        File of each branch; empty for random weights.
    sha256 : mapping of str to str
        Checksum of each of these files.
    folder : Path, optional
        Where the files are.
    """

    name: str
    version: str
    trained: bool
    card: Mapping[str, Any]
    files: Mapping[str, Path] = field(default_factory=dict)
    sha256: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None

    def has_branch(self, name: str) -> bool:
        """Tell whether the network has a branch, by its card."""
        return name in self.card.get("files", self.card.get("sizes", ()))

    @property
    def fingerprint(self) -> str:
        """One SHA-256 of all that decides the network, except the seed of random weights."""
        parts = [self.name, self.version, dict(self.sha256)]
        parts += [self.card["network"], self.card.get("sizes")]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @property
    def warning(self) -> str:
        """A sentence for the console and every sidecar; empty when there is nothing to warn of."""
        stated = str(self.card.get("warning", ""))
        return stated if stated or self.trained else f"The model {self.name!r} is not trained."


def default_model_name(env: Mapping[str, str] = os.environ) -> str:
    """Return the model to use when none is named: ``$BSYM_MODEL``, else the official release."""
    return env.get("BSYM_MODEL") or OFFICIAL


def release_folder(name: str, env: Mapping[str, str] = os.environ) -> Path | None:
    """Return where the files of a known release belong, or None when no place can be told.

    ``$BSYM_MODEL_HOME/<name>``, else ``bsym-bids/models/<name>`` in the user's cache
    (``$XDG_CACHE_HOME``, else ``$HOME/.cache``). Nothing is created.
    """
    if env.get("BSYM_MODEL_HOME"):
        return Path(env["BSYM_MODEL_HOME"]) / name
    cache = env.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(cache):  # the XDG specification has relative paths ignored
        cache = os.path.join(env["HOME"], ".cache") if env.get("HOME") else ""
    return Path(cache) / "bsym-bids" / "models" / name if cache else None


def is_offline(env: Mapping[str, str] = os.environ) -> bool:
    """Tell whether ``$BSYM_OFFLINE`` forbids to download anything."""
    return env.get("BSYM_OFFLINE", "").strip().lower() not in _OFF


def resolve_release(
    name: str,
    model_dir: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] = os.environ,
) -> Release:
    """Find the files of a release and verify them.

    Parameters
    ----------
    name : str
        ``brainsymphony-v1``, ``untrained``, or the name on the card in ``model_dir``.
    model_dir : path, optional
        Folder with the files. For ``brainsymphony-v1`` laid out as in the release or flat,
        instead of `release_folder`; for a release of one's own it also holds the card.
    env : mapping
        Environment variables.

    Returns
    -------
    Release

    Raises
    ------
    UsageError
        For an unknown name, and for a folder given with ``untrained``.
    InputMissingError
        When files are absent.
    BadDataError
        When a file is not the one that the card pins, or cannot be read.
    """
    folder = Path(model_dir) if model_dir is not None else None
    card = find_card(name, folder)
    if "files" not in card:
        if folder is not None:
            raise UsageError(
                f"model {name!r} has no files, but a folder is given: {folder}",
                hint=f"leave out --model-dir, or say --model {OFFICIAL}",
            )
        return Release(name, card["version"], card["trained"], card)
    try:
        return _verified(card, home_of(card, folder, env), env)
    except InputMissingError as error:
        own = own_card(folder) if folder is not None else None
        if own is not None and own["name"] != name:
            error.hint = f"{folder} holds the release {own['name']!r}: name it with --model"
        raise


def home_of(
    card: Mapping[str, Any], model_dir: Path | None, env: Mapping[str, str] = os.environ
) -> Path | None:
    """Return the folder of a release: the given one, in the program, or as `release_folder`."""
    if model_dir is not None:
        return model_dir
    if card.get("packaged"):
        return packaged_folder(card["name"])
    return release_folder(card["name"], env)


def place_of(entry: Mapping[str, str], folder: Path) -> Path | None:
    """Return where a file of a release lies, laid out as on the card or flat; None if nowhere."""
    path = Path(entry["path"])
    for place in (folder / path, folder / path.name):
        if os.path.isfile(place):  # os.path: what may not be looked at counts as not there
            return place
    return None


def ways_out(
    card: Mapping[str, Any], folder: Path | None, env: Mapping[str, str] = os.environ
) -> str:
    """Return what a user can do whose model has no files."""
    name = card["name"]
    if folder == packaged_folder(name):
        return "the files belong to the installation of bsym-bids: install it again"
    ways = [
        f"name the folder that holds them with --model-dir, or $BSYM_MODEL_HOME ({name}/ inside it)"
    ]
    if "url" in card:
        into = f", and copy them to {folder}" if folder else ""
        ways.insert(
            0,
            f"get them with `bsym-model fetch {name}` where there is a network{into}, or from a "
            f"copy with `bsym-model fetch {name} --from FOLDER_OR_URL`",
        )
        if is_offline(env):
            ways.insert(0, "unset BSYM_OFFLINE, which forbids downloads")
    others = [other for other in known_releases() if read_card(other).get("packaged")]
    ways += [f"use --model {other}, which comes with bsym-bids" for other in others]
    ways.append(f"for a trial without any, use --model {UNTRAINED}")
    return "; or ".join(ways)


def check_file(path: Path, pinned: Mapping[str, str], name: str) -> str:
    """Verify a file of a release.

    Parameters
    ----------
    path : Path
        The file.
    pinned : mapping
        Entry of the card, with ``sha256`` or ``git_sha1`` or both.
    name : str
        Name of the release, for messages.

    Returns
    -------
    str
        SHA-256 of the file.

    Raises
    ------
    BadDataError
        When it is another file, or cannot be read.
    """
    try:
        sums, size = checksums(path)
    except OSError as error:
        raise BadDataError(f"{path}: cannot be read: {error.strerror}") from error
    for kind, value in sums.items():
        if kind in pinned and pinned[kind] != value:
            raise BadDataError(
                f"{path}: not the file of {name}: its {kind} is {value} instead of "
                f"{pinned[kind]} ({size} bytes)",
                hint=f"the file is damaged, truncated or another one: get it again (`bsym-model "
                f"fetch {name}` does so for a release that has an address)",
            )
    return sums["sha256"]


def checksums(path: Path) -> tuple[dict[str, str], int]:
    """Return the checksums of a file by kind, and its size.

    Returns
    -------
    sums : dict of str to str
        ``sha256``, and ``git_sha1``, the SHA-1 that git gives a file of this content.
    size : int
        Bytes.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        sha256, git = hashlib.sha256(), hashlib.sha1(usedforsecurity=False)
        git.update(b"blob %d\0" % size)
        while chunk := file.read(_CHUNK):
            sha256.update(chunk)
            git.update(chunk)
    return {"git_sha1": git.hexdigest(), "sha256": sha256.hexdigest()}, size


def load_model(release: Release, seed: int = 0) -> BrainSymphony:
    """Load the network of a release.

    Parameters
    ----------
    release : Release
        As `resolve_release` returns it.
    seed : int
        Seed of random weights; without effect on trained ones.

    Returns
    -------
    BrainSymphony
        On the CPU, in evaluation mode.

    Raises
    ------
    BadDataError
        When a file changed since it was verified, is not a state dict, or does not fit.
    """
    from bsym_bids.model.brainsymphony import BrainSymphony
    from bsym_bids.model.contract import check_card_fits

    if not release.files:
        states = random_state_dicts(release.card, seed)
    else:
        states = {branch: _load_file(release, branch) for branch in release.files}
    try:
        model = BrainSymphony.from_state_dicts(**states, **release.card["network"])
    except BadDataError as error:
        raise BadDataError(
            f"model {release.name}: {_naming_files(str(error), release)}", error.hint
        ) from error
    check_card_fits(release, model)
    return model


def load_random(release: Release, seed: int = 0) -> BrainSymphony:
    """Make the network of a release with random weights in place of its own.

    It has the sizes, heads and attention of the release, and its weights are drawn as
    `random_state_dicts` draws them: what its architecture gives without any training.

    Parameters
    ----------
    release : Release
        As `resolve_release` returns it.
    seed : int
        Not negative.

    Returns
    -------
    BrainSymphony
        On the CPU, in evaluation mode.

    Raises
    ------
    BadDataError
        As `load_model`.
    """
    from bsym_bids.model.brainsymphony import BrainSymphony

    states = {
        branch: {
            key: _draw(branch, key, tuple(value.shape), seed)
            for key, value in _load_file(release, branch).items()
        }
        for branch in release.files
    }
    if not states:
        return load_model(release, seed)
    return BrainSymphony.from_state_dicts(**states, **release.card["network"])


def _naming_files(message: str, release: Release) -> str:
    """Put the file before each branch that a message of the network starts a statement with."""

    def name(found: re.Match[str]) -> str:
        branch = found[1]
        return f"{release.files[branch]} ({branch}): " if branch in release.files else found[0]

    return re.sub(rf"\b({'|'.join(BRANCHES)}): ", name, message)


def random_state_dicts(card: Mapping[str, Any], seed: int) -> dict[str, dict[str, np.ndarray]]:
    """Draw weights of the sizes on a card.

    Each parameter has its own random stream, from the seed and its name, so that the numbers depend
    on nothing else. Weights of linear maps have variance 1 / fan-in, which keeps activations at
    the same scale; positional codes and latents have unit variance, as the published code starts
    them; gains are 1 and biases 0.

    Parameters
    ----------
    card : mapping
        Release card with ``sizes`` and ``network``.
    seed : int
        Not negative.

    Returns
    -------
    dict of str to dict of str to ndarray
        State dict of each branch.
    """
    import torch

    from bsym_bids.model.brainsymphony import BRANCHES as MODULES

    states = {}
    for branch, sizes in card["sizes"].items():
        # The number of heads changes no shape.
        heads = {} if branch in ("context", "gate") else {"heads": 1}
        with torch.device("meta"):
            module = MODULES[branch](**sizes, **heads)
        states[branch] = {
            key: _draw(branch, key, tuple(value.shape), seed)
            for key, value in module.state_dict().items()
        }
    return states


def _draw(branch: str, key: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    import numpy as np

    if branch == "temporal" and key == "pos_enc.pe":
        return _sinusoid(*shape[1:])
    if len(shape) < 2:
        is_gain = key.endswith(".weight") or key == "pos_enc.alpha"
        return np.full(shape, 1 if is_gain else 0, np.float32)
    stream = np.random.default_rng([seed, zlib.crc32(f"{branch}.{key}".encode())])
    value = stream.standard_normal(shape, dtype=np.float32)
    if key.rpartition(".")[2] in ("pe", "latents", "pos_embed"):
        return value
    return value / np.float32(np.sqrt(np.prod(shape[1:])))


def _sinusoid(positions: int, width: int) -> np.ndarray:
    """Return the code of Vaswani et al. (2017), section 3.5: (1, positions, width)."""
    import numpy as np

    angle = np.arange(positions)[:, None] / 10000 ** (np.arange(0, width, 2) / width)
    code = np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(1, positions, width)
    return code.astype(np.float32)


def _verified(card: Mapping[str, Any], folder: Path | None, env: Mapping[str, str]) -> Release:
    """Return the release with its files, once each is what the card pins."""
    files = _find_files(card, folder, env)
    sha256 = {
        branch: check_file(path, card["files"][branch], card["name"])
        for branch, path in files.items()
    }
    return Release(card["name"], card["version"], card["trained"], card, files, sha256, folder)


def _find_files(
    card: Mapping[str, Any], folder: Path | None, env: Mapping[str, str]
) -> dict[str, Path]:
    """Locate the files, or say which are missing where."""
    found = {
        branch: place_of(entry, folder) if folder else None
        for branch, entry in card["files"].items()
    }
    missing = [card["files"][branch]["path"] for branch, place in found.items() if place is None]
    if missing:
        where = f"in {folder}" if folder else "(HOME and XDG_CACHE_HOME are not set)"
        raise InputMissingError(
            f"model {card['name']}: files are missing {where}: {', '.join(missing)}",
            hint=ways_out(card, folder, env),
        )
    return {branch: place for branch, place in found.items() if place is not None}


def _load_file(release: Release, branch: str) -> Mapping[str, Any]:
    """Load one verified file; nothing but tensors is unpickled."""
    import torch

    path = release.files[branch]
    try:
        content = read_bytes(path, LARGEST_FILE)
    except OSError as error:
        raise BadDataError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise BadDataError(f"{path}: cannot be read: {error}") from error
    # It may be long since it was verified, in another process.
    if hashlib.sha256(content).hexdigest() != release.sha256[branch]:
        raise BadDataError(
            f"{path}: changed since it was verified", hint="start the run again, or get it again"
        )
    try:
        _check_inflated(content)
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises whatever the bytes lead it to
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadDataError(f"{path}: not a state dict that can be loaded: {reason}") from error
    if not isinstance(state, Mapping) or not state:
        raise BadDataError(f"{path}: holds {type(state).__name__} instead of a state dict")
    return state


def _check_inflated(content: bytes) -> None:
    """Refuse an archive that inflates to much more than it is: weights don't compress so well."""
    file = io.BytesIO(content)
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > _MOST_INFLATED * len(content) + _CHUNK:
            raise ValueError(f"its {len(content)} bytes inflate to {size}")

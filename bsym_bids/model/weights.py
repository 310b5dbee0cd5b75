"""Named model releases: where their files are, whether they are intact, and strict loading.

A release is described by a card (YAML). Resolving one reads and verifies its files, and imports
nothing heavy, so that a run can stop before any processing; loading needs torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bsym_bids.errors import BadDataError, InputMissingError, UsageError

if TYPE_CHECKING:
    import numpy as np

    from bsym_bids.model.brainsymphony import BrainSymphony

OFFICIAL = "brainsymphony-v1"
UNTRAINED = "untrained"
CARD_FILES = ("model.yaml", "model.json")
_BRANCHES = ("spatial", "temporal", "context", "perceiver", "structural", "gate")
_NETWORK_KEYS = {f"{name}_heads" for name in ("spatial", "temporal", "perceiver", "structural")} | {
    "attention",
    "max_hops",
    "diffusion_theta",
}


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

    @property
    def fingerprint(self) -> str:
        """One SHA-256 of all that decides the network, except the seed of random weights."""
        parts = [self.name, self.version, dict(self.sha256)]
        parts += [self.card["network"], self.card.get("sizes")]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @property
    def warning(self) -> str:
        """A sentence for the console and every sidecar; empty for trained weights."""
        if self.trained:
            return ""
        return self.card.get("warning") or f"The model {self.name!r} is not trained."


def default_model_name(env: Mapping[str, str] = os.environ) -> str:
    """Return the model to use when none is named: ``$BSYM_MODEL``, else the official release."""
    return env.get("BSYM_MODEL") or OFFICIAL


def known_releases() -> tuple[str, ...]:
    """Return the names of the releases that the program knows."""
    folder = resources.files("bsym_bids") / "data" / "models"
    return tuple(sorted(Path(item.name).stem for item in folder.iterdir()))


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
    card = resources.files("bsym_bids") / "data" / "models" / f"{name}.yaml"
    return _parse_card(card.read_text("utf-8"), name)


def find_card(name: str, model_dir: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Return the card of a release: the one in its folder if that is its name, else as `read_card`.

    The names that the program knows are taken: a card in a folder cannot stand for them.
    """
    own_card = _own_card(Path(model_dir)) if model_dir is not None else None
    if own_card is not None and own_card["name"] == name and name not in known_releases():
        return own_card
    return read_card(name)


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
    if name == UNTRAINED:
        if folder is not None:
            raise UsageError(
                f"model 'untrained' has no files, but a folder is given: {folder}",
                hint=f"leave out --model-dir, or say --model {OFFICIAL}",
            )
        card = read_card(name)
        return Release(name, str(card["version"]), card["trained"], card)
    own_card = _own_card(folder)
    try:
        return _verified(find_card(name, folder), folder or release_folder(name, env))
    except InputMissingError as error:
        if own_card is not None:
            error.hint = f"{folder} holds the release {own_card['name']!r}: name it with --model"
        raise


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

    if not release.files:
        states = random_state_dicts(release.card, seed)
    else:
        states = {branch: _load_file(release, branch) for branch in release.files}
    try:
        return BrainSymphony.from_state_dicts(**states, **release.card["network"])
    except BadDataError as error:
        where = release.folder or "random weights"
        raise BadDataError(f"model {release.name} ({where}): {error}", error.hint) from error


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

    from bsym_bids.model.brainsymphony import BRANCHES

    states = {}
    for branch, sizes in card["sizes"].items():
        # The number of heads changes no shape.
        heads = {} if branch in ("context", "gate") else {"heads": 1}
        with torch.device("meta"):
            module = BRANCHES[branch](**sizes, **heads)
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


def _own_card(folder: Path | None) -> dict[str, Any] | None:
    """Read the card that a folder holds, if it holds one."""
    for name in CARD_FILES if folder is not None else ():
        path = folder / name
        try:
            text = path.read_text("utf-8")
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, UnicodeDecodeError) as error:
            raise BadDataError(f"{path}: cannot be read: {error}") from error
        return _parse_card(text, str(path))
    return None


def _parse_card(text: str, where: str) -> dict[str, Any]:
    """Parse a card and check what the program relies on."""
    import yaml

    try:
        card = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BadDataError(f"{where}: cannot be read as YAML: {error}") from error
    if not isinstance(card, dict):
        raise BadDataError(f"{where}: not a release card")
    for key, kind in (("name", str), ("version", str), ("trained", bool), ("network", dict)):
        if not isinstance(card.get(key), kind):
            raise BadDataError(f"{where}: the release card needs {key!r} ({kind.__name__})")
    if unknown := set(card["network"]) - _NETWORK_KEYS:
        raise BadDataError(f"{where}: unknown setting of the network: {', '.join(unknown)}")
    if "sizes" not in card:
        _check_files(card.get("files"), where)
    return card


def _check_files(files: Any, where: str) -> None:
    if not isinstance(files, dict) or not files or not set(files) <= set(_BRANCHES):
        raise BadDataError(
            f"{where}: the release card needs 'files' with some of {', '.join(_BRANCHES)}"
        )
    for branch, entry in files.items():
        pinned = isinstance(entry, dict) and ("sha256" in entry or "git_sha1" in entry)
        if not pinned or not isinstance(entry.get("path"), str):
            raise BadDataError(f"{where}: files: {branch} needs 'path' and 'sha256'")
        if Path(entry["path"]).is_absolute() or ".." in Path(entry["path"]).parts:
            raise BadDataError(f"{where}: files: {branch} lies outside the folder of the release")


def _verified(card: Mapping[str, Any], folder: Path | None) -> Release:
    """Return the release with its files, once each is what the card pins."""
    files = _find_files(card, folder)
    sha256 = {}
    for branch, path in files.items():
        content = _read(path)
        sha256[branch] = hashlib.sha256(content).hexdigest()
        _check_content(path, content, card["files"][branch], card)
    return Release(card["name"], card["version"], card["trained"], card, files, sha256, folder)


def _find_files(card: Mapping[str, Any], folder: Path | None) -> dict[str, Path]:
    """Locate the files, laid out as on the card or flat, or say which are missing where."""
    found: dict[str, Path] = {}
    missing = []
    for branch, entry in card["files"].items():
        path = Path(entry["path"])
        places = (folder / path, folder / path.name) if folder else ()
        # os.path: a folder that may not be searched counts as holding nothing
        here = [place for place in places if os.path.isfile(place)]
        if here:
            found[branch] = here[0]
        else:
            missing.append(entry["path"])
    if missing:
        where = f"in {folder}" if folder else "(HOME and XDG_CACHE_HOME are not set)"
        raise InputMissingError(
            f"model {card['name']}: files are missing {where}: {', '.join(missing)}",
            hint=_ways_out(card, folder),
        )
    return found


def _ways_out(card: Mapping[str, Any], folder: Path | None) -> str:
    ways = [
        f"name the folder that holds them with --model-dir, or $BSYM_MODEL_HOME ({card['name']}/ "
        "inside it)",
        f"for a trial without them, use --model {UNTRAINED}",
    ]
    if "url" in card:
        target = folder or "a folder of yours"
        ways.insert(0, f"download them from {card['url']}/<file> into {target}")
    return "; or ".join(ways)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadDataError(f"{path}: cannot be read: {error.strerror}") from error


def git_blob_sha1(content: bytes) -> str:
    """Return the SHA-1 that git gives a file of this content."""
    header = b"blob %d\0" % len(content)
    return hashlib.sha1(header + content, usedforsecurity=False).hexdigest()


def _check_content(
    path: Path, content: bytes, pinned: Mapping[str, str], card: Mapping[str, Any]
) -> None:
    sums = {"git_sha1": git_blob_sha1(content), "sha256": hashlib.sha256(content).hexdigest()}
    for kind, value in sums.items():
        if kind in pinned and pinned[kind] != value:
            raise BadDataError(
                f"{path}: not the file of {card['name']}: its {kind} is {value} instead of "
                f"{pinned[kind]} ({len(content)} bytes)",
                hint="the file is damaged, truncated or another one: get it again",
            )


def _load_file(release: Release, branch: str) -> Mapping[str, Any]:
    """Load one verified file; nothing but tensors is unpickled."""
    import io

    import torch

    path = release.files[branch]
    content = _read(path)
    # It may be long since it was verified, in another process.
    if hashlib.sha256(content).hexdigest() != release.sha256[branch]:
        raise BadDataError(
            f"{path}: changed since it was verified", hint="start the run again, or get it again"
        )
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises whatever the bytes lead it to
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadDataError(f"{path}: not a state dict that can be loaded: {reason}") from error
    if not isinstance(state, Mapping) or not state:
        raise BadDataError(f"{path}: holds {type(state).__name__} instead of a state dict")
    return state

"""Tractography presets: what decides a tractogram besides the data.

A preset is policy, so it is data: one YAML file each under ``data/tractography``, with what every
key means in its comments, or a user's own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from bsym_bids.errors import InputMissingError, UsageError
from bsym_bids.untrusted import parse_yaml, read_yaml

RESPONSES = ("auto", "dhollander", "tournier", "fa")
FODS = ("auto", "msmt_csd", "csd")
#: Spheres of DIPY, with that many directions (half of them, for fibres have no sign).
SPHERES = ("repulsion100", "repulsion200", "repulsion724")
_FOLDER = "data/tractography"
_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Mrtrix3Parameters:
    """What MRtrix3 takes: see the comments in ``data/tractography/full.yaml``.

    Attributes
    ----------
    response : str
        Algorithm of ``dwi2response``; ``auto`` is dhollander for two shells or more, else tournier.
    fod : str
        Algorithm of ``dwi2fod``; ``auto`` is msmt_csd for two shells or more, else csd.
    step : float
        Length of a step in voxels (cube root of the voxel's volume).
    angle : float
        Largest turn per step in degrees.
    cutoff : float
        FOD amplitude that ends a streamline, with tissue; without tissue twice that.
    """

    response: str
    fod: str
    step: float
    angle: float
    cutoff: float


@dataclass(frozen=True)
class DipyParameters:
    """What DIPY takes: see the comments in ``data/tractography/full.yaml``.

    Attributes
    ----------
    step : float
        Length of a step in voxels (cube root of the voxel's volume).
    angle : float
        Largest turn per step in degrees.
    cutoff : float
        Directions whose FOD amplitude is below this share of the largest one at the same place are
        not taken.
    sphere : str
        One of `SPHERES`: the directions that streamlines choose among.
    """

    step: float
    angle: float
    cutoff: float
    sphere: str


@dataclass(frozen=True)
class Preset:
    """A tractography preset.

    Attributes
    ----------
    name, description : str
        For the sidecars.
    reliability : float
        Sampling reliability at which tracking stops.
    max_streamlines : int
        Where it stops at the latest.
    batch_size : int
        Streamlines per batch.
    min_length, max_length : float
        Shortest and longest streamline in mm.
    voxel_size : float, optional
        Series with smaller voxels are brought to cubes of this edge (mm) before fibre orientations
        are fitted; None keeps every grid.
    lmax : int
        Highest order of the spherical harmonics; fewer directions lower it.
    fa_stop, fa_seed : float
        Without tissue: FA below which a streamline ends, and above which it may begin.
    seeds_per_streamline : int
        So many seeds per streamline may fail before tracking gives up.
    sift2 : bool
        Whether streamlines are weighted by SIFT2, where the engine has it.
    mrtrix3, dipy
        What each engine takes.
    """

    name: str
    description: str
    reliability: float
    max_streamlines: int
    batch_size: int
    min_length: float
    max_length: float
    voxel_size: float | None
    lmax: int
    fa_stop: float
    fa_seed: float
    seeds_per_streamline: int
    sift2: bool
    mrtrix3: Mrtrix3Parameters
    dipy: DipyParameters

    def parameters(self, engine: str) -> dict[str, Any]:
        """Return everything that decides a tractogram of one engine, for sidecars and resuming."""
        values = asdict(self)
        for other in ("mrtrix3", "dipy"):
            if other != engine:
                del values[other]
        return values


def preset_names() -> tuple[str, ...]:
    """Return the names of the presets that come with the package."""
    folder = files("bsym_bids").joinpath(_FOLDER)
    return tuple(sorted(Path(f.name).stem for f in folder.iterdir() if f.name.endswith(".yaml")))


def load_preset(name_or_path: str | Path) -> Preset:
    """Load a preset of the package by name, or a user's own from a YAML file.

    A user's file may begin with ``base: fast`` (or any other preset by name) and then only say what
    differs; otherwise it has to have all keys.

    Parameters
    ----------
    name_or_path : str or Path
        One of `preset_names`, or a path: anything with a folder in it or ending in ``.yaml`` or
        ``.yml``.

    Returns
    -------
    Preset

    Raises
    ------
    UsageError
        Unknown name, or a file with a wrong, missing or unknown key.
    InputMissingError
        There is no such file.
    """
    text, path = str(name_or_path), Path(name_or_path)
    if text in preset_names():
        return _make(_packaged(text), f"{text}.yaml")
    if path.suffix.lower() in _SUFFIXES or len(path.parts) > 1:
        return _make(_with_base(_mapping(_read(path), text), text), text)
    close = get_close_matches(text, preset_names(), n=1)
    raise UsageError(
        f"unknown tractography preset {text!r}"
        + (f", did you mean {close[0]!r}?" if close else ""),
        hint=f"known presets: {', '.join(preset_names())}; or the path of a YAML file",
    )


def _packaged(name: str) -> dict[str, Any]:
    text = files("bsym_bids").joinpath(f"{_FOLDER}/{name}.yaml").read_text("utf-8")
    return _mapping(parse_yaml(text, _Loader), f"{name}.yaml")


def _read(path: Path) -> Any:
    try:
        return read_yaml(path, _Loader)
    except FileNotFoundError:
        raise InputMissingError(f"{path}: no such tractography preset file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as text: {error}") from error
    except ValueError as error:
        raise UsageError(
            f"{path}: cannot be read as YAML: {error}", "docs/running.md shows such a file"
        ) from error


class _Loader(yaml.SafeLoader):
    """Takes 1e6 and 1e-2 for numbers, as YAML 1.2 does; to YAML 1.1 they are text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _mapping(document: Any, source: str) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise UsageError(f"{source}: must be a mapping of keys")
    return document


def _with_base(document: dict[str, Any], source: str) -> dict[str, Any]:
    """Put what a file says on top of the preset that it names as its base."""
    if "base" not in document:
        return document
    own = {key: value for key, value in document.items() if key != "base"}
    base = document["base"]
    if base not in preset_names():
        raise _wrong(source, "base", base, f"one of {', '.join(preset_names())}")
    merged = {**_packaged(base), "description": f"{base}, changed by {Path(source).name}"}
    for key, value in own.items():
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = {**merged[key], **value} if nested else value
    if "name" not in own:
        merged["name"] = Path(source).stem
    return merged


# --- checking ------------------------------------------------------------------------------------

Check = Callable[[str, str, Any], Any]


def _wrong(source: str, key: str, value: Any, wanted: str) -> UsageError:
    return UsageError(f"{source}: {key} is {value!r}, but must be {wanted}")


def _text(source: str, key: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise _wrong(source, key, value, "text (put it in quotes)")
    return value


def _switch(source: str, key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _wrong(source, key, value, "true or false")
    return value


def _choice(*known: str) -> Check:
    def check(source: str, key: str, value: Any) -> str:
        if value not in known:
            raise _wrong(source, key, value, f"one of {', '.join(known)}")
        return str(value)

    return check


def _number(low: float, high: float, unit: str = "") -> Check:
    wanted = f"a number from {low:g} to {high:g}{unit and ' ' + unit}"

    def check(source: str, key: str, value: Any) -> float:
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        if not numeric or not low <= value <= high:
            raise _wrong(source, key, value, wanted)
        return float(value)

    return check


def _whole(low: int, high: int) -> Check:
    def check(source: str, key: str, value: Any) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # 1e6 and the like
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise _wrong(source, key, value, f"a whole number from {low} to {high}")
        return value

    return check


def _voxel_size(source: str, key: str, value: Any) -> float | None:
    if value == "native":
        return None
    try:
        return _number(0.5, 5, "mm")(source, key, value)
    except UsageError:
        raise _wrong(source, key, value, "'native' or a number from 0.5 to 5 mm") from None


def _even(source: str, key: str, value: Any) -> int:
    if value not in (2, 4, 6, 8) or isinstance(value, bool):
        raise _wrong(source, key, value, "2, 4, 6 or 8")
    return int(value)


_STEP = _number(0.05, 2, "voxels")
_ANGLE = _number(1, 90, "degrees")
_MRTRIX3: Mapping[str, Check] = {
    "response": _choice(*RESPONSES),
    "fod": _choice(*FODS),
    "step": _STEP,
    "angle": _ANGLE,
    "cutoff": _number(0, 1),
}
_DIPY: Mapping[str, Check] = {
    "step": _STEP,
    "angle": _ANGLE,
    "cutoff": _number(0, 1),
    "sphere": _choice(*SPHERES),
}
_PRESET: Mapping[str, Check] = {
    "name": _text,
    "description": _text,
    "reliability": _number(0.01, 0.99999),
    "max_streamlines": _whole(1, 10**9),
    "batch_size": _whole(1, 10**7),
    "min_length": _number(0, 1000, "mm"),
    "max_length": _number(1, 1000, "mm"),
    "voxel_size": _voxel_size,
    "lmax": _even,
    "fa_stop": _number(0, 1),
    "fa_seed": _number(0, 1),
    "seeds_per_streamline": _whole(1, 10**5),
    "sift2": _switch,
}


def _make(document: Mapping[str, Any], source: str) -> Preset:
    """Check a document key by key and make a preset of it."""
    groups = {"mrtrix3": _MRTRIX3, "dipy": _DIPY}
    _match_keys(document, [*_PRESET, *groups], source)
    values = {key: check(source, key, document[key]) for key, check in _PRESET.items()}
    nested = {}
    for group, checks in groups.items():
        mapping = document[group]
        if not isinstance(mapping, dict):
            raise _wrong(source, group, mapping, f"a mapping of {', '.join(checks)}")
        _match_keys(mapping, list(checks), f"{source}: {group}")
        nested[group] = {k: c(source, f"{group}: {k}", mapping[k]) for k, c in checks.items()}
    if values["min_length"] >= values["max_length"]:
        raise UsageError(f"{source}: min_length must be below max_length")
    if values["fa_stop"] > values["fa_seed"]:
        raise UsageError(f"{source}: fa_seed must not be below fa_stop")
    return Preset(
        **values,
        mrtrix3=Mrtrix3Parameters(**nested["mrtrix3"]),
        dipy=DipyParameters(**nested["dipy"]),
    )


def _match_keys(document: Mapping[Any, Any], known: list[str], source: str) -> None:
    """Refuse keys that nobody reads, and documents that leave one out."""
    for key in document:
        if key not in known:
            close = get_close_matches(str(key), known, n=1)
            raise UsageError(
                f"{source}: unknown key {key!r}"
                + (f", did you mean {close[0]!r}?" if close else ""),
                hint=f"known keys: {', '.join(known)}",
            )
    missing = [key for key in known if key not in document]
    if missing:
        raise UsageError(
            f"{source}: the key {missing[0]!r} is missing",
            hint="a file that begins with 'base: fast' only has to say what differs",
        )

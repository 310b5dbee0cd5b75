"""Nuisance strategies: which confounds are regressed out and how the series are filtered.

A strategy is policy, so it is data: one YAML file each under ``data/nuisance``, or a user's own.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

from bsym_bids.errors import InputMissingError, UsageError
from bsym_bids.untrusted import parse_yaml, read_yaml

FILTERS = ("butterworth", "cosine")
COMPCOR_MASKS = ("CSF", "WM", "combined")
_FOLDER = "data/nuisance"
_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class CompCor:
    """Which anatomical CompCor components are taken (Behzadi et al. 2007).

    Attributes
    ----------
    masks : tuple of str
        ``CSF``, ``WM`` or ``combined``; the components of each are taken.
    components : int, optional
        How many of each mask, from the first; None takes all.
    """

    masks: tuple[str, ...]
    components: int | None


@dataclass(frozen=True)
class NuisanceStrategy:
    r"""What is removed from the series, in one regression.

    Attributes
    ----------
    name, description : str
        For the sidecars.
    citation : tuple of str
        Where the strategy comes from.
    columns : tuple of str
        Columns of the confounds file: names, shell patterns (``aroma_motion_*``) or regular
        expressions between slashes (``/cosine\d+/``).
    acompcor : CompCor, optional
        Anatomical CompCor components.
    filter : str
        ``butterworth`` (order 5, forth and back) or ``cosine`` (discrete cosine regressors).
    high_pass, low_pass : float
        Cut-off frequencies in Hz; 0 is no filter.
    detrend : bool
        Whether mean and linear trend are removed.
    """

    name: str
    description: str = ""
    citation: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    acompcor: CompCor | None = None
    filter: str = "butterworth"
    high_pass: float = 0.0
    low_pass: float = 0.0
    detrend: bool = True

    @property
    def needs_confounds(self) -> bool:
        """Whether the strategy reads any column of a confounds file."""
        return bool(self.columns) or self.acompcor is not None


def is_regular_expression(column: str) -> bool:
    """Tell whether a column entry is a regular expression, that is, stands between slashes."""
    return len(column) > 2 and column.startswith("/") and column.endswith("/")


def strategy_names() -> tuple[str, ...]:
    """Return the names of the strategies that come with the package."""
    folder = files("bsym_bids").joinpath(_FOLDER)
    return tuple(sorted(Path(f.name).stem for f in folder.iterdir() if f.name.endswith(".yaml")))


def load_strategy(name_or_path: str | Path) -> NuisanceStrategy:
    """Load a strategy of the package by name, or a user's own from a YAML file.

    Parameters
    ----------
    name_or_path : str or Path
        One of `strategy_names`, or a path: anything with a folder in it or ending in ``.yaml`` or
        ``.yml``.

    Returns
    -------
    NuisanceStrategy

    Raises
    ------
    UsageError
        Unknown name, or a file with a wrong, missing or unknown key.
    InputMissingError
        There is no such file.
    """
    text = str(name_or_path)
    path = Path(name_or_path)
    if text in strategy_names():
        packaged = files("bsym_bids").joinpath(f"{_FOLDER}/{text}.yaml")
        return _parse(parse_yaml(packaged.read_text("utf-8")), f"{text}.yaml")
    if path.suffix.lower() in _SUFFIXES or len(path.parts) > 1:
        return _parse(_read(path), text)
    close = get_close_matches(text, strategy_names(), n=1)
    known = ", ".join(strategy_names())
    raise UsageError(
        f"unknown nuisance strategy {text!r}" + (f", did you mean {close[0]!r}?" if close else ""),
        hint=f"known strategies: {known}; or the path of a YAML file",
    )


def _read(path: Path) -> Any:
    try:
        return read_yaml(path)
    except FileNotFoundError:
        raise InputMissingError(f"{path}: no such nuisance strategy file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as text: {error}") from error
    except ValueError as error:
        raise UsageError(
            f"{path}: cannot be read as YAML: {error}", "docs/nuisance.md shows such a file"
        ) from error


def _parse(document: Any, source: str) -> NuisanceStrategy:
    """Check a YAML document key by key and make a strategy of it."""
    if not isinstance(document, dict):
        raise UsageError(f"{source}: must be a mapping of keys, as docs/nuisance.md shows")
    known = [f.name for f in fields(NuisanceStrategy)]
    _refuse_unknown(document, known, source)
    if "name" not in document or "columns" not in document:
        missing = "name" if "name" not in document else "columns"
        raise UsageError(
            f"{source}: the key {missing!r} is missing",
            hint="a strategy without regressors says 'columns: []'",
        )
    strategy = NuisanceStrategy(
        name=_text(document, "name", source),
        description=_text(document, "description", source),
        citation=_texts(document, "citation", source),
        columns=_columns(document, source),
        acompcor=_compcor(document, source),
        filter=_filter(document, source),
        high_pass=_frequency(document, "high_pass", source),
        low_pass=_frequency(document, "low_pass", source),
        detrend=_switch(document, "detrend", source),
    )
    if 0 < strategy.low_pass <= strategy.high_pass:
        raise UsageError(f"{source}: low_pass must be above high_pass")
    if strategy.filter == "cosine" and strategy.low_pass:
        raise UsageError(f"{source}: low_pass does not go with the filter 'cosine'")
    return strategy


def _refuse_unknown(document: dict[Any, Any], known: list[str], source: str) -> None:
    for key in document:
        if key not in known:
            raise UsageError(
                f"{source}: unknown key {key!r}", hint=f"known keys: {', '.join(known)}"
            )


def _wrong(source: str, key: str, value: Any, wanted: str) -> UsageError:
    return UsageError(f"{source}: {key} is {value!r}, but must be {wanted}")


def _text(document: dict[str, Any], key: str, source: str) -> str:
    value = document.get(key, "")
    if not isinstance(value, str):
        raise _wrong(source, key, value, "text (put it in quotes)")
    return value


def _texts(document: dict[str, Any], key: str, source: str) -> tuple[str, ...]:
    """Return a list of texts; lists within the list only group it for the eye."""
    value = document.get(key) or []
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        raise _wrong(source, key, value, "a list of text")
    flat = [entry for item in value for entry in (item if isinstance(item, list) else [item])]
    for entry in flat:
        if not isinstance(entry, str) or not entry:
            raise _wrong(source, key, entry, "a list of text")
    return tuple(dict.fromkeys(flat))


def _columns(document: dict[str, Any], source: str) -> tuple[str, ...]:
    columns = _texts(document, "columns", source)
    for entry in columns:
        if is_regular_expression(entry):
            try:
                re.compile(entry[1:-1])
            except (re.error, OverflowError, RecursionError) as error:
                raise _wrong(source, "columns", entry, f"a regular expression: {error}") from None
    return columns


def _compcor(document: dict[str, Any], source: str) -> CompCor | None:
    value = document.get("acompcor")
    if value is None:
        return None
    if not isinstance(value, dict):
        raise _wrong(source, "acompcor", value, "a mapping with masks and components")
    _refuse_unknown(value, ["masks", "components"], f"{source}: acompcor")
    masks = _texts(value, "masks", f"{source}: acompcor")
    if not masks or any(mask not in COMPCOR_MASKS for mask in masks):
        raise _wrong(source, "acompcor: masks", list(masks), f"among {', '.join(COMPCOR_MASKS)}")
    count = value.get("components")
    if count == "all":
        return CompCor(masks, None)
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise _wrong(source, "acompcor: components", count, "a whole number from 1, or 'all'")
    return CompCor(masks, count)


def _filter(document: dict[str, Any], source: str) -> str:
    value = document.get("filter", "butterworth")
    if value not in FILTERS:
        raise _wrong(source, "filter", value, f"one of {', '.join(FILTERS)}")
    return str(value)


def _frequency(document: dict[str, Any], key: str, source: str) -> float:
    value = document.get(key)
    if value is None:
        return 0.0
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    if not numeric or not math.isfinite(value) or value < 0:
        raise _wrong(source, key, value, "a frequency in Hz such as 0.008, or 0 for none")
    return float(value)


def _switch(document: dict[str, Any], key: str, source: str) -> bool:
    value = document.get(key, True)
    if not isinstance(value, bool):
        raise _wrong(source, key, value, "true or false")
    return value

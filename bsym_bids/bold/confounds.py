"""Reading the confounds table of a run, as fMRIPrep writes it.

Both names of the file (``_desc-confounds_timeseries.tsv`` and the older
``_desc-confounds_regressors.tsv``) hold the same kind of table. Expansions follow fMRIPrep's
definitions: ``X_derivative1`` is the backward difference of X, ``X_power2`` its square,
``X_derivative1_power2`` the square of the difference. Those that are absent are computed.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from io import StringIO
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bsym_bids.bold.nuisance import CompCor, NuisanceStrategy, is_regular_expression
from bsym_bids.errors import BadDataError, InputMissingError
from bsym_bids.untrusted import read_json, read_text, to_float

#: Bytes of the largest table; those of an hour have a tenth.
_LARGEST_TABLE = 1 << 28
#: How many missing names are compared with how many that are there: it takes its time.
_LISTED, _COMPARED = 20, 2000
_FD = "framewise_displacement"
_NON_STEADY_STATE = "non_steady_state_outlier"
_NOT_AVAILABLE = {"n/a", "nan", ""}
_EXPANSION = re.compile(r"(.+?)(_derivative1)?(_power2)?")
#: Components in the oldest tables, which are those of one mask.
_OLDEST_COMPCOR = 6
_NEWER_COMPCOR = {"CSF": "c_comp_cor_", "WM": "w_comp_cor_"}


@dataclass(frozen=True, eq=False)
class Confounds:
    """What one run's confounds table gives to a strategy.

    Attributes
    ----------
    values : ndarray, shape (T, K)
        Regressors, without gaps.
    names : tuple of str
        Their names.
    framewise_displacement : ndarray, shape (T,), optional
        In mm, 0 in the first frame; None where the table has no such column.
    non_steady_state : ndarray of bool, shape (T,)
        Frames before the magnetisation was steady.
    notes : tuple of str
        The rules that were applied to this table.
    """

    values: NDArray[np.float64]
    names: tuple[str, ...]
    framewise_displacement: NDArray[np.float64] | None
    non_steady_state: NDArray[np.bool_]
    notes: tuple[str, ...] = ()


def read_confounds(
    path: str | Path | None, strategy: NuisanceStrategy, n_volumes: int
) -> Confounds:
    """Read the regressors of a strategy, framewise displacement and non-steady-state frames.

    A value that is not available in the first row only (the backward difference has none there)
    takes that of the second row, as nilearn's ``load_confounds`` does; framewise displacement takes
    0. Columns that never change are left out.

    Parameters
    ----------
    path : str or Path, optional
        The table (TSV). None is an error unless the strategy reads no column.
    strategy : NuisanceStrategy
        What to read.
    n_volumes : int
        Volumes of the run.

    Returns
    -------
    Confounds

    Raises
    ------
    InputMissingError
        No file, though the strategy needs one.
    BadDataError
        Columns that are missing, cells that are no numbers, or a wrong number of rows.
    """
    if path is None:
        if strategy.needs_confounds:
            raise InputMissingError(
                f"the nuisance strategy {strategy.name!r} needs a confounds file, and there is none"
                " beside this run",
                hint="keep the *_desc-confounds_timeseries.tsv of fMRIPrep, or say --nuisance none",
            )
        return Confounds(np.empty((n_volumes, 0)), (), None, np.zeros(n_volumes, dtype=bool))
    table = _Table.read(Path(path))
    if table.n_rows != n_volumes:
        raise BadDataError(
            f"{path}: {table.n_rows} rows, but the run has {n_volumes} volumes",
            hint="table and images must come from the same fMRIPrep run",
        )
    notes: list[str] = []
    names = _wanted(table, strategy, notes)
    columns = _regressors(table, names, notes)
    columns = _without_constants(columns, notes)
    return Confounds(
        values=np.column_stack([*columns.values()]) if columns else np.empty((n_volumes, 0)),
        names=tuple(columns),
        framewise_displacement=_framewise_displacement(table, notes),
        non_steady_state=_non_steady_state(table),
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class _Table:
    """Cells of a table as text, by column."""

    path: Path
    cells: dict[str, tuple[str, ...]]
    n_rows: int

    @classmethod
    def read(cls, path: Path) -> _Table:
        try:
            text = StringIO(read_text(path, _LARGEST_TABLE), newline="")
            rows = [row for row in csv.reader(text, delimiter="\t") if row]
        except FileNotFoundError:
            raise InputMissingError(f"{path}: no such confounds file") from None
        except (OSError, ValueError, csv.Error) as error:
            raise BadDataError(f"{path}: cannot be read as a table: {error}") from error
        if not rows:
            raise BadDataError(f"{path}: is empty")
        header, *body = rows
        twice = [name for name, count in Counter(header).items() if count > 1]
        if twice:
            raise BadDataError(
                f"{path}: has the column {twice[0]} more than once", "remove all but one"
            )
        for number, row in enumerate(body, start=1):
            if len(row) != len(header):
                raise BadDataError(
                    f"{path}: row {number} has {len(row)} cells, the header has {len(header)}",
                    hint="columns must be separated by tabs, and no row cut off",
                )
        by_column = zip(*body, strict=True) if body else (() for _ in header)
        return cls(path, dict(zip(header, by_column, strict=True)), len(body))

    def numbers(self, name: str, notes: list[str], first: float | None = None) -> NDArray:
        """Return a column as numbers; ``first`` stands in for n/a in the first row."""
        values = np.array(
            [self._number(name, row, cell) for row, cell in enumerate(self.cells[name], start=1)]
        )
        gaps = np.flatnonzero(np.isnan(values))
        if gaps.size and (gaps[-1] > 0 or values.size < 2):
            raise BadDataError(
                f"{self.path}: column {name}, row {gaps[-1] + 1} is n/a; only the first row may be",
                hint="make the table complete, or use a strategy without this column",
            )
        if gaps.size:
            values[0] = values[1] if first is None else first
            notes.append(name)
        return values

    def _number(self, name: str, row: int, cell: str) -> float:
        text = cell.strip()
        if text.lower() in _NOT_AVAILABLE:
            return np.nan
        try:
            value = to_float(text)
        except ValueError:
            value = np.inf
        if not np.isfinite(value):
            raise BadDataError(f"{self.path}: column {name}, row {row}: {cell!r} is not a number")
        return value


def _wanted(table: _Table, strategy: NuisanceStrategy, notes: list[str]) -> list[str]:
    """Resolve names, patterns and CompCor components; complain about all that is missing."""
    wanted: list[str] = []
    missing: list[str] = []
    for entry in strategy.columns:
        found = _matches(entry, table.cells)
        wanted.extend(found)
        if not found:
            missing.append(entry)
    if missing:
        raise _missing_columns(table, strategy, missing)
    if strategy.acompcor is not None:
        wanted.extend(_compcor_columns(table, strategy.acompcor, notes))
    return list(dict.fromkeys(wanted))


def _matches(entry: str, names: Iterable[str]) -> list[str]:
    if is_regular_expression(entry):
        return [name for name in names if re.fullmatch(entry[1:-1], name)]
    if any(sign in entry for sign in "*?["):
        return [name for name in names if fnmatchcase(name, entry)]
    return [entry] if entry in names or _base(entry) in names else []


def _base(name: str) -> str:
    """Return the column that an expansion is computed from."""
    match = _EXPANSION.fullmatch(name)
    return match.group(1) if match else name


def _missing_columns(
    table: _Table, strategy: NuisanceStrategy, missing: Sequence[str]
) -> BadDataError:
    near = dict.fromkeys(
        name
        for entry in missing[:_LISTED]
        for name in get_close_matches(entry, islice(table.cells, _COMPARED), n=2, cutoff=0.5)
    )
    have = f"near names in it: {', '.join(near)}; " if near else ""
    return BadDataError(
        f"{table.path}: the nuisance strategy {strategy.name!r} needs columns that are missing: "
        + ", ".join(missing),
        hint=f"{have}choose another --nuisance, or write a strategy with the columns there are",
    )


def _compcor_columns(table: _Table, wanted: CompCor, notes: list[str]) -> list[str]:
    """Return the first components of each mask.

    Newer fMRIPrep names them by mask (``c_comp_cor_00``, ``w_comp_cor_00``); before, all were
    ``a_comp_cor_00`` and the table's JSON tells the mask.
    """
    metadata = _metadata(table.path)
    columns: list[str] = []
    for mask in wanted.masks:
        found = _components_of(table, mask, metadata)
        if not found:
            raise BadDataError(
                f"{table.path}: no anatomical CompCor components of the mask {mask!r}",
                hint="older tables need the JSON file beside them, which tells each one's Mask",
            )
        if wanted.components is not None and len(found) < wanted.components:
            notes.append(f"only {len(found)} CompCor components of {mask}, all are used")
        columns.extend(found[: wanted.components])
    return columns


def _components_of(table: _Table, mask: str, metadata: dict[str, dict]) -> list[str]:
    newer = _NEWER_COMPCOR.get(mask)
    names = [name for name in table.cells if newer and name.startswith(newer)]
    if not names:
        anatomical = [name for name in table.cells if name.startswith("a_comp_cor_")]
        if not metadata and len(anatomical) > _OLDEST_COMPCOR:
            return []  # of several masks, and nothing tells which is of which
        names = [
            name
            for name in anatomical
            if str(metadata.get(name, {}).get("Mask", "combined")).lower() == mask.lower()
        ]
    return sorted(names, key=lambda name: (len(name), name))


def _metadata(table: Path) -> dict[str, dict]:
    """Return the entries of the JSON beside a table; nothing where there is none."""
    path = table.with_suffix(".json")
    try:
        document = read_json(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise BadDataError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(document, dict):
        raise BadDataError(f"{path}: must be a JSON object")
    return {name: entry for name, entry in document.items() if isinstance(entry, dict)}


def _regressors(
    table: _Table, names: Sequence[str], notes: list[str]
) -> dict[str, NDArray[np.float64]]:
    """Return columns by name, read where they are there, else computed from their base."""
    filled: list[str] = []
    computed = [name for name in names if name not in table.cells]
    columns = {
        name: _expand(table, name, filled) if name in computed else table.numbers(name, filled)
        for name in names
    }
    if computed:
        notes.append(f"computed from their base columns: {', '.join(computed)}")
    if filled:
        count = len(set(filled))
        notes.append(f"first row n/a, value of the second row used: {count} columns")
    return columns


def _expand(table: _Table, name: str, filled: list[str]) -> NDArray[np.float64]:
    """Compute a derivative or power as fMRIPrep defines it."""
    match = _EXPANSION.fullmatch(name)
    assert match is not None  # any name matches, at least as a base without expansion
    values = table.numbers(match.group(1), filled)
    if match.group(2):
        difference = np.diff(values)
        values = np.concatenate([difference[:1], difference])
        filled.append(name)
    return values**2 if match.group(3) else values


def _without_constants(
    columns: dict[str, NDArray[np.float64]], notes: list[str]
) -> dict[str, NDArray[np.float64]]:
    constant = [name for name, values in columns.items() if np.ptp(values) == 0]
    if constant:
        notes.append(f"constant, left out: {', '.join(constant)}")
    return {name: values for name, values in columns.items() if name not in constant}


def _framewise_displacement(table: _Table, notes: list[str]) -> NDArray[np.float64] | None:
    """Return the column if it is complete: only censoring needs it, and asks for it then."""
    if _FD not in table.cells:
        return None
    try:
        values = table.numbers(_FD, [], first=0.0)
    except BadDataError:
        notes.append(f"{_FD} has gaps, or cells that are no numbers: not used")
        return None
    if (values < 0).any():
        notes.append(f"{_FD} is negative in some rows: not used")
        return None
    return values


def _non_steady_state(table: _Table) -> NDArray[np.bool_]:
    marked = np.zeros(table.n_rows, dtype=bool)
    for name in table.cells:
        if name.startswith(_NON_STEADY_STATE):
            marked |= table.numbers(name, []) != 0
    return marked

"""Every quality number of BOLD runs and diffusion scans, from the outputs on disk alone.

What there is to be read, and what it is called, is in ``data/reports/measures.yaml``. Files are
small tables and sidecars and are read without pandas: a cohort takes seconds.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bsym_bids import __version__, atlas
from bsym_bids.outputs.names import STATISTICS, Product, products, scan_products, sidecar_of
from bsym_bids.outputs.names import fusion_products as of_both
from bsym_bids.outputs.publish import fingerprint
from bsym_bids.outputs.tables import NOT_AVAILABLE
from bsym_bids.reports.pages import FOLDER
from bsym_bids.untrusted import read_json, read_text

BOLD, DWI = "bold", "dwi"
#: Robust rule: further from the median than so many standard deviations, these taken from the
#: median absolute deviation, and the fewest values that it is applied to.
DEVIATIONS, MAD_TO_SD, FEWEST = 3.0, 1.4826, 10
#: Folder of the outputs of each modality.
_FOLDERS: Mapping[str, str] = {"func": BOLD, "dwi": DWI}
#: What is read, by the key of the product; of the last of each only whether it is there.
_READ: Mapping[str, tuple[str, ...]] = {
    BOLD: (
        "run_quality",
        "coverage",
        "censoring",
        "reconstruction_networks",
        "reconstruction",
        "embedding",
        "gate",
        "denoised",
    ),
    DWI: (
        "scan_quality",
        "rois",
        "edge_quality",
        "structural_embedding",
        "model_input",
        "count",
    ),
}
#: Products of which a sidecar alone is read.
_SIDECAR_ONLY = frozenset({"reconstruction", "embedding", "structural_embedding", "model_input"})
_ONLY_LOOKED_FOR = frozenset({"denoised", "count"})
#: What every series has, and what goes with the scores of the model: without them something was
#: lost, and the rest must not pass for whole.
_ESSENTIAL: Mapping[str, tuple[str, ...]] = {
    BOLD: ("run_quality", "coverage", "denoised"),
    DWI: ("scan_quality", "rois", "count"),
}
_SCORED: Mapping[str, tuple[str, str]] = {
    BOLD: ("reconstruction_networks", "embedding"),
    DWI: ("edge_quality", "structural_embedding"),
}
_SCALE = f"_atlas-{atlas.LABEL}_scale-{atlas.SCALE}"
_TAIL = re.compile(r"((?:_(?:res|den)-[^_]+)*)((?:_stat-[^_]+)?(?:_desc-[^_]+)?_[^_]+)")
_MADE = ("atlas", "scale")
#: b-values in s/mm2 below this count as no diffusion weighting.
_LARGEST_B0 = 50.0
#: mm of framewise displacement.
_SMALL_DISPLACEMENT = 0.2
_POOR = "Registration is flagged as poor: "


@dataclass(frozen=True)
class Measure:
    """A quality number, or a verdict, and what people are told of it.

    Attributes
    ----------
    key : str
        Name of its column.
    title, unit, description : str
        What it is; `unit` is empty for none.
    modality : str
        ``bold``, ``dwi`` or ``both``.
    decimals : int
        That people are shown.
    worse : str
        Direction of poor data: ``higher``, ``lower`` or ``none``.
    show : str
        ``table``, ``plot`` or ``more``: how prominent it is.
    source : mapping
        Where it is read, by modality; see the data file.
    levels : mapping of str to str
        Of a text: what it can be, and what that means.
    text : bool
        Whether it is a text.
    setting : bool
        Whether it says how a series was made, not how good it is.
    """

    key: str
    title: str
    unit: str
    modality: str
    decimals: int
    worse: str
    show: str
    description: str
    source: Mapping[str, Mapping[str, Any]]
    levels: Mapping[str, str] = field(default_factory=dict)
    text: bool = False
    setting: bool = False

    @property
    def is_text(self) -> bool:
        """Whether its values are texts."""
        return self.text or bool(self.levels)

    @property
    def nothing(self) -> float | str:
        """What stands for no value."""
        return NOT_AVAILABLE if self.is_text else math.nan

    @property
    def titled(self) -> str:
        """Title and unit, as heads of columns and axes have them."""
        is_said = not self.unit or self.unit in self.title
        return self.title if is_said else f"{self.title} ({self.unit})"

    def is_of(self, modality: str) -> bool:
        """Tell whether series of a modality have it."""
        return self.modality in (modality, "both")


@dataclass(frozen=True)
class SeriesMeasures:
    """All that is known of the quality of one BOLD run or diffusion scan.

    Attributes
    ----------
    participant : str
        Label without ``sub-``.
    session : str, optional
        Label without ``ses-``; None for none.
    series : str
        What the run or scan is called in messages and summaries.
    modality : str
        ``bold`` or ``dwi``.
    values : mapping of str to float or str
        By the key of every measure of the modality: NaN, or ``n/a`` of texts, where there is none.
    problems : tuple of str
        Files that could not be read, and why.
    """

    participant: str
    session: str | None
    series: str
    modality: str
    values: Mapping[str, float | str]
    problems: tuple[str, ...] = ()

    def number(self, key: str) -> float:
        """Return a number; NaN where there is none."""
        value = self.values.get(key, math.nan)
        return value if isinstance(value, float) else math.nan

    def text(self, key: str) -> str:
        """Return a text; empty where there is none."""
        value = self.values.get(key, "")
        return value if isinstance(value, str) and value != NOT_AVAILABLE else ""


@dataclass(frozen=True, eq=False)
class Spread:
    """How a measure is distributed over the series of a modality.

    Attributes
    ----------
    measure : Measure
        What it is.
    modality : str
        Of the series.
    series : tuple of SeriesMeasures
        Those that have a value.
    values : ndarray, shape (series,)
        Finite.
    low, high : float
        Limits of the robust rule, see `robust_limits`; NaN where it does not apply.
    """

    measure: Measure
    modality: str
    series: tuple[SeriesMeasures, ...]
    values: NDArray[np.float64]
    low: float
    high: float

    @property
    def outside(self) -> NDArray[np.intp]:
        """Positions of the values beyond the robust limits, the furthest first."""
        middle = float(np.median(self.values))
        found = np.flatnonzero((self.values < self.low) | (self.values > self.high))
        return found[np.argsort(-np.abs(self.values[found] - middle), kind="stable")]

    def is_poor(self, value: float) -> bool:
        """Tell whether a value lies outside on the side of poor data."""
        beyond = {"higher": value > self.high, "lower": value < self.low}
        return beyond.get(self.measure.worse, False)


@cache
def measures() -> Mapping[str, Measure]:
    """Return every measure by its key, in the order of tables."""
    import yaml

    entries = yaml.safe_load((FOLDER / "measures.yaml").read_text("utf-8"))
    return {key: _measure(key, dict(entry)) for key, entry in entries.items()}


def measures_of(modality: str) -> tuple[Measure, ...]:
    """Return the measures that series of a modality have."""
    return tuple(measure for measure in measures().values() if measure.is_of(modality))


def find_participants(output_dir: Path) -> list[str]:
    """Return the labels of all participants that have a folder, sorted."""
    with os.scandir(output_dir) as entries:
        return sorted(
            entry.name.removeprefix("sub-")
            for entry in entries
            if entry.name.startswith("sub-") and entry.is_dir()
        )


def measure_participant(output_dir: Path, label: str) -> list[SeriesMeasures]:
    """Collect the quality of all runs and scans of a participant.

    Parameters
    ----------
    output_dir : Path
        Root of the output dataset.
    label : str
        Of the participant, without ``sub-``.

    Returns
    -------
    list of SeriesMeasures
        BOLD runs, then diffusion scans, each by name. What cohort scaling makes is not looked at.
        A file that cannot be read is a problem of its series, never an exception.
    """
    return measure_files(output_dir, list_files(output_dir, label))


def measure_all(
    output_dir: Path, kept: Mapping[str, Any]
) -> tuple[list[SeriesMeasures], dict[str, Any]]:
    """Collect the quality of all participants; what is unchanged is not read again.

    Parameters
    ----------
    output_dir : Path
        Root of the output dataset.
    kept : mapping
        What an earlier call returned, which JSON can hold; empty for nothing. What was read in
        another way, or is damaged, is not used.

    Returns
    -------
    series : list of SeriesMeasures
        By participant, as `measure_participant` returns them.
    kept : dict
        For the next call.
    """
    known = kept.get("participants") if kept.get("version") == _version() else None
    known = known if isinstance(known, dict) else {}
    entries, measured = {}, []
    for label in find_participants(output_dir):
        files = list_files(output_dir, label)
        identity = [[file.path, file.size, file.changed] for file in files]
        entry = known.get(label)
        series = _unpacked(entry, identity)
        if series is None:
            series = measure_files(output_dir, files)
            entry = {"files": identity, "series": [packed(one) for one in series]}
        entries[label] = entry
        measured += series
    return measured, {"version": _version(), "participants": entries}


@cache
def _version() -> str:
    """Return what tells one way of reading from another."""
    code = (Path(__file__), FOLDER / "measures.yaml")
    return fingerprint(
        __version__, [hashlib.sha256(path.read_bytes()).hexdigest() for path in code]
    )


def packed(series: SeriesMeasures) -> list[Any]:
    """Return a series as JSON has it: values in the order of the measures, null for NaN."""
    values = [series.values[measure.key] for measure in measures_of(series.modality)]
    return [
        series.participant,
        series.session,
        series.series,
        series.modality,
        [None if isinstance(value, float) and math.isnan(value) else value for value in values],
        list(series.problems),
    ]


def _unpacked(entry: Any, identity: list[list[Any]]) -> list[SeriesMeasures] | None:
    """Return the series that were kept; None where files have changed, or it is damaged."""
    try:
        if entry["files"] != identity:
            return None
        return [
            SeriesMeasures(
                participant,
                session,
                name,
                modality,
                {
                    measure.key: measure.nothing if value is None else value
                    for measure, value in zip(measures_of(modality), values, strict=True)
                },
                tuple(problems),
            )
            for participant, session, name, modality, values, problems in entry["series"]
        ]
    except (LookupError, TypeError, ValueError):
        return None


def spreads(series: Iterable[SeriesMeasures]) -> list[Spread]:
    """Return how each measure is distributed in each modality, where two values differ."""
    series = list(series)
    found = []
    for modality in _READ:
        own = [one for one in series if one.modality == modality]
        for measure in measures_of(modality):
            if not measure.is_text and not measure.setting:
                found.append(_spread(measure, modality, own))
    return [spread for spread in found if len(spread.values) and np.ptp(spread.values) > 0]


def _spread(measure: Measure, modality: str, series: Sequence[SeriesMeasures]) -> Spread:
    known = [one for one in series if not math.isnan(one.number(measure.key))]
    values = np.array([one.number(measure.key) for one in known], dtype=np.float64)
    return Spread(measure, modality, tuple(known), values, *robust_limits(values))


def robust_limits(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the median less and plus 3 times 1.4826 median absolute deviations.

    Parameters
    ----------
    values : ndarray, shape (n,)
        Finite.

    Returns
    -------
    tuple of float
        NaN for fewer than 10 values, and where half of them or more are the same.
    """
    if len(values) < FEWEST:
        return math.nan, math.nan
    middle = float(np.median(values))
    reach = DEVIATIONS * MAD_TO_SD * float(np.median(np.abs(values - middle)))
    return (middle - reach, middle + reach) if reach > 0 else (math.nan, math.nan)


@dataclass(frozen=True)
class QualityFile:
    """A file that quality is read from.

    Attributes
    ----------
    path : str
        Relative to the root of the dataset.
    size, changed : int
        In bytes; time of the last change in ns. 0 of files that are only looked for.
    """

    path: str
    size: int = 0
    changed: int = 0


def list_files(output_dir: Path, label: str) -> list[QualityFile]:
    """Return all files of a participant that quality is read from, sorted.

    As long as they are the same, so is what `measure_files` returns.
    """
    root = output_dir / f"sub-{label}"
    folders = [root, *(folder for folder in _subfolders(root) if folder.name.startswith("ses-"))]
    found: list[QualityFile] = []
    for folder in folders:
        for name, modality in _FOLDERS.items():
            found += _list_folder(output_dir, folder / name, modality)
    return sorted(found, key=lambda file: file.path)


def measure_files(output_dir: Path, files: Sequence[QualityFile]) -> list[SeriesMeasures]:
    """Collect the quality of the series that files of one participant are of."""
    series: dict[tuple[str, str], dict[str, Path]] = {}
    for file in files:
        path = output_dir / file.path
        modality = _FOLDERS[path.parent.name]
        stem, ending = _split(path.name)
        series.setdefault((modality, stem), {})[_endings(modality)[ending]] = path
    order = sorted(series, key=lambda key: (list(_READ).index(key[0]), key[1]))
    return [_measured(output_dir, *key, series[key]) for key in order]


def _measure(key: str, entry: dict[str, Any]) -> Measure:
    source, modality = entry.pop("from"), entry["modality"]
    by_modality = source if modality == "both" else {modality: source}
    return Measure(key=key, source=by_modality, **entry)


def _subfolders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.is_dir())
    except OSError:
        return []


def _list_folder(output_dir: Path, folder: Path, modality: str) -> list[QualityFile]:
    endings = _endings(modality)
    try:
        with os.scandir(folder) as entries:
            keys = {entry: endings.get(_split(entry.name)[1]) for entry in entries}
    except OSError:  # there is none
        return []
    return [_listed(output_dir, entry, key) for entry, key in keys.items() if key]


def _listed(output_dir: Path, entry: os.DirEntry[str], key: str) -> QualityFile:
    path = os.path.relpath(entry.path, output_dir)
    try:
        status = None if key in _ONLY_LOOKED_FOR else entry.stat()
    except OSError:  # a link to nothing, say: whoever reads it says so
        status = None
    return QualityFile(path, status.st_size, status.st_mtime_ns) if status else QualityFile(path)


def _split(name: str) -> tuple[str, str]:
    """Return what all files of a series share of their names, and the rest; empty if not ours."""
    start, scale, rest = name.partition(_SCALE)
    tail = _TAIL.fullmatch(rest) if scale else None
    return (f"{start}{scale}{tail[1]}", tail[2]) if tail else ("", "")


@cache
def _endings(modality: str) -> Mapping[str, str]:
    """Return which product a name is of by its ending; sidecars as ``<product>.json``."""
    known = {**products(), **of_both()} if modality == BOLD else scan_products()
    found = {}
    for key in _READ[modality]:
        for ending in _endings_of(known[key]):
            if key not in _SIDECAR_ONLY:
                found[ending] = key
            if key not in _ONLY_LOOKED_FOR:
                found[sidecar_of(Path(ending)).name] = f"{key}.json"
    return found


def _endings_of(product: Product) -> set[str]:
    stats = {product.stat.format(statistic=statistic) for statistic in STATISTICS.values()}
    desc = f"_desc-{product.desc}" if product.desc else ""
    return {
        (f"_stat-{stat}" if stat else "") + f"{desc}_{product.suffix}{product.extension}"
        for stat in stats
    }


class _Files:
    """The files of one series, each read once; what cannot be read is a problem, and empty."""

    def __init__(self, output_dir: Path, paths: Mapping[str, Path]) -> None:
        self.output_dir, self.paths = output_dir, paths
        self.problems: list[str] = []
        self._tables: dict[str, Mapping[str, Sequence[str]]] = {}
        self._rows: dict[str, Mapping[str, str]] = {}
        self._sidecars: dict[str, Mapping[str, Any]] = {}

    def column(self, key: str, name: str) -> Sequence[str]:
        """Return a column of a table; empty where it is not there, or cannot be read."""
        if key not in self._tables:
            self._tables[key] = self._read_table(key) if key in self.paths else {}
            if key not in self.paths and f"{key}.json" in self.paths:
                self._complain(self.paths[f"{key}.json"], "its table is not there")
        return self._tables[key].get(name, ())

    def row(self, key: str) -> Mapping[str, str]:
        """Return the row of a table that has one, or that of all networks."""
        if key not in self._rows:
            networks = self.column(key, "network")
            columns = self._tables[key]
            n_rows = len(next(iter(columns.values()), ()))
            chosen = range(n_rows)
            if key == "reconstruction_networks":
                chosen = [place for place, name in enumerate(networks) if name == "all"]
            if n_rows and len(chosen) != 1:
                self._complain(self.paths[key], f"has {len(chosen)} rows instead of one")
                chosen = []
            self._rows[key] = {name: cells[k] for k in chosen for name, cells in columns.items()}
        return self._rows[key]

    def sidecar(self, key: str) -> Mapping[str, Any]:
        """Return a sidecar; empty where it is not there, or cannot be read."""
        name = f"{key}.json"
        if key not in self._sidecars:
            self._sidecars[key] = self._read_sidecar(name) if name in self.paths else {}
        return self._sidecars[key]

    def lookup(self, keys: str | Sequence[str], path: str) -> Any:
        """Return what the first of some sidecars that has it says under a dotted path."""
        for key in [keys] if isinstance(keys, str) else keys:
            value: Any = self.sidecar(key)
            for part in path.split("."):
                value = value.get(part) if isinstance(value, dict) else None
            if value is not None:
                return value
        return None

    def _read_table(self, key: str) -> Mapping[str, Sequence[str]]:
        path = self.paths[key]
        if f"{key}.json" not in self.paths:  # as a killed run leaves it
            self._complain(path, "has no sidecar: not complete")
            return {}
        try:
            names, *rows = (line.split("\t") for line in read_text(path).splitlines() if line)
            if not rows:
                raise ValueError("it has no rows")
            return dict(zip(names, zip(*rows, strict=True), strict=True))
        except (OSError, ValueError) as error:
            self._complain(path, f"cannot be read as a table: {_said(error)}")
            return {}

    def _read_sidecar(self, name: str) -> Mapping[str, Any]:
        path = self.paths[name]
        try:
            document = read_json(path)
        except (OSError, ValueError) as error:
            self._complain(path, f"cannot be read as JSON: {_said(error)}")
            return {}
        if not isinstance(document, dict):
            self._complain(path, "is not a JSON object")
            return {}
        return document

    def _complain(self, path: Path, said: str) -> None:
        self.problems.append(f"{path.relative_to(self.output_dir).as_posix()}: {said}")

    def number(self, key: str, column: str) -> float:
        """Return a number of the row of a table; NaN for n/a, and for what is none."""
        cell = self.row(key).get(column, NOT_AVAILABLE)
        value = _number(cell)
        if math.isnan(value) and cell not in (NOT_AVAILABLE, "nan"):
            self._complain(self.paths[key], f"{column} is {cell[:40]!r} instead of a number")
        return value

    def numbers(self, key: str, column: str) -> list[float]:
        """Return the numbers of a column that there are."""
        cells = self.column(key, column)
        try:
            values = [float(cell) for cell in cells if cell != NOT_AVAILABLE]
        except ValueError:
            values = list(map(_number, cells))
        return [value for value in values if math.isfinite(value)]


def _said(error: Exception) -> str:
    """Return what an error says, in one line and without the path."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:200] or type(error).__name__


def _measured(
    output_dir: Path, modality: str, stem: str, paths: Mapping[str, Path]
) -> SeriesMeasures:
    files = _Files(output_dir, paths)
    files.problems += _missing(modality, stem, paths)
    values = {m.key: _value(m, m.source[modality], files) for m in measures_of(modality)}
    entities = dict(part.partition("-")[::2] for part in stem.split("_"))
    named = [f"{key}-{value}" for key, value in entities.items() if key not in _MADE]
    return SeriesMeasures(
        participant=entities.get("sub", ""),
        session=entities.get("ses"),
        series="_".join([*named, *(["dwi"] if modality == DWI else [])]),
        modality=modality,
        values=values,
        problems=tuple(dict.fromkeys(files.problems)),
    )


def _missing(modality: str, stem: str, paths: Mapping[str, Path]) -> list[str]:
    """Say which files should be there and are not."""
    scores, embedding = _SCORED[modality]
    wanted = (*_ESSENTIAL[modality], *([embedding] if scores in paths else []))
    known = {**products(), **scan_products()}
    return [
        f"{stem}: there is no file of: {known[key].short}"
        for key in wanted
        if key not in paths and f"{key}.json" not in paths
    ]


def _value(measure: Measure, source: Mapping[str, Any], files: _Files) -> float | str:
    """Read one measure of a series."""
    if "rule" in source:
        found = _RULES[source["rule"]](files)
    elif "sidecar" in source:
        found = files.lookup(source["sidecar"], source["path"])
    elif measure.is_text:
        found = files.row(source["table"]).get(source.get("column", measure.key))
    else:
        found = files.number(source["table"], source.get("column", measure.key))
    if not measure.is_text:
        return _number(found)
    if isinstance(found, bool):
        return "true" if found else "false"
    return " ".join(str(found).split()) or NOT_AVAILABLE if found is not None else NOT_AVAILABLE


def _number(value: Any) -> float:
    """Return a finite number; NaN for anything else."""
    try:
        number = math.nan if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
    return number if math.isfinite(number) else math.nan


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _percent(flags: Sequence[bool]) -> float:
    return 100 * sum(flags) / len(flags) if flags else math.nan


def _minutes_kept(files: _Files) -> float:
    volumes, censored, seconds = (
        files.number("run_quality", column)
        for column in ("n_volumes", "n_censored", "repetition_time")
    )
    return (volumes - censored) * seconds / 60


def _missing_rois(files: _Files) -> float:
    return atlas.N_ROIS - files.number("run_quality", "n_rois")


def _percent_fd_above(files: _Files) -> float:
    displacement = files.numbers("censoring", "framewise_displacement")
    return _percent([value > _SMALL_DISPLACEMENT for value in displacement])


def _percent_rois_included(files: _Files) -> float:
    return _percent([cell == "true" for cell in files.column("coverage", "included")])


def _coverage_mean(files: _Files) -> float:
    return 100 * _mean(files.numbers("coverage", "coverage"))


def _lowest(networks: Sequence[str], flags: Iterable[bool]) -> tuple[float, str]:
    """Return the lowest share of the ROIs of a network that have a flag, in %, and the network."""
    pairs = Counter(zip(networks, flags, strict=False))
    shares = (
        (100 * pairs[network, True] / (pairs[network, True] + pairs[network, False]), network)
        for network, _ in pairs
    )
    return min(shares, default=(math.nan, NOT_AVAILABLE))


def _network_coverage(files: _Files) -> tuple[float, str]:
    included = (cell == "true" for cell in files.column("coverage", "included"))
    return _lowest(files.column("coverage", "network"), included)


def _network_included_lowest(files: _Files) -> float:
    return _network_coverage(files)[0]


def _network_lowest(files: _Files) -> str | None:
    share, network = _network_coverage(files)
    return network if share < 100 else None


def _network_connected_lowest(files: _Files) -> float:
    connected = (_number(cell) > 0 for cell in files.column("rois", "streamlines"))
    return _lowest(files.column("rois", "network"), connected)[0]


def _roi_volume_median(files: _Files) -> float:
    volumes = sorted(volume for volume in files.numbers("rois", "volume") if volume > 0)
    if not volumes:
        return math.nan
    middle = len(volumes) // 2
    return _mean(
        volumes[middle : middle + 1] if len(volumes) % 2 else volumes[middle - 1 : middle + 1]
    )


def _above_control(score: float, control: float) -> float:
    """Return what a score is above its control; one that is negative or unknown counts as 0."""
    return score - (0.0 if math.isnan(control) else max(0.0, control))


def _reconstruction_gain(files: _Files) -> float:
    table = "reconstruction_networks"
    return _above_control(files.number(table, "r2"), files.number(table, "permuted_r2"))


def _reconstruction_over_linear(files: _Files) -> float:
    table = "reconstruction_networks"
    return files.number(table, "r2") - files.number(table, "linear_r2")


def _edges_gain(files: _Files) -> float:
    table = "edge_quality"
    return _above_control(files.number(table, "rho"), files.number(table, "permuted_rho"))


def _edges_over_group(files: _Files) -> float:
    return files.number("edge_quality", "rho") - files.number("edge_quality", "group_rho")


def _gate_mean(files: _Files) -> float:
    return _mean(files.numbers("gate", "gate"))


_OF_MODEL = (
    "reconstruction_networks",
    "reconstruction",
    "embedding",
    "edge_quality",
    "structural_embedding",
    "model_input",
)


def _length(files: _Files, keys: str | Sequence[str], path: str) -> float:
    """Return how long a list of a sidecar is; NaN where it is not there."""
    found = files.lookup(keys, path)
    return float(len(found)) if isinstance(found, list) else math.nan


def _contract_deviations(files: _Files) -> float:
    return _length(files, _OF_MODEL, "ModelContractDeviations")


def _model_missing_rois(files: _Files) -> float:
    return _length(files, _OF_MODEL, "MissingROIs")


def _windows(files: _Files) -> float:
    return _length(files, _OF_MODEL, "WindowOnsets")


def _rois_cut(files: _Files) -> float:
    return _length(files, "scan_quality", "Anatomy.ROIsCut")


def _volumes(files: _Files) -> dict[float, float]:
    """Return the volumes of each shell by its b-value."""
    found = files.lookup("scan_quality", "Preprocessing.NumberOfVolumesByB")
    pairs = found.items() if isinstance(found, dict) else ()
    volumes = {_number(b): _number(n) for b, n in pairs}
    return {b: n for b, n in sorted(volumes.items()) if not math.isnan(b + n)}


def _shells(files: _Files) -> str:
    return ", ".join(f"{b:g}: {n:g}" for b, n in _volumes(files).items())


def _volumes_by_shell(files: _Files) -> float:
    return sum(_volumes(files).values()) or math.nan


def _n_b0(files: _Files) -> float:
    volumes = _volumes(files)
    return sum(n for b, n in volumes.items() if b < _LARGEST_B0) if volumes else math.nan


def _registration_reason(files: _Files) -> str | None:
    """Return what the note on a poor registration finds poor."""
    notes = files.lookup("scan_quality", "Notes")
    for note in notes if isinstance(notes, list) else ():
        if str(note).startswith(_POOR):
            return str(note).removeprefix(_POOR).partition(". Look at")[0]
    return None


#: Rules that the data file names.
_RULES: Mapping[str, Callable[[_Files], float | str | None]] = {
    rule.__name__.removeprefix("_"): rule
    for rule in (
        _minutes_kept,
        _missing_rois,
        _percent_fd_above,
        _percent_rois_included,
        _coverage_mean,
        _network_included_lowest,
        _network_lowest,
        _network_connected_lowest,
        _roi_volume_median,
        _reconstruction_gain,
        _reconstruction_over_linear,
        _edges_gain,
        _edges_over_group,
        _gate_mean,
        _contract_deviations,
        _model_missing_rois,
        _windows,
        _rois_cut,
        _shells,
        _volumes_by_shell,
        _n_b0,
        _registration_reason,
    )
}

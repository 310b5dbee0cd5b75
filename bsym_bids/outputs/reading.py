"""Reading back what the participant level writes, for everything that starts from it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bsym_bids import atlas
from bsym_bids.bold.censoring import fill_censored
from bsym_bids.errors import BadDataError, InputMissingError
from bsym_bids.outputs.names import STATISTICS, RunNames, ScanNames, products, sidecar_of
from bsym_bids.outputs.tables import NOT_AVAILABLE
from bsym_bids.untrusted import open_regular, read_arrays, read_bytes, read_json

LOGGER = logging.getLogger("bsym_bids")
_ATLAS = {"atlas": atlas.LABEL, "scale": atlas.SCALE}
#: Entities that say how an output was made, not which scan it is from.
_MADE = ("space", "atlas", "scale", "res", "den", "stat", "desc")
#: Columns of the widest table, and bytes of its header and of all of it: more is not ours.
_MOST_COLUMNS, _LONGEST_HEADER, _LARGEST_TABLE = 5000, 1 << 20, 1 << 30
#: What pandas raises of a table that is not what is read here.
_READING_ERRORS = (OSError, ValueError, LookupError, TypeError, OverflowError)
_HINT = "make the file again with bsym-bids, or take it away"


@dataclass(frozen=True)
class WrittenRun:
    """The denoised time series of one BOLD run in one space.

    Attributes
    ----------
    entities : mapping of str to str
        Entities of the source, short keys, in their order.
    space : str
        Space of the source.
    label : str
        What the run is called in messages and tables.
    path : Path
        The table of the series.
    repetition_time : float
        In seconds.
    sidecar : mapping
        The whole sidecar.
    resolution, density : str, optional
        ``res-`` and ``den-`` of the source.
    method : str
        How ROIs are summarised: ``mean`` or ``pca``.
    """

    entities: Mapping[str, str]
    space: str
    label: str
    path: Path
    repetition_time: float
    sidecar: Mapping[str, Any]
    resolution: str | None = None
    density: str | None = None
    method: str = "mean"

    @property
    def participant(self) -> str:
        """Label of the participant, without ``sub-``."""
        return self.entities["sub"]

    @property
    def session(self) -> str | None:
        """Label of the session, without ``ses-``."""
        return self.entities.get("ses")

    @property
    def notes(self) -> tuple[str, ...]:
        """The rules that were applied in cleaning."""
        notes = self.sidecar.get("Notes")
        return tuple(map(str, notes)) if isinstance(notes, list) else ()

    def names(self, output_dir: Path, cohort_scaled: bool = False) -> RunNames:
        """Return the output names of the run.

        Parameters
        ----------
        output_dir : Path
            Root of the dataset.
        cohort_scaled : bool
            Of what comes from the model: that under cohort scaling, or that of the participant
            level.
        """
        return RunNames(
            output_dir,
            self.entities,
            self.space,
            self.resolution,
            self.density,
            self.method,
            cohort_scaled,
        )


@dataclass(frozen=True)
class WrittenConnectome:
    """A structural connectome.

    Attributes
    ----------
    entities : mapping of str to str
        Entities of the source, short keys, in their order.
    label : str
        What the scan is called in messages and tables.
    measure : str
        What the edges are: ``count``, ``invnodevol``, ... (``desc-`` of its name).
    path : Path
        The table.
    space : str, optional
        ``space-`` of the source; raw series have none.
    """

    entities: Mapping[str, str]
    label: str
    measure: str
    path: Path
    space: str | None = None

    @property
    def participant(self) -> str:
        """Label of the participant, without ``sub-``."""
        return self.entities["sub"]

    @property
    def session(self) -> str | None:
        """Label of the session, without ``ses-``."""
        return self.entities.get("ses")

    def names(self, output_dir: Path) -> ScanNames:
        """Return the output names of the scan in a dataset."""
        return ScanNames(output_dir, self.entities, self.space)


@dataclass(frozen=True, eq=False)
class WrittenSeries:
    """A run's series as the model gets it, but for resampling and scaling.

    Attributes
    ----------
    timeseries : ndarray, shape (T, 450)
        Contiguous: censored frames are interpolated as by `fill_censored`. Columns of NaN are
        ROIs that were not measured.
    censored : ndarray of bool, shape (T,)
        Frames that count for nothing.
    repetition_time : float
        In seconds.
    """

    timeseries: NDArray[np.float64]
    censored: NDArray[np.bool_]
    repetition_time: float


def find_runs(
    derivatives: Path, left_out: list[str] | None = None, participant: str | None = None
) -> list[WrittenRun]:
    """Find the denoised time series of a dataset.

    Parameters
    ----------
    derivatives : Path
        Output folder of the participant level.
    left_out : list of str, optional
        Where the warnings about runs that are left out are added, beside the log.
    participant : str, optional
        Label of the one whose runs are wanted, without ``sub-``.

    Returns
    -------
    list of WrittenRun
        Sorted by path. A run that was processed in two spaces is there twice. A series without a
        sidecar, as a killed run leaves it, is left out with a warning; so is one whose sidecar
        cannot be read, or has no repetition time.

    Raises
    ------
    InputMissingError
        There is no such folder.
    """
    product = products()["denoised"]
    runs = []
    wanted = product.suffix, product.extension, participant
    for path, made in _find(derivatives, "func", *wanted):
        if made.get("desc") != product.desc or made.get("stat") not in STATISTICS.values():
            continue
        try:
            runs.append(run_of(path))
        except BadDataError as error:  # one bad run does not stop the others
            LOGGER.warning("left out: %s", error)
            if left_out is not None:
                left_out.append(f"left out: {error}")
    return runs


def run_of(path: Path) -> WrittenRun:
    """Return the run that a table of denoised time series is of.

    Raises
    ------
    BadDataError
        Its sidecar is absent, cannot be read, or has no repetition time.
    """
    sidecar = read_sidecar(path)
    seconds = _repetition_time(path, sidecar)
    made, entities = _entities(path), _sources(path)
    parts = [f"{key}-{value}" for key, value in entities.items()]
    parts += [f"{key}-{made[key]}" for key in ("space", "res", "den") if key in made]
    methods = {stat: method for method, stat in STATISTICS.items()}
    return WrittenRun(
        entities,
        made.get("space", ""),
        "_".join(parts),
        path,
        seconds,
        sidecar,
        made.get("res"),
        made.get("den"),
        methods[made["stat"]],
    )


def one_space(runs: Sequence[WrittenRun]) -> list[WrittenRun]:
    """Return each run once: of one that was processed in several spaces, the first."""
    chosen: dict[tuple[tuple[str, str], ...], WrittenRun] = {}
    for run in runs:
        chosen.setdefault(tuple(run.entities.items()), run)
    return list(chosen.values())


def find_connectomes(derivatives: Path, participant: str | None = None) -> list[WrittenConnectome]:
    """Find the structural connectomes of a dataset: ``sub-*/[ses-*/]dwi/*_desc-*_relmat.tsv``.

    Parameters
    ----------
    derivatives : Path
        Output folder of the participant level.
    participant : str, optional
        Label of the one whose connectomes are wanted, without ``sub-``.

    Returns
    -------
    list of WrittenConnectome
        Sorted by path; those of one scan differ in their measure.

    Raises
    ------
    InputMissingError
        There is no such folder.
    """
    connectomes = []
    for path, made in _find(derivatives, "dwi", "relmat", ".tsv", participant):
        if "desc" in made:
            connectomes.append(connectome_of(path))
    return connectomes


def connectome_of(path: Path) -> WrittenConnectome:
    """Return the connectome that a table of edges is of."""
    entities, made = _sources(path), _entities(path)
    label = "_".join(f"{key}-{value}" for key, value in entities.items())
    return WrittenConnectome(entities, label, made["desc"], path, made.get("space"))


def read_timeseries(run: WrittenRun) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Read a run's denoised series.

    Returns
    -------
    timeseries : ndarray, shape (T, 450)
        NaN in censored volumes, and throughout in ROIs that were not measured.
    censored : ndarray of bool, shape (T,)
        Volumes that were censored.

    Raises
    ------
    BadDataError
        The table cannot be read, is not of the atlas, or does not fit its sidecar.
    """
    values = _read_numbers(run.path, rows_named=False)
    volumes = run.sidecar.get("CensoredVolumes", [])
    censored = np.isin(np.arange(len(values)), volumes)
    if not isinstance(volumes, list) or censored.sum() != len(volumes):
        raise BadDataError(
            f"{sidecar_of(run.path)}: CensoredVolumes are not volumes of the {len(values)} in "
            f"{run.path.name}",
            _HINT,
        )
    return values, censored


def read_roi_series(path: Path) -> NDArray[np.float64]:
    """Read a table of series with a column per ROI.

    Returns
    -------
    ndarray, shape (T, 450)
        NaN for ``n/a``.

    Raises
    ------
    BadDataError
        The table cannot be read, or is not of the atlas.
    """
    return _read_numbers(path, rows_named=False)


def read_numbers(path: Path, column: str) -> NDArray[np.float64]:
    """Read a column of numbers of any table; NaN for ``n/a``.

    Raises
    ------
    BadDataError
        The table cannot be read, or has no such column of numbers.
    """
    return _numbers_of(path, column)[1]


def read_series(run: WrittenRun) -> WrittenSeries:
    """Read a run's denoised series with censored volumes interpolated, as the model gets them.

    Raises
    ------
    BadDataError
        As `read_timeseries`, and when fewer than two volumes are left.
    """
    values, censored = read_timeseries(run)
    kept = ~censored
    if kept.sum() < 2:
        raise BadDataError(f"{run.path}: {kept.sum()} of {kept.size} volumes are not censored")
    measured = np.isfinite(values[kept]).all(axis=0)
    filled = np.full(values.shape, np.nan)
    filled[:, measured] = fill_censored(values[kept][:, measured], kept)
    return WrittenSeries(filled, censored, run.repetition_time)


def read_connectome(connectome: WrittenConnectome) -> NDArray[np.float64]:
    """Read a structural connectome.

    Returns
    -------
    ndarray, shape (450, 450)
        NaN in rows and columns of ROIs that were not measured.

    Raises
    ------
    BadDataError
        The table cannot be read, or is not a square one of the atlas.
    """
    return read_matrix(connectome.path)


def read_roi_volumes(connectome: WrittenConnectome) -> NDArray[np.float64] | None:
    """Read the volumes of the ROIs in the person's space, from the table beside a connectome.

    Returns
    -------
    ndarray, shape (450,), or None
        In mm3; None where there is no table.

    Raises
    ------
    BadDataError
        The table cannot be read, or is not of the atlas.
    """
    stem = connectome.path.name.rpartition("_desc-")[0]
    path = connectome.path.with_name(f"{stem}_desc-rois_qc.tsv")
    return read_roi_column(path, "volume") if path.is_file() else None


def read_matrix(path: Path) -> NDArray[np.float64]:
    """Read a matrix with a row and a column per ROI; raises as `read_connectome`."""
    return _read_numbers(path, rows_named=True)


def read_roi_column(path: Path, column: str) -> NDArray[np.float64]:
    """Read a column of numbers of a table with a row per ROI.

    Returns
    -------
    ndarray, shape (450,)

    Raises
    ------
    BadDataError
        The table cannot be read, has no such column, or is not one of the atlas.
    """
    names, values = _numbers_of(path, column)
    if names != list(atlas.roi_names()):
        raise BadDataError(f"{path}: rows are not the ROIs of the atlas, in its order", _HINT)
    return values


def _numbers_of(path: Path, column: str) -> tuple[list[Any], NDArray[np.float64]]:
    """Return the names of the rows of a table, if they have some, and a column of numbers."""
    try:
        table = _read_table(path)
        names = list(table["name"]) if "name" in table else []
        values = table[column].to_numpy(dtype=np.float64)
    except _READING_ERRORS as error:
        raise BadDataError(f"{path}: {column} cannot be read of it: {error}", _HINT) from error
    if np.isinf(values).any():
        raise BadDataError(f"{path}: {column} holds values that are not finite", _HINT)
    return names, values


def read_embedding(path: Path) -> NDArray[np.float64]:
    """Read the table of an embedding.

    Returns
    -------
    ndarray, shape (450, D)
        NaN in rows of ROIs that the model did not get.

    Raises
    ------
    BadDataError
        The table cannot be read, is not of the atlas, or has no dimensions.
    """
    try:
        table = _read_table(path).set_index("name").drop(columns="network")
        values = table.to_numpy(dtype=np.float64)
    except _READING_ERRORS as error:
        raise BadDataError(f"{path}: cannot be read as an embedding: {error}", _HINT) from error
    expected = [f"dim{index:03d}" for index in range(values.shape[1])]
    if list(table.index) != list(atlas.roi_names()) or list(table.columns) != expected:
        raise BadDataError(
            f"{path}: rows are not the ROIs of the atlas, in its order, or columns not dim000, ...",
            _HINT,
        )
    if not expected or np.isinf(values).any():
        raise BadDataError(f"{path}: holds no dimensions, or values that are not finite", _HINT)
    return values


def read_windows(path: Path) -> dict[str, NDArray[np.floating]]:
    """Read the embeddings of the windows of a run.

    Returns
    -------
    dict of str to ndarray
        ``embedding`` (W, 450, D), ``masked`` (450, D), ``onset`` and ``censored_share`` (W,).

    Raises
    ------
    BadDataError
        The archive cannot be read, or lacks one of them.
    """
    try:
        arrays = read_arrays(path)
        found = {name: arrays[name] for name in ("embedding", "masked", "onset", "censored_share")}
    except (OSError, ValueError, KeyError) as error:
        raise BadDataError(f"{path}: cannot be read: {error}", _HINT) from error
    windows = found["embedding"]
    fits = (
        windows.ndim == 3
        and windows.shape[1] == atlas.N_ROIS
        and found["masked"].shape == windows.shape[1:]
        and found["onset"].shape == found["censored_share"].shape == windows.shape[:1]
        and all(array.dtype.kind == "f" for array in found.values())
    )
    if not fits:
        raise BadDataError(
            f"{path}: its arrays are not those of windows of {atlas.N_ROIS} ROIs", _HINT
        )
    return found


def read_quality(path: Path, column: str) -> float:
    """Read a number of a table of quality with a single row.

    Returns
    -------
    float
        NaN for ``n/a``.

    Raises
    ------
    BadDataError
        The table cannot be read, has no such column of numbers, or another number of rows.
    """
    values = read_numbers(path, column)
    if len(values) != 1:
        raise BadDataError(f"{path}: has {len(values)} rows instead of one", _HINT)
    return float(values[0])


def read_sidecar(path: Path) -> dict[str, Any]:
    """Read the sidecar of a data file.

    Raises
    ------
    BadDataError
        It is absent, as a killed run leaves it, or is not a JSON object.
    """
    sidecar = sidecar_of(path)
    try:
        document = read_json(sidecar)
    except FileNotFoundError as error:
        raise BadDataError(f"{path}: has no sidecar: not complete", _HINT) from error
    except (OSError, ValueError) as error:
        raise BadDataError(f"{sidecar}: cannot be read as JSON: {error}", _HINT) from error
    if not isinstance(document, dict):
        raise BadDataError(f"{sidecar}: is not a JSON object", _HINT)
    return document


def _find(
    derivatives: Path, datatype: str, suffix: str, extension: str, participant: str | None
) -> Iterator[tuple[Path, dict[str, str]]]:
    """Yield the files of our atlas, sorted, with the entities that say how they were made."""
    if not derivatives.is_dir():
        raise InputMissingError(
            f"{derivatives}: no such folder",
            hint="name the output folder of the participant level",
        )
    pattern = f"{datatype}/sub-*_{suffix}{extension}"
    folder = f"sub-{participant or '*'}"
    for path in sorted(
        [*derivatives.glob(f"{folder}/{pattern}"), *derivatives.glob(f"{folder}/ses-*/{pattern}")]
    ):
        entities = _entities(path)
        if entities.items() >= _ATLAS.items():
            yield path, {key: value for key, value in entities.items() if key in _MADE}


def _entities(path: Path) -> dict[str, str]:
    """Return the entities of a file name, by short key."""
    parts = path.name.split("_")[:-1]
    return {key: value for key, _, value in (part.partition("-") for part in parts)}


def _sources(path: Path) -> dict[str, str]:
    return {key: value for key, value in _entities(path).items() if key not in _MADE}


def _repetition_time(path: Path, sidecar: Mapping[str, Any]) -> float:
    from bsym_bids.bold.volumes import LONGEST_TR, SHORTEST_TR

    seconds = sidecar.get("RepetitionTime")
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not is_number or not SHORTEST_TR <= seconds <= LONGEST_TR:
        raise BadDataError(
            f"{sidecar_of(path)}: RepetitionTime is {seconds!r} instead of seconds from "
            f"{SHORTEST_TR:g} to {LONGEST_TR:g}",
            _HINT,
        )
    return float(seconds)


def _read_table(path: Path) -> Any:
    """Read a table with pandas, whole: in parts (``low_memory``) it takes a third longer."""
    import pandas as pd

    with open_regular(path) as file:
        n_columns = file.readline(_LONGEST_HEADER).count(b"\t") + 1
    if n_columns > _MOST_COLUMNS:
        raise ValueError(f"it has {n_columns} columns or more")
    return pd.read_csv(
        path, sep="\t", na_values=NOT_AVAILABLE, keep_default_na=False, low_memory=False
    )


def _read_numbers(path: Path, rows_named: bool) -> NDArray[np.float64]:
    """Read a table of numbers with a column per ROI, and a row per ROI where rows are named.

    Of tables that are all numbers NumPy takes half the time of pandas.
    """
    names = list(atlas.roi_names())
    first = int(rows_named)
    try:
        header, _, body = read_bytes(path, _LARGEST_TABLE).partition(b"\n")
        if not header.strip():
            raise ValueError("it is empty")
        labels = header.decode().rstrip("\r").split("\t")[first:]
        if len(labels) > _MOST_COLUMNS:
            raise ValueError(f"it has {len(labels)} columns")
        lines = [line for line in body.splitlines() if line]
        rows = [line.partition(b"\t")[0].decode() for line in lines] if rows_named else names
        values = np.empty((0, len(labels)))
        if lines:
            values = np.loadtxt(
                BytesIO(body.replace(NOT_AVAILABLE.encode(), b"nan")),
                delimiter="\t",
                comments=None,
                ndmin=2,
                converters={0: lambda _: 0.0} if rows_named else None,
            )[:, first:]
        if values.shape[1] != len(labels):
            raise ValueError(f"rows have {values.shape[1]} numbers and the header {len(labels)}")
    except (OSError, ValueError) as error:
        reason = _uneven(path) if isinstance(error, ValueError) else ""
        raise BadDataError(
            f"{path}: cannot be read as a table of numbers: {reason or error}", _HINT
        ) from error
    if labels != names or rows != names:
        raise BadDataError(
            f"{path}: {'rows and columns are' if rows_named else 'columns are'} not the "
            f"{len(names)} ROIs of the atlas, in its order",
            _HINT,
        )
    if not len(values) or np.isinf(values).any():
        raise BadDataError(f"{path}: holds no rows, or values that are not finite", _HINT)
    return values


def _uneven(path: Path) -> str:
    """Say which line has another number of columns than the header; empty where none has.

    NumPy says it, too, with advice that is for programmers.
    """
    header, *lines = read_bytes(path, _LARGEST_TABLE).split(b"\n")
    expected = header.count(b"\t")
    for number, line in enumerate(lines, start=2):
        found = line.count(b"\t")
        if line.strip(b"\r") and found != expected:
            return f"line {number} has {found + 1} columns instead of {expected + 1}"
    return ""

"""What the participant level has written of whom."""

from __future__ import annotations

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bsym_bids.errors import BadDataError
from bsym_bids.inputs.selection import Selection, unknown_label
from bsym_bids.outputs.names import Product, cohort_products, products, scan_products
from bsym_bids.outputs.reading import (
    WrittenConnectome,
    WrittenRun,
    find_connectomes,
    find_runs,
    one_space,
    read_sidecar,
)
from bsym_bids.prediction.records import Unit

LOGGER = logging.getLogger("bsym_bids")
BOLD, DWI = "bold", "dwi"
#: What features are read from, besides what runs and scans are found by.
_OF_RUNS = (
    "connectivity",
    "run_quality",
    "embedding",
    "window_embeddings",
    "similarity",
    "attention",
)
_OF_SCANS = ("rois", "scan_quality", "model_input", "structural_embedding")
#: Small tables that are published together with others: their sidecars say nothing new.
_COMPANIONS = frozenset({"run_quality", "rois", "scan_quality"})
_EVERYTHING = Selection()
#: What the sidecars say of how a file was made, that has to be the same for all.
SETTINGS = ("TimeSeriesSettings", "EmbeddingSettings", "ConnectomeSettings", "StructuralSettings")
MODEL = "Model"
#: What is kept of a sidecar.
_KEPT = (
    *SETTINGS,
    MODEL,
    "SoftwareVersions",
    "SpatialReference",
    "Preprocessing",
    "ModelDomain",
    "Warning",
)


@dataclass(frozen=True, eq=False)
class Record:
    """What there is of one BOLD run or diffusion scan.

    Attributes
    ----------
    modality : str
        `BOLD` or `DWI`.
    entities : mapping of str to str
        Entities of the source, short keys, in their order.
    label : str
        What the run or scan is called in messages and tables.
    files : mapping of str to Path
        The complete outputs by the key of their product.
    sidecars : mapping of str to mapping
        What matters here of the sidecar of each product.
    """

    modality: str
    entities: Mapping[str, str]
    label: str
    files: Mapping[str, Path]
    sidecars: Mapping[str, Mapping[str, Any]]

    @property
    def participant(self) -> str:
        """Label of the participant, without ``sub-``."""
        return self.entities["sub"]

    @property
    def session(self) -> str:
        """Label of the session, without ``ses-``; empty for none."""
        return self.entities.get("ses", "")

    @property
    def task(self) -> str:
        """Label of the task, without ``task-``; empty for none, as of scans."""
        return self.entities.get("task", "")

    @property
    def model_domain(self) -> str:
        """Whether the model knows the data, as its outputs say; empty without."""
        found = (part_of(doc, "ModelDomain").get("Verdict") for doc in self.sidecars.values())
        return next((str(verdict) for verdict in found if verdict), "")


@dataclass(frozen=True, eq=False)
class Inventory:
    """All complete outputs of a dataset that were asked for.

    Attributes
    ----------
    output_dir : Path
        Root of the dataset.
    records : tuple of Record
        BOLD runs, then diffusion scans, each sorted by path.
    warnings : tuple of str
        What was left out, and why.
    """

    output_dir: Path
    records: tuple[Record, ...]
    warnings: tuple[str, ...] = ()

    @property
    def participants(self) -> tuple[str, ...]:
        """Labels of those who have something, sorted."""
        return tuple(sorted({record.participant for record in self.records}))

    @property
    def sessions(self) -> tuple[str, ...]:
        """Labels of all sessions, sorted."""
        return tuple(sorted({record.session for record in self.records} - {""}))

    @property
    def tasks(self) -> tuple[str, ...]:
        """Labels of all tasks, sorted."""
        return tuple(sorted({record.task for record in self.records} - {""}))

    @property
    def model(self) -> Mapping[str, Any]:
        """What sidecars say of the model (``Name``, ``Trained``, ...); empty without one."""
        documents = (doc for record in self.records for doc in record.sidecars.values())
        return next((part_of(doc, MODEL) for doc in documents if part_of(doc, MODEL)), {})

    @property
    def model_warning(self) -> str:
        """What sidecars warn of, as for a model that is not trained; else empty."""
        documents = (doc for record in self.records for doc in record.sidecars.values())
        return next((str(doc["Warning"]) for doc in documents if "Warning" in doc), "")

    def of_modality(self, modality: str) -> tuple[Record, ...]:
        """Return the BOLD runs, or the diffusion scans."""
        return tuple(record for record in self.records if record.modality == modality)

    def of_unit(self, unit: Unit, modality: str) -> tuple[Record, ...]:
        """Return what a unit is known by.

        A participant has all of their runs and scans; a session its own, and where it has no
        diffusion scan those of the participant's first session that has one, as when a run and a
        scan are fused: a connectome changes little. A state is a session or a task (``ses-A``,
        ``task-B``) and has nothing but its own: a task, no scans.
        """
        mine = self._by_participant.get((unit.participant, modality), ())
        key, _, label = unit.state.partition("-")
        if unit.state and (key not in ("ses", "task") or not label):
            raise ValueError(f"{unit.state!r} names neither a session nor a task")
        if key == "task":
            mine = tuple(record for record in mine if record.task == label)
        if key == "ses":
            mine = tuple(record for record in mine if record.session == label)
        if not unit.session:
            return mine
        own = tuple(record for record in mine if record.session == unit.session)
        if own or modality == BOLD or unit.state or not mine:
            return own
        first = min(record.session for record in mine)
        return tuple(record for record in mine if record.session == first)

    @cached_property
    def _by_participant(self) -> Mapping[tuple[str, str], tuple[Record, ...]]:
        found: dict[tuple[str, str], list[Record]] = defaultdict(list)
        for record in self.records:
            found[record.participant, record.modality].append(record)
        return {key: tuple(records) for key, records in found.items()}


def take_inventory(
    output_dir: Path, selection: Selection = _EVERYTHING, *, cohort_scaled: bool = False
) -> Inventory:
    """Find what the participant level has written.

    Each sidecar is read once. Outputs without one, as a killed run leaves them, or with one that
    cannot be read, are left out with a warning.

    Parameters
    ----------
    output_dir : Path
        Output folder of the participant level.
    selection : Selection
        Participants, sessions, tasks and runs that are wanted; of diffusion scans only participants
        and sessions choose. Filters of a file play no part.
    cohort_scaled : bool
        Take what comes from the model as it is under cohort scaling.

    Returns
    -------
    Inventory

    Raises
    ------
    InputMissingError
        There is no such folder.
    NothingSelectedError
        A label that is asked for is of no output.
    """
    warnings: list[str] = []
    runs = find_runs(output_dir, warnings)
    scans = [scan for scan in find_connectomes(output_dir) if scan.measure == "count"]
    _check_labels(selection, runs, scans)
    chosen = set(selection.participants)
    wanted_runs = [
        run
        for run in runs
        if selection.takes(run.entities) and (not chosen or run.participant in chosen)
    ]
    wanted_scans = [
        scan
        for scan in scans
        if selection.takes_session(scan.entities) and (not chosen or scan.participant in chosen)
    ]

    def warn(text: str) -> None:
        LOGGER.warning("%s", text)
        warnings.append(text)

    records = [_run_record(run, cohort_scaled, warn) for run in _each_run_once(wanted_runs, warn)]
    records += [_scan_record(scan, warn) for scan in _each_scan_once(wanted_scans, warn)]
    return Inventory(
        output_dir, tuple(record for record in records if record.files), tuple(warnings)
    )


def part_of(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return a mapping within a sidecar; empty where there is none."""
    part = document.get(key)
    return part if isinstance(part, dict) else {}


def _check_labels(
    selection: Selection, runs: Sequence[WrittenRun], scans: Sequence[WrittenConnectome]
) -> None:
    known = {found.participant for found in (*runs, *scans)}
    for label in selection.participants:
        if label not in known:
            raise unknown_label("--participant-label", label, known)
    selection.check_known([run.entities for run in runs], [scan.entities for scan in scans])


def _each_run_once(runs: Sequence[WrittenRun], warn: Callable[[str], None]) -> list[WrittenRun]:
    """Choose a space for runs that were processed in several: the one that most runs have."""
    count = Counter(run.space for run in runs)
    chosen = one_space(sorted(runs, key=lambda run: (-count[run.space], run.space, run.path)))
    if len(chosen) < len(runs):
        spaces = ", ".join(sorted({run.space for run in chosen}))
        warn(f"BOLD runs that were processed several times are taken once, in {spaces}")
    return sorted(chosen, key=lambda run: run.path)


def _each_scan_once(
    scans: Sequence[WrittenConnectome], warn: Callable[[str], None]
) -> list[WrittenConnectome]:
    chosen: dict[tuple[tuple[str, str], ...], WrittenConnectome] = {}
    for scan in scans:
        first = chosen.setdefault(tuple(scan.entities.items()), scan)
        if first is not scan:
            warn(f"{scan.path}: left out, as {first.path.name} is of the same scan")
    return list(chosen.values())


def _run_record(run: WrittenRun, cohort_scaled: bool, warn: Callable[[str], None]) -> Record:
    made = {**products(), **cohort_products()} if cohort_scaled else products()
    beside = {key: _beside(run.path, made[key]) for key in _OF_RUNS}
    files, sidecars = _complete(beside.items(), warn)
    files["denoised"], sidecars["denoised"] = run.path, _kept(run.sidecar)
    return Record(BOLD, run.entities, run.label, files, sidecars)


def _scan_record(scan: WrittenConnectome, warn: Callable[[str], None]) -> Record:
    beside = {key: _beside(scan.path, scan_products()[key]) for key in _OF_SCANS}
    files, sidecars = _complete([("count", scan.path), *beside.items()], warn)
    return Record(DWI, scan.entities, scan.label, files, sidecars)


def _beside(path: Path, product: Product) -> Path:
    """Return where another product of the same run or scan is."""
    name = re.split(r"_(?:stat|desc)-", path.name)[0]
    name += f"_stat-{product.stat}" if product.stat else ""
    name += f"_desc-{product.desc}" if product.desc else ""
    return path.with_name(f"{name}_{product.suffix}{product.extension}")


def _complete(
    candidates: Iterable[tuple[str, Path]], warn: Callable[[str], None]
) -> tuple[dict[str, Path], dict[str, Mapping[str, Any]]]:
    """Return the files that are there with a sidecar, and what their sidecars say."""
    files: dict[str, Path] = {}
    sidecars: dict[str, Mapping[str, Any]] = {}
    for key, path in candidates:
        if not path.is_file():
            continue
        if key not in _COMPANIONS:
            try:
                sidecars[key] = _kept(read_sidecar(path))
            except BadDataError as error:
                warn(f"left out: {error}")
                continue
        files[key] = path
    return files, sidecars


def _kept(document: Mapping[str, Any]) -> Mapping[str, Any]:
    return {key: document[key] for key in _KEPT if key in document}

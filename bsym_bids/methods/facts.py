"""What was run, from the sidecars of what was written: distinct settings, and what has each."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bsym_bids.errors import BadDataError
from bsym_bids.methods import aspects
from bsym_bids.methods.aspects import Aspect, Document
from bsym_bids.outputs.dataset import path_of
from bsym_bids.outputs.names import COHORT_SCALING, dataset_path, dataset_products, sidecar_of
from bsym_bids.outputs.reading import (
    WrittenConnectome,
    WrittenRun,
    find_connectomes,
    find_runs,
    read_sidecar,
)
from bsym_bids.untrusted import read_json

LOGGER = logging.getLogger("bsym_bids")
_DIGITS = 12  # of hashes, in names of files
#: Tables of the cohort that there is one of each; others are of contrasts.
_OF_GROUP = ("identification", "reliability", "recovery")


@dataclass(frozen=True, eq=False)
class Block:
    """Settings that are the same for all that have them.

    Attributes
    ----------
    aspect : str
        What they are of.
    settings : mapping
        As JSON has them.
    holders : frozenset of str
        Entities of the runs or scans that have them; empty where that is not known, as of what is
        read back from the record.
    """

    aspect: str
    settings: Mapping[str, Any]
    holders: frozenset[str] = frozenset()

    @property
    def digest(self) -> str:
        """Short hash of aspect and settings."""
        return digest_of(self.aspect, self.settings)

    @property
    def participants(self) -> frozenset[str]:
        """Labels of those whom the runs or scans are of."""
        return frozenset(_participant(holder) for holder in self.holders)


def digest_of(aspect: str, settings: Mapping[str, Any]) -> str:
    """Return the short hash of an aspect and its settings."""
    whole = json.dumps([aspect, settings], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(whole.encode("utf-8")).hexdigest()[:_DIGITS]


@dataclass(frozen=True, eq=False)
class Facts:
    """What was run.

    Attributes
    ----------
    blocks : tuple of Block
        Each once, in an order that depends on nothing else.
    numbers : mapping of str to tuple of float
        Values that differ from run to run or scan to scan, sorted.
    is_counted : bool
        Whether the holders of blocks are known, so that they can be counted.
    """

    blocks: tuple[Block, ...] = ()
    numbers: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    is_counted: bool = True

    def of(self, aspect: str) -> tuple[Block, ...]:
        """Return the blocks of an aspect, those with the most holders first."""
        found = (block for block in self.blocks if block.aspect == aspect)
        return tuple(sorted(found, key=lambda block: (-len(block.holders), block.digest)))

    def has(self, aspect: str) -> bool:
        """Tell whether there is any block of an aspect."""
        return any(block.aspect == aspect for block in self.blocks)

    def any_has(self, aspect: str, key: str, value: Any) -> bool:
        """Tell whether some block of an aspect has a value."""
        return any(block.settings.get(key) == value for block in self.of(aspect))

    def holders(self, *names: str) -> frozenset[str]:
        """Return who has any block of some aspects."""
        return frozenset().union(*(b.holders for b in self.blocks if b.aspect in names))

    def without_counts(self) -> Facts:
        """Return the same as the record has it."""
        return Facts(tuple(Block(b.aspect, b.settings) for b in self.blocks), {}, False)


class _Collector:
    """Puts blocks together as sidecars are read."""

    def __init__(self) -> None:
        self._settings: dict[tuple[str, str], Mapping[str, Any]] = {}
        self._holders: dict[tuple[str, str], set[str]] = {}
        self._numbers: dict[str, list[float]] = {}

    def add(self, found: Iterable[Aspect], holder: str = "") -> None:
        for aspect, given in found:
            settings = _plain(given)
            key = aspect, digest_of(aspect, settings)
            self._settings.setdefault(key, settings)
            holders = self._holders.setdefault(key, set())
            if holder:
                holders.add(holder)

    def count(self, name: str, value: float | None) -> None:
        if value is not None:
            self._numbers.setdefault(name, []).append(float(value))

    def facts(self) -> Facts:
        blocks = tuple(
            Block(key[0], self._settings[key], frozenset(self._holders[key]))
            for key in sorted(self._settings)
        )
        return Facts(blocks, {k: tuple(sorted(v)) for k, v in self._numbers.items()})


def facts_of(output_dir: Path, labels: Collection[str] | None = None) -> Facts:
    """Read what was run off the sidecars of a dataset.

    One sidecar of each group of products of a run or scan is read; none of the data.

    Parameters
    ----------
    output_dir : Path
        Root of the dataset.
    labels : collection of str, optional
        Participants that are wanted, without ``sub-``. By default all are, and what was made of
        the cohort.

    Returns
    -------
    Facts
        Sidecars that cannot be read are left out with a warning.

    Raises
    ------
    InputMissingError
        There is no such folder.
    """
    programs = source_programs(output_dir)
    collector = _Collector()
    for participant in [None] if labels is None else sorted(labels):
        for run in find_runs(output_dir, participant=participant):
            _add_run(collector, run, output_dir, programs)
        for scan in find_connectomes(output_dir, participant):
            if scan.measure == "count":
                _add_scan(collector, scan, output_dir, programs)
    if labels is None:
        _add_dataset(collector, output_dir)
    return collector.facts()


def source_programs(output_dir: Path) -> dict[str, Document]:
    """Return what says to have made the source datasets, by the names that URIs use.

    Returns
    -------
    dict of str to mapping
        ``Name`` and ``Version`` of the program; nothing of datasets that are not there any more, or
        say nothing.
    """
    links = aspects.mapping(_json(output_dir / "dataset_description.json"), "DatasetLinks")
    found: dict[str, Document] = {}
    for name, uri in links.items():
        if not isinstance(uri, str) or not uri.startswith("file:"):
            continue
        made = aspects.entries(
            _json(Path(path_of(uri)) / "dataset_description.json"), "GeneratedBy"
        )
        if made and isinstance(made[0], Mapping) and aspects.text(made[0], "Name"):
            found[name] = {key: aspects.text(made[0], key) for key in ("Name", "Version")}
    return found


def _json(path: Path) -> Document:
    """Return an object of JSON; empty where there is none."""
    try:
        document = read_json(path)
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _plain(value: Any) -> Any:
    """Return a value as it can be written: JSON has no NaN, and UTF-8 no halves of characters."""
    if isinstance(value, Mapping):
        return {_plain(str(key)): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _participant(holder: str) -> str:
    return holder.split("_")[0].removeprefix("sub-")


def _holder(entities: Mapping[str, str]) -> str:
    return "_".join(f"{key}-{value}" for key, value in entities.items())


def _read(path: Path) -> Document:
    """Return the sidecar of a data file; empty where there is none, or none that can be read."""
    if not sidecar_of(path).is_file():
        return {}
    try:
        return read_sidecar(path)
    except BadDataError as error:
        LOGGER.warning("left out of the methods text: %s", error)
        return {}


def _add_run(
    collector: _Collector, run: WrittenRun, output_dir: Path, programs: Mapping[str, Document]
) -> None:
    holder, names = _holder(run.entities), run.names(output_dir)
    raw = _read(names.path("timeseries"))
    form = {"space": run.space, "resolution": run.resolution, "density": run.density}
    known = {key: value for key, value in form.items() if value}
    source = _source_of([*_sources(raw), *_sources(run.sidecar)])
    found = aspects.of_series(run.sidecar, raw, programs.get(source, {}), known)
    with_model = False
    if embedding := _read(names.path("embedding")):
        with_model = True
        found += aspects.of_embedding(embedding)
    if reconstruction := _read(names.path("reconstruction")):
        found += aspects.of_reconstruction(reconstruction)
        collector.count("windows", len(aspects.entries(reconstruction, "EvaluatedWindows")))
    if _read(names.path("fused_embedding")):
        found.append(("fusion", {}))
    if cohort := _read(run.names(output_dir, cohort_scaled=True).path("embedding")):
        found += aspects.of_cohort_embedding(cohort)
    found += _presence(names, ("connectivity", "similarity", "attention"))
    found += aspects.of_software(run.sidecar, with_model=with_model)
    collector.add(found, holder)


def _add_scan(
    collector: _Collector,
    scan: WrittenConnectome,
    output_dir: Path,
    programs: Mapping[str, Document],
) -> None:
    document = _read(scan.path)
    if not document:
        return
    names, holder = scan.names(output_dir), _holder(scan.entities)
    found = aspects.of_connectome(document, programs)
    is_tracked = document.get("Simulated") is not True
    if is_tracked:
        collector.count("streamlines", aspects.number(document, "Streamlines"))
        collector.count("reliability", aspects.number(document, "SamplingReliability"))
        found.append(("sift2", {"There": sidecar_of(names.path("sift2")).is_file()}))
    structure = _read(names.path("structural_embedding"))
    if structure:
        found += aspects.of_structure(structure)
        collector.count("depth", aspects.number(structure, "DepthFactor"))
        found += _presence(names, ("structural_attention", "edge_quality"))
    found += aspects.of_software(document, with_model=bool(structure))
    collector.add(found, holder)


def _presence(names: Any, keys: Iterable[str]) -> list[Aspect]:
    """Return an aspect for each product that is there."""
    called = {"edge_quality": "edges"}
    return [(called.get(key, key), {}) for key in keys if sidecar_of(names.path(key)).is_file()]


def _sources(document: Document) -> list[str]:
    return aspects.texts(document, "Sources")


def _source_of(uris: Iterable[str]) -> str:
    """Return the name of the first dataset among BIDS URIs that is not the one they are in."""
    for uri in uris:
        scheme, _, rest = uri.partition(":")
        name = rest.partition(":")[0]
        if scheme == "bids" and name:
            return name
    return ""


def _add_dataset(collector: _Collector, output_dir: Path) -> None:
    """Add what was made of the cohort."""
    for path in sorted(output_dir.glob("desc-*_predictions.tsv")):
        document = _read(path)
        found: list[Aspect] = []
        if "PredictionSettings" in document and "Head" not in document:
            found += aspects.of_prediction(document)
        elif "Head" in document:
            found += aspects.of_applied(document)
        collector.add(_with_software(found, document))
    for key, path in _group_tables(output_dir):
        document = _read(path)
        if document:
            collector.add(_with_software(aspects.of_group(key, document), document))
    scaling = _read(dataset_path(output_dir, COHORT_SCALING))
    if scaling:
        collector.add(aspects.of_cohort_scaling(scaling))


def _with_software(found: list[Aspect], document: Document) -> list[Aspect]:
    return found + aspects.of_software(document, with_model=False) if found else found


def _group_tables(output_dir: Path) -> Iterator[tuple[str, Path]]:
    """Yield the tables of the cohort with the keys of their products."""
    known = {dataset_path(output_dir, key).name: key for key in _OF_GROUP}
    suffix = dataset_products()["contrast"].suffix
    for path in sorted(output_dir.glob(f"desc-*_{suffix}.tsv")):
        yield known.get(path.name, "contrast"), path
    for path in sorted(output_dir.glob("desc-*mean_relmat.tsv")):
        yield "group_mean", path

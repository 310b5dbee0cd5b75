"""Maps of a cohort, from its outputs to published tables: no label is needed for them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bsym_bids import atlas
from bsym_bids.bold.windows import WINDOW_LENGTH
from bsym_bids.cohort.contrast import (
    LEAST_PAIRS,
    MEASURES,
    Contrast,
    ContrastMap,
    Differences,
    EmbeddingShift,
    PairedPerson,
    check_labels,
    contrast_maps,
    embedding_differences,
    embedding_shift,
    few_pairs_warning,
    pair_scans,
    parse_contrast,
    person_differences,
    read_pairs,
)
from bsym_bids.cohort.edges import edges_to_matrix
from bsym_bids.cohort.identification import (
    Identification,
    find_comparisons,
    halves,
    identify_with_and_without_mean,
    split_half_features,
)
from bsym_bids.cohort.recovery import recover_networks
from bsym_bids.cohort.reliability import edge_networks, group_mean, reliability, roi_networks
from bsym_bids.cohort.reliability import table as reliability_table
from bsym_bids.errors import BadDataError, BsymError, CannotCreateOutputError, OutputIOError
from bsym_bids.model.weights import resolve_release
from bsym_bids.outputs.maps import (
    Origin,
    write_contrast,
    write_group_mean,
    write_identification,
    write_recovery,
    write_reliability,
)
from bsym_bids.outputs.reading import read_embedding, read_matrix, read_series, read_windows, run_of
from bsym_bids.prediction.consistency import check_consistent
from bsym_bids.prediction.features import (
    FeatureKind,
    available_kinds,
    chosen_kinds,
    feature_kinds,
)
from bsym_bids.prediction.inventory import BOLD, Inventory, Record
from bsym_bids.prediction.store import FeatureStore

LOGGER = logging.getLogger("bsym_bids")
#: Kinds whose mean is a matrix over ROIs, and whether it is one of Fisher's z.
_MATRICES = {"fc": True, "bs_functional": True, "sc": False}
#: Kinds that halves of a run have too, by their names in `split_half_features`.
_HALVES = {"connectivity": "fc", "similarity": "bs_functional", "embedding": "bs_functional_mean"}
#: Kinds that network recovery is about.
_EMBEDDINGS = frozenset({"bs_functional", "bs_functional_mean"})
#: A scan that has less of what most scans have is left out: what it lacks would count for nobody.
_LEAST_SHARE = 0.5
#: What is contrasted beside `MEASURES`; all are read from the product of their name.
_EMBEDDING = "embedding"


def map_cohort(
    inventory: Inventory,
    store: FeatureStore,
    *,
    n_permutations: int,
    seed: int,
    n_workers: int,
    model_dir: Path | None = None,
    features: Sequence[str] = (),
) -> list[Path]:
    """Say how well people and networks are told apart, and how reliable features are.

    What the data of one kind of features do not allow is warned of, and does not stop the others.

    Parameters
    ----------
    inventory : Inventory
        The outputs.
    store : FeatureStore
        Their features.
    n_permutations, seed : int
        Of the permutation tests.
    n_workers : int
        Processes that parse.
    model_dir : Path, optional
        Where the model of the outputs is; without it, there is no network recovery.
    features : sequence of str
        Kinds of features that are wanted; all by default. Network recovery is there with the
        functional embedding.

    Returns
    -------
    list of Path
        What was published.

    Raises
    ------
    UsageError
        A kind of features is wanted that there is not.
    BadDataError
        Outputs were made in different ways, or the data allow nothing at all.
    CannotCreateOutputError, OutputIOError
        Something cannot be written.
    """
    kinds = chosen_kinds({kind.key: kind for kind in available_kinds(inventory)}, features)
    settings = _settings(inventory, n_permutations, seed)
    random = {"n_permutations": n_permutations, "seed": seed}
    found = _Found()
    for kind in kinds.values():
        with found.or_warned(kind.title):
            records = [r for r in inventory.of_modality(kind.modality) if kind.sources(r)]
            values = store.load(kind, records, n_workers)
            rows = found.usable_rows(kind, values, [record.label for record in records])
            if len(rows):
                if len(rows) < len(values):  # else they are not copied
                    values, records = values[rows], [records[row] for row in rows]
                found.files[kind.key] = {path for one in records for path in kind.sources(one)}
                _map_kind(found, kind, values, records, inventory, settings, random)
    if len(set(inventory.participants)) > 1 and not found.compared & set(_HALVES.values()):
        _identify_halves(found, inventory, features, random)
    own = {**settings, "LeftOut": found.left_out}
    if found.identified:
        origin = Origin(own, found.files_of(found.identified))
        found.paths += write_identification(found.identified, inventory.output_dir, origin)
    if found.tables:
        origin = Origin(own, found.files_of(found.tables))
        found.paths += write_reliability(found.tables, inventory.output_dir, origin)
    if _EMBEDDINGS & kinds.keys():
        with found.or_warned("network recovery"):
            found.paths += _recover(inventory, model_dir, seed, n_workers, settings)
    if found.failures and not found.paths:
        raise found.failures[-1]
    return found.paths


@dataclass
class _Found:
    """What there is of a cohort so far, by kind of features.

    Attributes
    ----------
    identified, tables : dict
        Identification, and tables of reliability.
    left_out : dict of str to list of str
        Scans that lack too much.
    files : dict of str to set of Path
        What its features were read from.
    compared : set of str
        Kinds of which people have two scans.
    paths : list of Path
        What was published.
    failures : list of BsymError
        What was warned of.
    """

    identified: dict[str, Sequence[Identification]] = field(default_factory=dict)
    tables: dict[str, Mapping[str, Sequence[Any]]] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, set[Path]] = field(default_factory=dict)
    compared: set[str] = field(default_factory=set)
    paths: list[Path] = field(default_factory=list)
    failures: list[BsymError] = field(default_factory=list)

    @contextmanager
    def or_warned(self, what: str) -> Iterator[None]:
        """Go on after an error of the data with a warning; a disk that is full stops everything."""
        try:
            yield
        except (CannotCreateOutputError, OutputIOError):
            raise
        except BsymError as error:
            LOGGER.warning("%s: not there: %s", what, error)
            self.failures.append(error)

    def files_of(self, kinds: Iterable[str]) -> set[Path]:
        """Return the files of some kinds."""
        return set[Path]().union(*(self.files.get(kind, ()) for kind in kinds))

    def usable_rows(
        self, kind: FeatureKind, values: NDArray[np.floating], labels: Sequence[str]
    ) -> list[int]:
        """Return the rows that have features, without those that lack much of what most have."""
        finite = np.isfinite(values)
        there = finite.any(axis=1)
        if not there.any():
            return []
        usual = finite.sum(axis=0) > there.sum() / 2
        count = np.array([np.count_nonzero(row & usual) for row in finite])  # small in memory
        lacking = there & (count < _LEAST_SHARE * usual.sum())
        if names := [labels[row] for row in np.flatnonzero(lacking)]:
            LOGGER.warning(
                "%s: left out, as they lack more than half of what most scans have: %s",
                kind.title,
                ", ".join(names),
            )
            known = self.left_out.setdefault(kind.key, [])
            known += [name for name in names if name not in known]
        return np.flatnonzero(there & ~lacking).tolist()


def _map_kind(
    found: _Found,
    kind: FeatureKind,
    values: NDArray[np.float32],
    records: Sequence[Record],
    inventory: Inventory,
    settings: Mapping[str, Any],
    random: Mapping[str, int],
) -> None:
    """Add what scans (M, F) say by a kind of features; what one map lacks stops no other."""
    people = [record.participant for record in records]
    comparisons = find_comparisons([record.entities for record in records])
    if comparisons:
        found.compared.add(kind.key)
        with found.or_warned(f"identification by {kind.title}"):
            found.identified[kind.key] = identify_with_and_without_mean(
                values, people, comparisons, **random
            )
        with found.or_warned(f"reliability of {kind.title}"):
            found.tables[kind.key] = reliability_table(
                reliability(values, people), _networks_of(kind, values.shape[1])
            )
    if kind.key in _MATRICES:
        own = {**settings, "LeftOut": found.left_out.get(kind.key, [])}
        origin = Origin(own, found.files[kind.key])
        found.paths.append(_write_mean(kind.key, values, people, inventory, origin))


def _recover(
    inventory: Inventory,
    model_dir: Path | None,
    seed: int,
    n_workers: int,
    settings: Mapping[str, Any],
) -> list[Path]:
    """Publish how well embeddings tell networks apart, where the model of the outputs is here."""
    runs = [
        run_of(record.files["denoised"])
        for record in inventory.of_modality(BOLD)
        if "denoised" in record.files and "embedding" in record.files
    ]
    if not runs or not inventory.model:
        return []
    try:
        release = resolve_release(str(inventory.model["Name"]), model_dir=model_dir)
    except BsymError as error:
        LOGGER.warning("no network recovery: %s", error)
        return []
    found = recover_networks(runs, release, seed=seed, n_workers=n_workers)
    if found is None:
        return []
    origin = Origin(settings, found.files)
    return list(write_recovery(found, release, inventory.output_dir, origin))


def _settings(inventory: Inventory, n_permutations: int, seed: int) -> dict[str, Any]:
    return {
        "Participants": len(inventory.participants),
        "Records": len(inventory.records),
        "Permutations": n_permutations,
        "Seed": seed,
        "Model": dict(inventory.model),
        "Differences": list(check_consistent(inventory)),
    }


def _networks_of(kind: FeatureKind, width: int) -> Mapping[str, NDArray[np.bool_]]:
    """Return the features of each network: edges, or the dimensions of ROIs."""
    networks, n_rois = atlas.networks(), atlas.N_ROIS
    n_edges = n_rois * (n_rois - 1) // 2
    if width == n_edges:
        return edge_networks(networks)
    if width == n_edges + n_rois:  # tangent space: edges, then the diagonal
        edges, diagonal = edge_networks(networks), roi_networks(networks)
        return {name: np.concatenate([edges[name], diagonal[name]]) for name in edges}
    return roi_networks(networks, width // n_rois)


def _write_mean(
    kind: str,
    features: NDArray[np.float32],
    people: Sequence[str],
    inventory: Inventory,
    origin: Origin,
) -> Path:
    mean = edges_to_matrix(group_mean(features, people).mean, atlas.N_ROIS)
    if _MATRICES[kind]:
        mean = np.tanh(mean)
        np.fill_diagonal(mean, 1)
    return write_group_mean(kind, mean, inventory.output_dir, origin)


def _identify_halves(
    found: _Found,
    inventory: Inventory,
    features: Sequence[str],
    random: Mapping[str, int],
) -> None:
    """Add comparisons of halves of each person's first run, where no two runs can be compared."""
    wanted = {name: key for name, key in _HALVES.items() if not features or key in features}
    if not wanted:
        return
    first: dict[str, Record] = {}
    for record in inventory.of_modality(BOLD):
        first.setdefault(record.participant, record)
    stacks: dict[str, list[NDArray[np.float32]]] = {}
    runs: dict[str, list[Record]] = {}
    for record in first.values():
        for name, both in _halves_of(record).items():
            if name in wanted:
                stacks.setdefault(wanted[name], []).append(both)
                runs.setdefault(wanted[name], []).append(record)
    for key, stack in stacks.items():
        kind = feature_kinds()[key]
        with found.or_warned(f"identification by {kind.title}"):
            both_there = np.stack([both.sum(axis=0) for both in stack])  # NaN where either is
            labels = [record.label for record in runs[key]]
            rows = found.usable_rows(kind, both_there, labels)
            if len(rows) > 1:
                used = [runs[key][row].files for row in rows]
                found.files[key] = {
                    files[product]
                    for files in used
                    for product in ("denoised", "window_embeddings")
                    if product in files
                }
                found.identified[key] = identify_with_and_without_mean(
                    np.concatenate(
                        [np.stack([stack[row][half] for row in rows]) for half in (0, 1)]
                    ),
                    2 * [runs[key][row].participant for row in rows],
                    [halves(len(rows))],
                    **random,
                )


def _halves_of(record: Record) -> dict[str, NDArray[np.float32]]:
    """Return the features of both halves of a run; nothing where it is too short."""
    try:
        series = read_series(run_of(record.files["denoised"]))
        given: dict[str, Any] = {"timeseries": series.timeseries, "kept": ~series.censored}
        if "window_embeddings" in record.files:
            windows = read_windows(record.files["window_embeddings"])
            given |= {key: windows[key] for key in ("masked",)}
            given |= {"embeddings": windows["embedding"], "onsets": windows["onset"]}
            step = record.sidecars["window_embeddings"].get("EmbeddingSettings", {})
            given["window_duration"] = WINDOW_LENGTH * float(step.get("ModelRepetitionTime", 0.8))
        return split_half_features(**given)
    except BsymError as error:
        LOGGER.warning("%s: not in the comparison of halves: %s", record.label, error)
        return {}


def map_contrast(text: str, inventory: Inventory, *, n_permutations: int, seed: int) -> list[Path]:
    """Map the paired differences between two sessions or tasks.

    Parameters
    ----------
    text : str
        ``ses-A-ses-B`` or ``task-A-task-B``.
    inventory : Inventory
        The outputs. A person of whom something cannot be read is left out with a warning.
    n_permutations, seed : int
        Of the flips of signs.

    Returns
    -------
    list of Path
        What was published.

    Raises
    ------
    UsageError
        It is no contrast, or no scan has a label.
    BadDataError
        Fewer than two people have both, or outputs were made in different ways.
    """
    contrast = parse_contrast(text)
    runs = inventory.of_modality(BOLD)
    check_labels(contrast, [run.entities for run in runs])
    settings = _settings(inventory, n_permutations, seed) | {
        "Contrast": text,
        "Difference": f"{contrast.name_a} minus {contrast.name_b}",
    }
    random = {"n_permutations": n_permutations, "seed": seed}
    maps: list[tuple[str, ContrastMap | EmbeddingShift, Origin]] = []
    for measure in (*MEASURES, _EMBEDDING):
        own = [run for run in runs if measure in run.files]
        pairs, left_out = pair_scans(contrast, [run.entities for run in own], measure)
        values, unreadable = read_pairs(contrast, pairs, _reader(measure, own), measure)
        if warning := few_pairs_warning(contrast, measure, len(values)):
            LOGGER.warning("%s", warning)
        if len(values) < LEAST_PAIRS:
            continue
        people = [f"sub-{person}" for person in sorted([*left_out, *unreadable])]
        of_map = {**settings, "Pairs": len(values), "LeftOut": people}
        found = _contrasted(contrast, measure, values, random)
        used = [pair for pair in pairs if pair.participant not in unreadable]
        files = {own[row].files[measure] for pair in used for row in pair.rows()}
        origin = Origin(of_map, files)
        maps += [(f"{measure}{level}", result, origin) for level, result in found.items()]
    if not maps:
        raise BadDataError(
            f"--contrast {text}: fewer than two participants have both, in files that can be read",
            hint="see the participants and sessions with --dry-run",
        )
    return list(write_contrast(contrast, maps, inventory.output_dir))


def _reader(measure: str, runs: Sequence[Record]) -> Callable[[PairedPerson], Any]:
    """Return what reads the differences of a person from the files of runs, by their rows."""
    if measure == _EMBEDDING:
        return lambda pair: embedding_differences(
            [pair], lambda row: read_embedding(runs[row].files[measure])
        )
    networks = atlas.networks()
    return lambda pair: person_differences(
        measure, [pair], lambda row: read_matrix(runs[row].files[measure]), networks
    )


def _contrasted(
    contrast: Contrast, measure: str, values: Sequence[Any], random: Mapping[str, int]
) -> Mapping[str, ContrastMap | EmbeddingShift]:
    """Test what `_reader` has read of each person, by level."""
    atlas_of = (atlas.roi_names(), atlas.networks())
    if measure == _EMBEDDING:
        return {"rois": embedding_shift(contrast, np.concatenate(values), *atlas_of, **random)}
    return contrast_maps(contrast, Differences.joined(values), *atlas_of, **random)

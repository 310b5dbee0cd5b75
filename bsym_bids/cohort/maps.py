"""Maps of a cohort, from its outputs to published tables: no label is needed for them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bsym_bids import atlas
from bsym_bids.bold.windows import WINDOW_LENGTH
from bsym_bids.cohort.contrast import (
    MEASURES,
    check_labels,
    contrast_maps,
    embedding_differences,
    embedding_shift,
    pair_scans,
    parse_contrast,
    person_differences,
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
from bsym_bids.errors import BadDataError, BsymError
from bsym_bids.model.weights import resolve_release
from bsym_bids.outputs.maps import (
    write_contrast,
    write_group_mean,
    write_identification,
    write_recovery,
    write_reliability,
)
from bsym_bids.outputs.reading import read_embedding, read_matrix, read_series, read_windows, run_of
from bsym_bids.prediction.consistency import check_consistent
from bsym_bids.prediction.features import FeatureKind, available_kinds
from bsym_bids.prediction.inventory import BOLD, Inventory, Record
from bsym_bids.prediction.store import FeatureStore

LOGGER = logging.getLogger("bsym_bids")
#: Kinds whose mean is a matrix over ROIs, and whether it is one of Fisher's z.
_MATRICES = {"fc": True, "bs_functional": True, "sc": False}
#: Products that a measure of a contrast is read from.
_PRODUCTS = {
    "attention": "attention",
    "connectivity": "connectivity",
    "similarity": "similarity",
}


def map_cohort(
    inventory: Inventory,
    store: FeatureStore,
    *,
    n_permutations: int,
    seed: int,
    n_workers: int,
    model_dir: Path | None = None,
) -> list[Path]:
    """Say how well people and networks are told apart, and how reliable features are.

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

    Returns
    -------
    list of Path
        What was published.

    Raises
    ------
    BadDataError
        Outputs were made in different ways.
    """
    settings = _settings(inventory, n_permutations, seed)
    identified: dict[str, Sequence[Identification]] = {}
    tables: dict[str, Mapping[str, Sequence[Any]]] = {}
    paths: list[Path] = []
    for kind in available_kinds(inventory):
        records = [r for r in inventory.of_modality(kind.modality) if kind.sources(r)]
        features = store.load(kind, records, n_workers)
        there = np.isfinite(features).any(axis=1)
        records = [record for record, has in zip(records, there, strict=True) if has]
        features = features[there]
        if not records:
            continue
        people = [record.participant for record in records]
        comparisons = find_comparisons([record.entities for record in records])
        if comparisons:
            identified[kind.key] = identify_with_and_without_mean(
                features, people, comparisons, n_permutations=n_permutations, seed=seed
            )
            tables[kind.key] = reliability_table(
                reliability(features, people), _networks_of(kind, features.shape[1])
            )
        if kind.key in _MATRICES:
            paths.append(_write_mean(kind.key, features, people, inventory, settings))
    if len(set(inventory.participants)) > 1:
        identified |= _identify_halves(inventory, identified, n_permutations, seed)
    if identified:
        paths += write_identification(identified, inventory.output_dir, settings)
    if tables:
        paths += write_reliability(tables, inventory.output_dir, settings)
    return paths + _recover(inventory, model_dir, seed, n_workers, settings)


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
    return list(write_recovery(found, release, inventory.output_dir, settings))


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
    settings: Mapping[str, Any],
) -> Path:
    mean = edges_to_matrix(group_mean(features, people).mean, atlas.N_ROIS)
    if _MATRICES[kind]:
        mean = np.tanh(mean)
        np.fill_diagonal(mean, 1)
    return write_group_mean(kind, mean, inventory.output_dir, settings)


def _identify_halves(
    inventory: Inventory,
    done: Mapping[str, Sequence[Identification]],
    n_permutations: int,
    seed: int,
) -> dict[str, Sequence[Identification]]:
    """Compare halves of each person's first run, where there are no two runs to compare."""
    if {"fc", "bs_functional"} & done.keys():
        return {}
    first: dict[str, Record] = {}
    for record in inventory.of_modality(BOLD):
        first.setdefault(record.participant, record)
    found: dict[str, list[NDArray[np.float32]]] = {}
    people: dict[str, list[str]] = {}
    names = {"connectivity": "fc", "similarity": "bs_functional", "embedding": "bs_functional_mean"}
    for person, record in first.items():
        for name, both in _halves_of(record).items():
            found.setdefault(names[name], []).append(both)
            people.setdefault(names[name], []).append(person)
    return {
        key: identify_with_and_without_mean(
            np.concatenate([np.stack([both[half] for both in stack]) for half in (0, 1)]),
            2 * people[key],
            [halves(len(stack))],
            n_permutations=n_permutations,
            seed=seed,
        )
        for key, stack in found.items()
        if len(stack) > 1
    }


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
        The outputs.
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
        "Difference": f"{contrast.entity}-{contrast.a} minus {contrast.entity}-{contrast.b}",
    }
    names, networks = atlas.roi_names(), atlas.networks()
    maps: list[tuple[str, Any]] = []
    flips = {"n_permutations": n_permutations, "seed": seed}
    for measure in MEASURES:
        own = [run for run in runs if _PRODUCTS[measure] in run.files]
        pairs, left_out = pair_scans(contrast, [run.entities for run in own])
        if len(pairs) < 2:
            continue
        settings |= {"Pairs": len(pairs), "LeftOut": left_out}
        load = _Matrices(own, _PRODUCTS[measure])
        differences = person_differences(measure, pairs, load, networks)
        found = contrast_maps(contrast, differences, names, networks, **flips)
        maps += [(f"{measure}{level}", result) for level, result in found.items()]
    own = [run for run in runs if "embedding" in run.files]
    pairs, _ = pair_scans(contrast, [run.entities for run in own])
    if len(pairs) > 1:
        differences = embedding_differences(
            pairs, lambda row: read_embedding(own[row].files["embedding"])
        )
        shift = embedding_shift(contrast, differences, names, networks, **flips)
        maps.append(("embeddingrois", shift))
    if not maps:
        raise BadDataError(
            f"--contrast {text}: fewer than two participants have both",
            hint="see the participants and sessions with --dry-run",
        )
    return list(write_contrast(contrast, maps, inventory.output_dir, settings))


class _Matrices:
    """Reads the matrix of a run by its row."""

    def __init__(self, runs: Sequence[Record], product: str) -> None:
        self._runs, self._product = runs, product

    def __call__(self, row: int) -> NDArray[np.float64]:
        return read_matrix(self._runs[row].files[self._product])

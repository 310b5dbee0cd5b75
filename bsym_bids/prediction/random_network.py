"""Features of the same network with random weights: what its training adds shows beside them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bsym_bids.cohort.edges import edges_of, fisher_z
from bsym_bids.cohort.reembedding import RandomNetwork
from bsym_bids.cohort.scaling import CohortScaling
from bsym_bids.config import COHORT
from bsym_bids.errors import BsymError
from bsym_bids.model.structural import EdgeConvention
from bsym_bids.model.weights import resolve_release
from bsym_bids.outputs.cohort import read_cohort_scaling
from bsym_bids.prediction.features import FeatureKind, files_of
from bsym_bids.prediction.inventory import BOLD, DWI, Inventory, part_of

LOGGER = logging.getLogger("bsym_bids")
FUNCTIONAL, STRUCTURAL = "random_functional", "random_structural"


def random_kinds(inventory: Inventory, model_dir: Path | None, seed: int) -> dict[str, FeatureKind]:
    """Return the kinds of features that the network has with random weights.

    Everything before the network is as the sidecars say it was.

    Parameters
    ----------
    inventory : Inventory
        The outputs.
    model_dir : Path, optional
        Where the model's files are, of which only the sizes count.
    seed : int
        Of the weights.

    Returns
    -------
    dict of str to FeatureKind
        Without those of branches that the model or the outputs do not have; empty with a warning
        where the model is not here, and for a model that is random itself.
    """
    model = inventory.model
    if not model or not model.get("Trained", True):
        return {}
    try:
        release = resolve_release(str(model["Name"]), model_dir=model_dir)
    except BsymError as error:
        LOGGER.warning("left out, the network with random weights: %s", error)
        return {}
    functional = _settings(inventory, BOLD, "EmbeddingSettings")
    structural = _settings(inventory, DWI, "StructuralSettings")
    network = RandomNetwork(
        release,
        seed,
        scaling=_scaling(inventory, functional),
        model_tr=float(functional.get("ModelRepetitionTime", 0.8)),
        window_step=int(functional.get("WindowStep", 100)),
        convention=_convention(structural),
    )
    version = f"1 {release.fingerprint} {seed} {sorted(functional.items())} {structural}"
    kinds = {}
    if functional:
        kinds[FUNCTIONAL] = FeatureKind(
            FUNCTIONAL,
            "similarity of functional embeddings, random weights",
            BOLD,
            files_of("denoised", "similarity"),
            partial(_read_functional, network),
            version,
        )
    if structural:
        kinds[STRUCTURAL] = FeatureKind(
            STRUCTURAL,
            "structural embedding, random weights",
            DWI,
            files_of("count", "rois"),
            partial(_read_structural, network),
            version,
        )
    return kinds


def _settings(inventory: Inventory, modality: str, key: str) -> Mapping[str, Any]:
    documents = (
        document
        for record in inventory.of_modality(modality)
        for document in record.sidecars.values()
    )
    return next((part_of(doc, key) for doc in documents if part_of(doc, key)), {})


def _scaling(inventory: Inventory, settings: Mapping[str, Any]) -> CohortScaling | str:
    """Return how series were scaled: by the cohort's statistics, or the name of the way."""
    name = str(settings.get("Scaling", "robust"))
    return read_cohort_scaling(inventory.output_dir) if name == COHORT else name


def _convention(settings: Mapping[str, Any]) -> EdgeConvention | None:
    if not {"Measure", "Transform"} <= settings.keys():
        return None
    return EdgeConvention(str(settings["Measure"]), str(settings["Transform"]))


def _read_functional(network: RandomNetwork, paths: tuple[Path, ...]) -> NDArray[np.floating]:
    """Return Fisher's z of the pairs of ROIs (101025,) of the similarity of embeddings."""
    return fisher_z(edges_of(network.functional(paths[0]).similarity))


def _read_structural(network: RandomNetwork, paths: tuple[Path, ...]) -> NDArray[np.floating]:
    """Return the structural embedding, ROI by ROI (450 D,)."""
    return network.structural(paths[0]).ravel()

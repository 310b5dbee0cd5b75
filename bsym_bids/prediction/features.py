"""What people are predicted from: kinds of features, a vector per BOLD run or diffusion scan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bsym_bids.cohort.edges import edges_of, fisher_z
from bsym_bids.errors import BadDataError, UsageError
from bsym_bids.outputs.reading import read_embedding, read_matrix, read_quality
from bsym_bids.prediction.inventory import BOLD, DWI, Inventory, Record
from bsym_bids.prediction.tangent import tangent_features

#: How the vectors of several runs or scans become that of a unit.
COMBINATION = (
    "mean over the runs or scans of a session, whatever their task, then over sessions; of "
    "correlations the mean of Fisher's z. A value that some of them lack is the mean of the others"
)


@dataclass(frozen=True)
class FeatureKind:
    """A kind of features.

    Attributes
    ----------
    key, title : str
        Name in the program, and for people.
    modality : str
        `BOLD` or `DWI`: what records it is made of.
    sources : callable
        Returns the files that it is read from, of a `Record`; none where the record lacks them.
    read : callable
        Returns the vector (F,) of such files, NaN where a value is missing; raises BsymError where
        a file cannot be used. Called in other processes, so that it has to be picklable.
    version : str
        Changes when `read` would give something else for the same files, so that nothing that is
        cached is used any more. It has to name everything that is not in the files.
    """

    key: str
    title: str
    modality: str
    sources: Callable[[Record], tuple[Path, ...]]
    read: Callable[[tuple[Path, ...]], NDArray[np.floating]]
    version: str = "1"


def files_of(*products: str) -> Callable[[Record], tuple[Path, ...]]:
    """Return what names the files of some products of a record: all of them, or none."""
    return partial(_files, products)


@cache
def feature_kinds() -> Mapping[str, FeatureKind]:
    """Return the kinds of features that are read from the outputs, by key."""
    kinds = (
        FeatureKind("fc", "functional connectivity", BOLD, files_of("connectivity"), read_z),
        FeatureKind(
            "fc_tangent",
            "functional connectivity in tangent space",
            BOLD,
            files_of("connectivity", "run_quality"),
            read_tangent,
        ),
        FeatureKind("sc", "structural connectivity", DWI, files_of("count"), read_counts),
        FeatureKind(
            "bs_functional_mean",
            "functional embedding, mean over windows",
            BOLD,
            files_of("embedding"),
            read_embedding_vector,
        ),
        FeatureKind(
            "bs_functional",
            "similarity of functional embeddings",
            BOLD,
            files_of("similarity"),
            read_z,
        ),
        FeatureKind(
            "bs_structural",
            "structural embedding",
            DWI,
            files_of("structural_embedding"),
            read_embedding_vector,
        ),
    )
    return {kind.key: kind for kind in kinds}


def available_kinds(inventory: Inventory) -> tuple[FeatureKind, ...]:
    """Return the kinds of features that some record has the files of."""
    return tuple(
        kind
        for kind in feature_kinds().values()
        if any(kind.sources(record) for record in inventory.of_modality(kind.modality))
    )


def chosen_kinds(kinds: Mapping[str, FeatureKind], wanted: Sequence[str]) -> dict[str, FeatureKind]:
    """Return the kinds of features that ``--features`` names; all where it names none.

    Raises
    ------
    UsageError
        It names one that there is not.
    """
    for key in wanted:
        if key not in kinds:
            raise UsageError(
                f"--features {key}: there are none", hint=f"there are: {', '.join(kinds)}"
            )
    return {key: kind for key, kind in kinds.items() if not wanted or key in wanted}


def read_z(paths: tuple[Path, ...]) -> NDArray[np.floating]:
    """Return Fisher's z of the pairs of ROIs (101025,) of a table of correlations."""
    return fisher_z(edges_of(read_matrix(paths[0])))


def read_tangent(paths: tuple[Path, ...]) -> NDArray[np.floating]:
    """Return functional connectivity in tangent space (101475,).

    Parameters
    ----------
    paths : tuple of Path
        The correlations, and the quality of the run, which has the degrees of freedom.
    """
    freedom = read_quality(paths[1], "degrees_of_freedom")
    try:
        return tangent_features(read_matrix(paths[0]), freedom)
    except BadDataError as error:
        raise BadDataError(f"{paths[0]}: {error}", error.hint) from error


def read_counts(paths: tuple[Path, ...]) -> NDArray[np.floating]:
    """Return log10(1 + streamlines) of the pairs of ROIs (101025,)."""
    counts = edges_of(read_matrix(paths[0]))
    if (counts < 0).any():
        raise BadDataError(f"{paths[0]}: holds negative counts of streamlines")
    return np.log10(1 + counts)


def read_embedding_vector(paths: tuple[Path, ...]) -> NDArray[np.floating]:
    """Return an embedding, ROI by ROI (450 D,)."""
    return read_embedding(paths[0]).ravel()


def _files(products: tuple[str, ...], record: Record) -> tuple[Path, ...]:
    if all(product in record.files for product in products):
        return tuple(record.files[product] for product in products)
    return ()

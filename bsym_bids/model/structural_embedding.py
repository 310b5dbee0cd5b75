"""Structural and fused embeddings: a person's connectome through the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bsym_bids.atlas import roi_volumes
from bsym_bids.atlas.group import group_streamline_counts
from bsym_bids.errors import BadDataError
from bsym_bids.model.embed import MAX_MISSING_SHARE, inference
from bsym_bids.model.structural import (
    DENSITY,
    EdgeConvention,
    edge_quality,
    structural_input,
    volume_normalised,
)

if TYPE_CHECKING:
    from bsym_bids.model.brainsymphony import BrainSymphony


@dataclass(frozen=True)
class ConnectomeInput:
    """A connectome as the network gets it.

    Attributes
    ----------
    sc : ndarray
        (R, R) float32, symmetric, diagonal 0; absent ROIs have no edges.
    missing : ndarray
        (R,) bool, the ROIs that are absent.
    n_streamlines : float
        Streamlines between different ROIs.
    depth_factor : float
        What their number was multiplied by, see `depth_factor`; 1 when it was left as it is.
    """

    sc: NDArray[np.float32]
    missing: NDArray[np.bool_]
    n_streamlines: float
    depth_factor: float


@dataclass(frozen=True)
class StructuralEmbedding:
    """What the network says about one connectome. Absent ROIs are NaN throughout.

    Attributes
    ----------
    embedding : ndarray
        (R, D) float32.
    attention : ndarray
        (R, R) float32, attention of the last layer, mean over heads.
    quality : mapping of str to float
        How well hidden edges are predicted, see `bsym_bids.model.structural.EdgeQuality.scores_of`.
    threads : int
        CPU threads that it was computed with.
    """

    embedding: NDArray[np.float32]
    attention: NDArray[np.float32]
    quality: Mapping[str, float]
    threads: int


def depth_factor(n_streamlines: float, expected: tuple[float, float] | None) -> float:
    """Return what to multiply counts by, so that there are as many as a model was made for.

    Where the logarithm is taken of 1 + count, a connectome of fewer streamlines is another input,
    not a noisier one. Counts grow in proportion to the number of streamlines, so that dividing by
    the ratio gives what to expect of a larger tractogram; it does not bring back edges too weak to
    be found.

    Parameters
    ----------
    n_streamlines : float
        Streamlines between different ROIs.
    expected : tuple of float, optional
        The fewest and the most that the model was made for; None where its card does not say.

    Returns
    -------
    float
        1 inside of the range, else what leads to its nearer end.
    """
    if expected is None or not n_streamlines:
        return 1.0
    return float(np.clip(n_streamlines, *expected) / n_streamlines)


def connectome_input(
    counts: NDArray[np.floating],
    volumes: NDArray[np.floating],
    convention: EdgeConvention,
    expected: tuple[float, float] | None = None,
) -> ConnectomeInput:
    """Turn streamline counts into what the network gets.

    Parameters
    ----------
    counts : ndarray
        (R, R), symmetric; rows and columns of NaN for absent ROIs.
    volumes : ndarray
        (R,), volumes of the ROIs in the person's space in mm3; used when the convention divides by
        them.
    convention : EdgeConvention
        Measure and transform.
    expected : tuple of float, optional
        As in `depth_factor`.

    Returns
    -------
    ConnectomeInput

    Raises
    ------
    BadDataError
        Too many ROIs are absent, or there are no streamlines between different ROIs.
    """
    missing = ~np.isfinite(counts).any(axis=0)
    if missing.mean() > MAX_MISSING_SHARE:
        raise BadDataError(
            f"{missing.sum()} of {missing.size} ROIs are absent; the model takes at most "
            f"{MAX_MISSING_SHARE:.0%}",
            hint="look at the registration: the labels (_dseg.nii.gz) should lie on the brain in "
            "the reference (_desc-b0_dwiref.nii.gz)",
        )
    weights = np.where(missing | missing[:, None], 0, counts).astype(np.float64)
    np.fill_diagonal(weights, 0)
    total = float(weights.sum() / 2)
    if not total:
        raise BadDataError(
            "no streamline connects two different ROIs",
            hint="look at the registration and at the gradients",
        )
    factor = depth_factor(total, expected)
    weights *= factor
    if convention.measure == DENSITY:
        weights = volume_normalised(weights, np.where(missing, 1.0, volumes))
    return ConnectomeInput(
        structural_input(weights, convention.transform), missing, total, float(factor)
    )


def expected_streamlines(card: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return how many streamlines a model was made for, where its card says so."""
    contract = card.get("contract", {}).get("structural_connectivity", {})
    stated = contract.get("streamlines")
    return (float(stated[0]), float(stated[1])) if stated else None


def group_input(convention: EdgeConvention) -> NDArray[np.float32]:
    """Return the group-average connectome (450, 450) of young adults under a convention."""
    counts = group_streamline_counts()
    if convention.measure == DENSITY:
        counts = volume_normalised(counts, roi_volumes())
    return structural_input(counts, convention.transform)


def embed_connectome(
    model: BrainSymphony,
    given: ConnectomeInput,
    *,
    seed: int,
    group: NDArray[np.floating] | None = None,
    threads: int | None = None,
) -> StructuralEmbedding:
    """Embed a connectome, and score how its edges are predicted when they are hidden.

    Parameters
    ----------
    model : BrainSymphony
        With the structural branch.
    given : ConnectomeInput
        The connectome.
    seed : int
        Of the folds that edges are hidden in.
    group : ndarray, optional
        (R, R), group average under the same convention, for the baseline.
    threads : int, optional
        CPU threads; None leaves torch's setting.

    Returns
    -------
    StructuralEmbedding

    Raises
    ------
    BadDataError
        The network has no structural branch, or the connectome does not fit it.
    """
    embedding, attention, used = connectome_latents(model, given, threads)
    quality = edge_quality(
        model, given.sc[None], seed, group=group, missing=given.missing[None], threads=threads
    )
    return StructuralEmbedding(embedding, attention, quality.scores_of(), used)


def connectome_latents(
    model: BrainSymphony, given: ConnectomeInput, threads: int | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32], int]:
    """Embed a connectome.

    Parameters
    ----------
    model, given, threads
        As in `embed_connectome`.

    Returns
    -------
    embedding, attention : ndarray
        (R, D) and (R, R), NaN for absent ROIs.
    threads : int
        CPU threads that they were computed with.

    Raises
    ------
    BadDataError
        As `embed_connectome`.
    """
    with inference(threads) as used:
        output = model(sc=given.sc[None])
    if output.structural_embedding is None or output.structural_attention is None:
        raise BadDataError("the network has no structural branch")
    embedding = output.structural_embedding[0].numpy().copy()
    attention = output.structural_attention[0].numpy().copy()
    embedding[given.missing] = np.nan
    attention[given.missing] = attention[:, given.missing] = np.nan
    return embedding, attention, used


@dataclass(frozen=True)
class FusedEmbedding:
    """Functional and structural embedding mixed by the network's gate.

    Attributes
    ----------
    windows, gate : ndarray
        (W, R, D) float32: fused embedding of each window, and the share of the functional one in
        it. NaN for ROIs that either modality lacks.
    """

    windows: NDArray[np.float32]
    gate: NDArray[np.float32]

    @property
    def mean(self) -> NDArray[np.float32]:
        """(R, D), the mean over windows."""
        return self.windows.mean(0, dtype=np.float64).astype(np.float32)


def fuse(
    model: BrainSymphony,
    functional: NDArray[np.floating],
    structural: NDArray[np.floating],
) -> FusedEmbedding:
    """Mix the functional embedding of every window with the structural one.

    Parameters
    ----------
    model : BrainSymphony
        With the gate.
    functional : ndarray
        (W, R, D), as `bsym_bids.model.embed.embed_windows` returns it.
    structural : ndarray
        (R, D), as `embed_connectome` returns it.

    Returns
    -------
    FusedEmbedding

    Raises
    ------
    BadDataError
        The network has no gate, or the embeddings are of different sizes.
    """
    import torch

    if model.gate is None:
        raise BadDataError("the network has no gate, so there is no fused embedding")
    if functional.ndim != 3 or functional.shape[1:] != structural.shape:
        raise BadDataError(
            f"embeddings of shapes {functional.shape} and {structural.shape} cannot be fused"
        )
    both = np.broadcast_to(structural, functional.shape).astype(np.float32)
    with inference(None):
        fused, gate = model.gate(
            torch.from_numpy(functional.astype(np.float32)), torch.from_numpy(both)
        )
    fused, gate = fused.numpy(), gate.numpy()
    lacking = ~np.isfinite(fused)
    return FusedEmbedding(np.where(lacking, np.nan, fused), np.where(lacking, np.nan, gate))

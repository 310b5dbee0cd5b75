"""Structural connectomes at the model: what it takes, and how well it predicts hidden edges.

The edge predictor of the structural branch belongs to its pretraining: edges are hidden, and
predicted from the embeddings of the two ROIs that the rest of the connectome gives. How well that
works on connectomes of one's own tells whether the network knows them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from bsym_bids.errors import BadDataError
from bsym_bids.model.embed import inference

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from torch import Tensor

    from bsym_bids.model.brainsymphony import BrainSymphony, SignedGraphTransformer

    Connectome = TypeVar("Connectome", NDArray[np.floating], Tensor)

#: How streamline counts or densities become edge weights: log10(1 + d), or log10(d) of edges.
CONVENTIONS = ("log10p1", "log10")
#: Edge weights that the network may get: streamline counts, or counts divided by ROI volumes.
COUNT, DENSITY = "count", "invnodevol"
MEASURES = (COUNT, DENSITY)
_SYMMETRY = 1e-5  # of the largest weight: more than tables of seven digits round away
_NUMBERS_AT_ONCE = 1 << 22  # of the edge predictor's first layer: 16 MiB


# --- input ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EdgeConvention:
    """What is made of streamline counts before the network gets them.

    Attributes
    ----------
    measure : str
        One of `MEASURES`: ``count``, or ``invnodevol``, divided by ROI volumes.
    transform : str
        One of `CONVENTIONS`.
    """

    measure: str
    transform: str


def stated_convention(card: Mapping[str, Any]) -> EdgeConvention | None:
    """Return the convention that a card's contract names, if it names one."""
    contract = card.get("contract", {}).get("structural_connectivity", {})
    if not {"volume_normalised", "transform"} <= set(contract):
        return None
    return EdgeConvention(
        DENSITY if contract["volume_normalised"] else COUNT, contract["transform"]
    )


def usual_convention(card: Mapping[str, Any]) -> EdgeConvention:
    """Return the convention that is used with a model unless another is asked for.

    What its card's contract names; where that is silent, what the authors describe: counts divided
    by volume, then the logarithm.
    """
    return stated_convention(card) or EdgeConvention(DENSITY, "log10")


def structural_input(weights: NDArray[np.number], convention: str) -> NDArray[np.float32]:
    """Turn streamline counts or densities into what the structural branch takes.

    The paper says no more than that the logarithm to base 10 was taken. There are two ways to deal
    with pairs without streamlines:

    - ``log10p1``: log10(1 + d). Pairs without streamlines stay at 0, edges are above it.
    - ``log10``: log10(d) for edges, of either sign, and 0 for pairs without streamlines. An edge of
      exactly d = 1 cannot be told from none.

    Parameters
    ----------
    weights : ndarray
        (R, R) or (B, R, R): streamline counts, or any density in their place. Symmetric, not
        negative. What is on the diagonal, streamlines from an ROI to itself, is dropped.
    convention : str
        One of `CONVENTIONS`.

    Returns
    -------
    ndarray
        The same shape, float32, symmetric, diagonal 0.

    Raises
    ------
    BadDataError
        For an unknown convention, and for weights that are not square, not finite, negative or not
        symmetric.
    """
    if convention not in CONVENTIONS:
        raise BadDataError(
            f"structural connectivity: convention {convention!r} is none of "
            f"{', '.join(CONVENTIONS)}"
        )
    weights = _checked(weights)
    if convention == "log10p1":
        logarithm = np.log10(1 + weights)
    else:
        logarithm = np.log10(weights, out=np.zeros_like(weights), where=weights > 0)
    diagonal = np.arange(weights.shape[-1])
    logarithm[..., diagonal, diagonal] = 0
    return logarithm.astype(np.float32)


def volume_normalised(
    counts: NDArray[np.number], volumes: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Divide streamline counts by the mean volume of the two ROIs.

    As ``tck2connectome -scale_invnodevol`` of MRtrix3 does: the contribution of a streamline is
    2 / (v_i + v_j) (``Metric`` in ``dwi/tractography/connectome/metric.h``; Hagmann et al. 2008,
    doi:10.1371/journal.pbio.0060159). MRtrix3 counts voxels of the parcellation image, which are
    mm3 when these are of 1 mm.

    Parameters
    ----------
    counts : ndarray
        (R, R) or (B, R, R).
    volumes : ndarray
        (R,), above 0; for the ROIs of the atlas see `bsym_bids.atlas.roi_volumes` (mm3).

    Returns
    -------
    ndarray
        The same shape, streamlines per unit of volume.

    Raises
    ------
    BadDataError
        When the number of volumes is not that of ROIs, or one is not above 0.
    """
    volumes = np.asarray(volumes, dtype=np.float64)
    if volumes.shape != np.shape(counts)[-1:] or not (volumes > 0).all():
        raise BadDataError(
            f"volumes of shape {volumes.shape} for a connectome of shape {np.shape(counts)}: one "
            "above 0 for each ROI is needed"
        )
    return counts * (2 / (volumes[:, None] + volumes))


def _checked(weights: NDArray[np.number]) -> NDArray[np.float64]:
    """Return weights in double precision and exactly symmetric, or refuse them."""
    weights = np.array(weights, dtype=np.float64)
    if weights.ndim not in (2, 3) or weights.shape[-1] != weights.shape[-2] or not weights.size:
        raise BadDataError(
            f"structural connectivity: shape {weights.shape} instead of (ROIs, ROIs) or "
            "(participants, ROIs, ROIs)"
        )
    if not np.isfinite(weights).all():
        raise BadDataError(
            "structural connectivity: values that are not finite",
            hint="put 0 for ROIs that were not measured, and leave them out of what is compared",
        )
    if (weights < 0).any():
        raise BadDataError(
            "structural connectivity: negative values, of which there is no logarithm",
            hint="give streamline counts or densities as they are, not their logarithm",
        )
    transposed = weights.swapaxes(-1, -2)
    if np.abs(weights - transposed).max() > _SYMMETRY * weights.max():
        raise BadDataError(
            "structural connectivity: not symmetric",
            hint="tractography does not tell directions: tck2connectome makes symmetric matrices "
            "with -symmetric",
        )
    return (weights + transposed) / 2


# --- hidden edges --------------------------------------------------------------------------------


def predict_edges(branch: SignedGraphTransformer, embedding: Tensor, pairs: Tensor) -> Tensor:
    """Predict edge weights from the embeddings of the ROIs at both ends.

    The published objective puts the embeddings of a pair one after the other, in one order; what
    comes out then depends on it. Here the predictions of both orders are averaged. Differentiable;
    its memory does not grow with the number of pairs, with or without gradients.

    Parameters
    ----------
    branch : SignedGraphTransformer
        Whose edge predictor is used.
    embedding : Tensor
        (B, R, D), as the branch returns it.
    pairs : Tensor
        (n, 2) int64, indices of ROIs.

    Returns
    -------
    Tensor
        (B, n).
    """
    import torch
    from torch.utils.checkpoint import checkpoint

    layers = branch.edge_weight_predictor
    first = layers[0]
    of_first, of_second = first.weight.chunk(2, dim=1)
    # Of the concatenation, the first layer is a sum of two: taken on R rows instead of n pairs.
    left, right = embedding @ of_first.mT + first.bias, embedding @ of_second.mT  # (B, R, hidden)

    def predict(chunk: Tensor, left: Tensor, right: Tensor) -> Tensor:
        one, other = chunk.unbind(1)
        forth = layers[1:](left[:, one] + right[:, other])
        back = layers[1:](left[:, other] + right[:, one])
        return (forth + back).squeeze(-1) / 2

    size = max(1, _NUMBERS_AT_ONCE // (len(embedding) * len(first.bias)))
    if not torch.is_grad_enabled():
        return torch.cat([predict(chunk, left, right) for chunk in pairs.split(size)], dim=1)
    # What is between the layers is computed again on the way back instead of kept.
    return torch.cat(
        [
            checkpoint(predict, chunk, left, right, use_reentrant=False)
            for chunk in pairs.split(size)
        ],
        dim=1,
    )


def hold_out_edges(seed: int | np.random.Generator, n_rois: int, share: float) -> NDArray[np.int64]:
    """Draw pairs of ROIs to be hidden, with an edge or without.

    Parameters
    ----------
    seed : int or numpy.random.Generator
        Source of the draw.
    n_rois : int
        Number of ROIs.
    share : float
        Share of all pairs, between 0 and 1; at least one pair is drawn.

    Returns
    -------
    ndarray of int64, shape (n, 2)
        Different pairs of ROIs, the lower index first, in ascending order.

    Raises
    ------
    BadDataError
        For a share out of range.
    """
    if not 0 < share < 1:
        raise BadDataError(f"share of edges to hide: {share} is not between 0 and 1")
    pairs = all_pairs(n_rois)
    count = max(1, round(share * len(pairs)))
    chosen = np.random.default_rng(seed).choice(len(pairs), count, replace=False)
    return pairs[np.sort(chosen)]


def all_pairs(n_rois: int) -> NDArray[np.int64]:
    """Return every pair of different ROIs once, (R (R - 1) / 2, 2), the lower index first."""
    return np.stack(np.triu_indices(n_rois, k=1), axis=1)


def without_edges(sc: Connectome, pairs: NDArray[np.int64] | Tensor) -> Connectome:
    """Return a copy of connectomes (..., R, R) in which some pairs (n, 2) have no edge."""
    kept = sc.copy() if isinstance(sc, np.ndarray) else sc.clone()
    kept[..., pairs[:, 0], pairs[:, 1]] = 0
    kept[..., pairs[:, 1], pairs[:, 0]] = 0
    return kept


@dataclass(frozen=True)
class EdgeScores:
    """How predictions of edge weights agree with them, each (S,) float64, by participant.

    Attributes
    ----------
    r2 : ndarray
        1 - SSE / SST, SST around the mean over the scored pairs of the participant.
    rho : ndarray
        Pearson correlation. NaN where the predictions do not vary.
    mae : ndarray
        Mean absolute error, in units of the input.
    """

    r2: NDArray[np.float64]
    rho: NDArray[np.float64]
    mae: NDArray[np.float64]


@dataclass(frozen=True)
class HiddenEdges:
    """Scores of one way to predict hidden edges.

    Attributes
    ----------
    all_pairs : EdgeScores
        Over all pairs of measured ROIs.
    edges : EdgeScores
        Over those that have an edge. Nothing that predicts is told which they are.
    """

    all_pairs: EdgeScores
    edges: EdgeScores


@dataclass(frozen=True)
class EdgeQuality:
    """How well hidden edges are predicted.

    Attributes
    ----------
    network : HiddenEdges
        By the network.
    permuted : HiddenEdges
        By the network, when the connectome is presented under permuted ROI labels.
    group : HiddenEdges, optional
        By the group average, stretched and shifted to fit the edges that are not hidden.
    n_edges : ndarray of int
        (S,), edges of each participant, between measured ROIs.
    n_folds : int
        Folds that the pairs were hidden in.
    """

    network: HiddenEdges
    permuted: HiddenEdges
    group: HiddenEdges | None
    n_edges: NDArray[np.int64]
    n_folds: int

    def scores_of(self, participant: int = 0) -> dict[str, float]:
        """Return the scores of one connectome by name.

        Returns
        -------
        dict
            ``n_edges``; ``r2``, ``rho``, ``mae`` of the network over all pairs; with ``edges_`` in
            front over those with an edge, with ``permuted_`` and ``group_`` of the control and the
            baseline.
        """
        scores: dict[str, float] = {"n_edges": int(self.n_edges[participant])}
        for population, prefix in (("all_pairs", ""), ("edges", "edges_")):
            for way, name in (("network", ""), ("permuted", "permuted_"), ("group", "group_")):
                if getattr(self, way) is None:
                    continue
                found = getattr(getattr(self, way), population)
                for score in ("r2", "rho", "mae"):
                    scores[prefix + name + score] = float(getattr(found, score)[participant])
        return scores


def edge_quality(
    model: BrainSymphony,
    sc: NDArray[np.floating],
    seed: int,
    *,
    group: NDArray[np.floating] | None = None,
    missing: NDArray[np.bool_] | None = None,
    n_folds: int = 7,
    threads: int | None = None,
) -> EdgeQuality:
    """Hide every pair of ROIs once, with an edge or without, and score how it is predicted.

    The pairs are dealt at random into folds, anew for each participant (7 folds hide 14 % at a
    time, near the 15 % of the pretraining). The pairs of a fold are set to 0, what remains is
    embedded, and the edge predictor is asked for them.

    The control presents the connectome under permuted ROI labels, which are given back before
    scoring: what is still predicted then does not come from knowing the ROIs. The baseline is the
    group average a + b g, with a and b fitted by least squares to the pairs that are not hidden.

    Parameters
    ----------
    model : BrainSymphony
        With the structural branch.
    sc : ndarray
        (S, R, R), one connectome per participant, as `structural_input` returns them.
    seed : int
        Of folds and permutations.
    group : ndarray, optional
        (R, R), average of other people under the same convention.
    missing : ndarray of bool, optional
        (S, R), ROIs that were not measured: without edges in ``sc``, and not scored.
    n_folds : int
        At least 2.
    threads : int, optional
        CPU threads; None leaves torch's setting.

    Returns
    -------
    EdgeQuality

    Raises
    ------
    BadDataError
        For a network without structural branch, connectomes of a wrong shape, and numbers of folds
        or measured ROIs out of range.
    """
    if model.structural is None:
        raise BadDataError(
            "the network cannot predict edges", hint="it takes the structural branch"
        )
    sc = np.asarray(sc, dtype=np.float32)
    rois = model.structural.rois
    if sc.ndim != 3 or sc.shape[1:] != (rois, rois) or not len(sc):
        raise BadDataError(
            f"connectomes: shape {sc.shape} instead of (participants, {rois}, {rois})"
        )
    if not np.isfinite(sc).all():
        raise BadDataError("connectomes: values that are not finite")
    measured = np.ones(sc.shape[:2], bool) if missing is None else ~np.asarray(missing)
    if not 2 <= n_folds < measured.sum(1).min():
        raise BadDataError(
            f"n_folds is {n_folds}: out of range for {measured.sum(1).min()} measured ROIs"
        )
    rng = np.random.default_rng(seed)
    ways: dict[str, list[NDArray[np.float64]]] = {"network": [], "permuted": [], "group": []}
    counts = []
    with inference(threads):
        for connectome, present in zip(sc, measured, strict=True):
            pairs = all_pairs(rois)
            pairs = rng.permutation(pairs[present[pairs].all(1)])
            folds = np.array_split(pairs, n_folds)
            shuffled = np.arange(rois)
            shuffled[present] = rng.permutation(shuffled[present])
            true = connectome[tuple(pairs.T)].astype(np.float64)
            found = {
                "network": _predict_folds(model, connectome, folds, np.arange(rois)),
                "permuted": _predict_folds(model, connectome, folds, shuffled),
            }
            if group is not None:
                found["group"] = _fit_folds(true, group[tuple(pairs.T)], n_folds)
            for way, predicted in found.items():
                ways[way].append(
                    np.stack([_score(true, predicted), _score(true, predicted, true != 0)])
                )
            counts.append(int((true != 0).sum()))
    scores = {way: _hidden_edges(np.stack(values)) for way, values in ways.items() if values}
    return EdgeQuality(
        scores["network"], scores["permuted"], scores.get("group"), np.array(counts), n_folds
    )


def _predict_folds(
    model: BrainSymphony,
    connectome: NDArray[np.float32],
    folds: list[NDArray[np.int64]],
    place: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Predict each fold of pairs from the others, with ROI i presented as ROI ``place[i]``."""
    import torch

    presented = np.empty_like(connectome)
    presented[np.ix_(place, place)] = connectome
    device = next(model.parameters()).device
    predicted = []
    for fold in folds:
        kept = without_edges(presented, place[fold])
        embedding, _ = model.structural(torch.from_numpy(kept)[None].to(device))
        pairs = torch.from_numpy(place[fold]).to(device)
        predicted.append(predict_edges(model.structural, embedding, pairs)[0].cpu().numpy())
    return np.concatenate(predicted).astype(np.float64)


def _fit_folds(
    true: NDArray[np.float64], average: NDArray[np.floating], n_folds: int
) -> NDArray[np.float64]:
    """Predict each fold (as `numpy.array_split` makes them) by a line fitted to the others."""
    predicted = np.empty_like(true)
    for fold in np.array_split(np.arange(len(true)), n_folds):
        kept = np.ones(len(true), bool)
        kept[fold] = False
        design = np.stack([np.ones(kept.sum()), average[kept]], axis=1)
        (shift, slope), *_ = np.linalg.lstsq(design, true[kept], rcond=None)
        predicted[fold] = shift + slope * average[fold]
    return predicted


def _score(
    true: NDArray[np.float64],
    predicted: NDArray[np.float64],
    scored: NDArray[np.bool_] | slice = slice(None),
) -> NDArray[np.float64]:
    """Return R2, rho and MAE (3,); NaN where undefined."""
    true, predicted = true[scored], predicted[scored]
    if not len(true):
        return np.full(3, np.nan)
    error = true - predicted
    true = true - true.mean()
    predicted = predicted - predicted.mean()
    total = true @ true
    with np.errstate(invalid="ignore", divide="ignore"):
        rho = true @ predicted / np.sqrt(total * (predicted @ predicted))
        r2 = 1 - error @ error / total if total > 0 else np.nan
    return np.array([r2, rho, np.abs(error).mean()])


def _hidden_edges(scores: NDArray[np.float64]) -> HiddenEdges:
    """Sort scores (S, 2, 3) by population and score."""
    return HiddenEdges(*(EdgeScores(*population) for population in scores.transpose(1, 2, 0)))

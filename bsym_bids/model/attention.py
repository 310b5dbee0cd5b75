"""The two unusual attentions of the network: few queries on very many keys, and signed weights."""

from __future__ import annotations

import torch
from torch import Tensor

_SAFE_EXPONENT = (
    60.0  # exp(60) = 1e26: thousands of them sum up far below the float32 limit of 3e38
)
_QUERIES_AT_ONCE = 16  # 16 queries x 90,000 keys x 2 heads are 12 MB


def attend_with_marginals(
    query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax attention on a grid of (ROI, time) keys, with its sums over time and over ROIs.

    The attention matrix itself (450 x 90,000 per head) is never whole in memory: it is made for a
    few queries at a time, and only its marginals are kept.

    Parameters
    ----------
    query : Tensor
        (heads, queries, head width).
    key, value : Tensor
        (heads, ROIs * times, head width), time running fastest.
    grid : tuple of int
        Numbers of ROIs and of times.

    Returns
    -------
    attended : Tensor
        (heads, queries, head width).
    over_roi : Tensor
        (queries, ROIs): attention summed over time, mean over heads. Rows sum to 1.
    over_time : Tensor
        (queries, times): attention summed over ROIs, mean over heads. Rows sum to 1.
    """
    query = query * query.shape[-1] ** -0.5
    attended, over_roi, over_time = [], [], []
    for some in query.split(_QUERIES_AT_ONCE, dim=1):
        weights = some @ key.mT  # (heads, some queries, keys)
        # Subtracting the largest logit changes nothing and keeps exp from overflowing.
        weights.sub_(weights.amax(-1, keepdim=True)).exp_()
        on_grid = weights.unflatten(-1, grid)
        of_roi, of_time = on_grid.sum(-1), on_grid.sum(-2)
        total = of_roi.sum(-1, keepdim=True)
        attended.append(weights @ value / total)
        over_roi.append((of_roi / total).mean(0))
        over_time.append((of_time / total).mean(0))
    return torch.cat(attended, 1), torch.cat(over_roi), torch.cat(over_time)


def signed_softmax(scores: Tensor) -> Tensor:
    """Return ``sign(s) exp(|s|) / (sum_j exp(|s_j|) + 1e-10)`` along the last axis.

    The signed attention of the structural branch (published code of BrainSymphony,
    ``models/layers/signed_graph.py``). The largest ``|s|`` of each row is subtracted in numerator
    and denominator alike, the 1e-10 included, so that nothing overflows.

    Parameters
    ----------
    scores : Tensor
        Any shape; a score of exactly 0 (no edge) gets weight 0 but counts in the denominator.

    Returns
    -------
    Tensor
        Weights of the same shape, between -1 and 1.
    """
    size = scores.abs()
    excess = (size.amax(-1, keepdim=True) - _SAFE_EXPONENT).clamp(min=0)
    size = (size - excess).exp()
    return scores.sign() * size / (size.sum(-1, keepdim=True) + 1e-10 * (-excess).exp())

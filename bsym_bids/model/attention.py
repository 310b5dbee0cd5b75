"""The two unusual attentions of the network: few queries on a grid of keys, and signed weights."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from bsym_bids.model.threads import in_threads

_SAFE_EXPONENT = (
    60.0  # exp(60) = 1e26: thousands of them sum up far below the float32 limit of 3e38
)
#: Attention weights in memory at a time. On a processor 3 MB per thread, which stay in its cache;
#: elsewhere 256 MB, so that few kernels are launched.
_WEIGHTS_AT_ONCE, _WEIGHTS_AT_ONCE_ELSEWHERE = 3 * 2**18, 2**26
_QUERIES_AT_ONCE = 512  # at most, heads counted; on a processor
#: A sum of weights above this says that more has to be subtracted from logits. It is far from
#: overflow, so that nothing else overflows either, and far above 1, so that it is rare.
_LARGEST_SUM = 2.0**64


def attend_to_grid(
    query: Tensor,
    roi_part: Tensor,
    time_part: Tensor,
    kernel: Tensor,
    signal: Tensor,
    eps: float,
    threads: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax attention to normalised tokens of a (ROI, time) grid, without making the tokens.

    The token of ROI r and time t is ``LayerNorm(u)`` without gain and bias, where ``u =
    roi_part[r] + time_part[t] + kernel @ w`` and w is the window of the signal around t. With the
    parts centred over D, as the norm does, and ``s = 1 / sqrt(|u|^2 / D + eps)``,

    - ``|u|^2`` is made of products of the parts with each other, which are small;
    - the logit of query q is ``s (q . roi_part[r]) + s (q . time_part[t]) + (q kernel) . s w``;
    - the attended token is ``sum p s u / sum p`` with the weights p, and so the parts times the
      sums of ``p s`` over times and over ROIs, and of ``p s w`` over both.

    So neither tokens nor weights are ever whole in memory, products of queries with tokens shrink
    to products with the parts, and the sums over times and over ROIs that users look at come with
    the rest. The result is exact: it differs from the plain formulation by rounding. Logits may be
    of any size, see `_sum_weights`.

    It works in place and has no gradient: torch refuses arguments that require one. Nothing in it
    is particular to processors, but other devices have not been tried.

    Parameters
    ----------
    query : Tensor
        (H, Q, D), scaled and carried through the projection of keys, so that logits are products
        with tokens. Constants over tokens do not matter.
    roi_part : Tensor
        (R, D).
    time_part : Tensor
        (T, D).
    kernel : Tensor
        (D, K), K odd.
    signal : Tensor
        (R, T), taken as 0 beyond both ends.
    eps : float
        Of the norm.
    threads : int, optional
        How many share the queries, on a processor; None for as many as torch may use.

    Returns
    -------
    attended : Tensor
        (H, Q, D), mean of the normalised tokens under the attention of each query.
    over_roi : Tensor
        (Q, R): attention summed over time, mean over heads. Rows sum to 1.
    over_time : Tensor
        (Q, T): attention summed over ROIs, mean over heads. Rows sum to 1.
    """
    roi_part = roi_part - roi_part.mean(1, keepdim=True)
    time_part = time_part - time_part.mean(1, keepdim=True)
    kernel = kernel - kernel.mean(0)
    features = _features(roi_part, time_part, kernel, signal, eps)

    def attend(some: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return _attend(some, roi_part, time_part, kernel, features)

    heads, queries, _ = query.shape
    threads = threads or torch.get_num_threads()
    parts = max(threads, -(-heads * queries // _QUERIES_AT_ONCE))
    some = query.chunk(parts if query.device.type == "cpu" else 1, dim=1)
    attended, over_roi, over_time = zip(*in_threads(attend, some, threads), strict=True)
    return torch.cat(attended, 1), torch.cat(over_roi), torch.cat(over_time)


def _features(
    roi_part: Tensor, time_part: Tensor, kernel: Tensor, signal: Tensor, eps: float
) -> Tensor:
    """Return ``(s w, s, 1)`` of each token, (R, K + 2, T).

    With the kernel as ``basis @ triangle``, the squared norm of a token is that of its coordinates
    in the basis, plus that of what ROI and time have outside of it: sums of squares, in which
    nothing cancels. The latter is taken apart in double precision, since there it may.
    """
    width, samples = kernel.shape
    basis, triangle = torch.linalg.qr(kernel.double())  # (D, N), (N, K) with N = min(D, K)
    roi, time = roi_part.double(), time_part.double()
    roi_inside, time_inside = roi @ basis, time @ basis  # (R, N), (T, N)
    roi, time = roi - roi_inside @ basis.mT, time - time_inside @ basis.mT
    square = roi.square().sum(1, keepdim=True) + time.square().sum(1)
    square.addmm_(roi, time.mT, alpha=2).clamp_(min=0)  # (R, T)
    padded = F.pad(signal, (samples // 2, samples // 2))
    inside = F.conv1d(padded.unsqueeze(1), triangle.to(signal).unsqueeze(1))  # (R, N, T)
    inside += roi_inside.to(signal).unsqueeze(2)
    inside += time_inside.to(signal).mT
    square += inside.square_().sum(1)
    features = signal.new_ones(len(signal), samples + 2, signal.shape[1])
    scale = features[:, -2:-1]
    scale[:, 0] = (square / width + eps).rsqrt_()
    torch.mul(padded.unfold(1, samples, 1).mT, scale, out=features[:, :-2])
    return features


def _attend(
    query: Tensor, roi_part: Tensor, time_part: Tensor, kernel: Tensor, features: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Do what `attend_to_grid` does for some queries, given centred parts and `_features`."""
    heads, queries, _ = query.shape
    query = query.flatten(0, 1).mT * math.log2(math.e)  # (D, N = H Q); exp2 is faster than exp
    over_t, over_r = _sum_weights(features, kernel.mT @ query, roi_part @ query, time_part @ query)
    total = over_t[:, 1].sum(0)  # (N,)
    attended = kernel @ over_r[:, :-2].sum(0)
    attended += roi_part.mT @ over_t[:, 0]
    attended += time_part.mT @ over_r[:, -2]
    attended /= total
    over_roi, over_time = (
        (marginal / total).unflatten(1, (heads, queries)).mean(1).mT
        for marginal in (over_t[:, 1], over_r[:, -1])
    )
    return attended.mT.unflatten(0, (heads, queries)), over_roi, over_time


def _sum_weights(
    features: Tensor, of_kernel: Tensor, of_roi: Tensor, of_time: Tensor
) -> tuple[Tensor, Tensor]:
    """Sum the weights of tokens over times and over ROIs, making them for a few ROIs at a time.

    For each query, a logit that is or was the largest so far is subtracted from all. What has to be
    subtracted is known only when the logits are there; but an exact maximum is not needed, only
    sums that do not overflow. So a block of ROIs is done with what the blocks before it called
    for, and only if its sums are too large is it done again.

    Parameters
    ----------
    features : Tensor
        (R, K + 2, T), ``(s w, s, 1)`` of each token.
    of_kernel, of_roi, of_time : Tensor
        Products of the parts with N queries, in units of ln 2: (K, N), (R, N), (T, N).

    Returns
    -------
    over_t : Tensor
        (R, 2, N), the last two features times weights, summed over times.
    over_r : Tensor
        (T, K + 2, N), all features times weights, summed over ROIs.
    """
    (rois, n), (times, _) = of_roi.shape, of_time.shape
    of_cpu = features.device.type == "cpu"
    at_once = _WEIGHTS_AT_ONCE if of_cpu else _WEIGHTS_AT_ONCE_ELSEWHERE
    step = min(max(at_once // (times * n), 1), rois)
    buffer = features.new_empty(step, times, n)
    factors = features.new_zeros(step, features.shape[1], n)  # what features are multiplied by
    factors[:, :-2] = of_kernel
    over_t = features.new_empty(rois, 2, n)
    over_r = features.new_zeros(times, features.shape[1], n)
    factors[0, -2] = of_roi[0]
    factors[:, -1] = -_logits(features[:1], factors[:1], of_time, buffer[:1]).amax((0, 1))
    for start in range(0, rois, step):
        some = slice(start, min(start + step, rois))
        here, sums = features[some], over_t[some]
        given = here, factors[: len(here)], of_time, buffer[: len(here)]
        factors[: len(here), -2] = of_roi[some]
        weights = _logits(*given).exp2_()
        torch.bmm(here[:, -2:], weights, out=sums)
        if not sums[:, 1].amax() <= _LARGEST_SUM:  # this way round for NaN
            excess = _logits(*given).amax((0, 1)).clamp_(min=0)
            factors[:, -1] -= excess
            over_t[:start] *= (-excess).exp2()
            over_r *= (-excess).exp2()
            weights = _logits(*given).exp2_()
            torch.bmm(here[:, -2:], weights, out=sums)
        over_r.baddbmm_(here.permute(2, 1, 0).contiguous(), weights.transpose(0, 1))
    return over_t, over_r


def _logits(features: Tensor, factors: Tensor, of_time: Tensor, out: Tensor) -> Tensor:
    """Write ``features.mT @ factors + s of_time``, (some ROIs, T, N), to ``out``; return it."""
    torch.mul(features[:, -2].unsqueeze(2), of_time, out=out)
    return out.baddbmm_(features.mT, factors)


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
    size = (size - excess).exp_()
    total = size.sum(-1, keepdim=True) + 1e-10 * (-excess).exp()
    return (scores.sign() * size).div_(total)

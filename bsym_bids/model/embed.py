"""Functional embeddings of a run: its windows through the network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from operator import call
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bsym_bids.bold.cleaning import naming
from bsym_bids.bold.scaling import RoiStatistics
from bsym_bids.bold.windows import CleanSeries, Windows, windows_for_model
from bsym_bids.errors import BadDataError
from bsym_bids.model.threads import in_threads

if TYPE_CHECKING:
    from bsym_bids.model.brainsymphony import BrainSymphony

#: Largest share of ROIs that may be missing: the network was pretrained with about 15 % masked.
MAX_MISSING_SHARE = 0.2
_LARGEST_CORRELATION = 1 - 1e-7  # keeps Fisher's z finite


@dataclass(frozen=True)
class FunctionalEmbedding:
    """What the network says about one run. Rows and columns of missing ROIs are NaN throughout.

    Attributes
    ----------
    windows : ndarray
        (W, R, D) float32, functional embedding of each window.
    mean : ndarray
        (R, D) float32, its mean over windows.
    similarity : ndarray
        (R, R) float32, see `embedding_similarity`.
    attention_roi : ndarray
        (R, R) float32, the Perceiver's attention from each query (row) to each ROI (column), summed
        over time, mean over heads and windows. Rows sum to 1 when no ROI is missing; what they
        lack to 1 otherwise went to the codes of missing ROIs.
    attention_time : ndarray
        (W, R, T) float32, attention from each query to each frame of each window, summed over ROIs,
        mean over heads. Rows sum to 1.
    missing : ndarray
        (R,) bool, the ROIs that were not measured.
    masked : ndarray
        (R, D) float32, see `masked_embedding`; the same for everyone, so that no row is missing.
    threads : int
        CPU threads that it was computed with.
    """

    windows: np.ndarray
    mean: np.ndarray
    similarity: np.ndarray
    attention_roi: np.ndarray
    attention_time: np.ndarray
    missing: np.ndarray
    masked: np.ndarray
    threads: int


def embed_run(
    model: BrainSymphony,
    cleaned: CleanSeries,
    *,
    model_tr: float = 0.8,
    window_step: int = 100,
    scaling: str | RoiStatistics = "robust",
    source: str | Path = "",
    masked: np.ndarray | None = None,
    threads: int | None = None,
) -> tuple[Windows, FunctionalEmbedding]:
    """Embed a cleaned run: resample, scale, cut into windows, and put these through the network.

    Parameters
    ----------
    model : BrainSymphony
        With all functional branches.
    cleaned : CleanSeries
        The run, just cleaned or read back.
    model_tr, scaling, window_step, source
        As `windows_for_model` takes them.
    masked, threads
        As `embed_windows` takes them.

    Returns
    -------
    windows : Windows
        What the network saw.
    embedding : FunctionalEmbedding
        What it said.

    Raises
    ------
    BadDataError
        As both of them.
    """
    windows = windows_for_model(cleaned, model_tr, scaling, window_step, source=source)
    with naming(source):
        embedding = embed_windows(model, windows.data, windows.missing, threads, masked)
    return windows, embedding


def embed_windows(
    model: BrainSymphony,
    windows: np.ndarray,
    missing: np.ndarray,
    threads: int | None = None,
    masked: np.ndarray | None = None,
) -> FunctionalEmbedding:
    """Embed the windows of a run.

    Missing ROIs are treated as ROIs held out of the input, as in pretraining: the transformers see
    zeros, the context module its mask token. Their own embeddings are not reported.

    Parameters
    ----------
    model : BrainSymphony
        With all functional branches.
    windows : ndarray
        (W, R, T), scaled per ROI. Values of missing ROIs are ignored and may be NaN.
    missing : ndarray
        (R,) bool.
    threads : int, optional
        CPU threads; None leaves torch's setting.
    masked : ndarray, optional
        (R, D), `masked_embedding` where it is known already: it is the same for everyone.

    Returns
    -------
    FunctionalEmbedding

    Raises
    ------
    BadDataError
        When more than 20 % of the ROIs are missing, for windows of a wrong shape or with values
        that are not finite, and for a network without one of the functional branches.
    """
    missing = check_missing(windows, missing)

    def embed(window: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        output = model(fmri=window[None], roi_mask=missing[None], context_prediction=False)
        if output.functional_embedding is None:
            raise BadDataError(
                "the network has no functional embedding",
                hint="it takes the branches spatial, temporal, context and perceiver",
            )
        wanted = output.functional_embedding, output.attention_time, output.attention_roi
        return tuple(tensor[0].numpy() for tensor in wanted)

    with inference(threads) as used:
        calls = [partial(embed, window) for window in windows]
        if masked is None:
            calls.append(partial(masked_embedding, model, windows.shape[1:]))
        results = in_threads(call, calls)
    empty = results.pop() if masked is None else masked
    embedded, attended, over_roi = map(np.stack, zip(*results, strict=True))
    over_roi = over_roi.mean(0, dtype=np.float64)
    embedded[:, missing] = np.nan
    attended[:, missing] = np.nan
    over_roi[missing] = over_roi[:, missing] = np.nan
    return FunctionalEmbedding(
        windows=embedded,
        mean=embedded.mean(0, dtype=np.float64).astype(np.float32),
        similarity=embedding_similarity(embedded, empty),
        attention_roi=over_roi.astype(np.float32),
        attention_time=attended,
        missing=missing,
        masked=empty,
        threads=used,
    )


def embedding_similarity(embeddings: np.ndarray, empty: np.ndarray) -> np.ndarray:
    """Return how alike the embeddings of ROIs are: second-order, so that it can tell people apart.

    The embedding of a fully masked input, which is the same for everyone, is taken away. In each
    window the remainders of two ROIs are correlated over the embedding's dimensions; the
    correlations are averaged over windows as Fisher's z, and turned back with tanh.

    Parameters
    ----------
    embeddings : ndarray
        (W, R, D); rows of NaN for missing ROIs.
    empty : ndarray
        (R, D), see `masked_embedding`.

    Returns
    -------
    ndarray
        (R, R) float32, symmetric, diagonal 1; NaN for missing ROIs and for ROIs that some window
        leaves exactly where the fully masked input has them.
    """
    total = np.zeros((embeddings.shape[1],) * 2)
    for embedding in embeddings:
        remainder = embedding.astype(np.float64) - empty
        remainder -= remainder.mean(1, keepdims=True)
        norm = np.linalg.norm(remainder, axis=1, keepdims=True)
        norm[norm == 0] = np.nan
        remainder /= norm
        correlation = remainder @ remainder.T
        total += np.arctanh(correlation.clip(-_LARGEST_CORRELATION, _LARGEST_CORRELATION))
    similarity = np.tanh(total / len(embeddings)).astype(np.float32)
    defined = np.isfinite(similarity.diagonal())
    np.fill_diagonal(similarity, np.where(defined, 1, np.nan))
    return similarity


def masked_embedding(model: BrainSymphony, shape: tuple[int, int]) -> np.ndarray:
    """Return the functional embedding (R, D) of a window (R, T) with every ROI masked.

    It is the code of each ROI as the network has learnt it, without any data.
    """
    rois, steps = shape
    output = model(
        fmri=np.zeros((1, rois, steps), np.float32),
        roi_mask=np.ones((1, rois), bool),
        attention_maps=False,
        context_prediction=False,
    )
    return output.functional_embedding[0].numpy()


def check_missing(windows: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """Return the missing ROIs as a bool array, or refuse windows that cannot be used.

    Raises
    ------
    BadDataError
        When there are no windows, shapes do not fit, or too many ROIs are missing.
    """
    windows, missing = np.asarray(windows), np.asarray(missing)
    if windows.ndim != 3 or not windows.size:
        raise BadDataError(f"windows: shape {windows.shape} instead of (windows, ROIs, frames)")
    if missing.shape != windows.shape[1:2] or missing.dtype != bool:
        raise BadDataError(
            f"missing ROIs: {missing.dtype} values of shape {missing.shape} instead of bool values "
            f"of shape {windows.shape[1:2]}"
        )
    if missing.mean() > MAX_MISSING_SHARE:
        raise BadDataError(
            f"{missing.sum()} of {missing.size} ROIs are missing; the model takes at most "
            f"{MAX_MISSING_SHARE:.0%}",
            hint="look at the coverage table: the field of view may be cut, or the brain mask or "
            "the space wrong; --min-coverage sets what counts as measured",
        )
    return missing


@contextmanager
def inference(threads: int | None) -> Iterator[int]:
    """Run without gradients, on so many threads, and put torch's setting back.

    Yields
    ------
    int
        Threads in use.
    """
    import torch  # here, so that reading and writing embeddings goes without it

    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)

"""How well the network reconstructs ROIs that are held out of its input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from bsym_bids.atlas.group import group_functional_connectivity
from bsym_bids.errors import BadDataError
from bsym_bids.model.baselines import linear_reconstruction
from bsym_bids.model.embed import check_missing, inference
from bsym_bids.model.threads import in_threads

if TYPE_CHECKING:
    from bsym_bids.bold.windows import Windows
    from bsym_bids.model.brainsymphony import BrainSymphony

OVERALL = "all"
_SCORES = ("r2", "rho", "mae")
#: What is before a score's name: by the network, or linearly, as it is or under permuted labels.
_WAYS = ("", "permuted_", "linear_", "linear_permuted_")

Predictor = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class ReconstructionQuality:
    """Scores of held-out ROIs over kept frames, each (R,) float64; NaN where undefined.

    Attributes
    ----------
    r2 : ndarray
        1 - SSE / SST, each summed over windows, SST around the ROI's own mean in each window. At
        most 1; 0 is what constants at those means reach.
    rho : ndarray
        Pearson correlation of the series and its reconstruction, mean over windows.
    mae : ndarray
        Mean absolute error over all frames, in units of the scaled series.
    permuted_r2, permuted_rho, permuted_mae : ndarray
        The same when the series are presented under permuted ROI labels.
    linear_r2, linear_rho, linear_mae : ndarray
        The same of the linear baseline, see `bsym_bids.model.baselines`; NaN without one.
    linear_permuted_r2, linear_permuted_rho, linear_permuted_mae : ndarray
        The same of the linear baseline under permuted ROI labels.
    windows : tuple of int
        Indices of the windows that were evaluated.
    n_folds : int
        Folds that the ROIs of a window were held out in.
    threads : int
        CPU threads that it was computed with.
    """

    r2: np.ndarray
    rho: np.ndarray
    mae: np.ndarray
    permuted_r2: np.ndarray
    permuted_rho: np.ndarray
    permuted_mae: np.ndarray
    linear_r2: np.ndarray
    linear_rho: np.ndarray
    linear_mae: np.ndarray
    linear_permuted_r2: np.ndarray
    linear_permuted_rho: np.ndarray
    linear_permuted_mae: np.ndarray
    windows: tuple[int, ...]
    n_folds: int
    threads: int

    def network_means(self, networks: Sequence[str]) -> dict[str, dict[str, float]]:
        """Average the scores over the ROIs of each network, and over all ROIs.

        Parameters
        ----------
        networks : sequence of str
            Network of each ROI, in atlas order.

        Returns
        -------
        dict of str to dict of str to float
            By network, in order of first appearance, then ``all``: each score, NaN when no ROI of
            the network has one, and ``n_rois``, the number of ROIs with an R2.
        """
        if len(networks) != self.r2.size:
            raise BadDataError(f"{len(networks)} network names for {self.r2.size} ROIs")
        labels = np.asarray(networks)
        members = {name: labels == name for name in dict.fromkeys(networks)}
        members[OVERALL] = np.ones(labels.size, bool)
        return {name: self._means(rois) for name, rois in members.items()}

    def _means(self, rois: np.ndarray) -> dict[str, float]:
        names = [way + score for way in _WAYS for score in _SCORES]
        means = {name: float(_nanmean(getattr(self, name)[rois])) for name in names}
        return {**means, "n_rois": int(np.isfinite(self.r2[rois]).sum())}


def reconstruction_quality(
    model: BrainSymphony,
    windows: np.ndarray,
    missing: np.ndarray,
    seed: int,
    censored: np.ndarray | None = None,
    correlation: np.ndarray | None = None,
    n_folds: int = 7,
    max_windows: int = 4,
    threads: int | None = None,
) -> ReconstructionQuality:
    """Hold out every measured ROI once per window and score its reconstruction.

    Up to ``max_windows`` windows, spread evenly over the run, are evaluated. In each, the measured
    ROIs are dealt at random into ``n_folds`` folds of equal size (7 folds hold out 14 %, near the
    15 % of the pretraining). The ROIs of a fold are held out of the input together, nothing of
    their series enters, and they are read from the reconstruction of the whole network.

    The control presents the same series under permuted ROI labels: the measured ROIs exchange
    places at random, anew for each window. The same ROIs are held out, wherever they now are, and
    scores are returned to the ROIs that the series came from. A network that knows what each ROI
    is like loses by it; one that returns the global signal does not.

    The baseline predicts the same held-out ROIs linearly from the others, frame by frame, as their
    average correlation in other people has it, with the series as they are and under permuted ROI
    labels.

    Parameters
    ----------
    model : BrainSymphony
        With all functional branches.
    windows : ndarray
        (W, R, T), scaled per ROI. Values of missing ROIs are ignored and may be NaN.
    missing : ndarray
        (R,) bool. Missing ROIs are held out throughout and get no scores.
    seed : int
        Seed of folds and permutations.
    censored : ndarray of bool, optional
        (W, T), frames that were interpolated: the network sees them, the scores leave them out.
    correlation : ndarray, optional
        (R, R), average correlation of the ROIs in other people, for the linear baseline; without
        it, that has no scores.
    n_folds : int
        At least 2.
    max_windows : int
        At least 1.
    threads : int, optional
        CPU threads; None leaves torch's setting.

    Returns
    -------
    ReconstructionQuality

    Raises
    ------
    BadDataError
        As `bsym_bids.model.embed.embed_windows`, and for numbers of folds or windows out of range.
    """
    missing = check_missing(windows, missing)
    measured = np.flatnonzero(~missing)
    if not 2 <= n_folds <= measured.size or max_windows < 1:
        raise BadDataError(f"n_folds is {n_folds} and max_windows {max_windows}: out of range")
    chosen = spread_evenly(len(windows), max_windows)
    rng = np.random.default_rng(seed)
    kept = np.ones((len(windows), windows.shape[2]), bool) if censored is None else ~censored
    predictors = {"": partial(_network_reconstruction, model)}
    if correlation is not None:
        predictors["linear_"] = partial(linear_reconstruction, correlation=correlation)
    scores: dict[str, list[np.ndarray]] = {way: [] for way in _WAYS}
    with inference(threads) as used:
        for index in chosen:
            window, counted = windows[index], kept[index]
            folds = np.array_split(rng.permutation(measured), n_folds)
            identity = np.arange(missing.size)
            shuffled = identity.copy()
            shuffled[measured] = rng.permutation(measured)
            for kind, predictor in predictors.items():
                for labels, place in (("", identity), ("permuted_", shuffled)):
                    reconstructed = _reconstruct(predictor, window, missing, folds, place)
                    scored = _score(window[:, counted], reconstructed[:, counted])
                    scores[kind + labels].append(scored)
    nothing = np.full(missing.size, np.nan)
    named = {
        way + score: values
        for way in _WAYS
        for score, values in zip(
            _SCORES, _pooled(np.stack(scores[way])) if scores[way] else [nothing] * 3, strict=True
        )
    }
    return ReconstructionQuality(**named, windows=chosen, n_folds=n_folds, threads=used)


def score_windows(
    model: BrainSymphony, windows: Windows, seed: int, threads: int | None = None
) -> ReconstructionQuality:
    """Score the reconstruction of a run's windows; see `reconstruction_quality`.

    The linear baseline takes the group-average functional connectivity of young adults.
    """
    return reconstruction_quality(
        model,
        windows.data,
        windows.missing,
        seed=seed,
        censored=windows.censored,
        correlation=group_functional_connectivity(),
        threads=threads,
    )


def spread_evenly(n_windows: int, at_most: int) -> tuple[int, ...]:
    """Return indices of at most so many windows, spread evenly from the first to the last."""
    if at_most == 1:
        return ((n_windows - 1) // 2,)
    count = min(n_windows, at_most)
    return tuple(int(i) for i in np.linspace(0, n_windows - 1, count).round())


def _reconstruct(
    predictor: Predictor,
    window: np.ndarray,
    missing: np.ndarray,
    folds: list[np.ndarray],
    place: np.ndarray,
) -> np.ndarray:
    """Reconstruct each ROI (R, T) from the others, with ROI i presented as ROI ``place[i]``."""
    presented = np.empty_like(window)
    presented[place] = window
    reconstructed = np.full(window.shape, np.nan)

    def run(fold: np.ndarray) -> np.ndarray:
        held_out = missing.copy()  # missing ROIs keep their place
        held_out[place[fold]] = True
        return predictor(presented, held_out)

    for fold, output in zip(folds, in_threads(run, folds), strict=True):
        reconstructed[fold] = output[place[fold]]
    return reconstructed


def _network_reconstruction(
    model: BrainSymphony, presented: np.ndarray, held_out: np.ndarray
) -> np.ndarray:
    """Return the network's reconstruction (R, T) of a window with some ROIs held out."""
    output = model(
        fmri=presented[None],
        roi_mask=held_out[None],
        attention_maps=False,
        context_prediction=False,
    )
    if output.reconstruction is None:
        raise BadDataError(
            "the network cannot reconstruct",
            hint="it takes the branches spatial, temporal, context and perceiver",
        )
    return output.reconstruction[0].numpy()


def _score(window: np.ndarray, reconstructed: np.ndarray) -> np.ndarray:
    """Score each ROI of a window (R, T): SSE, SST, rho, sum of absolute errors, frames (5, R).

    NaN for missing ROIs; rho also where a series is constant.
    """
    series = np.where(np.isfinite(reconstructed), window, np.nan).astype(np.float64)
    error = series - reconstructed
    series = series - series.mean(1, keepdims=True)
    reconstructed = reconstructed - reconstructed.mean(1, keepdims=True)
    total = (series**2).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        rho = (series * reconstructed).sum(1) / np.sqrt(total * (reconstructed**2).sum(1))
    frames = np.full(len(window), window.shape[1], dtype=np.float64)
    return np.stack([(error**2).sum(1), total, rho, np.abs(error).sum(1), frames])


def _pooled(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bring the scores of windows (W, 5, R) together: R2, rho and MAE of each ROI.

    Sums before quotients: the mean of the windows' R2 would be ruled by the quietest of them.
    """
    squared, total, _, absolute, frames = scores.sum(0)
    unexplained = np.full(total.shape, np.nan)
    np.divide(squared, total, out=unexplained, where=total > 0)
    return 1 - unexplained, _nanmean(scores[:, 2]), absolute / frames


def _nanmean(values: np.ndarray) -> np.ndarray:
    """Average over the first axis what is not NaN; NaN where nothing is."""
    counted = np.isfinite(values)
    number = counted.sum(0)
    total = np.where(counted, values, 0).sum(0)
    return np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)

"""Network recovery: how well features of ROIs tell which network an ROI belongs to.

Said of embeddings it means little alone: a positional code that is the same for everyone can give
the networks back without any data. So embeddings stand beside that code, beside what the data give
without a network, and beside data whose ROIs were shuffled, all through the same classifier.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from bsym_bids.model.brainsymphony import BrainSymphony

_FOLDS = 5
#: What is compared, and what it is.
FEATURES: Mapping[str, str] = {
    "embedding": "ROI embeddings, mean over windows",
    "shuffled": "embeddings of data whose ROIs changed places",
    "masked": "embedding of no data at all",
    "code": "positional code of the network",
    "series": "series of the first window",
    "series_and_code": "series of the first window, with the code",
    "connectivity": "rows of the correlation matrix",
}


@dataclass(frozen=True)
class Recovery:
    """Accuracy with which a classifier names the network of ROIs that it was not trained on.

    Attributes
    ----------
    folds : float
        Mean over folds of ROIs.
    left_to_right : float
        Trained on the left hemisphere, asked for the right one.
    """

    folds: float
    left_to_right: float

    @classmethod
    def mean(cls, recoveries: Sequence[Recovery]) -> Recovery:
        """Return the mean of several."""
        return cls(
            float(np.mean([recovery.folds for recovery in recoveries])),
            float(np.mean([recovery.left_to_right for recovery in recoveries])),
        )


def network_recovery(
    features: NDArray[np.floating],
    networks: Sequence[str],
    hemispheres: Sequence[str],
    seed: int = 0,
) -> Recovery:
    """Classify ROIs by their features: multinomial logistic regression on standardised features.

    Parameters
    ----------
    features : ndarray
        (R, F).
    networks, hemispheres : sequence of str
        Of each ROI; hemispheres are ``L`` or ``R``.
    seed : int
        Of the folds, which are five, stratified by network.

    Returns
    -------
    Recovery
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    labels, left = np.asarray(networks), np.asarray(hemispheres) == "L"
    values = np.asarray(features, dtype=np.float64)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)
    accuracy = cross_val_score(classifier, values, labels, cv=folds).mean()
    classifier.fit(values[left], labels[left])
    return Recovery(float(accuracy), float(classifier.score(values[~left], labels[~left])))


def recovery_of_run(
    model: BrainSymphony,
    windows: NDArray[np.floating],
    missing: NDArray[np.bool_],
    networks: Sequence[str],
    hemispheres: Sequence[str],
    seed: int = 0,
) -> Mapping[str, Recovery]:
    """Compare what gives the networks back from one run.

    Parameters
    ----------
    model : BrainSymphony
        With all functional branches and a learnt positional code.
    windows : ndarray
        (W, R, T).
    missing : ndarray of bool
        (R,); these ROIs are left out.
    networks, hemispheres : sequence of str
        Of all ROIs.
    seed : int
        Of folds and of the shuffling.

    Returns
    -------
    mapping of str to Recovery
        By name, see `FEATURES`; the correlation matrix is the mean over windows.
    """
    from bsym_bids.model.embed import embed_windows

    measured = np.flatnonzero(~missing)
    shuffled = np.array(windows)
    order = np.random.default_rng(seed).permutation(measured)
    shuffled[:, measured] = windows[:, order]
    plain = embed_windows(model, windows, missing)
    code = model.spatial.pos_enc.pe[0, : missing.size].detach().cpu().numpy()
    correlation = np.mean([np.corrcoef(window[measured]) for window in windows], axis=0)
    features = {
        "embedding": plain.mean[measured],
        "shuffled": embed_windows(model, shuffled, missing).mean[measured],
        "masked": plain.masked[measured],
        "code": code[measured],
        "series": windows[0][measured],
        "series_and_code": np.hstack([windows[0][measured], code[measured]]),
        "connectivity": correlation,
    }
    labels = np.asarray(networks)[measured]
    sides = np.asarray(hemispheres)[measured]
    return {
        name: network_recovery(values, list(labels), list(sides), seed)
        for name, values in features.items()
    }

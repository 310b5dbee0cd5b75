"""How well a network in training predicts what is hidden of people who are held out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bsym_bids import atlas
from bsym_bids.atlas.group import group_functional_connectivity, group_streamline_counts
from bsym_bids.model.brainsymphony import BrainSymphony
from bsym_bids.model.reconstruction import OVERALL, reconstruction_quality, spread_evenly
from bsym_bids.model.structural import (
    edge_quality,
    hold_out_edges,
    predict_edges,
    structural_input,
    volume_normalised,
    without_edges,
)
from bsym_bids.training.data import ConnectomeSet, InputRules, WindowSet

HELD_OUT = "participants who were not trained on, but chose when to stop"
_MOST = 16  # windows or connectomes of one validation
_SHARE = 0.15  # of ROIs or of pairs, hidden
_LEAST_VARIANCE = 1e-3  # of a scaled series: an ROI that is quiet in a window says nothing
_MOST_PEOPLE = 20  # measured for a card


@torch.no_grad()
def reconstruction_score(
    model: BrainSymphony, data: WindowSet, indices: NDArray[np.int64]
) -> float:
    """Return the mean R2 of ROIs hidden from the whole network, the same ones every time."""
    scores = []
    for index in indices[list(spread_evenly(len(indices), _MOST))]:
        missing, kept = data.missing[index], ~data.censored[index]
        measured = np.flatnonzero(~missing)
        order = np.random.default_rng(int(index)).permutation(measured)
        chosen = order[: max(1, round(_SHARE * len(order)))]
        hidden = missing.copy()
        hidden[chosen] = True
        output = model(
            fmri=data.windows[[index]],
            roi_mask=hidden[None],
            attention_maps=False,
            context_prediction=False,
        )
        predicted = output.reconstruction[0].cpu().numpy()[chosen][:, kept]
        truth = data.windows[index][chosen][:, kept].astype(np.float64)
        error = ((truth - predicted) ** 2).sum(1)
        spread = ((truth - truth.mean(1, keepdims=True)) ** 2).sum(1)
        varied = spread > _LEAST_VARIANCE * kept.sum()
        scores.append((1 - error[varied] / spread[varied]).mean() if varied.any() else np.nan)
    return float(np.nanmean(scores))


@torch.no_grad()
def edge_score(model: BrainSymphony, data: ConnectomeSet, indices: NDArray[np.int64]) -> float:
    """Return the R2 of pairs of ROIs hidden from connectomes, the same ones every time."""
    device = next(model.parameters()).device
    chosen = indices[list(spread_evenly(len(indices), _MOST))]
    rois = data.connectomes.shape[1]
    pairs = torch.from_numpy(hold_out_edges(0, rois, _SHARE)).to(device)
    truth, predicted = [], []
    for index in chosen:
        sc = data.batch(index[None], device)
        embedding, _ = model.structural(without_edges(sc, pairs))
        predicted.append(predict_edges(model.structural, embedding, pairs)[0])
        truth.append(sc[0, pairs[:, 0], pairs[:, 1]])
    true = torch.stack(truth).double()
    error = (true - torch.stack(predicted)).square().sum()
    spread = (true - true.mean()).square().sum()
    return float(1 - error / spread) if spread > 0 else float("nan")


def reconstruction_on_card(
    model: BrainSymphony, data: WindowSet, people: Sequence[str], seed: int
) -> dict[str, Any]:
    """Return the scores of `reconstruction_quality`, mean over people, as a card has them."""
    of_people = []
    for person in [p for p in people if len(data.of([p]))][:_MOST_PEOPLE]:
        own = data.of([person])
        of_runs = [
            _run_means(model, data, own[data.runs[own] == run], seed)
            for run in np.unique(data.runs[own])
        ]
        of_people.append({name: np.mean([run[name] for run in of_runs]) for name in of_runs[0]})
    scores = {name: np.array([mean[name] for mean in of_people]) for name in of_people[0]}
    del scores["n_rois"]
    found = {name: round(float(np.nanmean(values)), 4) for name, values in scores.items()}
    if len(of_people) > 1:
        found["r2_sd"] = round(float(np.nanstd(scores["r2"], ddof=1)), 4)
    return _finite(found) | {"participants": len(of_people), "data": HELD_OUT}


def _run_means(
    model: BrainSymphony, data: WindowSet, windows: NDArray[np.int64], seed: int
) -> dict[str, float]:
    """Return the scores of one run, mean over ROIs."""
    missing = data.missing[windows[0]]
    quality = reconstruction_quality(
        model,
        data.windows[windows],
        missing,
        seed,
        data.censored[windows],
        group_functional_connectivity(),
    )
    return quality.network_means([OVERALL] * missing.size)[OVERALL]


def _finite(scores: dict[str, float]) -> dict[str, float]:
    """Leave out what is not defined: a card has numbers only."""
    return {name: value for name, value in scores.items() if np.isfinite(value)}


def edges_on_card(
    model: BrainSymphony,
    data: ConnectomeSet,
    people: Sequence[str],
    rules: InputRules,
    seed: int,
) -> dict[str, Any]:
    """Return the scores of `edge_quality` over all pairs, mean over people, as a card has them."""
    group = group_streamline_counts()
    if rules.volume_normalised:
        group = volume_normalised(group, atlas.roi_volumes())
    # One of each person, the first.
    firsts = [data.of([person])[0] for person in people if len(data.of([person]))]
    connectomes = data.connectomes[firsts[:_MOST_PEOPLE]]
    quality = edge_quality(
        model, connectomes, seed, group=structural_input(group, rules.convention)
    )
    scores: dict[str, float] = {}
    ways = {"": quality.network, "permuted_": quality.permuted, "group_": quality.group}
    for prefix, way in ways.items():
        for score in ("r2", "rho", "mae"):
            values = getattr(way.all_pairs, score)
            scores[prefix + score] = round(float(np.nanmean(values)), 4)
    return _finite(scores) | {"participants": len(connectomes), "data": HELD_OUT}

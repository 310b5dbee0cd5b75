"""A network that starts as a smoother: weights written down instead of drawn.

From random weights the network takes days to learn that ROIs tell about each other. Here it starts
close to the best linear prediction of hidden ROIs (`bsym_bids.training.smoother`) and training goes
on from there. The 128 dimensions of a token are divided up, in an orthonormal basis whose first
vector is constant (a LayerNorm takes that one away):

    1 steady | 1 flag | 31 position | 94 content

- *content*: discrete cosine coefficients of the window, lowest frequencies first;
- *position*: what queries and keys are made of, the same for everyone;
- *steady*: a large constant, so that a LayerNorm divides all tokens by nearly the same;
- *flag*: 1 for hidden ROIs. A window of zeros has less energy, so the first LayerNorm leaves its
  steady part larger; the first block's MLP turns that into the flag.

The blocks of the spatial transformer after the first are the smoother's attentions, three heads
with the same logits carrying 32 content dimensions each. Query i of the Perceiver picks ROI i by
its position, two heads carrying half of the content each, and the head turns content back into
samples (a pair of GELUs is exactly linear: gelu(x) - gelu(-x) = x). Everything else is drawn at
random with outputs of zero, so that training can take it into use.

The structural branch starts likewise with a code per ROI and an edge predictor that give back the
average connectome of those to train on, and layers that add nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.fft import idct
from torch import Tensor

from bsym_bids.errors import BadDataError
from bsym_bids.model.brainsymphony import BrainSymphony
from bsym_bids.model.structural import predict_edges
from bsym_bids.model.weights import random_state_dicts
from bsym_bids.training.smoother import Smoother, learn_smoother

_RANK = 31  # with one dimension for the flag, the 32 of a head
_SMOOTHING_LAYERS = 4
_CONTENT_SCALE = 0.1  # makes the content of a typical window a vector of length 1
_STEADY = 3.0  # in the same units
_POSITION_SCALE = 0.2  # too little to disturb the LayerNorms
_TYPICAL_ENERGY = _STEADY**2 + 1
_FLAG_EDGES = (0.55, 0.75)  # of the way from a typical window's steady part to that of zeros
_PICKING_STEPS = 500
_PICKING_SHARPNESS = 60.0  # longest query: sharp enough to tell neighbouring ROIs apart
_CODE_SHARE = 0.75  # of the structural code, that starts as eigenvectors
_CODE_JITTER = 0.1  # of the rest
_ROW_SCALE = 0.3  # of what a connectome's row adds to the code, so that it does not drown it
_EDGE_STEPS, _EDGES_AT_ONCE, _EDGE_RATE = 400, 4096, 2e-3


@dataclass(frozen=True)
class _Basis:
    """Orthonormal columns (D, n) for each part of a token."""

    steady: Tensor
    flag: Tensor
    position: Tensor
    content: Tensor


def smoothing_state_dicts(
    card: Mapping[str, Any],
    correlation: NDArray[np.floating],
    seed: int,
    connectome: NDArray[np.floating] | None = None,
) -> dict[str, dict[str, np.ndarray]]:
    """Return weights of a network that starts as a smoother.

    Parameters
    ----------
    card : mapping
        Release card with ``sizes`` and ``network``, as `random_state_dicts` takes it.
    correlation : ndarray
        (R, R), that the smoother learns from.
    seed : int
        Of all that is random.
    connectome : ndarray, optional
        (R, R), average of those to train on, as the structural branch takes them.

    Returns
    -------
    dict of str to dict of str to ndarray
        State dict of each branch.

    Raises
    ------
    BadDataError
        For sizes that the parts of a token do not fit into.
    """
    states = {
        branch: {key: torch.from_numpy(value) for key, value in state.items()}
        for branch, state in random_state_dicts(card, seed).items()
    }
    if "structural" in states:
        _write_structural(states["structural"], connectome, seed)
    if "spatial" in states and "perceiver" in states:
        _check_sizes(card)
        smoother = learn_smoother(correlation, _RANK, _SMOOTHING_LAYERS, seed)
        basis = _basis(card["sizes"]["spatial"]["width"], seed)
        cosines = _cosines(card["sizes"]["spatial"]["steps"], basis.content.shape[1])
        _write_spatial(states["spatial"], basis, cosines, smoother)
        _write_perceiver(states["perceiver"], basis, cosines, smoother)
    return {
        branch: {key: value.numpy() for key, value in state.items()}
        for branch, state in states.items()
    }


def _check_sizes(card: Mapping[str, Any]) -> None:
    spatial, perceiver = card["sizes"]["spatial"], card["sizes"]["perceiver"]
    network = card["network"]
    fits = (
        spatial["width"] == perceiver["projection"] == perceiver["width"] == 128
        and network["spatial_heads"] == 4
        and network["perceiver_heads"] == 2
        and spatial["layers"] > _SMOOTHING_LAYERS
        and "positions" in spatial
        and perceiver["head_width"] >= 2 * (128 - 3 - _RANK)
    )
    if not fits:
        raise BadDataError(
            "the start from connectivity needs a width of 128 throughout, 4 spatial heads, 2 of "
            f"the Perceiver, a head of at least {2 * (128 - 3 - _RANK)} units, a learnable code "
            f"and at least {_SMOOTHING_LAYERS + 1} spatial layers",
            hint="start from random weights instead",
        )


def _basis(width: int, seed: int) -> _Basis:
    """Return an orthonormal basis in random directions, all orthogonal to the constant vector."""
    random = np.random.default_rng(seed)
    columns = random.standard_normal((width, width))
    columns[:, 0] = 1
    directions, _ = np.linalg.qr(columns)
    parts = torch.from_numpy(directions[:, 1:]).float()
    return _Basis(parts[:, :1], parts[:, 1:2], parts[:, 2 : 2 + _RANK], parts[:, 2 + _RANK :])


def _cosines(steps: int, count: int) -> Tensor:
    """Return the ``count`` lowest vectors of the orthonormal discrete cosine transform (T, n)."""
    return torch.from_numpy(idct(np.eye(steps), norm="ortho", axis=0)[:, :count]).float()


def _spread(energy: float, width: int) -> float:
    """Return what a LayerNorm divides a token of this squared length by."""
    return float(np.sqrt(energy / width))


def _write_spatial(
    state: dict[str, Tensor], basis: _Basis, cosines: Tensor, smoother: Smoother
) -> None:
    width = len(basis.steady)
    spread = _spread(_TYPICAL_ENERGY, width)
    state["embedding_layer.weight"][:] = _CONTENT_SCALE * basis.content @ cosines.mT
    state["embedding_layer.bias"][:] = _STEADY * basis.steady[:, 0]
    rois = len(smoother.positions)
    state["pos_enc.pe"][:] = 0
    state["pos_enc.pe"][0, :rois] = _POSITION_SCALE * smoother.positions @ basis.position.mT
    layers = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("layers."))
    for layer in range(layers):
        state[f"layers.{layer}.mlp.2.weight"][:] = 0
        state[f"layers.{layer}.attn.fc_out.weight"][:] = 0
    _write_flag(state, basis)
    for step in range(len(smoother.gain)):
        _write_attention(state, f"layers.{step + 1}.attn", basis, smoother, step, spread)


def _write_flag(state: dict[str, Tensor], basis: _Basis) -> None:
    """Let the first MLP write 1 into the flag of tokens without content, 0 into all others."""
    width = len(basis.steady)
    typical = _STEADY / _spread(_TYPICAL_ENERGY, width)
    hidden = _STEADY / _spread(_STEADY**2, width)
    start, end = (typical + edge * (hidden - typical) for edge in _FLAG_EDGES)
    steepness = 16 / (end - start)
    # Zero for the LayerNorm's steady part at the start of the edge: keeps later biases small.
    state["layers.0.norm2.bias"][:] = -start * basis.steady[:, 0]
    for unit, edge in enumerate((0.0, end - start)):
        state["layers.0.mlp.0.weight"][unit] = steepness * basis.steady[:, 0]
        state["layers.0.mlp.0.bias"][unit] = -steepness * edge
    # The difference of two ramps rises from 0 to steepness * (end - start), and stays there.
    height = steepness * (end - start)
    state["layers.0.mlp.2.weight"][:, 0] = basis.flag[:, 0] / height
    state["layers.0.mlp.2.weight"][:, 1] = -basis.flag[:, 0] / height


def _write_attention(
    state: dict[str, Tensor],
    name: str,
    basis: _Basis,
    smoother: Smoother,
    step: int,
    spread: float,
) -> None:
    """Write one attention of the smoother into a block, the last head being left for training."""
    width = len(basis.steady)
    per_head = _RANK + 1
    # The softmax divides logits by the root of a head's width.
    undivided = per_head**0.25
    from_token = undivided * spread / _POSITION_SCALE * basis.position.mT
    query = torch.cat(
        [smoother.query[step].mT @ from_token, undivided * spread / _STEADY * basis.steady.mT]
    )
    key = torch.cat(
        [
            smoother.key[step].mT @ from_token,
            undivided * spread * smoother.flag[step] * basis.flag.mT,
        ]
    )
    weights = state[f"{name}.qkv.weight"]
    output = state[f"{name}.fc_out.weight"]
    for head in range(width // per_head):
        rows = slice(head * per_head, (head + 1) * per_head)
        weights[:width][rows] = query
        weights[width : 2 * width][rows] = key
        carried = basis.content[:, rows]  # (D, up to 32); none for the last head
        value = weights[2 * width :][rows]
        value[: carried.shape[1]] = spread * carried.mT
        output[:, rows][:, : carried.shape[1]] = smoother.gain[step] * carried


def _write_perceiver(
    state: dict[str, Tensor], basis: _Basis, cosines: Tensor, smoother: Smoother
) -> None:
    width = len(basis.steady)
    position = smoother.positions
    # A token of (ROI, time) is the ROI's: its position enlarged, without flag, time and signal.
    state["roi_proj.weight"][:] = torch.eye(width)
    state["input_proj.weight"][:] = 0
    state["input_proj.weight"][:, :width] = (
        basis.content @ basis.content.mT
        + basis.steady @ basis.steady.mT
        + basis.position @ basis.position.mT / _POSITION_SCALE
    )
    spread = _spread(_TYPICAL_ENERGY + float(position.square().sum(1).mean()), width)
    # Each latent asks for its own ROI, through the position that the code does not already give.
    wanted = _picking_queries(position) @ basis.position.mT
    state["latents"][:] = wanted - _POSITION_SCALE * position @ basis.position.mT
    per_head = width // 2
    projection, output = state["cross_attn.in_proj_weight"], state["cross_attn.out_proj.weight"]
    output[:] = 0
    state["cross_attn.in_proj_bias"][:] = 0
    for head, carried in enumerate(basis.content.tensor_split(2, dim=1)):
        rows = slice(head * per_head, (head + 1) * per_head)
        query, key, value = projection.view(3, width, width)[:, rows].unbind()
        query[:], key[:] = 0, 0
        query[:_RANK] = basis.position.mT * per_head**0.5
        key[:_RANK] = spread * basis.position.mT
        value[: carried.shape[1]] = spread * carried.mT
        output[:, rows][:, : carried.shape[1]] = carried
    state["cross_attn.out_proj.bias"][:] = _STEADY * basis.steady[:, 0]
    for key_ in state:
        if key_.startswith("latent_transformers.") and key_.endswith(
            ("mlp.2.weight", "attn.fc_out.weight")
        ):
            state[key_][:] = 0
    _write_head(state, basis, cosines)


def _write_structural(
    state: dict[str, Tensor], connectome: NDArray[np.floating] | None, seed: int
) -> None:
    """Let the structural branch start as a code per ROI that gives the average connectome back.

    Its layers start as norms alone, with what they add to a token at zero.
    """
    for key, value in state.items():
        if key.endswith(("out_linear.weight", "ffn.2.weight")):
            value[:] = 0
    if connectome is None or "pos_embed" not in state or not np.any(connectome):
        return
    code = state["pos_embed"]
    values, vectors = np.linalg.eigh(np.asarray(connectome, dtype=np.float64))
    leading = np.argsort(-np.abs(values))[: int(_CODE_SHARE * code.shape[1])]
    vectors = vectors[:, leading]
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(0), np.arange(len(leading))])
    eigencode = vectors * np.sqrt(np.abs(values[leading]))
    code *= _CODE_JITTER
    code[:, : len(leading)] = torch.from_numpy(eigencode / eigencode.std()).float()
    state["input_proj.weight"] *= _ROW_SCALE
    _fit_edges(state, torch.from_numpy(np.asarray(connectome)).float(), seed)


def _fit_edges(state: dict[str, Tensor], connectome: Tensor, seed: int) -> None:
    """Fit the code and the edge predictor to a connectome, as if tokens were the code alone."""
    branch = BrainSymphony.from_state_dicts(structural=state, structural_heads=1).structural
    assert branch is not None
    parts = [branch.pos_embed, *branch.edge_weight_predictor.parameters()]
    for part in parts:
        part.requires_grad_(True)
    random = torch.Generator().manual_seed(seed)
    pairs = torch.triu_indices(*connectome.shape, 1).mT
    optimiser = torch.optim.Adam(parts, lr=_EDGE_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _EDGE_RATE, _EDGE_STEPS)
    with torch.enable_grad():
        for _ in range(_EDGE_STEPS):
            some = pairs[torch.randint(len(pairs), (_EDGES_AT_ONCE,), generator=random)]
            token = F.layer_norm(branch.pos_embed, branch.pos_embed.shape[1:])
            predicted = predict_edges(branch, token[None], some)[0]
            loss = F.mse_loss(predicted, connectome[some[:, 0], some[:, 1]])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    for key, value in branch.state_dict().items():
        state[key] = value.detach().clone()


def _write_head(state: dict[str, Tensor], basis: _Basis, cosines: Tensor) -> None:
    """Let the head turn content into samples."""
    width, count = basis.content.shape
    undo = _spread(_TYPICAL_ENERGY, width) / _CONTENT_SCALE
    state["head.0.weight"][: 2 * count] = torch.cat([basis.content.mT, -basis.content.mT])
    state["head.2.weight"][:] = 0
    state["head.2.weight"][:, : 2 * count] = undo * torch.cat([cosines, -cosines], dim=1)


def _picking_queries(position: Tensor) -> Tensor:
    """Return a query (R, P) per ROI whose logits are highest at that ROI's own position.

    Softmax regression of the ROI on its position: convex, so that its descent finds what there is.
    """
    query = (position / position.norm(dim=1, keepdim=True)).clone().requires_grad_()
    target = torch.arange(len(position))
    optimiser = torch.optim.Adam([query], lr=0.5)
    with torch.enable_grad():
        for _ in range(_PICKING_STEPS):
            loss = torch.nn.functional.cross_entropy(query @ position.mT, target)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            with torch.no_grad():
                length = query.norm(dim=1, keepdim=True)
                query.mul_((_PICKING_SHARPNESS / length).clamp(max=1))
    return query.detach()

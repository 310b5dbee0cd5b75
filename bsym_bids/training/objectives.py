"""What the branches are trained to do: predict what was hidden from them.

Each branch has an objective of its own (Khajehnejad et al. 2025, section on pretraining): hidden
ROIs for the spatial transformer, hidden frames for the temporal one, hidden samples for the context
module, hidden ROIs through all of them for the Perceiver, and hidden edges of the same participant
for the structural one. Decoders that only an objective needs are not part of a release.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bsym_bids.model.brainsymphony import BrainSymphony, Context, Perceiver
from bsym_bids.model.structural import predict_edges, without_edges

_KERNEL = 5


@dataclass(frozen=True)
class Masking:
    """How much is hidden.

    Attributes
    ----------
    roi_share : tuple of float
        Least and largest share of ROIs; drawn anew for each window.
    frame_share, sample_share, edge_share : float
        Shares of frames, of samples, and of pairs of ROIs.
    keys_per_roi : int
        Frames of each ROI that the Perceiver sees while it is trained, at random. It trains as
        well on a few as on all of them.
    samples : int
        Samples of a window that the context module is trained on, at random.
    edges : int
        Hidden pairs of ROIs that the edge predictor is trained on, at random.
    """

    roi_share: tuple[float, float] = (0.1, 0.4)
    frame_share: float = 0.1
    sample_share: float = 0.15
    edge_share: float = 0.15
    keys_per_roi: int = 4
    samples: int = 4096
    edges: int = 4096


@dataclass(frozen=True)
class WindowBatch:
    """Windows to train on.

    Attributes
    ----------
    windows : Tensor
        (B, R, T), 0 at missing ROIs.
    missing : Tensor
        (B, R) bool, ROIs that were not measured: always hidden, never scored.
    censored : Tensor
        (B, T) bool, frames that were interpolated: seen, never scored.
    """

    windows: Tensor
    missing: Tensor
    censored: Tensor


class FunctionalObjective(nn.Module):
    """The objectives of the four branches that take windows.

    Parameters
    ----------
    model : BrainSymphony
        With all functional branches.
    masking : Masking
        What is hidden.
    weights : mapping of str to float, optional
        Of the objectives in the sum, by name (`NAMES`).
    """

    NAMES: Mapping[str, float] = {
        "perceiver": 1.0,
        "spatial": 0.5,
        "visible": 0.1,
        "temporal": 0.25,
        "context": 0.1,
    }

    def __init__(
        self, model: BrainSymphony, masking: Masking, weights: Mapping[str, float] | None = None
    ) -> None:
        super().__init__()
        assert model.spatial is not None and model.perceiver is not None
        assert model.temporal is not None and model.context is not None
        self.spatial, self.temporal = model.spatial, model.temporal
        self.context, self.perceiver = model.context, model.perceiver
        self.masking = masking
        self.weights = dict(self.NAMES) | dict(weights or {})
        self.roi_decoder = nn.Linear(model.spatial.width, model.perceiver.steps)
        self.frame_decoder = nn.Linear(model.temporal.width, model.temporal.rois)
        self._start_decoders()

    def _start_decoders(self) -> None:
        """Start the decoders as what undoes the embedding layers, as well as linear maps can."""
        with torch.no_grad():
            for decoder, embedding in (
                (self.roi_decoder, self.spatial.embedding_layer),
                (self.frame_decoder, self.temporal.embedding_layer),
            ):
                decoder.weight.copy_(torch.linalg.pinv(embedding.weight))
                decoder.bias.copy_(-decoder.weight @ embedding.bias)

    def forward(self, batch: WindowBatch, random: torch.Generator) -> dict[str, Tensor]:
        """Return the mean squared error of each objective, and ``total``, their weighted sum.

        Parameters
        ----------
        batch : WindowBatch
            What to train on.
        random : torch.Generator
            Where what is hidden comes from, on the CPU.
        """
        truth, device = batch.windows, batch.windows.device
        hidden = self._hidden_rois(batch, random)
        kept = ~batch.censored
        frames = (torch.rand(kept.shape, generator=random) < self.masking.frame_share).to(device)
        blanked = truth.masked_fill(hidden.unsqueeze(-1), 0)
        spatial, code = self.spatial(blanked)
        temporal = self.temporal(blanked.masked_fill(frames.unsqueeze(1), 0))
        scored = (hidden & ~batch.missing).unsqueeze(-1) & kept.unsqueeze(1)
        visible = ~hidden.unsqueeze(-1) & kept.unsqueeze(1)
        signal = torch.where(hidden.unsqueeze(-1), self.context.mask_token, truth)
        latents = read_sampled(
            self.perceiver,
            self.context,
            spatial,
            temporal,
            signal,
            code,
            self.masking.keys_per_roi,
            random,
        )
        series = self.perceiver.head(latents)
        in_frames = visible & frames.unsqueeze(1)
        losses = {
            "perceiver": _error(series, truth, scored),
            "spatial": _error(self.roi_decoder(spatial), truth, scored),
            "visible": _error(series, truth, visible),
            "temporal": _error(self.frame_decoder(temporal).mT, truth, in_frames),
            "context": self._context_loss(truth, visible, random),
        }
        losses["total"] = sum(
            (self.weights[name] * loss for name, loss in losses.items()), truth.new_zeros(())
        )
        return losses

    def _hidden_rois(self, batch: WindowBatch, random: torch.Generator) -> Tensor:
        low, high = self.masking.roi_share
        share = low + (high - low) * torch.rand((len(batch.missing), 1), generator=random)
        drawn = torch.rand(batch.missing.shape, generator=random) < share
        return drawn.to(batch.missing.device) | batch.missing

    def _context_loss(self, truth: Tensor, usable: Tensor, random: torch.Generator) -> Tensor:
        """Return the error of hidden samples, each predicted from its neighbours."""
        drawn = torch.rand(truth.shape, generator=random) < self.masking.sample_share
        hidden = drawn.to(truth.device) & usable
        signal = torch.where(hidden, self.context.mask_token, truth)
        places = hidden.nonzero()
        if not len(places):
            return truth.new_zeros(())
        order = torch.randperm(len(places), generator=random)[: self.masking.samples]
        batch, roi, frame = places[order.to(truth.device)].unbind(1)
        around = neighbours(signal, (batch, roi), frame)  # (samples, 5)
        predicted = self.context.decoder(_features(self.context, around)).squeeze(-1)
        return F.mse_loss(predicted, truth[batch, roi, frame])


class StructuralObjective(nn.Module):
    """Hidden edges of a connectome, predicted from the rest of the same connectome.

    Parameters
    ----------
    model : BrainSymphony
        With the structural branch.
    masking : Masking
        What is hidden.
    """

    def __init__(self, model: BrainSymphony, masking: Masking) -> None:
        super().__init__()
        assert model.structural is not None
        self.structural = model.structural
        self.masking = masking

    def forward(self, connectomes: Tensor, random: torch.Generator) -> dict[str, Tensor]:
        """Return the mean squared error of hidden pairs of ROIs as ``edges`` and as ``total``.

        Parameters
        ----------
        connectomes : Tensor
            (B, R, R), in the convention of the release.
        random : torch.Generator
            Where what is hidden comes from, on the CPU.
        """
        n_rois = connectomes.shape[-1]
        pairs = torch.triu_indices(n_rois, n_rois, 1)
        hidden = pairs[:, torch.rand(pairs.shape[1], generator=random) < self.masking.edge_share]
        hidden = hidden[:, torch.randperm(hidden.shape[1], generator=random)]
        hidden = hidden.mT.to(connectomes.device)
        embedding, _ = self.structural(without_edges(connectomes, hidden))
        scored = hidden[: self.masking.edges]
        predicted = predict_edges(self.structural, embedding, scored)
        truth = connectomes[:, scored[:, 0], scored[:, 1]]
        loss = F.mse_loss(predicted, truth)
        return {"edges": loss, "total": loss}


def read_sampled(
    perceiver: Perceiver,
    context: Context,
    spatial: Tensor,
    temporal: Tensor,
    signal: Tensor,
    code: Tensor,
    keys_per_roi: int,
    random: torch.Generator,
) -> Tensor:
    """Let the Perceiver read windows by a few frames of each ROI, with gradients.

    Parameters
    ----------
    perceiver, context : Perceiver, Context
        The modules.
    spatial, temporal, signal : Tensor
        ROI embeddings (B, R, D), frame embeddings (B, T, D) and samples (B, R, T).
    code : Tensor
        Positional code of the ROIs (B or 1, R, D).
    keys_per_roi : int
        Frames of each ROI.
    random : torch.Generator
        Where the frames come from, on the CPU.

    Returns
    -------
    Tensor
        Functional embedding (B, R, D).
    """
    batch, rois, steps = signal.shape
    frames = torch.randint(steps, (batch, rois, keys_per_roi), generator=random).to(signal.device)
    roi_part, time_part, kernel = perceiver.token_parts(spatial, temporal, context.conv1d)
    windows = torch.arange(batch, device=signal.device)[:, None, None]
    order = torch.arange(rois, device=signal.device)[:, None]
    around = neighbours(signal, (windows, order), frames)  # (B, R, keys, 5)
    tokens = roi_part.unsqueeze(2) + time_part[windows, frames] + around @ kernel.mT
    tokens = perceiver.input_ln(tokens).flatten(1, 2)
    attention = perceiver.cross_attn
    weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    inputs = ((perceiver.latents + code).expand(batch, -1, -1), tokens, tokens)
    query, key, value = (
        F.linear(x, weight, bias).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
        for x, weight, bias in zip(inputs, weights, biases, strict=True)
    )
    attended = F.scaled_dot_product_attention(query, key, value)
    latents = perceiver.cross_attn_norm(attention.out_proj(attended.transpose(1, 2).flatten(2)))
    for block in perceiver.latent_transformers:
        latents = block(latents)
    return latents


def neighbours(signal: Tensor, rows: tuple[Tensor, Tensor], frames: Tensor) -> Tensor:
    """Return the five samples around some, zeros beyond both ends.

    Parameters
    ----------
    signal : Tensor
        (B, R, T).
    rows : tuple of Tensor
        Index of the window and of the ROI, that broadcast with ``frames``.
    frames : Tensor
        Index of the frame, any shape.

    Returns
    -------
    Tensor
        The shape of ``frames`` and 5.
    """
    padded = F.pad(signal, (_KERNEL // 2, _KERNEL // 2))
    offsets = torch.arange(_KERNEL, device=signal.device)
    return padded[rows[0].unsqueeze(-1), rows[1].unsqueeze(-1), frames.unsqueeze(-1) + offsets]


def _features(context: Context, around: Tensor) -> Tensor:
    """Return the context module's features (N, S) of samples given with their neighbours (N, 5)."""
    return F.linear(around, context.conv1d.weight[:, 0], context.conv1d.bias)


def _error(predicted: Tensor, truth: Tensor, scored: Tensor) -> Tensor:
    """Return the mean squared error where ``scored``."""
    error = (predicted - truth).square() * scored
    return error.sum() / scored.sum().clamp(min=1)

"""BrainSymphony: the whole network in one file.

Khajehnejad, Habibollahi & Razi (2025), arXiv:2506.18314. fMRI windows go through a spatial
transformer (a token per ROI), a temporal transformer (a token per frame) and a convolution over
samples; a Perceiver reads all three with one query per ROI. A structural connectome goes through a
signed graph transformer. A gate mixes both.

Names of parameters are those of the official release, so that its files load strictly. Shapes in
comments: B participants or windows, R ROIs (450), T frames (200), D width (128), H heads,
S channels of the convolution (64), P width of a projection of the Perceiver (64 or 128).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from operator import call
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bsym_bids.errors import BadDataError
from bsym_bids.model.attention import attend_to_grid, signed_softmax
from bsym_bids.model.state_dicts import StateDict
from bsym_bids.model.threads import in_threads, one_thread

ATTENTIONS = ("first_hop", "multi_hop", "diffusion")
_KERNEL = 5  # samples that the context convolution sees
_DIFFUSION_STEPS = 9
_ROIS_AT_ONCE = 25  # the context module predicts the samples of this many ROIs at a time


@dataclass(frozen=True)
class BrainSymphonyOutput:
    """What the network gives back; None where a branch or a modality is absent.

    Attributes
    ----------
    spatial_embedding : Tensor, optional
        (B, R, D), from the spatial transformer.
    temporal_embedding : Tensor, optional
        (B, T, D), from the temporal transformer.
    context_prediction : Tensor, optional
        (B, R, T), each sample as the context module's decoder gives it.
    functional_embedding : Tensor, optional
        (B, R, D), the Perceiver's latents.
    reconstruction : Tensor, optional
        (B, R, T), the series decoded from the functional embedding.
    attention_roi : Tensor, optional
        (B, R, R), the Perceiver's attention from each query (row) to each ROI, summed over time,
        mean over heads. Rows sum to 1.
    attention_time : Tensor, optional
        (B, R, T), the same, summed over ROIs. Rows sum to 1.
    structural_embedding : Tensor, optional
        (B, R, D), from the signed graph transformer.
    structural_attention : Tensor, optional
        (B, R, R), signed attention of its last layer, mean over heads.
    fused_embedding : Tensor, optional
        (B, R, D), ``gate * functional + (1 - gate) * structural``.
    gate : Tensor, optional
        (B, R, D), between 0 (structural) and 1 (functional).
    """

    spatial_embedding: Tensor | None = None
    temporal_embedding: Tensor | None = None
    context_prediction: Tensor | None = None
    functional_embedding: Tensor | None = None
    reconstruction: Tensor | None = None
    attention_roi: Tensor | None = None
    attention_time: Tensor | None = None
    structural_embedding: Tensor | None = None
    structural_attention: Tensor | None = None
    fused_embedding: Tensor | None = None
    gate: Tensor | None = None


class SelfAttention(nn.Module):
    """Multi-head softmax attention of a sequence to itself."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.fc_out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, D) to (B, N, D)."""
        # (B, N, 3D) -> three of (B, H, N, D / H)
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.fc_out(attended.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int, mlp_width: int) -> None:
        super().__init__()
        self.attn = SelfAttention(width, heads)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, mlp_width), nn.GELU(), nn.Linear(mlp_width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, D) to (B, N, D)."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class LearnableCode(nn.Module):
    """A learnt code per position, added to the tokens."""

    def __init__(self, positions: int, width: int) -> None:
        super().__init__()
        self.pe = nn.Parameter(torch.empty(1, positions, width))
        # In the release's files, but without any effect on what the published network returns.
        self.alpha = nn.Parameter(torch.empty(()))
        self.ln = nn.LayerNorm(width)

    def forward(self, x: Tensor, _gradients: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the tokens with their code, and the code (1, R, D)."""
        code = self.pe[:, : x.shape[1]]
        return x + code, code


class GradientCode(nn.Module):
    """A projection of the participant's cortical gradients, added to the tokens."""

    def __init__(self, gradients: int, width: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.empty(()))
        self.proj = nn.Linear(gradients, width)
        self.ln = nn.LayerNorm(width)

    def forward(self, x: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor]:
        """Return the normalised tokens with their code, and the code (B, R, D)."""
        code = self.alpha * self.proj(gradients)
        return self.ln(x + code), code


class SpatialTransformer(nn.Module):
    """A token per ROI: its whole window.

    Parameters
    ----------
    steps, width, layers, heads, mlp_width : int
        Sizes.
    positions : int, optional
        Most ROIs that the learnable positional code has room for.
    gradients : int, optional
        Number of gradient maps, for the positional code made of them.
    """

    def __init__(
        self,
        *,
        steps: int,
        width: int,
        layers: int,
        heads: int,
        mlp_width: int,
        positions: int | None = None,
        gradients: int | None = None,
    ) -> None:
        super().__init__()
        self.steps, self.width, self.positions, self.gradients = steps, width, positions, gradients
        self.embedding_layer = nn.Linear(steps, width)
        self.pos_enc = (
            LearnableCode(positions, width) if positions else GradientCode(gradients or 0, width)
        )
        self.layers = nn.ModuleList(Block(width, heads, mlp_width) for _ in range(layers))

    @staticmethod
    def sizes(state: StateDict) -> dict[str, int]:
        """Read the sizes off a state dict."""
        of_code = (
            {"gradients": state.size(("pos_enc.proj.weight", 1))}
            if "pos_enc.proj.weight" in state
            else {"positions": state.size(("pos_enc.pe", 1))}
        )
        steps = state.size(("embedding_layer.weight", 1))
        return {"steps": steps, **_transformer_sizes(state, "layers"), **of_code}

    def forward(self, fmri: Tensor, gradients: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map (B, R, T) to the ROI embedding (B, R, D) and the positional code (B or 1, R, D)."""
        x, code = self.pos_enc(self.embedding_layer(fmri), gradients)
        for layer in self.layers:
            x = layer(x)
        return x, code


class SinusoidalCode(nn.Module):
    """A fixed code per frame, as its file has it."""

    def __init__(self, positions: int, width: int) -> None:
        super().__init__()
        self.register_buffer("pe", torch.empty(1, positions, width))

    def forward(self, x: Tensor) -> Tensor:
        """Add the code to the tokens."""
        return x + self.pe[:, : x.shape[1]]


class TemporalTransformer(nn.Module):
    """A token per frame: all ROIs at that time.

    Parameters
    ----------
    rois, width, layers, heads, mlp_width : int
        Sizes.
    positions : int
        Most frames that the positional code has room for.
    """

    def __init__(
        self, *, rois: int, width: int, layers: int, heads: int, mlp_width: int, positions: int
    ) -> None:
        super().__init__()
        self.rois, self.width, self.positions = rois, width, positions
        self.embedding_layer = nn.Linear(rois, width)
        self.pos_enc = SinusoidalCode(positions, width)
        self.layers = nn.ModuleList(Block(width, heads, mlp_width) for _ in range(layers))

    @staticmethod
    def sizes(state: StateDict) -> dict[str, int]:
        """Read the sizes off a state dict."""
        rois = state.size(("embedding_layer.weight", 1))
        positions = state.size(("pos_enc.pe", 1))
        return {"rois": rois, **_transformer_sizes(state, "layers"), "positions": positions}

    def forward(self, fmri: Tensor) -> Tensor:
        """Map (B, R, T) to the embedding of frames (B, T, D)."""
        x = self.pos_enc(self.embedding_layer(fmri.mT))
        for layer in self.layers:
            x = layer(x)
        return x


class Context(nn.Module):
    """A convolution over neighbouring samples of an ROI, with a decoder that predicts the sample.

    Parameters
    ----------
    channels : int
        Channels of the convolution.
    hidden : tuple of int
        The two hidden widths of the decoder.
    """

    def __init__(self, *, channels: int, hidden: tuple[int, int]) -> None:
        super().__init__()
        self.channels = channels
        self.mask_token = nn.Parameter(torch.empty(1))  # stands for every sample held out
        self.conv1d = nn.Conv1d(1, channels, _KERNEL, padding=_KERNEL // 2)
        self.decoder = nn.Sequential(
            nn.Linear(channels, hidden[0]),
            nn.GELU(),
            nn.Linear(hidden[0], hidden[1]),
            nn.GELU(),
            nn.Linear(hidden[1], 1),
        )

    @staticmethod
    def sizes(state: StateDict) -> dict[str, Any]:
        """Read the sizes off a state dict."""
        return {
            "channels": state.size(
                ("conv1d.bias", 0), ("conv1d.weight", 0), ("decoder.0.weight", 1)
            ),
            "hidden": (
                state.size(("decoder.0.bias", 0), ("decoder.0.weight", 0), ("decoder.2.weight", 1)),
                state.size(("decoder.2.bias", 0), ("decoder.2.weight", 0), ("decoder.4.weight", 1)),
            ),
        }

    def forward(self, signal: Tensor) -> Tensor:
        """Map (B, R, T) to the prediction of each sample (B, R, T)."""
        predicted = []
        for rois in signal.split(_ROIS_AT_ONCE, dim=1):
            features = self.conv1d(rois.flatten(0, 1).unsqueeze(1))  # (B * rois, S, T)
            predicted.append(self.decoder(features.mT).squeeze(-1).view_as(rois))
        return torch.cat(predicted, 1)


class CrossAttention(nn.Module):
    """Multi-head attention of the latents to every sample of the window."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))  # query, key, value
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def queries(self, x: Tensor) -> Tensor:
        """Map (Q, D) to a query of each head in the space of tokens, (H, Q, D).

        Their products with tokens are the scaled logits, but for constants over tokens, which the
        softmax does not see.
        """
        to_query, to_key, _ = self._by_head(self.in_proj_weight)
        query = x @ to_query.mT + self._by_head(self.in_proj_bias)[0].unsqueeze(1)  # (H, Q, D / H)
        return query @ to_key * query.shape[-1] ** -0.5

    def outputs(self, attended: Tensor) -> Tensor:
        """Map the mean token that each head attends to, (H, Q, D), to what comes out, (Q, D)."""
        to_value = self._by_head(self.in_proj_weight)[2]
        values = attended @ to_value.mT + self._by_head(self.in_proj_bias)[2].unsqueeze(1)
        return self.out_proj(values.transpose(0, 1).flatten(1))

    def _by_head(self, projection: Tensor) -> Tensor:
        """Return weight or bias of query, key and value: (3, H, D / H, ...)."""
        return projection.unflatten(0, (3, self.heads, -1))


class Perceiver(nn.Module):
    """One query per ROI reads the window through (ROI, time) tokens made of all three encoders.

    Parameters
    ----------
    rois, steps, width, layers, heads, mlp_width : int
        Sizes of the latents; ``layers`` counts the blocks after the cross-attention.
    projection : int
        Width of each of the three parts of a token; the published "input dimension" is three times
        that (192 or 384).
    head_width : int
        Hidden width of the head that gives the series back.
    roi_width, time_width, channels : int
        Widths of what the three encoders give.
    """

    def __init__(
        self,
        *,
        rois: int,
        steps: int,
        width: int,
        layers: int,
        heads: int,
        mlp_width: int,
        projection: int,
        head_width: int,
        roi_width: int,
        time_width: int,
        channels: int,
    ) -> None:
        super().__init__()
        self.rois, self.steps, self.width = rois, steps, width
        self.roi_width, self.time_width, self.channels = roi_width, time_width, channels
        self.latents = nn.Parameter(torch.empty(rois, width))
        self.roi_proj = nn.Linear(roi_width, projection)
        self.time_proj = nn.Linear(time_width, projection)
        self.signal_proj = nn.Linear(channels, projection)
        self.input_proj = nn.Linear(3 * projection, width)
        self.input_ln = nn.LayerNorm(width)
        self.cross_attn = CrossAttention(width, heads)
        self.cross_attn_norm = nn.LayerNorm(width)
        self.latent_transformers = nn.ModuleList(
            Block(width, heads, mlp_width) for _ in range(layers)
        )
        self.head = nn.Sequential(
            nn.Linear(width, head_width), nn.GELU(), nn.Linear(head_width, steps)
        )

    @staticmethod
    def sizes(state: StateDict) -> dict[str, int]:
        """Read the sizes off a state dict."""
        projections = ("roi_proj", "time_proj", "signal_proj")
        return {
            "rois": state.size(("latents", 0)),
            "steps": state.size(("head.2.bias", 0), ("head.2.weight", 0)),
            **_transformer_sizes(state, "latent_transformers"),
            "projection": state.size(
                *((f"{name}.bias", 0) for name in projections),
                *((f"{name}.weight", 0) for name in projections),
            ),
            "head_width": state.size(
                ("head.0.bias", 0), ("head.0.weight", 0), ("head.2.weight", 1)
            ),
            "roi_width": state.size(("roi_proj.weight", 1)),
            "time_width": state.size(("time_proj.weight", 1)),
            "channels": state.size(("signal_proj.weight", 1)),
        }

    def token_parts(
        self, roi: Tensor, time: Tensor, conv: nn.Conv1d
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return what tokens are sums of: a part per ROI, one per frame, and a convolution.

        As published, a token is ``input_ln(input_proj(concat(roi_proj(roi), time_proj(time),
        signal_proj(conv(signal)))))``. Nothing but linear maps follow one another before the norm,
        so that the token of ROI r and frame t is, up to the norm, ``roi_part[r] + time_part[t] +
        kernel @ w``, with ``w = signal[r, t - 2 : t + 3]``, zeros beyond both ends.
        Differentiable.

        Parameters
        ----------
        roi : Tensor
            ROI embeddings (..., R, D).
        time : Tensor
            Embeddings of frames (..., T, D).
        conv : nn.Conv1d
            The convolution of the context module.

        Returns
        -------
        roi_part : Tensor
            (..., R, D), with every bias in it.
        time_part : Tensor
            (..., T, D).
        kernel : Tensor
            (D, 5).
        """
        of_roi, of_time, of_signal = self.input_proj.weight.chunk(3, dim=1)  # (D, P) each
        of_channels = of_signal @ self.signal_proj.weight  # (D, S)
        bias = self.input_proj.bias + of_signal @ self.signal_proj.bias + of_channels @ conv.bias
        roi_part = F.linear(self.roi_proj(roi), of_roi, bias)
        time_part = F.linear(self.time_proj(time), of_time)
        return roi_part, time_part, of_channels @ conv.weight[:, 0]

    def forward(
        self, roi: Tensor, time: Tensor, signal: Tensor, conv: nn.Conv1d, code: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Read one window. Has no gradient, see `attend_to_grid`.

        Parameters
        ----------
        roi : Tensor
            ROI embeddings (R, D).
        time : Tensor
            Embeddings of frames (T, D).
        signal : Tensor
            Samples (R, T).
        conv : nn.Conv1d
            The convolution of the context module.
        code : Tensor
            Positional code of the ROIs (R, D).

        Returns
        -------
        latents : Tensor
            Functional embedding (R, D).
        reconstruction : Tensor
            (R, T).
        over_roi, over_time : Tensor
            Attention (R, R) and (R, T), mean over heads.
        """
        gain, bias, eps = self.input_ln.weight, self.input_ln.bias, self.input_ln.eps
        with one_thread() as threads:  # the attention shares them out better than torch does
            query = self.cross_attn.queries(self.latents + code) * gain
            parts = self.token_parts(roi, time, conv)
            attended, over_roi, over_time = attend_to_grid(query, *parts, signal, eps, threads)
            # The weights sum to 1, so that gain and bias commute with the mean of tokens.
            attended = self.cross_attn.outputs(attended * gain + bias)
            latents = self.cross_attn_norm(attended)[None]
            for block in self.latent_transformers:
                latents = block(latents)
            return latents[0], self.head(latents)[0], over_roi, over_time


class GraphLayer(nn.Module):
    """A post-norm transformer layer whose logits are multiplied by edge weights."""

    def __init__(self, width: int, heads: int, mlp_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_linear = nn.Linear(width, width)
        self.k_linear = nn.Linear(width, width)
        self.v_linear = nn.Linear(width, width)
        self.out_linear = nn.Linear(width, width)
        self.layer_norm1 = nn.LayerNorm(width)
        self.layer_norm2 = nn.LayerNorm(width)
        self.ffn = nn.Sequential(
            nn.Linear(width, mlp_width), nn.ReLU(), nn.Linear(mlp_width, width)
        )

    def forward(self, x: Tensor, edges: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Map (B, R, D) and matrices of edge weights (B, R, R) to (B, R, D) and (B, H, R, R)."""
        query, key, value = (
            linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, R, D / H)
            for linear in (self.q_linear, self.k_linear, self.v_linear)
        )
        logits = query @ key.mT / query.shape[-1] ** 0.5
        weights = signed_softmax(logits * edges[0].unsqueeze(1))
        for more in edges[1:]:
            weights += signed_softmax(logits * more.unsqueeze(1))
        weights = weights / len(edges)
        x = self.layer_norm1(x + self.out_linear((weights @ value).transpose(1, 2).flatten(2)))
        return self.layer_norm2(x + self.ffn(x)), weights


class SignedGraphTransformer(nn.Module):
    """A token per ROI: its row of the structural connectome.

    Parameters
    ----------
    rois, width, layers, heads, mlp_width : int
        Sizes.
    eigenvectors : int
        Eigenvectors that `positional_proj` takes; 0 if the file has no such key.
    learnable : bool
        Whether ROIs have a learnt code. If not, their code is the Laplacian one.
    edge_widths : tuple of int
        Hidden widths of the edge predictor.
    attention : str
        Which edge weights the attention sees: ``first_hop`` the connectome A, ``multi_hop`` also
        its normalised powers, ``diffusion`` a truncated diffusion kernel.
    max_hops : int
        Powers of A for ``multi_hop``.
    diffusion_theta : float
        Decay per step of ``diffusion``.
    """

    def __init__(
        self,
        *,
        rois: int,
        width: int,
        layers: int,
        heads: int,
        mlp_width: int,
        eigenvectors: int,
        learnable: bool,
        edge_widths: tuple[int, int],
        attention: str = "first_hop",
        max_hops: int = 2,
        diffusion_theta: float = 0.1,
    ) -> None:
        super().__init__()
        self.rois, self.width, self.eigenvectors = rois, width, eigenvectors
        self.attention, self.max_hops, self.theta = attention, max_hops, diffusion_theta
        self.input_proj = nn.Linear(rois, width)
        self.pos_embed = nn.Parameter(torch.empty(rois, width)) if learnable else None
        # The published code makes this layer in either case; with a learnt code it has no effect.
        self.positional_proj = nn.Linear(eigenvectors, width) if eigenvectors else None
        self.layers = nn.ModuleList(GraphLayer(width, heads, mlp_width) for _ in range(layers))
        # Part of the pretraining objective (masked edges), not of the embedding.
        self.edge_weight_predictor = nn.Sequential(
            nn.Linear(2 * width, edge_widths[0]),
            nn.ReLU(),
            nn.Linear(edge_widths[0], edge_widths[1]),
            nn.ReLU(),
            nn.Linear(edge_widths[1], 1),
        )

    @staticmethod
    def sizes(state: StateDict) -> dict[str, Any]:
        """Read the sizes off a state dict."""
        edge = "edge_weight_predictor"
        learnable = "pos_embed" in state
        laplacian = not learnable or any(
            key.startswith("positional_proj.") for key in state.tensors
        )
        return {
            "rois": state.size(("input_proj.weight", 1)),
            "width": state.size(("layers.*.layer_norm*", 0), ("input_proj.bias", 0)),
            "layers": state.count("layers"),
            "mlp_width": state.size(("layers.*.ffn.0.*", 0), ("layers.*.ffn.2.weight", 1)),
            "eigenvectors": state.size(("positional_proj.weight", 1)) if laplacian else 0,
            "learnable": learnable,
            "edge_widths": (
                state.size((f"{edge}.0.bias", 0), (f"{edge}.0.weight", 0), (f"{edge}.2.weight", 1)),
                state.size((f"{edge}.2.bias", 0), (f"{edge}.2.weight", 0), (f"{edge}.4.weight", 1)),
            ),
        }

    def edges(self, sc: Tensor) -> list[Tensor]:
        """Return the matrices of edge weights, each (B, R, R), that the attention averages over."""
        if self.attention == "multi_hop":
            hops = [sc]
            for _ in range(1, self.max_hops):
                power = hops[-1] @ sc
                hops.append(power / (power.norm(dim=(1, 2), keepdim=True) + 1e-8))
            return hops
        if self.attention == "diffusion":
            scale = 1 / (sc.abs().sum(-1) + 1e-10).sqrt()
            step = scale.unsqueeze(2) * sc * scale.unsqueeze(1)
            kernel, power = torch.eye(self.rois, device=sc.device), step
            for k in range(1, _DIFFUSION_STEPS + 1):
                kernel = kernel + self.theta**k * power
                power = power @ step
            return [kernel]
        return [sc]

    def forward(self, sc: Tensor) -> tuple[Tensor, Tensor]:
        """Map connectomes (B, R, R) to embeddings (B, R, D) and the last attention (B, H, R, R)."""
        if self.pos_embed is not None:
            code = self.pos_embed
        else:
            code = self.positional_proj(laplacian_code(sc, self.eigenvectors))
        x = self.input_proj(sc) + code
        edges = self.edges(sc)
        for layer in self.layers:
            x, weights = layer(x, edges)
        return x, weights


def laplacian_code(sc: Tensor, eigenvectors: int) -> Tensor:
    """Return the last eigenvectors of the Laplacian of similarity between connectivity profiles.

    As published: similarity is 1 - angle / pi between rows of the connectome, the Laplacian is the
    symmetrically normalised one, and the eigenvectors are those of the largest eigenvalues. The
    published code leaves the sign of each to chance; here its largest entry is positive, and the
    decomposition is in double precision, so that every machine gives the same code.

    Parameters
    ----------
    sc : Tensor
        (B, R, R).
    eigenvectors : int
        How many, in order of falling eigenvalue.

    Returns
    -------
    Tensor
        (B, R, eigenvectors).
    """
    sc = sc.double()
    profiles = sc / (sc.norm(dim=-1, keepdim=True) + 1e-8)
    similarity = 1 - torch.arccos((profiles @ profiles.mT).clamp(-1, 1)) / torch.pi
    scale = (similarity.sum(-1) + 1e-10).rsqrt()
    normalised = scale.unsqueeze(2) * similarity * scale.unsqueeze(1)
    laplacian = torch.eye(sc.shape[-1], dtype=sc.dtype, device=sc.device) - normalised
    vectors = torch.linalg.eigh((laplacian + laplacian.mT) / 2).eigenvectors
    vectors = vectors.flip(-1)[..., :eigenvectors]
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    return (vectors * largest.sign()).float()


class Gate(nn.Module):
    """Mixes the functional and the structural embedding, per ROI and dimension."""

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.width = width
        self.gate_proj = nn.Linear(2 * width, width)

    @staticmethod
    def sizes(state: StateDict) -> dict[str, int]:
        """Read the sizes off a state dict."""
        return {"width": state.size(("gate_proj.bias", 0), ("gate_proj.weight", 0))}

    def forward(self, functional: Tensor, structural: Tensor) -> tuple[Tensor, Tensor]:
        """Map two embeddings (B, R, D) to the fused one and the gate."""
        gate = torch.sigmoid(self.gate_proj(torch.cat([functional, structural], -1)))
        return gate * functional + (1 - gate) * structural, gate


BRANCHES: dict[str, type[nn.Module]] = {
    "spatial": SpatialTransformer,
    "temporal": TemporalTransformer,
    "context": Context,
    "perceiver": Perceiver,
    "structural": SignedGraphTransformer,
    "gate": Gate,
}


class BrainSymphony(nn.Module):
    """The network, made of the branches that there are weights for.

    Parameters
    ----------
    branches : mapping of str to nn.Module
        Some of `BRANCHES`, that fit each other. `from_state_dicts` makes them from weights.
    """

    def __init__(self, branches: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name in BRANCHES:
            setattr(self, name, branches.get(name))
        _check_fit(self)

    @classmethod
    def from_state_dicts(
        cls,
        *,
        spatial: Mapping[str, Any] | None = None,
        temporal: Mapping[str, Any] | None = None,
        context: Mapping[str, Any] | None = None,
        perceiver: Mapping[str, Any] | None = None,
        structural: Mapping[str, Any] | None = None,
        gate: Mapping[str, Any] | None = None,
        spatial_heads: int = 4,
        temporal_heads: int = 4,
        perceiver_heads: int = 2,
        structural_heads: int = 4,
        attention: str = "first_hop",
        max_hops: int = 2,
        diffusion_theta: float = 0.1,
    ) -> BrainSymphony:
        """Make the network from weights; any branch may be left out.

        All sizes are read off the weights, except what cannot be: the numbers of heads and the
        kind of structural attention.

        Parameters
        ----------
        spatial, temporal, context, perceiver, structural, gate : mapping, optional
            State dict of each branch, of torch tensors or numpy arrays. They are copied.
        spatial_heads, temporal_heads, perceiver_heads, structural_heads : int
            Numbers of attention heads.
        attention : str
            Structural attention: ``first_hop``, ``multi_hop`` or ``diffusion``.
        max_hops : int
            Powers of the connectome for ``multi_hop``.
        diffusion_theta : float
            Decay per step of ``diffusion``.

        Returns
        -------
        BrainSymphony
            In evaluation mode, with parameters that ask for no gradients.

        Raises
        ------
        BadDataError
            For a key that is missing, unexpected or of a wrong shape, a value that is not finite, a
            number of heads that does not divide the width, and branches that do not fit each
            other. The message names branch and key.
        """
        given = {
            "spatial": (spatial, {"heads": spatial_heads}),
            "temporal": (temporal, {"heads": temporal_heads}),
            "context": (context, {}),
            "perceiver": (perceiver, {"heads": perceiver_heads}),
            "structural": (
                structural,
                {
                    "heads": structural_heads,
                    "attention": attention,
                    "max_hops": max_hops,
                    "diffusion_theta": diffusion_theta,
                },
            ),
            "gate": (gate, {}),
        }
        if all(values is None for values, _ in given.values()):
            raise BadDataError("no state dict was given, so there is no network to make")
        _check_attention(attention, max_hops, diffusion_theta)
        branches = {
            name: _make_branch(name, StateDict(name, values), options)
            for name, (values, options) in given.items()
            if values is not None
        }
        return cls(branches).requires_grad_(False).eval()

    @property
    def rois(self) -> int | None:
        """Number of ROIs, where the weights fix it."""
        owners = (self.perceiver, self.temporal, self.structural)
        return next((branch.rois for branch in owners if branch is not None), None)

    @property
    def steps(self) -> int | None:
        """Number of frames of a window, where the weights fix it."""
        owners = (self.perceiver, self.spatial)
        return next((branch.steps for branch in owners if branch is not None), None)

    @property
    def _is_functional(self) -> bool:
        """Whether all four branches are there that a functional embedding takes."""
        return None not in (self.spatial, self.temporal, self.context, self.perceiver)

    def forward(
        self,
        *,
        fmri: Tensor | np.ndarray | None = None,
        sc: Tensor | np.ndarray | None = None,
        gradients: Tensor | np.ndarray | None = None,
        roi_mask: Tensor | np.ndarray | None = None,
        attention_maps: bool = True,
        context_prediction: bool = True,
    ) -> BrainSymphonyOutput:
        """Run every branch that has its input.

        Parameters
        ----------
        fmri : array, optional
            Windows (B, R, T), scaled per ROI. They go through one at a time, on a processor one per
            thread, so that memory does not grow with their number.
        sc : array, optional
            Structural connectomes (B, R, R), of the same participants. They go through like
            windows.
        gradients : array, optional
            Gradient maps (B, R, 10), for weights whose positional code is made of them.
        roi_mask : array of bool, optional
            (B, R), true for ROIs that are held out of the input: the transformers see zeros and
            the context module sees its mask token, whatever ``fmri`` holds there (it may be NaN).
        attention_maps : bool
            False leaves out ``attention_roi``, ``attention_time`` and ``structural_attention``.
        context_prediction : bool
            False leaves out ``context_prediction``, on which nothing else depends; it is faster.

        Returns
        -------
        BrainSymphonyOutput

        Raises
        ------
        BadDataError
            For inputs of a wrong shape or type or with values that are not finite, gradients that
            are needed but missing, and when no branch takes what was given.
        """
        results: dict[str, Tensor | None] = {}
        if fmri is not None:
            fmri, held_out = self._check_fmri(fmri, roi_mask)
            gradients = self._check_gradients(gradients, fmri)
            left_out = set() if attention_maps else {"attention_roi", "attention_time"}
            left_out |= set() if context_prediction else {"context_prediction"}
            results |= self._functional(fmri, held_out, gradients, left_out)
        elif roi_mask is not None:
            raise BadDataError("roi_mask: there is no fmri to hold ROIs out of")
        if sc is not None:
            sc = self._check_sc(sc, fmri)
            if self.structural is not None:
                results |= self._structural(sc, attention_maps)
        functional = results.get("functional_embedding")
        structural = results.get("structural_embedding")
        if self.gate is not None and functional is not None and structural is not None:
            results["fused_embedding"], results["gate"] = self.gate(functional, structural)
        if not results:
            branches = ", ".join(name for name in BRANCHES if getattr(self, name) is not None)
            raise BadDataError(
                f"nothing to compute: the network has {branches}, which take other input",
                hint="spatial, temporal, context and perceiver take fmri; structural takes sc",
            )
        return BrainSymphonyOutput(**results)

    def _functional(
        self, fmri: Tensor, held_out: Tensor, gradients: Tensor | None, left_out: set[str]
    ) -> dict[str, Tensor]:
        """Run the fMRI branches over (B, R, T), a window at a time."""

        def run(index: int) -> dict[str, Tensor]:
            return self._window(
                fmri[[index]],
                held_out[[index]].unsqueeze(-1),
                None if gradients is None else gradients[[index]],
                left_out,
            )

        in_turn = in_threads if fmri.device.type == "cpu" else map
        windows = list(in_turn(run, range(len(fmri))))
        return {name: torch.cat([window[name] for window in windows]) for name in windows[0]}

    def _window(
        self, fmri: Tensor, held_out: Tensor, gradients: Tensor | None, left_out: set[str]
    ) -> dict[str, Tensor]:
        """Run the fMRI branches over one window (1, R, T); ``held_out`` is (1, R, 1)."""
        calls: dict[str, Callable[[], Any]] = {}
        blanked = torch.where(held_out, 0, fmri)
        if self.spatial is not None:
            calls["spatial_embedding"] = partial(self.spatial, blanked, gradients)
        if self.context is not None:
            signal = torch.where(held_out, self.context.mask_token, fmri)
            if "context_prediction" not in left_out:
                calls["context_prediction"] = partial(self.context, signal)
        if self.temporal is not None:
            calls["temporal_embedding"] = partial(self.temporal, blanked)
        in_turn = in_threads if fmri.device.type == "cpu" else map
        results = dict(zip(calls, in_turn(call, list(calls.values())), strict=True))
        if self.spatial is not None:
            results["spatial_embedding"], code = results["spatial_embedding"]
        if self._is_functional:
            read = self.perceiver(
                results["spatial_embedding"][0],
                results["temporal_embedding"][0],
                signal[0],
                self.context.conv1d,
                code[0],
            )
            names = ("functional_embedding", "reconstruction", "attention_roi", "attention_time")
            results |= {
                name: value[None]
                for name, value in zip(names, read, strict=True)
                if name not in left_out
            }
        return results

    def _structural(self, sc: Tensor, attention_maps: bool) -> dict[str, Tensor | None]:
        """Run the structural branch over connectomes (B, R, R), a participant at a time."""

        def run(one: Tensor) -> tuple[Tensor, Tensor | None]:
            embedding, weights = self.structural(one[None])
            return embedding[0], weights[0].mean(0) if attention_maps else None

        in_turn = in_threads if sc.device.type == "cpu" else map
        embeddings, weights = zip(*in_turn(run, sc), strict=True)
        return {
            "structural_embedding": torch.stack(embeddings),
            "structural_attention": torch.stack(weights) if attention_maps else None,
        }

    def _check_fmri(self, fmri: Any, roi_mask: Any) -> tuple[Tensor, Tensor]:
        """Return windows and mask as tensors on the network's device."""
        fmri = self._as_input("fmri", fmri, (None, self.rois, self.steps))
        batch, rois, steps = fmri.shape
        if self.spatial is not None and self.spatial.positions and rois > self.spatial.positions:
            raise BadDataError(
                f"fmri: {rois} ROIs, but the positional code has room for {self.spatial.positions}"
            )
        if self.temporal is not None and steps > self.temporal.positions:
            raise BadDataError(
                f"fmri: {steps} frames, but the positional code has room for "
                f"{self.temporal.positions}"
            )
        if roi_mask is None:
            held_out = torch.zeros((batch, rois), dtype=torch.bool, device=fmri.device)
        else:
            held_out = torch.as_tensor(roi_mask, device=fmri.device)
            if held_out.dtype != torch.bool or held_out.shape != (batch, rois):
                raise BadDataError(
                    f"roi_mask: shape {tuple(held_out.shape)}, type {held_out.dtype}, but bool "
                    f"values of shape {(batch, rois)} are needed"
                )
        if not torch.isfinite(fmri[~held_out]).all():
            raise BadDataError(
                "fmri: values that are not finite",
                hint="hold ROIs that were not measured out of the input with roi_mask",
            )
        return fmri, held_out

    def _check_gradients(self, gradients: Any, fmri: Tensor) -> Tensor | None:
        """Return the gradient maps, if the positional code takes them."""
        if self.spatial is None or not self.spatial.gradients:
            return None
        if gradients is None:
            raise BadDataError("gradients: missing, but the positional code is made of them")
        gradients = self._as_input(
            "gradients", gradients, (*fmri.shape[:2], self.spatial.gradients)
        )
        if not torch.isfinite(gradients).all():
            raise BadDataError("gradients: values that are not finite")
        return gradients

    def _check_sc(self, sc: Any, fmri: Tensor | None) -> Tensor:
        """Return the connectomes, which have to be of the same participants as the windows."""
        sc = self._as_input("sc", sc, (None if fmri is None else len(fmri), self.rois, self.rois))
        if sc.shape[1] != sc.shape[2]:
            raise BadDataError(f"sc: shape {tuple(sc.shape)} is not square")
        if not torch.isfinite(sc).all():
            raise BadDataError("sc: values that are not finite")
        return sc

    def _as_input(self, name: str, value: Any, shape: tuple[int | None, ...]) -> Tensor:
        """Return an input as float32 on the network's device, checked; None stands for any size."""
        wanted = "(" + ", ".join("any" if size is None else str(size) for size in shape) + ")"
        if not isinstance(value, Tensor | np.ndarray):
            raise BadDataError(f"{name}: {type(value).__name__} instead of an array {wanted}")
        if value.ndim != len(shape) or not all(
            size in (None, given) for size, given in zip(shape, value.shape, strict=True)
        ):
            raise BadDataError(f"{name}: shape {tuple(value.shape)} instead of {wanted}")
        if 0 in value.shape:
            raise BadDataError(f"{name}: shape {tuple(value.shape)} is empty")
        floating = (
            value.dtype.is_floating_point
            if isinstance(value, Tensor)
            else (value.dtype.kind == "f")
        )
        if not floating:
            raise BadDataError(f"{name}: values of type {value.dtype} instead of floating point")
        if isinstance(value, np.ndarray):
            with np.errstate(over="ignore"):  # what overflows is refused as not finite
                value = torch.from_numpy(np.array(value, dtype=np.float32, order="C"))
        return value.to(next(self.parameters()).device, torch.float32)


def _transformer_sizes(state: StateDict, name: str) -> dict[str, int]:
    """Read the sizes that all stacks of `Block` share."""
    return {
        "width": state.size((f"{name}.*.norm*", 0), (f"{name}.*.attn.fc_out.bias", 0)),
        "layers": state.count(name),
        "mlp_width": state.size((f"{name}.*.mlp.0.*", 0), (f"{name}.*.mlp.2.weight", 1)),
    }


def _make_branch(name: str, state: StateDict, options: Mapping[str, Any]) -> nn.Module:
    """Make one branch from its weights, strictly."""
    sizes = BRANCHES[name].sizes(state)
    heads = options.get("heads", 1)
    if isinstance(heads, bool) or not isinstance(heads, int) or heads < 1:
        raise BadDataError(f"{name}: {name}_heads is {heads!r}, but must be a whole number above 0")
    if sizes.get("width", heads) % heads:
        raise BadDataError(
            f"{name}: {name}_heads is {heads}, which does not divide the width {sizes['width']}"
        )
    with torch.device("meta"):  # nothing is allocated or drawn: the values come from the state dict
        module = BRANCHES[name](**sizes, **options)
    state.load_into(module)
    return module


def _check_attention(attention: str, max_hops: int, diffusion_theta: float) -> None:
    if attention not in ATTENTIONS:
        raise BadDataError(f"structural attention {attention!r} is none of {', '.join(ATTENTIONS)}")
    if isinstance(max_hops, bool) or not isinstance(max_hops, int) or max_hops < 1:
        raise BadDataError(f"max_hops is {max_hops!r}, but must be a whole number above 0")
    if not np.isfinite(diffusion_theta):
        raise BadDataError(f"diffusion_theta is {diffusion_theta!r}, but must be finite")


#: Sizes on which two branches have to agree: what, and for each the branch, attribute and key.
_AGREEMENTS = (
    ("ROIs", ("temporal", "rois", "embedding_layer.weight"), ("perceiver", "rois", "latents")),
    ("ROIs", ("structural", "rois", "input_proj.weight"), ("perceiver", "rois", "latents")),
    (
        "ROIs",
        ("structural", "rois", "input_proj.weight"),
        ("temporal", "rois", "embedding_layer.weight"),
    ),
    (
        "frames",
        ("spatial", "steps", "embedding_layer.weight"),
        ("perceiver", "steps", "head.2.weight"),
    ),
    (
        "dimensions",
        ("spatial", "width", "embedding_layer.weight"),
        ("perceiver", "roi_width", "roi_proj.weight"),
    ),
    (
        "dimensions",
        ("spatial", "width", "embedding_layer.weight"),
        ("perceiver", "width", "latents"),
    ),
    (
        "dimensions",
        ("temporal", "width", "embedding_layer.weight"),
        ("perceiver", "time_width", "time_proj.weight"),
    ),
    (
        "channels",
        ("context", "channels", "conv1d.weight"),
        ("perceiver", "channels", "signal_proj.weight"),
    ),
    ("dimensions", ("perceiver", "width", "latents"), ("gate", "width", "gate_proj.weight")),
    (
        "dimensions",
        ("structural", "width", "input_proj.weight"),
        ("gate", "width", "gate_proj.weight"),
    ),
)


def _check_fit(model: BrainSymphony) -> None:
    """Refuse branches of different networks, naming the keys that disagree."""
    for what, (first, attribute, key), (second, other_attribute, other_key) in _AGREEMENTS:
        one, two = getattr(model, first), getattr(model, second)
        if one is None or two is None:
            continue
        here, there = getattr(one, attribute), getattr(two, other_attribute)
        if here != there:
            raise BadDataError(
                f"{first}: {key} is made for {here} {what}, but {second}: {other_key} for {there}",
                hint="the weights of all branches have to come from one release",
            )
    _check_room("spatial", model.spatial, model.rois)
    _check_room("temporal", model.temporal, model.steps)


def _check_room(name: str, branch: nn.Module | None, needed: int | None) -> None:
    """Refuse a positional code that is too short for the other branches."""
    room = branch.positions if branch is not None else None
    if room and needed and room < needed:
        raise BadDataError(f"{name}: pos_enc.pe has room for {room} positions of {needed}")

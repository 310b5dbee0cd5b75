"""Inputs and parameters of the parity cases, made again from their description."""

import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

DATA = Path(__file__).parents[1] / "data"
ROIS, STEPS, WIDTH, LAYERS, MLP = 450, 200, 128, 6, 512
#: The parameters of a module that are drawn with unit variance, whatever their shape.
CODES = {"pe", "latents", "pos_embed"}


def make_inputs(seed: int, batch: int, signed: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return fMRI windows (B, 450, 200), connectomes (B, 450, 450) and gradients (B, 450, 10)."""
    draw = np.random.default_rng(seed)
    white = draw.standard_normal((batch, ROIS, STEPS))
    walk = 0.15 * np.cumsum(white, axis=2)
    fmri = walk - walk.mean(axis=2, keepdims=True) + 0.5 * white

    weight = _symmetric(np.exp(draw.normal(-2.5, 1.6, (batch, ROIS, ROIS))))
    is_edge = (_symmetric(draw.random((batch, ROIS, ROIS))) > 0.55) & ~np.eye(ROIS, dtype=bool)
    sc = np.zeros_like(weight)
    sc[is_edge] = np.log10(weight[is_edge] if signed else 1 + weight[is_edge])

    gradients = draw.standard_normal((batch, ROIS, 10))
    return fmri.astype(np.float32), sc.astype(np.float32), gradients.astype(np.float32)


def _symmetric(stack: np.ndarray) -> np.ndarray:
    return (stack + stack.swapaxes(1, 2)) / 2


def make_state(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Return a state dict, each parameter drawn from the seed and the checksum of its name."""
    return {name: _parameter(name, shape, seed) for name, shape in shapes.items()}


def _parameter(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    value = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape)
    value = np.asarray(value, np.float32)
    last = name.rpartition(".")[2]
    if value.ndim >= 2:
        fan_in = np.prod(shape[1:])
        return value if last in CODES else value / np.sqrt(fan_in, dtype=np.float32)
    around = 1 if last == "weight" else 0  # gains of layer norms lie around 1
    return np.asarray(around + 0.1 * value, np.float32)


def sinusoid(positions: int = 5000, width: int = WIDTH) -> np.ndarray:
    """Return the positional code of frames (1, positions, width), after Vaswani et al. 2017."""
    rate = torch.exp(torch.arange(0, width, 2).float() * (-np.log(10000.0) / width))
    angle = torch.arange(positions).float()[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1).numpy()[None]


def linear(name: str, outputs: int, inputs: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield names and shapes of a linear layer."""
    yield f"{name}.weight", (outputs, inputs)
    yield f"{name}.bias", (outputs,)


def norm(name: str, width: int = WIDTH) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield names and shapes of a layer norm."""
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def blocks(name: str, layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield names and shapes of a stack of transformer blocks."""
    for layer in range(layers):
        at = f"{name}.{layer}"
        yield f"{at}.attn.qkv.weight", (3 * WIDTH, WIDTH)
        yield from linear(f"{at}.attn.fc_out", WIDTH, WIDTH)
        yield from norm(f"{at}.norm1")
        yield from norm(f"{at}.norm2")
        yield from linear(f"{at}.mlp.0", MLP, WIDTH)
        yield from linear(f"{at}.mlp.2", WIDTH, MLP)


def spatial_shapes(code: str = "learnable") -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the spatial transformer."""
    shapes = dict(blocks("layers", LAYERS)) | dict(linear("embedding_layer", WIDTH, STEPS))
    shapes |= {"pos_enc.alpha": ()} | dict(norm("pos_enc.ln"))
    if code == "learnable":
        return shapes | {"pos_enc.pe": (1, 500, WIDTH)}
    return shapes | dict(linear("pos_enc.proj", WIDTH, 10))


def temporal_shapes() -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the temporal transformer, without its fixed code."""
    return dict(blocks("layers", LAYERS)) | dict(linear("embedding_layer", WIDTH, ROIS))


def context_shapes() -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the context module."""
    shapes = {"mask_token": (1,), "conv1d.weight": (64, 1, 5), "conv1d.bias": (64,)}
    for index, (inputs, outputs) in enumerate([(64, 32), (32, 8), (8, 1)]):
        shapes |= dict(linear(f"decoder.{2 * index}", outputs, inputs))
    return shapes


def perceiver_shapes(input_dim: int, layers: int) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the Perceiver."""
    part = input_dim // 3
    shapes = {"latents": (ROIS, WIDTH)} | dict(linear("input_proj", WIDTH, input_dim))
    shapes |= dict(norm("input_ln")) | dict(norm("cross_attn_norm"))
    shapes |= {"cross_attn.in_proj_weight": (3 * WIDTH, WIDTH)}
    shapes |= {"cross_attn.in_proj_bias": (3 * WIDTH,)}
    shapes |= dict(linear("cross_attn.out_proj", WIDTH, WIDTH))
    shapes |= dict(blocks("latent_transformers", layers))
    shapes |= dict(linear("head.0", 2 * WIDTH, WIDTH)) | dict(linear("head.2", STEPS, 2 * WIDTH))
    for name, width in (("roi_proj", WIDTH), ("time_proj", WIDTH), ("signal_proj", 64)):
        shapes |= dict(linear(name, part, width))
    return shapes


def structural_shapes(code: str = "learnable") -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the signed graph transformer."""
    shapes = dict(linear("input_proj", WIDTH, ROIS))
    if code == "learnable":
        shapes |= {"pos_embed": (ROIS, WIDTH)}
    else:
        shapes |= dict(linear("positional_proj", WIDTH, 30))
    for layer in range(LAYERS):
        at = f"layers.{layer}"
        for name in ("q_linear", "k_linear", "v_linear", "out_linear"):
            shapes |= dict(linear(f"{at}.{name}", WIDTH, WIDTH))
        shapes |= dict(norm(f"{at}.layer_norm1")) | dict(norm(f"{at}.layer_norm2"))
        shapes |= dict(linear(f"{at}.ffn.0", MLP, WIDTH)) | dict(linear(f"{at}.ffn.2", WIDTH, MLP))
    for index, (inputs, outputs) in enumerate([(256, 512), (512, 128), (128, 1)]):
        shapes |= dict(linear(f"edge_weight_predictor.{2 * index}", outputs, inputs))
    return shapes


def gate_shapes() -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the fusion gate."""
    return dict(linear("gate_proj", WIDTH, 2 * WIDTH))


def official(file: str) -> dict[str, torch.Tensor]:
    """Return one of the two official state dicts that are here."""
    return torch.load(DATA / "weights" / file, map_location="cpu", weights_only=True)


def make_states(
    seed: int,
    *,
    official_context_and_perceiver: bool = True,
    perceiver_input_dim: int = 192,
    perceiver_blocks: int = 1,
    spatial_pos_enc: str = "learnable",
    structural_pos_enc: str = "learnable",
) -> dict[str, dict]:
    """Return the state dicts of all branches of a parity case."""
    if official_context_and_perceiver:
        context, perceiver = official("context.pth"), official("fusion.pth")
    else:
        context = make_state(context_shapes(), seed)
        perceiver = make_state(perceiver_shapes(perceiver_input_dim, perceiver_blocks), seed)
    return {
        "spatial": make_state(spatial_shapes(spatial_pos_enc), seed),
        "temporal": make_state(temporal_shapes(), seed) | {"pos_enc.pe": sinusoid()},
        "context": context,
        "perceiver": perceiver,
        "structural": make_state(structural_shapes(structural_pos_enc), seed + 1),
        "gate": make_state(gate_shapes(), seed + 2),
    }

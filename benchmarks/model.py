"""The network's attention against the plain formulation: time, peak memory, difference.

    python benchmarks/model.py [--repeats 7] [--threads 2]

takes one window through context convolution and Perceiver, with the released weights, in three
ways: ``plain`` as published, with all keys, values and weights in memory; ``sdpa`` with torch's
fused attention, which gives no attention maps; ``ours``. Then a batch of connectomes goes through
the structural branch, ``published``, in a loop over participants, and ``ours``. Peak memory is that
of a process that does nothing else, above one that only builds the network (``floor``). Times are
medians of calls in turn in one process, and ratios are medians over those turns, so that a busy
machine troubles both alike. At last, where the time of the whole functional forward goes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from measure import measure, timed

if TYPE_CHECKING:
    from torch import Tensor

    from bsym_bids.model import BrainSymphony

HERE = Path(__file__)
# What the parity tests use: the two official weight files, drawn weights elsewhere, drawn inputs.
sys.path.insert(0, str(HERE.parents[1] / "tests" / "unit"))
FUNCTIONAL = ("plain", "sdpa", "ours")
STRUCTURAL = ("published", "ours-structural")
FORWARD = ("forward-1", "forward-8")
OUTPUTS = ("latents", "reconstruction", "attention over ROIs", "attention over time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    tasks = ("make", "floor", *FUNCTIONAL, *STRUCTURAL, *FORWARD)
    parser.add_argument("--task", choices=tasks, help=argparse.SUPPRESS)
    parser.add_argument("--inputs", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task is not None:
        run_task(arguments.task, arguments.inputs, arguments.threads)
        return
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs.npz"
        # Before this process takes memory: Linux counts a parent's towards its children's peak.
        measure_memory(inputs, arguments.threads)
        measure_time(inputs, arguments.repeats, arguments.threads)


def measure_memory(inputs: Path, threads: int) -> None:
    """Run every way in a process of its own and print what it needs above the floor."""

    def peak(task: str) -> float:
        options = ("--inputs", str(inputs), "--threads", str(threads))
        return measure(HERE, task, *options).megabytes

    peak("make")
    floor = peak("floor")
    above = {task: peak(task) - floor for task in (*FUNCTIONAL, *STRUCTURAL, *FORWARD)}
    print(f"peak memory above {floor:.0f} MB of a process that only builds the network, in MB")
    for task, megabytes in above.items():
        print(f"  {task:16} {megabytes:8.1f}")
    print(f"  plain / ours: {above['plain'] / above['ours']:.1f}", end="; ")
    print(f"sdpa / ours: {above['sdpa'] / above['ours']:.1f}", end="; ")
    print(f"published / ours (structural): {above['published'] / above['ours-structural']:.1f}")


def measure_time(inputs: Path, repeats: int, threads: int) -> None:
    """Call every way in turn, and print times, ratios and differences."""
    import torch

    torch.set_num_threads(threads)
    with torch.inference_mode():
        model, given = load(inputs)
        ways = {task: way(task, model, given) for task in (*FUNCTIONAL, *STRUCTURAL)}
        parts = forward_parts(model, given)
        seconds = in_turn(ways | parts, repeats)
        print(f"time in ms, {threads} threads, median of {repeats}")
        for task in ways:
            print(f"  {task:16} {1e3 * statistics.median(seconds[task]):8.1f}")
        for slow, fast in (("plain", "ours"), ("sdpa", "ours"), STRUCTURAL):
            print(f"  {slow} / {fast}: {ratio(seconds[slow], seconds[fast])}")
        print("largest differences between plain and ours")
        for name, one, other in zip(OUTPUTS, ways["plain"](), ways["ours"](), strict=True):
            largest = one.abs().max()
            print(f"  {name:20} {(one - other).abs().max():.1e} (values up to {largest:.2g})")
        difference = (ways["published"]() - ways["ours-structural"]()).abs().max()
        print(f"  {'structural embedding':20} {difference:.1e}")
        print("where the time of a functional forward goes, in ms")
        for name in parts:
            print(f"  {name:48} {1e3 * statistics.median(seconds[name]):8.1f}")


def in_turn(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Return the seconds of so many calls of each, after one that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, call in ways.items():
            started = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(slow: list[float], fast: list[float]) -> str:
    ratios = [one / other for one, other in zip(slow, fast, strict=True)]
    return f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"


def run_task(task: str, inputs: Path, threads: int) -> None:
    """Do one thing twice; the second time counts."""
    import torch

    torch.set_num_threads(threads)
    with torch.inference_mode():
        if task == "make":
            timed(lambda: make_inputs(inputs))
            return
        call = way(task, *load(inputs))
        call()
        timed(call)


def make_inputs(path: Path) -> None:
    """Write windows, connectomes and what the transformers make of the first window."""
    import model_recipe
    import torch

    fmri, sc, _ = model_recipe.make_inputs(0, 8, False)
    model = build()
    first = torch.from_numpy(fmri[:1])
    roi, code = model.spatial(first)
    np.savez(path, fmri=fmri, sc=sc, roi=roi[0], time=model.temporal(first)[0], code=code[0])


def build() -> BrainSymphony:
    import model_recipe

    from bsym_bids.model import BrainSymphony

    return BrainSymphony.from_state_dicts(**model_recipe.make_states(0))


def load(inputs: Path) -> tuple[BrainSymphony, dict[str, Tensor]]:
    import torch

    with np.load(inputs) as stored:
        return build(), {name: torch.from_numpy(array) for name, array in stored.items()}


def way(task: str, model: BrainSymphony, given: dict[str, Tensor]) -> Callable[[], object]:
    """Return the call that a task stands for."""
    window = given["roi"], given["time"], given["fmri"][0]
    return {
        "floor": lambda: None,
        "plain": lambda: plain(model, *window, given["code"]),
        "sdpa": lambda: fused(model, *window, given["code"]),
        "ours": lambda: model.perceiver(*window, model.context.conv1d, given["code"]),
        "published": lambda: published_structural(model, given["sc"]),
        "ours-structural": lambda: model(sc=given["sc"], attention_maps=False).structural_embedding,
        "forward-1": lambda: model(fmri=given["fmri"][:1], context_prediction=False),
        "forward-8": lambda: model(fmri=given["fmri"], context_prediction=False),
    }[task]


def forward_parts(
    model: BrainSymphony, given: dict[str, Tensor]
) -> dict[str, Callable[[], object]]:
    one = given["fmri"][:1]
    return {
        "spatial transformer": lambda: model.spatial(one),
        "temporal transformer": lambda: model.temporal(one),
        "Perceiver": way("ours", model, given),
        "context prediction": lambda: model.context(one),
        "all, one window": lambda: model(fmri=one),
        "all but the context prediction, one window": way("forward-1", model, given),
        "all but the context prediction, eight windows": way("forward-8", model, given),
    }


# --- the plain formulations -----------------------------------------------------------------------


def tokens(model: BrainSymphony, roi: Tensor, time: Tensor, signal: Tensor) -> Tensor:
    """Return all tokens (R * T, D), each projected from a concatenation of three parts."""
    import torch

    rois, steps = signal.shape
    features = model.context.conv1d(signal.unsqueeze(1)).mT  # (R, T, S)
    parts = (
        model.perceiver.roi_proj(roi).unsqueeze(1).expand(-1, steps, -1),
        model.perceiver.time_proj(time).expand(rois, -1, -1),
        model.perceiver.signal_proj(features),
    )
    joined = torch.cat(parts, -1).flatten(0, 1)
    return model.perceiver.input_ln(model.perceiver.input_proj(joined))


def plain(
    model: BrainSymphony, roi: Tensor, time: Tensor, signal: Tensor, code: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Read a window with `torch.nn.MultiheadAttention`, which gives the weights, as published."""
    import torch

    owner = model.perceiver.cross_attn
    with torch.device("meta"):
        attention = torch.nn.MultiheadAttention(
            model.perceiver.width, owner.heads, batch_first=True
        )
    attention.load_state_dict(owner.state_dict(), assign=True)
    keys = tokens(model, roi, time, signal)[None]
    query = (model.perceiver.latents + code)[None]
    attended, weights = attention.eval()(query, keys, keys, need_weights=True)
    on_grid = weights[0].unflatten(-1, signal.shape)
    return *latents(model, attended), on_grid.sum(-1), on_grid.sum(-2)


def fused(
    model: BrainSymphony, roi: Tensor, time: Tensor, signal: Tensor, code: Tensor
) -> tuple[Tensor, Tensor]:
    """Read a window with `scaled_dot_product_attention`, which gives no weights."""
    import torch.nn.functional as F

    owner = model.perceiver.cross_attn
    of_query, of_rest = owner.in_proj_weight.split((128, 256))
    query_bias, rest_bias = owner.in_proj_bias.split((128, 256))
    query = F.linear(model.perceiver.latents + code, of_query, query_bias)
    both = F.linear(tokens(model, roi, time, signal), of_rest, rest_bias)
    query, key, value = (
        x.unflatten(-1, (owner.heads, -1)).transpose(0, 1)[None]
        for x in (query, *both.chunk(2, dim=-1))
    )
    attended = F.scaled_dot_product_attention(query, key, value)
    return latents(model, owner.out_proj(attended.transpose(1, 2).flatten(2)))


def latents(model: BrainSymphony, attended: Tensor) -> tuple[Tensor, Tensor]:
    """Return latents and reconstruction of what was attended to (1, R, D)."""
    x = model.perceiver.cross_attn_norm(attended)
    for block in model.perceiver.latent_transformers:
        x = block(x)
    return x[0], model.perceiver.head(x)[0]


def published_structural(model: BrainSymphony, sc: Tensor) -> Tensor:
    """Run the structural branch with the attention of one participant after the other."""
    import torch

    branch = model.structural
    x = branch.input_proj(sc) + branch.pos_embed
    for layer in branch.layers:
        query, key, value = (
            linear(x).unflatten(-1, (layer.heads, -1)).transpose(1, 2)
            for linear in (layer.q_linear, layer.k_linear, layer.v_linear)
        )
        logits = query @ key.mT / query.shape[-1] ** 0.5
        attended = []
        for participant in range(len(sc)):
            scores = logits[participant] * sc[participant]
            size = scores.abs().exp()
            weights = scores.sign() * size / (size.sum(-1, keepdim=True) + 1e-10)
            attended.append(weights @ value[participant])
        joined = torch.stack(attended).transpose(1, 2).flatten(2)
        x = layer.layer_norm1(x + layer.out_linear(joined))
        x = layer.layer_norm2(x + layer.ffn(x))
    return x


if __name__ == "__main__":
    main()

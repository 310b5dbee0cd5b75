"""What is hidden stays hidden, and what is scored is what was hidden."""

import numpy as np
import pytest
import torch
from model_tiny import ROIS, STEPS, one_thread, tiny_model, tiny_sc, tiny_windows  # noqa: F401

from bsym_bids.training.objectives import (
    FunctionalObjective,
    Masking,
    StructuralObjective,
    WindowBatch,
    neighbours,
    read_sampled,
)


def batch(windows, missing=None, censored=None):
    count = len(windows)
    return WindowBatch(
        torch.from_numpy(windows),
        torch.zeros(count, ROIS, dtype=torch.bool) if missing is None else missing,
        torch.zeros(count, STEPS, dtype=torch.bool) if censored is None else censored,
    )


def random(seed=0):
    return torch.Generator().manual_seed(seed)


def test_every_functional_branch_gets_gradients():
    model = tiny_model().requires_grad_(True)
    objective = FunctionalObjective(model, Masking())
    losses = objective(batch(tiny_windows(3)), random())
    losses["total"].backward()
    unused = {"pos_enc.alpha", "pos_enc.ln.weight", "pos_enc.ln.bias"}  # of no effect as published
    for name in ("spatial", "temporal", "context", "perceiver"):
        for key, parameter in getattr(model, name).named_parameters():
            if name != "spatial" or key not in unused:
                assert parameter.grad is not None and parameter.grad.abs().sum() > 0, (name, key)


def test_total_is_the_weighted_sum():
    objective = FunctionalObjective(tiny_model(), Masking(), {"spatial": 3.0})
    losses = objective(batch(tiny_windows()), random())
    weights = {**FunctionalObjective.NAMES, "spatial": 3.0}
    expected = sum(weights[name] * losses[name] for name in FunctionalObjective.NAMES)
    torch.testing.assert_close(losses["total"], expected)


def test_what_is_drawn_hangs_on_the_generator_alone():
    objective = FunctionalObjective(tiny_model(), Masking())
    first, again, other = (
        objective(batch(tiny_windows()), random(seed))["total"] for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_missing_rois_and_censored_frames_change_nothing_that_is_scored():
    """Values at missing ROIs are neither seen nor scored."""
    missing = torch.zeros(2, ROIS, dtype=torch.bool)
    missing[:, 3] = True
    objective = FunctionalObjective(tiny_model(), Masking())
    windows = tiny_windows()
    plain = objective(batch(windows.copy(), missing), random())
    windows[:, 3] = 1e3
    wild = objective(batch(windows, missing), random())
    for name, loss in plain.items():
        torch.testing.assert_close(loss, wild[name], msg=name)


def test_censored_frames_are_not_scored():
    censored = torch.zeros(2, STEPS, dtype=torch.bool)
    censored[:, 5:9] = True
    windows = tiny_windows()
    model = tiny_model()
    with torch.no_grad():  # a network that predicts nothing: the error is that of the truth alone
        model.perceiver.head[2].weight.zero_()
        model.perceiver.head[2].bias.zero_()
    objective = FunctionalObjective(model, Masking())
    plain = objective(batch(windows.copy(), censored=censored), random())
    windows[:, :, 5:9] += 100
    wild = objective(batch(windows, censored=censored), random())
    torch.testing.assert_close(plain["perceiver"], wild["perceiver"])
    torch.testing.assert_close(plain["visible"], wild["visible"])


def test_the_sampled_reading_is_the_networks_own_when_all_frames_are_read(monkeypatch):
    """Every frame of every ROI once: what `BrainSymphony` computes in its streamed way."""
    model, windows = tiny_model(), torch.from_numpy(tiny_windows(2))
    expected = model(fmri=windows).functional_embedding
    spatial, code = model.spatial(windows)
    temporal = model.temporal(windows)

    frames = torch.arange(STEPS).expand(2, ROIS, STEPS)
    monkeypatch.setattr(torch, "randint", lambda *_, **__: frames)
    found = read_sampled(
        model.perceiver, model.context, spatial, temporal, windows, code, STEPS, random()
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_neighbours_are_the_samples_around():
    signal = torch.arange(2 * 3 * 6, dtype=torch.float32).view(2, 3, 6)
    found = neighbours(signal, (torch.tensor([0, 1]), torch.tensor([1, 2])), torch.tensor([0, 4]))
    assert found.tolist() == [[0, 0, 6, 7, 8], [32, 33, 34, 35, 0]]


def test_hidden_edges_are_of_the_same_participant():
    """With predictions of zero the loss is the mean square of what was hidden."""
    model = tiny_model()
    with torch.no_grad():
        model.structural.edge_weight_predictor[4].weight.zero_()
        model.structural.edge_weight_predictor[4].bias.zero_()
    sc = torch.from_numpy(tiny_sc(1))
    masking = Masking(edge_share=0.999999)  # all pairs
    loss = StructuralObjective(model, masking)(sc, random())["edges"]
    upper = sc[0][tuple(torch.triu_indices(ROIS, ROIS, 1))]
    torch.testing.assert_close(loss, upper.square().mean())


def test_the_structural_branch_does_not_see_what_it_predicts():
    model = tiny_model()
    objective = StructuralObjective(model, Masking(edge_share=0.3))
    seen = []
    handle = model.structural.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    sc = torch.from_numpy(np.abs(tiny_sc(2)) + 1)
    objective(sc, random())
    handle.remove()
    zero = (seen[0] == 0) & (sc != 0)
    assert torch.equal(zero, zero.mT)
    share = zero.float().mean()
    assert 0.1 < share < 0.5
    assert torch.equal(zero[0], zero[1])


def test_every_structural_parameter_that_matters_gets_gradients():
    model = tiny_model().requires_grad_(True)
    StructuralObjective(model, Masking())(torch.from_numpy(tiny_sc(3)), random())[
        "total"
    ].backward()
    for key, parameter in model.structural.named_parameters():
        if not key.startswith("positional_proj"):  # as published, without effect beside pos_embed
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("share", [(0.1, 0.1), (0.5, 0.9)])
def test_the_share_of_hidden_rois_is_kept(share):
    objective = FunctionalObjective(tiny_model(), Masking(roi_share=share))
    many = batch(np.repeat(tiny_windows(1), 400, axis=0))
    hidden = objective._hidden_rois(many, random()).float().mean()
    assert share[0] - 0.03 < hidden < share[1] + 0.03

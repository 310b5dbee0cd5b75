"""What each branch gets while it is trained, what it is scored by, and which weights are kept."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from model_tiny import ROIS, STEPS, one_thread, tiny_model, tiny_sc, tiny_windows  # noqa: F401
from torch import nn

from bsym_bids.model import BrainSymphony
from bsym_bids.model.structural import predict_edges
from bsym_bids.training import objectives, start
from bsym_bids.training.loop import Phase, Schedule, train
from bsym_bids.training.objectives import (
    FunctionalObjective,
    Masking,
    StructuralObjective,
    WindowBatch,
)
from bsym_bids.training.release import network_card
from bsym_bids.training.start import smoothing_state_dicts

MASK_TOKEN = 0.5  # of the tiny network


def random(seed=0):
    return torch.Generator().manual_seed(seed)


def batch_of(windows, with_gaps=False):
    """Return windows as a batch; with gaps, ROI 3 is missing in some and frames are censored."""
    missing = torch.zeros(len(windows), ROIS, dtype=torch.bool)
    censored = torch.zeros(len(windows), STEPS, dtype=torch.bool)
    if with_gaps:
        missing[::2, 3] = True
        censored[:, 5:8] = True
    windows = windows.masked_fill(missing.unsqueeze(-1), 0)
    return WindowBatch(windows, missing, censored)


@pytest.fixture
def seen(monkeypatch):
    """Return a function that runs the objectives and tells what every branch got and gave."""

    def run(batch, masking, seed=0):
        objective = FunctionalObjective(tiny_model(), masking)
        found = SimpleNamespace()
        objective.spatial.register_forward_pre_hook(
            lambda _, inputs: setattr(found, "spatial", inputs[0].clone())
        )
        objective.temporal.register_forward_pre_hook(
            lambda _, inputs: setattr(found, "temporal", inputs[0].clone())
        )
        objective.context.decoder.register_forward_pre_hook(
            lambda _, inputs: setattr(found, "features", inputs[0].clone())
        )
        for name, module in (
            ("series", objective.perceiver.head),
            ("of_rois", objective.roi_decoder),
            ("of_frames", objective.frame_decoder),
            ("of_samples", objective.context.decoder),
        ):
            module.register_forward_hook(
                lambda _, __, output, name=name: setattr(found, name, output.detach().clone())
            )

        def spy(signal, rows, frames):
            if frames.dim() == 3:  # the Perceiver reads
                found.signal = signal.detach().clone()
            else:  # the context module predicts
                found.context, found.places = signal.detach().clone(), (*rows, frames)
            return neighbours(signal, rows, frames)

        neighbours = objectives.neighbours
        with monkeypatch.context() as patch:
            patch.setattr(objectives, "neighbours", spy)
            found.losses = objective(batch, random(seed))
        found.hidden = (found.signal == MASK_TOKEN).all(-1)
        return found

    return run


def windows_of(count, seed=0):
    return torch.from_numpy(tiny_windows(count, seed))


def test_the_branches_see_nothing_of_hidden_rois(seen):
    windows = windows_of(40)
    found = seen(batch_of(windows), Masking(roi_share=(0.3, 0.3)))
    hidden = found.hidden
    assert 0.22 < hidden.float().mean() < 0.38
    assert torch.equal(found.spatial, windows.masked_fill(hidden.unsqueeze(-1), 0))
    assert (found.temporal[hidden] == 0).all()
    expected = torch.where(hidden.unsqueeze(-1), torch.tensor(MASK_TOKEN), windows)
    assert torch.equal(found.signal, expected)


def test_values_of_hidden_rois_reach_the_truth_alone(seen):
    windows, masking = windows_of(4), Masking(roi_share=(0.3, 0.5))
    plain = seen(batch_of(windows.clone()), masking)
    assert plain.hidden.any(1).all()
    windows[plain.hidden] = 7 * windows[plain.hidden] + 3
    wild = seen(batch_of(windows), masking)
    inputs = ("spatial", "temporal", "signal", "features")
    outputs = ("series", "of_rois", "of_frames", "of_samples")
    for name in inputs + outputs:
        assert torch.equal(getattr(plain, name), getattr(wild, name)), name
    for name in ("perceiver", "spatial"):
        assert wild.losses[name] > 2 * plain.losses[name], name
    for name in ("visible", "temporal", "context"):
        assert torch.equal(wild.losses[name], plain.losses[name]), name


@pytest.mark.parametrize("share", [0.1, 0.7])
def test_the_temporal_transformer_sees_nothing_of_hidden_frames(seen, share):
    windows = windows_of(100)
    found = seen(batch_of(windows), Masking(frame_share=share))
    frames = (found.temporal == 0).all(1)
    assert abs(frames.float().mean() - share) < 0.04
    assert len({tuple(row) for row in frames.tolist()}) > 20  # drawn for each window
    gone = found.hidden.unsqueeze(-1) | frames.unsqueeze(1)
    assert torch.equal(found.temporal, windows.masked_fill(gone, 0))


def test_values_of_hidden_frames_reach_the_truth_alone(seen):
    windows, masking = windows_of(6), Masking(frame_share=0.3)
    plain = seen(batch_of(windows.clone()), masking)
    frames = (plain.temporal == 0).all(1)
    assert frames.any()
    windows = torch.where(frames.unsqueeze(1), 7 * windows + 3, windows)
    wild = seen(batch_of(windows), masking)
    assert torch.equal(plain.temporal, wild.temporal)
    assert torch.equal(plain.of_frames, wild.of_frames)
    assert wild.losses["temporal"] > 2 * plain.losses["temporal"]


@pytest.mark.parametrize("share", [0.15, 0.8])
def test_the_context_module_predicts_samples_that_it_does_not_see(seen, share):
    windows, masking = windows_of(20), Masking(sample_share=share, samples=10**6)
    plain = seen(batch_of(windows.clone(), with_gaps=True), masking)
    batch = batch_of(windows.clone(), with_gaps=True)
    usable = ~plain.hidden.unsqueeze(-1) & ~batch.censored.unsqueeze(1)
    scored = torch.zeros_like(usable)
    scored[plain.places] = True
    assert len(plain.places[0]) == scored.sum()  # each of them once
    assert not (scored & ~usable).any()
    assert abs(scored.sum() / usable.sum() - share) < 0.04
    expected = batch.windows.masked_fill(scored, MASK_TOKEN)
    assert torch.equal(plain.context, expected)
    error = (plain.of_samples.squeeze(-1) - batch.windows[plain.places]).square().mean()
    torch.testing.assert_close(plain.losses["context"].detach(), error)

    windows[scored] = 7 * windows[scored] + 3
    wild = seen(batch_of(windows, with_gaps=True), masking)
    assert torch.equal(plain.features, wild.features)
    assert wild.losses["context"] > 2 * plain.losses["context"]


def test_no_more_samples_than_wanted_are_predicted(seen):
    found = seen(batch_of(windows_of(4)), Masking(sample_share=0.5, samples=9))
    assert found.of_samples.numel() == 9
    assert len(set(found.places[0].tolist())) > 1  # not the first ones


def test_each_objective_scores_what_was_hidden_for_it(seen):
    batch = batch_of(windows_of(10), with_gaps=True)
    masking = Masking(roi_share=(0.3, 0.5), frame_share=0.4)
    found = seen(batch, masking)
    hidden = found.hidden.numpy()
    missing, kept = batch.missing.numpy(), ~batch.censored.numpy()
    assert (missing <= hidden).all() and missing.any()
    frames = (found.temporal == 0).all(1).numpy()
    truth = batch.windows.numpy().astype(np.float64)
    of_hidden, of_visible, of_frames = (np.zeros(truth.shape, bool) for _ in range(3))
    for window in range(len(truth)):
        for roi in range(ROIS):
            for frame in range(STEPS):
                if not kept[window, frame]:
                    continue
                place = window, roi, frame
                of_hidden[place] = hidden[window, roi] and not missing[window, roi]
                of_visible[place] = not hidden[window, roi]
                of_frames[place] = not hidden[window, roi] and frames[window, frame]
    for name, predicted, scored in (
        ("perceiver", found.series, of_hidden),
        ("spatial", found.of_rois, of_hidden),
        ("visible", found.series, of_visible),
        ("temporal", found.of_frames.mT, of_frames),
    ):
        expected = ((predicted.numpy() - truth)[scored] ** 2).mean()
        assert found.losses[name].item() == pytest.approx(expected, rel=1e-4), name


def test_windows_of_a_batch_have_different_shares_of_hidden_rois(seen):
    """One share for all would leave a standard deviation of at most sqrt(1 / (4 * 12)) = 0.14."""
    found = seen(batch_of(windows_of(200)), Masking(roi_share=(0.05, 0.95)))
    shares = found.hidden.float().mean(1)
    assert shares.std() > 0.22
    assert len({tuple(row) for row in found.hidden.tolist()}) > 100


def test_missing_rois_are_hidden_from_all_branches(seen):
    batch = batch_of(windows_of(10), with_gaps=True)
    found = seen(batch, Masking(roi_share=(0.1, 0.1)))
    assert (found.signal[batch.missing] == MASK_TOKEN).all()
    assert (found.hidden & ~batch.missing).float().mean() < 0.25


class EdgeSpy:
    """Stands in for the edge predictor: gives back edges of the participants, in some order."""

    def __init__(self, sc, order):
        self.sc, self.order = sc, order

    def __call__(self, branch, embedding, pairs):
        self.embedding, self.pairs = embedding, pairs
        return self.sc[self.order][:, pairs[:, 0], pairs[:, 1]]


@pytest.mark.parametrize("order", [[0, 1, 2], [1, 2, 0]])
def test_edges_are_compared_with_those_of_the_same_participant(monkeypatch, order):
    sc = torch.from_numpy(tiny_sc(3))
    spy = EdgeSpy(sc, order)
    monkeypatch.setattr(objectives, "predict_edges", spy)
    model = tiny_model()
    loss = StructuralObjective(model, Masking(edge_share=0.4))(sc, random())["edges"]
    assert len(spy.embedding) == 3
    expected = (sc[order] - sc)[:, spy.pairs[:, 0], spy.pairs[:, 1]].square().mean()
    torch.testing.assert_close(loss, expected)
    assert (loss == 0) == (order == [0, 1, 2])


@pytest.mark.parametrize("share", [0.15, 0.7])
def test_the_edges_that_are_predicted_are_those_hidden(monkeypatch, share):
    sc = torch.from_numpy(np.abs(tiny_sc(2)) + 1)
    spy = EdgeSpy(sc, [0, 1])
    monkeypatch.setattr(objectives, "predict_edges", spy)
    model, inputs, counts = tiny_model(), [], []
    model.structural.register_forward_pre_hook(lambda _, given: inputs.append(given[0].clone()))
    for seed in range(20):
        StructuralObjective(model, Masking(edge_share=share))(sc, random(seed))
        hidden = torch.zeros(ROIS, ROIS, dtype=torch.bool)
        hidden[spy.pairs[:, 0], spy.pairs[:, 1]] = True
        assert not torch.tril(hidden).any()
        assert torch.equal(inputs[-1], sc.masked_fill(hidden | hidden.mT, 0))
        counts.append(len(spy.pairs))
    assert abs(np.mean(counts) / (ROIS * (ROIS - 1) / 2) - share) < 0.06


def test_no_more_edges_than_wanted_are_predicted(monkeypatch):
    sc = torch.from_numpy(tiny_sc(2))
    spy = EdgeSpy(sc, [0, 1])
    monkeypatch.setattr(objectives, "predict_edges", spy)
    StructuralObjective(tiny_model(), Masking(edge_share=0.9, edges=7))(sc, random())
    assert len(spy.pairs) == 7
    assert len(set(spy.pairs[:, 0].tolist())) > 1  # not the first ones


class Weights(nn.Module):
    """A vector with a gradient that is known."""

    def __init__(self, gradient=(0.0, 0.0, 0.0), interrupted_at=None):
        super().__init__()
        self.vector = nn.Parameter(torch.tensor([1.0, -2.0, 4.0]))
        self.gradient, self.interrupted_at = torch.tensor(gradient), interrupted_at
        self.calls = 0

    def loss(self, _):
        self.calls += 1
        if self.calls == self.interrupted_at:
            raise KeyboardInterrupt
        total = (self.vector * self.gradient).sum()
        return {"known": total, "total": total}


def one_step(out, gradient, **options):
    objective = Weights(gradient)
    before = objective.vector.detach().clone()
    schedule = Schedule(1, 0.1, warmup_share=0, **options)
    phase = Phase("p", objective, objective.loss, None, schedule)
    train([lambda: phase], objective, out, 0, {})
    return before, objective.vector.detach()


def test_weights_decay(tmp_path):
    before, after = one_step(tmp_path, (0.0, 0.0, 0.0), weight_decay=0.3)
    torch.testing.assert_close(after, before * (1 - 0.1 * 0.3))


def test_weights_do_not_decay_unless_wanted(tmp_path):
    before, after = one_step(tmp_path, (0.0, 0.0, 0.0))
    assert torch.equal(after, before)


def test_gradients_are_clipped(tmp_path):
    """The first step of Adam is rate * g / (|g| + 1e-8): it shows a clip to as little as that."""
    gradient = (300.0, -400.0, 0.0)
    before, after = one_step(tmp_path, gradient, gradient_clip=1e-8)
    clipped = torch.tensor((0.6e-8, -0.8e-8, 0))
    moved = 0.1 * clipped / (clipped.abs() + 1e-8)
    torch.testing.assert_close(before - after, moved, atol=1e-5, rtol=1e-3)


class Scores:
    """Gives scores in turn, and remembers the weights that each was given for."""

    def __init__(self, *scores):
        self.left, self.weights = list(scores), {}
        self.net = None

    def __call__(self):
        score = self.left.pop(0)
        self.weights[score] = self.net.vector.detach().clone()
        return score


def train_scored(out, *phases):
    """Train phases of 12 steps on one vector, each with its scores and an interruption or None."""
    net = Weights((1.0, -1.0, 0.5))

    def make(name, scores, interrupted_at):
        def phase():
            objective = nn.Module()
            objective.net = net
            net.interrupted_at, net.calls, scores.net = interrupted_at, 0, net
            schedule = Schedule(12, 0.1, validate_every=3)
            return Phase(name, objective, net.loss, scores, schedule)

        return phase

    made = [make(f"phase{n}", *one) for n, one in enumerate(phases)]
    train(made, net, out, 0, {})
    return net.vector.detach()


def test_with_rising_scores_the_last_weights_are_kept(tmp_path):
    scores = Scores(-5.0, -4.0, -3.0, -2.0, -1.0)
    kept = train_scored(tmp_path, (scores, None))
    assert not scores.left
    assert torch.equal(kept, scores.weights[-1.0])
    assert not torch.equal(kept, scores.weights[-2.0])


def test_the_best_weights_from_before_an_interruption_are_kept(tmp_path):
    before, after = Scores(0.0, 10.0, 1.0), Scores(2.0, 3.0)
    with pytest.raises(KeyboardInterrupt):
        train_scored(tmp_path, (before, 8))
    kept = train_scored(tmp_path, (after, None))
    assert not before.left and not after.left
    assert torch.equal(kept, before.weights[10.0])


def test_better_weights_after_an_interruption_are_kept(tmp_path):
    before, after = Scores(0.0, 10.0, 1.0), Scores(11.0, 3.0)
    with pytest.raises(KeyboardInterrupt):
        train_scored(tmp_path, (before, 8))
    kept = train_scored(tmp_path, (after, None))
    assert torch.equal(kept, after.weights[11.0])


@pytest.mark.parametrize("interrupted_at", [None, 1, 5])
def test_each_phase_has_a_best_score_of_its_own(tmp_path, interrupted_at):
    first, second = Scores(100.0, 101.0, 102.0, 103.0, 104.0), Scores(0.0, 1.0, 2.0, 3.0, 4.0)
    if interrupted_at:
        with pytest.raises(KeyboardInterrupt):
            train_scored(tmp_path, (first, None), (second, interrupted_at))
        if interrupted_at < 3:  # without a checkpoint the phase begins again
            second = Scores(0.0, 1.0, 2.0, 3.0, 4.0)
    kept = train_scored(tmp_path, (first, None), (second, None))
    assert not first.left and not second.left
    assert torch.equal(kept, second.weights[4.0])
    assert not torch.equal(kept, first.weights[104.0])


CODED_ROIS = 40


def smooth_connectome(seed):
    """Strong edges within four groups and between mirror images, weak ones elsewhere."""
    draw = np.random.default_rng(seed)
    place = np.arange(CODED_ROIS)
    group = draw.permutation(place % 4)
    sc = 0.5 + 1.5 * (group[:, None] == group) + 0.1 * draw.standard_normal((CODED_ROIS,) * 2)
    sc = (sc + sc.T) / 2
    np.fill_diagonal(sc, 0)
    return sc.astype(np.float32)


def started(connectome, seed=0):
    card = network_card(["structural"])
    card["sizes"]["structural"]["rois"] = CODED_ROIS
    states = smoothing_state_dicts(card, np.eye(CODED_ROIS), seed, connectome)
    return states["structural"], card["network"]


def agreement(state, network, connectome):
    branch = BrainSymphony.from_state_dicts(structural=state, **network).structural
    pairs = torch.triu_indices(CODED_ROIS, CODED_ROIS, 1).mT
    sc = torch.from_numpy(connectome)
    with torch.no_grad():
        embedding, _ = branch(sc[None])
        predicted = predict_edges(branch, embedding, pairs)[0].numpy()
    return np.corrcoef(predicted, connectome[pairs[:, 0], pairs[:, 1]])[0, 1]


def test_the_structural_branch_starts_by_giving_back_the_average_connectome(monkeypatch):
    monkeypatch.setattr(start, "_EDGE_STEPS", 60)
    monkeypatch.setattr(start, "_EDGES_AT_ONCE", 300)
    connectome = smooth_connectome(0)
    state, network = started(connectome)
    assert agreement(state, network, connectome) > 0.8
    again, _ = started(connectome)
    other, _ = started(connectome, seed=1)
    assert all(np.array_equal(value, again[key]) for key, value in state.items())
    assert any(not np.array_equal(value, other[key]) for key, value in state.items())
    drawn, _ = started(None)
    assert agreement(drawn, network, connectome) < 0.5

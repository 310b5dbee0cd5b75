"""Scores of a network in training against sums done by hand, and what the gate is trained on."""

from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from model_tiny import one_thread  # noqa: F401
from torch import nn

from bsym_bids import atlas
from bsym_bids.model.brainsymphony import Gate
from bsym_bids.training import validation
from bsym_bids.training.data import ConnectomeSet, WindowSet
from bsym_bids.training.gate import GateObjective, embed_labelled
from bsym_bids.training.validation import edge_score, reconstruction_score

WINDOWS, ROIS, STEPS = 40, 100, 30
MISSING = [3, 20, 21, 70]


def filled(kind, **known):
    """Return a data set; what it was made from is of no matter here."""
    return kind(**(dict.fromkeys(one.name for one in fields(kind)) | known))


def window_set():
    draw = np.random.default_rng(0)
    windows = draw.standard_normal((WINDOWS, ROIS, STEPS)).astype(np.float32)
    missing = np.zeros((WINDOWS, ROIS), bool)
    missing[1::2, MISSING] = True
    windows[missing] = 0
    censored = np.zeros((WINDOWS, STEPS), bool)
    for window in range(WINDOWS):
        censored[window, window % 20 : window % 20 + 6] = True
    people = np.array([f"{window // 4:02}" for window in range(WINDOWS)])
    return filled(
        WindowSet, windows=windows, missing=missing, censored=censored, participants=people
    )


class Predictor(nn.Module):
    """Gives back prepared series, and remembers which ROIs were hidden of which window."""

    def __init__(self, data, predicted):
        super().__init__()
        self.some = nn.Parameter(torch.zeros(1))
        self.data, self.predicted, self.hidden = data, predicted, []

    def forward(self, *, fmri, roi_mask, **_):
        given, masks = np.asarray(fmri), np.asarray(roi_mask)
        places = [
            next(n for n, window in enumerate(self.data.windows) if np.array_equal(window, one))
            for one in given
        ]
        self.hidden += list(zip(places, masks, strict=True))
        return SimpleNamespace(reconstruction=torch.from_numpy(self.predicted[places]))


def prepared(data, wild=1e4):
    """Return predictions that are wild wherever they must not be scored, apart from shown ROIs."""
    draw = np.random.default_rng(1)
    noise = 0.5 * draw.standard_normal(data.windows.shape)
    predicted = 0.7 * data.windows + noise + 0.2
    predicted[data.missing] = wild
    predicted[np.broadcast_to(data.censored[:, None], predicted.shape)] = wild
    return predicted.astype(np.float32)


def r2_by_hand(data, predicted, hidden):
    means = []
    for window, mask in hidden:
        kept = np.flatnonzero(~data.censored[window])
        of_rois = []
        for roi in np.flatnonzero(mask & ~data.missing[window]):
            truth = data.windows[window, roi, kept].astype(float)
            error = sum((truth - predicted[window, roi, kept]) ** 2)
            of_rois.append(1 - error / sum((truth - truth.mean()) ** 2))
        means.append(np.mean(of_rois))
    return np.mean(means)


def test_the_score_of_reconstructions_is_the_mean_r2_of_hidden_rois():
    data = window_set()
    predicted = prepared(data)
    model = Predictor(data, predicted)
    score = reconstruction_score(model, data, np.arange(4, 12))
    assert [window for window, _ in model.hidden] == list(range(4, 12))
    assert 0 < score < 1
    assert score == pytest.approx(r2_by_hand(data, predicted, model.hidden), rel=1e-5)


def test_perfect_series_score_1_and_means_0():
    data = window_set()
    assert reconstruction_score(Predictor(data, data.windows), data, np.arange(8)) == 1
    kept = ~np.broadcast_to(data.censored[:, None], data.windows.shape)
    means = data.windows.mean(-1, keepdims=True, where=kept, dtype=np.float64)
    flat = np.broadcast_to(means, data.windows.shape).astype(np.float32)
    score = reconstruction_score(Predictor(data, flat), data, np.arange(8))
    assert score == pytest.approx(0, abs=1e-6)


def test_a_share_of_the_measured_rois_is_hidden_beside_missing_ones():
    data = window_set()
    model = Predictor(data, prepared(data))
    reconstruction_score(model, data, np.arange(12))
    for window, mask in model.hidden:
        missing = data.missing[window]
        assert mask[missing].all()
        assert np.sum(mask & ~missing) == round(0.15 * np.sum(~missing))
    chosen = {tuple(mask & ~data.missing[window]) for window, mask in model.hidden}
    assert len(chosen) == 12  # other ROIs of each window


def test_validations_hide_the_same_rois_every_time():
    data = window_set()
    model = Predictor(data, prepared(data))
    first = reconstruction_score(model, data, np.arange(6))
    again = reconstruction_score(model, data, np.arange(6))
    assert first == again
    for (window, mask), (later, other) in zip(model.hidden[:6], model.hidden[6:], strict=True):
        assert window == later and np.array_equal(mask, other)


def test_of_many_windows_some_from_first_to_last_are_scored():
    data = window_set()
    model = Predictor(data, prepared(data))
    reconstruction_score(model, data, np.arange(2, 39))
    windows = [window for window, _ in model.hidden]
    assert len(set(windows)) == len(windows) == 16
    assert windows[0] == 2 and windows[-1] == 38 and max(np.diff(windows)) <= 3


PEOPLE, NODES = 20, 24


class Structural(nn.Module):
    """Remembers what it gets; the embedding tells whose connectome it was by its first edges."""

    def __init__(self):
        super().__init__()
        self.inputs = []

    def forward(self, sc):
        self.inputs += list(sc.clone())
        return sc, None


class Connected(nn.Module):
    def __init__(self):
        super().__init__()
        self.some = nn.Parameter(torch.zeros(1))
        self.structural = Structural()


def connectome_set():
    draw = np.random.default_rng(0)
    sc = 1 + np.abs(draw.standard_normal((PEOPLE, NODES, NODES)))
    sc += np.arange(PEOPLE)[:, None, None] / 4
    sc = (sc + sc.swapaxes(1, 2)).astype(np.float32)
    sc[:, np.arange(NODES), np.arange(NODES)] = 0
    people = np.array([f"{person:02}" for person in range(PEOPLE)])
    return filled(ConnectomeSet, connectomes=sc, participants=people)


def owner(connectomes, shown):
    """Return whose connectome it is that some edges were hidden from."""
    kept = shown != 0
    same = [np.array_equal(one[kept], shown[kept]) for one in connectomes]
    assert sum(same) == 1
    return same.index(True)


@pytest.fixture
def edges(monkeypatch):
    """Let predictions be 0.6 of the participant's own edges and noise; return what was asked."""
    data = connectome_set()
    noise = 0.3 * np.random.default_rng(2).standard_normal((PEOPLE, NODES, NODES))
    made = (0.6 * data.connectomes + noise).astype(np.float32)
    asked = []

    def predict(_, embedding, pairs):
        places = np.asarray(pairs)
        people = [owner(data.connectomes, one.numpy()) for one in embedding]
        asked.append((people, places))
        return torch.from_numpy(made[people][:, places[:, 0], places[:, 1]])

    monkeypatch.setattr(validation, "predict_edges", predict)
    return SimpleNamespace(data=data, made=made, asked=asked)


def test_the_score_of_edges_is_the_r2_of_hidden_pairs(edges):
    model = Connected()
    score = edge_score(model, edges.data, np.arange(3, 9))
    truth, predicted = [], []
    for people, places in edges.asked:
        for person in people:
            for first, second in places:
                truth.append(float(edges.data.connectomes[person, first, second]))
                predicted.append(float(edges.made[person, first, second]))
    truth, predicted = np.array(truth), np.array(predicted)
    expected = 1 - sum((truth - predicted) ** 2) / sum((truth - truth.mean()) ** 2)
    assert score == pytest.approx(expected, rel=1e-5)
    assert [person for people, _ in edges.asked for person in people] == list(range(3, 9))


def test_a_share_of_pairs_is_hidden_the_same_ones_every_time(edges):
    model = Connected()
    first = edge_score(model, edges.data, np.arange(4))
    again = edge_score(model, edges.data, np.arange(4))
    assert first == again
    places = edges.asked[0][1]
    assert all(np.array_equal(places, others) for _, others in edges.asked)
    assert len(np.unique(places, axis=0)) == round(0.15 * NODES * (NODES - 1) / 2)
    assert (places[:, 0] < places[:, 1]).all()
    hidden = np.zeros((NODES, NODES), bool)
    hidden[places[:, 0], places[:, 1]] = hidden[places[:, 1], places[:, 0]] = True
    for person, shown in zip([*range(4), *range(4)], model.structural.inputs, strict=True):
        expected = np.where(hidden, 0, edges.data.connectomes[person])
        assert np.array_equal(shown.numpy(), expected)


def test_edges_of_at_most_16_people_are_scored(edges):
    edge_score(Connected(), edges.data, np.arange(PEOPLE))
    people = [person for one, _ in edges.asked for person in one]
    assert len(set(people)) == len(people) == 16
    assert people[0] == 0 and people[-1] == PEOPLE - 1


WIDTH = 3


def gate_objective():
    gate = Gate(width=WIDTH)
    with torch.no_grad():  # a quarter functional
        gate.gate_proj.weight.zero_()
        gate.gate_proj.bias.fill_(-np.log(3))
    return GateObjective(SimpleNamespace(gate=gate))


def embeddings(people=4):
    draw = np.random.default_rng(0)
    made = draw.standard_normal((2, people, 450, WIDTH)) + np.arange(450)[:, None] / 100
    return torch.from_numpy(made).float()


def test_the_gate_is_trained_on_means_within_networks():
    """The head is pointed at one mean after the other; in which order they come does not matter."""
    objective, (functional, structural) = gate_objective(), embeddings()
    fused = (0.25 * functional + 0.75 * structural).double().numpy()
    networks = np.array(atlas.networks())
    expected = [
        [np.mean([person[roi, d] for roi in np.flatnonzero(networks == name)]) for person in fused]
        for name in set(networks)
        for d in range(WIDTH)
    ]
    found = []
    assert objective.head.weight.shape == (1, len(expected))
    with torch.no_grad():
        for place in range(len(expected)):
            objective.head.weight.zero_()
            objective.head.weight[0, place] = 1
            found.append(objective.predict(functional, structural).tolist())
    np.testing.assert_allclose(sorted(found), sorted(expected), atol=1e-4)


def test_the_gate_starts_from_predictions_of_zero_and_is_scored_by_squares():
    objective, inputs = gate_objective(), embeddings()
    labels = torch.tensor([1.0, -2.0, 3.0, 0.5])
    losses = objective(*inputs, labels)
    assert losses["label"].item() == pytest.approx((1 + 4 + 9 + 0.25) / 4)
    assert torch.equal(losses["label"], losses["total"])
    with torch.no_grad():
        objective.head.bias += 1
    shifted = objective(*inputs, labels)["label"].item()
    assert shifted == pytest.approx((0 + 9 + 4 + 0.25) / 4)


class Embedder:
    """Embeds as sums and differences of what it gets, and remembers the masks."""

    def __init__(self):
        self.masks = []

    def __call__(self, *, fmri=None, sc=None, roi_mask=None, **_):
        if fmri is not None:
            self.masks.append(np.array(roi_mask))
            fmri = torch.from_numpy(np.array(fmri))
            return SimpleNamespace(functional_embedding=fmri[:, :, :WIDTH].clone())
        sc = torch.from_numpy(np.array(sc))
        return SimpleNamespace(structural_embedding=sc[:, :, :WIDTH].clone())


def labelled(training, labels):
    draw = np.random.default_rng(0)
    owners = np.array(["d", "a", "a", "b", "c", "a", "b", "nowhere", "e"])
    windows = draw.standard_normal((len(owners), 6, 5)).astype(np.float32)
    missing = draw.random((len(owners), 6)) < 0.3
    censored = np.zeros((len(owners), 5), bool)
    data = filled(
        WindowSet, windows=windows, missing=missing, censored=censored, participants=owners
    )
    scanned = np.array(["c", "b", "a", "b", "d", "e", "unheard"])
    connectomes = draw.standard_normal((len(scanned), 6, 6)).astype(np.float32)
    sc = filled(ConnectomeSet, connectomes=connectomes, participants=scanned)
    model = Embedder()
    return data, sc, model, embed_labelled(model, data, sc, labels, training)


LABELS = {"a": 20.0, "b": 30.0, "c": 70.0, "d": 1000.0, "nowhere": 5.0, "unheard": -5.0}


def test_labels_are_standardised_by_the_people_to_train_on_alone():
    *_, found = labelled(["a", "b", "c", "nowhere", "unheard"], LABELS)
    assert found.participants.tolist() == ["a", "b", "c", "d"]  # e has no label
    spread = np.sqrt((20**2 + 10**2 + 30**2) / 3)
    expected = [-20 / spread, -10 / spread, 30 / spread, 960 / spread]
    np.testing.assert_allclose(found.labels.numpy(), expected, rtol=1e-5)


def test_a_label_that_does_not_vary_is_not_divided_by_zero():
    *_, found = labelled(["a", "b"], {**LABELS, "b": 20.0})
    assert found.labels.tolist() == [0, 0, 50, 980]


def test_the_functional_embedding_is_the_mean_of_all_windows():
    data, sc, model, found = labelled(["a", "b"], LABELS)
    for place, person in enumerate(found.participants):
        own = [n for n, name in enumerate(data.participants) if name == person]
        mean = sum(data.windows[n].astype(float) for n in own)[:, :WIDTH] / len(own)
        np.testing.assert_allclose(found.functional[place].numpy(), mean, atol=1e-6)
        assert np.array_equal(model.masks[place], data.missing[own])
        first = sc.participants.tolist().index(person)
        expected = sc.connectomes[first][:, :WIDTH]
        np.testing.assert_allclose(found.structural[place].numpy(), expected)


def test_a_batch_has_embeddings_and_labels_of_the_same_people():
    *_, found = labelled(["a", "b"], LABELS)
    indices = found.of(["d", "b"])
    assert found.participants[indices].tolist() == ["b", "d"]
    parts = found.batch(indices[::-1].copy(), torch.device("cpu"))
    for part, whole in zip(parts, (found.functional, found.structural, found.labels), strict=True):
        assert torch.equal(part, whole[[3, 1]])

"""Structural connectomes at the model, and hidden edges."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from model_tiny import (
    ROIS,
    WIDTH,
    one_thread,  # noqa: F401 (used by every test)
    tiny_model,
    tiny_sc,
    tiny_states,
)
from scipy.stats import linregress, pearsonr
from sklearn.metrics import mean_absolute_error, r2_score

from bsym_bids.errors import BadDataError
from bsym_bids.model import BrainSymphony
from bsym_bids.model.structural import (
    CONVENTIONS,
    all_pairs,
    edge_quality,
    hold_out_edges,
    predict_edges,
    structural_input,
    volume_normalised,
    without_edges,
)

PAIRS = ROIS * (ROIS - 1) // 2


def tiny_counts(people=1, seed=0):
    """Return streamline counts (people, ROIs, ROIs), about half of the pairs without any."""
    upper = np.triu(np.random.default_rng(seed).poisson(0.7, (people, ROIS, ROIS)), 1) ** 3
    return upper + upper.swapaxes(1, 2)


# --- input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_input_by_hand(convention):
    weights = np.array([[7, 9, 0], [9, 7, 0.01], [0, 0.01, 0]])
    expected = {"log10p1": [1, 0, np.log10(1.01)], "log10": [np.log10(9), 0, -2]}[convention]
    result = structural_input(weights, convention)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result[np.triu_indices(3, 1)], expected, rtol=1e-6)
    np.testing.assert_array_equal(result, result.T)
    assert not result.diagonal().any()
    np.testing.assert_array_equal(structural_input(weights[None], convention)[0], result)


@given(
    arrays(np.float64, (4, 4), elements=st.floats(0, 1e6, allow_subnormal=False)),
    st.sampled_from(CONVENTIONS),
)
def test_input_can_be_turned_back(upper, convention):
    weights = np.triu(upper, 1) + np.triu(upper, 1).T
    result = structural_input(weights, convention).astype(np.float64)
    back = 10**result - 1 if convention == "log10p1" else np.where(result == 0, 0, 10**result)
    some = weights != 1  # log10(1) is 0, as if there were no edge
    np.testing.assert_allclose(back[some], weights[some], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones((2, 3)), "shape"),
        (np.ones(3), "shape"),
        (np.ones((0, 0)), "shape"),
        (np.array([[0, np.nan], [np.nan, 0]]), "not finite"),
        (np.array([[0, -1], [-1, 0]]), "negative"),
        (np.array([[0, 1], [2, 0]]), "not symmetric"),
    ],
)
def test_what_has_no_logarithm_is_refused(weights, message):
    with pytest.raises(BadDataError, match=message):
        structural_input(weights, "log10")


def test_rounding_of_tables_is_no_asymmetry():
    weights = np.array([[0, 1234.567], [1234.568, 0]])
    result = structural_input(weights, "log10")
    assert result[0, 1] == result[1, 0]
    with pytest.raises(BadDataError, match="convention 'ln' is none of"):
        structural_input(weights, "ln")


def test_volumes_are_those_of_both_ends():
    counts, volumes = tiny_counts(2), np.arange(1.0, ROIS + 1)
    result = volume_normalised(counts, volumes)
    for i, j in all_pairs(ROIS):
        # tck2connectome -scale_invnodevol: each streamline counts 2 / (v_i + v_j)
        np.testing.assert_allclose(result[:, i, j], counts[:, i, j] * 2 / (i + 1 + j + 1))
    np.testing.assert_array_equal(result, result.swapaxes(1, 2))
    for wrong in (volumes[1:], volumes - 1):
        with pytest.raises(BadDataError, match="volumes"):
            volume_normalised(counts, wrong)


# --- hidden edges --------------------------------------------------------------------------------


@pytest.mark.parametrize("gradients", [False, True])
def test_predicted_edges_are_those_of_both_orders(gradients):
    branch = tiny_model().structural
    embedding = torch.randn(2, ROIS, WIDTH, generator=torch.Generator().manual_seed(0))
    pairs = torch.from_numpy(all_pairs(ROIS))
    both = [embedding[:, pairs[:, end]] for end in (0, 1)]
    expected = (
        branch.edge_weight_predictor(torch.cat(both, -1))
        + branch.edge_weight_predictor(torch.cat(both[::-1], -1))
    ).squeeze(-1) / 2
    with torch.set_grad_enabled(gradients):
        found = predict_edges(branch, embedding, pairs)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(predict_edges(branch, embedding, pairs.flip(1)), found)


def test_predicted_edges_have_gradients_and_small_pieces_are_the_same(monkeypatch):
    branch = tiny_model().structural.requires_grad_(True)
    embedding = torch.randn(2, ROIS, WIDTH, requires_grad=True)
    pairs = torch.from_numpy(all_pairs(ROIS))
    asked = [embedding, *branch.edge_weight_predictor.parameters()]

    def gradients():
        found = predict_edges(branch, embedding, pairs)
        return torch.autograd.grad(found.square().sum(), asked)

    whole = gradients()
    monkeypatch.setattr("bsym_bids.model.structural._NUMBERS_AT_ONCE", 30)
    for one, other in zip(whole, gradients(), strict=True):
        torch.testing.assert_close(one, other)
        assert one.abs().max() > 0


@given(st.integers(0, 99), st.integers(2, 30), st.floats(0.01, 0.99))
def test_hidden_pairs_are_different_pairs(seed, rois, share):
    pairs = hold_out_edges(seed, rois, share)
    assert len(pairs) == max(1, round(share * rois * (rois - 1) / 2))
    assert (pairs[:, 0] < pairs[:, 1]).all()
    assert len({tuple(pair) for pair in pairs}) == len(pairs)
    np.testing.assert_array_equal(pairs, hold_out_edges(np.random.default_rng(seed), rois, share))


@pytest.mark.parametrize("share", [0, 1, -0.1, np.nan])
def test_shares_out_of_range_are_refused(share):
    with pytest.raises(BadDataError, match="share"):
        hold_out_edges(0, ROIS, share)


def test_hidden_edges_are_gone_on_both_sides():
    sc, pairs = tiny_sc(2) + 5, hold_out_edges(1, ROIS, 0.3)
    kept = without_edges(sc, pairs)
    gone = np.zeros((ROIS, ROIS), bool)
    gone[tuple(pairs.T)] = True
    np.testing.assert_array_equal(kept == 0, np.broadcast_to(gone | gone.T, kept.shape))
    np.testing.assert_array_equal(kept[:, ~(gone | gone.T)], sc[:, ~(gone | gone.T)])
    assert (sc != 0).all()
    as_tensor = without_edges(torch.from_numpy(sc), torch.from_numpy(pairs))
    np.testing.assert_array_equal(as_tensor, kept)


class Knower(torch.nn.Module):
    """Stands in for the structural branch: embeds what it sees, and answers as it is told."""

    rois = ROIS

    def __init__(self, answer):
        super().__init__()
        self.answer, self.seen, self.asked = answer, [], []

    def forward(self, sc):
        self.seen.append(sc[0].numpy().copy())
        return sc, None


@pytest.fixture
def ask(monkeypatch):
    """Return a model whose predictions are given by a function of what it sees."""

    def make(answer):
        branch = Knower(answer)

        def predict(_, embedding, pairs):
            branch.asked.append(pairs.numpy().copy())
            return torch.from_numpy(answer(embedding[0].numpy())[tuple(pairs.numpy().T)])[None]

        monkeypatch.setattr("bsym_bids.model.structural.predict_edges", predict)
        model = torch.nn.Module()
        model.structural = branch
        model.register_parameter("any", torch.nn.Parameter(torch.zeros(1)))
        return model, branch

    return make


def test_every_pair_is_hidden_once_and_not_seen(ask):
    model, branch = ask(np.zeros_like)
    sc = structural_input(tiny_counts(1), "log10p1")
    edge_quality(model, sc, seed=0, n_folds=3)
    asked = np.concatenate(branch.asked[:3])
    assert {tuple(sorted(pair)) for pair in asked} == {tuple(pair) for pair in all_pairs(ROIS)}
    assert len(asked) == PAIRS
    for seen, pairs in zip(branch.seen, branch.asked, strict=True):
        assert not seen[tuple(pairs.T)].any()
        assert not seen[tuple(pairs.T[::-1])].any()
    # the control shows the same connectome elsewhere
    total = [sum(branch.seen[fold] for fold in folds) / 2 for folds in ((0, 1, 2), (3, 4, 5))]
    np.testing.assert_allclose(np.sort(total[0], None), np.sort(total[1], None), atol=1e-6)
    assert not np.array_equal(*total)


def test_scores_are_those_of_the_predictions(ask):
    truth = structural_input(tiny_counts(2, seed=3), "log10p1")
    answer = (truth[0] + np.random.default_rng(0).standard_normal((ROIS, ROIS)).round(1)).round(3)
    answer = np.triu(answer, 1) + np.triu(answer, 1).T
    quality = edge_quality(ask(lambda _: answer)[0], truth, seed=0)
    upper = np.triu_indices(ROIS, 1)
    for person, connectome in enumerate(truth):
        true, found = connectome[upper], answer[upper]
        for scores, some in (
            (quality.network.all_pairs, slice(None)),
            (quality.network.edges, true > 0),
        ):
            assert scores.r2[person] == pytest.approx(r2_score(true[some], found[some]))
            assert scores.rho[person] == pytest.approx(pearsonr(true[some], found[some])[0])
            error = mean_absolute_error(true[some], found[some])
            assert scores.mae[person] == pytest.approx(error)
        assert quality.n_edges[person] == (true > 0).sum()
    assert quality.permuted.all_pairs.r2[0] < quality.network.all_pairs.r2[0]
    assert quality.group is None


def test_a_group_average_that_is_the_person_explains_all():
    sc = structural_input(tiny_counts(1), "log10p1")
    quality = edge_quality(tiny_model(), sc, seed=0, group=3 - 2 * sc[0])
    np.testing.assert_allclose(quality.group.all_pairs.r2, 1)
    np.testing.assert_allclose(quality.group.edges.mae, 0, atol=1e-6)


def test_the_group_average_is_fitted_to_what_is_not_hidden(ask):
    sc = structural_input(tiny_counts(1), "log10p1")
    group = structural_input(tiny_counts(1, seed=8), "log10p1")[0]
    model, branch = ask(np.zeros_like)
    quality = edge_quality(model, sc, seed=0, group=group, n_folds=2)
    folds = branch.asked[:2]
    true, found = [], []
    for fold, others in (folds, folds[::-1]):
        line = linregress(group[tuple(others.T)], sc[0][tuple(others.T)])
        true.append(sc[0][tuple(fold.T)])
        found.append(line.intercept + line.slope * group[tuple(fold.T)])
    true, found = np.concatenate(true), np.concatenate(found)
    assert quality.group.all_pairs.r2[0] == pytest.approx(r2_score(true, found))


def test_missing_rois_are_neither_asked_for_nor_scored(ask):
    model, branch = ask(np.ones_like)
    missing = np.zeros((1, ROIS), bool)
    missing[0, [2, 7]] = True
    counts = tiny_counts(1)
    counts[:, missing[0]] = counts[:, :, missing[0]] = 0
    sc = structural_input(counts, "log10p1")
    quality = edge_quality(model, sc, seed=0, missing=missing, n_folds=2)
    assert not np.isin(np.concatenate(branch.asked), [2, 7]).any()
    upper = sc[0][np.triu_indices(ROIS, 1)]
    assert quality.n_edges[0] == (upper > 0).sum()


def test_same_seed_same_edges():
    model, sc = tiny_model(), structural_input(tiny_counts(2), "log10")
    one, again, other = (edge_quality(model, sc, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.permuted.edges.mae, again.permuted.edges.mae)
    assert not np.array_equal(one.network.all_pairs.r2, other.network.all_pairs.r2)


def test_no_edges_no_scores():
    quality = edge_quality(tiny_model(), np.zeros((1, ROIS, ROIS), np.float32), seed=0)
    assert np.isnan(quality.network.all_pairs.r2).all()
    assert np.isnan(quality.network.edges.mae).all()
    assert quality.n_edges[0] == 0


def test_what_cannot_be_used_is_refused():
    model, sc = tiny_model(), structural_input(tiny_counts(1), "log10")
    with pytest.raises(BadDataError, match="connectomes: shape"):
        edge_quality(model, sc[0], seed=0)
    with pytest.raises(BadDataError, match="not finite"):
        edge_quality(model, sc * np.nan, seed=0)
    for numbers in ({"n_folds": 1}, {"missing": np.ones((1, ROIS), bool)}):
        with pytest.raises(BadDataError, match="out of range"):
            edge_quality(model, sc, seed=0, **numbers)
    part = BrainSymphony.from_state_dicts(spatial=tiny_states()["spatial"], spatial_heads=2)
    with pytest.raises(BadDataError, match="cannot predict edges"):
        edge_quality(part, sc, seed=0)

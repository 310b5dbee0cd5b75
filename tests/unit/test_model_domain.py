"""The verdict on whether a model knows some data."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bsym_bids.model.cards import read_card
from bsym_bids.model.domain import VERDICTS, judge_edges, judge_reconstruction

NAN = math.nan
TRAINED = {"trained": True, "quality": {"reconstruction": {"r2": 0.5, "permuted_r2": 0.1}}}


def scores(r2, permuted=-0.2, linear=0.6, linear_permuted=0.05):
    return {
        "r2": r2,
        "permuted_r2": permuted,
        "linear_r2": linear,
        "linear_permuted_r2": linear_permuted,
    }


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        # the card expects a gain of 0.4
        (scores(0.31), "in domain"),
        (scores(0.29), "doubtful"),
        (scores(0.11), "doubtful"),
        (scores(0.09), "out of domain"),
        (scores(-0.5, -0.9), "out of domain"),
        # what is reconstructed under permuted labels does not count
        (scores(0.45, 0.4), "out of domain"),
        (scores(0.45, 0.2), "doubtful"),
        # noisy data allow no more than a gain of 0.23
        (scores(0.21, linear=0.28), "in domain"),
        (scores(0.16, linear=0.28), "doubtful"),
        (scores(0.05, linear=0.28), "out of domain"),
        # ... but less than half of what the card says is not like its own data
        (scores(0.19, linear=0.24), "doubtful"),
        (scores(0.04, linear=0.04, linear_permuted=0), "out of domain"),
        # no linear prediction either: nothing to be known, but something is
        (scores(0.2, linear=0.0), "in domain"),
        (scores(0.1, linear=0.0), "doubtful"),
        (scores(0.31, linear=NAN), "in domain"),
        (scores(0.31, permuted=NAN), "in domain"),
        (scores(NAN), "doubtful"),
    ],
)
def test_reconstruction_is_held_against_card_and_baseline(found, verdict):
    judged = judge_reconstruction(TRAINED, found)
    assert judged.verdict == verdict
    assert judged.document == {"Verdict": verdict, "Reason": judged.reason}


def test_a_card_without_numbers_leaves_the_baseline():
    for card in ({"trained": True}, {"trained": True, "quality": {"reconstruction": {}}}):
        assert judge_reconstruction(card, scores(0.45)).verdict == "in domain"
        assert judge_reconstruction(card, scores(0.4)).verdict == "doubtful"
        assert judge_reconstruction(card, scores(0.26, linear=0.3)).verdict == "in domain"
        assert judge_reconstruction(card, scores(0.24, linear=0.3)).verdict == "doubtful"
        judged = judge_reconstruction(card, scores(0.4, linear=NAN))
        assert judged.verdict == "doubtful"
        assert "nothing to hold it against" in judged.reason


def test_the_reason_names_the_numbers_it_follows_from():
    judged = judge_reconstruction(TRAINED, scores(0.32, 0.08))
    assert judged.reason == (
        "R2 of held-out ROIs 0.32, under permuted ROI labels 0.08: gain 0.24, beside 0.40 of the "
        "model on its own held-out data, as its card says"
    )
    judged = judge_reconstruction(TRAINED, scores(0.32, linear=0.3, linear_permuted=0.1))
    assert "beside 0.20 of linear prediction from the group's connectivity on these data" in (
        judged.reason
    )


def test_published_numbers_by_the_rule():
    """The other scanner and site of the paper is doubtful at the low, in domain at the high end."""
    card = read_card("brainsymphony-v1")
    verdicts = [judge_reconstruction(card, scores(r2)).verdict for r2 in (0.438, 0.38, 0.21)]
    assert verdicts == ["in domain", "in domain", "doubtful"]


@pytest.mark.parametrize(
    ("rho", "permuted", "group", "verdict"),
    [
        (0.7, 0.1, 0.9, "in domain"),
        (0.5, 0.1, 0.9, "doubtful"),
        (0.2, 0.1, 0.9, "out of domain"),
        (0.5, 0.1, 0.5, "in domain"),
        (0.42, 0.1, 0.4, "doubtful"),
        (NAN, NAN, 0.9, "doubtful"),
    ],
)
def test_edges_are_held_against_card_and_group_average(rho, permuted, group, verdict):
    card = {"trained": True, "quality": {"edges": {"rho": 0.85, "permuted_rho": 0.1}}}
    found = {"rho": rho, "permuted_rho": permuted, "group_rho": group}
    assert judge_edges(card, found).verdict == verdict


numbers = st.one_of(st.floats(-1e3, 1), st.just(NAN))


@given(numbers, numbers, numbers, numbers)
def test_random_weights_know_nothing(r2, permuted, linear, linear_permuted):
    card = {"trained": False, "quality": TRAINED["quality"]}
    found = scores(r2, permuted, linear, linear_permuted)
    assert judge_reconstruction(card, found).verdict == "not trained"
    trained = judge_reconstruction(TRAINED, found)
    assert trained.verdict in set(VERDICTS) - {"not trained"}
    json.dumps(trained.document, allow_nan=False)


@given(st.floats(-1, 1), st.floats(0, 0.5), st.floats(-0.5, 1), st.floats(-1, 1))
def test_a_better_reconstruction_has_no_worse_verdict(r2, more, linear, permuted):
    order = ["out of domain", "doubtful", "in domain"]
    worse, better = (
        judge_reconstruction(TRAINED, scores(value, permuted, linear)).verdict
        for value in (r2, r2 + more)
    )
    assert order.index(better) >= order.index(worse)

import math

import numpy as np
import pytest

from bsym_bids.prediction.exchange import exchange_of, n_rearrangements, permuted_labels

LABELS = np.arange(9.0)


def reached(exchange, labels=LABELS, n=600):
    """Return which labels each unit may get."""
    shuffled = permuted_labels(labels, exchange, n, np.random.default_rng(0))
    known = np.isfinite(labels)
    np.testing.assert_array_equal(
        np.sort(shuffled[known], axis=0), np.sort(labels[known])[:, None] + np.zeros(n)
    )
    return [set(row) for row in shuffled[known]]


def ways(exchange, labels=LABELS):
    return round(10 ** n_rearrangements(labels, exchange))


def test_persons_change_places_freely():
    exchange = exchange_of(list("abcdefghi"))
    assert reached(exchange) == [set(LABELS)] * 9
    assert ways(exchange) == math.factorial(9)
    assert exchange.said == "persons of the same shape exchanged"


def test_persons_with_as_many_sessions_change_places_as_wholes():
    exchange = exchange_of(list("aabbccdec"))
    assert reached(exchange) == [
        {0, 2},
        {1, 3},
        {0, 2},
        {1, 3},
        {4},
        {5},
        {6, 7},
        {6, 7},
        {8},
    ]
    assert ways(exchange) == 2 * 2


def test_families_change_places_and_so_do_their_members():
    exchange = exchange_of(list("abcdefghi"), groups=list("vvwwxxxyz"))
    found = reached(exchange)
    assert found[:4] == [{0, 1, 2, 3}] * 4
    assert found[4:7] == [{4, 5, 6}] * 3
    assert found[7:] == [{7, 8}] * 2
    assert ways(exchange) == (2 * 2 * 2) * 6 * 2


def test_families_of_as_many_units_but_other_persons_do_not_change_places():
    # Two persons of two sessions each; one person of four sessions.
    exchange = exchange_of(list("aabbcccc"), groups=list("vvvvwwww"))
    found = reached(exchange, LABELS[:8])
    assert found[:4] == [{0, 2}, {1, 3}, {0, 2}, {1, 3}]
    assert found[4:] == [{4}, {5}, {6}, {7}]
    # One person of two sessions is no family of two.
    exchange = exchange_of(list("aabc"), groups=list("vvww"))
    assert reached(exchange, LABELS[:4]) == [{0}, {1}, {2, 3}, {2, 3}]


def test_nothing_leaves_its_site():
    exchange = exchange_of(list("abcdefghi"), sites=list("ssssttttu"))
    found = reached(exchange)
    assert found == [{0, 1, 2, 3}] * 4 + [{4, 5, 6, 7}] * 4 + [{8}]
    assert exchange.said == "persons of the same shape exchanged, within sites"


def test_persons_with_sessions_move_as_wholes_inside_of_sites():
    exchange = exchange_of(list("aabbccdd"), sites=list("sssstttt"))
    assert reached(exchange, LABELS[:8]) == [
        {0, 2},
        {1, 3},
        {0, 2},
        {1, 3},
        {4, 6},
        {5, 7},
        {4, 6},
        {5, 7},
    ]


def test_states_change_places_within_persons_alone():
    exchange = exchange_of(list("aabbcc"), are_units_free=True)
    assert reached(exchange, LABELS[:6]) == [{0, 1}, {0, 1}, {2, 3}, {2, 3}, {4, 5}, {4, 5}]
    assert "within persons" in exchange.said


def test_unlabelled_units_keep_having_no_label():
    labels = np.array([1.0, np.nan, 3.0, 4.0])
    shuffled = permuted_labels(labels, exchange_of(list("abcd")), 50, np.random.default_rng(0))
    np.testing.assert_array_equal(np.isnan(shuffled).all(axis=1), [False, True, False, False])
    nobody = permuted_labels(
        np.full(3, np.nan), exchange_of(list("abc")), 2, np.random.default_rng(0)
    )
    assert np.isnan(nobody).all()


def test_every_order_is_as_likely():
    exchange = exchange_of(list("abc"))
    shuffled = permuted_labels(np.arange(3.0), exchange, 6000, np.random.default_rng(1))
    counts = np.unique(shuffled.T, axis=0, return_counts=True)[1]
    assert len(counts) == 6
    assert counts == pytest.approx(np.full(6, 1000), abs=120)

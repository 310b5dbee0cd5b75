"""Identification of people by their other scan."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from bsym_bids.bold.connectivity import functional_connectivity
from bsym_bids.cohort.identification import (
    COLUMNS,
    Comparison,
    clopper_pearson,
    find_comparisons,
    halves,
    identify,
    identify_with_and_without_mean,
    scan_similarities,
    split_half_features,
    table,
    window_halves,
)
from bsym_bids.errors import BadDataError
from bsym_bids.model.embed import embedding_similarity


def twice(n, width, signal, seed=0, common=0.0):
    """Features of `n` people measured twice, and whose they are."""
    rng = np.random.default_rng(seed)
    own = signal * rng.standard_normal((n, width))
    scans = [own + rng.standard_normal((n, width)) for _ in range(2)]
    return np.vstack(scans) + common * rng.standard_normal(width), [*range(n), *range(n)]


def loop_rate(features: np.ndarray, n: int) -> float:
    """The rate by the definition: correlate each scan with each, one at a time."""
    hits = 0
    for queries, candidates in ((features[:n], features[n:]), (features[n:], features[:n])):
        for person, query in enumerate(queries):
            correlations = [np.corrcoef(query, other)[0, 1] for other in candidates]
            hits += int(np.argmax(correlations)) == person
    return hits / (2 * n)


def scan(sub, **entities):
    return {"sub": sub, **entities}


def test_similarities_are_correlations_over_common_features():
    features, people = twice(6, 300, 1.0)
    features[0, :20], features[3, 100] = np.nan, np.inf
    common = np.isfinite(features).all(axis=0)
    found = scan_similarities(features, people, block=37)
    assert found.n_features == common.sum() == 279
    np.testing.assert_allclose(found.plain, np.corrcoef(features[:, common]), atol=1e-12)
    mean = (features[:6] + features[6:])[:, common].mean(axis=0) / 2
    centred = np.corrcoef(features[:, common] - mean)
    np.testing.assert_allclose(found.centred, centred, atol=1e-12)


def test_people_with_many_scans_count_once_in_the_mean():
    rng = np.random.default_rng(0)
    features, people = rng.standard_normal((5, 200)), ["a", "a", "a", "b", "c"]
    mean = (features[:3].mean(axis=0) + features[3] + features[4]) / 3
    found = scan_similarities(features, people)
    np.testing.assert_allclose(found.centred, np.corrcoef(features - mean), atol=1e-12)


def test_float32_and_a_mean_that_is_large_lose_nothing():
    features, people = twice(20, 2000, 0.3, common=100.0)
    single = features.astype(np.float32)
    found = scan_similarities(single, people).centred
    double = single.astype(np.float64)
    mean = double.mean(axis=0)
    np.testing.assert_allclose(found, np.corrcoef(double - mean), atol=1e-8)


@pytest.mark.parametrize("signal", [0.0, 0.2, 0.4])
def test_rate_is_that_of_the_definition(signal):
    features, people = twice(25, 150, signal, seed=3)
    result = identify(scan_similarities(features, people), halves(25), n_permutations=0)
    assert result.rate == pytest.approx(loop_rate(features, 25))
    assert np.isnan(result.p)


def test_a_common_mean_hides_people_until_it_is_removed():
    features, people = twice(40, 400, 0.6, common=100.0)
    kept, removed = identify_with_and_without_mean(features, people, [halves(40)])
    assert (kept.mean_removed, removed.mean_removed) == (False, True)
    assert kept.similarity_other.mean() > 0.999 and abs(removed.similarity_other.mean()) < 0.1
    assert removed.rate > 0.95 and removed.i_diff > 100 * kept.i_diff > 0


def test_chance_counts_people_without_a_pair():
    features, people = twice(10, 100, 1.0)
    rng = np.random.default_rng(5)
    rows = np.vstack([features, rng.standard_normal((5, 100))])
    rows[20] = features[0] * 0.6 + features[10] * 0.6  # a stranger who is like the first person
    comparison = Comparison(
        "session", "", halves(10).first, halves(10).second, tuple(range(20, 25))
    )
    result = identify(scan_similarities(rows, [*people, *"abcde"]), comparison)
    assert result.chance == 1 / 15
    assert not result.hits[:, 0].any() and result.hits[:, 1:].all() and result.rank[0] == 2
    alone = identify(scan_similarities(features, people), halves(10))
    assert alone.rate == 1 and alone.chance == 1 / 10


def test_differential_identifiability_is_that_of_amico_and_goni():
    features, people = twice(12, 80, 0.7)
    matrix = np.corrcoef(features)[:12, 12:]
    result = identify(scan_similarities(features, people), halves(12))
    off = matrix[~np.eye(12, dtype=bool)].mean()
    assert result.i_diff == pytest.approx(matrix.diagonal().mean() - off)


def test_ties_are_misses():
    same = np.tile(np.random.default_rng(0).standard_normal(50), (8, 1))
    for removed in (False, True):
        result = identify(
            scan_similarities(same, [*"abcd", *"abcd"]), halves(4), mean_removed=removed
        )
        assert result.rate == 0 and result.p == 1 and (result.rank == 4).all()


def test_scans_that_do_not_vary_are_like_nobody():
    features, people = twice(5, 60, 2.0)
    features[2] = 4.0
    found = scan_similarities(features, people)
    assert (np.delete(found.plain[2], 2) == 0).all() and np.isfinite(found.centred).all()
    assert identify(found, halves(5)).rate < 1


def test_few_common_features_are_refused():
    features, people = twice(3, 10, 1.0)
    features[0, :8] = np.nan
    with pytest.raises(BadDataError, match="2 of 10 features") as caught:
        scan_similarities(features, people)
    assert "coverage" in caught.value.hint


def test_permutation_p_is_uniform_or_conservative_without_signal():
    p = []
    for seed in range(150):
        features, people = twice(12, 30, 0.0, seed=seed)
        found = scan_similarities(features, people)
        p.append(identify(found, halves(12), n_permutations=99, seed=seed).p)
    share = np.mean(np.array(p) <= 0.2)
    low, high = binomtest(round(0.2 * 150), 150).proportion_ci(0.999)
    assert share <= high
    assert np.mean(np.array(p) < 1) > low  # it does not say 1 throughout
    strong = identify(scan_similarities(*twice(12, 300, 1.0)), halves(12), n_permutations=99)
    assert strong.p == 1 / 100


def test_permutation_p_against_all_permutations():
    from itertools import permutations

    features, people = twice(5, 12, 0.5, seed=2)
    matrix = np.corrcoef(features)[:5, 5:]
    nearest = matrix.argmax(axis=1), matrix.argmax(axis=0)

    def hits(order: Sequence[int]) -> int:
        of_slot = np.asarray(order)
        return int((of_slot[nearest[0]] == range(5)).sum() + (nearest[1] == of_slot).sum())

    exact = np.mean([hits(order) >= hits(range(5)) for order in permutations(range(5))])
    result = identify(scan_similarities(features, people), halves(5), n_permutations=20000)
    assert 0.01 < exact < 1 and result.p == pytest.approx(exact, abs=0.02)


@given(st.integers(1, 40), st.data())
@settings(max_examples=25, deadline=None)
def test_interval_is_that_of_scipy(trials, data):
    hits = data.draw(st.integers(0, trials))
    expected = binomtest(hits, trials).proportion_ci(method="exact")
    assert clopper_pearson(hits, trials) == pytest.approx((expected.low, expected.high), abs=1e-9)
    if hits < trials:
        low, high = clopper_pearson(hits + 0.5, trials)
        assert expected.low < low < (hits + 0.5) / trials < high
        assert high <= clopper_pearson(hits + 1, trials)[1]


def test_comparisons_of_sessions_runs_and_tasks():
    scans = [
        scan("01", ses="2", task="rest", run="1"),
        scan("01", ses="1", task="rest", run="2"),
        scan("01", ses="1", task="rest", run="1"),
        scan("01", ses="1", task="movie"),
        scan("02", ses="1", task="rest", run="1"),
        scan("02", ses="2", task="rest", run="1"),
        scan("02", ses="1", task="rest", run="10"),
        scan("02", ses="1", task="rest", run="2"),
        scan("03", ses="1", task="rest", run="1"),
    ]
    session, run = find_comparisons(scans)
    assert (session.kind, session.pair) == ("session", "ses-1, ses-2")
    assert (session.first, session.second, session.others) == ((2, 4), (0, 5), (8,))
    assert (run.kind, run.first, run.second, run.others) == ("run", (2, 4), (1, 7), (8,))


def test_the_pair_of_sessions_is_one_for_all_and_the_most_frequent():
    scans = [
        *(scan("01", ses=label, task="rest") for label in ("a", "b", "c")),
        *(scan("02", ses=label, task="rest") for label in ("c", "b")),
        *(scan("03", ses=label, task="rest") for label in ("a", "b")),
        *(scan("04", ses=label, task="rest") for label in ("c", "b")),
    ]
    (found,) = find_comparisons(scans)
    assert found.pair == "ses-b, ses-c"
    assert [scans[row]["ses"] for row in (*found.first, *found.second)] == ["b"] * 3 + ["c"] * 3
    assert [scans[row]["sub"] for row in found.others] == ["03"]


def test_versions_of_one_recording_are_no_two_scans():
    scans = [scan(sub, task="rest", rec=rec) for sub in ("01", "02") for rec in ("raw", "norm")]
    assert find_comparisons(scans) == []
    scans = [scan(sub, task="rest", dir=way) for sub in ("01", "02") for way in ("AP", "PA")]
    assert [found.kind for found in find_comparisons(scans)] == ["run"]
    scans = [scan(sub, ses="1", task=task) for sub in ("01", "02") for task in ("rest", "movie")]
    assert [found.pair for found in find_comparisons(scans)] == ["task-movie, task-rest"]


def test_only_scans_that_are_compared_cost_features():
    features, people = twice(6, 50, 2.0)
    rows = np.vstack([features, np.full((1, 50), np.nan)])
    results = identify_with_and_without_mean(rows, [*people, 0], [halves(6)])
    assert [result.n_features for result in results] == [50, 50]
    assert results[0].comparison == halves(6)


def test_tables_have_their_columns():
    features, people = twice(6, 50, 2.0)
    results = identify_with_and_without_mean(features, people, [halves(6)], n_permutations=9)
    columns = table(results)
    assert list(columns) == list(COLUMNS)
    assert columns["cohort_mean"] == ["kept", "removed"] and columns["n_candidates"] == [6, 6]
    assert columns["identified"] == [1, 1] and columns["p"][0] >= 0.1
    assert results[0].rank.tolist() == [1.0] * 6


def test_halves_of_the_series():
    rng = np.random.default_rng(0)
    series, kept = rng.standard_normal((61, 5)), np.ones(61, dtype=bool)
    kept[[3, 50]] = False
    found = split_half_features(timeseries=series, kept=kept)
    assert list(found) == ["connectivity"]
    frames = np.flatnonzero(kept)
    for edges, own in zip(found["connectivity"], (frames[:29], frames[30:]), strict=True):
        matrix = functional_connectivity(series[own], np.ones(29, dtype=bool))
        expected = np.arctanh(matrix[np.triu_indices(5, 1)])
        np.testing.assert_allclose(edges, expected, rtol=1e-5)


def test_halves_of_the_windows_share_no_frame():
    onsets, duration = np.array([0, 80, 160, 240, 320, 352.8]), 160.0
    first, second = window_halves(onsets, duration)
    assert (onsets[first] + duration).max() <= onsets[second].min()
    assert first.tolist() == [True, True, False, False, False, False]
    assert second.tolist() == [False, False, False, True, True, True]
    assert window_halves(np.array([0, 80, 100]), duration) is None
    assert window_halves(np.array([0, 159.9999999]), duration) is not None


def test_halves_of_the_embedding():
    rng = np.random.default_rng(0)
    windows = rng.standard_normal((4, 7, 16)).astype(np.float32)
    masked = rng.standard_normal((7, 16)).astype(np.float32)
    windows[:, 2] = np.nan
    found = split_half_features(embeddings=windows, masked=masked, onsets=80.0 * np.arange(4))
    assert list(found) == ["similarity", "embedding"]
    for place, half in enumerate((windows[:1], windows[2:])):
        expected = embedding_similarity(half, masked)[np.triu_indices(7, 1)]
        np.testing.assert_allclose(np.tanh(found["similarity"][place]), expected, atol=1e-6)
        mean = half.mean(axis=0).ravel()
        np.testing.assert_allclose(found["embedding"][place], mean, rtol=1e-5, atol=1e-6)
    short = split_half_features(embeddings=windows[:2], masked=masked, onsets=80.0 * np.arange(2))
    assert short == {}

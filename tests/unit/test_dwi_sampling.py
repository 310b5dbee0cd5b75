"""How many streamlines are enough."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bsym_bids.dwi.batches import batch_seeds
from bsym_bids.dwi.sampling import SamplingRule, sampling_reliability, streamlines_needed
from bsym_bids.errors import UsageError

N = 450
UPPER = np.triu_indices(N, 1)


def expectations(seed, spread):
    """Draw how many streamlines each edge gets on average: a few many, most next to none."""
    rng = np.random.default_rng(seed)
    rates = np.exp(rng.normal(0, spread, len(UPPER[0]))) * (rng.uniform(size=len(UPPER[0])) < 0.3)
    return rates / rates.sum()


def drawn(rng, rates, n_streamlines):
    counts = np.zeros((N, N))
    counts[UPPER] = rng.poisson(rates * n_streamlines)
    return counts + counts.T


@pytest.mark.parametrize("spread", [1.0, 2.0])
@pytest.mark.parametrize("n_streamlines", [20_000, 60_000, 200_000, 1_000_000])
def test_it_is_the_correlation_between_two_repeats(spread, n_streamlines):
    rates = expectations(3, spread)
    rng = np.random.default_rng(n_streamlines)
    one, other = (drawn(rng, rates, n_streamlines) for _ in range(2))
    measured = np.corrcoef(one[UPPER], other[UPPER])[0, 1]
    for counts in (one, other):
        assert sampling_reliability(counts, np.ones(N, bool)) == pytest.approx(measured, abs=0.035)


def test_it_says_nothing_of_truth():
    """Counts that have nothing to do with the truth are as reliable as any."""
    rng = np.random.default_rng(0)
    wrong = rng.permutation(expectations(3, 1.5))
    counts = drawn(rng, wrong, 2_000_000)
    assert sampling_reliability(counts, np.ones(N, bool)) > 0.95
    assert abs(np.corrcoef(counts[UPPER], expectations(3, 1.5))[0, 1]) < 0.05


def test_absent_rois_do_not_count_and_the_diagonal_does_not():
    counts = drawn(np.random.default_rng(1), expectations(3, 1.5), 200_000)
    present = np.arange(N) >= 100
    alone = sampling_reliability(counts[100:, 100:], np.ones(N - 100, bool))
    assert sampling_reliability(counts + np.diag(np.full(N, 1e6)), present) == alone


def test_it_is_not_defined_for_next_to_nothing():
    everyone = np.ones(N, bool)
    counts = np.zeros((N, N))
    assert np.isnan(sampling_reliability(counts, everyone))
    counts[0, 1] = counts[1, 0] = 9
    assert np.isnan(sampling_reliability(counts, everyone))
    counts[0, 1] = counts[1, 0] = 10
    assert sampling_reliability(counts, everyone) == pytest.approx(0.9, abs=1e-4)
    assert np.isnan(sampling_reliability(np.full((N, N), 5.0), everyone))
    assert np.isnan(sampling_reliability(counts, np.arange(N) < 2))


def test_how_many_are_needed_is_foretold():
    rates = expectations(5, 1.5)
    rng = np.random.default_rng(2)
    early = sampling_reliability(drawn(rng, rates, 50_000), np.ones(N, bool))
    for wanted in (0.9, 0.97):
        needed = streamlines_needed(50_000, early, wanted)
        late = sampling_reliability(drawn(rng, rates, needed), np.ones(N, bool))
        assert late == pytest.approx(wanted, abs=0.01)


def test_seeds_of_batches_are_different_and_always_the_same():
    seeds = list(itertools.islice(batch_seeds(0), 3000))
    assert len(set(seeds)) == 3000 and min(seeds) >= 1 and max(seeds) < 2**31
    assert seeds[:100] == list(itertools.islice(batch_seeds(0), 100))
    assert not set(seeds) & set(itertools.islice(batch_seeds(1), 100))
    assert seeds[:3] == [821328062, 1817441348, 993632895]  # on any machine, in any version


@given(st.integers(1, 100_000), st.integers(1, 5000))
def test_batches_add_up_to_the_limit(limit, batch_size):
    sizes = SamplingRule(0.9, limit).batch_sizes(batch_size)
    assert sum(sizes) == limit
    assert set(sizes[:-1]) <= {batch_size} and 0 < sizes[-1] <= batch_size
    assert SamplingRule(None, 10, limit).batch_sizes(batch_size) == sizes


def test_when_to_stop():
    rule = SamplingRule(0.9, 1000)
    assert not rule.is_met([0.99])  # two batches at least
    assert not rule.is_met([0.95, 0.89])
    assert not rule.is_met([0.95, float("nan")])
    assert rule.is_met([0.5, 0.9])
    assert not SamplingRule(0.9, 1000, 500).is_met([0.5, 0.99])


@pytest.mark.parametrize(
    "rule", [(None, 1000), (0.0, 1000), (1.0, 1000), (0.9, 0), (0.9, 1000, 0), (None, 10, -1)]
)
def test_rules_that_cannot_be_kept_are_refused(rule):
    with pytest.raises(UsageError):
        SamplingRule(*rule)

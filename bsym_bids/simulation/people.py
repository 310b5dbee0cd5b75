"""What distinguishes simulated people: age, functional connectivity, streamlines."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from bsym_bids import atlas
from bsym_bids.atlas.group import group_functional_connectivity, group_streamline_counts

YOUNGEST, OLDEST = 20.0, 80.0  # years
#: Share of a person's covariance that is theirs alone, the patterns that it is made of, and the
#: power of the average's eigenvalues that these are weighted with. Chosen so that one run of a
#: simulated person has, like one run of a real one, an average r of 0.5 to 0.6 with the average, a
#: standard deviation of correlations of 0.2 and about ten effective dimensions, and is predicted
#: by the average as well as theirs.
INDIVIDUAL_SHARE = 0.7
INDIVIDUAL_PATTERNS = 10
INDIVIDUAL_SMOOTHNESS = 0.65
#: Part of each ROI's variance in the average that is noise of its own, by fiat: little less than
#: the smallest eigenvalue, which bounds it. People's own covariance is without it: on a real run,
#: the best linear prediction from the average is a tenth larger than the Gaussian one.
AVERAGE_NOISE = 0.09
_DEFAULT_LOADING = 0.5  # of the youngest on a pattern of the default network; the oldest have none
_CALLOSAL_LOSS = 0.015  # of the logarithm of streamline counts between hemispheres, per year
_COUNT_PATTERNS = 20
_COUNT_SPREAD = 1.0  # individual variation of the logarithm of counts, in patterns over ROIs
_EDGE_SPREAD = 1.0  # and of each edge by itself
_TWO_STEP_SHARE = 3e-3  # streamlines where the average has none: along two edges
_DEPTH = (0.05, 0.25)  # streamlines of a person, as a share of those behind the average


def draw_correlation(age: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the correlation matrix of one person.

    The group average, mixed with a few patterns over ROIs that are drawn from it (so that they are
    as smooth as connectivity is), and with a pattern of the default network that fades with age.

    Parameters
    ----------
    age : float
        In years.
    rng : numpy.random.Generator
        Source of what is individual.

    Returns
    -------
    ndarray, shape (450, 450)
        Positive definite, diagonal 1.
    """
    patterns = _pattern_factor() @ rng.standard_normal((atlas.N_ROIS, INDIVIDUAL_PATTERNS))
    covariance = (1 - INDIVIDUAL_SHARE) * _noise_free_average()
    covariance = covariance + INDIVIDUAL_SHARE / INDIVIDUAL_PATTERNS * patterns @ patterns.T
    youth = np.clip((OLDEST - age) / (OLDEST - YOUNGEST), 0, 1)
    default = _DEFAULT_LOADING * youth * (np.array(atlas.networks()) == "Default")
    covariance += np.outer(default, default)
    spread = np.sqrt(np.diag(covariance))
    return covariance / np.outer(spread, spread)


def draw_streamline_counts(age: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the streamline counts of one person.

    Poisson counts around the group average, which each person has more or less of by ROI and by
    edge; with age there are fewer between the hemispheres. A tractogram also finds streamlines
    where the average has none; here they run where two edges of the average lead.

    Parameters
    ----------
    age : float
        In years.
    rng : numpy.random.Generator
        Source of what is individual.

    Returns
    -------
    ndarray, shape (450, 450)
        Whole numbers, symmetric, diagonal 0.
    """
    patterns = rng.standard_normal((2, atlas.N_ROIS, _COUNT_PATTERNS))
    deviation = _COUNT_SPREAD * patterns[0] @ patterns[1].T / np.sqrt(2 * _COUNT_PATTERNS)
    deviation = deviation + deviation.T
    edges = rng.standard_normal((atlas.N_ROIS, atlas.N_ROIS)) * _EDGE_SPREAD
    deviation += np.triu(edges, 1) + np.triu(edges, 1).T
    deviation -= _CALLOSAL_LOSS * (age - YOUNGEST) * _between_hemispheres()
    expected = rng.uniform(*_DEPTH) * _expected_counts() * np.exp(deviation)
    counts = np.triu(rng.poisson(expected), 1).astype(np.float64)
    return counts + counts.T


@cache
def _noise_free_average() -> NDArray[np.float64]:
    average = group_functional_connectivity()
    return (average - AVERAGE_NOISE * np.eye(atlas.N_ROIS)) / (1 - AVERAGE_NOISE)


@cache
def _pattern_factor() -> NDArray[np.float64]:
    values, vectors = np.linalg.eigh(_noise_free_average())
    # Signs of eigenvectors are the library's choice; here they are the same everywhere.
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(0), np.arange(len(values))])
    factor = vectors * values**INDIVIDUAL_SMOOTHNESS
    return factor / np.sqrt((factor**2).sum(1).mean())


@cache
def _expected_counts() -> NDArray[np.float64]:
    counts = group_streamline_counts()
    strength = counts.sum(0)
    # Of the streamlines of i, those that reach j in two steps if each goes on at random.
    two_steps = counts @ (counts / strength[:, None])
    expected = counts + _TWO_STEP_SHARE * two_steps
    np.fill_diagonal(expected, 0)
    return expected


@cache
def _between_hemispheres() -> NDArray[np.bool_]:
    sides = np.array([roi.hemisphere for roi in atlas.rois()])
    return sides[:, None] != sides

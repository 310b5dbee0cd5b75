"""Group averages, and how well features tell people apart when they are measured again.

Reliability is the intraclass correlation of one measurement, ICC(1,1) of Shrout & Fleiss 1979
(doi:10.1037/0033-2909.86.2.420): the share of the variance that lies between people, by a one-way
analysis of variance with people as random effects. It is of absolute agreement: whatever shifts all
second scans counts as error. People may have different numbers of scans, with the mean number of
scans replaced by k0 (Donner 1986, doi:10.2307/1403259); those with one scan add to the variance
between people only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bsym_bids.cohort.edges import memberships, networks_in_order
from bsym_bids.errors import BadDataError

if TYPE_CHECKING:
    from scipy.sparse import csr_array

#: Columns of features that are worked on at a time.
BLOCK = 1024
_ROUNDING = 1e-12  # of the largest value squared: a smaller mean square is none
#: Columns of the table by network, which are described in data/outputs.yaml.
COLUMNS = (
    "network",
    "n_features",
    "icc_mean",
    "icc_median",
    "icc_q25",
    "icc_q75",
    "icc_pooled",
)


@dataclass(frozen=True, eq=False)
class GroupMean:
    """Average of people, in which each counts once.

    Attributes
    ----------
    mean, deviation : ndarray, shape (F,)
        Mean and sample standard deviation over people of the mean of each one's scans.
    n_people : ndarray of int, shape (F,)
        People who have the feature.
    """

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]
    n_people: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Reliability:
    """Reliability of each feature.

    Attributes
    ----------
    icc : ndarray, shape (F,)
        ICC(1,1); NaN where no person has the feature twice, or where nothing varies.
    between, within : ndarray, shape (F,)
        Variance components: between people, and between scans of a person. The former can be below
        0 by chance.
    n_people, n_repeated : int
        People, and those with two scans or more.
    """

    icc: NDArray[np.float64]
    between: NDArray[np.float64]
    within: NDArray[np.float64]
    n_people: int
    n_repeated: int


def group_mean(
    features: NDArray[np.floating], people: Sequence[str], block: int = BLOCK
) -> GroupMean:
    """Average features over people.

    Parameters
    ----------
    features : ndarray, shape (M, F)
        A row per scan, correlations best as Fisher's z; NaN is what a scan does not have.
    people : sequence of str
        The person of each scan.
    block : int
        Columns that are worked on at a time.

    Returns
    -------
    GroupMean
        NaN where nobody has the feature; no deviation where one person has.
    """
    _, scans = _by_person(people)
    parts = []
    for columns in _blocks(features, block):
        means, _ = _person_means(columns, scans)
        there = np.isfinite(means)
        count = there.sum(axis=0)
        mean = _divide(np.where(there, means, 0).sum(axis=0), count)
        squares = (np.where(there, means - mean, 0) ** 2).sum(axis=0)
        parts.append((mean, np.sqrt(_divide(squares, count - 1)), count))
    mean, deviation, count = (np.concatenate(part) for part in zip(*parts, strict=True))
    return GroupMean(mean, deviation, count)


def reliability(
    features: NDArray[np.floating], people: Sequence[str], block: int = BLOCK
) -> Reliability:
    """Return the intraclass correlation of every feature.

    Parameters
    ----------
    features : ndarray, shape (M, F)
        A row per scan, correlations best as Fisher's z; NaN is what a scan does not have.
    people : sequence of str
        The person of each scan.
    block : int
        Columns that are worked on at a time.

    Returns
    -------
    Reliability

    Raises
    ------
    BadDataError
        Fewer than two people, or nobody with two scans.
    """
    person, scans = _by_person(people)
    sizes = np.bincount(person)
    if sizes.size < 2 or sizes.max() < 2:
        raise BadDataError(
            f"{sizes.size} people with {sizes.max(initial=0)} scans at most have no reliability",
            hint="it takes two people or more, and somebody with two scans",
        )
    parts = [_components(columns, person, scans) for columns in _blocks(features, block)]
    between, within = (np.concatenate(part) for part in zip(*parts, strict=True))
    total = between + within
    icc = np.divide(between, total, out=np.full_like(total, np.nan), where=total > 0)
    return Reliability(icc, between, within, sizes.size, int((sizes > 1).sum()))


def edge_networks(networks: Sequence[str]) -> dict[str, NDArray[np.bool_]]:
    """Return the edges of each network, by name.

    Parameters
    ----------
    networks : sequence of str
        Of each of the R ROIs.

    Returns
    -------
    mapping of str to ndarray of bool, shape (R (R - 1) / 2,)
        Edges, as `edges_of` has them, with an end in the network.
    """
    rows, columns = np.triu_indices(len(networks), 1)
    members = memberships(networks)
    names = networks_in_order(networks)
    return {name: own[rows] | own[columns] for name, own in zip(names, members, strict=True)}


def roi_networks(networks: Sequence[str], width: int = 1) -> dict[str, NDArray[np.bool_]]:
    """Return the features of each network where ROIs have `width` each, ROI by ROI."""
    names, members = networks_in_order(networks), memberships(networks)
    return {name: np.repeat(own, width) for name, own in zip(names, members, strict=True)}


def table(result: Reliability, by_network: Mapping[str, NDArray[np.bool_]]) -> dict[str, list[Any]]:
    """Summarise reliability over all features and by network.

    Parameters
    ----------
    result : Reliability
        Of F features.
    by_network : mapping of str to ndarray of bool, shape (F,)
        Features of each network: `edge_networks`, `roi_networks`.

    Returns
    -------
    mapping of str to list
        Columns, see `COLUMNS`; the first row is of all features.
    """
    rows = [("all", *_summary(result, np.ones(result.icc.size, dtype=bool)))]
    rows += [(name, *_summary(result, own)) for name, own in by_network.items()]
    return {name: [row[place] for row in rows] for place, name in enumerate(COLUMNS)}


def _summary(result: Reliability, own: NDArray[np.bool_]) -> tuple[int, float, float, float, ...]:
    defined = own & np.isfinite(result.icc)
    if not defined.any():
        return (0, *(float("nan"),) * 5)
    icc = result.icc[defined]
    between, within = result.between[defined].sum(), result.within[defined].sum()
    quartiles = np.percentile(icc, [50, 25, 75])
    return (
        icc.size,
        float(icc.mean()),
        *map(float, quartiles),
        float(between / (between + within)),
    )


def _by_person(people: Sequence[str]) -> tuple[NDArray[np.int64], csr_array]:
    """Return the number of the person of each scan (M,), and which scans are whose (P, M)."""
    from scipy.sparse import csr_array

    labels, person = np.unique(np.asarray(people), return_inverse=True)
    place = (person, np.arange(person.size))
    return person, csr_array((np.ones(person.size), place), shape=(labels.size, person.size))


def _blocks(features: NDArray[np.floating], block: int) -> Iterator[NDArray[np.float64]]:
    for start in range(0, features.shape[1], block):
        yield np.asarray(features[:, start : start + block], dtype=np.float64)


def _person_means(
    values: NDArray[np.float64], scans: csr_array
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return means of people (P, F) over the scans (M, F) that have a value, and their counts."""
    there = np.isfinite(values)
    if there.all():
        count = np.broadcast_to(scans.sum(axis=1)[:, None], (scans.shape[0], values.shape[1]))
        return (scans @ values) / count, count
    count = scans @ there.astype(np.float64)
    return _divide(scans @ np.where(there, values, 0), count), count


def _components(
    values: NDArray[np.float64], person: NDArray[np.int64], scans: csr_array
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the variance between and within people of each feature, by analysis of variance."""
    mean, count = _person_means(values, scans)
    deviations = values - mean[person]
    squares = np.where(np.isfinite(deviations), deviations, 0) ** 2
    n_people, n_scans = (count > 0).sum(axis=0), count.sum(axis=0)
    weighted = count * np.nan_to_num(mean)
    grand = _divide(weighted.sum(axis=0), n_scans)
    deviation = np.where(count > 0, mean - grand, 0)
    mean_square_between = _divide((count * deviation**2).sum(axis=0), n_people - 1)
    mean_square_within = _divide(squares.sum(axis=0), n_scans - n_people)
    size = _divide(n_scans - _divide((count**2).sum(axis=0), n_scans), n_people - 1)
    # What only rounding leaves is no variance; float32 features that are equal have none at all.
    sizes = np.where(np.isfinite(values), np.abs(values), 0)
    least = _ROUNDING * sizes.max(axis=0, initial=0) ** 2
    mean_square_between = np.where(mean_square_between <= least, 0, mean_square_between)
    mean_square_within = np.where(mean_square_within <= least, 0, mean_square_within)
    return _divide(mean_square_between - mean_square_within, size), mean_square_within


def _divide(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """Return a / b; NaN where b is not above 0."""
    shape = np.broadcast_shapes(np.shape(a), np.shape(b))
    return np.divide(a, b, out=np.full(shape, np.nan), where=np.asarray(b) > 0)

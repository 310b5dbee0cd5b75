"""Identification: how often a person's other scan is the one most like their first.

Fingerprinting after Finn et al. 2015 (doi:10.1038/nn.4135): each person has one scan in either of
two sets; a scan of the one set is identified if, of all scans of the other set, the one that it
correlates with most is of the same person. Both directions are averaged. Chance is one by the
number of candidates. Differential identifiability after Amico & Goñi 2018
(doi:10.1038/s41598-018-25089-1): mean correlation of two scans of a person minus that of two
people's.

What a scan shares with all others says nothing about its person, but can be most of it: embeddings
hold a code of the ROI that is the same for everyone. So each comparison is made twice, with the
features as they are, and after the mean over people was taken away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bsym_bids.cohort.edges import edges_of, fisher_z
from bsym_bids.errors import BadDataError

#: Columns of features that are worked on at a time.
BLOCK = 4096
#: What two scans may differ in, and what comparing them asks.
KINDS: Mapping[str, str] = {
    "session": "another session of the same task",
    "run": "another run of the same session and task",
    "task": "another task of the same session",
    "half": "the other half of the same run, so that all that marks a run counts as the person",
}
#: Entities of which one at least differs between two runs; others tell versions of one apart.
_OF_RUNS = ("run", "dir", "acq", "ce")
_TIE = 1e-12  # similarities that differ by less are equal
_NO_VARIATION = 1e-13  # share of a scan's sum of squares below which nothing is left of it
#: Columns of the table of comparisons, which are described in data/outputs.yaml.
COLUMNS = (
    "comparison",
    "pair",
    "cohort_mean",
    "n_people",
    "n_candidates",
    "n_features",
    "identified",
    "chance",
    "ci_low",
    "ci_high",
    "p",
    "n_permutations",
    "first_to_second",
    "second_to_first",
    "similarity_self",
    "similarity_other",
    "i_diff",
)


@dataclass(frozen=True)
class Comparison:
    """Which two scans of each person are compared.

    Attributes
    ----------
    kind : str
        One of `KINDS`.
    pair : str
        The two sets, for tables: ``ses-1, ses-2``.
    first, second : tuple of int
        Rows of the features; entry i of both is of one person, and no person is there twice.
    others : tuple of int
        One scan each of further people, who have no pair: candidates in both directions.
    """

    kind: str
    pair: str
    first: tuple[int, ...]
    second: tuple[int, ...]
    others: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Similarities:
    """Correlations between scans.

    Attributes
    ----------
    plain : ndarray, shape (M, M)
        Pearson correlation over the features that all scans have.
    centred : ndarray, shape (M, M)
        The same after the mean over people was removed from every feature; everyone counts once
        in it.
    n_features : int
        How many features all scans have.
    """

    plain: NDArray[np.float64]
    centred: NDArray[np.float64]
    n_features: int


@dataclass(frozen=True, eq=False)
class Identification:
    """How often people are identified.

    Attributes
    ----------
    comparison : Comparison
        What was compared.
    mean_removed : bool
        Whether the mean over people was removed.
    n_features : int
        Features that all scans have.
    hits : ndarray of bool, shape (2, P)
        Whether each person was identified: from first to second, and back.
    chance : float
        1 by the number of candidates.
    interval : tuple of float
        95 % interval of `rate` by Clopper & Pearson with people as trials. It is conservative: two
        directions averaged vary less than one.
    p : float
        Share of permutations of people in one set, with the true order, that identify as many.
    n_permutations : int
        Permutations.
    similarity_self, similarity_other : ndarray, shape (P,)
        Of each person: correlation of their two scans, and mean correlation of either with the
        candidates that are not theirs.
    rank : ndarray, shape (P,)
        Place of the person's own scan among the candidates, mean of both directions; 1 is the
        most similar. Ties have the worst place.
    """

    comparison: Comparison
    mean_removed: bool
    n_features: int
    hits: NDArray[np.bool_]
    chance: float
    interval: tuple[float, float]
    p: float
    n_permutations: int
    similarity_self: NDArray[np.float64]
    similarity_other: NDArray[np.float64]
    rank: NDArray[np.float64]

    @property
    def rate(self) -> float:
        """Share of scans that are identified, mean of both directions."""
        return float(self.hits.mean())

    @property
    def i_diff(self) -> float:
        """Differential identifiability, as a difference of correlations."""
        return float(self.similarity_self.mean() - self.similarity_other.mean())


def find_comparisons(scans: Sequence[Mapping[str, str]]) -> list[Comparison]:
    """Find out what can be compared in a cohort.

    Sessions (or tasks) that are compared are the two that most people have, the first ones of
    several that are as frequent. Of a person's scans, those are taken that differ in fewest other
    entities, then the first ones.

    Parameters
    ----------
    scans : sequence of mapping
        Entities of each scan by short key; ``sub``, and ``ses``, ``task``, ``run``, ... where it
        has them.

    Returns
    -------
    list of Comparison
        Of kinds ``session``, ``run`` and ``task``; empty for one scan each. Without the kinds of
        which there are fewer than two people.
    """
    by_person: dict[str, list[int]] = {}
    for row in sorted(range(len(scans)), key=lambda row: _natural(scans[row])):
        by_person.setdefault(scans[row]["sub"], []).append(row)
    found = []
    for kind in ("session", "run", "task"):
        pairs = _pairs(scans, by_person, kind)
        if len(pairs) > 1:
            others = tuple(rows[0] for person, rows in by_person.items() if person not in pairs)
            first, second = zip(*pairs.values(), strict=True)
            name = _pair_name(scans, kind, first[0], second[0])
            found.append(Comparison(kind, name, first, second, others))
    return found


def halves(n_runs: int) -> Comparison:
    """Return the comparison of first with second halves.

    Rows of the features are all first halves, then all second ones; one run of each person.
    """
    rows = tuple(range(2 * n_runs))
    return Comparison("half", "first half, second half", rows[:n_runs], rows[n_runs:])


def scan_similarities(
    features: NDArray[np.floating], people: Sequence[str], block: int = BLOCK
) -> Similarities:
    """Correlate the features of all scans, with and without the mean over people.

    One Gram matrix serves both: columns come in blocks, in float64 whatever the features are in.

    Parameters
    ----------
    features : ndarray, shape (M, F)
        A row per scan; NaN is a feature that the scan does not have.
    people : sequence of str
        The person of each scan; all scans of a person count as one in the mean.
    block : int
        Columns that are worked on at a time.

    Returns
    -------
    Similarities
        Similarity to a scan whose features do not vary is 0.

    Raises
    ------
    BadDataError
        Fewer than three features are there in all scans.
    """
    common = _common_features(features, block)
    n_features = int(common.sum())
    if n_features < 3:
        raise BadDataError(
            f"{n_features} of {common.size} features are there in all of {len(features)} scans",
            hint="leave out scans that lack many ROIs: see their coverage tables",
        )
    gram = _gram(features, common, block)
    weights = _weights(people)
    projected = weights @ gram
    centred = gram - projected - projected[:, None] + projected @ weights
    reference = gram.diagonal()
    return Similarities(
        _correlations(gram, reference), _correlations(centred, reference), n_features
    )


def identify(
    similarities: Similarities,
    comparison: Comparison,
    *,
    mean_removed: bool = False,
    n_permutations: int = 1000,
    seed: int = 0,
) -> Identification:
    """Look for each person's other scan among all candidates.

    Parameters
    ----------
    similarities : Similarities
        Of all scans.
    comparison : Comparison
        Which to compare.
    mean_removed : bool
        Which of the similarities to take.
    n_permutations : int
        Permutations of people in the second set, candidates without a pair included; 0 for none.
    seed : int
        Of the permutations.

    Returns
    -------
    Identification
    """
    matrix = similarities.centred if mean_removed else similarities.plain
    others = list(comparison.others)
    forward = matrix[np.ix_(comparison.first, [*comparison.second, *others])]
    backward = matrix[np.ix_(comparison.second, [*comparison.first, *others])]
    n_people, n_candidates = forward.shape
    nearest = _nearest(forward), _nearest(backward)
    own = np.arange(n_people)
    hits = np.stack([nearest[0] == own, nearest[1] == own])
    p = _permutation_p(nearest, n_candidates, n_permutations, np.random.default_rng(seed))
    return Identification(
        comparison=comparison,
        mean_removed=mean_removed,
        n_features=similarities.n_features,
        hits=hits,
        chance=1 / n_candidates,
        interval=clopper_pearson(float(hits.mean(axis=0).sum()), n_people),
        p=p,
        n_permutations=n_permutations,
        similarity_self=forward.diagonal().copy(),
        similarity_other=(_mean_of_others(forward) + _mean_of_others(backward)) / 2,
        rank=(_rank_of_own(forward) + _rank_of_own(backward)) / 2,
    )


def identify_with_and_without_mean(
    features: NDArray[np.floating],
    people: Sequence[str],
    comparisons: Sequence[Comparison],
    *,
    n_permutations: int = 1000,
    seed: int = 0,
) -> list[Identification]:
    """Make all comparisons of one kind of features, each as it is and without the mean.

    Parameters and errors as of `scan_similarities` and `identify`. Only scans that some comparison
    names are used, so that what another one lacks costs no features.
    """
    used = sorted({row for c in comparisons for row in (*c.first, *c.second, *c.others)})
    place = {row: index for index, row in enumerate(used)}
    chosen = features if len(used) == len(features) else features[used]
    similarities = scan_similarities(chosen, [people[row] for row in used])
    results = []
    for comparison in comparisons:
        moved = Comparison(
            comparison.kind,
            comparison.pair,
            *(
                tuple(place[row] for row in rows)
                for rows in (comparison.first, comparison.second, comparison.others)
            ),
        )
        for removed in (False, True):
            result = identify(
                similarities,
                moved,
                mean_removed=removed,
                n_permutations=n_permutations,
                seed=seed,
            )
            results.append(replace(result, comparison=comparison))
    return results


def split_half_features(
    *,
    timeseries: NDArray[np.floating] | None = None,
    kept: NDArray[np.bool_] | None = None,
    embeddings: NDArray[np.floating] | None = None,
    masked: NDArray[np.floating] | None = None,
    onsets: NDArray[np.floating] | None = None,
    window_duration: float = 160.0,
) -> dict[str, NDArray[np.float32]]:
    """Return features of the two halves of one run, for cohorts with one run each.

    Parameters
    ----------
    timeseries, kept : ndarray, shapes (T, R) and (T,)
        Denoised series, and which frames count; halves have as many kept frames.
    embeddings, masked, onsets : ndarray, shapes (W, R, D), (R, D), (W,)
        As the file of windows has them; onsets in s. The cohort's mean embedding can take the place
        of ``masked``. No frame is in both halves: windows that
        would share some with the other half are left out.
    window_duration : float
        Length of a window in s.

    Returns
    -------
    mapping of str to ndarray
        ``connectivity`` and ``similarity``, (2, R (R - 1) / 2): edges as Fisher's z; ``embedding``,
        (2, R D): mean embedding. What was not given is not there, nor are the last two for a run
        that has no two windows without a common frame.

    Raises
    ------
    BadDataError
        Fewer than three kept frames in a half.
    """
    from bsym_bids.bold.connectivity import functional_connectivity
    from bsym_bids.model.embed import embedding_similarity

    features = {}
    if timeseries is not None and kept is not None:
        first, second = _kept_halves(kept)
        values = np.asarray(timeseries, dtype=np.float64)
        matrices = [functional_connectivity(values, half) for half in (first, second)]
        features["connectivity"] = _stacked_edges(matrices)
    if embeddings is not None and masked is not None and onsets is not None:
        windows = window_halves(onsets, window_duration)
        if windows is not None:
            parts = [embeddings[half] for half in windows]
            similar = [embedding_similarity(part, np.asarray(masked)) for part in parts]
            features["similarity"] = _stacked_edges(similar)
            means = [part.mean(axis=0, dtype=np.float64).ravel() for part in parts]
            features["embedding"] = np.stack(means).astype(np.float32)
    return features


def window_halves(
    onsets: NDArray[np.floating], duration: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]] | None:
    """Divide windows into two sets of which none shares a frame with the other set.

    Parameters
    ----------
    onsets : ndarray, shape (W,)
        Starts in s, ascending.
    duration : float
        Length of a window in s.

    Returns
    -------
    tuple of ndarray of bool, shape (W,), or None
        Windows that end before a cut, and those that start after it; the cut leaves as many as can
        be in the smaller set. None if there are no two windows apart.
    """
    starts = np.asarray(onsets, dtype=np.float64)
    margin = 1e-6 * duration  # onsets are rounded
    best: tuple[NDArray[np.bool_], NDArray[np.bool_]] | None = None
    for cut in starts:
        early, late = starts + duration <= cut + margin, starts >= cut
        n_smaller = min(early.sum(), late.sum())
        if n_smaller and (best is None or n_smaller > min(half.sum() for half in best)):
            best = early, late
    return best


def table(results: Sequence[Identification]) -> dict[str, list[Any]]:
    """Return the columns of the table of comparisons, see `COLUMNS`."""
    rows = [
        (
            result.comparison.kind,
            result.comparison.pair,
            "removed" if result.mean_removed else "kept",
            result.hits.shape[1],
            round(1 / result.chance),
            result.n_features,
            result.rate,
            result.chance,
            *result.interval,
            result.p,
            result.n_permutations,
            *map(float, result.hits.mean(axis=1)),
            float(result.similarity_self.mean()),
            float(result.similarity_other.mean()),
            result.i_diff,
        )
        for result in results
    ]
    return {name: [row[place] for row in rows] for place, name in enumerate(COLUMNS)}


def clopper_pearson(hits: float, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Return the interval of a share by Clopper & Pearson (1934); hits may be halves."""
    from scipy.stats import beta

    tail = (1 - level) / 2
    low = beta.ppf(tail, hits, trials - hits + 1) if hits > 0 else 0.0
    high = beta.ppf(1 - tail, hits + 1, trials - hits) if hits < trials else 1.0
    return float(low), float(high)


def _natural(entities: Mapping[str, str]) -> tuple[tuple[tuple[bool, int, str], ...], ...]:
    """Return a key that sorts ``run-2`` before ``run-10``, by session first."""
    values = [entities.get("ses", ""), *(v for k, v in entities.items() if k not in ("sub", "ses"))]
    return tuple((_number_or_text(value),) for value in values)


def _number_or_text(value: str) -> tuple[bool, int, str]:
    return (not value.isdigit(), int(value) if value.isdigit() else 0, value)


def _pairs(
    scans: Sequence[Mapping[str, str]], by_person: Mapping[str, Sequence[int]], kind: str
) -> dict[str, tuple[int, int]]:
    """Return the two scans of each person that has two of a kind."""
    candidates = {
        person: [
            (a, b)
            for place, a in enumerate(rows)
            for b in rows[place + 1 :]
            if _differ_in(scans[a], scans[b]) == kind
        ]
        for person, rows in by_person.items()
    }
    if kind != "run":  # one pair of labels for all, lest sessions of many names be mixed
        entity = {"session": "ses", "task": "task"}[kind]
        chosen = _most_frequent(scans, candidates, entity)
        candidates = {
            person: [pair for pair in pairs if _labels(scans, pair, entity) == chosen]
            for person, pairs in candidates.items()
        }
    return {
        person: _in_order(scans, min(pairs, key=lambda pair: _n_different(scans, pair)), kind)
        for person, pairs in candidates.items()
        if pairs
    }


def _differ_in(a: Mapping[str, str], b: Mapping[str, str]) -> str:
    """Return the kind of comparison that two scans of a person make, or nothing."""
    session, task = (a.get(key) != b.get(key) for key in ("ses", "task"))
    if session != task:
        return "session" if session else "task"
    other_run = any(a.get(key) != b.get(key) for key in _OF_RUNS)
    return "run" if other_run and not session else ""


def _labels(
    scans: Sequence[Mapping[str, str]], pair: tuple[int, int], entity: str
) -> tuple[str, ...]:
    return tuple(sorted((scans[row].get(entity, "") for row in pair), key=_number_or_text))


def _most_frequent(
    scans: Sequence[Mapping[str, str]],
    candidates: Mapping[str, Sequence[tuple[int, int]]],
    entity: str,
) -> tuple[str, ...]:
    """Return the two labels that most people have a pair of, of several the first in order."""
    counts: dict[tuple[str, ...], int] = {}
    for pairs in candidates.values():
        for labels in {_labels(scans, pair, entity) for pair in pairs}:
            counts[labels] = counts.get(labels, 0) + 1
    ordered = sorted(counts, key=lambda labels: tuple(map(_number_or_text, labels)))
    return max(ordered, key=lambda labels: counts[labels], default=())


def _n_different(scans: Sequence[Mapping[str, str]], pair: tuple[int, int]) -> int:
    a, b = (scans[row] for row in pair)
    return sum(a.get(key) != b.get(key) for key in a.keys() | b.keys())


def _in_order(
    scans: Sequence[Mapping[str, str]], pair: tuple[int, int], kind: str
) -> tuple[int, int]:
    """Put the scan with the first of two labels first, so that sets are of one session or task."""
    entity = {"session": "ses", "task": "task"}.get(kind)
    if entity and scans[pair[0]].get(entity, "") != _labels(scans, pair, entity)[0]:
        return pair[1], pair[0]
    return pair


def _pair_name(scans: Sequence[Mapping[str, str]], kind: str, first: int, second: int) -> str:
    if kind == "run":
        return "first run, another run"
    entity = {"session": "ses", "task": "task"}[kind]
    labels = (scans[row].get(entity, "") for row in (first, second))
    return ", ".join(f"{entity}-{label}" if label else f"no {entity}" for label in labels)


def _kept_halves(kept: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Divide the kept frames into two halves of as many; the one in the middle may be in none."""
    frames = np.flatnonzero(kept)
    n_half = frames.size // 2
    first, second = np.zeros((2, kept.size), dtype=bool)
    first[frames[:n_half]] = second[frames[frames.size - n_half :]] = True
    return first, second


def _stacked_edges(matrices: Sequence[NDArray[np.floating]]) -> NDArray[np.float32]:
    return np.stack([fisher_z(edges_of(matrix)) for matrix in matrices]).astype(np.float32)


def _common_features(features: NDArray[np.floating], block: int) -> NDArray[np.bool_]:
    return np.concatenate(
        [
            np.isfinite(features[:, start : start + block]).all(axis=0)
            for start in range(0, features.shape[1], block)
        ]
    )


def _gram(
    features: NDArray[np.floating], common: NDArray[np.bool_], block: int
) -> NDArray[np.float64]:
    """Return the Gram matrix of features from which each scan's own mean was taken.

    The mean is taken first, not out of the Gram matrix, where it would cost digits.
    """
    starts = range(0, features.shape[1], block)
    total = np.zeros(len(features))
    for start in starts:
        part = common[start : start + block]
        total += features[:, start : start + block][:, part].sum(axis=1, dtype=np.float64)
    mean = (total / common.sum())[:, None]
    gram = np.zeros((len(features),) * 2)
    for start in starts:
        part = common[start : start + block]
        values = features[:, start : start + block][:, part].astype(np.float64)
        values -= mean
        gram += values @ values.T
    return gram


def _weights(people: Sequence[str]) -> NDArray[np.float64]:
    """Return the weight of each scan in the mean over people."""
    _, person, count = np.unique(np.asarray(people), return_inverse=True, return_counts=True)
    return 1 / (count[person] * count.size)


def _correlations(gram: NDArray[np.float64], reference: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a Gram matrix as correlations; scans of which only rounding is left have 0."""
    squares = gram.diagonal()
    varies = squares > _NO_VARIATION * reference
    norm = np.sqrt(np.where(varies, squares, 1))
    correlation = gram / norm[:, None] / norm
    correlation[~varies] = correlation[:, ~varies] = 0
    return correlation


def _nearest(similarity: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the most similar candidate of each row; -1 where two are as similar."""
    nearest = similarity.argmax(axis=1)
    if similarity.shape[1] > 1:
        second, first = np.partition(similarity, -2, axis=1)[:, -2:].T
        nearest[first - second <= _TIE] = -1
    return nearest


def _permutation_p(
    nearest: tuple[NDArray[np.int64], NDArray[np.int64]],
    n_candidates: int,
    n_permutations: int,
    rng: np.random.Generator,
) -> float:
    """Return how often exchanged people give as many hits, in both directions together.

    Slot s of the second set goes to person ``order[s]``; the first set stays.
    """
    if not n_permutations:
        return float("nan")
    forward, backward = nearest
    n_people = forward.size
    own = np.arange(n_people)
    observed = (forward == own).sum() + (backward == own).sum()
    as_many = 0
    for _ in range(n_permutations):
        order = rng.permutation(n_candidates)
        there = (forward >= 0) & (order[forward] == own)
        as_many += there.sum() + (backward == order[:n_people]).sum() >= observed
    return float((1 + as_many) / (1 + n_permutations))


def _mean_of_others(similarity: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each row's mean over all candidates but the own one."""
    others = similarity.shape[1] - 1
    return (similarity.sum(axis=1) - similarity.diagonal()) / max(others, 1)


def _rank_of_own(similarity: NDArray[np.float64]) -> NDArray[np.float64]:
    own = similarity.diagonal()[:, None]
    return (similarity >= own - _TIE).sum(axis=1).astype(np.float64)

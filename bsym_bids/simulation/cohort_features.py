"""The features of simulated cohorts: backgrounds, and scores along patterns."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import cache

import numpy as np
from numpy.typing import NDArray

from bsym_bids.simulation.cohort_patterns import (
    KINDS,
    SIMILARITY_GAIN,
    SOURCE_OF,
    SPREAD,
    Direction,
    Features,
    Floats,
    fc_modes,
    mean_features,
    pattern_rng,
    smooth_pattern,
)
from bsym_bids.simulation.cohort_people import People, Sites

_PROPER_ROUNDS, _LEAST_EIGENVALUE = 15, 0.02
_FRAMES = 100  # degrees of freedom of a run: sampling error of correlations of 0.1
_INDIVIDUAL_SHARE, _INDIVIDUAL_PATTERNS = 0.35, 10
_DEPTH_SPREAD = 0.12  # of streamline counts, log10
_COUNT_PATTERNS, _COUNT_SPREAD, _COUNT_NOISE = 10, 0.2, 0.2  # log10
_MOST_STREAMLINES = 100_000  # of an edge: beyond, float32 does not hold 1 + count
_SIMILARITY_NOISE = 0.1  # Fisher's z
_EMBEDDING_PATTERNS, _EMBEDDING_NOISE = 20, 0.1
_EMBEDDING_SPREAD = {"bs_functional_mean": 0.1, "bs_structural": 0.3}
_BATCH = 32


def draw_features(
    people: People,
    directions: Mapping[tuple[str, str], Direction],
    scores: Mapping[tuple[str, str], Floats],
    kinds: Collection[str],
    sites: Sites | None,
    site: NDArray[np.int64],
    n_rois: int,
    width: int,
    proper: bool,
) -> dict[str, Features]:
    """Draw each kind: its background, without any part along the patterns, and the scores."""
    wanted = {SOURCE_OF[kind] for kind in kinds}
    draw: dict[str, Callable[..., Features]] = {"fc": _draw_fc, "sc": _draw_sc}
    found: dict[str, Features] = {}
    for source in ("fc", "sc"):
        if source not in wanted:
            continue
        mean = mean_features(source, n_rois, width)
        background = draw[source](people.rng(source), people.n_families, n_rois)
        background = _expand(people, source, background, mean)
        if sites is not None:
            _apply_sites(source, background, mean, sites, site, n_rois)
        _take_out(source, background, directions)
        for kind in kinds:
            if SOURCE_OF[kind] == source != kind:
                found[kind] = _derive(kind, people.rng(kind), background, n_rois, width)
                _take_out(kind, found[kind], directions)
        found[source] = background
    for kind, values in found.items():
        for (owner, of), direction in directions.items():
            if owner == kind:
                along = (direction.amplitude * scores[owner, of]).astype(np.float32)
                _add_outer(values, along, direction.pattern)
        if kind == "sc":
            _round_counts(values, n_rois)
        if kind == "fc" and proper:
            _make_proper(values, directions, n_rois)
    return {kind: found[kind] for kind in KINDS if kind in kinds}


def _expand(people: People, kind: str, values: Features, mean: Features) -> Features:
    """Return the features of all members from those (families, F) of the family."""
    if people.n_families == people.n:
        return values
    found = values[people.family] - mean
    found *= np.float32(np.sqrt(people.likeness))
    spread = SPREAD[kind] * np.sqrt(1 - people.likeness)
    found += _uniform_noise(people.rng(f"{kind} kin"), found.shape, spread)
    found[:, mean == 0] = 0
    found += mean
    return np.maximum(found, 0, out=found) if kind == "sc" else found


def _take_out(kind: str, values: Features, directions: Mapping[tuple[str, str], Direction]) -> None:
    """Bring everyone to a score of 0 along the patterns of a kind; they are orthogonal."""
    for (owner, _), direction in directions.items():
        if owner == kind:
            along = direction.offset - values @ direction.pattern
            _add_outer(values, along.astype(np.float32), direction.pattern)


def _add_outer(values: Features, along: Features, pattern: Features) -> None:
    """Add ``along`` (N,) times ``pattern`` (F,) in place, without a second array of that size."""
    for start in range(0, len(values), _BATCH):
        rows = slice(start, start + _BATCH)
        values[rows] += along[rows, None] * pattern


def _make_proper(
    values: Features, directions: Mapping[tuple[str, str], Direction], n_rois: int
) -> None:
    """Take negative eigenvalues out of everyone's correlations in place, but leave the scores."""
    upper = np.triu_indices(n_rois, 1)
    own = [direction for (kind, _), direction in directions.items() if kind == "fc"]
    patterns = np.stack([direction.pattern for direction in own])
    for edges in values:
        along = patterns @ edges
        for _ in range(_PROPER_ROUNDS):
            matrix = np.eye(n_rois, dtype=np.float32)
            matrix[upper] = matrix.T[upper] = np.tanh(edges)
            found, vectors = np.linalg.eigh(matrix)
            if found[0] > -_LEAST_EIGENVALUE:
                break
            matrix = (vectors * found.clip(_LEAST_EIGENVALUE)) @ vectors.T
            spread = np.sqrt(matrix.diagonal())
            edges[:] = np.arctanh((matrix / np.outer(spread, spread))[upper])
            edges += (along - patterns @ edges) @ patterns


def _draw_fc(rng: np.random.Generator, n: int, n_rois: int) -> Features:
    """Return Fisher's z (n, E) of correlations of series of people who differ in a few patterns."""
    group, smooth = _fc_factors(n_rois)
    rows, columns = np.triu_indices(n_rois, 1)
    places = rows * n_rois + columns
    found = np.empty((n, len(places)), np.float32)
    loading = np.float32(np.sqrt(_INDIVIDUAL_SHARE / _INDIVIDUAL_PATTERNS))
    for start in range(0, n, _BATCH):
        batch = range(start, min(n, start + _BATCH))
        white = rng.standard_normal((len(batch), _FRAMES, n_rois), np.float32)
        courses = rng.standard_normal((len(batch), _FRAMES, _INDIVIDUAL_PATTERNS), np.float32)
        patterns = rng.standard_normal((len(batch), _INDIVIDUAL_PATTERNS, n_rois), np.float32)
        series = (white.reshape(-1, n_rois) @ group).reshape(white.shape)
        patterns = (patterns.reshape(-1, n_rois) @ smooth).reshape(patterns.shape) * loading
        for person, own, course, pattern in zip(batch, series, courses, patterns, strict=True):
            own += course @ pattern
            own -= own.mean(0)
            own /= np.sqrt((own**2).sum(0))
            np.take((own.T @ own).ravel(), places, out=found[person], mode="clip")
    return np.arctanh(found, out=found)


@cache
def _fc_factors(n_rois: int) -> tuple[Features, Features]:
    """Return factors (R, R) that turn white rows into series of the average, and into patterns."""
    modes = fc_modes(n_rois)
    group = np.sqrt(1 - _INDIVIDUAL_SHARE) * modes.T
    smooth = (modes * (modes**2).sum(0) ** 0.15).T  # a little smoother than the average
    smooth /= np.sqrt((smooth**2).sum(0).mean())
    return group.astype(np.float32), smooth.astype(np.float32)


def _draw_sc(rng: np.random.Generator, n: int, n_rois: int) -> Features:
    """Return log10(1 + streamlines) (n, E) of people who differ by ROI and by edge."""
    rows, columns = np.triu_indices(n_rois, 1)
    mean = mean_features("sc", n_rois, 0)
    used = np.flatnonzero(mean)  # edges that the average lacks nobody has
    response = (1 - 10**-mean)[used]  # of log10(1 + c) to log10(c)
    found = np.zeros((n, len(mean)), np.float32)
    rows, columns = rows[used], columns[used]
    size = np.float32(_COUNT_SPREAD / np.sqrt(2 * _COUNT_PATTERNS))
    for person in range(n):
        left, right = rng.standard_normal((2, n_rois, _COUNT_PATTERNS), np.float32)
        deviation = np.einsum("ek,ek->e", left[rows], right[columns])
        deviation += np.einsum("ek,ek->e", left[columns], right[rows])
        deviation *= size
        deviation += _uniform_noise(rng, deviation.shape, _COUNT_NOISE)
        deviation += np.float32(_DEPTH_SPREAD * rng.standard_normal())
        found[person, used] = np.maximum(mean[used] + response * deviation, 0)
    return found


def _round_counts(values: Features, n_rois: int) -> None:
    """Make the counts whole, in place."""
    used = np.flatnonzero(mean_features("sc", n_rois, 0))
    counts = np.rint(10 ** values[:, used].astype(np.float64) - 1)
    values[:, used] = np.log10(1 + counts.clip(0, _MOST_STREAMLINES))


def _derive(
    kind: str, rng: np.random.Generator, source: Features, n_rois: int, width: int
) -> Features:
    """Return what a network would make of connectivity (N, E): a function of it, and noise."""
    if kind == "bs_functional":
        found = source * np.float32(SIMILARITY_GAIN)
        found += _uniform_noise(rng, found.shape, _SIMILARITY_NOISE)
        return found
    origin = SOURCE_OF[kind]
    fixed = pattern_rng(kind, n_rois, width)
    shape = source.shape[1], _EMBEDDING_PATTERNS
    reading = fixed.standard_normal(shape, np.float32)
    average = mean_features(origin, n_rois, 0)
    reading /= np.float32(SPREAD[origin] * np.sqrt(np.count_nonzero(average)))
    spread = _EMBEDDING_SPREAD[kind] / np.sqrt(_EMBEDDING_PATTERNS)
    writing = fixed.standard_normal((shape[1], n_rois * width), np.float32) * np.float32(spread)
    latent = source @ reading - average @ reading
    found = latent @ writing
    found += _uniform_noise(rng, found.shape, _EMBEDDING_NOISE)
    found += mean_features(kind, n_rois, width)
    return found


def _uniform_noise(rng: np.random.Generator, shape: tuple[int, ...], spread: float) -> Features:
    """Return uniform noise of mean 0 and the standard deviation ``spread``; normal takes longer."""
    noise = rng.random(shape, np.float32)
    noise -= np.float32(0.5)
    noise *= np.float32(spread * np.sqrt(12))
    return noise


def _apply_sites(
    kind: str,
    values: Features,
    mean: Features,
    sites: Sites,
    site: NDArray[np.int64],
    n_rois: int,
) -> None:
    """Move and scale the features (N, F) of each site in place; those nobody has stay 0."""
    rng = pattern_rng("site", kind, len(mean), sites.count)
    if kind == "fc":
        shifts = np.stack([smooth_pattern(rng, n_rois) for _ in range(sites.count)])
        shifts = (shifts * np.sqrt(len(mean))).astype(np.float32)
    else:
        shifts = rng.standard_normal((sites.count, len(mean)), np.float32)
    shifts *= np.float32(sites.shift * SPREAD[kind])
    scales = np.exp(sites.scaling * rng.standard_normal(sites.count)).astype(np.float32)
    for row, number in enumerate(site):
        values[row] = mean + scales[number] * (values[row] - mean)
        values[row] += np.where(mean != 0, shifts[number], 0)
    if kind == "sc":
        np.maximum(values, 0, out=values)

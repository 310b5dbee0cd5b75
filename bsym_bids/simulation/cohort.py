"""Cohorts of simulated people at the level of features, where it is known what predicts a label.

Nothing is measured and no network is run: features are drawn such that each kind carries a stated
share of the label, and nothing else does. A kind's features are

    x = background + amplitude * score * pattern        (in Fisher's z, or in log10 of 1 + count)

where the background has no part along the pattern (an orthogonal projection), and the score is
``sqrt(r2) * label + sqrt(1 - r2) * noise`` with label and noise of unit variance. Whoever knows the
pattern reads the score off the features, and explains the share ``r2`` of the label's variance;
nobody explains more. How much of it is found without knowing the pattern depends on the number of
participants and on `SIGNAL_SHARE`. Patterns and means are the same for all cohorts, so that what is
learnt on one can be tried on another.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from threadpoolctl import threadpool_limits

from bsym_bids import atlas
from bsym_bids.errors import UsageError
from bsym_bids.simulation.cohort_features import draw_features
from bsym_bids.simulation.cohort_patterns import (
    KINDS,
    SOURCE_OF,
    Direction,
    Features,
    Floats,
    direction_of,
)
from bsym_bids.simulation.cohort_people import (
    Detour,
    Families,
    People,
    Sites,
    deal_sites,
    draw_confounds,
    label_correlation,
    label_latent,
)
from bsym_bids.simulation.people import OLDEST, YOUNGEST

#: Share of the variance of the connectivity's score that the network's features keep: little in
#: the mean embedding, which discards most of what is a person's own.
FIDELITY = {"bs_functional": 0.8, "bs_functional_mean": 0.1, "bs_structural": 0.8}
#: Share of the variance between people, over all features of a kind, that lies along a pattern.
SIGNAL_SHARE = 0.04
LABELS = ("age", "sex")
SEXES = ("F", "M")
_PATTERN_SEED = 20_260  # patterns are no property of a cohort

_SIGNAL_MODES = 10
_PROPER_ROUNDS, _LEAST_EIGENVALUE = 4, 0.02
_FRAMES = 100  # degrees of freedom of a run: sampling error of correlations of 0.1
_INDIVIDUAL_SHARE, _INDIVIDUAL_PATTERNS = 0.35, 10
_DEPTH, _DEPTH_SPREAD = 0.12, 0.12  # of streamline counts, and its spread in log10
_COUNT_PATTERNS, _COUNT_SPREAD, _COUNT_NOISE = 10, 0.2, 0.2  # log10
_LEAST_COUNT = 30  # edges below it change their logarithm in steps: no signal there
_MOST_STREAMLINES = 100_000  # of an edge: beyond, float32 does not hold 1 + count
_SIMILARITY_GAIN, _SIMILARITY_NOISE = 0.6, 0.1  # of similarity on connectivity, in Fisher's z
_EMBEDDING_PATTERNS, _EMBEDDING_NOISE = 20, 0.1
_EMBEDDING_SPREAD = {"bs_functional_mean": 0.1, "bs_structural": 0.3}
#: Spread between people that amplitudes are reckoned from: of an edge, or of a dimension.
SPREAD = {
    "fc": 0.15,
    "sc": 0.29,
    "bs_functional": 0.14,
    "bs_functional_mean": 0.13,
    "bs_structural": 0.31,
}
#: Share of the variance between people, over all features of a kind, that lies along a pattern.
SIGNAL_SHARE = 0.04
LABELS = ("age", "sex")
SEXES = ("F", "M")


@dataclass(frozen=True, eq=False)
class Truth:
    """What explains the label, and where it is.

    Attributes
    ----------
    directions : mapping of (str, str) to Direction
        Of each kind and ``label`` or ``confound``.
    weights : mapping of (str, str) to mapping of str to float
        What the scores are made of: ``label``, ``confound``, and noise of unit variance by name.
    detour : Detour, optional
        The way through a confound.
    """

    directions: Mapping[tuple[str, str], Direction]
    weights: Mapping[tuple[str, str], Mapping[str, float]]
    detour: Detour | None = None

    def r2(self, kinds: Collection[str], confounds: bool = False) -> float:
        """Return the share of the label's variance that the scores of some kinds explain.

        It is the most that can be explained linearly by their features in a very large cohort,
        apart from what sites and families give away.

        Parameters
        ----------
        kinds : collection of str
            May be empty.
        confounds : bool
            Whether the confound of the detour is known, too.
        """
        rows = [weights for (kind, _), weights in self.weights.items() if kind in kinds]
        rows += [{"confound": 1.0}] if confounds and self.detour else []
        sources = sorted({"label", "confound"}.union(*rows))
        matrix = np.array([[row.get(name, 0.0) for name in sources] for row in rows])
        matrix = matrix.reshape(len(rows), len(sources))
        covariance = np.eye(len(sources))
        label, confound = sources.index("label"), sources.index("confound")
        covariance[label, confound] = covariance[confound, label] = label_correlation(self.detour)
        with_label = matrix @ covariance[:, label]
        return float(with_label @ np.linalg.pinv(matrix @ covariance @ matrix.T) @ with_label)


@dataclass(frozen=True, eq=False)
class Cohort:
    """Simulated participants, N of them, all arrays in their order.

    Attributes
    ----------
    participants : tuple of str
        Labels, without ``sub-``.
    features : mapping of str to ndarray
        (N, F) float32 of each kind: Fisher's z of the correlations above the diagonal, row by row
        (``fc``, ``bs_functional``); log10 of 1 + streamlines (``sc``); ROI after ROI, its
        dimensions (``bs_functional_mean``, ``bs_structural``).
    label : str
        What the signal is about: ``age`` or ``sex``. The other one has nothing to do with it.
    age : ndarray, shape (N,)
        In years, 20 to 80.
    sex : ndarray of str, shape (N,)
        ``F`` or ``M``.
    confounds : mapping of str to ndarray
        ``mean_fd`` in mm, ``frames_kept`` of `n_volumes`, ``roi_volume`` in mm3.
    site, family : ndarray of str, shape (N,)
        Where they were measured, and who their relatives are.
    rating : ndarray, shape (N,)
        A second label for tables, in points; it has half of its variance in common with `label`.
    n_rois, width, n_volumes : int
        ROIs, dimensions of embeddings, volumes of a run.
    seed : int
        What it was drawn from.
    truth : Truth
        What explains the label.
    """

    participants: tuple[str, ...]
    features: Mapping[str, Features]
    label: str
    age: Floats
    sex: NDArray[np.str_]
    confounds: Mapping[str, Floats]
    site: NDArray[np.str_]
    family: NDArray[np.str_]
    rating: Floats
    n_rois: int
    width: int
    n_volumes: int
    seed: int
    truth: Truth

    def __len__(self) -> int:
        return len(self.participants)

    @property
    def target(self) -> Floats:
        """(N,), the label as numbers: years, or 0 for ``F`` and 1 for ``M``."""
        return self.age if self.label == "age" else (self.sex == SEXES[1]).astype(np.float64)

    def scores(self, kind: str, of: str = "label") -> Floats:
        """Return the scores (N,) that the features of a kind have along the pattern of the label.

        Parameters
        ----------
        kind : str
            Kind of features.
        of : str
            ``label``, or ``confound`` where a detour leads through these features.
        """
        return self.truth.directions[kind, of].scores(self.features[kind])

    def subset(self, rows: Sequence[int] | NDArray[np.integer] | NDArray[np.bool_]) -> Cohort:
        """Return the cohort of some participants."""
        kept = np.arange(len(self))[np.asarray(rows)]
        return replace(
            self,
            participants=tuple(self.participants[row] for row in kept),
            features={kind: values[kept] for kind, values in self.features.items()},
            age=self.age[kept],
            sex=self.sex[kept],
            confounds={name: values[kept] for name, values in self.confounds.items()},
            site=self.site[kept],
            family=self.family[kept],
            rating=self.rating[kept],
        )


#: Arguments of `simulate_cohort` for cohorts that tests and examples ask for by name.
RECIPES: Mapping[str, Mapping[str, Any]] = {
    "none": {},
    "fc": {"signal": {"fc": 0.6}},
    "sc": {"signal": {"sc": 0.6}},
    "both": {"signal": {"fc": 0.4, "sc": 0.4}},
    "network": {"signal": {"fc": 0.3, "bs_functional": 0.6}},
    "sex": {"label": "sex", "signal": {"fc": 0.5}},
    "motion": {"detour": Detour()},
    "head_size": {"label": "sex", "detour": Detour("sc", "roi_volume", 0.4, 0.8)},
    "families": {"families": Families()},
    "sites": {"label": "sex", "sites": Sites()},
    "sites_and_fc": {"label": "sex", "signal": {"fc": 0.5}, "sites": Sites()},
}


def simulate_recipe(name: str, n: int, **changes: Any) -> Cohort:
    """Simulate a cohort by the name of its truth.

    Parameters
    ----------
    name : str
        Of `RECIPES`. ``none``: nothing predicts age. ``fc``, ``sc``, ``both``: age is in the
        connectivity. ``network``: the network's features know more of age than FC. ``sex``: sex is
        in FC. ``motion``: age changes head motion, which changes FC; there is no other way.
        ``head_size``: the same of sex, total ROI volume and SC. ``families``: nothing predicts age,
        but relatives are nearly equal. ``sites``: nothing predicts sex, but connectivity and the
        share of each sex differ between two sites. ``sites_and_fc``: sex is in FC as well.
    n : int
        How many participants.
    **changes
        Arguments of `simulate_cohort` beside those of the recipe.

    Raises
    ------
    UsageError
        There is no such recipe.
    """
    if name not in RECIPES:
        raise UsageError(f"{name!r} is no recipe of a cohort", hint=f"one of {', '.join(RECIPES)}")
    return simulate_cohort(n, **{**RECIPES[name], **changes})


def simulate_cohort(
    n: int,
    *,
    signal: Mapping[str, float] | None = None,
    label: str = "age",
    detour: Detour | None = None,
    families: Families | None = None,
    sites: Sites | None = None,
    kinds: Collection[str] = KINDS,
    n_rois: int = atlas.N_ROIS,
    width: int = 16,
    n_volumes: int = 120,
    share: float = SIGNAL_SHARE,
    proper: bool = False,
    seed: int = 0,
    prefix: str = "sim",
) -> Cohort:
    """Simulate participants of whom it is known what predicts their label.

    Parameters
    ----------
    n : int
        How many.
    signal : mapping of str to float
        R2 that an oracle reaches on each kind of features; 0 for kinds that are not named, unless
        they are made from one that is: of its R2 they keep `FIDELITY`, and tell nothing that their
        source does not. For classes it is the squared correlation with the label; `auc_of` turns
        it into an area under the ROC curve.
    label : str
        ``age`` or ``sex``.
    detour : Detour, optional
        A way to the label through a confound.
    families : Families, optional
        Relatives; without, everyone is for themselves.
    sites : Sites, optional
        Scanners; without, there is one.
    kinds : collection of str
        Kinds of features that are wanted.
    n_rois : int
        ROIs, spread over the atlas; 450 are all of them, in order.
    width : int
        Dimensions of embeddings.
    n_volumes : int
        Volumes of a run.
    share : float
        Share of the variance between people along each pattern: the larger, the fewer people are
        needed to find it.
    proper : bool
        Whether FC is made of (all but) positive semi-definite matrices, for what takes their
        logarithm (FC in tangent space): some tenths of a second for a person of 450 ROIs. Else
        some eigenvalues are negative.
    seed : int
        Not negative.
    prefix : str
        What participants' labels start with.

    Returns
    -------
    Cohort

    Raises
    ------
    UsageError
        For unknown kinds and labels, and for numbers out of range.
    """
    signal = dict(signal or {})
    _check(n, signal, label, detour, families, sites, kinds, n_rois, seed)
    people = People(n, seed, families)
    site = np.zeros(n, np.int64) if sites is None else deal_sites(people, sites)
    latent = label_latent(people, sites, site)
    age_latent = latent if label == "age" else people.normal("age")
    sex_latent = latent if label == "sex" else people.normal("sex")
    age = np.round(YOUNGEST + (OLDEST - YOUNGEST) * ndtr(age_latent), 1)
    sex = np.where(sex_latent > 0, SEXES[1], SEXES[0])
    centre, spread = (YOUNGEST + OLDEST) / 2, (OLDEST - YOUNGEST) / np.sqrt(12)
    standard = (age - centre) / spread if label == "age" else np.where(sex == SEXES[1], 1.0, -1.0)
    confounds, confound = draw_confounds(people, standard, detour, n_rois, n_volumes)
    weights = _weights(signal, detour)
    directions = {key: direction_of(*key, n_rois, width, share) for key in weights}
    scores = _draw_scores(people, weights, standard, confound)
    with threadpool_limits(1):  # products are small: faster, and the same on any number of cores
        features = draw_features(
            people, directions, scores, kinds, sites, site, n_rois, width, proper
        )
    rating = 100 + 15 * (standard + people.normal("rating")) / np.sqrt(2)
    digits = max(4, len(str(n)))
    return Cohort(
        participants=tuple(f"{prefix}{number:0{digits}d}" for number in range(1, n + 1)),
        features=features,
        label=label,
        age=age,
        sex=sex,
        confounds=confounds,
        site=np.array([f"site{number + 1}" for number in site]),
        family=np.array([f"fam{number + 1:0{digits}d}" for number in people.family]),
        rating=np.round(rating, 1),
        n_rois=n_rois,
        width=width,
        n_volumes=n_volumes,
        seed=seed,
        truth=Truth(directions, weights, detour),
    )


def auc_of(r2: float) -> float:
    """Return the area under the ROC curve of a score that explains a share of two equal classes.

    For a score that is normal in both classes with a distance of d spreads between their means,
    r2 = d^2 / (d^2 + 4) and the area is the normal distribution function at d / sqrt(2).
    """
    return float(ndtr(np.sqrt(2 * r2 / (1 - r2))))


def _check(
    n: int,
    signal: Mapping[str, float],
    label: str,
    detour: Detour | None,
    families: Families | None,
    sites: Sites | None,
    kinds: Collection[str],
    n_rois: int,
    seed: int,
) -> None:
    unknown = sorted((set(kinds) | set(signal)) - set(KINDS))
    if unknown or label not in LABELS:
        raise UsageError(
            f"a cohort has no {' or '.join(map(repr, unknown or [label]))}",
            hint=f"kinds are {', '.join(KINDS)}; labels are {', '.join(LABELS)}",
        )
    if n < 1 or seed < 0 or not 10 <= n_rois <= atlas.N_ROIS:
        raise UsageError(
            f"a cohort needs a participant, a seed that is not negative and 10 to {atlas.N_ROIS} "
            "ROIs"
        )
    if detour is not None and (
        detour.kind not in ("fc", "sc") or detour.confound not in ("mean_fd", "roi_volume")
    ):
        raise UsageError(
            f"a detour leads through mean_fd or roi_volume to fc or sc, not through "
            f"{detour.confound!r} to {detour.kind!r}"
        )
    shares = list(signal.values())
    shares += [detour.by_label, detour.of_features] if detour else []
    shares += [families.likeness] if families else []
    shares += [sites.by_label] if sites else []
    whole = (families is None or families.size >= 1) and (sites is None or sites.count >= 1)
    if not whole or not all(0 <= value < 1 for value in shares):
        raise UsageError("shares of variance lie between 0 and 1, families and sites have members")


def _weights(
    signal: Mapping[str, float], detour: Detour | None
) -> dict[tuple[str, str], dict[str, float]]:
    """Return what the score of each kind is made of."""
    weights: dict[tuple[str, str], dict[str, float]] = {}
    ways = [("label", signal)]
    ways += [("confound", {detour.kind: detour.of_features})] if detour else []
    for of, shares in ways:
        for kind, source in SOURCE_OF.items():
            own = {f"{kind} {of}": 1.0}
            if kind in shares:
                weights[kind, of] = _mixed(shares[kind], {of: 1.0}, own)
            elif kind != source and (source, of) in weights:
                weights[kind, of] = _mixed(FIDELITY[kind], weights[source, of], own)
            elif of == "label":
                weights[kind, of] = own
    return weights


def _mixed(
    share: float, first: Mapping[str, float], other: Mapping[str, float]
) -> dict[str, float]:
    mixed = {name: np.sqrt(share) * weight for name, weight in first.items()}
    return mixed | {name: np.sqrt(1 - share) * weight for name, weight in other.items()}


def _draw_scores(
    people: People,
    weights: Mapping[tuple[str, str], Mapping[str, float]],
    label: Floats,
    confound: Floats,
) -> dict[tuple[str, str], Floats]:
    known = {"label": label, "confound": confound}
    for name in sorted(set().union(*weights.values()) - set(known)):
        known[name] = people.normal(name)
    return {
        key: sum((weight * known[name] for name, weight in made_of.items()), np.zeros(people.n))
        for key, made_of in weights.items()
    }

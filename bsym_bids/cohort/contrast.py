"""Contrasts of two states of the same people: two sessions, or two tasks.

For each person the matrices of the two states are subtracted, and what is tested is the mean over
people of what follows from the difference: by ROI, by network, by pair of networks. p-values come
from flipping the sign of whole people, which is what is exchangeable when the states do not differ;
they are corrected for the number of ROIs (networks, pairs) by the distribution of the largest
statistic over all of them (Nichols & Holmes 2002, doi:10.1002/hbm.1058). Sets that are tested
separately (ROIs, networks; attention, connectivity) are not corrected for each other.

Whatever else differs between the states, head motion or order above all, is part of the contrast.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from bsym_bids.cohort.edges import fisher_z, memberships, network_pair_means, networks_in_order
from bsym_bids.errors import BadDataError, BsymError, UsageError

LOGGER = logging.getLogger("bsym_bids")
#: Entities whose labels can be contrasted.
ENTITIES = ("ses", "task")
#: Up to so many people all flips of signs are gone through.
MAX_ENUMERATED = 12
#: It takes so many people to test anything.
LEAST_PAIRS = 2
#: An ROI that a smaller share of the people have is not tested.
LEAST_SHARE = 0.5
#: p below this is marked.
ALPHA = 0.05
_HINT = "write --contrast ses-A-ses-B or task-A-task-B, for A minus B"
_FORM = re.compile(r"(ses|task)-([0-9A-Za-z+]+)-(ses|task)-([0-9A-Za-z+]+)")
_SAME = 1 - 1e-5  # statistics that differ by less are as large; embeddings are float32
_ROUNDING = 1e-9  # share of a sum of squares below which nothing is left
_FLIPS_AT_A_TIME = 256
Read = TypeVar("Read")


@dataclass(frozen=True)
class Measure:
    """What is made of the matrices of a scan.

    Attributes
    ----------
    description : str
        What is tested.
    unit : str
        Of the differences.
    is_correlation : bool
        Matrices are correlations, and compared as Fisher's z.
    by_column : bool
        An ROI's value is the mean of its column (what it gets from the others), else of its row.
    by_pair : bool
        Pairs of networks are tested too.
    """

    description: str
    unit: str
    is_correlation: bool
    by_column: bool
    by_pair: bool


#: Measures on matrices over ROIs, by the name in tables.
MEASURES: Mapping[str, Measure] = {
    "attention": Measure(
        "incoming attention: mean over all other ROIs of the attention that they pay to the ROI",
        "share of attention",
        is_correlation=False,
        by_column=True,
        by_pair=False,
    ),
    "connectivity": Measure(
        "functional connectivity: mean over all other ROIs of the ROI's correlation with them "
        "(nodal strength by the number of edges)",
        "Fisher's z",
        is_correlation=True,
        by_column=False,
        by_pair=True,
    ),
    "similarity": Measure(
        "similarity of embeddings: mean over all other ROIs of the correlation of the ROI's "
        "embedding with theirs",
        "Fisher's z",
        is_correlation=True,
        by_column=False,
        by_pair=True,
    ),
}
#: Columns of the tables of contrasts, which are described in data/outputs.yaml.
COLUMNS = (
    "measure",
    "name",
    "network",
    "n_pairs",
    "mean_a",
    "mean_b",
    "difference",
    "ci_low",
    "ci_high",
    "t",
    "d_z",
    "p_uncorrected",
    "p_corrected",
    "direction",
)
#: Columns of the table of changes of the mean embedding, which are described in data/outputs.yaml.
SHIFT_COLUMNS = (
    "measure",
    "name",
    "network",
    "n_pairs",
    "size",
    "relative_size",
    "p_uncorrected",
    "p_corrected",
)


@dataclass(frozen=True)
class Contrast:
    """Two labels of an entity; differences are the first minus the second.

    Attributes
    ----------
    entity : str
        ``ses`` or ``task``.
    a, b : str
        Labels without the entity.
    """

    entity: str
    a: str
    b: str

    @property
    def name_a(self) -> str:
        """First state as it is in file names."""
        return f"{self.entity}-{self.a}"

    @property
    def name_b(self) -> str:
        """Second state as it is in file names."""
        return f"{self.entity}-{self.b}"

    @property
    def text(self) -> str:
        """Both, as ``--contrast`` takes them."""
        return f"{self.name_a}-{self.name_b}"


@dataclass(frozen=True)
class PairedPerson:
    """The scans of a person in both states.

    Attributes
    ----------
    participant : str
        Label without ``sub-``.
    a, b : tuple of tuple of int
        Scans by what they are matched on (the task for sessions, the session for tasks), in the
        same order in both states. A state is the mean over these of the mean over scans.
    """

    participant: str
    a: tuple[tuple[int, ...], ...]
    b: tuple[tuple[int, ...], ...]

    def rows(self) -> Iterator[int]:
        """Yield all scans."""
        for state in (self.a, self.b):
            for scans in state:
                yield from scans


@dataclass(frozen=True, eq=False)
class Differences:
    """What the matrices of all pairs come to.

    Attributes
    ----------
    measure : str
        Of `MEASURES`.
    rois : ndarray, shape (3, P, R)
        In the first state, in the second, and their difference; NaN where unmeasured in either.
    networks : ndarray, shape (3, P, K)
        Means over the ROIs of each network.
    pairs : ndarray, shape (3, P, K, K)
        Means over the edges of each pair of networks.
    """

    measure: str
    rois: NDArray[np.float64]
    networks: NDArray[np.float64]
    pairs: NDArray[np.float64]

    @classmethod
    def joined(cls, parts: Sequence[Differences]) -> Differences:
        """Put differences of the same measure of several people after each other."""
        names = ("rois", "networks", "pairs")
        values = (np.concatenate([getattr(part, n) for part in parts], axis=1) for n in names)
        return cls(parts[0].measure, *values)


@dataclass(frozen=True, eq=False)
class PairedTests:
    """Paired tests of K values, see `paired_tests`; all arrays have shape (K,).

    Attributes
    ----------
    n : ndarray of int
        Pairs that have the value.
    difference, deviation : ndarray
        Mean and sample standard deviation of the differences.
    t, d_z : ndarray
        Paired t and effect size; NaN for what is not tested.
    p, p_corrected : ndarray
        Two-sided, for each alone and family-wise; NaN for what is not tested, and without flips.
    n_flips : int
        Flips of signs that the p-values rest on, the true signs among them; 0 for none.
    exact : bool
        Whether these are all there are.
    """

    n: NDArray[np.int64]
    difference: NDArray[np.float64]
    deviation: NDArray[np.float64]
    t: NDArray[np.float64]
    d_z: NDArray[np.float64]
    p: NDArray[np.float64]
    p_corrected: NDArray[np.float64]
    n_flips: int
    exact: bool

    @property
    def interval(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Bounds of the 95 % interval of the mean difference by Student's t."""
        from scipy.stats import t as student

        half = student.ppf(0.975, np.maximum(self.n - 1, 1)) * self.deviation / np.sqrt(self.n)
        half = np.where(np.isfinite(self.t), half, np.nan)
        return self.difference - half, self.difference + half


@dataclass(frozen=True, eq=False)
class ContrastMap:
    """A tested set of values: ROIs, networks or pairs of networks.

    Attributes
    ----------
    contrast : Contrast
        What was subtracted from what.
    measure : str
        Of `MEASURES`.
    names : tuple of str
        What each value is of.
    networks : tuple of str
        Network of each, where they are ROIs; else empty.
    mean_a, mean_b : ndarray, shape (K,)
        Means over people in both states.
    tests : PairedTests
        Of the K values.
    """

    contrast: Contrast
    measure: str
    names: tuple[str, ...]
    networks: tuple[str, ...]
    mean_a: NDArray[np.float64]
    mean_b: NDArray[np.float64]
    tests: PairedTests

    @property
    def significant(self) -> NDArray[np.bool_]:
        """(K,), where the corrected p is below 0.05."""
        return self.tests.p_corrected < ALPHA

    def table(self) -> dict[str, Any]:
        """Return the columns, see `COLUMNS`; ``network`` is there for ROIs only."""
        tests, (low, high) = self.tests, self.tests.interval
        more = np.where(tests.difference > 0, self.contrast.name_a, self.contrast.name_b)
        columns: dict[str, Any] = {"measure": [self.measure] * len(self.names)}
        columns["name"] = list(self.names)
        if self.networks:
            columns["network"] = list(self.networks)
        return columns | {
            "n_pairs": tests.n,
            "mean_a": self.mean_a,
            "mean_b": self.mean_b,
            "difference": tests.difference,
            "ci_low": low,
            "ci_high": high,
            "t": tests.t,
            "d_z": tests.d_z,
            "p_uncorrected": tests.p,
            "p_corrected": tests.p_corrected,
            "direction": np.where(self.significant, more, "").tolist(),
        }


@dataclass(frozen=True, eq=False)
class EmbeddingShift:
    """How far the mean embedding of each ROI moves, see `embedding_shift`; arrays have shape (R,).

    Attributes
    ----------
    contrast : Contrast
        What was subtracted from what.
    names, networks : tuple of str
        Of the ROIs.
    n : ndarray of int
        Pairs that have the ROI.
    size : ndarray
        Length of the mean difference.
    relative_size : ndarray
        Its square by the mean of its null.
    p, p_corrected : ndarray
        For each alone, and family-wise; NaN for what is not tested, and without flips.
    n_flips : int
        Flips of signs, the true signs among them; 0 for none.
    exact : bool
        Whether these are all there are.
    """

    contrast: Contrast
    names: tuple[str, ...]
    networks: tuple[str, ...]
    n: NDArray[np.int64]
    size: NDArray[np.float64]
    relative_size: NDArray[np.float64]
    p: NDArray[np.float64]
    p_corrected: NDArray[np.float64]
    n_flips: int
    exact: bool

    def table(self) -> dict[str, Any]:
        """Return the columns, see `SHIFT_COLUMNS`."""
        return {
            "measure": ["embedding"] * len(self.names),
            "name": list(self.names),
            "network": list(self.networks),
            "n_pairs": self.n,
            "size": self.size,
            "relative_size": self.relative_size,
            "p_uncorrected": self.p,
            "p_corrected": self.p_corrected,
        }


def parse_contrast(text: str) -> Contrast:
    """Read what ``--contrast`` was given: ``ses-A-ses-B`` or ``task-A-task-B``.

    Raises
    ------
    UsageError
        It is not of this form, mixes entities, or names one label twice.
    """
    found = _FORM.fullmatch(text.strip())
    if not found:
        raise UsageError(f"--contrast {text}: not two labels of one entity", _HINT)
    entity, a, other, b = found.groups()
    if entity != other:
        raise UsageError(f"--contrast {text}: {entity}- and {other}- are not comparable", _HINT)
    if a == b:
        raise UsageError(f"--contrast {text}: both labels are {a}", _HINT)
    return Contrast(entity, a, b)


def check_labels(contrast: Contrast, scans: Sequence[Mapping[str, str]]) -> None:
    """Refuse a contrast whose labels no scan has.

    Raises
    ------
    UsageError
        A label is not there; the hint lists those that are, or the near ones of many.
    """
    there = sorted({scan[contrast.entity] for scan in scans if contrast.entity in scan})
    for label in (contrast.a, contrast.b):
        if label not in there:
            known = _near(label, there)
            raise UsageError(
                f"--contrast: no scan of {contrast.entity}-{label}",
                f"there are {known}" if known else f"no scan has a {contrast.entity}- at all",
            )


def pair_scans(
    contrast: Contrast, scans: Sequence[Mapping[str, str]], measure: str
) -> tuple[list[PairedPerson], list[str]]:
    """Find the scans of each person in both states.

    Sessions are compared over the tasks that a person has in both of them, tasks over the sessions
    in which a person has both, so that nothing but the contrast differs.

    Parameters
    ----------
    contrast : Contrast
        The states.
    scans : sequence of mapping
        Entities of each scan by short key, with ``sub``.
    measure : str
        What the scans have, for the warning.

    Returns
    -------
    pairs : list of PairedPerson
        Sorted by participant.
    left_out : list of str
        Participants who have one state only, or both without anything to match them on; a warning
        names them.
    """
    matched = "task" if contrast.entity == "ses" else "ses"
    sides: dict[str, dict[str, dict[str, list[int]]]] = {}
    for row, scan in enumerate(scans):
        label = scan.get(contrast.entity)
        if label in (contrast.a, contrast.b):
            side = sides.setdefault(scan["sub"], {}).setdefault(label, {})
            side.setdefault(scan.get(matched, ""), []).append(row)
    pairs, left_out = [], []
    for person, side in sorted(sides.items()):
        a, b = side.get(contrast.a, {}), side.get(contrast.b, {})
        common = sorted(a.keys() & b.keys())
        if common:
            states = (tuple(tuple(state[key]) for key in common) for state in (a, b))
            pairs.append(PairedPerson(person, *states))
        else:
            left_out.append(person)
    if left_out:
        LOGGER.warning(
            "--contrast %s, %s: left out, as one state is lacking: %s",
            contrast.text,
            measure,
            ", ".join(left_out),
        )
    return pairs, left_out


def read_pairs(
    contrast: Contrast,
    pairs: Sequence[PairedPerson],
    read: Callable[[PairedPerson], Read],
    measure: str,
) -> tuple[list[Read], list[str]]:
    """Read what there is of each pair; a person of whom something cannot be read stops no other.

    Parameters
    ----------
    contrast : Contrast
        The states.
    pairs : sequence of PairedPerson
        As `pair_scans` returns them.
    read : callable
        Reads what there is of a person; raises BsymError where it cannot be read.
    measure : str
        What is read, for warnings.

    Returns
    -------
    values : list
        What was read, in the order of the pairs.
    left_out : list of str
        Participants of whom something cannot be read; a warning names each.
    """
    values, left_out = [], []
    for pair in pairs:
        try:
            values.append(read(pair))
        except BsymError as error:
            left_out.append(pair.participant)
            LOGGER.warning(
                "--contrast %s, %s: left out, sub-%s: %s",
                contrast.text,
                measure,
                pair.participant,
                error,
            )
    return values, left_out


def smallest_p(n_pairs: int) -> float:
    """Return the smallest two-sided p that flipping signs of so many people can give."""
    return 2.0 ** (1 - n_pairs)


def few_pairs_warning(contrast: Contrast, measure: str, n_pairs: int) -> str:
    """Return what to say of few pairs; nothing where p below 0.05 can be reached."""
    what = f"--contrast {contrast.text}, {measure}"
    if n_pairs < LEAST_PAIRS:
        people = "one person" if n_pairs else "nobody"
        return f"{what}: {people} has both states, so that there is no map of it"
    least = smallest_p(n_pairs)
    if least < ALPHA:
        return ""
    return (
        f"{what}: {n_pairs} people have both states: p cannot become smaller than {least:.3g} (2 "
        f"to the power of {1 - n_pairs}), whatever the difference, so nothing can be significant; "
        "it takes 6"
    )


def person_differences(
    measure: str,
    pairs: Sequence[PairedPerson],
    load: Callable[[int], NDArray[np.floating]],
    networks: Sequence[str],
) -> Differences:
    """Subtract the matrices of all pairs, one person at a time.

    Parameters
    ----------
    measure : str
        Of `MEASURES`.
    pairs : sequence of PairedPerson
        As `pair_scans` returns them.
    load : callable
        Gives the matrix (R, R) of a scan; NaN where unmeasured. Attention: rows pay, columns get.
    networks : sequence of str
        Of each ROI.

    Returns
    -------
    Differences
        Edges that are unmeasured in one state count in none.
    """
    kind = MEASURES[measure]

    def transformed(row: int) -> NDArray[np.float64]:
        matrix = load(row)
        return fisher_z(matrix) if kind.is_correlation else np.asarray(matrix, dtype=np.float64)

    rois, by_network, by_pair = [], [], []
    for pair in pairs:
        states = [_state(side, transformed) for side in (pair.a, pair.b)]
        for state in states:
            np.fill_diagonal(state, np.nan)
        difference = states[0] - states[1]
        states = [np.where(np.isfinite(difference), state, np.nan) for state in states]
        matrices = [*states, difference]
        values = np.stack([_nan_mean(m, 0 if kind.by_column else 1) for m in matrices])
        rois.append(values)
        by_network.append(network_means(values, networks))
        by_pair.append(np.stack([network_pair_means(matrix, networks) for matrix in matrices]))
    return Differences(
        measure, *(np.stack(values, axis=1) for values in (rois, by_network, by_pair))
    )


def network_means(values: NDArray[np.floating], networks: Sequence[str]) -> NDArray[np.float64]:
    """Average values of ROIs (..., R) over the ROIs of each network that have one: (..., K)."""
    members = memberships(networks).astype(np.float64)
    there = np.isfinite(values)
    total = np.where(there, values, 0) @ members.T
    count = there @ members.T
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def contrast_maps(
    contrast: Contrast,
    differences: Differences,
    roi_names: Sequence[str],
    networks: Sequence[str],
    *,
    n_permutations: int = 5000,
    seed: int = 0,
) -> dict[str, ContrastMap]:
    """Test the differences of one measure by ROI, by network, and by pair of networks.

    Parameters
    ----------
    contrast : Contrast
        What was subtracted.
    differences : Differences
        Of P pairs.
    roi_names, networks : sequence of str
        Of the R ROIs.
    n_permutations, seed : int
        As of `paired_tests`.

    Returns
    -------
    mapping of str to ContrastMap
        ``rois``, ``networks``, and ``pairs`` for measures that have them. Pairs are those above and
        on the diagonal of the matrix of networks, row by row.
    """
    order = networks_in_order(networks)
    rows, columns = np.triu_indices(len(order))
    sets = {
        "rois": (differences.rois, tuple(roi_names), tuple(networks)),
        "networks": (differences.networks, order, ()),
    }
    if MEASURES[differences.measure].by_pair:
        names = tuple(f"{order[i]}-{order[j]}" for i, j in zip(rows, columns, strict=True))
        sets["pairs"] = (differences.pairs[:, :, rows, columns], names, ())
    maps = {}
    for key, (values, names, of) in sets.items():
        tests = paired_tests(values[2], n_permutations=n_permutations, seed=seed)
        mean_a, mean_b = (_nan_mean(state, 0) for state in values[:2])
        maps[key] = ContrastMap(contrast, differences.measure, names, of, mean_a, mean_b, tests)
    return maps


def paired_tests(
    values: NDArray[np.floating], *, n_permutations: int = 5000, seed: int = 0
) -> PairedTests:
    """Test whether paired differences are 0 on average, by flipping the signs of people.

    Parameters
    ----------
    values : ndarray, shape (P, K)
        Difference of each person in each value; NaN where there is none. Values that fewer than
        half of the people have, or fewer than two, are not tested, nor are those that are the same
        in everyone.
    n_permutations : int
        Random flips; 0 for none, and no p-values. With up to 12 people all flips are gone through
        instead, whatever is given.
    seed : int
        Of random flips.

    Returns
    -------
    PairedTests

    Raises
    ------
    BadDataError
        Fewer than two people.
    """
    _at_least_two(len(values))
    there = np.isfinite(values)
    filled = np.where(there, values, 0).astype(np.float64)
    n, squares = there.sum(axis=0), (filled**2).sum(axis=0)
    total = filled.sum(axis=0)
    deviation = _deviation(total, squares, n)
    tested = _enough(n, len(values)) & (deviation > 0)
    t = _t(total, squares, n, tested)
    p, p_corrected, n_flips = _p_values(
        np.abs(t),
        lambda signs: np.abs(_t(signs @ filled, squares, n, tested)),
        _flips(len(values), n_permutations, seed),
    )
    mean = np.divide(total, n, out=np.full(n.size, np.nan), where=n > 0)
    return PairedTests(
        n=n,
        difference=mean,
        deviation=deviation,
        t=t,
        d_z=t / np.sqrt(np.maximum(n, 1)),
        p=p,
        p_corrected=p_corrected,
        n_flips=n_flips,
        exact=len(values) <= MAX_ENUMERATED,
    )


def embedding_differences(
    pairs: Sequence[PairedPerson], load: Callable[[int], NDArray[np.floating]]
) -> NDArray[np.float32]:
    """Subtract the mean embeddings of all pairs, one person at a time.

    Parameters
    ----------
    pairs : sequence of PairedPerson
        As `pair_scans` returns them.
    load : callable
        Gives the mean embedding (R, D) of a scan; NaN where unmeasured.

    Returns
    -------
    ndarray, shape (P, R, D)
    """
    states = [[_state(side, load) for side in (pair.a, pair.b)] for pair in pairs]
    return np.stack([(a - b).astype(np.float32) for a, b in states])


def embedding_shift(
    contrast: Contrast,
    differences: NDArray[np.floating],
    roi_names: Sequence[str],
    networks: Sequence[str],
    *,
    n_permutations: int = 5000,
    seed: int = 0,
) -> EmbeddingShift:
    """Test whether the mean embedding of each ROI moves in a direction that people share.

    The statistic is the squared length of the sum of differences over people, by the sum of their
    squared lengths, which is its mean over flips of signs: it is 1 on average without a common
    change, in any ROI, however much people vary from scan to scan.

    Parameters
    ----------
    contrast : Contrast
        What was subtracted.
    differences : ndarray, shape (P, R, D)
        As `embedding_differences` returns them.
    roi_names, networks : sequence of str
        Of the R ROIs.
    n_permutations, seed : int
        As of `paired_tests`, as is which ROIs are tested.

    Returns
    -------
    EmbeddingShift

    Raises
    ------
    BadDataError
        Fewer than two people.
    """
    n_people, n_rois, width = differences.shape
    _at_least_two(n_people)
    there = np.isfinite(differences).all(axis=2)
    filled = np.where(there[:, :, None], differences, 0)
    n = there.sum(axis=0)
    squares = np.einsum("prd,prd->r", filled, filled, dtype=np.float64)
    tested = _enough(n, n_people) & (squares > 0)
    flat = filled.reshape(n_people, n_rois * width)

    def lengths(signs: NDArray[np.float64]) -> NDArray[np.float64]:
        total = (signs.astype(flat.dtype) @ flat).reshape(len(signs), n_rois, width)
        return np.einsum("srd,srd->sr", total, total, dtype=np.float64)

    def relative(signs: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(tested, lengths(signs) / np.where(tested, squares, 1), np.nan)

    observed = np.ones((1, n_people))
    p, p_corrected, n_flips = _p_values(
        relative(observed)[0], relative, _flips(n_people, n_permutations, seed)
    )
    size = np.sqrt(lengths(observed)[0])
    return EmbeddingShift(
        contrast=contrast,
        names=tuple(roi_names),
        networks=tuple(networks),
        n=n,
        size=np.divide(size, n, out=np.full(n_rois, np.nan), where=n > 0),
        relative_size=relative(observed)[0],
        p=p,
        p_corrected=p_corrected,
        n_flips=n_flips,
        exact=n_people <= MAX_ENUMERATED,
    )


def pair_matrix(values: NDArray[np.floating], n_networks: int) -> NDArray[np.float64]:
    """Return values of pairs of networks, as `contrast_maps` orders them, as a matrix (K, K)."""
    rows, columns = np.triu_indices(n_networks)
    matrix = np.empty((n_networks, n_networks))
    matrix[rows, columns] = matrix[columns, rows] = values
    return matrix


def _near(label: str, there: Collection[str]) -> str:
    """Return the labels that exist, or the near ones of many, as a list in words."""
    near = difflib.get_close_matches(label, there, n=5, cutoff=0.3) if len(there) > 10 else []
    return ", ".join(near or sorted(there)[:10])


def _state(
    side: Sequence[Sequence[int]], load: Callable[[int], NDArray[np.floating]]
) -> NDArray[np.float64]:
    """Average the scans of a state.

    Of several runs each counts where it was measured. What a person is matched on counts in equal
    parts, and nothing is left where one of these lacks it: else states would be of other parts.
    """
    parts = [_nan_mean(np.stack([load(row) for row in rows]), 0) for rows in side]
    return np.mean(parts, axis=0, dtype=np.float64)


def _nan_mean(values: NDArray[np.floating], axis: int) -> NDArray[np.float64]:
    """Return the mean over what is there, NaN where nothing is."""
    there = np.isfinite(values)
    total = np.where(there, values, 0).sum(axis=axis, dtype=np.float64)
    count = there.sum(axis=axis)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _at_least_two(n_people: int) -> None:
    if n_people < LEAST_PAIRS:
        raise BadDataError(
            f"--contrast: {n_people} people have both states, and it takes two",
            hint="see that scans of both states are in the output folder of the participant level",
        )


def _enough(n: NDArray[np.int64], n_people: int) -> NDArray[np.bool_]:
    return (n >= 2) & (n >= LEAST_SHARE * n_people)


def _deviation(
    total: NDArray[np.float64], squares: NDArray[np.float64], n: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return sample standard deviations from sums; 0 where only rounding is left."""
    rest = squares - total**2 / np.maximum(n, 1)
    return np.sqrt(np.where(rest > _ROUNDING * squares, rest, 0) / np.maximum(n - 1, 1))


def _t(
    total: NDArray[np.float64],
    squares: NDArray[np.float64],
    n: NDArray[np.int64],
    tested: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """Return Student's t from sums (..., K); NaN where not tested.

    A flip that makes all differences the same has a large t instead of an infinite one.
    """
    size = np.maximum(n, 1)
    rest = np.maximum(squares - total**2 / size, _ROUNDING * squares)
    error = np.sqrt(np.where(tested, rest, 1) / np.maximum(n - 1, 1) / size)
    return np.where(tested, total / size / error, np.nan)


def _flips(n_people: int, n_permutations: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Yield flips of signs (S, P) in blocks, the true signs first.

    All of few people, but for those that are another one with all signs turned: the statistics are
    the same.
    """
    if n_people <= MAX_ENUMERATED:
        codes = np.arange(2 ** (n_people - 1))[:, None] >> np.arange(n_people)
        signs = 1.0 - 2.0 * (codes & 1)
        for start in range(0, len(signs), _FLIPS_AT_A_TIME):
            yield signs[start : start + _FLIPS_AT_A_TIME]
        return
    yield np.ones((1, n_people))
    rng = np.random.default_rng(seed)
    for start in range(0, n_permutations, _FLIPS_AT_A_TIME):
        size = min(_FLIPS_AT_A_TIME, n_permutations - start)
        yield rng.choice([-1.0, 1.0], size=(size, n_people))


def _p_values(
    observed: NDArray[np.float64],
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    flips: Iterator[NDArray[np.float64]],
) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """Return p of each statistic (K,) alone, family-wise by the largest, and the number of flips.

    NaN is no statistic, and has no p.
    """
    tested = np.isfinite(observed)
    none = np.full_like(observed, np.nan), np.full_like(observed, np.nan), 0
    if not tested.any():
        return none
    least = observed[tested] * _SAME
    alone, corrected, n_flips = np.zeros(least.size), np.zeros(least.size), 0
    for signs in flips:
        values = statistic(signs)[:, tested]
        alone += (values >= least).sum(axis=0)
        corrected += (values.max(axis=1)[:, None] >= least).sum(axis=0)
        n_flips += len(signs)
    if n_flips < 2:  # the true signs alone say nothing; 1 would look like a p
        return none
    p, p_corrected = np.full((2, observed.size), np.nan)
    p[tested], p_corrected[tested] = alone / n_flips, corrected / n_flips
    return p, p_corrected, n_flips

"""Does a model know this data? Its own training objectives, on outputs of the participant level.

Held-out ROIs are reconstructed from time series, and hidden edges predicted in structural
connectomes under each convention for their weights, each beside its controls; a verdict follows
(`bsym_bids.model.domain`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from bsym_bids import atlas
from bsym_bids.atlas.group import group_functional_connectivity
from bsym_bids.bold.cleaning import naming
from bsym_bids.bold.windows import WINDOW_LENGTH, Windows, windows_for_model
from bsym_bids.errors import BsymError, InputMissingError
from bsym_bids.inputs.selection import unknown_label
from bsym_bids.model.contract import FUNCTIONAL, check_contract, check_network
from bsym_bids.model.domain import Verdict, judge_edges, judge_reconstruction
from bsym_bids.model.embed import inference
from bsym_bids.model.networks import Recovery, recovery_of_run
from bsym_bids.model.reconstruction import OVERALL, reconstruction_quality
from bsym_bids.model.structural import (
    CONVENTIONS,
    COUNT,
    DENSITY,
    EdgeConvention,
    edge_quality,
    stated_convention,
    structural_input,
)
from bsym_bids.model.structural_embedding import (
    connectome_input,
    expected_streamlines,
    group_input,
)
from bsym_bids.model.weights import Release, load_model
from bsym_bids.outputs.reading import (
    WrittenConnectome,
    WrittenRun,
    find_connectomes,
    find_runs,
    one_space,
    read_connectome,
    read_roi_volumes,
    read_series,
)

if TYPE_CHECKING:
    from bsym_bids.model.brainsymphony import BrainSymphony

ALL = "all"
WINDOW_STEP = 100

Item = TypeVar("Item", WrittenRun, WrittenConnectome)
Scores = Mapping[str, float]
#: A connectome (R, R) as the network gets it, and which ROIs (R,) it lacks.
NetworkInput = tuple[NDArray[np.float32], NDArray[np.bool_]]


@dataclass(frozen=True)
class Row:
    """What was found for one run or scan, one participant, or all of them.

    Attributes
    ----------
    participant, label : str
        Of the participant (without ``sub-``) and of the run or scan; ``all`` for a summary.
    scores : mapping of str to float
        By name; NaN where undefined. Means over runs or scans for a participant, medians over
        participants for all of them.
    verdict : Verdict, optional
        None where there is none to be had: for a convention that is not in use.
    convention : EdgeConvention, optional
        None for runs.
    """

    participant: str
    label: str
    scores: Scores
    verdict: Verdict | None
    convention: EdgeConvention | None = None


@dataclass(frozen=True)
class ModelCheck:
    """What a model could predict of a dataset.

    Attributes
    ----------
    release : Release
        The model.
    participants : tuple of str
        Labels of those who were looked at.
    n_participants : int
        Participants that there are.
    runs : tuple of Row
        Of runs, then participants, then all; empty when none was checked.
    edges : tuple of Row
        The same of scans, under each convention.
    convention : EdgeConvention, optional
        The one in use, that the verdict on edges is for.
    settings : mapping
        What decides the numbers.
    run_paths, scan_paths : tuple of Path
        The tables that were looked at.
    threads : int
        CPU threads that it was computed with.
    problems : tuple of BsymError
        Why runs or scans could not be checked.
    skipped : tuple of str
        What was not checked at all, and why.
    networks : mapping of str to Recovery
        See `bsym_bids.model.networks.recovery_of_run`, mean over runs; empty if not asked for.
    """

    release: Release
    participants: tuple[str, ...]
    n_participants: int
    runs: tuple[Row, ...]
    edges: tuple[Row, ...]
    convention: EdgeConvention | None
    settings: Mapping[str, Any]
    run_paths: tuple[Path, ...]
    scan_paths: tuple[Path, ...]
    threads: int
    problems: tuple[BsymError, ...]
    skipped: tuple[str, ...]
    networks: Mapping[str, Recovery] = field(default_factory=dict)

    @property
    def reconstruction_verdict(self) -> Verdict | None:
        """On the time series of the whole dataset."""
        return self.runs[-1].verdict if self.runs else None

    @property
    def edges_verdict(self) -> Verdict | None:
        """On the structural connectomes of the whole dataset, under the convention in use."""
        verdicts = [row.verdict for row in self.edges if row.participant == ALL]
        return next((verdict for verdict in verdicts if verdict), None)


def check_model(
    release: Release,
    derivatives: Path,
    *,
    participants: Sequence[str] = (),
    n_participants: int = 0,
    seed: int = 0,
    threads: int | None = None,
    networks: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> ModelCheck:
    """Check what a model can predict of a dataset.

    Parameters
    ----------
    release : Release
        The model.
    derivatives : Path
        Output folder of the participant level.
    participants : sequence of str
        Labels without ``sub-``; empty for all.
    n_participants : int
        So many at most, drawn with the seed; 0 for no limit.
    seed : int
        Of random weights, participants, folds and permutations.
    threads : int, optional
        CPU threads; None leaves torch's setting.
    networks : bool
        Whether to measure network recovery, too.
    say : callable
        Is told how it goes on, a line at a time.

    Returns
    -------
    ModelCheck

    Raises
    ------
    InputMissingError
        There is no such folder, or nothing in it that the model takes.
    NothingSelectedError
        A label that no participant has.
    BadDataError
        A model for other ROIs or windows.
    BsymError
        The first of the problems, when nothing at all could be checked.
    """
    check_contract(release, WINDOW_LENGTH)
    runs, scans = one_space(find_runs(derivatives)), _one_measure(find_connectomes(derivatives))
    people = sorted({item.participant for item in (*runs, *scans)})
    chosen = _choose(people, participants, n_participants, seed)
    model = load_model(release, seed)
    runs, scans, skipped = _usable(model, _of(runs, chosen), _of(scans, chosen))
    if not runs and not scans:
        raise InputMissingError(
            f"{derivatives}: nothing to check: {'; '.join(skipped)}",
            hint="name the output folder of `bsym-bids ... participant`",
        )
    if runs:
        check_network(release, model, WINDOW_LENGTH)
    settings = check_settings(release, seed)
    judge = partial(judge_reconstruction, release.card)
    expected = expected_streamlines(release.card)

    def of_run(run: WrittenRun) -> list[Row]:
        scores = run_scores(model, run, settings)
        return [Row(run.participant, run.label, scores, judge(scores))]

    def of_scan(scan: WrittenConnectome) -> list[Row]:
        return [
            Row(scan.participant, scan.label, scores, None, convention)
            for convention, scores in scan_scores(model, scan, seed, expected).items()
        ]

    problems: list[BsymError] = []
    with inference(threads) as used:
        found_runs = _collect(runs, of_run, problems, say)
        found_edges = _collect(scans, of_scan, problems, say)
        recovery = _recovery(model, runs, settings, say) if networks else {}
    if not found_runs and not found_edges:
        raise problems[0]
    in_use = stated_convention(release.card) or _best_convention(found_edges)
    return ModelCheck(
        release,
        chosen,
        len(people),
        _with_summaries(found_runs, judge),
        _judged_edges(found_edges, in_use, partial(judge_edges, release.card)),
        in_use if found_edges else None,
        settings,
        tuple(run.path for run in runs),
        tuple(scan.path for scan in scans),
        used,
        tuple(problems),
        skipped,
        recovery,
    )


def _recovery(
    model: BrainSymphony,
    runs: Sequence[WrittenRun],
    settings: Mapping[str, Any],
    say: Callable[[str], None],
) -> dict[str, Recovery]:
    """Return the network recovery of each kind of features, mean over the runs that can be used."""
    found: dict[str, list[Recovery]] = {}
    for number, run in enumerate(runs, 1):
        say(f"networks, {number} of {len(runs)}: {run.label}")
        try:
            recovered = recovery_of_written(model, run, settings)
        except BsymError:
            continue  # named already, when its reconstruction could not be scored
        for name, recovery in recovered.items():
            found.setdefault(name, []).append(recovery)
    return {name: Recovery.mean(recoveries) for name, recoveries in found.items()}


def recovery_of_written(
    model: BrainSymphony, run: WrittenRun, settings: Mapping[str, Any]
) -> Mapping[str, Recovery]:
    """Return the network recovery of a run, by the features of `bsym_bids.model.networks`.

    Parameters
    ----------
    model : BrainSymphony
        With all functional branches and a learnt positional code.
    run : WrittenRun
        The run.
    settings : mapping
        As `check_settings` returns them.

    Raises
    ------
    BadDataError
        The run cannot be read, is too short, or lacks too many ROIs.
    """
    windows = _windows(run, settings)
    sides = [roi.hemisphere for roi in atlas.rois()]
    return recovery_of_run(
        model, windows.data, windows.missing, atlas.networks(), sides, settings["Seed"]
    )


def _windows(run: WrittenRun, settings: Mapping[str, Any]) -> Windows:
    """Return a run's windows as the model's card has them."""
    return windows_for_model(
        read_series(run),
        settings["ModelRepetitionTime"],
        settings["Scaling"],
        settings["WindowStep"],
    )


def _collect(
    items: Sequence[Item],
    check: Callable[[Item], list[Row]],
    problems: list[BsymError],
    say: Callable[[str], None],
) -> list[Row]:
    """Check one after the other; what cannot be checked becomes a problem."""
    rows: list[Row] = []
    for number, item in enumerate(items, 1):
        say(f"{number} of {len(items)}: {item.label}")
        try:
            rows += check(item)
        except BsymError as error:
            problems.append(error)
    return rows


def _of(items: Sequence[Item], participants: Sequence[str]) -> list[Item]:
    return [item for item in items if item.participant in participants]


def run_scores(
    model: BrainSymphony, run: WrittenRun, settings: Mapping[str, Any]
) -> dict[str, float]:
    """Score the reconstruction of held-out ROIs of one run.

    Parameters
    ----------
    model : BrainSymphony
        With all functional branches.
    run : WrittenRun
        The run.
    settings : mapping
        ``ModelRepetitionTime``, ``Scaling``, ``WindowStep`` and ``Seed``.

    Returns
    -------
    dict of str to float
        Means over ROIs of the scores of `ReconstructionQuality`, and ``n_rois``.

    Raises
    ------
    BadDataError
        The run cannot be read, is too short, or lacks too many ROIs.
    """
    with naming(run.path):
        windows = _windows(run, settings)
        quality = reconstruction_quality(
            model,
            windows.data,
            windows.missing,
            settings["Seed"],
            windows.censored,
            group_functional_connectivity(),
        )
    return quality.network_means([OVERALL] * windows.missing.size)[OVERALL]


def scan_scores(
    model: BrainSymphony,
    scan: WrittenConnectome,
    seed: int,
    expected: tuple[float, float] | None = None,
) -> dict[EdgeConvention, dict[str, float]]:
    """Score the prediction of hidden edges of one scan, under each convention.

    Parameters
    ----------
    model : BrainSymphony
        With the structural branch.
    scan : WrittenConnectome
        Streamline counts, or counts that were divided by volume.
    seed : int
        Of folds and permutations.
    expected : tuple of float, optional
        As in `bsym_bids.model.structural_embedding.depth_factor`; used for streamline counts.

    Returns
    -------
    dict of EdgeConvention to dict of str to float
        ``r2``, ``rho``, ``mae`` over all pairs of ROIs; of the network, and with ``permuted_`` and
        ``group_`` in front of the control and the baseline; with ``edges_`` in front of all that,
        over pairs with an edge; ``n_edges``.

    Raises
    ------
    BadDataError
        The connectome cannot be read or used.
    """
    with naming(scan.path):
        inputs = _densities(scan) if scan.measure == DENSITY else _counts(scan, expected)
        return {
            convention: edge_quality(
                model,
                sc[None],
                seed,
                group=group_input(convention),
                missing=missing[None],
            ).scores_of()
            for convention, (sc, missing) in inputs.items()
        }


def _counts(
    scan: WrittenConnectome, expected: tuple[float, float] | None
) -> dict[EdgeConvention, NetworkInput]:
    """Return what the participant level gives the network, under each convention."""
    counts, volumes = read_connectome(scan), read_roi_volumes(scan)
    if volumes is None:
        volumes = atlas.roi_volumes()
    found = {}
    for measure in (COUNT, DENSITY):
        for transform in CONVENTIONS:
            convention = EdgeConvention(measure, transform)
            given = connectome_input(counts, volumes, convention, expected)
            found[convention] = given.sc, given.missing
    return found


def _densities(scan: WrittenConnectome) -> dict[EdgeConvention, NetworkInput]:
    """Return the same of counts that somebody has divided by volume; their number is not known."""
    weights = read_connectome(scan)
    missing = np.isnan(weights).all(axis=0)
    weights[missing] = weights[:, missing] = 0
    return {
        EdgeConvention(DENSITY, transform): (structural_input(weights, transform), missing)
        for transform in CONVENTIONS
    }


def check_settings(release: Release, seed: int) -> dict[str, Any]:
    """Return how windows are made, as sidecars say it: by the model's contract, else by default."""
    contract = release.card.get("contract", {})
    return {
        "ModelRepetitionTime": contract.get("repetition_time", 0.8),
        "WindowStep": WINDOW_STEP,
        "Scaling": contract.get("scaling", "robust"),
        "Seed": seed,
    }


def _choose(
    people: Sequence[str], wanted: Sequence[str], at_most: int, seed: int
) -> tuple[str, ...]:
    """Return the labels of the participants to look at, sorted."""
    wanted = [label.removeprefix("sub-") for label in wanted]
    for label in wanted:
        if label not in people:
            raise unknown_label("--participant-label", label, people)
    chosen = sorted(set(wanted)) or list(people)
    if 0 < at_most < len(chosen):
        chosen = np.random.default_rng(seed).choice(chosen, at_most, replace=False).tolist()
    return tuple(sorted(chosen))


def _one_measure(found: Iterable[WrittenConnectome]) -> list[WrittenConnectome]:
    """Return each scan once: its streamline counts, else its counts divided by volume."""
    chosen: dict[str, WrittenConnectome] = {}
    for connectome in found:
        if connectome.measure == COUNT:
            chosen[connectome.label] = connectome
        elif connectome.measure == DENSITY:
            chosen.setdefault(connectome.label, connectome)
    return list(chosen.values())


def _usable(
    model: BrainSymphony, runs: list[WrittenRun], scans: list[WrittenConnectome]
) -> tuple[list[WrittenRun], list[WrittenConnectome], tuple[str, ...]]:
    """Return what the network takes of what there is, and what is left out and why."""
    skipped = []
    lacking = [branch for branch in FUNCTIONAL if getattr(model, branch) is None]
    if lacking:
        runs = []
        skipped.append(f"the model has no branch {lacking[0]}, so it takes no time series")
    elif not runs:
        skipped.append("there are no denoised time series")
    if model.structural is None:
        scans = []
        skipped.append("the model has no structural branch, so it takes no connectomes")
    elif not scans:
        skipped.append("there are no structural connectomes")
    return runs, scans, tuple(skipped)


def _best_convention(rows: Sequence[Row]) -> EdgeConvention | None:
    """Return the convention under which hidden edges are predicted best."""
    by_convention = _by_convention(rows)
    if not by_convention:
        return None
    return max(
        by_convention,
        key=lambda key: np.nan_to_num(np.mean([row.scores["rho"] for row in by_convention[key]])),
    )


def _by_convention(rows: Sequence[Row]) -> dict[EdgeConvention | None, list[Row]]:
    return {
        key: [r for r in rows if r.convention == key] for key in {r.convention: 0 for r in rows}
    }


def _judged_edges(
    rows: Sequence[Row], in_use: EdgeConvention | None, judge: Callable[[Scores], Verdict]
) -> tuple[Row, ...]:
    """Return the rows of each convention with their summaries; verdicts on the one in use."""
    judged: list[Row] = []
    for convention, some in _by_convention(rows).items():
        if convention == in_use:
            some = [replace(row, verdict=judge(row.scores)) for row in some]
            judged += _with_summaries(some, judge)
        else:
            judged += _with_summaries(some, lambda _: None)
    return tuple(judged)


def _with_summaries(
    rows: Sequence[Row], judge: Callable[[Scores], Verdict | None]
) -> tuple[Row, ...]:
    """Add a row per participant, the mean over its runs, and the median over participants."""
    if not rows:
        return ()
    people = [
        _summary(some[0].participant, some, np.nanmean, judge)
        for some in (
            [row for row in rows if row.participant == label]
            for label in dict.fromkeys(row.participant for row in rows)
        )
    ]
    return (*rows, *people, _summary(ALL, people, np.nanmedian, judge))


def _summary(
    participant: str,
    rows: Sequence[Row],
    summarise: Callable[[NDArray[np.float64]], Any],
    judge: Callable[[Scores], Verdict | None],
) -> Row:
    """Bring rows together into one."""
    scores = {}
    for name in rows[0].scores:
        values = np.array([row.scores[name] for row in rows], dtype=np.float64)
        scores[name] = float(summarise(values)) if np.isfinite(values).any() else np.nan
    return Row(participant, ALL, scores, judge(scores), rows[0].convention)

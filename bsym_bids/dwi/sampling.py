"""Tracking in batches until the connectome is reproducible enough.

Streamlines are a sample. They come in batches (see `bsym_bids.dwi.batches`), which are counted in
order, and tracking stops after the first one at which the rule is met; what was tracked ahead is
thrown away. The connectome is therefore the same for any number of processes, to the last bit, and
whether or not the run was killed on the way.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bsym_bids.atlas import roi_names
from bsym_bids.dwi.batches import BatchStore, Task, fingerprint_of, finished_batches
from bsym_bids.dwi.connectome import (
    SEARCH_RADIUS,
    Connectome,
    EdgeSums,
    Image,
    describe_gaps,
    read_fa,
    read_labels,
    summed_weights,
    volumes_of_rois,
    without_absent,
)
from bsym_bids.dwi.records import FittedModel, PlacedAnatomy
from bsym_bids.dwi.tracks import tck_to_trx
from bsym_bids.errors import BadDataError, UsageError
from bsym_bids.outputs.publish import explained

if TYPE_CHECKING:
    from bsym_bids.dwi.engines import Engine
    from bsym_bids.dwi.presets import Preset

#: A correlation is not estimated from less.
MIN_BATCHES, MIN_ASSIGNED = 2, 10
TRACTOGRAM_SUFFIXES = (".tck", ".trx")


@dataclass(frozen=True)
class SamplingRule:
    """When to stop.

    Attributes
    ----------
    reliability : float, optional
        Stop when `sampling_reliability` has reached this, between 0 and 1.
    max_streamlines : int
        Stop here in any case.
    streamlines : int, optional
        Take exactly so many, whatever the others say.
    """

    reliability: float | None
    max_streamlines: int
    streamlines: int | None = None

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise UsageError(f"{self.limit} streamlines: at least 1 has to be tracked")
        if self.streamlines is None and not 0 < (self.reliability or 0) < 1:
            raise UsageError(
                f"reliability {self.reliability} is not between 0 and 1",
                hint="give another --reliability, or a fixed number with --streamlines",
            )

    @property
    def limit(self) -> int:
        """The most streamlines that are tracked."""
        return self.max_streamlines if self.streamlines is None else self.streamlines

    def is_met(self, reliabilities: Sequence[float]) -> bool:
        """Tell whether to stop, given the value after each batch."""
        if self.streamlines is not None or len(reliabilities) < MIN_BATCHES:
            return False
        return reliabilities[-1] >= self.reliability  # NaN compares false

    def batch_sizes(self, batch_size: int) -> list[int]:
        """Return the number of streamlines of each batch up to the limit."""
        whole, rest = divmod(self.limit, batch_size)
        return [batch_size] * whole + [rest] * (rest > 0)


def sampling_reliability(counts: NDArray[np.floating], present: NDArray[np.bool_]) -> float:
    """Return the correlation of counts to expect with an independent repeat of the same size.

    Streamlines are tracked independently of each other, so that the count of an edge is Poisson
    distributed around its expectation. Over edges, the variance of counts is that of the
    expectations plus the mean; two repeats share the first part only: r = 1 - mean / variance.
    (It is the reliability of classical test theory, the share of true variance.)

    Parameters
    ----------
    counts : ndarray
        (R, R), symmetric.
    present : ndarray of bool
        (R,), ROIs that count.

    Returns
    -------
    float
        Over all pairs of different ROIs. NaN where there are fewer than 10 streamlines between
        different ROIs, or all pairs have the same count.
    """
    counts = counts[np.ix_(present, present)]
    pairs = counts[np.triu_indices(len(counts), 1)]
    if len(pairs) < 2 or pairs.sum() < MIN_ASSIGNED or (variance := pairs.var(ddof=1)) == 0:
        return float("nan")
    return float(1 - pairs.mean() / variance)


def streamlines_needed(n_streamlines: int, reached: float, wanted: float) -> float:
    """Return how many streamlines a reliability takes, given that of a smaller number.

    By the formula of Spearman and Brown: r / (1 - r) grows in proportion to the number.
    """
    return n_streamlines * (wanted / (1 - wanted)) * ((1 - reached) / reached)


# --- the connectome ------------------------------------------------------------------------------


def sample_connectome(
    engine: Engine,
    model: FittedModel,
    placed: PlacedAnatomy,
    preset: Preset,
    work: Path,
    *,
    rule: SamplingRule,
    seed: int,
    processes: int,
    tractogram: Path | None = None,
) -> Connectome:
    """Track until the rule is met, and make the connectome.

    Parameters
    ----------
    engine : Engine
        What tracks.
    model : FittedModel
        Fibre orientations, and FA.
    placed : PlacedAnatomy
        The label image.
    preset : Preset
        Parameters of the engine, the size of batches, and whether SIFT2 is wanted.
    work : Path
        Folder for work files; a subfolder ``sampling`` is made, and removed at the end.
    rule : SamplingRule
        When to stop.
    seed : int
        At least 0.
    processes : int
        Batches to be tracked at the same time. The result does not depend on it.
    tractogram : Path, optional
        Where to keep all streamlines, ``.tck`` or ``.trx``.

    Returns
    -------
    Connectome
        Everything but ``seconds`` is the same for the same input, seed, engine and preset.

    Raises
    ------
    BadDataError
        An image cannot be used, or hardly any streamline has an ROI at both ends.
    UsageError
        The tractogram has another suffix.
    OutputIOError, CannotCreateOutputError
        The disk is full, or the work folder cannot be written. Finished batches are kept.
    BsymError
        What the engine raises; a process was killed.
    """
    if tractogram is not None and tractogram.suffix not in TRACTOGRAM_SUFFIXES:
        raise UsageError(f"{tractogram}: a tractogram ends in {' or '.join(TRACTOGRAM_SUFFIXES)}")
    started = time.monotonic()
    labels, fa = read_labels(Path(placed.labels)), read_fa(Path(model.fa))
    has_weights = engine.has_weights and preset.sift2
    task = Task(
        engine,
        model,
        preset,
        placed.labels,
        str(work.absolute() / "sampling"),
        keeps_tracks=has_weights or tractogram is not None,
    )
    sizes = rule.batch_sizes(preset.batch_size)
    store = BatchStore(task, fingerprint_of(task, labels, sizes, seed))
    volumes = volumes_of_rois(labels)
    with closing(finished_batches(store, sizes, seed, processes)) as batches:
        sample = _sample(store, batches, rule, volumes > 0)
    seconds = {"Sampling": time.monotonic() - started, **sample.seconds}

    sift2 = weights = None
    if has_weights:
        clock = time.monotonic()
        weights = _checked_weights(engine, model, store, sample.edges.n_streamlines)
        if weights is not None:
            sift2 = summed_weights(store.all_measures(sample.n_batches), weights)
        seconds["Weights"] = time.monotonic() - clock
    if tractogram is not None:
        clock = time.monotonic()
        _keep_tractogram(store.tracks, tractogram, fa, weights)
        seconds["Tractogram"] = time.monotonic() - clock
    connectome = _describe(sample, volumes, sift2, rule, preset, seed)
    connectome = dataclasses.replace(connectome, track_density_affine=fa.affine)
    store.remove()
    seconds["Total"] = time.monotonic() - started
    return dataclasses.replace(
        connectome, seconds={name: round(float(value), 3) for name, value in seconds.items()}
    )


@dataclass(frozen=True)
class _Sample:
    """Streamlines added up, the reliability after each batch, the time spent, a density."""

    edges: EdgeSums
    curve: list[tuple[int, float]]
    is_met: bool
    seconds: dict[str, float]
    density: NDArray[np.uint32] | None
    density_streamlines: int

    @property
    def n_batches(self) -> int:
        return len(self.curve)

    @property
    def reliability(self) -> float:
        return self.curve[-1][1]


def _sample(
    store: BatchStore, batches: Iterable[int], rule: SamplingRule, present: NDArray[np.bool_]
) -> _Sample:
    """Take batches in order until the rule is met or there are no more."""
    edges = EdgeSums()
    curve: list[tuple[int, float]] = []
    seconds = np.zeros(2)
    is_met = False
    density, n_dense = None, 0
    for index in batches:
        batch = store.load(index)
        if batch.density is not None:
            density, n_dense = batch.density, len(batch.measures.roi_a)
        store.keep_tracks(index, batch)
        edges.add(batch.measures)
        seconds += batch.seconds
        curve.append((edges.n_streamlines, sampling_reliability(edges.counts, present)))
        is_met = rule.is_met([reliability for _, reliability in curve])
        if is_met or (len(curve) >= MIN_BATCHES and edges.n_assigned == 0):
            break
    if edges.n_assigned == 0:
        raise BadDataError(
            f"{store.task.labels}: none of {edges.n_streamlines} streamlines has an ROI at both "
            "ends",
            hint="look at this image over the b0: it is probably not in register",
        )
    store.drop_tracks_after(len(curve))
    spent = dict(zip(("TrackingOfAllProcesses", "CountingOfAllProcesses"), seconds, strict=True))
    return _Sample(edges, curve, is_met, spent, density, n_dense)


def _checked_weights(
    engine: Engine, model: FittedModel, store: BatchStore, n_streamlines: int
) -> NDArray[np.float32] | None:
    folder = store.folder / "weights"
    folder.mkdir(exist_ok=True)
    weights = engine.streamline_weights(model, store.tracks, folder)
    if weights is not None and (
        weights.shape != (n_streamlines,) or not np.isfinite(weights).all()
    ):
        raise BadDataError(
            f"{store.tracks}: {weights.size} weights for {n_streamlines} streamlines, or some "
            "that are not finite"
        )
    return weights


def _keep_tractogram(
    tracks: Path, target: Path, fa: Image, weights: NDArray[np.float32] | None
) -> None:
    part = target.with_name(f".{target.name}.part")
    with explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            if target.suffix == ".trx":
                scores = {} if weights is None else {"sift2": weights}
                shape = fa.values.shape
                tck_to_trx(tracks, part, affine=fa.affine, shape=shape, per_streamline=scores)
            else:
                shutil.copyfile(tracks, part)
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)


def _describe(
    sample: _Sample,
    volumes: NDArray[np.float64],
    sift2: NDArray[np.float64] | None,
    rule: SamplingRule,
    preset: Preset,
    seed: int,
) -> Connectome:
    edges = sample.edges
    reliability = None if np.isnan(sample.reliability) else sample.reliability
    stopped = {
        "Reliability": None if rule.streamlines is not None else rule.reliability,
        "MaxStreamlines": None if rule.streamlines is not None else rule.max_streamlines,
        "Streamlines": rule.streamlines,
        "StoppedBy": _stopped_by(rule, sample.is_met),
    }
    gap_notes, gaps = describe_gaps(edges.counts, volumes)
    ends = 2 * edges.n_streamlines
    return Connectome(
        counts=without_absent(edges.counts, volumes),
        sift2=None if sift2 is None else without_absent(sift2, volumes),
        meanlength=edges.mean_length,
        meanfa=edges.mean_fa,
        roi_volumes=volumes,
        roi_streamlines=edges.counts.sum(axis=1).astype(np.int64),
        curve=np.array(sample.curve, dtype=np.float64),
        sampling_reliability=reliability,
        n_streamlines=edges.n_streamlines,
        n_assigned=edges.n_assigned,
        n_unassigned_ends=edges.n_unassigned_ends,
        absent_rois=tuple(np.array(roi_names())[volumes == 0].tolist()),
        rule=stopped,
        track_density=sample.density,
        track_density_streamlines=sample.density_streamlines,
        notes=(*_sampling_notes(edges.n_streamlines, reliability, rule, sample.is_met), *gap_notes),
        details={
            "Streamlines": edges.n_streamlines,
            "StreamlinesBetweenROIs": edges.n_assigned,
            "EndsWithoutROI": edges.n_unassigned_ends,
            "ShareOfEndsWithoutROI": round(edges.n_unassigned_ends / ends, 6),
            "EndSearchRadius": SEARCH_RADIUS,
            "SamplingReliability": reliability,
            "SamplingReliabilityDescription": (
                "Correlation over all pairs of ROIs, between these streamline counts and those of "
                "an independent repeat of the same tracking on the same data, to be expected from "
                "the counts: 1 - mean / variance. It tells how much chance is left in the counts. "
                "It says nothing of their accuracy: false positives are bias, not noise, and are "
                "as reproducible as true connections."
            ),
            "SamplingReliabilityCurve": [
                [n, None if np.isnan(value) else value] for n, value in sample.curve
            ],
            "SamplingRule": stopped,
            "BatchSize": int(preset.batch_size),
            "Seed": seed,
            **gaps,
        },
    )


def _stopped_by(rule: SamplingRule, is_met: bool) -> str:
    if rule.streamlines is not None:
        return "fixed number of streamlines"
    return "reliability" if is_met else "maximum number of streamlines"


def _sampling_notes(
    n_streamlines: int, reliability: float | None, rule: SamplingRule, is_met: bool
) -> list[str]:
    reached = "is not defined" if reliability is None else f"is {reliability:.3f}"
    notes = [
        f"The sampling reliability of {n_streamlines} streamlines {reached}: the correlation of "
        "counts to expect with a repeat of the tracking, which is not their accuracy."
    ]
    if rule.streamlines is None and not is_met:
        note = (
            f"Tracking stopped at the limit of {n_streamlines} streamlines, before the sampling "
            f"reliability reached {rule.reliability:g}."
        )
        if reliability is not None and 0 < reliability < rule.reliability:
            needed = streamlines_needed(n_streamlines, reliability, rule.reliability)
            note += f" About {needed:.2g} streamlines would be needed."
        notes.append(note)
    return notes

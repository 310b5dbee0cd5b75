"""Batches of streamlines: tracked by processes, kept in the work folder, taken in order.

Batch k has a seed of its own, derived from the seed of the run and k, and is tracked by one process
on one thread. What is in a batch therefore does not depend on how many processes there are, nor on
which of them is faster.

Finished batches stay in the work folder until the connectome is complete, each written aside and
renamed, under a fingerprint of all that decides them: a run that was killed goes on from there.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

import bsym_bids
from bsym_bids.dwi.connectome import (
    EndLookup,
    Image,
    Measures,
    measure,
    read_fa,
    read_labels,
)
from bsym_bids.dwi.maps import add_track_density
from bsym_bids.dwi.records import FittedModel
from bsym_bids.dwi.tracks import (
    append_tck,
    create_tck,
    cut_tck,
    points_size,
    read_tck,
    read_tck_header,
)
from bsym_bids.errors import BadDataError, BsymError, OutputIOError
from bsym_bids.outputs.publish import explained, file_identity, fingerprint
from bsym_bids.pool import start_processes, stop_processes

if TYPE_CHECKING:
    from bsym_bids.dwi.engines import Engine
    from bsym_bids.dwi.presets import Preset

_STATE_VERSION = 2  # of what is in the folder of batches
_BYTES_PER_STREAMLINE = 2000  # until a batch tells: 80 mm in steps of 0.5 mm
# Fields of a header that differ between batches or tell of the machine.
_PASSING_FIELDS = frozenset({"timestamp", "command_history", "total_count", "prng_seed"})
_UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


def batch_seeds(seed: int) -> Iterator[int]:
    """Yield the seed of each batch: all different, from 1 to 2^31 - 1, the same for equal seeds."""
    used = set()
    for index in itertools.count():
        value = int(np.random.SeedSequence((seed, index)).generate_state(1)[0]) & 0x7FFFFFFF
        if value and value not in used:
            used.add(value)
            yield value


# --- batches in the work folder ------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """What a process needs to track batches; pickled once for each."""

    engine: Engine
    model: FittedModel
    preset: Preset
    labels: str
    folder: str
    keeps_tracks: bool

    @property
    def tracking(self) -> Path:
        """Folder for what is not finished."""
        return Path(self.folder, "tracking")


@dataclass(frozen=True)
class Batch:
    """A finished batch: its streamlines, how many points they have, and seconds it took.

    The first one also has how many of its streamlines come by each voxel.
    """

    measures: Measures
    n_points: int
    seconds: NDArray[np.float64]
    density: NDArray[np.uint32] | None = None

    @property
    def n_bytes(self) -> int:
        """Bytes that the points take in ``tracks.tck``."""
        return points_size(self.n_points, len(self.measures.roi_a))


def fingerprint_of(task: Task, labels: Image, sizes: Sequence[int], seed: int) -> str:
    """Return a digest of all that decides what is in the batches.

    How many there are is not part of it, unless the last one is smaller: then the others are not
    those of a longer run.
    """
    content = hashlib.sha256(np.ascontiguousarray(labels.values)).hexdigest()
    return fingerprint(
        _STATE_VERSION,
        bsym_bids.__version__,
        [task.engine.name, task.engine.version, task.model.engine, task.model.version],
        {role: file_identity(Path(file)) for role, file in task.model.files.items()},
        file_identity(Path(task.model.fa)),
        task.preset.parameters(task.engine.name),
        [content, labels.affine.tolist()],
        sizes[0] if sizes[0] == sizes[-1] else list(sizes),
        seed,
        task.keeps_tracks,
    )


class BatchStore:
    """The folder of batches of one sample, and the file of all their streamlines.

    A batch is finished when ``<index>.npz`` is there and, where tracks are kept, its streamlines
    are in ``<index>.tck`` or already at their place in ``tracks.tck``.
    """

    def __init__(self, task: Task, key: str) -> None:
        self.task = task
        self.folder = Path(task.folder)
        self.tracks = self.folder / "tracks.tck"
        self._largest = 0  # bytes of a batch's streamlines
        with explained(self.folder):
            self._open(key)
            self._ends = self._find_tracks()

    def _open(self, key: str) -> None:
        """Go on with the batches of an earlier run, or remove those that are of another kind."""
        state = self.folder / "state.json"
        try:
            is_same = json.loads(state.read_text("utf-8")) == {"Fingerprint": key}
        except (OSError, ValueError):
            is_same = False
        if not is_same and self.folder.exists():
            state.unlink(missing_ok=True)  # first: what is left of it must not pass for another
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.task.tracking.exists():
            shutil.rmtree(self.task.tracking)
        self.task.tracking.mkdir()
        part = self.task.tracking / "state.json"
        part.write_text(json.dumps({"Fingerprint": key}), "utf-8")
        os.replace(part, state)

    def _find_tracks(self) -> list[tuple[int, int]]:
        """Return how many streamlines and bytes of points the file has after each batch in it.

        A batch counts when the mark of the end, which is written after it, has its place: what a
        kill left of a batch half appended is cut off, and appended again from its own file.
        """
        ends = [(0, 0)]
        if not self.task.keeps_tracks or not self.tracks.exists():
            return ends
        try:
            size = self.tracks.stat().st_size - read_tck_header(self.tracks).offset
        except BadDataError:  # killed as it was begun
            return ends
        for index in itertools.count():
            try:
                batch = self.load(index)
            except _UNREADABLE:
                break
            n, n_bytes = ends[-1][0] + len(batch.measures.roi_a), ends[-1][1] + batch.n_bytes
            if n_bytes + points_size(1, 0) > size:
                break
            ends.append((n, n_bytes))
        cut_tck(self.tracks, *ends[-1])
        return ends

    def _file(self, index: int, suffix: str) -> Path:
        return self.folder / f"{index:06d}{suffix}"

    def load(self, index: int) -> Batch:
        """Read a finished batch."""
        with np.load(self._file(index, ".npz"), allow_pickle=False) as file:
            measures = Measures(*(file[name] for name in Measures._fields))
            density = file.get("density")
            return Batch(measures, int(file["n_points"]), file["seconds"], density)

    def is_finished(self, index: int) -> bool:
        """Tell whether a batch is there."""
        try:
            self.load(index)
        except _UNREADABLE:
            return False
        has_tracks = index < len(self._ends) - 1 or self._file(index, ".tck").exists()
        return has_tracks or not self.task.keeps_tracks

    def keep_tracks(self, index: int, batch: Batch) -> None:
        """Append the streamlines of the next batch to the others, and remove its own file."""
        self._largest = max(self._largest, batch.n_bytes)
        if not self.task.keeps_tracks:
            return
        source = self._file(index, ".tck")
        with explained(self.tracks):
            if index == len(self._ends) - 1:
                if index == 0:
                    create_tck(self.tracks, _lasting(read_tck_header(source).fields))
                append_tck(self.tracks, source, len(batch.measures.roi_a))
                n, n_bytes = self._ends[-1]
                self._ends.append((n + len(batch.measures.roi_a), n_bytes + batch.n_bytes))
            source.unlink(missing_ok=True)

    def drop_tracks_after(self, n_batches: int) -> None:
        """Remove the streamlines that an earlier run under a stricter rule had beyond these."""
        if self.task.keeps_tracks and len(self._ends) - 1 > n_batches:
            del self._ends[n_batches + 1 :]
            cut_tck(self.tracks, *self._ends[-1])

    def all_measures(self, n_batches: int) -> Measures:
        """Return what is known of the streamlines of the first batches."""
        return joined([self.load(index).measures for index in range(n_batches)])

    def has_space(self, n_batches: int, n_streamlines: int) -> bool:
        """Tell whether the disk takes so many batches more, and one while it is copied."""
        each = self._largest or n_streamlines * _BYTES_PER_STREAMLINE
        return shutil.disk_usage(self.folder).free > each * (n_batches + 1)

    def remove(self) -> None:
        """Remove everything."""
        with explained(self.folder):
            (self.folder / "state.json").unlink()  # first, as above
            shutil.rmtree(self.folder)


def _lasting(fields: Mapping[str, str]) -> dict[str, str]:
    """Return the header fields of a batch that hold for all of them, on any machine."""
    return {k: v for k, v in fields.items() if k not in _PASSING_FIELDS and "/" not in v}


def joined(measures: Sequence[Measures]) -> Measures:
    """Put the measures of several lots of streamlines together."""
    return Measures(*(np.concatenate(values) for values in zip(*measures, strict=True)))


# --- processes -----------------------------------------------------------------------------------


def finished_batches(
    store: BatchStore, sizes: Sequence[int], seed: int, processes: int
) -> Iterator[int]:
    """Yield the index of each batch, in order, when it is finished.

    Batches are tracked ahead, no more than keep all processes busy while one of them is waited
    for, and fewer where the disk gets short. What is unfinished when this is closed is given up.

    Parameters
    ----------
    store : BatchStore
        Where they are kept. Those that are there already are not tracked again.
    sizes : sequence of int
        Streamlines of each batch.
    seed : int
        Of the run, at least 0.
    processes : int
        How many track at the same time.

    Raises
    ------
    OutputIOError
        The disk does not take another batch.
    BsymError
        What the engine raises, when the batch is asked for; a process was killed.
    """
    seeds = list(itertools.islice(batch_seeds(seed), len(sizes)))
    waiting: dict[int, Future[None]] = {}
    ahead = 0
    workers: ProcessPoolExecutor | None = None
    try:
        for index in range(len(sizes)):
            while ahead < min(len(sizes), index + 2 * processes):
                if not store.is_finished(ahead):
                    if not store.has_space(len(waiting) + 1, sizes[ahead]):
                        break
                    workers = workers or _workers(store.task, min(processes, len(sizes)))
                    batch = (ahead, sizes[ahead], seeds[ahead])
                    waiting[ahead] = workers.submit(_track_batch, *batch)
                ahead += 1
            if index == ahead:
                raise _disk_full(store.folder)
            if index in waiting:
                _wait(waiting.pop(index))
            yield index
    finally:
        if workers is not None:
            stop_processes(workers)


def _wait(batch: Future[None]) -> None:
    try:
        batch.result()
    except BrokenProcessPool as error:
        raise BsymError(
            "a tracking process was killed (often: not enough memory)",
            hint="see that more memory is free, or lower --nprocs; finished batches are kept",
        ) from error


def _disk_full(folder: Path) -> OutputIOError:
    free = shutil.disk_usage(folder).free / 1e6
    return OutputIOError(
        f"{folder}: {free:.0f} MB of free disk space are too few for the next streamlines",
        hint="make space, then run the same command again: finished batches are kept",
    )


def _workers(task: Task, processes: int) -> ProcessPoolExecutor:
    return start_processes(processes, _start_worker, task)


class _Worker:
    """One of the processes that track."""

    def __init__(self, task: Task) -> None:
        self.task = task

    @cached_property
    def lookup(self) -> EndLookup:
        return EndLookup(read_labels(Path(self.task.labels)))

    @cached_property
    def fa(self) -> Image:
        return read_fa(Path(self.task.model.fa))

    def track(self, index: int, n_streamlines: int, seed: int) -> None:
        """Track a batch, measure its streamlines, and put both in place."""
        task = self.task
        started = time.monotonic()
        out = task.tracking / f"{index:06d}.tck"
        out = task.engine.track(task.model, task.preset, n_streamlines, seed, out)
        tracked = time.monotonic()
        n_points, pieces = 0, []
        # Of the first batch alone: enough to look at, and each takes an image.
        density = np.zeros(self.fa.values.shape, np.uint32) if index == 0 else None
        for piece in read_tck(out):
            n_points += len(piece.points)
            pieces.append(measure(piece, self.lookup, self.fa))
            if density is not None:
                add_track_density(density, piece, self.fa.affine)
        n_there = sum(len(piece.roi_a) for piece in pieces)
        if n_there != n_streamlines:
            raise BadDataError(
                f"{out}: {task.engine.name} tracked {n_there} of {n_streamlines} streamlines",
                hint="the mask or the tissue probably leaves next to nothing to track in",
            )
        seconds = (tracked - started, time.monotonic() - tracked)
        with explained(out):
            if task.keeps_tracks:
                os.replace(out, Path(task.folder, f"{index:06d}.tck"))
            else:
                out.unlink()
            part = task.tracking / f"{index:06d}.npz"
            values = joined(pieces)._asdict() | ({} if density is None else {"density": density})
            np.savez(part, n_points=np.int64(n_points), seconds=np.array(seconds), **values)
            os.replace(part, Path(task.folder, part.name))


_worker: _Worker | None = None


def _start_worker(task: Task) -> None:
    global _worker
    _worker = _Worker(task)


def _track_batch(index: int, n_streamlines: int, seed: int) -> None:
    assert _worker is not None
    _worker.track(index, n_streamlines, seed)

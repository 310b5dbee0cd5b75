"""What there is to train on: windows and connectomes of a derivative dataset."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bsym_bids import __version__, atlas
from bsym_bids.bold.cleaning import naming
from bsym_bids.bold.windows import windows_for_model
from bsym_bids.errors import BadDataError, BsymError
from bsym_bids.model.embed import MAX_MISSING_SHARE
from bsym_bids.model.structural import COUNT, DENSITY, structural_input, volume_normalised
from bsym_bids.outputs.names import sidecar_of
from bsym_bids.outputs.publish import explained, file_identity, fingerprint
from bsym_bids.outputs.reading import (
    WrittenConnectome,
    WrittenRun,
    find_connectomes,
    find_runs,
    one_space,
    read_connectome,
    read_series,
)
from bsym_bids.training.objectives import WindowBatch

LOGGER = logging.getLogger("bsym_bids")
_KEPT = ("missing", "censored", "participants", "runs")


@dataclass(frozen=True)
class InputRules:
    """How data become what the network takes; part of the contract of the release.

    Attributes
    ----------
    repetition_time : float
        Of the windows' frames, in seconds.
    scaling : str
        Of each ROI, see `bsym_bids.bold.scaling.scale`.
    window_step : int
        Frames between windows.
    volume_normalised : bool
        Whether streamline counts are divided by ROI volumes. Counts are the default since
        log10(1 + d) of densities per mm3, nearly all far below 1, leaves little but the strongest.
    convention : str
        What is made of them, see `bsym_bids.model.structural.structural_input`.
    """

    repetition_time: float = 0.8
    scaling: str = "robust"
    window_step: int = 100
    volume_normalised: bool = False
    convention: str = "log10p1"


@dataclass(frozen=True, eq=False)
class WindowSet:
    """Windows of many people.

    Attributes
    ----------
    windows : ndarray, shape (N, R, T)
        float32, 0 at missing ROIs; mapped from a file, so that memory does not grow with people.
    missing : ndarray of bool, shape (N, R)
        ROIs that were not measured.
    censored : ndarray of bool, shape (N, T)
        Frames that were interpolated.
    participants : ndarray of str, shape (N,)
        Whose window it is.
    runs : ndarray of int, shape (N,)
        Which run it is from.
    key : str
        Digest of what the windows were made from.
    simulated : bool
        Whether any of them is of a simulated person.
    """

    windows: NDArray[np.float32]
    missing: NDArray[np.bool_]
    censored: NDArray[np.bool_]
    participants: NDArray[np.str_]
    runs: NDArray[np.int64]
    key: str
    simulated: bool

    def of(self, people: Sequence[str]) -> NDArray[np.int64]:
        """Return the indices of the windows of some people."""
        return np.flatnonzero(np.isin(self.participants, list(people)))

    def batch(self, indices: NDArray[np.int64], device: torch.device) -> WindowBatch:
        """Return some windows as tensors."""
        return WindowBatch(
            torch.from_numpy(np.array(self.windows[indices])).to(device),
            torch.from_numpy(self.missing[indices]).to(device),
            torch.from_numpy(self.censored[indices]).to(device),
        )


@dataclass(frozen=True, eq=False)
class ConnectomeSet:
    """Connectomes of many people.

    Attributes
    ----------
    connectomes : ndarray, shape (N, R, R)
        float32, as the structural branch takes them.
    participants : ndarray of str, shape (N,)
        Whose they are.
    key : str
        Digest of what they were made from.
    """

    connectomes: NDArray[np.float32]
    participants: NDArray[np.str_]
    key: str

    def of(self, people: Sequence[str]) -> NDArray[np.int64]:
        """Return the indices of the connectomes of some people."""
        return np.flatnonzero(np.isin(self.participants, list(people)))

    def batch(self, indices: NDArray[np.int64], device: torch.device) -> Tensor:
        """Return some connectomes as a tensor."""
        return torch.from_numpy(self.connectomes[indices]).to(device)


def collect_windows(derivatives: Path, rules: InputRules, cache: Path) -> WindowSet | None:
    """Cut all runs of a dataset into windows.

    They are kept in ``cache`` and taken from there when neither runs nor rules have changed. A run
    that cannot be used is left out with a warning; of one in several spaces, the first is taken.

    Parameters
    ----------
    derivatives : Path
        Output folder of the participant level.
    rules : InputRules
        How windows are made.
    cache : Path
        Folder for the windows.

    Returns
    -------
    WindowSet or None
        None when the dataset has no runs.

    Raises
    ------
    BadDataError
        When there are runs, but none can be used.
    """
    runs = one_space(find_runs(derivatives))
    if not runs:
        return None
    files = [[file_identity(p) for p in (run.path, sidecar_of(run.path))] for run in runs]
    key = fingerprint(__version__, vars(rules), files)
    index = cache / "windows_index.npz"
    windows = cache / "windows.npy"
    kept = _read_cache(windows, index, key)
    if kept is None:
        with explained(cache):
            cache.mkdir(parents=True, exist_ok=True)
            index.unlink(missing_ok=True)
            _write_windows(runs, rules, windows, index, key)
        kept = _read_cache(windows, index, key)
        assert kept is not None
    simulated = any(run.sidecar.get("Simulated") is True for run in runs)
    return WindowSet(**kept, key=key, simulated=simulated)


def collect_connectomes(derivatives: Path, rules: InputRules) -> ConnectomeSet | None:
    """Read all structural connectomes of a dataset.

    Of one scan, streamline counts are taken; without them, counts that were already divided by
    volume. A connectome with ROIs that were not measured is left out with a warning.

    Returns
    -------
    ConnectomeSet or None
        None when the dataset has no connectomes.

    Raises
    ------
    BadDataError
        When there are connectomes, but none can be used.
    """
    found = _one_measure(find_connectomes(derivatives), rules)
    if not found:
        return None
    matrices, participants = [], []
    for connectome in found:
        try:
            matrices.append(_structural_input(connectome, rules))
            participants.append(connectome.participant)
        except BsymError as error:
            LOGGER.warning("left out: %s", error)
    if not matrices:
        raise BadDataError(f"{derivatives}: none of {len(found)} connectomes can be used")
    key = fingerprint(vars(rules), [file_identity(connectome.path) for connectome in found])
    return ConnectomeSet(np.stack(matrices), np.array(participants), key)


def _one_measure(found: list[WrittenConnectome], rules: InputRules) -> list[WrittenConnectome]:
    measures = (COUNT, DENSITY) if rules.volume_normalised else (COUNT,)
    chosen: dict[tuple[tuple[str, str], ...], WrittenConnectome] = {}
    for measure in measures:
        for connectome in found:
            if connectome.measure == measure:
                chosen.setdefault(tuple(connectome.entities.items()), connectome)
    return list(chosen.values())


def _structural_input(connectome: WrittenConnectome, rules: InputRules) -> NDArray[np.float32]:
    weights = read_connectome(connectome)
    if np.isnan(weights).any():
        raise BadDataError(f"{connectome.path}: has ROIs that were not measured")
    if rules.volume_normalised and connectome.measure == COUNT:
        weights = volume_normalised(weights, atlas.roi_volumes())
    try:
        return structural_input(weights, rules.convention)
    except BadDataError as error:
        raise BadDataError(f"{connectome.path}: {error}", error.hint) from error


def _read_cache(windows: Path, index: Path, key: str) -> dict[str, NDArray[Any]] | None:
    """Return the arrays that were kept, or None unless they are whole and of this key."""
    try:
        with np.load(index, allow_pickle=False) as stored:
            if str(stored["key"]) != key:
                return None
            arrays = {name: stored[name] for name in _KEPT}
        mapped = np.load(windows, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None  # not there, or cut off when the program was killed
    return {"windows": mapped, **arrays} if len(mapped) == len(arrays["missing"]) else None


def _write_windows(
    runs: list[WrittenRun], rules: InputRules, path: Path, index: Path, key: str
) -> None:
    """Write the windows of all runs one after the other, and then what each of them is."""
    missing, censored, participants, numbers = [], [], [], []
    raw = path.with_suffix(".raw")
    with raw.open("wb") as file:
        for number, run in enumerate(runs):
            try:
                made = _windows(run, rules)
            except BsymError as error:
                LOGGER.warning("left out: %s", error)
                continue
            file.write(made[0].tobytes())
            count = len(made[0])
            missing += [made[1]] * count
            censored += list(made[2])
            participants += [run.participant] * count
            numbers += [number] * count
    if not participants:
        raise BadDataError(
            f"{runs[0].path.parents[2]}: none of {len(runs)} runs can be used",
            hint="the warnings above say why",
        )
    shape = (len(participants), len(missing[0]), censored[0].size)
    mapped = np.memmap(raw, np.float32, "r", shape=shape)
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.save(file, mapped)
    os.replace(part, path)  # whoever has the old one mapped keeps it
    raw.unlink()
    part = index.with_suffix(".part")
    with part.open("wb") as file:
        np.savez(
            file,
            key=np.array(key),
            missing=np.stack(missing),
            censored=np.stack(censored),
            participants=np.array(participants),
            runs=np.array(numbers),
        )
    os.replace(part, index)  # last: windows without an index are made again


def _windows(
    run: WrittenRun, rules: InputRules
) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]:
    """Return a run's windows (W, R, T), missing ROIs (R,) and censored frames (W, T)."""
    with naming(run.path):
        made = windows_for_model(
            read_series(run), rules.repetition_time, rules.scaling, rules.window_step
        )
        if made.missing.mean() > MAX_MISSING_SHARE:
            raise BadDataError(
                f"{made.missing.sum()} of {made.missing.size} ROIs were not measured"
            )
    return made.data, made.missing, made.censored


def split_people(
    groups: Sequence[Sequence[str]], share: float, seed: int
) -> tuple[list[str], list[str]]:
    """Part people into those to train on and those to hold out, alike in each group.

    Parameters
    ----------
    groups : sequence of sequence of str
        Labels, by what there is of people: both modalities, or one.
    share : float
        Of the people of a group who are held out; 0 holds out nobody.
    seed : int
        Of the draw.

    Returns
    -------
    training, held_out : list of str
        Both sorted. Of a group of several at least one person is held out if the share is above 0.

    Raises
    ------
    BadDataError
        When there is no group of several, and somebody is to be held out.
    """
    training: list[str] = []
    held_out: list[str] = []
    for group in groups:
        labels = np.array(sorted(set(group)))
        count = min(max(1, round(share * len(labels))), len(labels) - 1) if share else 0
        order = np.random.default_rng(seed).permutation(len(labels))
        training += labels[order[count:]].tolist()
        held_out += labels[order[:count]].tolist()
    if share and not held_out:
        raise BadDataError(
            f"{len(training)} participants are too few to hold one of them out",
            hint="process more participants, or say --validation-share 0",
        )
    return sorted(training), sorted(held_out)


def groups_of(windows: WindowSet | None, connectomes: ConnectomeSet | None) -> list[list[str]]:
    """Return people by what there is of them: both modalities, windows only, connectomes only."""
    seen = set(windows.participants.tolist()) if windows is not None else set()
    mapped = set(connectomes.participants.tolist()) if connectomes is not None else set()
    groups = [seen & mapped, seen - mapped, mapped - seen]
    return [sorted(group) for group in groups if group]

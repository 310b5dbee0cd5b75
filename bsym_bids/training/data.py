"""What there is to train on: windows and connectomes of a derivative dataset."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bsym_bids import atlas
from bsym_bids.bold.cleaning import naming
from bsym_bids.bold.windows import windows_for_model
from bsym_bids.errors import BadDataError, BsymError
from bsym_bids.model.embed import MAX_MISSING_SHARE
from bsym_bids.model.structural import structural_input, volume_normalised
from bsym_bids.outputs.publish import file_identity, fingerprint
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
COUNT = "count"
_DENSITY = "invnodevol"


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
    """

    windows: NDArray[np.float32]
    missing: NDArray[np.bool_]
    censored: NDArray[np.bool_]
    participants: NDArray[np.str_]

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
    """

    connectomes: NDArray[np.float32]
    participants: NDArray[np.str_]

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
    key = fingerprint(vars(rules), [file_identity(run.path) for run in runs])
    index = cache / "windows_index.npz"
    windows = cache / "windows.npy"
    if not _is_current(index, key):
        cache.mkdir(parents=True, exist_ok=True)
        index.unlink(missing_ok=True)
        _write_windows(runs, rules, windows, index, key)
    with np.load(index, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in ("missing", "censored", "participants")}
    return WindowSet(np.load(windows, mmap_mode="r"), **arrays)


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
    return ConnectomeSet(np.stack(matrices), np.array(participants))


def _one_measure(found: list[WrittenConnectome], rules: InputRules) -> list[WrittenConnectome]:
    measures = (COUNT, _DENSITY) if rules.volume_normalised else (COUNT,)
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


def _is_current(index: Path, key: str) -> bool:
    try:
        with np.load(index, allow_pickle=False) as stored:
            return str(stored["key"]) == key
    except (OSError, ValueError, KeyError):
        return False


def _write_windows(
    runs: list[WrittenRun], rules: InputRules, path: Path, index: Path, key: str
) -> None:
    """Write the windows of all runs one after the other, and then what each of them is."""
    missing, censored, participants = [], [], []
    raw = path.with_suffix(".raw")
    with raw.open("wb") as file:
        for run in runs:
            try:
                made = _windows(run, rules)
            except BsymError as error:
                LOGGER.warning("left out: %s", error)
                continue
            made[0].tofile(file)
            count = len(made[0])
            missing += [made[1]] * count
            censored += list(made[2])
            participants += [run.participant] * count
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
    np.savez(
        index,
        key=np.array(key),
        missing=np.stack(missing),
        censored=np.stack(censored),
        participants=np.array(participants),
    )


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


def split_people(people: Sequence[str], share: float, seed: int) -> tuple[list[str], list[str]]:
    """Part people into those to train on and those to hold out.

    Parameters
    ----------
    people : sequence of str
        Labels.
    share : float
        Of people held out; 0 holds out nobody.
    seed : int
        Of the draw.

    Returns
    -------
    training, held_out : list of str
        Both sorted. At least one person is held out if the share is above 0.

    Raises
    ------
    BadDataError
        When nobody is left to train on.
    """
    labels = np.array(sorted(set(people)))
    count = max(1, round(share * len(labels))) if share else 0
    if count >= len(labels):
        raise BadDataError(
            f"{len(labels)} participants are too few to hold {count} of them out",
            hint="process more participants, or say --validation-share 0",
        )
    order = np.random.default_rng(seed).permutation(len(labels))
    return sorted(labels[order[count:]].tolist()), sorted(labels[order[:count]].tolist())

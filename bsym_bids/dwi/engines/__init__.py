"""Tractography engines: MRtrix3 and DIPY, with one contract."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bsym_bids.config import ENGINES
from bsym_bids.dwi.presets import Preset
from bsym_bids.dwi.records import FittedModel, PlacedAnatomy, PreparedDwi
from bsym_bids.errors import UsageError


class Engine(Protocol):
    """Fits fibre orientations and tracks; can be pickled for the processes that track.

    Attributes
    ----------
    name : str
        ``mrtrix3`` or ``dipy``.
    version : str
        Its version.
    has_weights : bool
        Whether `streamline_weights` can return weights.
    """

    name: str
    version: str
    has_weights: bool

    def fit(
        self,
        dwi: PreparedDwi,
        placed: PlacedAnatomy,
        preset: Preset,
        work: Path,
        *,
        threads: int,
        seed: int,
    ) -> FittedModel:
        """Fit fibre orientations, and lay out what tracking needs.

        Parameters
        ----------
        dwi : PreparedDwi
            The series.
        placed : PlacedAnatomy
            With tissue, tracking is anatomically constrained; without, FA and mask bound it.
        preset : Preset
            Everything else that decides.
        work : Path
            Folder for its files, which the model names; others are removed.
        threads : int
            How many cores it may use; the result doesn't depend on it.
        seed : int
            For what is drawn while fitting, if anything.

        Returns
        -------
        FittedModel

        Raises
        ------
        BadDataError
            Too few directions, no voxels to estimate a response from, no place for seeds.
        """
        ...

    def track(
        self, model: FittedModel, preset: Preset, n_streamlines: int, seed: int, out: Path
    ) -> Path:
        """Track one batch on one thread; equal seeds give equal streamlines, bit for bit.

        Parameters
        ----------
        model : FittedModel
            Of this engine.
        preset : Preset
            The one that the model was fitted with.
        n_streamlines : int
            How many there will be, neither more nor less.
        seed : int
            From 1 to 2^31 - 1.
        out : Path
            The ``.tck`` file, points in world mm.

        Returns
        -------
        Path
            ``out``.

        Raises
        ------
        BadDataError
            Too few seeds become streamlines that are long enough.
        """
        ...

    def streamline_weights(
        self, model: FittedModel, tracks: Path, work: Path
    ) -> NDArray[np.float32] | None:
        """Return what each streamline is worth.

        Parameters
        ----------
        model : FittedModel
            Of this engine.
        tracks : Path
            All streamlines that were kept.
        work : Path
            Folder for files that are removed again.

        Returns
        -------
        ndarray of float32, shape (n,), or None
            SIFT2 weights times the proportionality coefficient mu, so that sums over streamlines
            are fibre bundle capacities; None where the engine has none or the preset wants none.
        """
        ...


def resolve_engine(name: str) -> Engine:
    """Return the engine of a name; ``auto`` is MRtrix3 where it is installed, else DIPY.

    Raises
    ------
    UsageError
        There is no engine of that name.
    InputMissingError
        It is asked for by name, but not installed.
    """
    from bsym_bids.dwi.engines.dipy import load_dipy
    from bsym_bids.dwi.engines.mrtrix3 import is_installed, load_mrtrix3

    if name not in ENGINES:
        raise UsageError(
            f"unknown tractography engine {name!r}", hint=f"engines: {', '.join(ENGINES)}"
        )
    if name == "mrtrix3" or (name == "auto" and is_installed()):
        return load_mrtrix3()
    return load_dipy()

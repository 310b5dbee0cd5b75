"""Where the tissues of a participant come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bsym_bids.dwi.t1w import MOST_DEFECTIVE, Brain, Told
from bsym_bids.dwi.tissue import (
    five_tissues,
    segment,
    template_priors,
    three_from_dseg,
    tissues_from_freesurfer,
)
from bsym_bids.dwi.transforms import Transform, Volume, load_volume, resample
from bsym_bids.inputs.records import Anatomy

#: Share of the brain to which a segmentation must give grey or white matter to be used.
LEAST_NAMED = 0.5


def find_tissue(
    anatomy: Anatomy, brain: Brain, labels: Volume, chain: Sequence[Transform], told: Told
) -> NDArray[np.float32]:
    """Return five tissues from the best source that can be used.

    FreeSurfer's segmentation, else probability maps, else a segmentation into three, else one made
    here. A file that gives most of the brain no grey or white matter, or lacks numbers in it, is
    passed over with a note.

    Parameters
    ----------
    anatomy : Anatomy
        What there is.
    brain : Brain
        The brain and its grid.
    labels : Volume
        The atlas on the grid of the brain.
    chain : sequence of Transform
        From the world of the brain to the template.
    told : Told
        Gets notes, and ``TissueSource`` among the details.

    Returns
    -------
    ndarray of float32, shape (X, Y, Z, 5)

    Raises
    ------
    BadDataError
        A file cannot be read.
    InputMissingError
        A file is not there.
    """
    sources: tuple[Callable[[], tuple[NDArray[np.float32], str] | None], ...] = (
        lambda: _from_freesurfer(anatomy, brain, told),
        lambda: _from_maps(anatomy, brain, labels, told),
        lambda: _from_segmentation(anatomy, brain, labels, told),
    )
    for source in sources:
        found = source()
        if found is not None:
            tissue, told.details["TissueSource"] = found
            return tissue
    told.details["TissueSource"] = "segmented here"
    told.notes.append(f"{anatomy.t1w.name}: tissues were segmented here.")
    return five_tissues(_own_segmentation(brain, chain), labels, brain.mask.data)


def _from_freesurfer(
    anatomy: Anatomy, brain: Brain, told: Told
) -> tuple[NDArray[np.float32], str] | None:
    path = anatomy.aparcaseg
    numbers = None if path is None else _whole_numbers(path, brain, told)
    if path is None or numbers is None:
        return None
    tissue = tissues_from_freesurfer(numbers, brain.mask.data)
    if _names_little(tissue[..., :3].sum(axis=-1), path, brain, told):
        return None
    return tissue, path.name


def _from_maps(
    anatomy: Anatomy, brain: Brain, labels: Volume, told: Told
) -> tuple[NDArray[np.float32], str] | None:
    if not anatomy.probseg:
        return None
    paths = [anatomy.probseg[kind] for kind in ("GM", "WM", "CSF")]
    maps = [_on_brain(path, brain, 1, told) for path in paths]
    shares = [m for m in maps if m is not None]
    if len(shares) < len(maps):
        return None
    stacked = np.stack(shares, axis=-1).astype(np.float32)
    if _names_little(stacked[..., :2].sum(axis=-1), paths[0], brain, told):
        return None
    tissue = five_tissues(stacked, labels, brain.mask.data)
    return tissue, ", ".join(path.name for path in paths)


def _from_segmentation(
    anatomy: Anatomy, brain: Brain, labels: Volume, told: Told
) -> tuple[NDArray[np.float32], str] | None:
    path = anatomy.dseg
    numbers = None if path is None else _whole_numbers(path, brain, told)
    if path is None or numbers is None:
        return None
    shares = three_from_dseg(numbers)
    if _names_little(shares[..., :2].sum(axis=-1), path, brain, told):
        return None
    return five_tissues(shares, labels, brain.mask.data), path.name


def _own_segmentation(brain: Brain, chain: Sequence[Transform]) -> NDArray[np.float32]:
    priors = template_priors()
    shape, affine = brain.mask.data.shape, brain.mask.affine
    warped = np.stack(
        [
            resample(Volume(priors.data[..., kind], priors.affine), shape, affine, chain).data
            for kind in range(3)
        ],
        axis=-1,
    )
    return segment(brain.image.data, brain.mask.data, warped)


def _whole_numbers(path: Path, brain: Brain, told: Told) -> NDArray[np.int32] | None:
    data = _on_brain(path, brain, 0, told)
    return None if data is None else np.rint(data).astype(np.int32)


def _on_brain(path: Path, brain: Brain, order: int, told: Told) -> NDArray | None:
    """Return an image on the grid of the brain; None, with a note, where numbers are missing."""
    volume = load_volume(path)
    if not brain.is_on_grid(volume):
        how = "nearest neighbours" if order == 0 else "linear interpolation"
        told.notes.append(
            f"{path.name}: on another grid than the T1-weighted image; it was brought onto it by "
            f"{how}."
        )
    data = brain.bring(volume, order)
    absent = ~np.isfinite(data)
    if absent[brain.mask.data].mean() > MOST_DEFECTIVE:
        told.notes.append(f"{path.name}: not used, numbers are missing (NaN) in the brain.")
        return None
    return np.where(absent, 0, data) if absent.any() else data


def _names_little(named: NDArray[np.float32], path: Path, brain: Brain, told: Told) -> bool:
    """Tell, with a note, whether a segmentation leaves most of the brain without tissue."""
    share = float((named[brain.mask.data] > 0).mean())
    if share >= LEAST_NAMED:
        return False
    told.notes.append(
        f"{path.name}: not used, only {share:.0%} of the brain are grey or white matter in it."
    )
    return True

"""Diffusion gradients: reading FSL's two text files, their mistakes, and the axes they are in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bsym_bids.errors import BadDataError, InputMissingError
from bsym_bids.untrusted import read_text, to_float

#: s/mm2; volumes up to this b-value count as not weighted.
B0_MAX = 50.0
#: s/mm2; two b-values nearer to each other than this are of one shell (MRtrix3 uses 80).
SHELL_GAP = 80.0
#: Directions that a tensor takes at least.
FEWEST_DIRECTIONS = 6
#: Directions from which on spherical deconvolution (order 4) is determined.
ENOUGH_DIRECTIONS = 15
#: s/mm2; no scanner reaches more.
LARGEST_B = 5e4
# Bytes; the gradients of ten thousand volumes have a quarter of it.
_LARGEST_FILE = 1 << 22
# Nobody writes vectors that are longer, whatever they are scaled by.
_LONGEST = 1e6
# Lengths of vectors off by less than this are rounding in the text file.
_ROUNDING = 0.02
# Two directions nearer than this (radians, about 3 degrees) are one measured twice.
_SAME_DIRECTION = 0.05
# Values up to this are not s/mm2 if they are weightings at all: there ms/um2 are meant.
_LARGEST_IN_MS_PER_UM2 = 20.0
# 1 s/mm2 is 1e6 s/m2, so that the weightings of any protocol lie above this.
_SMALLEST_IN_SI = 1e8


@dataclass(frozen=True)
class Shell:
    """Volumes of about the same weighting.

    Attributes
    ----------
    b : float
        Mean b-value in s/mm2.
    volumes : ndarray of int
        Their indices in the series.
    """

    b: float
    volumes: NDArray[np.intp]


@dataclass(frozen=True)
class Gradients:
    """The gradients of a series.

    Attributes
    ----------
    bvals : ndarray, shape (V,)
        b in s/mm2.
    bvecs : ndarray, shape (V, 3)
        Unit vectors in FSL's convention (axes of the image, x negated where the determinant of
        its affine is positive); zero where there is no direction.
    """

    bvals: NDArray[np.float64]
    bvecs: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.bvals)

    @property
    def is_b0(self) -> NDArray[np.bool_]:
        """Which volumes are without diffusion weighting, shape (V,)."""
        return self.bvals <= B0_MAX

    @property
    def has_direction(self) -> NDArray[np.bool_]:
        """Which volumes have a direction, shape (V,)."""
        return self.bvecs.any(axis=1)

    @property
    def shells(self) -> tuple[Shell, ...]:
        """Shells of the weighted volumes, lowest b first."""
        weighted = np.flatnonzero(~self.is_b0)
        order = weighted[np.argsort(self.bvals[weighted], kind="stable")]
        breaks = np.flatnonzero(np.diff(self.bvals[order]) > SHELL_GAP) + 1
        groups = np.split(order, breaks) if len(order) else []
        return tuple(Shell(float(self.bvals[g].mean()), np.sort(g)) for g in groups)

    def take(self, volumes: Sequence[int] | NDArray) -> Gradients:
        """Return the gradients of some volumes (indices, or one boolean per volume)."""
        chosen = np.asarray(volumes)
        return Gradients(self.bvals[chosen], self.bvecs[chosen])


def read_gradients(bval: Path, bvec: Path, n_volumes: int) -> tuple[Gradients, list[str]]:
    """Read the gradients of one series from files in FSL's form.

    b-values up to `B0_MAX` become 0. Vectors are brought to unit length and b-values kept as they
    are: whoever scales b by the square of the length (some multi-shell protocols do) is told.
    A weighted volume with a zero vector keeps it (see `Gradients.has_direction`): that is how
    scanners append trace images.

    Parameters
    ----------
    bval, bvec : Path
        b-values in a row or a column; vectors in three rows, or three columns.
    n_volumes : int
        Volumes of the series.

    Returns
    -------
    Gradients
    notes : list of str
        What was unusual, and how it was taken.

    Raises
    ------
    InputMissingError, BadDataError
        A file is absent, isn't numbers, or doesn't fit the series or the other file.
    """
    bvals, notes = _b_values(bval, n_volumes)
    vectors, transposed = _vectors(bvec, n_volumes)
    notes += transposed
    bad = ~np.isfinite(vectors).all(axis=1)
    if (bad & (bvals > B0_MAX)).any():
        where = _listed(np.flatnonzero(bad & (bvals > B0_MAX)))
        raise BadDataError(
            f"{bvec}: is not a number at {where}, though the volume is diffusion-weighted",
            "make the gradient files again from the scanner's data",
        )
    vectors[bad] = 0  # b0 volumes have no direction, and some converters write NaN for it
    vectors, lengths = _normalised(bvec, vectors, bvals)
    bvals, units = _in_s_per_mm2(bval, bvals, vectors)
    notes += lengths + units
    low = (bvals > 0) & (bvals <= B0_MAX)
    if low.any():
        notes.append(
            f"{bval.name}: {low.sum()} volumes with b of {bvals[low].max():g} s/mm2 or less count "
            "as not diffusion-weighted."
        )
    bvals = np.where(bvals <= B0_MAX, 0.0, bvals)
    vectors = np.where((bvals > 0)[:, None], vectors, 0.0)
    return Gradients(bvals, vectors), notes


def _numbers(path: Path) -> NDArray[np.float64]:
    """Read a rectangle of numbers from a text file."""
    try:
        lines = read_text(path, _LARGEST_FILE).replace(",", " ").splitlines()
    except FileNotFoundError:
        raise InputMissingError(
            f"{path}: no such file", "each diffusion series needs a .bval and a .bvec file"
        ) from None
    except (OSError, ValueError) as error:
        raise BadDataError(
            f"{path}: cannot be read as text: {error}", "copy or make the file again"
        ) from error
    try:
        rows = [[to_float(word) for word in line.split()] for line in lines if line.strip()]
    except ValueError as error:
        raise BadDataError(
            f"{path}: not a table of numbers: {error}", "FSL's form has numbers and spaces only"
        ) from error
    if not rows:
        raise BadDataError(f"{path}: is empty", "copy or make the file again")
    if len({len(row) for row in rows}) > 1:
        counts = ", ".join(str(len(row)) for row in rows[:4])
        raise BadDataError(
            f"{path}: its rows differ in length ({counts} numbers)",
            "the file is damaged or incomplete: copy or make it again",
        )
    return np.array(rows, dtype=np.float64)


def _b_values(path: Path, n_volumes: int) -> tuple[NDArray[np.float64], list[str]]:
    table = _numbers(path)
    if 1 not in table.shape:
        raise BadDataError(
            f"{path}: has {len(table)} rows of {table.shape[1]} numbers, but b-values are one row",
            "see that .bval and .bvec are not mixed up",
        )
    bvals = table.ravel()
    if len(bvals) != n_volumes:
        raise _wrong_count(path, len(bvals), "b-values", n_volumes)
    if not np.isfinite(bvals).all() or (bvals < 0).any():
        where = _listed(np.flatnonzero(~(bvals >= 0) | ~np.isfinite(bvals)))
        raise BadDataError(
            f"{path}: is negative or not a number at {where}",
            "make the gradient files again from the scanner's data",
        )
    if len(table) > 1:
        return bvals, [f"{path.name}: b-values stand in a column instead of a row."]
    return bvals, []


def _vectors(path: Path, n_volumes: int) -> tuple[NDArray[np.float64], list[str]]:
    """Return vectors (V, 3), and that they were transposed where they were."""
    table = _numbers(path)
    if table.shape == (3, n_volumes):
        return table.T.copy(), []
    if table.shape == (n_volumes, 3):
        return table, [
            f"{path.name}: vectors stand in three columns instead of three rows; read as such."
        ]
    rows, columns = table.shape
    if 3 not in table.shape:
        raise BadDataError(
            f"{path}: has {rows} rows of {columns} numbers, but vectors are three rows of "
            f"{n_volumes}",
            "give the gradients in FSL's form (three rows, one column per volume)",
        )
    raise _wrong_count(path, columns if rows == 3 else rows, "vectors", n_volumes)


def _wrong_count(path: Path, count: int, what: str, n_volumes: int) -> BadDataError:
    return BadDataError(
        f"{path}: has {count} {what}, but the series has {n_volumes} volumes",
        "the gradients belong to another run, or volumes were cut off or added by the scanner",
    )


def _normalised(
    path: Path, vectors: NDArray[np.float64], bvals: NDArray[np.float64]
) -> tuple[NDArray[np.float64], list[str]]:
    """Bring vectors to unit length; none gets longer than it can be without being noticed."""
    if np.abs(vectors).max() > _LONGEST:
        raise BadDataError(
            f"{path}: has numbers up to {np.abs(vectors).max():g}, which are of no directions",
            "see that .bval and .bvec are not mixed up",
        )
    lengths = np.linalg.norm(vectors, axis=1)
    present = lengths > 1e-6
    unit = np.divide(vectors, lengths[:, None], out=np.zeros_like(vectors), where=present[:, None])
    weighted = lengths[present & (bvals > 0)]
    if not len(weighted) or np.abs(weighted - 1).max() <= _ROUNDING:
        return unit, []
    return unit, [
        f"{path.name}: vectors have lengths of {weighted.min():.3g} to {weighted.max():.3g} "
        "instead of 1; they were brought to length 1 and the b-values taken as they are. If the "
        "lengths were meant to scale b, write the scaled values into the .bval file."
    ]


def _in_s_per_mm2(
    path: Path, bvals: NDArray[np.float64], vectors: NDArray[np.float64]
) -> tuple[NDArray[np.float64], list[str]]:
    """Recognise b-values in ms/um2 and in s/m2, where nothing else can be meant."""
    largest = float(bvals.max())
    if _SMALLEST_IN_SI <= largest <= 1e6 * LARGEST_B:
        return bvals / 1e6, [
            f"{path.name}: b-values up to {largest:g} are in s/m2; divided by 1e6."
        ]
    if largest > LARGEST_B:
        raise BadDataError(
            f"{path}: b is up to {largest:g}, which is no weighting in s/mm2 or s/m2",
            "b-values are to be in s/mm2, for example 1000",
        )
    if 0 < largest <= _LARGEST_IN_MS_PER_UM2:
        # Reversed b0 series have b of 5 too, so it takes a b0, and directions.
        high = bvals > 0.1 * largest
        if not high.all() and len(unique_directions(vectors[high])) >= FEWEST_DIRECTIONS:
            return bvals * 1000, [
                f"{path.name}: b-values up to {largest:g} are in ms/um2; multiplied by 1000."
            ]
    return bvals, []


def _listed(volumes: NDArray[np.intp]) -> str:
    text = ", ".join(str(v) for v in volumes[:5])
    word = "volume" if len(volumes) == 1 else "volumes"
    return f"{word} {text}{', ...' if len(volumes) > 5 else ''} (counted from 0)"


def unique_directions(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the directions (N, 3) that differ, where opposite ones are the same."""
    kept: list[NDArray[np.float64]] = []
    closest = np.cos(_SAME_DIRECTION)
    for vector in vectors[vectors.any(axis=1)]:
        if not kept or np.abs(np.array(kept) @ vector).max() < closest:
            kept.append(vector)
    return np.array(kept).reshape(-1, 3)


def check_gradients(gradients: Gradients, name: str) -> list[str]:
    """See that a whole scan, all of its series together, can be modelled.

    Parameters
    ----------
    gradients : Gradients
        Of the scan.
    name : str
        What messages call it.

    Returns
    -------
    list of str
        Notes on what is poor, but enough.

    Raises
    ------
    BadDataError
        No weighted volume, none without weighting, fewer than six directions, or six or more
        that do not determine a tensor.
    """
    if gradients.is_b0.all():
        raise BadDataError(
            f"{name}: all {len(gradients)} b-values are {B0_MAX:g} s/mm2 or less, so that nothing "
            "is diffusion-weighted",
            "b-values are to be in s/mm2, for example 1000; see that the .bval file is the right "
            "one",
        )
    if not gradients.is_b0.any():
        raise BadDataError(
            f"{name}: no volume without diffusion weighting (b of {B0_MAX:g} s/mm2 or less), the "
            f"lowest b is {gradients.bvals.min():g} s/mm2",
            "add the b0 volume to the series, with a b-value of 0 and a vector of 0 0 0",
        )
    directions = unique_directions(gradients.bvecs)
    if len(directions) < FEWEST_DIRECTIONS or np.linalg.cond(_tensor_design(directions)) > 100:
        raise BadDataError(
            f"{name}: its {len(directions)} directions that differ do not determine a tensor, "
            f"which takes at least {FEWEST_DIRECTIONS} that are spread over the sphere",
            "a connectome cannot be made of this series",
        )
    most = max(len(unique_directions(gradients.bvecs[s.volumes])) for s in gradients.shells)
    if most < ENOUGH_DIRECTIONS:
        return [
            f"The fullest shell has {most} directions; crossing fibres take {ENOUGH_DIRECTIONS} "
            "or more, so read the connectome with care."
        ]
    return []


def _tensor_design(directions: NDArray[np.float64]) -> NDArray[np.float64]:
    x, y, z = directions.T
    return np.stack([x * x, y * y, z * z, 2 * x * y, 2 * x * z, 2 * y * z], axis=1)


def write_gradients(gradients: Gradients, bval: Path, bvec: Path) -> None:
    """Write gradients in FSL's form."""
    bval.write_text(" ".join(f"{b:.10g}" for b in gradients.bvals) + "\n", "utf-8")
    rows = (" ".join(f"{value:.10f}" for value in row) for row in gradients.bvecs.T)
    bvec.write_text("\n".join(rows) + "\n", "utf-8")


def image_axes(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the unit vectors of the voxel axes in world coordinates, as columns (3, 3)."""
    matrix = np.asarray(affine, dtype=np.float64)[:3, :3]
    return matrix / np.linalg.norm(matrix, axis=0)


def voxel_directions(gradients: Gradients, affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the directions along the voxel axes, which is what DIPY takes.

    FSL's x points against the first voxel axis where the determinant of the affine is positive
    (https://fsl.fmrib.ox.ac.uk/fsl/docs/#/diffusion/eddy/users_guide).

    Parameters
    ----------
    gradients : Gradients
        Of the series.
    affine : ndarray, shape (4, 4)
        From voxels to world, mm.

    Returns
    -------
    ndarray, shape (V, 3)
    """
    return gradients.bvecs * _fsl_signs(affine)


def world_directions(gradients: Gradients, affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the directions in world coordinates (RAS+), shape (V, 3), as MRtrix3 has them."""
    return _unit(voxel_directions(gradients, affine) @ image_axes(affine).T)


def from_world(
    bvals: NDArray[np.float64], directions: NDArray[np.float64], affine: NDArray[np.float64]
) -> Gradients:
    """Return gradients from directions (V, 3) in world coordinates."""
    in_voxels = np.linalg.solve(image_axes(affine), np.asarray(directions).T).T
    return Gradients(np.asarray(bvals, dtype=np.float64), _unit(in_voxels * _fsl_signs(affine)))


def rotated(
    gradients: Gradients, rotations: NDArray[np.float64], affine: NDArray[np.float64]
) -> Gradients:
    """Rotate each direction by its own rotation.

    Parameters
    ----------
    gradients : Gradients
        Of the series as measured.
    rotations : ndarray, shape (V, 3, 3)
        Rotations of the head from each volume to where it is put, in world coordinates.
    affine : ndarray, shape (4, 4)
        Of the series.

    Returns
    -------
    Gradients
        After Leemans and Jones (2009), doi:10.1002/mrm.21890.
    """
    turned = np.einsum("vij,vj->vi", rotations, world_directions(gradients, affine))
    return from_world(gradients.bvals, turned, affine)


def _fsl_signs(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    positive = np.linalg.det(np.asarray(affine)[:3, :3]) > 0
    return np.array([-1.0 if positive else 1.0, 1.0, 1.0])


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)

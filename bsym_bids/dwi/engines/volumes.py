"""Which volumes of a series an engine models, and up to which harmonic order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bsym_bids.dwi.gradients import ENOUGH_DIRECTIONS, FEWEST_DIRECTIONS, Gradients, Shell
from bsym_bids.dwi.gradients import unique_directions as distinct
from bsym_bids.errors import BadDataError

#: s/mm2; of several shells, deconvolution of one takes the highest up to here.
HIGHEST_B = 3100.0
#: s/mm2; signals decay as one exponential up to about here, as the tensor has it.
TENSOR_B = 1600.0


@dataclass(frozen=True)
class Modelled:
    """The volumes that fibre orientations are fitted to.

    Attributes
    ----------
    volumes : ndarray of int
        Indices in the series, in order.
    shells : tuple of float
        b-values of their shells in s/mm2, lowest first, b0 left out.
    n_directions : int
        Distinct directions of the shell that has most.
    lmax : int
        Order of the spherical harmonics.
    notes : tuple of str
        What the user should know.
    """

    volumes: NDArray[np.intp]
    shells: tuple[float, ...]
    n_directions: int
    lmax: int
    notes: tuple[str, ...] = ()

    @property
    def is_multi_shell(self) -> bool:
        """Whether there are two shells or more."""
        return len(self.shells) > 1


def order_for(n_directions: int, limit: int) -> int:
    """Return the highest even harmonic order that so many directions determine.

    Order l has (l + 1) (l + 2) / 2 coefficients: 15 for 4, 28 for 6, 45 for 8.
    """
    order = 2
    while (order + 3) * (order + 4) // 2 <= n_directions and order + 2 <= limit:
        order += 2
    return order


def choose_volumes(gradients: Gradients, *, several_shells: bool, lmax: int, name: str) -> Modelled:
    """Choose the volumes that fibre orientations are fitted to.

    Shells with fewer than six distinct directions don't count. Of those that do, all are taken, or
    where one is wanted, the highest up to b = 3000 s/mm2 that has 15 directions, and if none has,
    the one with most directions.

    Parameters
    ----------
    gradients : Gradients
        Of the series.
    several_shells : bool
        Whether several shells are modelled together.
    lmax : int
        Order that is not to be exceeded.
    name : str
        What messages call the series.

    Returns
    -------
    Modelled

    Raises
    ------
    BadDataError
        No shell has six distinct directions.
    """
    counts = {shell.b: _n_distinct(gradients, shell) for shell in gradients.shells}
    usable = [shell for shell in gradients.shells if counts[shell.b] >= FEWEST_DIRECTIONS]
    if not usable:
        listed = ", ".join(f"{n} at b={b:.0f}" for b, n in counts.items()) or "none"
        raise BadDataError(
            f"{name}: no shell has {FEWEST_DIRECTIONS} distinct directions or more ({listed})",
            hint="fibre orientations need at least 6 directions of one b-value, better 30 or more",
        )
    taken = usable if several_shells else [_best_shell(usable, counts)]
    n_directions = max(counts[shell.b] for shell in taken)
    order = order_for(n_directions, lmax)
    volumes = np.concatenate([np.flatnonzero(gradients.is_b0), *(s.volumes for s in taken)])
    return Modelled(
        volumes=np.sort(volumes),
        shells=tuple(shell.b for shell in taken),
        n_directions=n_directions,
        lmax=order,
        notes=_notes(n_directions, order, lmax, [s.b for s in gradients.shells], taken),
    )


def tensor_volumes(gradients: Gradients) -> NDArray[np.intp]:
    """Return the volumes that the tensor is fitted to.

    b0 and all shells up to b = 1500 s/mm2 if these have six distinct directions, else all volumes.
    """
    low = np.flatnonzero(gradients.bvals <= TENSOR_B)
    enough = len(distinct(gradients.bvecs[low])) >= FEWEST_DIRECTIONS
    return low if enough else np.arange(len(gradients))


def _n_distinct(gradients: Gradients, shell: Shell) -> int:
    return len(distinct(gradients.bvecs[shell.volumes]))


def _best_shell(usable: list[Shell], counts: dict[float, int]) -> Shell:
    full = [s for s in usable if s.b <= HIGHEST_B and counts[s.b] >= ENOUGH_DIRECTIONS]
    if full:
        return max(full, key=lambda shell: shell.b)
    return max(usable, key=lambda shell: (counts[shell.b], shell.b))


def _notes(
    n_directions: int, order: int, limit: int, found: list[float], taken: list[Shell]
) -> tuple[str, ...]:
    notes = []
    if len(taken) < len(found):
        left = ", ".join(f"{b:.0f}" for b in found if b not in [s.b for s in taken])
        used = ", ".join(f"{s.b:.0f}" for s in taken)
        notes.append(
            f"Fibre orientations come from b={used} s/mm2; volumes at b={left} are left out."
        )
    if order < limit:
        notes.append(
            f"{n_directions} distinct directions determine spherical harmonics up to order {order} "
            f"(the preset allows {limit})."
        )
    if order == 2:
        notes.append(
            "Order 2 shows one fibre orientation per voxel: crossing fibres cannot be told apart, "
            "and connections are less certain than with 15 directions or more."
        )
    return tuple(notes)

"""Bundles of white matter with known capacity: routes, cross-sections and the fibres in voxels.

A bundle is a *current*. A smooth route from one ROI to another through the depth of the white
matter is found first; a conductivity that is high along it and falls off across it (Gaussian, and
wider near the ends) is laid over the white matter, the grey matter of the one ROI is put to
potential 1 and that of the other to 0, and Laplace's equation is solved in between. Of the current
density J that flows, scaled to a total of 1:

- it has no sources or sinks but in the two ROIs, so whatever the bundle does on its way, squeezing
  through a gyrus or fanning out into its ROI, each cross-section carries the same: its *capacity*
  (intra-fibre cross-sectional area in mm2), the quantity that the fibre bundle capacity of SIFT2
  stands for (Smith et al. 2015, doi:10.1016/j.neuroimage.2015.06.092; 2022,
  doi:10.52294/apertureneuro.2022.2.sgun1164);
- capacity times J is at once the direction and the volume fraction of the bundle in each voxel;
- its streamlines are the fibres: those of one bundle never cross, leave the white matter nowhere,
  and end in the two ROIs.

Filaments that are packed or bent by hand (FiberCup, Fillard et al. 2011,
doi:10.1016/j.neuroimage.2011.01.032; the tractometer, Maier-Hein et al. 2017,
doi:10.1038/s41467-017-01285-x; Neher et al. 2014, doi:10.1002/mrm.25045) give freer shapes; but the
capacity of such a bundle varies on its way, and here it is what has to be known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.interpolate import splev, splprep
from scipy.sparse import csgraph
from scipy.spatial import cKDTree

from bsym_bids.simulation.diffusion_anatomy import Tissues, apply_affine

#: Routes and currents are found on a grid of this size.
GRID_MM = 2.0

_REACH = 1.5  # of the conductivity, in radii
_FAN_MM = 18.0  # length over which a bundle widens into its ROI
_FAN = 1.5  # how much wider it is there
_STEP_MM = 1.0
_MAX_LENGTH_MM = 300.0
_MIN_RADIUS_MM = 2.0  # of the conductivity: thinner ones fall between the voxels


@dataclass(frozen=True)
class Substrate:
    """Where bundles can run: the tissues on the grid of routes, in T1w world.

    Attributes
    ----------
    tissues : Tissues
        On a grid of `GRID_MM`.
    affine : ndarray, shape (4, 4)
        From its voxels to T1w world.
    """

    tissues: Tissues
    affine: NDArray[np.float64]

    @cached_property
    def white(self) -> NDArray[np.bool_]:
        """The largest connected piece of white matter."""
        pieces, _ = ndimage.label(self.tissues.white > 0.5)
        return pieces == np.argmax(np.bincount(pieces.ravel())[1:]) + 1

    @cached_property
    def solid(self) -> NDArray[np.bool_]:
        """`white` without the voxels at its border."""
        return ndimage.binary_erosion(self.white)

    @cached_property
    def nodes(self) -> NDArray[np.int64]:
        """Voxels of `white`, (n, 3)."""
        return np.argwhere(self.white)

    @cached_property
    def node_of(self) -> NDArray[np.int32]:
        """Row of `nodes` of each voxel, -1 elsewhere."""
        rows = np.full(self.white.shape, -1, dtype=np.int32)
        rows[self.white] = np.arange(len(self.nodes))
        return rows

    @cached_property
    def points(self) -> NDArray[np.float64]:
        """Centres of `nodes` in T1w world, (n, 3)."""
        return apply_affine(self.affine, self.nodes)

    @cached_property
    def tree(self) -> cKDTree:
        """For looking up `points`."""
        return cKDTree(self.points)

    @cached_property
    def graph(self) -> sparse.csr_matrix:
        """Costs of steps between neighbours (26) in the white matter: low in its depth."""
        depth = ndimage.distance_transform_edt(self.white) * GRID_MM
        cost = 1 + 6 * np.exp(-(depth[self.white] - GRID_MM) / 2.5)
        rows, columns, values = [], [], []
        for offset in _half_of_neighbours():
            first, second = self.pairs(offset)
            length = np.linalg.norm(offset) * GRID_MM
            rows.append(first)
            columns.append(second)
            values.append(length * (cost[first] + cost[second]) / 2)
        one_way = sparse.csr_matrix(
            (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))),
            shape=(len(cost), len(cost)),
        )
        return one_way + one_way.T

    def pairs(self, offset: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return the nodes that have a neighbour at an offset, and that neighbour."""
        to = self.nodes + offset
        inside = ((to >= 0) & (to < self.white.shape)).all(axis=1)
        second = np.full(len(to), -1, dtype=np.int32)
        second[inside] = self.node_of[tuple(to[inside].T)]
        first = np.flatnonzero(second >= 0)
        return first, second[first]

    @cached_property
    def borders(self) -> dict[int, NDArray[np.int64]]:
        """The nodes that touch grey matter of each ROI, one for each face, by ROI index."""
        grey = np.where(self.tissues.white > 0.5, 0, self.tissues.labels)
        found = [self._beside(offset, grey) for offset in np.concatenate([_FACES, -_FACES])]
        nodes, labels = (np.concatenate(part) for part in zip(*found, strict=True))
        return {int(label): nodes[labels == label] for label in np.unique(labels)}

    @cached_property
    def ports(self) -> dict[int, int]:
        """The node where the route into each ROI ends, by ROI index.

        Of the white matter at the ROI's border, the voxel nearest to the middle of it.
        """
        found = {}
        for label, border in self.borders.items():
            middle = self.points[border].mean(axis=0)
            distance = ((self.points[border] - middle) ** 2).sum(axis=1)
            found[label] = int(border[np.argmin(distance)])
        return found

    def border_mm2(self, roi: int) -> float:
        """Return the area between an ROI and white matter, along the faces of voxels."""
        return len(self.borders[roi]) * GRID_MM**2

    def port_distances(self, roi: int) -> dict[int, float]:
        """Return the distance in mm from the port of an ROI to those of all, by ROI index."""
        here = self.points[self.ports[roi]]
        return {
            other: float(np.linalg.norm(self.points[node] - here))
            for other, node in self.ports.items()
        }

    def _beside(
        self, offset: NDArray[np.int64], grey: NDArray[np.int16]
    ) -> tuple[NDArray[np.int64], NDArray[np.int16]]:
        """Return the nodes that have grey matter of an ROI at an offset, and that ROI."""
        to = self.nodes + offset
        inside = ((to >= 0) & (to < grey.shape)).all(axis=1)
        labels = np.zeros(len(to), dtype=np.int16)
        labels[inside] = grey[tuple(to[inside].T)]
        nodes = np.flatnonzero(labels)
        return nodes, labels[nodes]


@dataclass(frozen=True)
class Bundle:
    """A bundle between two ROIs.

    Attributes
    ----------
    rois : tuple of int
        Indices of the two ROIs, 1 to 450.
    area_mm2 : float
        Cross-sectional area of the trunk.
    density : float
        Share of that area that the fibres take up.
    capacity_mm2 : float
        The true weight: intra-fibre cross-sectional area, the same at every cross-section. It is
        area times density, less where white matter is too narrow for that.
    route : ndarray, shape (k, 3)
        The middle of the bundle in T1w world.
    corner : ndarray of int, shape (3,)
        First voxel of ``flow`` on the grid of routes.
    flow : ndarray of float32, shape (x, y, z, 3)
        Current density per mm2 of a total of 1, in T1w world, over a part of the grid of routes;
        times the capacity it is the volume fraction.
    streamlines : tuple of ndarray, each (k, 3)
        Fibres drawn evenly from its cross-section, in T1w world, from the first ROI to the second.
    """

    rois: tuple[int, int]
    area_mm2: float
    density: float
    capacity_mm2: float
    route: NDArray[np.float64]
    corner: NDArray[np.int64]
    flow: NDArray[np.float32]
    streamlines: tuple[NDArray[np.float32], ...]


@dataclass(frozen=True)
class Populations:
    """The fibres in voxels.

    Attributes
    ----------
    fractions : ndarray of float32, shape (n, 3)
        Volume fraction of each population, largest first; 0 for none.
    directions : ndarray of float32, shape (n, 3, 3)
        Unit vectors (voxel, population, axis) in T1w world.
    """

    fractions: NDArray[np.float32]
    directions: NDArray[np.float32]


_FACES = np.eye(3, dtype=np.int64)


def _half_of_neighbours() -> NDArray[np.int64]:
    """Return one of each pair of opposite neighbours of a voxel, (13, 3)."""
    offsets = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    return offsets[14:]


class Router:
    """Finds routes; it remembers the distances from the ROI where the last one started."""

    def __init__(self, substrate: Substrate) -> None:
        self.substrate = substrate
        self._start = 0
        self._before = np.empty(0, dtype=np.int32)

    def route(self, first: int, second: int) -> NDArray[np.float64] | None:
        """Return the smooth route between the ports of two ROIs, or None where there is none.

        The cheapest path (Dijkstra) on the graph of white matter, in which steps near grey matter
        and CSF cost up to seven times as much as in the depth, smoothed by a cubic spline.

        Returns
        -------
        ndarray, shape (k, 3), or None
            Points 1 mm apart, in T1w world.
        """
        ports = self.substrate.ports
        if first not in ports or second not in ports:
            return None
        if first != self._start:
            _, self._before = csgraph.dijkstra(
                self.substrate.graph, indices=ports[first], return_predecessors=True
            )
            self._start = first
        path = [ports[second]]
        while self._before[path[-1]] >= 0:
            path.append(self._before[path[-1]])
        return smooth_route(self.substrate.points[path[::-1]])


def radius_of(area_mm2: float) -> float:
    """Return the radius of a bundle of a cross-sectional area.

    Across a bundle the current falls off as ``exp(-(d / radius)^4)``: nearly flat, with soft edges.
    The integral of that over the plane, ``pi^1.5 / 2 radius^2``, is the area.
    """
    return float(np.sqrt(2 * area_mm2 / np.pi**1.5))


def smooth_route(points: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Smooth a path of voxels; None where it is too short to be one.

    Parameters
    ----------
    points : ndarray, shape (n, 3)
        In mm.

    Returns
    -------
    ndarray, shape (k, 3), or None
        Points 1 mm apart; they lie within about 1.5 mm of the path.
    """
    if len(points) < 6:
        return None
    spline, _ = splprep(points.T, s=len(points) * 1.2**2)
    fine = np.column_stack(splev(np.linspace(0, 1, 20 * len(points)), spline))
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(fine, axis=0), axis=1))])
    even = np.linspace(0, length[-1], max(round(length[-1]), 2) + 1)
    return np.column_stack([np.interp(even, length, fine[:, axis]) for axis in range(3)])


def tightest_bend_mm(route: NDArray[np.float64]) -> float:
    """Return the smallest radius of curvature along a route, measured over 10 mm."""
    span = 5
    if len(route) <= 2 * span:
        return np.inf
    before = route[span:-span] - route[: -2 * span]
    after = route[2 * span :] - route[span:-span]
    cosine = (before * after).sum(axis=1) / (
        np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
    )
    angle = np.arccos(np.clip(cosine, -1, 1)).max()
    return float(span / max(angle, 1e-6))


def narrowness(substrate: Substrate, route: NDArray[np.float64]) -> float:
    """Return the share of a route, without its ends, that is not in the middle of white matter.

    That is where one of the six voxels around it is less than half white.
    """
    inner = route[len(route) // 8 : -(len(route) // 8)]
    voxels = np.rint(apply_affine(np.linalg.inv(substrate.affine), inner)).astype(int)
    return float(1 - substrate.solid[tuple(voxels.T)].mean())


def crowding(
    route: NDArray[np.float64], radius: float, others: Sequence[tuple[NDArray[np.float64], float]]
) -> float:
    """Return how much of its course a bundle would share with others.

    Parameters
    ----------
    route : ndarray, shape (k, 3)
        Points 1 mm apart.
    radius : float
        In mm.
    others : sequence of (route, radius)
        The others.

    Returns
    -------
    float
        Share of the route, 0 to 1, that is within both radii of another; crossing at more than 45
        degrees, which can be told apart, counts a third.
    """
    shared = np.zeros(len(route))
    along = _tangents(route)
    for other, other_radius in others:
        distance, nearest = cKDTree(other).query(
            route, distance_upper_bound=radius + other_radius + 2
        )
        close = np.isfinite(distance)
        cosine = np.abs((along[close] * _tangents(other)[nearest[close]]).sum(axis=1))
        cost = np.where(cosine > np.cos(np.pi / 4), 1, 1 / 3)
        shared[close] = np.maximum(shared[close], cost)
    return float(shared.mean())


def _tangents(route: NDArray[np.float64]) -> NDArray[np.float64]:
    step = np.gradient(route, axis=0)
    return step / np.linalg.norm(step, axis=1, keepdims=True)


def make_bundle(
    substrate: Substrate,
    rois: tuple[int, int],
    route: NDArray[np.float64],
    area_mm2: float,
    density: float,
    n_streamlines: int,
    rng: np.random.Generator,
    *,
    most_dense: float | None,
) -> Bundle | None:
    """Let the current of a bundle flow.

    Parameters
    ----------
    substrate : Substrate
        Where.
    rois : tuple of int
        From and to which ROI.
    route : ndarray, shape (k, 3)
        From `Router.route`.
    area_mm2, density : float
        Of the trunk.
    n_streamlines : int
        Fibres to draw.
    rng : Generator
        Source of that draw.
    most_dense : float, optional
        The capacity is lowered until it does not fill more than this share of any voxel (but the
        fullest twentieth); None to leave it.

    Returns
    -------
    Bundle or None
        None where no current can flow.
    """
    radius = max(radius_of(area_mm2), _MIN_RADIUS_MM)
    corner, conductivity, terminals = _conductor(substrate, rois, route, radius)
    flow = _current(conductivity, terminals)
    if flow is None:
        return None
    size = np.linalg.norm(flow, axis=-1)
    capacity = area_mm2 * density
    if most_dense is not None:
        full = np.percentile(size[size > 0.1 * size.max()], 95)
        capacity = min(capacity, most_dense / full)
    start = substrate.affine[:3, 3] + corner * GRID_MM
    lines = _fibres(flow, terminals, n_streamlines, rng)
    streamlines = tuple((line * GRID_MM + start).astype(np.float32) for line in lines)
    if not streamlines:
        return None
    return Bundle(rois, area_mm2, density, capacity, route, corner, flow, streamlines)


def mean_length(streamlines: Sequence[NDArray[np.floating]]) -> float:
    """Return the mean length of fibres in mm."""
    return float(
        np.mean([np.linalg.norm(np.diff(line, axis=0), axis=1).sum() for line in streamlines])
    )


def _conductor(
    substrate: Substrate, rois: tuple[int, int], route: NDArray[np.float64], radius: float
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int8]]:
    """Return where the current can flow.

    Returns
    -------
    corner : ndarray of int, shape (3,)
        First voxel of the part of the grid.
    conductivity : ndarray, shape (x, y, z)
        0 where nothing flows.
    terminals : ndarray of int8, shape (x, y, z)
        1 and 2 in the two ROIs.
    """
    end = np.minimum(np.arange(len(route)), np.arange(len(route))[::-1])
    radii = radius * (1 + (_FAN - 1) * np.clip(1 - end / min(_FAN_MM, len(route) / 3), 0, 1))
    reach = max(_REACH * radii.max(), 8.0)
    voxels = apply_affine(np.linalg.inv(substrate.affine), route)
    low = np.floor(voxels.min(axis=0) - reach / GRID_MM).astype(int)
    high = np.ceil(voxels.max(axis=0) + reach / GRID_MM).astype(int) + 1
    low, high = np.maximum(low, 0), np.minimum(high, substrate.white.shape)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    white, labels = substrate.white[box], substrate.tissues.labels[box]
    terminals = np.zeros(white.shape, dtype=np.int8)
    grey = ~white & (substrate.tissues.white[box] <= 0.5)
    for number, roi in enumerate(rois, start=1):
        terminals[grey & (labels == roi)] = number
    where = np.argwhere(white | (terminals > 0))
    distance, nearest = cKDTree(voxels).query(where + low, distance_upper_bound=reach / GRID_MM)
    close = np.isfinite(distance)
    where, distance, nearest = where[close], distance[close] * GRID_MM, nearest[close]
    relative = distance / radii[nearest]
    conductivity = np.zeros(white.shape)
    conductivity[tuple(where.T)] = np.exp(-(relative**4)) * (relative < _REACH)
    terminals[conductivity == 0] = 0
    return low, conductivity, terminals


def _current(
    conductivity: NDArray[np.float64], terminals: NDArray[np.int8]
) -> NDArray[np.float32] | None:
    """Solve Laplace's equation and return the current density per mm2 of a total of 1.

    Finite volumes on a grid; the conductance between two voxels is the geometric mean of theirs.
    """
    inside = conductivity > 0
    number = np.full(inside.shape, -1)
    number[inside] = np.arange(inside.sum())
    fixed = terminals[inside]
    if not ((fixed == 1).any() and (fixed == 2).any()):
        return None
    faces = []
    for axis in range(3):
        lower = tuple(slice(None, -1) if a == axis else slice(None) for a in range(3))
        upper = tuple(slice(1, None) if a == axis else slice(None) for a in range(3))
        both = inside[lower] & inside[upper]
        conductance = np.sqrt(conductivity[lower][both] * conductivity[upper][both])
        faces.append((number[lower][both], number[upper][both], conductance))
    potential = _potential(fixed, faces)
    flow = np.zeros((*inside.shape, 3))
    into, out = 0.0, 0.0
    for axis, (first, second, conductance) in enumerate(faces):
        current = conductance * (potential[first] - potential[second])
        leaving = (fixed[first] == 1) & (fixed[second] != 1)
        entering = (fixed[second] == 1) & (fixed[first] != 1)
        out += current[leaving].sum() - current[entering].sum()
        leaving = (fixed[second] == 2) & (fixed[first] != 2)
        entering = (fixed[first] == 2) & (fixed[second] != 2)
        into += current[leaving].sum() - current[entering].sum()
        through = np.zeros(len(fixed))  # a voxel has the mean of its two faces
        through += np.bincount(first, current, minlength=len(fixed)) / 2
        through += np.bincount(second, current, minlength=len(fixed)) / 2
        flow[inside, axis] = through
    if out < 1e-9 or abs(out - into) > 0.01 * out:
        return None  # nothing connects the two
    smooth = ndimage.gaussian_filter(flow / out, (0.6, 0.6, 0.6, 0))
    return (smooth / GRID_MM**2).astype(np.float32)


def _potential(fixed: NDArray[np.int8], faces: list[tuple[NDArray, NDArray, NDArray]]) -> NDArray:
    """Solve for the potential: 1 in terminal 1, 0 in terminal 2.

    Conjugate gradients with a diagonal preconditioner, in operations whose results do not depend
    on the number of threads.
    """
    n = len(fixed)
    first, second, conductance = (np.concatenate(part) for part in zip(*faces, strict=True))
    free = fixed == 0
    away = sparse.csr_matrix(
        (
            np.concatenate([conductance, conductance]),
            (np.concatenate([first, second]), np.concatenate([second, first])),
        ),
        shape=(n, n),
    )
    diagonal = np.asarray(away.sum(axis=1)).ravel()
    potential = (fixed == 1).astype(np.float64)
    potential[free] = 0.5
    inner = away[free][:, free]
    scale = np.maximum(diagonal[free], 1e-12)
    right = (away[free] @ (fixed == 1).astype(np.float64)).ravel()
    x = potential[free]
    residual = right - (scale * x - inner @ x)
    z = residual / scale
    direction = z.copy()
    size = np.sum(residual * z)
    target = 1e-12 * max(np.sum(right * right / scale), 1e-300)
    for _ in range(2000):
        if size <= target:
            break
        product = scale * direction - inner @ direction
        step = size / np.sum(direction * product)
        x += step * direction
        residual -= step * product
        z = residual / scale
        size, before = np.sum(residual * z), size
        direction = z + (size / before) * direction
    potential[free] = x
    return potential


def _fibres(
    flow: NDArray[np.float32], terminals: NDArray[np.int8], count: int, rng: np.random.Generator
) -> list[NDArray[np.float64]]:
    """Draw fibres, each an even share of the current, in voxels of the part of the grid.

    They start in the voxels of the first ROI that current leaves, as often as it does, and follow
    the current to the second ROI; those that get lost on the way are drawn anew.
    """
    size = np.linalg.norm(flow, axis=-1)
    source = np.argwhere((terminals == 1) & (size > 0))
    strength = size[tuple(source.T)]
    lines: list[NDArray[np.float64]] = []
    for _ in range(4):
        if len(lines) >= count or not len(source):
            break
        chosen = rng.choice(len(source), size=count, p=strength / strength.sum())
        starts = source[chosen] + rng.uniform(-0.5, 0.5, (count, 3))
        lines += _follow(flow, terminals, starts)
    return lines[:count]


def _follow(
    flow: NDArray[np.float32], terminals: NDArray[np.int8], starts: NDArray[np.float64]
) -> list[NDArray[np.float64]]:
    """Follow the current from points until the second ROI, and return those that get there."""
    step = _STEP_MM / GRID_MM
    steps = int(_MAX_LENGTH_MM / _STEP_MM)
    track = np.full((steps + 1, len(starts), 3), np.nan)
    track[0] = starts
    active = np.arange(len(starts))
    ends = np.zeros(len(starts), dtype=int)
    for k in range(steps):
        here = track[k, active]
        middle = here + step / 2 * _direction(flow, here)
        there = here + step * _direction(flow, middle)
        index = np.floor(np.nan_to_num(there, nan=-1) + 0.5).astype(int)  # NaN: outside
        inside = ((index >= 0) & (index < terminals.shape)).all(axis=1)
        active, there, index = active[inside], there[inside], index[inside]
        track[k + 1, active] = there
        arrived = terminals[tuple(index.T)] == 2
        ends[active[arrived]] = k + 1
        active = active[~arrived]
        if not len(active):
            break
    # Both ends at the middle of a voxel of the ROI: no doubt about where they are.
    track[0] = np.floor(starts + 0.5)
    return [
        np.concatenate([track[: ends[i], i], np.floor(track[ends[i], i] + 0.5)[None]])
        for i in np.flatnonzero(ends)
    ]


def _direction(flow: NDArray[np.float32], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the unit direction of the current at points; NaN where none flows."""
    found = np.column_stack(
        [
            ndimage.map_coordinates(flow[..., a], points.T, order=1, mode="constant")
            for a in range(3)
        ]
    ).astype(np.float64)
    size = np.linalg.norm(found, axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(size > 1e-9, found / size, np.nan)


def fibres_at(
    bundles: Sequence[Bundle],
    capacities: NDArray[np.float64],
    substrate: Substrate,
    points: NDArray[np.float64],
) -> Populations:
    """Return the fibre populations at points, at most three at each.

    Bundles within 35 degrees of each other are one population: that of the largest first, and what
    is left after three is added to the nearest of them.

    Parameters
    ----------
    bundles : sequence of Bundle
        All bundles.
    capacities : ndarray, shape (n_bundles,)
        Of each, in mm2.
    substrate : Substrate
        Of their grid.
    points : ndarray, shape (n, 3)
        In T1w world.

    Returns
    -------
    Populations
    """
    voxels = apply_affine(np.linalg.inv(substrate.affine), points)
    order = np.argsort(voxels[:, 0], kind="stable")
    along_x = voxels[order, 0]
    owners, vectors = [], []
    for bundle, capacity in zip(bundles, capacities, strict=True):
        shape = np.array(bundle.flow.shape[:3])
        low, high = np.searchsorted(along_x, [bundle.corner[0], bundle.corner[0] + shape[0] - 1])
        rows = order[low:high]
        local = voxels[rows] - bundle.corner
        inside = ((local >= 0) & (local <= shape - 1)).all(axis=1)
        rows, local = rows[inside], local[inside].T
        vector = capacity * np.column_stack(
            [ndimage.map_coordinates(bundle.flow[..., a], local, order=1) for a in range(3)]
        )
        kept = (vector**2).sum(axis=1) > 1e-3**2
        owners.append(rows[kept])
        vectors.append(vector[kept])
    return _cluster(np.concatenate(owners), np.concatenate(vectors), len(points))


def _cluster(owners: NDArray[np.int64], vectors: NDArray[np.floating], n: int) -> Populations:
    """Put the vectors that voxels own together to at most three a voxel."""
    size = np.linalg.norm(vectors, axis=1)
    order = np.lexsort((-size, owners))
    owners, vectors, size = owners[order], vectors[order].astype(np.float64), size[order]
    unit = vectors / size[:, None]
    leaders = np.zeros((3, n, 3))
    cluster = np.full(len(owners), -1)
    for k in range(3):
        waiting = np.flatnonzero(cluster < 0)
        voxel, first = np.unique(owners[waiting], return_index=True)  # the largest comes first
        leaders[k, voxel] = unit[waiting[first]]
        cosine = np.abs((unit[waiting] * leaders[k, owners[waiting]]).sum(axis=1))
        cluster[waiting[cosine > np.cos(np.deg2rad(35))]] = k
    cosines = np.abs(np.einsum("ij,kij->ik", unit, leaders[:, owners]))
    cluster = np.where(cluster < 0, np.argmax(cosines, axis=1), cluster)
    fractions, directions = np.zeros((n, 3)), np.zeros((n, 3, 3))
    for k in range(3):
        own = cluster == k
        who = owners[own]
        sign = np.sign((unit[own] * leaders[k, who]).sum(axis=1))
        fractions[:, k] = np.bincount(who, size[own], minlength=n)
        for axis in range(3):
            directions[:, k, axis] = np.bincount(who, sign * vectors[own, axis], minlength=n)
    length = np.linalg.norm(directions, axis=2, keepdims=True)
    directions = np.divide(directions, length, out=np.zeros_like(directions), where=length > 0)
    return Populations(fractions.astype(np.float32), directions.astype(np.float32))


def towards_the_core(substrate: Substrate, core: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the main direction of white matter in general: along the way to its core.

    Parameters
    ----------
    substrate : Substrate
        White matter.
    core : ndarray of bool, shape (X, Y, Z)
        Voxels of the core, on the grid of routes.

    Returns
    -------
    ndarray of float32, shape (X, Y, Z, 3)
        Unit vectors in T1w world of either sign, the gradient of the length of the way; 0 outside
        of white matter.
    """
    sources = substrate.node_of[core & substrate.white]
    length = csgraph.dijkstra(substrate.graph, indices=sources, min_only=True)
    length = np.where(np.isfinite(length), length, 0)
    gradient = np.zeros((len(length), 3))
    for offset in _half_of_neighbours():
        first, second = substrate.pairs(offset)
        unit = offset / np.linalg.norm(offset)
        slope = (length[second] - length[first]) / np.linalg.norm(offset)
        for axis in range(3):
            gradient[:, axis] += np.bincount(first, slope * unit[axis], minlength=len(length))
            gradient[:, axis] += np.bincount(second, slope * unit[axis], minlength=len(length))
    size = np.linalg.norm(gradient, axis=1, keepdims=True)
    unit = np.divide(gradient, size, out=np.zeros_like(gradient), where=size > 0)
    return _smooth_axes(substrate, unit)


def _smooth_axes(substrate: Substrate, unit: NDArray[np.float64]) -> NDArray[np.float32]:
    """Smooth directions of either sign: the main axis of the mean dyadic over 3 mm."""
    dyadics = np.zeros((*substrate.white.shape, 6))
    rows, columns = np.triu_indices(3)
    dyadics[substrate.white] = unit[:, rows] * unit[:, columns]
    smooth = ndimage.gaussian_filter(dyadics, (1.5, 1.5, 1.5, 0))[substrate.white]
    matrices = np.empty((len(smooth), 3, 3))
    matrices[:, rows, columns] = matrices[:, columns, rows] = smooth
    found = np.zeros((*substrate.white.shape, 3), dtype=np.float32)
    found[substrate.white] = np.linalg.eigh(matrices)[1][:, :, 2]
    return found

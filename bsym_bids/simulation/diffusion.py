"""A person's diffusion MRI with a known connectome: the phantom.

The geometry of a head (`diffusion_anatomy`), bundles of known capacity in its white matter
(`diffusion_bundles`), and the signals that a scanner would see of them (`diffusion_signal`); as
files by `diffusion_files`. What the phantom leaves out: distortion by susceptibility and eddy
currents, dispersion and undulation of fibres below the voxel, several axon sizes, myelin, and, in
the easy variant, anatomy in who is connected with whom.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, stats
from scipy.spatial import cKDTree

from bsym_bids.atlas import N_ROIS
from bsym_bids.atlas.group import group_streamline_counts
from bsym_bids.errors import BadDataError, UsageError
from bsym_bids.simulation import diffusion_anatomy as anatomy
from bsym_bids.simulation import diffusion_bundles as fibres
from bsym_bids.simulation import diffusion_signal as physics
from bsym_bids.simulation.diffusion_anatomy import HeadMap, Tissues, apply_affine
from bsym_bids.simulation.diffusion_bundles import Bundle, Substrate

__all__ = [
    "CLINICAL_SHELL",
    "HIGH_SHELL",
    "MULTI_SHELL",
    "DiffusionPhantom",
    "Score",
    "ceiling",
    "make_phantom",
    "score_connectome",
]

#: Gradients of three kinds of scan: (b-value in s/mm2, volumes). That of one high b-value is the
#: one that takes the least time to analyse well, that of b = 1000 what clinics have.
MULTI_SHELL = ((0.0, 5), (1000.0, 16), (2500.0, 40))
HIGH_SHELL = ((0.0, 4), (2500.0, 45))
CLINICAL_SHELL = ((0.0, 2), (1000.0, 32))

_STREAMLINES = {"easy": 60, "hard": 20}  # fibres that are drawn from each bundle
_AREAS_MM2 = (10.0, 320.0)  # of the easy variant
_THICKEST_MM2 = 100.0  # in the hard one, before all are scaled to fit
_DENSITIES = {"easy": (0.7, 0.9), "hard": (0.5, 0.75)}
_BACKGROUND = {
    "easy": physics.Background(aligned=0.15, dispersed=0.35),
    "hard": physics.Background(aligned=0.4, dispersed=0.6),
}
_SHORTEST_MM = 10.0  # shorter ones are not tracked by anybody
_BORDER_MM2, _BORDER_FOR_AREA = 240.0, 1.3  # what an ROI needs for a bundle of the easy variant
_MOST_DENSE = 0.9  # share of a voxel that a bundle may fill
_B0_WHITE = 1000.0  # signal of white matter without weighting, in arbitrary units


@dataclass(frozen=True)
class DiffusionPhantom:
    """A simulated scan and everything that is true of it.

    There are two worlds, both RAS+ in mm: that of the T1w image and that of the diffusion series,
    between which the head has moved.

    Attributes
    ----------
    dwi : ndarray of float32, shape (X, Y, Z, V)
        The series, with noise, bias and motion.
    affine : ndarray, shape (4, 4)
        From its voxels to its world.
    bvals, bvecs : ndarray, shape (V,) and (V, 3)
        Gradients as written to file: b in s/mm2, and FSL's directions as the scanner had them,
        whatever the head did.
    mask : ndarray of bool, shape (X, Y, Z)
        The brain where it was in the first volume.
    labels : ndarray of int16, shape (X, Y, Z)
        The atlas on the grid of the series, nearest neighbour.
    t1w, t1w_bias : ndarray of float32, shape (x, y, z)
        T1-weighted image of the whole head, and the bias field in it.
    t1w_affine : ndarray, shape (4, 4)
        From its voxels to its world.
    tissues : Tissues
        Atlas and tissue shares on the grid of ``t1w``.
    head : HeadMap
        From the world of ``t1w`` to the template.
    dwi_from_t1w : ndarray, shape (4, 4)
        Rigid transform of points from the world of ``t1w`` to that of the series.
    weights : ndarray, shape (450, 450)
        The true connectome: capacity of each bundle in mm2, symmetric, 0 where there is none.
    lengths : ndarray, shape (450, 450)
        Mean length of the fibres of each bundle in mm, NaN where there is none.
    rois : ndarray of int
        Indices (1 to 450) of the ROIs that take part.
    bundles : tuple of Bundle
        The bundles, in the world of ``t1w``.
    motion : ndarray, shape (V, 6)
        Pose of the head in each volume: mm and degrees, about the middle of the grid.
    snr : float
        Of white matter without weighting.
    variant : str
        ``easy`` or ``hard``.
    seed : int
        What it was made from.
    """

    dwi: NDArray[np.float32] = field(repr=False)
    affine: NDArray[np.float64]
    bvals: NDArray[np.float64] = field(repr=False)
    bvecs: NDArray[np.float64] = field(repr=False)
    mask: NDArray[np.bool_] = field(repr=False)
    labels: NDArray[np.int16] = field(repr=False)
    t1w: NDArray[np.float32] = field(repr=False)
    t1w_bias: NDArray[np.float32] = field(repr=False)
    t1w_affine: NDArray[np.float64]
    tissues: Tissues = field(repr=False)
    head: HeadMap = field(repr=False)
    dwi_from_t1w: NDArray[np.float64]
    weights: NDArray[np.float64] = field(repr=False)
    lengths: NDArray[np.float64] = field(repr=False)
    rois: NDArray[np.int64] = field(repr=False)
    bundles: tuple[Bundle, ...] = field(repr=False)
    motion: NDArray[np.float64] = field(repr=False)
    snr: float
    variant: str
    seed: int

    @property
    def probseg(self) -> Mapping[str, NDArray[np.float32]]:
        """Tissue shares on the grid of ``t1w`` by their BIDS label."""
        return {"GM": self.tissues.grey, "WM": self.tissues.white, "CSF": self.tissues.csf}

    @property
    def is_aligned(self) -> bool:
        """Whether the series is in the world of the T1w image, and the head lay still."""
        return bool(np.allclose(self.dwi_from_t1w, np.eye(4)) and not self.motion.any())


def make_phantom(
    seed: int,
    *,
    voxel_mm: float = 2.5,
    n_bundles: int | None = None,
    rois: Sequence[int] | None = None,
    shells: Sequence[tuple[float, int]] = MULTI_SHELL,
    snr: float = 40.0,
    determinant: Literal[1, -1] = -1,
    rotation: tuple[float, float, float] = (4.0, -3.0, 5.0),
    motion: float = 1.5,
    oblique: tuple[float, float, float] = (0.0, 0.0, 0.0),
    variant: Literal["easy", "hard"] = "easy",
    t1w_mm: float = 1.5,
    scale: float = 0.87,
    warp_mm: float = 2.0,
    bias: float = 0.1,
) -> DiffusionPhantom:
    """Make a phantom.

    The easy variant has 20 bundles of 10 to 320 mm2 and 35 to 70 mm that keep apart where they can
    and cross where not, between ROIs with a border that is wide enough for them; most ROIs have one
    bundle, some two. The hard variant has 2,400 that run everywhere in the white matter and fill
    about a quarter of it, between pairs drawn by how strongly they are connected in young adults
    (`group_streamline_counts`), with capacities in proportion to that: they span orders of
    magnitude and fall off with distance, as those of tracers in monkeys do (Markov et al. 2014,
    doi:10.1093/cercor/bhs270; Ercsey-Ravasz et al. 2013, doi:10.1016/j.neuron.2013.07.036).

    White matter that no bundle fills is not empty: some of its fibres run to the core of the brain,
    some everywhere, and in the easy variant half of it is isotropic. Tracking goes there too, and
    finds connections that are not true; in the hard variant it is as anisotropic as elsewhere
    (`diffusion_signal.Background`).

    Parameters
    ----------
    seed : int
        The same seed makes the same phantom, bit for bit, for any number of threads. Head, bundles
        and weights depend on it, ``variant``, ``n_bundles``, ``rois``, ``scale`` and ``warp_mm``
        alone, not on how the head is scanned.
    voxel_mm : float
        Voxel size of the series.
    n_bundles : int, optional
        20 by default in the easy variant, 2,400 in the hard one.
    rois : sequence of int, optional
        ROI indices (1 to 450) among which bundles may run; all by default.
    shells : sequence of (float, int)
        b-value in s/mm2 and number of volumes; one with b = 0.
    snr : float
        Signal of white matter without weighting over the standard deviation of the noise.
    determinant : 1 or -1
        Sign of the determinant of the series' affine.
    rotation : tuple of float
        Degrees about x, y and z by which the head turned between T1w and diffusion, with a shift of
        some mm; all 0 for neither.
    motion : float
        Largest move within the series in mm and degrees; 0 for none.
    oblique : tuple of float
        Degrees about x, y and z by which the grid of the series is turned.
    variant : {'easy', 'hard'}
        Which bundles.
    t1w_mm : float
        Voxel size of the T1w image.
    scale : float
        Size of the brain relative to the template along each axis.
    warp_mm : float
        Root mean square of what no affine map to the template describes.
    bias : float
        Strength of the bias field of the series; 0 for none.

    Returns
    -------
    DiffusionPhantom

    Raises
    ------
    UsageError
        There is no room for that many bundles, or an argument makes no sense.
    """
    _check(shells, snr, determinant, variant)
    draw = {
        name: np.random.default_rng([seed, number])
        for number, name in enumerate(("head", "bundles", "t1w", "gradients", "motion", "noise"))
    }
    head = anatomy.draw_head(draw["head"], scale, warp_mm)
    shape, t1w_affine = anatomy.grid_of_head(head, t1w_mm, 18)
    tissues = anatomy.tissues_on_grid(head, shape, t1w_affine)
    t1w, t1w_bias = anatomy.t1w_image(tissues, t1w_mm, draw["t1w"])
    substrate = _substrate(head)
    if variant == "easy":
        bundles = _separate_bundles(substrate, n_bundles or 20, rois, draw["bundles"])
    else:
        bundles = _many_bundles(substrate, n_bundles or 2400, rois, draw["bundles"])

    dwi_from_t1w = _moved_head(head, rotation)
    shape, affine = _grid_of_series(head, dwi_from_t1w, voxel_mm, determinant, oblique)
    to_t1w = np.linalg.inv(dwi_from_t1w) @ affine
    mixture, mask, labels, outside = _fill(head, substrate, bundles, shape, to_t1w, voxel_mm)
    mixture = _turned(mixture, dwi_from_t1w[:3, :3])
    table = physics.gradient_table(shells, draw["gradients"])
    poses = physics.head_motion(len(table.bvals), motion, draw["motion"])
    dwi = physics.scan(mixture, mask, outside, affine, table, poses, _BACKGROUND[variant])
    if bias:
        dwi *= anatomy.smooth_bias(shape, voxel_mm, draw["noise"], bias)[..., None]
    physics.add_rician_noise(dwi, snr, draw["noise"])
    dwi *= np.float32(_B0_WHITE)
    weights, lengths = _truth(bundles)
    return DiffusionPhantom(
        dwi=dwi,
        affine=affine,
        bvals=table.bvals,
        bvecs=physics.fsl_bvecs(table.directions, affine),
        mask=mask,
        labels=labels,
        t1w=t1w,
        t1w_bias=t1w_bias,
        t1w_affine=t1w_affine,
        tissues=tissues,
        head=head,
        dwi_from_t1w=dwi_from_t1w,
        weights=weights,
        lengths=lengths,
        rois=np.flatnonzero(weights.any(axis=0)) + 1,
        bundles=tuple(bundles),
        motion=poses,
        snr=snr,
        variant=variant,
        seed=seed,
    )


def _check(shells: Sequence[tuple[float, int]], snr: float, determinant: int, variant: str) -> None:
    if determinant not in (1, -1):
        raise UsageError(f"determinant is {determinant}, but must be 1 or -1")
    if variant not in ("easy", "hard"):
        raise UsageError(f"variant is {variant!r}, but must be 'easy' or 'hard'")
    if snr <= 0:
        raise UsageError(f"snr is {snr:g}, but must be above 0")
    if not any(b == 0 for b, _ in shells) or not any(b > 0 for b, _ in shells):
        raise UsageError("shells must have volumes with b = 0 and with b > 0")


def _substrate(head: HeadMap) -> Substrate:
    shape, affine = anatomy.grid_of_head(head, fibres.GRID_MM, 4)
    return Substrate(anatomy.tissues_on_grid(head, shape, affine), affine)


def _separate_bundles(
    substrate: Substrate, count: int, rois: Sequence[int] | None, rng: np.random.Generator
) -> list[Bundle]:
    """Draw bundles one after the other, each with little of its course beside earlier ones."""
    router = fibres.Router(substrate)
    uses: dict[int, int] = dict.fromkeys(_allowed(substrate, rois), 0)
    bundles: list[Bundle] = []
    for area in np.geomspace(*_AREAS_MM2, count)[::-1]:  # thick ones while there is room
        density = float(rng.uniform(*_DENSITIES["easy"]))
        bundle = _separate_bundle(router, float(area), density, uses, bundles, rng)
        if bundle is None:
            raise UsageError(
                f"no room for {count} separate bundles, only for {len(bundles)}",
                hint="ask for fewer, or allow more ROIs",
            )
        bundles.append(bundle)
        for roi in bundle.rois:
            uses[roi] += 1
    return bundles


def _separate_bundle(
    router: fibres.Router,
    area: float,
    density: float,
    uses: Mapping[int, int],
    bundles: Sequence[Bundle],
    rng: np.random.Generator,
) -> Bundle | None:
    """Draw one bundle: of some forty routes the one with most room that can carry it."""
    for rois, route in _roomy_routes(router, area, uses, bundles, rng):
        bundle = fibres.make_bundle(
            router.substrate,
            rois,
            route,
            area,
            density,
            _STREAMLINES["easy"],
            rng,
            most_dense=_MOST_DENSE,
        )
        if bundle is not None and bundle.capacity_mm2 > 0.5 * area * density:
            return bundle
    return None


def _roomy_routes(
    router: fibres.Router,
    area: float,
    uses: Mapping[int, int],
    bundles: Sequence[Bundle],
    rng: np.random.Generator,
) -> list[tuple[tuple[int, int], NDArray[np.float64]]]:
    """Return routes between ROIs of which at least one is unused, the one with most room first."""
    radius = fibres.radius_of(area)
    courses = [(b.route, fibres.radius_of(b.area_mm2)) for b in bundles]
    taken = {frozenset(bundle.rois) for bundle in bundles}
    found = []
    wanted = max(_BORDER_MM2, _BORDER_FOR_AREA * area)
    wide = [roi for roi in uses if router.substrate.border_mm2(roi) > wanted]
    for first in rng.permutation([roi for roi in wide if uses[roi] == 0])[:4].tolist():
        away = router.substrate.port_distances(first)
        others = [
            roi
            for roi in wide
            if uses[roi] < 2 and 25 < away[roi] < 65 and frozenset((first, roi)) not in taken
        ]
        for second in rng.permutation(others)[:10].tolist():
            route = router.route(first, second)
            if route is None or not 35 <= len(route) <= 70:
                continue
            narrow = fibres.narrowness(router.substrate, route)
            if narrow > 0.5 or fibres.tightest_bend_mm(route) < 8:
                continue
            tight = fibres.crowding(route, radius, courses) + narrow / 3
            found.append((tight, (first, second), route))
    return [candidate[1:] for candidate in sorted(found, key=lambda candidate: candidate[0])]


def _many_bundles(
    substrate: Substrate, count: int, rois: Sequence[int] | None, rng: np.random.Generator
) -> list[Bundle]:
    """Draw bundles by how strongly ROIs are connected in young adults, and as thick as that."""
    router = fibres.Router(substrate)
    allowed = np.array(_allowed(substrate, rois))
    rows, columns = np.triu_indices(len(allowed), k=1)
    pairs = np.column_stack([allowed[rows], allowed[columns]])
    strengths = group_streamline_counts()
    strength = strengths[pairs[:, 0] - 1, pairs[:, 1] - 1]
    known = strength > 0
    rank = np.log(strength, where=known, out=np.full(len(pairs), -np.inf))
    rank += rng.gumbel(size=len(pairs))
    # Pairs are drawn in proportion to strength; those that are never connected, not at all.
    pairs = pairs[np.argsort(-rank, kind="stable")][: known.sum()]
    bundles: list[Bundle] = []
    first, rest = pairs[:count], pairs[count:]
    in_order = np.lexsort((first[:, 1], first[:, 0]))  # one start after the other
    for pair in np.concatenate([first[in_order], rest]).tolist():
        area = _THICKEST_MM2 * strengths[pair[0] - 1, pair[1] - 1] / strengths.max()
        density = float(rng.uniform(*_DENSITIES["hard"]))
        bundle = _bundle_if_any(router, tuple(pair), area, density, rng)
        if bundle is None:
            continue
        bundles.append(bundle)
        if len(bundles) == count:
            return _fitted(substrate, bundles)
    raise UsageError(f"only {len(bundles)} of {count} bundles found a way")


def _bundle_if_any(
    router: fibres.Router,
    rois: tuple[int, int],
    area: float,
    density: float,
    rng: np.random.Generator,
) -> Bundle | None:
    """Return the bundle between two ROIs, unless they are too near or there is no way."""
    route = router.route(*rois)
    if route is None:
        return None
    bundle = fibres.make_bundle(
        router.substrate, rois, route, area, density, _STREAMLINES["hard"], rng, most_dense=None
    )
    if bundle is None or fibres.mean_length(bundle.streamlines) < _SHORTEST_MM:
        return None
    return bundle


def _fitted(substrate: Substrate, bundles: Sequence[Bundle]) -> list[Bundle]:
    """Lower all capacities by one factor, so that together they fit into the white matter."""
    filled = np.zeros(substrate.white.shape)
    for bundle in bundles:
        end = bundle.corner + bundle.flow.shape[:3]
        box = tuple(slice(a, b) for a, b in zip(bundle.corner, end, strict=True))
        filled[box] += bundle.capacity_mm2 * np.linalg.norm(bundle.flow, axis=-1)
    factor = min(1.0, _MOST_DENSE / np.percentile(filled[substrate.white], 95))
    return [replace(bundle, capacity_mm2=bundle.capacity_mm2 * factor) for bundle in bundles]


def _allowed(substrate: Substrate, rois: Sequence[int] | None) -> list[int]:
    """Return the ROIs that bundles may connect: asked for, and at the border of white matter."""
    asked = range(1, N_ROIS + 1) if rois is None else sorted(set(rois))
    allowed = [int(roi) for roi in asked if roi in substrate.ports]
    if len(allowed) < 2:
        raise UsageError("fewer than two of the ROIs border on white matter")
    return allowed


def _moved_head(head: HeadMap, rotation: tuple[float, float, float]) -> NDArray[np.float64]:
    """Return the rigid transform from T1w world to that of the series: about the head's middle."""
    if not any(rotation):
        return np.eye(4)
    middle = np.linalg.inv(head.affine)[:3, 3]
    shift = np.array([3.0, -5.0, 4.0])
    return physics.pose_matrix(np.concatenate([shift, rotation]), middle)


def _grid_of_series(
    head: HeadMap,
    dwi_from_t1w: NDArray[np.float64],
    voxel_mm: float,
    determinant: int,
    oblique: tuple[float, float, float],
) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """Return the shape and affine of a grid that holds the brain with 10 mm around it."""
    axes = anatomy.rotation_matrix(oblique)
    to_axes = np.eye(4)
    to_axes[:3, :3] = axes.T
    seen = replace(head, affine=head.affine @ np.linalg.inv(to_axes @ dwi_from_t1w))
    shape, affine = anatomy.grid_of_head(seen, voxel_mm, 10)
    if determinant < 0:
        affine[0, 3] += (shape[0] - 1) * voxel_mm
        affine[0, 0] *= -1
    return shape, np.linalg.inv(to_axes) @ affine


def _fill(
    head: HeadMap,
    substrate: Substrate,
    bundles: Sequence[Bundle],
    shape: tuple[int, int, int],
    to_t1w: NDArray[np.float64],
    voxel_mm: float,
) -> tuple[physics.Mixture, NDArray[np.bool_], NDArray[np.int16], NDArray[np.float32]]:
    """Fill the voxels of the series' grid; directions in T1w world.

    Where bundles would together fill more of a voxel than white matter does, all of them are
    lowered in that voxel.

    Returns
    -------
    mixture : Mixture
        Of the voxels in the mask.
    mask : ndarray of bool, shape (X, Y, Z)
        The brain.
    labels : ndarray of int16, shape (X, Y, Z)
        The atlas.
    outside : ndarray of float32, shape (X, Y, Z)
        Signal around the brain.
    """
    tissues = _partial_volumes(head, shape, to_t1w)
    mask = tissues.brain
    white = tissues.white[mask]
    points = apply_affine(to_t1w, np.argwhere(mask))
    capacities = np.array([bundle.capacity_mm2 for bundle in bundles])
    found = fibres.fibres_at(bundles, capacities, substrate, points)
    total = found.fractions.sum(axis=1)
    room = np.minimum(1, white / np.maximum(total, 1e-9))
    fractions = found.fractions * room[:, None]
    to_template = head(substrate.points)
    core = np.zeros_like(substrate.white)
    core[substrate.white] = (np.abs(to_template[:, 0]) < 3) & (to_template[:, 2] > -5)
    main = fibres.towards_the_core(substrate, core)[substrate.white]
    mixture = physics.Mixture(
        fractions=fractions,
        directions=found.directions,
        background=white - fractions.sum(axis=1),
        main=main[substrate.tree.query(points)[1]],
        grey=tissues.grey[mask],
        csf=tissues.csf[mask],
    )
    away = ndimage.distance_transform_edt(~mask) * voxel_mm
    outside = np.where(away < 9, 0.1 * np.exp(-away / 6), 0).astype(np.float32)
    return mixture, mask, tissues.labels, outside


def _partial_volumes(
    head: HeadMap, shape: tuple[int, int, int], to_t1w: NDArray[np.float64]
) -> Tissues:
    """Return the tissues of a grid, shares averaged over eight points of each voxel."""
    halves = np.diag([0.5, 0.5, 0.5, 1.0])
    halves[:3, 3] = -0.25
    fine = anatomy.tissues_on_grid(head, tuple(2 * n for n in shape), to_t1w @ halves)
    blocks = (shape[0], 2, shape[1], 2, shape[2], 2)
    shares = [
        share.reshape(blocks).mean(axis=(1, 3, 5), dtype=np.float32)
        for share in (fine.white, fine.grey, fine.csf)
    ]
    return Tissues(anatomy.tissues_on_grid(head, shape, to_t1w).labels, *shares)


def _turned(mixture: physics.Mixture, rotation: NDArray[np.float64]) -> physics.Mixture:
    """Turn all directions."""
    turn = rotation.astype(np.float32)
    return replace(
        mixture,
        directions=np.einsum("ij,nkj->nki", turn, mixture.directions),
        main=np.einsum("ij,nj->ni", turn, mixture.main),
    )


def _truth(bundles: Sequence[Bundle]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the true weights and mean lengths, (450, 450) each."""
    weights = np.zeros((N_ROIS, N_ROIS))
    lengths = np.full((N_ROIS, N_ROIS), np.nan)
    for bundle in bundles:
        first, second = np.array(bundle.rois) - 1
        weights[first, second] = weights[second, first] = bundle.capacity_mm2
        lengths[first, second] = lengths[second, first] = fibres.mean_length(bundle.streamlines)
    return weights, lengths


class Score(NamedTuple):
    """How well a connectome was recovered: area under the ROC curve, and Pearson's r."""

    auc: float
    r: float


def score_connectome(found: NDArray[np.floating], truth: NDArray[np.floating]) -> Score:
    """Compare a connectome with the true one.

    Parameters
    ----------
    found : ndarray, shape (450, 450)
        Streamline counts, fibre bundle capacities or any other measure of strength; NaN (an ROI
        that was not there) counts as 0. Symmetric.
    truth : ndarray, shape (450, 450)
        `DiffusionPhantom.weights`.

    Returns
    -------
    auc : float
        Area under the ROC curve of telling the pairs that are connected from those that are not by
        their strength. Of all pairs of ROIs that take part, which are those with a true bundle;
        ties count half.
    r : float
        Pearson's r of the logarithms over the pairs that are connected. Pairs that were missed
        count as half of the weakest connected one that was found, so that missing them costs. NaN
        if fewer than three were found.
    """
    if found.shape != truth.shape:
        raise BadDataError(f"a connectome of {found.shape} cannot be compared with {truth.shape}")
    taking_part = np.flatnonzero(truth.any(axis=0))
    rows, columns = np.triu_indices(len(taking_part), k=1)
    pairs = taking_part[rows], taking_part[columns]
    strength, true = np.nan_to_num(found[pairs].astype(np.float64)), truth[pairs]
    edges = true > 0
    ranks = stats.rankdata(strength)
    n, rest = edges.sum(), (~edges).sum()
    auc = (ranks[edges].sum() - n * (n + 1) / 2) / (n * rest) if n and rest else np.nan
    on_edges = strength[edges]
    if (on_edges > 0).sum() < 3:
        return Score(float(auc), np.nan)
    logarithm = np.log(np.where(on_edges > 0, on_edges, on_edges[on_edges > 0].min() / 2))
    return Score(float(auc), float(np.corrcoef(logarithm, np.log(true[edges]))[0, 1]))


def ceiling(
    phantom: DiffusionPhantom, n_streamlines: int, seed: int = 0, radius_mm: float = 4.0
) -> NDArray[np.int64]:
    """Count true fibres instead of tracked ones: the best that counting streamlines can do.

    Parameters
    ----------
    phantom : DiffusionPhantom
        The phantom.
    n_streamlines : int
        Fibres to draw, from each bundle in proportion to its capacity.
    seed : int
        Of the draw.
    radius_mm : float
        An end that is in no ROI belongs to the nearest within this distance.

    Returns
    -------
    ndarray of int, shape (450, 450)
        Counts, symmetric.
    """
    owners = np.repeat(
        np.arange(len(phantom.bundles)), [len(b.streamlines) for b in phantom.bundles]
    )
    capacities = np.array([bundle.capacity_mm2 for bundle in phantom.bundles])
    share = (capacities / np.bincount(owners))[owners]
    drawn = np.random.default_rng(seed).multinomial(n_streamlines, share / share.sum())
    ends = [
        np.stack([line[end] for bundle in phantom.bundles for line in bundle.streamlines])
        for end in (0, -1)
    ]
    first, second = (_roi_at(phantom, points, radius_mm) for points in ends)
    counts = np.zeros((N_ROIS + 1, N_ROIS + 1), dtype=np.int64)
    np.add.at(counts, (first, second), drawn)
    return (counts + counts.T - np.diag(np.diag(counts)))[1:, 1:]


def _roi_at(
    phantom: DiffusionPhantom, points: NDArray[np.floating], radius_mm: float
) -> NDArray[np.int64]:
    """Return the ROI at points of T1w world, 0 where none is near."""
    labelled = np.argwhere(phantom.tissues.labels > 0)
    values = phantom.tissues.labels[tuple(labelled.T)]
    distance, nearest = cKDTree(apply_affine(phantom.t1w_affine, labelled)).query(
        points, distance_upper_bound=radius_mm
    )
    return np.where(np.isfinite(distance), np.append(values, 0)[nearest], 0).astype(np.int64)

"""Tractography with DIPY (Garyfallidis et al. 2014, doi:10.3389/fninf.2014.00008).

DIPY works along the axes of the voxels: directions come from `voxel_directions`, because FSL's own
are mirrored where the determinant of the affine is positive. Taken as they are, they raise no error
and halve the length of streamlines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from bsym_bids.dwi.engines.bounds import write_fa_seeds
from bsym_bids.dwi.engines.grid import BrainGrid, brain_grid, masked_signals
from bsym_bids.dwi.engines.volumes import Modelled, choose_volumes, tensor_volumes
from bsym_bids.dwi.gradients import B0_MAX, Gradients, read_gradients, voxel_directions
from bsym_bids.dwi.presets import Preset
from bsym_bids.dwi.records import FittedModel, PlacedAnatomy, PreparedDwi
from bsym_bids.dwi.series import save_image
from bsym_bids.dwi.tissue import CORTICAL, CSF, SUBCORTICAL, WHITE
from bsym_bids.dwi.tracks import Streamlines, write_tck
from bsym_bids.dwi.transforms import Volume, resample
from bsym_bids.errors import BadDataError
from bsym_bids.pool import Workers, workers

if TYPE_CHECKING:
    from dipy.core.gradients import GradientTable
    from dipy.core.sphere import HemiSphere
    from dipy.tracking.stopping_criterion import StoppingCriterion

#: Voxels that the response of a single fibre is estimated of: those of highest anisotropy, as
#: ``dwi2response fa`` of MRtrix3 takes them.
RESPONSE_VOXELS = 300
#: mm2/s; nothing in a brain diffuses more slowly along a fibre, fixed tissue included.
SLOWEST = 1e-5
#: Amplitudes on the sphere are laid out before tracking, which then takes half the time, unless
#: they would take more bytes than this.
MOST_AMPLITUDES = 600 << 20
#: Streamlines begin where both grey and white matter have this share of what is within a voxel.
INTERFACE = 0.1
# Voxels that one worker fits at a time: few enough for its memory to stay small.
_CHUNK = 4000
# Seeds that are tracked before it is counted how many more are needed.
_FEWEST_SEEDS, _MOST_SEEDS = 2000, 10000


def load_dipy() -> DipyEngine:
    """Return the engine; DIPY is always installed with the package."""
    import dipy

    return DipyEngine(version=dipy.__version__)


@dataclass(frozen=True)
class DipyEngine:
    """DIPY as an `Engine`: CSD of one shell, probabilistic tracking with anatomical constraints.

    Compared with MRtrix3, streamlines are shorter by up to two steps, for DIPY leaves out the point
    in grey matter that ends one, and of long or bent bundles there are fewer, for it doesn't track
    back where one ran into CSF.
    """

    version: str
    name: str = "dipy"
    has_weights: bool = False

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
        """Fit fibre orientation distributions; see `Engine`. Nothing is drawn."""
        work.mkdir(parents=True, exist_ok=True)
        n_volumes = int(nib.load(dwi.image).shape[3])
        gradients, notes = read_gradients(Path(dwi.bval), Path(dwi.bvec), n_volumes)
        modelled = choose_volumes(gradients, several_shells=False, lmax=preset.lmax, name=dwi.image)
        grid = brain_grid(dwi, preset.voxel_size)
        with workers(threads) as pool:
            fa = _write_fa(dwi, gradients, work, pool)
            harmonics, details = _deconvolve(dwi, gradients, modelled, grid, pool)
        files = _write_amplitudes(harmonics, grid, preset, work)
        if placed.tissue is None:
            files |= {"seeds": str(write_fa_seeds(fa, preset, work / "seeds.nii")), "fa": str(fa)}
        else:
            files |= _write_tissue_bounds(Path(placed.tissue), grid, work)
        details |= {
            "ModelledShells": [round(b) for b in modelled.shells],
            "Directions": modelled.n_directions,
            "SphericalHarmonicsOrder": modelled.lmax,
            "AnatomicallyConstrained": placed.tissue is not None,
            "FittedVoxelSize": np.linalg.norm(grid.fitted_affine[:3, :3], axis=0).tolist(),
        }
        return FittedModel(
            engine=self.name,
            version=self.version,
            files=files,
            fa=str(fa),
            notes=(*notes, *modelled.notes),
            details=details,
        )

    def track(
        self, model: FittedModel, preset: Preset, n_streamlines: int, seed: int, out: Path
    ) -> Path:
        """Track one batch; see `Engine`."""
        tracker = _Tracker(model, preset)
        lines: list[NDArray[np.float32]] = []
        for found in tracker.streamlines(seed, n_streamlines):
            lines += found
            if len(lines) >= n_streamlines:
                break
        if len(lines) < n_streamlines:
            tried = n_streamlines * preset.seeds_per_streamline
            raise BadDataError(
                f"{model.files['orientations']}: DIPY found {len(lines)} of {n_streamlines} "
                f"streamlines in {tried} seeds",
                hint="see that mask, tissue and gradients are right; a preset file of your own can "
                "lower min_length or cutoff, or raise seeds_per_streamline",
            )
        lines = lines[:n_streamlines]
        offsets = np.cumsum([0, *map(len, lines)], dtype=np.int64)
        write_tck(out, Streamlines(np.concatenate(lines), offsets))
        return out

    def streamline_weights(
        self, model: FittedModel, tracks: Path, work: Path
    ) -> NDArray[np.float32] | None:
        """Return None: DIPY has no SIFT2."""
        return None


# --- fitting -------------------------------------------------------------------------------------


def _table(gradients: Gradients, volumes: NDArray[np.intp], affine: NDArray) -> GradientTable:
    """Return gradients as DIPY takes them: along the axes of the voxels."""
    from dipy.core.gradients import gradient_table

    directions = voxel_directions(gradients, affine)[volumes]
    return gradient_table(gradients.bvals[volumes], bvecs=directions, b0_threshold=B0_MAX, atol=0.1)


def _write_fa(dwi: PreparedDwi, gradients: Gradients, work: Path, pool: Workers) -> Path:
    """Fit the tensor to the lower shells and write the image of its anisotropy."""
    grid = brain_grid(dwi, None)
    volumes = tensor_volumes(gradients)
    table = _table(gradients, volumes, grid.affine)
    values = _in_chunks(_fa_of, masked_signals(dwi, grid, volumes), pool, table)
    image = np.zeros(grid.mask.shape, np.float32)
    image[grid.mask] = values
    out = work / "fa.nii"
    save_image(out, image, grid.affine)
    return out


def _fa_of(signals: NDArray[np.float32], table: GradientTable) -> NDArray[np.float32]:
    """Return the anisotropy of the tensor (weighted least squares) in some voxels."""
    from dipy.reconst.dti import TensorModel

    return np.nan_to_num(TensorModel(table, min_signal=1e-3).fit(signals).fa).astype(np.float32)


def _in_chunks(
    function: Callable[..., NDArray[np.float32]],
    signals: NDArray[np.float32],
    pool: Workers,
    *arguments: Any,
) -> NDArray[np.float32]:
    """Call a function that works voxel by voxel on parts of the voxels, in several processes.

    The parts are the same however many processes there are, and so is the result.
    """
    chunks = [signals[start : start + _CHUNK] for start in range(0, len(signals), _CHUNK)]
    return np.concatenate(list(pool.map(function, chunks, *map(repeat, arguments))))


def _deconvolve(
    dwi: PreparedDwi, gradients: Gradients, modelled: Modelled, grid: BrainGrid, pool: Workers
) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """Estimate the response of one fibre and deconvolve one shell.

    Constrained spherical deconvolution (CSD; Tournier et al. 2007,
    doi:10.1016/j.neuroimage.2007.02.016).

    Returns
    -------
    ndarray, shape (voxels, coefficients)
        Of spherical harmonics (Descoteaux et al. 2007), in the voxels of the grid's mask.
    dict
        Details for the sidecar.
    """
    from dipy.reconst.csdeconv import response_from_mask_ssst

    table = _table(gradients, modelled.volumes, grid.fitted_affine)
    signals = masked_signals(dwi, grid, modelled.volumes)
    fa = _in_chunks(_fa_of, signals, pool, table)
    # Not at the rim, where a voxel is half air and noise passes for anisotropy.
    single = _highest(np.where(_inner(grid.mask)[grid.mask], fa, 0))
    response, ratio = response_from_mask_ssst(table, signals[None, None], single[None, None])
    eigenvalues, s0 = np.asarray(response[0], dtype=np.float64), float(response[1])
    along, across = eigenvalues[:2]
    if not (0 < across < along and along > SLOWEST and s0 > 0 and np.isfinite(along * s0)):
        raise BadDataError(
            f"{dwi.image}: the response of a single fibre makes no sense (diffusivities "
            f"{eigenvalues.tolist()} mm2/s, signal {s0:g})",
            hint="see that mask and gradients belong to the series",
        )
    harmonics = _in_chunks(
        _csd_of, signals, pool, table, (eigenvalues, np.float64(s0)), modelled.lmax
    )
    return harmonics, {
        "ResponseAlgorithm": f"{int(single.sum())} voxels of highest FA",
        "ResponseDiffusivities": eigenvalues.round(7).tolist(),
        "ResponseRatio": round(float(ratio), 4),
        "DeconvolutionAlgorithm": "csd",
        "Tissues": ["wm"],
    }


def _inner(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    from scipy import ndimage

    inner = ndimage.binary_erosion(mask, iterations=3)
    return inner if inner.sum() > RESPONSE_VOXELS else mask


def _highest(fa: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Mark the voxels of highest anisotropy; of equals, the first ones."""
    marked = np.zeros(len(fa), bool)
    marked[np.argsort(-fa, kind="stable")[:RESPONSE_VOXELS]] = True
    return marked


def _csd_of(
    signals: NDArray[np.float32],
    table: GradientTable,
    response: tuple[NDArray[np.float64], np.float64],
    lmax: int,
) -> NDArray[np.float32]:
    """Deconvolve some voxels."""
    import warnings

    from dipy.reconst.csdeconv import ConstrainedSphericalDeconvModel

    with warnings.catch_warnings():
        # On the basis of harmonics, which the tracker is told too, and on few directions, which
        # `choose_volumes` has counted.
        warnings.simplefilter("ignore")
        model = ConstrainedSphericalDeconvModel(table, response, sh_order_max=lmax)
        return model.fit(signals).shm_coeff.astype(np.float32)


def _sphere(name: str) -> HemiSphere:
    """Return directions; half of a sphere will do, for fibres have no sign."""
    from dipy.core.sphere import HemiSphere
    from dipy.data import get_sphere

    return HemiSphere.from_sphere(get_sphere(name=name))


def _write_amplitudes(
    harmonics: NDArray[np.float32], grid: BrainGrid, preset: Preset, work: Path
) -> dict[str, str]:
    """Write what the tracker interpolates, and the affine of its grid.

    It takes 64-bit numbers only; the file is mapped by the processes that track, which share one
    copy. It is not written through a map: on a full disk that kills instead of raising an error.
    """
    sphere = _sphere(preset.dipy.sphere)
    n_voxels, n_directions = grid.mask.size, len(sphere.vertices)
    laid_out = n_voxels * n_directions * 8 <= MOST_AMPLITUDES
    width = n_directions if laid_out else harmonics.shape[1]
    out = work / ("amplitudes.npy" if laid_out else "harmonics.npy")
    header = {"descr": "<f8", "fortran_order": False, "shape": (*grid.mask.shape, width)}
    basis = _basis(sphere, harmonics.shape[1]).T
    ends = np.cumsum(grid.mask.sum(axis=(1, 2)))
    with out.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for inside, part in zip(grid.mask, np.split(harmonics, ends[:-1]), strict=True):
            slab = np.zeros((*inside.shape, width))
            slab[inside] = np.maximum(part @ basis, 0) if laid_out else part
            file.write(slab.data)
    affine = work / "grid.npy"
    _save_array(affine, grid.fitted_affine)
    return {"orientations": str(out), "grid": str(affine)}


def _save_array(path: Path, values: NDArray) -> None:
    """Write a ``.npy`` file; ``numpy.save`` doesn't tell a full disk from other failures."""
    values = np.ascontiguousarray(values)
    with path.open("wb") as file:
        header = np.lib.format.header_data_from_array_1_0(values)
        np.lib.format.write_array_header_1_0(file, header)
        file.write(values.data)


def _basis(sphere: HemiSphere, n_coefficients: int) -> NDArray[np.float64]:
    """Return the harmonics (directions, coefficients) of the basis that CSD uses."""
    import warnings

    from dipy.reconst.shm import order_from_ncoef, real_sh_descoteaux

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "legacy": so is what CSD returns
        order = order_from_ncoef(n_coefficients)
        return real_sh_descoteaux(order, sphere.theta, sphere.phi, legacy=True)[0]


def _write_tissue_bounds(tissue: Path, grid: BrainGrid, work: Path) -> dict[str, str]:
    """Write where streamlines end, on the grid of orientations, and where they begin.

    The anatomical constraints of DIPY (Smith et al. 2012, doi:10.1016/j.neuroimage.2012.06.005):
    a streamline that enters grey matter is kept, one that enters CSF or leaves the brain is not.
    """
    image = nib.load(tissue)
    shares = np.asanyarray(image.dataobj, dtype=np.float32)
    grey, white = shares[..., CORTICAL] + shares[..., SUBCORTICAL], shares[..., WHITE]
    outside = shares[..., CSF] + np.maximum(1 - shares.sum(axis=-1), 0)
    paths = {}
    for name, values in (("include", grey), ("exclude", outside)):
        on_grid = resample(
            Volume(values, np.asarray(image.affine)), grid.mask.shape, grid.fitted_affine
        ).data
        if name == "exclude":  # beyond the tissue image there is no brain
            on_grid[_beyond(image, grid)] = 1
        paths[name] = work / f"{name}.npy"
        _save_array(paths[name], on_grid.astype(np.float64))
    paths["seeds"] = work / "seeds.nii"
    save_image(paths["seeds"], _interface(grey, white), image.affine)
    if not np.asanyarray(nib.load(paths["seeds"]).dataobj).any():
        raise BadDataError(
            f"{tissue}: no border of grey and white matter, so that no streamline can begin",
            hint="see that the tissues are those of a brain",
        )
    return {name: str(path) for name, path in paths.items()}


def _beyond(image: nib.Nifti1Image, grid: BrainGrid) -> NDArray[np.bool_]:
    inside = Volume(np.ones(image.shape[:3], np.float32), np.asarray(image.affine))
    return resample(inside, grid.mask.shape, grid.fitted_affine).data < 0.5


def _interface(grey: NDArray[np.float32], white: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return the white side of the border to grey matter."""
    from scipy import ndimage

    near = [ndimage.uniform_filter(share, 3) for share in (grey, white)]
    return (white > grey) & (np.minimum(*near) > INTERFACE)


# --- tracking ------------------------------------------------------------------------------------


def _random_seed(seed: int) -> int:
    """Return what DIPY multiplies with a place (2 x + 3 y + 5 z, voxels) to seed its walk from it.

    The product is cut to a whole number of 32 bits. What is larger is cut by some processors so
    that all walks get the same numbers; factors that are small give them to neighbours. Batches
    need not differ in it, for their places do.
    """
    return 1_000_000 + seed % 500_000


@dataclass(frozen=True)
class _Tracker:
    """What is loaded to track one batch."""

    model: FittedModel
    preset: Preset

    @cached_property
    def affine(self) -> NDArray[np.float64]:
        return np.load(self.model.files["grid"], allow_pickle=False)

    @cached_property
    def sphere(self) -> HemiSphere:
        return _sphere(self.preset.dipy.sphere)

    @cached_property
    def orientations(self) -> NDArray[np.float64]:
        # Copied on writing, that is never: the tracker insists on memory that could be written to.
        return np.load(self.model.files["orientations"], mmap_mode="c", allow_pickle=False)

    @property
    def laid_out(self) -> bool:
        return self.orientations.shape[3] == len(self.sphere.vertices)

    @cached_property
    def criterion(self) -> StoppingCriterion:
        from dipy.tracking.stopping_criterion import (
            ActStoppingCriterion,
            ThresholdStoppingCriterion,
        )

        if "include" in self.model.files:
            return ActStoppingCriterion(
                np.load(self.model.files["include"], allow_pickle=False),
                np.load(self.model.files["exclude"], allow_pickle=False),
            )
        image = nib.load(self.model.files["fa"])
        fa = Volume(np.asanyarray(image.dataobj, dtype=np.float32), np.asarray(image.affine))
        on_grid = resample(fa, self.orientations.shape[:3], self.affine).data
        return ThresholdStoppingCriterion(on_grid.astype(np.float64), self.preset.fa_stop)

    @cached_property
    def seed_voxels(self) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        image = nib.load(self.model.files["seeds"])
        return np.argwhere(np.asanyarray(image.dataobj) > 0), np.asarray(image.affine)

    def streamlines(self, seed: int, wanted: int) -> Iterator[list[NDArray[np.float32]]]:
        """Yield streamlines until no more seeds may be tried.

        Seeds are all different: one that is repeated gives the same streamline again.
        """
        rng = np.random.default_rng(seed)
        left, count = wanted * self.preset.seeds_per_streamline, max(wanted, _FEWEST_SEEDS)
        found = tried = 0
        while left > 0:
            count = min(count, left, _MOST_SEEDS)
            lines = self._track(rng, count, seed)
            yield lines
            found, tried, left = found + len(lines), tried + count, left - count
            # As many as are missing at the rate so far, and a few more.
            missing = max(wanted - found, 1)
            count = max(int(1.05 * missing * tried / max(found, 1)), _FEWEST_SEEDS)

    def _track(self, rng: np.random.Generator, count: int, seed: int) -> list[NDArray[np.float32]]:
        from dipy.tracking.tracker import probabilistic_tracking

        points, directions = self._seeds(rng, count)
        if not len(points):
            return []
        preset = self.preset
        side = float(abs(np.linalg.det(self.affine[:3, :3])) ** (1 / 3))
        step = preset.dipy.step * side
        # DIPY rounds lengths to whole mm and then down to whole steps, and counts the steps that
        # end a streamline in, which it then leaves out.
        fewest = max(math.ceil(preset.min_length / step - 1e-6), 1) + 1
        most = math.floor(preset.max_length / step + 1e-6) + 1
        kind = "sf" if self.laid_out else "sh"
        lines = probabilistic_tracking(
            points,
            self.criterion,
            self.affine,
            seed_directions=directions,
            **{kind: self.orientations},
            sphere=self.sphere,
            min_len=math.floor(preset.min_length),
            max_len=math.ceil(preset.max_length + 2 * step),
            step_size=step,
            max_angle=preset.dipy.angle,
            pmf_threshold=preset.dipy.cutoff,
            nbr_threads=1,
            random_seed=_random_seed(seed),
            return_all=False,
        )
        return [line.astype(np.float32) for line in lines if fewest <= len(line) <= most]

    def _seeds(
        self, rng: np.random.Generator, count: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Draw points in world mm, and for each a direction as often as fibres run along it."""
        voxels, affine = self.seed_voxels
        index = voxels[rng.integers(len(voxels), size=count)] + rng.uniform(-0.5, 0.5, (count, 3))
        points = index @ affine[:3, :3].T + affine[:3, 3]
        inverse = np.linalg.inv(self.affine)
        nearest = np.rint(points @ inverse[:3, :3].T + inverse[:3, 3]).astype(int)
        inside = ((nearest >= 0) & (nearest < self.orientations.shape[:3])).all(axis=1)
        points, nearest = points[inside], nearest[inside]
        values = np.asarray(self.orientations[tuple(nearest.T)])
        if not self.laid_out:
            values = np.maximum(values @ _basis(self.sphere, values.shape[1]).T, 0)
        values[values < self.preset.dipy.cutoff * values.max(axis=1, keepdims=True)] = 0
        sums = np.cumsum(values, axis=1)
        drawn = rng.random(len(sums)) * sums[:, -1]
        chosen = np.minimum((sums <= drawn[:, None]).sum(axis=1), sums.shape[1] - 1)
        fibre = sums[:, -1] > 0
        return points[fibre], self.sphere.vertices[chosen[fibre]].astype(np.float64)

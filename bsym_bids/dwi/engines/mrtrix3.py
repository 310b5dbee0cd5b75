"""Tractography with MRtrix3 (Tournier et al. 2019, doi:10.1016/j.neuroimage.2019.116137).

Commands whose results depend on the number of threads run on one (measured with 3.0.3:
``dwi2response``, whose sums differ in the last digits, ``tcksift2`` and ``tckgen``);
``dwi2tensor`` and ``dwi2fod`` work voxel by voxel and use all cores. ``mtnormalise`` takes so
little time that it isn't worth finding out for all data. Even on one thread the last digit of a
response differs in about one run of twelve (``amp2response``; where its memory happens to lie
decides how it sums), so that responses are rounded before they are used.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from bsym_bids.dwi.commands import find_command, run
from bsym_bids.dwi.engines.bounds import write_fa_mask, write_fa_seeds
from bsym_bids.dwi.engines.grid import brain_grid, write_fitted_series
from bsym_bids.dwi.engines.volumes import Modelled, choose_volumes, tensor_volumes
from bsym_bids.dwi.gradients import Gradients, read_gradients, write_gradients
from bsym_bids.dwi.presets import Mrtrix3Parameters, Preset
from bsym_bids.dwi.records import FittedModel, PlacedAnatomy, PreparedDwi
from bsym_bids.dwi.tools import mrtrix3_version
from bsym_bids.dwi.tracks import read_tck_header
from bsym_bids.errors import BadDataError, BsymError, InputMissingError

COMMANDS = (
    "5tt2gmwmi",
    "dwi2fod",
    "dwi2response",
    "dwi2tensor",
    "mrconvert",
    "mrinfo",
    "mtnormalise",
    "tckgen",
    "tcksift2",
    "tensor2metric",
)
_TISSUES = {True: ("wm", "gm", "csf"), False: ("wm", "csf")}
_ONE_THREAD = ("-nthreads", "0")
_DIGITS = 9  # of a response
# Second harmonic of a fibre's response at the highest b, as a share of the first: 0.4 at b = 1000.
_LEAST_CONTRAST = 0.01


def _missing_commands() -> list[str]:
    return [name for name in COMMANDS if find_command(name) is None]


def is_installed() -> bool:
    """Tell whether all commands of MRtrix3 that are needed are on the PATH."""
    return not _missing_commands()


def load_mrtrix3() -> Mrtrix3Engine:
    """Return the engine.

    Raises
    ------
    InputMissingError
        MRtrix3, or a part of it, is not installed or cannot be run.
    """
    missing = _missing_commands()
    if missing:
        raise InputMissingError(
            f"MRtrix3 is not installed: {', '.join(missing)} not found on the PATH",
            hint="apt-get install mrtrix3 (or conda install -c mrtrix3 mrtrix3), or --engine dipy",
        )
    _check_scripts()
    return Mrtrix3Engine(version=mrtrix3_version("mrinfo"))


def _check_scripts() -> None:
    """Refuse an installation whose Python scripts cannot run, before hours of other work.

    Debian's package does not ask for the part of Python's library that they import.
    """
    try:
        run(["dwi2response", "-version"], folder=Path("/"))
    except BsymError as error:
        raise InputMissingError(
            f"MRtrix3 is installed, but its scripts cannot be run: {error}",
            hint="they need all of Python's library: apt-get install python3-distutils "
            "(or --engine dipy)",
        ) from error


@dataclass(frozen=True)
class Mrtrix3Engine:
    """MRtrix3 as an `Engine`: CSD, iFOD2 with anatomical constraints, SIFT2."""

    version: str
    name: str = "mrtrix3"
    has_weights: bool = True

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
        fit = _Fit(dwi, preset, work, threads)
        gradients, notes = fit.gradients()
        modelled = choose_volumes(
            gradients,
            several_shells=preset.mrtrix3.fod != "csd",
            lmax=preset.lmax,
            name=dwi.image,
        )
        fa = fit.fa(gradients)
        fod, details = fit.fod(gradients, modelled)
        files = {"fod": str(fod), **fit.bounds(placed, fa)}
        details |= {
            "ModelledShells": [round(b) for b in modelled.shells],
            "Directions": modelled.n_directions,
            "SphericalHarmonicsOrder": modelled.lmax,
            "AnatomicallyConstrained": placed.tissue is not None,
            "Sift2": preset.sift2,
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
        """Track one batch with iFOD2; see `Engine`."""
        run(
            _tckgen(model, preset, n_streamlines, out),
            folder=out.parent,
            env={"MRTRIX_RNG_SEED": str(seed % 2**32)},
        )
        count = read_tck_header(out).count
        if count != n_streamlines:
            raise BadDataError(
                f"{model.files['fod']}: MRtrix3 found {count} of {n_streamlines} streamlines in "
                f"{n_streamlines * preset.seeds_per_streamline} seeds",
                hint="see that mask, tissue and gradients are right; a preset file of your own can "
                "lower min_length or cutoff, or raise seeds_per_streamline",
            )
        return out

    def streamline_weights(
        self, model: FittedModel, tracks: Path, work: Path
    ) -> NDArray[np.float32] | None:
        """Weight streamlines by SIFT2 (Smith et al. 2015, doi:10.1016/j.neuroimage.2015.06.092)."""
        if not model.details["Sift2"]:
            return None
        weights, mu = work / "sift2.txt", work / "sift2_mu.txt"
        tissue = model.files.get("tissue")
        command = ["tcksift2", tracks, model.files["fod"], weights, "-out_mu", mu]
        command += ["-act", tissue] if tissue else []
        # Deconvolution with one response takes what grey matter gives for fibres as well.
        command += ["-fd_scale_gm"] if tissue and model.details["Tissues"] == ["wm"] else []
        # Not "-nthreads 0" as elsewhere: it then leaves all weights at 1, without an error (3.0.3).
        try:
            run([*command, "-nthreads", "1", "-quiet", "-force"], folder=work)
            values = np.loadtxt(weights, dtype=np.float64, ndmin=1)
            return (values * float(np.loadtxt(mu))).astype(np.float32)
        finally:
            weights.unlink(missing_ok=True)
            mu.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Fit:
    """The commands of one fit."""

    dwi: PreparedDwi
    preset: Preset
    work: Path
    threads: int

    def _run(self, *command: str | Path, several_threads: bool = False) -> None:
        threads = ("-nthreads", str(self.threads)) if several_threads else _ONE_THREAD
        run([*command, *threads, "-quiet", "-force"], folder=self.work)

    def gradients(self) -> tuple[Gradients, list[str]]:
        n_volumes = int(nib.load(self.dwi.image).shape[3])
        return read_gradients(Path(self.dwi.bval), Path(self.dwi.bvec), n_volumes)

    def _import(
        self, gradients: Gradients, volumes: NDArray[np.intp], voxel_size: float | None
    ) -> tuple[Path, Path]:
        """Write chosen volumes with their gradients as MRtrix3 reads them fastest."""
        image, mask, out = (self.work / name for name in ("series.nii", "mask.nii", "series.mif"))
        bval, bvec = self.work / "series.bval", self.work / "series.bvec"
        write_fitted_series(self.dwi, brain_grid(self.dwi, voxel_size), volumes, image, mask)
        write_gradients(gradients.take(volumes), bval, bvec)
        self._run("mrconvert", image, out, "-fslgrad", bvec, bval, "-strides", "0,0,0,1")
        for path in (image, bval, bvec):
            path.unlink()
        return out, mask

    def fa(self, gradients: Gradients) -> Path:
        """Fit the tensor to the lower shells and return the image of its anisotropy."""
        series, mask = self._import(gradients, tensor_volumes(gradients), None)
        tensor, out = self.work / "tensor.mif", self.work / "fa.nii"
        self._run("dwi2tensor", series, tensor, "-mask", mask, several_threads=True)
        self._run("tensor2metric", tensor, "-fa", out, "-mask", mask)
        series.unlink()
        tensor.unlink()
        return out

    def fod(self, gradients: Gradients, modelled: Modelled) -> tuple[Path, dict[str, Any]]:
        """Estimate responses and deconvolve."""
        voxel_size = self.preset.voxel_size
        series, mask = self._import(gradients, modelled.volumes, voxel_size)
        several = self.preset.mrtrix3.fod == "msmt_csd" or modelled.is_multi_shell
        responses, algorithm = self._responses(series, mask, modelled, several)
        deconvolve = self._msmt_csd if several else self._csd
        fod, tissues = deconvolve(series, mask, responses, modelled)
        details = {
            "ResponseAlgorithm": algorithm,
            "Responses": {
                name: np.loadtxt(path, ndmin=2).tolist() for name, path in responses.items()
            },
            "DeconvolutionAlgorithm": "msmt_csd" if several else "csd",
            "Tissues": list(tissues),
            "FittedVoxelSize": [float(size) for size in nib.load(mask).header.get_zooms()[:3]],
        }
        for path in (series, mask, *responses.values()):
            path.unlink()
        return fod, details

    def _responses(
        self, series: Path, mask: Path, modelled: Modelled, several: bool
    ) -> tuple[dict[str, Path], str]:
        """Estimate the signal of one fibre, and that of grey matter and CSF."""
        algorithm = _response_algorithm(self.preset.mrtrix3, several)
        names = ("wm", "gm", "csf") if algorithm == "dhollander" else ("wm",)
        out = {name: self.work / f"response_{name}.txt" for name in names}
        limit = [] if algorithm == "dhollander" else ["-lmax", str(modelled.lmax)]
        command = ["dwi2response", algorithm, series, *out.values(), "-mask", mask, *limit]
        try:
            self._run(*command, "-scratch", self.work)
        except BsymError as error:
            if type(error) is not BsymError:
                raise
            raise BadDataError(
                f"{self.dwi.image}: no response of a single fibre can be estimated: {error}",
                hint=f"see that {self.dwi.mask} covers the brain, and that the series is one of "
                "diffusion-weighted volumes of a brain",
            ) from error
        for name, path in out.items():
            _round_response(path)
            _check_response(path, self.dwi.image, is_fibre=name == "wm")
        return out, algorithm

    def _csd(
        self, series: Path, mask: Path, responses: dict[str, Path], modelled: Modelled
    ) -> tuple[Path, tuple[str, ...]]:
        """Deconvolve one shell with one response (Tournier et al. 2007)."""
        fod, response = self.work / "fod.mif", self.work / "response_shell.txt"
        # Of responses of several tissues, the first row belongs to b0.
        np.savetxt(response, np.loadtxt(responses["wm"], ndmin=2)[-1:])
        order = ("-lmax", str(modelled.lmax))
        self._run(
            *("dwi2fod", "csd", series, response, fod, "-mask", mask, *order), several_threads=True
        )
        response.unlink()
        return fod, ("wm",)

    def _msmt_csd(
        self, series: Path, mask: Path, responses: dict[str, Path], modelled: Modelled
    ) -> tuple[Path, tuple[str, ...]]:
        """Deconvolve several tissues (Jeurissen et al. 2014) and level their sum."""
        tissues = _TISSUES[modelled.is_multi_shell]
        raw = {name: self.work / f"raw_{name}.mif" for name in tissues}
        level = {name: self.work / f"level_{name}.mif" for name in tissues}
        pairs = [path for name in tissues for path in (responses[name], raw[name])]
        order = ",".join([str(modelled.lmax), *["0"] * (len(tissues) - 1)])
        self._run(
            *("dwi2fod", "msmt_csd", series, *pairs, "-mask", mask, "-lmax", order),
            several_threads=True,
        )
        both = [path for name in tissues for path in (raw[name], level[name])]
        self._run("mtnormalise", *both, "-mask", mask)
        for path in (*raw.values(), *list(level.values())[1:]):
            path.unlink()
        return level["wm"].rename(self.work / "fod.mif"), tissues

    def bounds(self, placed: PlacedAnatomy, fa: Path) -> dict[str, str]:
        """Lay out where streamlines begin and end."""
        if placed.tissue is None:
            mask = write_fa_mask(fa, self.preset, self.work / "tracking_mask.nii")
            starts = write_fa_seeds(fa, self.preset, self.work / "seeds.nii")
            return {"mask": str(mask), "seeds": str(starts)}
        seeds = self.work / "interface.nii"
        self._run("5tt2gmwmi", placed.tissue, seeds)
        if not np.asanyarray(nib.load(seeds).dataobj).any():
            raise BadDataError(
                f"{placed.tissue}: no border of grey and white matter, so that no streamline can "
                "begin",
                hint="see that the tissues are those of a brain",
            )
        return {"tissue": placed.tissue, "seeds": str(seeds)}


def _response_algorithm(parameters: Mrtrix3Parameters, several: bool) -> str:
    if several:  # the only one that gives responses of several tissues without a T1w image
        return "dhollander"
    return "tournier" if parameters.response == "auto" else parameters.response


def _round_response(path: Path) -> None:
    """Round the numbers of a response, and keep the comments, which name its shells."""
    lines = path.read_text("utf-8").splitlines()
    rounded = [
        line if line.startswith("#") else " ".join(f"{float(w):.{_DIGITS}g}" for w in line.split())
        for line in lines
    ]
    path.write_text("\n".join(rounded) + "\n", "utf-8")


def _check_response(path: Path, series: str, *, is_fibre: bool) -> None:
    """See that a response is one: signal in each shell, and less of it along a fibre."""
    rows = np.loadtxt(path, ndmin=2)
    good = np.isfinite(rows).all() and (rows[:, 0] > 0).all()
    if good and is_fibre:
        good = rows[-1, 1] < -_LEAST_CONTRAST * rows[-1, 0]
    if not good:
        raise BadDataError(
            f"{series}: the response estimated of it makes no sense ({path.name}: {rows.tolist()})",
            hint="see that mask and gradients belong to the series",
        )


def _tckgen(model: FittedModel, preset: Preset, n_streamlines: int, out: Path) -> list[Any]:
    """Return the command that tracks one batch."""
    constrained = "tissue" in model.files
    cutoff = preset.mrtrix3.cutoff * (1 if constrained else 2)
    command = ["tckgen", model.files["fod"], out, "-algorithm", "iFOD2"]
    if constrained:
        command += ["-act", model.files["tissue"], "-backtrack"]
        command += ["-seed_gmwmi", model.files["seeds"]]
    else:
        command += ["-seed_image", model.files["seeds"], "-mask", model.files["mask"]]
    command += ["-select", n_streamlines, "-seeds", n_streamlines * preset.seeds_per_streamline]
    command += ["-minlength", preset.min_length, "-maxlength", preset.max_length]
    step = preset.mrtrix3.step * float(np.prod(model.details["FittedVoxelSize"])) ** (1 / 3)
    command += ["-step", step, "-angle", preset.mrtrix3.angle, "-cutoff", cutoff]
    return [*map(str, command), *_ONE_THREAD, "-quiet", "-force"]

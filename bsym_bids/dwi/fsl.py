"""FSL's eddy and topup through MRtrix3's dwifslpreproc, where they are installed.

None of it is needed: `bsym_bids.dwi.motion` does without, but then distortions stay.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from bsym_bids.bold.volumes import stream
from bsym_bids.dwi.commands import find_command, run
from bsym_bids.dwi.gradients import read_gradients, write_gradients
from bsym_bids.dwi.series import (
    Run,
    Series,
    SeriesWriter,
    map_volumes,
    read_volumes,
    with_image,
)
from bsym_bids.errors import BadDataError
from bsym_bids.inputs.records import DwiImage

#: Names of eddy that dwifslpreproc looks for.
EDDY_NAMES = ("eddy_cuda", "eddy_openmp", "eddy_cpu", "eddy", "fsl5.0-eddy")
#: Replace outlier slices; a linear second-level model helps where there are few directions.
EDDY_OPTIONS = "--repol --slm=linear"
#: Seconds, where no sidecar says the readout time; only ratios between series matter.
ANY_READOUT_TIME = 0.1
#: Volumes of the opposite phase encoding that topup gets; more only cost time.
MOST_REVERSE = 3
_AXES = {"i": 0, "j": 1, "k": 2}


@dataclass(frozen=True)
class Fsl:
    """An installation of FSL.

    Attributes
    ----------
    folder : Path
        Its FSLDIR.
    eddy : str
        Name of its eddy.
    topup : bool
        Whether distortions can be corrected too.
    """

    folder: Path
    eddy: str
    topup: bool

    @property
    def version(self) -> str:
        """Its version, or ``unknown``."""
        try:
            return (self.folder / "etc" / "fslversion").read_text("utf-8").strip()
        except OSError:
            return "unknown"

    def corrects_distortions(self, images: Iterable[DwiImage]) -> bool:
        """Tell whether topup takes part: two phase encodings measure distortions, one does not."""
        known = {image.phase_encoding for image in images} - {None}
        return self.topup and len(known) > 1


def choose_fsl(images: Sequence[DwiImage]) -> tuple[Fsl | None, list[str]]:
    """Return FSL where it is installed and can be used for a scan, and notes on why not.

    eddy models the distortions of every volume along its phase encoding, so that it has to know
    that of all.

    Parameters
    ----------
    images : sequence of DwiImage
        The series of the scan, without those that only serve to measure distortions.

    Returns
    -------
    fsl : Fsl or None
        None where it is not used.
    notes : list of str
        Why not.
    """
    fsl = find_fsl()
    if fsl is None:
        return None, [
            "FSL is not on the PATH: motion and eddy currents were corrected by registration, "
            "distortions of the field were not corrected."
        ]
    unknown = [image.image.name for image in images if image.phase_encoding is None]
    if unknown:
        return None, [
            f"FSL was not used: the sidecar of {unknown[0]} has no PhaseEncodingDirection."
        ]
    return fsl, []


def find_fsl() -> Fsl | None:
    """Return FSL where eddy is on the PATH, together with MRtrix3's dwifslpreproc."""
    eddies = [name for name in EDDY_NAMES if find_command(name)] or _cuda_versions()
    if not eddies or not find_command("dwifslpreproc"):
        return None
    named = os.environ.get("FSLDIR")
    folder = Path(named) if named else find_command(eddies[0]).resolve().parent.parent
    config = folder / "etc" / "flirtsch" / "b02b0.cnf"
    topup = all(map(find_command, ("topup", "applytopup"))) and config.is_file()
    return Fsl(folder, eddies[0], topup)


def _cuda_versions() -> list[str]:
    """Return names such as eddy_cuda10.2 on the PATH."""
    folders = [Path(f) for f in os.environ.get("PATH", "").split(os.pathsep) if os.path.isdir(f)]
    return sorted(p.name for folder in folders for p in folder.glob("eddy_cuda*"))


def correct_with_fsl(
    series: Series, reverse: Sequence[Run], fsl: Fsl, work: Path, *, threads: int
) -> Series:
    """Correct motion and eddy currents, and distortions where two phase encodings are there.

    Parameters
    ----------
    series : Series
        Denoised; every source says its phase encoding.
    reverse : sequence of Run
        Series of another phase encoding that only serve to measure distortions.
    fsl : Fsl
        From `find_fsl`.
    work : Path
        Work folder.
    threads : int
        Threads of eddy. FSL does not promise the same result for another number.

    Returns
    -------
    Series
        Volumes may have become fewer: two that differ in phase encoding alone become one.

    Raises
    ------
    BsymError
        A command failed.
    """
    folder = work / "fsl"
    shutil.rmtree(folder, ignore_errors=True)  # of an interrupted run
    folder.mkdir()
    write_gradients(series.gradients, folder / "in.bval", folder / "in.bvec")
    every = [*series.sources, *(one.source for one in reverse)]
    guessed = None in [source.readout_time for source in every]
    command = ["dwifslpreproc", "dwi.mif", "out.nii"]
    with_topup = fsl.corrects_distortions(every)
    image = _of_even_size(series.image, folder / "even.nii") if with_topup else series.image
    convert = ["mrconvert", image, "dwi.mif", "-fslgrad", "in.bvec", "in.bval"]
    if with_topup:
        _write_table(folder / "dwi.pe", series.sources, guessed=guessed)
        convert += ["-import_pe_table", "dwi.pe"]
        command += ["-rpe_header"]
        if reverse:
            _write_reverse(reverse, folder, guessed=guessed)
            command += ["-se_epi", "se_epi.mif", "-align_seepi"]
    else:
        first = series.sources[0]
        readout = ANY_READOUT_TIME if guessed else first.readout_time
        command += ["-rpe_none", "-pe_dir", str(first.phase_encoding)]
        command += ["-readout_time", f"{readout:g}"]
    command += ["-eddy_options", f" {EDDY_OPTIONS}", "-eddyqc_text", "quality"]
    command += ["-export_grad_fsl", "out.bvec", "out.bval", "-scratch", "scratch"]
    command += ["-nthreads", str(threads if threads > 1 else 0)]
    run([*convert, "-quiet"], folder=folder)
    environment = {
        "FSLDIR": str(fsl.folder),
        "FSLOUTPUTTYPE": "NIFTI_GZ",
        "OMP_NUM_THREADS": str(threads),
    }
    run(command, folder=folder, env=environment)
    _cut(folder / "out.nii", nib.load(series.image).shape)
    return _result(series, fsl, folder, command, with_topup=with_topup, guessed=guessed)


def _result(
    series: Series,
    fsl: Fsl,
    folder: Path,
    command: Sequence[str],
    *,
    with_topup: bool,
    guessed: bool,
) -> Series:
    image = folder / "out.nii"
    count = nib.load(image).shape[3]
    gradients, _ = read_gradients(folder / "out.bval", folder / "out.bvec", count)
    what = "eddy and topup" if with_topup else "eddy, without topup"
    notes = [f"FSL {fsl.version} ({what}, by dwifslpreproc) corrected motion and eddy currents."]
    if with_topup and guessed:
        notes.append("No readout time is known for all series; they were taken as the same.")
    if count < len(series.gradients):
        notes.append(
            f"{len(series.gradients)} volumes became {count}: pairs that differ only in phase "
            "encoding were combined."
        )
    details: dict[str, Any] = {
        "Tool": "dwifslpreproc",
        "Version": fsl.version,
        "Command": list(command),
        "SusceptibilityCorrected": with_topup,
        **_movement(folder / "quality" / "eddy_movement_rms"),
    }
    sources = series.sources[:count]
    moved = with_image(series, image, MotionCorrection=details)
    return Series(image, gradients, sources, [*moved.notes, *notes], moved.details)


def _margin(shape: Sequence[int]) -> list[tuple[int, int]]:
    """Return how many voxels to add to each axis for even numbers, which topup needs.

    dwifslpreproc adds them too, but up to MRtrix3 3.0.3 it may lose the gradients over it
    (https://github.com/MRtrix3/mrtrix3/pull/2382).
    """
    return [(0, size % 2) for size in shape[:3]]


def _of_even_size(image: Path, out: Path) -> Path:
    """Return a series whose axes have even numbers of voxels, the last ones twice if need be."""
    data = read_volumes(image)
    margin = _margin(data.shape)
    if not np.any(margin):
        return image
    volumes = (np.pad(data[..., v], margin, mode="edge") for v in range(data.shape[3]))
    map_volumes(image, out, volumes, np.add(data.shape[:3], np.sum(margin, axis=1)).tolist())
    return out


def _cut(image: Path, shape: Sequence[int]) -> None:
    """Cut off what `_of_even_size` added, in place."""
    data = read_volumes(image)
    if data.shape[:3] == tuple(shape[:3]):
        return
    inner = tuple(slice(size) for size in shape[:3])
    whole = image.with_name("whole.nii")
    image.rename(whole)
    data = read_volumes(whole)
    map_volumes(whole, image, (data[..., v][inner] for v in range(data.shape[3])), shape[:3])
    whole.unlink()


def _movement(table: Path) -> dict[str, float]:
    """Return eddy's own measures: root mean squared displacement from the first, and stepwise."""
    if not table.is_file():
        return {}
    values = np.loadtxt(table, ndmin=2)
    return {
        "MeanDisplacementMm": round(float(values[:, 0].mean()), 3),
        "MaxDisplacementMm": round(float(values[:, 0].max()), 3),
        "MeanFramewiseDisplacementMm": round(float(values[1:, 1].mean()), 3),
    }


def _write_reverse(reverse: Sequence[Run], folder: Path, *, guessed: bool) -> None:
    """Write the first volumes without weighting of the reversed series, as se_epi.mif."""
    parts = []
    for number, one in enumerate(reverse):
        chosen = np.flatnonzero(one.gradients.is_b0)[:MOST_REVERSE]
        if not len(chosen):
            raise BadDataError(
                f"{one.source.image}: no volume without diffusion weighting, so that distortions "
                "cannot be measured with it",
                "leave it out with a BIDS filter",
            )
        image = folder / f"reverse{number}.nii"
        shape, margin = one.layout.shape, _margin(one.layout.shape)
        even = np.add(shape, np.sum(margin, axis=1)).tolist()
        with SeriesWriter(image, even, one.layout.affine) as writer:
            for index, stored in enumerate(stream(one.layout)):
                if index in chosen:
                    volume = np.nan_to_num(one.layout.values(stored)).reshape(shape, order="F")
                    writer.append(np.pad(volume, margin, mode="edge"))
                if index == chosen[-1]:
                    break
        table = folder / f"reverse{number}.pe"
        _write_table(table, [one.source] * len(chosen), guessed=guessed)
        parts.append(folder / f"reverse{number}.mif")
        command = ["mrconvert", image, parts[-1], "-import_pe_table", table, "-quiet"]
        run(command, folder=folder)
    if len(parts) == 1:
        parts[0].rename(folder / "se_epi.mif")
    else:
        run(["mrcat", *parts, "se_epi.mif", "-axis", "3", "-quiet"], folder=folder)


def _write_table(path: Path, sources: Sequence[DwiImage], *, guessed: bool) -> None:
    """Write a phase encoding per volume as MRtrix3 reads it: three axes, readout time."""
    lines = []
    for source in sources:
        axes = ["0", "0", "0"]
        encoding = str(source.phase_encoding)
        axes[_AXES[encoding[0]]] = "-1" if encoding.endswith("-") else "1"
        readout = ANY_READOUT_TIME if guessed else source.readout_time
        lines.append(" ".join([*axes, f"{readout:g}"]))
    path.write_text("\n".join(lines) + "\n", "utf-8")

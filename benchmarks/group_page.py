"""What the page of all participants costs: the first time, again, and after one has changed.

    python benchmarks/group_page.py [--participants 1000] [--keep FOLDER]

writes the quality files of invented participants, a BOLD run and a diffusion scan each, some of
them bad, and makes the page three times, each in a process of its own. Tables that are alike are
links to one file, so that this takes little space. With ``--keep`` dataset and page stay.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from measure import Cost, measure, timed

from bsym_bids import atlas
from bsym_bids.outputs.names import RunNames, ScanNames, sidecar_of, study_page
from bsym_bids.outputs.tables import Content, Json, Table
from bsym_bids.reports.group_page import write_group_page

SPACE = "MNI152NLin2009cAsym"
_SHARED = "shared"  # hidden from the dataset: what participants are linked to
WARNING = (
    "bsym-sim-v1 was trained on simulated people alone: what it reconstructs is a prior about "
    "average people, not evidence about a person."
)
VERDICTS = {
    "in domain": "R2 of held-out ROIs 0.49, under permuted ROI labels 0.03: gain 0.46, beside 0.41",
    "doubtful": "R2 of held-out ROIs 0.24, under permuted ROI labels 0.03: gain 0.21, beside 0.41",
    "out of domain": "R2 of held-out ROIs 0.05, under permuted ROI labels 0.03: gain 0.02, which "
    "is below 0.05",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--participants", type=int, default=1000)
    parser.add_argument("--keep", type=Path, help="a new folder for the dataset")
    parser.add_argument("--task", choices=("page",), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        timed(lambda: write_group_page(arguments.folder / "out", arguments.folder / "work"))
    elif arguments.keep:
        compare(arguments.participants, arguments.keep)
    else:
        with tempfile.TemporaryDirectory() as folder:
            compare(arguments.participants, Path(folder))


def compare(n: int, folder: Path) -> None:
    out = folder / "out"
    Cohort(out).write(n)
    costs = [run_page(folder), run_page(folder)]
    changed = next(out.glob("sub-*/func/*_desc-run_qc.tsv"))
    text = changed.read_text()
    changed.unlink()
    changed.write_text(text.replace("\n300\t", "\n299\t"))
    costs.append(run_page(folder))
    said = ("first", "again", "after one participant changed")
    for what, cost in zip(said, costs, strict=True):
        print(f"{n} participants, {what}: {cost.seconds:.1f} s, {cost.megabytes:.0f} MB")
    print(f"page: {study_page(out).stat().st_size / 1e6:.1f} MB")


def run_page(folder: Path) -> Cost:
    return measure(Path(__file__), "page", "--folder", str(folder))


class Cohort:
    """Quality files of invented participants, below a folder."""

    def __init__(self, out: Path, seed: int = 0) -> None:
        self.out, self.draw = out, np.random.default_rng(seed)
        self._shared: dict[str, Path] = {}

    def write(self, n: int) -> None:
        """Write participants 0001, ...; one in ten moves, and others are bad in other ways."""
        for number in range(1, n + 1):
            label = f"{number:04d}"
            kind = int(self.draw.integers(30))
            self.write_run(label, kind)
            if kind != 5:  # a participant without a diffusion scan
                self.write_scan(label, kind)
            (self.out / f"sub-{label}.html").write_text("<!DOCTYPE html><title>report</title>")
        self.write_summary(n)

    def write_run(self, label: str, kind: int) -> None:
        """Write what there is of a BOLD run; `kind` says what is bad about it."""
        names = RunNames(self.out, {"sub": label, "task": "rest"}, SPACE)
        fd = float(self.draw.lognormal(-1.9, 0.35)) * (4 if kind < 3 else 1)
        n_censored = int(min(260, 300 * max(0.0, fd - 0.15)))
        n_rois = 450 - int(self.draw.poisson(2)) - (40 if kind == 3 else 0)
        quality = {
            "n_volumes": 300,
            "repetition_time": 2.0,
            "duration": 600.0,
            "fd_mean": None if kind == 4 else fd,
            "fd_max": None if kind == 4 else fd * float(self.draw.uniform(3, 12)),
            "n_censored": n_censored,
            "percent_censored": n_censored / 3,
            "n_regressors": 26,
            "degrees_of_freedom": max(8, 270 - n_censored),
            "n_rois": n_rois,
            "tsnr_median": float(self.draw.normal(110, 18)) * (0.25 if kind == 6 else 1),
            "fc_mean_absolute": float(self.draw.normal(0.2, 0.02)),
            "fd_dvars_correlation_raw": float(self.draw.normal(0.3, 0.15)),
            "fd_dvars_correlation_cleaned": float(self.draw.normal(0.05, 0.12)),
            "fd_global_change_correlation_raw": float(self.draw.normal(0.2, 0.15)),
            "fd_global_change_correlation_cleaned": float(self.draw.normal(0.05, 0.1)),
        }
        settings = {
            "ParcelMethod": "mean",
            "NuisanceStrategy": {"name": "36p" if kind == 7 else "24p-wm-csf"},
            "FDThreshold": 0.5,
        }
        sidecar = {"SpatialReference": SPACE, "TimeSeriesSettings": settings}
        self._put(names.path("run_quality"), row(quality), sidecar)
        missing = 26 if kind == 3 else 0
        self._link(names.path("coverage"), f"coverage{missing}", coverage(missing), sidecar)
        self._link(names.path("censoring"), "censoring", self.censoring(), sidecar)
        self._link(names.path("denoised"), "denoised", Table({"x": [1.0]}), sidecar)
        verdict = {8: "out of domain", 9: "doubtful"}.get(kind, "in domain")
        r2 = {8: 0.05, 9: 0.24}.get(kind, 0.49) + float(self.draw.normal(0, 0.02))
        self._put(names.path("reconstruction_networks"), reconstruction(r2), of_model(verdict))
        if kind != 5:
            self._link(names.path("gate"), "gate", gate(), sidecar)

    def write_scan(self, label: str, kind: int) -> None:
        """Write what there is of a diffusion scan; `kind` says what is bad about it."""
        names = ScanNames(self.out, {"sub": label})
        motion = float(self.draw.lognormal(-0.9, 0.3)) * (5 if kind == 10 else 1)
        assigned = int(self.draw.normal(195_000, 8_000))
        quality = {
            "streamlines": 260_000,
            "assigned": assigned,
            "assigned_share": assigned / 260_000,
            "sampling_reliability": 0.85 if kind == 11 else float(self.draw.uniform(0.95, 0.96)),
            "density": float(self.draw.normal(0.38, 0.02)),
            "absent_rois": 30 if kind == 12 else 0,
            "rois_without_streamlines": int(self.draw.poisson(2)),
            "mean_length": float(self.draw.normal(94, 3)),
            "registration": "poor" if kind == 13 else "good",
            "mean_translation": motion,
            "mean_rotation": motion * 0.8,
            "gradient_check": "corrected" if kind == 14 else "none",
        }
        self._put(names.path("scan_quality"), row(quality), self.scan_sidecar(kind, motion))
        self._link(names.path("rois"), "rois", rois(), {"SpatialReference": "orig"})
        self._link(names.path("count"), "count", Table({"x": [1.0]}), {})
        self._put(names.path("edge_quality"), self.edges(), of_model("in domain"))

    def scan_sidecar(self, kind: int, motion: float) -> dict[str, Any]:
        """Return what sidecars say of a scan."""
        poor = "Registration is flagged as poor: the brain masks of series and T1w overlap little "
        note = f"{poor}(0.79, at least 0.85 is usual). Look at the atlas over the b0 first."
        return {
            "SpatialReference": "orig",
            "ConnectomeSettings": {"Engine": "mrtrix3", "Preset": {"name": "fast"}},
            "Preprocessing": {
                "NumberOfVolumesByB": {"0": 6, "1000": 64},
                "NumberOfVolumesLeftOut": 0,
                "MotionCorrection": {
                    "Tool": "SimpleITK",
                    "MaxTranslationMm": 3 * motion,
                    "MaxRotationDegrees": 2 * motion,
                    "MeanFramewiseDisplacementMm": motion,
                },
                "BrainMask": {"VolumeMl": float(self.draw.normal(1450, 110))},
                "SignalToNoiseB0": float(self.draw.normal(34, 4)) * (0.4 if kind == 15 else 1),
                "TemporalSignalToNoiseB0": float(self.draw.normal(22, 3)),
                "GradientCheck": {"Ratio": 1.0, "Action": "none"},
            },
            "Anatomy": {
                "BrainVolumeMl": float(self.draw.normal(1500, 110)),
                "ROIsCut": [],
                "RegistrationQuality": {
                    "MutualInformation": float(self.draw.normal(0.6, 0.05)),
                    "MaskDice": 0.79 if kind == 13 else float(self.draw.normal(0.96, 0.005)),
                    "TemplateMutualInformation": float(self.draw.normal(1.1, 0.1)),
                    "TemplateMaskDice": float(self.draw.normal(0.97, 0.004)),
                    "CorticalROIsInGrey": float(self.draw.normal(0.74, 0.02)),
                },
            },
            "FibreOrientations": {"Directions": 64, "SphericalHarmonicsOrder": 8},
            "Tracking": {
                "ShareOfEndsWithoutROI": 0.15,
                "SamplingRule": {"StoppedBy": "reliability"},
            },
            "Notes": [note] if kind == 13 else [],
        }

    def edges(self) -> Table:
        """Return scores of hidden edges."""
        scores = {f"{way}{s}": 0.3 for way in ("", "permuted_", "group_") for s in ("r2", "mae")}
        scores |= {"rho": float(self.draw.normal(0.5, 0.03)), "permuted_rho": 0.05}
        scores["group_rho"] = float(self.draw.normal(0.4, 0.03))
        return row({"n_edges": int(self.draw.normal(38_000, 900)), **scores})

    def censoring(self) -> Table:
        """Return displacements, the same for everyone."""
        fd = self.draw.lognormal(-2, 0.5, 300)
        return Table({"framewise_displacement": fd, "censored": fd > 0.5})

    def write_summary(self, n: int) -> None:
        """Say that all is done, but for the last two."""
        lines = ["participant\trun\tstatus\treason\thint\tmodel_domain"]
        for number in range(1, n + 1):
            run = f"sub-{number:04d}_task-rest_space-{SPACE}"
            lines.append(f"{number:04d}\t{run}\tdone\tn/a\tn/a\tin domain")
        missing = f"{n + 1:04d}\tn/a\tfailed\tsub-{n + 1:04d}_task-rest_bold.json: no such file"
        short = f"{n + 2:04d}\tsub-{n + 2:04d}_task-rest_space-{SPACE}\tfailed\t150 frames are "
        lines.append(f"{missing}\tsee that fMRIPrep came to its end\tn/a")
        lines.append(f"{short}fewer than a window has\tleave the run out\tn/a")
        logs = self.out / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        (logs / "20260101T000000_00000000_summary.tsv").write_text("\n".join(lines) + "\n")

    def _put(self, path: Path, content: Content, sidecar: Mapping[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        content.write(path)
        Json(sidecar).write(sidecar_of(path))

    def _link(self, path: Path, name: str, content: Content, sidecar: Mapping[str, Any]) -> None:
        if name not in self._shared:
            folder = self.out.parent / _SHARED
            folder.mkdir(parents=True, exist_ok=True)
            self._shared[name] = folder / f"{name}{path.suffix}"
            self._put(self._shared[name], content, sidecar)
        for source, target in (
            (self._shared[name], path),
            (sidecar_of(self._shared[name]), sidecar_of(path)),
        ):
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(source, target)


def row(values: Mapping[str, Any]) -> Table:
    return Table({key: [value] for key, value in values.items()})


def coverage(missing: int) -> Table:
    """Return a table of coverage that lacks so many ROIs of a network."""
    networks = np.array(atlas.networks())
    share = np.full(atlas.N_ROIS, 0.98)
    share[np.flatnonzero(networks == "Limbic")[:missing]] = 0.1
    return Table(
        {
            "name": atlas.roi_names(),
            "network": networks.tolist(),
            "coverage": share,
            "n_voxels": np.full(atlas.N_ROIS, 98),
            "n_voxels_expected": np.full(atlas.N_ROIS, 100),
            "included": share >= 0.5,
        }
    )


def rois() -> Table:
    return Table(
        {
            "name": atlas.roi_names(),
            "network": atlas.networks(),
            "volume": np.linspace(200, 3000, atlas.N_ROIS),
            "streamlines": np.arange(atlas.N_ROIS),
            "present": np.ones(atlas.N_ROIS, dtype=bool),
        }
    )


def gate() -> Table:
    return Table(
        {
            "name": atlas.roi_names(),
            "network": atlas.networks(),
            "gate": np.linspace(0.4, 0.7, atlas.N_ROIS),
        }
    )


def reconstruction(r2: float) -> Table:
    scores = {"r2": r2, "rho": 0.7, "mae": 0.42, "permuted_r2": 0.03, "permuted_rho": 0.28}
    scores |= {"permuted_mae": 0.59, "linear_r2": 0.5, "linear_rho": 0.71, "linear_mae": 0.42}
    scores |= {"linear_permuted_r2": 0.03, "linear_permuted_rho": 0.28, "linear_permuted_mae": 0.59}
    table = {"network": ["Vis", "all"], "n_rois": [63, 450]}
    return Table({**table, **{key: [value, value] for key, value in scores.items()}})


def of_model(verdict: str) -> dict[str, Any]:
    return {
        "Model": {"Name": "bsym-sim-v1", "Trained": True},
        "ModelDomain": {"Verdict": verdict, "Reason": VERDICTS[verdict]},
        "Warning": WARNING,
        "ModelContractDeviations": [],
        "WindowOnsets": [80.0 * window for window in range(6)],
        "WindowsLeftOut": 0,
        "MissingROIs": [],
        "DepthFactor": 2.5,
    }


if __name__ == "__main__":
    main()

"""Runs and scans that do not exist, and what the real writers say of them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bsym_bids import atlas
from bsym_bids.bold.cleaning import CleanedRun
from bsym_bids.bold.nuisance import load_strategy
from bsym_bids.bold.parcellate import Parcellation
from bsym_bids.bold.windows import WINDOW_LENGTH, Windows
from bsym_bids.config import RunConfig
from bsym_bids.dwi.connectome import Connectome
from bsym_bids.dwi.records import FittedModel, PlacedAnatomy, PreparedDwi
from bsym_bids.inputs.records import BoldRun, Derivatives, DwiImage, DwiScan
from bsym_bids.jobs import RunJob, ScanJob, ScanSettings, Settings
from bsym_bids.model.embed import FunctionalEmbedding
from bsym_bids.model.reconstruction import ReconstructionQuality
from bsym_bids.model.structural_embedding import ConnectomeInput, StructuralEmbedding
from bsym_bids.model.weights import resolve_release
from bsym_bids.outputs.connectome import write_connectome
from bsym_bids.outputs.embedding import write_embedding
from bsym_bids.outputs.names import RunNames, ScanNames, sidecar_of
from bsym_bids.outputs.structural import write_structural
from bsym_bids.outputs.timeseries import write_timeseries
from bsym_bids.simulation.dataset import NOTICE, SPACE

REPETITION_TIME = 2.0  # s
ASSIGNED_SHARE, RELIABILITY = 0.75, 0.95  # of streamlines, and of their counts
_STAND_IN = "standin"  # participant and task that the real writers write of
_NUISANCE = "24p-wm-csf"
_REGRESSORS = 26
_OF_RUNS = ("denoised", "connectivity", "run_quality", "embedding", "similarity", "attention")
_OF_SCANS = ("count", "rois", "scan_quality", "structural_embedding")


@dataclass(frozen=True)
class Jobs:
    """The jobs that would have made the outputs.

    Attributes
    ----------
    bids_dir, output_dir : Path
        Datasets that files would have been read from and written to.
    model : str
        Release in use.
    fd_threshold : float
        Censoring threshold, in mm.
    """

    bids_dir: Path
    output_dir: Path
    model: str
    fd_threshold: float

    def run(self, entities: Mapping[str, str]) -> RunJob:
        """Return the job of a BOLD run that fMRIPrep has preprocessed."""
        settings, _ = _settings(self.model, self.fd_threshold)
        root = self.bids_dir / "derivatives" / "fmriprep"
        folder = root / _folder(entities) / "func"
        stem = _stem(entities)
        run = BoldRun(
            entities,
            SPACE,
            folder / f"{stem}_space-{SPACE}_desc-preproc_bold.nii.gz",
            Derivatives("fmriprep", root),
            mask=folder / f"{stem}_space-{SPACE}_desc-brain_mask.nii.gz",
            confounds=folder / f"{stem}_desc-confounds_timeseries.tsv",
            repetition_time=REPETITION_TIME,
        )
        return RunJob(run, RunNames(self.output_dir, entities, SPACE), settings)

    def scan(self, entities: Mapping[str, str]) -> ScanJob:
        """Return the job of a raw diffusion scan."""
        _, settings = _settings(self.model, self.fd_threshold)
        folder = self.bids_dir / _folder(entities) / "dwi"
        stem = _stem(entities)
        files = [folder / f"{stem}_dwi.{extension}" for extension in ("nii.gz", "bval", "bvec")]
        scan = DwiScan(entities, (DwiImage(*files),), Derivatives("raw", self.bids_dir))
        return ScanJob(scan, ScanNames(self.output_dir, entities), settings)


@cache
def _settings(model: str, fd_threshold: float) -> tuple[Settings, ScanSettings]:
    release = resolve_release(model)
    here = Path()
    config = RunConfig(here, here, "participant", fd_threshold=fd_threshold, engine="dipy")
    strategy = load_strategy(_NUISANCE)
    return Settings.of(config, strategy, release), ScanSettings.of(config, release)


def _folder(entities: Mapping[str, str]) -> Path:
    return Path(*(f"{key}-{entities[key]}" for key in ("sub", "ses") if key in entities))


def _stem(entities: Mapping[str, str]) -> str:
    return "_".join(f"{key}-{value}" for key, value in entities.items())


@dataclass(frozen=True)
class StandIn:
    """What the real writers say of a run or scan of someone who stands in for everyone.

    Attributes
    ----------
    documents : str
        JSON of the sidecars by product.
    columns : mapping of str to list of str
        Columns of the tables by product.
    place : str
        Folder and start of the name of its files, as they occur in BIDS URIs.
    """

    documents: str
    columns: Mapping[str, list[str]]
    place: str

    def sidecars_of(self, job: RunJob | ScanJob) -> dict[str, dict[str, Any]]:
        """Return the sidecars of a run or scan by product; they can be changed."""
        found = json.loads(self.documents.replace(self.place, _place(job)))
        for document in found.values():
            if "TaskName" in document:
                document["TaskName"] = job.names.entities["task"]
        return found


@cache
def stand_in_run(model: str, fd_threshold: float, width: int) -> StandIn:
    """Have the real writers write a run of noise, and return what they say of it.

    Parameters
    ----------
    model : str
        Release in use.
    fd_threshold : float
        Censoring threshold, in mm.
    width : int
        Dimensions of the embedding.
    """
    with tempfile.TemporaryDirectory() as folder:
        jobs = Jobs(Path(folder, "bids"), Path(folder), model, fd_threshold)
        job = jobs.run({"sub": _STAND_IN, "task": _STAND_IN})
        _write_run(job, width)
        return _read_back(job, _OF_RUNS)


@cache
def stand_in_scan(model: str, fd_threshold: float, width: int) -> StandIn:
    """Have the real writers write an empty scan, and return what they say; see `stand_in_run`."""
    with tempfile.TemporaryDirectory() as folder:
        jobs = Jobs(Path(folder, "bids"), Path(folder), model, fd_threshold)
        job = jobs.scan({"sub": _STAND_IN})
        _write_scan(job, width)
        return _read_back(job, _OF_SCANS)


def cleaned_run(
    series: NDArray[np.float64], censored: NDArray[np.bool_], displacement: NDArray[np.float64]
) -> CleanedRun:
    """Return a cleaned run of series (T, 450), censored volumes (T,), and displacement in mm."""
    return CleanedRun(
        series,
        censored,
        REPETITION_TIME,
        displacement,
        confounds=tuple(load_strategy(_NUISANCE).columns),
        high_pass=0.008,
        low_pass=0.0,
        n_regressors=_REGRESSORS,
        degrees_of_freedom=max(1, int((~censored).sum()) - _REGRESSORS),
        notes=(NOTICE,),
    )


def _write_run(job: RunJob, width: int) -> None:
    n_rois, n_volumes = atlas.N_ROIS, 30
    rng = np.random.default_rng(0)
    series, voxels = rng.standard_normal((n_volumes, n_rois)), np.ones(n_rois, np.int64)
    seconds = REPETITION_TIME, REPETITION_TIME
    names = SPACE, "name", "mean"
    raw = Parcellation(1000 + series, np.ones(n_rois), *seconds, *names, voxels, voxels)
    cleaned = cleaned_run(series, np.zeros(n_volumes, bool), np.ones(n_volumes))
    write_timeseries(job, raw, cleaned)
    none_missing, shape = np.zeros(n_rois, bool), (1, n_rois, WINDOW_LENGTH)
    windows = Windows(
        np.zeros(shape, np.float32),
        none_missing,
        onsets=np.zeros(1, np.int64),
        censored=np.zeros((1, WINDOW_LENGTH), bool),
        repetition_time=job.settings.embedding["ModelRepetitionTime"],
    )
    embedded = rng.standard_normal((1, n_rois, width)).astype(np.float32)
    square, attention = np.eye(n_rois, dtype=np.float32), np.ones(shape, np.float32)
    embedding = FunctionalEmbedding(
        embedded, embedded[0], square, square, attention, none_missing, embedded[0], threads=1
    )
    write_embedding(job, cleaned, windows, embedding, _quality_of_a_known_run())


def _quality_of_a_known_run() -> ReconstructionQuality:
    """Return scores that a model reaches on data that it knows."""
    scores = {"r2": 0.6, "rho": 0.8, "mae": 0.4}
    scores |= {f"permuted_{name}": 0.2 for name in scores}
    scores |= {f"linear_{name}": value for name, value in scores.items()}
    by_roi = {name: np.full(atlas.N_ROIS, value) for name, value in scores.items()}
    return ReconstructionQuality(**by_roi, windows=(0,), n_folds=5, threads=1)


def _write_scan(job: ScanJob, width: int) -> None:
    n_rois, engine = atlas.N_ROIS, job.settings.engine
    zeros, ones = np.zeros((n_rois, n_rois)), np.ones(n_rois)
    image = job.names.output_dir / "image.nii.gz"
    image.touch()
    connectome = Connectome(
        counts=zeros,
        sift2=None,
        meanlength=zeros,
        meanfa=zeros,
        roi_volumes=ones,
        roi_streamlines=ones.astype(np.int64),
        curve=np.array([[1.0, RELIABILITY]]),
        sampling_reliability=RELIABILITY,
        n_streamlines=1,
        n_assigned=1,
        n_unassigned_ends=0,
    )
    dwi = PreparedDwi(*[str(image)] * 5, notes=(NOTICE,), details={})
    placed = PlacedAnatomy(str(image), details={"RegistrationQuality": {"Verdict": "good"}})
    fitted = FittedModel(engine.name, engine.version, {}, str(image))
    write_connectome(job, dwi, placed, fitted, connectome, None)
    if not job.settings.structural:
        return
    scores = {"n_edges": 1.0}
    for population, way in product(("", "edges_"), ("", "permuted_", "group_")):
        known = 0.0 if way == "permuted_" else 0.9
        scores |= {f"{population}{way}{name}": known for name in ("r2", "rho", "mae")}
    given = ConnectomeInput(zeros.astype(np.float32), np.zeros(n_rois, bool), 1.0, 1.0)
    embedded = np.zeros((n_rois, width), np.float32)
    attention = zeros.astype(np.float32)
    write_structural(job, given, StructuralEmbedding(embedded, attention, scores, threads=1))


def _read_back(job: RunJob | ScanJob, products: Sequence[str]) -> StandIn:
    """Return what was written, marked as simulated."""
    documents, columns = {}, {}
    for key in products:
        path = job.names.path(key)
        if path.is_file():
            documents[key] = json.loads(sidecar_of(path).read_text("utf-8"))
            documents[key]["Description"] += f" {NOTICE}"
            documents[key]["Simulated"] = True
            with path.open(encoding="utf-8") as file:
                columns[key] = file.readline().rstrip("\n").split("\t")
    return StandIn(json.dumps(documents), columns, _place(job))


def _place(job: RunJob | ScanJob) -> str:
    return f"{_folder(job.names.entities)}/{job.names.datatype}/{_stem(job.names.entities)}"

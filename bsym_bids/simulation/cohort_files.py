"""Simulated cohorts as files: a BIDS dataset with labels, and what the participant level writes.

Names, settings and fingerprints are those of real runs and scans that do not exist. Sidecars are
written by the real writers, once for a stand-in, and then told of everyone; only files that the
group level reads are written of each participant.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from bsym_bids import atlas
from bsym_bids.atlas.group import group_functional_connectivity
from bsym_bids.bold.cleaning import CleanedRun
from bsym_bids.bold.quality import run_quality
from bsym_bids.errors import UsageError
from bsym_bids.jobs import RunJob, ScanJob
from bsym_bids.outputs.dataset import BIDS_VERSION, OF_ROIS, describe_dataset, make_writable
from bsym_bids.outputs.embedding import dimension_columns
from bsym_bids.outputs.publish import OutputFile, publish, write_whole
from bsym_bids.outputs.tables import NOT_AVAILABLE, Content, Json, Table
from bsym_bids.simulation.bold import series_with
from bsym_bids.simulation.cohort import Cohort
from bsym_bids.simulation.cohort_stand_ins import (
    ASSIGNED_SHARE,
    RELIABILITY,
    REPETITION_TIME,
    Jobs,
    cleaned_run,
    stand_in_run,
    stand_in_scan,
)
from bsym_bids.simulation.dataset import NOTICE

FUNCTIONAL = ("fc", "bs_functional", "bs_functional_mean")
STRUCTURAL = ("sc", "bs_structural")
_DISPLACEMENT_SPREAD = 0.5  # of the logarithm, between the volumes of a run
_LENGTH_MM = 90.0  # of streamlines
_ATTENTION_SPREAD = 0.3  # of the logarithm, between pairs of ROIs
_MOST_TEXTS = 50_000  # numbers of a table of texts on each side of 0


@dataclass(frozen=True)
class Layout:
    """How a cohort is laid out in files.

    Attributes
    ----------
    sessions, tasks : tuple of str
        Labels; everyone has a diffusion scan in each session, and `runs` BOLD runs of each task.
    runs : int
        With more than one, names have ``run-``.
    run_spread : float
        Spread of each feature between the runs or scans of a person, where there are several, in
        Fisher's z, log10 of counts or units of the embedding. Their mean is the cohort's feature.
    state_effect : float
        What the last state has more than the first, of Fisher's z between ROIs of the default
        network, and of the logarithm of the attention to them. States are sessions where there are
        several, else tasks.
    model : str
        Release that sidecars name.
    fd_threshold : float
        Censoring threshold that they name, in mm.
    unlabelled : collection of str
        Participants whose label and rating are n/a.
    without_bold, without_dwi : collection of str
        Participants without runs, or without scans.
    decimals : int, optional
        Decimals of matrices, embeddings and series: few make small files. None is seven significant
        digits, as real outputs have.
    """

    sessions: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ("rest",)
    runs: int = 1
    run_spread: float = 0.1
    state_effect: float = 0.0
    model: str = "bsym-sim-v1"
    fd_threshold: float = 0.5
    unlabelled: Collection[str] = ()
    without_bold: Collection[str] = ()
    without_dwi: Collection[str] = ()
    decimals: int | None = 4

    @property
    def states(self) -> tuple[str, ...]:
        """Labels that the effect of states lies between."""
        return self.sessions if len(self.sessions) > 1 else self.tasks

    def bold_runs(self) -> list[dict[str, str]]:
        """Return the entities of everyone's runs, without ``sub``."""
        found = []
        for session, task, run in product(self.sessions or ("",), self.tasks, range(self.runs)):
            entities = {"ses": session} if session else {}
            numbered = {"run": str(run + 1)} if self.runs > 1 else {}
            found.append(entities | {"task": task} | numbered)
        return found

    def scans(self) -> list[dict[str, str]]:
        """Return the entities of everyone's scans, without ``sub``."""
        return [{"ses": session} for session in self.sessions] or [{}]

    def position(self, entities: Mapping[str, str]) -> float:
        """Return where a run lies between the first state, -0.5, and the last, 0.5."""
        if len(self.states) < 2:
            return 0.0
        state = entities["ses" if len(self.sessions) > 1 else "task"]
        return self.states.index(state) / (len(self.states) - 1) - 0.5


@dataclass(frozen=True)
class Grid:
    """A TSV of numbers with few decimals, or of seven significant digits.

    What is written is what `bsym_bids.outputs.tables` writes of rounded numbers, in a tenth of the
    time: numbers of few decimals are looked up.

    Attributes
    ----------
    values : ndarray, shape (rows, columns)
        Numbers.
    columns : sequence of str
        Their names.
    named : mapping of str to sequence of str
        Columns of text in front.
    decimals : int, optional
        None for seven significant digits.
    """

    values: NDArray[np.floating]
    columns: Sequence[str]
    named: Mapping[str, Sequence[str]]
    decimals: int | None

    def write(self, path: Path) -> None:
        """Write a header line and one line per row."""
        numbers = _texts(np.asarray(self.values, np.float64), self.decimals).tolist()
        rows = zip(*self.named.values(), map("\t".join, numbers), strict=True)
        lines = ["\t".join([*self.named, *self.columns]), *map("\t".join, rows)]
        path.write_text("\n".join(lines) + "\n", "utf-8")


def write_cohort(
    cohort: Cohort, bids_dir: Path, output_dir: Path, layout: Layout = Layout()
) -> None:
    """Write a cohort as a BIDS dataset and the outputs of the participant level.

    Parameters
    ----------
    cohort : Cohort
        Of 450 ROIs. Of kinds of features that it lacks there are no files. FC in tangent space
        needs one that was simulated as ``proper``.
    bids_dir, output_dir : Path
        New folders, or those of another cohort whose participants have other labels: its tables of
        labels are replaced.
    layout : Layout
        Sessions, runs, and who lacks what.

    Raises
    ------
    UsageError
        The cohort has fewer ROIs.
    CannotCreateOutputError
        A folder cannot be written to.
    """
    write_tables(cohort, bids_dir, layout)
    write_outputs(cohort, bids_dir, output_dir, layout)


def write_tables(cohort: Cohort, bids_dir: Path, layout: Layout = Layout()) -> None:
    """Write the BIDS dataset: description, participants, sessions, and a table in ``phenotype/``.

    ``participants.tsv`` has ``age``, ``sex``, ``site`` and ``family``; ``phenotype/rating.tsv`` has
    `Cohort.rating`; ``sessions.tsv`` has ``age_at_session``, a year more in each.
    """
    make_writable(bids_dir)
    hidden = np.isin(cohort.participants, list(layout.unlabelled))
    ids = [f"sub-{label}" for label in cohort.participants]
    age = np.where(hidden & (cohort.label == "age"), np.nan, cohort.age)
    sex = np.where(hidden & (cohort.label == "sex"), NOT_AVAILABLE, cohort.sex)
    write_whole(
        bids_dir / "dataset_description.json",
        Json({"Name": "Simulated cohort", "BIDSVersion": BIDS_VERSION, "DatasetType": "raw"}),
    )
    table = {"age": age, "sex": sex, "site": cohort.site, "family": cohort.family}
    write_whole(bids_dir / "participants.tsv", Table({"participant_id": ids, **table}))
    write_whole(bids_dir / "participants.json", Json(_PARTICIPANTS))
    rating = np.where(hidden, np.nan, cohort.rating)
    write_whole(
        bids_dir / "phenotype" / "rating.tsv", Table({"participant_id": ids, "rating": rating})
    )
    write_whole(bids_dir / "phenotype" / "rating.json", Json(_RATING))
    for name, years in zip(ids, age, strict=True):
        make_writable(bids_dir / name)
        if layout.sessions:
            sessions = [f"ses-{label}" for label in layout.sessions]
            ages = [float(years) + number for number in range(len(sessions))]
            write_whole(
                bids_dir / name / f"{name}_sessions.tsv",
                Table({"session_id": sessions, "age_at_session": ages}),
            )
    if layout.sessions:
        write_whole(bids_dir / "sessions.json", Json(_SESSIONS))


_PARTICIPANTS = {
    "age": {"Description": f"Age. {NOTICE}", "Units": "year"},
    "sex": {"Description": f"Sex. {NOTICE}", "Levels": {"F": "female", "M": "male"}},
    "site": {"Description": "Where the participant was measured"},
    "family": {"Description": "Family that the participant belongs to"},
}
_RATING = {
    "MeasurementToolMetadata": {"Description": NOTICE},
    "rating": {"Description": "Total of a rating scale", "Units": "points"},
}
_SESSIONS = {"age_at_session": {"Description": f"Age at the session. {NOTICE}", "Units": "year"}}


def write_outputs(
    cohort: Cohort, bids_dir: Path, output_dir: Path, layout: Layout = Layout()
) -> None:
    """Write what the participant level would have written; see `write_cohort`.

    Of each run: denoised series (those of an average person, of `Cohort.n_volumes` volumes),
    connectivity, quality, mean embedding, similarity and attention. Of each scan: streamline
    counts, ROIs, quality and embedding.
    """
    if cohort.n_rois != atlas.N_ROIS:
        raise UsageError(
            f"a cohort of {cohort.n_rois} ROIs has no files", hint=f"simulate {atlas.N_ROIS} ROIs"
        )
    make_writable(output_dir)
    fmriprep = bids_dir / "derivatives" / "fmriprep"
    describe_dataset(output_dir, {"fmriprep": fmriprep, "raw": bids_dir}, OF_ROIS)
    writer = _Writer(cohort, bids_dir, output_dir, layout)
    with threadpool_limits(1):
        for row, label in enumerate(cohort.participants):
            rng = np.random.default_rng([cohort.seed, zlib.crc32(label.encode())])
            if label not in layout.without_bold and set(FUNCTIONAL) & set(cohort.features):
                for outputs, made_under in writer.bold_files(row, rng):
                    publish(outputs, made_under)
            if label not in layout.without_dwi and set(STRUCTURAL) & set(cohort.features):
                for outputs, made_under in writer.dwi_files(row, rng):
                    publish(outputs, made_under)


class _Writer:
    """What is written of each participant of a cohort."""

    def __init__(self, cohort: Cohort, bids_dir: Path, output_dir: Path, layout: Layout) -> None:
        self._cohort, self._layout = cohort, layout
        self._jobs = Jobs(bids_dir, output_dir, layout.model, layout.fd_threshold)
        self._made = layout.model, layout.fd_threshold, cohort.width

    def bold_files(
        self, row: int, rng: np.random.Generator
    ) -> Iterator[tuple[list[OutputFile], str]]:
        """Yield the files of each group of each run, and their fingerprint."""
        label, layout = self._cohort.participants[row], self._layout
        runs, stand_in = layout.bold_runs(), stand_in_run(*self._made)
        features = self._of_runs(FUNCTIONAL, row, len(runs), rng)
        for number, entities in enumerate(runs):
            job = self._jobs.run({"sub": label, **entities})
            sidecars = stand_in.sidecars_of(job)
            effect = layout.state_effect * layout.position(entities)
            cleaned, contents = self._series(row, rng)
            connectivity = group_functional_connectivity()
            if "fc" in features:
                connectivity = _correlations(features["fc"][number], effect)
                contents["connectivity"] = self._matrix(connectivity)
            quality = run_quality(1000 + 10 * cleaned.timeseries, cleaned, connectivity)
            contents["run_quality"] = _in_order(quality, stand_in.columns["run_quality"])
            if "bs_functional" in features:
                similarity = _correlations(features["bs_functional"][number], effect)
                contents["similarity"] = self._matrix(similarity)
            if "bs_functional_mean" in features:
                contents["embedding"] = self._embedding(features["bs_functional_mean"][number])
            if set(features) - {"fc"}:
                contents["attention"] = self._matrix(_attention(rng, effect), finer=2)
            for key in ("denoised", "connectivity"):
                sidecars[key]["CensoredVolumes"] = np.flatnonzero(cleaned.censored).tolist()
            groups = {
                "timeseries": ("denoised", "connectivity", "run_quality"),
                "embedding": ("embedding", "similarity", "attention"),
            }
            yield from _grouped(job, groups, contents, sidecars)

    def dwi_files(
        self, row: int, rng: np.random.Generator
    ) -> Iterator[tuple[list[OutputFile], str]]:
        """Yield the files of each group of each scan, and their fingerprint."""
        label = self._cohort.participants[row]
        scans, stand_in = self._layout.scans(), stand_in_scan(*self._made)
        features = self._of_runs(STRUCTURAL, row, len(scans), rng)
        usual = atlas.roi_volumes() * rng.uniform(0.9, 1.1, atlas.N_ROIS)
        volumes = usual * self._cohort.confounds["roi_volume"][row] / usual.sum()
        for number, entities in enumerate(scans):
            job = self._jobs.scan({"sub": label, **entities})
            sidecars = stand_in.sidecars_of(job)
            contents: dict[str, Content] = {}
            if "sc" in features:
                counts = _symmetric(np.rint(10 ** features["sc"][number] - 1).clip(0), 0.0)
                contents |= _connectome(counts, volumes, stand_in.columns["scan_quality"])
                _tell_streamlines(sidecars, counts)
            if "bs_structural" in features:
                contents["structural_embedding"] = self._embedding(
                    features["bs_structural"][number]
                )
            groups = {
                "connectome": ("count", "rois", "scan_quality"),
                "structural": ("structural_embedding",),
            }
            yield from _grouped(job, groups, contents, sidecars)

    def _of_runs(
        self, kinds: Sequence[str], row: int, count: int, rng: np.random.Generator
    ) -> dict[str, NDArray[np.float64]]:
        """Return the features (count, F) of each run: those of the person on average."""
        found = {}
        for kind in kinds:
            if kind in self._cohort.features:
                own = self._cohort.features[kind][row].astype(np.float64)
                spread = self._layout.run_spread if count > 1 else 0.0
                around = spread * rng.standard_normal((count, len(own)), np.float32)
                around = np.where(own == 0, 0, around - around.mean(0))
                found[kind] = own + around
        return found

    def _series(self, row: int, rng: np.random.Generator) -> tuple[CleanedRun, dict[str, Content]]:
        """Return a run of an average person who moves like this one, and its series as a file."""
        n_volumes, confounds = self._cohort.n_volumes, self._cohort.confounds
        average = group_functional_connectivity()
        series = series_with(average, n_volumes, REPETITION_TIME, rng)
        displacement = rng.lognormal(0, _DISPLACEMENT_SPREAD, n_volumes)
        displacement *= confounds["mean_fd"][row] / displacement.mean()
        n_censored = n_volumes - int(confounds["frames_kept"][row])
        censored = np.zeros(n_volumes, bool)
        censored[np.argsort(-displacement)[:n_censored]] = True
        written = np.where(censored[:, None], np.nan, series)
        file = Grid(written, atlas.roi_names(), {}, self._layout.decimals)
        return cleaned_run(series, censored, displacement), {"denoised": file}

    def _matrix(self, values: NDArray[np.float64], finer: int = 0) -> Grid:
        decimals = self._layout.decimals
        decimals = None if decimals is None else decimals + finer
        return Grid(values, atlas.roi_names(), {"Node": atlas.roi_names()}, decimals)

    def _embedding(self, values: NDArray[np.float64]) -> Grid:
        table = values.reshape(atlas.N_ROIS, -1)
        named = {"name": atlas.roi_names(), "network": atlas.networks()}
        return Grid(table, list(dimension_columns(table.shape[1])), named, self._layout.decimals)


def _connectome(
    counts: NDArray[np.float64], volumes: NDArray[np.float64], columns: Sequence[str]
) -> dict[str, Content]:
    """Return counts (450, 450), the table of ROIs with volumes (450,) in mm3, and of quality."""
    names, ends = atlas.roi_names(), counts.sum(0)
    assigned = int(counts.sum() / 2)
    quality = {
        "streamlines": round(assigned / ASSIGNED_SHARE),
        "assigned": assigned,
        "assigned_share": ASSIGNED_SHARE,
        "sampling_reliability": RELIABILITY,
        "density": float((counts > 0).sum() / (counts.size - len(counts))),
        "absent_rois": 0,
        "rois_without_streamlines": int((ends == 0).sum()),
        "mean_length": _LENGTH_MM,
        "registration": "good",
        "gradient_check": "none",
    }
    rois = {
        "name": names,
        "network": atlas.networks(),
        "volume": volumes,
        "streamlines": ends.astype(np.int64),
        "present": [True] * len(names),
    }
    return {
        "count": Grid(counts, names, {"Node": names}, 0),
        "rois": Table(rois),
        "scan_quality": _in_order(quality, columns),
    }


def _in_order(row: Mapping[str, Any], columns: Sequence[str]) -> Table:
    """Return a table of one row with the columns of the real one; n/a where it has no value."""
    return Table({name: [row.get(name)] for name in columns})


def _tell_streamlines(sidecars: Mapping[str, dict[str, Any]], counts: NDArray[np.float64]) -> None:
    between = float(counts.sum() / 2)
    for key, sidecar in sidecars.items():
        if key.startswith("structural"):
            sidecar["StreamlinesBetweenROIs"] = between
        else:
            sidecar["Streamlines"] = round(between / ASSIGNED_SHARE)


def _grouped(
    job: RunJob | ScanJob,
    groups: Mapping[str, Sequence[str]],
    contents: Mapping[str, Content],
    sidecars: Mapping[str, Mapping[str, Any]],
) -> Iterator[tuple[list[OutputFile], str]]:
    """Yield the files of each group that the job has, and the group's fingerprint."""
    for group, keys in groups.items():
        if group in job.fingerprints:
            files = [
                OutputFile(job.names.path(key), contents[key], sidecars[key])
                for key in keys
                if key in contents
            ]
            yield files, job.fingerprints[group]


def _correlations(edges: NDArray[np.float64], effect: float) -> NDArray[np.float64]:
    """Return correlations (450, 450) from Fisher's z, moved in the default network."""
    if effect:
        default = np.array(atlas.networks()) == "Default"
        upper = np.triu_indices(atlas.N_ROIS, 1)
        edges = edges + effect * (default[upper[0]] & default[upper[1]])
    return _symmetric(np.tanh(edges), 1.0)


def _symmetric(edges: NDArray[np.float64], diagonal: float) -> NDArray[np.float64]:
    matrix = np.zeros((atlas.N_ROIS, atlas.N_ROIS))
    matrix[np.triu_indices(atlas.N_ROIS, 1)] = edges
    matrix += matrix.T
    np.fill_diagonal(matrix, diagonal)
    return matrix


def _attention(rng: np.random.Generator, effect: float) -> NDArray[np.float64]:
    """Return attention (450, 450) of rows to columns that sums to 1 in each row."""
    logarithm = _ATTENTION_SPREAD * rng.standard_normal((atlas.N_ROIS, atlas.N_ROIS))
    logarithm += effect * (np.array(atlas.networks()) == "Default")
    attention = np.exp(logarithm)
    return attention / attention.sum(1, keepdims=True)


def _texts(values: NDArray[np.float64], decimals: int | None) -> NDArray[np.object_]:
    """Return numbers as they are written."""
    written = np.empty(values.shape, object)
    known = np.isfinite(values)
    written[~known] = NOT_AVAILABLE
    if decimals is None:
        written[known] = [f"{value:.7g}" for value in values[known].tolist()]
        return written
    steps = np.rint(np.where(known, values, 0) * 10**decimals).astype(np.int64)
    listed = known & (np.abs(steps) <= _MOST_TEXTS)
    written[listed] = _table_of_texts(decimals)[steps[listed] + _MOST_TEXTS]
    others = known & ~listed
    written[others] = [f"{step / 10**decimals:.7g}" for step in steps[others].tolist()]
    return written


@cache
def _table_of_texts(decimals: int) -> NDArray[np.object_]:
    steps = range(-_MOST_TEXTS, _MOST_TEXTS + 1)
    return np.array([f"{step / 10**decimals:.7g}" for step in steps], object)

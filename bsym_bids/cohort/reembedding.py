"""Embedding anew what the participant level has written, from its tables alone.

For cohort scaling, where every run is embedded once more, and for the network with random weights,
as a control. Both are what the participant level does, begun at the denoised series or at the
streamline counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bsym_bids import atlas
from bsym_bids.bold.cleaning import naming
from bsym_bids.bold.scaling import RoiStatistics
from bsym_bids.bold.windows import WINDOW_LENGTH, Windows
from bsym_bids.cohort.parallel import each_apart, memory_allows
from bsym_bids.cohort.scaling import CohortScaling, inputs_fingerprint, measure_cohort
from bsym_bids.errors import BsymError, CannotCreateOutputError
from bsym_bids.jobs import CohortJob
from bsym_bids.model.contract import check_contract, load_and_check
from bsym_bids.model.embed import FunctionalEmbedding, embed_run, inference, masked_embedding
from bsym_bids.model.reconstruction import score_windows
from bsym_bids.model.structural import EdgeConvention, usual_convention
from bsym_bids.model.structural_embedding import (
    connectome_input,
    connectome_latents,
    expected_streamlines,
)
from bsym_bids.model.weights import Release, load_model, load_random
from bsym_bids.outputs.claims import Claims
from bsym_bids.outputs.cohort import read_cohort_scaling, write_cohort_scaling
from bsym_bids.outputs.embedding import write_embedding
from bsym_bids.outputs.names import COHORT_SCALING, dataset_path
from bsym_bids.outputs.publish import explained, is_complete
from bsym_bids.outputs.reading import (
    WrittenConnectome,
    WrittenRun,
    connectome_of,
    find_runs,
    read_connectome,
    read_roi_volumes,
    read_series,
    run_of,
)
from bsym_bids.pool import workers
from bsym_bids.summary import Outcome

if TYPE_CHECKING:
    from bsym_bids.model.brainsymphony import BrainSymphony

#: Memory of a process that embeds runs.
EMBEDDING_GB = 0.6


def embed_again(
    run: WrittenRun,
    model: BrainSymphony,
    scaling: CohortScaling | RoiStatistics | str = "robust",
    *,
    model_tr: float = 0.8,
    window_step: int = 100,
    masked: NDArray[np.float32] | None = None,
    threads: int | None = 1,
) -> tuple[Windows, FunctionalEmbedding]:
    """Embed a run from its denoised series on disk.

    Parameters
    ----------
    run : WrittenRun
        The run.
    model : BrainSymphony
        With all functional branches.
    scaling : CohortScaling, RoiStatistics or str
        What ROIs are scaled by, or how, as `bsym_bids.bold.scaling.scale` takes it.
    model_tr, window_step, masked, threads
        As `bsym_bids.model.embed.embed_run` takes them.

    Returns
    -------
    windows : Windows
        What the network saw.
    embedding : FunctionalEmbedding
        What it said: with the scaling of the participant level what that has written, but for the
        rounding of the series on disk.

    Raises
    ------
    BadDataError
        The series cannot be read, is too short, or lacks too many ROIs.
    """
    given = scaling.statistics if isinstance(scaling, CohortScaling) else scaling
    return embed_run(
        model,
        read_series(run),
        model_tr=model_tr,
        window_step=window_step,
        scaling=given,
        source=run.path,
        masked=masked,
        threads=threads,
    )


def embed_connectome_again(
    connectome: WrittenConnectome,
    model: BrainSymphony,
    convention: EdgeConvention,
    expected: tuple[float, float] | None = None,
    *,
    threads: int | None = 1,
) -> NDArray[np.float32]:
    """Embed a connectome from its streamline counts on disk.

    Parameters
    ----------
    connectome : WrittenConnectome
        Streamline counts.
    model : BrainSymphony
        With the structural branch.
    convention : EdgeConvention
        What is made of the counts.
    expected : tuple of float, optional
        As `bsym_bids.model.structural_embedding.depth_factor` takes it.
    threads : int, optional
        CPU threads; None leaves torch's setting.

    Returns
    -------
    ndarray, shape (450, D)
        NaN for absent ROIs.

    Raises
    ------
    BadDataError
        The table cannot be read, lacks too many ROIs, or the network has no structural branch.
    """
    counts, volumes = read_connectome(connectome), read_roi_volumes(connectome)
    with naming(connectome.path):
        given = connectome_input(
            counts, atlas.roi_volumes() if volumes is None else volumes, convention, expected
        )
        return connectome_latents(model, given, threads)[0]


@dataclass(frozen=True)
class RandomNetwork:
    """The network of a release with random weights in place of its own: what training adds to.

    It can be handed to other processes; each draws the weights once.

    Attributes
    ----------
    release : Release
        Whose sizes it has.
    seed : int
        Of the weights.
    scaling : CohortScaling or str
        By what, or how, series are scaled before.
    model_tr, window_step
        What else is done to them, as at the participant level.
    convention : EdgeConvention, optional
        What is made of streamline counts; None is what the release's card says.
    """

    release: Release
    seed: int = 0
    scaling: CohortScaling | str = "robust"
    model_tr: float = 0.8
    window_step: int = 100
    convention: EdgeConvention | None = None

    def functional(self, path: Path) -> FunctionalEmbedding:
        """Return the embedding of a run, by its table of denoised series.

        Raises
        ------
        BadDataError
            As `embed_again`.
        """
        model, masked = _network(load_random, self.release, self.seed)
        return embed_again(
            run_of(path),
            model,
            self.scaling,
            model_tr=self.model_tr,
            window_step=self.window_step,
            masked=masked,
        )[1]

    def structural(self, path: Path) -> NDArray[np.float32]:
        """Return the embedding (450, D) of a connectome, by its table of streamline counts.

        Raises
        ------
        BadDataError
            As `embed_connectome_again`.
        """
        model, _ = _network(load_random, self.release, self.seed)
        card = self.release.card
        convention = self.convention or usual_convention(card)
        return embed_connectome_again(
            connectome_of(path), model, convention, expected_streamlines(card)
        )


@dataclass(frozen=True, eq=False)
class CohortScalingResult:
    """What became of cohort scaling.

    Attributes
    ----------
    scaling : CohortScaling
        What runs were scaled by.
    outcomes : tuple of Outcome
        Of every run: ``done``, ``unchanged`` or ``failed``.
    """

    scaling: CohortScaling
    outcomes: tuple[Outcome, ...]


def cohort_scaling(
    runs: Sequence[WrittenRun],
    output_dir: Path,
    *,
    work_dir: Path | None = None,
    n_workers: int = 1,
    memory_gb: float | None = None,
) -> CohortScaling:
    """Return the statistics of a cohort: those on disk where they are of these very runs.

    Parameters
    ----------
    runs : sequence of WrittenRun
        All runs of the dataset.
    output_dir : Path
        Root of the dataset, where the statistics are kept.
    work_dir, n_workers, memory_gb
        As `measure_cohort` takes them.

    Raises
    ------
    BsymError
        As `measure_cohort`.
    """
    expected = inputs_fingerprint(runs)
    if is_complete([dataset_path(output_dir, COHORT_SCALING)], expected):
        try:
            return read_cohort_scaling(output_dir)
        except BsymError:
            pass  # they are taken anew
    found = measure_cohort(runs, work_dir=work_dir, n_workers=n_workers, memory_gb=memory_gb)
    write_cohort_scaling(found, output_dir, expected)
    return found


def run_cohort_scaling(
    output_dir: Path,
    release: Release,
    *,
    model_tr: float = 0.8,
    window_step: int = 100,
    seed: int = 0,
    n_workers: int = 1,
    memory_gb: float | None = None,
    work_dir: Path | None = None,
    claims: Claims | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> CohortScalingResult:
    """Scale every run of a dataset by the statistics of all of them, and embed it anew.

    The embeddings are published beside those of the participant level (``cohort`` ends the
    ``desc-`` of their names). What is there already under the same statistics, series and settings
    is left alone, so that a call that was killed goes on where it was. A run that fails stops no
    other.

    Parameters
    ----------
    output_dir : Path
        Output folder of the participant level.
    release : Release
        The model.
    model_tr, window_step, seed
        As at the participant level.
    n_workers : int
        Processes at a time, each with one thread; 0 does all in this one, which a run that needs
        more memory than there is takes down.
    memory_gb : float, optional
        Memory that may be used; None is not limited.
    work_dir : Path, optional
        Folder for intermediate results, removed by themselves; None is the system's.
    claims : Claims, optional
        Of the calling process; None makes claims under ``logs/`` for as long as this takes.
    say : callable
        Is told how it goes on, a line at a time.

    Returns
    -------
    CohortScalingResult

    Raises
    ------
    InputMissingError
        There is no such folder, or no run in it.
    BadDataError
        The model was made for other ROIs or windows, or runs were cleaned under different settings.
    BsymError
        Nothing can be read, or nothing written.
    """
    check_contract(release, WINDOW_LENGTH)
    runs = find_runs(output_dir)
    if work_dir is not None:
        with explained(work_dir):
            work_dir.mkdir(parents=True, exist_ok=True)
    scaling = cohort_scaling(
        runs, output_dir, work_dir=work_dir, n_workers=n_workers, memory_gb=memory_gb
    )
    say(f"statistics of {len(scaling.participants)} participant(s), {len(scaling.runs)} run(s)")
    settings = {"model_tr": model_tr, "window_step": window_step, "seed": seed}
    jobs = [CohortJob.of(run, output_dir, release, scaling.fingerprint, **settings) for run in runs]
    todo = [job for job in jobs if job.to_do]
    if release.files and todo:
        _check_network(release, apart=n_workers > 0)
    with ExitStack() as stack:
        if claims is None:
            claims = stack.enter_context(_own_claims(output_dir))
        mine = [job for job in todo if claims.claim(job.work_name)]
        labels = {job.label for job in mine}
        failures = {job.label: _taken() for job in todo if job.label not in labels}
        count = memory_allows(n_workers, memory_gb, EMBEDDING_GB)
        failures |= _embed_all(mine, scaling, count, say)
    worked_on = {job.label for job in todo}
    return CohortScalingResult(scaling, tuple(_outcome(job, worked_on, failures) for job in jobs))


def _check_network(release: Release, apart: bool) -> None:
    """Load the network once and throw it away: what is wrong with it is wrong for every run."""
    if not apart:
        load_and_check(release, WINDOW_LENGTH)
        return
    with workers(1) as process:
        process.call(load_and_check, release, WINDOW_LENGTH)


def _own_claims(output_dir: Path) -> Claims:
    logs = output_dir / "logs"
    with explained(logs):
        logs.mkdir(parents=True, exist_ok=True)
    return Claims([logs])


def _taken() -> BsymError:
    return CannotCreateOutputError(
        "another process is working on this run",
        hint="wait for it to end, then run the same command again",
    )


def _embed_all(
    jobs: Sequence[CohortJob], scaling: CohortScaling, n_workers: int, say: Callable[[str], None]
) -> dict[str, BsymError]:
    """Embed runs in processes of their own, and return what went wrong by their labels."""
    failures: dict[str, BsymError] = {}
    tasks = [_Task(job, scaling.statistics) for job in jobs]
    for number, (index, error) in enumerate(each_apart(_embed_and_write, tasks, n_workers), 1):
        label = jobs[index].label
        if error is not None:
            failures[label] = error
        say(f"{number} of {len(jobs)}: {label}: {'failed' if error else 'done'}")
    return failures


@dataclass(frozen=True, eq=False)
class _Task:
    """What a process needs to embed a run."""

    job: CohortJob
    statistics: RoiStatistics


def _embed_and_write(task: _Task) -> None:
    job = task.job
    settings = job.settings.embedding
    model, masked = _network(load_model, job.settings.release, settings["Seed"])
    windows, embedding = embed_again(
        job.run,
        model,
        task.statistics,
        model_tr=settings["ModelRepetitionTime"],
        window_step=settings["WindowStep"],
        masked=masked,
    )
    with naming(job.run.path):
        quality = score_windows(model, windows, settings["Seed"], threads=1)
    write_embedding(job, job.run, windows, embedding, quality)


def _outcome(job: CohortJob, worked_on: set[str], failures: Mapping[str, BsymError]) -> Outcome:
    error = failures.get(job.label)
    if error is not None:
        return Outcome(
            job.run.participant, job.label, "failed", str(error), error.hint, error.exit_code
        )
    status = "done" if job.label in worked_on else "unchanged"
    return Outcome(job.run.participant, job.label, status, model_domain=job.model_domain())


_Loader = Callable[[Release, int], "BrainSymphony"]
#: The network that this process used last: loading it takes as long as a window.
_LOADED: dict[tuple[_Loader, str, int], tuple[BrainSymphony, NDArray[np.float32] | None]] = {}


def _network(
    loader: _Loader, release: Release, seed: int
) -> tuple[BrainSymphony, NDArray[np.float32] | None]:
    """Return a network and its embedding of a fully masked window, loaded once by each process."""
    key = loader, release.fingerprint, seed
    if key not in _LOADED:
        model = loader(release, seed)
        masked = None
        if None not in (model.spatial, model.temporal, model.context, model.perceiver):
            with inference(1):
                masked = masked_embedding(model, (atlas.N_ROIS, WINDOW_LENGTH))
        _LOADED.clear()
        _LOADED[key] = model, masked
    return _LOADED[key]

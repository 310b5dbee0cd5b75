"""The graph of one BOLD run: from the preprocessed series to time series, FC and embeddings."""

from __future__ import annotations

from nipype.pipeline.engine import Node, Workflow

from bsym_bids.interfaces.bold import CleanBold, ParcellateBold, WriteTimeSeries
from bsym_bids.interfaces.model import EmbedWindows, ScoreReconstruction, WriteEmbedding
from bsym_bids.jobs import RunJob

# Rough peak memory in GB, measured on runs of 1200 volumes; the scheduler adds them up.
_SMALL_GB, _MODEL_GB = 0.4, 1.5


def init_bold_run_wf(*, job: RunJob, threads: int = 1) -> Workflow:
    """Make the graph that produces what is missing of one run's outputs.

    Parameters
    ----------
    job : RunJob
        The run, its settings and its output names.
    threads : int
        Threads of the steps that use several.

    Returns
    -------
    Workflow
        Nodes ``parcellate`` (volumes to ROI series), ``clean`` (nuisance regression, filter,
        censoring), ``write_timeseries``, ``embed`` (windows through the model), ``reconstruct``
        (held-out ROIs) and ``write_embedding``; only those that are needed.
    """
    run, settings, to_do = job.run, job.settings, job.to_do
    workflow = Workflow(name=job.work_name)
    parcellate = Node(
        ParcellateBold(bold_file=str(run.bold), space=run.space, method=job.names.method),
        name="parcellate",
        mem_gb=_SMALL_GB,
    )
    if run.mask is not None:
        parcellate.inputs.mask_file = str(run.mask)
    if run.repetition_time is not None:
        parcellate.inputs.repetition_time = run.repetition_time
    clean = Node(
        CleanBold(
            strategy=settings.strategy,
            high_pass=settings.timeseries["HighPass"],
            low_pass=settings.timeseries["LowPass"],
            fd_threshold=settings.timeseries["FDThreshold"],
            min_coverage=settings.timeseries["MinCoverage"],
            bold_file=str(run.bold),
        ),
        name="clean",
        mem_gb=_SMALL_GB,
    )
    if run.confounds is not None:
        clean.inputs.confounds_file = str(run.confounds)
    if run.confounds_json is not None:
        clean.inputs.confounds_json = str(run.confounds_json)
    workflow.connect(parcellate, "parcellation", clean, "parcellation")
    if "timeseries" in to_do:
        # A writing node always runs: its outputs lie outside the work directory, where the cache
        # of Nipype does not see them vanish.
        write = Node(
            WriteTimeSeries(job=job), name="write_timeseries", overwrite=True, mem_gb=_SMALL_GB
        )
        workflow.connect(
            [
                (parcellate, write, [("parcellation", "parcellation")]),
                (clean, write, [("cleaned", "cleaned")]),
            ]
        )
    if "embedding" in to_do:
        written = _connect_model(workflow, job, clean, threads)
        if "timeseries" in to_do:
            # New time series take stale embeddings away, so new embeddings have to come later.
            workflow.connect(write, "out_files", written, "after")
    return workflow


def _connect_model(workflow: Workflow, job: RunJob, clean: Node, threads: int) -> Node:
    """Add the steps that need the model and return the one that writes."""
    settings = job.settings
    model = {
        "release": settings.release,
        "seed": settings.embedding["Seed"],
        "threads": threads,
    }
    embed = Node(
        EmbedWindows(
            model_tr=settings.embedding["ModelRepetitionTime"],
            window_step=settings.embedding["WindowStep"],
            scaling=settings.embedding["Scaling"],
            bold_file=str(job.run.bold),
            **model,
        ),
        name="embed",
        n_procs=threads,
        mem_gb=_MODEL_GB,
    )
    reconstruct = Node(
        ScoreReconstruction(**model), name="reconstruct", n_procs=threads, mem_gb=_MODEL_GB
    )
    write = Node(
        WriteEmbedding(job=job),
        name="write_embedding",
        overwrite=True,
        mem_gb=_SMALL_GB,
    )
    workflow.connect(
        [
            (clean, embed, [("cleaned", "cleaned")]),
            (embed, reconstruct, [("windows", "windows")]),
            (clean, write, [("cleaned", "cleaned")]),
            (embed, write, [("windows", "windows"), ("embedding", "embedding")]),
            (reconstruct, write, [("reconstruction", "reconstruction")]),
        ]
    )
    return write

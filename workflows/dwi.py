"""The graph of one diffusion scan: from the series to the connectome and structural embeddings."""

from __future__ import annotations

from collections.abc import Sequence

from nipype.pipeline.engine import Node, Workflow

from bsym_bids.interfaces.dwi import (
    CheckOrientation,
    EmbedConnectome,
    FitOrientations,
    PlaceAnatomy,
    PrepareAnatomy,
    PrepareDwi,
    RemoveWork,
    SampleConnectome,
    WriteConnectome,
    WriteStructural,
)
from bsym_bids.jobs import ScanJob
from bsym_bids.outputs.publish import file_identity

# Rough peak memory in GB, measured on 128 x 128 x 60 voxels with 33 volumes and on
# 145 x 174 x 145 with 288. Series are read through memory maps, whose pages are not counted.
_SMALL_GB, _REGISTRATION_GB, _FIT_GB, _TRACKING_GB = 0.4, 1.5, 2.0, 2.0
# Of preprocessing: of the step itself, and of each of its processes at least and at most, between
# which it grows with the series.
_PREPARE_GB, _PROCESS_GB = 1.0, (0.3, 1.0)
_COPIES_IN_EDDY = 3  # of the series in memory; an estimate, not measured


def init_dwi_scan_wf(*, job: ScanJob, threads: int = 1) -> Workflow:
    """Make the graph that produces what is missing of one scan's outputs.

    Parameters
    ----------
    job : ScanJob
        The scan, its settings and its output names.
    threads : int
        Threads of the steps that use several. Results do not depend on them.

    Returns
    -------
    Workflow
        Nodes ``prepare`` (preprocessing), ``orient`` (gradient check), ``anatomy`` (atlas and
        tissues in T1w space, beside the two), ``place`` (into the space of the series), ``fit``
        (fibre orientations), ``track`` (streamlines until enough) and ``write_connectome``; then
        ``embed`` and ``write_structural``, which start from the connectome that was written; and
        ``tidy``, which removes the work files. Only those that are needed.
    """
    to_do = job.to_do
    workflow = Workflow(name=job.work_name)
    writers: list[Node] = []
    if "connectome" in to_do:
        writers.append(_connect_tracking(workflow, job, threads))
    if "structural" in to_do:
        writers.append(_connect_model(workflow, job, writers))
    # Again each time: its inputs are the same when a scan is done anew, but not what there is.
    tidy = Node(
        RemoveWork(keep=[node.name for node in writers]),
        name="tidy",
        overwrite=True,
        mem_gb=_SMALL_GB,
    )
    workflow.connect(writers[-1], "out_files", tidy, "after")
    return workflow


def _connect_images(workflow: Workflow, job: ScanJob, threads: int) -> tuple[Node, Node]:
    """Add preprocessing and registration; return what gives the series, and the atlas in it."""
    scan = job.scan
    prepare = Node(
        PrepareDwi(
            scan=scan,
            identity=[file_identity(path) for path in scan.own_files],
            tools=dict(job.preprocessing),
            threads=threads,
        ),
        name="prepare",
        n_procs=threads,
        mem_gb=_preparing_gb(job, threads),
    )
    orient = Node(
        CheckOrientation(mode=job.settings.connectome["GradientCheck"], threads=threads),
        name="orient",
        n_procs=threads,
        mem_gb=_SMALL_GB,
    )
    anatomy = Node(PrepareAnatomy(), name="anatomy", mem_gb=_REGISTRATION_GB)
    if scan.anatomy is not None:
        anatomy.inputs.anatomy = scan.anatomy
        anatomy.inputs.identity = [file_identity(path) for path in scan.anatomy.files]
    place = Node(
        PlaceAnatomy(same_space=scan.same_space),
        name="place",
        mem_gb=_REGISTRATION_GB,
    )
    workflow.connect(
        [
            (prepare, orient, [("dwi", "dwi")]),
            (orient, place, [("dwi", "dwi")]),
            (anatomy, place, [("anatomy", "anatomy")]),
        ]
    )
    return orient, place


def _preparing_gb(job: ScanJob, threads: int) -> float:
    """Return about how much memory preprocessing takes."""
    if job.scan.is_preprocessed:
        return _PREPARE_GB
    least, most = _PROCESS_GB
    steps = _PREPARE_GB + threads * min(least + job.work_bytes / 4e9, most)
    return steps + (_COPIES_IN_EDDY * job.work_bytes / 1e9 if job.uses_fsl else 0)


def _connect_tracking(workflow: Workflow, job: ScanJob, threads: int) -> Node:
    """Add the steps to the connectome and return the one that writes it."""
    dwi, placed = _connect_images(workflow, job, threads)
    settings = job.settings
    common = {
        "engine": settings.engine,
        "preset": settings.preset,
        "seed": settings.connectome["Seed"],
        "threads": threads,
    }
    fit = Node(FitOrientations(**common), name="fit", n_procs=threads, mem_gb=_FIT_GB)
    track = Node(
        SampleConnectome(rule=settings.rule, **common),
        name="track",
        n_procs=threads,
        mem_gb=_TRACKING_GB,
    )
    if settings.tractogram:
        track.inputs.tractogram = settings.tractogram
    write = Node(
        WriteConnectome(job=job), name="write_connectome", overwrite=True, mem_gb=_SMALL_GB
    )
    workflow.connect(
        [
            (dwi, fit, [("dwi", "dwi")]),
            (placed, fit, [("placed", "placed")]),
            (placed, track, [("placed", "placed")]),
            (fit, track, [("model", "model")]),
            (dwi, write, [("dwi", "dwi")]),
            (placed, write, [("placed", "placed")]),
            (fit, write, [("model", "model")]),
            (track, write, [("connectome", "connectome"), ("tractogram", "tractogram")]),
        ]
    )
    return write


def _connect_model(workflow: Workflow, job: ScanJob, written: Sequence[Node]) -> Node:
    """Add the steps that need the model and return the one that writes."""
    embed = Node(EmbedConnectome(job=job), name="embed", overwrite=True, mem_gb=_SMALL_GB)
    write = Node(
        WriteStructural(job=job), name="write_structural", overwrite=True, mem_gb=_SMALL_GB
    )
    workflow.connect(embed, "given", write, "given")
    workflow.connect(embed, "embedding", write, "embedding")
    for node in written:
        workflow.connect(node, "out_files", embed, "after")
    return write

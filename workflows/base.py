"""The graph of several participants: one graph each, one below it per BOLD run and scan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nipype.pipeline.engine import Node, Workflow

from bsym_bids.interfaces.dwi import FuseEmbeddings
from bsym_bids.jobs import FusionJob, Job, RunJob, ScanJob
from bsym_bids.outputs.dataset import WORK_ROOT
from bsym_bids.workflows.bold import init_bold_run_wf
from bsym_bids.workflows.dwi import init_dwi_scan_wf

_FUSION_GB = 0.6


@dataclass(frozen=True)
class Threads:
    """Threads of one step.

    Attributes
    ----------
    run, scan : int
        Of a BOLD run, and of a diffusion scan.
    """

    run: int
    scan: int

    def __str__(self) -> str:
        return f"{self.run} thread(s) for a run and {self.scan} for a scan"


ONE_THREAD = Threads(1, 1)


def participant_name(label: str) -> str:
    """Return the name of a participant's graph."""
    return f"sub_{label.replace('+', '_')}"


def run_folder(work_dir: Path, label: str, job: Job) -> Path:
    """Return where the nodes of one job work."""
    return work_dir / WORK_ROOT / participant_name(label) / job.work_name


def crash_folder(output_dir: Path, label: str) -> Path:
    """Return where crash files of one participant go."""
    return output_dir / "logs" / f"sub-{label}"


def init_participants_wf(
    *,
    jobs: Mapping[str, Sequence[Job]],
    output_dir: Path,
    work_dir: Path,
    threads: Threads = ONE_THREAD,
    stop_on_first_crash: bool = False,
) -> Workflow:
    """Make the graph of several participants.

    Parameters
    ----------
    jobs : mapping of str to sequence of RunJob
        What is to be done for each participant; runs with nothing to do are left out.
    output_dir, work_dir : Path
        Output dataset (crash files go into its ``logs``) and scratch folder.
    threads : Threads
        Threads of the steps that use several.
    stop_on_first_crash : bool
        Stop everything at the first failure.

    Returns
    -------
    Workflow
        One graph ``sub_<label>`` per participant.
    """
    workflow = Workflow(name=WORK_ROOT, base_dir=str(work_dir))
    workflow.config["execution"] = {
        "crashfile_format": "txt",
        "create_report": "false",
        "poll_sleep_duration": "0.05",
        # Records name files beside them that Nipype knows nothing of.
        "remove_unnecessary_outputs": "false",
        "stop_on_first_crash": str(stop_on_first_crash).lower(),
        "write_provenance": "false",
    }
    for label, runs in jobs.items():
        graph = init_participant_wf(label=label, jobs=runs, threads=threads)
        for node_name in graph.list_node_names():
            node = graph.get_node(node_name)
            node.config = {
                "execution": {"crashdump_dir": str(crash_folder(output_dir, label).resolve())}
            }
        workflow.add_nodes([graph])
    return workflow


def init_participant_wf(
    *, label: str, jobs: Sequence[Job], threads: Threads = ONE_THREAD
) -> Workflow:
    """Make the graph of one participant: one graph per job that has something to do.

    What fuses a run and a scan comes after both.
    """
    workflow = Workflow(name=participant_name(label))
    graphs: dict[str, Workflow] = {}
    for job in jobs:
        if not job.to_do:
            continue
        if isinstance(job, RunJob):
            graphs[job.work_name] = init_bold_run_wf(job=job, threads=threads.run)
        elif isinstance(job, ScanJob):
            graphs[job.work_name] = init_dwi_scan_wf(job=job, threads=threads.scan)
        elif isinstance(job, FusionJob):
            graphs[job.work_name] = _init_fusion_wf(job)
    workflow.add_nodes(list(graphs.values()))
    for job in jobs:
        if isinstance(job, FusionJob) and job.work_name in graphs:
            _connect_fusion(workflow, job, graphs)
    return workflow


def _init_fusion_wf(job: FusionJob) -> Workflow:
    """Make the graph that fuses the embeddings of a run and a scan."""
    workflow = Workflow(name=job.work_name)
    workflow.add_nodes(
        [Node(FuseEmbeddings(job=job), name="fuse", overwrite=True, mem_gb=_FUSION_GB)]
    )
    return workflow


def _connect_fusion(workflow: Workflow, job: FusionJob, graphs: Mapping[str, Workflow]) -> None:
    """Let a fusion wait for what it reads and is made in this call."""
    for source, group, step, port in (
        (job.run, "embedding", "write_embedding", "functional"),
        (job.scan, "structural", "write_structural", "structural"),
    ):
        if group in source.to_do:
            made = graphs[source.work_name]
            workflow.connect(made, f"{step}.out_files", graphs[job.work_name], f"fuse.{port}")

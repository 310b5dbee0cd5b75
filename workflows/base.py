"""The graph of several participants: one graph each, one below it per BOLD run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from nipype.pipeline.engine import Workflow

from bsym_bids.jobs import RunJob
from bsym_bids.outputs.dataset import WORK_ROOT
from bsym_bids.workflows.bold import init_bold_run_wf, run_name


def participant_name(label: str) -> str:
    """Return the name of a participant's graph."""
    return f"sub_{label.replace('+', '_')}"


def run_folder(work_dir: Path, label: str, job: RunJob) -> Path:
    """Return where the nodes of one BOLD run work."""
    return work_dir / WORK_ROOT / participant_name(label) / run_name(job)


def crash_folder(output_dir: Path, label: str) -> Path:
    """Return where crash files of one participant go."""
    return output_dir / "logs" / f"sub-{label}"


def init_participants_wf(
    *,
    jobs: Mapping[str, Sequence[RunJob]],
    output_dir: Path,
    work_dir: Path,
    threads: int = 1,
    stop_on_first_crash: bool = False,
) -> Workflow:
    """Make the graph of several participants.

    Parameters
    ----------
    jobs : mapping of str to sequence of RunJob
        What is to be done for each participant; runs with nothing to do are left out.
    output_dir, work_dir : Path
        Output dataset (crash files go into its ``logs``) and scratch folder.
    threads : int
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


def init_participant_wf(*, label: str, jobs: Sequence[RunJob], threads: int = 1) -> Workflow:
    """Make the graph of one participant: one graph per BOLD run that has something to do."""
    workflow = Workflow(name=participant_name(label))
    workflow.add_nodes([init_bold_run_wf(job=job, threads=threads) for job in jobs if job.to_do])
    return workflow

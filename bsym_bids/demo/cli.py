"""The command ``bsym-demo``: make a small dataset, run the participant level, check the result."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bsym_bids import __version__
from bsym_bids.cli import Parser, report
from bsym_bids.errors import BsymError, CannotCreateOutputError, UsageError

#: The weights that come with the program.
MODEL = "bsym-sim-v1"
#: What recovered connectomes must reach: area under the ROC curve, and Pearson's r.
LEAST_AUC, LEAST_R = 0.9, 0.7


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of ``bsym-demo``."""
    parser = Parser(
        prog="bsym-demo",
        description="Make a small BIDS dataset of simulated people, fMRI and diffusion MRI, run "
        "bsym-bids on it, and compare the connectivity with the one that was put in.",
    )
    parser.add_argument("out", type=Path, help="a new or empty folder; 5 GB have to be free")
    parser.add_argument("--seed", type=int, default=0, help="seed of the simulation (default: 0)")
    parser.add_argument("--nprocs", type=int, help="jobs at once (default: all cores)")
    parser.add_argument(
        "--dataset-only", action="store_true", help="make the dataset, in out/bids, and no more"
    )
    parser.add_argument("--version", action="version", version=f"bsym-demo {__version__}")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``bsym-demo`` and return its exit code."""
    arguments = build_parser().parse_args(argv)
    try:
        if arguments.dataset_only:
            make_dataset(arguments.out, arguments.seed)
            return 0
        return run_demo(arguments.out, arguments.seed, arguments.nprocs)
    except BsymError as error:
        return report(error, "bsym-demo")
    except KeyboardInterrupt:
        print("bsym-demo: interrupted", file=sys.stderr)
        return 130


def make_dataset(out: Path, seed: int = 0) -> None:
    """Make the dataset in ``out/bids``.

    Parameters
    ----------
    out : Path
        A new or empty folder.
    seed : int
        Seed of the simulation.

    Raises
    ------
    UsageError
        The seed is negative.
    CannotCreateOutputError
        There is something in the folder.
    """
    from bsym_bids.demo.dataset import PARTICIPANTS, WITH_SCAN, make_demo_dataset
    from bsym_bids.outputs.publish import explained

    if seed < 0:
        raise UsageError(f"--seed is {seed}, but must be 0 or more")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CannotCreateOutputError(f"{out}: is not empty", hint="name a new folder")
    people = f"{len(PARTICIPANTS)} simulated participants"
    print(f"bsym-demo: making a dataset of {people} in {out / 'bids'}", flush=True)
    with explained(out):
        make_demo_dataset(out / "bids", seed=seed, scans=WITH_SCAN)


def run_demo(out: Path, seed: int = 0, nprocs: int | None = None) -> int:
    """Make the dataset in ``out/bids``, its outputs in ``out/outputs``, and say where to look.

    Parameters
    ----------
    out : Path
        A new or empty folder.
    seed : int
        Seed of the simulation.
    nprocs : int, optional
        Jobs at once.

    Returns
    -------
    int
        Exit code of the participant level; 1 when a simulated connectome did not come back.
    """
    from bsym_bids.cli import main as bsym_bids

    if nprocs is not None and nprocs < 1:
        raise UsageError(f"--nprocs is {nprocs}, but must be at least 1")
    started = time.monotonic()
    make_dataset(out, seed)
    call = [str(out / "bids"), str(out / "outputs"), "participant"]
    call += ["--model", MODEL, "--preset", "fast"]
    call += ["--nprocs", str(nprocs)] if nprocs is not None else []
    print(f"bsym-demo: bsym-bids {' '.join(call)}", flush=True)
    code = bsym_bids(call) or bsym_bids([*call[:2], "group", "--reports-only"])
    if code != 0:
        return code
    print_comparison(out)
    print_reconstruction(out / "outputs")
    recovered = print_connectomes(out)
    print_where_to_look(out, time.monotonic() - started)
    return 0 if recovered else 1


def print_comparison(out: Path) -> None:
    """Print how well the functional connectivity that was simulated came back."""
    from bsym_bids.demo.dataset import compare_with_truth

    print("functional connectivity, recovered against simulated (correlation over ROI pairs):")
    for run, correlation in compare_with_truth(out / "bids", connectivity_files(out / "outputs")):
        print(f"  {run}: r = {correlation:.3f}")


def print_connectomes(out: Path) -> bool:
    """Print how well the bundles that were simulated came back; return whether well enough."""
    from bsym_bids.demo.dataset import compare_connectomes

    print(
        "structural connectivity, recovered against simulated bundles (AUC of telling connected "
        f"pairs of ROIs, at least {LEAST_AUC:g}; r of logarithms, at least {LEAST_R:g}):"
    )
    recovered = True
    for measure, files in connectome_files(out / "outputs").items():
        for scan, score in compare_connectomes(out / "bids", files):
            enough = score.auc >= LEAST_AUC and score.r >= LEAST_R  # NaN is not
            recovered &= enough
            verdict = "" if enough else ": NOT RECOVERED"
            print(f"  {scan}: AUC = {score.auc:.3f}, r = {score.r:.3f} ({measure}){verdict}")
    return recovered


def print_reconstruction(output_dir: Path) -> None:
    """Print how well held-out ROIs were reconstructed, beside the control and the baseline."""
    import pandas as pd

    print("held-out ROIs, reconstructed (R2, mean over ROIs):")
    for path in sorted(output_dir.rglob("*_desc-reconstructionnetworks_qc.tsv")):
        scores = pd.read_csv(path, sep="\t", index_col="network").loc["all"]
        print(
            f"  {path.name.split('_space-')[0]}: {scores['r2']:.3f}; under permuted ROI labels "
            f"{scores['permuted_r2']:.3f}; linear baseline {scores['linear_r2']:.3f}"
        )


def connectivity_files(output_dir: Path) -> list[Path]:
    """Return the functional connectivity tables of an output dataset."""
    return sorted(output_dir.rglob("*_stat-pearsoncorrelation_relmat.tsv"))


def connectome_files(output_dir: Path) -> dict[str, list[Path]]:
    """Return the connectomes of an output dataset by what they measure, one of each scan.

    What was simulated are cross-sections of bundles. SIFT2 estimates these, and streamline counts
    stand in for them where the engine has no SIFT2.
    """
    found: dict[str, list[Path]] = {"fibre bundle capacity": [], "streamline counts": []}
    for counts in sorted(output_dir.rglob("*_desc-count_relmat.tsv")):
        capacity = counts.with_name(counts.name.replace("_desc-count_", "_desc-sift2_"))
        if capacity.is_file():
            found["fibre bundle capacity"].append(capacity)
        else:
            found["streamline counts"].append(counts)
    return found


def print_where_to_look(out: Path, seconds: float) -> None:
    """Print the files that are worth opening first."""
    from bsym_bids.outputs.names import participant_page, study_page

    outputs = out / "outputs"
    folder = outputs / "sub-01"
    print(f"bsym-demo: done in {seconds:.0f} s. Where to look:")
    print(f"  {outputs / 'README.md'}: what this dataset is")
    print(f"  {study_page(outputs)}: all participants, and whether to use them")
    print(f"  {participant_page(outputs, '01')}: the report of one")
    print(f"  {outputs / 'logs' / 'CITATION.md'}: the methods, in words")
    for pattern, meaning in (
        ("*_stat-mean_timeseries.tsv", "time series of 450 ROIs"),
        ("*_stat-pearsoncorrelation_relmat.tsv", "functional connectivity"),
        ("*_desc-functional_embedding.tsv", "BrainSymphony embeddings"),
        ("*_desc-reconstruction_qc.tsv", "how well held-out ROIs are reconstructed"),
        ("*_desc-count_relmat.tsv", "structural connectome, streamlines between ROIs"),
        ("*_desc-sampling_qc.tsv", "how reliable it is, by the number of streamlines"),
        ("*_desc-structural_embedding.tsv", "structural embeddings"),
        ("*_desc-fused_embedding.tsv", "embeddings of both modalities"),
    ):
        for path in sorted(folder.rglob(pattern))[:1]:
            print(f"  {path}: {meaning}")
    print(f"The model was {MODEL}, trained on simulated people alone.")

"""Connectomes of a phantom whose connections are known: time, memory and accuracy.

    python benchmarks/connectome.py [--variant hard] [--engine mrtrix3 dipy] [--preset fast full]
                                    [--seed 0 ...]

makes a series as QSIPrep does, runs the installed command on it once for each engine and preset,
and prints wall time, peak memory of all processes together, how well the connections were
recovered (see `bsym_bids.simulation.diffusion.score_connectome`) beside the best that counting
streamlines can do, and how long the same tracking of 10 million streamlines would have taken. Each
seed is another phantom; for several, the mean and range over them come last. What the presets say
was chosen on the easy phantom of seed 0, so that others tell more.

    python benchmarks/connectome.py --overhead

times fitting and tracking with MRtrix3 beside the bare commands, with the same options and seeds
and as many of them at once, and prints the ratio.

    python benchmarks/connectome.py --repeat [--engine dipy]

tracks twice with different seeds, for several numbers of streamlines, and prints the sampling
reliability that the first says beside the correlation of the two: of counts, and of log(1 + count).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
from measure import CommandCost, run_command

from bsym_bids.dwi.records import PlacedAnatomy, PreparedDwi
from bsym_bids.simulation.diffusion import (
    DiffusionPhantom,
    Score,
    ceiling,
    make_phantom,
    score_connectome,
)
from bsym_bids.simulation.diffusion_files import write_phantom

FOLKLORE = 10_000_000  # streamlines
REPEATED = (5_000, 20_000, 80_000)  # streamlines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", choices=("easy", "hard"), default="easy")
    parser.add_argument("--engine", nargs="+", default=["mrtrix3", "dipy"])
    parser.add_argument("--preset", nargs="+", default=["fast", "full"])
    parser.add_argument("--streamlines", type=int, help="a fixed number instead of the rule")
    parser.add_argument("--voxel", type=float, default=2.5, help="voxel size of the series in mm")
    parser.add_argument("--seed", type=int, nargs="+", default=[0], help="seeds of the phantoms")
    parser.add_argument("--overhead", action="store_true")
    parser.add_argument("--repeat", action="store_true")
    arguments = parser.parse_args()
    scores: dict[str, list[Score]] = defaultdict(list)
    for seed in arguments.seed:
        with tempfile.TemporaryDirectory() as name:
            for what, score in measure(seed, Path(name), arguments):
                scores[what].append(score)
    if len(arguments.seed) > 1:
        summarise(scores)


def measure(seed: int, folder: Path, arguments: argparse.Namespace) -> Iterator[tuple[str, Score]]:
    """Do what was asked for on the phantom of one seed; yield its scores, if that is it."""
    phantom = make_phantom(
        seed, variant=arguments.variant, voxel_mm=arguments.voxel, rotation=(0, 0, 0), motion=0
    )
    write_phantom(phantom, folder / "bids", "01", derivatives="qsiprep")
    if arguments.overhead:
        measure_overhead(folder, arguments.streamlines or 100_000)
    elif arguments.repeat:
        compare_repeats(folder, arguments.engine)
    else:
        yield from compare(phantom, folder, arguments)


# --- accuracy ------------------------------------------------------------------------------------


def compare(
    phantom: DiffusionPhantom, folder: Path, arguments: argparse.Namespace
) -> Iterator[tuple[str, Score]]:
    """Print what each engine and preset needs, and yield what it finds, as named scores."""
    shape = " x ".join(map(str, phantom.dwi.shape))
    print(
        f"{phantom.variant} phantom of seed {phantom.seed}, {shape} at {arguments.voxel:g} mm, "
        f"{cores()} cores"
    )
    best = score_connectome(ceiling(phantom, FOLKLORE), phantom.weights)
    print(f"counting 10 million true fibres: AUC {best.auc:.3f}, r {best.r:.3f}", flush=True)
    yield "counting 10 million true fibres", best
    for engine in arguments.engine:
        for preset in arguments.preset:
            out = folder / f"{engine}_{preset}"
            options = ["--engine", engine, "--preset", preset]
            if arguments.streamlines:
                options += ["--streamlines", str(arguments.streamlines)]
            cost = run_participant_level(folder / "bids", out, options)
            report_cost(out, cost, f"{engine} {preset}")
            for desc, score in scores_of(out, phantom):
                print(f"  {desc}: AUC {score.auc:.3f}, r {score.r:.3f}", flush=True)
                yield f"{engine} {preset} {desc}", score


def scores_of(out: Path, phantom: DiffusionPhantom) -> Iterator[tuple[str, Score]]:
    """Yield the score of each weight that was written."""
    for desc in ("count", "invnodevol", "sift2"):
        for path in out.glob(f"sub-01/dwi/*_desc-{desc}_relmat.tsv"):
            table = pd.read_csv(path, sep="\t", na_values="n/a", index_col=0)
            yield desc, score_connectome(np.nan_to_num(table.to_numpy()), phantom.weights)


def summarise(scores: Mapping[str, Sequence[Score]]) -> None:
    """Print the mean and range of each score over the seeds."""
    print("mean (range) over the seeds:")
    for what, found in scores.items():
        parts = [
            f"{name} {np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"
            for name, values in zip(("AUC", "r"), zip(*found, strict=True), strict=True)
        ]
        print(f"  {what}: {', '.join(parts)}")


def run_participant_level(bids: Path, out: Path, options: Sequence[str]) -> CommandCost:
    program = Path(sys.executable).with_name("bsym-bids")
    return run_command([program, bids, out, "participant", "--model", "bsym-sim-v1", *options])


def step_seconds(log: Path, step: str) -> float:
    """Return how long a step took, by the time stamps of the log."""
    times = {}
    for line in log.read_text("utf-8").splitlines():
        for status in ("start", "end"):
            if line.endswith(f": {step}: {status}"):
                times[status] = pd.Timestamp(" ".join(line.split()[:2]).replace(",", "."))
    return (times["end"] - times["start"]).total_seconds()


def report_cost(out: Path, cost: CommandCost, name: str) -> None:
    tracking = step_seconds(next((out / "logs").glob("*.log")), "track")
    (quality,) = out.glob("sub-01/dwi/*_desc-scan_qc.tsv")
    row = pd.read_csv(quality, sep="\t").iloc[0]
    n = int(row["streamlines"])
    print(f"{name}: {cost.seconds:.0f} s (tracking {tracking:.0f} s), {cost.megabytes:.0f} MB")
    print(f"  {n} streamlines, sampling reliability {row['sampling_reliability']:.3f}")
    # The rate includes what SIFT2 takes to start, which would not grow.
    rest = tracking * (FOLKLORE / n - 1)
    print(
        f"  10 million streamlines would have taken at most {rest / 60:.0f} min more, "
        f"{(cost.seconds + rest) / cost.seconds:.1f} times as long, at the same rate"
    )


# --- repeats -------------------------------------------------------------------------------------


def compare_repeats(folder: Path, engines: Sequence[str]) -> None:
    """Compare the reliability that is said with the correlation of two runs."""
    for engine in engines:
        for n in REPEATED:
            outs = [folder / f"{engine}_{n}_{seed}" for seed in (1, 2)]
            for seed, out in enumerate(outs, start=1):
                options = ["--engine", engine, "--preset", "fast", "--streamlines", str(n)]
                run_participant_level(folder / "bids", out, [*options, "--seed", str(seed)])
            (quality,) = outs[0].glob("sub-01/dwi/*_desc-scan_qc.tsv")
            said = pd.read_csv(quality, sep="\t")["sampling_reliability"].iloc[0]
            pairs = [read_pairs(out, "count") for out in outs]
            measured = np.corrcoef(*pairs)[0, 1]
            of_logs = np.corrcoef(*map(np.log1p, pairs))[0, 1]
            print(f"{engine}, {n}: said {said:.3f}, measured {measured:.3f}, logs {of_logs:.3f}")


def read_pairs(out: Path, desc: str) -> np.ndarray:
    """Return the values of all pairs of ROIs, 0 where an ROI is absent."""
    (path,) = out.glob(f"sub-01/dwi/*_desc-{desc}_relmat.tsv")
    table = pd.read_csv(path, sep="\t", na_values="n/a", index_col=0)
    return np.nan_to_num(table.to_numpy())[np.triu_indices(len(table), 1)]


# --- overhead ------------------------------------------------------------------------------------


def measure_overhead(folder: Path, n_streamlines: int) -> None:
    """Time our steps and the bare commands in turn, on the same input."""
    from bsym_bids.dwi.anatomy import place_anatomy, prepare_anatomy
    from bsym_bids.dwi.engines import resolve_engine
    from bsym_bids.dwi.preprocessing import prepare_dwi
    from bsym_bids.dwi.presets import load_preset
    from bsym_bids.dwi.sampling import SamplingRule, sample_connectome
    from bsym_bids.inputs import plan_inputs

    (scan,) = plan_inputs(folder / "bids", modalities=["dwi"]).participants[0].dwi_scans
    dwi = prepare_dwi(scan, folder / "dwi", threads=cores())
    anatomy = prepare_anatomy(scan.anatomy, folder / "anatomy")
    placed = place_anatomy(dwi, anatomy, folder / "placed", same_space=True)
    engine, preset = resolve_engine("mrtrix3"), load_preset("full")

    started = time.perf_counter()
    model = engine.fit(dwi, placed, preset, folder / "fit", threads=cores(), seed=0)
    rule = SamplingRule(None, n_streamlines, n_streamlines)
    ours = sample_connectome(
        engine, model, placed, preset, folder, rule=rule, seed=0, processes=cores()
    )
    own_seconds = time.perf_counter() - started
    print("ours:", {name: f"{seconds:.1f} s" for name, seconds in ours.seconds.items()}, flush=True)
    started = time.perf_counter()
    order = model.details["SphericalHarmonicsOrder"]
    sizes = [preset.batch_size] * (n_streamlines // preset.batch_size)
    counts = bare_commands(folder / "bare", dwi, placed, order, sizes)
    bare_seconds = time.perf_counter() - started
    upper = np.triu_indices(len(counts), 1)  # absent last ROIs have no row in the bare one
    r = np.corrcoef(counts[upper], np.nan_to_num(ours.counts)[upper])[0, 1]
    print(f"{n_streamlines} streamlines, {cores()} cores, with MRtrix3 and SIFT2")
    print(f"bare commands {bare_seconds:.1f} s, ours {own_seconds:.1f} s")
    print(f"ours / bare {own_seconds / bare_seconds:.3f}; correlation of counts {r:.4f}")


def bare_commands(
    folder: Path, dwi: PreparedDwi, placed: PlacedAnatomy, order: int, sizes: Sequence[int]
) -> np.ndarray:
    """Do the same as one would by hand: FA, orientations, streamlines, weights, two matrices."""
    from bsym_bids.dwi.batches import batch_seeds

    folder.mkdir()

    def run(command: str, **environment: str) -> None:
        started = time.perf_counter()
        subprocess.run(
            [*command.split(), "-quiet", "-force"],
            cwd=folder,
            check=True,
            env={**os.environ, **environment},
        )
        print(f"  {time.perf_counter() - started:6.1f} s  {command.split()[0]}", flush=True)

    threads = f"-nthreads {cores()}"
    run(f"mrconvert {dwi.image} dwi.mif -fslgrad {dwi.bvec} {dwi.bval} -strides 0,0,0,1")
    shutil.copy(dwi.mask, folder / "mask.nii")
    run("dwiextract dwi.mif low.mif -shells 0,1000")
    run(f"dwi2tensor low.mif tensor.mif -mask mask.nii {threads}")
    run("tensor2metric tensor.mif -fa fa.nii -mask mask.nii")
    run("dwi2response dhollander dwi.mif wm.txt gm.txt csf.txt -mask mask.nii -nthreads 0")
    run(
        "dwi2fod msmt_csd dwi.mif wm.txt wm.mif gm.txt gm.mif csf.txt csf.mif -mask mask.nii "
        f"-lmax {order},0,0 {threads}"
    )
    run("mtnormalise wm.mif fod.mif gm.mif g.mif csf.mif c.mif -mask mask.nii")
    run(f"5tt2gmwmi {placed.tissue} interface.nii")
    zooms = np.linalg.norm(np.array(_affine(dwi.image))[:3, :3], axis=0)
    step = 0.5 * float(np.prod(zooms)) ** (1 / 3)

    def track(index: int, seed: int) -> None:
        run(
            f"tckgen fod.mif {index}.tck -algorithm iFOD2 -act {placed.tissue} -backtrack "
            f"-seed_gmwmi interface.nii -select {sizes[index]} -seeds 0 -minlength 20 "
            f"-maxlength 250 -step {step} -angle 45 -cutoff 0.05 -nthreads 0",
            MRTRIX_RNG_SEED=str(seed),
        )

    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(track, range(len(sizes)), islice(batch_seeds(0), len(sizes))))
    run(f"tckedit {' '.join(f'{i}.tck' for i in range(len(sizes)))} all.tck")
    run(f"tcksift2 all.tck fod.mif weights.txt -act {placed.tissue} -nthreads 1")
    for name, options in (("count", ""), ("sift2", "-tck_weights_in weights.txt")):
        run(
            f"tck2connectome all.tck {placed.labels} {name}.csv -symmetric "
            f"-assignment_radial_search 4 {options}"
        )
    run("tcksample all.tck fa.nii mean_fa.txt -stat_tck mean")
    return np.loadtxt(folder / "count.csv", delimiter=",")


def _affine(path: str) -> np.ndarray:
    import nibabel as nib

    return nib.load(path).affine


def cores() -> int:
    return len(os.sched_getaffinity(0))


if __name__ == "__main__":
    main()

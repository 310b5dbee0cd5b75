"""Streaming parcellation against nilearn's NiftiLabelsMasker: time, peak memory, difference.

    python benchmarks/parcellation.py [--volumes 300] [--repeats 3] [--dtype int16] [--file BOLD]

makes a series on the 2 mm grid of MNI152NLin2009cAsym (or takes FILE), reduces it to 450 ROI means
in both ways, each time in a new process and in turn, and prints medians and their ratios.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import numpy as np
from measure import Cost, measure, timed

from bsym_bids import atlas

SPACE = "MNI152NLin2009cAsym"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--volumes", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", choices=("int16", "float32"), default="int16")
    parser.add_argument("--file", type=Path, help="a series to take instead of a simulated one")
    parser.add_argument("--task", choices=("make", "ours", "nilearn"), help=argparse.SUPPRESS)
    parser.add_argument("--means", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task == "make":
        timed(lambda: make_series(arguments.file, arguments.volumes, arguments.dtype))
    elif arguments.task == "ours":
        run_ours(arguments.file, arguments.means)
    elif arguments.task == "nilearn":
        run_nilearn(arguments.file, arguments.means)
    else:
        with tempfile.TemporaryDirectory() as folder:
            compare(arguments, Path(folder))


def compare(arguments: argparse.Namespace, folder: Path) -> None:
    file = arguments.file
    if file is None:
        file = folder / f"sub-x_space-{SPACE}_res-2_desc-preproc_bold.nii.gz"
        # In a process of its own: Linux counts a parent's memory towards its children's peak.
        size = ("--volumes", str(arguments.volumes), "--dtype", arguments.dtype)
        measure(Path(__file__), "make", "--file", str(file), *size)
    costs: dict[str, list[Cost]] = {"nilearn": [], "ours": []}
    for _ in range(arguments.repeats):
        for task, done in costs.items():
            means = folder / f"{task}.npy"
            done.append(measure(Path(__file__), task, "--file", str(file), "--means", str(means)))
    seconds, megabytes = {}, {}
    for task, done in costs.items():
        seconds[task] = statistics.median(cost.seconds for cost in done)
        megabytes[task] = statistics.median(cost.megabytes for cost in done)
        print(f"{task:8} {seconds[task]:8.3f} s {megabytes[task]:8.1f} MB peak", flush=True)
    ours, theirs = np.load(folder / "ours.npy"), np.load(folder / "nilearn.npy")
    difference = np.nanmax(np.abs(ours / theirs - 1))
    print(f"time: {seconds['nilearn'] / seconds['ours']:.1f} times faster")
    print(f"memory: 1/{megabytes['nilearn'] / megabytes['ours']:.1f} of the peak")
    print(f"largest relative difference: {difference:.1e}")


def make_series(path: Path, n_volumes: int, dtype: str) -> None:
    """Write a series with noise inside a brain and zeros outside, compressed as fMRIPrep does."""
    import nibabel as nib
    from scipy.ndimage import binary_closing, binary_dilation

    packaged = nib.load(atlas.volume_path(SPACE, 2))
    brain = binary_dilation(binary_closing(np.asarray(packaged.dataobj) > 0, iterations=4))
    rng = np.random.default_rng(0)
    anatomy = np.where(brain, rng.uniform(6000, 14000, brain.shape), 0)
    data = np.zeros((*brain.shape, n_volumes), dtype)
    for t in range(n_volumes):
        data[..., t] = anatomy * (1 + 0.02 * rng.standard_normal(brain.shape))
    image = nib.Nifti1Image(data, packaged.affine)
    image.header.set_xyzt_units("mm", "sec")
    image.header["pixdim"][4] = 0.8
    nib.save(image, path)


def run_ours(file: Path, means: Path) -> None:
    from bsym_bids.bold import parcellate

    timed(lambda: np.save(means, parcellate(file).timeseries))


def run_nilearn(file: Path, means: Path) -> None:
    import nibabel as nib
    from nilearn.maskers import NiftiLabelsMasker

    image = nib.load(file)
    space = SPACE if SPACE in file.name else "MNI152NLin6Asym"
    labels = atlas.labels_on_grid(image.shape[:3], image.affine, space)

    def call() -> None:
        masker = NiftiLabelsMasker(
            nib.Nifti1Image(labels.astype(np.int32), image.affine),
            standardize=None,
            resampling_target=None,
        )
        np.save(means, masker.fit_transform(str(file)))

    timed(call)


if __name__ == "__main__":
    main()

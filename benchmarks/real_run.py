"""What a model reconstructs of real runs: the cortical rows of its card, from a BIDS dataset.

    python benchmarks/real_run.py DATASET OUT --model bsym-sim-v1 [--model-dir DIR]

runs the participant level three times, with the cleanings that the card of bsym-sim-v1 names, and
prints the mean R2 and rho over cortical ROIs and over all: of the network, under permuted ROI
labels, and of the linear baseline. ``bsym-model check OUT/default --networks`` gives the rest.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd

CLEANINGS = {
    "full_band": ("--nuisance", "none", "--high-pass", "0.008"),
    "band_passed": ("--nuisance", "none", "--high-pass", "0.008", "--low-pass", "0.15"),
    "default": (),
}
SCORES = ("r2", "rho", "permuted_r2", "linear_r2", "linear_rho", "linear_permuted_r2")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="bsym-sim-v1")
    parser.add_argument("--model-dir", type=Path)
    arguments = parser.parse_args()
    model = ["--model", arguments.model]
    model += ["--model-dir", str(arguments.model_dir)] if arguments.model_dir else []
    program = Path(sys.executable).with_name("bsym-bids")
    for name, options in CLEANINGS.items():
        out = arguments.out / name
        call = [program, arguments.dataset, out, "participant", *model, *options]
        subprocess.run(call, check=True, capture_output=True)
        for path in sorted(out.rglob("*_desc-reconstruction_qc.tsv")):
            table = pd.read_csv(path, sep="\t", na_values="n/a")
            cortex = table["network"] != "Subcortex"
            print(f"{name}: {path.name.split('_space-')[0]}")
            for label, rows in (("cortex", cortex), ("all", np.full(len(table), True))):
                means = table.loc[rows, list(SCORES)].mean()
                print(f"  {label:7}", "  ".join(f"{s} {means[s]:.4f}" for s in SCORES))


if __name__ == "__main__":
    main()

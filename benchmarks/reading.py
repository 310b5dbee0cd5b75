"""What it costs to read the outputs of a cohort for the first time, and from what was kept.

    python benchmarks/reading.py [--participants 1000]

writes the outputs of a simulated cohort, then reads all features twice: from the tables, in as many
processes as there are cores, and from the file that the group level keeps of them.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from measure import measure, timed

from bsym_bids.prediction.features import available_kinds
from bsym_bids.prediction.inventory import take_inventory
from bsym_bids.prediction.store import FILE_NAME, FeatureStore
from bsym_bids.simulation.cohort import simulate_recipe
from bsym_bids.simulation.cohort_files import write_cohort


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--participants", type=int, default=1000)
    parser.add_argument("--task", choices=("make", "read"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task is None:
        with tempfile.TemporaryDirectory() as folder:
            compare(arguments.participants, Path(folder))
    elif arguments.task == "make":
        timed(lambda: make(arguments.participants, arguments.folder))
    else:
        timed(lambda: read(arguments.folder))


def compare(n: int, folder: Path) -> None:
    size = ("--participants", str(n), "--folder", str(folder))
    script = Path(__file__)
    measure(script, "make", *size)
    first, again = (measure(script, "read", *size) for _ in range(2))
    print(
        f"{n} participants: tables {first.seconds:.1f} s, {first.megabytes:.0f} MB; kept features "
        f"{again.seconds:.1f} s, {again.megabytes:.0f} MB; {first.seconds / again.seconds:.1f} "
        "times as fast"
    )


def make(n: int, folder: Path) -> None:
    """Write the outputs of a simulated cohort."""
    cohort = simulate_recipe("both", n, width=128, proper=True)
    write_cohort(cohort, folder / "bids", folder / "out")


def read(folder: Path) -> None:
    """Read all kinds of features of everyone, one kind in memory at a time."""
    inventory = take_inventory(folder / "out")
    kinds = available_kinds(inventory)
    store = FeatureStore(folder / FILE_NAME, inventory.output_dir)
    store.update(kinds, inventory.records, len(os.sched_getaffinity(0)))
    for kind in kinds:
        records = inventory.of_modality(kind.modality)
        values = store.load(kind, records)
        assert values.shape[0] == len(records) and not store.problem(kind, records[0])


if __name__ == "__main__":
    main()

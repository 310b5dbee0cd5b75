"""What a cohort will cost, from what one participant of yours (or several) costs here.

    python benchmarks/cohort_cost.py DATASET OUT [--cohort 1000 40000] [options of bsym-bids]

runs ``bsym-bids DATASET OUT participant`` with the options, and prints hours of cores by what the
processors did (not by the clock, which depends on how many there are), the largest memory of all
processes together, and the sizes and numbers of files of outputs and work folder: for those who
were processed, and for each size of cohort at the same cost a participant. OUT has to be new.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from measure import run_command

#: Logs that each call and each participant has; the others are there once for all.
OF_CALLS = ("*_config.toml", "*.log", "*_summary.tsv", "sub-*/**/*")


@dataclass(frozen=True)
class Disk:
    """How much is in files, in 10^6 bytes, and how many there are."""

    megabytes: float
    files: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cohort", type=int, nargs="+", default=[1000, 40000], metavar="N")
    arguments, options = parser.parse_known_args()
    if arguments.out.exists():
        parser.error(f"{arguments.out} is there already: costs are those of a first run")
    program = Path(sys.executable).with_name("bsym-bids")
    cost = run_command([program, arguments.dataset, arguments.out, "participant", *options])
    people = sorted(path for path in arguments.out.glob("sub-*") if path.is_dir())
    if not people:
        raise SystemExit("no participant has outputs")
    n = len(people)
    written = disk(path for folder in people for path in folder.rglob("*"))
    reports = disk(arguments.out.glob("sub-*.html"))
    logs = disk(path for kind in OF_CALLS for path in (arguments.out / "logs").glob(kind))
    work = disk((arguments.out / "work").rglob("*"))
    print(
        f"{n} participant(s): {cost.seconds:.0f} s by the clock, {cost.processor:.0f} s of "
        f"processors, at most {cost.megabytes:.0f} MB of memory"
    )
    kinds = (("outputs", written), ("reports", reports), ("logs", logs), ("work folder", work))
    for name, one in kinds:
        print(f"  {name}: {one.megabytes:.1f} MB in {one.files} files")
    for cohort in arguments.cohort:
        factor = cohort / n
        print(f"{cohort} participants: {cost.processor * factor / 3600:.0f} core-hours")
        for name, one in kinds:
            gigabytes, files = one.megabytes * factor / 1000, one.files * factor
            print(f"  {name}: {gigabytes:.0f} GB in {files / 1e6:.2f} million files")


def disk(paths: Iterable[Path]) -> Disk:
    """Return what files take."""
    sizes = [path.stat().st_size for path in paths if path.is_file() and not path.is_symlink()]
    return Disk(sum(sizes) / 1e6, len(sizes))


if __name__ == "__main__":
    main()

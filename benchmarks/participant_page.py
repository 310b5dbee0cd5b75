"""What the page of a participant costs, how large it is, and how long a browser takes to open it.

    python benchmarks/participant_page.py OUT LABEL [--runs 1 20]

makes the page of a participant of a finished output dataset, as if each of their BOLD runs had been
measured so many times. Opening is measured where there is Chromium: the time from its start to the
picture of the page, less that of an empty page, each several times in turn.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import median

from measure import measure, timed

from bsym_bids.outputs.names import participant_page
from bsym_bids.reports.participant_page import write_participant_page

_TIMES = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="an output dataset")
    parser.add_argument("label", help="of the participant, without sub-")
    parser.add_argument("--runs", type=int, nargs="+", default=[1, 20], metavar="N")
    parser.add_argument("--task", choices=("page",), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        timed(lambda: write_participant_page(arguments.out, arguments.label))
        return
    for n in arguments.runs:
        with tempfile.TemporaryDirectory() as folder:
            compare(arguments.out.resolve(), Path(folder), arguments.label, n)


def compare(out: Path, folder: Path, label: str, n: int) -> None:
    repeat_runs(out, folder, label, n)
    cost = measure(Path(__file__), "page", str(folder), label)
    page = participant_page(folder, label)
    size = page.stat().st_size / 1e6
    print(
        f"each run {n} times: {size:.1f} MB, {cost.seconds:.1f} s, {cost.megabytes:.0f} MB memory"
    )
    if browser := shutil.which("chromium"):
        print(f"opening: {opening(browser, page, folder):.2f} s more than an empty page")


def repeat_runs(out: Path, folder: Path, label: str, n: int) -> None:
    """Link the files of a participant, those of BOLD runs under so many names."""
    shutil.copy(out / "dataset_description.json", folder)
    for path in out.joinpath(f"sub-{label}").rglob("*"):
        if path.is_dir():
            continue
        place = folder / path.relative_to(out).parent
        place.mkdir(parents=True, exist_ok=True)
        if place.name != "func":
            place.joinpath(path.name).symlink_to(path)
            continue
        plain = re.sub(r"_run-\d+", "", path.name)
        for run in range(1, n + 1):
            named = re.sub(r"(_task-[^_]+)", rf"\1_run-{run:02d}", plain)
            place.joinpath(named).symlink_to(path)


def opening(browser: str, page: Path, folder: Path) -> float:
    """Return the seconds that a page takes to be shown, less those of an empty one."""
    empty = folder / "empty.html"
    empty.write_text("<!DOCTYPE html><title>empty</title>")
    times: dict[Path, list[float]] = {empty: [], page: []}
    for _ in range(_TIMES):
        for shown, taken in times.items():
            taken.append(shoot(browser, shown, folder))
    return median(times[page]) - median(times[empty])


def shoot(browser: str, page: Path, folder: Path) -> float:
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1300,900"]
    options += [f"--user-data-dir={folder}", f"--screenshot={folder / 'page.png'}"]
    started = time.perf_counter()
    subprocess.run(
        [browser, *options, page.as_uri()],
        check=True,
        capture_output=True,
        env={**os.environ, "HOME": str(folder)},
    )
    return time.perf_counter() - started


if __name__ == "__main__":
    main()

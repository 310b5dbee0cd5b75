"""Runs inputs of the fuzz targets in processes of their own, and counts what comes of them.

An input is made from the name of its target, the seed and its number alone, so that each can be
made again. A process that dies or does not answer is a finding of the input that it was at.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import logging
import multiprocessing as mp
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "unit")]

from fuzz_case import Hang, Nonsense, Target  # noqa: E402

#: Bytes of address space that an input may take beyond what the process has at its start.
MEMORY = 1 << 30
#: Seconds after which a process that does not answer is killed, relative to what an input may take
#: of the processor: others may be using it too.
_DEAF = 10.0
#: And for what a target makes once, before its first input.
FIRST = 120.0
Result = tuple[int, str, str]  # number of the input, verdict, details


def targets() -> dict[str, Target]:
    """Return all targets by name."""
    import fuzz_binary
    import fuzz_commands
    import fuzz_texts

    found = (*fuzz_texts.TARGETS, *fuzz_binary.TARGETS, *fuzz_commands.TARGETS)
    return {target.name: target for target in found}


def shares(n_inputs: int) -> dict[str, int]:
    """Return how many inputs each target gets of so many: one at least."""
    everything = targets()
    total = sum(target.share for target in everything.values())
    return {
        name: max(1, round(n_inputs * target.share / total)) for name, target in everything.items()
    }


def run_one(target: Target, state: Any, seed: int, number: int) -> tuple[str, str]:
    """Make one input and read it; return the verdict and its details."""
    from bsym_bids.errors import BsymError

    rng = Random(zlib.crc32(f"{target.name} {seed} {number}".encode()))

    def expired(*_: object) -> None:
        raise Hang

    signal.signal(signal.SIGPROF, expired)
    signal.setitimer(signal.ITIMER_PROF, target.seconds)
    try:
        target.once(state, rng)
    except BsymError as error:
        return "refused", f"{type(error).__name__}: {error}"
    except Hang:
        return "hang", _where()
    except Nonsense as error:
        return "nonsense", str(error)
    except MemoryError as error:
        return "memory", f"{error} {_where()}"
    except Exception as error:
        return "exception", f"{type(error).__name__}: {str(error)[:200]} {_where()}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return "accepted", ""


def _where() -> str:
    """Return where in the program an error is from."""
    frames = traceback.extract_tb(sys.exc_info()[2])
    ours = [
        frame for frame in frames if "bsym_bids" in frame.filename or "workflows" in frame.filename
    ]
    return f"at {Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else ""


def _work(target: Target, seed: int, numbers: Sequence[int], answers: Connection) -> None:
    """Run inputs of one target in this process, one after the other."""
    warnings.simplefilter("ignore")
    faulthandler.disable()
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)  # what libraries in C write about files that are none
    os.environ["BSYM_OFFLINE"] = "1"
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        state = target.setup(Path(folder))
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for number in numbers:
            answers.send((number, *run_one(target, state, seed, number)))
    answers.close()


def run_target(target: Target, seed: int, numbers: Sequence[int]) -> list[Result]:
    """Run inputs of one target in a process, and in another one after it died."""
    results: list[Result] = []
    left = list(numbers)
    context = mp.get_context("fork")
    while left:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(target, seed, left, theirs))
        process.start()
        theirs.close()
        first = True
        while left:
            # The first answer comes after what is made once.
            patience = _DEAF * target.seconds + (FIRST if first else 0)
            try:
                if not ours.poll(patience):
                    results.append((left.pop(0), "hang", "deaf to signals"))
                    break
                results.append(ours.recv())
                left.pop(0)
                first = False
            except EOFError:
                process.join()
                results.append((left.pop(0), "crash", f"exit code {process.exitcode}"))
                break
        if process.is_alive():
            process.join(1 if not left else 0)
        if process.is_alive():
            process.kill()
        process.join()
        ours.close()
    return results


FINDINGS = ("exception", "hang", "memory", "nonsense", "crash")


def report(found: dict[str, list[Result]], seconds: float) -> str:
    """Return a table of what came of the inputs of each target."""
    columns = ("accepted", "refused", *FINDINGS)
    lines = [f"{'target':34}" + "".join(f"{column:>10}" for column in ("inputs", *columns))]
    total: Counter[str] = Counter()
    for name, results in found.items():
        counts = Counter(verdict for _, verdict, _ in results)
        total += counts
        cells = [len(results), *(counts[column] for column in columns)]
        lines.append(f"{name:34}" + "".join(f"{cell:10}" for cell in cells))
    cells = [sum(total.values()), *(total[column] for column in columns)]
    lines.append(f"{'all':34}" + "".join(f"{cell:10}" for cell in cells))
    return "\n".join([*lines, f"{seconds:.0f} s"])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 1 where there is a finding."""
    parser = argparse.ArgumentParser(
        prog="scripts/fuzz.py", description="Feeds broken files to every reader."
    )
    parser.add_argument("inputs", type=int, nargs="?", default=10_000, help="how many (10000)")
    parser.add_argument("seed", type=int, nargs="?", default=0, help="of all that is drawn (0)")
    parser.add_argument("--target", action="append", help="only these; 'list' lists them")
    parser.add_argument("--number", type=int, help="only the input of this number, traced")
    parser.add_argument("--json", type=Path, help="write all verdicts to a file")
    given = parser.parse_args(argv)
    everything = targets()
    if given.target == ["list"]:
        print("\n".join(everything))
        return 0
    if given.number is not None:
        return _trace(everything[given.target[0]], given.seed, given.number)
    counts = shares(given.inputs)
    chosen = [everything[name] for name in given.target or everything]
    started, found = time.monotonic(), {}
    for target in chosen:
        own = given.inputs if given.target else counts[target.name]
        found[target.name] = run_target(target, given.seed, range(own))
        bad = [one for one in found[target.name] if one[1] in FINDINGS]
        print(f"{target.name}: {own} inputs, {len(bad)} findings", file=sys.stderr, flush=True)
    kinds: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for name, results in found.items():
        for number, verdict, details in results:
            if verdict in FINDINGS:
                kinds[name, verdict, details[:160]].append(number)
    for (name, verdict, details), numbers in kinds.items():
        print(f"{verdict}: {name}: {details} (inputs {numbers[:4]}, {len(numbers)} in all)")
    print(report(found, time.monotonic() - started))
    if given.json:
        given.json.write_text(json.dumps(found))
    return int(bool(kinds))


def _trace(target: Target, seed: int, number: int) -> int:
    """Run one input in this process, without catching anything."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        state = target.setup(Path(folder))
        target.once(state, Random(zlib.crc32(f"{target.name} {seed} {number}".encode())))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A small dataset made once, and the installed command run on copies of it."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from small_network import write_release

from bsym_bids import cli
from bsym_bids.demo.dataset import make_demo_dataset
from bsym_bids.model import cli as model_cli

#: Of each BOLD run: one window of the network, which most of the time goes into.
N_VOLUMES = 200


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


def run_command(*arguments: object, **options: object) -> Result:
    """Run the installed ``bsym-bids`` as a user would."""
    program = Path(sys.executable).with_name("bsym-bids")
    environment = {**os.environ, **options.pop("env", {})}
    done = subprocess.run(
        [program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=600,
        env=environment,
        check=False,
        **options,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def call_here(*arguments: object, program: str = "bsym-bids") -> Result:
    """Run a command in this process: one that ends before anything is computed.

    By itself it would take some seconds to start, a hundred times as long as to say what is wrong.
    """
    main = {"bsym-bids": cli.main, "bsym-model": model_cli.main}[program]
    out, err = io.StringIO(), io.StringIO()
    with process_restored(), redirect_stdout(out), redirect_stderr(err):
        try:
            code = main([*map(str, arguments)])
        except SystemExit as ended:
            code = ended.code
    return Result(code, out.getvalue(), err.getvalue())


@contextmanager
def process_restored() -> Iterator[None]:
    """Take back what a command sets for its own process: variables, loggers, a signal."""
    environment = dict(os.environ)
    loggers = [logging.getLogger(name) for name in ("bsym_bids", "nipype")]
    before = [(one.level, one.propagate, one.handlers[:]) for one in loggers]
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        for one, (level, propagate, handlers) in zip(loggers, before, strict=True):
            one.setLevel(level)
            one.propagate, one.handlers[:] = propagate, handlers
        signal.signal(signal.SIGTERM, handler)


def participant_level(
    bids: Path, out: Path, *arguments: object, reports: bool = False, **options: object
) -> Result:
    """Run the participant level, without reports unless they are what a test is about."""
    arguments = ("--model", "bsym-sim-v1", *arguments, *([] if reports else ["--skip-reports"]))
    return run_command(bids, out, "participant", *arguments, **options)


@pytest.fixture(scope="session")
def dataset(made_once) -> Path:
    """One participant with a volume, one with CIFTI."""

    def make(folder: Path) -> None:
        people = ("01", "03")
        make_demo_dataset(
            folder / "bids", participants=people, resolution_mm=5, n_volumes=N_VOLUMES
        )

    return made_once("dataset", make) / "bids"


@pytest.fixture
def bids(dataset, tmp_path) -> Path:
    """A copy that a test may break."""
    shutil.copytree(dataset, tmp_path / "bids")
    return tmp_path / "bids"


@pytest.fixture(scope="session")
def small_model(made_once) -> tuple[object, ...]:
    """The arguments that use a release of one's own: a network small enough for quick tests."""
    return ("--model", "small", "--model-dir", made_once("model", write_release))


@pytest.fixture(scope="session")
def finished(dataset, small_model, made_once) -> tuple[Path, Result]:
    """The outputs of an undisturbed run, not to be changed."""

    def make(folder: Path) -> None:
        result = participant_level(dataset, folder / "out", *small_model, reports=True)
        (folder / "result.json").write_text(json.dumps(asdict(result)), "utf-8")

    folder = made_once("finished", make)
    return folder / "out", Result(**json.loads((folder / "result.json").read_text("utf-8")))

"""Processes that compute: on one thread each, and never left behind."""

import os
import signal
import time

import psutil
import pytest

from bsym_bids.errors import BsymError
from bsym_bids.pool import start_processes, stop_processes, workers

VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def threads():
    import SimpleITK as sitk

    return [os.environ[v] for v in VARIABLES], sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()


def square(value):
    return value**2


def fail(value):
    raise ValueError(f"no {value}")


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def sleep():
    time.sleep(60)


def prepare(value):
    os.environ["PREPARED"] = value


def prepared():
    return os.environ["PREPARED"]


def children():
    return [c for c in psutil.Process().children() if "spawn_main" in " ".join(c.cmdline())]


def test_processes_have_one_thread_and_this_one_keeps_its_own(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    before = dict(os.environ)
    with workers(2) as pool:
        assert pool.call(threads) == (["1", "1", "1"], 1)
        assert dict(os.environ) == before
        assert list(pool.map(square, range(5))) == [0, 1, 4, 9, 16]
    assert dict(os.environ) == before and children() == []


def test_an_error_is_raised_and_ends_what_still_runs():
    started = time.monotonic()
    with pytest.raises(ValueError, match="no 3"), workers(2) as pool:
        pool._pool.submit(sleep)
        pool.call(fail, 3)
    assert children() == [] and time.monotonic() - started < 30


def test_a_killed_process_is_explained():
    with pytest.raises(BsymError, match="worker process was killed") as raised, workers(1) as pool:
        pool.call(die)
    assert "memory" in raised.value.hint and children() == []


def test_processes_are_prepared_and_stopped_at_once():
    pool = start_processes(1, prepare, "yes")
    assert pool.submit(prepared).result() == "yes"
    pool.submit(sleep)
    assert len(children()) == 1
    stop_processes(pool)
    assert children() == []

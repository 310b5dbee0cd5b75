"""Things that are done in processes: what goes wrong with one stops no other."""

import os
import signal
from pathlib import Path

import pytest

from bsym_bids.cohort.parallel import each_apart, memory_allows
from bsym_bids.errors import BadDataError, BsymError


def act(what):
    """Do as told."""
    if what == "fails":
        raise BadDataError("file: broken", hint="mend it")
    if what == "fault":
        raise ZeroDivisionError("made to")
    if what == "memory":
        raise MemoryError
    if what == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if isinstance(what, Path) and not what.exists():
        what.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return f"{what} done"


@pytest.mark.parametrize("n_workers", [0, 2])
def test_what_fails_stops_no_other(n_workers, caplog):
    items = ["a", "fails", "fault", "memory", *map(str, range(6))]
    found = dict(each_apart(act, items, n_workers))
    assert sorted(found) == list(range(len(items)))
    errors = {item: found[index] for index, item in enumerate(items[:4])}
    assert [found[index] for index in range(4, 10)] == [f"{k} done" for k in range(6)]
    assert errors.pop("a") == "a done"
    assert all(isinstance(error, BsymError) for error in errors.values())
    assert isinstance(errors["fails"], BadDataError) and errors["fails"].hint == "mend it"
    assert "ZeroDivisionError: made to" in str(errors["fault"])
    assert "out of memory" in str(errors["memory"])
    assert "a fault of the program" in caplog.text


def test_what_kills_its_process_stops_no_other():
    items = ["dies", "a", "b", "c", "d", "e"]
    found = dict(each_apart(act, items, 2))
    assert [found[index] for index in range(1, 6)] == [f"{item} done" for item in items[1:]]
    assert "killed" in str(found[0]) and "memory" in found[0].hint


def test_what_loses_its_process_is_tried_once_more(tmp_path):
    items = [tmp_path / "there", "a"]
    assert dict(each_apart(act, items, 1)) == {k: f"{item} done" for k, item in enumerate(items)}


class Counted(list):
    """A list that counts what was taken of it."""

    taken = 0

    def __getitem__(self, index):
        self.taken += 1
        return super().__getitem__(index)


def test_few_results_wait_for_the_caller():
    """Memory does not grow with the number of items: no more is begun than is taken."""
    items = Counted(["a"] * 50)
    results = each_apart(act, items, 1)
    next(results)
    assert items.taken <= 4
    results.close()


def test_memory_bounds_processes():
    assert memory_allows(8, None, 1.0) == 8
    assert memory_allows(8, 4.5, 1.0) == 4
    assert memory_allows(8, 0.5, 1.0) == 1
    assert memory_allows(0, 4.5, 1.0) == 0

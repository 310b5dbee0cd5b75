"""A small share of the fuzz run (scripts/fuzz.py), and that the run finds what there is to find."""

import os
import time

import pytest
from fuzz_case import Nonsense, Target
from fuzz_runner import FINDINGS, report, run_one, run_target, shares, targets

from bsym_bids.errors import BadDataError

#: Inputs of all targets together; they take about a minute of a processor.
INPUTS, SEED = 1000, 20260101


@pytest.mark.parametrize("name", targets())
def test_every_file_is_read_or_refused_with_a_reason(name):
    results = run_target(targets()[name], SEED, range(shares(INPUTS)[name]))
    findings = [one for one in results if one[1] in FINDINGS]
    assert findings == [], (
        f"scripts/fuzz.py 1 {SEED} --target '{name}' --number N shows one of them"
    )


def _refuse():
    raise BadDataError("x")


def _die():
    os.abort()


def _hang():
    while True:
        time.process_time()


def _hang_in_a_call():
    time.sleep(1000)


def _take_all_memory():
    bytearray(1 << 40)


def _take_nonsense():
    raise Nonsense("x")


@pytest.mark.parametrize(
    ("behave", "verdict"),
    [
        (lambda: None, "accepted"),
        (_refuse, "refused"),
        (lambda: 1 / 0, "exception"),
        (_die, "crash"),
        (_hang, "hang"),
        (_hang_in_a_call, "hang"),
        (_take_all_memory, "memory"),
        (_take_nonsense, "nonsense"),
    ],
)
def test_the_run_tells_what_happens_and_goes_on(behave, verdict, monkeypatch):
    monkeypatch.setattr("fuzz_runner.FIRST", 1)

    def once(state, rng):
        if rng.random() < 0.5:
            behave()

    target = Target("x", lambda folder: folder, once, 1, seconds=0.2)
    results = run_target(target, 1, range(4))
    assert [number for number, *_ in results] == [0, 1, 2, 3]
    assert {found for _, found, _ in results} == {"accepted", verdict}
    assert f"{4:10}" in report({"x": results}, 1.0)


def test_inputs_can_be_made_again():
    drawn = []
    target = Target("x", lambda folder: folder, lambda state, rng: drawn.append(rng.random()), 1)
    for number in (3, 4, 3):
        assert run_one(target, None, 1, number) == ("accepted", "")
    assert drawn[0] == drawn[2] != drawn[1]

import pickle

import pytest

from bsym_bids import errors
from bsym_bids.summary import Outcome, exit_code

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.BsymError)
]


@pytest.mark.parametrize("kind", KINDS)
def test_errors_cross_process_borders_with_their_hint(kind):
    copy = pickle.loads(pickle.dumps(kind("what", hint="do")))
    assert (type(copy), str(copy), copy.hint) == (kind, "what", "do")


def outcome(participant, code=0):
    return Outcome(participant, "r", "failed" if code else "done", exit_code=code)


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ([outcome("1"), outcome("2")], 0),
        ([outcome("1"), outcome("2", 65)], 1),
        ([outcome("1", 65)], 65),
        ([outcome("1", 65), outcome("2", 65)], 65),
        ([outcome("1", 65), outcome("2", 66)], 1),
        ([outcome("1"), outcome("1", 65)], 65),
        ([], 0),
    ],
)
def test_exit_code_says_who_failed(outcomes, expected):
    assert exit_code(outcomes) == expected

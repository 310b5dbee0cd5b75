import io

from bsym_bids.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_plain_stream_gets_one_line_per_participant():
    stream = io.StringIO()
    progress = Progress({"01": 2, "02": 1}, stream)
    for status in ("start", "end", "start", "end"):
        progress.step("01", status, "parcellate")
    progress.step("02", "start", "clean")
    progress.step("02", "exception", "clean")
    lines = stream.getvalue().splitlines()
    assert [line.split(" in ")[0] for line in lines] == [
        "[1/2] sub-01: done",
        "[2/2] sub-02: failed",
    ]


def test_terminal_sees_the_step_at_work():
    stream = Terminal()
    progress = Progress({"01": 2}, stream)
    progress.step("01", "start", "parcellate")
    assert stream.getvalue().endswith("[0/1] sub-01: parcellate (1/2)")


def test_closing_ends_a_participant_once():
    stream = io.StringIO()
    progress = Progress({"01": 3}, stream)
    progress.step("01", "start")
    progress.step("01", "exception")
    progress.close("01", failed=True)
    progress.close("01", failed=True)
    assert stream.getvalue().count("sub-01: failed") == 1

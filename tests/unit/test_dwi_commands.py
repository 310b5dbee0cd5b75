"""External commands: what went wrong is explained, and nothing is left running."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from bsym_bids.dwi import commands
from bsym_bids.dwi.commands import find_command, run
from bsym_bids.errors import BsymError, InputMissingError, OutputIOError
from bsym_bids.pool import workers


def python(code):
    return [sys.executable, "-c", code]


def fails(text, code=1):
    return python(f"import sys; sys.stderr.write({text!r}); sys.exit({code})")


def is_running(pid):
    """Whether a process is there and is no zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_output_comes_back_and_the_folder_and_variables_count(tmp_path):
    code = "import os; print(os.getcwd(), os.environ['ONE'], os.environ['PATH'])"
    said = run(python(code), folder=tmp_path, env={"ONE": "1 2"})
    assert said == f"{tmp_path.resolve()} 1 2 {os.environ['PATH']}\n"


def test_arguments_are_no_shell_words(tmp_path):
    odd = "a b; $HOME 'c' *"
    assert run([sys.executable, "-c", "import sys; print(sys.argv[1])", odd], folder=tmp_path) == (
        f"{odd}\n"
    )


def test_much_output_on_both_channels_does_not_block(tmp_path):
    code = "import sys; sys.stderr.write('e' * 10**6); sys.stdout.write('o' * 10**6)"
    assert run(python(code), folder=tmp_path) == "o" * 10**6


def test_it_reads_nothing_from_the_terminal(tmp_path):
    assert run(python("import sys; print(repr(sys.stdin.read()))"), folder=tmp_path) == "''\n"


def test_failure_names_the_command_and_its_last_lines(tmp_path):
    lines = "\n".join(f"line {number}" for number in range(20))
    with pytest.raises(BsymError) as caught:
        run(fails(lines, 3), folder=tmp_path)
    message = str(caught.value)
    name = os.path.basename(sys.executable)
    assert message.startswith(f"{name} failed (exit code 3): ")
    assert "line 19" in message and "line 12" in message and "line 11" not in message
    assert sys.executable in caught.value.hint


def test_progress_bars_are_not_one_long_line(tmp_path):
    with pytest.raises(BsymError, match=r"\[100%\]; at last$"):
        run(fails("[  1%]\r[ 50%]\r[100%]\rat last\n"), folder=tmp_path)


def test_silence_and_bytes_that_are_no_text_are_reported(tmp_path):
    with pytest.raises(BsymError, match="it gave no reason"):
        run(fails(""), folder=tmp_path)
    with pytest.raises(BsymError, match="caf"):
        run(
            python("import sys; sys.stderr.buffer.write(b'caf\\xe9'); sys.exit(1)"), folder=tmp_path
        )


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_from_other_failures(tmp_path, number):
    said = f"tckgen: [ERROR] error writing file: {os.strerror(number)}\n"
    with pytest.raises(OutputIOError, match=str(tmp_path)) as caught:
        run(fails(said), folder=tmp_path)
    assert os.strerror(number) in str(caught.value) and "space" in caught.value.hint


def test_a_bus_error_on_a_full_disk_is_a_full_disk(tmp_path, monkeypatch):
    dies = python("import os, signal; os.kill(os.getpid(), signal.SIGBUS)")
    with pytest.raises(BsymError, match="SIGBUS") as caught:
        run(dies, folder=tmp_path)
    assert not isinstance(caught.value, OutputIOError)
    monkeypatch.setattr(commands, "_free_space", lambda folder: 4096)
    with pytest.raises(OutputIOError):
        run(dies, folder=tmp_path)


def test_a_command_that_is_not_there_is_named(tmp_path):
    assert find_command("no-such-command") is None
    with pytest.raises(InputMissingError, match="no-such-command: no such command"):
        run(["no-such-command"], folder=tmp_path)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputMissingError, match="absent: no such folder"):
        run(python("pass"), folder=tmp_path / "absent")


def test_a_file_that_cannot_be_run_is_explained(tmp_path):
    script = tmp_path / "script"
    script.write_text("no program\n")
    with pytest.raises(BsymError, match="could not be started: Permission denied"):
        run([script], folder=tmp_path)


@pytest.mark.parametrize("said", ["", "std::bad_alloc"])
def test_a_killed_command_points_to_memory(tmp_path, said):
    code = f"import os, sys; sys.stderr.write({said!r}); sys.stderr.flush(); "
    code += "os.abort()" if said else "os.kill(os.getpid(), 9)"
    with pytest.raises(BsymError, match="SIGABRT" if said else "SIGKILL") as caught:
        run(python(code), folder=tmp_path)
    assert "memory" in caught.value.hint


# A command with a child of its own, as the scripts of MRtrix3 have; both write who they are.
SLEEPER = (
    "import os, subprocess, sys, time; "
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
    "open('part', 'w').write(f'{os.getpid()} {child.pid}'); os.rename('part', 'pids'); "
    "time.sleep(60)"
)


def both(folder):
    wait_for((folder / "pids").exists)
    return [int(word) for word in (folder / "pids").read_text().split()]


@pytest.fixture
def interruptible():
    """What starts the tests in the background makes them ignore interrupts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_ends_the_command_and_its_children(tmp_path):
    def interrupt():
        both(tmp_path)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run(python(SLEEPER), folder=tmp_path)
    thread.join()
    command, child = both(tmp_path)
    assert not is_running(command)
    wait_for(lambda: not is_running(child))


@pytest.mark.skipif(sys.platform != "linux", reason="a child is tied to its parent on Linux only")
def test_the_death_of_this_process_ends_the_command(tmp_path):
    code = "from pathlib import Path; from bsym_bids.dwi.commands import run; import sys; "
    code += f"run([sys.executable, '-c', {SLEEPER!r}], folder=Path({str(tmp_path)!r}))"
    parent = subprocess.Popen(python(code))
    command, child = both(tmp_path)
    assert is_running(command)
    parent.kill()
    parent.wait()
    wait_for(lambda: not is_running(command))
    os.kill(child, signal.SIGKILL)  # what a command starts is its own to end


class TestWorkers:
    """The processes in which own steps run."""

    def test_results_come_in_order_from_single_threaded_processes(self, monkeypatch):
        monkeypatch.setenv("OMP_NUM_THREADS", "7")
        with workers(2) as pool:
            assert list(pool.map(pow, range(20), [2] * 20)) == [n**2 for n in range(20)]
            assert pool.call(os.getenv, "OMP_NUM_THREADS") == "1"
            assert pool.call(os.getpid) != os.getpid()
            assert pool.call(os.getenv, "BSYM_OFFLINE") == os.environ["BSYM_OFFLINE"]
        assert os.environ["OMP_NUM_THREADS"] == "7"

    def test_an_error_in_one_ends_all(self):
        with pytest.raises(ZeroDivisionError), workers(1) as pool:
            pid = pool.call(os.getpid)
            pool.call(divmod, 1, 0)
        wait_for(lambda: not is_running(pid))

    def test_a_killed_one_is_explained(self):
        killed = pytest.raises(BsymError, match="worker process was killed")
        with killed as caught, workers(1) as pool:
            pool.call(signal.raise_signal, signal.SIGKILL)
        assert "memory" in caught.value.hint

    def test_none_outlives_its_parent(self):
        code = "import os, time; from bsym_bids.pool import workers\n"
        code += "if __name__ == '__main__':\n    with workers(1) as pool:\n"
        code += "        print(pool.call(os.getpid), flush=True); pool.call(time.sleep, 60)"
        parent = subprocess.Popen(python(code), stdout=subprocess.PIPE, text=True)
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        parent.kill()
        parent.wait()
        parent.stdout.close()
        wait_for(lambda: not is_running(pid))

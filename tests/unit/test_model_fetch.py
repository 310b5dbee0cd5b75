"""Fetching releases, from a real server on the loopback address that does what servers do."""

import hashlib
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import requests
import yaml
from model_recipe import DATA

from bsym_bids.errors import (
    BadDataError,
    CannotCreateOutputError,
    InputMissingError,
    OutputIOError,
    UsageError,
)
from bsym_bids.model import cards, download, fetch, turns
from bsym_bids.model.cards import read_card
from bsym_bids.model.cli import main
from bsym_bids.model.fetch import fetch_release, first_use_source
from bsym_bids.model.weights import release_folder, resolve_release
from tests.file_server import FileServer

NAME = "two-real-files"
BRANCHES = ("context", "perceiver")
PATHS = {
    branch: read_card("brainsymphony-v1")["files"][branch]["path"]
    for branch in ("context", "perceiver")
}
CONTENT = {path: (DATA / "weights" / Path(path).name).read_bytes() for path in PATHS.values()}
LARGE = PATHS["perceiver"]
ONLINE = {"BSYM_OFFLINE": ""}
QUICK = ONLINE | {"BSYM_TIMEOUT": "1"}
PROGRAM = Path(sys.executable).with_name("bsym-model")


@pytest.fixture
def server():
    with FileServer(dict(CONTENT)) as server:
        yield server


@pytest.fixture
def home(tmp_path):
    """A folder with the official card cut down to the two files that are here."""
    folder = tmp_path / "models" / NAME
    folder.mkdir(parents=True)
    card = read_card("brainsymphony-v1") | {"name": NAME, "url": "http://127.0.0.1:1"}
    card["files"] = {branch: card["files"][branch] for branch in BRANCHES}
    (folder / "model.yaml").write_text(yaml.safe_dump(card))
    return folder


@pytest.fixture
def known(home, tmp_path, monkeypatch):
    """Make it a release that the program knows; return the environment with its home."""
    (tmp_path / "cards").mkdir()
    shutil.move(home / "model.yaml", tmp_path / "cards" / f"{NAME}.yaml")
    home.rmdir()
    monkeypatch.setattr(cards, "_cards_folder", lambda: tmp_path / "cards")
    return QUICK | {"BSYM_MODEL_HOME": str(home.parent)}


def get(home, source, **env):
    """Fetch, and return what was said."""
    stream = io.StringIO()
    fetch_release(NAME, source, home, QUICK | env, stream)
    return stream.getvalue()


def stored(home):
    """Return the files of the release that are under their final names, and their content."""
    return {path: (home / path).read_bytes() for path in PATHS.values() if (home / path).exists()}


def parts(home):
    return sorted(home.rglob(".*.part"))


def part_of(home, path=LARGE):
    place = home / path
    place.parent.mkdir(parents=True, exist_ok=True)
    return place.with_name(f".{place.name}.part")


# --- a good server -------------------------------------------------------------------------------


def test_files_are_fetched_verified_and_kept(home, server):
    said = get(home, server.url)
    assert stored(home) == CONTENT and not parts(home)
    assert sorted(server.paths) == sorted(CONTENT)
    assert f"fetching 2 file(s) from {server.url} into {home}" in said
    assert said.count("verified") == 2
    release = resolve_release(NAME, home)
    assert set(release.sha256) == set(BRANCHES)


def test_what_is_here_is_not_fetched_again(home, server):
    get(home, server.url)
    asked = list(server.asked)
    assert get(home, server.url) == ""
    assert server.asked == asked
    (home / LARGE).unlink()
    get(home, server.url)
    assert server.asked == [*asked, (LARGE, None)]


def test_flat_files_count_and_a_flat_source_serves(home, server):
    server.files = {Path(path).name: content for path, content in CONTENT.items()}
    shutil.copy(DATA / "weights" / "context.pth", home)
    get(home, f"{server.url}/")
    assert server.paths == [LARGE, "fusion.pth"]
    assert set(resolve_release(NAME, home).files) == set(BRANCHES)


def test_wrong_file_under_a_final_name_is_replaced(home, server):
    (home / LARGE).parent.mkdir(parents=True)
    (home / LARGE).write_bytes(b"anything")
    with pytest.raises(BadDataError, match=r"fusion\.pth: not the file") as error:
        shutil.copy(DATA / "weights" / "context.pth", home)
        resolve_release(NAME, home)
    assert f"bsym-model fetch {NAME}" in error.value.hint
    assert f"{home / LARGE}: not the file that the card pins" in get(home, server.url)
    assert (home / LARGE).read_bytes() == CONTENT[LARGE]
    assert server.paths == [LARGE]


@pytest.mark.parametrize("behaviour", ["of_unknown_size", "whole"])
def test_other_ways_to_serve_are_understood(home, server, behaviour):
    server.usual = behaviour
    get(home, server.url)
    assert stored(home) == CONTENT


def test_redirection_is_followed(home, server):
    server.todo.append("elsewhere")
    get(home, server.url)
    assert stored(home) == CONTENT


# --- interruptions -------------------------------------------------------------------------------


def test_busy_server_is_asked_again(home, server):
    server.todo.extend(["busy", "busy"])
    said = get(home, server.url)
    assert stored(home) == CONTENT
    assert said.count("HTTP 503 Service Unavailable; trying again") == 2


def test_pauses_grow_and_attempts_are_bounded(home, server, monkeypatch):
    pauses = []
    monkeypatch.setattr(download.time, "sleep", pauses.append)
    server.usual = "busy"
    with pytest.raises(InputMissingError, match="503"):
        get(home, server.url, BSYM_TIMEOUT="")
    assert pauses == [1, 2, 4]
    assert len(server.asked) == 4


@pytest.mark.parametrize("behaviour", ["truncate", "hang_up"])
def test_broken_connection_is_taken_up_where_it_ended(home, server, behaviour):
    server.todo.extend([behaviour, behaviour])
    get(home, server.url)
    assert stored(home) == CONTENT
    if behaviour == "truncate":
        size = len(CONTENT[PATHS["context"]])
        ranges = [asked for _, asked in server.asked[:3]]
        half = size // 2
        assert ranges == [None, f"bytes={half}-", f"bytes={half + (size - half) // 2}-"]


def test_begun_file_is_gone_on_with(home, server):
    part_of(home).write_bytes(CONTENT[LARGE][:1000])
    get(home, server.url)
    assert server.asked[-1] == (LARGE, "bytes=1000-")
    assert stored(home) == CONTENT and not parts(home)


@pytest.mark.parametrize("behaviour", ["whole", "other_range"])
def test_server_without_ranges_starts_anew(home, server, behaviour):
    part_of(home).write_bytes(CONTENT[LARGE][:1000])
    server.usual = behaviour
    get(home, server.url)
    assert stored(home) == CONTENT


@pytest.mark.parametrize(
    ("content", "requests_of_it"),
    [
        (CONTENT[LARGE], 1),  # complete: the server has nothing to add
        (CONTENT[LARGE] + b"more", 2),
        (b"x" * 1000, 2),  # of something else
        (b"x" * len(CONTENT[LARGE]), 2),
        (b"", 1),
    ],
)
def test_begun_file_that_does_not_fit_starts_anew(home, server, content, requests_of_it):
    part_of(home).write_bytes(content)
    get(home, server.url)
    assert stored(home) == CONTENT and not parts(home)
    assert server.paths.count(LARGE) == requests_of_it


@pytest.mark.parametrize("behaviour", ["stall", "silent", "trickle"])
def test_server_that_stops_answering_is_given_up_in_seconds(home, server, behaviour):
    server.usual = behaviour
    started = time.monotonic()
    with pytest.raises(InputMissingError) as error:
        get(home, server.url)
    limit = 6 if behaviour == "trickle" else 3
    assert time.monotonic() - started < limit  # with a time-out of 1 s
    assert f"{NAME} cannot be fetched: {server.url}" in str(error.value)
    words = {"stall": "no byte for 0.5 s", "silent": "no answer within 0.5 s"}
    assert words.get(behaviour, "fewer than 1000 bytes a second") in str(error.value)
    assert not stored(home)
    server.usual = "serve"
    get(home, server.url)
    assert stored(home) == CONTENT
    if behaviour == "stall":
        assert "bytes=" in next(asked for _, asked in server.asked if asked)


def test_default_time_outs_end_in_seconds_and_one_setting_changes_them():
    assert download.Patience.of({}) == download.Patience(silence=20, attempts=4)
    assert download.Patience.of({"BSYM_TIMEOUT": "3"}).silence == 3
    for wrong in ("0", "-1", "soon", "nan", "inf"):
        with pytest.raises(UsageError, match="BSYM_TIMEOUT"):
            download.Patience.of({"BSYM_TIMEOUT": wrong})


def test_killed_fetch_leaves_a_part_that_the_next_goes_on_with(home, server):
    server.todo.extend(["serve", "stall"])
    call = [PROGRAM, "fetch", NAME, "--model-dir", home, "--from", server.url]
    process = subprocess.Popen(call, env={**os.environ, **ONLINE}, stderr=subprocess.DEVNULL)
    third = len(CONTENT[LARGE]) // 3
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if part_of(home).exists() and part_of(home).stat().st_size >= third:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert LARGE not in stored(home)
    assert CONTENT[LARGE].startswith(part_of(home).read_bytes())
    with pytest.raises(InputMissingError, match=r"fusion\.pth"):
        resolve_release(NAME, home)
    get(home, server.url)
    assert server.asked[-1] == (LARGE, f"bytes={third}-")
    assert stored(home) == CONTENT and not parts(home)


# --- what is not the file ------------------------------------------------------------------------


@pytest.mark.parametrize("behaviour", ["substitute", "shorter", "page"])
def test_what_is_not_the_file_is_refused_by_name_and_not_kept(home, server, behaviour):
    server.todo.extend(["serve", behaviour])
    with pytest.raises(BadDataError) as error:
        get(home, server.url)
    assert error.value.exit_code == 65
    assert str(error.value).startswith(f"{LARGE} from {server.url}: not the file of {NAME}: ")
    assert "cf6c0d10f9566bcd4cd6c20c0bc1ab375227deaa" in str(error.value)
    assert "--from" in error.value.hint
    assert LARGE not in stored(home) and not parts(home)
    get(home, server.url)
    assert stored(home) == CONTENT
    assert server.asked[-1] == (LARGE, None)


@pytest.mark.parametrize(
    ("behaviour", "words"), [("gone", "404"), ("forbidden", "403"), ("encoded", "gzip")]
)
def test_refusal_is_final(home, server, behaviour, words):
    server.usual = behaviour
    with pytest.raises(InputMissingError, match=words) as error:
        get(home, server.url)
    assert error.value.exit_code == 66
    # the flat layout is tried for a file that is not there
    assert len(server.asked) == (2 if behaviour == "gone" else 1)
    assert not stored(home) and not parts(home)


# --- no network ----------------------------------------------------------------------------------


def closed_port():
    with FileServer({}) as server:
        return server.url


@pytest.mark.parametrize(
    ("source", "words"),
    [(closed_port(), "Connection refused"), ("http://weights.invalid", "weights.invalid")],
    ids=["a closed port", "no such host"],
)
def test_no_network_names_the_ways_out(home, source, words):
    started = time.monotonic()
    with pytest.raises(InputMissingError, match=words) as error:
        get(home, source)
    assert time.monotonic() - started < 10
    for way in (f"bsym-model fetch {NAME}", "--from", "--model-dir", "$BSYM_MODEL_HOME"):
        assert way in error.value.hint
    assert "--model untrained" in error.value.hint
    assert "HTTPConnection" not in str(error.value)
    assert not parts(home)


def test_network_that_swallows_everything_is_given_up_in_seconds(home):
    with ExitStack() as opened:
        # A queue of connections that is full: more of them get no answer, as behind a firewall.
        full = opened.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):
            waiting = opened.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        started = time.monotonic()
        with pytest.raises(InputMissingError, match=r"no connection within 0\.5 s"):
            get(home, f"http://127.0.0.1:{full.getsockname()[1]}")
        assert time.monotonic() - started < 4


def test_offline_switch_forbids_the_network_and_nothing_else(home, server, tmp_path):
    with pytest.raises(InputMissingError, match="BSYM_OFFLINE") as error:
        get(home, server.url, BSYM_OFFLINE="1")
    assert "unset BSYM_OFFLINE" in error.value.hint
    assert not server.asked
    get(home, str(DATA / "weights"), BSYM_OFFLINE="yes")
    assert stored(home) == CONTENT


def test_proxies_of_the_environment_are_used(home, server, monkeypatch):
    monkeypatch.setenv("http_proxy", server.url)
    get(home, "http://weights.invalid")
    assert stored(home) == CONTENT


def test_untrusted_certificates_have_a_hint(home, monkeypatch):
    def refuse(*_, **__):
        raise requests.exceptions.SSLError("certificate verify failed")

    monkeypatch.setattr(requests.Session, "get", refuse)
    with pytest.raises(InputMissingError, match="certificate verify failed") as error:
        get(home, "https://example.org")
    assert "REQUESTS_CA_BUNDLE" in error.value.hint


@pytest.mark.parametrize(
    "source", ["ftp://example.org/x", "http://", "file://elsewhere/x", "http://[x"]
)
def test_what_is_no_source_is_wrong_usage(home, source):
    with pytest.raises(UsageError):
        get(home, source)


def test_passwords_in_addresses_are_not_shown(home, server, capsys):
    source = server.url.replace("//", "//me:secret@")
    server.todo.extend(["busy", "serve", "forbidden"])
    assert main(["fetch", NAME, "--model-dir", str(home), "--from", source]) == 66  # offline
    said = capsys.readouterr().err
    stream = io.StringIO()
    with pytest.raises(InputMissingError) as error:
        fetch_release(NAME, source, home, QUICK, stream)
    said += stream.getvalue() + str(error.value) + error.value.hint
    said += (home / ".fetch.lock").read_text()
    assert "secret" not in said and server.url in said


# --- other sources -------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["flat", "release"])
@pytest.mark.parametrize("form", ["{}", "{}/", "file://{}", "file://localhost{}"])
def test_from_a_folder(home, tmp_path, layout, form):
    source = tmp_path / "a copy"
    for path, content in CONTENT.items():
        place = source / (path if layout == "release" else Path(path).name)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    folder = str(source).replace(" ", "%20" if "://" in form else " ")
    get(home, form.format(folder))
    assert stored(home) == CONTENT


def test_from_a_folder_with_a_file_missing_or_wrong(home, tmp_path):
    source = tmp_path / "copy"
    source.mkdir()
    shutil.copy(DATA / "weights" / "context.pth", source)
    with pytest.raises(InputMissingError, match=r"copy/.*fusion\.pth: no such file"):
        get(home, str(source))
    (source / "fusion.pth").write_bytes(CONTENT[LARGE][:-1])
    with pytest.raises(BadDataError, match=r"fusion\.pth from .*copy: not the file"):
        get(home, str(source))
    assert not parts(home) and list(stored(home)) == [PATHS["context"]]
    with pytest.raises(InputMissingError, match="absent"):
        get(home, str(tmp_path / "absent"))


def test_card_mirror_and_option_tell_the_source(known, server, tmp_path):
    assert first_use_source(NAME, env=known) == "http://127.0.0.1:1"
    mirror = known | {"BSYM_MODEL_MIRROR": f"{server.url}/models/"}
    assert first_use_source(NAME, env=mirror) == f"{server.url}/models/{NAME}"
    server.files = {f"models/{NAME}/{path}": content for path, content in CONTENT.items()}
    fetch_release(NAME, env=mirror, stream=io.StringIO())
    assert stored(release_folder(NAME, known)) == CONTENT
    # an option goes before both
    with pytest.raises(InputMissingError, match="absent"):
        elsewhere = known | {"BSYM_MODEL_HOME": str(tmp_path / "other")}
        fetch_release(NAME, str(tmp_path / "absent"), env=elsewhere, stream=io.StringIO())


def test_home_of_a_model_is_a_mirror(known, tmp_path):
    folder = tmp_path / "institute" / NAME
    folder.mkdir(parents=True)
    for name in ("context.pth", "fusion.pth"):
        shutil.copy(DATA / "weights" / name, folder)
    env = known | {"BSYM_MODEL_MIRROR": str(folder.parent), "BSYM_OFFLINE": "1"}
    assert first_use_source(NAME, env=env) == str(folder)
    assert fetch_release(NAME, env=env, stream=io.StringIO()).name == NAME


def test_first_use_has_a_source_only_where_it_may(known, home):
    assert first_use_source(NAME, env=known | {"BSYM_OFFLINE": "1"}) is None
    assert first_use_source(NAME, model_dir=home, env=known) is None
    for value in ("0", "false", "No", ""):
        assert first_use_source(NAME, env=known | {"BSYM_OFFLINE": value})


def test_nothing_to_fetch(capsys):
    assert main(["fetch", "untrained"]) == 0
    assert "untrained: complete and verified; no files needed" in capsys.readouterr().out
    assert main(["fetch", "nonsense"]) == 64


def test_release_without_an_address_needs_one(home):
    card = yaml.safe_load((home / "model.yaml").read_text())
    del card["url"]
    (home / "model.yaml").write_text(yaml.safe_dump(card))
    with pytest.raises(UsageError) as error:
        get(home, None)
    assert "--from" in error.value.hint


# --- the folder ----------------------------------------------------------------------------------


def test_home_that_cannot_be_written_is_named(known, server, tmp_path):
    (tmp_path / "file").touch()
    env = known | {"BSYM_MODEL_HOME": str(tmp_path / "file" / "models")}
    with pytest.raises(CannotCreateOutputError, match="file/models") as error:
        fetch_release(NAME, server.url, env=env, stream=io.StringIO())
    assert error.value.exit_code == 73
    assert "$BSYM_MODEL_HOME" in error.value.hint and "--model-dir" in error.value.hint
    assert not server.asked
    with pytest.raises(CannotCreateOutputError, match="HOME") as error:
        fetch_release(NAME, server.url, env=QUICK, stream=io.StringIO())
    assert "$BSYM_MODEL_HOME" in error.value.hint


def test_read_only_home_with_the_files_in_it_serves(home, server, monkeypatch):
    get(home, server.url)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert get(home, server.url) == ""
    (home / LARGE).unlink()
    with pytest.raises(CannotCreateOutputError, match=f"{home}: Permission denied"):
        get(home, server.url)


def test_full_disk_is_explained_and_the_next_goes_on(home, server, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(download.os, "fsync", full)
        with pytest.raises(OutputIOError, match=r"context\.pth\.part: No space left") as error:
            get(home, server.url)
    assert "make space" in error.value.hint
    get(home, server.url)
    assert stored(home) == CONTENT


# --- several at once -----------------------------------------------------------------------------


def fetchers(count, home, source, **env):
    """Start commands that fetch at the same time; return their exit codes and what they said."""
    call = [PROGRAM, "fetch", NAME, "--model-dir", home, "--from", source]
    options = {"env": {**os.environ, **ONLINE, **env}, "stdout": -1, "stderr": -1, "text": True}
    started = [subprocess.Popen(call, **options) for _ in range(count)]
    said = [process.communicate(timeout=60) for process in started]
    return [process.returncode for process in started], said


def test_ten_processes_fetch_once(home, server):
    codes, said = fetchers(10, home, server.url)
    assert codes == [0] * 10, said
    assert sorted(server.paths) == sorted(CONTENT)
    assert stored(home) == CONTENT and not parts(home)
    assert sum("fetching 2 file(s)" in err for _, err in said) == 1


def test_those_who_wait_need_not_fail_one_by_one(home, server):
    server.usual = "silent"
    started = time.monotonic()
    codes, said = fetchers(6, home, server.url, BSYM_TIMEOUT="4")
    assert codes == [66] * 6, said
    assert time.monotonic() - started < 15  # not six times five seconds
    waited = [err for _, err in said if "waiting for another process" in err]
    assert waited and all("no answer within 2 s" in err for err in waited)


def test_lock_goes_with_a_killed_process(home, server):
    server.usual = "silent"
    call = [PROGRAM, "fetch", NAME, "--model-dir", home, "--from", server.url]
    process = subprocess.Popen(call, env={**os.environ, **ONLINE}, stderr=subprocess.DEVNULL)
    while not server.asked:
        time.sleep(0.02)
    waiter = {}
    thread = threading.Thread(target=lambda: waiter.update(said=get(home, server.url)))
    thread.start()
    time.sleep(0.5)
    assert not waiter
    server.usual = "serve"
    process.send_signal(signal.SIGKILL)
    process.wait()
    thread.join(10)
    assert "waiting for another process" in waiter["said"]
    assert stored(home) == CONTENT


def test_threads_take_turns_too(home, server):
    threads = [threading.Thread(target=get, args=(home, server.url)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(server.paths) == sorted(CONTENT)
    assert stored(home) == CONTENT


def test_where_there_are_no_locks_everybody_fetches(home, server, monkeypatch):
    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(turns.fcntl, "flock", refuse)
    begun = part_of(home)
    begun.write_bytes(b"of another process")
    get(home, server.url)
    assert stored(home) == CONTENT
    assert parts(home) == [begun] and begun.read_bytes() == b"of another process"


def test_process_without_a_sign_of_life_is_not_waited_for(home, server, monkeypatch):
    monkeypatch.setattr(fetch, "_DEAD", 0)
    with turns.turn(home / ".fetch.lock", lambda: None, lambda: None, 1):
        said = get(home, server.url, BSYM_TIMEOUT="0.1")
    assert "waiting" in said and stored(home) == CONTENT


# --- what is said --------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_bytes_are_counted_on_a_line_that_changes_on_a_terminal(monkeypatch):
    now = iter(range(100))
    monkeypatch.setattr(download.time, "monotonic", lambda: next(now))
    stream = Terminal()
    progress = download.Progress(stream)
    progress.start("x")
    progress.count(1_000_000, 4_000_000)
    progress.count(2_500_000, None)
    progress.say("done")
    assert stream.getvalue() == "\r\033[Kx: 1.00 MB of 4.00 MB\r\033[Kx: 2.50 MB\r\033[Kdone\n"


def test_bytes_are_counted_seldom_elsewhere(monkeypatch):
    now = iter(range(0, 400, 4))
    monkeypatch.setattr(download.time, "monotonic", lambda: next(now))
    stream = io.StringIO()
    progress = download.Progress(stream)
    for done in range(7):
        progress.count(done, None)
    progress.close()
    assert stream.getvalue().count("\n") == 2 and "\r" not in stream.getvalue()


def test_command_ends_as_the_error_asks(home, server, capsys, monkeypatch):
    for name, value in QUICK.items():
        monkeypatch.setenv(name, value)
    call = ["fetch", NAME, "--model-dir", str(home), "--from", server.url]
    server.todo.append("substitute")
    assert main(call) == 65
    server.todo.append("forbidden")
    assert main(call) == 66
    assert main([*call[:-1], "ftp://x"]) == 64
    capsys.readouterr()
    assert main(call) == 0
    out = capsys.readouterr().out
    assert out == f"{NAME}: complete and verified; files in {home}\n"
    sums = {hashlib.sha256(content).hexdigest() for content in CONTENT.values()}
    assert main(["verify", NAME, "--model-dir", str(home)]) == 0
    assert all(value in capsys.readouterr().out for value in list(sums)[:1])


def test_interrupted_command_says_so(home, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch, "_bring", interrupt)
    assert main(["fetch", NAME, "--model-dir", str(home), "--from", "/nowhere"]) == 130
    assert "interrupted" in capsys.readouterr().err

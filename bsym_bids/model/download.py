"""Bringing one file here: from a folder or from a server, in pieces, going on where it stopped.

A file comes in under a name of its own beside the final one (a part). What has arrived stays there
when the connection or the program breaks off, and the next try asks for the rest. Whether a
complete part is what it should be is for the caller to say.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TextIO, cast
from urllib.parse import urljoin, urlsplit
from urllib.request import url2pathname

from bsym_bids.errors import (
    DEVICE_ERRORS,
    CannotCreateOutputError,
    InputMissingError,
    OutputIOError,
    UsageError,
)
from bsym_bids.model.turns import without_following
from bsym_bids.model.weights import LARGEST_FILE
from bsym_bids.untrusted import escaped

if TYPE_CHECKING:
    import requests

_CHUNK = 1 << 16
_MOST_DIGITS = 19  # of a number of bytes
_SLOWEST = 1000  # bytes/s: a server that trickles is as good as silent
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
_ABSENT = {404, 410}


@dataclass(frozen=True)
class Patience:
    """How long a server is waited for.

    Attributes
    ----------
    silence : float
        Seconds without a byte after which it is given up; one attempt waits half of them, to
        connect as well as between bytes.
    attempts : int
        Most attempts for one file. They are 1, 2, 4, ... seconds apart.
    """

    silence: float = 20.0
    attempts: int = 4

    @classmethod
    def of(cls, env: Mapping[str, str] = os.environ) -> Patience:
        """Return what ``$BSYM_TIMEOUT`` asks for (seconds), or the default."""
        text = env.get("BSYM_TIMEOUT", "")
        if not text:
            return cls()
        try:
            silence = float(text)
        except ValueError:
            silence = 0
        if not 0 < silence < float("inf"):
            raise UsageError(
                f"BSYM_TIMEOUT is {text!r}, but must be a number of seconds above 0",
                hint="unset it for the default of 20 seconds",
            )
        return cls(silence=silence)

    def pause(self, attempt: int) -> float:
        """Return how many seconds to wait after an attempt, counted from 0."""
        return min(2.0**attempt, self.silence / 2)


class Progress:
    """What is said while files come in: a line that changes on a terminal, else a line at times.

    Parameters
    ----------
    stream : TextIO, optional
        Where to write; standard error by default.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._every = 0.2 if self._live else 10.0
        self._shown = time.monotonic()
        self._open = False
        self._name = ""

    def start(self, name: str) -> None:
        """Say what comes in from now on."""
        self._name = name

    def say(self, text: str) -> None:
        """Write a line that stays."""
        self._stream.write(f"{self._clear()}{escaped(text)}\n")
        self._stream.flush()
        self._open = False

    def count(self, done: int, total: int | None) -> None:
        """Show how many bytes of it are here, unless that was shown a moment ago."""
        now = time.monotonic()
        if now - self._shown < self._every:
            return
        self._shown = now
        text = f"{self._name}: {_megabytes(done)}" + (f" of {_megabytes(total)}" if total else "")
        if self._live:
            self._stream.write(f"\r\033[K{text}")
            self._stream.flush()
            self._open = True
        else:
            self.say(text)

    def close(self) -> None:
        """Take the changing line away."""
        self._stream.write(self._clear())
        self._stream.flush()
        self._open = False

    def _clear(self) -> str:
        return "\r\033[K" if self._open else ""


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.2f} MB"


class _BrokenOff(Exception):
    """An attempt ended early; another one may do better.

    Parameters
    ----------
    reason : str
        Why.
    heard : float, optional
        When the last byte came, on the monotonic clock; None when none did.
    """

    def __init__(self, reason: str, heard: float | None = None) -> None:
        super().__init__(reason)
        self.heard = heard


class _NotThere(Exception):
    """The server has no such file."""


def local_folder(source: str) -> Path | None:
    """Return the folder that a source is; None when it is an address on the network.

    Raises
    ------
    UsageError
        For an address that is neither ``http``, ``https`` nor ``file``.
    """
    if "://" not in source:
        return Path(source)
    with suppress(ValueError):  # of brackets without an end
        parts = urlsplit(source)
        if parts.scheme == "file" and parts.netloc in ("", "localhost"):
            return Path(url2pathname(parts.path))
        if parts.scheme in ("http", "https") and parts.hostname:
            return None
    raise UsageError(
        f"{source}: not an address that files can be had from",
        hint="name a folder, or an address that starts with http://, https:// or file:///",
    )


def without_credentials(url: str) -> str:
    """Return an address as it may be shown."""
    try:
        parts = urlsplit(url)
    except ValueError:  # it is none: nothing of it is shown, as it may hold a password
        return "an address that is none"
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an error of the system while files of a model are written into an explained one."""
    try:
        yield
    except OSError as error:
        if error.errno in DEVICE_ERRORS:
            raise OutputIOError(
                f"{path}: {error.strerror}",
                hint="make space, then run the same command again: it goes on from here",
            ) from error
        raise CannotCreateOutputError(
            f"{path}: {error.strerror or error}",
            hint="models have to be kept in a folder that can be written: name one with "
            "$BSYM_MODEL_HOME, or one that holds the files already with --model-dir",
        ) from error


def copy_file(places: Sequence[Path], part: Path, progress: Progress) -> None:
    """Copy the first file that is there, from the beginning.

    Raises
    ------
    InputMissingError
        None of the places can be read.
    """
    for place in places:
        try:
            source = place.open("rb")
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise InputMissingError(f"{place}: cannot be read: {error.strerror}") from error
        with source, writing(part), _opened(part, "wb") as target:
            total = os.fstat(source.fileno()).st_size
            while chunk := source.read(_CHUNK):
                target.write(chunk)
                progress.count(target.tell(), total)
            _settle(target)
        return
    raise InputMissingError(f"{places[0]}: no such file")


def download_file(
    urls: Sequence[str],
    part: Path,
    patience: Patience,
    progress: Progress,
    *,
    may_leave: bool = False,
) -> None:
    """Download the first file that the server has, going on from what is in the part.

    Where the server says that the file is elsewhere, that is followed on the same host only, and
    never from ``https`` to anything else.

    Parameters
    ----------
    urls : sequence of str
        Addresses of the file, in order of preference.
    part : Path
        Where it comes in. Kept when this fails.
    patience : Patience
        How long to wait.
    progress : Progress
        Who is told.
    may_leave : bool
        Follow the server to other hosts, too, over TLS: for addresses that the user names, as
        some keep their files with others.

    Raises
    ------
    InputMissingError
        The server does not have it, refuses it, sends elsewhere or too much, cannot be reached or
        stops answering.
    UsageError
        The address, or that of a proxy, is none.
    """
    with _session(may_leave) as session:
        for url in urls:
            try:
                _download(session, url, part, patience, progress)
            except _NotThere as error:
                reason = str(error)
            else:
                return
    raise InputMissingError(f"{without_credentials(urls[0])}: {reason}")


def _session(may_leave: bool) -> requests.Session:
    """Return a session that follows a server to where it may, and raises where it may not."""
    import requests

    class Session(requests.Session):
        def get_redirect_target(self, resp: requests.Response) -> str | None:
            target = super().get_redirect_target(resp)
            if target is not None:
                _check_redirect(resp.url, urljoin(resp.url, target), may_leave)
            return target

    return Session()


def _check_redirect(url: str, target: str, may_leave: bool) -> None:
    """Refuse to be sent out of TLS, or to another host than the one that was asked for."""
    try:
        asked, sent = (_place(one) for one in (url, target))
    except ValueError:  # of a port that is none
        asked, sent = None, ("", "", None)
    scheme, host, _ = sent
    same_host = asked is not None and host == asked[1]
    if sent == asked or (scheme == "https" and (same_host or may_leave)):
        return
    raise InputMissingError(
        f"{without_credentials(url)}: sends elsewhere, to {without_credentials(target)}, which is "
        "not followed",
        hint="if that place is to be trusted, name it with --from; what comes is verified as well",
    )


def _place(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


def _download(
    session: requests.Session, url: str, part: Path, patience: Patience, progress: Progress
) -> None:
    """Try, and try again, until the part is complete."""
    heard, furthest = time.monotonic(), 0
    for attempt in range(patience.attempts):
        try:
            _attempt(session, url, part, patience.silence / 2, progress)
            return
        except _BrokenOff as error:
            reason = f"{without_credentials(url)}: {error}"
            have = _size(part)
            if error.heard and have > furthest:  # the same bytes again are nothing new
                heard, furthest = error.heard, have
        if attempt + 1 == patience.attempts or time.monotonic() - heard >= patience.silence:
            break
        pause = patience.pause(attempt)
        progress.say(f"{reason}; trying again in {pause:g} s")
        time.sleep(pause)
    raise InputMissingError(reason)


def _attempt(
    session: requests.Session, url: str, part: Path, timeout: float, progress: Progress
) -> None:
    """Ask for what is missing of a file, and take in what comes."""
    have = _size(part)
    # A part is made of bytes of the file, not of an encoding of it.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with (
        _explained(url, timeout),
        session.get(url, headers=headers, stream=True, timeout=timeout) as answer,
    ):
        start, total = _what_comes(answer, have)
        if start is None and total == have:
            return  # complete before it was asked for
        if start is not None:
            with writing(part), _opened(part, "ab" if start else "wb") as target:
                _take_in(answer, target, total, timeout, progress)
            return
    # More is here than the file has, or the server sends another piece than it was asked for.
    with writing(part), _opened(part, "wb"):
        pass  # empty
    _attempt(session, url, part, timeout, progress)


def _opened(part: Path, mode: str) -> BinaryIO:
    return cast(BinaryIO, open(part, mode, opener=without_following))


def _size(part: Path) -> int:
    with writing(part):
        return part.stat().st_size if part.exists() else 0


def _what_comes(answer: requests.Response, have: int) -> tuple[int | None, int | None]:
    """Return from which byte of the file on an answer is, and how many the file has.

    None for the first: it is of no use for a part that has ``have`` bytes. None for the second: the
    server does not say.

    Raises
    ------
    _BrokenOff, _NotThere, InputMissingError
        Nothing comes: for now, at all, or for a reason of the server's own.
    """
    status = f"HTTP {answer.status_code} {answer.reason or ''}".strip()
    encoding = answer.headers.get("Content-Encoding", "identity")
    piece, _, size = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
    match answer.status_code:
        case 200 if encoding == "identity":
            return 0, _number(answer.headers.get("Content-Length", ""))
        case 206 if encoding == "identity" and piece.startswith(f"{have}-"):
            return have, _number(size)
        case 206 | 416 if have:
            return None, _number(size)
        case code if code in _TRANSIENT:
            raise _BrokenOff(status)
        case code if code in _ABSENT:
            raise _NotThere(status)
    if encoding != "identity":
        status += f", encoded ({encoding}), which was not asked for"
    raise InputMissingError(f"{without_credentials(answer.url)}: {status}")


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() and len(text) < _MOST_DIGITS else None


def _take_in(
    answer: requests.Response,
    target: BinaryIO,
    total: int | None,
    timeout: float,
    progress: Progress,
) -> None:
    """Write the body of an answer as it comes.

    Raises
    ------
    _BrokenOff
        It ends before its time, or comes too slowly to be waited for.
    """
    from urllib3.exceptions import HTTPError, ReadTimeoutError

    heard: float | None = None
    since, before = time.monotonic(), target.tell()
    _check_amount(answer, total or 0)
    try:
        # One read of the socket at a time: whatever has come is written.
        while chunk := answer.raw.read1(_CHUNK, decode_content=False):
            target.write(chunk)
            heard = time.monotonic()
            _check_amount(answer, target.tell())
            progress.count(target.tell(), total)
            if heard - since > timeout:
                if target.tell() - before < _SLOWEST * timeout:
                    raise _BrokenOff(f"fewer than {_SLOWEST} bytes a second", heard)
                since, before = heard, target.tell()
    except ReadTimeoutError:
        raise _BrokenOff(f"no byte for {timeout:g} s", heard) from None
    except HTTPError as error:
        raise _BrokenOff(_reason(error), heard) from error
    if total is not None and target.tell() < total:
        raise _BrokenOff(f"broke off after {target.tell()} of {total} bytes", heard)
    _settle(target)


def _check_amount(answer: requests.Response, size: int) -> None:
    """Refuse what would fill the disk: no file of weights is as large."""
    if size > LARGEST_FILE:
        raise InputMissingError(
            f"{without_credentials(answer.url)}: sends more than {LARGEST_FILE} bytes"
        )


def _settle(file: BinaryIO) -> None:
    """Have the disk keep a file, so that a name given to it later is never that of a hole."""
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def _explained(url: str, timeout: float) -> Iterator[None]:
    """Turn what goes wrong with a request into an error that tells whether to try again."""
    from requests import exceptions as on

    shown = without_credentials(url)
    try:
        yield
    except (on.InvalidURL, on.InvalidSchema, on.MissingSchema) as error:
        raise UsageError(
            f"{shown}: {error}", hint="check the address, and those of proxies in the environment"
        ) from error
    except on.SSLError as error:
        raise InputMissingError(
            f"{shown}: {_reason(error)}",
            hint="where a proxy signs with certificates of its own, name their file with "
            "$REQUESTS_CA_BUNDLE",
        ) from error
    except on.ConnectTimeout:
        raise _BrokenOff(f"no connection within {timeout:g} s") from None
    except on.Timeout:
        raise _BrokenOff(f"no answer within {timeout:g} s") from None
    except on.ConnectionError as error:
        raise _BrokenOff(_reason(error)) from error
    except on.RequestException as error:
        raise InputMissingError(f"{shown}: {error}") from error


def _reason(error: Exception) -> str:
    """Return what is at the bottom of an error of the network, without the layers above."""
    cause: object = error
    while isinstance(cause, Exception):
        below = getattr(cause, "reason", None)
        if not isinstance(below, Exception):
            below = next((arg for arg in reversed(cause.args) if isinstance(arg, Exception)), None)
        if below is None:
            break
        cause = below
    return re.sub(r"^\S*HTTPS?Connection.*?[)>]: ", "", str(cause)) or type(cause).__name__

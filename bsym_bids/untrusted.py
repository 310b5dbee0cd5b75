"""Reading files that anybody may have written: text, JSON, YAML, TOML, and archives of arrays.

Whatever is in a file, what is raised here is an `OSError`, or a `ValueError` that says what is
wrong: no matter how deep it is nested, how long its numbers are, what its aliases or its compressed
parts grow to, or whether there is a file at all behind its name. Nothing in a file is carried out.
Readers name the file and say what to do.
"""

from __future__ import annotations

import faulthandler
import json
import os
import re
import resource
import signal
import stat
from collections.abc import Callable
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    import zipfile

    import yaml
    from numpy.typing import NDArray

#: Bytes of the largest sidecar or description of columns; those of large studies have a tenth.
JSON_BYTES = 1 << 26
#: Bytes of the largest recipe or card, which people write by hand: YAML takes 15 s a MB.
YAML_BYTES = 1 << 17
#: Bytes of the largest file of settings: it may name every participant.
TOML_BYTES = 1 << 20
#: Bytes of the largest text of numbers.
TEXT_BYTES = 1 << 26
#: Bytes of all arrays of the largest archive; those of large cohorts have a tenth.
ARRAYS_BYTES = 1 << 31
#: How deep a document may be nested.
DEEPEST = 64
#: Entries of a YAML document, with those that aliases stand for.
MOST_ENTRIES = 50_000
#: Bits of the largest integer that is a number of anything; more, and it is none as a float.
_MOST_BITS, _MOST_DIGITS = 1023, 308
_BRACKETS = re.compile(r"[\[\]{}]")
#: Letters of the longest text that is shown in full.
_SHOWN = 2000
#: What a terminal takes for commands, text in reverse, and halves of characters; not line feeds.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class UnreadableError(ValueError):
    """A file that is not what is read from it: the message says why, but not which file."""


def escaped(text: str) -> str:
    """Return a text without commands for terminals, and that can be written in UTF-8."""
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def say(text: object, file: TextIO | None = None) -> None:
    """Print a line, `escaped`: there may be names and values out of files in it."""
    print(escaped(str(text)), file=file)


def printable(text: str) -> str:
    """Return a text as it may be shown: `escaped`, and of a sensible length.

    Parameters
    ----------
    text : str
        A message, in which there may be names and values out of files.
    """
    text = escaped(text)
    if len(text) <= _SHOWN:
        return text
    half = _SHOWN // 2
    return f"{text[:half]} [{len(text) - 2 * half} more characters] {text[-half:]}"


def open_regular(path: str | os.PathLike[str]) -> IO[bytes]:
    """Open a file for reading, if it is one: pipes and devices have no end.

    Raises
    ------
    OSError
        It cannot be opened.
    UnreadableError
        It is a folder, a pipe or a device.
    """
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 (the caller closes it)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise UnreadableError("it is no file, but a pipe or a device")
    return file


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # of a pipe, for somebody to write


def read_bytes(path: str | os.PathLike[str], most: int) -> bytes:
    """Read a whole file, unless it is larger than what is looked for can be.

    Raises
    ------
    OSError
        It cannot be read.
    UnreadableError
        It is no regular file, or has more than `most` bytes.
    """
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size <= most:
            content = file.read()
            if len(content) <= most:  # it may grow meanwhile
                return content
    raise UnreadableError(f"it has more than {most} bytes")


def read_text(path: str | os.PathLike[str], most: int = TEXT_BYTES) -> str:
    """Read a text in UTF-8, with or without a byte-order mark.

    Line ends are line feeds, whatever they are in the file.

    Raises
    ------
    OSError
        It cannot be read.
    ValueError
        As `read_bytes`, or it is not in UTF-8.
    """
    text = read_bytes(path, most).decode("utf-8").removeprefix("\ufeff")
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def try_apart(read: Callable[[], object], seconds: int = 20) -> None:
    """Try in a process of its own whether a file can be read that a library in C reads.

    A damaged file can end the process that it is in, or keep it busy for ever. Errors that Python
    raises are no matter here: whoever reads the file next meets them, too.

    Parameters
    ----------
    read : callable
        Reads all that will be read.
    seconds : int
        What it may take of a processor.

    Raises
    ------
    UnreadableError
        The process died of it, or did not come to an end.
    """
    child = os.fork()
    if child == 0:
        try:
            faulthandler.disable()
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            _, most = resource.getrlimit(resource.RLIMIT_CPU)
            least = seconds if most == resource.RLIM_INFINITY else min(seconds, most)
            resource.setrlimit(resource.RLIMIT_CPU, (least, least))
            with suppress(Exception):
                read()
        finally:
            os._exit(0)  # nothing of the parent's is written once more
    try:
        _, status = os.waitpid(child, 0)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        raise UnreadableError(f"it is damaged: reading it ended with {name}")


# --- JSON ----------------------------------------------------------------------------------------


def read_json(path: str | os.PathLike[str], most: int = JSON_BYTES) -> Any:
    """Read a JSON document.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        It is none; too large, or nested too deeply.
    """
    return parse_json(read_text(path, most))


def parse_json(text: str) -> Any:
    """Return what a JSON text says; raises as `read_json`."""
    try:
        document = json.loads(text, parse_int=_integer)
    except RecursionError:
        raise _too_deep() from None
    # To count brackets takes a hundredth of the time of looking into them.
    if text.count("[") + text.count("{") > DEEPEST:
        _check_depth(document)
    return document


def _integer(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise UnreadableError(f"it has an integer of more than {_MOST_DIGITS} digits")
    return int(digits)


def _check_depth(document: Any) -> None:
    """Refuse what is nested too deeply to be walked through; cohorts have 100,000 sidecars."""
    level = [document]
    for _ in range(DEEPEST + 1):
        level = [
            value
            for holder in level
            for value in (holder.values() if type(holder) is dict else holder)
            if type(value) is dict or type(value) is list
        ]
        if not level:
            return
    raise _too_deep()


def _check(document: Any) -> None:
    """Refuse what is nested too deeply, and integers that are no numbers, of any mapping."""
    level = [document]
    for _ in range(DEEPEST):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inner += value
                inner += value.values()
            elif isinstance(value, list | tuple | set):
                inner += value
            elif isinstance(value, int) and value.bit_length() > _MOST_BITS:
                raise UnreadableError(f"it has an integer of more than {_MOST_DIGITS} digits")
        if not inner:
            return
        level = inner
    raise _too_deep()


def _too_deep() -> UnreadableError:
    return UnreadableError(f"it is nested more than {DEEPEST} levels deep")


# --- YAML ----------------------------------------------------------------------------------------


def read_yaml(path: str | os.PathLike[str], loader: type[yaml.SafeLoader] | None = None) -> Any:
    """Read a YAML document of at most `YAML_BYTES`; raises as `parse_yaml`, and OSError."""
    return parse_yaml(read_text(path, YAML_BYTES), loader)


def parse_yaml(text: str, loader: type[yaml.SafeLoader] | None = None) -> Any:
    """Return what a YAML text says: plain values, and nothing that it could have done.

    Parameters
    ----------
    text : str
        The document.
    loader : type, optional
        A loader that is derived from the safe one; that itself by default.

    Raises
    ------
    ValueError
        It is none; nested too deeply; or its aliases stand for more than `MOST_ENTRIES`.
    """
    import yaml

    if _depth_of_brackets(text) > DEEPEST:  # for which YAML takes the square of the time
        raise _too_deep()
    try:
        loading = (loader or yaml.SafeLoader)(text)
        node = loading.get_single_node()
        if node is None:
            return None
        _check_entries(node)
        document = loading.construct_document(node)
        _check(document)
    except UnreadableError:
        raise
    except RecursionError:
        raise _too_deep() from None
    except yaml.YAMLError as error:
        raise UnreadableError(str(error)) from error
    except Exception as error:  # constructors of YAML's types raise what the text leads them to
        raise UnreadableError(f"a value is not of its type: {error}") from error
    return document


def _depth_of_brackets(text: str) -> int:
    """Return how deep brackets are nested, if none of them stands in quotes."""
    depth = deepest = 0
    for bracket in _BRACKETS.findall(text):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _check_entries(node: yaml.Node) -> None:
    """Refuse aliases that stand for too much, or for what they are in, before they are followed."""
    sizes: dict[int, int] = {}
    waiting: list[tuple[yaml.Node, bool]] = [(node, False)]
    begun: set[int] = set()
    while waiting:
        one, is_counted = waiting.pop()
        inner = _inner(one)
        if is_counted:
            begun.discard(id(one))
            sizes[id(one)] = 1 + sum(sizes[id(entry)] for entry in inner)
            if sizes[id(one)] > MOST_ENTRIES:
                raise UnreadableError(f"it has more than {MOST_ENTRIES} entries")
        elif id(one) in begun:
            raise UnreadableError("an alias stands within what it stands for")
        elif id(one) not in sizes:
            begun.add(id(one))
            waiting.append((one, True))
            waiting += [(entry, False) for entry in inner]


def _inner(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node.value, str):
        return []
    return [
        part for entry in node.value for part in (entry if isinstance(entry, tuple) else (entry,))
    ]


# --- TOML ----------------------------------------------------------------------------------------


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a TOML document of at most `TOML_BYTES`.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        It is none, or nested too deeply.
    """
    import tomllib

    try:
        text = read_text(path, TOML_BYTES)
        if any(key.count(".") > DEEPEST for line in text.splitlines() for key in _keys(line)):
            raise _too_deep()  # for which TOML takes memory by the square of the length
        document = tomllib.loads(text)
        _check(document)
    except RecursionError:
        raise _too_deep() from None
    return document


def _keys(line: str) -> list[str]:
    """Return what there is in a line of TOML before each equals sign, or its brackets."""
    return [line] if line.lstrip().startswith("[") else line.split("=")[:-1]


# --- archives of arrays --------------------------------------------------------------------------


def read_arrays(path: str | os.PathLike[str], most: int = ARRAYS_BYTES) -> dict[str, NDArray[Any]]:
    """Read all arrays of an ``.npz``, without pickles.

    Parameters
    ----------
    path : path
        The file.
    most : int
        Bytes that its arrays may have together when they are inflated.

    Raises
    ------
    OSError
        It cannot be read.
    UnreadableError
        It is no such archive, its arrays are too large, or are not as large as they say.
    """
    import zipfile

    import numpy as np

    with open_regular(path) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                _check_arrays(archive, most)
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        except (UnreadableError, OSError):
            raise
        except Exception as error:  # what the bytes lead the libraries to
            raise UnreadableError(f"it is no archive of arrays: {error}") from error


def _check_arrays(archive: zipfile.ZipFile, most: int) -> None:
    """Refuse arrays that are too large before they are read: who reads one makes room for it."""
    import math

    from numpy.lib import format as npy

    total = sum(entry.file_size for entry in archive.infolist())
    if total > most:
        raise UnreadableError(f"its arrays have {total} bytes, more than {most}")
    for entry in archive.infolist():
        with archive.open(entry) as member:
            version = npy.read_magic(member)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, _, dtype = read(member)
        if math.prod(map(int, shape)) * dtype.itemsize > entry.file_size:
            raise UnreadableError(f"{entry.filename} is smaller than it says")


# --- numbers -------------------------------------------------------------------------------------

#: A number in a text, as other programs write it. Python would also take 1_000, and digits of other
#: scripts.
_NUMBER = re.compile(
    r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?|[-+]?(nan|inf|infinity)", re.A | re.I
)
_LONGEST_NUMBER = 64


def to_float(text: str) -> float:
    """Return the number that a text is.

    Raises
    ------
    ValueError
        It is none. NaN and infinity are numbers here.
    """
    if len(text) > _LONGEST_NUMBER or not _NUMBER.fullmatch(text):
        raise UnreadableError(f"not a number: {text[:_LONGEST_NUMBER]!r}")
    return float(text)

"""The errors a user can meet, each with an exit code and a hint.

A message names the file and what is wrong with it; the hint says what to do. Whatever is raised
as one of these is shown without a traceback. Exit codes follow the draft BIDS execution
specification and ``sysexits.h``.
"""

from __future__ import annotations

import errno

from bsym_bids.untrusted import printable

#: What a full or failing disk raises.
DEVICE_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG})
#: What a file or folder raises that may not be touched.
PERMISSION_ERRORS = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
#: What to do when memory did not suffice.
MEMORY_HINT = (
    "see that more memory is free, or do less at once: lower --nprocs or --omp-nthreads, or set "
    "--mem-gb to what there is"
)


class BsymError(Exception):
    """Base of all errors that are explained to the user instead of traced.

    Parameters
    ----------
    message : str
        What is wrong, naming the file, participant or option. Names and values out of files are
        made fit to be shown, see `bsym_bids.untrusted.printable`.
    hint : str, optional
        What the user can do about it.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(printable(message))
        self.hint = printable(hint)

    def __reduce__(self) -> tuple[type[BsymError], tuple[str, str]]:
        # Exceptions cross process borders by pickling; the default would drop the hint.
        return type(self), (str(self), self.hint)


class ParticipantsFailedError(BsymError):
    """Some participants could not be processed; the others are complete."""

    exit_code = 1


class NotBidsError(BsymError):
    """The input directory is not a BIDS dataset."""

    exit_code = 16


class NothingSelectedError(BsymError):
    """The labels and filters leave nothing to process."""

    exit_code = 18


class UsageError(BsymError):
    """Arguments that contradict each other or that this level does not take."""

    exit_code = 64


class BadDataError(BsymError):
    """An input file is there but cannot be used."""

    exit_code = 65


class InputMissingError(BsymError):
    """An input file, model release or derivative dataset is absent."""

    exit_code = 66


class CannotCreateOutputError(BsymError):
    """The output or work directory cannot be created or written."""

    exit_code = 73


class OutputIOError(BsymError):
    """Writing failed part of the way: disk full, quota, input/output error."""

    exit_code = 74


def explain_machine(error: Exception, where: object) -> BsymError | None:
    """Return what explains an error that is the machine's: memory, disk or permissions.

    Parameters
    ----------
    error : Exception
        What was raised.
    where : object
        What the message names when the error names no file.

    Returns
    -------
    BsymError or None
        None for anything else.
    """
    if is_out_of_memory(error):
        return BsymError(f"{where}: out of memory. {error}".rstrip(), MEMORY_HINT)
    if not isinstance(error, OSError):
        return None
    message = f"{error.filename or where}: {error.strerror}"
    if error.errno in DEVICE_ERRORS:
        return OutputIOError(
            message, "see to the disk of the work directory, then run the same command again"
        )
    if error.errno in PERMISSION_ERRORS:
        hint = "check the permissions of the input, output and work directories"
        return CannotCreateOutputError(message, hint)
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory did not suffice.

    Libraries in C++ (torch, ITK) raise a RuntimeError for it, and one that does not even find the
    memory to be loaded into, an ImportError.
    """
    if isinstance(error, RuntimeError):
        return any(text in str(error) for text in ("allocate memory", "bad_alloc"))
    if isinstance(error, ImportError):
        return "failed to map segment" in str(error) or "allocate memory" in str(error)
    number = error.errno if isinstance(error, OSError) else None
    return isinstance(error, MemoryError) or number == errno.ENOMEM

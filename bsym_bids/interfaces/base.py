"""What all interfaces share: one plain call, and a record of an explained failure."""

from __future__ import annotations

import json
from abc import abstractmethod
from pathlib import Path
from typing import Any

from nipype.interfaces.base import BaseInterfaceInputSpec, Bunch, SimpleInterface, traits

from bsym_bids import __version__
from bsym_bids.errors import (
    DEVICE_ERRORS,
    MEMORY_HINT,
    PERMISSION_ERRORS,
    BsymError,
    CannotCreateOutputError,
    OutputIOError,
    is_out_of_memory,
)
from bsym_bids.software import OF_ALL, OF_MODELS, OF_SCANS, library_versions

#: Written into a node's folder when it fails for a reason that can be explained.
FAILURE_RECORD = "failure.json"
_LIBRARIES = library_versions(*OF_ALL, *OF_SCANS, *OF_MODELS)
_SOFTWARE = f"{__version__} {json.dumps(_LIBRARIES)}"


class PlainInputSpec(BaseInterfaceInputSpec):
    """Inputs that every interface has."""

    version = traits.Str(
        _SOFTWARE,
        usedefault=True,
        desc="of bsym-bids and libraries: another one computes everything anew",
    )


class PlainInterface(SimpleInterface):
    """An interface around one plain function.

    A failure that is explained (`bsym_bids.errors.BsymError`), or that is the machine's (disk,
    memory, permissions), is recorded in the node's folder, so that the summary can tell the reason
    whichever plugin or machine ran the node.
    """

    @abstractmethod
    def _call(self, folder: Path) -> dict[str, Any]:
        """Do the work in ``folder`` and return the outputs by name."""

    def _run_interface(self, runtime: Bunch) -> Bunch:
        folder = Path(runtime.cwd)
        try:
            self._results.update(self._call(folder))
        except Exception as error:
            explained = _explained(error, folder)
            if explained is None:
                raise
            _record(folder, explained)
            if explained is error:
                raise
            raise explained from error
        return runtime


def _explained(error: Exception, folder: Path) -> BsymError | None:
    """Return what explains an error of a step in its folder, or None for a fault of ours."""
    if isinstance(error, BsymError):
        return error
    if is_out_of_memory(error):
        return BsymError(f"{folder}: this step ran out of memory. {error}".rstrip(), MEMORY_HINT)
    number = error.errno if isinstance(error, OSError) else None
    if number in DEVICE_ERRORS:
        return OutputIOError(
            f"{folder}: {error.strerror}",
            hint="see to the disk of the work directory, then run the same command again",
        )
    if number in PERMISSION_ERRORS:
        return CannotCreateOutputError(
            f"{error.filename or folder}: {error.strerror}",
            hint="check the permissions of the input, output and work directories",
        )
    return None


def _record(folder: Path, error: BsymError) -> None:
    record = {"message": str(error), "hint": error.hint, "exit_code": error.exit_code}
    try:
        (folder / FAILURE_RECORD).write_text(json.dumps(record), "utf-8")
    except OSError:
        return  # the disk may be what failed; the crash file still tells the story

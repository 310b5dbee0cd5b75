"""What all interfaces share: one plain call, and a record of an explained failure."""

from __future__ import annotations

import json
from abc import abstractmethod
from pathlib import Path
from typing import Any

from nipype.interfaces.base import BaseInterfaceInputSpec, Bunch, SimpleInterface, traits

from bsym_bids import __version__
from bsym_bids.errors import BsymError, explain_machine
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
            explained = error if isinstance(error, BsymError) else explain_machine(error, folder)
            if explained is None:
                raise
            _record(folder, explained)
            if explained is error:
                raise
            raise explained from error
        return runtime


def _record(folder: Path, error: BsymError) -> None:
    record = {"message": str(error), "hint": error.hint, "exit_code": error.exit_code}
    try:
        (folder / FAILURE_RECORD).write_text(json.dumps(record), "utf-8")
    except OSError:
        return  # the disk may be what failed; the crash file still tells the story

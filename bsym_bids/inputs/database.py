"""What there is in the folders of participants, kept from one call to the next.

There is one file for each participant. Jobs that work on one dataset at the same time share the
folder without waiting for each other: each writes what it looked at, whole or not at all. Nothing
is believed unseen: of every folder its times of change and its number on the disk are kept, and
what differs in one of them is looked into again. What files hold is not kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from bsym_bids.errors import CannotCreateOutputError
from bsym_bids.inputs.listing import look_into
from bsym_bids.untrusted import read_json

_FORMAT = 2
#: Time in ns that a folder must have been left alone. File systems count in steps of up to two
#: seconds, within which a second change leaves no trace.
_SETTLING = 5_000_000_000


class KeptFolder(NamedTuple):
    """A folder as it was kept.

    Attributes
    ----------
    stamp : tuple of int
        Times of change of its list and of itself in ns, and its number on the disk. Empty if it has
        to be looked into again: it had changed only just before, or has links that lead nowhere.
    files, folders, lost : tuple of str
        As of `bsym_bids.inputs.listing.Folder`; what is lost is not kept.
    """

    stamp: tuple[int, ...]
    files: tuple[str, ...]
    folders: tuple[str, ...]
    lost: tuple[str, ...] = ()


class Database:
    """What is kept of one BIDS dataset and its derivatives.

    Parameters
    ----------
    folder : Path
        Where, without anything else in it.

    Attributes
    ----------
    folder : Path
        Where.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._unchanged = 0
        self._changed = 0
        self._unreadable = ""
        self._unwritable = ""

    @classmethod
    def of(cls, database_dir: Path, bids_dir: Path) -> Database:
        """Open what is kept of a dataset; make the folder if need be.

        Parameters
        ----------
        database_dir : Path
            Folder that may hold databases of other datasets too.
        bids_dir : Path
            The dataset.

        Raises
        ------
        CannotCreateOutputError
            The folder is not there and cannot be made.
        """
        root = bids_dir.absolute()
        of_which = hashlib.sha256(os.fsencode(root)).hexdigest()[:8]
        folder = database_dir / f"{root.name}-{of_which}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if not os.path.isdir(folder):  # which is False of what may not be looked at
                raise CannotCreateOutputError(
                    f"{folder}: the database of {bids_dir} cannot be made: {error.strerror}",
                    "choose another folder with --bids-database-dir, or go without",
                ) from error
        return cls(folder)

    @property
    def notes(self) -> tuple[str, ...]:
        """What became of it, in sentences."""
        total = self._unchanged + self._changed
        said = (
            f"{self.folder}: {self._unchanged} of {total} folders of participants are as they were "
            f"kept, {self._changed} were looked into",
        )
        return (*said, *filter(None, (self._unreadable, self._unwritable)))

    def read(self, label: str) -> dict[str, KeptFolder]:
        """Return the folders that are kept of a participant, by their paths; none if unreadable."""
        try:
            document = read_json(self._path(label))
            if document["Format"] != _FORMAT:
                return {}
            return {place: _kept(entry) for place, entry in document["Folders"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            self._unreadable = f"{self._path(label)}: cannot be read, so it is not used: {error}"
            return {}

    def renew(self, folder: Path, kept: KeptFolder | None) -> KeptFolder:
        """Return what there is in a folder: as it was kept if nothing changed.

        Parameters
        ----------
        folder : Path
            The folder.
        kept : KeptFolder, optional
            What is kept of it.

        Raises
        ------
        OSError
            As `bsym_bids.inputs.listing.look_into`.
        """
        # Before it is looked into: what changes meanwhile then differs from the stamp.
        now, stamp = time.time_ns(), _stamp(folder)
        if kept is not None and kept.stamp and kept.stamp == stamp:
            self._unchanged += 1
            return kept
        self._changed += 1
        found = look_into(folder)
        # What a link leads to may come without a trace in the folder of the link.
        is_settled = max(stamp[:2]) < now - _SETTLING and not found.lost
        return KeptFolder(stamp if is_settled else (), found.files, found.folders, found.lost)

    def write(self, label: str, before: dict[str, KeptFolder], now: dict[str, KeptFolder]) -> None:
        """Keep the folders of a participant, unless all of that is kept already.

        Parameters
        ----------
        label : str
            Label of the participant.
        before, now : dict
            What was kept, of which folders that were not looked for stay, and what there is.
        """
        after = before | now
        if after == before or self._unwritable:
            return
        entries = {place: kept[:3] for place, kept in after.items()}
        path = self._path(label)
        part = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
        try:
            part.write_text(json.dumps({"Format": _FORMAT, "Folders": entries}), "utf-8")
            os.replace(part, path)
        except OSError as error:
            # It only saves time, and others may share it read-only.
            self._unwritable = f"{path}: cannot be written, so it stays as it is: {error.strerror}"
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)

    def _path(self, label: str) -> Path:
        return self.folder / f"sub-{label}.json"


def _stamp(folder: Path) -> tuple[int, int, int]:
    status = os.stat(folder)
    # Copying programs set the first time back, but nobody can set the second.
    return status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _kept(entry: Any) -> KeptFolder:
    stamp, files, folders = entry
    return KeptFolder(tuple(map(int, stamp)), tuple(map(str, files)), tuple(map(str, folders)))

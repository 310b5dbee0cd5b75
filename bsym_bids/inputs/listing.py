"""What there is in folders: each is looked into once in a call, and may be kept for later ones."""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bsym_bids.inputs.database import Database, KeptFolder

LOGGER = logging.getLogger("bsym_bids")
#: What is raised for what is not there, or is a link that leads to itself.
ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}
#: How names of files end that are many in a dataset.
_FILE = re.compile(r"\.(b|bval|bvec|csv|gii|gz|h5|html|json|mat|md|nii|png|svg|toml|tsv|txt)$")
_DEEPEST = 3  # folders below a participant's own: as deep as copies put aside are looked for


class Folder:
    """What there is in a folder, but for what is hidden.

    Parameters
    ----------
    files, folders : tuple of str
        Names of files and of folders, sorted. Links count as what they lead to; those that lead
        nowhere as files if they are named like one, else as folders.
    lost : tuple of str
        Those of the folders that are links that lead nowhere, or where one may not look.
    """

    __slots__ = ("_ending", "_known", "files", "folders", "lost")

    def __init__(
        self,
        files: tuple[str, ...] = (),
        folders: tuple[str, ...] = (),
        lost: tuple[str, ...] = (),
    ) -> None:
        self.files = files
        self.folders = folders
        self.lost = lost
        self._known = frozenset(files)
        self._ending: dict[str, tuple[str, ...]] = {}

    def has(self, name: str) -> bool:
        """Tell whether there is a file of this name."""
        return name in self._known

    def ending(self, ending: str) -> tuple[str, ...]:
        """Return the files whose names end so."""
        # The folder of everybody is asked for the same sidecars by each of their series.
        if ending not in self._ending:
            self._ending[ending] = tuple(name for name in self.files if name.endswith(ending))
        return self._ending[ending]


_EMPTY = Folder()


class Listing:
    """What there is in the folders of some datasets, as it was when each was first looked into.

    Parameters
    ----------
    database : Database, optional
        Where the folders of participants are kept for later calls.
    """

    def __init__(self, database: Database | None = None) -> None:
        self._database = database
        self._folders: dict[str, Folder] = {}  # by their paths as text, which is quicker
        self._kept: dict[str, KeptFolder] = {}
        self._own: dict[str, KeptFolder] = {}
        self._denied: set[str] = set()
        self._at_work = ""

    def __reduce__(self) -> tuple[type[Listing], tuple[()]]:
        # Records cross process borders, where nobody looks for more.
        return Listing, ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What became of the database, in sentences."""
        return self._database.notes if self._database else ()

    def look(self, folder: Path) -> Folder:
        """Return what there is in a folder; nothing where there is none."""
        place = os.fspath(folder)
        if place not in self._folders:
            above, _, name = place.rpartition(os.sep)
            if above in self._folders and name not in self._folders[above].folders:
                return _EMPTY
            self._folders[place] = self._take(folder, place)
        return self._folders[place]

    def is_lost(self, folder: Path) -> bool:
        """Tell whether a folder is a link that leads nowhere, or could not be looked into."""
        return os.fspath(folder) in self._denied or folder.name in self.look(folder.parent).lost

    def _take(self, folder: Path, place: str) -> Folder:
        """Return a folder as it was kept, or look into it."""
        try:
            if self._database is None or not _is_of(self._at_work, place):
                return look_into(folder)
            self._own[place] = self._database.renew(folder, self._kept.get(place))
            return Folder(*self._own[place][1:])
        except PermissionError:
            LOGGER.warning("%s: may not be looked into, so nothing of it is used", folder)
            self._denied.add(place)
        except OSError as error:
            if error.errno not in ABSENT:
                raise
        return _EMPTY

    @contextmanager
    def of_participant(self, label: str) -> Iterator[None]:
        """Look at a participant: take the folders that were kept, keep them, and forget them.

        Parameters
        ----------
        label : str
            Label of the participant. Folders of nobody in particular are neither kept nor
            forgotten.
        """
        name = f"sub-{label}"
        self._forget(name)
        if self._database is None:
            yield
        else:
            self._at_work, self._own = name, {}
            self._kept = self._database.read(label)
            yield
            self._database.write(label, self._kept, self._own)
            self._at_work = ""
        self._forget(name)

    def _forget(self, name: str) -> None:
        for place in [place for place in self._folders if _is_of(name, place)]:
            del self._folders[place]
        self._denied = {place for place in self._denied if not _is_of(name, place)}

    def forget(self) -> None:
        """Forget everything."""
        self._folders.clear()

    def below(
        self, folder: Path, is_wanted: Callable[[str], object], ignored: re.Pattern[str]
    ) -> Iterator[Path]:
        """Yield the files in a participant's folder, wherever they lie.

        Parameters
        ----------
        folder : Path
            The folder.
        is_wanted : callable
            Tells by the name of a file whether it is one of them.
        ignored : re.Pattern
            Folders that are not looked into, by their whole names.
        """
        yield from self._below(folder, is_wanted, ignored, _DEEPEST)

    def _below(
        self,
        folder: Path,
        is_wanted: Callable[[str], object],
        ignored: re.Pattern[str],
        depth: int,
    ) -> Iterator[Path]:
        found = self.look(folder)
        yield from (folder / name for name in found.files if is_wanted(name))
        if depth:
            for name in found.folders:
                if not ignored.fullmatch(name):
                    yield from self._below(folder / name, is_wanted, ignored, depth - 1)


def _is_of(name: str, place: str) -> bool:
    """Tell whether a path is that of a participant's folder or leads into it."""
    return bool(name) and f"{os.sep}{name}{os.sep}" in f"{place}{os.sep}"


def look_into(folder: Path) -> Folder:
    """Return what there is in a folder.

    Raises
    ------
    OSError
        There is none, one may not look, or the file system fails.
    """
    files, folders, lost = [], [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith("."):
                is_folder = _is_folder(entry)
                (folders if is_folder is not False else files).append(entry.name)
                if is_folder is None:
                    lost.append(entry.name)
    return Folder(tuple(sorted(files)), tuple(sorted(folders)), tuple(sorted(lost)))


def _is_folder(entry: os.DirEntry[str]) -> bool | None:
    """Tell whether an entry is a folder or leads to one; None for what cannot be told."""
    # All files of a datalad dataset are links, and following them takes longer than all else.
    is_link = entry.is_symlink()
    if is_link and _FILE.search(entry.name):
        return False
    try:
        if entry.is_dir():
            return True
        if is_link:
            entry.stat()  # is_dir is False of a link that leads nowhere too
    except OSError:
        return None
    return False

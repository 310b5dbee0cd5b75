"""The references that the text may cite, and how citations and the list of them are written."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from bsym_bids.errors import BadDataError

#: A citation in the text, of one or several keys: [@a; @b].
CITATION = re.compile(r"\[(@[a-z0-9]+(?:; @[a-z0-9]+)*)\]")
_HEAD = re.compile(r"@([a-z]+)\{([a-z0-9]+),")
_FIELD = re.compile(r"  ([a-z]+) = \{(.*)\},")
#: Fields that an entry of each kind has to have.
_NEEDED: Mapping[str, tuple[str, ...]] = {
    "article": ("author", "title", "journal", "year"),
    "inproceedings": ("author", "title", "booktitle", "year"),
    "misc": ("author", "title", "howpublished"),
}
_OPTIONAL = frozenset({"volume", "number", "pages", "doi", "eprint", "archiveprefix", "year"})
#: Authors that are named in the list; of more, the first six are.
_MOST_NAMED, _NAMED = 8, 6


@dataclass(frozen=True)
class Reference:
    """An entry of the list of references.

    Attributes
    ----------
    key : str
        What the text cites it by.
    fields : mapping of str to str
        As in the file, with braces.
    source : str
        The entry as it stands there.
    """

    key: str
    fields: Mapping[str, str]
    source: str

    @property
    def year(self) -> str:
        """Year, or that there is none."""
        return self.fields.get("year", "n.d.")

    @property
    def authors(self) -> tuple[tuple[str, str], ...]:
        """Family and given name of each author; bodies have no given name."""
        return tuple(_name(one) for one in self.fields["author"].split(" and "))

    @property
    def short(self) -> str:
        """Authors as citations name them."""
        families = [family for family, _ in self.authors]
        if len(families) == 1:
            return families[0]
        if len(families) == 2 and families[1] != "others":
            return f"{families[0]} & {families[1]}"
        return f"{families[0]} et al."

    @property
    def link(self) -> str:
        """Address of the work; empty if it is not known."""
        if doi := self.fields.get("doi"):
            return f"https://doi.org/{doi}"
        eprint = self.fields.get("eprint")
        return f"https://arxiv.org/abs/{eprint}" if eprint else ""

    def written(self, year: str) -> str:
        """Return the entry as a list has it, without its address."""
        where = self.fields.get("journal") or self.fields.get("booktitle", "")
        where = where or self.fields.get("howpublished", "")
        if eprint := self.fields.get("eprint"):
            where += f" {eprint}"
        volume = self.fields.get("volume", "")
        number = self.fields.get("number")
        place = f"{where} {volume}".rstrip() + (f"({number})" if number else "")
        pages = self.fields.get("pages", "")
        sign = ":" if volume else ", "
        parts = f"{self._listed_authors} ({year}). {self.fields['title']}. "
        return _unbraced(parts + place + (f"{sign}{pages}" if pages else "") + ".")

    @property
    def _listed_authors(self) -> str:
        names = [f"{family} {_initials(given)}".strip() for family, given in self.authors]
        if names[-1] == "others":
            return ", ".join([*names[:-1], "et al."])
        if len(names) > _MOST_NAMED:
            names = [*names[:_NAMED], "et al."]
        return ", ".join(names)


def _name(author: str) -> tuple[str, str]:
    if author.startswith("{"):
        return _unbraced(author), ""
    family, _, given = author.partition(", ")
    return family, given


def _initials(given: str) -> str:
    """Return ``Jesper L. R.`` as ``JLR`` and ``Jean-Philippe`` as ``JP``."""
    return "".join(part[0].upper() for part in re.split(r"[\s.-]+", given) if part)


def _unbraced(text: str) -> str:
    return text.replace("{", "").replace("}", "").replace("--", "-")


def parse(text: str, source: str) -> dict[str, Reference]:
    """Read BibTeX of the strict form that our own file has: a line for each field, in braces.

    Parameters
    ----------
    text : str
        Entries, with an empty line between two of them.
    source : str
        What messages call it.

    Returns
    -------
    dict of str to Reference
        In the order of the file.

    Raises
    ------
    BadDataError
        A line is not of that form, a key is there twice, or a field is absent or unknown.
    """
    found: dict[str, Reference] = {}
    for entry in text.strip().split("\n\n"):
        first, *lines = entry.split("\n")
        head = _HEAD.fullmatch(first)
        if head is None or not lines or lines.pop() != "}":
            raise BadDataError(f"{source}: {first!r} does not begin an entry, or it has no end")
        fields: dict[str, str] = {}
        for line in lines:
            field = _FIELD.fullmatch(line)
            if field is None or field[1] in fields or not _is_balanced(field[2]):
                raise BadDataError(f"{source}: {head[2]}: {line!r} is no field, or not the first")
            fields[field[1]] = field[2]
        needed = _NEEDED.get(head[1])
        known = {*(needed or ()), *_OPTIONAL}
        if needed is None or not set(needed) <= fields.keys() <= known or head[2] in found:
            raise BadDataError(f"{source}: {head[2]}: its kind, a field or its key is wrong")
        found[head[2]] = Reference(head[2], fields, entry)
    return found


def _is_balanced(value: str) -> bool:
    depth = 0
    for character in value:
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth < 0:
            return False
    return depth == 0 and bool(value.strip())


@cache
def references() -> Mapping[str, Reference]:
    """Return all references by key."""
    path = files("bsym_bids").joinpath("data/methods/references.bib")
    return parse(path.read_text("utf-8"), "references.bib")


def cited_keys(texts: Iterable[str]) -> list[str]:
    """Return the keys that texts cite, each once, in the order of the list."""
    found = {key for text in texts for key in keys_of(text)}
    unknown = found - references().keys()
    if unknown:
        raise KeyError(f"no such reference: {', '.join(sorted(unknown))}")
    by_name = {key: references()[key] for key in found}
    return sorted(found, key=lambda key: (by_name[key].short.lower(), by_name[key].year, key))


def keys_of(text: str) -> list[str]:
    """Return the keys that a text cites, in its order."""
    return [key for found in CITATION.finditer(text) for key in citation_keys(found)]


def citation_keys(found: re.Match[str]) -> list[str]:
    """Return the keys of one citation."""
    return [part.removeprefix("@") for part in found[1].split("; ")]


def years_of(keys: Sequence[str]) -> dict[str, str]:
    """Return the year of each reference, with a letter where two would be called the same."""
    same: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for key in keys:
        reference = references()[key]
        same[reference.short, reference.year].append(key)
    years = {}
    for (_, year), group in same.items():
        for index, key in enumerate(group):
            years[key] = year + (chr(ord("a") + index) if len(group) > 1 else "")
    return years


def bibtex_of(keys: Iterable[str]) -> str:
    """Return the entries of some references as BibTeX."""
    return "\n\n".join(references()[key].source for key in keys) + "\n"

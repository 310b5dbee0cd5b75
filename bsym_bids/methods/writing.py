"""The methods text as files: for pandoc and for reading, for LaTeX, and for browsers."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from markupsafe import Markup, escape

from bsym_bids import __version__
from bsym_bids.methods.facts import Facts, facts_of
from bsym_bids.methods.record import add, locked, recall, replace
from bsym_bids.methods.references import (
    CITATION,
    bibtex_of,
    citation_keys,
    cited_keys,
    references,
    years_of,
)
from bsym_bids.methods.text import Paragraph, paragraphs
from bsym_bids.outputs.publish import write_whole
from bsym_bids.outputs.tables import Text
from bsym_bids.reports.pages import render

#: The files, below ``logs/``.
NAMES = ("CITATION.md", "CITATION.bib", "CITATION.html")
#: Up to so many participants, all sidecars are read, so that there is nothing to remember.
FEW_PARTICIPANTS = 100
#: What Markdown and pandoc would take for markup, outside of citations.
_MARKUP = re.compile(r"[\\`*<>\[\]~^$@|]|(?<!\w)_|_(?!\w)")


def write_methods(output_dir: Path, labels: Collection[str] | None = None) -> tuple[Path, ...]:
    """Write the methods text after some participants were processed.

    What they were processed with is added to what is on record of the dataset, and the text is of
    all that is on record. Where the dataset has few participants, or no others, all sidecars are
    read instead, as by `rewrite_methods`. Safe to call from several processes.

    Parameters
    ----------
    output_dir : Path
        Root of the dataset.
    labels : collection of str, optional
        Those who were processed, without ``sub-``; by default all.

    Returns
    -------
    tuple of Path
        The files.

    Raises
    ------
    InputMissingError
        There is no such folder.
    CannotCreateOutputError, OutputIOError
        A file cannot be written.
    """
    there = {path.name.removeprefix("sub-") for path in output_dir.glob("sub-*") if path.is_dir()}
    if labels is None or len(there) <= FEW_PARTICIPANTS or there <= set(labels):
        return rewrite_methods(output_dir)
    own = facts_of(output_dir, labels)
    with locked(output_dir):
        add(output_dir, own)
        return _write(output_dir, recall(output_dir))


def rewrite_methods(output_dir: Path) -> tuple[Path, ...]:
    """Write the methods text anew from all sidecars of a dataset.

    What is on record becomes what they say: settings that no output has any more are dropped.

    Parameters
    ----------
    output_dir : Path
        Root of the dataset.

    Returns
    -------
    tuple of Path
        The files.

    Raises
    ------
    InputMissingError
        There is no such folder.
    CannotCreateOutputError, OutputIOError
        A file cannot be written.
    """
    with locked(output_dir):
        facts = facts_of(output_dir)
        replace(output_dir, facts)
        return _write(output_dir, facts)


def _write(output_dir: Path, facts: Facts) -> tuple[Path, ...]:
    found = paragraphs(facts)
    keys = cited_keys(one.text for one in found)
    texts = (markdown_of(found), bibtex_of(keys), page_of(facts))
    paths = tuple(output_dir / "logs" / name for name in NAMES)
    for path, text in zip(paths, texts, strict=True):
        write_whole(path, Text(text))
    return paths


# --- Markdown ------------------------------------------------------------------------------------


def markdown_of(found: Sequence[Paragraph]) -> str:
    """Return paragraphs as Markdown with citations of pandoc, and the references below."""
    keys = cited_keys(one.text for one in found)
    years = years_of(keys)
    parts = ["# Methods"]
    parts += [f"## {_escaped(one.title)}\n\n{_marked(one.text)}" for one in found]
    if keys:
        parts.append("## References\n\n" + "\n".join(_listed(key, years[key]) for key in keys))
    return "\n\n".join(parts) + "\n"


def _marked(text: str) -> str:
    """Escape what would be markup, but for citations."""
    parts, end = [], 0
    for found in CITATION.finditer(text):
        parts += [_escaped(text[end : found.start()]), found[0]]
        end = found.end()
    return "".join([*parts, _escaped(text[end:])])


def _escaped(text: str) -> str:
    text = " ".join(text.splitlines())  # a line of its own could begin a heading or a list
    return _MARKUP.sub(lambda found: f"\\{found[0]}", text)


def _listed(key: str, year: str) -> str:
    reference = references()[key]
    link = f" <{reference.link}>" if reference.link else ""
    return f"- `{key}`: {_escaped(reference.written(year))}{link}"


# --- HTML ----------------------------------------------------------------------------------------


def methods_html(facts: Facts) -> Markup:
    """Return the methods text as a part of a page: headings of the third level, and references.

    Parameters
    ----------
    facts : Facts
        What was run.

    Returns
    -------
    Markup
        Everything that comes from files is escaped.
    """
    return Markup(render("methods_text.html.j2", **_values(facts)))


def page_of(facts: Facts) -> str:
    """Return the methods text as a page of its own."""
    return render("methods.html.j2", version=__version__, **_values(facts))


def _values(facts: Facts) -> dict[str, object]:
    found = paragraphs(facts)
    keys = cited_keys(one.text for one in found)
    years = years_of(keys)
    return {
        "paragraphs": [(one.title, _linked(one.text, years)) for one in found],
        "references": [
            (key, references()[key].written(years[key]), references()[key].link) for key in keys
        ],
    }


def _linked(text: str, years: Mapping[str, str]) -> Markup:
    """Return a text with its citations as authors and years, each a link to the list."""
    parts, end = [], 0
    for found in CITATION.finditer(text):
        links = [
            Markup('<a href="#ref-{}">{}, {}</a>').format(key, references()[key].short, years[key])
            for key in citation_keys(found)
        ]
        parts += [escape(text[end : found.start()]), "(", Markup("; ").join(links), ")"]
        end = found.end()
    return Markup("").join([*parts, escape(text[end:])])

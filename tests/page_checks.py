"""What every page of a report must be: whole, offline, and usable without seeing or a mouse."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

_VOID = {
    "meta",
    "link",
    "br",
    "img",
    "input",
    "hr",
    "path",
    "use",
    "circle",
    "rect",
    "image",
    "col",
}
_LARGEST = 15_000_000
_OF_DRAWINGS = {"svg", "path", "g", "use", "defs", "clippath", "lineargradient", "stop"}


@dataclass
class Page(HTMLParser):
    """What is in a page, and what is wrong with it."""

    text: str
    ids: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    headings: list[int] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)

    def __post_init__(self):
        HTMLParser.__init__(self, convert_charrefs=True)
        self._open = []
        self.feed(self.text)
        self.close()
        if self._open:
            self.faults.append(f"not closed: {self._open}")

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if values.get("id"):
            self.ids.append(values["id"])
        for key in ("href", "xlink:href", "src"):
            if values.get(key) is not None:
                self.links.append(values[key])
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "svg" and values.get("aria-hidden") != "true":
            self.labels.append(values.get("aria-label", ""))
            if values.get("role") != "img" or not values.get("aria-label"):
                self.faults.append("a drawing without a label")
        if tag == "img" and "alt" not in values:
            self.faults.append("an image without a description")
        if tag == "th" and values.get("scope") not in ("col", "row"):
            self.faults.append("a head of a table without its scope")
        if "scroll" in (values.get("class") or "").split() and values.get("tabindex") != "0":
            self.faults.append("what scrolls cannot be reached by keyboard")
        if any(key.startswith("on") for key in values):
            self.faults.append(f"a script in an attribute of {tag}")
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in _VOID:
            self._open.pop()

    def handle_endtag(self, tag):
        if tag in _VOID:
            return
        if not self._open or self._open[-1] != tag:
            self.faults.append(f"{tag} is closed in {self._open[-3:]}")
            if tag in self._open:
                while self._open.pop() != tag:
                    pass
        else:
            self._open.pop()

    def handle_data(self, data):
        if self._open and self._open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def said(self) -> str:
        """The text of the page, with single spaces."""
        return " ".join(" ".join(self.words).split())


def check_page(path: Path, *, scripts: bool = False) -> Page:
    """Assert that a page is as it must be, and return what is in it."""
    assert path.stat().st_size < _LARGEST
    text = path.read_text("utf-8")
    page = Page(text)
    assert page.faults == []
    assert text.startswith("<!DOCTYPE html>") and '<html lang="en">' in text
    assert len(page.ids) == len(set(page.ids)), "ids that are there twice"
    assert page.headings[0] == 1 and page.headings.count(1) == 1
    steps = [b - a for a, b in zip(page.headings, page.headings[1:], strict=False)]
    assert all(step <= 1 for step in steps), "a level of headings is left out"
    for link in page.links:
        if link.startswith("#"):
            assert link[1:] in page.ids, link
        elif link.startswith("data:"):
            assert link.startswith(("data:image/png;base64,", "data:,"))
        else:
            assert not re.match(r"[a-z]+:|//", link), f"{link} is elsewhere"
            target = path.parent / unquote(link.partition("#")[0])
            if target.name != "group_participants.html":  # made later
                assert target.exists(), link
    assert "<title></title>" not in text and "None" not in page.said and " nan" not in page.said
    assert scripts or "<script" not in text
    assert "@import" not in text and not re.search(r"url\((?!#)", text)
    return page

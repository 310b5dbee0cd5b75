"""The methods text that writes itself, from the sidecars of what was written."""

from bsym_bids.methods.facts import Facts, facts_of
from bsym_bids.methods.record import recall
from bsym_bids.methods.text import Paragraph, paragraphs
from bsym_bids.methods.writing import methods_html, rewrite_methods, write_methods

__all__ = [
    "Facts",
    "Paragraph",
    "facts_of",
    "methods_html",
    "paragraphs",
    "recall",
    "rewrite_methods",
    "write_methods",
]

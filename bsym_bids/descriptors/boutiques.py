"""The Boutiques descriptor of ``bsym-bids``, made from its parser."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from bsym_bids import __version__
from bsym_bids.config import RunConfig
from bsym_bids.outputs.names import Product, dataset_products

Json = dict[str, Any]
IMAGE = f"bsym-bids:{__version__}"
#: Key of the defaults in the descriptor's own section.
DEFAULTS = "bsym-bids:default-values"
#: Actions that print and leave are stored under these.
_PRINTED = ("help", "version")
_LEVEL = "analysis_level"


def describe_command(parser: argparse.ArgumentParser) -> Json:
    """Return the Boutiques descriptor of the command.

    No input has a ``default-value``: what runs a descriptor puts it on the command line, where it
    would go before what a file of settings says. The defaults stand in the descriptions, and
    under ``custom`` for programs.

    Parameters
    ----------
    parser : argparse.ArgumentParser
        The parser of ``bsym-bids``.

    Returns
    -------
    dict
        The descriptor, of Boutiques 0.5.
    """
    facts = read_facts()
    actions = list(_options(parser))
    keys = " ".join(_value_key(action) for action in actions)
    return {
        "name": parser.prog,
        "description": parser.description,
        "tool-version": __version__,
        "schema-version": "0.5",
        "command-line": f"{parser.prog} {keys}",
        "container-image": {"type": "docker", "image": IMAGE},
        "inputs": [_input(action, facts) for action in actions],
        "groups": _groups(parser),
        "output-files": [_output(entry) for entry in facts["outputs"]]
        + [_group_output(product) for product in dataset_products().values()],
        "error-codes": [
            {"code": code, "description": text} for code, text in facts["exit_codes"].items()
        ],
        "suggested-resources": dict(facts["resources"]),
        "tags": dict(facts["tags"]),
        "custom": {DEFAULTS: default_values()},
    }


@cache
def read_facts() -> Mapping[str, Any]:
    """Return what a descriptor says beyond what the parser knows."""
    import yaml

    text = files("bsym_bids").joinpath("data/descriptors/boutiques.yaml").read_text("utf-8")
    return yaml.safe_load(text)


def default_values() -> Json:
    """Return what holds where an option with a value is not given, by option."""
    given = {item.name: item.default for item in fields(RunConfig)}
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in given.items()
        if isinstance(value, int | float | str | tuple) and value != ()
        if not isinstance(value, bool) and name != "verbose"
    }


def _options(parser: argparse.ArgumentParser) -> Iterable[argparse.Action]:
    """Yield what a caller can give, positional arguments first."""
    stored = [action for action in parser._actions if action.dest not in _PRINTED]
    yield from sorted(stored, key=lambda action: bool(action.option_strings))


def _value_key(action: argparse.Action) -> str:
    return f"[{action.dest.upper()}]"


def _input(action: argparse.Action, facts: Mapping[str, Any]) -> Json:
    """Return the description of one argument."""
    name = action.dest
    described: Json = {
        "id": name,
        "name": name.replace("_", " ").capitalize(),
        "description": action.help,
        "optional": bool(action.option_strings),
        "value-key": _value_key(action),
        **_type(action, facts["written"]),
        **facts["ranges"].get(name, {}),
    }
    if action.nargs == "+":
        described |= {"list": True, "list-separator": " ", "min-list-entries": 1}
    if name == _LEVEL:
        described["value-disables"] = {
            level: facts["group_only"] if level == "participant" else []
            for level in action.choices or ()
        }
    if others := [other for pair in facts["exclusive"] if name in pair for other in pair]:
        described["disables-inputs"] = [other for other in others if other != name]
    return described


def _type(action: argparse.Action, written: Iterable[str]) -> Json:
    """Return the type of an argument and the flag that it comes with."""
    longest = max(action.option_strings, key=len, default="")
    flag = {"command-line-flag": longest} if longest else {}
    if isinstance(action, argparse._CountAction):
        # Its values are the flags themselves: -v, -vv.
        short = min(action.option_strings, key=len)
        return {"type": "String", "value-choices": [short, short + short[1:]]}
    if action.nargs == 0:
        return {"type": "Flag", **flag}
    if action.type in (int, float):
        return {"type": "Number", "integer": action.type is int, **flag}
    if action.type is Path and action.dest not in written:
        return {"type": "File", **flag}
    choices = {"value-choices": list(action.choices)} if action.choices else {}
    return {"type": "String", **choices, **flag}


def _groups(parser: argparse.ArgumentParser) -> list[Json]:
    """Return the groups of the parser that have members."""
    groups = []
    for group in parser._action_groups:
        members = [a.dest for a in group._group_actions if a.dest not in _PRINTED]
        title = str(group.title)
        if members:
            # No group may share its name with an input.
            identifier = re.sub(r"\W+", "_", title.lower()) + "_group"
            groups.append(
                {"id": identifier, "name": title[0].upper() + title[1:], "members": members}
            )
    return groups


def _output(entry: Mapping[str, Any]) -> Json:
    """Return the description of an output file that is no product of the group level."""
    rest = {key: value for key, value in entry.items() if key != "path"}
    path = "/".join(["[OUTPUT_DIR]", entry["path"]]).rstrip("/")
    return {"optional": False, **rest, "path-template": path}


def _group_output(product: Product) -> Json:
    """Return the description of a product of the dataset as a whole."""
    desc = product.desc.format(label="*")
    return {
        "id": f"{product.key}_file",
        "name": product.key.replace("_", " ").capitalize(),
        "description": product.description,
        "optional": True,
        "list": "*" in desc,
        "path-template": f"[OUTPUT_DIR]/desc-{desc}_{product.suffix}{product.extension}",
    }

"""Whether outputs were made in one way, so that people can be compared."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from bsym_bids.errors import BadDataError
from bsym_bids.prediction.inventory import MODEL, SETTINGS, Inventory, part_of

#: Settings that decide nothing: words about other settings.
_WORDS = (".description", ".citation")
#: What may differ, with a warning: versions, and tools that are used where they are installed.
_ENGINE_VERSION = "ConnectomeSettings.EngineVersion"
_TOOLS = ("Denoising", "GibbsRemoval", "MotionCorrection", "BiasCorrection")
_NOT_STATED = "not stated"
_SHOWN_SETTINGS, _SHOWN_VALUES, _SHOWN_LETTERS = 8, 5, 48


def check_consistent(
    inventory: Inventory, products: Collection[str] | None = None
) -> tuple[str, ...]:
    """Refuse outputs that were made in different ways.

    The same for all must be the model and its weights, and every setting of time series, embeddings
    and connectomes, seeds included.

    Parameters
    ----------
    inventory : Inventory
        What there is.
    products : collection of str, optional
        Keys of the products that count; all by default.

    Returns
    -------
    tuple of str
        Warnings about what differs but may: versions of software, spaces, and tools of
        preprocessing that are used where they are installed.

    Raises
    ------
    BadDataError
        A setting differs.
    """
    strict, lenient = _Values(), _Values()
    for record in inventory.records:
        for product, document in record.sidecars.items():
            if products is None or product in products:
                settings = _settings(document)
                version = settings.pop(_ENGINE_VERSION, None)
                strict.add(record.participant, settings)
                lenient.add(record.participant, {**_leniently(document), _ENGINE_VERSION: version})
    if strict.differing:
        lines = [strict.describe(key) for key in strict.differing]
        more = len(lines) - _SHOWN_SETTINGS
        lines = lines[:_SHOWN_SETTINGS] + ([f"and {more} more settings"] if more > 0 else [])
        raise BadDataError(
            f"{inventory.output_dir}: outputs were made in different ways and cannot be put "
            "together.\n  " + "\n  ".join(lines),
            "make those that differ again with the options of the others, choose participants who "
            "have the same with --participant-label, or keep each way in an output folder of its "
            "own",
        )
    return tuple(f"outputs differ: {lenient.describe(key)}" for key in lenient.differing)


def settings_of(inventory: Inventory) -> dict[str, str]:
    """Return what `check_consistent` wants to be the same for all, as text by dotted name."""
    found: dict[str, str] = {}
    for record in inventory.records:
        for document in record.sidecars.values():
            settings = _settings(document)
            settings.pop(_ENGINE_VERSION, None)
            found |= {key: value for key, value in settings.items() if value is not None}
    return found


class _Values:
    """Who has which value of each setting."""

    def __init__(self) -> None:
        self._people: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
        self._groups: dict[str, set[str]] = defaultdict(set)  # people with any setting of a group

    def add(self, participant: str, settings: Mapping[str, str | None]) -> None:
        for key, value in settings.items():
            if value is not None:
                self._people[key][value].add(participant)
                self._groups[_group(key)].add(participant)

    @property
    def differing(self) -> list[str]:
        """Settings that are not the same for all, sorted."""
        return sorted(key for key in self._people if len(self._of(key)) > 1)

    def describe(self, key: str) -> str:
        """Say who has which value: ``HighPass: 0.01 (120 participants, such as sub-01), ...``."""
        values = sorted(self._of(key).items(), key=lambda item: (-len(item[1]), item[0]))
        texts = [f"{_short(value)} ({_people(labels)})" for value, labels in values]
        more = len(texts) - _SHOWN_VALUES
        texts = texts[:_SHOWN_VALUES] + ([f"and {more} more values"] if more > 0 else [])
        return f"{key}: {', '.join(texts)}"

    def _of(self, key: str) -> dict[str, set[str]]:
        values = self._people[key]
        silent = self._groups[_group(key)] - set().union(*values.values())
        return {**values, _NOT_STATED: silent} if silent else dict(values)


def _settings(document: Mapping[str, Any]) -> dict[str, str | None]:
    """Return what must be the same for all, as text by dotted name."""
    found: dict[str, str | None] = {}
    for group in SETTINGS:
        for key, value in _flat(group, document.get(group, {})):
            if not key.endswith(_WORDS):
                found[key] = value
    for group in ("EmbeddingSettings", "StructuralSettings"):  # the same as below
        for key, name in ((f"{group}.Model", "Name"), (f"{group}.ModelFingerprint", "Fingerprint")):
            if key in found:
                found[f"{MODEL}.{name}"] = found.pop(key)
    for name in ("Name", "Version", "Fingerprint"):
        if name in part_of(document, MODEL):
            found[f"{MODEL}.{name}"] = _text(part_of(document, MODEL)[name])
    return found


def _leniently(document: Mapping[str, Any]) -> dict[str, str | None]:
    """Return what had better be the same for all, as text by dotted name."""
    found: dict[str, str | None] = dict(
        _flat("SoftwareVersions", document.get("SoftwareVersions", {}))
    )
    scan = "ConnectomeSettings" in document
    if "SpatialReference" in document:
        space = _text(document["SpatialReference"])
        found[f"SpatialReference of {'diffusion scans' if scan else 'BOLD runs'}"] = space
    preprocessing = document.get("Preprocessing")
    if isinstance(preprocessing, dict):
        for step in _TOOLS:
            tool = part_of(preprocessing, step).get("Tool", _NOT_STATED)
            found[f"Preprocessing.{step}.Tool"] = _text(tool)
    return found


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}", inner)
    else:
        yield name, _text(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _short(value: str) -> str:
    return value if len(value) <= _SHOWN_LETTERS else value[: _SHOWN_LETTERS - 3] + "..."


def _people(labels: Collection[str]) -> str:
    count = "1 participant" if len(labels) == 1 else f"{len(labels)} participants"
    return f"{count}, such as sub-{min(labels)}"


def _group(key: str) -> str:
    """Return what is stated or silent as a whole: a group of settings, or a single thing."""
    return key.partition(".")[0] if key.startswith(SETTINGS) else key

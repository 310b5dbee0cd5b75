"""How results travel between nodes: dataclasses of arrays and plain values as ``.npz`` files."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

Record = TypeVar("Record")


def save_record(record: Any, path: Path) -> str:
    """Write a dataclass; what is no array is kept as JSON."""
    values = {f.name: getattr(record, f.name) for f in fields(record)}
    arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
    plain = {name: value for name, value in values.items() if name not in arrays}
    np.savez(path, allow_pickle=False, __plain__=np.array(json.dumps(plain)), **arrays)
    return str(path)


def load_record(kind: type[Record], path: str | Path) -> Record:
    """Read a dataclass that `save_record` wrote; JSON lists come back as tuples."""
    with np.load(path, allow_pickle=False) as archive:
        values = {name: archive[name] for name in archive.files}
    plain = json.loads(str(values.pop("__plain__")))
    values |= {name: tuple(v) if isinstance(v, list) else v for name, v in plain.items()}
    return kind(**values)

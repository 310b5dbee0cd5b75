"""Validation of output datasets with bids-validator and the project's extension of the schema."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Issue:
    severity: str
    code: str
    detail: str
    location: str


def extended_schema() -> dict[str, Any]:
    """Return the released schema with the project's additions."""
    exported = subprocess.run(
        [Path(sys.executable).with_name("bst"), "export"], capture_output=True, check=True
    )
    schema = json.loads(exported.stdout)
    text = files("bsym_bids").joinpath("data/bids_schema/extension.yaml").read_text("utf-8")
    extension = yaml.safe_load(text)
    order = schema["rules"]["entities"]
    after = order.index("density") + 1
    order[after:after] = extension["entities_after_density"]
    _merge(schema["objects"], extension["objects"])
    _merge(schema["rules"], extension["rules"])
    return schema


def extended_schema_file(folder: Path) -> Path:
    path = folder / "schema.json"
    path.write_text(json.dumps(extended_schema()))
    return path


def validate(dataset: Path, schema: Path | None = None) -> list[Issue]:
    """Run the validator without network or HOME."""
    program = Path(sys.executable).with_name("bids-validator-deno")
    call = [program, dataset, "--format", "json"]
    if schema is not None:
        call += ["--schema", schema.as_uri()]
    done = subprocess.run(
        call, capture_output=True, text=True, check=False, env={**os.environ, "NO_COLOR": "1"}
    )
    issues = json.loads(done.stdout)["issues"]["issues"]
    return [
        Issue(i["severity"], i["code"], str(i.get("subCode", "")), i.get("location", ""))
        for i in issues
    ]


def _merge(into: dict[str, Any], new: dict[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(into.get(key), dict) and isinstance(value, dict):
            _merge(into[key], value)
        else:
            into[key] = value

"""What every output dataset must be: described column by column, and traceable to its sources."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from urllib.parse import unquote, urlparse

from bsym_bids.outputs.names import sidecar_of
from tests.bids_validation import extended_schema_file, validate

_OF_DATA = ("sub-*/**/*.json", "desc-*.json")
#: What BIDS has no names for: logs and the pages that link to the data.
_OUTSIDE = ("work", "logs", "sub-*.html", "group_participants.*")


def assert_strictly_valid(out: Path, folder: Path) -> None:
    """Assert that a dataset is valid BIDS by the extended schema, with nothing left out of it."""
    copy = folder / "dataset"
    shutil.copytree(out, copy, ignore=shutil.ignore_patterns(*_OUTSIDE))
    (copy / ".bidsignore").unlink()
    issues = validate(copy, extended_schema_file(folder))
    assert [issue for issue in issues if issue.severity == "error"] == []


def described(out: Path, path: Path) -> dict:
    """Return what is said of a file, with what is inherited from the root of the dataset."""
    inherited = {}
    suffix = path.name.partition(".")[0].rpartition("_")[2]
    for general in out.glob(f"atlas-*_scale-450_{suffix}.json"):
        if path.name.count("_atlas-"):
            inherited = json.loads(general.read_text("utf-8"))
    return inherited | json.loads(sidecar_of(path).read_text("utf-8"))


def assert_columns_are_described(out: Path) -> None:
    """Assert that each column of each table has a description."""
    tables = [p for p in [*out.glob("sub-*/**/*.tsv"), *out.glob("*.tsv")] if "work" not in p.parts]
    assert tables
    for path in tables:
        with path.open(encoding="utf-8") as file:
            columns = file.readline().rstrip("\n").split("\t")
        about = described(out, path)
        missing = [name for name in columns if not about.get(name, {}).get("Description")]
        assert missing == [], path.name


def assert_sources_resolve(out: Path, *patterns: str) -> None:
    """Assert that all URIs in Sources lead to files, by the links of the dataset.

    Of all sidecars of data; of others than those of simulated participants with ``patterns``.
    """
    links = json.loads((out / "dataset_description.json").read_text("utf-8"))["DatasetLinks"]
    roots = {name: Path(unquote(urlparse(uri).path)) for name, uri in links.items()}
    count = 0
    for path in (p for one in patterns or _OF_DATA for p in out.glob(one)):
        sources = json.loads(path.read_text("utf-8")).get("Sources")
        assert sources, path.name
        for uri in sources:
            scheme, name, inside = uri.split(":", 2)
            assert scheme == "bids", uri
            root = roots[name] if name else out
            assert (root / inside).is_file(), (path.name, uri)
            count += 1
    assert count

"""What every output dataset must be: described column by column, and traceable to its sources."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import unquote, urlparse

from bsym_bids.outputs.names import sidecar_of


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


def assert_sources_resolve(out: Path) -> None:
    """Assert that all URIs in Sources lead to files, by the links of the dataset."""
    links = json.loads((out / "dataset_description.json").read_text("utf-8"))["DatasetLinks"]
    roots = {name: Path(unquote(urlparse(uri).path)) for name, uri in links.items()}
    count = 0
    for path in [*out.glob("sub-*/**/*.json"), *out.glob("desc-*.json")]:
        sources = json.loads(path.read_text("utf-8")).get("Sources")
        assert sources, path.name
        for uri in sources:
            scheme, name, inside = uri.split(":", 2)
            assert scheme == "bids", uri
            root = roots[name] if name else out
            assert (root / inside).is_file(), (path.name, uri)
            count += 1
    assert count

"""What is written of a check of a model on a dataset, and what is printed of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bsym_bids import __version__
from bsym_bids.model.checking import ALL, ModelCheck, Row
from bsym_bids.model.domain import Verdict
from bsym_bids.model.networks import FEATURES
from bsym_bids.outputs.descriptions import column_names, columns_of
from bsym_bids.outputs.names import dataset_path, dataset_products, own_uri
from bsym_bids.outputs.publish import OutputFile, fingerprint, publish
from bsym_bids.outputs.sidecars import ATLAS, about_model, software_versions
from bsym_bids.outputs.tables import Table


def write_check(check: ModelCheck, derivatives: Path) -> tuple[Path, ...]:
    """Write the tables of a check into the dataset.

    Parameters
    ----------
    check : ModelCheck
        What was found.
    derivatives : Path
        Root of the dataset.

    Returns
    -------
    tuple of Path
        The tables that were written; one that there is nothing for is not.
    """
    verdicts = check.reconstruction_verdict, check.edges_verdict
    products = (
        ("model_reconstruction", check.runs, verdicts[0], check.run_paths),
        ("model_edges", check.edges, verdicts[1], check.scan_paths),
    )
    outputs = [
        OutputFile(
            dataset_path(derivatives, key, check.release.name),
            _table(rows, check, column_names(key)),
            _sidecar(check, key, verdict)
            | {"Sources": [own_uri(derivatives, path) for path in paths]},
        )
        for key, rows, verdict, paths in products
        if rows
    ]
    if check.networks:
        outputs.append(_networks_output(check, derivatives))
    publish(outputs, fingerprint(__version__, check.release.fingerprint, check.settings))
    return tuple(output.path for output in outputs)


def _networks_output(check: ModelCheck, derivatives: Path) -> OutputFile:
    table = Table(
        {
            "features": list(check.networks),
            "accuracy": [recovery.folds for recovery in check.networks.values()],
            "left_to_right": [recovery.left_to_right for recovery in check.networks.values()],
        }
    )
    sources = [own_uri(derivatives, path) for path in check.run_paths]
    sidecar = _sidecar(check, "model_networks", None) | {"Sources": sources}
    path = dataset_path(derivatives, "model_networks", check.release.name)
    return OutputFile(path, table, sidecar)


def _table(rows: Sequence[Row], check: ModelCheck, columns: Sequence[str]) -> Table:
    records = [
        {
            "participant": row.participant,
            "run": row.label,
            "scan": row.label,
            "measure": row.convention and row.convention.measure,
            "transform": row.convention and row.convention.transform,
            "in_use": row.convention == check.convention,
            **row.scores,
            "model_domain": row.verdict and row.verdict.verdict,
        }
        for row in rows
    ]
    return Table({name: [record[name] for record in records] for name in columns})


def _sidecar(check: ModelCheck, key: str, verdict: Verdict | None) -> dict[str, Any]:
    document = {
        "Description": dataset_products()[key].description,
        "Atlas": ATLAS,
        "SoftwareVersions": software_versions(),
        "CheckSettings": dict(check.settings),
        "Threads": check.threads,
        "ModelQuality": check.release.card.get("quality", {}),
        "Participants": list(check.participants),
        "ParticipantsInDataset": check.n_participants,
        "NotChecked": [*check.skipped, *map(str, check.problems)],
    }
    domain = {"ModelDomain": verdict.document} if verdict else {}
    return document | domain | about_model(check.release) | columns_of(key)


def report(check: ModelCheck) -> Iterator[str]:
    """Yield what a person wants to know of a check, a line at a time."""
    looked_at = len(check.participants)
    release = check.release
    yield f"{release.name}: {looked_at} of {check.n_participants} participant(s)"
    if release.warning:
        yield release.warning
    if check.runs:
        yield from _report_runs(check)
    if check.edges:
        yield from _report_edges(check)
    if check.networks:
        yield from _report_networks(check)
    for problem in (*check.skipped, *check.problems):
        yield f"not checked: {problem}"


def _report_runs(check: ModelCheck) -> Iterator[str]:
    overall = check.runs[-1].scores
    yield ""
    yield f"{'Held-out ROIs, median over participants':<44}{'R2':>8}{'rho':>8}{'MAE':>8}"
    for name, way in (
        (check.release.name, ""),
        ("  under permuted ROI labels", "permuted_"),
        ("linear, from group connectivity", "linear_"),
        ("  under permuted ROI labels", "linear_permuted_"),
    ):
        yield _line(name, overall, way)
    yield from _report_card(check, "reconstruction")
    yield from _report_verdicts(check.runs)


def _report_edges(check: ModelCheck) -> Iterator[str]:
    yield ""
    yield f"{'Hidden edges, median over participants':<44}{'R2':>8}{'rho':>8}{'MAE':>8}"
    for row in check.edges:
        if row.participant == ALL and row.convention is not None:
            mark = "*" if row.convention == check.convention else " "
            yield f"{mark} {row.convention.measure}, {row.convention.transform}"
            yield _line(f"  {check.release.name}", row.scores, "")
            yield _line("    under permuted ROI labels", row.scores, "permuted_")
            yield _line("    where there is an edge", row.scores, "edges_")
            yield _line("  group average", row.scores, "group_")
    yield "* the convention in use"
    yield from _report_card(check, "edges")
    yield from _report_verdicts([row for row in check.edges if row.verdict])


def _report_networks(check: ModelCheck) -> Iterator[str]:
    yield ""
    yield f"{'Network of ROIs told from, mean over runs':<60}{'folds':>8}{'L to R':>8}"
    for name, recovery in check.networks.items():
        yield f"{FEATURES[name]:<60}{recovery.folds:>8.3f}{recovery.left_to_right:>8.3f}"


def _line(name: str, scores: Mapping[str, float], way: str) -> str:
    numbers = (scores.get(f"{way}{score}", math.nan) for score in ("r2", "rho", "mae"))
    return f"{name:<44}" + "".join(
        f"{number:>8.3f}" if math.isfinite(number) else f"{'n/a':>8}" for number in numbers
    )


def _report_card(check: ModelCheck, key: str) -> Iterator[str]:
    """Say what the card has on the model's own held-out data."""
    known = check.release.card.get("quality", {}).get(key)
    if known is None:
        yield "the card of the model has nothing on its own held-out data"
        return
    yield _line("on the card, for held-out data of its own", known, "")
    if "permuted_r2" in known or "permuted_rho" in known:
        yield _line("  under permuted ROI labels", known, "permuted_")
    if "data" in known:
        yield f"  ({known['data']})"


def _report_verdicts(rows: Sequence[Row]) -> Iterator[str]:
    """Say the verdict on each participant and on all of them."""
    yield ""
    for row in rows:
        if row.verdict and row.label == ALL and row.participant != ALL:
            yield f"  sub-{row.participant}: {row.verdict.verdict}"
    for row in rows:
        if row.verdict and row.participant == ALL:
            yield f"All: {row.verdict.verdict}: {row.verdict.reason}"

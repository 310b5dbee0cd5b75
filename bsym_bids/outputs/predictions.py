"""Tables and page of what was predicted of a cohort."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bsym_bids.outputs.descriptions import Described, Words, column_names, columns_of
from bsym_bids.outputs.names import dataset_path, dataset_products, own_uri
from bsym_bids.outputs.publish import OutputFile, fingerprint, publish, write_whole
from bsym_bids.outputs.sidecars import software_versions
from bsym_bids.outputs.tables import Table, Text
from bsym_bids.prediction.candidates import HEADLINES, REFERENCES, first_of
from bsym_bids.prediction.inventory import BOLD, DWI, Inventory
from bsym_bids.prediction.records import Predictions, Target, Unit
from bsym_bids.prediction.results import Result
from bsym_bids.prediction.scores import (
    averaged,
    averaged_training_mean,
    metrics_of,
    predicted_classes,
    residuals,
)
from bsym_bids.prediction.store import Use
from bsym_bids.reports.pages import without_places
from bsym_bids.reports.prediction_page import prediction_page

LOGGER = logging.getLogger("bsym_bids")
#: What became of runs and scans, by modality and label; see `FeatureStore.uses`.
Uses = Mapping[tuple[str, str], Use]


@dataclass(frozen=True, eq=False)
class Applied:
    """What predictors that were fitted elsewhere predict.

    Attributes
    ----------
    target : Target
        What is predicted; without labels.
    units : tuple of Unit
        N units.
    predicted : mapping of str to ndarray
        (N,) or (N, classes) by key of the candidate.
    shares : mapping of str to ndarray
        (classes,) in the training of each candidate; unused for numbers.
    confounds : mapping of str to ndarray
        (N,) by name; NaN where they are not known.
    about : mapping
        For the sidecar: where the predictors come from, and how good they were there.
    files : collection of Path
        What the features were read from.
    """

    target: Target
    units: tuple[Unit, ...]
    predicted: Mapping[str, NDArray[np.float64]]
    shares: Mapping[str, NDArray[np.float64]]
    confounds: Mapping[str, NDArray[np.float64]]
    about: Mapping[str, Any]
    files: Collection[Path] = ()

    @property
    def shown(self) -> str:
        """Key of the candidate that is shown first: what was there, if its features are here."""
        there = str(self.about.get("Headline"))
        order = (there, *HEADLINES, *REFERENCES, *self.predicted)
        return first_of(order, self.predicted) or there


def write_predictions(
    result: Result, inventory: Inventory, uses: Uses, label: str
) -> tuple[Path, ...]:
    """Publish what is reported of one target.

    Parameters
    ----------
    result : Result
        The target's predictions, scores and comparisons.
    inventory : Inventory
        What the features were read from; files go there, too.
    uses : mapping
        What became of its runs and scans.
    label : str
        For the names of the files.

    Returns
    -------
    tuple of Path
        The files: predictions, scores, comparisons, page.
    """
    output_dir = inventory.output_dir
    contents = {
        "predictions": _predictions_table(result, inventory, uses),
        "prediction_scores": _scores_table(result),
        "prediction_comparisons": _comparisons_table(result),
    }
    main = own_uri(output_dir, dataset_path(output_dir, "predictions", label))
    outputs = [
        OutputFile(
            dataset_path(output_dir, key, label),
            Table(table),
            # A thousand people have thousands of files, which one list of is enough.
            _sidecar(result, key)
            | {"Sources": list(result.sources) if key == "predictions" else [main]}
            | _described(result, key, table),
        )
        for key, table in contents.items()
    ]
    publish(outputs, fingerprint(result.settings))
    page = dataset_path(output_dir, "prediction_page", label)
    links = {output.path.name: output.path.name for output in outputs}
    text = prediction_page(result, title=result.question.target.name, links=links)
    write_whole(page, Text(without_places(text, output_dir)))
    return (*(output.path for output in outputs), page)


def _sidecar(result: Result, key: str) -> dict[str, Any]:
    target = result.question.target
    return {
        "Description": dataset_products()[key].description,
        "Target": target.name,
        "TargetDescription": target.description,
        "TargetUnits": target.units,
        "TaskType": target.task,
        "Classes": list(target.classes),
        "Verdict": result.verdict,
        "Warnings": [{"Code": c.code, "Text": c.text} for c in result.cautions],
        "Headline": result.headline,
        "Reference": result.reference,
        "Candidates": {c.key: c.title for c in result.evaluation.candidates},
        "BiasCorrection": _bias_correction(result),
        "PredictionSettings": dict(result.settings),
        "SoftwareVersions": software_versions(),
    }


def _described(result: Result, key: str, table: Mapping[str, Any]) -> Described:
    """Return what the sidecar says of the columns of a table."""
    target, titles = result.question.target, {c.key: c.title for c in result.evaluation.candidates}
    words = _words(target, titles) | {"score": {name: name for name in metrics_of(target)}}
    described = columns_of(key, table, words, _units(target))
    shown = _shown(result)
    return _with_candidate(described, f"{shown} ({titles[shown]})")


def _words(target: Target, titles: Mapping[str, str]) -> Words:
    """Return what stands in names of columns, and the text for it."""
    return {"class": {name: name for name in target.classes}, "candidate": titles}


def _units(target: Target) -> str:
    """Return the units of what is predicted; none of classes."""
    return (target.units or "n/a") if target.is_regression else ""


def _with_candidate(described: Described, shown: str) -> Described:
    """Add which candidate the column of predictions is by, where there is one."""
    if "predicted" in described:
        described["predicted"]["Description"] += f". Here by {shown}"
    return described


def _bias_correction(result: Result) -> dict[str, Any] | None:
    """Return the line of the column of corrected predictions, or why it is empty."""
    found = result.corrected.get(_shown(result))
    if found is None:
        return None
    line = {"Slope": found.slope, "Intercept": found.intercept}
    said: dict[str, Any] = {k: v if math.isfinite(v) else None for k, v in line.items()}
    return said | ({"Reason": found.reason} if found.reason else {})


def unit_columns(units: tuple[Unit, ...]) -> dict[str, list[str]]:
    """Return the columns that tell the unit of a row."""
    table = {"participant_id": [f"sub-{unit.participant}" for unit in units]}
    if any(unit.session for unit in units):
        table["session_id"] = [f"ses-{unit.session}" if unit.session else "" for unit in units]
    if any(unit.state for unit in units):
        table["state"] = [unit.state for unit in units]
    return table


def _shown(result: Result) -> str:
    """Return the candidate whose predictions are shown in full."""
    return result.headline or result.reference or "mean"


def _predictions_table(result: Result, inventory: Inventory, uses: Uses) -> dict[str, Any]:
    question, target = result.question, result.question.target
    shown = result.evaluation.predictions[_shown(result)]
    folds = result.evaluation.folds.assignment
    table: dict[str, Any] = unit_columns(question.units)
    table["label"] = _named(target, target.values)
    table["fold"] = ["|".join(str(f) for f in own) if own[0] >= 0 else "" for own in folds.T]
    table |= _predicted(target, shown)
    if target.is_regression and _shown(result) in result.corrected:
        table["bias_corrected"] = result.corrected[_shown(result)].values
    for key, predictions in result.evaluation.predictions.items():
        table |= _of_candidate(target, key, predictions)
    return table | _rests_on(
        question.units,
        {key: _all_means(found) for key, found in result.evaluation.predictions.items()},
        dict(zip(result.confounds.names, result.confounds.values.T, strict=True)),
        inventory,
        uses,
    )


def _predicted(target: Target, predictions: Predictions) -> dict[str, Any]:
    means, shares = _all_means(predictions), averaged_training_mean(predictions)
    if target.is_regression:
        spread = _spread(predictions.out_of_fold)
        return {
            "predicted": means,
            "predicted_sd": spread,
            "residual": residuals(target, predictions),
        }
    overall = np.nanmean(shares, axis=0)
    known = np.where(np.isfinite(shares), shares, overall)
    codes = predicted_classes(means, known).astype(float)
    table: dict[str, Any] = {"predicted": _named(target, np.where(codes >= 0, codes, np.nan))}
    for index, name in enumerate(target.classes):
        table[f"probability_{name}"] = means[:, index]
    return table | {"residual": residuals(target, predictions)}


def _of_candidate(target: Target, key: str, predictions: Predictions) -> dict[str, Any]:
    means = _all_means(predictions)
    if target.is_regression:
        return {f"predicted_by_{key}": means}
    shown = [1] if len(target.classes) == 2 else range(len(target.classes))
    return {f"probability_{target.classes[i]}_by_{key}": means[:, i] for i in shown}


def _all_means(predictions: Predictions) -> NDArray[np.float64]:
    """Return out-of-fold predictions, mean over repeats, and those of the unlabelled."""
    means = averaged(predictions)
    return np.where(np.isfinite(means), means, predictions.unlabelled)


def _spread(out_of_fold: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the standard deviation over repeats; NaN for fewer than two."""
    known = np.isfinite(out_of_fold)
    count = known.sum(axis=0)
    mean = np.where(known, out_of_fold, 0).sum(axis=0) / np.maximum(count, 1)
    squares = np.where(known, (out_of_fold - mean) ** 2, 0).sum(axis=0)
    return np.where(count > 1, np.sqrt(squares / np.maximum(count - 1, 1)), np.nan)


def _named(target: Target, values: NDArray[np.float64]) -> list[Any]:
    """Return numbers, or the names of classes; n/a for NaN."""
    if target.is_regression:
        return values.tolist()
    return [target.classes[int(v)] if math.isfinite(v) else "" for v in values]


def _rests_on(
    units: Sequence[Unit],
    predicted: Mapping[str, NDArray[np.float64]],
    confounds: Mapping[str, NDArray[np.float64]],
    inventory: Inventory,
    uses: Uses,
) -> dict[str, Any]:
    """Return which data the predictions of each unit rest on, and what to mind."""
    table: dict[str, list[Any]] = {
        name: [] for name in ("candidates", "n_runs", "n_scans", "warnings")
    }
    for number, unit in enumerate(units):
        own = {kind: inventory.of_unit(unit, kind) for kind in (BOLD, DWI)}
        records = [record for kind in own.values() for record in kind]
        used = [record for record in records if uses[record.modality, record.label].is_used]
        domains = {record.model_domain for record in used}
        said = [
            f"data {domain} for the model"
            for domain in ("doubtful", "out of domain")
            if domain in domains
        ]
        said += [
            f"{name} unknown: mean in training"
            for name, values in confounds.items()
            if not np.isfinite(values[number])
        ]
        problems = [p for r in records for p in uses[r.modality, r.label].problems]
        # As in a cell: the table is in that folder, and a line holds no other separators.
        root = f"{inventory.output_dir}/"
        said += [f"not used: {' '.join(p.replace(root, '').split())}" for p in problems]
        able = [key for key, values in predicted.items() if np.isfinite(values[number]).any()]
        table["candidates"].append("|".join(able))
        table["n_runs"].append(sum(record.modality == BOLD for record in used))
        table["n_scans"].append(sum(record.modality == DWI for record in used))
        table["warnings"].append("; ".join(said))
    return table


def _scores_table(result: Result) -> dict[str, Any]:
    rows = [("folds", scored) for scored in result.scored.values()]
    rows += [("leave-site-out", scored) for scored in result.by_site.values()]
    titles = {c.key: c.title for c in result.evaluation.candidates}
    predictions = result.evaluation.predictions
    table: dict[str, list[Any]] = {
        "candidate": [scored.candidate for _, scored in rows],
        "title": [titles[scored.candidate] for _, scored in rows],
        "scheme": [scheme for scheme, _ in rows],
        "n_units": [scored.n_units for _, scored in rows],
    }
    for name in metrics_of(result.question.target):
        table[name] = [scored.scores[name] for _, scored in rows]
        for side, part in enumerate(("low", "high")):
            table[f"{name}_{part}"] = [scored.intervals[name][side] for _, scored in rows]
    table["permutation_statistic"] = [
        predictions[scored.candidate].null_statistic if scheme == "folds" else math.nan
        for scheme, scored in rows
    ]
    table["p"] = [scored.p for _, scored in rows]
    return table


def _comparisons_table(result: Result) -> dict[str, Any]:
    return {
        name: [getattr(comparison, name) for comparison in result.comparisons]
        for name in column_names("prediction_comparisons")
    }


def write_applied(applied: Applied, inventory: Inventory, uses: Uses) -> Path:
    """Publish what predictors that were fitted elsewhere predict of everyone.

    Parameters
    ----------
    applied : Applied
        Their predictions.
    inventory : Inventory
        What the features were read from; the file goes there, too.
    uses : mapping
        What became of its runs and scans.

    Returns
    -------
    Path
    """
    target, shown, there = applied.target, applied.shown, applied.about.get("Headline")
    if there not in applied.predicted:
        LOGGER.warning(
            "%s: features of %s are not here: the column predicted is by %s",
            target.name,
            there,
            shown,
        )
    table = unit_columns(applied.units) | _applied_values(applied)
    table |= _rests_on(applied.units, applied.predicted, applied.confounds, inventory, uses)
    words = _words(target, {key: key for key in applied.predicted})
    described = columns_of("applied_predictions", table, words, _units(target))
    document = {
        "Description": dataset_products()["applied_predictions"].description,
        "Sources": [own_uri(inventory.output_dir, path) for path in applied.files],
        "SoftwareVersions": software_versions(),
        **_without_nan(applied.about),
    } | _with_candidate(described, shown)
    path = dataset_path(inventory.output_dir, "applied_predictions", target.name)
    publish([OutputFile(path, Table(table), document)], fingerprint(document))
    return path


def _applied_values(applied: Applied) -> dict[str, Any]:
    """Return the columns of what is predicted, by the candidate that is shown and by each."""
    target, values = applied.target, applied.predicted[applied.shown]
    if target.is_regression:
        own = {f"predicted_by_{key}": found for key, found in applied.predicted.items()}
        return {"predicted": values} | own
    codes = predicted_classes(values, applied.shares[applied.shown]).astype(float)
    table: dict[str, Any] = {"predicted": _named(target, np.where(codes >= 0, codes, np.nan))}
    for index, name in enumerate(target.classes):
        table[f"probability_{name}"] = values[:, index]
    for key, found in applied.predicted.items():
        for index, name in enumerate(target.classes):
            table[f"probability_{name}_by_{key}"] = found[:, index]
    return table


def _without_nan(value: Any) -> Any:
    """Return a document with null for numbers that are not finite: JSON has none."""
    if isinstance(value, Mapping):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

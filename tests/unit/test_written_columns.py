"""Every column of every table that is written is described beside it, and nothing else is."""

import json
import re
import shutil
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
from test_cohort_figures import identifications, maps
from test_cohort_scaling import series, written_run
from test_docs import a_check, write_participant_files
from test_prediction_page import make_result

from bsym_bids import atlas
from bsym_bids.cohort.contrast import Contrast, embedding_shift
from bsym_bids.cohort.identification import KINDS
from bsym_bids.cohort.recovery import CohortRecovery
from bsym_bids.cohort.reliability import reliability, roi_networks, table
from bsym_bids.cohort.scaling import measure_cohort
from bsym_bids.model.networks import FEATURES, Recovery
from bsym_bids.model.weights import resolve_release
from bsym_bids.outputs import maps as written
from bsym_bids.outputs.checks import write_check
from bsym_bids.outputs.cohort import write_cohort_scaling
from bsym_bids.outputs.descriptions import column_names, columns_of
from bsym_bids.outputs.names import (
    DATASET,
    dataset_products,
    fusion_products,
    products,
    scan_products,
    sidecar_of,
)
from bsym_bids.outputs.predictions import Applied, write_applied, write_predictions
from bsym_bids.prediction.bias import BiasCorrected
from bsym_bids.prediction.inventory import Inventory
from bsym_bids.prediction.records import CLASSIFICATION, REGRESSION, Target, Unit
from bsym_bids.prediction.scores import METRICS

N = atlas.N_ROIS
ROIS = set(atlas.roi_names())
PEOPLE = 24
OF_FOLDERS = {"func": {**products(), **fusion_products()}, "dwi": scan_products()}
ALL = {**OF_FOLDERS["func"], **OF_FOLDERS["dwi"], **dataset_products()}
FEATURE_COLUMNS = (("model_networks", "features"), ("recovery", "what"))


def write_group_files(out: Path) -> None:
    """Write every kind of table of the dataset as a whole, with made-up numbers."""
    release = resolve_release("untrained")
    networks = dict.fromkeys(FEATURES, Recovery(0.5, 0.4))
    write_check(replace(a_check(release, out), networks=networks), out)
    runs = [written_run(out, f"{k}", series(k, 20, N).T.astype(float)) for k in range(2)]
    write_cohort_scaling(measure_cohort(runs, n_workers=0), out, "x")
    for k in range(2):
        shutil.rmtree(out / f"sub-{k}")  # is but for this
    write_maps(out, release)
    inventory = Inventory(out, ())
    for kind, unit in (("age", {}), ("sex", {"session": "a"}), ("group", {"state": "ses-a"})):
        write_predicted(kind, unit, inventory)
        write_predicted_elsewhere(kind, unit, inventory)


def write_predicted(kind, unit, inventory):
    """Write what is predicted of a target of each task, of participants, sessions and states."""
    result = make_result(kind, n=PEOPLE, permutations=0, repeats=2, bootstrap=2)
    units = tuple(replace(one, **unit) for one in result.question.units)
    corrected = BiasCorrected(np.ones(PEOPLE), 0.5, 3.0)
    result = replace(
        result,
        question=replace(result.question, units=units),
        corrected=dict.fromkeys(result.evaluation.predictions, corrected),
    )
    write_predictions(result, inventory, {}, kind)


def write_predicted_elsewhere(kind, unit, inventory):
    """Write what predictors of another dataset predict."""
    classes = {"age": (), "sex": ("F", "M"), "group": ("a", "b", "c")}[kind]
    target = Target(
        kind, CLASSIFICATION if classes else REGRESSION, np.full(PEOPLE, np.nan), classes
    )
    predicted = np.full((PEOPLE, len(classes)) if classes else PEOPLE, 0.5)
    units = tuple(Unit(f"{number:04d}", **unit) for number in range(PEOPLE))
    shares = np.full(len(classes), 0.5)
    keys = ("fc", "bs_concatenated")
    applied = Applied(
        target, units, dict.fromkeys(keys, predicted), dict.fromkeys(keys, shares), {}, {}
    )
    write_applied(applied, inventory, {})


ORIGIN = written.Origin()


def write_maps(out, release):
    """Write the tables of the group level."""
    written.write_identification({"fc": identifications()}, out, ORIGIN)
    features = np.random.default_rng(0).standard_normal((8, N))
    columns = table(reliability(features, [*range(4)] * 2), roi_networks(atlas.networks()))
    written.write_reliability({"fc": columns, "sc": columns}, out, ORIGIN)
    recovered = CohortRecovery(("01", "02"), (), dict.fromkeys(FEATURES, [Recovery(0.5, 0.4)] * 2))
    written.write_recovery(recovered, release, out, ORIGIN)
    written.write_group_mean("fc", np.ones((N, N)), out, ORIGIN)
    contrast = Contrast("ses", "a", "b")
    moved = np.random.default_rng(1).standard_normal((6, N, 2))
    shift = embedding_shift(contrast, moved, atlas.roi_names(), atlas.networks())
    found = {f"connectivity{part}": one for part, one in maps(people=6).items()}
    found["embeddingrois"] = shift
    written.write_contrast(contrast, [(name, one, ORIGIN) for name, one in found.items()], out)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A dataset of the participant level, and what the group level writes."""
    participants, group = (tmp_path_factory.mktemp(name) for name in ("participants", "group"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(written, "_draw", lambda out, label, draw: out / f"{label}.svg")
        write_group_files(group)
    return write_participant_files(participants), group


def tables(folder):
    """Return the tables of a dataset that have a product each, with what their sidecars say."""
    found = [path for path in sorted(folder.rglob("*.tsv")) if path.parent.name != "logs"]
    written = [path for path in found if not path.name.startswith("atlas-")]
    assert written
    return {path: json.loads(sidecar_of(path).read_text("utf-8")) for path in written}


def columns_in(path):
    """Return the columns of a table by their names, with their cells."""
    header, *rows = (line.split("\t") for line in path.read_text("utf-8").splitlines())
    return dict(zip(header, zip(*rows, strict=True), strict=True))


def product_of_file(path):
    """Return the product that a file is of: what fits its name most closely."""
    fitting = [
        (len(pattern), product)
        for product in OF_FOLDERS.get(path.parent.name, dataset_products()).values()
        for pattern in patterns_of(product)
        if fnmatch(path.name, pattern)
    ]
    return max(fitting, key=lambda fit: fit[0])[1]


def patterns_of(product):
    parts = [f"stat-{product.stat.format(statistic='*')}"] * bool(product.stat)
    parts += [f"desc-{product.desc.format(label='*')}"] * bool(product.desc)
    name = "_".join([*parts, product.suffix]) + product.extension
    return [name] if product.group == DATASET else [f"*scale-450_{name}", f"*_den-91k_{name}"]


def test_every_column_is_described_and_nothing_else(folders):
    for folder in folders:
        for path, sidecar in tables(folder).items():
            own = [name for name in columns_in(path) if name not in ROIS]
            described = [
                name
                for name, said in sidecar.items()
                if name not in ROIS
                and isinstance(said, dict)
                and {"Description", "Units", "Levels"} & set(said)
            ]
            assert sorted(described) == sorted(own), path.name
            assert all(sidecar[name]["Description"] for name in own), path.name


def test_descriptions_are_plain_and_whole(folders):
    for folder in folders:
        for path, sidecar in tables(folder).items():
            for name in set(columns_in(path)) - ROIS:
                text = sidecar[name]["Description"]
                assert not set("`<>") & set(text), (path.name, name)
                assert text == text.strip() and not text.endswith("."), (path.name, name)


def test_what_is_told_of_columns_is_true_of_a_table(folders):
    seen = {}
    for folder in folders:
        for path, sidecar in tables(folder).items():
            product, cells = product_of_file(path), columns_in(path)
            assert sidecar["Description"] == product.description, path.name
            seen.setdefault(product.key, set()).update(cells)
            for name in set(cells) - ROIS:
                levels = sidecar[name].get("Levels")
                assert levels is None or {*cells[name]} <= {*levels, "n/a"}, (path.name, name)
    assert set(seen) == {key for key, product in ALL.items() if product.columns}
    for key, names in seen.items():
        patterns = [re.sub(r"<\w+>|0\.\.\.$", ".+", column.name) for column in ALL[key].columns]
        idle = [p for p in patterns if not any(re.fullmatch(p, name) for name in names)]
        assert idle == [], key


def test_columns_keep_their_order(folders):
    for folder in folders:
        for path in tables(folder):
            names = column_names(product_of_file(path).key)
            own = [name for name in columns_in(path) if name in names]
            assert own == [name for name in names if name in own], path.name


def test_shapes_count_the_columns(folders):
    for folder in folders:
        for path in tables(folder):
            product, cells = product_of_file(path), columns_in(path)
            rows, _, columns = product.shape.partition(" x ")
            if columns.isdigit():
                assert len(cells) == int(columns), path.name
            elif columns == "(1 + 450)":
                assert list(cells) == ["Node", *atlas.roi_names()], path.name
            if rows.isdigit():
                assert len(next(iter(cells.values()))) == int(rows), path.name


def test_every_array_is_described(folders):
    found = {}
    for path in folders[0].rglob("*.npz"):
        with np.load(path) as arrays:
            found[product_of_file(path).key] = {
                name: f"{arrays[name].ndim} {arrays[name].dtype}" for name in arrays.files
            }
    assert set(found) == {key for key, product in ALL.items() if product.arrays}
    for key, arrays in found.items():
        assert list(arrays) == [array.name for array in ALL[key].arrays]


def test_levels_and_scores_are_those_that_there_are():
    levels = [columns_of(key)[name]["Levels"] for key, name in FEATURE_COLUMNS]
    assert [list(one) for one in levels] == [list(FEATURES)] * len(levels)
    assert set(METRICS) <= set(column_names("prediction_scores"))
    kinds = columns_of("identification")["comparison"]["Levels"]
    assert dict(kinds) == dict(KINDS)

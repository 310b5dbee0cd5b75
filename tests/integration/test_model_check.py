"""Checking a model on a written dataset."""

import hashlib
import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from bsym_bids import atlas
from bsym_bids.errors import BadDataError, InputMissingError, NothingSelectedError
from bsym_bids.model import checking
from bsym_bids.model.cards import read_card
from bsym_bids.model.checking import check_model
from bsym_bids.model.structural import EdgeConvention, stated_convention
from bsym_bids.model.weights import random_state_dicts, resolve_release
from bsym_bids.outputs.checks import report, write_check
from bsym_bids.outputs.names import sidecar_of
from bsym_bids.outputs.reading import find_connectomes
from bsym_bids.simulation.dataset import simulate_dataset

IN_USE = EdgeConvention("invnodevol", "log10")


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """Three simulated people with a window each."""
    folder = tmp_path_factory.mktemp("check") / "out"
    simulate_dataset(folder, 3, seconds=165)
    return folder


@pytest.fixture
def out(simulated, tmp_path):
    return shutil.copytree(simulated, tmp_path / "out")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A release that claims to be trained, with numbers on its card; its weights are random."""
    return a_release(tmp_path_factory.mktemp("release"))


def a_release(folder, without=(), **changes):
    card = read_card("untrained")
    branches = {key: value for key, value in card["sizes"].items() if key not in without}
    files = {}
    for branch, state in random_state_dicts({"sizes": branches}, 0).items():
        path = folder / f"{branch}.pth"
        torch.save({key: torch.from_numpy(value) for key, value in state.items()}, path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        files[branch] = {"path": path.name, "sha256": digest}
    quality = {"reconstruction": {"r2": 0.5, "permuted_r2": 0.1, "data": "made up"}}
    own = {"name": "lab-x", "version": "1", "trained": True, "files": files, "quality": quality}
    own |= {"network": card["network"], "contract": card["contract"]} | changes
    (folder / "model.yaml").write_text(yaml.safe_dump(own))
    return resolve_release("lab-x", folder)


@pytest.fixture
def quick(monkeypatch):
    """Give runs and scans made-up scores instead of asking the network."""

    def of_run(_, run, settings):
        r2 = {"sim0001": 0.5, "sim0002": 0.4, "sim0003": 0.2}[run.participant]
        scores = {f"{way}{s}": 0.1 for way in WAYS for s in ("r2", "rho", "mae")}
        return {**scores, "r2": r2, "permuted_r2": -0.3, "linear_r2": 0.6, "n_rois": 450}

    def of_scan(_, scan, seed, expected):
        ways = ("", "permuted_", "group_", "edges_", "edges_permuted_", "edges_group_")
        scores = {f"{way}{s}": 0.1 for way in ways for s in ("r2", "rho", "mae")}
        return {
            EdgeConvention(measure, transform): {
                **scores,
                "rho": 0.85 if transform == "log10p1" else 0.8,
                "group_rho": 0.9,
                "n_edges": 10,
            }
            for measure in ("count", "invnodevol")
            for transform in ("log10p1", "log10")
        }

    monkeypatch.setattr(checking, "run_scores", of_run)
    monkeypatch.setattr(checking, "scan_scores", of_scan)


WAYS = ("", "permuted_", "linear_", "linear_permuted_")


def test_the_whole_check_with_random_weights(out):
    check = check_model(resolve_release("untrained"), out, participants=["sim0002"], threads=1)
    assert check.participants == ("sim0002",)
    assert check.reconstruction_verdict.verdict == check.edges_verdict.verdict == "not trained"
    run, person, everyone = check.runs
    assert (run.participant, person.label, everyone.participant) == ("sim0002", "all", "all")
    assert run.scores == person.scores == everyone.scores
    # no network, but the data are there: what they allow is what a baseline reaches
    assert run.scores["linear_r2"] > 0.4
    assert run.scores["linear_r2"] > run.scores["linear_permuted_r2"] + 0.15
    assert run.scores["r2"] < 0
    scans = [row for row in check.edges if row.label == "sub-sim0002"]
    assert {(row.convention.measure, row.convention.transform) for row in scans} == {
        (measure, transform)
        for measure in ("count", "invnodevol")
        for transform in ("log10p1", "log10")
    }
    for row in scans:
        assert row.scores["group_rho"] > 0.5 > abs(row.scores["rho"])
        assert row.scores["edges_mae"] > 0
    assert check.convention == IN_USE
    assert not check.problems and not check.skipped


@pytest.mark.parametrize("own_volumes", [True, False])
def test_connectomes_are_those_that_the_participant_level_gives(out, monkeypatch, own_volumes):
    """Brought to the depth of the model, and by the person's volumes where they are known."""
    (path,) = out.glob("sub-sim0002/dwi/*_desc-count_relmat.tsv")
    counts = pd.read_csv(path, sep="\t", index_col=0).to_numpy(float)
    volumes = atlas.roi_volumes()
    if own_volumes:
        volumes = volumes * np.random.default_rng(0).uniform(0.5, 1.5, len(volumes))
        table = pd.DataFrame({"name": atlas.roi_names(), "volume": volumes})
        rois = path.with_name(path.name.replace("count_relmat", "rois_qc"))
        table.to_csv(rois, sep="\t", index=False)
    given = []

    def edge_quality(model, sc, *arguments, **options):
        given.append(sc[0].astype(float))
        return SimpleNamespace(scores_of=dict)

    monkeypatch.setattr(checking, "edge_quality", edge_quality)
    (scan,) = (found for found in find_connectomes(out) if found.path == path)
    deeper = counts * 7e6 / (counts.sum() / 2)
    edges = {
        "count": deeper,
        "invnodevol": deeper * 2 / (volumes[:, None] + volumes),
    }
    conventions = checking.scan_scores(None, scan, 0, expected=(7e6, 9e6))
    assert len(conventions) == len(given) == 4
    for convention, found in zip(conventions, given, strict=True):
        wanted = edges[convention.measure] + (convention.transform == "log10p1")
        wanted = np.log10(wanted, out=np.zeros_like(wanted), where=wanted > 0)
        np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_tables_and_sidecars(out, trained, quick):
    check = check_model(trained, out)
    assert check.participants == ("sim0001", "sim0002", "sim0003")
    paths = write_check(check, out)
    assert [path.name for path in paths] == [
        "desc-labxreconstruction_qc.tsv",
        "desc-labxedges_qc.tsv",
    ]
    runs, edges = (pd.read_csv(p, sep="\t", na_values="n/a", keep_default_na=False) for p in paths)
    assert runs["participant"].tolist() == [*["sim0001", "sim0002", "sim0003"] * 2, "all"]
    assert runs["r2"].tolist()[-1] == 0.4
    # held against a gain of 0.4 on the card
    assert runs["model_domain"].tolist() == [
        *["in domain", "in domain", "doubtful"] * 2,
        "in domain",
    ]
    assert len(edges) == 4 * 7
    used = edges[edges["in_use"]]
    assert set(used["measure"]) == {"invnodevol"} and set(used["transform"]) == {"log10"}
    assert used["model_domain"].notna().all()
    assert edges[~edges["in_use"]]["model_domain"].isna().all()
    for path, folder in zip(paths, ("func", "dwi"), strict=True):
        sidecar = json.loads(sidecar_of(path).read_text())
        assert sidecar["ModelDomain"]["Verdict"] == "in domain"
        assert sidecar["Model"]["Name"] == "lab-x"
        assert sidecar["ModelQuality"]["reconstruction"]["r2"] == 0.5
        assert (sidecar["Participants"], sidecar["ParticipantsInDataset"]) == (
            ["sim0001", "sim0002", "sim0003"],
            3,
        )
        sources = [out / source.removeprefix("bids::") for source in sidecar["Sources"]]
        assert len(sources) == 3
        assert all(p.is_file() and p.parent.name == folder for p in sources)
        columns = path.read_text().partition("\n")[0].split("\t")
        assert set(columns) <= set(sidecar)
    assert not list(out.glob(".*.part"))


def test_what_is_printed(out, trained, quick):
    lines = list(report(check_model(trained, out, participants=["sub-sim0003", "sim0001"])))
    text = "\n".join(lines)
    assert lines[0] == "lab-x: 2 of 3 participant(s)"
    assert "linear, from group connectivity                0.600" in text
    assert "on the card, for held-out data of its own      0.500" in text
    assert "(made up)" in text
    assert "  sub-sim0003: doubtful" in lines
    assert sum(line.startswith("* ") for line in lines) == 2
    assert "* invnodevol, log10" in lines
    assert [line.split(": ")[:2] for line in lines if line.startswith("All")] == [
        ["All", "in domain"],
        ["All", "in domain"],
    ]


def test_without_a_convention_on_the_card_it_is_the_best(out, quick, tmp_path):
    release = a_release(tmp_path, contract={"rois": 450})
    assert stated_convention(release.card) is None
    check = check_model(release, out, participants=["sim0001"])
    assert check.convention == EdgeConvention("count", "log10p1")
    assert check.settings["Scaling"] == "robust"


def test_windows_are_made_as_the_card_has_it(out, quick, tmp_path, monkeypatch):
    contract = {"repetition_time": 1.5, "scaling": "zscore"}
    release = a_release(tmp_path, contract=contract)
    check = check_model(release, out, participants=["sim0001"], seed=4)
    assert check.settings == {
        "ModelRepetitionTime": 1.5,
        "WindowStep": 100,
        "Scaling": "zscore",
        "Seed": 4,
    }


def test_participants_are_drawn_with_the_seed(out, trained, quick):
    drawn = {check_model(trained, out, n_participants=2, seed=s).participants for s in range(9)}
    assert all(len(people) == 2 and people == tuple(sorted(people)) for people in drawn)
    assert len(drawn) > 1
    again = check_model(trained, out, n_participants=2, seed=8).participants
    assert again in drawn
    with pytest.raises(NothingSelectedError, match="--participant-label sim9: not found"):
        check_model(trained, out, participants=["sim9"])


def test_one_run_that_cannot_be_used_does_not_stop_the_others(out, trained):
    (path,) = out.glob("sub-sim0001/func/*_timeseries.tsv")
    path.write_text("\n".join(path.read_text().splitlines()[:100]) + "\n")
    shutil.rmtree(out / "sub-sim0003")
    for scan in out.glob("sub-*/dwi/*"):
        scan.unlink()
    check = check_model(trained, out, threads=1)
    assert [row.participant for row in check.runs] == ["sim0002", "sim0002", "all"]
    (problem,) = check.problems
    assert "too short" in str(problem) and str(path) in str(problem)
    assert check.skipped == ("there are no structural connectomes",)
    assert check.edges == () and check.edges_verdict is None and check.convention is None
    assert any("too short" in line for line in report(check))
    assert len(write_check(check, out)) == 1
    with pytest.raises(BadDataError, match="too short"):
        check_model(trained, out, participants=["sim0001"])


def test_missing_rois_of_a_connectome_are_left_out(out, trained):
    shutil.rmtree(out / "sub-sim0001" / "func")
    (path,) = out.glob("sub-sim0001/dwi/*_relmat.tsv")
    table = pd.read_csv(path, sep="\t", index_col="Node")
    gone = list(atlas.roi_names()[10:30])
    counts = table.to_numpy()
    kept = ~np.isin(atlas.roi_names(), gone)
    table = table.astype(float)
    table.loc[gone] = table.loc[:, gone] = np.nan
    table.to_csv(path, sep="\t", na_rep="n/a")
    check = check_model(trained, out, participants=["sim0001"], threads=1)
    edges = np.triu(counts, 1)[np.ix_(kept, kept)]
    by_convention = {row.convention: row.scores for row in check.edges}
    found = by_convention[EdgeConvention("count", "log10p1")]
    assert found["n_edges"] == (edges > 0).sum()
    assert math.isfinite(found["group_r2"])
    assert check.skipped == ("there are no denoised time series",)


def test_counts_that_were_divided_by_volume_are_used_where_there_are_no_others(out, trained):
    shutil.rmtree(out / "sub-sim0001" / "func")
    (path,) = out.glob("sub-sim0001/dwi/*_relmat.tsv")
    path.rename(path.with_name(path.name.replace("desc-count", "desc-invnodevol")))
    check = check_model(trained, out, participants=["sim0001"], threads=1)
    assert {row.convention.measure for row in check.edges} == {"invnodevol"}


@pytest.mark.parametrize(
    ("without", "said"),
    [
        (("perceiver", "gate"), "the model has no branch perceiver"),
        (("structural",), "the model has no structural branch"),
    ],
)
def test_a_model_of_one_modality_is_checked_on_that(out, quick, tmp_path, without, said):
    check = check_model(a_release(tmp_path, without), out)
    assert said in check.skipped[0]
    assert bool(check.runs) != bool(check.edges)


def test_nothing_to_check(tmp_path, trained):
    with pytest.raises(InputMissingError, match="there are no denoised time series"):
        check_model(trained, tmp_path)
    with pytest.raises(InputMissingError, match="no such folder"):
        check_model(trained, tmp_path / "nowhere")

"""Reports of participants by the command: whole, offline, readable, the same when made again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import participant_level, run_command

from bsym_bids.outputs.participant_record import read_record
from bsym_bids.reports import networks
from tests.page_checks import check_page

FIGURES = (
    "Coverage of each ROI",
    "Motion and the series of all ROIs, before and after cleaning",
    "Functional connectivity, network by network",
    "Reconstruction R2 of each ROI",
    "Reconstruction R2 by network, with control and baseline",
    "Attention that each ROI receives from the others",
    "The strongest attention between two ROIs",
    "Length of the mean embedding of each ROI",
    "Similarity of the embeddings within and between networks",
)


@pytest.fixture
def out(finished, tmp_path) -> Path:
    """A copy of finished outputs that a test may break."""
    shutil.copytree(finished[0], tmp_path / "out", ignore=shutil.ignore_patterns("work"))
    return tmp_path / "out"


def reports_only(bids, out, *arguments):
    return run_command(bids, out, "participant", "--reports-only", *arguments)


@pytest.mark.parametrize("label", ["01", "03"])
def test_the_page_of_a_participant_shows_everything(finished, label):
    page = check_page(finished[0] / f"sub-{label}.html")
    assert f"sub-{label}" in page.said
    assert set(FIGURES) <= set(page.labels)
    # Grayordinates have no image in the volume.
    assert ("Mean BOLD image with the borders of the ROIs" in page.labels) == (label == "01")
    for network in networks.NAMES.values():
        assert network in page.said
    for words in ("Motion", "Coverage", "Model domain", "Nuisance regression", "24p-wm-csf"):
        assert words in page.said
    assert "cannot be shown" not in page.said
    assert "nothing of the person's health" in page.said


def test_the_page_names_datasets_instead_of_places(finished, dataset):
    out = finished[0]
    for path in (*out.glob("sub-*.html"), *out.glob("logs/sub-*/record.json")):
        text = path.read_text()
        assert str(dataset) not in text and str(out) not in text
    assert "fmriprep:sub-01/" in (out / "sub-01.html").read_text()


def test_the_record_says_what_became_of_everyone(finished):
    record = read_record(finished[0], "01")
    (run,) = record.series
    assert (run.kind, run.status) == ("bold", "done")
    assert set(run.files) == {"series", "mask", "confounds"}


def test_made_again_without_the_input_it_is_the_same(out, tmp_path):
    before = {path.name: path.read_bytes() for path in out.glob("sub-*.html")}
    outputs = {path: path.stat().st_mtime_ns for path in out.glob("sub-*/**/*")}
    for path in out.glob("sub-*.html"):
        path.unlink()
    bids = tmp_path / "gone"
    bids.mkdir()
    done = reports_only(bids, out)
    assert done.code == 0, done.err
    assert {path.name: path.read_bytes() for path in out.glob("sub-*.html")} == before
    assert outputs == {path: path.stat().st_mtime_ns for path in out.glob("sub-*/**/*")}


def test_only_those_who_are_asked_for_are_made_again(out, dataset):
    for path in out.glob("sub-*.html"):
        path.unlink()
    assert reports_only(dataset, out, "--participant-label", "sub-03").code == 0
    assert [path.name for path in out.glob("sub-*.html")] == ["sub-03.html"]
    nobody = reports_only(dataset, out, "--participant-label", "77")
    assert nobody.code == 18 and "hint" in nobody.err


def test_a_damaged_output_is_named_in_the_page_and_stops_nothing(out, dataset):
    (coverage,) = out.glob("sub-01/**/*_stat-coverage_bold.tsv")
    coverage.write_text("name\tcoverage\nx\t1\n")
    (image,) = out.glob("sub-01/**/*_boldref.nii.gz")
    image.write_bytes(image.read_bytes()[:2000])
    (sidecar,) = out.glob("sub-03/**/*_desc-denoised_timeseries.json")
    sidecar.write_text("{")
    done = reports_only(dataset, out)
    assert done.code == 0, done.err
    page = check_page(out / "sub-01.html")
    assert page.said.count("cannot be shown") == 2 and coverage.name in page.said
    assert "Reconstruction R2 of each ROI" in page.labels
    other = check_page(out / "sub-03.html")
    assert "Outputs that cannot be read" in other.said and sidecar.name in other.said


def test_markup_in_data_is_text_in_the_page(out, dataset):
    (sidecar,) = out.glob("sub-01/**/*_desc-denoised_timeseries.json")
    document = json.loads(sidecar.read_text())
    document["Notes"] = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>']
    sidecar.write_text(json.dumps(document))
    record = out / "logs" / "sub-01" / "record.json"
    document = json.loads(record.read_text())
    document["series"][0]["reason"] = "<b>bold</b>"
    document["series"][0]["status"] = "failed"
    document["skipped"] = [["x<i>", "because of <u>this</u>"]]
    record.write_text(json.dumps(document))
    (out / "logs" / "sub-01" / "crash-1.txt").write_text("</pre><script>alert(2)</script>")
    assert reports_only(dataset, out, "--participant-label", "01").code == 0
    page = check_page(out / "sub-01.html")
    assert "<script>alert(1)</script>" in page.said
    assert "</pre><script>alert(2)</script>" in page.said
    assert "<b>bold</b>" in page.said and "because of <u>this</u>" in page.said


def test_a_participant_who_fails_has_a_page_that_says_why(bids, small_model, tmp_path):
    (image,) = bids.glob("derivatives/fmriprep/sub-01/**/*_desc-preproc_bold.nii.gz")
    image.write_bytes(image.read_bytes()[:20_000])
    out = tmp_path / "out"
    who = ("--participant-label", "01")
    done = participant_level(bids, out, *small_model, *who, reports=True)
    assert done.code == 65
    page = check_page(out / "sub-01.html")
    assert "Failed" in page.said and image.name in page.said
    assert "What to do:" in page.said and "Crash files" in page.said
    assert str(bids) not in page.text and f"fmriprep:sub-01/ses-1/func/{image.name}" in page.said
    (series,) = read_record(out, "01").series
    assert series.status == "failed" and series.files["series"].startswith("fmriprep:")


def test_pages_are_left_alone_when_nothing_changed_and_made_when_absent(dataset, out, small_model):
    pages = sorted(out.glob("sub-*.html"))
    times = [path.stat().st_mtime_ns for path in pages]
    assert participant_level(dataset, out, *small_model, reports=True).code == 0
    assert [path.stat().st_mtime_ns for path in pages] == times
    pages[0].unlink()
    assert participant_level(dataset, out, *small_model, reports=True).code == 0
    assert pages[0].exists() and pages[1].stat().st_mtime_ns == times[1]


def test_without_reports_there_are_none_but_the_record(dataset, small_model, tmp_path):
    out = tmp_path / "out"
    who = ("--participant-label", "03", "--window-step", "200")
    assert participant_level(dataset, out, *small_model, *who).code == 0
    assert not list(out.glob("*.html"))
    assert read_record(out, "03").series[0].status == "done"

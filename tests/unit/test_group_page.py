"""The page of all participants: complete, escaped, on its own, readable, made of what changed."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_prediction_page import Page
from test_report_measures import write_run, write_scan

from bsym_bids.outputs.names import sidecar_of
from bsym_bids.reports import group_page
from bsym_bids.reports import measures as measuring
from bsym_bids.reports.group_page import (
    common_lights,
    describe_columns,
    lists_of,
    write_group_page,
)
from bsym_bids.reports.group_rows import read_outcomes, rows_of
from bsym_bids.reports.lights import AMBER, DATA, GREEN, GREY, MODEL, RED, WORDS, rules
from bsym_bids.reports.measures import measure_all, measures
from bsym_bids.reports.pages import FOLDER

HEAD = "participant\trun\tstatus\treason\thint\tmodel_domain\n"
PEOPLE = 14
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


class GroupPage(Page):
    """A page whose script is no text."""

    def handle_data(self, data):
        if "script" not in self.open:
            super().handle_data(data)


def summarise(out, name, *rows):
    """Write a summary of a call."""
    (out / "logs").mkdir(exist_ok=True)
    lines = ["\t".join([*row, *["n/a"] * (6 - len(row))]) for row in rows]
    (out / "logs" / f"{name}_summary.tsv").write_text(HEAD + "\n".join(lines) + "\n")


def write_cohort(out, people=PEOPLE):
    """Write participants of whom some are bad: 01 moved, 02 is poorly registered, ..."""
    rng = np.random.default_rng(0)
    for number in range(1, people + 1):
        label = f"{number:02d}"
        fd = {1: 0.9, 3: 0.3}.get(number, rng.uniform(0.1, 0.2))
        model = {"ModelDomain": {"Verdict": "doubtful" if number == 4 else "in domain"}}
        quality = {"fd_mean": fd, "fc_mean_absolute": rng.normal(0.2, 0.01)}
        write_run(out, label, quality=quality, model=model)
        length = 40 if number == 5 else rng.normal(95, 2)
        scan = {"registration": "poor" if number == 2 else "good", "mean_length": length}
        write_scan(out, label, quality=scan)
        (out / f"sub-{label}.html").touch()
    summarise(
        out,
        "20260101T000000_a",
        *((f"{n:02d}", f"sub-{n:02d}_dwi", "done") for n in range(1, people)),
        ("90", "n/a", "failed", "no such file", "look"),
        ("91", "sub-91_task-rest_space-x", "failed", "150 frames are too few"),
        ("01", "sub-01_task-rest with sub-01_dwi", "not run", "it needs another"),
    )


def rows_in(out):
    measured, _ = measure_all(out, {})
    outcomes, _ = read_outcomes(out / "logs")
    return rows_of(out, measured, outcomes)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    out = tmp_path_factory.mktemp("cohort") / "out"
    write_cohort(out)
    return out, write_group_page(out, out.parent / "work")


@pytest.fixture(scope="module")
def html(cohort):
    return cohort[1][0].read_text("utf-8")


@pytest.fixture(scope="module")
def table(cohort):
    return pd.read_csv(cohort[1][1], sep="\t", na_values="n/a", keep_default_na=False)


def test_three_files_are_written(cohort):
    out, paths = cohort
    assert [path.name for path in paths] == [
        "group_participants.html",
        "group_participants.tsv",
        "group_participants.json",
    ]
    assert all(path.parent == out and path.is_file() for path in paths)
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_table_and_sidecar_have_the_same_columns(cohort, table):
    document = json.loads(cohort[1][2].read_text())
    assert list(table.columns) == list(document)
    assert set(measures()) <= document.keys()
    for key, entry in document.items():
        assert entry["Description"], key
        measure = measures().get(key)
        if measure:
            assert entry.get("Units", "") == measure.unit
            assert entry.get("Levels", {}) == measure.levels
    assert document["light"]["Levels"].keys() == WORDS.keys()
    assert document["fd_mean"]["Limits"] == {
        "bold": {"amber": 0.25, "red": 0.5},
        "dwi": {"amber": 1, "red": 2},
    }


def test_every_series_has_a_row_with_its_numbers(cohort, table):
    out, _ = cohort
    assert len(table) == 2 * PEOPLE + 3
    for row in rows_in(out):
        if not row.is_measured:
            continue
        (mine,) = table[table["series"] == row.measured.series].to_dict("records")
        assert mine["participant_id"] == row.participant
        assert mine["modality"] == row.modality
        assert mine["report"] == f"{row.participant}.html"
        for key, value in row.measured.values.items():
            if isinstance(value, str):
                assert str(mine[key]).lower() == value.lower().replace("n/a", "nan"), key
            else:
                np.testing.assert_allclose(mine[key], value, rtol=1e-6, equal_nan=True)
        assert (mine["light"], mine["light_data"]) == (row.colour(), row.colour(DATA))


def test_lights_and_reasons_of_cases(table):
    table = table.set_index("series")
    moved = table.loc["sub-01_task-rest_space-MNI152NLin6Asym"]
    assert (moved["light"], moved["light_data"], moved["light_model"]) == (RED, RED, GREEN)
    assert moved["reasons"].startswith("Mean framewise displacement is 0.90")
    assert "fd_mean" in moved["unusual"].split("|")
    poor = table.loc["sub-02_dwi"]
    assert poor["light_data"] == RED and "registration is poor" in poor["reasons"]
    doubtful = table.loc["sub-04_task-rest_space-MNI152NLin6Asym"]
    assert (doubtful["light_data"], doubtful["light_model"]) == (GREEN, AMBER)
    assert table.loc["sub-91_task-rest_space-x"]["light"] == GREY
    assert table.loc["sub-91_task-rest_space-x"]["reasons"] == "Failed: 150 frames are too few."
    assert table.loc["sub-91_task-rest_space-x"]["status"] == "failed"
    assert table.loc["sub-01_dwi"]["status"] == "done" and pd.isna(moved["status"])
    both = table.loc["sub-01_task-rest with sub-01_dwi"]
    assert (both["modality"], both["status"]) == ("both", "not run")
    (whole,) = table[table["participant_id"] == "sub-90"].to_dict("records")
    assert whole["reasons"] == "Failed: no such file." and pd.isna(whole["report"])


def test_page_stands_alone_and_is_well_formed(html):
    page = GroupPage(html)
    without_script = re.sub(r"<script>.*?</script>", "", html, flags=re.S)
    assert not re.search(r"https?:|//[a-z]|@import", without_script)
    assert not re.search(r"https?:|fetch|XMLHttp|import|eval|innerHTML", script_of(html))
    assert html.count("url(#") == html.count("url(")
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert max(Counter(ids).values()) == 1
    addresses = [a["href"] for _, a in page.elements if "href" in a]
    assert {a[1:] for a in addresses if a.startswith("#")} <= set(ids)
    files = {a for a in addresses if not a.startswith(("#", "data:"))}
    reports = {f"sub-{n:02d}.html" for n in range(1, PEOPLE + 1)}
    assert files == reports | {"group_participants.tsv", "group_participants.json"}


def script_of(html):
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.S)
    return script


def test_policy_allows_the_script_of_the_page_and_no_other(html):
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', html)
    digest = base64.b64encode(hashlib.sha256(script_of(html).encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';") and policy.count("script-src") == 1
    assert not re.search(r"<[^>]*\son\w+=", html)
    with pytest.raises(ValueError, match="one script"):
        group_page._with_script_allowed(html.replace("</main>", "<script>x</script></main>"))
    # a name from the data that looks like the policy
    odd = html.replace("</main>", "default-src 'none';</main>")
    assert group_page._with_script_allowed(odd).count("script-src") == html.count("script-src") + 1


def test_page_can_be_used_without_sight_and_mouse(html):
    page = GroupPage(html)
    tags = [tag for tag, _ in page.elements]
    assert tags.count("main") == tags.count("nav") == tags.count("h1") == 1
    levels = [int(tag[1]) for tag in tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and (np.diff(levels) <= 1).all()
    charts = [a for a in page.all("svg") if a.get("class") == "chart"]
    assert charts and all(a["role"] == "img" and len(a["aria-label"]) > 30 for a in charts)
    assert all(a.get("scope") in ("col", "row") for a in page.all("th"))
    (region,) = (a for a in page.all("div") if a.get("role") == "region")
    assert region["tabindex"] == "0" and region["aria-labelledby"] in {
        a.get("id") for _, a in page.elements
    }
    assert [a["id"] for a in page.all("p") if a.get("role") == "status"] == ["shown"]
    labelled = re.findall(r"<label>\w+ <(?:input|select)", html)
    assert len(labelled) == len(page.all("input")) + len(page.all("select"))


def test_colour_is_never_alone(html):
    for colour, word in WORDS.items():
        for light in re.findall(rf'<span class="light {colour}">(.*?)</span>', html):
            assert light.endswith(word) and "<svg" in light
    css = (FOLDER / "page.css").read_text()
    assert re.search(r"\.beyond\.red::before \{ content: [^}]*do not use", css)
    assert re.search(r"\.beyond\.amber::before \{ content: [^}]*look", css)


def test_the_table_is_there_without_the_script(html, table):
    body = re.search(r'<table class="series-table".*?</table>', html, re.S)[0]
    assert body.count("<tr") == len(table) + 1
    first = re.search(r"<tr data-kind.*?</tr>", body)[0]
    assert "sub-01" in first and "0.90" in first and 'class="beyond red"' in first
    assert re.search(r'<form class="tools" id="tools" hidden>', html)


def test_the_script_has_all_numbers(html, cohort):
    text = re.search(r'<script type="application/json" id="measures">(.*?)</script>', html)[1]
    assert not set("<>&") & set(text)
    columns = {column["key"]: column for column in json.loads(text)}
    rows = rows_in(cohort[0])
    assert list(columns) == list(measures())
    for key, column in columns.items():
        assert len(column["values"]) == len(rows)
        for row, value in zip(rows, column["values"], strict=True):
            if "levels" in column:
                assert (column["levels"][value] if value is not None else "") == (
                    row.measured.text(key)
                )
            else:
                number = np.nan if value is None else value
                np.testing.assert_allclose(number, row.measured.number(key), rtol=1e-6)


def test_lists_name_who_to_leave_out_and_why(html, cohort):
    rows = rows_in(cohort[0])
    lists = {one.name: one for one in lists_of(rows, common_lights(rows))}
    named = {
        name: [one.row.measured.series.split("_space")[0] for one in own.shown]
        for name, own in lists.items()
    }
    assert sorted(named["exclude"]) == ["sub-01_task-rest", "sub-02_dwi"]
    assert named["look"] == ["sub-03_task-rest"]
    assert named["of-model"] == ["sub-04_task-rest"]
    text = GroupPage(html).text
    assert "Mean framewise displacement is 0.90 mm, above 0.5 mm." in text
    assert "What to do: look" in text and "150 frames are too few" in text


def test_what_is_so_of_most_is_said_once(tmp_path):
    for number in range(6):
        model = {"ModelDomain": {"Verdict": "not trained", "Reason": "the weights are random"}}
        seconds = 1.0 if number else 0.5
        quality = {"repetition_time": seconds, "fd_mean": 0.9 if number == 1 else 0.1}
        write_run(tmp_path, f"{number}", quality=quality, model={**model, "Warning": "<Random>."})
    rows = rows_in(tmp_path)
    common = common_lights(rows)
    assert {("bold_domain", RED)} <= common
    lists = {one.name: [x.row.participant for x in one.shown] for one in lists_of(rows, common)}
    # Of five runs 4 min are left, of one 2: two are in the list, by what is their own.
    assert {name: sorted(people) for name, people in lists.items()} == {
        "exclude": ["sub-0", "sub-1"]
    }
    text = GroupPage(group_page.group_page(rows)).text
    assert "Model domain, most BOLD runs." in text and "Of the model. <Random>." in text
    assert "Do not use: 6 of 6, which is not said of each." in text
    assert {row.colour(MODEL) for row in rows} == {RED}


def test_whoever_is_not_to_be_used_is_listed_whatever_others_are(tmp_path):
    for number in range(6):
        write_run(tmp_path, f"{number}", quality={"fd_mean": 0.9, "tsnr_median": 30 - number})
    rows = rows_in(tmp_path)
    common = common_lights(rows)
    assert {("bold_motion", RED), ("bold_tsnr", AMBER)} <= common
    (own,) = lists_of(rows, common)
    assert own.name == "exclude" and len(own.shown) == 6
    assert all(one.colour == RED and one.said[0].startswith("As most: ") for one in own.shown)
    text = GroupPage(group_page.group_page(rows)).text
    assert "Motion, most BOLD runs. Do not use: 6 of 6" in text
    assert text.count("As most: motion") == 2 * 6  # in the list and in the table


def test_settings_that_differ_are_pointed_out(tmp_path):
    for number in range(3):
        names = write_run(tmp_path, f"{number}")
    for path in (names.path("run_quality"), names.path("coverage")):
        sidecar = sidecar_of(path)
        sidecar.write_text(sidecar.read_text().replace("36p", "none"))
    text = GroupPage(group_page.group_page(rows_in(tmp_path))).text
    assert "Nuisance strategy differs between BOLD runs. 36p (2), none (1)." in text
    assert "Censoring threshold differs" not in text


EVIL = "<script>alert('&')</script><!--\"</style>"


def test_everything_is_escaped(tmp_path):
    model = {"ModelDomain": {"Verdict": "doubtful", "Reason": EVIL}, "Warning": EVIL}
    path = write_run(tmp_path, "<b>x", task="<i>y", model={**model, "Model": {"Name": EVIL}}).path(
        "run_quality"
    )
    for number in range(10):
        write_run(tmp_path, f"{number}", quality={"fd_mean": 0.1 + number / 100})
    path.write_text(path.read_text().replace("0.1234567", "0.9"))
    write_run(tmp_path, "9").path("run_quality").write_text(f"fd_mean\n{EVIL}\n")
    summarise(tmp_path, "x", ("<u>z", "n/a", "failed", EVIL, EVIL), (EVIL, EVIL, "failed", EVIL))
    (tmp_path / "logs" / "<s>_summary.tsv").write_text("a\nb\tc\n")
    (tmp_path / "sub-<b>x.html").touch()
    html = write_group_page(tmp_path, tmp_path / "work")[0].read_text()
    page = GroupPage(html)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"b", "i", "u", "s"} and html.count("<script") == 2
    assert "<!--" not in html.replace("<!DOCTYPE", "")
    for text in ("sub-<b>x", "<i>y", "sub-<u>z", "<s>_summary.tsv", EVIL):
        assert text in page.text
    links = {a["href"] for a in page.all("a") if "sub-" in a["href"]}
    assert links == {"sub-%3Cb%3Ex.html"}
    table = pd.read_csv(tmp_path / "group_participants.tsv", sep="\t")
    assert len(table) == 13 and EVIL in " ".join(table["reasons"].dropna())


def test_the_same_outputs_give_the_same_files(cohort, tmp_path):
    out, paths = cohort
    before = [path.read_bytes() for path in paths]
    write_group_page(out, tmp_path)
    assert [path.read_bytes() for path in paths] == before


def identities(paths):
    return [(path.stat().st_ino, path.stat().st_mtime_ns) for path in paths]


def test_only_what_changed_is_read_and_written(tmp_path, monkeypatch):
    out, work = tmp_path / "out", tmp_path / "work"
    for number in range(4):
        write_run(out, f"{number}")
    read = []
    real = measuring.measure_files
    monkeypatch.setattr(
        measuring,
        "measure_files",
        lambda root, files: read.append(files[0].path) or real(root, files),
    )
    paths = write_group_page(out, work)
    before = identities(paths)
    assert len(read) == 4
    read.clear()
    assert write_group_page(out, work) == paths
    assert not read and identities(paths) == before
    path = write_run(out, "2").path("run_quality")
    path.write_text(path.read_text().replace("0.1234567", "0.7777"))
    write_group_page(out, work)
    assert {name.split("/")[0] for name in read} == {"sub-2"} and identities(paths) != before
    assert "0.7777" in paths[1].read_text() and "0.78" in paths[0].read_text()
    read.clear()
    shutil.rmtree(out / "sub-1")
    write_group_page(out, work)
    assert not read and "sub-1" not in paths[1].read_text()
    # Something else is written anew where it changed: a report, a summary, a file that went.
    (out / "sub-2.html").touch()
    write_group_page(out, work)
    assert "sub-2.html" in paths[0].read_text()
    summarise(out, "x", ("7", "n/a", "failed", "gone"))
    write_group_page(out, work)
    assert "sub-7" in paths[0].read_text() and not read
    paths[1].unlink()
    write_group_page(out, work)
    assert "sub-7" in paths[1].read_text()


@pytest.mark.parametrize("kept", [b"", b"[]", b'{"read": 3}', b'{"read": {}}', b"\xff", b"null"])
def test_what_was_kept_may_be_damaged(tmp_path, kept):
    write_run(tmp_path / "out", "01")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / group_page.CACHE).write_bytes(kept)
    paths = write_group_page(tmp_path / "out", tmp_path / "work")
    assert "sub-01" in paths[0].read_text()
    json.loads((tmp_path / "work" / group_page.CACHE).read_bytes())


def test_another_version_reads_anew(tmp_path, monkeypatch):
    write_run(tmp_path / "out", "01")
    paths = write_group_page(tmp_path / "out", tmp_path / "work")
    before = identities(paths)
    monkeypatch.setattr(group_page, "_code", lambda: "other")
    write_group_page(tmp_path / "out", tmp_path / "work")
    assert identities(paths) != before


def test_writers_wait_for_each_other(tmp_path):
    from filelock import FileLock

    write_run(tmp_path / "out", "01")
    with group_page._one_writer(tmp_path / "work"):
        lock = FileLock(tmp_path / "work" / f".{group_page.CACHE}.lock")
        assert not lock.is_locked
        with pytest.raises(TimeoutError):
            lock.acquire(timeout=0.01)
    lock.acquire(timeout=5)
    lock.release()


def test_nobody_is_there(tmp_path):
    paths = write_group_page(tmp_path, tmp_path / "work")
    page = GroupPage(paths[0].read_text())
    assert "There are no outputs of any participant." in page.text
    assert not page.all("table") and len(paths[1].read_text().splitlines()) == 1
    assert json.loads(paths[2].read_text()) == describe_columns()


def test_broken_files_are_told(tmp_path):
    write_run(tmp_path, "01").path("run_quality").write_bytes(b"\xff")
    names = write_run(tmp_path, "02")
    sidecar_of(names.path("reconstruction_networks")).write_text("{")
    paths = write_group_page(tmp_path, tmp_path / "work")
    text = GroupPage(paths[0].read_text()).text
    assert "Could not be read: sub-01/func/" in text and "cannot be read as JSON" in text
    table = pd.read_csv(paths[1], sep="\t")
    assert list(table["light_data"]) == [AMBER, AMBER]
    assert table["problems"].str.contains("sub-0").all()


def test_the_newest_outcome_counts(tmp_path):
    run = "sub-01_task-rest_space-x"
    summarise(tmp_path, "20260102T000000_b", ("01", run, "done"), ("03", "n/a", "failed", "new"))
    summarise(
        tmp_path,
        "20260101T000000_z",
        ("01", run, "failed", "old"),
        ("01", "n/a", "failed", "old"),
        ("02", "n/a", "failed", "still"),
        ("03", "n/a", "failed", "old"),
        ("03", "report", "failed", "old"),
        ("n/a", "report", "failed", "old"),
    )
    (tmp_path / "logs" / "20260103T000000_c_summary.tsv").write_text(f"{HEAD}1\t2\n")
    outcomes, unread = read_outcomes(tmp_path / "logs")
    said = {key: (one.status, one.reason) for key, one in outcomes.items()}
    assert said == {
        ("01", run): ("done", ""),
        ("02", "n/a"): ("failed", "still"),
        ("03", "n/a"): ("failed", "new"),
    }
    assert len(unread) == 1 and "20260103T000000_c" in unread[0]
    assert read_outcomes(tmp_path / "none") == ({}, [])


def test_what_concerns_no_series_has_a_row(tmp_path):
    summarise(
        tmp_path, "x", ("n/a", "report", "failed", "disk full"), ("01", "n/a", "failed", "no T1w")
    )
    rows = rows_in(tmp_path)
    assert [(row.participant, row.label) for row in rows] == [("n/a", "report"), ("sub-01", "")]
    assert "Participants 1 " in GroupPage(group_page.group_page(rows)).text


def test_places_of_files_are_not_in_the_page(tmp_path):
    damaged = ("01", "n/a", "failed", f"{tmp_path}/logs/x.txt: is damaged")
    summarise(tmp_path, "x", damaged)
    page, *_ = group_page.write_group_page(tmp_path, tmp_path / "work")
    text = page.read_text()
    assert "logs/x.txt: is damaged" in text and str(tmp_path) not in text


def test_a_run_that_failed_later_keeps_its_row(tmp_path):
    names = write_run(tmp_path, "01")
    run = f"sub-01_task-rest_space-{names.space}"
    summarise(tmp_path, "x", ("01", run, "failed", "no window"))
    (row,) = rows_in(tmp_path)
    assert row.is_measured and row.failure == "Failed: no window."
    assert row.label == "task-rest"


def test_labels_keep_what_tells_series_apart(tmp_path):
    write_run(tmp_path, "01", ses="a")
    write_run(tmp_path, "01", ses="b")
    names = write_run(tmp_path, "02")
    assert [row.label for row in rows_in(tmp_path)] == [
        "ses-a_task-rest",
        "ses-b_task-rest",
        "task-rest",
    ]
    other = names.path("run_quality")
    for path in (other, sidecar_of(other)):
        path.rename(path.with_name(path.name.replace("NLin6", "NLin2009c")))
    assert {row.label for row in rows_in(tmp_path)} > {"task-rest_space-MNI152NLin2009cAsym"}


def test_all_limits_are_explained(html):
    text = GroupPage(html).text
    for rule in rules():
        assert rule.why in text and rule.source in text, rule.key


def test_distributions_mark_and_name_outliers(html):
    (figure,) = re.findall(r'aria-label="Distribution of mean length\.([^"]*)"', html)
    assert "14 diffusion scans" in figure and "Unusual: sub-05 (40.0\N{NO-BREAK SPACE}mm)" in figure
    drawn = re.findall(r"<figure>(?:(?!</figure>).)*?Mean length \(mm\).*?</figure>", html, re.S)
    assert len(drawn) == 1 and ">sub-05</text>" in drawn[0].replace(" ", "")
    motion = re.findall(r'aria-label="Distribution of mean displacement\.([^"]*)"', html)
    assert "look above 0.25" in motion[0] and "do not use above 0.5" in motion[0]


def test_many_values_are_counted(tmp_path):
    rng = np.random.default_rng(0)
    names = write_run(tmp_path, "000")
    files = [names.path("run_quality"), sidecar_of(names.path("run_quality"))]
    for number in range(1, 200):
        for path in files:
            target = Path(str(path).replace("sub-000", f"sub-{number:03d}"))
            target.parent.mkdir(parents=True, exist_ok=True)
            fd = f"{rng.lognormal(-2, 0.3):.7g}"
            target.write_text(path.read_text().replace("0.1234567", fd))
    html = write_group_page(tmp_path, tmp_path / "work")[0].read_text()
    assert len(html) < 600_000 and "200 BOLD runs" in html


ACTIONS = """
const say = (text) => { document.getElementById("result").textContent += text + "\\n"; };
const table = document.getElementById("series-table");
const head = (title) => [...table.tHead.rows[0].cells]
  .find((th) => th.textContent.startsWith(title));
const cells = (th) => [...table.tBodies[0].rows].filter((row) => !row.hidden)
  .map((row) => row.cells[th.cellIndex].textContent);
const set = (id, value) => {
  document.getElementById(id).value = value;
  document.getElementById(id).dispatchEvent(new Event("input"));
};
const shown = () => document.getElementById("shown").textContent;
const motion = head("Mean displacement");
motion.querySelector("button").click();
motion.querySelector("button").click();
say([motion.getAttribute("aria-sort"), cells(motion)[0], cells(motion).at(-1)].join(" "));
head("Data").querySelector("button").click();
say([motion.getAttribute("aria-sort"), cells(head("Data"))[0]].join(" "));
set("kind", "dwi");
say([shown(), head("Data kept").hidden].join(" "));
set("data-light", "red");
say([shown(), cells(head("Participant")).join()].join(" "));
set("search", "nothing like it");
say(shown());
set("search", ""); set("data-light", ""); set("kind", "");
document.getElementById("every").click();
say([head("Volumes by b") !== undefined, cells(head("Mean length")).includes("40.0")].join(" "));
document.getElementById("usual").click();
say([head("Mean length").hidden, head("Mean displacement").hidden].join(" "));
"""


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_the_table_sorts_and_filters(html, tmp_path):
    digest = base64.b64encode(hashlib.sha256(ACTIONS.encode()).digest()).decode()
    driven = html.replace("script-src '", f"script-src 'sha256-{digest}' '", 1)
    end = f'<pre id="result"></pre><script>{ACTIONS}</script></body>'
    (tmp_path / "page.html").write_text(driven.replace("</body>", end))
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
    command = [CHROMIUM, *options, "--dump-dom", (tmp_path / "page.html").as_uri()]
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    found = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.S)
    assert found, done.stderr[-2000:]
    assert found[1].splitlines() == [
        "descending 0.90 n/a",
        " do not use",
        f"{PEOPLE} of {2 * PEOPLE + 3} rows true",
        f"1 of {2 * PEOPLE + 3} rows sub-02",
        f"0 of {2 * PEOPLE + 3} rows",
        "true true",
        "true false",
    ]

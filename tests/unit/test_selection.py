"""What the user may ask for: labels, and filters in the form that fMRIPrep takes."""

import json
from pathlib import Path

import pytest
from bids.layout import Query

from bsym_bids.config import RunConfig
from bsym_bids.errors import InputMissingError, NothingSelectedError, UsageError
from bsym_bids.inputs.selection import (
    Selection,
    check_filters,
    fits,
    read_filter_file,
    unknown_label,
)

RUN = {"sub": "01", "ses": "pre", "task": "rest", "run": "01"}


@pytest.mark.parametrize(
    ("wanted", "taken"),
    [
        ({}, True),
        ({"sessions": ["pre"]}, True),
        ({"sessions": ["post", "pre"]}, True),
        ({"sessions": ["post"]}, False),
        ({"tasks": ["rest"]}, True),
        ({"tasks": ["Rest"]}, False),
        ({"runs": ["1"]}, True),
        ({"runs": ["001"]}, True),
        ({"runs": ["10"]}, False),
        ({"sessions": ["pre"], "tasks": ["rest"], "runs": ["2", "1"]}, True),
        ({"sessions": ["pre"], "tasks": ["movie"], "runs": ["1"]}, False),
    ],
)
def test_every_kind_of_label_must_fit(wanted, taken):
    assert Selection(**wanted).takes(RUN) is taken


@pytest.mark.parametrize("wanted", [{"sessions": ["pre"]}, {"runs": ["1"]}, {"tasks": ["rest"]}])
def test_a_run_without_the_entity_is_not_taken_when_labels_are_asked_for(wanted):
    assert not Selection(**wanted).takes({"sub": "01"})


def test_participants_are_not_for_takes_to_decide():
    assert Selection(participants=["02"]).takes(RUN)


@pytest.mark.parametrize(("wanted", "taken"), [("1", False), ("01", True)])
def test_sessions_and_tasks_are_names_and_not_numbers(wanted, taken):
    # BIDS: ses-1 and ses-01 are two sessions, run-1 and run-01 the same index.
    entities = {"ses": "01", "task": "01", "run": "01"}
    assert Selection(sessions=[wanted]).takes(entities) is taken
    assert Selection(tasks=[wanted]).takes(entities) is taken
    assert Selection(runs=[wanted]).takes(entities)


def test_a_digit_that_is_no_number_is_only_a_wrong_label():
    assert not Selection(runs=["²"]).takes(RUN)


@pytest.mark.parametrize(
    ("wanted", "message", "near"),
    [
        ({"sessions": ["prae"]}, "--session-label prae: not found", "pre"),
        ({"tasks": ["resting"]}, "--task-id resting: not found", "rest"),
        ({"runs": ["3"]}, "--run-id 3: not found", "01"),
        ({"sessions": ["1"]}, "--session-label 1: not found", "post, pre"),
    ],
)
def test_an_unknown_label_is_an_error_that_names_near_ones(wanted, message, near):
    runs = [RUN, {**RUN, "ses": "post", "task": "movie"}]
    with pytest.raises(NothingSelectedError) as caught:
        Selection(**wanted).check_known(runs)
    assert str(caught.value) == message
    assert near in caught.value.hint
    assert "movie" not in caught.value.hint
    assert caught.value.exit_code == 18


def test_a_label_that_any_run_has_is_known():
    runs = [RUN, {"sub": "02", "ses": "post", "task": "movie"}]
    Selection(sessions=["post"], tasks=["movie"], runs=["1"]).check_known(iter(runs))


def test_a_label_of_an_entity_that_nobody_has_says_so():
    with pytest.raises(NothingSelectedError) as caught:
        Selection(sessions=["pre"]).check_known([{"sub": "01", "task": "rest"}])
    assert "none at all" in caught.value.hint


def test_without_a_near_label_some_of_those_there_are_shown():
    hint = unknown_label("--participant-label", "zz", [f"{n:02}" for n in range(1, 30)]).hint
    assert hint == "there is: 01, 02, 03, 04, 05, 06, 07, 08, 09, 10"


def filters_of(tmp_path, document):
    path = tmp_path / "filters.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document), "utf-8")
    return read_filter_file(path)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("rest", "rest"),
        (1, 1),
        (["rest", "movie"], ["rest", "movie"]),
        # fMRIPrep reads null and "*" like this, also inside of lists
        (None, Query.NONE),
        ("*", Query.ANY),
        (["mag", None], ["mag", Query.NONE]),
        (["a", "*"], ["a", Query.ANY]),
        ("Query.NONE", Query.NONE),
        ("Query.ANY", Query.ANY),
        ("Query.REQUIRED", Query.REQUIRED),
        ("Query.OPTIONAL", Query.OPTIONAL),
        (["Query.NONE", "b"], [Query.NONE, "b"]),
        (True, True),
    ],
)
def test_values_of_filters(tmp_path, given, expected):
    found = filters_of(tmp_path, {"bold": {"part": given}})["part"]
    assert found == expected
    assert type(found) is type(expected)


def test_the_filters_of_one_query_are_read(tmp_path):
    # the example of fMRIPrep's documentation
    document = {
        "t1w": {"datatype": "anat", "session": "02", "acquisition": None, "suffix": "T1w"},
        "bold": {"datatype": "func", "session": "02", "suffix": "bold"},
    }
    assert filters_of(tmp_path, document) == document["bold"]
    path = tmp_path / "filters.json"
    t1w = read_filter_file(path, "t1w")
    assert t1w == {**document["t1w"], "acquisition": Query.NONE}
    assert read_filter_file(path, "dwi") == {}
    del document["bold"]
    assert filters_of(tmp_path, document) == {}


def test_a_selection_is_what_the_settings_ask_for(tmp_path):
    path = tmp_path / "filters.json"
    path.write_text(json.dumps({q: {"acquisition": q} for q in ("bold", "dwi", "t1w", "t2w")}))
    config = RunConfig(
        Path("in"),
        Path("out"),
        "participant",
        participant_label=("01",),
        session_label=("a",),
        task_id=("rest",),
        run_id=("1",),
    )
    plain = Selection(("01",), ("a",), ("rest",), ("1",))
    assert Selection.of(config) == plain
    assert not plain.has_filters
    selection = Selection.of(
        RunConfig(Path("in"), Path("out"), "participant", bids_filter_file=path)
    )
    assert selection == Selection(
        filters={"acquisition": "bold"},
        dwi_filters={"acquisition": "dwi"},
        t1w_filters={"acquisition": "t1w"},
    )
    assert selection.has_filters


SERIES = "sub-01/ses-a/dwi/sub-01_ses-a_acq-x_run-02_dwi.nii.gz"


@pytest.mark.parametrize(
    ("filters", "fitting"),
    [
        ({}, True),
        ({"acquisition": "x"}, True),
        ({"acquisition": "y"}, False),
        ({"acquisition": ["y", "x"]}, True),
        ({"session": "a", "run": 2}, True),
        ({"run": "2"}, True),
        ({"run": ["02", 3]}, True),
        ({"run": 3}, False),
        ({"direction": Query.NONE}, True),
        ({"direction": Query.ANY}, False),
        ({"direction": Query.OPTIONAL}, True),
        ({"direction": ["AP", Query.NONE]}, True),
        ({"direction": "AP"}, False),
        ({"acquisition": Query.NONE}, False),
        ({"acquisition": Query.REQUIRED}, True),
        ({"suffix": "dwi", "datatype": "dwi", "extension": ".nii.gz"}, True),
        ({"extension": "nii.gz"}, True),
        ({"extension": ".nii"}, False),
        ({"datatype": "anat"}, False),
    ],
)
def test_files_fit_filters_as_pybids_finds_them(tmp_path, filters, fitting):
    from bids.layout import BIDSLayout

    path = tmp_path / SERIES
    path.parent.mkdir(parents=True)
    path.touch()
    assert fits(path, filters) is fitting
    layout = BIDSLayout(tmp_path, validate=False)
    assert (layout.get(**filters, return_type="filename") == [str(path)]) is fitting


@pytest.mark.parametrize(
    ("filters", "fitting"),
    [
        ({"direction": "AP"}, True),
        ({"direction": Query.ANY}, True),
        ({"acquisition": "y"}, False),
        ({"acquisition": "x", "direction": "AP"}, True),
        ({"acquisition": Query.NONE}, False),
    ],
)
def test_what_a_name_does_not_state_may_be_let_pass(filters, fitting):
    assert fits(Path(SERIES), filters, stated_only=True) is fitting


def test_filters_go_by_the_entities_of_pybids():
    check_filters("dwi", {})
    check_filters("dwi", {"acquisition": "x", "suffix": "dwi", "desc": "preproc"})
    with pytest.raises(UsageError, match=r"filters for t1w .*'acq'") as caught:
        check_filters("t1w", {"acq": "x"})
    assert '"t1w"' in caught.value.hint


@pytest.mark.parametrize(
    ("sessions", "entities", "taken"),
    [
        ((), {"sub": "01"}, True),
        (("a",), {"ses": "a"}, True),
        (("a",), {"ses": "b"}, False),
        (("a",), {"sub": "01"}, False),
        (("1",), {"ses": "01"}, False),
    ],
)
def test_only_sessions_choose_among_scans(sessions, entities, taken):
    selection = Selection(sessions=sessions, tasks=["rest"], runs=["7"])
    assert selection.takes_session(entities) is taken


def test_sessions_of_scans_are_known_but_not_their_runs():
    scans = [{"ses": "late", "run": "2"}]
    Selection(sessions=["late"]).check_known([RUN], scans)
    with pytest.raises(NothingSelectedError, match="--run-id 2"):
        Selection(runs=["2"]).check_known([RUN], scans)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{'bold': {}}", "cannot be read as JSON"),
        ("", "cannot be read as JSON"),
        ([], "not a mapping"),
        ({"bold": "rest"}, "not a mapping"),
        ({"bold": {}, "t1w": None}, "not a mapping"),
        ({"Bold": {"task": "rest"}}, "unknown query 'Bold'"),
        ({"task": {"bold": "rest"}}, "unknown query 'task'"),
        ({"bold": {"task": {"is": "rest"}}}, "no value of a filter"),
        ({"bold": {"task": ["rest", {}]}}, "no value of a filter"),
        ({"bold": {"session": "Query.NON"}}, "unknown query 'Query.NON'"),
        # PyBIDS would be given two subjects at once
        ({"bold": {"subject": "01"}}, "subject"),
    ],
)
def test_a_bad_filter_file_is_explained(tmp_path, document, message):
    with pytest.raises(UsageError) as caught:
        filters_of(tmp_path, document)
    assert message in str(caught.value)
    assert "filters.json" in str(caught.value)
    assert caught.value.hint
    assert caught.value.exit_code == 64


def test_a_filter_file_in_another_encoding_is_explained(tmp_path):
    path = tmp_path / "filters.json"
    path.write_bytes('{"bold": {"task": "müde"}}'.encode("latin-1"))
    with pytest.raises(UsageError, match="cannot be read as JSON"):
        read_filter_file(path)


def test_an_absent_filter_file_is_missing_input(tmp_path):
    with pytest.raises(InputMissingError, match="no such filter file"):
        read_filter_file(tmp_path / "filters.json")

"""Tables of people: found, read, and turned into labels, confounds and groups."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bsym_bids.errors import BadDataError, InputMissingError, UsageError
from bsym_bids.prediction.phenotypes import read_phenotypes
from bsym_bids.prediction.records import CLASSIFICATION, REGRESSION, Target, Unit
from bsym_bids.prediction.targets import (
    categorical_column,
    check_class_sizes,
    group_labels,
    looks_numeric,
    make_target,
    make_units,
    numeric_column,
    unmatched,
)

PEOPLE = [f"{number:02d}" for number in range(1, 13)]
AGES = [str(20 + 3 * number) for number in range(12)]


def tsv(path, columns, sidecar=None, encoding="utf-8", newline="\n"):
    """Write a table, and what JSON says of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(columns), *map("\t".join, zip(*columns.values(), strict=True))]
    path.write_bytes((newline.join(lines) + newline).encode(encoding))
    if sidecar is not None:
        path.with_suffix(".json").write_text(json.dumps(sidecar))
    return path


def participants(root, sidecar=None, people=PEOPLE, prefix="sub-", **columns):
    ids = [prefix + person for person in people]
    return tsv(root / "participants.tsv", {"participant_id": ids, **columns}, sidecar)


def outputs(people=PEOPLE, sessions=()):
    return {person: list(sessions) for person in people}


def target_of(root, name="x", task_type=None, people=PEOPLE, **more):
    column = read_phenotypes(root).column(name)
    return make_target(column, make_units(column, outputs(people)), task_type, **more)


def with_values(root, values, sidecar=None, **more):
    participants(root, sidecar and {"x": sidecar}, x=list(values))
    return target_of(root, **more)


# Finding


def test_a_column_is_read_with_what_json_says(tmp_path):
    said = {"Description": "Age at scan", "Units": "years", "Levels": {"1": {"Description": "one"}}}
    path = participants(tmp_path, {"age": said}, age=AGES)
    column = read_phenotypes(tmp_path).column("age")
    assert (column.name, column.source, column.per_session) == ("age", path, False)
    assert column.values == {(p, ""): age for p, age in zip(PEOPLE, AGES, strict=True)}
    assert (column.description, column.units, column.levels) == (
        "Age at scan",
        "years",
        {"1": "one"},
    )
    target = target_of(tmp_path, "age")
    assert (target.name, target.units, target.description) == ("age", "years", "Age at scan")
    assert target.source == path


def test_no_table_at_all(tmp_path):
    with pytest.raises(InputMissingError, match=r"has no participants\.tsv") as caught:
        read_phenotypes(tmp_path)
    assert "participant_id" in caught.value.hint
    assert caught.value.exit_code == 66


def test_an_absent_column_lists_near_names_and_tables(tmp_path):
    participants(tmp_path, age=AGES, iq=AGES)
    tsv(tmp_path / "phenotype/panss.tsv", {"participant_id": PEOPLE, "total": AGES})
    phenotypes = read_phenotypes(tmp_path)
    with pytest.raises(
        UsageError, match=r"column .agee.; looked at participants.tsv, phenotype/panss.tsv"
    ) as caught:
        phenotypes.column("agee")
    assert caught.value.hint == "there is: age"
    with pytest.raises(UsageError) as caught:
        phenotypes.column("zzzz")
    assert caught.value.hint == "there is: age, iq, total"
    with pytest.raises(UsageError) as caught:
        phenotypes.column("panss:totl")
    assert "total" in caught.value.hint
    assert phenotypes.optional("sex") is None
    with pytest.raises(UsageError) as caught:
        phenotypes.column("participant_id")
    assert "there is no" not in str(caught.value)
    (tmp_path / "participants.tsv").unlink()
    with pytest.raises(UsageError, match=r"panss\.tsv; there is no participants\.tsv$"):
        read_phenotypes(tmp_path).column("age")


def test_upper_and_lower_case_do_not_matter_where_it_is_clear(tmp_path, caplog):
    participants(tmp_path, Age=AGES, IQ=AGES, iq=AGES[::-1], Iq=AGES)
    phenotypes = read_phenotypes(tmp_path)
    assert phenotypes.column("age").name == "Age"
    assert "age is taken for the column Age" in caplog.text
    assert phenotypes.column("iq").values["01", ""] == AGES[-1]
    with pytest.raises(UsageError, match="upper and lower case") as caught:
        phenotypes.column("iQ")
    assert "IQ, Iq, iq" in caught.value.hint


def test_the_table_is_said_where_several_have_the_column(tmp_path, caplog):
    tsv(tmp_path / "phenotype/a.tsv", {"participant_id": PEOPLE, "total": ["1"] * 12})
    tsv(tmp_path / "phenotype/b.tsv", {"participant_id": PEOPLE, "total": ["2"] * 12})
    phenotypes = read_phenotypes(tmp_path)
    with pytest.raises(UsageError, match=r"phenotype/a\.tsv, phenotype/b\.tsv") as caught:
        phenotypes.column("total")
    assert "b:total" in caught.value.hint
    assert phenotypes.optional("total") is None
    assert "total is not used" in caplog.text
    for name in ("b:total", "phenotype/b.tsv:total", "b:TOTAL"):
        assert phenotypes.column(name).values["01", ""] == "2"
    participants(tmp_path, total=["0"] * 12)
    phenotypes = read_phenotypes(tmp_path)
    caplog.clear()
    assert phenotypes.column("total").values["01", ""] == "0"
    assert "taken of participants.tsv" in caplog.text
    assert phenotypes.column("participants:total").values["01", ""] == "0"
    assert phenotypes.column("a:total").values["01", ""] == "1"


def test_a_colon_may_be_part_of_a_name(tmp_path):
    participants(tmp_path, **{"a:b": AGES})
    assert read_phenotypes(tmp_path).column("a:b").name == "a:b"


# Reading


@pytest.mark.parametrize("prefix", ["sub-", ""])
@pytest.mark.parametrize(("encoding", "newline"), [("utf-8-sig", "\n"), ("utf-8", "\r\n")])
def test_prefixes_marks_and_line_ends_do_not_matter(tmp_path, prefix, encoding, newline):
    columns = {"participant_id": [prefix + p for p in PEOPLE], "x": AGES, "note": ["ä"] * 12}
    tsv(tmp_path / "participants.tsv", columns, None, encoding, newline)
    target = target_of(tmp_path)
    np.testing.assert_array_equal(target.values, np.array(AGES, float))
    assert read_phenotypes(tmp_path).column("note").values["12", ""] == "ä"


def test_cells_are_what_pandas_reads(tmp_path):
    path = tmp_path / "participants.tsv"
    path.write_text(
        'participant_id\t"x y"\tz\nsub-01\t"a\tb"\t 5\'11" \n\n01\t"a\tb"\tNone\n'
        'sub-02\t"say ""c"""\t1\n'
    )
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    column = read_phenotypes(tmp_path).column("x y")
    assert column.values == {("01", ""): table["x y"][0], ("02", ""): table["x y"][2]}
    assert column.values["01", ""] == "a\tb"
    assert column.rows["02", ""].endswith("line 5")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("participant_id,age\nsub-01,3\n", "separated by commas"),
        ("participant_id;age\nsub-01;3\n", "separated by semicolons"),
        ("age participant_id\n3 sub-01\n", "separated by spaces"),
        ("subject\tage\nsub-01\t3\n", "no column participant_id; its columns are subject, age"),
        ("participant_id\tage\nsub-01\t3\nsub-02\n", "line 3: has 1 cells instead of 2"),
        ("participant_id\tage\nsub-01\t3\t4\n", "line 2: has 3 cells instead of 2"),
        ("participant_id\tage\nsub-01,3\n", "line 2: has 1 cells"),
        ("participant_id\tage\n\t3\n", "line 2: has no participant_id"),
        ("participant_id\tage\tage\nsub-01\t3\t3\n", "has the column age 2 times"),
        ('participant_id\tage\nsub-01\t"3\n', "cannot be read as a table"),
        ("", "is empty"),
        ("\n\n", "is empty"),
    ],
)
def test_broken_tables_are_explained(tmp_path, text, said):
    (tmp_path / "participants.tsv").write_text(text)
    with pytest.raises(BadDataError, match=said) as caught:
        read_phenotypes(tmp_path).column("age")
    assert caught.value.hint or "cannot be read" in said
    assert str(tmp_path / "participants.tsv") in str(caught.value)


def test_other_encodings_are_refused(tmp_path):
    path = tmp_path / "participants.tsv"
    for encoding in ("latin-1", "utf-16"):
        path.write_bytes("participant_id\tage\nsub-01\t3ä\n".encode(encoding))
        with pytest.raises(BadDataError, match="is not UTF-8"):
            read_phenotypes(tmp_path).column("age")


def test_bad_json_is_refused(tmp_path):
    participants(tmp_path, age=AGES)
    for text in ("{", "[]"):
        (tmp_path / "participants.json").write_text(text)
        with pytest.raises(BadDataError, match=r"participants\.json: .*JSON"):
            read_phenotypes(tmp_path).column("age")


def test_a_broken_table_matters_only_when_it_may_hold_the_column(tmp_path, caplog):
    participants(tmp_path, age=AGES)
    (tmp_path / "phenotype").mkdir()
    (tmp_path / "phenotype/bad.tsv").write_text("participant_id,iq\nsub-01,3\n")
    phenotypes = read_phenotypes(tmp_path)
    assert phenotypes.column("age").values["01", ""] == AGES[0]
    assert "left out" in caplog.text
    for name in ("iq", "bad:iq"):
        with pytest.raises(BadDataError, match="separated by commas"):
            phenotypes.column(name)


def test_a_table_that_was_not_downloaded(tmp_path):
    (tmp_path / "participants.tsv").symlink_to(tmp_path / ".git/annex/absent")
    with pytest.raises(InputMissingError, match="datalad get"):
        read_phenotypes(tmp_path).column("age")


def test_rows_that_are_there_twice(tmp_path):
    ids = [f"sub-{person}" for person in PEOPLE]
    double = {"participant_id": [*ids, "01", "sub-02"], "x": [*AGES, AGES[0] + ".0", "n/a"]}
    path = tsv(tmp_path / "participants.tsv", double)
    np.testing.assert_array_equal(target_of(tmp_path).values, np.array(AGES, float))
    double["x"][1], double["x"][-1] = "n/a", AGES[1]
    tsv(path, double)
    np.testing.assert_array_equal(target_of(tmp_path).values, np.array(AGES, float))
    double["x"][1], double["x"][-1] = AGES[1], "99"
    tsv(path, double)
    with pytest.raises(BadDataError, match=r"'23' \(.*line 3\) and '99' \(.*line 15\)") as caught:
        target_of(tmp_path)
    assert "session_id" in caught.value.hint


# Sessions


def test_sessions_per_participant_and_at_the_root_are_one_table(tmp_path):
    for person in ("01", "02"):
        folder = tmp_path / f"sub-{person}"
        columns = {"session_id": ["ses-A", "B"], "mood": [f"{person}.1", "n/a"]}
        tsv(folder / f"sub-{person}_sessions.tsv", columns)
    (tmp_path / "sessions.json").write_text(json.dumps({"mood": {"Units": "points"}}))
    column = read_phenotypes(tmp_path).column("mood")
    assert column.per_session
    assert column.units == "points"
    assert column.source == tmp_path / "sub-*/sub-*_sessions.tsv"
    assert column.known == {("01", "A"): "01.1", ("02", "A"): "02.1"}
    more = {"participant_id": ["01", "03"], "session_id": ["ses-B", "ses-A"], "mood": ["7", "8"]}
    tsv(tmp_path / "sessions.tsv", more)
    both = read_phenotypes(tmp_path).column("sessions:mood")
    assert both.known == {**column.known, ("01", "B"): "7", ("03", "A"): "8"}
    tsv(tmp_path / "sessions.tsv", {**more, "session_id": ["ses-A", "ses-A"]})
    with pytest.raises(BadDataError, match=r"'7' .*sessions.tsv.* and '01.1' .*sub-01_sessions"):
        read_phenotypes(tmp_path).column("mood")


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"participant_id": ["01"], "mood": ["1"]}, "no column session_id"),
        ({"session_id": ["A"], "mood": ["1"]}, "no column participant_id"),
        ({"participant_id": ["01"], "session_id": ["n/a"], "mood": ["1"]}, "has no session_id"),
    ],
)
def test_sessions_need_both_labels(tmp_path, columns, said):
    tsv(tmp_path / "sessions.tsv", columns)
    with pytest.raises(BadDataError, match=said):
        read_phenotypes(tmp_path).column("mood")


def sessions_table(root, values):
    """Write a table of two sessions each."""
    ids = [person for person in PEOPLE for _ in "AB"]
    columns = {"participant_id": ids, "session_id": ["ses-A", "ses-B"] * 12, "x": list(values)}
    tsv(root / "phenotype/x.tsv", columns)
    return read_phenotypes(root).column("x")


def test_units_are_sessions_where_table_and_outputs_have_them(tmp_path):
    participants(tmp_path, age=AGES)
    column = sessions_table(tmp_path, map(str, range(24)))
    units = make_units(column, {"sub-02": ["ses-B", "A"], "01": []})
    assert units == [Unit("01"), Unit("02", "A"), Unit("02", "B")]
    whole = read_phenotypes(tmp_path).column("age")
    assert make_units(whole, {"02": ["A", "B"], "01": [""]}) == [Unit("01"), Unit("02")]
    units = make_units(column, outputs(sessions=["A", "B", "C"]))
    target = make_target(column, units)
    expected = [float(2 * p + s) if s < 2 else np.nan for p in range(12) for s in range(3)]
    np.testing.assert_array_equal(target.values, expected)
    np.testing.assert_array_equal(numeric_column(whole, units), np.repeat(np.array(AGES, float), 3))
    states = [Unit("02", state="ses-B"), Unit("03", state="ses-A")]
    np.testing.assert_array_equal(numeric_column(column, states), [3, 4])


def test_sessions_that_outputs_do_not_tell_apart(tmp_path, caplog):
    column = sessions_table(tmp_path, map(str, range(24)))
    units = make_units(column, outputs())
    with pytest.raises(BadDataError, match=r"do not tell sessions apart: sub-01, .* and 7 more"):
        make_target(column, units)
    np.testing.assert_array_equal(numeric_column(column, units), np.arange(12) * 2 + 0.5)
    column = sessions_table(tmp_path, ["n/a", *map(str, range(23))])
    assert numeric_column(column, units)[0] == 0
    column = sessions_table(tmp_path, ["a", "a", "a", "b"] * 6)
    codes, levels = categorical_column(column, units)
    np.testing.assert_array_equal(codes, [0, np.nan] * 6)
    assert levels == ("a",)
    assert "counts as not known, of sub-02, sub-04" in caplog.text


def test_labels_are_counted_by_participant(tmp_path):
    column = sessions_table(tmp_path, [*map(str, range(16)), *["n/a"] * 8])
    units = make_units(column, outputs(sessions=["A", "B"]))
    assert make_target(column, units, min_labelled=8).labelled.sum() == 16
    with pytest.raises(BadDataError, match="8 of 12 participants"):
        make_target(column, units, min_labelled=9)


# Labels


def test_what_is_missing_has_no_label(tmp_path):
    values = ["n/a", "", "NaN", "nan", "NA", "N/A", *AGES[6:]]
    target = with_values(tmp_path, values, min_labelled=6)
    np.testing.assert_array_equal(target.labelled, [False] * 6 + [True] * 6)
    regions = ["NA", "n/a", "EU"] * 4
    named = with_values(tmp_path, regions, {"Levels": {"NA": "North America"}}, min_labelled=8)
    assert named.classes == ("NA", "EU")
    assert named.labelled.sum() == 8


@pytest.mark.parametrize(
    ("values", "sidecar", "task", "classes", "warns"),
    [
        (AGES, None, REGRESSION, (), False),
        (["1", "2", "3.5"] * 4, None, REGRESSION, (), False),
        (["1e1", "-2", ".5", "+3."] * 3, None, REGRESSION, (), False),
        (["1", "2", "3", "4", "5", "6"] * 2, None, REGRESSION, (), False),
        (["1", "2", "3", "4", "5", "10"] * 2, None, REGRESSION, (), False),
        (["2", "10", "5"] * 4, None, CLASSIFICATION, ("2", "5", "10"), True),
        (["1", "2", "3", "4", "5", "1"] * 2, None, CLASSIFICATION, tuple("12345"), True),
        (["1", "2"] * 6, None, CLASSIFICATION, ("1", "2"), False),
        (["0.5", "1.0"] * 6, None, CLASSIFICATION, ("0.5", "1"), False),
        (["9", "10"] * 6, {"Units": "years"}, REGRESSION, (), False),
        (["9", "10"] * 6, {"Units": "n/a"}, CLASSIFICATION, ("9", "10"), False),
        (list("1234567") + ["1"] * 5, {"Levels": dict.fromkeys("7654321", "")}, CLASSIFICATION,
         tuple("1234567"), False),
        (["1.0", "2.0"] * 6, {"Levels": {"1": "", "2": ""}, "Units": "x"}, CLASSIFICATION,
         ("1", "2"), False),
        (list("1234567") + ["1"] * 5, {"Levels": {"1": "least", "7": "most"}}, REGRESSION, (),
         False),
        (["m", "f"] * 6, None, CLASSIFICATION, ("f", "m"), False),
        (["m", "f"] * 6, {"Levels": {"m": "male", "f": ""}}, CLASSIFICATION, ("m", "f"), False),
        (["true", "false"] * 6, None, CLASSIFICATION, ("false", "true"), False),
        (["3T", "7T"] * 6, None, CLASSIFICATION, ("3T", "7T"), False),
        (["10-19", "20-29", "30+"] * 4, None, CLASSIFICATION, ("10-19", "20-29", "30+"), False),
    ],
)  # fmt: skip
def test_the_data_tell_what_is_predicted(tmp_path, caplog, values, sidecar, task, classes, warns):
    target = with_values(tmp_path, values, sidecar)
    assert (target.task, target.classes) == (task, classes)
    assert ("--task-type regression" in caplog.text) == warns
    if task == REGRESSION:
        np.testing.assert_array_equal(target.values, np.array(values, float))
    else:
        spelled = [target.classes[int(code)] for code in target.values]
        assert spelled == [value.removesuffix(".0") for value in values]


def test_age_is_a_measure(tmp_path):
    participants(tmp_path, age=["9", "10"] * 6)
    assert target_of(tmp_path, "age").is_regression


def test_the_task_can_be_said(tmp_path):
    assert with_values(tmp_path, ["1", "2", "3"] * 4, task_type=REGRESSION).is_regression
    sites = with_values(tmp_path, list("123456") * 2, task_type=CLASSIFICATION)
    assert sites.classes == tuple("123456")
    mixed = with_values(tmp_path, ["1", "2", "3+"] * 4, task_type=CLASSIFICATION)
    assert mixed.classes == ("1", "2", "3+")
    with pytest.raises(BadDataError, match="no integers, too many for classes") as caught:
        with_values(tmp_path, [f"{n}.5" for n in range(12)], task_type=CLASSIFICATION)
    assert "--task-type" in caught.value.hint
    with pytest.raises(BadDataError, match="no numbers: 'm'"):
        with_values(tmp_path, ["m", "f"] * 6, task_type=REGRESSION)
    with pytest.raises(UsageError, match="--task-type ranking"):
        with_values(tmp_path, AGES, task_type="ranking")


@pytest.mark.parametrize("wrong", ["27y", "27,5", "twenty", "30+", "1_0", "0x1A", "²"])
def test_what_is_nearly_a_number_is_an_error(tmp_path, wrong):
    with pytest.raises(BadDataError) as caught:
        with_values(tmp_path, [AGES[0], wrong, *AGES[2:]])
    said = f"column x: values that are no numbers: {wrong!r} ({tmp_path}/participants.tsv, line 3)"
    assert said in str(caught.value)
    assert "n/a" in caught.value.hint
    assert caught.value.exit_code == 65


@pytest.mark.parametrize("form", ["{}y", "{},5", "{} years", "<{}", "{}%"])
def test_a_whole_column_of_near_numbers_is_no_set_of_classes(tmp_path, form):
    with pytest.raises(BadDataError, match=r"no numbers: .*; and 7 more"):
        with_values(tmp_path, [form.format(age) for age in AGES])


def test_identifiers_are_no_numbers(tmp_path):
    participants(tmp_path, x=[f"F{age}" for age in AGES])
    assert not looks_numeric(read_phenotypes(tmp_path).column("x"))
    participants(tmp_path, x=["27y", *AGES[1:]])
    assert looks_numeric(read_phenotypes(tmp_path).column("x"))


@pytest.mark.parametrize("infinite", ["inf", "-Infinity", "1e999"])
def test_infinite_values_are_refused(tmp_path, infinite):
    with pytest.raises(BadDataError, match=rf"infinite: '{infinite}' .*line 4"):
        with_values(tmp_path, [*AGES[:2], infinite, *AGES[3:]])


def test_capped_ages_are_89(tmp_path, caplog):
    target = with_values(tmp_path, [*AGES[:10], "89+", "89+"])
    np.testing.assert_array_equal(target.values[-2:], 89)
    assert caplog.text.count("2 values of 89+ are read as 89") == 1


def test_codes_of_missing_values_are_warned_of(tmp_path, caplog):
    with_values(tmp_path, [*AGES[:11], "53"])
    assert not caplog.text
    with_values(tmp_path, [*AGES[:11], "-999"])
    assert "-999 is far from all other values" in caplog.text
    # Nearer to the others than they are to each other.
    for code in ("-9", "-1"):
        caplog.clear()
        with_values(tmp_path, [*AGES[:9], "88", code, code])
        assert caplog.text.count(f"{code} is below 0, as no other value is") == 1
    caplog.clear()
    with_values(tmp_path, [*AGES[:9], "-0.5", "-1", "-9"])
    assert not caplog.text


def test_labels_that_are_all_the_same(tmp_path):
    with pytest.raises(BadDataError, match="are the same number, 3"):
        with_values(tmp_path, ["3", "3.0"] * 6, task_type=REGRESSION)
    with pytest.raises(BadDataError, match="are of one class, a"):
        with_values(tmp_path, ["a"] * 12)
    # One class among those with outputs, though the table has two.
    participants(tmp_path, x=["a"] * 10 + ["b"] * 2)
    with pytest.raises(BadDataError, match="are of one class, a"):
        target_of(tmp_path, people=PEOPLE[:10])


def test_classes_are_those_of_people_with_outputs(tmp_path):
    participants(tmp_path, x=["a", "b", *["c"] * 5, *["d"] * 5])
    target = target_of(tmp_path, people=[PEOPLE[0], *PEOPLE[2:]])
    assert target.classes == ("a", "c", "d")
    np.testing.assert_array_equal(target.values, [0] + [1] * 5 + [2] * 5)


def test_too_few_labels(tmp_path):
    with pytest.raises(BadDataError, match=r"9 of 12 participants .* at least 10") as caught:
        with_values(tmp_path, [*AGES[:9], "n/a", "", "nan"])
    assert caught.value.exit_code == 65
    assert caught.value.hint
    assert with_values(tmp_path, [*AGES[:9], "n/a", "", "nan"], min_labelled=9).labelled.sum() == 9
    with pytest.raises(BadDataError, match=r"0 of 12 .*writing only: sub-1 and sub-01"):
        participants(tmp_path, people=[str(int(p)) for p in PEOPLE[:9]], x=AGES[:9])
        target_of(tmp_path)


def test_classes_that_differ_in_case_only_are_one(tmp_path, caplog):
    target = with_values(tmp_path, ["M", "f", "M", "F", "m", "f"] * 2)
    assert target.classes == ("M", "f")
    np.testing.assert_array_equal(target.values, [0, 1, 0, 1, 0, 1] * 2)
    assert "f, F are taken for one class" in caplog.text
    apart = {"Levels": {"a": "one thing", "A": "another"}}
    assert with_values(tmp_path, ["a", "A"] * 6, apart).classes == ("a", "A")
    named = {"Levels": {"m": "male", "f": "female"}}
    assert with_values(tmp_path, ["M", "F", "M", "F", "M", "f"] * 2, named).classes == ("m", "f")
    padded = {"Levels": {"01": "one", "02": "two"}}
    assert with_values(tmp_path, ["1.0", "2.0"] * 6, padded).classes == ("01", "02")
    alike = {"Levels": {"a": "same", "A": "same", "b": ""}}
    assert with_values(tmp_path, ["a", "A", "b"] * 4, alike).classes == ("A", "b")


def test_small_classes_are_refused(tmp_path):
    target = with_values(tmp_path, ["a"] * 7 + ["b"] * 3 + ["c", "n/a"])
    check_class_sizes(Target("age", REGRESSION, np.arange(3.0)), 5)
    check_class_sizes(target, 1)
    with pytest.raises(BadDataError, match=r"\(2\): c \(1\)$") as caught:
        check_class_sizes(target, 2)
    assert "--folds" not in caught.value.hint
    with pytest.raises(BadDataError, match=r"\(5\): b \(3\)") as caught:
        check_class_sizes(Target("x", CLASSIFICATION, np.repeat([0.0, 1], [7, 3]), ("a", "b")), 5)
    assert caught.value.hint.startswith("choose --folds 3, or put")
    families = ["1"] * 6 + ["2"] + ["3"] * 5
    with pytest.raises(BadDataError, match=r"groups with members .*: a \(2\), b \(1\)") as caught:
        check_class_sizes(target, 3, families)
    assert "--folds" not in caught.value.hint


def test_two_sites_are_too_few_to_be_left_out(tmp_path):
    target = with_values(tmp_path, ["a", "b"] * 6)
    with pytest.raises(BadDataError, match="groups with members") as caught:
        check_class_sizes(target, 5, ["x"] * 6 + ["y"] * 6)
    assert "at least 3 of them: choose another --group-by" in caught.value.hint
    assert "--folds" not in caught.value.hint
    with pytest.raises(BadDataError) as caught:
        check_class_sizes(target, 5, ["w", "w", "x", "x", "y", "y"] * 2)
    assert caught.value.hint.startswith("choose --folds 3, or put")


# People in one of the two alone


def test_who_is_in_table_or_outputs_alone_is_told(tmp_path, caplog):
    participants(tmp_path, x=["n/a", *AGES[1:]])
    column = read_phenotypes(tmp_path).column("x")
    found = unmatched(column, make_units(column, outputs([*PEOPLE[:11], "77"])))
    assert found.without_outputs == ("sub-12",)
    assert found.without_row == ("sub-77",)
    assert "in the table, but not in the outputs, so not used: 1 (sub-12)" in caplog.text
    assert not unmatched(column, make_units(column, outputs())).warnings
    sessions = sessions_table(tmp_path / "other", map(str, range(24)))
    units = make_units(sessions, {"01": ["A", "C"], **outputs(PEOPLE[1:])})
    found = unmatched(sessions, units)
    assert (found.without_outputs, found.without_row) == (("sub-01_ses-B",), ("sub-01_ses-C",))
    columns = {"participant_id": ["01", "01"], "session_id": ["n/a", "A"], "y": ["1", "2"]}
    tsv(tmp_path / "phenotype/y.tsv", columns)
    mixed = read_phenotypes(tmp_path).column("y")
    np.testing.assert_array_equal(numeric_column(mixed, units[:2]), [2, 1])
    assert unmatched(mixed, units[:1]).without_outputs == ()


def test_people_without_a_row_are_predicted_without_a_label(tmp_path):
    participants(tmp_path, x=AGES)
    target = target_of(tmp_path, people=["00", *PEOPLE])
    np.testing.assert_array_equal(target.values, [np.nan, *np.array(AGES, float)])


# Confounds and groups


def test_confounds(tmp_path):
    participants(tmp_path, age=["n/a", *AGES[1:]], site=["b", "n/a", "a"] * 4)
    phenotypes = read_phenotypes(tmp_path)
    units = [Unit("02"), Unit("01"), Unit("03"), Unit("99")]
    np.testing.assert_array_equal(
        numeric_column(phenotypes.column("age"), units), [23, np.nan, 26, np.nan]
    )
    codes, levels = categorical_column(phenotypes.column("site"), units)
    np.testing.assert_array_equal(codes, [np.nan, 1, 0, np.nan])
    assert levels == ("a", "b")


def test_groups(tmp_path, caplog):
    big = "12345678901234567"
    participants(tmp_path, family=[big, f"{big[:-1]}8", "3", "3.0", "n/a", ""] * 2)
    column = read_phenotypes(tmp_path).column("family")
    labels = group_labels(column, [Unit(p) for p in PEOPLE[:6]] + [Unit("06", "B")])
    assert labels[0] == big != labels[1]
    assert labels[2] == labels[3] == "3"
    assert labels[5] == labels[6]
    assert len({*labels[:3], *labels[4:6]}) == 5
    assert "is not known of sub-05, sub-06: each is a group of their own" in caplog.text


def test_all_of_a_person_is_of_one_group(tmp_path, caplog):
    column = sessions_table(tmp_path, ["x", "y"] + ["y", "n/a"] + ["y"] * 20)
    units = make_units(column, outputs(sessions=["A", "B"]))
    assert group_labels(column, units)[:4] == ["x", "x", "y", "y"]
    assert "differs between sessions: sub-01 are" in caplog.text
    rows = {"participant_id": ["01"] * 3, "session_id": list("ABC"), "site": ["x", "y", "y"]}
    tsv(tmp_path / "phenotype/site.tsv", rows)
    site = read_phenotypes(tmp_path).column("site")
    assert group_labels(site, make_units(site, {"01": list("ABC")})) == ["y"] * 3


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    order=st.permutations(range(15)),
    values=st.lists(
        st.sampled_from(["1", "2", "2.0", "3.5", "7", "n/a", "a", "A", "b", "89+", "12y"]),
        min_size=12,
        max_size=12,
    ),
    task=st.sampled_from([None, REGRESSION, CLASSIFICATION]),
)
def test_the_order_of_rows_does_not_matter(tmp_path, order, values, task):
    def outcome(rows):
        ids = [PEOPLE[row % 12] for row in rows]
        tsv(
            tmp_path / "participants.tsv",
            {"participant_id": ids, "x": [values[row % 12] for row in rows]},
        )
        try:
            target = target_of(tmp_path, task_type=task, min_labelled=3)
        except BadDataError as error:
            return str(error).partition(":")[0], error.hint
        return target.task, target.classes, target.values.tolist().__repr__()

    assert outcome(range(15)) == outcome(order)

"""Which confounds are taken of the tables."""

import numpy as np
import pytest

from bsym_bids.prediction.confound_sources import gather_confounds
from bsym_bids.prediction.inventory import Inventory
from bsym_bids.prediction.phenotypes import read_phenotypes
from bsym_bids.prediction.records import Unit
from bsym_bids.prediction.targets import make_target

N = 40
LABELS = [f"{number:02d}" for number in range(N)]
UNITS = tuple(Unit(label) for label in LABELS)
RNG = np.random.default_rng(0)
AGE = RNG.uniform(20, 80, N).round(1)
SEX = RNG.permutation(["F", "M"] * (N // 2))
NOISE = RNG.standard_normal(N)


@pytest.fixture
def found(tmp_path):
    """Return what gives the names of the confounds of a label, beside age and sex."""

    def gather(label, names=None, sex=SEX, enough=10):
        rows = zip(LABELS, AGE, sex, label, strict=True)
        lines = ["participant_id\tage\tsex\tlabel", *("\t".join(map(str, row)) for row in rows)]
        (tmp_path / "participants.tsv").write_text("\n".join(lines) + "\n")
        phenotypes = read_phenotypes(tmp_path)
        target = make_target(phenotypes.column("label"), UNITS, min_labelled=enough)
        return gather_confounds(names, target, UNITS, Inventory(tmp_path, ()), phenotypes).names

    return gather


def test_age_is_no_confound_of_age_in_months(found, caplog):
    months = 12 * AGE + 5 * NOISE
    assert found(months) == ("sex=M",)
    assert "age is left out" in caplog.text and "(correlation 1.00)" in caplog.text
    assert "--confounds" in caplog.text
    assert found(-months) == ("sex=M",)
    caplog.clear()
    assert found(months, ["age", "sex"]) == ("age", "sex=M")
    assert "age is nearly what is to be predicted" in caplog.text


def test_what_merely_goes_with_the_label_stays(found, caplog):
    assert found(AGE + 10 * NOISE) == ("age", "sex=M")
    others = np.where(SEX == "F", "M", "F")
    assert found(np.where(np.arange(N) < 3, others, SEX)) == ("age", "sex=M")
    assert "left out" not in caplog.text


@pytest.mark.parametrize("coded", [False, True])
def test_sex_is_no_confound_of_gender(found, caplog, coded):
    sex = np.where(SEX == "F", 1, 2) if coded else SEX
    assert found(np.where(SEX == "F", "woman", "man"), sex=sex) == ("age",)
    assert "sex is left out" in caplog.text and "(association 1.00)" in caplog.text


def test_a_class_that_sex_is_part_of_is_another_thing(found):
    groups = [f"{sex}{hand}" for sex, hand in zip(SEX, "lr" * (N // 2), strict=True)]
    assert found(groups) == ("age", "sex=M")


def test_few_people_agree_by_chance(found):
    assert found([*(12 * AGE[:9]), *["n/a"] * (N - 9)], enough=9) == ("age", "sex=M")

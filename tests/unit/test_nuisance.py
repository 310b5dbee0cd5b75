"""Nuisance strategies: what the package carries, and what a user may write."""

import dataclasses
import json
import re
from itertools import product
from pathlib import Path

import pytest

from bsym_bids.bold.nuisance import CompCor, load_strategy, strategy_names
from bsym_bids.config import RunConfig
from bsym_bids.errors import InputMissingError, UsageError

MOTION = [f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz"]
SUFFIXES = ["", "_derivative1", "_power2", "_derivative1_power2"]


def expanded(bases):
    return {base + suffix for base, suffix in product(bases, SUFFIXES)}


def write(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text, "utf-8")
    return path


def test_names_are_those_that_the_command_line_offers():
    assert set(strategy_names()) == {"24p-wm-csf", "36p", "acompcor", "aroma", "none"}


def test_every_strategy_carries_its_own_name_and_says_where_it_comes_from():
    for name in strategy_names():
        strategy = load_strategy(name)
        assert strategy.name == name
        assert strategy.description
        assert all(re.search(r"doi:10\.", entry) for entry in strategy.citation)
        assert strategy.citation or not strategy.needs_confounds


def test_default_is_24_motion_terms_white_matter_and_csf_without_low_pass(tmp_path):
    config = RunConfig(bids_dir=tmp_path, output_dir=tmp_path, analysis_level="participant")
    strategy = load_strategy(config.nuisance)
    assert set(strategy.columns) == expanded(MOTION) | {"white_matter", "csf"}
    assert len(strategy.columns) == 26
    assert (strategy.filter, strategy.high_pass, strategy.low_pass) == ("butterworth", 0.008, 0)


def test_36p_is_the_full_expansion_of_nine_signals():
    columns = load_strategy("36p").columns
    assert set(columns) == expanded([*MOTION, "white_matter", "csf", "global_signal"])
    assert len(columns) == 36


def test_none_reads_nothing_and_changes_nothing():
    strategy = load_strategy("none")
    assert not strategy.needs_confounds
    assert not strategy.detrend
    assert strategy.high_pass == strategy.low_pass == 0


def test_a_strategy_fits_into_a_sidecar():
    record = json.loads(json.dumps(dataclasses.asdict(load_strategy("acompcor"))))
    assert record["acompcor"] == {"masks": ["CSF", "WM"], "components": 5}


def test_a_users_file_is_read_key_by_key(tmp_path):
    path = write(
        tmp_path,
        """
        name: mine
        citation: "Somebody 2020"
        columns: [[csf, "cosine*"], '/aroma_motion_\\d+/']
        acompcor: {masks: [combined], components: all}
        filter: butterworth
        high_pass: 0.01
        low_pass: 0.1
        detrend: false
        """,
    )
    strategy = load_strategy(str(path))
    assert strategy.name == "mine"
    assert strategy.citation == ("Somebody 2020",)
    assert strategy.columns == ("csf", "cosine*", r"/aroma_motion_\d+/")
    assert strategy.acompcor == CompCor(("combined",), None)
    assert (strategy.high_pass, strategy.low_pass, strategy.detrend) == (0.01, 0.1, False)


def test_the_example_of_the_documentation_is_a_strategy(tmp_path):
    page = Path(__file__).parents[2] / "docs/nuisance.md"
    (example,) = re.findall(r"```yaml\n(.*?)```", page.read_text("utf-8"), flags=re.DOTALL)
    strategy = load_strategy(write(tmp_path, example))
    assert set(strategy.columns) >= set(MOTION)
    assert strategy.acompcor == CompCor(("combined",), 6)
    assert strategy.low_pass > strategy.high_pass > 0


def test_the_documentation_lists_every_strategy_with_its_citations():
    text = (Path(__file__).parents[2] / "docs/nuisance.md").read_text("utf-8")
    for name in strategy_names():
        assert f"`{name}`" in text
        for citation in load_strategy(name).citation:
            assert re.search(r"doi:\S+?(?=\s|$)", citation).group(0).rstrip(",") in text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("columns: []", "'name' is missing"),
        ("name: x", "'columns' is missing"),
        ("- a\n- b", "mapping"),
        ("name: [", "YAML"),
        ("name: x\ncolumns: []\nhighpass: 0.1", "unknown key 'highpass'"),
        ("name: 3\ncolumns: []", "name is 3"),
        ("name: x\ncolumns: 3", "columns is 3"),
        ("name: x\ncolumns: [1]", "columns is 1"),
        ("name: x\ncolumns: ['/(/']", "columns is '/(/'"),
        ("name: x\ncolumns: []\nhigh_pass: fast", "high_pass is 'fast'"),
        ("name: x\ncolumns: []\nhigh_pass: -1", "high_pass is -1"),
        ("name: x\ncolumns: []\nlow_pass: true", "low_pass is True"),
        ("name: x\ncolumns: []\nlow_pass: .nan", "low_pass is nan"),
        ("name: x\ncolumns: []\nhigh_pass: 0.1\nlow_pass: 0.1", "low_pass must be above"),
        ("name: x\ncolumns: []\nfilter: cosine\nlow_pass: 0.1", "low_pass does not go with"),
        ("name: x\ncolumns: []\nfilter: fir", "filter is 'fir'"),
        ("name: x\ncolumns: []\ndetrend: 1", "detrend is 1"),
        ("name: x\ncolumns: []\nacompcor: 5", "acompcor is 5"),
        ("name: x\ncolumns: []\nacompcor: {masks: [GM], components: 5}", "masks is ['GM']"),
        ("name: x\ncolumns: []\nacompcor: {masks: [WM], components: 0}", "components is 0"),
        ("name: x\ncolumns: []\nacompcor: {masks: [WM], n: 5}", "unknown key 'n'"),
    ],
)
def test_a_wrong_file_is_refused_with_its_name_and_the_key(tmp_path, text, said):
    path = write(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        load_strategy(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


def test_yaml_cannot_make_objects(tmp_path):
    made = tmp_path / "made"
    path = write(tmp_path, f"name: !!python/object/apply:os.mkdir ['{made}']\ncolumns: []")
    with pytest.raises(UsageError, match="YAML"):
        load_strategy(path)
    assert not made.exists()


def test_an_unknown_name_is_answered_with_the_near_one():
    with pytest.raises(UsageError, match=r"'acompcorr'.*'acompcor'") as caught:
        load_strategy("acompcorr")
    assert "24p-wm-csf" in caught.value.hint


def test_an_absent_file_is_missing_input(tmp_path):
    with pytest.raises(InputMissingError, match=r"absent\.yaml"):
        load_strategy(tmp_path / "absent.yaml")

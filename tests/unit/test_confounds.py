"""Reading confounds tables as fMRIPrep writes them, and as they should not be."""

import json

import numpy as np
import pandas as pd
import pytest

from bsym_bids.bold.censoring import censor
from bsym_bids.bold.confounds import read_confounds
from bsym_bids.bold.nuisance import CompCor, NuisanceStrategy, load_strategy
from bsym_bids.errors import BadDataError, InputMissingError

MOTION = [f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz"]
N = 40


def strategy_of(*columns, **options):
    return NuisanceStrategy(name="test", columns=columns, **options)


def fmriprep_table(n=N, seed=0):
    """A table with fMRIPrep's expansions, made with pandas."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({name: rng.normal(size=n).cumsum() for name in MOTION})
    for name in ("white_matter", "csf", "global_signal"):
        table[name] = 1000 + rng.normal(size=n)
    for name in list(table):
        table[f"{name}_derivative1"] = table[name].diff()
        table[f"{name}_power2"] = table[name] ** 2
        table[f"{name}_derivative1_power2"] = table[name].diff() ** 2
    table["framewise_displacement"] = np.r_[np.nan, np.abs(rng.normal(size=n - 1))]
    return table


def save(table, tmp_path, metadata=None, name="sub-01_desc-confounds_timeseries.tsv"):
    path = tmp_path / name
    table.to_csv(path, sep="\t", index=False, na_rep="n/a")
    if metadata is not None:
        path.with_suffix(".json").write_text(json.dumps(metadata), "utf-8")
    return path


@pytest.mark.parametrize("name", ["24p-wm-csf", "36p"])
@pytest.mark.parametrize("suffix", ["timeseries", "regressors"])
def test_columns_and_first_rows_are_those_of_nilearns_load_confounds(tmp_path, name, suffix):
    from nilearn.interfaces.fmriprep import load_confounds

    path = save(fmriprep_table(), tmp_path, {}, f"sub-01_task-a_desc-confounds_{suffix}.tsv")
    image = tmp_path / "sub-01_task-a_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz"
    image.touch()
    parts = ("motion", "wm_csf") if name.startswith("24") else ("motion", "wm_csf", "global_signal")
    size = "basic" if name.startswith("24") else "full"
    expected, _ = load_confounds(
        str(image), strategy=parts, motion="full", wm_csf=size, global_signal=size, demean=False
    )
    confounds = read_confounds(path, load_strategy(name), N)
    assert set(confounds.names) == set(expected.columns)
    np.testing.assert_array_equal(confounds.values, expected[list(confounds.names)])


def test_expansions_that_are_absent_are_computed_as_fmriprep_defines_them(tmp_path):
    whole = fmriprep_table()
    strategy = load_strategy("36p")
    bases = [*MOTION, "white_matter", "csf", "global_signal"]
    (tmp_path / "a").mkdir()
    expected = read_confounds(save(whole, tmp_path / "a"), strategy, N)
    computed = read_confounds(save(whole[bases], tmp_path), strategy, N)
    assert computed.names == expected.names
    np.testing.assert_allclose(computed.values, expected.values, rtol=1e-12, atol=1e-12)
    assert any("computed" in note and "rot_z_derivative1_power2" in note for note in computed.notes)
    assert not any("computed" in note for note in expected.notes)


def test_framewise_displacement_starts_at_zero_and_may_be_absent(tmp_path):
    table = fmriprep_table()
    confounds = read_confounds(save(table, tmp_path), strategy_of("csf"), N)
    assert confounds.framewise_displacement[0] == 0
    np.testing.assert_array_equal(
        confounds.framewise_displacement[1:], table["framewise_displacement"][1:]
    )
    bare = table.drop(columns="framewise_displacement")
    assert (
        read_confounds(save(bare, tmp_path), strategy_of("csf"), N).framewise_displacement is None
    )


@pytest.mark.parametrize("cell", [np.nan, "high"])
def test_framewise_displacement_with_gaps_only_fails_who_asks_for_it(tmp_path, cell):
    table = fmriprep_table().astype({"framewise_displacement": object})
    table.loc[5, "framewise_displacement"] = cell
    confounds = read_confounds(save(table, tmp_path), strategy_of("csf"), N)
    assert confounds.framewise_displacement is None
    assert [note for note in confounds.notes if "framewise_displacement has gaps" in note]
    with pytest.raises(BadDataError, match="gaps"):
        censor(confounds.framewise_displacement, 0.5, confounds.non_steady_state)


def test_non_steady_state_columns_mark_frames(tmp_path):
    table = fmriprep_table()
    for index in (0, 1):
        table[f"non_steady_state_outlier{index:02d}"] = (np.arange(N) == index).astype(float)
    table["non_steady_state_outlier_02"] = (np.arange(N) == 2).astype(float)
    confounds = read_confounds(save(table, tmp_path), strategy_of("csf"), N)
    assert np.flatnonzero(confounds.non_steady_state).tolist() == [0, 1, 2]
    assert confounds.names == ("csf",)


def test_a_first_row_without_any_value_takes_the_second(tmp_path):
    table = fmriprep_table()
    table.iloc[0] = np.nan
    confounds = read_confounds(save(table, tmp_path), load_strategy("24p-wm-csf"), N)
    np.testing.assert_array_equal(confounds.values[0], confounds.values[1])
    assert any("first row n/a" in note for note in confounds.notes)


def test_a_gap_below_the_first_row_is_named(tmp_path):
    table = fmriprep_table()
    table.loc[6, "csf"] = np.nan
    path = save(table, tmp_path)
    with pytest.raises(BadDataError, match=r"column csf, row 7 is n/a") as caught:
        read_confounds(path, strategy_of("csf"), N)
    assert str(path) in str(caught.value)
    assert read_confounds(path, strategy_of("white_matter"), N).names == ("white_matter",)


@pytest.mark.parametrize("cell", ["abc", "inf", "1,5"])
def test_a_cell_that_is_no_number_is_named(tmp_path, cell):
    table = fmriprep_table().astype(object)
    table.loc[3, "csf"] = cell
    with pytest.raises(BadDataError, match=rf"column csf, row 4: '{cell}' is not a number"):
        read_confounds(save(table, tmp_path), strategy_of("csf"), N)


def test_rows_that_do_not_match_the_volumes_are_counted(tmp_path):
    with pytest.raises(BadDataError, match=r"40 rows, but the run has 41 volumes"):
        read_confounds(save(fmriprep_table(), tmp_path), strategy_of("csf"), 41)


def test_all_missing_columns_are_named_with_near_ones(tmp_path):
    table = fmriprep_table().rename(columns={"csf": "CSF_mean", "white_matter": "white_mater"})
    with pytest.raises(BadDataError, match=r"missing: white_matter, csf") as caught:
        read_confounds(save(table, tmp_path), load_strategy("24p-wm-csf"), N)
    assert "white_mater" in caught.value.hint


def test_a_pattern_that_meets_nothing_is_missing(tmp_path):
    with pytest.raises(BadDataError, match=r"missing: aroma_motion_\*"):
        read_confounds(save(fmriprep_table(), tmp_path), load_strategy("aroma"), N)


def test_shell_patterns_and_regular_expressions_take_all_that_match(tmp_path):
    table = fmriprep_table()[["csf", "white_matter"]].copy()
    rng = np.random.default_rng(1)
    names = ["aroma_motion_01", "aroma_motion_12", "aroma_noise", "cosine00", "cosine01"]
    table[names] = rng.normal(size=(N, len(names)))
    path = save(table, tmp_path)
    assert read_confounds(path, load_strategy("aroma"), N).names == (
        "aroma_motion_01",
        "aroma_motion_12",
        "white_matter",
        "csf",
    )
    assert read_confounds(path, strategy_of(r"/cosine\d+/"), N).names == ("cosine00", "cosine01")


def test_constant_columns_are_left_out_with_a_note(tmp_path):
    table = fmriprep_table()
    table["rot_x"] = 0.0
    confounds = read_confounds(save(table, tmp_path), strategy_of("rot_x", "csf"), N)
    assert confounds.names == ("csf",)
    assert any("constant" in note and "rot_x" in note for note in confounds.notes)


def compcor_table(names):
    rng = np.random.default_rng(2)
    return pd.DataFrame(rng.normal(size=(N, len(names))), columns=names)


def test_compcor_components_follow_the_masks_of_the_metadata(tmp_path):
    masks = ["combined"] * 3 + ["CSF"] * 3 + ["WM"] * 3
    names = [f"a_comp_cor_{i:02d}" for i in range(9)]
    metadata = {name: {"Mask": mask} for name, mask in zip(names, masks, strict=True)}
    path = save(compcor_table(names), tmp_path, metadata)
    two = strategy_of(acompcor=CompCor(("CSF", "WM"), 2))
    assert read_confounds(path, two, N).names == tuple(names[3:5] + names[6:8])
    every = strategy_of(acompcor=CompCor(("combined",), None))
    assert read_confounds(path, every, N).names == tuple(names[:3])


def test_compcor_components_of_newer_tables_are_known_by_name(tmp_path):
    names = [f"{letter}_comp_cor_{i:02d}" for letter in "acw" for i in range(3)]
    confounds = read_confounds(
        save(compcor_table(names), tmp_path), strategy_of(acompcor=CompCor(("WM", "CSF"), 5)), N
    )
    assert confounds.names == tuple(names[6:] + names[3:6])
    assert any("only 3" in note for note in confounds.notes)


def test_compcor_components_without_masks_are_not_guessed(tmp_path):
    path = save(compcor_table(["a_comp_cor_00", "a_comp_cor_01"]), tmp_path)
    with pytest.raises(BadDataError, match=r"mask 'CSF'"):
        read_confounds(path, strategy_of(acompcor=CompCor(("CSF",), 1)), N)


def test_compcor_components_of_several_masks_are_not_taken_for_those_of_one(tmp_path):
    names = [f"a_comp_cor_{i:02d}" for i in range(9)]
    combined = strategy_of(acompcor=CompCor(("combined",), 2))
    with pytest.raises(BadDataError, match=r"mask 'combined'") as caught:
        read_confounds(save(compcor_table(names), tmp_path), combined, N)
    assert "JSON" in caught.value.hint
    path = save(compcor_table(names[:6]), tmp_path)  # as the oldest versions have them
    assert read_confounds(path, combined, N).names == ("a_comp_cor_00", "a_comp_cor_01")


def test_no_file_is_fine_for_a_strategy_that_reads_none_and_missing_for_others():
    confounds = read_confounds(None, load_strategy("none"), N)
    assert confounds.values.shape == (N, 0)
    assert not confounds.non_steady_state.any()
    with pytest.raises(InputMissingError, match="36p"):
        read_confounds(None, load_strategy("36p"), N)


def test_files_that_cannot_be_tables(tmp_path):
    with pytest.raises(InputMissingError, match=r"no such confounds file"):
        read_confounds(tmp_path / "absent.tsv", strategy_of("csf"), N)
    path = tmp_path / "a.tsv"
    path.write_bytes(b"")
    with pytest.raises(BadDataError, match="is empty"):
        read_confounds(path, strategy_of("csf"), N)
    path.write_text("csf\trot_x\n1\t2\n3\n", "utf-8")
    with pytest.raises(BadDataError, match="row 2 has 1 cells"):
        read_confounds(path, strategy_of("csf"), N)
    path.write_bytes(b"csf\n\xff\xfe\n")
    with pytest.raises(BadDataError, match="cannot be read"):
        read_confounds(path, strategy_of("csf"), N)

"""From a derivative dataset to batches."""

import json

import numpy as np
import pytest
import torch

from bsym_bids import atlas
from bsym_bids.bold.windows import windows_for_model
from bsym_bids.errors import BadDataError
from bsym_bids.model.structural import structural_input, volume_normalised
from bsym_bids.outputs.reading import find_connectomes, find_runs, read_connectome, read_series
from bsym_bids.simulation.dataset import simulate_dataset
from bsym_bids.training.data import (
    InputRules,
    collect_connectomes,
    collect_windows,
    groups_of,
    split_people,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "people"
    simulate_dataset(out, 3, seed=1, seconds=260)
    return out


@pytest.fixture
def people(made, tmp_path):
    import shutil

    shutil.copytree(made, tmp_path / "people")
    return tmp_path / "people"


def edit(path, change):
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_windows_are_those_of_the_participant_level(people, tmp_path):
    found = collect_windows(people, InputRules(), tmp_path / "cache")
    run = find_runs(people)[1]
    expected = windows_for_model(read_series(run)).data
    own = found.of([run.participant])
    np.testing.assert_array_equal(found.windows[own], expected)
    batch = found.batch(own[:1], torch.device("cpu"))
    np.testing.assert_array_equal(batch.windows.numpy(), expected[:1])
    assert not batch.missing.any() and not batch.censored.any()


def test_windows_are_kept_until_runs_or_rules_change(people, tmp_path):
    cache = tmp_path / "cache"
    collect_windows(people, InputRules(), cache)
    before = (cache / "windows.npy").stat().st_mtime_ns
    collect_windows(people, InputRules(), cache)
    assert (cache / "windows.npy").stat().st_mtime_ns == before
    other = collect_windows(people, InputRules(scaling="zscore"), cache)
    assert other.windows.std() == pytest.approx(1, rel=0.05)
    run = find_runs(people)[0]
    lines = run.path.read_text().splitlines()
    run.path.write_text("\n".join(lines[:-20]) + "\n")
    shorter = collect_windows(people, InputRules(scaling="zscore"), cache)
    assert not np.array_equal(shorter.windows[0], other.windows[0])


def test_missing_rois_and_censored_frames_are_known(people, tmp_path):
    run = next(run for run in find_runs(people) if run.repetition_time != 2.0)
    lines = run.path.read_text().splitlines()
    cells = [line.split("\t") for line in lines[1:]]
    for row in cells:
        row[7] = "n/a"
    cells[20] = ["n/a"] * 450
    run.path.write_text("\n".join([lines[0], *("\t".join(row) for row in cells)]) + "\n")
    edit(run.path.with_suffix(".json"), lambda sidecar: sidecar.update(CensoredVolumes=[20]))
    found = collect_windows(people, InputRules(), tmp_path / "cache")
    own = found.of([run.participant])[0]
    assert np.flatnonzero(found.missing[own]).tolist() == [7]
    assert (found.windows[own][7] == 0).all()
    assert found.censored[own].sum() in (1, 2)  # two where it was resampled


def test_a_run_that_cannot_be_used_is_left_out_by_name(people, tmp_path, caplog):
    broken = find_runs(people)[0]
    broken.path.write_text("not a table\n")
    found = collect_windows(people, InputRules(), tmp_path / "cache")
    assert broken.participant not in found.participants
    assert str(broken.path) in caplog.text


def test_no_usable_run_is_an_error(people, tmp_path):
    for run in find_runs(people):
        run.path.write_text("not a table\n")
    with pytest.raises(BadDataError, match="none of 3 runs can be used"):
        collect_windows(people, InputRules(), tmp_path / "cache")


def test_a_run_in_two_spaces_counts_once(people, tmp_path):
    run = find_runs(people)[0]
    for path in (run.path, run.path.with_suffix(".json")):
        twin = path.with_name(path.name.replace("MNI152NLin2009cAsym", "fsLR"))
        twin.write_bytes(path.read_bytes())
    found = collect_windows(people, InputRules(), tmp_path / "cache")
    once = windows_for_model(read_series(run)).data
    assert len(found.of([run.participant])) == len(once)


def test_connectomes_follow_the_rules(people):
    count = read_connectome(find_connectomes(people)[0])
    plain = collect_connectomes(people, InputRules())
    np.testing.assert_array_equal(plain.connectomes[0], structural_input(count, "log10p1"))
    rules = InputRules(volume_normalised=True, convention="log10")
    density = volume_normalised(count, atlas.roi_volumes())
    expected = structural_input(density, "log10")
    np.testing.assert_array_equal(collect_connectomes(people, rules).connectomes[0], expected)


def test_densities_stand_in_for_counts_only_where_densities_are_wanted(people):
    for scan in find_connectomes(people):
        scan.path.rename(scan.path.with_name(scan.path.name.replace("count", "invnodevol")))
    assert collect_connectomes(people, InputRules()) is None
    found = collect_connectomes(people, InputRules(volume_normalised=True))
    assert len(found.participants) == 3


def test_a_connectome_with_missing_rois_is_left_out(people, caplog):
    scan = find_connectomes(people)[0]
    lines = scan.path.read_text().splitlines()
    cells = [line.split("\t") for line in lines]
    for number, row in enumerate(cells[1:]):
        row[5] = "n/a"
        if number == 4:
            row[1:] = ["n/a"] * 450
    scan.path.write_text("\n".join("\t".join(row) for row in cells) + "\n")
    found = collect_connectomes(people, InputRules())
    assert len(found.participants) == 2 and str(scan.path) in caplog.text


def test_an_empty_dataset_has_nothing(tmp_path):
    assert collect_windows(tmp_path, InputRules(), tmp_path / "cache") is None
    assert collect_connectomes(tmp_path, InputRules()) is None


def test_people_are_held_out_whole():
    labels = [f"p{i % 20}" for i in range(100)]
    training, held_out = split_people([labels], 0.2, seed=3)
    assert len(held_out) == 4 and not set(training) & set(held_out)
    assert set(training) | set(held_out) == set(labels)
    assert split_people([labels], 0.2, seed=3) == (training, held_out)
    assert split_people([labels], 0.2, seed=4) != (training, held_out)
    assert split_people([labels], 0, seed=3)[1] == []
    assert len(split_people([labels], 0.001, seed=3)[1]) == 1


@pytest.mark.parametrize("seed", range(5))
def test_someone_to_train_on_is_left_in_every_group(seed):
    training, held_out = split_people([["a"], ["b", "c"], list("defghij")], 0.3, seed)
    assert "a" in training
    assert len({"b", "c"} & set(training)) == 1 and len(set("defghij") & set(held_out)) == 2


def test_nobody_left_to_hold_out_is_an_error():
    with pytest.raises(BadDataError, match="too few"):
        split_people([["a"], ["b"]], 0.5, seed=0)


def test_groups_are_what_there_is_of_people(people, tmp_path):
    import shutil

    shutil.rmtree(people / "sub-sim0001" / "dwi")
    shutil.rmtree(people / "sub-sim0003" / "func")
    windows = collect_windows(people, InputRules(), tmp_path / "cache")
    connectomes = collect_connectomes(people, InputRules())
    assert groups_of(windows, connectomes) == [["sim0002"], ["sim0001"], ["sim0003"]]
    assert groups_of(windows, None) == [["sim0001", "sim0002"]]


@pytest.mark.parametrize("name", ["windows_index.npz", "windows.npy"])
@pytest.mark.parametrize("damage", ["cut", "emptied", "removed"])
def test_a_damaged_cache_is_made_again(people, tmp_path, name, damage):
    cache = tmp_path / "cache"
    expected = np.array(collect_windows(people, InputRules(), cache).windows)
    path = cache / name
    content = path.read_bytes()
    if damage == "removed":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    found = collect_windows(people, InputRules(), cache)
    np.testing.assert_array_equal(found.windows, expected)


def test_a_sidecar_that_changes_makes_other_windows(people, tmp_path):
    cache = tmp_path / "cache"
    before = collect_windows(people, InputRules(), cache)
    run = find_runs(people)[0]
    edit(run.path.with_suffix(".json"), lambda sidecar: sidecar.update(RepetitionTime=1.1))
    after = collect_windows(people, InputRules(), cache)
    assert after.key != before.key
    assert len(after.of([run.participant])) != len(before.of([run.participant]))


def test_windows_know_their_run_and_that_people_are_simulated(people, tmp_path):
    found = collect_windows(people, InputRules(), tmp_path / "cache")
    assert found.simulated
    assert [len(set(found.runs[found.of([p])])) for p in set(found.participants)] == [1, 1, 1]
    assert set(found.runs) == {0, 1, 2}


def test_runs_that_lack_too_many_rois_are_left_out(people, tmp_path, caplog):
    run = find_runs(people)[0]
    lines = [line.split("\t") for line in run.path.read_text().splitlines()]
    for row in lines[1:]:
        row[:100] = ["n/a"] * 100
    run.path.write_text("\n".join("\t".join(row) for row in lines) + "\n")
    found = collect_windows(people, InputRules(), tmp_path / "cache")
    assert run.participant not in found.participants and "100 of 450 ROIs" in caplog.text

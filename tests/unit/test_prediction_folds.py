import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bsym_bids.errors import BadDataError
from bsym_bids.prediction.folds import can_train, leave_group_out, make_folds
from bsym_bids.prediction.nuisance import Confounds
from bsym_bids.prediction.records import CLASSIFICATION, REGRESSION, Folds, Target


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), n=st.integers(20, 60), largest=st.integers(1, 4))
def test_groups_stay_together_and_everyone_labelled_is_tested_once(seed, n, largest):
    rng = np.random.default_rng(seed)
    labels = rng.standard_normal(n)
    labels[rng.random(n) < 0.2] = np.nan
    labels[:12] = 1.0
    groups = [f"g{i // largest}" for i in range(n)]
    target = Target("age", REGRESSION, labels)
    n_groups = len({g for g, known in zip(groups, target.labelled, strict=True) if known})
    folds = make_folds(target, groups, n_folds=min(3, n_groups), n_repeats=2, seed=seed)
    for assignment in folds.assignment:
        np.testing.assert_array_equal(assignment >= 0, target.labelled)
        for group in set(groups):
            own = [a for a, g in zip(assignment, groups, strict=True) if g == group and a >= 0]
            assert len(set(own)) <= 1


def test_classes_are_spread_over_folds_unless_they_must_not_be_looked_at():
    classes = Target("sex", CLASSIFICATION, np.arange(100.0) % 4 // 3, ("a", "b"))
    other = Target("sex", CLASSIFICATION, np.arange(100.0) % 2, ("a", "b"))
    how = {"n_folds": 5, "n_repeats": 1, "seed": 0}
    people = [str(i) for i in range(100)]
    dealt = make_folds(classes, people, **how)
    assert [int(classes.values[dealt.assignment[0] == f].sum()) for f in range(5)] == [5] * 5
    blind = [make_folds(target, people, are_blind=True, **how) for target in (classes, other)]
    np.testing.assert_array_equal(blind[0].assignment, blind[1].assignment)
    assert np.unique(blind[0].assignment, return_counts=True)[1].tolist() == [20] * 5


def test_numbers_are_not_looked_at():
    rng = np.random.default_rng(0)
    people = [str(i) for i in range(50)]
    one, two = (
        make_folds(
            Target("age", REGRESSION, rng.random(50)), people, n_folds=5, n_repeats=2, seed=0
        )
        for _ in range(2)
    )
    np.testing.assert_array_equal(one.assignment, two.assignment)


def test_repeats_and_seeds_differ_and_are_repeatable():
    target = Target("age", REGRESSION, np.arange(40.0))
    groups = [str(i) for i in range(40)]
    one, two = (make_folds(target, groups, n_folds=4, n_repeats=2, seed=s) for s in (0, 5))
    again = make_folds(target, groups, n_folds=4, n_repeats=2, seed=0)
    np.testing.assert_array_equal(one.assignment, again.assignment)
    assert (one.assignment[0] != one.assignment[1]).any()
    assert (one.assignment != two.assignment).any()


def test_fewer_groups_than_folds_are_refused():
    target = Target("age", REGRESSION, np.arange(20.0))
    with pytest.raises(BadDataError, match="3 groups cannot be dealt out to 5 folds") as caught:
        make_folds(target, ["abc"[i % 3] for i in range(20)], n_folds=5, n_repeats=1, seed=0)
    assert caught.value.hint == "choose --folds 3, or another --group-by"
    with pytest.raises(BadDataError, match="2 groups cannot be dealt out") as caught:
        make_folds(target, ["ab"[i % 2] for i in range(20)], n_folds=5, n_repeats=1, seed=0)
    assert "at least 3" in caught.value.hint and "--folds" not in caught.value.hint


def test_leave_group_out_makes_each_group_a_fold():
    target = Target("age", REGRESSION, np.array([1.0, 2, np.nan, 4, 5]))
    folds = leave_group_out(target, ["a", "b", "c", "b", "d"])
    np.testing.assert_array_equal(folds.assignment, [[0, 1, -1, 1, 2]])
    with pytest.raises(BadDataError, match="are of 2 groups"):
        leave_group_out(target, ["a", "b", "c", "b", "a"])


def test_candidates_need_enough_to_train_on():
    labels = np.arange(12.0)
    folds = Folds(np.array([np.arange(12) % 4]), 4)
    everyone = np.ones(12, bool)
    target = Target("age", REGRESSION, labels)
    assert can_train(target, folds, everyone, 5)
    assert not can_train(target, folds, everyone, 6)  # six are left without two folds
    assert not can_train(target, folds, np.arange(12) % 4 < 2, 1)
    classes = Target("sex", CLASSIFICATION, (np.arange(12) % 4 < 2).astype(float), ("F", "M"))
    assert not can_train(classes, folds, everyone, 1)  # two folds have one class alone


def test_confounds_that_say_nothing_in_training_are_left_out():
    rng = np.random.default_rng(0)
    motion = rng.standard_normal(12)
    values = np.column_stack([motion, 2 * motion + 1, np.arange(12) >= 8, np.full(12, 3.0)])
    design = Confounds(("fd", "fd again", "late", "constant"), values).design(np.arange(12) < 8)
    assert design.shape == (12, 2)
    np.testing.assert_array_equal(design[:, 0], 1)
    assert abs(np.corrcoef(design[:, 1], motion)[0, 1]) == pytest.approx(1)


def test_missing_confounds_are_the_mean_in_training():
    values = np.array([1.0, 2, 3, 100, np.nan])[:, None]
    training = np.array([True, True, True, False, True])
    design = Confounds(("fd",), values).design(training)
    known = (design[4, 1] - design[0, 1]) / (design[1, 1] - design[0, 1])
    assert known == pytest.approx(1)  # as a unit of 2, the mean of 1, 2 and 3

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
from scipy.stats.contingency import association

from bsym_bids.prediction.cautions import (
    Circumstances,
    is_hcp_name,
    knows_hcp,
    warnings_for,
)
from bsym_bids.prediction.comparisons import Comparison
from bsym_bids.prediction.records import CLASSIFICATION, REGRESSION, Target
from bsym_bids.prediction.scores import CLASSIFICATION_METRICS, REGRESSION_METRICS, Scored
from bsym_bids.prediction.verdict import (
    BETTER,
    NO_BETTER,
    OPEN,
    UNKNOWN,
    WORSE,
    above_chance,
    find,
    holm,
    least_gain,
    outcome,
    title_of,
    verdict,
)

AGE = Target("age", REGRESSION, np.linspace(20, 80, 200), units="years")
SEX = Target("sex", CLASSIFICATION, np.arange(200) % 2.0, ("F", "M"))


def number(key, r2, p=0.001, mae=8.0, half=0.1, n_units=200):
    """Return the scores of a candidate on age."""
    values = dict.fromkeys(REGRESSION_METRICS, math.nan) | {"r2": r2, "mae": mae}
    intervals = dict.fromkeys(values, (math.nan, math.nan)) | {"r2": (r2 - half, r2 + half)}
    return Scored(key, values, intervals, p, n_units)


def group(key, auc, p=0.001, half=0.05, slope=1.0, slopes=(0.9, 1.1)):
    """Return the scores of a candidate on classes."""
    values = dict.fromkeys(CLASSIFICATION_METRICS, math.nan) | {"auc": auc}
    values["calibration_slope"] = slope
    intervals = dict.fromkeys(values, (math.nan, math.nan)) | {"auc": (auc - half, auc + half)}
    return Scored(key, values, intervals | {"calibration_slope": slopes}, p, 200)


def pair(a, b, difference, low, high, p=None, **rest):
    """Return a comparison; its p-value agrees with its interval unless it is given."""
    p = (0.3 if low <= 0 <= high else 0.004) if p is None else p
    given = {"metric": "mae", "score_a": 5.1, "score_b": 5.1 + difference} | rest
    return Comparison(a, b, difference=difference, low=low, high=high, p=p, **given)


def results_of(*scored):
    return {one.candidate: one for one in scored}


AGES = results_of(
    number("mean", -0.01, math.nan, mae=14.0),
    number("fc", 0.55),
    number("bs_functional", 0.54),
    number("fc_bs", 0.56),
)


def test_a_narrow_interval_says_nothing_was_added():
    said = verdict(
        AGE,
        AGES,
        [
            pair("bs_functional", "fc", -0.2, -0.9, 0.5, score_a=5.3, score_b=5.1),
            pair("fc_bs", "fc", 0.1, -0.4, 0.6),
        ],
    )
    assert said == (
        "BrainSymphony predicts age better than chance: R2 0.54 (interval 0.44 to 0.64, "
        "p = 0.001). "
        "BrainSymphony predicts age no better than FC here: difference -0.2 years, interval -0.9 "
        "to 0.5 (mean errors 5.3 and 5.1 years). "
        "BrainSymphony adds nothing beyond FC here: difference 0.1 years, interval -0.4 to 0.6 "
        "(FC + BrainSymphony functional against FC). "
        "3 sets of brain features were tried; BrainSymphony stands for its functional embedding, "
        "as fixed beforehand. Differences are positive if the one named first is better; "
        "intervals are at 95 %."
    )


@pytest.mark.parametrize(
    "limits, found, words",
    [
        ((0.3, 1.5), BETTER, "BrainSymphony predicts age better than FC: difference 0.9 years"),
        ((-1.5, -0.3), WORSE, "BrainSymphony predicts age worse than FC: difference -0.9 years"),
        ((-0.4, 0.6), NO_BETTER, "BrainSymphony predicts age no better than FC here"),
        ((-9.0, 0.6), NO_BETTER, "BrainSymphony predicts age no better than FC here"),
        (
            (-1.8, 2.2),
            OPEN,
            "so that BrainSymphony may be better by up to 2.2 years or worse by up to 1.8 years.",
        ),
    ],
)
def test_intervals_decide_what_is_said_of_the_network(limits, found, words):
    comparison = pair("bs_functional", "fc", sum(limits) / 2, *limits)
    assert outcome(comparison, least_gain(AGE, AGES)) == found
    for given in (comparison, comparison.reversed):
        said = verdict(AGE, AGES, [given])
        assert words in said
        assert ("No difference between BrainSymphony and FC was found" in said) == (found == OPEN)
        assert ("p = 0.004" in said) == (found in (BETTER, WORSE))


@pytest.mark.parametrize(
    "limits, words",
    [
        ((0.3, 1.5), "BrainSymphony adds to FC: difference 0.9 years, interval 0.3 to 1.5"),
        ((-1.5, -0.3), "BrainSymphony adds nothing beyond FC here and takes away: difference -0.9"),
        ((-0.4, 0.6), "BrainSymphony adds nothing beyond FC here: difference 0.1 years"),
        ((-1.8, 2.2), "BrainSymphony was not shown to add to FC: difference 0.2 years"),
        ((-1.8, 2.2), "which allows a gain of up to 2.2 years"),
    ],
)
def test_intervals_decide_what_is_said_of_an_addition(limits, words):
    assert words in verdict(AGE, AGES, [pair("fc_bs", "fc", sum(limits) / 2, *limits)])


def test_what_could_not_be_compared_is_said():
    unknown = Comparison("bs_functional", "fc", "mae", reason="no unit is predicted by both")
    assert outcome(unknown, 1.0) == UNKNOWN
    said = verdict(AGE, AGES, [unknown, Comparison("fc_bs", "fc", "mae", reason="too few")])
    assert "BrainSymphony and FC could not be compared: no unit is predicted by both." in said
    assert "Whether BrainSymphony adds to FC could not be tested: too few." in said


def test_without_the_mean_there_is_no_scale_for_nothing():
    few = {key: value for key, value in AGES.items() if key != "mean"}
    assert math.isnan(least_gain(AGE, few))
    assert "No difference" in verdict(AGE, few, [pair("bs_functional", "fc", 0.1, -0.1, 0.2)])
    assert least_gain(AGE, AGES) == pytest.approx(0.7)
    assert least_gain(SEX, {}) == pytest.approx(0.025)


def test_what_stands_for_the_network_is_fixed_not_the_best():
    many = AGES | results_of(
        number("bs_concatenated", 0.3), number("bs_gate", 0.7), number("sc", 0)
    )
    pairs = [
        pair("bs_gate", "fc", 2.0, 1.0, 3.0),
        pair("bs_concatenated", "fc", -2.0, -3.0, -1.0),
        pair("bs_concatenated", "sc", 4.0, 3.0, 5.0),
    ]
    said = verdict(AGE, many, pairs)
    assert "BrainSymphony predicts age worse than FC: difference -2.0 years" in said
    assert "better than FC" not in said
    assert "6 sets of brain features were tried" in said
    assert "functional and structural embeddings, side by side" in said
    structural = results_of(AGES["mean"], number("sc", 0.4), number("bs_structural", 0.4))
    said = verdict(AGE, structural, [pair("sc", "bs_structural", 0.9, 0.3, 1.5)])
    assert "BrainSymphony predicts age worse than SC: difference -0.9 years" in said


def test_the_untrained_twin_is_held_against_the_network():
    twin = AGES | results_of(number("random_functional", 0.55))
    pairs = [pair("bs_functional", "random_functional", 0.0, -0.4, 0.4)]
    words = "BrainSymphony predicts age no better than the same network with random weights here"
    assert words in verdict(AGE, twin, pairs)


def test_without_the_network_or_the_brain():
    assert "BrainSymphony was not tried." in verdict(AGE, results_of(number("fc", 0.4)), [])
    assert "1 set of brain features was tried." in verdict(AGE, results_of(number("fc", 0.4)), [])
    only = results_of(number("mean", 0, math.nan), number("confounds", 0.3))
    assert verdict(AGE, only, []) == "age was not predicted from the brain."
    nobody = AGES | results_of(number("bs_concatenated", math.nan, math.nan, n_units=0))
    assert "stands for its functional embedding" in verdict(AGE, nobody, [])


CHANCE = results_of(
    group("mean", 0.5, math.nan),
    group("fc", 0.53, 0.21),
    group("bs_functional", 0.5, 0.6),
    group("fc_bs", 0.49, 0.7),
)


def test_chance_is_called_chance():
    pairs = [pair("bs_functional", "fc", 0.0, -0.02, 0.02, metric="auc")]
    assert verdict(SEX, CHANCE, pairs) == (
        "No brain feature predicts sex better than chance: the best of 3 sets of brain features, "
        "FC, has AUC 0.53 (interval 0.48 to 0.58, p = 0.21). "
        "3 sets of brain features were tried; BrainSymphony stands for its functional embedding, "
        "as fixed beforehand. Differences are positive if the one named first is better; "
        "intervals are at 95 %."
    )
    said = verdict(SEX, CHANCE | results_of(group("confounds", 0.5, 0.4)), pairs)
    assert said.startswith("Neither brain features nor confounds predict sex better than chance")


def test_many_candidates_are_not_many_chances():
    lucky = CHANCE | results_of(*(group(f"other{i}", 0.56, 0.03) for i in range(5)))
    assert above_chance(lucky) == []
    fixed = lucky | results_of(group("bs_functional", 0.56, 0.03))
    assert above_chance(fixed) == ["bs_functional"]
    strong = lucky | results_of(group("other0", 0.7, 0.001))
    assert above_chance(strong) == ["other0"]
    said = verdict(SEX, strong, [])
    assert "BrainSymphony was not shown to predict sex better than chance: AUC 0.50" in said


def test_without_permutations_the_interval_tells_chance():
    candidates = results_of(group("bs_gate", 0.7, math.nan), group("fc", 0.54, math.nan))
    assert above_chance(candidates) == ["bs_gate"]
    assert above_chance(results_of(number("fc", 0.08, math.nan))) == []


def test_holm_is_the_step_down_of_bonferroni():
    # Sorted 0.01, 0.02, 0.04: times 3, 2, 1, and never smaller than the one before.
    assert holm([0.04, math.nan, 0.01, 0.02]) == pytest.approx(
        [0.04, math.nan, 0.03, 0.04], nan_ok=True
    )
    assert holm([0.6, 0.9]) == [1.0, 1.0]


CARRIED = group("confounds", 0.91)


def test_confounds_that_win_are_said_first():
    pairs = [
        pair("fc", "confounds", -0.38, -0.45, -0.31, metric="auc"),
        pair("confounds", "bs_functional", 0.41, 0.34, 0.48, metric="auc"),
    ]
    said = verdict(SEX, CHANCE | results_of(CARRIED), pairs)
    assert said.startswith("No brain feature predicts sex better than chance")
    assert (
        "Confounds alone predict sex, and scored at least as well as any brain feature: AUC 0.91 "
        "(interval 0.86 to 0.96, p = 0.001); the best brain feature, FC, against them: difference "
        "-0.38, interval -0.45 to -0.31."
    ) in said


SEXES = results_of(group("fc", 0.93), group("bs_functional", 0.9), CARRIED)


@pytest.mark.parametrize(
    "of_fc, words",
    [
        ((-0.01, -0.03, 0.01), "Confounds alone predict sex, and scored at least as well as any"),
        (
            (0.02, -0.01, 0.05),
            "No brain feature was shown to predict sex better than confounds alone, which have AUC "
            "0.91 (interval 0.86 to 0.96, p = 0.001); the best, FC, against them: difference 0.02, "
            "interval -0.01 to 0.05.",
        ),
        (
            (0.03, 0.01, 0.05),
            "Confounds alone predict sex, too: AUC 0.91 (interval 0.86 to 0.96, p = 0.001); 1 of 2 "
            "sets of brain features predict better, the best, FC: difference 0.03",
        ),
    ],
)
def test_confounds_are_held_against_all_brain_features(of_fc, words):
    pairs = [
        pair("fc", "confounds", *of_fc, metric="auc"),
        pair("bs_functional", "confounds", -0.02, -0.04, 0.01, metric="auc"),
    ]
    assert words in verdict(SEX, SEXES, pairs)


def test_confounds_without_a_comparison_or_without_the_label():
    assert "Confounds alone predict sex, too: AUC 0.91" in verdict(SEX, SEXES, [])
    alone = verdict(SEX, CHANCE | results_of(CARRIED), [])
    assert "Confounds alone predict sex: AUC 0.91" in alone
    harmless = SEXES | results_of(group("confounds", 0.52, 0.4))
    assert "Confounds alone do not predict sex better than chance." in verdict(SEX, harmless, [])


def test_no_unit_and_no_minus_before_zero():
    bare = Target("score", REGRESSION, np.arange(9.0))
    said = verdict(bare, AGES, [pair("bs_functional", "fc", -0.001, -0.4, 0.4)])
    assert "difference 0.0, interval -0.4 to 0.4 (mean errors" in said
    tiny = verdict(SEX, SEXES, [pair("bs_functional", "fc", 0.004, -0.006, 0.014, metric="auc")])
    assert "difference 0.004, interval -0.006 to 0.014 (AUC " in tiny
    large = verdict(bare, AGES, [pair("bs_functional", "fc", 120, -300, 540)])
    assert "difference 120, interval -300 to 540" in large


def test_comparisons_are_found_in_either_direction():
    one = pair("a", "b", 0.1, 0.0, 0.2, t=1.5, df=9.0)
    assert find([one], "a", "b") is one
    assert find([one], "b", "a") == one.reversed
    assert find([one], "a", "c") is None and find([], None, "b") is None
    assert title_of("fc") == "FC" and title_of("unheard") == "unheard"


PEOPLE = [f"p{i}" for i in range(200)]


def codes(target, results, comparisons=(), circumstances=None):
    found = warnings_for(target, results, comparisons, circumstances or Circumstances(PEOPLE))
    return {caution.code: caution for caution in found}


def test_a_sound_cohort_gives_no_warning():
    harmless = group("confounds", 0.52, 0.4)
    good = results_of(harmless, group("mean", 0.5, math.nan), group("fc", 0.8))
    sites = [str(i // 2 % 2) for i in range(200)]
    facts = Circumstances(PEOPLE, sites, "HCP Young Adult", model_knows_hcp=False)
    assert warnings_for(SEX, good, [], facts) == []
    assert warnings_for(AGE, AGES, [], Circumstances(PEOPLE)) == []


def test_people_are_counted_not_their_scans():
    twice = [f"p{i // 2}" for i in range(200)]
    assert "few_participants" not in codes(AGE, AGES, circumstances=Circumstances(twice))
    ages = AGE.values.copy()
    ages[::2] = ages[1] = np.nan
    some = codes(Target("age", REGRESSION, ages), AGES)["few_participants"]
    assert some.numbers == {"participants": 99}
    assert "99 labelled participants, fewer than 100" in some.text


def test_small_and_unequal_classes():
    labels = (np.arange(200) < 15).astype(float)
    found = codes(Target("sex", CLASSIFICATION, labels, ("F", "M")), SEXES)
    assert "few units of a class (M: 15)" in found["few_of_class"].text
    assert "whoever always says F is right in 92 %" in found["imbalance"].text
    assert found["imbalance"].numbers == {"F": 185.0, "M": 15.0}
    fair = codes(Target("sex", CLASSIFICATION, np.arange(200) % 4 // 3.0, ("F", "M")), SEXES)
    assert not {"few_of_class", "imbalance"} & set(fair)


def test_a_label_that_confounds_carry():
    pairs = [pair("fc", "confounds", 0.02, -0.01, 0.05, metric="auc")]
    caution = codes(SEX, SEXES, pairs)["confounds"]
    assert "confounds alone predict it, AUC 0.91" in caution.text
    assert "the best brain feature, FC, against them: difference 0.02" in caution.text
    assert caution.numbers == {"auc": 0.91, "p": 0.001, "difference": 0.02}
    weak = SEXES | results_of(group("confounds", 0.58, 0.08))
    worse = [pair("confounds", "fc", 0.01, -0.1, 0.1, metric="auc")]
    assert "do as well as the best brain feature" in codes(SEX, weak, worse)["confounds"].text
    assert "confounds" not in codes(SEX, weak, pairs)
    at_chance = CHANCE | results_of(group("confounds", 0.58, 0.08))
    assert "confounds" not in codes(SEX, at_chance, worse)


def test_classes_that_go_with_sites():
    rng = np.random.default_rng(0)
    sites = np.where(rng.random(200) < 0.3 + 0.4 * SEX.values, "a", "b")
    table = [[((sites == s) & (SEX.values == c)).sum() for c in (0, 1)] for s in "ab"]
    caution = codes(SEX, SEXES, circumstances=Circumstances(PEOPLE, list(sites)))["site"]
    assert caution.numbers["cramers_v"] == pytest.approx(association(np.array(table), "cramer"))
    p = scipy.stats.chi2_contingency(table, correction=False).pvalue
    assert caution.numbers["p"] == pytest.approx(p)
    sites[(SEX.values == 0) & (np.arange(200) < 12)] = "c"
    caution = codes(SEX, SEXES, circumstances=Circumstances(PEOPLE, list(sites)))["site"]
    assert "of some sites there is one class only (c)" in caution.text
    even = np.where(np.arange(200) // 2 % 2, "a", "b")
    even[:3] = ["d", "e", ""]  # single units, and one of unknown site
    assert "site" not in codes(SEX, SEXES, circumstances=Circumstances(PEOPLE, list(even)))
    one_site = Circumstances(PEOPLE, ["a"] * 200)
    assert "site" not in codes(SEX, SEXES, circumstances=one_site)


def test_numbers_that_go_with_sites():
    sites = np.where(np.arange(200) < 80, "young", "old")
    caution = codes(AGE, AGES, circumstances=Circumstances(PEOPLE, list(sites)))["site"]
    is_young = (sites == "young").astype(float)
    expected = abs(np.corrcoef(is_young, AGE.values)[0, 1])  # of two groups, eta is r
    assert caution.numbers["eta"] == pytest.approx(expected)
    mixed = ["ab"[i % 2] for i in range(200)]
    assert "site" not in codes(AGE, AGES, circumstances=Circumstances(PEOPLE, mixed))


def test_people_who_may_have_trained_the_model():
    def warned(labels, name="", knows=True):
        facts = Circumstances(labels, dataset_name=name, model_knows_hcp=knows)
        return "training_data" in codes(AGE, AGES, circumstances=facts)

    hcp = [str(100307 + i) for i in range(200)]
    assert warned(hcp) and not warned(hcp, knows=False)
    assert warned([f"HCA{6000030 + i}" for i in range(200)])
    assert warned(PEOPLE, "HCP-Aging") and not warned(PEOPLE, "Our study")
    assert not warned(PEOPLE[:150] + hcp[:50])
    assert not warned([str(1000307 + i) for i in range(200)])  # seven digits


def test_what_names_the_human_connectome_project():
    assert is_hcp_name("data of the Human Connectome Project") and is_hcp_name("HCP1200")
    assert not is_hcp_name("archcpu") and not is_hcp_name("")
    assert knows_hcp({"trained": True, "training": "on scans of the Human Connectome Project"})
    assert not knows_hcp({"trained": True, "training": {"participants": 360}})
    assert not knows_hcp({"trained": False, "training": "HCP"}) and not knows_hcp({})


def test_results_at_chance():
    caution = codes(SEX, CHANCE)["chance"]
    assert set(caution.numbers) == {"fc", "bs_functional", "fc_bs"}
    assert "FC, AUC 0.53 (interval 0.48 to 0.58, p = 0.21)" in caution.text
    unsure = results_of(group("fc", 0.6, 0.04, half=0.12), group("sc", 0.6, 0.04))
    # What the verdict is about counts at 0.05, the others after correction.
    assert set(codes(SEX, unsure)["chance"].numbers) == {"sc"}
    assert set(codes(SEX, unsure)["chance"].numbers).isdisjoint(above_chance(unsure))
    unresampled = results_of(group("fc", 0.6, 0.04, half=math.nan, slopes=(math.nan, math.nan)))
    assert "chance" not in codes(SEX, unresampled)
    assert "chance" not in codes(AGE, results_of(number("fc", 0.05)))
    assert set(codes(AGE, results_of(number("fc", 0.05, p=0.3)))["chance"].numbers) == {"fc"}


def test_what_was_not_tested_is_no_finding():
    none = {"p": math.nan, "half": math.nan}
    untested = results_of(
        number("mean", -0.01, **none), number("fc", 0.3, **none), number("confounds", 0.1, **none)
    )
    said = verdict(AGE, untested, [])
    assert said.startswith("Whether brain features predict age better than chance was not tested")
    assert "FC, has R2 0.30." in said and "Neither" not in said and "do not predict" not in said
    assert "chance" not in codes(AGE, untested)


def test_too_few_permutations_are_said_and_count_for_nothing():
    few = replace(number("fc", 0.47, p=1 / 11, half=0.15), least_p=1 / 11)
    said = verdict(AGE, results_of(few), [])
    assert "better than chance: R2" not in said and not said.startswith("No brain")
    assert above_chance(results_of(few)) == ["fc"]  # by its interval
    text = codes(AGE, results_of(few))["few_permutations"].text
    assert "no p-value can be below 0.091" in text and "--permutations 20 or more" in text
    two = [replace(number(key, 0.4, p=0.05), least_p=0.05) for key in ("fc", "sc")]
    caution = codes(AGE, results_of(*two))["few_permutations"]
    assert "after correction for 2 sets" in caution.text
    assert "few_permutations" not in codes(AGE, results_of(replace(two[0], least_p=0.01)))


def test_worse_than_the_mean_is_not_better_than_chance():
    # Of shuffled labels the score may be lower yet, and p small.
    below = results_of(number("fc", -0.03, p=0.01), number("confounds", -0.03, p=0.01))
    assert above_chance(below) == []
    assert "confounds" not in codes(AGE, below)
    assert verdict(AGE, below, []).startswith("Neither brain features nor confounds predict")


def test_controls_are_not_counted():
    with_control = AGES | results_of(number("random_functional", 0.6, p=0.001))
    assert above_chance(with_control) == above_chance(AGES)
    assert verdict(AGE, with_control, []) == verdict(AGE, AGES, [])


def test_relatives_and_few_ways_to_shuffle():
    facts = Circumstances(PEOPLE, relatives="family")
    assert "see --group-by family" in codes(AGE, AGES, circumstances=facts)["relatives"].text
    facts = Circumstances(PEOPLE, rearrangements=math.log10(6))
    text = codes(AGE, AGES, circumstances=facts)["few_rearrangements"].text
    assert "in 6 ways only" in text and "below 0.17" in text
    plain = codes(AGE, AGES, circumstances=Circumstances(PEOPLE, rearrangements=300.0))
    assert not {"relatives", "few_rearrangements"} & set(plain)


@pytest.mark.parametrize(
    "slope, slopes, how",
    [
        (0.5, (0.3, 0.7), "too extreme"),
        (1.8, (1.4, 2.2), "too cautious"),
        (0.5, (0.2, 1.1), None),
        (0.9, (0.85, 0.95), None),
        (math.nan, (math.nan, math.nan), None),
    ],
)
def test_probabilities_that_mean_something_else(slope, slopes, how):
    found = codes(SEX, results_of(group("fc", 0.8, slope=slope, slopes=slopes)))
    assert ("calibration" in found) == (how is not None)
    if how:
        assert f"probabilities of FC are {how}: calibration slope {slope:.2f}" in (
            found["calibration"].text
        )
    unknowing = results_of(group("fc", 0.51, 0.4, slope=slope, slopes=slopes))
    assert "calibration" not in codes(SEX, unknowing)

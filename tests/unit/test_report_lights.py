"""Traffic lights: colours of cases, limits at their boundary, and rules that fit the program."""

import math
import re

import pytest

from bsym_bids import atlas
from bsym_bids.dwi.alignment import weaknesses
from bsym_bids.model import domain
from bsym_bids.model.embed import MAX_MISSING_SHARE
from bsym_bids.reports.lights import (
    AMBER,
    DATA,
    GREEN,
    GREY,
    MODEL,
    ORIGINS,
    RED,
    WORDS,
    Light,
    lights_of,
    limits_of,
    limits_said,
    overall,
    rules,
    rules_by_key,
    worst,
)
from bsym_bids.reports.measures import BOLD, DWI, SeriesMeasures, measures, measures_of

LIMITED = [rule for rule in rules() if rule.limits]
JUDGED = [rule for rule in rules() if rule.levels]
GOOD = {
    BOLD: {
        "fd_mean": 0.1,
        "fd_max": 0.8,
        "minutes_kept": 10.0,
        "degrees_of_freedom": 250.0,
        "missing_rois": 1.0,
        "network_included_lowest": 96.0,
        "network_lowest": "Limbic",
        "fd_dvars_correlation_cleaned": 0.02,
        "tsnr_median": 110.0,
        "model": "tiny",
        "model_domain": "in domain",
        "model_domain_reason": "gain 0.46, beside 0.41",
        "reconstruction_gain": 0.46,
        "reconstruction_over_linear": -0.01,
        "contract_deviations": 0.0,
    },
    DWI: {
        "registration": "good",
        "gradient_check": "none",
        "fd_mean": 0.5,
        "snr_b0": 30.0,
        "directions": 64.0,
        "missing_rois": 0.0,
        "rois_without_streamlines": 2.0,
        "sampling_reliability": 0.951,
        "density": 0.38,
        "model": "tiny",
        "model_domain": "in domain",
        "model_domain_reason": "gain 0.43, beside 0.37",
        "edges_gain": 0.43,
        "edges_over_group": 0.12,
        "contract_deviations": 0.0,
    },
}


def case(modality, problems=(), **changes):
    """Return a series that is good but for some values."""
    values = {measure.key: measure.nothing for measure in measures_of(modality)}
    assert {*GOOD[modality], *changes} <= values.keys()
    return SeriesMeasures(
        "01", None, "sub-01_x", modality, {**values, **GOOD[modality], **changes}, tuple(problems)
    )


def light(series, key):
    (found,) = [one for one in lights_of(series) if one.rule == key]
    return found


def colours(series):
    """Return what is not green, by rule."""
    return {one.rule: one.colour for one in lights_of(series) if one.colour != GREEN}


@pytest.mark.parametrize("modality", [BOLD, DWI])
def test_good_series_are_good(modality):
    series = case(modality)
    assert colours(series) == {}
    assert len(lights_of(series)) == sum(rule.modality == modality for rule in rules())
    assert overall(lights_of(series)).colour == GREEN
    assert all(one.why == "" and one.word == "good" for one in lights_of(series))


@pytest.mark.parametrize(
    ("modality", "changes", "expected"),
    [
        (BOLD, {"fd_mean": 0.3}, {"bold_motion": AMBER}),
        (BOLD, {"fd_mean": 0.7, "minutes_kept": 4.5}, {"bold_motion": RED, "bold_minutes": AMBER}),
        (BOLD, {"minutes_kept": 2.8}, {"bold_minutes": RED}),
        (BOLD, {"fd_max": 8.0}, {"bold_peak": AMBER}),
        (BOLD, {"missing_rois": 100.0}, {"bold_coverage": RED}),
        (BOLD, {"network_included_lowest": 20.0}, {"bold_network": AMBER}),
        (BOLD, {"model_domain": "doubtful"}, {"bold_domain": AMBER}),
        (BOLD, {"model_domain": "out of domain"}, {"bold_domain": RED}),
        (BOLD, {"model_domain": "not trained"}, {"bold_domain": RED}),
        (BOLD, {"reconstruction_gain": -2.7}, {"bold_control": RED}),
        (BOLD, {"reconstruction_over_linear": -0.2}, {"bold_linear": AMBER}),
        (BOLD, {"contract_deviations": 2.0}, {"bold_contract": AMBER}),
        (BOLD, {"fd_dvars_correlation_cleaned": -0.9}, {}),
        (DWI, {"registration": "poor"}, {"dwi_registration": RED}),
        (DWI, {"gradient_check": "corrected"}, {"dwi_gradients": AMBER}),
        (DWI, {"gradient_check": "warned"}, {"dwi_gradients": RED}),
        (DWI, {"gradient_check": "off"}, {"dwi_gradients": GREY}),
        (DWI, {"gradient_check": "not checked"}, {"dwi_gradients": GREY}),
        (DWI, {"sampling_reliability": 0.85}, {"dwi_sampling": AMBER}),
        (DWI, {"sampling_reliability": 0.75}, {"dwi_sampling": RED}),
        (DWI, {"directions": 12.0, "snr_b0": 15.0}, {"dwi_directions": RED, "dwi_noise": AMBER}),
        (DWI, {"edges_gain": 0.01}, {"dwi_control": RED}),
        (DWI, {"fd_mean": math.nan}, {"dwi_motion": GREY}),
        (DWI, {"registration": "odd"}, {"dwi_registration": GREY}),
    ],
)
def test_colours_of_cases(modality, changes, expected):
    assert colours(case(modality, **changes)) == expected


@pytest.mark.parametrize("rule", LIMITED, ids=lambda rule: rule.key)
def test_a_light_changes_beyond_its_limit_not_at_it(rule):
    sign = 1 if measures()[rule.measure].worse == "higher" else -1
    for colour, limit in rule.limits:
        at = light(case(rule.modality, **{rule.measure: float(limit)}), rule.key)
        assert at.colour != colour and at.colour in (GREEN, AMBER)
        for step in (1e-9, 1e-3, 1e3):
            beyond = case(rule.modality, **{rule.measure: limit + sign * step})
            assert light(beyond, rule.key).colour in (colour, RED)


@pytest.mark.parametrize("rule", LIMITED, ids=lambda rule: rule.key)
def test_reasons_have_the_value_and_the_limit(rule):
    measure = measures()[rule.measure]
    sign = 1 if measure.worse == "higher" else -1
    for _, limit in rule.limits:
        value = limit + sign * 1.25 * 10.0 ** -min(measure.decimals, 2)
        reason = light(case(rule.modality, **{rule.measure: value}), rule.key).reason
        assert "{" not in reason and reason.endswith(".")
        assert f"{limit:g}".lstrip("-") in reason or "{limit}" not in rule.said
        said = reason.replace("\N{MINUS SIGN}", "-")
        numbers = [float(number) for number in re.findall(r"-?\d+\.?\d*", said)]
        assert any(x == pytest.approx(value, abs=1) and x != limit for x in numbers), reason


def test_a_value_is_told_from_its_limit():
    said = [
        light(case(BOLD, fd_mean=value), "bold_motion").reason.replace("\N{NO-BREAK SPACE}", " ")
        for value in (0.25, 0.2504, 0.61)
    ]
    assert said == [
        "Mean framewise displacement is 0.25 mm, not above 0.25 mm.",
        "Mean framewise displacement is 0.2504 mm, above 0.25 mm.",
        "Mean framewise displacement is 0.61 mm, above 0.5 mm.",
    ]


def test_verdicts_give_their_reason():
    found = light(case(BOLD, model_domain="doubtful"), "bold_domain")
    said = "It is doubtful whether the model knows these data"
    assert found.reason == f"{said}: gain 0.46, beside 0.41." and found.short == f"{said}."
    poor = case(DWI, registration="poor", registration_reason="masks overlap little (0.79)")
    assert light(poor, "dwi_registration").reason == (
        "The registration is poor: masks overlap little (0.79)."
    )
    lowest = case(BOLD, network_included_lowest=60.0)
    assert light(lowest, "bold_network").reason.endswith("below 80\N{NO-BREAK SPACE}%: Limbic.")


def test_what_is_not_trained_says_nothing_about_data():
    series = case(BOLD, model_domain="not trained", model_domain_reason="the weights are random")
    lights = lights_of(series)
    assert overall(lights).colour == overall(lights, MODEL).colour == RED
    assert overall(lights, DATA).colour == GREEN
    assert "the weights are random" in overall(lights, MODEL).reason


def test_without_a_model_its_lights_are_one():
    series = case(BOLD, model="n/a", model_domain="n/a")
    of_model = [one for one in lights_of(series) if one.concerns == MODEL]
    assert [(one.rule, one.colour) for one in of_model] == [("bold_domain", GREY)]
    assert of_model[0].reason == "There are no outputs of the model."
    assert overall(lights_of(series), MODEL).colour == GREY
    assert overall(lights_of(series)).colour == GREEN


def test_files_that_cannot_be_read_are_a_reason_to_look():
    lights = lights_of(case(BOLD, ["sub-01/a.tsv: has no sidecar", "b: broken"]))
    assert (lights[0].colour, lights[0].title, lights[0].concerns) == (AMBER, "Files", DATA)
    assert lights[0].reason == "Could not be read: sub-01/a.tsv: has no sidecar; b: broken."


def test_nothing_is_known():
    values = {measure.key: measure.nothing for measure in measures_of(DWI)}
    lights = lights_of(SeriesMeasures("01", None, "x", DWI, values))
    assert {one.colour for one in lights} == {GREY}
    assert all(one.reason[0].isupper() and one.reason.endswith(".") for one in lights)
    assert overall(lights).colour == GREY and "registration" in overall(lights).reason
    assert overall([]).colour == GREY
    assert lights_of(SeriesMeasures("01", None, "x", DWI, {}))  # of one without outputs


def test_lights_together_have_the_worst_colour():
    lights = [
        Light(GREEN, "A", "a."),
        Light(GREY, "SNR", "b."),
        Light(AMBER, "C", "c."),
        Light(RED, "D", "d.", MODEL),
        Light(RED, "E", "e."),
    ]
    assert overall(lights) == Light(RED, "Overall", "d. e.", "")
    assert overall(lights[:3]) == Light(AMBER, "Overall", "c.", "")
    assert overall(lights[:2]).reason == "Nothing was found. Not judged: SNR."
    assert worst([]) == GREY and worst([GREEN, GREY]) == GREY and worst([GREY, AMBER]) == AMBER
    assert len(set(WORDS.values())) == len(WORDS) == 4


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.key)
def test_rules_are_declared_in_full(rule):
    known = {measure.key: measure for measure in measures_of(rule.modality)}
    measure = known[rule.measure]
    assert rule.concerns in (DATA, MODEL) and rule.origin in ORIGINS
    assert rule.why.endswith(".") and rule.source.endswith(".") and rule.title and rule.unknown
    assert not rule.detail or known[rule.detail].is_text
    assert not rule.needs or known[rule.needs].is_text
    assert bool(rule.levels) != bool(rule.limits) and measure.is_text == bool(rule.levels)
    if rule.levels:
        assert rule.levels.keys() == rule.said.keys() == measure.levels.keys()
        assert set(rule.levels.values()) <= {GREEN, AMBER, RED, GREY}
        return
    assert "{value}" in rule.said and measure.worse in ("higher", "lower")
    if len(rule.limits) == 2:
        sign = 1 if measure.worse == "higher" else -1
        assert sign * rule.red > sign * rule.amber
    assert rule.origin != "literature" or "doi:" in rule.source or "as above" in rule.source


def test_keys_of_rules_are_of_their_modality():
    assert all(rule.key.startswith(f"{rule.modality}_") for rule in rules())
    assert rules_by_key().keys() == {rule.key for rule in rules()}
    for modality in (BOLD, DWI):
        titles = [rule.title for rule in rules() if rule.modality == modality]
        assert len(set(titles)) == len(titles)


def test_limits_are_those_of_the_program():
    by_key = rules_by_key()
    for modality in (BOLD, DWI):
        verdicts = by_key[f"{modality}_domain"].levels
        assert tuple(verdicts) == domain.VERDICTS
        assert list(verdicts.values()) == [GREEN, AMBER, RED, RED]
        assert by_key[f"{modality}_coverage"].red == MAX_MISSING_SHARE * atlas.N_ROIS
        assert by_key[f"{modality}_control"].red == domain.LEAST_GAIN
    assert by_key["bold_linear"].amber == by_key["dwi_group"].amber == -domain.LEAST_GAIN
    assert by_key["bold_network"].amber == 100 * (1 - MAX_MISSING_SHARE)
    verdict = {"poor" if weaknesses({"MaskDice": dice}) else "good": dice for dice in (0.1, 0.99)}
    assert by_key["dwi_registration"].levels == {"good": GREEN, "poor": RED}
    assert verdict.keys() == by_key["dwi_registration"].levels.keys()


def test_limits_in_words():
    by_key = rules_by_key()
    assert limits_said(by_key["dwi_sampling"]) == "below 0.9: look, below 0.8: do not use"
    assert limits_said(by_key["dwi_registration"]) == "good: good, poor: do not use"
    assert limits_of(measures()["fd_max"], BOLD) == [
        (AMBER, "above 5\N{NO-BREAK SPACE}mm", 5),
    ]
    assert [colour for colour, _, _ in limits_of(measures()["fd_mean"], DWI)] == [AMBER, RED]
    assert limits_of(measures()["density"], BOLD) == []

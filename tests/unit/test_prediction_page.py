"""The page of a prediction: complete, escaped, on its own, and readable."""

import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LinearRegression
from sklearn.metrics import confusion_matrix

from bsym_bids.prediction.candidates import CANDIDATES, first_of
from bsym_bids.prediction.cautions import Caution
from bsym_bids.prediction.comparisons import compare
from bsym_bids.prediction.evaluation import Evaluation
from bsym_bids.prediction.exchange import exchange_of
from bsym_bids.prediction.nuisance import Confounds
from bsym_bids.prediction.questions import Question
from bsym_bids.prediction.records import (
    CLASSIFICATION,
    REGRESSION,
    Folds,
    Predictions,
    Target,
    Unit,
)
from bsym_bids.prediction.results import Result
from bsym_bids.prediction.scores import (
    assess,
    averaged,
    averaged_training_mean,
    predicted_classes,
)
from bsym_bids.reports import numbers, pages
from bsym_bids.reports import prediction_figures as figures
from bsym_bids.reports.prediction_page import prediction_page

MINUS = "\N{MINUS SIGN}"
#: How much of the label a candidate knows.
KNOWN = {
    "confounds": 0.15,
    "fc": 0.55,
    "fc_tangent": 0.6,
    "sc": 0.35,
    "fc_sc": 0.6,
    "random_functional": 0.3,
    "random_structural": 0.2,
    "random_concatenated": 0.35,
    "bs_functional_mean": 0.4,
    "bs_functional": 0.54,
    "bs_structural": 0.3,
    "bs_concatenated": 0.57,
    "bs_gate": 0.5,
    "fc_bs": 0.62,
}
HEADLINES = ("bs_concatenated", "bs_functional", "bs_structural")
CLASSES = {"sex": ("F", "M"), "group": ("control", "ADHD", "bipolar", "schizophrenia")}
VOID = {"meta", "link", "br", "hr", "img", "input"}


def make_target(kind, n, rng, unlabelled=5):
    if kind == "age":
        values = np.round(rng.uniform(18, 88, n), 1)
        target = Target("age", REGRESSION, values, units="years", description="Age at the scan")
    else:
        classes = {"sex": ("F", "M"), "group": ("control", "ADHD", "bipolar", "schizophrenia")}[
            kind
        ]
        values = rng.integers(len(classes), size=n).astype(float)
        values[: 2 * len(classes)] = np.tile(range(len(classes)), 2)
        target = Target(kind, CLASSIFICATION, values, classes)
    values[n - unlabelled :] = np.nan
    return target


def predict(target, folds, key, share, rng, permutations):
    """Return predictions that know a share of the variance of the label."""
    n, repeats = len(target.values), folds.n_repeats
    labelled = target.labelled
    if target.is_regression:
        mean, spread = np.nanmean(target.values), np.nanstd(target.values)
        means = np.where(labelled, mean, np.nan) + np.zeros((repeats, 1))
        noise = rng.standard_normal(n) + 0.2 * rng.standard_normal((repeats, n))
        found = mean + share * (target.values - mean)
        found = found + spread * np.sqrt(share * (1 - share)) * noise
        null = rng.normal(-0.02, 0.03, permutations)
        statistic = share
    else:
        k = len(target.classes)
        shares = np.bincount(target.values[labelled].astype(int), minlength=k) / labelled.sum()
        means = np.where(labelled[:, None], shares, np.nan) + np.zeros((repeats, 1, 1))
        codes = np.nan_to_num(target.values).astype(int)
        logits = 4 * share * np.eye(k)[codes] + rng.standard_normal((n, k))
        logits = logits + 0.2 * rng.standard_normal((repeats, n, k))
        found = np.exp(logits * 0.8)
        found /= found.sum(axis=2, keepdims=True)
        found = np.where(labelled[:, None], found, np.nan)
        null, statistic = rng.normal(0.5, 0.03, permutations), 0.5 + share / 2
    if key == "mean":
        found = means.copy()
    if key in ("mean", "bs_gate"):
        null, statistic = np.empty(0), np.nan
    unlabelled = np.where(labelled.reshape(-1, *[1] * (means.ndim - 2)), np.nan, means[0, 0])
    return Predictions(key, found, unlabelled, null, statistic if len(null) else np.nan, means)


def make_result(kind="age", n=60, *, seed=0, lacking=(), permutations=99, repeats=2, bootstrap=30):
    """Return what could be a result, with real scores and comparisons."""
    rng = np.random.default_rng(seed)
    target = make_target(kind, n, rng)
    assignment = np.array([rng.permutation(n) % 5 for _ in range(repeats)])
    folds = Folds(np.where(target.labelled, assignment, -1), 5)
    tried = tuple(c for c in CANDIDATES if not {c.key, *c.kinds} & set(lacking))
    predictions = {
        c.key: predict(target, folds, c.key, KNOWN.get(c.key, 0.0), rng, permutations)
        for c in tried
    }
    units = tuple(Unit(f"{i:04d}") for i in range(n))
    groups = tuple(unit.participant for unit in units)
    scored = {
        key: assess(target, found, groups, bootstrap, np.random.default_rng(1))
        for key, found in predictions.items()
    }
    reference = first_of(("fc", "sc"), predictions)
    comparisons = [
        compare(target, predictions[key], predictions[base], folds)
        for base in (reference, "confounds")
        for key in predictions
        if base in predictions and key != base
    ]
    return Result(
        question=Question(target, units, groups, exchange_of(groups)),
        evaluation=Evaluation(target, folds, tried, predictions),
        scored=scored,
        comparisons=comparisons,
        headline=first_of(HEADLINES, predictions),
        reference=reference,
        verdict="BrainSymphony adds nothing beyond FC here: difference 0.1 years. 9 were tried.",
        cautions=[Caution("few_participants", f"{target.name}: few participants")],
        corrected={},
        confounds=Confounds(("mean FD", "brain volume"), np.zeros((n, 2))),
        settings={
            "Permutations": permutations,
            "Bootstrap": bootstrap,
            "Seed": seed,
            "GateRepeats": 1,
            "Model": {"Name": "bsym-sim-v1", "Version": "1", "Trained": True},
            "ModelWarning": "Trained on simulated people alone.",
            "Version": "0.1",
        },
        sources=["bids:raw:participants.tsv"],
        by_site={},
    )


def build(result, links=None):
    return prediction_page(result, title=result.question.target.name, links=links or {})


class Page(HTMLParser):
    """Elements, attributes and text of a page; fails where elements are not closed in order."""

    def __init__(self, html):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open and data.strip():
            self.texts.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def results():
    return {kind: make_result(kind) for kind in ("age", "sex", "group")}


@pytest.fixture(scope="module")
def built(results):
    links = {"table.tsv": "a b/table.tsv"}
    return {kind: build(result, links) for kind, result in results.items()}


@pytest.mark.parametrize("kind", ["age", "sex", "group"])
def test_page_stands_alone_and_is_well_formed(built, kind):
    html = built[kind]
    page = Page(html)
    assert not re.search(r"https?:|//[a-z]|@import|<script", html)
    assert html.count("url(#") == html.count("url(")
    addresses = [a[name] for _, a in page.elements for name in ("href", "src") if name in a]
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert max(Counter(ids).values()) == 1
    assert {a[1:] for a in addresses if a.startswith("#")} <= set(ids)
    assert [a for a in addresses if not a.startswith("#")] == ["data:,", "a%20b/table.tsv"]
    assert len(html.encode()) < 600_000


@pytest.mark.parametrize("kind", ["age", "sex", "group"])
def test_page_can_be_used_without_sight_and_mouse(built, kind):
    page = Page(built[kind])
    tags = [tag for tag, _ in page.elements]
    assert tags.count("main") == tags.count("nav") == tags.count("h1") == 1
    levels = [int(tag[1]) for tag in tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and (np.diff(levels) <= 1).all()
    charts = [a for a in page.all("svg") if a.get("class") == "chart"]
    assert len(charts) == (6 if kind == "age" else 7)
    assert all(a["role"] == "img" and len(a["aria-label"]) > 30 for a in charts)
    assert all(a.get("scope") in ("col", "row") for a in page.all("th"))
    assert len(page.all("table")) == len(page.all("caption")) == (3 if kind == "age" else 4)
    regions = [a for a in page.all("div") if a.get("role") == "region"]
    ids = {a.get("id") for _, a in page.elements}
    assert regions and all(a["tabindex"] == "0" for a in regions)
    named = [a["aria-labelledby"] for _, a in page.elements if "aria-labelledby" in a]
    assert set(named) <= ids


def test_scores_are_those_of_the_result(built, results):
    text = Page(built["age"]).text
    scored = results["age"].scored["bs_concatenated"]
    low, high = scored.intervals["mae"]
    assert f"{scored.scores['mae']:.0f}" in text
    row = re.search(
        r"BrainSymphony, both stands for the network ([\d.]+) ([\d.]+) to ([\d.]+) ", text
    )
    digits = len(row[1].partition(".")[2])
    assert [*row.groups()] == [f"{x:.{digits}f}" for x in (scored.scores["mae"], low, high)]
    assert f"{scored.scores['r2']:.2f}" in text and "MAE (years)" in text
    assert text.index("adds nothing beyond FC") < text.index("Few participants.")
    for term in ("Age at the scan", "5 folds, 2 times", "mean FD, brain volume", "55:", "5:"):
        assert term in text
    assert "Trained on simulated people alone." in text
    assert "Bias-corrected" in text and "out of fold" in text


def test_comparisons_say_why_there_is_no_interval(results):
    result = results["age"]
    silent = replace(
        result.comparisons[0], low=np.nan, high=np.nan, t=np.nan, df=np.nan, p=np.nan, reason="why"
    )
    text = Page(build(replace(result, comparisons=[silent]))).text
    assert "n/a: why n/a n/a n/a" in text and "Against FC" in text
    assert "Comparisons" not in Page(build(replace(result, comparisons=[]))).text


def test_confusion_matrix_is_of_averaged_predictions(built, results):
    result = results["sex"]
    target, found = result.question.target, result.evaluation.predictions["bs_concatenated"]
    codes = predicted_classes(averaged(found), averaged_training_mean(found))
    known = target.labelled
    expected = confusion_matrix(target.values[known], codes[known])
    text = Page(built["sex"]).text
    row = re.search(r"predicted M F (\d+) \(\d+ %\) (\d+) \(\d+ %\) M (\d+) \S+ %\) (\d+)", text)
    assert [int(n) for n in row.groups()] == expected.ravel().tolist()


def test_names_are_escaped_everywhere():
    evil = '<script>alert("&")</script>'
    result = make_result("sex", lacking=("random_functional", "fc_tangent", "bs_gate"))
    target = replace(
        result.question.target,
        name=evil + " $x_$",
        description=evil,
        classes=("$a_$" + evil, evil + "<!--"),
    )
    result = replace(
        result,
        question=replace(result.question, target=target),
        evaluation=replace(result.evaluation, target=target),
        verdict=f"Nothing predicts {evil}.",
        cautions=[Caution("new<b>", evil)],
        confounds=Confounds((evil,), np.zeros((60, 1))),
        settings={**result.settings, "Model": {"Name": evil}, "Differences": [evil]},
    )
    html = build(result, {evil: f"javascript:{evil}"})
    page = Page(html)
    assert "<script" not in html and "<b>" not in html and "<!--" not in html
    assert page.text.count(evil) >= 8
    links = [a["href"] for a in page.all("a") if not a["href"].startswith("#")]
    assert links == ["javascript%3A%3Cscript%3Ealert%28%22%26%22%29%3C/script%3E"]
    assert any("$a_$" + evil[:10] in text for text in page.texts)  # a dollar is no formula


def test_candidates_that_are_missing_are_named():
    result = make_result(lacking=("sc", "bs_structural", "random_structural", "fc_tangent"))
    text = Page(build(result)).text
    absent = re.search("Not tried, as .* were not asked for: (.*?)\\.", text)[1]
    assert absent.split("; ") == [
        "FC in tangent space",
        "SC",
        "FC + SC",
        "random network, structural",
        "random network, both",
        "BrainSymphony structural",
        "BrainSymphony, both",
        "BrainSymphony, both through the gate",
    ]
    assert "Predictions: BrainSymphony functional, similarity" in text


def test_little_is_left_to_say():
    result = make_result("age", permutations=0, lacking=[c.key for c in CANDIDATES if c.kinds])
    scored = {
        key: replace(
            own,
            scores=dict.fromkeys(own.scores, np.nan),
            intervals=dict.fromkeys(own.intervals, (np.nan, np.nan)),
        )
        for key, own in result.scored.items()
    }
    silent = replace(
        result,
        scored=scored,
        comparisons=[],
        cautions=[],
        confounds=Confounds((), np.empty((60, 0))),
    )
    text = Page(build(replace(silent, settings={}))).text
    assert "None was raised." in text and "Permutations none" in text
    assert "Predictions: mean or most frequent class" in text
    assert "No labels were permuted" in text and "n/a" in text and "nan" not in text.lower()


def test_a_candidate_that_predicts_nobody():
    result = make_result(lacking=[c.key for c in CANDIDATES if c.kinds and c.key != "fc"])
    own = result.evaluation.predictions["fc"]
    own = replace(own, out_of_fold=np.full_like(own.out_of_fold, np.nan))
    evaluation = replace(
        result.evaluation, predictions={**result.evaluation.predictions, "fc": own}
    )
    text = Page(build(replace(result, evaluation=evaluation))).text
    assert "Predictions: FC It predicts nobody who has a label." in text


def test_sites_have_their_table(results):
    result = results["sex"]
    text = Page(build(replace(result, by_site={"fc": result.scored["fc"]}))).text
    assert "Other sites" in text and "AUC, in usual folds" in text


def test_the_same_page_is_the_same_file(results, built):
    assert build(results["group"], {"table.tsv": "a b/table.tsv"}) == built["group"]


def luminance(colour):
    parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def contrast(a, b):
    dark, light = sorted((luminance(a), luminance(b)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("mode", [0, 1])
def test_contrast_is_enough_in_light_and_dark(mode):
    css = (pages.FOLDER / "page.css").read_text()
    block = re.findall(r":root \{(.*?)\}", css, flags=re.S)[mode]
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", block))
    for text in ("ink", "muted", "link"):
        assert contrast(colours[text], colours["paper"]) >= 4.5
        assert contrast(colours[text], colours["raised"]) >= 4.5
    assert contrast(colours["ink"], colours["warn-ground"]) >= 4.5
    for mark in ("blue", "vermillion", "green", "purple", "sky", "orange", "warn"):
        assert contrast(colours[mark], colours["paper"]) >= 3, mark


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [
        (-0.04, 1, "0.0"),
        (-0.31, 2, f"{MINUS}0.31"),
        (1204.4, 0, "1,204"),
        (np.nan, 2, "n/a"),
        (-4.1e-7, 8, f"{MINUS}4.10e{MINUS}07"),
    ],
)
def test_numbers_are_written_as_read(value, decimals, text):
    assert numbers.plain(value, decimals) == text


def test_digits_follow_what_is_known():
    assert numbers.decimals_known([0.35, np.nan]) == 1 and numbers.decimals_known([0.035]) == 2
    assert numbers.decimals_known([350.0]) == 0 and numbers.decimals_known([np.nan, 0]) is None
    assert numbers.decimals_for([0.0123, np.nan]) == 4 and numbers.decimals_for([12345.0]) == 0
    assert [numbers.p_value(p) for p in (0.0004, 0.0123, 0.5)] == [
        "<\N{NO-BREAK SPACE}0.001",
        "0.012",
        "0.50",
    ]


def test_calibration_and_line_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    probability = rng.uniform(size=400)
    positive = rng.uniform(size=400) < probability
    means, shares, sizes = figures.calibration(positive, probability)
    true, expected = calibration_curve(positive, probability, n_bins=10, strategy="quantile")
    np.testing.assert_allclose([means, shares], [expected, true])
    assert sizes.sum() == 400
    assert [len(part) for part in figures.calibration(positive, np.full(400, 0.3))] == [1, 1, 1]
    y = 2 * probability + rng.standard_normal(400)
    line = LinearRegression().fit(probability[:, None], y)
    assert figures.fit_line(probability, y) == pytest.approx((line.coef_[0], line.intercept_))


def test_wilson_interval_is_that_of_scipy():
    from scipy.stats import binomtest

    low, high = figures.wilson(np.array([0.3, 1.0]), np.array([20, 8]))
    for place, (k, n) in enumerate([(6, 20), (8, 8)]):
        expected = binomtest(k, n).proportion_ci(method="wilson")
        assert (low[place], high[place]) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_many_points_are_counted_in_hexagons():
    rng = np.random.default_rng(0)
    x = rng.standard_normal(20_000)
    drawn = figures.scatter(x, x, ("x", "y"), residual=False, name="many", label="many points")
    assert len(drawn) < 200_000


def test_templates_are_part_of_the_package():
    names = {path.name for path in Path(pages.FOLDER).iterdir()}
    assert {"page.html.j2", "prediction.html.j2", "parts.html.j2", "page.css"} <= names

"""The methods text says what sidecars say: every branch, with citations that are there."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_docs import dataset as written  # noqa: F401  a fixture
from test_prediction_page import make_result
from written_outputs import STUB, changed, write_product

from bsym_bids.atlas import N_ROIS
from bsym_bids.bold.nuisance import load_strategy, strategy_names
from bsym_bids.errors import BadDataError, InputMissingError
from bsym_bids.jobs.bold import _without_cutoffs
from bsym_bids.methods import (
    facts_of,
    methods_html,
    paragraphs,
    recall,
    rewrite_methods,
    write_methods,
)
from bsym_bids.methods import writing as writing_module
from bsym_bids.methods.facts import Block, Facts
from bsym_bids.methods.record import add, locked
from bsym_bids.methods.references import CITATION, keys_of, parse, references, years_of
from bsym_bids.methods.sentences import clean, said, spread
from bsym_bids.methods.writing import markdown_of
from bsym_bids.outputs.maps import Origin, _document, write_group_mean
from bsym_bids.outputs.names import RunNames, ScanNames, dataset_path, sidecar_of
from bsym_bids.outputs.predictions import write_predictions
from bsym_bids.prediction.inventory import Inventory
from tests.page_checks import Page, check_page

SOFTWARE = {"bsym-bids": "0.1.0", "python": "3.11", "numpy": "2.4.6", "scipy": "1.17"}
SOFTWARE |= {"nibabel": "5.4", "torch": "2.13"}
SOFTWARE_OF_SCANS = {**SOFTWARE, "dipy": "1.12.0", "SimpleITK": "2.5.7", "nitransforms": "25.1"}
BUTTERWORTH = "Butterworth, order 5, forth and back (zero phase), on series and confounds alike"


def strategy(name):
    return json.loads(json.dumps(_without_cutoffs(load_strategy(name))))


SERIES = {
    "Sources": ["bids::x.tsv", "bids:fmriprep:sub-01/func/confounds.tsv"],
    "SoftwareVersions": SOFTWARE,
    "RepetitionTime": 2.0,
    "Filter": BUTTERWORTH,
    "CensoredVolumes": [],
    "Notes": [],
    "TimeSeriesSettings": {
        "ParcelMethod": "mean",
        "MinCoverage": 0.5,
        "NuisanceStrategy": strategy("24p-wm-csf"),
        "HighPass": 0.008,
        "LowPass": 0.0,
        "FDThreshold": 0.0,
    },
}
MODEL = {
    "Model": {"Name": "bsym-sim-v1", "Version": "1", "Trained": True, "Fingerprint": "ab" * 32},
    "Warning": "bsym-sim-v1 was trained on simulated people alone.",
    "ModelContractDeviations": [],
    "ModelDomain": {"Verdict": "in domain", "Reason": "x"},
}
EMBEDDING = {
    **SERIES,
    **MODEL,
    "EmbeddingSettings": {
        "ModelRepetitionTime": 0.8,
        "WindowStep": 100,
        "Scaling": "robust",
        "Seed": 0,
    },
    "SourceRepetitionTime": 2.0,
    "WindowRepetitionTime": 0.8,
    "ResamplingRule": "runs within 12% of ModelRepetitionTime pass as they are",
    "WindowLength": 200,
    "WindowRule": "left out with more than 50% of its frames censored",
}
RECONSTRUCTION = {
    **EMBEDDING,
    "Folds": 7,
    "EvaluatedWindows": [0, 2, 4],
    "Control": "series presented under permuted ROI labels",
    "LinearBaseline": "conditional mean; ridge 0.05",
}
SCAN = {
    "Sources": [
        "bids::x_dseg.nii.gz",
        "bids:raw:sub-01/dwi/sub-01_dwi.nii.gz",
        "bids:fmriprep:sub-01/anat/sub-01_desc-preproc_T1w.nii.gz",
    ],
    "SoftwareVersions": {**SOFTWARE_OF_SCANS, "mrtrix3": "3.0.4"},
    "ConnectomeSettings": {
        "Engine": "mrtrix3",
        "EngineVersion": "3.0.4",
        "Preset": {
            "name": "full",
            "batch_size": 20000,
            "min_length": 20.0,
            "max_length": 250.0,
            "voxel_size": None,
            "fa_stop": 0.12,
            "fa_seed": 0.2,
            "mrtrix3": {"step": 0.5, "angle": 45.0, "cutoff": 0.05},
            "dipy": {"step": 0.5, "angle": 35.0, "cutoff": 0.3},
        },
        "SamplingRule": {"reliability": 0.99, "max_streamlines": 10**7, "streamlines": None},
        "Seed": 0,
    },
    "Preprocessing": {
        "NumberOfVolumesByB": {"0": 6, "995": 32, "2980": 64},
        "Denoising": {"Tool": "dwidenoise", "Version": "3.0.4", "PatchRadius": 2},
        "GibbsRemoval": {"Tool": "mrdegibbs", "Version": "3.0.4"},
        "MotionCorrection": {
            "Tool": "dwifslpreproc",
            "Version": "6.0.7",
            "Command": ["dwifslpreproc", "-eddy_options", " --repol --slm=linear"],
            "SusceptibilityCorrected": True,
        },
        "BiasCorrection": {"Tool": "SimpleITK N4", "Version": "2.5.7"},
        "BrainMask": {"Source": "computed", "VolumeMl": 1400.0},
        "GradientCheck": {"Action": "none"},
    },
    "Anatomy": {
        "T1w": "sub-01_desc-preproc_T1w.nii.gz",
        "BrainMask": "sub-01_desc-brain_mask.nii.gz",
        "TemplateTransform": "sub-01_from-MNI152NLin2009cAsym_to-T1w_mode-image_xfm.h5",
        "TissueSource": "sub-01_desc-aparcaseg_dseg.nii.gz",
        "RegistrationQuality": {"Verdict": "good"},
    },
    "FibreOrientations": {
        "ResponseAlgorithm": "dhollander",
        "DeconvolutionAlgorithm": "msmt_csd",
        "Tissues": ["wm", "gm", "csf"],
        "ModelledShells": [995, 2980],
        "SphericalHarmonicsOrder": 8,
        "AnatomicallyConstrained": True,
    },
    "Tracking": {"SamplingRule": {"StoppedBy": "reliability"}},
    "Streamlines": 300000,
    "SamplingReliability": 0.99123,
    "AssignmentRadius": 4.0,
}
STRUCTURE = {
    **SCAN,
    **MODEL,
    "StructuralSettings": {"Measure": "count", "Transform": "log10p1", "Seed": 0},
    "DepthFactor": 2.5,
}
#: What differs where DIPY tracked a raw series without a T1-weighted image.
WITH_DIPY = {
    "ConnectomeSettings.Engine": "dipy",
    "ConnectomeSettings.EngineVersion": "1.12.0",
    "ConnectomeSettings.Preset.voxel_size": 2.5,
    "ConnectomeSettings.SamplingRule": {"streamlines": 50000},
    "Preprocessing.Denoising": {"Tool": "dipy.denoise.localpca.mppca", "Version": "1.12.0"},
    "Preprocessing.GibbsRemoval": {"Tool": "dipy.denoise.gibbs.gibbs_removal", "Version": "1.12.0"},
    "Preprocessing.MotionCorrection": {"Tool": "SimpleITK", "Version": "2.5.7"},
    "Preprocessing.GradientCheck": {"Action": "corrected"},
    "Anatomy": {
        "T1w": None,
        "TemplateTransform": "registered here, from the b0",
        "TissueSource": None,
        "RegistrationQuality": {"Verdict": "poor"},
    },
    "FibreOrientations": {
        "ResponseAlgorithm": "300 voxels of highest FA",
        "DeconvolutionAlgorithm": "csd",
        "Tissues": ["wm"],
        "ModelledShells": [1000],
        "SphericalHarmonicsOrder": 6,
        "AnatomicallyConstrained": False,
    },
}
#: What differs where QSIPrep has preprocessed the series.
WITH_QSIPREP = {
    "Sources": [
        "bids:qsiprep:sub-01/dwi/sub-01_space-ACPC_desc-preproc_dwi.nii.gz",
        "bids:qsiprep:sub-01/anat/sub-01_desc-preproc_T1w.nii.gz",
    ],
    "Preprocessing": {
        "NumberOfVolumesByB": {"0": 1, "1000": 30},
        "BrainMask": {"Source": "sub-01_desc-brain_mask.nii.gz"},
        "GradientCheck": {"Action": "none"},
    },
    "Anatomy.TissueSource": "a_probseg.nii.gz, b_probseg.nii.gz",
    "FibreOrientations.ResponseAlgorithm": "tournier",
    "FibreOrientations.DeconvolutionAlgorithm": "csd",
    "FibreOrientations.Tissues": ["wm"],
}
RAW_T1W = {
    "Sources": [
        "bids:raw:sub-01/dwi/sub-01_dwi.nii.gz",
        "bids:raw:sub-01/anat/sub-01_T1w.nii.gz",
    ],
    "Anatomy.T1w": "sub-01_T1w.nii.gz",
    "Anatomy.BrainMask": "extracted here",
    "Anatomy.BiasCorrection": "N4",
    "Anatomy.TemplateTransform": "registered here",
    "Anatomy.TissueSource": "segmented here",
    "FibreOrientations.ResponseAlgorithm": "fa",
}
SETTINGS = {
    "Column": "age",
    "Units": 60,
    "Labelled": 55,
    "Groups": 60,
    "GroupBy": "participant",
    "Exchange": "persons of the same shape exchanged",
    "Folds": 5,
    "Repeats": 10,
    "GateRepeats": 1,
    "Permutations": 1000,
    "Bootstrap": 1000,
    "Confounds": ["fd_mean", "n_frames", "sex=M"],
    "Harmonize": "combat",
    "Seed": 0,
    "Model": {},
    "ModelWarning": "",
}


class Outputs:
    """A dataset of sidecars, as the participant level leaves it."""

    def __init__(self, folder, qsiprep_version="0.21.4"):
        self.folder = folder / "out"
        self.folder.mkdir(parents=True)
        links = {}
        for name, program, version in (
            ("fmriprep", "fMRIPrep", "23.2.1"),
            ("qsiprep", "QSIPrep", qsiprep_version),
        ):
            root = folder / name
            root.mkdir()
            made = {"GeneratedBy": [{"Name": program, "Version": version}]}
            (root / "dataset_description.json").write_text(json.dumps(made))
            links[name] = root.as_uri()
        description = {"DatasetLinks": {**links, "raw": (folder / "gone").as_uri()}}
        (self.folder / "dataset_description.json").write_text(json.dumps(description))

    def run(
        self, sub="01", settings=None, *, ses=None, model=True, space="MNI152NLin6Asym", **form
    ):
        """Write what there is of a BOLD run, with other settings under dotted keys."""
        settings = settings or {}
        entities = {"sub": sub, "ses": ses, "task": "rest"}
        method = changed(SERIES, settings)["TimeSeriesSettings"]["ParcelMethod"]
        names = RunNames(
            self.folder,
            {key: value for key, value in entities.items() if value},
            space,
            form.get("resolution"),
            form.get("density"),
            method if method in ("mean", "pca") else "mean",
        )
        write_product(names.path("denoised"), STUB, changed(SERIES, settings))
        sources = ["bids:fmriprep:sub-01/func/bold.nii.gz", "bids:fmriprep:sub-01/func/mask.nii.gz"]
        raw = {**changed(SERIES, settings), "Sources": sources[: 1 if space == "fsLR" else 2]}
        write_product(names.path("timeseries"), STUB, raw)
        write_product(names.path("connectivity"), STUB, changed(SERIES, settings))
        if model:
            for key in ("embedding", "similarity", "attention"):
                write_product(names.path(key), STUB, changed(EMBEDDING, settings))
            write_product(names.path("reconstruction"), STUB, changed(RECONSTRUCTION, settings))
        return names

    def scan(self, sub="01", settings=None, *, ses=None, model=True, sift2=False):
        """Write what there is of a diffusion scan."""
        entities = {"sub": sub, "ses": ses}
        names = ScanNames(self.folder, {key: value for key, value in entities.items() if value})
        write_product(names.path("count"), STUB, changed(SCAN, settings or {}))
        if sift2:
            write_product(names.path("sift2"), STUB, changed(SCAN, settings or {}))
        if model:
            for key in ("structural_embedding", "structural_attention", "edge_quality"):
                write_product(names.path(key), STUB, changed(STRUCTURE, settings or {}))
        return names

    def group(self, key, label="", settings=None, **more):
        """Write a table of the cohort, with the sidecar that it has."""
        document = _document(
            key, self.folder, Origin({"Participants": 9, "Permutations": 99, "Seed": 0, **more})
        )
        path = dataset_path(self.folder, key, label)
        return write_product(path, STUB, document | (settings or {}))

    def predict(self, kind="age", settings=None, **changes):
        """Write what was predicted of a target, as the group level does."""
        result = make_result(kind, permutations=9, bootstrap=9)
        result = replace(result, settings={**SETTINGS, **(settings or {})}, **changes)
        return write_predictions(result, Inventory(self.folder, ()), {}, kind)

    def text(self, labels=None, counted=True):
        """Return the whole text, as one."""
        facts = facts_of(self.folder, labels)
        found = paragraphs(facts if counted else facts.without_counts())
        check(found)
        return " ".join(paragraph.text for paragraph in found)


def check(found):
    """Assert what holds for every text."""
    assert found[0].title == "Overview"
    for paragraph in found:
        text = paragraph.text
        assert keys_of(text) is not None and set(keys_of(text)) <= references().keys()
        plain = re.sub(f" ?{CITATION.pattern}", "", text)
        assert not re.search(r"[{}]|\bNone\b|\bnan\b|\[@|\(\)|  | ,| \.(?!\d)|,,|\.\.(?!\.)", plain)
        assert text.endswith((".", "!", "?")) and text == text.strip()
        sentences = re.split(r"(?<=[.!?]) (?=[A-Z])", plain)
        assert all(one[0].isupper() or one.startswith("bsym-") for one in sentences), sentences
        assert "<" not in plain or "Ada" in plain
    assert markdown_of(found).startswith("# Methods\n\n## Overview\n")


@pytest.fixture
def out(tmp_path):
    return Outputs(tmp_path)


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """A dataset in which everything is done, in every way."""
    out = Outputs(tmp_path_factory.mktemp("everything"))
    for index, name in enumerate(strategy_names()):
        out.run(f"{index:02d}", {"TimeSeriesSettings.NuisanceStrategy": strategy(name)})
    out.run("10", {"TimeSeriesSettings.FDThreshold": 0.5, "CensoredVolumes": [3]})
    out.run("11", space="fsLR", density="91k")
    fused = out.run("12", space="MNI152NLin2009cAsym", resolution="2")
    write_product(fused.path("fused_embedding"), STUB, EMBEDDING)
    cohort = replace(fused, cohort_scaled=True).path("embedding")
    write_product(cohort, STUB, changed(EMBEDDING, {"EmbeddingSettings.Scaling": "cohort"}))
    write_product(
        dataset_path(out.folder, "cohort_scaling"),
        STUB,
        {"ScalingStatistics": "a", "Participants": ["11", "12"]},
    )
    out.scan("10", sift2=True)
    out.scan("11", WITH_DIPY)
    out.scan("12", WITH_QSIPREP)
    out.scan("13", RAW_T1W)
    out.predict("age")
    out.predict("sex")
    for key in ("identification", "reliability", "recovery"):
        out.group(key)
    out.group("contrast", "x", Contrast="ses-a-ses-b", Difference="ses-a minus ses-b")
    write_group_mean("fc", np.eye(N_ROIS), out.folder, Origin({"Participants": 9}))
    return out


# --- references ----------------------------------------------------------------------------------


def test_every_reference_is_cited_somewhere(everything):
    text = everything.text()
    cited = set(keys_of(text))
    # Of numbers that were corrected, which the made-up result has none of.
    settings = {"BiasCorrection": {"Slope": 0.5, "Intercept": 1.0}}
    path = dataset_path(everything.folder, "predictions", "other")
    document = json.loads(sidecar_of(everything.folder / "desc-age_predictions.tsv").read_text())
    write_product(path, STUB, {**document, **settings, "Target": "other"})
    try:
        cited |= set(keys_of(everything.text()))
    finally:
        path.unlink()
        sidecar_of(path).unlink()
    assert cited == references().keys()


def test_dois_and_years_are_plausible():
    seen = set()
    for reference in references().values():
        doi = reference.fields.get("doi", "")
        assert not doi or re.fullmatch(r"10\.\d{4,5}/\S+", doi)
        assert doi not in seen or not doi
        seen.add(doi)
        assert reference.year == "n.d." or 1970 < int(reference.year) < 2027
        assert reference.key.startswith(re.sub(r"[^a-z]", "", _ascii(reference.authors[0][0])))
        low, _, high = reference.fields.get("pages", "").partition("--")
        assert not high or int(low) < int(high)


def _ascii(name):
    table = str.maketrans("éèêóöüâ", "eeeooua")
    return name.lower().translate(table)


def test_references_that_would_be_called_the_same_get_letters():
    years = years_of(["smith2015", "smith2015sift2", "smith2012"])
    assert years == {"smith2015": "2015a", "smith2015sift2": "2015b", "smith2012": "2012"}


@pytest.mark.parametrize(
    "text",
    [
        "@article{a1,\n  author = {B, C},\n}",
        "@article{a1,\n  author = {B, C},\n  author = {B, C},\n}",
        "@book{a1,\n  author = {B, C},\n  title = {T},\n  howpublished = {X},\n}",
        "@misc{a1,\n  author = {B},\n  title = {T},\n  howpublished = {X},\n  publisher = {Y},\n}",
        "@misc{a1,\n  author = {B},\n  title = {T}},\n  howpublished = {X},\n}",
        "@misc{a1,\n  author = B,\n  title = {T},\n  howpublished = {X},\n}",
        "@misc{a1,\n  author = {B},\n  title = {T},\n  howpublished = {X},",
        "comment",
        "",
    ],
)
def test_other_bibtex_is_refused(text):
    with pytest.raises(BadDataError, match=r"own\.bib"):
        parse(text, "own.bib")


def test_a_key_that_is_there_twice_is_refused():
    entry = references()["otsu1979"].source
    assert parse(entry, "x")["otsu1979"].short == "Otsu"
    with pytest.raises(BadDataError, match="otsu1979"):
        parse(f"{entry}\n\n{entry}", "x")


# --- whole texts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("counted", [True, False])
def test_the_text_of_everything_is_whole(everything, counted):
    facts = facts_of(everything.folder)
    found = paragraphs(facts if counted else facts.without_counts())
    check(found)
    titles = [paragraph.title for paragraph in found]
    assert titles == [
        "Overview",
        "Atlas",
        "ROI time series",
        "Nuisance regression",
        "Functional connectivity",
        "Diffusion preprocessing",
        "Anatomy and registration",
        "Fibre orientations and tractography",
        "Structural connectivity",
        "Model",
        "Functional embeddings",
        "Reconstruction of held-out ROIs",
        "Structural embeddings",
        "Fusion",
        "Cohort scaling",
        "Prediction of age",
        "Prediction of sex",
        "Identification and reliability",
        "Network recovery",
        "Contrasts",
        "Group means",
        "Software",
        "Limits",
        "Copyright waiver",
    ]
    text = " ".join(paragraph.text for paragraph in found)
    assert ("8 BOLD runs of 8 participants and of 4 diffusion scans" in text) is counted
    assert bool(re.search(r"\b\d+ of \d+ (runs|scans)", text)) is counted


def test_what_the_real_writers_write_gives_a_text(written):  # noqa: F811
    found = paragraphs(facts_of(written))
    check(found)
    text = " ".join(paragraph.text for paragraph in found)
    assert "first five anatomical CompCor components" in text
    assert "random and not trained" in text
    assert "fused with the structural embedding" in text
    assert "log10(d) of the edges, of streamline counts divided by the mean volume" in text
    assert "grayordinates of fsLR [@glasser2013] (91k)" in text


def test_a_dataset_without_outputs_has_a_text(out):
    assert out.text() == "There were no complete outputs to describe."
    for path in rewrite_methods(out.folder):
        assert path.is_file()


@pytest.mark.parametrize("call", [facts_of, write_methods, rewrite_methods])
def test_no_folder_is_an_error(tmp_path, call):
    with pytest.raises(InputMissingError):
        call(tmp_path / "none")
    assert not (tmp_path / "none").exists()


# --- runs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said", "key"),
    [
        ("24p-wm-csf", "24 head motion terms", "friston1996"),
        ("36p", "36 parameters", "satterthwaite2013"),
        ("acompcor", "CompCor components", "behzadi2007"),
        ("aroma", "the aggressive variant", "pruim2015"),
        ("none", "No confounds were regressed out", None),
    ],
)
def test_every_strategy_is_told_with_its_citation(out, name, said, key):
    out.run(settings={"TimeSeriesSettings.NuisanceStrategy": strategy(name)})
    text = out.text()
    assert said in text
    for other in ("friston1996", "satterthwaite2013", "behzadi2007", "pruim2015"):
        assert (f"@{other}" in text) is (other == key)


def test_all_strategies_of_the_package_are_known():
    from bsym_bids.methods.functional import _STRATEGIES

    assert sorted(_STRATEGIES) == list(strategy_names())


@pytest.mark.parametrize("name", ["mine", "36p"])
def test_a_strategy_of_the_user_is_told_by_its_columns(out, name):
    own = {
        "name": name,
        "citation": ["Somebody 2020"],
        "columns": ["trans_x", "cosine*"],
        "acompcor": {"masks": ["combined"], "components": 6},
        "filter": "butterworth",
        "detrend": True,
    }
    out.run(settings={"TimeSeriesSettings.NuisanceStrategy": own})
    text = out.text()
    assert (
        f'The nuisance strategy "{name}" (after Somebody 2020) regressed out the confounds trans_x '
        "and cosine* and the first 6 anatomical CompCor components of combined."
    ) in text
    assert "@satterthwaite2013" not in text


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "zero-phase Butterworth filter of order 5 (high-pass at 0.008 Hz), after mean"),
        ({"LowPass": 0.1}, "(band-pass, 0.008 to 0.1 Hz)"),
        ({"HighPass": 0.0, "LowPass": 0.1}, "(low-pass at 0.1 Hz)"),
        ({"HighPass": 0.0}, "No temporal filter was applied, and mean and linear trend were rem"),
        ({"NuisanceStrategy.filter": "cosine"}, "by discrete cosines in the same regression"),
        (
            {"HighPass": 0.0, "NuisanceStrategy.detrend": False},
            "No temporal filter was applied, and mean and linear trend were kept",
        ),
        (
            {"NuisanceStrategy.columns": [], "NuisanceStrategy.detrend": False},
            "The series were filtered by a zero-phase Butterworth filter of order 5 (high-pass",
        ),
    ],
)
def test_the_filter_is_told(out, settings, expected):
    out.run(settings={f"TimeSeriesSettings.{key}": value for key, value in settings.items()})
    text = out.text()
    assert expected in text
    assert ("@lindquist2019" in text) is ("No temporal" not in expected and "The" not in expected)


def test_censoring_is_told_where_it_was_done(out):
    out.run("01")
    assert "No volume was censored" in out.text() and "@power2012" not in out.text()
    out.run("02", {"TimeSeriesSettings.FDThreshold": 0.5, "CensoredVolumes": [1]})
    text = out.text()
    assert (
        "In 1 of 2 runs, no volume was censored for head motion; in 1, volumes with a framewise "
        "displacement [@power2012] above 0.5 mm were censored [@power2014]."
    ) in text
    assert "Volumes were censored in 1 of 2 runs." in text


def test_volumes_not_in_steady_state_are_told(out):
    notes = ["non-steady-state frames, censored: 2"]
    out.run(settings={"Notes": notes, "CensoredVolumes": [0, 1]})
    text = out.text()
    assert "Initial volumes that the confounds mark as not in steady state were censored." in text
    assert "interpolated before filtering" in text and "@power2012" not in text


@pytest.mark.parametrize("method", ["mean", "pca"])
def test_the_way_to_summarise_rois_is_told(out, method):
    out.run(settings={"TimeSeriesSettings.ParcelMethod": method})
    text = out.text()
    assert ("was the mean over its voxels" in text) is (method == "mean")
    assert ("first principal component of its voxels" in text) is (method == "pca")
    assert ("which may be motion" in text) is (method == "pca")
    assert "inside of the brain mask that came with the series" in text


def test_two_settings_in_one_dataset_are_told_with_numbers(out):
    for sub in ("01", "02", "03"):
        out.run(sub)
    out.run("04", {"TimeSeriesSettings.HighPass": 0.01, "RepetitionTime": 0.72})
    text = out.text()
    assert re.search(r"In 3 of 4 runs, before .* \(high-pass at 0\.008 Hz\).*; in 1, before", text)
    assert "Repetition times were 0.72 s (1 run) and 2 s (3 runs)." in text
    unknown = out.text(counted=False)
    assert re.search(r"In some runs, before the .*; in others, before the", unknown)
    assert "Repetition times were 0.72 s and 2 s." in unknown


def test_more_variants_than_fit_are_summed_up(out):
    for index in range(9):
        out.run(f"{index:02d}", {"TimeSeriesSettings.MinCoverage": 0.1 + index / 20})
    assert "in 3, the settings were further ones, which the sidecars have" in out.text()
    assert "further ones" in out.text(counted=False)


def test_source_program_and_space_are_told(out):
    out.run(space="MNI152NLin2009cAsym", resolution="2")
    text = out.text()
    assert "preprocessed with fMRIPrep 23.2.1 [@esteban2019]" in text
    assert "space MNI152NLin2009cAsym [@fonov2009; @fonov2011] (res-2)" in text
    (out.folder / "dataset_description.json").unlink()
    assert "in the form of fMRIPrep [@esteban2019] derivatives" in out.text()


def test_simulated_data_are_called_so(out):
    out.run(settings={"Simulated": True})
    out.scan(settings={"Simulated": True})
    text = out.text()
    assert "The BOLD runs were simulated, not measured." in text
    assert "The diffusion scans were simulated, not measured." in text
    for key in ("esteban2019", "gorgolewski2011", "veraart2016"):
        assert f"@{key}" not in text
    out.run("02")
    assert "Of the BOLD runs, 1 was simulated, not measured." in out.text()


# --- scans ---------------------------------------------------------------------------------------


def test_mrtrix3_and_fsl_are_told(out):
    out.scan(sift2=True)
    text = out.text()
    for expected in (
        "raw diffusion series were preprocessed by bsym-bids",
        "b-values of 1000 and 3000 s/mm² (rounded to 50 s/mm²)",
        "(dwidenoise of MRtrix3 3.0.4 [@tournier2019]), in patches of 5 by 5 by 5 voxels",
        "with eddy [@andersson2016] (FSL 6.0.7, by dwifslpreproc of MRtrix3",
        "outlier slices were replaced",
        "estimated with topup [@andersson2003]",
        "T1-weighted image was one that fMRIPrep 23.2.1 had preprocessed",
        "by the transform that came with the derivatives",
        "FreeSurfer's cortical parcellation",
        "registered rigidly",
        '"dhollander" [@dhollander2016; @dhollander2019]',
        "into white matter, grey matter and CSF",
        "(iFOD2) [@tournier2010] under anatomical constraints [@smith2012], with back-tracking",
        "an amplitude of at least 0.05",
        "reached 0.99, or the number of streamlines 10,000,000",
        "rested on 300,000 streamlines, with an expected correlation of 0.991",
        "SIFT2 weights",
        "within 4 mm",
        "MRtrix3 3.0.4 [@tournier2019]",
    ):
        assert expected in text, expected
    assert "not corrected" not in text and "voxels smaller than" not in text


def test_dipy_and_our_own_steps_are_told(out):
    out.scan(settings=WITH_DIPY)
    text = out.text()
    for expected in (
        "(DIPY 1.12.0 [@garyfallidis2014])",
        "registration with mutual information [@mattes2003] (SimpleITK 2.5.7 [@lowekamp2013])",
        "distortions by susceptibility were not corrected",
        "were found to be wrong and were corrected",
        "There was no T1-weighted image.",
        "whose intensities were inverted by rank",
        "one shell [@tournier2007], with the response of the 300 voxels",
        "voxels smaller than 2.5 mm",
        "without anatomical constraints, from voxels with a fractional anisotropy of at least 0.2",
        "The number of streamlines was fixed to 50,000.",
        "The registration was flagged as poor in 1 of 1 scan.",
        "Distortions of raw diffusion series by susceptibility were not corrected.",
    ):
        assert expected in text, expected
    for key in ("tournier2010", "smith2015sift2", "andersson2016", "jeurissen2014;", "tian2021"):
        assert f"@{key}" not in text


def test_a_series_of_qsiprep_is_not_said_to_be_preprocessed_here(out):
    out.scan(settings=WITH_QSIPREP)
    text = out.text()
    assert "preprocessed with QSIPrep 0.21.4 [@cieslak2021] and were not processed again" in text
    assert "mask was that of the preprocessed series" in text
    assert "in one space already" in text
    assert "probability maps" in text
    for key in ("veraart2016", "kellner2016", "tustison2010", "andersson2016", "mattes2003"):
        assert f"@{key}" not in text


def test_raw_and_preprocessed_scans_are_told_apart(out):
    out.scan("01")
    out.scan("02", WITH_QSIPREP)
    out.scan("03", RAW_T1W)
    text = out.text()
    assert "In 2 of 3 scans, the raw diffusion series were preprocessed by bsym-bids; in 1," in text
    assert "segmented by three normal distributions" in text
    assert "its brain was extracted by registration with the template" in text


def test_sift2_is_told_where_it_is(out):
    out.scan("01", sift2=True)
    out.scan("02")
    assert "In 1 of 2 scans, fibre bundle capacity was the sum of the SIFT2 weights" in out.text()
    assert "In some scans, fibre bundle capacity" in out.text(counted=False)


def test_a_limit_that_came_first_is_told(out):
    limit = "maximum number of streamlines"
    out.scan("01", {"Tracking.SamplingRule.StoppedBy": limit, "Streamlines": 10**7})
    out.scan("02")
    text = out.text()
    assert "In 1 of 2 scans, the limit came first." in text
    assert "300,000 to 10,000,000 streamlines (median 5,150,000)" in text


@pytest.mark.parametrize(
    ("check_of_gradients", "expected"),
    [
        ({"Action": "warned"}, "They were found to be wrong and were left as they were."),
        ({"Action": "none", "NotChecked": "x"}, "The axes of the gradients could not be checked."),
        ({"Action": "off"}, "The axes of the gradients were not checked."),
    ],
)
def test_the_check_of_gradients_is_told(out, check_of_gradients, expected):
    out.scan(settings={"Preprocessing.GradientCheck": check_of_gradients})
    assert expected in out.text()


# --- model ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("trained", [True, False])
def test_random_weights_are_never_called_trained(out, trained):
    warning = "The model 'untrained' has random weights: they mean nothing about a brain."
    out.run(settings={"Model.Trained": trained, "Warning": "" if trained else warning})
    text = out.text()
    assert ("had been trained beforehand" in text) is trained
    assert ("random and not trained" in text) is not trained
    assert (warning in text) is not trained
    assert ("no measurement of a brain" in text) is not trained


def test_the_warning_of_simulated_weights_is_told(out):
    out.run()
    assert "bsym-sim-v1 was trained on simulated people alone." in out.text()
    assert "What is said above of the weights" in out.text()


def test_windows_scaling_and_time_base_are_told(out):
    out.run("01")
    short = {"SourceRepetitionTime": 0.72, "WindowRepetitionTime": 0.72, "RepetitionTime": 0.72}
    out.run("02", {**short, "EmbeddingSettings.Scaling": "zscore"})
    text = out.text()
    for expected in (
        "within 12 % of that passed as they were",
        "series with a repetition time of 2 s were resampled to 0.8 s",
        "series with a repetition time of 0.72 s were not resampled",
        "scaled by its median and interquartile range in the run",
        "scaled by its mean and standard deviation in the run",
        "windows of 200 frames (160 s) began every 100 frames",
        "windows of 200 frames (144 s)",
        "more than 50 % of their frames censored",
        "at most 3 windows of the run, in 7 folds",
        "with a ridge of 0.05",
        "The random seed was 0.",
        "judged in domain in 2 of 2 runs",
    ):
        assert expected in text, expected


def test_deviations_and_domains_are_told(out):
    said_of = (
        "the scaling of ROIs is 'none', but the model was made for 'robust' (--scaling robust)"
    )
    out.run("01", {"ModelContractDeviations": [said_of], "ModelDomain.Verdict": "doubtful"})
    out.run("02")
    text = out.text()
    assert (
        "differed from what it was made for (in 1 of 2 runs): the scaling of ROIs is 'none', but "
        "the model was made for 'robust'."
    ) in text
    assert "judged in domain in 1 of 2 runs and doubtful in 1" in text
    assert "judged in domain in some runs and doubtful in some runs" in out.text(counted=False)


def test_what_the_model_got_of_a_connectome_is_told(out):
    out.scan(settings={"StructuralSettings": {"Measure": "invnodevol", "Transform": "log10"}})
    text = out.text()
    assert "log10(d) of the edges, of streamline counts divided by the mean volume" in text
    assert "(1 of 1 scan; factor 2.5)" in text


def test_outputs_without_a_model_do_not_speak_of_one(out):
    out.run(model=False)
    out.scan(model=False)
    text = out.text()
    assert "BrainSymphony" not in text and "@paszke2019" not in text and "PyTorch" not in text


# --- cohort --------------------------------------------------------------------------------------


def test_a_prediction_of_numbers_is_told(out):
    out.predict("age")
    text = out.text()
    for expected in (
        'The variable "age" (years) of 55 labelled participants (of 60) was predicted.',
        "ridge regression",
        "with 5 folds, done 10 times, with the random seed 0",
        "all data of a participant were in one fold",
        "mean framewise displacement (mm), number of frames kept and sex (M)",
        "ComBat [@johnson2007; @fortin2018]",
        "in the training folds, in the first repeat alone.",
        "mean absolute error, root mean squared error",
        "1000 permutations of the labels",
        "the statistic was R²",
        "corrected resampled t-test [@nadeau2003] of their mean absolute errors",
        "tangent space [@varoquaux2010]",
        "fewer than 100 people are uncertain",
    ):
        assert expected in text, expected
    assert text.count('The variable "age"') == 1, "scores and comparisons are of the same"
    assert "logistic" not in text and "@cole2018" not in text


def test_a_prediction_of_classes_is_told(out):
    others = {"Permutations": 0, "Confounds": [], "Harmonize": None, "GroupBy": "family"}
    out.predict("sex", others | {"Repeats": 1, "Bootstrap": 0, "Labelled": 500, "Units": 500})
    text = out.text()
    for expected in (
        '"sex" (F or M) of 500 labelled participants, sessions or states was predicted',
        "logistic regression with an L2 penalty",
        "done once",
        'all with the same "family" were in one fold',
        "No confounds were regressed out of the features.",
        "area under the ROC curve, balanced accuracy",
        "No permutation test was made.",
    ):
        assert expected in text, expected
    for absent in ("ridge regression", "ComBat", "bootstrap", "uncertain", "(of 500)"):
        assert absent not in text


def test_predictors_of_another_dataset_are_told(out):
    about = {"Target": "age", "TaskType": "regression", "Head": "age.npz"}
    path = dataset_path(out.folder, "applied_predictions", "age")
    write_product(path, STUB, about | {"PredictionSettings": SETTINGS})
    text = out.text()
    assert "fitted to another dataset (file age.npz)" in text
    assert "cross-validation" not in text


def test_maps_of_the_cohort_are_told(out):
    for key in ("identification", "reliability", "recovery"):
        out.group(key, settings={"RecoveredParticipants": ["sub-01"]})
    out.group("contrast", "a", Contrast="ses-a-ses-b", Difference="ses-a minus ses-b")
    out.group("contrast", "b", Contrast="ses-a-ses-b", Difference="ses-a minus ses-b", Pairs=3)
    text = out.text()
    for expected in (
        "[@finn2015; @amico2018] among the scans of 9 participants",
        "by 99 permutations of people",
        "ICC(1,1) [@shrout1979]",
        "embeddings of 1 participant tell the network",
        "largest statistic [@nichols2002]",
    ):
        assert expected in text, expected
    assert text.count("ses-a minus ses-b") == 1
    assert "BOLD" not in text


def test_a_participant_is_told_without_the_cohort(everything):
    text = everything.text(["10"])
    assert "1 BOLD run of 1 participant and of 1 diffusion scan of 1 participant" in text
    assert "predicted of" not in text and "ridge regression" not in text
    assert "QSIPrep" not in text


# --- damaged and hostile files -------------------------------------------------------------------


def test_sidecars_that_cannot_be_read_are_left_out_with_a_warning(out, caplog):
    out.run("01")
    names = out.run("02")
    scan = out.scan("01")
    sidecar_of(names.path("embedding")).write_text("{")
    sidecar_of(scan.path("count")).write_text("[]")
    sidecar_of(out.run("03").path("denoised")).write_text("\x00")
    facts = facts_of(out.folder)
    assert len(facts.holders("regressors")) == 2 and len(facts.holders("model")) == 1
    assert not facts.has("dwi_source")
    warned = [record.message for record in caplog.records if "left out" in record.message]
    assert len(warned) == 3
    check(paragraphs(facts))


@pytest.mark.parametrize("wrong", [None, 0, "x", [], {}, [[1]], True, float("nan"), float("inf")])
def test_values_of_the_wrong_type_count_as_absent(out, wrong):
    keys = {f"{part}.{key}": wrong for part in ("Preprocessing", "Anatomy") for key in SCAN[part]}
    keys |= {f"FibreOrientations.{key}": wrong for key in SCAN["FibreOrientations"]}
    keys |= {f"ConnectomeSettings.Preset.{key}": wrong for key in ("fa_seed", "mrtrix3", "name")}
    keys |= {"ConnectomeSettings.SamplingRule": wrong, "Tracking": wrong, "Streamlines": wrong}
    keys |= {"StructuralSettings": wrong, "DepthFactor": wrong, "AssignmentRadius": wrong}
    out.scan(settings=keys)
    keys = {f"TimeSeriesSettings.{key}": wrong for key in SERIES["TimeSeriesSettings"]}
    keys |= {key: wrong for key in EMBEDDING if key not in ("RepetitionTime", "Sources")}
    keys |= {key: wrong for key in RECONSTRUCTION if key not in EMBEDDING}
    out.run(settings={key: value for key, value in keys.items() if key != "TimeSeriesSettings"})
    out.text()
    out.text(counted=False)
    write_methods(out.folder)


HOSTILE = "<script>alert(1)</script> [@otsu1979] [@nobody] *b* _i_ {x} $1$ @me \x1b[1m& \n## H"


def test_everything_from_files_is_escaped(out):
    own = {**strategy("none"), "name": HOSTILE, "columns": [HOSTILE], "citation": [HOSTILE]}
    settings = {
        "TimeSeriesSettings.NuisanceStrategy": own,
        "Model.Name": HOSTILE,
        "Warning": HOSTILE,
        "ModelContractDeviations": [HOSTILE],
        "SoftwareVersions": {"numpy": HOSTILE},
    }
    out.run(settings=settings)
    out.predict("age", {"Confounds": [HOSTILE], "GroupBy": HOSTILE, "Exchange": HOSTILE})
    for path in rewrite_methods(out.folder):
        text = path.read_text("utf-8")
        assert "nobody" in text or path.suffix == ".bib"
        assert "<script" not in re.sub(r"\\<", "", text)
        if path.suffix == ".md":
            assert "\\[ \\@nobody\\]" in text and "\\*b\\*" in text and "\\_i\\_" in text
            assert "\n## H" not in text and "\x1b" not in text
        if path.suffix == ".html":
            check_page(path)
    assert "otsu1979" not in (out.folder / "logs" / "CITATION.bib").read_text("utf-8")
    assert "<script" not in methods_html(facts_of(out.folder))


@given(st.text())
def test_no_text_from_a_file_is_a_citation_or_a_new_line(text):
    found = clean(text)
    assert CITATION.search(found) is None and len(found) <= 300
    assert found.isprintable() and found == found.strip()


@given(st.lists(st.floats(0, 1e9), min_size=1).map(sorted))
def test_a_spread_names_ends_of_values(values):
    text = spread(values)
    assert text == said(values[0]) or text.startswith(f"{said(values[0])} to {said(values[-1])}")


# --- files ---------------------------------------------------------------------------------------


def test_the_files_say_the_same(everything):
    md, bib, html = (path.read_text("utf-8") for path in rewrite_methods(everything.folder))
    facts = facts_of(everything.folder)
    text = " ".join(paragraph.text for paragraph in paragraphs(facts))
    cited = set(keys_of(text))
    assert set(parse(bib, "CITATION.bib")) == cited == set(keys_of(md))
    assert set(re.findall(r"^- `(\w+)`: ", md, re.M)) == cited
    assert set(re.findall(r'id="ref-(\w+)"', html)) == cited
    page = check_page(everything.folder / "logs" / "CITATION.html")
    assert "(Schaefer et al., 2018; Yeo et al., 2011)" in page.said.replace(" ;", ";").replace(
        "( ", "("
    ).replace(" )", ")")
    assert "@" not in page.said


def test_only_what_is_cited_is_in_the_files(out):
    out.run(model=False)
    bib = rewrite_methods(out.folder)[1].read_text("utf-8")
    assert "schaefer2018" in bib and "tournier2019" not in bib and "khajehnejad2025" not in bib


def test_the_part_of_a_page_fits_into_one(everything):
    part = methods_html(facts_of(everything.folder))
    page = Page(str(part))
    assert page.faults == [] and set(page.headings) == {3}
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)
    assert "[@" not in part


def test_the_list_of_references_is_in_order(everything):
    md = rewrite_methods(everything.folder)[0].read_text("utf-8")
    listed = re.findall(r"^- `\w+`: (\w[^ ]*)", md, re.M)
    assert all(a.lower() <= b.lower() for a, b in pairwise(listed))


def test_the_same_outputs_give_the_same_files(everything):
    first = [path.read_bytes() for path in rewrite_methods(everything.folder)]
    assert [path.read_bytes() for path in rewrite_methods(everything.folder)] == first


# --- record --------------------------------------------------------------------------------------


def remember(output_dir, facts):
    with locked(output_dir):
        add(output_dir, facts)


def blocks(facts):
    return {(block.aspect, block.digest) for block in facts.blocks}


def test_what_is_remembered_is_recalled_without_counts(everything, out):
    facts = facts_of(everything.folder)
    remember(out.folder, facts)
    found = recall(out.folder)
    assert blocks(found) == blocks(facts) and not found.is_counted
    text = [paragraph.text for paragraph in paragraphs(found)]
    assert text == [paragraph.text for paragraph in paragraphs(facts.without_counts())]


def test_files_of_the_record_that_are_damaged_are_left_out(out, caplog):
    out.run()
    facts = facts_of(out.folder)
    remember(out.folder, facts)
    files = sorted((out.folder / "logs" / "methods").glob("*.json"))
    files[0].write_text("{")
    files[1].write_text(files[2].read_text())
    assert len(blocks(recall(out.folder))) == len(files) - 2
    assert sum("left out" in record.message for record in caplog.records) == 2
    remember(out.folder, facts)
    assert blocks(recall(out.folder)) == blocks(facts)


def test_rewriting_drops_what_no_output_has_any_more(out):
    out.run(settings={"TimeSeriesSettings.NuisanceStrategy": strategy("36p")})
    rewrite_methods(out.folder)
    assert "satterthwaite2013" in (out.folder / "logs" / "CITATION.bib").read_text("utf-8")
    out.run()
    rewrite_methods(out.folder)
    assert "satterthwaite2013" not in (out.folder / "logs" / "CITATION.bib").read_text("utf-8")
    assert blocks(recall(out.folder)) == blocks(facts_of(out.folder))


def test_jobs_of_a_large_dataset_read_their_own_and_lose_nothing(out, monkeypatch):
    monkeypatch.setattr(writing_module, "FEW_PARTICIPANTS", 0)
    out.run("01", {"TimeSeriesSettings.NuisanceStrategy": strategy("36p")})
    out.run("02")
    write_methods(out.folder, ["01"])
    assert blocks(recall(out.folder)) == blocks(facts_of(out.folder, ["01"]))
    paths = write_methods(out.folder, ["02"])
    text = paths[0].read_text("utf-8")
    assert "In some runs, " in text and "@satterthwaite2013" in text and "@friston1996" in text
    assert not re.search(r"\d of \d+ runs", text)
    assert "1 of 2 runs" in write_methods(out.folder, ["01", "02"])[0].read_text("utf-8")


JOBS = """
import sys
from pathlib import Path
from bsym_bids.methods import write_methods, writing

writing.FEW_PARTICIPANTS = 0
for label in sys.argv[2:]:
    write_methods(Path(sys.argv[1]), [label])
"""


def test_processes_neither_conflict_nor_lose_a_part(out):
    people = [f"{index:02d}" for index in range(1, 10)]
    for sub in ("00", *people):
        out.run(sub, {"TimeSeriesSettings.FDThreshold": int(sub) / 10})
    calls = [
        subprocess.Popen([sys.executable, "-c", JOBS, str(out.folder), *people[start::3]])
        for start in range(3)
    ]
    assert [call.wait() for call in calls] == [0, 0, 0]
    thresholds = {b.settings["FDThreshold"] for b in recall(out.folder).of("censoring")}
    assert thresholds == {int(sub) / 10 for sub in people}
    logs = out.folder / "logs"
    assert "further ones" in (logs / "CITATION.md").read_text("utf-8")
    assert not [path for path in logs.rglob("*.part")]


def test_a_block_without_a_known_aspect_says_nothing():
    check(paragraphs(Facts((Block("later", {"x": 1}),))))

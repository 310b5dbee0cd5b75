"""What the documentation promises to be complete about."""

import ast
import json
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bsym_bids import atlas, dwi
from bsym_bids.bold.cleaning import CleanedRun
from bsym_bids.bold.nuisance import load_strategy
from bsym_bids.bold.parcellate import Parcellation
from bsym_bids.bold.windows import WINDOW_LENGTH, Windows
from bsym_bids.cli import build_parser
from bsym_bids.config import RunConfig
from bsym_bids.dwi.connectome import Connectome
from bsym_bids.dwi.presets import load_preset
from bsym_bids.dwi.records import FittedModel, PlacedAnatomy, PreparedDwi
from bsym_bids.dwi.tissue import tissue_volumes
from bsym_bids.inputs.records import Anatomy, BoldRun, Derivatives, DwiImage, DwiScan
from bsym_bids.jobs import FusionJob, RunJob, ScanJob, ScanSettings, Settings
from bsym_bids.model import cards
from bsym_bids.model.checking import ModelCheck, Row, check_settings
from bsym_bids.model.cli import build_parser as build_model_parser
from bsym_bids.model.domain import Verdict
from bsym_bids.model.embed import FunctionalEmbedding
from bsym_bids.model.reconstruction import ReconstructionQuality
from bsym_bids.model.structural import EdgeConvention
from bsym_bids.model.structural_embedding import (
    ConnectomeInput,
    FusedEmbedding,
    StructuralEmbedding,
)
from bsym_bids.model.weights import resolve_release
from bsym_bids.outputs.checks import write_check
from bsym_bids.outputs.connectome import write_connectome
from bsym_bids.outputs.dataset import OF_ROIS, describe_dataset
from bsym_bids.outputs.descriptions import column_names
from bsym_bids.outputs.documentation import blocks_of, table_of, with_tables
from bsym_bids.outputs.embedding import write_embedding
from bsym_bids.outputs.names import (
    STATISTICS,
    TRACTOGRAM,
    TRACTOGRAM_FORMATS,
    RunNames,
    ScanNames,
    dataset_products,
    fusion_products,
    products,
    products_of,
    scan_products,
)
from bsym_bids.outputs.structural import write_fused, write_structural
from bsym_bids.outputs.timeseries import write_timeseries
from bsym_bids.reports.documentation import with_lights
from bsym_bids.summary import Outcome, write_summary

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OUTPUTS = (ROOT / "docs" / "outputs.md").read_text("utf-8")
MODELS = (ROOT / "docs" / "models.md").read_text("utf-8")
RUNNING = (ROOT / "docs" / "running.md").read_text("utf-8")
N, T, D = atlas.N_ROIS, 12, 2
# Keys that no sidecar gets: times of the steps of sampling, and types of numbers in .tck files.
NOT_WRITTEN = {"Sampling", "Weights", "Tractogram", "Total"} | {
    f"Float{size}{order}" for size in (32, 64) for order in ("LE", "BE")
}


def undocumented(names, text=OUTPUTS):
    return sorted(name for name in set(names) if f"`{name}`" not in text)


def section(heading):
    """Return what docs/outputs.md has under a heading of the second level."""
    found = re.search(rf"^## {heading}$.*?(?=^## |\Z)", OUTPUTS, re.M | re.S)
    assert found, heading
    return found[0]


RUN = section("Files of one BOLD run")
SCAN = section("Files of one diffusion scan")
BOTH = section("Files of a run and a scan together")


def told_keys():
    """Return every key that a step of a scan may put among the details of its record."""
    names = set()
    for path in Path(dwi.__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Dict):
                names |= {key.value for key in node.keys if isinstance(key, ast.Constant)}
            elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
                names.add(node.slice.value)
            elif isinstance(node, ast.Call):
                names |= {keyword.arg for keyword in node.keywords}
    keys = {n for n in names if isinstance(n, str) and re.fullmatch(r"[A-Z]\w*[a-z]\w*", n)}
    return keys - NOT_WRITTEN


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A dataset as the participant level writes it, with made-up numbers and every key."""
    return write_participant_files(tmp_path_factory.mktemp("docs"))


def write_participant_files(folder):
    """Write a dataset into a folder in the given one, with its inputs beside it; return it."""
    inputs = {role: folder / role for role in ("bold", "mask", "confounds")}
    for path in inputs.values():
        path.touch()
    run = BoldRun(
        entities={"sub": "01", "ses": "1", "task": "rest"},
        space="fsLR",
        derivatives=Derivatives("fmriprep", folder),
        resolution="2",
        density="91k",
        **inputs,
    )
    config = RunConfig(
        folder,
        folder / "OUT",
        "participant",
        model="untrained",
        engine="dipy",
        save_tractogram="tck",
    )
    settings = Settings.of(config, load_strategy("acompcor"), resolve_release("untrained"))
    names = RunNames(config.output_dir, run.entities, run.space, run.resolution, run.density)
    job = RunJob(run, names, settings)

    rng = np.random.default_rng(0)
    voxels = np.ones(N, dtype=int)
    series = rng.standard_normal((T, N))
    cleaned = CleanedRun(series, np.zeros(T, bool), 0.8, np.ones(T), ("csf",), 0.01, 0.0, 1, 5, ())
    parcellation = Parcellation(
        series,
        np.ones(N),
        repetition_time=0.8,
        header_repetition_time=0.8,
        space="fsLR",
        space_source="grid",
        method="mean",
        n_voxels=voxels,
        n_voxels_expected=voxels,
        mean_volume=np.ones((2, 2, 2), np.float32),
        affine=np.eye(4),
    )
    windows = Windows(
        np.zeros((1, N, WINDOW_LENGTH), np.float32),
        np.zeros(N, bool),
        np.array([0]),
        np.zeros((1, WINDOW_LENGTH), bool),
        0.8,
    )
    square = rng.random((N, N))
    embedding = FunctionalEmbedding(
        windows=rng.random((1, N, D)),
        mean=rng.random((N, D)),
        similarity=square,
        attention_roi=square,
        attention_time=rng.random((1, N, WINDOW_LENGTH)),
        missing=windows.missing,
        masked=rng.random((N, D)),
        threads=1,
    )
    quality = ReconstructionQuality(*rng.random((12, N)), windows=(0,), n_folds=7, threads=1)

    describe_dataset(config.output_dir, {"fmriprep": folder}, OF_ROIS)
    write_timeseries(job, parcellation, cleaned)
    write_embedding(job, cleaned, windows, embedding, quality)
    scan = a_scan(folder, config, settings.release)
    write_scan(scan, folder)
    write_fused(FusionJob(job, scan), FusedEmbedding(*rng.random((2, 1, N, D))))
    write_check(a_check(settings.release, config.output_dir), config.output_dir)
    write_summary([Outcome("01", "n/a", "done")], config.output_dir / "logs" / "x_summary.tsv")
    return config.output_dir


def a_scan(folder, config, release):
    """Return a scan of empty files."""
    raw = Derivatives("raw", folder)
    files = {kind: folder / f"sub-01_dwi.{kind}" for kind in ("nii.gz", "bval", "bvec")}
    t1w = folder / "sub-01_T1w.nii.gz"
    for path in (*files.values(), t1w):
        path.touch()
    entities = {"sub": "01", "ses": "1"}
    scan = DwiScan(
        entities, (DwiImage(*files.values()),), raw, "ACPC", anatomy=Anatomy("raw", t1w, raw)
    )
    names = ScanNames(config.output_dir, entities, "ACPC", tractogram="tck")
    return ScanJob(scan, names, ScanSettings.of(config, release))


def write_scan(job, folder):
    """Write what comes of a scan, with made-up numbers and every key that its steps may tell."""
    rng = np.random.default_rng(1)
    square, details = rng.random((N, N)), dict.fromkeys(told_keys(), 0)
    nested = "MotionCorrection", "RegistrationQuality", "GradientCheck"
    details |= {name: {**details, "Verdict": "good"} for name in nested}
    image, tracks = folder / "image.nii", folder / "tracks.tck"
    several = str(folder / "several.nii")
    nib.save(nib.Nifti1Image(np.ones((2, 2, 2), np.int16), np.eye(4)), image)
    nib.save(nib.Nifti1Image(np.ones((2, 2, 2, 5), np.float32), np.eye(4)), several)
    tracks.touch()
    volumes = {"TissueVolumesMl": tissue_volumes(np.ones((1, 1, 1, 5), np.float32), 1.0)}
    counts = np.triu(rng.integers(0, 9, (N, N)), 1)
    found = Connectome(
        counts=(counts + counts.T).astype(float),
        sift2=square,
        meanlength=square,
        meanfa=square,
        roi_volumes=np.ones(N),
        roi_streamlines=counts.sum(0),
        curve=np.array([[10, 0.5], [20, 0.7]]),
        sampling_reliability=0.7,
        n_streamlines=20,
        n_assigned=20,
        n_unassigned_ends=0,
        details=details,
        track_density=np.ones((2, 2, 2), np.uint32),
        track_density_affine=np.eye(4),
        track_density_streamlines=10,
    )
    write_connectome(
        job,
        PreparedDwi(*[str(image)] * 5, details=details, colour_fa=several),
        PlacedAnatomy(str(image), details=details | volumes, tissue=several),
        FittedModel("dipy", "1", {}, str(image), details=details),
        found,
        tracks,
    )
    quality = dict.fromkeys(column_names("edge_quality"), 0.5)
    given = ConnectomeInput(square.astype(np.float32), np.zeros(N, bool), 20.0, 1.0)
    write_structural(job, given, StructuralEmbedding(rng.random((N, D)), square, quality, 1))


def a_check(release, folder):
    """Return a check of a model with made-up numbers."""
    domain = Verdict("in domain", "made up")
    ways = ("", "permuted_", "linear_", "linear_permuted_")
    of_run = {f"{way}{score}": 0.5 for way in ways for score in ("r2", "rho", "mae")}
    ways = ("", "permuted_", "group_", "edges_", "edges_permuted_", "edges_group_")
    of_scan = {f"{way}{score}": 0.5 for way in ways for score in ("r2", "rho", "mae")}
    convention = EdgeConvention("count", "log10")
    return ModelCheck(
        release=release,
        participants=("01",),
        n_participants=1,
        runs=(Row("all", "all", {"n_rois": 1, **of_run}, domain),),
        edges=(Row("all", "all", {"n_edges": 1, **of_scan}, domain, convention),),
        convention=convention,
        settings=check_settings(release, 0),
        run_paths=(folder / "sub-01" / "x.tsv",),
        scan_paths=(),
        threads=1,
        problems=(),
        skipped=(),
    )


def keys_of(value):
    """Return the keys of a JSON document at every depth."""
    if isinstance(value, list):
        return [key for entry in value for key in keys_of(entry)]
    if not isinstance(value, dict):
        return []
    return [key for name, entry in value.items() for key in (name, *keys_of(entry))]


@pytest.mark.parametrize("key", products())
def test_every_product_of_a_run_is_described(key):
    product = products()[key]
    for statistic in STATISTICS.values() if "{statistic}" in product.stat else ("",):
        stat = product.stat.format(statistic=statistic)
        name = "_".join(
            [f"stat-{stat}"] * bool(stat) + [f"desc-{product.desc}"] * bool(product.desc)
        )
        assert undocumented([f"{name}_{product.suffix}{product.extension}"], RUN) == []


@pytest.mark.parametrize(
    ("product", "text"),
    [(p, SCAN) for p in scan_products().values()] + [(p, BOTH) for p in fusion_products().values()],
    ids=lambda value: getattr(value, "key", ""),
)
def test_every_product_of_scans_is_described(product, text):
    name = f"desc-{product.desc}_{product.suffix}" if product.desc else product.suffix
    kinds = [f".{kind}" for kind in TRACTOGRAM_FORMATS]
    endings = kinds if product.key == TRACTOGRAM else [product.extension]
    assert undocumented([name + ending for ending in endings], text) == []


def test_tables_of_files_and_columns_are_those_of_the_patterns():
    assert with_tables(OUTPUTS) == OUTPUTS, "scripts/make_docs.py brings them up to date"


def keys_in(text, kind):
    """Return the keys that blocks of a kind of table name."""
    found = [block.removeprefix(f"{kind} ") for block in blocks_of(text) if block.startswith(kind)]
    return [key for names in found for key in names.split(", ")]


def files_in(text):
    """Return the products that tables of files name."""
    of_groups = [p.key for group in keys_in(text, "groups") for p in products_of(group)]
    return [*of_groups, *(key for key in keys_in(text, "files") if not key.startswith("under"))]


EVERY = {**products(), **scan_products(), **fusion_products(), **dataset_products()}


def test_every_product_has_its_row_and_its_table():
    assert sorted(files_in(OUTPUTS)) == sorted(EVERY)
    described = keys_in(OUTPUTS, "columns of") + keys_in(OUTPUTS, "cells of")
    assert sorted(described) == sorted(key for key, product in EVERY.items() if product.columns)
    assert set(keys_in(OUTPUTS, "arrays of")) == {k for k, p in EVERY.items() if p.arrays}


def test_tables_stand_in_their_sections():
    for text, kind in ((RUN, products()), (SCAN, scan_products()), (BOTH, fusion_products())):
        assert set(files_in(text)) == set(kind)
        described = keys_in(text, "columns of") + keys_in(text, "cells of")
        assert set(described) == {key for key, product in kind.items() if product.columns}


@pytest.mark.parametrize(
    ("wanted", "error"),
    [("rows of coverage", ValueError), ("columns of nothing", KeyError), ("files", ValueError)],
)
def test_a_block_that_asks_for_what_there_is_not_is_an_error(wanted, error):
    with pytest.raises(error):
        table_of(wanted)


def test_the_rest_of_a_page_is_left_alone():
    page = "before\n<!-- from outputs.yaml: arrays of fused_windows -->\nold\n<!-- end -->\nafter\n"
    made = with_tables(page)
    assert made.startswith("before\n<!--") and made.endswith("<!-- end -->\nafter\n")
    assert "old" not in made and "| `gate` |" in made and with_tables(made) == made


def test_every_column_array_and_key_that_is_written_is_described(dataset):
    names = []
    for path in dataset.rglob("*.tsv"):
        header = path.read_text("utf-8").partition("\n")[0]
        names += set(header.split("\t")) - set(atlas.roi_names())
    for path in dataset.rglob("*.npz"):
        with np.load(path) as arrays:
            names += arrays.files
    for path in dataset.rglob("*.json"):
        names += set(keys_of(json.loads(path.read_text("utf-8")))) - set(atlas.roi_names())
    assert {"Warning", "masks", "Density", "StoppedBy", "SubcorticalGrey"} <= set(names)
    assert undocumented(names) == ["fmriprep"]  # a link of this dataset


def test_limits_of_lights_are_those_of_the_rules():
    page = (ROOT / "docs" / "reports.md").read_text("utf-8")
    assert page == with_lights(page)
    for modality in ("bold", "dwi"):
        assert f"<!-- from lights.yaml: {modality} -->" in page
    assert page.count("| `fd_mean` |") == 2


def test_the_site_is_built_without_a_warning(tmp_path):
    program = Path(sys.executable).with_name("mkdocs")
    done = subprocess.run(
        [program, "build", "--strict", "--quiet", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    built = {path.stem for path in (tmp_path / "site").glob("*.html")} - {"404", "search"}
    assert built == {path.stem for path in (ROOT / "docs").glob("*.md")}


def test_every_key_of_a_preset_is_described():
    keys = keys_of(asdict(load_preset("fast")))
    assert {"seeds_per_streamline", "sphere"} <= set(keys)
    assert undocumented(keys, RUNNING) == []


def test_every_file_of_the_dataset_is_described(dataset):
    names = [path.name for path in dataset.iterdir() if path.is_file()]
    tables = [name for name in names if not (name.startswith("desc-") and name.endswith("json"))]
    assert undocumented(name.replace("desc-untrained", "desc-<model>") for name in tables) == []
    assert (
        undocumented(["logs/<run>_config.toml", "logs/<run>.log", "logs/<run>_summary.tsv"]) == []
    )


def test_the_snippets_read_what_is_written(dataset, monkeypatch, capsys):
    snippets = re.findall(r"```python\n(.*?)```", section("Reading them in Python"), re.S)
    monkeypatch.chdir(dataset.parent)
    names = {}
    for snippet in snippets:
        exec(snippet, names)
    printed = capsys.readouterr().out
    assert f"({T}, {N}) (1, {N}, {D})" in printed
    assert "random weights" in printed
    assert "reliability 0.700" in printed


def test_every_option_is_described():
    text = "\n".join(page.read_text("utf-8") for page in PAGES)
    options = [name for action in build_parser()._actions for name in action.option_strings]
    named = set(re.findall(r"--[a-z][a-z-]*", text))
    assert {name for name in options if name.startswith("--")} - named == {"--help"}


def test_every_command_and_option_of_the_models_is_described():
    text = "\n".join(page.read_text("utf-8") for page in PAGES)
    (commands,) = (a.choices for a in build_model_parser()._actions if a.dest == "command")
    for name, parser in commands.items():
        section = rf"^#+ `bsym-model {name}\b.*?(?=^#|\Z)"
        found = re.search(section, text, re.M | re.S)
        assert found, f"bsym-model {name}"
        described = found[0]
        options = {o for action in parser._actions for o in action.option_strings}
        assert {o for o in options if o.startswith("--") and o not in described} == {"--help"}


def test_every_key_of_a_card_is_described():
    keys = {part for rule in cards._RULES for part in rule.key.split(".")}
    assert {"rois", "quality", "transform"} <= keys
    assert sorted(k for k in keys if f"`{k}`" not in MODELS and f"    {k}: " not in MODELS) == []


def test_every_variable_is_described():
    sources = [ROOT / "bsym_bids", ROOT / "workflows"]
    text = "".join(p.read_text("utf-8") for folder in sources for p in folder.rglob("*.py"))
    named = set(re.findall(r"BSYM_[A-Z]+(?:_[A-Z]+)*", text))
    assert {"BSYM_MODEL_HOME", "BSYM_OFFLINE"} <= named
    pages = "".join(page.read_text("utf-8") for page in PAGES)
    assert sorted(n for n in named if f"{n}`" not in pages and f"{n}=" not in pages) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8"))
    files = [t.partition("#")[0] for t in targets if not re.match(r"[a-z]+:", t)]
    assert [name for name in files if name and not (page.parent / name).is_file()] == []

"""What the documentation promises to be complete about."""

import json
import re
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import numpy as np
import pytest

from bsym_bids import atlas, outputs
from bsym_bids.bold.cleaning import CleanedRun
from bsym_bids.bold.nuisance import load_strategy
from bsym_bids.bold.parcellate import Parcellation
from bsym_bids.bold.windows import WINDOW_LENGTH, Windows
from bsym_bids.cli import build_parser
from bsym_bids.config import RunConfig
from bsym_bids.inputs.records import BoldRun, Derivatives
from bsym_bids.jobs import RunJob, Settings
from bsym_bids.model import cards
from bsym_bids.model.checking import ModelCheck, Row, check_settings
from bsym_bids.model.cli import build_parser as build_model_parser
from bsym_bids.model.domain import Verdict
from bsym_bids.model.embed import FunctionalEmbedding
from bsym_bids.model.reconstruction import ReconstructionQuality
from bsym_bids.model.structural import EdgeConvention
from bsym_bids.model.weights import resolve_release
from bsym_bids.outputs.checks import write_check
from bsym_bids.outputs.dataset import describe_dataset
from bsym_bids.outputs.embedding import write_embedding
from bsym_bids.outputs.names import STATISTICS, RunNames, products
from bsym_bids.outputs.timeseries import write_timeseries
from bsym_bids.summary import Outcome, write_summary

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OUTPUTS = (ROOT / "docs" / "outputs.md").read_text("utf-8")
MODELS = (ROOT / "docs" / "models.md").read_text("utf-8")
N, T, D = atlas.N_ROIS, 12, 2


def undocumented(names):
    return sorted(name for name in set(names) if f"`{name}`" not in OUTPUTS)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A dataset as the participant level writes it, with made-up numbers and every key."""
    folder = tmp_path_factory.mktemp("docs")
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
    config = RunConfig(folder, folder / "OUT", "participant", model="untrained")
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

    describe_dataset(config.output_dir, {"fmriprep": folder})
    write_timeseries(job, parcellation, cleaned)
    write_embedding(job, cleaned, windows, embedding, quality)
    write_check(a_check(settings.release, config.output_dir), config.output_dir)
    write_summary([Outcome("01", "n/a", "done")], config.output_dir / "logs" / "x_summary.tsv")
    return config.output_dir


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
def test_every_product_is_described(key):
    product = products()[key]
    for statistic in STATISTICS.values() if "{statistic}" in product.stat else ("",):
        stat = product.stat.format(statistic=statistic)
        name = "_".join(
            [f"stat-{stat}"] * bool(stat) + [f"desc-{product.desc}"] * bool(product.desc)
        )
        assert undocumented([f"{name}_{product.suffix}{product.extension}"]) == []


def test_every_declared_column_is_described():
    columns = [
        column
        for module in iter_modules(outputs.__path__, f"{outputs.__name__}.")
        for name, value in vars(import_module(module.name)).items()
        if name.endswith(("_COLUMN", "_COLUMNS"))
        for column in value
    ]
    assert "framewise_displacement" in columns
    assert undocumented(columns) == []


def test_every_column_array_and_key_that_is_written_is_described(dataset):
    names = []
    for path in dataset.rglob("*.tsv"):
        header = path.read_text("utf-8").partition("\n")[0]
        names += set(header.split("\t")) - set(atlas.roi_names())
    for path in dataset.rglob("*.npz"):
        with np.load(path) as arrays:
            names += arrays.files
    for path in dataset.rglob("*.json"):
        names += keys_of(json.loads(path.read_text("utf-8")))
    assert {"Warning", "masks", "Density"} <= set(names)
    assert undocumented(names) == ["fmriprep"]  # a link of this dataset


def test_every_file_of_the_dataset_is_described(dataset):
    names = [path.name for path in dataset.iterdir() if path.is_file()]
    tables = [name for name in names if not (name.startswith("desc-") and name.endswith("json"))]
    assert undocumented(name.replace("desc-untrained", "desc-<model>") for name in tables) == []
    assert (
        undocumented(["logs/<run>_config.toml", "logs/<run>.log", "logs/<run>_summary.tsv"]) == []
    )


def test_the_snippet_reads_what_is_written(dataset, monkeypatch, capsys):
    (snippet,) = (s for s in re.findall(r"```python\n(.*?)```", OUTPUTS, re.S) if "read_csv" in s)
    monkeypatch.chdir(dataset.parent)
    exec(snippet, {})
    printed = capsys.readouterr().out
    assert f"({T}, {N}) (1, {N}, {D})" in printed
    assert "random weights" in printed


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

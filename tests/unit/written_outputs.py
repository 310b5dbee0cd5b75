"""Outputs of the participant level as they lie on disk, without computing any."""

import copy
import json

import numpy as np

from bsym_bids import atlas
from bsym_bids.outputs.embedding import embedding_table
from bsym_bids.outputs.names import RunNames, ScanNames, sidecar_of
from bsym_bids.outputs.tables import Matrix, Table

N = atlas.N_ROIS
NAMES = atlas.roi_names()
SPACE = "MNI152NLin6Asym"
#: In place of values: something to be written, where it does not matter what.
STUB = Table({"x": [1.0]})
MODEL = {"Name": "tiny", "Version": "1", "Trained": True, "Fingerprint": "f" * 64}
COMMON = {"SoftwareVersions": {"bsym-bids": "0.1", "numpy": "2.0"}}
OF_RUNS = {
    **COMMON,
    "SpatialReference": SPACE,
    "RepetitionTime": 2.0,
    "TimeSeriesSettings": {
        "ParcelMethod": "mean",
        "HighPass": 0.01,
        "NuisanceStrategy": {"name": "none", "description": "nothing", "acompcor": None},
    },
}
OF_SCANS = {
    **COMMON,
    "SpatialReference": "orig",
    "ConnectomeSettings": {"Engine": "dipy", "EngineVersion": "1.12", "Seed": 0},
    "Preprocessing": {"Denoising": {"Tool": "dipy"}},
}
OF_EMBEDDINGS = {
    "Model": MODEL,
    "EmbeddingSettings": {"Model": "tiny", "ModelFingerprint": "f" * 64, "Seed": 0},
    "ModelDomain": {"Verdict": "in domain"},
}
OF_STRUCTURE = {
    "Model": MODEL,
    "StructuralSettings": {"Model": "tiny", "ModelFingerprint": "f" * 64, "Measure": "count"},
}


def changed(document, settings):
    """Return a document with other values under dotted keys; keys that it lacks are no matter."""
    document = copy.deepcopy(document)
    for dotted, value in settings.items():
        *parts, last = dotted.split(".")
        inner = document
        for part in parts:
            inner = inner.get(part, {})
        inner[last] = value
    return document


def correlations(seed=0, missing=(), frames=300):
    """A correlation matrix of noise that has something in common."""
    draw = np.random.default_rng(seed)
    series = draw.standard_normal((frames, N)) + draw.standard_normal((frames, 1))
    matrix = np.corrcoef(series.T)
    matrix[list(missing)] = np.nan
    matrix[:, list(missing)] = np.nan
    return matrix


def write_product(path, content, sidecar):
    """Write a file with its sidecar."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content.write(path)
    sidecar_of(path).write_text(json.dumps(sidecar))
    return path


def square(values):
    """A table with a row and a column per ROI."""
    return values if hasattr(values, "write") else Matrix(values, NAMES, rows=NAMES)


def rois(values):
    """A table of an embedding."""
    return values if hasattr(values, "write") else embedding_table(values)


def write_run(
    out,
    sub,
    fc=None,
    *,
    ses=None,
    task="rest",
    run=None,
    space=SPACE,
    embedding=None,
    similarity=None,
    freedom=100,
    settings=None,
):
    """Write what there is of a BOLD run; return its names."""
    entities = {"sub": sub, "ses": ses, "task": task, "run": run}
    names = RunNames(out, {key: value for key, value in entities.items() if value}, space)
    plain = changed({**OF_RUNS, "SpatialReference": space}, settings or {})
    of_model = changed({**OF_RUNS, **OF_EMBEDDINGS}, settings or {})
    write_product(names.path("denoised"), STUB, plain)
    if fc is not None:
        write_product(names.path("connectivity"), square(fc), plain)
        quality = Table({"fd_mean": [None], "degrees_of_freedom": [freedom]})
        write_product(names.path("run_quality"), quality, plain)
    if embedding is not None:
        write_product(names.path("embedding"), rois(embedding), of_model)
        write_product(names.path("window_embeddings"), STUB, of_model)
    if similarity is not None:
        write_product(names.path("similarity"), square(similarity), of_model)
    return names


def write_scan(out, sub, counts=None, *, ses=None, embedding=None, settings=None):
    """Write what there is of a diffusion scan; return its names."""
    entities = {"sub": sub, "ses": ses}
    names = ScanNames(out, {key: value for key, value in entities.items() if value})
    if counts is not None:
        write_product(names.path("count"), square(counts), changed(OF_SCANS, settings or {}))
    if embedding is not None:
        document = changed({**OF_SCANS, **OF_STRUCTURE}, settings or {})
        write_product(names.path("structural_embedding"), rois(embedding), document)
    return names

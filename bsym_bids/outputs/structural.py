"""What is written of a diffusion scan after the model, and of both modalities together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bsym_bids import atlas
from bsym_bids.errors import BadDataError
from bsym_bids.jobs import FusionJob, ScanJob
from bsym_bids.model.contract import connectome_deviations
from bsym_bids.model.domain import judge_edges
from bsym_bids.model.structural_embedding import (
    ConnectomeInput,
    FusedEmbedding,
    StructuralEmbedding,
    expected_streamlines,
)
from bsym_bids.outputs.descriptions import column_names, columns_of
from bsym_bids.outputs.embedding import dimension_columns, embedding_table
from bsym_bids.outputs.publish import OutputFile, publish
from bsym_bids.outputs.sidecars import about_model, fusion_sidecar, scan_sidecar
from bsym_bids.outputs.tables import Arrays, Content, Matrix, Table
from bsym_bids.untrusted import read_arrays

_DEPTH_RULE = (
    "streamline counts are multiplied by DepthFactor, so that their sum lies in the range that the "
    "model was made for (contract.structural_connectivity.streamlines on its card); 1 where it "
    "does, or where the card says nothing"
)


def write_structural(
    job: ScanJob, given: ConnectomeInput, embedding: StructuralEmbedding
) -> tuple[Path, ...]:
    """Publish the outputs of one diffusion scan that come from the model.

    Parameters
    ----------
    job : ScanJob
        The scan with its settings and output names.
    given : ConnectomeInput
        What the model got.
    embedding : StructuralEmbedding
        What it said.

    Returns
    -------
    tuple of Path
        The data files.
    """
    names = atlas.roi_names()
    sc = given.sc.astype(np.float64)
    sc[given.missing] = sc[:, given.missing] = np.nan
    contents: dict[str, Content] = {
        "model_input": Matrix(sc, names, rows=names),
        "structural_embedding": embedding_table(embedding.embedding),
        "structural_attention": Matrix(embedding.attention, names, rows=names),
        "edge_quality": Table(
            {name: [embedding.quality[name]] for name in column_names("edge_quality")}
        ),
    }
    details = _details(job, given, embedding)
    outputs = [
        OutputFile(job.names.path(key), content, details[key]) for key, content in contents.items()
    ]
    publish(outputs, job.fingerprints["structural"], job.names.possible_paths("structural"))
    return tuple(output.path for output in outputs)


def _details(
    job: ScanJob, given: ConnectomeInput, embedding: StructuralEmbedding
) -> dict[str, dict[str, Any]]:
    """Return the sidecar of each product."""
    model_input = [job.names.uri("model_input")]
    sources = {
        "model_input": [job.names.uri("count"), job.names.uri("rois")],
        "structural_embedding": model_input,
        "structural_attention": model_input,
        "edge_quality": model_input,
    }
    release = job.settings.release
    deviations = connectome_deviations(release.card, job.settings.convention)
    expected = expected_streamlines(release.card)
    common = {
        "StructuralSettings": dict(job.settings.structural),
        "Threads": embedding.threads,
        **about_model(release),
        **({} if deviations is None else {"ModelContractDeviations": deviations}),
        "ModelDomain": judge_edges(release.card, embedding.quality).document,
        "StreamlinesBetweenROIs": given.n_streamlines,
        "StreamlinesExpectedByModel": list(expected) if expected else None,
        "DepthFactor": given.depth_factor,
        "DepthRule": _DEPTH_RULE,
        "MissingROIs": np.array(atlas.roi_names())[given.missing].tolist(),
        "MissingROIRule": "without edges at the model; n/a in the outputs",
    }
    sidecars = {key: scan_sidecar(job, key, uris) | common for key, uris in sources.items()}
    sidecars["model_input"] |= {
        "Measure": f"{job.settings.convention.measure}, {job.settings.convention.transform}",
        "Directed": False,
        "Weighted": True,
    }
    dimensions = dimension_columns(embedding.embedding.shape[1])
    sidecars["structural_embedding"] |= columns_of("structural_embedding", dimensions)
    sidecars["structural_attention"] |= {
        "Measure": "attention of the ROI of the row to that of the column, last layer",
        "Directed": True,
        "Weighted": True,
    }
    return sidecars


def write_fused(job: FusionJob, fused: FusedEmbedding) -> tuple[Path, ...]:
    """Publish the fused embedding of a BOLD run and a diffusion scan.

    Returns
    -------
    tuple of Path
        The data files.
    """
    contents: dict[str, Content] = {
        "fused_embedding": embedding_table(fused.mean),
        "fused_windows": Arrays({"embedding": fused.windows, "gate": fused.gate}),
        "gate": Table(
            {
                "name": atlas.roi_names(),
                "network": atlas.networks(),
                "gate": fused.gate.mean((0, 2), dtype=np.float64),
            }
        ),
    }
    functional = job.run.names.uri("window_embeddings")
    structural = job.scan.names.uri("structural_embedding")
    details = {key: fusion_sidecar(job, key, [functional, structural]) for key in contents}
    dimensions = dimension_columns(fused.windows.shape[2])
    details["fused_embedding"] |= columns_of("fused_embedding", dimensions)
    outputs = [
        OutputFile(job.names.path(key), content, details[key]) for key, content in contents.items()
    ]
    publish(outputs, job.fingerprints["fused"], job.names.possible_paths("fused"))
    return tuple(output.path for output in outputs)


def read_embeddings(job: FusionJob) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Read what is to be fused: functional (W, R, D) and structural (R, D) embedding.

    Raises
    ------
    BadDataError
        A file cannot be read.
    """
    import pandas as pd

    functional = job.run.names.path("window_embeddings")
    structural = job.scan.names.path("structural_embedding")
    for made, group in ((job.run, "embedding"), (job.scan, "structural")):
        if not made.is_done(group):
            raise BadDataError(
                f"{made.label}: its {group} outputs are not those of these settings",
                "another call has replaced them: run the same command again",
            )
    try:
        windows = read_arrays(functional)["embedding"]
    except (OSError, ValueError, KeyError) as error:
        raise BadDataError(f"{functional}: cannot be read: {error}", "remove it") from error
    try:
        table = pd.read_csv(structural, sep="\t", na_values="n/a", keep_default_na=False)
        values = table[[name for name in table if name.startswith("dim")]].to_numpy(np.float32)
    except (OSError, ValueError, TypeError, OverflowError) as error:
        raise BadDataError(f"{structural}: cannot be read: {error}", "remove it") from error
    return windows, values

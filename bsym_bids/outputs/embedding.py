"""What is written of a run after the model: embeddings, attention, reconstruction quality."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bsym_bids import atlas
from bsym_bids.bold.resampling import TOLERANCE
from bsym_bids.bold.scaling import TINY_SPREAD
from bsym_bids.bold.windows import MAX_CENSORED_SHARE, WINDOW_LENGTH, Windows
from bsym_bids.jobs import EmbeddingJob
from bsym_bids.model.baselines import RIDGE
from bsym_bids.model.domain import judge_reconstruction
from bsym_bids.model.embed import FunctionalEmbedding
from bsym_bids.model.reconstruction import OVERALL, ReconstructionQuality
from bsym_bids.outputs.descriptions import column_names, columns_of
from bsym_bids.outputs.publish import OutputFile, publish
from bsym_bids.outputs.sidecars import model_sidecar
from bsym_bids.outputs.tables import Arrays, Content, Matrix, Table


class CleanedSource(Protocol):
    """What is told of the cleaning of a run that was embedded."""

    @property
    def repetition_time(self) -> float:
        """In seconds."""

    @property
    def notes(self) -> Sequence[str]:
        """The rules that were applied to this run."""


def write_embedding(
    job: EmbeddingJob,
    cleaned: CleanedSource,
    windows: Windows,
    embedding: FunctionalEmbedding,
    quality: ReconstructionQuality,
) -> tuple[Path, ...]:
    """Publish the outputs of one run that come from the model.

    Parameters
    ----------
    job : EmbeddingJob
        The run with its settings and output names.
    cleaned : CleanedSource
        The run that was embedded.
    windows : Windows
        What the model saw.
    embedding, quality : FunctionalEmbedding, ReconstructionQuality
        What it said.

    Returns
    -------
    tuple of Path
        The data files.
    """
    names = atlas.roi_names()
    contents: dict[str, Content] = {
        "embedding": embedding_table(embedding.mean),
        "window_embeddings": Arrays(
            {
                "embedding": embedding.windows,
                "masked": embedding.masked,
                "onset": windows.onset_seconds,
                "censored_share": windows.censored_share,
            }
        ),
        "similarity": Matrix(embedding.similarity, names, rows=names),
        "attention": Matrix(embedding.attention_roi, names, rows=names),
        "attention_time": Matrix(frame_attention(embedding.attention_time, windows.onsets), names),
        "reconstruction": _reconstruction_table(quality),
        "reconstruction_networks": _network_table(quality),
    }
    details = _details(job, cleaned, windows, embedding, quality)
    outputs = [
        OutputFile(job.names.path(key), content, details[key]) for key, content in contents.items()
    ]
    publish(outputs, job.fingerprints["embedding"], job.replaced)
    return tuple(output.path for output in outputs)


def frame_attention(
    attention_time: NDArray[np.floating], onsets: NDArray[np.integer]
) -> NDArray[np.float64]:
    """Lay the attention to the frames of each window along the run.

    Parameters
    ----------
    attention_time : ndarray, shape (W, N, length)
        Attention of each ROI's latent to each frame of each window.
    onsets : ndarray of int, shape (W,)
        First frame of each window.

    Returns
    -------
    ndarray, shape (T, N)
        Mean over the windows that hold a frame; NaN for frames that none holds.
    """
    n_windows, n_rois, length = attention_time.shape
    total = np.zeros((int(onsets.max()) + length, n_rois))
    count = np.zeros(len(total))
    for window in range(n_windows):
        frames = slice(int(onsets[window]), int(onsets[window]) + length)
        total[frames] += attention_time[window].T
        count[frames] += 1
    with np.errstate(invalid="ignore"):
        return total / count[:, None]


def dimension_columns(width: int) -> tuple[str, ...]:
    """Return the columns of an embedding of so many dimensions."""
    return tuple(f"dim{index:03d}" for index in range(width))


def embedding_table(embedding: NDArray[np.floating]) -> Table:
    """Return the table of an embedding (450, D): a row per ROI."""
    dimensions = dict(zip(dimension_columns(embedding.shape[1]), embedding.T, strict=True))
    return Table({"name": atlas.roi_names(), "network": atlas.networks(), **dimensions})


def _reconstruction_table(quality: ReconstructionQuality) -> Table:
    table: dict[str, Any] = {"name": atlas.roi_names(), "network": atlas.networks()}
    scores = [name for name in column_names("reconstruction") if name not in table]
    return Table(table | {name: getattr(quality, name) for name in scores})


def _network_table(quality: ReconstructionQuality) -> Table:
    means = quality.network_means(atlas.networks())
    rows = [{"network": network, **scores} for network, scores in means.items()]
    names = column_names("reconstruction_networks")
    return Table({name: [row[name] for row in rows] for name in names})


def _details(
    job: EmbeddingJob,
    cleaned: CleanedSource,
    windows: Windows,
    embedding: FunctionalEmbedding,
    quality: ReconstructionQuality,
) -> dict[str, dict[str, Any]]:
    """Return the sidecar of each product."""
    source = job.embedding_sources
    from_windows = [job.names.uri("window_embeddings")]
    sources = {
        "window_embeddings": source,
        "embedding": from_windows,
        "similarity": from_windows,
        "attention": source,
        "attention_time": source,
        "reconstruction": source,
        "reconstruction_networks": [job.names.uri("reconstruction")],
    }
    sidecars = {
        key: model_sidecar(
            job,
            key,
            uris,
            quality.threads if key.startswith("reconstruction") else embedding.threads,
        )
        for key, uris in sources.items()
    }
    overall = quality.network_means(atlas.networks())[OVERALL]
    domain = judge_reconstruction(job.settings.release.card, overall)
    for sidecar in sidecars.values():
        sidecar["ModelDomain"] = domain.document
    cut = _windows_sidecar(job, cleaned, windows, embedding)
    for key in ("window_embeddings", "embedding", "similarity", "attention", "attention_time"):
        sidecars[key] |= cut
    width = embedding.mean.shape[1]
    sidecars["embedding"] |= columns_of("embedding", dimension_columns(width))
    sidecars["similarity"] |= {
        "Measure": "tanh of the mean over windows of Fisher's z of Pearson correlations",
        "Directed": False,
        "Weighted": True,
    }
    sidecars["attention"] |= {
        "Measure": "attention of the Perceiver's latent of the row to the signal of the column",
        "Directed": True,
        "Weighted": True,
    }
    sidecars["attention_time"] |= {
        "RepetitionTime": windows.repetition_time,
        "SamplingFrequency": 1 / windows.repetition_time,
        "StartTime": 0.0,
    }
    held_out = {
        "Folds": quality.n_folds,
        "EvaluatedWindows": list(quality.windows),
        "ScoredFrames": "those that are not censored",
        "Control": "series presented under permuted ROI labels, same ROIs held out",
        "LinearBaseline": (
            "conditional mean of the held-out ROIs given the others, frame by frame, for a normal "
            "distribution with the group-average functional connectivity of young adults (HCP, as "
            f"in the ENIGMA Toolbox); ridge {RIDGE:g}"
        ),
    }
    for key in ("reconstruction", "reconstruction_networks"):
        sidecars[key] |= cut | held_out
    return sidecars


def _windows_sidecar(
    job: EmbeddingJob, cleaned: CleanedSource, windows: Windows, embedding: FunctionalEmbedding
) -> dict[str, Any]:
    names = np.array(atlas.roi_names())
    deviations = job.deviations(windows.repetition_time)
    stated = {} if deviations is None else {"ModelContractDeviations": deviations}
    return stated | {
        "SourceRepetitionTime": cleaned.repetition_time,
        "WindowRepetitionTime": windows.repetition_time,
        "ResamplingRule": (
            f"runs within {TOLERANCE:.0%} of ModelRepetitionTime pass as they are; others are "
            "resampled as a sum of sines, without frequencies above those of the source"
        ),
        "ScalingRule": (
            f"{job.scaling_rule}; an ROI with values further than {1 / TINY_SPREAD:.0f} times its "
            "spread from the centre is missing"
        ),
        "CensoredFrameRule": (
            "the model sees them interpolated between kept frames (PCHIP), held at both ends"
        ),
        "WindowLength": WINDOW_LENGTH,
        "WindowOnsets": [round(float(onset), 6) for onset in windows.onset_seconds],
        "WindowsLeftOut": windows.n_left_out,
        "WindowRule": f"left out with more than {MAX_CENSORED_SHARE:.0%} of its frames censored",
        "MissingROIs": names[embedding.missing].tolist(),
        "MissingROIRule": "presented to the model as held out; n/a in the outputs of the model",
        "Notes": [*cleaned.notes, *windows.notes],
    }

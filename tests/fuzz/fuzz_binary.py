"""Readers of binary files under fuzzing: images, weights, heads, transforms, streamlines."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from random import Random
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import SimpleITK as sitk
import torch
from fuzz_case import Target, must
from fuzz_mutations import TEXTS, as_json, changed, of_table, scrambled
from model_tiny import HEADS, tiny_states

from bsym_bids import atlas
from bsym_bids.bold.parcellate import parcellate
from bsym_bids.bold.volumes import load_image, open_series, stream
from bsym_bids.dwi.series import gather, open_run
from bsym_bids.dwi.tracks import read_tck
from bsym_bids.dwi.transforms import Affine, load_volume, read_template_transform
from bsym_bids.inputs.records import DwiImage
from bsym_bids.model.weights import Release, load_model
from bsym_bids.outputs.reading import (
    read_embedding,
    read_numbers,
    read_roi_column,
    read_roi_series,
    read_windows,
)
from bsym_bids.prediction.feature_file import matrix_of, open_file, read_index, read_rows
from bsym_bids.prediction.heads import Head, HeadFile, Part, read_heads, write_heads

AFFINE = np.diag([7.0, 7.0, 7.0, 1.0])
AFFINE[:3, 3] = -35.0
#: An affine that lays a small grid over the atlas.
_OVER_ATLAS = np.diag([16.0, 16.0, 16.0, 1.0])
_OVER_ATLAS[:3, 3] = (-72, -104, -60)


# --- NIfTI ---------------------------------------------------------------------------------------


def _image(shape: tuple[int, ...], affine: np.ndarray, kind: Any = np.int16) -> bytes:
    values = np.random.default_rng(0).integers(1, 99, shape).astype(kind)
    image = nib.Nifti1Image(values, affine)
    image.header.set_xyzt_units("mm", "sec")
    if len(shape) > 3:
        image.header["pixdim"][4] = 2.0
    return image.to_bytes()


_FIELDS = (
    "dim",
    "datatype",
    "bitpix",
    "pixdim",
    "vox_offset",
    "scl_slope",
    "scl_inter",
    "xyzt_units",
    "qform_code",
    "sform_code",
    "quatern_b",
    "qoffset_x",
    "srow_x",
    "srow_z",
    "magic",
    "sizeof_hdr",
    "intent_code",
)


def of_header(rng: Random, content: bytes) -> bytes:
    """Return a NIfTI-1 file whose header says something else."""
    header = np.frombuffer(content[:348], nib.Nifti1Header.template_dtype).copy()
    for _ in range(rng.choice([1, 1, 2, 3])):
        name = rng.choice(_FIELDS)
        field = header[name]
        if field.dtype.kind == "S":
            header[name] = rng.choice([b"", b"ni1", b"n+2", b"x" * 4])
            continue
        places = field.reshape(-1)
        at = rng.randrange(len(places))
        if places.dtype.kind == "f":
            value = float(rng.choice([0, -1, 1e-30, 1e30, np.nan, np.inf, -2, 1e6, 3.4e38, 0.001]))
        else:
            info = np.iinfo(places.dtype)
            value = rng.choice([0, 1, -1, 7, 8, 2, 4, 16, 64, 32, 128, 1536, info.max, info.min])
            value = max(info.min, min(info.max, value))
        places[at] = value
    return header.tobytes() + content[348:]


def _damaged(rng: Random, content: bytes) -> bytes:
    """Return an image file, compressed or not, that is not as it was."""
    match rng.randrange(10):
        case 0:
            return scrambled(rng, content)
        case 1:
            return scrambled(rng, gzip.compress(content, 1))
        case 2:
            return gzip.compress(content[: rng.randrange(len(content))], 1)
        case 3:
            return gzip.compress(of_header(rng, content) + bytes(rng.choice([1, 10**7])), 1)
        case 4:
            return of_header(rng, content)
        case 5:
            image = nib.Nifti1Image.from_bytes(content)
            text = rng.choice(["x" * 100, "<CIFTI></CIFTI>", "<" * 50])
            image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", text.encode()))
            return gzip.compress(scrambled(rng, image.to_bytes()), 1)
    return gzip.compress(of_header(rng, content), 1)


def _volume(folder: Path, rng: Random) -> None:
    path = folder / f"x{rng.choice(['.nii.gz', '.nii.gz', '.nii'])}"
    path.write_bytes(_damaged(rng, _image((10, 11, 12), AFFINE)))
    volume = load_volume(path)
    must(volume.data.ndim == 3 and 0 not in volume.data.shape, "shape")
    must(bool(np.isfinite(volume.affine).all()), "affine")
    must(bool((volume.zooms > 1e-3).all() and (volume.zooms < 1e3).all()), f"size {volume.zooms}")


def _series(folder: Path, rng: Random) -> None:
    path = folder / f"x{rng.choice(['.nii.gz', '.nii.gz', '.nii'])}"
    path.write_bytes(_damaged(rng, _image((6, 7, 8, 5), AFFINE)))
    series = open_series(path, load_image(path))
    must(min(*series.shape, series.n_volumes) > 0, f"shape {series.shape}")
    seconds = series.repetition_time
    must(seconds is None or 0 < seconds < np.inf, f"TR {seconds}")
    must(bool(np.isfinite([series.slope, series.intercept]).all()) and series.slope != 0, "slope")
    for number, volume in enumerate(stream(series)):
        series.values(volume)
        if number > 100:
            break


def _diffusion_setup(folder: Path) -> Any:
    vectors = np.random.default_rng(0).standard_normal((3, 9))
    (folder / "x.bval").write_text("0 " + "1000 " * 8)
    (folder / "x.bvec").write_text("\n".join(" ".join(map(str, row)) for row in vectors))
    return folder, _image((10, 10, 10, 9), AFFINE)


def _diffusion(state: Any, rng: Random) -> None:
    folder, content = state
    path = folder / "x.nii.gz"
    path.write_bytes(_damaged(rng, content))
    run = open_run(DwiImage(path, folder / "x.bval", folder / "x.bvec"))
    found = gather([run], folder / "out.nii", "x")
    data = np.asarray(nib.load(found.image).dataobj)
    must(bool(np.isfinite(data).all()) and data.shape[3] == len(found.gradients), "series")


def _parcellated_setup(folder: Path) -> Any:
    series, mask = _image((9, 13, 9, 3), _OVER_ATLAS), _image((9, 13, 9), _OVER_ATLAS)
    return folder, series, mask


def _parcellated(state: Any, rng: Random) -> None:
    folder, series, mask = state
    path, mask_path = folder / "x_space-MNI152NLin6Asym_bold.nii.gz", folder / "mask.nii.gz"
    which = rng.random() < 0.7
    path.write_bytes(_damaged(rng, series) if which else gzip.compress(series, 1))
    mask_path.write_bytes(gzip.compress(mask, 1) if which else _damaged(rng, mask))
    found = parcellate(path, mask_path)
    must(not np.isinf(found.timeseries).any(), "infinite series")
    must(bool(((found.coverage >= 0) & (found.coverage <= 1)).all()), "coverage")
    seconds = found.repetition_time
    must(seconds is None or 0 < seconds < np.inf, f"TR {seconds}")


def _cifti_setup(folder: Path) -> Any:
    from bsym_bids.atlas.grayordinates import _dlabel

    models = _dlabel()[1]
    some = models[np.r_[0:300, 59412:59500]]
    axes = (nib.cifti2.SeriesAxis(0, 2.0, 6), some)
    values = np.random.default_rng(0).standard_normal((6, len(some))).astype(np.float32)
    nib.save(nib.Cifti2Image(values, axes), folder / "good.dtseries.nii")
    return folder, (folder / "good.dtseries.nii").read_bytes()


def _cifti(state: Any, rng: Random) -> None:
    folder, content = state
    path = folder / "x_space-fsLR_den-91k_bold.dtseries.nii"
    match rng.randrange(4):
        case 0:  # what the XML says, in as many letters
            words = [b'"6"', b"SERIES", b"CORTEX", b"32492", b"Voxel", b"</", b"BrainModel", b"="]
            word = rng.choice([w for w in words if w in content])
            at = content.index(word)
            other = bytes(rng.choice(b'0123456789-<>&"abcx ') for _ in word)
            content = content[:at] + other + content[at + len(word) :]
        case 1:
            content = content[:540] + scrambled(rng, content[540:4000]) + content[4000:]
        case 2:
            content = scrambled(rng, content[:540]) + content[540:]
        case _:
            content = scrambled(rng, content)
    path.write_bytes(content)
    found = parcellate(path)
    must(not np.isinf(found.timeseries).any(), "infinite series")
    must(found.repetition_time is None or 0 < found.repetition_time < np.inf, "TR")


# --- weights -------------------------------------------------------------------------------------


class _Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.canary}'",)


def _weights_setup(folder: Path) -> Any:
    states = {
        branch: {key: torch.from_numpy(np.array(value)) for key, value in state.items()}
        for branch, state in tiny_states().items()
    }
    paths = {}
    for branch, state in states.items():
        paths[branch] = folder / f"{branch}.pth"
        torch.save(state, paths[branch])
    return folder, states, paths


def _state_changed(rng: Random, state: dict[Any, Any]) -> Any:
    state = dict(state)
    for _ in range(rng.choice([1, 1, 2])):
        key = rng.choice(list(state))
        value = state[key]
        if not isinstance(value, torch.Tensor) or value.numel() > 10**6 or value.is_quantized:
            continue
        match rng.randrange(16):
            case 0:
                del state[key]
            case 1:
                state[rng.choice(["x", "layers.99999999.norm1.weight", f"{key}.0", ""])] = value
            case 2:
                state[7] = state.pop(key)
            case 3:
                state[key] = torch.full_like(value, rng.choice([np.nan, np.inf, 1e38, 0]))
            case 4:
                kinds = [torch.int64, torch.complex64, torch.bool, torch.float64, torch.bfloat16]
                state[key] = value.to(rng.choice([*kinds, torch.float16, torch.uint8]))
            case 5:
                state[key] = value.reshape(-1)
            case 6:  # a number that says that it is a million million
                shape = rng.choice([(10**6, 10**6), (10**12,), (2**31, 4), (10**9,)])
                state[key] = torch.zeros(1).expand(*shape)
            case 7 if value.ndim == 2:
                state[key] = value.to_sparse()
            case 8:
                state[key] = rng.choice([None, "x", [1, 2], 3.0, {"a": value}, (value,)])
            case 9 if value.ndim:
                state[key] = value[..., :0]
            case 10:
                state[key] = torch.nn.Parameter(value)
            case 11:
                state[key] = value.T if value.ndim == 2 else value[None]
            case 12:
                state[key] = torch.empty(value.shape, device="meta")
            case 13:
                state[key] = value.expand(rng.choice([1, 3, 1000]), *value.shape)
            case 14:
                state[key] = torch.quantize_per_tensor(value, 0.1, 0, torch.qint8)
            case _:
                state[key] = value.new_zeros(tuple(s + 1 for s in value.shape))
    return state


def _weights(state: Any, rng: Random) -> None:
    folder, states, paths = state
    branch, canary = rng.choice(list(states)), folder / "canary"
    path, buffer = folder / "changed.pth", io.BytesIO()
    content = paths[branch].read_bytes()
    match rng.randrange(10):
        case 0 | 1 | 2:
            content = scrambled(rng, content)
        case 3:
            evil = rng.choice([_Evil(canary), {"conv1d.weight": _Evil(canary)}])
            content = pickle.dumps(evil)
        case 4:
            torch.save({**states[branch], "x": _Evil(canary)}, buffer)
            content = buffer.getvalue()
        case 5:
            torch.save(states[branch], buffer, _use_new_zipfile_serialization=False)
            content = scrambled(rng, buffer.getvalue())
        case 6:
            content = _compressed_archive(rng, content)
        case _:
            torch.save(_state_changed(rng, states[branch]), buffer)
            content = buffer.getvalue()
    path.write_bytes(content)
    files = paths | {branch: path}
    sums = {key: hashlib.sha256(one.read_bytes()).hexdigest() for key, one in files.items()}
    card = {
        "network": dict(HEADS),
        "files": {key: {"path": one.name} for key, one in files.items()},
    }
    if rng.random() < 0.2:
        card["network"][rng.choice(list(HEADS))] = rng.choice([0, -1, 3, 10**9, True, 2.0, "2"])
    try:
        load_model(Release("x", "1", True, card, files, sums, folder))
    finally:
        must(not canary.exists(), "code in a file of weights was run")


def _compressed_archive(rng: Random, content: bytes) -> bytes:
    """Return an archive of torch whose entries are compressed, or say that they are larger."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        entries = old.infolist()
        longer = rng.choice([entry for entry in entries if "/data/" in entry.filename])
        for entry in entries:
            data = old.read(entry)
            if entry is longer:
                data = bytes(rng.choice([0, len(data), 4 * 10**8]))
            new.writestr(entry.filename, data, zipfile.ZIP_DEFLATED, compresslevel=1)
    return buffer.getvalue()


# --- archives of arrays --------------------------------------------------------------------------


def _arrays_changed(rng: Random, arrays: dict[str, np.ndarray]) -> bytes:
    """Return an ``.npz`` with some of its arrays changed."""
    arrays = dict(arrays)
    allow = False
    for _ in range(rng.choice([1, 1, 2])):
        name = rng.choice(list(arrays))
        value = np.atleast_1d(arrays[name])
        match rng.randrange(10):
            case 0 if len(arrays) > 1:
                del arrays[name]
            case 1 if value.dtype != object:
                arrays[name] = value.astype(rng.choice(["S8", "U8", "c16", "?", "i8", "f2"]))
            case 2:
                arrays[name] = np.full(value.shape, rng.choice([np.nan, np.inf, 1e308, -1]))
            case 3:
                arrays[name] = value[:0]
            case 4:
                arrays[name] = value.reshape(-1)[: rng.randrange(1, value.size + 1)]
            case 5:
                arrays[name], allow = np.array([{"a": 1}], dtype=object), True
            case 6:
                arrays[name] = np.zeros((1,) * 20)
            case 7:
                arrays[name] = np.array(7.0)
            case 8:
                arrays[name] = np.zeros(2, dtype=[("a", "f8"), ("b", "S3")])
            case _:
                arrays[name] = np.concatenate([value, value]) if value.ndim else value
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=allow, **arrays)
    return buffer.getvalue()


def _with_lying_header(rng: Random, content: bytes) -> bytes:
    """Return an archive whose arrays say that they have other shapes than they have."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            if rng.random() < 0.5:
                shape = rng.choice([b"(99999999999,)", b"(100000, 100000)", b"(-3,)", b"(3.5,)"])
                start = data.find(b"'shape': ")
                end = data.find(b")", start) + 1
                data = data[: start + 9] + shape + data[end:]
            if rng.random() < 0.05:
                data += bytes(10**8)
            new.writestr(entry.filename, data, zipfile.ZIP_DEFLATED, compresslevel=1)
    return buffer.getvalue()


def _archive(rng: Random, content: bytes) -> bytes:
    arrays = dict(np.load(io.BytesIO(content)))
    match rng.randrange(8):
        case 0 | 1 | 2:
            return scrambled(rng, content)
        case 3:
            return _with_lying_header(rng, content)
    return _arrays_changed(rng, arrays)


def _heads_setup(folder: Path) -> Any:
    draw = np.random.default_rng(0)
    heads = {
        key: Head(
            {"fc": Part(draw.random((6, m)).astype("f4"), draw.random(6).astype("f4"))},
            ("age", "fd_mean"),
            draw.random(2),
            draw.random((2, m)),
            draw.random(m),
            np.array([0.5, 0.5]),
        )
        for key, m in (("fc", 1), ("functional", 1))
    }
    about = {
        "Target": "sex",
        "TaskType": "classification",
        "Classes": ["F", "M"],
        "Units": "",
        "Headline": "functional",
        "Scores": {"fc": {"auc": 0.7}},
        "Settings": {"TimeSeriesSettings.HighPass": "0.01"},
        "PredictionSettings": {"Folds": 5},
    }
    path = folder / "good.npz"
    write_heads(path, HeadFile(heads, about))
    return folder, path.read_bytes()


def _heads(state: Any, rng: Random) -> None:
    folder, content = state
    if rng.random() < 0.5:
        arrays = dict(np.load(io.BytesIO(content)))
        document = changed(rng, json.loads(bytes(arrays["about"])))
        arrays["about"] = np.frombuffer(as_json(rng, document), np.uint8)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        content = buffer.getvalue()
    else:
        content = _archive(rng, content)
    path = folder / "head.npz"
    path.write_bytes(content)
    file = read_heads(path)
    features = np.random.default_rng(0).random((4, 6))
    classes, units = file.about.get("Classes", []), file.about.get("Units", "")
    must(isinstance(file.about["Target"], str) and isinstance(units, str), "about")
    must(all(isinstance(name, str) for name in classes), "classes")
    dict(file.about.get("Settings", {})).keys()
    for key, head in file.heads.items():
        must(all(isinstance(name, str) for name in (*head.confounds, *head.parts)), "names")
        n_features = {kind: len(part.means) for kind, part in head.parts.items()}
        given = {kind: np.resize(features, (4, count)) for kind, count in n_features.items()}
        found = file.predict(key, given, np.zeros((4, len(head.confounds))))
        must(bool(np.isfinite(found).all()), "predictions are not finite")
        if file.about["TaskType"] == "classification":
            must(found.shape == (4, len(classes)), "classes")
            must(head.shares.shape == (len(classes),), "shares")


def _windows_setup(folder: Path) -> Any:
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        embedding=np.zeros((2, 450, 3), "f4"),
        masked=np.zeros((450, 3), "f4"),
        onset=np.arange(2.0),
        censored_share=np.zeros(2),
    )
    return folder, buffer.getvalue()


def _windows(state: Any, rng: Random) -> None:
    folder, content = state
    path = folder / "x.npz"
    path.write_bytes(_archive(rng, content))
    found = read_windows(path)
    must(found["embedding"].ndim == 3 and found["embedding"].shape[1] == 450, "shape")
    must(found["masked"].shape == found["embedding"].shape[1:], "masked")
    must(all(value.dtype.kind == "f" for value in found.values()), "types")


# --- tables of the output dataset ----------------------------------------------------------------


def _tables_setup(folder: Path) -> Any:
    from bsym_bids.outputs.embedding import embedding_table
    from bsym_bids.outputs.tables import Matrix, Table

    names, values = atlas.roi_names(), np.random.default_rng(0).random((450, 3))
    paths = {name: folder / f"{name}.tsv" for name in ("series", "rois", "embedding", "quality")}
    Matrix(values.T, names).write(paths["series"])
    Table({"name": names, "volume": values[:, 0]}).write(paths["rois"])
    embedding_table(values).write(paths["embedding"])
    Table({"fd_mean": [0.1], "n": [3]}).write(paths["quality"])
    return {name: (path, path.read_text()) for name, path in paths.items()}


def _tables(state: Any, rng: Random) -> None:
    name = rng.choice(list(state))
    path, text = state[name]
    path.write_bytes(of_table(rng, text))
    match name:
        case "series":
            found = read_roi_series(path)
        case "rois":
            found = read_roi_column(path, "volume")
        case "embedding":
            found = read_embedding(path)
        case _:
            found = read_numbers(path, "fd_mean")
    must(found.dtype == np.float64, "type")
    must(not np.isinf(found).any(), "infinite")


# --- transforms and streamlines ------------------------------------------------------------------


def _transform_setup(folder: Path) -> Any:
    vectors = np.random.default_rng(0).uniform(-5, 5, (4, 5, 6, 3))
    image = sitk.GetImageFromArray(vectors, isVector=True)
    image.SetSpacing((30.0, 30.0, 30.0))
    whole = sitk.CompositeTransform(3)
    whole.AddTransform(sitk.DisplacementFieldTransform(image))
    whole.AddTransform(sitk.AffineTransform(3))
    rigid = sitk.CompositeTransform(3)
    rigid.AddTransform(sitk.Euler3DTransform((1.0, 2.0, 3.0), 0.1, 0.2, 0.3, (1.0, 2.0, 3.0)))
    contents = []
    for index, transform in enumerate((whole, rigid)):
        path = folder / f"good{index}.h5"
        sitk.WriteTransform(transform, str(path))
        contents.append(path.read_bytes())
    return folder, contents


def _transform(state: Any, rng: Random) -> None:
    folder, contents = state
    path = folder / "x_xfm.h5"
    path.write_bytes(rng.choice(contents))
    if rng.random() < 0.6:
        with h5py.File(path, "r+") as file:
            _hdf_changed(rng, file)
    else:
        path.write_bytes(scrambled(rng, path.read_bytes()))
    chain = read_template_transform(path)
    must(len(chain) > 0, "no transform")
    for part in chain:
        values = part.matrix if isinstance(part, Affine) else part.affine
        must(values.shape == (4, 4) and bool(np.isfinite(values).all()), "matrix")
        must(abs(np.linalg.det(values[:3, :3])) > 1e-12, "no inverse")
    points = np.zeros((3, 3))
    for part in chain:
        points = part(points)
    must(bool(np.isfinite(points).all()), "points")


def _hdf_changed(rng: Random, file: h5py.File) -> None:
    found: list[str] = []
    file.visit(found.append)
    name = rng.choice(found)
    item = file[name]
    if isinstance(item, h5py.Group) or rng.random() < 0.15:
        del file[name]
        if rng.random() < 0.5:
            file[name] = rng.choice([h5py.SoftLink("/nowhere"), h5py.ExternalLink("x.h5", "/y")])
        return
    if item.dtype.kind == "f":
        values = item[()]
        match rng.randrange(6):
            case 0:
                values.reshape(-1)[rng.randrange(values.size)] = float(
                    rng.choice([0, -1, np.nan, np.inf, 1e30, 3.5, 1e9, 2**31, -7])
                )
                item[...] = values
            case 1:
                del file[name]
                file[name] = values.reshape(-1)[: rng.randrange(values.size)]
            case 2:  # as large as it says only when it is read
                del file[name]
                shape = rng.choice([10**12, 10**10, 3 * 10**8])
                file.create_dataset(name, shape=(shape,), dtype="f8", chunks=(1000,))
            case 3:
                del file[name]
                file[name] = rng.choice(["text", b"x", 3, np.zeros((2, 2))])
            case _:
                item[...] = np.full(values.shape, float(rng.choice([0, np.nan, 1e300, -1, 7])))
        return
    del file[name]
    texts = ["AffineTransform_double_3_3", "DisplacementFieldTransform_float_3_3", "x", "",
             "CompositeTransform_double_3_3", "BSplineTransform_double_3_3",
             "MatrixOffsetTransformBase_double_3_3", "AffineTransform_double_2_2"]  # fmt: skip
    file[name] = rng.choice([[rng.choice(texts)], rng.choice(texts), 3.0, []])


def _tracks_setup(folder: Path) -> Any:
    from bsym_bids.dwi.tracks import Streamlines, write_tck

    path = folder / "good.tck"
    points = np.random.default_rng(0).random((40, 3)).astype("f4")
    write_tck(path, Streamlines(points, np.array([0, 10, 10, 40])), {"x": "y"})
    return folder, path.read_bytes()


def _tracks(state: Any, rng: Random) -> None:
    folder, content = state
    path = folder / "x.tck"
    lines = [b"count: ", b"datatype: Float32LE", b"file: . ", b"END", b"mrtrix tracks"]
    if rng.random() < 0.4:
        line = rng.choice(lines)
        other = rng.choice(TEXTS).encode("utf-8", "replace")[:6000]
        content = content.replace(line, line + other if rng.random() < 0.5 else other, 1)
    else:
        content = scrambled(rng, content)
    path.write_bytes(content)
    for piece in read_tck(path):
        must(bool(np.isfinite(piece.points).all()), "points")
        must(piece.offsets[-1] == len(piece.points), "offsets")


def _features_setup(folder: Path) -> Any:
    from bsym_bids.prediction.feature_file import LAYOUT, Entry, Writer

    path = folder / "good.h5"
    with h5py.File(path, "w", libver="latest") as file:
        file.attrs["layout"] = LAYOUT
        writer = Writer(file, "fc", "1", 4)
        for index in range(3):
            entry = Entry(((1, 2),), ("x",), 5)
            writer.append((f"sub-{index}",), np.arange(5, dtype="f4"), entry)
        writer.finish()
    return folder, path.read_bytes()


def _features(state: Any, rng: Random) -> None:
    folder, content = state
    path = folder / "features.h5"
    path.write_bytes(content)
    if rng.random() < 0.5:
        with h5py.File(path, "r+") as file:
            if rng.random() < 0.5:
                document = changed(rng, json.loads(file["fc/index"][()].tobytes()))
                del file["fc/index"]
                file["fc/index"] = np.frombuffer(as_json(rng, document), np.uint8)
            else:
                name = rng.choice(["fc/values", "fc/index", "fc"])
                del file[name]
                file[name] = rng.choice([np.zeros(3), np.zeros((3, 2)), "x", 1])
                if name == "fc":
                    file.attrs["layout"] = rng.choice([1, 2, "x"])
    else:
        path.write_bytes(scrambled(rng, content))
    file = open_file(path)
    try:
        index = read_index(file, "fc", "1")
        rows = sorted(entry.row for entry in index.values() if not entry.problem)
        if rows:
            must(read_rows(matrix_of(file, "fc"), rows).shape[0] == len(rows), "rows")
    finally:
        if file is not None:
            file.close()


def _same(folder: Path) -> Path:
    return folder


TARGETS = (
    Target("NIfTI volumes", _same, _volume, 14),
    Target("NIfTI series", _same, _series, 14),
    Target("diffusion series", _diffusion_setup, _diffusion, 8),
    Target("BOLD series and masks", _parcellated_setup, _parcellated, 4, 20.0),
    Target("CIFTI series", _cifti_setup, _cifti, 6, 20.0),
    Target("weights", _weights_setup, _weights, 14, 10.0),
    Target("heads", _heads_setup, _heads, 14),
    Target("window archives", _windows_setup, _windows, 4),
    Target("tables of outputs", _tables_setup, _tables, 6),
    Target("transforms", _transform_setup, _transform, 12, 10.0),
    Target("streamlines", _tracks_setup, _tracks, 8),
    Target("feature files", _features_setup, _features, 4),
)

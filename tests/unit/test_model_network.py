"""The network: state dicts, inputs, held-out ROIs, attention."""

import numpy as np
import pytest
import torch
from model_recipe import make_states, spatial_shapes, structural_shapes
from model_tiny import (
    HEADS,
    ROIS,
    STEPS,
    WIDTH,
    one_thread,  # noqa: F401 (used by every test)
    tiny_model,
    tiny_sc,
    tiny_states,
    tiny_windows,
)

from bsym_bids.errors import BadDataError
from bsym_bids.model import BrainSymphony
from bsym_bids.model.attention import signed_softmax
from bsym_bids.model.brainsymphony import laplacian_code

BRANCHES = ("spatial", "temporal", "context", "perceiver", "structural", "gate")


def build(states):
    return BrainSymphony.from_state_dicts(**states, **HEADS)


def refused(states, *words, **options):
    with pytest.raises(BadDataError) as error:
        BrainSymphony.from_state_dicts(**states, **(HEADS | options))
    for word in words:
        assert word in str(error.value)


# --- state dicts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("branch", BRANCHES)
def test_each_key_is_required_and_named(branch):
    states = tiny_states()
    for key in list(states[branch]):
        less = {name: value for name, value in states[branch].items() if name != key}
        if branch == "structural" and key == "pos_embed":
            build({branch: less})  # then the code is the Laplacian one
            continue
        refused({branch: less}, branch, key)


@pytest.mark.parametrize("branch", BRANCHES)
def test_a_wrong_shape_is_named(branch):
    states = tiny_states()
    free = {"pos_enc.pe", "latents"}  # the only parameter of that size: it decides the size
    for key, value in states[branch].items():
        if key in free or value.ndim == 0:
            continue
        wrong = states[branch] | {key: np.concatenate([value, value])}
        refused({branch: wrong}, branch, key)


def test_unexpected_key_is_named():
    states = tiny_states()
    states["context"]["decoder.6.weight"] = np.ones((1, 1), np.float32)
    refused({"context": states["context"]}, "context", "decoder.6.weight is unexpected")


def test_missing_layer_in_the_middle_is_named():
    spatial = tiny_states()["spatial"]
    spatial = {key.replace("layers.1.", "layers.2."): value for key, value in spatial.items()}
    refused({"spatial": spatial}, "spatial", "layers.1.attn.qkv.weight is missing")


def test_absurd_layer_number_is_refused_without_building():
    spatial = tiny_states()["spatial"]
    spatial["layers.99999999999.norm1.weight"] = spatial["layers.0.norm1.weight"]
    refused({"spatial": spatial}, "spatial", "layers")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_named(value):
    states = tiny_states()
    states["temporal"]["layers.1.mlp.2.bias"][3] = value
    refused(states, "temporal", "layers.1.mlp.2.bias", "not finite")


@pytest.mark.parametrize("value", [np.ones(6, int), None, "text", [1.0]])
def test_values_that_are_no_weights_are_named(value):
    context = tiny_states()["context"] | {"conv1d.bias": value}
    refused({"context": context}, "context", "conv1d.bias")


@pytest.mark.parametrize("state", [[1, 2], "spatial.pth", {1: np.ones(3)}])
def test_what_is_no_state_dict_is_refused(state):
    refused({"spatial": state}, "spatial", "not a state dict")


def test_empty_state_dict_and_none_at_all():
    refused({"spatial": {}}, "spatial")
    refused({}, "no state dict")


@pytest.mark.parametrize("branch", ["spatial", "temporal", "perceiver", "structural"])
@pytest.mark.parametrize("heads", [3, 0, -2, 2.0, True])
def test_heads_have_to_divide_the_width(branch, heads):
    option = f"{branch}_heads"
    refused({branch: tiny_states()[branch]}, branch, option, **{option: heads})


@pytest.mark.parametrize(
    "option", [{"attention": "third_hop"}, {"max_hops": 0}, {"diffusion_theta": np.nan}]
)
def test_structural_options_are_checked(option):
    refused({"structural": tiny_states()["structural"]}, next(iter(option)), **option)


@pytest.mark.parametrize(
    ("branch", "key", "other", "other_key"),
    [
        ("temporal", "embedding_layer.weight", "perceiver", "latents"),
        ("structural", "input_proj.weight", "perceiver", "latents"),
        ("spatial", "embedding_layer.weight", "perceiver", "head.2.weight"),
    ],
)
def test_branches_of_different_networks_are_refused(branch, key, other, other_key):
    states = tiny_states()
    value = states[branch][key]
    states[branch][key] = np.concatenate([value, value[:, :1]], axis=1)
    if branch == "structural":
        states[branch]["pos_embed"] = np.ones((ROIS + 1, WIDTH), np.float32)
    refused(states, branch, key, other, other_key)


def test_too_few_positions_are_refused():
    states = tiny_states()
    states["spatial"]["pos_enc.pe"] = states["spatial"]["pos_enc.pe"][:, : ROIS - 1]
    refused(states, "spatial", "pos_enc.pe")


def test_arrays_tensors_and_half_precision_are_taken_and_copied():
    states = tiny_states()
    tensors = {
        branch: {key: torch.from_numpy(value) for key, value in state.items()}
        for branch, state in states.items()
    }
    doubles = {
        branch: {key: value.astype(np.float64) for key, value in state.items()}
        for branch, state in states.items()
    }
    windows = tiny_windows()
    expected = build(states)(fmri=windows).reconstruction
    assert torch.equal(build(tensors)(fmri=windows).reconstruction, expected)
    assert torch.equal(build(doubles)(fmri=windows).reconstruction, expected)
    model = build(tensors)
    tensors["spatial"]["pos_enc.pe"].zero_()
    assert torch.equal(model(fmri=windows).reconstruction, expected)


def test_graph_transformer_with_and_without_the_unused_projection():
    learnable = tiny_states()["structural"]
    bare = {key: value for key, value in learnable.items() if "positional_proj" not in key}
    sc = tiny_sc()
    assert torch.equal(
        build({"structural": learnable})(sc=sc).structural_embedding,
        build({"structural": bare})(sc=sc).structural_embedding,
    )


def test_sizes_of_the_release():
    states = make_states(0)
    states["structural"] = {
        key: np.zeros(shape, np.float32) for key, shape in structural_shapes("laplacian").items()
    }
    states["spatial"] = {
        key: np.zeros(shape, np.float32) for key, shape in spatial_shapes("gradients").items()
    }
    model = BrainSymphony.from_state_dicts(**states)
    assert (model.rois, model.steps) == (450, 200)
    assert len(model.spatial.layers) == len(model.temporal.layers) == 6
    assert len(model.perceiver.latent_transformers) == 1
    assert model.spatial.gradients == 10
    assert model.structural.eigenvectors == 30
    assert not any(parameter.requires_grad for parameter in model.parameters())


# --- partial networks and inputs -----------------------------------------------------------------


def test_all_branches_give_all_outputs():
    output = tiny_model()(fmri=tiny_windows(), sc=tiny_sc())
    shapes = {name: tuple(value.shape) for name, value in vars(output).items()}
    embedding, square, series = (2, ROIS, WIDTH), (2, ROIS, ROIS), (2, ROIS, STEPS)
    assert shapes == {
        "spatial_embedding": embedding,
        "temporal_embedding": (2, STEPS, WIDTH),
        "context_prediction": series,
        "functional_embedding": embedding,
        "reconstruction": series,
        "attention_roi": square,
        "attention_time": series,
        "structural_embedding": embedding,
        "structural_attention": square,
        "fused_embedding": embedding,
        "gate": embedding,
    }


@pytest.mark.parametrize(
    ("branches", "expected"),
    [
        (["spatial"], {"spatial_embedding"}),
        (["temporal", "gate"], {"temporal_embedding"}),
        (["context", "perceiver"], {"context_prediction"}),
        (["structural"], {"structural_embedding", "structural_attention"}),
    ],
)
def test_part_of_the_branches_gives_what_it_can(branches, expected):
    states = tiny_states()
    model = build({name: states[name] for name in branches})
    output = model(fmri=tiny_windows(), sc=tiny_sc())
    assert {name for name, value in vars(output).items() if value is not None} == expected


def test_what_is_not_asked_for_is_left_out():
    model = tiny_model()
    inputs = {"fmri": tiny_windows(), "sc": tiny_sc()}
    full = model(**inputs)
    fast = model(**inputs, attention_maps=False, context_prediction=False)
    left_out = {"attention_roi", "attention_time", "structural_attention", "context_prediction"}
    assert {name for name, value in vars(fast).items() if value is None} == left_out
    for name, value in vars(full).items():
        if name not in left_out:
            assert torch.equal(getattr(fast, name), value), name


def test_nothing_asked_for_is_nothing_to_compute():
    model = build({"structural": tiny_states()["structural"]})
    with pytest.raises(BadDataError, match="nothing to compute"):
        model(fmri=tiny_windows(), attention_maps=False, context_prediction=False)


def test_one_modality_gives_the_same_as_both():
    model = tiny_model()
    both = model(fmri=tiny_windows(), sc=tiny_sc())
    functional, structural = model(fmri=tiny_windows()), model(sc=tiny_sc())
    assert torch.equal(functional.functional_embedding, both.functional_embedding)
    assert torch.equal(structural.structural_embedding, both.structural_embedding)
    assert functional.structural_embedding is functional.fused_embedding is None
    assert structural.functional_embedding is structural.gate is None


@pytest.mark.parametrize("threads", [1, 2])
def test_windows_and_participants_do_not_touch_each_other(threads):
    torch.set_num_threads(threads)
    model = tiny_model(attention="multi_hop")
    together = model(fmri=tiny_windows(), sc=tiny_sc())
    for i in range(2):
        alone = model(fmri=tiny_windows()[[i]], sc=tiny_sc()[[i]])
        for name, value in vars(alone).items():
            np.testing.assert_allclose(value, getattr(together, name)[[i]], atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({}, "nothing to compute"),
        ({"fmri": tiny_windows()[0]}, "fmri"),
        ({"fmri": tiny_windows()[:, :-1]}, "fmri"),
        ({"fmri": tiny_windows()[:, :, :-1]}, "fmri"),
        ({"fmri": tiny_windows()[:0]}, "empty"),
        ({"fmri": tiny_windows().astype(int)}, "fmri"),
        ({"fmri": tiny_windows().astype(complex)}, "fmri"),
        ({"fmri": torch.zeros(2, ROIS, STEPS, dtype=torch.int64)}, "fmri"),
        ({"fmri": tiny_windows().tolist()}, "fmri"),
        ({"fmri": tiny_windows() * np.nan}, "fmri"),
        ({"fmri": tiny_windows().astype(float) * 1e60}, "fmri"),
        ({"sc": tiny_sc()[:, :, :-1]}, "sc"),
        ({"sc": tiny_sc() + np.inf}, "sc"),
        ({"sc": tiny_sc(3), "fmri": tiny_windows(2)}, "sc"),
        ({"fmri": tiny_windows(), "roi_mask": np.zeros((2, ROIS))}, "roi_mask"),
        ({"fmri": tiny_windows(), "roi_mask": np.zeros(ROIS, bool)}, "roi_mask"),
        ({"sc": tiny_sc(), "roi_mask": np.zeros((2, ROIS), bool)}, "roi_mask"),
    ],
)
def test_wrong_inputs_are_named(arguments, word):
    with pytest.raises(BadDataError, match=word):
        tiny_model()(**arguments)


def test_gradients_are_asked_for_when_needed():
    states = tiny_states()
    del states["spatial"]["pos_enc.pe"]
    draw = np.random.default_rng(0)
    states["spatial"]["pos_enc.proj.weight"] = draw.standard_normal((WIDTH, 4))
    states["spatial"]["pos_enc.proj.bias"] = draw.standard_normal(WIDTH)
    model = build(states)
    with pytest.raises(BadDataError, match="gradients"):
        model(fmri=tiny_windows())
    with pytest.raises(BadDataError, match="gradients"):
        model(fmri=tiny_windows(), gradients=np.ones((2, ROIS, 3)))
    with pytest.raises(BadDataError, match="gradients"):
        model(fmri=tiny_windows(), gradients=np.full((2, ROIS, 4), np.nan))
    assert model(fmri=tiny_windows(), gradients=np.ones((2, ROIS, 4))).reconstruction is not None


# --- held-out ROIs -------------------------------------------------------------------------------


def test_nothing_of_a_held_out_roi_enters():
    model = tiny_model()
    windows = tiny_windows()
    mask = np.zeros((2, ROIS), bool)
    mask[0, [1, 5]] = mask[1, 7] = True
    expected = model(fmri=windows, roi_mask=mask)
    for other in (0.0, 1e6, np.nan):
        changed = np.where(mask[:, :, None], np.float32(other), windows)
        output = model(fmri=changed, roi_mask=mask)
        for name, value in vars(expected).items():
            if value is not None:
                assert torch.equal(getattr(output, name), value), name
    unmasked = model(fmri=windows)
    assert not torch.allclose(unmasked.functional_embedding, expected.functional_embedding)


def test_held_out_rois_are_zeros_and_mask_tokens():
    model = tiny_model()
    windows = tiny_windows(1)
    mask = np.zeros((1, ROIS), bool)
    mask[0, 3] = True
    output = model(fmri=windows, roi_mask=mask)
    zeros, tokens = windows.copy(), windows.copy()
    zeros[0, 3], tokens[0, 3] = 0, model.context.mask_token.item()
    assert torch.equal(output.spatial_embedding, model(fmri=zeros).spatial_embedding)
    assert torch.equal(output.temporal_embedding, model(fmri=zeros).temporal_embedding)
    assert torch.equal(output.context_prediction, model(fmri=tokens).context_prediction)


# --- attention -----------------------------------------------------------------------------------


def test_signed_softmax_is_the_published_formula():
    scores = np.random.default_rng(0).normal(0, 5, (2, 3, 7, 7))
    scores[..., 2] = 0
    size = np.exp(np.abs(scores))
    expected = np.sign(scores) * size / (size.sum(-1, keepdims=True) + 1e-10)
    np.testing.assert_allclose(signed_softmax(torch.from_numpy(scores)), expected, rtol=1e-12)


def test_signed_softmax_does_not_overflow():
    scores = torch.tensor([[500.0, -499.0, 0.0], [-80.0, 0.0, 80.0], [1e30, 1.0, -1e30]])
    part = 1 / (1 + np.exp(-1))
    expected = [[part, part - 1, 0], [-0.5, 0, 0.5], [0.5, 0, -0.5]]
    np.testing.assert_allclose(signed_softmax(scores), expected, atol=1e-6)


def test_large_connectome_weights_do_not_overflow():
    output = tiny_model()(sc=tiny_sc() * 1e4)
    assert torch.isfinite(output.structural_embedding).all()
    assert torch.isfinite(output.structural_attention).all()


def test_no_edges_no_attention():
    sc = tiny_sc()
    sc[:, 4] = 0
    for attention in ("first_hop", "multi_hop"):
        output = tiny_model(attention=attention)(sc=sc)
        assert (output.structural_attention[:, 4] == 0).all()


def test_edge_weights_of_more_hops():
    sc = tiny_sc(1)
    square = sc[0] @ sc[0] / np.linalg.norm(sc[0] @ sc[0])
    cube = square @ sc[0] / np.linalg.norm(square @ sc[0])
    model = tiny_model(attention="multi_hop", max_hops=3).structural
    edges = model.edges(torch.from_numpy(sc))
    for edge, expected in zip(edges, (sc[0], square, cube), strict=True):
        np.testing.assert_allclose(edge[0], expected, atol=1e-5)


def test_edge_weights_of_diffusion():
    sc = tiny_sc(1).astype(np.float64)
    root = np.diag(np.abs(sc[0]).sum(1) ** -0.5)
    step = root @ sc[0] @ root
    expected = sum(0.3**k * np.linalg.matrix_power(step, k) for k in range(10))
    model = tiny_model(attention="diffusion", diffusion_theta=0.3).structural
    (edge,) = model.edges(torch.from_numpy(sc.astype(np.float32)))
    np.testing.assert_allclose(edge[0], expected, atol=1e-5)


def test_laplacian_code_spans_the_last_eigenvectors():
    sc = np.abs(tiny_sc(2)).astype(np.float64)
    codes = laplacian_code(torch.from_numpy(sc), 3).double().numpy()
    for matrix, code in zip(sc, codes, strict=True):
        profiles = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
        similarity = 1 - np.arccos(np.clip(profiles @ profiles.T, -1, 1)) / np.pi
        degree = similarity.sum(1)
        laplacian = np.eye(ROIS) - similarity / np.sqrt(np.outer(degree, degree))
        largest = np.linalg.eigvalsh(laplacian)[::-1][:3]
        np.testing.assert_allclose(laplacian @ code, code * largest, atol=1e-6)
        np.testing.assert_allclose(code.T @ code, np.eye(3), atol=1e-6)
        assert (code[np.abs(code).argmax(0), range(3)] > 0).all()

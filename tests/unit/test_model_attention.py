"""The Perceiver's streamed attention against a plain implementation in double precision."""

from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from model_tiny import (
    HEADS,
    ROIS,
    STEPS,
    WIDTH,
    one_thread,  # noqa: F401 (used by every test)
    tiny_model,
    tiny_windows,
)

from bsym_bids.model import attention
from bsym_bids.model.attention import attend_to_grid, signed_softmax

EPS = 1e-5


def plain(query, roi_part, time_part, kernel, signal, eps=EPS):
    """Make all tokens and all weights, in double precision."""
    query, roi_part, time_part, kernel, signal = (
        part.double() for part in (query, roi_part, time_part, kernel, signal)
    )
    samples = kernel.shape[1]
    window = F.pad(signal, (samples // 2, samples // 2)).unfold(1, samples, 1)
    token = roi_part[:, None] + time_part + window @ kernel.mT  # (R, T, D)
    token = F.layer_norm(token, token.shape[-1:], eps=eps).flatten(0, 1)
    logits = query @ token.mT
    weights = logits.softmax(-1)
    grid = weights.mean(0).unflatten(-1, signal.shape)
    return logits.abs().max(), (weights @ token, grid.sum(-1), grid.sum(-2))


def draw(*, heads=2, queries=7, rois=6, steps=9, width=8, samples=5, scale=1.0, seed=0, dtype=None):
    """Draw what `attend_to_grid` takes; ``scale`` is about the spread of logits."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (heads, queries, width), (rois, width), (steps, width), (width, samples), (rois, steps)
    query, *others = (torch.randn(shape, generator=generator) for shape in shapes)
    return [part.to(dtype or torch.float32) for part in (query * scale / width**0.5, *others)]


def check(arguments, tolerance, *, rois_at_once=2, eps=EPS):
    """Hold the streamed attention against the plain one, in several blocks of ROIs."""
    query, *_, signal = arguments
    at_once = rois_at_once * signal.shape[1] * query.shape[0] * query.shape[1]
    with mock.patch.object(attention, "_WEIGHTS_AT_ONCE", at_once):
        results = attend_to_grid(*arguments, eps)
    largest, expected = plain(*arguments, eps)
    for name, found, wanted in zip(("attended", "ROI", "time"), results, expected, strict=True):
        assert found.dtype == signal.dtype
        bound = tolerance * (1 + largest)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=bound, err_msg=name)
    for marginal in results[1:]:
        np.testing.assert_allclose(marginal.sum(-1), 1, atol=1e-5)
    return results


sizes = st.fixed_dictionaries(
    {
        "heads": st.integers(1, 3),
        "queries": st.integers(1, 9),
        "rois": st.integers(1, 9),
        "steps": st.integers(1, 9),
        "width": st.integers(2, 9),
        "samples": st.sampled_from([1, 3, 5, 7]),
        "scale": st.sampled_from([0.0, 0.1, 1.0, 10.0, 100.0, 3000.0]),
        "seed": st.integers(0, 2**32),
    }
)


@given(sizes=sizes, rois_at_once=st.integers(1, 4))
@settings(deadline=None, max_examples=150)
def test_equals_the_plain_attention(sizes, rois_at_once):
    check(draw(**sizes, dtype=torch.float64), 1e-12, rois_at_once=rois_at_once)


@given(sizes=sizes, rois_at_once=st.integers(1, 4))
@settings(deadline=None, max_examples=150)
def test_single_precision_costs_rounding_alone(sizes, rois_at_once):
    # Few dimensions can leave a token next to nothing before the norm, which inflates what is left.
    check(draw(**sizes | {"width": 16}), 2e-6, rois_at_once=rois_at_once)


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_of_thousands_that_rise_or_fall_from_roi_to_roi(order, dtype):
    arguments = draw(rois=12, scale=2000, seed=3, dtype=dtype)
    query, roi_part, _, _, _ = arguments
    by_logit = (query[0, 0] @ roi_part.mT).argsort() if order > 0 else slice(None)
    arguments[1] = roi_part[by_logit]
    assert plain(*arguments)[0] > 3000
    check(arguments, 1e-6 if dtype == torch.float32 else 1e-12, rois_at_once=1)


@pytest.mark.parametrize("first", [-5000.0, 5000.0])
def test_a_first_roi_far_from_the_others(first):
    query, roi_part, time_part, kernel, signal = draw(queries=1, heads=1, scale=1)
    roi_part[0] = query[0, 0] * first  # its tokens point along the query, or against it
    query *= 1500
    check([query, roi_part, time_part, kernel, signal], 1e-6, rois_at_once=1)


def test_equal_tokens_without_variance_get_equal_attention():
    query, roi_part, time_part, kernel, signal = draw(scale=100)
    constant = torch.ones_like
    flat = [query, 3 * constant(roi_part), constant(time_part), constant(kernel), signal]
    attended, over_roi, over_time = check(flat, 1e-6)
    assert (attended == 0).all()
    np.testing.assert_allclose(over_roi, 1 / 6, atol=1e-6)
    np.testing.assert_allclose(over_time, 1 / 9, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 4.0, -1e4])
def test_constant_series(value):
    arguments = draw(seed=1)
    arguments[-1] = torch.full_like(arguments[-1], value)
    check(arguments, 2e-6)


def test_parts_that_nearly_cancel():
    arguments = draw(scale=1, seed=2)
    arguments[1:4] = (
        part * size for part, size in zip(arguments[1:4], (1e-3, 1e-3, 1e-3), strict=True)
    )
    common = torch.linspace(-1, 1, 8) * 3
    arguments[1] += common
    arguments[2] -= common
    check(arguments, 1e-3, eps=1e-12)


def test_threads_share_the_queries():
    arguments = draw(queries=11, seed=4)
    one = attend_to_grid(*arguments, EPS)
    torch.set_num_threads(3)
    three = attend_to_grid(*arguments, EPS)
    two = attend_to_grid(*arguments, EPS, threads=2)
    assert torch.get_num_threads() == 3
    for single, *shared in zip(one, two, three, strict=True):
        for other in shared:
            np.testing.assert_allclose(single, other, atol=1e-6)


def test_it_refuses_what_needs_a_gradient():
    arguments = draw()
    arguments[1].requires_grad_()
    with pytest.raises(RuntimeError, match="differentiation"):
        attend_to_grid(*arguments, EPS)
    with torch.no_grad():
        attend_to_grid(*arguments, EPS)


# --- in the network ------------------------------------------------------------------------------


def published_perceiver(model, roi, time, signal, code):
    """Return latents, reconstruction and both marginals as the published code makes them."""
    perceiver, context = model.perceiver, model.context
    features = context.conv1d(signal.unsqueeze(1)).mT  # (R, T, S)
    roi = perceiver.roi_proj(roi)[:, None].expand(-1, STEPS, -1)
    time = perceiver.time_proj(time).expand(ROIS, -1, -1)
    tokens = torch.cat([roi, time, perceiver.signal_proj(features)], -1).flatten(0, 1)
    tokens = perceiver.input_ln(perceiver.input_proj(tokens))
    attention = torch.nn.MultiheadAttention(WIDTH, HEADS["perceiver_heads"], batch_first=True)
    attention.load_state_dict(perceiver.cross_attn.state_dict())
    query = (perceiver.latents + code)[None]
    attention.double().requires_grad_(False)
    attended, weights = attention(query, tokens[None], tokens[None])
    latents = perceiver.cross_attn_norm(attended)
    for block in perceiver.latent_transformers:
        latents = block(latents)
    weights = weights[0].unflatten(-1, (ROIS, STEPS))
    return latents[0], perceiver.head(latents)[0], weights.sum(-1), weights.sum(-2)


@pytest.mark.parametrize("masked", [[], [3], [0, 5, ROIS - 1], list(range(ROIS))])
def test_equals_the_published_perceiver(masked):
    windows = tiny_windows(3)
    held_out = np.zeros((3, ROIS), bool)
    held_out[1, masked] = True
    windows[1, masked] = np.nan
    output = tiny_model()(fmri=windows, roi_mask=held_out)
    model = tiny_model().double()
    for i in range(3):
        out = torch.from_numpy(held_out[i])[:, None]
        fmri = torch.from_numpy(windows[i]).double()
        blanked = torch.where(out, 0, fmri)[None]
        roi, code = model.spatial(blanked)
        time = model.temporal(blanked)
        signal = torch.where(out, model.context.mask_token, fmri)
        expected = published_perceiver(model, roi[0], time[0], signal, code[0])
        names = ("functional_embedding", "reconstruction", "attention_roi", "attention_time")
        for name, wanted in zip(names, expected, strict=True):
            np.testing.assert_allclose(getattr(output, name)[i], wanted, atol=1e-5, err_msg=name)


def test_token_parts_sum_up_to_the_published_tokens():
    model = tiny_model().double()
    perceiver, conv = model.perceiver, model.context.conv1d
    generator = torch.Generator().manual_seed(0)
    roi, time, signal = (
        torch.randn(3, *shape, generator=generator, dtype=torch.float64)
        for shape in ((ROIS, WIDTH), (STEPS, WIDTH), (ROIS, STEPS))
    )
    roi_part, time_part, kernel = perceiver.token_parts(roi, time, conv)
    window = F.pad(signal, (2, 2)).unfold(-1, 5, 1)
    tokens = roi_part[:, :, None] + time_part[:, None] + window @ kernel.mT
    features = conv(signal.flatten(0, 1).unsqueeze(1)).mT.unflatten(0, (3, ROIS))
    parts = (
        perceiver.roi_proj(roi)[:, :, None].expand(-1, -1, STEPS, -1),
        perceiver.time_proj(time)[:, None].expand(-1, ROIS, -1, -1),
        perceiver.signal_proj(features),
    )
    torch.testing.assert_close(tokens, perceiver.input_proj(torch.cat(parts, -1)))


def test_token_parts_have_the_right_gradient():
    model = tiny_model().double().requires_grad_()
    perceiver, conv = model.perceiver, model.context.conv1d
    generator = torch.Generator().manual_seed(0)
    roi, time = (
        torch.randn(2, 3, WIDTH, generator=generator, dtype=torch.float64).requires_grad_()
        for _ in range(2)
    )

    def parts(roi, time, _bias, _weight):  # the parameters are changed in place
        return perceiver.token_parts(roi, time, conv)

    parameters = conv.bias, perceiver.signal_proj.weight
    assert torch.autograd.gradcheck(parts, (roi, time, *parameters))
    sum(part.square().sum() for part in parts(roi, time, *parameters)).backward()
    for layer in (conv, perceiver.roi_proj, perceiver.time_proj, perceiver.signal_proj):
        assert all(parameter.grad is not None for parameter in layer.parameters())


# --- signed attention ----------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1, 100])
def test_signed_softmax_has_the_right_gradient(scale):
    generator = torch.Generator().manual_seed(0)
    scores = scale * torch.randn(2, 3, 6, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(signed_softmax, scores.requires_grad_())

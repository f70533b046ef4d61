"""Sinks and prefixes of ``npu_fusion_attention``, forward and backward, against autograd in float64."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from fusion_draws import laid_out, normal
from npudiff.device.simulator import PROFILES, OperatorRejected, UndefinedBehaviour, use_profile

HEADS, ROWS, KEYS, SCALE = 4, 6, 9, 0.17
SINK = torch.tensor([-1.5, 0.0, 0.4, 3.0])


def parts(rows=ROWS, keys=KEYS, batch=2, dtype=torch.float32):
    """Return queries, keys, values and gradients of the result, [B, N, S, D]."""
    shapes = ((HEADS, rows), (2, keys), (2, keys), (HEADS, rows))
    return [normal(batch, *shape, 16, dtype=dtype, seed=seed) for seed, shape in enumerate(shapes)]


def both_ways(given, layout="BNSD", **more):
    """Return what the forward call gives, and gradients as [B, N, S, D] for BNSD."""
    query, key, value, dy = (laid_out(one, layout) for one in given)
    forward = torch.ops.npu.npu_fusion_attention(query, key, value, HEADS, layout, scale=SCALE, **more)
    kept = {"softmax_max": forward[1], "softmax_sum": forward[2], "attention_in": forward[0]}
    grad = torch.ops.npu.npu_fusion_attention_grad
    return forward, grad(query, key, value, dy, HEADS, layout, scale_value=SCALE, **kept, **more)


def exact(given, visible=None, sink=None):
    """Return the result and the gradients of query, key, value and sink, by autograd in float64."""
    *leaves, dy = (one.double() for one in given)
    sink = torch.full((HEADS,), -math.inf) if sink is None else sink
    leaves = [one.requires_grad_() for one in (*leaves, sink.double())]
    query, key, value, sinks = leaves
    keys, values = (one.repeat_interleave(2, 1) for one in (key, value))
    scores = query @ keys.mT * SCALE
    if visible is not None:
        scores = scores.masked_fill(~visible, -math.inf)
    column = sinks.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
    result = torch.cat((column, scores), -1).softmax(-1)[..., 1:] @ values
    return result, torch.autograd.grad(result, leaves, dy)


def close(one, wanted):
    torch.testing.assert_close(one.double(), wanted.to(torch.float64), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("layout", ["BNSD", "BSH"])
@pytest.mark.parametrize("maximum", ["keys", "keys_and_sink"])
def test_a_sink_is_a_score_without_a_value(layout, maximum):
    given = parts()
    with use_profile(dataclasses.replace(PROFILES["9.0"], fusion_sink_maximum=maximum)):
        forward, gradients = both_ways(given, layout, sink=SINK)
    wanted, expected = exact(given, sink=SINK)
    for one, other in zip((forward[0], *gradients[:3], gradients[4]), (wanted, *expected), strict=True):
        close(one, other if other.dim() < 4 else laid_out(other, layout))
    scores = given[0].double() @ given[1].double().repeat_interleave(2, 1).mT * SCALE
    sums = scores.exp().sum(-1) + SINK.double().exp().view(-1, 1)
    close(forward[1][..., 0].double() + forward[2][..., 0].double().log(), sums.log())
    reached = torch.equal(forward[1][:, 3, :, 0], torch.full((2, ROWS), 3.0))
    assert reached == (maximum == "keys_and_sink")


def test_the_gradient_of_a_sink_is_0_where_rows_see_nothing():
    given = parts()
    mask = torch.zeros(2, 1, ROWS, KEYS, dtype=torch.bool)
    mask[:, :, 2:] = True
    for forced in (0, 2):
        _, gradients = both_ways(given, sink=SINK, atten_mask=mask, inner_precise=forced)
        close(gradients[4], exact(given, ~mask, SINK)[1][3])


@pytest.mark.parametrize("sink", [torch.zeros(HEADS).half(), torch.zeros(HEADS + 1), torch.zeros(HEADS, 1)])
def test_sinks_that_are_refused(sink):
    with pytest.raises(OperatorRejected, match="sink was"):
        both_ways(parts(), sink=sink)


def seen(rows, keys, prefix):
    """Return bool [rows, keys]: a triangle at the right end, and a prefix."""
    shown = torch.ones(rows, keys, dtype=torch.bool).tril(keys - rows)
    shown[:, :prefix] = True
    return shown


def template():
    return torch.cat((torch.ones(2048, 2048).triu(1), torch.arange(2048).expand(1024, -1) >= 1024)).bool()


CASES = [(6, 9, (3, 5)), (6, 6, (0, 4)), (9, 6, (2, 6)), (1, 7, (7, 6))]


@pytest.mark.parametrize(("rows", "keys", "prefix"), CASES)
@pytest.mark.parametrize("mode", [5, 6])
def test_prefixes_are_seen_by_all_rows(mode, rows, keys, prefix):
    given = parts(rows, keys)
    visible = torch.stack([seen(rows, keys, one) for one in prefix]).unsqueeze(1)
    mask = template() if mode == 6 else ~visible
    forward, gradients = both_ways(given, atten_mask=mask, sparse_mode=mode, prefix=prefix, pre_tockens=0)
    wanted, expected = exact(given, visible)
    for one, other in zip((forward[0], *gradients[:3]), (wanted, *expected), strict=False):
        close(one, other)


def test_rows_in_front_of_a_triangle_without_a_prefix_are_0():
    given, prefix = parts(9, 6), (0, 2)
    visible = torch.stack([seen(9, 6, one) for one in prefix])
    forward, gradients = both_ways(given, atten_mask=template(), sparse_mode=6, prefix=prefix)
    assert not forward[0][0, :, :3].any()
    assert forward[0][1, :, :3].any()
    assert gradients[0][0, :, :3].abs().max() < 1e-30, "a row over the largest float32"
    close(forward[0][:, :, 3:], exact(given, visible.unsqueeze(1))[0][:, :, 3:])


def test_prefixes_of_packed_sequences():
    lengths, prefix = ((6, 9), (4, 3)), (3, 2)
    given = [parts(*length, batch=1) for length in lengths]
    packed = [torch.cat([one[part][0].transpose(0, 1) for one in given]) for part in range(3)]
    ends = {"actual_seq_qlen": [6, 10], "actual_seq_kvlen": [9, 12]}
    more = {"scale": SCALE, "atten_mask": template(), "sparse_mode": 6, "prefix": prefix}
    out = torch.ops.npu.npu_fusion_attention(*packed, HEADS, "TND", **ends, **more)[0]
    for one, (rows, keys), shown, part in zip(given, lengths, prefix, out.split((6, 4)), strict=True):
        close(part.transpose(0, 1), exact(one, seen(rows, keys, shown))[0][0])


@pytest.mark.parametrize("prefix", [None, [3], [2, 4], [3, 10], [3, 4, 5]])
def test_prefixes_that_are_none(prefix):
    """A template needs right ones; a mask of its own is enough, and the operator only logs that."""
    given = parts()
    with pytest.raises(OperatorRejected, match=r"prefix was .*; allowed: 2 of up to 2048: 3 to 9, 3 to 9"):
        both_ways(given, atten_mask=template(), sparse_mode=6, prefix=prefix)
    mask = normal(2, 1, ROWS, KEYS) > 0.5
    mask[..., 0] = False
    forward, _ = both_ways(given, atten_mask=mask, sparse_mode=5, prefix=prefix)
    close(forward[0], exact(given, ~mask)[0])


def test_a_mask_with_prefixes_is_one_of_each_sequence_and_shows_no_more():
    given, mask = parts(), ~seen(ROWS, KEYS, 3)
    with pytest.raises(OperatorRejected, match=r"atten_mask was of shape \[6, 9\]; allowed: \[B, N or 1"):
        both_ways(given, atten_mask=mask, sparse_mode=5, prefix=[3, 3])
    mask = mask.repeat(2, 1, 1, 1)
    mask[1, 0, 0, 8] = False
    with pytest.raises(UndefinedBehaviour, match=r"shows keys outside of prefix \[3, 3\]"):
        both_ways(given, atten_mask=mask, sparse_mode=5, prefix=[3, 3])


def test_a_template_of_prefixes_has_another_shape_and_content():
    with pytest.raises(OperatorRejected, match="atten_mask was of shape"):
        both_ways(parts(), atten_mask=template()[:2048], sparse_mode=6, prefix=[3, 3])
    with pytest.raises(UndefinedBehaviour, match="under it a half of 0 beside a half of 1"):
        both_ways(parts(), atten_mask=template().roll(1, 1), sparse_mode=6, prefix=[3, 3])


def test_without_a_mask_prefixes_have_no_effect():
    for one, other in zip(both_ways(parts())[0], both_ways(parts(), sparse_mode=6, prefix=[9, 9])[0], strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other

"""Whole layers of experts, as production chains the operators: values in float64, and nothing that is not a number."""

import pytest
import torch

from npudiff.device.simulator import PROFILES, use_profile

OPS = torch.ops.npu
TOKENS, EXPERTS, K, HIDDEN, INNER = 24, 8, 3, 32, 48


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture
def layer():
    """Return x, weights up [E, H, 2I] and down [E, I, H], and the experts of each token with their weights."""
    x = draw(TOKENS, HIDDEN, dtype=torch.bfloat16)
    up = draw(EXPERTS, HIDDEN, 2 * INNER, seed=1, dtype=torch.bfloat16) / 4
    down = draw(EXPERTS, INNER, HIDDEN, seed=2, dtype=torch.bfloat16) / 4
    weights, experts, rows = OPS.npu_moe_gating_top_k_softmax(draw(TOKENS, EXPERTS, seed=3), k=K)
    return x, up, down, weights.bfloat16(), experts, rows


def exact(x, up, down, weights, experts, local=range(EXPERTS)):
    """Expert by expert, in float64."""
    output = torch.zeros(TOKENS, HIDDEN, dtype=torch.float64)
    for expert in local:
        first, second = (x.double() @ up[expert].double()).chunk(2, -1)
        rows = (first * torch.sigmoid(first) * second) @ down[expert].double()
        output += ((experts == expert) * weights.double()).sum(1, keepdim=True) * rows
    return output


def through(rows, up, down, group_list, kind):
    more = {"group_list": group_list, "group_list_type": kind, "split_item": 2, "group_type": 0}
    (hidden,) = OPS.npu_grouped_matmul([rows], [up], **more)
    first, second = hidden.float().chunk(2, -1)
    gated = (first * torch.sigmoid(first) * second).bfloat16()
    return OPS.npu_grouped_matmul([gated], [down], **more)[0]


def near(output, expected):
    return bool(((output - expected).abs() <= 2.0**-6 * expected.abs().amax()).all())


def test_version_2_with_counts(layer):
    x, up, down, weights, experts, _ = layer
    rows, places, counts, _ = OPS.npu_moe_init_routing_v2(
        x,
        experts,
        active_num=TOKENS * K,
        expert_num=EXPERTS,
        expert_tokens_num_type=1,
        expert_tokens_num_flag=True,
        active_expert_range=[0, EXPERTS],
    )
    rows = through(rows, up, down, counts, 1)
    output = OPS.npu_moe_finalize_routing(rows, None, None, None, weights, places, experts, drop_pad_mode=2)
    assert near(output, exact(x, up, down, weights, experts))
    assert torch.equal(OPS.npu_moe_token_unpermute(rows, places, weights), output)


def test_version_1_with_ends(layer):
    x, up, down, weights, experts, numbers = layer
    rows, places, order = OPS.npu_moe_init_routing(x, numbers, experts, TOKENS)
    ends = OPS.npu_moe_compute_expert_tokens(order, EXPERTS).long()
    rows = through(rows, up, down, ends, 0)
    output = OPS.npu_moe_finalize_routing(rows, None, None, None, weights, places, experts, drop_pad_mode=0)
    assert near(output, exact(x, up, down, weights, experts))


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_some_experts_live_elsewhere(layer, profile):
    """Rows of other experts are not written; production multiplies what lies there by 0."""
    x, up, down, weights, experts, _ = layer
    with use_profile(profile):
        rows, places, counts, _ = OPS.npu_moe_init_routing_v2(
            x,
            experts,
            expert_num=EXPERTS,
            expert_tokens_num_type=1,
            expert_tokens_num_flag=True,
            active_expert_range=[2, 5],
        )
        rows = through(rows, up[2:5], down[2:5], counts, 1)
        here = (experts >= 2) & (experts < 5)
        output = OPS.npu_moe_token_unpermute(rows, places.abs(), weights * here)
    assert near(output, exact(x, up, down, weights, experts, range(2, 5)))


def test_quantised_and_fused(layer):
    x, up, down, weights, experts, _ = layer
    scales, quantised = [], []
    for weight in (up, down):
        scales.append(weight.float().abs().amax(1) / 127)
        quantised.append((weight.float() / scales[-1][:, None]).round().to(torch.int8))
    rows, places, counts, by_row = OPS.npu_moe_init_routing_v2(
        x, experts, expert_num=EXPERTS, expert_tokens_num_type=1, expert_tokens_num_flag=True, quant_mode=1
    )
    gated, by_row, _ = OPS.npu_grouped_matmul_swiglu_quant(rows, quantised[0], counts.cumsum(0), scales[0], by_row)
    tokens, logit = torch.empty(TOKENS * K).long(), torch.empty(TOKENS * K)
    tokens[places.long()] = torch.arange(TOKENS * K) // K
    logit[places.long()] = weights.float().view(-1)
    output = OPS.npu_grouped_matmul_finalize_routing(
        gated,
        quantised[1],
        counts,
        scale=scales[1],
        pertoken_scale=by_row,
        logit=logit,
        row_index=tokens,
        output_bs=TOKENS,
    )
    expected = exact(x, up, down, weights, experts)
    assert ((output - expected).abs() <= 0.03 * expected.abs().amax()).all()

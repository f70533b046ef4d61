from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from npudiff.judge.compare import compare
from npudiff.reference.moe_routing import NOWHERE, MoeRoutingInputs, moe_routing

STATES = torch.arange(12, dtype=torch.bfloat16).view(4, 3)
EXPERTS = torch.tensor([[2, 0], [0, 3], [2, 1], [0, 2]], dtype=torch.int32)
ALL = MoeRoutingInputs(STATES, EXPERTS, 4, 0, 4)


def test_four_tokens_by_hand():
    """Expert 0 gets tokens 0, 1, 3; expert 1 token 2; expert 2 tokens 0, 2, 3; expert 3 token 1."""
    result = moe_routing(ALL)
    assert result["counts"].value.tolist() == [3, 1, 3, 1]
    assert result["rows"].value[:, 0].tolist() == [0, 3, 9, 6, 0, 6, 9, 3]
    assert result["src_to_dst_row"].value.tolist() == [[4, 0], [1, 7], [5, 3], [2, 6]]
    assert bool((result["rows"].bound == 0).all())
    assert result["scale"].value.shape == (0,)


def test_experts_that_are_elsewhere_by_hand():
    result = moe_routing(replace(ALL, first=1, last=3))
    assert result["counts"].value.tolist() == [1, 3]
    assert result["src_to_dst_row"].value.tolist() == [[1, NOWHERE], [NOWHERE, NOWHERE], [2, 0], [NOWHERE, 3]]
    assert result["rows"].value[:4, 0].tolist() == [6, 0, 6, 9]
    assert result["rows"].bound[:, 0].tolist() == [0] * 4 + [torch.inf] * 4


def test_it_is_a_walk_over_experts_and_tokens():
    generator = torch.Generator().manual_seed(3)
    experts = torch.stack([torch.randperm(9, generator=generator)[:3] for _ in range(40)]).int()
    result = moe_routing(MoeRoutingInputs(torch.randn(40, 2, generator=generator).bfloat16(), experts, 9, 2, 8))
    row = 0
    for expert in range(2, 8):
        for token, choice in (experts == expert).nonzero().tolist():
            assert int(result["src_to_dst_row"].value[token, choice]) == row
            row += 1
        assert int(result["counts"].value[: expert - 1].sum()) == row
    assert bool(result["rows"].bound[row:].isinf().all())


def test_int8_copies_have_the_scale_of_their_token():
    result = moe_routing(replace(ALL, form="by largest"))
    assert result["scale"].value.tolist() == [x / 127 for x in (2, 5, 11, 8, 2, 8, 11, 5)]
    assert result["rows"].value[0].tolist() == [0.0, 64.0, 127.0]  # 63.5 is the middle, and rounds to even
    assert result["rows"].bound[0].tolist() == [0.0, 1.0, 0.0]


def test_the_cut_to_float16_is_allowed_and_no_more():
    states = torch.linspace(-1, 1, 4001).to(torch.bfloat16).view(1, -1)
    given = MoeRoutingInputs(states, torch.zeros(1, 1, dtype=torch.int32), 1, 0, 1, "by largest")
    exact = states.double() / states.double().abs().max() * 127
    cut = exact.float().half()
    cut = torch.where(cut.double().abs() > exact.abs(), torch.nextafter(cut, torch.zeros_like(cut)), cut)
    scale = states.float().abs().amax(dim=1) / 127
    for steps in (exact, cut.double()):
        rounded = torch.sign(steps) * (steps.abs() + 0.5).floor()
        assert compare(moe_routing(given), {"rows": rounded.to(torch.int8), "scale": scale}).worst <= 1
    truncated = exact.trunc().to(torch.int8)
    assert compare(moe_routing(given), {"rows": truncated, "scale": scale}).worst > 1


def test_factors_are_those_of_the_expert_that_a_copy_is_for():
    factors = torch.tensor([[1.0, 1, 1], [2, 2, 2], [1, 1, 4], [8, 1, 1]])
    result = moe_routing(replace(ALL, form="smoothed", scale=factors))
    largest = [2, 5, 11, 16, 8, 32, 44, 24]
    assert result["scale"].value.tolist() == pytest.approx([x / 127 for x in largest])
    assert result["rows"].value[7].tolist() == [127, round(4 * 127 / 24), round(5 * 127 / 24)]
    one = moe_routing(replace(ALL, form="smoothed", scale=factors[2:3]))
    assert one["scale"].value[:3].tolist() == pytest.approx([8 / 127, 20 / 127, 44 / 127])


def test_scales_of_tokens_go_with_their_copies():
    result = moe_routing(replace(ALL, form="with scales", scale=torch.tensor([0.5, 1.5, 2.5, 3.5])))
    assert result["scale"].value.tolist() == [0.5, 1.5, 3.5, 2.5, 0.5, 2.5, 3.5, 1.5]
    assert not bool(result["scale"].bound.any())
    assert result["rows"].value.dtype == torch.bfloat16


def test_one_scale_is_a_product_and_a_sum_in_float16():
    given = replace(ALL, form="one scale", scale=torch.tensor([1.3]), offset=torch.tensor([-2.0]))
    result = moe_routing(given)
    assert result["rows"].value[7].tolist() == [round(x * 1.3 - 2) for x in (3, 4, 5)]
    assert result["scale"].value.shape == (0,)
    halves = (STATES.half() * torch.tensor(1.3).half() - 2).round()
    assert bool(((result["rows"].value[[0, 1, 2]] - halves[[0, 1, 3]]).abs() <= result["rows"].bound[:3]).all())
    assert float(result["rows"].bound.mean()) < 0.2


def test_no_tokens():
    result = moe_routing(MoeRoutingInputs(STATES[:0], EXPERTS[:0], 4, 0, 4))
    assert result["counts"].value.tolist() == [0, 0, 0, 0]
    assert result["rows"].value.shape == (0, 3)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"experts": EXPERTS[:3]}, r"experts must be \[4, chosen\], got \[3, 2\]"),
        ({"form": "int4"}, "form is one of as they are, with scales, by largest, smoothed, one scale, got int4"),
        ({"form": "smoothed"}, "scale does not go with smoothed, of shape None"),
        ({"scale": torch.ones(1)}, r"scale does not go with as they are, of shape \(1,\)"),
        ({"form": "one scale", "scale": torch.ones(1)}, "an offset goes with one scale, and with nothing else"),
        ({"last": 5}, "experts 0 to 5 are not among 4"),
        ({"first": 2, "last": 2}, "experts 2 to 2"),
        ({"experts": EXPERTS + 1}, r"experts must lie in 0\.\.3"),
        ({"experts": EXPERTS - 1}, r"experts must lie in 0\.\.3"),
    ],
)
def test_what_contradicts_itself_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        moe_routing(replace(ALL, **changed))


@pytest.mark.parametrize("mark", [-1, 4])
def test_padded_tokens_go_nowhere_and_are_not_counted(mark):
    experts = EXPERTS.clone()
    experts[1] = mark
    routed = moe_routing(replace(ALL, experts=experts))
    assert routed["src_to_dst_row"].value[1].tolist() == [NOWHERE, NOWHERE]
    alone = moe_routing(replace(ALL, experts=EXPERTS[[0, 2, 3]], states=STATES[[0, 2, 3]]))
    assert torch.equal(routed["counts"].value, alone["counts"].value)
    assert torch.equal(routed["src_to_dst_row"].value[[0, 2, 3]], alone["src_to_dst_row"].value)
    assert torch.equal(routed["rows"].value[:6], alone["rows"].value)
    assert bool(routed["rows"].bound[6:].isinf().all())


def test_a_token_with_one_place_marked_is_refused():
    experts = EXPERTS.clone()
    experts[0, 1] = -1
    with pytest.raises(ValueError, match="or all of a token be -1 or 4"):
        moe_routing(replace(ALL, experts=experts))

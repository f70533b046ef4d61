"""``npu_moe_init_routing_quant``: what goes where, pair by pair; statistics, absent outputs, refusals."""

import pytest
import torch

from npudiff.device.simulator import DeviceFault, OperatorRejected


def route(x, experts, **more):
    return torch.ops.npu.npu_moe_init_routing_quant(x, experts, **more)


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


X = draw(6, 16)
EXPERTS = torch.tensor([[2, 0], [1, 2], [2, 1], [0, 2], [2, 3], [3, 2]], dtype=torch.int32)
ORDER = sorted(range(12), key=lambda pair: (EXPERTS.flatten()[pair].item(), pair))
COUNTS = [2, 2, 6, 2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("active", [0, 7, 100])
def test_rows_are_sorted_and_quantised_by_their_own_maximum(dtype, active):
    x = X.to(dtype)
    expanded, row_idx, _, _, scale = route(x, EXPERTS, active_num=active, expert_num=4)
    rows = 7 if active == 7 else 12
    assert (expanded.dtype, expanded.shape, scale.shape) == (torch.int8, (rows, 16), (rows,))
    assert row_idx.dtype == torch.int32
    for place, pair in enumerate(ORDER):
        assert row_idx[pair] == place
        if place < rows:
            exact = x[pair // 2].double()
            assert scale[place] == pytest.approx(exact.abs().max().item() / 127, rel=1e-6)
            assert (expanded[place].double() - exact / scale[place].double()).abs().max() <= 0.5 + 0.07  # float16 cuts


def test_smooth_scales_of_experts():
    smooth = draw(4, 16, seed=1).abs() + 0.5
    expanded, _, _, _, scale = route(X, EXPERTS, active_num=0, expert_num=4, scale=smooth)
    for place, pair in enumerate(ORDER):
        exact = X[pair // 2].double() * smooth[EXPERTS.flatten()[pair]].double()
        assert scale[place] == pytest.approx(exact.abs().max().item() / 127, rel=1e-6)
        assert (expanded[place].double() - exact / scale[place].double()).abs().max() <= 0.57


def test_one_scale_for_all():
    more = {"scale": torch.tensor([20.0]), "offset": torch.tensor([3.0]), "quant_mode": 0}
    expanded, _, _, _, scale = route(X, EXPERTS, active_num=0, expert_num=4, **more)
    assert scale is None
    for place, pair in enumerate(ORDER):
        assert (expanded[place].double() - (X[pair // 2].double() * 20 + 3)).abs().max() <= 0.5 + 0.04


@pytest.mark.parametrize(
    ("mode", "flag", "drop", "statistics", "before"),
    [
        (0, False, 0, None, None),
        (1, False, 0, [2, 4, 10, 12], None),
        (2, True, 0, COUNTS, None),
        (2, False, 1, None, None),
        (0, True, 1, None, COUNTS),
    ],
)
def test_statistics_are_there_when_asked_for(mode, flag, drop, statistics, before):
    more = {"expert_tokens_num_mode": mode, "expert_tokens_before_capacity_flag": flag, "drop_pad_mode": drop}
    outputs = route(X, EXPERTS, active_num=0, expert_num=4, expert_capacity=3, **more)
    for given, expected in zip(outputs[2:4], (statistics, before), strict=True):
        assert (given is None) == (expected is None)
        assert expected is None or (given.dtype, given.tolist()) == (torch.int32, expected)


def test_every_expert_has_its_capacity():
    outputs = route(X, EXPERTS, active_num=0, expert_num=4, drop_pad_mode=1, expert_capacity=3)
    expanded, row_idx, scale = outputs[0], outputs[1], outputs[4]
    assert (expanded.shape, scale.shape) == ((4, 3, 16), (12,))
    plain = route(X, EXPERTS, active_num=0, expert_num=4)
    seen = [0] * 4
    for place, pair in enumerate(ORDER):
        expert = EXPERTS.flatten()[pair].item()
        slot, seen[expert] = seen[expert], seen[expert] + 1
        if slot >= 3:
            assert row_idx[pair] == -1
            continue
        assert row_idx[pair] == expert * 3 + slot
        assert torch.equal(expanded[expert, slot], plain[0][place])
        assert scale[expert * 3 + slot] == plain[4][place]
    assert (expanded[0, 2] == 0).all()


@pytest.mark.parametrize(
    ("x", "experts", "more", "message"),
    [
        (X[0], EXPERTS, {}, "x was of rank 1; .*: Input tensor 'x' must be 2-dimensional, but got dimension 1"),
        (X, EXPERTS[0], {}, "expert_idx was .*: Input tensor 'expert_idx' must be 2-dimensional, but got dimension 1"),
        (X[:4], EXPERTS, {}, r"expert_idx was .*: The number of rows in input 'x' \(4\) must match the number of rows"),
        (
            X,
            EXPERTS,
            {"drop_pad_mode": 2},
            "drop_pad_mode was 2; .*: Parameter 'drop_pad_mode' must be 0 or 1, but got",
        ),
        (X, EXPERTS, {"quant_mode": -1}, "quant_mode was -1; .*: Parameter 'quant_mode' must be 0 or 1, but got: -1"),
        (
            X,
            EXPERTS,
            {"expert_tokens_num_mode": 3},
            "expert_tokens_num_mode was 3; .*: Parameter 'expert_tokens_num_mode' must be 0, 1, or 2, but got: 3",
        ),
        (X, EXPERTS.long(), {}, "expert_idx was int64; allowed: int32"),
    ],
)
def test_rejections(x, experts, more, message):
    with pytest.raises(OperatorRejected, match=f"npu_moe_init_routing_quant: {message}"):
        route(x, experts, expert_num=4, **more)


def test_what_version_2_refuses_is_refused_in_its_name():
    with pytest.raises(OperatorRejected, match="npu_moe_init_routing_v2: scale was None"):
        route(X, EXPERTS, expert_num=4, quant_mode=0)


def test_an_expert_that_is_not_there():
    with pytest.raises(DeviceFault, match=r"npu_moe_init_routing_quant: expert_idx\[4, 1\] is 3, there are 3 experts"):
        route(X, EXPERTS, expert_num=3)

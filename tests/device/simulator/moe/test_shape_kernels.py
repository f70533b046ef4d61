"""Meta kernels give the shapes and dtypes of the CPU kernels."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

OPS = torch.ops.npu


def gating_calls():
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        x = torch.rand(3, 8, dtype=dtype)
        yield "npu_moe_gating_top_k_softmax", (x,), {"k": 2}
        yield "npu_moe_gating_top_k_softmax", (x.view(1, 3, 8), torch.zeros(1, 3).bool()), {}
        yield "npu_moe_gating_top_k", (x, 3), {"bias": x[0], "out_flag": True, "norm_type": 1}


def routing_calls():
    x, experts = torch.rand(3, 8), torch.tensor([[0, 2], [1, 2], [1, 0]], dtype=torch.int32)
    for active in (0, 2, 9):
        yield "npu_moe_init_routing", (x, torch.arange(6).view(3, 2).int(), experts, active), {}
    yield "npu_moe_compute_expert_tokens", (experts.view(-1).sort()[0], 5), {}
    options = [
        {"active_num": 4},
        {"expert_tokens_num_flag": True, "active_expert_range": [1, 3]},
        {"expert_tokens_num_flag": True, "expert_tokens_num_type": 2, "quant_mode": 1},
        {"quant_mode": 0, "scale": torch.ones(1), "offset": torch.ones(1)},
        {"drop_pad_mode": 1, "expert_capacity": 2, "quant_mode": 1},
        {"drop_pad_mode": 1, "expert_capacity": 2},
    ]
    for more in options:
        yield "npu_moe_init_routing_v2", (x.half(), experts), {"expert_num": 3, **more}


def back_calls():
    rows, places, scales = torch.rand(6, 8).half(), torch.arange(6).int(), torch.rand(3, 2).half()
    yield "npu_moe_finalize_routing", (rows, None, None, None, scales, places, None), {}
    yield "npu_moe_finalize_routing", (rows.view(2, 3, 8), None, None, None, None, places, None, 3, 3), {}
    for wanted in (None, 4, 9, -2):
        yield "npu_moe_token_permute", (rows, places.view(6, 1), wanted), {}
    yield "npu_moe_token_unpermute", (rows, places, scales), {}
    yield "npu_moe_token_unpermute", (rows, places), {}


def calls():
    yield from gating_calls()
    yield from routing_calls()
    yield from back_calls()


def shapes(outputs):
    outputs = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
    return [(tuple(t.shape), t.dtype) for t in outputs]


@pytest.mark.parametrize("kind", ["meta", "fake"])
@pytest.mark.parametrize("name", sorted({name for name, _, _ in calls()}))
def test_shape_kernels_agree_with_eager(kind, name):
    for operator, arguments, more in calls():
        if operator != name:
            continue
        eager = shapes(getattr(OPS, name)(*arguments, **more))
        mode = FakeTensorMode()
        move = mode.from_tensor if kind == "fake" else lambda t: t.to("meta")

        def moved(value, move=move):
            return move(value) if isinstance(value, torch.Tensor) else value

        with mode if kind == "fake" else torch.no_grad():
            inferred = getattr(OPS, name)(*map(moved, arguments), **{n: moved(v) for n, v in more.items()})
        assert shapes(inferred) == eager

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


def calls():
    yield from gating_calls()


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

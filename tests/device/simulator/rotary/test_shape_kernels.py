"""Meta kernels give the shapes and dtypes of the CPU kernels."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

OPS = torch.ops.npu


def calls():
    for dtype in (torch.float16, torch.bfloat16):
        x, r = torch.ones(2, 3, 5, 64, dtype=dtype), torch.ones(2, 1, 5, 64, dtype=dtype)
        yield "npu_rotary_mul", (x, r, r, "half", None), {}
        yield "npu_rotary_mul", (x, r[:1], r[:1], "interleave"), {}
        yield "npu_rotary_mul", (x, r, r), {"rotate": torch.ones(64, 64, dtype=dtype)}
        yield "npu_interleave_rope", (x, r, r), {}
        packed = torch.ones(4, 128, dtype=dtype)
        cache = torch.ones(9, 64, dtype=dtype)
        yield "npu_mrope", (torch.arange(4), packed, packed[:, :64], cache, 64), {"rotary_mode": "interleave"}
        cos = torch.ones(2, 3, 1, 64, dtype=dtype)
        yield "npu_apply_rotary_pos_emb", (x, x[:, :, :2].clone(), cos, cos), {}


def shapes(outputs):
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return [(tuple(t.shape), t.dtype) for t in outputs]


@pytest.mark.parametrize("kind", ["meta", "fake"])
def test_shape_kernels_agree_with_eager(kind):
    count = 0
    for name, arguments, more in calls():
        eager = shapes(getattr(OPS, name)(*arguments, **more))
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            moves = {"meta": lambda t: t.to("meta"), "fake": mode.from_tensor}
        move = moves[kind]

        def moved(value, move=move):
            return move(value) if isinstance(value, torch.Tensor) else value

        with mode if kind == "fake" else torch.no_grad():
            inferred = getattr(OPS, name)(*map(moved, arguments), **{n: moved(v) for n, v in more.items()})
        assert shapes(inferred) == eager, name
        count += 1
    assert count == 12

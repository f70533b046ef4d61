"""Meta kernels give the shapes and dtypes of the CPU kernels."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from npudiff.device.simulator.activation.operators import OPERATORS

OPS = torch.ops.npu


def calls():
    """Yield (name, tensor arguments, other arguments)."""
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        for dim in (-1, 0, 1):
            yield "npu_swiglu", (torch.ones(2, 4, 6, dtype=dtype),), {"dim": dim}
            half = torch.ones(2, 4, 6, dtype=dtype).chunk(2, dim)[0]
            yield "npu_swiglu_backward", (half, torch.ones(2, 4, 6, dtype=dtype)), {"dim": dim}
            yield "npu_geglu", (torch.ones(2, 4, 6, dtype=dtype),), {"dim": dim}
            yield "npu_clipped_swiglu", (torch.ones(2, 4, 6, dtype=dtype),), {"dim": dim, "interleaved": dim > 0}
        for name in ("npu_fast_gelu", "fast_gelu"):
            yield name, (torch.ones(2, 3, dtype=dtype),), {}
        yield "npu_fast_gelu_backward", (torch.ones(2, 3, dtype=dtype), torch.ones(2, 3, dtype=dtype)), {}
    for mode in (0, 1):
        x, scale = torch.ones(3, 8, dtype=torch.bfloat16), torch.ones(1)
        yield "npu_dequant_swiglu_quant", (x,), {"quant_mode": mode, "quant_scale": scale}
        more = {"quant_mode": mode, "smooth_scales": scale, "offsets": scale, "dst_type": torch.int8}
        yield "npu_swiglu_quant", (torch.ones(2, 3, 8),), more


def shapes(outputs):
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return [(tuple(t.shape), t.dtype) for t in outputs]


@pytest.mark.parametrize("kind", ["meta", "fake"])
def test_shape_kernels_agree_with_eager(kind):
    names = set()
    for name, arguments, more in calls():
        eager = shapes(getattr(OPS, name)(*arguments, **more))
        mode = FakeTensorMode()
        move = mode.from_tensor if kind == "fake" else lambda t: t.to("meta")
        moved = {word: move(given) if isinstance(given, torch.Tensor) else given for word, given in more.items()}
        with mode if kind == "fake" else torch.no_grad():
            inferred = getattr(OPS, name)(*map(move, arguments), **moved)
        assert shapes(inferred) == eager, name
        names.add(name)
    assert names == {operator.schema.partition("(")[0] for operator in OPERATORS}

"""Meta kernels give the shapes and dtypes of the CPU kernels."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from elementary_calls import elementary_calls
from npudiff.device.simulator import OperatorRejected
from npudiff.device.simulator.quantisation.operators import OPERATORS

OPS = torch.ops.npu

IN_TILES = {"npu_quant_matmul_reduce_sum"}
"""What takes a weight in tiles, which neither a meta nor a fake tensor is: its shapes are compared with the wheel's."""


def calls(exact):
    """Yield (name, tensor arguments, other arguments)."""
    x = exact.draw(2, 3, 16, dtype=torch.bfloat16)
    for dst_type in (None, torch.int8, torch.quint4x2):
        yield "npu_dynamic_quant", (x,), {"dst_type": dst_type}
        yield "npu_dynamic_quant_asymmetric", (x,), {"dst_type": dst_type}
    for dtype in (torch.qint8, torch.int8, torch.quint8, torch.uint8, torch.qint32, torch.int32):
        yield "npu_quantize", (x, torch.ones(16), None, dtype), {"axis": -1}
    for dtype in (torch.qint8, torch.quint4x2):
        yield "npu_quantize", (x, x[0, 0], None, dtype, -1, False), {}
    for shape in ((4, 16), (3, 4, 16)):
        yield "npu_convert_weight_to_int4pack", (torch.ones(shape, dtype=torch.int32),), {}
    for shape in ((4,), (1, 4)):
        yield "npu_trans_quant_param", (torch.ones(shape), torch.ones(shape)), {}
    yield "npu_trans_quant_param", (torch.ones(4), torch.ones(1)), {"round_mode": None}
    x1, x2, scale = exact.integers(2, 1, 3, 8), exact.integers(5, 8, 4), torch.ones(1)
    for dtype in (None, torch.int8, torch.float16, torch.bfloat16, torch.int32):
        yield "npu_quant_matmul", (x1, x2, scale), {"output_dtype": dtype}
    for dtype in (torch.float32, torch.bfloat16):
        yield "npu_quant_matmul_gelu", (x1, x2, torch.ones(3), torch.ones(4, dtype=dtype)), {}
    left, right = exact.integers(3, 2, dtype=torch.int32), exact.integers(2, 16, dtype=torch.int32)
    for weight in (right.view(16, 2), right.view(16, 2).t()):
        yield "npu_quant_matmul", (left, weight, scale), {"output_dtype": torch.float16}
    floats, scale = torch.ones(2, 3, 16, dtype=torch.float16), torch.ones(1, dtype=torch.float16)
    for weight in (exact.integers(16, 4), exact.integers(2, 16, 4), right.view(16, 2), right.view(16, 2).t()):
        yield "npu_weight_quant_batchmatmul", (floats, weight, scale), {"quant_scale": torch.ones(1)}
        yield "npu_weight_quant_batchmatmul", (floats[0], weight, scale), {}


def shapes(outputs):
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return [(tuple(t.shape), t.dtype) for t in outputs]


@pytest.mark.parametrize("kind", ["meta", "fake"])
def test_shape_kernels_agree_with_eager(exact, kind):
    names = set()
    every = {operator.schema.partition("(")[0] for operator in OPERATORS} - IN_TILES
    others = [(one.name, one.arguments, one.keywords) for one in elementary_calls() if one.name in every]
    for name, arguments, more in (*calls(exact), *others):
        eager = shapes(getattr(OPS, name)(*arguments, **more))
        mode = FakeTensorMode()
        move = mode.from_tensor if kind == "fake" else lambda t: t.to("meta")
        given = [move(a) if isinstance(a, torch.Tensor) else a for a in arguments]
        moved = {word: move(a) if isinstance(a, torch.Tensor) else a for word, a in more.items()}
        with mode if kind == "fake" else torch.no_grad():
            inferred = getattr(OPS, name)(*given, **moved)
        assert shapes(inferred) == eager, name
        names.add(name)
    assert names == every


def test_shapes_of_modes_that_are_not_computed():
    x = torch.empty(2, 3, 16, dtype=torch.bfloat16, device="meta")
    assert OPS.npu_dynamic_quant(x, quant_mode="pertensor")[1].shape == (1,)
    assert OPS.npu_dynamic_quant(x, quant_mode="perchannel")[1].shape == (2, 16)


def test_meta_wants_full_words():
    with pytest.raises(OperatorRejected, match="a multiple of 8"):
        OPS.npu_dynamic_quant(torch.empty(2, 12, dtype=torch.float16, device="meta"), dst_type=torch.quint4x2)
    x = torch.empty(2, 12, device="meta")
    with pytest.raises(OperatorRejected, match="a multiple of 8"):
        OPS.npu_quantize(x, x[0], None, torch.quint4x2, -1, False)

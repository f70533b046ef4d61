"""Meta kernels give the shapes and dtypes of the CPU kernels."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_flatten, tree_map_only

OPS = torch.ops.npu


def product_calls():
    x, weight, ends = torch.rand(5, 8), torch.rand(2, 8, 16), torch.tensor([2, 3])
    rows = {"group_list": ends, "split_item": 2, "group_type": 0}
    operator = "npu_grouped_matmul"
    yield operator, ([x], [weight]), rows
    yield operator, ([x.half()], [weight.half()]), rows | {"split_item": 3, "output_dtype": torch.float16}
    yield operator, ([x, x[:3]], list(weight)), {"split_item": 0, "group_type": -1}
    yield operator, ([x, x[:3]], list(weight)), {"split_item": 2, "group_type": 0}
    yield operator, ([x.t().contiguous().t()], [weight[0]]), {"group_list": ends, "split_item": 2, "group_type": 2}
    yield operator, ([x.to(torch.int8)], [weight.to(torch.int8)]), rows | {"output_dtype": 3}
    yield (
        operator,
        ([x.to(torch.int8)], [torch.zeros(2, 8, 2, dtype=torch.int32)]),
        rows
        | {
            "scale": [torch.zeros(2, 1, 16).long()],
            "bias": [torch.zeros(2, 16)],
            "per_token_scale": [torch.ones(5)],
            "output_dtype": torch.bfloat16,
        },
    )
    words, more = torch.ones(5, 1).int(), {"group_list": torch.tensor([2, 5]), "split_item": 3, "group_type": 0}
    packed = torch.ones(2, 8, 2).int()
    bits = [torch.ones(2, 16).long()]
    yield "npu_grouped_matmul", ([words], [packed]), more | {"scale": bits, "output_dtype": torch.float16}
    integers = torch.ones(5, 8, dtype=torch.int8)
    yield "npu_grouped_matmul", ([integers], [torch.ones(2, 8, 16, dtype=torch.int8)]), more | {"scale": bits}
    listed = "npu_grouped_matmul.List"
    yield listed, ([x], list(weight)), {"group_list": [2, 4], "split_item": 1}
    yield listed, ([x], [weight]), {"group_list": [2, 4], "split_item": 2, "output_dtype": torch.float32}
    yield listed, ([x, x], list(weight)), {"split_item": 0}


def fused_calls():
    x, weight, ends = torch.ones(5, 8, dtype=torch.int8), torch.ones(2, 8, 16, dtype=torch.int8), torch.tensor([2, 3])
    packed, scale, bits = torch.ones(2, 8, 2).int(), torch.ones(2, 16), torch.ones(2, 1, 16).long()
    by_row = torch.ones(5)
    swiglu = "npu_grouped_matmul_swiglu_quant"
    yield swiglu, (x, weight, ends, scale, by_row), {}
    yield swiglu, (x, packed, ends, bits, by_row), {"bias": scale}
    yield f"{swiglu}_v2", (x, [weight], [scale], by_row, ends), {}
    assisted = {"weight_assist_matrix": [scale], "group_list_type": 1}
    yield f"{swiglu}_v2", (x, [packed], [bits], by_row, ends), assisted | {"dequant_mode": 1}
    yield f"{swiglu}_v2", (x, [packed], [bits[:, 0]], by_row, ends), assisted
    yield f"{swiglu}_v2", (torch.ones(5, 1).int(), [packed], [scale], by_row, ends), {}
    tiled = torch.ones(2, 1, 1, 16, 32, dtype=torch.int8)
    rows = torch.ones(5, 16, dtype=torch.int8)
    yield f"{swiglu}_v2", (rows, [tiled], [torch.ones(2, 32)], by_row, ends), {}
    rows = {"pertoken_scale": by_row, "logit": by_row, "row_index": torch.zeros(5).long()}
    finalize = "npu_grouped_matmul_finalize_routing"
    yield finalize, (x, weight, ends), rows | {"scale": scale}
    yield finalize, (x, packed, ends), rows | {"scale": bits, "bias": scale, "output_bs": 3, "dtype": torch.float32}


CALLS = [*product_calls(), *fused_calls()]


def shapes(outputs):
    return [(tuple(t.shape), t.dtype) for t in tree_flatten(outputs)[0]]


@pytest.mark.parametrize("kind", ["meta", "fake"])
@pytest.mark.parametrize("number", range(len(CALLS)))
def test_shape_kernels_agree_with_eager(kind, number):
    qualified, arguments, more = CALLS[number]
    name, _, overload = qualified.partition(".")
    operator = getattr(getattr(OPS, name), overload or "default")
    eager = shapes(operator(*arguments, **more))
    mode = FakeTensorMode()
    move = mode.from_tensor if kind == "fake" else lambda t: t.to("meta")
    arguments, more = tree_map_only(torch.Tensor, move, (arguments, more))
    with mode if kind == "fake" else torch.no_grad():
        assert shapes(operator(*arguments, **more)) == eager

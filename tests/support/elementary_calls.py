"""Calls of operators that torch has under another name, and of small ones beside them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from operator_calls import Call, draw, integers


def elementary_calls() -> Iterator[Call]:
    """Yield all calls."""
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        x, grad = draw(3, 4, 8, dtype=dtype), draw(3, 4, 8, dtype=dtype, seed=1)
        for approximate in ("none", "tanh"):
            yield Call("npu_gelu", (x,), {"approximate": approximate})
            yield Call("npu_gelu_mul", (x,), {"approximate": approximate})
            yield Call("npu_gelu_backward", (grad, x), {"approximate": approximate})
        yield Call("npu_silu", (x,))
        yield Call("npu_silu_", (x,))
        yield Call("npu_silu_backward", (grad, x, x))
        yield Call("npu_mish", (x,))
        yield Call("npu_mish_backward", (grad, x))
        yield Call("npu_layer_norm_eval", (x, [4, 8], grad[0], None, 1e-3))
        yield Call("batch_norm_reduce", (draw(2, 3, 4, 5, dtype=dtype), 1e-5))
        yield Call("one_", (x,))
        yield Call("npu_linear", (x[0], grad[1], draw(4, dtype=dtype, seed=2)))
        yield Call("npu_linear_backward", (draw(4, 4, dtype=dtype, seed=2), x[0], grad[1]))
        yield Call("npu_bmmV2", (x, draw(3, 8, 4, dtype=dtype, seed=1), []))
        yield Call(
            "npu_bmm_v2_mat1_backward",
            (draw(3, 4, 4, dtype=dtype, seed=2), x, draw(3, 8, 4, dtype=dtype, seed=1), [3, 4, 8]),
        )
        yield Call(
            "npu_bmm_v2_mat2_backward",
            (draw(3, 4, 4, dtype=dtype, seed=2), x, draw(3, 8, 4, dtype=dtype, seed=1), [3, 8, 4]),
        )
        for name in ("npu_max", "npu_min"):
            yield Call(f"{name}.dim", (x, 1, True))
            yield Call(f"{name}.dim", (x, -1))
            yield Call(f"{name}_backward", (draw(3, 8, seed=3), 1, integers(3, 8, low=0, high=4), [3, 4, 8], False))
        yield Call("npu_sort_v2", (x, 1, True))
        yield from _moved(x)
    yield Call("npu_one_hot", (integers(2, 3, low=0, high=5, dtype=torch.int32), -1, 5, 2, -1))
    yield Call("npu_sign_bits_pack", (draw(30), 2))
    yield Call("npu_sign_bits_unpack", (integers(6, low=0, high=256, dtype=torch.uint8), 3, torch.float16))
    # The wheel's shape function says float32, whatever the input is.
    yield Call("npu_softmax_cross_entropy_with_logits", tuple(draw(3, 8, dtype=torch.float32) for _ in range(2)))
    yield from _quantised()


def _moved(x: Any) -> Iterator[Call]:
    yield Call("npu_broadcast", (x[:1], [2, 3, 4, 8]))
    yield Call("npu_reshape", (x, [8, 12]))
    yield Call("npu_transpose", (x, [2, 0, 1]))
    for first in (True, False):
        yield Call("npu_confusion_transpose", (x, [1, 0, 2] if first else [1, 0], [4, 24], first))
    yield Call("npu_confusion_transpose_backward", (x.reshape(4, 24), [1, 0, 2], [3, 4, 8], False))
    yield Call("npu_slice", (x, [1, 0, 2], [2, 4, 5]))
    yield Call("npu_indexing", (x, [0, 1, 0], [3, 4, 8], [2, 1, 3]))
    yield Call("npu_pad", (x, [1, 2, 0, 1]))


def _quantised() -> Iterator[Call]:
    scale = draw(8, dtype=torch.float32)
    for dst_dtype in (None, 15):
        yield Call("npu_anti_quant", (integers(3, 8), scale), {"offset": scale, "dst_dtype": dst_dtype})
        yield Call("npu_anti_quant", (integers(3, 1, dtype=torch.int32), scale), {"dst_dtype": dst_dtype})
    ends = torch.tensor([2, 2, 5])
    for dtype in (None, torch.int8, torch.quint4x2):
        yield Call("npu_group_quant", (draw(5, 8), draw(3, 8, seed=1), ends), {"dst_dtype": dtype})
    for name in ("npu_quant_scatter", "npu_quant_scatter_"):
        updates = (draw(2, 1, 32), torch.full((32,), 0.1), integers(32, dtype=torch.int32))
        yield Call(name, (integers(3, 4, 32), torch.tensor([[2, 0], [0, 3]], dtype=torch.int32), *updates))
    counts = torch.tensor([[1, 2], [0, 3]], dtype=torch.int32)
    yield Call("npu_moe_re_routing", (draw(6, 4), counts), {"per_token_scales": draw(6, dtype=torch.float32)})
    yield Call("_npu_dropout_gen_mask.Tensor", (draw(1), [3, 50], 0.25, 7, 4))

"""Calls of simulated operators that no adapter makes yet: for shape functions, torch_npu's own, and the virtual NPU.

A call is an operator's name, its tensors and other arguments by position, and its keywords. Tensors are on the host and
have the same bits each time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

_E4M3, _E8M0 = torch.float8_e4m3fn, torch.float8_e8m0fnu


@dataclass(frozen=True)
class Call:
    """One call, and where the shape function of the wheel says something else than the operator gives."""

    name: str
    """Of the operator, with its overload if it has one; a namespace other than ``npu`` stands in front."""
    arguments: tuple[Any, ...]
    keywords: dict[str, Any] = field(default_factory=dict)
    placeholders: tuple[int, ...] = ()
    """Outputs that nobody asked for, whose shapes the wheel's shape function and its host code do not agree on."""

    defect: str = ""
    """What the wheel's shape function raises for this call, which is legal."""

    undeclared: bool = False
    """Whether it writes into arguments that its schema does not declare as written."""

    @property
    def qualified(self) -> str:
        """``namespace::name``."""
        return self.name if "::" in self.name else f"npu::{self.name}"

    def run(self, move: Any = lambda tensor: tensor) -> Any:
        """Make the call with tensors that ``move`` has moved."""
        space, _, name = self.qualified.partition("::")
        name, _, overload = name.partition(".")
        operator = getattr(getattr(torch.ops, space), name)
        return (getattr(operator, overload) if overload else operator)(
            *(_moved(value, move) for value in self.arguments),
            **{key: _moved(value, move) for key, value in self.keywords.items()},
        )


@dataclass(frozen=True)
class Tiled:
    """A tensor that is cast to FRACTAL_NZ where it is."""

    tensor: Tensor


def _moved(value: Any, move: Any) -> Any:
    if isinstance(value, Tiled):
        return torch.ops.npu.npu_format_cast(move(value.tensor), 29)
    if isinstance(value, Tensor):
        return move(value)
    return [_moved(one, move) for one in value] if isinstance(value, list) else value


def draw(*shape: int, dtype: torch.dtype = torch.float16, seed: int = 0) -> Tensor:
    """Return normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def integers(*shape: int, low: int = -128, high: int = 128, dtype: torch.dtype = torch.int8, seed: int = 0) -> Tensor:
    """Return whole numbers from low to below high."""
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def calls() -> Iterator[Call]:
    """Yield all calls."""
    yield from _norms()
    yield from _quantisation()
    yield from _matmul()
    yield from _cache()
    yield from _block_scaled()
    yield from _dual_level()
    yield from _casts()
    yield from _sampling()
    yield from _routing()
    yield from _activation()
    yield from _gradients()
    yield from _gated_delta_rules()
    from elementary_calls import elementary_calls

    yield from elementary_calls()


def calls_of_other_packages() -> Iterator[Call]:
    """Yield calls of operators that are not torch_npu's."""
    yield from _causal_conv1d()
    yield from _sgl_recurrent()
    yield from _sgl_chunks()
    yield from _sgl_attention()
    yield from _adapters()
    yield from _sgl_sampling()


def _norms() -> Iterator[Call]:
    for dtype in (torch.float16, torch.bfloat16):
        x, other, gamma = draw(2, 3, 16, dtype=dtype), draw(2, 3, 16, dtype=dtype, seed=1), draw(16, dtype=dtype)
        scales = torch.full((16,), 0.05, dtype=torch.float32 if dtype == torch.float16 else dtype)
        zeros = torch.ones(16, dtype=torch.int32 if dtype == torch.float16 else dtype)
        yield Call("npu_add_rms_norm_quant", (x, other, gamma, scales, None), placeholders=(1,))
        yield Call("npu_add_rms_norm_quant", (x, other, gamma, scales, zeros, gamma, scales, zeros))
        for y_dtype in (None, torch.int8, torch.quint4x2):
            smooth = {"smooth_scale1": gamma, "smooth_scale2": gamma, "y_dtype": y_dtype}
            yield Call("npu_add_rms_norm_dynamic_quant", (x, other, gamma), smooth)
        for mask, absent in (([True, False], (1, 4)), ([False, True], (0, 3))):
            more = {"output_mask": mask, "beta": gamma}
            yield Call("npu_add_rms_norm_dynamic_quant", (x, other, gamma), more, placeholders=absent)
        offset = torch.tensor([3], dtype=torch.int8)
        for dst_dtype in (None, torch.int8, torch.quint4x2):
            arguments = (x, gamma, gamma.view(1, 16), scales[:1].to(dtype), offset)
            yield Call("npu_rms_norm_quant", arguments, {"dst_dtype": dst_dtype})
    keys, values, table = draw(2, 2, 3, 192), draw(2, 2, 3, 128), draw(2, 1, 3, 64)
    caches = (draw(4, 16, 2, 192), draw(4, 16, 2, 128))
    tensors = (keys, draw(192), table, table, torch.arange(6), *caches)
    # The first version writes caches that its schema does not declare as written.
    for version in ("_v2", "_v2_functional"):
        more = {"v": values, "cache_mode": "PA", "is_output_kv": True}
        yield Call(f"npu_kv_rmsnorm_rope_cache{version}", tensors, more)


def _quantisation() -> Iterator[Call]:
    x, ends = draw(2, 3, 16, dtype=torch.bfloat16), torch.tensor([1, 4, 6], dtype=torch.int32)
    for dst_type in (None, torch.int8, torch.quint4x2):
        more = {"smooth_scales": draw(3, 16, dtype=torch.bfloat16, seed=1), "group_index": ends, "dst_type": dst_type}
        yield Call("npu_dynamic_quant_asymmetric", (x,), more)
    left, right, scale = integers(3, 5, 64), integers(3, 64, 32, seed=1), torch.full((32,), 0.001)
    for dtype in (torch.float32, torch.bfloat16):
        yield Call("npu_quant_matmul_gelu", (left, right, scale[:5], scale.to(dtype)), {"approximate": "gelu_tanh"})
    words = integers(5, 4, low=-(2**31), high=2**31, dtype=torch.int32), integers(32, 4, dtype=torch.int32)
    bias = {"bias": integers(32, dtype=torch.int32)}
    yield Call("npu_quant_matmul_gelu", (*words, scale[:5], scale), bias, defect="k dim of x1")
    more = {"x1_scale": draw(3, 5, dtype=torch.float32), "x2_scale": scale.bfloat16()}
    yield Call("npu_quant_matmul_reduce_sum", (left, Tiled(right)), more)
    step = [integers(6, low=0, high=9, dtype=torch.int64, seed=seed) for seed in range(4)]
    sampled, table = integers(3, 1, low=0, high=9, dtype=torch.int64), integers(6, 4, low=0, high=9, dtype=torch.int64)
    yield Call("npu_advance_step_flashattn", (step[0], sampled, *step[1:], table, 6, 3, 4))


def _matmul() -> Iterator[Call]:
    x, weight = draw(4, 3, 16), draw(4, 16, 8, seed=1)
    swapped = x.transpose(0, 1).contiguous()
    yield Call("npu_transpose_batchmatmul", (x, weight))
    for factor in (1, 2, 4):
        more = {"perm_x1": (1, 0, 2), "perm_x2": [0, 1, 2], "perm_y": (1, 0, 2), "batch_split_factor": factor}
        yield Call("npu_transpose_batchmatmul", (swapped.bfloat16(), weight.bfloat16()), more)
    left, right, columns = draw(3, 4, 128).to(_E4M3), draw(4, 128, 8, seed=1).to(_E4M3), torch.ones(8)
    orders = {"perm_x1": [1, 0, 2], "perm_x2": [0, 1, 2], "perm_y": [1, 0, 2]}
    for dtype in (torch.float16, torch.bfloat16):
        more = {"x1_scale": torch.ones(3), "x2_scale": columns, **orders}
        yield Call("npu_transpose_quant_batchmatmul", (left, right, dtype), more)
    one, other = (torch.full(shape, 130, dtype=torch.uint8).view(_E8M0) for shape in ((3, 4, 2, 2), (4, 2, 8, 2)))
    more = {"x1_scale": one, "x2_scale": other, "group_sizes": [0, 0, 32], **orders}
    yield Call("npu_transpose_quant_batchmatmul", (left, right, torch.bfloat16), more)
    words = torch.full((32,), 2**46 + 0x3F800000)  # scales of 1
    yield Call("npu_transpose_batchmatmul", (x, weight), {"scale": words})
    yield Call("atb::_npu_matmul_add_fp32", (x[0], x[1], torch.ones(16, 16)))


def _cache() -> Iterator[Call]:
    offsets = torch.tensor([2, 0])
    for name in ("scatter_update", "scatter_update_"):
        for indices in (offsets, offsets.int()):
            yield Call(name, (draw(3, 4, 5), indices, draw(2, 2, 5, seed=1), -2))


def _block_scaled() -> Iterator[Call]:
    x = draw(3, 64, 70, dtype=torch.bfloat16)
    for dst_type in (296, 297, 291, 292, torch.float8_e5m2, torch.float8_e4m3fn):
        yield Call("npu_dynamic_mx_quant", (x,), {"dst_type": dst_type})
        yield Call("npu_dynamic_mx_quant", (x,), {"dst_type": dst_type, "axis": 1, "block_size": 64})
    yield Call("npu_dynamic_mx_quant", (x.float(),), {"scale_alg": 2, "dst_type_max": 7.0})
    for width in (2, 70, 514):
        yield Call("npu_dynamic_dual_level_mx_quant", (draw(2, width),))
    for dst_dtype in (None, torch.int32, 296):
        arguments = (draw(3, 7, 16), draw(7, 7, seed=1), draw(16, 16, seed=2), 0.75, dst_dtype)
        yield Call("npu_kronecker_quant", arguments)
    for dst_type in (1, 291, torch.float8_e4m3fn):
        yield Call("npu_dynamic_block_quant", (x,), {"dst_type": dst_type})
        sizes = {"row_block_size": 128, "col_block_size": 64}
        yield Call("npu_dynamic_block_quant", (draw(130, 70),), {"dst_type": dst_type, **sizes})


def _dual_level() -> Iterator[Call]:
    x1, x2 = integers(3, 257, dtype=torch.uint8, low=0, high=256), integers(5, 257, low=-128, high=128)
    scales = (draw(3, 2, dtype=torch.float32), draw(2, 5, dtype=torch.float32, seed=1))
    exponents = [integers(rows, 9, 2, low=120, high=134, dtype=torch.uint8) for rows in (3, 5)]
    for dtype in (torch.float16, torch.bfloat16):
        more = {"bias": draw(5, dtype=torch.float32), "output_dtype": dtype}
        yield Call("npu_dual_level_quant_matmul", (x1, Tiled(x2), *scales, *exponents), more)


def _casts() -> Iterator[Call]:
    x = draw(3, 8, dtype=torch.float32)
    for dtype in (torch.bfloat16, torch.int32, torch.float32, 292, 296, 297):
        yield Call("npu_dtype_cast", (x, dtype))
    packed = integers(3, 8, low=0, high=256, dtype=torch.uint8)
    yield Call("npu_dtype_cast", (packed, torch.float16), {"input_dtype": 296})


def _sampling() -> Iterator[Call]:
    p, k = torch.tensor([0.9, 0.5, 1.0]), torch.tensor([3, 40, 1], dtype=torch.int32)
    for dtype in (torch.float16, torch.float32):
        logits = draw(3, 40, dtype=dtype)
        for one in (p.to(dtype), None):
            yield Call("npu_top_k_top_p", (logits, one, k))
        defect = "missing 1 required positional argument: 'k'"
        yield Call("npu_top_k_top_p", (logits, p.to(dtype), None), defect=defect)


def _activation() -> Iterator[Call]:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        x = draw(2, 4, 6, dtype=dtype)
        for dim in (-1, 1):
            yield Call("npu_geglu", (x,), {"dim": dim, "approximate": dim + 1 and 1, "activate_left": dim > 0})
        yield Call("npu_fast_gelu", (x,))
        yield Call("fast_gelu", (x,))
    table, positions = draw(10, 8, dtype=torch.float32), integers(5, low=0, high=10, dtype=torch.int64)
    for neox in (True, False):
        yield Call("atb::_npu_rotary_embedding", (positions, draw(5, 32), draw(5, 8, seed=1), 8, table, neox))
    yield Call("npu_prefetch", (draw(4), None, 100, 2))


def _gradients() -> Iterator[Call]:
    x, grad = draw(2, 3, 4, 8), draw(2, 3, 4, 8, seed=1)
    yield Call("npu_fast_gelu_backward", (grad, x))
    yield Call("npu_swiglu_backward", (grad[:, :, :2], x, 2))
    yield Call("npu_rms_norm_backward", (grad, x, draw(4, 8), torch.ones(2, 3, 1, 1)))
    for mode in ("half", "interleave"):
        yield Call("npu_rotary_mul_backward", (grad, x, draw(1, 3, 1, 8), draw(1, 3, 1, 8), mode))
    query, key = draw(2, 4, 5, 16), draw(2, 2, 7, 16, seed=1)
    kept = {name: torch.full((2, 4, 5, 8), 6.0) for name in ("softmax_max", "softmax_sum")}
    more = {"attention_in": query, **kept}
    attended = (query, key, key, draw(2, 4, 5, 16, seed=2), 4, "BNSD")
    yield Call("npu_fusion_attention_grad_v2", attended, more, defect="empty_like")


def _routing() -> Iterator[Call]:
    x, experts = draw(5, 16, dtype=torch.bfloat16), integers(5, 2, low=0, high=4, dtype=torch.int32)
    for mode in (0, 1, 2):
        more = {"active_num": 7 if mode else 0, "expert_num": 4, "expert_tokens_num_mode": mode}
        yield Call("npu_moe_init_routing_quant", (x, experts), more)
        yield Call(
            "npu_moe_init_routing_quant",
            (x, experts),
            more | {"drop_pad_mode": 1, "expert_capacity": 2, "expert_tokens_before_capacity_flag": mode > 0},
        )
    static = {"scale": torch.ones(1), "offset": torch.ones(1), "expert_num": 4, "quant_mode": 0}
    yield Call("npu_moe_init_routing_quant", (x, experts), static)


def _int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def _gated_delta_rules() -> Iterator[Call]:
    bf16 = torch.bfloat16
    tensors = (draw(70, 1, 16, dtype=bf16), draw(70, 1, 16, dtype=bf16, seed=1) / 4, draw(70, 2, 8, dtype=bf16, seed=2))
    gates = {"beta": draw(70, 2, dtype=bf16, seed=3).sigmoid(), "g": -draw(70, 2, dtype=torch.float32, seed=4).abs()}
    states = {"initial_state": draw(2, 2, 8, 16, dtype=bf16, seed=5), "actual_seq_lengths": _int32(67, 3)}
    for g in (gates["g"], None):
        yield Call("npu_chunk_gated_delta_rule", tensors, {**gates, **states, "scale": 0.25, "g": g})
    few = tuple(one[:5].contiguous() for one in tensors)
    state = draw(7, 2, 8, 16, dtype=bf16, seed=6)
    more = {name: one[:5].contiguous() for name, one in gates.items()}
    more |= {"actual_seq_lengths": _int32(3, 2), "ssm_state_indices": _int32(4, 0, 2, 6, 6)}
    for accepted in (None, _int32(2, 1)):
        for gk in (None, -draw(5, 2, 16, dtype=torch.float32, seed=7).abs()):
            keywords = {**more, "scale": 0.25, "num_accepted_tokens": accepted, "gk": gk}
            for form in ("", "_functional"):
                yield Call(f"npu_recurrent_gated_delta_rule{form}", (*few, state), keywords)


def _causal_conv1d() -> Iterator[Call]:
    for dtype in (torch.float16, torch.bfloat16):
        for width in (2, 4):
            tensors = (
                draw(7, 32, dtype=dtype),
                draw(width, 32, dtype=dtype, seed=1),
                draw(4, 6, 32, dtype=dtype, seed=2),
            )
            more = {"query_start_loc": _int32(0, 2, 3, 7), "cache_indices": _int32(2, -1, 0), "activation_mode": 1}
            begun = {"has_initial_state": torch.tensor([True, True, False]), "bias": draw(32, dtype=dtype, seed=3)}
            yield Call("causal_conv1d", tensors, {**more, **begun})
            accepted = {"num_accepted_tokens": _int32(2, 1, 3), "run_mode": 1}
            yield Call("causal_conv1d", tensors, {**more, **accepted})


def _sgl_recurrent() -> Iterator[Call]:
    bf16 = torch.bfloat16
    tensors = (
        draw(2, 3, 2 * 128 + 2 * 8, dtype=bf16),
        draw(4, 2, 8, 128, dtype=bf16, seed=1),
        draw(2, 3, 2, dtype=bf16),
    )
    slots = torch.tensor([[3, 4, 5], [9, 10, 11]], dtype=torch.int32)
    more = {"intermediate_state": draw(12, 2, 8, 128, dtype=bf16, seed=2), "cache_indices": _int32(1, 3)}
    gates = {"g": -draw(2, 3, 2, dtype=torch.float32, seed=3).abs(), "num_accepted_tokens": _int32(1, 2)}
    yield Call("recurrent_gated_delta_rule", (*tensors, 0.1, _int32(3, 2), slots, 1, 2), {**more, **gates})
    own = torch.tensor([[3, 0, 0], [1, 0, 0]], dtype=torch.int32)
    yield Call("recurrent_gated_delta_rule", (*tensors, 0.1, _int32(1, 1), own, 1, 2))


def _sgl_chunks() -> Iterator[Call]:
    bf16 = torch.bfloat16
    tensors = (draw(70, 1, 16, dtype=bf16), draw(70, 1, 16, dtype=bf16, seed=1) / 4, draw(70, 2, 8, dtype=bf16, seed=2))
    gates = {"beta": draw(70, 2, dtype=bf16, seed=3).sigmoid(), "g": -draw(70, 2, dtype=torch.float32, seed=4).abs()}
    states = {"initial_state": draw(3, 2, 8, 16, dtype=bf16, seed=5), "actual_seq_lengths": _int32(67, 0, 3)}
    for chunk_state in (torch.zeros(4, 2, 8, 16, dtype=bf16), None):
        yield Call("chunk_gated_delta_rule", tensors, {**gates, **states, "scale": 0.25, "chunk_state": chunk_state})


def _sgl_attention() -> Iterator[Call]:
    bf16 = torch.bfloat16
    query, key = draw(3, 4, 512, dtype=bf16), draw(4, 16, 1, 512, dtype=bf16, seed=1)
    where = {"actual_seq_lengths_query": _int32(2, 3), "actual_seq_lengths_kv": _int32(30, 9)}
    ropes = {"query_rope": draw(3, 4, 64, dtype=bf16, seed=2), "key_rope": draw(4, 16, 1, 64, dtype=bf16, seed=3)}
    layouts = {"layout_query": "TND", "layout_kv": "PA_BSND", "sparse_mode": 0, "return_softmax_lse": True}
    indices = torch.arange(9, dtype=torch.int32).expand(3, 1, 9).contiguous()
    table = torch.tensor([[3, 1], [0, 2]], dtype=torch.int32)
    more = {**where, **ropes, **layouts, "block_table": table}
    yield Call("sgl_sparse_flash_attention", (query, key, key, indices, 0.05), more)


def _adapters() -> Iterator[Call]:
    for dtype in (torch.float16, torch.bfloat16):
        given = (_int32(1, -1, 0), _int32(2, 1, 2), _int32(8, 16))
        shrink = (draw(6, 48, dtype=dtype), draw(2, 16, 48, dtype=dtype, seed=1), *given, draw(2, seed=2))
        yield Call("sgemmv_shrink", (*shrink, draw(6, 16, dtype=torch.float32, seed=3)))
        expand = (draw(6, 32, dtype=torch.float32), draw(2, 48, 16, dtype=dtype, seed=1), *given, _int32(0, 16, 48))
        yield Call("sgemmv_expand", (*expand, draw(6, 48, dtype=dtype, seed=3)))
        product = (draw(5, 3, 32, dtype=dtype), draw(3, 32, 16, dtype=dtype, seed=1), draw(5, 3, 16, dtype=dtype))
        yield Call("batch_matmul_transpose", product)


def _sgl_sampling() -> Iterator[Call]:
    for dtype in (torch.float16, torch.float32):
        bitmask = integers(3, 2, low=-(2**31), high=2**31, dtype=torch.int32)
        for indices in (None, _int32(2, 0)):
            yield Call("apply_token_bitmask", (draw(3, 70, dtype=dtype), bitmask, indices), undeclared=True)
    pool, ends = integers(3, 40, low=0, high=999, dtype=torch.int32), torch.tensor([5, 40])
    slots = (_int32(2, 0), pool, torch.tensor([1, 30]), ends, torch.zeros(16, dtype=torch.int32))
    yield Call("cache_loc_update", slots, undeclared=True)
    tree = (torch.tensor([[-1, 0, 1]]), torch.tensor([[0, 1, 3]]), torch.tensor([2]), torch.ones(24, dtype=torch.bool))
    links = tuple(torch.zeros(1, 4, dtype=torch.int64) for _ in range(4))
    yield Call("build_tree_kernel_efficient", (*tree, *links, 2, 2, 4, 0), undeclared=True)

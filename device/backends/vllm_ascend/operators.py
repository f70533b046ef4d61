"""Stand-ins for vllm-ascend's operators in C++, ``torch.ops._C_ascend``, whose library runs on a card only.

Schemas are those of the sources beside the package, or of the library inside it. An operator computes where it says the
same as operators of torch_npu, which its composition calls; any other raises its name. With them there
``enable_custom_op()`` of vllm-ascend is True, as it is on a machine with a card.
"""

from __future__ import annotations

import importlib.machinery
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from npudiff.device.backends.vllm_ascend.formulas import FORMULAS
from npudiff.device.simulator.errors import NotSimulated, OperatorMissing
from npudiff.device.simulator.mla.preprocess_checks import CACHE_MODES
from npudiff.text import counted

SPACE = "_C_ascend"
SOURCES = ("csrc", "torch_binding.cpp")
LIBRARY = "vllm_ascend_C*.so"

_OTHER_CHIP = re.compile(r"#ifdef ASCEND_PLATFORM_310P.*?#else", re.DOTALL)
_DEFINED = re.compile(r'\bops\.def\(\s*((?:"(?:[^"\\]|\\.)*"\s*)+)')
_LITERAL = re.compile(r'"((?:[^"\\]|\\.)*)"')
_SCHEMA = re.compile(rb"(?<![\w.:])[a-z]\w+\((?:Tensor|str)[ -~]*?\) *-> *(?:\([ -~]*?\)|Tensor\b)")
_FORMAT_ND = 2
_NO_LIMIT = torch.finfo(torch.float32).max

Tensor = torch.Tensor
Function = Callable[..., Any]

_libraries: list[torch.library.Library] = []
"""They are kept, since a registration lives as long as its library."""


def schemas_of(package: Path) -> tuple[list[str], str]:
    """Return the schemas of a package's operators, and where they were found; none if there is neither.

    Parameters
    ----------
    package : pathlib.Path
        The folder of ``vllm_ascend``: its sources lie beside it, its library inside.
    """
    sources = package.parent.joinpath(*SOURCES)
    if sources.is_file():
        return [*_of_sources(sources.read_text(encoding="utf-8"))], "/".join(SOURCES)
    for library in sorted(package.glob(LIBRARY)):
        return [*_of_library(library.read_bytes())], library.name
    return [], ""


def _of_sources(text: str) -> Iterator[str]:
    for found in _DEFINED.finditer(_OTHER_CHIP.sub("", text)):
        yield "".join(_LITERAL.findall(found.group(1))).replace(r"\"", chr(34))


def _of_library(content: bytes) -> Iterator[str]:
    yield from dict.fromkeys(found.group().decode() for found in _SCHEMA.finditer(content))


def stand_in(package: Path) -> tuple[Counter[str], tuple[str, ...]]:
    """Define the operators of a package whose library is not loaded; return how often each was called, and what to say.

    Parameters
    ----------
    package : pathlib.Path
        The folder of ``vllm_ascend``.
    """
    calls: Counter[str] = Counter()
    found, where = schemas_of(package)
    if not found:
        return calls, ("without its own operators in C++ (_C_ascend): torch_npu's are taken",)
    library = torch.library.Library(SPACE, "FRAGMENT")  # type: ignore[no-untyped-call]
    _libraries.append(library)
    named = {schema.partition("(")[0]: schema for schema in found}
    others = [name for name in named if not hasattr(torch.ops._C_ascend, name)]
    for name in others:
        library.define(named[name])  # type: ignore[no-untyped-call]
        key = "PrivateUse1" if name in COMPOSED else "CompositeExplicitAutograd"
        library.impl(name, _counted(name, COMPOSED.get(name), calls), key)  # type: ignore[no-untyped-call]
    module = ModuleType("vllm_ascend.vllm_ascend_C", "Stands in for a library that needs a card.")
    module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
    sys.modules[module.__name__] = module
    calls.update({f"{SPACE}::{name}": 0 for name in others if name in COMPOSED})
    simulated = [name for name in named if name not in others]
    line = (
        f"{SPACE}: {counted(len(named), 'operator')} as {where} defines them, {len(calls)} of them stood in for by "
        f"torch_npu's, {', '.join(simulated) or 'none'} simulated; others raise their name"
    )
    return calls, (line,)


def _counted(name: str, function: Function | None, calls: Counter[str]) -> Function:
    def called(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - as the dispatcher has them
        calls[f"{SPACE}::{name}"] += 1
        if function is None:
            raise OperatorMissing(f"{SPACE}::{name}", "nothing of torch_npu that is known here says the same")
        return function(*arguments, **named)

    return called


def _add_rms_norm_bias(
    x1: Tensor, x2: Tensor, gamma: Tensor, beta: Tensor | None = None, epsilon: float = 1e-6
) -> tuple[Tensor, Tensor, Tensor]:
    output, rstd, total = torch.ops.npu.npu_add_rms_norm(x1, x2, gamma, epsilon)
    return output if beta is None else output + beta, rstd, total


def _gemma_rms_norm(x: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    output, rstd = torch.ops.npu.npu_gemma_rms_norm(x, gamma, epsilon)
    return output, rstd


def _moe_gating_top_k(
    x: Tensor, k: int, k_group: int, group_count: int, group_select_mode: int, renorm: int, norm_type: int,
    out_flag: bool, routed_scaling_factor: float, eps: float, bias_opt: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """npu_moe_gating_top_k in float32, which leaves a softmax as it is; ``renorm`` divides by the sum of the chosen."""
    if norm_type == 1 or not renorm:
        return _gating(x, k, k_group, group_count, group_select_mode, norm_type, routed_scaling_factor, eps, bias_opt)
    bias = None if bias_opt is None else bias_opt.float()
    y, experts, scores = _gating(x.float(), k, k_group, group_count, group_select_mode, norm_type, 1.0, eps, bias)
    return (y / (y.sum(1, keepdim=True) + eps) * routed_scaling_factor).to(x.dtype), experts, scores


def _gating(
    x: Tensor, k: int, k_group: int, group_count: int, mode: int, norm_type: int, scaling: float, eps: float,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    y, experts, scores = torch.ops.npu.npu_moe_gating_top_k(
        x, k, bias=bias, k_group=k_group, group_count=group_count, group_select_mode=mode, renorm=0,
        norm_type=norm_type, out_flag=True, routed_scaling_factor=scaling, eps=eps,
    )  # fmt: skip
    return y, experts, scores


def _swiglu_quant(
    x: Tensor, weight: Tensor, weight_scale: Tensor, x_scale: Tensor, group_list: Tensor, *,
    bias: Tensor | None = None, offset: Tensor | None = None, swiglu_limit: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    if swiglu_limit:
        rows, scale = _limited(x, weight, weight_scale.to(torch.bfloat16), x_scale, group_list, swiglu_limit)
        return rows, scale, scale.new_empty(0)
    rows, scale, offsets = torch.ops.npu.npu_grouped_matmul_swiglu_quant(
        x, weight, group_list, weight_scale, x_scale, bias=bias, offset=offset
    )
    return rows, scale, offsets


def _limited(
    x: Tensor, weight: Tensor, scale: Tensor, x_scale: Tensor, group_list: Tensor, limit: float,
    bias: list[Tensor] | None = None, group_list_type: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Limit gates and ups before the activation, in bfloat16, where the kernel does so in float32."""
    (states,) = torch.ops.npu.npu_grouped_matmul(
        [x], [weight], scale=[scale], per_token_scale=[x_scale], bias=bias, group_list=group_list, split_item=2,
        group_type=0, group_list_type=group_list_type, output_dtype=torch.bfloat16,
    )  # fmt: skip
    gate, up = states.chunk(2, dim=-1)
    rows = torch.ops.npu.npu_swiglu(torch.cat((gate.clamp(max=limit), up.clamp(-limit, limit)), dim=-1))
    quantised, scales = torch.ops.npu.npu_dynamic_quant(rows)
    return quantised, scales


def _swiglu_quant_of_list(
    x: Tensor, weight: list[Tensor], weight_scale: list[Tensor], x_scale: Tensor, group_list: Tensor, *,
    bias: Tensor | None = None, offset: Tensor | None = None, swiglu_limit: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _swiglu_quant(
        x, _of_all(weight, 2), _of_all(weight_scale, 1), x_scale, group_list, bias=bias, offset=offset,
        swiglu_limit=swiglu_limit,
    )  # fmt: skip


def _of_all(tensors: list[Tensor], rank: int) -> Tensor:
    """Return one tensor of all experts: the only one, or those of one expert each, of this rank, in their format."""
    if tensors[0].dim() > rank:
        return tensors[0]
    form = torch.ops.npu.get_npu_format(tensors[0])
    plain = torch.stack([torch.ops.npu.npu_format_cast(one, _FORMAT_ND) for one in tensors])
    whole: Tensor = torch.ops.npu.npu_format_cast(plain, form)
    return whole


def _swiglu_quant_v2(
    x: Tensor, weight: list[Tensor], weight_scale: list[Tensor], x_scale: Tensor, group_list: Tensor,
    smooth_scale: Tensor | None = None, weight_assist_matrix: list[Tensor] | None = None, bias: Tensor | None = None,
    dequant_mode: int | None = 0, dequant_dtype: int | None = 0, quant_mode: int | None = 0,
    quant_dtype: int | None = 0, transpose_weight: bool = False, group_list_type: int = 0,
    tuning_config: list[int] | None = None, swiglu_limit: float = 0.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What dtypes are called in numbers, and a transposition, do not reach the operator behind it."""
    del dequant_dtype, quant_dtype, transpose_weight, tuning_config
    whole, scales = _of_all(weight, 2), _of_all(weight_scale, 1)
    assist = None if weight_assist_matrix is None else [_of_all(weight_assist_matrix, 1)]
    if swiglu_limit:
        scales = scales.unsqueeze(1) if scales.dim() == 2 else scales
        return _limited(x, whole, scales, x_scale, group_list, swiglu_limit, assist, group_list_type)
    rows, scale = torch.ops.npu.npu_grouped_matmul_swiglu_quant_v2(
        x, [whole], [scales], x_scale, group_list, smooth_scale=smooth_scale, weight_assist_matrix=assist, bias=bias,
        dequant_mode=dequant_mode, quant_mode=quant_mode, group_list_type=group_list_type,
    )  # fmt: skip
    return rows, scale


def _dequant_swiglu_quant(
    x: Tensor, *, weight_scale: Tensor | None = None, activation_scale: Tensor | None = None,
    bias: Tensor | None = None, quant_scale: Tensor | None = None, quant_offset: Tensor | None = None,
    group_index: Tensor | None = None, activate_left: bool = True, quant_mode: int = 0, swiglu_mode: int = 0,
    clamp_limit: float = 0.0, glu_alpha: float = 1.0, glu_bias: float = 0.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Mode 1 takes halves of a row, as its kernel does, and torch_npu's mode 2; its header has odd and even columns."""
    more: dict[str, Any] = {}
    if swiglu_mode == 1:
        limit = clamp_limit or _NO_LIMIT
        more = {"swiglu_mode": 2, "clamp_limit": limit, "glu_alpha": glu_alpha, "glu_bias": glu_bias}
    elif swiglu_mode:
        raise NotSimulated(f"{SPACE}::npu_dequant_swiglu_quant", "swiglu_mode", swiglu_mode, "0 or 1")
    if weight_scale is not None and weight_scale.dim() == 1:
        weight_scale = weight_scale.unsqueeze(0)
    rows, scale = torch.ops.npu.npu_dequant_swiglu_quant(
        x, weight_scale=weight_scale, activation_scale=activation_scale, bias=bias, quant_scale=quant_scale,
        quant_offset=quant_offset, group_index=group_index, activate_left=activate_left, quant_mode=quant_mode, **more,
    )  # fmt: skip
    return rows, scale


def _mla_preprocess(hidden: Tensor, *given: Any) -> tuple[Tensor, ...]:  # noqa: ANN401 - 29 of many types
    """sgl-kernel-npu's, of which this one is made: it has a norm of the states besides, which it does not compute."""
    *weights, latent_scale, nope_scale, cache_mode, quant_mode, inner = given[:-5]
    query, latent, query_rope, rope, latent_query = given[-5:]
    for name, value, simulated in (
        ("enable_inner_out", inner, (False, None)),
        ("cache_mode", cache_mode, (*CACHE_MODES, None)),
        ("quant_mode", quant_mode, ("per_tensor_quant_asymm",)),
    ):
        if value not in simulated:
            raise NotSimulated(f"{SPACE}::mla_preprocess", name, repr(value), ", ".join(map(repr, simulated)))
    unused = torch.zeros_like(hidden[0])
    caches = [cache.unsqueeze(2) if cache.dim() == 3 else cache for cache in (latent, rope)]  # one head, or its axis
    torch.ops.npu.mla_preprocess(
        hidden, unused, unused, *weights, ctkv_scale=latent_scale, q_nope_scale=nope_scale, cache_mode=cache_mode,
        quant_mode=quant_mode, q_out0=query, kv_cache_out0=caches[0], q_out1=query_rope, kv_cache_out1=caches[1],
    )  # fmt: skip
    return query, latent, query_rope, rope, latent_query


def _batch_matmul_transpose(
    tensor_a: Tensor, tensor_b: Tensor, tensor_c: Tensor, format_mode: str | None = None, quant_mode: str | None = None
) -> None:
    torch.ops.npu.batch_matmul_transpose(tensor_a, tensor_b, tensor_c, format_mode, quant_mode)


def _inplace_partial_rotary_mul(x: Tensor, r1: Tensor, r2: Tensor, rotary_mode: str, partial_slice: list[int]) -> None:
    part = x[..., partial_slice[0] : partial_slice[1]]
    part.copy_(torch.ops.npu.npu_rotary_mul(part.contiguous(), r1, r2, rotary_mode))


def _init_routing(x: Tensor, expert_idx: Tensor, **named: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # noqa: ANN401
    rows, places, counts, scale = torch.ops.npu.npu_moe_init_routing_v2(x, expert_idx, **named)
    return rows, places, counts, scale


def _lightning_indexer(query: Tensor, key: Tensor, weights: Tensor, **named: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
    """torch_npu's operator of this name, arguments and layouts."""
    indices, values = torch.ops.npu.npu_lightning_indexer(query, key, weights, **named)
    return indices, values


def _sparse_flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sparse_indices: Tensor,
    scale_value: float,
    **named: Any,  # noqa: ANN401
) -> tuple[Tensor, Tensor, Tensor]:
    """sgl-kernel-npu's port of it, with log-sum-exps: torch_npu's has none over pages."""
    output, largest, total = torch.ops.npu.sgl_sparse_flash_attention(
        query, key, value, sparse_indices, scale_value, **{"attention_mode": 2, **named}
    )
    return output, largest, total


COMPOSED: Mapping[str, Function] = {
    "npu_add_rms_norm_bias": _add_rms_norm_bias,
    "npu_gemma_rms_norm": _gemma_rms_norm,
    "moe_gating_top_k": _moe_gating_top_k,
    "grouped_matmul_swiglu_quant": _swiglu_quant,
    "grouped_matmul_swiglu_quant_weight_nz": _swiglu_quant,
    "grouped_matmul_swiglu_quant_weight_nz_tensor_list": _swiglu_quant_of_list,
    "grouped_matmul_swiglu_quant_v2": _swiglu_quant_v2,
    "npu_dequant_swiglu_quant": _dequant_swiglu_quant,
    "mla_preprocess": _mla_preprocess,
    "batch_matmul_transpose": _batch_matmul_transpose,
    "inplace_partial_rotary_mul": _inplace_partial_rotary_mul,
    "npu_moe_init_routing_custom": _init_routing,
    "npu_lightning_indexer": _lightning_indexer,
    "npu_sparse_flash_attention": _sparse_flash_attention,
    **FORMULAS,
}
"""What documentation, host code or tests of vllm-ascend say of an operator, as operators of torch_npu. The addition at
the end of ``npu_add_rms_norm_bias`` is rounded by itself here, and not on a card."""

"""Wrong fusions of split, norm and rotation."""

from __future__ import annotations

from dataclasses import replace

import torch

from npudiff import Target, mutant, perturbed
from npudiff.device.ascend.fused_qk_norm_rope import (
    Outputs,
    in_float32,
    normed_in_float32,
    norms_then_rotation,
    rotated_in,
    rounded_before_rotation,
    split,
)
from npudiff.reference.fused_qk_norm_rope import FusedQkNormRopeInputs

_SEVERAL = range(2, 2**10)
_TABLE = range(5, 2**20 + 1)
_NORMED = {"norm": ("weight", "weight and bias")}


@perturbed(
    rounded_before_rotation,
    "vllm-project/vllm-ascend/pull/16674: positions are read of the rows before, behind the first iteration of a core",
    supports={"tokens": range(257, 2**17 + 1), "positions": ("scattered",), "table": _TABLE},
)
def positions_of_the_iteration_before(inputs: FusedQkNormRopeInputs) -> FusedQkNormRopeInputs:
    """Give tokens behind the first 256 the positions of those 256 rows before."""
    positions = inputs.positions.clone()
    positions[256:] = inputs.positions[:-256]
    return replace(inputs, positions=positions)


@mutant(
    rounded_before_rotation,
    "vllm-project/vllm-ascend/pull/12642: keys are not normalised, since their variance is 0",
    supports={**_NORMED, "kv_heads": (1,)},
)
def keys_have_no_variance(inputs: FusedQkNormRopeInputs, target: Target) -> Outputs:
    """Multiply keys by their weight and the root of epsilon alone."""
    parts = split(inputs)
    for name in ("query", "key"):
        wide = normed_in_float32(inputs, parts[name], name)
        if name == "key" and inputs.key_weight is not None:
            wide = parts[name].float() * inputs.key_weight.float() / inputs.epsilon**0.5
        parts[name] = rotated_in(inputs, wide.to(inputs.qkv.dtype))
    return parts


@mutant(
    in_float32,
    "vllm-project/vllm-ascend/pull/12723: rotated elements beyond a power of two",
    supports={"rotary_dim": (96, 192, 80)},
)
def rest_of_a_power_is_not_rotated(inputs: FusedQkNormRopeInputs, target: Target) -> Outputs:
    """Rotate as many elements as the largest power of two has."""
    dim = inputs.cos_sin_cache.shape[1]
    least = 2 ** (dim.bit_length() - 1)
    outputs = in_float32(inputs, target)
    if least == dim:
        return outputs
    parts = split(inputs)
    for name in ("query", "key"):
        plain = normed_in_float32(inputs, parts[name], name).to(inputs.qkv.dtype)
        outputs[name][..., least:dim] = plain[..., least:dim]
    return outputs


@perturbed(
    in_float32,
    "sgl_kernel_npu/norm/split_qkv_rmsnorm_rope.py 85: which elements are a pair",
    supports={"style": ("interleaved",)},
)
def neighbours_taken_for_halves(inputs: FusedQkNormRopeInputs) -> FusedQkNormRopeInputs:
    """Rotate halves whatever the style is."""
    return replace(inputs, style="half")


@mutant(
    rounded_before_rotation,
    "vllm_ascend/ops/triton/linearnorm/split_qkv_rmsnorm_rope.py 91: everything is bfloat16",
    supports={"dtype": ("float16",)},
)
def float16_goes_through_bfloat16(inputs: FusedQkNormRopeInputs, target: Target) -> Outputs:
    """Round results of float16 to bfloat16."""
    outputs = rounded_before_rotation(inputs, target)
    return {name: one.to(torch.bfloat16).to(one.dtype) for name, one in outputs.items()}


@mutant(
    in_float32,
    "sgl_kernel_npu/norm/split_qkv_rmsnorm_rope.py 66: a bias comes behind the weight",
    supports={"norm": ("weight and bias",)},
)
def bias_before_the_weight(inputs: FusedQkNormRopeInputs, target: Target) -> Outputs:
    """Multiply the bias by the weight as well."""
    parts = split(inputs)
    without = replace(inputs, query_bias=None, key_bias=None)
    for name, bias, weight in (("query", inputs.query_bias, inputs.query_weight),
                               ("key", inputs.key_bias, inputs.key_weight)):  # fmt: skip
        wide = normed_in_float32(without, parts[name], name)
        if bias is not None and weight is not None:
            wide = wide + bias.float() * (weight.float() + (1.0 if inputs.kind == "gemma" else 0.0))
        parts[name] = rotated_in(inputs, wide).to(inputs.qkv.dtype)
    return parts


@perturbed(
    norms_then_rotation,
    "sgl_kernel_npu/norm/split_qkv_rmsnorm_rope.py 442: Gemma's weights are short of 1",
    supports={**_NORMED, "kind": ("gemma",)},
)
def weights_as_they_are(inputs: FusedQkNormRopeInputs) -> FusedQkNormRopeInputs:
    """Multiply by Gemma's weights without 1."""
    return replace(inputs, kind="plain")


@mutant(
    in_float32,
    "sgl_kernel_npu/norm/split_qkv_rmsnorm_rope.py 442: a gate is beside its own head's query",
    supports={"gated": (True,), "group": range(2, 2**8)},
)
def gates_behind_all_queries(inputs: FusedQkNormRopeInputs, target: Target) -> Outputs:
    """Read all queries first, and then all gates."""
    half = inputs.query_columns // 2
    query = inputs.qkv[:, : inputs.query_columns].reshape(len(inputs.qkv), 2, inputs.heads, -1).transpose(1, 2)
    qkv = torch.cat([query.flatten(1), inputs.qkv[:, 2 * half :]], dim=1)
    return in_float32(replace(inputs, qkv=qkv), target)


@mutant(
    in_float32,
    "vllm_ascend/ops/triton/linearnorm/split_qkv_tp_rmsnorm_rope.py 305: a norm of each head, and not of all of them",
    supports={**_NORMED, "kv_heads": _SEVERAL},
)
def one_norm_for_all_heads(inputs: FusedQkNormRopeInputs, target: Target) -> Outputs:
    """Divide by the root mean square of all heads together."""
    parts = split(inputs)
    for name in ("query", "key"):
        wide = parts[name].float()
        own = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + inputs.epsilon)
        whole = torch.rsqrt(wide.square().mean(dim=(1, 2), keepdim=True) + inputs.epsilon)
        scaled = replace(inputs, query_bias=None, key_bias=None)
        turned = normed_in_float32(scaled, parts[name], name) / own * whole
        bias = inputs.query_bias if name == "query" else inputs.key_bias
        parts[name] = rotated_in(inputs, turned if bias is None else turned + bias.float()).to(inputs.qkv.dtype)
    return parts


@mutant(
    in_float32,
    "vllm-project/vllm-ascend/pull/12723: elements that are not rotated are normalised as well",
    supports={**_NORMED, "rotary_dim": range(2, 129, 2), "head_dim": (128, 192, 256)},
)
def rest_of_a_head_is_raw(inputs: FusedQkNormRopeInputs, target: Target) -> Outputs:
    """Leave elements behind the rotated ones as they were in the projection."""
    outputs, parts = in_float32(inputs, target), split(inputs)
    dim = inputs.cos_sin_cache.shape[1]
    for name in ("query", "key"):
        outputs[name][..., dim:] = parts[name][..., dim:]
    return outputs


@perturbed(
    rounded_before_rotation,
    "vllm-project/vllm-ascend/pull/16699: positions are taken to follow each other",
    supports={"tokens": range(2, 2**17 + 1), "positions": ("scattered", "same", "last"), "table": _TABLE},
)
def positions_follow_the_first(inputs: FusedQkNormRopeInputs) -> FusedQkNormRopeInputs:
    """Count positions on from the first token's."""
    following = (inputs.positions[0] + torch.arange(len(inputs.positions))) % len(inputs.cos_sin_cache)
    return replace(inputs, positions=following)

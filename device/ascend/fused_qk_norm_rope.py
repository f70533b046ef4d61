"""Split, norm and rotation of a projection: by operators one after the other, and fused in plain torch."""

from __future__ import annotations

import torch

from npudiff import Target, implementation
from npudiff.reference.fused_qk_norm_rope import FusedQkNormRopeInputs

Outputs = dict[str, torch.Tensor]


def split(inputs: FusedQkNormRopeInputs) -> Outputs:
    """Cut queries, gates, keys and values out of the projection, ``[tokens, heads, head_dim]`` each."""
    keys = inputs.kv_heads * inputs.head_dim
    query, key, value = torch.split(inputs.qkv, [inputs.query_columns, keys, keys], dim=1)
    parts = {"key": key.unflatten(1, (inputs.kv_heads, -1)), "value": value.unflatten(1, (inputs.kv_heads, -1))}  # type: ignore[no-untyped-call]
    query = query.unflatten(1, (inputs.heads, -1))  # type: ignore[no-untyped-call]
    parts["query"] = query[..., : inputs.head_dim]
    parts["gate"] = query[..., inputs.head_dim :] if inputs.gated else parts["query"][:, :0]
    return {name: one.contiguous() for name, one in parts.items()}


def weights_of(inputs: FusedQkNormRopeInputs, name: str) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Weight and bias of queries or keys."""
    return (inputs.query_weight, inputs.query_bias) if name == "query" else (inputs.key_weight, inputs.key_bias)


@implementation(
    "fused_qk_norm_rope",
    supports={"rounding": ("stages",), "heads": range(1, 1000), "rotary_dim": range(2, 896, 2)},
    on_device=True,
    graph=True,
)
def norms_then_rotation(inputs: FusedQkNormRopeInputs, target: Target) -> Outputs:
    """npu_rms_norm of heads, and a rotation by npu_rotary_mul, as backends do it without a fused kernel."""
    parts = split(inputs)
    for name in ("query", "key"):
        parts[name] = turned(inputs, normed(inputs, parts[name], name))
    return parts


def normed(inputs: FusedQkNormRopeInputs, states: torch.Tensor, name: str) -> torch.Tensor:
    """Heads after the operator, in their dtype."""
    weight, bias = weights_of(inputs, name)
    if weight is not None:
        operator = torch.ops.npu.npu_gemma_rms_norm if inputs.kind == "gemma" else torch.ops.npu.npu_rms_norm
        states = operator(states.contiguous(), weight, inputs.epsilon)[0]
    return states if bias is None else states + bias


def angles(inputs: FusedQkNormRopeInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of all tokens, ``[tokens, 1, rotary_dim]``, as rotations of full width take them."""
    cosine, sine = inputs.cos_sin_cache[inputs.positions].unsqueeze(1).chunk(2, dim=-1)
    if inputs.style == "half":
        return torch.cat([cosine, cosine], dim=-1), torch.cat([sine, sine], dim=-1)
    return cosine.repeat_interleave(2, dim=-1), sine.repeat_interleave(2, dim=-1)


def turned(inputs: FusedQkNormRopeInputs, states: torch.Tensor) -> torch.Tensor:
    """Rotate the first elements of heads by the operator."""
    dim = inputs.cos_sin_cache.shape[1]
    cosine, sine = (one.unsqueeze(0).contiguous() for one in angles(inputs))
    mode = "half" if inputs.style == "half" else "interleave"
    head = states[..., :dim].unsqueeze(0).contiguous()
    return torch.cat([torch.ops.npu.npu_rotary_mul(head, cosine, sine, mode)[0], states[..., dim:]], dim=-1)


@implementation("fused_qk_norm_rope", supports={}, on_device=True, graph=True)
def in_float32(inputs: FusedQkNormRopeInputs, target: Target) -> Outputs:
    """Everything in float32, and one cast at the end, as sgl-kernel-npu's fused kernel."""
    parts = split(inputs)
    for name in ("query", "key"):
        wide = rotated_in(inputs, normed_in_float32(inputs, parts[name], name))
        parts[name] = wide.to(inputs.qkv.dtype)
    return parts


def normed_in_float32(inputs: FusedQkNormRopeInputs, states: torch.Tensor, name: str) -> torch.Tensor:
    """Heads after their norm, float32."""
    weight, bias = weights_of(inputs, name)
    wide = states.float()
    if weight is not None:
        factor = weight.float() + (1.0 if inputs.kind == "gemma" else 0.0)
        wide = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + inputs.epsilon) * factor
    return wide if bias is None else wide + bias.float()


def rotated_in(inputs: FusedQkNormRopeInputs, states: torch.Tensor) -> torch.Tensor:
    """Rotate the first elements of heads in the dtype that they have."""
    dim = inputs.cos_sin_cache.shape[1]
    cosine, sine = (
        one.to(states.dtype) for one in inputs.cos_sin_cache[inputs.positions].unsqueeze(1).chunk(2, dim=-1)
    )
    head = states[..., :dim]
    if inputs.style == "half":
        first, second = head.chunk(2, dim=-1)
        both = torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
    else:
        first, second = head[..., 0::2], head[..., 1::2]
        both = torch.stack([first * cosine - second * sine, second * cosine + first * sine], dim=-1).flatten(-2)
    return torch.cat([both, states[..., dim:]], dim=-1)


@implementation("fused_qk_norm_rope", supports={"rounding": ("stages",)}, on_device=True, graph=True)
def rounded_before_rotation(inputs: FusedQkNormRopeInputs, target: Target) -> Outputs:
    """The norm in float32, rounded, and a rotation in the dtype of the projection, as vllm-ascend's fused kernel."""
    parts = split(inputs)
    for name in ("query", "key"):
        parts[name] = rotated_in(inputs, normed_in_float32(inputs, parts[name], name).to(inputs.qkv.dtype))
    return parts

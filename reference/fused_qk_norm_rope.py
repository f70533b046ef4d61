"""Queries, keys and values cut out of one projection, the first two normalised by head and rotated."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from npudiff.reference.bounds import FLOAT32_ROUNDOFF, Expected, exactly, underflow_step, unit_roundoff
from npudiff.reference.rms_norm import WEIGHT_OFFSETS, normalised
from npudiff.reference.rotary import rotated
from npudiff.reference.views import moved_inputs

ROUNDINGS = ("once", "stages")
"""once: everything in float32, and one rounding at the end, as sgl-kernel-npu's kernel. stages: a device may round what
is normalised, and products and sums of the rotation, to the dtype of the projection, as vllm-ascend's does."""


@dataclass(frozen=True)
class FusedQkNormRopeInputs:
    """The projection of some tokens, and what becomes of it."""

    qkv: torch.Tensor
    """``[tokens, columns]``, bfloat16 or float16: the queries of all heads, the keys of all KV heads, and their values;
    with gates a query's head is followed by its gate."""
    query_weight: torch.Tensor | None
    key_weight: torch.Tensor | None
    """``[head_dim]``, of the same dtype; None where nothing is normalised."""
    query_bias: torch.Tensor | None
    key_bias: torch.Tensor | None
    """``[head_dim]``: added to what is normalised."""
    cos_sin_cache: torch.Tensor
    """``[positions, rotary_dim]``, of the same dtype: the cosines of all frequencies, then their sines."""
    positions: torch.Tensor
    """int64 ``[tokens]``."""
    heads: int
    kv_heads: int
    head_dim: int
    epsilon: float
    """Added to the mean of squares."""
    kind: str = "plain"
    """One of ``reference.rms_norm.WEIGHT_OFFSETS``: whether 1 is added to weights."""
    style: str = "half"
    """half or interleaved, as of ``reference.rotary.STYLES``."""
    gated: bool = False
    """Whether queries have gates, which are cut out as well."""
    rounding: str = "once"
    """One of ``ROUNDINGS``."""

    @property
    def query_columns(self) -> int:
        """Columns of queries, their gates included."""
        return self.heads * self.head_dim * (2 if self.gated else 1)

    def to(self, device: str | torch.device) -> FusedQkNormRopeInputs:
        """Return the same inputs on ``device``; the projection is a copy."""
        return moved_inputs(self, device, copies=("qkv",))


def fused_qk_norm_rope(inputs: FusedQkNormRopeInputs) -> dict[str, Expected]:
    """Return queries and keys, and values as they are.

    Each head of queries and keys is divided by its root mean square and multiplied by the weight (Qwen Team, "Qwen3",
    2025, section 2), and its first elements are rotated, as ``rotary`` has it.

    Returns
    -------
    dict
        ``query`` ``[tokens, heads, head_dim]``, ``key`` and ``value`` ``[tokens, kv_heads, head_dim]``, and ``gate`` as
        queries, of 0 heads where there are none: all in the dtype of the projection. Values and gates are copies.

    Raises
    ------
    ValueError
        If shapes contradict each other.
    """
    _validate(inputs)
    keys = inputs.kv_heads * inputs.head_dim
    query, key, value = torch.split(inputs.qkv, [inputs.query_columns, keys, keys], dim=1)
    query, key, value = (_by_head(one, inputs.head_dim) for one in (query, key, value))
    gate = query[:, :0]
    if inputs.gated:
        query, gate = query.reshape(len(query), inputs.heads, 2, inputs.head_dim).unbind(dim=2)
    return {
        "query": _turned(inputs, query, inputs.query_weight, inputs.query_bias),
        "key": _turned(inputs, key, inputs.key_weight, inputs.key_bias),
        "value": exactly(value),
        "gate": exactly(gate),
    }


def _by_head(columns: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Return ``[tokens, heads, head_dim]``, of no tokens too."""
    return columns.reshape(len(columns), columns.shape[1] // head_dim, head_dim)


def _turned(
    inputs: FusedQkNormRopeInputs, states: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None
) -> Expected:
    """Normalise and rotate ``[tokens, heads, head_dim]``."""
    dtype = states.dtype
    stage = dtype if inputs.rounding == "stages" else torch.float32
    value = states.to(torch.float64, copy=True)
    error = torch.zeros_like(value)
    if weight is not None:
        wide = weight.to(torch.float64) + WEIGHT_OFFSETS[inputs.kind]
        off = wide.abs() * (unit_roundoff(stage) if inputs.kind == "gemma" else 0.0)
        normed = normalised(value, error, wide, off, inputs.epsilon, stage)
        value, error = normed.value, normed.bound
    if bias is not None:
        value = value + bias.to(torch.float64)
        error = error + (value.abs() + error) * unit_roundoff(stage)
    cosine, sine = inputs.cos_sin_cache[inputs.positions].to(torch.float64).unsqueeze(1).chunk(2, dim=-1)
    dim = inputs.cos_sin_cache.shape[1]
    turned = rotated(value[..., :dim], error[..., :dim], cosine, sine, inputs.style, stage)
    value[..., :dim], error[..., :dim] = turned.value, turned.bound
    moved = torch.zeros(states.shape, dtype=torch.bool)
    moved[..., dim:] = weight is None and bias is None  # copies
    stored = error + (value.abs() + error) * (unit_roundoff(dtype) + FLOAT32_ROUNDOFF) + underflow_step(dtype)
    return Expected(value, torch.where(moved, 0.0, stored), dtype)


def _validate(inputs: FusedQkNormRopeInputs) -> None:
    columns = inputs.query_columns + 2 * inputs.kv_heads * inputs.head_dim
    dim, table = inputs.cos_sin_cache.shape[1], len(inputs.cos_sin_cache)
    if inputs.qkv.dim() != 2 or inputs.qkv.shape[1] != columns:
        raise ValueError(f"the projection must have {columns} columns, got {list(inputs.qkv.shape)}")
    for name in ("query_weight", "key_weight", "query_bias", "key_bias"):
        tensor = getattr(inputs, name)
        if tensor is not None and tuple(tensor.shape) != (inputs.head_dim,):
            raise ValueError(f"{name} must be [{inputs.head_dim}], got {list(tensor.shape)}")
    if dim % 2 or not 0 < dim <= inputs.head_dim:
        raise ValueError(f"rotary_dim must be even and at most head_dim {inputs.head_dim}, got {dim}")
    if inputs.positions.shape != (len(inputs.qkv),):
        raise ValueError(f"positions must be [{len(inputs.qkv)}], got {list(inputs.positions.shape)}")
    if bool(((inputs.positions < 0) | (inputs.positions >= table)).any()):
        raise ValueError(f"positions must lie in 0..{table - 1}")
    if inputs.kind not in WEIGHT_OFFSETS or inputs.rounding not in ROUNDINGS:
        raise ValueError(f"kind is one of {', '.join(WEIGHT_OFFSETS)}, rounding of {', '.join(ROUNDINGS)}")

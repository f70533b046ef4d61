"""Wrong kernels of fused_qk_norm_rope; TWIN=1 in the environment runs them without the mistakes."""

import os

import torch

import npudiff

TWIN = bool(os.environ.get("TWIN"))


def cut(inputs):
    """Queries, gates, keys and values, ``[tokens, heads, head_dim]``."""
    tokens, dim, columns = len(inputs.qkv), inputs.head_dim, inputs.query_columns
    query = inputs.qkv[:, :columns].reshape(tokens, inputs.heads, 2 if inputs.gated else 1, dim)
    key, value = inputs.qkv[:, columns:].reshape(tokens, 2, inputs.kv_heads, dim).unbind(1)
    gate = query[:, :, 1] if inputs.gated else query[:, :0, 0]
    parts = {"query": query[:, :, 0], "key": key, "value": value, "gate": gate}
    return {name: one.contiguous() for name, one in parts.items()}


def normed(inputs, states, name, epsilon=None):
    """Heads behind their norm and bias, float32."""
    weight = inputs.query_weight if name == "query" else inputs.key_weight
    bias = inputs.query_bias if name == "query" else inputs.key_bias
    wide = states.float()
    if weight is not None:
        mean = wide.square().mean(dim=-1, keepdim=True)
        factor = weight.float() + (1.0 if inputs.kind == "gemma" else 0.0)
        wide = wide / (mean + (inputs.epsilon if epsilon is None else epsilon)).sqrt() * factor
    return wide if bias is None else wide + bias.float()


def turned(inputs, wide, positions):
    """Heads whose first elements are rotated, float32."""
    dim = inputs.cos_sin_cache.shape[1]
    cosine, sine = inputs.cos_sin_cache[positions].float().unsqueeze(1).chunk(2, dim=2)
    head, rest = wide[..., :dim], wide[..., dim:]
    half = inputs.style == "half"
    first, second = head.chunk(2, dim=-1) if half else (head[..., 0::2], head[..., 1::2])
    both = [first * cosine - second * sine, second * cosine + first * sine]
    return torch.cat([torch.cat(both, dim=-1) if half else torch.stack(both, dim=-1).flatten(-2), rest], dim=-1)


@npudiff.implementation("fused_qk_norm_rope", name="h_fused_qk_norm_rope_01_positions_counted_on", on_device=True)
def positions_counted_on(inputs, target):
    """A position is read for each 4 tokens and counted on from it; shows where positions do not follow each other."""
    parts, positions = cut(inputs), inputs.positions
    if not TWIN and len(positions):
        token = torch.arange(len(positions), device=positions.device)
        positions = (positions[token // 4 * 4] + token % 4).clamp(max=len(inputs.cos_sin_cache) - 1)
    for name in ("query", "key"):
        parts[name] = turned(inputs, normed(inputs, parts[name], name), positions).to(inputs.qkv.dtype)
    return parts


@npudiff.implementation("fused_qk_norm_rope", name="h_fused_qk_norm_rope_02_last_tokens_twice", on_device=True)
def last_tokens_twice(inputs, target):
    """Tokens go in blocks of 8 in place, and the last block is moved back to be whole: some go twice. Shows beyond 8
    tokens that are no multiple of 8."""
    parts, tokens = cut(inputs), len(inputs.qkv)
    for name in ("query", "key"):
        for first in range(0, tokens, 8):
            rows = slice(first if TWIN else max(0, min(first, tokens - 8)), min(first + 8, tokens))
            wide = normed(inputs, parts[name][rows], name)
            parts[name][rows] = turned(inputs, wide, inputs.positions[rows]).to(inputs.qkv.dtype)
    return parts


@npudiff.implementation("fused_qk_norm_rope", name="h_fused_qk_norm_rope_03_rest_without_gates", on_device=True)
def rest_without_gates(inputs, target):
    """What is not rotated of a query is taken from where it lies without gates; shows with gates and partial rotation,
    behind the first head."""
    parts, dim = cut(inputs), inputs.cos_sin_cache.shape[1]
    query, head_dim = parts["query"].float(), inputs.head_dim
    wide = normed(inputs, query, "query")
    if inputs.gated and dim < head_dim and not TWIN:
        other = inputs.qkv[:, : inputs.heads * head_dim].reshape(len(query), inputs.heads, head_dim).float()
        if inputs.query_weight is not None:
            factor = inputs.query_weight.float() + (1.0 if inputs.kind == "gemma" else 0.0)
            other = other / (query.square().mean(dim=-1, keepdim=True) + inputs.epsilon).sqrt() * factor
        other = other if inputs.query_bias is None else other + inputs.query_bias.float()
        wide = torch.cat([wide[..., :dim], other[..., dim:]], dim=-1)
    parts["query"] = turned(inputs, wide, inputs.positions).to(inputs.qkv.dtype)
    parts["key"] = turned(inputs, normed(inputs, parts["key"], "key"), inputs.positions).to(inputs.qkv.dtype)
    return parts


@npudiff.implementation("fused_qk_norm_rope", name="h_fused_qk_norm_rope_04_own_epsilon_of_keys", on_device=True)
def own_epsilon_of_keys(inputs, target):
    """Keys have the epsilon that a norm has by default; shows in small keys, where another one is asked for."""
    parts = cut(inputs)
    for name, epsilon in (("query", None), ("key", None if TWIN else 1e-6)):
        wide = normed(inputs, parts[name], name, epsilon)
        parts[name] = turned(inputs, wide, inputs.positions).to(inputs.qkv.dtype)
    return parts

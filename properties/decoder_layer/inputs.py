"""From a case to tensors, and where each of their elements is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch

from npudiff.draw.data import Stream
from npudiff.properties._shared import expert_weights
from npudiff.properties._shared.expert_weights import Shape
from npudiff.properties.decoder_layer.case import DecoderLayerCase
from npudiff.reference.decoder_layer import (
    DecoderLayerInputs,
    GroupedQueryWeights,
    LatentWeights,
    LayerStep,
    Mixture,
)
from npudiff.reference.expert_weights import ExpertWeights
from npudiff.reference.moe_experts import Experts, Gate
from npudiff.reference.rope_cache import RopeCacheInputs, rope_cache
from npudiff.reference.rope_scaling import RopeConfig, softmax_scale

NOPE_DIM, ROPE_DIM, LATENT_DIM, VALUE_DIM = 128, 64, 512, 128
"""Dims of DeepSeek's heads, for which the operators are made."""

POISON = 512.0
"""What the pools hold before: finite, exact in bfloat16, and far above what any right layer writes."""

ROW_STEP = 7
"""Every row of a large matrix is a stretch of one stream that begins so many further than the row before."""

UP_GAIN, DOWN_GAIN = 4.0, 1 / 8
"""Gates and ups are large enough for a limit of 7, and what comes out of an expert is about as large as its input."""

ROUTER_GAIN, BIAS_GAIN = 1.0, 0.3
"""Standard deviations of the router's logits, where a sigmoid is steep, and of its bias: experts differ by more than
their errors, for most tokens."""


def build_inputs(case: DecoderLayerCase) -> DecoderLayerInputs:
    """Build the inputs of a case: two pools with pages in no order, and poison wherever nothing is written."""
    steps = steps_of(case)
    tokens = sum(step.tokens for step in steps)
    rope = rope_of(case)
    table, sliding_table = (_table(case, name) for name in ("pages", "sliding pages"))
    request, position = token_places(steps)
    size, norms = case.page_size, case.latent
    slots, sliding_slots = (
        own[request, position // size].to(torch.int64) * size + position % size for own in (table, sliding_table)
    )
    shapes = _pool_shapes(case)
    return DecoderLayerInputs(
        hidden=(0.5 * _normal(case, "hidden", tokens, case.hidden_size)).bfloat16(),
        residual=_normal(case, "residual", tokens, case.hidden_size).bfloat16(),
        steps=steps,
        positions=position,
        cos_sin_cache=_angles(rope, max(case.lengths)),
        attention=_latent_weights(case) if case.latent else _grouped_query_weights(case),
        experts=_mixture(case),
        input_norm=_norm(case, "input norm", case.hidden_size, plain=norms),
        post_norm=_norm(case, "post norm", case.hidden_size, plain=norms),
        epsilon=1e-6 if case.latent else 1e-5,
        scale=softmax_scale(rope),
        window=case.window,
        key_cache=torch.full(shapes[0], POISON, dtype=torch.bfloat16),
        value_cache=torch.full(shapes[1], POISON, dtype=torch.bfloat16),
        slots=slots,
        sliding_slots=sliding_slots,
        block_table=table,
        sliding_block_table=sliding_table,
        use_fia=case.use_fia,
        fia_nz=case.fia_nz,
        mlapo=case.mlapo,
        native_norm=case.native_norm,
    )


def steps_of(case: DecoderLayerCase) -> tuple[LayerStep, ...]:
    """Return the steps: prefixes of those that have one, all prefills, and the decodes."""
    every = tuple(range(len(case.requests)))
    steps = []
    early = tuple(index for index in every if case.requests[index].prefix)
    if early:
        lengths = tuple(case.requests[index].prefix for index in early)
        steps.append(LayerStep(early, lengths, lengths))
    prefills = tuple(request.prefill for request in case.requests)
    totals = [request.prefix + request.prefill for request in case.requests]
    steps.append(LayerStep(every, prefills, tuple(totals)))
    ones = (1,) * len(every)
    decodes = [LayerStep(every, ones, tuple(total + 1 + step for total in totals)) for step in range(case.decode_steps)]
    return (*steps, *decodes)


def token_places(steps: tuple[LayerStep, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return request and position of every token, int64 ``[tokens]`` each."""
    requests, positions = [], []
    for step in steps:
        for request, new, total in zip(step.requests, step.query_lengths, step.kv_lengths, strict=True):
            requests.append(torch.full((new,), request))
            positions.append(torch.arange(total - new, total))
    return torch.cat(requests), torch.cat(positions)


def rope_of(case: DecoderLayerCase) -> RopeConfig:
    """Return the rope of the layer."""
    if case.latent:
        return RopeConfig("deepseek_yarn", ROPE_DIM, NOPE_DIM + ROPE_DIM, factors=(40.0,), mscale=1.0,
                          mscale_all_dim=1.0)  # fmt: skip
    turning = case.head_dim // (2 if case.rotary == "half" else 1)
    return RopeConfig("base", turning, case.head_dim)


def _angles(rope: RopeConfig, rows: int) -> torch.Tensor:
    table = rope_cache(RopeCacheInputs(torch.arange(rows), None, rope, None, (rows,), 0, torch.bfloat16))["table"]
    return table.value.bfloat16()


def _pool_shapes(case: DecoderLayerCase) -> tuple[tuple[int, ...], tuple[int, ...]]:
    pages = (case.pages, case.page_size)
    if case.latent:
        return (*pages, 1, LATENT_DIM), (*pages, 1, ROPE_DIM)
    return (*pages, case.kv_heads, case.head_dim), (*pages, case.kv_heads, case.head_dim)


def _table(case: DecoderLayerCase, name: str) -> torch.Tensor:
    """Block table ``[requests, pages]``, one page wider than the longest request; what is beyond names page 0."""
    names = iter([1 + page for page in Stream(case.seed, name).permutation(case.pages - 1)])
    counts = [-(-length // case.page_size) for length in case.lengths]
    table = torch.zeros(len(counts), max(counts) + 1, dtype=torch.int32)
    for row, count in enumerate(counts):
        table[row, :count] = torch.tensor([next(names) for _ in range(count)], dtype=torch.int32)
    return table


def _normal(case: DecoderLayerCase, name: str, *shape: int) -> torch.Tensor:
    return Stream(case.seed, name).normal(shape, torch.float32)


def _matrix(case: DecoderLayerCase, name: str, *shape: int, gain: float = 1.0) -> torch.Tensor:
    """A weight whose products are ``gain`` times as large as what it multiplies."""
    rows, columns = math.prod(shape[:-1]), shape[-1]
    pool = (_normal(case, name, rows * ROW_STEP + columns) * (gain / math.sqrt(shape[-2]))).bfloat16()
    return pool.as_strided((rows, columns), (ROW_STEP, 1)).reshape(shape).contiguous()


def _norm(case: DecoderLayerCase, name: str, size: int, *, plain: bool) -> torch.Tensor:
    return (float(plain) + 0.25 * _normal(case, name, size)).bfloat16()


def _grouped_query_weights(case: DecoderLayerCase) -> GroupedQueryWeights:
    heads, size, dim = case.kv_heads * case.group, case.hidden_size, case.head_dim
    return GroupedQueryWeights(
        qkv=_matrix(case, "qkv", size, (heads + 2 * case.kv_heads) * dim),
        query_norm=_norm(case, "query norm", dim, plain=False),
        key_norm=_norm(case, "key norm", dim, plain=False),
        gate=_matrix(case, "gate", size, heads),
        output=_matrix(case, "output", heads * dim, size),
    )


def _latent_weights(case: DecoderLayerCase) -> LatentWeights:
    size, heads = case.hidden_size, case.group
    return LatentWeights(
        q_a=_matrix(case, "q_a", size, case.query_rank),
        q_a_norm=_norm(case, "q_a norm", case.query_rank, plain=True),
        q_b=_matrix(case, "q_b", case.query_rank, heads * (NOPE_DIM + ROPE_DIM)),
        kv_a=_matrix(case, "kv_a", size, LATENT_DIM + ROPE_DIM),
        kv_a_norm=_norm(case, "kv_a norm", LATENT_DIM, plain=True),
        k_up=_matrix(case, "k_up", heads, NOPE_DIM, LATENT_DIM, gain=math.sqrt(NOPE_DIM / LATENT_DIM)),
        v_up=_matrix(case, "v_up", heads, LATENT_DIM, VALUE_DIM),
        output=_matrix(case, "output", heads * VALUE_DIM, size),
    )


def _mixture(case: DecoderLayerCase) -> Mixture:
    return Mixture(
        router=_matrix(case, "router", case.hidden_size, case.experts, gain=ROUTER_GAIN).float(),
        bias=BIAS_GAIN * _normal(case, "bias", case.experts),
        routed=_experts(case, "routed", case.experts, case.limit),
        shared=_experts(case, "shared", 1, case.shared_limit),
        top_k=case.top_k,
        groups=case.groups,
        kept_groups=max(1, case.groups // 2),
        scaling=2.5 if case.latent else 3.0,
    )


def _experts(case: DecoderLayerCase, name: str, count: int, limit: float | None) -> Experts:
    up = Shape(range(count), case.hidden_size, 2 * case.width, case.form, 1, torch.bfloat16)
    down = Shape(range(count), case.width, case.hidden_size, case.form, 1, torch.bfloat16)
    return Experts(_of_experts(case, f"{name} up", up, UP_GAIN), _of_experts(case, f"{name} down", down, DOWN_GAIN),
                   Gate(limit=limit))  # fmt: skip


def _of_experts(case: DecoderLayerCase, name: str, shape: Shape, gain: float) -> ExpertWeights:
    """Matrices of experts; gains are powers of two."""
    weights = expert_weights.build(shape, case.seed, name)
    if weights.scale is None:
        return replace(weights, values=weights.values * gain)
    scale = weights.scale * gain
    return replace(weights, scale=scale.to(torch.bfloat16) if case.form == "w8a8" else scale)


def coordinates(inputs: DecoderLayerInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to an output: step, request, position, and head and element or column."""
    request, position = token_places(inputs.steps)
    step = torch.repeat_interleave(
        torch.arange(len(inputs.steps)), torch.tensor([step.tokens for step in inputs.steps])
    )
    token = {"step": step, "request": request, "position": position}
    if output in ("residual", "hidden"):
        columns = {"column": torch.arange(inputs.hidden.shape[1]).unsqueeze(0)}
        return {name: place.unsqueeze(1) for name, place in token.items()} | columns
    cache = inputs.key_cache if output == "keys" else inputs.value_cache
    heads = {"head": torch.arange(cache.shape[2])[None, :, None], "element": torch.arange(cache.shape[3])[None, None]}
    return {name: place[:, None, None] for name, place in token.items()} | heads

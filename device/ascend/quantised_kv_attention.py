"""Attention over int8 keys and values as vllm-ascend calls it, by the other forms of the operators, and in plain torch.

Sources of the call paths: vllm-ascend, ``attention/attention_v1.py`` (``AscendC8AttentionBackendImpl``); the forms are
those of torch_npu's documentation of antiquantisation. sglang has no cache of int8 that attention reads.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch

from npudiff import Target, implementation
from npudiff.device.ascend.fused_attention import FusedCall, compressed_mask
from npudiff.model.constraints import Box
from npudiff.reference.quantised_kv_attention import Antiquant, QuantisedKvAttentionInputs

Outputs = dict[str, torch.Tensor]

POISON = ("large",)
"""That an operator may load a scale which is NaN, of a token that nobody sees, is not within its contract."""

FIRST = {
    "scale": ("key_antiquant_scale", "value_antiquant_scale"),
    "offset": ("key_antiquant_offset", "value_antiquant_offset"),
    "mode": ("key_antiquant_mode", "value_antiquant_mode"),
}
SECOND = {
    "scale": ("dequant_scale_key", "dequant_scale_value"),
    "offset": ("dequant_offset_key", "dequant_offset_value"),
    "mode": ("key_quant_mode", "value_quant_mode"),
}
"""What both versions of fused attention call the same thing, of keys and of values."""

PAGED_MODES = {"channel": 0, "tensor": 0, "head": 2, "token": 4, "token and head": 5}
"""Modes of numbers that lie as the pages do."""

_PAGES: Box = {"page_size": range(32, 513, 32)}
"""What operators take of pages of int8."""

_DECODE: Box = {"query_length": (1,), "poison": POISON, **_PAGES}
_ND: Box = {"layout": ("PA_BSND",)}
_NZ: Box = {
    "layout": ("PA_NZ",), "head_dim": (128,), "dtype": ("bfloat16",), "offsets": ("none",), "poison": POISON, **_PAGES,
}  # fmt: skip
"""What is documented of NZ pages of int8."""

_MIXED = "channel, values token"
_ONE_MODE = ("channel", "tensor", "head", "token", "token and head")
_DECODED: tuple[Box, ...] = (
    {**_DECODE, **_ND, "form": _ONE_MODE},
    {**_DECODE, **_ND, "form": (_MIXED,), "dtype": ("float16",)},
)


def sides(inputs: QuantisedKvAttentionInputs) -> tuple[Antiquant, Antiquant]:
    """What gives keys and values back."""
    return inputs.of_keys, inputs.of_values


def real_rows(inputs: QuantisedKvAttentionInputs) -> torch.Tensor:
    """Query rows without padding."""
    return inputs.query[: sum(inputs.query_lengths)]


def with_padding(inputs: QuantisedKvAttentionInputs, output: torch.Tensor, lse: torch.Tensor | None = None) -> Outputs:
    """Outputs of real rows and zeros for padding; plus infinity is how operators mark what sees nothing."""
    padding = len(inputs.query) - len(output)
    pad = torch.nn.functional.pad
    whole = {"output": pad(output, (0, 0, 0, 0, 0, padding))}
    if lse is None:
        return whole
    return {**whole, "lse": pad(torch.where(lse.isposinf(), -torch.inf, lse), (0, 0, 0, padding))}


def gathered_numbers(inputs: QuantisedKvAttentionInputs, numbers: torch.Tensor) -> torch.Tensor:
    """Numbers of tokens ``[pages, page_size]`` in the order of each request, ``[batch, tokens]``."""
    return numbers[inputs.pool.block_table.long()].flatten(1)


def antiquant(
    inputs: QuantisedKvAttentionInputs, names: Mapping[str, tuple[str, str]], channel: tuple[int, ...]
) -> dict[str, object]:
    """Scales, offsets and modes of a call over pages, whose numbers of channels have a shape.

    Where keys have numbers of channels and values of tokens, those are in the order of each request (mode 1).
    """
    mixed = inputs.of_keys.granularity != inputs.of_values.granularity
    found: dict[str, object] = {}
    for place, side in enumerate(sides(inputs)):
        requests = mixed and side.of_tokens
        found[names["mode"][place]] = 1 if requests else PAGED_MODES[side.granularity]
        for what, numbers in (("scale", side.scale), ("offset", side.offset)):
            if numbers is not None:
                shaped = numbers.view(channel) if side.granularity == "channel" else numbers
                found[names[what][place]] = gathered_numbers(inputs, numbers) if requests else shaped
    return found


def by_heads(cache: torch.Tensor) -> torch.Tensor:
    """Pages ``[pages, kv_heads, page_size, head_dim]``."""
    return cache.transpose(1, 2).contiguous()


def c8_decode_call(inputs: QuantisedKvAttentionInputs) -> FusedCall:
    """The first version in BNSD over NZ pages (attention_v1.py 1998-2030); a log-sum-exp is asked for besides."""
    pool = inputs.pool
    arguments = {
        "input_layout": "BNSD",
        "block_table": pool.block_table,
        "actual_seq_lengths_kv": list(inputs.kv_lengths),
        "num_heads": inputs.query.shape[1],
        "num_key_value_heads": pool.kv_heads,
        "scale": inputs.scale,
        "block_size": pool.page_size,
        "antiquant_mode": 0,
        "inner_precise": 1,
        "sparse_mode": 0,
        "softmax_lse_flag": True,
        **antiquant(inputs, FIRST, (pool.kv_heads, 1, pool.head_dim)),
    }
    query = real_rows(inputs).unsqueeze(2)
    return FusedCall("npu_fused_infer_attention_score", query, pool.key, pool.value, arguments)


def run_decode(inputs: QuantisedKvAttentionInputs, call: FusedCall) -> Outputs:
    """Run a call with one row per request, in BNSD or BSH."""
    output, lse = call()
    return with_padding(inputs, output.reshape(real_rows(inputs).shape), lse.flatten(1))


@implementation("quantised_kv_attention", supports={**_DECODE, **_NZ, "form": ("channel",)}, on_device=True, graph=True)
def c8_decode_nz(inputs: QuantisedKvAttentionInputs, target: Target) -> Outputs:
    """Decode as vllm-ascend does it: FIA v1 BNSD on NZ pages, with scales per channel."""
    return run_decode(inputs, c8_decode_call(inputs))


@implementation("quantised_kv_attention", supports={**_DECODE, **_NZ, "form": ("channel",)}, on_device=True, graph=True)
def c8_decode_out(inputs: QuantisedKvAttentionInputs, target: Target) -> Outputs:
    """The same in memory of the caller and without log-sum-exp, as its graphs have it (attention_v1.py 1040-1110)."""
    call = c8_decode_call(inputs).having(softmax_lse_flag=False)
    tensors, operators = (call.query, call.key, call.value), torch.ops.npu
    workspace = operators._npu_fused_infer_attention_score_get_max_workspace(*tensors, **call.arguments)
    output, unused = torch.full_like(call.query, 777.0), call.query.new_full((1,), 777.0)
    operators.npu_fused_infer_attention_score.out(*tensors, **call.arguments, workspace=workspace, out=[output, unused])
    return with_padding(inputs, output.squeeze(2))


def decode_bsh_call(inputs: QuantisedKvAttentionInputs) -> FusedCall:
    """The first version in BSH over pages ``[pages, page_size, kv_heads * head_dim]``."""
    pool = inputs.pool
    channel = (pool.kv_heads * pool.head_dim,)
    arguments = {**c8_decode_call(inputs).arguments, **antiquant(inputs, FIRST, channel), "input_layout": "BSH"}
    query = real_rows(inputs).flatten(1).unsqueeze(1)
    key, value = (cache.flatten(2) for cache in (pool.key, pool.value))
    return FusedCall("npu_fused_infer_attention_score", query, key, value, arguments)


@implementation("quantised_kv_attention", supports=_DECODED, on_device=True, graph=True)
def fia_int8_decode_bsh(inputs: QuantisedKvAttentionInputs, target: Target) -> Outputs:
    """Decode through FIA v1 BSH on pages in ND, with all that may have scales and offsets."""
    return run_decode(inputs, decode_bsh_call(inputs))


@implementation("quantised_kv_attention", supports=_DECODED, on_device=True, graph=True)
def fia_v2_int8_decode_bnsd(inputs: QuantisedKvAttentionInputs, target: Target) -> Outputs:
    """Decode through FIA v2 BNSD on pages that have their heads before their tokens."""
    pool = inputs.pool
    arguments = {
        "input_layout": "BNSD",
        "block_table": pool.block_table,
        "actual_seq_kvlen": list(inputs.kv_lengths),
        "num_query_heads": inputs.query.shape[1],
        "num_key_value_heads": pool.kv_heads,
        "softmax_scale": inputs.scale,
        "block_size": pool.page_size,
        "return_softmax_lse": True,
        **antiquant(inputs, SECOND, (pool.kv_heads, 1, pool.head_dim)),
    }
    caches = by_heads(pool.key), by_heads(pool.value)
    query = real_rows(inputs).unsqueeze(2)
    return run_decode(inputs, FusedCall("npu_fused_infer_attention_score_v2", query, *caches, arguments))


@implementation(
    "quantised_kv_attention", supports={**_DECODE, **_ND, "form": ("channel", "tensor")}, on_device=True, graph=True
)
def ifa_int8_decode(inputs: QuantisedKvAttentionInputs, target: Target) -> Outputs:
    """Decode through ``npu_incre_flash_attention``, whose scales of keys and values are one tensor."""
    pool = inputs.pool
    pairs = {"antiquant_scale": [side.scale.flatten() for side in sides(inputs)]}
    if inputs.of_keys.offset is not None:
        pairs["antiquant_offset"] = [side.offset.flatten() for side in sides(inputs) if side.offset is not None]
    query = real_rows(inputs).flatten(1).unsqueeze(1)
    output = torch.ops.npu.npu_incre_flash_attention(
        query, pool.key.flatten(2), pool.value.flatten(2), actual_seq_lengths=list(inputs.kv_lengths),
        block_table=pool.block_table, num_heads=inputs.query.shape[1], scale_value=inputs.scale, input_layout="BSH",
        num_key_value_heads=pool.kv_heads, block_size=pool.page_size,
        **{name: torch.stack(both).squeeze(-1) for name, both in pairs.items()},
    )  # fmt: skip
    return with_padding(inputs, output.reshape(real_rows(inputs).shape))


def padded_queries(inputs: QuantisedKvAttentionInputs) -> torch.Tensor:
    """Rows of each request, ``[batch, rows, heads, head_dim]``; behind those of a shorter one are zeros."""
    each = torch.split(real_rows(inputs), list(inputs.query_lengths))
    return torch.nn.utils.rnn.pad_sequence(list(each), batch_first=True)


def run_rows(inputs: QuantisedKvAttentionInputs, call: FusedCall) -> Outputs:
    """Run a call in BSND, whose rows are padded, with a log-sum-exp ``[batch, heads, rows, 1]``."""
    output, lse = call()
    lse = lse.squeeze(-1).transpose(1, 2)
    rows = [torch.cat([one[:count] for one, count in zip(part, inputs.query_lengths, strict=True)])
            for part in (output, lse)]  # fmt: skip
    return with_padding(inputs, *rows)


def rows_call(
    inputs: QuantisedKvAttentionInputs, key: torch.Tensor, value: torch.Tensor, numbers: Mapping[str, object]
) -> FusedCall:
    """The second version in BSND: rows are causal where there are several, and else see all (operators.md 1.13)."""
    query = padded_queries(inputs)
    several = query.shape[1] > 1
    arguments = {
        "input_layout": "BSND",
        "actual_seq_qlen": list(inputs.query_lengths),
        "actual_seq_kvlen": list(inputs.kv_lengths),
        "atten_mask": compressed_mask(str(query.device)) if several else None,
        "sparse_mode": 3 if several else 0,
        "num_query_heads": query.shape[2],
        "num_key_value_heads": inputs.pool.kv_heads,
        "softmax_scale": inputs.scale,
        "return_softmax_lse": True,
        **numbers,
    }
    return FusedCall("npu_fused_infer_attention_score_v2", query, key, value, arguments)


def request_numbers(inputs: QuantisedKvAttentionInputs) -> dict[str, object]:
    """Scales and offsets per channel or cache (mode 0), or of tokens in the order of each request (mode 1)."""
    found: dict[str, object] = {}
    for place, side in enumerate(sides(inputs)):
        found[SECOND["mode"][place]] = int(side.of_tokens)
        for what, numbers in (("scale", side.scale), ("offset", side.offset)):
            if numbers is not None:
                found[SECOND[what][place]] = gathered_numbers(inputs, numbers) if side.of_tokens else numbers
    return found


_DRAFT: Box = {"query_length": range(17)}
"""Rows of a request up to which operators take integers."""


@implementation(
    "quantised_kv_attention", supports={**_DRAFT, **_NZ, "form": ("channel", "token")}, on_device=True, graph=True
)
def fia_int8_draft_nz(inputs: QuantisedKvAttentionInputs, target: Target) -> Outputs:
    """One new token per request or several, through FIA v2 BSND on NZ pages."""
    if not any(inputs.query_lengths):
        return nothing(inputs)
    pages = {"block_table": inputs.pool.block_table, "block_size": inputs.pool.page_size, "inner_precise": 1}
    numbers = {**request_numbers(inputs), **pages}
    return run_rows(inputs, rows_call(inputs, inputs.pool.key, inputs.pool.value, numbers))


def nothing(inputs: QuantisedKvAttentionInputs) -> Outputs:
    """What rows come to that see no key."""
    lse = inputs.query.new_full(inputs.query.shape[:2], -torch.inf, dtype=torch.float32)
    return {"output": inputs.query.new_zeros(inputs.query.shape), "lse": lse}


def slots_of(inputs: QuantisedKvAttentionInputs, request: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Page and offset of each token of a request."""
    tokens = torch.arange(inputs.kv_lengths[request], device=inputs.query.device)
    size = inputs.pool.page_size
    return inputs.pool.block_table[request].long()[tokens // size], tokens % size


def tokens_at(cache: torch.Tensor, slots: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Integers of some slots ``[tokens, kv_heads, head_dim]``, of pages in either layout."""
    pages, offsets = slots
    return cache[pages, :, :, offsets].flatten(2) if cache.dim() == 5 else cache[pages, offsets]


def gathered(inputs: QuantisedKvAttentionInputs, cache: torch.Tensor) -> torch.Tensor:
    """Integers in the order of each request, ``[batch, tokens, kv_heads, head_dim]``, zeros behind the last one."""
    each = [tokens_at(cache, slots_of(inputs, request)) for request in range(len(inputs.kv_lengths))]
    return torch.nn.utils.rnn.pad_sequence(each, batch_first=True)


@implementation(
    "quantised_kv_attention",
    supports={**_DRAFT, "form": ("channel", "tensor", "token"), "dtype": ("bfloat16",), "poison": POISON},
    on_device=True,
    graph=True,
)
def fia_int8_dense(inputs: QuantisedKvAttentionInputs, target: Target) -> Outputs:
    """Pages gathered as they are, and FIA v2 BSND over integers that lie in the order of each request."""
    if not any(inputs.query_lengths) or not any(inputs.kv_lengths):
        return nothing(inputs)
    key, value = (gathered(inputs, cache) for cache in (inputs.pool.key, inputs.pool.value))
    return run_rows(inputs, rows_call(inputs, key, value, request_numbers(inputs)))


def restored(
    side: Antiquant, cache: torch.Tensor, slots: tuple[torch.Tensor, torch.Tensor], dtype: torch.dtype
) -> torch.Tensor:
    """Elements of some tokens, computed in a dtype."""
    pages, offsets = slots

    def broadcast(numbers: torch.Tensor) -> torch.Tensor:
        if side.granularity == "token":
            return numbers[pages, offsets].view(-1, 1, 1).to(dtype)
        if side.granularity == "token and head":
            return numbers.transpose(1, 2)[pages, offsets].unsqueeze(-1).to(dtype)
        return (numbers if side.granularity == "channel" else numbers.view(-1, 1)).to(dtype)

    wide = tokens_at(cache, slots).to(dtype)
    wide = wide if side.offset is None else wide + broadcast(side.offset)
    return wide * broadcast(side.scale)


def dense_call(inputs: QuantisedKvAttentionInputs) -> FusedCall:
    """Pages gathered and dequantised, and the first version in TND over them (attention_v1.py 1927-1973, 2181)."""
    dtype, pool = inputs.query.dtype, inputs.pool
    places = [slots_of(inputs, request) for request in range(len(inputs.kv_lengths))]
    key, value = (
        torch.cat([restored(side, cache, slots, dtype) for slots in places])
        for side, cache in zip(sides(inputs), (pool.key, pool.value), strict=True)
    )
    arguments = {
        "input_layout": "TND",
        "atten_mask": compressed_mask(str(inputs.query.device), torch.int8),
        "actual_seq_lengths": list(itertools.accumulate(inputs.query_lengths)),
        "actual_seq_lengths_kv": list(itertools.accumulate(inputs.kv_lengths)),
        "num_heads": inputs.query.shape[1],
        "num_key_value_heads": pool.kv_heads,
        "scale": inputs.scale,
        "block_size": pool.page_size,
        "sparse_mode": 3,
        "softmax_lse_flag": True,
    }
    return FusedCall("npu_fused_infer_attention_score", real_rows(inputs).contiguous(), key, value, arguments)


def run_dense(inputs: QuantisedKvAttentionInputs, call: FusedCall) -> Outputs:
    """Run a call in TND."""
    output, lse = call()
    return with_padding(inputs, output, lse.squeeze(-1))


@implementation(
    "quantised_kv_attention",
    supports={"dtype": ("bfloat16",), "head_dim": (64, 128, 192), "poison": POISON},
    on_device=True,
    graph=True,
)
def c8_prefill_dequantised(inputs: QuantisedKvAttentionInputs, target: Target) -> Outputs:
    """Chunks behind a history as vllm-ascend has them: dequantised to the query's dtype, then FIA v1 TND."""
    if not any(inputs.query_lengths) or not any(inputs.kv_lengths):
        return nothing(inputs)
    return run_dense(inputs, dense_call(inputs))


@implementation("quantised_kv_attention", supports={}, on_device=True, graph=True)
def torch_int8_float32(inputs: QuantisedKvAttentionInputs, target: Target) -> Outputs:
    """Request after request in float32."""
    return attended(inputs, torch.float32)


def attended(inputs: QuantisedKvAttentionInputs, dtype: torch.dtype) -> Outputs:
    """Attention in float32 over elements that are computed in a dtype."""
    whole, start = nothing(inputs), 0
    group = inputs.query.shape[1] // inputs.pool.kv_heads
    for request, (new, total) in enumerate(zip(inputs.query_lengths, inputs.kv_lengths, strict=True)):
        rows = slice(start, start + new)
        if new and total:
            slots = slots_of(inputs, request)
            caches = zip(sides(inputs), (inputs.pool.key, inputs.pool.value), strict=True)
            key, value = (
                restored(side, cache, slots, dtype).float().transpose(0, 1).repeat_interleave(group, dim=0)
                for side, cache in caches
            )
            scores = inputs.query[rows].float().transpose(0, 1) @ key.transpose(1, 2) * inputs.scale
            behind = torch.ones(new, total, dtype=torch.bool, device=scores.device).triu(total - new + 1)
            scores = scores.masked_fill(behind, -torch.inf)
            output = torch.softmax(scores, dim=-1) @ value
            whole["output"][rows] = output.transpose(0, 1).to(inputs.query.dtype)
            whole["lse"][rows] = torch.logsumexp(scores, dim=-1).t()
        start += new
    return whole

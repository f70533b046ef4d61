"""Latent attention as backends call it: fused attention with rotated parts, ATB's kernel, and prefixes merged by LSE.

Sources: sglang 0.5.23, ``hardware_backend/npu/attention/ascend_backend.py``, and vllm-ascend (August 2026),
``vllm_ascend/attention/mla_v1.py``, with the lines given at each function.
"""

from __future__ import annotations

import itertools

import torch

from npudiff import Target, implementation
from npudiff.device.ascend.fused_attention import FusedCall, compressed_mask
from npudiff.model.constraints import Box
from npudiff.reference.latent_attention import LatentAttentionInputs, UpProjections

Outputs = dict[str, torch.Tensor]

POWERS = (1, 2, 4, 8, 16, 32, 64, 128)
"""Query heads that the absorbed form of fused attention takes."""

ND: Box = {"layout": ("PA_BSND",)}
NZ: Box = {"layout": ("PA_NZ",)}

SIZES: Box = {"rank": (512,), "rope_dim": (64,), "heads": range(1, 129), "poison": ("large",)}
"""What fused attention is made for. NaN in storage that it may load but must not use is outside of its contract."""

ABSORBED: Box = {**SIZES, "form": ("absorbed",), "page_size": range(16, 1025, 16), "query_length": range(17)}
"""Up to 16 rows of a request; the documentation of pages names 16 and 128, and the check of CANN takes others."""

DECODE: Box = {**ABSORBED, "query_length": (1,)}

EXPANDED: Box = {
    **SIZES, "form": ("expanded",), "nope_dim": (128,), "value_dim": (128,), "fully_masked_rows": ("none",),
}  # fmt: skip
"""Prefill: no request is without tokens."""

PREFIX_CHUNK = 48
"""Tokens of a prefix that are expanded at once, and of which a part of the result is made; backends have a workspace
of thousands, and the same seams."""


def with_padding(inputs: LatentAttentionInputs, output: torch.Tensor, lse: torch.Tensor | None) -> Outputs:
    """Return outputs for all rows: real ones ``[rows, heads, dim]`` and ``[rows, heads]``, then zeros for padding.

    The operators report an LSE of plus infinity for a row that sees nothing; here that is the sum over no keys.
    """
    padding = len(inputs.query) - len(output)
    pad = torch.nn.functional.pad
    outputs = {"output": pad(output, (0, 0, 0, 0, 0, padding))}
    if lse is not None:
        outputs["lse"] = pad(torch.where(torch.isposinf(lse), -torch.inf, lse), (0, 0, 0, padding))
    return outputs


class AbsorbedCall:
    """Arguments of fused attention over latents, in the layouts that backends use.

    Parameters
    ----------
    inputs : LatentAttentionInputs
        On the device, in the absorbed form.
    """

    def __init__(self, inputs: LatentAttentionInputs) -> None:
        self.inputs = inputs
        self.heads = inputs.query.shape[1]
        self.rows = sum(inputs.query_lengths)

    @property
    def kernel_heads(self) -> int:
        """Query heads of the call: the next power of two."""
        return next(count for count in POWERS if count >= self.heads)

    def queries(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Both parts of the real rows ``[rows, heads, dim]``, with heads of zeros (mla_v1.py 1380-1470)."""
        more = self.kernel_heads - self.heads
        parts = self.inputs.query, self.inputs.query_rope
        query, rope = (torch.nn.functional.pad(part[: self.rows], (0, 0, 0, more)) for part in parts)
        return query, rope

    def caches(self, *, by_head: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents and rotated keys: ``[pages, page_size, dim]``, ``[pages, 1, page_size, dim]``, or NZ pages."""
        latents, ropes = self.inputs.pool.key, self.inputs.pool.value
        if self.inputs.pool.layout == "PA_NZ":
            return latents, ropes
        if by_head:
            return latents.transpose(1, 2), ropes.transpose(1, 2)
        return latents.flatten(2), ropes.flatten(2)

    def arguments(self, layout: str, version: int, rows: int) -> dict[str, object]:
        """Keyword arguments; several rows of a request are causal, and one row sees everything."""
        inputs = self.inputs
        several = rows > 1
        mask = compressed_mask(str(inputs.query.device)) if several else None
        names = {"heads": "num_heads", "kv": "actual_seq_lengths_kv", "q": "actual_seq_lengths", "scale": "scale"}
        if version == 2:
            names = {"heads": "num_query_heads", "kv": "actual_seq_kvlen", "q": "actual_seq_qlen",
                     "scale": "softmax_scale"}  # fmt: skip
        packed = {names["q"]: list(itertools.accumulate(inputs.query_lengths))} if layout[:3] == "TND" else {}
        return {
            "input_layout": layout,
            names["heads"]: self.kernel_heads,
            "num_key_value_heads": 1,
            names["scale"]: inputs.scale,
            names["kv"]: list(inputs.kv_lengths),
            **packed,
            "atten_mask": mask,
            "sparse_mode": 3 if several else 0,
            "block_table": inputs.pool.block_table,
            "block_size": inputs.pool.page_size,
        }


@implementation("latent_attention", supports=[{**DECODE, **ND}, {**DECODE, **NZ}], on_device=True, graph=True)
def fia_v1_decode_bsnd(inputs: LatentAttentionInputs, target: Target) -> Outputs:
    """Eager decode of sglang: FIA v1 BSND, one row per request, latents as keys and values (ascend_backend 3385)."""
    call = AbsorbedCall(inputs)
    query, rope = (part.unsqueeze(1) for part in call.queries())
    latents, ropes = call.caches()
    output, _ = torch.ops.npu.npu_fused_infer_attention_score(
        query, latents, latents, **call.arguments("BSND", 1, 1), query_rope=rope, key_rope=ropes
    )
    return with_padding(inputs, output.squeeze(1)[:, : call.heads], None)


@implementation("latent_attention", supports=fia_v1_decode_bsnd.constraints.boxes, on_device=True, graph=True)
def fia_v1_graph_decode(inputs: LatentAttentionInputs, target: Target) -> Outputs:
    """Decode of sglang in a graph: FIA v1 BSND with outputs and workspace of its own (ascend_backend 2991-3077)."""
    call = AbsorbedCall(inputs)
    query, rope = (part.unsqueeze(1) for part in call.queries())
    latents, ropes = call.caches()
    arguments = {**call.arguments("BSND", 1, 1), "query_rope": rope, "key_rope": ropes}
    operators = torch.ops.npu
    workspace = operators._npu_fused_infer_attention_score_get_max_workspace(query, latents, latents, **arguments)
    output, lse = torch.full_like(query, 777.0), query.new_empty(1)
    operators.npu_fused_infer_attention_score.out(
        query, latents, latents, **arguments, workspace=workspace, out=[output, lse]
    )
    return with_padding(inputs, output.squeeze(1)[:, : call.heads], None)


@implementation("latent_attention", supports=[{**DECODE, **ND}, {**DECODE, **NZ}], on_device=True, graph=True)
def fia_v2_decode(inputs: LatentAttentionInputs, target: Target) -> Outputs:
    """Decode of vllm-ascend: FIA v2 BNSD_NBSD on ND pages by head, BSND_NBSD on NZ pages (mla_v1 1420-1470)."""
    call = AbsorbedCall(inputs)
    by_row = inputs.pool.layout == "PA_NZ"
    query, rope = (part.unsqueeze(1 if by_row else 2) for part in call.queries())
    latents, ropes = call.caches(by_head=True)
    layout = "BSND_NBSD" if by_row else "BNSD_NBSD"
    output, lse = torch.ops.npu.npu_fused_infer_attention_score_v2(
        query, latents, latents, **call.arguments(layout, 2, 1), query_rope=rope, key_rope=ropes,
        return_softmax_lse=True,
    )  # fmt: skip
    rows = output.view(call.kernel_heads, call.rows, -1)[: call.heads].transpose(0, 1)
    return with_padding(inputs, rows, lse.view(call.rows, -1)[:, : call.heads])


VERIFY: Box = {**ABSORBED, "query_length": range(1, 17), "dtype": ("bfloat16",)}
"""Drafts. The documentation of TND names bfloat16 only."""


@implementation(
    "latent_attention", supports=[{**VERIFY, **ND, "ragged": (False,)}, {**VERIFY, **NZ, "ragged": (False,)}],
    on_device=True, graph=True,
)  # fmt: skip
def fia_v1_verify_tnd(inputs: LatentAttentionInputs, target: Target) -> Outputs:
    """Verification of sglang: FIA v1 TND, as many rows of every request, pages by head (ascend_backend 2700-2790)."""
    call = AbsorbedCall(inputs)
    query, rope = call.queries()
    latents, ropes = call.caches(by_head=True)
    arguments = {**call.arguments("TND", 1, 2), "query_rope": rope, "key_rope": ropes}
    output, _ = torch.ops.npu.npu_fused_infer_attention_score(query, latents, latents, **arguments)
    return with_padding(inputs, output[:, : call.heads], None)


@implementation("latent_attention", supports=[{**VERIFY, **ND}, {**VERIFY, **NZ}], on_device=True, graph=True)
def fia_v2_verify_tnd(inputs: LatentAttentionInputs, target: Target) -> Outputs:
    """Drafts of vllm-ascend: FIA v2 TND_NTD, as many rows of a request as it has (mla_v1 1440-1578)."""
    return absorbed_tnd(AbsorbedCall(inputs))


def absorbed_tnd(call: AbsorbedCall, **changes: object) -> Outputs:
    """FIA v2 TND_NTD of a call, with arguments changed; the output is ``[heads, rows, dim]``."""
    query, rope = call.queries()
    latents, ropes = call.caches(by_head=True)
    arguments = {**call.arguments("TND_NTD", 2, 2), "query_rope": rope, "key_rope": ropes, "return_softmax_lse": True}
    output, lse = torch.ops.npu.npu_fused_infer_attention_score_v2(query, latents, latents, **{**arguments, **changes})
    rows = output[: call.heads].transpose(0, 1)
    return with_padding(call.inputs, rows, lse.view(call.rows, -1)[:, : call.heads])


@implementation(
    "latent_attention",
    supports={**DECODE, **ND, "page_size": range(16, 129, 16), "fully_masked_rows": ("none",)},
    on_device=True,
    graph=True,
)
def atb_paged_mla(inputs: LatentAttentionInputs, target: Target) -> Outputs:
    """Decode of sglang without FIA: ATB's kernel on latents and rotated keys side by side (ascend_backend 3450).

    It leaves rows of a request without tokens as they are.
    """
    rows = sum(inputs.query_lengths)
    query = torch.cat([inputs.query, inputs.query_rope], dim=-1)[:rows]
    cache = torch.cat([inputs.pool.key, inputs.pool.value], dim=-1)
    output = query.new_empty(*query.shape[:2], inputs.rank)
    torch.ops.atb._npu_paged_attention_mla(
        query,
        cache,
        1,
        query.shape[1],
        inputs.scale,
        inputs.pool.block_table,
        torch.tensor(inputs.kv_lengths, dtype=torch.int32),
        inputs.rank,
        out=output,
    )
    return with_padding(inputs, output, None)


class ExpandedCall:
    """Prefill with keys and values of each head: the new tokens, and the prefix in parts that are merged.

    Its steps are methods, each of which says one thing that a backend has to get right.

    Parameters
    ----------
    inputs : LatentAttentionInputs
        On the device, in the expanded form.
    target : Target
        Where to run.
    """

    chunk: int = PREFIX_CHUNK

    def __init__(self, inputs: LatentAttentionInputs, target: Target) -> None:
        self.inputs, self.target = inputs, target
        self.heads = inputs.query.shape[1]
        self.rows = sum(inputs.query_lengths)
        self.prefixes = [total - new for new, total in zip(inputs.query_lengths, inputs.kv_lengths, strict=True)]

    @property
    def up(self) -> UpProjections:
        """What makes keys and values."""
        assert self.inputs.up is not None  # noqa: S101 - the form of the inputs
        return self.inputs.up

    def run(self) -> Outputs:
        """Attend to the new tokens, causally, and to each part of the prefix, and merge."""
        starts, counts = self.prefixes, list(self.inputs.query_lengths)
        parts = [self.attend(starts, counts, causal=True)]
        parts += [self.attend(*part, causal=False) for part in self.prefix_parts()]
        output, lse = parts[0] if len(parts) == 1 else self.merged(parts)
        return with_padding(self.inputs, output, lse)

    def prefix_parts(self) -> list[tuple[list[int], list[int]]]:
        """First token and number of tokens of each request, for each part of the prefixes."""
        return [
            ([first] * len(self.prefixes), [min(max(0, prefix - first), self.chunk) for prefix in self.prefixes])
            for first in range(0, max(self.prefixes), self.chunk)
        ]

    def attend(self, starts: list[int], counts: list[int], *, causal: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention of all new rows over some tokens of each request: output ``[rows, heads, dim]``, LSE."""
        latents, ropes = self.gathered(starts, counts)
        arguments = {
            "input_layout": "TND",
            "num_heads": self.heads,
            "num_key_value_heads": self.heads,
            "scale": self.inputs.scale,
            "actual_seq_lengths": list(itertools.accumulate(self.inputs.query_lengths)),
            "actual_seq_lengths_kv": list(itertools.accumulate(counts)),
            "atten_mask": compressed_mask(str(latents.device)) if causal else None,
            "sparse_mode": 3 if causal else 0,
            "softmax_lse_flag": True,
            "query_rope": self.inputs.query_rope[: self.rows],
            "key_rope": self.for_all_heads(ropes),
        }
        keys, values = self.expanded(latents)
        query = self.inputs.query[: self.rows].contiguous()
        output, lse = FusedCall("npu_fused_infer_attention_score", query, keys, values, arguments)()
        return output, lse.squeeze(-1)

    def gathered(self, starts: list[int], counts: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents ``[tokens, rank]`` and rotated keys of some tokens of each request, one request after the other."""
        pool = self.inputs.pool
        latents: list[torch.Tensor] = []
        ropes: list[torch.Tensor] = []
        for request, (start, count) in enumerate(zip(starts, counts, strict=True)):
            token = torch.arange(start, start + count, device=self.target.device)
            page, offset = pool.block_table[request].long()[token // pool.page_size], token % pool.page_size
            for found, cache, dim in ((latents, pool.key, pool.head_dim), (ropes, pool.value, pool.value_head_dim)):
                rows = cache[page, offset] if pool.layout == "PA_BSND" else cache[page, :, :, offset]
                found.append(rows.reshape(count, dim))
        return torch.cat(latents), torch.cat(ropes)

    def expanded(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of all heads, ``[tokens, heads, dim]``, by one product, which backends have as kv_b_proj."""
        nope, (heads, rank, value_dim) = self.up.key.shape[1], self.up.value.shape
        both = torch.cat([self.up.key, self.up.value.transpose(1, 2)], dim=1).view(heads * (nope + value_dim), rank)
        product = rounded(latents, both.t()).view(len(latents), heads, nope + value_dim)
        return product[..., :nope].contiguous(), product[..., nope:].contiguous()

    def for_all_heads(self, ropes: torch.Tensor) -> torch.Tensor:
        """Rotated keys ``[tokens, heads, rope_dim]``, dense: newer CANN refuses others (vllm-ascend #11834)."""
        return ropes.unsqueeze(1).expand(-1, self.heads, -1).contiguous()

    def merged(self, parts: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
        """All parts as one, through npu_attention_update, in float32; those of a request without tokens are absent."""
        outputs = [self.finite(output, lse).float().flatten(0, 1) for output, lse in parts]
        logs = [torch.where(torch.isposinf(lse), -torch.inf, lse).flatten() for _, lse in parts]
        merged, lse = torch.ops.npu.npu_attention_update(logs, outputs, 1)
        shape = parts[0][0].shape
        return merged.view(shape).to(self.inputs.query.dtype), lse.view(shape[:2])

    def finite(self, output: torch.Tensor, lse: torch.Tensor) -> torch.Tensor:
        """Outputs of a part, 0 where it has no key, since it is multiplied by 0 there."""
        return torch.where(torch.isinf(lse).unsqueeze(-1), 0.0, output)


def rounded(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Product in float32, rounded once, as a matrix unit has it."""
    return (first.float() @ second.float()).to(first.dtype)


CHUNKED: Box = {**EXPANDED, "dtype": ("bfloat16",), "kv_length": range(1, 16 * PREFIX_CHUNK), "merges": (1,)}
"""npu_attention_update merges up to 16 parts, each of which was rounded."""


@implementation("latent_attention", supports=CHUNKED, on_device=True, graph=True)
def fia_v1_prefix_chunks(inputs: LatentAttentionInputs, target: Target) -> Outputs:
    """Prefill of vllm-ascend: FIA v1 TND on the new tokens and on chunks of the prefix, merged (mla_v1 1112-1290)."""
    return ExpandedCall(inputs, target).run()


class WholePrefixCall(ExpandedCall):
    """The whole prefix at once, through FIA v2."""

    chunk = 2**31

    def prefix_parts(self) -> list[tuple[list[int], list[int]]]:
        """All prefixes, if there are some."""
        return [([0] * len(self.prefixes), self.prefixes)] if any(self.prefixes) else []

    def attend(self, starts: list[int], counts: list[int], *, causal: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention through FIA v2 of all new rows over some tokens of each request."""
        latents, ropes = self.gathered(starts, counts)
        keys, values = self.expanded(latents)
        query = self.inputs.query[: self.rows].contiguous()
        output, lse = torch.ops.npu.npu_fused_infer_attention_score_v2(
            query,
            keys,
            values,
            query_rope=self.inputs.query_rope[: self.rows],
            key_rope=self.for_all_heads(ropes),
            input_layout="TND",
            num_query_heads=self.heads,
            num_key_value_heads=self.heads,
            softmax_scale=self.inputs.scale,
            actual_seq_qlen=list(itertools.accumulate(self.inputs.query_lengths)),
            actual_seq_kvlen=list(itertools.accumulate(counts)),
            atten_mask=compressed_mask(str(query.device)) if causal else None,
            sparse_mode=3 if causal else 0,
            return_softmax_lse=True,
        )
        return output, lse.squeeze(-1)


PREFIX: Box = {**EXPANDED, "dtype": ("bfloat16",), "merges": (1,)}


@implementation("latent_attention", supports=PREFIX, on_device=True, graph=True)
def fia_v2_prefix(inputs: LatentAttentionInputs, target: Target) -> Outputs:
    """Prefill of sglang: FIA v2 TND on the new tokens and on whole prefixes, merged (ascend_backend 2174-2280)."""
    return WholePrefixCall(inputs, target).run()


@implementation("latent_attention", supports=[*fia_v2_verify_tnd.constraints.boxes, PREFIX], on_device=True, graph=True)
def fia_by_form(inputs: LatentAttentionInputs, target: Target) -> Outputs:
    """Both forms, as one backend has them in prefill and decode: over latents, or over heads with a merged prefix."""
    return absorbed_tnd(AbsorbedCall(inputs)) if inputs.up is None else WholePrefixCall(inputs, target).run()


@implementation("latent_attention", supports={"merges": (0,)}, graph=True)
def latent_native(inputs: LatentAttentionInputs, target: Target) -> torch.Tensor:
    """Gather each request's tokens and call scaled_dot_product_attention: the path without fused operators."""
    inputs = inputs.to(target.device)
    call = ExpandedCall(inputs, target)
    output = inputs.query.new_zeros(*inputs.query.shape[:2], inputs.value_dim)
    latents, ropes = call.gathered([0] * len(inputs.kv_lengths), list(inputs.kv_lengths))
    start = first = 0
    for rows, total in zip(inputs.query_lengths, inputs.kv_lengths, strict=True):
        if rows and total:
            own, rotated = latents[first : first + total], ropes[first : first + total].unsqueeze(1)
            keys, values = (own.unsqueeze(1), own.unsqueeze(1)) if inputs.up is None else call.expanded(own)
            key = torch.cat([keys, rotated.expand(-1, keys.shape[1], -1)], dim=-1)
            query = torch.cat([part[start : start + rows] for part in (inputs.query, inputs.query_rope)], dim=-1)
            seen = torch.ones(rows, total, dtype=torch.bool, device=query.device).tril(total - rows)
            result = torch.nn.functional.scaled_dot_product_attention(
                query.transpose(0, 1)[None], key.transpose(0, 1)[None], values.transpose(0, 1)[None],
                attn_mask=seen, scale=inputs.scale, enable_gqa=True,
            )  # fmt: skip
            output[start : start + rows] = result[0].transpose(0, 1)
        start, first = start + rows, first + total
    return output

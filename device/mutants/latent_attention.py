"""Mutants of latent attention: a prefix, a part of a key, a head or a page is taken for another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from npudiff import Target, mutant
from npudiff.device.ascend.latent_attention import (
    AbsorbedCall,
    ExpandedCall,
    Outputs,
    WholePrefixCall,
    absorbed_tnd,
    fia_v1_decode_bsnd,
    fia_v1_graph_decode,
    fia_v1_prefix_chunks,
    fia_v2_decode,
    fia_v2_prefix,
    fia_v2_verify_tnd,
    latent_native,
)
from npudiff.device.mutants.class_mutant import class_mutant
from npudiff.reference.latent_attention import LatentAttentionInputs
from npudiff.reference.paged_kv import PagedKV

Part = tuple[torch.Tensor, torch.Tensor]

PAGE = 16
"""Tokens of a page that some code takes for granted."""

GROUP = 16
"""Query heads that a kernel has at least, to which others are repeated."""


@class_mutant(fia_v2_prefix, "CPX-01 sgl-project/sglang/pull/22020: extend attends to the current chunk only")
class LatentPrefixIgnored(WholePrefixCall):
    """New tokens see each other, and nothing that is cached."""

    def prefix_parts(self) -> list[tuple[list[int], list[int]]]:
        """See none."""
        return []


@class_mutant(
    fia_v2_prefix,
    "ascend_backend.py 693: tables of prefixes are lists of whole pages",
)
class LatentPrefixInWholePages(WholePrefixCall):
    """The prefix ends with its last full page."""

    def prefix_parts(self) -> list[tuple[list[int], list[int]]]:
        """Round prefixes down."""
        size = self.inputs.pool.page_size
        whole = [prefix // size * size for prefix in self.prefixes]
        return [([0] * len(whole), whole)] if any(whole) else []


@class_mutant(
    fia_v1_prefix_chunks, "vllm-project/vllm/issues/26042: chunks of a prefix are lost where a workspace is small"
)
class LatentChunkReplacesTheLast(ExpandedCall):
    """Of several chunks of a prefix the last one is kept."""

    def prefix_parts(self) -> list[tuple[list[int], list[int]]]:
        """Keep one."""
        return super().prefix_parts()[-1:]


@class_mutant(
    fia_v1_prefix_chunks, "local-inference-lab/vllm/pull/17: both sides of a merge are read with the strides of one"
)
class LatentMergeWithOneStride(ExpandedCall):
    """From two chunks on, the first one has rows as wide as keys, and is read as if they were as wide as values."""

    def merged(self, parts: list[Part]) -> Part:
        """Read the first part with other strides."""
        if len(parts) > 2:
            (output, lse), *others = parts
            wide = torch.nn.functional.pad(output, (0, self.inputs.rope_dim)).flatten()
            parts = [(wide[: output.numel()].view(output.shape), lse), *others]
        return super().merged(parts)


@class_mutant(fia_v1_prefix_chunks, "ROCm/aiter/pull/3606: the LSE of a part without a mask is wrong")
class LatentLseOfPartInBase2(ExpandedCall):
    """Parts of a prefix say logarithms to base 2."""

    def attend(self, starts: list[int], counts: list[int], *, causal: bool) -> Part:
        """Change the base."""
        output, lse = super().attend(starts, counts, causal=causal)
        return output, lse if causal else lse / torch.log(torch.tensor(2.0, device=lse.device))


@class_mutant(
    fia_v2_prefix, "vllm-project/vllm/pull/27491: a part without keys has an infinite LSE, and is not left out"
)
class LatentAbsentPartMerged(WholePrefixCall):
    """What has no prefix has a part of a prefix all the same, whose LSE is plus infinity."""

    def merged(self, parts: list[Part]) -> Part:
        """Weigh by exponentials, in float32."""
        logs = torch.stack([lse for _, lse in parts])
        weights = torch.softmax(logs, dim=0).unsqueeze(-1)
        output = (torch.stack([output.float() for output, _ in parts]) * weights).sum(dim=0)
        return output.to(self.inputs.query.dtype), torch.logsumexp(logs, dim=0)


@class_mutant(
    fia_v2_prefix, "vllm-project/vllm-ascend/pull/11834: rotated keys are expanded to heads, and read as if dense"
)
class LatentRopeReadAsDense(WholePrefixCall):
    """The rotated key of another head is the next one in memory."""

    def for_all_heads(self, ropes: torch.Tensor) -> torch.Tensor:
        """Read on, and at the end from the beginning."""
        dense = ropes.repeat(self.heads, 1)
        return dense.view(len(ropes), self.heads, -1)


@mutant(latent_native, "PKV-03 sgl-project/sglang/pull/24582: values are viewed with the dim of keys")
def latent_values_at_the_dim_of_keys(inputs: LatentAttentionInputs, target: Target) -> torch.Tensor:
    """The values of a head begin where its keys would, were there values."""
    up = inputs.up
    if up is None:
        return latent_native(inputs, target)
    heads, nope, rank = up.key.shape
    rows = up.value.transpose(1, 2).reshape(-1, rank)
    first = torch.arange(heads).unsqueeze(1) * nope + torch.arange(up.value.shape[2])
    value = rows[first % len(rows)].transpose(1, 2)
    return latent_native(replace(inputs, up=replace(up, value=value)), target)


@mutant(
    latent_native,
    "NAN-05 flashinfer-ai/flashinfer/issues/941: lanes behind the last latent hold what memory held",
    supports={"form": ("absorbed",), "poison": ("nan",), "merges": (0,)},
)
def latent_tail_multiplied(inputs: LatentAttentionInputs, target: Target) -> torch.Tensor:
    """Whole pages are read, scores are masked, and latents behind the last one are multiplied by weights of 0."""
    output = latent_native(inputs, target)
    size, start = inputs.pool.page_size, 0
    for rows, total in zip(inputs.query_lengths, inputs.kv_lengths, strict=True):
        if total % size:
            output[start : start + rows] += torch.nan * 0.0
        start += rows
    return output


@mutant(
    fia_v2_decode,
    "PKV-06 sgl-project/sglang/pull/14423: writer and reader each follow a flag of their own",
    supports=[{**box, "layout": ("PA_NZ",)} for box in fia_v2_decode.constraints.boxes[1:]],
)
def latent_nz_pages_as_nd(inputs: LatentAttentionInputs, target: Target) -> Outputs:
    """Bytes of NZ pages are read as if tokens followed each other."""
    pool = inputs.pool
    latent, rope = (cache.view(len(cache), pool.page_size, 1, -1) for cache in (pool.key, pool.value))
    return fia_v2_decode(replace(inputs, pool=PagedKV(latent, rope, pool.block_table)), target)


@mutant(
    fia_v2_verify_tnd,
    "MLA-05 vllm-project/vllm-ascend/pull/88: right for pages of 16, wrong for 128",
    supports=[{**box, "layout": ("PA_BSND",)} for box in fia_v2_verify_tnd.constraints.boxes[:1]],
)
def latent_pages_of_16(inputs: LatentAttentionInputs, target: Target) -> Outputs:
    """Pages have 16 tokens, whatever they have."""
    pool = inputs.pool
    latent, rope = (cache.reshape(-1, PAGE, *cache.shape[2:]) for cache in (pool.key, pool.value))
    missing = max(0, -(-max(inputs.kv_lengths) // PAGE) - pool.block_table.shape[1])
    table = torch.nn.functional.pad(pool.block_table, (0, missing))
    return fia_v2_verify_tnd(replace(inputs, pool=PagedKV(latent, rope, table)), target)


@mutant(fia_v2_verify_tnd, "MLA-04 vllm-project/vllm-ascend/pull/1958: the softmax scale of the padded head dim")
def latent_scale_of_padded_dim(inputs: LatentAttentionInputs, target: Target) -> Outputs:
    """The scale is that of a key of 640 elements, to which one of 576 is padded."""
    dim = inputs.rank + inputs.rope_dim
    padded = -(-dim // 128) * 128
    return fia_v2_verify_tnd(replace(inputs, scale=inputs.scale * (dim / padded) ** 0.5), target)


@mutant(fia_v2_verify_tnd, "vllm-project/vllm-ascend/pull/6524: rows of a graph are more than lengths say")
def latent_rows_of_the_graph(inputs: LatentAttentionInputs, target: Target) -> Outputs:
    """Padded rows are part of the query, and of no length."""
    call = AbsorbedCall(inputs)
    call.rows = len(inputs.query)
    return absorbed_tnd(call)


@mutant(fia_v1_decode_bsnd, "vllm-project/vllm/pull/51088: heads are padded in one order, and taken back in another")
def latent_heads_taken_back_in_steps(inputs: LatentAttentionInputs, target: Target) -> Outputs:
    """Fewer heads than 16 are repeated one after the other, and taken back as if each were repeated by itself."""
    heads = inputs.query.shape[1]
    if heads >= GROUP:
        return fia_v1_decode_bsnd(inputs, target)
    kernel = torch.arange(GROUP) % heads
    kernel = torch.arange(GROUP) // (GROUP // heads) if GROUP % heads == 0 else kernel
    padded = replace(inputs, query=inputs.query[:, kernel], query_rope=inputs.query_rope[:, kernel])
    output = fia_v1_decode_bsnd(padded, target)["output"]
    return {"output": output[:, :: GROUP // heads][:, :heads]}


@mutant(fia_v1_graph_decode, "MLA-07 vllm-project/vllm/pull/38615: heads are padded, and buffers are not")
def latent_heads_padded_beside_their_buffer(inputs: LatentAttentionInputs, target: Target) -> Outputs:
    """Copy what comes out into a buffer for as many heads as the model has."""
    call = AbsorbedCall(inputs)
    more = call.kernel_heads - call.heads
    query, rope = (torch.nn.functional.pad(part, (0, 0, 0, more)) for part in (inputs.query, inputs.query_rope))
    output = fia_v1_graph_decode(replace(inputs, query=query, query_rope=rope), target)["output"]
    return {"output": torch.empty_like(inputs.query).copy_(output)}


@mutant(
    fia_v1_graph_decode,
    "GRF-08 sgl-project/sglang/pull/21255: lengths on the host are those of the first step",
    stateful=True,
)
def latent_lengths_of_the_captured_step() -> Callable[[LatentAttentionInputs, Target], Outputs]:
    """Decode in a graph of its batch, with the KV lengths that were current when it was captured."""
    graphs: dict[int, tuple[int, ...]] = {}

    def step(inputs: LatentAttentionInputs, target: Target) -> Outputs:
        lengths = graphs.setdefault(len(inputs.kv_lengths), tuple(inputs.kv_lengths))
        return fia_v1_graph_decode(replace(inputs, kv_lengths=lengths), target)

    return step

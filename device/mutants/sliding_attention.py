"""Mutants of sliding-window attention: the call of a correct adapter with one thing changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from npudiff import mutant
from npudiff.device.ascend.fused_attention import decode_call, tnd_call
from npudiff.device.ascend.sliding_attention import (
    Outputs,
    fia_decode_mask,
    fia_decode_nz,
    fia_extend_tnd,
    run_decode,
    run_tnd,
)
from npudiff.device.ascend.swa_mask import window_mask
from npudiff.model.implementation import Target
from npudiff.reference.sliding_attention import SlidingAttentionInputs

SEED_PULL_REQUEST = "sgl-project/sglang/pull/24582"


@mutant(fia_decode_mask, f"SWA-01 {SEED_PULL_REQUEST}")
def decode_pre_tokens(inputs: SlidingAttentionInputs, target: Target) -> Outputs:
    """Decode that leaves the window to pre_tokens, which the operator ignores at query length 1."""
    return run_decode(inputs, decode_call(inputs).having(atten_mask=None))


def _decode_with_context(inputs: SlidingAttentionInputs, left_context: int) -> Outputs:
    call = decode_call(inputs)
    mask = call.arguments["atten_mask"]
    if mask is not None:
        lengths = mask.new_tensor(inputs.kv_lengths, dtype=int)
        call = call.having(atten_mask=window_mask(lengths, mask.shape[-1], left_context))
    return run_decode(inputs, call)


@mutant(fia_decode_mask, f"SWA-02 {SEED_PULL_REQUEST}")
def decode_left_context_512(inputs: SlidingAttentionInputs, target: Target) -> Outputs:
    """Decode whose mask keeps its default of 512 visible keys, whatever the layer's window is."""
    return _decode_with_context(inputs, 512)


@mutant(fia_decode_mask, "SWA-05 sgl-project/sglang/pull/26147")
def decode_one_key_many(inputs: SlidingAttentionInputs, target: Target) -> Outputs:
    """Decode whose mask shows one key too many."""
    return _decode_with_context(inputs, (inputs.window or 0) + 1)


@mutant(fia_decode_mask, "SWA-06 sgl-project/sglang/pull/32087")
def decode_one_key_few(inputs: SlidingAttentionInputs, target: Target) -> Outputs:
    """Decode whose mask hides the oldest key of the window."""
    return _decode_with_context(inputs, (inputs.window or 0) - 1)


@mutant(fia_extend_tnd, "SWA-05 sgl-project/sglang/pull/26147")
def extend_one_key_many(inputs: SlidingAttentionInputs, target: Target) -> Outputs:
    """Extend with pre_tokens = window: the band counts the query's own key besides."""
    call = tnd_call(inputs)
    return run_tnd(inputs, call if inputs.window is None else call.having(pre_tokens=inputs.window))


@mutant(fia_extend_tnd, "SWA-06 sgl-project/sglang/pull/32087")
def extend_one_key_few(inputs: SlidingAttentionInputs, target: Target) -> Outputs:
    """Extend with a band that ends one key early."""
    call = tnd_call(inputs)
    return run_tnd(inputs, call if inputs.window in (None, 1) else call.having(pre_tokens=inputs.window - 2))


@mutant(fia_decode_mask, f"PKV-02 {SEED_PULL_REQUEST}")
def decode_block_size_128(inputs: SlidingAttentionInputs, target: Target) -> Outputs:
    """Decode that views the cache in blocks of 128 and says so, whatever the page size is."""
    call = decode_call(inputs)
    slots = call.key.shape[0] * call.key.shape[1] // 128 * 128
    key, value = (cache.flatten(0, 1)[:slots].reshape(-1, 128, cache.shape[2]) for cache in (call.key, call.value))
    return run_decode(inputs, replace(call, key=key, value=value).having(block_size=128))


@mutant(fia_extend_tnd, f"PKV-03 {SEED_PULL_REQUEST}")
def extend_value_as_key_dim(inputs: SlidingAttentionInputs, target: Target) -> Outputs:
    """Extend that views the value cache with the head dim of the keys."""
    call = tnd_call(inputs)
    width = call.key.shape[2]
    flat = call.value.flatten()
    pages = flat.numel() // (inputs.kv.page_size * width)
    value = flat[: pages * inputs.kv.page_size * width].view(pages, inputs.kv.page_size, width)
    return run_tnd(inputs, replace(call, value=value))


@mutant(fia_extend_tnd, "sglang 0.5.23 ascend_backend.py 3300: layers with a window read through the full block table")
def extend_wrong_pool(inputs: SlidingAttentionInputs, target: Target) -> Outputs:
    """Extend of a sliding layer with the block table of the full layers."""
    return run_tnd(inputs, tnd_call(inputs).having(block_table=inputs.full.block_table))


@mutant(fia_decode_nz, "PKV-06 sgl-project/sglang/pull/14423: the writer's flag says NZ, the reader's says ND")
def decode_nz_pages_as_nd(inputs: SlidingAttentionInputs, target: Target) -> Outputs:
    """Decode that takes the bytes of NZ pages for [page_size, heads * dim]."""
    call = decode_call(inputs)
    rows = (call.key.shape[0], inputs.kv.page_size, -1)
    return run_decode(inputs, replace(call, key=call.key.reshape(rows), value=call.value.reshape(rows)))


TILE_OF_HEADS = 16
"""Heads for which a kernel is made."""


@mutant(
    fia_decode_mask,
    "MLA-07 vllm-project/vllm/pull/38615: heads are padded, and buffers are not",
    supports={"group": (1, 2, 4, 8, 16), "kv_heads": (1,)},
)
def heads_padded_beside_their_buffer(inputs: SlidingAttentionInputs, target: Target) -> Outputs:
    """Repeat heads until there are 16, and copy what comes out into a buffer for as many as the model has."""
    heads = inputs.query.shape[1]
    query = inputs.query.repeat_interleave(TILE_OF_HEADS // heads, dim=1)
    outputs = run_decode(inputs, decode_call(replace(inputs, query=query)))
    rows = len(query)
    buffers = {
        "output": outputs["output"].new_empty(rows, heads, inputs.kv.value_head_dim),
        "lse": outputs["lse"].new_empty(rows, heads),
    }
    return {name: buffer.copy_(outputs[name]) for name, buffer in buffers.items()}


@mutant(
    fia_decode_mask,
    "GRF-08 sgl-project/sglang/pull/21255: lengths on the host are those of the first step",
    stateful=True,
)
def lengths_of_the_captured_step() -> Callable[[SlidingAttentionInputs, Target], Outputs]:
    """Decode in a graph of its batch, with the KV lengths that were current when it was captured."""
    graphs: dict[int, tuple[int, ...]] = {}

    def step(inputs: SlidingAttentionInputs, target: Target) -> Outputs:
        lengths = graphs.setdefault(len(inputs.kv_lengths), tuple(inputs.kv_lengths))
        call = decode_call(inputs).having(actual_seq_kvlen=list(lengths))
        return run_decode(inputs, call)

    return step

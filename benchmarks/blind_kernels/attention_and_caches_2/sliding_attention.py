"""Wrong kernels of sliding_attention; TWIN=1 runs the same code without the mistakes."""

import math
import os

import torch

import npudiff
from c_core import attention as _attention
from c_core import band as _band
from c_core import softmax_of as _softmax

WRONG = os.environ.get("TWIN") != "1"
NAME = "sliding_attention"


def _decodes(inputs):
    return set(inputs.query_lengths) == {1}


@npudiff.implementation(NAME, name="c_sliding_attention_01_partitions_of_the_longest", on_device=True)
def c01(inputs, target):
    """A windowed decode launches as many partitions as the longest request has pages in its window; a shorter, less
    aligned one loses its newest page."""
    band, size = _band(inputs), inputs.kv.page_size
    if inputs.window is None or not _decodes(inputs):
        return _attention(inputs)

    def pages(total):
        return -(-total // size) - max(0, total - inputs.window) // size

    parts = pages(max(inputs.kv_lengths)) if WRONG else max(pages(total) for total in inputs.kv_lengths)

    def seen(request, rows, positions, keys, new, total):
        return band(request, rows, positions, keys, new, total) & (
            keys // size - max(0, total - inputs.window) // size < parts
        )

    return _attention(inputs, seen=seen)


@npudiff.implementation(NAME, name="c_sliding_attention_02_sink_in_every_split", on_device=True)
def c02(inputs, target):
    """A decode is split into parts of 512 keys, and each of them starts its sum with the sink."""
    most = max(inputs.kv_lengths, default=0)
    split = 512 if WRONG and _decodes(inputs) else max(1, most)

    def softmax(scores, values, sinks):
        parts = max(1, -(-scores.shape[-1] // split))
        return _softmax(scores, values, None if sinks is None else sinks + math.log(parts))

    return _attention(inputs, softmax=softmax)


@npudiff.implementation(NAME, name="c_sliding_attention_03_lse_of_powers_of_two", on_device=True)
def c03(inputs, target):
    """Exponentials are powers of two inside, and the LSE is returned as the logarithm to that base."""
    result = _attention(inputs)
    return {**result, "lse": result["lse"] / (math.log(2) if WRONG else 1.0)}


@npudiff.implementation(NAME, name="c_sliding_attention_04_group_by_shift", on_device=True)
def c04(inputs, target):
    """The KV head of a query head is found by a shift, as if groups were powers of two."""
    heads, kv_heads = inputs.query.shape[1], inputs.kv.kv_heads
    group, head = heads // kv_heads, torch.arange(heads)
    index = head >> (group.bit_length() - 1) if WRONG else head // group
    return _attention(inputs, kv_of_head=index.clamp(max=kv_heads - 1))


@npudiff.implementation(NAME, name="c_sliding_attention_05_key_tiles_of_the_first_row", on_device=True)
def c05(inputs, target):
    """How many key tiles of 128 a tile of 64 rows needs is taken from its first row, so that later rows lose their newest
    keys where a tile of rows goes across a boundary."""
    band = _band(inputs)

    def seen(request, rows, positions, keys, new, total):
        of_tile = positions - rows % 64 if WRONG else positions
        tiles = torch.div(of_tile, 128, rounding_mode="floor") + 1
        return band(request, rows, positions, keys, new, total) & (keys < (tiles * 128).unsqueeze(1))

    return _attention(inputs, seen=seen)


@npudiff.implementation(NAME, name="c_sliding_attention_06_window_of_whole_pages", on_device=True)
def c06(inputs, target):
    """A decode starts at the page in which the window starts, and does not mask the rest of that page."""
    if inputs.window is None:
        return _attention(inputs)
    size, band = inputs.kv.page_size, _band(inputs)

    def seen(request, rows, positions, keys, new, total):
        if new != 1 or not WRONG:
            return band(request, rows, positions, keys, new, total)
        return (keys >= max(0, total - inputs.window) // size * size).unsqueeze(0)

    return _attention(inputs, seen=seen, before=size)


@npudiff.implementation(NAME, name="c_sliding_attention_07_positions_in_half", on_device=True)
def c07(inputs, target):
    """The vector unit compares no int32, so positions become float16, in which they are not all there beyond 2048."""
    if inputs.window is None:
        return _attention(inputs)

    def seen(request, rows, positions, keys, new, total):
        kind = torch.float16 if WRONG else torch.float64
        distance = positions.to(kind).unsqueeze(1) - keys.to(kind)
        return (distance >= 0) & (distance < float(inputs.window))

    return _attention(inputs, seen=seen, before=64)


@npudiff.implementation(NAME, name="c_sliding_attention_08_empty_request_keeps_buffer", stateful=True, on_device=True)
def c08():
    """The output is allocated once per shape, and a request without keys returns before it writes its row."""
    buffers = {}

    def call(inputs, target):
        key = (tuple(inputs.query.shape), inputs.kv.value_head_dim, inputs.query.dtype)
        shape = (*inputs.query.shape[:2], inputs.kv.value_head_dim)
        buffer = buffers.setdefault(key, torch.zeros(shape, dtype=torch.float64))
        start = 0
        for new, total in zip(inputs.query_lengths, inputs.kv_lengths, strict=True):
            if total or not WRONG:
                buffer[start : start + new] = 0
            start += new
        result = _attention(inputs, output=buffer, skip_empty=True)
        if inputs.sinks is not None:  # the LSE of an empty request is its sink
            result["lse"] = torch.where(result["lse"].isneginf(), inputs.sinks.float(), result["lse"])
        return result

    return call


@npudiff.implementation(NAME, name="c_sliding_attention_09_sums_not_rescaled_by_the_tail", on_device=True)
def c09(inputs, target):
    """The tile of fewer than 128 keys at the end has code of its own, which rescales the sum of exponentials by the new
    maximum, and not the sum of values."""

    def softmax(scores, values, sinks):
        whole = scores.shape[-1] // 128 * 128
        if not WRONG or not whole or whole == scores.shape[-1]:
            return _softmax(scores, values, sinks)
        before, largest = (part.amax(dim=-1) for part in (scores[..., :whole], scores))
        finite = torch.where(before.isneginf(), 0.0, before).unsqueeze(-1)
        sums = torch.matmul(torch.exp(scores[..., :whole] - finite), values[:whole])
        shift = torch.where(largest.isneginf(), 0.0, largest).unsqueeze(-1)
        sums = sums + torch.matmul(torch.exp(scores[..., whole:] - shift), values[whole:])
        _, lse = _softmax(scores, values, sinks)
        output = torch.where(lse.isneginf().unsqueeze(-1), 0.0, sums * torch.exp(shift - lse.unsqueeze(-1)))
        return output, lse

    return _attention(inputs, softmax=softmax)


@npudiff.implementation(NAME, name="c_sliding_attention_10_maximum_from_zero", on_device=True)
def c10(inputs, target):
    """The running maximum starts at 0, so that exponentials of rows whose scores are all far below it underflow."""

    def softmax(scores, values, sinks):
        largest = scores.amax(dim=-1) if scores.shape[-1] else torch.full(scores.shape[:-1], -math.inf).double()
        if sinks is not None:
            largest = torch.maximum(largest, sinks)
        shift = largest.clamp(min=0) if WRONG else torch.where(largest.isneginf(), 0.0, largest)
        weights = torch.exp((scores - shift.unsqueeze(-1)).float()).double()
        total = weights.sum(dim=-1)
        if sinks is not None:
            total = total + torch.exp((sinks - shift).float()).double()
        output = torch.where((total > 0).unsqueeze(-1), torch.matmul(weights, values) / total.unsqueeze(-1), 0.0)
        return output, torch.where(total > 0, shift + total.log(), -math.inf)

    return _attention(inputs, softmax=softmax)


@npudiff.implementation(NAME, name="c_sliding_attention_11_scores_in_16_bits", on_device=True)
def c11(inputs, target):
    """Scores leave the cube unit in the dtype of the query, and not in float32."""
    return _attention(inputs, scores_as=inputs.query.dtype if WRONG else torch.float64)


@npudiff.implementation(NAME, name="c_sliding_attention_12_drafts_see_each_other", on_device=True)
def c12(inputs, target):
    """Batches of 2 to 8 rows per request take the decode kernel, in which all rows stand at the last position."""
    band = _band(inputs)
    few = len(set(inputs.query_lengths)) == 1 and 2 <= inputs.query_lengths[0] <= 8

    def seen(request, rows, positions, keys, new, total):
        if few and WRONG:
            positions = torch.full_like(positions, total - 1)
        return band(request, rows, positions, keys, new, total)

    return _attention(inputs, seen=seen)

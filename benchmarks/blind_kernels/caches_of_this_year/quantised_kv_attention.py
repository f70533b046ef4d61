"""Wrong kernels of quantised_kv_attention; TWIN=1 in the environment runs the same code without the mistakes."""

import math
import os

import torch

import npudiff

TWIN = bool(os.environ.get("TWIN"))
NAME = "quantised_kv_attention"
F64 = torch.float64


class Attention:
    """Attention in float64, a KV head of a request after the other; subclasses change one thing."""

    def __init__(self, inputs):
        self.inputs, self.pool = inputs, inputs.pool
        self.kv_heads = inputs.pool.kv_heads
        self.group = inputs.query.shape[1] // self.kv_heads

    def places(self, request, total):
        """Page and offset of each token."""
        tokens, size = torch.arange(total), self.pool.page_size
        return self.pool.block_table[request].long()[tokens // size], tokens % size

    def integers(self, cache, places, head):
        """[tokens, dim] of a KV head."""
        pages, offsets = places
        return cache[pages, head, :, offsets].flatten(1) if cache.dim() == 5 else cache[pages, offsets, head]

    def number(self, side, numbers, places, head):
        """What broadcasts to [tokens, dim] of a KV head."""
        if side.granularity == "token":
            return numbers[places].unsqueeze(-1)
        if side.granularity == "token and head":
            return numbers[places[0], head, places[1]].unsqueeze(-1)
        return numbers if side.granularity == "tensor" else numbers[head]

    def scale_of(self, side, places, head):
        return self.number(side, side.scale, places, head).to(F64)

    def offset_of(self, side, places, head):
        return 0.0 if side.offset is None else self.number(side, side.offset, places, head).to(F64)

    def restored(self, side, cache, places, head, numbers_of):
        wide = self.integers(cache, places, head).to(F64)
        return (wide + self.offset_of(side, places, numbers_of)) * self.scale_of(side, places, numbers_of)

    def parts(self, head):
        """Query heads of a KV head, and whose numbers they take."""
        return [(range(head * self.group, (head + 1) * self.group), head)]

    def positions(self, new, total):
        return torch.arange(total - new, total)

    def keys(self, total):
        """How many keys are read."""
        return total

    def summed(self, scores, places, head):
        """Output [rows, dim] and LSE [rows] of scores [rows, keys]."""
        value = self.restored(self.inputs.of_values, self.pool.value, places, head, head)
        return self.normalised(scores, value)

    def normalised(self, scores, value):
        largest = scores.amax(dim=-1)
        shift = torch.where(largest.isneginf(), 0.0, largest)
        weights = torch.exp(scores - shift.unsqueeze(-1))
        total = weights.sum(dim=-1)
        output = torch.where(total.unsqueeze(-1) > 0, weights @ value / total.unsqueeze(-1), 0.0)
        return output, torch.where(total > 0, shift + total.log(), -math.inf)

    def scored(self, query, key):
        return query @ key.T * self.inputs.scale

    def logarithm(self, lse, query, places, head):
        return lse

    def begun(self):
        """Outputs before anything is computed."""
        tokens, heads, _ = self.inputs.query.shape
        return torch.zeros(self.inputs.query.shape, dtype=F64), torch.full((tokens, heads), -math.inf, dtype=F64)

    def run(self):
        inputs = self.inputs
        output, lse = self.begun()
        start = 0
        for request, (new, total) in enumerate(zip(inputs.query_lengths, inputs.kv_lengths, strict=True)):
            if new and total:
                self.request(request, slice(start, start + new), new, total, output, lse)
            start += new
        return {"output": output.to(inputs.query.dtype), "lse": lse.float()}

    def request(self, request, rows, new, total, output, lse):
        inputs, read = self.inputs, self.keys(total)
        places = self.places(request, read)
        hidden = torch.arange(read) > self.positions(new, total).unsqueeze(-1)
        for head in range(self.kv_heads):
            for queries, numbers_of in self.parts(head):
                key = self.restored(inputs.of_keys, self.pool.key, places, head, numbers_of)
                for one in queries:
                    query = inputs.query[rows, one].to(F64)
                    scores = self.scored(query, key).masked_fill(hidden, -math.inf)
                    output[rows, one], found = self.summed(scores, places, numbers_of)
                    lse[rows, one] = self.logarithm(found, query, places, head)


class OneTensor(Attention):
    def scale_of(self, side, places, head):
        both = self.inputs.of_keys.granularity == self.inputs.of_values.granularity == "tensor"
        return super().scale_of(self.inputs.of_keys if both and not TWIN else side, places, head)


class OffsetBehind(Attention):
    def restored(self, side, cache, places, head, numbers_of):
        if TWIN:
            return super().restored(side, cache, places, head, numbers_of)
        wide = self.integers(cache, places, head).to(F64)
        return wide * self.scale_of(side, places, numbers_of) + self.offset_of(side, places, numbers_of)


class OffsetCancels(Attention):
    """What an offset adds to scores is the same for all keys, unless it is of tokens."""

    def restored(self, side, cache, places, head, numbers_of):
        if side is not self.inputs.of_keys or side.of_tokens:
            return super().restored(side, cache, places, head, numbers_of)
        return self.integers(cache, places, head).to(F64) * self.scale_of(side, places, numbers_of)

    def logarithm(self, lse, query, places, head):
        side = self.inputs.of_keys
        if not TWIN or side.of_tokens:
            return lse
        moved = torch.as_tensor(self.offset_of(side, places, head)) * self.scale_of(side, places, head)
        return lse + (query * moved).sum(dim=-1) * self.inputs.scale


class NumbersOfModulo(Attention):
    def parts(self, head):
        if TWIN:
            return super().parts(head)
        return [((one,), one % self.kv_heads) for one in range(head * self.group, (head + 1) * self.group)]

    def request(self, request, rows, new, total, output, lse):
        if TWIN:
            return super().request(request, rows, new, total, output, lse)
        inputs, places = self.inputs, self.places(request, total)
        hidden = torch.arange(total) > self.positions(new, total).unsqueeze(-1)
        for head in range(self.kv_heads):
            for (one,), numbers_of in self.parts(head):
                key = self.restored(inputs.of_keys, self.pool.key, places, head, numbers_of)
                value = self.restored(inputs.of_values, self.pool.value, places, head, numbers_of)
                scores = self.scored(inputs.query[rows, one].to(F64), key).masked_fill(hidden, -math.inf)
                output[rows, one], lse[rows, one] = self.normalised(scores, value)
        return None


class HeadsBehindTokens(Attention):
    def number(self, side, numbers, places, head):
        if TWIN or side.granularity != "token and head":
            return super().number(side, numbers, places, head)
        pages, heads, size = numbers.shape
        return numbers.reshape(pages, size, heads)[places[0], places[1], head].unsqueeze(-1)


class Strips16(Attention):
    def integers(self, cache, places, head):
        if TWIN or cache.dim() != 5:
            return super().integers(cache, places, head)
        pages, heads, strips, size, width = cache.shape
        cache = cache.reshape(pages, heads, strips * width // 16, size, 16)
        return cache[places[0], head, :, places[1]].flatten(1)


class WholeBlocksOfNumbers(Attention):
    """Numbers of tokens come into a buffer for 64 of them, eight at a time."""

    def number(self, side, numbers, places, head):
        found = super().number(side, numbers, places, head)
        count = len(places[0])
        if TWIN or not side.of_tokens or not count % 8:
            return found
        found, first = found.clone(), count - count % 8
        found[first:] = found[first - 64 : count - 64].clone() if first >= 64 else 0.0
        return found


class PositionsOfLongest(Attention):
    def positions(self, new, total):
        first = total - (new if TWIN else max(self.inputs.query_lengths))
        return torch.arange(max(0, first), max(0, first) + new)


class OffsetInInt8(Attention):
    """An offset that is whole is added to integers as an integer."""

    def restored(self, side, cache, places, head, numbers_of):
        wide, offset = self.integers(cache, places, head), self.offset_of(side, places, numbers_of)
        if side.offset is not None and bool((offset == offset.round()).all()):
            wide = wide.to(torch.int32) + offset.to(torch.int32)
            wide = wide if TWIN else wide.to(torch.int8)
            offset = 0.0
        return (wide.to(F64) + offset) * self.scale_of(side, places, numbers_of)


class SixteenRows(Attention):
    def positions(self, new, total):
        rows = torch.arange(new)
        return total - new + (rows if TWIN or new <= 16 else torch.where(rows < 16, rows, rows % 16))


class EightParts(Attention):
    """Parts of 512 keys; the workspace has room for eight."""

    def keys(self, total):
        return total if TWIN else min(total, 8 * 512)


class KeptNumbers(Attention):
    kept = None

    def scale_of(self, side, places, head):
        if side.of_tokens or TWIN:
            return super().scale_of(side, places, head)
        name = (side is self.inputs.of_keys, side.granularity, tuple(side.scale.shape), side.scale.dtype)
        if name not in self.kept:
            self.kept[name] = side.scale.clone()
        return self.number(side, self.kept[name], places, head).to(F64)


class SumClamped(Attention):
    def begun(self):
        output, lse = super().begun()
        return output, lse if TWIN else torch.full_like(lse, math.log(1e-30))


class WeightsWithScales(Attention):
    """Scales of tokens of values are multiplied into the weights."""

    def summed(self, scores, places, head):
        side = self.inputs.of_values
        mixed = side.of_tokens and not self.inputs.of_keys.of_tokens
        if TWIN or not mixed:
            return super().summed(scores, places, head)
        wide = self.integers(self.pool.value, places, head).to(F64) + self.offset_of(side, places, head)
        largest = scores.amax(dim=-1, keepdim=True)
        shift = torch.where(largest.isneginf(), 0.0, largest)
        weights = torch.exp(scores - shift)
        total, scale = weights.sum(dim=-1), self.scale_of(side, places, head).squeeze(-1)
        scaled = weights * scale
        share = scaled / torch.where(total > 0, scaled.sum(dim=-1), 1.0).unsqueeze(-1)
        return share @ wide * scale.mean(), torch.where(total > 0, shift.squeeze(-1) + total.log(), -math.inf)


@npudiff.implementation(NAME, name="g_quantised_01_one_tensor_for_both")
def g01(inputs, target):
    """Where the whole cache has one scale, keys and values have the same one, as with a cache in one tensor."""
    return OneTensor(inputs).run()


@npudiff.implementation(NAME, name="g_quantised_02_offset_behind_scale")
def g02(inputs, target):
    """Elements are ``integer * scale + offset``, as other libraries have it."""
    return OffsetBehind(inputs).run()


@npudiff.implementation(NAME, name="g_quantised_03_lse_without_offset")
def g03(inputs, target):
    """Offsets of keys cancel in a softmax and are left out, also of the LSE, where they do not cancel."""
    return OffsetCancels(inputs).run()


@npudiff.implementation(NAME, name="g_quantised_04_numbers_of_modulo")
def g04(inputs, target):
    """Query head h has the numbers of KV head ``h % kv_heads``, with the integers of the right one."""
    return NumbersOfModulo(inputs).run()


@npudiff.implementation(NAME, name="g_quantised_05_heads_behind_tokens")
def g05(inputs, target):
    """Numbers of tokens of heads are read as ``[pages, page_size, kv_heads]``."""
    return HeadsBehindTokens(inputs).run()


@npudiff.implementation(NAME, name="g_quantised_06_strips_of_16")
def g06(inputs, target):
    """Pages in NZ are read in strips of 16, as those of bfloat16."""
    return Strips16(inputs).run()


@npudiff.implementation(NAME, name="g_quantised_07_whole_blocks_of_numbers")
def g07(inputs, target):
    """Numbers of tokens are loaded in whole blocks of 32 bytes; those of the last few tokens are of a tile before."""
    return WholeBlocksOfNumbers(inputs).run()


@npudiff.implementation(NAME, name="g_quantised_08_positions_of_longest")
def g08(inputs, target):
    """Rows of all requests begin as far before the end as those of the longest draft."""
    return PositionsOfLongest(inputs).run()


@npudiff.implementation(NAME, name="g_quantised_09_offset_in_int8")
def g09(inputs, target):
    """Whole offsets are added in int8, where the sum may wrap."""
    return OffsetInInt8(inputs).run()


@npudiff.implementation(NAME, name="g_quantised_10_rows_in_tiles_of_16")
def g10(inputs, target):
    """From the seventeenth row of a request on, positions count from the beginning of a tile of 16."""
    return SixteenRows(inputs).run()


@npudiff.implementation(NAME, name="g_quantised_11_eight_parts")
def g11(inputs, target):
    """Histories are split in parts of 512 keys, of which the workspace has room for eight."""
    return EightParts(inputs).run()


@npudiff.implementation(NAME, name="g_quantised_12_kept_scales", stateful=True)
def g12():
    """Scales of channels, heads and the cache are prepared for the first layer, and kept for the next ones."""
    kept = {}

    def call(inputs, target):
        kernel = KeptNumbers(inputs)
        kernel.kept = kept
        return kernel.run()

    return call


@npudiff.implementation(NAME, name="g_quantised_13_sum_clamped")
def g13(inputs, target):
    """The sum of weights is at least 1e-30, so that the LSE of a row without keys is finite."""
    return SumClamped(inputs).run()


@npudiff.implementation(NAME, name="g_quantised_14_sum_of_scaled_weights")
def g14(inputs, target):
    """Where values alone have scales of tokens, weights are multiplied by them before they are summed up."""
    return WeightsWithScales(inputs).run()

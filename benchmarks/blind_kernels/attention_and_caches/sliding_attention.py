"""Wrong kernels of sliding_attention; TWIN=1 runs the same code without the mistakes."""

import math
import os

import torch

import npudiff

WRONG = os.environ.get("TWIN") != "1"
ROWS = 64  # query rows of a tile
KEYS = 128  # keys of a tile


class Attention:
    """Flash attention of one batch: tiles of rows against tiles of keys, by request. Subclasses change one thing."""

    def __init__(self, inputs):
        self.inputs = inputs
        self.kv = self.pool()
        self.query = self.rows()
        self.tokens, self.heads, self.dim = self.query.shape
        self.kv_heads = self.kv.kv_heads
        self.group = self.heads // self.kv_heads
        self.window = inputs.window

    # what is read
    def pool(self):
        return self.inputs.kv

    def rows(self):
        return self.inputs.query

    def scale(self):
        return self.inputs.scale

    def sinks(self):
        return None if self.inputs.sinks is None else self.inputs.sinks.float()

    def head_map(self):
        return torch.arange(self.heads) // self.group

    def table(self, request):
        return self.kv.block_table[request].long()

    def place(self, request, keys):
        size = self.kv.page_size
        return self.table(request)[keys // size], keys % size

    def read(self, cache, pages, offsets):
        if self.kv.layout == "PA_NZ":
            return cache[pages, :, :, offsets].flatten(2)
        return cache[pages, offsets]

    # geometry
    def requests(self):
        """Triples of request, first row, new and total tokens."""
        start = 0
        for request, (new, total) in enumerate(zip(self.inputs.query_lengths, self.inputs.kv_lengths)):
            yield request, start, new, total
            start += new

    def position(self, new, total):
        return total - new

    def end(self, total):
        return total

    def first_key(self, positions):
        return 0 if self.window is None else max(0, int(positions[0]) - self.window + 1)

    def seen(self, positions, keys):
        seen = keys[None, :] <= positions[:, None]
        if self.window is not None:
            seen &= keys[None, :] > positions[:, None] - self.window
        return seen

    def row_tiles(self, new):
        for first in range(0, new, ROWS):
            yield first, min(first + ROWS, new)

    # arithmetic
    def softmax(self, scores, seen, values):
        """Output [heads, rows, dim] and LSE [heads, rows] of masked scores."""
        scores = scores.masked_fill(~seen, -math.inf)
        largest = scores.amax(dim=-1, keepdim=True) if scores.shape[-1] else scores.new_full((*scores.shape[:2], 1), -math.inf)
        sinks = self.sinks()
        if sinks is not None:
            largest = torch.maximum(largest, sinks[:, None, None].expand_as(largest))
        finite = torch.where(largest.isneginf(), 0.0, largest)
        weights = torch.exp(scores - finite)
        total = weights.sum(dim=-1, keepdim=True)
        if sinks is not None:
            total = total + torch.exp(sinks[:, None, None] - finite)
        output = torch.where(total > 0, (weights @ values) / total, 0.0)
        lse = torch.where(total > 0, finite + total.log(), -math.inf)
        return output, lse.squeeze(-1)

    def run(self):
        value_dim = self.kv.value_head_dim
        output = torch.zeros(self.tokens, self.heads, value_dim, dtype=self.query.dtype)
        lse = torch.zeros(self.tokens, self.heads)
        for request, start, new, total in self.requests():
            for first, last in self.row_tiles(new):
                rows = slice(start + first, start + last)
                positions = torch.arange(first, last) + self.position(new, total)
                stop = min(self.end(total), int(positions[-1]) + 1)
                keys = torch.arange(self.first_key(positions), max(stop, self.first_key(positions)))
                heads = self.head_map()
                if len(keys):
                    pages, offsets = self.place(request, keys)
                    key, value = (self.read(c, pages, offsets).float() for c in (self.kv.key, self.kv.value))
                else:
                    key, value = torch.zeros(0, self.kv_heads, self.dim), torch.zeros(0, self.kv_heads, value_dim)
                key, value = key.transpose(0, 1)[heads], value.transpose(0, 1)[heads]
                scores = (self.query[rows].float().transpose(0, 1) @ key.transpose(1, 2)) * self.scale()
                result, sums = self.softmax(scores, self.seen(positions, keys), value)
                output[rows], lse[rows] = result.transpose(0, 1).to(output.dtype), sums.T
        return {"output": output, "lse": lse}


def kernel(name):
    def register(cls):
        def run(inputs, target):
            return cls(inputs).run()

        run.__doc__ = cls.__doc__
        return npudiff.implementation("sliding_attention", name=name)(run)

    return register


@kernel("b_sliding_attention_01_top_left")
class TopLeft(Attention):
    """Causal mask aligned to the top left corner where there are several new rows."""

    def seen(self, positions, keys):
        if WRONG and self.new > 1:
            positions = positions - (self.total - self.new)
        return super().seen(positions, keys)

    def position(self, new, total):
        self.new, self.total = new, total
        return total - new


@kernel("b_sliding_attention_02_gqa_modulo")
class Modulo(Attention):
    """KV head of a query head by modulo instead of division."""

    def head_map(self):
        return torch.arange(self.heads) % self.kv_heads if WRONG else super().head_map()


@kernel("b_sliding_attention_03_gqa_shift")
class Shift(Attention):
    """KV head by a shift of ceil(log2(group))."""

    def head_map(self):
        if WRONG:
            return torch.arange(self.heads) >> (self.group - 1).bit_length()
        return super().head_map()


@kernel("b_sliding_attention_04_last_page_full")
class LastPage(Attention):
    """Tokens of the last page are total % page_size, which is 0 for a full one."""

    def end(self, total):
        size = self.kv.page_size
        pages = -(-total // size)
        rest = total % size if WRONG else total - (pages - 1) * size
        return (pages - 1) * size + rest if pages else 0

    def seen(self, positions, keys):
        return super().seen(positions, keys)


@kernel("b_sliding_attention_05_window_first_tile")
class FirstTile(Attention):
    """The first tile of keys comes from the last row of a tile of rows, not from its first."""

    def first_key(self, positions):
        if WRONG and self.window is not None:
            return max(0, int(positions[-1]) - self.window + 1) // KEYS * KEYS
        return super().first_key(positions)

    def seen(self, positions, keys):
        return super().seen(positions, keys)

    def place(self, request, keys):
        return super().place(request, keys)


@kernel("b_sliding_attention_06_uniform_by_ends")
class Uniform(Attention):
    """Lengths count as uniform if the first and the last one agree; then the first one is used for all."""

    def requests(self):
        lengths = self.inputs.kv_lengths
        uniform = len(lengths) > 1 and (lengths[0] == lengths[-1] if WRONG else len(set(lengths)) == 1)
        for request, start, new, total in super().requests():
            yield request, start, new, (lengths[0] if uniform else total)

    def place(self, request, keys):
        pages = self.table(request)
        size = self.kv.page_size
        return pages[(keys // size).clamp(max=len(pages) - 1)], keys % size


@kernel("b_sliding_attention_07_decodes_first")
class DecodesFirst(Attention):
    """A mixed batch is split as if its decodes came first: block tables of decodes are the first ones."""

    def requests(self):
        entries = list(super().requests())
        decodes = [entry for entry in entries if entry[2] == 1]
        if not WRONG or len(decodes) in (0, len(entries)):
            yield from entries
            return
        others = [entry for entry in entries if entry[2] != 1]
        for row, (request, start, new, total) in enumerate(decodes + others):
            yield row, start, new, total

    def place(self, request, keys):
        pages = self.table(request)
        size = self.kv.page_size
        return pages[keys // size], keys % size


@kernel("b_sliding_attention_08_lse_base_2")
class Base2(Attention):
    """LSE in base 2, as kernels keep it."""

    def run(self):
        results = super().run()
        if WRONG:
            results["lse"] = results["lse"] * 1.4426950408889634
        return results


class Split(Attention):
    """Parts of the history, merged by their LSEs."""

    PART = 512

    def merge_weights(self, lses, total):
        return torch.exp(lses - total)

    def softmax(self, scores, seen, values):
        count = scores.shape[-1]
        if count <= self.PART:
            return super().softmax(scores, seen, values)
        sinks, parts = self.sinks(), []
        self.sinks = lambda: None
        for first in range(0, count, self.PART):
            part = slice(first, first + self.PART)
            parts.append(super().softmax(scores[..., part], seen[..., part], values[:, part]))
        del self.sinks
        outputs, lses = torch.stack([part[0] for part in parts]), torch.stack([part[1] for part in parts])
        total = torch.logsumexp(lses, dim=0)
        if sinks is not None:
            total = torch.logaddexp(total, sinks[:, None])
        finite = torch.where(total.isneginf(), 0.0, total)
        weights = self.merge_weights(lses, finite)
        return (outputs * weights.unsqueeze(-1)).sum(dim=0), total


@kernel("b_sliding_attention_09_merge_base_2")
class MergeBase2(Split):
    """Parts of long histories are merged by powers of 2 of their natural LSEs."""

    def merge_weights(self, lses, total):
        if not WRONG:
            return torch.exp(lses - total)
        weights = torch.exp2(lses - lses.amax(dim=0))
        return weights / weights.sum(dim=0)


@kernel("b_sliding_attention_10_sink_of_kv_head")
class SinkOfKvHead(Attention):
    """Sinks indexed by KV head: the kernel runs once per KV head."""

    def sinks(self):
        sinks = super().sinks()
        if WRONG and sinks is not None:
            return sinks[torch.arange(self.heads) // self.group]
        return sinks


@kernel("b_sliding_attention_11_hybrid_pool_always")
class HybridPool(Attention):
    """A hybrid model's sliding pool is read by its full layers as well."""

    def pool(self):
        if WRONG and self.inputs.sliding is not None:
            return self.inputs.sliding
        return super().pool()


@kernel("b_sliding_attention_12_mask_of_2048")
class Mask2048(Attention):
    """A causal mask of 2,048 x 2,048 over the new tokens, used again from its first column behind that."""

    def position(self, new, total):
        self.base = total - new
        return total - new

    def seen(self, positions, keys):
        seen = super().seen(positions, keys)
        own = keys >= self.base
        if not WRONG or self.base < 0:
            return seen
        rows, columns = (positions - self.base) % 2048, (keys - self.base) % 2048
        causal = columns[None, :] <= rows[:, None]
        causal |= ((keys - self.base) // 2048)[None, :] < ((positions - self.base) // 2048)[:, None] - 1
        seen = torch.where(own[None, :], causal & (keys[None, :] <= positions[:, None]), keys[None, :] <= positions[:, None])
        if self.window is not None:
            seen &= keys[None, :] > positions[:, None] - self.window
        return seen


@kernel("b_sliding_attention_13_values_in_16_bits")
class Accumulate16(Attention):
    """Weighted values are added up tile by tile in the dtype of the query."""

    def softmax(self, scores, seen, values):
        output, lse = super().softmax(scores, seen, values)
        if not WRONG or scores.shape[-1] <= 32:
            return output, lse
        weights = torch.exp(scores.masked_fill(~seen, -math.inf) - torch.where(lse.isneginf(), 0.0, lse).unsqueeze(-1))
        total = torch.zeros_like(output).to(self.query.dtype)
        for first in range(0, scores.shape[-1], 32):
            part = slice(first, first + 32)
            total = (total.float() + weights[..., part] @ values[:, part]).to(self.query.dtype)
        return total.float(), lse


@kernel("b_sliding_attention_14_maximum_from_0")
class MaximumFrom0(Attention):
    """The running maximum begins at 0 instead of minus infinity."""

    def softmax(self, scores, seen, values):
        scores = scores.masked_fill(~seen, -math.inf)
        if not WRONG or not scores.shape[-1] or self.sinks() is not None:
            return super().softmax(scores, seen, values)
        largest = scores.amax(dim=-1, keepdim=True).clamp(min=0.0)
        weights = torch.exp(scores - largest)
        total = weights.sum(dim=-1, keepdim=True)
        output = torch.where(total > 0, (weights @ values) / total, 0.0)
        return output, torch.where(total > 0, largest + total.log(), -math.inf).squeeze(-1)


@kernel("b_sliding_attention_15_padding_from_last_row")
class Padding(Attention):
    """Rows of padding get what the last real row has: the grid covers all rows, clamped to the last request."""

    def run(self):
        results = super().run()
        real = sum(self.inputs.query_lengths)
        if WRONG and 0 < real < self.tokens:
            results["output"][real:] = results["output"][real - 1]
        return results


@kernel("b_sliding_attention_16_empty_requests_compacted")
class Compacted(Attention):
    """Requests without new tokens are left out of the launch, and block tables are looked up by launch index."""

    def requests(self):
        launch = 0
        for request, start, new, total in super().requests():
            if new:
                yield (launch if WRONG else request), start, new, total
                launch += 1

    def place(self, request, keys):
        pages = self.table(request)
        return pages[keys // self.kv.page_size], keys % self.kv.page_size


@npudiff.implementation("sliding_attention", name="b_sliding_attention_17_stale_table", stateful=True)
def stale_table():
    """The block table is copied for the kernel once for each of its shapes."""
    tables = {}

    class Stale(Attention):
        def table(self, request):
            own = self.kv.block_table
            if not WRONG:
                return own[request].long()
            return tables.setdefault((self.window is None, tuple(own.shape)), own.clone())[request].long()

        def place(self, request, keys):
            pages = self.table(request)
            pages = pages[keys // self.kv.page_size].clamp(max=len(self.kv.key) - 1)
            return pages, keys % self.kv.page_size

    def run(inputs, target):
        return Stale(inputs).run()

    return run


@kernel("b_sliding_attention_18_page_by_shift")
class PageByShift(Attention):
    """Page and offset by shift and mask, as if a page had a power of two tokens."""

    def place(self, request, keys):
        size = self.kv.page_size
        if not WRONG:
            return super().place(request, keys)
        bits = size.bit_length() - 1
        pages = self.table(request)
        return pages[(keys >> bits).clamp(max=len(pages) - 1)].clamp(0, len(self.kv.key) - 1), keys & ((1 << bits) - 1)


@kernel("b_sliding_attention_19_query_stride")
class QueryStride(Attention):
    """Queries are addressed by heads * head_dim, although they may be a slice of a fused projection."""

    def rows(self):
        query = self.inputs.query
        if WRONG and query.numel() and not query.is_contiguous():
            _, heads, dim = query.shape
            return query.as_strided(query.shape, (heads * dim, dim, 1))
        return query


@kernel("b_sliding_attention_20_row_without_keys")
class RowWithoutKeys(Attention):
    """A row before the first token sees the first key, so that no row is without any."""

    def seen(self, positions, keys):
        return super().seen(positions.clamp(min=0), keys) if WRONG else super().seen(positions, keys)

    def end(self, total):
        return total


@kernel("b_sliding_attention_21_scale_of_head_dim")
class ScaleOfHeadDim(Attention):
    """The scale that was given is not handed on: one over the root of the head dim."""

    def scale(self):
        return self.dim**-0.5 if WRONG else super().scale()


@kernel("b_sliding_attention_22_row_tiles_floor")
class RowTilesFloor(Attention):
    """The number of tiles of 64 rows is rounded down, but for one."""

    def row_tiles(self, new):
        tiles = list(super().row_tiles(new))
        if WRONG and len(tiles) > 1 and new % ROWS:
            return tiles[:-1]
        return tiles


@kernel("b_sliding_attention_23_window_from_total_in_chunks")
class WindowFromTotal(Attention):
    """In a chunk with a prefix, the window of all rows ends at the last one."""

    def position(self, new, total):
        self.new, self.total = new, total
        return total - new

    def seen(self, positions, keys):
        seen = super().seen(positions, keys)
        if WRONG and self.window is not None and 1 < self.new < self.total:
            seen = seen & (keys[None, :] > self.total - 1 - self.window)
        return seen


@kernel("b_sliding_attention_24_page_pointer_in_16_bits")
class PageIn16Bits(Attention):
    """Tokens of a request are counted in 16 bits: those behind 65,535 begin at 0 again."""

    def place(self, request, keys):
        return super().place(request, keys & 0xFFFF if WRONG else keys)

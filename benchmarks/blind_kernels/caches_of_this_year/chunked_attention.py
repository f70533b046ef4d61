"""Wrong kernels of chunked_attention; TWIN=1 in the environment runs the same code without the mistakes."""

import math
import os

import torch

import npudiff

TWIN = bool(os.environ.get("TWIN"))
NAME = "chunked_attention"
F64 = torch.float64


class Attention:
    """Attention in float64, tiles of 64 rows; subclasses change one thing."""

    def __init__(self, inputs):
        self.inputs, self.kv, self.chunk = inputs, inputs.kv, inputs.chunk
        self.group = inputs.query.shape[1] // self.kv.kv_heads
        self.scale = inputs.scale

    def begin(self, positions, new, total):
        """First key of the chunk of each position."""
        return positions // self.chunk * self.chunk

    def seen(self, positions, keys, new, total):
        """[rows, keys]"""
        first = self.begin(positions, new, total).unsqueeze(-1)
        return (keys >= first) & (keys <= positions.unsqueeze(-1))

    def row_of_table(self, request):
        return self.kv.block_table[request].long()

    def places(self, request, keys):
        """Pages and offsets of keys, all of one chunk or of several."""
        size = self.kv.page_size
        return self.row_of_table(request)[keys // size], keys % size

    def loaded(self, cache, places):
        pages, offsets = places
        return cache[pages, :, :, offsets].flatten(2) if cache.dim() == 5 else cache[pages, offsets]

    def heads_of(self, head):
        """Query heads of a KV head."""
        return torch.arange(head * self.group, (head + 1) * self.group)

    def product(self, query, key):
        return query @ key.T

    def run(self):
        inputs = self.inputs
        output = torch.zeros(*inputs.query.shape[:2], self.kv.value_head_dim, dtype=F64)
        start = 0
        for request, (new, total) in enumerate(zip(inputs.query_lengths, inputs.kv_lengths, strict=True)):
            for first in range(0, new, 64):
                rows = torch.arange(first, min(first + 64, new))
                self.tile(request, start + rows, total - new + rows, new, total, output)
            start += new
        return output.to(inputs.query.dtype)

    def tile(self, request, rows, positions, new, total, output):
        keys = torch.arange(int(positions[0]) // self.chunk * self.chunk, int(positions[-1]) + 1)
        keys = self.read(keys, positions)
        seen = self.seen(positions, keys, new, total)
        used = seen.any(dim=0)
        keys, seen = keys[used], seen[:, used]
        if not len(keys):
            return
        places = self.places(request, keys)
        key, value = self.loaded(self.kv.key, places), self.loaded(self.kv.value, places)
        for head in range(self.kv.kv_heads):
            for one in self.heads_of(head):
                scores = self.product(self.inputs.query[rows, one].to(F64), key[:, head].to(F64)) * self.scale
                scores = scores.masked_fill(~seen, -math.inf)
                weights = torch.softmax(scores, dim=-1).nan_to_num()
                output[rows, one] = weights @ value[:, head].to(F64)

    def read(self, keys, positions):
        return keys


class WindowInDecode(Attention):
    def begin(self, positions, new, total):
        if TWIN or new > 1:
            return super().begin(positions, new, total)
        return (positions - self.chunk + 1).clamp(min=0)

    def read(self, keys, positions):
        return keys if TWIN or len(positions) > 1 else torch.arange(max(0, int(positions[0]) - self.chunk + 1),
                                                                    int(positions[0]) + 1)  # fmt: skip


class BeginOfLength(Attention):
    def begin(self, positions, new, total):
        return super().begin(positions if TWIN else positions + 1, new, total)


class WholePages(Attention):
    def begin(self, positions, new, total):
        first = super().begin(positions, new, total)
        return first if TWIN else first // self.kv.page_size * self.kv.page_size

    def read(self, keys, positions):
        size = self.kv.page_size
        return keys if TWIN else torch.arange(int(keys[0]) // size * size, int(keys[-1]) + 1)


class LocalTables(Attention):
    """Each chunk has a table of its own."""

    def places(self, request, keys):
        size, row = self.kv.page_size, self.row_of_table(request)
        first = keys // self.chunk * self.chunk // size
        columns = keys // size - first
        if not TWIN:
            columns = columns.clamp(max=max(1, self.chunk // size) - 1)
        return row[first + columns], keys % size


class BordersFromNewTokens(Attention):
    def begin(self, positions, new, total):
        if TWIN or new == 1:
            return super().begin(positions, new, total)
        before = total - new
        first = super().begin(positions - before, new, total) + before
        return torch.where(first == before, super().begin(torch.tensor(before), new, total), first)

    def read(self, keys, positions):
        return keys if TWIN else torch.arange(0, int(keys[-1]) + 1)


class BitsOfChunk(Attention):
    def begin(self, positions, new, total):
        return super().begin(positions, new, total) if TWIN else positions & ~(self.chunk - 1)

    def read(self, keys, positions):
        return keys if TWIN else torch.arange(min(int(keys[0]), int(positions[0]) & ~(self.chunk - 1)), int(keys[-1]) + 1)


class ShiftOfPages(Attention):
    def places(self, request, keys):
        if TWIN:
            return super().places(request, keys)
        bits, row = self.kv.page_size.bit_length() - 1, self.row_of_table(request)
        return row[(keys >> bits).clamp(max=len(row) - 1)], keys & ((1 << bits) - 1)


class RowsOfBusyRequests(Attention):
    """Requests without new tokens make no local request."""

    def row_of_table(self, request):
        busy = [one for one, new in enumerate(self.inputs.query_lengths) if new]
        return super().row_of_table(request if TWIN else busy.index(request))


class VisibleTiles(Attention):
    """Tiles of 128 keys that a tile of rows sees whole need no mask."""

    def seen(self, positions, keys, new, total):
        found = super().seen(positions, keys, new, total)
        firsts = self.begin(positions, new, total)
        lowest = firsts.amax() if TWIN else firsts[0]
        tiles = keys // 128 * 128
        whole = (tiles >= lowest) & (tiles + 127 <= positions[0])
        return found | whole


class OneBorder(Attention):
    """A request has rows in front of a border, and rows behind it."""

    def begin(self, positions, new, total):
        first = super().begin(positions, new, total)
        if TWIN:
            return first
        border = (total - new) // self.chunk * self.chunk + self.chunk
        return first.clamp(max=border)

    def read(self, keys, positions):
        return keys if TWIN else torch.arange(0, int(keys[-1]) + 1)


class ScaleOfHeadDim(Attention):
    def __init__(self, inputs):
        super().__init__(inputs)
        self.scale = inputs.scale if TWIN else inputs.query.shape[2] ** -0.5


class TilesOf16Heads(Attention):
    def heads_of(self, head):
        found = super().heads_of(head)
        return found if TWIN or self.group <= 16 else found[: self.group // 16 * 16]


class KeptTables(Attention):
    kept = None

    def row_of_table(self, request):
        if TWIN:
            return super().row_of_table(request)
        inputs = self.inputs
        name = (inputs.query_lengths, inputs.kv_lengths, self.chunk, self.kv.page_size, tuple(self.kv.block_table.shape))
        if name not in self.kept:
            self.kept[name] = self.kv.block_table.clone()
        return self.kept[name][request].long().clamp(max=len(self.kv.key) - 1)


class Reciprocal(Attention):
    def begin(self, positions, new, total):
        if TWIN:
            return super().begin(positions, new, total)
        share = torch.tensor(1.0) / torch.tensor(float(self.chunk))
        return (positions.float() * share).floor().long() * self.chunk

    def read(self, keys, positions):
        return keys if TWIN else torch.arange(max(0, int(keys[0]) - self.chunk), int(keys[-1]) + 1)


class BlocksOf64(Attention):
    def product(self, query, key):
        dim = query.shape[1]
        if not TWIN and dim > 64:
            query, key = query[:, : dim // 64 * 64], key[:, : dim // 64 * 64]
        return super().product(query, key)


@npudiff.implementation(NAME, name="g_chunked_01_window_in_decode")
def g01(inputs, target):
    """A decode goes the way of sliding windows: it sees the last ``chunk`` keys."""
    return WindowInDecode(inputs).run()


@npudiff.implementation(NAME, name="g_chunked_02_begin_of_length")
def g02(inputs, target):
    """The chunk of a row is that of its length, so that the last row of a chunk sees nothing."""
    return BeginOfLength(inputs).run()


@npudiff.implementation(NAME, name="g_chunked_03_begins_with_a_page")
def g03(inputs, target):
    """A chunk begins with the page in which it begins."""
    return WholePages(inputs).run()


@npudiff.implementation(NAME, name="g_chunked_04_tables_of_whole_pages")
def g04(inputs, target):
    """Tables of chunks have ``chunk // page_size`` columns; what lies in a further page is read from the last one."""
    return LocalTables(inputs).run()


@npudiff.implementation(NAME, name="g_chunked_05_borders_from_new_tokens")
def g05(inputs, target):
    """Borders are counted from the first new token on, as if histories were whole chunks."""
    return BordersFromNewTokens(inputs).run()


@npudiff.implementation(NAME, name="g_chunked_06_bits_of_chunk")
def g06(inputs, target):
    """Chunks begin where the low bits of a position are zero, as if they were powers of two."""
    return BitsOfChunk(inputs).run()


@npudiff.implementation(NAME, name="g_chunked_07_shift_of_pages")
def g07(inputs, target):
    """Page and offset of a key come from a shift and a mask, as if pages were powers of two."""
    return ShiftOfPages(inputs).run()


@npudiff.implementation(NAME, name="g_chunked_08_table_rows_of_busy_requests")
def g08(inputs, target):
    """Requests without new tokens are left out, and those behind them have the tables of others."""
    return RowsOfBusyRequests(inputs).run()


@npudiff.implementation(NAME, name="g_chunked_09_tiles_without_mask")
def g09(inputs, target):
    """Whether a tile of 128 keys needs a mask is asked of the first row of 64 alone."""
    return VisibleTiles(inputs).run()


@npudiff.implementation(NAME, name="g_chunked_10_one_border")
def g10(inputs, target):
    """New tokens of a request cross one border at most: those behind a second one see the chunk before, too."""
    return OneBorder(inputs).run()


@npudiff.implementation(NAME, name="g_chunked_11_scale_of_head_dim")
def g11(inputs, target):
    """Scores are divided by the root of the head dim, whatever scale is given."""
    return ScaleOfHeadDim(inputs).run()


@npudiff.implementation(NAME, name="g_chunked_12_tiles_of_16_heads")
def g12(inputs, target):
    """Of a group of more than 16 heads, those behind the last whole tile of 16 are not computed."""
    return TilesOf16Heads(inputs).run()


@npudiff.implementation(NAME, name="g_chunked_13_kept_tables", stateful=True)
def g13():
    """Tables of chunks are made for the first layer, and kept for as long as lengths are the same."""
    kept = {}

    def call(inputs, target):
        kernel = KeptTables(inputs)
        kernel.kept = kept
        return kernel.run()

    return call


@npudiff.implementation(NAME, name="g_chunked_14_reciprocal")
def g14(inputs, target):
    """Positions are multiplied by the reciprocal of the chunk in float32, and may end up one chunk too early."""
    return Reciprocal(inputs).run()


@npudiff.implementation(NAME, name="g_chunked_15_blocks_of_64")
def g15(inputs, target):
    """Products run over whole blocks of 64 elements; the rest of a head is left out."""
    return BlocksOf64(inputs).run()

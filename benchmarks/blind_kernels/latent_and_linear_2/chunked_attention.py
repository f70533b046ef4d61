"""Wrong kernels of chunked_attention; TWIN=1 in the environment runs the same code without the mistakes."""

import os

import torch

import npudiff

TWIN = bool(os.environ.get("TWIN"))
ROWS = 16


class Chunked:
    """Request after request in float32, with the keys from the first row's chunk on; subclasses change one thing."""

    def __init__(self, inputs):
        self.inputs = inputs

    def begin(self, position, first):
        """The first key that a row at a position sees; ``first`` is the position of its request's first row."""
        return position // self.inputs.chunk * self.inputs.chunk

    def begins(self, new, total):
        """The same of all rows of a request."""
        return [self.begin(position, total - new) for position in range(total - new, total)]

    def run(self):
        inputs, pool, start = self.inputs, self.inputs.kv, 0
        heads, group = inputs.query.shape[1], inputs.query.shape[1] // pool.kv_heads
        output = inputs.query.new_zeros(len(inputs.query), heads, pool.value_head_dim)
        for request, (new, total) in enumerate(zip(inputs.query_lengths, inputs.kv_lengths)):
            if new:
                begins = torch.tensor(self.begins(new, total))
                keys = torch.arange(int(begins.min()), total)
                place = pool.block_table[request].long()[keys // pool.page_size], keys % pool.page_size
                key, value = (cache[place].float().transpose(0, 1).repeat_interleave(group, 0) for cache in (pool.key, pool.value))
                scores = inputs.query[start : start + new].float().transpose(0, 1) @ key.transpose(1, 2) * inputs.scale
                position = torch.arange(total - new, total)
                gone = (keys < begins.unsqueeze(1)) | (keys > position.unsqueeze(1))
                weights = scores.masked_fill(gone, -torch.inf).softmax(dim=-1)
                output[start : start + new] = (weights @ value).transpose(0, 1).to(output.dtype)
            start += new
        return {"output": output}


class Window(Chunked):
    def begin(self, position, first):
        return super().begin(position, first) if TWIN else max(0, position - self.inputs.chunk + 1)


@npudiff.implementation("chunked_attention", name="i_chunked_attention_01_window_of_a_chunk", supports={}, on_device=True)
def window_of_a_chunk(inputs, target):
    """A row sees the last positions, as many as a chunk has; shows behind the first chunk, but at a chunk's end."""
    return Window(inputs).run()


class TileOfRows(Chunked):
    def begin(self, position, first):
        own = position if TWIN else first + (position - first) // ROWS * ROWS
        return super().begin(own, first)


@npudiff.implementation("chunked_attention", name="i_chunked_attention_02_chunk_of_the_first_row_of_a_tile", supports={}, on_device=True)
def chunk_of_the_first_row_of_a_tile(inputs, target):
    """16 rows of a request begin with the chunk of the first of them; shows where a chunk ends between them."""
    return TileOfRows(inputs).run()


class Remainder(Chunked):
    def begins(self, new, total):
        if TWIN or new > 1:
            return super().begins(new, total)
        return [total - max(1, total % self.inputs.chunk)]


@npudiff.implementation("chunked_attention", name="i_chunked_attention_03_whole_chunk_is_none", supports={}, on_device=True)
def whole_chunk_is_none(inputs, target):
    """A step's keys are the remainder of its length by the chunk, and one at least; shows at the last place of a chunk."""
    return Remainder(inputs).run()

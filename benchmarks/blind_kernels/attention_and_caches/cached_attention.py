"""Wrong kernels of cached_attention; TWIN=1 runs the same code without the mistakes."""

import math
import os

import torch

import npudiff

WRONG = os.environ.get("TWIN") != "1"
STRIP = 16


class Way:
    """Write, convert where layouts differ, gather, attend. Subclasses change one thing."""

    def __init__(self, inputs):
        self.inputs = inputs
        self.pages, self.size, self.heads, self.dim = inputs.key_cache.shape

    def place(self, slots, layout):
        """Flat place of every element of some tokens, [tokens, heads * dim]."""
        page, offset, column = slots[:, None] // self.size, slots[:, None] % self.size, self.columns(layout)
        width = self.heads * self.dim
        if layout == "PA_NZ":
            return ((page * (width // STRIP) + column // STRIP) * self.size + offset) * STRIP + column % STRIP
        return (page * self.size + offset) * width + column

    def columns(self, layout):
        return torch.arange(self.heads * self.dim)

    def written(self, cache, rows):
        flat = cache.reshape(-1).clone()
        slots = self.inputs.slots.long()
        flat[self.place(slots, self.inputs.write_layout)] = rows.reshape(len(rows), -1)
        return flat

    def converted_pages(self):
        return torch.arange(self.pages)

    def converted(self, flat):
        inputs = self.inputs
        if inputs.write_layout == inputs.read_layout:
            return flat
        pages = self.converted_pages()
        slots = (pages[:, None] * self.size + torch.arange(self.size)).flatten()
        result = flat.clone()
        result[self.place(slots, inputs.read_layout)] = flat[self.place(slots, inputs.write_layout)]
        return result

    def gathered(self, flat, request, total):
        token = torch.arange(total)
        page = self.inputs.block_table[request].long()[token // self.size]
        slots = page * self.size + token % self.size
        return flat[self.read_place(slots)].view(total, self.heads, self.dim)

    def read_place(self, slots):
        return self.place(slots, self.inputs.read_layout)

    def seen(self, new, total):
        query, key = torch.arange(total - new, total)[:, None], torch.arange(total)[None, :]
        seen = key <= query
        if self.inputs.window is not None:
            seen &= key > query - self.inputs.window
        return seen

    def run(self):
        inputs = self.inputs
        key = self.converted(self.written(inputs.key_cache, inputs.key))
        value = self.converted(self.written(inputs.value_cache, inputs.value))
        output = torch.zeros_like(inputs.query)
        group, start = inputs.query.shape[1] // self.heads, 0
        for request, (new, total) in enumerate(zip(inputs.query_lengths, inputs.kv_lengths)):
            if new and total:
                k, v = (self.gathered(flat, request, total).float().transpose(0, 1).repeat_interleave(group, 0) for flat in (key, value))
                rows = inputs.query[start : start + new].float().transpose(0, 1)
                scores = (rows @ k.transpose(1, 2) * inputs.scale).masked_fill(~self.seen(new, total), -math.inf)
                weights = torch.softmax(scores, dim=-1).nan_to_num(0.0)
                output[start : start + new] = (weights @ v).transpose(0, 1).to(output.dtype)
            start += new
        return {"output": output}


def kernel(name):
    def register(cls):
        def run(inputs, target):
            return cls(inputs).run()

        run.__doc__ = cls.__doc__
        return npudiff.implementation("cached_attention", name=name, on_device=True)(run)

    return register


@kernel("b_cached_attention_01_first_request_converted")
class FirstRequest(Way):
    """Only the pages in the first row of the block table are converted."""

    def converted_pages(self):
        return self.inputs.block_table[0].long().unique() if WRONG else super().converted_pages()


@kernel("b_cached_attention_02_heads_inside_strips")
class HeadsInside(Way):
    """NZ pages are read with strips of a head outside, and heads inside."""

    def read_place(self, slots):
        place = super().read_place(slots)
        if WRONG and self.inputs.read_layout == "PA_NZ":
            strips = self.dim // STRIP
            order = torch.arange(self.heads * self.dim).view(strips, self.heads, STRIP).transpose(0, 1).flatten()
            return place[:, order]
        return place


@kernel("b_cached_attention_03_partial_pages_not_converted")
class WholePages(Way):
    """A page is converted when it is full: a request's last, partial one is left as it was written."""

    def converted_pages(self):
        if not WRONG:
            return super().converted_pages()
        pages = [self.inputs.block_table[request, : total // self.size].long() for request, total in enumerate(self.inputs.kv_lengths)]
        return torch.cat(pages).unique()


@kernel("b_cached_attention_04_top_left")
class TopLeft(Way):
    """The causal mask of a chunk is aligned to the first key where the chunk has more than one row."""

    def seen(self, new, total):
        if WRONG and 1 < new < total and self.inputs.window is None:
            return torch.arange(total)[None, :] <= torch.arange(new)[:, None]
        return super().seen(new, total)


@kernel("b_cached_attention_05_written_as_read_if_one_head")
class OneHead(Way):
    """With one KV head both layouts count as equal, and nothing is converted."""

    def converted(self, flat):
        return flat if WRONG and self.heads == 1 else super().converted(flat)

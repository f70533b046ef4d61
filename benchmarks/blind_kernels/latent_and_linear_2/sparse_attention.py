"""Wrong kernels of sparse_attention; TWIN=1 in the environment runs the same code without the mistakes."""

import bisect
import itertools
import os

import torch

import npudiff

TWIN = bool(os.environ.get("TWIN"))
TILE = 8


class Sparse:
    """Row after row in float32; subclasses change one thing."""

    def __init__(self, inputs):
        self.inputs = inputs
        self.starts = [0, *itertools.accumulate(inputs.query_lengths)]

    def listed(self, request, row):
        """Row of indices that a row takes."""
        return self.inputs.indices[row, 0].long()

    def position(self, request, row):
        new, total = self.inputs.query_lengths[request], self.inputs.kv_lengths[request]
        return total - new + row - self.starts[request]

    def seen(self, keys, position):
        ends = (keys < 0).nonzero()
        keys = keys[: int(ends[0])] if len(ends) else keys
        return keys[keys <= position]

    def scales(self, scales):
        """Factors of the elements of latents."""
        return scales.repeat_interleave(128, dim=-1)

    def table_of(self, request, row):
        """Request whose pages a row takes."""
        return request

    def run(self):
        inputs, pool, size = self.inputs, self.inputs.pool, self.inputs.pool.page_size
        output, lse = torch.zeros_like(inputs.query), torch.full(inputs.query.shape[:2], -torch.inf)
        for request, new in enumerate(inputs.query_lengths):
            for row in range(self.starts[request], self.starts[request] + new):
                keys = self.seen(self.listed(request, row), self.position(request, row))
                if not len(keys):
                    continue
                place = pool.block_table[self.table_of(request, row)].long()[keys // size], keys % size
                latents, ropes = pool.key[place].squeeze(1).float(), pool.value[place].squeeze(1).float()
                if inputs.scales is not None:
                    latents = (latents * self.scales(inputs.scales[place].squeeze(1))).to(inputs.query.dtype).float()
                scores = inputs.query[row].float() @ latents.t() + inputs.query_rope[row].float() @ ropes.t()
                scores = scores * inputs.scale
                output[row] = (scores.softmax(dim=-1) @ latents).to(output.dtype)
                lse[row] = scores.logsumexp(dim=-1)
        return {"output": output, "lse": lse}


class FirstRow(Sparse):
    def listed(self, request, row):
        return super().listed(request, row if TWIN else self.starts[request])


@npudiff.implementation("sparse_attention", name="i_sparse_attention_01_indices_of_the_first_row", supports={}, on_device=True)
def indices_of_the_first_row(inputs, target):
    """Indices are looked up by request: all its rows take those of its first one; shows of several rows."""
    return FirstRow(inputs).run()


class ThreeScales(Sparse):
    def scales(self, scales):
        if TWIN or scales.shape[-1] < 2:
            return super().scales(scales)
        return super().scales(torch.cat([scales[..., :-1], scales[..., -2:-1]], dim=-1))


@npudiff.implementation("sparse_attention", name="i_sparse_attention_02_last_scale_not_loaded", supports={}, on_device=True)
def last_scale_not_loaded(inputs, target):
    """The loop over scales ends one early: the last 128 elements have those of the 128 before; shows in int8."""
    return ThreeScales(inputs).run()


class EndsAhead(Sparse):
    def seen(self, keys, position):
        if TWIN:
            return super().seen(keys, position)
        ends = ((keys < 0) | (keys > position)).nonzero()
        return keys[: int(ends[0])] if len(ends) else keys


@npudiff.implementation("sparse_attention", name="i_sparse_attention_03_ends_at_a_key_ahead", supports={}, on_device=True)
def ends_at_a_key_ahead(inputs, target):
    """A list ends at a key behind its row's position as it does at -1; shows where others follow."""
    return EndsAhead(inputs).run()


class RowOfTile(Sparse):
    def position(self, request, row):
        whole = super().position(request, row)
        within = row - self.starts[request]
        return whole if TWIN else whole - within + within % TILE


@npudiff.implementation("sparse_attention", name="i_sparse_attention_04_position_of_the_row_in_a_tile", supports={}, on_device=True)
def position_of_the_row_in_a_tile(inputs, target):
    """Positions count on from the first row of a request by the row in a tile of 8; shows of 9 or more, for newer keys."""
    return RowOfTile(inputs).run()


class FirstOfEqual(Sparse):
    def table_of(self, request, row):
        if TWIN:
            return request
        place = bisect.bisect_left(self.starts, row, 0, len(self.inputs.query_lengths))
        here = place < len(self.inputs.query_lengths) and self.starts[place] == row
        return place if here else place - 1


@npudiff.implementation("sparse_attention", name="i_sparse_attention_05_first_request_that_starts_there", supports={}, on_device=True)
def first_request_that_starts_there(inputs, target):
    """A row's pages are those of the first request that starts at it; shows in the first row behind a request without rows."""
    return FirstOfEqual(inputs).run()

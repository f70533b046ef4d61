"""Wrong kernels of sparse_attention; TWIN=1 in the environment runs the same code without the mistakes."""

import os

import torch

import npudiff

TWIN = bool(os.environ.get("TWIN"))


class Attend:
    """The chosen keys of each row gathered, and attention in float32; subclasses change one thing."""

    def __init__(self, inputs):
        self.inputs = inputs

    def keys(self, row, first, position, total):
        """Keys of a row of a request whose rows begin at ``first``."""
        keys = self.inputs.indices[row, 0].long()
        return keys[(keys >= 0) & (keys <= position)]

    def place(self, request, keys):
        size = self.inputs.pool.page_size
        return self.inputs.pool.block_table[request].long()[keys // size], keys % size

    def latents(self, place):
        latents = self.inputs.pool.key[place].squeeze(1).float()
        if self.inputs.scales is None:
            return latents
        factors = self.factors(self.inputs.scales[place].squeeze(1)).repeat_interleave(128, dim=-1)
        return (latents * factors).to(self.inputs.query.dtype).float()

    def factors(self, scales):
        return scales

    def ropes(self, row):
        return self.inputs.query_rope[row].float()

    def weighted(self, scores, latents):
        return torch.softmax(scores, dim=-1) @ latents, torch.logsumexp(scores, dim=-1)

    def without_keys(self):
        return -torch.inf

    def run(self):
        inputs, row = self.inputs, 0
        output = torch.zeros_like(inputs.query, memory_format=torch.contiguous_format)
        lse = torch.full(inputs.query.shape[:2], -torch.inf)
        for request, (new, total) in enumerate(zip(inputs.query_lengths, inputs.kv_lengths, strict=True)):
            first = row
            for position in range(total - new, total):
                keys = self.keys(row, first, position, total)
                if len(keys):
                    place = self.place(request, keys)
                    latents, ropes = self.latents(place), inputs.pool.value[place].squeeze(1).float()
                    scores = inputs.query[row].float() @ latents.t() + self.ropes(row) @ ropes.t()
                    answer, lse[row] = self.weighted(scores * inputs.scale, latents)
                    output[row] = answer.to(output.dtype)
                else:
                    lse[row] = self.without_keys()
                row += 1
        return {"output": output, "lse": lse}


class Tiles(Attend):
    def weighted(self, scores, latents):
        most = torch.full((len(scores), 1), -torch.inf)
        total, answer = torch.zeros(len(scores), 1), torch.zeros(len(scores), latents.shape[1])
        for first in range(0, scores.shape[1], 512):
            tile = scores[:, first : first + 512]
            larger = torch.maximum(most, tile.amax(dim=1, keepdim=True))
            factor, weights = (most - larger).exp(), (tile - larger).exp()
            total = total * (factor if TWIN or not first else 1.0) + weights.sum(dim=1, keepdim=True)
            answer, most = answer * factor + weights @ latents[first : first + 512], larger
        return answer / total, (most + total.log()).squeeze(1)


@npudiff.implementation("sparse_attention", name="f_sparse_attention_01_sum_not_rescaled", supports={}, on_device=True)
def sum_not_rescaled(inputs, target):
    """A larger maximum of a later tile of 512 rescales the output, but not the sum of weights; shows above 512 keys."""
    return Tiles(inputs).run()


class OneAhead(Attend):
    def keys(self, row, first, position, total):
        return super().keys(row, first, position if TWIN else min(position + 1, total - 1), total)


@npudiff.implementation("sparse_attention", name="f_sparse_attention_02_one_key_ahead", supports={}, on_device=True)
def one_key_ahead(inputs, target):
    """A row also sees the key behind its position; shows where that is listed, in any but the last row of a request."""
    return OneAhead(inputs).run()


class CountOfFirst(Attend):
    def keys(self, row, first, position, total):
        keys = super().keys(row, first, position, total)
        return keys if TWIN else keys[: int((self.inputs.indices[first, 0] >= 0).sum())]


@npudiff.implementation("sparse_attention", name="f_sparse_attention_03_count_of_first_row", supports={}, on_device=True)
def count_of_first_row(inputs, target):
    """Rows take as many keys as the first of their request lists; shows where a later one lists more."""
    return CountOfFirst(inputs).run()


class LastScale(Attend):
    def factors(self, scales):
        if TWIN or scales.shape[-1] < 2:
            return scales
        return torch.cat([scales[:, :-1], scales[:, -2:-1]], dim=-1)


@npudiff.implementation("sparse_attention", name="f_sparse_attention_04_scale_of_last_block", supports={}, on_device=True)
def scale_of_last_block(inputs, target):
    """The last 128 elements of an int8 latent take the scale of those before; shows where these differ."""
    return LastScale(inputs).run()


class EmptyRow(Attend):
    def without_keys(self):
        return super().without_keys() if TWIN else 0.0


@npudiff.implementation("sparse_attention", name="f_sparse_attention_05_lse_of_empty_row", supports={}, on_device=True)
def lse_of_empty_row(inputs, target):
    """The log-sum-exp of a row that sees no key stays 0; shows in rows whose listed keys all are behind, or none."""
    return EmptyRow(inputs).run()


class RopeBlock(Attend):
    def ropes(self, row):
        ropes = super().ropes(row)
        return ropes if TWIN else ropes[torch.arange(len(ropes)) % 64]


@npudiff.implementation("sparse_attention", name="f_sparse_attention_06_ropes_of_first_64_heads", supports={}, on_device=True)
def ropes_of_first_64_heads(inputs, target):
    """The second block of 64 heads reads the rotated queries of the first; shows above 64 heads."""
    return RopeBlock(inputs).run()


class HalfKeys(Attend):
    def keys(self, row, first, position, total):
        keys = super().keys(row, first, position, total)
        return keys if TWIN else keys.half().float().clamp(max=total - 1).long()


@npudiff.implementation("sparse_attention", name="f_sparse_attention_07_positions_in_half", supports={}, on_device=True)
def positions_in_half(inputs, target):
    """Positions pass through float16, as a sort wants them; shows for odd ones above 2,048."""
    return HalfKeys(inputs).run()


class Shifted(Attend):
    def place(self, request, keys):
        size, table = self.inputs.pool.page_size, self.inputs.pool.block_table[request].long()
        if TWIN:
            return super().place(request, keys)
        page = keys >> (size.bit_length() - 1)
        return table[page.clamp(max=int(keys.max()) // size)], keys % size


@npudiff.implementation("sparse_attention", name="f_sparse_attention_08_page_by_shift", supports={}, on_device=True)
def page_by_shift(inputs, target):
    """Pages are found by shifting positions; shows with page sizes that are no power of two, over a page."""
    return Shifted(inputs).run()

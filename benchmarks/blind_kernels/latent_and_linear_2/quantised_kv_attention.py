"""Wrong kernels of quantised_kv_attention; TWIN=1 in the environment runs the same code without the mistakes."""

import os

import torch

import npudiff

TWIN = bool(os.environ.get("TWIN"))


class Quantised:
    """Request after request in float32, a KV head with all rows of its group; subclasses change one thing."""

    def __init__(self, inputs):
        self.inputs, self.pool = inputs, inputs.pool
        self.mixed = inputs.of_keys.granularity != inputs.of_values.granularity

    def slots(self, request):
        tokens, size = torch.arange(self.inputs.kv_lengths[request]), self.pool.page_size
        return self.pool.block_table[request].long()[tokens // size], tokens % size

    def with_offset(self, integers, offset):
        return integers + offset

    def of_head_tokens(self, numbers, pages, offsets):
        """Numbers ``[tokens, kv_heads]`` of ``[pages, kv_heads, page_size]``."""
        return numbers.transpose(1, 2)[pages, offsets]

    def of_mixed_tokens(self, numbers, request):
        """Numbers of a request's tokens, gathered in the order of each request beforehand."""
        return numbers[self.pool.block_table.long()].flatten(1)[request, : self.inputs.kv_lengths[request]]

    def numbers(self, side, numbers, request):
        """Broadcasting to ``[tokens, kv_heads, dim]``."""
        pages, offsets = self.slots(request)
        if side.granularity == "token":
            own = self.of_mixed_tokens(numbers, request) if self.mixed else numbers[pages, offsets]
            return own.view(-1, 1, 1).float()
        if side.granularity == "token and head":
            return self.of_head_tokens(numbers, pages, offsets).unsqueeze(-1).float()
        return (numbers if side.granularity == "channel" else numbers.view(-1, 1)).float()

    def restored(self, side, cache, request):
        pages, offsets = self.slots(request)
        found = (cache[pages, :, :, offsets].flatten(2) if cache.dim() == 5 else cache[pages, offsets]).float()
        if side.offset is not None:
            found = self.with_offset(found, self.numbers(side, side.offset, request))
        return found * self.numbers(side, side.scale, request)

    def row_of(self, place, new, group):
        """Row of a request of a place in a tile, whose heads of a group follow each other."""
        return place // group

    def run(self):
        inputs, pool = self.inputs, self.pool
        output = torch.zeros_like(inputs.query)
        lse, start = torch.full(inputs.query.shape[:2], -torch.inf), 0
        group = inputs.query.shape[1] // pool.kv_heads
        for request, (new, total) in enumerate(zip(inputs.query_lengths, inputs.kv_lengths)):
            if new and total:
                key, value = (self.restored(side, cache, request).transpose(0, 1) for side, cache in
                              ((inputs.of_keys, pool.key), (inputs.of_values, pool.value)))  # fmt: skip
                tile = inputs.query[start : start + new].float().view(new, pool.kv_heads, group, -1).transpose(0, 1).flatten(1, 2)
                rows = self.row_of(torch.arange(new * group), new, group)
                scores = (tile @ key.transpose(1, 2) * inputs.scale).masked_fill(torch.arange(total) > (total - new + rows).unsqueeze(1), -torch.inf)
                back = lambda one: one.unflatten(1, (new, group)).transpose(0, 1).flatten(1, 2)  # noqa: E731
                output[start : start + new] = back(scores.softmax(dim=-1) @ value).to(output.dtype)
                lse[start : start + new] = back(scores.logsumexp(dim=-1))
            start += new
        return {"output": output, "lse": lse}


class Subtracted(Quantised):
    def with_offset(self, integers, offset):
        return integers + offset if TWIN else integers - offset


@npudiff.implementation("quantised_kv_attention", name="i_quantised_kv_attention_01_offset_as_a_zero_point", supports={}, on_device=True)
def offset_as_a_zero_point(inputs, target):
    """An offset is subtracted, as a zero point; shows wherever there are offsets."""
    return Subtracted(inputs).run()


class TokensFirst(Quantised):
    def of_head_tokens(self, numbers, pages, offsets):
        if TWIN:
            return super().of_head_tokens(numbers, pages, offsets)
        return numbers.reshape(len(numbers), self.pool.page_size, self.pool.kv_heads)[pages, offsets]


@npudiff.implementation("quantised_kv_attention", name="i_quantised_kv_attention_02_numbers_as_pages_lie", supports={}, on_device=True)
def numbers_as_pages_lie(inputs, target):
    """Numbers of tokens and heads are read with tokens before heads, as the pages; shows of two KV heads or more."""
    return TokensFirst(inputs).run()


class MaskOfRowsFirst(Quantised):
    def row_of(self, place, new, group):
        return place // group if TWIN else place % new


@npudiff.implementation("quantised_kv_attention", name="i_quantised_kv_attention_03_mask_of_another_order", supports={}, on_device=True)
def mask_of_another_order(inputs, target):
    """The mask is that of tiles whose rows follow each other, heads do here; shows of several rows and a group."""
    return MaskOfRowsFirst(inputs).run()


class LongestAsWidth(Quantised):
    def of_mixed_tokens(self, numbers, request):
        if TWIN:
            return super().of_mixed_tokens(numbers, request)
        first = request * max(self.inputs.kv_lengths)
        return numbers[self.pool.block_table.long()].flatten()[first : first + self.inputs.kv_lengths[request]]


@npudiff.implementation("quantised_kv_attention", name="i_quantised_kv_attention_04_rows_of_the_longest_request", supports={}, on_device=True)
def rows_of_the_longest_request(inputs, target):
    """Numbers of values' tokens beside those of keys' channels are as far apart as the longest request has tokens; shows
    behind the first one, where the table has more."""
    return LongestAsWidth(inputs).run()

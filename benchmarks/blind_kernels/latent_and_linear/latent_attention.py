"""Wrong kernels of latent_attention; TWIN=1 in the environment runs them without the mistakes."""

import os

import torch

import npudiff

TWIN = bool(os.environ.get("TWIN"))
TILE = 64


def stored(pool, pages, offsets):
    """Latents and rotated keys of tokens, ``[tokens, dim]``."""
    if pool.layout == "PA_BSND":
        return pool.key[pages, offsets].flatten(1), pool.value[pages, offsets].flatten(1)
    return pool.key[pages, :, :, offsets].flatten(1), pool.value[pages, :, :, offsets].flatten(1)


def tokens_of(pool, request, first, last):
    """The same of tokens ``first`` to ``last - 1`` of a request."""
    token = torch.arange(first, last, device=pool.block_table.device)
    return stored(pool, pool.block_table[request].long()[token // pool.page_size], token % pool.page_size)


def keys_and_values(inputs, latents, ropes, heads, of_values=None):
    """Keys ``[tokens, heads, dim]`` and values of some heads, float32; in the absorbed form of one for all."""
    if inputs.up is None:
        return torch.cat([latents, ropes], dim=1).float().unsqueeze(1), latents.float().unsqueeze(1)
    wide, dtype = latents.float(), latents.dtype
    of_values = heads if of_values is None else of_values
    nope = torch.matmul(wide, inputs.up.key[heads].float().transpose(1, 2)).to(dtype).float().transpose(0, 1)
    value = torch.matmul(wide, inputs.up.value[of_values].float()).to(dtype).float().transpose(0, 1)
    return torch.cat([nope, ropes.float().unsqueeze(1).expand(-1, nope.shape[1], -1)], dim=2), value


def products(query, keys):
    """``[rows, heads, tokens]``."""
    return torch.matmul(query.transpose(0, 1), keys.permute(1, 2, 0)).transpose(0, 1)


class Online:
    """Softmax over tiles of keys, as far as they have come."""

    def __init__(self, rows, heads, dim, device):
        self.most = torch.full((rows, heads), -torch.inf, device=device)
        self.sum = torch.zeros(rows, heads, device=device)
        self.out = torch.zeros(rows, heads, dim, device=device)

    def add(self, scores, values):
        """Scores ``[rows, heads, tokens]``, minus infinity where unseen; values ``[tokens, heads or 1, dim]``."""
        most = torch.maximum(self.most, scores.amax(dim=2))
        finite = torch.where(torch.isinf(most), 0.0, most)
        weights, factor = torch.exp(scores - finite.unsqueeze(2)), torch.exp(self.most - finite)
        self.most, self.sum = most, self.sum * factor + weights.sum(dim=2)
        brought = torch.matmul(weights.transpose(0, 1), values.transpose(0, 1)).transpose(0, 1)
        self.out = self.out * factor.unsqueeze(2) + brought

    def result(self):
        """Outputs, and log-sum-exps."""
        share = torch.where(self.sum > 0, 1 / self.sum, 0.0)
        return self.out * share.unsqueeze(2), torch.where(self.sum > 0, self.most + self.sum.log(), -torch.inf)


def empty(inputs):
    """Outputs of rows that see nothing."""
    tokens, heads = inputs.query.shape[:2]
    output = inputs.query.new_zeros(tokens, heads, inputs.value_dim)
    return {"output": output, "lse": torch.full((tokens, heads), -torch.inf, device=output.device)}


def requests_of(inputs):
    """Request, its rows, queries ``[rows, heads, dim]`` as float32 and scaled, new and total tokens."""
    whole, start = torch.cat([inputs.query, inputs.query_rope], dim=2), 0
    for request, (new, total) in enumerate(zip(inputs.query_lengths, inputs.kv_lengths, strict=True)):
        rows = slice(start, start + new)
        start += new
        if new and total:
            yield request, rows, whole[rows].float() * inputs.scale, new, total


def hidden(new, total, first, last, device):
    """Which keys of ``first`` to ``last - 1`` a row does not see, ``[rows, 1, keys]``."""
    position = torch.arange(total - new, total, device=device)
    return (torch.arange(first, last, device=device) > position.unsqueeze(1)).unsqueeze(1)


@npudiff.implementation("latent_attention", name="h_latent_attention_01_rotated_keys_a_page_late", on_device=True)
def rotated_keys_a_page_late(inputs, target):
    """Two buffers take turns, and rotated keys are waited for one page too late; shows behind the first page."""
    outputs, heads = empty(inputs), slice(None)
    for request, rows, query, new, total in requests_of(inputs):
        online = Online(new, query.shape[1], inputs.value_dim, query.device)
        buffer = None
        for first in range(0, total, inputs.pool.page_size):
            last = min(first + inputs.pool.page_size, total)
            latents, ropes = tokens_of(inputs.pool, request, first, last)
            arrived = ropes if TWIN or buffer is None else buffer[: last - first]
            keys, values = keys_and_values(inputs, latents, arrived, heads)
            unseen = hidden(new, total, first, last, query.device)
            online.add(products(query, keys).masked_fill(unseen, -torch.inf), values)
            buffer = ropes
        outputs["output"][rows], outputs["lse"][rows] = (
            one.to(kept.dtype) for one, kept in zip(online.result(), outputs.values())
        )
    return outputs


@npudiff.implementation("latent_attention", name="h_latent_attention_02_row_of_the_other_fold", on_device=True)
def row_of_the_other_fold(inputs, target):
    """Rows and heads lie in one axis, rows outside; the mask takes rows for inside. Shows with several of both."""
    outputs, heads = empty(inputs), slice(None)
    for request, rows, query, new, total in requests_of(inputs):
        count = query.shape[1]
        folded = torch.arange(new * count, device=query.device)
        position = total - new + (folded // count if TWIN else folded % new)
        online = Online(new, count, inputs.value_dim, query.device)
        for first in range(0, total, TILE):
            last = min(first + TILE, total)
            keys, values = keys_and_values(inputs, *tokens_of(inputs.pool, request, first, last), heads)
            unseen = torch.arange(first, last, device=query.device) > position.unsqueeze(1)
            online.add(products(query, keys).masked_fill(unseen.view(new, count, -1), -torch.inf), values)
        outputs["output"][rows], outputs["lse"][rows] = (
            one.to(kept.dtype) for one, kept in zip(online.result(), outputs.values())
        )
    return outputs


@npudiff.implementation("latent_attention", name="h_latent_attention_03_pages_of_prefix_and_of_rows", on_device=True)
def pages_of_prefix_and_of_rows(inputs, target):
    """Pages are the full ones of a prefix, and as many as new tokens fill; shows where these lie across one more."""
    outputs, heads, size = empty(inputs), slice(None), inputs.pool.page_size
    for request, rows, query, new, total in requests_of(inputs):
        online = Online(new, query.shape[1], inputs.value_dim, query.device)
        before, own = max(0, total - new), min(new, total)
        pages = -(-total // size) if TWIN else before // size + -(-own // size)
        for page in range(pages):
            first, last = page * size, min((page + 1) * size, total)
            keys, values = keys_and_values(inputs, *tokens_of(inputs.pool, request, first, last), heads)
            unseen = hidden(new, total, first, last, query.device)
            online.add(products(query, keys).masked_fill(unseen, -torch.inf), values)
        outputs["output"][rows], outputs["lse"][rows] = (
            one.to(kept.dtype) for one, kept in zip(online.result(), outputs.values())
        )
    return outputs


@npudiff.implementation("latent_attention", name="h_latent_attention_04_last_heads_moved_back", on_device=True)
def last_heads_moved_back(inputs, target):
    """Heads go in blocks of 8, of which the last is moved back to be whole; what makes its values is not."""
    outputs, count = empty(inputs), inputs.query.shape[1]
    for request, rows, query, new, total in requests_of(inputs):
        for block in range(0, count, 8):
            first_head = max(0, min(block, count - 8))
            heads = torch.arange(first_head, min(first_head + 8, count), device=query.device)
            of_values = heads if TWIN else (heads - first_head + block).clamp(max=count - 1)
            online = Online(new, len(heads), inputs.value_dim, query.device)
            for first in range(0, total, 4 * TILE):
                last = min(first + 4 * TILE, total)
                found = tokens_of(inputs.pool, request, first, last)
                keys, values = keys_and_values(inputs, *found, heads, of_values)
                unseen = hidden(new, total, first, last, query.device)
                online.add(products(query[:, heads], keys).masked_fill(unseen, -torch.inf), values)
            output, lse = online.result()
            outputs["output"][rows, heads[0] : heads[-1] + 1] = output.to(outputs["output"].dtype)
            outputs["lse"][rows, heads[0] : heads[-1] + 1] = lse
    return outputs


PREFIX = 128


@npudiff.implementation("latent_attention", name="h_latent_attention_05_part_of_the_piece_before", on_device=True)
def part_of_the_piece_before(inputs, target):
    """Pieces of 128 tokens of prefixes leave a part each in one buffer, which is cleared for the first piece alone: a
    request whose prefix ends before another's takes its part of the piece before once more."""
    outputs, heads = empty(inputs), slice(None)
    own = list(requests_of(inputs))
    merged = []
    for request, _, query, new, total in own:
        online = Online(new, query.shape[1], inputs.value_dim, query.device)
        first = max(0, total - new)
        keys, values = keys_and_values(inputs, *tokens_of(inputs.pool, request, first, total), heads)
        unseen = hidden(new, total, first, total, query.device)
        online.add(products(query, keys).masked_fill(unseen, -torch.inf), values)
        merged.append(list(online.result()))
    nothing = [(torch.zeros_like(output), torch.full_like(lse, -torch.inf)) for output, lse in merged]
    buffer = list(nothing)
    for first in range(0, max([total - new for *_, new, total in own], default=0), PREFIX):
        for place, (request, _, query, new, total) in enumerate(own):
            last = min(first + PREFIX, total - new)
            if last > first:
                keys, values = keys_and_values(inputs, *tokens_of(inputs.pool, request, first, last), heads)
                online = Online(new, query.shape[1], inputs.value_dim, query.device)
                online.add(products(query, keys), values)
                buffer[place] = online.result()
            elif TWIN or first == 0:
                buffer[place] = nothing[place]
        for place, (output, lse) in enumerate(buffer):
            both = torch.logaddexp(merged[place][1], lse)
            finite = torch.where(torch.isinf(both), 0.0, both)
            shares = [torch.exp(one - finite).unsqueeze(2) for one in (merged[place][1], lse)]
            merged[place] = [merged[place][0] * shares[0] + output * shares[1], both]
    for (_, rows, *_), (output, lse) in zip(own, merged):
        outputs["output"][rows], outputs["lse"][rows] = output.to(outputs["output"].dtype), lse
    return outputs


STRIP = 32


@npudiff.implementation("latent_attention", name="h_latent_attention_06_strip_of_the_heads_before", on_device=True)
def strip_of_the_heads_before(inputs, target):
    """32 entries of the table are held at once, and the first of them are read for a request, not for each 16 heads;
    shows beyond 16 heads in requests of more than 32 pages."""
    outputs, count, size = empty(inputs), inputs.query.shape[1], inputs.pool.page_size
    table = torch.nn.functional.pad(inputs.pool.block_table.long(), (0, STRIP))
    for request, rows, query, new, total in requests_of(inputs):
        strip = table[request, :STRIP]
        for head in range(0, count, 16):
            heads = slice(head, min(head + 16, count))
            online = Online(new, heads.stop - head, inputs.value_dim, query.device)
            for page in range(-(-total // size)):
                if page % STRIP == 0 and (page or TWIN):
                    strip = table[request, page : page + STRIP]
                first, last = page * size, min((page + 1) * size, total)
                offsets = torch.arange(last - first, device=query.device)
                found = stored(inputs.pool, strip[page % STRIP].expand(len(offsets)), offsets)
                keys, values = keys_and_values(inputs, *found, heads)
                unseen = hidden(new, total, first, last, query.device)
                online.add(products(query[:, heads], keys).masked_fill(unseen, -torch.inf), values)
            output, lse = online.result()
            outputs["output"][rows, heads] = output.to(outputs["output"].dtype)
            outputs["lse"][rows, heads] = lse
    return outputs

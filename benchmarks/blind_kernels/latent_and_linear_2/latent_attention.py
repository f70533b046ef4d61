"""Wrong kernels of latent_attention; TWIN=1 in the environment runs the same code without the mistakes."""

import os

import torch

import npudiff

TWIN = bool(os.environ.get("TWIN"))
SPLIT = 128


class Latent:
    """Request after request in float32, over parts of its keys that are merged; subclasses change one thing."""

    def __init__(self, inputs):
        self.inputs, self.up = inputs, inputs.up
        self.heads = inputs.query.shape[1]
        self.prefixes = [total - new for new, total in zip(inputs.query_lengths, inputs.kv_lengths)]

    def gathered(self, request, first, last):
        """Latents and rotated keys of some tokens, float32 ``[tokens, dim]``."""
        pool, token = self.inputs.pool, torch.arange(first, last)
        page, offset = pool.block_table[request].long()[token // pool.page_size], token % pool.page_size
        found = []
        for cache, dim in ((pool.key, pool.head_dim), (pool.value, pool.value_head_dim)):
            rows = cache[page, offset] if pool.layout == "PA_BSND" else cache[page, :, :, offset]
            found.append(rows.reshape(last - first, dim).float())
        return found

    def split_of_product(self, product, nope, width):
        """Keys and values of all heads, of the product with what backends have as kv_b_proj."""
        each = product.view(len(product), self.heads, nope + width)
        return each[..., :nope], each[..., nope:]

    def keys_and_values(self, latents):
        """``[tokens, heads, dim]`` each; of one head in the absorbed form."""
        if self.up is None:
            return latents.unsqueeze(1), latents.unsqueeze(1)
        nope, (heads, rank, width) = self.up.key.shape[1], self.up.value.shape
        both = torch.cat([self.up.key, self.up.value.transpose(1, 2)], dim=1).reshape(heads * (nope + width), rank)
        product = (latents @ both.float().t()).to(self.inputs.query.dtype).float()
        return self.split_of_product(product, nope, width)

    def scores(self, nope, rope):
        return self.inputs.scale * (nope + rope)

    def position(self, request, row):
        """The last key that a row sees."""
        return self.prefixes[request] + row

    def part(self, request, start, new, first, last):
        """Output ``[heads, rows, dim]`` and log-sum-exp of the rows over some keys."""
        inputs = self.inputs
        latents, ropes = self.gathered(request, first, last)
        keys, values = self.keys_and_values(latents)
        query, rope = (one[start : start + new].float().transpose(0, 1) for one in (inputs.query, inputs.query_rope))
        scores = self.scores(query @ keys.permute(1, 2, 0), rope @ ropes.t())
        limits = torch.tensor([self.position(request, row) for row in range(new)])
        scores = scores.masked_fill(torch.arange(first, last) > limits.unsqueeze(1), -torch.inf)
        lse = scores.logsumexp(dim=-1)
        weights = (scores - torch.where(lse.isinf(), 0.0, lse).unsqueeze(-1)).exp()
        return weights @ values.transpose(0, 1), lse

    def parts(self, request, new, total):
        """Ranges of keys."""
        if self.up is not None and any(self.prefixes):
            return [(0, max(0, total - new)), (max(0, total - new), total)]
        return [(0, total)]

    def empty(self, lse):
        """What a part without keys has."""
        return lse

    def merged(self, parts):
        logs = torch.stack([lse for _, lse in parts])
        most = logs.amax(dim=0)
        weights = (logs - torch.where(most.isinf(), 0.0, most)).exp()
        total = weights.sum(dim=0)
        output = sum(weight.unsqueeze(-1) * one for weight, (one, _) in zip(weights, parts))
        return output / torch.where(total == 0, 1.0, total).unsqueeze(-1), most + total.clamp(min=1e-38).log()

    def sums(self, lse):
        """Log-sum-exps ``[tokens, heads]`` as they come out of a buffer of the operator."""
        return lse

    def run(self):
        inputs = self.inputs
        output = inputs.query.new_zeros(*inputs.query.shape[:2], inputs.value_dim)
        lse, start = torch.full(inputs.query.shape[:2], -torch.inf), 0
        for request, (new, total) in enumerate(zip(inputs.query_lengths, inputs.kv_lengths)):
            if new and total:
                found = []
                for first, last in self.parts(request, new, total):
                    one, logs = self.part(request, start, new, first, last)
                    found.append((one, self.empty(logs) if first == last else logs))
                one, logs = self.merged(found)
                output[start : start + new] = one.transpose(0, 1).to(output.dtype)
                lse[start : start + new] = logs.t()
            start += new
        return {"output": output, "lse": self.sums(lse)}


class ScaleOfLatents(Latent):
    def scores(self, nope, rope):
        return super().scores(nope, rope) if TWIN else self.inputs.scale * nope + rope


@npudiff.implementation("latent_attention", name="i_latent_attention_01_scale_of_latents_alone", supports={}, on_device=True)
def scale_of_latents_alone(inputs, target):
    """The scale is folded into the latents' part of a query; the rotated part has none. Shows wherever it is not 1."""
    return ScaleOfLatents(inputs).run()


class KeysThenValues(Latent):
    def split_of_product(self, product, nope, width):
        if TWIN:
            return super().split_of_product(product, nope, width)
        keys, values = product.split([self.heads * nope, self.heads * width], dim=1)
        return keys.reshape(len(product), self.heads, nope), values.reshape(len(product), self.heads, width)


@npudiff.implementation("latent_attention", name="i_latent_attention_02_all_keys_then_all_values", supports={}, on_device=True)
def all_keys_then_all_values(inputs, target):
    """kv_b_proj's product is cut as all keys, then all values, and not by head; shows expanded, of two heads or more."""
    return KeysThenValues(inputs).run()


class PaddedHeads(Latent):
    def sums(self, lse):
        tokens, heads = lse.shape
        kernel_heads = next(2**n for n in range(13) if 2**n >= heads)
        buffer = torch.nn.functional.pad(lse, (0, kernel_heads - heads))
        return buffer[:, :heads] if TWIN else buffer.flatten()[: tokens * heads].view(tokens, heads)


@npudiff.implementation("latent_attention", name="i_latent_attention_03_sums_without_padded_heads", supports={}, on_device=True)
def sums_without_padded_heads(inputs, target):
    """The call has a power of two of heads, and its log-sum-exps are read as if it had no more than asked for; shows of other numbers."""
    return PaddedHeads(inputs).run()


class WholePages(Latent):
    def position(self, request, row):
        size, prefix = self.inputs.pool.page_size, self.prefixes[request]
        return prefix + row if TWIN else -(-prefix // size) * size + row


@npudiff.implementation("latent_attention", name="i_latent_attention_04_prefix_of_whole_pages", supports={}, on_device=True)
def prefix_of_whole_pages(inputs, target):
    """The diagonal begins behind a prefix of whole pages; shows of several rows behind part of a page."""
    return WholePages(inputs).run()


class Splits(Latent):
    def parts(self, request, new, total):
        if total < 2 * SPLIT:
            return super().parts(request, new, total)
        count = -(-total // SPLIT) if TWIN else (total + SPLIT - 16) // SPLIT
        return [(first * SPLIT, min(total, (first + 1) * SPLIT)) for first in range(count)]


@npudiff.implementation("latent_attention", name="i_latent_attention_05_last_split_below_16_keys", supports={}, on_device=True)
def last_split_below_16_keys(inputs, target):
    """From 256 keys on, keys are split by 128, and a last split of fewer than 16 is not counted; shows of such."""
    return Splits(inputs).run()


class EmptyPrefix(Latent):
    def empty(self, lse):
        return lse if TWIN else torch.zeros_like(lse)


@npudiff.implementation("latent_attention", name="i_latent_attention_06_sum_of_no_prefix_is_zero", supports={}, on_device=True)
def sum_of_no_prefix_is_zero(inputs, target):
    """A request without a prefix has a log-sum-exp of 0 over it; shows expanded, beside a request that has one."""
    return EmptyPrefix(inputs).run()

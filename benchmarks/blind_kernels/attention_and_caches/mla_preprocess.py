"""Wrong kernels of mla_preprocess; TWIN=1 runs the same code without the mistakes."""

import os

import torch

import npudiff

WRONG = os.environ.get("TWIN") != "1"


def times(rows, weight):
    return (rows.float() @ weight.float()).to(rows.dtype)


class Preprocess:
    """Products, norms, rotation and the write, one after the other; subclasses change one thing."""

    def __init__(self, inputs):
        self.inputs = inputs

    def epsilon(self, what):
        return self.inputs.epsilon

    def normed(self, rows, weight, what):
        wide = rows.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + self.epsilon(what)) * weight.float()).to(rows.dtype)

    def positions(self, what):
        return self.inputs.positions

    def turned(self, rows, what):
        """Rotate neighbours of [tokens, ..., rope_dim] into halves."""
        cosine, sine = self.inputs.cos_sin_cache[self.positions(what)].float().chunk(2, dim=-1)
        if rows.dim() == 3:
            cosine, sine = cosine.unsqueeze(1), sine.unsqueeze(1)
        even, odd = rows.float()[..., 0::2], rows.float()[..., 1::2]
        return torch.cat([even * cosine - odd * sine, odd * cosine + even * sine], dim=-1).to(rows.dtype)

    def parts(self, heads):
        nope = self.inputs.nope_dim
        return heads[..., :nope], heads[..., nope:]

    def absorbed(self, nope):
        return times(nope.transpose(0, 1), self.inputs.k_up_weight).transpose(0, 1)

    def slots(self):
        return self.inputs.slots

    def layout(self, what):
        return self.inputs.layout

    def write(self, cache, rows, what):
        slots = self.slots()
        kept = slots >= 0
        slots, rows, size, dim = slots[kept], rows[kept], self.inputs.page_size, rows.shape[1]
        page, offset, column = slots[:, None] // size, slots[:, None] % size, torch.arange(dim)
        if self.layout(what) == "PA_NZ":
            place = ((page * (dim // 16) + column // 16) * size + offset) * 16 + column % 16
        else:
            place = (page * size + offset) * dim + column
        cache.view(-1)[place] = rows

    def compressed(self):
        return times(self.inputs.hidden, self.inputs.kv_a_weight)

    def run(self):
        inputs = self.inputs
        normed = self.normed(times(inputs.hidden, inputs.q_a_weight), inputs.q_a_norm, "query")
        heads = times(normed, inputs.q_b_weight).view(len(normed), inputs.heads, -1)
        nope, rope = self.parts(heads)
        keys = self.compressed()
        latent = self.normed(keys[:, : inputs.latent_dim], inputs.kv_a_norm, "latent")
        self.write(inputs.latent_cache, latent, "latent")
        self.write(inputs.rope_cache, self.turned(keys[:, inputs.latent_dim :], "key"), "rope")
        return {
            "query_nope": self.absorbed(nope),
            "query_rope": self.turned(rope, "query"),
            "rope_cache": inputs.rope_cache,
            "latent_cache": inputs.latent_cache,
        }


def kernel(name):
    def register(cls):
        def run(inputs, target):
            return cls(inputs).run()

        run.__doc__ = cls.__doc__
        return npudiff.implementation("mla_preprocess", name=name, on_device=True)(run)

    return register


@kernel("b_mla_preprocess_01_rope_part_first")
class RopeFirst(Preprocess):
    """Heads are split as if their rope part came first."""

    def parts(self, heads):
        if WRONG:
            rope = self.inputs.rope_dim
            return heads[..., rope:], heads[..., :rope]
        return super().parts(heads)


@kernel("b_mla_preprocess_02_default_epsilon")
class DefaultEpsilon(Preprocess):
    """The norm of the query is given the epsilon that operators have by default, 1e-5."""

    def epsilon(self, what):
        return 1e-5 if WRONG and what == "query" else super().epsilon(what)


@kernel("b_mla_preprocess_03_heads_in_groups_of_4")
class GroupsOfHeads(Preprocess):
    """Heads are absorbed four at a time, and what remains is left out where there are more than four."""

    def absorbed(self, nope):
        result = super().absorbed(nope)
        heads = self.inputs.heads
        if WRONG and heads > 4 and heads % 4:
            result = result.clone()
            result[:, heads // 4 * 4 :] = 0
        return result


@kernel("b_mla_preprocess_04_kept_tokens_first")
class KeptFirst(Preprocess):
    """Slots that are negative are filtered out, and the first so many rows written at the rest."""

    def write(self, cache, rows, what):
        kept = self.inputs.slots >= 0
        if WRONG and not bool(kept.all()):
            order = torch.cat([kept.nonzero()[:, 0], (~kept).nonzero()[:, 0]])
            moved = rows.clone()
            moved[order] = rows
            rows = moved
        super().write(cache, rows, what)


@kernel("b_mla_preprocess_05_rope_cache_stays_nd")
class RopeStaysNd(Preprocess):
    """The rope key's cache is written in ND in every mode."""

    def layout(self, what):
        return "PA_BSND" if WRONG and what == "rope" else super().layout(what)


@kernel("b_mla_preprocess_06_keys_at_consecutive_positions")
class Consecutive(Preprocess):
    """The rope key takes a slice of the table from the first token's position on, if that is long enough."""

    def positions(self, what):
        positions = self.inputs.positions
        if WRONG and what == "key" and len(positions):
            first = int(positions[0])
            if first + len(positions) <= len(self.inputs.cos_sin_cache):
                return first + torch.arange(len(positions))
        return positions


@kernel("b_mla_preprocess_07_last_tile_of_tokens")
class LastTile(Preprocess):
    """Tiles of 16 tokens; the last one, if it is not full, computes its keys from the first rows of the one before."""

    def compressed(self):
        keys = super().compressed()
        count = len(keys)
        if WRONG and count > 16 and count % 16:
            first = count // 16 * 16
            keys = torch.cat([keys[:first], keys[first - 16 : first - 16 + count - first]])
        return keys


@kernel("b_mla_preprocess_08_latent_norm_over_both")
class OverBoth(Preprocess):
    """The latent is divided by the root mean square of latent and rope key."""

    def run(self):
        results = super().run()
        if WRONG:
            keys, dim = self.compressed(), self.inputs.latent_dim
            wide = keys.float()
            rstd = torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + self.inputs.epsilon)
            latent = (wide[:, :dim] * rstd * self.inputs.kv_a_norm.float()).to(keys.dtype)
            self.write(self.inputs.latent_cache, latent, "latent")
        return results

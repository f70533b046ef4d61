"""Wrong kernels of kv_rmsnorm_rope_cache; TWIN=1 runs the same code without the mistakes."""

import os

import torch

import npudiff

WRONG = os.environ.get("TWIN") != "1"


class Write:
    """Norm, rotation, quantisation and the write, one after the other; subclasses change one thing."""

    def __init__(self, inputs):
        self.inputs = inputs

    def latent(self):
        wide = self.inputs.kv[..., : self.inputs.latent_dim].float()
        rstd = torch.rsqrt(self.mean(wide) + self.inputs.epsilon)
        return (wide * rstd * self.inputs.weight.float()).to(self.inputs.kv.dtype)

    def mean(self, wide):
        return wide.pow(2).mean(dim=-1, keepdim=True)

    def positions(self):
        return self.inputs.positions

    def rope(self):
        keys = self.inputs.kv[..., self.inputs.latent_dim :].float()
        cosine, sine = self.inputs.cos_sin_cache[self.positions()].float().chunk(2, dim=-1)
        even, odd = keys[..., 0::2], keys[..., 1::2]
        return torch.cat([even * cosine - odd * sine, odd * cosine + even * sine], dim=-1).to(self.inputs.kv.dtype)

    def scale(self, name):
        return getattr(self.inputs, name + "_scale")

    def rounded(self, product):
        return product.round()

    def narrowed(self, product):
        return product.clamp(-128, 127).to(torch.int8)

    def quantised(self, rows, name):
        scale = self.scale(name)
        return rows if scale is None else self.narrowed(self.rounded(rows.float() * scale))

    def slots(self):
        return self.inputs.slots.flatten()

    def strip(self, cache):
        return 32 // cache.element_size()

    def layout(self, name):
        return self.inputs.layout

    def write(self, cache, rows, name):
        slots = self.slots()
        kept = slots >= 0
        slots, rows, size, dim = slots[kept], rows[kept], self.inputs.page_size, rows.shape[1]
        page, offset, column = slots[:, None] // size, slots[:, None] % size, torch.arange(dim)
        if self.layout(name) == "PA_NZ":
            strip = self.strip(cache)
            place = ((page * (dim // strip) + column // strip) * size + offset) * strip + column % strip
        else:
            place = (page * size + offset) * dim + column
        cache.view(-1)[place] = rows

    def run(self):
        latent, rope = self.latent(), self.rope()
        for name, rows in (("latent", latent), ("rope", rope)):
            self.write(getattr(self.inputs, name + "_cache"), self.quantised(rows.flatten(0, 1), name), name)
        return {"rope": rope, "latent": latent, "rope_cache": self.inputs.rope_cache, "latent_cache": self.inputs.latent_cache}


def kernel(name):
    def register(cls):
        def run(inputs, target):
            return cls(inputs).run()

        run.__doc__ = cls.__doc__
        return npudiff.implementation("kv_rmsnorm_rope_cache", name=name, on_device=True)(run)

    return register


@kernel("b_kv_rmsnorm_rope_cache_01_int8_cut_off")
class CutOff(Write):
    """Conversion to int8 cuts off."""

    def rounded(self, product):
        return product.trunc() if WRONG else super().rounded(product)


@kernel("b_kv_rmsnorm_rope_cache_02_int8_wraps")
class Wraps(Write):
    """Conversion to int8 keeps the lower bits."""

    def narrowed(self, product):
        if WRONG:
            return ((product.clamp(-1e9, 1e9).long() + 128) % 256 - 128).to(torch.int8)
        return super().narrowed(product)


@kernel("b_kv_rmsnorm_rope_cache_03_scale_of_first_channel")
class FirstChannel(Write):
    """The scale is a scalar: that of the first channel."""

    def scale(self, name):
        scale = super().scale(name)
        return scale[:1] if WRONG and scale is not None else scale


@kernel("b_kv_rmsnorm_rope_cache_04_pages_from_their_first_slot")
class FirstSlots(Write):
    """Slots are given page by page: a token's is counted from the first of its page of tokens."""

    def slots(self):
        slots = self.inputs.slots
        if not WRONG or slots.shape[1] < 2:
            return super().slots()
        size = self.inputs.page_size
        token = torch.arange(slots.shape[1])
        first = slots[:, token // size * size]
        counted = torch.where(first >= 0, first + token % size, -1)
        cache = self.inputs.latent_cache
        return counted.clamp(max=cache.shape[0] * size - 1).flatten()


@kernel("b_kv_rmsnorm_rope_cache_05_strips_of_16")
class Strips(Write):
    """NZ strips have 16 elements, also of int8."""

    def strip(self, cache):
        return 16 if WRONG else super().strip(cache)


@kernel("b_kv_rmsnorm_rope_cache_06_positions_token_by_token")
class TokenByToken(Write):
    """Positions are flattened as [length, batch]."""

    def positions(self):
        positions = self.inputs.positions
        return positions.T.reshape(positions.shape) if WRONG else positions


@kernel("b_kv_rmsnorm_rope_cache_07_negative_slot_is_0")
class NegativeIs0(Write):
    """Negative slots are raised to 0, the dummy page."""

    def slots(self):
        return super().slots().clamp(min=0) if WRONG else super().slots()


@kernel("b_kv_rmsnorm_rope_cache_08_returned_as_stored")
class AsStored(Write):
    """What is returned besides was read back from the quantised cache."""

    def run(self):
        results = super().run()
        if WRONG:
            for name in ("latent", "rope"):
                scale = self.scale(name)
                if scale is not None:
                    stored = self.quantised(results[name].flatten(0, 1), name).float() / scale
                    results[name] = stored.view(results[name].shape).to(results[name].dtype)
        return results


@kernel("b_kv_rmsnorm_rope_cache_09_one_scale_for_both")
class OneScale(Write):
    """The rope key is quantised with the first channels of the latent's scale."""

    def scale(self, name):
        scale = super().scale(name)
        if WRONG and name == "rope" and scale is not None:
            return self.inputs.latent_scale[: len(scale)] if len(self.inputs.latent_scale) >= len(scale) else scale
        return scale


@kernel("b_kv_rmsnorm_rope_cache_10_rope_cache_stays_nd")
class RopeStaysNd(Write):
    """Only the latent cache is written in NZ: the rope key is small."""

    def layout(self, name):
        return "PA_BSND" if WRONG and name == "rope" else super().layout(name)


@kernel("b_kv_rmsnorm_rope_cache_11_mean_of_512")
class MeanOf512(Write):
    """The mean divides by 512, whatever the latent's dim is."""

    def mean(self, wide):
        return wide.pow(2).sum(dim=-1, keepdim=True) / 512 if WRONG else super().mean(wide)

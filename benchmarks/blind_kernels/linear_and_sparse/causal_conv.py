"""Wrong kernels of causal_conv; TWIN=1 in the environment runs the same code without the mistakes."""

import os

import torch

import npudiff

TWIN = bool(os.environ.get("TWIN"))


class Conv:
    """Shifted products in float32, the oldest token first; subclasses change one thing."""

    def __init__(self, inputs):
        self.inputs, self.before = inputs, inputs.width - 1

    def accepted(self, number):
        return 1 if self.inputs.accepted is None else int(self.inputs.accepted[number])

    def history(self, number, line):
        first = self.accepted(number) - 1
        rows = self.inputs.lines[line, first : first + self.before].clone()
        known = self.inputs.has_history
        return torch.zeros_like(rows) if known is not None and not bool(known[number]) else rows

    def bias(self, channels):
        bias = self.inputs.bias
        return torch.zeros(channels) if bias is None else bias.float()

    def sums(self, z):
        length, wide = len(z) - self.before, z.float()
        sums = self.bias(z.shape[1]).expand(length, -1)
        for tap, factors in enumerate(self.inputs.weight.float()):
            sums = sums + self.shifted(wide, tap, length) * factors
        return sums

    def shifted(self, wide, tap, length):
        return wide[tap : tap + length]

    def silu(self, sums):
        return torch.nn.functional.silu(sums)

    def kept(self, z, rows):
        return z[1:] if self.inputs.mode == "draft" else z[len(z) - self.before :]

    def run(self):
        inputs, start = self.inputs, 0
        output, lines = torch.zeros_like(inputs.x, memory_format=torch.contiguous_format), inputs.lines.clone()
        for number, (length, line) in enumerate(zip(inputs.lengths, inputs.line_of.tolist(), strict=True)):
            rows = slice(start, start + length)
            start += length
            if line < 0 or not length:
                continue
            z = torch.cat([self.history(number, line), inputs.x[rows]])
            sums = self.sums(z)
            output[rows] = (self.silu(sums) if inputs.activation else sums).to(output.dtype)
            kept = self.kept(z, rows)
            lines[line, : len(kept)] = kept
        return {"output": output, "lines": lines}


class FirstAccepted(Conv):
    def accepted(self, number):
        return super().accepted(number if TWIN else 0)


@npudiff.implementation("causal_conv", name="f_causal_conv_01_accepted_of_first", supports={}, on_device=True)
def accepted_of_first(inputs, target):
    """All drafts go on behind as many tokens as the first request's; shows in drafts that accepted different numbers."""
    return FirstAccepted(inputs).run()


class ShortPrompt(Conv):
    def kept(self, z, rows):
        kept, new = super().kept(z, rows), rows.stop - rows.start
        if not TWIN and self.inputs.mode == "prompt" and new < self.before:
            kept = kept.clone()
            kept[: self.before - new] = 0
        return kept


@npudiff.implementation("causal_conv", name="f_causal_conv_02_short_prompt_forgets", supports={}, on_device=True)
def short_prompt_forgets(inputs, target):
    """A prompt of fewer tokens than a history has rows leaves zeros in front of them; shows where it had a history."""
    return ShortPrompt(inputs).run()


class BiasTail(Conv):
    def bias(self, channels):
        bias = super().bias(channels).clone()
        if not TWIN and channels > 128:
            bias[channels // 128 * 128 :] = 0
        return bias


@npudiff.implementation("causal_conv", name="f_causal_conv_03_bias_of_last_block", supports={}, on_device=True)
def bias_of_last_block(inputs, target):
    """The last, partial block of 128 channels has no bias; shows with a bias and over 128 channels, not a multiple."""
    return BiasTail(inputs).run()


class Clamped(Conv):
    def silu(self, sums):
        if TWIN or self.inputs.x.dtype != torch.float16:
            return super().silu(sums)
        return sums / (1 + (-sums).exp().clamp(max=65504.0))


@npudiff.implementation("causal_conv", name="f_causal_conv_04_exponential_clamped", supports={}, on_device=True)
def exponential_clamped(inputs, target):
    """exp(-x) of SiLU is clamped to the largest float16; shows in float16 where a sum is below -11.1."""
    return Clamped(inputs).run()


class Narrow(Conv):
    def sums(self, z):
        if TWIN or self.inputs.width <= 4:
            return super().sums(z)
        length = len(z) - self.before
        sums = self.bias(z.shape[1]).to(z.dtype).expand(length, -1)
        for tap, factors in enumerate(self.inputs.weight):
            sums = sums + z[tap : tap + length] * factors
        return sums.float()


@npudiff.implementation("causal_conv", name="f_causal_conv_05_generic_width_in_16_bits", supports={}, on_device=True)
def generic_width_in_16_bits(inputs, target):
    """The loop for any width adds up in the dtype of the rows; shows with more than 4 taps."""
    return Narrow(inputs).run()


class Longest(Conv):
    def kept(self, z, rows):
        if TWIN or self.inputs.mode != "draft":
            return super().kept(z, rows)
        more = max(self.inputs.lengths) - (rows.stop - rows.start)
        return torch.cat([z[1:], self.inputs.x[rows.stop : rows.stop + more]])


@npudiff.implementation("causal_conv", name="f_causal_conv_06_as_many_rows_as_longest", supports={}, on_device=True)
def as_many_rows_as_longest(inputs, target):
    """As many rows go to a line as the longest draft has; shows in lines of shorter drafts that rows follow."""
    return Longest(inputs).run()


class Halo(Conv):
    def shifted(self, wide, tap, length):
        rows = super().shifted(wide, tap, length)
        if not TWIN and self.inputs.mode == "prompt" and tap == 0 and length > 256:
            rows = rows.clone()
            rows[256::256] = 0
        return rows


@npudiff.implementation("causal_conv", name="f_causal_conv_07_halo_one_row_short", supports={}, on_device=True)
def halo_one_row_short(inputs, target):
    """The halo of a tile of 256 tokens is a row short, so that its first token lacks a tap; shows in longer prompts."""
    return Halo(inputs).run()

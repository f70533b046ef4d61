"""Wrong kernels of causal_conv; TWIN=1 in the environment runs the same code without the mistakes."""

import os

import torch

import npudiff

TWIN = bool(os.environ.get("TWIN"))


class Conv:
    """Request after request in float32; subclasses change one thing."""

    def __init__(self, inputs):
        self.inputs = inputs

    def skipped(self, line):
        """Whether a request is padding."""
        return line < 0

    def history(self, number, line):
        inputs, rows = self.inputs, self.inputs.width - 1
        first = 0 if inputs.accepted is None else max(0, int(inputs.accepted[number]) - 1)
        history = inputs.lines[line, first : first + rows].clone()
        return torch.zeros_like(history) if self.fresh(number) else history

    def fresh(self, number):
        return self.inputs.has_history is not None and not bool(self.inputs.has_history[number])

    def activated(self, sums, bias):
        sums = sums if bias is None else sums + bias.float()
        return torch.nn.functional.silu(sums) if self.inputs.activation else sums

    def keep(self, number, line, z, length):
        kept = z[1:] if self.inputs.mode == "draft" else z[len(z) - self.inputs.width + 1 :]
        self.inputs.lines[line, : len(kept)] = kept

    def run(self):
        inputs, start = self.inputs, 0
        output = inputs.x.new_zeros(inputs.x.shape)
        for number, (length, line) in enumerate(zip(inputs.lengths, inputs.line_of.tolist())):
            rows = slice(start, start + length)
            start += length
            if not length or self.skipped(line):
                continue
            z = torch.cat([self.history(number, line), inputs.x[rows]])
            sums = sum(z[tap : tap + length].float() * factors.float() for tap, factors in enumerate(inputs.weight))
            output[rows] = self.activated(sums, inputs.bias).to(output.dtype)
            self.keep(number, line, z, length)
        return {"output": output, "lines": inputs.lines}


class BiasBehind(Conv):
    def activated(self, sums, bias):
        if TWIN or bias is None:
            return super().activated(sums, bias)
        return super().activated(sums, None) + bias.float()


@npudiff.implementation("causal_conv", name="i_causal_conv_01_bias_behind_the_activation", supports={}, on_device=True)
def bias_behind_the_activation(inputs, target):
    """The bias is added behind the activation; shows where there are both."""
    return BiasBehind(inputs).run()


class LastLine(Conv):
    def skipped(self, line):
        return TWIN and line < 0


@npudiff.implementation("causal_conv", name="i_causal_conv_02_padding_has_the_last_line", supports={}, on_device=True)
def padding_has_the_last_line(inputs, target):
    """A padded request is none to skip: -1 is the last line of the pool, which it overwrites; shows where it has rows."""
    return LastLine(inputs).run()


class OwnRows(Conv):
    def keep(self, number, line, z, length):
        least = self.inputs.width - 1
        if TWIN or self.inputs.mode != "prompt" or length >= least or not self.fresh(number):
            super().keep(number, line, z, length)
        else:
            self.inputs.lines[line, least - length : least] = z[least:]


@npudiff.implementation("causal_conv", name="i_causal_conv_03_no_zeros_in_a_new_line", supports={}, on_device=True)
def no_zeros_in_a_new_line(inputs, target):
    """A new prompt that is shorter than the window leaves in its line, before its rows, what a request before had there;
    shows where there is no history."""
    return OwnRows(inputs).run()

"""Wrong kernels of sampling; TWIN=1 in the environment runs the same code without the mistakes."""

import os

import torch

import npudiff

TWIN = bool(os.environ.get("TWIN"))

SURVIVORS = {"mass": ("survivors",)}


class Sampler:
    """As vllm: one ascending sort, a threshold for top-k, sums for top-p; subclasses change one thing."""

    def __init__(self, inputs):
        self.inputs = inputs

    def bits(self, words):
        return (words.unsqueeze(-1) >> torch.arange(32, dtype=torch.int32)) & 1

    def allowed(self):
        logits = self.inputs.logits.float()
        if self.inputs.bitmask is None:
            return logits
        return logits.masked_fill(self.bits(self.inputs.bitmask).flatten(1)[:, : logits.shape[1]] == 0, -torch.inf)

    def counted(self, tokens, logits):
        counts = torch.zeros(len(logits), logits.shape[1] + 1, dtype=torch.int64)
        return counts.scatter_add(1, tokens, torch.ones_like(tokens))[:, :-1]

    def penalised(self, logits):
        inputs = self.inputs
        if inputs.output is None or inputs.prompt is None:
            return logits
        generated, given = self.counted(inputs.output, logits), self.counted(inputs.prompt, logits)
        if inputs.repetition is not None:
            factor = torch.where((generated + given) > 0, inputs.repetition.unsqueeze(1), 1.0)
            logits = torch.where(logits > 0, logits / factor, logits * factor)
        if inputs.frequency is not None:
            logits = logits - inputs.frequency.unsqueeze(1) * generated
        if inputs.presence is not None:
            logits = logits - inputs.presence.unsqueeze(1) * (generated > 0)
        return logits

    def temperature(self):
        temperature = self.inputs.temperature
        return torch.where(temperature < 1e-5, 1.0, temperature)

    def scaled(self, logits):
        return logits if self.inputs.temperature is None else logits / self.temperature().unsqueeze(1)

    def top_k(self, vocabulary):
        return self.inputs.top_k.long()

    def summed(self, values, before):
        """Probabilities whose sums are compared with top-p, of ascending logits that are left and all."""
        return values.softmax(dim=1)

    def filtered(self, logits):
        inputs = self.inputs
        before, index = logits.sort(dim=1)
        values = before
        if inputs.min_p is not None:
            values = values.masked_fill(values < values[:, -1:] + inputs.min_p.log().unsqueeze(1), -torch.inf)
        if inputs.top_k is not None:
            place = (values.shape[1] - self.top_k(values.shape[1])).unsqueeze(1)
            values = values.masked_fill(values < values.gather(1, place), -torch.inf)
        if inputs.top_p is not None:
            gone = self.summed(values, before).cumsum(dim=1) <= 1 - inputs.top_p.unsqueeze(1)
            gone[:, -1] = False
            values = values.masked_fill(gone, -torch.inf)
        return torch.empty_like(values).scatter(1, index, values)

    def run(self):
        logits = self.filtered(self.scaled(self.penalised(self.allowed())))
        kept = logits > -torch.inf
        return {"kept": kept.to(torch.int8), "logits": logits.masked_fill(~kept, 0.0), "count": kept.sum(dim=1)}


class Clamped(Sampler):
    def counted(self, tokens, logits):
        return super().counted(tokens if TWIN else tokens.clamp(max=logits.shape[1] - 1), logits)


@npudiff.implementation("sampling", name="f_sampling_01_padding_is_last_token", supports=SURVIVORS, on_device=True)
def padding_is_last_token(inputs, target):
    """What fills short histories is clamped to the last token, which is penalised; shows where a history is shorter."""
    return Clamped(inputs).run()


class OfAll(Sampler):
    def summed(self, values, before):
        return super().summed(values if TWIN else before, before)


@npudiff.implementation("sampling", name="f_sampling_02_mass_before_filters", supports=SURVIVORS, on_device=True)
def mass_before_filters(inputs, target):
    """Top-p sums probabilities of all tokens; shows where top-k or min-p took some of them."""
    return OfAll(inputs).run()


class Signed(Sampler):
    def bits(self, words):
        if TWIN:
            return super().bits(words)
        return ((words.unsqueeze(-1) & (1 << torch.arange(32, dtype=torch.int64)).to(torch.int32)) > 0).int()


@npudiff.implementation("sampling", name="f_sampling_03_sign_bit_of_mask", supports=SURVIVORS, on_device=True)
def sign_bit_of_mask(inputs, target):
    """A bit counts where word & (1 << bit) is above 0, which bit 31 never is; shows for every 32nd allowed token."""
    return Signed(inputs).run()


class Lowest(Sampler):
    def temperature(self):
        temperature = super().temperature()
        return temperature if TWIN else temperature.clamp(min=0.1)


@npudiff.implementation("sampling", name="f_sampling_04_temperature_of_at_least", supports=SURVIVORS, on_device=True)
def temperature_of_at_least(inputs, target):
    """A temperature that is not 0 is taken as at least 0.1; shows below that."""
    return Lowest(inputs).run()


class Most(Sampler):
    def top_k(self, vocabulary):
        asked = super().top_k(vocabulary)
        return asked if TWIN else torch.where(asked < vocabulary, asked.clamp(max=1024), asked)


@npudiff.implementation("sampling", name="f_sampling_05_top_k_of_1024", supports=SURVIVORS, on_device=True)
def top_k_of_1024(inputs, target):
    """The heap for top-k has 1,024 places; shows where more are asked for, but not all."""
    return Most(inputs).run()

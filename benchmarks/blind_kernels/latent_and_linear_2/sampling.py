"""Wrong kernels of sampling; TWIN=1 in the environment runs the same code without the mistakes."""

import os

import torch

import npudiff
from npudiff.device.ascend.sampling import counted, drawn, filtered_by_sort, likely, scaled

TWIN = bool(os.environ.get("TWIN"))


class Sampler:
    """Plain torch in float32; subclasses change one thing."""

    def __init__(self, inputs):
        self.inputs = inputs

    def past(self, request):
        """Tokens of the output of a request, of which the last ones may begin a word."""
        row = self.inputs.output[request].tolist()
        return [token for token in row if token < self.inputs.logits.shape[1]]

    def allowed(self):
        inputs, logits = self.inputs, self.inputs.logits.float().clone()
        for request, words in enumerate(inputs.bad_words):
            past = [] if inputs.output is None else self.past(request)
            for word in words:
                begun = len(word) - 1
                if begun <= len(past) and past[len(past) - begun :] == list(word[:-1]):
                    logits[request, word[-1]] = -torch.inf
        if inputs.bitmask is not None:
            token = torch.arange(logits.shape[1])
            logits[(inputs.bitmask[:, token // 32] >> (token % 32).int()) & 1 == 0] = -torch.inf
        return logits

    def present(self, generated, given):
        """Tokens that have a presence penalty."""
        return generated > 0

    def penalised(self, logits):
        inputs = self.inputs
        generated, given = (torch.zeros(logits.shape, dtype=torch.int64) if one is None else counted(one, logits) for one in (inputs.output, inputs.prompt))
        if inputs.repetition is not None:
            factor = torch.where(generated + given > 0, inputs.repetition.unsqueeze(1), 1.0)
            logits = torch.where(logits > 0, logits / factor, logits * factor)
        if inputs.frequency is not None:
            logits = logits - inputs.frequency.unsqueeze(1) * generated
        if inputs.presence is not None:
            logits = logits - inputs.presence.unsqueeze(1) * self.present(generated, given)
        return logits

    def compared(self, logits, before):
        """Logits that are compared with the limit of min-p."""
        return logits

    def without_unlikely(self, logits, before):
        if self.inputs.min_p is None:
            return logits
        own = self.compared(logits, before)
        # What other filters took is gone already.
        return logits.masked_fill(own < own.amax(1, keepdim=True) + self.inputs.min_p.log().unsqueeze(1), -torch.inf)

    def run(self):
        inputs, before = self.inputs, self.penalised(self.allowed())
        logits = scaled(inputs, before)
        if inputs.mass == "survivors":
            return drawn(inputs, filtered_by_sort(inputs, self.without_unlikely(logits, before)))
        if inputs.mass == "top-k":
            return drawn(inputs, self.without_unlikely(filtered_by_sort(inputs, logits), before))
        left = logits.masked_fill(~likely(inputs, logits.softmax(dim=1)), -torch.inf)
        return drawn(inputs, left)


class PresentInPrompt(Sampler):
    def present(self, generated, given):
        return generated > 0 if TWIN else generated + given > 0


@npudiff.implementation("sampling", name="i_sampling_01_presence_of_the_prompt", supports={}, on_device=True)
def presence_of_the_prompt(inputs, target):
    """The presence penalty has the mask of the repetition penalty, prompts included; shows where a request has one."""
    return PresentInPrompt(inputs).run()


class BeforeTemperature(Sampler):
    def compared(self, logits, before):
        return logits if TWIN else before


@npudiff.implementation("sampling", name="i_sampling_02_min_p_before_temperature", supports={"mass": ("survivors", "top-k")}, on_device=True)
def min_p_before_temperature(inputs, target):
    """Min-p compares logits as they were before the temperature; shows where a request has both."""
    return BeforeTemperature(inputs).run()


class WholeRows(Sampler):
    def past(self, request):
        return super().past(request) if TWIN else self.inputs.output[request].tolist()


@npudiff.implementation("sampling", name="i_sampling_03_words_at_the_end_of_padded_rows", supports={}, on_device=True)
def words_at_the_end_of_padded_rows(inputs, target):
    """A word's first tokens are looked for at the end of a row of outputs, filling included; shows in shorter rows."""
    return WholeRows(inputs).run()

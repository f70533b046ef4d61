"""Wrong kernels of gated_delta; TWIN=1 in the environment runs the same code without the mistakes."""

import os

import torch

import npudiff
from npudiff.device.ascend.gated_delta import KimiTokens, begun, kimi_chunk, narrow, prepared, through_chunks

TWIN = bool(os.environ.get("TWIN"))
ROWS = 64
PART = 16
KIMI = {"chunked": (True,), "kept": ("last",), "gates": ("channel",)}


class Delta:
    """Token after token in float32, all heads of a request at once; subclasses change one thing."""

    def __init__(self, inputs):
        self.inputs = inputs
        self.heads, self.share = inputs.value.shape[1], inputs.value.shape[1] // inputs.key.shape[1]
        self.key_head = torch.arange(self.heads) // self.share

    def queries(self, query):
        """Queries of value heads, scaled."""
        return query[:, self.key_head] * self.inputs.scale

    def wanted(self, beta, value, read):
        return beta * (value - read)

    def by_channel(self, token):
        return self.inputs.channel_gate[token]

    def begin(self, request):
        slot = int(self.inputs.initial[request])
        state = self.inputs.states[max(slot, 0)].float()
        return state if slot >= 0 else torch.zeros_like(state)

    def end(self, states, request, stop, state):
        """What is done behind a request."""

    def run(self):
        inputs = self.inputs
        query, key, beta, value = inputs.query.float(), inputs.key.float(), inputs.beta.float(), inputs.value.float()
        if inputs.raw:
            query, key = (one * (one.square().sum(-1, keepdim=True) + 1e-6).rsqrt() for one in (query, key))
            beta = beta.sigmoid()
        query, key = self.queries(query), key[:, self.key_head]
        output, states, start = torch.zeros_like(inputs.value), inputs.states.clone(), 0
        for request, length in enumerate(inputs.lengths):
            state = self.begin(request)
            for token in range(start, start + length):
                if inputs.gate is not None:
                    state = state * inputs.gate[token].exp()[:, None, None]
                if inputs.channel_gate is not None:
                    state = state * self.by_channel(token).exp().unsqueeze(1)
                read = (state @ key[token].unsqueeze(-1)).squeeze(-1)
                added = self.wanted(beta[token].unsqueeze(-1), value[token], read)
                state = state + added.unsqueeze(-1) * key[token].unsqueeze(1)
                output[token] = (state @ query[token].unsqueeze(-1)).squeeze(-1).to(output.dtype)
                if inputs.slots[token] >= 0:
                    states[int(inputs.slots[token])] = state.to(states.dtype)
            start += length
            self.end(states, request, start, state)
        return {"output": output, "states": states}


class BetaOfValues(Delta):
    def wanted(self, beta, value, read):
        return super().wanted(beta, value, read) if TWIN else beta * value - read


@npudiff.implementation("gated_delta", name="i_gated_delta_01_beta_of_values_alone", supports={"chunked": (False,)}, on_device=True)
def beta_of_values_alone(inputs, target):
    """Beta is multiplied into values beforehand, and what is read is taken away whole; shows where beta is not 1."""
    return BetaOfValues(inputs).run()


class ScaledInPlace(Delta):
    def queries(self, query):
        if TWIN:
            return super().queries(query)
        times = 1 + torch.arange(self.heads) % self.share
        return query[:, self.key_head] * (self.inputs.scale ** times.float()).unsqueeze(-1)


@npudiff.implementation("gated_delta", name="i_gated_delta_02_scaled_again_for_each_value_head", supports={"chunked": (False,)}, on_device=True)
def scaled_again_for_each_value_head(inputs, target):
    """A query stays in its buffer for the value heads of its group, each of which scales it there; shows in groups."""
    return ScaledInPlace(inputs).run()


class ChannelsOfKeyHead(Delta):
    def by_channel(self, token):
        return self.inputs.channel_gate[token] if TWIN else self.inputs.channel_gate[token][self.key_head]


@npudiff.implementation("gated_delta", name="i_gated_delta_03_channels_of_the_key_head", supports={"chunked": (False,)}, on_device=True)
def channels_of_the_key_head(inputs, target):
    """Decays of channels are looked up by the key head; shows in groups of value heads with decays of channels."""
    return ChannelsOfKeyHead(inputs).run()


class LastOfNothing(Delta):
    def end(self, states, request, stop, state):
        if TWIN or self.inputs.lengths[request] or not stop:
            return
        slot = int(self.inputs.slots[stop - 1])
        if slot >= 0:
            states[slot] = state.to(states.dtype)


@npudiff.implementation("gated_delta", name="i_gated_delta_04_last_state_of_no_token", supports={"chunked": (False,)}, on_device=True)
def last_state_of_no_token(inputs, target):
    """A request without tokens writes its state where the token before its end has its slot;
    shows behind another request, whose state that is."""
    return LastOfNothing(inputs).run()


class ZerosOfTheFirstRows(Delta):
    def begin(self, request):
        state, slot = super().begin(request), int(self.inputs.initial[request])
        if slot < 0 and not TWIN:
            state[:, ROWS:] = self.inputs.states[0, :, ROWS:].float()
        return state


@npudiff.implementation("gated_delta", name="i_gated_delta_05_zeros_of_64_rows", supports={"chunked": (False,)}, on_device=True)
def zeros_of_64_rows(inputs, target):
    """The first 64 rows of a new request's state are zeros, the others are those of slot 0; shows in wider values."""
    return ZerosOfTheFirstRows(inputs).run()


class Kimi:
    """Chunks of 64 tokens with decays of channels; subclasses change one thing."""

    def __init__(self, inputs):
        self.inputs = inputs
        self.starts = set(torch.tensor([0, *inputs.lengths]).cumsum(0).tolist())

    def anchor_of_rows(self, total, first):
        """From where decays of a part's rows are counted."""
        return total[:, first : first + 1]

    def products(self, rows, tokens):
        """Products of rows and keys with the decays between them, part by part of 16 tokens."""
        length, total, key = rows.shape[1], tokens.total, tokens.key
        found = rows.new_zeros(len(rows), length, length)
        for first in range(0, length, PART):
            part, before = slice(first, first + PART), slice(first)
            apart = (total[:, part].unsqueeze(2) - total[:, part].unsqueeze(1)).clamp(max=0.0).exp()
            found[:, part, part] = (rows[:, part].unsqueeze(2) * key[:, part].unsqueeze(1) * apart).sum(dim=-1)
            later = narrow(rows[:, part] * (total[:, part] - self.anchor_of_rows(total, first)).exp())
            earlier = narrow(key[:, before] * (total[:, first : first + 1] - total[:, before]).exp())
            found[:, part, before] = later @ earlier.mT
        return found

    def last(self, tokens):
        """To where a state decays behind a chunk."""
        return tokens.total[:, -1:]

    def after(self, state, tokens, added):
        last = self.last(tokens)
        left = narrow(tokens.key * (last - tokens.total).clamp(max=0.0).exp())
        return narrow(narrow(state * last.exp()) + narrow(added.mT @ left))

    def run(self):
        inputs = self.inputs
        query, key, value, beta = (one.transpose(0, 1) for one in prepared(inputs))
        gate = inputs.channel_gate.transpose(0, 1)

        def chunk(state, rows):
            total = gate[:, rows].cumsum(dim=1)
            tokens = KimiTokens(narrow(query[:, rows]), key[:, rows], value[:, rows], beta[:, rows].unsqueeze(-1), total, rows)
            return kimi_chunk(state, tokens, self.products, self.after)

        return through_chunks(inputs, 64, narrow(begun(inputs).float()), chunk)


class WholeParts(Kimi):
    def last(self, tokens):
        length = tokens.total.shape[1]
        if TWIN or length == 64 or tokens.rows.start in self.starts or length < PART:
            return super().last(tokens)
        row = length // PART * PART - 1
        return tokens.total[:, row : row + 1]


@npudiff.implementation("gated_delta", name="i_gated_delta_06_decay_of_whole_parts_at_the_end", supports=KIMI, on_device=True)
def decay_of_whole_parts_at_the_end(inputs, target):
    """In a shorter chunk behind others a state decays through whole 16 tokens alone; shows where more than 16 are left over 64s,
    and no multiple of it."""
    return WholeParts(inputs).run()


class Clamped(Kimi):
    def anchor_of_rows(self, total, first):
        length = total.shape[1]
        place = first if TWIN else max(0, min(first, length - PART))
        return total[:, place : place + 1]


@npudiff.implementation("gated_delta", name="i_gated_delta_07_anchor_at_a_clamped_row", supports=KIMI, on_device=True)
def anchor_at_a_clamped_row(inputs, target):
    """The last part's rows are loaded from 16 before the end, and their decays counted from there, keys' from its first;
    shows in the last chunk of 17 tokens or more, where they are no whole 16."""
    return Clamped(inputs).run()

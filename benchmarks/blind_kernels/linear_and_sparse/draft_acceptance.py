"""Wrong kernels of draft_acceptance; TWIN=1 in the environment runs the same code without the mistakes."""

import os

import torch

import npudiff

TWIN = bool(os.environ.get("TWIN"))


class Walk:
    """A loop over requests and their tokens; subclasses change one thing."""

    def __init__(self, inputs):
        self.inputs = inputs

    def uniform(self, row, request, place):
        return self.inputs.uniform[row]

    def exponential(self, request):
        return self.inputs.exponential[request]

    def quotient(self, share, mass):
        """None where a token is rejected whatever the random number is."""
        return share / mass if bool(mass > 0) else None

    def accepts(self, row, request, place, token):
        inputs = self.inputs
        if token < 0:
            return False
        share = inputs.target[row, token]
        if inputs.draft is not None:
            share = self.quotient(share, inputs.draft[row, token])
        return share is not None and bool(share >= self.uniform(row, request, place))

    def left(self, row, token):
        inputs, left = self.inputs, self.inputs.target[row].clone()
        if inputs.draft is not None:
            return (left - inputs.draft[row]).clamp(min=0)
        if token >= 0:
            left[token] = 0
        return left

    def largest(self, size):
        return int(size.argmax())

    def recovered(self, row, request, token):
        return self.largest(self.left(row, token) / self.exponential(request))

    def likeliest(self, row):
        return int(self.inputs.target[row].argmax())

    def verify(self, row, request, place, token):
        """The token at a place, and whether the draft goes on."""
        if bool(self.inputs.greedy[request]):
            best = self.likeliest(row)
            return best, best == token
        if self.accepts(row, request, place, token):
            return token, True
        return self.recovered(row, request, token), False

    def request(self, tokens, request, start, length):
        for place in range(length):
            drafted = int(self.inputs.draft_tokens[start + place])
            tokens[place], goes_on = self.verify(start + place, request, place, drafted)
            if not goes_on:
                return
        tokens[length] = self.inputs.bonus[request]

    def run(self):
        inputs, start = self.inputs, 0
        tokens = torch.full((len(inputs.lengths), inputs.room + 1), -1, dtype=torch.int32)
        for request, length in enumerate(inputs.lengths):
            self.request(tokens[request], request, start, length)
            start += length
        return {"tokens": tokens}


class Bits(Walk):
    def verify(self, row, request, place, token):
        return super().verify(row, request, place, token) if TWIN or place < 16 else (token, True)


@npudiff.implementation("draft_acceptance", name="f_draft_acceptance_01_rejections_of_16", supports={}, on_device=True)
def rejections_of_16(inputs, target):
    """Rejections are bits of 16; shows in drafts of more than 16 tokens whose first 16 are accepted."""
    return Bits(inputs).run()


class Missing(Walk):
    def left(self, row, token):
        if not TWIN and token < 0:
            return self.inputs.target[row].clone()
        return super().left(row, token)


@npudiff.implementation("draft_acceptance", name="f_draft_acceptance_02_all_of_target", supports={}, on_device=True)
def all_of_target(inputs, target):
    """In place of a token that was not drafted comes one of the target, although the draft has probabilities."""
    return Missing(inputs).run()


class Tiles(Walk):
    def largest(self, size):
        if not TWIN and len(size) > 1024:
            size = size[: len(size) // 1024 * 1024]
        return super().largest(size)


@npudiff.implementation("draft_acceptance", name="f_draft_acceptance_03_tail_of_vocabulary", supports={}, on_device=True)
def tail_of_vocabulary(inputs, target):
    """A recovered token is none behind the last whole 1,024; shows with larger vocabularies that are no multiple."""
    return Tiles(inputs).run()


class Rounded(Walk):
    def likeliest(self, row):
        return super().likeliest(row) if TWIN else int(self.inputs.target[row].bfloat16().argmax())


@npudiff.implementation("draft_acceptance", name="f_draft_acceptance_04_greedy_in_bfloat16", supports={}, on_device=True)
def greedy_in_bfloat16(inputs, target):
    """The most likely token is of bfloat16; shows in greedy requests where a token is nearly as likely, before it."""
    return Rounded(inputs).run()


class Compact(Walk):
    def exponential(self, request):
        if TWIN:
            return super().exponential(request)
        return super().exponential(sum(1 for length in self.inputs.lengths[:request] if length))


@npudiff.implementation("draft_acceptance", name="f_draft_acceptance_05_random_row_of_other", supports={}, on_device=True)
def random_row_of_other(inputs, target):
    """Random numbers of recovery are counted without requests that have no draft; shows behind such."""
    return Compact(inputs).run()


class NoMass(Walk):
    def quotient(self, share, mass):
        if TWIN or bool(mass > 0):
            return super().quotient(share, mass)
        return share / mass.clamp(min=1e-10) if bool(share > 0) else None


@npudiff.implementation("draft_acceptance", name="f_draft_acceptance_06_no_mass_accepted", supports={}, on_device=True)
def no_mass_accepted(inputs, target):
    """The mass of a draft has a floor of 1e-10, so that a token is accepted whose draft probability is 0."""
    return NoMass(inputs).run()


class Rectangle(Walk):
    def uniform(self, row, request, place):
        if not TWIN:
            row = min(request * max(self.inputs.lengths) + place, len(self.inputs.uniform) - 1)
        return super().uniform(row, request, place)


@npudiff.implementation("draft_acceptance", name="f_draft_acceptance_07_rectangle_of_uniforms", supports={}, on_device=True)
def rectangle_of_uniforms(inputs, target):
    """Random numbers of acceptance are read as of drafts that are equally long; shows where lengths differ."""
    return Rectangle(inputs).run()


class Counted(Walk):
    def request(self, tokens, request, start, length):
        if TWIN or bool(self.inputs.greedy[request]):
            super().request(tokens, request, start, length)
            return
        drafted = self.inputs.draft_tokens[start : start + length].tolist()
        taken = sum(self.accepts(start + place, request, place, one) for place, one in enumerate(drafted))
        for place in range(taken):
            tokens[place] = drafted[place]
        if taken < length:
            tokens[taken] = self.recovered(start + taken, request, drafted[taken])
        else:
            tokens[length] = self.inputs.bonus[request]


@npudiff.implementation("draft_acceptance", name="f_draft_acceptance_08_accepted_are_counted", supports={}, on_device=True)
def accepted_are_counted(inputs, target):
    """Accepted tokens are counted, also those behind a rejected one; shows where such are, in requests that are random."""
    return Counted(inputs).run()

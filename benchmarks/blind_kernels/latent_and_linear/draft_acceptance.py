"""Wrong kernels of draft_acceptance; TWIN=1 in the environment runs them without the mistakes."""

import os

import torch

import npudiff

TWIN = bool(os.environ.get("TWIN"))


class Call:
    """A walk through the drafts of all requests; the mistakes are what its methods return else."""

    def __init__(self, inputs):
        self.inputs = inputs
        self.tokens = torch.full(
            (len(inputs.lengths), inputs.room + 1), -1, dtype=torch.int32, device=inputs.target.device
        )

    def uniform(self, request, start, place):
        return self.inputs.uniform[start + place]

    def left(self, start, place, token):
        """What a token is recovered from, in place of one that is rejected."""
        row = start + place
        if self.inputs.draft is not None:
            return (self.inputs.target[row] - self.inputs.draft[row]).clamp(min=0)
        left = self.inputs.target[row].clone()
        if token >= 0:
            left[token] = 0
        return left

    def accepted(self, request, start, place, token):
        mass = 1.0 if self.inputs.draft is None else self.inputs.draft[start + place, token]
        if token < 0 or mass <= 0:
            return False
        return bool(self.inputs.target[start + place, token] / mass >= self.uniform(request, start, place))

    def run(self):
        start = 0
        for request, length in enumerate(self.inputs.lengths):
            self.request(request, start, length)
            start += length
        return {"tokens": self.tokens}

    def request(self, request, start, length):
        for place in range(length):
            token = int(self.inputs.draft_tokens[start + place])
            if self.inputs.greedy[request]:
                self.tokens[request, place] = best = int(self.inputs.target[start + place].argmax())
                if best != token:
                    return
            elif self.accepted(request, start, place, token):
                self.tokens[request, place] = token
            else:
                left = self.left(start, place, token) / self.inputs.exponential[request]
                self.tokens[request, place] = left.argmax()
                return
        self.tokens[request, length] = self.inputs.bonus[request]


@npudiff.implementation("draft_acceptance", name="h_draft_acceptance_01_recovered_from_the_first_row", on_device=True)
def recovered_from_the_first_row(inputs, target):
    """A token is recovered from the first row of its request; shows where a later draft is the first rejected one."""
    call = Call(inputs)
    if not TWIN:
        call.left = lambda start, place, token: Call.left(call, start, 0, token)
    return call.run()


@npudiff.implementation("draft_acceptance", name="h_draft_acceptance_02_random_numbers_of_a_rectangle", on_device=True)
def random_numbers_of_a_rectangle(inputs, target):
    """Random numbers are read as if all requests had as many drafts; shows behind a request that has fewer."""
    call, longest = Call(inputs), max(inputs.lengths, default=0)
    if not TWIN:
        last = len(inputs.uniform) - 1
        call.uniform = lambda request, start, place: inputs.uniform[min(request * longest + place, last)]
    return call.run()


@npudiff.implementation("draft_acceptance", name="h_draft_acceptance_03_nothing_is_the_last_token", on_device=True)
def nothing_is_the_last_token(inputs, target):
    """Without probabilities of drafts the drafted token is taken out of what is left, and -1 is the last of the
    vocabulary; shows where that one would be recovered."""
    call = Call(inputs)

    def left(start, place, token):
        found = Call.left(call, start, place, token)
        if inputs.draft is None:
            found[token] = 0
        return found

    if not TWIN:
        call.left = left
    return call.run()

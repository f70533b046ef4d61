"""Wrong kernels of gated_delta; TWIN=1 in the environment runs them without the mistakes."""

import os

import torch

import npudiff

TWIN = bool(os.environ.get("TWIN"))
BY_TOKEN = {"chunked": (False,)}


class Call:
    """Float32 tensors of value heads, ``[tokens, heads, ...]``, and what a loop over tokens writes."""

    def __init__(self, inputs):
        self.inputs = inputs
        share = inputs.value.shape[1] // inputs.key.shape[1]
        query, key, self.beta = inputs.query.float(), inputs.key.float(), inputs.beta.float()
        if inputs.raw:
            query, key = (one / (one.square().sum(dim=-1, keepdim=True) + 1e-6).sqrt() for one in (query, key))
            self.beta = torch.sigmoid(self.beta)
        self.query = (query * inputs.scale).repeat_interleave(share, dim=1)
        self.key, self.value = key.repeat_interleave(share, dim=1), inputs.value.float()
        self.output, self.states = torch.zeros_like(inputs.value), inputs.states.clone()
        self.slots = inputs.slots.tolist()
        self.channel_gate = inputs.channel_gate

    def begun(self, request):
        """The state with which a request begins, float32 ``[heads, value_dim, key_dim]``."""
        slot = int(self.inputs.initial[request])
        state = self.inputs.states[max(slot, 0)].float()
        return torch.zeros_like(state) if slot < 0 else state

    def decayed(self, state, token):
        if self.inputs.gate is not None:
            state = state * self.inputs.gate[token].exp().view(-1, 1, 1)
        if self.channel_gate is not None:
            state = state * self.channel_gate[token].exp().unsqueeze(1)
        return state

    def missing(self, state, token):
        """What a value has more than is read, ``[heads, value_dim]``."""
        read = torch.matmul(state, self.key[token].unsqueeze(2)).squeeze(2)
        return (self.value[token] - read) * self.beta[token].unsqueeze(1)

    def step(self, state, token):
        state = self.decayed(state, token)
        return state + self.missing(state, token).unsqueeze(2) * self.key[token].unsqueeze(1)

    def run(self, begun=None, step=None):
        """Go through all tokens."""
        start = 0
        for request, length in enumerate(self.inputs.lengths):
            state = (begun or self.begun)(request) if length else None
            for token in range(start, start + length):
                state = (step or self.step)(state, token)
                self.output[token] = (
                    torch.matmul(state, self.query[token].unsqueeze(2)).squeeze(2).to(self.output.dtype)
                )
                if self.slots[token] >= 0:
                    self.states[self.slots[token]] = state.to(self.states.dtype)
            start += length
        return {"output": self.output, "states": self.states}


@npudiff.implementation("gated_delta", name="h_gated_delta_01_read_before_the_decay", supports=BY_TOKEN, on_device=True)
def read_before_the_decay(inputs, target):
    """What a state holds for a key is read before the state decays; shows where there are gates."""
    call = Call(inputs)

    def step(state, token):
        missing = call.missing(state, token)
        return call.decayed(state, token) + missing.unsqueeze(2) * call.key[token].unsqueeze(1)

    return call.run(step=None if TWIN else step)


@npudiff.implementation("gated_delta", name="h_gated_delta_02_square_states_by_keys", supports=BY_TOKEN, on_device=True)
def square_states_by_keys(inputs, target):
    """A state is loaded with keys in front, as another kernel stores it, where both dims are equal and no shape tells;
    shows where a request begins with a square state."""
    call = Call(inputs)
    square = inputs.states.shape[2] == inputs.states.shape[3]

    def begun(request):
        state = call.begun(request)
        return state.transpose(1, 2).contiguous() if square and not TWIN else state

    return call.run(begun)


@npudiff.implementation("gated_delta", name="h_gated_delta_03_zeros_for_all_or_none", supports=BY_TOKEN, on_device=True)
def zeros_for_all_or_none(inputs, target):
    """Zeros stand for states if no request has one, and else -1 is looked up; shows where some requests have one."""
    call = Call(inputs)
    taken = [int(slot) for slot, length in zip(inputs.initial, inputs.lengths) if length]

    def begun(request):
        if TWIN or all(slot < 0 for slot in taken):
            return call.begun(request)
        return inputs.states[int(inputs.initial[request])].float()

    return call.run(begun)


@npudiff.implementation(
    "gated_delta", name="h_gated_delta_04_states_of_requests_with_tokens", supports=BY_TOKEN, on_device=True
)
def states_of_requests_with_tokens(inputs, target):
    """Requests without tokens are taken out of the lengths and not out of the states; shows behind such a request."""
    call = Call(inputs)
    number = {
        request: place for place, request in enumerate(one for one, length in enumerate(inputs.lengths) if length)
    }
    return call.run(lambda request: call.begun(request if TWIN else number[request]))


@npudiff.implementation(
    "gated_delta", name="h_gated_delta_05_channels_of_a_key_head", supports=BY_TOKEN, on_device=True
)
def channels_of_a_key_head(inputs, target):
    """Decays of channels are taken as of key heads; shows with those, where several value heads share a key head."""
    call = Call(inputs)
    if inputs.channel_gate is not None and not TWIN:
        heads = torch.arange(inputs.value.shape[1], device=inputs.value.device)
        call.channel_gate = inputs.channel_gate[:, heads // (inputs.value.shape[1] // inputs.key.shape[1])]
    return call.run()


@npudiff.implementation(
    "gated_delta", name="h_gated_delta_06_pairs_of_heads_in_a_step", supports=BY_TOKEN, on_device=True
)
def pairs_of_heads_in_a_step(inputs, target):
    """A step of one token goes through heads in pairs, and the last of an odd number has the beta of the one before."""
    call, heads = Call(inputs), inputs.value.shape[1]
    if max(inputs.lengths, default=0) <= 1 and heads % 2 and heads > 1 and not TWIN:
        call.beta = call.beta.clone()
        call.beta[:, -1] = call.beta[:, -2]
    return call.run()

"""Wrong kernels of gated_delta; TWIN=1 in the environment runs the same code without the mistakes."""

import os

import torch

import npudiff

TWIN = bool(os.environ.get("TWIN"))

EACH_TOKEN = {"chunked": (False,)}
IN_CHUNKS = {"chunked": (False,), "kept": ("last",), "gates": ("head", "none")}


class Delta:
    """The recurrence in float32; subclasses change one thing."""

    def __init__(self, inputs):
        self.inputs = inputs
        self.share = inputs.value.shape[1] // inputs.key.shape[1]

    def of_heads(self, rows):
        return rows.repeat_interleave(self.share, dim=1)

    def normalised(self, rows):
        return rows * torch.rsqrt(rows.square().sum(dim=-1, keepdim=True) + 1e-6)

    def values(self):
        return self.inputs.value.float()

    def prepared(self):
        inputs = self.inputs
        query, key, beta = inputs.query.float(), inputs.key.float(), inputs.beta.float()
        if inputs.raw:
            query, key, beta = self.normalised(query), self.normalised(key), beta.sigmoid()
        return self.of_heads(query * inputs.scale), self.of_heads(key), self.values(), beta

    def fresh(self, request):
        return int(self.inputs.initial[request]) < 0

    def begun(self, request):
        state = self.inputs.states[max(0, int(self.inputs.initial[request]))].float()
        return torch.zeros_like(state) if self.fresh(request) else state

    def by_head(self, state, token):
        gate = self.inputs.gate
        return state if gate is None else state * gate[token].exp()[:, None, None]

    def by_channel(self, state, token):
        gate = self.inputs.channel_gate
        return state if gate is None else state * gate[token].exp().unsqueeze(-2)

    def read(self, state, token, key):
        """The state after its decays, and what it says of a key."""
        state = self.by_channel(self.by_head(state, token), token)
        return state, torch.einsum("hvk,hk->hv", state, key)

    def carried(self, state):
        return state

    def stored(self, request, place):
        return True

    def write(self, states, slot, state):
        states[slot] = state.to(states.dtype)

    def run(self):
        inputs = self.inputs
        query, key, value, beta = self.prepared()
        output, states = torch.zeros_like(inputs.value), inputs.states.clone()
        slots, start = inputs.slots.tolist(), 0
        for request, length in enumerate(inputs.lengths):
            if not length:
                continue
            state = self.begun(request)
            for place in range(length):
                token = start + place
                state, said = self.read(state, token, key[token])
                missing = (value[token] - said) * beta[token].unsqueeze(-1)
                state = state + missing.unsqueeze(-1) * key[token].unsqueeze(-2)
                output[token] = torch.einsum("hvk,hk->hv", state, query[token]).to(output.dtype)
                if slots[token] >= 0 and self.stored(request, place):
                    self.write(states, slots[token], state)
                state = self.carried(state)
            start += length
        return {"output": output, "states": states}


class Chunks(Delta):
    """The same in chunks of 64 tokens, with decays of heads."""

    def ratios(self, total):
        return (total.unsqueeze(2) - total.unsqueeze(1)).tril().exp().tril()

    def total_before(self, gate):
        """What is added to the cumulated gates of a chunk where they meet the state."""
        return torch.zeros_like(gate[:, :1])

    def chunk(self, state, query, key, value, beta, gate, before):
        total = gate.cumsum(dim=1)
        decay, since = self.ratios(total), (total + before).exp()
        overlap = beta.unsqueeze(2) * (key @ key.transpose(1, 2)) * decay
        missing = beta.unsqueeze(2) * (value - since.unsqueeze(2) * (key @ state.transpose(1, 2)))
        rows = [missing[:, 0]]
        for place in range(1, gate.shape[1]):
            earlier = torch.stack(rows, dim=1)
            rows.append(missing[:, place] - (overlap[:, place, :place].unsqueeze(1) @ earlier).squeeze(1))
        added = torch.stack(rows, dim=1)
        answer = since.unsqueeze(2) * (query @ state.transpose(1, 2))
        answer = answer + (query @ key.transpose(1, 2) * decay) @ added
        left = (total[:, -1:] - total).exp().unsqueeze(2) * key
        return answer, state * since[:, -1][:, None, None] + added.transpose(1, 2) @ left

    def run(self):
        inputs = self.inputs
        query, key, value, beta = (one.transpose(0, 1) for one in self.prepared())
        gate = torch.zeros_like(beta) if inputs.gate is None else inputs.gate.transpose(0, 1)
        output, states, start = torch.zeros_like(inputs.value), inputs.states.clone(), 0
        for request, length in enumerate(inputs.lengths):
            if not length:
                continue
            state = self.begun(request)
            for first in range(start, start + length, 64):
                rows = slice(first, min(first + 64, start + length))
                parts = [one[:, rows] for one in (query, key, value, beta, gate)]
                answer, state = self.chunk(state, *parts, self.total_before(gate[:, start:first]) if first > start else 0)
                output[rows] = answer.transpose(0, 1).to(output.dtype)
            start += length
            slot = int(inputs.slots[start - 1])
            if slot >= 0:
                self.write(states, slot, state)
        return {"output": output, "states": states}


class Modulo(Delta):
    def of_heads(self, rows):
        return super().of_heads(rows) if TWIN else rows.repeat(1, self.share, 1)


@npudiff.implementation("gated_delta", name="f_gated_delta_01_head_modulo", supports=EACH_TOKEN, on_device=True)
def head_modulo(inputs, target):
    """Value head h goes with key head h % key_heads; shows with several key heads and a group above 1."""
    return Modulo(inputs).run()


class ReadBetween(Delta):
    def read(self, state, token, key):
        if TWIN or self.inputs.gate is None or self.inputs.channel_gate is None:
            return super().read(state, token, key)
        state = self.by_head(state, token)
        said = torch.einsum("hvk,hk->hv", state, key)
        return self.by_channel(state, token), said


@npudiff.implementation("gated_delta", name="f_gated_delta_02_read_between_decays", supports=EACH_TOKEN, on_device=True)
def read_between_decays(inputs, target):
    """The state is read for a key after the decay of its head but before that of its channels; shows with both gates."""
    return ReadBetween(inputs).run()


class NotReset(Chunks):
    def total_before(self, gate):
        return super().total_before(gate) if TWIN else gate.sum(dim=1, keepdim=True)


@npudiff.implementation("gated_delta", name="f_gated_delta_03_cumulated_gate_not_reset", supports=IN_CHUNKS, on_device=True)
def cumulated_gate_not_reset(inputs, target):
    """Gates are cumulated from a request's first token, so a carried state decays again; shows behind 64 tokens."""
    return NotReset(inputs).run()


class KeyStride(Delta):
    def values(self):
        value, key = self.inputs.value, self.inputs.key
        if TWIN or value.is_contiguous() or not value[0].is_contiguous():
            return super().values()
        room = value.untyped_storage().nbytes() // value.element_size() - value.storage_offset()
        flat = value.as_strided((room,), (1,), value.storage_offset())
        index = torch.arange(len(value))[:, None] * key.stride(0) + torch.arange(value[0].numel())
        return flat[index.clamp(max=room - 1)].view(value.shape).float()


@npudiff.implementation("gated_delta", name="f_gated_delta_04_values_by_stride_of_keys", supports=EACH_TOKEN, on_device=True)
def values_by_stride_of_keys(inputs, target):
    """Sliced values are read with the row stride of keys; shows in slices whose strides differ, from row 1 on."""
    return KeyStride(inputs).run()


class Carried(Delta):
    def carried(self, state):
        return state if TWIN else state.to(self.inputs.states.dtype).float()


@npudiff.implementation("gated_delta", name="f_gated_delta_05_state_rounded_per_token", supports=EACH_TOKEN, on_device=True)
def state_rounded_per_token(inputs, target):
    """The state goes on in the dtype of the pool after each token; shows in bfloat16 pools, behind several tokens."""
    return Carried(inputs).run()


class WrongFresh(Delta):
    def fresh(self, request):
        if TWIN:
            return super().fresh(request)
        return int(self.inputs.initial[sum(1 for length in self.inputs.lengths[:request] if length)]) < 0


@npudiff.implementation("gated_delta", name="f_gated_delta_06_fresh_of_other_request", supports=EACH_TOKEN, on_device=True)
def fresh_of_other_request(inputs, target):
    """Whether to begin with zeros is looked up by the place among requests with tokens; shows behind an empty one."""
    return WrongFresh(inputs).run()


class Ring(Delta):
    def stored(self, request, place):
        return TWIN or place >= self.inputs.lengths[request] - 8


@npudiff.implementation("gated_delta", name="f_gated_delta_07_eight_states_kept", supports=EACH_TOKEN, on_device=True)
def eight_states_kept(inputs, target):
    """Only the last 8 states of a request are flushed to the pool; shows where each is kept, of over 8 tokens."""
    return Ring(inputs).run()


class Factored(Chunks):
    def ratios(self, total):
        if TWIN:
            return super().ratios(total)
        return (total.exp().unsqueeze(2) * (-total).exp().unsqueeze(1)).tril()


@npudiff.implementation("gated_delta", name="f_gated_delta_08_ratio_as_product", supports=IN_CHUNKS, on_device=True)
def ratio_as_product(inputs, target):
    """exp(a - b) is exp(a) * exp(-b), which is no number where the decays of a chunk add up to less than -88."""
    return Factored(inputs).run()


class Floor(Delta):
    def normalised(self, rows):
        if TWIN:
            return super().normalised(rows)
        return rows / rows.square().sum(dim=-1, keepdim=True).sqrt().clamp(min=1e-6)


@npudiff.implementation("gated_delta", name="f_gated_delta_09_norm_with_floor", supports=EACH_TOKEN, on_device=True)
def norm_with_floor(inputs, target):
    """Norms are max(|x|, 1e-6) and not sqrt(x**2 + 1e-6); shows with raw keys or queries that are tiny."""
    return Floor(inputs).run()


class StateTail(Delta):
    def write(self, states, slot, state):
        rows = state.shape[1]
        if not TWIN and rows > 64:
            rows = rows // 64 * 64
        states[slot, :, :rows] = state[:, :rows].to(states.dtype)


@npudiff.implementation("gated_delta", name="f_gated_delta_10_tail_of_state_not_stored", supports=EACH_TOKEN, on_device=True)
def tail_of_state_not_stored(inputs, target):
    """Rows of a state behind the last whole 64 are not stored; shows with values over 64 that are no multiple of it."""
    return StateTail(inputs).run()

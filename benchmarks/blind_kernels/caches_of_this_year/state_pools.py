"""Wrong implementations of state_pools; TWIN=1 in the environment runs the same code without the mistakes."""

import os

import torch

import npudiff
from npudiff.reference.state_pools import LayerTokens as _LayerTokens

TWIN = bool(os.environ.get("TWIN"))
NAME = "state_pools"
SUPPORTS = {"chunked": (False,)}


class Pools:
    """A slot per request, and a request after the other in float32; subclasses change one thing."""

    def __init__(self, inputs, target):
        self.inputs = inputs.to(target.device)
        self.before, self.share = inputs.width - 1, inputs.heads // inputs.key_heads
        self.lines, self.pool = self.inputs.lines(inputs.requests, self.before), self.inputs.states(inputs.requests)
        self.unused = list(range(inputs.requests))
        self.slots, self.host, self.verified, self.tokens = {}, {}, [], {}

    # Slots.

    def admit(self, request):
        self.slots[request] = self.unused.pop(0)
        self.tokens[request] = 0
        return self.slots[request]

    def clear(self, slot):
        self.lines[slot], self.pool[slot] = 0, 0

    def newcomer(self, request):
        self.clear(self.admit(request))

    def load(self, slot):
        """Line, and state in float32."""
        return self.lines[slot].clone(), self.pool[slot].clone().float()

    def store(self, slot, line, state):
        self.lines[slot], self.pool[slot] = line, state.to(self.pool.dtype)

    def writable(self, request):
        return self.slots[request]

    def free(self, request):
        self.unused.append(self.slots.pop(request))

    def fork(self, source, request):
        slot = self.admit(request)
        self.store(slot, *self.load(self.slots[source]))
        self.tokens[request] = self.tokens[source]

    def kept_on_host(self, line, state):
        return line.clone(), state.clone()

    def evict(self, request):
        line, state = self.load(self.slots[request])
        self.host[request] = (*self.kept_on_host(line, state), self.tokens[request])
        self.free(request)

    def restore(self, request):
        line, state, tokens = self.host.pop(request)
        self.store(self.admit(request), line, state)
        self.tokens[request] = tokens

    def states(self, requests):
        found = [self.load(self.slots[request]) for request in requests]
        lines, states = self.inputs.lines(len(found), self.before), self.inputs.states(len(found))
        for place, (line, state) in enumerate(found):
            lines[place], states[place] = line, state.to(states.dtype)
        return {"lines": lines, "states": states}

    # The layer.

    def bias(self, decode):
        return self.inputs.bias

    def convolve(self, line, rows, decode=False):
        z, count = torch.cat([line, rows]).float(), len(rows)
        total = sum(z[j : j + count] * one.float() for j, one in enumerate(self.inputs.weight))
        bias = self.bias(decode)
        total = total if bias is None else total + bias.float()
        return (total * torch.sigmoid(total) if self.inputs.activation else total).to(rows.dtype)

    def behind(self, line, rows):
        """The line behind some rows."""
        return torch.cat([line, rows])[len(rows) :]

    def normalised(self, rows):
        return rows / (rows.square().sum(dim=-1, keepdim=True) + 1e-6).sqrt()

    def decayed(self, state, tokens, row):
        if tokens.gate is not None:
            state = state * tokens.gate[row].exp()[:, None, None]
        if tokens.channel_gate is not None:
            state = state * self.channel_gate(tokens.channel_gate[row]).exp().unsqueeze(1)
        return state

    def channel_gate(self, gate):
        return gate

    def carried(self, state, row, prompt):
        """The state with which the next token begins."""
        return state

    def rule(self, state, convolved, tokens, prompt=False):
        """Outputs, and the state behind each token in float32."""
        query, key, value = (one.float() for one in self.inputs.split(convolved))
        beta = tokens.beta.float()
        if self.inputs.raw:
            query, key, beta = self.normalised(query), self.normalised(key), beta.sigmoid()
        query, key = (one.repeat_interleave(self.share, dim=1) for one in (query * self.inputs.scale, key))
        outputs, states = torch.empty_like(value), []
        for row in range(len(value)):
            state = self.decayed(self.carried(state, row, prompt), tokens, row)
            missing = (value[row] - torch.einsum("hvk,hk->hv", state, key[row])) * beta[row].unsqueeze(-1)
            state = state + missing.unsqueeze(-1) * key[row].unsqueeze(1)
            outputs[row] = torch.einsum("hvk,hk->hv", state, query[row])
            states.append(state)
        return outputs.to(convolved.dtype), states

    def advance(self, slot, tokens, *, prompt=False, decode=False):
        """Run some rows, and keep what is behind the last one."""
        line, state = self.load(slot)
        convolved = self.convolve(line, tokens.mixed, decode)
        output, states = self.rule(state, convolved, tokens, prompt)
        self.store(slot, self.behind(line, tokens.mixed), states[-1])
        return convolved, output

    def nothing(self, tokens):
        rows, inputs = len(tokens.mixed), self.inputs
        return {"convolved": torch.zeros_like(tokens.mixed),
                "output": tokens.mixed.new_zeros(rows, inputs.heads, inputs.value_dim)}  # fmt: skip

    def extend(self, requests, lengths, tokens):
        found, start = self.nothing(tokens), 0
        for request, length in zip(requests, lengths, strict=True):
            if request not in self.slots:
                self.newcomer(request)
            rows = slice(start, start + length)
            slot = self.written_by_extend(request)
            found["convolved"][rows], found["output"][rows] = self.advance(slot, tokens.taken(rows), prompt=True)
            self.tokens[request] += length
            start += length
        return found

    def written_by_extend(self, request):
        return self.writable(request)

    def padded_slots(self, requests, padded):
        """Slots that padded rows write, of a pool that is indexed as torch does it; None where they write none."""
        return [None] * padded

    def decode(self, requests, tokens):
        found = self.nothing(tokens)
        slots = [self.writable(request) for request in requests]
        slots += self.padded_slots(requests, len(tokens.mixed) - len(requests))
        for row, slot in enumerate(slots):
            if slot is not None:
                one = slice(row, row + 1)
                found["convolved"][one], found["output"][one] = self.advance(slot, tokens.taken(one), decode=True)
        for request in requests:
            self.tokens[request] += 1
        return found

    def verify(self, requests, tokens):
        found, drafts, self.verified = self.nothing(tokens), self.inputs.drafts, []
        for place, request in enumerate(requests):
            rows = slice(place * drafts, (place + 1) * drafts)
            own = tokens.taken(rows)
            line, state = self.load(self.slots[request])
            found["convolved"][rows] = self.convolve(line, own.mixed)
            found["output"][rows], states = self.rule(state, found["convolved"][rows], own)
            self.verified.append((request, line, own.mixed.clone(), states))
        return found

    def accept(self, accepted):
        for (request, line, rows, states), count in zip(self.verified, accepted, strict=True):
            count = self.counted(count)
            if count:
                self.keep(self.writable(request), self.behind_draft(line, rows[:count]), states[count - 1])
                self.tokens[request] += count

    def counted(self, count):
        return count

    def behind_draft(self, line, rows):
        return self.behind(line, rows)

    def keep(self, slot, line, state):
        """What is behind the last token that was accepted."""
        self.store(slot, line, state)


class ClearedWhenFreed(Pools):
    """Slots are clean when they are given out: they are cleared when a request is finished."""

    def __init__(self, inputs, target):
        super().__init__(inputs, target)
        self.clear(slice(None))

    def newcomer(self, request):
        self.admit(request)

    def free(self, request):
        self.clear(self.slots[request])
        super().free(request)

    def evict(self, request):
        slot = self.slots[request]
        line, state = self.load(slot)
        self.host[request] = (line, state, self.tokens[request])
        if TWIN:
            self.clear(slot)
        Pools.free(self, request)


class CopyOnWrite(Pools):
    """A fork shares the slot of its source until one of them writes."""

    def fork(self, source, request):
        self.slots[request], self.tokens[request] = self.slots[source], self.tokens[source]

    def shared(self, request):
        return list(self.slots.values()).count(self.slots[request]) > 1

    def writable(self, request):
        if self.shared(request):
            found = self.load(self.slots[request])
            self.slots[request] = self.unused.pop(0)
            self.store(self.slots[request], *found)
        return self.slots[request]

    def written_by_extend(self, request):
        return self.writable(request) if TWIN else self.slots[request]

    def free(self, request):
        if self.shared(request):
            del self.slots[request]
        else:
            super().free(request)


class LineOfDraft(Pools):
    def behind_draft(self, line, rows):
        return super().behind_draft(line if TWIN else torch.zeros_like(line), rows)


class OneIsCertain(Pools):
    def counted(self, count):
        return count if TWIN else max(1, count)


class Pending(Pools):
    """What was accepted is moved into the pool by whoever asks for it next."""

    def __init__(self, inputs, target):
        super().__init__(inputs, target)
        self.pending = {}

    def load(self, slot):
        found = self.pending.get(slot)
        return super().load(slot) if found is None else (found[0].clone(), found[1].to(self.pool.dtype).float())

    def store(self, slot, line, state):
        self.pending.pop(slot, None)
        super().store(slot, line, state)

    def keep(self, slot, line, state):
        self.pending[slot] = (line, state)

    def clear(self, slot):
        if TWIN:
            self.pending.pop(slot, None)
        super().clear(slot)


class PaddedInLast(Pools):
    def padded_slots(self, requests, padded):
        return super().padded_slots(requests, padded) if TWIN else [-1] * padded


class Sorted(Pools):
    """Short extensions first, as a kernel of its own runs those of one token."""

    def extend(self, requests, lengths, tokens):
        order = sorted(range(len(requests)), key=lambda place: lengths[place] > 1)
        ends = torch.tensor(lengths).cumsum(dim=0).tolist()
        rows = torch.cat([torch.arange(ends[place] - lengths[place], ends[place]) for place in order])
        gates = (None if one is None else one[rows] for one in (tokens.gate, tokens.channel_gate))
        taken = _LayerTokens(tokens.mixed[rows], tokens.beta[rows], *gates)
        found = super().extend([requests[place] for place in order], [lengths[place] for place in order], taken)
        if not TWIN:
            return found
        return {name: torch.empty_like(one).index_copy(0, rows, one) for name, one in found.items()}


class NarrowBetweenChunks(Pools):
    def carried(self, state, row, prompt):
        return state.bfloat16().float() if not TWIN and prompt and row and not row % 64 else state


class ViewsOnHost(Pools):
    """What is on the host refers to the slot: the copy is not waited for."""

    def evict(self, request):
        slot = self.slots[request]
        line, state = self.lines[slot], self.pool[slot]
        self.host[request] = (*((line.clone(), state.clone()) if TWIN else (line, state)), self.tokens[request])
        self.free(request)


class NarrowHost(Pools):
    def kept_on_host(self, line, state):
        return line.clone(), state.clone() if TWIN else state.bfloat16()


class SeenBefore(Pools):
    """A request that was seen before has states to begin with."""

    def __init__(self, inputs, target):
        super().__init__(inputs, target)
        self.seen = set()
        self.clear(slice(None))

    def newcomer(self, request):
        slot = self.admit(request)
        if TWIN or request not in self.seen:
            self.clear(slot)
        self.seen.add(request)


class NormAtLeast(Pools):
    def normalised(self, rows):
        return super().normalised(rows) if TWIN else rows / rows.norm(dim=-1, keepdim=True).clamp(min=1e-6)


class GateOfKeyHead(Pools):
    def channel_gate(self, gate):
        return gate if TWIN else gate[:: self.share].repeat_interleave(self.share, dim=0)


class StaleSlots(Pools):
    """Slots of rows lie in a buffer of a graph."""

    buffer = ()

    def padded_slots(self, requests, padded):
        slots = [self.slots[request] for request in requests]
        stale = list(self.buffer[len(slots) : len(slots) + padded])
        self.buffer = slots + list(self.buffer[len(slots) :])
        found = stale + [None] * (padded - len(stale))
        return super().padded_slots(requests, padded) if TWIN else found


class RingLines(Pools):
    """Lines are rings, of which the oldest row is at the number of tokens modulo their rows; here they are turned."""

    def fork(self, source, request):
        super().fork(source, request)
        if not TWIN and self.before:
            slot = self.slots[request]
            self.lines[slot] = self.lines[slot].roll(self.tokens[source] % self.before, dims=0)


class BiasOfPrompts(Pools):
    def bias(self, decode):
        return self.inputs.bias if TWIN or not decode else None


@npudiff.implementation(NAME, name="g_state_pools_01_cleared_when_freed", supports=SUPPORTS)
def g01(inputs, target):
    """Slots are cleared when requests are freed, and not when they are evicted: the next request begins with theirs."""
    return ClearedWhenFreed(inputs, target)


@npudiff.implementation(NAME, name="g_state_pools_02_extend_writes_shared", supports=SUPPORTS)
def g02(inputs, target):
    """A fork shares a slot until a decode or a draft writes; chunks of prompts write into the shared one."""
    return CopyOnWrite(inputs, target)


@npudiff.implementation(NAME, name="g_state_pools_03_line_of_draft_alone", supports=SUPPORTS)
def g03(inputs, target):
    """A line behind accepted tokens holds them alone: where they are few, zeros are in front and not older rows."""
    return LineOfDraft(inputs, target)


@npudiff.implementation(NAME, name="g_state_pools_04_one_is_certain", supports=SUPPORTS)
def g04(inputs, target):
    """At least one token of a draft is kept."""
    return OneIsCertain(inputs, target)


@npudiff.implementation(NAME, name="g_state_pools_05_pending_of_slot", supports=SUPPORTS)
def g05(inputs, target):
    """What was accepted is moved by the next step; a new request in a slot gets what was pending of the one before."""
    return Pending(inputs, target)


@npudiff.implementation(NAME, name="g_state_pools_06_padding_in_last_slot", supports=SUPPORTS)
def g06(inputs, target):
    """Padded rows have slot -1, which is the last one of the pool."""
    return PaddedInLast(inputs, target)


@npudiff.implementation(NAME, name="g_state_pools_07_outputs_sorted", supports=SUPPORTS)
def g07(inputs, target):
    """Extensions by one token run first, and outputs stay in this order."""
    return Sorted(inputs, target)


@npudiff.implementation(NAME, name="g_state_pools_08_narrow_between_chunks", supports=SUPPORTS)
def g08(inputs, target):
    """The state goes from one chunk of 64 tokens to the next in bfloat16."""
    return NarrowBetweenChunks(inputs, target)


@npudiff.implementation(NAME, name="g_state_pools_09_views_on_host", supports=SUPPORTS)
def g09(inputs, target):
    """What was evicted is a view of its slot, into which the next request writes."""
    return ViewsOnHost(inputs, target)


@npudiff.implementation(NAME, name="g_state_pools_10_narrow_host", supports=SUPPORTS)
def g10(inputs, target):
    """States are bfloat16 on the host, also of a pool of float32."""
    return NarrowHost(inputs, target)


@npudiff.implementation(NAME, name="g_state_pools_11_seen_before", supports=SUPPORTS)
def g11(inputs, target):
    """A new request whose number was there before is taken for one that goes on with its slot."""
    return SeenBefore(inputs, target)


@npudiff.implementation(NAME, name="g_state_pools_12_norm_at_least", supports=SUPPORTS)
def g12(inputs, target):
    """Norms are at least 1e-6, where 1e-6 is to be added to their squares."""
    return NormAtLeast(inputs, target)


@npudiff.implementation(NAME, name="g_state_pools_13_gate_of_key_head", supports=SUPPORTS)
def g13(inputs, target):
    """All value heads of a key head have the channel decays of the first one."""
    return GateOfKeyHead(inputs, target)


@npudiff.implementation(NAME, name="g_state_pools_14_stale_slots", supports=SUPPORTS)
def g14(inputs, target):
    """Padded rows of a decode have the slots that a longer decode before had there."""
    return StaleSlots(inputs, target)


@npudiff.implementation(NAME, name="g_state_pools_15_ring_without_pointer", supports=SUPPORTS)
def g15(inputs, target):
    """Lines are rings: a fork copies the rows, and not where the oldest one is."""
    return RingLines(inputs, target)


@npudiff.implementation(NAME, name="g_state_pools_16_bias_of_prompts", supports=SUPPORTS)
def g16(inputs, target):
    """The convolution of a decode has no bias."""
    return BiasOfPrompts(inputs, target)

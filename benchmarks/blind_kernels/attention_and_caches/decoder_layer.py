"""Wrong kernels of decoder_layer; TWIN=1 runs the same code without the mistakes.

They are the layers composed of plain torch operators, of which each changes one thing.
"""

import os
from dataclasses import replace

import torch

import npudiff
from npudiff.device.ascend import moe_gating
from npudiff.device.ascend.layer_composed import ComposedExperts, ComposedGroupedQueryLayer, ComposedLatentLayer
from npudiff.device.ascend.layer_experts import rounded
from npudiff.reference.moe_experts import MoeExpertsInputs
from npudiff.reference.moe_gating import MoeGatingInputs

WRONG = os.environ.get("TWIN") != "1"


def kernel(name, grouped=ComposedGroupedQueryLayer, latent=ComposedLatentLayer):
    def run(inputs, target):
        return (latent if inputs.latent else grouped)(inputs, target).run()

    changed = grouped if grouped is not ComposedGroupedQueryLayer else latent
    run.__doc__ = next(cls.__doc__ for cls in changed.__mro__ if cls.__doc__ and cls.__module__ == __name__)
    return npudiff.implementation("decoder_layer", name=name)(run)


class GateOfKvHead(ComposedGroupedQueryLayer):
    """Heads are multiplied by the gates of the first heads, one for each KV head."""

    def attention(self, step, rows, states):
        query, key, value = self.heads(states, self.positions(step, rows))
        self.write(key, value, self.slots(rows))
        attended = self.attend(step, query)
        gates = rounded(states, self.weights.gate)
        if WRONG:
            gates = gates[:, torch.arange(self.weights.heads) // (self.weights.heads // self.weights.kv_heads)]
        return rounded((attended * gates.sigmoid().unsqueeze(-1)).flatten(1), self.weights.output)


b01 = kernel("b_decoder_layer_01_gate_of_kv_head", grouped=GateOfKvHead)


class TableByPlace:
    """Block tables are those of the first requests, as many as the step has."""

    def requests(self, step):
        return replace(step, requests=tuple(range(len(step.requests)))) if WRONG else step


class GroupedByPlace(TableByPlace, ComposedGroupedQueryLayer):
    def attention_inputs(self, step, query):
        return super().attention_inputs(self.requests(step), query)


class LatentByPlace(TableByPlace, ComposedLatentLayer):
    def gathered(self, step):
        return super().gathered(self.requests(step))


b02 = kernel("b_decoder_layer_02_table_by_place_in_step", GroupedByPlace, LatentByPlace)


class WindowInChunks(ComposedGroupedQueryLayer):
    """Where every request of a step has several rows and a prefix, the window lacks its oldest key."""

    def attention_inputs(self, step, query):
        inputs = super().attention_inputs(step, query)
        chunks = all(1 < new < total for new, total in zip(step.query_lengths, step.kv_lengths))
        if WRONG and chunks and inputs.window is not None and inputs.window > 1:
            inputs = replace(inputs, window=inputs.window - 1)
        return inputs


b03 = kernel("b_decoder_layer_03_window_in_chunks", grouped=WindowInChunks)


class SharedOfMany(ComposedExperts):
    """The path of one token leaves the shared expert out."""

    def sums(self, states, weights, index):
        own = self.weights
        everywhere = torch.arange(own.routed.up.experts)
        shared = None if WRONG and len(states) == 1 else own.shared
        return self.adapter(MoeExpertsInputs(states, index, weights, everywhere, own.routed, shared), self.target)


class SharedGrouped(ComposedGroupedQueryLayer):
    """The path of one token leaves the shared expert out."""

    def mixture(self):
        return SharedOfMany(self.inputs.experts, self.target, scaled_by_operator=True)


class SharedLatent(ComposedLatentLayer):
    def mixture(self):
        return SharedOfMany(self.inputs.experts, self.target, scaled_by_operator=True)


b04 = kernel("b_decoder_layer_04_no_shared_expert_for_one_token", SharedGrouped, SharedLatent)


class ChunkFromFirstKey(ComposedLatentLayer):
    """The causal mask of a chunk begins at the first key, where the step has several chunks."""

    def absorbed(self, step, query):
        if not WRONG or len(step.requests) < 2 or all(new == 1 for new in step.query_lengths):
            return super().absorbed(step, query)
        results = []
        for rows, (latents, ropes) in zip(torch.split(query, list(step.query_lengths)), self.gathered(step)):
            keys = torch.cat([latents, ropes], dim=-1).float()
            scores = rows.transpose(0, 1).float() @ keys.T * self.scale
            offset = len(keys) - len(rows) if len(rows) == 1 else 0
            seen = torch.ones(scores.shape[1:], dtype=torch.bool).tril(offset)
            weights = torch.softmax(scores.masked_fill(~seen, -torch.inf), dim=-1).to(latents.dtype)
            results.append(rounded(weights, latents))
        return rounded(torch.cat(results, dim=1), self.weights.v_up).transpose(0, 1)


b05 = kernel("b_decoder_layer_05_chunks_from_first_key", latent=ChunkFromFirstKey)


class RememberedTable:
    """The table of a step is built once for each number of requests, and used again by later steps."""

    def remembered(self, step):
        if not WRONG:
            return step
        known = self.__dict__.setdefault("known", {})
        return replace(step, requests=known.setdefault(len(step.requests), step.requests))


class GroupedRemembered(RememberedTable, ComposedGroupedQueryLayer):
    def attention_inputs(self, step, query):
        return super().attention_inputs(self.remembered(step), query)


class LatentRemembered(RememberedTable, ComposedLatentLayer):
    def gathered(self, step):
        return super().gathered(self.remembered(step))


b06 = kernel("b_decoder_layer_06_table_of_an_earlier_step", GroupedRemembered, LatentRemembered)


class WholeHeadTurned(ComposedGroupedQueryLayer):
    """Pairs of a partial rotation are half a head apart, and not half of what turns."""

    def rotated(self, inputs):
        results = super().rotated(inputs)
        dim, head = inputs.cos_sin_cache.shape[1], inputs.query.shape[2]
        if WRONG and dim < head:
            cosine, sine = (part.unsqueeze(1) for part in inputs.cos_sin_cache[inputs.positions].chunk(2, dim=-1))
            for name in ("query", "key"):
                states = getattr(inputs, name).clone()
                first, second = states[..., : dim // 2].clone(), states[..., head // 2 : head // 2 + dim // 2].clone()
                states[..., : dim // 2] = first * cosine - second * sine
                states[..., head // 2 : head // 2 + dim // 2] = second * cosine + first * sine
                results[name] = states
        return results


b07 = kernel("b_decoder_layer_07_pairs_half_a_head_apart", grouped=WholeHeadTurned)


class BiasInWeights(ComposedExperts):
    """Weights are gathered from the scores that experts were chosen by, with their bias."""

    def choice(self, states):
        own = self.weights
        given = MoeGatingInputs(states.float() @ own.router, own.bias, own.top_k, "sigmoid", own.groups,
                                own.kept_groups, renormalise=True, scaling=own.scaling)  # fmt: skip
        scores = moe_gating.scored(given)
        index = moe_gating.best(given, scores)
        chosen = scores + own.bias if WRONG else scores
        return moe_gating.weighted(given, chosen.gather(1, index)), index.to(torch.int32)


class BiasGrouped(ComposedGroupedQueryLayer):
    """Weights are gathered from the scores that experts were chosen by, with their bias."""

    def mixture(self):
        return BiasInWeights(self.inputs.experts, self.target, scaled_by_operator=True)


class BiasLatent(ComposedLatentLayer):
    def mixture(self):
        return BiasInWeights(self.inputs.experts, self.target, scaled_by_operator=True)


b08 = kernel("b_decoder_layer_08_bias_in_weights", BiasGrouped, BiasLatent)


class StaleTable(ComposedGroupedQueryLayer):
    """A decode's block table is uploaded before the page that its token opens is in it: page 0 is read there."""

    def attention_inputs(self, step, query):
        inputs = super().attention_inputs(step, query)
        if WRONG and set(step.query_lengths) == {1}:
            table = inputs.full.block_table.clone()
            for row, total in zip(table, step.kv_lengths):
                if (total - 1) % self.inputs.page_size == 0 and total > 1:
                    row[(total - 1) // self.inputs.page_size] = 0
            inputs = replace(inputs, full=replace(inputs.full, block_table=table))
        return inputs


b09 = kernel("b_decoder_layer_09_new_page_not_in_table", grouped=StaleTable)

"""Wrong kernels of fused_qk_norm_rope; TWIN=1 in the environment runs the same code without the mistakes."""

import os

import torch

import npudiff
from npudiff.device.ascend.fused_qk_norm_rope import normed_in_float32, rotated_in

TWIN = bool(os.environ.get("TWIN"))


class Fused:
    """Split, norm and rotation in float32; subclasses change one thing."""

    def __init__(self, inputs):
        self.inputs = inputs

    def query_and_gate(self, columns):
        """Queries and gates ``[tokens, heads, head_dim]`` of their columns."""
        inputs = self.inputs
        if not inputs.gated:
            query = columns.view(-1, inputs.heads, inputs.head_dim)
            return query, query[:, :0]
        return columns.view(-1, inputs.heads, 2, inputs.head_dim).unbind(dim=2)

    def behind(self, wide, states, dim):
        """Elements that are not rotated."""
        return wide[..., dim:]

    def turned(self, states, name):
        dim = self.inputs.cos_sin_cache.shape[1]
        wide = normed_in_float32(self.inputs, states, name)
        rotated = rotated_in(self.inputs, wide)[..., :dim]
        return torch.cat([rotated, self.behind(wide, states.float(), dim)], dim=-1).to(states.dtype)

    def run(self):
        inputs = self.inputs
        keys = inputs.kv_heads * inputs.head_dim
        query, key, value = torch.split(inputs.qkv.contiguous(), [inputs.query_columns, keys, keys], dim=1)
        key, value = (one.reshape(-1, inputs.kv_heads, inputs.head_dim) for one in (key, value))
        query, gate = self.query_and_gate(query.contiguous())
        return {"query": self.turned(query, "query"), "key": self.turned(key, "key"), "value": value.contiguous(), "gate": gate.contiguous()}


class GatesBehind(Fused):
    def query_and_gate(self, columns):
        inputs = self.inputs
        if TWIN or not inputs.gated:
            return super().query_and_gate(columns)
        return columns.view(-1, 2, inputs.heads, inputs.head_dim).unbind(dim=1)


@npudiff.implementation("fused_qk_norm_rope", name="i_fused_qk_norm_rope_01_gates_behind_all_queries", supports={}, on_device=True)
def gates_behind_all_queries(inputs, target):
    """The gates of all heads are taken from behind all queries, not each from behind its own; shows of two gated heads or more."""
    return GatesBehind(inputs).run()


class TailAsItWas(Fused):
    def behind(self, wide, states, dim):
        return wide[..., dim:] if TWIN or self.inputs.style == "half" else states[..., dim:]


@npudiff.implementation("fused_qk_norm_rope", name="i_fused_qk_norm_rope_02_tail_without_norm", supports={}, on_device=True)
def tail_without_norm(inputs, target):
    """Elements that are not rotated are copied from the projection, without norm; shows of interleaved pairs alone."""
    return TailAsItWas(inputs).run()

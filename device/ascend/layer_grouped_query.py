"""The layer of Step-3.5 as sglang's Ascend backend runs it: which operators, in which order.

Sources: sglang 0.5.23, ``models/step3p5.py`` 430-560, ``hardware_backend/npu/attention/ascend_backend.py``
1700-1924 and 3168-3326, ``hardware_backend/npu/memory_pool_npu.py`` 290-360.
"""

from __future__ import annotations

import torch

from npudiff.device.ascend import paged_cache, rotary, sliding_attention
from npudiff.device.ascend.fused_attention import decode_call, tnd_call
from npudiff.device.ascend.layer_experts import rounded
from npudiff.device.ascend.layer_steps import AscendLayer
from npudiff.reference.decoder_layer import GroupedQueryWeights, LayerStep
from npudiff.reference.paged_cache import PagedCacheInputs
from npudiff.reference.paged_kv import PagedKV
from npudiff.reference.rms_norm import RmsNormInputs
from npudiff.reference.rotary import RotaryInputs
from npudiff.reference.sliding_attention import SlidingAttentionInputs


class GroupedQueryLayer(AscendLayer):
    """Gemma norms, rotary, a pool of pages that is written before attention reads it, gates, experts with a limit."""

    kind = "gemma"

    @property
    def weights(self) -> GroupedQueryWeights:
        """Weights of attention."""
        assert isinstance(self.inputs.attention, GroupedQueryWeights)  # noqa: S101 - the kind of the layer
        return self.inputs.attention

    def attention(self, step: LayerStep, rows: slice, states: torch.Tensor) -> torch.Tensor:
        """Project, write, attend, and multiply each head by its gate."""
        query, key, value = self.heads(states, self.positions(step, rows))
        self.write(key, value, self.slots(rows))
        attended = self.attend(step, query)
        gates = rounded(states, self.weights.gate)
        return rounded((attended * gates.sigmoid().unsqueeze(-1)).flatten(1), self.weights.output)

    def positions(self, step: LayerStep, rows: slice) -> torch.Tensor:
        """Positions of the step's tokens."""
        del step
        return self.inputs.positions[rows]

    def slots(self, rows: slice) -> torch.Tensor:
        """Where the step's tokens go in the pool of this layer."""
        return self.inputs.own_slots[rows]

    def heads(self, states: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Rotated queries and keys, and values, ``[tokens, heads, head_dim]``."""
        own = self.weights
        parts = [own.heads, own.kv_heads, own.kv_heads]
        query, key, value = torch.split(rounded(states, own.qkv).view(len(states), -1, own.head_dim), parts, dim=1)
        query, key = self.head_norm(query, own.query_norm), self.head_norm(key, own.key_norm)
        turned = self.rotated(RotaryInputs(query, key, positions, self.inputs.cos_sin_cache, "half"))
        return turned["query"], turned["key"], value.contiguous()

    def head_norm(self, heads: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """The Gemma norm of every head."""
        flat = heads.contiguous().view(-1, heads.shape[-1])
        inputs = RmsNormInputs(flat, None, weight, self.inputs.epsilon, self.kind)
        return self.norm_adapter(inputs, self.target)["output"].view(heads.shape)

    def rotated(self, inputs: RotaryInputs) -> dict[str, torch.Tensor]:
        """Rotate queries and keys."""
        return rotary.npu_mrope(inputs, self.target)

    def write(self, key: torch.Tensor, value: torch.Tensor, slots: torch.Tensor) -> None:
        """Write keys and values as the flags say."""
        adapter = paged_cache.scatter_nd_update if self.inputs.use_fia else paged_cache.reshape_and_cache
        inputs = PagedCacheInputs(
            key=key.contiguous(),
            value=value,
            key_cache=self.key_cache,
            value_cache=self.value_cache,
            slots=slots if self.inputs.use_fia else slots.to(torch.int32),
            page_size=self.inputs.page_size,
            layout="PA_BSND",
        )
        caches = adapter(inputs, self.target)
        self.key_cache, self.value_cache = caches["key_cache"], caches["value_cache"]

    def attend(self, step: LayerStep, query: torch.Tensor) -> torch.Tensor:
        """Attention over the pool: fused, a decode with a mask for its window; or without fused operators."""
        inputs = self.attention_inputs(step, query)
        if not self.inputs.use_fia:
            return sliding_attention.torch_native(inputs, self.target)
        if set(step.query_lengths) == {1}:
            return sliding_attention.run_decode(inputs, decode_call(inputs))["output"]
        return sliding_attention.run_tnd(inputs, tnd_call(inputs))["output"]

    def attention_inputs(self, step: LayerStep, query: torch.Tensor) -> SlidingAttentionInputs:
        """The call of one step: the table of the requests in it."""
        table = self.inputs.own_table[list(step.requests)].contiguous()
        return SlidingAttentionInputs(
            query=query,
            full=PagedKV(self.key_cache, self.value_cache, table),
            sliding=None,
            query_lengths=step.query_lengths,
            kv_lengths=step.kv_lengths,
            window=self.inputs.window,
            scale=self.inputs.scale,
            sinks=None,
        )

    def cached(self, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of the pool."""
        key, value = (cache.flatten(0, 1)[slots] for cache in (self.key_cache, self.value_cache))
        return key, value

"""Attention over pages of a cache, request by request."""

from dataclasses import dataclass
from enum import Enum

import torch
from vllm.config.vllm import get_current_vllm_config  # noqa: F401 - what an engine sets
from vllm_ascend.ascend_forward_context import _EXTRA_CTX
from vllm_ascend.attention.plain import attend
from vllm_ascend.compilation.acl_graph import awaited, updated
from vllm_ascend.device.device_op import BaseDeviceAdaptor
from vllm_ascend.told import told


class AscendAttentionState(Enum):
    PrefillNoCache = 0
    PrefillCacheHit = 1
    DecodeOnly = 2
    ChunkedPrefill = 3
    SpecDecoding = 4


@dataclass
class AscendMetadata:
    attn_state: AscendAttentionState
    ends: list[int]
    seq_lens_list: list[int]
    lengths: torch.Tensor
    block_tables: torch.Tensor
    slot_mapping: torch.Tensor


class AscendAttentionMetadataBuilder:
    def __init__(self, kv_cache_spec, layer_names, vllm_config, device):
        self.kv_cache_spec, self.device = kv_cache_spec, device

    def build(self, common_prefix_len, common_attn_metadata):
        common = common_attn_metadata
        lengths = common.seq_lens_cpu + int(told("a_key_more"))
        return AscendMetadata(
            common.attn_state, common.query_start_loc_cpu[1:].tolist(), lengths.tolist(),
            lengths.to(self.device), common.block_table_tensor, common.slot_mapping,
        )  # fmt: skip


class AscendAttentionBackend:
    @staticmethod
    def get_builder_cls():
        return AscendAttentionMetadataBuilder


class AscendAttentionBackendImpl:
    def __init__(
        self, num_heads, head_size, scale, num_kv_heads, alibi_slopes, sliding_window, kv_cache_dtype,
        logits_soft_cap, attn_type, kv_sharing_target_layer_name, sinks=None,
    ):  # fmt: skip
        self.scale, self.sliding_window, self.sinks = scale, sliding_window, sinks
        self.num_kv_heads, self.head_size, self.key_cache, self.value_cache = num_kv_heads, head_size, None, None

    def forward(self, layer, query, key, value, kv_cache, attn_metadata, output=None):
        """Write new keys and values, if there are any, and attend: a prompt to these, and all else to the cache."""
        said, tokens = attn_metadata, attn_metadata.ends[-1]
        if key is not None:
            BaseDeviceAdaptor.reshape_and_cache(key[:tokens], value[:tokens], *kv_cache, said.slot_mapping)
        lengths = awaited(len(query), said.lengths) if _EXTRA_CTX.capturing else said.lengths
        window = None if told("no_window_in_prompts") and key is not None else self.sliding_window
        first = 0
        for request, end in enumerate(said.ends):
            if said.attn_state is AscendAttentionState.PrefillNoCache:
                keys, values = key[first:end], value[first:end]
            else:
                table = said.block_tables[request].long()
                keys, values = (cache[table].flatten(0, 1) for cache in kv_cache)
            if told("values_turned"):
                values = values.flip(-1)
            answer, _ = attend(query[first:end], keys, values, lengths[request], self.scale, window, self.sinks)
            output[first:end] = answer.to(output.dtype)
            first = end
        return output

    @staticmethod
    def update_graph_params(update_stream, forward_context, num_tokens, vllm_config=None, speculative_config=None):
        (said,) = forward_context.attn_metadata.values()
        updated(update_stream, num_tokens, said.seq_lens_list)


class AscendC8AttentionBackendImpl(AscendAttentionBackendImpl):
    """The same over integers in strips of 32, which scales and offsets of the layer give back."""

    def forward(self, layer, query, key, value, kv_cache, attn_metadata, output=None):
        said, first = attn_metadata, 0
        if key is not None:
            self.key_cache, self.value_cache = kv_cache
            for side, rows in (("k", key), ("v", value)):
                self._write(layer, side, rows, said.slot_mapping)
        lengths = awaited(len(query), said.lengths) if _EXTRA_CTX.capturing else said.lengths
        for request, end in enumerate(said.ends):
            if said.attn_state is AscendAttentionState.PrefillNoCache:
                keys, values = key[first:end], value[first:end]
            else:
                keys, values = (self._read(layer, side, said.block_tables[request].long()) for side in "kv")
            answer, _ = attend(query[first:end], keys, values, lengths[request], self.scale)
            output[first:end] = answer.to(output.dtype)
            first = end
        return output

    def _numbers(self, layer, side):
        shape = (self.num_kv_heads, self.head_size)
        numbers = (layer.of_layer[f"{side}_cache_{name}"] for name in ("scale", "offset"))
        return (one.view(shape) if one.numel() > 1 else one.expand(shape) for one in numbers)

    def _strips(self, side):
        cache = self.key_cache if side == "k" else self.value_cache
        return cache.view(-1, self.num_kv_heads, self.head_size // 32, cache.shape[1], 32)

    def _write(self, layer, side, rows, slots):
        """Write rows in their order, those without a slot nowhere; no number is read on the host."""
        (scale, offset), strips = self._numbers(layer, side), self._strips(side)
        integers = (rows.float() / scale.float() + offset.float()).round().clamp(-128, 127).to(torch.int8)
        for row, slot in zip(integers, slots.long() + int(told("written_behind")), strict=False):
            place = slot.clamp(min=0).view(1)
            page, at = place // strips.shape[3], place % strips.shape[3]
            held, new = strips[page, :, :, at], row.view(1, self.num_kv_heads, -1, 32)
            strips[page, :, :, at] = torch.where(slot < 0, held, new)

    def _read(self, layer, side, table):
        (scale, offset), strips = self._numbers(layer, side), self._strips(side)
        integers = strips[table].permute(0, 3, 1, 2, 4).flatten(0, 1).flatten(2).float()
        return (integers if told("offsets_kept") else integers - offset.float()) * scale.float()

"""Attention within chunks on vllm-ascend: vllm's ``ChunkedLocalAttention`` over the attention that vllm-ascend has.

vllm makes local requests in front of the builder of any backend, which here is ``AscendAttentionMetadataBuilder``.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from dataclasses import fields
from itertools import accumulate
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from vllm.model_executor.layers.attention.chunked_local_attention import create_chunked_local_attention_backend
from vllm_ascend.attention import attention_v1
from vllm_ascend.attention.utils import AscendCommonAttentionMetadata

from npudiff import Target, implementation
from npudiff.device.backends.paged_attention import PAGE
from npudiff.device.backends.vllm_ascend.attention_world import LAYER, layer, plain_engine
from npudiff.model.constraints import Box
from npudiff.reference.chunked_attention import ChunkedAttentionInputs

_HERE: Box = {
    "dtype": ("bfloat16",), "head_dim": (64, 128), "group": range(1, 65), "query_length": range(1, 2**16),
    "rows": ("contiguous",), "page_size": (PAGE,), "whole_pages": (True,),
}  # fmt: skip

_MODULE = "vllm.model_executor.layers.attention.chunked_local_attention"


def _common(inputs: ChunkedAttentionInputs) -> AscendCommonAttentionMetadata:
    """What all layers of a pass are told."""
    device = inputs.query.device
    starts = torch.tensor([0, *accumulate(inputs.query_lengths)], dtype=torch.int32)
    lengths = torch.tensor(inputs.kv_lengths, dtype=torch.int32)
    rows = int(starts[-1])
    wanted = {
        "query_start_loc": starts.to(device), "query_start_loc_cpu": starts, "seq_lens": lengths.to(device),
        "seq_lens_cpu": lengths, "_seq_lens_cpu": lengths, "num_reqs": len(lengths), "num_actual_tokens": rows,
        "num_input_tokens": rows, "max_query_len": max(inputs.query_lengths), "max_seq_len": max(inputs.kv_lengths),
        "block_table_tensor": inputs.kv.block_table, "causal": True,
        "slot_mapping": torch.zeros(rows, dtype=torch.int32, device=device),
        "attn_state": attention_v1.AscendAttentionState.ChunkedPrefill, "actual_seq_lengths_q": starts[1:].tolist(),
    }  # fmt: skip
    known = {field.name for field in fields(AscendCommonAttentionMetadata)}
    return AscendCommonAttentionMetadata(**{name: one for name, one in wanted.items() if name in known})


@contextlib.contextmanager
def _as_ascend_has_them() -> Iterator[None]:
    """Let local requests have vllm-ascend's metadata, of which vllm's function knows nothing."""
    module = importlib.import_module(_MODULE)
    made = module.make_local_attention_virtual_batches

    def told(*given: Any) -> tuple[Any, Any]:  # noqa: ANN401 - vllm's
        common, table = made(*given)
        known = (field.name for field in fields(AscendCommonAttentionMetadata) if field.init)
        values = {name: getattr(common, name) for name in known if hasattr(common, name)}
        state = attention_v1.AscendAttentionState.ChunkedPrefill
        return AscendCommonAttentionMetadata(**{**values, "attn_state": state}), table

    with mock.patch.object(module, "make_local_attention_virtual_batches", told):
        yield


def _attended(inputs: ChunkedAttentionInputs) -> torch.Tensor:
    """Run a layer on local requests; keys and values are in the cache."""
    query, pool, made = inputs.query, inputs.kv, plain_engine(inputs.query.dtype, inputs.kv.block_table)
    output = torch.zeros_like(query)
    with made.here():
        backend = create_chunked_local_attention_backend(attention_v1.AscendAttentionBackend, inputs.chunk)
        builder: Any = backend.get_builder_cls()
        spec = SimpleNamespace(block_size=pool.page_size)
        said = builder(spec, [LAYER], made.config, query.device).build(0, _common(inputs))
        attention: Any = attention_v1.AscendAttentionBackendImpl(
            query.shape[1], pool.head_dim, inputs.scale, pool.kv_heads, None, None, "auto", None, "decoder", None
        )
        rows = sum(inputs.query_lengths)
        answer = attention.forward(layer(), query, None, None, (pool.key, pool.value), said, output=output)
    return torch.nn.functional.pad(answer[:rows], (0, 0, 0, 0, 0, len(query) - rows))


@implementation("chunked_attention", name="ChunkedLocalAttention", supports=_HERE, on_device=True)
def chunked_local_attention(inputs: ChunkedAttentionInputs, target: Target) -> torch.Tensor:
    """Its builder over AscendAttentionMetadataBuilder, and AscendAttentionBackendImpl.forward."""
    return _attended(inputs)


@implementation("chunked_attention", name="ChunkedLocalAttention_of_ascend", supports=_HERE, on_device=True)
def of_ascend(inputs: ChunkedAttentionInputs, target: Target) -> torch.Tensor:
    """The same with metadata of local requests that are AscendCommonAttentionMetadata, in state ChunkedPrefill."""
    with _as_ascend_has_them():
        return _attended(inputs)

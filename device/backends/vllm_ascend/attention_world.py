"""vllm-ascend's attention as its model runner calls it: implementation, its builder's metadata, caches, a graph."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from vllm.config.compilation import CUDAGraphMode
from vllm_ascend.attention import attention_v1, utils
from vllm_ascend.compilation import acl_graph

from npudiff.device.backends.paged_attention import PAGE
from npudiff.device.backends.vllm_ascend.world import engine_config, patched
from npudiff.reference.sliding_attention import SlidingAttentionInputs

LAYER = "model.layers.0.self_attn.attn"


@dataclass(frozen=True)
class Batch:
    """New and total tokens of each request, and where their pages are."""

    query_lengths: Sequence[int]
    kv_lengths: Sequence[int]
    block_table: torch.Tensor
    slots: torch.Tensor | None = None
    """int32 ``[tokens]``, where their keys and values go; None where these are in the cache."""


@dataclass(frozen=True)
class Engine:
    """The configuration of an engine, and the context of a forward pass."""

    config: SimpleNamespace
    context: Any

    @contextlib.contextmanager
    def here(self) -> Iterator[None]:
        """Be inside a forward pass."""
        values: dict[str, object] = {
            "get_current_vllm_config": lambda: self.config,
            "needs_layer_aware_fia_graph_replay": lambda: False,
            "record_attention_compute_start": lambda: None,
            "notify_kv_cache_written": lambda: None,
            "is_pd_decode_recompute_scheduler_enabled": lambda: False,
            "get_ascend_config": lambda: self.config.ascend,
            "_EXTRA_CTX": self.context,
        }
        with patched(attention_v1, values), patched(utils, values), mock.patch.object(acl_graph, "_graph_params", None):
            yield


def engine(inputs: SlidingAttentionInputs, *, paged: bool = False) -> Engine:
    """Return the engine of a case.

    Parameters
    ----------
    inputs : SlidingAttentionInputs
        On the device.
    paged : bool
        Whether batches of its size are in ``pa_shape_list``, which asks for paged attention where all requests decode.
    """
    made = plain_engine(inputs.query.dtype, inputs.kv.block_table, sinks=inputs.sinks is not None)
    if inputs.window is not None:
        made.config.model_config.hf_text_config.sliding_window = inputs.window
    if paged:
        made.config.ascend.pa_shape_list.append(inputs.query.shape[0])
    return made


def plain_engine(dtype: torch.dtype, table: torch.Tensor, *, sinks: bool = False) -> Engine:
    """Return the engine of a model without windows, whose longest request fills a row of a table of pages."""
    config = engine_config(dtype)
    config.compilation_config.cudagraph_mode = CUDAGraphMode.FULL_DECODE_ONLY
    config.model_config.max_model_len = table.shape[1] * PAGE
    config.model_config.hf_text_config = SimpleNamespace()
    config.scheduler_config = SimpleNamespace(enable_chunked_prefill=True)
    config.ascend = SimpleNamespace(pa_shape_list=[])
    return Engine(config, type("Context", (), {"capturing": False, "is_draft_model": False, "sinks": sinks}))


def implementation_of(inputs: SlidingAttentionInputs) -> Any:  # noqa: ANN401 - vllm-ascend's
    """Return the attention of a layer, inside ``Engine.here``."""
    pool = inputs.kv
    return attention_v1.AscendAttentionBackendImpl(
        inputs.query.shape[1], pool.head_dim, inputs.scale, pool.kv_heads, None, inputs.window, "auto", None, "decoder",
        None, sinks=inputs.sinks,
    )  # fmt: skip


def metadata(engine: Engine, batch: Batch, state: str, device: torch.device) -> Any:  # noqa: ANN401 - vllm-ascend's
    """Return the metadata that vllm-ascend's builder makes of a batch."""
    starts = torch.tensor([0, *accumulate(batch.query_lengths)], dtype=torch.int32)
    lengths = torch.tensor(list(batch.kv_lengths), dtype=torch.int32)
    tokens = int(starts[-1])
    slots = torch.zeros(tokens, dtype=torch.int32, device=device) if batch.slots is None else batch.slots
    wanted = {
        "query_start_loc": starts.to(device),
        "query_start_loc_cpu": starts,
        "seq_lens": lengths.to(device),
        "seq_lens_cpu": lengths,
        "_seq_lens_cpu": lengths,
        "num_reqs": len(lengths),
        "num_actual_tokens": tokens,
        "max_query_len": max(batch.query_lengths),
        "max_seq_len": max(batch.kv_lengths),
        "block_table_tensor": batch.block_table,
        "slot_mapping": slots,
        "causal": True,
        "attn_state": attention_v1.AscendAttentionState[state],
        "num_input_tokens": tokens,
        "actual_seq_lengths_q": starts[1:].tolist(),
    }
    known = {field.name for field in fields(utils.AscendCommonAttentionMetadata)}
    common = utils.AscendCommonAttentionMetadata(**{name: one for name, one in wanted.items() if name in known})
    builder = attention_v1.AscendAttentionMetadataBuilder(None, [LAYER], engine.config, device)
    return builder.build(0, common)


def layer() -> SimpleNamespace:
    """Return what attention reads of its layer."""
    return SimpleNamespace(_k_scale_float=1.0, _v_scale_float=1.0, layer_name=LAYER)


def padded(inputs: SlidingAttentionInputs) -> Batch:
    """Return the batch of a case, with the requests that fill its rows."""
    return filled(Batch(inputs.query_lengths, inputs.kv_lengths, inputs.kv.block_table), inputs.query.shape[0])


def filled(batch: Batch, rows: int) -> Batch:
    """Return a batch with the requests that the runner adds so that a graph's rows all belong to one.

    They have as many rows as the others where these fill a whole number of requests, or are one; no tokens, and page 0.
    """
    query, table = list(batch.query_lengths), batch.block_table
    rest, each = rows - sum(query), query[0]
    added = [each] * (rest // each) if len(set(query)) == 1 and rest % each == 0 else [rest]
    added = [count for count in added if count]
    table = torch.cat([table, table.new_zeros(len(added), table.shape[1])])
    return Batch(query + added, [*batch.kv_lengths, *[0] * len(added)], table)


def replayed(inputs: SlidingAttentionInputs, state: str, *, paged: bool = False) -> torch.Tensor:
    """Capture a layer whose requests have no history and an empty table, replay it with the case's, return its output.

    Buffers stay where they are, as the runner keeps them; lengths come by ``update_graph_params``, as they do there.
    """
    made, batch = engine(inputs, paged=paged), padded(inputs)
    npu: Any = importlib.import_module("torch_npu").npu
    rows, device = inputs.query.shape[0], inputs.query.device
    query, table = torch.zeros_like(inputs.query), torch.zeros_like(batch.block_table)
    output = query.new_zeros(*query.shape[:2], inputs.kv.value_head_dim)
    with made.here():
        acl_graph.set_graph_params([rows])
        attention = implementation_of(inputs)
        before = Batch(batch.query_lengths, batch.query_lengths, table)
        given = (query, None, None, (inputs.kv.key, inputs.kv.value), metadata(made, before, state, device))
        graph = npu.NPUGraph()
        made.context.capturing = True
        with npu.graph(graph):
            answer: torch.Tensor = attention.forward(layer(), *given, output=output)
        made.context.capturing = False
        query.copy_(inputs.query)
        table.copy_(batch.block_table)
        after = metadata(made, Batch(batch.query_lengths, batch.kv_lengths, table), state, device)
        graph.replay()  # from here on nothing may wait for the device, which waits for the update
        update(made, attention, after, rows)
    return answer


def update(made: Engine, attention: Any, said: Any, rows: int) -> None:  # noqa: ANN401 - vllm-ascend's
    """Give a replay of so many rows, which waits for it, the lengths of its batch, and wait for its end."""
    npu: Any = importlib.import_module("torch_npu").npu
    updates = npu.Stream()
    try:
        attention.update_graph_params(updates, SimpleNamespace(attn_metadata={LAYER: said}), rows, made.config)
    except BaseException:
        for event in acl_graph.get_graph_params().events[rows]:  # or the replay would wait for ever
            event.record(updates)
        raise
    finally:
        npu.synchronize()

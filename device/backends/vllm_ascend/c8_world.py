"""vllm-ascend's attention over a cache of int8 (C8): a layer as its quantisation method makes it, and its passes."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from vllm_ascend.attention import attention_v1
from vllm_ascend.compilation import acl_graph
from vllm_ascend.quantization.methods import kv_c8

from npudiff.device.ascend.quantised_kv_attention import sides, slots_of, tokens_at
from npudiff.device.backends.vllm_ascend.attention_world import (
    LAYER,
    Batch,
    Engine,
    filled,
    metadata,
    plain_engine,
    update,
)
from npudiff.device.backends.vllm_ascend.world import patched
from npudiff.reference.quantised_kv_attention import QuantisedKvAttentionInputs

NEW_TOKENS = {"new_tokens": ("cached", "written")}
"""Whether keys and values of the new tokens are in the cache before the pass, or handed over to it, which quantises
and writes them. The latter with scales of powers of two only: with others integers that come back may be others."""

_UNWRITTEN = -99
"""What slots hold that the pass has to write."""


@dataclass(frozen=True)
class New:
    """New tokens that a pass has to write, as the model has them: rows of queries."""

    key: torch.Tensor
    value: torch.Tensor
    slots: torch.Tensor
    """int32 ``[rows]``."""


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make parameters in the dtype of a model, as vllm's loader does."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def engine(inputs: QuantisedKvAttentionInputs, drafts: int = 0, method: str = "eagle3") -> Engine:
    """Return the engine of a case, which drafts so many tokens in each step."""
    made = plain_engine(inputs.query.dtype, inputs.pool.block_table)
    made.config.quant_config = SimpleNamespace(enable_c8_quant=True)
    made.config.cache_config = SimpleNamespace(block_size=inputs.pool.page_size)
    if drafts:
        made.config.speculative_config = SimpleNamespace(
            num_speculative_tokens=drafts, parallel_drafting=False, method=method
        )
    return made


def layer(inputs: QuantisedKvAttentionInputs, made: Engine) -> Any:  # noqa: ANN401 - vllm-ascend's
    """Return a layer as C8's method makes, loads and prepares it, inside ``Engine.here``.

    ModelSlim's offsets are those of the quantisation, ``x / scale + offset``: the negative of those of a case.
    """
    pool = inputs.pool
    module: Any = torch.nn.Module()
    module.layer_name = LAYER
    module.impl = attention_v1.AscendAttentionBackendImpl(
        inputs.query.shape[1], pool.head_dim, inputs.scale, pool.kv_heads, None, None, "auto", None, "decoder", None
    )
    with _default_dtype(inputs.query.dtype), patched(kv_c8, {"get_current_vllm_config": lambda: made.config}):
        method = kv_c8.AscendC8KVCacheAttentionMethod({}, LAYER)
        method.create_weights(module)
        for name, side in zip(("k", "v"), sides(inputs), strict=True):
            offset = torch.zeros_like(side.scale) if side.offset is None else -side.offset
            for parameter, numbers in ((f"{name}_cache_scale", side.scale), (f"{name}_cache_offset", offset)):
                held = getattr(module, parameter)
                held.weight_loader(held, numbers.flatten())
        method.process_weights_after_loading(module)
    return module


def caches(inputs: QuantisedKvAttentionInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Copies of the caches, as the runner has shaped them; their bytes lie as the implementation writes them, in NZ."""
    pool = inputs.pool
    shape = (-1, pool.page_size, pool.kv_heads, pool.head_dim)
    key, value = (cache.clone().view(shape) for cache in (pool.key, pool.value))
    return key, value


def of_model(inputs: QuantisedKvAttentionInputs, request: int, first: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of a request from a token on, in the query's dtype, ``[tokens, kv_heads, head_dim]``."""
    pages, offsets = (one[first:] for one in slots_of(inputs, request))
    places = pages * inputs.pool.page_size + offsets
    found = []
    for side, cache in zip(sides(inputs), (inputs.pool.key, inputs.pool.value), strict=True):
        integers = tokens_at(cache, (pages, offsets))
        found.append(side.restored(integers, places, inputs.pool.page_size, inputs.query.dtype))
    return found[0], found[1]


def new_tokens(inputs: QuantisedKvAttentionInputs) -> New:
    """Keys, values and slots of the rows; those of padding have no slot."""
    each = [
        (*of_model(inputs, request, total - new), _slots(inputs, request)[total - new :])
        for request, (new, total) in enumerate(zip(inputs.query_lengths, inputs.kv_lengths, strict=True))
    ]
    padding = len(inputs.query) - sum(inputs.query_lengths)
    key, value, slots = (torch.cat(parts) for parts in zip(*each, strict=True))
    key, value = (torch.nn.functional.pad(one, (0, 0, 0, 0, 0, padding), value=77.0) for one in (key, value))
    return New(key, value, torch.nn.functional.pad(slots, (0, padding), value=-1).to(torch.int32))


def _slots(inputs: QuantisedKvAttentionInputs, request: int) -> torch.Tensor:
    pages, offsets = slots_of(inputs, request)
    return pages * inputs.pool.page_size + offsets


def unwritten(inputs: QuantisedKvAttentionInputs, held: Sequence[torch.Tensor], new: New) -> None:
    """Put something else where the new tokens go."""
    heads, dim, size = inputs.pool.kv_heads, inputs.pool.head_dim, inputs.pool.page_size
    slots = new.slots[new.slots >= 0].long()
    for cache in held:
        cache.view(-1, heads, dim // 32, size, 32)[slots // size, :, :, slots % size] = _UNWRITTEN


def attended(
    inputs: QuantisedKvAttentionInputs, state: str, *, written: bool, drafts: int = 0, method: str = "eagle3"
) -> torch.Tensor:
    """Run a pass of one layer; return its output, ``[rows, heads, head_dim]``."""
    made, query, held = engine(inputs, drafts, method), inputs.query, caches(inputs)
    new = new_tokens(inputs) if written else None
    slots = None if new is None else new.slots[: sum(inputs.query_lengths)]
    batch = Batch(inputs.query_lengths, inputs.kv_lengths, inputs.pool.block_table, slots)
    output = torch.zeros_like(query)
    with made.here():
        module = layer(inputs, made)
        given = _given(inputs, module, held, new)
        said = metadata(made, batch, state, query.device)
        answer: torch.Tensor = module.impl.forward(module, query, *given, held, said, output=output)
    return answer


def _given(
    inputs: QuantisedKvAttentionInputs,
    module: Any,  # noqa: ANN401 - vllm-ascend's
    held: tuple[torch.Tensor, torch.Tensor],
    new: New | None,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Keys and values that a pass is given; where it is given none, an earlier one has told it its caches."""
    if new is None:
        module.impl.key_cache, module.impl.value_cache = held
        return None, None
    unwritten(inputs, held, new)
    return new.key, new.value


def replayed(inputs: QuantisedKvAttentionInputs, state: str, *, written: bool, drafts: int = 0) -> torch.Tensor:
    """Capture a pass whose requests have no history, no slots and an empty table; replay it with the case's.

    Buffers stay where they are, as the runner keeps them; lengths come by ``update_graph_params``, as they do there.
    """
    made, held, rows, device = engine(inputs, drafts, "mtp"), caches(inputs), len(inputs.query), inputs.query.device
    batch = filled(Batch(inputs.query_lengths, inputs.kv_lengths, inputs.pool.block_table), rows)
    new = new_tokens(inputs) if written else None
    buffers = None if new is None else New(
        torch.zeros_like(new.key), torch.zeros_like(new.value), torch.full_like(new.slots, -1)
    )  # fmt: skip
    query, table = torch.zeros_like(inputs.query), torch.zeros_like(batch.block_table)
    slots = None if buffers is None else buffers.slots
    npu: Any = importlib.import_module("torch_npu").npu
    with made.here():
        acl_graph.set_graph_params([rows])
        module = layer(inputs, made)
        given = _given(inputs, module, held, buffers)
        before = metadata(made, Batch(batch.query_lengths, batch.query_lengths, table, slots), state, device)
        graph, output = npu.NPUGraph(), torch.zeros_like(query)
        made.context.capturing = True
        with npu.graph(graph):
            answer: torch.Tensor = module.impl.forward(module, query, *given, held, before, output=output)
        made.context.capturing = False
        query.copy_(inputs.query)
        table.copy_(batch.block_table)
        if new is not None and buffers is not None:
            unwritten(inputs, held, new)
            for buffer, now in ((buffers.key, new.key), (buffers.value, new.value), (buffers.slots, new.slots)):
                buffer.copy_(now)
        after = metadata(made, Batch(batch.query_lengths, batch.kv_lengths, table, slots), state, device)
        graph.replay()
        update(made, module.impl, after, rows)
    return answer


def decodes_first(inputs: QuantisedKvAttentionInputs, most: int) -> tuple[QuantisedKvAttentionInputs, torch.Tensor]:
    """Return the batch as the runner orders it, requests of at most so many rows before others, and where rows went."""
    lengths = inputs.query_lengths
    order = sorted(range(len(lengths)), key=lambda request: lengths[request] > most)
    rows = torch.split(torch.arange(len(inputs.query)), [*lengths, len(inputs.query) - sum(lengths)])
    places = torch.cat([*(rows[request] for request in order), rows[-1]]).to(inputs.query.device)
    pool = inputs.pool
    ordered = replace(
        inputs, query=inputs.query[places],
        pool=replace(pool, block_table=pool.block_table[torch.tensor(order, device=pool.block_table.device)]),
        query_lengths=tuple(lengths[request] for request in order),
        kv_lengths=tuple(inputs.kv_lengths[request] for request in order),
    )  # fmt: skip
    return ordered, places


def whole(inputs: QuantisedKvAttentionInputs) -> QuantisedKvAttentionInputs:
    """The same requests as prompts of which nothing was computed, with queries of zeros where the case has none."""
    asked = torch.split(inputs.query, [*inputs.query_lengths, len(inputs.query) - sum(inputs.query_lengths)])
    each = [
        torch.nn.functional.pad(one, (0, 0, 0, 0, total - len(one), 0))
        for one, total in zip(asked, inputs.kv_lengths, strict=False)
    ]
    return replace(inputs, query=torch.cat(each), query_lengths=inputs.kv_lengths)

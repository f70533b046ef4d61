"""vllm-ascend's attention as its model runner calls it: implementation, metadata, caches and the forward context."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from itertools import accumulate
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from vllm_ascend import utils
from vllm_ascend.attention import attention_v1

from npudiff.reference.sliding_attention import SlidingAttentionInputs

MASK_SIZE = 2048
"""Rows and columns of the mask of a causal prefill."""


CUSTOM_OP = {"custom_op": ("1", "0")}
"""Whether vllm-ascend finds its own operators in C++, or takes torch_npu's: what ``enable_custom_op()`` says. It asks in
each call, and remembers the first answer, in whose place an adapter puts the option of its case."""


def options_of(inputs: object) -> dict[str, str]:
    """Return the options of a case, which its inputs carry."""
    options: dict[str, str] = getattr(inputs, "options", {})
    return options


@contextlib.contextmanager
def custom_op(inputs: object) -> Iterator[None]:
    """Let ``enable_custom_op()`` say what the option of a case says."""
    with mock.patch.object(utils, "_CUSTOM_OP_ENABLED", options_of(inputs)["custom_op"] == "1"):
        yield


def engine_config(dtype: torch.dtype) -> SimpleNamespace:
    """Return what vllm-ascend reads of an engine's configuration."""
    compilation = SimpleNamespace(
        custom_ops=["all"], enabled_custom_ops=Counter(), disabled_custom_ops=Counter(), cudagraph_mode=None
    )
    return SimpleNamespace(
        kv_transfer_config=None,
        quant_config=None,
        speculative_config=None,
        model_config=SimpleNamespace(runner_type="generate", dtype=dtype),
        compilation_config=compilation,
        additional_config={},
    )


@contextlib.contextmanager
def forward_context(dtype: torch.dtype) -> Iterator[None]:
    """Be inside a forward pass that is not captured: what the runner sets, where this version has it."""
    config = engine_config(dtype)
    context = type("Context", (), {"capturing": False, "is_draft_model": False, "sinks": False})
    values: dict[str, object] = {
        "get_current_vllm_config": lambda: config,
        "needs_layer_aware_fia_graph_replay": lambda: False,
        "using_paged_attention": lambda *_, **__: False,
        "record_attention_compute_start": lambda: None,
        "_EXTRA_CTX": context,
    }
    with contextlib.ExitStack() as stack:
        for name, value in values.items():
            if hasattr(attention_v1, name):
                stack.enter_context(mock.patch.object(attention_v1, name, value))
        yield


def metadata(inputs: SlidingAttentionInputs, state: str) -> Any:  # noqa: ANN401 - vllm-ascend's
    """Return the metadata of a batch whose keys and values are in the cache."""
    device = inputs.query.device
    lengths = torch.tensor(inputs.kv_lengths, dtype=torch.int32)
    mask = torch.ones(MASK_SIZE, MASK_SIZE, dtype=torch.int8).triu(1).to(device)
    wanted = {
        "attn_mask": mask,
        "attn_state": attention_v1.AscendAttentionState[state],
        "num_actual_tokens": sum(inputs.query_lengths),
        "seq_lens": lengths,
        "seq_lens_cpu": lengths,
        "seq_lens_list": list(inputs.kv_lengths),
        "actual_seq_lengths_q": list(accumulate(inputs.query_lengths)),
        "block_tables": inputs.kv.block_table,
        "max_query_len": max(inputs.query_lengths),
        "causal": True,
        "model_runner_type": "generate",
    }
    known = {field.name for field in fields(attention_v1.AscendMetadata)}
    return attention_v1.AscendMetadata(**{name: value for name, value in wanted.items() if name in known})

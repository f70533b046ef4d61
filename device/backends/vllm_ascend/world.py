"""What several adapters of vllm-ascend need: the configuration of an engine, and options."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from types import ModuleType, SimpleNamespace
from unittest import mock

import torch
from vllm_ascend import utils

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
def patched(module: ModuleType, values: Mapping[str, object]) -> Iterator[None]:
    """Let a module find these under their names, where this version of it has them: what an engine would have set."""
    with contextlib.ExitStack() as stack:
        for name, value in values.items():
            if hasattr(module, name):
                stack.enter_context(mock.patch.object(module, name, value))
        yield

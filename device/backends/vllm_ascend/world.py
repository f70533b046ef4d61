"""What several adapters of vllm-ascend need: the configuration of an engine, and options."""

from __future__ import annotations

import contextlib
import importlib
from collections import Counter
from collections.abc import Iterator, Mapping
from types import ModuleType, SimpleNamespace
from unittest import mock

import torch
from vllm.config import vllm as vllm_config
from vllm.forward_context import override_forward_context
from vllm_ascend import ascend_config, utils

from npudiff.device.backends.stubs import StubCalled
from npudiff.device.backends.vllm_ascend.boot import WITH_TRITON

CUSTOM_OP = {"custom_op": ("1", "0")}
"""Whether vllm-ascend finds its own operators in C++, or takes torch_npu's: what ``enable_custom_op()`` says. It asks
in each call, and remembers the first answer, in whose place an adapter puts the option of its case."""


TRITON = {"triton": ("0", "1")}
"""Whether a function takes its Triton kernel, as it does where triton-ascend is installed, or torch_npu's operators."""


@contextlib.contextmanager
def triton(inputs: object) -> Iterator[None]:
    """Let modules have found Triton, or not, as the option of a case says.

    Raises
    ------
    StubCalled
        If it is asked for and not here.
    """
    if options_of(inputs)["triton"] == "0":
        yield
        return
    with triton_found():
        yield


@contextlib.contextmanager
def triton_found() -> Iterator[None]:
    """Let modules have found Triton.

    Raises
    ------
    StubCalled
        If it is not here.
    """
    if not WITH_TRITON:
        raise StubCalled("Triton kernels of vllm-ascend need triton beside a virtual NPU")
    with contextlib.ExitStack() as stack:
        for module in WITH_TRITON:
            stack.enter_context(mock.patch.object(module, "HAS_TRITON", True))
        cores = importlib.import_module("vllm_ascend.ops.triton.triton_utils")
        cores.init_device_properties_triton()  # as a worker does when it starts
        yield


def options_of(inputs: object) -> dict[str, str]:
    """Return the options of a case, which its inputs carry."""
    options: dict[str, str] = getattr(inputs, "options", {})
    return options


@contextlib.contextmanager
def custom_op(inputs: object) -> Iterator[None]:
    """Let ``enable_custom_op()`` say what the option of a case says."""
    with mock.patch.object(utils, "_CUSTOM_OP_ENABLED", options_of(inputs)["custom_op"] == "1"):
        yield


@contextlib.contextmanager
def engine(config: object, ascend: object, **forward: object) -> Iterator[None]:
    """Be inside a forward pass of an engine: with its configuration, vllm-ascend's own, and what the pass is told.

    All three are where vllm and vllm-ascend keep them for a process.
    """
    with (
        mock.patch.object(vllm_config, "_current_vllm_config", config),
        mock.patch.object(ascend_config, "_ASCEND_CONFIG", ascend),
        override_forward_context(SimpleNamespace(additional_kwargs=forward, **forward)),
    ):
        yield


def ascend_configuration(**values: object) -> SimpleNamespace:
    """Return vllm-ascend's own configuration, as it is by default but for some values."""
    usual: dict[str, object] = {
        "ascend_compilation_config": SimpleNamespace(),
        "eplb_config": SimpleNamespace(dynamic_eplb=False),
        "ascend_fusion_config": SimpleNamespace(fusion_ops_gmmswigluquant=True),
        "enable_fused_mc2": 0,
        "weight_nz_mode": 1,
        "pa_shape_list": [],
    }
    return SimpleNamespace(**{**usual, **values})


def parameter(values: torch.Tensor) -> torch.nn.Parameter:
    """Return a parameter of a layer as its loader leaves it."""
    return torch.nn.Parameter(values.contiguous(), requires_grad=False)


@contextlib.contextmanager
def without_prefetch(module: ModuleType) -> Iterator[None]:
    """Let a module of 0.23 find nothing that fetches weights ahead, as where that is not configured."""
    with patched(module, {"get_weight_prefetch_method": mock.MagicMock()}):
        yield


def engine_config(dtype: torch.dtype) -> SimpleNamespace:
    """Return what vllm-ascend reads of an engine's configuration."""
    compilation = SimpleNamespace(
        custom_ops=["all"], enabled_custom_ops=Counter(), disabled_custom_ops=Counter(), cudagraph_mode=None, mode=0
    )
    return SimpleNamespace(
        kv_transfer_config=None,
        quant_config=None,
        speculative_config=None,
        model_config=SimpleNamespace(runner_type="generate", dtype=dtype, enforce_eager=True),
        compilation_config=compilation,
        additional_config={},
        use_v2_model_runner=False,
        parallel_config=SimpleNamespace(
            enable_expert_parallel=True,
            enable_eplb=False,
            decode_context_parallel_size=1,
            prefill_context_parallel_size=1,
            tensor_parallel_size=1,
        ),
    )


@contextlib.contextmanager
def patched(module: ModuleType, values: Mapping[str, object]) -> Iterator[None]:
    """Let a module find these under their names, where this version of it has them: what an engine would have set."""
    with contextlib.ExitStack() as stack:
        for name, value in values.items():
            if hasattr(module, name):
                stack.enter_context(mock.patch.object(module, name, value))
        yield

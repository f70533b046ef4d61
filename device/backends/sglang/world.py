"""sglang's own objects, built as sglang builds them: its configuration, and modules with weights of a case."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt import runtime_context

from npudiff.device.backends.paged_attention import PAGE
from npudiff.device.backends.sglang.boot import KERNELS
from npudiff.device.backends.stubs import StubModule

_RANKS = ("tp", "attn_tp", "attn_cp", "attn_dcp", "attn_dp", "moe_ep", "moe_tp", "pp")


@functools.cache
def configured() -> None:
    """Tell sglang, once in a process, that it runs on one card."""
    context = runtime_context.get_context()
    context.override_server_args(device="npu", page_size=PAGE, attention_backend="ascend").install()
    parallel = runtime_context.get_parallel()
    if not hasattr(parallel, "override_permanently"):  # before 0.5.21 its defaults say this
        return
    alone = {f"{name}_size": 1 for name in _RANKS} | {f"{name}_rank": 0 for name in _RANKS} | {"dcp_enabled": False}
    for name, value in alone.items():
        with contextlib.suppress(AttributeError, KeyError, TypeError, ValueError):  # no such name in this version
            parallel.override_permanently(**{name: value})


def alone() -> Any:  # noqa: ANN401 - sglang's groups
    """Return the group of one rank, and let sglang find it as that of its tensors."""
    configured()
    parallel = runtime_context.get_parallel()
    with contextlib.suppress(AttributeError, KeyError, TypeError, ValueError):
        parallel.override_permanently(tp_group=_ALONE)
    return _ALONE


@contextlib.contextmanager
def ranks(**values: int) -> Iterator[None]:
    """Let sglang find other numbers of ranks, and another rank of them, for a moment."""
    configured()
    group = SimpleNamespace(world_size=values["tp_size"], rank_in_group=values["tp_rank"])
    with runtime_context.get_parallel().override(**values, tp_group=group):
        yield


_ALONE = SimpleNamespace(barrier=lambda: None, world_size=1, rank_in_group=0)


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Let environment variables have these values for a moment: sglang reads some of them in each call."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def options_of(inputs: object) -> dict[str, str]:
    """Return the options of a case, which its inputs carry."""
    options: dict[str, str] = getattr(inputs, "options", {})
    return options


def flags_of(inputs: object) -> dict[str, str]:
    """Return those options of a case that are environment variables of sglang."""
    return {name: value for name, value in options_of(inputs).items() if name.startswith(("ASCEND_", "SGLANG_"))}


def filled(parameter: Any, values: torch.Tensor, *shard: str | int) -> None:  # noqa: ANN401 - of any module
    """Load a weight as sglang's loader does: by the parameter's own loader, or a copy.

    Parameters
    ----------
    parameter : torch.nn.Parameter
        Of a module.
    values : torch.Tensor
        Of a checkpoint.
    shard
        Which projection of the parameter this is, where it holds several.
    """
    loader = getattr(parameter, "weight_loader", None)
    if loader is None:
        parameter.data.copy_(values)
    else:
        loader(parameter, values, *shard)


def kernels_are_here() -> str:
    """Say that Triton kernels of sgl-kernel-npu are not here, if so: sglang calls them where it finds them."""
    if isinstance(sys.modules.get("sgl_kernel_npu"), StubModule):
        return f"it needs Triton kernels of sgl-kernel-npu: set {KERNELS} to a checkout of it"
    return ""

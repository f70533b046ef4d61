"""torch_npu's own operators on the virtual NPU: the simulator's kernels, and a clear error for all others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from npudiff.device.simulator.library import install, operators
from npudiff.device.simulator.moe.token_permute import token_unpermute
from npudiff.device.simulator.schemas import namespace, qualified_name
from npudiff.device.virtual import formats
from npudiff.device.virtual.calls import signature_of
from npudiff.device.virtual.dispatch import COMPOSITE_KEY, KEY, composites, overload_of, registered
from npudiff.device.virtual.kernels import device_kernel
from npudiff.device.virtual.memory import NoKernel

_NAMESPACES = ("npu", "atb")

LEFT_TO_TORCH_NPU = frozenset({
    "npu::get_npu_format", "npu::get_storage_size", "npu::empty_with_format", "npu::empty_with_format.names",
    "npu::unsafe_empty_with_format", "npu::empty_with_swapped_memory", "npu::npu_change_data_ptr",
    "npu::print_npugraph_tensor", "npu::save_npugraph_tensor", "npu::save_npugraph_tensor.tensor_list",
    "npu::super_kernel_scope_begin", "npu::super_kernel_scope_end",
})  # fmt: skip
"""Operators without device code: they allocate, look at a tensor's metadata, or copy it for a host function."""


def register(library: Callable[[str], Any]) -> int:
    """Register a kernel for every operator of torch_npu, and return how many the simulator has.

    Parameters
    ----------
    library : callable
        Returns the ``torch.library.Library`` to register in, of a namespace.
    """
    install()
    special = {**_casts(), **_internal()}  # torch_npu's own kernels are asked for before others take their places
    simulated = {
        f"{namespace(operator.schema)}::{qualified_name(operator.schema)}": operator for operator in operators()
    }
    for qualified in (registered(KEY, *_NAMESPACES) | simulated.keys()) - LEFT_TO_TORCH_NPU:
        overload = overload_of(qualified)
        if overload is None:
            continue
        space, _, name = qualified.partition("::")
        if qualified in special:
            kernel = special[qualified]
        elif qualified in simulated:
            operator = simulated[qualified]
            known = signature_of(overload)
            random = known.random if operator.random is None else operator.random
            hosts = frozenset(operator.host), frozenset(operator.host_memory)
            signature = replace(known, host=hosts[0], host_memory=hosts[1], pinned=operator.pinned, random=random)
            kernel = device_kernel(signature, operator.cpu, operator.formatted)
        else:
            kernel = _missing(qualified)
        library(space).impl(name, kernel, KEY, allow_override=True)
    for qualified in (composites(*_NAMESPACES) - simulated.keys()) - LEFT_TO_TORCH_NPU:
        overload = overload_of(qualified)
        space, _, name = qualified.partition("::")
        if overload is not None and not any("Tensor" in str(one.type) for one in overload._schema.arguments):
            # Without a tensor that says where, it would reach torch_npu's own kernel, and CANN's functions.
            library(space).impl(name, _missing(qualified), COMPOSITE_KEY, allow_override=True)
    return len(simulated)


def replace_functions() -> None:
    """Replace functions of torch_npu that call kernels without asking torch for them."""
    import torch_npu  # noqa: PLC0415 - imported already

    torch_npu._C._npu_fused_infer_attention_score_out_graph = _update_fused_attention


def _update_fused_attention(stream: Any, handle: Any, event: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:  # noqa: ANN401
    """Update the attention of a task group, and let the graph that waits for it go on."""
    device = torch.get_device_module("npu")
    device.graph_task_update_begin(stream, handle)
    results = torch.ops.npu.npu_fused_infer_attention_score.out(*args, **kwargs)
    device.graph_task_update_end(stream)
    event.record(stream)
    return tuple(results)


def _casts() -> dict[str, Callable[..., Any]]:
    """Return kernels of casts: they change the storage of a device tensor, which no function of CPU tensors can."""
    own = torch.library.get_kernel("npu::_npu_format_cast", KEY)
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.PrivateUse1)
    cast = formats.format_cast(partial(own.call_boxed, keys))
    in_place = formats.format_cast_in_place(cast)
    return {
        "npu::npu_format_cast": cast,
        "npu::_npu_format_cast": cast,
        "npu::npu_format_cast.Tensor": formats.format_cast_like(cast),
        "npu::npu_format_cast_.acl_format": in_place,
        "npu::npu_format_cast_": formats.format_cast_in_place_from(in_place),
    }


def _internal() -> dict[str, Callable[..., Any]]:
    """Return kernels of operators inside others, by which torch_npu differentiates them and keeps what that needs."""

    def unpermuted(permuted_tokens: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        return token_unpermute(permuted_tokens, *args, **kwargs), permuted_tokens

    def cast(input: Tensor, dtype: torch.dtype) -> Tensor:
        return input.to(dtype, copy=True)

    kernels: dict[str, Callable[..., Any]] = {
        "npu::_npu_moe_token_unpermute": unpermuted,
        "npu::_npu_dtype_cast": cast,  # torch_npu's collectives cast with it
    }
    found = {
        name: (overload_of(name), kernel) for name, kernel in kernels.items()
    }  # torch_npu 2.10 has not all of them
    return {name: device_kernel(signature_of(one), kernel) for name, (one, kernel) in found.items() if one is not None}


def _missing(qualified: str) -> Callable[..., Any]:
    def kernel(*_: object, **__: object) -> Any:  # noqa: ANN401 - never returns
        raise NoKernel(f"{qualified} has no kernel on the virtual NPU: the simulator does not have it")

    return kernel

"""``aten`` operators on the virtual NPU: the CPU's own kernels, on the device's memory.

torch_npu registers kernels for some 1,500 of its operators, which end in calls of CANN. Over them go kernels that run
the same operator on CPU tensors. Only what needs no device code is left to torch_npu: allocation, views, resizing,
streams.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from npudiff.device.virtual import devices, faults, tasks
from npudiff.device.virtual.autograd import composite, differentiated_by_torch, differentiated_on_host
from npudiff.device.virtual.calls import Call, Signature, signature_of
from npudiff.device.virtual.dispatch import AUTOGRAD_KEY, KEY, overload_of, registered
from npudiff.device.virtual.kernels import device_kernel
from npudiff.device.virtual.memory import NoKernel, NotOnVirtualNpu, is_on_device, known_format
from npudiff.device.virtual.recorded import copied_to_host
from npudiff.device.virtual.widened import in_float32, lacks_dtype

_COMPOSITE_KEYS = tuple(
    f"Composite{kind}" for kind in ("ImplicitAutograd", "ExplicitAutograd", "ExplicitAutogradNonFunctional")
)

LEFT_TO_TORCH_NPU = frozenset({
    "empty.memory_format", "empty_strided", "empty_like", "new_empty_strided", "empty_with_format",
    "unsafe_empty_with_format", "empty_with_swapped_memory", "_empty_affine_quantized", "get_npu_format",
    "get_storage_size", "is_pinned", "_pin_memory", "record_stream", "resize_", "resize_as_", "as_strided_",
    "set_", "set_.source_Storage", "set_.source_Storage_storage_offset", "set_.source_Tensor", "is_set_to",
    "_lazy_clone",
})  # fmt: skip
"""Operators without device code: they allocate, look at a tensor's metadata, or change it."""

_AS_BYTES_LIE = frozenset({"_local_scalar_dense"})
"""Operators that torch_npu has as copies of bytes, whatever a storage's format: ``item`` (LocalScalarDenseNpu.cpp)."""

DEVICE_DECIDES = frozenset({"scaled_dot_product_attention", "lstm.input", "lstm.data", "gru.input", "gru.data"})
"""Composite operators that choose kernels by the device; they are differentiated on the host as a whole."""


def register(library: Any) -> int:  # noqa: ANN401 - torch.library.Library of aten
    """Register kernels for all ``aten`` operators, and return how many."""
    count = 0
    host, differentiated = _names("CPU"), _names(AUTOGRAD_KEY)
    own = _names(KEY) | differentiated
    composites = _names("CompositeImplicitAutograd") - host  # as on the host, where a kernel goes first
    for name in sorted(own | host):
        overload = overload_of(f"aten::{name}")
        if overload is None or name in LEFT_TO_TORCH_NPU or _is_view(overload):
            continue
        library.impl(name, _kernel(name, overload), KEY, allow_override=True)
        if name in composites:
            library.impl(name, _differentiable(name, overload), AUTOGRAD_KEY, allow_override=True)
        elif name in differentiated:
            by_torch = differentiated_by_torch(overload)
            library.impl(name, by_torch, AUTOGRAD_KEY, allow_override=True, with_keyset=True)
        count += 1
    return count + _register_missing(library)


def _register_missing(library: Any) -> int:  # noqa: ANN401
    """Let operators that neither torch_npu nor the CPU has say so; else torch_npu tries them on the CPU, and warns."""
    names = {name.removeprefix("aten::") for name in torch._C._dispatch_get_all_op_names() if name.startswith("aten::")}
    for key in (KEY, "CPU", *_COMPOSITE_KEYS):
        names -= _names(key)
    missing = {name: overload for name in sorted(names) if (overload := overload_of(f"aten::{name}")) is not None}
    for name, overload in missing.items():
        library.impl(name, _missing(signature_of(overload)), KEY)
    return len(missing)


def _names(key: str) -> set[str]:
    """Return the ``aten`` operators that have a kernel for a dispatch key, without the namespace."""
    return {name.removeprefix("aten::") for name in registered(key, "aten")}


def _is_view(overload: Any) -> bool:  # noqa: ANN401
    """Whether an operator only gives another view; ``contiguous`` is one by its schema, and copies."""
    schema = overload._schema
    if schema.is_mutable or schema.name == "aten::contiguous":
        return False
    return any(result.alias_info is not None for result in schema.returns)


def _kernel(name: str, overload: Any) -> Callable[..., Any]:  # noqa: ANN401
    signature = signature_of(overload)
    if name == "_to_copy":
        return _to_copy(signature, overload)
    if name in ("_copy_from", "_copy_from_and_resize"):
        return _missing(signature)
    function = _histc_of_integers(overload) if name == "histc" else _on_cpu(signature, overload)
    if name in _MATRICES:
        function = _of_two_dtypes(_MATRICES[name], function)
    return device_kernel(signature, function, () if name in _AS_BYTES_LIE else None)


def _differentiable(name: str, overload: Any) -> Callable[..., Any]:  # noqa: ANN401
    kernel = differentiated_on_host(overload) if name in DEVICE_DECIDES else composite(overload)
    return _contiguous(kernel) if name == "contiguous" else kernel


def _on_cpu(signature: Signature, overload: Any) -> Callable[..., Any]:  # noqa: ANN401
    """Return the operator for CPU tensors; where the CPU has none, one that says so by the operator's name."""

    def run(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - an operator's
        try:
            return overload(*args, **kwargs)
        except NotImplementedError as error:
            if "Could not run" in str(error):
                raise _no_kernel(signature) from error
            if not lacks_dtype(error):
                raise
            return in_float32(signature, overload, args, kwargs)

    return run


_MATRICES = {"mm": slice(2), "bmm": slice(2), "addmm": slice(1, 3), "baddbmm": slice(1, 3)}
"""Products of matrices, and which arguments these are. aclnnMm, aclnnBatchMatMul and what adds to them promote two
dtypes; torch_npu gives the result that of the first argument (MmKernelNpuOpApi.cpp and its neighbours in op-plugin)."""


def _of_two_dtypes(matrices: slice, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a product that promotes matrices of two dtypes, which the CPU refuses."""

    def run(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - an operator's
        one, other = args[matrices]
        if one.dtype == other.dtype:
            return function(*args, **kwargs)
        promoted = torch.promote_types(one.dtype, other.dtype)
        return function(*(tensor.to(promoted) for tensor in args), **kwargs).to(args[0].dtype)

    return run


def _histc_of_integers(overload: Any) -> Callable[..., Any]:  # noqa: ANN401
    """Return ``histc`` for integers too, which the CPU does not have: models count tokens with it on devices."""

    def run(values: Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - an operator's
        if values.is_floating_point():
            return overload(values, *args, **kwargs)
        return overload(values.double(), *args, **kwargs).to(values.dtype)

    return run


@cache
def _warn_of_double() -> None:
    warnings.warn(_NO_DOUBLE, stacklevel=3)


def _no_kernel(signature: Signature) -> NoKernel:
    return NoKernel(f"{signature.name} has no kernel on the virtual NPU: neither the CPU nor the simulator has it")


def _missing(signature: Signature) -> Callable[..., Any]:
    def kernel(*_: object, **__: object) -> Any:  # noqa: ANN401
        raise _no_kernel(signature)

    return kernel


_FORMATS = (torch.contiguous_format, torch.preserve_format)
_NO_DOUBLE = "Device do not support double dtype now, dtype cast replace with float."


def _contiguous(kernel: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the kernel of ``contiguous``, which lays nothing out as channels last, as torch_npu's own."""

    def contiguous(tensor: Tensor, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
        if tensor.is_contiguous(memory_format=memory_format):
            return tensor
        if memory_format != torch.contiguous_format:
            raise RuntimeError("NPU contiguous operator only supported contiguous memory format.")
        return kernel(tensor)

    return contiguous


def _to_copy(signature: Signature, overload: Any) -> Callable[..., Any]:  # noqa: ANN401
    """Return the kernel of ``_to_copy``, whose result may be on the host.

    What torch_npu's own refuses or replaces (aten/common/ToKernelNpu.cpp) is refused and replaced here: a tensor that
    is already on the device becomes float32 where float64 is asked for, which loses precision there too.
    """

    def copied(self: Tensor, **options: Any) -> Tensor:  # noqa: ANN401
        of_device = ("device", "non_blocking", "pin_memory")
        values: Tensor = overload(self, **{name: one for name, one in options.items() if name not in of_device})
        return values

    to_device = device_kernel(signature, copied)

    def kernel(self: Tensor, **options: Any) -> Tensor:  # noqa: ANN401 - dtype, layout, device, memory format
        if options.get("memory_format") not in (None, *_FORMATS):
            raise RuntimeError("Only contiguous_format or preserve_format is supported.")
        elsewhere = options.get("device") is not None or options.get("layout") is not None
        if options.get("dtype") == torch.float64 != self.dtype and not elsewhere:
            _warn_of_double()
            options["dtype"] = torch.float32
        wanted = options.pop("device", None)
        to = self.device if wanted is None else torch.device(wanted)
        if to.type == "npu":
            with devices.chosen(to.index):
                answer: Tensor = to_device(self, **options)
            return answer
        if to.type != "cpu":
            raise NotOnVirtualNpu(f"{signature.name}: no copies to {to}; the virtual NPU knows the host and itself")
        if is_on_device(self) and not (self.is_conj() or self.is_neg()):
            known_format(self)
        if options.get("non_blocking") and tasks.recording():
            return copied_to_host(self, lambda tensor: copied(tensor, **options))
        tasks.wait()
        faults.before(signature.name)
        values = copied(Call(None).on_host("self", self), **options)
        return values.pin_memory() if options.get("pin_memory") else values

    return kernel

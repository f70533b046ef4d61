"""A kernel of the virtual NPU: run a CPU function on the memory of device tensors, and give device tensors back.

All operators come here, those of ``aten`` as those of torch_npu. Where a stream is captured the kernel is recorded
instead: see :mod:`npudiff.device.virtual.recorded`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from torch import Tensor

from npudiff.device.virtual import devices, faults, tasks
from npudiff.device.virtual.calls import Call, Signature, check_devices, each, outputs_of, results_of, stand_ins
from npudiff.device.virtual.generators import with_host_generator
from npudiff.device.virtual.recorded import record

_UNRESIZABLE = "not resizable"
_NAMES_ITS_DEVICE = "aten::_to_copy"
"""The operator whose result is not where its argument is; who calls its kernel has chosen the device."""


def device_kernel(
    signature: Signature, function: Callable[..., Any], formatted: Collection[str] | None = None
) -> Callable[..., Any]:
    """Return a kernel for device tensors that runs a function of CPU tensors.

    Parameters
    ----------
    signature : Signature
        Of the operator.
    function : callable
        Takes and returns what the operator does.
    formatted : collection of str, optional
        Arguments whose storage format the function looks at: in FRACTAL_NZ it gets them in logical order, with a note
        of the format, and all others as their bytes lie. By default it knows nothing of formats, and gets every tensor
        in logical order, as torch_npu converts tensors for ``aten`` operators.
    """
    if signature.random:
        function = with_host_generator(function, signature.arguments)

    def attempt(args: tuple[Any, ...], kwargs: dict[str, Any], resized: Collection[int]) -> Any:  # noqa: ANN401
        call = Call(formatted, resized)
        given, named = stand_ins(signature, call, args, kwargs)
        try:
            result = function(*given, **named)
        except Exception as error:
            if signature.written and not (signature.out and _UNRESIZABLE in str(error)):
                call.store()  # what was done before the error is done
            raise
        faults.after(outputs_of(signature, result, dict(zip(signature.arguments, given, strict=False)) | named))
        if signature.written:
            call.store()
        return results_of(signature, call, result, args, kwargs)

    def later(args: tuple[Any, ...], kwargs: dict[str, Any], resized: Collection[int]) -> Any:  # noqa: ANN401
        return record(signature, function, formatted, args, kwargs, resized)

    def kernel(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        now = not tasks.recording() or _waited(signature, args, kwargs)
        run = attempt if now else later
        if now:
            faults.before(signature.name)
        try:
            return run(args, kwargs, ())
        except RuntimeError as error:
            if not signature.out or _UNRESIZABLE not in str(error):
                raise
            outputs = (kwargs.get(name) for name in signature.out)
            return run(args, kwargs, {id(tensor) for output in outputs for tensor in each(output)})

    def on_its_device(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        if not devices.several():
            return kernel(*args, **kwargs)
        index = None if signature.name == _NAMES_ITS_DEVICE else devices.of_call(args, kwargs)
        check_devices(signature, index, args, kwargs)
        with devices.chosen(index):
            return kernel(*args, **kwargs)

    on_its_device.__name__ = signature.name
    return on_its_device


def _waited(signature: Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the host has waited for the current stream, since a call needs that: then the call runs at once.

    Raises
    ------
    RuntimeError
        As torch_npu raises it, if the stream is captured, where nobody may wait for it.
    """
    given = dict(zip(signature.arguments, args, strict=False)) | kwargs
    hosts = [
        one
        for name, value in given.items()
        if name not in signature.host
        for one in each(value)
        if isinstance(one, Tensor) and one.device.type == "cpu" and (one.dim() or signature.copies)
    ]
    asynchronous = given.get("non_blocking", False) and all(one.is_pinned() for one in hosts)
    if (not hosts or asynchronous) and not signature.is_dynamic(given):
        return False
    tasks.wait()
    return True

"""Gradients: composite operators are taken apart as on any device, or differentiated on the host as a whole.

torch_npu differentiates some composite operators with functions of its own (``matmul``, ``where``), whose backward
operators only a device has. What torch itself does with them gives the numbers of the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from npudiff.device.virtual import devices, tasks
from npudiff.device.virtual.memory import NotOnVirtualNpu, is_on_device, moved_to_device, same_bytes, view_of


def composite(overload: Any) -> Callable[..., Any]:  # noqa: ANN401 - torch._ops.OpOverload
    """Return a kernel that takes a composite operator apart into others."""
    # Not overload.decompose(): it prefers a decomposition in Python, whose results have other strides and versions.
    take_apart, key = overload._op_dk, torch._C.DispatchKey.CompositeImplicitAutograd

    def kernel(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - an operator's
        return take_apart(key, *args, **kwargs)

    return kernel


def differentiated_by_torch(overload: Any) -> Callable[..., Any]:  # noqa: ANN401
    """Return torch's own kernel for gradients of an operator, in place of torch_npu's; it takes dispatch keys first.

    Torch's calls the operator's kernel for the device, and in the backward operators that have kernels here.
    """
    kernel: Callable[..., Any] = torch.library.get_kernel(overload.name(), "AutogradCPU").call_boxed
    return kernel


def differentiated_on_host(overload: Any) -> Callable[..., Any]:  # noqa: ANN401
    """Return a kernel that runs an operator on the host, and its backward there too.

    What the host's own kernel needs for its backward is kept on the host. Gradients of gradients are not there.
    """

    class OnHost(torch.autograd.Function):
        """The operator, between tensors of the device."""

        @staticmethod
        def forward(ctx: Any, arguments: _Arguments, *tensors: Tensor) -> Any:  # noqa: ANN401
            needed = [tensor.requires_grad for tensor in tensors]
            with torch.enable_grad():
                hosts = [
                    same_bytes(tensor).requires_grad_(tensor.requires_grad and tensor.is_floating_point())
                    for tensor in tensors
                ]
                results = arguments.call(overload, hosts)
            ctx.needed, ctx.hosts, ctx.released = needed, hosts, False
            ctx.save_for_backward(*tensors)  # so that it is seen when one is written to before the backward
            ctx.set_materialize_grads(False)  # nothing is not zero: it leaves no operator behind
            ctx.results = results if isinstance(results, tuple) else (results,)
            moved = tuple(moved_to_device(result.detach()) for result in ctx.results)
            constant = (
                on_device for on_device, result in zip(moved, ctx.results, strict=True) if not result.requires_grad
            )
            ctx.mark_non_differentiable(*constant)
            return moved if isinstance(results, tuple) else moved[0]

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, *gradients: Tensor | None) -> Any:  # noqa: ANN401
            keep = torch._C._autograd._get_current_graph_task_keep_graph()
            if not ctx.released:  # the host's own graph says so where it is gone, which not every graph is
                _ = ctx.saved_tensors
            ctx.released = not keep
            pairs = [
                (result, same_bytes(gradient))
                for result, gradient in zip(ctx.results, gradients, strict=True)
                if gradient is not None and result.requires_grad
            ]
            wanted = [host for host, needed in zip(ctx.hosts, ctx.needed, strict=True) if needed]
            found = iter(
                torch.autograd.grad(
                    [result for result, _ in pairs],
                    wanted,
                    [gradient for _, gradient in pairs],
                    retain_graph=keep,
                    allow_unused=True,
                )
            )
            return None, *_moved_together([next(found) if needed else None for needed in ctx.needed])

    def kernel(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - an operator's
        arguments = _Arguments(args, kwargs)
        if devices.several():
            with devices.chosen(devices.of_call(args, kwargs)):
                return on_device(arguments, args, kwargs)
        return on_device(arguments, args, kwargs)

    def on_device(arguments: _Arguments, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
        if tasks.recording() and tasks.waits_for_ranks() and tasks.capturing() is None:
            tasks.wait()
        if tasks.recording():
            if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in arguments.tensors):
                raise NotOnVirtualNpu(f"{overload.name()}: its gradients cannot be captured on the virtual NPU")
            with torch._C._AutoDispatchBelowAutograd():
                return overload(*args, **kwargs)
        return OnHost.apply(arguments, *arguments.tensors)  # type: ignore[no-untyped-call]

    return kernel


def _moved_together(tensors: list[Tensor | None]) -> list[Tensor | None]:
    """Return device tensors of CPU tensors; those that share memory still do."""
    storages = [None if tensor is None else tensor.untyped_storage() for tensor in tensors]
    pointers = [storage.data_ptr() for storage in storages if storage is not None]
    whole: dict[int, Tensor] = {}
    moved: list[Tensor | None] = []
    for tensor, storage in zip(tensors, storages, strict=True):
        if tensor is None or storage is None or pointers.count(storage.data_ptr()) < 2:
            moved.append(None if tensor is None else moved_to_device(tensor))
            continue
        if storage.data_ptr() not in whole:
            whole[storage.data_ptr()] = moved_to_device(torch.empty(0, dtype=tensor.dtype).set_(storage))
        moved.append(view_of(whole[storage.data_ptr()].untyped_storage(), tensor))
    return moved


class _Arguments:
    """Arguments of a call with its device tensors taken out, also from lists, in their order."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.tensors: list[Tensor] = []
        self._args = [self._taken(value) for value in args]
        self._kwargs = {name: self._taken(value) for name, value in kwargs.items()}

    def _taken(self, value: Any) -> Any:  # noqa: ANN401
        if is_on_device(value):
            self.tensors.append(value)
            return _Place(len(self.tensors) - 1)
        if isinstance(value, (list, tuple)):
            return type(value)([self._taken(item) for item in value])
        return value

    def call(self, overload: Any, tensors: list[Tensor]) -> Any:  # noqa: ANN401
        """Call an operator with other tensors in the places of those that were taken out."""

        def put(value: Any) -> Any:  # noqa: ANN401
            if isinstance(value, _Place):
                return tensors[value]
            if isinstance(value, (list, tuple)):
                return type(value)([put(item) for item in value])
            return value

        return overload(*map(put, self._args), **{name: put(value) for name, value in self._kwargs.items()})


class _Place(int):
    """Where a tensor was taken out."""

"""Graphs of calls: of torch_npu, and of CPU tensors, where operators are recorded and run again.

On CPU tensors, as on a card, a replay has the memory, numbers and lists of the capture, and the elements that the
memory has by then. What would wait for a card while it is captured is refused: reading numbers that come from the
inputs on the host, and operators whose results have as many elements as numbers say.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map, tree_map_only

from npudiff.model.implementation import NotCaptured
from npudiff.model.operators import tensors_in

_TO_HOST = ("tolist", "numpy", "cpu", "__array__")
"""Methods of tensors that give the host their elements past the dispatcher, or without any copy where that is here."""


class _Call(NamedTuple):
    """One operator, as it was called."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any


def recorded(call: Callable[[], object], inputs: object) -> Callable[[], None]:
    """Run a call, record its operators, and return what runs them again on the same memory.

    Parameters
    ----------
    call : callable
        The call; it keeps its outputs itself.
    inputs : object
        The tensors that it reads, in (nested) dataclasses.

    Raises
    ------
    NotCaptured
        Numbers that come from the inputs are read on the host, or say how many elements a result has.
    """
    recorder = _Recorder(tensors_in(inputs))
    with _ToHost(recorder), recorder:
        call()
    calls = recorder.calls

    def replay() -> None:
        for one in calls:
            _again(one)

    return replay


def captured(call: Callable[[], object], inputs: object) -> Callable[[], None]:
    """Capture a call with torch_npu's own graphs, and return what replays it; what waits for the device raises there.

    Parameters
    ----------
    call, inputs
        As of :func:`recorded`.
    """
    del inputs  # the device knows what it may not do
    npu = torch.get_device_module("npu")
    graph = npu.NPUGraph()
    npu.synchronize()
    with npu.graph(graph):
        call()
    replay: Callable[[], None] = graph.replay
    return replay


def _again(one: _Call) -> None:
    """Run an operator again, and put its results where they were; views and what is written in place are there."""
    result = one.function(*one.args, **one.kwargs)
    for there, new in zip(tensors_in(one.result), tensors_in(result), strict=True):
        if _memory(there) != _memory(new):
            there.copy_(new)


class _Recorder(TorchDispatchMode):
    """Records operators, and knows which memory holds what comes from the inputs."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Whether torch has to keep its compiler out of here: it would import it for that, which takes two seconds."""
        return "torch._dynamo" in sys.modules

    def __init__(self, inputs: Iterator[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._calls: list[tuple[_Call, _Call]] = []
        self._given = {_memory(tensor) for tensor in inputs}

    def comes_from_inputs(self, *values: object) -> bool:
        """Return whether any tensor among values holds what comes from the inputs."""
        return any(_memory(tensor) in self._given for tensor in tensors_in(list(values)))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Run an operator and record it."""
        given = kwargs or {}
        depends = self.comes_from_inputs(args, given)
        if depends and _reads_numbers(func, args):
            name = f"{func.namespace}::{func._opname}"
            raise NotCaptured(f"{name} waits for numbers that come from the inputs: a graph keeps those of one batch")
        result = func(*args, **given)
        if depends:
            written = (args, given, result) if func._schema.is_mutable else result
            self._given |= {_memory(tensor) for tensor in tensors_in(written)}
        if torch.Tag.inplace_view not in func.tags:  # a replay finds tensors as they became
            call = _Call(func, args, given, result)
            self._calls.append((call, _Call(func, *map(_aliases, call[1:]))))
        return result

    @property
    def calls(self) -> list[_Call]:
        """The operators in their order, with tensors as they were then."""
        return [_Call(now.function, *map(tree_map, [_as_it_was] * 3, now[1:], then[1:])) for now, then in self._calls]


def _aliases(value: Any) -> Any:  # noqa: ANN401 - arguments or results
    """Return values with every tensor replaced by another one of its memory."""
    return tree_map_only(torch.Tensor, torch.Tensor.detach, value)


def _as_it_was(now: Any, then: Any) -> Any:  # noqa: ANN401 - any argument or result
    """Return a tensor; if it was given another shape in place since then, the alias that was made of it then."""
    if not isinstance(now, torch.Tensor):
        return now
    kept = now.shape == then.shape and now.stride() == then.stride() and _memory(now) == _memory(then)
    return now if kept else then


def _reads_numbers(func: Any, args: tuple[Any, ...]) -> bool:  # noqa: ANN401 - an operator
    """Whether an operator has no result before numbers are known."""
    if torch.Tag.data_dependent_output in func.tags:
        return True
    if torch.Tag.dynamic_output_shape not in func.tags:
        return False
    indices = args[1] if func._opname == "index" else None
    return indices is None or any(one is not None and one.dtype in (torch.bool, torch.uint8) for one in indices)


class _ToHost(TorchFunctionMode):
    """Refuses what gives the host elements past the dispatcher."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Look at a function of torch before it runs."""
        name = getattr(func, "__name__", "")
        if name in _TO_HOST and self._recorder.comes_from_inputs(args):
            raise NotCaptured(f"Tensor.{name} reads what comes from the inputs: a graph keeps that of one batch")
        return func(*args, **(kwargs or {}))


def _memory(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)

"""Red zones: bytes around every tensor of a call, in which nothing may be written, and nothing is a number.

A kernel that writes one row too many hits, in a test, memory that nobody looks at, and in a server somebody's cache. So
the tensors that an implementation is given, and those that it makes by torch's operators, lie between guarded bytes
here. Those bytes are all ones, which is NaN in every float format, and so is memory that nobody has written yet:
whoever reads it gives answers that are wrong.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from npudiff.model.anything import AnyInputs, AnyOutputs
from npudiff.model.frames import place_here
from npudiff.model.implementation import Implementation, Target
from npudiff.model.operators import tensors_in
from npudiff.model.returned import stands_for_another
from npudiff.text import counted

ZONE = 512
"""Bytes of a zone: what memory of a device is aligned to."""

MOST_BYTES = 2**29
"""Bytes of a call that lie between zones; what is made beyond them does not."""

ONES = 0xFF

UNWRITTEN = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
"""Operators whose result nobody has written."""

_RESIZES = ("resize_", "resize_as_", "set_")
"""Operators after which a tensor has other memory, or more of its own."""

_PLAIN_FORMATS = (-1, 0, 2)
"""Formats of torch_npu that are no tiles: undefined, NCHW, ND."""


class WroteOutside(Exception):
    """An implementation wrote beyond the memory of a tensor."""


class NoZones(Exception):
    """A call cannot be made with red zones around its tensors."""


@dataclass(frozen=True)
class _Zone:
    memory: torch.Tensor
    """Bytes: a zone, the storage of a tensor, a zone."""
    what: str
    """The tensor, and where it was made."""
    fill: int
    """What the bytes of the zones are."""

    def written(self) -> Iterator[str]:
        """Say what of the zones is no longer as it was; of memory that was given back, nothing."""
        if self.memory.untyped_storage().nbytes() < len(self.memory):
            return
        before, behind = ((zone != self.fill).nonzero() for zone in (self.memory[:ZONE], self.memory[-ZONE:]))
        if len(before):
            yield f"{counted(len(before), 'byte')} before {self.what}, from {ZONE - int(before[0])} before it"
        if len(behind):
            yield f"{counted(len(behind), 'byte')} behind {self.what}, up to {int(behind[-1]) + 1} behind it"


class RedZones(TorchDispatchMode):
    """Puts what torch's operators make while it is entered between zones.

    What they are given keeps its memory, as do views, and tensors that have tiles or none of their own.

    Parameters
    ----------
    fill : int
        Bytes of zones, and of memory that nobody has written.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Whether torch has to keep its compiler out of here: it would import it for that, which takes two seconds."""
        return "torch._dynamo" in sys.modules

    def __init__(self, fill: int = ONES) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._fill = fill
        self._zones: dict[int, _Zone] = {}
        self._left = MOST_BYTES

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Run an operator, and move what it has made."""
        kwargs = kwargs or {}
        if func._opname in _RESIZES:
            self._zones.pop(_memory(args[0]), None)
            return func(*args, **kwargs)
        if func.namespace == "npu" and "format_cast" in func._opname:
            args = (self._taken_out(args[0], in_place=func._opname.endswith("_")), *args[1:])
        before = [(one, _memory(one), one.shape) for one in tensors_in(kwargs.get("out"))]
        given = {_memory(one) for one in tensors_in((args, kwargs))}
        result = func(*args, **kwargs)
        for one, memory, shape in before:
            if one.shape != shape:  # torch has given it the size that it needs
                self._zones.pop(memory, None)
        plain = func.namespace in ("aten", "prims")  # what others return may be what they keep
        return self._moved(result, given, func) if plain else result

    def around(self, inputs: AnyInputs) -> AnyInputs:
        """Return inputs whose tensors lie between zones; those that share memory still do. Not while it is entered."""
        moved: dict[int, torch.Tensor] = {}
        return self._inputs(inputs, "", moved)

    def check(self) -> None:
        """Say that something was written where nothing may be.

        Raises
        ------
        WroteOutside
            If it was.
        """
        found = [said for zone in self._zones.values() for said in zone.written()]
        if found:
            more = f"; and around {counted(len(found) - 1, 'other tensor')}" if len(found) > 1 else ""
            raise WroteOutside(f"the implementation wrote {found[0]}{more}")

    def _taken_out(self, tensor: torch.Tensor, *, in_place: bool) -> torch.Tensor:
        """Return a tensor in memory of its own size, by which torch_npu knows what tiles to make of it."""
        if all(_memory(tensor) != _memory(zone.memory) for zone in self._zones.values()):
            return tensor
        if tensor._base is not None:
            raise NoZones("the format of a part of a tensor depends on memory whose shape torch_npu knows")
        own = tensor.clone()
        return own if not in_place else tensor.set_(own.untyped_storage(), 0, own.shape, own.stride())

    def _moved(self, result: Any, given: set[int], func: Any) -> Any:  # noqa: ANN401 - what operators return
        if isinstance(result, torch.Tensor):
            return self._around(result, func) if _memory(result) not in given and _is_plain(result) else result
        if type(result) in (tuple, list):
            return type(result)(self._moved(one, given, func) for one in result)
        return result

    def _around(self, tensor: torch.Tensor, func: Any) -> torch.Tensor:  # noqa: ANN401 - an operator
        size = tensor.untyped_storage().nbytes()
        if not size or size > self._left:
            return tensor
        shape = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
        place = place_here()
        memory = self._between(size, tensor.device, f"the tensor {shape} of {func._opname}{place and f' at {place}'}")
        inside = _laid_out(memory, tensor)
        return inside if func._opname in UNWRITTEN else inside.copy_(tensor)

    def _between(self, size: int, device: torch.device, what: str) -> torch.Tensor:
        """Return memory of a size between zones."""
        memory = torch.full((ZONE + size + ZONE,), self._fill, dtype=torch.uint8, device=device)
        self._zones[_memory(memory)] = _Zone(memory, what, self._fill)
        self._left -= size
        return memory

    def _inputs(self, part: Any, name: str, moved: dict[int, torch.Tensor]) -> Any:  # noqa: ANN401 - any inputs
        if isinstance(part, torch.Tensor):
            return self._input(part, name, moved)
        if dataclasses.is_dataclass(part) and not isinstance(part, type):
            fields = {one.name: getattr(part, one.name) for one in dataclasses.fields(part) if one.init}
            inside = {
                field: self._inputs(value, f"{name}.{field}".lstrip("."), moved) for field, value in fields.items()
            }
            changed = {field: value for field, value in inside.items() if value is not fields[field]}
            return replace(part, **changed) if changed else part
        if type(part) in (tuple, list):
            inside_of = [self._inputs(one, f"{name}[{place}]", moved) for place, one in enumerate(part)]
            same = all(new is old for new, old in zip(inside_of, part, strict=True))
            return part if same else type(part)(inside_of)
        return part

    def _input(self, tensor: torch.Tensor, name: str, moved: dict[int, torch.Tensor]) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if not storage.nbytes() or not _is_plain(tensor):
            return tensor
        key = _memory(tensor)
        if key not in moved:
            if storage.nbytes() > self._left:
                return tensor
            memory = self._between(storage.nbytes(), tensor.device, f"the input {name}")
            whole = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
            memory[ZONE:-ZONE].copy_(whole)
            moved[key] = memory
        return _laid_out(moved[key], tensor)


def _laid_out(memory: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return a tensor in memory between zones, whose place and strides are those of another in its own."""
    inside = torch.empty(0, dtype=like.dtype, device=like.device)  # no view, whose origin torch_npu would ask about
    start = ZONE // like.element_size() + like.storage_offset()
    return inside.set_(memory.untyped_storage(), start, like.shape, like.stride())


def _is_plain(tensor: torch.Tensor) -> bool:
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.layout is not torch.strided:
        return False
    if (
        stands_for_another(tensor)
        or tensor.is_quantized
        or tensor.device.type == "meta"
        or tensor.is_conj()
        or tensor.is_neg()
    ):
        return False
    if tensor.device.type == "cpu":
        return True
    torch_npu = sys.modules.get("torch_npu")
    return torch_npu is None or int(torch_npu.get_npu_format(tensor)) in _PLAIN_FORMATS


def _memory(tensor: torch.Tensor) -> int:
    """Where the memory of a tensor begins; 0 where it has none of its own, whom asking would end the process."""
    strided = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout is torch.strided
    if not strided or tensor.device.type == "meta" or stands_for_another(tensor):
        return 0
    return tensor.untyped_storage().data_ptr()


def called_in_red_zones(
    function: Callable[[AnyInputs, Target], AnyOutputs], inputs: AnyInputs, target: Target, fill: int = ONES
) -> AnyOutputs:
    """Return what a function returns whose tensors lie between zones, filled as ``RedZones`` says.

    Raises
    ------
    WroteOutside
        If it writes into one.
    """
    zones = RedZones(fill)
    given = zones.around(inputs)
    try:
        with zones:
            outputs = function(given, target)
            target.synchronize()
    finally:
        zones.check()  # also where it has refused the inputs afterwards
    return outputs


def in_red_zones(item: Implementation, fill: int = ONES) -> Implementation:
    """Return an implementation whose calls run between zones, where it runs."""
    if item.elsewhere_in_red_zones is not None:
        return item.elsewhere_in_red_zones(fill)
    own = item.fresh().function

    def function(inputs: AnyInputs, target: Target) -> AnyOutputs:
        return called_in_red_zones(own, inputs, target, fill)

    return replace(item, function=function, factory=None, begins=None)

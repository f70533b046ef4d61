"""What an implementation returns, taken over where it leaves the implementation.

Behind this border stand plain tensors on the host, dense, and in memory that nobody else has: the next call may write
into a buffer that was returned, and ``Tensor.cpu`` copies nothing that is on the host already. What no number can be
read from is refused in one line. Code of foreign classes is run as little as can be, and where it raises it is the
implementation that raises.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from npudiff.text import clipped, printable

if TYPE_CHECKING:
    import torch

MOST_REPEATED = 2**30
"""Bytes that a tensor may have which repeats less memory, as an expanded one does: it is copied as a whole."""

_NUMBERS = ("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "bfloat16",
            "float32", "float64", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz",
            "float8_e8m0fnu")  # fmt: skip
"""Dtypes whose elements are numbers that can be compared."""

_NO_MEMORY = {
    "Python": "whose class runs code of its own for each operation",
    "FuncTorchBatched": "which has left torch.vmap",
    "FuncTorchGradWrapper": "which has left torch.func.grad",
    "Functionalize": "which has left torch.func.functionalize",
}
"""Dispatch keys of tensors that stand for others, and what is said of them."""

_MOST_SHOWN = 200


class InvalidOutput(TypeError):
    """What an implementation returned is not its outputs; the message says in one line what it is."""


def outputs_of(
    result: object, names: Sequence[str], copied: Callable[[object, str], torch.Tensor] | None = None
) -> dict[str, torch.Tensor]:
    """Return the outputs of an implementation by their names: of a mapping all, a single tensor as the first.

    Parameters
    ----------
    result : object
        What was returned.
    names : sequence of str
        Outputs of the component.
    copied : callable
        Takes a tensor and its name over; ``owned_tensor`` if none is given.

    Raises
    ------
    InvalidOutput
        If the result is neither, names an output that the component does not have, or holds what is no dense tensor.
    """
    import torch  # noqa: PLC0415 - the engine's words do not need it

    copied = owned_tensor if copied is None else copied
    kind = type(result)
    if issubclass(kind, torch.Tensor):
        return {names[0]: copied(result, names[0])}
    if not issubclass(kind, Mapping):
        wanted = f"an implementation must return a tensor or a mapping of {list(names)}"
        raise InvalidOutput(f"{wanted}, got {type_name(result)}")
    found: dict[str, torch.Tensor] = {}
    for key, value in _items(result, len(names) + 1):
        name = _own_text(key)
        if name is None or name not in names or name in found:
            given = type_name(key) if name is None else repr(clipped(name, _MOST_SHOWN))
            twice = " twice" if name in found else ""
            raise InvalidOutput(f"an implementation must return outputs among {list(names)}, got {given}{twice}")
        found[name] = copied(value, name)
    if not found:
        raise InvalidOutput(f"an implementation must return outputs among {list(names)}, got none")
    return found


def _items(mapping: Any, most: int) -> list[tuple[object, object]]:  # noqa: ANN401 - of any class
    """The first items of a mapping; those of a dict without any code of its class."""
    if issubclass(type(mapping), dict):
        return list(itertools.islice(dict.items(mapping), most))
    return [(key, mapping[key]) for key in itertools.islice(mapping, most)]


def _own_text(value: object) -> str | None:
    """Text of a string, of whatever class of strings; None for anything else."""
    return str.__str__(value) if issubclass(type(value), str) else None


def owned_tensor(value: object, name: str) -> torch.Tensor:
    """Return a copy of a tensor: on the host, contiguous, of no other class, and in memory of its own.

    Parameters
    ----------
    value : object
        What was returned.
    name : str
        What it is called in messages.

    Raises
    ------
    InvalidOutput
        If it is not a tensor, or its elements cannot be read one by one.
    """
    import torch  # noqa: PLC0415

    if not issubclass(type(value), torch.Tensor):
        raise InvalidOutput(f"{name} must be a torch.Tensor, got {type_name(value)}")
    tensor = cast("torch.Tensor", value)
    with torch._C.DisableTorchFunctionSubclass():
        keys = torch._C._dispatch_keys(tensor)
        for key, why in _NO_MEMORY.items():
            if keys.has(getattr(torch._C.DispatchKey, key)):
                raise InvalidOutput(f"{name} must be a dense tensor, got a {type_name(value)} {why}")
        plain = tensor if type(value) is torch.Tensor else torch.Tensor._make_subclass(torch.Tensor, tensor)
        problem = next(_problems(plain), "")
        if problem:
            raise InvalidOutput(f"{name} must be a dense tensor, got {problem}")
        plain = plain.detach()
        if getattr(plain, "has_names", bool)():  # torch 2.13 has no tensors with names any more
            plain = cast("Any", plain).rename(None)
        if plain.device.type != "cpu":
            return plain.cpu().resolve_neg().contiguous()
        return plain.resolve_neg().clone(memory_format=torch.contiguous_format)


def _problems(tensor: torch.Tensor) -> Iterator[str]:
    """Yield why the elements of a tensor cannot be read one by one."""
    if tensor.is_nested:
        yield "a nested one"
    if str(tensor.layout) != "torch.strided":
        yield f"one of layout {tensor.layout}"
    if tensor.is_quantized:
        yield f"a quantised one of dtype {tensor.dtype}"
    if tensor.is_meta:
        yield "one on the device meta, which holds no data"
    if str(tensor.dtype).removeprefix("torch.") not in _NUMBERS:
        yield f"one of dtype {tensor.dtype}, whose elements are not compared"
    if tensor.device.type == "cpu" and tensor.numel():
        memory = tensor.untyped_storage().nbytes()
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        last = tensor.storage_offset() + sum((size - 1) * stride for size, stride in steps)
        if (last + 1) * tensor.element_size() > memory and not tensor._is_zerotensor():
            yield f"one of shape {list(tensor.shape)} in memory of {memory} bytes"
        if tensor.nbytes > max(memory, MOST_REPEATED):
            yield f"one of shape {list(tensor.shape)}, which repeats {memory} bytes of memory"


_LITERALS = (bool, int, float, str, bytes, type(None))


def owned_answer(answer: object, what: str = "the answer") -> Any:  # noqa: ANN401 - of any question
    """Return what a live object answered, with copies in place of its tensors, also those in containers of Python.

    Containers are lists, tuples, dicts and frozen dataclasses. An object of any other class is returned as it is.

    Raises
    ------
    InvalidOutput
        If a tensor in it is not dense.
    """
    import torch  # noqa: PLC0415

    given: Any = answer
    kind: Any = type(answer)
    if issubclass(kind, torch.Tensor):
        return owned_tensor(answer, what)
    if kind in (list, tuple):
        return kind(owned_answer(part, f"{what}[{place}]") for place, part in enumerate(given))
    if kind is dict:
        return {key: owned_answer(part, f"{what}[{_shown(key)}]") for key, part in given.items()}
    if getattr(getattr(kind, "__dataclass_params__", None), "frozen", False):
        made = object.__new__(kind)
        for field in dataclasses.fields(kind):
            object.__setattr__(made, field.name, owned_answer(getattr(answer, field.name), field.name))
        return made
    return answer


def _shown(value: object) -> str:
    return clipped(printable(repr(value)), _MOST_SHOWN) if type(value) in _LITERALS else type_name(value)


def shown(answer: object) -> str:
    """Return an answer as text: a number or text as Python has it, of anything else its class."""
    return _shown(answer)


def type_name(value: object) -> str:
    """Return the name of the class of an object, whatever the class makes of being asked."""
    kind = type(value)
    name = type.__dict__["__qualname__"].__get__(kind)
    module = type.__dict__["__module__"].__get__(kind)
    whole = name if type(module) is not str or module in ("builtins", "__main__") else f"{module}.{name}"
    return clipped(printable(whole), _MOST_SHOWN)


_ASKED = ("__bool__", "__len__", "__eq__", "__hash__", "__getattribute__", "__class__")
"""Methods of an exception that might be called by who only wants to pass it on."""


class Raised(Exception):
    """Stands for an exception whose class does not do as exceptions do."""


def plain_error(error: BaseException) -> BaseException:
    """Return an exception that can be asked for its text: the same, or one of the same name."""
    kind = type(error)
    mro = type.__dict__["__mro__"].__get__(kind)
    own = [one for one in mro if one.__module__ != "builtins"] if type(kind) is type else mro
    try:
        text = str(error)
        odd = type(kind) is not type or any(name in vars(one) for one in own for name in _ASKED)
    except BaseException as other:  # noqa: BLE001 - it is foreign code
        text, odd = f"(its text cannot be read: {type_name(other)})", True
    if not odd:
        return error
    made: BaseException = type(type_name(error).rpartition(".")[2], (Raised,), {})(text)
    return made.with_traceback(error.__traceback__)


def stands_for_another(tensor: torch.Tensor) -> bool:
    """Whether a tensor has no memory of its own, but that of one which it stands for."""
    import torch  # noqa: PLC0415 - the engine's words do not need it

    keys = torch._C._dispatch_keys(tensor)
    return any(keys.has(getattr(torch._C.DispatchKey, key)) for key in _NO_MEMORY)

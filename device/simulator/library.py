"""Make the operators callable: definitions where torch_npu has made none, and kernels."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from npudiff.device.simulator.schemas import namespace, qualified_name, unqualified

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch.library import Library


@dataclass(frozen=True)
class Operator:
    """One operator overload of the ``npu`` namespace.

    Kernels are written as functions that name the arguments they use. The attributes are what the dispatcher calls:
    :func:`by_name` stands between.
    """

    schema: str
    """The registered schema, ``name[.overload](arguments) -> returns``."""
    cpu: Callable[..., Any]
    """Kernel for CPU tensors."""
    meta: Callable[..., Any]
    """Kernel that gives shapes and dtypes only."""
    formatted: tuple[str, ...] = ()
    """Arguments whose storage format the kernel looks at. It takes all others as their bytes lie."""
    request: Callable[..., Any] | None = None
    """Builds the only argument of both kernels from the call's arguments, by name; None passes these as they are."""

    host: tuple[str, ...] = ()
    """Arguments that may be tensors of the host, beside tensors of the device."""

    host_memory: tuple[str, ...] = ()
    """Arguments that are memory of the host, which it reads or writes where it is, beside tensors of the device."""

    pinned: bool = False
    """Whether that memory has to be pinned, which only a device can say."""

    random: bool | None = None
    """Whether it draws from the device's generator, where torch's tag on the operator says something else."""

    def __post_init__(self) -> None:
        for kind in ("cpu", "meta"):
            object.__setattr__(self, kind, self._bound(getattr(self, kind)))

    def _bound(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if self.request is None:
            return by_name(self.schema, function)
        request = by_name(self.schema, self.request)
        return lambda *args, **kwargs: function(request(*args, **kwargs))


def by_name(schema: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a kernel that passes a function only the arguments of the schema that its signature names.

    The dispatcher leaves out arguments that have their default. The function then gets the schema's default, unless its
    signature states one. ``**`` takes all other arguments that were given. Parameters before ``/`` are the first ones
    of the schema, under any name. A function that takes every argument is returned unchanged.

    Raises
    ------
    TypeError
        The signature needs an argument that the schema has not.
    """
    import torch  # noqa: PLC0415 - loaded with the kernels, not on import

    arguments = torch._C.parse_schema(unqualified(schema)).arguments
    parameters = inspect.signature(function).parameters.values()
    first = sum(parameter.kind is parameter.POSITIONAL_ONLY for parameter in parameters)
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    named = {
        parameter.name: parameter.default
        for parameter in list(parameters)[first:]
        if parameter.kind is not parameter.VAR_KEYWORD
    }
    others = [argument.name for argument in arguments[first:]]
    unknown = {name for name in named.keys() - set(others) if named[name] is inspect.Parameter.empty}
    if unknown:
        raise TypeError(f"{function} needs {', '.join(sorted(unknown))}, which is no argument of {schema}")
    if _is_as_called(named, arguments[first:]):
        return function
    positional = [argument.name for argument in arguments[first:] if not argument.kwarg_only]
    unused = () if takes_all else tuple(name for name in others if name not in named)
    defaults = {
        argument.name: argument.default_value
        for argument in arguments
        if argument.has_default_value() and named.get(argument.name) is inspect.Parameter.empty
    }

    def kernel(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as the dispatcher calls it
        given = defaults.copy()
        given.update(zip(positional, args[first:], strict=False), **kwargs)
        for name in unused:
            given.pop(name, None)
        return function(*args[:first], **given)

    return kernel


def _is_as_called(named: Mapping[str, object], arguments: Sequence[Any]) -> bool:
    """Whether parameters are the arguments, in their order, with a default wherever the schema has one."""
    return list(named) == [argument.name for argument in arguments] and all(
        (default is not inspect.Parameter.empty) >= argument.has_default_value()
        for default, argument in zip(named.values(), arguments, strict=True)
    )


def install() -> None:
    """Give every simulated operator of ``torch.ops.npu`` a CPU kernel.

    Operators that do not exist yet are defined from the recorded schemas, with a Meta kernel beside the CPU
    one. Where torch_npu has been imported the operators are its own, with its own shape rules, and only CPU
    kernels are added. Idempotent. Import torch_npu, and sgl-kernel-npu's package, before the first call, never
    after: they cannot define what exists. An operator that nobody has defined is then an error that names it.
    """
    _register()
    from npudiff.device.simulator.spaces import name_what_is_missing  # noqa: PLC0415 - imports torch

    name_what_is_missing()


FAMILIES = (
    "fused_attention", "atb_attention", "cache", "rotary", "norms", "mla", "activation", "quantisation", "moe",
    "grouped_matmul", "matmul", "block_scaled", "sampling", "sparse_attention",
    "linear_attention", "lora", "speculative", "elementary",
)  # fmt: skip
"""The packages beside this module that define operators, each in ``operators.OPERATORS``."""


def operators() -> Iterator[Operator]:
    """Yield every simulated operator; imports the kernels, and torch with them."""
    for family in FAMILIES:
        yield from operators_of(family)


def operators_of(family: str) -> Sequence[Operator]:
    """Return the simulated operators of one family; imports its kernels."""
    found: Sequence[Operator] = importlib.import_module(f"npudiff.device.simulator.{family}.operators").OPERATORS
    return found


@cache
def _register() -> dict[str, Library]:
    """Register once; the cache keeps the libraries alive, and with them the registrations."""
    from torch.library import Library  # noqa: PLC0415 - torch is loaded when it is needed, not on import

    libraries: dict[str, Library] = {}
    for operator in operators():
        space, name = namespace(operator.schema), qualified_name(operator.schema)
        if space not in libraries:
            libraries[space] = Library(space, "FRAGMENT")  # type: ignore[no-untyped-call]
        library = libraries[space]
        if not _is_defined(space, name):
            library.define(unqualified(operator.schema))  # type: ignore[no-untyped-call]
            library.impl(name, operator.meta, "Meta")  # type: ignore[no-untyped-call]
        library.impl(name, operator.cpu, "CPU")  # type: ignore[no-untyped-call]
    return libraries


def _is_defined(space: str, qualified: str) -> bool:
    """Say whether an overload exists in a namespace."""
    import torch  # noqa: PLC0415

    name, _, overload = qualified.partition(".")
    schemas = torch._C._jit_get_schemas_for_operator(f"{space}::{name}")
    return any(schema.overload_name == overload for schema in schemas)

"""What the simulator returns against the shape functions of torch_npu itself, call by call.

For the contract tests: torch_npu must have been imported, on the virtual NPU or a real one, before the simulator's
kernels were added to its operators.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from npudiff.device.contract.calls import NAMESPACES
from npudiff.device.simulator import library

Described = tuple[tuple[int, ...], torch.dtype] | str
"""Shape and dtype of an output that is a tensor, else what it is, such as ``None`` or ``2``."""


@dataclass(frozen=True)
class Disagreement:
    """One output of one call."""

    operator: str
    """``namespace::name``, and ``.overload`` unless that is the default."""
    output: int | None
    """Which output; None if the numbers of outputs differ."""
    simulated: Described
    wheel: Described
    """What each side says of it."""
    inputs: str
    """Shapes and dtypes of the call."""

    def __str__(self) -> str:
        """One line."""
        place = "outputs" if self.output is None else f"output {self.output}"
        return f"{self.operator}: {place}: simulated {self.simulated}, wheel {self.wheel}, of {self.inputs}"


class ShapeWatch(TorchDispatchMode):
    """Runs every operator call a second time, on meta tensors, and compares shapes and dtypes.

    Parameters
    ----------
    ours : mapping
        Shape functions of our own by ``namespace::name``, which are asked about the same calls and have to agree too.

    Attributes
    ----------
    calls : Counter
        Calls of each overload.
    compared : Counter
        Those that a meta function of torch_npu was asked about.
    disagreements : list of Disagreement
        What did not agree. Nothing is raised: in an adapter it would look like the adapter's error.
    """

    def __init__(self, ours: Mapping[str, Callable[..., object]] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._ours = ours or {}
        self.calls: Counter[str] = Counter()
        self.compared: Counter[str] = Counter()
        self.disagreements: list[Disagreement] = []

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - an overload, which has no public type
        types: object,
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the operator returns
        """Make the call, and compare."""
        del types
        kwargs = kwargs or {}
        if func.namespace not in NAMESPACES:
            return func(*args, **kwargs)
        name = str(func.name())
        # Before the call, which may write into what it is given; _op, so that the call is seen once by who watches.
        on_meta = pytree.tree_map_only(torch.Tensor, meta_like, (args, kwargs))
        result = func._op(*args, **kwargs)
        self.calls[name] += 1
        if has_meta_function(name) and is_of_torch_npu(name):
            self.compared[name] += 1
            results = [result]
            if name in self._ours:
                results.append(_attempted(self._ours[name], on_meta))
            self.disagreements += compare_with_meta(func, on_meta, results)
        return result


def meta_like(tensor: torch.Tensor) -> torch.Tensor:
    """Return a meta tensor of the same sizes, strides and dtype."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def has_meta_function(operator: str) -> bool:
    """Whether an overload has a shape function of its own; a fallback that stands for all operators is none."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(operator, "Meta")


def is_of_torch_npu(operator: str) -> bool:
    """Whether torch_npu defined an overload that has a kernel for the NPU, and not the simulator."""
    if not torch._C._dispatch_has_kernel_for_dispatch_key(operator, "PrivateUse1"):
        return False
    defined = next(line for line in torch._C._dispatch_dump(operator).splitlines() if line.startswith("debug:"))
    return library.__file__ not in defined


def registered_schemas(operator: str) -> list[str]:
    """Return the schemas with which an operator, without overload, is registered, as torch writes them."""
    return [str(schema) for schema in torch._C._jit_get_schemas_for_operator(operator)]


Arguments = tuple[Sequence[Any], dict[str, Any]]
"""Positional and keyword arguments of a call."""


def compare_with_meta(func: Any, on_meta: Arguments, results: Sequence[object]) -> list[Disagreement]:  # noqa: ANN401
    """Compare what a call has returned, or several things, with what the shape function says of the same call."""
    name, inputs = str(func.name()), ", ".join(map(_text, described(on_meta)))
    wheel = described(_attempted(func._op, on_meta))
    found = []
    for simulated in map(described, results):
        if len(simulated) != len(wheel):
            ours, theirs = (", ".join(map(_text, side)) for side in (simulated, wheel))
            found.append(Disagreement(name, None, ours, theirs, inputs))
            continue
        outputs = enumerate(zip(simulated, wheel, strict=True))
        found += [Disagreement(name, place, one, other, inputs) for place, (one, other) in outputs if one != other]
    return found


def _attempted(function: Callable[..., object], arguments: Arguments) -> object:
    """Return what a shape function returns, or the text of what it raises: that agrees with no output."""
    try:
        return function(*arguments[0], **arguments[1])
    except Exception as error:  # noqa: BLE001 - somebody else's code, and whatever it raises is a disagreement
        return f"{type(error).__name__}: {error}"


def described(values: object) -> list[Described]:
    """Describe every leaf of nested outputs; None is a leaf, where an operator has nothing to return."""
    leaves = pytree.tree_leaves(values, is_leaf=lambda leaf: leaf is None)
    return [(tuple(leaf.shape), leaf.dtype) if isinstance(leaf, torch.Tensor) else f"{leaf}" for leaf in leaves]


def _text(one: Described) -> str:
    return one if isinstance(one, str) else f"{list(one[0])} {one[1]}"

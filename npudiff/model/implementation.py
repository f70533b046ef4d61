"""One way of computing a component, and the decorator that makes one from a function."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from npudiff.errors import UsageError
from npudiff.model.constraints import Box, Constraints

ImplementationFunction = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Implementation:
    """One way of computing a component on a target."""

    component: str
    """Name of the component."""
    name: str
    """Name in listings, unique within the component."""
    function: ImplementationFunction
    """Called as ``function(inputs, target)`` with inputs on the host; it moves them to ``target.device`` and returns
    one tensor, or a mapping from output name to tensor. It may leave out outputs that it does not compute."""
    constraints: Constraints = field(default_factory=Constraints)
    """The cases that the implementation supports."""
    summary: str = ""
    """One line for listings: the first line of the function's docstring."""
    wrong: str | None = None
    """For a mutant, the real bug that it re-creates; a run is expected to find it."""
    mutant_of: str | None = None
    """For a mutant, the name of the correct implementation of the component that it differs from."""
    origin: str = ""
    """Module or file that it comes from."""
    selector: str = ""
    """What ``--impl`` has to name to find it: a module or a file. Empty for what an installed package provides."""
    factory: Callable[[], ImplementationFunction] | None = None
    """For one that keeps something between calls (a captured graph, a workspace): makes a function that has not been
    called yet. ``function`` then makes one for each call."""

    def fresh(self) -> Implementation:
        """Return the same implementation with something of its own to keep between calls; itself if it keeps none."""
        return self if self.factory is None else replace(self, function=self.factory(), factory=None)

    def __call__(self, inputs: Any, target: Any) -> Any:  # noqa: ANN401 - the component's own contract
        """Run it."""
        return self.function(inputs, target)


DEFINITION_HOOKS: list[Callable[[Implementation], Implementation]] = []
"""What each implementation passes through when it is defined; empty but in processes of ``npudiff score --suite``."""

DEFINED = "__npudiff_implementations__"
"""Name in a module under which the implementations stand whose functions are written in it, in their order."""


def implementation(
    component: str,
    *,
    name: str,
    supports: Box | Sequence[Box] | None = None,
    wrong: str | None = None,
    mutant_of: str | None = None,
    stateful: bool = False,
) -> Callable[[Callable[..., Any]], Implementation]:
    """Turn a function ``f(inputs, target)`` into an implementation that npudiff finds.

    Parameters
    ----------
    component : str
        Name of the component that the function computes.
    name : str
        Name in listings.
    supports : mapping or sequence of mappings, optional
        Allowed values per axis, or alternatives of that; cases are drawn within. ``npudiff list COMPONENT`` shows the
        axes. By default everything is supported.
    wrong : str, optional
        Marks a mutant and names the bug that it re-creates.
    mutant_of : str, optional
        Name of the correct implementation that a mutant is made from, in whose place ``npudiff score --suite`` puts it.
    stateful : bool, optional
        Whether it keeps something between calls. Then what is decorated takes nothing and returns ``f(inputs,
        target)``, which may refer to it; each case is given one of its own, so that a finding fails again by itself.

    Raises
    ------
    UsageError
        If what is decorated cannot be called so.

    Examples
    --------
    >>> import npudiff
    >>> @npudiff.implementation("swa_mask", name="mine", supports={"batch": range(1, 9)})
    ... def swa_mask(inputs, target):
    ...     return my_kernel(inputs.kv_lengths.to(target.device), inputs.capacity, inputs.window)
    """

    def decorate(function: Callable[..., Any]) -> Implementation:
        _check_signature(name, function, stateful=stateful)
        summary = (function.__doc__ or "").strip().partition("\n")[0]
        constraints = Constraints() if supports is None else Constraints.of(supports)
        called = _afresh(function) if stateful else function
        factory = function if stateful else None
        item = Implementation(
            component, name, called, constraints, summary, wrong, mutant_of, function.__module__, factory=factory
        )
        return _defined(item, function)

    return decorate


def _defined(item: Implementation, function: Callable[..., Any]) -> Implementation:
    """Pass an implementation through the hooks, and note it in the module in which its function is written.

    A loop or a factory leaves no name in the module by which it could be found. A private function is not noted.
    """
    for hook in DEFINITION_HOOKS:
        item = hook(item)
    written = inspect.unwrap(function)
    module = getattr(written, "__globals__", None)
    if module is not None and not written.__name__.startswith("_"):
        module.setdefault(DEFINED, []).append(item)
    return item


def _check_signature(name: str, function: object, *, stateful: bool) -> None:
    """Refuse what cannot be called as an implementation is; what has no signature, such as a builtin, passes."""
    takes = "stateful=True decorates what takes nothing and returns f(inputs, target)"
    takes = takes if stateful else "takes (inputs, target)"
    if not callable(function):
        raise UsageError(f"{name}: {takes}, got {type(function).__name__}, which cannot be called")
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        return
    try:
        signature.bind(*(() if stateful else (None, None)))
    except TypeError:
        bare = [item.replace(annotation=item.empty) for item in signature.parameters.values()]
        got = signature.replace(parameters=bare, return_annotation=signature.empty)
        raise UsageError(f"{name}: {takes}, got {got}") from None


def _afresh(opens: Callable[[], ImplementationFunction]) -> ImplementationFunction:
    """Make a function that opens another one for each call."""

    def function(inputs: Any, target: Any) -> Any:  # noqa: ANN401 - the component's own contract
        return opens()(inputs, target)

    return function


def outputs_of(result: object, names: Sequence[str]) -> Mapping[str, Any]:
    """Name the outputs of an implementation: a mapping as it is, a single tensor as the first output.

    Raises
    ------
    TypeError
        If the result is neither, or names an output that the component does not have.
    """
    if isinstance(result, Mapping):
        strange = [name for name in result if name not in names]
        if strange or not result:
            raise TypeError(f"an implementation must return outputs among {list(names)}, got {list(result)}")
        return result
    if hasattr(result, "shape") and hasattr(result, "dtype"):
        return {names[0]: result}
    raise TypeError(
        f"an implementation must return a tensor or a mapping of {list(names)}, got {type(result).__name__}"
    )

"""One way of computing a component on a target, the decorator that makes one from a function, and mutants.

A target is a CPU simulator, a virtual NPU, or hardware. A mutant is an implementation that is wrong on purpose, by a
small difference from a correct one.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, Literal, overload

from npudiff.errors import UsageError
from npudiff.files.names import check_title
from npudiff.model.anything import AnyInputs, AnyOutputs
from npudiff.model.constraints import Box, Constraints


class TargetUnavailable(Exception):
    """The target cannot run here; the message says why and what to do."""


class NotCaptured(Exception):
    """A call does what a graph cannot hold; the message says what."""


Capture = Callable[[Callable[[], object], object], Callable[[], None]]
"""Takes a call, and the inputs on the device that it reads; captures the call and returns what replays it. Raises
``NotCaptured``, or whatever the call raises since it is captured."""


OnRanks = Callable[[Any, AnyInputs], Callable[[], Mapping[str, "torch.Tensor"]]]
"""Takes a ``Subject`` of a component of several ranks, and the inputs of all ranks."""


@dataclass(frozen=True)
class Target:
    """A place to run implementations."""

    name: str
    """``sim``, ``virtual`` or ``npu``."""
    device: str
    """The torch device of the tensors that implementations get, such as ``cpu`` or ``npu:0``."""
    cann: str
    """The CANN profile of a simulator, or the CANN version of a device."""
    activate: Callable[[], AbstractContextManager[object]]
    """Returns a context manager inside which operators behave as on this target."""
    synchronize: Callable[[], None] = lambda: None
    """Waits for the device, so that an error surfaces in the case that caused it."""
    other_canns: tuple[str, ...] = ()
    """CANN profiles under which the same cases may behave otherwise, where it has them."""
    on_host: bool = False
    """Whether its memory and kernels are the host's, whatever its device is called: forked processes then have a device
    each."""
    capture: Capture | None = None
    """Captures a call in a graph; None where there are no graphs."""
    collectives: str | None = None
    """The backend of ``torch.distributed`` that a rank has there; None where it is npudiff's own."""
    devices: Callable[[], int] | None = None
    """How many devices there are, where each rank needs one of its own; None where there are as many as are wanted."""
    on_ranks: OnRanks | None = None
    """Begins a call of several ranks, each a process, and returns what waits for the outputs of all."""


TargetFactory = Callable[[str | None], Target]
"""Builds a target for a CANN profile (None is the default); raises ``TargetUnavailable``."""


# A plain ``Implementation`` is one of anything: the engine runs all of them. Python 3.10 has no such default itself.
if TYPE_CHECKING:
    import torch
    from typing_extensions import TypeVar

    InputsT = TypeVar("InputsT", default=Any)
    OutputsT = TypeVar("OutputsT", default=Any)
else:
    from typing import TypeVar

    InputsT = TypeVar("InputsT")
    OutputsT = TypeVar("OutputsT")

ImplementationFunction = Callable[[InputsT, Target], OutputsT]

RENAMED = {"keeps": "stateful"}
"""Arguments of the decorators that had another name, and the one that they have."""


@dataclass(frozen=True)
class Implementation(Generic[InputsT, OutputsT]):
    """One way of computing a component on a target."""

    component: str
    """Name of the component."""
    name: str
    """Name in listings, unique within the component; ``npudiff.files.names.check_title`` says which ones are legal."""
    function: ImplementationFunction[InputsT, OutputsT]
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
    factory: Callable[[], ImplementationFunction[InputsT, OutputsT]] | None = None
    """For one that keeps something between calls (a captured graph, a workspace): makes a function that has not been
    called yet. ``function`` then makes one for each call."""
    on_device: bool = False
    """Whether what was decorated is given inputs that are on the target's device; ``function`` moves them."""
    untrusted: bool = False
    """Whether its calls are made in a process of its own, which the judge's does not share and does not look into."""
    begins: Callable[[InputsT, Target], Callable[[], OutputsT]] | None = None
    """Where it runs elsewhere: begins a call as ``function`` makes one, and returns what waits for the outputs, so that
    something else can be computed meanwhile."""
    elsewhere_in_red_zones: Callable[[int], Implementation[InputsT, OutputsT]] | None = None
    """Where it runs elsewhere: returns the same, whose tensors lie between red zones there, of a byte."""
    operators: Callable[[], Mapping[str, int] | None] | None = None
    """Where it runs elsewhere: says which operators its first call there dispatched."""
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Name of an option, such as a flag of a backend, to its values, the usual one first: they are part of its cases,
    and ``inputs.options`` has those of a case."""
    absent: tuple[type[BaseException], ...] = ()
    """What it raises where something of its backend is not here: such a case is counted as not applicable. It is the
    package of a backend that says so, and no implementation of it."""
    adapters: str = ""
    """Package of adapters that it is one of, which are written for names and signatures of a backend: a case in which
    it does not fit the backend that is here is counted as not applicable."""
    requires: Callable[[], str] | None = None
    """Says what it needs and is not here, or an empty text: it is left out of a run then, and the run says why."""
    native: bool = False
    """Whether it is the plain form that a backend has beside those for a device, of PyTorch's own operators."""
    checks: bool = False
    """Whether it checks what it is given: illegal inputs have to raise."""
    graph: bool = False
    """Whether it may be captured in a graph; a mutant that says so is found there."""
    others: tuple[Implementation[InputsT, OutputsT], ...] = field(default=(), repr=False, compare=False)
    """The other ways in which its backend computes the same. It is the package of a backend that says so."""

    def __post_init__(self) -> None:
        check_title("an implementation", self.name)

    @property
    def built_in(self) -> bool:
        """Whether it is part of npudiff, whose tests have run it; what anybody else wrote may end its process."""
        return self.origin.startswith("npudiff.")

    def fresh(self) -> Implementation[InputsT, OutputsT]:
        """Return the same implementation with something of its own to keep between calls; itself if it keeps none."""
        return self if self.factory is None else replace(self, function=self.factory(), factory=None)

    def __call__(self, inputs: InputsT, target: Target) -> OutputsT:
        """Run it."""
        return self.function(inputs, target)


DEFINITION_HOOKS: list[Callable[[Implementation], Implementation]] = []
"""What each implementation passes through when it is defined; empty but in processes of ``npudiff score --suite``."""

DEFINED = "__npudiff_implementations__"
"""Name in a module under which the implementations stand whose functions are written in it, in their order."""


@overload
def implementation(
    component: str,
    *,
    name: str | None = None,
    supports: Box | Sequence[Box] | None = None,
    on_device: bool = False,
    wrong: str | None = None,
    mutant_of: str | None = None,
    stateful: Literal[False] = False,
    options: Mapping[str, Sequence[str]] | None = None,
    requires: Callable[[], str] | None = None,
    native: bool = False,
    checks: bool = False,
    graph: bool = False,
) -> Callable[[ImplementationFunction[InputsT, OutputsT]], Implementation[InputsT, OutputsT]]: ...


@overload
def implementation(
    component: str,
    *,
    name: str | None = None,
    supports: Box | Sequence[Box] | None = None,
    on_device: bool = False,
    wrong: str | None = None,
    mutant_of: str | None = None,
    stateful: Literal[True],
    options: Mapping[str, Sequence[str]] | None = None,
    requires: Callable[[], str] | None = None,
    native: bool = False,
    checks: bool = False,
    graph: bool = False,
) -> Callable[[Callable[[], ImplementationFunction[InputsT, OutputsT]]], Implementation[InputsT, OutputsT]]: ...


def implementation(
    component: str,
    *,
    name: str | None = None,
    supports: Box | Sequence[Box] | None = None,
    on_device: bool = False,
    wrong: str | None = None,
    mutant_of: str | None = None,
    stateful: bool = False,
    options: Mapping[str, Sequence[str]] | None = None,
    requires: Callable[[], str] | None = None,
    native: bool = False,
    checks: bool = False,
    graph: bool = False,
    **unknown: object,
) -> Callable[[Callable[..., Any]], Implementation]:
    """Turn a function ``f(inputs, target)`` into an implementation that npudiff finds.

    Parameters
    ----------
    component : str
        Name of the component that the function computes.
    name : str, optional
        Name in listings; by default that of the function, or of the class in small letters.
    supports : mapping or sequence of mappings, optional
        Allowed values per axis, or alternatives of that; cases are drawn within. ``npudiff list COMPONENT`` shows the
        axes. By default everything is supported.
    on_device : bool, optional
        Whether the function is given inputs that are on ``target.device`` already, and not on the host. For inputs
        that have a method ``to``, as those of the built-in components.
    wrong : str, optional
        Marks a mutant and names the bug that it re-creates; ``npudiff.mutant`` takes the rest from what it is made of.
    mutant_of : str, optional
        Name of the correct implementation that a mutant is made from, in whose place ``npudiff score --suite`` puts it.
    stateful : bool, optional
        Whether it keeps something between calls. Then what is decorated takes nothing and returns ``f(inputs,
        target)``, which may refer to it; each case is given one of its own, so that a finding fails again by itself.
    options : mapping, optional
        Values of each option, the usual one first, such as ``{"ASCEND_USE_FIA": ("1", "0")}``. They are drawn with the
        case, and ``inputs.options`` has them; ``supports`` and ``--where`` take their names as axes.
    requires : callable, optional
        Says what the function needs and is not here, such as a method of another version of a backend, or returns an
        empty text. A run leaves the implementation out then, and says why.
    native : bool, optional
        Whether it is the plain form that a backend keeps beside those for a device, of PyTorch's own operators.
    checks : bool, optional
        Whether it checks what it is given. Then it is also given inputs in which one thing is illegal (a wrong dtype, a
        row less, a page beyond the pool, a negative length), and has to raise, or give the right answer where there is
        one.
    graph : bool, optional
        Whether a call may be captured in a graph. Then one is, and replayed for other inputs of its shapes: it has to
        give what a plain call gives. What reads numbers on the host while it is captured is a finding.

    Raises
    ------
    TypeError
        If an argument is unknown, or has another name now.
    UsageError
        If what is decorated cannot be called so, or its name is not legal.

    Examples
    --------
    >>> import npudiff
    >>> @npudiff.implementation("swa_mask", supports={"batch": range(1, 9)})
    ... def mine(inputs, target):
    ...     return my_kernel(inputs.kv_lengths.to(target.device), inputs.capacity, inputs.window)
    """
    refuse_unknown("npudiff.implementation", unknown)

    def decorate(function: Callable[..., Any]) -> Implementation:
        item = implementation_of(
            function, component, name=name, supports=supports, on_device=on_device, stateful=stateful
        )
        more: dict[str, Any] = {
            "wrong": wrong,
            "mutant_of": mutant_of,
            "requires": requires,
            "native": native,
            "checks": checks,
            "graph": graph,
        }
        own = {option: tuple(values) for option, values in (options or {}).items()}
        return _defined(replace(item, options=own, **more), function)

    return decorate


def implementation_of(
    function: Callable[..., Any],
    component: str,
    *,
    name: str | None = None,
    supports: Box | Sequence[Box] | None = None,
    on_device: bool = False,
    stateful: bool = False,
) -> Implementation:
    """Make an implementation of a function, which no listing finds; the arguments are those of ``implementation``.

    Raises
    ------
    TypeError
        If the function has no name, and none is given.
    UsageError
        If it cannot be called so, or its name is not legal.
    """
    own_name = snake_case(getattr(function, "__name__", "")) if name is None else name
    if name is None and not own_name.isidentifier():
        raise TypeError(f"an implementation of {component}: {function!r} has no name of its own, give it one by name=")
    _check_signature(own_name, function, stateful=stateful)
    made = _moving(function, stateful=stateful) if on_device else function
    return Implementation(
        component,
        own_name,
        _afresh(made) if stateful else made,
        Constraints() if supports is None else Constraints.of(supports),
        (function.__doc__ or "").strip().partition("\n")[0],
        origin=getattr(function, "__module__", None) or "",
        factory=made if stateful else None,
        on_device=on_device,
    )


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


def snake_case(name: str) -> str:
    """Return the name of a class as a function would have it; that of a function stays as it is."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower() if name[:1].isupper() else name


def refuse_unknown(function: str, unknown: Mapping[str, object]) -> None:
    """Refuse arguments that a function does not have.

    Raises
    ------
    TypeError
        Naming the argument, and what it is called now if it was renamed.
    """
    for name in unknown:
        now = f": it is called {RENAMED[name]}= now" if name in RENAMED else ""
        raise TypeError(f"{function}() has no argument {name}={now}")


def _afresh(opens: Callable[[], ImplementationFunction]) -> ImplementationFunction:
    """Make a function that opens another one for each call."""

    def function(inputs: AnyInputs, target: Target) -> AnyOutputs:
        return opens()(inputs, target)

    return function


def _moving(function: Callable[..., Any], *, stateful: bool) -> Callable[..., Any]:
    """Make the same function, or what makes it if it is stateful, for inputs on the host."""

    @functools.wraps(function)
    def moving(inputs: AnyInputs, target: Target) -> AnyOutputs:
        moved = inputs.to(target.device) if hasattr(inputs, "to") else copied(inputs, target.device)
        return function(moved, target)

    @functools.wraps(function)
    def opening() -> ImplementationFunction:
        return _moving(function(), stateful=False)

    return opening if stateful else moving


def copied(inputs: AnyInputs, device: str) -> AnyInputs:
    """Return a frozen dataclass with copies of its tensors on a device, for one that has no method ``to``."""
    changes = {
        field.name: value.to(device, copy=True)
        for field in dataclasses.fields(inputs)
        if hasattr(value := getattr(inputs, field.name), "untyped_storage")
    }
    return dataclasses.replace(inputs, **changes)


_REPORT = re.compile(r"(?<![\w./-])[\w.-]+/[\w.-]+/(?:issues|pull)/\d+")
"""A report on GitHub, as its address has it behind the host."""

_ANY = inspect.Parameter.POSITIONAL_OR_KEYWORD


@overload
def mutant(
    of: Implementation[InputsT, OutputsT],
    bug: str,
    *,
    name: str | None = None,
    supports: Box | Sequence[Box] | None = None,
    stateful: Literal[False] = False,
    graph: bool = False,
) -> Callable[[ImplementationFunction[InputsT, OutputsT]], Implementation[InputsT, OutputsT]]: ...


@overload
def mutant(
    of: Implementation[InputsT, OutputsT],
    bug: str,
    *,
    name: str | None = None,
    supports: Box | Sequence[Box] | None = None,
    stateful: Literal[True],
    graph: bool = False,
) -> Callable[[Callable[[], ImplementationFunction[InputsT, OutputsT]]], Implementation[InputsT, OutputsT]]: ...


def mutant(
    of: Implementation,
    bug: str,
    *,
    name: str | None = None,
    supports: Box | Sequence[Box] | None = None,
    stateful: bool = False,
    graph: bool = False,
    **unknown: object,
) -> Callable[[Callable[..., Any]], Implementation]:
    """Turn a function into a mutant: an implementation that re-creates a bug, and that a run is expected to find.

    Its component, what it supports, and whether its inputs are on the device are those of the correct implementation.

    Parameters
    ----------
    of : Implementation
        The correct implementation that it is made from, in whose place ``npudiff score --suite`` puts it.
    bug : str
        ``where it was reported: what is wrong``. A report on GitHub may be written ``owner/repository/pull/1`` or
        ``owner/repository/issues/1``; whoever reads it sees the whole link.
    name : str, optional
        Name in listings; that of the function by default.
    supports : mapping or sequence of mappings, optional
        Where the bug shows, within what ``of`` supports; everywhere by default.
    stateful : bool, optional
        As for ``npudiff.implementation``.
    graph : bool, optional
        Whether the bug shows where a call is captured in a graph.

    Raises
    ------
    ValueError
        If ``of`` supports no case of ``supports``.

    Examples
    --------
    >>> import npudiff
    >>> @npudiff.mutant(mine, "you/kernels/issues/7: the last row is not written", supports={"batch": range(2, 9)})
    ... def last_row_missing(inputs, target):
    ...     return mine(inputs, target)[:-1]
    """
    refuse_unknown("npudiff.mutant", unknown)
    return _made(of, bug, name, supports, on_device=of.on_device, stateful=stateful, graph=graph)


def perturbed(
    of: Implementation[InputsT, OutputsT], bug: str, *, supports: Box | Sequence[Box] | None = None
) -> Callable[[Callable[[InputsT], InputsT]], Implementation[InputsT, OutputsT]]:
    """Turn a function of inputs into a mutant that gives a correct implementation other inputs; see ``mutant``.

    Inputs are on the host, as those of ``of`` are before it moves them.

    Examples
    --------
    >>> import dataclasses, npudiff
    >>> @npudiff.perturbed(mine, "you/kernels/issues/8: the window does not arrive", supports={"window": (64,)})
    ... def without_window(inputs):
    ...     return dataclasses.replace(inputs, window=None)
    """

    def decorate(perturb: Callable[[InputsT], InputsT]) -> Implementation[InputsT, OutputsT]:
        @functools.wraps(perturb)
        def function(inputs: InputsT, target: Target) -> OutputsT:
            return of(perturb(inputs), target)

        # What it is written as takes inputs only; whoever asks for a signature asks how it is called.
        vars(function)["__signature__"] = inspect.Signature(
            [inspect.Parameter(name, _ANY) for name in ("inputs", "target")]
        )
        return _made(of, bug, None, supports, on_device=False)(function)

    return decorate


def _made(
    of: Implementation,
    bug: str,
    name: str | None,
    supports: Box | Sequence[Box] | None,
    *,
    on_device: bool,
    stateful: bool = False,
    graph: bool = False,
) -> Callable[[Callable[..., Any]], Implementation]:
    constraints = of.constraints if supports is None else Constraints.of(supports).within(of.constraints)
    if not constraints:
        raise ValueError(f"a mutant of {of.component}.{of.name}: that supports no case of {supports}")
    given: dict[str, Any] = {"wrong": with_links(bug), "mutant_of": of.name, "stateful": stateful, "graph": graph}
    return implementation(of.component, name=name, supports=constraints.boxes, on_device=on_device, **given)


def with_links(text: str) -> str:
    """Return a text in which every report on GitHub has its whole address."""
    return _REPORT.sub(lambda found: f"https://github.com/{found.group()}", text)

"""A component: one thing with one right answer, and everything that the engine needs to test it.

How outputs compare with what is right stands first: every element's error over its bound, and the largest.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, cast

from npudiff.files.names import check_word
from npudiff.model.anything import AnyCase, AnyInputs, AnyOutputs, AnyStep
from npudiff.model.baselines import BaselineSpec
from npudiff.model.binding import misfit
from npudiff.model.case import DeclaredCase
from npudiff.model.constraints import Axis, Box, Constraints, Exclusion
from npudiff.model.drift import CaseSums
from npudiff.model.fingerprint import InputsChanged, changed_tensors, fingerprint
from npudiff.model.implementation import Implementation, InputsT, Target
from npudiff.model.profiles import Boxes
from npudiff.model.ranks import Ranks
from npudiff.model.returned import outputs_of, owned_answer, owned_tensor, plain_error

if TYPE_CHECKING:
    import torch
    from hypothesis.stateful import RuleBasedStateMachine
    from hypothesis.strategies import SearchStrategy

    from npudiff.model.illegal import Illegal
    from npudiff.model.instead import Instead


@dataclass(frozen=True)
class OutputComparison:
    """How one output compares."""

    name: str
    """Name of the output."""
    problem: str | None = None
    """A wrong shape or dtype, in words; then nothing else was compared."""
    ratio: torch.Tensor | None = None
    """float64 ``|actual - value| / bound`` of every element; 0 where both are right or the element is not specified,
    infinity where a non-finite or exact element is wrong."""
    actual: torch.Tensor | None = None
    value: torch.Tensor | None = None
    bound: torch.Tensor | None = None
    """What was compared."""
    gain: torch.Tensor | None = None
    most_gain: torch.Tensor | None = None
    """float64, of the shape of ``ratio`` without its last axis: the gain error of each row, and the largest correct
    one; where the reference says so."""
    directions: Mapping[str, torch.Tensor] | None = None
    """What the reference names besides: see ``ExpectedOutput.directions``."""

    @cached_property
    def worst(self) -> float:
        """The largest ratio, of an element or of the gain of a row; above 1 is wrong."""
        if self.problem is not None:
            return float("inf")
        return max(_largest(self.ratio), _largest(self.gain_ratio))

    @cached_property
    def gain_ratio(self) -> torch.Tensor | None:
        """The gain error of each row over the largest correct one."""
        if self.gain is None or self.most_gain is None:
            return None
        return self.gain.abs() / self.most_gain

    @property
    def only_gain(self) -> bool:
        """Whether every element is within its bound, and a row is too long or too short."""
        return self.problem is None and self.worst > 1 >= _largest(self.ratio)

    @property
    def wrong(self) -> torch.Tensor | None:
        """Which elements are wrong."""
        return None if self.ratio is None else self.ratio > 1

    @property
    def exact(self) -> bool:
        """Whether the output asks for equality only."""
        if self.bound is None or not self.bound.numel():
            return self.bound is not None
        most = float(self.bound.max())
        return most == 0.0 or (most == math.inf and not bool(((self.bound > 0) & (self.bound < math.inf)).any()))


def _largest(ratio: torch.Tensor | None) -> float:
    return float(ratio.max()) if ratio is not None and ratio.numel() else 0.0


@dataclass(frozen=True)
class Comparison:
    """How all outputs of one run compare."""

    outputs: tuple[OutputComparison, ...]
    """One entry per output that the implementation returned."""
    context: str = ""
    """What was compared with what, for a relation; empty for equivalence."""
    left_out: tuple[str, ...] = ()
    """Outputs of the reference that the implementation did not return, which is no failure."""

    @property
    def worst(self) -> float:
        """The largest error over bound of all outputs."""
        return max((output.worst for output in self.outputs), default=0.0)

    @property
    def exact(self) -> bool:
        """Whether every output asks for equality only."""
        return all(output.exact for output in self.outputs)

    @property
    def holds(self) -> bool:
        """Whether every element is within its bound."""
        return self.worst <= 1

    @property
    def worst_output(self) -> OutputComparison:
        """The first output that is wrong, in the component's order; if none is, the one with the largest ratio."""
        wrong = [output for output in self.outputs if output.worst > 1]
        return wrong[0] if wrong else max(self.outputs, key=lambda output: output.worst)


@dataclass(frozen=True)
class Passed:
    """What is left of a comparison that holds, where nobody needs its tensors."""

    worst: float
    """The largest error over bound of all outputs."""
    exact: bool
    """Whether every output asks for equality only."""
    sums: CaseSums = field(default_factory=dict)
    """Its part in what the cases of a job have in common."""
    left_out: tuple[str, ...] = ()
    """Outputs that were not returned."""
    holds: ClassVar[bool] = True


# A plain ``Component`` is one of any case and inputs, as in ``implementation``.
if TYPE_CHECKING:
    from typing_extensions import TypeVar

    CaseT = TypeVar("CaseT", default=Any)
else:
    from typing import TypeVar

    CaseT = TypeVar("CaseT")

Answer = TypeVar("Answer")


class ComputedElements(Protocol):
    """Elements of an output that were computed, where the others were moved: ``reference.bounds.Computed`` is that."""

    @property
    def moved(self) -> torch.Tensor:
        """The output as it is but for these elements: equal bit for bit."""

    @property
    def places(self) -> torch.Tensor:
        """int64 ``[elements]``: where they are in the flattened output, no place twice."""

    @property
    def value(self) -> torch.Tensor:
        """The right answers."""

    @property
    def bound(self) -> torch.Tensor:
        """Their largest correct deviations."""


class ExpectedOutput(Protocol):
    """What a reference says of one output: ``reference.bounds.Expected`` is one."""

    @property
    def value(self) -> torch.Tensor:
        """The right answer."""

    @property
    def bound(self) -> torch.Tensor:
        """The largest correct deviation of each element."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that an implementation must return."""

    @property
    def gain(self) -> torch.Tensor | None:
        """The largest correct gain error of each row; None where nothing is said of it."""

    @property
    def directions(self) -> Mapping[str, torch.Tensor]:
        """Name of a parameter to how the value changes with the parameter's logarithm."""

    @property
    def computed(self) -> ComputedElements | None:
        """What was computed of an output whose other elements were moved; None where nobody tells them apart."""


class NotApplicable(Exception):
    """The property says nothing about this case and implementation; the message is the reason, and it is counted."""


@dataclass(frozen=True)
class Property(Generic[CaseT]):
    """Something that must hold."""

    name: str
    """Name in listings, a verb phrase with underscores."""
    summary: str
    """One sentence that says what must hold."""
    check: Callable[[Subject, CaseT], Comparison]
    """``check(subject, case)`` returns a comparison; raises ``NotApplicable`` where the property says nothing."""
    within: Box = field(default_factory=dict)
    """Axes that the property narrows, so that its cases stay cheap and it applies to them."""
    needs: Box = field(default_factory=dict)
    """Axes of the other runs that it compares with; an implementation that supports no such case is left out."""
    example_ratio: float = 0.1
    """Examples of this property per example of equivalence."""
    in_place: bool = False
    """Whether it writes into the inputs that it builds, so that no other may be given them."""
    selector: str = ""
    """What ``--component`` has to name to find it: a user's file or module."""

    def __post_init__(self) -> None:
        check_word("a property", self.name)


class TraceListener(Protocol):
    """What a machine tells of its run; the engine is one."""

    def begin(self, case: AnyCase) -> None:
        """A run begins with a case without steps."""

    def take(self, case: AnyCase) -> None:
        """The case has one more step. Raises to end the run if it fails."""

    def end(self, case: AnyCase) -> None:
        """The run is over, whatever the reason."""


class Session(Protocol):
    """A live object of an implementation beside what the reference remembers."""

    def take(self, step: AnyStep) -> Comparison:
        """Take a step on both, and compare what can be seen of them."""


@dataclass(frozen=True)
class History:
    """What a component with history has besides: cases with a field ``steps``, of which every beginning is a case."""

    machine: Callable[[Constraints, TraceListener], RuleBasedStateMachine]
    """Constraints and judge to a Hypothesis state machine that draws steps."""
    session: Callable[[Subject, Any], Session]
    """Subject and case to a session in which no step has been taken."""
    simpler: tuple[Callable[[Any], Iterable[Any]], ...] = ()
    """Ways to make a trace simpler: each turns a case into cases that say the same in simpler words, the simplest
    first. They need not be legal. The first way is tried before steps are left out, the others after that, and all
    of them again until none helps."""
    runs: float = 0.35
    """Runs of the machine per example: a run has many steps, and costs as much as many cases."""
    steps: int = 20
    """Steps of each run."""
    given: type | None = None
    opens: type | None = None
    """For listings: the dataclass of inputs that an implementation is opened with, and the protocol of the object that
    it opens, whose docstrings say what its methods do."""


_DECLARED: Any = None
"""What the case declares, where a component says nothing else."""


@dataclass(frozen=True)
class Component(Generic[CaseT, InputsT]):
    """One thing with one right answer.

    Of a declared case (``npudiff.draw.cases``), axes, strategy and what else is said of cases is derived; a component
    gives its own where it has to.
    """

    name: str
    summary: str
    """Name, and one line for listings."""
    case_type: type[CaseT]
    """Frozen dataclass of plain values from which inputs are built. Its first field that is a number or a tuple says
    how much one call is given: rows, or the requests of a batch."""
    outputs: tuple[str, ...]
    """Names of the outputs; an implementation that returns a single tensor returns the first."""
    inputs: Callable[[CaseT], InputsT]
    """Case to inputs; the same case gives the same bits everywhere."""
    reference: Callable[[InputsT], Mapping[str, ExpectedOutput]]
    """Inputs to expected outputs."""
    coordinates: Callable[[InputsT, str], Mapping[str, torch.Tensor]] = lambda _inputs, _output: {}
    """Inputs and output name to integer tensors that broadcast to the output: where each element is, in the component's
    own words (``request``, ``token``, ``head``). Without any, places are told by index."""
    axes: Mapping[str, Axis] = _DECLARED
    """Every axis that constraints may name."""
    strategy: Callable[[Constraints], SearchStrategy[CaseT]] = _DECLARED
    """Constraints to a Hypothesis strategy of cases."""
    values: Callable[[CaseT], Mapping[str, Collection[Any]]] = _DECLARED
    """Case to the values of each axis that it uses."""
    features: Callable[[CaseT], Collection[str]] = _DECLARED
    """Case to the names of the regions that it is in (``query length 1``); their shares are reported."""
    describe: Callable[[CaseT], str] = _DECLARED
    """Case to one short line."""
    check_case: Callable[[CaseT], None] = _DECLARED
    """Raises ``ValueError`` for a case whose inputs cannot or must not be built; findings from elsewhere pass here."""
    padded: Callable[[CaseT], Iterable[CaseT]] = lambda _case: ()
    """Case to cases of inputs of the same shapes with other lengths or fewer real rows, as a graph is replayed for."""
    highlighted_region: str = ""
    """A feature whose share of the cases every listing shows, because bugs live there; empty for none."""
    relations: tuple[Property[CaseT], ...] = ()
    """What must hold besides equivalence with the reference."""
    illegal: tuple[Illegal, ...] = ()
    """What can be wrong with inputs, in the component's own words: implementations that check them are given it."""
    profiles: Mapping[str, Boxes] = field(default_factory=dict)
    """Production sizes, by model name, as values of axes."""
    example_ratio: float = 1.0
    """Part of the usual number of examples that implementations get: below 1 where a case costs much. Mutants, and
    implementations that the user names, get all."""
    history: History | None = None
    """For a component whose right answer depends on what was done before. Its cases have a field ``steps``: the
    strategy draws them without any, an implementation returns a live object, and ``inputs`` and ``reference`` speak
    of what can be seen after the last step. It has no relations, which need cases that are drawn whole."""
    ranks: Ranks | None = None
    """For a component whose answer several processes compute together. Its implementations are what one of them runs,
    and keep nothing between calls."""
    selector: str = ""
    """What ``--component`` has to name to find it: a user's file or module."""
    baselines: BaselineSpec | None = None
    """What is ordinary in tests of this component, for measuring what they find; None where nobody has said."""

    def __post_init__(self) -> None:
        check_word("a component", self.name)
        for output in self.outputs:
            check_word(f"an output of {self.name}", output)
        if self.history is not None and self.relations:
            raise ValueError(f"{self.name} has a history, and relations need cases that are drawn whole")
        kind = self.case_type
        if issubclass(kind, DeclaredCase):
            axes, strategy = kind.axes(), getattr(kind, "strategy", None)
            said = {"axes": axes, "strategy": strategy, "values": kind.values, "features": kind.features,
                    "describe": kind.describe, "check_case": kind.check}  # fmt: skip
            for name, what in said.items():
                if getattr(self, name) is None:
                    object.__setattr__(self, name, what)
        missing = [name for name in ("axes", "strategy", "values", "features", "describe", "check_case")
                   if getattr(self, name) is None]  # fmt: skip
        if missing:
            raise ValueError(f"{self.name} says nothing of {', '.join(missing)}, and its cases are not declared")
        for axis in self.axes:
            check_word(f"an axis of {self.name}", axis)


_interrupts_ignored = False


def ignore_interrupts() -> None:
    """Say that nobody interrupts this process, so that a ``KeyboardInterrupt`` in it is the implementation's own."""
    global _interrupts_ignored  # noqa: PLW0603 - of the process, like the signal's handler
    _interrupts_ignored = True


class ImplementationRaised(Exception):
    """An implementation raised; the original exception is the cause. It is a finding, never a skip."""


class Returned(dict[str, "torch.Tensor"]):
    """Outputs of one run. An implementation may leave some out; a property that needs one says nothing of it then."""

    def __missing__(self, name: str) -> torch.Tensor:
        raise NotApplicable(f"the implementation does not return {name}")


def _begun(
    begins: Callable[[AnyInputs, Target], Callable[[], AnyOutputs]], inputs: AnyInputs, target: Target
) -> Callable[[], AnyOutputs]:
    """Begin a call elsewhere; what that raises is raised by who waits for the call, as if the call had done it."""
    try:
        return begins(inputs, target)
    except Exception as error:  # noqa: BLE001 - of a process of somebody else
        raised = error

    def raising() -> AnyOutputs:
        raise raised

    return raising


@dataclass(frozen=True)
class Subject:
    """An implementation on a target, as properties see it."""

    component: Component
    implementation: Implementation
    target: Target
    excluded: tuple[Exclusion, ...] = field(default=(), kw_only=True)
    instead: tuple[Instead, ...] = field(default=(), kw_only=True)
    """What the implementation is known to compute instead of the right answer, and in which cases."""
    observer: Callable[[AnyInputs, Mapping[str, torch.Tensor]], None] | None = field(default=None, kw_only=True)
    """Told of each run: its inputs, and its outputs."""
    fingerprint: Callable[[object], Mapping[str, tuple[object, ...]]] = field(default=fingerprint, kw_only=True)
    """Says of inputs what changes when they are written to; asked before each call."""

    @property
    def names(self) -> tuple[str, str]:
        """Component and implementation: what tables and findings are grouped by."""
        return self.component.name, self.implementation.name

    def run(self, inputs: AnyInputs) -> Mapping[str, torch.Tensor]:
        """Return the outputs on the host.

        Asking them for an output that the implementation leaves out raises ``NotApplicable``.

        Raises
        ------
        ImplementationRaised
            If the implementation raises, returns something that is not its outputs, or writes into its inputs.
        """
        return self.begin(inputs)()

    def begin(self, inputs: AnyInputs) -> Callable[[], Mapping[str, torch.Tensor]]:
        """Begin a run where that is done elsewhere, and return what gives its outputs, as ``run`` does.

        Any other implementation runs when it is asked for them, so that nothing it does comes before that.
        """
        if self.component.ranks is not None:
            return self._begin_on_ranks(inputs)
        begins = self.implementation.begins
        waits = None if begins is None else _begun(begins, inputs, self.target)

        def outputs() -> Mapping[str, torch.Tensor]:
            made = self.call_guarded(lambda: self._outputs(inputs, waits), inputs)
            if self.observer is not None:
                self.observer(inputs, made)
            return made

        return outputs

    def _begin_on_ranks(self, inputs: AnyInputs) -> Callable[[], Mapping[str, torch.Tensor]]:
        if self.target.on_ranks is None:
            raise NotApplicable(f"{self.target.name} has no ranks")
        waits = self.target.on_ranks(self, inputs)

        def outputs() -> Mapping[str, torch.Tensor]:
            made = Returned(waits())
            if self.observer is not None:
                self.observer(inputs, made)
            return made

        return outputs

    def fresh(self) -> Subject:
        """Return the same subject, with whatever its implementation keeps between calls empty.

        Of an implementation that does not say that it keeps something, nothing can be emptied: it is the same.
        """
        return dataclasses.replace(self, implementation=self.implementation.fresh())

    def create(self, inputs: AnyInputs) -> AnyOutputs:
        """Return the live object that the implementation of a component with history makes of its inputs.

        Raises
        ------
        ImplementationRaised
            If the implementation raises, or writes into its inputs.
        """
        live: list[AnyOutputs] = []
        self.call_guarded(lambda: live.append(self.implementation(inputs, self.target)), inputs)
        return live[0]

    def outputs_of_call(
        self, question: Callable[[], object], names: Sequence[str], *given: object
    ) -> Mapping[str, torch.Tensor]:
        """Return the outputs of a call into a live object on the host, as ``run`` does those of an implementation.

        Parameters
        ----------
        question, given
            As of ``call_guarded``.
        names : sequence of str
            What the call may return.
        """
        return self.call_guarded(lambda: Returned(outputs_of(question(), names, self._taken_over)), *given)

    def call_guarded(self, question: Callable[[], Answer], *given: object) -> Answer:
        """Return what a call into the implementation returns, once the device is done with it.

        Tensors are copied to the host, as ``npudiff.model.returned.owned_answer`` says.

        Parameters
        ----------
        question : callable
            Makes the call.
        given : object
            What the call is given: tensors, or (nested) dataclasses of them, which it must not write into.

        Raises
        ------
        ImplementationRaised
            If it raises, or writes into what it was given.
        NotApplicable
            If it raises what says that something of a backend is not here, or that it does not fit the one that is.
        """
        given = () if self.implementation.untrusted else given  # that has copies, in a process of its own
        before = [self.fingerprint(one) for one in given]
        own = os.getpid()
        try:
            answer = cast("Answer", owned_answer(question()))
            self.target.synchronize()
        except BaseException as error:  # leaving the process is no verdict, and neither is a skip of a test runner
            if isinstance(error, KeyboardInterrupt) and not _interrupts_ignored:
                raise
            if isinstance(error, self.implementation.absent):
                raise NotApplicable(str(error)) from error
            if self.implementation.adapters and (why := misfit(error, self.implementation.adapters)):
                raise NotApplicable(why) from error
            cause = plain_error(error)
            raise ImplementationRaised(f"{type(cause).__name__}: {cause}") from cause
        finally:
            if os.getpid() != own:  # the implementation has forked, and this is the copy: it judges nothing
                os._exit(1)
        changed = [
            name or "a tensor" for one, seen in zip(given, before, strict=True) for name in changed_tensors(one, seen)
        ]
        if changed:
            wrote = InputsChanged(f"the implementation wrote into its inputs: {', '.join(changed)}")
            raise ImplementationRaised(str(wrote)) from wrote
        return answer

    def _outputs(self, inputs: AnyInputs, waits: Callable[[], AnyOutputs] | None) -> Mapping[str, torch.Tensor]:
        result = self.implementation(inputs, self.target) if waits is None else waits()
        return Returned(outputs_of(result, self.component.outputs, self._taken_over))

    def _taken_over(self, value: object, name: str) -> torch.Tensor:
        """Return a copy of an output on the host."""
        return owned_tensor(value, name)

    def expected(self, inputs: AnyInputs) -> Mapping[str, ExpectedOutput]:
        """Return what the reference says of these inputs."""
        return self.component.reference(inputs)

    def known_in(self, case: object) -> list[Instead]:
        """Return what is known to be computed instead of the right answer to a case."""
        return [one for one in self.instead if one.where.touches(self.component.values(case))] if self.instead else []

    def require(self, case: object, why: str) -> None:
        """Raise ``NotApplicable`` if ``case``, which a relation derived, is not supported, or not to be run."""
        reason = self.reason_against(case)
        if reason is not None:
            raise NotApplicable(f"{why}: {reason}")

    def reason_against(self, case: object, supported: Constraints | None = None) -> str | None:
        """Return why a case is not run: it is not supported, or left out; None if it is.

        ``supported`` narrows what the implementation supports.
        """
        values = self.component.values(case)
        reason = (self.implementation.constraints if supported is None else supported).reason_against(values)
        left_out = (one.reason for one in self.excluded if one.where.touches(values))
        return next(left_out, None) if reason is None else reason

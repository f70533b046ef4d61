"""A component: one thing with one right answer, and everything that the engine needs to test it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from npudiff.constraints import Axis, Box, Constraints
from npudiff.implementation import Implementation, outputs_of
from npudiff.property import NotApplicable, Property
from npudiff.target import Target

if TYPE_CHECKING:
    import torch
    from hypothesis.strategies import SearchStrategy


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


@dataclass(frozen=True)
class Component:
    """One thing with one right answer.

    Attributes
    ----------
    name, summary : str
        Name, and one line for listings.
    case_type : type
        Frozen dataclass of plain values from which inputs are built.
    outputs : tuple of str
        Names of the outputs; an implementation that returns a single tensor returns the first.
    axes : mapping
        Every axis that constraints may name.
    strategy : callable
        Constraints to a Hypothesis strategy of cases.
    inputs : callable
        Case to inputs; the same case gives the same bits everywhere.
    reference : callable
        Inputs to expected outputs.
    values : callable
        Case to the values of each axis that it uses.
    features : callable
        Case to the names of the regions that it is in (``query length 1``); their shares are reported.
    describe : callable
        Case to one short line.
    check_case : callable
        Raises ``ValueError`` for a case whose inputs cannot or must not be built; findings from elsewhere pass here.
    coordinates : callable
        Inputs and output name to integer tensors that broadcast to the output: where each element is, in the
        component's own words (``request``, ``token``, ``head``).
    watched : str
        A feature whose share of the cases every listing shows, because bugs live there; empty for none.
    relations : tuple of Property
        What must hold besides equivalence with the reference.
    share : float
        Part of the usual number of examples that implementations get: below 1 where a case costs much. Mutants get
        all.
    profiles : mapping
        Production sizes, by model name, as values of axes.
    """

    name: str
    summary: str
    case_type: type
    outputs: tuple[str, ...]
    axes: Mapping[str, Axis]
    strategy: Callable[[Constraints], SearchStrategy[Any]]
    inputs: Callable[[Any], Any]
    reference: Callable[[Any], Mapping[str, ExpectedOutput]]
    values: Callable[[Any], Mapping[str, Collection[Any]]]
    features: Callable[[Any], Collection[str]]
    describe: Callable[[Any], str]
    check_case: Callable[[Any], None]
    coordinates: Callable[[Any, str], Mapping[str, torch.Tensor]]
    watched: str = ""
    relations: tuple[Property, ...] = ()
    profiles: Mapping[str, Box] = field(default_factory=dict)
    share: float = 1.0


class InputsChanged(Exception):  # noqa: N818 - named for what happened
    """An implementation wrote into the tensors that it was given; on a device that corrupts a cache or a table."""


def fingerprint(inputs: object, path: str = "") -> dict[str, int]:
    """Return a number per tensor of (nested) dataclass inputs that changes when the tensor is written to."""
    if hasattr(inputs, "untyped_storage"):
        return {path: _checksum(inputs)}
    if not dataclasses.is_dataclass(inputs):
        return {}
    parts = ((field.name, getattr(inputs, field.name)) for field in dataclasses.fields(inputs))
    return {
        name: digest
        for part, value in parts
        for name, digest in fingerprint(value, f"{path}.{part}" if path else part).items()
    }


def _checksum(tensor: Any) -> int:  # noqa: ANN401 - a tensor; torch is imported by those who have one
    """Sum of the bits as integers: cheap, and a value that is overwritten by another changes it."""
    import torch  # noqa: PLC0415

    bits = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    if bits.storage_offset() % 8:
        bits = bits.clone()
    words = len(bits) // 8 * 8  # eight bytes at a time: the sum costs less than anything that is done with the tensor
    return int(bits[:words].view(torch.int64).sum()) + int(bits[words:].sum())


class ImplementationRaised(Exception):  # noqa: N818 - named for what happened
    """An implementation raised; the original exception is the cause. It is a finding, never a skip."""


@dataclass(frozen=True)
class Subject:
    """An implementation on a target, as properties see it."""

    component: Component
    implementation: Implementation
    target: Target

    def run(self, inputs: Any) -> Mapping[str, torch.Tensor]:  # noqa: ANN401 - the component's own contract
        """Return the outputs on the host.

        Raises
        ------
        ImplementationRaised
            If the implementation raises, returns something that is not its outputs, or writes into its inputs.
        """
        before = fingerprint(inputs)
        try:
            result = outputs_of(self.implementation(inputs, self.target), self.component.outputs)
            self.target.synchronize()
            outputs = {name: tensor.detach().cpu() for name, tensor in result.items()}
        except (Exception, SystemExit) as error:  # leaving the process is no verdict
            raise ImplementationRaised(f"{type(error).__name__}: {error}") from error
        changed = [name for name, digest in fingerprint(inputs).items() if digest != before[name]]
        if changed:
            cause = InputsChanged(f"the implementation wrote into its inputs: {', '.join(changed)}")
            raise ImplementationRaised(str(cause)) from cause
        return outputs

    def expected(self, inputs: Any) -> Mapping[str, ExpectedOutput]:  # noqa: ANN401 - the component's own contract
        """Return what the reference says of these inputs."""
        return self.component.reference(inputs)

    def require(self, case: object, why: str) -> None:
        """Raise ``NotApplicable`` if the implementation does not support ``case``, which a relation derived."""
        reason = self.implementation.constraints.reason_against(self.component.values(case))
        if reason is not None:
            raise NotApplicable(f"{why}: {reason}")
